//! `amps torture dump`: the surviving messages, as binary frames. Nothing in the directory is
//! changed.

use std::io::{self, BufWriter, Write};

use amps_store::inspect::{Filter, Inspection};

use crate::args::TortureDump;
use crate::output::{Patient, data_on_stderr, object, unbuffered};

use super::{Code, FILE, Fatal, tell};

/// Dumps the unsettled messages and says how recovery ended.
pub(super) fn dump(args: &TortureDump) -> Code {
    match try_dump(args) {
        Ok(code) => code,
        // A file that is no store at all is judged like one that has lost everything.
        Err(Fatal {
            code: code @ Code::Damaged,
            text,
        }) => {
            let line = object! {
                "status": "damaged",
                "first": 0,
                "last": 0,
                "next": 0,
                "count": 0,
                "stop": text,
                "set_aside": 0,
                "dropped": 0,
            };
            tell_status(line).map_or_else(|fatal| fatal.code, |()| code)
        }
        Err(Fatal { code, text }) => {
            tell(&text);
            code
        }
    }
}

fn try_dump(args: &TortureDump) -> Result<Code, Fatal> {
    let seen = Inspection::open(args.dir.join(FILE))?;
    let report = seen.report();
    let damaged = !report.damaged.is_empty();
    let mut frames = Frames {
        to: BufWriter::new(unbuffered().map_err(Fatal::io)?),
        first: 0,
        last: 0,
        count: 0,
    };
    // Without --salvage nothing is dumped of a damaged store, since it would not open either.
    if !damaged || args.salvage {
        frames.all(&seen)?;
    }
    let status = match (damaged, frames.count) {
        (true, _) => "damaged",
        (false, 0) => "empty",
        (false, _) => "ok",
    };
    let line = object! {
        "status": status,
        "first": frames.first,
        "last": frames.last,
        "next": report.next,
        "count": frames.count,
        "stop": report.stop.to_string(),
        "set_aside": report.set_aside,
        "dropped": seen.info().dropped(),
    };
    tell_status(line)?;
    Ok(if damaged && !args.salvage {
        Code::Damaged
    } else {
        Code::Ok
    })
}

/// Prints the line that a rig judges by.
fn tell_status(line: serde_json::Map<String, serde_json::Value>) -> Result<(), Fatal> {
    data_on_stderr(&serde_json::Value::Object(line).to_string())
        .map_err(|e| Fatal::io(format!("cannot write to standard error: {e}")))
}

/// `seq u64 LE, len u32 LE, payload`, repeated.
struct Frames {
    to: BufWriter<Patient>,
    first: u64,
    last: u64,
    count: u64,
}

impl Frames {
    fn all(&mut self, seen: &Inspection) -> Result<(), Fatal> {
        for message in seen.messages(Filter::new()) {
            let message = message.map_err(Fatal::io)?;
            self.frame(message.sequence, &message.payload)
                .map_err(wrong_output)?;
        }
        self.to.flush().map_err(wrong_output)
    }

    fn frame(&mut self, sequence: u64, payload: &[u8]) -> io::Result<()> {
        let len = u32::try_from(payload.len()).map_err(io::Error::other)?;
        self.to.write_all(&sequence.to_le_bytes())?;
        self.to.write_all(&len.to_le_bytes())?;
        self.to.write_all(payload)?;
        if self.first == 0 {
            self.first = sequence;
        }
        self.last = sequence;
        self.count += 1;
        Ok(())
    }
}

fn wrong_output(error: io::Error) -> Fatal {
    Fatal::io(format!("cannot write to standard output: {error}"))
}
