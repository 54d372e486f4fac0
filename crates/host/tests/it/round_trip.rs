//! What an export holds comes back: every row, and every file of the file store under the name that its content has. Over generated schemas and stores.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
    sync::Arc,
};

use anyhow::{Context, Result, ensure};
use ocore_host::{
    CheckImport, DataSource, Host, LocalHost, NewUpload, UploadPart, WriteExport,
    testing::{Sandbox, fence, progress},
};
use ocore_model::{
    export::ExportFormat,
    ids::{DataSetId, ExportId, ImportId, InstanceId},
};
use proptest::{
    collection::{btree_map, vec},
    prelude::*,
    test_runner::{Config, TestCaseError, TestRunner},
};
use sha1::{Digest, Sha1};
use tokio::io::AsyncReadExt;

use crate::{
    clusters::{as_odoo, running},
    project::odoo_directory,
};

/// Columns of each table: SQL types, and how the text of a row becomes a value of it.
const COLUMNS: &str = "id serial, words text, list text[], document jsonb, bytes bytea, number numeric, moment timestamptz, truth boolean";

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Kind {
    Logged,
    Unlogged,
    /// With a materialized view of it.
    Viewed,
}

#[derive(Debug, Clone)]
struct Stored {
    content: Vec<u8>,
    letters: usize,
    is_marked: bool,
}

#[derive(Debug, Clone)]
struct Case {
    format: ExportFormat,
    tables: BTreeMap<String, (Kind, Vec<String>)>,
    files: Vec<Stored>,
}

fn cases() -> impl Strategy<Value = Case> {
    let format = prop_oneof![Just(ExportFormat::Zip), Just(ExportFormat::Custom), Just(ExportFormat::Directory)];
    let kind = prop_oneof![Just(Kind::Logged), Just(Kind::Unlogged), Just(Kind::Viewed)];
    // What a dump has to quote: backslashes, ends of lines, ends of data, quotes.
    let words = prop_oneof![r"[^\x00]{0,12}", Just("\\.\n\\! id\r\n\t'\"$$;--".to_owned()), Just("\u{feff}é\\N".to_owned())];
    let tables = btree_map("[a-zA-Zé \"'$;-]{1,16}", (kind, vec(words, 0..4)), 1..4);
    let stored = (vec(any::<u8>(), 0..300), 2..4usize, any::<bool>()).prop_map(|(content, letters, is_marked)| Stored {
        content,
        letters,
        is_marked,
    });
    (format, tables, vec(stored, 0..8)).prop_map(|(format, tables, files)| Case { format, tables, files })
}

fn identifier(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

fn literal(text: &str) -> String {
    format!("'{}'", text.replace('\'', "''"))
}

fn sha1(content: &[u8]) -> String {
    hex::encode(Sha1::digest(content))
}

fn sql(case: &Case) -> String {
    let mut statements = vec![
        "create table ir_module_module (name text, state text, latest_version text);
         insert into ir_module_module values ('base', 'installed', '19.0.1.3');
         create table ir_attachment (id serial primary key, name text, store_fname text, url text, res_model text);
         create schema \"of its own\"; create unlogged table \"of its own\".u (id int generated always as identity, a text);
         insert into \"of its own\".u (a) values ('x'), ('y')"
            .to_owned(),
    ];
    for (name, (kind, rows)) in &case.tables {
        let (table, view) = (identifier(name), identifier(&format!("{name}.v")));
        let unlogged = if *kind == Kind::Unlogged { "unlogged" } else { "" };
        statements.push(format!("create {unlogged} table {table} ({COLUMNS})"));
        for (number, words) in rows.iter().enumerate() {
            let words = literal(words);
            statements.push(format!(
                "insert into {table} (words, list, document, bytes, number, moment, truth) values ({words}, array[{words}, null, '{{'], \
                 to_jsonb({words}::text), convert_to({words}, 'utf8'), {number}.25, timestamptz 'epoch' + interval '{number} hours', {number} > 1)"
            ));
        }
        if *kind == Kind::Viewed {
            statements.push(format!("create materialized view {view} as select * from {table}"));
        }
    }
    for file in &case.files {
        let name = sha1(&file.content);
        statements.push(format!("insert into ir_attachment (name, store_fname) values ('a', '{}/{name}')", &name[..file.letters]));
    }
    statements.join(";\n")
}

/// What every table and sequence of a database holds.
async fn content(host: &LocalHost, instance: InstanceId, data_set: DataSetId) -> Result<String> {
    // How many values a sequence has taken in advance is nobody's.
    let sql = "select format(case c.relkind when 'S' then 'select %L || (last_value, is_called)::text from %I.%I'
                else 'select %L || coalesce(string_agg(t::text, E''\\n'' order by t::text collate \"C\"), '''') from %I.%I t' end,
            concat(n.nspname, '.', c.relname, ' ', c.relkind, c.relpersistence, ' '), n.nspname, c.relname)
        from pg_class c join pg_namespace n on n.oid = c.relnamespace
        where c.relkind in ('r', 'm', 'S') and n.nspname not in ('pg_catalog', 'information_schema') order by 1";
    let questions = as_odoo(host, instance, data_set, sql).await?.expect_success("the tables were found")?.stdout_text();
    let mut found = String::new();
    for question in questions.lines() {
        found += &as_odoo(host, instance, data_set, question).await?.expect_success("a table was read")?.stdout_text();
    }
    Ok(found)
}

fn files_below(directory: &Path) -> BTreeMap<String, Vec<u8>> {
    let entries = walkdir::WalkDir::new(directory).into_iter().flatten().filter(|entry| entry.file_type().is_file());
    let name = |path: &Path| path.strip_prefix(directory).map(|path| path.display().to_string()).unwrap_or_default();
    entries.map(|entry| (name(entry.path()), std::fs::read(entry.path()).unwrap_or_default())).collect()
}

async fn goes_round(host: &Arc<LocalHost>, case: &Case) -> Result<()> {
    let (source, original) = running(host).await?;
    as_odoo(host, source, original, &sql(case)).await?.expect_success("the tables were made")?;
    let (store, owner) = (host.layout.data_dir(source, original).join("filestore/odoo"), host.allocation(source).await?.odoo.uid);
    let mut expected = BTreeSet::new();
    for file in &case.files {
        let name = sha1(&file.content);
        let place = format!("{}/{name}", &name[..file.letters]);
        for (path, content) in [(place.clone(), file.content.as_slice()), (format!("checklist/{place}"), b"")] {
            if path == place || file.is_marked {
                std::fs::create_dir_all(store.join(&path).parent().context("a directory")?)?;
                std::fs::write(store.join(&path), content)?;
            }
        }
        expected.insert(place);
    }
    if store.is_dir() {
        for entry in walkdir::WalkDir::new(store.parent().context("a directory")?) {
            std::os::unix::fs::chown(entry?.path(), Some(owner), Some(owner))?;
        }
    }
    let before = content(host, source, original).await?;

    let request = WriteExport { export: ExportId::new(), data_set: original, format: case.format, with_file_store: true };
    let export = request.export;
    host.write_export(source, request, fence(1), progress().0).await?;
    let mut bytes = Vec::new();
    host.read_export(export, 0).await?.read_to_end(&mut bytes).await?;
    host.destroy_instance(source, fence(2)).await?;

    let (target, data_set, import) = (InstanceId::new(), DataSetId::new(), ImportId::new());
    host.create_instance(target, fence(1)).await?;
    let upload = NewUpload { import, part: UploadPart::Backup, size: bytes.len() as u64, sha256: None };
    host.open_upload(&upload).await?;
    host.append_upload(import, UploadPart::Backup, 0, Box::new(std::io::Cursor::new(bytes))).await?;
    let check = CheckImport { import, odoo_version: "19.0".parse()?, release: None };
    let facts = host.check_import(check, progress().0).await?;
    ensure!(facts.problems.is_empty(), "{:?}", facts.problems);
    ensure!(facts.file_store_files == expected.len() as u64, "{} files of {}", facts.file_store_files, expected.len());
    ensure!(facts.warnings.iter().all(|warning| expected.is_empty() && warning.contains("no file store")), "{:?}", facts.warnings);
    let (progress, lines) = progress();
    host.create_data_set(target, data_set, DataSource::Import { import, as_own: true }, fence(1), progress).await?;
    let lines = lines.all();
    ensure!(!lines.iter().any(|line| line.contains("not what their names say") || line.contains("not in the file store")), "{lines:?}");

    let files = files_below(&host.layout.data_dir(target, data_set).join("filestore/odoo"));
    ensure!(files.keys().cloned().collect::<BTreeSet<_>>() == expected, "{:?} instead of {expected:?}", files.keys());
    for (path, content) in &files {
        ensure!(path.rsplit('/').next() == Some(&sha1(content)), "{path} holds something else");
    }
    host.start_cluster(target, data_set, fence(1)).await?;
    let after = content(host, target, data_set).await?;
    host.destroy_instance(target, fence(2)).await?;
    host.remove_upload(import).await?;
    ensure!(before == after, "before:\n{before}\nafter:\n{after}");
    Ok(())
}

#[test]
fn what_was_exported_comes_back_whole() -> Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let (sandbox, host) = runtime.block_on(async {
        let distributions = odoo_directory().await;
        let sandbox = Sandbox::with(|config| {
            config.pool.image = None;
            config.distributions = distributions;
        })?;
        let host = sandbox.host().await?;
        anyhow::Ok((sandbox, host))
    })?;
    let mut runner = TestRunner::new(Config { cases: 8, max_shrink_iters: 8, failure_persistence: None, ..Config::default() });
    let outcome =
        runner.run(&cases(), |case| runtime.block_on(goes_round(&host, &case)).map_err(|error| TestCaseError::fail(format!("{error:#}"))));
    drop((host, sandbox));
    outcome.map_err(|error| anyhow::anyhow!("{error}"))
}
