//! The plain webhook: whoever has the project's secret may say that there is something to fetch.
//!
//! It is verified, stored and answered; the fetch comes after the answer. A crash in between loses nothing: what is stored and not done is
//! found by [`process_deliveries`], which a timer calls.

use std::collections::BTreeMap;

use hmac::{Hmac, Mac as _};
use ocore_model::{deployment::Trigger, ids::ProjectId, project::RepositoryKind};
use sha2::Sha256;
use sqlx::Connection as _;
use subtle::ConstantTimeEq as _;

use super::external::{self, GIVE_UP};
use crate::{
    Control, Error, Result, audit,
    authorization::{Grant, ManageProjects, System},
    deployments::Starter,
    projects,
    secrets::{self, Place, Secret},
    store::repositories::{self, Delivery},
};

/// What a sender shows: the secret itself, or an HMAC-SHA-256 of the body under it, hexadecimal, with or without `sha256=` before it.
#[derive(Debug, Clone, Default)]
pub struct Proof {
    pub token: Option<String>,
    pub signature: Option<String>,
}

pub(super) struct NewSecret {
    /// For the person, this once.
    pub(super) text: String,
    pub(super) sealed: Vec<u8>,
}

fn place(project: ProjectId) -> Place {
    Place { table: "projects", column: "webhook_secret", row: project.0 }
}

pub(super) fn new_secret(control: &Control, project: ProjectId) -> Result<NewSecret> {
    let text = secrets::new_token("whsec_");
    let sealed = secrets::seal(&control.settings, place(project), &Secret::new(text.clone()))?;
    Ok(NewSecret { text, sealed })
}

/// Makes another secret and shows it this once; the old one stops working.
pub async fn renew_webhook_secret(control: &Control, grant: &Grant<ManageProjects>, project: ProjectId) -> Result<String> {
    let mut connection = control.pool.acquire().await?;
    let repository = repositories::find(&mut connection, grant, project).await?;
    projects::may_deploy_production(&mut connection, grant, project).await?;
    if repository.kind != RepositoryKind::External {
        return Err(Error::conflict("repository_built_in", "the project uses the built-in remote, which needs no webhook"));
    }
    let secret = new_secret(control, project)?;
    let mut transaction = connection.begin().await?;
    repositories::set_webhook_secret(&mut transaction, grant, project, &secret.sealed).await?;
    let subject = format!("project:{project}");
    audit::record(&mut transaction, control, grant, "repository.webhook_secret_renewed", &subject, &serde_json::json!({})).await?;
    transaction.commit().await?;
    Ok(secret.text)
}

/// Takes a webhook: when this returns, it is stored and will be acted on. A delivery id that was seen before changes nothing.
/// What does not prove itself is refused in the same words whether the project exists or not.
pub async fn receive_webhook(control: &Control, project: ProjectId, proof: &Proof, body: &[u8], delivery_id: Option<&str>) -> Result<()> {
    let refused = || Error::Unauthenticated {
        code: "webhook_refused",
        message: "there is no webhook here for that secret; give it in X-Ocore-Token, or sign the body in X-Ocore-Signature".to_owned(),
    };
    let mut connection = control.pool.acquire().await?;
    let repository = repositories::find_any(&mut connection, System, project).await?.ok_or_else(refused)?;
    let sealed = repository.webhook_secret.as_deref().filter(|_| !repository.archived).ok_or_else(refused)?;
    if !proof.holds(secrets::open(&control.settings, place(project), sealed)?.expose(), body) {
        return Err(refused());
    }
    let delivery_id =
        delivery_id.map(|id| id.chars().filter(|c| !c.is_control()).take(200).collect::<String>()).filter(|id| !id.is_empty());
    let added = repositories::add_delivery(&mut connection, System, project, delivery_id.as_deref(), control.clock.now()).await?;
    drop(connection);
    if added.is_some() {
        wake(control, project);
    }
    Ok(())
}

impl Proof {
    fn holds(&self, secret: &[u8], body: &[u8]) -> bool {
        if let Some(token) = &self.token
            && bool::from(token.as_bytes().ct_eq(secret))
        {
            return true;
        }
        let Some(signature) = &self.signature else { return false };
        let Ok(signature) = hex::decode(signature.trim().trim_start_matches("sha256=")) else { return false };
        Hmac::<Sha256>::new_from_slice(secret).is_ok_and(|mut mac| {
            mac.update(body);
            mac.verify_slice(&signature).is_ok()
        })
    }
}

/// Begins the work of a project's open webhooks. Never fails the caller: the timer finds what this missed.
pub(super) fn wake(control: &Control, project: ProjectId) {
    let control = control.clone();
    tokio::spawn(async move {
        if let Err(error) = process(&control, Some(project)).await {
            tracing::warn!(%project, error = &error as &dyn std::error::Error, "a webhook waits");
        }
    });
}

/// Fetches for every webhook that was stored and not done. For a timer, and for the start; may run at once with itself.
pub async fn process_deliveries(control: &Control) -> Result<()> {
    process(control, None).await?;
    let month_ago = control.clock.now() - chrono::TimeDelta::days(30);
    repositories::prune_deliveries(&mut *control.pool.acquire().await?, System, month_ago).await
}

async fn process(control: &Control, only: Option<ProjectId>) -> Result<()> {
    let open = repositories::open_deliveries(&mut *control.pool.acquire().await?, System).await?;
    let mut by_project: BTreeMap<ProjectId, Vec<Delivery>> = BTreeMap::new();
    for delivery in open {
        by_project.entry(delivery.project_id).or_default().push(delivery);
    }
    by_project.retain(|project, _| only.is_none_or(|only| only == *project));
    for (project, deliveries) in by_project {
        // One fetch does for all that were stored before it.
        let error = fetch(control, project).await.err();
        if let Some(error) = &error {
            tracing::warn!(%project, error = error as &dyn std::error::Error, "a webhook's fetch did not end well");
        }
        let mut connection = control.pool.acquire().await?;
        let now = control.clock.now();
        for delivery in deliveries {
            let age = (now - delivery.received_at).to_std().unwrap_or_default();
            if error.is_none() || age > GIVE_UP {
                let error = error.as_ref().map(ToString::to_string);
                repositories::close_delivery(&mut connection, System, delivery.id, now, error.as_deref()).await?;
            }
        }
    }
    Ok(())
}

async fn fetch(control: &Control, project: ProjectId) -> Result<()> {
    let repository = repositories::find_any(&mut *control.pool.acquire().await?, System, project).await?;
    match repository {
        Some(repository) if repository.kind == RepositoryKind::External && !repository.archived => {
            external::fetch_and_record(control, &repository, Starter::nobody(Trigger::Webhook)).await.map(drop)
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_webhook_is_proven_by_its_secret_or_by_a_signature_of_its_body() {
        let proof = |token: &str, signature: &str| Proof {
            token: Some(token.to_owned()).filter(|token| !token.is_empty()),
            signature: Some(signature.to_owned()).filter(|signature| !signature.is_empty()),
        };
        // RFC 4231, test case 2.
        let signature = "5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843";
        let body = b"what do ya want for nothing?";
        assert!(proof("Jefe", "").holds(b"Jefe", body));
        assert!(proof("", signature).holds(b"Jefe", body));
        assert!(proof("", &format!("sha256={signature}")).holds(b"Jefe", body));
        assert!(!proof("", signature).holds(b"Jefe", b"another body"));
        assert!(!proof("Jef", "").holds(b"Jefe", body));
        assert!(!proof("", "zz").holds(b"Jefe", body));
        assert!(!Proof::default().holds(b"", body));
    }
}
