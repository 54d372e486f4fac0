-- What environments may reach on the network, and who changed it.

alter table environments
    -- Of an environment that is not production; production is open whatever stands here.
    add column egress text not null default 'closed' check (egress in ('closed', 'open')),
    -- Places that a closed environment may reach: `["api.example.com:443", …]`.
    add column egress_allow jsonb not null default '[]',
    -- What the names among them mean, as far as it was found: `{"api.example.com:443": ["192.0.2.1:443", …]}`.
    add column egress_addresses jsonb not null default '{}',
    -- Raised by the trigger with each change that the server has to know; the server refuses older ones.
    add column egress_version bigint not null default 1,
    -- The version that the server has taken; null when none.
    add column egress_applied bigint;

create function raise_egress_version() returns trigger language plpgsql as $$
begin
    if (old.stage, old.egress, old.egress_allow, old.egress_addresses) is distinct from (new.stage, new.egress, new.egress_allow, new.egress_addresses) then
        new.egress_version := old.egress_version + 1;
    end if;
    return new;
end
$$;
create trigger environments_egress before update on environments for each row execute function raise_egress_version();

-- Changes that somebody may have to answer for. Nothing changes or removes a row.
create table audit_entries (
    id uuid primary key,
    organization_id uuid not null references organizations on delete cascade,
    user_id uuid not null references users,
    -- The key that the user's program used; null for the user's own session. The key itself may be gone by now.
    api_key_id uuid,
    -- What was done, `<noun>.<past participle>`.
    action text not null,
    -- To what, `<kind>:<id>`.
    subject text not null,
    detail jsonb not null default '{}',
    created_at timestamptz not null
);
create index audit_entries_organization on audit_entries (organization_id, created_at desc, id desc);

-- The system roles' rows, brought to the permission table of `ocore_model`.
update roles set permissions = permissions || array['view:egress', 'manage:egress', 'view:audit', 'manage:audit']
where is_system and name in ('Owner', 'Admin');
update roles set permissions = permissions || array['view:egress'] where is_system and name in ('Developer', 'Viewer');
