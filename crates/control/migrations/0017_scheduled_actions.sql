-- Scheduled actions that are due wake an environment, where somebody wants that.

alter table environments add column wakes_for_actions boolean not null default false;

alter table instances
    -- Of a sleeper: when its next scheduled action is due; null when it has none.
    add column wake_at timestamptz,
    -- The last one who woke it was the clock.
    add column woken_by_clock boolean not null default false;

create or replace function note_sleep() returns trigger language plpgsql as $$
begin
    if new.status is distinct from old.status then
        new.awake_since := case when new.status = 'running' then now() end;
        new.asleep_since := case when new.status = 'asleep' then now() end;
        if new.status = 'asleep' then
            new.woken_by_clock := false;
        end if;
    end if;
    if new.status <> 'asleep' then
        new.freed_bytes := null;
        new.wake_at := null;
    end if;
    return new;
end
$$;
