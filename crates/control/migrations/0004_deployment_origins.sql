-- Where a deployment's data come from, and what was found when a copy was made harmless.

alter table deployments drop constraint deployments_trigger_type_check;
alter table deployments add constraint deployments_trigger_type_check
    check (trigger_type in ('push', 'webhook', 'manual', 'api', 'clone', 'rollback', 'import'));

-- An `ocore_model::deployment::DataOrigin`, in place of the two words of before.
alter table deployments add column data_origin jsonb;
update deployments set data_origin = jsonb_build_object('kind', case data_mode when 'keep' then 'live' else 'fresh' end);
alter table deployments alter column data_origin set not null;
alter table deployments drop column data_mode;

-- Snapshots have taken its place.
alter table deployments drop column snapshot_data_set_id;

-- What was live before becomes a snapshot, as far as the environment's settings want one; false when somebody has said that it is not wanted.
alter table deployments add column keeps_previous boolean not null default true;

-- What was checked and found before a copy was let out of quarantine; one for each deployment that brought foreign data.
create table neutralizations (
    deployment_id uuid primary key references deployments on delete cascade,
    environment_id uuid not null references environments on delete cascade,
    -- Whose data they are; null when they came from elsewhere.
    source_environment_id uuid references environments on delete set null,
    -- An `ocore_host::NeutralizationReport`. Values are never in it.
    report jsonb not null,
    created_at timestamptz not null default now()
);
create index neutralizations_environment on neutralizations (environment_id, created_at desc);
create index neutralizations_source on neutralizations (source_environment_id, created_at desc);
