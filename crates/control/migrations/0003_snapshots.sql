-- Snapshots: what was kept of an environment's data, when, and until when.

create table snapshots (
    id uuid primary key,
    organization_id uuid not null references organizations on delete cascade,
    project_id uuid not null references projects,
    -- Stays when the environment is deleted: what was pinned can still be found there.
    environment_id uuid not null references environments,
    instance_id uuid not null references instances,
    -- Whose pool it lies in.
    server_id uuid not null references servers,
    name text not null,
    kind text not null check (kind in ('automatic', 'manual', 'safety', 'clone')),
    status text not null check (status in ('creating', 'ready', 'failed', 'removing')),
    -- Why it failed, or what a person should know.
    message text not null default '',
    pinned boolean not null default false,
    -- The data set that it shows. With `retires` the data set itself becomes the snapshot, otherwise it is copied.
    data_set_id uuid not null,
    retires boolean not null default false,
    -- What was live on these data.
    deployment_id uuid references deployments,
    commit_sha text,
    branch text not null,
    stage text not null check (stage in ('production', 'staging', 'development')),
    release text,
    odoo_version text not null,
    -- Of Odoo's `admin` in these data: the instance's sealed bytes as they were. They open for the instance's row and no other.
    admin_password bytea,
    -- The deployment that makes it, which then answers for it; null when a person asked for it.
    made_by_deployment_id uuid references deployments,
    -- From the server's manifest, when it is ready.
    standing text check (standing in ('own', 'raw', 'neutralized')),
    postgres_version text,
    database_bytes bigint,
    file_store_bytes bigint,
    file_store_files bigint,
    modules_count int,
    live boolean,
    shares_blocks boolean,
    seconds double precision,
    damaged_files text[] not null default '{}',
    taken_at timestamptz,
    -- The last check of all of it: when it was asked for, when it ended, and an `ocore_host::Verification` or `{"error": …}`.
    verify_requested_at timestamptz,
    verified_at timestamptz,
    verification jsonb,
    created_by uuid references users,
    created_at timestamptz not null default now(),
    updated_at timestamptz not null default now(),
    -- The server has it no more; the row stays for the history.
    removed_at timestamptz,
    check (status <> 'ready' or taken_at is not null)
);
create index snapshots_environment on snapshots (environment_id, created_at desc, id desc) where removed_at is null;
create index snapshots_project on snapshots (project_id, created_at desc, id desc) where removed_at is null;
create index snapshots_server on snapshots (server_id) where removed_at is null;

alter table deployments
    -- What keeps the data as they were before it.
    add column snapshot_id uuid references snapshots,
    -- The data that it brings to life. While the deployment is open, that snapshot is not removed.
    add column source_snapshot_id uuid references snapshots;
create index deployments_source_snapshot on deployments (source_snapshot_id) where status in ('queued', 'running');

-- How an environment's snapshots are made and kept. A row is made with the defaults of the environment's stage when it is first read.
create table snapshot_settings (
    environment_id uuid primary key references environments on delete cascade,
    auto_enabled boolean not null,
    failure_policy text not null check (failure_policy in ('fail', 'continue')),
    max_pinned int not null,
    retention_days int not null,
    timeout_seconds int not null,
    updated_at timestamptz not null default now()
);

create function snapshot_event() returns trigger language plpgsql as $$
begin
    if tg_op = 'UPDATE' and (old.status, old.message, old.name, old.pinned, old.verified_at, old.removed_at)
        is not distinct from (new.status, new.message, new.name, new.pinned, new.verified_at, new.removed_at) then
        return null;
    end if;
    -- Not an event of the deployment that makes it: followers of a deployment hear of its steps.
    insert into events (organization_id, kind, project_id, environment_id, instance_id, payload)
    values (new.organization_id, 'snapshot.status', new.project_id, new.environment_id, new.instance_id,
            jsonb_build_object('snapshotId', new.id, 'name', new.name, 'kind', new.kind, 'pinned', new.pinned,
                               'status', case when new.removed_at is null then new.status else 'removed' end,
                               'message', new.message, 'verifiedAt', new.verified_at));
    return null;
end
$$;
create trigger snapshots_event after insert or update on snapshots for each row execute function snapshot_event();

-- The system roles' rows, brought to the permission table of `ocore_model`.
update roles set permissions = permissions || array['view:snapshots', 'manage:snapshots', 'view:production', 'manage:production']
where is_system and name in ('Owner', 'Admin');
update roles set permissions = permissions || array['view:snapshots', 'manage:snapshots', 'view:production']
where is_system and name = 'Developer';
update roles set permissions = permissions || array['view:snapshots', 'view:production'] where is_system and name = 'Viewer';
