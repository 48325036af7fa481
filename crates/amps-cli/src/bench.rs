//! `amps bench`: this machine's figures, beside the same floors as the project's own.

use amps_bench::{Goal, Plan, Row};
use serde_json::Value;

use crate::args::Bench;
use crate::failure::{Exit, Failure};
use crate::output::{Output, object};

/// Measures, and prints each figure as soon as it is known. A goal that is missed is not an
/// error: measuring is what was asked for.
///
/// # Errors
/// The disk, the store or the client failed, or the reader of the output went away.
pub(crate) fn run(args: Bench, json: bool) -> Result<Exit, Failure> {
    let plan = Plan {
        dir: args.dir,
        rounds: args.rounds as usize,
        scale: if args.quick { 0.1 } else { 1.0 },
        only: args.only,
    };
    let mut output = Output::stdout(json)?;
    if !json {
        output.line(Row::head().trim_end())?;
        output.flush()?;
    }
    let mut told = Ok(());
    let ran = amps_bench::run(&plan, &mut |row| {
        if told.is_ok() {
            told = tell(&mut output, &row);
        }
    });
    told?;
    match ran {
        Ok(()) => Ok(Exit::Ok),
        Err(error) => Err(Failure::other(format!(
            "the measurement in {} ended: {error}",
            plan.dir.display()
        ))),
    }
}

fn tell(output: &mut Output, row: &Row) -> Result<(), Failure> {
    if output.is_json() {
        let (goal, bound) = match row.goal {
            Goal::Times(most) => ("times_floor_at_most", Some(most)),
            Goal::Share(least) => ("times_floor_at_least", Some(least)),
            Goal::AtMost(most) => ("at_most", Some(most)),
            Goal::Told => ("none", None),
        };
        output.object(object! {
            "target": row.target,
            "what": row.what.as_str(),
            "unit": row.unit,
            "ours": row.ours,
            "floor": row.floor,
            "ratio": row.ratio(),
            "goal": goal,
            "bound": bound,
            "met": row.is_met().map_or(Value::Null, Value::Bool),
        })?;
    } else {
        output.line(row.to_string().trim_end())?;
    }
    // Each figure takes a while, and nobody should have to wait for the next one to see it.
    output.flush()
}
