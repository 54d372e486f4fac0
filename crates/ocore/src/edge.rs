//! `ocore edge`: the reverse proxy with this installation's settings.

use std::{
    net::{Ipv4Addr, Ipv6Addr, SocketAddr},
    time::Duration,
};

use anyhow::{Context, Result};
use ocore_edge::EdgeConfig;

use crate::{config::Config, shutdown};

/// Some programs resolve names below `localhost` to the IPv6 loopback address first; a listener on the IPv4 one takes that too.
fn addresses(listen: SocketAddr) -> Vec<SocketAddr> {
    if listen.ip() == Ipv4Addr::LOCALHOST { vec![listen, SocketAddr::from((Ipv6Addr::LOCALHOST, listen.port()))] } else { vec![listen] }
}

pub fn run(config: &Config, take_over: bool) -> Result<()> {
    let directory = config.edge_directory();
    std::fs::create_dir_all(&directory).with_context(|| format!("cannot make {}", directory.display()))?;
    let mut edge = EdgeConfig::new(addresses(config.edge.listen), config.edge_socket(), directory.join("routes.json"));
    edge.take_over = take_over;
    edge.body_size_limit = config.edge.max_body_bytes;
    edge.body_size_limits.clone_from(&config.edge.max_body_bytes_of);
    edge.header_size_limit = config.edge.max_header_bytes;
    edge.header_timeout = Duration::from_secs(config.edge.header_seconds);
    edge.body_timeout = Duration::from_secs(config.edge.body_pause_seconds);
    edge.body_rate = config.edge.body_bytes_per_second;
    edge.write_timeout = Duration::from_secs(config.edge.answer_pause_seconds);
    edge.connection_limit = config.edge.connections;
    edge.connections_per_client = config.edge.connections_per_client;
    edge.hold.requests = config.edge.held_requests;
    edge.hold.websockets = config.edge.held_websockets;
    edge.hold.in_all = config.edge.held_in_all;
    edge.hold.body_bytes = config.edge.held_body_bytes;
    edge.trusted_proxies.clone_from(&config.edge.trusted_proxies);
    edge.wakes.in_all = config.edge.wakes_per_minute;
    edge.wakes.per_client = config.edge.wakes_per_minute_and_client;
    ocore_edge::runtime()?.block_on(async {
        let shutdown = shutdown::on_signal()?;
        ocore_edge::run(edge, shutdown).await.context("the edge ended")
    })
}
