//! For tests of this client and of programs built on its state machines: parts of the driver that
//! are otherwise private, and planted defects.

mod wire;

use std::sync::Arc;
use std::time::Duration;

use amps_delivery::{Connecting, Identity, Link, LinkEnd, Transport};
use tokio::sync::oneshot;

use crate::amps::{AmpsTransport, Ask};
use crate::chooser::Server;
use crate::connector::Connector;
use crate::delivery::ToSend;
use crate::error::CommandError;
use crate::protocol::DEFAULT_MAX_FRAME;
use crate::requests::{Answer, Request, Subscribe};
use crate::session::SessionConfig;
use crate::subscription::Subscription;

pub use amps_delivery::testkit::{Planted, conformance, plant};
pub use wire::Wire;

/// Makes frames of stored messages, as the driver sends them.
#[derive(Debug)]
pub struct Encoder(crate::wire::Encoder);

impl Encoder {
    /// As the builder's option `publish_ids`.
    pub fn new(publish_ids: bool) -> Self {
        Encoder(crate::wire::Encoder::new(publish_ids))
    }

    /// Appends the frame of a message.
    ///
    /// # Errors
    /// No frame can be made of it: the version of its envelope is unknown, or the frame would be
    /// longer than its length field can say.
    pub fn encode(
        &mut self,
        to_send: &ToSend<'_>,
        out: &mut Vec<u8>,
    ) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
        Ok(self.0.encode(to_send, out)?)
    }
}

/// Links to AMPS servers as the client makes them, for other loops that drive the engine: a
/// simulation, a fuzzer.
pub struct Amps(AmpsTransport);

impl Amps {
    /// Acks that nothing takes are dropped: such a loop has no handlers.
    pub fn new(connector: Arc<dyn Connector>, config: SessionConfig) -> Self {
        Amps(AmpsTransport::new(
            connector,
            config,
            DEFAULT_MAX_FRAME,
            None,
        ))
    }

    /// Opens a link.
    ///
    /// # Errors
    /// The connector's.
    pub async fn connect(&mut self, server: &Server) -> Result<Box<dyn Link>, LinkEnd> {
        // Drops what concerned neither a publish nor a command.
        drop(self.0.desk().take_strays());
        self.0.connect_to(server).await
    }

    /// Leaves a command for the link, to be sent before this moment in terms of [`Now::at`].
    ///
    /// # Errors
    /// There is no link that is logged on, or too many wait.
    ///
    /// [`Now::at`]: crate::delivery::Now::at
    pub fn command(
        &self,
        request: Request,
        until: Duration,
    ) -> Result<oneshot::Receiver<Result<Answer, CommandError>>, CommandError> {
        let (reply, answer) = oneshot::channel();
        let ask = Ask::Command {
            request: request.into(),
            until,
            behind: None,
            reply,
        };
        self.0.desk().try_ask(ask)?;
        Ok(answer)
    }

    /// Leaves a subscription for this link or the next.
    ///
    /// # Errors
    /// Too many wait.
    pub fn subscribe(
        &self,
        spec: Subscribe,
    ) -> Result<oneshot::Receiver<Result<Subscription, CommandError>>, CommandError> {
        let (placing, placed) = oneshot::channel();
        self.0.desk().try_ask(Ask::Subscribe { spec, placing })?;
        Ok(placed)
    }
}

impl Transport for Amps {
    fn kind(&self) -> &'static str {
        self.0.kind()
    }

    fn name(&self, address: &str) -> Result<String, String> {
        self.0.name(address)
    }

    fn connect<'a>(&'a mut self, address: &'a str, me: &'a Identity) -> Connecting<'a> {
        drop(self.0.desk().take_strays());
        self.0.connect(address, me)
    }
}
