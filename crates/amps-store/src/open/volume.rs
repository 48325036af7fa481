//! What lies under the file: file systems on which the promises cannot be kept, and what can be
//! seen of a file from outside.

use std::fmt;
use std::fs::File;
use std::io;
use std::path::Path;

/// A file system on which a store cannot keep all that it promises.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Volume {
    /// A file system of this name behind a network, or behind a program (FUSE): neither locks nor
    /// syncs can be relied on.
    Network(&'static str),
    /// A file system of this name in memory: a store survives its process there, but no power cut
    /// and no restart.
    Memory(&'static str),
    /// A file system of this name that lays a writable layer over others, like that of a
    /// container: what is in the layer is lost with the container.
    Layered(&'static str),
}

impl Volume {
    /// The file system of the file at `path`; `None`: it can keep all promises, as far as is
    /// known.
    ///
    /// # Errors
    /// The file cannot be opened.
    pub fn of(path: impl AsRef<Path>) -> io::Result<Option<Volume>> {
        File::open(path).map(|file| volume(&file))
    }

    /// Its name, `NFS` for instance.
    pub fn name(self) -> &'static str {
        match self {
            Volume::Network(name) | Volume::Memory(name) | Volume::Layered(name) => name,
        }
    }
}

impl fmt::Display for Volume {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let what = match self {
            Volume::Network(_) => {
                "where neither its lock nor what it syncs can be relied on; put it on a local disk"
            }
            Volume::Memory(_) => {
                "in memory, where it survives no power cut and no restart of the machine; put it on \
                 a disk"
            }
            Volume::Layered(_) => {
                "a layer over other files, which ends with the container that it belongs to; put it \
                 on a volume of its own"
            }
        };
        write!(f, "{}, {what}", self.name())
    }
}

/// `f_type` of statfs(2), by the numbers of Linux's `magic.h`. FUSE is among them because it
/// cannot be known what is behind it; sshfs and most cloud drives use it.
const KNOWN: [(u32, Volume); 18] = [
    (0x6969, Volume::Network("NFS")),
    (0x517B, Volume::Network("SMB")),
    (0xFF53_4D42, Volume::Network("CIFS")),
    (0xFE53_4D42, Volume::Network("SMB2")),
    (0x564C, Volume::Network("NCP")),
    (0x7375_7245, Volume::Network("Coda")),
    (0x5346_414F, Volume::Network("AFS")),
    (0x6B41_4653, Volume::Network("AFS")),
    (0x0102_1997, Volume::Network("9P")),
    (0x00C3_6400, Volume::Network("Ceph")),
    (0x0BD0_0BD0, Volume::Network("Lustre")),
    (0x1983_0326, Volume::Network("BeeGFS")),
    (0x4750_4653, Volume::Network("GPFS")),
    (0x6573_5546, Volume::Network("FUSE")),
    (0x0102_1994, Volume::Memory("tmpfs")),
    (0x8584_58F6, Volume::Memory("ramfs")),
    (0x9584_58F6, Volume::Memory("hugetlbfs")),
    (0x794C_7630, Volume::Layered("overlay")),
];

/// The file system that a file is on, if it is one of those.
pub(crate) fn volume(file: &File) -> Option<Volume> {
    // A file system that cannot be asked is not known to be wrong.
    named(rustix::fs::fstatfs(file).ok()?.f_type)
}

/// ext2 to ext4, xfs, f2fs and tmpfs. On these, `stat` names a file's device as `/proc/locks`
/// does; btrfs makes numbers up for its subvolumes, and an overlay may show those of what lies
/// below.
const TRUE_DEVICES: [u32; 4] = [0xEF53, 0x5846_5342, 0xF2F5_2010, 0x0102_1994];

/// Whether a file's device and inode are the ones by which the kernel names its locks.
pub(crate) fn has_true_devices(file: &File) -> bool {
    rustix::fs::fstatfs(file).is_ok_and(|at| TRUE_DEVICES.contains(&(at.f_type as u32)))
}

fn named(magic: impl TryInto<i64>) -> Option<Volume> {
    // On some machines the kernel's number is signed, so that one above 2^31 may be negative.
    let magic = magic.try_into().ok()? as u32;
    let known = KNOWN.iter().find(|(number, _)| *number == magic);
    known.map(|(_, volume)| *volume)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn file_systems_are_known_by_their_number() {
        assert_eq!(named(0x6969_i64), Some(Volume::Network("NFS")));
        assert_eq!(named(0xFF53_4D42_u32), Some(Volume::Network("CIFS")));
        assert_eq!(
            named(0xFE53_4D42_u32.cast_signed()),
            Some(Volume::Network("SMB2"))
        );
        assert_eq!(
            named(0x8584_58F6_u32.cast_signed()),
            Some(Volume::Memory("ramfs"))
        );
        assert_eq!(named(0x794C_7630_i64), Some(Volume::Layered("overlay")));
        // ext4, xfs, btrfs.
        for local in [0xEF53_i64, 0x5846_5342, 0x9123_683E] {
            assert_eq!(named(local), None);
        }
    }

    #[test]
    fn a_file_in_shared_memory_is_in_memory() {
        let file = tempfile::tempfile_in("/dev/shm").unwrap();
        assert_eq!(volume(&file), Some(Volume::Memory("tmpfs")));
    }
}
