//! The file as a whole, and the headers of its segments.

use super::*;

pub(super) const FILES: [Row; 9] = [
    ("F1", || {
        assert!(matches!(Image(vec![]).header(), Err(Refusal::NotCreated)));
        assert!(matches!(
            Image(vec![0; 99_999]).header(),
            Err(Refusal::NotCreated)
        ));
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
    }),
    ("F4", || {
        let patched = |at: usize, value: u32| {
            let mut bytes = superblock().encode();
            bytes[at..at + 4].copy_from_slice(&value.to_le_bytes());
            let crc = crc32fast::hash(&bytes[..4092]);
            bytes[4092..].copy_from_slice(&crc.to_le_bytes());
            // In one copy or in both: the other one must not be taken and written over.
            [&[0][..], &[BLOCK], &[0, BLOCK]].map(|copies| {
                let mut image = Image::new();
                copies.iter().for_each(|copy| image.put(*copy, &bytes));
                image.header()
            })
        };
        for refused in patched(8, 2) {
            assert!(matches!(refused, Err(Refusal::Version(2))));
        }
        for refused in patched(12, 1) {
            assert!(matches!(refused, Err(Refusal::NotAStore(why)) if why.contains("features")));
        }
    }),
    ("F5", || {
        let mut image = Image::new();
        image.flip(70);
        image.flip(BLOCK + 70);
        assert!(matches!(image.header(), Err(Refusal::NotAStore(_))));
        image.put(0, &[0; 2 * BLOCK as usize]);
        assert!(matches!(image.header(), Err(Refusal::NotAStore(why)) if why.contains("blank")));
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
                matches!(image.header(), Err(Refusal::NotAStore(_))),
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
    }),
];

pub(super) const HEADERS: [Row; 4] = [
    ("S1", || {
        let mut image = Image::new();
        image.stamp(0, SegmentHeader::Free);
        let recovered = image.recover();
        assert_eq!((recovered.last_ordinal, recovered.chain.len()), (0, 0));
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
    }),
    ("S3", || {
        let mut image = Image::new();
        image.publish(records_at(0), 1, 1);
        image.flip(SEGMENTS_AT + 9);
        let recovered = image.recover();
        assert_eq!((recovered.damaged.len(), recovered.ignored.len()), (0, 1));
        assert_eq!(recovered.last_ordinal, 1);
    }),
    ("S4", || {
        let mut image = Image::new();
        let at = records_at(0);
        image.publish(at, 1, 1);
        image.flip(SEGMENTS_AT + 9);
        image.flip(at + 50);
        let recovered = image.recover();
        assert_eq!(recovered.damaged[0].offset, SEGMENTS_AT);
        // The closing mark stands where it should: the log is whole without that segment.
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
];
