//! An index of packages of an operator's own, with a password, and a repository beside it.

#![expect(clippy::unwrap_used, reason = "a test that cannot be set up fails")]

use std::{
    fs,
    io::{BufRead, BufReader, Cursor, Write},
    net::{Ipv4Addr, TcpListener, TcpStream},
    path::Path,
    process::Command,
    sync::{Arc, Mutex},
};

use zip::write::SimpleFileOptions;

pub(super) const PASSWORD: &str = "secret-of-the-operator";
/// `reader` and the password.
const AUTHORIZATION: &str = "authorization: basic cmvhzgvyonnly3jldc1vzi10agutb3blcmf0b3i=";
const WHEEL: &str = "private_thing-1-py3-none-any.whl";

type Asked = Arc<Mutex<Vec<(String, bool)>>>;

/// Ends with the test's process. What begins with `/simple` or `/files` wants the password.
pub(super) struct Index {
    port: u16,
    asked: Asked,
    _directory: tempfile::TempDir,
}

impl Index {
    pub(super) fn start() -> Self {
        let directory = tempfile::tempdir().unwrap();
        repository(directory.path());
        fs::create_dir(directory.path().join("open")).unwrap();
        fs::write(directory.path().join("open").join(WHEEL), wheel()).unwrap();
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let port = listener.local_addr().unwrap().port();
        let (asked, root) = (Asked::default(), directory.path().to_owned());
        let log = Arc::clone(&asked);
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let (root, log) = (root.clone(), Arc::clone(&log));
                std::thread::spawn(move || drop(answer(stream, &root, &log)));
            }
        });
        Self { port, asked, _directory: directory }
    }

    pub(super) fn port(&self) -> u16 {
        self.port
    }

    pub(super) fn url(&self) -> String {
        format!("http://reader:{PASSWORD}@127.0.0.1:{}/simple", self.port)
    }

    pub(super) fn asked(&self) -> Vec<String> {
        self.asked.lock().unwrap().iter().map(|(path, _)| path.clone()).collect()
    }

    pub(super) fn asked_without_password(&self) -> Vec<String> {
        self.asked.lock().unwrap().iter().filter(|(_, known)| !known).map(|(path, _)| path.clone()).collect()
    }
}

fn answer(stream: TcpStream, root: &Path, asked: &Asked) -> std::io::Result<()> {
    let mut lines = BufReader::new(&stream).lines();
    let request = lines.next().transpose()?.unwrap_or_default();
    let mut knows_password = false;
    for line in lines {
        let line = line?;
        if line.is_empty() {
            break;
        }
        knows_password |= line.to_ascii_lowercase() == AUTHORIZATION;
    }
    let path = request.split(' ').nth(1).unwrap_or_default();
    let path = path.split('?').next().unwrap_or_default().to_owned();
    let is_open = !path.starts_with("/simple") && !path.starts_with("/files");
    asked.lock().unwrap().push((path.clone(), knows_password || is_open));
    let (status, body) = match path.as_str() {
        _ if !knows_password && !is_open => ("401 Unauthorized", Vec::new()),
        "/simple/private-thing/" => ("200 OK", format!("<a href=\"../../files/{WHEEL}\">{WHEEL}</a>").into_bytes()),
        path if path.ends_with(WHEEL) => ("200 OK", wheel()),
        path if is_open && !path.contains("..") => match fs::read(root.join(path.trim_start_matches('/'))) {
            Ok(content) => ("200 OK", content),
            Err(_) => ("404 Not Found", Vec::new()),
        },
        _ => ("404 Not Found", Vec::new()),
    };
    let mut stream = stream;
    write!(stream, "HTTP/1.1 {status}\r\nContent-Type: text/html\r\nContent-Length: {}\r\nConnection: close\r\n\r\n", body.len())?;
    stream.write_all(&body)
}

fn wheel() -> Vec<u8> {
    let mut zip = zip::ZipWriter::new(Cursor::new(Vec::new()));
    let info = "private_thing-1.dist-info";
    for (path, text) in [
        ("private_thing.py".to_owned(), "ANSWER = 42\n"),
        (format!("{info}/METADATA"), "Metadata-Version: 2.1\nName: private-thing\nVersion: 1\n"),
        (format!("{info}/WHEEL"), "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"),
        (format!("{info}/RECORD"), ""),
    ] {
        zip.start_file(path, SimpleFileOptions::default()).unwrap();
        zip.write_all(text.as_bytes()).unwrap();
    }
    zip.finish().unwrap().into_inner()
}

/// `thing.git`, as any server of files can give it out.
fn repository(directory: &Path) {
    let (work, bare) = (directory.join("work"), directory.join("thing.git"));
    fs::create_dir(&work).unwrap();
    let backend =
        super::BACKEND.replace("attack-1", "thing-1").replace("Name: attack", "Name: thing").replace("attack_report", "thing_report");
    for (path, text) in [
        ("pyproject.toml", super::PYPROJECT.replace("name = 'attack'", "name = 'thing'")),
        ("backend.py", backend),
        ("attack.py", "FILES = {'thing.py': 'ANSWER = 42'}\n\ndef attack():\n    return None\n".to_owned()),
    ] {
        fs::write(work.join(path), text).unwrap();
    }
    let git = |arguments: &[&str]| {
        let user = ["-c", "user.name=A", "-c", "user.email=a@example.com", "-c", "init.defaultBranch=main"];
        assert!(Command::new("git").args(user).args(arguments).current_dir(&work).output().unwrap().status.success(), "{arguments:?}");
    };
    git(&["init", "--quiet"]);
    git(&["add", "."]);
    git(&["commit", "--quiet", "-m", "thing"]);
    git(&["clone", "--quiet", "--bare", ".", bare.to_str().unwrap()]);
    git(&["--git-dir", bare.to_str().unwrap(), "update-server-info"]);
}
