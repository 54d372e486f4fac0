-- The mail catcher of environments that are not production.

-- Where the instance's catcher listens, on the loopback interface of its server; null where there is none.
alter table instances add column mail_port integer;

-- To whom caught messages of the environment may be released: `["ada@example.com", …]`.
alter table environments add column mail_release_to jsonb not null default '[]';
