//! Requests that prove an address, and the wait for those that an old slot still answers.

use std::{net::SocketAddr, time::Duration};

use backon::{ExponentialBuilder, Retryable};
use ocore_model::{edge::UpstreamTraffic, ids::InstanceId};

use crate::{Control, Error, operations::saga::Failure};

/// How long a page may take through the edge.
const PROOF: Duration = Duration::from_secs(30);
/// How long the old slot may finish what it had begun to answer.
const DRAIN: Duration = Duration::from_secs(15);
/// The same for one that then stands still in the middle of what it has not finished.
const DRAIN_TO_REST: Duration = Duration::from_secs(45);
/// Users wait meanwhile.
const LOOK_INTERVAL: Duration = Duration::from_millis(50);

/// Waits until the edge has passed on what the old slot had begun to answer, for a bounded time.
pub(in crate::operations) async fn drain(control: &Control, instance: InstanceId, http: SocketAddr) {
    wait_for(control, instance, http, DRAIN, |upstream| upstream.requests_in_flight).await;
}

/// The same for an old slot that will rest, and for as long as a request may take there.
pub(super) async fn drain_to_rest(control: &Control, instance: InstanceId, http: SocketAddr) {
    wait_for(control, instance, http, DRAIN_TO_REST, |upstream| upstream.requests_in_flight).await;
}

/// The same, and until its websockets have moved: the edge sends them to the new slot one after the other.
pub(super) async fn drain_with_websockets(control: &Control, instance: InstanceId, http: SocketAddr) {
    wait_for(control, instance, http, DRAIN, |upstream| upstream.requests_in_flight + upstream.websockets).await;
}

async fn wait_for(control: &Control, instance: InstanceId, http: SocketAddr, longest: Duration, left: fn(&UpstreamTraffic) -> u64) {
    let busy = || async {
        let status = control.host.edge_status().await.map_err(|_| false)?;
        let in_flight = status
            .instances
            .iter()
            .filter(|traffic| traffic.instance_id == instance)
            .flat_map(|traffic| &traffic.upstreams)
            .filter(|upstream| upstream.http == http)
            .map(left)
            .sum::<u64>();
        if in_flight == 0 { Ok(()) } else { Err(true) }
    };
    let patience = ExponentialBuilder::default().with_min_delay(Duration::from_millis(20)).with_factor(1.5).without_max_times();
    let drained = busy.retry(patience.with_max_delay(LOOK_INTERVAL)).when(|busy| *busy);
    if tokio::time::timeout(longest, drained).await.is_err() {
        tracing::info!(%instance, "the old slot still answers requests after its time; nobody waits for it any longer");
    }
}

/// The status of a page that every Odoo has, asked for as a browser would.
pub(super) async fn answer(edge: SocketAddr, host_name: &str) -> Result<u16, Failure> {
    let client = reqwest::Client::builder()
        .redirect(reqwest::redirect::Policy::none())
        .timeout(PROOF)
        .no_proxy()
        .build()
        .map_err(|error| Error::internal("making an HTTP client", error))?;
    let response = client.get(format!("http://{edge}/web/login")).header("Host", host_name).send().await.map_err(|error| {
        // Not asked again: users wait for the same Odoo.
        if error.is_timeout() {
            let seconds = PROOF.as_secs();
            return Failure::rejected(format!(
                "{host_name} has not answered its login page within {seconds} s: the new Odoo does not answer any more"
            ));
        }
        Failure::broken(format!("the edge does not answer at {edge}: {error}"))
    })?;
    match response.status().as_u16() {
        status @ (200 | 303) => Ok(status),
        status => Err(Failure::broken(format!("{host_name} answers {status} through the edge instead of Odoo's login page"))),
    }
}

/// An address that listens everywhere is reached here.
pub(super) fn reachable(mut address: SocketAddr) -> SocketAddr {
    if address.ip().is_unspecified() {
        address.set_ip(if address.is_ipv4() { [127, 0, 0, 1].into() } else { std::net::Ipv6Addr::LOCALHOST.into() });
    }
    address
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_that_listens_everywhere_is_reached_here() {
        assert_eq!(reachable("0.0.0.0:8080".parse().unwrap()).to_string(), "127.0.0.1:8080");
        assert_eq!(reachable("[::]:8080".parse().unwrap()).to_string(), "[::1]:8080");
        assert_eq!(reachable("10.0.0.1:80".parse().unwrap()).to_string(), "10.0.0.1:80");
    }
}
