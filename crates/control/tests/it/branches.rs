//! What a push means, with a real repository.

use anyhow::{Context, Result};
use ocore_control::{
    Error,
    authorization::{ManageEnvironments, ManageInstances, ManageProjects, ViewProjects},
    branches, environments,
    instances::{self, InstanceRequest, SettingsPatch},
    projects::{self, NewBranchMapping, ProjectPatch},
};
use ocore_model::{
    deployment::Trigger,
    environment::{CommitBehavior, Stage},
    ids::InstanceId,
};

use ocore_testkit::Scenario;

async fn behave(scenario: &Scenario, environment: &environments::Environment, behavior: CommitBehavior) -> Result<()> {
    let grant = scenario.grant::<ManageEnvironments>()?;
    environments::set_commit_behavior(&scenario.store.control, &grant, environment.id, behavior).await?;
    Ok(())
}

#[tokio::test]
async fn the_first_push_makes_an_environment_and_deploys_it() -> Result<()> {
    let scenario = Scenario::new().await?;
    let sha = scenario.commit("first")?;
    let outcome = scenario.push("main").await?;
    let environment = scenario.environment_of(&outcome).await?;
    assert_eq!((environment.stage, environment.commit_behavior), (Stage::Production, CommitBehavior::UpdatePreviousBuild));
    assert_eq!(environment.instance_slug, "shop-main");
    assert_eq!(environment.last_commit_author.as_deref(), Some("Ada Lovelace"));
    assert_eq!((environment.pending_commit_count, environment.pending_commit_sha.as_ref().map(AsRef::as_ref)), (1, Some(sha.as_str())));
    let deployment = scenario.seen(outcome.deployment_id.context("it is deployed")?).await?;
    assert_eq!((deployment.status.as_str(), deployment.commit), ("queued", sha));
    assert!(outcome.message.starts_with("new production environment http://shop-main.localhost:8080; "), "{}", outcome.message);
    let staging = scenario.push("staging").await?;
    assert_eq!(scenario.environment_of(&staging).await?.stage, Stage::Staging);
    // A project has one production.
    let master = scenario.push("master").await?;
    assert_eq!(scenario.environment_of(&master).await?.stage, Stage::Development);
    Ok(())
}

#[tokio::test]
async fn recording_a_push_again_finds_nothing_new() -> Result<()> {
    let scenario = Scenario::new().await?;
    scenario.commit("first")?;
    let first = scenario.push("main").await?;
    let again = scenario.record(&["main"], Trigger::Push).await?.pop().context("one outcome")?;
    assert_eq!((again.environment_id, again.deployment_id), (first.environment_id, first.deployment_id));
    assert_eq!(again.message, "nothing new on main");
    let count: i64 = sqlx::query_scalar("select count(*) from deployments").fetch_one(&scenario.store.control.pool).await?;
    assert_eq!(count, 1);
    Ok(())
}

#[tokio::test]
async fn do_nothing_counts_and_waits() -> Result<()> {
    let scenario = Scenario::new().await?;
    let environment = scenario.live("main").await?;
    behave(&scenario, &environment, CommitBehavior::DoNothing).await?;
    scenario.commit("second")?;
    let second = scenario.push("main").await?;
    assert_eq!((second.deployment_id, second.message.as_str()), (None, "1 commit waits; `ocore env build shop-main` deploys it"));
    scenario.commit("third")?;
    let sha = scenario.commit("fourth")?;
    let third = scenario.push("main").await?;
    assert_eq!(third.message, "3 commits wait; `ocore env build shop-main` deploys them");
    let environment = scenario.environment(environment.id).await?;
    assert_eq!((environment.pending_commit_count, environment.pending_commit_sha.as_ref().map(AsRef::as_ref)), (3, Some(sha.as_str())));
    Ok(())
}

#[tokio::test]
async fn update_previous_build_keeps_the_data() -> Result<()> {
    let scenario = Scenario::new().await?;
    scenario.live("main").await?;
    let sha = scenario.commit("second")?;
    let outcome = scenario.push("main").await?;
    let deployment = scenario.seen(outcome.deployment_id.context("it is deployed")?).await?;
    assert_eq!((deployment.data_origin.as_str(), deployment.commit), ("live", sha));
    assert!(outcome.message.ends_with(" with the data that is there"), "{}", outcome.message);
    Ok(())
}

#[tokio::test]
async fn create_new_build_makes_a_fresh_database_in_development_only() -> Result<()> {
    let scenario = Scenario::new().await?;
    let production = scenario.live("main").await?;
    let development = scenario.live("feature/x").await?;
    assert_eq!(development.commit_behavior, CommitBehavior::CreateNewBuild);
    behave(&scenario, &production, CommitBehavior::CreateNewBuild).await?;
    scenario.commit("second")?;
    for (branch, origin) in [("feature/x", "fresh"), ("main", "live")] {
        let outcome = scenario.push(branch).await?;
        assert_eq!(scenario.seen(outcome.deployment_id.context("it is deployed")?).await?.data_origin, origin, "{branch}");
    }
    Ok(())
}

#[tokio::test]
async fn a_second_push_supersedes_the_queued_one_and_waits_for_one_that_is_changing() -> Result<()> {
    let scenario = Scenario::new().await?;
    scenario.live("main").await?;
    scenario.commit("second")?;
    let second = scenario.push("main").await?.deployment_id.context("it is deployed")?;
    scenario.commit("third")?;
    let third = scenario.push("main").await?.deployment_id.context("it is deployed")?;
    assert_eq!(scenario.seen(second).await?.status, "superseded");
    scenario.set(third, "status = 'running', changing = true").await?;
    scenario.commit("fourth")?;
    let fourth = scenario.push("main").await?.deployment_id.context("it is deployed")?;
    assert_eq!(scenario.seen(third).await?.status, "running");
    assert_eq!(scenario.seen(fourth).await?.status, "queued");
    let skipped: i64 = sqlx::query_scalar("select count(*) from deployment_steps where deployment_id = $1 and status = 'skipped'")
        .bind(second.as_uuid())
        .fetch_one(&scenario.store.control.pool)
        .await?;
    assert_eq!(skipped, 9, "a superseded deployment's steps do not wait for ever");
    Ok(())
}

#[tokio::test]
async fn a_forced_push_counts_from_what_is_live() -> Result<()> {
    let scenario = Scenario::new().await?;
    let base = scenario.commit("base")?;
    scenario.commit("a")?;
    scenario.commit("b")?;
    let outcome = scenario.push("main").await?;
    scenario.go_live(outcome.deployment_id.context("it is deployed")?).await?;
    let environment = scenario.environment_of(&outcome).await?;
    behave(&scenario, &environment, CommitBehavior::DoNothing).await?;
    // Another history from the base on: one commit that is not live.
    scenario.repository.git(&["reset", "--quiet", "--hard", &base])?;
    let sha = scenario.commit("c")?;
    scenario.push("main").await?;
    let environment = scenario.environment(environment.id).await?;
    assert_eq!((environment.pending_commit_count, environment.pending_commit_sha.as_ref().map(AsRef::as_ref)), (1, Some(sha.as_str())));
    // Back to an ancestor of what is live: no new commit, and yet another head.
    scenario.repository.git(&["reset", "--quiet", "--hard", &base])?;
    let outcome = scenario.push("main").await?;
    let environment = scenario.environment(environment.id).await?;
    assert_eq!((environment.pending_commit_count, environment.pending_commit_sha.as_ref().map(AsRef::as_ref)), (0, Some(base.as_str())));
    assert!(outcome.message.starts_with("the branch went back to "), "{}", outcome.message);
    Ok(())
}

#[tokio::test]
async fn pushing_what_is_live_drops_what_was_queued() -> Result<()> {
    let scenario = Scenario::new().await?;
    let environment = scenario.live("main").await?;
    let live = environment.live_commit_sha.context("it is live")?;
    scenario.commit("a mistake")?;
    let mistake = scenario.push("main").await?.deployment_id.context("it is deployed")?;
    scenario.repository.git(&["reset", "--quiet", "--hard", live.as_str()])?;
    let outcome = scenario.push("main").await?;
    assert_eq!(outcome.deployment_id, None);
    assert!(outcome.message.ends_with("is live already, and what was queued is dropped"), "{}", outcome.message);
    assert_eq!(scenario.seen(mistake).await?.status, "cancelled");
    let environment = scenario.environment(environment.id).await?;
    assert_eq!((environment.pending_commit_count, environment.pending_commit_sha), (0, None));
    // What is changing the instance by now must be followed by the wanted commit again.
    scenario.commit("another mistake")?;
    let mistake = scenario.push("main").await?.deployment_id.context("it is deployed")?;
    scenario.set(mistake, "status = 'running', changing = true").await?;
    scenario.repository.git(&["reset", "--quiet", "--hard", live.as_str()])?;
    let again = scenario.push("main").await?.deployment_id.context("it is deployed again")?;
    assert_eq!(scenario.seen(again).await?.commit, live.as_str());
    Ok(())
}

#[tokio::test]
async fn a_deleted_branch_is_remembered_and_its_environment_stays() -> Result<()> {
    let scenario = Scenario::new().await?;
    let environment = scenario.live("feature/x").await?;
    let outcome = scenario.delete_branch("feature/x").await?;
    assert_eq!((outcome.environment_id, outcome.deployment_id), (Some(environment.id), None));
    let environment = scenario.environment(environment.id).await?;
    assert!(environment.branch_deleted_at.is_some());
    assert_eq!(environment.status_message, "its branch was deleted; the environment stays until somebody deletes it");
    // It comes back.
    scenario.commit("second")?;
    let outcome = scenario.push("feature/x").await?;
    assert_eq!(outcome.environment_id, Some(environment.id));
    let environment = scenario.environment(environment.id).await?;
    assert_eq!((environment.branch_deleted_at, environment.status_message.as_str()), (None, ""));
    Ok(())
}

#[tokio::test]
async fn the_last_push_counts_in_whatever_order_pushes_are_recorded() -> Result<()> {
    let scenario = Scenario::new().await?;
    scenario.live("main").await?;
    scenario.commit("second")?;
    scenario.bring(&["HEAD:refs/heads/main"]).await?;
    let sha = scenario.commit("third")?;
    scenario.bring(&["HEAD:refs/heads/main"]).await?;
    // Two records at once, of which each may be the first.
    let records = futures::future::try_join_all((0..2).map(|_| scenario.record(&["main"], Trigger::Push))).await?;
    let deployments: Vec<_> = records.iter().map(|outcomes| outcomes[0].deployment_id).collect();
    assert!(deployments[0].is_some() && deployments[0] == deployments[1], "{deployments:?}");
    assert_eq!(scenario.seen(deployments[0].context("it is deployed")?).await?.commit, sha);
    Ok(())
}

#[tokio::test]
async fn a_project_may_want_no_environments_by_pushes() -> Result<()> {
    let scenario = Scenario::new().await?;
    let patch = ProjectPatch { create_environment_on_push: Some(false), ..ProjectPatch::default() };
    projects::update(&scenario.store.control, &scenario.grant::<ManageProjects>()?, scenario.project, patch).await?;
    scenario.commit("first")?;
    let outcome = scenario.push("main").await?;
    assert_eq!((outcome.environment_id, outcome.deployment_id), (None, None));
    assert!(outcome.message.contains("`ocore env create main`"), "{}", outcome.message);
    Ok(())
}

#[tokio::test]
async fn the_first_fetch_of_a_repository_makes_no_environment_of_its_old_branches() -> Result<()> {
    let scenario = Scenario::new().await?;
    scenario.commit("first")?;
    scenario.bring(&["HEAD:refs/heads/main", "HEAD:refs/heads/old", "HEAD:refs/heads/older"]).await?;
    let outcomes = scenario.record(&["main", "old", "older"], Trigger::Webhook).await?;
    let made: Vec<bool> = outcomes.iter().map(|outcome| outcome.environment_id.is_some()).collect();
    assert_eq!(made, [true, false, false]);
    // A branch that appears later is somebody's push.
    scenario.bring(&["HEAD:refs/heads/new"]).await?;
    let outcome = scenario.record(&["new"], Trigger::Webhook).await?.pop().context("one outcome")?;
    assert!(outcome.environment_id.is_some());
    Ok(())
}

async fn free_instance(scenario: &Scenario, name: &str) -> Result<InstanceId> {
    let request = InstanceRequest {
        project: scenario.project,
        name: name.to_owned(),
        slug: None,
        branch: None,
        stage: None,
        odoo_version: None,
        settings: SettingsPatch::default(),
    };
    Ok(instances::create(&scenario.store.control, &scenario.grant::<ManageInstances>()?, request).await?.id)
}

#[tokio::test]
async fn a_mapping_leads_branches_to_an_instance_by_priority() -> Result<()> {
    let scenario = Scenario::new().await?;
    let (low, high) = (free_instance(&scenario, "low").await?, free_instance(&scenario, "high").await?);
    let mapping = |pattern: &str, instance_id, priority| NewBranchMapping { branch_pattern: pattern.to_owned(), instance_id, priority };
    let mappings = vec![mapping("release/19.*", low, 1), mapping("release/*", high, 2)];
    projects::set_branch_mappings(&scenario.store.control, &scenario.grant::<ManageProjects>()?, scenario.project, mappings).await?;
    scenario.commit("first")?;
    let first = scenario.push("release/19.0").await?;
    let environment = scenario.environment_of(&first).await?;
    assert_eq!((environment.instance_id, environment.branch.as_str()), (high, "release/19.0"));
    scenario.go_live(first.deployment_id.context("it is deployed")?).await?;
    // The next release goes to the same environment, which follows it from now on.
    scenario.commit("second")?;
    let second = scenario.push("release/19.1").await?;
    assert_eq!(second.environment_id, first.environment_id);
    assert!(second.message.starts_with("release/19.0 follows release/19.1 now, instead of release/19.0; "), "{}", second.message);
    assert_eq!(scenario.environment_of(&second).await?.branch, "release/19.1");
    assert!(second.deployment_id.is_some());
    Ok(())
}

#[tokio::test]
async fn branches_that_give_the_same_name_get_different_slugs() -> Result<()> {
    let scenario = Scenario::new().await?;
    scenario.commit("first")?;
    let mut slugs = Vec::new();
    let long = "x".repeat(200);
    for branch in ["fix/a", "fix-a", "Fix_A", "größe", "日本", "中国", &long, &format!("{long}y")] {
        let environment = scenario.environment_of(&scenario.push(branch).await?).await?;
        assert!(environment.instance_slug.len() <= 63 && environment.instance_slug.is_ascii(), "{}", environment.instance_slug);
        assert_eq!(environment.branch, branch);
        slugs.push(environment.instance_slug);
    }
    assert_eq!(slugs[0], "shop-fix-a");
    assert!(slugs[1].starts_with("shop-fix-a-"), "{}", slugs[1]);
    slugs.sort();
    slugs.dedup();
    assert_eq!(slugs.len(), 8);
    Ok(())
}

#[tokio::test]
async fn commits_since_lists_what_a_commit_does_not_have() -> Result<()> {
    let scenario = Scenario::new().await?;
    let first = scenario.commit("first")?;
    scenario.commit("second")?;
    scenario.commit("third\n\nwith a body")?;
    scenario.push("main").await?;
    let grant = scenario.grant::<ViewProjects>()?;
    let control = &scenario.store.control;
    let (commits, total) = branches::commits_since(control, &grant, scenario.project, &first.parse()?, &"main".parse()?).await?;
    let messages: Vec<&str> = commits.iter().map(|commit| commit.message.as_str()).collect();
    assert_eq!((messages, total), (vec!["third\n\nwith a body", "second"], 2));
    let unknown = "0".repeat(40).parse()?;
    let error = branches::commits_since(control, &grant, scenario.project, &unknown, &"main".parse()?).await.unwrap_err();
    assert!(matches!(error, Error::NotFound { what: "commit" }), "{error:?}");
    let error = branches::commits_since(control, &grant, scenario.project, &first.parse()?, &"gone".parse()?).await.unwrap_err();
    assert!(matches!(error, Error::NotFound { what: "branch" }), "{error:?}");
    let other = scenario.store.organization("other").await?;
    let error =
        branches::commits_since(control, &other.scope.grant()?, scenario.project, &first.parse()?, &"main".parse()?).await.unwrap_err();
    assert!(matches!(error, Error::NotFound { what: "project" }), "{error:?}");
    Ok(())
}
