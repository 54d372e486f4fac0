-- What guards a production, what is kept of one that is removed, and people who go.

alter table instances
    -- The variables of `settings.envVars`, as JSON; sealed by `control::secrets`. What still lies in `settings` is sealed at the next start.
    add column env_vars bytea;

alter table projects
    -- Deployments of its production need `manage:production`; a push of others waits.
    add column protects_production boolean not null default false,
    -- It goes for good as soon as nothing of it is left on a server.
    add column removal_requested_at timestamptz;

alter table organizations add column removal_requested_at timestamptz;

-- The last snapshot of an environment that is being removed: it stays until then, whatever becomes of the environment.
alter table snapshots add column kept_until timestamptz;

-- What belongs to a project goes with its row. (Until now, only an organization's end took projects with it.)
alter table instances drop constraint instances_project_id_fkey,
    add constraint instances_project_id_fkey foreign key (project_id) references projects on delete cascade;
alter table environments drop constraint environments_project_id_fkey,
    add constraint environments_project_id_fkey foreign key (project_id) references projects on delete cascade;
alter table deployments drop constraint deployments_project_id_fkey,
    add constraint deployments_project_id_fkey foreign key (project_id) references projects on delete cascade;
alter table snapshots drop constraint snapshots_project_id_fkey,
    add constraint snapshots_project_id_fkey foreign key (project_id) references projects on delete cascade;
alter table imports drop constraint imports_project_id_fkey,
    add constraint imports_project_id_fkey foreign key (project_id) references projects on delete cascade;
alter table exports drop constraint exports_project_id_fkey,
    add constraint exports_project_id_fkey foreign key (project_id) references projects on delete cascade;
alter table operations drop constraint operations_instance_id_fkey,
    add constraint operations_instance_id_fkey foreign key (instance_id) references instances on delete cascade;

-- An account may be deleted. The audit log keeps who it was, in words; what else names the user forgets them.
alter table audit_entries
    add column user_name text not null default '',
    add column user_email text not null default '',
    drop constraint audit_entries_user_id_fkey;
update audit_entries set user_name = users.name, user_email = users.email from users where users.id = audit_entries.user_id;
alter table deployments drop constraint deployments_triggered_by_fkey,
    add constraint deployments_triggered_by_fkey foreign key (triggered_by) references users on delete set null;
alter table snapshots drop constraint snapshots_created_by_fkey,
    add constraint snapshots_created_by_fkey foreign key (created_by) references users on delete set null;
alter table imports drop constraint imports_created_by_fkey,
    add constraint imports_created_by_fkey foreign key (created_by) references users on delete set null;
alter table exports drop constraint exports_created_by_fkey,
    add constraint exports_created_by_fkey foreign key (created_by) references users on delete set null;

-- The parameters of operations held the variables in the clear. What has ended needs them no more.
update operations set dag = null where status in ('succeeded', 'failed') and dag is not null;
