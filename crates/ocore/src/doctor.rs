//! `ocore doctor`: looks at the machine and says what to do.

use std::{
    net::{SocketAddr, TcpListener, TcpStream},
    os::unix::fs::PermissionsExt,
    path::Path,
    process::Command,
    time::Duration,
};

use anyhow::{Result, bail};
use ocore_host::local::{EnforceEgress, distribution::tool_directory};
use serde::Serialize;

use crate::config::{Config, Loaded};

#[derive(Debug, Serialize)]
struct Check {
    name: String,
    /// `ok`, `warning` (works, could be better) or `missing` (does not work).
    state: State,
    found: String,
    /// What to do; empty when it is fine.
    advice: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum State {
    Ok,
    Warning,
    Missing,
}

/// Programs that the server runs, and the Debian package that has each.
const PROGRAMS: &[(&str, &str)] = &[
    ("git", "git"),
    ("ssh-keygen", "openssh-client"),
    ("setsid", "util-linux"),
    ("setpriv", "util-linux"),
    ("mount", "mount"),
    ("mkfs.xfs", "xfsprogs"),
    ("useradd", "passwd"),
    ("dpkg", "dpkg"),
    ("apt-get", "apt"),
];

/// Prints every check; fails when something is missing.
pub fn run(loaded: &Loaded, json: bool) -> Result<()> {
    let mut checks = checks(&loaded.config);
    checks.insert(1, configuration(loaded));
    let missing = checks.iter().filter(|check| check.state == State::Missing).count();
    if json {
        out!("{:#}", serde_json::json!({ "checks": checks }));
    } else {
        for check in &checks {
            let mark = match check.state {
                State::Ok => "✔",
                State::Warning => "!",
                State::Missing => "✘",
            };
            out!("{mark} {:<24} {}", check.name, check.found);
            if !check.advice.is_empty() {
                out!("  {:<24} → {}", "", check.advice);
            }
        }
    }
    if missing > 0 {
        bail!("{missing} of {} checks failed", checks.len());
    }
    Ok(())
}

fn checks(config: &Config) -> Vec<Check> {
    let mut checks = vec![root(), system()];
    checks.extend(PROGRAMS.iter().map(|&(program, package)| program_is_there(program, package)));
    checks.push(postgresql());
    checks.push(python());
    checks.push(space(config));
    checks.push(pool(config));
    checks.push(distribution(config));
    checks.push(printing());
    checks.push(fonts());
    checks.push(right_to_left(config));
    checks.push(compiler());
    checks.push(node(config));
    checks.push(control_groups(config));
    checks.push(egress(config));
    checks.push(sign_up(config));
    checks.push(names(config));
    checks.push(public_suffix(config));
    checks.push(pip_settings());
    checks.push(port("API", config.listen));
    checks.push(port("edge", config.edge.listen));
    checks
}

fn check(name: &str, state: State, found: impl Into<String>, advice: impl Into<String>) -> Check {
    let advice = if state == State::Ok { String::new() } else { advice.into() };
    Check { name: name.to_owned(), state, found: found.into(), advice }
}

fn needed(is_there: bool) -> State {
    if is_there { State::Ok } else { State::Missing }
}

fn preferred(is_there: bool) -> State {
    if is_there { State::Ok } else { State::Warning }
}

fn root() -> Check {
    let is_root = nix::unistd::geteuid().is_root();
    check("root", needed(is_root), if is_root { "yes" } else { "no" }, "run `ocore serve` as root: it gives each instance users of its own")
}

fn system() -> Check {
    let release = std::fs::read_to_string("/etc/os-release").unwrap_or_default();
    let value = |key: &str| release.lines().find_map(|line| Some(line.strip_prefix(key)?.trim_matches('"').to_owned())).unwrap_or_default();
    let tried = value("ID=") == "debian" && value("VERSION_ID=") == "12";
    check("system", preferred(tried), value("PRETTY_NAME="), "oCore is tried on Debian 12; elsewhere you are the first")
}

fn find_program(program: &str) -> Option<String> {
    ["/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin", "/sbin", "/bin"]
        .iter()
        .map(|directory| format!("{directory}/{program}"))
        .find(|path| Path::new(path).is_file())
}

fn program_is_there(program: &str, package: &str) -> Check {
    let found = find_program(program);
    check(program, needed(found.is_some()), found.unwrap_or_else(|| "not found".to_owned()), format!("apt-get install {package}"))
}

fn postgresql() -> Check {
    let mut versions: Vec<u32> = std::fs::read_dir("/usr/lib/postgresql")
        .into_iter()
        .flatten()
        .flatten()
        .filter(|entry| entry.path().join("bin/postgres").is_file())
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .collect();
    versions.sort_unstable();
    let newest = versions.last();
    let found = newest.map_or_else(|| "not found".to_owned(), |version| format!("version {version}"));
    check("PostgreSQL", needed(newest.is_some_and(|version| *version >= 13)), found, "apt-get install postgresql (13 or newer)")
}

fn python() -> Check {
    let works =
        Command::new("/usr/bin/python3").args(["-c", "import venv, ensurepip"]).output().is_ok_and(|output| output.status.success());
    check("python3 with venv", needed(works), if works { "/usr/bin/python3" } else { "not found" }, "apt-get install python3 python3-venv")
}

fn existing_ancestor(path: &Path) -> &Path {
    path.ancestors().find(|ancestor| ancestor.exists()).unwrap_or(Path::new("/"))
}

fn space(config: &Config) -> Check {
    const WANTED: u64 = 10 << 30;
    let directory = existing_ancestor(&config.home);
    let available = nix::sys::statvfs::statvfs(directory).map_or(0, |stat| stat.blocks_available() * stat.fragment_size());
    let found = format!("{:.1} GiB free at {}", available as f64 / f64::from(1 << 30), directory.display());
    check("disk space", preferred(available >= WANTED), found, "an Odoo takes about 1 GiB to begin with; 10 GiB free is a good start")
}

fn pool(config: &Config) -> Check {
    let mounts = std::fs::read_to_string("/proc/mounts").unwrap_or_default();
    let directory = existing_ancestor(&config.pool.path);
    let kind = mounts
        .lines()
        .filter_map(|line| {
            let mut words = line.split(' ').skip(1);
            let mount_point = words.next()?;
            directory.starts_with(mount_point).then_some((mount_point.len(), words.next()?.to_owned()))
        })
        .max()
        .map_or_else(|| "unknown".to_owned(), |(_, kind)| kind);
    let shares_blocks = matches!(kind.as_str(), "xfs" | "btrfs" | "zfs" | "bcachefs");
    if shares_blocks {
        return check("storage pool", State::Ok, format!("{kind} at {}", config.pool.path.display()), "");
    }
    if config.pool.copies == crate::config::Copies::Plain {
        return check(
            "storage pool",
            State::Warning,
            format!("{kind}, plain copies"),
            "copies take the data's full size and time; pool.copies = \"auto\" makes an XFS image",
        );
    }
    check("storage pool", State::Ok, format!("{kind} has no reflinks; an XFS image will be made and mounted"), "")
}

fn distribution(config: &Config) -> Check {
    let installed: Vec<String> = std::fs::read_dir(&config.odoo.directory)
        .into_iter()
        .flatten()
        .flatten()
        .filter(|entry| entry.path().join("distribution.json").is_file())
        .filter_map(|entry| entry.file_name().into_string().ok())
        .chain(config.odoo.distributions.keys().map(ToString::to_string))
        .collect();
    let found = if installed.is_empty() { "none".to_owned() } else { installed.join(", ") };
    check("Odoo", preferred(!installed.is_empty()), found, "ocore odoo install 19.0")
}

/// Odoo's reports.
fn printing() -> Check {
    const NAME: &str = "wkhtmltopdf";
    let advice = "without it Odoo prints no PDF: apt-get install wkhtmltopdf, or its authors' package with the patched Qt";
    let Some(program) = find_program(NAME) else { return check(NAME, State::Warning, "not found", advice) };
    let version = Command::new(&program).arg("--version").env("QT_QPA_PLATFORM", "offscreen").output();
    match version {
        Ok(output) if output.status.success() => {
            let version = String::from_utf8_lossy(&output.stdout).trim().to_owned();
            let patched = version.contains("(with patched qt)");
            check(NAME, State::Ok, if patched { version } else { format!("{version}; oCore adds headers and footers") }, "")
        }
        _ => check(NAME, State::Warning, format!("{program} does not run"), advice),
    }
}

/// What PDFs are set in.
fn fonts() -> Check {
    const NAME: &str = "fonts";
    let has = |language: &str| {
        let output = Command::new("fc-list").arg(format!(":lang={language}")).output();
        output.is_ok_and(|output| !output.stdout.is_empty())
    };
    let lacking: Vec<&str> = [("en", "Latin"), ("ar", "Arabic"), ("he", "Hebrew"), ("zh-cn", "Chinese"), ("ja", "Japanese")]
        .into_iter()
        .filter(|(language, _)| !has(language))
        .map(|(_, name)| name)
        .collect();
    let found = if lacking.is_empty() { "Latin to Japanese".to_owned() } else { format!("none for {}", lacking.join(", ")) };
    let advice = "PDFs show boxes in their place: apt-get install fontconfig fonts-dejavu-core fonts-noto-cjk";
    check(NAME, preferred(lacking.is_empty()), found, advice)
}

fn right_to_left(config: &Config) -> Check {
    let program = tool_directory(&config.odoo.directory).join("rtlcss");
    let is_there = program.is_file();
    let found = if is_there { program.display().to_string() } else { "not found".to_owned() };
    let advice = "without it pages in Arabic, Hebrew or Persian are not mirrored: ocore odoo install 19.0";
    check("rtlcss", preferred(is_there), found, advice)
}

/// Some Python packages are compiled where they are installed.
fn compiler() -> Check {
    let header = Command::new("/usr/bin/python3").args(["-c", "import sysconfig; print(sysconfig.get_path('include'))"]).output();
    let header = header.is_ok_and(|output| Path::new(String::from_utf8_lossy(&output.stdout).trim()).join("Python.h").is_file());
    let compiler = find_program("cc").is_some();
    let found = match (compiler, header) {
        (true, true) => "a C compiler, Python's headers",
        (true, false) => "a C compiler; no headers of Python",
        (false, _) => "no C compiler",
    };
    let advice = "requirements without a ready wheel (python-ldap) cannot be built: apt-get install build-essential python3-dev libldap-dev libsasl2-dev";
    check("building packages", preferred(compiler && header), found, advice)
}

/// It says in a deployment whether scripts are JavaScript.
fn node(config: &Config) -> Check {
    let beside = config.odoo.directory.join("tools/node/bin/node");
    let found = beside.is_file().then(|| beside.display().to_string()).or_else(|| find_program("node"));
    let advice = "whether a project's scripts are JavaScript is not looked at: ocore odoo install 19.0, or apt-get install nodejs";
    check("Node.js", preferred(found.is_some()), found.unwrap_or_else(|| "not found".to_owned()), advice)
}

fn control_groups(config: &Config) -> Check {
    let there = Path::new("/sys/fs/cgroup/cgroup.controllers").exists() || Path::new("/sys/fs/cgroup/memory").exists();
    let limit = config
        .host()
        .limits
        .memory_bytes
        .map(|bytes| format!("; an instance may take {:.1} GiB of memory", bytes as f64 / f64::from(1 << 30)));
    let found = if there { format!("present{}", limit.unwrap_or_default()) } else { "none".to_owned() };
    check("control groups", preferred(there), found, "without them an instance can take all memory of the machine")
}

fn egress(config: &Config) -> Check {
    const NAME: &str = "closed environments";
    if config.egress.enforce == EnforceEgress::Off {
        let advice = "what is not production reaches whatever this machine reaches; egress.enforce = \"required\" closes it";
        return check(NAME, State::Warning, "not enforced: egress.enforce is \"off\"", advice);
    }
    let advice =
        "apt-get install nftables, and run oCore as root with the right to change firewall rules; without it only production starts";
    match Command::new(&config.egress.nft).args(["list", "tables"]).output() {
        Ok(output) if output.status.success() => check(NAME, State::Ok, "nftables refuses what they may not reach", ""),
        Ok(output) => {
            let words = String::from_utf8_lossy(&output.stderr);
            check(NAME, State::Missing, words.lines().next().unwrap_or("nft failed").to_owned(), advice)
        }
        Err(error) => check(NAME, State::Missing, format!("{} cannot be started: {error}", config.egress.nft.display()), advice),
    }
}

fn configuration(loaded: &Loaded) -> Check {
    const NAME: &str = "configuration file";
    let found = loaded.file.as_ref().map_or_else(|| "none; the defaults hold".to_owned(), |file| file.display().to_string());
    match &loaded.trouble {
        None => check(NAME, State::Ok, found, ""),
        Some(trouble) => check(NAME, State::Missing, found, format!("oCore does not start: {trouble}")),
    }
}

/// Whoever may sign up may push code, and that runs here.
fn sign_up(config: &Config) -> Check {
    const NAME: &str = "sign-up";
    if !config.auth.open_signup {
        return check(NAME, State::Ok, "closed: people come by invitation", "");
    }
    if config.listen.ip().is_loopback() && is_loopback_url(&config.public_url) {
        return check(NAME, State::Ok, "open to whoever reaches this machine's loopback addresses", "");
    }
    let advice = "whoever signs up may push code that runs on this machine; auth.open_signup = false leaves invitations as the way in";
    check(NAME, State::Warning, format!("open to everybody who reaches {}", config.public_url), advice)
}

fn is_loopback_url(url: &str) -> bool {
    match url::Url::parse(url).ok().as_ref().and_then(url::Url::host) {
        Some(url::Host::Ipv4(address)) => address.is_loopback(),
        Some(url::Host::Ipv6(address)) => address.is_loopback(),
        Some(url::Host::Domain(name)) => name == "localhost" || name.ends_with(".localhost"),
        None => false,
    }
}

fn names(config: &Config) -> Check {
    let state = match (config.api_lies_among_instances(), config.check_names()) {
        (false, _) => State::Ok,
        (true, Ok(())) => State::Warning,
        (true, Err(_)) => State::Missing,
    };
    let found = format!("the API at {}, instances below {}", config.public_url, config.base_domain);
    check("names", state, found, "give the API a name that does not lie below base_domain: instances may set cookies for all of it")
}

/// Only a browser that knows the base domain as a public suffix keeps the scripts of one instance from setting cookies for all.
fn public_suffix(config: &Config) -> Check {
    const LIST: &str = "/usr/share/publicsuffix/public_suffix_list.dat";
    let base = config.base_domain.trim_matches('.').to_lowercase();
    let listed = || std::fs::read_to_string(LIST).is_ok_and(|list| list.lines().any(|line| line.trim() == base));
    let is_apart = !base.contains('.') || listed();
    let found = if is_apart { format!("{base} is a suffix of its own") } else { format!("{base} is not known to be a public suffix") };
    let advice = "environments of people who do not trust each other need base_domain on the Public Suffix List (docs/install.md)";
    check("cookies of instances", preferred(is_apart), found, advice)
}

/// Passwords of package indexes are for the gateway of builds; a file that everybody reads gives them to every tenant's Odoo as well.
fn pip_settings() -> Check {
    const NAME: &str = "pip's configuration";
    let holds_password = |text: &str| {
        text.split("://").skip(1).any(|rest| rest.split(['/', ' ', '\n']).next().is_some_and(|authority| authority.contains('@')))
    };
    let open = ["/etc/pip.conf", "/etc/xdg/pip/pip.conf"].into_iter().find(|path| {
        let is_read_by_all = std::fs::metadata(path).is_ok_and(|found| found.permissions().mode() & 0o004 != 0);
        is_read_by_all && std::fs::read_to_string(path).is_ok_and(|text| holds_password(&text))
    });
    match open {
        Some(path) => check(
            NAME,
            State::Warning,
            format!("{path} holds a password and everybody reads it, tenants too"),
            format!("chmod 0600 {path}"),
        ),
        None => check(NAME, State::Ok, "no password in it is for everybody to read", ""),
    }
}

fn port(what: &str, address: SocketAddr) -> Check {
    let name = format!("port of the {what}");
    if TcpListener::bind(address).is_ok() {
        return check(&name, State::Ok, format!("{address} is free"), "");
    }
    let answers = TcpStream::connect_timeout(&address, Duration::from_secs(1)).is_ok();
    let found = if answers { format!("{address} is in use") } else { format!("{address} cannot be bound") };
    let advice = "fine when oCore runs already; else set `listen` or `edge.listen` to another address";
    check(&name, State::Warning, found, advice)
}
