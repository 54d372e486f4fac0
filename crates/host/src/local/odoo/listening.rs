//! The sockets that a slot's Odoo listens at: bound before, kept after, its own only while it lives.
//!
//! Whoever else holds the socket keeps it listening when its Odoo has died, and those who come would wait for nobody. So the end of a slot's Odoo is waited for,
//! and then nobody listens there any more.

use std::{
    collections::HashMap,
    net::SocketAddr,
    os::fd::OwnedFd,
    sync::{Mutex, MutexGuard, PoisonError},
};

use ocore_model::{ids::InstanceId, instance::Color};
use tokio::task::JoinHandle;

use crate::{
    error::{HostError, Result},
    local::{LocalHost, process::Process, slots},
};

/// Whose end is waited for.
#[derive(Debug, Default)]
pub(in crate::local) struct Listening(Mutex<HashMap<(InstanceId, Color), JoinHandle<()>>>);

impl Listening {
    fn lock(&self) -> MutexGuard<'_, HashMap<(InstanceId, Color), JoinHandle<()>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl LocalHost {
    /// Holds the ports of all instances, for whoever has just begun to hold them, and waits for the ends of those that listen there. May run twice.
    pub async fn hold_ports(&self) -> Result<()> {
        self.ledger.hold_ports().await?;
        for instance in self.ledger.instances().await? {
            for color in Color::ALL {
                if let Some((process, details)) = slots::find(&self.layout, instance, *color)? {
                    self.quiet_when_ended(instance, *color, &process, &[Some(details.http), details.websocket]);
                }
            }
        }
        Ok(())
    }

    /// The sockets for a slot that is about to start, at which nobody listens.
    pub(super) async fn slot_sockets(
        &self,
        instance: InstanceId,
        color: Color,
        addresses: &[Option<SocketAddr>],
    ) -> Result<Vec<(u16, OwnedFd)>> {
        // Whoever waits for the end of the one before must not take the next one's for it.
        let before = self.listening.lock().remove(&(instance, color));
        if let Some(before) = before {
            before.abort();
            let _ = before.await;
        }
        let failed = |error| HostError::machine_from(format!("a port of the instance could not be held: {error}"), error);
        let sockets = addresses.iter().flatten().map(|address| {
            self.ports.quiet(address.port())?;
            Ok((address.port(), self.ports.hold(address.port())?))
        });
        sockets.collect::<std::io::Result<_>>().map_err(failed)
    }

    /// When this process has ended, nobody listens at these addresses.
    pub(super) fn quiet_when_ended(&self, instance: InstanceId, color: Color, process: &Process, addresses: &[Option<SocketAddr>]) {
        let (process, ports) = (process.clone(), self.ports.clone());
        let numbers: Vec<u16> = addresses.iter().flatten().map(SocketAddr::port).collect();
        let waiting = tokio::spawn(async move {
            if let Err(error) = process.exited().await {
                tracing::warn!(%error, pid = process.pid(), "the end of an Odoo cannot be waited for");
                return;
            }
            for port in numbers {
                if let Err(error) = ports.quiet(port) {
                    tracing::warn!(%error, port, "who comes to the port of an Odoo that has ended waits there");
                }
            }
        });
        if let Some(before) = self.listening.lock().insert((instance, color), waiting) {
            before.abort();
        }
    }
}
