//! What Odoo prints, and pages that are mirrored: with the programs that Odoo starts for it.

#![expect(clippy::unwrap_used, reason = "a test that cannot look fails")]

use std::{fs, os::unix::fs::PermissionsExt, path::Path};

use ocore_host::local::{distribution, exec::Program};
use ocore_model::instance::Color;

use crate::project::{Files, Project, answer, changed, odoo_directory, page, parcels};

const CONTROLLER: &str = r#"
from odoo import http


class Print(http.Controller):
    @http.route("/parcels/print", auth="none")
    def print(self, count="1", lines="1"):
        env = http.request.env(user=1)
        parcels = env["parcels.parcel"].create([{"name": f"Parcel {n}", "weight": float(lines)} for n in range(int(count))])
        content, kind = env["ir.actions.report"]._render_qweb_pdf("parcels.report", parcels.ids)
        return http.request.make_response(content, [("Content-Type", "application/pdf")])
"#;
/// In a font of the machine, since web fonts become shapes, which nobody reads back.
const REPORT: &str = r#"<?xml version="1.0"?>
<odoo>
<record id="report" model="ir.actions.report">
<field name="name">Labels</field><field name="model">parcels.parcel</field><field name="report_type">qweb-pdf</field>
<field name="report_name">parcels.labels</field>
</record>
<template id="labels">
<t t-call="web.html_container"><t t-foreach="docs" t-as="doc"><t t-call="web.external_layout"><div class="page">
<h2>Label of <span t-field="doc.name"/></h2><p t-foreach="range(int(doc.weight))" t-as="line">a line of the text</p>
</div></t></t></t>
</template>
<template id="plain" inherit_id="web.minimal_layout">
<xpath expr="//head" position="inside"><style>* { font-family: "DejaVu Sans" !important; }</style></xpath>
</template>
</odoo>
"#;
/// Each page's text, and at which page each entry of the outline is.
const READ: &str = r#"
import json, sys
import pypdf
reader = pypdf.PdfReader(sys.argv[1])
root = reader.trailer["/Root"]
pages = [" ".join(page.extract_text().split()) for page in reader.pages]
outline = [root["/Dests"][name][0] for name in root["/Dests"]] if "/Dests" in root else []
print(json.dumps({"pages": pages, "outline": outline}))
"#;

/// What a PDF holds.
async fn read(pdf: &Path) -> serde_json::Value {
    let python = odoo_directory().await.join("19.0/venv/bin/python");
    let finished = Program::new(python).args(["-I", "-c", READ]).arg(pdf).run().await.unwrap();
    serde_json::from_str(&finished.expect_success("the PDF could not be read").unwrap().stdout_text()).unwrap()
}

fn texts(found: &serde_json::Value) -> Vec<String> {
    found["pages"].as_array().unwrap().iter().map(|page| page.as_str().unwrap().to_owned()).collect()
}

fn files() -> Files {
    let mut files = changed(parcels(), "parcels/__init__.py", "from . import models\n", "from . import controllers, models\n");
    files.insert("parcels/controllers.py".to_owned(), CONTROLLER.to_owned());
    files.insert("parcels/report.xml".to_owned(), REPORT.to_owned());
    let files = changed(files, "parcels/__manifest__.py", "'views/parcel.xml'", "'views/parcel.xml', 'report.xml'");
    changed(files, "parcels/__manifest__.py", "['base']", "['web']")
}

#[tokio::test]
async fn a_report_has_headers_and_footers_on_each_page_and_pages_are_mirrored() {
    let (project, release, data_set) = Project::with_parcels(&files()).await;
    let slot = project.start(Color::Blue, data_set, &release).await.unwrap();
    let place = tempfile::tempdir().unwrap();
    let print = async |query: &str| {
        let answer = answer(slot.http, &format!("/parcels/print?{query}")).await;
        let begin = answer.windows(8).position(|bytes| bytes == b"\r\n\r\n%PDF");
        let Some(begin) = begin else { panic!("{query}: {}", String::from_utf8_lossy(&answer[..answer.len().min(2000)])) };
        let bytes = &answer[begin + 4..];
        let file = place.path().join("report.pdf");
        fs::write(&file, bytes).unwrap();
        read(&file).await
    };
    // One record over several pages: the company in the header, the page in the footer.
    let found = print("lines=120").await;
    let pages = texts(&found);
    assert!(pages.len() > 1, "{pages:?}");
    for (number, text) in pages.iter().enumerate() {
        assert!(text.contains("My Company") && text.contains(&format!("Page {} / {}", number + 1, pages.len())), "page {number}: {text}");
    }
    assert!(pages[0].contains("Label of Parcel 0"), "{pages:?}");
    // Several records at once, which Odoo has told apart and put together again.
    let found = print("count=3&lines=60").await;
    let pages = texts(&found);
    let firsts: Vec<usize> = (0..pages.len()).filter(|number| pages[*number].contains("Label of Parcel")).collect();
    assert!(firsts.len() == 3 && pages.len() > 3 && pages.iter().all(|text| text.contains("My Company")), "{pages:?}");

    // `.float-start` of the style sheet that every page has.
    let (_, elsewhere) = page(slot.http, "/web/assets/0000000/web.assets_frontend.rtl.min.css").await;
    let address = elsewhere.lines().find_map(|line| line.strip_prefix("Location: ")).unwrap();
    let (status, sheet) = page(slot.http, &address[address.find("/web/assets").unwrap()..]).await;
    assert_eq!(status, 200);
    let rule = &sheet[sheet.find(".float-start{").unwrap()..];
    assert!(rule.starts_with(".float-start{float: right") || rule.starts_with(".float-start{float:right"), "{}", &rule[..60]);
}

#[tokio::test]
async fn wkhtmltopdf_is_the_machines_own_where_that_can_do_it() {
    let place = tempfile::tempdir().unwrap();
    let at = |name: &str| place.path().join(name);
    let (ours, machine) = (at("ours"), at("machine"));
    for directory in [&ours, &machine] {
        fs::create_dir(directory).unwrap();
    }
    let program = |path: &Path, text: &str| {
        fs::write(path, text).unwrap();
        fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
    };
    program(&ours.join("wkhtmltopdf"), include_str!("../../src/local/odoo/wkhtmltopdf.py"));
    let body = |name: &str, lines: usize| {
        fs::write(at(name), format!("<!DOCTYPE html><html><body>{}</body></html>", "<p>text</p>".repeat(lines))).unwrap();
        at(name).display().to_string()
    };
    let edge = |name: &str| {
        let script = "function subst() { document.body.textContent += unescape(document.location.search).split('&section')[0]; }";
        fs::write(
            at(name),
            format!("<!DOCTYPE html><html><head><script>{script}</script></head><body onload=\"subst()\" style=\"font-size: 6px\">{name}</body></html>"),
        )
        .unwrap();
        at(name).display().to_string()
    };
    let venv = odoo_directory().await.join("19.0/venv/bin");
    let run = async |search: &Path, args: &[&str]| {
        let path = format!("{}:{}:{}:/usr/bin:/bin", venv.display(), ours.display(), search.display());
        Program::new(ours.join("wkhtmltopdf")).args(args).env("PATH", path).run().await.unwrap()
    };
    let target = at("out.pdf").display().to_string();
    let (short, long) = (body("report.body.tmp.0.a.html", 3), body("report.body.tmp.1.b.html", 100));
    let (head, foot) = (edge("head.html"), edge("foot.html"));

    // Two documents, with what each page is told of itself; the header is above the text, and the footer below.
    let options = [
        "--disable-local-file-access",
        "--quiet",
        "--page-size",
        "A4",
        "--margin-top",
        "40",
        "--header-spacing",
        "35",
        "--margin-bottom",
        "25",
    ];
    let args = [&options[..], &["--header-html", &head, "--footer-html", &foot, &short, &long, &target]].concat();
    let finished = run(Path::new("/nowhere"), &args).await;
    assert!(finished.status.success(), "{}", finished.stderr_text());
    let found = read(&at("out.pdf")).await;
    let pages = texts(&found);
    let total = pages.len();
    assert!(total > 2 && found["outline"] == serde_json::json!([0, 1]), "{found}");
    for (number, text) in pages.iter().enumerate() {
        let (document, page, of) = if number == 0 { (&short, 1, 1) } else { (&long, number, total - 1) };
        for name in ["head.html", "foot.html"] {
            let told = format!("{name}?page={}&frompage=1&topage={total}&sitepage={page}&sitepages={of}&webpage={document}", number + 1);
            assert!(text.replace(' ', "").contains(&told), "{name} of page {number}: {text}");
        }
    }

    // What it cannot be asked for, says the machine's own, with its code.
    let finished = run(Path::new("/nowhere"), &["--no-such-option", &short, &target]).await;
    assert!(!finished.status.success() && finished.stderr_text().contains("no-such-option"), "{}", finished.stderr_text());
    let missing = run(Path::new("/nowhere"), &["--quiet", "--header-html", &head, "/nowhere.html", &target]).await;
    assert!(!missing.status.success());
    // One with the patched Qt gets everything as it is.
    program(
        &machine.join("wkhtmltopdf"),
        "#!/bin/sh\nif [ \"$1\" = --version ]; then echo 'wkhtmltopdf 0.12.6.1 (with patched qt)'; else echo \"$@\"; fi\n",
    );
    let finished = run(&machine, &args).await;
    assert_eq!(finished.stdout_text().trim(), args.join(" "));
    // And where there is none, that is said.
    let path = format!("{}:{}", venv.display(), ours.display());
    let finished = Program::new(ours.join("wkhtmltopdf")).args([&short, &target]).env("PATH", path).run().await;
    let finished = finished.unwrap();
    assert!(!finished.status.success() && finished.stderr_text().contains("wkhtmltopdf is not installed"), "{}", finished.stderr_text());
}

#[tokio::test]
async fn what_mirrors_style_sheets_is_installed_beside_the_distributions() {
    let directory = odoo_directory().await;
    let program = distribution::tool_directory(&directory).join("rtlcss");
    let program = Program::new(program).arg("-").stdin(".a { float: left; margin-left: 13px }");
    let said = program.run().await.unwrap().expect_success("rtlcss").unwrap().stdout_text();
    assert!(said.contains("float: right") && said.contains("margin-right: 13px"), "{said}");
}
