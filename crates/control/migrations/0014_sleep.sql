-- Environments that nobody uses sleep.

alter table instances
    drop constraint instances_status_check,
    add constraint instances_status_check
        check (status in ('creating', 'running', 'stopped', 'asleep', 'restarting', 'failed', 'removing', 'deleted')),
    -- Kept by the trigger: since when it runs, or sleeps; null while it does not.
    add column awake_since timestamptz,
    add column asleep_since timestamptz,
    -- The memory that its processes had when it fell asleep, in bytes. Null while it does not sleep.
    add column freed_bytes bigint;
update instances set awake_since = now() where status = 'running';

create function note_sleep() returns trigger language plpgsql as $$
begin
    if new.status is distinct from old.status then
        new.awake_since := case when new.status = 'running' then now() end;
        new.asleep_since := case when new.status = 'asleep' then now() end;
    end if;
    if new.status <> 'asleep' then
        new.freed_bytes := null;
    end if;
    return new;
end
$$;
create trigger instances_sleep before update on instances for each row execute function note_sleep();

-- After so many minutes without a request it sleeps; 0: never; null: what the server does with its stage.
alter table environments add column sleep_after_minutes integer check (sleep_after_minutes between 0 and 10080);
