//! Walks the recovery table of `store-format.md`: every row is made of bytes here, and its
//! verdict checked.

use std::io;

use crate::envelope::{Envelope, Origin};
use crate::format::{
    BLOCK, Epoch, Kind, LostBody, Mark, RECORD_HEADER, RecordHeader, RejectionBody, SEGMENT_HEADER,
    SEGMENTS_AT, SegmentHeader, Superblock, UserTag, commit_word, record_crc, stride,
};
use crate::recover::{Recovered, Refusal, read_header, recover};
use crate::report::Stop;
use crate::scan::{Scanner, Source, Verdict};
use crate::state::Standing;

const KEY: u32 = 0x5EED_0001;
const SIZE: u64 = 8192;
const SEGMENTS: u64 = 6;

/// A file in memory, written record by record.
struct Image(Vec<u8>);

impl Source for Image {
    fn fetch(&self, offset: u64, into: &mut [u8]) -> io::Result<()> {
        for (i, byte) in into.iter_mut().enumerate() {
            *byte = self.0.get(offset as usize + i).copied().unwrap_or(0);
        }
        Ok(())
    }

    fn shared(&self) -> Option<&(dyn Source + Sync)> {
        Some(self)
    }
}

fn superblock() -> Superblock {
    Superblock {
        counter: 1,
        store_id: 1,
        key: KEY,
        segment_size: SIZE,
        segments: SEGMENTS,
        cap_segments: SEGMENTS,
        grant: 0,
        number_floor: 0,
        rebase_from: 0,
        rebase_delta: 0,
        generation: 1,
        closed_at: 0,
        retired: false,
        preallocated: false,
        owner_pid: 1,
        owner_host: "host".into(),
        client_name: "name".into(),
    }
}

fn records_at(segment: u64) -> u64 {
    SEGMENTS_AT + segment * SIZE + SEGMENT_HEADER
}

impl Image {
    /// A new store whose first segment is used from ordinal 1 on.
    fn new() -> Self {
        let mut image = Image(vec![0; (SEGMENTS_AT + SEGMENTS * SIZE) as usize]);
        image.superblocks(&superblock(), &superblock());
        (0..SEGMENTS).for_each(|s| image.stamp(s, SegmentHeader::Free));
        image.used(0, 1);
        image
    }

    fn superblocks(&mut self, first: &Superblock, second: &Superblock) {
        self.put(0, &first.encode());
        self.put(BLOCK, &second.encode());
    }

    fn put(&mut self, offset: u64, bytes: &[u8]) {
        self.0[offset as usize..][..bytes.len()].copy_from_slice(bytes);
    }

    fn flip(&mut self, offset: u64) {
        self.0[offset as usize] ^= 0x40;
    }

    fn stamp(&mut self, segment: u64, header: SegmentHeader) {
        let at = SEGMENTS_AT + segment * SIZE;
        self.put(at, &header.encode(KEY, at, 1));
    }

    fn used(&mut self, segment: u64, first_ordinal: u64) {
        self.stamp(segment, SegmentHeader::Used { first_ordinal });
    }

    /// Writes a record and returns where the next one goes.
    fn record(&mut self, at: u64, header: RecordHeader, body: &[u8]) -> u64 {
        let mut bytes = header.encode().to_vec();
        bytes.extend_from_slice(body);
        bytes.resize(header.stride() as usize, 0);
        let word = commit_word(record_crc(KEY, at, &bytes[4..]), header.len);
        bytes[..8].copy_from_slice(&word.to_le_bytes());
        self.put(at, &bytes);
        at + header.stride()
    }

    fn plain(&mut self, at: u64, kind: Kind, sequence: u64, ordinal: u64, body: &[u8]) -> u64 {
        let header = RecordHeader {
            len: (RECORD_HEADER + body.len()) as u32,
            kind,
            quiet: false,
            envelope_len: 0,
            sequence,
            ordinal,
            generation: 1,
        };
        self.record(at, header, body)
    }

    fn message(&mut self, at: u64, kind: Kind, sequence: u64, ordinal: u64, origin: Origin) -> u64 {
        let mut envelope = Envelope::publish("t");
        envelope.origin = origin;
        let mut body = vec![0; 256];
        let len = envelope.encode_into(&mut body).unwrap();
        body.truncate(len);
        let envelope_len = body.len() as u32;
        body.extend_from_slice(b"payload");
        let header = RecordHeader {
            len: (RECORD_HEADER + body.len()) as u32,
            kind,
            quiet: origin != Origin::Publish,
            envelope_len,
            sequence,
            ordinal,
            generation: 1,
        };
        self.record(at, header, &body)
    }

    /// Makes the record at `at` one of another generation.
    fn of_generation(&mut self, at: u64, generation: u64) {
        let bytes = &self.0[at as usize..];
        let mut header = RecordHeader::decode(bytes, SIZE).unwrap();
        let body = bytes[RECORD_HEADER..header.len as usize].to_vec();
        header.generation = generation;
        self.record(at, header, &body);
    }

    fn publish(&mut self, at: u64, sequence: u64, ordinal: u64) -> u64 {
        self.message(at, Kind::Publish, sequence, ordinal, Origin::Publish)
    }

    fn mark(&mut self, at: u64, ordinal: u64, mark: &Mark) -> u64 {
        let mut body = Vec::new();
        mark.encode(&mut body);
        self.plain(at, Kind::Mark, 0, ordinal, &body)
    }

    fn epoch(&mut self, at: u64, ordinal: u64, follows: u64) -> u64 {
        self.epoch_before(at, ordinal, follows, 0)
    }

    fn epoch_before(&mut self, at: u64, ordinal: u64, follows: u64, first_after: u64) -> u64 {
        let mut body = Vec::new();
        let epoch = Epoch {
            follows,
            first_after,
            ..Epoch::default()
        };
        epoch.encode(&mut body);
        self.plain(at, Kind::Epoch, 0, ordinal, &body)
    }

    fn recover(&self) -> Recovered {
        let len = self.0.len() as u64;
        let header = read_header(self, len)
            .map_err(|r| format!("{r:?}"))
            .unwrap();
        recover(self, len, &header.superblock)
            .map_err(|r| format!("{r:?}"))
            .unwrap()
    }

    fn look(&self, at: u64, end: u64) -> Verdict {
        let geometry = Image::new().recover().geometry;
        Scanner::new(self, geometry).look(at, end).unwrap()
    }

    fn header(&self) -> Result<(Superblock, bool), Refusal> {
        read_header(self, self.0.len() as u64).map(|h| (h.superblock, h.repair))
    }
}

fn durable(ordinal: u64) -> Mark {
    Mark {
        durable: ordinal,
        ..Mark::default()
    }
}

/// Messages 1 to `n` with ordinals 1 to `n`, the second damaged; then a mark.
fn with_gap(n: u64, mark: Option<Mark>) -> Image {
    let mut image = Image::new();
    let mut at = records_at(0);
    for i in 1..=n {
        let next = image.publish(at, i, i);
        if i == 2 {
            image.flip(at + 50);
        }
        at = next;
    }
    if let Some(mark) = mark {
        image.mark(at, n + 1, &mark);
    }
    image
}

fn standings<const N: usize>(recovered: &Recovered) -> [Standing; N] {
    std::array::from_fn(|i| recovered.state.standing(i as u64 + 1))
}

type Row = (&'static str, fn());

use Standing::{Accepted, Gone, Rejected, Settled, Unsettled};

const FILES: [Row; 9] = [
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

const HEADERS: [Row; 4] = [
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

const PLACES: [Row; 7] = [
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
            ..header
        };
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

const ORDER: [Row; 5] = [
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
    }),
];

const GAPS: [Row; 8] = [
    ("G1", || {
        let mut image = Image::new();
        let at = image.publish(records_at(0), 1, 1);
        image.mark(at, 2, &durable(1));
        let recovered = image.recover();
        assert_eq!((recovered.damaged, recovered.set_aside.len()), (vec![], 0));
    }),
    ("G2", || {
        let mut image = with_gap(3, Some(durable(3)));
        let at = image.recover().chain[0].end;
        let mut body = Vec::new();
        let lost = LostBody {
            first_ordinal: 2,
            last_ordinal: 2,
            first_sequence: 2,
            last_sequence: 2,
        };
        lost.encode(&mut body);
        image.plain(at, Kind::Lost, 0, 5, &body);
        let recovered = image.recover();
        assert_eq!((recovered.damaged, recovered.last_ordinal), (vec![], 5));
        assert_eq!(recovered.lost, [lost]);
    }),
    ("G3", || {
        let recovered = with_gap(4, None).recover();
        let aside: Vec<u64> = recovered.set_aside.iter().map(|s| s.ordinal()).collect();
        assert_eq!((aside, &recovered.damaged), (vec![3, 4], &vec![]));
        assert!(matches!(recovered.stop, Stop::Hole { .. }));
        assert!(recovered.max_sequence >= 4 && recovered.max_ordinal == 4);
        assert!(!recovered.resumes_in_place());
    }),
    ("G4", || {
        let mut image = with_gap(3, None);
        image.used(1, 4);
        let needs = Mark {
            oldest_needed: 4,
            durable: 3,
            next: 4,
            ..Mark::default()
        };
        let at = image.mark(records_at(1), 4, &needs);
        image.publish(at, 4, 5);
        let recovered = image.recover();
        assert_eq!((recovered.damaged.len(), recovered.ignored.len()), (0, 1));
        assert_eq!(standings(&recovered), [Gone, Gone, Gone, Unsettled]);
    }),
    ("G5", || {
        let settled = Mark {
            floor: 2,
            ..durable(3)
        };
        let recovered = with_gap(3, Some(settled.clone())).recover();
        assert_eq!((recovered.damaged.len(), recovered.ignored.len()), (0, 1));
        assert_eq!(standings(&recovered), [Settled, Gone, Unsettled]);
        // A refusal that came later: the first open took the gap, the next one refused.
        let mut image = with_gap(3, Some(settled.clone()));
        let end = image.recover().chain[0].end;
        let mut refusal = Vec::new();
        RejectionBody::new("not entitled", 1, true).encode(&mut refusal);
        image.plain(end, Kind::Rejection, 1, 5, &refusal);
        let recovered = image.recover();
        assert_eq!((recovered.damaged.len(), recovered.ignored.len()), (0, 1));
        assert_eq!(standings(&recovered), [Rejected, Gone, Unsettled]);
        // A refusal, an epoch that skips two numbers, and a publish are damaged: as many
        // records as numbers are missing, and yet they were no publishes.
        let mut image = Image::new();
        let mut at = records_at(0);
        for i in 1..=9 {
            at = image.publish(at, i, i);
        }
        let gap = at;
        let mut refusal = Vec::new();
        RejectionBody::new("not entitled", 1, false).encode(&mut refusal);
        at = image.plain(at, Kind::Rejection, 5, 10, &refusal);
        at = image.epoch_before(at, 11, 10, 12);
        let behind = image.publish(at, 12, 12);
        (gap..behind).step_by(8).for_each(|at| image.flip(at + 4));
        let mark = image.publish(behind, 13, 13);
        let settled = Mark {
            floor: 13,
            ..durable(13)
        };
        image.mark(mark, 14, &settled);
        image.of_generation(behind, 2);
        image.of_generation(mark, 2);
        let recovered = image.recover();
        assert_eq!((recovered.damaged.len(), recovered.ignored.len()), (1, 0));
        // A publish was given up, and the refusal behind it is damaged: that one number is
        // missing says nothing about the refusal.
        let mut image = Image::new();
        let at = image.publish(records_at(0), 1, 1);
        let given_up = image.publish(at, 2, 2);
        image.flip(at + 50);
        let at = image.plain(given_up, Kind::Settlement, 0, 3, &1u64.to_le_bytes());
        let hurt = image.plain(at, Kind::Rejection, 1, 4, &refusal);
        image.flip(at + 50);
        let at = image.publish(hurt, 3, 5);
        let mut body = Vec::new();
        LostBody {
            first_ordinal: 2,
            last_ordinal: 2,
            first_sequence: 2,
            last_sequence: 2,
        }
        .encode(&mut body);
        let at = image.plain(at, Kind::Lost, 0, 6, &body);
        let settled = Mark {
            floor: 3,
            ..durable(6)
        };
        image.mark(at, 7, &settled);
        let recovered = image.recover();
        assert_eq!((recovered.damaged.len(), recovered.ignored.len()), (1, 0));
    }),
    ("G6", || {
        let recovered = with_gap(3, Some(durable(3))).recover();
        assert_eq!(recovered.ignored, []);
        let damaged = &recovered.damaged[0];
        assert_eq!((damaged.first_ordinal, damaged.last_ordinal), (2, Some(2)));
        assert_eq!(damaged.sequences, Some((2, 2)));
        let one = stride(RECORD_HEADER + 12 + 7);
        assert_eq!((damaged.offset, damaged.bytes), (records_at(0) + one, one));
        assert_eq!(
            standings(&recovered),
            [Unsettled, Gone, Unsettled],
            "both sides stay"
        );
        let mut image = Image::new();
        let at = image.publish(records_at(0), 1, 1);
        let mut refusal = Vec::new();
        RejectionBody::new("no", 1, false).encode(&mut refusal);
        let hurt = image.plain(at, Kind::Rejection, 1, 2, &refusal);
        image.mark(
            hurt,
            3,
            &Mark {
                floor: 1,
                ..durable(2)
            },
        );
        image.flip(at + 50);
        assert_eq!(image.recover().damaged.len(), 1, "it was no publish");
    }),
    ("G7", || {
        let mut image = Image::new();
        let at = image.publish(records_at(0), 1, 1);
        image.publish(at, 2, 2);
        image.flip(at + 50);
        let closed = Superblock {
            closed_at: 2,
            ..superblock()
        };
        image.superblocks(&closed, &closed);
        let recovered = image.recover();
        assert_eq!((recovered.damaged.len(), recovered.tail_damaged), (1, true));
        assert_eq!(recovered.damaged[0].last_ordinal, Some(2));
    }),
    ("G8", || {
        let mut image = Image::new();
        let near = RecordHeader {
            len: 2048,
            kind: Kind::Settlement,
            quiet: false,
            envelope_len: 0,
            sequence: 0,
            ordinal: 9,
            generation: 1,
        };
        for segment in 1..4 {
            let end = SEGMENTS_AT + (segment + 1) * SIZE;
            (records_at(segment)..end - 2048)
                .step_by(RECORD_HEADER)
                .for_each(|at| image.put(at, &near.encode()));
        }
        image.publish(records_at(0), 1, 1);
        assert_eq!(
            image.recover().damaged,
            [],
            "4 times the file and 1 MiB are allowed"
        );
        let mut large = Image(vec![0; (SEGMENTS_AT + SEGMENTS * (1 << 20)) as usize]);
        let sized = Superblock {
            segment_size: 1 << 20,
            ..superblock()
        };
        large.superblocks(&sized, &sized);
        for segment in 0..SEGMENTS {
            let at = SEGMENTS_AT + segment * (1 << 20);
            large.put(at, &SegmentHeader::Free.encode(KEY, at, 1));
            let near = RecordHeader {
                len: 1 << 18,
                ..near
            };
            for i in 0..1000 {
                large.put(
                    at + SEGMENT_HEADER + i * RECORD_HEADER as u64,
                    &near.encode(),
                );
            }
        }
        // The budget is gone in the first one, and none of the others is passed over in silence.
        let recovered = large.recover();
        assert_eq!(recovered.damaged.len() as u64, SEGMENTS);
        assert!(recovered.damaged.iter().all(|r| r.first_ordinal == 1));
    }),
];

const MEANINGS: [Row; 7] = [
    ("M1", || {
        let mut image = Image::new();
        let at = image.publish(records_at(0), 1, 1);
        let at = image.plain(at, Kind::Settlement, 0, 2, &1u64.to_le_bytes());
        let at = image.message(at, Kind::Copy, 1, 3, Origin::Publish);
        let at = image.mark(
            at,
            4,
            &Mark {
                floor: 2,
                ..Mark::default()
            },
        );
        let at = image.message(at, Kind::Copy, 2, 5, Origin::Publish);
        let mut refusal = Vec::new();
        RejectionBody::new("no", 1, false).encode(&mut refusal);
        let at = image.plain(at, Kind::Rejection, 3, 6, &refusal);
        let at = image.message(at, Kind::Copy, 3, 7, Origin::Publish);
        let at = image.publish(at, 4, 8);
        let recovered = image.recover();
        assert_eq!(
            standings(&recovered),
            [Settled, Settled, Rejected, Unsettled]
        );
        let requeue = Origin::Requeue { accepts: 3 };
        let at = image.message(at, Kind::Publish, 5, 9, requeue);
        let recovered = image.recover();
        assert_eq!(
            standings(&recovered),
            [Settled, Settled, Accepted, Unsettled, Unsettled]
        );
        // A refusal that came behind the requeue, which is copied later.
        let at = image.plain(at, Kind::Rejection, 3, 10, &refusal);
        image.message(at, Kind::Copy, 5, 11, requeue);
        let recovered = image.recover();
        assert_eq!(
            standings(&recovered),
            [Settled, Settled, Rejected, Unsettled, Unsettled]
        );
    }),
    ("M2", || {
        let mut image = Image::new();
        let at = image.publish(records_at(0), 1, 1);
        let at = image.publish(at, 2, 2);
        let at = image.publish(at, 3, 3);
        let body = [1u64.to_le_bytes(), 3u64.to_le_bytes()].concat();
        image.plain(at, Kind::Settlement, 0, 4, &body);
        assert_eq!(standings(&image.recover()), [Settled, Unsettled, Settled]);
    }),
    ("M3", || {
        let mut image = Image::new();
        let at = image.publish(records_at(0), 1, 1);
        let mut refusal = Vec::new();
        RejectionBody::new("no", 1, false).encode(&mut refusal);
        let at = image.plain(at, Kind::Rejection, 1, 2, &refusal);
        let at = image.publish(at, 2, 3);
        let at = image.publish(at, 3, 4);
        let tag = Some(UserTag::new(b"tag"));
        image.mark(
            at,
            5,
            &Mark {
                floor: 2,
                next: 9,
                tag,
                ..Mark::default()
            },
        );
        let recovered = image.recover();
        assert_eq!(standings(&recovered), [Rejected, Settled, Unsettled]);
        assert_eq!((recovered.next, recovered.tag), (9, Some(b"tag".to_vec())));
    }),
    ("M4", || {
        let mut image = Image::new();
        let at = image.publish(records_at(0), 1, 1);
        let mut refusal = Vec::new();
        RejectionBody::new("no", 1, false).encode(&mut refusal);
        image.plain(at, Kind::Rejection, 1, 2, &refusal);
        let recovered = image.recover();
        assert_eq!(standings(&recovered), [Rejected]);
        assert_eq!(
            (recovered.state.unsettled(), recovered.state.floor()),
            (0, 1)
        );
    }),
    ("M5", || {
        let mut image = Image::new();
        let at = image.publish(records_at(0), 1, 1);
        let mut refusal = Vec::new();
        RejectionBody::new("no", 1, false).encode(&mut refusal);
        let at = image.plain(at, Kind::Rejection, 1, 2, &refusal);
        image.plain(at, Kind::Acceptance, 1, 3, &[]);
        let recovered = image.recover();
        assert_eq!(standings(&recovered), [Accepted]);
        assert_eq!(recovered.state.charged(), 0);
        // The refusal was freed after it was accepted, its message had been copied before.
        let mut image = Image::new();
        let at = image.publish(records_at(0), 1, 1);
        image.plain(at, Kind::Acceptance, 1, 2, &[]);
        let recovered = image.recover();
        assert_eq!(standings(&recovered), [Accepted]);
        assert_eq!(recovered.state.charged(), 0);
    }),
    ("M6", || {
        let mut image = Image::new();
        let at = image.publish(records_at(0), 1, 1);
        let mut body = Vec::new();
        let lost = LostBody {
            first_ordinal: 7,
            last_ordinal: 9,
            first_sequence: 1,
            last_sequence: 1,
        };
        lost.encode(&mut body);
        image.plain(at, Kind::Lost, 0, 2, &body);
        let recovered = image.recover();
        assert_eq!(
            (standings(&recovered), recovered.lost),
            ([Unsettled], vec![lost])
        );
    }),
    ("M7", || {
        let mut image = Image::new();
        let at = image.publish(records_at(0), 1, 1);
        let at = image.publish(at, 2, 2);
        let at = image.message(at, Kind::Original, 2, 3, Origin::Publish);
        // Its first record is gone.
        let at = image.message(at, Kind::Original, 3, 4, Origin::Publish);
        let recovered = image.recover();
        assert_eq!(standings(&recovered), [Unsettled, Settled, Settled]);
        let mut refusal = Vec::new();
        RejectionBody::new("no", 1, true).encode(&mut refusal);
        image.plain(at, Kind::Rejection, 3, 5, &refusal);
        let recovered = image.recover();
        assert_eq!(standings(&recovered), [Unsettled, Settled, Rejected]);
        assert_eq!(recovered.state.unsettled(), 1);
    }),
];

fn rows() -> impl Iterator<Item = &'static Row> {
    let tables: [&[Row]; 6] = [&FILES, &HEADERS, &PLACES, &ORDER, &GAPS, &MEANINGS];
    tables.into_iter().flatten()
}

/// Every segment holds some of the log, so the epoch behind a cut is written over the torn
/// record. Its head must be gone for good before: the tail that a power cut lost could come to
/// stand behind it again.
#[cfg(feature = "testkit")]
#[test]
fn a_torn_head_is_wiped_where_the_epoch_is_written_over_it() {
    use crate::testkit::{Cut, Rng, SimDisk};

    let mut image = Image::new();
    let mut at = 0;
    for segment in 0..SEGMENTS {
        image.used(segment, segment + 1);
        at = image.publish(records_at(segment), segment + 1, segment + 1);
    }
    let behind = image.publish(at, SEGMENTS + 1, SEGMENTS + 1);
    image.flip(at + 45);
    image.publish(behind, SEGMENTS + 2, SEGMENTS + 2);
    let recovered = image.recover();
    assert_eq!(
        (recovered.chain.len() as u64, recovered.set_aside.len()),
        (SEGMENTS, 1)
    );
    let disk = SimDisk::new();
    disk.restore(image.0);
    let store = disk.open(crate::Options::new()).unwrap();
    drop(store);
    disk.power_cut(Cut::None, &mut Rng::new(1));
    assert_eq!(disk.bytes()[at as usize..][..8], [0; 8]);
}

#[test]
fn every_row_of_the_recovery_table_holds() {
    for (name, row) in rows() {
        println!("{name}");
        row();
    }
}

#[test]
fn every_row_of_the_page_is_walked() {
    let page = include_str!("../../../store-format.md");
    let is_row = |cell: &&str| {
        cell.len() == 2
            && cell.as_bytes()[0].is_ascii_uppercase()
            && cell.ends_with(|c: char| c.is_ascii_digit())
    };
    let written: Vec<&str> = page
        .lines()
        .filter_map(|line| line.strip_prefix("| ")?.split(" |").next())
        .filter(is_row)
        .collect();
    let walked: Vec<&str> = rows().map(|row| row.0).collect();
    assert_eq!(written, walked);
}

/// Only a file made for it holds two records with one ordinal. Which of them counted was left
/// to a sort that keeps no order, so that the next open could take the other one.
#[test]
fn of_two_records_with_one_ordinal_the_first_in_the_file_counts() {
    let mut image = Image::new();
    let hole = image.publish(records_at(0), 1, 1);
    let mut at = image.publish(hole, 2, 2);
    image.flip(hole + 50);
    for i in 3..=40 {
        at = image.publish(at, i, i);
    }
    image.mark(at, 41, &durable(40));
    image.used(1, 100);
    let mut copy = records_at(1);
    for i in (3..=40).rev() {
        copy = image.message(copy, Kind::Copy, i, i, Origin::Publish);
    }
    let recovered = image.recover();
    for sequence in 3..=40 {
        let entry = recovered.state.get(sequence).unwrap();
        assert!(entry.offset() < records_at(1), "message {sequence}");
    }
}

/// An epoch may skip any number of ordinals. The search behind a hole took one far ahead for
/// nothing, and the next open, which saw more of the log, for an epoch that declares what had
/// been written meanwhile dead.
#[test]
fn an_epoch_far_ahead_behind_a_hole_is_seen_by_the_first_open() {
    let mut image = Image::new();
    let at = image.publish(records_at(0), 1, 1);
    let next = image.publish(at, 2, 2);
    image.flip(at + 50);
    image.epoch(next, 1 << 40, 2);
    let recovered = image.recover();
    assert_eq!(recovered.last_ordinal, 1);
    assert_eq!(recovered.max_ordinal, 1 << 40);
    assert_eq!(recovered.set_aside.len(), 1);
}
