//! What requirements name in the repository, in all the ways in which pip takes a name for a path.

#![expect(clippy::unwrap_used, reason = "a test that cannot be set up fails")]

use std::{collections::BTreeMap, io::Write};

use ocore_host::{BuildRelease, Host, Release, Result, SourceId, local::exec::Program, testing::progress};
use serde_json::Value;
use sha2::{Digest, Sha256};

use super::{BACKEND, PYPROJECT};
use crate::project::{Project, parcels};

/// Files by path, with any content.
type Content = BTreeMap<String, Vec<u8>>;

fn repository(files: &[(&str, Vec<u8>)]) -> Content {
    let mut all: Content = parcels().into_iter().map(|(path, text)| (path, text.into_bytes())).collect();
    all.extend(files.iter().map(|(path, content)| ((*path).to_owned(), content.clone())));
    all
}

/// A package that is built from the repository, with one module that says a word.
fn package(module: &str, word: &str) -> Vec<(String, Vec<u8>)> {
    let backend = BACKEND.replace("attack-1", &format!("{module}-1")).replace("Name: attack", &format!("Name: {module}"));
    let attack = format!("FILES = {{'{module}.py': 'WORD = {word:?}'}}\n\ndef attack():\n    return None\n");
    [("pyproject.toml", PYPROJECT.replace("attack", module)), ("backend.py", backend), ("attack.py", attack)]
        .into_iter()
        .map(|(name, text)| {
            (format!("packages/{module}/{name}"), text.replace("name = 'attack'", &format!("name = '{module}'")).into_bytes())
        })
        .collect()
}

/// A wheel with one module that says a word.
fn wheel(module: &str, word: &str) -> Vec<u8> {
    let mut writer = zip::ZipWriter::new(std::io::Cursor::new(Vec::new()));
    let info = format!("{module}-1.dist-info");
    for (path, text) in [
        (format!("{module}.py"), format!("WORD = {word:?}\n")),
        (format!("{info}/METADATA"), format!("Metadata-Version: 2.1\nName: {module}\nVersion: 1\n")),
        (format!("{info}/WHEEL"), "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n".to_owned()),
        (format!("{info}/RECORD"), format!("{module}.py,,\n{info}/METADATA,,\n{info}/WHEEL,,\n{info}/RECORD,,\n")),
    ] {
        writer.start_file(path, zip::write::SimpleFileOptions::default()).unwrap();
        writer.write_all(text.as_bytes()).unwrap();
    }
    writer.finish().unwrap().into_inner()
}

async fn build(project: &Project, files: &Content) -> Result<Release> {
    let mut digest = Sha256::new();
    let mut builder = tar::Builder::new(Vec::new());
    for (path, content) in files {
        digest.update(path);
        digest.update(content);
        let mut header = tar::Header::new_gnu();
        header.set_size(content.len() as u64);
        header.set_mode(0o644);
        builder.append_data(&mut header, path, content.as_slice()).unwrap();
    }
    let source = SourceId(hex::encode(digest.finalize()));
    project.host.unpack_source(&source, "", Box::new(std::io::Cursor::new(builder.into_inner().unwrap()))).await?;
    project.host.seal_source(&source, &[], progress().0).await?;
    let request = BuildRelease { source, odoo_version: "19.0".parse().unwrap(), isolation_key: "a".to_owned() };
    project.host.build_release(request, progress().0).await
}

/// The word of a module in a release's own Python.
async fn word(project: &Project, release: &Release, module: &str) -> String {
    let record = project.host.layout.releases().join(&release.id.0).join("release.json");
    let record: Value = serde_json::from_str(&std::fs::read_to_string(record).unwrap()).unwrap();
    let script = format!("import {module}; print({module}.WORD)");
    let finished = Program::new(record["python"].as_str().unwrap()).args(["-c", &script]).run().await.unwrap();
    finished.stdout_text().trim().to_owned() + &finished.stderr_text()
}

#[tokio::test]
async fn packages_of_the_repository_are_what_they_are_now_however_they_are_named() {
    let project = Project::new().await;
    let with = |requirements: &str, word: &str| {
        let mut files = repository(&[
            ("requirements.txt", requirements.as_bytes().to_vec()),
            ("more/more.txt", b"-e packages/fees\n".to_vec()),
            ("wheels/knots-1-py3-none-any.whl", wheel("knots", word)),
        ]);
        files.extend(package("fees", word));
        files
    };
    let all = "packages/fees\n--find-links wheels\n--no-index\nknots\n";
    for said in ["ten", "twelve"] {
        let release = build(&project, &with(all, said)).await.unwrap();
        assert_eq!((word(&project, &release, "fees").await.as_str(), word(&project, &release, "knots").await.as_str()), (said, said));
    }
    // What is to be a link to its source, in a file that another one names.
    let release = build(&project, &with("-r more/more.txt\nwheels/knots-1-py3-none-any.whl\n", "twenty")).await.unwrap();
    assert_eq!((word(&project, &release, "fees").await.as_str(), word(&project, &release, "knots").await.as_str()), ("twenty", "twenty"));
}

#[tokio::test]
async fn files_whose_options_would_bind_the_others_are_installed_apart() {
    let project = Project::new().await;
    let knots = wheel("knots", "bowline");
    let hash = hex::encode(Sha256::digest(&knots));
    let utf16: Vec<u8> = [0xff, 0xfe]
        .into_iter()
        .chain("../wheels/splices-1-py3-none-any.whl".replace("../", "./").encode_utf16().flat_map(u16::to_le_bytes))
        .collect();
    let mut files = repository(&[
        ("requirements.txt", format!("./wheels/knots-1-py3-none-any.whl \\\n    --hash=sha256:{hash}\n").into_bytes()),
        ("more/requirements.txt", utf16),
        ("more/rigging/__manifest__.py", b"{'name': 'Rigging', 'depends': ['base']}".to_vec()),
        ("more/rigging/__init__.py", Vec::new()),
        ("wheels/knots-1-py3-none-any.whl", knots),
        ("wheels/splices-1-py3-none-any.whl", wheel("splices", "eye splice")),
    ]);
    let release = build(&project, &files).await.unwrap();
    assert_eq!(
        (word(&project, &release, "knots").await, word(&project, &release, "splices").await),
        ("bowline".to_owned(), "eye splice".to_owned())
    );

    // What is installed with a hash is fixed.
    files.insert("more/requirements.txt".to_owned(), b"knots==2\n".to_vec());
    let error = build(&project, &files).await.unwrap_err();
    assert!(
        error.to_string().starts_with("the requirements in more/requirements.txt (beside what requirements.txt has installed"),
        "{error}"
    );
    // A hash that does not fit is refused as ever.
    files.insert("more/requirements.txt".to_owned(), Vec::new());
    files.insert("wheels/knots-1-py3-none-any.whl".to_owned(), wheel("knots", "another"));
    let error = build(&project, &files).await.unwrap_err();
    assert!(error.to_string().contains("the requirements in requirements.txt cannot be met"), "{error}");
}
