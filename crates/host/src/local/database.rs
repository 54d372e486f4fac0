//! What a data set's database says about itself.

use std::time::Duration;

use ocore_model::ids::{DataSetId, InstanceId};
use sqlx::PgConnection;

use super::{LocalHost, fence::Claim};
use crate::{
    api::{InstalledModule, ScheduledActions},
    error::{HostError, Result},
};

/// A row of Odoo's own tables takes no moment.
const PATIENCE: Duration = Duration::from_mins(2);
/// A view in the place of the table may have any number of rows of any length. `imported` is there in databases that know the module
/// `base_import_module`, `demo` in all.
const MODULES: &str = "
    select pg_catalog.left(name::pg_catalog.text, 200), pg_catalog.left(state::pg_catalog.text, 50), pg_catalog.left(latest_version::pg_catalog.text, 100),
           {imported}, {demo}
    from public.ir_module_module order by name limit 50000";
const LANGUAGES: &str = "select pg_catalog.left(code::pg_catalog.text, 50) from public.res_lang where active order by code limit 1000";
/// Odoo Studio keeps its changes in a module without files, which it does not mark.
pub(super) const STUDIO: &str = "studio_customization";

impl LocalHost {
    /// The modules that Odoo knows, by name; none in a database that no Odoo has filled.
    pub(super) async fn modules_in_database(&self, claim: &Claim, data_set: DataSetId) -> Result<Vec<InstalledModule>> {
        let cluster = self.run_cluster(claim.instance, data_set).await?;
        modules(&mut cluster.connect_as_owner().await?).await
    }

    pub(super) async fn modules_if_running(&self, instance: InstanceId, data_set: DataSetId) -> Result<Option<Vec<InstalledModule>>> {
        let _stays = self.data_locks.share(data_set).await;
        let allocation = self.allocation(instance).await?;
        let cluster = self.cluster(&allocation, instance, data_set)?;
        match cluster.find()? {
            Some(_) => Ok(Some(modules(&mut cluster.connect_as_owner().await?).await?)),
            None => Ok(None),
        }
    }

    /// `None` when the cluster does not run; none in a database that no Odoo has filled.
    pub(super) async fn languages_if_running(&self, instance: InstanceId, data_set: DataSetId) -> Result<Option<Vec<String>>> {
        let _stays = self.data_locks.share(data_set).await;
        let allocation = self.allocation(instance).await?;
        let cluster = self.cluster(&allocation, instance, data_set)?;
        match cluster.find()? {
            Some(_) => Ok(Some(languages(&mut cluster.connect_as_owner().await?).await?)),
            None => Ok(None),
        }
    }

    pub(super) async fn scheduled_actions_if_running(&self, instance: InstanceId, data_set: DataSetId) -> Result<Option<ScheduledActions>> {
        let _stays = self.data_locks.share(data_set).await;
        let allocation = self.allocation(instance).await?;
        let cluster = self.cluster(&allocation, instance, data_set)?;
        match cluster.find()? {
            Some(_) => Ok(Some(scheduled_actions(&mut cluster.connect_as_owner().await?).await?)),
            None => Ok(None),
        }
    }
}

/// None in a database that no Odoo has filled. The connection must be the owner's.
///
/// Odoo's worker locks the row of the action that it runs until it has ended (odoo/addons/base/models/ir_cron.py, `_acquire_one_job`), so that the
/// table is locked in that mode exactly then. Times in Odoo's tables are UTC.
async fn scheduled_actions(connection: &mut PgConnection) -> Result<ScheduledActions> {
    let query_error = |error| HostError::machine_from("the scheduled actions could not be read from the database", error);
    let is_filled: bool = sqlx::query_scalar("select to_regclass('public.ir_cron_trigger') is not null")
        .fetch_one(&mut *connection)
        .await
        .map_err(query_error)?;
    if !is_filled {
        return Ok(ScheduledActions::default());
    }
    let answer = sqlx::query_as(
        "select exists (select from pg_locks where locktype = 'relation' and relation = 'public.ir_cron'::regclass and mode = 'RowShareLock'
                                                   and database = (select oid from pg_database where datname = current_database())),
                (select min(due) at time zone 'UTC'
                 from (select nextcall as due from public.ir_cron where active
                       union all
                       select call_at from public.ir_cron_trigger join public.ir_cron on ir_cron.id = cron_id where active) as dues)",
    )
    .fetch_one(connection);
    let (running, next) = in_time(answer).await?.map_err(query_error)?;
    Ok(ScheduledActions { running, next })
}

/// The answer of a database whose owner may have put anything in the place of Odoo's tables, also what never ends.
pub(super) async fn in_time<T>(answer: impl Future<Output = T>) -> Result<T> {
    tokio::time::timeout(PATIENCE, answer).await.map_err(|_| {
        HostError::rejected(format!(
            "the database did not answer within {} s what modules and actions it has; something else is in the place of Odoo's tables, or locks them",
            PATIENCE.as_secs()
        ))
    })
}

/// Name, state, version, `imported` and `demo` of a module.
type Row = (String, Option<String>, Option<String>, bool, bool);

/// The modules that a database's Odoo knows, by name; none in a database that no Odoo has filled. The connection must be the owner's.
pub(super) async fn modules(connection: &mut PgConnection) -> Result<Vec<InstalledModule>> {
    let query_error = |error| HostError::machine_from("the modules could not be read from the database", error);
    let is_filled: bool = sqlx::query_scalar("select to_regclass('public.ir_module_module') is not null")
        .fetch_one(&mut *connection)
        .await
        .map_err(query_error)?;
    if !is_filled {
        return Ok(Vec::new());
    }
    let has_column = "select exists (select from pg_catalog.pg_attribute
                                     where attrelid = pg_catalog.to_regclass('public.ir_module_module') and attname = $1 and not attisdropped)";
    let mut query = MODULES.to_owned();
    for (column, otherwise) in [("imported", "false"), ("demo", "true")] {
        let has: bool = sqlx::query_scalar(has_column).bind(column).fetch_one(&mut *connection).await.map_err(query_error)?;
        let value = if has { format!("coalesce({column}::pg_catalog.bool, false)") } else { otherwise.to_owned() };
        query = query.replace(&format!("{{{column}}}"), &value);
    }
    let rows: Vec<Row> = in_time(sqlx::query_as(sqlx::AssertSqlSafe(query)).fetch_all(&mut *connection)).await?.map_err(query_error)?;
    let module = |(name, state, version, imported, demo): Row| InstalledModule {
        imported: imported || name == STUDIO,
        name,
        state: state.unwrap_or_else(|| "uninstalled".to_owned()),
        version,
        demo,
    };
    Ok(rows.into_iter().map(module).collect())
}

/// Odoo's codes of the active languages; none in a database that no Odoo has filled.
async fn languages(connection: &mut PgConnection) -> Result<Vec<String>> {
    let query_error = |error| HostError::machine_from("the languages could not be read from the database", error);
    let is_filled: bool =
        sqlx::query_scalar("select to_regclass('public.res_lang') is not null").fetch_one(&mut *connection).await.map_err(query_error)?;
    if !is_filled {
        return Ok(Vec::new());
    }
    in_time(sqlx::query_scalar(LANGUAGES).fetch_all(&mut *connection)).await?.map_err(query_error)
}
