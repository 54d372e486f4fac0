//! An Odoo's data out of one environment and into others, and to and from an Odoo that oCore has nothing to do with: by the command line.

use std::{path::Path, process::Command, time::Duration};

use anyhow::{Context, Result, ensure};
use ocore_testkit::{Elsewhere, Options, module::write_module, wait::eventually};
use serde_json::json;

use crate::{admin::Admin, scene::Scene};

const FORMATS: &[&str] = &["zip", "custom", "directory"];
const TOKEN: &str = "sk_live_0123456789abcdef";
/// "Sketch of the Analytical Engine", as Odoo takes files.
const NOTES: &str = "U2tldGNoIG9mIHRoZSBBbmFseXRpY2FsIEVuZ2luZQ==";

/// What a client command with the owner's key says.
fn client(scene: &Scene, arguments: &[&str]) -> Result<String> {
    let output = scene.installation.command(arguments).env("OCORE_API_KEY", &scene.key).output()?;
    let said = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    ensure!(output.status.success(), "`ocore {}` failed: {said}", arguments.join(" "));
    Ok(said)
}

/// What a command that must fail says.
fn refused(scene: &Scene, arguments: &[&str]) -> Result<String> {
    let output = scene.installation.command(arguments).env("OCORE_API_KEY", &scene.key).output()?;
    ensure!(!output.status.success(), "`ocore {}` did not fail", arguments.join(" "));
    Ok(String::from_utf8_lossy(&output.stderr).into_owned())
}

/// Exports the production; the file's path.
fn export(scene: &Scene, directory: &Path, format: &str, neutralized: bool) -> Result<String> {
    let kind = if neutralized { "harmless" } else { "whole" };
    let file = directory.join(format!("{kind}-{format}")).to_str().context("a path")?.to_owned();
    let mut words = vec!["env", "export", "main", "--format", format, "--output", &file];
    words.extend(neutralized.then_some("--neutralized"));
    let said = client(scene, &words)?;
    ensure!(said.contains("The password of Odoo's admin") == neutralized, "{said}");
    Ok(file)
}

/// What the production has, and what of it is secret.
async fn furnish(admin: &Admin<'_>) -> Result<()> {
    let partner = admin.call("res.partner", "create", json!([{ "name": "Charles Babbage" }])).await?;
    let notes = json!([{ "name": "notes.txt", "datas": NOTES, "res_model": "res.partner", "res_id": partner }]);
    admin.call("ir.attachment", "create", notes).await?;
    admin.call("ir.mail_server", "create", json!([{ "name": "Real", "smtp_host": "smtp.example.com", "smtp_port": 25 }])).await?;
    admin.call("ir.config_parameter", "set_param", json!(["thirdparty.api_token", TOKEN])).await?;
    Ok(())
}

async fn has_records_and_files(admin: &Admin<'_>) -> Result<()> {
    let partners = admin.values("res.partner", json!([["name", "=", "Charles Babbage"]]), "name").await?;
    ensure!(partners.len() == 1, "{partners:?}");
    let notes = admin.values("ir.attachment", json!([["name", "=", "notes.txt"]]), "datas").await?;
    ensure!(notes == [json!(NOTES)], "{notes:?}");
    ensure!(admin.values("res.partner", json!([["name", "=", "Written since"]]), "name").await?.is_empty(), "the data were not replaced");
    Ok(())
}

/// Imports into the development environment, where nothing of the production may live.
async fn comes_in_harmless(scene: &Scene, source: &[&str]) -> Result<()> {
    let before = Admin::of(scene, "feature").await?;
    before.call("res.partner", "create", json!([{ "name": "Written since" }])).await?;
    client(scene, &[&["env", "import", "feature", "--yes"], source].concat())?;
    let copy = Admin::of(scene, "feature").await?;
    ensure!(copy.environment["isNeutralized"] == true, "{}", copy.environment);
    has_records_and_files(&copy).await?;
    ensure!(copy.parameter("thirdparty.api_token").await? == json!(false), "the token lives in the copy");
    let hosts = copy.values("ir.mail_server", json!([["active", "=", true]]), "smtp_host").await?;
    ensure!(hosts == [json!("127.0.0.1")], "{hosts:?}");
    ensure!(copy.parameter("web.base.url").await? == copy.environment["url"]);
    Ok(())
}

/// Imports into the production, which then is what the backup is; also its password is the one of the backup.
async fn comes_in_as_it_is(scene: &Scene, production: &Admin<'_>, source: &[&str]) -> Result<()> {
    production.call("res.partner", "create", json!([{ "name": "Written since" }])).await?;
    client(scene, &[&["env", "import", "main", "--yes"], source].concat())?;
    ensure!(scene.environment("main").await?["isNeutralized"] == false);
    has_records_and_files(production).await?;
    ensure!(production.parameter("thirdparty.api_token").await? == TOKEN);
    let hosts = production.values("ir.mail_server", json!([]), "smtp_host").await?;
    ensure!(hosts == [json!("smtp.example.com")], "{hosts:?}");
    let snapshots =
        scene.owner.get(&format!("/environments/{}/snapshots", production.environment["id"].as_str().unwrap_or_default())).await?;
    ensure!(snapshots["snapshots"][0]["kind"] == "safety", "what was live before an import is kept: {snapshots}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn data_go_out_and_come_in_with_records_and_files_as_they_are_or_harmless() -> Result<()> {
    let scene = Scene::new(Options::default()).await?;
    write_module(&scene.repository, "shop", "the shop")?;
    scene.repository.commit("The shop")?;
    for branch in ["main", "feature"] {
        let push = scene.push(branch)?;
        ensure!(push.success, "{}", push.output);
    }
    let production = Admin::of(&scene, "main").await?;
    furnish(&production).await?;
    let directory = tempfile::tempdir()?;
    for format in FORMATS {
        let file = export(&scene, directory.path(), format, false)?;
        comes_in_harmless(&scene, &[&file]).await.with_context(|| format!("the format {format}"))?;
        comes_in_as_it_is(&scene, &production, &[&file]).await.with_context(|| format!("the format {format}"))?;
    }
    what_is_exported_harmless_has_no_secret(&scene, directory.path())?;
    an_odoo_elsewhere_reads_it_and_is_read(&scene, &production, directory.path()).await?;
    what_cannot_be_taken_changes_nothing(&scene, &production, directory.path()).await?;
    let gone = eventually(Duration::from_secs(60), async || {
        let uploads = scene.installation.home.join("pool/uploads");
        // The refused ones wait for a day, for who corrects them.
        let left = std::fs::read_dir(uploads).ok()?.count();
        (left <= 2).then_some(())
    });
    gone.await.context("uploads of imports that are done stay behind")
}

/// The SQL of an export that is no zip.
fn sql_of(file: &str, directory: &Path, member: &str) -> Result<String> {
    let unpacked = directory.join(format!("unpacked-{member}"));
    std::fs::create_dir(&unpacked)?;
    let tar = Command::new("tar").args(["--extract", "--file", file, "--directory"]).arg(&unpacked).output()?;
    ensure!(tar.status.success(), "{}", String::from_utf8_lossy(&tar.stderr));
    let restore = Command::new("pg_restore").args(["--file", "-"]).arg(unpacked.join(member)).output()?;
    ensure!(restore.status.success(), "{}", String::from_utf8_lossy(&restore.stderr));
    Ok(String::from_utf8_lossy(&restore.stdout).into_owned())
}

fn what_is_exported_harmless_has_no_secret(scene: &Scene, directory: &Path) -> Result<()> {
    for (format, member) in [("custom", "database.dump"), ("directory", "database")] {
        let sql = sql_of(&export(scene, directory, format, true)?, directory, member)?;
        ensure!(sql.contains("Charles Babbage") && sql.contains("database.is_neutralized"), "{format}");
        ensure!(!sql.contains(TOKEN) && !sql.contains("smtp.example.com"), "{format}: a secret of the production is in the export");
    }
    Ok(())
}

async fn an_odoo_elsewhere_reads_it_and_is_read(scene: &Scene, production: &Admin<'_>, directory: &Path) -> Result<()> {
    let elsewhere = Elsewhere::new(scene.repository.path()).await?;
    let path = |name: &str| directory.join(name).to_str().map(str::to_owned).context("a path");

    // Odoo's own restore takes our zips.
    let token = "select value from ir_config_parameter where key = 'thirdparty.api_token'";
    let notes = "select store_fname from ir_attachment where name = 'notes.txt'";
    for (database, file, expected) in [("whole", path("whole-zip")?, TOKEN), ("harmless", export(scene, directory, "zip", true)?, "")] {
        elsewhere.database_manager(&["load", database, &file])?;
        ensure!(elsewhere.value(database, token).await?.as_deref() == Some(expected), "{database}");
        let file = elsewhere.value(database, notes).await?.context("the notes are in the file store")?;
        let content = std::fs::read(elsewhere.file_store(database).join(&file))?;
        ensure!(content == b"Sketch of the Analytical Engine", "{database}: {file}");
    }

    // We take Odoo's own zip, and its database while it runs.
    let zip = path("odoo.zip")?;
    elsewhere.database_manager(&["dump", "whole", &zip])?;
    comes_in_harmless(scene, &[&zip]).await.context("the zip of Odoo's database manager")?;
    comes_in_as_it_is(scene, production, &[&zip]).await.context("the zip of Odoo's database manager")?;
    let (url, files) = (elsewhere.url("whole")?, elsewhere.file_store("whole"));
    let running = ["--from-postgres", &url, "--filestore", files.to_str().context("a path")?];
    comes_in_harmless(scene, &running).await.context("a running PostgreSQL")?;
    comes_in_as_it_is(scene, production, &running).await.context("a running PostgreSQL")
}

async fn what_cannot_be_taken_changes_nothing(scene: &Scene, production: &Admin<'_>, directory: &Path) -> Result<()> {
    let path = |name: &str| directory.join(name).to_str().map(str::to_owned).context("a path");
    let deployments = scene.owner.deployments(&production.environment).await?.len();
    let whole = std::fs::read(directory.join("whole-zip"))?;
    std::fs::write(directory.join("cut-off.zip"), &whole[..whole.len() / 2])?;
    std::fs::write(directory.join("letter.txt"), "Dear Ada,\nthe engine is nearly done.\n")?;
    for file in ["cut-off.zip", "letter.txt"] {
        let said = refused(scene, &["env", "import", "main", "--yes", &path(file)?])?;
        ensure!(said.contains("it cannot be imported: "), "{file}: {said}");
    }
    ensure!(scene.owner.deployments(&production.environment).await?.len() == deployments, "a deployment was begun");
    ensure!(scene.page("main", "/shop").await?.contains("the shop"));
    has_records_and_files(production).await
}
