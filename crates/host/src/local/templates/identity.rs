//! What no two databases may have in common, and copies of a template have until they get their own.

use chrono::Utc;
use sqlx::{Connection, PgConnection};
use uuid::Uuid;

use crate::error::{HostError, Result};

/// Tokens that Odoo's modules draw when they are installed (`discuss.channel`, `iap.account`, `pos.config`, `survey.survey`, the kiosk's key in
/// `res.company` and more), each replaced by one of the same form. A value of another form was not drawn.
const NEW_TOKENS: &str = "
do $$
declare
    place record;
begin
    for place in
        select relation.oid::pg_catalog.regclass as relation, attribute.attname as name
          from pg_catalog.pg_attribute as attribute
          join pg_catalog.pg_class as relation on relation.oid = attribute.attrelid
         where relation.relnamespace = 'public'::pg_catalog.regnamespace and relation.relkind = 'r'
           and attribute.attnum > 0 and not attribute.attisdropped
           and attribute.atttypid in ('pg_catalog.varchar'::pg_catalog.regtype, 'pg_catalog.text'::pg_catalog.regtype)
           and attribute.attname in ('access_token', 'account_token', 'uuid', 'webhook_uuid', 'attendance_kiosk_key')
    loop
        execute pg_catalog.format(
            $statement$
            update %1$s set %2$I = case
                when %2$I ~ '-' then gen_random_uuid()::text
                when %2$I ~ '^([0-9a-f]{16}|[0-9a-f]{32})$' then left(replace(gen_random_uuid()::text, '-', ''), length(%2$I))
                else left(translate(encode(uuid_send(gen_random_uuid()), 'base64'), '+/=', 'xyz'), 10) end
             where %2$I ~ '^([0-9a-f]{8}-([0-9a-f]{4}-){3}[0-9a-f]{12}|[0-9a-f]{16}|[0-9a-f]{32}|[0-9A-Za-z]{10})$'
            $statement$, place.relation, place.name);
    end loop;
end
$$";

/// Gives a database that was copied from a template what no other one may have, all or nothing; the connection is its owner's. `with_tokens` where the
/// template is for everybody: in a project's own, a value that looks drawn may be one that its modules' data say. The password of `admin` comes
/// after it.
pub(in crate::local) async fn give_identity(connection: &mut PgConnection, with_tokens: bool) -> Result<()> {
    let failed =
        |error: sqlx::Error| HostError::machine_from(format!("the database could not be given an identity of its own: {error}"), error);
    let mut transaction = connection.begin().await.map_err(failed)?;
    let now = Utc::now().format("%Y-%m-%d %H:%M:%S").to_string();
    for (key, value) in
        [("database.secret", Uuid::new_v4().to_string()), ("database.uuid", Uuid::new_v4().to_string()), ("database.create_date", now)]
    {
        let done = sqlx::query("update public.ir_config_parameter set value = $2 where key = $1").bind(key).bind(value);
        let done = done.execute(&mut *transaction).await.map_err(failed)?;
        if done.rows_affected() != 1 {
            return Err(HostError::machine(format!("the database has no parameter `{key}` that could be set anew")));
        }
    }
    // Nobody knows the password of the build that the template was kept from; until the new one is set, nobody logs in.
    sqlx::query(
        "update public.res_users set password = null
          where id = (select res_id from public.ir_model_data where module = 'base' and name = 'user_admin')",
    )
    .execute(&mut *transaction)
    .await
    .map_err(failed)?;
    if with_tokens {
        sqlx::query(NEW_TOKENS).execute(&mut *transaction).await.map_err(failed)?;
    }
    transaction.commit().await.map_err(failed)
}
