//! Targets of the store: bytes that are opened, looked at, imported.

mod bases;
mod judge;
mod mutate;
mod text;

use amps_store::Envelope;
use amps_store::testkit::encode_envelope;
use arbitrary::{Arbitrary, Unstructured};

use crate::bounded;
pub(crate) use text::any_envelope;

/// Heap for a file of this many bytes: the simulated disk holds some copies of it, the index has
/// a word and a chunk for each record, and nothing else may grow.
fn allowance(file: usize) -> usize {
    (16 << 20) + 128 * file
}

/// Any bytes as a store.
pub fn open_bytes(data: &[u8]) {
    bounded(allowance(data.len()), || judge::judge(data));
}

/// A good store in which a few fields, records or segments were changed, and whose checksums were
/// made to fit again.
pub fn open_mutated(data: &[u8]) {
    let bytes = mutate::mutate(data);
    if let Some(to) = std::env::var_os("AMPS_FUZZ_SAVE") {
        // So that a finding can be kept as a store, whatever becomes of the generator.
        std::fs::write(to, &bytes).expect("the store is saved");
    }
    bounded(allowance(bytes.len()), || judge::judge(&bytes));
}

/// Any bytes as an envelope, and any envelope as bytes.
pub fn envelope(data: &[u8]) {
    bounded(1 << 20, || {
        if let Ok(read) = Envelope::decode(data)
            && let Ok(bytes) = encode_envelope(&read)
        {
            let again = Envelope::decode(&bytes).expect("an envelope just written");
            assert_eq!(again, read);
            assert!(bytes.len() <= data.len(), "the shortest form is written");
        }
        let mut choices = Unstructured::new(data);
        let Ok(made) = any_envelope(&mut choices) else {
            return;
        };
        let bytes = encode_envelope(&made).expect("a short tag");
        assert_eq!(Envelope::decode(&bytes).expect("just written"), made);
        let cut = usize::arbitrary(&mut choices).unwrap_or(0) % bytes.len();
        assert!(Envelope::decode(&bytes[..cut]).is_err(), "cut at {cut}");
    });
}

pub use text::ndjson;
