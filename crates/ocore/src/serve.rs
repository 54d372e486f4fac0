//! `ocore serve`: puts the control plane together, runs it, and takes it apart again without touching what it runs.

use std::{io::Write, path::PathBuf, sync::Arc, time::Duration};

use anyhow::{Context, Result};
use ocore_api::{AppState, Patience};
use ocore_control::{
    Control, Settings, accounts, authorization::System, operations::Engine, reconcilers::Reconcilers, secrets::Secret, servers,
    signals::Signals, store::pool_options,
};
use ocore_host::local::{LocalHost, PrivateCluster};
use ocore_model::{clock::SystemClock, ids::ServerId};
use sqlx::PgPool;
use tokio::net::TcpListener;

use crate::{companion::Companion, config::Config, lock::ServerLock, port_keeper::PortKeeper, shutdown, succession::EdgeProcess};

/// How long everything may take to end once we are asked to stop, and how long answers under way may.
const GRACE: Duration = Duration::from_secs(20);
const ANSWER_GRACE: Duration = Duration::from_secs(5);

pub async fn run(config: Config, config_file: Option<PathBuf>) -> Result<()> {
    let shutdown = shutdown::on_signal()?;
    config.check_names()?;
    if config.api_lies_among_instances() {
        tracing::warn!(
            public_url = config.public_url,
            base_domain = config.base_domain,
            "the API lies below the base domain; give it a name outside of it"
        );
    }
    let _lock = ServerLock::take(&config.home)?;
    config.close_directories()?;
    // Before anything is started: a taken port is the operator's to solve.
    let listener = TcpListener::bind(config.listen)
        .await
        .with_context(|| format!("cannot listen at {}: another program has that port; set `listen` to another address", config.listen))?;

    let keeper = PortKeeper::new(&config, config_file.clone());
    keeper.ensure().await?;
    let host = Arc::new(LocalHost::open(config.host()).await?);
    host.hold_ports().await?;
    let edge = EdgeProcess::new(&config, config_file.clone());
    edge.ensure().await?;
    if edge.is_another_program().unwrap_or(false)
        && let Err(error) = edge.upgrade().await
    {
        // It serves as before; another version of it is no reason not to start.
        tracing::warn!(error = format!("{error:#}"), "the edge is still the one of another version");
    }
    let catcher = Companion::mail(&config, config_file);
    catcher.ensure().await?;
    let pool = connect(&config).await?;
    ocore_control::migrate(&pool).await.context("the store cannot be brought up to date")?;
    let control = Control {
        pool: pool.clone(),
        server_id: register(&config, &pool, host.as_ref()).await?,
        host: host.clone(),
        clock: Arc::new(SystemClock),
        settings: Arc::new(settings(&config)?),
        signals: Signals::default(),
    };

    if let Some(token) = accounts::keep_first_account_file(System, &control).await.context("the first account's token cannot be kept")? {
        announce(&config, &token);
    }
    let sealed = ocore_control::variables::seal_all(System, &control).await.context("the variables of instances cannot be sealed")?;
    if sealed > 0 {
        tracing::info!(sealed, "the environment variables of instances are sealed from now on");
    }

    let engine = Engine::start(control.clone(), shutdown.clone()).await.context("the operations engine cannot start")?;
    let reconcilers = Reconcilers::start(&control, &shutdown);
    let patrols = [
        tokio::spawn(keeper.patrol(host, shutdown.clone())),
        tokio::spawn(edge.patrol(shutdown.clone())),
        tokio::spawn(catcher.patrol(shutdown.clone())),
    ];
    tracing::info!(address = %config.listen, "the API listens");
    let serving = tokio::spawn(ocore_api::serve(listener, ocore_api::router(AppState { control }), Patience::default(), shutdown.clone()));

    shutdown.cancelled().await;
    tracing::info!("stopping; what runs goes on");
    let ended = async {
        engine.stopped().await;
        reconcilers.stopped().await;
        for patrol in patrols {
            let _ = patrol.await;
        }
        // Followers of long streams hold their connections open; they come back to the next server.
        let _ = tokio::time::timeout(ANSWER_GRACE, serving).await;
        pool.close().await;
    };
    if tokio::time::timeout(GRACE, ended).await.is_err() {
        tracing::warn!("not everything ended in time; the next start takes over what is unfinished");
    }
    Ok(())
}

/// Tells whoever starts this how the first account is made. Not in the log, which may go elsewhere and has a filter.
fn announce(config: &Config, token: &str) {
    // Whether anybody reads it or not, the server serves.
    let _ = writeln!(
        std::io::stdout(),
        "There is no account yet. Make the first one with\n    ocore --url {} signup --email you@example.com --name \"Your name\" --token {token}\n\
         The token is also in {}; it works once.",
        config.public_url,
        config.first_account_file().display()
    );
}

/// This machine's row. Its id is kept in the home, so that the machine stays the same when its name changes.
async fn register(config: &Config, pool: &PgPool, host: &LocalHost) -> Result<ServerId> {
    let path = config.home.join("server-id");
    let known = std::fs::read_to_string(&path).ok().and_then(|text| text.trim().parse().ok());
    let id = servers::register_this_machine(System, pool, host, &SystemClock, known).await.context("this machine cannot be registered")?;
    if known != Some(id) {
        std::fs::write(&path, id.to_string()).with_context(|| format!("cannot write {}", path.display()))?;
    }
    Ok(id)
}

/// The address of the control plane's database: the configured one, or that of the private cluster, which is started for it.
pub async fn database_url(config: &Config) -> Result<String> {
    if config.database.url.is_empty() {
        Ok(PrivateCluster::start(&config.host()).await?.url())
    } else {
        Ok(config.database.url.expose().to_owned())
    }
}

async fn connect(config: &Config) -> Result<PgPool> {
    pool_options()
        .min_connections(1)
        .max_connections(20)
        .acquire_timeout(Duration::from_secs(10))
        .idle_timeout(Duration::from_secs(120))
        .connect(&database_url(config).await?)
        .await
        .context("the control plane's database cannot be reached")
}

fn settings(config: &Config) -> Result<Settings> {
    Ok(Settings {
        secret: Secret::new(config.secret()?),
        access_token_lifetime: config.access_token_lifetime(),
        refresh_token_lifetime: config.refresh_token_lifetime(),
        open_signup: config.auth.open_signup,
        limits: config.tenant_limits(),
        first_account_file: config.first_account_file(),
        trusted_proxies: config.trusted_proxies.clone(),
        metrics_token: Secret::new(config.metrics_token()?),
        base_domain: config.base_domain.clone(),
        edge_scheme: config.edge.scheme.clone(),
        edge_port: config.edge_port(),
        public_url: config.public_url.clone(),
        repositories: config.repositories(),
        push_limit: config.git.push_limit_bytes,
        sleep: config.sleep.settings(),
        shared_templates: config.templates.shared,
        allow_file_repositories: config.git.allow_file_repositories,
        allow_local_repositories: config.git.allow_local_repositories,
        repository_networks: config.git.networks()?,
        repository_ports: config.git.allow_ports.clone(),
        fetch_limit: config.git.fetch_limit_bytes,
        parallel_operations: config.parallel_operations(),
        edge_socket: config.edge_socket(),
        mail_relay: config.mail.relay(),
    })
}
