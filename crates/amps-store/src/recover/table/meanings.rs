//! What the records mean, taken together.

use super::*;

pub(super) const MEANINGS: [Row; 8] = [
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
        assert_eq!(recovered.state.unsettled(), 1);
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
        // Byte 9 says that it was requeued, and it was refused before it came.
        let requeued = |accepts: u64, byte: u8| {
            let mut image = Image::new();
            let at = image.publish(records_at(0), 1, 1);
            let at = image.plain(at, Kind::Rejection, 1, 2, &refusal);
            image.message(at, Kind::Publish, 2, 3, Origin::Requeue { accepts });
            let mut header = RecordHeader::decode(&image.0[at as usize..], SIZE).unwrap();
            header.quiet = byte == 1;
            let body = image.0[at as usize + RECORD_HEADER..]
                [..header.len as usize - RECORD_HEADER]
                .to_vec();
            image.record(at, header, &body);
            standings(&image.recover())
        };
        assert_eq!(requeued(1, 1), [Accepted, Unsettled]);
        assert_eq!(requeued(1, 0), [Rejected, Unsettled]);
        assert_eq!(requeued(2, 1), [Rejected, Unsettled]);
        // An envelope that cannot be read: a message all the same, and it accepts nothing.
        let mut image = Image::new();
        let at = image.publish(records_at(0), 1, 1);
        let at = image.plain(at, Kind::Rejection, 1, 2, &refusal);
        image.message(at, Kind::Publish, 2, 3, Origin::Requeue { accepts: 1 });
        let header = RecordHeader::decode(&image.0[at as usize..], SIZE).unwrap();
        let mut body =
            image.0[at as usize + RECORD_HEADER..][..header.len as usize - RECORD_HEADER].to_vec();
        body[0] = 9;
        image.record(at, header, &body);
        assert_eq!(standings(&image.recover()), [Rejected, Unsettled]);
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
        // A body that cannot be read hides no refusal.
        for malformed in [&refusal[..15], &[0xFF; 40]] {
            let mut image = Image::new();
            let at = image.publish(records_at(0), 1, 1);
            image.plain(at, Kind::Rejection, 1, 2, malformed);
            assert_eq!(standings(&image.recover()), [Rejected]);
        }
    }),
    ("M5", || {
        let mut image = Image::new();
        let at = image.publish(records_at(0), 1, 1);
        let mut refusal = Vec::new();
        RejectionBody::new("no", 1, false).encode(&mut refusal);
        let at = image.plain(at, Kind::Rejection, 1, 2, &refusal);
        // What stands behind the header means nothing.
        image.plain(at, Kind::Acceptance, 1, 3, b"body");
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
            first_ordinal: 1,
            last_ordinal: 1,
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
    ("M8", || {
        let mut image = Image::new();
        let at = image.message(records_at(0), Kind::Copy, 1, 1, Origin::Publish);
        let at = image.publish(at, 2, 2);
        let opened = Superblock {
            opening: Opening {
                floor: 1,
                next: 9,
                tag: Some(UserTag::new(b"line 8")),
            },
            ..superblock()
        };
        image.superblocks(&opened, &opened);
        let recovered = image.recover();
        assert_eq!(standings(&recovered), [Settled, Unsettled]);
        assert_eq!((recovered.next, recovered.max_sequence), (9, 8));
        assert_eq!(recovered.tag.as_deref(), Some(&b"line 8"[..]));
        // A later mark says more, and never less.
        let mark = Mark {
            tag: Some(UserTag::new(b"line 9")),
            ..Mark::default()
        };
        image.mark(at, 3, &mark);
        let recovered = image.recover();
        assert_eq!(recovered.state.floor(), 1);
        assert_eq!(recovered.tag.as_deref(), Some(&b"line 9"[..]));
    }),
];
