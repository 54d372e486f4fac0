//! An Odoo that oCore has nothing to do with: it runs by its own commands on a PostgreSQL and in a directory of its own, as somebody's server
//! does before they come to us, or after they have gone.

use std::{
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use sqlx::{AssertSqlSafe, PgPool, postgres::PgPoolOptions};

use crate::store::Store;

/// Its role in the database: Odoo refuses to run as the superuser.
const ROLE: &str = "elsewhere";

pub struct Elsewhere {
    /// Keeps the cluster, and has a database of its own to ask from.
    store: Store,
    data_directory: tempfile::TempDir,
    distribution: PathBuf,
    addons: PathBuf,
}

impl Elsewhere {
    /// With this machine's Odoo; `addons` holds the modules that do not come with it.
    pub async fn new(addons: &Path) -> Result<Self> {
        let distributions = std::env::var_os("OCORE_TEST_ODOO").map_or_else(|| PathBuf::from("/var/cache/ocore/odoo"), PathBuf::from);
        let store = Store::new().await?;
        let role = format!("do $$ begin if to_regrole('{ROLE}') is null then create role {ROLE} login createdb; end if; end $$");
        sqlx::raw_sql(AssertSqlSafe(role)).execute(&store.control.pool).await?;
        Ok(Self { store, data_directory: tempfile::tempdir()?, distribution: distributions.join("19.0"), addons: addons.to_owned() })
    }

    /// `odoo db <words>`: load, dump and the rest of its database manager.
    pub fn database_manager(&self, words: &[&str]) -> Result<()> {
        let about: Value = serde_json::from_slice(&std::fs::read(self.distribution.join("distribution.json"))?)?;
        let program = |key: &str| about[key].as_str().map(|path| self.distribution.join(path)).with_context(|| format!("no {key} of Odoo"));
        let output = Command::new(program("python")?)
            .arg(program("program")?)
            .arg("db")
            .arg("--data-dir")
            .arg(self.data_directory.path())
            .arg("--addons-path")
            .arg(&self.addons)
            .args(["--db_user", ROLE, "--db_host"])
            .arg(self.socket_directory()?)
            .args(words)
            .current_dir(self.data_directory.path())
            .env("HOME", self.data_directory.path())
            .stdin(Stdio::null())
            .output()
            .context("cannot run Odoo")?;
        ensure!(output.status.success(), "odoo db {words:?}: {}", String::from_utf8_lossy(&output.stderr));
        Ok(())
    }

    /// Where files of a database lie.
    pub fn file_store(&self, database: &str) -> PathBuf {
        self.data_directory.path().join("filestore").join(database)
    }

    /// As `pg_dump` and `psql` take it.
    pub fn url(&self, database: &str) -> Result<String> {
        Ok(format!("postgresql://{ROLE}@/{database}?host={}", self.socket_directory()?.display()))
    }

    /// The one value that a query of a database gives.
    pub async fn value(&self, database: &str, query: &str) -> Result<Option<String>> {
        let pool: PgPool = PgPoolOptions::new().max_connections(1).connect_with(self.store.connect_options().database(database)).await?;
        let value = sqlx::query_scalar(AssertSqlSafe(query.to_owned())).fetch_one(&pool).await;
        pool.close().await;
        Ok(value?)
    }

    fn socket_directory(&self) -> Result<PathBuf> {
        self.store.connect_options().get_socket().cloned().context("the cluster of the tests has no socket")
    }
}
