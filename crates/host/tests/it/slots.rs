//! What an instance's slots have from their start on.

#![expect(clippy::unwrap_used, reason = "a test that cannot look fails")]

use std::{
    collections::BTreeSet,
    net::SocketAddr,
    process::{Child, Command, Stdio},
    time::Duration,
};

use ocore_host::{Host, OdooSettings};
use ocore_model::instance::Color;
use rustix::process::{Pid, Signal, kill_process};
use serde::Deserialize;
use tokio::net::TcpStream;

use crate::project::{Files, Project, changed, page, parcels};

/// `/state` tells what the worker has that answers it.
fn telling() -> Files {
    let controller = "import json\nimport os\nimport time\n\nfrom odoo import http\nfrom odoo.addons.web.controllers.home import Home\n\nASKED = []\n\n\nclass Pages(Home):\n    @http.route()\n    def web_login(self, *args, **kwargs):\n        ASKED.append(os.getpid())\n        return super().web_login(*args, **kwargs)\n\n    @http.route('/state', auth='public')\n    def state(self):\n        time.sleep(0.1)\n        tree = '_field_triggers' in vars(http.request.env.registry)\n        return json.dumps({'worker': os.getpid(), 'asked': ASKED, 'has_tree': tree})\n";
    let mut files = changed(parcels(), "parcels/__init__.py", "from", "from . import pages\nfrom");
    files.insert("parcels/pages.py".to_owned(), controller.to_owned());
    files
}

#[derive(Deserialize)]
struct State {
    worker: i32,
    asked: Vec<i32>,
    has_tree: bool,
}

/// Of a whole answer.
fn state(answer: &str) -> State {
    serde_json::from_str(answer.rsplit("\r\n").next().unwrap()).unwrap()
}

#[tokio::test]
async fn each_worker_is_warm_when_one_answers_and_beside_another_slot_websockets_have_where_to_go() {
    let (project, release, data_set) = Project::with_parcels(&telling()).await;
    let settings = OdooSettings { workers: 3, ..OdooSettings::default() };
    for color in [Color::Blue, Color::Green] {
        let slot = project.start_with(color, data_set, &release, settings.clone()).await.unwrap();
        if color == Color::Green {
            TcpStream::connect(slot.websocket.unwrap()).await.unwrap();
        }
        let mut workers = BTreeSet::new();
        while workers.len() < 3 {
            for (status, text) in futures::future::join_all((0..6).map(|_| page(slot.http, "/state"))).await {
                assert_eq!(status, 200, "{text}");
                let state = state(&text);
                assert_eq!(state.asked.first(), Some(&slot.pid), "the process that they come from asks itself before they are there");
                assert!(state.asked.contains(&state.worker) && state.has_tree, "{text}");
                workers.insert(state.worker);
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        assert!(!workers.contains(&slot.pid));
    }
}

/// As another tenant's module: tries all the time, in each way there is, to listen at these ports, and answers as a log-in page when it does.
const STAND: &str = r#"
import itertools, select, socket, sys
ports, standing = [int(port) for port in sys.argv[1:]], []
print("ready", flush=True)
while True:
    for port, address, reuse_address, reuse_port in itertools.product(ports, ("127.0.0.1", "0.0.0.0"), (0, 1), (0, 1)):
        attacker = socket.socket()
        attacker.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, reuse_address)
        attacker.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, reuse_port)
        try:
            attacker.bind((address, port))
            attacker.listen()
        except OSError:
            attacker.close()
            continue
        standing.append(attacker)
        print("stands at", port, flush=True)
    for attacker in select.select(standing, [], [], 0)[0]:
        connection, _ = attacker.accept()
        connection.recv(4096)
        connection.sendall(b"HTTP/1.0 200 OK\r\n\r\nthis page is the attacker's")
        connection.close()
"#;

struct Attacker(Child);

impl Attacker {
    fn stand_at(addresses: &[SocketAddr]) -> Self {
        let ports = addresses.iter().map(|address| address.port().to_string());
        let user = ["--reuid=40998", "--regid=40998", "--clear-groups", "/usr/bin/python3", "-c", STAND];
        Self(Command::new("setpriv").args(user).args(ports).stdout(Stdio::piped()).spawn().unwrap())
    }

    /// What it has won.
    fn end(mut self) -> String {
        self.0.kill().unwrap();
        let mut said = String::new();
        std::io::Read::read_to_string(&mut self.0.stdout.take().unwrap(), &mut said).unwrap();
        self.0.wait().unwrap();
        said
    }
}

#[tokio::test]
async fn nobody_else_stands_at_a_slots_ports_before_while_and_after_its_odoo_is_there() {
    let (project, release, data_set) = Project::with_parcels(&parcels()).await;
    let ports = project.host.ledger.find(project.instance).await.unwrap().unwrap().ports;
    let all = [ports.blue.http, ports.blue.websocket, ports.green.http, ports.green.websocket].map(|port| ([127, 0, 0, 1], port).into());
    let attacker = Attacker::stand_at(&all);
    let answers = async |slot: SocketAddr| {
        let (status, text) = page(slot, "/web/login").await;
        assert!(status == 200 && !text.contains("attacker"), "{text}");
    };
    for workers in [0, 2] {
        let settings = OdooSettings { workers, ..OdooSettings::default() };
        let slot = project.start_with(Color::Blue, data_set, &release, settings.clone()).await.unwrap();
        assert_eq!(slot.http.port(), ports.blue.http);
        answers(slot.http).await;
        if let Some(websocket) = slot.websocket {
            while TcpStream::connect(websocket).await.is_err() {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        }
        // Killed with all that it has started: nobody answers, at once, and then it does again.
        for entry in project.host.cgroups.find(project.instance, ocore_host::local::cgroups::Part::Slot(Color::Blue)).processes() {
            let _ = kill_process(Pid::from_raw(entry).unwrap(), Signal::KILL);
        }
        while TcpStream::connect(slot.http).await.is_ok() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        let again = project.start_with(Color::Blue, data_set, &release, settings).await.unwrap();
        assert_eq!(again.http, slot.http);
        answers(again.http).await;
        project.host.stop_slot(project.instance, Color::Blue, project.fence()).await.unwrap();
        assert!(TcpStream::connect(slot.http).await.is_err(), "who comes to a stopped Odoo is refused");
    }
    // Asleep, and with another oCore on this home.
    project.sandbox.host().await.unwrap();
    assert_eq!(attacker.end(), "ready\n");
}
