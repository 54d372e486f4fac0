use anyhow::Result;
use chrono::TimeDelta;
use ocore_control::{Error, authorization::System, servers};
use ocore_host::{Distribution, HostFacts, PoolFacts};
use ocore_testkit::{NoHost, Store};

fn facts(hostname: &str) -> HostFacts {
    HostFacts {
        hostname: hostname.to_owned(),
        os_name: "Debian".to_owned(),
        os_version: "12".to_owned(),
        cpu_cores: 2,
        ram_total_bytes: 24 << 30,
        pool: PoolFacts {
            path: "/var/lib/ocore/pool".to_owned(),
            file_system: "xfs".to_owned(),
            reflinks: true,
            total_bytes: 100 << 30,
            available_bytes: 60 << 30,
        },
        distributions: vec![Distribution {
            odoo_version: "19.0".parse().expect("a version"),
            id: "19.0-1".to_owned(),
            modules: Vec::new(),
        }],
    }
}

#[tokio::test]
async fn a_machine_keeps_its_row_when_its_name_changes_and_another_gets_its_own() -> Result<()> {
    let store = Store::new().await?;
    let (pool, clock) = (&store.control.pool, &*store.clock);
    let register = async |hostname: &str, known| {
        servers::register_this_machine(System, pool, &NoHost { facts: Some(facts(hostname)), mail: None }, clock, known).await
    };
    let first = register("one", None).await?;
    assert_eq!(register("one", None).await?, first);
    assert_eq!(register("renamed", Some(first)).await?, first);
    let second = register("two", None).await?;
    assert_ne!(second, first);
    assert_eq!(register("two", Some(ocore_model::ids::ServerId::new())).await?, second);

    let owner = store.organization("acme").await?;
    let server = servers::show(&store.control, &owner.scope.grant()?, first).await?;
    assert_eq!((server.host.as_str(), server.odoo_versions.as_slice()), ("renamed", &["19.0".to_owned()][..]));
    assert_eq!(server.pool, Some(facts("renamed").pool));
    Ok(())
}

#[tokio::test]
async fn a_server_that_falls_silent_is_shown_as_unreachable_until_its_next_heartbeat() -> Result<()> {
    let mut store = Store::with_host(std::sync::Arc::new(NoHost { facts: Some(facts("one")), mail: None })).await?;
    store.control.server_id =
        servers::register_this_machine(System, &store.control.pool, &*store.control.host, &*store.clock, None).await?;
    let owner = store.organization("acme").await?;
    let status = async || servers::show(&store.control, &owner.scope.grant()?, store.control.server_id).await.map(|server| server.status);
    assert_eq!(status().await?, "active");
    store.clock.advance(TimeDelta::minutes(6));
    assert_eq!(status().await?, "unreachable");
    servers::heartbeat(System, &store.control).await?;
    assert_eq!(status().await?, "active");
    Ok(())
}

#[tokio::test]
async fn a_server_of_another_organization_is_not_there() -> Result<()> {
    let store = Store::new().await?;
    let acme = store.organization("acme").await?;
    let globex = store.organization("globex").await?;
    let id = ocore_model::ids::ServerId::new();
    sqlx::query("insert into servers (id, organization_id, name, host, status) values ($1, $2, 'own', 'own', 'active')")
        .bind(id.as_uuid())
        .bind(acme.scope.organization_id.as_uuid())
        .execute(&store.control.pool)
        .await?;
    assert_eq!(servers::show(&store.control, &acme.scope.grant()?, id).await?.name, "own");
    assert!(matches!(servers::show(&store.control, &globex.scope.grant()?, id).await, Err(Error::NotFound { .. })));
    Ok(())
}
