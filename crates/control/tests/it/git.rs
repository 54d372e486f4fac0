//! Mirrors, commits, source trees and external repositories, with the real git and a real host.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
};

use anyhow::{Context, Result};
use ocore_control::{
    Error, Settings,
    git::{self, ConnectRepository},
    projects::{self, NewProject, Project},
};
use ocore_host::{HostError, LogSink, Progress, Source, testing::Sandbox};
use ocore_model::{ids::ProjectId, names::CommitSha, project::ModuleSelection};
use ocore_testkit::{Repository, Store, store::Owned};
use tokio_util::sync::CancellationToken;

/// A control plane with a host and one project.
struct World {
    store: Store,
    owner: Owned,
    project: Project,
    sandbox: Sandbox,
}

impl World {
    async fn new() -> Result<Self> {
        Self::with_settings(|_| {}).await
    }

    async fn with_settings(change: impl FnOnce(&mut Settings)) -> Result<Self> {
        let sandbox = Sandbox::new()?;
        let store = Store::with_host(sandbox.host().await?).await?.with_settings(change);
        let owner = store.organization("acme").await?;
        let project = new_project(&store, &owner, "shop").await?;
        Ok(Self { store, owner, project, sandbox })
    }

    /// Puts a work tree's branches and tags into a project's mirror, without a push's other consequences.
    async fn put(&self, project: &Project, repository: &Repository) -> Result<()> {
        let nowhere: CommitSha = "0".repeat(40).parse()?;
        git::find_commit(&self.store.control, project.id, &nowhere).await?;
        let mirror = self.store.control.settings.repositories.join(format!("{}.git", project.id));
        repository.git(&["push", "--quiet", "--force", "--all", &mirror.display().to_string()])?;
        repository.git(&["push", "--quiet", "--force", "--tags", &mirror.display().to_string()]).map(drop)
    }

    async fn export(&self, project: ProjectId, sha: &str) -> (Result<Source, HostError>, String) {
        let lines = Arc::new(Lines::default());
        let progress = Progress { log: lines.clone(), cancel: CancellationToken::new() };
        let sha = sha.parse().expect("a commit id");
        let exported = git::export(&self.store.control, project, &sha, progress).await;
        let text = lines.0.lock().expect("no panic").join("\n");
        (exported, text)
    }

    /// Commits a submodule of this address and says what its export is refused for.
    async fn refusal(&self, address: &str, commit: &str) -> Result<String> {
        let repository = Repository::new()?;
        repository.write("shop/__manifest__.py", "{'name': 'Shop'}")?;
        repository.write(".gitmodules", &format!("[submodule \"lib\"]\n\tpath = libs/lib\n\turl = {address}\n"))?;
        repository.git(&["add", "--all"])?;
        repository.git(&["update-index", "--add", "--cacheinfo", &format!("160000,{commit},libs/lib")])?;
        repository.git(&["commit", "--quiet", "--message", "With a submodule"])?;
        self.put(&self.project, &repository).await?;
        let (exported, _) = self.export(self.project.id, &repository.git(&["rev-parse", "HEAD"])?).await;
        match exported {
            Err(HostError::Rejected { summary, .. }) => Ok(summary),
            other => anyhow::bail!("{address}: {other:?}"),
        }
    }

    fn tree(&self, source: &Source) -> Result<PathBuf> {
        find_directory(&self.sandbox.home(), &source.id.0).context("the source tree is not on the host")
    }
}

#[derive(Default)]
struct Lines(Mutex<Vec<String>>);

impl LogSink for Lines {
    fn line(&self, text: &str) {
        self.0.lock().expect("no panic").push(text.to_owned());
    }
}

fn find_directory(below: &Path, name: &str) -> Option<PathBuf> {
    for entry in fs::read_dir(below).ok()?.flatten() {
        let path = entry.path();
        if path.is_dir() && !path.is_symlink() {
            if entry.file_name().to_string_lossy() == name {
                let tree = path.join("tree");
                return Some(if tree.is_dir() { tree } else { path });
            }
            if let Some(found) = find_directory(&path, name) {
                return Some(found);
            }
        }
    }
    None
}

async fn new_project(store: &Store, owner: &Owned, slug: &str) -> Result<Project> {
    let new = NewProject {
        name: slug.to_owned(),
        slug: Some(slug.to_owned()),
        description: String::new(),
        odoo_version: Some("19.0".to_owned()),
        module_selection: ModuleSelection::Own,
        with_demo: false,
        create_environment_on_push: true,
        protects_production: false,
    };
    Ok(projects::create(&store.control, &owner.scope.grant()?, new).await?)
}

fn module(name: &str) -> Result<Repository> {
    let repository = Repository::new()?;
    repository.write(&format!("{name}/__manifest__.py"), "{'name': 'A module'}\n")?;
    repository.write(&format!("{name}/__init__.py"), "")?;
    repository.commit("Begin")?;
    Ok(repository)
}

#[tokio::test]
async fn commits_are_what_git_says() -> Result<()> {
    let world = World::new().await?;
    let control = &world.store.control;
    let repository = module("shop")?;
    let first = repository.git(&["rev-parse", "HEAD"])?;
    // A name in Latin-1, as an old client wrote it: the commit says so, and Git turns it into UTF-8.
    repository.write("a", "a")?;
    repository.git(&["add", "--all"])?;
    let mut command = repository.command(&["-c", "i18n.commitEncoding=ISO-8859-1", "commit", "--quiet", "--file=-"]);
    {
        use std::os::unix::ffi::OsStrExt as _;
        command.env("GIT_AUTHOR_NAME", std::ffi::OsStr::from_bytes(b"J\xf6rg"));
    }
    command
        .env("GIT_AUTHOR_EMAIL", "j@example.com")
        .env("GIT_AUTHOR_DATE", "@1700000000 +0530")
        .env("GIT_COMMITTER_DATE", "@1700000100 -0800");
    let mut child = command.stdin(std::process::Stdio::piped()).spawn()?;
    std::io::Write::write_all(&mut child.stdin.take().context("no input")?, b"Gr\xfc\xdfe\n\nA body,\nin two lines.\n")?;
    assert!(child.wait()?.success());
    let second = repository.git(&["rev-parse", "HEAD"])?;
    // And one that lies about its encoding, which only a program makes.
    let raw = repository.command(&["cat-file", "commit", "HEAD"]).output()?.stdout;
    let text: Vec<&[u8]> = raw.split(|&byte| byte == b'\n').filter(|line| !line.starts_with(b"encoding ")).collect();
    fs::write(repository.path().join("raw"), text.join(&b'\n'))?;
    let liar = repository.git(&["hash-object", "-t", "commit", "-w", "--", "raw"])?;
    repository.remove("raw")?;
    repository.git(&["reset", "--quiet", "--soft", &liar])?;
    let third = liar.clone();
    repository.git(&["tag", "--annotate", "--message", "One", "v1", &second])?;
    world.put(&world.project, &repository).await?;

    let id = world.project.id;
    let found = git::find_commit(control, id, &second.parse()?).await?.context("it is there")?;
    assert_eq!((found.author.as_str(), found.author_email.as_str()), ("Jörg", "j@example.com"));
    assert_eq!((found.authored_at.timestamp(), found.committed_at.timestamp()), (1_700_000_000, 1_700_000_100));
    assert_eq!(found.message, "Grüße\n\nA body,\nin two lines.");
    let head = git::branch_head(control, id, &"main".parse()?).await?.context("main is there")?;
    assert_eq!((head.sha.as_str(), head.author.as_str()), (third.as_str(), "J\u{fffd}rg"));
    assert_eq!(git::branch_head(control, id, &"nothing".parse()?).await?, None);
    assert_eq!(git::tag_commit(control, id, "v1").await?.map(|commit| commit.sha.to_string()), Some(second.clone()));
    assert_eq!(git::tag_commit(control, id, "--all").await?, None);

    let between = |from: Option<String>, to: String, limit| async move {
        let from: Option<CommitSha> = from.map(|sha| sha.parse()).transpose()?;
        let (commits, count) = git::commits_between(control, id, from.as_ref(), &to.parse()?, limit).await?;
        Ok::<_, anyhow::Error>((commits.into_iter().map(|commit| commit.sha.to_string()).collect::<Vec<_>>(), count))
    };
    assert_eq!(between(None, second.clone(), 10).await?, (vec![second.clone(), first.clone()], 2));
    assert_eq!(between(Some(first.clone()), second.clone(), 10).await?, (vec![second.clone()], 1));
    assert_eq!(between(None, second.clone(), 1).await?, (vec![second.clone()], 2));
    assert_eq!(between(Some(third.clone()), third.clone(), 10).await?, (vec![], 0));
    assert_eq!(between(Some("1".repeat(40)), second.clone(), 10).await?.1, 2, "a history that was rewritten and forgotten");
    let missing = git::commits_between(control, id, None, &"1".repeat(40).parse()?, 10).await;
    assert!(matches!(missing, Err(Error::NotFound { what: "commit" })));
    // The id of a tree is no commit.
    let tree = repository.git(&["rev-parse", "HEAD^{tree}"])?;
    assert_eq!(git::find_commit(control, id, &tree.parse()?).await?, None);
    Ok(())
}

#[tokio::test]
async fn a_source_tree_holds_what_was_committed() -> Result<()> {
    let world = World::new().await?;
    let repository = module("shop")?;
    repository.write(
        ".gitattributes",
        "secret.txt export-ignore\nversion.txt export-subst\n*.bat text eol=crlf\nident.txt ident\nshop/** export-ignore\n",
    )?;
    repository.write("secret.txt", "kept\n")?;
    repository.write("version.txt", "$Format:%H$\n")?;
    repository.write("ident.txt", "$Id$\n")?;
    repository.write("run.bat", "one\ntwo\n")?;
    repository.write("größe/ü.txt", "x")?;
    let sha = repository.commit("Attributes")?;
    world.put(&world.project, &repository).await?;
    let (exported, log) = world.export(world.project.id, &sha).await;
    let source = exported?;
    let tree = world.tree(&source)?;
    let read = |path: &str| fs::read_to_string(tree.join(path));
    assert_eq!(read("secret.txt")?, "kept\n");
    assert_eq!(read("version.txt")?, "$Format:%H$\n");
    assert_eq!(read("ident.txt")?, "$Id$\n");
    assert_eq!(read("run.bat")?, "one\ntwo\n");
    assert_eq!(read("größe/ü.txt")?, "x");
    assert_eq!(source.modules.iter().map(|module| module.name.as_str()).collect::<Vec<_>>(), ["shop"]);
    assert!(log.contains("by Ada Lovelace: Attributes"), "{log}");

    // The same tree, also by another commit, is the same source.
    let (again, log) = world.export(world.project.id, &sha).await;
    assert_eq!(again?, source);
    assert!(log.contains("here already"), "{log}");
    let empty = repository.commit("Nothing new")?;
    world.put(&world.project, &repository).await?;
    assert_eq!(world.export(world.project.id, &empty).await.0?.id, source.id);
    // Another project's is another, with the same content.
    let other = new_project(&world.store, &world.owner, "other").await?;
    world.put(&other, &repository).await?;
    assert_ne!(world.export(other.id, &sha).await.0?.id, source.id);
    Ok(())
}

#[tokio::test]
async fn submodules_come_from_other_projects_of_the_organization_at_any_depth() -> Result<()> {
    let world = World::new().await?;
    let (lib, deep) = (new_project(&world.store, &world.owner, "lib").await?, new_project(&world.store, &world.owner, "deep").await?);
    let deep_repository = module("deep_module")?;
    world.put(&deep, &deep_repository).await?;
    let with_submodule = |repository: &Repository, path: &str, url: &str, commit: &str| -> Result<String> {
        repository.write(".gitmodules", &format!("[submodule \"{path}\"]\n\tpath = {path}\n\turl = {url}\n"))?;
        repository.git(&["add", "--all"])?;
        repository.git(&["update-index", "--add", "--cacheinfo", &format!("160000,{commit},{path}")])?;
        repository.git(&["commit", "--quiet", "--message", "Add a submodule"])?;
        repository.git(&["rev-parse", "HEAD"])
    };
    let lib_repository = module("lib_module")?;
    // The built-in remote's own address means the same.
    let address = world.store.control.settings.git_remote("acme", "deep");
    let lib_head = with_submodule(&lib_repository, "below", &address, &deep_repository.git(&["rev-parse", "HEAD"])?)?;
    world.put(&lib, &lib_repository).await?;
    let repository = module("shop")?;
    let head = with_submodule(&repository, "libs/lib", "../lib.git", &lib_head)?;
    world.put(&world.project, &repository).await?;

    let (exported, log) = world.export(world.project.id, &head).await;
    let source = exported?;
    let modules: Vec<(&str, &str, bool)> =
        source.modules.iter().map(|module| (module.name.as_str(), module.path.as_str(), module.in_submodule)).collect();
    assert_eq!(
        modules,
        [("deep_module", "libs/lib/below/deep_module", true), ("lib_module", "libs/lib/lib_module", true), ("shop", "shop", false)]
    );
    assert!(log.contains("submodule libs/lib at") && log.contains("from the project lib"), "{log}");
    Ok(())
}

#[tokio::test]
async fn submodules_that_cannot_be_had_say_which_and_why() -> Result<()> {
    let world = World::new().await?;
    let commit = "1".repeat(40);
    let lib = new_project(&world.store, &world.owner, "lib").await?;
    world.put(&lib, &module("lib_module")?).await?;
    let other = world.store.organization("other").await?;
    new_project(&world.store, &other, "theirs").await?;
    for (address, why) in [
        ("../nothing.git", "there is no such project"),
        ("../lib.git", "does not have the commit"),
        ("../../other/theirs.git", "same organization only"),
        ("../../../../etc", "leaves its host"),
        ("ext::sh -c id", "not an address"),
        ("ext::sh", "https://host/path"),
        ("file:///etc", "path of this machine"),
        ("/etc", "https://host/path"),
        ("-u./x", "not an address"),
        ("ssh://-oProxyCommand=id/x", "no usable host"),
        ("git://example.com/x", "not a way to reach"),
        ("https://user:secret@example.com/x", "user or password"),
        ("http://example.com/x", "protects neither"),
        ("https://127.0.0.1/x", "this machine"),
        ("https://169.254.169.254/latest", "this machine"),
        ("https://localhost/x", "this machine"),
        ("ssh://git@[::1]/x", "this machine"),
        ("https://10.1.2.3/x", "private network"),
        ("ssh://git@[::ffff:10.1.2.3]/x", "private network"),
        ("ssh://git@1.1.1.1:2222/x", "not at 2222"),
    ] {
        let sentence = world.refusal(address, &commit).await.with_context(|| address.to_owned())?;
        assert!(sentence.starts_with("the submodule libs/lib (") && sentence.contains(why), "{address}: {sentence}");
    }
    Ok(())
}

#[tokio::test]
async fn a_submodule_without_an_address_and_a_pointer_of_lfs_are_refused() -> Result<()> {
    let world = World::new().await?;
    let repository = module("shop")?;
    repository.git(&["update-index", "--add", "--cacheinfo", &format!("160000,{},lost", "1".repeat(40))])?;
    repository.git(&["commit", "--quiet", "--message", "Lost"])?;
    world.put(&world.project, &repository).await?;
    let (exported, _) = world.export(world.project.id, &repository.git(&["rev-parse", "HEAD"])?).await;
    assert!(exported.unwrap_err().to_string().contains("no entry of .gitmodules has this path"));

    let repository = module("shop")?;
    repository.write(".gitattributes", "*.png filter=lfs diff=lfs merge=lfs -text\n")?;
    let pointer = format!("version https://git-lfs.github.com/spec/v1\noid sha256:{}\nsize 12345\n", "a".repeat(64));
    repository.write("shop/static/logo.png", &pointer)?;
    let sha = repository.commit("With LFS")?;
    world.put(&world.project, &repository).await?;
    let (exported, _) = world.export(world.project.id, &sha).await;
    assert!(exported.unwrap_err().to_string().starts_with("shop/static/logo.png is stored in Git LFS"));
    Ok(())
}

#[tokio::test]
async fn a_commit_that_is_nowhere_is_refused() -> Result<()> {
    let world = World::new().await?;
    let (exported, _) = world.export(world.project.id, &"1".repeat(40)).await;
    assert!(exported.unwrap_err().to_string().contains("is not in the repository"));
    Ok(())
}

#[tokio::test]
async fn what_a_crash_left_unrecorded_is_found_and_recorded_once() -> Result<()> {
    let world = World::new().await?;
    let control = &world.store.control;
    let repository = module("shop")?;
    let head = repository.git(&["rev-parse", "HEAD"])?;
    // Git has moved the branch; who should have taken note is gone.
    world.put(&world.project, &repository).await?;
    let deployments = async || sqlx::query_scalar::<_, i64>("select count(*) from deployments").fetch_one(&control.pool).await;
    let recorded = async || {
        let statement = "select head_sha from branches where project_id = $1 and name = 'main' and deleted_at is null";
        sqlx::query_scalar::<_, String>(statement).bind(world.project.id.as_uuid()).fetch_optional(&control.pool).await
    };
    for _ in 0..2 {
        git::reconcile(control).await?;
        assert_eq!((recorded().await?, deployments().await?), (Some(head.clone()), 1));
    }
    let mirror = control.settings.repositories.join(format!("{}.git", world.project.id));
    repository.git(&["--git-dir", &mirror.display().to_string(), "update-ref", "-d", "refs/heads/main"])?;
    git::reconcile(control).await?;
    assert_eq!((recorded().await?, deployments().await?), (None, 1));
    Ok(())
}

fn connection(url: &str) -> ConnectRepository {
    ConnectRepository { url: url.to_owned(), branch: "main".to_owned(), token: None }
}

fn sentence(error: Error) -> String {
    match error {
        Error::Invalid { fields } => {
            fields.into_iter().map(|field| format!("{}: {}", field.field, field.message)).collect::<Vec<_>>().join("; ")
        }
        other => other.to_string(),
    }
}

#[tokio::test]
async fn repositories_that_may_not_be_reached_are_not_connected() -> Result<()> {
    let world = World::new().await?;
    for (url, why) in [
        ("file:///etc", "switched off"),
        ("https://127.0.0.1/x", "this machine"),
        ("http://example.com/x", "protects neither"),
        ("ext::sh -c id", "not an address"),
        ("https://token@example.com/x", "user or password"),
        ("https://10.0.0.5/x", "private network"),
        ("git@192.168.1.1:acme/shop.git", "private network"),
        ("https://[fd00::1]/x", "private network"),
        ("https://[64:ff9b::a00:5]/x", "private network"),
        ("https://198.18.0.1/x", "special purposes"),
        ("https://1.1.1.1:8443/x", "port 443, not at 8443"),
        ("ssh://git@1.1.1.1:5432/x", "port 22 or 443, not at 5432"),
    ] {
        let refused = git::connect(&world.store.control, &world.owner.scope.grant()?, world.project.id, connection(url)).await;
        let sentence = sentence(refused.unwrap_err());
        assert!(sentence.starts_with("repositoryUrl: ") && sentence.contains(why), "{url}: {sentence}");
    }
    Ok(())
}

#[tokio::test]
async fn a_file_repository_is_asked_before_it_is_connected_and_fetched_after() -> Result<()> {
    let world = World::with_settings(|settings| settings.allow_file_repositories = true).await?;
    let (control, grant) = (&world.store.control, world.owner.scope.grant()?);
    let repository = module("shop")?;
    // Somebody else's files, as they are on a real machine.
    std::os::unix::fs::chown(repository.path().join(".git"), Some(12345), Some(12345))?;
    let url = format!("file://{}", repository.path().display());
    let nothing = git::connect(control, &grant, world.project.id, connection("file:///nonexistent/x")).await.unwrap_err();
    assert!(nothing.to_string().starts_with("there is no repository at file:///nonexistent/x"), "{nothing}");
    let other = ConnectRepository { branch: "other".to_owned(), ..connection(&url) };
    assert!(sentence(git::connect(control, &grant, world.project.id, other).await.unwrap_err()).contains("no branch other"));

    let access = git::validate(control, &grant, world.project.id, Some(connection(&url))).await?;
    assert!(access.accessible && access.branches == ["main"], "{access:?}");
    let connected = git::connect(control, &grant, world.project.id, connection(&url)).await?;
    assert_eq!(connected.info.url, url);
    assert!(connected.webhook_secret.len() > 40);

    // A deployment that names a commit which is not here yet fetches it.
    let repository_head = {
        repository.write("shop/more.py", "x = 1\n")?;
        std::os::unix::fs::chown(repository.path().join(".git"), Some(0), Some(0))?;
        repository.commit("More")?
    };
    let (exported, log) = world.export(world.project.id, &repository_head).await;
    assert!(world.tree(&exported?)?.join("shop/more.py").exists());
    assert!(log.contains("fetching the repository") || log.contains("More"), "{log}");

    let back = git::disconnect(control, &grant, world.project.id).await?;
    assert!(back.url.ends_with("/git/acme/shop.git") && back.webhook_url.is_none());
    Ok(())
}

#[tokio::test]
async fn an_ssh_repository_gets_a_deploy_key_whose_private_half_nobody_sees() -> Result<()> {
    let world = World::with_settings(|settings| settings.repository_networks = vec!["192.0.2.0/24".parse().unwrap()]).await?;
    let (control, grant) = (&world.store.control, world.owner.scope.grant()?);
    // An address of documentation (RFC 5737): nothing answers there, and nothing has to.
    let request = connection("git@192.0.2.1:acme/shop.git");
    let connected = git::connect(control, &grant, world.project.id, request.clone()).await?;
    let key = connected.info.deploy_key.context("a key")?;
    assert!(key.starts_with("ssh-ed25519 ") && key.ends_with(&format!("ocore-{}", world.project.id)));
    let again = git::connect(control, &grant, world.project.id, request).await?;
    assert_eq!(again.info.deploy_key.as_ref(), Some(&key));
    assert_ne!(git::renew_deploy_key(control, &grant, world.project.id).await?.deploy_key, Some(key));
    let statement = "select deploy_key_private from projects where id = $1";
    let sealed: Vec<u8> = sqlx::query_scalar(statement).bind(world.project.id.as_uuid()).fetch_one(&control.pool).await?;
    assert!(!sealed.windows(11).any(|window| window == b"PRIVATE KEY"));
    Ok(())
}

#[tokio::test]
async fn upkeep_keeps_what_is_needed_and_readable() -> Result<()> {
    let world = World::new().await?;
    let repository = module("shop")?;
    let head = repository.git(&["rev-parse", "HEAD"])?;
    world.put(&world.project, &repository).await?;
    git::maintain(&world.store.control).await?;
    assert!(git::find_commit(&world.store.control, world.project.id, &head.parse()?).await?.is_some());
    assert!(world.export(world.project.id, &head).await.0.is_ok());
    git::forget(&world.store.control, world.project.id)?;
    git::forget(&world.store.control, world.project.id)?;
    assert!(git::find_commit(&world.store.control, world.project.id, &head.parse()?).await?.is_none());
    Ok(())
}
