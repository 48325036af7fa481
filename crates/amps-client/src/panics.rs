//! Code of the application's runs inside the client's task. A panic of it is told, and does not
//! end the client.

use std::any::Any;
use std::future::Future;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::task::{Context, Poll};

/// What a panic said.
pub(crate) fn words(panic: &(dyn Any + Send)) -> String {
    let text = panic
        .downcast_ref::<&str>()
        .map(|text| (*text).to_owned())
        .or_else(|| panic.downcast_ref::<String>().cloned());
    text.unwrap_or_else(|| "(it said nothing)".to_owned())
}

/// Calls code of the application's. What it leaves half done is its own.
///
/// # Errors
/// It panicked, with these words.
pub(crate) fn call<T>(whose: &'static str, code: impl FnOnce() -> T) -> Result<T, String> {
    catch_unwind(AssertUnwindSafe(code))
        .map_err(|panic| format!("{whose} panicked: {}", words(panic.as_ref())))
}

/// The same for a future of the application's, which is not polled again after a panic.
///
/// # Errors
/// Making, polling or dropping it panicked, with these words.
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
