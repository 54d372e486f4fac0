//! Quarantine: from a raw copy to a harmless one, and what may leave the machine.
//!
//! The types carry the rule. A copy of foreign data is a [`RawDataSet`]; a slot takes only a [`ServableDataSet`]; the only way from one to the
//! other is [`Host::neutralize`](super::Host::neutralize), which fails closed. The server also writes the standing down with the data and refuses a
//! slot on raw data whatever the caller says.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
};

use ocore_model::ids::DataSetId;
use serde::{Deserialize, Serialize};

use super::ReleaseId;

/// A copy of foreign data that nobody but the quarantine may touch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct RawDataSet(DataSetId);

/// A data set on which an Odoo with HTTP and crons may start.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ServableDataSet(DataSetId);

impl RawDataSet {
    /// For hosts: what they have just made, or found with that standing.
    pub fn quarantined(id: DataSetId) -> Self {
        Self(id)
    }

    pub fn id(self) -> DataSetId {
        self.0
    }
}

impl ServableDataSet {
    /// For hosts, which have just made it or checked it, and for reading back what was written down as live.
    pub fn proven(id: DataSetId) -> Self {
        Self(id)
    }

    pub fn id(self) -> DataSetId {
        self.0
    }
}

/// What [`Host::create_data_set`](super::Host::create_data_set) made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum NewDataSet {
    Servable(ServableDataSet),
    Raw(RawDataSet),
}

impl NewDataSet {
    /// It has to be made harmless before anything serves it.
    pub fn is_raw(self) -> bool {
        matches!(self, Self::Raw(_))
    }

    pub fn id(self) -> DataSetId {
        match self {
            Self::Servable(data_set) => data_set.id(),
            Self::Raw(data_set) => data_set.id(),
        }
    }
}

/// What [`Host::neutralize`](super::Host::neutralize) needs.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Neutralize {
    pub data_set: RawDataSet,
    /// The release that will serve: its addons path must hold every installed module, and its source the project's own `neutralize.sql`,
    /// `neutralize.py` and `ocore.toml`.
    pub release: ReleaseId,
    /// The target's address, frozen as `web.base.url`.
    pub base_url: String,
    /// The only outgoing mail server.
    pub mail: SocketAddr,
    /// Set for Odoo's `admin`. Never logged.
    pub admin_password: String,
    /// Added to the hook's environment.
    pub env_vars: BTreeMap<String, String>,
}

/// What came of it; the data set is harmless.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Neutralized {
    pub data_set: ServableDataSet,
    pub report: NeutralizationReport,
}

/// What was checked and what was found: for the person who has to answer for the copy.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct NeutralizationReport {
    /// All hold; a copy with one that does not stays in quarantine.
    pub facts: Vec<Fact>,
    pub modules: Vec<ModuleCoverage>,
    /// Every column and parameter that looks like a credential, an endpoint or an address. Values are never in it.
    pub findings: Vec<Finding>,
    /// The project's own scripts that ran, relative to its repository.
    pub scripts: Vec<String>,
    /// Columns that were masked, `table.column`.
    pub masked: Vec<String>,
    /// Large tables of whose contents only a sample was searched for findings. The facts rest on no sample.
    #[serde(default)]
    pub sampled: Vec<String>,
}

/// What is otherwise in a report than in the one of the copy before.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ReportChanges {
    /// Findings at places where there was none.
    pub new: Vec<Finding>,
    /// Findings with another verdict than before.
    pub changed: Vec<Finding>,
    /// Places where there is nothing any more.
    pub gone: Vec<String>,
}

impl NeutralizationReport {
    /// What changed since an earlier copy. Numbers of rows do not count.
    pub fn changes_since(&self, earlier: &Self) -> ReportChanges {
        let before: BTreeMap<&str, &Finding> = earlier.findings.iter().map(|finding| (finding.place.as_str(), finding)).collect();
        let mut changes = ReportChanges::default();
        for finding in &self.findings {
            match before.get(finding.place.as_str()) {
                None => changes.new.push(finding.clone()),
                Some(known) if known.verdict != finding.verdict => changes.changed.push(finding.clone()),
                Some(_) => {}
            }
        }
        let now: BTreeSet<&str> = self.findings.iter().map(|finding| finding.place.as_str()).collect();
        changes.gone = before.into_keys().filter(|place| !now.contains(place)).map(ToOwned::to_owned).collect();
        changes
    }

    /// Findings that a person should look at.
    pub fn unknown(&self) -> impl Iterator<Item = &Finding> {
        self.findings.iter().filter(|finding| finding.verdict == FindingVerdict::Unknown)
    }
}

/// One thing that must hold in the database.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Fact {
    /// A stable name, e.g. `mail_servers`.
    pub name: String,
    /// What holds, or what does not, in a sentence.
    pub statement: String,
    pub holds: bool,
}

/// How an installed module was neutralized.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ModuleCoverage {
    pub module: String,
    /// It brings a `neutralize.sql` of its own, which ran.
    pub has_script: bool,
    /// Findings in its tables that nobody has handled.
    pub unknown: u32,
}

/// Something in the database that could reach out, or let somebody in.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Finding {
    /// `table.column`, or `ir_config_parameter:key`.
    pub place: String,
    /// The module that it belongs to, where that is known.
    pub module: Option<String>,
    pub kind: FindingKind,
    pub verdict: FindingVerdict,
    /// Rows with a value in it; of large tables, in a sample.
    pub rows: u64,
    /// Why that verdict, in a few words.
    pub reason: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FindingKind {
    Credential,
    Endpoint,
    Address,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FindingVerdict {
    /// It was emptied, replaced or switched off.
    Handled,
    /// It is known to do no harm.
    Harmless,
    /// Nobody has said; a person should look.
    Unknown,
}

/// What an instance's processes may reach besides their own database.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", tag = "kind")]
pub enum Egress {
    /// Everything, as production must.
    Open,
    /// Only these addresses (and the instance's own mail catcher).
    Closed {
        allow: Vec<SocketAddr>,
        /// It may ask the machine's name servers, as it must when somebody allowed a place by its name. That is a narrow way out of its own.
        #[serde(default)]
        resolve_names: bool,
    },
}

impl Default for Egress {
    fn default() -> Self {
        Self::Closed { allow: Vec::new(), resolve_names: false }
    }
}

/// An attempt to leave that was refused, counted by destination.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct EgressAttempt {
    pub destination: SocketAddr,
    /// `tcp` or `udp`.
    pub protocol: String,
    pub packets: u64,
}

/// What [`Host::egress_report`](super::Host::egress_report) tells.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct EgressReport {
    /// The kernel refuses what the policy does not allow.
    pub enforced: bool,
    /// Why it does not.
    pub problem: Option<String>,
    /// The most frequent first.
    pub attempts: Vec<EgressAttempt>,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn finding(place: &str, verdict: FindingVerdict, rows: u64) -> Finding {
        Finding { place: place.to_owned(), module: None, kind: FindingKind::Credential, verdict, rows, reason: "because".to_owned() }
    }

    fn report(findings: Vec<Finding>) -> NeutralizationReport {
        NeutralizationReport { findings, ..NeutralizationReport::default() }
    }

    #[test]
    fn a_report_tells_what_is_otherwise_than_in_the_one_before() {
        use FindingVerdict::{Handled, Unknown};
        let earlier = report(vec![finding("a.key", Handled, 1), finding("b.key", Unknown, 1), finding("c.key", Unknown, 1)]);
        let later = report(vec![finding("a.key", Handled, 7), finding("b.key", Handled, 1), finding("d.key", Unknown, 1)]);
        let changes = later.changes_since(&earlier);
        assert_eq!(changes.new, vec![finding("d.key", Unknown, 1)]);
        assert_eq!(changes.changed, vec![finding("b.key", Handled, 1)]);
        assert_eq!(changes.gone, vec!["c.key"]);
        assert_eq!(later.unknown().count(), 1);
    }
}
