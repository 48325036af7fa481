//! What documents and comments refer to is there: pages, sections, promises, properties,
//! histories, goals, files, and the tests that a page names.
//!
//! A reference that leads nowhere looks like evidence and is none, and the compiler does not see
//! it. So everything that a reader would look up is looked up here.

#![allow(clippy::expect_used, reason = "a test ends where it cannot go on")]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

/// The files of the repository that people read, by their path from its root.
struct Repository {
    files: BTreeMap<String, String>,
    /// Tests: name, and the files that have one so called.
    tests: BTreeMap<String, Vec<String>>,
}

impl Repository {
    fn read() -> Self {
        let root = Path::new(env!("CARGO_MANIFEST_DIR"));
        let mut files = BTreeMap::new();
        collect(root, root, &mut files);
        assert!(files.len() > 300, "{} files", files.len());
        let tests = tests(&files);
        assert!(tests.len() > 900, "{} tests", tests.len());
        Repository { files, tests }
    }

    fn page(&self, path: &str) -> &str {
        self.files.get(path).expect("the page is there")
    }

    /// The file that `name` means in `from`: seen from the root, or from where it is named.
    fn resolve(&self, from: &str, name: &str) -> Option<String> {
        let beside = match from.rsplit_once('/') {
            Some((dir, _)) => format!("{dir}/{name}"),
            None => name.to_owned(),
        };
        let found = [name.to_owned(), beside].map(|path| normal(&path));
        found.into_iter().find(|path| self.files.contains_key(path))
    }
}

/// `a/../b` is `b`.
fn normal(path: &str) -> String {
    let mut parts: Vec<&str> = Vec::new();
    for part in path.split('/').filter(|p| !p.is_empty() && *p != ".") {
        match part {
            ".." if parts.last().is_some_and(|last| *last != "..") => drop(parts.pop()),
            part => parts.push(part),
        }
    }
    parts.join("/")
}

fn collect(root: &Path, dir: &Path, found: &mut BTreeMap<String, String>) {
    for entry in fs::read_dir(dir).expect("lists") {
        let path = entry.expect("lists").path();
        let name = path.file_name().expect("has a name").to_string_lossy();
        let left_out = ["target", "corpus", "artifacts", "samples", ".git"];
        if path.is_dir() && !path.is_symlink() {
            // A page beside samples counts; what git does not keep does not.
            if !left_out.contains(&name.as_ref()) || name == "samples" {
                collect(root, &path, found);
            }
        } else if ["rs", "md", "py", "svg", "toml"]
            .iter()
            .any(|e| name.ends_with(&format!(".{e}")))
            || ["run", "init", "sanitize", "instructions"].contains(&name.as_ref())
        {
            let key = path.strip_prefix(root).expect("is below the root");
            let text = fs::read_to_string(&path).expect("reads");
            found.insert(key.to_string_lossy().into_owned(), text);
        }
    }
}

fn tests(files: &BTreeMap<String, String>) -> BTreeMap<String, Vec<String>> {
    let mut found: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for (path, text) in files.iter().filter(|(path, _)| path.ends_with(".rs")) {
        let mut is_test = false;
        for line in text.lines().map(str::trim) {
            is_test |= line.starts_with("#[test]") || line.starts_with("#[tokio::test");
            let name = line.trim_start_matches("async ").strip_prefix("fn ");
            if let Some((name, _)) = name.and_then(|n| n.split_once('('))
                && std::mem::take(&mut is_test)
            {
                let file = path.trim_end_matches(".rs").to_owned();
                found.entry(name.to_owned()).or_default().push(file);
            }
        }
    }
    found
}

/// What stands between backticks.
fn quoted(row: &str) -> impl Iterator<Item = &str> {
    row.split('`').skip(1).step_by(2)
}

/// A name that stands for a test: behind its file, or in words; perhaps shortened.
fn is_test(name: &str) -> bool {
    let (words, last) = (name.replace('…', ""), name.rsplit("::").next());
    let simple = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || "_:".contains(c);
    let long = |l: &str| l.contains('…') || l.matches('_').count() >= 2;
    words.chars().all(simple) && (name.contains("::") || last.is_some_and(long))
}

/// Whether a test is so called: each part of a shortened name occurs, in order, the first at
/// the beginning; and its file, or the directory of that, is named as in front of it.
fn exists(name: &str, tests: &BTreeMap<String, Vec<String>>) -> bool {
    let (place, words) = name.rsplit_once("::").unwrap_or(("", name));
    let fits = |test: &str| {
        let mut rest = test;
        let whole = words.split('…').enumerate().all(|(n, part)| {
            let at = rest.find(part).filter(|at| n > 0 || *at == 0);
            at.inspect(|at| rest = &rest[at + part.len()..]).is_some()
        });
        whole && (rest.is_empty() || words.ends_with('…'))
    };
    let place = place.rsplit("::").next().unwrap_or(place);
    let is_there = |file: &String| place.is_empty() || file.split('/').any(|part| part == place);
    tests
        .iter()
        .any(|(test, files)| fits(test) && files.iter().any(is_there))
}

/// What belongs together in a file, with the line it begins at: the comments that follow each
/// other in a program, the paragraphs of a page.
fn blocks(path: &str, text: &str) -> Vec<(usize, String)> {
    let mut found: Vec<(usize, String)> = Vec::new();
    let mut open = false;
    for (n, line) in text.lines().enumerate() {
        let line = line.trim();
        let said = match path.rsplit_once('.').map(|(_, end)| end) {
            Some("md") => Some(line).filter(|l| !l.is_empty()),
            Some("rs") if line.starts_with("//") => Some(line.trim_start_matches(['/', '!'])),
            Some("rs") => line.split_once(" // ").map(|(_, said)| said),
            _ => line.find('#').map(|at| line[at..].trim_start_matches('#')),
        };
        match (said, found.last_mut().filter(|_| open)) {
            (Some(said), Some((_, block))) => {
                block.push(' ');
                block.push_str(said.trim());
            }
            (Some(said), None) => found.push((n + 1, said.trim().to_owned())),
            (None, _) => {}
        }
        open = said.is_some();
    }
    found
}

/// A reference in a block of text, in the order in which they stand there.
#[derive(Debug, PartialEq, Eq)]
enum Reference<'a> {
    /// `path/page.md`
    Page(&'a str),
    /// `§4.2`, or the same in words
    Section(&'a str),
    /// `S6`
    Row(&'a str),
}

fn references(block: &str) -> Vec<Reference<'_>> {
    let mut found = Vec::new();
    let in_word = |c: char| c.is_alphanumeric() || "_-./§".contains(c);
    let mut rest = block;
    let mut before = "";
    while let Some(begin) = rest.find(in_word) {
        let end = rest[begin..].find(|c| !in_word(c));
        let (word, behind) = rest[begin..].split_at(end.unwrap_or(rest.len() - begin));
        let away = rest[..begin].ends_with("://");
        rest = behind;
        let word = word.trim_end_matches(['.', '-', '/']);
        let number =
            |text: &str| !text.is_empty() && text.chars().all(|c| c.is_ascii_digit() || c == '.');
        let after = std::mem::replace(&mut before, word);
        if away {
            continue;
        } else if ["section", "sections"].contains(&after) && number(word) {
            found.push(Reference::Section(word));
        } else if word.ends_with(".md") && word.len() > 3 {
            found.push(Reference::Page(word));
        } else if let Some(section) = word.strip_prefix('§').filter(|s| number(s)) {
            found.push(Reference::Section(section));
        } else {
            for row in word.split(['/', '-']) {
                let digits = row.get(1..).unwrap_or("");
                if row.starts_with(['S', 'C', 'P', 'H', 'F', 'T', 'M', 'G', 'R'])
                    && digits.len() <= 2
                    && !digits.contains('.')
                    && number(digits)
                {
                    found.push(Reference::Row(row));
                }
            }
        }
    }
    found
}

/// Whether a page has a heading so numbered: `## 4. Title`, `### 4.2 Title`.
fn has_section(page: &str, section: &str) -> bool {
    let headings = page.lines().filter(|l| l.starts_with('#'));
    headings
        .filter_map(|l| l.trim_start_matches('#').split_whitespace().next())
        .any(|number| number.trim_end_matches('.') == section)
}

/// Whether a page says what `row` is: `### S6. Title`, `| S6 | …`.
fn has_row(page: &str, row: &str) -> bool {
    let heading = format!("### {row}. ");
    let cell = format!("| {row} |");
    page.lines()
        .any(|l| l.starts_with(&heading) || l.starts_with(&cell))
}

const PAGES: [&str; 5] = [
    "docs/promises.md",
    "docs/histories.md",
    "docs/properties.md",
    "docs/performance.md",
    "store-format.md",
];

/// Pages whose rows may be named in a file without naming the page: everything in it is about
/// them, or it says so at its head.
fn at_home(path: &str) -> &'static [&'static str] {
    match path {
        "store-format.md" => &["store-format.md"],
        _ if path.contains("/src/recover") => &["store-format.md"],
        _ if path.starts_with("crates/amps-bench/") || path.starts_with("benches/") => {
            &["docs/performance.md", "benches/README.md"]
        }
        ".ci/run" | ".ci/instructions" | "crates/amps-cli/src/args.rs" => &["docs/performance.md"],
        _ if path.ends_with(".md") => &PAGES,
        _ if path.ends_with("histories.rs") || path.contains("/histories/") => {
            &["docs/histories.md"]
        }
        _ => &[],
    }
}

/// Everything that a file refers to and that is not there.
fn dangling(repository: &Repository, path: &str, text: &str) -> Vec<String> {
    let mut faults = Vec::new();
    for (line, block) in blocks(path, text) {
        let mut fault = |what: String| faults.push(format!("{path}:{line}: {what}"));
        // A row may stand before the name of its page, a section stands behind it.
        let found = references(&block);
        let pages = found.iter().filter_map(|r| match r {
            Reference::Page(name) => repository.resolve(path, name),
            _ => None,
        });
        let home = at_home(path).iter().map(|page| (*page).to_owned());
        let named: Vec<String> = home.chain(pages).collect();
        let mut last = path.ends_with(".md").then(|| path.to_owned());
        for reference in &found {
            match reference {
                Reference::Page(name) => match repository.resolve(path, name) {
                    Some(page) => last = Some(page),
                    None => fault(format!("no page {name}")),
                },
                Reference::Section(section) => match &last {
                    Some(page) if has_section(repository.page(page), section) => {}
                    Some(page) => fault(format!("no section {section} in {page}")),
                    None => fault(format!("section {section} of which page?")),
                },
                Reference::Row(row) => {
                    if !named.iter().any(|page| has_row(repository.page(page), row)) {
                        fault(format!("no {row} in {named:?}"));
                    }
                }
            }
        }
        if block.to_lowercase().contains(OUTSIDE) {
            fault(format!("a reader does not have the {OUTSIDE}"));
        }
    }
    faults
}

/// The name of a document that comments used to cite and that was never in the repository.
const OUTSIDE: &str = concat!("char", "ter");

#[test]
fn every_page_section_and_row_that_is_cited_is_there() {
    let repository = Repository::read();
    let faults: Vec<String> = repository
        .files
        .iter()
        // The one tells of the past; the other holds citations that lead nowhere on purpose.
        .filter(|(path, _)| !["CHANGELOG.md", "tests/documents.rs"].contains(&path.as_str()))
        .flat_map(|(path, text)| dangling(&repository, path, text))
        .collect();
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}

#[test]
fn a_citation_that_leads_nowhere_is_noticed() {
    let repository = Repository::read();
    let faults = |path: &str, text: &str| dangling(&repository, path, text).len();
    let page = |name: &str| format!("`docs/{name}.md`");
    let promises = page("promises");
    let protocol = page("protocol");
    let file = "crates/amps-store/src/log.rs";
    for (count, text) in [
        (0, format!("/// See {promises} S6, and {protocol} §4.2.")),
        (0, format!("/// See {protocol}\n/// §4.2 and §5.")),
        (
            0,
            format!("let url = \"https://docs.rs/{};\"", page("nowhere")),
        ),
        (1, format!("/// See {}.", page("nowhere"))),
        (1, format!("/// See {protocol} §4.9.")),
        (1, "/// As said (§4.2).".to_owned()),
        (1, "/// As said in section 4.2.".to_owned()),
        (0, format!("/// See {protocol}, section 5.")),
        (1, format!("/// See {promises} S11.")),
        (1, format!("/// See {protocol} S6.")),
        (1, "let x = 1; // as S6 says".to_owned()),
        (
            1,
            format!("/// See {protocol}.\nlet x = 1;\n/// As in §4.2."),
        ),
        (1, format!("//! Binding is the {OUTSIDE}.")),
    ] {
        assert_eq!(faults(file, &text), count, "{text}");
    }
    assert_eq!(faults("docs/histories.md", "as H38 and P57 say"), 0);
    assert_eq!(faults("docs/histories.md", "as H39 and P58 say"), 2);
}

/// The part of a heading's address behind `#`.
fn anchor(heading: &str) -> String {
    let heading = heading.trim_start_matches('#').trim().to_lowercase();
    let kept = |c: &char| c.is_alphanumeric() || " -_".contains(*c);
    heading
        .chars()
        .filter(kept)
        .collect::<String>()
        .replace(' ', "-")
}

#[test]
fn every_link_and_every_file_that_a_page_names_is_there() {
    let repository = Repository::read();
    let mut faults = Vec::new();
    let (mut links, mut names) = (0, 0);
    for (path, text) in &repository.files {
        if !path.ends_with(".md") || path == "CHANGELOG.md" {
            continue;
        }
        for target in text.split("](").skip(1) {
            let target = target.split(')').next().unwrap_or_default();
            if target.contains("://") {
                continue;
            }
            links += 1;
            let (file, part) = target.split_once('#').unwrap_or((target, ""));
            let page = match file {
                "" => Some(path.clone()),
                file => repository.resolve(path, file),
            };
            let there = page.is_some_and(|page| {
                let headings = repository
                    .page(&page)
                    .lines()
                    .filter(|l| l.starts_with('#'));
                part.is_empty() || headings.map(anchor).any(|a| a == part)
            });
            if !there {
                faults.push(format!("{path}: no {target}"));
            }
        }
        for name in text.lines().flat_map(quoted) {
            let plain = |c: char| c.is_ascii_alphanumeric() || "_-./".contains(c);
            if name.ends_with(".rs") && name.chars().all(plain) {
                names += 1;
                let inside = format!("/{name}");
                let mut files = repository.files.keys();
                if !files.any(|file| file == name || file.ends_with(&inside)) {
                    faults.push(format!("{path}: no file {name}"));
                }
            }
        }
    }
    assert!(links > 20 && names > 60, "{links} links, {names} names");
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}

/// The numbers of the rows and headings that begin with a letter, in the order of the page, and
/// what stands under each.
fn entries<'a>(page: &'a str, letter: char) -> Vec<(String, String)> {
    let mut found: Vec<(String, String)> = Vec::new();
    let mut open = false;
    for line in page.lines() {
        let row = line.strip_prefix("| ").and_then(|l| l.split_once(" |"));
        let heading = line.strip_prefix("### ").and_then(|l| l.split_once(". "));
        let numbered = |(name, rest): (&'a str, &'a str)| {
            let digits = name.strip_prefix(letter)?;
            digits
                .parse::<u32>()
                .ok()
                .map(|_| (name.to_owned(), rest.to_owned()))
        };
        if let Some(entry) = row.or(heading).and_then(numbered) {
            open = heading.is_some();
            found.push(entry);
        } else if line.starts_with('#') {
            open = false;
        } else if let Some((_, text)) = found.last_mut().filter(|_| open) {
            text.push('\n');
            text.push_str(line);
        }
    }
    found
}

/// Fails unless a page has `letter` 1 to `last`, each with a test, and every test it names.
fn check(repository: &Repository, page: &str, letter: char, last: u32) -> Vec<(String, String)> {
    let found = entries(repository.page(page), letter);
    let numbers: Vec<&str> = found.iter().map(|(name, _)| name.as_str()).collect();
    let expected: Vec<String> = (1..=last).map(|n| format!("{letter}{n}")).collect();
    assert_eq!(numbers, expected, "{page}");
    for (name, text) in &found {
        let named: Vec<&str> = quoted(text).filter(|n| is_test(n)).collect();
        let missing: Vec<&&str> = named
            .iter()
            .filter(|n| !exists(n, &repository.tests))
            .collect();
        assert!(missing.is_empty(), "{page}, {name}: no tests {missing:?}");
    }
    found
}

fn names_of_tests(text: &str) -> BTreeSet<&str> {
    quoted(text).filter(|n| is_test(n)).collect()
}

#[test]
fn every_promise_has_tests_and_they_exist() {
    let repository = Repository::read();
    for (letter, last) in [('S', 10), ('C', 9)] {
        for (name, text) in check(&repository, "docs/promises.md", letter, last) {
            let tests = text.split_once("Tests:").expect("tests of a promise").1;
            assert!(names_of_tests(tests).len() > 2, "{name}");
        }
        for (name, text) in check(&repository, "docs/properties.md", letter, last) {
            assert!(!text.trim().is_empty(), "{name}");
        }
    }
    assert_eq!(entries(repository.page("docs/promises.md"), 'F').len(), 27);
}

#[test]
fn every_history_has_the_tests_that_carry_its_number() {
    let repository = Repository::read();
    let rows = check(&repository, "docs/histories.md", 'H', 38);
    // Numbers at the beginning of a name: h04_…, h4_h5_….
    let numbers = |test: &str| -> Vec<String> {
        let parts = test.split('_');
        let number = |p: &str| p.strip_prefix('h').and_then(|d| d.parse::<u32>().ok());
        parts.map_while(number).map(|n| format!("H{n}")).collect()
    };
    for (name, text) in &rows {
        let carry = |test: &&str| {
            let words = test.rsplit("::").next().unwrap_or(test);
            numbers(words).contains(name)
        };
        assert!(names_of_tests(text).iter().any(carry), "{name}: {text}");
    }
    for (test, files) in &repository.tests {
        for number in numbers(test) {
            // The sandbox replays some as a server.
            if files
                .iter()
                .all(|file| file.starts_with("crates/amps-sandbox/src/"))
            {
                continue;
            }
            let row = rows.iter().find(|(name, _)| *name == number);
            let there = row.is_some_and(|(_, text)| text.contains(test.as_str()));
            assert!(there, "{test} is not in the row of {number}");
        }
    }
}

#[test]
fn every_property_has_a_row_and_every_test_it_names_exists() {
    let repository = Repository::read();
    let rows = check(&repository, "docs/properties.md", 'P', 57);
    let named: usize = rows.iter().map(|(_, row)| names_of_tests(row).len()).sum();
    assert!(named > 60, "{named} tests");

    let planted = repository.page("crates/amps-store/src/faults/planted.rs");
    let bugs = rows.iter().flat_map(|(_, row)| {
        let words = row.split("planted ").skip(1);
        words.flat_map(|w| quoted(w).take_while(|q| q.chars().all(char::is_alphanumeric)))
    });
    let bugs: Vec<&str> = bugs.filter(|b| b.starts_with(char::is_uppercase)).collect();
    assert!(bugs.len() > 15, "{bugs:?}");
    for bug in bugs {
        assert!(
            planted.contains(&format!("    {bug},")),
            "{bug} is not planted"
        );
    }
}

#[test]
fn a_name_that_no_test_has_is_noticed() {
    let tests = Repository::read().tests;
    assert!(!exists("model::h24_…_that_nobody_wrote", &tests));
    assert!(!exists("nowhere::every_property_has_a_row_…", &tests));
    assert!(exists("documents::every_property_…_exists", &tests));
}
