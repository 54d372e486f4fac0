//! The administrator of an Odoo: whom Odoo's own data call `base.user_admin`, whatever the login is by now. A database whose data have forgotten that
//! one has the oldest user who may change settings.

use ocore_model::ids::{DataSetId, InstanceId};
use sqlx::{AssertSqlSafe, PgConnection};

use crate::{
    api::Administrator,
    error::{HostError, Result},
    local::{LocalHost, cluster::Cluster},
};

/// SQL for the number of that user.
const WHO: &str = "coalesce(
    (select u.id from public.ir_model_data d join public.res_users u on u.id = d.res_id
      where d.module = 'base' and d.name = 'user_admin' and d.model = 'res.users' limit 1),
    (select pg_catalog.min(u.id) from public.res_users u
       join public.res_groups_users_rel r on r.uid = u.id
       join public.ir_model_data g on g.res_id = r.gid and g.module = 'base' and g.name = 'group_system' and g.model = 'res.groups'
      where u.active and u.id > 1))";

/// Sets a password that Odoo has hashed.
pub(in crate::local) async fn set_password(cluster: &Cluster, hash: &str) -> Result<()> {
    let mut connection = cluster.connect_as_owner().await?;
    let statement = format!("update public.res_users set password = $1 where id = {WHO}");
    let done = sqlx::query(AssertSqlSafe(statement))
        .bind(hash)
        .execute(&mut connection)
        .await
        .map_err(|error| HostError::machine_from("the password of Odoo's administrator could not be set", error))?;
    if done.rows_affected() == 1 {
        Ok(())
    } else {
        Err(HostError::rejected(
            "the database has no administrator whose password could be set: neither base.user_admin nor a user of the group Settings is there",
        ))
    }
}

/// Lets the administrator of a copy in with the password alone: whoever it was is no archived user any more, and has no second factor, of which nobody
/// here has the device.
pub(in crate::local) async fn let_in(connection: &mut PgConnection) -> std::result::Result<(), sqlx::Error> {
    sqlx::query(AssertSqlSafe(format!("update public.res_users set active = true where active is distinct from true and id = {WHO}")))
        .execute(&mut *connection)
        .await?;
    if has_column(connection, "res_users", "totp_secret").await? {
        sqlx::query(AssertSqlSafe(format!("update public.res_users set totp_secret = null where totp_secret is not null and id = {WHO}")))
            .execute(&mut *connection)
            .await?;
    }
    Ok(())
}

impl LocalHost {
    pub(in crate::local) async fn administrator_if_running(
        &self,
        instance: InstanceId,
        data_set: DataSetId,
    ) -> Result<Option<Administrator>> {
        let _stays = self.data_locks.share(data_set).await;
        let allocation = self.allocation(instance).await?;
        let cluster = self.cluster(&allocation, instance, data_set)?;
        if cluster.find()?.is_none() {
            return Ok(None);
        }
        let asked = ask(&mut cluster.connect_as_owner().await?).await;
        asked.map_err(|error| HostError::machine_from("the database does not say who the administrator of its Odoo is", error))
    }
}

async fn ask(connection: &mut PgConnection) -> std::result::Result<Option<Administrator>, sqlx::Error> {
    if !has_column(connection, "res_users", "login").await? {
        return Ok(None);
    }
    let secret = if has_column(connection, "res_users", "totp_secret").await? {
        "coalesce(totp_secret::pg_catalog.text, '') <> ''"
    } else {
        "false"
    };
    // Codes by mail are asked of everybody, or of every employee (auth_totp_mail).
    let query = format!(
        "select pg_catalog.left(login::pg_catalog.text, 200), active, {secret} or exists (
            select from public.ir_config_parameter where key = 'auth_totp.policy' and value in ('all_required', 'employee_required'))
           from public.res_users where id = {WHO}"
    );
    let found: Option<(String, bool, bool)> = sqlx::query_as(AssertSqlSafe(query)).fetch_optional(connection).await?;
    Ok(found.map(|(login, is_active, has_second_factor)| Administrator { login, is_active, has_second_factor }))
}

async fn has_column(connection: &mut PgConnection, table: &str, column: &str) -> std::result::Result<bool, sqlx::Error> {
    sqlx::query_scalar(
        "select exists (select from pg_catalog.pg_attribute where attrelid = pg_catalog.to_regclass('public.' || $1) and attname = $2 and not attisdropped)",
    )
    .bind(table)
    .bind(column)
    .fetch_one(connection)
    .await
}
