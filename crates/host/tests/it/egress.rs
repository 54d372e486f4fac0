//! What leaves an instance, tried by real processes of its users against the kernel's real rules.

use std::{
    collections::BTreeMap,
    io::{BufRead, BufReader, Read, Write},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    os::fd::OwnedFd,
    process::{Child, Command, Stdio},
    time::Duration,
};

use anyhow::{Context, Result};
use ocore_host::{
    DataSource, Egress, EgressAttempt, Host, HostError, LocalHost,
    local::{
        EnforceEgress,
        exec::{Program, RunAs},
    },
    testing::{Sandbox, fence, progress},
};
use ocore_model::ids::{DataSetId, InstanceId};

/// Tries each `protocol address port` and says how it went. A datagram that is refused fails to be sent.
const PROBE: &str = r#"
import socket, sys
words = sys.argv[1:]
for protocol, address, port in zip(words[0::3], words[1::3], words[2::3]):
    kind = socket.SOCK_STREAM if protocol == "tcp" else socket.SOCK_DGRAM
    probe = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, kind)
    probe.settimeout(20)
    try:
        probe.connect((address, int(port)))
        probe.send(b"x")
        print("passed")
    except OSError as error:
        print(type(error).__name__)
"#;

/// Listens, says so, and answers one connection.
const SERVER: &str = r#"
import socket, sys
listener = socket.socket(fileno=0)
listener.listen()
print("ready", flush=True)
connection, _ = listener.accept()
connection.sendall(connection.recv(100).upper())
connection.close()
"#;

type Target = (&'static str, SocketAddr);

async fn probe(uid: u32, targets: &[Target]) -> Result<Vec<String>> {
    let mut program = Program::new("/usr/bin/python3").args(["-c", PROBE]).run_as(RunAs { uid, gid: uid, groups: Vec::new() });
    for (protocol, address) in targets {
        program = program.args([(*protocol).to_owned(), address.ip().to_string(), address.port().to_string()]);
    }
    let finished = program.run().await?.expect_success("the probe failed")?;
    Ok(finished.stdout_text().lines().map(str::to_owned).collect())
}

async fn passes(uid: u32, target: Target) -> Result<bool> {
    Ok(probe(uid, &[target]).await? == ["passed"])
}

/// Opens one of an instance's ports.
fn listen_at(host: &LocalHost, port: u16) -> Result<()> {
    Ok(rustix::net::listen(&host.ports.hold(port)?, 4)?)
}

fn at(port: u16) -> SocketAddr {
    (Ipv4Addr::LOCALHOST, port).into()
}

fn listen(ip: impl Into<IpAddr>) -> Result<(TcpListener, SocketAddr)> {
    let listener = TcpListener::bind(SocketAddr::new(ip.into(), 0))?;
    let address = listener.local_addr()?;
    Ok((listener, address))
}

fn closed(allow: &[SocketAddr]) -> Egress {
    Egress::Closed { allow: allow.to_vec(), resolve_names: false }
}

async fn new_instance(host: &LocalHost) -> Result<InstanceId> {
    let instance = InstanceId::new();
    host.create_instance(instance, fence(1)).await?;
    Ok(instance)
}

async fn attempts(host: &LocalHost, instance: InstanceId) -> Result<BTreeMap<(String, SocketAddr), u64>> {
    let report = host.egress_report(instance).await?;
    assert!(report.enforced && report.problem.is_none(), "{report:?}");
    Ok(report.attempts.into_iter().map(|EgressAttempt { destination, protocol, packets }| ((protocol, destination), packets)).collect())
}

/// The table of the sandbox, as `nft` prints it; `None` when there is none.
fn table(sandbox: &Sandbox) -> Result<Option<String>> {
    let output = Command::new("nft").args(["list", "table", "inet", &table_name(sandbox)]).output()?;
    Ok(output.status.success().then(|| String::from_utf8_lossy(&output.stdout).into_owned()))
}

fn table_name(sandbox: &Sandbox) -> String {
    format!("ocore{}", sandbox.home().display())
}

fn nft(arguments: &[&str]) -> Result<()> {
    anyhow::ensure!(Command::new("nft").args(arguments).status()?.success(), "nft {arguments:?} failed");
    Ok(())
}

/// Ends with the test.
struct Server(Child);

impl Server {
    /// At the socket of one of the instance's ports.
    fn start(uid: u32, socket: OwnedFd) -> Result<Self> {
        let user = [format!("--reuid={uid}"), format!("--regid={uid}")];
        let mut child = Command::new("setpriv")
            .args(user)
            .args(["--clear-groups", "/usr/bin/python3", "-c", SERVER])
            .stdin(socket)
            .stdout(Stdio::piped())
            .spawn()?;
        let output = child.stdout.take().context("no output")?;
        let mut line = String::new();
        BufReader::new(output).read_line(&mut line)?;
        assert_eq!(line, "ready\n");
        Ok(Self(child))
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn ask(address: SocketAddr) -> Result<String> {
    let mut stream = TcpStream::connect(address)?;
    stream.write_all(b"hello")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok(answer)
}

#[tokio::test]
async fn a_closed_instance_reaches_its_own_ports_its_catcher_and_what_is_allowed_and_the_rest_is_counted() -> Result<()> {
    let sandbox = Sandbox::new()?;
    let host = sandbox.host().await?;
    let (instance, neighbour) = (new_instance(&host).await?, new_instance(&host).await?);
    let own = host.allocation(instance).await?;
    let other = host.allocation(neighbour).await?;
    let (_somebody, somebody) = listen(Ipv4Addr::LOCALHOST)?;
    let (_somebody6, somebody6) = listen(Ipv6Addr::LOCALHOST)?;
    let (_allowed, allowed) = listen(Ipv4Addr::LOCALHOST)?;
    let (_allowed6, allowed6) = listen(Ipv6Addr::LOCALHOST)?;
    for port in [own.mail, other.mail, own.ports.blue.http, other.ports.blue.http] {
        listen_at(&host, port)?;
    }
    // Nobody listens there; the packet must not even leave (RFC 5737).
    let outside: SocketAddr = "203.0.113.1:443".parse()?;

    let refused = [
        ("tcp", somebody),
        ("tcp", somebody6),
        ("udp", somebody),
        ("udp", somebody6),
        ("tcp", allowed),
        ("tcp", outside),
        ("udp", outside),
        ("tcp", at(other.ports.blue.http)),
        ("tcp", other.mail_address()),
    ];
    let expected: Vec<&str> =
        refused.iter().map(|(protocol, _)| if *protocol == "tcp" { "ConnectionRefusedError" } else { "PermissionError" }).collect();
    assert_eq!(probe(own.odoo.uid, &refused).await?, expected, "closed before anybody has said anything");
    assert_eq!(probe(own.odoo.uid, &[("tcp", outside)]).await?, ["ConnectionRefusedError"]);
    assert_eq!(probe(own.odoo.uid, &[("tcp", own.mail_address()), ("tcp", at(own.ports.blue.http))]).await?, ["passed", "passed"]);
    let counted = attempts(&host, instance).await?;
    assert_eq!(counted.len(), refused.len());
    assert!(refused.iter().all(|(protocol, address)| counted.contains_key(&((*protocol).to_owned(), *address))), "{counted:?}");
    assert_eq!(counted[&("tcp".to_owned(), outside)], 2);
    assert_eq!(host.egress_report(instance).await?.attempts[0].destination, outside, "the most frequent first");
    assert!(attempts(&host, neighbour).await?.is_empty());

    host.set_egress(instance, closed(&[allowed, allowed6]), 1).await?;
    assert_eq!(probe(own.odoo.uid, &[("tcp", allowed), ("udp", allowed), ("tcp", allowed6)]).await?, ["passed"; 3]);
    assert!(!passes(own.odoo.uid, ("tcp", somebody)).await?);
    let counted = attempts(&host, instance).await?;
    assert_eq!((counted.len(), counted[&("tcp".to_owned(), somebody)]), (refused.len() - 1, 2), "what is allowed now is no leak any more");

    let database = [("tcp", allowed), ("tcp", own.mail_address()), ("tcp", at(own.ports.blue.http)), ("tcp", somebody)];
    assert_eq!(probe(own.postgres.uid, &database).await?, ["ConnectionRefusedError"; 4], "PostgreSQL needs no network at all");
    Ok(())
}

#[tokio::test]
async fn who_asks_a_closed_instance_gets_its_answer() -> Result<()> {
    let sandbox = Sandbox::new()?;
    let host = sandbox.host().await?;
    let instance = new_instance(&host).await?;
    let own = host.allocation(instance).await?;
    for port in [own.ports.blue.http, own.ports.green.websocket] {
        let _server = Server::start(own.odoo.uid, host.ports.hold(port)?)?;
        assert_eq!(ask(at(port))?, "HELLO");
    }
    Ok(())
}

#[tokio::test]
async fn an_open_instance_reaches_everything_but_its_neighbours_and_its_database_nothing() -> Result<()> {
    let sandbox = Sandbox::new()?;
    let host = sandbox.host().await?;
    let (instance, neighbour) = (new_instance(&host).await?, new_instance(&host).await?);
    host.set_egress(instance, Egress::Open, 1).await?;
    let own = host.allocation(instance).await?;
    let other = host.allocation(neighbour).await?;
    let (_somebody, somebody) = listen(Ipv4Addr::LOCALHOST)?;
    let (_somebody6, somebody6) = listen(Ipv6Addr::LOCALHOST)?;
    let datagrams = UdpSocket::bind(at(0))?;
    for port in [own.ports.green.http, other.ports.green.http] {
        listen_at(&host, port)?;
    }
    let reached = [("tcp", somebody), ("tcp", somebody6), ("udp", datagrams.local_addr()?), ("tcp", at(own.ports.green.http))];
    assert_eq!(probe(own.odoo.uid, &reached).await?, ["passed"; 4]);
    assert!(!passes(own.odoo.uid, ("tcp", at(other.ports.green.http))).await?);
    assert!(!passes(own.postgres.uid, ("tcp", somebody)).await?);
    let counted = attempts(&host, instance).await?;
    assert_eq!(counted.keys().map(|(_, address)| *address).collect::<Vec<_>>(), {
        let mut both = vec![at(other.ports.green.http), somebody];
        both.sort();
        both
    });
    let _server = Server::start(own.odoo.uid, host.ports.hold(own.ports.blue.http)?)?;
    assert_eq!(ask(at(own.ports.blue.http))?, "HELLO");

    host.set_egress(instance, closed(&[]), 2).await?;
    assert!(matches!(host.set_egress(instance, Egress::Open, 1).await, Err(HostError::Fenced { held: 1, newest: 2 })), "it comes too late");
    assert!(attempts(&host, instance).await?.is_empty(), "another kind of policy counts anew");
    assert!(!passes(own.odoo.uid, ("tcp", somebody)).await?);
    Ok(())
}

/// Where clouds answer a machine's own questions, by each of its addresses and both versions of IP.
fn metadata() -> Result<Vec<Target>> {
    let services = [
        "169.254.169.254:80",
        "169.254.170.2:80",
        "100.100.100.200:80",
        "168.63.129.16:32526",
        "192.0.0.192:80",
        "[fd00:ec2::254]:80",
        "[fd20:ce::254]:80",
        "[fd00:42::42]:80",
        "[::ffff:169.254.169.254]:80",
    ];
    services.iter().flat_map(|service| ["tcp", "udp"].map(|protocol| Ok((protocol, service.parse()?)))).collect()
}

#[tokio::test]
async fn nobody_who_runs_a_tenants_code_reaches_a_metadata_service_whatever_somebody_allows() -> Result<()> {
    let sandbox = Sandbox::new()?;
    let host = sandbox.host().await?;
    let instance = new_instance(&host).await?;
    let own = host.allocation(instance).await?;
    let services = metadata()?;
    let allowed: Vec<SocketAddr> = services.iter().map(|(_, address)| *address).collect();
    for (version, egress) in [(1, Egress::Open), (2, closed(&[])), (3, closed(&allowed))] {
        host.set_egress(instance, egress, version).await?;
        for ((protocol, address), outcome) in services.iter().zip(probe(own.odoo.uid, &services).await?) {
            let expected = if *protocol == "tcp" { "ConnectionRefusedError" } else { "PermissionError" };
            // A machine without a way for version 6 says so itself.
            let is_refused = outcome == expected || (address.is_ipv6() && outcome == "OSError");
            assert!(is_refused, "{protocol} {address} with policy {version}: {outcome}");
        }
    }
    host.set_egress(instance, Egress::Open, 4).await?;
    assert!(!passes(own.odoo.uid, ("tcp", services[0].1)).await?);
    assert!(
        attempts(&host, instance).await?.contains_key(&("tcp".to_owned(), services[0].1)),
        "it is counted like everything that is refused"
    );
    let builder = sandbox.config().build_uids.end - 1;
    let (_somebody, somebody) = listen(Ipv4Addr::LOCALHOST)?;
    let outside = [("tcp", "203.0.113.1:443".parse()?), ("tcp", somebody)];
    assert_eq!(probe(builder, &outside).await?, ["ConnectionRefusedError"; 2], "who runs builds has no network at all");
    Ok(())
}

#[tokio::test]
async fn an_operator_can_take_an_address_out_of_what_is_never_reached() -> Result<()> {
    let sandbox = Sandbox::with(|config| {
        config.pool.image = None;
        config.egress.except = vec!["169.254.7.7/32".parse().unwrap()];
    })?;
    // An address of our own, so that somebody listens there.
    let address = ["address", "add", "169.254.7.7/32", "dev", "lo"];
    anyhow::ensure!(Command::new("ip").args(address).status()?.success(), "the address could not be added");
    let outcome = async {
        let host = sandbox.host().await?;
        let (instance, neighbour) = (new_instance(&host).await?, new_instance(&host).await?);
        let (_listener, listening) = listen("169.254.7.7".parse::<IpAddr>()?)?;
        host.set_egress(instance, Egress::Open, 1).await?;
        host.set_egress(neighbour, closed(&[listening]), 1).await?;
        for instance in [instance, neighbour] {
            assert!(passes(host.allocation(instance).await?.odoo.uid, ("tcp", listening)).await?);
        }
        host.set_egress(neighbour, closed(&[]), 2).await?;
        assert!(!passes(host.allocation(neighbour).await?.odoo.uid, ("tcp", listening)).await?, "an exception opens nobody who is closed");
        Ok(())
    }
    .await;
    Command::new("ip").args(["address", "del", "169.254.7.7/32", "dev", "lo"]).status()?;
    outcome
}

#[tokio::test]
async fn a_policy_outlives_the_host_and_rules_that_somebody_removes_come_back() -> Result<()> {
    let sandbox = Sandbox::new()?;
    let host = sandbox.host().await?;
    let (instance, neighbour) = (new_instance(&host).await?, new_instance(&host).await?);
    let own = host.allocation(instance).await?;
    let (_somebody, somebody) = listen(Ipv4Addr::LOCALHOST)?;
    let (_allowed, allowed) = listen(Ipv4Addr::LOCALHOST)?;
    host.set_egress(instance, closed(&[allowed]), 1).await?;
    host.set_egress(neighbour, Egress::Open, 1).await?;
    let looks = [("tcp", allowed), ("tcp", somebody)];
    let expected = ["passed", "ConnectionRefusedError"];
    assert_eq!(probe(own.odoo.uid, &looks).await?, expected);
    drop(host);

    let host = sandbox.host().await?;
    assert_eq!(probe(own.odoo.uid, &looks).await?, expected);
    assert_eq!(attempts(&host, instance).await?[&("tcp".to_owned(), somebody)], 2, "a new host leaves what is right alone");
    assert!(!host.enforce_egress().await?);

    let name = table_name(&sandbox);
    let refuse = format!("refuse_{}", own.odoo.uid);
    let attacks: [&[&str]; 5] = [
        &["delete", "table", "inet", &name],
        &["flush", "table", "inet", &name],
        &["flush", "map", "inet", &name, "owners"],
        &["flush", "chain", "inet", &name, "output"],
        &["flush", "chain", "inet", &name, &refuse],
    ];
    for attack in attacks {
        nft(attack)?;
        assert!(passes(own.odoo.uid, ("tcp", somebody)).await?, "{attack:?} opens it");
        assert!(!host.egress_report(instance).await?.enforced);
        assert!(host.enforce_egress().await?, "{attack:?} is seen");
        assert!(!host.enforce_egress().await?);
        assert_eq!(probe(own.odoo.uid, &looks).await?, expected, "after {attack:?}");
    }
    nft(&["delete", "table", "inet", &name])?;
    let host = sandbox.host().await?;
    assert_eq!(probe(own.odoo.uid, &looks).await?, expected, "as after a restart of the machine");
    assert!(host.egress_report(neighbour).await?.enforced);

    std::fs::write(host.layout.egress_policy(neighbour), "{")?;
    host.enforce_egress().await?;
    let other = host.allocation(neighbour).await?;
    assert!(!passes(other.odoo.uid, ("tcp", somebody)).await?, "a policy that cannot be read closes");
    Ok(())
}

#[tokio::test]
async fn a_destroyed_instance_leaves_no_rule_and_a_purged_home_no_table() -> Result<()> {
    let sandbox = Sandbox::new()?;
    let host = sandbox.host().await?;
    assert_eq!(table(&sandbox)?, None, "nobody needs it yet");
    let (one, two, three) = (new_instance(&host).await?, new_instance(&host).await?, new_instance(&host).await?);
    let uid = host.allocation(one).await?.odoo.uid.to_string();
    assert!(table(&sandbox)?.context("no table")?.contains(&uid));
    host.set_egress(one, closed(&[]), 1).await?;
    host.destroy_instance(one, fence(2)).await?;
    assert!(!table(&sandbox)?.context("no table")?.contains(&uid));
    assert!(!host.layout.egress_policy(one).exists());
    host.destroy_instance(two, fence(1)).await?;
    host.destroy_instance(three, fence(1)).await?;
    assert_eq!(table(&sandbox)?, None);
    let home = table_name(&sandbox);
    new_instance(&host).await?;
    drop(host);
    drop(sandbox);
    assert!(!Command::new("nft").args(["list", "table", "inet", &home]).output()?.status.success());
    Ok(())
}

#[tokio::test]
async fn the_rules_of_a_home_that_is_gone_go_at_the_next_start_of_another() -> Result<()> {
    let (gone, other) = (Sandbox::new()?, Sandbox::new()?);
    let host = gone.host().await?;
    let instance = new_instance(&host).await?;
    let uid = host.allocation(instance).await?.odoo.uid;
    drop(host);
    // Named like one of ours, but not as we name them; and one of others.
    let strangers = ["ocore_vanished", "vanished/srv"];
    for name in strangers {
        nft(&["add", "table", "inet", name])?;
    }
    other.host().await?;
    assert!(table(&gone)?.is_some(), "its home is there");

    let aside = gone.path().join("aside");
    std::fs::rename(gone.home(), &aside)?;
    let mut running = Command::new("setpriv")
        .args([format!("--reuid={uid}"), format!("--regid={uid}")])
        .args(["--clear-groups", "sleep", "600"])
        .spawn()?;
    wait_for_user(uid).await;
    other.host().await?;
    let kept = table(&gone)?.is_some();
    // What has ended and is not reaped yet runs nothing.
    running.kill()?;
    while !has_ended(&running) {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    other.host().await?;
    let removed = table(&gone)?.is_none();
    running.wait()?;
    let untouched = Command::new("nft").args(["list", "tables", "inet"]).output()?;
    for name in strangers {
        nft(&["delete", "table", "inet", name])?;
    }
    std::fs::rename(&aside, gone.home())?;
    assert!(kept, "its users run something");
    assert!(removed, "its home is gone");
    let untouched = String::from_utf8_lossy(&untouched.stdout).into_owned();
    assert!(strangers.iter().all(|name| untouched.contains(name)), "{untouched}");
    Ok(())
}

fn has_ended(child: &Child) -> bool {
    ocore_host::local::process::scan().iter().any(|entry| entry.pid == child.id().cast_signed() && entry.is_dead())
}

/// Until a process has become that user's.
async fn wait_for_user(uid: u32) {
    while !ocore_host::local::process::scan().iter().any(|entry| entry.uid() == Some(uid)) {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test]
async fn without_the_firewall_nothing_of_a_closed_instance_starts_unless_the_operator_says_so() -> Result<()> {
    let sandbox = Sandbox::with(|config| {
        config.pool.image = None;
        config.egress.nft = "/nonexistent/nft".into();
    })?;
    let host = sandbox.host().await?;
    let (instance, data_set) = (new_instance(&host).await?, DataSetId::new());
    host.create_data_set(instance, data_set, DataSource::Fresh, fence(1), progress().0).await?;
    let Err(HostError::Machine { summary, .. }) = host.start_cluster(instance, data_set, fence(1)).await else {
        anyhow::bail!("it started");
    };
    assert!(summary.contains("install the package `nftables`") && summary.contains("egress.enforce"), "{summary}");
    host.set_egress(instance, Egress::Open, 1).await?;
    host.start_cluster(instance, data_set, fence(1)).await?;
    host.stop_cluster(instance, data_set, fence(1)).await?;
    assert!(host.set_egress(instance, closed(&[]), 1).await.is_err());
    assert!(
        host.start_cluster(instance, data_set, fence(1)).await.is_err(),
        "what could not be put into force is written down all the same"
    );
    let report = host.egress_report(instance).await?;
    assert!(!report.enforced && report.problem.is_some_and(|problem| problem.contains("nftables")));
    drop(host);

    let mut config = sandbox.config().clone();
    config.egress.enforce = EnforceEgress::Off;
    let host = LocalHost::open(config).await?;
    host.start_cluster(instance, data_set, fence(1)).await?;
    let report = host.egress_report(instance).await?;
    assert!(!report.enforced && report.problem.is_some_and(|problem| problem.contains("\"off\"")));
    host.destroy_instance(instance, fence(1)).await?;
    Ok(())
}
