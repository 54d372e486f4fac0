//! A new colour that never becomes one, or is bad as soon as it has the users: it hangs, or it takes all memory.

use std::{path::Path, sync::Arc, time::Duration};

use anyhow::{Context, Result, ensure};
use ocore_testkit::{
    Options,
    module::{write_module, write_page},
};
use serde_json::Value;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::{hold::User, scene::Scene};

const MEMORY_LIMIT: u64 = 1 << 30;
/// For ever.
const HANG: &str = "threading.Event().wait()";
/// A little more than the limit, and no more: where nobody sets one, the machine bears it.
const EAT: &str = "held = [bytearray(b'x') * (64 << 20) for _ in range(20)]";

/// What Odoo does with every request before anything else.
fn write_hook(scene: &Scene, on_each_request: &str) -> Result<()> {
    scene.repository.write("shop/__init__.py", "from . import models, controllers, hook\n")?;
    scene.repository.write(
        "shop/hook.py",
        &format!(
            "import threading\n\nfrom odoo import models\n\n\nclass Http(models.AbstractModel):\n    _inherit = \"ir.http\"\n\n    @classmethod\n    def _match(cls, path_info):\n        {on_each_request}\n        return super()._match(path_info)\n"
        ),
    )
}

/// Something that happens when Python loads the module.
fn write_import(scene: &Scene, statement: &str) -> Result<()> {
    write_hook(scene, "pass")?;
    let path = scene.repository.path().join("shop/hook.py");
    let hook = std::fs::read_to_string(&path)?;
    Ok(std::fs::write(path, hook.replacen("from odoo import models\n", &format!("from odoo import models\n\n{statement}\n"), 1))?)
}

async fn shop(environment: &[(&str, String)]) -> Result<(Arc<Scene>, User)> {
    let environment = environment.iter().map(|(name, value)| ((*name).to_owned(), value.clone())).collect();
    let scene = Arc::new(Scene::new(Options { environment, ..Options::default() }).await?);
    write_module(&scene.repository, "shop", "good words")?;
    write_hook(&scene, "pass")?;
    scene.repository.commit("A shop")?;
    let push = scene.push("main")?;
    ensure!(push.success && push.output.contains("live at"), "{}", push.output);
    let user = User::new(&scene).await?.calm();
    Ok((scene, user))
}

/// Lets people call Odoo until a commit that is bad for them has been pushed and taken back. Their calls fail for a while, which is what shows it.
async fn is_taken_back(scene: &Arc<Scene>, user: &User, what: &str, words: &[&str]) -> Result<Value> {
    let (live, serves) = (scene.environment("main").await?, scene.page("main", "/shop").await?);
    let stop = CancellationToken::new();
    let mut clients = JoinSet::new();
    for number in 0..6 {
        clients.spawn(user.clone().hammer(format!("{what} {number}"), true, stop.clone()));
    }
    let push = scene.force_push(what).await;
    stop.cancel();
    clients.join_all().await;
    let push = push?;
    ensure!(!push.output.contains("live at"), "{what}: {}", push.output);
    scene.has_come_to_nothing(&live, &serves, what, words).await
}

fn way(deployment: &Value) -> &str {
    deployment["plan"]["way"].as_str().unwrap_or_default()
}

fn failed_step(deployment: &Value) -> &str {
    let steps = deployment["steps"].as_array().map(Vec::as_slice).unwrap_or_default();
    steps.iter().find(|step| step["status"] == "failed").and_then(|step| step["name"].as_str()).unwrap_or_default()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_colour_that_hangs_gives_way() -> Result<()> {
    let (mut scene, user) = shop(&[("OCORE__ODOO__ANSWER_SECONDS", "15".to_owned())]).await?;

    write_hook(&scene, HANG)?;
    let failed = scene.comes_to_nothing(&user, "a reload that hangs", &["has not answered its login page within 15 s"]).await?;
    ensure!(way(&failed) == "reload" && failed_step(&failed) == "start", "{failed}");

    write_hook(&scene, HANG)?;
    write_page(&scene.repository, "shop", "other words")?;
    let failed = scene.comes_to_nothing(&user, "an update that hangs", &["has not answered its login page within 15 s"]).await?;
    ensure!(way(&failed).starts_with("update") && failed_step(&failed) == "update", "{failed}");

    let installation = &mut Arc::get_mut(&mut scene).context("somebody still uses the scene")?.installation;
    installation.terminate_server().await?;
    installation.serve(&[("OCORE__ODOO__UPDATE_SECONDS", "15")]).await?;
    write_import(&scene, HANG)?;
    let words = ["the rehearsal on a copy of the live data failed", "had not ended after 15 s", "odoo.update_seconds"];
    scene.comes_to_nothing(&user, "an import that hangs", &words).await?;

    // It answers whoever proves it, and nobody else.
    write_hook(&scene, &format!("path_info == \"/jsonrpc\" and {HANG}"))?;
    let words = ["the new Odoo does not answer any more"];
    let failed = is_taken_back(&scene, &user, "hanging on real requests", &words).await?;
    ensure!(failed_step(&failed) == "verify", "{failed}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_colour_that_takes_all_memory_gives_way() -> Result<()> {
    let (scene, user) = shop(&[("OCORE__LIMITS__INSTANCE_MEMORY_BYTES", MEMORY_LIMIT.to_string())]).await?;
    let environment = scene.environment("main").await?;
    let instance = environment["instanceId"].as_str().context("no instance")?;
    let has_groups = ["/sys/fs/cgroup", "/sys/fs/cgroup/memory"].iter().any(|mount| Path::new(mount).join("ocore").join(instance).exists());
    if !has_groups {
        eprintln!("this machine has no control groups that can be written to, so nothing keeps an instance from taking its memory");
        return Ok(());
    }

    write_import(&scene, EAT.trim_start_matches("held = "))?;
    let words = ["the memory was used up", "limit of 1.0 GiB", "limits.instance_memory_bytes"];
    let words_of_a_rehearsal = [&["the rehearsal on a copy of the live data failed"], &words[..]].concat();
    scene.comes_to_nothing(&user, "an import that takes all memory", &words_of_a_rehearsal).await?;

    write_hook(&scene, EAT)?;
    let failed = scene.comes_to_nothing(&user, "a reload that takes all memory", &words).await?;
    ensure!(way(&failed) == "reload" && failed_step(&failed) == "start", "{failed}");

    write_hook(&scene, &format!("path_info == \"/jsonrpc\" and {}", EAT.trim_start_matches("held = ")))?;
    let words = ["the memory of the instance was used up", "what was live before is live again"];
    let failed = is_taken_back(&scene, &user, "taking all memory on real requests", &words).await?;
    ensure!(failed_step(&failed) == "verify", "{failed}");
    scene.page_says("main", "/shop", "good words", Duration::from_secs(20)).await
}
