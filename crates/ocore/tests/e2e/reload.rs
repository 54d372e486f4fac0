//! Deployments that change code and static files only: the new Odoo starts beside the old one on the same data, and takes over.

use std::{os::unix::fs::MetadataExt, path::Path, sync::Arc, time::Duration};

use anyhow::{Context, Result, ensure};
use ocore_testkit::{Options, Repository, module::write_module, wait::eventually};
use serde_json::Value;

use crate::{
    hold::{User, under_load},
    scene::Scene,
};

const MANIFEST: &str = r#"{
    "name": "shop",
    "version": "1.0",
    "license": "LGPL-3",
    "depends": ["base", "web"],
    "data": ["security/ir.model.access.csv", "views.xml"],
    "assets": {"web.assets_frontend": ["shop/static/src/shop.js", "shop/static/src/shop.scss"]},
}
"#;

/// A page that says what stands in the code.
pub(crate) fn write_code(repository: &Repository, says: &str) -> Result<()> {
    repository.write(
        "shop/controllers.py",
        &format!(
            "from odoo import http\n\n\nclass Page(http.Controller):\n    @http.route(\"/shop\", auth=\"public\")\n    def page(self):\n        return \"{says}\"\n"
        ),
    )
}

#[tokio::test(flavor = "multi_thread")]
async fn other_code_takes_over_beside_the_old_one_and_nobody_notices() -> Result<()> {
    let scene = Arc::new(Scene::new(Options::default()).await?);
    write_module(&scene.repository, "shop", "unused")?;
    scene.repository.write("shop/__manifest__.py", MANIFEST)?;
    scene.repository.write("shop/static/src/shop.js", "window.shop = 'first script';\n")?;
    scene.repository.write("shop/static/src/shop.scss", "$hull: #0a5078;\n.o_shop { color: $hull; }\n")?;
    write_code(&scene.repository, "first code")?;
    scene.repository.commit("The first")?;
    let push = scene.push("main")?;
    ensure!(push.success, "{}", push.output);
    let user = User::new(&scene).await?;
    let deploy = || {
        let scene = Arc::clone(&scene);
        async move || {
            scene.repository.commit("A change")?;
            let pushing = tokio::task::spawn_blocking({
                let scene = Arc::clone(&scene);
                move || scene.push("main")
            });
            let push = pushing.await??;
            ensure!(push.success && push.output.contains("live at"), "{}", push.output);
            Ok(())
        }
    };
    crons_run_in_the_live_slot(&scene).await?;

    write_code(&scene.repository, "second code")?;
    under_load(&user, "changing code", deploy()).await?;
    ensure!(scene.page("main", "/shop").await? == "second code");
    is_reload(&scene.last_deployment("main").await?)?;
    crons_run_in_the_live_slot(&scene).await?;
    scene.settles_to_one_of_each().await?;

    scene.repository.write("shop/static/src/shop.js", "window.shop = 'second script';\n")?;
    under_load(&user, "changing a script", deploy()).await?;
    ensure!(scene.page("main", "/shop/static/src/shop.js").await?.contains("second script"));
    is_reload(&scene.last_deployment("main").await?)?;
    bundles_say(&scene, "second script").await?;
    crons_run_in_the_live_slot(&scene).await?;

    // Odoo answers with it, and the page has no styles.
    scene.repository.write("shop/static/src/shop.scss", "$hull: #0a5078;\n.o_shop { color: $hul; }\n")?;
    under_load(&user, "breaking the styles", async || {
        scene.repository.commit("A slip")?;
        let scene = Arc::clone(&scene);
        let push = tokio::task::spawn_blocking(move || scene.push("main")).await??;
        let words = "shop/static/src/shop.scss, line 2: Undefined variable: \"$hul\"";
        ensure!(!push.output.contains("live at") && push.output.contains(words), "{}", push.output);
        Ok(())
    })
    .await?;
    let styles = scene.page("main", "/web/assets/0000000/web.assets_frontend.min.css").await;
    ensure!(!styles.unwrap_or_default().contains("css_error_message {"));
    bundles_say(&scene, "second script").await?;
    scene.repository.write("shop/static/src/shop.scss", "$hull: #0a5078;\n.o_shop { color: $hull; }\n")?;

    // It compiles, and fails when Odoo loads it.
    let before = scene.environment("main").await?;
    scene.repository.write("shop/controllers.py", "from odoo import http\n\n\nclass Page(http.Controller):\n    share = 1 / 0\n")?;
    under_load(&user, "failing to start", async || {
        scene.repository.commit("A mistake")?;
        let scene = Arc::clone(&scene);
        let push = tokio::task::spawn_blocking(move || scene.push("main")).await??;
        ensure!(!push.output.contains("live at"), "{}", push.output);
        Ok(())
    })
    .await?;
    let failed = scene.last_deployment("main").await?;
    ensure!(failed["status"] == "failed" && failed["plan"]["way"] == "reload", "{failed}");
    ensure!(failed["errorMessage"].as_str().is_some_and(|text| text.contains("division by zero")), "{failed}");
    ensure!(scene.page("main", "/shop").await? == "second code");
    ensure!(scene.environment("main").await?["activeDeploymentId"] == before["activeDeploymentId"]);
    crons_run_in_the_live_slot(&scene).await?;
    scene.settles_to_one_of_each().await
}

fn is_reload(deployment: &Value) -> Result<()> {
    ensure!(deployment["status"] == "succeeded" && deployment["plan"]["way"] == "reload", "{deployment}");
    let changes = deployment["plan"]["changes"].as_array().context("no changes")?;
    ensure!(changes.iter().all(|change| change["module"] == "shop" && change["text"].is_string()), "{deployment}");
    ensure!(deployment["snapshotId"].is_null(), "data that stay become no snapshot: {deployment}");
    Ok(())
}

/// The scripts of the login page, built by the Odoo that serves.
async fn bundles_say(scene: &Scene, wanted: &str) -> Result<()> {
    let page = scene.page("main", "/web/login").await?;
    let scripts = page
        .split('"')
        .filter(|part| part.starts_with("/web/assets/") && Path::new(part).extension().is_some_and(|extension| extension == "js"));
    let mut bundles = Vec::new();
    for script in scripts {
        let bundle = scene.page("main", script).await?;
        if bundle.contains(wanted) {
            return Ok(());
        }
        bundles.push((script.to_owned(), bundle.len()));
    }
    anyhow::bail!("no bundle says {wanted:?}: {bundles:?}")
}

/// The lock of the instance's crons is held by one Odoo, the live one, and nobody else waits for it for long.
async fn crons_run_in_the_live_slot(scene: &Scene) -> Result<()> {
    let instances = scene.installation.home.join("pool/instances");
    let mut locks = std::fs::read_dir(&instances)?.flatten().map(|entry| entry.path().join("crons.lock")).filter(|path| path.exists());
    let inode = format!(":{}", std::fs::metadata(locks.next().context("no lock")?)?.ino());
    let color = scene.last_live_color().await?;
    let mut last = String::new();
    let held = eventually(Duration::from_secs(30), async || {
        let table = std::fs::read_to_string("/proc/locks").ok()?;
        let ours: Vec<&str> = table.lines().filter(|line| line.split_whitespace().any(|word| word.ends_with(&inode))).collect();
        last = ours.join("\n");
        let [line] = ours.as_slice() else { return None };
        let pid = line.split_whitespace().nth(4)?;
        let command = std::fs::read(format!("/proc/{pid}/cmdline")).ok()?;
        String::from_utf8_lossy(&command).contains(&format!("odoo-{color}.conf")).then_some(())
    })
    .await;
    held.with_context(|| format!("the crons are not those of {color} alone: {last}"))
}
