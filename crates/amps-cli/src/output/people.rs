//! Messages to people on standard error. Nobody ever waits for them: a thread writes them, and
//! those for which there is no room are dropped and counted.

use std::io::{self, IsTerminal as _};
use std::os::fd::AsFd as _;
use std::sync::{Mutex, OnceLock, PoisonError};

use super::writer::Writer;
use super::{PATIENCE, own};
use crate::terminal;

/// Bytes that may wait for standard error.
const LIMIT: usize = 64 << 10;

/// Erases the line that shows a status.
const CLEAR: &str = "\r\x1b[K";

struct People {
    /// `None`: no thread could be made.
    writer: Option<Writer>,
    said: Mutex<Said>,
}

#[derive(Default)]
struct Said {
    /// The status in the last line of a terminal.
    status: String,
    /// Lines that nobody will see.
    dropped: u64,
    /// Without a thread: nobody read in time, so nothing more is tried.
    gave_up: bool,
}

static PEOPLE: OnceLock<People> = OnceLock::new();

fn people() -> &'static People {
    PEOPLE.get_or_init(|| {
        let stderr = own(io::stderr().as_fd());
        People {
            writer: stderr.and_then(|to| Writer::start(to, "words", LIMIT)).ok(),
            said: Mutex::default(),
        }
    })
}

/// Whether standard error is a terminal.
pub(crate) fn has_terminal() -> bool {
    io::stderr().is_terminal()
}

/// Says a line to people, or drops it.
pub(crate) fn say(line: &str) {
    people().say(line, terminal::line);
}

/// Says text that may have several lines, or drops it.
pub(crate) fn say_text(text: &str) {
    people().say(text, terminal::text);
}

/// Shows this in the last line of a terminal until the next status. Nothing erases it.
pub(crate) fn status(line: &str) {
    if has_terminal() {
        people().status(line);
    }
}

/// Waits for the last lines, but not for long.
pub(crate) fn finish() {
    let Some(people) = PEOPLE.get() else {
        return;
    };
    let dropped = {
        let said = people.said.lock().unwrap_or_else(PoisonError::into_inner);
        said.dropped
    };
    if let Some(writer) = &people.writer {
        if dropped > 0 {
            writer.push(note(dropped).as_bytes());
        }
        writer.written_within(PATIENCE);
    }
}

fn note(dropped: u64) -> String {
    format!("note: {dropped} line(s) were not said: nobody read standard error in time\n")
}

fn columns() -> usize {
    match rustix::termios::tcgetwinsize(io::stderr()) {
        Ok(size) if size.ws_col > 1 => usize::from(size.ws_col) - 1,
        _ => 79,
    }
}

impl People {
    fn say(&self, line: &str, harmless: fn(&[u8]) -> String) {
        let mut said = self.said.lock().unwrap_or_else(PoisonError::into_inner);
        let line = harmless(line.as_bytes());
        let clear = if said.status.is_empty() { "" } else { CLEAR };
        let before = match said.dropped {
            0 => String::new(),
            dropped => note(dropped),
        };
        let bytes = format!("{clear}{before}{line}\n{}", said.status);
        let taken = match &self.writer {
            Some(writer) => writer.push_if_room(bytes.as_bytes()),
            None if said.gave_up => false,
            None => {
                let to = own(io::stderr().as_fd());
                let written = to.and_then(|mut to| to.write_within(bytes.as_bytes(), PATIENCE));
                said.gave_up = written.is_err();
                written.is_ok()
            }
        };
        said.dropped = if taken { 0 } else { said.dropped + 1 };
    }

    fn status(&self, line: &str) {
        let mut said = self.said.lock().unwrap_or_else(PoisonError::into_inner);
        // A status that wraps could not be erased again.
        said.status = terminal::line(line.as_bytes())
            .chars()
            .take(columns())
            .collect();
        if let Some(writer) = &self.writer {
            // If there is no room it is shown the next time.
            writer.push_if_room(format!("{CLEAR}{}", said.status).as_bytes());
        }
    }
}
