use super::*;

fn superblock() -> Superblock {
    Superblock {
        version: VERSION,
        segments_at: SEGMENTS_AT,
        counter: 7,
        store_id: 1,
        key: 0xDEAD_BEEF,
        segment_size: 8192,
        segments: 7,
        cap_segments: 7,
        grant: 99,
        number_floor: 4,
        rebase_from: 5,
        rebase_delta: -3,
        generation: 2,
        closed_at: 11,
        retired: true,
        preallocated: true,
        owner_pid: 42,
        owner_host: "host".into(),
        client_name: "name".into(),
        start: 1,
        durable: 0,
        opening: Opening::default(),
        superseded: false,
        reserved: Reserved::default(),
    }
}

#[test]
fn a_superblock_survives_its_bytes_and_no_flipped_bit_does() {
    let bytes = superblock().encode();
    assert_eq!(
        Superblock::decode(&bytes),
        SuperblockVerdict::Intact(Box::new(superblock()))
    );
    for bit in 0..bytes.len() * 8 {
        let mut bad = bytes.clone();
        bad[bit / 8] ^= 1 << (bit % 8);
        assert!(
            !matches!(Superblock::decode(&bad), SuperblockVerdict::Intact(_)),
            "bit {bit} went unnoticed"
        );
    }
}

#[test]
fn the_checksum_is_crc32_iso_hdlc() {
    assert_eq!(crc32fast::hash(b"123456789"), 0xCBF4_3926);
}

#[test]
fn the_same_bytes_never_verify_elsewhere() {
    let bytes = [7u8; 64];
    let here = record_crc(1, 8192, &bytes);
    for offset in (0..1 << 16).step_by(8).filter(|o| *o != 8192) {
        assert_ne!(here, record_crc(1, offset, &bytes));
    }
}

#[test]
fn zeros_and_ones_are_never_a_record() {
    assert_eq!(RecordHeader::decode(&[0; RECORD_HEADER], 4096), None);
    assert_eq!(RecordHeader::decode(&[0xFF; RECORD_HEADER], 4096), None);
}

#[test]
fn a_reason_is_cut_on_a_character_border_and_says_so() {
    let long = "ü".repeat(100);
    let body = RejectionBody::new(&long, 1, false);
    assert!(body.cut && body.reason.len() <= MAX_REASON && long.starts_with(&body.reason));
    let mut bytes = Vec::new();
    body.encode(&mut bytes);
    assert_eq!(RejectionBody::decode(&bytes), Some(body));
}

#[test]
fn marks_and_epochs_survive_their_bytes() {
    let mark = Mark {
        floor: 1,
        durable: 2,
        next: 3,
        oldest_needed: 4,
        clean: true,
        tag: Some(UserTag::new(&[9; 64])),
    };
    let epoch = Epoch {
        follows: 5,
        last_before: 6,
        first_after: 7,
        mark,
    };
    let mut bytes = Vec::new();
    epoch.encode(&mut bytes);
    assert_eq!(Epoch::decode(&bytes, 6), Some(epoch));
    assert_eq!(Epoch::decode(&bytes[..bytes.len() - 1], 6), None);
    assert_eq!(Epoch::decode(&bytes, 5), None, "it follows itself");
    assert_eq!(Mark::decode(&bytes[24..], 3), None, "of what comes");
}
