//! The check: what must hold in a database before anything may start on it. Nothing of what was done before is trusted; each fact is read from
//! the database as it is. One that cannot be read does not hold.

use sqlx::{AssertSqlSafe, PgConnection};

use super::run_sql::lost;
use crate::{api::Fact, error::Result};

/// A fact of the database: no row may offend it.
struct Check {
    name: &'static str,
    /// The table that it is about; without it nothing can offend, unless it is one that every Odoo has.
    table: &'static str,
    /// A query for the number of rows that offend.
    offenders: &'static str,
    holds: &'static str,
    /// What `{n}` offenders mean.
    fails: &'static str,
}

/// What no Odoo database is without.
const ALWAYS: &[&str] = &["ir_config_parameter", "ir_mail_server", "ir_cron", "ir_module_module", "res_users"];

/// Either of them holds: mail goes by the one server of the database, or by none of them.
const BY_ROW: &str = "mail_servers";
const BY_CONFIGURATION: &str = "mail_servers_off";

const CHECKS: &[Check] = &[
    Check {
        name: "is_neutralized",
        table: "ir_config_parameter",
        offenders: "select 1 - count(*) from public.ir_config_parameter where key = 'database.is_neutralized' and lower(value) in ('true', 't', '1')",
        holds: "Odoo knows that its database is neutralized.",
        fails: "The parameter database.is_neutralized is not set, so Odoo does not know that its database is neutralized.",
    },
    Check {
        name: "secret",
        table: "ir_config_parameter",
        offenders: "select 1 - count(*) from public.ir_config_parameter where key = 'database.secret' and value = current_setting('ocore.secret')",
        holds: "The database has a secret of its own, so sessions and signed links of the original are void.",
        fails: "The database does not have the secret that was made for it.",
    },
    Check {
        name: "uuid",
        table: "ir_config_parameter",
        offenders: "select 1 - count(*) from public.ir_config_parameter where key = 'database.uuid' and value = current_setting('ocore.uuid')",
        holds: "The database has an identity of its own.",
        fails: "The database does not have the identity that was made for it.",
    },
    Check {
        name: "base_url",
        table: "ir_config_parameter",
        offenders: "select 2 - count(*) from public.ir_config_parameter \
                    where key = 'web.base.url' and value = current_setting('ocore.base_url') or key = 'web.base.url.freeze' and lower(value) in ('true', 't', '1')",
        holds: "Its address is the environment's, and frozen.",
        fails: "The parameter web.base.url is not the environment's address, or web.base.url.freeze is not set.",
    },
    Check {
        name: BY_ROW,
        table: "ir_mail_server",
        offenders: "select count(*) filter (where active) - 1 \
                         + 2 * (1 - least(1, count(*) filter (where active and smtp_host = current_setting('ocore.mail_host') \
                                and smtp_port = current_setting('ocore.mail_port')::integer and smtp_encryption = 'none' and coalesce(to_jsonb(s) ->> 'from_filter', '') = ''))) \
                      from public.ir_mail_server s",
        holds: "The one outgoing mail server is the environment's mail catcher.",
        fails: "The environment's mail catcher is not the one active outgoing mail server; see ir_mail_server.",
    },
    Check {
        name: BY_CONFIGURATION,
        table: "ir_mail_server",
        offenders: "select count(*) from public.ir_mail_server where active",
        holds: "No outgoing mail server of the database is active, and Odoo's configuration names the environment's mail catcher.",
        fails: "{n} outgoing mail server(s) are active; see ir_mail_server.",
    },
    Check {
        name: "incoming_mail",
        table: "fetchmail_server",
        offenders: "select count(*) from public.fetchmail_server where active",
        holds: "No mailbox is fetched from.",
        fails: "{n} incoming mail server(s) are active.",
    },
    Check {
        name: "crons",
        table: "ir_cron",
        offenders: "select count(*) from public.ir_cron where active and id not in \
                    (select res_id from public.ir_model_data where model = 'ir.cron' and module = 'base' and name = 'autovacuum_job')",
        holds: "No scheduled action is active but Odoo's own cleaning.",
        fails: "{n} scheduled action(s) are active.",
    },
    Check {
        name: "cron_triggers",
        table: "ir_cron_trigger",
        offenders: "select count(*) from public.ir_cron_trigger",
        holds: "No scheduled action has been asked for.",
        fails: "{n} run(s) of scheduled actions have been asked for.",
    },
    Check {
        name: "api_keys",
        table: "res_users_apikeys",
        offenders: "select count(*) from public.res_users_apikeys",
        holds: "There is no API key.",
        fails: "{n} API key(s) are valid.",
    },
    Check {
        name: "trusted_devices",
        table: "auth_totp_device",
        offenders: "select count(*) from public.auth_totp_device",
        holds: "No device skips the second factor.",
        fails: "{n} device(s) skip the second factor.",
    },
    Check {
        name: "oauth_providers",
        table: "auth_oauth_provider",
        offenders: "select count(*) from public.auth_oauth_provider where enabled",
        holds: "No OAuth provider is enabled.",
        fails: "{n} OAuth provider(s) are enabled.",
    },
    Check {
        name: "payment_providers",
        table: "payment_provider",
        offenders: "select count(*) from public.payment_provider where state <> 'disabled' and (state <> 'test' or code <> 'demo')",
        holds: "No payment provider takes money.",
        fails: "{n} payment provider(s) are enabled.",
    },
    Check {
        name: "payment_acquirers",
        table: "payment_acquirer",
        offenders: "select count(*) from public.payment_acquirer where state <> 'disabled'",
        holds: "No payment acquirer takes money.",
        fails: "{n} payment acquirer(s) are enabled.",
    },
    Check {
        name: "delivery_carriers",
        table: "delivery_carrier",
        offenders: "select count(*) from public.delivery_carrier where prod_environment or active and delivery_type not in ('fixed', 'base_on_rule')",
        holds: "No carrier is asked for anything.",
        fails: "{n} delivery method(s) of carriers are active or work for real.",
    },
    Check {
        name: "bank_connections",
        table: "account_online_link",
        offenders: "select count(*) from public.account_online_link where state = 'connected' or auto_sync",
        holds: "No bank is connected.",
        fails: "{n} bank connection(s) are alive.",
    },
    Check {
        name: "webhooks",
        table: "ir_act_server",
        offenders: "select count(*) from public.ir_act_server s where to_jsonb(s) ->> 'webhook_url' ~ '://'",
        holds: "No webhook has an address.",
        fails: "{n} webhook(s) have an address.",
    },
    Check {
        name: "pending_mails",
        table: "mail_mail",
        offenders: "select count(*) from public.mail_mail where state = 'outgoing'",
        holds: "No mail waits to be sent.",
        fails: "{n} mail(s) wait to be sent.",
    },
    Check {
        name: "pending_sms",
        table: "sms_sms",
        offenders: "select count(*) from public.sms_sms where state in ('outgoing', 'process', 'pending')",
        holds: "No SMS waits to be sent.",
        fails: "{n} SMS wait to be sent.",
    },
    Check {
        name: "pending_letters",
        table: "snailmail_letter",
        offenders: "select count(*) from public.snailmail_letter where state = 'pending'",
        holds: "No letter waits to be sent.",
        fails: "{n} letter(s) wait to be sent.",
    },
    Check {
        name: "queued_jobs",
        table: "queue_job",
        offenders: "select count(*) from public.queue_job where state in ('wait_dependencies', 'pending', 'enqueued', 'started')",
        holds: "No job waits to be done.",
        fails: "{n} job(s) wait to be done.",
    },
    Check {
        name: "push_messages",
        table: "mail_push_device",
        offenders: "select count(*) from public.mail_push_device",
        holds: "No browser is sent push messages.",
        fails: "{n} browser(s) would be sent push messages.",
    },
    Check {
        name: "digests",
        table: "digest_digest",
        offenders: "select count(*) from public.digest_digest where state <> 'deactivated'",
        holds: "No digest is sent.",
        fails: "{n} digest(s) are activated.",
    },
    Check {
        name: "calendars",
        table: "res_users_settings",
        offenders: "select count(*) from public.res_users_settings s \
                    where coalesce(to_jsonb(s) ->> 'google_synchronization_stopped', 'true') <> 'true' \
                       or coalesce(to_jsonb(s) ->> 'microsoft_synchronization_stopped', 'true') <> 'true'",
        holds: "No calendar is synchronized.",
        fails: "{n} user(s) synchronize their calendars.",
    },
    Check {
        name: "database_role",
        table: "res_users",
        offenders: "select (select count(*) from pg_roles where rolname = current_user and (rolsuper or rolcreaterole or rolcreatedb or rolreplication or rolbypassrls)) \
                         + (select count(*) from pg_roles where rolcanlogin and rolname not in (current_user, 'postgres')) \
                         + (select count(*) from pg_auth_members where member = (select oid from pg_roles where rolname = current_user))",
        holds: "The database's owner can do nothing outside it.",
        fails: "The database's owner has rights outside it, or there are other roles.",
    },
    Check {
        name: "foreign_servers",
        table: "res_users",
        offenders: "select (select count(*) from pg_foreign_server) + (select count(subname) from pg_subscription)",
        holds: "The database is connected to no other database.",
        fails: "The database has {n} connection(s) to other databases.",
    },
];

/// Every fact of the database. The settings `ocore.*` must be set in this connection.
/// `mail_by_configuration`: the servers of the database are off.
pub(super) async fn read(connection: &mut PgConnection, mail_by_configuration: bool) -> Result<Vec<Fact>> {
    let mut facts = Vec::new();
    let other_way = if mail_by_configuration { BY_ROW } else { BY_CONFIGURATION };
    for check in CHECKS.iter().filter(|check| check.name != other_way) {
        let is_there: bool = sqlx::query_scalar("select to_regclass('public.' || quote_ident($1)) is not null")
            .bind(check.table)
            .fetch_one(&mut *connection)
            .await
            .map_err(lost)?;
        if !is_there && !ALWAYS.contains(&check.table) {
            continue;
        }
        let counted = sqlx::query_scalar::<_, i64>(AssertSqlSafe(check.offenders)).fetch_one(&mut *connection).await;
        let (holds, statement) = match counted {
            Ok(0) => (true, check.holds.to_owned()),
            Ok(offenders) => (false, check.fails.replace("{n}", &offenders.to_string())),
            Err(error) => match error.as_database_error() {
                // A table of another shape than the check knows.
                Some(database) => (false, format!("{} could not be checked: {}", check.name, database.message())),
                None => return Err(lost(error)),
            },
        };
        facts.push(Fact { name: check.name.to_owned(), statement, holds });
    }
    Ok(facts)
}

/// A fact that was read elsewhere.
pub(super) fn fact(name: &str, holds: bool, statement: impl Into<String>) -> Fact {
    Fact { name: name.to_owned(), statement: statement.into(), holds }
}
