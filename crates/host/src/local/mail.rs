//! The instance's side of the mail catcher: its mailbox, and the database whose Odoo must send nowhere else.

use std::net::SocketAddr;

use ocore_model::{
    ids::{DataSetId, InstanceId},
    mail::MailboxSpec,
};
use sqlx::{Connection, PgConnection};

use super::{LocalHost, copy};
use crate::error::{HostError, Result};

/// The name of the one server that may be active; quarantine gives it to copies.
const CATCHER: &str = "oCore mail catcher";

impl LocalHost {
    /// The instance's Odoo sends to the catcher, whether that runs at the moment or not.
    pub(super) fn has_mailbox(&self, instance: InstanceId) -> bool {
        self.layout.mailbox(instance).join("mailbox.json").exists()
    }

    pub(super) async fn make_mailbox(&self, instance: InstanceId) -> Result<()> {
        let allocation = self.allocation(instance).await?;
        self.mail.put(instance, &MailboxSpec { port: allocation.mail, uid: allocation.odoo.uid }).await
    }

    /// Removes the mailbox with its messages. Absent is done, also when there is no catcher at all.
    pub(super) async fn remove_mailbox(&self, instance: InstanceId) -> Result<()> {
        let directory = self.layout.mailbox(instance);
        if !directory.exists() {
            return Ok(());
        }
        if let Err(error) = self.mail.remove(instance).await {
            // The catcher is away, and reads what is there when it starts.
            tracing::warn!(%instance, %error, "the mail catcher is away; its files are removed without it");
        }
        copy::remove(&directory).await
    }

    pub(super) async fn catch_mail_of(&self, instance: InstanceId, data_set: DataSetId) -> Result<Vec<String>> {
        if !self.has_mailbox(instance) {
            return Ok(Vec::new());
        }
        let allocation = self.allocation(instance).await?;
        let cluster = self.cluster(&allocation, instance, data_set)?;
        if cluster.find()?.is_none() {
            return Ok(Vec::new());
        }
        let mut connection = cluster.connect_as_owner().await?;
        catch(&mut connection, allocation.mail_address())
            .await
            .map_err(|error| HostError::machine_from(format!("the outgoing mail servers of the database could not be set: {error}"), error))
    }
}

async fn has(connection: &mut PgConnection, table: &str, column: &str) -> sqlx::Result<bool> {
    sqlx::query_scalar(
        "select exists (select from pg_catalog.pg_attribute
                        where attrelid = to_regclass('public.' || quote_ident($1)) and attname = $2 and not attisdropped)",
    )
    .bind(table)
    .bind(column)
    .fetch_one(connection)
    .await
}

/// One transaction, as the database's owner. Says what was active and is not any more.
async fn catch(connection: &mut PgConnection, catcher: SocketAddr) -> sqlx::Result<Vec<String>> {
    let mut transaction = connection.begin().await?;
    sqlx::query("select set_config('lock_timeout', '5s', true), set_config('statement_timeout', '20s', true)")
        .execute(&mut *transaction)
        .await?;
    let mut done = Vec::new();
    if has(&mut transaction, "ir_mail_server", "smtp_host").await? {
        let ours: Option<i32> = sqlx::query_scalar("select min(id) from public.ir_mail_server where name = $1")
            .bind(CATCHER)
            .fetch_one(&mut *transaction)
            .await?;
        let others: Vec<String> =
            sqlx::query_scalar("update public.ir_mail_server set active = false where active is distinct from false and id is distinct from $1 returning name::text")
                .bind(ours)
                .fetch_all(&mut *transaction)
                .await?;
        done.extend(
            others
                .into_iter()
                .map(|name| format!("The outgoing mail server {name:?} was switched off: mail of this environment is caught.")),
        );
        let (host, port) = (catcher.ip().to_string(), i32::from(catcher.port()));
        let id: i32 = if let Some(id) = ours {
            id
        } else {
            // Columns without a default differ between versions; these are required in all of them.
            let columns = if has(&mut transaction, "ir_mail_server", "smtp_authentication").await? {
                "(name, smtp_host, smtp_port, smtp_encryption, active, smtp_authentication) values ($1, $2, $3, 'none', true, 'login')"
            } else {
                "(name, smtp_host, smtp_port, smtp_encryption, active) values ($1, $2, $3, 'none', true)"
            };
            sqlx::query_scalar(sqlx::AssertSqlSafe(format!("insert into public.ir_mail_server {columns} returning id")))
                .bind(CATCHER)
                .bind(&host)
                .bind(port)
                .fetch_one(&mut *transaction)
                .await?
        };
        sqlx::query(
            "update public.ir_mail_server
                set smtp_host = $2, smtp_port = $3, smtp_encryption = 'none', smtp_user = null, smtp_pass = null, sequence = 1, active = true
              where id = $1 and (smtp_host, smtp_port, smtp_encryption, smtp_user, smtp_pass, active)
                                is distinct from ($2, $3, 'none', null, null, true)",
        )
        .bind(id)
        .bind(&host)
        .bind(port)
        .execute(&mut *transaction)
        .await?;
        if has(&mut transaction, "ir_mail_server", "from_filter").await? {
            sqlx::query("update public.ir_mail_server set from_filter = null where id = $1 and from_filter is not null")
                .bind(id)
                .execute(&mut *transaction)
                .await?;
        }
    }
    if has(&mut transaction, "fetchmail_server", "active").await? {
        let fetching: Vec<String> =
            sqlx::query_scalar("update public.fetchmail_server set active = false where active returning name::text")
                .fetch_all(&mut *transaction)
                .await?;
        done.extend(fetching.into_iter().map(|name| format!("The incoming mail server {name:?} was switched off.")));
    }
    transaction.commit().await?;
    Ok(done)
}
