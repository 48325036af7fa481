//! How files that hold messages are created: readable by their owner alone, unless told
//! otherwise.

use std::fs::{File, Metadata, OpenOptions, Permissions};
use std::io;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt, fchown};
use std::path::Path;

use rustix::io::Errno;

/// Nobody else may read what an application publishes.
pub(crate) const PRIVATE: u32 = 0o600;

/// How a file is created: with mode 0600 unless told otherwise, and never more open to others
/// than the file that it is a copy of. A file that exists keeps its own mode.
#[derive(Clone, Debug, Default)]
#[must_use]
pub struct NewFile {
    mode: Option<u32>,
    source: Option<Source>,
}

/// What a copy takes over from its source.
#[derive(Clone, Copy, Debug)]
struct Source {
    mode: u32,
    user: u32,
    group: u32,
}

impl NewFile {
    /// Readable by its owner alone, whoever creates it.
    pub fn new() -> Self {
        Self::default()
    }

    /// Gives it this mode, whatever the umask says. For a [`copy_of`](Self::copy_of) something it
    /// is reduced to what the source allows.
    pub fn mode(mut self, mode: u32) -> Self {
        self.mode = Some(mode);
        self
    }

    /// Nobody may read the copy who could not read this file. Created by root, it gets the same
    /// owner and group.
    pub fn copy_of(mut self, source: &Metadata) -> Self {
        self.source = Some(Source {
            mode: source.mode(),
            user: source.uid(),
            group: source.gid(),
        });
        self
    }

    /// Creates the file for reading and writing, at a place where nothing is.
    ///
    /// # Errors
    /// Something is there already, or the operating system refused. A file that could be created
    /// but not be given its mode is removed again.
    pub fn create(&self, path: &Path) -> io::Result<File> {
        let mut options = OpenOptions::new();
        options
            .read(true)
            .write(true)
            .create_new(true)
            .mode(PRIVATE);
        let file = options.open(path)?;
        if let Err(error) = self.apply(&file) {
            // It is empty. If it cannot be removed, a warning says so.
            if let Err(left) = std::fs::remove_file(path) {
                tracing::warn!(path = %path.display(), error = %left, "a new file could not be removed");
            }
            return Err(error);
        }
        Ok(file)
    }

    /// Gives the intended mode and owner to a file that was just created for its owner alone.
    pub(crate) fn apply(&self, file: &File) -> io::Result<()> {
        if let Some(source) = self.source
            && rustix::process::geteuid().is_root()
        {
            take_owner(file, source)?;
        }
        let metadata = file.metadata()?;
        let mode = match (self.mode, self.source) {
            (None, None) => return Ok(()),
            (mode, None) => mode.unwrap_or(PRIVATE),
            (mode, Some(source)) => {
                let same_group = metadata.gid() == source.group;
                allowed(mode.unwrap_or(PRIVATE), source.mode, same_group)
            }
        };
        match metadata.mode() & 0o7777 == mode {
            true => Ok(()),
            false => file.set_permissions(Permissions::from_mode(mode)),
        }
    }
}

fn take_owner(file: &File, source: Source) -> io::Result<()> {
    let metadata = file.metadata()?;
    if (metadata.uid(), metadata.gid()) == (source.user, source.group) {
        return Ok(());
    }
    match fchown(file, Some(source.user), Some(source.group)) {
        // Not every file system has owners, and not every root may change them. The copy stays
        // root's then, and nobody else can read it because of that.
        Err(error) if is_refusal(&error) => {
            tracing::warn!(%error, "a copy cannot be given the owner of its source");
            Ok(())
        }
        given => given,
    }
}

fn is_refusal(error: &io::Error) -> bool {
    [Errno::PERM, Errno::INVAL, Errno::OPNOTSUPP]
        .iter()
        .any(|errno| error.raw_os_error() == Some(errno.raw_os_error()))
}

/// What a source allows of the mode of its copy: everything to its owner, and to its group and
/// all others what they may do with the source. If the copy has another group, the members of
/// that group count as others.
fn allowed(mode: u32, source: u32, same_group: bool) -> u32 {
    let others = source & 0o007;
    let group = match same_group {
        true => source & 0o070,
        false => others << 3,
    };
    mode & (0o700 | group | others)
}

/// Why a file cannot be created with this mode, if it cannot.
pub(crate) fn check_mode(mode: u32) -> Result<(), String> {
    match mode & !0o777 == 0 && mode & PRIVATE == PRIVATE {
        true => Ok(()),
        false => Err(format!(
            "a file mode of {mode:o}: it is 600 to 777 in octal, and its owner reads and writes"
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_copy_is_never_more_open_than_its_source() {
        for (mode, source, same_group, copy) in [
            (0o600, 0o666, true, 0o600),
            (0o644, 0o600, true, 0o600),
            (0o644, 0o640, true, 0o640),
            (0o664, 0o644, true, 0o644),
            (0o660, 0o660, true, 0o660),
            // What another group could do with the source, everybody could.
            (0o660, 0o660, false, 0o600),
            (0o664, 0o664, false, 0o644),
            // Its owner must be able to use it.
            (0o600, 0o400, true, 0o600),
        ] {
            assert_eq!(
                allowed(mode, source, same_group),
                copy,
                "{mode:o} {source:o}"
            );
        }
        assert!(check_mode(0o640).is_ok() && check_mode(0o777).is_ok());
        for mode in [0, 0o400, 0o440, 0o1600, 0o4755] {
            assert!(check_mode(mode).is_err(), "{mode:o}");
        }
    }
}
