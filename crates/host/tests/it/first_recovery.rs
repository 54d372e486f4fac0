//! The first start of a copy that was taken while its source served, cut off in the middle.

use std::time::Duration;

use anyhow::{Result, ensure};
use ocore_host::{
    Host,
    local::{exec::Program, process},
    testing::{Sandbox, fence, progress},
};
use rustix::process::Signal;

use crate::{
    clusters::{as_odoo, running},
    snapshots::{MIB, another_instance, bring_to_life, take},
};

const TRIES: usize = 5;

#[tokio::test]
async fn a_first_recovery_that_is_cut_off_begins_again() -> Result<()> {
    let sandbox = Sandbox::with_image(4096 * MIB)?;
    let host = sandbox.host().await?;
    let (instance, data_set) = running(&host).await?;
    as_odoo(&host, instance, data_set, "create table t as select 1 as n").await?.expect_success("table")?;
    for _ in 0..TRIES {
        // Much log between the begin and the end of the copy, so that its recovery takes a moment.
        let writing = as_odoo(&host, instance, data_set, "insert into t select generate_series(1, 1500000)");
        let (written, snapshot) = tokio::join!(writing, take(&host, instance, data_set));
        written?.expect_success("rows")?;
        let snapshot = snapshot?;
        let target = another_instance(&host).await?;
        let copy = bring_to_life(&host, target, snapshot.id, true).await?.id();
        let (pgdata, user) = (host.layout.pgdata(target, copy), host.allocation(target).await?.postgres.uid);
        let killed = async {
            while !pgdata.join("backup_label.old").exists() {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            for entry in process::scan().iter().filter(|entry| entry.uid() == Some(user)) {
                if let Some(pid) = rustix::process::Pid::from_raw(entry.pid) {
                    let _ = rustix::process::kill_process(pid, Signal::KILL);
                }
            }
        };
        let (started, ()) = tokio::join!(host.start_cluster(target, copy, fence(1)), killed);
        let state = Program::new(host.config.postgres_bin()?.join("pg_controldata")).arg(&pgdata).run().await?.stdout_text();
        if started.is_ok() || state.lines().any(|line| line.starts_with("Backup start location:") && line.ends_with(" 0/0")) {
            host.destroy_instance(target, fence(2)).await?;
            continue;
        }
        host.start_cluster(target, copy, fence(1)).await?;
        let rows = as_odoo(&host, target, copy, "select count(*) from t").await?.expect_success("count")?.stdout_text();
        ensure!(rows.trim().parse::<u64>()? % 1_500_000 == 1, "half a statement is there: {rows}");
        ensure!(!pgdata.join("backup_label").exists());
        // And no more than once.
        host.stop_cluster(target, copy, fence(1)).await?;
        host.start_cluster(target, copy, fence(1)).await?;
        ensure!(!pgdata.join("backup_label").exists() && !pgdata.join("backup_label.old").exists());
        let found = host.verify_snapshot(snapshot.id, progress().0).await?;
        ensure!(found.damaged.is_empty(), "{found:?}");
        return Ok(());
    }
    anyhow::bail!("no recovery could be cut off in {TRIES} tries")
}
