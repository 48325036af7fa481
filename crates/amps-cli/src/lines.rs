//! Lines of a file or of standard input, byte for byte, in bounded memory.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};
use std::path::{Path, PathBuf};

use bytes::Bytes;
use tokio::sync::mpsc;

use crate::failure::Failure;

/// Longest line that is read into memory; a store's largest record is usually smaller.
pub(crate) const MAX_LINE: usize = 64 << 20;

/// Bytes read at once; the whole lines among them travel as one batch.
const BUFFER: usize = 64 << 10;

/// Batches that may wait for the publisher.
const BATCHES: usize = 4;

/// A line without its newline.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Line {
    /// Counted from 1.
    pub(crate) number: u64,
    /// The bytes before the newline; a carriage return stays part of them.
    pub(crate) bytes: Bytes,
}

/// The lines of an input, read by a thread of their own so that a slow input never holds
/// up an async worker.
pub(crate) struct Lines {
    from: mpsc::Receiver<Result<Vec<Line>, Failure>>,
    ready: std::vec::IntoIter<Line>,
}

impl Lines {
    /// Opens `path` (`-` is standard input) and starts reading behind line `skip`.
    ///
    /// # Errors
    /// The file is missing or may not be read.
    pub(crate) fn open(path: &Path, skip: u64) -> Result<Self, Failure> {
        let (input, name): (Box<dyn Read + Send>, PathBuf) = if path.as_os_str() == "-" {
            (Box::new(io::stdin()), "standard input".into())
        } else {
            (Box::new(open_file(path)?), path.to_owned())
        };
        Ok(Self::start(input, name, skip))
    }

    fn start(input: Box<dyn Read + Send>, name: PathBuf, skip: u64) -> Self {
        let (to, from) = mpsc::channel(BATCHES);
        std::thread::spawn(move || read(BufReader::with_capacity(BUFFER, input), &name, skip, &to));
        Lines {
            from,
            ready: Vec::new().into_iter(),
        }
    }

    /// The next line, `None` at the end of input. Cancel safe: a line is either returned or
    /// still there.
    ///
    /// # Errors
    /// The input cannot be read, or a line is longer than [`MAX_LINE`].
    pub(crate) async fn next(&mut self) -> Result<Option<Line>, Failure> {
        loop {
            if let Some(line) = self.ready.next() {
                return Ok(Some(line));
            }
            match self.from.recv().await {
                Some(batch) => self.ready = batch?.into_iter(),
                None => return Ok(None),
            }
        }
    }
}

/// Opens an input file.
///
/// # Errors
/// It is missing, a directory, or may not be read.
pub(crate) fn open_file(path: &Path) -> Result<File, Failure> {
    let advice = |e: &io::Error| match e.kind() {
        io::ErrorKind::NotFound => "check the path, or use --file - to read standard input",
        io::ErrorKind::PermissionDenied => "make it readable for this user",
        _ => "name a file that can be read from start to end",
    };
    let wrong = |e: io::Error| {
        Failure::other(format!(
            "cannot read {}: {e}; {}",
            path.display(),
            advice(&e)
        ))
    };
    let file = File::open(path).map_err(wrong)?;
    if file.metadata().map_err(wrong)?.is_dir() {
        return Err(wrong(io::ErrorKind::IsADirectory.into()));
    }
    Ok(file)
}

fn read(
    mut input: BufReader<Box<dyn Read + Send>>,
    name: &Path,
    skip: u64,
    to: &mpsc::Sender<Result<Vec<Line>, Failure>>,
) {
    let mut batch = Vec::new();
    let mut number = 0;
    loop {
        // The next line needs a read that may wait: hand on what is there.
        if !input.buffer().contains(&b'\n')
            && !batch.is_empty()
            && to.blocking_send(Ok(std::mem::take(&mut batch))).is_err()
        {
            return;
        }
        match next_line(&mut input) {
            Ok(None) => return,
            Ok(Some(bytes)) => {
                number += 1;
                if number > skip {
                    batch.push(Line {
                        number,
                        bytes: bytes.into(),
                    });
                }
            }
            Err(error) => {
                let told = Failure::other(format!(
                    "cannot read line {} of {}: {error}; the lines before it were taken",
                    number + 1,
                    name.display()
                ));
                if batch.is_empty() || to.blocking_send(Ok(batch)).is_ok() {
                    // A receiver that is gone has ended the run for a reason of its own.
                    let _ = to.blocking_send(Err(told));
                }
                return;
            }
        }
    }
}

/// Reads up to a newline, which is dropped, or to the end of input.
fn next_line(input: &mut impl BufRead) -> io::Result<Option<Vec<u8>>> {
    let mut line = Vec::new();
    let read = input
        .by_ref()
        .take(MAX_LINE as u64 + 1)
        .read_until(b'\n', &mut line)?;
    if read == 0 {
        return Ok(None);
    }
    if line.last() == Some(&b'\n') {
        line.pop();
    } else if read > MAX_LINE {
        return Err(io::Error::other(format!(
            "it is longer than {MAX_LINE} bytes"
        )));
    }
    Ok(Some(line))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(input: &'static [u8], skip: u64) -> Vec<(u64, Vec<u8>)> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .build()
            .unwrap();
        runtime.block_on(async {
            let mut lines = Lines::start(Box::new(input), "test".into(), skip);
            let mut out = Vec::new();
            while let Some(line) = lines.next().await.unwrap() {
                out.push((line.number, line.bytes.to_vec()));
            }
            out
        })
    }

    #[test]
    fn every_byte_but_the_newline_is_kept() {
        assert_eq!(
            lines(b"a\r\n\n\xff\x00b\nlast", 0),
            [
                (1, b"a\r".to_vec()),
                (2, b"".to_vec()),
                (3, b"\xff\x00b".to_vec()),
                (4, b"last".to_vec())
            ]
        );
        assert_eq!(lines(b"", 0), []);
        assert_eq!(lines(b"\n", 0), [(1, b"".to_vec())]);
    }

    #[test]
    fn skipped_lines_keep_their_numbers() {
        assert_eq!(lines(b"1\n2\n3\n", 2), [(3, b"3".to_vec())]);
        assert_eq!(lines(b"1\n2\n3", 9), []);
    }

    #[test]
    fn a_line_beyond_the_limit_is_an_error_behind_the_lines_before_it() {
        let input = (&b"first\n"[..]).chain(io::repeat(b'x'));
        let mut lines = Lines::start(Box::new(input), "test".into(), 0);
        let runtime = tokio::runtime::Builder::new_current_thread()
            .build()
            .unwrap();
        runtime.block_on(async {
            assert_eq!(lines.next().await.unwrap().unwrap().bytes, "first");
            let error = lines.next().await.unwrap_err().to_string();
            assert!(
                error.contains("line 2 of test") && error.contains("longer"),
                "{error}"
            );
        });
    }
}
