//! The coverage report of a copy: what was checked, what was found, and what is different from the copy before.

use std::collections::BTreeMap;

pub use ocore_host::{Fact, Finding, FindingKind, FindingVerdict, ModuleCoverage, NeutralizationReport};
use ocore_model::ids::EnvironmentId;

pub use crate::store::neutralizations::Neutralization;
use crate::{
    Control, Error, Result,
    authorization::{Grant, ViewEnvironments},
    environments, store,
};

/// The report of the copy that an environment's live data are, or descend from.
#[derive(Debug, Clone)]
pub struct Coverage {
    pub neutralization: Neutralization,
    /// Against the copy before: of this environment, or else of the same source. `None` when there was none.
    pub changes: Option<Vec<Change>>,
}

/// A finding that the copy before did not have, does not have any more, or judged otherwise.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    pub place: String,
    pub kind: ChangeKind,
    pub before: Option<FindingVerdict>,
    pub after: Option<FindingVerdict>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ChangeKind {
    New,
    Gone,
    Changed,
}

/// `NotFound` when the environment's live data are no neutralized copy.
pub async fn coverage(control: &Control, grant: &Grant<ViewEnvironments>, environment: EnvironmentId) -> Result<Coverage> {
    let mut connection = control.pool.acquire().await?;
    let environment = environments::read(&mut connection, grant, environment).await?;
    let not_found = Error::NotFound { what: "neutralization report: the environment's data are its own" };
    if !environment.is_neutralized {
        return Err(not_found);
    }
    let Some(neutralization) = store::neutralizations::of_live(&mut connection, grant, environment.id).await? else {
        return Err(not_found);
    };
    let before = store::neutralizations::before(&mut connection, grant, &neutralization).await?;
    let changes = before.map(|before| compare(&before.report, &neutralization.report));
    Ok(Coverage { neutralization, changes })
}

/// What is new, gone or judged otherwise, by place.
fn compare(before: &NeutralizationReport, after: &NeutralizationReport) -> Vec<Change> {
    fn by_place(findings: &[Finding]) -> BTreeMap<&str, FindingVerdict> {
        findings.iter().map(|finding| (finding.place.as_str(), finding.verdict)).collect()
    }
    let (old, new) = (by_place(&before.findings), by_place(&after.findings));
    let mut places: Vec<&str> = old.keys().chain(new.keys()).copied().collect();
    places.sort_unstable();
    places.dedup();
    places
        .into_iter()
        .filter_map(|place| {
            let (before, after) = (old.get(place).copied(), new.get(place).copied());
            let kind = match (before, after) {
                (None, Some(_)) => ChangeKind::New,
                (Some(_), None) => ChangeKind::Gone,
                (Some(before), Some(after)) if before != after => ChangeKind::Changed,
                _ => return None,
            };
            Some(Change { place: place.to_owned(), kind, before, after })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(findings: &[(&str, FindingVerdict)]) -> NeutralizationReport {
        let finding = |(place, verdict): &(&str, FindingVerdict)| Finding {
            place: (*place).to_owned(),
            module: None,
            kind: FindingKind::Credential,
            verdict: *verdict,
            rows: 1,
            reason: String::new(),
        };
        NeutralizationReport { findings: findings.iter().map(finding).collect(), ..NeutralizationReport::default() }
    }

    #[test]
    fn what_is_new_gone_or_judged_otherwise_is_told() {
        use FindingVerdict::{Handled, Harmless, Unknown};
        let before = report(&[("a.token", Handled), ("b.url", Unknown), ("c.key", Harmless)]);
        let after = report(&[("b.url", Handled), ("c.key", Harmless), ("d.secret", Unknown)]);
        let told: Vec<(String, ChangeKind)> = compare(&before, &after).into_iter().map(|change| (change.place, change.kind)).collect();
        let expected = [("a.token", ChangeKind::Gone), ("b.url", ChangeKind::Changed), ("d.secret", ChangeKind::New)];
        assert_eq!(told, expected.map(|(place, kind)| (place.to_owned(), kind)));
        assert!(compare(&after, &after).is_empty());
    }
}
