//! The table of contents of the API. Every route is registered with its OpenAPI description in one call, so that the two cannot drift apart.

use axum::{
    Extension, Router,
    extract::DefaultBodyLimit,
    middleware,
    routing::{any, get},
};
use tower_http::catch_panic::CatchPanicLayer;
use utoipa_axum::{
    router::{OpenApiRouter, UtoipaMethodRouterExt},
    routes,
};

use crate::{
    AppState, accounts, api_keys, audit, branches, clones,
    conditional::{self, Conditions},
    deployments, docs, document, egress, environments, events, exports, git, headers, health,
    idempotent::{self, Once},
    imports, instances,
    large::LargeReads,
    mail, members, metrics, neutralizations, observe, organizations,
    parameters::{self, Known},
    pipeline, plans, problem, projects, quarantines, reports, repositories, roles, rollbacks, servers, sleep, snapshots, space,
};

/// The API takes no larger body. (A push is not a call of the API.)
const BODY_LIMIT: usize = 1 << 20;

/// Everything below `/api`, with its document. One line a path.
fn api() -> OpenApiRouter<AppState> {
    OpenApiRouter::with_openapi(document::skeleton())
        // accounts
        .routes(routes!(accounts::signup))
        .routes(routes!(accounts::login))
        .routes(routes!(accounts::refresh))
        .routes(routes!(accounts::logout))
        .routes(routes!(accounts::user))
        .routes(routes!(accounts::change_password))
        .routes(routes!(accounts::delete))
        // organizations
        .routes(routes!(organizations::list, organizations::create))
        .routes(routes!(organizations::show, organizations::update, organizations::delete))
        // members
        .routes(routes!(members::list))
        .routes(routes!(members::invite))
        .routes(routes!(members::leave))
        .routes(routes!(members::remove))
        .routes(routes!(members::change_role))
        .routes(routes!(members::invitations))
        .routes(routes!(members::accept))
        .routes(routes!(members::cancel_invitation))
        // roles
        .routes(routes!(roles::permissions))
        .routes(routes!(roles::list, roles::create))
        .routes(routes!(roles::update, roles::delete))
        // API keys
        .routes(routes!(api_keys::list, api_keys::create))
        .routes(routes!(api_keys::revoke))
        // servers
        .routes(routes!(servers::list))
        .routes(routes!(servers::show))
        // projects
        .routes(routes!(projects::list, projects::create))
        .routes(routes!(projects::show, projects::update, projects::archive))
        .routes(routes!(projects::branch_mappings, projects::set_branch_mappings))
        // environments
        .routes(routes!(environments::list))
        .routes(routes!(environments::get, environments::update, environments::delete))
        .routes(routes!(environments::update_commit_behavior))
        .routes(routes!(egress::egress, egress::update_egress))
        .routes(routes!(sleep::show, sleep::update))
        .routes(routes!(environments::list_deployments))
        .routes(routes!(environments::trigger_build))
        .routes(routes!(clones::clone))
        .routes(routes!(neutralizations::report))
        .routes(routes!(quarantines::quarantine, quarantines::destroy_quarantine))
        .routes(routes!(quarantines::query_quarantine))
        .routes(routes!(rollbacks::roll_back))
        .routes(routes!(rollbacks::rollback_logs))
        .routes(routes!(environments::list_of_project, environments::create))
        .routes(routes!(branches::commits_since))
        .routes(routes!(pipeline::pipeline))
        // snapshots
        .routes(routes!(snapshots::list, snapshots::create))
        .routes(routes!(snapshots::estimate))
        .routes(routes!(snapshots::settings, snapshots::set_settings))
        .routes(routes!(snapshots::list_of_project))
        .routes(routes!(snapshots::get, snapshots::update, snapshots::delete))
        .routes(routes!(snapshots::verify))
        .routes(routes!(space::show))
        // caught mail
        .routes(routes!(mail::page))
        .routes(routes!(mail::inject).layer(DefaultBodyLimit::max(mail::INJECT_LIMIT)))
        .routes(routes!(mail::release))
        .routes(routes!(mail::settings, mail::update_settings))
        .route("/environments/{id}/mail/api/v1/webui", get(mail::configuration))
        .route("/environments/{id}/mail/", any(mail::below))
        .route("/environments/{id}/mail/{*path}", any(mail::below))
        // deployments
        .routes(routes!(deployments::list_of_project))
        .routes(routes!(deployments::deploy))
        .routes(routes!(deployments::get))
        .routes(routes!(deployments::cancel))
        .routes(routes!(deployments::logs))
        .routes(routes!(deployments::follow))
        .routes(routes!(reports::get))
        .routes(routes!(plans::preview))
        .routes(routes!(rollbacks::progress))
        // imports and exports
        .routes(routes!(imports::list, imports::create))
        .routes(routes!(imports::show, imports::upload, imports::delete))
        .routes(routes!(imports::add_file_store, imports::upload_file_store))
        .routes(routes!(imports::start))
        .routes(routes!(exports::list, exports::create))
        .routes(routes!(exports::show, exports::delete))
        .routes(routes!(exports::download))
        .routes(routes!(exports::credentials))
        // instances
        .routes(routes!(instances::list, instances::create))
        .routes(routes!(instances::get, instances::update, instances::delete))
        .routes(routes!(instances::control))
        .routes(routes!(instances::logs))
        .routes(routes!(instances::credentials))
        // audit
        .routes(routes!(audit::list))
        // events
        .routes(routes!(events::of_organization))
        // repositories
        .merge(repositories::routes())
}

/// The whole HTTP service, for [`crate::serve`], which tells it the peers' addresses: log-ins are counted by
/// them.
pub fn router(state: AppState) -> Router {
    metrics::install();
    let (api, document) = api().split_for_parts();
    let document = document::complete(&document);
    let api = api.merge(docs::routes(&document)).layer(DefaultBodyLimit::max(BODY_LIMIT)).layer(Extension(LargeReads::default()));
    let conditions = Conditions::new(api.clone().with_state(state.clone()));
    let api = api
        .layer(middleware::from_fn_with_state(conditions, conditional::conditional))
        .layer(middleware::from_fn_with_state(Once::new(state.clone(), &document), idempotent::once))
        .layer(middleware::from_fn_with_state(Known::of(&document), parameters::check));
    Router::new()
        .nest("/api", api)
        .nest("/git", git::routes())
        .route("/healthz", get(health::healthz))
        .route("/readyz", get(health::readyz))
        .route("/metrics", get(metrics::metrics))
        .route("/invitations/{token}", get(members::invitation_page))
        .fallback(problem::no_such_path)
        .method_not_allowed_fallback(problem::no_such_method)
        .layer(CatchPanicLayer::custom(problem::from_panic))
        .layer(middleware::from_fn_with_state(state.clone(), headers::protect))
        .layer(middleware::from_fn(observe::observe))
        .with_state(state)
}

/// The OpenAPI 3.1 document, for `ocore openapi` and the contract test.
pub fn openapi() -> serde_json::Value {
    document::complete(&api().into_openapi())
}
