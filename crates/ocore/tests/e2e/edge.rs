//! The edge is upgraded under its clients: by hand, by a newer `ocore serve`, and with deaths in between.

use std::{
    fs,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use ocore_host::EdgeClient;
use ocore_testkit::{Installation, Options, wait::eventually};

const LIMIT: Duration = Duration::from_secs(60);

async fn pid(edge: &EdgeClient) -> Option<u32> {
    edge.status().await.ok().map(|status| status.pid)
}

async fn answers(answered: &AtomicU64, more: u64) -> Result<()> {
    let until = answered.load(Relaxed) + more;
    eventually(LIMIT, async || (answered.load(Relaxed) >= until).then_some(())).await.context("nobody is answered any more")
}

fn upgrade(installation: &Installation) -> Result<()> {
    let output = installation.command(&["edge", "upgrade"]).output()?;
    ensure!(output.status.success(), "{output:?}");
    Ok(())
}

fn is_gone(pid: u32) -> bool {
    !Path::new("/proc").join(pid.to_string()).join("exe").exists()
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upgraded_edge_takes_over_and_no_client_notices() -> Result<()> {
    let mut installation = Installation::start(env!("CARGO_BIN_EXE_ocore"), Options::default()).await?;
    let edge = EdgeClient::new(installation.home.join("edge/admin.sock"));
    let first = pid(&edge).await.context("no edge")?;

    let (stop, answered) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
    let clients: Vec<_> = (0..8)
        .map(|number| {
            let (stop, answered, address) = (Arc::clone(&stop), Arc::clone(&answered), installation.edge_address);
            tokio::spawn(async move {
                let mut failures = Vec::new();
                // Half of them keep their connections.
                let client = reqwest::Client::builder().pool_max_idle_per_host(if number % 2 == 0 { 8 } else { 0 }).build()?;
                while !stop.load(Relaxed) {
                    // The edge's own answer; there is no environment.
                    match client.get(format!("http://{address}/web")).header("host", "nobody.localhost").send().await {
                        Ok(answer) if answer.status() == 404 => drop(answered.fetch_add(1, Relaxed)),
                        other => failures.push(format!("{other:?}")),
                    }
                }
                Ok::<_, reqwest::Error>(failures)
            })
        })
        .collect();
    answers(&answered, 50).await?;

    // By hand, twice.
    upgrade(&installation)?;
    answers(&answered, 50).await?;
    let second = pid(&edge).await.context("no edge")?;
    upgrade(&installation)?;
    answers(&answered, 50).await?;
    let third = pid(&edge).await.context("no edge")?;
    ensure!(first != second && second != third, "{first} {second} {third}");
    eventually(LIMIT, async || (is_gone(first) && is_gone(second)).then_some(())).await.context("an edge that gave way does not end")?;

    // The same server again leaves it alone; one of another program puts its own edge there.
    installation.terminate_server().await?;
    installation.serve(&[]).await?;
    ensure!(pid(&edge).await == Some(third));
    installation.terminate_server().await?;
    let newer = installation.home.join("newer-ocore");
    fs::copy(env!("CARGO_BIN_EXE_ocore"), &newer)?;
    installation.binary = newer;
    installation.serve(&[]).await?;
    let fourth = pid(&edge).await.context("no edge")?;
    ensure!(fourth != third, "a newer program's server left the old edge");
    answers(&answered, 50).await?;

    // Until here nobody noticed anything.
    stop.store(true, Relaxed);
    for client in clients {
        let failures = client.await??;
        ensure!(failures.is_empty(), "{failures:?}");
    }

    // kill -9: the patrol starts another one, which can be upgraded as well.
    kill(Pid::from_raw(fourth.cast_signed()), Signal::SIGKILL)?;
    eventually(LIMIT, async || pid(&edge).await.filter(|pid| *pid != fourth)).await.context("the edge was not started again")?;
    upgrade(&installation)?;
    let records: Vec<_> = fs::read_dir(installation.home.join("edge"))?.flatten().map(|entry| entry.file_name()).collect();
    ensure!(!records.iter().any(|name| name == "successor.json"), "{records:?}");
    let output = installation.command(&["stop"]).output()?;
    ensure!(output.status.success(), "{output:?}");
    ensure!(pid(&edge).await.is_none() && installation.processes().is_empty(), "{:?}", installation.processes());
    Ok(())
}
