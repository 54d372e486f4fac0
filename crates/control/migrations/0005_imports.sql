-- Imports and exports: data of an Odoo on their way into an environment, and out of one.

create table imports (
    id uuid primary key,
    organization_id uuid not null references organizations on delete cascade,
    project_id uuid not null references projects,
    environment_id uuid not null references environments,
    -- Whose pool the upload lies in.
    server_id uuid not null references servers,
    status text not null check (status in ('receiving', 'received', 'checked', 'rejected', 'importing', 'done', 'failed', 'expired')),
    -- Why it was rejected or failed.
    message text not null default '',
    file_name text not null,
    size bigint not null check (size > 0),
    file_store_name text,
    file_store_size bigint check (file_store_size > 0),
    -- An `ocore_host::ImportFacts`, once it has been looked at.
    facts jsonb,
    deployment_id uuid references deployments,
    created_by uuid references users,
    created_at timestamptz not null default now(),
    updated_at timestamptz not null default now(),
    -- Then its upload goes, unless a deployment brings it in.
    expires_at timestamptz not null,
    check ((file_store_name is null) = (file_store_size is null))
);
create index imports_environment on imports (environment_id, created_at desc, id desc);
create index imports_open on imports (server_id, created_at) where status not in ('done', 'expired');
create index imports_deployment on imports (deployment_id) where deployment_id is not null;

create table exports (
    id uuid primary key,
    organization_id uuid not null references organizations on delete cascade,
    project_id uuid not null references projects,
    environment_id uuid not null references environments,
    server_id uuid not null references servers,
    status text not null check (status in ('waiting', 'running', 'done', 'failed', 'expired')),
    message text not null default '',
    format text not null check (format in ('zip', 'custom', 'directory')),
    neutralized boolean not null,
    with_file_store boolean not null,
    -- What is taken of the environment, and where it is brought to life; removed when the export has ended.
    snapshot_id uuid not null,
    scratch_instance_id uuid not null,
    scratch_data_set_id uuid not null,
    file_name text not null,
    bytes bigint,
    sha256 text,
    -- Of Odoo's `admin` in a neutralized export, sealed.
    admin_password bytea,
    created_by uuid references users,
    created_at timestamptz not null default now(),
    updated_at timestamptz not null default now(),
    started_at timestamptz,
    completed_at timestamptz,
    expires_at timestamptz not null
);
create index exports_environment on exports (environment_id, created_at desc, id desc);
create index exports_open on exports (server_id, created_at) where status <> 'expired';

-- The deployment that brings an import in decides what becomes of it.
create function import_follows_deployment() returns trigger language plpgsql as $$
begin
    update imports
    set status = case new.status when 'succeeded' then 'done' else 'failed' end,
        message = case new.status when 'succeeded' then '' else coalesce(new.error_message, 'the deployment did not succeed') end,
        updated_at = now(),
        expires_at = greatest(expires_at, now() + interval '1 day')
    where deployment_id = new.id and status = 'importing';
    return null;
end
$$;
create trigger deployments_import after update of status on deployments for each row
    when (old.status is distinct from new.status and new.status in ('succeeded', 'failed', 'cancelled', 'superseded'))
    execute function import_follows_deployment();

create function transfer_event() returns trigger language plpgsql as $$
begin
    if tg_op = 'UPDATE' and (old.status, old.message) is not distinct from (new.status, new.message) then
        return null;
    end if;
    insert into events (organization_id, kind, project_id, environment_id, payload)
    values (new.organization_id, tg_argv[0] || '.status', new.project_id, new.environment_id,
            jsonb_build_object(tg_argv[0] || 'Id', new.id, 'status', new.status, 'message', new.message));
    return null;
end
$$;
create trigger imports_event after insert or update on imports for each row execute function transfer_event('import');
create trigger exports_event after insert or update on exports for each row execute function transfer_event('export');
