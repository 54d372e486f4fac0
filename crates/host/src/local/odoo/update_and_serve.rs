//! One Odoo that updates modules and serves afterwards: it loads its registry once, where an update, its end and a start would load it twice.
//!
//! Odoo keeps its lock on all registries while it updates, and begins with crons and with answers after that; so the first page that comes says that the
//! update has ended. Whether it went well is read from the same signs as after a run that ends. Should Odoo execute itself again, it drops the modules to
//! update from its options.

use std::path::Path;

use ocore_model::names::ModuleName;

use super::{
    failure::Failure,
    log_record::Log,
    takeover,
    verdict::{self, Exit},
};
use crate::{
    api::{Progress, RunModules, RunningSlot, SlotSpec},
    error::{HostError, Result},
    local::{LocalHost, fence::Claim},
};

impl LocalHost {
    /// After a failure nothing of it runs.
    pub(in crate::local) async fn update_then_serve(
        &self,
        claim: &Claim,
        request: &RunModules,
        spec: &SlotSpec,
        progress: &Progress,
    ) -> Result<RunningSlot> {
        let is_one = request.data_set == spec.data_set.id() && request.release == spec.release && request.settings == spec.settings;
        if !is_one || request.admin_password.is_some() || request.with_demo {
            return Err(HostError::machine("an Odoo serves what it has updated, on data that have their administrator and no demo data"));
        }
        if self.modules_in_database(claim, request.data_set).await?.is_empty() {
            return Err(HostError::machine("a database without Odoo is filled before anything serves it"));
        }
        self.end_slot(claim, spec.color).await?;
        takeover::take_over(&self.run_cluster(claim.instance, request.data_set).await?, request, progress).await?;
        progress.log.line(&super::run::announce(&request.install, &request.update));
        let mut written = self.read_log(claim.instance, 0, true).await?;
        let serving = async {
            let running = self.serve_updated(claim, spec, request, progress).await?;
            let modules = self.modules_in_database(claim, request.data_set).await;
            let judged = modules.and_then(|modules| {
                let requested: Vec<ModuleName> = request.install.iter().chain(&request.update).cloned().collect();
                Ok(verdict::of_modules(&modules, &requested, &Log::default(), &self.release_tree(&request.release)?)?)
            });
            match judged {
                Ok(()) => Ok(running),
                Err(error) => {
                    self.end_slot(claim, spec.color).await?;
                    Err(error)
                }
            }
        };
        tokio::pin!(serving);
        loop {
            tokio::select! {
                biased;
                done = &mut serving => return done,
                Some(line) = written.recv() => progress.log.line(&line),
            }
        }
    }
}

/// Odoo's options.
pub(super) fn options(request: &RunModules) -> Vec<String> {
    let mut options = Vec::new();
    for (option, modules) in [("--init", &request.install), ("--update", &request.update)] {
        if !modules.is_empty() {
            options.extend([option.to_owned(), super::run::names(modules, ",")]);
        }
    }
    options
}

/// What the log of an Odoo says that answers: it serves also when its update has failed.
pub(super) fn judge(text: &str, request: &RunModules, source: &Path) -> Result<()> {
    Ok(verdict::of_run(Exit::Code(0), &Log::parse(text), &request.install, source)?)
}

/// Why one does not answer, or has ended.
pub(super) fn explain(text: &str, request: &RunModules, source: &Path, otherwise: String) -> HostError {
    // Any code but 0: what it wrote says more.
    let Failure { summary, excerpt } = match verdict::of_run(Exit::Code(255), &Log::parse(text), &request.install, source) {
        Err(failure) if !failure.summary.starts_with("Odoo ended with") => failure,
        Err(failure) => Failure { summary: otherwise, ..failure },
        Ok(()) => Failure { summary: otherwise, excerpt: String::new() },
    };
    HostError::Rejected { summary, excerpt }
}
