//! What carries messages, and which server is next: AMPS, or a transport from outside.

use amps_delivery::{Identity, Link, LinkEnd, Transport};

use crate::amps::AmpsTransport;
use crate::chooser::{Server, ServerChooser, Turn};
use crate::panics::{self, TRANSPORT};

/// What opens links.
pub(crate) enum Carrier {
    Amps(AmpsTransport),
    Other(Box<dyn Transport>),
}

/// Which server is next. Those of AMPS may have authenticators, and an application may choose among
/// them; another transport has addresses, which are tried in turn.
pub(crate) enum Servers {
    Amps(Box<dyn ServerChooser>),
    Other(Turn<Address>),
}

/// A server that was chosen.
#[derive(Clone)]
pub(crate) enum Chosen {
    Amps(Server),
    Other(Address),
}

/// Where a server of another transport is.
#[derive(Clone)]
pub(crate) struct Address {
    address: String,
    name: String,
}

impl Address {
    /// # Errors
    /// The transport does not know such addresses.
    pub(crate) fn new(transport: &dyn Transport, address: String) -> Result<Self, String> {
        let name = transport.name(&address)?;
        Ok(Address { address, name })
    }
}

impl Chosen {
    /// Without credentials.
    pub(crate) fn name(&self) -> String {
        match self {
            Chosen::Amps(server) => server.uri.authority(),
            Chosen::Other(server) => server.name.clone(),
        }
    }
}

impl Servers {
    pub(crate) fn current(&mut self) -> Option<Chosen> {
        match self {
            Servers::Amps(chooser) => chooser.current().map(Chosen::Amps),
            Servers::Other(turn) => turn.current().cloned().map(Chosen::Other),
        }
    }

    pub(crate) fn succeeded(&mut self, server: &Chosen) {
        if let (Servers::Amps(chooser), Chosen::Amps(server)) = (self, server) {
            chooser.succeeded(server);
        }
    }

    pub(crate) fn failed(&mut self, server: &Chosen, why: &LinkEnd) {
        match (self, server) {
            (Servers::Amps(chooser), Chosen::Amps(server)) => chooser.failed(server, why),
            (Servers::Other(turn), _) => turn.next(),
            (Servers::Amps(_), Chosen::Other(_)) => {}
        }
    }

    pub(crate) fn len(&self) -> usize {
        match self {
            Servers::Amps(chooser) => chooser.len(),
            Servers::Other(turn) => turn.len(),
        }
    }
}

impl Carrier {
    /// Opens a link. Cancel safe.
    pub(crate) async fn connect(
        &mut self,
        server: &Chosen,
        me: &Identity,
    ) -> Result<Box<dyn Link>, LinkEnd> {
        match (self, server) {
            (Carrier::Amps(amps), Chosen::Amps(server)) => amps.connect_to(server).await,
            (Carrier::Other(other), Chosen::Other(server)) => {
                let opening = panics::run(TRANSPORT, || other.connect(&server.address, me));
                opening.await.map_err(LinkEnd::Panicked)?
            }
            // They are made together.
            (Carrier::Amps(_), Chosen::Other(_)) | (Carrier::Other(_), Chosen::Amps(_)) => {
                let error = "this server is of another transport".to_owned();
                Err(LinkEnd::Connect(error))
            }
        }
    }
}
