//! What opens links: one kind of server, and what outlives a link to it.

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;

use amps_store::Envelope;

use crate::event::LinkEnd;
use crate::link::{Link, Unsendable};

/// Opens links to servers of one kind. What has to outlive a link (ids that were given out, a
/// session that is taken up again) is kept here, and nowhere else: it never reconnects by itself
/// and holds no message, since what was not acked is sent again from the store.
///
/// One link exists at a time. [`connect`](Self::connect) is called again only after the link before
/// was dropped.
///
/// The suite `amps_delivery::testkit::conformance` (feature `testkit`) shows whether a transport
/// keeps what is said here and at [`Link`]; `examples/own_transport.rs` in the repository is one
/// that does.
pub trait Transport: Send {
    /// What kind of server this is, in a word, the same one for ever: numbers and ids that one kind
    /// was given mean nothing to another.
    fn kind(&self) -> &'static str;

    /// What to call a server in logs, events and reports: its address without any secret in it.
    ///
    /// # Errors
    /// This is no address of such a server; the text says what one looks like.
    fn name(&self, address: &str) -> Result<String, String>;

    /// What looks at each message before it is stored or sent, if something has to.
    fn admits(&self) -> Option<Arc<dyn Admits>> {
        None
    }

    /// Opens a link to the server at this address. Whatever the server has to be told first is part
    /// of the link ([`Heard::Up`](crate::Heard::Up)).
    ///
    /// It may be dropped at any moment, and then nothing is left behind: no task, no connection,
    /// and the next call finds everything as it was.
    fn connect<'a>(&'a mut self, address: &'a str, me: &'a Identity) -> Connecting<'a>;
}

/// The future of [`Transport::connect`].
pub type Connecting<'a> = Pin<Box<dyn Future<Output = Result<Box<dyn Link>, LinkEnd>> + Send + 'a>>;

/// Keeps messages out that no server of this kind can ever take, before they are stored. Called for
/// every publish, in the publisher's thread.
pub trait Admits: Send + Sync {
    /// Looks at a message.
    ///
    /// # Errors
    /// No server can take it.
    fn admit(&self, envelope: &Envelope<'_>, payload: &[u8]) -> Result<(), Unsendable>;
}

/// Who publishes. With its number on the wire and the time at which it was published, `store` names
/// a message for ever.
#[derive(Clone, PartialEq, Eq)]
pub struct Identity {
    /// The client's name.
    pub client: String,
    /// The store's number ([`amps_store::PublishStore::identity`]), or one drawn for this run where
    /// nothing outlives it.
    pub store: u64,
    /// No message went out under a higher number on the wire than this one, in this run or before:
    /// what a server says of one above it is about somebody else's.
    pub may_have_sent: u64,
    /// The first unsettled message, by its number on the wire.
    pub first_unsettled: Option<u64>,
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Identity")
            .field("client", &self.client)
            .field("store", &format_args!("{:016x}", self.store))
            .field("may_have_sent", &self.may_have_sent)
            .field("first_unsettled", &self.first_unsettled)
            .finish()
    }
}
