//! Requests of an instance that comes back in a moment, or sleeps, wait for it: bounded in number, in bytes and in time, released in their order.
//!
//! Only their headers are held. A body stays with its client and in the kernel's buffers until the request is passed on.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use ocore_model::route::{DEFAULT_HOLD_SECONDS, Route, RouteState};

use crate::{
    access::Exchange,
    client::Client,
    host_name::HostName,
    line::{Call, Full, Kind, Line, Place},
    pages::{Form, Page},
    proxy::Outbound,
    routes::Destination,
    server::Shared,
};

/// What the kernel takes of a connection that nobody reads (Linux's `tcp_rmem`, its largest by default).
const RECEIVE_BUFFER: u64 = 6 * 1024 * 1024;
/// Until a person sees that an instance wakes up, and not only that nothing happens.
const PATIENCE: Duration = Duration::from_secs(2);

/// One request on its way to an Odoo that may have to come back first.
pub(crate) struct Visit<'a> {
    pub(crate) shared: &'a Shared,
    pub(crate) host: &'a HostName,
    pub(crate) client: &'a Client,
    kind: Kind,
    /// A page is shown to a person.
    is_page: bool,
    body_bytes: u64,
    /// Kept from the end of the waiting until Odoo has answered.
    place: Option<Place>,
    arrived: Instant,
}

impl<'a> Visit<'a> {
    pub(crate) fn new(shared: &'a Shared, host: &'a HostName, client: &'a Client, outbound: &Outbound) -> Self {
        let kind = if outbound.is_websocket { Kind::Websocket } else { Kind::Request };
        let is_page = outbound.is_repeatable() && Form::wanted_by(&outbound.head.headers) == Form::Html;
        let body_bytes = outbound.body.received_unread(RECEIVE_BUFFER);
        Self { shared, host, client, kind, is_page, body_bytes, place: None, arrived: Instant::now() }
    }

    /// Waits, if need be, until the route leads to an Odoo and this request may go there. `destination` is what was found for it already.
    pub(crate) async fn admit(&mut self, destination: Arc<Destination>, exchange: &mut Exchange) -> Result<Arc<Destination>, Page> {
        let (shared, client) = (self.shared, self.client);
        let mut destination = destination;
        loop {
            let line = destination.line();
            let limit = match &destination.route.state {
                RouteState::Serving { .. } if line.is_free() => return Ok(destination),
                RouteState::Serving { .. } => Duration::from_secs(DEFAULT_HOLD_SECONDS.into()).saturating_sub(self.arrived.elapsed()),
                RouteState::Holding { until, seconds, .. } => {
                    let of_the_hold = (*until - shared.traffic.now()).to_std().unwrap_or_default();
                    Duration::from_secs((*seconds).into()).saturating_sub(self.arrived.elapsed()).min(of_the_hold)
                }
                RouteState::Asleep { .. } if self.kind == Kind::Websocket => return Err(page(&destination.route)),
                RouteState::Asleep { seconds } => {
                    self.wake(&destination, exchange)?;
                    let seconds = Duration::from_secs((*seconds).into());
                    if self.is_page { PATIENCE.min(seconds) } else { seconds }.saturating_sub(self.arrived.elapsed())
                }
                RouteState::Building { .. } | RouteState::Updating { .. } | RouteState::Stopped | RouteState::Failed { .. } => {
                    return Err(page(&destination.route));
                }
            };
            if limit.is_zero() {
                return Err(page(&destination.route));
            }
            let call = match self.line_up(line) {
                Ok(Some(place)) => wait(shared, client, place, limit, &destination.route, exchange).await?,
                Ok(None) => Call::Dismissed,
                Err(Full) => {
                    shared.metrics.hold.overflowed.increment(1);
                    destination.instance().held.turned_away();
                    exchange.trouble = Some("there was no place to wait for the instance".to_owned());
                    return Err(page(&destination.route));
                }
            };
            destination = self.look_again(exchange)?;
            // Where its turn has come and the route does not serve any more, it waits again, before all who came later.
            if call == Call::Turn && matches!(destination.route.state, RouteState::Serving { .. }) {
                return Ok(destination);
            }
        }
    }

    /// Asks for a sleeper, within what this client, and all together, may wake. One that is asked for already may be waited for by anybody.
    fn wake(&self, destination: &Destination, exchange: &mut Exchange) -> Result<(), Page> {
        if !destination.instance().is_wanted() {
            let client = exchange.client.filter(|client| !self.shared.is_trusted(*client));
            self.shared.wakes.take(client).map_err(|too_many| {
                self.shared.metrics.wakes_refused.increment(1);
                exchange.trouble = Some("too many sleepers were woken".to_owned());
                Page::not_woken(&destination.route, too_many)
            })?;
        }
        destination.want(&self.shared.traffic);
        Ok(())
    }

    /// Where the host leads now; the request is counted there from here on.
    pub(crate) fn look_again(&self, exchange: &mut Exchange) -> Result<Arc<Destination>, Page> {
        let Some((destination, passage)) = self.shared.routes.enter(self.host) else {
            exchange.passage = None;
            return Err(Page::unknown_host(self.host.as_str()));
        };
        exchange.passage = Some(passage);
        Ok(destination)
    }

    /// Odoo has begun to answer: the next one may go.
    pub(crate) fn answered(&mut self) {
        if let Some(place) = self.place.take() {
            place.answered();
        }
    }

    /// A place to wait at; `None` when nobody needs to wait.
    fn line_up(&mut self, line: &Arc<Line>) -> Result<Option<&mut Place>, Full> {
        if let Some(mut place) = self.place.take_if(|place| place.is_in(line)) {
            if place.again()? {
                self.place = Some(place);
            }
        } else {
            self.place = line.join(self.kind, self.body_bytes)?;
            if self.place.is_some() {
                self.shared.metrics.hold.held_total.increment(1);
            }
        }
        Ok(self.place.as_mut())
    }
}

async fn wait(
    shared: &Shared,
    client: &Client,
    place: &mut Place,
    limit: Duration,
    route: &Route,
    exchange: &mut Exchange,
) -> Result<Call, Page> {
    if let Some(passage) = &mut exchange.passage {
        passage.leave_upstream();
    }
    let watch = Watch { shared, since: Instant::now(), ended: false };
    let (counter, outcome) = tokio::select! {
        biased;
        call = place.call() => match call {
            Call::Turn => (&shared.metrics.hold.released, Ok(call)),
            Call::Dismissed => (&shared.metrics.hold.dismissed, Ok(call)),
        },
        () = client.gone() => (&shared.metrics.hold.abandoned, Err(Page::abandoned())),
        () = tokio::time::sleep(limit) => (&shared.metrics.hold.timed_out, Err(page(route))),
        // The routes change no more; the next edge answers.
        () = shared.stopping.cancelled() => (&shared.metrics.hold.dismissed, Err(page(route))),
    };
    let waited = watch.end();
    *exchange.held.get_or_insert_default() += waited;
    counter.increment(1);
    outcome
}

/// Counts the waiting, also when it is dropped in the middle because hyper saw the client go.
struct Watch<'a> {
    shared: &'a Shared,
    since: Instant,
    ended: bool,
}

impl Watch<'_> {
    fn end(mut self) -> Duration {
        self.ended = true;
        self.since.elapsed()
    }
}

impl Drop for Watch<'_> {
    fn drop(&mut self) {
        self.shared.metrics.hold.seconds.record(self.since.elapsed().as_secs_f64());
        if !self.ended {
            self.shared.metrics.hold.abandoned.increment(1);
        }
    }
}

fn page(route: &Route) -> Page {
    Page::for_route(route).unwrap_or_else(|| Page::crowded(route))
}
