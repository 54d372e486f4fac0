select environment.*, instance.name as instance_name, instance.slug as instance_slug, instance.status as instance_status, instance.odoo_version, instance.server_id
from environments environment join instances instance on instance.id = environment.instance_id
where environment.status <> 'deleted'
