//! A project that protects its production: whatever begins a deployment there is for those with `manage:production`, and what others bring waits.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on ends here")]

use ocore_control::{
    Error, Result,
    authorization::Scope,
    branches::{self, BranchUpdate, PushOutcome},
    deployments::{self, DeployRequest, Starter},
    environments::{self, Environment},
    git,
    instances::{self, InstanceRequest, SettingsPatch},
    projects::{self, NewBranchMapping, ProjectPatch},
};
use ocore_model::{
    deployment::Trigger,
    environment::{CommitBehavior, Stage},
    ids::{EnvironmentId, ProjectId},
};
use ocore_testkit::{scenario::Scenario, store::Owned};

/// A protected project with a live production, a Developer and an Admin.
struct Kept {
    scenario: Scenario,
    developer: Owned,
    admin: Owned,
    production: Environment,
}

impl Kept {
    async fn new() -> Self {
        let scenario = Scenario::new().await.unwrap();
        let production = scenario.live("main").await.unwrap();
        assert_eq!(production.stage, Stage::Production);
        let member = async |role: &str| scenario.store.member(scenario.scope(), &format!("{role}@example.com"), role).await.unwrap();
        let (developer, admin) = (member("Developer").await, member("Admin").await);
        let kept = Self { scenario, developer, admin, production };
        kept.protect(&kept.admin.scope, true).await.unwrap();
        kept
    }

    async fn protect(&self, scope: &Scope, protects: bool) -> Result<projects::Project> {
        let patch = ProjectPatch { protects_production: Some(protects), ..ProjectPatch::default() };
        projects::update(self.control(), &scope.grant().unwrap(), self.scenario.project, patch).await
    }

    fn control(&self) -> &ocore_control::Control {
        &self.scenario.store.control
    }

    async fn push_as(&self, branch: &str, starter: Starter) -> PushOutcome {
        self.scenario.bring(&[&format!("HEAD:refs/heads/{branch}")]).await.unwrap();
        self.record_as(branch, starter).await
    }

    async fn record_as(&self, branch: &str, starter: Starter) -> PushOutcome {
        let update = BranchUpdate { branch: branch.parse().unwrap(), old: None, new: None };
        branches::record(self.control(), self.scenario.project, vec![update], starter).await.unwrap().pop().unwrap()
    }

    fn developer(&self) -> Starter {
        Starter::new(Trigger::Push, &self.developer.scope)
    }

    async fn deployments(&self, environment: EnvironmentId) -> i64 {
        sqlx::query_scalar("select count(*) from deployments where environment_id = $1")
            .bind(environment.as_uuid())
            .fetch_one(&self.control().pool)
            .await
            .unwrap()
    }
}

fn is_kept<T: std::fmt::Debug>(result: Result<T>, way: &str) {
    assert!(matches!(result, Err(Error::Forbidden { code: "production_kept", .. })), "{way}: {result:?}");
}

#[tokio::test]
async fn a_push_to_production_waits_for_somebody_who_may_deploy_it_and_says_who() {
    let kept = Kept::new().await;
    let sha = kept.scenario.commit("second").unwrap();
    for starter in [kept.developer(), Starter::nobody(Trigger::Webhook), Starter::nobody(Trigger::Push)] {
        let outcome = kept.push_as("main", starter).await;
        assert_eq!((outcome.deployment_id, outcome.environment_id), (None, Some(kept.production.id)), "{}", outcome.message);
    }
    let sha = kept.scenario.commit(&format!("after {sha}")).unwrap();
    let outcome = kept.push_as("main", kept.developer()).await;
    assert!(outcome.message.contains("waits: ") && outcome.message.contains("Admin@example.com"), "{}", outcome.message);
    assert_eq!(kept.deployments(kept.production.id).await, 1, "the one that made it");
    let waiting = kept.scenario.environment(kept.production.id).await.unwrap();
    assert_eq!((waiting.pending_commit_count, waiting.pending_commit_sha.map(|sha| sha.to_string())), (2, Some(sha)));

    is_kept(environments::trigger_build(kept.control(), &kept.developer.scope.grant().unwrap(), kept.production.id).await, "trigger-build");
    let built = environments::trigger_build(kept.control(), &kept.admin.scope.grant().unwrap(), kept.production.id).await.unwrap();
    // What an admin has begun, a push that goes back does not end.
    kept.scenario.repository.git(&["reset", "--quiet", "--hard", "HEAD~2"]).unwrap();
    kept.push_as("main", kept.developer()).await;
    assert_eq!(kept.scenario.seen(built.id).await.unwrap().status, "queued");
    is_kept(deployments::cancel(kept.control(), &kept.developer.scope.grant().unwrap(), built.id).await, "cancel");
    deployments::cancel(kept.control(), &kept.admin.scope.grant().unwrap(), built.id).await.unwrap();
}

#[tokio::test]
async fn no_other_way_begins_a_deployment_of_a_protected_production() {
    let kept = Kept::new().await;
    let (control, project, scope) = (kept.control(), kept.scenario.project, &kept.developer.scope);
    let sha = kept.scenario.commit("evil").unwrap();
    kept.push_as("work", kept.developer()).await;
    let commit = DeployRequest { commit: Some(sha.parse().unwrap()), ..DeployRequest::default() };
    let ways = [
        ("a commit, to the production that nobody named", commit.clone()),
        ("a commit, by instance", DeployRequest { instance: Some(kept.production.instance_id), ..commit }),
        ("the branch", DeployRequest { branch: Some("main".parse().unwrap()), ..DeployRequest::default() }),
    ];
    for (way, request) in ways {
        is_kept(deployments::deploy(control, &scope.grant().unwrap(), project, request).await, way);
    }
    // A mapping that leads another branch to it: neither to be set, nor followed by a push.
    let mapping = || vec![NewBranchMapping { branch_pattern: "hot*".to_owned(), instance_id: kept.production.instance_id, priority: 1 }];
    let refused = projects::set_branch_mappings(control, &scope.grant().unwrap(), project, mapping()).await;
    assert!(matches!(refused, Err(Error::Forbidden { code: "permission_missing", .. })), "{refused:?}");
    projects::set_branch_mappings(control, &kept.admin.scope.grant().unwrap(), project, mapping()).await.unwrap();
    let refused = projects::set_branch_mappings(control, &scope.grant().unwrap(), project, Vec::new()).await;
    assert!(matches!(refused, Err(Error::Forbidden { .. })), "{refused:?}");
    let outcome = kept.push_as("hotfix", kept.developer()).await;
    assert!(outcome.deployment_id.is_none() && outcome.message.contains("a mapping leads it to production"), "{}", outcome.message);
    assert_eq!(kept.scenario.environment(kept.production.id).await.unwrap().branch, "main");
    // Neither the setting itself, nor what pushes do, nor where commits come from.
    let refused = kept.protect(scope, false).await;
    assert!(matches!(refused, Err(Error::Forbidden { .. })), "{refused:?}");
    let behavior = CommitBehavior::CreateNewBuild;
    let refused = environments::set_commit_behavior(control, &scope.grant().unwrap(), kept.production.id, behavior).await;
    assert!(matches!(refused, Err(Error::Forbidden { .. })), "{refused:?}");
    let elsewhere = git::ConnectRepository { url: "https://93.184.215.14/evil.git".to_owned(), branch: "main".to_owned(), token: None };
    is_kept(git::connect(control, &scope.grant().unwrap(), project, elsewhere).await, "another repository");
    is_kept(git::disconnect(control, &scope.grant().unwrap(), project).await, "the built-in repository");
    assert_eq!(kept.deployments(kept.production.id).await, 1);
    // Everything else is as before.
    let outcome = kept.push_as("feature", kept.developer()).await;
    assert!(outcome.deployment_id.is_some(), "{}", outcome.message);
    kept.protect(&kept.admin.scope, false).await.unwrap();
    kept.scenario.commit("third").unwrap();
    assert!(kept.push_as("main", kept.developer()).await.deployment_id.is_some(), "by default, who may push deploys");
}

async fn empty(kept: &Kept) -> ProjectId {
    let project = ocore_testkit::scenario::new_project(&kept.scenario.store, &kept.admin.scope, "second").await.unwrap();
    let patch = ProjectPatch { protects_production: Some(true), ..ProjectPatch::default() };
    projects::update(kept.control(), &kept.admin.scope.grant().unwrap(), project, patch).await.unwrap();
    project
}

#[tokio::test]
async fn a_production_is_not_made_by_others_either() {
    let kept = Kept::new().await;
    let project = empty(&kept).await;
    let (control, scope) = (kept.control(), &kept.developer.scope);
    let main = "main".parse().unwrap();
    is_kept(environments::create(control, &scope.grant().unwrap(), project, &main, Stage::Production, None).await, "an environment");
    let request = InstanceRequest {
        project,
        name: "x".to_owned(),
        slug: None,
        branch: Some("main".parse().unwrap()),
        stage: Some(Stage::Production),
        odoo_version: None,
        settings: SettingsPatch::default(),
    };
    is_kept(instances::create(control, &scope.grant().unwrap(), request).await, "an instance");
    // By the first push of all.
    git::branch_head(control, project, &main).await.unwrap();
    kept.scenario.commit("first").unwrap();
    let mirror = control.settings.repositories.join(format!("{project}.git"));
    kept.scenario.repository.git(&["push", "--quiet", &mirror.display().to_string(), "HEAD:refs/heads/main"]).unwrap();
    let record = async |starter| {
        let update = BranchUpdate { branch: "main".parse().unwrap(), old: None, new: None };
        branches::record(control, project, vec![update], starter).await.unwrap().pop().unwrap()
    };
    let outcome = record(kept.developer()).await;
    assert!(outcome.environment_id.is_none() && outcome.message.contains("would become production"), "{}", outcome.message);
    let made: i64 = sqlx::query_scalar("select count(*) from environments where project_id = $1")
        .bind(project.as_uuid())
        .fetch_one(&control.pool)
        .await
        .unwrap();
    assert_eq!(made, 0);
    let made = environments::create(control, &kept.admin.scope.grant().unwrap(), project, &main, Stage::Production, None).await.unwrap();
    assert_eq!(made.stage, Stage::Production);
}
