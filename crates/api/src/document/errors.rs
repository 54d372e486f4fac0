//! Which problems an operation answers with: status and codes. What every operation has stands in the components; [`OWN`] has what is an operation's own.

use std::collections::BTreeMap;

use serde_json::{Value, json};

/// Operation, status, codes that only some operations have. Tests hold every problem that they see against it.
const OWN: &[(&str, u16, &[&str])] = &[
    ("accounts_signup", 403, &["signup_closed", "first_account_token_required", "first_account_token_invalid", "cross_site_request"]),
    ("accounts_signup", 409, &["email_taken", "first_account_made"]),
    ("accounts_login", 401, &["invalid_credentials"]),
    ("accounts_refresh", 401, &["authentication_required", "refresh_token_invalid", "refresh_token_reused", "session_ended"]),
    ("accounts_refresh", 403, &["cross_site_request"]),
    ("accounts_logout", 401, &["refresh_token_invalid"]),
    ("accounts_delete", 409, &["last_owner"]),
    ("organizations_create", 409, &["slug_taken", "too_many_organizations"]),
    ("organizations_update", 409, &["slug_taken"]),
    ("organizations_delete", 409, &["organization_in_use"]),
    ("members_invite", 403, &["more_than_own_permissions"]),
    ("members_invite", 409, &["already_member"]),
    ("members_leave", 409, &["last_owner"]),
    ("members_remove", 403, &["more_than_own_permissions"]),
    ("members_remove", 409, &["cannot_remove_self", "last_owner"]),
    ("members_change_role", 403, &["more_than_own_permissions"]),
    ("members_change_role", 409, &["last_owner"]),
    ("members_accept", 409, &["already_member"]),
    ("roles_create", 403, &["more_than_own_permissions"]),
    ("roles_create", 409, &["role_name_taken"]),
    ("roles_update", 403, &["more_than_own_permissions"]),
    ("roles_update", 409, &["role_name_taken", "system_role"]),
    ("roles_delete", 403, &["more_than_own_permissions"]),
    ("roles_delete", 409, &["role_in_use", "system_role"]),
    ("api_keys_create", 403, &["more_than_own_permissions"]),
    ("projects_create", 409, &["project_name_taken", "slug_taken", "too_many_projects"]),
    ("projects_update", 409, &["project_name_taken", "slug_taken", "too_many_projects"]),
    ("projects_archive", 409, &["project_in_use"]),
    ("environments_create", 409, &["branch_taken", "project_archived", "instance_taken", "production_exists", "slug_taken"]),
    ("environments_update", 409, &["environment_removing"]),
    ("environments_delete", 409, &["production_protected"]),
    ("environments_update_commit_behavior", 409, &["environment_removing"]),
    ("environments_trigger_build", 403, &["production_kept"]),
    (
        "environments_trigger_build",
        409,
        &["branch_missing", "commit_missing", "nothing_pending", "environment_removing", "no_environment", "project_archived"],
    ),
    ("environments_environments_update_sleep", 409, &["production_awake"]),
    ("environments_update_egress", 409, &["production_open"]),
    ("environments_update_egress", 503, &["egress_not_enforced"]),
    (
        "environments_clone",
        409,
        &[
            "branch_taken",
            "branch_clashes",
            "branch_missing",
            "commit_missing",
            "environment_removing",
            "nothing_live",
            "project_archived",
            "slug_taken",
        ],
    ),
    ("environments_query_quarantine", 409, &["not_ready"]),
    ("deployments_deploy", 403, &["production_kept"]),
    ("deployments_deploy", 409, &["no_environment", "environment_removing", "project_archived", "branch_missing", "commit_missing"]),
    ("deployments_cancel", 409, &["already_ended"]),
    (
        "deployments_preview",
        409,
        &["cannot_deploy", "stopped", "environment_removing", "no_environment", "project_archived", "still_asleep"],
    ),
    (
        "deployments_roll_back",
        409,
        &[
            "another_odoo_version",
            "commit_unknown",
            "environment_removing",
            "snapshot_neutralized",
            "snapshot_not_ready",
            "project_archived",
        ],
    ),
    ("snapshots_create", 409, &["nothing_live", "environment_removing"]),
    ("snapshots_estimate", 409, &["nothing_live"]),
    ("snapshots_update", 409, &["too_many_pinned", "snapshot_failed", "snapshot_removing"]),
    ("snapshots_delete", 409, &["snapshot_pinned", "snapshot_in_use"]),
    ("snapshots_verify", 409, &["snapshot_failed", "snapshot_not_ready", "snapshot_removing"]),
    ("exports_create", 409, &["nothing_live", "environment_removing"]),
    ("exports_download", 409, &["not_ready", "expired", "export_failed"]),
    ("exports_download", 416, &["range"]),
    ("imports_create", 409, &["environment_removing"]),
    ("imports_create", 503, &["no_room"]),
    ("imports_upload", 409, &["upload_offset", "upload_ended", "imported", "importing", "expired"]),
    ("imports_upload_file_store", 409, &["upload_offset", "upload_ended", "imported", "importing", "expired"]),
    ("imports_add_file_store", 409, &["file_store_announced", "imported", "importing", "expired"]),
    ("imports_add_file_store", 503, &["no_room"]),
    (
        "imports_start",
        409,
        &[
            "branch_missing",
            "commit_missing",
            "not_checked",
            "not_received",
            "warnings_not_accepted",
            "imported",
            "importing",
            "expired",
            "environment_removing",
        ],
    ),
    ("imports_delete", 409, &["importing"]),
    ("instances_create", 409, &["project_archived", "slug_taken", "branch_taken", "production_exists", "instance_taken"]),
    ("instances_update", 409, &["instance_removing", "slug_taken"]),
    ("instances_delete", 409, &["production_protected"]),
    ("instances_control", 409, &["nothing_deployed", "production_awake", "instance_removing"]),
    ("instances_credentials", 409, &["nothing_deployed", "instance_removing"]),
    ("mail_page", 409, &["nothing_deployed", "production_sends"]),
    ("mail_page", 503, &["mail_unavailable"]),
    ("mail_release", 403, &["address_not_allowed"]),
    ("mail_release", 409, &["no_relay", "relay_refused", "nothing_deployed", "production_sends"]),
    ("mail_release", 503, &["mail_unavailable"]),
    (
        "mail_inject",
        409,
        &[
            "no_password",
            "not_running",
            "password_changed",
            "odoo_away",
            "odoo_refused",
            "nothing_deployed",
            "production_sends",
            "still_asleep",
        ],
    ),
    ("mail_settings", 409, &["production_sends"]),
    ("mail_update_settings", 409, &["production_sends"]),
    ("repositories_connect_repository", 409, &["project_archived"]),
    ("repositories_connect_repository", 503, &["ssh_missing"]),
    ("repositories_validate_repository", 409, &["repository_built_in"]),
    ("repositories_fetch_repository", 409, &["repository_built_in", "repository_unreachable"]),
    ("repositories_renew_deploy_key", 409, &["no_deploy_key"]),
    ("repositories_renew_deploy_key", 503, &["ssh_missing"]),
    ("repositories_accept_host_key", 409, &["host_key_differs", "no_host_key", "repository_built_in", "repository_unreachable"]),
    ("repositories_set_submodule_sources", 409, &["repository_built_in"]),
    ("repositories_renew_webhook_secret", 409, &["repository_built_in"]),
    ("repositories_receive_webhook", 401, &["webhook_refused"]),
    ("repositories_receive_webhook", 409, &["repository_built_in"]),
];

/// Operations that answer 429 to too many attempts.
const COUNTED: &[&str] =
    &["accounts_signup", "accounts_login", "accounts_refresh", "accounts_change_password", "accounts_delete", "members_accept"];
/// GET operations that ask the server's host, which may refuse.
const ASK_THE_HOST: &[&str] = &["snapshots_estimate", "snapshots_show", "instances_logs", "exports_download", "environments_egress"];

/// A status, the name of its response in the components, what it means, and the codes that any operation with it may have.
const COMMON: &[(u16, &str, &str, &[&str])] = &[
    (
        400,
        "BadRequest",
        "The call is no call: the body is not JSON, or it leaves open which organization it is about.",
        &["malformed_json", "unreadable_body", "organization_required", "no_organization"],
    ),
    (
        401,
        "Unauthenticated",
        "Who the caller is, is not known.",
        &[
            "authentication_required",
            "session_ended",
            "token_invalid",
            "token_expired",
            "api_key_invalid",
            "api_key_expired",
            "api_key_revoked",
        ],
    ),
    (403, "Forbidden", "The caller may not.", &["permission_missing", "session_required", "cross_site_request"]),
    (404, "NotFound", "There is no such thing, or it is another organization's.", &["not_found", "no_such_path"]),
    (408, "Timeout", "The body did not come in time.", &["body_timeout"]),
    (409, "Conflict", "The thing's state does not allow it now.", &["illegal_transition", "rejected"]),
    (412, "PreconditionFailed", "It is not what `If-Match` says any more; nothing was changed.", &["changed_meanwhile"]),
    (413, "TooLarge", "The body is larger than the API takes.", &["body_too_large"]),
    (415, "UnsupportedMediaType", "The body is not sent as what it has to be.", &["json_required", "upload_type_required"]),
    (416, "RangeNotSatisfiable", "There are no such bytes.", &[]),
    (422, "Invalid", "A field, a query parameter or an id does not fit; `errors` names it.", &["invalid_input"]),
    (429, "TooMany", "Too many attempts; `Retry-After` says how many seconds to wait.", &["too_many_attempts"]),
    (500, "Internal", "oCore could not answer; the server's log has it under the `requestId`.", &["internal"]),
    (
        503,
        "Unavailable",
        "Something that it needs is away for the moment; the same call may go through later.",
        &["store_unavailable", "too_busy"],
    ),
];
/// With an idempotency key.
const IDEMPOTENCY: &[&str] = &["idempotency_in_progress", "idempotency_interrupted"];

pub(super) fn common() -> Value {
    let mut responses = json!({
        "NotModified": {
            "description": "The caller has it already: `If-None-Match` names its `ETag`.",
            "headers": { "ETag": { "$ref": "#/components/headers/ETag" }, "x-request-id": { "$ref": "#/components/headers/RequestId" } },
        },
    });
    for (status, name, description, codes) in COMMON {
        responses[*name] = response(*status, description, codes);
    }
    responses
}

fn response(status: u16, description: &str, codes: &[&str]) -> Value {
    let mut headers = json!({ "x-request-id": { "$ref": "#/components/headers/RequestId" } });
    if status == 429 || status == 503 {
        headers["Retry-After"] = json!({ "$ref": "#/components/headers/RetryAfter" });
    }
    let schema = json!({
        "allOf": [
            { "$ref": "#/components/schemas/Problem" },
            { "type": "object", "properties": { "code": { "type": "string", "enum": codes } } },
        ],
    });
    json!({ "description": description, "headers": headers, "content": { "application/problem+json": { "schema": schema } } })
}

/// Adds to an operation every problem that it may answer with.
pub(super) fn add(id: &str, method: &str, operation: &mut Value, open: bool, compares: bool) {
    let parameters = operation["parameters"].as_array().cloned().unwrap_or_default();
    let takes = |place: &str| parameters.iter().any(|parameter| parameter["in"] == place);
    let has_body = operation.get("requestBody").is_some_and(|body| !body.is_null());
    let keyed = parameters.iter().any(|parameter| parameter["$ref"] == "#/components/parameters/IdempotencyKey");
    let own: BTreeMap<u16, &[&str]> = OWN.iter().filter(|(own, ..)| *own == id).map(|(_, status, codes)| (*status, *codes)).collect();
    for (status, name, description, codes) in COMMON {
        let applies = match status {
            400 => !open || has_body,
            401 | 403 => !open,
            404 => !open || takes("path"),
            408 | 413 | 415 => has_body,
            409 => keyed || (method != "get" && !open) || ASK_THE_HOST.contains(&id),
            412 => compares && ["put", "patch", "delete"].contains(&method),
            416 => false,
            429 => COUNTED.contains(&id),
            _ => true,
        };
        let key = status.to_string();
        if operation["responses"].get(&key).is_some() || !(applies || own.contains_key(status)) {
            continue;
        }
        let own = own.get(status).copied().unwrap_or_default();
        let idempotency = if *status == 409 && keyed { IDEMPOTENCY } else { &[] };
        operation["responses"][&key] = if own.is_empty() && idempotency.is_empty() {
            json!({ "$ref": format!("#/components/responses/{name}") })
        } else {
            let mut all: Vec<&str> = own.to_vec();
            // An operation that needs nobody's log-in has none of its codes.
            all.extend(codes.iter().filter(|_| !(open && matches!(status, 401 | 403))));
            all.extend(idempotency);
            all.sort_unstable();
            all.dedup();
            response(*status, description, &all)
        };
    }
}

/// The operations that the tables of this file name.
#[cfg(test)]
pub(super) fn named() -> impl Iterator<Item = &'static str> {
    OWN.iter().map(|(id, ..)| *id).chain(COUNTED.iter().copied()).chain(ASK_THE_HOST.iter().copied())
}
