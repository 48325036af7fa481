//! Links to JetStream, one after the other.

use std::future::Future;
use std::hash::{BuildHasher as _, RandomState};
use std::pin::Pin;
use std::sync::Arc;

use amps_delivery::{Admits, Connecting, Identity, Link, LinkEnd, Transport, Unsendable};
use amps_store::Envelope;

use crate::address::Address;
use crate::config::Config;
use crate::encode::check;
use crate::link::{JetStreamLink, Stream};

/// Opens streams of bytes to servers. It does not decide when or how often.
pub trait Opener: Send + Sync {
    /// Opens one. Dropped, it leaves nothing behind.
    fn open<'a>(&'a self, address: &'a Address) -> Opening<'a>;
}

/// The future of a stream being opened. An error says why in words.
pub type Opening<'a> = Pin<Box<dyn Future<Output = Result<Box<dyn Stream>, String>> + Send + 'a>>;

/// JetStream as a [`Transport`]. Nothing outlives its links but how they are made: what a stream
/// holds of ours is read from it at each.
pub struct JetStream {
    config: Config,
    opener: Arc<dyn Opener>,
}

impl JetStream {
    /// Links that behave like this, over streams that `opener` opens.
    pub fn new(config: Config, opener: Arc<dyn Opener>) -> Self {
        JetStream { config, opener }
    }

    /// Finds the stream by this topic from now on.
    pub fn find_by(&mut self, topic: impl Into<String>) {
        self.config.topic = topic.into();
    }
}

impl Transport for JetStream {
    fn kind(&self) -> &'static str {
        "nats-jetstream"
    }

    fn name(&self, address: &str) -> Result<String, String> {
        let address: Result<Address, _> = address.parse();
        match address {
            Ok(address) => Ok(address.to_string()),
            Err(error) => Err(error.to_string()),
        }
    }

    fn admits(&self) -> Option<Arc<dyn Admits>> {
        Some(Arc::new(Admission))
    }

    fn connect<'a>(&'a mut self, address: &'a str, me: &'a Identity) -> Connecting<'a> {
        Box::pin(async move {
            let address: Address = address
                .parse()
                .map_err(|error: crate::AddressError| LinkEnd::Connect(error.to_string()))?;
            let mut config = self.config.clone();
            config.tls = address.is_encrypted();
            if let Some(credentials) = address.credentials() {
                config.credentials = credentials.clone();
            }
            let stream = self.opener.open(&address).await;
            let stream = stream.map_err(LinkEnd::Connect)?;
            let link = JetStreamLink::new(stream, config, me.clone(), &token());
            Ok(Box::new(link) as Box<dyn Link>)
        })
    }
}

/// What a link's answers come to is named by: nobody guesses it who does not see the link.
pub(crate) fn token() -> String {
    let part = || RandomState::new().hash_one("inbox");
    format!("{:016x}{:016x}", part(), part())
}

/// What can never be a message in a stream is not stored here either.
struct Admission;

impl Admits for Admission {
    fn admit(&self, envelope: &Envelope<'_>, _: &[u8]) -> Result<(), Unsendable> {
        check(envelope)
    }
}

#[cfg(test)]
mod tests {
    use amps_store::Operation;

    use super::*;

    #[test]
    fn what_no_stream_can_hold_is_kept_out() {
        let admit = |envelope: &Envelope<'_>| Admission.admit(envelope, b"x");
        assert!(admit(&Envelope::publish("a b")).is_ok());
        assert!(admit(&Envelope::publish("")).is_err());
        assert!(admit(&Envelope::publish("x".repeat(2_049))).is_err());
        let delta = Envelope {
            operation: Operation::DeltaPublish,
            ..Envelope::publish("a")
        };
        let why = admit(&delta).unwrap_err().why;
        assert!(why.contains("DeltaPublish"), "{why}");
        let mut wide = Envelope::publish("a");
        wide.correlation_id = Some("é".repeat(11_000).into());
        assert!(admit(&wide).is_err());
    }

    #[test]
    fn inboxes_are_never_the_same() {
        let (one, other) = (token(), token());
        assert_ne!(one, other);
        assert_eq!(one.len(), 32);
    }
}
