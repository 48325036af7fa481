//! How figures change with what a user chooses: threads, clients, backlog, payload, level, disk.

mod client;
mod store;

use crate::stats::median;
use crate::{Failure, Place, Plan};

/// One picture: lines over a common axis. Both axes are logarithmic.
#[derive(Clone, Debug)]
pub struct Chart {
    /// Name of its file, without the ending.
    pub name: &'static str,
    /// What it shows.
    pub title: &'static str,
    /// What goes to the right.
    pub x: &'static str,
    /// What goes up.
    pub y: &'static str,
    /// The lines.
    pub lines: Vec<Line>,
}

/// One line of a [`Chart`].
#[derive(Clone, Debug)]
pub struct Line {
    /// What it stands for.
    pub name: &'static str,
    /// Its points; each is the median of all rounds.
    pub points: Vec<(f64, f64)>,
}

/// Measures the charts of these names, all without one, and hands over each as soon as it is known.
///
/// # Errors
/// The device, the store or the client failed. Charts that were handed over before remain valid.
pub fn curves(plan: &Plan, tell: &mut dyn FnMut(&Chart)) -> Result<(), Failure> {
    let dir = tempfile::Builder::new()
        .prefix("amps-curves-")
        .tempdir_in(&plan.dir)?;
    let place = Place {
        dir: dir.path().to_owned(),
    };
    type Workload = fn(&Plan, &Place) -> Result<Vec<Chart>, Failure>;
    let workloads: [(&str, Workload); 6] = [
        ("threads", client::threads),
        ("clients", client::clients),
        ("backlog", store::backlog),
        ("payload", store::payload),
        ("levels", store::levels),
        ("disks", store::disks),
    ];
    for (name, workload) in workloads {
        if plan.wants(name) {
            workload(plan, &place)?.iter().for_each(&mut *tell);
        }
    }
    Ok(())
}

/// Measures all lines at all places of the axis in turn, round by round, so that whatever else the
/// machine does hits all of them. One round more warms up.
fn sweep<S>(
    plan: &Plan,
    names: &[&'static str],
    places: &[u64],
    set_up: impl FnMut(u64) -> Result<S, Failure>,
    mut measure: impl FnMut(&mut S, usize, u64) -> Result<f64, Failure>,
) -> Result<Vec<Line>, Failure> {
    let states: Result<Vec<S>, Failure> = places.iter().copied().map(set_up).collect();
    let mut states = states?;
    let mut values = vec![vec![Vec::new(); places.len()]; names.len()];
    for round in 0..=plan.rounds {
        for (at, state) in states.iter_mut().enumerate() {
            for (line, values) in values.iter_mut().enumerate() {
                let value = measure(state, line, places[at])?;
                if round > 0 {
                    values[at].push(value);
                }
            }
        }
    }
    let lines = names.iter().zip(values).map(|(name, values)| {
        let points = places.iter().zip(values);
        let points = points.map(|(x, values)| (*x as f64, median(values)));
        Line {
            name,
            points: points.collect(),
        }
    });
    Ok(lines.collect())
}
