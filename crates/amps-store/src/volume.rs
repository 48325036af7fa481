//! What lies under the file: file systems on which the promises cannot be kept, and what can be
//! seen of a file from outside.

use std::fs::File;

/// `f_type` of statfs(2), by the numbers of Linux's `magic.h`. FUSE is among them because what
/// is behind it cannot be known; sshfs and most cloud drives are.
const NETWORKS: [(u32, &str); 13] = [
    (0x6969, "NFS"),
    (0x517B, "SMB"),
    (0xFF53_4D42, "CIFS"),
    (0xFE53_4D42, "SMB2"),
    (0x564C, "NCP"),
    (0x7375_7245, "Coda"),
    (0x5346_414F, "AFS"),
    (0x6B41_4653, "AFS"),
    (0x0102_1997, "9P"),
    (0x00C3_6400, "Ceph"),
    (0x0BD0_0BD0, "Lustre"),
    (0x1983_0326, "BeeGFS"),
    (0x6573_5546, "FUSE"),
];

/// The name of the network file system that a file is on, if it is on one.
pub(crate) fn network(file: &File) -> Option<&'static str> {
    // A file system that cannot be asked is none that is known to be wrong.
    named(rustix::fs::fstatfs(file).ok()?.f_type)
}

/// ext2 to ext4, xfs, f2fs and tmpfs: on these `stat` names a file's device as `/proc/locks` does.
/// btrfs makes numbers up for its subvolumes, and an overlay may show those of what lies below.
const TRUE_DEVICES: [u32; 4] = [0xEF53, 0x5846_5342, 0xF2F5_2010, 0x0102_1994];

/// Whether a file's device and inode are the ones by which the kernel names its locks.
pub(crate) fn has_true_devices(file: &File) -> bool {
    rustix::fs::fstatfs(file).is_ok_and(|at| TRUE_DEVICES.contains(&(at.f_type as u32)))
}

fn named(magic: impl TryInto<i64>) -> Option<&'static str> {
    // The kernel's word is signed on some machines: a number above 2^31 may come negative.
    let magic = magic.try_into().ok()? as u32;
    let known = NETWORKS.iter().find(|(number, _)| *number == magic);
    known.map(|(_, name)| *name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn network_file_systems_are_known_by_their_number() {
        assert_eq!(named(0x6969_i64), Some("NFS"));
        assert_eq!(named(0xFF53_4D42_u32), Some("CIFS"));
        assert_eq!(named(0xFE53_4D42_u32.cast_signed()), Some("SMB2"));
        // ext4, xfs, btrfs, tmpfs, overlayfs.
        for local in [
            0xEF53_i64,
            0x5846_5342,
            0x9123_683E,
            0x0102_1994,
            0x794C_7630,
        ] {
            assert_eq!(named(local), None);
        }
        let file = tempfile::tempfile().unwrap();
        assert_eq!(network(&file), None, "tests run on a local disk");
    }
}
