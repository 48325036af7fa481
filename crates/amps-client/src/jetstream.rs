//! NATS JetStream in the place of AMPS (feature `jetstream`).
//!
//! ```no_run
//! use amps_client::jetstream::{self, Config};
//! use amps_client::Client;
//! use amps_store::{Options, Store};
//!
//! # async fn run() -> Result<(), Box<dyn std::error::Error>> {
//! let client = Client::builder("orders-feed")
//!     .store(Store::open("orders.store", Options::new().client_name("orders-feed"))?)
//!     .transport(jetstream::transport(Config::new("orders")))
//!     .server("nats://127.0.0.1:4222")
//!     .open()
//!     .await?;
//! let outcome = client.publish("orders", "1").await?.await;
//! # Ok(())
//! # }
//! ```
//!
//! The stream that takes the topic in [`Config`] is where everything goes: messages of other topics
//! that it does not take wait. What is promised, in which of two modes, is on the page of the crate
//! `amps_jetstream`. Commands, subscriptions, delta publishes and deletes are AMPS's alone.

use std::sync::Arc;

use crate::connector::{NatsOpener, SchemeConnector};

pub use amps_jetstream::{
    Config, Create, Credentials, CredentialsError, JetStream, Mode, Opener, Read, Reader,
};

/// JetStream over TCP to `nats://` addresses, and over TLS to `tls://` ones, where certificates of
/// servers are checked against the system's root certificates.
///
/// A server that wants TLS before its greeting (`handshake_first`) is not served.
pub fn transport(config: Config) -> JetStream {
    JetStream::new(config, opener())
}

/// What opens connections to servers of NATS, for a [`Reader`]; TLS as for [`transport`].
pub fn opener() -> Arc<dyn Opener> {
    Arc::new(NatsOpener(SchemeConnector::new()))
}

/// The same with TLS set up by `tls`: for a certificate authority or a client certificate of your
/// own.
#[cfg(feature = "tls")]
pub fn transport_with_tls(config: Config, tls: crate::connector::TlsConnector) -> JetStream {
    JetStream::new(config, opener_with_tls(tls))
}

/// The same with TLS set up by `tls`.
#[cfg(feature = "tls")]
pub fn opener_with_tls(tls: crate::connector::TlsConnector) -> Arc<dyn Opener> {
    Arc::new(NatsOpener(SchemeConnector::new().with_tls(tls)))
}
