//! What stands at one place, and how the log goes on from there.

use super::*;

pub(super) const PLACES: [Row; 7] = [
    ("P1", || {
        let end = records_at(0) + 39;
        assert_eq!(Image::new().look(records_at(0), end), Verdict::SegmentEnd);
    }),
    ("P2", || {
        let mut image = Image::new();
        image.put(records_at(0) + 8, &[0xFF; 32]);
        assert_eq!(
            image.look(records_at(0), SEGMENTS_AT + SIZE),
            Verdict::Unwritten
        );
    }),
    ("P3", || {
        let mut image = Image::new();
        image.put(records_at(0), &[1]);
        assert_eq!(
            image.look(records_at(0), SEGMENTS_AT + SIZE),
            Verdict::Garbage
        );
    }),
    ("P4", || {
        let at = records_at(0);
        let header = RecordHeader {
            len: 48,
            kind: Kind::Settlement,
            quiet: false,
            envelope_len: 0,
            sequence: 0,
            ordinal: 1,
            generation: 1,
        };
        let too_long = header.envelope_len + 9;
        let verdict = |header: RecordHeader, patch: &[(usize, u8)]| {
            let mut image = Image::new();
            let mut bytes = header.encode();
            patch.iter().for_each(|(i, b)| bytes[*i] = *b);
            image.put(at, &bytes);
            image.look(at, SEGMENTS_AT + SIZE)
        };
        assert!(
            matches!(verdict(header, &[]), Verdict::Torn(_)),
            "a possible one"
        );
        let message = RecordHeader {
            kind: Kind::Publish,
            sequence: 1,
            ..header
        };
        assert!(matches!(verdict(message, &[]), Verdict::Torn(_)));
        for (header, patch) in [
            (RecordHeader { len: 39, ..header }, &[][..]),
            (
                RecordHeader {
                    len: 2049,
                    ..header
                },
                &[],
            ),
            (header, &[(8, 0)]),
            (header, &[(8, 10)]),
            (header, &[(9, 1)]),
            (message, &[(9, 2)]),
            (header, &[(10, 1)]),
            (header, &[(11, 1)]),
            (
                RecordHeader {
                    envelope_len: 1,
                    ..header
                },
                &[],
            ),
            (
                RecordHeader {
                    envelope_len: too_long,
                    ..message
                },
                &[],
            ),
            (
                RecordHeader {
                    sequence: 1 << 63,
                    ..header
                },
                &[],
            ),
            // A message has a sequence, and nothing else has one.
            (
                RecordHeader {
                    sequence: 1,
                    ..header
                },
                &[],
            ),
            (
                RecordHeader {
                    sequence: 0,
                    ..message
                },
                &[],
            ),
            (
                RecordHeader {
                    kind: Kind::Acceptance,
                    ..header
                },
                &[],
            ),
            (
                RecordHeader {
                    ordinal: 0,
                    ..header
                },
                &[],
            ),
            (
                RecordHeader {
                    ordinal: 1 << 63,
                    ..header
                },
                &[],
            ),
            (
                RecordHeader {
                    generation: 0,
                    ..header
                },
                &[],
            ),
        ] {
            assert_eq!(
                verdict(header, patch),
                Verdict::Garbage,
                "{header:?} {patch:?}"
            );
        }
        let mut image = Image::new();
        let end = SEGMENTS_AT + SIZE;
        image.plain(end - 48, Kind::Acceptance, 1, 1, &[]);
        image.put(end - 44, &56u32.to_le_bytes());
        assert_eq!(
            image.look(end - 48, end),
            Verdict::Garbage,
            "beyond the segment"
        );
    }),
    ("P5", || {
        let mut whole = Image::new();
        let at = records_at(0);
        let end = whole.publish(at, 1, 1);
        for byte in at..end {
            let mut image = Image(whole.0.clone());
            image.flip(byte);
            assert!(
                !matches!(image.look(at, SEGMENTS_AT + SIZE), Verdict::Intact(_)),
                "byte {byte} is not covered"
            );
        }
        whole.flip(end - 1);
        assert!(
            matches!(whole.look(at, SEGMENTS_AT + SIZE), Verdict::Torn(_)),
            "padding"
        );
    }),
    ("P6", || {
        let mut image = Image::new();
        image.publish(records_at(0), 7, 1);
        let verdict = image.look(records_at(0), SEGMENTS_AT + SIZE);
        assert!(matches!(verdict, Verdict::Intact(h) if h.sequence == 7 && h.ordinal == 1));
    }),
    ("P7", || {
        let mut image = Image::new();
        let (at, end) = (records_at(0), SEGMENTS_AT + SIZE);
        let next = image.publish(at, 7, 1);
        let bytes = image.0[at as usize..next as usize].to_vec();
        image.put(next, &bytes);
        assert!(matches!(image.look(next, end), Verdict::Torn(_)));
    }),
];

pub(super) const ORDER: [Row; 6] = [
    ("R1", || {
        let mut image = Image::new();
        let at = image.publish(records_at(0), 1, 1);
        image.publish(at, 2, 2);
        let recovered = image.recover();
        assert_eq!(
            (recovered.last_ordinal, recovered.stop),
            (2, Stop::Unwritten)
        );
    }),
    ("R2", || {
        let mut image = Image::new();
        let at = image.publish(records_at(0), 1, 1);
        let at = image.epoch(at, 50, 1);
        image.publish(at, 2, 51);
        let recovered = image.recover();
        assert_eq!(
            (recovered.last_ordinal, recovered.state.unsettled()),
            (51, 2)
        );
        let mut image = Image::new();
        image.publish(records_at(0), 1, 1);
        image.used(1, 50);
        image.epoch(records_at(1), 50, 1);
        assert_eq!(image.recover().last_ordinal, 50, "in a later segment");
    }),
    ("R3", || {
        for ordinal in [1, 3] {
            let mut image = Image::new();
            let at = image.publish(records_at(0), 1, 1);
            image.publish(at, 2, ordinal);
            let recovered = image.recover();
            assert_eq!(recovered.state.unsettled(), 1, "ordinal {ordinal}");
            assert_eq!(recovered.set_aside.len() as u64, u64::from(ordinal > 1));
        }
        let mut image = Image::new();
        let at = image.publish(records_at(0), 1, 1);
        image.epoch(at, 50, 7);
        assert_eq!(
            image.recover().last_ordinal,
            1,
            "an epoch that names another"
        );
        // What an earlier run wrote does not follow what a later one wrote.
        for epoch in [false, true] {
            for gap in [false, true] {
                let mut image = Image::new();
                let at = image.publish(records_at(0), 1, 1);
                image.of_generation(records_at(0), 2);
                let ordinal = 2 + u64::from(gap);
                let at = if gap { at + 64 } else { at };
                match epoch {
                    true => image.epoch(at, ordinal, 1),
                    false => image.publish(at, 4, ordinal),
                };
                let recovered = image.recover();
                assert_eq!((recovered.last_ordinal, recovered.set_aside.len()), (1, 0));
                assert_eq!(recovered.state.unsettled(), 1);
                assert_eq!(recovered.max_ordinal, ordinal, "and is not written again");
            }
        }
    }),
    ("R4", || {
        let closed = Superblock {
            closed_at: 2,
            ..superblock()
        };
        let mut image = Image::new();
        image.superblocks(&closed, &closed);
        let at = image.publish(records_at(0), 1, 1);
        let at = image.mark(
            at,
            2,
            &Mark {
                clean: true,
                durable: 1,
                next: 2,
                ..Mark::default()
            },
        );
        image.publish(at, 5, 9);
        let recovered = image.recover();
        assert_eq!(
            (recovered.stop, recovered.set_aside.len()),
            (Stop::CleanClose, 0)
        );
        assert_eq!(recovered.damaged, []);
        // The same without the flag, or at another ordinal than the superblock names: the log may
        // go on behind it.
        let close = |clean: bool, closed_at: u64| {
            let mut image = Image::new();
            let closed = Superblock {
                closed_at,
                ..superblock()
            };
            image.superblocks(&closed, &closed);
            let at = image.publish(records_at(0), 1, 1);
            let mark = Mark {
                clean,
                ..durable(1)
            };
            let at = image.mark(at, 2, &mark);
            image.publish(at, 5, 9);
            let recovered = image.recover();
            (
                recovered.stop == Stop::CleanClose,
                recovered.set_aside.len(),
            )
        };
        assert_eq!(close(true, 2), (true, 0));
        assert_eq!(close(false, 2), (false, 1));
        assert_eq!(close(true, 1), (false, 1));
    }),
    ("R5", || {
        let mut image = Image::new();
        let at = image.publish(records_at(0), 8, 5);
        image.publish(at, 9, 6);
        image.stamp(0, SegmentHeader::Free);
        image.used(1, 7);
        let needs = Mark {
            oldest_needed: 5,
            durable: 6,
            next: 10,
            ..Mark::default()
        };
        image.mark(records_at(1), 7, &needs);
        let recovered = image.recover();
        assert_eq!(
            (recovered.last_ordinal, recovered.state.unsettled()),
            (7, 2)
        );
        assert_eq!(recovered.damaged, []);
        // The mark itself is behind a cut: the log begins where the superblock says.
        let mut image = Image::new();
        image.stamp(0, SegmentHeader::Free);
        let at = image.publish(records_at(0), 8, 5);
        image.publish(at, 9, 6);
        image.used(1, 9);
        let needs = Mark {
            oldest_needed: 8,
            ..Mark::default()
        };
        image.mark(records_at(1), 9, &needs);
        for (start, last, aside) in [(5, 6, 1), (4, 3, 3)] {
            image.start(start);
            let recovered = image.recover();
            assert_eq!(recovered.last_ordinal, last);
            assert_eq!(recovered.set_aside.len(), aside, "from {start}");
            assert_eq!(recovered.damaged, []);
        }
    }),
    ("R6", || {
        let mut image = Image::new();
        let at = image.publish(records_at(0), 1, 1);
        let last = Mark {
            floor: 9,
            durable: 40,
            next: 50,
            oldest_needed: 41,
            ..Mark::default()
        };
        image.mark(at, 45, &last);
        image.used(1, 46);
        image.publish(records_at(1), 60, 46);
        image.start(46);
        let recovered = image.recover();
        assert_eq!((recovered.last_ordinal, recovered.max_ordinal), (46, 46));
        assert_eq!((recovered.max_sequence, recovered.durable), (60, 0));
        assert_eq!(recovered.state.floor(), 0);
        assert_eq!((recovered.damaged, recovered.ignored), (vec![], vec![]));
    }),
];
