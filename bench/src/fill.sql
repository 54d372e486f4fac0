insert into instances (id, organization_id, project_id, server_id, name, slug, status, odoo_version, settings)
select gen_random_uuid(), project.organization_id, project.id, (select id from servers limit 1), 'bench ' || number, 'bench-' || number, 'stopped', '19.0', '{}'
from projects project, generate_series(1, $count) number where project.id = $project;
insert into environments (id, organization_id, project_id, instance_id, name, branch, stage, commit_behavior, status, last_commit_at, last_commit_author)
select gen_random_uuid(), instance.organization_id, instance.project_id, instance.id, instance.name, 'feature/' || instance.slug, case when random() < 0.05 then 'staging' else 'development' end,
    'do_nothing', 'active', now() - random() * interval '30 days', 'Ada Lovelace'
from instances instance where instance.project_id = $project;
insert into deployments (id, organization_id, project_id, environment_id, instance_id, status, trigger_type, branch, commit_sha, commit_author, commit_author_email, commit_message, data_origin, created_at, started_at, completed_at)
select gen_random_uuid(), environment.organization_id, environment.project_id, environment.id, environment.instance_id, 'succeeded', 'push', environment.branch, md5(random()::text) || '00000000',
    'Ada Lovelace', 'ada@example.com', 'A change', '{"kind": "live"}', now() - number * interval '1 day', now() - number * interval '1 day', now() - number * interval '1 day' + interval '9 seconds'
from environments environment, generate_series(1, 3) number where environment.project_id = $project;
insert into deployment_steps (id, deployment_id, name, sort_order, status, started_at, completed_at)
select gen_random_uuid(), deployment.id, step.name, step.number, 'succeeded', deployment.started_at, deployment.completed_at
from deployments deployment, unnest(array['checkout', 'plan', 'build', 'copy', 'update', 'start', 'switch', 'verify']) with ordinality step (name, number) where deployment.project_id = $project;
analyze
