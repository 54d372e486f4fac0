//! What an environment's processes may reach on the network. Production reaches everything; everything else only its database, its mail
//! catcher and what somebody with the right to do so has allowed, until such a person opens it. Every such change is audited.
//!
//! The store says what should be; [`apply`] brings it to the server when an instance is made and at each change, the reconciler when that
//! failed, when a name has come to mean other addresses, and when somebody has flushed the server's rules.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
    time::Duration,
};

use futures::{StreamExt, stream};
use ocore_host::{Egress, EgressAttempt, EgressReport, HostError};
use ocore_model::{
    egress::{Destination, EgressMode},
    environment::Stage,
    ids::{EnvironmentId, InstanceId},
};
use serde_json::json;

use crate::{
    Control, Error, FieldError, Result, audit,
    authorization::{Grant, ManageEgress, ViewEgress},
    networks,
    store::{self, egress::EgressRow},
};

/// Of one environment.
const ALLOWED_MOST: usize = 50;
const LOOKUP_PATIENCE: Duration = Duration::from_secs(5);
/// Names that are looked up at the same time.
const LOOKUPS: usize = 8;
/// Addresses of one name that count.
const ADDRESSES_MOST: usize = 32;

type Addresses = BTreeMap<Destination, BTreeSet<SocketAddr>>;

/// An environment's policy, and what came of it.
#[derive(Debug, Clone)]
pub struct EnvironmentEgress {
    pub closed: bool,
    /// It is production, which is never closed.
    pub production: bool,
    /// Each with the addresses that it means now.
    pub allow: Vec<(Destination, Vec<SocketAddr>)>,
    /// The server refuses what the policy does not allow.
    pub enforced: bool,
    /// Why it does not, or not yet.
    pub problem: Option<String>,
    /// What was refused, the most frequent first.
    pub attempts: Vec<EgressAttempt>,
}

/// What is changed of a policy; what is not given stays.
#[derive(Debug, Clone, Default)]
pub struct EgressPatch {
    pub closed: Option<bool>,
    /// Replaces all of them.
    pub allow: Option<Vec<String>>,
}

pub async fn show(control: &Control, grant: &Grant<ViewEgress>, id: EnvironmentId) -> Result<EnvironmentEgress> {
    let found = store::egress::find(&mut *control.pool.acquire().await?, grant, id).await?;
    describe(control, &found.ok_or(Error::NotFound { what: "environment" })?).await
}

/// Changes the policy and puts it into force. When the server cannot, the answer says so, and the reconciler goes on trying.
pub async fn update(control: &Control, grant: &Grant<ManageEgress>, id: EnvironmentId, patch: EgressPatch) -> Result<EnvironmentEgress> {
    // Before anything is looked up for somebody who may not know that it exists.
    store::egress::find(&mut *control.pool.acquire().await?, grant, id).await?.ok_or(Error::NotFound { what: "environment" })?;
    let wanted = match &patch.allow {
        Some(allow) => {
            let allow = parse(allow)?;
            let addresses = resolve(&allow).await.into_iter().enumerate().map(|(index, (destination, found))| {
                found.map(|found| (destination, found)).map_err(|message| FieldError { field: format!("allow[{index}]"), message })
            });
            let (found, failed): (Vec<_>, Vec<_>) = addresses.partition(std::result::Result::is_ok);
            let fields: Vec<FieldError> = failed.into_iter().filter_map(std::result::Result::err).collect();
            if !fields.is_empty() {
                return Err(Error::Invalid { fields });
            }
            Some((allow, found.into_iter().filter_map(std::result::Result::ok).collect::<Addresses>()))
        }
        None => None,
    };
    let mut transaction = control.pool.begin().await?;
    let row = store::egress::lock(&mut transaction, grant, id).await?.ok_or(Error::NotFound { what: "environment" })?;
    if row.stage == Stage::Production {
        return Err(Error::conflict(
            "production_open",
            "a production environment is always open: it has to send mail and reach its services",
        ));
    }
    let mode = match patch.closed {
        Some(true) => EgressMode::Closed,
        Some(false) => EgressMode::Open,
        None => row.egress,
    };
    let (allow, addresses) = match wanted {
        Some((allow, addresses)) => (json!(allow), json!(addresses)),
        None => (row.egress_allow.clone(), row.egress_addresses.clone()),
    };
    store::egress::set(&mut transaction, id, mode, &allow, &addresses).await?;
    if mode != row.egress || allow != row.egress_allow {
        let action = match (row.egress, mode) {
            (EgressMode::Closed, EgressMode::Open) => "egress.opened",
            (EgressMode::Open, EgressMode::Closed) => "egress.closed",
            _ => "egress.changed",
        };
        let detail = json!({
            "branch": row.branch,
            "before": { "mode": row.egress, "allow": row.egress_allow },
            "after": { "mode": mode, "allow": allow },
        });
        audit::record(&mut transaction, control, grant, action, &format!("environment:{id}"), &detail).await?;
    }
    transaction.commit().await?;
    if let Err(error) = apply(control, row.instance_id).await {
        tracing::warn!(instance = %row.instance_id, %error, "the server has not taken a network policy; the egress reconciler tries again");
    }
    let row = store::egress::find(&mut *control.pool.acquire().await?, grant, id).await?;
    describe(control, &row.ok_or(Error::NotFound { what: "environment" })?).await
}

/// Brings the policy of the environment that an instance serves to the server. Done already is done; an instance that serves none stays as the
/// server made it, closed. An error is the server's: then nothing of a closed instance starts.
pub(crate) async fn apply(control: &Control, instance: InstanceId) -> Result<()> {
    let found = store::egress::of_instance(&mut *control.pool.acquire().await?, instance).await?;
    match found {
        Some(row) => bring(control, &row).await,
        None => Ok(()),
    }
}

async fn bring(control: &Control, row: &EgressRow) -> Result<()> {
    match control.host.set_egress(row.instance_id, effective(row)?, row.egress_version).await {
        Ok(()) => {}
        // It has a newer one.
        Err(HostError::Fenced { .. }) => return Ok(()),
        Err(HostError::Machine { summary, .. }) => return Err(Error::Unavailable { code: "egress_not_enforced", message: summary }),
        Err(error) => return Err(error.into()),
    }
    store::egress::note_applied(&mut *control.pool.acquire().await?, row.id, row.egress_version).await
}

/// One run of the reconciler: names looked up again, policies that the server does not have brought there, the server's rules looked after.
pub(crate) async fn reconcile(control: &Control) -> Result<Vec<String>> {
    let mut changes = Vec::new();
    let allowing = store::egress::allowing(&mut *control.pool.acquire().await?, control.server_id).await?;
    for row in allowing {
        let (allow, known) = read(&row)?;
        if allow.iter().all(|destination| destination.name().is_none()) {
            continue;
        }
        let mut addresses = Addresses::new();
        for (destination, found) in resolve(&allow).await {
            // A name server that is away for a moment takes nothing back.
            let known = known.get(&destination).cloned().unwrap_or_default();
            addresses.insert(destination, found.unwrap_or(known));
        }
        if addresses != known
            && store::egress::set_addresses(&mut *control.pool.acquire().await?, row.id, row.egress_version, &json!(addresses)).await?
        {
            changes.push(format!("{}: names that it may reach have other addresses", row.branch));
        }
    }
    let unsettled = store::egress::unsettled(&mut *control.pool.acquire().await?, control.server_id).await?;
    for row in unsettled {
        match bring(control, &row).await {
            Ok(()) => changes.push(format!("{}: its network policy is in force", row.branch)),
            // Its first deployment makes it and brings the policy along.
            Err(Error::NotFound { .. }) => {}
            Err(error) => tracing::warn!(instance = %row.instance_id, %error, "a network policy is not in force"),
        }
    }
    if control.host.enforce_egress().await? {
        changes.push("put the server's network rules into force again".to_owned());
    }
    Ok(changes)
}

async fn describe(control: &Control, row: &EgressRow) -> Result<EnvironmentEgress> {
    let report = match control.host.egress_report(row.instance_id).await {
        Ok(report) => report,
        Err(HostError::NotFound { .. }) => {
            EgressReport { problem: Some("its instance is not there yet; nothing of it runs".to_owned()), ..EgressReport::default() }
        }
        Err(error) => EgressReport { problem: Some(error.to_string()), ..EgressReport::default() },
    };
    let production = row.stage == Stage::Production;
    let (allow, mut addresses) = read(row)?;
    Ok(EnvironmentEgress {
        closed: !production && row.egress == EgressMode::Closed,
        production,
        allow: allow
            .into_iter()
            .map(|destination| {
                let found = addresses.remove(&destination).unwrap_or_default().into_iter().collect();
                (destination, found)
            })
            .collect(),
        enforced: report.enforced,
        problem: report.problem,
        attempts: report.attempts,
    })
}

/// What the server is told.
fn effective(row: &EgressRow) -> Result<Egress> {
    if row.stage == Stage::Production || row.egress == EgressMode::Open {
        return Ok(Egress::Open);
    }
    let (allow, addresses) = read(row)?;
    let resolve_names = allow.iter().any(|destination| destination.name().is_some());
    Ok(Egress::Closed { allow: addresses.into_values().flatten().collect(), resolve_names })
}

fn read(row: &EgressRow) -> Result<(Vec<Destination>, Addresses)> {
    let broken = |error| Error::internal("reading what an environment may reach", error);
    Ok((
        serde_json::from_value(row.egress_allow.clone()).map_err(broken)?,
        serde_json::from_value(row.egress_addresses.clone()).map_err(broken)?,
    ))
}

/// The places in the order in which they were given, each once.
fn parse(allow: &[String]) -> Result<Vec<Destination>> {
    if allow.len() > ALLOWED_MOST {
        return Err(Error::invalid("allow", format!("allow at most {ALLOWED_MOST} places")));
    }
    let mut fields = Vec::new();
    let mut places: Vec<Destination> = Vec::new();
    for (index, text) in allow.iter().enumerate() {
        match text.parse::<Destination>() {
            Ok(place) if places.contains(&place) => {}
            Ok(place) => places.push(place),
            Err(error) => fields.push(FieldError { field: format!("allow[{index}]"), message: error.to_string() }),
        }
    }
    if fields.is_empty() { Ok(places) } else { Err(Error::Invalid { fields }) }
}

/// The addresses of each place, in the same order; why there are none. Addresses that mean this machine, its link or a cloud's metadata are
/// none: through them an environment would reach its neighbours and oCore itself.
async fn resolve(allow: &[Destination]) -> Vec<(Destination, std::result::Result<BTreeSet<SocketAddr>, String>)> {
    stream::iter(allow.iter().cloned())
        .map(|destination| async {
            let found = look_up(&destination).await;
            (destination, found)
        })
        .buffered(LOOKUPS)
        .collect()
        .await
}

async fn look_up(destination: &Destination) -> std::result::Result<BTreeSet<SocketAddr>, String> {
    let found: Vec<SocketAddr> = match (destination.address(), destination.name()) {
        (Some(address), _) => vec![address],
        (None, Some(name)) => {
            let lookup = tokio::time::timeout(LOOKUP_PATIENCE, tokio::net::lookup_host((name, destination.port()))).await;
            let found = lookup.map_err(|_| format!("{name} could not be looked up in time; try again, or give an address"))?;
            found.map_err(|error| format!("{name} could not be looked up: {error}"))?.collect()
        }
        (None, None) => Vec::new(),
    };
    let usable: BTreeSet<SocketAddr> = found.into_iter().filter(|address| !networks::is_local(address.ip())).take(ADDRESSES_MOST).collect();
    if usable.is_empty() {
        return Err(format!(
            "{destination} is on the server itself or its link, where neighbours live; only other machines can be allowed"
        ));
    }
    Ok(usable)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(stage: Stage, egress: EgressMode) -> EgressRow {
        EgressRow {
            id: EnvironmentId::new(),
            instance_id: InstanceId::new(),
            branch: "main".to_owned(),
            stage,
            egress,
            egress_allow: json!(["192.0.2.1:443", "api.example.com:443"]),
            egress_addresses: json!({ "192.0.2.1:443": ["192.0.2.1:443"], "api.example.com:443": ["192.0.2.7:443", "[2001:db8::7]:443"] }),
            egress_version: 1,
        }
    }

    #[test]
    fn production_is_open_whatever_is_written_down_and_the_rest_is_as_written() {
        for mode in [EgressMode::Closed, EgressMode::Open] {
            assert_eq!(effective(&row(Stage::Production, mode)).unwrap(), Egress::Open);
        }
        assert_eq!(effective(&row(Stage::Staging, EgressMode::Open)).unwrap(), Egress::Open);
        let Egress::Closed { allow, resolve_names } = effective(&row(Stage::Development, EgressMode::Closed)).unwrap() else {
            panic!("open");
        };
        assert_eq!(allow.len(), 3);
        assert!(resolve_names, "a name is of no use to who cannot look it up");
    }

    #[tokio::test]
    async fn nothing_on_the_server_itself_can_be_allowed() {
        for place in ["127.0.0.1:8700", "[::1]:8700", "169.254.169.254:80", "0.0.0.0:80", "localhost:8700", "[::ffff:127.0.0.1]:80"] {
            let found = look_up(&place.parse().unwrap()).await;
            assert!(found.as_ref().is_err_and(|message| message.contains("server itself")), "{place}: {found:?}");
        }
        assert_eq!(look_up(&"192.0.2.1:443".parse().unwrap()).await.unwrap().len(), 1);
    }

    #[test]
    fn each_place_counts_once_and_what_is_none_is_named() {
        let list = |places: &[&str]| places.iter().map(|place| (*place).to_owned()).collect::<Vec<_>>();
        assert_eq!(parse(&list(&["a.example:1", "A.example:1", "a.example:2"])).unwrap().len(), 2);
        let Err(Error::Invalid { fields }) = parse(&list(&["a.example:1", "nonsense"])) else { panic!("taken") };
        assert_eq!(fields[0].field, "allow[1]");
        assert!(parse(&list(&["a.example:1"; 51])).is_err());
    }
}
