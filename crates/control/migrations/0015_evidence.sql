-- What the gates of deployments have found, and what users got meanwhile.

create table evidence (
    deployment_id uuid not null references deployments on delete cascade,
    gate text not null check (gate in ('rehearsal')),
    status text not null check (status in ('passed', 'failed')),
    -- A failure stops the deployment.
    required boolean not null,
    -- One sentence.
    summary text not null,
    -- The lines of the log that show it.
    excerpt text,
    -- What exactly was seen, in the shape of the gate.
    details jsonb,
    started_at timestamptz not null,
    completed_at timestamptz not null,
    primary key (deployment_id, gate)
);

-- What the edge had counted at the moments of a deployment (an ocore_model::edge::RouteTraffic), and the errors that Odoo logged since the moment
-- before it.
create table deployment_marks (
    deployment_id uuid not null references deployments on delete cascade,
    moment text not null check (moment in ('begun', 'changing', 'switched', 'ended', 'undone')),
    traffic jsonb not null,
    logged_errors bigint,
    primary key (deployment_id, moment)
);
