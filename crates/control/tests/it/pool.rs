//! Connections of the store's pool.

use std::{future::Future, pin::pin, task::Poll};

use ocore_testkit::Store;
use sqlx::{Connection as _, PgConnection};

#[tokio::test(flavor = "multi_thread")]
async fn a_begin_that_nobody_waits_for_leaves_no_transaction_behind() -> anyhow::Result<()> {
    let store = Store::new().await?;
    let pool = &store.control.pool;
    let mut outside = PgConnection::connect_with(&store.connect_options()).await?;
    let mut open = 0;
    for attempt in 0..400 {
        {
            // Dropped after a few polls: sometimes while `BEGIN` is on its way.
            let mut begin = pin!(pool.begin());
            let mut polls = 0;
            std::future::poll_fn(|context| {
                polls += 1;
                if begin.as_mut().poll(context).is_ready() || polls > attempt % 4 { Poll::Ready(()) } else { Poll::Pending }
            })
            .await;
        }
        while pool.num_idle() < pool.size() as usize {
            tokio::task::yield_now().await;
        }
        open += sqlx::query_scalar::<_, i64>(
            "select count(*) from pg_stat_activity where datname = current_database() and state = 'idle in transaction'",
        )
        .fetch_one(&mut outside)
        .await?;
    }
    anyhow::ensure!(open == 0, "{open} times a connection came back with a transaction");
    Ok(())
}
