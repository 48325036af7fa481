//! The performance targets of this project as workloads, each beside its floor.
//!
//! A floor is the least work that could do the same job, written by hand without a store's
//! duties. Floor and store take turns within one run, round by round, so that whatever else
//! the machine does hits both; what counts is the ratio of the medians. `benches/` and
//! `amps bench` both run what is here.

mod count;
mod curves;
mod floor;
mod laps;
mod net;
mod stats;
mod store;
mod sync;

use std::fmt;
use std::path::PathBuf;

pub use count::{Counted, count};
pub use curves::{Chart, Line, curves};

/// The topic of every workload: 16 bytes.
pub(crate) const TOPIC: &str = "a-topic-16-bytes";

/// Why a workload could not be finished.
pub type Failure = Box<dyn std::error::Error + Send + Sync>;

/// What to measure, where, and how long.
#[derive(Clone, Debug)]
pub struct Plan {
    /// A directory on the device to measure; files made in it are removed again.
    pub dir: PathBuf,
    /// Rounds of floor and store in turn; the medians are reported.
    pub rounds: usize,
    /// Share of the full workload, from 0 (exclusive) to 1.
    pub scale: f64,
    /// Targets or charts to measure, such as `T1` or `threads`; empty: all.
    pub only: Vec<String>,
}

impl Plan {
    fn count(&self, full: u64) -> u64 {
        ((full as f64 * self.scale) as u64).max(1000)
    }

    fn wants(&self, target: &str) -> bool {
        self.only.is_empty() || self.only.iter().any(|t| t.eq_ignore_ascii_case(target))
    }
}

/// What a figure should be.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Goal {
    /// At most this multiple of the floor.
    Times(f64),
    /// At least this share of the floor.
    Share(f64),
    /// At most this much, whatever the floor.
    AtMost(f64),
    /// Nothing is required; the figure explains another one.
    Told,
}

/// One figure.
#[derive(Clone, Debug)]
pub struct Row {
    /// Number of the target, `T1` to `T16`.
    pub target: &'static str,
    /// What was measured.
    pub what: String,
    /// The unit of both figures.
    pub unit: &'static str,
    /// What the store or the client takes.
    pub ours: f64,
    /// What the floor takes.
    pub floor: Option<f64>,
    /// What it should be.
    pub goal: Goal,
}

impl Row {
    /// Ours over the floor's.
    pub fn ratio(&self) -> Option<f64> {
        self.floor.map(|floor| self.ours / floor)
    }

    /// Whether the goal is met; `None` without one.
    pub fn is_met(&self) -> Option<bool> {
        match self.goal {
            Goal::Times(most) => self.ratio().map(|ratio| ratio <= most),
            Goal::Share(least) => self.ratio().map(|ratio| ratio >= least),
            Goal::AtMost(most) => Some(self.ours <= most),
            Goal::Told => None,
        }
    }

    /// The head of the table that rows make.
    pub fn head() -> String {
        format!(
            "{:<4} {:<52} {:>11} {:>11} {:>7}  {:<8} {}",
            "", "what", "ours", "floor", "ratio", "goal", ""
        )
    }
}

impl fmt::Display for Row {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let floor = self.floor.map_or("-".to_owned(), figure);
        let ratio = self.ratio().map_or("-".to_owned(), |r| format!("{r:.2}"));
        let goal = match self.goal {
            Goal::Times(most) => format!("<= {most}x"),
            Goal::Share(least) => format!(">= {least}x"),
            Goal::AtMost(most) => format!("<= {most}"),
            Goal::Told => "-".to_owned(),
        };
        let met = match self.is_met() {
            Some(true) => "met",
            Some(false) => "MISSED",
            None => "",
        };
        let what = format!("{}, {}", self.what, self.unit);
        let ours = figure(self.ours);
        write!(
            f,
            "{:<4} {what:<52} {ours:>11} {floor:>11} {ratio:>7}  {goal:<8} {met}",
            self.target
        )
    }
}

fn figure(value: f64) -> String {
    match value.abs() {
        v if v.is_nan() => "-".to_owned(),
        v if v >= 1000.0 => format!("{value:.0}"),
        v if v >= 10.0 => format!("{value:.1}"),
        _ => format!("{value:.2}"),
    }
}

/// Measures what the plan asks for, and hands over each figure as soon as it is known.
///
/// # Errors
/// The device, the store or the client failed. Figures that were handed over before remain valid.
pub fn run(plan: &Plan, tell: &mut dyn FnMut(Row)) -> Result<(), Failure> {
    let dir = tempfile::Builder::new()
        .prefix("amps-bench-")
        .tempdir_in(&plan.dir)?;
    let place = Place {
        dir: dir.path().to_owned(),
    };
    type Workload = fn(&Plan, &Place, &mut dyn FnMut(Row)) -> Result<(), Failure>;
    let workloads: [(&str, Workload); 14] = [
        // First, since memory that earlier work has freed would hide what this one takes.
        ("T11", store::memory),
        ("T1", store::append),
        ("T2", store::append_tail),
        ("T3", sync::one_waiting),
        ("T4", sync::window),
        ("T5", store::recovery),
        ("T6", store::get),
        ("T7", store::settle),
        ("T8", net::end_to_end),
        ("T9", net::latency),
        ("T10", net::resend),
        ("T12", net::processor),
        ("T15", laps::device),
        ("T16", laps::sustained),
    ];
    for (target, workload) in workloads {
        if plan.wants(target) {
            workload(plan, &place, tell)?;
        }
    }
    Ok(())
}

/// Names for files that are not needed for long.
pub(crate) struct Place {
    dir: PathBuf,
}

impl Place {
    /// A name for a new file; what was there is removed.
    pub(crate) fn file(&self, name: &str) -> Result<PathBuf, Failure> {
        let path = self.dir.join(name);
        match std::fs::remove_file(&path) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error.into()),
            _ => Ok(path),
        }
    }
}
