//! What requirements files ask for, with all files of the repository that they name: pip's own rules of what is a path, and of what it is relative to.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    io::Read,
    os::unix::ffi::OsStrExt,
    path::{Path, PathBuf},
};

use sha2::{Digest, Sha256};
use walkdir::WalkDir;

use crate::error::{HostError, Result};

/// Files that name each other.
const DEEPEST: usize = 8;
/// A list of names; one that is larger is none, in bytes.
const LARGEST: u64 = 4 * 1024 * 1024;
/// Options with which a file names another one, which lies beside it.
const INCLUDES: [&str; 4] = ["--requirement", "--constraint", "-r", "-c"];
const LINKS: [&str; 2] = ["--find-links", "-f"];
pub(in crate::local) const EDITABLE: [&str; 2] = ["--editable", "-e"];
const ARCHIVES: [&str; 7] = [".whl", ".zip", ".tar.gz", ".tgz", ".tar", ".tar.bz2", ".tar.xz"];

/// The requirements files of a tree, with what they name in it.
#[derive(Debug, Default)]
pub(in crate::local) struct Required {
    /// Those that are installed, with their text.
    pub(in crate::local) roots: Vec<(String, String)>,
    /// Those that they name.
    pub(in crate::local) included: BTreeMap<String, String>,
    /// Packages, archives and directories of archives, as paths in the tree.
    named: BTreeSet<String>,
    /// One of them is built from the tree, and may read any of it.
    pub(in crate::local) builds: bool,
}

impl Required {
    /// Reads the files at these paths, and what they name. What leads out of the tree is not read; pip will not find it either.
    pub(in crate::local) fn read(tree: &Path, paths: &[String]) -> Result<Self> {
        let root =
            fs::canonicalize(tree).map_err(|error| HostError::machine_from(format!("{} could not be read", tree.display()), error))?;
        let mut required = Self::default();
        for path in paths {
            let text = text_of(&root, path)?.ok_or_else(|| HostError::machine(format!("{path} is not in the source any more")))?;
            required.roots.push((path.clone(), text));
        }
        let mut next: Vec<(String, String)> = required.roots.clone();
        for _ in 0..DEEPEST {
            for (path, text) in std::mem::take(&mut next) {
                for line in lines(&text) {
                    required.add(&root, &path, &line, &mut next)?;
                }
            }
        }
        Ok(required)
    }

    fn add(&mut self, root: &Path, file: &str, line: &str, next: &mut Vec<(String, String)>) -> Result<()> {
        let beside = Path::new(file).parent().unwrap_or(Path::new("")).to_owned();
        match Named::of(line) {
            Some(Named::File(name)) => {
                let Some(path) = inside(root, &beside.join(name)) else { return Ok(()) };
                let known = self.included.contains_key(&path) || self.roots.iter().any(|(root, _)| *root == path);
                if let Some(text) = (!known).then(|| text_of(root, &path)).transpose()?.flatten() {
                    self.included.insert(path.clone(), text.clone());
                    next.push((path, text));
                }
            }
            // Beside the file when it is there, else where pip runs.
            Some(Named::Links(name)) => self.named.extend(inside(root, &beside.join(name)).or_else(|| inside(root, Path::new(name)))),
            Some(Named::Path(name)) => {
                let found = inside(root, Path::new(name));
                self.builds |= found.as_ref().is_none_or(|path| root.join(path).is_dir() || !is_wheel(path));
                self.named.extend(found);
            }
            None if line.contains("file:") => self.builds = true,
            None => {}
        }
        Ok(())
    }

    /// All files, with their text.
    pub(in crate::local) fn files(&self) -> impl Iterator<Item = (&String, &String)> {
        self.roots.iter().map(|(path, text)| (path, text)).chain(&self.included)
    }

    /// Over what all of it says, file by file.
    pub(in crate::local) fn digest(&self, tree: &Path) -> Result<String> {
        let mut digest = Sha256::new();
        let mut add = |kind: &[u8], path: &[u8], content: &[u8]| {
            for part in [kind, path, content] {
                digest.update((part.len() as u64).to_le_bytes());
                digest.update(part);
            }
        };
        for (path, text) in self.files() {
            add(b"file", path.as_bytes(), text.as_bytes());
        }
        for path in &self.named {
            for entry in WalkDir::new(tree.join(path)).sort_by_file_name() {
                let read_error = |error| HostError::machine_from(format!("{path} could not be read"), error);
                let entry = entry.map_err(|error| read_error(error.into()))?;
                let content = if entry.file_type().is_file() {
                    let mut hasher = Sha256::new();
                    std::io::copy(&mut fs::File::open(entry.path()).map_err(read_error)?, &mut hasher).map_err(read_error)?;
                    hasher.finalize().to_vec()
                } else if entry.file_type().is_symlink() {
                    fs::read_link(entry.path()).map_err(read_error)?.as_os_str().as_bytes().to_vec()
                } else {
                    continue;
                };
                add(b"named", entry.path().strip_prefix(tree).unwrap_or(entry.path()).as_os_str().as_bytes(), &content);
            }
        }
        Ok(hex::encode(digest.finalize()))
    }
}

/// What a line names in the tree.
#[derive(Debug, PartialEq, Eq)]
pub(in crate::local) enum Named<'a> {
    /// Another file of requirements or constraints.
    File(&'a str),
    /// A directory of archives, or a page.
    Links(&'a str),
    /// A package or an archive.
    Path(&'a str),
}

impl<'a> Named<'a> {
    pub(in crate::local) fn of(line: &'a str) -> Option<Self> {
        let is_url = |name: &str| name.contains("://");
        if let Some(name) = option(line, &INCLUDES) {
            return (!is_url(name)).then_some(Self::File(name));
        }
        if let Some(name) = option(line, &LINKS) {
            return (!is_url(name)).then_some(Self::Links(name));
        }
        let requirement = option(line, &EDITABLE).unwrap_or(line).trim();
        if requirement.starts_with('-') {
            return None;
        }
        let name = match requirement.split_once('@') {
            Some((_, place)) if place.trim_start().starts_with("file:") => place.trim_start(),
            _ => requirement,
        };
        let path = name.split([';', '[', ' ', '\t']).next()?;
        let path = path.strip_prefix("file:").map_or(path, |path| path.strip_prefix("//").unwrap_or(path));
        let looks_like_one = path.contains('/') || path.starts_with('.') || ARCHIVES.iter().any(|ending| path.ends_with(ending));
        (looks_like_one && !is_url(path) && !path.contains('@')).then_some(Self::Path(path))
    }
}

/// The lines of a requirements file without comments; one that ends with a backslash goes on.
pub(in crate::local) fn lines(text: &str) -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    let mut goes_on = false;
    for line in text.lines() {
        let is_comment = line.trim_start().starts_with('#');
        let (said, more) = match line.strip_suffix('\\') {
            Some(said) if !is_comment => (said, true),
            _ => (line, false),
        };
        match lines.last_mut() {
            Some(last) if goes_on => last.push_str(said),
            _ => lines.push(said.to_owned()),
        }
        goes_on = more;
    }
    let without_comment = |line: String| {
        let trimmed = line.trim();
        if trimmed.starts_with('#') {
            return String::new();
        }
        let end = [" #", "\t#"].iter().filter_map(|mark| trimmed.find(mark)).min().unwrap_or(trimmed.len());
        trimmed[..end].trim_end().to_owned()
    };
    lines.into_iter().map(without_comment).filter(|line| !line.is_empty()).collect()
}

/// What follows one of these options, with which the line begins.
pub(in crate::local) fn option<'a>(line: &'a str, names: &[&str]) -> Option<&'a str> {
    let line = line.trim_start();
    let rest = names.iter().find_map(|name| line.strip_prefix(name))?;
    let value = rest.strip_prefix('=').unwrap_or(rest);
    let is_short = names.iter().any(|name| name.len() == 2 && line.starts_with(name)) && !line.starts_with("--");
    // `-rmore.txt` is one as well; a path or a name of a package does not begin with a hyphen.
    (is_short || value.starts_with(char::is_whitespace) || value.len() < rest.len()).then(|| value.trim_start())
}

fn is_wheel(path: &str) -> bool {
    Path::new(path).extension().is_some_and(|ending| ending == "whl")
}

/// The path in the tree that this leads to; `None` for one that is not there, or not in the tree.
fn inside(root: &Path, path: &Path) -> Option<String> {
    let real = fs::canonicalize(root.join(path)).ok()?;
    real.strip_prefix(root).ok()?.to_str().map(str::to_owned)
}

/// The text of a requirements file as pip reads it, by its byte order mark or what its first lines say; `None` when it is no file.
fn text_of(root: &Path, path: &str) -> Result<Option<String>> {
    let Some(path) = inside(root, Path::new(path)) else { return Ok(None) };
    let place: PathBuf = root.join(&path);
    if !place.is_file() {
        return Ok(None);
    }
    let mut bytes = Vec::new();
    let read = fs::File::open(&place).and_then(|file| file.take(LARGEST + 1).read_to_end(&mut bytes));
    read.map_err(|error| HostError::machine_from(format!("{path} could not be read"), error))?;
    if bytes.len() as u64 > LARGEST {
        return Err(HostError::rejected(format!("{path} is larger than {} MB; a list of requirements is a small file", LARGEST >> 20)));
    }
    decode(&bytes).map(Some).map_err(|encoding| {
        HostError::rejected(format!(
            "{path} is not {encoding} text; save it as UTF-8 (PowerShell: `pip freeze | Out-File -Encoding utf8 requirements.txt`)"
        ))
    })
}

/// An error says what it should have been.
fn decode(bytes: &[u8]) -> Result<String, &'static str> {
    let utf16 = |bytes: &[u8], read: fn([u8; 2]) -> u16| {
        let (pairs, []) = bytes.as_chunks::<2>() else { return Err("UTF-16") };
        String::from_utf16(&pairs.iter().map(|pair| read(*pair)).collect::<Vec<_>>()).map_err(|_| "UTF-16")
    };
    if bytes.starts_with(&[0xff, 0xfe, 0, 0]) || bytes.starts_with(&[0, 0, 0xfe, 0xff]) {
        let (fours, []) = bytes[4..].as_chunks::<4>() else { return Err("UTF-32") };
        let read = if bytes[0] == 0xff { u32::from_le_bytes } else { u32::from_be_bytes };
        return fours.iter().map(|four| char::from_u32(read(*four))).collect::<Option<String>>().ok_or("UTF-32");
    }
    match bytes {
        [0xff, 0xfe, text @ ..] => utf16(text, u16::from_le_bytes),
        [0xfe, 0xff, text @ ..] => utf16(text, u16::from_be_bytes),
        _ => {
            let text = bytes.strip_prefix(&[0xef, 0xbb, 0xbf]).unwrap_or(bytes);
            match std::str::from_utf8(text) {
                // Some editors write UTF-16 without its mark: then each second byte is none.
                Ok(found) if !found.contains('\0') => Ok(found.to_owned()),
                Ok(_) => utf16(text, if text.first() == Some(&0) { u16::from_be_bytes } else { u16::from_le_bytes }),
                // Only comments have such letters.
                Err(_) if says_latin(text) => Ok(text.iter().map(|byte| char::from(*byte)).collect()),
                Err(_) => Err("UTF-8"),
            }
        }
    }
}

/// `# -*- coding: latin-1 -*-` in one of the first two lines.
fn says_latin(text: &[u8]) -> bool {
    let mut first = text.split(|byte| *byte == b'\n').take(2).filter(|line| line.starts_with(b"#"));
    first.any(|line| {
        let line = String::from_utf8_lossy(line).to_ascii_lowercase();
        line.contains("coding") && ["latin", "iso-8859-1", "cp1252", "windows-1252"].iter().any(|name| line.contains(name))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(root: &Path, path: &str, text: impl AsRef<[u8]>) {
        let path = root.join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    fn digest(root: &Path) -> String {
        Required::read(root, &["requirements.txt".to_owned()]).unwrap().digest(root).unwrap()
    }

    #[test]
    fn what_is_a_path_is_what_pip_takes_for_one() {
        for (line, expected) in [
            ("packages/harbour_fees", Some(Named::Path("packages/harbour_fees"))),
            ("./packages/x[more] ; python_version > '3'", Some(Named::Path("./packages/x"))),
            ("-e packages/x", Some(Named::Path("packages/x"))),
            ("--editable=./x", Some(Named::Path("./x"))),
            ("x-1.0-py3-none-any.whl --hash=sha256:00", Some(Named::Path("x-1.0-py3-none-any.whl"))),
            ("x @ file:./wheels/x.whl", Some(Named::Path("./wheels/x.whl"))),
            ("file:packages/x", Some(Named::Path("packages/x"))),
            ("-rmore.txt", Some(Named::File("more.txt"))),
            ("--requirement more.txt", Some(Named::File("more.txt"))),
            ("-c https://host.example/c.txt", None),
            ("--find-links wheels", Some(Named::Links("wheels"))),
            ("-f ./wheels", Some(Named::Links("./wheels"))),
            ("requests>=2", None),
            ("x @ https://host.example/x.zip", None),
            ("-e git+https://host.example/x.git@main#egg=x", None),
            ("--index-url https://host.example/simple", None),
        ] {
            assert_eq!(Named::of(line), expected, "{line}");
        }
    }

    #[test]
    fn a_digest_follows_the_contents_of_what_is_named_in_every_way() {
        for (line, file) in [
            ("packages/fees", "packages/fees/fees.py"),
            ("./packages/fees", "packages/fees/fees.py"),
            ("-e packages/fees", "packages/fees/fees.py"),
            ("wheels/x.whl", "wheels/x.whl"),
            ("--find-links wheels\nx", "wheels/x.whl"),
            ("-r more/more.txt", "more/more.txt"),
            ("-c constraints.txt\nx", "constraints.txt"),
            ("-r more/chain.txt", "more/more.txt"),
            ("requests \\\n  -r more/more.txt\npackages/fees # why", "packages/fees/fees.py"),
        ] {
            let directory = tempfile::tempdir().unwrap();
            let root = directory.path();
            for (path, text) in [
                ("packages/fees/fees.py", "a"),
                ("wheels/x.whl", "a"),
                ("more/more.txt", "a"),
                ("more/chain.txt", "-r more.txt"),
                ("constraints.txt", "a"),
                ("shop/a.py", "a"),
            ] {
                write(root, path, text);
            }
            write(root, "requirements.txt", line);
            let before = digest(root);
            write(root, "shop/a.py", "b");
            assert_eq!(before, digest(root), "{line}");
            write(root, file, "b");
            assert_ne!(before, digest(root), "{line}");
        }
    }

    #[test]
    fn what_leads_out_of_the_tree_is_not_read() {
        let directory = tempfile::tempdir().unwrap();
        let root = directory.path().join("tree");
        write(directory.path(), "secret/x.txt", "b");
        write(&root, "requirements.txt", "-r ../secret/x.txt\n../secret\n-f /etc\n/etc/passwd\n");
        let required = Required::read(&root, &["requirements.txt".to_owned()]).unwrap();
        assert!(required.included.is_empty() && required.named.is_empty() && required.builds, "{required:?}");
    }

    #[test]
    fn text_is_read_as_its_mark_says() {
        let utf16 = |mark: &[u8], read: fn(u16) -> [u8; 2]| {
            mark.iter().copied().chain("a==1\r\n".encode_utf16().flat_map(read)).collect::<Vec<u8>>()
        };
        for bytes in [
            b"a==1\r\n".to_vec(),
            b"\xef\xbb\xbfa==1\r\n".to_vec(),
            utf16(&[0xff, 0xfe], u16::to_le_bytes),
            utf16(&[0xfe, 0xff], u16::to_be_bytes),
            utf16(&[], u16::to_le_bytes),
            utf16(&[], u16::to_be_bytes),
            [&[0xff, 0xfe, 0, 0][..], &"a==1\r\n".chars().flat_map(|c| (c as u32).to_le_bytes()).collect::<Vec<u8>>()].concat(),
        ] {
            assert_eq!(decode(&bytes).as_deref(), Ok("a==1\r\n"), "{bytes:?}");
        }
        assert_eq!(decode(b"# coding: latin-1\n# \xe9\na"), Ok("# coding: latin-1\n# é\na".to_owned()));
        assert_eq!(decode(b"# \xe9\na"), Err("UTF-8"));
        assert_eq!(decode(&[0xff, 0xfe, 0x61]), Err("UTF-16"));
    }
}
