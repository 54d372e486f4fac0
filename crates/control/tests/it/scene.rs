//! A project with a repository and instances, on a machine in memory: what the engine's tests start from.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on ends here")]

use std::{process::Command, sync::Arc, time::Duration};

use ocore_control::{
    Control,
    authorization::Scope,
    operations::{self, Engine, Injection, OperationKind},
};
use ocore_model::{
    deployment::{DeploymentStatus, StepName, StepStatus},
    ids::{DataSetId, DeploymentId, EnvironmentId, InstanceId, OperationId, ProjectId},
    instance::InstanceStatus,
    operation::OperationStatus,
};
use ocore_testkit::{Repository, Store};
use tokio_util::sync::CancellationToken;

use crate::world::World;

pub(crate) struct Scene {
    pub store: Store,
    pub world: Arc<World>,
    pub scope: Scope,
    pub project: ProjectId,
    pub repository: Repository,
}

/// An environment and its instance.
#[derive(Clone, Copy)]
pub(crate) struct Place {
    pub environment: EnvironmentId,
    pub instance: InstanceId,
}

/// A running engine with the token that stops it.
pub(crate) struct Running {
    engine: Engine,
    shutdown: CancellationToken,
}

impl Running {
    /// Stops it as a process that is told to end: interrupted operations stay as they are.
    pub(crate) async fn stop(self) {
        self.shutdown.cancel();
        self.engine.stopped().await;
    }
}

/// An instance's row, as far as the tests look at it.
#[derive(Debug, Clone, PartialEq, Eq, sqlx::FromRow)]
pub(crate) struct InstanceRow {
    pub status: String,
    pub status_message: String,
    pub active_color: Option<String>,
    pub active_data_set_id: Option<uuid::Uuid>,
    pub active_release: Option<String>,
    pub active_deployment_id: Option<uuid::Uuid>,
    pub active_http: Option<String>,
    pub previous_data_set_id: Option<uuid::Uuid>,
    pub admin_password: Option<Vec<u8>>,
    pub updating: bool,
    pub operation_id: Option<uuid::Uuid>,
}

/// A snapshot's row, as far as the tests look at it.
#[derive(Debug, Clone, PartialEq, Eq, sqlx::FromRow)]
pub(crate) struct SnapshotRow {
    pub id: uuid::Uuid,
    pub kind: String,
    pub status: String,
    pub data_set_id: uuid::Uuid,
    pub release: Option<String>,
    pub standing: Option<String>,
}

impl InstanceRow {
    pub(crate) fn live(&self) -> DataSetId {
        DataSetId(self.active_data_set_id.expect("something is live"))
    }
}

impl Scene {
    pub(crate) async fn new() -> Self {
        let _ = rustls::crypto::ring::default_provider().install_default();
        if let Ok(filter) = std::env::var("OCORE_TEST_LOG") {
            let _ = tracing_subscriber::fmt().with_env_filter(filter).with_test_writer().try_init();
        }
        let world = World::new().await;
        let store = Store::with_host(world.clone()).await.unwrap();
        let scope = store.organization("acme").await.unwrap().scope;
        let project = ProjectId::new();
        sqlx::query(
            "insert into projects (id, organization_id, name, slug, odoo_version, module_selection, repository_kind)
             values ($1, $2, 'Shop', 'shop', '19.0', '{\"kind\": \"own\"}', 'built_in')",
        )
        .bind(project.as_uuid())
        .bind(scope.organization_id.as_uuid())
        .execute(&store.control.pool)
        .await
        .unwrap();
        Self { store, world, scope, project, repository: Repository::new().unwrap() }
    }

    pub(crate) fn control(&self) -> &Control {
        &self.store.control
    }

    /// An environment that follows the branch.
    pub(crate) async fn place(&self, branch: &str) -> Place {
        let (environment, instance) = (EnvironmentId::new(), InstanceId::new());
        sqlx::query(
            "insert into instances (id, organization_id, project_id, server_id, name, slug, status, odoo_version, settings)
             values ($1, $2, $3, $4, $5, $5, 'creating', '19.0', '{}')",
        )
        .bind(instance.as_uuid())
        .bind(self.scope.organization_id.as_uuid())
        .bind(self.project.as_uuid())
        .bind(self.control().server_id.as_uuid())
        .bind(format!("shop-{branch}"))
        .execute(&self.control().pool)
        .await
        .unwrap();
        sqlx::query(
            "insert into environments (id, organization_id, project_id, instance_id, name, branch, stage, commit_behavior, status)
             values ($1, $2, $3, $4, $5, $5, 'development', 'update_previous_build', 'active')",
        )
        .bind(environment.as_uuid())
        .bind(self.scope.organization_id.as_uuid())
        .bind(self.project.as_uuid())
        .bind(instance.as_uuid())
        .bind(branch)
        .execute(&self.control().pool)
        .await
        .unwrap();
        Place { environment, instance }
    }

    /// Commits modules by name and digest, and brings the mirror there.
    pub(crate) async fn commit(&self, modules: &[(&str, &str)]) -> String {
        self.repository.write("modules.json", &serde_json::to_string(modules).unwrap()).unwrap();
        let commit = self.repository.commit("a change").unwrap();
        // Makes the mirror.
        ocore_control::git::branch_head(self.control(), self.project, &"main".parse().unwrap()).await.unwrap();
        let mirror = self.control().settings.repositories.join(format!("{}.git", self.project));
        let pushed = Command::new("git")
            .current_dir(self.repository.path())
            .args(["push", "--quiet", "--force"])
            .arg(&mirror)
            .arg("HEAD:main")
            .status();
        assert!(pushed.unwrap().success());
        sqlx::query(
            "insert into branches (project_id, name, head_sha, commit_author, commit_author_email, commit_message, committed_at)
             values ($1, 'main', $2, 'Ada', 'ada@example.com', 'a change', now())
             on conflict (project_id, name) do update set head_sha = excluded.head_sha",
        )
        .bind(self.project.as_uuid())
        .bind(&commit)
        .execute(&self.control().pool)
        .await
        .unwrap();
        commit
    }

    /// Queues a deployment of a commit.
    pub(crate) async fn deploy(&self, place: Place, commit: &str, data: &str) -> DeploymentId {
        let deployment = DeploymentId::new();
        let mut transaction = self.control().pool.begin().await.unwrap();
        sqlx::query(
            "insert into deployments (id, organization_id, project_id, environment_id, instance_id, status, trigger_type, branch, commit_sha,
                                      commit_author, commit_author_email, commit_message, data_origin)
             values ($1, $2, $3, $4, $5, 'queued', 'push', 'main', $6, 'Ada', 'ada@example.com', 'a change', jsonb_build_object('kind', $7::text))",
        )
        .bind(deployment.as_uuid())
        .bind(self.scope.organization_id.as_uuid())
        .bind(self.project.as_uuid())
        .bind(place.environment.as_uuid())
        .bind(place.instance.as_uuid())
        .bind(commit)
        .bind(data)
        .execute(&mut *transaction)
        .await
        .unwrap();
        let kind = OperationKind::Deploy { deployment_id: deployment };
        operations::enqueue(&mut transaction, self.scope.organization_id, place.instance, kind).await.unwrap();
        transaction.commit().await.unwrap();
        deployment
    }

    pub(crate) async fn ask(&self, place: Place, kind: OperationKind) -> OperationId {
        let mut transaction = self.control().pool.begin().await.unwrap();
        let id = operations::enqueue(&mut transaction, self.scope.organization_id, place.instance, kind).await.unwrap();
        transaction.commit().await.unwrap();
        id
    }

    pub(crate) async fn engine(&self) -> Running {
        self.engine_with(Vec::new()).await
    }

    pub(crate) async fn engine_with(&self, injections: Vec<Injection>) -> Running {
        let shutdown = CancellationToken::new();
        let engine = Engine::start_with(self.control().clone(), shutdown.clone(), injections).await.unwrap();
        Running { engine, shutdown }
    }

    /// A first deployment that goes live, with its own engine.
    pub(crate) async fn live(&self, place: Place, modules: &[(&str, &str)]) -> DeploymentId {
        let commit = self.commit(modules).await;
        let deployment = self.deploy(place, &commit, "fresh").await;
        let engine = self.engine().await;
        assert_eq!(self.ended(deployment).await, DeploymentStatus::Succeeded, "{:?}", self.message(deployment).await);
        engine.stop().await;
        deployment
    }

    pub(crate) async fn status(&self, deployment: DeploymentId) -> DeploymentStatus {
        let status: String = self.column("select status from deployments where id = $1", deployment.as_uuid()).await;
        status.parse().unwrap()
    }

    pub(crate) async fn message(&self, deployment: DeploymentId) -> Option<String> {
        self.column("select error_message from deployments where id = $1", deployment.as_uuid()).await
    }

    /// The status of a deployment, once its operation has ended too.
    pub(crate) async fn ended(&self, deployment: DeploymentId) -> DeploymentStatus {
        self.eventually(async || {
            let open: bool = self
                .column(
                    "select exists (select 1 from operations where deployment_id = $1 and status in ('queued', 'running'))",
                    deployment.as_uuid(),
                )
                .await;
            !open && self.status(deployment).await.is_end()
        })
        .await;
        self.status(deployment).await
    }

    pub(crate) async fn operation_of(&self, deployment: DeploymentId) -> OperationId {
        OperationId(self.column("select id from operations where deployment_id = $1", deployment.as_uuid()).await)
    }

    pub(crate) async fn operation_status(&self, operation: OperationId) -> OperationStatus {
        let status: String = self.column("select status from operations where id = $1", operation.as_uuid()).await;
        status.parse().unwrap()
    }

    pub(crate) async fn operation_ended(&self, operation: OperationId) -> OperationStatus {
        self.eventually(async || !matches!(self.operation_status(operation).await, OperationStatus::Queued | OperationStatus::Running))
            .await;
        self.operation_status(operation).await
    }

    pub(crate) async fn steps(&self, deployment: DeploymentId) -> Vec<(StepName, StepStatus)> {
        let rows: Vec<(String, String)> =
            sqlx::query_as("select name, status from deployment_steps where deployment_id = $1 order by sort_order")
                .bind(deployment.as_uuid())
                .fetch_all(&self.control().pool)
                .await
                .unwrap();
        rows.into_iter().map(|(name, status)| (name.parse().unwrap(), status.parse().unwrap())).collect()
    }

    pub(crate) async fn lines(&self, deployment: DeploymentId) -> Vec<String> {
        sqlx::query_scalar("select text from step_log_lines where deployment_id = $1 order by id")
            .bind(deployment.as_uuid())
            .fetch_all(&self.control().pool)
            .await
            .unwrap()
    }

    pub(crate) async fn instance(&self, place: Place) -> InstanceRow {
        sqlx::query_as(
            "select status, status_message, active_color, active_data_set_id, active_release, active_deployment_id, active_http,
                    previous_data_set_id, admin_password, updating, operation_id from instances where id = $1",
        )
        .bind(place.instance.as_uuid())
        .fetch_one(&self.control().pool)
        .await
        .unwrap()
    }

    /// The snapshots of an environment that have not been removed, the oldest first.
    pub(crate) async fn snapshots(&self, place: Place) -> Vec<SnapshotRow> {
        sqlx::query_as(
            "select id, kind, status, data_set_id, release, standing from snapshots
             where environment_id = $1 and removed_at is null order by created_at, id",
        )
        .bind(place.environment.as_uuid())
        .fetch_all(&self.control().pool)
        .await
        .unwrap()
    }

    pub(crate) async fn instance_status(&self, place: Place) -> InstanceStatus {
        self.instance(place).await.status.parse().unwrap()
    }

    pub(crate) async fn column<T>(&self, query: &'static str, id: uuid::Uuid) -> T
    where
        T: for<'row> sqlx::Decode<'row, sqlx::Postgres> + sqlx::Type<sqlx::Postgres> + Send + Unpin,
    {
        sqlx::query_scalar(query).bind(id).fetch_one(&self.control().pool).await.unwrap()
    }

    /// Waits for a condition; a test that waits for half a minute has failed.
    pub(crate) async fn eventually(&self, condition: impl AsyncFn() -> bool) {
        let waiting = async {
            while !condition().await {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(30), waiting).await.expect("what was waited for did not come");
    }
}
