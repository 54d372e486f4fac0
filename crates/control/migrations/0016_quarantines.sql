-- Raw copies that could not be made harmless, kept for a person to see why. The newest of an instance, and no other.
create table quarantines (
    instance_id uuid primary key references instances on delete cascade,
    environment_id uuid not null references environments on delete cascade,
    -- The deployment that brought the copy, and failed.
    deployment_id uuid not null references deployments on delete cascade,
    data_set_id uuid not null,
    status text not null check (status in ('setting_aside', 'kept', 'removing')),
    -- The step that was refused, and why.
    step text not null,
    message text not null,
    excerpt text not null default '',
    -- Whose data they are; null when they came from elsewhere.
    source_environment_id uuid references environments on delete set null,
    -- They may be a production's data as they are.
    of_production boolean not null,
    -- An `ocore_host::NeutralizationReport`, when the check came so far. Values are never in it.
    report jsonb,
    database_bytes bigint,
    file_store_bytes bigint,
    created_at timestamptz not null,
    expires_at timestamptz not null
);
