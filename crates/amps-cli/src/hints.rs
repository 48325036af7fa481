//! Every hint leads somewhere: the commands and options that errors and notes name exist.

use std::fs;
use std::path::Path;

use clap::{Command, CommandFactory as _};

use crate::args::Cli;

/// Text of the sources between double quotes, with continued lines joined.
fn literals(source: &str) -> Vec<String> {
    let mut found = Vec::new();
    let mut chars = source.chars().peekable();
    while let Some(c) = chars.next() {
        match c {
            // Comments are shown to nobody, except those of the command line, which are its help.
            '/' if chars.peek() == Some(&'/') => {
                let comment: String = chars.by_ref().take_while(|c| *c != '\n').collect();
                if comment.starts_with("//") {
                    found.push(comment);
                }
            }
            // A character literal that is a quote.
            '\'' if chars.peek() == Some(&'"') => _ = chars.next(),
            '"' => {
                let mut text = String::new();
                while let Some(c) = chars.next() {
                    match c {
                        '"' => break,
                        '\\' if chars.peek() == Some(&'\n') => {
                            while chars.next_if(|c| c.is_whitespace()).is_some() {}
                        }
                        '\\' => _ = chars.next(),
                        c => text.push(c),
                    }
                }
                found.push(text);
            }
            _ => {}
        }
    }
    found
}

/// What follows "amps" in a text, up to where the command line ends.
fn command_lines(text: &str) -> impl Iterator<Item = &str> {
    let ends = |line: &str| line.find(['`', ';', ',', ')', ':']).unwrap_or(line.len());
    text.match_indices("amps ")
        .filter(|(at, _)| *at == 0 || !text[..*at].ends_with(|c: char| c.is_alphanumeric()))
        .map(move |(at, word)| {
            let line = &text[at + word.len()..];
            &line[..ends(line)]
        })
}

/// What in a command line does not exist; `None` if it is not a command line.
fn missing(line: &str, amps: &Command) -> Option<String> {
    let mut words = line.split_whitespace().peekable();
    let mut command = amps.find_subcommand(words.next()?)?;
    while let Some(next) = words.peek().and_then(|word| command.find_subcommand(word)) {
        (command, _) = (next, words.next());
    }
    // Every group has "help".
    if command.get_subcommands().any(|c| c.get_name() != "help")
        && let Some(word) = words.peek().filter(|word| !word.starts_with(['-', '{']))
    {
        return Some(format!("{word} in {line:?}"));
    }
    words
        .filter_map(|word| word.strip_prefix("--"))
        .map(|option| option.split(['=', '.']).next().unwrap_or(option))
        .find(|option| {
            let known = |argument: &clap::Arg| argument.get_long() == Some(option);
            !command.get_arguments().any(known)
        })
        .map(|option| format!("--{option} in {line:?}"))
}

fn visit(directory: &Path, see: &mut impl FnMut(&Path, &str)) {
    for entry in fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            visit(&path, see);
        } else if path.extension().is_some_and(|e| e == "rs") {
            see(&path, &fs::read_to_string(&path).unwrap());
        }
    }
}

#[test]
fn every_command_that_a_hint_names_is_there() {
    let mut amps = Cli::command();
    amps.build();
    let crates = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let (mut seen, mut wrong) = (0, Vec::new());
    for name in ["amps-store", "amps-client", "amps-cli"] {
        visit(&crates.join(name).join("src"), &mut |path, source| {
            if path.ends_with("hints.rs") {
                return;
            }
            for text in literals(source) {
                for line in command_lines(&text) {
                    seen += 1;
                    wrong.extend(missing(line, &amps).map(|what| (path.to_owned(), what)));
                }
            }
        });
    }
    // If there are fewer, they are not found any more.
    assert!(seen > 20, "{seen}");
    assert_eq!(wrong, []);
}

#[test]
fn a_command_or_option_that_is_not_there_is_found() {
    let mut amps = Cli::command();
    amps.build();
    let wrong = |text: &str| command_lines(text).find_map(|line| missing(line, &amps));
    assert!(wrong("see `amps store salvage FILE`").is_some());
    assert!(wrong("try: amps store repair FILE --segments 9").is_some());
    assert_eq!(wrong("amps store repair {} --to NEW; then --that"), None);
}

/// The command can do neither, and once gave this advice all the same.
#[test]
fn no_error_advises_what_only_a_program_can_do() {
    let error = amps_store::AppendError::TooLarge { needed: 9, max: 8 };
    assert!(error.to_string().contains("--max-message"), "{error}");
    let path = "s.store".into();
    let ranges = Vec::new();
    let error = amps_store::OpenError::Damaged { path, ranges };
    assert!(!error.to_string().contains("salvage"), "{error}");
    let error = amps_store::StoreError::SyncFailed("no".to_owned());
    assert!(error.to_string().contains("amps store repair"), "{error}");
}
