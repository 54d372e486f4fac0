//! Updates that run into trouble in the middle of what Odoo does: locks, a full disk, a PostgreSQL, an edge or a machine that dies, time that passes.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use ocore_testkit::{
    Options,
    module::{write_manifest, write_module, write_page},
    wait::eventually,
};
use serde_json::{Value, json};

use crate::{
    hold::{Tab, User, under_load},
    scene::{DEPLOYMENT_LIMIT, Scene},
};

/// In a migration script: nothing of this happens in the rehearsal, which has no HTTP.
const NOT_REHEARSED: &str = "    if not config[\"http_enable\"]:\n        return\n";
const REHEARSED_ONLY: &str = "    if config[\"http_enable\"]:\n        return\n";
const DEADLOCK: &str = r#"
    other = db_connect(cr.dbname).cursor()
    other.execute("create table first_lock (); create table second_lock ()")
    other.commit()
    cr.execute("lock table first_lock")
    other.execute("lock table second_lock")

    def cross():
        time.sleep(0.5)
        other.execute("lock table first_lock")

    threading.Thread(target=cross, daemon=True).start()
    cr.execute("lock table second_lock")
"#;
const WAITS_FOR_ITSELF: &str = r#"
    other = db_connect(cr.dbname).cursor()
    other.execute("create table first_lock ()")
    other.commit()
    cr.execute("lock table first_lock")
    other.execute("lock table first_lock")
"#;
/// At most 2.4 GB.
const FILLS_THE_DISK: &str = r#"
    cr.execute("create table filler (content text)")
    cr.execute("alter table filler alter content set storage external")
    for _ in range(150):
        cr.execute("insert into filler select repeat('x', 16777216)")
"#;

/// An update with a migration script that does this.
fn write_migration(scene: &Scene, version: &str, page: &str, body: &[&str]) -> Result<()> {
    write_page(&scene.repository, "shop", page)?;
    write_manifest(&scene.repository, "shop", &["base", "web"], version)?;
    let imports = "import threading\nimport time\n\nfrom odoo.sql_db import db_connect\nfrom odoo.tools import config\n";
    scene
        .repository
        .write(&format!("shop/migrations/{version}/pre-trouble.py"), &format!("{imports}\n\ndef migrate(cr, version):\n{}", body.concat()))
}

async fn shop(options: Options) -> Result<Scene> {
    let scene = Scene::new(options).await?;
    write_module(&scene.repository, "shop", "good words")?;
    scene.repository.commit("A shop")?;
    let push = scene.push("main")?;
    ensure!(push.success && push.output.contains("live at"), "{}", push.output);
    Ok(scene)
}

/// PostgreSQL's master processes of the instances.
fn postmasters(scene: &Scene) -> Vec<i32> {
    let mut found: Vec<i32> = scene
        .installation
        .processes()
        .into_iter()
        .filter(|(_, command)| command.contains("bin/postgres") && command.contains("pool/instances"))
        .map(|(pid, _)| pid)
        .collect();
    found.sort_unstable();
    found
}

/// Waits until an update works in its copy, in `pg_sleep`; the master process of the copy's cluster.
async fn sleeps_in_a_copy(scene: &Scene, live: &[i32]) -> Result<i32> {
    // Other statements are over at the next look.
    let mut looks = (0, 0);
    let found = eventually(DEPLOYMENT_LIMIT, async || {
        let copies: Vec<i32> = postmasters(scene).into_iter().filter(|pid| !live.contains(pid)).collect();
        let found = scene.installation.processes().into_iter().find_map(|(pid, command)| {
            let parent = parent(pid)?;
            (command.starts_with("postgres: odoo odoo [local] SELECT") && copies.contains(&parent)).then_some((pid, parent))
        });
        let (pid, postmaster) = found?;
        looks = (pid, if looks.0 == pid { looks.1 + 1 } else { 0 });
        (looks.1 >= 8).then_some(postmaster)
    })
    .await;
    found.context("no update ever slept in a copy")
}

fn parent(pid: i32) -> Option<i32> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    stat.rsplit(')').next()?.split_whitespace().nth(1)?.parse().ok()
}

async fn step_runs(scene: &Scene, deployment: &Value, step: &str) -> Result<()> {
    let path = format!("/deployments/{}", deployment["id"].as_str().unwrap_or_default());
    let runs = eventually(DEPLOYMENT_LIMIT, async || {
        let current = scene.owner.get(&path).await.ok()?;
        current["steps"].as_array()?.iter().find(|found| found["name"] == step && found["status"] == "running").map(|_| ())
    })
    .await;
    runs.with_context(|| format!("{step} never ran"))
}

#[tokio::test(flavor = "multi_thread")]
async fn locks_and_a_full_disk_cost_no_request() -> Result<()> {
    let environment = vec![("OCORE__TEMPLATES__SHARED".to_owned(), "false".to_owned())];
    let scene = Arc::new(shop(Options { environment, image_bytes: Some(3 << 29) }).await?);
    let user = User::new(&scene).await?.calm();
    let mut tab = Tab::open(&user).await?;

    // PostgreSQL itself finds the circle, in the real update only.
    write_migration(&scene, "19.0.2.0", "other words", &[NOT_REHEARSED, DEADLOCK])?;
    let words = ["shop/migrations/19.0.2.0/pre-trouble.py", "deadlock detected"];
    scene.comes_to_nothing(&user, "a deadlock", &words).await?;
    tab.is_alive().await?;

    // Nobody but oCore would ever find this one.
    write_migration(&scene, "19.0.2.0", "other words", &[WAITS_FOR_ITSELF])?;
    let words =
        ["the rehearsal on a copy of the live data failed", "lock on the table first_lock", "another connection of the same update"];
    scene.comes_to_nothing(&user, "a lock that the update itself holds", &words).await?;

    write_migration(&scene, "19.0.2.0", "other words", &[FILLS_THE_DISK])?;
    let words = ["the update was ended before the disk was full", "stay free", "make the pool larger"];
    scene.comes_to_nothing(&user, "a full disk", &words).await?;

    scene.page_says("main", "/shop", "good words", Duration::from_secs(10)).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_cluster_and_much_time_cost_no_request() -> Result<()> {
    let scene = Arc::new(shop(Options::default()).await?);
    let user = User::new(&scene).await?.calm();

    write_migration(&scene, "19.0.2.0", "other words", &[NOT_REHEARSED, "    cr.execute(\"select pg_sleep(60)\")\n"])?;
    let live = postmasters(&scene);
    let killing = async { Ok(kill(Pid::from_raw(sleeps_in_a_copy(&scene, &live).await?), Signal::SIGKILL)?) };
    tokio::try_join!(scene.comes_to_nothing(&user, "a killed PostgreSQL", &["PostgreSQL was killed", "deploy again"]), killing)?;

    // Ten times as long as rehearsed, and still well: whoever asked waits for it.
    write_migration(&scene, "19.0.2.0", "late words", &[NOT_REHEARSED, "    time.sleep(32)\n"])?;
    let begun = Instant::now();
    under_load(&user, "ten times as long as rehearsed", async || {
        let push = scene.force_push("Late").await?;
        ensure!(push.output.contains("live at"), "{}", push.output);
        Ok(())
    })
    .await?;
    ensure!(begun.elapsed() > Duration::from_secs(32));
    ensure!(scene.page("main", "/shop").await?.contains("late words"));
    scene.nothing_is_left_but_what_serves().await
}

#[tokio::test(flavor = "multi_thread")]
async fn ocore_the_edge_and_the_machine_die_in_the_middle_of_an_update_and_it_converges() -> Result<()> {
    let mut scene = shop(Options::default()).await?;
    let sleep = "    cr.execute(\"select pg_sleep(5)\")\n";
    let environment = scene.environment("main").await?;
    let id = environment["id"].as_str().context("no id")?;

    // oCore alone, while Odoo works in the rehearsal's copy.
    write_migration(&scene, "19.0.2.0", "second words", &[REHEARSED_ONLY, sleep])?;
    scene.repository.commit("Second")?;
    let live = postmasters(&scene);
    let deployment = scene.push_and_go("main").await?;
    sleeps_in_a_copy(&scene, &live).await?;
    scene.installation.kill_server()?;
    let answer = scene.installation.through_edge(&environment, "/shop").await?;
    ensure!(answer.status() == 200 && answer.text().await?.contains("good words"), "what is live serves without oCore");
    scene.installation.serve(&[]).await?;
    let ended = scene.owner.ended(&deployment, DEPLOYMENT_LIMIT).await?;
    ensure!(ended["status"] == "succeeded" && ended["evidence"][0]["status"] == "passed", "{ended}");
    scene.page_says("main", "/shop", "second words", Duration::from_secs(20)).await?;
    scene.nothing_is_left_but_what_serves().await?;

    // Everything at once, as when the power goes, while Odoo works in the copy that is to become live.
    write_migration(&scene, "19.0.3.0", "third words", &[NOT_REHEARSED, sleep])?;
    scene.repository.commit("Third")?;
    let live = postmasters(&scene);
    let deployment = scene.push_and_go("main").await?;
    sleeps_in_a_copy(&scene, &live).await?;
    scene.installation.kill_server()?;
    for (pid, _) in scene.installation.processes() {
        // One may have ended with another.
        let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
    }
    scene.installation.serve(&[]).await?;
    let ended = scene.owner.ended(&deployment, DEPLOYMENT_LIMIT).await?;
    ensure!(ended["status"] == "succeeded", "{ended}");
    scene.page_says("main", "/shop", "third words", Duration::from_secs(20)).await?;
    scene.nothing_is_left_but_what_serves().await?;

    // The edge, while it holds requests; and meanwhile somebody asks to go back.
    write_migration(&scene, "19.0.4.0", "fourth words", &[NOT_REHEARSED, sleep])?;
    scene.repository.commit("Fourth")?;
    let snapshots = scene.owner.get(&format!("/environments/{id}/snapshots")).await?;
    let snapshot = snapshots["snapshots"][0]["id"].clone();
    let deployment = scene.push_and_go("main").await?;
    step_runs(&scene, &deployment, "update").await?;
    let edges: Vec<i32> =
        scene.installation.processes().into_iter().filter(|(_, command)| command.contains("ocore edge")).map(|(pid, _)| pid).collect();
    kill(Pid::from_raw(*edges.first().context("no edge runs")?), Signal::SIGKILL)?;
    let rollback = scene.owner.post(&format!("/environments/{id}/rollback"), &json!({ "snapshotId": snapshot })).await?;
    let ended = scene.owner.ended(&deployment, DEPLOYMENT_LIMIT).await?;
    ensure!(ended["status"] == "succeeded", "{ended}");
    let ended = scene.owner.ended(&json!({ "id": rollback["deploymentId"] }), DEPLOYMENT_LIMIT).await?;
    ensure!(ended["status"] == "succeeded" && ended["triggerType"] == "rollback", "{ended}");
    scene.page_says("main", "/shop", "second words", Duration::from_secs(20)).await?;
    scene.nothing_is_left_but_what_serves().await
}
