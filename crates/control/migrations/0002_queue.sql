-- The queue of apalis-postgres 1.0.0: the state that its own 23 migrations lead to, without what its driver does not use. It stands here and
-- not in its migrator so that there is one history, applied before anything runs, and so that a job can be pushed in the transaction that
-- writes its operation.
create extension if not exists hstore;

create schema apalis;

create table apalis.workers (
    id text primary key,
    worker_type text not null,
    storage_name text not null,
    layers text not null default '',
    last_seen timestamptz not null default now(),
    started_at timestamptz
);

create table apalis.jobs (
    job bytea not null,
    id text primary key,
    job_type text not null,
    status text not null default 'Pending',
    attempts integer not null default 0,
    max_attempts integer not null default 25,
    run_at timestamptz not null default now(),
    last_result jsonb,
    lock_at timestamptz,
    lock_by text references apalis.workers (id),
    done_at timestamptz,
    priority integer default 0,
    idempotency_key text,
    metadata hstore
);
create unique index idx_jobs_idempotency_key on apalis.jobs (job_type, idempotency_key);
create index idx_apalis_jobs_fetch_partial on apalis.jobs (job_type, priority desc, run_at)
    where status = 'Pending' or (status = 'Failed' and attempts < max_attempts);
create index idx_apalis_jobs_lock_by on apalis.jobs (lock_by);

create function apalis.get_jobs(worker_id text, v_job_type text, v_job_count integer default 5) returns setof apalis.jobs language sql as $$
    with jobs as (
        select id
        from apalis.jobs
        where (status = 'Pending' or (status = 'Failed' and attempts < max_attempts))
            and run_at < now()
            and job_type = v_job_type
        order by priority desc, run_at asc
        limit v_job_count
        for update skip locked
    )
    update apalis.jobs j
    set status = 'Queued', lock_by = worker_id, lock_at = now()
    from jobs
    where j.id = jobs.id
    returning j.*
$$;

create function apalis.notify_new_jobs() returns trigger language plpgsql as $$
begin
    if new.run_at <= now() then
        perform pg_notify('apalis::job::insert', json_build_object('job_type', new.job_type, 'id', new.id, 'run_at', new.run_at)::text);
    end if;
    return new;
end
$$;
create trigger notify_workers after insert on apalis.jobs for each row execute function apalis.notify_new_jobs();
