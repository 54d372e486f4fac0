//! Bodies on their way through: never held whole, in either direction.

use std::{
    pin::Pin,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicU8, Ordering},
    },
    task::{Context, Poll, Waker},
    time::Duration,
};

use bytes::Bytes;
use http::{HeaderMap, header};
use http_body_util::{BodyExt, Full};
use hyper::body::{Body, Frame, Incoming, SizeHint};
use thiserror::Error;
use tokio::time::{Instant, Sleep, timeout};

use crate::{
    access::Exchange,
    client::Answering,
    pool::{Connection, Pool},
};

/// Why a client's body did not reach Odoo whole.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub(crate) enum BodyFault {
    #[error("the request's body is larger than this server takes")]
    TooLarge,
    #[error("the client stopped sending within the request's body")]
    Stalled,
    #[error("the client's body broke off or is malformed")]
    Broken,
}

/// What became of a body that was given away.
#[derive(Debug, Clone, Default)]
pub(crate) struct BodyWatch(Arc<Fate>);

#[derive(Debug, Default)]
struct Fate {
    code: AtomicU8,
    over: OnceLock<std::time::Instant>,
}

const UNDER_WAY: u8 = 0;
const ENDED: u8 = 1;
const TOO_LARGE: u8 = 2;
const STALLED: u8 = 3;
const BROKEN: u8 = 4;

impl BodyWatch {
    pub(crate) fn fault(&self) -> Option<BodyFault> {
        match self.0.code.load(Ordering::Acquire) {
            TOO_LARGE => Some(BodyFault::TooLarge),
            STALLED => Some(BodyFault::Stalled),
            BROKEN => Some(BodyFault::Broken),
            _ => None,
        }
    }

    /// Nothing of it will come any more.
    pub(crate) fn is_over(&self) -> bool {
        self.0.code.load(Ordering::Acquire) != UNDER_WAY
    }

    /// When the last of it came.
    pub(crate) fn over(&self) -> Option<std::time::Instant> {
        self.0.over.get().copied()
    }
}

/// For how long the rest of a body that nobody wants is read and thrown away. Closing a socket with unread bytes resets it, and the client
/// would lose the answer that says why.
const DRAIN_LIMIT: Duration = Duration::from_secs(10);
/// A client that pauses so long has stopped sending.
const DRAIN_PAUSE: Duration = Duration::from_secs(2);

/// A client's body: limited in size and in how long it may pause; trailers end here.
pub(crate) struct RequestBody {
    inner: Option<Incoming>,
    /// The client sends whether it is wanted or not; one that waits for `100 Continue` does not.
    is_on_its_way: bool,
    remaining: u64,
    pace: Pace,
    watch: BodyWatch,
}

/// How slowly a body may come.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Patience {
    /// Without anything.
    pub(crate) pause: Duration,
    /// Bytes a second, over the time in which the client was waited for.
    pub(crate) rate: u64,
}

/// Before the rate counts.
const RATE_GRACE: Duration = Duration::from_secs(30);

/// The time in which a client was waited for, and what came in it. While Odoo does not read, nobody waits for the client.
struct Pace {
    patience: Patience,
    received: u64,
    waited: Duration,
    waiting: Option<(Instant, Pin<Box<Sleep>>)>,
}

impl Pace {
    fn new(patience: Patience) -> Self {
        Self { patience, received: 0, waited: Duration::ZERO, waiting: None }
    }

    fn came(&mut self, bytes: u64) {
        self.received += bytes;
        if let Some((since, _)) = self.waiting.take() {
            self.waited += since.elapsed();
        }
    }

    /// For how long it may be waited for now: a pause, and not longer than its rate allows in all.
    fn allowed(&self) -> Duration {
        let in_all = self.received.checked_div(self.patience.rate).map_or(Duration::MAX, Duration::from_secs).max(RATE_GRACE);
        in_all.saturating_sub(self.waited).min(self.patience.pause)
    }

    fn poll_too_slow(&mut self, context: &mut Context<'_>) -> Poll<()> {
        let allowed = self.allowed();
        let (_, timer) = self.waiting.get_or_insert_with(|| {
            let now = Instant::now();
            (now, Box::pin(tokio::time::sleep_until(now + allowed)))
        });
        timer.as_mut().poll(context)
    }
}

impl RequestBody {
    pub(crate) fn new(inner: Incoming, headers: &HeaderMap, limit: u64, patience: Patience) -> Self {
        let inner = if inner.is_end_stream() { None } else { Some(inner) };
        let is_on_its_way = !headers.contains_key(header::EXPECT);
        Self { inner, is_on_its_way, remaining: limit, pace: Pace::new(patience), watch: BodyWatch::default() }
    }

    /// For the host that it turned out to be for.
    pub(crate) fn limit(&mut self, limit: u64) {
        self.remaining = limit;
    }

    /// How much of it, in bytes, the kernel may come to hold while nobody reads it; at most `buffer`, and nothing of one that the client keeps
    /// until it is asked for.
    pub(crate) fn received_unread(&self, buffer: u64) -> u64 {
        match &self.inner {
            Some(inner) if self.is_on_its_way => inner.size_hint().exact().unwrap_or(buffer).min(buffer),
            _ => 0,
        }
    }

    pub(crate) fn empty() -> Self {
        let pace = Pace::new(Patience { pause: Duration::ZERO, rate: 0 });
        Self { inner: None, is_on_its_way: false, remaining: 0, pace, watch: BodyWatch::default() }
    }

    pub(crate) fn watch(&self) -> BodyWatch {
        self.watch.clone()
    }

    /// Reads on in the background, into nothing.
    fn drain(&mut self) {
        if let Some(mut inner) = self.inner.take_if(|inner| self.is_on_its_way && !inner.is_end_stream())
            && let Ok(runtime) = tokio::runtime::Handle::try_current()
        {
            let rest = async move { while let Ok(Some(Ok(_))) = timeout(DRAIN_PAUSE, inner.frame()).await {} };
            runtime.spawn(timeout(DRAIN_LIMIT, rest));
        }
    }

    fn fail(&mut self, fault: BodyFault) -> Poll<Option<Result<Frame<Bytes>, BodyFault>>> {
        let code = match fault {
            BodyFault::TooLarge => {
                self.drain();
                TOO_LARGE
            }
            BodyFault::Stalled => STALLED,
            BodyFault::Broken => BROKEN,
        };
        self.inner = None;
        self.watch.0.code.store(code, Ordering::Release);
        Poll::Ready(Some(Err(fault)))
    }
}

impl Drop for RequestBody {
    fn drop(&mut self) {
        self.drain();
        // Only the first end counts.
        let _ = self.watch.0.over.set(std::time::Instant::now());
        // Sent whole, or not wanted any more; a fault stays what it is.
        let _ = self.watch.0.code.compare_exchange(UNDER_WAY, ENDED, Ordering::AcqRel, Ordering::Acquire);
    }
}

impl Body for RequestBody {
    type Data = Bytes;
    type Error = BodyFault;

    fn poll_frame(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyFault>>> {
        let this = self.get_mut();
        let Some(inner) = &mut this.inner else { return Poll::Ready(None) };
        match Pin::new(inner).poll_frame(context) {
            Poll::Ready(Some(Ok(frame))) => {
                this.pace.came(frame.data_ref().map_or(0, |data| data.len() as u64));
                let Ok(data) = frame.into_data() else {
                    this.inner = None;
                    return Poll::Ready(None);
                };
                match this.remaining.checked_sub(data.len() as u64) {
                    Some(remaining) => {
                        this.remaining = remaining;
                        Poll::Ready(Some(Ok(Frame::data(data))))
                    }
                    None => this.fail(BodyFault::TooLarge),
                }
            }
            Poll::Ready(Some(Err(_))) => this.fail(BodyFault::Broken),
            Poll::Ready(None) => {
                this.inner = None;
                Poll::Ready(None)
            }
            Poll::Pending => match this.pace.poll_too_slow(context) {
                Poll::Ready(()) => this.fail(BodyFault::Stalled),
                Poll::Pending => Poll::Pending,
            },
        }
    }

    fn is_end_stream(&self) -> bool {
        self.inner.as_ref().is_none_or(Body::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.as_ref().map_or_else(|| SizeHint::with_exact(0), Body::size_hint)
    }
}

/// An answer, Odoo's or the edge's own. It carries its [`Exchange`], which ends with it.
pub(crate) struct ResponseBody {
    source: Source,
    exchange: Option<Exchange>,
    /// Until hyper has all of it.
    answering: Option<Answering>,
}

enum Source {
    Own(Full<Bytes>),
    Upstream(Incoming, Option<Carrier>),
}

impl Source {
    fn is_end_stream(&self) -> bool {
        match self {
            Self::Own(body) => body.is_end_stream(),
            Self::Upstream(body, _) => body.is_end_stream(),
        }
    }

    /// The answer has been read to its end.
    fn give_back(&mut self) {
        if let Self::Upstream(_, carrier) = self
            && let Some(Carrier { connection, pool }) = carrier.take()
        {
            pool.give_back(connection);
        }
    }
}

/// The connection on which an answer comes, when whoever reads the answer has to drive it. It is closed when it is dropped before the end.
pub(crate) struct Carrier {
    connection: Connection,
    pool: Arc<Pool>,
}

impl Carrier {
    pub(crate) fn new(connection: Connection, pool: Arc<Pool>) -> Self {
        Self { connection, pool }
    }

    fn poll_frame(&mut self, body: &mut Incoming, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        // Whatever the body waits for comes by the connection, which is looked at each time; it needs to wake nobody itself.
        let mut unheard = Context::from_waker(Waker::noop());
        if let Poll::Ready(next) = Pin::new(&mut *body).poll_frame(&mut unheard) {
            return Poll::Ready(next);
        }
        self.connection.drive(context);
        Pin::new(body).poll_frame(&mut unheard)
    }
}

impl ResponseBody {
    pub(crate) fn upstream(body: Incoming, carrier: Option<Carrier>, exchange: Exchange) -> Self {
        Self::new(Source::Upstream(body, carrier), exchange)
    }

    pub(crate) fn own(bytes: Bytes, exchange: Exchange) -> Self {
        Self::new(Source::Own(Full::new(bytes)), exchange)
    }

    /// The empty body of a `101`, whose exchange goes on in a tunnel.
    pub(crate) fn switched() -> Self {
        Self { source: Source::Own(Full::default()), exchange: None, answering: None }
    }

    /// Ends the exchange at once when there is nothing to send: hyper does not ask then.
    fn new(mut source: Source, mut exchange: Exchange) -> Self {
        let ended = source.is_end_stream();
        if ended {
            exchange.complete();
            source.give_back();
        }
        Self { source, exchange: if ended { None } else { Some(exchange) }, answering: None }
    }

    pub(crate) fn during(mut self, answering: Answering) -> Self {
        self.answering = Some(answering);
        self
    }
}

impl Body for ResponseBody {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        let this = self.get_mut();
        let polled = match &mut this.source {
            Source::Own(body) => Pin::new(body).poll_frame(context).map_err(|never| match never {}),
            Source::Upstream(body, None) => Pin::new(body).poll_frame(context),
            Source::Upstream(body, Some(carrier)) => carrier.poll_frame(body, context),
        };
        let Poll::Ready(next) = polled else { return Poll::Pending };
        match &next {
            Some(Ok(frame)) => {
                if let (Some(exchange), Some(data)) = (&mut this.exchange, frame.data_ref()) {
                    exchange.sent(data.len() as u64);
                }
            }
            Some(Err(error)) => {
                if let Some(mut exchange) = this.exchange.take() {
                    exchange.broke_off(format!("Odoo's answer broke off: {error}"));
                }
            }
            None => {}
        }
        // hyper asks no more once it has seen the end, so the end is looked for after each frame.
        if next.is_none() || this.is_end_stream() {
            this.source.give_back();
            if let Some(mut exchange) = this.exchange.take() {
                exchange.complete();
            }
        }
        Poll::Ready(next)
    }

    fn is_end_stream(&self) -> bool {
        self.source.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        match &self.source {
            Source::Own(body) => body.size_hint(),
            Source::Upstream(body, _) => body.size_hint(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_client_may_pause_and_may_not_drip_for_ever() {
        let mut pace = Pace::new(Patience { pause: Duration::from_secs(120), rate: 100 });
        assert_eq!(pace.allowed(), RATE_GRACE);
        // 50 seconds' worth of bytes in half of the time: there is as much left.
        (pace.received, pace.waited) = (5000, Duration::from_secs(25));
        assert_eq!(pace.allowed(), Duration::from_secs(25));
        pace.received = 1_000_000;
        assert_eq!(pace.allowed(), Duration::from_secs(120), "a long pause is one all the same");
        (pace.received, pace.waited) = (31, Duration::from_secs(31));
        assert_eq!(pace.allowed(), Duration::ZERO, "a byte a second is none");
        pace.patience.rate = 0;
        assert_eq!(pace.allowed(), Duration::from_secs(120), "no rate, no limit by it");
    }
}
