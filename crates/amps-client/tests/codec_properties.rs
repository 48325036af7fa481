//! Properties of the codec: what is written is read back, and nothing a peer sends panics.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test fails by panicking"
)]

use amps_client::protocol::{AckKinds, Command, FrameDecoder, Header, Publish, SowRecords};
use proptest::prelude::*;

proptest! {
    #[test]
    fn a_publish_survives_the_wire(
        topic in ".*",
        command_id in proptest::option::of(".*"),
        sow_key in proptest::option::of("[A-Za-z0-9+/=]*"),
        correlation_id in proptest::option::of("[A-Za-z0-9+/=]*"),
        options in proptest::option::of(".*"),
        expiration: Option<u32>,
        sequence: Option<u64>,
        delta: bool,
        body: Vec<u8>,
    ) {
        let publish = Publish {
            delta,
            command_id: command_id.as_deref(),
            sow_key: sow_key.as_deref(),
            correlation_id: correlation_id.as_deref(),
            options: options.as_deref(),
            expiration,
            sequence,
            acks: AckKinds::PERSISTED,
            ..Publish::new(&topic, &body)
        };
        let mut out = Vec::new();
        publish.encode(&mut out).unwrap();
        let mut decoder = FrameDecoder::new();
        decoder.push(&out);
        let frame = decoder.next_frame().unwrap().unwrap();
        let (header, read) = Header::parse(&frame).unwrap();
        prop_assert_eq!(read, &body[..]);
        prop_assert_eq!(header.topic.as_deref(), Some(topic.as_str()));
        prop_assert_eq!(header.command_id.as_deref(), command_id.as_deref());
        prop_assert_eq!(header.sow_key.as_deref(), sow_key.as_deref());
        prop_assert_eq!(header.correlation_id.as_deref(), correlation_id.as_deref());
        prop_assert_eq!(header.options.as_deref(), options.as_deref());
        prop_assert_eq!(header.expiration, expiration.map(u64::from));
        prop_assert_eq!(header.sequence, sequence);
        prop_assert_eq!(header.acks, AckKinds::PERSISTED);
    }

    #[test]
    fn filters_survive_the_wire(filter in ".*", keys in ".*", body: Vec<u8>) {
        let mut out = Vec::new();
        let command = Command { sow_keys: Some(&keys), body: &body,
            ..Command::sow_delete_by_filter("t", &filter) };
        command.encode(&mut out).unwrap();
        let (header, read) = Header::parse(&out[4..]).unwrap();
        prop_assert_eq!(header.filter.as_deref(), Some(filter.as_str()));
        prop_assert_eq!(header.sow_keys.as_deref(), Some(keys.as_str()));
        prop_assert_eq!(read, &body[..]);
    }

    #[test]
    fn any_bytes_are_a_header_or_an_error_inside_the_frame(bytes: Vec<u8>) {
        judge(&bytes)?;
    }

    #[test]
    fn bytes_that_look_like_headers_are_judged_too(
        text in r#"\{("[a-z\\]{0,3}" ?: ?("[^"]{0,4}"|[0-9]{0,22}|true|\[|\{),?){0,5}\}?.{0,4}"#,
    ) {
        judge(text.as_bytes())?;
    }

    #[test]
    fn a_damaged_header_never_reads_beyond_the_frame(at in 0usize..60, byte: u8) {
        let mut out = Vec::new();
        Publish::stored("orders", 12345, b"{\"id\":1}").encode(&mut out).unwrap();
        let mut frame = out[4..].to_vec();
        let at = at % frame.len();
        frame[at] = byte;
        judge(&frame)?;
    }

    #[test]
    fn any_stream_is_cut_into_frames_within_the_cap(
        stream: Vec<u8>, parts in 1usize..40, max in 0usize..300,
    ) {
        let mut decoder = FrameDecoder::with_max_frame(max);
        let mut taken = 0;
        let mut failed = false;
        for part in stream.chunks(parts) {
            decoder.push(part);
            loop {
                match decoder.next_frame() {
                    Ok(Some(frame)) => {
                        prop_assert!(!failed && frame.len() <= max);
                        taken += 4 + frame.len();
                    }
                    Ok(None) => break,
                    Err(_) => { failed = true; break; }
                }
            }
        }
        prop_assert_eq!(taken + decoder.pending(), stream.len());
    }
}

fn judge(frame: &[u8]) -> Result<(), TestCaseError> {
    match Header::parse(frame) {
        Ok((header, body)) => {
            prop_assert_eq!(header.length + body.len(), frame.len());
            let records = SowRecords::new(body).collect::<Vec<_>>();
            prop_assert!(records.iter().rev().skip(1).all(Result::is_ok));
        }
        Err(error) => prop_assert!(error.at <= frame.len()),
    }
    Ok(())
}
