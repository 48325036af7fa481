//! The one place that writes: messages to people on standard error, data on standard output.
//!
//! Output never decides anything. A command whose product is its output ([`Output`]) waits for a
//! slow reader, and ends at a closed one. If the work is something else, data goes through a
//! thread of its own ([`SideOutput`]): what goes wrong there is remembered for the exit code.
//! Messages to people ([`say`]) are dropped and counted before anything waits for them.
//! to people ([`say`]) are dropped and counted before anything waits for them.

mod people;
mod writer;

use std::fs::File;
use std::io::{self, BufWriter, IsTerminal as _, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::time::Duration;

use serde_json::{Map, Value};

use crate::failure::{Exit, Failure};
use crate::signals::Stop;
use crate::terminal;

use self::writer::Writer;

pub(crate) use self::people::{finish, has_terminal, say, say_text, status};
pub(crate) use self::writer::Patient;

/// Bytes that may wait for standard output.
const LIMIT: usize = 256 << 10;

/// How long the last lines wait for a reader when nothing else makes them wait.
const PATIENCE: Duration = Duration::from_secs(2);

/// How lines are formatted.
#[derive(Clone, Copy, Debug)]
struct Form {
    json: bool,
    /// A terminal would obey control characters from outside, so they are escaped; a pipe gets
    /// payloads and JSON as they are.
    terminal: bool,
}

impl Form {
    fn of_stdout(json: bool) -> Self {
        Form {
            json,
            terminal: io::stdout().is_terminal(),
        }
    }

    fn object(self, object: Map<String, Value>) -> Vec<u8> {
        let text = Value::Object(object).to_string();
        ended(match self.terminal {
            true => terminal::json(&text).into_bytes(),
            false => text.into_bytes(),
        })
    }

    fn line(self, text: &str) -> Vec<u8> {
        // For people, wherever it goes: no topic and no reason may forge a line.
        ended(terminal::line(text.as_bytes()).into_bytes())
    }

    fn text(self, text: &str) -> Vec<u8> {
        ended(match self.terminal {
            true => terminal::text(text.as_bytes()).into_bytes(),
            false => text.into(),
        })
    }

    fn bytes(self, bytes: &[u8]) -> Vec<u8> {
        ended(match self.terminal {
            true => terminal::text(bytes).into_bytes(),
            false => bytes.to_vec(),
        })
    }
}

fn ended(mut line: Vec<u8>) -> Vec<u8> {
    line.push(b'\n');
    line
}

/// Standard output of a command that exists for it. Only this type buffers it, so what is flushed
/// was written in one system call.
pub(crate) struct Output {
    form: Form,
    to: BufWriter<Patient>,
    known: Option<Failure>,
}

impl Output {
    /// # Errors
    /// There is no standard output.
    pub(crate) fn stdout(json: bool) -> Result<Self, Failure> {
        Ok(Output {
            form: Form::of_stdout(json),
            to: BufWriter::with_capacity(1 << 16, unbuffered()?),
            known: None,
        })
    }

    /// Sets what is known to be wrong with what is shown: if the output ends early, that is still
    /// wrong.
    pub(crate) fn knows(&mut self, known: Option<Failure>) {
        self.known = known;
    }

    pub(crate) fn is_json(&self) -> bool {
        self.form.json
    }

    /// Writes one object on its own line.
    ///
    /// # Errors
    /// The reader went away.
    pub(crate) fn object(&mut self, object: Map<String, Value>) -> Result<(), Failure> {
        let line = self.form.object(object);
        self.write(&line)
    }

    /// Writes a line. Characters that would break it up are shown as escapes.
    ///
    /// # Errors
    /// The reader went away.
    pub(crate) fn line(&mut self, text: &str) -> Result<(), Failure> {
        let line = self.form.line(text);
        self.write(&line)
    }

    /// Writes text that may have several lines.
    ///
    /// # Errors
    /// The reader went away.
    pub(crate) fn text(&mut self, text: &str) -> Result<(), Failure> {
        let text = self.form.text(text);
        self.write(&text)
    }

    fn write(&mut self, bytes: &[u8]) -> Result<(), Failure> {
        let written = self.to.write_all(bytes);
        written.map_err(|e| self.ended(&e))
    }

    fn ended(&mut self, error: &io::Error) -> Failure {
        Failure::output(error).beside(self.known.take())
    }

    /// Writes everything that is buffered.
    ///
    /// # Errors
    /// The reader went away.
    pub(crate) fn flush(&mut self) -> Result<(), Failure> {
        let flushed = self.to.flush();
        flushed.map_err(|e| self.ended(&e))
    }
}

/// Standard output beside the work of a command: a thread writes it, and the caller decides
/// whether to wait for room. An error ends only the output.
pub(crate) struct SideOutput {
    form: Form,
    to: Writer,
}

impl SideOutput {
    /// # Errors
    /// There is no standard output, or no thread.
    pub(crate) fn stdout(json: bool) -> Result<Self, Failure> {
        let to = Writer::start(unbuffered()?, "standard output", LIMIT)
            .map_err(|e| Failure::other(format!("cannot start a thread for the output: {e}")))?;
        Ok(SideOutput {
            form: Form::of_stdout(json),
            to,
        })
    }

    pub(crate) fn is_json(&self) -> bool {
        self.form.json
    }

    /// Writes an object, which waits in memory while the reader is slow.
    pub(crate) fn object(&self, object: Map<String, Value>) {
        self.to.push(&self.form.object(object));
    }

    /// Writes a line.
    pub(crate) fn line(&self, text: &str) {
        self.to.push(&self.form.line(text));
    }

    /// Writes bytes as they are.
    pub(crate) fn bytes(&self, bytes: &[u8]) {
        self.to.push(&self.form.bytes(bytes));
    }

    /// Writes an object if there is room for it. Returns whether there was.
    pub(crate) fn object_if_room(&self, object: Map<String, Value>) -> bool {
        self.to.push_if_room(&self.form.object(object))
    }

    /// Waits until the reader has taken enough that more may be written. There is always room
    /// once nobody will read it any more. Cancel safe.
    pub(crate) async fn room(&self) {
        self.to.room().await;
    }

    /// What went wrong so far, for a command that exists for its output.
    ///
    /// # Errors
    /// As [`Failure::output`].
    pub(crate) fn check(&self) -> Result<(), Failure> {
        match self.to.failed() {
            Some(error) => Err(Failure::output(&error)),
            None => Ok(()),
        }
    }

    /// Waits until all of it is written, or cannot be. Cancel safe.
    pub(crate) async fn written(&self) {
        self.to.written().await;
    }

    /// Waits for the reader of the last lines until a second signal, and at least for a moment,
    /// since that signal may have come long before them. Returns the exit code that the output
    /// stands for: if somebody did not get the data it is an error, although the work is done.
    pub(crate) async fn last_words(&self, stop: &Stop) -> Exit {
        let long_enough = async {
            stop.second().await;
            tokio::time::sleep(PATIENCE).await;
        };
        let why = tokio::select! {
            biased;
            () = self.written() => match self.to.failed() {
                None => return Exit::Ok,
                Some(error) => error.to_string(),
            },
            () = long_enough => "nobody read it before the second signal".to_owned(),
        };
        say(&format!(
            "error: cannot write the output: {why}; everything else was done"
        ));
        Exit::Other
    }
}

/// Writes bytes to standard output as they are: a generated script, a manual page.
///
/// # Errors
/// The reader went away.
pub(crate) fn raw(bytes: &[u8]) -> Result<(), Failure> {
    unbuffered()?
        .write_all(bytes)
        .map_err(|e| Failure::output(&e))
}

/// Standard output without the standard library's line buffer: each `write` is one `write(2)`,
/// and one that finds no room waits for it.
///
/// # Errors
/// There is no standard output.
pub(crate) fn unbuffered() -> Result<Patient, Failure> {
    own(io::stdout().as_fd())
        .map_err(|e| Failure::other(format!("there is no standard output: {e}")))
}

/// Writes a line to standard error at once, for callers to whom it is data.
///
/// # Errors
/// It cannot be written.
pub(crate) fn data_on_stderr(line: &str) -> io::Result<()> {
    own(io::stderr().as_fd())?.write_all(&ended(line.into()))
}

fn own(fd: BorrowedFd<'_>) -> io::Result<Patient> {
    Ok(Patient::new(File::from(fd.try_clone_to_owned()?)))
}

/// Builds a JSON object with its fields in the order given.
macro_rules! object {
    ($($name:literal : $value:expr),* $(,)?) => {{
        let mut map = serde_json::Map::new();
        $(map.insert($name.to_owned(), serde_json::Value::from($value));)*
        map
    }};
}
pub(crate) use object;
