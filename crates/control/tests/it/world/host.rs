//! What the machine in memory does when it is called: the promises of [`Host`], kept in tables.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
};

use async_trait::async_trait;
use chrono::{DateTime, Utc};
use ocore_host::{
    BuildRelease, ByteStream, CheckImport, DataSource, Distribution, Egress, EgressReport, ExportedFile, Fence, Host, HostError, HostFacts,
    ImportFacts, Inspect, Inspected, InstalledModule, InstanceObservation, KeepTemplate, MailStream, MakeTemplate, NeutralizationReport,
    Neutralize, Neutralized, NewDataSet, NewUpload, PoolFacts, ProbedPage, Progress, Quarantined, Release, ReleaseId, Result, RunModules,
    RunningSlot, ScheduledActions, ServableDataSet, SetAside, SlotSpec, Snapshot, SnapshotEstimate, Source, SourceId, SourceModule,
    SpaceReport, Standing, TakeSnapshot, TarStream, Template, TemplateContent, TemplateLimits, UploadPart, UploadedPart, Usage,
    Verification, WriteExport,
};
use ocore_model::{
    edge::{EdgeStatus, RouteTraffic, Wanted},
    ids::{DataSetId, ExportId, ImportId, InstanceId, SnapshotId, TemplateId},
    instance::Color,
    mail::{MailboxSpec, MailboxStatus},
    names::{ModuleName, OdooVersion},
    odoo_options::OdooOptions,
    plan::ModuleDescription,
    project::DeploySettings,
    rehearsal::Rehearsal,
    route::RouteSnapshot,
};
use tokio::io::AsyncReadExt;

use super::{DATABASE_BYTES, FILE_STORE_BYTES, MAIL_PORT, World};

#[async_trait]
impl Host for World {
    async fn facts(&self) -> Result<HostFacts> {
        let pool = PoolFacts { path: String::new(), file_system: "memory".to_owned(), reflinks: false, total_bytes: 0, available_bytes: 0 };
        let (hostname, os_name) = ("world".to_owned(), "a table in memory".to_owned());
        Ok(HostFacts { hostname, os_name, os_version: String::new(), cpu_cores: 0, ram_total_bytes: 0, pool, distributions: Vec::new() })
    }

    /// The tree of a test's commit is one file, `modules.json`.
    async fn unpack_source(&self, source: &SourceId, _: &str, mut tar: TarStream) -> Result<()> {
        let mut bytes = Vec::new();
        tar.read_to_end(&mut bytes).await.map_err(|error| HostError::machine_from("the stream broke", error))?;
        let text = String::from_utf8_lossy(&bytes);
        let start = text.find('[').unwrap_or(0);
        let end = text.rfind(']').map_or(start, |end| end + 1);
        let modules: Vec<(String, String)> = serde_json::from_str(&text[start..end]).unwrap_or_default();
        let modules = modules
            .into_iter()
            .map(|(name, digest)| SourceModule {
                name: name.parse().unwrap(),
                path: name,
                in_submodule: false,
                installable: true,
                auto_install: false,
                triggers: None,
                version: "19.0.1.0.0".to_owned(),
                depends: vec!["base".to_owned()],
                digest,
            })
            .collect();
        let sealed = Source {
            id: source.clone(),
            modules,
            requirements: Vec::new(),
            requirements_digest: String::new(),
            deploy: DeploySettings::default(),
            odoo: OdooOptions::default(),
            renamed: BTreeMap::new(),
            notes: Vec::new(),
            bytes: 1,
        };
        self.state().sources.insert(source.clone(), sealed);
        Ok(())
    }

    async fn seal_source(&self, source: &SourceId, _: &[String], progress: Progress) -> Result<Source> {
        self.enter("seal_source", false, Some(&progress.cancel)).await?;
        self.find_source(source).await?.ok_or_else(|| HostError::NotFound { what: "source", id: source.to_string() })
    }

    async fn find_source(&self, source: &SourceId) -> Result<Option<Source>> {
        Ok(self.state().sources.get(source).cloned())
    }

    /// By the digest: a module whose digest begins with `code` has other code each time, and always the same data.
    async fn describe_modules(
        &self,
        source: &SourceId,
        modules: &[ModuleName],
        _: Progress,
    ) -> Result<BTreeMap<ModuleName, ModuleDescription>> {
        let source = self.find_source(source).await?.ok_or_else(|| HostError::NotFound { what: "source", id: source.to_string() })?;
        let wanted = source.modules.into_iter().filter(|module| modules.contains(&module.name));
        let describe = |module: SourceModule| {
            let what = if module.digest.starts_with("code") { "functions" } else { "constants" };
            let said = serde_json::json!({ "it": { "body": module.digest, "source": module.digest } });
            let content = serde_json::json!({ "kind": "python", what: said });
            let files = serde_json::json!({ "__init__.py": { "digest": module.digest, "content": content } });
            (module.name, serde_json::from_value(serde_json::json!({ "manifest": {}, "files": files })).unwrap())
        };
        Ok(wanted.map(describe).collect())
    }

    async fn peek_modules(&self, instance: InstanceId, data_set: DataSetId) -> Result<Option<Vec<InstalledModule>>> {
        let world = self.instance(instance);
        Ok(world.clusters.contains(&data_set).then(|| world.modules(data_set)))
    }

    async fn peek_languages(&self, instance: InstanceId, data_set: DataSetId) -> Result<Option<Vec<String>>> {
        Ok(self.instance(instance).clusters.contains(&data_set).then(|| vec!["en_US".to_owned()]))
    }

    async fn keep_copy_warm(&self, _: InstanceId, _: DataSetId, _: Progress) -> Result<()> {
        self.enter("keep_copy_warm", false, None).await
    }

    async fn scheduled_actions(&self, instance: InstanceId, data_set: DataSetId) -> Result<Option<ScheduledActions>> {
        let actions = self.state().scheduled_actions;
        Ok(self.instance(instance).clusters.contains(&data_set).then_some(actions))
    }

    async fn distribution(&self, version: &OdooVersion) -> Result<Distribution> {
        self.enter("distribution", false, None).await?;
        Ok(Distribution { odoo_version: version.clone(), id: "odoo".to_owned(), modules: vec!["base".parse().unwrap()] })
    }

    async fn build_release(&self, request: BuildRelease, progress: Progress) -> Result<Release> {
        progress.log.line("building");
        self.enter("build_release", false, Some(&progress.cancel)).await?;
        let source = self.find_source(&request.source).await?.unwrap();
        let release = Release {
            id: ReleaseId(request.source.0.clone()),
            source: request.source,
            odoo_version: request.odoo_version,
            distribution_id: "odoo".to_owned(),
            modules: source.modules.into_iter().map(|module| (module.name, module.digest)).collect(),
        };
        self.state().releases.insert(release.id.clone(), release.clone());
        self.enter("build_release", true, Some(&progress.cancel)).await?;
        Ok(release)
    }

    async fn find_release(&self, release: &ReleaseId) -> Result<Option<Release>> {
        Ok(self.state().releases.get(release).cloned())
    }

    async fn packaged_modules(&self, _: &ReleaseId) -> Result<BTreeSet<String>> {
        Ok(BTreeSet::new())
    }

    async fn prune_releases(&self, _: &[ReleaseId]) -> Result<()> {
        Ok(())
    }

    async fn create_instance(&self, instance: InstanceId, fence: Fence) -> Result<()> {
        self.enter("create_instance", false, None).await?;
        self.state().instances.entry(instance).or_default();
        self.fenced(instance, fence, |_| Ok(()))
    }

    async fn destroy_instance(&self, instance: InstanceId, fence: Fence) -> Result<()> {
        self.enter("destroy_instance", false, None).await?;
        if !self.knows(instance) {
            return Ok(());
        }
        self.fenced(instance, fence, |_| Ok(()))?;
        self.state().instances.remove(&instance);
        Ok(())
    }

    async fn prepare_copy(&self, instance: InstanceId, _: DataSetId, of: DataSetId, fence: Fence, progress: Progress) -> Result<()> {
        self.enter("prepare_copy", false, Some(&progress.cancel)).await?;
        self.fenced(instance, fence, |world| {
            assert!(world.data_sets.contains_key(&of), "a copy of a data set that is there");
            assert!(world.paused.is_empty(), "nobody waits while a copy is prepared");
            Ok(())
        })
    }

    async fn create_data_set(
        &self,
        instance: InstanceId,
        data_set: DataSetId,
        source: DataSource,
        fence: Fence,
        progress: Progress,
    ) -> Result<NewDataSet> {
        self.fenced(instance, fence, |_| Ok(()))?;
        self.enter("create_data_set", false, Some(&progress.cancel)).await?;
        let kept = match source {
            DataSource::Taken { .. } if self.instance(instance).data_sets.contains_key(&data_set) => None,
            DataSource::Snapshot { snapshot, .. } | DataSource::Taken { snapshot } => {
                Some(self.snapshot(snapshot).ok_or_else(|| HostError::NotFound { what: "snapshot", id: snapshot.to_string() })?)
            }
            DataSource::Import { .. } => return Err(HostError::machine("no test needs imports in memory yet")),
            DataSource::Fresh | DataSource::CopyOf(_) | DataSource::Rehearsal { .. } | DataSource::Template { .. } => None,
        };
        let template = match source {
            DataSource::Template { template } => {
                let mut state = self.state();
                if state.damaged.remove(&template) {
                    state.templates.remove(&template);
                }
                let found = state.templates.get(&template).map(|(_, done)| done.clone());
                Some(found.ok_or_else(|| HostError::NotFound { what: "template", id: template.to_string() })?)
            }
            _ => None,
        };
        let made = self.fenced(instance, fence, |world| {
            let (content, standing) = match (source, kept) {
                (DataSource::CopyOf(original), _) => {
                    let users = world.slots.iter().filter(|(_, (used, _))| *used == original).map(|(color, _)| *color);
                    world.paused.extend(users);
                    world.data_sets.remove(&data_set);
                    let content = world.data_sets.get(&original).cloned().expect("a copy of a data set that is there");
                    (content, world.standing(original))
                }
                (DataSource::Taken { .. }, None) => return Ok(world.make(data_set, Vec::new(), world.standing(data_set))),
                (DataSource::Rehearsal { of }, _) => {
                    (world.data_sets.get(&of).cloned().expect("a copy of a data set that is there"), Standing::Raw)
                }
                (DataSource::Snapshot { .. } | DataSource::Taken { .. }, Some((manifest, content))) => {
                    let as_own = matches!(source, DataSource::Snapshot { as_own: true, .. });
                    let standing = match manifest.standing {
                        Standing::Own if manifest.instance == instance => Standing::Own,
                        Standing::Own | Standing::Raw if as_own => Standing::Own,
                        Standing::Own | Standing::Raw => Standing::Raw,
                        Standing::Neutralized => Standing::Neutralized,
                    };
                    (content, standing)
                }
                _ => (template.unwrap_or_default(), Standing::Own),
            };
            Ok(world.make(data_set, content, standing))
        })?;
        if let DataSource::Taken { snapshot } = source {
            self.state().snapshots.remove(&snapshot);
        }
        self.enter("create_data_set", true, Some(&progress.cancel)).await?;
        Ok(made)
    }

    async fn remove_data_set(&self, instance: InstanceId, data_set: DataSetId, fence: Fence) -> Result<()> {
        self.enter("remove_data_set", false, None).await?;
        self.fenced(instance, fence, |world| {
            world.forget(data_set);
            Ok(())
        })
    }

    async fn start_cluster(&self, instance: InstanceId, data_set: DataSetId, fence: Fence) -> Result<()> {
        self.fenced(instance, fence, |world| {
            world.clusters.insert(data_set);
            Ok(())
        })
    }

    async fn stop_cluster(&self, instance: InstanceId, data_set: DataSetId, fence: Fence) -> Result<()> {
        self.enter("stop_cluster", false, None).await?;
        self.fenced(instance, fence, |world| {
            world.clusters.remove(&data_set);
            Ok(())
        })
    }

    async fn installed_modules(&self, instance: InstanceId, data_set: DataSetId, fence: Fence) -> Result<Vec<InstalledModule>> {
        self.enter("installed_modules", false, None).await?;
        self.fenced(instance, fence, |world| Ok(world.modules(data_set)))
    }

    async fn run_modules(&self, instance: InstanceId, request: RunModules, fence: Fence, progress: Progress) -> Result<()> {
        progress.log.line("odoo runs");
        self.enter("run_modules", false, Some(&progress.cancel)).await?;
        self.fenced(instance, fence, |world| {
            let done = world.data_sets.get_mut(&request.data_set).expect("modules run in a data set that is there");
            done.extend(request.install.iter().map(|name| format!("installed {name}")));
            done.extend(request.update.iter().map(|name| format!("updated {name}")));
            Ok(())
        })?;
        self.enter("run_modules", true, Some(&progress.cancel)).await
    }

    async fn update_and_serve(
        &self,
        instance: InstanceId,
        request: RunModules,
        slot: SlotSpec,
        fence: Fence,
        progress: Progress,
    ) -> Result<RunningSlot> {
        self.run_modules(instance, request, fence, progress.clone()).await?;
        self.start_slot(instance, slot, fence, progress).await
    }

    async fn rehearse_modules(&self, instance: InstanceId, request: RunModules, fence: Fence, progress: Progress) -> Result<Rehearsal> {
        self.enter("rehearse_modules", false, Some(&progress.cancel)).await?;
        self.fenced(instance, fence, |world| {
            assert_eq!(world.standing(request.data_set), Standing::Raw, "what is rehearsed on is thrown away");
            let done = world.data_sets.get_mut(&request.data_set).expect("modules run in a data set that is there");
            done.extend(request.update.iter().map(|name| format!("updated {name}")));
            Ok(())
        })?;
        self.enter("rehearse_modules", true, Some(&progress.cancel)).await?;
        Ok(self.state().rehearsal.clone())
    }

    async fn probe_slot(&self, instance: InstanceId, color: Color, paths: &[String], progress: Progress) -> Result<Vec<ProbedPage>> {
        self.enter("probe_slot", false, Some(&progress.cancel)).await?;
        assert!(self.instance(instance).slots.contains_key(&color), "a slot that runs is asked");
        Ok(paths.iter().map(|path| ProbedPage { path: path.clone(), status: 200, seconds: 0.0 }).collect())
    }

    async fn start_slot(&self, instance: InstanceId, slot: SlotSpec, fence: Fence, progress: Progress) -> Result<RunningSlot> {
        self.fenced(instance, fence, |_| Ok(()))?;
        self.enter("start_slot", false, Some(&progress.cancel)).await?;
        self.fenced(instance, fence, |world| {
            assert!(world.data_sets.contains_key(&slot.data_set.id()), "a slot on a data set that is not there");
            if world.standing(slot.data_set.id()) == Standing::Raw {
                return Err(HostError::machine("a raw copy is not served"));
            }
            world.clusters.insert(slot.data_set.id());
            world.slots.insert(slot.color, (slot.data_set.id(), slot.release.clone()));
            world.paused.remove(&slot.color);
            Ok(())
        })?;
        self.state().started.entry(instance).or_default().push(slot.settings.clone());
        self.enter("start_slot", true, Some(&progress.cancel)).await?;
        Ok(RunningSlot {
            color: slot.color,
            data_set: slot.data_set.id(),
            release: slot.release,
            http: Self::address(slot.color),
            websocket: None,
            takes_turns: true,
            pid: 1,
            started_at: Utc::now(),
        })
    }

    async fn pause_slot(&self, instance: InstanceId, color: Color, fence: Fence) -> Result<()> {
        self.enter("pause_slot", false, None).await?;
        self.fenced(instance, fence, |world| {
            world.paused.extend(world.slots.contains_key(&color).then_some(color));
            Ok(())
        })
    }

    async fn stop_slot(&self, instance: InstanceId, color: Color, fence: Fence) -> Result<()> {
        self.enter("stop_slot", false, None).await?;
        self.fenced(instance, fence, |world| {
            world.slots.remove(&color);
            world.paused.remove(&color);
            Ok(())
        })
    }

    async fn take_snapshot(&self, request: TakeSnapshot, progress: Progress) -> Result<Snapshot> {
        self.enter("take_snapshot", false, Some(&progress.cancel)).await?;
        let taken = self.keep(&request, true)?;
        self.enter("take_snapshot", true, Some(&progress.cancel)).await?;
        Ok(taken)
    }

    async fn retire_data_set(&self, request: TakeSnapshot, fence: Fence, progress: Progress) -> Result<Snapshot> {
        self.fenced(request.instance, fence, |_| Ok(()))?;
        self.enter("retire_data_set", false, Some(&progress.cancel)).await?;
        let taken = self.keep(&request, false)?;
        self.fenced(request.instance, fence, |world| {
            world.forget(request.data_set);
            Ok(())
        })?;
        self.enter("retire_data_set", true, Some(&progress.cancel)).await?;
        Ok(taken)
    }

    async fn templates(&self, _: Option<&ReleaseId>) -> Result<Vec<Template>> {
        self.enter("templates", false, None).await?;
        Ok(self.state().templates.values().map(|(template, _)| template.clone()).collect())
    }

    async fn make_template(&self, request: MakeTemplate, progress: Progress) -> Result<Template> {
        self.enter("make_template", false, Some(&progress.cancel)).await?;
        let from = request.from.and_then(|from| self.state().templates.get(&from).map(|(_, done)| done.clone()));
        let done = from.into_iter().flatten().chain(request.modules.iter().map(|name| format!("installed {name}"))).collect();
        let content = TemplateContent {
            distribution_id: "odoo".to_owned(),
            with_demo: request.with_demo,
            isolation_key: None,
            requested: request.modules.clone(),
            environment: None,
            modules: BTreeMap::new(),
        };
        let template = self.store_template(content, request.modules, done);
        self.enter("make_template", true, Some(&progress.cancel)).await?;
        Ok(template)
    }

    async fn keep_template(&self, instance: InstanceId, request: KeepTemplate, progress: Progress) -> Result<Template> {
        self.enter("keep_template", false, Some(&progress.cancel)).await?;
        let release = self.state().releases.get(&request.release).cloned().expect("a release that is there");
        let done = self.instance(instance).data_sets.get(&request.data_set).cloned().expect("a data set");
        let content = TemplateContent {
            distribution_id: release.distribution_id,
            with_demo: request.with_demo,
            isolation_key: Some(request.isolation_key),
            requested: request.requested,
            environment: None,
            modules: release.modules,
        };
        Ok(self.store_template(content, request.standard, done))
    }

    async fn prune_templates(&self, limits: TemplateLimits) -> Result<Vec<TemplateId>> {
        let mut state = self.state();
        let is_orphan = |template: &Template| template.content.isolation_key.as_ref().is_some_and(|key| !limits.keys.contains(key));
        let gone: Vec<TemplateId> =
            state.templates.values().filter(|(template, _)| is_orphan(template)).map(|(template, _)| template.id).collect();
        state.templates.retain(|id, _| !gone.contains(id));
        Ok(gone)
    }

    async fn estimate_snapshot(&self, instance: InstanceId, data_set: DataSetId) -> Result<SnapshotEstimate> {
        self.enter("estimate_snapshot", false, None).await?;
        if !self.instance(instance).data_sets.contains_key(&data_set) {
            return Err(HostError::NotFound { what: "data set", id: data_set.to_string() });
        }
        Ok(SnapshotEstimate {
            database_bytes: DATABASE_BYTES,
            file_store_bytes: FILE_STORE_BYTES,
            file_store_files: 3,
            needed_bytes: 4096,
            available_bytes: 1 << 40,
        })
    }

    async fn snapshots(&self) -> Result<Vec<Snapshot>> {
        self.enter("snapshots", false, None).await?;
        let mut snapshots: Vec<Snapshot> = self.state().snapshots.values().map(|(manifest, _)| manifest.clone()).collect();
        snapshots.sort_by_key(|manifest| manifest.taken_at);
        Ok(snapshots)
    }

    async fn verify_snapshot(&self, snapshot: SnapshotId, progress: Progress) -> Result<Verification> {
        self.enter("verify_snapshot", false, Some(&progress.cancel)).await?;
        self.snapshot(snapshot).ok_or_else(|| HostError::NotFound { what: "snapshot", id: snapshot.to_string() })?;
        Ok(Verification { checked_files: 3, damaged: Vec::new() })
    }

    async fn remove_snapshot(&self, snapshot: SnapshotId) -> Result<()> {
        self.enter("remove_snapshot", false, None).await?;
        self.state().snapshots.remove(&snapshot);
        Ok(())
    }

    async fn space(&self) -> Result<SpaceReport> {
        let state = self.state();
        let usage = Usage { referenced_bytes: DATABASE_BYTES + FILE_STORE_BYTES, exclusive_bytes: 4096 };
        Ok(SpaceReport {
            instances: state.instances.keys().map(|instance| (*instance, usage)).collect(),
            snapshots: state.snapshots.keys().map(|snapshot| (*snapshot, usage)).collect(),
            pool_total_bytes: 1 << 40,
            pool_available_bytes: 1 << 39,
        })
    }

    async fn open_upload(&self, _: &NewUpload) -> Result<UploadedPart> {
        Err(HostError::machine("no test needs imports and exports in memory yet"))
    }

    async fn append_upload(&self, _: ImportId, _: UploadPart, _: u64, _: ByteStream) -> Result<UploadedPart> {
        Err(HostError::machine("no test needs imports and exports in memory yet"))
    }

    async fn upload(&self, _: ImportId) -> Result<Vec<UploadedPart>> {
        Err(HostError::machine("no test needs imports and exports in memory yet"))
    }

    async fn uploads(&self) -> Result<Vec<ImportId>> {
        Ok(Vec::new())
    }

    async fn remove_upload(&self, _: ImportId) -> Result<()> {
        Err(HostError::machine("no test needs imports and exports in memory yet"))
    }

    async fn check_import(&self, _: CheckImport, _: Progress) -> Result<ImportFacts> {
        Err(HostError::machine("no test needs imports and exports in memory yet"))
    }

    async fn write_export(&self, _: InstanceId, _: WriteExport, _: Fence, _: Progress) -> Result<ExportedFile> {
        Err(HostError::machine("no test needs imports and exports in memory yet"))
    }

    async fn read_export(&self, _: ExportId, _: u64) -> Result<ByteStream> {
        Err(HostError::machine("no test needs imports and exports in memory yet"))
    }

    async fn exports(&self) -> Result<Vec<ExportId>> {
        Ok(Vec::new())
    }

    async fn remove_export(&self, _: ExportId) -> Result<()> {
        Err(HostError::machine("no test needs imports and exports in memory yet"))
    }

    async fn neutralize(&self, instance: InstanceId, request: Neutralize, fence: Fence, progress: Progress) -> Result<Neutralized> {
        self.fenced(instance, fence, |_| Ok(()))?;
        self.enter("neutralize", false, Some(&progress.cancel)).await?;
        let data_set = request.data_set.id();
        self.fenced(instance, fence, |world| {
            let done = world.data_sets.get_mut(&data_set).expect("a raw copy that is there");
            if done.last().is_none_or(|last| last != "neutralized") {
                done.push("neutralized".to_owned());
            }
            world.standings.insert(data_set, Standing::Neutralized);
            Ok(())
        })?;
        self.enter("neutralize", true, Some(&progress.cancel)).await?;
        Ok(Neutralized { data_set: ServableDataSet::proven(data_set), report: NeutralizationReport::default() })
    }

    async fn set_aside(&self, instance: InstanceId, request: SetAside, fence: Fence) -> Result<Quarantined> {
        self.fenced(instance, fence, |_| Ok(()))?;
        self.enter("set_aside", false, None).await?;
        let data_set = request.data_set.id();
        let aside = self.fenced(instance, fence, |world| {
            if let Some(found) = world.quarantined.get(&data_set) {
                return Ok(found.clone());
            }
            if !world.data_sets.contains_key(&data_set) {
                return Err(HostError::NotFound { what: "data set", id: data_set.to_string() });
            }
            assert_ne!(world.standing(data_set), Standing::Own, "an instance's own data are never set aside");
            world.forget(data_set);
            let aside = Quarantined {
                instance,
                data_set,
                source: DataSource::Fresh,
                reason: request.reason,
                since: Utc::now(),
                database_bytes: DATABASE_BYTES,
                file_store_bytes: FILE_STORE_BYTES,
                file_store_files: 3,
                report: None,
            };
            world.quarantined = BTreeMap::from([(data_set, aside.clone())]);
            Ok(aside)
        })?;
        self.enter("set_aside", true, None).await?;
        Ok(aside)
    }

    async fn quarantined(&self) -> Result<Vec<Quarantined>> {
        Ok(self.state().instances.values().flat_map(|world| world.quarantined.values().cloned()).collect())
    }

    /// The database of every copy answers the same.
    async fn inspect_quarantined(&self, instance: InstanceId, data_set: DataSetId, question: Inspect) -> Result<Inspected> {
        self.enter("inspect_quarantined", false, None).await?;
        if !self.instance(instance).quarantined.contains_key(&data_set) {
            return Err(HostError::NotFound { what: "quarantined copy", id: data_set.to_string() });
        }
        Ok(Inspected { columns: vec!["asked".to_owned()], rows: vec![vec![Some(question.sql)]], truncated: false })
    }

    async fn remove_quarantined(&self, instance: InstanceId, data_set: DataSetId) -> Result<()> {
        self.enter("remove_quarantined", false, None).await?;
        if let Some(world) = self.state().instances.get_mut(&instance) {
            world.quarantined.remove(&data_set);
        }
        Ok(())
    }

    async fn rest_quarantined(&self) -> Result<u32> {
        Ok(0)
    }

    async fn mail_address(&self, instance: InstanceId) -> Result<SocketAddr> {
        if !self.knows(instance) {
            return Err(HostError::NotFound { what: "instance", id: instance.to_string() });
        }
        Ok(SocketAddr::from(([127, 0, 0, 1], MAIL_PORT)))
    }

    async fn mailboxes(&self) -> Result<Vec<MailboxStatus>> {
        let state = self.state();
        let caught = state.instances.iter().filter(|(_, world)| world.mailbox);
        let spec = MailboxSpec { port: MAIL_PORT, uid: 0 };
        Ok(caught.map(|(instance, _)| MailboxStatus { instance: *instance, spec, problem: None }).collect())
    }

    async fn set_mailbox(&self, instance: InstanceId, wanted: bool) -> Result<()> {
        match self.state().instances.get_mut(&instance) {
            Some(world) => world.mailbox = wanted,
            None => return Err(HostError::NotFound { what: "instance", id: instance.to_string() }),
        }
        Ok(())
    }

    async fn catch_mail(&self, _: InstanceId, _: DataSetId) -> Result<Vec<String>> {
        Ok(Vec::new())
    }

    async fn connect_mail(&self) -> Result<MailStream> {
        Err(HostError::machine("there is no catcher in memory"))
    }

    async fn set_egress(&self, instance: InstanceId, egress: Egress, _: i64) -> Result<()> {
        self.enter("set_egress", false, None).await?;
        match self.state().instances.get_mut(&instance) {
            Some(world) => world.egress = Some(egress),
            None => return Err(HostError::NotFound { what: "instance", id: instance.to_string() }),
        }
        Ok(())
    }

    async fn egress_report(&self, instance: InstanceId) -> Result<EgressReport> {
        if !self.knows(instance) {
            return Err(HostError::NotFound { what: "instance", id: instance.to_string() });
        }
        Ok(EgressReport { enforced: true, ..EgressReport::default() })
    }

    async fn enforce_egress(&self) -> Result<bool> {
        Ok(false)
    }

    async fn observe(&self) -> Result<Vec<InstanceObservation>> {
        Ok(self
            .state()
            .instances
            .iter()
            .map(|(instance, world)| InstanceObservation {
                instance: *instance,
                data_sets: world.data_sets.keys().copied().collect(),
                clusters: world.clusters.iter().copied().collect(),
                slots: world
                    .slots
                    .iter()
                    .map(|(color, (data_set, release))| RunningSlot {
                        color: *color,
                        data_set: *data_set,
                        release: release.clone(),
                        http: Self::address(*color),
                        websocket: None,
                        takes_turns: true,
                        pid: 1,
                        started_at: Utc::now(),
                    })
                    .collect(),
                memory_kills: 0,
            })
            .collect())
    }

    async fn odoo_log(&self, _: InstanceId, _: usize, _: bool) -> Result<tokio::sync::mpsc::Receiver<String>> {
        Err(HostError::machine("this machine has no logs"))
    }

    async fn logged_errors(&self, _: InstanceId, _: DateTime<Utc>) -> Result<u64> {
        Ok(self.state().logged_errors)
    }

    async fn rotate_logs(&self) -> Result<()> {
        Ok(())
    }

    async fn apply_routes(&self, snapshot: RouteSnapshot) -> Result<u64> {
        self.enter("apply_routes", false, None).await?;
        let mut state = self.state();
        if let Some(newest) = state.routes.as_ref().map(|routes| routes.generation).filter(|newest| *newest > snapshot.generation) {
            return Err(HostError::Fenced { held: snapshot.generation as i64, newest: newest as i64 });
        }
        let generation = snapshot.generation;
        state.routes = Some(snapshot);
        Ok(generation)
    }

    async fn edge_status(&self) -> Result<EdgeStatus> {
        self.enter("edge_status", false, None).await?;
        let (traffic, started) = {
            let state = self.state();
            (state.traffic.clone(), state.edge_started)
        };
        Ok(EdgeStatus {
            generation: self.routes().map_or(0, |routes| routes.generation),
            started_at: started.unwrap_or_else(Utc::now),
            pid: 0,
            listen: vec![self.edge],
            connections: 0,
            unknown_host_requests: 0,
            instances: traffic,
        })
    }

    /// What a test has written down for one call after the other; the last stays.
    async fn traffic(&self, _: InstanceId) -> Result<Option<RouteTraffic>> {
        self.enter("traffic", false, None).await?;
        let mut state = self.state();
        let next = if state.route_traffic.len() > 1 { state.route_traffic.pop_front() } else { state.route_traffic.front().cloned() };
        Ok(next)
    }

    async fn all_traffic(&self) -> Result<Vec<RouteTraffic>> {
        Ok(Vec::new())
    }

    /// Nobody asks at this edge; see `set_traffic`.
    async fn wanted(&self, after: u64) -> Result<Wanted> {
        tokio::time::sleep(std::time::Duration::from_secs(5)).await;
        Ok(Wanted { sequence: after, instances: Vec::new() })
    }

    async fn memory(&self, instance: InstanceId) -> Result<u64> {
        Ok(self.instance(instance).slots.len() as u64 * (150 << 20))
    }
}
