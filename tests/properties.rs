//! `PROPERTIES.md` has a row for each property, and every test it names exists.

#![allow(clippy::expect_used, reason = "a test ends where it cannot go on")]

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

/// The tests of this workspace: name, and the files (without `.rs`) that have one so called.
fn tests() -> BTreeMap<String, Vec<String>> {
    let mut found = BTreeMap::new();
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    for dir in ["tests", "src", "crates", "fuzz/tests"] {
        collect(&root.join(dir), &mut found);
    }
    found
}

fn collect(dir: &Path, found: &mut BTreeMap<String, Vec<String>>) {
    for entry in fs::read_dir(dir).expect("lists") {
        let path = entry.expect("lists").path();
        if path.is_dir() {
            collect(&path, found);
        } else if path.extension().is_some_and(|e| e == "rs") {
            let text = fs::read_to_string(&path).expect("reads");
            let mut is_test = false;
            for line in text.lines().map(str::trim) {
                is_test |= line.starts_with("#[test]") || line.starts_with("#[tokio::test");
                let name = line.trim_start_matches("async ").strip_prefix("fn ");
                if let Some((name, _)) = name.and_then(|n| n.split_once('('))
                    && std::mem::take(&mut is_test)
                {
                    let file = path.with_extension("");
                    let files: &mut Vec<String> = found.entry(name.to_owned()).or_default();
                    files.push(file.to_string_lossy().into_owned());
                }
            }
        }
    }
}

/// What stands between backticks.
fn quoted(row: &str) -> impl Iterator<Item = &str> {
    row.split('`').skip(1).step_by(2)
}

/// A name that stands for a test: in words, perhaps shortened, perhaps behind its file.
fn is_test(name: &str) -> bool {
    let (words, last) = (name.replace('…', ""), name.rsplit("::").next());
    let simple = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || "_:".contains(c);
    words.chars().all(simple)
        && last.is_some_and(|l| l.contains('…') || l.matches('_').count() >= 2)
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
    let is_there = |file: &String| {
        place.is_empty()
            || file
                .split('/')
                .any(|part| part == place.rsplit("::").next().unwrap_or(place))
    };
    tests
        .iter()
        .any(|(test, files)| fits(test) && files.iter().any(is_there))
}

#[test]
fn every_property_has_a_row_and_every_test_it_names_exists() {
    let page = include_str!("PROPERTIES.md");
    let rows: Vec<&str> = page.lines().filter(|l| l.starts_with("| P")).collect();
    let numbers: Vec<String> = rows
        .iter()
        .filter_map(|r| r.split('|').nth(1))
        .map(|n| n.trim().to_owned())
        .filter(|n| n != "Property")
        .collect();
    let expected: Vec<String> = (1..=57).map(|n| format!("P{n}")).collect();
    assert_eq!(numbers, expected);

    let tests = tests();
    assert!(tests.len() > 300, "{} tests", tests.len());
    let named: Vec<&str> = rows
        .iter()
        .flat_map(|r| quoted(r))
        .filter(|n| is_test(n))
        .collect();
    assert!(named.len() > 40, "{named:?}");
    let missing: Vec<&&str> = named.iter().filter(|n| !exists(n, &tests)).collect();
    assert!(missing.is_empty(), "no such tests: {missing:?}");

    let planted = include_str!("../crates/amps-store/src/planted.rs");
    let bugs = rows.iter().flat_map(|row| {
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
    let tests = tests();
    assert!(!exists("model::h24_…_that_nobody_wrote", &tests));
    assert!(!exists("nowhere::every_property_has_a_row_…", &tests));
    assert!(exists("properties::every_property_…_exists", &tests));
}
