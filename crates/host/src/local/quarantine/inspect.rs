//! Questions to the database of a copy that was set aside.
//!
//! The database is a tenant's own: its functions, views and types may do what they like with the rights of who asks. So who asks is the role that
//! owns the database, in a transaction that only reads and is always rolled back. PostgreSQL prepares the statement, which refuses several in one,
//! and it is run as a subquery, so that nothing but rows comes of it and every value comes as text that can be cut.

use std::{fmt::Write as _, time::Duration};

use futures::TryStreamExt;
use sqlx::{AssertSqlSafe, Column, Connection, Executor, PgConnection, Row, SqlSafeStr, Statement, postgres::PgDatabaseError};

use super::super::cluster::Cluster;
use crate::{
    api::{Inspect, Inspected},
    error::{HostError, Result},
};

/// On top of what the statement may take: for connecting, and for what PostgreSQL does not break off by itself.
const PATIENCE: Duration = Duration::from_secs(5);

pub(super) async fn ask(cluster: &Cluster, question: &Inspect) -> Result<Inspected> {
    let limit = Duration::from_secs(question.seconds.into());
    match tokio::time::timeout(limit + PATIENCE, answer(cluster, question, limit)).await {
        Ok(answer) => answer,
        Err(_) => Err(HostError::rejected(format!("the statement took longer than {} s", question.seconds))),
    }
}

async fn answer(cluster: &Cluster, question: &Inspect, limit: Duration) -> Result<Inspected> {
    let mut connection = cluster.connect_as_owner().await?;
    let begin =
        format!("begin transaction isolation level repeatable read, read only; set local statement_timeout = {}", limit.as_millis());
    sqlx::raw_sql(AssertSqlSafe(begin)).execute(&mut connection).await.map_err(lost)?;
    let answered = rows(&mut connection, question).await;
    // Also the connection's end does it; this leaves no message in the log.
    let rolled_back = sqlx::raw_sql("rollback").execute(&mut connection).await;
    let answered = answered?;
    rolled_back.map_err(lost)?;
    connection.close().await.map_err(lost)?;
    Ok(answered)
}

async fn rows(connection: &mut PgConnection, question: &Inspect) -> Result<Inspected> {
    let sql = question.sql.trim().trim_end_matches(';').trim_end();
    let statement = (&mut *connection).prepare(AssertSqlSafe(sql.to_owned()).into_sql_str()).await.map_err(explain)?;
    let columns: Vec<String> = statement.columns().iter().map(|column| column.name().to_owned()).collect();
    drop(statement);
    if columns.is_empty() {
        return Err(HostError::rejected(
            "the statement gives no rows; ask with SELECT, VALUES, TABLE or WITH, and one statement at a time",
        ));
    }
    let mut wrapped = String::from("select ");
    for number in 1..=columns.len() {
        let comma = if number == 1 { "" } else { ", " };
        // One more than is wanted shows that there is more.
        let _ = write!(wrapped, "{comma}pg_catalog.left(asked.c{number}::text, {})", u64::from(question.max_characters) + 1);
    }
    let names = (1..=columns.len()).map(|number| format!("c{number}")).collect::<Vec<_>>().join(", ");
    // The line's end ends a comment in the statement.
    let _ = write!(wrapped, " from (\n{sql}\n) as asked ({names}) limit {}", u64::from(question.max_rows) + 1);

    let mut found = Inspected { columns, ..Inspected::default() };
    let mut bytes = 0;
    let mut stream = sqlx::query(AssertSqlSafe(wrapped)).persistent(false).fetch(&mut *connection);
    while let Some(row) = stream.try_next().await.map_err(explain)? {
        if found.rows.len() == question.max_rows as usize {
            found.truncated = true;
            break;
        }
        let mut values: Vec<Option<String>> =
            (0..found.columns.len()).map(|index| row.try_get(index)).collect::<Result<_, _>>().map_err(lost)?;
        for value in values.iter_mut().flatten() {
            if let Some((end, _)) = value.char_indices().nth(question.max_characters as usize) {
                value.truncate(end);
                found.truncated = true;
            }
            bytes += value.len() as u64;
        }
        if bytes > question.max_bytes {
            found.truncated = true;
            break;
        }
        found.rows.push(values);
    }
    Ok(found)
}

/// PostgreSQL's own sentence, which may show values: they are for whoever may ask.
fn explain(error: sqlx::Error) -> HostError {
    match error.as_database_error().and_then(|error| error.try_downcast_ref::<PgDatabaseError>()) {
        // What `statement_timeout` says.
        Some(database) if database.code() == "57014" => HostError::rejected("the statement took too long; ask for less"),
        Some(database) => HostError::rejected(format!("PostgreSQL says: {}", database.message())),
        None if matches!(error, sqlx::Error::Protocol(_)) => HostError::rejected("the statement gives no rows; ask with SELECT"),
        None => lost(error),
    }
}

fn lost(error: sqlx::Error) -> HostError {
    HostError::machine_from(format!("the database in quarantine could not be asked: {error}"), error)
}
