//! Unlogged tables are in every copy, though recovery empties them.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use anyhow::Result;
use ocore_host::{
    DataSource, Host, HostError, LocalHost,
    testing::{Sandbox, fence, progress},
};
use ocore_model::ids::{DataSetId, InstanceId};
use sqlx::PgConnection;

use crate::{
    clusters::{as_odoo, running},
    snapshots::{another_instance, bring_to_life, take},
};

/// Each row is in an unlogged table and in an ordinary one, or in none.
const TABLES: &str = "
    create unlogged table fast (id serial primary key, words text);
    create unlogged table \"Of nothing\" (id int generated always as identity);
    create schema more; create unlogged table more.fast (id int);
    create table slow (id int primary key, words text);
    with rows as (insert into fast (words) select repeat(md5(n::text), 200) from generate_series(1, 1000) n returning *) insert into slow select * from rows;
    insert into more.fast values (7);";
const INSERT: &str = "with row as (insert into fast (words) values ('one more') returning *) insert into slow select * from row";
/// By the table and by its index; then what its sequence gives next.
const CHECK: &str = "set enable_seqscan = off; select (select count(*) from fast) = (select count(*) from slow) and (select count(*) from slow) >= 1000,
    (select count(*) from slow s join fast f using (id) where s.words = f.words) = (select count(*) from slow), (select sum(id) from more.fast),
    nextval('fast_id_seq') > (select max(id) from slow)";

async fn connect(host: &LocalHost, instance: InstanceId, data_set: DataSetId) -> Result<PgConnection> {
    Ok(host.cluster(&host.allocation(instance).await?, instance, data_set)?.connect_as_owner().await?)
}

async fn assert_whole(host: &LocalHost, instance: InstanceId, data_set: DataSetId) -> Result<()> {
    host.start_cluster(instance, data_set, fence(1)).await?;
    let answer = as_odoo(host, instance, data_set, CHECK).await?.expect_success("asked")?.stdout_text();
    assert!(answer.ends_with("t|t|7|t\n"), "{answer}");
    assert!(!host.layout.pgdata(instance, data_set).join("ocore_unlogged").exists());
    host.stop_cluster(instance, data_set, fence(1)).await?;
    Ok(())
}

#[tokio::test]
async fn every_copy_of_a_database_that_serves_holds_its_unlogged_tables() -> Result<()> {
    let sandbox = Sandbox::new()?;
    let host = sandbox.host().await?;
    let (instance, data_set) = running(&host).await?;
    as_odoo(&host, instance, data_set, TABLES).await?.expect_success("tables")?;
    let stop = Arc::new(AtomicBool::new(false));
    let mut connection = connect(&host, instance, data_set).await?;
    let writing = tokio::spawn({
        let stop = Arc::clone(&stop);
        async move {
            while !stop.load(Ordering::Relaxed) {
                sqlx::query(INSERT).execute(&mut connection).await?;
            }
            anyhow::Ok(())
        }
    });
    let other = another_instance(&host).await?;
    let mut snapshots = Vec::new();
    for _ in 0..3 {
        tokio::time::sleep(Duration::from_millis(50)).await;
        snapshots.push(take(&host, instance, data_set).await?.id);
    }
    stop.store(true, Ordering::Relaxed);
    writing.await??;
    for snapshot in snapshots {
        let alive = bring_to_life(&host, other, snapshot, true).await?.id();
        assert_whole(&host, other, alive).await?;
        // Also when it has been started and stopped before.
        assert_whole(&host, other, alive).await?;
    }

    // What a deployment goes on with, begun while users work or not.
    for is_prepared in [false, true] {
        let copy = DataSetId::new();
        if is_prepared {
            host.prepare_copy(instance, copy, data_set, fence(1), progress().0).await?;
            as_odoo(&host, instance, data_set, &format!("truncate fast, slow restart identity; insert into fast select n, 'x' from generate_series(1, 2000) n; insert into slow select * from fast; select setval('fast_id_seq', 2000); {INSERT}")).await?.expect_success("more rows")?;
        }
        host.create_data_set(instance, copy, DataSource::CopyOf(data_set), fence(1), progress().0).await?;
        assert_whole(&host, instance, copy).await?;
    }
    Ok(())
}

#[tokio::test]
async fn a_start_that_was_cut_off_puts_the_rest_of_the_unlogged_tables_into_place() -> Result<()> {
    let sandbox = Sandbox::new()?;
    let host = sandbox.host().await?;
    let (instance, data_set) = running(&host).await?;
    as_odoo(&host, instance, data_set, TABLES).await?.expect_success("tables")?;
    let snapshot = take(&host, instance, data_set).await?.id;
    let other = another_instance(&host).await?;
    let alive = bring_to_life(&host, other, snapshot, true).await?.id();
    let pgdata = host.layout.pgdata(other, alive);
    let kept: Vec<_> =
        walkdir::WalkDir::new(pgdata.join("ocore_unlogged")).into_iter().flatten().filter(|entry| entry.file_type().is_file()).collect();
    assert!(kept.len() >= 6, "{kept:?}");
    let aside = tempfile::tempdir()?;
    // The first half has been moved already, and the second half not.
    let cp = |from: &std::path::Path, to: &std::path::Path| {
        let done = std::process::Command::new("cp").arg("-a").arg(from).arg(to).status().unwrap();
        assert!(done.success());
    };
    cp(&pgdata.join("ocore_unlogged"), aside.path());
    host.start_cluster(other, alive, fence(1)).await?;
    host.stop_cluster(other, alive, fence(1)).await?;
    cp(&aside.path().join("ocore_unlogged"), &pgdata);
    for entry in kept.iter().take(kept.len() / 2) {
        std::fs::remove_file(entry.path())?;
    }
    for entry in kept.iter().skip(kept.len() / 2) {
        let place = pgdata.join("base").join(entry.path().strip_prefix(pgdata.join("ocore_unlogged"))?);
        std::fs::write(place, b"")?;
    }
    assert_whole(&host, other, alive).await
}

#[tokio::test]
async fn a_table_that_is_never_left_alone_is_named_and_nothing_is_lost() -> Result<()> {
    let sandbox = Sandbox::new()?;
    let host = sandbox.host().await?;
    let (instance, data_set) = running(&host).await?;
    as_odoo(&host, instance, data_set, TABLES).await?.expect_success("tables")?;
    let mut connection = connect(&host, instance, data_set).await?;
    sqlx::raw_sql("begin; insert into \"Of nothing\" default values").execute(&mut connection).await?;
    match take(&host, instance, data_set).await {
        Err(HostError::Rejected { summary, .. }) => {
            assert!(summary.contains("public.\"Of nothing\"") && summary.contains("set logged"), "{summary}");
        }
        other => panic!("{other:?}"),
    }
    assert!(host.snapshots().await?.is_empty());
    sqlx::raw_sql("commit").execute(&mut connection).await?;
    let snapshot = take(&host, instance, data_set).await?.id;
    let other = another_instance(&host).await?;
    let alive = bring_to_life(&host, other, snapshot, true).await?.id();
    assert_whole(&host, other, alive).await
}
