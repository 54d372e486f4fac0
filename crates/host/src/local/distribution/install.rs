//! Installs Odoo from Debian's package, unpacked into a directory of its own with a Python environment of its own. Nothing is installed on the
//! system, and the system's apt stays as it is.
//!
//! Layout: `root/` (the unpacked packages, whose links among each other resolve there), `venv/`, and `distribution.json`, written last.

use std::{
    fs, io,
    os::unix::fs::{PermissionsExt, symlink},
    path::{Path, PathBuf},
    time::Duration,
};

use nix::fcntl::{Flock, FlockArg};
use ocore_model::names::OdooVersion;
use sha2::{Digest, Sha256};
use walkdir::WalkDir;

use super::{
    InstalledDistribution, RECORD, Record,
    apt_sources::{self, Mirror},
    find_installed, module_names, tools,
};
use crate::{
    api::Progress,
    error::{HostError, Result},
    local::{
        durable::{self, blocking},
        exec::{Finished, Program},
        pip,
        pool::human,
    },
};

/// How one Odoo series is installed.
struct Recipe {
    version: &'static str,
    package: &'static str,
    /// The suite of Debian that has it.
    suite: &'static str,
    /// Packages whose files the Odoo package links to.
    linked: &'static [&'static str],
    /// Versions that work together; measured, see the reference of Odoo 19.
    pins: &'static str,
    /// Debian's own Pythons, the best first: an unprivileged user must be able to run them, and the pinned packages must have builds for them.
    pythons: &'static [&'static str],
    /// Raised when the steps below change what comes out.
    revision: u32,
}

const RECIPES: &[Recipe] = &[Recipe {
    version: "19.0",
    package: "odoo-19",
    suite: "sid",
    linked: &[
        "fonts-montserrat",
        "fonts-roboto-unhinted",
        "fonts-ocr-b",
        "fonts-inconsolata",
        "fonts-font-awesome",
        "fonts-dejavu-core",
        "libjs-jquery",
        "libjs-jquery-form",
        "libjs-underscore",
    ],
    pins: include_str!("odoo-19.0.requirements.txt"),
    pythons: &["/usr/bin/python3.11", "/usr/bin/python3.12"],
    revision: 1,
}];

/// What an installation takes while it is made: packages, unpacked tree, environment, byte code.
const ROOM: u64 = 2_500_000_000;
const PACKAGES: &str = "root/usr/lib/python3/dist-packages";
const DOWNLOAD_TIME: Duration = Duration::from_mins(30);
const STEP_TIME: Duration = Duration::from_mins(15);

/// Installs an Odoo series into `directory/version`. A whole one is found again in milliseconds and left as it is; half of one, from a run that was
/// broken off, is made anew. One installer works at a time, the others wait for it.
pub async fn install(directory: &Path, version: &OdooVersion, progress: &Progress) -> Result<InstalledDistribution> {
    let installed = install_odoo(directory, version, progress).await?;
    if let Err(error) = tools::ensure(directory, &installed.python, progress).await {
        progress.log.line(&format!(
            "Without rtlcss, pages in languages that are written from right to left are not mirrored; install again to try it once more. ({error})"
        ));
    }
    Ok(installed)
}

async fn install_odoo(directory: &Path, version: &OdooVersion, progress: &Progress) -> Result<InstalledDistribution> {
    if let Some(found) = find_installed(directory, version)? {
        return Ok(found);
    }
    let recipe = RECIPES.iter().find(|recipe| recipe.version == version.as_str()).ok_or_else(|| {
        let known: Vec<&str> = RECIPES.iter().map(|recipe| recipe.version).collect();
        HostError::rejected(format!(
            "Odoo {version} cannot be installed from packages (only {}); point to a checkout and its virtual environment in the configuration",
            known.join(", ")
        ))
    })?;
    durable::make_directory(directory, 0o755)?;
    let _lock = lock(&directory.join(format!(".{version}.lock")), progress).await?;
    if let Some(found) = find_installed(directory, version)? {
        return Ok(found);
    }
    let python = check_machine(recipe, directory).await?;
    let mirror = apt_sources::machine_mirror(Path::new("/etc/apt")).ok_or_else(|| {
        HostError::machine(format!("Odoo {version} is installed from Debian's packages, and /etc/apt names no mirror of Debian; point to a checkout in the configuration"))
    })?;
    let work = directory.join(format!(".{version}.installing"));
    blocking({
        let work = work.clone();
        move || {
            durable::remove_tree(&work)?;
            durable::make_directory(&work, 0o755)
        }
    })
    .await?;
    let made = make(recipe, &mirror, &python, &work, &directory.join(version.as_str()), progress).await;
    if made.is_err() {
        let work = work.clone();
        blocking(move || durable::remove_tree(&work)).await?;
    }
    made?;
    find_installed(directory, version)?.ok_or_else(|| HostError::machine(format!("Odoo {version} was installed and is not there")))
}

async fn make(recipe: &Recipe, mirror: &Mirror, python: &Path, work: &Path, target: &Path, progress: &Progress) -> Result<()> {
    let (package_version, ()) = tokio::try_join!(packages(recipe, mirror, work, progress), environment(recipe, python, work, progress))?;
    let repaired = work.to_owned();
    blocking(move || repair(&repaired)).await?;
    progress.log.line("Compiling byte code.");
    compile(work, target, progress).await?;
    let mut digest = Sha256::new();
    digest.update(recipe.pins);
    digest.update(recipe.revision.to_le_bytes());
    digest.update(python.as_os_str().as_encoded_bytes());
    let id = format!("{package_version}-{}", &hex::encode(digest.finalize())[..12]);
    let (version, work, target) = (recipe.version.to_owned(), work.to_owned(), target.to_owned());
    blocking(move || finish(&version, id, &work, &target)).await?;
    progress.log.line(&format!("Odoo {} is installed ({package_version}).", recipe.version));
    Ok(())
}

/// One installer at a time; the lock goes with the process that holds it.
pub(super) async fn lock(path: &Path, progress: &Progress) -> Result<Flock<fs::File>> {
    let open = || fs::OpenOptions::new().create(true).truncate(false).write(true).open(path);
    let mut file = open().map_err(|error| HostError::machine_from(format!("{} could not be written: {error}", path.display()), error))?;
    let mut told = false;
    loop {
        match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(lock) => return Ok(lock),
            Err((returned, nix::errno::Errno::EWOULDBLOCK)) => file = returned,
            Err((_, error)) => return Err(HostError::machine_from(format!("{} could not be locked", path.display()), error)),
        }
        if !std::mem::replace(&mut told, true) {
            progress.log.line("Another installation of it is at work; waiting for it.");
        }
        tokio::select! {
            () = progress.cancel.cancelled() => return Err(HostError::Cancelled),
            () = tokio::time::sleep(Duration::from_millis(200)) => {}
        }
    }
}

/// What must be there before anything is downloaded. Answers with the Python to use.
async fn check_machine(recipe: &Recipe, directory: &Path) -> Result<PathBuf> {
    for program in ["/usr/bin/apt-get", "/usr/bin/dpkg", "/usr/bin/dpkg-deb"] {
        if !Path::new(program).is_file() {
            return Err(HostError::machine(format!(
                "{program} is not there: Odoo is installed from Debian's packages; on another system point to a checkout in the configuration"
            )));
        }
    }
    let python = recipe.pythons.iter().map(Path::new).find(|path| path.is_file()).ok_or_else(|| {
        HostError::machine(format!(
            "Odoo {} needs one of {}; install the package `python3-venv` of Debian 12",
            recipe.version,
            recipe.pythons.join(", ")
        ))
    })?;
    let finished = Program::new(python).args(["-I", "-c", "import ensurepip, venv"]).run().await?;
    if !finished.status.success() {
        return Err(HostError::machine(format!(
            "{} cannot make virtual environments; install the package `python3-venv`",
            python.display()
        )));
    }
    let status = rustix::fs::statvfs(directory)
        .map_err(|error| HostError::machine_from(format!("{} could not be looked at", directory.display()), error))?;
    let available = status.f_bavail * status.f_frsize;
    if available < ROOM {
        return Err(HostError::machine(format!(
            "there is no room for Odoo {} in {}: it takes {} while it is installed, and {} are free",
            recipe.version,
            directory.display(),
            human(ROOM),
            human(available)
        )));
    }
    Ok(python.to_owned())
}

/// Downloads and unpacks the packages; answers with the version of Odoo's.
async fn packages(recipe: &Recipe, mirror: &Mirror, work: &Path, progress: &Progress) -> Result<String> {
    let apt = work.join("apt");
    for directory in ["lists/partial", "cache/archives/partial", "packages"] {
        fs::create_dir_all(apt.join(directory)).map_err(write_error(&apt))?;
    }
    fs::write(apt.join("sources.list"), mirror.line(recipe.suite)).map_err(write_error(&apt))?;
    fs::set_permissions(&apt, fs::Permissions::from_mode(0o700)).map_err(write_error(&apt))?;
    fs::write(apt.join("status"), "").map_err(write_error(&apt))?;
    let apt_get = || {
        let option = |name: &str, value: &str| format!("{name}={}", apt.join(value).display());
        let options = [
            option("Dir::Etc::sourcelist", "sources.list"),
            "Dir::Etc::sourceparts=-".to_owned(),
            option("Dir::State::lists", "lists"),
            option("Dir::State::status", "status"),
            option("Dir::Cache", "cache"),
            // The private directory is closed to apt's own user.
            "APT::Sandbox::User=root".to_owned(),
            "Acquire::Retries=3".to_owned(),
        ];
        let program = Program::new("/usr/bin/apt-get").cwd(apt.join("packages")).cancel(progress.cancel.clone()).time_limit(DOWNLOAD_TIME);
        options.into_iter().fold(program, |program, option| program.arg("-o").arg(option))
    };
    progress.log.line(&format!("Fetching the list of packages from {} ({}).", mirror.shown(), recipe.suite));
    judge_apt(apt_get().arg("update").run().await?, recipe, mirror)?;
    progress.log.line(&format!("Downloading {} and {} packages that it links to (135 MB).", recipe.package, recipe.linked.len()));
    judge_apt(apt_get().arg("download").arg(recipe.package).args(recipe.linked).run().await?, recipe, mirror)?;
    progress.log.line("Unpacking the packages (1.3 GB).");
    let root = work.join("root");
    let mut version = None;
    for entry in fs::read_dir(apt.join("packages")).map_err(write_error(&apt))? {
        let package = entry.map_err(write_error(&apt))?.path();
        let is_odoo =
            package.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(format!("{}_", recipe.package).as_bytes()));
        if is_odoo {
            let finished = Program::new("/usr/bin/dpkg-deb").arg("--field").arg(&package).arg("Version").run().await?;
            version = Some(finished.expect_success("the version of the Odoo package could not be read")?.stdout_text().trim().to_owned());
        }
        let unpack =
            Program::new("/usr/bin/dpkg").arg("--extract").arg(&package).arg(&root).cancel(progress.cancel.clone()).time_limit(STEP_TIME);
        unpack.run().await?.expect_success("a package could not be unpacked")?;
    }
    blocking(move || durable::remove_tree(&apt)).await?;
    version.ok_or_else(|| HostError::machine(format!("apt did not download the package {}", recipe.package)))
}

fn judge_apt(finished: Finished, recipe: &Recipe, mirror: &Mirror) -> Result<()> {
    let output = format!("{}\n{}", finished.stdout_text(), finished.stderr_text());
    let has = |words: &[&str]| words.iter().any(|words| output.contains(words));
    // `apt-get update` ends with 0 although it could not reach the mirror.
    if has(&["Could not resolve", "Temporary failure resolving", "Could not connect", "Connection timed out", "Network is unreachable"]) {
        return Err(HostError::machine(format!(
            "Debian's mirror {} could not be reached: is there a network? a proxy for apt?",
            mirror.shown()
        )));
    }
    if has(&["No space left on device", "not enough free space"]) {
        return Err(HostError::machine("the disk became full while Odoo was downloaded"));
    }
    if has(&["Unable to locate package", "does not have a Release file"]) {
        return Err(HostError::machine(format!(
            "the mirror {} has no package {} in its suite {}",
            mirror.shown(),
            recipe.package,
            recipe.suite
        )));
    }
    finished.expect_success("apt could not download Odoo").map(drop)
}

/// The Python environment, with the pinned versions.
async fn environment(recipe: &Recipe, python: &Path, work: &Path, progress: &Progress) -> Result<()> {
    let venv = work.join("venv");
    progress.log.line("Making the Python environment (240 MB).");
    let program = Program::new(python).args(["-I", "-m", "venv"]).arg(&venv).cancel(progress.cancel.clone()).time_limit(STEP_TIME);
    program.run().await?.expect_success("the Python environment could not be made")?;
    let pins = work.join("requirements.txt");
    fs::write(&pins, recipe.pins).map_err(write_error(&pins))?;
    let home = std::env::var_os("HOME").unwrap_or_else(|| "/root".into());
    let program = pip::install(venv.join("bin/python")).arg("--no-compile").arg("--quiet").arg("--requirement").arg(&pins);
    let finished = program.env("HOME", home).cancel(progress.cancel.clone()).time_limit(DOWNLOAD_TIME).run().await?;
    if !finished.status.success() {
        let output = format!("{}\n{}", finished.stdout_text(), finished.stderr_text());
        if pip::could_not_reach_index(&output) {
            return Err(HostError::machine(
                "the index of Python packages could not be reached: is there a network? a proxy? an index in pip's configuration?",
            ));
        }
        if output.contains("No space left on device") {
            return Err(HostError::machine("the disk became full while Odoo's Python packages were installed"));
        }
        let reason = pip::decisive_lines(&output).into_iter().next_back();
        return Err(HostError::machine(format!(
            "Odoo's Python packages could not be installed: {}",
            reason.as_deref().unwrap_or("pip did not say why")
        )));
    }
    progress.log.line("The Python environment is made.");
    Ok(())
}

/// What the package has wrong in this place: a second copy of Odoo's Python files in the way of its addons, and links that lead to nothing.
fn repair(work: &Path) -> Result<()> {
    let packages = work.join(PACKAGES);
    durable::remove_tree(&packages.join("addons"))?;
    let addons = packages.join("odoo/addons");
    let icons = addons.join("web/static/src/libs/fontawesome/fonts");
    let links = [
        (icons.join("fontawesome-webfont.ttf"), "fontawesome-webfont.woff"),
        (
            addons.join("web/static/lib/fontawesome/fonts/fontawesome-webfont.woff2"),
            "../../../src/libs/fontawesome/fonts/fontawesome-webfont.woff2",
        ),
        (
            addons.join("web/static/lib/fontawesome/fonts/fontawesome-webfont.woff"),
            "../../../src/libs/fontawesome/fonts/fontawesome-webfont.woff",
        ),
        (
            addons.join("web/static/lib/fontawesome/fonts/fontawesome-webfont.ttf"),
            "../../../src/libs/fontawesome/fonts/fontawesome-webfont.woff",
        ),
        (
            addons.join("web/static/lib/fontawesome/fonts/fontawesome-webfont.eot"),
            "../../../src/libs/fontawesome/fonts/fontawesome-webfont.woff",
        ),
        (addons.join("web/static/lib/fontawesome/fonts/FontAwesome.otf"), "../../../src/libs/fontawesome/fonts/fontawesome-webfont.woff"),
        (
            addons.join("point_of_sale/static/src/fonts/Inconsolata.otf"),
            "../../../../../../../../../share/fonts/opentype/inconsolata/Inconsolata-Regular.otf",
        ),
    ];
    for (link, target) in links {
        relink(&link, target).map_err(write_error(&link))?;
    }
    // The package leaves it out, and a bundle of the mail module names it.
    let script = addons.join("mail/static/lib/selfie_segmentation/selfie_segmentation.js");
    if let Some(directory) = script.parent()
        && !script.exists()
    {
        fs::create_dir_all(directory).and_then(|()| fs::write(&script, "")).map_err(write_error(&script))?;
    }
    Ok(())
}

/// Replaces a link that is there; a package that ships a file instead needs no repair.
fn relink(link: &Path, target: &str) -> io::Result<()> {
    match fs::symlink_metadata(link) {
        Ok(metadata) if metadata.is_symlink() => fs::remove_file(link)?,
        Ok(_) => return Ok(()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
    }
    symlink(target, link)
}

/// Users of instances cannot write byte code; without it each start would compile everything again. A file that does not compile is none that Odoo
/// imports (templates of modules, for instance).
async fn compile(work: &Path, target: &Path, progress: &Progress) -> Result<()> {
    let program = Program::new(work.join("venv/bin/python"))
        .args(["-I", "-W", "ignore", "-m", "compileall", "-qq", "-j", "0", "-s"])
        .arg(work)
        .arg("-p")
        .arg(target)
        .arg(work.join(PACKAGES))
        .arg(work.join("venv/lib"));
    program.cancel(progress.cancel.clone()).time_limit(STEP_TIME).run().await?;
    Ok(())
}

/// Ties environment and source together, opens the files to all for reading, writes the record, and puts the whole in its place.
fn finish(version: &str, id: String, work: &Path, target: &Path) -> Result<()> {
    let site_packages = site_packages(work)?;
    fs::write(site_packages.join("odoo-source.pth"), format!("../../../../{PACKAGES}\n")).map_err(write_error(&site_packages))?;
    rewrite_scripts(&work.join("venv/bin"), work, target).map_err(write_error(work))?;
    open_to_all(work)?;
    let odoo_version =
        version.parse().map_err(|error: ocore_model::names::InvalidName| HostError::machine_from("a recipe has a wrong version", error))?;
    let relative = site_packages.strip_prefix(work).unwrap_or(&site_packages).to_owned();
    let record = Record {
        odoo_version,
        id,
        program: PathBuf::from("root/usr/bin/odoo"),
        python: PathBuf::from("venv/bin/python"),
        packages: vec![relative, PathBuf::from(PACKAGES)],
        modules: module_names(&[work.join(PACKAGES).join("odoo/addons")])?,
    };
    durable::write_json(&work.join(RECORD), &record)?;
    fs::set_permissions(work.join(RECORD), fs::Permissions::from_mode(0o644)).map_err(write_error(work))?;
    put_in_place(work, target)
}

/// Moves what is whole to where it is looked for, once it is on the disk.
pub(super) fn put_in_place(work: &Path, target: &Path) -> Result<()> {
    let place = || -> io::Result<()> {
        rustix::fs::syncfs(fs::File::open(work)?)?;
        // What is there is no whole one: it has no record, or that of an earlier revision.
        if target.exists() {
            fs::remove_dir_all(target)?;
        }
        fs::rename(work, target)?;
        durable::sync_parent(target)
    };
    place().map_err(write_error(target))
}

fn site_packages(work: &Path) -> Result<PathBuf> {
    let library = work.join("venv/lib");
    let entries = fs::read_dir(&library).map_err(write_error(&library))?;
    let found = entries.flatten().map(|entry| entry.path().join("site-packages")).find(|path| path.is_dir());
    found.ok_or_else(|| HostError::machine(format!("the Python environment has no site-packages in {}", library.display())))
}

/// Scripts name the Python that runs them by its full path, which was another one when they were made.
fn rewrite_scripts(directory: &Path, work: &Path, target: &Path) -> io::Result<()> {
    let (from, to) = (work.display().to_string(), target.display().to_string());
    for entry in fs::read_dir(directory)? {
        let path = entry?.path();
        if !fs::symlink_metadata(&path)?.is_file() {
            continue;
        }
        if let Ok(text) = fs::read_to_string(&path)
            && text.contains(&from)
        {
            fs::write(&path, text.replace(&from, &to))?;
        }
    }
    Ok(())
}

/// Readable by all and writable by the owner alone, whatever the umask was.
pub(super) fn open_to_all(directory: &Path) -> Result<()> {
    for entry in WalkDir::new(directory) {
        let entry = entry.map_err(|error| HostError::machine_from("the installed files could not be read", error))?;
        if entry.file_type().is_symlink() {
            continue;
        }
        let metadata = entry.metadata().map_err(|error| HostError::machine_from("an installed file could not be looked at", error))?;
        let mode = metadata.permissions().mode() & 0o7777;
        let executable = metadata.is_dir() || mode & 0o100 != 0;
        let wanted = if executable { 0o755 } else { 0o644 };
        if mode != wanted {
            fs::set_permissions(entry.path(), fs::Permissions::from_mode(wanted)).map_err(write_error(entry.path()))?;
        }
    }
    Ok(())
}

pub(super) fn write_error(path: &Path) -> impl FnOnce(io::Error) -> HostError + '_ {
    move |error| match error.kind() {
        io::ErrorKind::StorageFull => HostError::machine_from(format!("the disk became full while {} was written", path.display()), error),
        _ => HostError::machine_from(format!("{} could not be written: {error}", path.display()), error),
    }
}
