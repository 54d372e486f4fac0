//! What a tenant could put into its own data so that root, or PostgreSQL's superuser, does something for it. Each of these was a way in.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on ends here")]

use std::{
    os::unix::fs::{MetadataExt, PermissionsExt, chown, symlink},
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use ocore_host::{
    Host, HostError, LocalHost, WriteExport,
    local::{
        distribution::{self, ExternalDistribution},
        exec::{Program, RunAs},
    },
    testing::{Sandbox, fence, progress},
};
use ocore_model::{
    export::ExportFormat,
    ids::{DataSetId, ExportId, InstanceId},
};
use tokio::io::AsyncReadExt;

use crate::{
    clusters::{as_odoo, running},
    snapshots::{MIB, bring_to_life, store, take},
};

const SECRET: &str = "3f-nobody-but-root-reads-this";

/// A directory that only root enters, with a secret in it.
fn secret_place(sandbox: &Sandbox) -> Result<PathBuf> {
    let place = sandbox.path().join("secret");
    std::fs::create_dir(&place)?;
    std::fs::write(place.join("file"), SECRET)?;
    std::fs::set_permissions(&place, std::fs::Permissions::from_mode(0o700))?;
    Ok(place)
}

async fn stopped(sandbox: &Sandbox) -> Result<(std::sync::Arc<LocalHost>, InstanceId, DataSetId, PathBuf)> {
    let host = sandbox.host().await?;
    let (instance, data_set) = running(&host).await?;
    host.stop_cluster(instance, data_set, fence(1)).await?;
    let pgdata = host.layout.pgdata(instance, data_set);
    Ok((host, instance, data_set, pgdata))
}

/// Whether a secret is in any file below.
fn holds(tree: &Path, secret: &str) -> bool {
    let files = walkdir::WalkDir::new(tree).into_iter().flatten().filter(|entry| entry.file_type().is_file());
    files.into_iter().any(|entry| String::from_utf8_lossy(&std::fs::read(entry.path()).unwrap_or_default()).contains(secret))
}

/// A program that writes down who runs it.
fn telling(path: &Path, who: &Path) -> Result<()> {
    std::fs::create_dir_all(path.parent().context("a directory")?)?;
    std::fs::write(path, format!("#!/bin/sh\nid -u >> {}\n", who.display()))?;
    Ok(std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o755))?)
}

#[tokio::test]
async fn no_program_of_a_data_set_is_run_and_a_version_is_a_number() -> Result<()> {
    let sandbox = Sandbox::new()?;
    let (host, instance, data_set, pgdata) = stopped(&sandbox).await?;
    let (x, who) = (sandbox.path().join("x"), sandbox.path().join("who"));
    for program in ["postgres", "pg_controldata"] {
        telling(&x.join("bin").join(program), &who)?;
    }
    std::fs::write(pgdata.join("PG_VERSION"), x.display().to_string())?;
    std::fs::write(pgdata.join("backup_label.old"), "")?;
    let error = host.start_cluster(instance, data_set, fence(1)).await.unwrap_err().to_string();
    assert!(error.contains("damaged") && error.contains("snapshot"), "{error}");
    assert!(!who.exists(), "a program of the tenant's ran as {}", std::fs::read_to_string(&who)?);

    // By other ways: up and down again, somebody else's file, one without end, and what nobody ever writes to.
    let place = secret_place(&sandbox)?;
    let version = pgdata.join("PG_VERSION");
    std::fs::write(&version, format!("../..{}", x.display()))?;
    assert!(host.start_cluster(instance, data_set, fence(1)).await.is_err() && !who.exists());
    for target in [place.join("file"), PathBuf::from("/dev/zero")] {
        std::fs::remove_file(&version)?;
        symlink(&target, &version)?;
        let error = host.start_cluster(instance, data_set, fence(1)).await.unwrap_err().to_string();
        assert!(!error.contains(SECRET), "{error}");
    }
    std::fs::remove_file(&version)?;
    Program::new("mkfifo").arg(&version).run().await?.expect_success("a pipe")?;
    let started = tokio::time::timeout(Duration::from_mins(1), host.start_cluster(instance, data_set, fence(1))).await?;
    assert!(started.is_err());
    Ok(())
}

#[tokio::test]
async fn the_state_of_a_cluster_is_read_as_its_own_user() -> Result<()> {
    let sandbox = Sandbox::new()?;
    let (host, instance, data_set, pgdata) = stopped(&sandbox).await?;
    // Root alone could read it, and `pg_controldata` would say what is in it.
    let place = secret_place(&sandbox)?;
    let control = pgdata.join("global/pg_control");
    std::fs::rename(&control, place.join("pg_control"))?;
    symlink(place.join("pg_control"), &control)?;
    std::fs::write(pgdata.join("backup_label.old"), "")?;
    let error = host.start_cluster(instance, data_set, fence(1)).await.unwrap_err().to_string();
    assert!(error.contains("Permission denied"), "{error}");
    assert!(pgdata.join("backup_label.old").exists(), "root has read it and acted on it");
    Ok(())
}

#[tokio::test]
async fn a_link_in_a_data_set_leads_no_copy_elsewhere() -> Result<()> {
    let sandbox = Sandbox::new()?;
    let host = sandbox.host().await?;
    let (instance, data_set) = running(&host).await?;
    let pgdata = host.layout.pgdata(instance, data_set);
    let elsewhere = sandbox.path().join("elsewhere");
    std::fs::create_dir(&elsewhere)?;
    chown(&elsewhere, Some(host.allocation(instance).await?.postgres.uid), None)?;
    // PostgreSQL goes on with it. Root would read whatever it names by the time.
    let (control, moved) = (pgdata.join("global/pg_control"), elsewhere.join("pg_control"));
    std::fs::rename(&control, &moved)?;
    symlink(&moved, &control)?;
    assert!(take(&host, instance, data_set).await.is_err(), "root has followed a link");
    std::fs::rename(&moved, &control)?;

    // The directory above, so that root writes where the link in the copy leads.
    let wal = pgdata.join("pg_wal");
    for entry in std::fs::read_dir(&wal)? {
        let entry = entry?;
        if entry.file_type()?.is_file() {
            std::fs::rename(entry.path(), elsewhere.join(entry.file_name()))?;
        }
    }
    std::fs::remove_dir_all(&wal)?;
    symlink(&elsewhere, &wal)?;
    let error = take(&host, instance, data_set).await.unwrap_err().to_string();
    assert!(error.contains("pg_wal") && error.contains("it is a link"), "{error}");
    assert!(!elsewhere.join("archive_status").exists(), "root has made a directory where the link leads");
    // While nobody runs there, too.
    host.stop_cluster(instance, data_set, fence(1)).await?;
    assert!(take(&host, instance, data_set).await.is_err());
    Ok(())
}

async fn export(host: &LocalHost, instance: InstanceId, data_set: DataSetId, format: ExportFormat) -> Result<Vec<u8>, HostError> {
    let request = WriteExport { export: ExportId::new(), data_set, format, with_file_store: true };
    let export = request.export;
    host.write_export(instance, request, fence(1), progress().0).await?;
    let mut bytes = Vec::new();
    host.read_export(export, 0).await?.read_to_end(&mut bytes).await.unwrap();
    Ok(bytes)
}

#[tokio::test]
async fn an_export_holds_nothing_that_a_link_in_the_file_store_names() -> Result<()> {
    let sandbox = Sandbox::new()?;
    let host = sandbox.host().await?;
    let (instance, data_set) = running(&host).await?;
    as_odoo(&host, instance, data_set, "create table ir_module_module (name text, state text, latest_version text)")
        .await?
        .expect_success("tables")?;
    let (data_dir, owner) = (host.layout.data_dir(instance, data_set), host.allocation(instance).await?.odoo.uid);
    let place = secret_place(&sandbox)?;
    let file_store = data_dir.join("filestore");
    std::fs::create_dir(&file_store)?;
    chown(&file_store, Some(owner), Some(owner))?;
    symlink(&place, file_store.join("odoo"))?;
    let error = export(&host, instance, data_set, ExportFormat::Directory).await.unwrap_err().to_string();
    assert!(error.contains("leads elsewhere"), "{error}");
    assert!(!holds(&host.layout.exports(), SECRET));

    // The directory above it, and one below it.
    std::fs::remove_file(file_store.join("odoo"))?;
    std::fs::remove_dir(&file_store)?;
    std::fs::create_dir(place.join("odoo"))?;
    std::fs::rename(place.join("file"), place.join("odoo/file"))?;
    symlink(&place, &file_store)?;
    assert!(export(&host, instance, data_set, ExportFormat::Directory).await.is_err());
    std::fs::remove_file(&file_store)?;
    let kept = store(&data_dir, owner, b"mine")?;
    symlink(place.join("odoo"), data_dir.join("filestore/odoo/zz"))?;
    symlink(place.join("odoo/file"), data_dir.join("filestore/odoo/yy"))?;
    let packed = export(&host, instance, data_set, ExportFormat::Directory).await?;
    let text = String::from_utf8_lossy(&packed);
    assert!(!text.contains(SECRET) && text.contains(kept.file_name().and_then(|name| name.to_str()).unwrap()));
    Ok(())
}

#[tokio::test]
async fn a_file_that_claims_what_it_does_not_hold_costs_nothing() -> Result<()> {
    let sandbox = Sandbox::new()?;
    let host = sandbox.host().await?;
    let (instance, data_set) = running(&host).await?;
    as_odoo(&host, instance, data_set, "create table ir_module_module (name text, state text, latest_version text)")
        .await?
        .expect_success("tables")?;
    let (data_dir, owner) = (host.layout.data_dir(instance, data_set), host.allocation(instance).await?.odoo.uid);
    let hollow = store(&data_dir, owner, b"a beginning")?;
    std::fs::OpenOptions::new().write(true).open(data_dir.join(&hollow))?.set_len(4 << 40)?;
    let begun = Instant::now();
    let request = crate::snapshots::request(instance, data_set);
    let work = async {
        let snapshot = host.take_snapshot(request, progress().0).await?;
        let copied = std::fs::metadata(host.layout.snapshot(snapshot.id).join("data_dir").join(&hollow)).unwrap();
        assert_eq!((copied.len(), copied.blocks() < 100), (4 << 40, true), "{} blocks", copied.blocks());
        let found = host.verify_snapshot(snapshot.id, progress().0).await?;
        assert_eq!(found.damaged.len(), 1, "{found:?}");
        let copy = bring_to_life(&host, instance, snapshot.id, false).await.unwrap();
        assert!(std::fs::metadata(host.layout.data_dir(instance, copy.id()).join(&hollow)).unwrap().blocks() < 100);
        for format in [ExportFormat::Zip, ExportFormat::Directory] {
            let error = export(&host, instance, data_set, format).await.unwrap_err().to_string();
            assert!(error.contains("claims 4.0 TiB") && error.contains("remove it"), "{error}");
        }
        Ok::<_, HostError>(())
    };
    tokio::time::timeout(Duration::from_mins(5), work).await.with_context(|| format!("still at it after {:?}", begun.elapsed()))??;
    Ok(())
}

#[tokio::test]
async fn the_superuser_finds_nothing_that_the_owner_of_the_database_has_made() -> Result<()> {
    let sandbox = Sandbox::new()?;
    let host = sandbox.host().await?;
    let (instance, data_set) = running(&host).await?;
    let who = sandbox.path().join("who");
    std::fs::write(&who, "")?;
    std::fs::set_permissions(&who, std::fs::Permissions::from_mode(0o666))?;
    let hostile = format!(
        "create function public.p() returns name language plpgsql as $$begin execute 'copy (select session_user) to program ''cat >> {}'''; return 'odoo'; exception when insufficient_privilege then return 'odoo'; end$$;
         create view public.pg_stat_activity as select 'x'::text application_name, public.p() usename, 'active'::text state, 1 pid;
         create function public.current_setting(text) returns text language sql as $$select public.p()::text$$;
         create function public.count(*) returns bigint language sql as $$select 1::bigint$$;
         create view public.pg_tablespace as select public.p() spcname;
         alter database odoo set search_path = public, pg_catalog;
         alter role odoo set search_path = public, pg_catalog;",
        who.display()
    );
    // Some of it may not be possible; the rest is.
    for statement in hostile.split_inclusive(";\n") {
        as_odoo(&host, instance, data_set, statement).await?;
    }
    let seen = as_odoo(&host, instance, data_set, "select usename from pg_stat_activity").await?;
    assert_eq!(seen.stdout_text(), "odoo\n", "the view is in PostgreSQL's own one's place: {}", seen.stderr_text());
    // Neither may it make anything where the superuser is.
    let user = host.allocation(instance).await?.odoo;
    let there = Program::new("psql")
        .args(["-X", "-h"])
        .arg(host.layout.socket_directory(data_set))
        .args(["-U", "odoo", "-d", "postgres", "-c", "create view public.pg_stat_activity as select 1 as pid"])
        .run_as(RunAs { uid: user.uid, gid: user.uid, groups: vec![] })
        .run()
        .await?;
    assert!(!there.status.success());

    let cluster = host.cluster(&host.allocation(instance).await?, instance, data_set)?;
    assert!(cluster.is_healthy().await);
    let mut connection = cluster.connect_as_superuser().await?;
    let found: (String, String, bool) =
        sqlx::query_as("select current_database()::text, current_setting('search_path'), exists (select from pg_stat_activity where state = 'active' and usename = 'postgres')")
            .fetch_one(&mut connection)
            .await?;
    assert_eq!(found, ("postgres".to_owned(), "pg_catalog".to_owned(), true));
    take(&host, instance, data_set).await?;
    host.prepare_copy(instance, DataSetId::new(), data_set, fence(1), progress().0).await?;
    assert_eq!(std::fs::read_to_string(&who)?, "", "the superuser ran what the tenant has written");
    Ok(())
}

#[tokio::test]
async fn a_socket_of_another_cluster_is_not_taken_for_its_own() -> Result<()> {
    let sandbox = Sandbox::new()?;
    let host = sandbox.host().await?;
    let ((one, one_data), (two, two_data)) = (running(&host).await?, running(&host).await?);
    let socket = |data_set| host.layout.socket_directory(data_set).join(".s.PGSQL.5432");
    std::fs::remove_file(socket(one_data))?;
    symlink(socket(two_data), socket(one_data))?;
    let cluster = host.cluster(&host.allocation(one).await?, one, one_data)?;
    assert!(cluster.connect_as_superuser().await.is_err() && cluster.connect_as_owner().await.is_err());
    assert!(host.cluster(&host.allocation(two).await?, two, two_data)?.is_healthy().await);
    Ok(())
}

#[tokio::test]
async fn a_view_in_the_place_of_odoos_modules_is_read_with_a_bound() -> Result<()> {
    let sandbox = Sandbox::new()?;
    let host = sandbox.host().await?;
    let (instance, data_set) = running(&host).await?;
    let endless = "create view ir_module_module as select repeat('x', 100000) || n as name, 'installed' as state, repeat('9', 100000) as latest_version from generate_series(1, 60000) as n";
    as_odoo(&host, instance, data_set, endless).await?.expect_success("a view")?;
    let before = resident();
    match host.installed_modules(instance, data_set, fence(1)).await {
        Ok(modules) => {
            assert_eq!(modules.len(), 50_000);
            assert!(
                modules.iter().all(|module| module.name.len() <= 200 && module.version.as_ref().is_none_or(|version| version.len() <= 100))
            );
        }
        Err(error) => assert!(error.to_string().contains("did not answer"), "{error}"),
    }
    let grown = resident().saturating_sub(before);
    assert!(grown < 200 * MIB, "{} MiB", grown / MIB);
    Ok(())
}

/// Memory of this process, in bytes.
fn resident() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() * 1024
}

#[tokio::test]
async fn a_log_that_its_writer_makes_longer_is_not_sent() -> Result<()> {
    let sandbox = Sandbox::new()?;
    let host = sandbox.host().await?;
    let (instance, _) = running(&host).await?;
    let log = host.layout.logs(instance).join("odoo.log");
    std::fs::write(&log, "first\n")?;
    let mut lines = host.odoo_log(instance, 10, true).await?;
    assert_eq!(lines.recv().await.as_deref(), Some("first"));
    Program::new("truncate").args(["-s", "+300M"]).arg(&log).run().await?.expect_success("truncate")?;
    Program::new("tee").arg("-a").arg(&log).stdin("last\n").run().await?.expect_success("tee")?;
    let mut sent = 0;
    loop {
        let line = tokio::time::timeout(Duration::from_mins(1), lines.recv()).await?.context("it is followed")?;
        sent += line.len();
        if line == "last" {
            break;
        }
        assert!(sent < 100_000, "{sent} bytes");
    }
    assert_eq!(host.logged_errors(instance, chrono::Utc::now()).await?, 0);
    Ok(())
}

#[tokio::test]
async fn what_an_operator_keeps_is_not_run_as_root_for_whoever_may_change_it() -> Result<()> {
    let sandbox = Sandbox::new()?;
    let (source, who) = (sandbox.path().join("odoo"), sandbox.path().join("who"));
    std::fs::write(&who, "")?;
    std::fs::set_permissions(&who, std::fs::Permissions::from_mode(0o666))?;
    let python = sandbox.path().join("venv/bin/python");
    telling(&python, &who)?;
    let program = std::fs::read_to_string(&python)? + "echo '[\"/nowhere\", \"/nowhere\", \"3\"]'\n";
    std::fs::write(&python, program)?;
    for directory in ["odoo/addons/base", "addons"] {
        std::fs::create_dir_all(source.join(directory))?;
    }
    std::fs::write(source.join("odoo-bin"), "")?;
    let git = |args: &[&str]| Program::new("git").arg("-C").arg(&source).args(args).run();
    git(&["init", "--quiet"]).await?.expect_success("git")?;
    git(&["-c", "user.name=a", "-c", "user.email=a@b", "commit", "--quiet", "--allow-empty", "-m", "x"]).await?.expect_success("git")?;
    telling(&source.join("monitor"), &who)?;
    git(&["config", "core.fsmonitor", &source.join("monitor").display().to_string()]).await?.expect_success("git")?;
    Program::new("chown").args(["-R", "41234:41234"]).args([&source, &sandbox.path().join("venv")]).run().await?.expect_success("chown")?;
    let mut config = sandbox.config().clone();
    let version: ocore_model::names::OdooVersion = "17.0".parse()?;
    config.external_distributions.insert(version.clone(), ExternalDistribution { source, python });
    distribution::find(&config, &version).await?;
    let ran = std::fs::read_to_string(&who)?;
    let users: Vec<&str> = ran.lines().collect();
    assert!(users.contains(&"65534") && users.contains(&"41234"), "both ran: {users:?}");
    assert!(!users.contains(&"0"), "as root: {users:?}");
    Ok(())
}
