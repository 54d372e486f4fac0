-- What the token of the first account is made from (with the installation's secret): one row as long as there is no user, so that every start of
-- every replica gives the same token, and a later first account another one.
create table first_account (
    single boolean primary key default true check (single),
    nonce uuid not null
);

-- Sign-ups, invitations and changes of passwords are counted as log-ins are, some by the address alone.
alter table login_attempts rename to attempts;

-- Who made an organization: how many one user may have made is limited. Of those from before this: its first owner.
alter table organizations add column made_by uuid references users on delete set null;
update organizations o
set made_by = (
    select m.user_id
    from members m join roles r on r.id = m.role_id
    where m.organization_id = o.id and r.is_system and r.name = 'Owner'
    order by m.created_at, m.id
    limit 1
);
create index organizations_made_by on organizations (made_by);

-- The key that a key was made with, if it was no person who made it: it ends with that one, and no later.
alter table api_keys add column made_with uuid references api_keys on delete cascade;
create index api_keys_made_with on api_keys (made_with);
