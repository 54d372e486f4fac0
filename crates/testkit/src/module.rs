//! Small Odoo modules for tests.

use anyhow::Result;

use crate::repository::Repository;

/// A module with one model, one view of it and one public page; `marker` is what the page says.
pub fn write_module(repository: &Repository, name: &str, marker: &str) -> Result<()> {
    write_manifest(repository, name, &["base", "web"], "1.0")?;
    repository.write(&format!("{name}/__init__.py"), "from . import models, controllers\n")?;
    repository.write(
        &format!("{name}/models.py"),
        &format!(
            "from odoo import fields, models\n\n\nclass Thing(models.Model):\n    _name = \"{name}.thing\"\n    _description = \"Thing\"\n\n    name = fields.Char(required=True)\n"
        ),
    )?;
    repository.write(
        &format!("{name}/controllers.py"),
        &format!(
            "from odoo import http\n\n\nclass Page(http.Controller):\n    @http.route(\"/{name}\", auth=\"public\")\n    def page(self):\n        return http.request.env.ref(\"{name}.page\").sudo().arch_db\n"
        ),
    )?;
    repository.write(
        &format!("{name}/security/ir.model.access.csv"),
        &format!(
            "id,name,model_id:id,group_id:id,perm_read,perm_write,perm_create,perm_unlink\naccess_thing,thing,model_{}_thing,base.group_user,1,1,1,1\n",
            name.replace('.', "_")
        ),
    )?;
    write_page(repository, name, marker)
}

/// Rewrites the page's view only.
pub fn write_page(repository: &Repository, name: &str, marker: &str) -> Result<()> {
    repository.write(
        &format!("{name}/views.xml"),
        &format!(
            "<?xml version=\"1.0\"?>\n<odoo>\n  <record id=\"page\" model=\"ir.ui.view\">\n    <field name=\"name\">page</field>\n    <field name=\"type\">qweb</field>\n    <field name=\"arch\" type=\"xml\"><t t-name=\"{name}.page\"><p>{marker}</p></t></field>\n  </record>\n</odoo>\n"
        ),
    )
}

pub fn write_manifest(repository: &Repository, name: &str, depends: &[&str], version: &str) -> Result<()> {
    let depends: Vec<String> = depends.iter().map(|name| format!("\"{name}\"")).collect();
    repository.write(
        &format!("{name}/__manifest__.py"),
        &format!(
            "{{\n    \"name\": \"{name}\",\n    \"version\": \"{version}\",\n    \"license\": \"LGPL-3\",\n    \"depends\": [{}],\n    \"data\": [\"security/ir.model.access.csv\", \"views.xml\"],\n}}\n",
            depends.join(", ")
        ),
    )
}
