//! The pool of connections to the store.

use sqlx::postgres::PgPoolOptions;

/// How the control plane holds its connections; every pool for a [`crate::Control`] is made from these options.
///
/// A connection comes back to the pool without a transaction, whatever happened to whoever had it. sqlx 0.9.0 does not see to that: a `begin`
/// that is dropped while it waits for its answer (a client hung up, a process stops) has sent `BEGIN` and not yet counted it, so nobody rolls
/// it back, and everything that the next users of the connection write hangs in that transaction, with its locks, and is lost in the end.
pub fn pool_options() -> PgPoolOptions {
    PgPoolOptions::new().after_release(|connection, _| {
        Box::pin(async move {
            // One round trip, and silent where no transaction is open; a bare `rollback` would warn each time.
            sqlx::raw_sql("begin; rollback").execute(connection).await?;
            Ok(true)
        })
    })
}
