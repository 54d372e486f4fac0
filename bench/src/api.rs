//! List, get and pipeline of an organization with 1,000 environments under 16 clients, beside the bare SQL.

use std::{
    path::PathBuf,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use ocore_testkit::{Installation, Options};
use serde_json::json;
use sqlx::{AssertSqlSafe, PgPool, postgres::PgPoolOptions};
use uuid::Uuid;

use crate::report::{Report, Target, quantile, rounded};

const ENVIRONMENTS: i32 = 1000;
const CLIENTS: usize = 16;

pub async fn run(binary: PathBuf, seconds: u64) -> Result<()> {
    let installation = Installation::start(binary, Options::default()).await?;
    let owner = installation.owner("bench@example.com", "Bench").await?;
    let project = owner.project("Bench", json!({ "createEnvironmentOnPush": false })).await?;
    let project_id: Uuid = project["id"].as_str().context("no id")?.parse()?;
    let store = PgPoolOptions::new().max_connections(CLIENTS as u32).connect(&store_url(&installation)?).await?;
    fill(&store, project_id, ENVIRONMENTS).await?;
    let first = owner.get("/environments").await?;
    ensure!(first["total"] == ENVIRONMENTS, "{}", first["total"]);
    let one = first["environments"][500]["id"].as_str().context("no id")?.to_owned();

    let duration = Duration::from_secs(seconds);
    let mut report = Report::new("api");
    let select = include_str!("environments.sql");
    let requests = [
        ("list", "/environments".to_owned(), select.to_owned()),
        ("get", format!("/environments/{one}"), format!("{select} and environment.id = '{one}'")),
        ("pipeline", format!("/projects/{project_id}/pipeline"), format!("{select} and environment.project_id = '{project_id}'")),
    ];
    for (name, path, sql) in requests {
        let over_http = load(duration, |_| {
            let (client, url) = (reqwest::Client::new(), format!("{}/api{path}", owner.url));
            let (token, organization) = (owner.token.clone().unwrap_or_default(), owner.organization.clone().unwrap_or_default());
            // The clock stops when the body is there. What a client does with it is not ours; and these clients share the server's cores.
            async move || {
                let request = client.get(&url).bearer_auth(&token).header("x-org-slug", &organization);
                request.send().await?.error_for_status()?.bytes().await?;
                Ok(())
            }
        })
        .await?;
        let raw = load(duration, |_| {
            let store = store.clone();
            let sql = sql.clone();
            async move || {
                sqlx::query(AssertSqlSafe(sql.clone())).fetch_all(&store).await?;
                Ok(())
            }
        })
        .await?;
        report.rows.push(json!({
            "request": name, "clients": CLIENTS, "per second": over_http.len() as u64 / seconds,
            "p50 ms": rounded(quantile(&over_http, 0.5)), "p99 ms": rounded(quantile(&over_http, 0.99)),
            "raw SQL p50 ms": rounded(quantile(&raw, 0.5)), "raw SQL p99 ms": rounded(quantile(&raw, 0.99)),
            "p50 ratio": rounded(quantile(&over_http, 0.5) / quantile(&raw, 0.5)),
        }));
        report.targets.push(Target::at_most(
            format!("{name} of {ENVIRONMENTS} environments, p99 with {CLIENTS} clients"),
            "ms",
            quantile(&over_http, 0.99),
            20.0,
        ));
    }
    report.finish()
}

/// Sorted latencies in milliseconds of `CLIENTS` clients that ask again as soon as they are answered.
async fn load<A>(duration: Duration, mut client: impl FnMut(usize) -> A) -> Result<Vec<f64>>
where
    A: AsyncFnMut() -> Result<()>,
{
    let end = Instant::now() + duration;
    let clients = (0..CLIENTS).map(|number| {
        let mut ask = client(number);
        async move {
            let mut latencies = Vec::new();
            while Instant::now() < end {
                let begin = Instant::now();
                ask().await?;
                latencies.push(begin.elapsed().as_secs_f64() * 1000.0);
            }
            anyhow::Ok(latencies)
        }
    });
    let mut all = Vec::new();
    for latencies in futures::future::try_join_all(clients).await? {
        all.extend(latencies);
    }
    all.sort_by(f64::total_cmp);
    Ok(all)
}

pub fn store_url(installation: &Installation) -> Result<String> {
    let output = installation.command(&["config", "--database-url"]).output()?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    Ok(String::from_utf8(output.stdout)?.trim().to_owned())
}

/// 1,000 environments with an instance and three deployments each, as they would be after some weeks.
/// Environments of a project that nothing runs for.
pub async fn fill(store: &PgPool, project: Uuid, count: i32) -> Result<()> {
    for statement in include_str!("fill.sql").split(";\n").filter(|statement| !statement.trim().is_empty()) {
        sqlx::query(AssertSqlSafe(statement.replace("$project", &format!("'{project}'::uuid")).replace("$count", &count.to_string())))
            .execute(store)
            .await
            .with_context(|| statement.to_owned())?;
    }
    Ok(())
}
