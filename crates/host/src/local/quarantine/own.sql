-- What every copy loses, whatever Odoo's version and modules are. It runs as the role of Odoo, in the transaction of Odoo's own neutralization and
-- after it, and may run any number of times. Credentials are not here but in rules.toml. Tables and columns differ between versions and
-- modules: each block looks for what it needs (PL/pgSQL looks at a statement only when it comes to it).
--
-- Given by the caller: the settings ocore.secret, ocore.uuid, ocore.base_url, ocore.mail_host and ocore.mail_port.

create function pg_temp.ocore_has(wanted_table text, variadic wanted_columns text[] default '{}') returns boolean
language sql stable as $$
    select to_regclass('public.' || quote_ident(wanted_table)) is not null
       and not exists (
            select from unnest(wanted_columns) as wanted (name)
             where not exists (
                select from pg_catalog.pg_attribute
                 where attrelid = to_regclass('public.' || quote_ident(wanted_table)) and attname = wanted.name and not attisdropped))
$$;

create function pg_temp.ocore_parameter(wanted_key text, wanted_value text) returns void
language sql as $$
    insert into public.ir_config_parameter (key, value, create_uid, create_date, write_uid, write_date)
    values (wanted_key, wanted_value, 1, now() at time zone 'utc', 1, now() at time zone 'utc')
    on conflict (key) do update set value = excluded.value, write_date = excluded.write_date
$$;

-- An identity of its own. The secret signs sessions and the links in mails: those of the original are worth nothing here. When the database was
-- made stays as it is; it is no secret and Odoo counts from it.
select pg_temp.ocore_parameter('database.secret', current_setting('ocore.secret'));
select pg_temp.ocore_parameter('database.uuid', current_setting('ocore.uuid'));
select pg_temp.ocore_parameter('database.is_neutralized', 'true');

-- Its own address, which no login of an administrator changes any more.
select pg_temp.ocore_parameter('web.base.url', current_setting('ocore.base_url'));
select pg_temp.ocore_parameter('web.base.url.freeze', 'True');

-- Outgoing mail: one server, the catcher. The others stay to be seen, without a host that a click could bring back. Those that earlier
-- neutralizations put there go.
do $$
declare
    catcher integer;
begin
    update public.ir_mail_server set active = false where active is distinct from false;
    update public.ir_mail_server set smtp_host = 'invalid', smtp_port = 25 where name is distinct from 'oCore mail catcher';
    if pg_temp.ocore_has('mail_template', 'mail_server_id') then
        update public.mail_template set mail_server_id = null where mail_server_id is not null;
    end if;
    if pg_temp.ocore_has('mailing_mailing', 'mail_server_id') then
        update public.mailing_mailing set mail_server_id = null where mail_server_id is not null;
    end if;
    delete from public.ir_mail_server where name = 'neutralization - disable emails';
    delete from public.ir_mail_server
     where name = 'oCore mail catcher'
       and id <> (select min(id) from public.ir_mail_server where name = 'oCore mail catcher');
    select id into catcher from public.ir_mail_server where name = 'oCore mail catcher';
    if catcher is null then
        if pg_temp.ocore_has('ir_mail_server', 'smtp_authentication') then
            insert into public.ir_mail_server (name, smtp_host, smtp_port, smtp_encryption, smtp_authentication, active)
            values ('oCore mail catcher', 'invalid', 25, 'none', 'login', true) returning id into catcher;
        else
            insert into public.ir_mail_server (name, smtp_host, smtp_port, smtp_encryption, active)
            values ('oCore mail catcher', 'invalid', 25, 'none', true) returning id into catcher;
        end if;
    end if;
    update public.ir_mail_server
       set smtp_host = current_setting('ocore.mail_host'), smtp_port = current_setting('ocore.mail_port')::integer,
           smtp_encryption = 'none', smtp_user = null, smtp_pass = null, smtp_debug = false, sequence = 1, active = true
     where id = catcher;
    if pg_temp.ocore_has('ir_mail_server', 'smtp_authentication') then
        -- Other ways to authenticate come from modules, and some need TLS.
        update public.ir_mail_server set smtp_authentication = 'login' where smtp_authentication is distinct from 'login';
    end if;
    if pg_temp.ocore_has('ir_mail_server', 'from_filter') then
        update public.ir_mail_server set from_filter = null where id = catcher;
    end if;
    if pg_temp.ocore_has('ir_mail_server', 'owner_user_id') then
        update public.ir_mail_server set owner_user_id = null where owner_user_id is not null;
    end if;
end $$;

-- Incoming mail.
do $$ begin
    if pg_temp.ocore_has('fetchmail_server', 'active', 'server', 'state') then
        update public.fetchmail_server set active = false, server = 'invalid', state = 'draft';
    end if;
end $$;

-- Nothing runs by itself but Odoo's own cleaning.
do $$ begin
    update public.ir_cron
       set active = false
     where active is distinct from false
       and id not in (select res_id from public.ir_model_data where model = 'ir.cron' and module = 'base' and name = 'autovacuum_job');
    if pg_temp.ocore_has('ir_cron_trigger') then
        delete from public.ir_cron_trigger;
    end if;
end $$;

-- Nobody is sent a code for a second factor by mail (auth_totp_mail), which would end in the catcher; who has a device of their own goes on with it.
delete from public.ir_config_parameter where key = 'auth_totp.policy';

-- Ways in: API keys, devices that skip the second factor, sessions and invitations of the original. Passwords stay: who could log in to the
-- original logs in to the copy with the same one.
do $$ begin
    if pg_temp.ocore_has('res_users_apikeys') then
        delete from public.res_users_apikeys;
    end if;
    if pg_temp.ocore_has('auth_totp_device') then
        delete from public.auth_totp_device;
    end if;
    if pg_temp.ocore_has('res_device_log', 'revoked') then
        update public.res_device_log set revoked = true where revoked is distinct from true;
    end if;
    if pg_temp.ocore_has('res_partner', 'signup_token') then
        update public.res_partner set signup_token = null where signup_token is not null;
    end if;
    if pg_temp.ocore_has('auth_oauth_provider', 'enabled') then
        update public.auth_oauth_provider set enabled = false where enabled is distinct from false;
    end if;
    if pg_temp.ocore_has('auth_saml_provider', 'active') then
        update public.auth_saml_provider set active = false where active is distinct from false;
    end if;
    -- A password that somebody enters would be sent there.
    if pg_temp.ocore_has('res_company_ldap', 'ldap_server') then
        update public.res_company_ldap set ldap_server = 'invalid', ldap_tls = false;
    end if;
end $$;

-- Forms that people had open. Odoo keeps what was typed into them for hours: new passwords, keys in the settings. The rows of a form that another
-- one needs stay; their credentials are emptied by the rules.
do $$
declare
    form text;
begin
    if not pg_temp.ocore_has('ir_model', 'transient') then
        return;
    end if;
    for form in
        select c.relname
          from public.ir_model m
          join pg_catalog.pg_class c on c.relname = replace(m.model, '.', '_') and c.relkind = 'r' and c.relnamespace = 'public'::regnamespace
         where m.transient
    loop
        begin
            execute format('delete from public.%I', form);
        exception when foreign_key_violation then
            null;
        end;
    end loop;
end $$;

-- What waits to be done or sent is parked; a person can still send it again, to the catcher.
do $$ begin
    if pg_temp.ocore_has('queue_job', 'state') then
        update public.queue_job set state = 'cancelled' where state in ('wait_dependencies', 'pending', 'enqueued', 'started');
    end if;
    if pg_temp.ocore_has('mail_mail', 'state', 'failure_reason') then
        update public.mail_mail set state = 'cancel', failure_reason = 'Parked: this database is a neutralized copy.' where state = 'outgoing';
    end if;
    if pg_temp.ocore_has('sms_sms', 'state') then
        update public.sms_sms set state = 'canceled' where state in ('outgoing', 'process', 'pending');
    end if;
    if pg_temp.ocore_has('snailmail_letter', 'state') then
        update public.snailmail_letter set state = 'canceled' where state = 'pending';
    end if;
    if pg_temp.ocore_has('mail_notification', 'notification_status') then
        update public.mail_notification set notification_status = 'canceled'
         where notification_status in ('ready', 'process', 'pending') and notification_type <> 'inbox';
    end if;
    -- A message whose notifications were to go out later keeps its place, and nobody is notified.
    if pg_temp.ocore_has('mail_message_schedule') then
        delete from public.mail_message_schedule;
    end if;
    if pg_temp.ocore_has('mail_scheduled_message', 'scheduled_date') then
        update public.mail_scheduled_message set scheduled_date = '2100-01-01' where scheduled_date < '2100-01-01';
    end if;
    if pg_temp.ocore_has('mailing_mailing', 'state') then
        update public.mailing_mailing set state = 'draft' where state in ('in_queue', 'sending');
    end if;
    if pg_temp.ocore_has('digest_digest', 'state') then
        update public.digest_digest set state = 'deactivated' where state is distinct from 'deactivated';
    end if;
    if pg_temp.ocore_has('marketing_campaign', 'state') then
        update public.marketing_campaign set state = 'stopped' where state = 'running';
    end if;
    if pg_temp.ocore_has('social_post', 'state') then
        update public.social_post set state = 'draft' where state in ('scheduled', 'posting');
    end if;
end $$;

-- Payments: no provider takes money. The demonstration provider, which moves none, may stay.
do $$ begin
    if pg_temp.ocore_has('payment_provider', 'state', 'code') then
        update public.payment_provider set state = 'disabled'
         where state is distinct from 'disabled' and (state is distinct from 'test' or code is distinct from 'demo');
    end if;
    -- Its name up to Odoo 15.
    if pg_temp.ocore_has('payment_acquirer', 'state') then
        update public.payment_acquirer set state = 'disabled' where state is distinct from 'disabled';
    end if;
    -- A saved card is charged through its provider; without one it cannot be.
    if pg_temp.ocore_has('payment_token', 'active') then
        update public.payment_token set active = false where active is distinct from false;
    end if;
end $$;

-- Deliveries: only prices that Odoo computes itself.
do $$ begin
    if pg_temp.ocore_has('delivery_carrier', 'prod_environment', 'delivery_type') then
        update public.delivery_carrier set prod_environment = false where prod_environment is distinct from false;
        update public.delivery_carrier set active = false where active is distinct from false and delivery_type not in ('fixed', 'base_on_rule');
    end if;
end $$;

-- Bank connections, shops and calendars that fetch by themselves.
do $$ begin
    if pg_temp.ocore_has('account_online_link', 'state', 'auto_sync') then
        update public.account_online_link set state = 'disconnected', auto_sync = false;
    end if;
    if pg_temp.ocore_has('amazon_account', 'active') then
        update public.amazon_account set active = false where active is distinct from false;
    end if;
    if pg_temp.ocore_has('res_users_settings', 'google_synchronization_stopped') then
        update public.res_users_settings set google_synchronization_stopped = true where google_synchronization_stopped is distinct from true;
    end if;
    if pg_temp.ocore_has('res_users_settings', 'microsoft_synchronization_stopped') then
        update public.res_users_settings set microsoft_synchronization_stopped = true where microsoft_synchronization_stopped is distinct from true;
    end if;
end $$;

-- Webhooks: none goes out, and the addresses of those that come in are new ones.
do $$ begin
    if pg_temp.ocore_has('ir_act_server', 'webhook_url') then
        update public.ir_act_server set webhook_url = 'neutralization - disable webhook' where coalesce(webhook_url, '') <> '';
    end if;
    if pg_temp.ocore_has('base_automation', 'webhook_uuid') then
        update public.base_automation set webhook_uuid = gen_random_uuid()::text where webhook_uuid is not null;
    end if;
end $$;

-- Push messages to the browsers of the original's users.
do $$ begin
    if pg_temp.ocore_has('mail_push') then
        delete from public.mail_push;
    end if;
    if pg_temp.ocore_has('mail_push_device') then
        delete from public.mail_push_device;
    end if;
end $$;

-- Websites answer to no domain of the original and are found by no search engine.
do $$ begin
    if pg_temp.ocore_has('website', 'domain') then
        update public.website set domain = null where domain is not null;
    end if;
    if pg_temp.ocore_has('website', 'cdn_activated') then
        update public.website set cdn_activated = false where cdn_activated is distinct from false;
    end if;
    if pg_temp.ocore_has('website', 'robots_txt') then
        update public.website set robots_txt = E'User-agent: *\nDisallow: /';
    end if;
end $$;

drop function pg_temp.ocore_parameter (text, text);
drop function pg_temp.ocore_has (text, text[]);
