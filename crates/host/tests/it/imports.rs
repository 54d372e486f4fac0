//! Backups as they come, and as somebody who means harm would make them.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on ends here")]

use std::{
    collections::BTreeMap,
    io::{Cursor, Write},
    os::unix::fs::MetadataExt,
    sync::Arc,
};

use anyhow::Result;
use ocore_host::{
    BackupFormat, CheckImport, DataSource, Host, HostError, ImportFacts, LocalHost, NewDataSet, NewUpload, UploadPart,
    local::exec::{Program, RunAs},
    testing::{Sandbox, fence, progress},
};
use ocore_model::ids::{DataSetId, ImportId, InstanceId};
use sha1::{Digest, Sha1};
use zip::write::SimpleFileOptions;

use crate::{
    clusters::{as_odoo, running},
    project::odoo_directory,
};

const TABLES: &str = "\
create table ir_module_module (id serial primary key, name text, state text, latest_version text);
insert into ir_module_module (name, state, latest_version) values ('base', 'installed', '19.0.1.3'), ('web', 'installed', '19.0.1.0'), ('crm', 'uninstalled', null);
create table res_partner (id serial primary key, name text, note text);
insert into res_partner (name, note) select 'partner ' || n, E'a\\\\b\\nc; \\\\! id' from generate_series(1, 500) n;
create function answer() returns text language sql as $$ select 'x; ALTER TABLE t OWNER TO y;' $$;
create index on res_partner using gin (name gin_trgm_ops);
comment on table res_partner is 'Partners'; grant select on res_partner to public;";

/// A host, an instance with a small database that looks like Odoo's, and another one to import into.
pub(crate) struct Scene {
    pub(crate) host: Arc<LocalHost>,
    source: (InstanceId, DataSetId),
    pub(crate) target: InstanceId,
    sandbox: Sandbox,
}

impl Scene {
    pub(crate) async fn new() -> Result<Self> {
        Self::with(|_| {}).await
    }

    async fn with(change: impl FnOnce(&mut ocore_host::LocalHostConfig)) -> Result<Self> {
        let distributions = odoo_directory().await;
        let sandbox = Sandbox::with(|config| {
            config.pool.image = None;
            config.distributions = distributions;
            change(config);
        })?;
        let host = sandbox.host().await?;
        let source = running(&host).await?;
        as_odoo(&host, source.0, source.1, TABLES).await?.expect_success("the tables were made")?;
        let target = InstanceId::new();
        host.create_instance(target, fence(1)).await?;
        Ok(Self { host, source, target, sandbox })
    }

    pub(crate) async fn pg_dump(&self, args: &[&str]) -> Result<Vec<u8>> {
        let user = self.host.allocation(self.source.0).await?.odoo;
        let program = Program::new(self.host.config.postgres_bin()?.join("pg_dump"))
            .args(args)
            .arg("--host")
            .arg(self.host.layout.socket_directory(self.source.1))
            .args(["--username", "odoo", "odoo"])
            .run_as(RunAs { uid: user.uid, gid: user.uid, groups: vec![] })
            .output_limit(64 << 20);
        Ok(program.run().await?.expect_success("dumped")?.stdout)
    }

    /// With more SQL in the middle of it.
    pub(crate) async fn sql_with(&self, hostile: &str) -> Result<Vec<u8>> {
        let dump = String::from_utf8(self.pg_dump(&[]).await?)?;
        let end = dump.find("--\n-- PostgreSQL database dump complete").expect("pg_dump's end");
        Ok(format!("{}set search_path = public, pg_catalog;\n{hostile}\n{}", &dump[..end], &dump[end..]).into_bytes())
    }

    async fn directory_dump(&self) -> Result<Vec<u8>> {
        let user = self.host.allocation(self.source.0).await?.odoo;
        let parent = tempfile::tempdir_in("/tmp")?;
        std::fs::set_permissions(parent.path(), std::os::unix::fs::PermissionsExt::from_mode(0o777))?;
        let directory = parent.path().join("dump");
        Program::new(self.host.config.postgres_bin()?.join("pg_dump"))
            .args(["--format=directory", "--file"])
            .arg(&directory)
            .arg("--host")
            .arg(self.host.layout.socket_directory(self.source.1))
            .args(["--username", "odoo", "odoo"])
            .run_as(RunAs { uid: user.uid, gid: user.uid, groups: vec![] })
            .run()
            .await?
            .expect_success("dumped")?;
        let mut tar = tar::Builder::new(Vec::new());
        tar.append_dir_all("dump", &directory)?;
        Ok(tar.into_inner()?)
    }

    pub(crate) async fn upload(&self, import: ImportId, part: UploadPart, bytes: &[u8]) -> Result<(), HostError> {
        self.host.open_upload(&NewUpload { import, part, size: bytes.len() as u64, sha256: None }).await?;
        let state = self.host.append_upload(import, part, 0, Box::new(Cursor::new(bytes.to_vec()))).await?;
        assert!(state.is_whole());
        Ok(())
    }

    pub(crate) async fn check(&self, import: ImportId, version: &str) -> Result<ImportFacts, HostError> {
        let request = CheckImport { import, odoo_version: version.parse().unwrap(), release: None };
        self.host.check_import(request, progress().0).await
    }

    pub(crate) async fn restore(&self, import: ImportId, as_own: bool) -> Result<(DataSetId, Vec<String>), HostError> {
        let data_set = DataSetId::new();
        let (progress, lines) = progress();
        let source = DataSource::Import { import, as_own };
        let made = self.host.create_data_set(self.target, data_set, source, fence(1), progress).await?;
        assert_eq!(matches!(made, NewDataSet::Servable(_)), as_own);
        Ok((data_set, lines.all()))
    }

    /// Uploads, checks and restores.
    pub(crate) async fn import(&self, bytes: &[u8]) -> Result<DataSetId, HostError> {
        let import = ImportId::new();
        self.upload(import, UploadPart::Backup, bytes).await?;
        let facts = self.check(import, "19.0").await?;
        assert_eq!(facts.problems, Vec::<String>::new());
        Ok(self.restore(import, true).await?.0)
    }

    pub(crate) async fn answer(&self, data_set: DataSetId, sql: &str) -> Result<String> {
        self.host.start_cluster(self.target, data_set, fence(1)).await?;
        let answer = as_odoo(&self.host, self.target, data_set, sql).await?.expect_success("asked")?.stdout_text();
        self.host.stop_cluster(self.target, data_set, fence(1)).await?;
        Ok(answer.trim().to_owned())
    }

    pub(crate) async fn assert_whole(&self, data_set: DataSetId) -> Result<()> {
        let sql = "select count(*), min(note) = E'a\\\\b\\nc; \\\\! id', answer() like '%OWNER TO y;', (select count(*) from pg_indexes where tablename = 'res_partner'), \
            (select tableowner from pg_tables where tablename = 'res_partner'), (select current_setting('fsync')) from res_partner";
        assert_eq!(self.answer(data_set, sql).await?, "500|t|t|2|odoo|on");
        Ok(())
    }

    /// Nothing of a failed import is left: no directory, no process.
    fn assert_clean(&self) {
        let entries = std::fs::read_dir(self.host.layout.data_sets(self.target)).unwrap();
        let names: Vec<_> = entries.map(|entry| entry.unwrap().file_name()).collect();
        assert!(names.is_empty(), "{names:?}");
        assert!(self.host.layout.records(self.target).read_dir().unwrap().next().is_none());
    }
}

pub(crate) fn sha1(content: &[u8]) -> String {
    hex::encode(Sha1::digest(content))
}

pub(crate) fn stored(content: &str) -> (String, Vec<u8>) {
    let name = sha1(content.as_bytes());
    (format!("{}/{name}", &name[..2]), content.as_bytes().to_vec())
}

pub(crate) fn zip(members: &[(&str, &[u8])]) -> Vec<u8> {
    let mut zip = zip::ZipWriter::new(Cursor::new(Vec::new()));
    for (name, content) in members {
        zip.start_file(*name, SimpleFileOptions::default()).unwrap();
        zip.write_all(content).unwrap();
    }
    zip.finish().unwrap().into_inner()
}

pub(crate) fn tar_of(members: &BTreeMap<String, Vec<u8>>) -> Vec<u8> {
    let mut tar = tar::Builder::new(Vec::new());
    for (path, content) in members {
        let mut header = tar::Header::new_gnu();
        header.set_size(content.len() as u64);
        header.set_mode(0o644);
        tar.append_data(&mut header, path, content.as_slice()).unwrap();
    }
    tar.into_inner().unwrap()
}

pub(crate) fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

pub(crate) fn rejection<T: std::fmt::Debug>(outcome: Result<T, HostError>) -> String {
    match outcome {
        Err(HostError::Rejected { summary, .. }) => summary,
        other => panic!("expected a rejection and got {other:?}"),
    }
}

#[tokio::test]
async fn every_format_of_a_backup_comes_in_whole() -> Result<()> {
    let scene = Scene::new().await?;
    let (one, two) = (stored("one"), stored("two"));
    let sql = scene.pg_dump(&[]).await?;
    let in_zip = (format!("filestore/{}", one.0), format!("filestore/{}", two.0));
    let manifest = br#"{"odoo_dump": "1", "major_version": "19.0", "modules": {}}"#;
    let manager =
        zip(&[(&in_zip.0, &one.1), (&in_zip.1, &two.1), ("manifest.json", manifest), ("dump.sql", &sql), ("filestore/checklist/x", b"")]);
    let with_owners = scene.pg_dump(&["--format=custom"]).await?;
    let directory = scene.directory_dump().await?;

    let backups = [
        (manager, BackupFormat::Sql, 2),
        (with_owners, BackupFormat::Custom, 0),
        (gzip(&directory), BackupFormat::Directory, 0),
        (directory, BackupFormat::Directory, 0),
        (gzip(&sql), BackupFormat::Sql, 0),
        (sql, BackupFormat::Sql, 0),
    ];
    for (bytes, format, files) in backups {
        let import = ImportId::new();
        scene.upload(import, UploadPart::Backup, &bytes).await?;
        let facts = scene.check(import, "19.0").await?;
        assert_eq!((facts.format, facts.file_store_files), (format, files));
        assert_eq!(facts.problems, Vec::<String>::new());
        assert_eq!(facts.odoo_series.as_deref(), Some("19.0"));
        assert!(facts.postgres_version.as_deref().is_some_and(|version| version.contains('.')), "{facts:?}");
        assert_eq!(facts.extensions, ["pg_trgm"]);
        assert_eq!(facts.modules.iter().map(|module| module.name.as_str()).collect::<Vec<_>>(), ["base", "web"]);
        assert!(facts.missing_modules.is_empty() && facts.database_bytes > 0);
        assert_eq!(facts.warnings.iter().any(|warning| warning.contains("no file store")), files == 0);
        let (data_set, _) = scene.restore(import, files > 0).await?;
        scene.assert_whole(data_set).await?;
        let store = scene.host.layout.data_dir(scene.target, data_set).join("filestore/odoo");
        if files > 0 {
            assert_eq!(std::fs::read(store.join(&one.0))?, one.1);
            let owner = scene.host.allocation(scene.target).await?.odoo.uid;
            assert_eq!(std::fs::metadata(store.join(&two.0))?.uid(), owner);
        }
        // Made already is done.
        let source = DataSource::Import { import, as_own: files > 0 };
        scene.host.create_data_set(scene.target, data_set, source, fence(1), progress().0).await?;
        scene.host.remove_data_set(scene.target, data_set, fence(1)).await?;
        scene.host.remove_upload(import).await?;
    }
    assert!(scene.host.uploads().await?.is_empty());
    scene.assert_clean();
    Ok(())
}

#[tokio::test]
async fn a_file_store_of_its_own_is_unpacked_and_damaged_files_are_named_and_kept() -> Result<()> {
    let scene = Scene::new().await?;
    let good = stored("whole");
    let half = (stored("half").0, b"ha".to_vec());
    let members = BTreeMap::from([
        (format!("production/{}", good.0), good.1.clone()),
        (format!("production/{}", half.0), half.1.clone()),
        ("production/checklist/aa/x".to_owned(), Vec::new()),
    ]);
    let import = ImportId::new();
    scene.upload(import, UploadPart::Backup, &scene.pg_dump(&["--format=custom"]).await?).await?;
    scene.upload(import, UploadPart::FileStore, &gzip(&tar_of(&members))).await?;
    assert_eq!(scene.check(import, "19.0").await?.file_store_files, 2);
    let (data_set, lines) = scene.restore(import, true).await?;
    let said = lines.iter().find(|line| line.contains("not what their names say")).expect("the damaged file is named");
    assert!(said.starts_with("1 files") && said.contains(&half.0), "{said}");
    let store = scene.host.layout.data_dir(scene.target, data_set).join("filestore/odoo");
    assert_eq!(std::fs::read(store.join(half.0))?, half.1);
    assert_eq!(std::fs::read(store.join(good.0))?, good.1);
    Ok(())
}

#[tokio::test]
async fn an_upload_goes_on_where_it_was_broken_off() -> Result<()> {
    let scene = Scene::new().await?;
    let bytes = scene.pg_dump(&[]).await?;
    let (import, part) = (ImportId::new(), UploadPart::Backup);
    let sha256 = hex::encode(<sha2::Sha256 as sha2::Digest>::digest(&bytes));
    let new = NewUpload { import, part, size: bytes.len() as u64, sha256: Some(sha256) };
    scene.host.open_upload(&new).await?;

    // The connection breaks after a third.
    let third = bytes.len() / 3;
    let (mut client, server) = tokio::io::duplex(1 << 20);
    let receiving = {
        let host = scene.host.clone();
        tokio::spawn(async move { host.append_upload(import, part, 0, Box::new(server)).await })
    };
    tokio::io::AsyncWriteExt::write_all(&mut client, &bytes[..third]).await?;
    drop(client);
    assert_eq!(receiving.await??.received, third as u64);
    assert!(rejection(scene.check(import, "19.0").await).contains("not whole"));

    // Bytes for another place are not taken, and the answer says where to go on; also after a restart.
    let state = scene.host.append_upload(import, part, 0, Box::new(Cursor::new(bytes.clone()))).await?;
    assert_eq!(state.received, third as u64);
    let host = LocalHost::open(scene.host.config.clone()).await?;
    assert_eq!(host.upload(import).await?[0].received, third as u64);

    // A client that hangs is put aside by the one that comes after it.
    let (hanging, server) = tokio::io::duplex(64);
    let hung = {
        let host = scene.host.clone();
        tokio::spawn(async move { host.append_upload(import, part, third as u64, Box::new(server)).await })
    };
    let mut state = state;
    while !state.is_whole() {
        // The hanging one may come second, and put this one aside.
        let from = state.received;
        let rest = Box::new(Cursor::new(bytes[from as usize..].to_vec()));
        state = scene.host.append_upload(import, part, from, rest).await?;
    }
    assert_eq!(state.received, bytes.len() as u64);
    drop(hanging);
    hung.await??;
    assert!(scene.check(import, "19.0").await?.problems.is_empty());

    // Begun already is found; another size is another file.
    assert!(scene.host.open_upload(&new).await?.is_whole());
    let other = NewUpload { size: 7, ..new.clone() };
    assert!(rejection(scene.host.open_upload(&other).await).contains("begin another import"));
    Ok(())
}

#[tokio::test]
async fn what_was_changed_on_its_way_or_is_larger_than_announced_is_refused() -> Result<()> {
    let scene = Scene::new().await?;
    let (import, part) = (ImportId::new(), UploadPart::Backup);
    let new = NewUpload { import, part, size: 10, sha256: Some("0".repeat(64)) };
    scene.host.open_upload(&new).await?;
    let outcome = scene.host.append_upload(import, part, 0, Box::new(Cursor::new(vec![1; 11]))).await;
    assert!(rejection(outcome).contains("larger than the 10 bytes"));
    scene.host.append_upload(import, part, 0, Box::new(Cursor::new(vec![1; 10]))).await?;
    assert!(rejection(scene.check(import, "19.0").await).contains("not what was sent"));
    let huge = NewUpload { import: ImportId::new(), part, size: 1 << 60, sha256: None };
    let error = scene.host.open_upload(&huge).await.unwrap_err().to_string();
    assert!(error.contains("left, this upload needs"), "{error}");
    Ok(())
}

#[tokio::test]
async fn a_backup_that_does_not_fit_is_refused_with_words_before_anything_is_made() -> Result<()> {
    let scene = Scene::new().await?;
    let whole = scene.pg_dump(&[]).await?;
    let text = String::from_utf8(whole.clone())?;
    let custom = scene.pg_dump(&["--format=custom"]).await?;
    let problems = async |bytes: Vec<u8>| -> Result<String> {
        let import = ImportId::new();
        scene.upload(import, UploadPart::Backup, &bytes).await?;
        Ok(scene.check(import, "19.0").await?.problems.join("\n"))
    };
    let older = text.replace("19.0.1.3", "15.0.1.3").into_bytes();
    let said = problems(older).await?;
    assert!(said.contains("is of Odoo 15.0, and 19.0 would run on it"), "{said}");
    let said = problems(whole[..whole.len() / 2].to_vec()).await?;
    assert!(said.contains("cut off"), "{said}");
    let said = problems(text.replace("ir_module_module", "something_else").into_bytes()).await?;
    assert!(said.contains("no Odoo database"), "{said}");
    let said =
        problems(text.replace("CREATE EXTENSION IF NOT EXISTS pg_trgm", "CREATE EXTENSION IF NOT EXISTS dblink").into_bytes()).await?;
    assert!(said.contains("extension dblink, which is not among"), "{said}");
    let said = problems(
        text.replace("-- PostgreSQL database dump\n", "-- PostgreSQL database dump \n-- x\n")
            .replace("PostgreSQL database dump complete", "the end")
            .into_bytes(),
    )
    .await?;
    assert!(said.contains("cut off"), "{said}");

    let missing = text.replace("\tweb\tinstalled", "\tour_module\tinstalled").into_bytes();
    let import = ImportId::new();
    scene.upload(import, UploadPart::Backup, &missing).await?;
    let facts = scene.check(import, "19.0").await?;
    assert_eq!(facts.missing_modules, ["our_module"]);
    assert!(facts.warnings.iter().any(|warning| warning.contains("our_module")) && facts.problems.is_empty());

    let refused = async |bytes: &[u8]| -> Result<String> {
        let import = ImportId::new();
        scene.upload(import, UploadPart::Backup, bytes).await?;
        Ok(rejection(scene.check(import, "19.0").await))
    };
    for bytes in [&b"%PDF-1.4 not a backup"[..], &[0; 2000], &gzip(b"nor this")] {
        let said = refused(bytes).await?;
        assert!(said.contains("is no backup") || said.contains("neither a tar archive nor SQL"), "{said}");
    }
    let said = refused(&custom[..custom.len() * 2 / 3]).await?;
    assert!(said.contains("cannot be read to its end"), "{said}");
    let archive = zip(&[("dump.sql", &whole)]);
    let said = refused(&archive[..archive.len() - 40]).await?;
    assert!(said.contains("no end") || said.contains("damaged"), "{said}");
    let said = refused(&gzip(&whole)[..1000]).await?;
    assert!(said.contains("damaged"), "{said}");
    scene.assert_clean();
    Ok(())
}

#[tokio::test]
async fn archives_that_mean_harm_are_refused() -> Result<()> {
    let scene = Scene::new().await?;
    let sql = scene.pg_dump(&[]).await?;
    let refused = async |bytes: &[u8]| -> Result<String> {
        let import = ImportId::new();
        scene.upload(import, UploadPart::Backup, bytes).await?;
        let said = rejection(scene.check(import, "19.0").await);
        scene.host.remove_upload(import).await?;
        Ok(said)
    };
    for path in ["../../etc/cron.d/x", "/etc/cron.d/x", "filestore/../../x"] {
        let said = refused(&zip(&[("dump.sql", &sql), (path, b"x")])).await?;
        assert!(said.contains("leads out of it"), "{said}");
    }
    let mut link = zip::ZipWriter::new(Cursor::new(Vec::new()));
    link.add_symlink("filestore/da", "/etc", SimpleFileOptions::default())?;
    let said = refused(&link.finish()?.into_inner()).await?;
    assert!(said.contains("a symbolic link"), "{said}");

    for (kind, what) in [
        (tar::EntryType::Symlink, "a symbolic link"),
        (tar::EntryType::Link, "a hard link"),
        (tar::EntryType::Char, "neither a file nor a directory"),
        (tar::EntryType::Fifo, "neither a file nor a directory"),
    ] {
        let mut tar = tar::Builder::new(Vec::new());
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(kind);
        header.set_size(0);
        tar.append_link(&mut header, "filestore/da", "/etc/passwd")?;
        let said = refused(&tar.into_inner()?).await?;
        assert!(said.contains(what), "{said}");
    }
    // `tar` writes no such path, so it is put in by hand.
    let mut climbing = tar_of(&BTreeMap::from([("aa/aaa".to_owned(), vec![1])]));
    climbing[..6].copy_from_slice(b"../aaa");
    let checksum: u32 =
        climbing[..512].iter().enumerate().map(|(at, byte)| if (148..156).contains(&at) { 32 } else { u32::from(*byte) }).sum();
    climbing[148..156].copy_from_slice(format!("{checksum:06o}\0 ").as_bytes());
    let said = refused(&climbing).await?;
    assert!(said.contains("leads out of it"), "{said}");

    // 80 MB of nothing in 80 kB.
    let nothing = vec![0; 80 << 20];
    let said = refused(&zip(&[("dump.sql", &nothing)])).await?;
    assert!(said.contains("bomb"), "{said}");
    let mut header = b"-- PostgreSQL database dump\n".to_vec();
    header.extend_from_slice(&nothing);
    let mut best = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
    best.write_all(&header)?;
    let said = refused(&best.finish()?).await?;
    assert!(said.contains("bomb"), "{said}");

    // One member's bytes are all that the other one has, too.
    let mut overlapping = zip(&[("dump.sql", &sql), ("dump2.sql", &sql)]);
    let second = overlapping.windows(4).rposition(|window| window == b"PK\x01\x02").expect("two members");
    overlapping[second + 42..second + 46].copy_from_slice(&0u32.to_le_bytes());
    let said = refused(&overlapping).await?;
    assert!(said.contains("bomb") || said.contains("damaged"), "{said}");

    // The first bit of the flags says that a member is encrypted.
    let mut encrypted = zip(&[("dump.sql", &sql)]);
    encrypted[6] |= 1;
    let central = encrypted.windows(4).rposition(|window| window == b"PK\x01\x02").expect("a member");
    encrypted[central + 8] |= 1;
    let said = refused(&encrypted).await?;
    assert!(said.contains("encrypted"), "{said}");

    let said = refused(&zip(&[("dump.sql", &sql), ("x.dump", &sql)])).await?;
    assert!(said.contains("more than one database"), "{said}");
    let said = refused(&zip(&[("readme.txt", b"x")])).await?;
    assert!(said.contains("no database"), "{said}");
    Ok(())
}

#[tokio::test]
async fn sql_that_reaches_for_the_server_is_stopped() -> Result<()> {
    let scene = Scene::new().await?;
    let mark = scene.sandbox.path().join("reached");
    let touch = format!("touch {}", mark.display());
    for command in [
        format!("\\! {touch}"),
        format!("\\o |{touch}"),
        format!("select '{touch}' \\gexec"),
        "\\copy res_partner from '/etc/passwd'".to_owned(),
        "\\connect postgres".to_owned(),
    ] {
        let import = ImportId::new();
        scene.upload(import, UploadPart::Backup, &scene.sql_with(&command).await?).await?;
        let said = rejection(scene.check(import, "19.0").await);
        assert!(said.contains("command to psql"), "{said}");
        // Not even when nobody has asked.
        rejection(scene.restore(import, true).await);
    }
    for (statement, reason) in [
        (format!("copy res_partner (name) from program '{touch}';"), "must be superuser|permission denied"),
        (format!("copy (select 1) to program '{touch}';"), "must be superuser|permission denied"),
        ("copy res_partner (name) from '/etc/passwd';".to_owned(), "must be superuser|permission denied"),
        ("select pg_read_file('/etc/passwd');".to_owned(), "permission denied"),
        ("select lo_import('/etc/passwd');".to_owned(), "permission denied"),
        ("alter role odoo superuser;".to_owned(), "superuser"),
        ("set session authorization postgres;\nalter role odoo superuser;".to_owned(), "superuser"),
        ("set role postgres;".to_owned(), "permission denied"),
        ("create role evil superuser;".to_owned(), "superuser"),
        ("alter system set archive_command = 'id';".to_owned(), "must be superuser|permission denied"),
        ("create function f() returns int language c as '/lib/x', 'y';".to_owned(), "permission denied"),
        ("create database other;".to_owned(), "transaction block|permission denied"),
        ("update ir_module_module set latest_version = '15.0.1.3';".to_owned(), "says that its Odoo is 15.0.1.3"),
    ] {
        let error = scene.import(&scene.sql_with(&statement).await?).await;
        let said = rejection(error);
        assert!(reason.split('|').any(|reason| said.contains(reason)), "{statement}: {said}");
        scene.assert_clean();
    }
    assert!(!mark.exists());
    Ok(())
}

#[tokio::test]
async fn no_superuser_reads_what_a_dump_has_made_of_odoos_tables() -> Result<()> {
    let scene = Scene::new().await?;
    // Whoever reads the modules runs this function with rights of their own.
    let trap = "create function spring() returns text language plpgsql as $$ begin \
        begin execute 'alter role odoo superuser'; exception when others then null; end; return 'base'; end $$;\n\
        alter table ir_module_module rename to modules_table;\n\
        create view ir_module_module as select id, spring() as name, state, latest_version from modules_table where name = 'base';\n";
    let data_set = scene.import(&scene.sql_with(trap).await?).await?;
    let modules = scene.host.installed_modules(scene.target, data_set, fence(1)).await?;
    assert_eq!(modules.len(), 1);
    assert_eq!(scene.answer(data_set, "select rolsuper from pg_roles where rolname = 'odoo'").await?, "f");
    Ok(())
}

#[tokio::test]
async fn a_cancelled_or_superseded_import_leaves_nothing() -> Result<()> {
    let scene = Scene::new().await?;
    let import = ImportId::new();
    // It waits in the middle until it is ended.
    scene.upload(import, UploadPart::Backup, &scene.sql_with("select pg_sleep(1000);").await?).await?;
    assert!(scene.check(import, "19.0").await?.problems.is_empty());
    let begin = |generation: i64| {
        let (progress, lines) = progress();
        let (host, target, cancel) = (scene.host.clone(), scene.target, progress.cancel.clone());
        let source = DataSource::Import { import, as_own: true };
        let data_set = DataSetId::new();
        let task = tokio::spawn(async move { host.create_data_set(target, data_set, source, fence(generation), progress).await });
        (task, lines, cancel)
    };
    let restoring = async |lines: &ocore_host::testing::Lines| {
        while !lines.all().iter().any(|line| line.contains("Restoring")) {
            tokio::task::yield_now().await;
        }
    };
    let (task, lines, cancel) = begin(1);
    restoring(&lines).await;
    cancel.cancel();
    assert!(matches!(task.await?, Err(HostError::Cancelled)));
    scene.assert_clean();

    let (task, lines, _) = begin(1);
    restoring(&lines).await;
    // A newer claim takes the instance.
    scene.host.create_instance(scene.target, fence(2)).await?;
    assert!(matches!(task.await?, Err(HostError::Fenced { .. })));
    let user = scene.host.allocation(scene.target).await?.postgres.uid;
    let is_clear = || {
        let empty = std::fs::read_dir(scene.host.layout.data_sets(scene.target)).unwrap().next().is_none();
        empty && ocore_host::local::process::scan().iter().all(|entry| entry.uid() != Some(user) || entry.is_dead())
    };
    while !is_clear() {
        tokio::task::yield_now().await;
    }
    Ok(())
}

/// What a module of the instance that is live beside an import would do: it knows the name of the directory from the list of processes.
const POLLER: &str = r"
import ctypes, os, socket, sys
work, sockets, probe, notes = sys.argv[1:]
out = open(notes, 'a', buffering=1)
said = set()
def is_ours():
    # Handed over, when root has nothing to do there any more.
    try:
        return os.stat(work).st_gid == os.getgid()
    except OSError:
        return True
def say(word):
    if word not in said:
        said.add(word)
        out.write(word + '\n')
say('ready')
libc = ctypes.CDLL(None)
pairs = os.path.join(os.path.dirname(notes), 'pairs')
while True:
    try:
        os.stat(work)
        say('saw')
    except OSError:
        continue
    for name in ('data_dir', 'pgdata'):
        try:
            os.makedirs(f'{work}/{name}/filestore/odoo')
            say('made ' + name if not is_ours() else 'handed over')
        except PermissionError:
            say('refused ' + name)
        except OSError:
            pass
        for link in (f'{work}/{name}/filestore/odoo/da', f'{work}/{name}/planted'):
            try:
                os.symlink(probe, link)
                say('planted ' + name if not is_ours() else 'handed over')
            except OSError:
                pass
    for number in range(50):
        try:
            os.mkdir(f'{work}/data_dir/d{number}')
            open(f'{work}/data_dir/d{number}/shadow', 'w').close()
            os.symlink(probe, f'{work}/data_dir/l{number}')
        except OSError:
            pass
        libc.renameat2(-100, f'{work}/data_dir/d{number}'.encode(), -100, f'{work}/data_dir/l{number}'.encode(), 2)
    try:
        connection = socket.socket(socket.AF_UNIX)
        connection.connect(sockets + '/.s.PGSQL.5432')
        say('connected' if not is_ours() else 'handed over')
    except PermissionError:
        say('refused socket')
    except OSError:
        pass
    finally:
        connection.close()
";

#[tokio::test]
async fn nothing_of_an_import_can_be_reached_or_bent_by_the_odoo_that_is_live_beside_it() -> Result<()> {
    let scene = Scene::new().await?;
    let probe = scene.sandbox.path().join("probe");
    std::fs::create_dir(&probe)?;
    std::fs::write(probe.join("shadow"), "root's")?;
    let odoo = scene.host.allocation(scene.target).await?.odoo;
    let notes = scene.sandbox.path().join("notes");
    std::fs::create_dir(&notes)?;
    std::os::unix::fs::chown(&notes, Some(odoo.uid), Some(odoo.uid))?;
    let notes = notes.join("notes");
    let file_store: Vec<(String, Vec<u8>)> =
        (0..20).map(|n| (format!("filestore/da/da39a3ee{n:032}"), b"* * * * * root touch /tmp/x\n".to_vec())).collect();
    let dumps = [scene.pg_dump(&[]).await?, scene.pg_dump(&["--format=custom"]).await?];
    for (dump, name) in dumps.iter().zip(["dump.sql", "database.dump"]) {
        let mut members: Vec<(&str, &[u8])> = file_store.iter().map(|(path, content)| (path.as_str(), content.as_slice())).collect();
        members.insert(0, (name, dump));
        let import = ImportId::new();
        scene.upload(import, UploadPart::Backup, &zip(&members)).await?;
        scene.check(import, "19.0").await?;
        let data_set = DataSetId::new();
        let work = scene.host.layout.data_sets(scene.target).join(format!(".new-{data_set}"));
        let poller = Program::new("python3")
            .args(["-I", "-c", POLLER])
            .arg(&work)
            .arg(scene.host.layout.socket_directory(data_set))
            .arg(&probe)
            .arg(&notes)
            .run_as(RunAs { uid: odoo.uid, gid: odoo.uid, groups: vec![] })
            .start()?;
        while !std::fs::read_to_string(&notes).unwrap_or_default().contains("ready") {
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        }
        let source = DataSource::Import { import, as_own: true };
        scene.host.create_data_set(scene.target, data_set, source, fence(1), progress().0).await?;
        drop(poller);
        let said = std::fs::read_to_string(&notes)?;
        assert!(said.contains("saw") && said.contains("refused data_dir") && said.contains("refused pgdata"), "{said}");
        for word in ["made", "planted", "connected"] {
            assert!(!said.contains(word), "{said}");
        }
        assert!(said.contains("refused socket"), "{said}");
        std::fs::remove_file(&notes)?;
        let names: Vec<_> = std::fs::read_dir(&probe)?.map(|entry| entry.unwrap().file_name()).collect();
        assert_eq!(names, ["shadow"]);
        assert_eq!(std::fs::metadata(probe.join("shadow"))?.uid(), 0);
        scene.assert_whole(data_set).await?;
        let data_dir = scene.host.layout.data_dir(scene.target, data_set);
        for entry in walkdir::WalkDir::new(&data_dir) {
            assert_eq!(entry?.metadata()?.uid(), odoo.uid);
        }
        scene.host.remove_data_set(scene.target, data_set, fence(1)).await?;
        // What was read stays root's own, and nobody else reads it any more.
        for entry in walkdir::WalkDir::new(scene.host.layout.upload(import)).min_depth(1) {
            let (path, metadata) = {
                let entry = entry?;
                (entry.path().to_owned(), entry.metadata()?)
            };
            assert_eq!((metadata.uid(), metadata.gid(), metadata.mode() & 0o077), (0, 0, 0), "{}", path.display());
        }
    }
    Ok(())
}

#[tokio::test]
async fn who_restores_is_a_user_of_its_own_and_not_the_instances() -> Result<()> {
    let scene = Scene::new().await?;
    let odoo = scene.host.allocation(scene.target).await?.odoo;
    // It runs in the restored database, as the dump's owner of everything: it can say which user the kernel saw at the socket.
    let hostile = "do $$ begin if current_setting('is_superuser') = 'on' then raise exception 'a superuser'; end if; end $$;\n\
        alter database odoo set search_path = public, pg_catalog;\n\
        create view public.pg_stat_activity as select 1 as pid;\n\
        create function public.now() returns timestamptz language plpgsql as $$ begin execute 'copy (select 1) to program ''id > /tmp/oc-import-who'''; return null; end $$;";
    let import = ImportId::new();
    scene.upload(import, UploadPart::Backup, &scene.sql_with(hostile).await?).await?;
    scene.check(import, "19.0").await?;
    let data_set = DataSetId::new();
    let source = DataSource::Import { import, as_own: true };
    let restored = {
        let host = scene.host.clone();
        let target = scene.target;
        tokio::spawn(async move { host.create_data_set(target, data_set, source, fence(1), progress().0).await })
    };
    let mut users = std::collections::BTreeSet::new();
    while !restored.is_finished() {
        for entry in ocore_host::local::process::scan() {
            let line = std::fs::read(format!("/proc/{}/cmdline", entry.pid)).unwrap_or_default();
            let line = String::from_utf8_lossy(&line);
            // Others' tests ask databases too.
            if line.starts_with('/') && line.contains("/bin/psql") && line.contains("--file\0-") {
                users.extend(entry.uid());
            }
        }
        tokio::time::sleep(std::time::Duration::from_millis(5)).await;
    }
    restored.await??;
    users.remove(&0);
    assert!(!users.is_empty() && !users.contains(&odoo.uid), "{users:?}");
    assert!(users.iter().all(|uid| scene.host.config.build_uids.contains(uid)), "{users:?}");
    assert!(!std::path::Path::new("/tmp/oc-import-who").exists());
    scene.answer(data_set, "select 1").await?;
    Ok(())
}
