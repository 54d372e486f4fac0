//! From a raw copy to a harmless one, with a real Odoo that has everything in it that must not live in a copy.

#![expect(clippy::unwrap_used, reason = "a test that cannot be set up fails")]

use std::{collections::BTreeMap, path::PathBuf};

use ocore_host::{
    DataSource, Egress, FindingVerdict, Host, HostError, LocalHostConfig, NeutralizationReport, Neutralize, Neutralized, OdooSettings,
    RawDataSet, Release, ReleaseId, Result, RunModules, Standing, testing::progress,
};
use ocore_model::ids::DataSetId;

use crate::{
    clusters::as_odoo,
    project::{Files, Project, changed, names},
};

const MODULES: &[&str] = &["mail", "payment_stripe", "payment_demo", "auth_oauth", "auth_totp", "base_automation", "acme"];
const POOL_BYTES: u64 = 4 * 1024 * 1024 * 1024;
/// A value that must be in no report.
const TOKEN: &str = "sk_live_4f9QzXbT81LmPq27RsVw";

/// A module of a third party with an account at a service, and a probe of the network.
fn acme() -> Files {
    [
        (
            "acme/__manifest__.py",
            "{'name': 'Acme', 'version': '19.0.1.0.0', 'author': 'A', 'license': 'LGPL-3', 'depends': ['base']}\n",
        ),
        ("acme/__init__.py", "from . import models\n"),
        ("acme/models/__init__.py", "from . import account\n"),
        (
            "acme/models/account.py",
            "import os\nimport socket\n\nfrom odoo import fields, models\n\n\nclass Account(models.Model):\n    _name = 'acme.account'\n    \
             _description = 'Account'\n\n    name = fields.Char()\n    api_token = fields.Char()\n    api_secret = fields.Char()\n    note = fields.Char()\n\n    \
             def init(self):\n        peer = os.environ.get('ACME_PEER')\n        if peer:\n            host, port = peer.split(':')\n            try:\n                \
             socket.create_connection((host, int(port)), timeout=5).close()\n            except OSError:\n                return\n            \
             raise Exception('the network was reached')\n",
        ),
        ("acme/security/ir.model.access.csv", "id,name,model_id:id,group_id:id,perm_read,perm_write,perm_create,perm_unlink\n"),
        (
            "acme/data/neutralize.sql",
            "UPDATE acme_account SET api_secret = NULL;\nUPDATE ir_config_parameter SET value = 'sandbox' WHERE key = 'acme.sandbox_token';\n",
        ),
    ]
    .into_iter()
    .map(|(path, text)| (path.to_owned(), text.to_owned()))
    .collect()
}

fn with(mut files: Files, path: &str, text: &str) -> Files {
    files.insert(path.to_owned(), text.to_owned());
    files
}

/// As somebody's production would be.
fn seed() -> String {
    format!(
        "insert into ir_mail_server (name, smtp_host, smtp_port, smtp_user, smtp_pass, smtp_encryption, smtp_authentication, active, from_filter)
             values ('Mail', 'smtp.example.com', 465, 'robot', 'secret-of-the-mail', 'ssl', 'login', true, 'example.com');
         insert into fetchmail_server (name, server, port, server_type, \"user\", password, active, state)
             values ('Inbox', 'imap.example.com', 993, 'imap', 'robot', 'secret-of-the-inbox', true, 'done');
         update payment_provider set state = 'enabled', stripe_secret_key = '{TOKEN}', stripe_publishable_key = 'pk_live_x', stripe_webhook_secret = 'whsec_x' where code = 'stripe';
         update payment_provider set state = 'test' where code = 'demo';
         update auth_oauth_provider set enabled = true, client_id = 'our-client';
         update res_users set oauth_access_token = 'a-token' where id = 2;
         insert into res_users_apikeys (name, user_id, scope, index, key) values ('robot', 2, 'rpc', '12345678', 'hash');
         insert into ir_act_server (name, type, usage, state, model_id, webhook_url, binding_type)
             select '{{\"en_US\": \"Hook\"}}', 'ir.actions.server', 'ir_actions_server', 'webhook', id, 'https://hooks.example.com/T0/B0', 'action' from ir_model where model = 'res.partner';
         insert into base_automation (name, model_id, trigger, webhook_uuid, active)
             select '{{\"en_US\": \"In\"}}', id, 'on_webhook', '0b5c1c0e-1111-4222-8333-444455556666', true from ir_model where model = 'res.partner';
         insert into change_password_own (new_password) values ('typed-into-a-form');
         insert into ir_cron_trigger (cron_id, call_at) select min(id), now() from ir_cron;
         insert into ir_config_parameter (key, value) values ('acme.token', '{TOKEN}'), ('acme.size', '12'), ('google_gmail_client_secret', 'g-secret'), ('acme.where', 'https://api.acme.example/v1'),
             ('acme.sandbox_token', '{TOKEN}'), ('acme.errors', 'https://4f9qzxbt@errors.acme.example/12'), ('acme.options', '{{\"user\": \"robot\", \"api_key\": \"zx81\"}}'),
             ('acme.random', 'k7Qm2ZtX9vLw4BnR8sYc1HdF'), ('acme.public_key', 'everybody knows it'), ('acme.token_lifetime', '3600'), ('acme.use_login', 'True');
         insert into acme_account (name, api_token, api_secret, note) values ('Ours', '{TOKEN}', 'other-secret', '{TOKEN}');
         insert into mail_message (body, message_type, email_from, subject, model) values ('<p>Dear Ms Winter</p>', 'email', 'winter@example.com', 'Private', 'res.partner');
         insert into mail_mail (mail_message_id, state, email_to, body_html) select max(id), 'outgoing', 'winter@example.com', '<p>Dear</p>' from mail_message;
         insert into res_partner (name, complete_name, email, phone, active, type) values ('Wanda Winter', 'Wanda Winter', 'winter@example.com', '+49 30 1234567', true, 'contact');"
    )
}

fn neutralize(data_set: RawDataSet, release: ReleaseId) -> Neutralize {
    Neutralize {
        data_set,
        release,
        base_url: "https://copy.example.org".to_owned(),
        mail: ([127, 0, 0, 1], 2525).into(),
        admin_password: "a-new-password".to_owned(),
        env_vars: BTreeMap::from([("ACME_HOOK".to_owned(), "told".to_owned())]),
    }
}

/// A project whose production has been installed and filled, at rest.
struct World {
    project: Project,
    release: Release,
    production: DataSetId,
}

impl World {
    async fn new() -> Self {
        // With reflinks: each case has a copy of its own.
        let project = Project::with(|config| {
            config.pool.image = LocalHostConfig::new(&config.home).pool.image;
            config.pool.image_size = POOL_BYTES;
            config.pool.image_size_limit = POOL_BYTES;
        })
        .await;
        // So that only the quarantine keeps its programs from the network here.
        project.host.set_egress(project.instance, Egress::Open, 1).await.unwrap();
        let release = project.release(&acme()).await.unwrap();
        let production = project.data_set(DataSource::Fresh).await;
        project.run(production, &release, MODULES, &[]).await.unwrap();
        let world = Self { project, release, production };
        world.sql(production, &seed()).await;
        let sessions = world.data_dir(production).join("sessions/ab");
        std::fs::create_dir_all(&sessions).unwrap();
        std::fs::write(sessions.join("session"), "{}").unwrap();
        world
    }

    fn data_dir(&self, data_set: DataSetId) -> PathBuf {
        self.project.host.layout.data_dir(self.project.instance, data_set)
    }

    async fn sql(&self, data_set: DataSetId, sql: &str) -> String {
        let (host, instance) = (&self.project.host, self.project.instance);
        host.start_cluster(instance, data_set, self.project.fence()).await.unwrap();
        as_odoo(host, instance, data_set, sql)
            .await
            .unwrap()
            .expect_success("the SQL of the test failed")
            .unwrap()
            .stdout_text()
            .trim()
            .to_owned()
    }

    /// What a copy for another instance is: the same data, raw.
    async fn raw(&self) -> RawDataSet {
        let copy = self.project.data_set(DataSource::CopyOf(self.production)).await;
        let manifest = self.project.host.layout.data_set(self.project.instance, copy).join("manifest.json");
        let mut value: serde_json::Value = serde_json::from_str(&std::fs::read_to_string(&manifest).unwrap()).unwrap();
        value["standing"] = "raw".into();
        std::fs::write(&manifest, value.to_string()).unwrap();
        RawDataSet::quarantined(copy)
    }

    async fn neutralize(&self, data_set: RawDataSet, release: &Release) -> Result<Neutralized> {
        let request = neutralize(data_set, release.id.clone());
        self.project.host.neutralize(self.project.instance, request, self.project.fence(), progress().0).await
    }

    /// What a cluster answers that somebody else has started; `None` when it does not run.
    async fn sql_of_running(&self, data_set: DataSetId, sql: &str) -> Option<String> {
        let finished = as_odoo(&self.project.host, self.project.instance, data_set, sql).await.ok()?;
        finished.status.success().then(|| finished.stdout_text().trim().to_owned())
    }

    /// Neutralizes a new copy with a release of these files, which must fail; the copy must still be raw.
    async fn refuse(&self, files: &Files) -> HostError {
        let copy = self.raw().await;
        let release = self.project.release(files).await.unwrap();
        let error = self.neutralize(copy, &release).await.unwrap_err();
        assert_eq!(self.standing(copy.id()), Standing::Raw);
        self.remove(copy.id()).await;
        error
    }

    fn standing(&self, data_set: DataSetId) -> Standing {
        self.project.host.standing_of(self.project.instance, data_set).unwrap()
    }

    async fn remove(&self, data_set: DataSetId) {
        self.project.host.remove_data_set(self.project.instance, data_set, self.project.fence()).await.unwrap();
    }
}

fn verdict(report: &NeutralizationReport, place: &str) -> Option<FindingVerdict> {
    report.findings.iter().find(|finding| finding.place == place).map(|finding| finding.verdict)
}

fn reason(report: &NeutralizationReport, place: &str) -> String {
    report.findings.iter().find(|finding| finding.place == place).map(|finding| finding.reason.clone()).unwrap_or_default()
}

/// One installation for all: it takes most of the time.
#[tokio::test]
async fn a_raw_copy_becomes_harmless_or_stays_in_quarantine() {
    let world = World::new().await;
    let before = world.sql(world.production, "select md5(string_agg(t::text, '|' order by id)) from ir_mail_server t").await;
    nothing_of_production_lives_in_the_copy(&world).await;
    raw_data_are_updated_without_a_network(&world).await;
    what_odoo_does_not_know_is_emptied_silenced_or_named(&world).await;
    a_column_that_no_value_fits_keeps_the_copy_raw_until_the_project_sets_it(&world).await;
    mail_servers_whose_rows_do_not_count_are_proven_by_asking_odoo(&world).await;
    the_projects_own_scripts_run_and_are_named(&world).await;
    what_fails_leaves_the_copy_raw(&world).await;
    cancelled_or_killed_in_the_middle_it_stays_raw_and_can_be_neutralized_again(&world).await;
    personal_data_are_masked_when_the_project_wants_it(&world).await;
    assert_eq!(world.standing(world.production), Standing::Own);
    assert_eq!(before, world.sql(world.production, "select md5(string_agg(t::text, '|' order by id)) from ir_mail_server t").await);
    assert_eq!(world.sql(world.production, "select count(*) from res_users_apikeys").await, "1");
    assert!(world.data_dir(world.production).join("sessions/ab/session").exists());
    let error = world.neutralize(RawDataSet::quarantined(world.production), &world.release).await.unwrap_err();
    assert!(error.to_string().contains("own data"), "{error}");
}

async fn nothing_of_production_lives_in_the_copy(world: &World) {
    let copy = world.raw().await;
    let data_set = copy.id();
    let created = world.sql(data_set, "select value from ir_config_parameter where key = 'database.create_date'").await;
    let identity = "select string_agg(value, ' ' order by key) from ir_config_parameter where key in ('database.secret', 'database.uuid')";
    let password = world.sql(data_set, "select password from res_users where id = 2").await;
    let old_identity = world.sql(data_set, identity).await;
    let neutralized = world.neutralize(copy, &world.release).await.unwrap();
    assert_eq!(neutralized.data_set.id(), data_set);
    assert_eq!(world.standing(data_set), Standing::Neutralized);
    for (query, expected) in [
        (
            "select name || ' ' || smtp_host || ' ' || smtp_port || ' ' || smtp_encryption || coalesce(smtp_user, '') from ir_mail_server where active",
            "oCore mail catcher 127.0.0.1 2525 none",
        ),
        ("select count(*) from ir_mail_server where smtp_pass is not null or smtp_host = 'smtp.example.com'", "0"),
        ("select count(*) from ir_mail_server where name ~ 'neutralization'", "0"),
        ("select count(*) from fetchmail_server where active or password is not null", "0"),
        ("select string_agg(code || ':' || state, ' ' order by code) from payment_provider where state <> 'disabled'", "demo:test"),
        ("select count(*) from payment_provider where coalesce(stripe_secret_key, stripe_webhook_secret) is not null", "0"),
        ("select count(*) from auth_oauth_provider where enabled or client_id is not null", "0"),
        ("select count(*) from res_users where oauth_access_token is not null", "0"),
        ("select count(*) from res_users_apikeys", "0"),
        ("select count(*) from ir_act_server where webhook_url ~ 'example'", "0"),
        ("select count(*) from base_automation where webhook_uuid = '0b5c1c0e-1111-4222-8333-444455556666'", "0"),
        ("select count(*) from ir_cron where active", "1"),
        ("select count(*) from ir_cron_trigger", "0"),
        ("select count(*) from change_password_own", "0"),
        ("select state from mail_mail", "cancel"),
        ("select value from ir_config_parameter where key = 'web.base.url'", "https://copy.example.org"),
        ("select value from ir_config_parameter where key = 'web.base.url.freeze'", "True"),
        ("select count(*) from ir_config_parameter where key = 'google_gmail_client_secret'", "0"),
        ("select coalesce(api_secret, 'none') from acme_account", "none"),
        (
            "select string_agg(key, ' ' order by key) from ir_config_parameter where key ~ '^acme' and value = ''",
            "acme.errors acme.options acme.public_key acme.random acme.token",
        ),
        (
            "select string_agg(value, ' ' order by key) from ir_config_parameter where key ~ '^acme' and value <> ''",
            "sandbox 12 3600 True https://api.acme.example/v1",
        ),
    ] {
        assert_eq!(world.sql(data_set, query).await, expected, "{query}");
    }
    assert_eq!(world.sql(data_set, "select value from ir_config_parameter where key = 'database.create_date'").await, created);
    let new_identity = world.sql(data_set, identity).await;
    assert!(new_identity != old_identity && new_identity.len() == old_identity.len());
    assert_ne!(world.sql(data_set, "select password from res_users where id = 2").await, password);
    assert!(!world.data_dir(data_set).join("sessions").exists());

    let report = &neutralized.report;
    assert!(report.facts.len() > 15 && report.facts.iter().all(|fact| fact.holds), "{:#?}", report.facts);
    for (place, expected) in [
        ("ir_config_parameter:acme.token", FindingVerdict::Handled),
        ("ir_config_parameter:acme.errors", FindingVerdict::Handled),
        ("ir_config_parameter:acme.options", FindingVerdict::Handled),
        ("ir_config_parameter:acme.random", FindingVerdict::Handled),
        ("ir_config_parameter:acme.sandbox_token", FindingVerdict::Handled),
        ("ir_config_parameter:acme.where", FindingVerdict::Unknown),
        ("acme_account.api_token", FindingVerdict::Unknown),
        ("acme_account.note", FindingVerdict::Unknown),
        ("acme_account.api_secret", FindingVerdict::Handled),
        ("ir_config_parameter:database.secret", FindingVerdict::Handled),
        ("ir_config_parameter:google_gmail_client_secret", FindingVerdict::Handled),
        ("payment_provider.stripe_secret_key", FindingVerdict::Handled),
        ("change_password_own.new_password", FindingVerdict::Handled),
        ("ir_mail_server.smtp_pass", FindingVerdict::Handled),
        ("auth_oauth_provider.client_id", FindingVerdict::Handled),
        ("res_users.password", FindingVerdict::Harmless),
    ] {
        assert_eq!(verdict(report, place), Some(expected), "{place}");
    }
    for harmless in ["acme.size", "acme.token_lifetime", "acme.use_login"] {
        assert_eq!(verdict(report, &format!("ir_config_parameter:{harmless}")), None, "{harmless}");
    }
    assert!(reason(report, "ir_config_parameter:acme.token").starts_with("masked: its name is one of a credential"));
    assert!(reason(report, "ir_config_parameter:acme.random").starts_with("masked: its value looked like a credential"));
    assert_eq!(reason(report, "ir_config_parameter:acme.sandbox_token"), "set by neutralize.sql of the module acme");
    let acme = report.modules.iter().find(|module| module.module == "acme").unwrap();
    assert!(acme.has_script && acme.unknown == 2, "{acme:?}");
    assert!(!report.modules.iter().find(|module| module.module == "auth_totp").unwrap().has_script);
    let text = serde_json::to_string(report).unwrap();
    for secret in [TOKEN, "secret-of-the-mail", "our-client", "api.acme.example", "4f9qzxbt", "zx81", "k7Qm2ZtX9vLw4BnR8sYc1HdF"] {
        assert!(!text.contains(secret), "a value is in the report");
    }
    let strange: Vec<_> = report.unknown().filter(|finding| !finding.place.contains("acme")).collect();
    assert!(strange.is_empty(), "Odoo's own places that nobody knows: {strange:#?}");

    // Once more on the same copy: the same.
    let again = world.neutralize(copy, &world.release).await.unwrap();
    assert_eq!(world.sql(data_set, "select count(*) from ir_mail_server where active").await, "1");
    assert_eq!(verdict(&again.report, "ir_config_parameter:acme.token"), None, "it is empty by now");
    assert_eq!(world.sql(data_set, "select value from ir_config_parameter where key = 'acme.sandbox_token'").await, "sandbox");
    world.remove(data_set).await;
}

/// What other modules, people and tools put into a database: constraints on credentials, logs of changes, copies of tables.
const OTHERS: &str = r"
    create table account_edi_proxy_client_user (id serial primary key, active boolean, id_client varchar not null, company_id integer, refresh_token varchar,
        private_key_id bytea not null, constraint account_edi_proxy_client_user_unique_id_client unique (id_client));
    insert into account_edi_proxy_client_user (active, id_client, company_id, refresh_token, private_key_id) values
        (true, 'production-client-1', 1, 'refresh-1', 'a'), (true, 'production-client-2', 2, 'refresh-2', 'b');
    create unique index on account_edi_proxy_client_user (private_key_id);
    create table certificate_narrow (id serial primary key, pem_key varchar(5) not null unique, content text not null unique check (content ~ '^[0-9a-f]{64}$'),
        pkcs12_password jsonb not null unique);
    insert into certificate_narrow (pem_key, content, pkcs12_password) select 'k' || n, encode(sha256(n::text::bytea), 'hex'), to_jsonb(n) from generate_series(1, 2) n;
    create table auditlog_log_line (id serial primary key, field_name varchar, old_value text, new_value text);
    insert into auditlog_log_line (field_name, old_value, new_value) values ('password', '', 'Winter-2026!');
    create schema audit;
    create table audit.logged_actions (event_id bigserial primary key, table_name text, action text, old_row jsonb);
    create function audit.keep() returns trigger language plpgsql as $$ begin
        insert into audit.logged_actions (table_name, action, old_row) values (tg_table_name, tg_op, to_jsonb(old)); return null; end $$;
    create trigger keep after update or delete on ir_mail_server for each row execute function audit.keep();
    create trigger always after update on ir_config_parameter for each row execute function audit.keep();
    alter table ir_config_parameter enable always trigger always;
    create rule noted as on update to payment_provider do also insert into audit.logged_actions (table_name, action) values ('payment_provider', old.stripe_secret_key);
    create schema before_migration; create table before_migration.ir_mail_server as select * from ir_mail_server;
    create materialized view parameters as select key, value from ir_config_parameter;
    create materialized view of_parameters as select value as v from parameters;
    create domain password_of_it as varchar(80);
    create table acme_keys (id serial primary key, api_keys text[], plain password_of_it);
    insert into acme_keys (api_keys, plain) values ('{a,b}', 'sk_live_4f9QzXbT81LmPq27RsVw');
    select lo_from_bytea(0, 'a key');
    insert into mail_tracking_value (field_id, mail_message_id, old_value_char, new_value_char)
        select f.id, (select min(id) from mail_message), 'relay-1', 'relay-2' from ir_model_fields f where f.model = 'ir.mail_server' and f.name in ('smtp_pass', 'name');
    insert into ir_config_parameter (key, value) values ('auth_totp.policy', 'all_required');
    update res_users set login = 'office@shop.example', active = false, totp_secret = 'JBSWY3DPEHPK3PXP' where id = 2;";

async fn what_odoo_does_not_know_is_emptied_silenced_or_named(world: &World) {
    let copy = world.raw().await;
    let data_set = copy.id();
    world.sql(data_set, OTHERS).await;
    let report = world.neutralize(copy, &world.release).await.unwrap().report;
    for (query, expected) in [
        (
            "select count(*), count(distinct id_client), bool_or(id_client like 'production-client-%'), bool_or(coalesce(refresh_token, '') <> ''), count(distinct private_key_id) from account_edi_proxy_client_user",
            "2|2|f|f|2",
        ),
        (
            "select string_agg(pem_key, ' ' order by id), bool_or(content in (select encode(sha256(n::text::bytea), 'hex') from generate_series(1, 2) n)) from certificate_narrow",
            "n1 n2|f",
        ),
        ("select count(*) from auditlog_log_line where old_value <> '' or new_value <> ''", "0"),
        ("select count(*) from audit.logged_actions", "0"),
        // They are as they were.
        ("select string_agg(concat(tgname, tgenabled), ' ' order by tgname) from pg_trigger where not tgisinternal", "alwaysA keepO"),
        ("select ev_enabled from pg_rewrite where rulename = 'noted'", "O"),
        ("select count(*) from of_parameters where v like 'sk_live%'", "0"),
        (
            "select string_agg(coalesce(old_value_char, '-'), ' ' order by old_value_char nulls first) from mail_tracking_value where old_value_char = 'relay-1' or old_value_char is null and new_value_char is null",
            "- relay-1",
        ),
        ("select login, active, totp_secret is null from res_users where id = 2", "office@shop.example|t|t"),
    ] {
        assert_eq!(world.sql(data_set, query).await, expected, "{query}");
    }
    for place in
        ["schema:before_migration", "before_migration.ir_mail_server.smtp_pass", "large_objects", "acme_keys.api_keys", "acme_keys.plain"]
    {
        assert_eq!(verdict(&report, place), Some(FindingVerdict::Unknown), "{place}");
    }
    for place in ["account_edi_proxy_client_user.refresh_token", "auditlog_log_line.new_value", "certificate_narrow.pem_key"] {
        assert_eq!(verdict(&report, place), Some(FindingVerdict::Handled), "{place}: {}", reason(&report, place));
    }
    let said = &report.facts.iter().find(|fact| fact.name == "credentials").unwrap().statement;
    assert!(said.starts_with("Every credential that oCore knows is empty; ") && said.contains("acme_keys.api_keys"), "{said}");
    let administrator = world.project.host.administrator(world.project.instance, data_set).await.unwrap().unwrap();
    assert_eq!(
        (administrator.login.as_str(), administrator.is_active, administrator.has_second_factor),
        ("office@shop.example", true, false)
    );
    world.remove(data_set).await;
}

async fn a_column_that_no_value_fits_keeps_the_copy_raw_until_the_project_sets_it(world: &World) {
    let copy = world.raw().await;
    let strict = "create table certificate_strict (id serial primary key, pem_key text not null constraint is_pem check (pem_key like 'BEGIN %')); \
                  insert into certificate_strict (pem_key) values ('BEGIN a key')";
    world.sql(copy.id(), strict).await;
    let error = world.neutralize(copy, &world.release).await.unwrap_err();
    assert!(matches!(error, HostError::Rejected { .. }), "{error:?}");
    let said = error.to_string();
    assert!(said.contains("certificate_strict.pem_key") && said.contains("is_pem") && said.contains("neutralize.sql"), "{said}");
    assert_eq!(world.standing(copy.id()), Standing::Raw);
    let files = with(acme(), "neutralize.sql", "update certificate_strict set pem_key = 'BEGIN nothing';\n");
    let release = world.project.release(&files).await.unwrap();
    let report = world.neutralize(copy, &release).await.unwrap().report;
    assert_eq!(verdict(&report, "certificate_strict.pem_key"), Some(FindingVerdict::Handled));
    world.remove(copy.id()).await;

    // What fails elsewhere is the data's fault too, and is told with its place.
    let copy = world.raw().await;
    world.sql(copy.id(), "alter table ir_config_parameter add constraint nothing_empty check (key !~ '^acme' or value <> '')").await;
    let error = world.neutralize(copy, &world.release).await.unwrap_err();
    let said = error.to_string();
    assert!(
        matches!(error, HostError::Rejected { .. }) && said.contains("nothing_empty") && said.contains("ir_config_parameter"),
        "{said}"
    );
    world.remove(copy.id()).await;
}

/// A module that takes the settings of mail servers from variables of the environment, as `mail_environment` does.
const MAIL_BY_VARIABLE: &str = "import os\n\nfrom odoo import fields, models\n\n\nclass MailServer(models.Model):\n    _inherit = 'ir.mail_server'\n\n    \
    smtp_host = fields.Char(compute='_compute_smtp', store=False)\n    smtp_port = fields.Integer(compute='_compute_smtp', store=False)\n\n    \
    def _compute_smtp(self):\n        self.smtp_host, self.smtp_port = 'smtp.shop.example', 587\n";
/// One that has a way of its own.
const MAIL_BY_CODE: &str = "from odoo import models\n\n\nclass MailServer(models.Model):\n    _inherit = 'ir.mail_server'\n\n    \
    def _connect__(self, *args, **options):\n        return super()._connect__(host='smtp.shop.example', port=587)\n";

async fn mail_servers_whose_rows_do_not_count_are_proven_by_asking_odoo(world: &World) {
    let extends = "insert into ir_model_data (model, module, name, res_id) select 'ir.model', 'acme', 'model_ir_mail_server', id from ir_model where model = 'ir.mail_server'";
    for (code, is_harmless) in [(MAIL_BY_VARIABLE, true), (MAIL_BY_CODE, false)] {
        let files =
            with(with(acme(), "acme/models/mail.py", code), "acme/models/__init__.py", "from . import account\nfrom . import mail\n");
        let release = world.project.release(&files).await.unwrap();
        let copy = world.raw().await;
        world.sql(copy.id(), extends).await;
        let outcome = world.neutralize(copy, &release).await;
        if is_harmless {
            let facts = outcome.unwrap().report.facts;
            let fact = |name: &str| facts.iter().find(|fact| fact.name == name).map(|fact| fact.holds);
            assert_eq!((fact("mail_servers_asked"), fact("mail_servers_off"), fact("mail_servers")), (Some(true), Some(true), None));
        } else {
            let said = outcome.unwrap_err().to_string();
            assert!(said.contains("acme changes its mail servers") && said.contains("smtp.shop.example:587"), "{said}");
        }
        world.remove(copy.id()).await;
    }
}

async fn raw_data_are_updated_without_a_network(world: &World) {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let settings =
        OdooSettings { env_vars: [("ACME_PEER".to_owned(), listener.local_addr().unwrap().to_string())].into(), ..OdooSettings::default() };
    let update = |data_set| RunModules {
        data_set,
        release: world.release.id.clone(),
        install: Vec::new(),
        update: names(&["acme"]),
        renames: Vec::new(),
        corrections: Vec::new(),
        with_demo: false,
        admin_password: None,
        settings: settings.clone(),
    };
    let raw = world.raw().await;
    world.project.run_request(update(raw.id())).await.unwrap();
    world.remove(raw.id()).await;
    let own = world.project.data_set(DataSource::CopyOf(world.production)).await;
    let error = world.project.run_request(update(own)).await.unwrap_err();
    assert!(error.to_string().contains("the network was reached"), "the probe works: {error}");
    world.remove(own).await;
}

async fn the_projects_own_scripts_run_and_are_named(world: &World) {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let hook = format!(
        "import os\nimport socket\n\nimport psycopg2\n\ntry:\n    socket.create_connection(('127.0.0.1', {}), timeout=5)\n    reached = 'reached'\nexcept OSError:\n    \
         reached = 'closed'\nconnection = psycopg2.connect('')\nwith connection, connection.cursor() as cursor:\n    \
         cursor.execute(\"update acme_account set api_token = %s, note = null\", (reached + ' ' + os.environ['ACME_HOOK'],))\n",
        listener.local_addr().unwrap().port()
    );
    let files = with(acme(), "neutralize.py", &hook);
    let files = with(files, "neutralize.sql", "update ir_config_parameter set value = 'nothing' where key = 'acme.token';\n");
    let files = with(files, "ocore.toml", "[neutralization]\nkeep_parameters = [\"acme.public_key\", \"acme.nowhere_key\"]\n");
    let release = world.project.release(&files).await.unwrap();
    let copy = world.raw().await;
    let report = world.neutralize(copy, &release).await.unwrap().report;
    assert_eq!(report.scripts, ["neutralize.sql", "neutralize.py"]);
    let parameters = "select string_agg(value, ', ' order by key) from ir_config_parameter where key in ('acme.public_key', 'acme.token')";
    assert_eq!(world.sql(copy.id(), parameters).await, "everybody knows it, nothing");
    assert_eq!(verdict(&report, "ir_config_parameter:acme.public_key"), Some(FindingVerdict::Harmless));
    assert_eq!(world.sql(copy.id(), "select api_token from acme_account").await, "closed told");
    let token = report.findings.iter().find(|finding| finding.place == "ir_config_parameter:acme.token").unwrap();
    assert_eq!((token.verdict, token.reason.as_str()), (FindingVerdict::Handled, "set by neutralize.sql of the project"));
    assert_eq!(verdict(&report, "acme_account.api_token"), Some(FindingVerdict::Handled));
    world.remove(copy.id()).await;
}

async fn what_fails_leaves_the_copy_raw(world: &World) {
    // A module that is installed and not in the release.
    let error = world.refuse(&crate::project::parcels()).await;
    assert!(error.to_string().contains("not in this release") && error.to_string().contains(": acme;"), "{error}");

    let error = world.refuse(&changed(acme(), "acme/data/neutralize.sql", "acme_account", "acme_accounts")).await;
    assert!(error.to_string().starts_with("neutralize.sql of the module acme failed, line 1"), "{error}");

    let error = world.refuse(&with(acme(), "neutralize.sql", "select 1;\nselect broken;\n")).await;
    assert!(error.to_string().starts_with("neutralize.sql of the project failed, line 2"), "{error}");
    assert!(error.excerpt().contains("   2  select broken;"), "{}", error.excerpt());

    let error = world.refuse(&with(acme(), "neutralize.sql", "update ir_mail_server set active = true;\n")).await;
    assert!(error.to_string().contains("stays in quarantine") && error.to_string().contains("mail catcher"), "{error}");
    let error =
        world.refuse(&with(acme(), "neutralize.sql", "update payment_provider set state = 'enabled', stripe_secret_key = 'x';\n")).await;
    assert!(
        error.excerpt().contains("payment_providers: ") && error.excerpt().contains("payment_provider.stripe_secret_key"),
        "{}",
        error.excerpt()
    );

    // A token that comes back without anybody naming it, and a known credential that the project would keep.
    let sneaky = "update ir_config_parameter set value = 'zx81' where key like 'acme.tok_n';\n";
    let error = world.refuse(&with(acme(), "neutralize.sql", sneaky)).await;
    assert!(error.to_string().contains("Parameters look like credentials: acme.token"), "{error}");
    let keep = "[neutralization]\nkeep_parameters = [\"google_gmail_client_secret\"]\n";
    let error = world.refuse(&with(acme(), "ocore.toml", keep)).await;
    assert!(error.to_string().contains("google_gmail_client_secret, which no copy keeps"), "{error}");

    // What would leave the database needs rights that Odoo's role does not have; each is tried, and none may succeed.
    let error = world.refuse(&with(acme(), "neutralize.sql", "copy (select 1) to program 'touch /tmp/escaped'")).await;
    assert!(error.to_string().contains("must be superuser"), "{error}");
    let error = world.refuse(&with(acme(), "neutralize.sql", "copy res_users to stdout")).await;
    assert!(error.to_string().contains("what no script may"), "{error}");
    let attempts = [
        "perform pg_read_file('/etc/passwd')",
        "alter role odoo superuser",
        "set role postgres",
        "set session authorization postgres",
        "create extension dblink",
        "create role other login",
        "execute 'copy acme_account from program ''id'' '",
        "execute 'copy acme_account to ''/tmp/escaped'' '",
    ];
    let tries: Vec<String> = attempts
        .iter()
        .map(|attempt| {
            format!(
                "begin {attempt}; raise exception 'escaped'; exception \
                 when insufficient_privilege or undefined_file or feature_not_supported then null; end;"
            )
        })
        .collect();
    let release =
        world.project.release(&with(acme(), "neutralize.sql", &format!("do $$ begin\n{}\nend $$", tries.join("\n")))).await.unwrap();
    let copy = world.raw().await;
    world.neutralize(copy, &release).await.unwrap();
    world.remove(copy.id()).await;

    let error = world.refuse(&with(acme(), "neutralize.py", "import sys\nsys.exit('the hook has changed its mind')\n")).await;
    assert!(error.to_string().contains("neutralize.py of the project failed") && error.to_string().contains("changed its mind"), "{error}");
    let error = world
        .refuse(&with(
            acme(),
            "ocore.toml",
            "[masking]\nenabled = true\nrules = [{ table = \"acme_account\", column = \"nothing\", how = \"null\" }]\n",
        ))
        .await;
    assert!(error.to_string().contains("acme_account.nothing"), "{error}");
}

/// Holds what it has changed until somebody ends it.
const ENDLESS: &str = "update res_partner set name = name || '!';\nselect pg_sleep(600);\n";

async fn is_in_the_middle(world: &World, copy: RawDataSet) {
    let query = "select count(*) from pg_stat_activity where query ~ 'pg_sleep' and pid <> pg_backend_pid()";
    let begun = tokio::time::timeout(std::time::Duration::from_mins(2), async {
        while world.sql_of_running(copy.id(), query).await.as_deref() != Some("1") {
            tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        }
    });
    begun.await.expect("the project's script runs");
}

async fn cancelled_or_killed_in_the_middle_it_stays_raw_and_can_be_neutralized_again(world: &World) {
    let endless = world.project.release(&with(acme(), "neutralize.sql", ENDLESS)).await.unwrap();
    let harmless = async |copy: RawDataSet| {
        assert_eq!(world.standing(copy.id()), Standing::Raw);
        let neutralized = world.neutralize(copy, &world.release).await.unwrap();
        assert!(neutralized.report.facts.iter().all(|fact| fact.holds));
        assert_eq!(world.sql(copy.id(), "select count(*) from res_partner where name like '%!'").await, "0");
        assert!(
            reason(&neutralized.report, "ir_config_parameter:acme.token").starts_with("masked: "),
            "what the first run has seen is told"
        );
        world.remove(copy.id()).await;
    };

    let copy = world.raw().await;
    let (progress, _) = progress();
    let cancel = progress.cancel.clone();
    let request = neutralize(copy, endless.id.clone());
    let (outcome, ()) =
        tokio::join!(world.project.host.neutralize(world.project.instance, request, world.project.fence(), progress), async {
            is_in_the_middle(world, copy).await;
            cancel.cancel();
        });
    assert!(matches!(outcome, Err(HostError::Cancelled)), "{outcome:?}");
    harmless(copy).await;

    let copy = world.raw().await;
    let name = module_path!().split_once("::").map(|(_, module)| module).unwrap_or_default();
    let words = [
        world.project.sandbox.home().display().to_string(),
        world.project.instance.to_string(),
        copy.id().to_string(),
        endless.id.to_string(),
        world.project.fence().generation.to_string(),
    ];
    let mut child = tokio::process::Command::new(std::env::current_exe().unwrap())
        .args(["--exact", &format!("{name}::a_process_of_its_own_that_neutralizes")])
        .env("OCORE_TEST_NEUTRALIZES", words.join(" "))
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    is_in_the_middle(world, copy).await;
    child.kill().await.unwrap();
    harmless(copy).await;
}

/// Not a test: the process that [`cancelled_or_killed_in_the_middle_it_stays_raw_and_can_be_neutralized_again`] kills.
#[tokio::test]
async fn a_process_of_its_own_that_neutralizes() {
    let Ok(words) = std::env::var("OCORE_TEST_NEUTRALIZES") else { return };
    let words: Vec<&str> = words.split(' ').collect();
    let mut config = LocalHostConfig::new(words[0]);
    config.pool.image_size = POOL_BYTES;
    config.pool.image_size_limit = POOL_BYTES;
    config.distributions = crate::project::odoo_directory().await;
    let host = ocore_host::LocalHost::open(config).await.unwrap();
    let copy = RawDataSet::quarantined(words[2].parse().unwrap());
    let request = neutralize(copy, ReleaseId(words[3].to_owned()));
    let fence = ocore_host::testing::fence(words[4].parse().unwrap());
    host.neutralize(words[1].parse().unwrap(), request, fence, progress().0).await.unwrap();
}

async fn personal_data_are_masked_when_the_project_wants_it(world: &World) {
    let settings = "[masking]\nenabled = true\ndefaults = true\nrules = [\n    { table = \"acme_account\", column = \"name\", how = \"hash\" },\n    \
                    { table = \"acme_account\", column = \"note\", how = \"constant\", value = \"it's nothing\" },\n]\n";
    let release = world.project.release(&with(acme(), "ocore.toml", settings)).await.unwrap();
    let mut results = Vec::new();
    for _ in 0..2 {
        let copy = world.raw().await;
        let report = world.neutralize(copy, &release).await.unwrap().report;
        assert!(report.masked.contains(&"res_partner.email".to_owned()) && report.masked.contains(&"acme_account.name".to_owned()));
        assert_eq!(verdict(&report, "acme_account.note"), Some(FindingVerdict::Handled));
        assert_eq!(world.sql(copy.id(), "select count(*) from res_partner where name ~ 'Winter' or email ~ 'winter'").await, "0");
        assert_eq!(world.sql(copy.id(), "select count(*) from mail_message where body ~ 'Winter' or subject = 'Private'").await, "0");
        assert_eq!(world.sql(copy.id(), "select note from acme_account").await, "it's nothing");
        assert_eq!(world.sql(copy.id(), "select login from res_users where id = 2").await, "admin");
        results.push(
            world
                .sql(copy.id(), "select p.name || p.email || p.phone || a.name from res_partner p, acme_account a where p.email in (select email_from from mail_message where message_type = 'email')")
                .await,
        );
        world.remove(copy.id()).await;
    }
    assert!(results[0].contains("@example.com") && results[0] == results[1], "{results:?}");
}
