//! `ocore serve`: puts the control plane together, runs it, and takes it apart again without touching what it runs.

use std::{net::SocketAddr, path::PathBuf, sync::Arc, time::Duration};

use anyhow::{Context, Result};
use ocore_api::AppState;
use ocore_control::{Control, Settings, servers, signals::Signals};
use ocore_host::local::{LocalHost, PrivateCluster};
use ocore_model::clock::SystemClock;
use sqlx::{PgPool, postgres::PgPoolOptions};
use tokio::net::TcpListener;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{config::Config, edge_process::EdgeProcess, lock::ServerLock, shutdown};

/// How long answers may take to end once we are asked to stop.
const GRACE: Duration = Duration::from_secs(10);

pub async fn run(config: Config, config_file: Option<PathBuf>) -> Result<()> {
    let shutdown = shutdown::on_signal()?;
    let _lock = ServerLock::take(&config.home)?;
    // Before anything is started: a taken port is the operator's to solve.
    let listener = TcpListener::bind(config.listen).await.with_context(|| {
        format!("cannot listen at {}: another program has that port; set `listen` to another address", config.listen)
    })?;

    let host = Arc::new(LocalHost::open(config.host()).await?);
    let pool = connect(&config).await?;
    ocore_control::migrate(&pool).await.context("the store cannot be brought up to date")?;

    let server_id = servers::register_this_machine(&pool, host.as_ref()).await.context("this machine cannot be registered")?;
    let control = Control {
        pool: pool.clone(),
        host,
        server_id,
        clock: Arc::new(SystemClock),
        settings: Arc::new(settings(&config)?),
        signals: Signals::default(),
    };

    let tasks = TaskTracker::new();
    tasks.spawn(EdgeProcess::new(&config, config_file).patrol(shutdown.clone()));
    let engine = ocore_control::operations::Engine::start(control.clone(), shutdown.clone()).await?;
    let service = ocore_api::router(AppState { control }).into_make_service_with_connect_info::<SocketAddr>();
    tracing::info!(address = %config.listen, "the API listens");
    let stop = shutdown.clone();
    let serving = tokio::spawn(async move { axum::serve(listener, service).with_graceful_shutdown(stop.cancelled_owned()).await });

    shutdown.cancelled().await;
    tracing::info!("stopping; what runs goes on");
    let abandon = CancellationToken::new();
    let _ = tokio::time::timeout(GRACE, async {
        if let Err(error) = serving.await.context("the API's task").and_then(|served| served.context("the API")) {
            tracing::error!(error = format!("{error:#}"), "the API did not end well");
        }
        engine.stopped().await;
        tasks.close();
        tasks.wait().await;
    })
    .await;
    abandon.cancel();
    pool.close().await;
    Ok(())
}

async fn connect(config: &Config) -> Result<PgPool> {
    let url = if config.database.url.is_empty() {
        PrivateCluster::start(&config.host()).await?.url()
    } else {
        config.database.url.clone()
    };
    PgPoolOptions::new()
        .min_connections(1)
        .max_connections(20)
        .acquire_timeout(Duration::from_secs(10))
        .idle_timeout(Duration::from_secs(120))
        .connect(&url)
        .await
        .context("the control plane's database cannot be reached")
}

fn settings(config: &Config) -> Result<Settings> {
    Ok(Settings {
        secret: config.secret()?,
        access_token_lifetime: config.access_token_lifetime(),
        refresh_token_lifetime: config.refresh_token_lifetime(),
        open_signup: config.auth.open_signup,
        base_domain: config.base_domain.clone(),
        edge_scheme: config.edge.scheme.clone(),
        edge_port: config.edge_port(),
        public_url: config.public_url.clone(),
        repositories: config.repositories(),
        push_limit: config.git.push_limit_bytes,
        allow_file_repositories: config.git.allow_file_repositories,
        allow_local_repositories: config.git.allow_local_repositories,
        parallel_operations: config.parallel_operations(),
        edge_socket: config.edge_socket(),
    })
}
