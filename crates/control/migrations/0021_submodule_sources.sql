-- From where, beside the repository's own directory, submodules are fetched with the project's credentials.
alter table projects add column repository_submodule_sources text[] not null default '{}';
