//! The sandbox's log: an append-only file of checksummed entries, or the same bytes in
//! memory.
//!
//! A file starts with eight bytes of magic. Each entry is a little-endian `u32` length, the `u32`
//! CRC-32 of what follows, and that many bytes of content ([`encode`]). Each batch is appended by
//! one `write(2)`, so it survives the death of the process as soon as [`Journal::append`]
//! returns. It is not synced, so a power cut may take the end of the file. A torn end is cut off
//! when the file is opened, and damage before it is refused, except that a damaged length which
//! reaches beyond the end of the file looks like a torn end and is cut.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

/// Name of the file in the journal's directory.
const FILE_NAME: &str = "sandbox.journal";
const MAGIC: &[u8; 8] = b"AMPSJRN1";
const FRAME: usize = 8;
const CHUNK: usize = 1 << 20;

/// What an entry says happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Operation {
    /// A message was published.
    Publish,
    /// A message was published as a delta.
    DeltaPublish,
    /// Records were deleted by a filter.
    SowDeleteByFilter,
    /// Records were deleted by their keys.
    SowDeleteByKeys,
    /// A record was deleted by an example of it.
    SowDeleteByData,
    /// A message was refused; only its sequence is remembered.
    Refused,
    /// A client name was forgotten on request.
    Forgotten,
}

/// One entry of the log, borrowed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry<'a> {
    /// What happened.
    pub operation: Operation,
    /// The publisher.
    pub client_name: &'a str,
    /// The sequence on the wire, if the publisher numbers its messages.
    pub sequence: Option<u64>,
    /// The topic.
    pub topic: &'a str,
    /// The SOW key given with the message.
    pub sow_key: Option<&'a str>,
    /// The correlation id given with the message.
    pub correlation_id: Option<&'a str>,
    /// Filter or keys of a delete.
    pub selector: Option<&'a str>,
    /// The message.
    pub body: &'a [u8],
}

/// One message of the log, owned.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JournalEntry {
    /// What happened.
    pub operation: Operation,
    /// The publisher.
    pub client_name: String,
    /// The sequence on the wire, if the publisher numbers its messages.
    pub sequence: Option<u64>,
    /// The topic.
    pub topic: String,
    /// The message, byte for byte; filter or keys for a delete by those.
    pub bytes: Vec<u8>,
    /// The bookmark under which subscribers see it.
    pub bookmark: String,
}

/// Why a journal cannot be opened or read.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum JournalError {
    /// A system call failed.
    #[error("cannot {doing} the journal {}: {source}", path.display())]
    Io {
        /// What was being done.
        doing: &'static str,
        /// The file.
        path: PathBuf,
        /// What the operating system reported.
        source: io::Error,
    },
    /// Another process has it open.
    #[error("the journal {} is in use by another server", path.display())]
    Locked {
        /// The file.
        path: PathBuf,
    },
    /// The file is not a journal.
    #[error("{} is not a sandbox journal", path.display())]
    Foreign {
        /// The file.
        path: PathBuf,
    },
    /// An entry is damaged and more entries follow, so this was no interrupted write.
    #[error("the journal {} is damaged at byte {at}; move it away to start afresh", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// Where the damaged entry starts.
        at: u64,
    },
}

/// The log itself. Offsets are bytes from its start; the end of an entry is its position.
#[derive(Debug)]
pub struct Journal {
    medium: Medium,
    end: u64,
}

#[derive(Debug)]
enum Medium {
    File { file: File, path: PathBuf },
    Memory { chunks: Vec<Vec<u8>> },
}

impl Journal {
    /// A log that is lost when the process ends.
    pub fn memory() -> Self {
        Journal {
            medium: Medium::Memory { chunks: Vec::new() },
            end: 0,
        }
    }

    /// Opens or creates the log in `directory`, locks it, cuts a torn end, and calls `visit` with
    /// every entry, oldest first, and the offset of its end.
    ///
    /// # Errors
    /// A [`JournalError`]; nothing is changed then.
    pub fn open(
        directory: &Path,
        mut visit: impl FnMut(&Entry<'_>, u64),
    ) -> Result<Journal, JournalError> {
        let path = directory.join(FILE_NAME);
        let fail = |doing| {
            let path = path.clone();
            move |source| JournalError::Io {
                doing,
                path,
                source,
            }
        };
        std::fs::create_dir_all(directory).map_err(fail("create"))?;
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            // It holds what was published.
            .mode(0o600)
            .open(&path)
            .map_err(fail("open"))?;
        file.try_lock().map_err(|error| match error {
            TryLockError::WouldBlock => JournalError::Locked { path: path.clone() },
            TryLockError::Error(source) => fail("lock")(source),
        })?;
        let length = file.metadata().map_err(fail("inspect"))?.len();
        let end = if length < MAGIC.len() as u64 {
            start(&file, &path, length)?
        } else {
            let end = scan(&file, &path, length, &mut visit)?;
            if end < length {
                file.set_len(end).map_err(fail("cut"))?;
            }
            end
        };
        (&file)
            .seek(SeekFrom::Start(end))
            .map_err(fail("position"))?;
        Ok(Journal {
            medium: Medium::File {
                file,
                path: path.clone(),
            },
            end,
        })
    }

    /// Where the log ends: the position of its last entry.
    pub fn end(&self) -> u64 {
        self.end
    }

    /// Where the first entry starts.
    pub fn start(&self) -> u64 {
        match self.medium {
            Medium::File { .. } => MAGIC.len() as u64,
            Medium::Memory { .. } => 0,
        }
    }

    /// Appends encoded entries. When this returns they survive the process.
    ///
    /// # Errors
    /// The operating system's error. The log is then as it was, unless the same failure prevents
    /// even that; then the next open cuts the torn entry.
    pub fn append(&mut self, entries: &[u8]) -> io::Result<()> {
        match &mut self.medium {
            Medium::File { file, .. } => {
                if let Err(error) = file.write_all(entries) {
                    file.set_len(self.end)?;
                    file.seek(SeekFrom::Start(self.end))?;
                    return Err(error);
                }
            }
            Medium::Memory { chunks } => {
                let mut rest = entries;
                while !rest.is_empty() {
                    match chunks.last_mut() {
                        Some(chunk) if chunk.len() < CHUNK => {
                            let part = rest.len().min(CHUNK - chunk.len());
                            chunk.extend_from_slice(&rest[..part]);
                            rest = &rest[part..];
                        }
                        _ => chunks.push(Vec::new()),
                    }
                }
            }
        }
        self.end += entries.len() as u64;
        Ok(())
    }

    /// Calls `visit` with the entries from `from` on, until it returns `false`, the log ends, or
    /// about `budget` bytes were read, but with at least one entry. Returns where to continue.
    ///
    /// # Errors
    /// The operating system's error, or `InvalidData` if what was written cannot be read back.
    pub fn read(
        &self,
        from: u64,
        budget: usize,
        mut visit: impl FnMut(&Entry<'_>, u64) -> bool,
    ) -> io::Result<u64> {
        let mut from = from.max(self.start());
        if from >= self.end {
            return Ok(from);
        }
        let mut buffer = self.bytes(from, budget.max(FRAME))?;
        if let Some(needed) = announced(&buffer).filter(|needed| *needed > buffer.len()) {
            buffer = self.bytes(from, needed)?;
        }
        let mut at = 0;
        while let Some(whole) = announced(&buffer[at..]).filter(|n| *n <= buffer.len() - at) {
            let damaged = || io::Error::new(io::ErrorKind::InvalidData, "a damaged log entry");
            let entry = checked(&buffer[at..at + whole]).ok_or_else(damaged)?;
            at += whole;
            from += whole as u64;
            if !visit(&entry, from) {
                break;
            }
        }
        Ok(from)
    }

    fn bytes(&self, from: u64, wanted: usize) -> io::Result<Vec<u8>> {
        let wanted = wanted.min(usize::try_from(self.end - from).unwrap_or(usize::MAX));
        let mut buffer = vec![0; wanted];
        match &self.medium {
            Medium::File { file, .. } => read_exact_at(file, &mut buffer, from)?,
            Medium::Memory { chunks } => {
                let (mut at, mut done) = (from as usize, 0);
                while done < wanted {
                    let part = &chunks[at / CHUNK][at % CHUNK..];
                    let length = part.len().min(wanted - done);
                    buffer[done..done + length].copy_from_slice(&part[..length]);
                    done += length;
                    at += length;
                }
            }
        }
        Ok(buffer)
    }

    /// The file, if the log has one.
    pub fn path(&self) -> Option<&Path> {
        match &self.medium {
            Medium::File { path, .. } => Some(path),
            Medium::Memory { .. } => None,
        }
    }
}

/// Reads the messages of a journal that a running server may be writing: those that were
/// accepted, in order. Takes no lock; a torn end is left out.
///
/// # Errors
/// A [`JournalError`].
pub fn read_journal(directory: impl AsRef<Path>) -> Result<Vec<JournalEntry>, JournalError> {
    let path = directory.as_ref().join(FILE_NAME);
    let fail = |source| JournalError::Io {
        doing: "read",
        path: path.clone(),
        source,
    };
    let file = File::open(&path).map_err(fail)?;
    let length = file.metadata().map_err(fail)?.len();
    let mut entries = Vec::new();
    scan(&file, &path, length, &mut |entry, end| {
        entries.extend(entry.message(end))
    })?;
    Ok(entries)
}

impl Entry<'_> {
    /// The bookmark of the entry that ends at `position`: the publisher's id and its
    /// sequence, or, for a message without one, an id derived from it and the position
    /// (`docs/protocol.md` §13).
    pub fn bookmark(&self, position: u64) -> String {
        match self.sequence {
            Some(sequence) => format!("{}|{sequence}|", publisher_id(self.client_name)),
            None => {
                let derived = format!("{}\0", self.client_name);
                format!("{}|{position}|", publisher_id(&derived))
            }
        }
    }

    /// The message of the entry, unless it only remembers a decision.
    pub(crate) fn message(&self, position: u64) -> Option<JournalEntry> {
        if matches!(self.operation, Operation::Refused | Operation::Forgotten) {
            return None;
        }
        let bytes = self.selector.map_or(self.body, str::as_bytes);
        Some(JournalEntry {
            operation: self.operation,
            client_name: self.client_name.to_owned(),
            sequence: self.sequence,
            topic: self.topic.to_owned(),
            bytes: bytes.to_vec(),
            bookmark: self.bookmark(position),
        })
    }
}

/// The id of a client name in bookmarks: FNV-1a, in 63 bits like the ids in AMPS' samples.
pub(crate) fn publisher_id(name: &str) -> u64 {
    let hash = name.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    });
    hash >> 1
}

/// Appends `entry` to `out` as it stands in the log; returns its length.
pub(crate) fn encode(out: &mut Vec<u8>, entry: &Entry<'_>) -> usize {
    let start = out.len();
    out.extend_from_slice(&[0; FRAME]);
    out.push(entry.operation.code());
    put_number(out, stored_sequence(entry.sequence));
    put_bytes(out, entry.client_name.as_bytes());
    put_bytes(out, entry.topic.as_bytes());
    for text in [entry.sow_key, entry.correlation_id, entry.selector] {
        out.push(u8::from(text.is_some()));
        put_bytes(out, text.unwrap_or_default().as_bytes());
    }
    out.extend_from_slice(entry.body);
    let content = start + FRAME;
    // A frame's length fits 32 bits, and so does an entry made from one.
    let length = (out.len() - content) as u32;
    let check = crc32fast::hash(&out[content..]);
    out[start..start + 4].copy_from_slice(&length.to_le_bytes());
    out[start + 4..content].copy_from_slice(&check.to_le_bytes());
    out.len() - start
}

/// A sequence as it is stored in the log: 0 for none, otherwise one more. The highest possible
/// sequence cannot be one more, so it is stored in the place of sequence 0, which nobody uses.
fn stored_sequence(sequence: Option<u64>) -> u64 {
    match sequence {
        None | Some(0) => 0,
        Some(u64::MAX) => 1,
        Some(sequence) => sequence + 1,
    }
}

fn read_sequence(stored: u64) -> Option<u64> {
    match stored {
        0 => None,
        1 => Some(u64::MAX),
        stored => Some(stored - 1),
    }
}

impl Operation {
    const ALL: [Operation; 7] = [
        Operation::Publish,
        Operation::DeltaPublish,
        Operation::SowDeleteByFilter,
        Operation::SowDeleteByKeys,
        Operation::SowDeleteByData,
        Operation::Refused,
        Operation::Forgotten,
    ];

    fn code(self) -> u8 {
        self as u8 + 1
    }

    fn from_code(code: u8) -> Option<Self> {
        Operation::ALL
            .into_iter()
            .find(|operation| operation.code() == code)
    }
}

fn start(mut file: &File, path: &Path, length: u64) -> Result<u64, JournalError> {
    let fail = |source| JournalError::Io {
        doing: "start",
        path: path.to_owned(),
        source,
    };
    let mut begun = Vec::new();
    file.read_to_end(&mut begun).map_err(fail)?;
    if !MAGIC.starts_with(&begun) || begun.len() as u64 != length {
        return Err(JournalError::Foreign {
            path: path.to_owned(),
        });
    }
    file.write_all(&MAGIC[begun.len()..]).map_err(fail)?;
    Ok(MAGIC.len() as u64)
}

fn scan(
    file: &File,
    path: &Path,
    length: u64,
    visit: &mut impl FnMut(&Entry<'_>, u64),
) -> Result<u64, JournalError> {
    let fail = |source| JournalError::Io {
        doing: "read",
        path: path.to_owned(),
        source,
    };
    let mut magic = [0; MAGIC.len()];
    read_exact_at(file, &mut magic, 0).map_err(fail)?;
    if magic != *MAGIC {
        return Err(JournalError::Foreign {
            path: path.to_owned(),
        });
    }
    let mut at = MAGIC.len() as u64;
    let mut buffer: Vec<u8> = Vec::new();
    let mut used = 0;
    loop {
        let needed = announced(&buffer[used..]).unwrap_or(FRAME);
        if buffer.len() - used < needed {
            buffer.drain(..used);
            used = 0;
            let from = at + buffer.len() as u64;
            let left = usize::try_from(length - from).unwrap_or(usize::MAX);
            let missing = needed - buffer.len();
            if missing > left {
                return Ok(at);
            }
            let old = buffer.len();
            buffer.resize(old + missing.max(CHUNK).min(left), 0);
            read_exact_at(file, &mut buffer[old..], from).map_err(fail)?;
            continue;
        }
        let Some(entry) = checked(&buffer[used..used + needed]).filter(|_| needed > FRAME) else {
            // Only the last write can have been interrupted.
            let last = at + needed as u64 >= length;
            let zeros = buffer[used..].iter().all(|byte| *byte == 0);
            let more = at + ((buffer.len() - used) as u64) < length;
            if last || (zeros && !more) {
                return Ok(at);
            }
            return Err(JournalError::Damaged {
                path: path.to_owned(),
                at,
            });
        };
        used += needed;
        at += needed as u64;
        visit(&entry, at);
    }
}

fn announced(bytes: &[u8]) -> Option<usize> {
    let length = bytes.first_chunk::<4>().filter(|_| bytes.len() >= FRAME)?;
    Some(FRAME + u32::from_le_bytes(*length) as usize)
}

fn checked(bytes: &[u8]) -> Option<Entry<'_>> {
    let (check, content) = bytes.get(4..)?.split_first_chunk::<4>()?;
    (crc32fast::hash(content) == u32::from_le_bytes(*check)).then_some(())?;
    decode(content)
}

fn decode(content: &[u8]) -> Option<Entry<'_>> {
    let mut rest = content;
    let [code] = *take(&mut rest, 1)? else {
        return None;
    };
    let operation = Operation::from_code(code)?;
    let sequence = read_sequence(u64::from_le_bytes(take(&mut rest, 8)?.try_into().ok()?));
    let client_name = text(&mut rest)?;
    let topic = text(&mut rest)?;
    let mut optional = || {
        let there = *take(&mut rest, 1)?.first()? != 0;
        let text = text(&mut rest)?;
        Some(there.then_some(text))
    };
    let (sow_key, correlation_id, selector) = (optional()?, optional()?, optional()?);
    Some(Entry {
        operation,
        client_name,
        sequence,
        topic,
        sow_key,
        correlation_id,
        selector,
        body: rest,
    })
}

fn text<'a>(rest: &mut &'a [u8]) -> Option<&'a str> {
    let length = u32::from_le_bytes(take(rest, 4)?.try_into().ok()?);
    std::str::from_utf8(take(rest, length as usize)?).ok()
}

fn take<'a>(rest: &mut &'a [u8], length: usize) -> Option<&'a [u8]> {
    let (taken, left) = rest.split_at_checked(length)?;
    *rest = left;
    Some(taken)
}

fn put_number(out: &mut Vec<u8>, number: u64) {
    out.extend_from_slice(&number.to_le_bytes());
}

fn put_bytes(out: &mut Vec<u8>, bytes: &[u8]) {
    out.extend_from_slice(&(bytes.len() as u32).to_le_bytes());
    out.extend_from_slice(bytes);
}

#[cfg(unix)]
fn read_exact_at(file: &File, buffer: &mut [u8], offset: u64) -> io::Result<()> {
    std::os::unix::fs::FileExt::read_exact_at(file, buffer, offset)
}

#[cfg(not(unix))]
fn read_exact_at(file: &File, buffer: &mut [u8], offset: u64) -> io::Result<()> {
    let _ = (file, buffer, offset);
    Err(io::Error::new(
        io::ErrorKind::Unsupported,
        "journals need a Unix system",
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(sequence: u64, body: &[u8]) -> Entry<'_> {
        Entry {
            operation: Operation::Publish,
            client_name: "p",
            sequence: Some(sequence),
            topic: "orders",
            sow_key: Some("k"),
            correlation_id: None,
            selector: None,
            body,
        }
    }

    fn encoded(sequences: std::ops::RangeInclusive<u64>) -> Vec<u8> {
        let mut out = Vec::new();
        for sequence in sequences {
            encode(
                &mut out,
                &entry(sequence, format!("body {sequence}").as_bytes()),
            );
        }
        out
    }

    fn reopen(directory: &Path) -> (Journal, Vec<u64>) {
        let mut seen = Vec::new();
        let journal =
            Journal::open(directory, |entry, _| seen.push(entry.sequence.unwrap())).unwrap();
        (journal, seen)
    }

    #[test]
    fn entries_survive_a_restart_and_the_lock_guards_them() {
        let directory = tempfile::tempdir().unwrap();
        let (mut journal, seen) = reopen(directory.path());
        assert!(seen.is_empty());
        journal.append(&encoded(1..=3)).unwrap();
        let second = Journal::open(directory.path(), |_, _| ());
        assert!(matches!(second, Err(JournalError::Locked { .. })));
        drop(journal);
        let (mut journal, seen) = reopen(directory.path());
        assert_eq!(seen, [1, 2, 3]);
        journal.append(&encoded(4..=4)).unwrap();
        let read = read_journal(directory.path()).unwrap();
        let sequences: Vec<_> = read.iter().map(|entry| entry.sequence.unwrap()).collect();
        assert_eq!(sequences, [1, 2, 3, 4]);
        assert_eq!(
            (&*read[3].topic, &*read[3].bytes),
            ("orders", &b"body 4"[..])
        );
        assert_eq!(read[3].bookmark, format!("{}|4|", publisher_id("p")));
    }

    #[test]
    fn a_torn_end_is_cut_wherever_it_tears() {
        let whole = encoded(1..=3);
        let two = encoded(1..=2).len();
        for cut in two..whole.len() {
            let directory = tempfile::tempdir().unwrap();
            let (mut journal, _) = reopen(directory.path());
            journal.append(&whole[..cut]).unwrap();
            drop(journal);
            let (mut journal, seen) = reopen(directory.path());
            assert_eq!(seen, [1, 2], "torn at {cut}");
            journal.append(&encoded(9..=9)).unwrap();
            drop(journal);
            assert_eq!(reopen(directory.path()).1, [1, 2, 9]);
        }
    }

    #[test]
    fn a_flipped_byte_is_never_read_as_something_else() {
        let whole = encoded(1..=3);
        for at in 0..whole.len() {
            let directory = tempfile::tempdir().unwrap();
            let (mut journal, _) = reopen(directory.path());
            let mut bytes = whole.clone();
            bytes[at] ^= 0x10;
            journal.append(&bytes).unwrap();
            drop(journal);
            let mut seen = Vec::new();
            match Journal::open(directory.path(), |entry, _| seen.push(entry.sequence)) {
                Ok(_) | Err(JournalError::Damaged { .. }) => {}
                Err(other) => panic!("byte {at}: {other}"),
            }
            assert!(
                seen.iter().zip(1..).all(|(seen, n)| *seen == Some(n)),
                "byte {at}"
            );
            assert!(seen.len() < 3, "byte {at}");
        }
    }

    #[test]
    fn zeros_behind_the_end_are_cut_and_foreign_files_left_alone() {
        let directory = tempfile::tempdir().unwrap();
        let (mut journal, _) = reopen(directory.path());
        journal.append(&encoded(1..=2)).unwrap();
        journal.append(&[0; 5000]).unwrap();
        drop(journal);
        assert_eq!(reopen(directory.path()).1, [1, 2]);

        let path = directory.path().join(FILE_NAME);
        for foreign in [&b"hello"[..], b"a text file"] {
            std::fs::write(&path, foreign).unwrap();
            let refused = Journal::open(directory.path(), |_, _| ());
            assert!(matches!(refused, Err(JournalError::Foreign { .. })));
            assert_eq!(std::fs::read(&path).unwrap(), foreign);
        }
    }

    #[test]
    fn reading_goes_on_where_it_stopped_in_file_and_memory() {
        let directory = tempfile::tempdir().unwrap();
        let (file, _) = reopen(directory.path());
        for mut journal in [file, Journal::memory()] {
            let big = vec![7; 3 * CHUNK];
            let mut bytes = encoded(1..=100);
            encode(&mut bytes, &entry(101, &big));
            journal.append(&bytes).unwrap();
            for budget in [1, 50, 1000, 1 << 20] {
                let (mut from, mut seen) = (0, Vec::new());
                while from < journal.end() {
                    from = journal
                        .read(from, budget, |entry, _| {
                            seen.push((entry.sequence.unwrap(), entry.body.len()));
                            seen.len() % 7 != 0
                        })
                        .unwrap();
                }
                assert_eq!(seen.len(), 101, "budget {budget}");
                assert_eq!(seen[100], (101, big.len()));
            }
        }
    }

    /// 2^64 - 1 once came back as 2^64 - 2, so that after a restart its duplicate counted as a
    /// new message.
    #[test]
    fn every_sequence_is_itself_after_a_restart() {
        let ends = [1, 2, 1 << 63, u64::MAX - 2, u64::MAX - 1, u64::MAX];
        let directory = tempfile::tempdir().unwrap();
        let (mut journal, _) = reopen(directory.path());
        for sequence in ends {
            let mut bytes = Vec::new();
            encode(&mut bytes, &entry(sequence, b""));
            journal.append(&bytes).unwrap();
        }
        drop(journal);
        assert_eq!(reopen(directory.path()).1, ends);
    }

    #[test]
    fn every_operation_and_field_is_kept() {
        for operation in Operation::ALL {
            let entry = Entry {
                operation,
                client_name: "näme",
                sequence: None,
                topic: "",
                sow_key: None,
                correlation_id: Some(""),
                selector: Some("/id = 1"),
                body: b"\0\xff",
            };
            let mut out = Vec::new();
            let length = encode(&mut out, &entry);
            assert_eq!(announced(&out), Some(length));
            assert_eq!(checked(&out), Some(entry));
        }
    }
}
