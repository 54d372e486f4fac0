//! The door: each call of [`Host`] takes its claim and goes to the module of its noun.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
};

use async_trait::async_trait;
use chrono::{DateTime, Utc};
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

use super::{LocalHost, copy, imports};
use crate::{
    api::{
        BuildRelease, ByteStream, CheckImport, DataSource, Distribution, Egress, EgressReport, ExportedFile, Fence, Host, HostFacts,
        ImportFacts, Inspect, Inspected, InstalledModule, InstanceObservation, KeepTemplate, MailStream, MakeTemplate, Neutralize,
        Neutralized, NewDataSet, NewUpload, ProbedPage, Progress, Quarantined, Release, ReleaseId, RunModules, RunningSlot,
        ScheduledActions, SetAside, SlotSpec, Snapshot, SnapshotEstimate, Source, SourceId, SpaceReport, TakeSnapshot, TarStream, Template,
        TemplateLimits, UploadPart, UploadedPart, Verification, WriteExport,
    },
    error::Result,
};

#[async_trait]
impl Host for LocalHost {
    async fn facts(&self) -> Result<HostFacts> {
        self.gather_facts().await
    }

    async fn unpack_source(&self, source: &SourceId, prefix: &str, tar: TarStream) -> Result<()> {
        self.unpack(source, prefix, tar).await
    }

    async fn seal_source(&self, source: &SourceId, submodules: &[String], progress: Progress) -> Result<Source> {
        self.seal(source, submodules, &progress).await
    }

    async fn find_source(&self, source: &SourceId) -> Result<Option<Source>> {
        self.sealed(source).await
    }

    async fn describe_modules(
        &self,
        source: &SourceId,
        modules: &[ModuleName],
        progress: Progress,
    ) -> Result<BTreeMap<ModuleName, ModuleDescription>> {
        self.read_declarations(source, modules, &progress).await
    }

    async fn distribution(&self, version: &OdooVersion) -> Result<Distribution> {
        Ok(self.installed_distribution(version).await?.distribution)
    }

    async fn build_release(&self, request: BuildRelease, progress: Progress) -> Result<Release> {
        self.build(&request, &progress).await
    }

    async fn find_release(&self, release: &ReleaseId) -> Result<Option<Release>> {
        Ok(self.release(release)?.map(|record| record.release))
    }

    async fn packaged_modules(&self, release: &ReleaseId) -> Result<BTreeSet<String>> {
        self.modules_of_packages(release)
    }

    async fn prune_releases(&self, keep: &[ReleaseId]) -> Result<()> {
        self.prune(keep).await
    }

    async fn create_instance(&self, instance: InstanceId, fence: Fence) -> Result<()> {
        let claim = self.claim(instance, fence).await?;
        claim.run(self.make_instance(&claim)).await
    }

    async fn destroy_instance(&self, instance: InstanceId, fence: Fence) -> Result<()> {
        let claim = self.claim(instance, fence).await?;
        claim.run(self.remove_instance(&claim)).await
    }

    async fn prepare_copy(&self, instance: InstanceId, data_set: DataSetId, of: DataSetId, fence: Fence, progress: Progress) -> Result<()> {
        let claim = self.claim(instance, fence).await?;
        claim.run(self.prepare(instance, data_set, of, &progress)).await
    }

    async fn create_data_set(
        &self,
        instance: InstanceId,
        data_set: DataSetId,
        source: DataSource,
        fence: Fence,
        progress: Progress,
    ) -> Result<NewDataSet> {
        let claim = self.claim(instance, fence).await?;
        claim.run(self.make_data_set(&claim, data_set, source, &progress)).await
    }

    async fn remove_data_set(&self, instance: InstanceId, data_set: DataSetId, fence: Fence) -> Result<()> {
        let claim = self.claim(instance, fence).await?;
        claim.run(self.delete_data_set(&claim, data_set)).await
    }

    async fn start_cluster(&self, instance: InstanceId, data_set: DataSetId, fence: Fence) -> Result<()> {
        let claim = self.claim(instance, fence).await?;
        claim.run(self.run_cluster(instance, data_set)).await.map(drop)
    }

    async fn stop_cluster(&self, instance: InstanceId, data_set: DataSetId, fence: Fence) -> Result<()> {
        let claim = self.claim(instance, fence).await?;
        claim.run(self.halt_cluster(instance, data_set)).await
    }

    async fn installed_modules(&self, instance: InstanceId, data_set: DataSetId, fence: Fence) -> Result<Vec<InstalledModule>> {
        let claim = self.claim(instance, fence).await?;
        claim.run(self.modules_in_database(&claim, data_set)).await
    }

    async fn peek_modules(&self, instance: InstanceId, data_set: DataSetId) -> Result<Option<Vec<InstalledModule>>> {
        self.modules_if_running(instance, data_set).await
    }

    async fn peek_languages(&self, instance: InstanceId, data_set: DataSetId) -> Result<Option<Vec<String>>> {
        self.languages_if_running(instance, data_set).await
    }

    async fn keep_copy_warm(&self, instance: InstanceId, data_set: DataSetId, progress: Progress) -> Result<()> {
        self.warm_up_copy(instance, data_set, &progress).await
    }

    async fn scheduled_actions(&self, instance: InstanceId, data_set: DataSetId) -> Result<Option<ScheduledActions>> {
        self.scheduled_actions_if_running(instance, data_set).await
    }

    async fn run_modules(&self, instance: InstanceId, request: RunModules, fence: Fence, progress: Progress) -> Result<()> {
        let claim = self.claim(instance, fence).await?;
        claim.run(self.install_and_update(&claim, &request, &progress)).await.map(drop)
    }

    async fn update_and_serve(
        &self,
        instance: InstanceId,
        request: RunModules,
        slot: SlotSpec,
        fence: Fence,
        progress: Progress,
    ) -> Result<RunningSlot> {
        let claim = self.claim(instance, fence).await?;
        // As with `start_slot`: it ends what it has started.
        self.update_then_serve(&claim, &request, &slot, &progress).await
    }

    async fn rehearse_modules(&self, instance: InstanceId, request: RunModules, fence: Fence, progress: Progress) -> Result<Rehearsal> {
        let claim = self.claim(instance, fence).await?;
        claim.run(self.rehearse(&claim, &request, &progress)).await
    }

    async fn start_slot(&self, instance: InstanceId, slot: SlotSpec, fence: Fence, progress: Progress) -> Result<RunningSlot> {
        let claim = self.claim(instance, fence).await?;
        // It looks for a newer claim itself, and ends what it has started.
        self.serve(&claim, &slot, &progress).await
    }

    async fn probe_slot(&self, instance: InstanceId, color: Color, paths: &[String], progress: Progress) -> Result<Vec<ProbedPage>> {
        self.probe(instance, color, paths, &progress).await
    }

    async fn pause_slot(&self, instance: InstanceId, color: Color, fence: Fence) -> Result<()> {
        let claim = self.claim(instance, fence).await?;
        claim.run(self.rest_slot(&claim, color)).await
    }

    async fn stop_slot(&self, instance: InstanceId, color: Color, fence: Fence) -> Result<()> {
        let claim = self.claim(instance, fence).await?;
        claim.run(self.end_slot(&claim, color)).await
    }

    async fn take_snapshot(&self, request: TakeSnapshot, progress: Progress) -> Result<Snapshot> {
        self.take(&request, &progress).await
    }

    async fn retire_data_set(&self, request: TakeSnapshot, fence: Fence, progress: Progress) -> Result<Snapshot> {
        let claim = self.claim(request.instance, fence).await?;
        claim.run(self.retire(&claim, &request, &progress)).await
    }

    async fn templates(&self, release: Option<&ReleaseId>) -> Result<Vec<Template>> {
        match release {
            Some(release) => self.templates_for(release).await,
            None => self.whole_templates().await,
        }
    }

    async fn make_template(&self, request: MakeTemplate, progress: Progress) -> Result<Template> {
        self.make_shared_template(&request, &progress).await
    }

    async fn keep_template(&self, instance: InstanceId, request: KeepTemplate, progress: Progress) -> Result<Template> {
        self.keep_project_template(instance, &request, &progress).await
    }

    async fn prune_templates(&self, limits: TemplateLimits) -> Result<Vec<TemplateId>> {
        self.evict_templates(&limits).await
    }

    async fn estimate_snapshot(&self, instance: InstanceId, data_set: DataSetId) -> Result<SnapshotEstimate> {
        self.estimate(instance, data_set).await
    }

    async fn snapshots(&self) -> Result<Vec<Snapshot>> {
        self.whole_snapshots()
    }

    async fn verify_snapshot(&self, snapshot: SnapshotId, progress: Progress) -> Result<Verification> {
        self.verify(snapshot, &progress).await
    }

    async fn remove_snapshot(&self, snapshot: SnapshotId) -> Result<()> {
        self.delete_snapshot(snapshot).await
    }

    async fn space(&self) -> Result<SpaceReport> {
        self.measure_space().await
    }

    async fn open_upload(&self, upload: &NewUpload) -> Result<UploadedPart> {
        self.begin_upload(upload).await
    }

    async fn append_upload(&self, import: ImportId, part: UploadPart, offset: u64, body: ByteStream) -> Result<UploadedPart> {
        self.receive(import, part, offset, body).await
    }

    async fn upload(&self, import: ImportId) -> Result<Vec<UploadedPart>> {
        self.uploaded_parts(import).await
    }

    async fn uploads(&self) -> Result<Vec<ImportId>> {
        Ok(imports::names_in(&self.layout.uploads()))
    }

    async fn remove_upload(&self, import: ImportId) -> Result<()> {
        self.drop_upload(import).await
    }

    async fn check_import(&self, request: CheckImport, progress: Progress) -> Result<ImportFacts> {
        self.check_upload(&request, &progress).await
    }

    async fn write_export(&self, instance: InstanceId, request: WriteExport, fence: Fence, progress: Progress) -> Result<ExportedFile> {
        let claim = self.claim(instance, fence).await?;
        claim.run(self.export(&claim, &request, &progress)).await
    }

    async fn read_export(&self, export: ExportId, offset: u64) -> Result<ByteStream> {
        self.open_export(export, offset).await
    }

    async fn exports(&self) -> Result<Vec<ExportId>> {
        Ok(imports::names_in(&self.layout.exports()))
    }

    async fn remove_export(&self, export: ExportId) -> Result<()> {
        copy::remove(&self.layout.export(export)).await
    }

    async fn neutralize(&self, instance: InstanceId, request: Neutralize, fence: Fence, progress: Progress) -> Result<Neutralized> {
        let claim = self.claim(instance, fence).await?;
        claim.run(self.make_harmless(&claim, &request, &progress)).await
    }

    async fn set_aside(&self, instance: InstanceId, request: SetAside, fence: Fence) -> Result<Quarantined> {
        let claim = self.claim(instance, fence).await?;
        claim.run(self.put_aside(&claim, &request)).await
    }

    async fn quarantined(&self) -> Result<Vec<Quarantined>> {
        self.all_quarantined().await
    }

    async fn inspect_quarantined(&self, instance: InstanceId, data_set: DataSetId, question: Inspect) -> Result<Inspected> {
        self.ask_quarantined(instance, data_set, &question).await
    }

    async fn remove_quarantined(&self, instance: InstanceId, data_set: DataSetId) -> Result<()> {
        self.delete_quarantined(instance, data_set).await
    }

    async fn rest_quarantined(&self) -> Result<u32> {
        self.stop_forgotten_questions().await
    }

    async fn mail_address(&self, instance: InstanceId) -> Result<SocketAddr> {
        Ok(self.allocation(instance).await?.mail_address())
    }

    async fn mailboxes(&self) -> Result<Vec<MailboxStatus>> {
        self.mail.mailboxes().await
    }

    async fn set_mailbox(&self, instance: InstanceId, wanted: bool) -> Result<()> {
        if wanted { self.make_mailbox(instance).await } else { self.remove_mailbox(instance).await }
    }

    async fn catch_mail(&self, instance: InstanceId, data_set: DataSetId) -> Result<Vec<String>> {
        self.catch_mail_of(instance, data_set).await
    }

    async fn connect_mail(&self) -> Result<MailStream> {
        self.mail.connect().await
    }

    async fn set_egress(&self, instance: InstanceId, egress: Egress, version: i64) -> Result<()> {
        self.change_egress(instance, egress, version).await
    }

    async fn egress_report(&self, instance: InstanceId) -> Result<EgressReport> {
        self.report_egress(instance).await
    }

    async fn enforce_egress(&self) -> Result<bool> {
        self.put_egress_into_force().await
    }

    async fn observe(&self) -> Result<Vec<InstanceObservation>> {
        self.observe_instances().await
    }

    async fn memory(&self, instance: InstanceId) -> Result<u64> {
        self.memory_of(instance).await
    }

    async fn odoo_log(&self, instance: InstanceId, lines: usize, follow: bool) -> Result<tokio::sync::mpsc::Receiver<String>> {
        self.read_log(instance, lines, follow).await
    }

    async fn logged_errors(&self, instance: InstanceId, since: DateTime<Utc>) -> Result<u64> {
        self.count_errors(instance, since).await
    }

    async fn rotate_logs(&self) -> Result<()> {
        self.pool.tend().await?;
        self.rotate().await
    }

    async fn apply_routes(&self, snapshot: RouteSnapshot) -> Result<u64> {
        self.edge.apply_routes(&snapshot).await
    }

    async fn edge_status(&self) -> Result<EdgeStatus> {
        self.edge.status().await
    }

    async fn traffic(&self, instance: InstanceId) -> Result<Option<RouteTraffic>> {
        self.edge.traffic(instance).await
    }

    async fn all_traffic(&self) -> Result<Vec<RouteTraffic>> {
        self.edge.all_traffic().await
    }

    async fn wanted(&self, after: u64) -> Result<Wanted> {
        self.edge.wanted(after).await
    }
}
