//! Lines of a file or of standard input, byte for byte, in bounded memory.

use std::fs::{File, Metadata, OpenOptions};
use std::io::{self, IsTerminal as _, Read};
use std::os::fd::AsFd as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

use bytes::Bytes;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs::OFlags;
use tokio::sync::mpsc;

use crate::failure::Failure;
use crate::resume::{Place, Stored};
use crate::signals::Stop;

/// Longest line that is read into memory; a store's largest record is usually smaller.
pub(crate) const MAX_LINE: usize = 64 << 20;

/// Bytes read at once. The complete lines among them are passed on as one batch.
const BUFFER: usize = 64 << 10;

/// Batches that may wait for the publisher.
const BATCHES: usize = 4;

/// An input, opened once: opening a pipe again would find nothing in it.
pub(crate) struct Source {
    file: File,
    name: String,
}

impl Source {
    /// Opens `path`; `-` is standard input. A named pipe is not waited for here but when it is
    /// read, where a signal can end the waiting.
    ///
    /// # Errors
    /// It is missing, a directory, or may not be read.
    pub(crate) fn open(path: &Path) -> Result<Self, Failure> {
        if path.as_os_str() == "-" {
            let stdin = io::stdin().as_fd().try_clone_to_owned();
            let stdin =
                stdin.map_err(|e| Failure::other(format!("there is no standard input: {e}")))?;
            return Ok(Source {
                file: stdin.into(),
                name: "standard input".to_owned(),
            });
        }
        let name = path.display().to_string();
        let advice = |e: &io::Error| match e.kind() {
            io::ErrorKind::NotFound => "check the path, or use - to read standard input",
            io::ErrorKind::PermissionDenied => "make it readable for this user",
            _ => "name a file that can be read from start to end",
        };
        let wrong =
            |e: io::Error| Failure::other(format!("cannot read {name}: {e}; {}", advice(&e)));
        let mut options = OpenOptions::new();
        let flags = OFlags::NONBLOCK.bits().cast_signed();
        let file = options.read(true).custom_flags(flags).open(path);
        let file = file.map_err(wrong)?;
        if file.metadata().map_err(wrong)?.is_dir() {
            return Err(wrong(io::ErrorKind::IsADirectory.into()));
        }
        Ok(Source { file, name })
    }

    /// The name that people see.
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// Whether it has a known end, which a pipe or a terminal does not have.
    fn has_known_end(&self) -> bool {
        self.regular_file().is_some()
    }

    /// What it is, if it is a regular file.
    pub(crate) fn regular_file(&self) -> Option<Metadata> {
        self.file.metadata().ok().filter(Metadata::is_file)
    }

    /// For reading until a signal comes, which is an error then.
    pub(crate) fn until(self, stop: Stop) -> Stoppable {
        Stoppable {
            file: self.file,
            stop,
        }
    }
}

/// Reads until the first signal. Waits for data even if the descriptor was set to non-blocking.
pub(crate) struct Stoppable {
    file: File,
    stop: Stop,
}

impl Stoppable {
    fn stopped(&self) -> Option<io::Error> {
        let signal = self.stop.asked()?;
        Some(io::Error::other(format!("{signal} ended the reading")))
    }
}

impl Read for Stoppable {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            let wakes = self.stop.wakes();
            let mut fds = [
                PollFd::new(&self.file, PollFlags::IN),
                PollFd::from_borrowed_fd(wakes, PollFlags::IN),
            ];
            let polled = poll(&mut fds, None);
            let has_data = !fds[0].revents().is_empty();
            match polled {
                // This is the signal itself. Whoever counts signals has not heard of it yet, and
                // will wake this in a moment. A read now could wait for ever, or take a named
                // pipe that nobody has opened for one that has ended.
                Err(rustix::io::Errno::INTR) => continue,
                Ok(_) => {}
                Err(error) => return Err(error.into()),
            }
            if let Some(stopped) = self.stopped() {
                return Err(stopped);
            }
            if !has_data {
                continue;
            }
            match self.file.read(buffer) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                // A terminal that was hung up has no more lines.
                Err(error)
                    if error.raw_os_error() == Some(rustix::io::Errno::IO.raw_os_error())
                        && self.file.is_terminal() =>
                {
                    return Ok(0);
                }
                done => return done,
            }
        }
    }
}

/// A line without its newline.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Line {
    /// Where it ends. Lines are counted from 1.
    pub(crate) end: Place,
    /// The bytes before the newline; a carriage return is part of them.
    pub(crate) bytes: Bytes,
}

/// What happens to a last line that has no newline.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum LastLine {
    /// It is a line.
    Counts,
    /// Somebody may still be writing it.
    Waits,
}

/// How the reading ended.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Ended {
    /// Bytes of a line that was not finished, and so is not a message.
    pub(crate) unfinished: u64,
}

enum Part {
    Lines(Vec<Line>),
    Failed(Failure),
    Ended(Ended),
}

/// The lines of an input, read by a thread of their own so that a slow input never blocks an
/// async worker.
pub(crate) struct Lines {
    from: mpsc::Receiver<Part>,
    ready: std::vec::IntoIter<Line>,
    ended: Ended,
    known_end: bool,
}

impl Lines {
    /// Begins to read behind what was stored before, which must be there.
    ///
    /// # Errors
    /// No thread can be made.
    pub(crate) fn start(
        source: Source,
        stored: Stored,
        last: LastLine,
        stop: Stop,
    ) -> Result<Self, Failure> {
        let (to, from) = mpsc::channel(BATCHES);
        let known_end = source.has_known_end();
        let name = source.name.clone();
        let mut input = source.until(stop);
        let mut reader = Reader::new(name, stored, last);
        let read = move || {
            let end = reader.run(&mut input, &to, |input| input.stopped().is_some());
            // If the receiver is gone, the run has ended for a reason of its own.
            let _ = to.blocking_send(end.map_or_else(Part::Failed, Part::Ended));
        };
        std::thread::Builder::new()
            .name("input".to_owned())
            .spawn(read)
            .map_err(|e| Failure::other(format!("cannot start a thread for the input: {e}")))?;
        Ok(Lines {
            from,
            ready: Vec::new().into_iter(),
            ended: Ended::default(),
            known_end,
        })
    }

    /// Whether the input is a file that can be read again from where this run stops.
    pub(crate) fn has_known_end(&self) -> bool {
        self.known_end
    }

    /// How the reading ended, once [`next`](Self::next) has returned `None`.
    pub(crate) fn ended(&self) -> Ended {
        self.ended
    }

    /// The next line; `None` at the end of input, or, after a signal, behind the lines that were
    /// read by then. Cancel safe: a line is either returned or still there.
    ///
    /// # Errors
    /// The input cannot be read, is a different one, or a line is longer than [`MAX_LINE`].
    pub(crate) async fn next(&mut self) -> Result<Option<Line>, Failure> {
        loop {
            if let Some(line) = self.ready.next() {
                return Ok(Some(line));
            }
            match self.from.recv().await {
                Some(Part::Lines(lines)) => self.ready = lines.into_iter(),
                Some(Part::Failed(failure)) => return Err(failure),
                Some(Part::Ended(ended)) => self.ended = ended,
                None => return Ok(None),
            }
        }
    }

    /// Stops reading. Returns how many lines were read but not returned.
    pub(crate) fn give_up(&mut self) -> u64 {
        self.from.close();
        let mut lines = self.ready.len();
        self.ready = Vec::new().into_iter();
        while let Ok(part) = self.from.try_recv() {
            match part {
                Part::Lines(more) => lines += more.len(),
                Part::Ended(ended) => self.ended = ended,
                Part::Failed(_) => {}
            }
        }
        lines as u64
    }
}

/// Splits an input into lines.
struct Reader {
    name: String,
    stored: Stored,
    last: LastLine,
    at: Place,
    /// The beginning of a line whose end was not read yet.
    begun: Vec<u8>,
    batch: Vec<Line>,
}

impl Reader {
    fn new(name: String, stored: Stored, last: LastLine) -> Self {
        Reader {
            name,
            stored,
            last,
            at: Place::START,
            begun: Vec::new(),
            batch: Vec::new(),
        }
    }

    fn run<R: Read>(
        &mut self,
        input: &mut R,
        to: &mpsc::Sender<Part>,
        stopped: impl Fn(&R) -> bool,
    ) -> Result<Ended, Failure> {
        let mut buffer = vec![0; BUFFER];
        loop {
            let unfinished = Ended {
                unfinished: self.begun.len() as u64,
            };
            let read = match input.read(&mut buffer) {
                Ok(0) => {
                    let ended = self.end()?;
                    self.hand_on(to);
                    return Ok(ended);
                }
                Ok(read) => read,
                Err(_) if stopped(input) => return Ok(unfinished),
                Err(error) => return Err(self.failed(&error.to_string())),
            };
            let taken = self.take(&buffer[..read]);
            if !self.hand_on(to) {
                return Ok(unfinished);
            }
            taken?;
        }
    }

    /// `false`: nobody wants them any more.
    fn hand_on(&mut self, to: &mpsc::Sender<Part>) -> bool {
        let batch = std::mem::take(&mut self.batch);
        batch.is_empty() || to.blocking_send(Part::Lines(batch)).is_ok()
    }

    fn failed(&self, why: &str) -> Failure {
        Failure::other(format!(
            "cannot read line {} of {}: {why}; the lines before it were taken",
            self.at.line + 1,
            self.name
        ))
    }

    fn take(&mut self, mut bytes: &[u8]) -> Result<(), Failure> {
        while let Some(newline) = bytes.iter().position(|&b| b == b'\n') {
            self.begin(&bytes[..newline])?;
            self.line()?;
            self.at.pass(b"\n");
            bytes = &bytes[newline + 1..];
        }
        self.begin(bytes)
    }

    fn begin(&mut self, bytes: &[u8]) -> Result<(), Failure> {
        if self.begun.len() + bytes.len() > MAX_LINE {
            return Err(self.failed(&format!("it is longer than {MAX_LINE} bytes")));
        }
        self.begun.extend_from_slice(bytes);
        self.at.pass(bytes);
        Ok(())
    }

    /// What was begun is a complete line.
    fn line(&mut self) -> Result<(), Failure> {
        let bytes = std::mem::take(&mut self.begun);
        let end = self.at.end_of_line();
        if end.line == self.stored.lines() {
            self.stored.check(&end).map_err(|why| self.another(&why))?;
        }
        if end.line > self.stored.lines() {
            self.batch.push(Line {
                end,
                bytes: bytes.into(),
            });
        }
        Ok(())
    }

    /// The end of input.
    fn end(&mut self) -> Result<Ended, Failure> {
        let stored = self.stored.lines();
        // If an earlier run took it for a line, it is one.
        let counts = self.last == LastLine::Counts || self.at.line + 1 == stored;
        if !self.begun.is_empty() && counts {
            self.line()?;
        }
        if self.at.line < stored {
            let why = match self.stored {
                Stored::Place(place) => format!("the last run stored {place}, and it has"),
                Stored::Lines(_) => format!("{stored} line(s) are to be passed over, and it has"),
            };
            return Err(self.another(&format!("{why} {} line(s)", self.at.line)));
        }
        Ok(Ended {
            unfinished: self.begun.len() as u64,
        })
    }

    fn another(&self, why: &str) -> Failure {
        Failure::other(format!(
            "{} is not the input of the last run, or it was changed: {why}. Nothing of it was \
             published; to go on with it on purpose, say at which line with --resume-from LINE \
             (1 is its first)",
            self.name
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Lines with their numbers, and how it ended.
    type Found = (Vec<(u64, Vec<u8>)>, Result<Ended, String>);

    fn read(input: impl Read, stored: Stored, last: LastLine) -> Found {
        let (to, mut from) = mpsc::channel(100);
        let mut input = input;
        let ended = Reader::new("test".to_owned(), stored, last).run(&mut input, &to, |_| false);
        drop(to);
        let mut out = Vec::new();
        while let Some(part) = from.blocking_recv() {
            if let Part::Lines(lines) = part {
                out.extend(lines.iter().map(|l| (l.end.line, l.bytes.to_vec())));
            }
        }
        (out, ended.map_err(|failure| failure.to_string()))
    }

    fn lines(input: &[u8], skip: u64) -> Vec<(u64, Vec<u8>)> {
        read(input, Stored::Lines(skip), LastLine::Counts).0
    }

    /// Where the last line of this ends.
    fn place(input: &[u8]) -> Stored {
        let mut reader = Reader::new(String::new(), Stored::Lines(0), LastLine::Counts);
        reader.take(input).unwrap();
        reader.end().unwrap();
        Stored::Place(reader.batch.pop().unwrap().end)
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
        let (found, ended) = read(&b"1\n2\n3"[..], Stored::Lines(9), LastLine::Counts);
        assert_eq!(found, []);
        assert!(ended.unwrap_err().contains("it has 3 line(s)"));
    }

    #[test]
    fn a_line_beyond_the_limit_is_an_error_behind_the_lines_before_it() {
        let input = (&b"first\n"[..]).chain(io::repeat(b'x'));
        let (found, ended) = read(input, Stored::Lines(0), LastLine::Counts);
        assert_eq!(found, [(1, b"first".to_vec())]);
        let error = ended.unwrap_err();
        assert!(
            error.contains("line 2 of test") && error.contains("longer"),
            "{error}"
        );
    }

    #[test]
    fn only_the_same_beginning_is_passed_over() {
        let stored = place(b"one\ntwo\n");
        let rest = |input: &[u8]| read(input, stored, LastLine::Waits);
        let more = vec![(3, b"three".to_vec())];
        assert_eq!(rest(b"one\ntwo\n"), (vec![], Ok(Ended::default())));
        assert_eq!(rest(b"one\ntwo\nthree\n"), (more, Ok(Ended::default())));
        for other in [
            &b"one\n"[..],
            b"",
            b"ONE\ntwo\n",
            b"one\ntwo2\n",
            b"on\netwo\n",
        ] {
            let (found, ended) = rest(other);
            assert_eq!(found, []);
            let error = ended.unwrap_err();
            assert!(
                error.contains("the last run stored line 2 to end at byte 7"),
                "{error}"
            );
        }
    }

    #[test]
    fn a_line_that_is_still_written_waits() {
        let stored = place(b"one\n");
        let waits = Ok(Ended { unfinished: 3 });
        assert_eq!(
            read(&b"one\nthr"[..], stored, LastLine::Waits),
            (vec![], waits)
        );
        let three = vec![(2, b"three".to_vec())];
        let whole = read(&b"one\nthree\n"[..], stored, LastLine::Waits);
        assert_eq!(whole, (three.clone(), Ok(Ended::default())));
        let complete = read(&b"one\nthree"[..], stored, LastLine::Counts);
        assert_eq!(complete, (three, Ok(Ended::default())));
        // What was taken as a last line is the same line when it has a newline, and no other line
        // is.
        let stored = place(b"one\nthree");
        for same in [&b"one\nthree"[..], b"one\nthree\n"] {
            let found = read(same, stored, LastLine::Waits);
            assert_eq!(found, (vec![], Ok(Ended::default())));
        }
        assert!(
            read(&b"one\nthreeee\n"[..], stored, LastLine::Waits)
                .1
                .is_err()
        );
    }
}
