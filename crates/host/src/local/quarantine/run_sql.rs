//! Foreign SQL, as the role that owns the database and nobody more.

use sqlx::{AssertSqlSafe, Connection, PgConnection, postgres::PgDatabaseError};
use tokio_util::sync::CancellationToken;

use super::scripts::Script;
use crate::error::{HostError, Result};

/// Lines around the one that failed, in an excerpt.
const CONTEXT_LINES: usize = 3;
/// Classes of PostgreSQL's errors that data, or what was asked of them, are to blame for (PostgreSQL's manual, appendix A).
const OF_THE_DATA: &[&str] = &["0A", "21", "22", "23", "25", "27", "2B", "2F", "38", "39", "42", "44", "P0"];

/// Runs the script's statements. Whatever transaction is open stays so, unless the script ends it.
pub(super) async fn run(connection: &mut PgConnection, script: &Script, cancel: &CancellationToken) -> Result<()> {
    let text = script.text.trim();
    if text.is_empty() {
        return Ok(());
    }
    let run = sqlx::raw_sql(AssertSqlSafe(script.text.clone())).execute(&mut *connection);
    tokio::select! {
        biased;
        () = cancel.cancelled() => Err(HostError::Cancelled),
        outcome = run => match outcome {
            Ok(_) => Ok(()),
            Err(error) => Err(explain(script, error)),
        },
    }
}

/// Runs the scripts in one transaction.
pub(super) async fn run_together(connection: &mut PgConnection, scripts: &[Script], cancel: &CancellationToken) -> Result<()> {
    let mut transaction = connection.begin().await.map_err(lost)?;
    for script in scripts {
        run(&mut transaction, script, cancel).await?;
    }
    transaction.commit().await.map_err(lost)
}

/// What the data do not allow is theirs; otherwise the connection failed us, not what was asked.
pub(super) fn lost(error: sqlx::Error) -> HostError {
    match of_the_data(&error) {
        Some(said) => HostError::rejected(format!("the database of the copy could not be neutralized: {said}")),
        None => HostError::machine_from(format!("the database of the copy could not be neutralized: {error}"), error),
    }
}

/// What PostgreSQL says about data, constraints, rights and functions of the database itself, and where. Only its own sentence: its details show values
/// of rows.
pub(super) fn of_the_data(error: &sqlx::Error) -> Option<String> {
    let database = error.as_database_error()?.try_downcast_ref::<PgDatabaseError>()?;
    database.code().get(..2).is_some_and(|class| OF_THE_DATA.contains(&class)).then(|| tell(database))
}

fn tell(database: &PgDatabaseError) -> String {
    let parts = [("table", database.table()), ("column", database.column()), ("constraint", database.constraint())];
    let place: Vec<String> = parts.iter().filter_map(|(what, name)| Some(format!("{what} {}", (*name)?))).collect();
    if place.is_empty() { database.message().to_owned() } else { format!("{} ({})", database.message(), place.join(", ")) }
}

/// Only PostgreSQL's own sentence: its details show values of rows.
fn explain(script: &Script, error: sqlx::Error) -> HostError {
    let Some(database) = error.as_database_error().and_then(|error| error.try_downcast_ref::<PgDatabaseError>()) else {
        if matches!(error, sqlx::Error::Protocol(_)) {
            return HostError::rejected(format!("{} does what no script may, such as COPY from or to its caller", script.name));
        }
        return lost(error);
    };
    let position = match database.position() {
        Some(sqlx::postgres::PgErrorPosition::Original(position)) => Some(position),
        _ => None,
    };
    let line = position.map(|position| line_of(&script.text, position));
    let place = line.map(|line| format!(", line {line}")).unwrap_or_default();
    HostError::Rejected {
        summary: format!("{} failed{place}: {}", script.name, tell(database)),
        excerpt: line.map(|line| around(&script.text, line)).unwrap_or_default(),
    }
}

/// PostgreSQL counts characters, from 1; lines are counted from 1 too.
fn line_of(text: &str, position: usize) -> usize {
    1 + text.chars().take(position.saturating_sub(1)).filter(|character| *character == '\n').count()
}

fn around(text: &str, line: usize) -> String {
    let first = line.saturating_sub(1 + CONTEXT_LINES);
    let lines = text.lines().enumerate().skip(first).take(line - first + CONTEXT_LINES);
    lines.map(|(index, text)| format!("{:>4}  {text}", index + 1)).collect::<Vec<_>>().join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_line_of_an_error_is_found_by_characters_not_bytes() {
        let text = "-- é é é\nselect 1;\nselect nothing;\n";
        let position = text.chars().take_while(|character| *character != 'n').count();
        assert_eq!(line_of(text, 1), 1);
        assert_eq!(line_of(text, text.find("nothing").unwrap() - 3 + 1), 3);
        assert!(position > 0);
        assert_eq!(around(text, 3), "   1  -- é é é\n   2  select 1;\n   3  select nothing;");
    }
}
