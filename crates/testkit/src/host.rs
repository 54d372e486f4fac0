//! A host for tests of the store and the API, where nothing of a machine is needed.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
};

use async_trait::async_trait;
use chrono::{DateTime, Utc};
use ocore_host::{
    Administrator, BuildRelease, ByteStream, CheckImport, DataSource, Distribution, Egress, EgressReport, ExportedFile, Fence, Host,
    HostError, HostFacts, ImportFacts, Inspect, Inspected, InstalledModule, InstanceObservation, KeepTemplate, MailStream, MakeTemplate,
    Neutralize, Neutralized, NewDataSet, NewUpload, ProbedPage, Progress, Proof, Quarantined, Release, ReleaseId, Result, RunModules,
    RunningSlot, ScheduledActions, SetAside, SlotSpec, Snapshot, SnapshotEstimate, Source, SourceId, SpaceReport, TakeSnapshot, TarStream,
    Template, TemplateLimits, UploadPart, UploadedPart, Verification, WriteExport,
};
use ocore_model::{
    edge::{EdgeStatus, RouteTraffic, Wanted},
    ids::{DataSetId, ExportId, ImportId, InstanceId, SnapshotId, TemplateId},
    instance::Color,
    mail::MailboxStatus,
    names::{ModuleName, OdooVersion},
    plan::ModuleDescription,
    rehearsal::Rehearsal,
    route::RouteSnapshot,
};

/// Refuses every call, so that a test that needs a machine fails and does not pass on something made up. It tells facts when a test gives it
/// some.
#[derive(Debug, Clone, Default)]
pub struct NoHost {
    pub facts: Option<HostFacts>,
    /// The socket of a mail catcher that a test has started.
    pub mail: Option<std::path::PathBuf>,
}

fn refuse<T>() -> Result<T> {
    Err(HostError::machine("this test has no machine"))
}

#[async_trait]
impl Host for NoHost {
    async fn facts(&self) -> Result<HostFacts> {
        self.facts.clone().map_or_else(refuse, Ok)
    }

    async fn unpack_source(&self, _: &SourceId, _: &str, _: TarStream) -> Result<()> {
        refuse()
    }

    async fn seal_source(&self, _: &SourceId, _: &[String], _: Progress) -> Result<Source> {
        refuse()
    }

    async fn find_source(&self, _: &SourceId) -> Result<Option<Source>> {
        refuse()
    }

    async fn describe_modules(&self, _: &SourceId, _: &[ModuleName], _: Progress) -> Result<BTreeMap<ModuleName, ModuleDescription>> {
        refuse()
    }

    async fn peek_modules(&self, _: InstanceId, _: DataSetId) -> Result<Option<Vec<InstalledModule>>> {
        refuse()
    }

    /// The one exception: whoever asks for a password is told whose it is.
    async fn administrator(&self, _: InstanceId, _: DataSetId) -> Result<Option<Administrator>> {
        Ok(Some(Administrator { login: "admin".to_owned(), is_active: true, has_second_factor: false }))
    }

    async fn peek_languages(&self, _: InstanceId, _: DataSetId) -> Result<Option<Vec<String>>> {
        refuse()
    }

    async fn keep_copy_warm(&self, _: InstanceId, _: DataSetId, _: Progress) -> Result<()> {
        refuse()
    }

    async fn scheduled_actions(&self, _: InstanceId, _: DataSetId) -> Result<Option<ScheduledActions>> {
        refuse()
    }

    async fn distribution(&self, _: &OdooVersion) -> Result<Distribution> {
        refuse()
    }

    async fn build_release(&self, _: BuildRelease, _: Progress) -> Result<Release> {
        refuse()
    }

    async fn find_release(&self, _: &ReleaseId) -> Result<Option<Release>> {
        refuse()
    }

    async fn packaged_modules(&self, _: &ReleaseId) -> Result<BTreeSet<String>> {
        refuse()
    }

    async fn prune_releases(&self, _: &[ReleaseId]) -> Result<()> {
        refuse()
    }

    async fn create_instance(&self, _: InstanceId, _: Fence) -> Result<()> {
        refuse()
    }

    async fn destroy_instance(&self, _: InstanceId, _: Fence) -> Result<()> {
        refuse()
    }

    async fn prepare_copy(&self, _: InstanceId, _: DataSetId, _: DataSetId, _: Fence, _: Progress) -> Result<()> {
        refuse()
    }

    async fn create_data_set(&self, _: InstanceId, _: DataSetId, _: DataSource, _: Fence, _: Progress) -> Result<NewDataSet> {
        refuse()
    }

    async fn remove_data_set(&self, _: InstanceId, _: DataSetId, _: Fence) -> Result<()> {
        refuse()
    }

    async fn start_cluster(&self, _: InstanceId, _: DataSetId, _: Fence) -> Result<()> {
        refuse()
    }

    async fn stop_cluster(&self, _: InstanceId, _: DataSetId, _: Fence) -> Result<()> {
        refuse()
    }

    async fn installed_modules(&self, _: InstanceId, _: DataSetId, _: Fence) -> Result<Vec<InstalledModule>> {
        refuse()
    }

    async fn run_modules(&self, _: InstanceId, _: RunModules, _: Fence, _: Progress) -> Result<()> {
        refuse()
    }

    async fn update_and_serve(&self, _: InstanceId, _: RunModules, _: SlotSpec, _: Fence, _: Progress) -> Result<RunningSlot> {
        refuse()
    }

    async fn rehearse_modules(&self, _: InstanceId, _: RunModules, _: Fence, _: Progress) -> Result<Rehearsal> {
        refuse()
    }

    async fn probe_slot(&self, _: InstanceId, _: Color, _: &Proof, _: Progress) -> Result<Vec<ProbedPage>> {
        refuse()
    }

    async fn start_slot(&self, _: InstanceId, _: SlotSpec, _: Fence, _: Progress) -> Result<RunningSlot> {
        refuse()
    }

    async fn pause_slot(&self, _: InstanceId, _: Color, _: Fence) -> Result<()> {
        refuse()
    }

    async fn stop_slot(&self, _: InstanceId, _: Color, _: Fence) -> Result<()> {
        refuse()
    }

    async fn take_snapshot(&self, _: TakeSnapshot, _: Progress) -> Result<Snapshot> {
        refuse()
    }

    async fn retire_data_set(&self, _: TakeSnapshot, _: Fence, _: Progress) -> Result<Snapshot> {
        refuse()
    }

    async fn templates(&self, _: Option<&ReleaseId>) -> Result<Vec<Template>> {
        refuse()
    }

    async fn make_template(&self, _: MakeTemplate, _: Progress) -> Result<Template> {
        refuse()
    }

    async fn keep_template(&self, _: InstanceId, _: KeepTemplate, _: Progress) -> Result<Template> {
        refuse()
    }

    async fn prune_templates(&self, _: TemplateLimits) -> Result<Vec<TemplateId>> {
        refuse()
    }

    async fn estimate_snapshot(&self, _: InstanceId, _: DataSetId) -> Result<SnapshotEstimate> {
        refuse()
    }

    async fn snapshots(&self) -> Result<Vec<Snapshot>> {
        refuse()
    }

    async fn verify_snapshot(&self, _: SnapshotId, _: Progress) -> Result<Verification> {
        refuse()
    }

    async fn remove_snapshot(&self, _: SnapshotId) -> Result<()> {
        refuse()
    }

    async fn space(&self) -> Result<SpaceReport> {
        refuse()
    }

    async fn open_upload(&self, _: &NewUpload) -> Result<UploadedPart> {
        refuse()
    }

    async fn append_upload(&self, _: ImportId, _: UploadPart, _: u64, _: ByteStream) -> Result<UploadedPart> {
        refuse()
    }

    async fn upload(&self, _: ImportId) -> Result<Vec<UploadedPart>> {
        refuse()
    }

    async fn uploads(&self) -> Result<Vec<ImportId>> {
        refuse()
    }

    async fn remove_upload(&self, _: ImportId) -> Result<()> {
        refuse()
    }

    async fn check_import(&self, _: CheckImport, _: Progress) -> Result<ImportFacts> {
        refuse()
    }

    async fn write_export(&self, _: InstanceId, _: WriteExport, _: Fence, _: Progress) -> Result<ExportedFile> {
        refuse()
    }

    async fn read_export(&self, _: ExportId, _: u64) -> Result<ByteStream> {
        refuse()
    }

    async fn exports(&self) -> Result<Vec<ExportId>> {
        refuse()
    }

    async fn remove_export(&self, _: ExportId) -> Result<()> {
        refuse()
    }

    async fn neutralize(&self, _: InstanceId, _: Neutralize, _: Fence, _: Progress) -> Result<Neutralized> {
        refuse()
    }

    async fn set_aside(&self, _: InstanceId, _: SetAside, _: Fence) -> Result<Quarantined> {
        refuse()
    }

    async fn quarantined(&self) -> Result<Vec<Quarantined>> {
        refuse()
    }

    async fn inspect_quarantined(&self, _: InstanceId, _: DataSetId, _: Inspect) -> Result<Inspected> {
        refuse()
    }

    async fn remove_quarantined(&self, _: InstanceId, _: DataSetId) -> Result<()> {
        refuse()
    }

    async fn rest_quarantined(&self) -> Result<u32> {
        refuse()
    }

    async fn mail_address(&self, _: InstanceId) -> Result<SocketAddr> {
        refuse()
    }

    async fn mailboxes(&self) -> Result<Vec<MailboxStatus>> {
        refuse()
    }

    async fn set_mailbox(&self, _: InstanceId, _: bool) -> Result<()> {
        refuse()
    }

    async fn catch_mail(&self, _: InstanceId, _: DataSetId) -> Result<Vec<String>> {
        refuse()
    }

    async fn connect_mail(&self) -> Result<MailStream> {
        let Some(socket) = &self.mail else { return refuse() };
        let stream = tokio::net::UnixStream::connect(socket).await;
        Ok(Box::new(stream.map_err(|error| HostError::machine_from("the test's mail catcher does not answer", error))?))
    }

    async fn set_egress(&self, _: InstanceId, _: Egress, _: i64) -> Result<()> {
        refuse()
    }

    async fn egress_report(&self, _: InstanceId) -> Result<EgressReport> {
        refuse()
    }

    async fn enforce_egress(&self) -> Result<bool> {
        refuse()
    }

    async fn observe(&self) -> Result<Vec<InstanceObservation>> {
        refuse()
    }

    async fn odoo_log(&self, _: InstanceId, _: usize, _: bool) -> Result<tokio::sync::mpsc::Receiver<String>> {
        refuse()
    }

    async fn logged_errors(&self, _: InstanceId, _: DateTime<Utc>) -> Result<u64> {
        refuse()
    }

    async fn rotate_logs(&self) -> Result<()> {
        refuse()
    }

    async fn apply_routes(&self, _: RouteSnapshot) -> Result<u64> {
        refuse()
    }

    async fn edge_status(&self) -> Result<EdgeStatus> {
        refuse()
    }

    async fn traffic(&self, _instance: InstanceId) -> Result<Option<RouteTraffic>> {
        refuse()
    }

    async fn all_traffic(&self) -> Result<Vec<RouteTraffic>> {
        refuse()
    }

    async fn wanted(&self, _after: u64) -> Result<Wanted> {
        refuse()
    }

    async fn memory(&self, _instance: InstanceId) -> Result<u64> {
        refuse()
    }
}
