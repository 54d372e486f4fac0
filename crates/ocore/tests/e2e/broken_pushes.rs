//! Every way in which a developer's commit can be wrong: the push says why in one sentence, what served before serves on, nothing is left over.

use anyhow::{Result, ensure};
use ocore_testkit::{
    Options,
    module::{write_manifest, write_module, write_page},
};
use serde_json::json;

use crate::scene::Scene;

/// A broken commit: what it does to the work tree, and words that its one sentence must have.
struct Case {
    name: &'static str,
    break_it: fn(&Scene) -> Result<()>,
    sentence: &'static [&'static str],
    /// The step that finds it.
    step: &'static str,
}

const CASES: &[Case] = &[
    Case {
        name: "syntax error",
        break_it: |scene| {
            scene.repository.write("shop/models.py", "from odoo import models\n\n\nclass Broken(models.Model)\n    _name = \"x\"\n")
        },
        sentence: &["yntax error", "shop/models.py", "4"],
        step: "build",
    },
    Case {
        name: "failed import",
        break_it: |scene| scene.repository.write("shop/models.py", "from odoo.addons.shop import no_such_thing\n"),
        sentence: &["no_such_thing"],
        step: "rehearse",
    },
    Case {
        name: "missing Python dependency",
        break_it: |scene| scene.repository.write("shop/models.py", "import surely_not_installed_anywhere\n"),
        sentence: &["surely_not_installed_anywhere", "requirements.txt"],
        step: "rehearse",
    },
    Case {
        name: "missing module dependency",
        break_it: |scene| write_manifest(&scene.repository, "shop", &["base", "web", "surely_no_such_module"], "1.0"),
        sentence: &["surely_no_such_module", "shop"],
        step: "plan",
    },
    Case {
        name: "invalid view",
        break_it: |scene| {
            scene.repository.write(
                "shop/views.xml",
                "<?xml version=\"1.0\"?>\n<odoo>\n  <record id=\"form\" model=\"ir.ui.view\">\n    <field name=\"name\">form</field>\n    <field name=\"model\">shop.thing</field>\n    <field name=\"arch\" type=\"xml\"><form><field name=\"no_such_field\"/></form></field>\n  </record>\n</odoo>\n",
            )
        },
        sentence: &["no_such_field"],
        step: "rehearse",
    },
    Case {
        name: "failing migration",
        break_it: |scene| {
            write_manifest(&scene.repository, "shop", &["base", "web"], "19.0.2.0")?;
            scene.repository.write(
                "shop/migrations/19.0.2.0/post-break.py",
                "def migrate(cr, version):\n    raise ValueError(\"the migration cannot go on\")\n",
            )
        },
        sentence: &["migration"],
        step: "rehearse",
    },
    Case {
        name: "requirements that cannot be met",
        break_it: |scene| scene.repository.write("requirements.txt", "surely-no-such-distribution-on-any-index==9.9.9\n"),
        sentence: &["requirements", "surely-no-such-distribution-on-any-index"],
        step: "build",
    },
    Case {
        name: "a module name that is not a plain name",
        break_it: |scene| {
            scene.repository.write("not-a-name/__init__.py", "")?;
            scene.repository.write("not-a-name/__manifest__.py", "{\"name\": \"x\", \"license\": \"LGPL-3\"}\n")
        },
        sentence: &["not-a-name"],
        step: "checkout",
    },
    Case {
        name: "a manifest that is not one",
        break_it: |scene| scene.repository.write("shop/__manifest__.py", "{\"name\": open(\"/etc/passwd\").read()}\n"),
        sentence: &["__manifest__.py", "shop"],
        step: "checkout",
    },
    Case {
        name: "a version that is the series alone",
        break_it: |scene| write_manifest(&scene.repository, "shop", &["base", "web"], "19.0"),
        sentence: &["`shop`", "`19.0`", "19.0.x.y"],
        step: "plan",
    },
    Case {
        name: "a module that has left",
        break_it: |scene| {
            scene.repository.remove("shop")?;
            write_module(&scene.repository, "other", "words")
        },
        sentence: &["`shop`", "put it back", "[modules.renamed]", "deletes its data"],
        step: "plan",
    },
    Case {
        name: "a setting that is not a project's",
        break_it: |scene| scene.repository.write("ocore.toml", "[odoo]\nworkers = 4\n"),
        sentence: &["workers", "setting of the instance"],
        step: "checkout",
    },
    Case {
        name: "no module at all",
        break_it: |scene| {
            scene.repository.remove("shop")?;
            scene.repository.write("README.md", "Nothing here.\n")
        },
        sentence: &["module"],
        step: "plan",
    },
    Case {
        name: "a submodule that cannot be had",
        break_it: |scene| {
            scene.repository.write(".gitmodules", "[submodule \"vendor\"]\n\tpath = vendor\n\turl = http://127.0.0.1:9/none.git\n")?;
            scene
                .repository
                .git(&["update-index", "--add", "--cacheinfo", "160000,1234567890123456789012345678901234567890,vendor"])
                .map(|_| ())
        },
        sentence: &["vendor", "127.0.0.1:9"],
        step: "checkout",
    },
];

#[tokio::test(flavor = "multi_thread")]
async fn every_broken_push_fails_with_one_sentence_and_what_served_serves_on() -> Result<()> {
    let scene = Scene::new(Options::default()).await?;

    // A failed first deployment can be pushed again.
    write_module(&scene.repository, "shop", "first words")?;
    scene.repository.write("shop/models.py", "import (\n")?;
    scene.repository.commit("Broken from the start")?;
    let push = scene.push("main")?;
    ensure!(push.output.contains("remote:") && push.output.contains("yntax error"), "{}", push.output);
    ensure!(scene.last_deployment("main").await?["status"] == "failed");
    write_module(&scene.repository, "shop", "first words")?;
    let good = scene.repository.commit("A shop")?;
    let push = scene.push("main")?;
    ensure!(push.success, "{}", push.output);
    ensure!(scene.page("main", "/shop").await?.contains("first words"));

    let mut wrong = Vec::new();
    for case in CASES {
        scene.repository.git(&["reset", "--quiet", "--hard", &good])?;
        scene.repository.git(&["clean", "--quiet", "-ffdx"])?;
        (case.break_it)(&scene)?;
        if case.name.starts_with("a submodule") {
            scene.repository.git(&["add", ".gitmodules"])?;
            scene.repository.git(&["commit", "--quiet", "--message", case.name])?;
        } else {
            scene.repository.commit(case.name)?;
        }
        let push = scene.repository.push(scene.remote(), &scene.key, "HEAD:refs/heads/main", &["--force"])?;
        let deployment = scene.last_deployment("main").await?;
        let message = deployment["errorMessage"].as_str().unwrap_or_default();
        let failed_step = deployment["steps"]
            .as_array()
            .and_then(|steps| steps.iter().find(|step| step["status"] == "failed"))
            .cloned()
            .unwrap_or(json!(null));
        if deployment["status"] != "failed" {
            wrong.push(format!("{}: status {} ({message})", case.name, deployment["status"]));
        }
        if let Some(missing) = case.sentence.iter().find(|word| !message.contains(**word)) {
            wrong.push(format!("{}: the sentence lacks {missing:?}: {message}", case.name));
        }
        if message.lines().count() != 1 {
            wrong.push(format!("{}: not one sentence: {message}", case.name));
        }
        if failed_step["name"] != case.step {
            wrong.push(format!("{}: failed in {} instead of {}", case.name, failed_step["name"], case.step));
        }
        if !push.output.contains(message) {
            wrong.push(format!("{}: the terminal does not show the sentence:\n{}", case.name, push.output));
        }
        match scene.page("main", "/shop").await {
            Ok(page) if page.contains("first words") => {}
            other => wrong.push(format!("{}: what served before does not serve on: {other:?}", case.name)),
        }
    }
    ensure!(wrong.is_empty(), "{}", wrong.join("\n"));
    scene.settles_to_one_of_each().await?;
    let environment = scene.environment("main").await?;
    let data = scene.installation.home.join("pool/instances").join(environment["instanceId"].as_str().unwrap_or_default()).join("data");
    let data_sets = std::fs::read_dir(&data)?.count();
    ensure!(data_sets <= 2, "{data_sets} data sets are left in {}", data.display());

    // And the next good one goes live as if nothing had been.
    scene.repository.git(&["reset", "--quiet", "--hard", &good])?;
    write_page(&scene.repository, "shop", "second words")?;
    scene.repository.commit("Better words")?;
    let push = scene.repository.push(scene.remote(), &scene.key, "HEAD:refs/heads/main", &["--force"])?;
    ensure!(push.success && push.output.contains("live at"), "{}", push.output);
    ensure!(scene.page("main", "/shop").await?.contains("second words"));
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_list_with_an_unknown_module_fails_and_names_it() -> Result<()> {
    let selection = json!({ "moduleSelection": { "kind": "list", "modules": ["shop", "surely_unknown"] } });
    let scene = Scene::with_project(Options::default(), selection).await?;
    write_module(&scene.repository, "shop", "words")?;
    scene.repository.commit("A shop")?;
    let push = scene.push("main")?;
    ensure!(push.output.contains("surely_unknown"), "{}", push.output);
    let deployment = scene.last_deployment("main").await?;
    ensure!(
        deployment["status"] == "failed" && deployment["errorMessage"].as_str().is_some_and(|message| message.contains("surely_unknown")),
        "{deployment}"
    );
    Ok(())
}
