//! The ports of environments, and a neighbour on the same machine who wants them.

use std::{
    collections::BTreeSet,
    fs,
    io::Read,
    process::{Child, Command, Stdio},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use ocore_testkit::{Options, module::write_module, wait::eventually};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};

use crate::scene::Scene;

/// Tries all the time, in each way there is, to listen at these ports; tells which it got. It leaves the machine some of its time.
const STAND: &str = r#"
import itertools, os, socket, sys
os.nice(10)
ports = [int(port) for port in sys.argv[1:]]
print("ready", flush=True)
while True:
    for port, address, reuse_address, reuse_port in itertools.product(ports, ("127.0.0.1", "0.0.0.0"), (0, 1), (0, 1)):
        with socket.socket() as attacker:
            attacker.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, reuse_address)
            attacker.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, reuse_port)
            try:
                attacker.bind((address, port))
                attacker.listen()
                print("stands at", port, flush=True)
            except OSError:
                pass
"#;

struct Attacker(Child);

impl Attacker {
    fn stand_at(ports: &BTreeSet<u64>) -> Result<Self> {
        let user = ["--reuid=40997", "--regid=40997", "--clear-groups", "/usr/bin/python3", "-c", STAND];
        Ok(Self(Command::new("setpriv").args(user).args(ports.iter().map(u64::to_string)).stdout(Stdio::piped()).spawn()?))
    }

    /// What it said, with each port that it got.
    fn end(mut self) -> Result<String> {
        self.0.kill()?;
        let mut said = String::new();
        self.0.stdout.take().context("no output")?.read_to_string(&mut said)?;
        self.0.wait()?;
        Ok(said)
    }
}

impl Drop for Attacker {
    fn drop(&mut self) {
        self.0.kill().ok();
        self.0.wait().ok();
    }
}

/// All ports that environments have, for Odoo and for mail.
fn ports(scene: &Scene) -> Result<BTreeSet<u64>> {
    let ledger: Value = serde_json::from_slice(&fs::read(scene.installation.home.join("ledger.json"))?)?;
    let mut found = BTreeSet::new();
    for entry in ledger["instances"].as_object().context("no instances")?.values() {
        found.extend(entry["mail"].as_u64());
        found.extend(
            ["blue", "green"].iter().flat_map(|color| ["http", "websocket"].map(|kind| entry["ports"][color][kind].as_u64())).flatten(),
        );
    }
    Ok(found)
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_else_gets_the_ports_of_an_environment_that_serves_sleeps_dies_or_waits_for_ocore() -> Result<()> {
    let mut scene = Scene::new(Options::default()).await?;
    write_module(&scene.repository, "shop", "one")?;
    scene.repository.commit("One")?;
    let push = scene.push("feature")?;
    ensure!(push.success, "{}", push.output);
    let feature = scene.environment("feature").await?;
    let all = ports(&scene)?;
    ensure!(all.len() >= 5, "{all:?}");
    let attacker = Attacker::stand_at(&all)?;

    // Asleep, and awake again.
    let id = feature["instanceId"].as_str().context("no instance")?;
    scene.owner.post(&format!("/instances/{id}/control"), &json!({ "action": "sleep" })).await?;
    let asleep = async || (scene.environment("feature").await.ok()?["instanceStatus"] == "asleep").then_some(());
    eventually(Duration::from_secs(60), asleep).await.context("it does not fall asleep")?;
    scene.page_says("feature", "/shop", "one", Duration::from_secs(60)).await?;

    // oCore is away, and with it the catcher; then both come again.
    scene.installation.kill_server()?;
    let home = scene.installation.home.clone();
    let recorded = |directory: &str| -> Result<i32> {
        let record: Value = serde_json::from_slice(&fs::read(home.join(directory).join("process.json"))?)?;
        Ok(i32::try_from(record["identity"]["pid"].as_i64().context("no pid")?)?)
    };
    kill_process(Pid::from_raw(recorded("mail")?).context("no pid")?, Signal::KILL)?;
    let answer = scene.installation.through_edge(&feature, "/shop").await?;
    ensure!(answer.status() == 200, "without oCore, /shop answers {}", answer.status());
    scene.installation.serve(&[]).await?;
    scene.page_says("feature", "/shop", "one", Duration::from_secs(60)).await?;
    ensure!(attacker.end()? == "ready\n", "a neighbour listens at an environment's port");

    // The keeper itself is killed: what serves goes on, and the next one holds what the first one held.
    let keeper = recorded("ports")?;
    kill_process(Pid::from_raw(keeper).context("no pid")?, Signal::KILL)?;
    scene.page_says("feature", "/shop", "one", Duration::from_secs(10)).await?;
    let is_held = async || {
        let is_new = recorded("ports").is_ok_and(|pid| pid != keeper);
        let taken = |port: &u64| std::net::TcpListener::bind(("127.0.0.1", u16::try_from(*port).ok()?)).ok();
        (is_new && all.iter().all(|port| taken(port).is_none())).then_some(())
    };
    eventually(Duration::from_secs(30), is_held).await.context("the ports are not held again")?;
    let attacker = Attacker::stand_at(&all)?;
    scene.owner.post(&format!("/instances/{id}/control"), &json!({ "action": "restart" })).await?;
    scene.page_says("feature", "/shop", "one", Duration::from_secs(90)).await?;
    ensure!(attacker.end()? == "ready\n", "a neighbour listens at an environment's port");
    Ok(())
}
