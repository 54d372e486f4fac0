//! Runs of Odoo that install or update modules and end by themselves.

use std::{os::unix::process::ExitStatusExt, time::Duration};

use ocore_model::{
    ids::{InstanceId, OperationId},
    names::ModuleName,
};

use super::{
    command,
    config::{DATABASE, OdooConfig, demo_option},
    guard::Guard,
    log_record::Log,
    takeover,
    verdict::{self, Exit},
};
use crate::{
    api::{Progress, RunModules, Standing},
    error::{HostError, Result},
    local::{
        LocalHost,
        cgroups::{Group, Part},
        cluster::Cluster,
        data_sets::Lacks,
        distribution::InstalledDistribution,
        exec::{Finished, Program},
        fence::Claim,
        layout::{Layout, Unit},
        process::run_recorded,
        slots,
    },
};

/// How much of a run's log is read for the verdict, from its end, in bytes.
const LOG_LIMIT: usize = 64 * 1024 * 1024;
/// One password takes Python half a second.
const HASH_TIME: Duration = Duration::from_mins(1);
/// With Odoo's own settings for it (`res.users`, `_crypt_context`); the password comes by standard input, where nobody sees it.
const HASH_PASSWORD: &str = "import sys; from passlib.context import CryptContext; \
    print(CryptContext(['pbkdf2_sha512'], pbkdf2_sha512__rounds=600_000).hash(sys.stdin.read()))";

impl LocalHost {
    /// Odoo's log of a run that went well; empty when there was nothing to do.
    pub(in crate::local) async fn install_and_update(&self, claim: &Claim, request: &RunModules, progress: &Progress) -> Result<Log> {
        let instance = claim.instance;
        let (record, distribution) = self.runnable(&request.release).await?;
        let cluster = self.run_cluster(instance, request.data_set).await?;
        let is_fresh = self.modules_in_database(claim, request.data_set).await?.is_empty();
        let mut install = request.install.clone();
        if is_fresh && install.is_empty() {
            install.push("base".parse().map_err(|error| HostError::machine_from("Odoo's own base module has no valid name", error))?);
        }
        if install.is_empty() && request.update.is_empty() && request.admin_password.is_none() {
            return Ok(Log::default());
        }
        let guard = Guard::begin(self, instance, &cluster, progress)?;
        let progress = &guard.progress;
        let allocation = self.allocation(instance).await?;
        let config = self.layout.instance(instance).join("odoo-run.conf");
        OdooConfig {
            version: &record.release.odoo_version,
            addons_path: self.addons_path(&record, &distribution)?,
            data_dir: self.layout.data_dir(instance, request.data_set),
            socket_directory: cluster.socket_directory.clone(),
            settings: &request.settings,
            project: &self.project_options(claim, request.data_set, &record, Some(&install)).await?,
            serve: None,
        }
        .write(&config, &allocation.odoo)?;
        claim.check()?;
        let hash = self.hash_password(&distribution, request.admin_password.as_deref(), progress);
        let run = async {
            if install.is_empty() && request.update.is_empty() {
                return Ok(Log::default());
            }
            takeover::take_over(&cluster, request, progress).await?;
            progress.log.line(&announce(&install, &request.update));
            let mut program = self
                .warm(command::odoo(&distribution, &record, &allocation.odoo, &request.settings), &distribution, &record)
                .arg("--config")
                .arg(&config)
                .args(["--database", DATABASE, "--stop-after-init", "--no-http"])
                .group(self.prepare_run(instance, claim.fence.operation)?)
                .output_limit(LOG_LIMIT)
                // Nobody is served by it.
                .yields()
                .progress(progress);
            for (option, modules) in [("--init", &install), ("--update", &request.update)] {
                if !modules.is_empty() {
                    program = program.arg(option).arg(names(modules, ","));
                }
            }
            program = program.args(demo_option(&record.release.odoo_version, request.with_demo));
            // Nothing of what the code of the modules does with raw data may reach anybody.
            if self.standing_of(instance, request.data_set)? == Standing::Raw {
                self.require_isolation().await?;
                program = program.without_network();
            }
            let finished = self.run_once(instance, program, claim, request).await?;
            self.judge(&finished, claim, request, &install).await
        };
        let (hash, log) = guard.over_update(async { tokio::try_join!(hash, run) }).await?;
        if let Some(hash) = hash {
            set_admin_password(&cluster, &hash).await?;
            self.mark_lacks(claim, request.data_set, Lacks::Nothing)?;
        }
        Ok(log)
    }

    /// The control group of a program that ends by itself.
    pub(in crate::local) fn prepare_run(&self, instance: InstanceId, operation: OperationId) -> Result<Group> {
        let serves = !slots::running(&self.layout, instance)?.is_empty();
        Ok(self.cgroups.prepare(instance, Part::Run(operation), serves))
    }

    async fn run_once(&self, instance: InstanceId, program: Program, claim: &Claim, request: &RunModules) -> Result<Finished> {
        self.confine(instance).await?;
        let unit = Unit::Run(claim.fence.operation);
        let (record, mark) = (self.layout.record(instance, unit), Layout::mark(instance, unit));
        // On the heap, as all that is this deep: a thread's stack is small.
        Box::pin(run_recorded(program, &record, &mark, Some(request.data_set))).await
    }

    async fn judge(&self, finished: &Finished, claim: &Claim, request: &RunModules, install: &[ModuleName]) -> Result<Log> {
        let exit = match (finished.status.code(), finished.status.signal()) {
            (Some(code), _) => Exit::Code(code),
            (None, signal) => Exit::Signal(signal.unwrap_or_default()),
        };
        let log = Log::parse(&finished.stderr_text());
        let source = self.release_tree(&request.release)?;
        verdict::of_run(exit, &log, install, &source)?;
        let modules = self.modules_in_database(claim, request.data_set).await?;
        let requested: Vec<ModuleName> = install.iter().chain(&request.update).cloned().collect();
        verdict::of_modules(&modules, &requested, &log, &source)?;
        Ok(log)
    }
}

impl LocalHost {
    /// As Odoo keeps it; `None` for none. A user of a build computes it: what Python imports may be an operator's, and nobody else sees that user's
    /// processes.
    pub(in crate::local) async fn hash_password(
        &self,
        distribution: &InstalledDistribution,
        password: Option<&str>,
        progress: &Progress,
    ) -> Result<Option<String>> {
        let Some(password) = password else { return Ok(None) };
        let user = self.claim_build_user().await?;
        let program = Program::new(&distribution.python)
            .args(["-I", "-c", HASH_PASSWORD])
            .stdin(password)
            .of_build(&user, Vec::new())
            .without_network()
            .cancel(progress.cancel.clone());
        let finished = program.time_limit(HASH_TIME).run().await;
        user.release().await?;
        let finished = finished?.expect_success("the password of Odoo's administrator could not be set")?;
        Ok(Some(finished.stdout_text().trim().to_owned()))
    }
}

/// Of the user that Odoo's own data calls `base.user_admin`, whatever its login is by now.
pub(in crate::local) async fn set_admin_password(cluster: &Cluster, hash: &str) -> Result<()> {
    let mut connection = cluster.connect_as_owner().await?;
    let done = sqlx::query(
        "update public.res_users set password = $1 where id = (select res_id from public.ir_model_data where module = 'base' and name = 'user_admin')",
    )
    .bind(hash)
    .execute(&mut connection)
    .await
    .map_err(|error| HostError::machine_from("the password of Odoo's administrator could not be set", error))?;
    if done.rows_affected() == 1 {
        Ok(())
    } else {
        Err(HostError::machine("the database has no administrator whose password could be set"))
    }
}

pub(super) fn announce(install: &[ModuleName], update: &[ModuleName]) -> String {
    let parts = [("Installing", install), ("Updating", update)];
    let parts: Vec<String> = parts
        .iter()
        .filter(|(_, modules)| !modules.is_empty())
        .map(|(verb, modules)| format!("{verb} {}.", names(modules, ", ")))
        .collect();
    parts.join(" ")
}

pub(super) fn names(modules: &[ModuleName], separator: &str) -> String {
    modules.iter().map(ModuleName::as_str).collect::<Vec<_>>().join(separator)
}
