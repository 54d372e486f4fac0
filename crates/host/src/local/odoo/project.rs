//! What a release says of its Odoo beside what oCore sets: the section `[odoo]` of its `ocore.toml`, and modules that are known to be loaded with the
//! server.

use ocore_model::{ids::DataSetId, names::ModuleName, odoo_options::OdooOptions};

use crate::{
    error::Result,
    local::{LocalHost, fence::Claim, packaged, releases::ReleaseRecord, sources},
};

/// Its runner starts only when the module is loaded with the server (<https://github.com/OCA/queue>).
const QUEUE_JOB: &str = "queue_job";

impl LocalHost {
    /// `installing`: what is about to be installed.
    pub(super) async fn project_options(
        &self,
        claim: &Claim,
        data_set: DataSetId,
        record: &ReleaseRecord,
        installing: Option<&[ModuleName]>,
    ) -> Result<OdooOptions> {
        let mut options = sources::odoo_options(&self.release_tree(&record.release.id)?);
        let is_there = |name: &ModuleName| name.as_str() == QUEUE_JOB;
        let has_it = record.release.modules.keys().any(is_there) || packaged::modules(record)?.contains(QUEUE_JOB);
        if !has_it || options.server_wide_modules.iter().any(is_there) {
            return Ok(options);
        }
        let is_installed = async {
            let modules = self.modules_in_database(claim, data_set).await?;
            Ok::<_, crate::HostError>(modules.iter().any(|module| module.name == QUEUE_JOB && module.state == "installed"))
        };
        if installing.is_some_and(|modules| modules.iter().any(is_there)) || is_installed.await? {
            options.server_wide_modules.extend(QUEUE_JOB.parse::<ModuleName>());
        }
        Ok(options)
    }
}
