//! How a deployment was for the users: what they got before, during and after the change, who had to wait, and whether it got worse.

use std::{collections::BTreeMap, time::Duration};

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use serde_with::skip_serializing_none;
use utoipa::ToSchema;

use crate::{deployment::ModulePlan, edge::RouteTraffic, histogram::Histogram, rehearsal::Rehearsal, state::words};

/// So few failures prove nothing.
const FAILURES: u64 = 5;
/// Nor do so few answers say how quick they are.
const ANSWERS: u64 = 30;
/// A share of failures below this is no reason to go back.
const FAILING_SHARE: f64 = 0.05;
/// So many times as bad as before is worse.
const TIMES_WORSE: f64 = 3.0;
/// So many times as slow as before is slower, unless it is quick all the same.
const TIMES_SLOWER: u32 = 5;
const QUICK: Duration = Duration::from_secs(1);

words! {
    /// A moment of a deployment at which it is noted what the edge has counted until then.
    Moment, "moment of a deployment" {
        /// It begins to work.
        Begun = "begun",
        /// Before anything that users notice: requests are held from here on, or the new slot starts.
        Changing = "changing",
        /// The new slot has the users.
        Switched = "switched",
        /// The end of the watch.
        Ended = "ended",
        /// It was taken back, and what was live before serves.
        Undone = "undone",
    }
}

impl Moment {
    /// A step that runs again has it anew; of the others the first one counts.
    pub fn comes_again(self) -> bool {
        matches!(self, Self::Switched | Self::Ended | Self::Undone)
    }
}

/// What was noted at a moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mark {
    pub traffic: RouteTraffic,
    /// Errors that Odoo has logged since the moment before.
    pub logged_errors: Option<u64>,
}

/// All of a deployment.
pub type Marks = BTreeMap<Moment, Mark>;

/// What users got in a span of time.
#[skip_serializing_none]
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Phase {
    pub seconds: f64,
    /// Requests that came, whatever became of them.
    pub requests: u64,
    /// Answered with a 5xx status, by Odoo or by the edge.
    pub failed: u64,
    /// To the head of the answer, held time included; of half of the requests. Null without any.
    pub p50_milliseconds: Option<f64>,
    pub p99_milliseconds: Option<f64>,
    /// Errors that Odoo logged. Null when nobody looked.
    pub logged_errors: Option<u64>,
}

/// Who had to wait while nobody served.
#[skip_serializing_none]
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Held {
    /// How long that was expected to take, by the rehearsal.
    pub expected_seconds: Option<f64>,
    pub requests: u64,
    /// Got an error in the end.
    pub failed: u64,
    pub p50_seconds: Option<f64>,
    pub longest_seconds: Option<f64>,
}

/// Websockets that were moved to the new slot.
#[skip_serializing_none]
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Websockets {
    pub closed: u64,
    /// Until the same client's next one.
    pub gap_p50_seconds: Option<f64>,
    pub gap_p99_seconds: Option<f64>,
}

/// How a deployment was for the users.
#[skip_serializing_none]
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct DeployReport {
    pub plan: Option<ModulePlan>,
    pub rehearsal: Option<Rehearsal>,
    /// From its begin to the moment at which users could notice something. Null when nobody counted.
    pub before: Option<Phase>,
    /// From there until the users had the new slot, or the old one again.
    pub during: Option<Phase>,
    /// While it was watched.
    pub after: Option<Phase>,
    pub held: Option<Held>,
    pub websockets: Option<Websockets>,
    /// What was taken back, and why.
    pub undone: Option<String>,
    /// Holds what users wrote between the switch and the way back.
    pub kept_snapshot_id: Option<uuid::Uuid>,
}

impl Phase {
    /// What happened between two moments.
    pub fn between(earlier: &RouteTraffic, later: &RouteTraffic) -> Self {
        let traffic = later.since(earlier);
        Self {
            seconds: seconds(earlier.taken_at, later.taken_at),
            requests: traffic.requests,
            // 5xx
            failed: traffic.answers[4],
            p50_milliseconds: milliseconds(&traffic.latency, 0.5),
            p99_milliseconds: milliseconds(&traffic.latency, 0.99),
            logged_errors: None,
        }
    }

    fn share_of_failures(&self) -> f64 {
        self.failed as f64 / self.requests.max(1) as f64
    }

    /// Requests a second.
    pub fn rate(&self) -> f64 {
        self.requests as f64 / self.seconds.max(0.001)
    }

    /// Why this is worse than before, in one sentence; `None` when it is not, or when too little happened to say so.
    pub fn worse_than(&self, before: &Self) -> Option<String> {
        let share = self.share_of_failures();
        if self.failed >= FAILURES && share > (before.share_of_failures() * TIMES_WORSE).max(FAILING_SHARE) {
            return Some(format!(
                "{} of {} requests failed within {:.0} s after the switch ({} of {} before)",
                self.failed, self.requests, self.seconds, before.failed, before.requests
            ));
        }
        if let (Some(now), Some(then)) = (self.logged_errors, before.logged_errors) {
            let rate = |errors: u64, phase: &Self| errors as f64 / phase.seconds.max(1.0);
            if now >= FAILURES && rate(now, self) > rate(then, before) * TIMES_WORSE {
                return Some(format!(
                    "Odoo logged {now} errors within {:.0} s after the switch ({then} within {:.0} s before)",
                    self.seconds, before.seconds
                ));
            }
        }
        if let (Some(now), Some(then)) = (self.p50_milliseconds, before.p50_milliseconds)
            && self.requests >= ANSWERS
            && before.requests >= ANSWERS
            && now > (then * f64::from(TIMES_SLOWER)).max(QUICK.as_millis() as f64)
        {
            return Some(format!("answers took {now:.0} ms after the switch ({then:.0} ms before)"));
        }
        None
    }
}

impl DeployReport {
    /// What the marks tell; phases that nobody counted are not there.
    pub fn of_traffic(marks: &Marks, expected_hold: Option<Duration>) -> Self {
        let phase = |from: Moment, to: Moment| {
            let (from, to) = marks.get(&from).zip(marks.get(&to))?;
            Some(Phase { logged_errors: to.logged_errors, ..Phase::between(&from.traffic, &to.traffic) })
        };
        let has_users = if marks.contains_key(&Moment::Switched) { Moment::Switched } else { Moment::Undone };
        let last = [Moment::Undone, Moment::Ended, Moment::Switched].iter().find_map(|moment| marks.get(moment));
        let whole = marks.get(&Moment::Changing).zip(last).map(|(from, to)| to.traffic.since(&from.traffic));
        Self {
            before: phase(Moment::Begun, Moment::Changing),
            during: phase(Moment::Changing, has_users),
            after: phase(Moment::Switched, Moment::Ended),
            held: whole.as_ref().map(|traffic| Held {
                expected_seconds: expected_hold.map(|expected| expected.as_secs_f64()),
                requests: traffic.held.requests,
                failed: traffic.held.failed + traffic.held.turned_away,
                p50_seconds: in_seconds(traffic.held.waits.quantile(0.5)),
                longest_seconds: in_seconds(traffic.held.waits.longest()),
            }),
            websockets: whole.as_ref().map(|traffic| Websockets {
                closed: traffic.websockets.closed_by_switch,
                gap_p50_seconds: in_seconds(traffic.websockets.gaps.quantile(0.5)),
                gap_p99_seconds: in_seconds(traffic.websockets.gaps.quantile(0.99)),
            }),
            ..Self::default()
        }
    }

    /// For people, a line each.
    pub fn lines(&self) -> Vec<String> {
        let mut lines = Vec::new();
        if let Some(plan) = &self.plan {
            lines.push(format!("plan: {}; {}", plan.way.as_str().replace('_', " "), plan.reasons.join("; ")));
        }
        if let Some(rehearsal) = &self.rehearsal {
            lines.push(format!("rehearsal: {}", rehearsal.summary()));
        }
        for (name, phase) in [("before", &self.before), ("during", &self.during), ("after", &self.after)] {
            let Some(phase) = phase else { continue };
            let mut parts =
                vec![format!("{name}: {} requests in {:.1} s", phase.requests, phase.seconds), format!("{} failed", phase.failed)];
            if let (Some(p50), Some(p99)) = (phase.p50_milliseconds, phase.p99_milliseconds) {
                parts.push(format!("p50 {p50:.0} ms, p99 {p99:.0} ms"));
            }
            if let Some(errors) = phase.logged_errors.filter(|errors| *errors > 0) {
                parts.push(format!("{errors} errors in Odoo's log"));
            }
            lines.push(parts.join(", "));
        }
        if let Some(held) = self.held.as_ref().filter(|held| held.requests > 0) {
            let mut parts = vec![format!("held: {} requests", held.requests), format!("{} failed", held.failed)];
            parts.extend(held.longest_seconds.map(|longest| format!("the longest for {longest:.1} s")));
            parts.extend(held.expected_seconds.map(|expected| format!("{expected:.1} s were expected")));
            lines.push(parts.join(", "));
        }
        if let Some(websockets) = self.websockets.as_ref().filter(|websockets| websockets.closed > 0) {
            let mut parts = vec![format!("websockets: {} moved", websockets.closed)];
            parts.extend(websockets.gap_p99_seconds.map(|gap| format!("p99 {gap:.2} s without one")));
            lines.push(parts.join(", "));
        }
        lines.extend(self.undone.as_ref().map(|undone| format!("undone: {undone}")));
        lines
            .extend(self.kept_snapshot_id.map(|snapshot| format!("kept: what was written after the switch is in the snapshot {snapshot}")));
        lines
    }
}

fn seconds(from: DateTime<Utc>, to: DateTime<Utc>) -> f64 {
    (to - from).num_milliseconds().max(0) as f64 / 1000.0
}

fn milliseconds(histogram: &Histogram, part: f64) -> Option<f64> {
    Some(histogram.quantile(part)?.as_micros() as f64 / 1000.0)
}

fn in_seconds(duration: Option<Duration>) -> Option<f64> {
    duration.map(|duration| duration.as_secs_f64())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        edge::{HeldTraffic, WebsocketTraffic},
        ids::InstanceId,
    };

    fn phase(requests: u64, failed: u64, p50: f64) -> Phase {
        Phase { seconds: 10.0, requests, failed, p50_milliseconds: Some(p50), p99_milliseconds: Some(p50), logged_errors: Some(0) }
    }

    #[test]
    fn worse_is_what_fails_more_logs_more_or_is_much_slower() {
        let before = phase(1000, 2, 40.0);
        assert_eq!(phase(1000, 3, 60.0).worse_than(&before), None);
        assert_eq!(phase(4, 4, 60.0).worse_than(&before), None, "so few prove nothing");
        assert_eq!(
            phase(50, 10, 60.0).worse_than(&before).as_deref(),
            Some("10 of 50 requests failed within 10 s after the switch (2 of 1000 before)")
        );
        let failing = phase(1000, 300, 40.0);
        assert_eq!(phase(1000, 320, 40.0).worse_than(&failing), None, "it was as bad before");
        let logs = |errors| Phase { logged_errors: Some(errors), ..phase(50, 0, 60.0) };
        assert_eq!(logs(9).worse_than(&logs(4)), None);
        assert!(logs(9).worse_than(&before).unwrap().starts_with("Odoo logged 9 errors"));
        assert!(phase(50, 0, 2000.0).worse_than(&before).unwrap().contains("2000 ms after the switch (40 ms before)"));
        assert_eq!(phase(50, 0, 900.0).worse_than(&before), None, "quick enough");
        assert_eq!(phase(9, 0, 2000.0).worse_than(&before), None, "so few do not say how quick they are");
    }

    fn traffic(second: i64, requests: u64, failed: u64, held: u64) -> RouteTraffic {
        let at = |second| DateTime::<Utc>::from_timestamp(second, 0).unwrap();
        RouteTraffic {
            instance_id: InstanceId(uuid::Uuid::nil()),
            counted_since: at(0),
            taken_at: at(second),
            generation: 1,
            requests,
            answers: [0, requests - failed, 0, 0, failed],
            edge_errors: 0,
            abandoned: 0,
            latency: Histogram::default(),
            held: HeldTraffic { requests: held, ..HeldTraffic::default() },
            websockets: WebsocketTraffic::default(),
            slots: Vec::new(),
        }
    }

    #[test]
    fn the_report_parts_what_users_got_into_phases() {
        let mark = |traffic, logged_errors| Mark { traffic, logged_errors };
        let marks: Marks = [
            (Moment::Begun, mark(traffic(10, 100, 1, 0), None)),
            (Moment::Changing, mark(traffic(20, 200, 2, 0), Some(3))),
            (Moment::Switched, mark(traffic(25, 230, 2, 9), None)),
        ]
        .into();
        let report = DeployReport::of_traffic(&marks, Some(Duration::from_secs(6)));
        assert_eq!(
            report.lines(),
            [
                "before: 100 requests in 10.0 s, 1 failed, 3 errors in Odoo's log",
                "during: 30 requests in 5.0 s, 0 failed",
                "held: 9 requests, 0 failed, 6.0 s were expected",
            ]
        );
        assert!(DeployReport::of_traffic(&Marks::default(), None).lines().is_empty());
    }
}
