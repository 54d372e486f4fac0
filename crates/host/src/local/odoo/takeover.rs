//! What is done to a copy's database before Odoo updates modules in it: a module that has another name now takes over what it had under the
//! earlier one, and words that a translation corrects make room for it.
//!
//! All of it in one transaction, as the owner of the database. A second time there is nothing left to do.

use ocore_model::{names::ModuleName, plan::Correction};
use sqlx::{AssertSqlSafe, Connection, PgConnection};

use super::words;
use crate::{
    api::{Progress, RunModules},
    error::{HostError, Result},
    local::cluster::Cluster,
};

/// States in which a module's code runs.
const INSTALLED: &str = "('installed', 'to upgrade', 'to remove')";

pub(super) async fn take_over(cluster: &Cluster, request: &RunModules, progress: &Progress) -> Result<()> {
    if request.renames.is_empty() && request.corrections.is_empty() {
        return Ok(());
    }
    let mut connection = cluster.connect_as_owner().await?;
    let done = async {
        let mut transaction = connection.begin().await?;
        for (from, to) in &request.renames {
            if rename(&mut transaction, from, to).await? {
                progress.log.line(&format!("What module {from} has in the database belongs to {to} now."));
            }
        }
        let words = correct(&mut transaction, &request.corrections).await?;
        if !request.corrections.is_empty() {
            progress.log.line(&format!("{words} translated words of the database are what a file had set and corrects now."));
        }
        transaction.commit().await
    };
    done.await.map_err(|error| HostError::Rejected {
        summary: "the database does not let modules be renamed or translations be corrected before the update".to_owned(),
        excerpt: error.to_string(),
    })
}

/// As OpenUpgrade's library does it (`update_module_names`), also when the later module is installed already: then it takes the earlier one in.
/// Says whether the earlier one was there.
async fn rename(connection: &mut PgConnection, from: &ModuleName, to: &ModuleName) -> sqlx::Result<bool> {
    let (from, to) = (from.as_str(), to.as_str());
    let find = |name: &str| {
        let query = format!("select id, state in {INSTALLED} from public.ir_module_module where name = $1");
        sqlx::query_as::<_, (i32, bool)>(AssertSqlSafe(query)).bind(name.to_owned())
    };
    let Some((old, true)) = find(from).fetch_optional(&mut *connection).await? else { return Ok(false) };
    let new = find(to).fetch_optional(&mut *connection).await?;
    // What both have under one name is the later one's.
    sqlx::query(
        "delete from public.ir_model_data d where module = $1
         and exists (select from public.ir_model_data o where o.module = $2 and o.name = d.name)",
    )
    .bind(from)
    .bind(to)
    .execute(&mut *connection)
    .await?;
    sqlx::query("update public.ir_model_data set module = $2 where module = $1").bind(from).bind(to).execute(&mut *connection).await?;
    sqlx::query("update public.ir_module_module_dependency set name = $2 where name = $1")
        .bind(from)
        .bind(to)
        .execute(&mut *connection)
        .await?;
    sqlx::query(
        "update public.ir_ui_view v set key = $2 || substr(key, length($1) + 1) where starts_with(key, $1 || '.')
         and not exists (select from public.ir_ui_view o where o.key = $2 || substr(v.key, length($1) + 1))",
    )
    .bind(from)
    .bind(to)
    .execute(&mut *connection)
    .await?;
    match new {
        Some((new, true)) => {
            for table in ["ir_model_constraint", "ir_model_relation"] {
                let statement = format!(
                    "update public.{table} t set module = $2 where module = $1
                     and not exists (select from public.{table} o where o.module = $2 and o.name = t.name)"
                );
                sqlx::query(AssertSqlSafe(statement)).bind(old).bind(new).execute(&mut *connection).await?;
                let statement = format!("delete from public.{table} where module = $1");
                sqlx::query(AssertSqlSafe(statement)).bind(old).execute(&mut *connection).await?;
            }
            forget(connection, old, from).await?;
        }
        other => {
            if let Some((new, false)) = other {
                forget(connection, new, to).await?;
            }
            sqlx::query("update public.ir_module_module set name = $2 where id = $1").bind(old).bind(to).execute(&mut *connection).await?;
            sqlx::query("update public.ir_model_data set name = 'module_' || $2 where module = 'base' and name = 'module_' || $1")
                .bind(from)
                .bind(to)
                .execute(&mut *connection)
                .await?;
        }
    }
    Ok(true)
}

/// The row of a module that has nothing any more.
async fn forget(connection: &mut PgConnection, id: i32, name: &str) -> sqlx::Result<()> {
    sqlx::query("delete from public.ir_model_data where module = 'base' and name = 'module_' || $1")
        .bind(name)
        .execute(&mut *connection)
        .await?;
    sqlx::query("delete from public.ir_module_module_dependency where module_id = $1").bind(id).execute(&mut *connection).await?;
    sqlx::query("delete from public.ir_module_module where id = $1").bind(id).execute(&mut *connection).await?;
    Ok(())
}

/// Says how many words are what a file had set; Odoo's update sets them anew.
async fn correct(connection: &mut PgConnection, corrections: &[Correction]) -> sqlx::Result<u64> {
    if corrections.is_empty() {
        return Ok(0);
    }
    let languages: Vec<String> =
        sqlx::query_scalar("select code::text from public.res_lang where active and code <> 'en_US'").fetch_all(&mut *connection).await?;
    let mut corrected = 0;
    for correction in corrections {
        let Some((module, name)) = correction.record.split_once('.') else { continue };
        let Some(table) = table_of(connection, correction).await? else { continue };
        let column = quoted(&correction.field);
        for language in languages.iter().filter(|language| belongs(language, &correction.language)) {
            let found: Option<(i32, Option<String>, Option<String>)> = sqlx::query_as(AssertSqlSafe(format!(
                "select t.id, t.{column} ->> $4, t.{column} ->> 'en_US' from public.{table} t
                 join public.ir_model_data d on d.res_id = t.id where d.model = $1 and d.module = $2 and d.name = $3"
            )))
            .bind(&correction.model)
            .bind(module)
            .bind(name)
            .bind(language)
            .fetch_optional(&mut *connection)
            .await?;
            let Some((id, Some(value), english)) = found else { continue };
            let (statement, value) = match &correction.term {
                None if value == correction.before => (format!("update public.{table} set {column} = {column} - $2 where id = $1"), None),
                None => continue,
                Some(term) => match words::put_back(&value, &correction.before, term, english.as_deref().unwrap_or_default()) {
                    Some(value) => (
                        format!("update public.{table} set {column} = jsonb_set({column}, array[$2], to_jsonb($3::text)) where id = $1"),
                        Some(value),
                    ),
                    None => continue,
                },
            };
            let query = sqlx::query(AssertSqlSafe(statement)).bind(id).bind(language);
            let query = if let Some(value) = value { query.bind(value) } else { query };
            corrected += query.execute(&mut *connection).await?.rows_affected();
        }
    }
    Ok(corrected)
}

/// `fr_BE` and `fr` of a file `fr.po`.
fn belongs(language: &str, file: &str) -> bool {
    language.strip_prefix(file).is_some_and(|rest| rest.is_empty() || rest.starts_with(['_', '@']))
}

/// The quoted table of a model, when the field is a column of it that holds several languages (since Odoo 16).
async fn table_of(connection: &mut PgConnection, correction: &Correction) -> sqlx::Result<Option<String>> {
    let table = match correction.model.as_str() {
        "ir.actions.report" => "ir_act_report_xml".to_owned(),
        "ir.actions.actions" => "ir_actions".to_owned(),
        model => match model.strip_prefix("ir.actions.") {
            Some(kind) => format!("ir_act_{}", kind.replace('.', "_").replace("act_window_view", "window_view")),
            None => model.replace('.', "_"),
        },
    };
    let table = quoted(&table);
    let is_translated: bool = sqlx::query_scalar(
        "select exists (select from pg_catalog.pg_attribute where attrelid = pg_catalog.to_regclass('public.' || $1) and attname = $2
                        and atttypid = 'pg_catalog.jsonb'::pg_catalog.regtype and not attisdropped)",
    )
    .bind(&table)
    .bind(&correction.field)
    .fetch_one(connection)
    .await?;
    Ok(is_translated.then_some(table))
}

/// A name in double quotes. What comes from a project's files is nothing else.
fn quoted(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}
