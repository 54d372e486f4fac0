//! What a deployment is judged by: evidence of gates, findings, risk, verdict, in the shapes that the API's contract gives. Of findings, risk and
//! verdict nothing makes any yet, so a deployment has none.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use serde_with::skip_serializing_none;

use crate::state::words;

words! {
    /// What looks at a deployment. The API's `gateKey`.
    Gate, "gate" {
        /// The update on a copy of the live data.
        Rehearsal = "rehearsal",
    }
}

impl Gate {
    /// For people.
    pub fn name(self) -> &'static str {
        match self {
            Self::Rehearsal => "Rehearsal on a copy of the live data",
        }
    }
}

words! {
    /// What a gate has found.
    GateStatus, "status of a gate" {
        Passed = "passed",
        Failed = "failed",
    }
}

/// What one gate found.
#[skip_serializing_none]
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct GateEvidence {
    pub gate_key: String,
    pub name: String,
    pub status: String,
    pub outcome: Option<String>,
    pub required: bool,
    pub summary: Option<String>,
    pub started_at: Option<String>,
    pub completed_at: Option<String>,
    pub duration_ms: Option<i64>,
    pub artifact_refs: Vec<String>,
    pub log_refs: Vec<String>,
    pub validation: Option<GateValidation>,
    pub waiver: Option<GateWaiver>,
}

/// The run behind a gate's evidence.
#[skip_serializing_none]
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct GateValidation {
    pub mode: Option<String>,
    pub profile: Option<String>,
    pub exit_code: Option<i32>,
    pub duration_ms: Option<i64>,
    pub log_excerpt: Option<String>,
    pub failure_card: Option<Map<String, Value>>,
    pub artifact_refs: Vec<String>,
}

/// A named person's recorded, expiring exception to a gate.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct GateWaiver {
    pub id: String,
    pub actor: String,
    pub reason: String,
    pub scope: String,
    pub confirmation: String,
    pub audit_status: String,
    pub expires_at: String,
}

/// Something that was noticed about a deployment.
#[skip_serializing_none]
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Finding {
    pub class: String,
    pub severity: String,
    /// 0 to 1.
    pub confidence: f64,
    pub evidence_excerpt: Option<String>,
    pub gate_action: Option<String>,
    pub metadata: Option<Map<String, Value>>,
}

/// How dangerous a deployment looks.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Risk {
    pub level: String,
    pub score: i32,
}

/// Whether a deployment's success is one.
#[skip_serializing_none]
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct SuccessVerdict {
    pub status: String,
    pub label: String,
    pub reason: Option<String>,
    pub clean: bool,
    pub waived: bool,
    pub legacy: bool,
}
