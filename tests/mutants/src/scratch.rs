//! A copy of the workspace that contains every slip, and one build of its tests.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::find::{self, Side, Slip};

/// A slip with its number, which is valid until the next copy is made.
#[derive(Clone, Debug)]
pub struct Numbered {
    pub number: usize,
    pub file: String,
    pub line: usize,
    /// The same slip has the same name in a later copy.
    pub name: String,
}

pub struct Scratch {
    pub dir: PathBuf,
}

/// A test of a built test binary.
#[derive(Clone, Debug)]
pub struct Test {
    pub binary: PathBuf,
    pub package: PathBuf,
    /// The binary and the test.
    pub name: String,
}

type Outcome<T> = Result<T, Box<dyn std::error::Error>>;

impl Scratch {
    /// Copies the workspace, writes the slips into the named files (or those under the named
    /// directories), leaves out those that do not compile, and lists the others.
    pub fn prepare(&self, workspace: &Path, named: &[String]) -> Outcome<Vec<Numbered>> {
        let files = copied(workspace)?;
        let mut slips: Vec<(String, Slip)> = Vec::new();
        let mut sources = BTreeMap::new();
        for file in &files {
            let to = self.copy().join(file);
            if is_named(file, named) {
                let source = std::fs::read_to_string(workspace.join(file))?;
                slips.extend(find::slips(&source)?.into_iter().map(|s| (file.clone(), s)));
                sources.insert(file.clone(), source);
            } else {
                write_if_new(&to, &manifest(file, std::fs::read(workspace.join(file))?)?)?;
            }
        }
        remove_others(&self.copy(), &files)?;
        let switch = self.copy().join("crates/amps-slip");
        write_if_new(&switch.join("Cargo.toml"), SWITCH_MANIFEST.as_bytes())?;
        write_if_new(&switch.join("src/lib.rs"), include_bytes!("switch.rs"))?;

        let mut dropped = BTreeSet::new();
        loop {
            let mut places = HashMap::new();
            for (file, source) in &sources {
                let here = slips
                    .iter()
                    .enumerate()
                    .filter(|(i, (f, _))| f == file && !dropped.contains(i));
                let (text, found) = rewritten(source, here.map(|(i, (_, slip))| (i + 1, slip)));
                write_if_new(&self.copy().join(file), text.as_bytes())?;
                places.insert(file.clone(), found);
            }
            let guilty = self.guilty(&places)?;
            if guilty.is_empty() {
                break;
            }
            eprintln!("{} slips do not compile and are left out", guilty.len());
            dropped.extend(guilty.iter().map(|number| number - 1));
        }
        let mut seen: HashMap<String, usize> = HashMap::new();
        let mut all = Vec::new();
        for (i, (file, slip)) in slips.into_iter().enumerate() {
            let name = format!("{file} {}: {}", slip.function, slip.what);
            let nth = seen.entry(name.clone()).or_default();
            *nth += 1;
            let name = if *nth > 1 {
                format!("{name} ({nth})")
            } else {
                name
            };
            if !dropped.contains(&i) {
                all.push(Numbered {
                    number: i + 1,
                    file,
                    line: slip.line,
                    name,
                });
            }
        }
        eprintln!(
            "{} slips; {} more did not compile",
            all.len(),
            dropped.len()
        );
        Ok(all)
    }

    pub fn copy(&self) -> PathBuf {
        self.dir.join("copy")
    }

    fn cargo(&self) -> Command {
        let mut cargo = Command::new("cargo");
        cargo.current_dir(self.copy());
        cargo
    }

    /// The numbers of the slips that rustc complains about.
    fn guilty(
        &self,
        places: &HashMap<String, Vec<(usize, Range<usize>)>>,
    ) -> Outcome<BTreeSet<usize>> {
        let out = self
            .cargo()
            .args([
                "check",
                "--message-format=json",
                "-p",
                "amps-store",
                "-p",
                "amps-delivery",
                "-p",
                "amps-client",
            ])
            .args(["--features", "amps-store/testkit,amps-client/testkit"])
            .stderr(std::process::Stdio::inherit())
            .output()?;
        let mut guilty = BTreeSet::new();
        let mut errors = Vec::new();
        for line in String::from_utf8(out.stdout)?.lines() {
            let value: serde_json::Value = serde_json::from_str(line)?;
            let message = &value["message"];
            if message["level"] != "error" {
                continue;
            }
            let mut spans = Vec::new();
            collect_spans(message, &mut spans);
            let blamed = spans
                .iter()
                .find_map(|(file, range)| blame(places.get(file)?, range));
            match blamed {
                Some(numbers) => guilty.extend(numbers),
                None => errors.push(message["rendered"].as_str().unwrap_or_default().to_owned()),
            }
        }
        if guilty.is_empty() && !out.status.success() {
            return Err(format!("the copy does not compile: {}", errors.join("\n")).into());
        }
        Ok(guilty)
    }

    /// Builds the tests and lists them.
    pub fn build(&self, skip: &[String]) -> Outcome<Vec<Test>> {
        let out = self
            .cargo()
            .args([
                "test",
                "--no-run",
                "--message-format=json",
                "--lib",
                "--tests",
            ])
            .args(["-p", "amps-store", "-p", "amps-delivery"])
            .args(["-p", "amps-client", "-p", "amps"])
            .stderr(std::process::Stdio::inherit())
            .output()?;
        let mut tests = Vec::new();
        for line in String::from_utf8(out.stdout)?.lines() {
            let value: serde_json::Value = serde_json::from_str(line)?;
            if value["message"]["level"] == "error" {
                eprintln!(
                    "{}",
                    value["message"]["rendered"].as_str().unwrap_or_default()
                );
            }
            let (Some(binary), true) = (
                value["executable"].as_str(),
                value["profile"]["test"] == true,
            ) else {
                continue;
            };
            let manifest = Path::new(value["manifest_path"].as_str().unwrap_or_default());
            let package = manifest.parent().ok_or("a package without a directory")?;
            let target = value["target"]["name"].as_str().unwrap_or_default();
            let list = Command::new(binary)
                .args(["--list", "--format", "terse"])
                .current_dir(package)
                .output()?;
            for line in String::from_utf8(list.stdout)?.lines() {
                let Some(test) = line.strip_suffix(": test") else {
                    continue;
                };
                let name = format!("{target} {test}");
                if !skip.iter().any(|s| name.contains(s)) {
                    tests.push(Test {
                        binary: binary.into(),
                        package: package.to_owned(),
                        name,
                    });
                }
            }
        }
        match out.status.success() {
            true => Ok(tests),
            false => Err("the tests of the copy do not build".into()),
        }
    }
}

const SWITCH_MANIFEST: &str = r#"[package]
name = "amps-slip"
version = "0.1.0"
edition = "2024"

[dependencies]
memmap2.workspace = true
"#;

fn copied(workspace: &Path) -> Outcome<Vec<String>> {
    let out = Command::new("git")
        .args(["ls-files", "--cached", "--others", "--exclude-standard"])
        .current_dir(workspace)
        .output()?;
    if !out.status.success() {
        return Err(format!("no git checkout: {}", workspace.display()).into());
    }
    let files = String::from_utf8(out.stdout)?;
    let files = files.lines().filter(|f| !f.starts_with("tests/mutants/"));
    Ok(files
        .filter(|f| workspace.join(f).is_file())
        .map(str::to_owned)
        .collect())
}

fn is_named(file: &str, named: &[String]) -> bool {
    let tests = file.ends_with("/tests.rs") || file.contains("/tests/");
    !tests
        && named
            .iter()
            .any(|n| file == n || (n.ends_with('/') && file.starts_with(n.as_str())))
}

/// Makes the crates that contain slips depend on the switch.
fn manifest(file: &str, bytes: Vec<u8>) -> Outcome<Vec<u8>> {
    let (from, to) = match file {
        "Cargo.toml" => ("members = [", "members = [\"crates/amps-slip\", "),
        "crates/amps-store/Cargo.toml"
        | "crates/amps-delivery/Cargo.toml"
        | "crates/amps-client/Cargo.toml" => (
            "[dependencies]\n",
            "[dependencies]\namps-slip = { path = \"../amps-slip\" }\n",
        ),
        _ => return Ok(bytes),
    };
    let text = String::from_utf8(bytes)?;
    if !text.contains(from) {
        return Err(format!("{file} has no `{}`", from.trim()).into());
    }
    Ok(text.replacen(from, to, 1).into_bytes())
}

/// A file that has not changed keeps its time, so it is not built again.
fn write_if_new(path: &Path, bytes: &[u8]) -> io::Result<()> {
    if std::fs::read(path).is_ok_and(|there| there == bytes) {
        return Ok(());
    }
    if let Some(dir) = path.parent() {
        std::fs::create_dir_all(dir)?;
    }
    std::fs::write(path, bytes)
}

/// Removes tests from the copy that are gone from the workspace.
fn remove_others(copy: &Path, files: &[String]) -> io::Result<()> {
    let keep: BTreeSet<PathBuf> = files.iter().map(|f| copy.join(f)).collect();
    let mut dirs = vec![copy.to_owned()];
    while let Some(dir) = dirs.pop() {
        for entry in std::fs::read_dir(dir)? {
            let path = entry?.path();
            if path.is_dir() && !path.ends_with("crates/amps-slip") && !path.ends_with("target") {
                dirs.push(path);
            } else if path.extension().is_some_and(|e| e == "rs") && !keep.contains(&path) {
                std::fs::remove_file(path)?;
            }
        }
    }
    Ok(())
}

/// The source with the slips in it, and where each of them is now.
fn rewritten<'a>(
    source: &str,
    slips: impl Iterator<Item = (usize, &'a Slip)>,
) -> (String, Vec<(usize, Range<usize>)>) {
    let mut pieces: Vec<(usize, &find::Piece)> = Vec::new();
    for (number, slip) in slips {
        pieces.extend(slip.pieces.iter().map(|piece| (number, piece)));
    }
    // Inner ones close first and open last.
    pieces.sort_by_key(|(number, piece)| {
        let order = match piece.side {
            Side::Close => -(*number as i64),
            Side::Open => *number as i64,
        };
        (piece.range.start, piece.side, order)
    });
    let mut text = String::with_capacity(source.len() * 2);
    let mut at = 0;
    let mut places: BTreeMap<usize, Range<usize>> = BTreeMap::new();
    for (number, piece) in pieces {
        text.push_str(&source[at..piece.range.start.max(at)]);
        at = at.max(piece.range.end);
        let start = text.len();
        text.push_str(&piece.text.replace("{n}", &number.to_string()));
        places
            .entry(number)
            .and_modify(|p| p.end = text.len())
            .or_insert(start..text.len());
    }
    text.push_str(&source[at..]);
    (text, places.into_iter().collect())
}

fn collect_spans(message: &serde_json::Value, spans: &mut Vec<(String, Range<usize>)>) {
    let empty = Vec::new();
    let mut here = Vec::new();
    for span in message["spans"].as_array().unwrap_or(&empty) {
        let file = span["file_name"].as_str().unwrap_or_default().to_owned();
        let at = |key: &str| span[key].as_u64().unwrap_or(0) as usize;
        here.push((
            span["is_primary"] != true,
            (file, at("byte_start")..at("byte_end")),
        ));
    }
    here.sort_by_key(|(secondary, _)| *secondary);
    spans.extend(here.into_iter().map(|(_, span)| span));
    for child in message["children"].as_array().unwrap_or(&empty) {
        collect_spans(child, spans);
    }
}

/// The slip exactly there, or else the innermost one around it, or else those inside.
fn blame(places: &[(usize, Range<usize>)], at: &Range<usize>) -> Option<Vec<usize>> {
    if let Some((number, _)) = places.iter().find(|(_, p)| p == at) {
        return Some(vec![*number]);
    }
    let around = places
        .iter()
        .filter(|(_, p)| p.start <= at.start && at.end <= p.end);
    if let Some((number, _)) = around.min_by_key(|(_, p)| p.end - p.start) {
        return Some(vec![*number]);
    }
    let within = places
        .iter()
        .filter(|(_, p)| at.start <= p.start && p.end <= at.end);
    let within: Vec<usize> = within.map(|(number, _)| *number).collect();
    (!within.is_empty()).then_some(within)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slips_within_slips_close_in_order() {
        let source = "fn f(a: u64) { if a.max(1) < 3 && a == 2 { g(a + 1); } }";
        let slips = find::slips(source).unwrap();
        let (text, places) = rewritten(source, slips.iter().enumerate());
        assert_eq!(places.len(), slips.len());
        syn::parse_file(&text).unwrap();
        for number in 0..slips.len() {
            assert!(text.contains(&format!("({number})")) || text.contains(&format!("({number},")));
        }
    }

    #[test]
    fn every_source_of_this_program_can_be_rewritten() {
        for source in [
            include_str!("find.rs"),
            include_str!("scratch.rs"),
            include_str!("trial.rs"),
        ] {
            let slips = find::slips(source).unwrap();
            assert!(slips.len() > 50);
            let (text, _) = rewritten(source, slips.iter().enumerate());
            syn::parse_file(&text).unwrap();
        }
    }
}
