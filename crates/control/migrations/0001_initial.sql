-- The whole state of the control plane. Text columns with a check hold the words of `ocore_model`'s enumerations.

create table users (
    id uuid primary key,
    email text not null,
    name text not null,
    password_hash text not null,
    created_at timestamptz not null default now(),
    updated_at timestamptz not null default now()
);
create unique index users_email on users (lower(email));

-- One login. Its refresh tokens rotate; a second use of one revokes the whole session.
create table sessions (
    id uuid primary key,
    user_id uuid not null references users on delete cascade,
    user_agent text not null default '',
    created_at timestamptz not null default now(),
    expires_at timestamptz not null,
    revoked_at timestamptz
);
create index sessions_user on sessions (user_id);

create table refresh_tokens (
    token_hash bytea primary key,
    session_id uuid not null references sessions on delete cascade,
    created_at timestamptz not null default now(),
    used_at timestamptz
);
create index refresh_tokens_session on refresh_tokens (session_id);

-- Attempts to log in, by e-mail and address of the caller, as a hash of the two. Counted before the password is looked at, forgotten at a
-- success or when the window is over.
create table login_attempts (
    key bytea primary key,
    attempts int not null,
    window_ends_at timestamptz not null
);

create table organizations (
    id uuid primary key,
    name text not null,
    slug text not null unique,
    logo_url text not null default '',
    created_at timestamptz not null default now(),
    updated_at timestamptz not null default now()
);

create table roles (
    id uuid primary key,
    organization_id uuid not null references organizations on delete cascade,
    name text not null,
    description text not null default '',
    is_system boolean not null default false,
    permissions text[] not null,
    created_at timestamptz not null default now(),
    updated_at timestamptz not null default now(),
    unique (organization_id, name)
);

create table members (
    id uuid primary key,
    organization_id uuid not null references organizations on delete cascade,
    user_id uuid not null references users on delete cascade,
    role_id uuid not null references roles,
    created_at timestamptz not null default now(),
    unique (organization_id, user_id)
);
create index members_user on members (user_id);

create table invitations (
    id uuid primary key,
    organization_id uuid not null references organizations on delete cascade,
    email text not null,
    role_id uuid not null references roles on delete cascade,
    token_hash bytea not null unique,
    invited_by uuid not null references users on delete cascade,
    status text not null default 'pending' check (status in ('pending', 'accepted', 'cancelled')),
    created_at timestamptz not null default now(),
    expires_at timestamptz not null
);
create index invitations_organization on invitations (organization_id, created_at);

create table api_keys (
    id uuid primary key,
    organization_id uuid not null references organizations on delete cascade,
    -- The key never has more rights than this member has now.
    user_id uuid not null references users on delete cascade,
    name text not null,
    -- The first characters, so that a person can tell keys apart.
    prefix text not null,
    key_hash bytea not null unique,
    permissions text[] not null,
    created_at timestamptz not null default now(),
    expires_at timestamptz,
    last_used_at timestamptz,
    revoked_at timestamptz
);
create index api_keys_organization on api_keys (organization_id);

create table servers (
    id uuid primary key,
    -- Null: the machine of this installation, shared by its organizations.
    organization_id uuid references organizations on delete cascade,
    name text not null unique,
    description text not null default '',
    host text not null,
    status text not null check (status in ('active', 'unreachable', 'removing', 'deleted')),
    status_message text not null default '',
    os_name text not null default '',
    os_version text not null default '',
    cpu_cores int not null default 0,
    ram_total_bytes bigint not null default 0,
    pool jsonb not null default '{}',
    -- The Odoo series that are installed there.
    odoo_versions text[] not null default '{}',
    -- Of the route snapshot that the server's edge should have.
    route_generation bigint not null default 0,
    last_seen_at timestamptz,
    created_at timestamptz not null default now(),
    updated_at timestamptz not null default now()
);

create table projects (
    id uuid primary key,
    organization_id uuid not null references organizations on delete cascade,
    name text not null,
    -- In the address of the built-in remote: /git/<organization>/<slug>.git
    slug text not null,
    description text not null default '',
    odoo_version text not null,
    module_selection jsonb not null,
    with_demo boolean not null default false,
    create_environment_on_push boolean not null default true,
    repository_kind text not null check (repository_kind in ('built_in', 'external')),
    repository_url text,
    repository_branch text,
    deploy_key_public text,
    -- Sealed by `control::secrets`.
    deploy_key_private bytea,
    -- An access token for an https repository; sealed by `control::secrets`.
    repository_token bytea,
    -- The ssh host keys that were seen first, in known_hosts format.
    repository_known_hosts text not null default '',
    -- When the last fetch ended well, and what the last one that did not said.
    repository_fetched_at timestamptz,
    repository_error text,
    -- Verifies webhooks, so it has to be had in the clear; sealed by `control::secrets`.
    webhook_secret bytea,
    archived_at timestamptz,
    created_at timestamptz not null default now(),
    updated_at timestamptz not null default now(),
    unique (organization_id, slug)
);

create unique index projects_name on projects (organization_id, lower(name));

-- What oCore knows of a project's branches. A deleted one stays, with the time.
create table branches (
    project_id uuid not null references projects on delete cascade,
    name text not null,
    head_sha text not null,
    commit_author text not null,
    commit_author_email text not null,
    commit_message text not null,
    committed_at timestamptz not null,
    deleted_at timestamptz,
    updated_at timestamptz not null default now(),
    primary key (project_id, name)
);

-- A webhook that was verified and stored; what it asks for is done after the answer, by whoever finds it not done.
create table webhook_deliveries (
    id uuid primary key,
    project_id uuid not null references projects on delete cascade,
    -- The sender's own id of the delivery; the same one again is taken for done.
    delivery_id text,
    received_at timestamptz not null default now(),
    processed_at timestamptz,
    error text,
    unique (project_id, delivery_id)
);
create index webhook_deliveries_open on webhook_deliveries (received_at) where processed_at is null;

create table instances (
    id uuid primary key,
    organization_id uuid not null references organizations on delete cascade,
    project_id uuid not null references projects,
    server_id uuid not null references servers,
    name text not null,
    -- One label of the host name; unique in the whole installation while the instance exists.
    slug text not null,
    status text not null check (status in ('creating', 'running', 'stopped', 'restarting', 'failed', 'removing', 'deleted')),
    status_message text not null default '',
    odoo_version text not null,
    -- `ocore_host::OdooSettings`.
    settings jsonb not null,
    -- Of Odoo's `admin`, set at a fresh install; sealed by `control::secrets`.
    admin_password bytea,
    active_color text check (active_color in ('blue', 'green')),
    active_data_set_id uuid,
    active_release text,
    active_deployment_id uuid,
    -- Where the live slot answers, `<address>:<port>`; the second only with workers. Null while no slot is live.
    active_http text,
    active_websocket text,
    -- The data as it was before the last deployment that changed it.
    previous_data_set_id uuid,
    -- The live slot is stopped on purpose: a deployment works on a copy of its data.
    updating boolean not null default false,
    -- The operation that holds the instance; at most one.
    operation_id uuid,
    -- Raised at each claim; the host refuses calls with an older one.
    generation bigint not null default 0,
    restart_count int not null default 0,
    -- Starts in a row after which it did not stay up; decides how long the next one waits.
    failed_starts int not null default 0,
    last_restart_at timestamptz,
    created_at timestamptz not null default now(),
    updated_at timestamptz not null default now()
);
create unique index instances_slug on instances (slug) where status <> 'deleted';
create index instances_organization on instances (organization_id);
create index instances_server on instances (server_id);

create table branch_mappings (
    id uuid primary key,
    project_id uuid not null references projects on delete cascade,
    -- `*` matches any run of characters.
    branch_pattern text not null,
    instance_id uuid not null references instances on delete cascade,
    -- The highest that matches decides.
    priority int not null default 0,
    created_at timestamptz not null default now(),
    unique (project_id, branch_pattern, instance_id)
);

create table environments (
    id uuid primary key,
    organization_id uuid not null references organizations on delete cascade,
    project_id uuid not null references projects,
    instance_id uuid not null references instances,
    name text not null,
    description text not null default '',
    branch text not null,
    stage text not null check (stage in ('production', 'staging', 'development')),
    commit_behavior text not null check (commit_behavior in ('do_nothing', 'create_new_build', 'update_previous_build')),
    status text not null check (status in ('active', 'removing', 'deleted')),
    status_message text not null default '',
    auto_destroy_on_merge boolean not null default false,
    cloned_from_id uuid references environments,
    is_neutralized boolean not null default false,
    -- The branch's newest commit that is not live, and how many commits lie between it and the live one.
    pending_commit_count int not null default 0,
    pending_commit_sha text,
    last_commit_at timestamptz,
    last_commit_author text,
    -- The commit that is live.
    live_commit_sha text,
    created_at timestamptz not null default now(),
    updated_at timestamptz not null default now()
);
create unique index environments_branch on environments (project_id, branch) where status <> 'deleted';
create unique index environments_instance on environments (instance_id) where status <> 'deleted';
create unique index environments_production on environments (project_id) where stage = 'production' and status <> 'deleted';
create index environments_organization on environments (organization_id, created_at);

create table deployments (
    id uuid primary key,
    organization_id uuid not null references organizations on delete cascade,
    project_id uuid not null references projects,
    environment_id uuid not null references environments,
    instance_id uuid not null references instances,
    status text not null check (status in ('queued', 'running', 'succeeded', 'failed', 'cancelled', 'superseded')),
    trigger_type text not null check (trigger_type in ('push', 'webhook', 'manual', 'api')),
    triggered_by uuid references users,
    branch text not null,
    commit_sha text not null,
    commit_author text not null,
    commit_author_email text not null,
    commit_message text not null,
    previous_commit_sha text,
    previous_deployment_id uuid references deployments,
    -- Fresh database or the live data; from the commit behavior at the time.
    data_mode text not null check (data_mode in ('fresh', 'keep')),
    -- The slot that it made live.
    color text check (color in ('blue', 'green')),
    release text,
    -- `ocore_model::deployment::ModulePlan`.
    plan jsonb,
    -- The data set that it worked in, and the one that was live before.
    data_set_id uuid,
    snapshot_data_set_id uuid,
    -- Set in the transaction before the first effect on the instance; from then on it is not superseded.
    changing boolean not null default false,
    cancel_requested_at timestamptz,
    error_message text,
    error_excerpt text,
    created_at timestamptz not null default now(),
    started_at timestamptz,
    completed_at timestamptz,
    updated_at timestamptz not null default now()
);
create index deployments_environment on deployments (environment_id, created_at desc, id desc);
create index deployments_project on deployments (project_id, created_at desc, id desc);
create index deployments_open on deployments (instance_id) where status in ('queued', 'running');

create table deployment_steps (
    id uuid primary key,
    deployment_id uuid not null references deployments on delete cascade,
    name text not null,
    sort_order int not null,
    status text not null check (status in ('pending', 'running', 'succeeded', 'failed', 'undone', 'skipped')),
    -- One sentence: what came of it.
    summary text not null default '',
    -- Raised with each change, so that a follower can tell old from new.
    version int not null default 0,
    started_at timestamptz,
    completed_at timestamptz,
    unique (deployment_id, name)
);

-- Where a follower of a deployment is: one sequence for its events and the lines of its steps.
create sequence stream_positions;

-- Gives a row its place. The deployment's row is the lock, so that the rows of one deployment become visible in the order of their places:
-- who has read up to a place never finds an older one later.
create function place_in_stream() returns trigger language plpgsql as $$
begin
    perform 1 from deployments where id = new.deployment_id for no key update;
    new.id := nextval('stream_positions');
    return new;
end
$$;

create table step_log_lines (
    -- By the trigger, never by the writer.
    id bigint primary key,
    deployment_id uuid not null references deployments on delete cascade,
    step_id uuid not null references deployment_steps on delete cascade,
    logged_at timestamptz not null default clock_timestamp(),
    text text not null
);
create index step_log_lines_deployment on step_log_lines (deployment_id, id);
create index step_log_lines_step on step_log_lines (step_id, id);
create trigger step_log_lines_place before insert on step_log_lines for each row execute function place_in_stream();

-- Something that somebody asked for. This table is the truth; the queue only carries ids.
create table operations (
    id uuid primary key,
    kind text not null,
    organization_id uuid not null references organizations on delete cascade,
    instance_id uuid not null references instances,
    deployment_id uuid references deployments,
    parameters jsonb not null,
    status text not null check (status in ('queued', 'running', 'succeeded', 'failed', 'stuck')),
    -- Of the step graph; an operation of another version is unwound, not resumed.
    schema_version int not null,
    -- The saga's graph, as it was when it began.
    dag jsonb,
    generation bigint not null default 0,
    claimed_by uuid,
    error text,
    created_at timestamptz not null default now(),
    started_at timestamptz,
    completed_at timestamptz
);
create index operations_open on operations (instance_id, created_at) where status in ('queued', 'running');

-- The saga's log, in the order in which it was written.
create table operation_events (
    operation_id uuid not null references operations on delete cascade,
    sequence bigint generated always as identity,
    node_id bigint not null,
    -- A node has each kind of event once at most, so that writing one again changes nothing.
    kind text not null,
    event jsonb not null,
    recorded_at timestamptz not null default now(),
    primary key (operation_id, node_id, kind)
);

-- What happened, for whoever follows. Rows are written by the triggers below, in the transaction that changes the thing: none is forgotten.
create table events (
    -- By the trigger, never by the writer.
    id bigint primary key,
    organization_id uuid not null references organizations on delete cascade,
    kind text not null,
    project_id uuid,
    environment_id uuid,
    instance_id uuid,
    deployment_id uuid,
    payload jsonb not null default '{}',
    -- Orders the events of a whole organization: one is shown when every older transaction has ended.
    transaction_id xid8 not null default pg_current_xact_id(),
    created_at timestamptz not null default clock_timestamp()
);
create index events_deployment on events (deployment_id, id);
create index events_organization on events (organization_id, transaction_id, id);
create trigger events_place before insert on events for each row execute function place_in_stream();

-- NOTIFY `ocore_events` says where to look: `<organization id> <deployment id>`, or only the organization.
create function notify_events() returns trigger language plpgsql as $$
begin
    perform pg_notify('ocore_events', concat_ws(' ', organization_id, deployment_id))
    from (select distinct organization_id, deployment_id from fresh) as places;
    return null;
end
$$;
create trigger events_notify after insert on events referencing new table as fresh for each statement execute function notify_events();

create function notify_lines() returns trigger language plpgsql as $$
begin
    perform pg_notify('ocore_events', concat_ws(' ', deployments.organization_id, deployments.id))
    from deployments where deployments.id in (select deployment_id from fresh);
    return null;
end
$$;
create trigger step_log_lines_notify after insert on step_log_lines referencing new table as fresh for each statement execute function notify_lines();

create function deployment_event() returns trigger language plpgsql as $$
begin
    if tg_op = 'UPDATE' and old.status = new.status then
        return null;
    end if;
    insert into events (organization_id, kind, project_id, environment_id, instance_id, deployment_id, payload)
    values (new.organization_id, 'deployment.status', new.project_id, new.environment_id, new.instance_id, new.id,
            jsonb_build_object('status', new.status, 'message', new.error_message, 'excerpt', new.error_excerpt));
    return null;
end
$$;
create trigger deployments_event after insert or update on deployments for each row execute function deployment_event();

create function step_event() returns trigger language plpgsql as $$
begin
    if old.status = new.status and old.summary = new.summary then
        return null;
    end if;
    insert into events (organization_id, kind, project_id, environment_id, instance_id, deployment_id, payload)
    select organization_id, 'deployment.step', project_id, environment_id, instance_id, id,
           jsonb_build_object('name', new.name, 'status', new.status, 'summary', new.summary,
                              'durationMs', (extract(epoch from new.completed_at - new.started_at) * 1000)::bigint)
    from deployments where id = new.deployment_id;
    return null;
end
$$;
create trigger deployment_steps_event after update on deployment_steps for each row execute function step_event();

create function instance_event() returns trigger language plpgsql as $$
begin
    if tg_op = 'UPDATE' and old.status = new.status and old.status_message = new.status_message then
        return null;
    end if;
    insert into events (organization_id, kind, project_id, instance_id, payload)
    values (new.organization_id, 'instance.status', new.project_id, new.id,
            jsonb_build_object('status', new.status, 'message', new.status_message));
    return null;
end
$$;
create trigger instances_event after insert or update on instances for each row execute function instance_event();

create function environment_event() returns trigger language plpgsql as $$
begin
    if tg_op = 'UPDATE' and old.status = new.status and old.status_message = new.status_message
        and old.pending_commit_sha is not distinct from new.pending_commit_sha then
        return null;
    end if;
    insert into events (organization_id, kind, project_id, environment_id, instance_id, payload)
    values (new.organization_id, 'environment.status', new.project_id, new.id, new.instance_id,
            jsonb_build_object('status', new.status, 'message', new.status_message,
                               'pendingCommitCount', new.pending_commit_count, 'pendingCommitSha', new.pending_commit_sha));
    return null;
end
$$;
create trigger environments_event after insert or update on environments for each row execute function environment_event();
