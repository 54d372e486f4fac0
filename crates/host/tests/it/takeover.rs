//! What an update finds in the database and what it makes of it: a module that has another name now, words that a translation corrects, modules that
//! are only rows; and what a project says of its Odoo.

#![expect(clippy::unwrap_used, reason = "a test that cannot be set up fails")]

use ocore_host::{DataSource, Host, OdooSettings, RunModules, ServableDataSet, SlotSpec, testing::progress};
use ocore_model::{instance::Color, plan::Correction};
use sqlx::PgConnection;

use crate::project::{Files, Project, page, run_modules};

const CONTROLLER: &str = "
from odoo import http
from odoo.http import request
from odoo.tools import config

class Board(http.Controller):
    @http.route('/tide', type='http', auth='public')
    def tide(self):
        request.update_context(lang='fr_FR')
        notices = request.env['tide.notice'].sudo().search([], order='id')
        text = request.env['ir.qweb']._render('NAME.page', {})
        return '%s | %s | %s' % (','.join(notices.mapped('name')), text, ','.join(config['server_wide_modules']))
";

/// The module under a name, with its French words.
fn tide(name: &str, gate: &str, low: &str) -> Files {
    let manifest = |depends: &str| {
        format!(
            "{{'name': 'Tide', 'version': '19.0.1.0.0', 'author': 'A', 'license': 'LGPL-3', 'depends': ['base', 'web', 'base_import_module'], \
             'data': ['data.xml', 'security/ir.model.access.csv']{depends}}}"
        )
    };
    let data = "<odoo>
        <record id='base.lang_fr' model='res.lang'><field name='active' eval='True'/></record>
        <record id='gate' model='tide.notice'><field name='name'>The gate is closed</field></record>
        <record id='boat' model='tide.notice'><field name='name'>The boat is late</field></record>
        <template id='page'><h1 title='Low tide'>Low tide</h1><p>High tide</p></template>
    </odoo>";
    let words = format!(
        "msgid \"\"\nmsgstr \"\"\n\"Language: fr\\n\"\n\n#. module: {name}\n#: model:tide.notice,name:{name}.gate\nmsgid \"The gate is closed\"\n\
         msgstr \"{gate}\"\n\n#. module: {name}\n#: model:tide.notice,name:{name}.boat\nmsgid \"The boat is late\"\nmsgstr \"{gate} aussi\"\n\n\
         #. module: {name}\n#: model_terms:ir.ui.view,arch_db:{name}.page\nmsgid \"Low tide\"\nmsgstr \"{low}\"\n\n\
         #. module: {name}\n#: model_terms:ir.ui.view,arch_db:{name}.page\nmsgid \"High tide\"\nmsgstr \"Pleine {low}\"\n"
    );
    let model = "from odoo import fields, models\n\nclass Notice(models.Model):\n    _name = 'tide.notice'\n    _description = 'Notice'\n\n    \
                 name = fields.Char(translate=True)\n";
    let rights =
        "id,name,model_id:id,group_id:id,perm_read,perm_write,perm_create,perm_unlink\nall,all,model_tide_notice,base.group_user,1,1,1,1\n";
    let queue = "{'name': 'Job Queue', 'version': '19.0.1.0.0', 'author': 'A', 'license': 'LGPL-3', 'depends': ['base']}";
    [
        (format!("{name}/__manifest__.py"), manifest("")),
        (format!("{name}/__init__.py"), "from . import models, controllers\n".to_owned()),
        (format!("{name}/models.py"), model.to_owned()),
        (format!("{name}/controllers.py"), CONTROLLER.replace("NAME", name)),
        (format!("{name}/data.xml"), data.to_owned()),
        (format!("{name}/security/ir.model.access.csv"), rights.to_owned()),
        (format!("{name}/i18n/fr.po"), words),
        ("queue_job/__manifest__.py".to_owned(), queue.to_owned()),
        ("queue_job/__init__.py".to_owned(), String::new()),
    ]
    .into()
}

async fn text(connection: &mut PgConnection, query: &'static str) -> Option<String> {
    sqlx::query_scalar(query).fetch_one(connection).await.unwrap()
}

fn correction(field: &str, record: &str, term: Option<&str>, before: &str) -> Correction {
    let model = if field == "name" { "tide.notice" } else { "ir.ui.view" };
    Correction {
        language: "fr".to_owned(),
        model: model.to_owned(),
        field: field.to_owned(),
        record: format!("tide_board.{record}"),
        term: term.map(str::to_owned),
        before: before.to_owned(),
    }
}

#[tokio::test]
async fn an_update_takes_over_what_had_another_name_and_corrects_words_that_nobody_has_changed() {
    let project = Project::new().await;
    let before = project.release(&tide("tide", "La porte est fermer", "maree basse")).await.unwrap();
    let live = project.data_set(DataSource::Fresh).await;
    project.run(live, &before, &["tide", "queue_job"], &[]).await.unwrap();
    let cluster = project.host.run_cluster(project.instance, live).await.unwrap();
    let mut connection = cluster.connect_as_owner().await.unwrap();
    assert_eq!(text(&mut connection, "select name ->> 'fr_FR' from tide_notice order by id limit 1").await.unwrap(), "La porte est fermer");
    for statement in [
        "update tide_notice set name = name || '{\"fr_FR\": \"Écrit à la main\"}' where name ->> 'en_US' = 'The boat is late'",
        "insert into tide_notice (name) values ('{\"en_US\": \"Mine\"}')",
        "insert into ir_module_module (name, state, imported) values ('brought_by_hand', 'installed', true)",
    ] {
        sqlx::query(statement).execute(&mut connection).await.unwrap();
    }
    let modules = project.host.installed_modules(project.instance, live, project.fence()).await.unwrap();
    let found = |name: &str| modules.iter().find(|module| module.name == name).unwrap();
    assert!(found("brought_by_hand").imported && !found("tide").imported && !found("tide").demo);
    let languages = project.host.peek_languages(project.instance, live).await.unwrap().unwrap();
    assert_eq!(languages, ["en_US", "fr_FR"]);

    let mut files = tide("tide_board", "Le sas est fermé", "marée basse");
    let settings = "[odoo]\nserver_wide_modules = [\"web\", \"tide_board\"]\n[modules.renamed]\ntide = \"tide_board\"\n";
    files.insert("ocore.toml".to_owned(), settings.to_owned());
    let release = project.release(&files).await.unwrap();
    let request = RunModules {
        renames: vec![("tide".parse().unwrap(), "tide_board".parse().unwrap())],
        corrections: vec![
            correction("name", "gate", None, "La porte est fermer"),
            correction("name", "boat", None, "La porte est fermer aussi"),
            correction("arch_db", "page", Some("Low tide"), "maree basse"),
            correction("arch_db", "page", Some("High tide"), "Pleine maree basse"),
        ],
        ..run_modules(live, &release, &[], &["tide_board"])
    };
    let slot = SlotSpec {
        color: Color::Green,
        data_set: ServableDataSet::proven(live),
        release: release.id.clone(),
        settings: OdooSettings::default(),
    };
    let running = project.host.update_and_serve(project.instance, request, slot, project.fence(), progress().0).await.unwrap();
    let (status, shown) = page(running.http, "/tide").await;
    assert_eq!(status, 200, "{shown}");
    for part in ["Le sas est fermé,Écrit à la main,Mine", "<h1 title=\"marée basse\">marée basse</h1><p>Pleine marée basse</p>"] {
        assert!(shown.contains(part), "{part}: {shown}");
    }
    assert!(
        shown.contains("base,rpc,web,tide_board,queue_job"),
        "what the project names and the runner's module are loaded with the server: {shown}"
    );
    let states = "select string_agg(name || ' ' || state, ', ' order by name) from ir_module_module where name in ('tide', 'tide_board', 'brought_by_hand')";
    assert_eq!(text(&mut connection, states).await.unwrap(), "brought_by_hand installed, tide_board installed");
    let left = "select string_agg(name, ',') from ir_model_data where module = 'tide' or (module = 'base' and name = 'module_tide')";
    assert_eq!(text(&mut connection, left).await, None);
}
