//! Which server to try next, and how to log on to it.

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;

use crate::event::LinkEnd;
use crate::uri::Uri;

/// A server to connect to.
#[derive(Clone)]
pub struct Server {
    /// Where it is.
    pub uri: Uri,
    /// Who logs on. Without one, the user and password of the URI are used.
    pub authenticator: Option<Arc<dyn Authenticator>>,
}

impl fmt::Debug for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Server")
            .field("uri", &self.uri.authority())
            .field("authenticator", &self.authenticator.is_some())
            .finish()
    }
}

/// Chooses the server for each attempt. Called from the client's task: it must not block.
pub trait ServerChooser: Send {
    /// The server for the next attempt; `None` gives up for good.
    fn current(&mut self) -> Option<Server>;

    /// The server accepted the logon.
    fn succeeded(&mut self, server: &Server);

    /// The attempt failed, or the link ended.
    fn failed(&mut self, server: &Server, why: &LinkEnd);

    /// How many servers there are to try in turn, 0 if unknown. A logon refused by that
    /// many in a row counts as refused by all.
    fn len(&self) -> usize {
        0
    }

    /// Whether there are no servers.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// Stays with a server as long as it is healthy, and takes the next one when it fails.
#[derive(Clone, Debug)]
pub struct RoundRobin(Turn<Server>);

impl RoundRobin {
    /// Tries the first server first.
    pub fn new(servers: Vec<Server>) -> Self {
        RoundRobin(Turn::new(servers))
    }
}

impl ServerChooser for RoundRobin {
    fn current(&mut self) -> Option<Server> {
        self.0.current().cloned()
    }

    fn succeeded(&mut self, _server: &Server) {}

    fn failed(&mut self, _server: &Server, _why: &LinkEnd) {
        self.0.next();
    }

    fn len(&self) -> usize {
        self.0.len()
    }
}

/// One after the other, round and round.
#[derive(Clone, Debug)]
pub(crate) struct Turn<T> {
    all: Vec<T>,
    at: usize,
}

impl<T> Turn<T> {
    pub(crate) fn new(all: Vec<T>) -> Self {
        Turn { all, at: 0 }
    }

    pub(crate) fn current(&self) -> Option<&T> {
        self.all.get(self.at)
    }

    pub(crate) fn next(&mut self) {
        self.at = (self.at + 1) % self.all.len().max(1);
    }

    pub(crate) fn len(&self) -> usize {
        self.all.len()
    }
}

/// The credentials of a logon.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Credentials {
    /// User.
    pub user: Option<String>,
    /// Password, or the answer to a challenge.
    pub password: Option<String>,
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Credentials")
            .field("user", &self.user)
            .field("password", &self.password.as_ref().map(|_| "***"))
            .finish()
    }
}

/// The future of an [`Authenticator`].
pub type Authenticating<'a> =
    Pin<Box<dyn Future<Output = Result<Credentials, String>> + Send + 'a>>;

/// Supplies the credentials of a logon. It is asked when the connection is open. If it fails, the
/// attempt fails with its error, and so it does if an answer takes longer than the logon timeout;
/// the next attempt asks again.
pub trait Authenticator: Send + Sync {
    /// The credentials for a logon; `given` are those of the URI.
    fn authenticate<'a>(&'a self, server: &'a Uri, given: Credentials) -> Authenticating<'a>;

    /// The server asks again. `challenge` is what it sent.
    fn answer<'a>(&'a self, server: &'a Uri, challenge: Credentials) -> Authenticating<'a>;

    /// The server accepted the logon.
    fn completed(&self, _server: &Uri) {}
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_stays_while_healthy_and_rotates_on_failure() {
        let server = |port: u16| Server {
            uri: format!("tcp://127.0.0.1:{port}/amps/json").parse().unwrap(),
            authenticator: None,
        };
        let mut chooser = RoundRobin::new(vec![server(1), server(2)]);
        let first = chooser.current().unwrap();
        chooser.succeeded(&first);
        assert_eq!(chooser.current().unwrap().uri.port(), 1);
        chooser.failed(&first, &LinkEnd::Closed);
        let second = chooser.current().unwrap();
        assert_eq!(second.uri.port(), 2);
        chooser.failed(&second, &LinkEnd::Closed);
        assert_eq!(chooser.current().unwrap().uri.port(), 1);
        assert!(RoundRobin::new(Vec::new()).current().is_none());
    }
}
