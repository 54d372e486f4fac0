//! The project's `neutralize.py`: its Python, the instance's user, the copy's database, and no network.

use std::{collections::BTreeMap, path::Path, time::Duration};

use ocore_model::ids::DataSetId;

use crate::{
    api::Progress,
    error::{HostError, Result},
    local::{
        LocalHost,
        cluster::Cluster,
        data_sets::ODOO_ROLE,
        exec::Program,
        fence::Claim,
        layout::{CLUSTER_PORT, Layout, Unit},
        ledger::OsUser,
        odoo::command,
        private::Private,
        process::run_recorded,
        releases::ReleaseRecord,
    },
};

const TIME_LIMIT: Duration = Duration::from_hours(1);
/// Lines of a failed hook's output that the error shows.
const EXCERPT_LINES: usize = 40;

/// What the hook runs as and on.
pub(super) struct Hook<'a> {
    pub(super) path: &'a Path,
    pub(super) record: &'a ReleaseRecord,
    pub(super) user: &'a OsUser,
    pub(super) cluster: &'a Cluster,
    pub(super) data_set: DataSetId,
    pub(super) env_vars: &'a BTreeMap<String, String>,
}

impl LocalHost {
    /// Runs it to its end; any exit code but 0 is a failure.
    pub(super) async fn run_hook(&self, claim: &Claim, hook: Hook<'_>, progress: &Progress) -> Result<()> {
        progress.log.line("Running the project's neutralize.py.");
        let unit = Unit::Run(claim.fence.operation);
        let program = command::python(hook.record, hook.user, hook.env_vars, &[])
            .arg(hook.path)
            .cwd(hook.path.parent().unwrap_or(Path::new("/")))
            .env("PGHOST", &hook.cluster.socket_directory)
            .env("PGPORT", CLUSTER_PORT.to_string())
            .env("PGDATABASE", ODOO_ROLE)
            .env("PGUSER", ODOO_ROLE)
            .without_network()
            .private(&Private::Fleeting)
            .group(self.prepare_run(claim.instance, claim.fence.operation)?)
            .time_limit(TIME_LIMIT)
            .progress(progress);
        let record = self.layout.record(claim.instance, unit);
        let finished = run_recorded(program, &record, &Layout::mark(claim.instance, unit), Some(hook.data_set)).await?;
        if finished.status.success() {
            return Ok(());
        }
        let output = finished.stderr_text();
        let lines: Vec<&str> = output.lines().filter(|line| !line.trim().is_empty()).collect();
        let last = lines.last().map(|line| format!(": {}", line.trim())).unwrap_or_default();
        Err(HostError::Rejected {
            summary: format!("neutralize.py of the project failed with {}{last}", finished.status),
            excerpt: lines[lines.len().saturating_sub(EXCERPT_LINES)..].join("\n"),
        })
    }

    /// Refuses to go on where programs cannot be kept from the network.
    pub(in crate::local) async fn require_isolation(&self) -> Result<()> {
        let finished = Program::new("true").without_network().run().await?;
        finished
            .expect_success(
                "a copy of another environment's data is worked on without any network, and this machine does not allow to take it away \
                 (`unshare --net`); run oCore as root with CAP_SYS_ADMIN",
            )
            .map(drop)
    }
}
