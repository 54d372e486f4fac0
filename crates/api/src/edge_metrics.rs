//! The edge's numbers for each instance, in Prometheus' text form: read from the edge when somebody scrapes, so that what has lost its route is
//! gone from here as well.
//!
//! The only label is the instance's id, and there are no more of them than [`INSTANCES`]: those with the most requests.

use std::fmt::Write;

use ocore_model::{edge::RouteTraffic, histogram::Histogram};

/// Some forty lines each.
const INSTANCES: usize = 500;
/// Ends of the histogram's own buckets, so that nothing is guessed. Microseconds.
const BOUNDS: [u64; 9] = [4_096, 16_384, 65_536, 131_072, 262_144, 1_048_576, 4_194_304, 16_777_216, 67_108_864];

/// All lines, with a newline at the end of each.
pub(crate) fn render(mut all: Vec<RouteTraffic>) -> String {
    all.sort_by_key(|traffic| (std::cmp::Reverse(traffic.requests), traffic.instance_id));
    all.truncate(INSTANCES);
    let mut text = String::new();
    let number = |text: &mut String, name: &str, kind: &str, help: &str, value: fn(&RouteTraffic) -> u64| {
        head(text, name, kind, help);
        for traffic in &all {
            line(text, name, &format!("instance=\"{}\"", traffic.instance_id), value(traffic));
        }
    };
    number(&mut text, "ocore_edge_instance_requests_total", "counter", "Requests that came for an instance", |traffic| traffic.requests);
    head(&mut text, "ocore_edge_instance_answers_total", "counter", "Answers, by the class of the status");
    for traffic in &all {
        for (class, count) in ["1xx", "2xx", "3xx", "4xx", "5xx"].into_iter().zip(traffic.answers) {
            line(
                &mut text,
                "ocore_edge_instance_answers_total",
                &format!("instance=\"{}\",status=\"{class}\"", traffic.instance_id),
                count,
            );
        }
    }
    number(&mut text, "ocore_edge_instance_errors_total", "counter", "5xx answers that are the edge's own", |traffic| traffic.edge_errors);
    number(&mut text, "ocore_edge_instance_held", "gauge", "Requests that wait for their instance", |traffic| traffic.held.now);
    number(&mut text, "ocore_edge_instance_held_total", "counter", "Requests that had to wait", |traffic| traffic.held.requests);
    number(&mut text, "ocore_edge_instance_held_in_vain_total", "counter", "Held requests that got an error", |traffic| {
        traffic.held.failed + traffic.held.turned_away
    });
    number(&mut text, "ocore_edge_instance_websockets", "gauge", "Open websockets", |traffic| traffic.websockets.now);
    number(&mut text, "ocore_edge_instance_websockets_total", "counter", "Websockets that were opened", |traffic| {
        traffic.websockets.opened
    });
    head(&mut text, "ocore_edge_instance_seconds", "histogram", "From a request to the head of its answer, held time included");
    for traffic in &all {
        histogram(&mut text, "ocore_edge_instance_seconds", &traffic.instance_id.to_string(), &traffic.latency);
    }
    text
}

fn head(text: &mut String, name: &str, kind: &str, help: &str) {
    // Writing to a text does not fail.
    let _ = writeln!(text, "# HELP {name} {help}\n# TYPE {name} {kind}");
}

fn line(text: &mut String, name: &str, labels: &str, value: u64) {
    let _ = writeln!(text, "{name}{{{labels}}} {value}");
}

fn histogram(text: &mut String, name: &str, instance: &str, histogram: &Histogram) {
    for bound in BOUNDS {
        let count = histogram.buckets.iter().filter(|bucket| bucket.below_microseconds <= bound).map(|bucket| bucket.count).sum();
        let labels = format!("instance=\"{instance}\",le=\"{}\"", bound as f64 / 1e6);
        line(text, &format!("{name}_bucket"), &labels, count);
    }
    line(text, &format!("{name}_bucket"), &format!("instance=\"{instance}\",le=\"+Inf\""), histogram.count());
    let _ = writeln!(text, "{name}_sum{{instance=\"{instance}\"}} {}", histogram.total_microseconds as f64 / 1e6);
    line(text, &format!("{name}_count"), &format!("instance=\"{instance}\""), histogram.count());
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use chrono::Utc;
    use ocore_model::{
        edge::{HeldTraffic, WebsocketTraffic},
        histogram::{BUCKETS, bounds, bucket_of},
        ids::InstanceId,
    };

    use super::*;

    fn traffic(requests: u64, milliseconds: &[u64]) -> RouteTraffic {
        let mut counts = [0; BUCKETS];
        for duration in milliseconds {
            counts[bucket_of(Duration::from_millis(*duration))] += 1;
        }
        RouteTraffic {
            instance_id: InstanceId::new(),
            counted_since: Utc::now(),
            taken_at: Utc::now(),
            generation: 1,
            requests,
            answers: [0, 2, 0, 0, 1],
            edge_errors: 1,
            abandoned: 0,
            latency: Histogram::new(counts, milliseconds.iter().sum::<u64>() * 1000, 0),
            held: HeldTraffic { failed: 1, turned_away: 2, ..HeldTraffic::default() },
            websockets: WebsocketTraffic { now: 3, ..WebsocketTraffic::default() },
            slots: Vec::new(),
        }
    }

    #[test]
    fn each_instance_has_its_lines_and_there_are_not_too_many() {
        assert!(
            BOUNDS.iter().all(|bound| (0..BUCKETS).any(|bucket| bounds(bucket).1 == *bound)),
            "bounds that are none of the histogram's"
        );
        let busy = traffic(7, &[1, 100, 5000]);
        let id = busy.instance_id;
        let mut all = vec![busy];
        all.extend((0..INSTANCES).map(|_| traffic(1, &[])));
        let text = render(all);
        for wanted in [
            format!("ocore_edge_instance_requests_total{{instance=\"{id}\"}} 7\n"),
            format!("ocore_edge_instance_answers_total{{instance=\"{id}\",status=\"5xx\"}} 1\n"),
            format!("ocore_edge_instance_held_in_vain_total{{instance=\"{id}\"}} 3\n"),
            format!("ocore_edge_instance_websockets{{instance=\"{id}\"}} 3\n"),
            format!("ocore_edge_instance_seconds_bucket{{instance=\"{id}\",le=\"0.004096\"}} 1\n"),
            format!("ocore_edge_instance_seconds_bucket{{instance=\"{id}\",le=\"0.131072\"}} 2\n"),
            format!("ocore_edge_instance_seconds_bucket{{instance=\"{id}\",le=\"+Inf\"}} 3\n"),
            format!("ocore_edge_instance_seconds_sum{{instance=\"{id}\"}} 5.101\n"),
        ] {
            assert!(text.contains(&wanted), "{wanted} is not in {text:.2000}");
        }
        assert_eq!(text.matches("ocore_edge_instance_requests_total{").count(), INSTANCES);
    }
}
