//! Newline-delimited JSON, in and out.

use std::borrow::Cow;
use std::fs::File;
use std::io::Write;
use std::os::fd::AsRawFd;

use amps_store::inspect::{Filter, Inspection, MessageState};
use amps_store::testkit::SimDisk;
use amps_store::transfer::{ImportError, export, import};
use amps_store::{Envelope, MAX_TAG, Operation, Options, Origin, PublishStore, Store};
use arbitrary::{Arbitrary, Result, Unstructured};

use crate::bounded;

/// Any text is imported or refused, with its line. Any message survives an export and an import.
pub fn ndjson(data: &[u8]) {
    bounded((32 << 20) + 64 * data.len(), || {
        any_text(data);
        // When the choices run out, the messages made so far have been checked.
        let _ = any_messages(data);
    });
}

fn store() -> (SimDisk, Store) {
    let disk = SimDisk::new();
    let options = Options::new()
        .capacity(256 << 10)
        .segment_size(32 << 10)
        .preallocate(true)
        .client_name("text");
    let store = disk.open(options).expect("creates");
    (disk, store)
}

fn any_text(data: &[u8]) {
    let (disk, store) = store();
    let imported = import(data, &store);
    let lines = data.split(|b| *b == b'\n').count() as u64;
    match &imported {
        Ok(done) => assert_eq!(done.messages, store.bounds().next - 1),
        Err(
            ImportError::Json { line, .. }
            | ImportError::Field { line, .. }
            | ImportError::TooLong { line, .. }
            | ImportError::Append { line, .. }
            | ImportError::Reject { line, .. },
        ) => assert!((1..=lines).contains(line), "line {line} of {lines}"),
        Err(error) => panic!("{error}"),
    }
    store.close(0).expect("a good disk");
    let first = exported(&disk.bytes());
    let (disk, store) = self::store();
    import(first.as_bytes(), &store).expect("an export is imported");
    store.close(0).expect("a good disk");
    assert_eq!(exported(&disk.bytes()), first);
}

/// The text of a store, without the flag that a reason was cut: an import takes the reason that
/// it is given for the whole one.
fn exported(bytes: &[u8]) -> String {
    let look = looked(bytes);
    let filter = Filter::new()
        .state(MessageState::Unsettled)
        .state(MessageState::Rejected);
    let mut lines = Vec::new();
    let done = export(&look.1, filter, &mut lines).expect("exports");
    assert_eq!(done.unreadable, 0);
    let text = String::from_utf8(lines).expect("JSON is UTF-8");
    text.replace(r#""reason_cut":true"#, r#""reason_cut":false"#)
}

fn looked(bytes: &[u8]) -> (File, Inspection) {
    let flags = rustix::fs::MemfdFlags::CLOEXEC;
    let fd = rustix::fs::memfd_create("amps-fuzz", flags).expect("a file in memory");
    let mut file = File::from(fd);
    file.write_all(bytes).expect("writes");
    let path = format!("/proc/self/fd/{}", file.as_raw_fd());
    let look = Inspection::open(path).expect("a good store");
    (file, look)
}

fn any_messages(data: &[u8]) -> Result<()> {
    let mut choices = Unstructured::new(data);
    let mut made: Vec<(u64, Envelope<'static>, Vec<u8>, bool)> = Vec::new();
    let (disk, from) = store();
    for _ in 0..choices.int_in_range(1..=4)? {
        let envelope = any_envelope(&mut choices)?;
        let payload = Vec::<u8>::arbitrary(&mut choices)?;
        let refused = choices.arbitrary()?;
        if let Ok(at) = from.append(&envelope, &payload) {
            if let Origin::Requeue { accepts } = envelope.origin {
                // It may count as refused or not: the refusal may have been in memory only.
                made.retain(|(sequence, ..)| *sequence != accepts);
            }
            if refused {
                from.reject(at.sequence, &envelope.topic, 3).expect("logs");
            }
            made.push((at.sequence, envelope.into_owned(), payload, refused));
        }
    }
    from.close(0).expect("a good disk");
    let (into_disk, into) = store();
    import(exported(&disk.bytes()).as_bytes(), &into).expect("an export is imported");
    into.close(0).expect("a good disk");
    let look = looked(&into_disk.bytes()).1;
    let mut read = look.messages(Filter::all());
    for (_, mut envelope, payload, refused) in made {
        let message = read.next().expect("as many").expect("reads");
        assert_eq!(message.payload, payload);
        assert_eq!(message.state == MessageState::Rejected, refused);
        envelope.origin = Origin::Import;
        assert_eq!(message.envelope, Some(envelope));
    }
    assert!(read.next().is_none());
    Ok(())
}

/// An envelope that an append accepts.
pub(crate) fn any_envelope<'a>(choices: &mut Unstructured<'a>) -> Result<Envelope<'a>> {
    let text = |choices: &mut Unstructured<'a>| -> Result<Option<Cow<'a, str>>> {
        Ok(Option::<&'a str>::arbitrary(choices)?.map(Cow::Borrowed))
    };
    let operations = [
        Operation::Publish,
        Operation::DeltaPublish,
        Operation::SowDeleteByFilter,
        Operation::SowDeleteByKeys,
        Operation::SowDeleteByData,
    ];
    let origins = [
        Origin::Publish,
        Origin::Import,
        Origin::Requeue {
            accepts: choices.arbitrary()?,
        },
    ];
    let tag = choices.int_in_range(0..=MAX_TAG)?.min(choices.len());
    Ok(Envelope {
        operation: *choices.choose(&operations)?,
        origin: *choices.choose(&origins)?,
        user_tag: Cow::Borrowed(choices.bytes(tag.min(choices.len()))?),
        topic: Cow::Borrowed(<&str>::arbitrary(choices)?),
        correlation_id: text(choices)?,
        expiration: choices.arbitrary()?,
        sow_key: text(choices)?,
        selector: text(choices)?,
        options: text(choices)?,
        published_at: choices.arbitrary()?,
    })
}
