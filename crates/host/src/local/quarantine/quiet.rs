//! Nothing of the database's own answers while a copy is neutralized: a trigger or a rule that writes changes down would write down the very credentials
//! that are taken out. All of it in the transaction of the neutralization, by the tables' owner.

use sqlx::{AssertSqlSafe, PgConnection};

use super::run_sql::lost;
use crate::error::Result;

/// What brings back what was silenced, and how much that is.
pub(super) struct Quiet {
    back: Vec<String>,
}

/// Silences every trigger and every rule that somebody has made, on all tables. Those of PostgreSQL's own, which keep foreign keys, go on.
pub(super) async fn silence(connection: &mut PgConnection) -> Result<Quiet> {
    let found: Vec<(String, String)> = sqlx::query_as(
        "with answers (relation, kind, name, state) as (
            select tgrelid, 'trigger', tgname, tgenabled from pg_catalog.pg_trigger where not tgisinternal
            union all
            select ev_class, 'rule', rulename, ev_enabled from pg_catalog.pg_rewrite where ev_type <> '1')
         select format('alter table only %I.%I disable %s %I', n.nspname, c.relname, a.kind, a.name),
                format('alter table only %I.%I enable %s %s %I', n.nspname, c.relname, case a.state when 'A' then 'always' else '' end, a.kind, a.name)
           from answers a join pg_catalog.pg_class c on c.oid = a.relation join pg_catalog.pg_namespace n on n.oid = c.relnamespace
          where c.relkind in ('r', 'p') and a.state in ('O', 'A') and n.nspname not like 'pg\\_%' and n.nspname <> 'information_schema'
          order by c.oid",
    )
    .fetch_all(&mut *connection)
    .await
    .map_err(lost)?;
    let (disable, back): (Vec<String>, Vec<String>) = found.into_iter().unzip();
    run(connection, &disable).await?;
    Ok(Quiet { back })
}

impl Quiet {
    /// How many there were.
    pub(super) fn count(&self) -> usize {
        self.back.len()
    }

    /// Everything is as it was.
    pub(super) async fn end(self, connection: &mut PgConnection) -> Result<()> {
        if self.back.is_empty() {
            return Ok(());
        }
        // Whatever waits for the end of the transaction is checked now: a table with something pending cannot be altered.
        sqlx::raw_sql("set constraints all immediate").execute(&mut *connection).await.map_err(lost)?;
        run(connection, &self.back).await
    }
}

async fn run(connection: &mut PgConnection, statements: &[String]) -> Result<()> {
    if !statements.is_empty() {
        sqlx::raw_sql(AssertSqlSafe(statements.join(";\n"))).execute(connection).await.map_err(lost)?;
    }
    Ok(())
}
