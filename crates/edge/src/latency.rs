//! Durations as they are counted: a histogram that many requests write at once, without a lock.

use std::{
    sync::atomic::{AtomicU64, Ordering::Relaxed},
    time::Duration,
};

use ocore_model::histogram::{BUCKETS, Histogram, bucket_of};

pub(crate) struct Durations {
    counts: [AtomicU64; BUCKETS],
    total_microseconds: AtomicU64,
    longest_microseconds: AtomicU64,
}

impl Default for Durations {
    fn default() -> Self {
        Self {
            counts: [const { AtomicU64::new(0) }; BUCKETS],
            total_microseconds: AtomicU64::new(0),
            longest_microseconds: AtomicU64::new(0),
        }
    }
}

impl std::fmt::Debug for Durations {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.histogram().fmt(formatter)
    }
}

impl Durations {
    pub(crate) fn record(&self, duration: Duration) {
        let microseconds = u64::try_from(duration.as_micros()).unwrap_or(u64::MAX);
        self.total_microseconds.fetch_add(microseconds, Relaxed);
        self.longest_microseconds.fetch_max(microseconds, Relaxed);
        if let Some(count) = self.counts.get(bucket_of(duration)) {
            count.fetch_add(1, Relaxed);
        }
    }

    pub(crate) fn histogram(&self) -> Histogram {
        let counts = self.counts.iter().map(|count| count.load(Relaxed));
        Histogram::new(counts, self.total_microseconds.load(Relaxed), self.longest_microseconds.load(Relaxed))
    }
}
