-- Answers that are given again for a day to whoever sends the same call with the same key.
create table idempotency_keys (
    id uuid primary key,
    -- The caller: a user, as a person or by one of their keys, in an organization or in none.
    user_id uuid not null references users on delete cascade,
    api_key_id uuid references api_keys on delete cascade,
    organization_id uuid references organizations on delete cascade,
    key text not null,
    -- SHA-256 of method, path, query and body.
    digest bytea not null,
    -- What the caller was allowed to do then.
    permissions text[] not null,
    -- The process that carries out the call. No answer, and another process: it was cut off.
    process uuid not null,
    -- Sealed `StoredAnswer`, once there is one.
    answer bytea,
    created_at timestamptz not null,
    unique nulls not distinct (user_id, api_key_id, organization_id, key)
);
create index idempotency_keys_created on idempotency_keys (created_at);
