//! What a store says about itself, callable without importing a trait first.
#![allow(missing_docs, clippy::unwrap_used)]

use amps_store::{Envelope, Level, Options, Store, StoredMessage};

/// It once took `use amps_store::PublishStore` to ask a store where to continue.
#[test]
fn a_store_is_asked_where_it_stands() {
    let options = Options::new().client_name("looks").capacity(1 << 20);
    let store = Store::memory(options).unwrap();
    let mut envelope = Envelope::publish("t");
    envelope.user_tag = b"line 1".as_slice().into();
    amps_store::PublishStore::append(&store, &envelope, b"body").unwrap();
    assert_eq!((store.bounds().unsettled, store.bounds().last), (1, 1));
    assert!(store.is_unsettled(1) && !store.is_unsettled(2));
    assert_eq!(store.client_name(), "looks");
    assert_eq!(store.level(), Level::Os);
    assert_eq!(store.durable().sequence, 0);
    assert_eq!(
        (store.numbers().first_of_run, store.numbers().grant),
        (1, 0)
    );
    amps_store::PublishStore::reject(&store, 1, "no", 7).unwrap();
    assert_eq!(store.rejections(0, 9)[0].reason, "no");
    assert_eq!(store.resume_tag().as_deref(), Some(&b"line 1"[..]));
    let mut message = StoredMessage::new();
    assert!(store.get(1, &mut message).unwrap());
    assert_eq!(message.payload(), b"body");
}
