//! Raw copies that are set aside: nothing takes them for data, they can be asked and removed, and they go with their instance.

use std::{path::PathBuf, time::Duration};

use anyhow::{Context, Result};
use ocore_host::{
    DataSource, Host, HostError, Inspect, LocalHost, NeutralizationReport, OdooSettings, RawDataSet, ReleaseId, ServableDataSet, SetAside,
    SlotSpec,
    local::{
        exec::{Program, RunAs},
        layout::Unit,
        process::Process,
    },
    testing::{Sandbox, fence, progress},
};
use ocore_model::{
    ids::{DataSetId, InstanceId},
    instance::Color,
};

use crate::{
    clusters::{as_odoo, running},
    snapshots::{MIB, another_instance, bring_to_life, request, store, take},
};

const REASON: &str = "an outgoing mail server other than the catcher is active";

fn aside(data_set: DataSetId) -> SetAside {
    SetAside { data_set: RawDataSet::quarantined(data_set), reason: REASON.to_owned() }
}

fn question(sql: &str) -> Inspect {
    Inspect { sql: sql.to_owned(), max_rows: 10, max_bytes: 100_000, max_characters: 20, seconds: 2 }
}

/// A raw copy of an instance's data, in another one.
async fn raw(host: &LocalHost) -> Result<(InstanceId, DataSetId)> {
    let (source, data_set) = running(host).await?;
    let seed = "create table secrets (id int primary key, word text);
                insert into secrets select n, 'secret ' || n from generate_series(1, 25) n;
                insert into secrets values (0, null), (100, repeat('é', 30));
                create function harm() returns int language plpgsql as $$ begin delete from secrets; return 1; end $$;
                create function escape() returns int language plpgsql as $$
                    begin perform set_config('transaction_read_only', 'off', false); delete from secrets; return 1; end $$";
    as_odoo(host, source, data_set, seed).await?.expect_success("seed")?;
    store(&host.layout.data_dir(source, data_set), host.allocation(source).await?.odoo.uid, b"a file of the original")?;
    let snapshot = take(host, source, data_set).await?;
    let target = another_instance(host).await?;
    let copy = bring_to_life(host, target, snapshot.id, false).await?;
    assert!(copy.is_raw());
    // What is refused has been looked at, so its first recovery is over.
    host.start_cluster(target, copy.id(), fence(1)).await?;
    host.stop_cluster(target, copy.id(), fence(1)).await?;
    Ok((target, copy.id()))
}

fn cluster_runs(host: &LocalHost, instance: InstanceId, data_set: DataSetId) -> Result<bool> {
    Ok(Process::find(&host.layout.record(instance, Unit::Cluster(data_set)))?.is_some())
}

async fn asked(host: &LocalHost, instance: InstanceId, data_set: DataSetId, sql: &str) -> Result<Vec<Vec<Option<String>>>> {
    Ok(host.inspect_quarantined(instance, data_set, question(sql)).await?.rows)
}

#[tokio::test]
async fn what_is_set_aside_is_no_data_any_more() -> Result<()> {
    let sandbox = Sandbox::with_image(1024 * MIB)?;
    let host = sandbox.host().await?;
    let (instance, data_set) = raw(&host).await?;
    host.start_cluster(instance, data_set, fence(1)).await?;
    // What the check has found.
    let report = NeutralizationReport { scripts: vec!["neutralize.sql".to_owned()], ..NeutralizationReport::default() };
    std::fs::write(host.layout.data_set(instance, data_set).join("findings.json"), serde_json::to_vec(&report)?)?;

    let kept = host.set_aside(instance, aside(data_set), fence(1)).await?;
    assert_eq!((kept.instance, kept.data_set, kept.reason.as_str()), (instance, data_set, REASON));
    assert!(kept.database_bytes > 10 * MIB && kept.file_store_bytes == 22 && kept.file_store_files == 1, "{kept:?}");
    assert_eq!(kept.report, Some(report));
    assert!(matches!(kept.source, DataSource::Snapshot { as_own: false, .. }));
    let again = host.set_aside(instance, SetAside { reason: "another".to_owned(), ..aside(data_set) }, fence(1)).await?;
    assert_eq!(again, kept, "done already is done");
    assert_eq!(sandbox.host().await?.quarantined().await?, vec![kept.clone()], "another value on the same home finds it");
    assert!(!cluster_runs(&host, instance, data_set)?);
    let used = host.space().await?.instances.into_iter().find(|(of, _)| *of == instance).context("it takes space")?.1;
    assert!(used.referenced_bytes > 10 * MIB, "{used:?}");

    // Nothing finds it.
    assert!(host.data_sets(instance)?.is_empty() && !host.layout.data_set(instance, data_set).exists());
    let absent = |error: HostError| assert!(matches!(error, HostError::NotFound { what: "data set", .. }), "{error:?}");
    absent(host.start_cluster(instance, data_set, fence(1)).await.unwrap_err());
    absent(host.installed_modules(instance, data_set, fence(1)).await.unwrap_err());
    absent(take(&host, instance, data_set).await.unwrap_err());
    absent(host.retire_data_set(request(instance, data_set), fence(1), progress().0).await.unwrap_err());
    for source in [DataSource::CopyOf(data_set), DataSource::Rehearsal { of: data_set }] {
        absent(host.create_data_set(instance, DataSetId::new(), source, fence(1), progress().0).await.unwrap_err());
    }
    let slot = SlotSpec {
        color: Color::Blue,
        data_set: ServableDataSet::proven(data_set),
        release: ReleaseId("0".repeat(64)),
        settings: OdooSettings::default(),
    };
    assert!(host.start_slot(instance, slot, fence(1), progress().0).await.is_err());
    host.remove_data_set(instance, data_set, fence(1)).await?;
    assert_eq!(host.quarantined().await?, vec![kept], "it is no data set, so it is not removed as one");

    // The instance's own data never become such a thing.
    let (own, live) = running(&host).await?;
    let refused = host.set_aside(own, aside(live), fence(1)).await.unwrap_err();
    assert!(refused.to_string().contains("own data"), "{refused}");
    assert!(as_odoo(&host, own, live, "select 1").await?.status.success());
    absent(host.set_aside(own, aside(DataSetId::new()), fence(1)).await.unwrap_err());
    Ok(())
}

#[tokio::test]
async fn a_question_reads_within_bounds_and_can_do_nothing_else() -> Result<()> {
    let sandbox = Sandbox::with_image(1024 * MIB)?;
    let host = sandbox.host().await?;
    let (instance, data_set) = raw(&host).await?;
    host.set_aside(instance, aside(data_set), fence(1)).await?;
    let ask = async |sql: &str| host.inspect_quarantined(instance, data_set, question(sql)).await;

    let who = "select current_user, usesuper, current_setting('transaction_read_only') from pg_user where usename = current_user";
    assert_eq!(asked(&host, instance, data_set, who).await?, [[Some("odoo".to_owned()), Some("false".to_owned()), Some("on".to_owned())]]);
    let found = ask("select id, word, id as \"id\" from secrets where id < 2 order by id -- all of them").await?;
    assert_eq!(found.columns, ["id", "word", "id"]);
    let text = |text: &str| Some(text.to_owned());
    assert_eq!(found.rows, [[text("0"), None, text("0")], [text("1"), text("secret 1"), text("1")]]);
    assert!(!found.truncated);

    // Rows, characters, bytes, time.
    let found = ask("table secrets ; ").await?;
    assert!(found.truncated && found.rows.len() == 10, "{found:?}");
    let found = ask("select word from secrets where id = 100").await?;
    assert!(found.truncated && found.rows[0][0].as_deref() == Some("é".repeat(20).as_str()), "{found:?}");
    let many = Inspect { max_characters: 60_000, ..question("select repeat('x', 60000) from generate_series(1, 5)") };
    let found = host.inspect_quarantined(instance, data_set, many).await?;
    assert!(found.truncated && found.rows.len() == 1, "{}", found.rows.len());
    let begun = std::time::Instant::now();
    let refused = ask("select pg_sleep(60)::text").await.unwrap_err();
    assert!(matches!(&refused, HostError::Rejected { summary, .. } if summary.contains("took too long")), "{refused:?}");
    // Nor does it fill the disk.
    let refused = ask("select count(*) from generate_series(1, 1000000000000) n").await.unwrap_err();
    let limited = |summary: &str| summary.contains("temp_file_limit") || summary.contains("took too long");
    assert!(matches!(&refused, HostError::Rejected { summary, .. } if limited(summary)), "{refused:?}");
    assert!(begun.elapsed() < Duration::from_secs(30), "{:?}", begun.elapsed());

    for (sql, words) in [
        ("delete from secrets returning id", "PostgreSQL says"),
        ("with gone as (delete from secrets returning id) select * from gone", "PostgreSQL says"),
        ("select harm()", "read-only transaction"),
        ("select escape()", "PostgreSQL says"),
        ("select 1; delete from secrets", "PostgreSQL says: cannot insert multiple commands"),
        ("select 1) as asked (c1); delete from secrets; select (1", "PostgreSQL says"),
        ("commit", "gives no rows"),
        ("delete from secrets", "gives no rows"),
        ("copy secrets to stdout", "gives no rows"),
        ("copy (select 1) to program 'touch /tmp/escaped'", "gives no rows"),
        ("select pg_read_file('/etc/passwd')", "permission denied"),
        ("select lo_import('/etc/passwd')", "permission denied"),
        ("select * from pg_authid", "permission denied"),
        ("select pg_reload_conf()", "permission denied"),
        ("select nothing", "PostgreSQL says: column \"nothing\" does not exist"),
        ("", "gives no rows"),
    ] {
        let refused = ask(sql).await;
        assert!(matches!(&refused, Err(HostError::Rejected { summary, .. }) if summary.contains(words)), "{sql}: {refused:?}");
    }
    assert_eq!(asked(&host, instance, data_set, "select count(*) from secrets").await?, [[text("27")]], "nothing has changed");

    // The instance's Odoo, which may be serving other data, reaches none of it.
    let odoo = host.allocation(instance).await?.odoo;
    let place = host.layout.quarantined(instance, data_set);
    let looks = async |path: PathBuf| -> Result<bool> {
        let run_as = RunAs { uid: odoo.uid, gid: odoo.uid, groups: Vec::new() };
        Ok(Program::new("ls").arg(path).run_as(run_as).run().await?.status.success())
    };
    let own = DataSetId::new();
    host.create_data_set(instance, own, DataSource::Fresh, fence(1), progress().0).await?;
    assert!(looks(host.layout.data_dir(instance, own)).await?);
    for path in [place.clone(), place.join("data_dir"), place.join("data_dir/filestore")] {
        assert!(!looks(path.clone()).await?, "{}", path.display());
    }
    let ident = std::fs::read_to_string(place.join("pgdata/pg_ident.conf"))?;
    assert!(!ident.contains(&odoo.name), "{ident}");

    // It ran only for the questions, and the live cluster's does not mind.
    assert!(!cluster_runs(&host, instance, data_set)? && !host.layout.socket_directory(data_set).exists());
    let unknown = host.inspect_quarantined(instance, DataSetId::new(), question("select 1")).await.unwrap_err();
    assert!(matches!(unknown, HostError::NotFound { .. }), "{unknown:?}");
    Ok(())
}

#[tokio::test]
async fn a_question_that_is_cut_off_leaves_what_is_stopped_and_a_claim_leaves_one_alone() -> Result<()> {
    let sandbox = Sandbox::with_image(1024 * MIB)?;
    let host = sandbox.host().await?;
    let (instance, data_set) = raw(&host).await?;
    host.set_aside(instance, aside(data_set), fence(1)).await?;
    let endless = || host.inspect_quarantined(instance, data_set, Inspect { seconds: 600, ..question("select pg_sleep(600)::text") });
    for clean in ["rest", "stop", "remove"] {
        tokio::select! {
            outcome = endless() => anyhow::bail!("it ended: {outcome:?}"),
            () = async {
                while !cluster_runs(&host, instance, data_set).unwrap_or(false) {
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
            } => {}
        }
        // The process that asked is gone; another one takes over.
        let next = sandbox.host().await?;
        assert!(cluster_runs(&next, instance, data_set)?, "{clean}: a start touches nothing that runs");
        match clean {
            "rest" => assert_eq!((next.rest_quarantined().await?, next.rest_quarantined().await?), (1, 0)),
            "stop" => next.stop_all().await?,
            _ => next.remove_quarantined(instance, data_set).await?,
        }
        assert!(!cluster_runs(&next, instance, data_set)?, "{clean}");
        if clean != "remove" {
            assert_eq!(asked(&next, instance, data_set, "select count(*) from secrets").await?[0][0].as_deref(), Some("27"), "{clean}");
        }
    }
    assert!(host.quarantined().await?.is_empty());

    // A new operation of the instance ends strays, and whoever asks gets the answer.
    let (instance, data_set) = raw(&host).await?;
    host.set_aside(instance, aside(data_set), fence(1)).await?;
    let slow = host.inspect_quarantined(instance, data_set, question("select pg_sleep(1)::text"));
    let claims = async {
        for generation in 2..6 {
            host.installed_modules(instance, DataSetId::new(), fence(generation)).await.unwrap_err();
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    };
    let (answer, ()) = tokio::join!(slow, claims);
    assert_eq!(answer?.rows.len(), 1);
    Ok(())
}

#[tokio::test]
async fn there_is_one_an_instance_until_it_is_removed_or_the_instance_goes() -> Result<()> {
    let sandbox = Sandbox::with_image(1024 * MIB)?;
    let host = sandbox.host().await?;
    let (instance, first) = raw(&host).await?;
    let source = take(&host, instance, first).await?;
    let second = bring_to_life(&host, instance, source.id, false).await?;
    assert!(second.is_raw(), "a snapshot of what is raw is raw");
    host.set_aside(instance, aside(first), fence(1)).await?;
    host.set_aside(instance, aside(second.id()), fence(1)).await?;
    let names = |all: Vec<ocore_host::Quarantined>| all.into_iter().map(|one| one.data_set).collect::<Vec<_>>();
    assert_eq!(names(host.quarantined().await?), [second.id()]);
    // Killed after the newer one was set aside and before the earlier one went.
    let quarantine = host.layout.quarantine(instance);
    std::fs::create_dir(quarantine.join(first.to_string()))?;
    host.set_aside(instance, aside(second.id()), fence(1)).await?;
    assert!(!quarantine.join(first.to_string()).exists());

    // Killed in the middle of a removal.
    std::fs::create_dir(quarantine.join(format!(".removed-{first}")))?;
    sandbox.host().await?;
    let left: Vec<_> = std::fs::read_dir(&quarantine)?.flatten().map(|entry| entry.file_name()).collect();
    assert_eq!(left, [second.id().to_string().as_str()]);

    host.remove_quarantined(instance, second.id()).await?;
    host.remove_quarantined(instance, second.id()).await?;
    assert!(host.quarantined().await?.is_empty() && std::fs::read_dir(&quarantine)?.next().is_none());

    // With its instance, also while it is asked.
    let third = bring_to_life(&host, instance, source.id, false).await?;
    host.set_aside(instance, aside(third.id()), fence(1)).await?;
    let endless = host.inspect_quarantined(instance, third.id(), question("select pg_sleep(60)::text"));
    let (asked, destroyed) = tokio::join!(endless, host.destroy_instance(instance, fence(2)));
    assert!(asked.is_err());
    destroyed?;
    assert!(host.quarantined().await?.is_empty() && !host.layout.instance(instance).exists());
    assert!(!host.layout.socket_directory(third.id()).exists());
    assert!(matches!(host.allocation(instance).await, Err(HostError::NotFound { .. })));
    host.remove_quarantined(instance, third.id()).await?;
    Ok(())
}
