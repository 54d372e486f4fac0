use std::{
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, Result};
use ocore_host::{
    DataSource, Host, HostError, LocalHost, PrivateCluster,
    local::{
        InstanceLimits,
        cgroups::Part,
        exec::{Finished, Program, RunAs},
        layout::Unit,
        process::{self, Process},
    },
    testing::{Sandbox, fence, progress},
};
use ocore_model::{
    ids::{DataSetId, InstanceId},
    instance::Color,
};
use rustix::process::Signal;

/// An instance with one fresh data set whose cluster runs.
pub(crate) async fn running(host: &LocalHost) -> Result<(InstanceId, DataSetId)> {
    let (instance, data_set) = (InstanceId::new(), DataSetId::new());
    host.create_instance(instance, fence(1)).await?;
    host.create_data_set(instance, data_set, DataSource::Fresh, fence(1), progress().0).await?;
    host.start_cluster(instance, data_set, fence(1)).await?;
    Ok((instance, data_set))
}

/// Runs SQL as the instance's own Odoo would: as its operating system user, over the socket.
pub(crate) async fn as_odoo(host: &LocalHost, instance: InstanceId, data_set: DataSetId, sql: &str) -> Result<Finished> {
    psql(host, instance, data_set, instance, "odoo", "odoo", sql).await
}

async fn psql(
    host: &LocalHost,
    of: InstanceId,
    data_set: DataSetId,
    user_of: InstanceId,
    role: &str,
    database: &str,
    sql: &str,
) -> Result<Finished> {
    let user = host.allocation(user_of).await?.odoo;
    let _ = of;
    let program = Program::new("psql")
        .args(["-X", "-A", "-t", "-v", "ON_ERROR_STOP=1", "-h"])
        .arg(host.layout.socket_directory(data_set))
        .args(["-U", role, "-d", database, "-c", sql])
        .run_as(RunAs { uid: user.uid, gid: user.uid, groups: vec![] });
    Ok(program.run().await?)
}

fn server(host: &LocalHost, instance: InstanceId, data_set: DataSetId) -> Result<Process> {
    Process::find(&host.layout.record(instance, Unit::Cluster(data_set)))?.context("the cluster runs")
}

#[tokio::test]
async fn odoo_owns_its_database_and_nothing_else() -> Result<()> {
    let sandbox = Sandbox::new()?;
    let host = sandbox.host().await?;
    let (instance, data_set) = running(&host).await?;
    let who =
        as_odoo(&host, instance, data_set, "select current_user, current_database(), usesuper from pg_user where usename = current_user")
            .await?;
    assert_eq!(who.stdout_text(), "odoo|odoo|f\n", "{}", who.stderr_text());
    let table =
        as_odoo(&host, instance, data_set, "create table t (a text); insert into t values ('é'); select a, length(a) from t").await?;
    assert!(table.stdout_text().ends_with("é|1\n"), "{}{}", table.stdout_text(), table.stderr_text());
    let settings = as_odoo(
        &host,
        instance,
        data_set,
        "select string_agg(name || '=' || setting, ' ' order by name) from pg_settings where name in ('data_checksums', 'listen_addresses', 'server_encoding', 'fsync')",
    )
    .await?;
    assert_eq!(settings.stdout_text(), "data_checksums=on fsync=on listen_addresses= server_encoding=UTF8\n");
    let as_superuser = psql(&host, instance, data_set, instance, "postgres", "odoo", "select 1").await?;
    assert!(!as_superuser.status.success());
    assert!(as_superuser.stderr_text().contains("Peer authentication failed"), "{}", as_superuser.stderr_text());
    Ok(())
}

#[tokio::test]
async fn instances_side_by_side_reach_neither_clusters_nor_files_of_each_other() -> Result<()> {
    let sandbox = Sandbox::new()?;
    let host = sandbox.host().await?;
    let ((one, one_data), (two, two_data)) = (running(&host).await?, running(&host).await?);
    assert!(as_odoo(&host, one, one_data, "select 1").await?.status.success());
    assert!(as_odoo(&host, two, two_data, "select 1").await?.status.success());

    let across = psql(&host, two, two_data, one, "odoo", "odoo", "select 1").await?;
    assert!(across.stderr_text().contains("Permission denied"), "{}", across.stderr_text());

    let users = host.allocation(one).await?;
    let look = async |uid: u32, groups: Vec<u32>, path: PathBuf| -> Result<bool> {
        let run_as = RunAs { uid, gid: uid, groups };
        Ok(Program::new("ls").arg(path).run_as(run_as).run().await?.status.success())
    };
    let layout = &host.layout;
    assert!(look(users.odoo.uid, vec![], layout.data_dir(one, one_data)).await?);
    assert!(!look(users.odoo.uid, vec![], layout.pgdata(one, one_data)).await?, "Odoo must not read the database's files");
    assert!(!look(users.postgres.uid, vec![users.odoo.uid], layout.data_dir(one, one_data)).await?);
    for path in [
        layout.instance(two),
        layout.data_dir(two, two_data),
        layout.pgdata(two, two_data),
        layout.logs(two),
        layout.state(),
        layout.instances(),
    ] {
        assert!(!look(users.odoo.uid, vec![], path.clone()).await?, "{}", path.display());
        assert!(!look(users.postgres.uid, vec![users.odoo.uid], path.clone()).await?, "{}", path.display());
    }
    Ok(())
}

#[tokio::test]
async fn a_cluster_that_nobody_uses_has_only_processes_that_it_needs() -> Result<()> {
    let sandbox = Sandbox::new()?;
    let host = sandbox.host().await?;
    let (instance, data_set) = running(&host).await?;
    let server = server(&host, instance, data_set)?.pid();
    let title = |pid: i32| std::fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    let titles: Vec<String> = process::scan().iter().filter(|entry| entry.parent == server).map(|entry| title(entry.pid)).collect();
    assert!(titles.iter().any(|title| title.contains("checkpointer")), "{titles:?}");
    assert!(!titles.iter().any(|title| title.contains("replication")), "{titles:?}");
    host.stop_all().await?;
    Ok(())
}

#[tokio::test]
async fn a_cluster_whose_postmaster_was_killed_starts_again_with_its_data() -> Result<()> {
    let sandbox = Sandbox::new()?;
    let host = sandbox.host().await?;
    let (instance, data_set) = running(&host).await?;
    as_odoo(&host, instance, data_set, "create table kept as select generate_series(1, 1000) as n").await?.expect_success("table")?;
    let postmaster = server(&host, instance, data_set)?;
    postmaster.signal(Signal::KILL);
    postmaster.exited().await?;
    assert!(host.observe().await?[0].clusters.is_empty());
    host.start_cluster(instance, data_set, fence(1)).await?;
    assert_ne!(server(&host, instance, data_set)?.pid(), postmaster.pid());
    let count = as_odoo(&host, instance, data_set, "select count(*) from kept").await?;
    assert_eq!(count.stdout_text(), "1000\n", "{}", count.stderr_text());
    Ok(())
}

#[tokio::test]
async fn a_pid_file_that_names_another_process_does_not_stop_a_start() -> Result<()> {
    let sandbox = Sandbox::new()?;
    let host = sandbox.host().await?;
    let (instance, data_set) = running(&host).await?;
    host.stop_cluster(instance, data_set, fence(1)).await?;
    host.stop_cluster(instance, data_set, fence(1)).await?;
    let other = DataSetId::new();
    host.create_data_set(instance, other, DataSource::Fresh, fence(1), progress().0).await?;
    host.start_cluster(instance, other, fence(1)).await?;
    let pid = server(&host, instance, other)?.pid();
    // As after a crash: the pid has gone to another cluster of the same user.
    let stale = format!("{pid}\n{}\n1\n5432\n/nowhere\n\n1 1\nready\n", host.layout.pgdata(instance, data_set).display());
    std::fs::write(host.layout.pgdata(instance, data_set).join("postmaster.pid"), stale)?;
    host.start_cluster(instance, data_set, fence(1)).await?;
    assert!(as_odoo(&host, instance, data_set, "select 1").await?.status.success());
    assert_eq!(server(&host, instance, other)?.pid(), pid);
    Ok(())
}

#[tokio::test]
async fn another_host_value_on_the_same_home_adopts_what_runs() -> Result<()> {
    let sandbox = Sandbox::new()?;
    let (instance, data_set) = running(&*sandbox.host().await?).await?;
    let host = sandbox.host().await?;
    let postmaster = server(&host, instance, data_set)?;
    let observed = host.observe().await?;
    assert_eq!((observed.len(), observed[0].instance), (1, instance));
    assert_eq!((&observed[0].data_sets, &observed[0].clusters), (&vec![data_set], &vec![data_set]));
    host.start_cluster(instance, data_set, fence(2)).await?;
    assert_eq!(server(&host, instance, data_set)?.pid(), postmaster.pid(), "a claim of a newer generation leaves the cluster running");
    host.stop_cluster(instance, data_set, fence(2)).await?;
    assert!(!postmaster.is_alive());
    let stale = host.start_cluster(instance, data_set, fence(1)).await;
    assert!(matches!(stale, Err(HostError::Fenced { held: 1, newest: 2 })));
    Ok(())
}

#[tokio::test]
async fn a_cluster_that_is_on_its_way_down_is_started_again() -> Result<()> {
    let sandbox = Sandbox::new()?;
    let host = sandbox.host().await?;
    let (instance, data_set) = running(&host).await?;
    // As after a stop that was broken off when its signal had been sent.
    server(&host, instance, data_set)?.signal(Signal::INT);
    host.start_cluster(instance, data_set, fence(1)).await?;
    let answer = as_odoo(&host, instance, data_set, "select 1").await?;
    if !answer.status.success() {
        // It was faster than the signal: then it is down now, and starts.
        host.start_cluster(instance, data_set, fence(1)).await?;
        as_odoo(&host, instance, data_set, "select 1").await?.expect_success("select")?;
    }
    Ok(())
}

#[tokio::test]
async fn all_processes_of_an_instance_are_in_its_control_groups() -> Result<()> {
    let sandbox = Sandbox::with(|config| {
        config.pool.image = None;
        config.limits = InstanceLimits { memory_bytes: Some(512 * 1024 * 1024), cpu_millis: Some(1500), processes: Some(500) };
    })?;
    let host = sandbox.host().await?;
    let (instance, data_set) = running(&host).await?;
    let group = host.cgroups.prepare(instance, Part::Cluster(data_set), false);
    let groups = group.procs_files();
    if groups.is_empty() {
        eprintln!("this machine has no control groups that can be written to");
        return Ok(());
    }
    let pid = server(&host, instance, data_set)?.pid().to_string();
    for procs in groups {
        assert!(std::fs::read_to_string(procs)?.lines().any(|line| line == pid), "{}", procs.display());
    }
    let memory = groups[0].parent().context("a group")?;
    let limit = |group: &Path| {
        let read = |name: &&str| std::fs::read_to_string(group.join(name)).ok();
        ["memory.max", "memory.limit_in_bytes"].iter().find_map(read).map(|text| text.trim().to_owned())
    };
    let all = memory.parent().context("the instance's group")?;
    assert_eq!(limit(all).as_deref(), Some("536870912"));
    // Beside a live Odoo a new one has half of it, until it is alone.
    let blue = Part::Slot(Color::Blue);
    assert!(!host.cgroups.prepare(instance, blue, true).procs_files().is_empty());
    assert_eq!(limit(&all.join("blue")).as_deref(), Some("268435456"));
    host.cgroups.release(instance, blue);
    assert_ne!(limit(&all.join("blue")).as_deref(), Some("268435456"));
    assert_eq!(host.cgroups.memory_kills(instance), Some(0));
    host.destroy_instance(instance, fence(1)).await?;
    for procs in groups {
        assert!(!procs.exists(), "{}", procs.display());
    }
    Ok(())
}

#[tokio::test]
async fn configuration_is_not_written_through_a_link() -> Result<()> {
    let sandbox = Sandbox::new()?;
    let host = sandbox.host().await?;
    let (instance, data_set) = running(&host).await?;
    host.stop_cluster(instance, data_set, fence(1)).await?;
    let elsewhere = sandbox.path().join("elsewhere");
    std::fs::write(&elsewhere, "untouched")?;
    let path = host.layout.pgdata(instance, data_set).join("postgresql.conf");
    std::fs::remove_file(&path)?;
    std::os::unix::fs::symlink(&elsewhere, &path)?;
    host.start_cluster(instance, data_set, fence(1)).await?;
    assert_eq!(std::fs::read_to_string(&elsewhere)?, "untouched");
    Ok(())
}

#[tokio::test]
async fn a_cluster_that_cannot_start_says_why() -> Result<()> {
    let sandbox = Sandbox::new()?;
    let host = sandbox.host().await?;
    let (instance, data_set) = running(&host).await?;
    host.stop_cluster(instance, data_set, fence(1)).await?;
    let pgdata = host.layout.pgdata(instance, data_set);
    std::fs::set_permissions(&pgdata, std::fs::Permissions::from_mode(0o777))?;
    let error = host.start_cluster(instance, data_set, fence(1)).await.unwrap_err().to_string();
    assert!(error.contains("has invalid permissions"), "{error}");
    assert!(host.observe().await?[0].clusters.is_empty());
    Ok(())
}

#[tokio::test]
async fn a_newer_claim_ends_programs_of_older_ones_and_leaves_the_cluster() -> Result<()> {
    let sandbox = Sandbox::new()?;
    let host = sandbox.host().await?;
    let (instance, data_set) = running(&host).await?;
    let postmaster = server(&host, instance, data_set)?;
    let user = host.allocation(instance).await?.odoo;
    // As an update of modules whose oCore was killed leaves it.
    let run_as = RunAs { uid: user.uid, gid: user.uid, groups: vec![] };
    let orphan = Program::new("sleep").arg("1000").run_as(run_as).start()?;
    let pid = orphan.identity().context("it runs")?.pid;
    let identity = loop {
        let found = process::ProcEntry::read(pid).filter(|entry| entry.uid() == Some(user.uid));
        if found.is_some() {
            break process::Identity::of(pid).context("it runs")?;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    };
    host.start_cluster(instance, data_set, fence(1)).await?;
    assert!(identity.is_alive(), "the same generation ends nothing");
    host.start_cluster(instance, data_set, fence(2)).await?;
    assert!(!identity.is_alive());
    assert!(postmaster.is_alive());
    Ok(())
}

#[tokio::test]
async fn the_control_planes_own_cluster_is_made_adopted_and_stopped() -> Result<()> {
    let sandbox = Sandbox::new()?;
    let cluster = PrivateCluster::start(sandbox.config()).await?;
    let run = async |sql: &str| -> Result<String> {
        let program = Program::new("psql").args(["-X", "-A", "-t", "-c", sql]).arg(cluster.url());
        Ok(program.run().await?.expect_success("psql")?.stdout_text())
    };
    assert_eq!(run("select current_user, current_database(), pg_is_in_recovery()").await?, "ocore|ocore|f\n");
    run("create table kept as select 1 as n").await?;
    let again = PrivateCluster::start(sandbox.config()).await?;
    assert_eq!(again.url(), cluster.url());
    assert!(again.is_healthy().await);
    again.stop().await?;
    assert!(!cluster.is_healthy().await);
    PrivateCluster::start(sandbox.config()).await?;
    assert_eq!(run("select n from kept").await?, "1\n");
    Ok(())
}
