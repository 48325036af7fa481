//! A crash rig for `amps torture`, written from `docs/torture.md` and sharing nothing with it.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;

use serde_json::Value;

use super::{amps, run};

/// What determines the payloads of a run, besides their sequences.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rule {
    pub seed: u64,
    pub run: u64,
    pub min: u64,
    pub max: u64,
}

impl Rule {
    /// The payload of a sequence.
    pub fn payload(&self, seq: u64) -> Vec<u8> {
        fn mix(mut z: u64) -> u64 {
            z = z.wrapping_add(0x9E3779B97F4A7C15);
            z = (z ^ (z >> 30)).wrapping_mul(0xBF58476D1CE4E5B9);
            z = (z ^ (z >> 27)).wrapping_mul(0x94D049BB133111EB);
            z ^ (z >> 31)
        }
        let Rule {
            seed,
            run,
            min,
            max,
        } = *self;
        let len = min + mix(mix(seed ^ mix(seq)) ^ run) % (max - min + 1);
        let base = mix(seed ^ mix(run) ^ mix(seq ^ 0xA5A5A5A5));
        (0..len)
            .map(|at| {
                let i = at / 8;
                let word = match i {
                    0 => run,
                    1 => seq,
                    _ => base.wrapping_add(i.wrapping_mul(0xD1342543DE82EF95)),
                };
                (word >> (8 * (at % 8))) as u8
            })
            .collect()
    }
}

/// The result of a dump.
#[derive(Debug)]
pub struct Dumped {
    pub frames: Vec<(u64, Vec<u8>)>,
    pub report: Value,
}

impl Dumped {
    pub fn sequences(&self) -> Vec<u64> {
        self.frames.iter().map(|f| f.0).collect()
    }

    fn number(&self, field: &str) -> u64 {
        self.report[field]
            .as_u64()
            .unwrap_or_else(|| panic!("no {field} in {}", self.report))
    }
}

pub fn dump(dir: &Path) -> Command {
    let mut command = amps();
    command.args(["torture", "dump", "--dir"]).arg(dir);
    command
}

/// Dumps an undamaged store; `None`: there is no store.
#[track_caller]
pub fn dumped(dir: &Path) -> Option<Dumped> {
    let ran = run(&mut dump(dir));
    if ran.code == Some(4) {
        return None;
    }
    let ran = ran.expect(0);
    let report: Value =
        serde_json::from_str(ran.stderr.trim()).unwrap_or_else(|e| panic!("{e}: {}", ran.stderr));
    let dumped = Dumped {
        frames: frames(&ran.stdout),
        report,
    };
    let sequences = dumped.sequences();
    let status = if sequences.is_empty() { "empty" } else { "ok" };
    assert_eq!(dumped.report["status"], status, "{}", dumped.report);
    assert_eq!(dumped.number("count"), sequences.len() as u64);
    assert_eq!(
        dumped.number("first"),
        sequences.first().copied().unwrap_or(0)
    );
    assert_eq!(
        dumped.number("last"),
        sequences.last().copied().unwrap_or(0)
    );
    assert_eq!(dumped.number("set_aside"), 0, "{}", dumped.report);
    assert_eq!(dumped.number("dropped"), 0, "{}", dumped.report);
    assert!(dumped.report["stop"].is_string());
    Some(dumped)
}

/// The frames of a dump: sequence and payload, in order.
pub fn frames(mut bytes: &[u8]) -> Vec<(u64, Vec<u8>)> {
    let mut out = Vec::new();
    while !bytes.is_empty() {
        let (head, rest) = bytes.split_at(12);
        let sequence = u64::from_le_bytes(head[..8].try_into().unwrap());
        let len = u32::from_le_bytes(head[8..].try_into().unwrap()) as usize;
        let (payload, rest) = rest.split_at(len);
        out.push((sequence, payload.to_vec()));
        bytes = rest;
    }
    out
}

fn number(line: &str, key: &str) -> u64 {
    line.split(' ')
        .find_map(|word| word.strip_prefix(key)?.strip_prefix('='))
        .unwrap_or_else(|| panic!("no {key} in {line:?}"))
        .parse()
        .unwrap()
}

/// What the writers of one store have promised so far, and what was found when the last one was
/// dead.
#[derive(Clone, Debug, Default)]
pub struct Oracle {
    /// The rule of each run that has begun, by its first sequence.
    rules: BTreeMap<u64, Rule>,
    /// Unsettled messages after the last run.
    before: Vec<u64>,
    /// The lowest number that the run may give out.
    next: u64,
    /// The first sequence of the run, once it has said so.
    start: Option<u64>,
    pub begun: u64,
    pub durable: u64,
    pub discarding: u64,
    pub discarded: u64,
    pub ended: bool,
}

impl Oracle {
    /// Reads a line of a writer under `rule`; every line must be one of those in the contract.
    #[track_caller]
    pub fn hear(&mut self, rule: Rule, line: &str) {
        let (word, rest) = line.split_once(' ').unwrap_or((line, ""));
        let n = || {
            rest.parse::<u64>()
                .unwrap_or_else(|_| panic!("no number in {line:?}"))
        };
        if word != "open" {
            assert!(self.start.is_some(), "{line:?} before open");
        }
        match word {
            "open" => {
                let (first, last) = (number(line, "first"), number(line, "last"));
                let next = number(line, "next");
                assert_eq!(number(line, "run"), rule.run, "{line}");
                assert_eq!(
                    first,
                    self.before.first().copied().unwrap_or(0),
                    "{line} {self:?}"
                );
                assert_eq!(
                    last,
                    self.before.last().copied().unwrap_or(0),
                    "{line} {self:?}"
                );
                assert!(
                    next >= self.next.max(1),
                    "{line}: a number is used again, {self:?}"
                );
                assert!(self.start.replace(next).is_none(), "{line:?} again");
                self.rules.insert(next, rule);
            }
            "begin" => {
                assert!(n() > self.begun, "{line} {self:?}");
                self.begun = n();
            }
            "durable" => {
                assert!(n() <= self.begun, "{line} {self:?}");
                self.durable = n();
            }
            "discarding" => self.discarding = self.discarding.max(n()),
            "discarded" => {
                assert!(n() <= self.discarding, "{line} {self:?}");
                self.discarded = self.discarded.max(n());
            }
            "end" => self.ended = true,
            _ => panic!("unknown line {line:?}"),
        }
    }

    /// Judges a dump that was made when the writer had said at least what `earlier` has read, and
    /// at most what this oracle has read.
    #[track_caller]
    fn judge(&self, earlier: &Oracle, dumped: &Dumped) {
        let found = dumped.sequences();
        let context = || format!("found {found:?}\nearlier {earlier:?}\n{self:?}");
        for (sequence, bytes) in &dumped.frames {
            let (_, rule) = self.rules.range(..=sequence).next_back().unwrap();
            assert!(
                *bytes == rule.payload(*sequence),
                "{sequence} differs; {}",
                context()
            );
        }
        let start = self.start.unwrap_or(self.next.max(1));
        let last = found.last().copied().unwrap_or(0);
        // Everything that there is: what earlier runs left, and this run up to some number.
        let mut there = self.before.clone();
        let last_of_run = last.max(earlier.durable).max(earlier.discarded);
        if self.start.is_some() && self.begun >= start {
            assert!(last <= self.begun, "an invention; {}", context());
            there.extend(start..=last_of_run.min(self.begun));
        }
        // All of it above a floor somewhere between `discarded` and `discarding`.
        let floors = earlier.discarded..=self.discarding.max(earlier.discarded);
        let floor = found.first().map_or(*floors.end(), |first| {
            assert!(first > floors.start(), "{first} came back; {}", context());
            (*floors.end()).min(first - 1)
        });
        there.retain(|sequence| *sequence > floor);
        assert_eq!(found, there, "not all above {floor}; {}", context());
        let next = dumped.number("next");
        assert!(next > last && next > earlier.durable, "{}", context());
    }

    /// Judges a dump of a store whose writer is alive; `earlier` is this oracle before the dump.
    #[track_caller]
    pub fn judge_live(&self, earlier: &Oracle, dumped: &Dumped) {
        self.judge(earlier, dumped);
    }

    /// Judges a dump after the writer was killed, which loses nothing that was appended. What is
    /// found now must be found by the next run.
    #[track_caller]
    pub fn judge_killed(&mut self, dumped: Option<&Dumped>) {
        let Some(dumped) = dumped else {
            assert!(
                self.start.is_none() && self.next == 0,
                "the store is gone: {self:?}"
            );
            return;
        };
        self.judge(&self.clone(), dumped);
        self.before = dumped.sequences();
        self.next = dumped.number("next");
        self.begun = self.begun.min(self.next - 1);
        self.start = None;
    }
}
