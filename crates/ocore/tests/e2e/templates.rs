//! Development builds that begin with what an earlier one has installed.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use ocore_testkit::{
    Options,
    module::{write_module, write_page},
    wait::eventually,
};
use serde_json::{Value, json};

use crate::scene::{DEPLOYMENT_LIMIT, Scene};

/// Odoo's base, and the rest on top of it, each at the reconciler's next run, on a busy machine.
const MAKING_LIMIT: Duration = Duration::from_secs(240);

/// What a step of a branch's last deployment said.
async fn said(scene: &Scene, branch: &str, step: &str) -> Result<String> {
    let deployment = scene.last_deployment(branch).await?;
    ensure!(deployment["status"] == "succeeded", "{deployment}");
    let path = format!("/deployments/{}/logs?step={step}", deployment["id"].as_str().unwrap_or_default());
    Ok(scene.owner.get(&path).await?.to_string())
}

/// Pushes the current commit to a new branch and waits for its first build.
fn build(scene: &Scene, branch: &str) -> Result<()> {
    let push = scene.push(branch)?;
    ensure!(push.success, "{}", push.output);
    Ok(())
}

/// What Odoo itself says through the edge.
struct Odoo {
    password: Value,
    uuid: Value,
    /// Sorted.
    modules: Vec<String>,
}

async fn ask(scene: &Scene, branch: &str) -> Result<Odoo> {
    let environment = scene.environment(branch).await?;
    let path = format!("/instances/{}/credentials", environment["instanceId"].as_str().unwrap_or_default());
    let credentials = scene.owner.get(&path).await?;
    let call = async |service: &str, method: &str, arguments: Value| -> Result<Value> {
        let body =
            json!({ "jsonrpc": "2.0", "method": "call", "id": 1, "params": { "service": service, "method": method, "args": arguments } });
        let host = environment["autoSubdomain"].as_str().context("no host")?;
        let url = format!("http://{}/jsonrpc", scene.installation.edge_address);
        let answer: Value = reqwest::Client::new().post(url).header("host", host).json(&body).send().await?.json().await?;
        ensure!(answer.get("error").is_none(), "{}", answer["error"]);
        Ok(answer["result"].clone())
    };
    let password = credentials["password"].clone();
    let user = call("common", "login", json!(["odoo", credentials["login"], password])).await?;
    ensure!(user.is_i64(), "the administrator's password does not open {branch}");
    let execute = |model: &str, method: &str, arguments: Value| {
        call("object", "execute_kw", json!(["odoo", user, password, model, method, arguments]))
    };
    let uuid = execute("ir.config_parameter", "get_param", json!(["database.uuid"])).await?;
    let domain = json!([[["state", "=", "installed"]], ["name"]]);
    let found = execute("ir.module.module", "search_read", domain).await?;
    let mut modules: Vec<String> =
        found.as_array().into_iter().flatten().filter_map(|module| module["name"].as_str().map(str::to_owned)).collect();
    modules.sort();
    Ok(Odoo { password, uuid, modules })
}

/// The descriptions of the templates in the pool.
fn templates(scene: &Scene) -> Vec<(PathBuf, Value)> {
    let Ok(entries) = std::fs::read_dir(scene.installation.home.join("pool/templates")) else { return Vec::new() };
    let read =
        |directory: PathBuf| Some((directory.clone(), serde_json::from_slice(&std::fs::read(directory.join("template.json")).ok()?).ok()?));
    entries.flatten().filter_map(|entry| read(entry.path())).collect()
}

/// Changes a byte of its largest table.
fn damage(template: &Path) -> Result<()> {
    let databases = std::fs::read_dir(template.join("pgdata/base"))?.flatten();
    let files = databases.filter_map(|database| std::fs::read_dir(database.path()).ok()).flatten().flatten();
    let largest = files.max_by_key(|entry| entry.metadata().map_or(0, |metadata| metadata.len())).context("an empty template")?;
    let mut content = std::fs::read(largest.path())?;
    content[100] ^= 0xff;
    Ok(std::fs::write(largest.path(), content)?)
}

/// The installed modules of the largest template that is for everybody.
fn shared(scene: &Scene) -> usize {
    let found = templates(scene).into_iter().filter(|(_, template)| template["content"]["isolationKey"].is_null());
    found.map(|(_, template)| template["installed"].as_array().map_or(0, Vec::len)).max().unwrap_or_default()
}

/// The same files in another tenant's project: Odoo's own modules come from a template, the project's are installed.
async fn another_tenant_begins_with_odoo_s_own(scene: &Scene) -> Result<()> {
    let stranger = scene.installation.owner("eve@example.com", "Elsewhere").await?;
    let key = stranger.api_key().await?;
    let project = stranger.project("Shop", json!({})).await?;
    let remote = project["repository"]["gitRemote"].as_str().context("no remote")?;
    let push = scene.repository.push(remote, &key, "HEAD:refs/heads/dev/theirs", &[])?;
    ensure!(push.success, "{}", push.output);
    let environment = stranger.environment(&project, "dev/theirs").await?;
    let deployment = stranger.deployments(&environment).await?.first().context("no deployment")?["id"].clone();
    let log = stranger.get(&format!("/deployments/{}/logs", deployment.as_str().unwrap_or_default())).await?.to_string();
    ensure!(log.contains("begins with template") && log.contains("Installing shop"), "{log}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn the_second_build_of_the_same_modules_installs_nothing_and_another_tenant_gets_none_of_them() -> Result<()> {
    let scene = Scene::new(Options::default()).await?;
    write_module(&scene.repository, "shop", "one")?;
    scene.repository.commit("One")?;
    build(&scene, "dev/one")?;
    ensure!(said(&scene, "dev/one", "copy").await?.contains("begins with nothing"));
    ensure!(said(&scene, "dev/one", "start").await?.contains("kept as template"));

    build(&scene, "dev/two")?;
    ensure!(said(&scene, "dev/two", "copy").await?.contains("begins with template"));
    let update = said(&scene, "dev/two", "update").await?;
    ensure!(update.contains("the template has every module") && !update.contains("Installing"), "{update}");
    ensure!(scene.page("dev/two", "/shop").await?.contains("one"));
    // Equal databases, and yet each is its own.
    let (one, two) = (ask(&scene, "dev/one").await?, ask(&scene, "dev/two").await?);
    ensure!(one.password != two.password && one.uuid != two.uuid, "{} {}", one.uuid, two.uuid);
    ensure!(one.modules == two.modules && two.modules.contains(&"shop".to_owned()), "{:?} {:?}", one.modules, two.modules);

    // When nothing is being deployed, what it needed of Odoo is made for everybody.
    let whole = one.modules.len() - 1;
    let made = eventually(MAKING_LIMIT, async || (shared(&scene) == whole).then_some(())).await;
    made.with_context(|| format!("no template of Odoo's own {whole} modules was made: {}", scene.installation.log_tail(30)))?;

    // A changed module is never taken as it was: it is installed in what has not changed.
    write_page(&scene.repository, "shop", "two")?;
    scene.repository.commit("Two")?;
    build(&scene, "dev/three")?;
    ensure!(said(&scene, "dev/three", "copy").await?.contains("begins with template"));
    ensure!(said(&scene, "dev/three", "update").await?.contains("Installing shop"));
    ensure!(scene.page("dev/three", "/shop").await?.contains("two"));
    ensure!(ask(&scene, "dev/three").await?.modules == one.modules);

    // Nor does a tenant get anything of another one.
    another_tenant_begins_with_odoo_s_own(&scene).await?;

    // Damaged ones are found, removed and not used, and the build is as good.
    let damaged: Vec<PathBuf> = templates(&scene).into_iter().map(|(directory, _)| directory).collect();
    for directory in &damaged {
        damage(directory)?;
    }
    build(&scene, "dev/four")?;
    let copy = said(&scene, "dev/four", "copy").await?;
    ensure!(copy.contains("is damaged and is removed") && copy.contains("the template cannot be used"), "{copy}");
    ensure!(copy.contains("begins with nothing") && said(&scene, "dev/four", "update").await?.contains("Installing shop"), "{copy}");
    ensure!(scene.page("dev/four", "/shop").await?.contains("two"));
    Ok(())
}

/// The instance in which templates for everybody are made; see `crates/host/src/local/templates/workshop.rs`.
const WORKSHOP: &str = "6f436f72-6500-8000-8000-776f726b7368";

/// The templates that are being made, not those of empty clusters.
fn unfinished(scene: &Scene) -> Vec<String> {
    let entries = std::fs::read_dir(scene.installation.home.join("pool/templates")).into_iter().flatten().flatten();
    let names = entries.map(|entry| entry.file_name().to_string_lossy().into_owned());
    names.filter(|name| name.starts_with('.') && !name.starts_with(".new-cluster-")).collect()
}

/// The operating system's users of this installation.
fn users(scene: &Scene) -> Result<Vec<String>> {
    let ours = scene.installation.first_uid()..scene.installation.first_uid() + 1000;
    let passwd = std::fs::read_to_string("/etc/passwd")?;
    let is_ours = |line: &&str| line.split(':').nth(2).and_then(|uid| uid.parse().ok()).is_some_and(|uid: u32| ours.contains(&uid));
    Ok(passwd.lines().filter(is_ours).filter_map(|line| line.split(':').next().map(str::to_owned)).collect())
}

/// What is there of the workshop: its directories, its users, its processes.
fn workshop(scene: &Scene) -> Vec<String> {
    let home = &scene.installation.home;
    let places = [home.join("pool/instances").join(WORKSHOP), home.join("state/instances").join(WORKSHOP)];
    let mut found: Vec<String> = places.iter().filter(|place| place.exists()).map(|place| place.display().to_string()).collect();
    let ledger = std::fs::read_to_string(home.join("ledger.json")).unwrap_or_default();
    found.extend(ledger.contains(WORKSHOP).then(|| "users and ports".to_owned()));
    // Also what has lost its directory: processes know it by their mark.
    found.extend(scene.installation.processes().into_iter().map(|(_, command)| command).filter(|command| command.contains(WORKSHOP)));
    found
}

/// Kills the server as soon as the world is so.
async fn kill_when(scene: &mut Scene, what: &str, is_so: impl Fn(&Scene) -> bool) -> Result<()> {
    let end = std::time::Instant::now() + MAKING_LIMIT;
    while !is_so(scene) {
        ensure!(std::time::Instant::now() < end, "{what} never began: {}", scene.installation.log_tail(30));
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    scene.installation.kill_server()
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_while_a_template_is_made_nothing_half_made_is_used_and_it_is_there_in_the_end() -> Result<()> {
    let mut scene = Scene::new(Options::default()).await?;
    write_module(&scene.repository, "shop", "one")?;
    scene.repository.commit("One")?;

    // The one that is kept of a build, while it is copied.
    let deployment = scene.push_and_go("dev/one").await?;
    kill_when(&mut scene, "the copy of a build", |scene| !unfinished(scene).is_empty()).await?;
    ensure!(unfinished(&scene).len() == 1 && templates(&scene).is_empty(), "{:?}", templates(&scene));
    scene.installation.serve(&[]).await?;
    let ended = scene.owner.ended(&deployment, DEPLOYMENT_LIMIT).await?;
    ensure!(ended["status"] == "succeeded", "{ended}");
    ensure!(said(&scene, "dev/one", "start").await?.contains("kept as template"), "{}", said(&scene, "dev/one", "start").await?);
    let kept = templates(&scene);
    ensure!(kept.iter().any(|(_, template)| template["content"]["isolationKey"].is_string()), "{kept:?}");
    let one = ask(&scene, "dev/one").await?;
    let whole = one.modules.len() - 1;

    // The one that is made in the background without a tenant's code: while Odoo installs, and while the result is copied.
    let installs = |scene: &Scene| {
        let ours = format!("pool/instances/{WORKSHOP}/odoo-run.conf");
        scene.installation.processes().iter().any(|(_, command)| command.contains(&ours))
    };
    kill_when(&mut scene, "the installation in the workshop", installs).await?;
    ensure!(!workshop(&scene).is_empty(), "the workshop is left behind");
    ensure!(shared(&scene) == 0, "nothing half-made has a template's name: {:?}", templates(&scene));
    scene.installation.serve(&[]).await?;
    kill_when(&mut scene, "the copy of the workshop", |scene| !unfinished(scene).is_empty()).await?;
    ensure!(shared(&scene) == 0, "nothing half-made has a template's name: {:?}", templates(&scene));
    scene.installation.serve(&[]).await?;

    // It is there in the end, and nothing else is.
    let made = eventually(MAKING_LIMIT, async || (shared(&scene) == whole).then_some(())).await;
    made.with_context(|| format!("no template of Odoo's own {whole} modules was made: {}", scene.installation.log_tail(30)))?;
    let tidy = eventually(Duration::from_secs(60), async || (workshop(&scene).is_empty() && unfinished(&scene).is_empty()).then_some(()));
    tidy.await.with_context(|| format!("{:?} and {:?} are left over", workshop(&scene), unfinished(&scene)))?;
    scene.settles_to_one_of_each().await?;
    let before = users(&scene)?;

    // And it is good: another tenant's build begins with it.
    another_tenant_begins_with_odoo_s_own(&scene).await?;

    // The project's own too; and each instance has two users, the workshop none.
    build(&scene, "dev/two")?;
    let update = said(&scene, "dev/two", "update").await?;
    ensure!(update.contains("the template has every module"), "{update}");
    ensure!(scene.page("dev/two", "/shop").await?.contains("one"));
    ensure!(users(&scene)?.len() == before.len() + 4, "{before:?} became {:?}", users(&scene)?);
    Ok(())
}
