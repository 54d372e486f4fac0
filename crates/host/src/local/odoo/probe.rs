//! Pages that a slot is asked for before anybody is sent to it.

use std::{fs, time::Instant};

use http::{StatusCode, Uri};
use ocore_model::{ids::InstanceId, instance::Color};

use super::{
    health::{self, BUNDLE_LIMIT, Got, Page},
    log_record::{Level, Log},
    serve::read_from,
};
use crate::{
    api::{ProbedPage, Progress},
    error::{HostError, Result},
    local::{
        LocalHost,
        slots::{self, SlotDetails},
    },
};

const ASSETS: &str = "/web/assets/";
const REDIRECTIONS: usize = 4;
/// Of the log, when a page fails.
const EXCERPT_LINES: usize = 40;

/// What came of a page with its redirections.
enum Asked {
    Nothing,
    Endless,
    Answered(StatusCode),
}

impl LocalHost {
    pub(in crate::local) async fn probe(
        &self,
        instance: InstanceId,
        color: Color,
        paths: &[String],
        progress: &Progress,
    ) -> Result<Vec<ProbedPage>> {
        let Some((process, details)) = slots::find(&self.layout, instance, color)? else {
            return Err(HostError::rejected("Odoo ended before it was asked for its pages"));
        };
        let yielding = (!self.serving_beside(instance, &process).is_empty()).then(|| process.yield_processor());
        let log = self.odoo_log_path(instance);
        let begin = fs::metadata(&log).map_or(0, |metadata| metadata.len());
        let mut probed = Vec::new();
        for path in paths {
            // Of one page with its redirections. A bundle of scripts that was never built takes longer, on a busy machine much longer.
            let patience = self.config.patience.answer * if path.starts_with(ASSETS) { 2 } else { 1 };
            let begun = Instant::now();
            let asked = async {
                let mut place = path.clone();
                for _ in 0..REDIRECTIONS {
                    let got = match health::get(details.http, &place, BUNDLE_LIMIT).await {
                        Page::Nothing => return Asked::Nothing,
                        Page::Endless => return Asked::Endless,
                        Page::Whole(got) => got,
                    };
                    match inside(&got) {
                        Some(next) => place = next,
                        None => return Asked::Answered(got.status),
                    }
                }
                Asked::Nothing
            };
            let status = tokio::select! {
                biased;
                () = progress.cancel.cancelled() => return Err(HostError::Cancelled),
                status = tokio::time::timeout(patience, asked) => status,
            };
            let why = match status {
                Ok(Asked::Answered(status)) if status.is_success() || status.is_redirection() => {
                    probed.push(ProbedPage { path: path.clone(), status: status.as_u16(), seconds: begun.elapsed().as_secs_f64() });
                    continue;
                }
                Ok(Asked::Answered(status)) => format!("answers {path} with {status}"),
                Ok(Asked::Endless) => format!("its page {path} does not end: after {} MiB there is still more of it", BUNDLE_LIMIT >> 20),
                Ok(Asked::Nothing) => format!("does not answer {path}, or sends from one page to the next"),
                Err(_) => format!("did not answer {path} within {} s", patience.as_secs()),
            };
            return Err(HostError::Rejected {
                summary: format!("the new Odoo started, but {why}"),
                excerpt: excerpt(&read_from(&log, begin)),
            });
        }
        if yielding.is_some() {
            self.warm_workers(&details, paths).await;
        }
        Ok(probed)
    }

    /// Asks for the project's pages so often at once that each worker gets one: what it keeps in memory it has from then on, and the first users do not
    /// wait for that. What comes of it does not matter. What all pages need it has since its start (`slot.py`).
    async fn warm_workers(&self, details: &SlotDetails, paths: &[String]) {
        let times = match details.settings.workers {
            ..=1 => return,
            workers => usize::from(workers) * 2,
        };
        let warming = async {
            for page in paths.iter().filter(|path| !path.starts_with(ASSETS)) {
                futures::future::join_all((0..times).map(|_| health::get(details.http, page, BUNDLE_LIMIT))).await;
            }
        };
        let _ = tokio::time::timeout(self.config.patience.answer, warming).await;
    }
}

/// Where a redirection within the same Odoo leads; one elsewhere is an answer.
fn inside(got: &Got) -> Option<String> {
    let location = got.status.is_redirection().then_some(got.location.as_deref()?)?;
    let uri: Uri = location.parse().ok()?;
    uri.host().is_none().then(|| uri.path_and_query().map(ToString::to_string))?
}

/// What went wrong meanwhile, or all that was said.
fn excerpt(text: &str) -> String {
    let log = Log::parse(text);
    let mut lines: Vec<&str> = log
        .at_least(Level::Error)
        .flat_map(|record| std::iter::once(record.line.as_str()).chain(record.more.iter().map(String::as_str)))
        .collect();
    if lines.is_empty() {
        lines = text.lines().collect();
    }
    lines[lines.len().saturating_sub(EXCERPT_LINES)..].join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn redirections_are_followed_only_within_the_same_odoo() {
        let led = |status: StatusCode, location: &str| inside(&Got { status, location: Some(location.to_owned()) });
        assert_eq!(led(StatusCode::SEE_OTHER, "/odoo?debug=1").as_deref(), Some("/odoo?debug=1"));
        assert_eq!(led(StatusCode::FOUND, "https://elsewhere.test/odoo"), None);
        assert_eq!(led(StatusCode::OK, "/odoo"), None);
        assert!(inside(&Got { status: StatusCode::FOUND, location: None }).is_none());
    }

    #[test]
    fn the_excerpt_shows_the_traceback() {
        let text = "2026-01-01 00:00:00,000 1 INFO odoo odoo.x: fine\n2026-01-01 00:00:00,000 1 ERROR odoo odoo.http: broken\nTraceback (most recent call last):\n  no\n";
        assert_eq!(excerpt(text).lines().count(), 3);
        assert_eq!(excerpt("all that was said"), "all that was said");
    }
}
