//! What an instance's slots have from their start on.

#![expect(clippy::unwrap_used, reason = "a test that cannot look fails")]

use std::{collections::BTreeSet, time::Duration};

use ocore_host::OdooSettings;
use ocore_model::instance::Color;
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
