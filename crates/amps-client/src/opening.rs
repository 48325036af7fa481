//! The moment from which the application has the client.

use std::future::Future;
use std::pin::Pin;
use std::sync::Weak;
use std::task::{Context, Poll};

use crate::client::Client;
use crate::error::OpenError;
use crate::shared::Shared;

/// Holds back what is reported about earlier runs: a handler that was called while the client
/// opens could not have the client yet. Reporting begins when this is dropped, which is when the
/// application has the client, or with the first call that waits for it.
pub(crate) struct Release {
    shared: Weak<Shared>,
    opened: bool,
}

impl Release {
    pub(crate) fn new(shared: Weak<Shared>) -> Self {
        Release {
            shared,
            opened: false,
        }
    }

    /// The client is about to be handed over. Unless this is called, opening it failed after all.
    pub(crate) fn opened(&mut self) {
        self.opened = true;
    }
}

impl Drop for Release {
    fn drop(&mut self) {
        if let (true, Some(shared)) = (self.opened, self.shared.upgrade()) {
            shared.release();
        }
    }
}

/// What `Builder::open` returns. The future is dropped only after it has given the client away,
/// and that is the moment that counts: no code inside a future can wait for it.
pub(crate) struct Opening<F> {
    open: Option<F>,
    release: Option<Release>,
}

impl<F> Opening<F> {
    pub(crate) fn new(open: F) -> Self {
        Opening {
            open: Some(open),
            release: None,
        }
    }
}

impl<F> Future for Opening<F>
where
    F: FnOnce() -> Result<(Client, Release), OpenError> + Unpin,
{
    type Output = Result<Client, OpenError>;

    fn poll(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Self::Output> {
        let Some(open) = self.open.take() else {
            // It has returned its value already.
            return Poll::Pending;
        };
        Poll::Ready(open().map(|(client, mut release)| {
            release.opened();
            self.release = Some(release);
            client
        }))
    }
}
