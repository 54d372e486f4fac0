//! How long things took, in buckets: small enough to be kept for each slot of each instance, exact enough for a 99th percentile, and such that
//! what happened between two moments is the difference of two of them.

use std::time::Duration;

use serde::{Deserialize, Serialize};

/// Below this, in microseconds, everything is one bucket. Nothing that an Odoo answers is quicker.
const FIRST: u64 = 64;
/// Buckets between a number and its double: a quantile is at most an eighth off.
const PARTS: u64 = 4;
/// Doublings from the first bucket on: 36 minutes.
const DOUBLINGS: usize = 25;
/// How many buckets there are.
pub const BUCKETS: usize = 1 + DOUBLINGS * PARTS as usize;

/// The bucket of a duration. What is longer than all buckets is in the last.
pub fn bucket_of(duration: Duration) -> usize {
    let microseconds = u64::try_from(duration.as_micros()).unwrap_or(u64::MAX);
    let Some(ratio) = (microseconds / FIRST).checked_ilog2() else { return 0 };
    let doubling = ratio as usize;
    if doubling >= DOUBLINGS {
        return BUCKETS - 1;
    }
    let part = ((microseconds * PARTS) >> (doubling as u32 + FIRST.ilog2())) - PARTS;
    1 + doubling * PARTS as usize + part as usize
}

/// Where a bucket begins and where the next one does, in microseconds.
pub fn bounds(bucket: usize) -> (u64, u64) {
    let begin = |bucket: usize| match bucket.checked_sub(1) {
        None => 0,
        Some(index) => (FIRST << (index / PARTS as usize)) / PARTS * (PARTS + index as u64 % PARTS),
    };
    (begin(bucket), begin(bucket + 1))
}

/// Durations, counted by bucket.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Histogram {
    /// Those that are not empty, the quickest first.
    pub buckets: Vec<Bucket>,
    /// All durations together.
    pub total_microseconds: u64,
    /// The longest one; of a difference, no more than this.
    pub longest_microseconds: u64,
}

/// How many took less than this and no less than the bucket before allows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Bucket {
    pub below_microseconds: u64,
    pub count: u64,
}

impl Histogram {
    /// From the count of each bucket.
    pub fn new(counts: impl IntoIterator<Item = u64>, total_microseconds: u64, longest_microseconds: u64) -> Self {
        let buckets = counts
            .into_iter()
            .enumerate()
            .filter(|(_, count)| *count > 0)
            .map(|(bucket, count)| Bucket { below_microseconds: bounds(bucket).1, count })
            .collect();
        Self { buckets, total_microseconds, longest_microseconds }
    }

    pub fn count(&self) -> u64 {
        self.buckets.iter().map(|bucket| bucket.count).sum()
    }

    /// `None` when nothing was counted.
    pub fn longest(&self) -> Option<Duration> {
        (!self.buckets.is_empty()).then(|| Duration::from_micros(self.longest_microseconds))
    }

    pub fn mean(&self) -> Option<Duration> {
        self.total_microseconds.checked_div(self.count()).map(Duration::from_micros)
    }

    /// What this part (0 to 1) of all took no longer than; `None` when nothing was counted.
    pub fn quantile(&self, part: f64) -> Option<Duration> {
        let rank = (self.count() as f64 * part.clamp(0.0, 1.0)).max(1.0);
        let mut before = 0.0;
        for bucket in &self.buckets {
            let count = bucket.count as f64;
            if before + count >= rank {
                let below = bucket.below_microseconds;
                let from = bounds(bucket_of(Duration::from_micros(below.saturating_sub(1)))).0;
                let microseconds = from as f64 + (below - from.min(below)) as f64 * (rank - before) / count;
                return Some(Duration::from_micros((microseconds as u64).min(self.longest_microseconds)));
            }
            before += count;
        }
        None
    }

    /// What was counted after `earlier`, which is the same histogram at another moment. Where its longest duration is not known, the end of the
    /// last bucket stands for it.
    pub fn since(&self, earlier: &Self) -> Self {
        let before = |below: u64| earlier.buckets.iter().find(|bucket| bucket.below_microseconds == below).map_or(0, |bucket| bucket.count);
        let difference = |bucket: &Bucket| Bucket { count: bucket.count.saturating_sub(before(bucket.below_microseconds)), ..*bucket };
        let buckets: Vec<Bucket> = self.buckets.iter().map(difference).filter(|bucket| bucket.count > 0).collect();
        let last = buckets.last().map_or(0, |bucket| bucket.below_microseconds);
        let longest_microseconds = if self.longest_microseconds > earlier.longest_microseconds {
            self.longest_microseconds
        } else {
            last.min(self.longest_microseconds)
        };
        Self { buckets, total_microseconds: self.total_microseconds.saturating_sub(earlier.total_microseconds), longest_microseconds }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(milliseconds: &[u64]) -> Histogram {
        let mut counts = [0; BUCKETS];
        for duration in milliseconds {
            counts[bucket_of(Duration::from_millis(*duration))] += 1;
        }
        Histogram::new(counts, milliseconds.iter().sum::<u64>() * 1000, milliseconds.iter().max().map_or(0, |longest| longest * 1000))
    }

    #[test]
    fn every_duration_is_within_the_bounds_of_its_bucket() {
        let mut last = 0;
        for microseconds in (0..200_000).chain((1..31).map(|power| (1 << power) - 1)).chain((1..31).map(|power| 1 << power)) {
            let bucket = bucket_of(Duration::from_micros(microseconds));
            let (from, below) = bounds(bucket);
            assert!(from <= microseconds && microseconds < below, "{microseconds}: {from} to {below}");
            last = last.max(bucket);
        }
        assert_eq!(bucket_of(Duration::MAX), BUCKETS - 1);
        assert!(last < BUCKETS);
        assert!((1..BUCKETS).all(|bucket| bounds(bucket - 1).1 == bounds(bucket).0), "no gap between buckets");
    }

    #[test]
    fn quantiles_are_near_the_truth() {
        let all: Vec<u64> = (1..=1000).collect();
        let histogram = of(&all);
        assert_eq!(histogram.count(), 1000);
        for (part, truth) in [(0.5, 500.0), (0.9, 900.0), (0.99, 990.0), (1.0, 1000.0)] {
            let found = histogram.quantile(part).unwrap().as_secs_f64() * 1000.0;
            assert!((found / truth - 1.0).abs() < 0.125, "{part}: {found} for {truth}");
        }
        assert_eq!(histogram.longest(), Some(Duration::from_secs(1)));
        assert_eq!(histogram.mean(), Some(Duration::from_micros(500_500)));
        assert_eq!((Histogram::default().quantile(0.5), Histogram::default().longest(), Histogram::default().mean()), (None, None, None));
    }

    #[test]
    fn a_difference_is_what_came_in_between() {
        let earlier = of(&[1, 2, 4000]);
        let later = of(&[1, 2, 4000, 30, 30]);
        let between = later.since(&earlier);
        assert_eq!((between.count(), between.total_microseconds), (2, 60_000));
        assert!(between.longest().unwrap() < Duration::from_millis(40) && between.longest().unwrap() >= Duration::from_millis(30));
        assert_eq!(of(&[1, 9000]).since(&of(&[1])).longest(), Some(Duration::from_secs(9)), "a new record is known exactly");
        assert_eq!(later.since(&later), Histogram::default());
    }
}
