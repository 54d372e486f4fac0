//! The coverage report of a neutralized copy, as JSON and as CSV.

use axum::{
    Json,
    extract::State,
    http::header,
    response::{IntoResponse, Response},
};
use chrono::{DateTime, Utc};
use ocore_control::{
    authorization::ViewEnvironments,
    neutralizations::{self, Change, ChangeKind, Coverage, Fact, Finding, FindingKind, FindingVerdict, ModuleCoverage},
};
use serde::{Deserialize, Serialize};
use serde_with::skip_serializing_none;
use utoipa::{IntoParams, ToSchema};
use uuid::Uuid;

use crate::{
    AppState, Problem,
    authorized::Authorized,
    environments::TAG,
    extract::{FromPath, FromQuery},
};

/// What was checked and found before a copy was let out of quarantine. Values are never in it.
#[skip_serializing_none]
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct NeutralizationBody {
    environment_id: Uuid,
    /// The deployment that brought the copy.
    deployment_id: Uuid,
    /// Whose data they are; null when they came from elsewhere.
    source_environment_id: Option<Uuid>,
    created_at: DateTime<Utc>,
    /// All hold: `{name, statement, holds}`.
    #[schema(value_type = Vec<Object>)]
    facts: Vec<Fact>,
    /// Every installed module: `{module, hasScript, unknown}`.
    #[schema(value_type = Vec<Object>)]
    modules: Vec<ModuleCoverage>,
    /// Everything that looks like a credential, an endpoint or an address: `{place, module, kind, verdict, rows, reason}`.
    #[schema(value_type = Vec<Object>)]
    findings: Vec<Finding>,
    /// Columns that were masked, `table.column`.
    masked: Vec<String>,
    /// Large tables of whose contents only a sample was searched for findings. The facts rest on no sample.
    sampled: Vec<String>,
    /// Against the copy before, of this environment or of the same source. Null when there was none.
    changes: Option<Vec<ChangeBody>>,
}

#[skip_serializing_none]
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[schema(as = NeutralizationChange)]
pub(crate) struct ChangeBody {
    place: String,
    /// `new`, `gone` or `changed`.
    change: &'static str,
    #[schema(value_type = Option<String>)]
    before: Option<FindingVerdict>,
    #[schema(value_type = Option<String>)]
    after: Option<FindingVerdict>,
}

fn change_word(kind: ChangeKind) -> &'static str {
    match kind {
        ChangeKind::New => "new",
        ChangeKind::Gone => "gone",
        ChangeKind::Changed => "changed",
    }
}

impl NeutralizationBody {
    fn new(coverage: Coverage) -> Self {
        let neutralization = coverage.neutralization;
        let report = neutralization.report.0;
        let change = |change: Change| ChangeBody {
            place: change.place,
            change: change_word(change.kind),
            before: change.before,
            after: change.after,
        };
        Self {
            environment_id: neutralization.environment_id.as_uuid(),
            deployment_id: neutralization.deployment_id.as_uuid(),
            source_environment_id: neutralization.source_environment_id.map(Uuid::from),
            created_at: neutralization.created_at,
            facts: report.facts,
            modules: report.modules,
            findings: report.findings,
            masked: report.masked,
            sampled: report.sampled,
            changes: coverage.changes.map(|changes| changes.into_iter().map(change).collect()),
        }
    }
}

#[derive(Debug, Default, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Format {
    #[default]
    Json,
    Csv,
}

#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(crate) struct FormatQuery {
    /// default `json`; `csv` has a line for each fact, module, finding, masked column, sampled table and change
    #[param(value_type = Option<String>)]
    format: Option<Format>,
}

/// Get the neutralization report
///
/// Of the copy that the environment's live data are. 404 when they are its own.
#[utoipa::path(get, path = "/environments/{id}/neutralization", tag = TAG,
    params(("id" = Uuid, Path, description = "The environment"), FormatQuery),
    responses((status = 200, description = "The report", body = NeutralizationBody)))]
pub(crate) async fn report(
    Authorized(grant): Authorized<ViewEnvironments>,
    State(state): State<AppState>,
    FromPath(id): FromPath<Uuid>,
    FromQuery(query): FromQuery<FormatQuery>,
) -> Result<Response, Problem> {
    let coverage = neutralizations::coverage(&state.control, &grant, id.into()).await?;
    Ok(match query.format.unwrap_or_default() {
        Format::Json => Json(NeutralizationBody::new(coverage)).into_response(),
        Format::Csv => (
            [
                (header::CONTENT_TYPE, "text/csv; charset=utf-8".to_owned()),
                (header::CONTENT_DISPOSITION, format!("attachment; filename=\"neutralization-{id}.csv\"")),
            ],
            csv(&coverage),
        )
            .into_response(),
    })
}

/// One table for a spreadsheet.
fn csv(coverage: &Coverage) -> String {
    let report = &coverage.neutralization.report.0;
    let mut lines = vec![line(&["what", "name", "module", "kind", "verdict", "rows", "reason"])];
    for fact in &report.facts {
        lines.push(line(&["fact", &fact.name, "", "", if fact.holds { "holds" } else { "fails" }, "", &fact.statement]));
    }
    for module in &report.modules {
        let script = if module.has_script { "its own script ran" } else { "it brings no script" };
        lines.push(line(&["module", &module.module, "", "", "", &module.unknown.to_string(), script]));
    }
    for finding in &report.findings {
        let module = finding.module.as_deref().unwrap_or_default();
        let rows = finding.rows.to_string();
        lines.push(line(&[
            "finding",
            &finding.place,
            module,
            kind_word(finding.kind),
            verdict_word(finding.verdict),
            &rows,
            &finding.reason,
        ]));
    }
    for column in &report.masked {
        lines.push(line(&["masked", column, "", "", "", "", ""]));
    }
    for table in &report.sampled {
        lines.push(line(&["sampled", table, "", "", "", "", "too large: a sample of its contents was searched"]));
    }
    for change in coverage.changes.iter().flatten() {
        let after = change.after.map(verdict_word).unwrap_or_default();
        let before = change.before.map(|before| format!("before: {}", verdict_word(before))).unwrap_or_default();
        lines.push(line(&["change", &change.place, "", change_word(change.kind), after, "", &before]));
    }
    lines.concat()
}

fn kind_word(kind: FindingKind) -> &'static str {
    match kind {
        FindingKind::Credential => "credential",
        FindingKind::Endpoint => "endpoint",
        FindingKind::Address => "address",
    }
}

fn verdict_word(verdict: FindingVerdict) -> &'static str {
    match verdict {
        FindingVerdict::Handled => "handled",
        FindingVerdict::Harmless => "harmless",
        FindingVerdict::Unknown => "unknown",
    }
}

/// RFC 4180; and no field that a spreadsheet would take for a formula.
fn line(fields: &[&str]) -> String {
    let quoted = |field: &&str| {
        let guard = if field.starts_with(['=', '+', '-', '@', '\t', '\r']) { "'" } else { "" };
        format!("\"{guard}{}\"", field.replace('"', "\"\""))
    };
    let mut line = fields.iter().map(quoted).collect::<Vec<_>>().join(",");
    line.push_str("\r\n");
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_field_is_quoted_and_never_a_formula() {
        assert_eq!(line(&["a", "say \"x\", y", "=1+1"]), "\"a\",\"say \"\"x\"\", y\",\"'=1+1\"\r\n");
    }
}
