//! The file as a whole, and the headers of its segments.

use super::*;

pub(super) const FILES: [Row; 12] = [
    ("F1", || {
        assert!(matches!(Image(vec![]).header(), Err(Refusal::NotCreated)));
        assert!(matches!(
            Image(vec![0; 99_999]).header(),
            Err(Refusal::NotCreated)
        ));
        // The first superblock in part, stamps of free segments, and zeros.
        let mut image = Image::new();
        image.stamp(0, SegmentHeader::Free);
        for segment in 0..SEGMENTS {
            let at = SEGMENTS_AT + segment * SIZE;
            image.put(at, &SegmentHeader::Free.encode(KEY, at, 0));
        }
        image.put(BLOCK, &[0; 2 * BLOCK as usize]);
        for kept in (0..BLOCK as usize).step_by(512) {
            image.put(0, &superblock().encode());
            image.put(kept as u64, &vec![0; BLOCK as usize - kept]);
            assert!(matches!(image.header(), Err(Refusal::NotCreated)), "{kept}");
        }
        // Nothing else counts as that, however short it is: it belongs to somebody, and stays as
        // it is.
        let is_kept = |bytes: &[u8]| {
            let header = Image(bytes.to_vec()).header();
            matches!(
                header,
                Err(Refusal::NotAStore(_) | Refusal::NoSuperblock(_))
            )
        };
        assert!(is_kept(b"9 bytes.\n") && is_kept(&superblock().encode()[..100]));
        let whole = image.0.clone();
        for at in [1, BLOCK, SEGMENTS_AT + 64, SEGMENTS_AT + SIZE - 1] {
            let mut bytes = whole.clone();
            bytes[at as usize] = 1;
            assert!(is_kept(&bytes), "a byte at {at}");
        }
        // A stamp with an ordinal or a generation was made after the superblocks.
        for used in [
            SegmentHeader::Free,
            SegmentHeader::Used { first_ordinal: 1 },
        ] {
            let generation = u64::from(used == SegmentHeader::Free);
            let mut bytes = whole.clone();
            let stamp = used.encode(KEY, SEGMENTS_AT, generation);
            bytes[SEGMENTS_AT as usize..][..64].copy_from_slice(&stamp);
            assert!(is_kept(&bytes));
        }
    }),
    ("F2", || {
        for copy in [0, BLOCK] {
            let mut image = Image::new();
            image.flip(copy + 70);
            assert_eq!(image.header().unwrap(), (superblock(), true));
        }
    }),
    ("F3", || {
        let newer = Superblock {
            counter: 2,
            grant: 9,
            ..superblock()
        };
        let mut image = Image::new();
        image.superblocks(&superblock(), &newer);
        assert_eq!(image.header().unwrap(), (newer.clone(), true));
        image.superblocks(&newer, &superblock());
        assert_eq!(image.header().unwrap(), (newer, true));
        assert_eq!(Image::new().header().unwrap(), (superblock(), false));
        // No store writes two copies with one counter; the second copy counts.
        let other = Superblock {
            grant: 9,
            ..superblock()
        };
        image.superblocks(&superblock(), &other);
        assert_eq!(image.header().unwrap(), (other, true));
    }),
    ("F4", || {
        let patched = |at: usize, value: u32| {
            let mut bytes = superblock().encode();
            bytes[at..at + 4].copy_from_slice(&value.to_le_bytes());
            let crc = crc32fast::hash(&bytes[..4092]);
            bytes[4092..].copy_from_slice(&crc.to_le_bytes());
            // In one copy or in both: the other one must not be used, and nothing written over
            // this one.
            [&[0][..], &[BLOCK], &[0, BLOCK]].map(|copies| {
                let mut image = Image::new();
                copies.iter().for_each(|copy| image.put(*copy, &bytes));
                image.header()
            })
        };
        for version in [0, 3] {
            for refused in patched(8, version) {
                assert!(matches!(refused, Err(Refusal::Version(v)) if v == version));
            }
        }
        for refused in patched(12, 1) {
            assert!(matches!(refused, Err(Refusal::Features(1))));
        }
    }),
    ("F5", || {
        let mut image = Image::new();
        image.flip(70);
        image.flip(BLOCK + 70);
        image.flip(IDENTITY_AT + 70);
        for segment in 0..SEGMENTS {
            image.put(SEGMENTS_AT + segment * SIZE + 4, b"SEG2");
        }
        assert!(matches!(image.header(), Err(Refusal::NotAStore(_))));
        image.put(0, &[0; 2 * BLOCK as usize]);
        assert!(matches!(image.header(), Err(Refusal::NotAStore(why)) if why.contains("blank")));
        // A single header that no record fits.
        image.stamp(3, SegmentHeader::Free);
        assert!(matches!(image.header(), Err(Refusal::NotAStore(_))));
    }),
    ("F6", || {
        for bad in [
            Superblock {
                grant: 1 << 63,
                ..superblock()
            },
            Superblock {
                segment_size: 4096,
                ..superblock()
            },
            Superblock {
                segment_size: 8192 + 8,
                ..superblock()
            },
            Superblock {
                segment_size: 1 << 28,
                ..superblock()
            },
            Superblock {
                segments: 0,
                ..superblock()
            },
            Superblock {
                segments: 7,
                ..superblock()
            },
            Superblock {
                cap_segments: 5,
                segments: 5,
                ..superblock()
            },
            Superblock {
                cap_segments: 1 << 40,
                ..superblock()
            },
        ] {
            let mut image = Image::new();
            image.superblocks(&bad, &bad);
            assert!(
                matches!(image.header(), Err(Refusal::NoSuperblock(_))),
                "{bad:?}"
            );
        }
    }),
    ("F7", || {
        let mut image = Image::new();
        image.0.truncate((SEGMENTS_AT + 4 * SIZE + 100) as usize);
        let damaged = image.recover().damaged;
        assert_eq!(damaged.len(), 1);
        assert_eq!(
            (damaged[0].offset, damaged[0].bytes),
            (SEGMENTS_AT + 4 * SIZE, 2 * SIZE)
        );
    }),
    ("F8", || {
        let mut image = Image::new();
        image.publish(records_at(0), 1, 1);
        image.0.resize((SEGMENTS_AT + 7 * SIZE) as usize, 0xAB);
        let recovered = image.recover();
        assert_eq!((recovered.last_ordinal, recovered.damaged), (1, vec![]));
    }),
    ("F9", || {
        let retired = Superblock {
            retired: true,
            ..superblock()
        };
        let mut image = Image::new();
        image.superblocks(&retired, &retired);
        assert_eq!(image.header().unwrap(), (retired, false));
        let superseded = Superblock {
            superseded: true,
            ..superblock()
        };
        assert!(superseded.is_given_up() && !superblock().is_given_up());
        image.superblocks(&superseded, &superseded);
        assert_eq!(image.header().unwrap(), (superseded, false));
    }),
    ("F10", || {
        let is_one = |image: &Image| matches!(image.header(), Err(Refusal::NoSuperblock(_)));
        let mut image = Image::new();
        image.publish(records_at(2), 1, 1);
        image.flip(70);
        image.flip(BLOCK + 70);
        assert!(is_one(&image));
        image.put(0, &[0; 2 * BLOCK as usize]);
        assert!(is_one(&image));
        let found = stand_in(&image, image.0.len() as u64).unwrap().unwrap();
        assert_eq!(
            (found.superblock.key, found.superblock.segment_size),
            (KEY, SIZE)
        );
        assert_eq!(
            (found.superblock.segments, found.headers),
            (SEGMENTS, SEGMENTS)
        );
        // The others are damaged in the same way and agree on another key, but no record fits it.
        for segment in (0..SEGMENTS).filter(|s| *s != 2) {
            image.flip(SEGMENTS_AT + segment * SIZE + 30);
        }
        let found = stand_in(&image, image.0.len() as u64).unwrap().unwrap();
        assert_eq!((found.superblock.key, found.foreign), (KEY, SEGMENTS - 1));
        // A copy of another version counts all the same (F4).
        let mut newer = superblock().encode();
        newer[8] = 3;
        let crc = crc32fast::hash(&newer[..4092]);
        newer[4092..].copy_from_slice(&crc.to_le_bytes());
        image.put(0, &newer);
        assert!(matches!(image.header(), Err(Refusal::Version(3))));
    }),
    ("F11", || {
        // What stands behind byte 889 means nothing in version 1.
        let mut bytes = superblock().encode();
        bytes[8] = 1;
        bytes[890..1300].fill(0xFF);
        let crc = crc32fast::hash(&bytes[..4092]);
        bytes[4092..].copy_from_slice(&crc.to_le_bytes());
        let mut image = Image::new();
        image.put(0, &bytes);
        image.put(BLOCK, &bytes);
        let old = image.header().unwrap().0;
        assert_eq!((old.version, old.start, old.durable), (1, 0, 0));
        assert_eq!((old.segments_at, old.opening), (8192, Opening::default()));
        assert_eq!(old.identity(), None);
        // In version 2 it must have its form.
        let odd = |patch: &dyn Fn(&mut [u8])| {
            let mut bytes = superblock().encode();
            patch(&mut bytes);
            let crc = crc32fast::hash(&bytes[..4092]);
            bytes[4092..].copy_from_slice(&crc.to_le_bytes());
            let mut image = Image::new();
            image.put(0, &bytes);
            image.put(BLOCK, &bytes);
            image.header().map(|h| h.0)
        };
        let damaged = |header| matches!(header, Err(Refusal::NoSuperblock(_)));
        assert!(damaged(odd(&|b| b[892] = 1)));
        assert!(damaged(odd(&|b| b[892] = 4)));
        assert!(damaged(odd(&|b| b[903] = 0x80)));
        assert!(damaged(odd(&|b| b[911] = 0x80)));
        assert!(damaged(odd(&|b| b[920] = 1)));
        assert!(damaged(odd(&|b| b[948] = 65)));
        // What is reserved is kept.
        let kept = odd(&|b| b[1016..1288].fill(7)).unwrap();
        assert_eq!(kept.encode()[1016..1288], [7; 272]);
        assert!(odd(&|b| b[1288] = 1).is_ok());
    }),
    ("F12", || {
        let lacks = |image: &Image| {
            let header = read_header(image, image.0.len() as u64).unwrap();
            (header.lacks_identity, header.repair)
        };
        let mut image = Image::new();
        assert_eq!(lacks(&image), (false, false));
        image.flip(IDENTITY_AT + 100);
        assert_eq!(lacks(&image), (true, false));
        image.put(IDENTITY_AT, &[0; BLOCK as usize]);
        assert_eq!(lacks(&image), (true, false));
        let other = Identity {
            store_id: 2,
            ..superblock().identity().unwrap()
        };
        assert_eq!(Identity::decode(&other.encode()), Some(other.clone()));
        image.put(IDENTITY_AT, &other.encode());
        assert_eq!(lacks(&image), (true, false));
    }),
];

pub(super) const HEADERS: [Row; 5] = [
    ("S1", || {
        let mut image = Image::new();
        image.stamp(0, SegmentHeader::Free);
        let recovered = image.recover();
        assert_eq!((recovered.last_ordinal, recovered.chain.len()), (0, 0));
        // The ordinal of a free segment means nothing.
        let mut image = Image::new();
        image.publish(records_at(0), 1, 1);
        let mut stamp = SegmentHeader::Used { first_ordinal: 5 }.encode(KEY, SEGMENTS_AT, 1);
        stamp[24] = 0;
        let mut crc = crc32fast::Hasher::new_with_initial(seed(KEY, SEGMENTS_AT));
        crc.update(&stamp[4..]);
        stamp[..4].copy_from_slice(&crc.finalize().to_le_bytes());
        image.put(SEGMENTS_AT, &stamp);
        let recovered = image.recover();
        // It is searched all the same.
        assert_eq!(
            (recovered.last_ordinal, recovered.earlier_laps.len()),
            (1, 0)
        );
    }),
    ("S2", || {
        let mut image = Image::new();
        image.publish(records_at(0), 2, 2);
        image.used(0, 2);
        image.used(3, 1);
        image.publish(records_at(3), 1, 1);
        let recovered = image.recover();
        let order: Vec<usize> = recovered.chain.iter().map(|c| c.segment).collect();
        assert_eq!((order, recovered.last_ordinal), (vec![3, 0], 2));
        let odd = |patch: &dyn Fn(&mut [u8])| {
            let mut image = Image::new();
            let at = image.publish(records_at(0), 1, 1);
            image.mark(at, 2, &durable(1));
            let stamp = &mut image.0[SEGMENTS_AT as usize..][..64];
            patch(stamp);
            let mut crc = crc32fast::Hasher::new_with_initial(seed(KEY, SEGMENTS_AT));
            crc.update(&stamp[4..]);
            stamp[..4].copy_from_slice(&crc.finalize().to_le_bytes());
            let recovered = image.recover();
            (recovered.last_ordinal, recovered.ignored.len())
        };
        // Neither free nor used, or with an impossible ordinal: damaged (S3).
        assert_eq!(odd(&|b| b[24] = 2), (2, 1));
        assert_eq!(odd(&|b| b[8] = 0), (2, 1));
        assert_eq!(odd(&|b| b[15] = 0x80), (2, 1));
        // Bytes and a generation that mean nothing.
        assert_eq!(odd(&|b| b[16..24].fill(0xFF)), (2, 0));
        assert_eq!(odd(&|b| b[25..64].fill(0xFF)), (2, 0));
    }),
    ("S3", || {
        let mut image = Image::new();
        image.publish(records_at(0), 1, 1);
        image.flip(SEGMENTS_AT + 9);
        let recovered = image.recover();
        assert_eq!((recovered.damaged.len(), recovered.ignored.len()), (0, 1));
        assert_eq!(recovered.last_ordinal, 1);
        // Of an earlier lap.
        image.start(2);
        let recovered = image.recover();
        assert_eq!((recovered.damaged.len(), recovered.ignored.len()), (0, 0));
        assert_eq!((recovered.last_ordinal, recovered.chain.len()), (1, 0));
    }),
    ("S4", || {
        let mut image = Image::new();
        let at = records_at(0);
        image.publish(at, 1, 1);
        image.flip(SEGMENTS_AT + 9);
        image.flip(at + 50);
        let recovered = image.recover();
        assert_eq!(recovered.damaged[0].offset, SEGMENTS_AT);
        // The closing mark is where it should be, so the log is complete without that segment.
        let closed = Superblock {
            closed_at: 2,
            ..superblock()
        };
        let mut image = Image::new();
        image.superblocks(&closed, &closed);
        let at = image.publish(records_at(0), 1, 1);
        let clean = Mark {
            clean: true,
            ..durable(1)
        };
        image.mark(at, 2, &clean);
        image.flip(SEGMENTS_AT + 3 * SIZE + 9);
        let recovered = image.recover();
        assert_eq!((recovered.damaged.len(), recovered.ignored.len()), (0, 1));
        assert_eq!(recovered.stop, Stop::CleanClose);
    }),
    ("S5", || {
        let mut image = Image::new();
        let at = image.publish(records_at(0), 1, 1);
        image.publish(at, 2, 2);
        image.used(1, 3);
        image.publish(records_at(1), 3, 3);
        assert_eq!(image.recover().chain.len(), 2);
        image.start(3);
        // It is opened again, and the power failed before its header was written.
        let lap = image.mark(records_at(0), 4, &Mark::default());
        image.publish(lap, 4, 5);
        let recovered = image.recover();
        let order = recovered.chain.iter().map(|c| c.segment);
        assert!(order.eq([1, 0]), "{:?}", recovered.chain);
        assert_eq!(standings(&recovered), [Gone, Gone, Unsettled, Unsettled]);
        assert_eq!((recovered.damaged, recovered.ignored), (vec![], vec![]));
    }),
];
