//! Waiting for the outside world, with a limit.

use std::time::{Duration, Instant};

/// Asks again every 50 ms until there is an answer; `None` after the limit.
pub async fn eventually<T>(limit: Duration, mut attempt: impl AsyncFnMut() -> Option<T>) -> Option<T> {
    let end = Instant::now() + limit;
    loop {
        if let Some(answer) = attempt().await {
            return Some(answer);
        }
        if Instant::now() > end {
            return None;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}
