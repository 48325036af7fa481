//! The application's own code runs inside the client's task. If it panics, that is reported and
//! does not end the client.

use std::any::Any;
use std::future::Future;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::backoff::DelayStrategy;
use crate::connector::{ConnectError, Connecting, Connector, Stream};
use crate::uri::Uri;

/// Whose code panicked.
pub(crate) const CHOOSER: &str = "the server chooser";
pub(crate) const CONNECTOR: &str = "the connector";
pub(crate) const STREAM: &str = "the connector's stream";
pub(crate) const AUTHENTICATOR: &str = "the authenticator";
pub(crate) const TRANSPORT: &str = "the transport";
pub(crate) const DELAYS: &str = "the delay strategy";

/// The message of a panic.
pub(crate) fn words(panic: &(dyn Any + Send)) -> String {
    let text = panic
        .downcast_ref::<&str>()
        .map(|text| (*text).to_owned())
        .or_else(|| panic.downcast_ref::<String>().cloned());
    text.unwrap_or_else(|| "(it said nothing)".to_owned())
}

/// Calls code of the application's own. If it panics, whatever it left half done concerns only
/// itself.
///
/// # Errors
/// It panicked, with this message.
pub(crate) fn call<T>(whose: &'static str, code: impl FnOnce() -> T) -> Result<T, String> {
    catch_unwind(AssertUnwindSafe(code))
        .map_err(|panic| format!("{whose} panicked: {}", words(panic.as_ref())))
}

/// The same for a future of the application's, which is not polled again after a panic.
///
/// # Errors
/// Making, polling or dropping it panicked, with this message.
pub(crate) async fn run<F: Future>(
    whose: &'static str,
    make: impl FnOnce() -> F,
) -> Result<F::Output, String> {
    let future = Some(Box::pin(call(whose, make)?));
    Caught { whose, future }.await
}

struct Caught<F> {
    whose: &'static str,
    future: Option<Pin<Box<F>>>,
}

impl<F: Future> Future for Caught<F> {
    type Output = Result<F::Output, String>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let whose = self.whose;
        let Some(future) = &mut self.future else {
            return Poll::Pending;
        };
        let polled = match call(whose, || future.as_mut().poll(cx)) {
            Ok(Poll::Pending) => return Poll::Pending,
            Ok(Poll::Ready(output)) => Ok(output),
            Err(panic) => Err(panic),
        };
        let future = self.future.take();
        Poll::Ready(polled.and_then(|output| call(whose, || drop(future)).map(|()| output)))
    }
}

impl<F> Drop for Caught<F> {
    fn drop(&mut self) {
        let future = self.future.take();
        if let Err(panic) = call(self.whose, || drop(future)) {
            tracing::warn!(%panic, "code of the application's");
        }
    }
}

/// A delay strategy of the application's own. Its panics are reported, and the attempts go on.
pub(crate) struct CarefulDelays(pub(crate) Box<dyn DelayStrategy>);

/// The wait before the next attempt if the delay strategy panics.
const PANICKED: Duration = Duration::from_secs(20);

impl CarefulDelays {
    fn call<T>(&mut self, code: impl FnOnce(&mut dyn DelayStrategy) -> T) -> Option<T> {
        call(DELAYS, || code(self.0.as_mut()))
            .inspect_err(|panic| tracing::warn!(%panic, "code of the application's"))
            .ok()
    }
}

impl DelayStrategy for CarefulDelays {
    fn next_delay(&mut self) -> Option<Duration> {
        self.call(|delays| delays.next_delay())
            .unwrap_or(Some(PANICKED))
    }

    fn longest_delay(&mut self) -> Option<Duration> {
        self.call(|delays| delays.longest_delay())
            .unwrap_or(Some(PANICKED))
    }

    fn reset(&mut self) {
        self.call(|delays| delays.reset());
    }
}

/// A connector of the application's own. A panic in one of its streams is an error of that
/// stream.
#[derive(Debug)]
pub(crate) struct CarefulConnector(pub(crate) Arc<dyn Connector>);

impl Connector for CarefulConnector {
    fn connect<'a>(&'a self, uri: &'a Uri) -> Connecting<'a> {
        let connecting = self.0.connect(uri);
        Box::pin(async move {
            let stream = connecting.await?;
            Ok(Box::new(CarefulStream(Some(stream))) as Box<dyn Stream>)
        })
    }

    fn check(&self, uri: &Uri) -> Result<(), ConnectError> {
        self.0.check(uri)
    }
}

/// `None` once it was dropped.
struct CarefulStream(Option<Box<dyn Stream>>);

impl CarefulStream {
    fn call<T>(
        &mut self,
        code: impl FnOnce(Pin<&mut dyn Stream>) -> Poll<io::Result<T>>,
    ) -> Poll<io::Result<T>> {
        let Some(stream) = &mut self.0 else {
            return Poll::Ready(Err(io::ErrorKind::NotConnected.into()));
        };
        call(STREAM, || code(Pin::new(stream.as_mut())))
            .unwrap_or_else(|panic| Poll::Ready(Err(io::Error::other(panic))))
    }
}

impl AsyncRead for CarefulStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        into: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.call(|stream| stream.poll_read(cx, into))
    }
}

impl AsyncWrite for CarefulStream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.call(|stream| stream.poll_write(cx, bytes))
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.call(|stream| stream.poll_flush(cx))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.call(|stream| stream.poll_shutdown(cx))
    }
}

impl Drop for CarefulStream {
    fn drop(&mut self) {
        let stream = self.0.take();
        if let Err(panic) = call(STREAM, || drop(stream)) {
            tracing::warn!(%panic, "code of the application's");
        }
    }
}
