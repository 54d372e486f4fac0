//! The edge beside nginx and HAProxy with the same job: two workers, kept connections, an access log, one upstream that answers from memory.

use std::{
    fs,
    net::{SocketAddr, TcpListener, TcpStream},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use serde_json::json;
use uuid::Uuid;

use crate::report::{Report, Target, median, rounded};

/// Under load; 8 of each worker.
const CLIENTS: usize = 32;
const HOST: &str = "bench.localhost";
const READY: Duration = Duration::from_secs(20);

pub fn run(binary: PathBuf, rounds: usize, seconds: u64) -> Result<()> {
    for (program, package) in [("nginx", "nginx-light"), ("haproxy", "haproxy"), ("wrk", "wrk")] {
        let found = Command::new("sh").args(["-c", "command -v \"$0\"", program]).stdout(Stdio::null()).status()?;
        ensure!(found.success(), "this bench needs {program}: apt-get install {package}");
    }
    let directory = tempfile::tempdir()?;
    // Where workers that are not root read.
    fs::set_permissions(directory.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755))?;
    let upstream = Server::upstream(directory.path())?;
    let servers = [
        Server::edge(&binary, directory.path(), upstream.address)?,
        Server::nginx(directory.path(), upstream.address)?,
        Server::haproxy(directory.path(), upstream.address)?,
    ];

    let mut report = Report::new("edge");
    for body in ["small", "large"] {
        let mut per_second = vec![Vec::new(); servers.len()];
        let mut p99 = vec![Vec::new(); servers.len()];
        let mut added = vec![Vec::new(); servers.len()];
        for _ in 0..rounds {
            // One client alone: what the way through costs.
            let direct = load(upstream.address, body, 1, seconds)?;
            for (index, server) in servers.iter().enumerate() {
                let busy = load(server.address, body, CLIENTS, seconds)?;
                per_second[index].push(busy.per_second);
                p99[index].push(busy.p99);
                added[index].push(load(server.address, body, 1, seconds)?.p50 - direct.p50);
            }
        }
        let middle = |all: &[Vec<f64>]| all.iter().map(|values| median(values.clone())).collect::<Vec<_>>();
        let (per_second, p99, added) = (middle(&per_second), middle(&p99), middle(&added));
        for (index, server) in servers.iter().enumerate() {
            report.rows.push(json!({
                "server": server.name, "body": body, "per second": rounded(per_second[index]),
                "p99 ms": rounded(p99[index]), "added p50 ms": rounded(added[index]),
            }));
        }
        let better = per_second[1].max(per_second[2]);
        report.targets.push(Target::at_least(
            format!("{body} bodies, throughput beside the better of the others"),
            "ratio",
            per_second[0] / better,
            0.9,
        ));
        report.targets.push(Target::at_most(format!("{body} bodies, added p50"), "ms", added[0], 0.2));
    }
    report.finish()
}

struct Measured {
    per_second: f64,
    p50: f64,
    p99: f64,
}

/// Requests by `wrk`, each client again as soon as it is answered. Milliseconds.
fn load(address: SocketAddr, body: &str, clients: usize, seconds: u64) -> Result<Measured> {
    let output = Command::new("wrk")
        .args(["--latency", "-t", if clients == 1 { "1" } else { "2" }, "-c", &clients.to_string(), "-d", &format!("{seconds}s")])
        .args(["-H", &format!("Host: {HOST}"), &format!("http://{address}/{body}")])
        .output()
        .context("cannot run wrk")?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    ensure!(output.status.success(), "wrk: {}", String::from_utf8_lossy(&output.stderr));
    ensure!(!text.contains("Non-2xx") && !text.contains("Socket errors"), "not every request was answered: {text}");
    let word = |name: &str| {
        text.lines().find_map(|line| line.trim().strip_prefix(name).map(str::trim)).with_context(|| format!("wrk says no {name}: {text}"))
    };
    Ok(Measured { per_second: word("Requests/sec:")?.parse()?, p50: milliseconds(word("50%")?)?, p99: milliseconds(word("99%")?)? })
}

/// `85.00us`, `1.20ms`, `1.03s`.
fn milliseconds(text: &str) -> Result<f64> {
    for (unit, factor) in [("us", 0.001), ("ms", 1.0), ("s", 1000.0)] {
        if let Some(number) = text.strip_suffix(unit) {
            return Ok(number.parse::<f64>()? * factor);
        }
    }
    bail!("wrk says a time as {text}")
}

/// One of the programs that are measured; ends with this.
struct Server {
    name: &'static str,
    address: SocketAddr,
    child: Child,
}

impl Server {
    fn start(name: &'static str, address: SocketAddr, directory: &Path, command: &mut Command) -> Result<Self> {
        let log = fs::File::create(directory.join(format!("{name}.out")))?;
        let child =
            command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log).spawn().with_context(|| format!("cannot start {name}"))?;
        let server = Self { name, address, child };
        let begin = Instant::now();
        while TcpStream::connect(address).is_err() {
            if begin.elapsed() > READY {
                let said = fs::read_to_string(directory.join(format!("{name}.out"))).unwrap_or_default();
                bail!("{name} does not listen at {address}: {said}");
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(server)
    }

    /// Answers with a few bytes, or with 100 kB.
    fn upstream(directory: &Path) -> Result<Self> {
        let files = directory.join("files");
        fs::create_dir(&files)?;
        fs::write(files.join("small"), "Hello from behind\n")?;
        fs::write(files.join("large"), vec![b'x'; 100_000])?;
        let address = free_address()?;
        let server = format!(
            "server {{ listen {address}; root {}; access_log off; open_file_cache max=10 inactive=1h; keepalive_requests 1000000000; }}",
            files.display()
        );
        Self::nginx_with("upstream", address, directory, 1, &server)
    }

    fn nginx(directory: &Path, upstream: SocketAddr) -> Result<Self> {
        let address = free_address()?;
        let server = format!(
            "upstream odoo {{ server {upstream}; keepalive 64; keepalive_requests 1000000000; }}
            server {{
                listen {address};
                access_log {}/nginx.access;
                keepalive_requests 1000000000;
                location / {{
                    proxy_pass http://odoo; proxy_http_version 1.1; proxy_set_header Connection \"\"; proxy_set_header Host $http_host;
                    proxy_set_header X-Forwarded-For $remote_addr; proxy_set_header X-Forwarded-Proto $scheme;
                }}
            }}",
            directory.display()
        );
        Self::nginx_with("nginx", address, directory, 2, &server)
    }

    fn nginx_with(name: &'static str, address: SocketAddr, directory: &Path, workers: usize, server: &str) -> Result<Self> {
        let file = directory.join(format!("{name}.conf"));
        let configuration = format!(
            "daemon off; worker_processes {workers}; pid {directory}/{name}.pid; error_log {directory}/{name}.error;
            events {{ worker_connections 4096; }}
            http {{
                client_body_temp_path {directory}/{name}.body; proxy_temp_path {directory}/{name}.proxy;
                fastcgi_temp_path {directory}/{name}.fastcgi; uwsgi_temp_path {directory}/{name}.uwsgi; scgi_temp_path {directory}/{name}.scgi;
                sendfile on; tcp_nodelay on;
                {server}
            }}\n",
            directory = directory.display()
        );
        fs::write(&file, configuration)?;
        Self::start(name, address, directory, Command::new("nginx").arg("-c").arg(&file))
    }

    fn haproxy(directory: &Path, upstream: SocketAddr) -> Result<Self> {
        let (address, file) = (free_address()?, directory.join("haproxy.conf"));
        let configuration = format!(
            "global
                nbthread 2
                log stdout format raw local0
            defaults
                mode http
                log global
                option httplog
                option forwardfor
                http-reuse safe
                timeout connect 5s
                timeout client 60s
                timeout server 60s
            frontend world
                bind {address}
                default_backend odoo
            backend odoo
                server one {upstream}\n"
        );
        fs::write(&file, configuration.lines().map(|line| line.trim_start_matches("            ")).collect::<Vec<_>>().join("\n") + "\n")?;
        Self::start("haproxy", address, directory, Command::new("haproxy").arg("-db").arg("-f").arg(&file))
    }

    fn edge(binary: &Path, directory: &Path, upstream: SocketAddr) -> Result<Self> {
        let (address, home) = (free_address()?, directory.join("home"));
        fs::create_dir_all(home.join("edge"))?;
        let route = json!({
            "instanceId": Uuid::now_v7(), "hosts": [HOST], "title": "Bench",
            "state": { "kind": "serving", "http": upstream, "websocket": null },
        });
        fs::write(home.join("edge/routes.json"), json!({ "generation": 1, "routes": [route] }).to_string())?;
        let mut command = Command::new(binary);
        command.arg("edge").env("OCORE__HOME", &home).env("OCORE__EDGE__LISTEN", address.to_string());
        Self::start("edge", address, directory, &mut command)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // Not SIGKILL, which nginx's workers would outlive.
        let _ = Command::new("kill").args(["-TERM", &self.child.id().to_string()]).status();
        let _ = self.child.wait();
    }
}

fn free_address() -> Result<SocketAddr> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?)
}
