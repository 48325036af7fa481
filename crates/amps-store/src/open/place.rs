//! Where an open store's file is: people may move it, or remove it.

use std::fs::Metadata;
use std::io;
use std::os::unix::fs::MetadataExt;

/// Where the file of an open store is. The file is the store, whatever its name is: a store that
/// was renamed goes on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Place {
    /// At the path it was opened by.
    #[default]
    There,
    /// Somewhere else, and nothing is at that path.
    Renamed,
    /// Somewhere else, and another file is at that path.
    Replaced,
    /// It has no name any more: the last one was removed, or another file was moved over it. What
    /// it holds is lost with this process, unless [`Store::evacuate`](crate::Store::evacuate)
    /// saves it.
    Gone,
}

/// What stat(2) says about a file, as far as it matters here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Seen {
    device: u64,
    inode: u64,
    links: u64,
}

impl Seen {
    pub(super) fn of(metadata: &Metadata) -> Self {
        Seen {
            device: metadata.dev(),
            inode: metadata.ino(),
            links: metadata.nlink(),
        }
    }
}

/// Where a file is, judged by its own metadata and by those of its path.
///
/// # Errors
/// The path cannot be looked at.
pub(super) fn judge(ours: io::Result<Seen>, path: io::Result<Seen>) -> io::Result<Place> {
    let ours = match ours {
        // A file server that forgot the file.
        Err(error) if error.kind() == io::ErrorKind::StaleNetworkFileHandle => {
            return Ok(Place::Gone);
        }
        ours => ours?,
    };
    let at_path = match path {
        Ok(seen) => Some((seen.device, seen.inode)),
        Err(error) if is_absence(&error) || ours.links == 0 => None,
        Err(error) => return Err(error),
    };
    Ok(match at_path {
        // Whatever the link count says: not every file system keeps one.
        Some(seen) if seen == (ours.device, ours.inode) => Place::There,
        _ if ours.links == 0 => Place::Gone,
        Some(_) => Place::Replaced,
        None => Place::Renamed,
    })
}

/// Whether an error says that nothing is at a path.
fn is_absence(error: &io::Error) -> bool {
    use io::ErrorKind::{NotADirectory, NotFound};
    // The error for a link that leads to itself has no `ErrorKind`.
    matches!(error.kind(), NotFound | NotADirectory)
        || error.raw_os_error() == Some(rustix::io::Errno::LOOP.raw_os_error())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_gone_only_without_any_name() {
        let file = |inode, links| Seen {
            device: 7,
            inode,
            links,
        };
        let errno = |errno: rustix::io::Errno| -> io::Error { errno.into() };
        use rustix::io::Errno;
        for (ours, path, place) in [
            (file(1, 1), Ok(file(1, 1)), Place::There),
            (file(1, 2), Ok(file(1, 2)), Place::There),
            // A file system that does not count links.
            (file(1, 0), Ok(file(1, 0)), Place::There),
            (file(1, 1), Err(Errno::NOENT), Place::Renamed),
            (file(1, 1), Err(Errno::NOTDIR), Place::Renamed),
            (file(1, 1), Err(Errno::LOOP), Place::Renamed),
            (file(1, 1), Ok(file(2, 1)), Place::Replaced),
            (file(1, 0), Err(Errno::NOENT), Place::Gone),
            (file(1, 0), Err(Errno::ACCESS), Place::Gone),
            // Another file was moved over it.
            (file(1, 0), Ok(file(2, 1)), Place::Gone),
        ] {
            let judged = judge(Ok(ours), path.map_err(errno)).unwrap();
            assert_eq!(judged, place, "{ours:?}, {path:?}");
        }
        // The same number on another device is another file.
        let elsewhere = Seen {
            device: 8,
            ..file(1, 1)
        };
        assert_eq!(
            judge(Ok(file(1, 1)), Ok(elsewhere)).unwrap(),
            Place::Replaced
        );
        // What cannot be determined is an error, not a guess.
        assert!(judge(Ok(file(1, 1)), Err(errno(Errno::ACCESS))).is_err());
        assert!(judge(Err(errno(Errno::IO)), Ok(file(1, 1))).is_err());
        let stale = judge(Err(errno(Errno::STALE)), Err(errno(Errno::STALE)));
        assert_eq!(stale.unwrap(), Place::Gone);
    }
}
