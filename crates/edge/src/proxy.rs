//! One request's way through the edge: who asks, where it leads, what Odoo answers.

use std::{
    future::poll_fn,
    net::{IpAddr, SocketAddr},
    sync::Arc,
    task::{Context, Waker},
    time::{Duration, Instant},
};

use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, Uri, Version, header, request::Parts};
use hyper::body::{Body, Incoming};
use ocore_model::route::{Route, RouteState};
use tokio::time::timeout;

use crate::{
    access::Exchange,
    body::{BodyFault, BodyWatch, Carrier, Patience, RequestBody, ResponseBody},
    client::Client,
    closed,
    headers::{self, Origin, Scheme},
    heads::Follows,
    hold::Visit,
    host_name::HostName,
    pages::{Form, Page},
    pool::{Connection, DrivenBy, Pool},
    reconnects::ClientKey,
    routes::Destination,
    server::Shared,
    upgrade,
};

/// An Odoo with workers opens its port for websockets about a second after the other one; where requests are held, a slot goes live without waiting for it.
const WEBSOCKET_PORT_PATIENCE: Duration = Duration::from_secs(5);
const WEBSOCKET_PORT_INTERVAL: Duration = Duration::from_millis(50);

/// What the client sends after this head, as hyper reads it.
pub(crate) fn what_follows(request: &Request<Incoming>) -> Follows {
    match request.body().size_hint().exact() {
        Some(0) if upgrade::is_websocket_handshake(request) => Follows::Handshake,
        Some(length) => Follows::Length(length),
        None => Follows::Chunks,
    }
}

/// Answers one request of one client connection.
pub(crate) async fn handle(
    shared: Arc<Shared>,
    pool: Arc<Pool>,
    request: Request<Incoming>,
    peer: IpAddr,
    client: Client,
) -> Response<ResponseBody> {
    let request_id = headers::request_id(request.headers());
    let mut exchange =
        Exchange::new(Arc::clone(&shared.metrics), request.method().clone(), request.uri().path(), request_id, peer.to_canonical());
    let form = Form::wanted_by(request.headers());
    let is_head = request.method() == Method::HEAD;
    match pass(&shared, &pool, request, &client, &mut exchange).await {
        Ok(Answer::Odoo(answer, carrier, after, names)) => {
            let (mut head, body) = answer.into_parts();
            headers::prepare_response(&mut head.headers, &exchange.request_id, &names.host, names.own());
            shared.say_goodbye(&mut head.headers);
            head.version = Version::HTTP_11;
            exchange.answer(head.status, after);
            Response::from_parts(head, ResponseBody::upstream(body, carrier, exchange))
        }
        Ok(Answer::Websocket(answer, upgrading, names)) => {
            client.becomes_tunnel();
            switch(&shared, answer, upgrading, exchange, &names)
        }
        Err(page) => {
            let mut answer = own_answer(&page, form, is_head, exchange);
            shared.say_goodbye(answer.headers_mut());
            answer
        }
    }
}

enum Answer {
    /// On what it comes, and how long it took, from the whole request on.
    Odoo(Response<Incoming>, Option<Carrier>, Duration, Names),
    /// `101`, and the client's side of what becomes a tunnel.
    Websocket(Response<Incoming>, hyper::upgrade::OnUpgrade, Names),
}

/// Whose answer it is: what it says to the browser counts for these names.
struct Names {
    host: HostName,
    destination: Arc<Destination>,
}

impl Names {
    fn own(&self) -> &[String] {
        &self.destination.route.hosts
    }
}

async fn pass(
    shared: &Shared,
    pool: &Arc<Pool>,
    request: Request<Incoming>,
    connection: &Client,
    exchange: &mut Exchange,
) -> Result<Answer, Page> {
    let (head, body) = request.into_parts();
    // From here on, a body that nobody wants is drained, however this ends.
    let patience = Patience { pause: shared.config.body_timeout, rate: shared.config.body_rate };
    let body = RequestBody::new(body, &head.headers, shared.config.body_size_limit, patience);
    let mut request = Request::from_parts(head, body);
    let origin = Origin::of_request(&request, exchange.peer, Scheme::Http, &shared.config.trusted_proxies)
        .map_err(|error| Page::bad_request(error.to_string()))?;
    exchange.client = Some(origin.client);
    exchange.host = Some(origin.host.to_string());
    if headers::size(&request) > shared.config.header_size_limit {
        return Err(Page::headers_too_large(shared.config.header_size_limit, shared.config.header_count_limit));
    }
    let body_limit = shared.config.body_limit(&origin.host.name);
    request.body_mut().limit(body_limit);
    if matches!(*request.method(), Method::CONNECT | Method::TRACE) {
        return Err(Page::method_not_allowed());
    }
    let target = origin_form(request.uri()).ok_or_else(|| Page::bad_request("the request's target is not a path"))?;

    let Some((destination, passage)) = shared.routes.enter(&origin.host.name) else {
        shared.traffic.count_unknown_host();
        return Err(Page::unknown_host(origin.host.name.as_str()));
    };
    shared.traffic.count_request(passage.instance(), upgrade::is_websocket_handshake(&request));
    exchange.passage = Some(passage);
    exchange.is_long_poll = is_below(request.uri().path(), "/longpolling");
    if closed::is_database_manager(request.uri().path()) {
        return Err(Page::database_manager_closed());
    }
    if !matches!(destination.route.state, RouteState::Holding { .. } | RouteState::Asleep { .. })
        && let Some(page) = Page::for_route(&destination.route)
    {
        return Err(page);
    }
    if request.headers().get(header::CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse::<u64>().ok()) > Some(body_limit) {
        return Err(Page::too_large(body_limit));
    }

    let client = if upgrade::is_websocket_handshake(&request) {
        if !request.body().is_end_stream() {
            return Err(Page::bad_request("a websocket's handshake has no body"));
        }
        exchange.websocket_client = Some(ClientKey::of(origin.client, request.headers()));
        Some(hyper::upgrade::on(&mut request))
    } else {
        None
    };
    let (mut head, body) = request.into_parts();
    let framing = Framing::of(&head.headers, &body);
    headers::prepare_request(&mut head.headers, &origin, &exchange.request_id);
    framing.write(&mut head.headers);
    if client.is_some() {
        upgrade::set_upgrade(&mut head.headers);
    }
    head.uri = target;
    head.version = Version::HTTP_11;

    let outbound = Outbound { head, body, is_websocket: client.is_some(), body_limit };
    let (Delivered { answer, carrier }, after, destination) =
        deliver(shared, pool, outbound, destination, &origin.host.name, connection, exchange).await?;
    let names = Names { host: origin.host.name, destination };
    match client {
        Some(client) if answer.status() == StatusCode::SWITCHING_PROTOCOLS => {
            if upgrade::asks_for_websocket(answer.headers()) {
                Ok(Answer::Websocket(answer, client, names))
            } else {
                exchange.trouble = Some("Odoo switched to another protocol than websocket".to_owned());
                Err(Page::unreachable(&names.destination.route))
            }
        }
        None if answer.status() == StatusCode::SWITCHING_PROTOCOLS => {
            exchange.trouble = Some("Odoo switched protocols unasked".to_owned());
            Err(Page::unreachable(&names.destination.route))
        }
        _ => Ok(Answer::Odoo(answer, carrier, after, names)),
    }
}

/// The path and query of a target; `None` for `*` and for an authority.
fn origin_form(uri: &Uri) -> Option<Uri> {
    let target = uri.path_and_query().filter(|target| target.as_str().starts_with('/'))?;
    Some(Uri::from(target.clone()))
}

/// How the body is delimited towards Odoo: said anew from what was read, never copied, so that both sides see the same end.
enum Framing {
    None,
    Length(u64),
    Chunked,
}

impl Framing {
    fn of(headers: &HeaderMap, body: &RequestBody) -> Self {
        match (body.is_end_stream(), body.size_hint().exact()) {
            (true, _) if headers.contains_key(header::CONTENT_LENGTH) => Self::Length(0),
            (true, _) => Self::None,
            (false, Some(length)) => Self::Length(length),
            (false, None) => Self::Chunked,
        }
    }

    /// After the hop-by-hop headers went.
    fn write(&self, headers: &mut HeaderMap) {
        headers.remove(header::CONTENT_LENGTH);
        match self {
            Self::None => {}
            Self::Length(length) => {
                headers.insert(header::CONTENT_LENGTH, HeaderValue::from(*length));
            }
            // Said outright: hyper takes a GET whose body has no known length for one without a body.
            Self::Chunked => {
                headers.insert(header::TRANSFER_ENCODING, HeaderValue::from_static("chunked"));
            }
        }
    }
}

/// A request as Odoo gets it.
pub(crate) struct Outbound {
    pub(crate) head: Parts,
    pub(crate) body: RequestBody,
    pub(crate) is_websocket: bool,
    /// What its body may have, in bytes.
    pub(crate) body_limit: u64,
}

impl Outbound {
    /// May be sent twice: a safe method (RFC 9110, 9.2.1) and nothing of a body that would be gone.
    pub(crate) fn is_repeatable(&self) -> bool {
        !self.is_websocket && matches!(self.head.method, Method::GET | Method::HEAD | Method::OPTIONS) && self.body.is_end_stream()
    }

    /// A copy without a body.
    fn repeated(&self) -> Request<RequestBody> {
        let mut request = Request::new(RequestBody::empty());
        *request.method_mut() = self.head.method.clone();
        *request.uri_mut() = self.head.uri.clone();
        *request.headers_mut() = self.head.headers.clone();
        request
    }

    fn into_request(self) -> Request<RequestBody> {
        // Not `Request::from_parts(self.head, …)`: hyper's extensions of the client's connection end here.
        let mut request = Request::new(self.body);
        *request.method_mut() = self.head.method;
        *request.uri_mut() = self.head.uri;
        *request.headers_mut() = self.head.headers;
        request
    }
}

/// Brings a request to an Odoo, waiting for one if need be, and waits for the head of the answer. A slot that went away is no failure as long
/// as the request may be sent again and the route leads elsewhere by now.
async fn deliver(
    shared: &Shared,
    pool: &Arc<Pool>,
    outbound: Outbound,
    destination: Arc<Destination>,
    host: &HostName,
    client: &Client,
    exchange: &mut Exchange,
) -> Result<(Delivered, Duration, Arc<Destination>), Page> {
    let mut visit = Visit::new(shared, host, client, &outbound);
    let mut outbound = outbound;
    let mut destination = visit.admit(destination, exchange).await?;
    let since = Instant::now();
    loop {
        let route = &destination.route;
        let Some(address) = address_for(route, exchange.path()) else { return Err(Page::unreachable(route)) };
        exchange.slot.clone_from(&destination.slot);
        // Of one that is repeated the body is none, and its end says nothing.
        let (watch, sent_at) = ((!outbound.is_repeatable()).then(|| outbound.body.watch()), Instant::now());
        let failed = match send(shared, pool, outbound, address, route, exchange).await {
            Ok(delivered) => {
                visit.answered();
                let whole_at = watch.and_then(|watch| watch.over()).map_or(sent_at, |over| over.max(sent_at));
                return Ok((delivered, whole_at.elapsed(), destination));
            }
            Err(failed) => *failed,
        };
        let Some(again) = failed.again else { return Err(failed.page) };
        let mut newer = visit.look_again(exchange)?;
        if address_for(&newer.route, exchange.path()) == Some(address) {
            let may_open =
                failed.was_refused && has_port_for_websockets(&newer.route, address) && since.elapsed() < WEBSOCKET_PORT_PATIENCE;
            if !may_open || shared.stopping.is_cancelled() {
                return Err(failed.page);
            }
            tokio::select! {
                () = client.gone() => return Err(Page::abandoned()),
                () = tokio::time::sleep(WEBSOCKET_PORT_INTERVAL) => {}
            }
            newer = visit.look_again(exchange)?;
        }
        shared.metrics.retries.increment(1);
        exchange.trouble = None;
        outbound = again;
        destination = visit.admit(newer, exchange).await?;
    }
}

/// The head of an answer, and its body as it comes.
struct Delivered {
    answer: Response<Incoming>,
    /// `None`: the connection does not need whoever reads the body.
    carrier: Option<Carrier>,
}

/// A request that got no answer.
struct Failed {
    page: Page,
    /// The request, when nothing of it has been sent or it may be sent twice.
    again: Option<Outbound>,
    /// Nobody listens there.
    was_refused: bool,
}

/// Sends a request to a slot and waits for the head of the answer.
async fn send(
    shared: &Shared,
    pool: &Arc<Pool>,
    outbound: Outbound,
    address: SocketAddr,
    route: &Route,
    exchange: &mut Exchange,
) -> Result<Delivered, Box<Failed>> {
    let give_up = |page: Page| Err(Box::new(Failed { page, again: None, was_refused: false }));
    if outbound.is_repeatable() {
        while let Some(connection) = pool.take_idle(address) {
            match exchange_on(shared, pool, connection, outbound.repeated(), None).await {
                Ok(answer) => return Ok(answer),
                Err(Failure::TimedOut) => return give_up(timed_out(shared, route, exchange)),
                Err(Failure::Broken(error)) => {
                    shared.metrics.retries.increment(1);
                    tracing::debug!(%address, %error, "a kept connection was closed; trying another");
                }
            }
        }
    }

    let driven_by = if outbound.is_repeatable() { DrivenBy::Asker } else { DrivenBy::Itself };
    let connection = match pool.connect(address, driven_by).await {
        Ok(connection) => connection,
        Err(error) => {
            let was_refused = error.is_refusal();
            return Err(Box::new(Failed { page: unreachable(shared, route, exchange, &error), again: Some(outbound), was_refused }));
        }
    };
    let watch = outbound.body.watch();
    let outbound_limit = outbound.body_limit;
    let (request, again) = if outbound.is_repeatable() { (outbound.repeated(), Some(outbound)) } else { (outbound.into_request(), None) };
    match exchange_on(shared, pool, connection, request, again.is_none().then_some(&watch)).await {
        Ok(answer) => Ok(answer),
        Err(failure) => match (watch.fault(), failure) {
            (Some(fault), _) => {
                exchange.trouble = Some(fault.to_string());
                give_up(match fault {
                    BodyFault::TooLarge => Page::too_large(outbound_limit),
                    BodyFault::Stalled => Page::stalled(),
                    BodyFault::Broken => Page::bad_request(fault.to_string()),
                })
            }
            (None, Failure::TimedOut) => give_up(timed_out(shared, route, exchange)),
            (None, Failure::Broken(error)) => {
                shared.metrics.broken_answers.increment(1);
                exchange.broke_off(format!("{address} broke off before it answered: {error}"));
                Err(Box::new(Failed { page: Page::unreachable(route), again, was_refused: false }))
            }
        },
    }
}

enum Failure {
    TimedOut,
    Broken(hyper::Error),
}

/// One request on one connection. The time for the answer counts from the end of the body.
async fn exchange_on(
    shared: &Shared,
    pool: &Arc<Pool>,
    mut connection: Connection,
    request: Request<RequestBody>,
    body: Option<&BodyWatch>,
) -> Result<Delivered, Failure> {
    let answer = connection.sender.send_request(request);
    tokio::pin!(answer);
    let answer = loop {
        let next = poll_fn(|context| {
            if !connection.is_driven() {
                return answer.as_mut().poll(context);
            }
            connection.drive(context);
            // What comes, the connection brings, and that has just been looked at.
            answer.as_mut().poll(&mut Context::from_waker(Waker::noop()))
        });
        match timeout(shared.config.response_timeout, next).await {
            Ok(answer) => break answer.map_err(Failure::Broken)?,
            Err(_) if body.is_some_and(|body| !body.is_over()) => {}
            Err(_) => return Err(Failure::TimedOut),
        }
    };
    if answer.status() == StatusCode::SWITCHING_PROTOCOLS {
        return Ok(Delivered { answer, carrier: None });
    }
    if connection.is_driven() {
        return Ok(Delivered { answer, carrier: Some(Carrier::new(connection, Arc::clone(pool))) });
    }
    pool.give_back(connection);
    Ok(Delivered { answer, carrier: None })
}

/// Odoo with workers serves websockets, and the long polls of before version 16, on a port of their own.
fn address_for(route: &Route, path: &str) -> Option<SocketAddr> {
    let RouteState::Serving { http, websocket } = route.state else { return None };
    match websocket {
        Some(websocket) if is_below(path, "/websocket") || is_below(path, "/longpolling") => Some(websocket),
        _ => Some(http),
    }
}

fn is_below(path: &str, prefix: &str) -> bool {
    path.strip_prefix(prefix).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

/// The address is the route's own one for websockets.
fn has_port_for_websockets(route: &Route, address: SocketAddr) -> bool {
    matches!(route.state, RouteState::Serving { http, websocket: Some(websocket) } if websocket == address && http != address)
}

fn unreachable(shared: &Shared, route: &Route, exchange: &mut Exchange, error: &crate::pool::ConnectError) -> Page {
    shared.metrics.connect_failures.increment(1);
    if let Some(slot) = &exchange.slot {
        slot.was_not_reached();
    }
    exchange.trouble = Some(match std::error::Error::source(error) {
        Some(source) => format!("{error}: {source}"),
        None => error.to_string(),
    });
    Page::unreachable(route)
}

fn timed_out(shared: &Shared, route: &Route, exchange: &mut Exchange) -> Page {
    shared.metrics.answer_timeouts.increment(1);
    if let Some(slot) = &exchange.slot {
        slot.took_too_long();
    }
    exchange.trouble = Some(format!("no answer within {:?}", shared.config.response_timeout));
    Page::timed_out(route)
}

/// Passes a `101` on and leaves a tunnel behind.
fn switch(
    shared: &Shared,
    mut answer: Response<Incoming>,
    client: hyper::upgrade::OnUpgrade,
    mut exchange: Exchange,
    names: &Names,
) -> Response<ResponseBody> {
    let upstream = hyper::upgrade::on(&mut answer);
    let (mut head, _) = answer.into_parts();
    headers::prepare_response(&mut head.headers, &exchange.request_id, &names.host, names.own());
    upgrade::set_upgrade(&mut head.headers);
    exchange.answer(head.status, Duration::ZERO);
    exchange.become_websocket();
    let told = shared.told_to_go(exchange.slot.as_ref());
    shared.tunnels.spawn(upgrade::tunnel(client, upstream, exchange, told, shared.cut.clone()));
    let mut response = Response::new(ResponseBody::switched());
    *response.status_mut() = head.status;
    *response.headers_mut() = head.headers;
    response
}

fn own_answer(page: &Page, form: Form, is_head: bool, mut exchange: Exchange) -> Response<ResponseBody> {
    exchange.answer_without_odoo(page.status);
    let response = page.respond(form, exchange.request_id());
    let (mut head, body) = response.into_parts();
    head.headers.insert(headers::X_REQUEST_ID, exchange.request_id.clone());
    let body = if is_head {
        head.headers.insert(header::CONTENT_LENGTH, HeaderValue::from(body.len() as u64));
        bytes::Bytes::new()
    } else {
        body
    };
    Response::from_parts(head, ResponseBody::own(body, exchange))
}
