//! The one way of a build to the network: a program of ours that asks package indexes for it (`gateway.py` has its own rules).
//!
//! pip must reach an index, and pip runs the projects' own code: build back ends, also just to learn what a package depends on. So pip gets a network
//! namespace in which nothing is but this gateway. It runs as a user of its own, which runs nobody's code, and it alone knows the names and passwords of
//! indexes and proxies. It ends when we do: the other end of its input is ours.

use std::{
    collections::BTreeSet,
    io::Write,
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use serde::Serialize;
use tokio::sync::watch;
use tokio_util::task::AbortOnDropHandle;

use crate::{
    api::{LogSink, Progress},
    error::{HostError, Result},
    local::{
        LocalHost,
        build_users::BuildUser,
        config::EnforceEgress,
        durable::blocking,
        exec::Program,
        networks::{NEVER, PRIVATE, PlaceHost},
        pip::{Settings, redact},
    },
};

const GATEWAY: &str = include_str!("gateway.py");
const PYTHON: &str = "/usr/bin/python3";
/// In a namespace where nobody else listens. No index or repository of an operator has this address.
const ADDRESS: &str = "127.0.0.41";
const PORT: u16 = 3141;
/// It starts in a fraction of a second.
const START_TIME: Duration = Duration::from_secs(60);
/// The kernel keeps as much for who has not read yet; nobody names as many hosts.
const HOSTS: usize = 200;

/// A host and a port that the requirements of a project name.
pub(super) type NamedHost = (String, u16);

#[derive(Debug, Serialize)]
struct HostAndPort {
    host: String,
    port: Option<u16>,
}

/// What `gateway.py` is told.
#[derive(Serialize)]
struct Wanted<'a> {
    user: u32,
    address: &'a str,
    port: u16,
    indexes: &'a [String],
    pages: &'a [String],
    certificate: Option<&'a str>,
    client_certificate: Option<&'a str>,
    trusted: Vec<&'a str>,
    proxies: std::collections::BTreeMap<&'static str, &'a str>,
    without_proxy: &'a str,
    /// Those that a project names; only when they are public.
    hosts: Vec<HostAndPort>,
    /// Those that the operator allows.
    allow: Vec<HostAndPort>,
    networks: Vec<HostAndPort>,
    any_public: bool,
    /// What is not public.
    closed: Vec<&'static str>,
}

/// A gateway that runs, until this value is dropped.
pub(super) struct Gateway {
    settings: Settings,
    indexes: Vec<String>,
    pages: Vec<String>,
    /// Of the namespace that a build enters.
    network: PathBuf,
    heard: Arc<Heard>,
    _running: AbortOnDropHandle<()>,
    _open: std::io::PipeWriter,
}

impl LocalHost {
    /// A gateway for one build. Without the rules that keep it from this machine's own places none is started, unless the operator does without rules.
    pub(super) async fn start_gateway(&self, user: &BuildUser, hosts: &BTreeSet<NamedHost>, progress: &Progress) -> Result<Gateway> {
        let config = &self.config.builds;
        let settings = Settings::read(&config.pip);
        let fetcher = self.ledger.allocate_fetcher().await?;
        self.fetch_places.look_up(&settings, config).await;
        if self.config.egress.enforce == EnforceEgress::Required {
            self.put_egress_into_force().await?;
        }
        let (indexes, pages) = (settings.indexes(), settings.pages());
        let place = |host: &str, port: Option<u16>| HostAndPort { host: host.to_owned(), port };
        let allowed = |pick: fn(&PlaceHost) -> Option<String>| {
            config.allow.iter().filter_map(move |allowed| Some(place(&pick(&allowed.host)?, allowed.port))).collect::<Vec<_>>()
        };
        let wanted = Wanted {
            user: fetcher.uid,
            address: ADDRESS,
            port: PORT,
            indexes: &indexes,
            pages: &pages,
            certificate: settings.certificate(),
            client_certificate: settings.client_certificate(),
            trusted: settings.trusted(),
            proxies: settings.proxies(),
            without_proxy: settings.without_proxy(),
            hosts: hosts.iter().take(HOSTS).map(|(host, port)| place(host, Some(*port))).collect(),
            allow: allowed(|host| match host {
                PlaceHost::Name(name) => Some(name.clone()),
                _ => None,
            }),
            networks: allowed(|host| match host {
                PlaceHost::Network(network) => Some(network.to_string()),
                _ => None,
            }),
            any_public: config.allow.iter().any(|allowed| allowed.host == PlaceHost::AnyPublic),
            closed: NEVER.into_iter().chain(PRIVATE).collect(),
        };
        let failed = |error| HostError::machine_from("the gateway of a build could not be started", error);
        let mut input = serde_json::to_vec(&wanted).map_err(|error| failed(error.into()))?;
        input.push(b'\n');
        let (reader, mut open) = std::io::pipe().map_err(failed)?;
        let heard = Arc::new(Heard::default());
        let started = Program::new(PYTHON)
            .args(["-I", "-S", "-c", GATEWAY])
            .beside_build(user)
            .stdin_from(reader)
            .lines(Arc::<Heard>::clone(&heard))
            .cancel(progress.cancel.clone())
            .start()?;
        let pid = started.identity().map(|identity| identity.pid);
        let running = Arc::clone(&heard);
        let running = AbortOnDropHandle::new(tokio::spawn(async move {
            if let Err(error) = started.finish().await {
                tracing::debug!(%error, "the gateway of a build has ended");
            }
            running.ended();
        }));
        let open = blocking(move || {
            open.write_all(&input).map_err(failed)?;
            Ok(open)
        })
        .await?;
        let ready = tokio::time::timeout(START_TIME, heard.ready()).await.ok().flatten();
        let (Some(descriptor), Some(pid)) = (ready, pid) else {
            let said = redact(&heard.said().join("; "));
            return Err(HostError::machine(format!(
                "the gateway of a build does not start: {said}; see whether {PYTHON} is Python 3.9 or newer"
            )));
        };
        let network = PathBuf::from(format!("/proc/{pid}/fd/{descriptor}"));
        Ok(Gateway { settings, indexes, pages, network, heard, _running: running, _open: open })
    }
}

impl Gateway {
    /// In the gateway's network, and told to ask it, and nobody else.
    pub(super) fn told(&self, program: Program) -> Program {
        let here = format!("http://{ADDRESS}:{PORT}");
        let mut program = program.in_network(&self.network);
        for (name, value) in self.settings.for_builds() {
            program = program.env(name, value);
        }
        let mut places = (0..self.indexes.len()).map(|number| format!("{here}/index/{number}/"));
        if let Some(first) = places.next() {
            let others: Vec<String> = places.collect();
            program = program.env("PIP_INDEX_URL", first).env("PIP_EXTRA_INDEX_URL", others.join(" "));
        }
        let links =
            self.settings.directories().into_iter().map(str::to_owned).chain((0..self.pages.len()).map(|n| format!("{here}/links/{n}/")));
        let links: Vec<String> = links.collect();
        if !links.is_empty() {
            program = program.env("PIP_FIND_LINKS", links.join(" "));
        }
        for name in ["http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"] {
            program = program.env(name, &here);
        }
        // It waits longer than the gateway does. Its files for the whole machine hold what no build may see.
        program.env("no_proxy", ADDRESS).env("NO_PROXY", ADDRESS).env("PIP_DEFAULT_TIMEOUT", "90").env("PIP_CONFIG_FILE", "/dev/null")
    }

    /// For the lines of a build: with the indexes' own addresses, and without names and passwords.
    pub(super) fn sink(&self, log: &Arc<dyn LogSink>) -> Arc<dyn LogSink> {
        Arc::new(Shown { names: self.names(), log: Arc::clone(log) })
    }

    /// The same for a text.
    pub(super) fn shown(&self, text: &str) -> String {
        show(text, &self.names())
    }

    fn names(&self) -> Vec<(String, String)> {
        let named = |kind: &str, urls: &[String]| -> Vec<(String, String)> {
            let place = |(number, url): (usize, &String)| (format!("http://{ADDRESS}:{PORT}/{kind}/{number}/"), redact(url));
            urls.iter().enumerate().map(place).collect()
        };
        [named("index", &self.indexes), named("links", &self.pages)].concat()
    }

    /// What of the operator's could not be reached, and why.
    pub(super) fn unreachable(&self, hosts: &BTreeSet<NamedHost>) -> Option<String> {
        let said = self.heard.said();
        let mut found = said.iter().filter_map(|line| line.strip_prefix("unreachable ")?.split_once(' '));
        let (host, reason) = found.find(|(host, _)| !hosts.iter().any(|(named, _)| named == host))?;
        Some(redact(&format!("{host}: {reason}")))
    }

    /// Places that the build tried and may not reach.
    pub(super) fn refused(&self) -> Vec<String> {
        self.heard.said().iter().filter_map(|line| line.strip_prefix("refused ")).map(str::to_owned).collect()
    }
}

/// What the gateway says.
#[derive(Default)]
struct Heard {
    lines: Mutex<Vec<String>>,
    state: watch::Sender<State>,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
enum State {
    #[default]
    Starting,
    /// With this descriptor of the namespace.
    Ready(u32),
    Ended,
}

impl Heard {
    /// The descriptor of the namespace; `None` when it ended without.
    async fn ready(&self) -> Option<u32> {
        match *self.state.subscribe().wait_for(|state| *state != State::Starting).await.ok()? {
            State::Ready(descriptor) => Some(descriptor),
            State::Starting | State::Ended => None,
        }
    }

    fn ended(&self) {
        self.state.send_replace(State::Ended);
    }

    fn said(&self) -> Vec<String> {
        self.lines.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl LogSink for Heard {
    fn line(&self, text: &str) {
        if let Some(descriptor) = text.strip_prefix("ready ").and_then(|word| word.parse().ok()) {
            self.state.send_replace(State::Ready(descriptor));
            return;
        }
        let mut lines = self.lines.lock().unwrap_or_else(PoisonError::into_inner);
        if lines.len() < 100 {
            lines.push(text.to_owned());
        }
    }
}

struct Shown {
    names: Vec<(String, String)>,
    log: Arc<dyn LogSink>,
}

impl LogSink for Shown {
    fn line(&self, text: &str) {
        self.log.line(&show(text, &self.names));
    }
}

fn show(text: &str, names: &[(String, String)]) -> String {
    let files = format!("http://{ADDRESS}:{PORT}/files/");
    let mut text = redact(text);
    for (here, there) in names {
        text = text.replace(here, there);
    }
    // What follows is the number of a link, and then the file's name.
    while let Some(at) = text.find(&files) {
        let number = text[at + files.len()..].find(|character: char| !character.is_ascii_digit()).unwrap_or(0);
        let end = at + files.len() + number;
        let end = if text[end..].starts_with('/') { end + 1 } else { end };
        text.replace_range(at..end, "");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_name_the_indexes_and_not_the_gateway() {
        let names = vec![("http://127.0.0.41:3141/index/0/".to_owned(), redact("https://me:secret@pypi.example/simple"))];
        let line =
            "Looking in indexes: http://127.0.0.41:3141/index/0/, Downloading http://127.0.0.41:3141/files/12/a-1-py3-none-any.whl (1 kB)";
        assert_eq!(show(line, &names), "Looking in indexes: https://****@pypi.example/simple, Downloading a-1-py3-none-any.whl (1 kB)");
    }
}
