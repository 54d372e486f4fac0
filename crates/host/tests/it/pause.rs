//! Odoos that stand still while their data are copied.

#![expect(clippy::unwrap_used, reason = "a test that cannot look fails")]

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use ocore_host::{DataSource, Host, OdooSettings, Release, RunningSlot, local::process, testing::progress};
use ocore_model::{ids::DataSetId, instance::Color};
use sqlx::{Connection as _, PgConnection};
use tokio::task::JoinHandle;

use crate::project::{Files, Project, changed, page, parcels};

/// `/write` makes a parcel; `/slow` makes one and keeps its transaction open until it gets an advisory lock.
fn writing() -> Files {
    let controller = "from odoo import http\n\n\nclass Pages(http.Controller):\n    @http.route('/write', auth='public')\n    def write(self):\n        http.request.env['parcels.parcel'].sudo().create({'name': 'written'})\n        return 'written'\n\n    @http.route('/slow', auth='public')\n    def slow(self):\n        http.request.env['parcels.parcel'].sudo().create({'name': 'slow'})\n        http.request.env.flush_all()\n        http.request.env.cr.execute('select pg_advisory_xact_lock(7)')\n        return 'slow'\n";
    let mut files = changed(parcels(), "parcels/__init__.py", "from", "from . import pages\nfrom");
    files.insert("parcels/pages.py".to_owned(), controller.to_owned());
    files
}

/// A project whose blue Odoo serves that, with its data.
async fn serving(settings: OdooSettings) -> (Project, Release, DataSetId, RunningSlot) {
    let (project, release, live) = Project::with_parcels(&writing()).await;
    let slot = project.start_with(Color::Blue, live, &release, settings).await.unwrap();
    (project, release, live, slot)
}

/// Users who write all the time.
struct Writers {
    stop: Arc<AtomicBool>,
    confirmed: Arc<AtomicUsize>,
    failed: Arc<AtomicUsize>,
    tasks: Vec<JoinHandle<()>>,
}

impl Writers {
    fn start(http: SocketAddr) -> Self {
        let (stop, confirmed, failed) = <(Arc<AtomicBool>, Arc<AtomicUsize>, Arc<AtomicUsize>)>::default();
        let tasks = (0..4)
            .map(|_| {
                let (stop, confirmed, failed) = (stop.clone(), confirmed.clone(), failed.clone());
                tokio::spawn(async move {
                    while !stop.load(Ordering::SeqCst) {
                        let counter = if page(http, "/write").await.0 == 200 { &confirmed } else { &failed };
                        counter.fetch_add(1, Ordering::SeqCst);
                    }
                })
            })
            .collect();
        Self { stop, confirmed, failed, tasks }
    }

    /// Until so many more are confirmed.
    async fn goes_on(&self, count: usize) {
        let goal = self.confirmed() + count;
        while self.confirmed() < goal {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    fn confirmed(&self) -> usize {
        self.confirmed.load(Ordering::SeqCst)
    }

    /// How many were confirmed, and how many failed.
    async fn end(self) -> (usize, usize) {
        self.stop.store(true, Ordering::SeqCst);
        for task in self.tasks {
            task.await.unwrap();
        }
        (self.confirmed.load(Ordering::SeqCst), self.failed.load(Ordering::SeqCst))
    }
}

async fn parcels_in(project: &Project, data_set: DataSetId) -> usize {
    let cluster = project.host.run_cluster(project.instance, data_set).await.unwrap();
    let mut connection = cluster.connect_as_owner().await.unwrap();
    let count: i64 = sqlx::query_scalar("select count(*) from parcels_parcel").fetch_one(&mut connection).await.unwrap();
    usize::try_from(count).unwrap()
}

/// `-` when it does not run. Who forked it reaps it in its own time.
fn state(slot: &RunningSlot) -> char {
    process::ProcEntry::read(slot.pid).filter(|entry| !entry.is_dead()).map_or('-', |entry| entry.state)
}

async fn a_copy_has_what_was_written_and_the_odoo_goes_on(workers: u16) {
    let settings = OdooSettings { workers, ..OdooSettings::default() };
    let (project, release, live, slot) = serving(settings.clone()).await;
    let (host, instance) = (&project.host, project.instance);
    let writers = Writers::start(slot.http);
    writers.goes_on(10).await;
    for prepared in [true, false] {
        let (fence, copy) = (project.fence(), DataSetId::new());
        if prepared {
            host.prepare_copy(instance, copy, live, fence, progress().0).await.unwrap();
            assert!(!host.layout.data_set(instance, copy).exists(), "it is not there before it is whole");
            writers.goes_on(10).await;
        }
        let (watched, lines) = progress();
        host.create_data_set(instance, copy, DataSource::CopyOf(live), fence, watched).await.unwrap();
        assert!(!lines.all().concat().contains("made anew"), "{}", lines.all().concat());
        assert_eq!(state(&slot), 'T');
        let (confirmed, written) = (writers.confirmed(), parcels_in(&project, live).await);
        assert_eq!(parcels_in(&project, copy).await, written, "prepared: {prepared}");
        // Four of them may have been written and not told of yet.
        assert!((confirmed..=confirmed + 4).contains(&written), "{written} are there and {confirmed} were confirmed");
        tokio::time::sleep(Duration::from_millis(500)).await;
        assert_eq!((parcels_in(&project, live).await, writers.confirmed()), (written, confirmed), "nothing moves");

        // A call that is repeated finds it paused, and a copy of a data set that stands still is as good.
        host.pause_slot(instance, Color::Blue, fence).await.unwrap();
        host.create_data_set(instance, copy, DataSource::CopyOf(live), fence, progress().0).await.unwrap();
        assert_eq!(parcels_in(&project, copy).await, written);
        let again = project.start_with(Color::Blue, live, &release, settings.clone()).await.unwrap();
        assert_eq!((again.pid, again.started_at), (slot.pid, slot.started_at), "it was not started again");
        writers.goes_on(10).await;
        assert_eq!(parcels_in(&project, copy).await, written, "the copy has a life of its own");
    }
    let (confirmed, failed) = writers.end().await;
    assert_eq!((failed, parcels_in(&project, live).await), (0, confirmed), "who waited was answered");

    // One that is paused is ended without running again.
    let writers = Writers::start(slot.http);
    writers.goes_on(10).await;
    host.pause_slot(instance, Color::Blue, project.fence()).await.unwrap();
    let written = parcels_in(&project, live).await;
    host.stop_slot(instance, Color::Blue, project.fence()).await.unwrap();
    assert_eq!((state(&slot), parcels_in(&project, live).await), ('-', written));
    writers.end().await;
    host.pause_slot(instance, Color::Blue, project.fence()).await.unwrap();
}

#[tokio::test]
async fn a_threaded_odoo_stands_still_between_two_transactions_and_goes_on() {
    a_copy_has_what_was_written_and_the_odoo_goes_on(0).await;
}

#[tokio::test]
async fn an_odoo_with_workers_stands_still_between_two_transactions_and_goes_on() {
    a_copy_has_what_was_written_and_the_odoo_goes_on(2).await;
}

/// Asks for `/slow`, and waits until its transaction has been open for two seconds. It ends when the connection gives its lock away.
async fn goes_slow(project: &Project, live: DataSetId, slot: &RunningSlot) -> (JoinHandle<u16>, PgConnection) {
    let cluster = project.host.run_cluster(project.instance, live).await.unwrap();
    let mut connection = cluster.connect_as_owner().await.unwrap();
    sqlx::query("select pg_advisory_lock(7)").execute(&mut connection).await.unwrap();
    let http = slot.http;
    let slow = tokio::spawn(async move { page(http, "/slow").await.0 });
    let waits =
        "select exists (select from pg_stat_activity where wait_event = 'advisory' and xact_start < clock_timestamp() - interval '2 s')";
    while !sqlx::query_scalar::<_, bool>(waits).fetch_one(&mut connection).await.unwrap() {
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    (slow, connection)
}

#[tokio::test]
async fn a_long_transaction_is_waited_for_before_anybody_has_to_wait() {
    let (project, release, live, slot) = serving(OdooSettings::default()).await;
    let (slow, lock) = goes_slow(&project, live, &slot).await;
    let (fence, copy) = (project.fence(), DataSetId::new());
    let (watched, lines) = progress();
    let prepared = project.host.prepare_copy(project.instance, copy, live, fence, watched);
    let end = async {
        while !lines.all().concat().contains("its end is waited for") {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        lock.close().await.unwrap();
    };
    tokio::join!(prepared, end).0.unwrap();
    project.host.create_data_set(project.instance, copy, DataSource::CopyOf(live), fence, progress().0).await.unwrap();
    assert_eq!(parcels_in(&project, copy).await, 1, "it ended well");
    project.start(Color::Blue, live, &release).await.unwrap();
    assert_eq!(slow.await.unwrap(), 200);
}

#[tokio::test]
async fn a_transaction_that_does_not_end_in_time_is_rolled_back() {
    let (project, release, live, slot) = serving(OdooSettings::default()).await;
    let (slow, _lock) = goes_slow(&project, live, &slot).await;
    let copy = project.data_set(DataSource::CopyOf(live)).await;
    assert_eq!((parcels_in(&project, live).await, parcels_in(&project, copy).await), (0, 0));
    let again = project.start(Color::Blue, live, &release).await.unwrap();
    assert_eq!(again.pid, slot.pid);
    assert!(slow.await.unwrap() >= 500, "whoever waited hears that it failed");
    assert_eq!(page(slot.http, "/write").await.0, 200);
    assert_eq!(parcels_in(&project, live).await, 1);
}

#[tokio::test]
async fn what_was_prepared_goes_with_its_claim_its_data_set_and_its_cluster() {
    let project = Project::new().await;
    let live = project.data_set(DataSource::Fresh).await;
    let (host, instance) = (&project.host, project.instance);
    let cluster = host.run_cluster(instance, live).await.unwrap();
    let mut connection = cluster.connect_as_owner().await.unwrap();
    let slots = "select count(*) from pg_replication_slots";
    let in_the_making = || std::fs::read_dir(host.layout.data_sets(instance)).unwrap().count() - host.data_sets(instance).unwrap().len();
    for end in ["a newer claim", "its removal", "its making"] {
        let (fence, copy) = (project.fence(), DataSetId::new());
        host.prepare_copy(instance, copy, live, fence, progress().0).await.unwrap();
        assert_eq!(sqlx::query_scalar::<_, i64>(slots).fetch_one(&mut connection).await.unwrap(), 1);
        assert_eq!(in_the_making(), 1);
        match end {
            "a newer claim" => host.start_cluster(instance, live, project.fence()).await.unwrap(),
            "its removal" => host.remove_data_set(instance, copy, fence).await.unwrap(),
            _ => drop(host.create_data_set(instance, copy, DataSource::CopyOf(live), fence, progress().0).await.unwrap()),
        }
        assert_eq!(in_the_making(), 0, "{end}");
        // The session's end reaches the server in its own time.
        while sqlx::query_scalar::<_, i64>(slots).fetch_one(&mut connection).await.unwrap() > 0 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    // The cluster dies between the two: a whole copy takes its place.
    let (fence, copy) = (project.fence(), DataSetId::new());
    host.prepare_copy(instance, copy, live, fence, progress().0).await.unwrap();
    connection = {
        drop(connection);
        cluster.find().unwrap().unwrap().stop(&[]).await.unwrap();
        cluster.start().await.unwrap();
        cluster.connect_as_owner().await.unwrap()
    };
    sqlx::query("create table later ()").execute(&mut connection).await.unwrap();
    let (watched, lines) = progress();
    host.create_data_set(instance, copy, DataSource::CopyOf(live), fence, watched).await.unwrap();
    assert!(lines.all().concat().contains("cannot be completed and is made anew"), "{}", lines.all().concat());
    let copied = host.run_cluster(instance, copy).await.unwrap();
    sqlx::query("select from later").execute(&mut copied.connect_as_owner().await.unwrap()).await.unwrap();
}
