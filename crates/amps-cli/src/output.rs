//! Data on standard output, for people or one JSON object per line.

use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::os::fd::AsFd;

use serde_json::{Map, Value};

use crate::failure::Failure;

/// Standard output, buffered by us alone: what is flushed was written in one system call.
pub(crate) struct Output {
    json: bool,
    to: BufWriter<File>,
}

impl Output {
    /// # Errors
    /// There is no standard output.
    pub(crate) fn stdout(json: bool) -> Result<Self, Failure> {
        Ok(Output {
            json,
            to: BufWriter::with_capacity(1 << 16, unbuffered()?),
        })
    }

    pub(crate) fn is_json(&self) -> bool {
        self.json
    }

    /// Writes one object on its own line.
    ///
    /// # Errors
    /// The reader went away.
    pub(crate) fn object(&mut self, object: Map<String, Value>) -> Result<(), Failure> {
        self.line(&Value::Object(object).to_string())
    }

    /// Writes a line.
    ///
    /// # Errors
    /// The reader went away.
    pub(crate) fn line(&mut self, text: &str) -> Result<(), Failure> {
        self.bytes_line(text.as_bytes())
    }

    /// Writes bytes as they are, and a newline.
    ///
    /// # Errors
    /// The reader went away.
    pub(crate) fn bytes_line(&mut self, bytes: &[u8]) -> Result<(), Failure> {
        self.to
            .write_all(bytes)
            .and_then(|()| self.to.write_all(b"\n"))
            .map_err(|e| Failure::output(&e))
    }

    /// Hands everything to the reader.
    ///
    /// # Errors
    /// The reader went away.
    pub(crate) fn flush(&mut self) -> Result<(), Failure> {
        self.to.flush().map_err(|e| Failure::output(&e))
    }
}

/// Standard output without the standard library's line buffer: one `write` is one
/// `write(2)`.
///
/// # Errors
/// There is no standard output.
pub(crate) fn unbuffered() -> Result<File, Failure> {
    io::stdout()
        .as_fd()
        .try_clone_to_owned()
        .map(File::from)
        .map_err(|e| Failure::other(format!("there is no standard output: {e}")))
}

/// Builds a JSON object in the order given.
macro_rules! object {
    ($($name:literal : $value:expr),* $(,)?) => {{
        let mut map = serde_json::Map::new();
        $(map.insert($name.to_owned(), serde_json::Value::from($value));)*
        map
    }};
}
pub(crate) use object;
