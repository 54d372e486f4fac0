//! Backups as other tools and people lay them out.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on ends here")]

use std::collections::BTreeMap;

use anyhow::Result;
use ocore_host::{Host, UploadPart, testing::fence};
use ocore_model::ids::ImportId;

use crate::imports::{Scene, gzip, rejection, sha1, stored, tar_of, zip};

const MARK: &[u8] = b"\xef\xbb\xbf";
const MANIFEST: &[u8] = br#"{"odoo_dump": "1", "major_version": "19.0", "modules": {}}"#;

fn utf16(bytes: &[u8]) -> Vec<u8> {
    let text = std::str::from_utf8(bytes).unwrap();
    [0xff, 0xfe].into_iter().chain(text.encode_utf16().flat_map(u16::to_le_bytes)).collect()
}

/// A tar archive in which `second` is a hard link to `first`.
fn tar_with_link(sql: &[u8], first: (&str, &[u8]), second: &str, target: &str) -> Vec<u8> {
    let mut tar = tar::Builder::new(Vec::new());
    for (path, content) in [("dump.sql", sql), first] {
        let mut header = tar::Header::new_gnu();
        header.set_size(content.len() as u64);
        header.set_mode(0o644);
        tar.append_data(&mut header, path, content).unwrap();
    }
    let mut header = tar::Header::new_gnu();
    header.set_entry_type(tar::EntryType::Link);
    header.set_size(0);
    tar.append_link(&mut header, second, target).unwrap();
    tar.into_inner().unwrap()
}

/// What is in the archive, and where its files are to lie.
type Backup = (&'static str, Vec<u8>, Vec<(String, Vec<u8>)>);

fn backups(sql: &[u8], custom: &[u8]) -> Vec<Backup> {
    let (one, two) = (stored("one"), stored("two"));
    let both = vec![one.clone(), two.clone()];
    let below = |prefix: &str| both.iter().map(|(path, content)| (format!("{prefix}{path}"), content.clone())).collect::<Vec<_>>();
    let with = |mut members: Vec<(String, Vec<u8>)>, more: &[(&str, &[u8])]| {
        members.splice(0..0, more.iter().map(|(path, content)| ((*path).to_owned(), content.to_vec())));
        members
    };
    let zipped =
        |members: &[(String, Vec<u8>)]| zip(&members.iter().map(|(path, content)| (path.as_str(), content.as_slice())).collect::<Vec<_>>());
    let tarred = |members: Vec<(String, Vec<u8>)>| tar_of(&members.into_iter().collect::<BTreeMap<_, _>>());

    let marks = with(below("filestore/checklist/").into_iter().map(|(path, _)| (path, Vec::new())).collect(), &[("dump.sql", sql)]);
    let name = sha1(&one.1);
    let (old, new) = (format!("{}/{name}", &name[..3]), format!("{}/{name}", &name[..2]));
    let old_path = format!("filestore/prod/{old}");
    vec![
        ("marks before files", zipped(&[marks.clone(), below("filestore/")].concat()), both.clone()),
        ("marks after files", zipped(&[below("filestore/"), marks].concat()), both.clone()),
        ("directories of three letters", zip(&[("dump.sql", sql), (old_path.as_str(), &one.1)]), vec![(old.clone(), one.1.clone())]),
        (
            "a hard link",
            tar_with_link(sql, (&old_path, &one.1), &format!("filestore/prod/{new}"), &old_path),
            vec![(old, one.1.clone()), (new, one.1.clone())],
        ),
        (
            "Windows",
            zipped(
                &with(below("filestore\\"), &[("dump.sql", sql)])
                    .into_iter()
                    .map(|(path, content)| (path.replace('/', "\\"), content))
                    .collect::<Vec<_>>(),
            ),
            both.clone(),
        ),
        (
            "packed again with its folder, on a Mac",
            zipped(&with(
                below("shop/filestore/"),
                &[("shop/dump.sql", sql), ("__MACOSX/shop/._dump.sql", b"\0\x05\x16\x07"), ("shop/manifest.json", MANIFEST)],
            )),
            both.clone(),
        ),
        (
            "beside Odoo's data directory",
            gzip(&tarred(with(below("odoo/filestore/prod/"), &[("prod.sql", sql), ("odoo/sessions/aa/aaaa", b"{}")]))),
            both.clone(),
        ),
        ("packed twice", tarred(with(below("filestore/prod/"), &[("dump.sql.gz", &gzip(sql))])), both.clone()),
        (
            "a folder with a custom dump",
            gzip(&tarred(with(below("shop/filestore/"), &[("shop/db.dump", custom), ("shop/manifest.json", MANIFEST)]))),
            both.clone(),
        ),
        (
            "a custom dump that was packed, in a folder",
            tarred(with(below("shop/filestore/"), &[("shop/db.dump.gz", &gzip(custom))])),
            both.clone(),
        ),
        ("a byte order mark in a zip", zipped(&with(below("filestore/"), &[("dump.sql", &[MARK, sql].concat())])), both),
        ("a byte order mark", [MARK, sql].concat(), vec![]),
        ("a byte order mark, packed", gzip(&[MARK, sql].concat()), vec![]),
        ("a custom dump, packed", gzip(custom), vec![]),
    ]
}

#[tokio::test]
async fn a_backup_is_found_however_it_was_packed() -> Result<()> {
    let scene = Scene::new().await?;
    let (sql, custom) = (scene.pg_dump(&[]).await?, scene.pg_dump(&["--format=custom"]).await?);
    for (what, bytes, files) in backups(&sql, &custom) {
        let import = ImportId::new();
        scene.upload(import, UploadPart::Backup, &bytes).await?;
        let facts = scene.check(import, "19.0").await.unwrap_or_else(|error| panic!("{what}: {error}"));
        assert_eq!((facts.file_store_files, facts.problems.len()), (files.len() as u64, 0), "{what}: {facts:?}");
        assert!(facts.warnings.iter().all(|warning| files.is_empty() && warning.contains("no file store")), "{what}: {facts:?}");
        let (data_set, lines) = scene.restore(import, true).await.unwrap_or_else(|error| panic!("{what}: {error}"));
        assert!(!lines.iter().any(|line| line.contains("not what their names say")), "{what}: {lines:?}");
        scene.assert_whole(data_set).await?;
        let store = scene.host.layout.data_dir(scene.target, data_set).join("filestore/odoo");
        let found = walkdir::WalkDir::new(&store).into_iter().flatten().filter(|entry| entry.file_type().is_file()).count();
        assert_eq!(found, files.len(), "{what}");
        for (path, content) in files {
            assert_eq!(std::fs::read(store.join(path))?, content, "{what}");
        }
        scene.host.remove_data_set(scene.target, data_set, fence(1)).await?;
        scene.host.remove_upload(import).await?;
    }
    Ok(())
}

#[tokio::test]
async fn what_cannot_be_told_apart_or_read_is_refused_by_its_name_and_nothing_is_passed_over_silently() -> Result<()> {
    let scene = Scene::new().await?;
    let sql = scene.pg_dump(&[]).await?;
    let (one, two) = (stored("one"), stored("two"));
    let first = format!("filestore/prod/{}", one.0);
    let refused = [
        (utf16(&sql), "UTF-16"),
        (gzip(&utf16(&sql)), "UTF-16"),
        (zip(&[("shop.sql", &utf16(&sql))]), "UTF-16"),
        (
            zip(&[("dump.sql", &sql), (&first, &one.1), (&format!("filestore/test/{}", two.0), &two.1)]),
            "the file stores of several databases (filestore/prod, filestore/test)",
        ),
        (tar_with_link(&sql, (&first, &one.1), &format!("filestore/prod/{}", two.0), &first), "--hard-dereference"),
        (tar_with_link(&sql, (&first, &one.1), &format!("filestore/prod/{}", two.0), "/etc/passwd"), "a hard link to what is outside"),
        (zip(&[("dump.sql", &sql), ("old/shop.sql", &sql)]), "in dump.sql and in old/shop.sql"),
        (zip(&[("shop.zip", &zip(&[("dump.sql", &sql)])), ("notes.txt", b"x")]), "instead is no dump of pg_dump: shop.zip, notes.txt"),
    ];
    for (bytes, reason) in refused {
        let import = ImportId::new();
        scene.upload(import, UploadPart::Backup, &bytes).await?;
        let said = rejection(scene.check(import, "19.0").await);
        assert!(said.contains(reason), "{said}");
    }
    let online = String::from_utf8(sql.clone())?.replace("19.0.1.3", "saas~18.4.1.3").into_bytes();
    let import = ImportId::new();
    scene.upload(import, UploadPart::Backup, &online).await?;
    let facts = scene.check(import, "19.0").await?;
    assert_eq!(facts.odoo_series.as_deref(), Some("saas~18.4"));
    assert!(facts.problems[0].starts_with("the backup is of Odoo saas~18.4, and 19.0 would run on it"), "{:?}", facts.problems);

    // Files that lie where no Odoo looks for them.
    let name = sha1(b"one");
    let (flat, wrong) = (format!("filestore/{name}"), format!("filestore/00/{name}"));
    let import = ImportId::new();
    scene
        .upload(import, UploadPart::Backup, &zip(&[("dump.sql", &sql), (&flat, b"one"), (&wrong, b"one"), ("filestore/notes.txt", b"x")]))
        .await?;
    let facts = scene.check(import, "19.0").await?;
    let said = facts.warnings.iter().find(|warning| warning.starts_with("3 of what was sent")).unwrap();
    assert!(said.contains(&flat) && said.contains(&wrong) && said.contains("filestore/notes.txt"), "{said}");
    Ok(())
}

#[tokio::test]
async fn rows_of_bundles_whose_files_are_not_there_go_and_others_are_named() -> Result<()> {
    let scene = Scene::new().await?;
    let one = stored("one");
    let rows = format!(
        "create table ir_attachment (id serial primary key, name text, store_fname text, url text, res_model text);
         insert into ir_attachment (name, store_fname, url, res_model) values
           ('here', '{}', '/web/assets/1/here.js', 'ir.ui.view'), ('gone', 'ab/gone', '/web/assets/1/gone.js', 'ir.ui.view'),
           ('contract.pdf', 'cd/gone', null, 'res.partner'), ('a link', '../../x', '/web/assets/x', null), ('in the database', null, '/web/assets/y', 'ir.ui.view');",
        one.0
    );
    let sql = scene.sql_with(&rows).await?;
    let names = "select string_agg(name, ', ' order by id) from ir_attachment";
    for (bytes, left) in [
        (zip(&[("dump.sql", &sql), (&format!("filestore/{}", one.0), &one.1)]), "here, contract.pdf, a link, in the database"),
        // Half of the file is not the file.
        (zip(&[("dump.sql", &sql), (&format!("filestore/{}", one.0), b"o")]), "contract.pdf, a link, in the database"),
        (sql.clone(), "contract.pdf, a link, in the database"),
    ] {
        let import = ImportId::new();
        scene.upload(import, UploadPart::Backup, &bytes).await?;
        scene.check(import, "19.0").await?;
        let (data_set, lines) = scene.restore(import, true).await?;
        assert_eq!(scene.answer(data_set, names).await?, left);
        let said = lines.iter().find(|line| line.contains("names files that are not in the file store")).unwrap();
        assert!(said.contains("2 attachments") && said.contains("contract.pdf (3), a link (4)"), "{said}");
    }
    Ok(())
}

#[tokio::test]
async fn extensions_come_in_as_the_dump_has_them_and_what_only_a_superuser_makes_does_not() -> Result<()> {
    let scene = Scene::new().await?;
    let dump = String::from_utf8(scene.pg_dump(&["--clean", "--if-exists"]).await?)?;
    let without_if = String::from_utf8(scene.pg_dump(&["--clean"]).await?)?;
    let more = "create extension unaccent schema public;\ncreate table public.names (name text);\ncreate index case_01 on public.names (public.unaccent(name));\n\
        create publication shop for all tables;\ncreate publication one for table public.res_partner;\n\
        create subscription s connection 'host=x' publication p;\ncreate function public.on_ddl() returns event_trigger language plpgsql as $$ begin end $$;\n\
        create event trigger case_04 on ddl_command_end execute function public.on_ddl();\n";
    let facts = "select (select string_agg(extname || ' ' || extnamespace::regnamespace, ', ' order by extname) from pg_extension),
        (select string_agg(distinct provolatile::text, '') from pg_proc where proname = 'unaccent' and pronargs = 1), to_regclass('case_01') is not null,
        (select count(*) from pg_publication), (select count(*) from pg_event_trigger)";
    let with_more = |dump: &str| {
        let end = dump.find("--\n-- PostgreSQL database dump complete").unwrap();
        format!("{}{more}{}", &dump[..end], &dump[end..])
    };
    let elsewhere = |dump: &str| {
        dump.replace(
            "CREATE EXTENSION IF NOT EXISTS pg_trgm WITH SCHEMA public",
            "CREATE SCHEMA extensions;\nCREATE EXTENSION IF NOT EXISTS pg_trgm WITH SCHEMA extensions",
        )
        .replace("public.gin_trgm_ops", "extensions.gin_trgm_ops")
    };
    let whole = "pg_trgm public, plpgsql pg_catalog, unaccent public|i|t|0|0";
    for (dump, expected) in
        [(with_more(&dump), whole), (with_more(&without_if), whole), (elsewhere(&dump), "pg_trgm extensions, plpgsql pg_catalog||f|0|0")]
    {
        let import = ImportId::new();
        scene.upload(import, UploadPart::Backup, dump.as_bytes()).await?;
        let said = scene.check(import, "19.0").await?;
        assert_eq!(said.problems, Vec::<String>::new());
        let told = said
            .warnings
            .iter()
            .any(|warning| warning.contains("event trigger case_04, publication one, publication shop, subscription s"));
        assert_eq!(told, expected == whole, "{said:?}");
        let (data_set, _) = scene.restore(import, true).await?;
        assert_eq!(scene.answer(data_set, facts).await?, expected);
        scene.assert_whole(data_set).await?;
    }
    Ok(())
}
