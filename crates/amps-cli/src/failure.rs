//! Exit codes, and errors that people can act on.

use std::fmt;
use std::io;
use std::path::Path;
use std::process::ExitCode;

use amps_store::{OpenError, StoreError};
use serde_json::{Map, Value};

use crate::output::object;

/// What the process tells its caller, in order of precedence: if several apply, the first one
/// listed is the exit code.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Exit {
    /// The command line makes no sense.
    Usage,
    /// Another process owns the store.
    Locked,
    /// The store is damaged.
    Damaged,
    /// The file is not a store.
    NotAStore,
    /// A newer program wrote the store.
    NewerFormat,
    /// No space on the device, or a quota.
    NoSpace,
    /// A server refused the logon, and none had accepted one by the deadline.
    LogonRefused,
    /// Messages are left in the store (only `publish` and `drain`).
    Left,
    /// Messages were refused in this run (only `publish` and `drain`).
    Rejected,
    /// Anything else.
    Other,
    /// All went well.
    Ok,
}

impl Exit {
    /// The code, as `README.md` lists them.
    pub(crate) fn code(self) -> u8 {
        match self {
            Exit::Usage => 2,
            Exit::Locked => 4,
            Exit::Damaged => 3,
            Exit::NotAStore => 9,
            Exit::NewerFormat => 10,
            Exit::NoSpace => 8,
            Exit::LogonRefused => 7,
            Exit::Left => 5,
            Exit::Rejected => 6,
            Exit::Other => 1,
            Exit::Ok => 0,
        }
    }

    /// The same as a word, for programs.
    pub(crate) fn word(self) -> &'static str {
        match self {
            Exit::Usage => "usage",
            Exit::Locked => "locked",
            Exit::Damaged => "damaged",
            Exit::NotAStore => "not_a_store",
            Exit::NewerFormat => "newer_format",
            Exit::NoSpace => "no_space",
            Exit::LogonRefused => "logon_refused",
            Exit::Left => "left",
            Exit::Rejected => "rejected",
            Exit::Other => "other",
            Exit::Ok => "ok",
        }
    }
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        ExitCode::from(exit.code())
    }
}

/// Why a command failed: one paragraph that says what happened, to which file or server,
/// and what to do next.
#[derive(Debug)]
pub(crate) struct Failure {
    exit: Exit,
    paragraph: String,
}

impl Failure {
    pub(crate) fn new(exit: Exit, paragraph: impl Into<String>) -> Self {
        Failure {
            exit,
            paragraph: paragraph.into(),
        }
    }

    /// An error without a code of its own.
    pub(crate) fn other(paragraph: impl Into<String>) -> Self {
        Failure::new(Exit::Other, paragraph)
    }

    /// The reader of our output went away: nothing is wrong, but nobody listens.
    pub(crate) fn output(error: &io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::BrokenPipe => Failure::new(Exit::Ok, ""),
            _ => Failure::system(error, format!("cannot write the output: {error}")),
        }
    }

    /// The same when something else is known to be wrong, whose exit code may be more important.
    pub(crate) fn beside(self, known: Option<Failure>) -> Self {
        match known {
            Some(known) if self.is_silent() => known,
            Some(known) => Failure {
                exit: self.exit.min(known.exit),
                paragraph: format!("{known}; {self}"),
            },
            None => self,
        }
    }

    /// What the operating system refused. A lack of space has an exit code of its own, wherever
    /// it occurs.
    pub(crate) fn system(error: &io::Error, paragraph: impl Into<String>) -> Self {
        use io::ErrorKind::{FileTooLarge, QuotaExceeded, StorageFull};
        let exit = match error.kind() {
            StorageFull | QuotaExceeded | FileTooLarge => Exit::NoSpace,
            _ => Exit::Other,
        };
        Failure::new(exit, paragraph)
    }

    /// A store that could not be opened.
    pub(crate) fn open(error: &OpenError) -> Self {
        // The library makes a store of such a file, but a command that wants what is in it finds
        // none.
        if let OpenError::Missing { path } = error
            && path.symlink_metadata().is_ok_and(|found| found.is_file())
        {
            let text = format!(
                "{} is not a publish store: it is empty, or the creation of one did not come far; \
                 check the path",
                path.display()
            );
            return Failure::new(Exit::NotAStore, text);
        }
        let exit = match error {
            OpenError::Locked { .. } => Exit::Locked,
            OpenError::Damaged { .. }
            | OpenError::NoSuperblock { .. }
            | OpenError::Broken { .. } => Exit::Damaged,
            OpenError::NotAStore { .. } => Exit::NotAStore,
            OpenError::Version { .. } | OpenError::Features { .. } => Exit::NewerFormat,
            OpenError::NoSpace { .. } => Exit::NoSpace,
            OpenError::Options(_) => Exit::Usage,
            _ => Exit::Other,
        };
        let kind = match error {
            OpenError::Io { error, .. } => Some(error.kind()),
            _ => None,
        };
        let hint = match kind {
            Some(io::ErrorKind::NotFound) => "; check that the directory exists",
            Some(io::ErrorKind::PermissionDenied) => "; check that it may be read and written",
            Some(io::ErrorKind::OutOfMemory) => {
                "; allow the process more address space (ulimit -v), or choose a smaller capacity"
            }
            _ => "",
        };
        Failure::new(exit, format!("{error}{hint}"))
    }

    /// An open store that could not do its work.
    pub(crate) fn store(path: &Path, error: &StoreError) -> Self {
        let exit = match error {
            StoreError::NoSpace { .. } => Exit::NoSpace,
            StoreError::Damaged { .. } => Exit::Damaged,
            _ => Exit::Other,
        };
        Failure::new(exit, format!("store {}: {error}", path.display()))
    }

    pub(crate) fn exit(&self) -> Exit {
        self.exit
    }

    /// The same as a JSON object.
    pub(crate) fn object(&self) -> Map<String, Value> {
        object! {
            "event": "error",
            "error": self.exit.word(),
            "code": self.exit.code(),
            "message": self.paragraph.as_str(),
        }
    }

    pub(crate) fn is_silent(&self) -> bool {
        self.paragraph.is_empty()
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.paragraph)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn precedence_is_that_of_the_readme() {
        let mut all = [
            Exit::Ok,
            Exit::Other,
            Exit::Rejected,
            Exit::Left,
            Exit::LogonRefused,
            Exit::NoSpace,
            Exit::NewerFormat,
            Exit::NotAStore,
            Exit::Damaged,
            Exit::Locked,
            Exit::Usage,
        ];
        all.sort();
        let codes: Vec<u8> = all.iter().map(|e| e.code()).collect();
        assert_eq!(codes, [2, 4, 3, 9, 10, 8, 7, 5, 6, 1, 0]);
    }
}
