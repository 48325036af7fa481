//! What a client's messages will be carried by, as it was described.

use std::sync::{Arc, Mutex};

use amps_delivery::Transport;

use super::Builder;
use crate::amps::{AmpsTransport, Desk, Slot};
use crate::carrier::{Address, Carrier, Servers};
use crate::chooser::{RoundRobin, Server, ServerChooser, Turn};
use crate::connector::{Connector, SchemeConnector};
use crate::error::OpenError;
use crate::panics::CarefulConnector;
use crate::sampled::Sampled;
use crate::session::SessionConfig;
use crate::uri::Uri;

/// What opens links, which server is next, and where handles ask for what is no message.
pub(super) struct Carried {
    pub(super) carrier: Carrier,
    pub(super) servers: Servers,
    pub(super) desk: Arc<Desk>,
    pub(super) slot: Arc<Slot>,
}

impl Builder {
    /// What carries messages, and where to.
    pub(super) fn carried(&mut self, sampled: &Arc<Mutex<Sampled>>) -> Result<Carried, OpenError> {
        if let Some(transport) = self.transport.take() {
            let servers = self.addresses(transport.as_ref())?;
            let (desk, slot) = Desk::unserved();
            return Ok(Carried {
                carrier: Carrier::Other(transport),
                servers,
                desk,
                slot,
            });
        }
        let connector = self.connector.take();
        let connector = connector.unwrap_or_else(|| Arc::new(SchemeConnector::new()));
        let servers = Servers::Amps(self.choose(connector.as_ref())?);
        let amps = AmpsTransport::new(
            Arc::new(CarefulConnector(connector)),
            self.session(),
            self.max_frame,
            cfg!(feature = "metrics").then(|| sampled.clone()),
        );
        Ok(Carried {
            desk: amps.desk(),
            slot: amps.slot(),
            servers,
            carrier: Carrier::Amps(amps),
        })
    }

    fn addresses(&mut self, transport: &dyn Transport) -> Result<Servers, OpenError> {
        if self.servers.is_empty() {
            return Err(OpenError::NoServer);
        }
        let all = self.servers.drain(..);
        let all = all.map(|(address, _)| Address::new(transport, address).map_err(OpenError::Uri));
        Ok(Servers::Other(Turn::new(all.collect::<Result<_, _>>()?)))
    }

    fn choose(&mut self, connector: &dyn Connector) -> Result<Box<dyn ServerChooser>, OpenError> {
        if let Some(chooser) = self.chooser.take() {
            return Ok(chooser);
        }
        if self.servers.is_empty() {
            return Err(OpenError::NoServer);
        }
        let mut servers = Vec::new();
        for (uri, authenticator) in self.servers.drain(..) {
            let uri: Uri = uri.parse().map_err(|e| OpenError::Uri(format!("{e}")))?;
            connector.check(&uri).map_err(|source| OpenError::Server {
                server: uri.authority(),
                source,
            })?;
            servers.push(Server { uri, authenticator });
        }
        Ok(Box::new(RoundRobin::new(servers)))
    }

    fn session(&self) -> SessionConfig {
        let conflation = self
            .ack_conflation
            .as_ref()
            .map(|i| format!("ack_conflation={i}"));
        let options: Vec<String> = conflation
            .into_iter()
            .chain(self.logon_options.clone())
            .collect();
        SessionConfig {
            client_name: self.name.clone(),
            logon_options: (!options.is_empty()).then(|| options.join(",")),
            logon_correlation: self.logon_correlation.clone(),
            heartbeat: self.heartbeat,
            logon_timeout: self.logon_timeout,
            command_timeout: self.command_timeout,
            stored: self.store.is_some(),
            publish_ids: self.publish_ids,
        }
    }
}
