use anyhow::Result;
use ocore_control::{
    Error,
    authorization::{ManageMembers, ManageOrganization},
    members, organizations,
};
use ocore_testkit::{Store, store::Owned};

/// Rows of an instance with an environment and a deployment that were deleted, as their history stays.
async fn insert_history(store: &Store, owner: &Owned) -> Result<()> {
    let ids: [uuid::Uuid; 6] = std::array::from_fn(|_| uuid::Uuid::now_v7());
    let [project, instance, environment, deployment, step, operation] = ids;
    let organization = owner.scope.organization_id.as_uuid();
    for (statement, parameters) in [
        (
            "insert into projects (id, organization_id, name, slug, odoo_version, module_selection, repository_kind)
             values ($1, $2, 'Shop', 'shop', '19.0', '{\"kind\": \"own\"}', 'built_in')",
            vec![project, organization],
        ),
        (
            "insert into instances (id, organization_id, project_id, server_id, name, slug, status, odoo_version, settings)
             values ($1, $2, $3, $4, 'shop', 'shop', 'deleted', '19.0', '{}')",
            vec![instance, organization, project, store.control.server_id.as_uuid()],
        ),
        (
            "insert into environments (id, organization_id, project_id, instance_id, name, branch, stage, commit_behavior, status)
             values ($1, $2, $3, $4, 'main', 'main', 'production', 'update_previous_build', 'deleted')",
            vec![environment, organization, project, instance],
        ),
        (
            "insert into deployments (id, organization_id, project_id, environment_id, instance_id, status, trigger_type, branch, commit_sha,
                                      commit_author, commit_author_email, commit_message, data_origin)
             values ($1, $2, $3, $4, $5, 'succeeded', 'push', 'main', 'a', 'Ada', 'ada@example.com', 'First', '{\"kind\": \"fresh\"}')",
            vec![deployment, organization, project, environment, instance],
        ),
        (
            "insert into deployment_steps (id, deployment_id, name, sort_order, status) values ($1, $2, 'checkout', 1, 'succeeded')",
            vec![step, deployment],
        ),
        (
            "insert into operations (id, kind, organization_id, instance_id, deployment_id, parameters, status, schema_version)
             values ($1, 'deploy', $2, $3, $4, '{}', 'succeeded', 1)",
            vec![operation, organization, instance, deployment],
        ),
    ] {
        let mut query = sqlx::query(statement);
        for parameter in parameters {
            query = query.bind(parameter);
        }
        query.execute(&store.control.pool).await?;
    }
    let mirror = store.control.settings.repositories.join(format!("{project}.git"));
    std::fs::create_dir(mirror)?;
    Ok(())
}

#[tokio::test]
async fn an_organization_goes_with_its_history_and_its_repositories_and_takes_nobody_elses() -> Result<()> {
    let store = Store::new().await?;
    let acme = store.organization("acme").await?;
    let globex = store.organization("globex").await?;
    insert_history(&store, &acme).await?;
    let gone = organizations::remove(&store.control, &acme.scope.grant::<ManageOrganization>()?, Some("acme")).await?;
    assert_eq!(gone, organizations::Removed::Gone);
    let left: Vec<String> = sqlx::query_scalar("select slug from organizations").fetch_all(&store.control.pool).await?;
    assert_eq!(left, ["globex"]);
    let left: i64 = sqlx::query_scalar(
        "select (select count(*) from projects) + (select count(*) from deployments) + (select count(*) from deployment_steps)
              + (select count(*) from operations)",
    )
    .fetch_one(&store.control.pool)
    .await?;
    assert_eq!(left, 0);
    assert_eq!(std::fs::read_dir(&store.control.settings.repositories)?.count(), 0);
    assert_eq!(members::list(&store.control, &globex.scope.grant()?).await?.len(), 1);
    Ok(())
}

#[tokio::test]
async fn an_organization_with_an_instance_stays() -> Result<()> {
    let store = Store::new().await?;
    let acme = store.organization("acme").await?;
    insert_history(&store, &acme).await?;
    sqlx::query("update instances set status = 'stopped'").execute(&store.control.pool).await?;
    let refused = organizations::remove(&store.control, &acme.scope.grant()?, None).await;
    assert!(matches!(refused, Err(Error::Conflict { code: "organization_in_use", .. })), "{refused:?}");
    Ok(())
}

#[tokio::test]
async fn two_owners_who_remove_each_other_at_once_leave_one() -> Result<()> {
    let store = Store::new().await?;
    let one = store.organization("acme").await?;
    let other = store.member(&one.scope, "other@example.com", "Owner").await?;
    let list = members::list(&store.control, &one.scope.grant()?).await?;
    let id = |owner: &Owned| list.iter().find(|member| member.user_id == owner.login.user.id).map(|member| member.id);
    let (Some(one_id), Some(other_id)) = (id(&one), id(&other)) else { panic!("two members: {list:?}") };
    let (one_grant, other_grant) = (one.scope.grant::<ManageMembers>()?, other.scope.grant::<ManageMembers>()?);
    let (first, second) =
        tokio::join!(members::remove(&store.control, &one_grant, other_id), members::remove(&store.control, &other_grant, one_id));
    assert!(first.is_ok() != second.is_ok(), "{first:?} {second:?}");
    let left = members::list(&store.control, &one.scope.grant()?).await?;
    assert!(left.len() == 1 && left[0].is_owner, "{left:?}");
    Ok(())
}
