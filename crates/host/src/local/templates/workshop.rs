//! The workshop: an instance that no tenant has, with users of its own, in which templates for everybody are made.

use std::collections::BTreeMap;

use chrono::Utc;
use ocore_model::ids::{DataSetId, InstanceId, OperationId};
use sha2::{Digest, Sha256};
use uuid::Uuid;

use super::{Description, sorted};
use crate::{
    api::{BuildRelease, DataSource, Fence, MakeTemplate, OdooSettings, Progress, RunModules, SourceId, Template, TemplateContent},
    error::{HostError, Result},
    local::{LocalHost, fence::Claim},
};

/// No row of a control plane has this id.
pub(in crate::local) const WORKSHOP: InstanceId = InstanceId(Uuid::from_u128(0x6f43_6f72_6500_8000_8000_776f_726b_7368));
/// Releases of different keys share nothing.
const ISOLATION_KEY: &str = "ocore";

impl LocalHost {
    /// Installs modules of Odoo's own in the workshop and keeps the result for everybody. Made already is done.
    pub(in crate::local) async fn make_shared_template(&self, request: &MakeTemplate, progress: &Progress) -> Result<Template> {
        let distribution = self.installed_distribution(&request.odoo_version).await?.distribution;
        let requested = sorted(&request.modules);
        if let Some(foreign) = requested.iter().find(|name| !distribution.modules.contains(name)) {
            return Err(HostError::rejected(format!("`{foreign}` is not part of Odoo {}", request.odoo_version)));
        }
        let content = TemplateContent {
            distribution_id: distribution.id,
            with_demo: request.with_demo,
            isolation_key: None,
            requested: requested.clone(),
            environment: None,
            modules: BTreeMap::new(),
        };
        let id = self.template_id(&content).await?;
        let _turn = self.workshop.lock().await;
        if let Ok(Some(found)) = self.find_template(id) {
            return Ok(found);
        }
        let claim = self.claim_workshop().await?;
        // What a crash has left of an earlier one.
        self.remove_instance(&claim).await?;
        let description = Description { content, odoo_version: request.odoo_version.clone(), standard: requested };
        let made = claim.run(self.make_in_workshop(&claim, request, description, progress)).await;
        let removed = self.remove_instance(&claim).await;
        let made = made?;
        removed?;
        Ok(made)
    }

    /// Removes what a crash, or a call that was broken off, has left of the workshop. Nothing to do while somebody is at work there.
    pub(super) async fn sweep_workshop(&self) -> Result<()> {
        let Ok(_turn) = self.workshop.try_lock() else { return Ok(()) };
        if self.ledger.find(WORKSHOP).await?.is_none() && !self.layout.instance(WORKSHOP).exists() {
            return Ok(());
        }
        let claim = self.claim_workshop().await?;
        self.remove_instance(&claim).await
    }

    async fn claim_workshop(&self) -> Result<Claim> {
        self.claim(WORKSHOP, Fence { operation: OperationId::new(), generation: Utc::now().timestamp_micros() }).await
    }

    async fn make_in_workshop(
        &self,
        claim: &Claim,
        request: &MakeTemplate,
        description: Description,
        progress: &Progress,
    ) -> Result<Template> {
        let source = SourceId(hex::encode(Sha256::digest(b"a source tree without modules")));
        self.unpack(&source, "", Box::new(&[0_u8; 1024][..])).await?;
        self.seal(&source, &[], progress).await?;
        let build = BuildRelease { source, odoo_version: request.odoo_version.clone(), isolation_key: ISOLATION_KEY.to_owned() };
        let release = self.build(&build, progress).await?;
        self.make_instance(claim).await?;
        let data_set = DataSetId::new();
        let begin = match request.from {
            Some(template) => match self.find_template(template)? {
                // What has a tenant's modules in it is that tenant's.
                Some(found) if found.content.isolation_key.is_some() => {
                    return Err(HostError::machine("a template for everybody cannot begin with a project's"));
                }
                _ => DataSource::Template { template },
            },
            None => DataSource::Fresh,
        };
        match self.make_data_set(claim, data_set, begin, progress).await {
            Err(HostError::NotFound { what: "template", .. }) => {
                self.make_data_set(claim, data_set, DataSource::Fresh, progress).await?;
            }
            made => drop(made?),
        }
        let run = RunModules {
            data_set,
            release: release.id,
            install: description.content.requested.clone(),
            update: Vec::new(),
            renames: Vec::new(),
            corrections: Vec::new(),
            with_demo: request.with_demo,
            admin_password: None,
            settings: OdooSettings::default(),
        };
        self.install_and_update(claim, &run, progress).await?;
        self.keep(claim.instance, data_set, description, progress).await
    }
}
