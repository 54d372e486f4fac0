//! Environments and instances: made, changed, built, deleted, and never another tenant's.

use anyhow::{Context, Result};
use ocore_control::{
    Error,
    authorization::{ManageDeployments, ManageEnvironments, ManageInstances, ViewInstances},
    deployments::{self, DeployRequest},
    environments::{self, EnvironmentPatch},
    instances::{self, InstancePatch, InstanceRequest, SettingsPatch},
    pipeline,
};
use ocore_model::{
    deployment::DataOrigin,
    environment::{CommitBehavior, EnvironmentStatus, Stage},
    ids::{EnvironmentId, InstanceId},
    instance::{ControlAction, InstanceStatus},
};

use ocore_testkit::{Scenario, scenario::new_project};

fn code(error: &Error) -> &'static str {
    match error {
        Error::Conflict { code, .. } => code,
        Error::NotFound { .. } => "not_found",
        Error::Invalid { .. } => "invalid",
        other => panic!("{other:?}"),
    }
}

async fn create(
    scenario: &Scenario,
    branch: &str,
    stage: Stage,
    instance: Option<InstanceId>,
) -> ocore_control::Result<environments::Environment> {
    let grant = scenario.scope().grant::<ManageEnvironments>()?;
    environments::create(&scenario.store.control, &grant, scenario.project, &branch.parse().expect("a branch name"), stage, instance).await
}

fn request(scenario: &Scenario, name: &str) -> InstanceRequest {
    InstanceRequest {
        project: scenario.project,
        name: name.to_owned(),
        slug: None,
        branch: None,
        stage: None,
        odoo_version: None,
        settings: SettingsPatch::default(),
    }
}

async fn create_instance(scenario: &Scenario, request: InstanceRequest) -> ocore_control::Result<instances::Instance> {
    instances::create(&scenario.store.control, &scenario.scope().grant::<ManageInstances>()?, request).await
}

#[tokio::test]
async fn an_environment_of_a_branch_that_is_there_is_deployed_at_once() -> Result<()> {
    let scenario = Scenario::new().await?;
    let waiting = create(&scenario, "later", Stage::Development, None).await?;
    assert_eq!((waiting.instance_status, waiting.pending_commit_sha), (InstanceStatus::Creating, None));
    let sha = scenario.commit("first")?;
    scenario.bring(&["HEAD:refs/heads/staging"]).await?;
    let environment = create(&scenario, "staging", Stage::Staging, None).await?;
    assert_eq!((environment.pending_commit_count, environment.pending_commit_sha.as_ref().map(AsRef::as_ref)), (1, Some(sha.as_str())));
    let page = ocore_control::store::deployments::Page { limit: 10, offset: 0 };
    let (found, total) = deployments::list_of_environment(
        &scenario.store.control,
        &scenario.grant()?,
        environment.id,
        &ocore_control::store::deployments::DeploymentFilter::default(),
        page,
    )
    .await?;
    assert_eq!((found.len(), total, found[0].commit_sha.as_str()), (1, 1, sha.as_str()));
    assert_eq!(found[0].steps.len(), 9);
    // The push to it that comes afterwards is the one that its creation has seen.
    let outcome = scenario.push("staging").await?;
    assert_eq!((outcome.environment_id, outcome.deployment_id), (Some(environment.id), Some(found[0].id)));
    Ok(())
}

#[tokio::test]
async fn a_branch_an_instance_and_production_are_taken_once() -> Result<()> {
    let scenario = Scenario::new().await?;
    let free = create_instance(&scenario, request(&scenario, "Free one")).await?;
    let environment = create(&scenario, "main", Stage::Production, Some(free.id)).await?;
    assert_eq!((environment.instance_id, environment.instance_slug.as_str()), (free.id, "free-one"));
    assert_eq!(code(&create(&scenario, "main", Stage::Development, None).await.unwrap_err()), "branch_taken");
    assert_eq!(code(&create(&scenario, "other", Stage::Production, None).await.unwrap_err()), "production_exists");
    assert_eq!(code(&create(&scenario, "other", Stage::Development, Some(free.id)).await.unwrap_err()), "instance_taken");
    assert_eq!(code(&create(&scenario, "other", Stage::Development, Some(InstanceId::new())).await.unwrap_err()), "not_found");
    let elsewhere = new_project(&scenario.store, scenario.scope(), "elsewhere").await?;
    let other = create_instance(&scenario, InstanceRequest { project: elsewhere, ..request(&scenario, "Other") }).await?;
    assert_eq!(code(&create(&scenario, "other", Stage::Development, Some(other.id)).await.unwrap_err()), "not_found");
    Ok(())
}

#[tokio::test]
async fn many_at_once_make_one_environment_of_a_branch() -> Result<()> {
    let scenario = Scenario::new().await?;
    let tries = futures::future::join_all((0..6).map(|_| create(&scenario, "main", Stage::Production, None))).await;
    assert_eq!(tries.iter().filter(|one| one.is_ok()).count(), 1);
    assert!(tries.iter().filter_map(|one| one.as_ref().err()).all(|error| code(error) == "branch_taken"));
    Ok(())
}

#[tokio::test]
async fn name_and_description_change_and_are_checked() -> Result<()> {
    let scenario = Scenario::new().await?;
    let environment = create(&scenario, "main", Stage::Production, None).await?;
    let grant = scenario.grant::<ManageEnvironments>()?;
    let patch = |name: Option<&str>, description: Option<&str>| EnvironmentPatch {
        name: name.map(str::to_owned),
        description: description.map(str::to_owned),
    };
    let control = &scenario.store.control;
    let changed = environments::update(control, &grant, environment.id, patch(Some(" Shop "), None)).await?;
    assert_eq!((changed.name.as_str(), changed.description.as_str()), ("Shop", ""));
    let changed = environments::update(control, &grant, environment.id, patch(None, Some("Serves the shop"))).await?;
    assert_eq!((changed.name.as_str(), changed.description.as_str()), ("Shop", "Serves the shop"));
    let too_long = "x".repeat(101);
    for bad in ["", "a\nb", &too_long] {
        let error = environments::update(control, &grant, environment.id, patch(Some(bad), None)).await.unwrap_err();
        assert_eq!(code(&error), "invalid", "{bad:?}");
    }
    Ok(())
}

#[tokio::test]
async fn production_is_not_deleted_and_others_go_with_their_instance() -> Result<()> {
    let scenario = Scenario::new().await?;
    let control = &scenario.store.control;
    let production = scenario.live("main").await?;
    let grant = scenario.grant::<ManageEnvironments>()?;
    let error = environments::delete(control, &grant, production.id, None).await.unwrap_err();
    assert_eq!(code(&error), "production_protected");
    let error = instances::delete(control, &scenario.grant()?, production.instance_id, None).await.unwrap_err();
    assert_eq!(code(&error), "production_protected");
    assert_eq!(scenario.environment(production.id).await?.status, EnvironmentStatus::Active);
    let development = scenario.live("feature/x").await?;
    scenario.commit("second")?;
    let queued = scenario.push("feature/x").await?.deployment_id.context("it is deployed")?;
    for _ in 0..2 {
        assert_eq!(environments::delete(control, &grant, development.id, None).await?, EnvironmentStatus::Removing);
    }
    assert_eq!(scenario.seen(queued).await?.status, "cancelled");
    let removing = scenario.environment(development.id).await?;
    assert_eq!((removing.status, removing.instance_status), (EnvironmentStatus::Removing, InstanceStatus::Removing));
    let destroys: i64 = sqlx::query_scalar("select count(*) from operations where kind = 'destroy'").fetch_one(&control.pool).await?;
    assert_eq!(destroys, 1);
    // Nothing is asked of it any more.
    let error = environments::trigger_build(control, &scenario.grant()?, development.id).await.unwrap_err();
    assert_eq!(code(&error), "environment_removing");
    let error = instances::control(control, &scenario.grant()?, development.instance_id, ControlAction::Start).await.unwrap_err();
    assert_eq!(code(&error), "instance_removing");
    let outcome = scenario.push("feature/x").await?;
    assert_eq!(outcome.deployment_id, None);
    Ok(())
}

#[tokio::test]
async fn an_environment_says_what_is_the_matter_with_its_instance() -> Result<()> {
    let scenario = Scenario::new().await?;
    let environment = scenario.live("main").await?;
    sqlx::query("update instances set status = 'failed', status_message = 'its Odoo died'").execute(&scenario.store.control.pool).await?;
    let failed = scenario.environment(environment.id).await?;
    assert_eq!((failed.instance_status, failed.status_message.as_str()), (InstanceStatus::Failed, "its Odoo died"));
    scenario.delete_branch("main").await?;
    assert!(scenario.environment(environment.id).await?.status_message.starts_with("its branch was deleted"));
    Ok(())
}

#[tokio::test]
async fn a_build_is_triggered_when_something_is_pending_or_failed() -> Result<()> {
    let scenario = Scenario::new().await?;
    let control = &scenario.store.control;
    let grant = scenario.grant::<ManageDeployments>()?;
    let environment = scenario.live("main").await?;
    let behavior = CommitBehavior::DoNothing;
    environments::set_commit_behavior(control, &scenario.grant()?, environment.id, behavior).await?;
    assert_eq!(code(&environments::trigger_build(control, &grant, environment.id).await.unwrap_err()), "nothing_pending");
    let sha = scenario.commit("second")?;
    scenario.push("main").await?;
    let deployment = environments::trigger_build(control, &grant, environment.id).await?;
    assert_eq!((deployment.commit_sha.as_str(), *deployment.data_origin), (sha.as_str(), DataOrigin::Live));
    assert_eq!(deployment.previous_commit_sha, environment.live_commit_sha);
    // It is on its way: asking again is answered with it.
    assert_eq!(environments::trigger_build(control, &grant, environment.id).await?.id, deployment.id);
    scenario.set(deployment.id, "status = 'failed'").await?;
    let again = environments::trigger_build(control, &grant, environment.id).await?;
    assert_ne!(again.id, deployment.id);
    scenario.go_live(again.id).await?;
    assert_eq!(code(&environments::trigger_build(control, &grant, environment.id).await.unwrap_err()), "nothing_pending");
    // What is live is built again after a failure.
    scenario.set(again.id, "status = 'failed'").await?;
    assert_eq!(environments::trigger_build(control, &grant, environment.id).await?.commit_sha.as_str(), sha);
    scenario.delete_branch("main").await?;
    assert_eq!(code(&environments::trigger_build(control, &grant, environment.id).await.unwrap_err()), "branch_missing");
    Ok(())
}

#[tokio::test]
async fn deploy_takes_a_branch_a_commit_or_a_tag() -> Result<()> {
    let scenario = Scenario::new().await?;
    let control = &scenario.store.control;
    let grant = scenario.grant::<ManageDeployments>()?;
    let production = scenario.live("main").await?;
    let first = production.live_commit_sha.clone().context("it is live")?;
    let second = scenario.commit("second")?;
    scenario.repository.git(&["tag", "--annotate", "--message", "one", "v1"])?;
    scenario.push("main").await?;
    scenario.bring(&["refs/tags/v1"]).await?;
    let deploy = async |request: DeployRequest| deployments::deploy(control, &grant, scenario.project, request).await;
    let by_branch = deploy(DeployRequest { branch: Some("main".parse()?), ..DeployRequest::default() }).await?;
    assert_eq!(by_branch.commit_sha.as_str(), second);
    let by_commit = deploy(DeployRequest { commit: Some(first.clone()), ..DeployRequest::default() }).await?;
    assert_eq!((by_commit.commit_sha, by_commit.environment_id), (first, production.id));
    assert_eq!(scenario.seen(by_branch.id).await?.status, "superseded");
    let by_tag =
        deploy(DeployRequest { tag: Some("v1".to_owned()), instance: Some(production.instance_id), ..DeployRequest::default() }).await?;
    assert_eq!(by_tag.commit_sha.as_str(), second);
    for (request, wanted) in [
        (DeployRequest::default(), "invalid"),
        (DeployRequest { branch: Some("gone".parse()?), ..DeployRequest::default() }, "no_environment"),
        (DeployRequest { commit: Some("1".repeat(40).parse()?), ..DeployRequest::default() }, "invalid"),
        (DeployRequest { tag: Some("v2".to_owned()), ..DeployRequest::default() }, "invalid"),
        (DeployRequest { tag: Some("--all\nmain".to_owned()), ..DeployRequest::default() }, "invalid"),
        (DeployRequest { branch: Some("main".parse()?), instance: Some(InstanceId::new()), ..DeployRequest::default() }, "not_found"),
    ] {
        assert_eq!(code(&deploy(request.clone()).await.unwrap_err()), wanted, "{request:?}");
    }
    Ok(())
}

#[tokio::test]
async fn a_deployment_is_cancelled_once_and_not_after_its_end() -> Result<()> {
    let scenario = Scenario::new().await?;
    let control = &scenario.store.control;
    let grant = scenario.grant::<ManageDeployments>()?;
    scenario.commit("first")?;
    let id = scenario.push("main").await?.deployment_id.context("it is deployed")?;
    let cancelled = deployments::cancel(control, &grant, id).await?;
    assert_eq!(cancelled.status.as_str(), "cancelled");
    assert!(cancelled.steps.iter().all(|step| step.status.as_str() == "skipped"));
    assert_eq!(code(&deployments::cancel(control, &grant, id).await.unwrap_err()), "already_ended");
    Ok(())
}

#[tokio::test]
async fn an_instance_has_its_settings_and_a_name_of_its_own() -> Result<()> {
    let scenario = Scenario::new().await?;
    let control = &scenario.store.control;
    let first = create_instance(&scenario, request(&scenario, "Shop Test")).await?;
    assert_eq!((first.slug.as_str(), first.settings.workers), ("shop-test", 0));
    let second = create_instance(&scenario, request(&scenario, "Shop Test")).await?;
    assert!(second.slug.starts_with("shop-test-"), "{}", second.slug);
    let taken = InstanceRequest { slug: Some("shop-test".parse()?), ..request(&scenario, "x") };
    assert_eq!(code(&create_instance(&scenario, taken).await.unwrap_err()), "slug_taken");
    let production = InstanceRequest { branch: Some("main".parse()?), stage: Some(Stage::Production), ..request(&scenario, "Production") };
    let production = create_instance(&scenario, production).await?;
    assert_eq!((production.settings.workers, production.branch.as_deref()), (2, Some("main")));
    let grant = scenario.grant::<ManageInstances>()?;
    let patch = InstancePatch {
        name: Some("Renamed".to_owned()),
        settings: SettingsPatch { workers: Some(4), env_vars: Some([("A".to_owned(), "b".to_owned())].into()), ..SettingsPatch::default() },
    };
    let changed = instances::update(control, &grant, first.id, patch).await?;
    assert_eq!((changed.name.as_str(), changed.settings.workers, changed.settings.env_vars["A"].as_str()), ("Renamed", 4, "b"));
    let bad = InstancePatch { settings: SettingsPatch { workers: Some(999), ..SettingsPatch::default() }, ..InstancePatch::default() };
    assert_eq!(code(&instances::update(control, &grant, first.id, bad).await.unwrap_err()), "invalid");
    // Nothing is deployed: there is nothing to start and no password.
    assert_eq!(code(&instances::control(control, &grant, first.id, ControlAction::Start).await.unwrap_err()), "nothing_deployed");
    assert_eq!(code(&instances::credentials(control, &grant, first.id).await.unwrap_err()), "nothing_deployed");
    let all = instances::list(control, &scenario.grant::<ViewInstances>()?, Some(control.server_id)).await?;
    assert_eq!(all.len(), 3);
    Ok(())
}

#[tokio::test]
async fn the_pipeline_has_each_environment_with_its_newest_deployments() -> Result<()> {
    let scenario = Scenario::new().await?;
    let production = scenario.live("main").await?;
    let mut newest = Vec::new();
    for message in ["second", "third"] {
        scenario.commit(message)?;
        newest.push(scenario.push("main").await?.deployment_id.context("it is deployed")?);
    }
    let empty = create(&scenario, "later", Stage::Development, None).await?;
    let found = pipeline::list(&scenario.store.control, &scenario.grant()?, scenario.project, 2).await?;
    let shape: Vec<_> = found
        .iter()
        .map(|entry| (entry.environment.id, entry.recent_deployments.iter().map(|recent| recent.id).collect::<Vec<_>>()))
        .collect();
    assert_eq!(shape, [(production.id, vec![newest[1], newest[0]]), (empty.id, vec![])]);
    Ok(())
}

#[tokio::test]
async fn another_tenants_things_are_not_there() -> Result<()> {
    let scenario = Scenario::new().await?;
    let control = &scenario.store.control;
    scenario.commit("first")?;
    let outcome = scenario.push("main").await?;
    let environment = scenario.environment_of(&outcome).await?;
    let deployment = outcome.deployment_id.context("it is deployed")?;
    let other = scenario.store.organization("other").await?;
    let scope = &other.scope;
    assert!(environments::list(control, &scope.grant()?).await?.is_empty());
    assert!(instances::list(control, &scope.grant()?, None).await?.is_empty());
    let page = ocore_control::store::deployments::Page { limit: 10, offset: 0 };
    let range = deployments::LogRange { step: None, after: 0, limit: 10 };
    let branch = "x".parse()?;
    let errors = [
        environments::find(control, &scope.grant()?, environment.id).await.err(),
        environments::list_of_project(control, &scope.grant()?, scenario.project).await.err(),
        environments::update(control, &scope.grant()?, environment.id, EnvironmentPatch::default()).await.err(),
        environments::set_commit_behavior(control, &scope.grant()?, environment.id, CommitBehavior::DoNothing).await.err(),
        environments::create(control, &scope.grant()?, scenario.project, &branch, Stage::Development, None).await.err(),
        environments::delete(control, &scope.grant()?, environment.id, None).await.err(),
        environments::trigger_build(control, &scope.grant()?, environment.id).await.err(),
        pipeline::list(control, &scope.grant()?, scenario.project, 1).await.err(),
        deployments::list_of_environment(
            control,
            &scope.grant()?,
            environment.id,
            &ocore_control::store::deployments::DeploymentFilter::default(),
            page,
        )
        .await
        .err(),
        deployments::list_of_project(
            control,
            &scope.grant()?,
            scenario.project,
            &ocore_control::store::deployments::DeploymentFilter::default(),
            page,
        )
        .await
        .err(),
        deployments::find(control, &scope.grant()?, deployment).await.err(),
        deployments::log(control, &scope.grant()?, deployment, range).await.err(),
        deployments::cancel(control, &scope.grant()?, deployment).await.err(),
        deployments::deploy(
            control,
            &scope.grant()?,
            scenario.project,
            DeployRequest { branch: Some("main".parse()?), ..DeployRequest::default() },
        )
        .await
        .err(),
        instances::find(control, &scope.grant()?, environment.instance_id).await.err(),
        instances::update(control, &scope.grant()?, environment.instance_id, InstancePatch::default()).await.err(),
        instances::control(control, &scope.grant()?, environment.instance_id, ControlAction::Stop).await.err(),
        instances::delete(control, &scope.grant()?, environment.instance_id, None).await.err(),
        instances::log(control, &scope.grant()?, environment.instance_id, 1, false).await.err(),
        instances::credentials(control, &scope.grant()?, environment.instance_id).await.err(),
    ];
    for (number, error) in errors.iter().enumerate() {
        assert_eq!(error.as_ref().map(code), Some("not_found"), "call {number}");
    }
    // Their own project, with the other's instance.
    let project = new_project(&scenario.store, scope, "theirs").await?;
    let error = environments::create(control, &scope.grant()?, project, &branch, Stage::Development, Some(environment.instance_id)).await;
    assert_eq!(error.err().as_ref().map(code), Some("not_found"));
    let error = environments::find(control, &scenario.grant()?, EnvironmentId::new()).await.unwrap_err();
    assert_eq!(code(&error), "not_found");
    Ok(())
}
