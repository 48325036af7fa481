//! AMPS as the way to carry messages: sessions over streams that a connector opens.

mod desk;
mod link;
mod readers;
#[cfg(test)]
mod tests;

use std::sync::{Arc, Mutex};
use std::time::Duration;

use amps_delivery::{Connecting, Identity, Link, LinkEnd, Transport};

use crate::chooser::Server;
use crate::connector::Connector;
use crate::panics::{self, CONNECTOR};
use crate::sampled::Sampled;
use crate::session::{Session, SessionConfig};
use crate::uri::{Uri, UriError};

pub(crate) use desk::{Ask, Behind, Desk, Slot, Stray};
use link::{AmpsLink, Making};

/// Opens links, one at a time.
pub(crate) struct AmpsTransport {
    connector: Arc<dyn Connector>,
    desk: Arc<Desk>,
    slot: Arc<Slot>,
    publish_ids: bool,
    logon_timeout: Duration,
    max_frame: usize,
    sampled: Option<Arc<Mutex<Sampled>>>,
}

impl AmpsTransport {
    pub(crate) fn new(
        connector: Arc<dyn Connector>,
        config: SessionConfig,
        max_frame: usize,
        sampled: Option<Arc<Mutex<Sampled>>>,
    ) -> Self {
        let (publish_ids, logon_timeout) = (config.publish_ids, config.logon_timeout);
        let (desk, slot) = Desk::new(Session::new(config));
        AmpsTransport {
            connector,
            desk,
            slot,
            sampled,
            publish_ids,
            logon_timeout,
            max_frame,
        }
    }

    /// Where handles leave what they ask for.
    pub(crate) fn desk(&self) -> Arc<Desk> {
        self.desk.clone()
    }

    /// Where the sitting is kept while there is no link.
    pub(crate) fn slot(&self) -> Arc<Slot> {
        self.slot.clone()
    }

    /// Opens a stream to the server. The link logs on.
    ///
    /// Cancel safe: nothing is left behind.
    pub(crate) async fn connect_to(&mut self, server: &Server) -> Result<Box<dyn Link>, LinkEnd> {
        let opening = panics::run(CONNECTOR, || self.connector.connect(&server.uri));
        let stream = match opening.await {
            Ok(Ok(stream)) => stream,
            Ok(Err(error)) => return Err(LinkEnd::Connect(error.to_string())),
            Err(panic) => return Err(LinkEnd::Panicked(panic)),
        };
        let link = AmpsLink::new(Making {
            stream,
            server: server.clone(),
            slot: self.slot.clone(),
            sampled: self.sampled.clone(),
            publish_ids: self.publish_ids,
            max_frame: self.max_frame,
            logon_timeout: self.logon_timeout,
        });
        match link {
            Some(link) => Ok(Box::new(link)),
            None => Err(LinkEnd::Connect(
                "the link before is still there".to_owned(),
            )),
        }
    }
}

/// AMPS servers by their addresses alone: who logs on there is the address's user.
impl Transport for AmpsTransport {
    fn kind(&self) -> &'static str {
        "amps"
    }

    fn name(&self, address: &str) -> Result<String, String> {
        let uri: Uri = address
            .parse()
            .map_err(|error: UriError| error.to_string())?;
        Ok(uri.authority())
    }

    fn connect<'a>(&'a mut self, address: &'a str, _: &'a Identity) -> Connecting<'a> {
        Box::pin(async move {
            let uri = address.parse();
            let uri = uri.map_err(|error: UriError| LinkEnd::Connect(error.to_string()))?;
            let authenticator = None;
            self.connect_to(&Server { uri, authenticator }).await
        })
    }
}
