//! The built-in remote, with the real git client over a real connection.

use std::{net::SocketAddr, process::Output, sync::Arc, time::Duration};

use anyhow::{Context, Result, ensure};
use ocore_api::{AppState, router};
use ocore_control::{
    Settings,
    api_keys::{self, NewApiKey},
    git::{self, ConnectRepository},
    projects::{self, NewProject, Project, ProjectPatch},
    secrets::Secret,
};
use ocore_host::{LogSink, Progress, testing::Sandbox};
use ocore_model::project::ModuleSelection;
use ocore_testkit::{Push, Repository, Store, store::Owned, wait::eventually};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    task::JoinHandle,
};
use tokio_util::sync::CancellationToken;

const ZERO: &str = "0000000000000000000000000000000000000000";

/// An organization with a project, served on a port of its own.
struct Remote {
    store: Store,
    owner: Owned,
    project: Project,
    address: SocketAddr,
    key: String,
    server: JoinHandle<()>,
}

impl Drop for Remote {
    fn drop(&mut self) {
        self.server.abort();
    }
}

impl Remote {
    async fn start() -> Result<Self> {
        Self::with_settings(|_| {}).await
    }

    async fn with_settings(change: impl FnOnce(&mut Settings)) -> Result<Self> {
        Self::on(Store::new().await?, change).await
    }

    async fn on(store: Store, change: impl FnOnce(&mut Settings)) -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?;
        let store = store.with_settings(|settings| {
            settings.public_url = format!("http://{address}");
            change(settings);
        });
        let owner = store.organization("acme").await?;
        let project = new_project(&store, &owner, "shop", true).await?;
        let key = new_key(&store, &owner, &["view:projects", "manage:deployments", "manage:environments"]).await?;
        let service = router(AppState { control: store.control.clone() }).into_make_service_with_connect_info::<SocketAddr>();
        let server = tokio::spawn(async move {
            let _ = axum::serve(listener, service).await;
        });
        Ok(Self { store, owner, project, address, key, server })
    }

    fn url(&self) -> String {
        format!("http://{}/git/acme/shop.git", self.address)
    }

    fn url_with(&self, key: &str) -> String {
        format!("http://git:{key}@{}/git/acme/shop.git", self.address)
    }

    /// A branch's head as the mirror has it.
    fn head(&self, name: &str) -> Result<Option<String>> {
        let mirror = self.store.control.settings.repositories.join(format!("{}.git", self.project.id));
        let output = std::process::Command::new("git")
            .arg("--git-dir")
            .arg(mirror)
            .args(["rev-parse", "--verify", "--quiet", "--end-of-options", name])
            .output()?;
        Ok(output.status.success().then(|| String::from_utf8_lossy(&output.stdout).trim().to_owned()))
    }

    async fn recorded(&self, branch: &str) -> Result<Option<(String, bool)>> {
        let statement = "select head_sha, deleted_at is not null from branches where project_id = $1 and name = $2";
        let query = sqlx::query_as(statement).bind(self.project.id.as_uuid()).bind(branch);
        Ok(query.fetch_optional(&self.store.control.pool).await?)
    }

    /// A request as it is written here; the status and the body.
    async fn raw(&self, path: &str, headers: &str, body: &[u8]) -> Result<(u16, Vec<u8>)> {
        let mut stream = TcpStream::connect(self.address).await?;
        let method = if body.is_empty() { "GET" } else { "POST" };
        let authorization = format!("Authorization: Bearer {}\r\n", self.key);
        let head = format!("{method} {path} HTTP/1.0\r\nHost: x\r\n{authorization}{headers}Content-Length: {}\r\n\r\n", body.len());
        stream.write_all(head.as_bytes()).await?;
        stream.write_all(body).await?;
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).await?;
        let end = answer.windows(4).position(|window| window == b"\r\n\r\n").context("no answer")?;
        let status = String::from_utf8_lossy(&answer).split(' ').nth(1).context("no status")?.parse()?;
        Ok((status, answer.split_off(end + 4)))
    }

    /// A push request without its pack, for what no client would send.
    async fn raw_push(&self, commands: &[(&str, &str, &str)], capabilities: &str) -> Result<String> {
        let mut body = Vec::new();
        for (index, (old, new, name)) in commands.iter().enumerate() {
            let line = format!("{old} {new} {name}{}", if index == 0 { format!("\0{capabilities}") } else { String::new() });
            body.extend_from_slice(format!("{:04x}{line}", line.len() + 4).as_bytes());
        }
        body.extend_from_slice(b"0000");
        let (status, answer) =
            self.raw("/git/acme/shop.git/git-receive-pack", "Content-Type: application/x-git-receive-pack-request\r\n", &body).await?;
        ensure!(status == 200, "{status}: {}", String::from_utf8_lossy(&answer));
        Ok(String::from_utf8_lossy(&answer).into_owned())
    }
}

async fn new_project(store: &Store, owner: &Owned, slug: &str, create_environment_on_push: bool) -> Result<Project> {
    let new = NewProject {
        name: slug.to_owned(),
        slug: Some(slug.to_owned()),
        description: String::new(),
        odoo_version: Some("19.0".to_owned()),
        module_selection: ModuleSelection::Own,
        with_demo: false,
        create_environment_on_push,
    };
    Ok(projects::create(&store.control, &owner.scope.grant()?, new).await?)
}

async fn new_key(store: &Store, owner: &Owned, permissions: &[&str]) -> Result<String> {
    let permissions = permissions.iter().map(|permission| (*permission).to_owned()).collect();
    let new = NewApiKey { name: "git".to_owned(), permissions, expires_at: None };
    Ok(api_keys::create(&store.control, &owner.scope.grant()?, new).await?.plaintext)
}

/// A work tree with one commit.
fn work_tree() -> Result<Repository> {
    let repository = Repository::new()?;
    repository.write("shop/__manifest__.py", "{'name': 'Shop'}\n")?;
    repository.write("shop/__init__.py", "")?;
    repository.commit("Begin")?;
    Ok(repository)
}

/// Runs git beside the runtime that serves it.
async fn run_git(repository: &Repository, arguments: &[&str]) -> Result<Output> {
    let mut command = repository.command(arguments);
    Ok(tokio::task::spawn_blocking(move || command.output()).await??)
}

/// A push that does not wait for the deployment, which nobody carries out here.
async fn push(repository: &Repository, url: &str, arguments: &[&str]) -> Result<Push> {
    let mut all = vec!["push", "-o", "no-wait", url];
    all.extend_from_slice(arguments);
    let output = run_git(repository, &all).await?;
    let output_text = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    Ok(Push { success: output.status.success(), output: output_text })
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_pushed_is_recorded_and_comes_back_by_every_version_of_the_protocol() -> Result<()> {
    let remote = Remote::start().await?;
    let repository = work_tree()?;
    let head = repository.git(&["rev-parse", "HEAD"])?;
    let url = remote.url_with(&remote.key);
    let pushed = push(&repository, &url, &["main"]).await?;
    assert!(pushed.success, "{}", pushed.output);
    assert!(pushed.output.contains("remote: main: "), "{}", pushed.output);
    assert!(pushed.output.contains("/api/deployments/"), "{}", pushed.output);
    assert_eq!(remote.recorded("main").await?, Some((head.clone(), false)));

    for version in ["0", "1", "2"] {
        let target = tempfile::tempdir()?;
        let arguments = ["-c", &format!("protocol.version={version}"), "clone", "--quiet", &url, &target.path().display().to_string()];
        let cloned = run_git(&repository, &arguments).await?;
        assert!(cloned.status.success(), "version {version}: {}", String::from_utf8_lossy(&cloned.stderr));
        assert_eq!(std::fs::read_to_string(target.path().join("shop/__manifest__.py"))?, "{'name': 'Shop'}\n");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_fetch_with_a_long_history_sends_a_compressed_request_and_is_served() -> Result<()> {
    let remote = Remote::start().await?;
    let (ours, theirs) = (work_tree()?, Repository::new()?);
    let url = remote.url_with(&remote.key);
    assert!(push(&ours, &url, &["main"]).await?.success);
    // Their many commits are unknown to the remote: they are offered as `have` lines, more than a kilobyte of them.
    run_git(&theirs, &["fetch", "--quiet", &url, "main"]).await?;
    theirs.git(&["reset", "--quiet", "--hard", "FETCH_HEAD"])?;
    for number in 0..60 {
        theirs.commit(&format!("Theirs {number}"))?;
    }
    ours.write("shop/new.py", "x = 1\n")?;
    let head = ours.commit("Ours")?;
    assert!(push(&ours, &url, &["main"]).await?.success);
    for version in ["0", "2"] {
        let fetched = run_git(&theirs, &["-c", &format!("protocol.version={version}"), "fetch", "--quiet", &url, "main"]).await?;
        assert!(fetched.status.success(), "{}", String::from_utf8_lossy(&fetched.stderr));
        assert_eq!(theirs.git(&["rev-parse", "FETCH_HEAD"])?, head);
        theirs.git(&["update-ref", "-d", "FETCH_HEAD"]).ok();
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn who_may_not_is_refused_before_anything_is_written() -> Result<()> {
    let remote = Remote::start().await?;
    let repository = work_tree()?;
    let other = remote.store.organization("other").await?;
    let keys = |permissions: &'static [&'static str]| new_key(&remote.store, &remote.owner, permissions);
    let reader = keys(&["view:projects"]).await?;
    let stranger = new_key(&remote.store, &other, &["view:projects", "manage:deployments"]).await?;

    let wrong = push(&repository, &remote.url_with("ocore_wrong"), &["main"]).await?;
    assert!(!wrong.success && wrong.output.contains("Authentication failed"), "{}", wrong.output);
    let none = push(&repository, &remote.url(), &["main"]).await?;
    assert!(!none.success && none.output.contains("terminal prompts disabled"), "{}", none.output);
    let read_only = push(&repository, &remote.url_with(&reader), &["main"]).await?;
    assert!(
        !read_only.success && read_only.output.contains("remote: this needs the permission manage:deployments"),
        "{}",
        read_only.output
    );
    let foreign = push(&repository, &remote.url_with(&stranger), &["main"]).await?;
    assert!(!foreign.success && foreign.output.contains("not found"), "{}", foreign.output);
    let nowhere = push(&repository, &remote.url_with(&stranger).replace("acme/shop", "nobody/nothing"), &["main"]).await?;
    assert!(!nowhere.success && nowhere.output.contains("not found"), "{}", nowhere.output);
    assert_eq!(remote.head("refs/heads/main")?, None);

    // A reader reads, and a person's access token is a password as well.
    assert!(push(&repository, &remote.url_with(remote.owner.token()), &["main"]).await?.success);
    assert!(run_git(&repository, &["ls-remote", &remote.url_with(&reader)]).await?.status.success());
    assert!(!run_git(&repository, &["ls-remote", &remote.url_with(&stranger)]).await?.status.success());
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn an_archived_project_says_so() -> Result<()> {
    let remote = Remote::start().await?;
    let patch = ProjectPatch { archived: Some(true), ..ProjectPatch::default() };
    projects::update(&remote.store.control, &remote.owner.scope.grant()?, remote.project.id, patch).await?;
    let refused = push(&work_tree()?, &remote.url_with(&remote.key), &["main"]).await?;
    assert!(!refused.success && refused.output.contains("remote: the project shop is archived"), "{}", refused.output);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn branches_named_to_hurt_are_either_taken_whole_or_refused_in_words() -> Result<()> {
    let remote = Remote::start().await?;
    let repository = work_tree()?;
    let url = remote.url_with(&remote.key);
    let head = repository.git(&["rev-parse", "HEAD"])?;
    let long = "x".repeat(200);
    for name in ["feature/x", "a;b", "$(id)", "`id`", "größe/日本", "a'b\"c", "--x".trim_start_matches('-'), long.as_str()] {
        let pushed = push(&repository, &url, &[&format!("HEAD:refs/heads/{name}")]).await?;
        assert!(pushed.success, "{name}: {}", pushed.output);
        assert_eq!(remote.recorded(name).await?, Some((head.clone(), false)), "{name}");
    }
    for name in ["refs/heads/-x", "refs/heads/--upload-pack=id", "refs/notes/commits", "refs/ocore/live/x", "refs/tags/-t"] {
        let refused = push(&repository, &url, &[&format!("HEAD:{name}")]).await?;
        assert!(
            !refused.success && refused.output.contains("[remote rejected]") && refused.output.contains("remote: ✘ "),
            "{name}: {}",
            refused.output
        );
        assert_eq!(remote.head(name)?, None, "{name}");
    }
    // What a client's own git would not send.
    for name in ["refs/heads/../../x", "refs/heads/a..b", "refs/heads/a b", "refs/heads/x.lock", "refs/heads/\u{1b}[31m", "HEAD", "../x"] {
        let answer = remote.raw_push(&[(ZERO, &head, name)], "report-status side-band-64k").await?;
        assert!(answer.contains(&format!("ng {name} ")), "{name:?}: {answer}");
    }
    let answer = remote.raw_push(&[(ZERO, &head, "refs/heads/-x")], "report-status").await?;
    assert!(answer.starts_with("000eunpack ok\n") && answer.ends_with("0000"), "a client without bands gets the bare report: {answer}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn one_refused_branch_refuses_the_whole_push() -> Result<()> {
    let remote = Remote::start().await?;
    let repository = work_tree()?;
    let refused = push(&repository, &remote.url_with(&remote.key), &["main", "HEAD:refs/notes/x"]).await?;
    assert!(!refused.success && refused.output.contains("not pushed, since another ref was refused"), "{}", refused.output);
    assert_eq!(remote.head("refs/heads/main")?, None);
    assert_eq!(remote.recorded("main").await?, None);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn environments_need_their_own_permission() -> Result<()> {
    let remote = Remote::start().await?;
    let repository = work_tree()?;
    let deployer = new_key(&remote.store, &remote.owner, &["manage:deployments"]).await?;
    let refused = push(&repository, &remote.url_with(&deployer), &["main"]).await?;
    assert!(!refused.success && refused.output.contains("manage:environments"), "{}", refused.output);
    assert!(push(&repository, &remote.url_with(&remote.key), &["main"]).await?.success);
    // The branch has its environment now, and it is production.
    repository.commit("Second")?;
    let pushed = push(&repository, &remote.url_with(&deployer), &["main"]).await?;
    assert!(pushed.success, "{}", pushed.output);
    let refused = push(&repository, &remote.url_with(&deployer), &[":main"]).await?;
    assert!(!refused.success && refused.output.contains("production"), "{}", refused.output);
    assert!(push(&repository, &remote.url_with(&remote.key), &[":main"]).await?.success);
    assert!(remote.recorded("main").await?.context("it stays known")?.1);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn every_kind_of_push_reports_as_git_expects() -> Result<()> {
    let remote = Remote::start().await?;
    let repository = work_tree()?;
    let url = remote.url_with(&remote.key);
    let porcelain = push(&repository, &url, &["--porcelain", "main", "HEAD:refs/heads/two"]).await?;
    assert!(porcelain.success && porcelain.output.contains("*\trefs/heads/main:refs/heads/main\t[new branch]\n"), "{}", porcelain.output);
    repository.git(&["tag", "--annotate", "--message", "One", "v1"])?;
    let tagged = push(&repository, &url, &["v1"]).await?;
    assert!(tagged.success, "{}", tagged.output);

    let first = repository.git(&["rev-parse", "HEAD"])?;
    repository.commit("Later")?;
    assert!(push(&repository, &url, &["main"]).await?.success);
    repository.git(&["reset", "--quiet", "--hard", &first])?;
    let rewritten = repository.commit("Another history")?;
    let refused = push(&repository, &url, &["main"]).await?;
    assert!(!refused.success && refused.output.contains("rejected"), "{}", refused.output);
    assert!(push(&repository, &url, &["--force", "main"]).await?.success);
    assert_eq!(remote.recorded("main").await?, Some((rewritten.clone(), false)));

    // One of two cannot be had: with --atomic neither moves.
    let atomic = push(&repository, &url, &["--atomic", "HEAD:refs/heads/three", &format!("{first}:refs/heads/main")]).await?;
    assert!(!atomic.success, "{}", atomic.output);
    assert_eq!((remote.head("refs/heads/three")?, remote.head("refs/heads/main")?), (None, Some(rewritten)));

    assert!(push(&repository, &url, &["--delete", "two"]).await?.success);
    assert_eq!(remote.recorded("two").await?.map(|(_, deleted)| deleted), Some(true));
    let again = push(&repository, &url, &["main"]).await?;
    assert!(again.success && again.output.contains("Everything up-to-date"), "{}", again.output);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_push_that_is_too_large_is_refused_with_the_limit() -> Result<()> {
    let remote = Remote::with_settings(|settings| settings.push_limit = 512 * 1024).await?;
    let repository = work_tree()?;
    // Noise, so that it does not compress; more than the client sends in one piece.
    let mut noise = vec![0u8; 3 << 20];
    let mut state = 1u64;
    for byte in &mut noise {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        *byte = (state >> 33) as u8;
    }
    std::fs::write(repository.path().join("large.bin"), &noise)?;
    repository.commit("Large")?;
    let refused = push(&repository, &remote.url_with(&remote.key), &["main"]).await?;
    assert!(!refused.success && refused.output.contains("more than this installation takes"), "{}", refused.output);
    assert_eq!(remote.head("refs/heads/main")?, None);
    assert_eq!(remote.recorded("main").await?, None);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_large_push_that_is_allowed_goes_through_in_pieces() -> Result<()> {
    let remote = Remote::start().await?;
    let repository = work_tree()?;
    std::fs::write(
        repository.path().join("large.bin"),
        (0..3_000_000u32).flat_map(|n| (n.wrapping_mul(2_654_435_761)).to_le_bytes()).collect::<Vec<_>>(),
    )?;
    let head = repository.commit("Large")?;
    let pushed = push(&repository, &remote.url_with(&remote.key), &["main"]).await?;
    assert!(pushed.success, "{}", pushed.output);
    assert_eq!(remote.head("refs/heads/main")?, Some(head));
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn of_two_pushes_at_once_one_wins_and_the_store_knows_which() -> Result<()> {
    let remote = Remote::start().await?;
    let (one, two) = (work_tree()?, work_tree()?);
    let url = remote.url_with(&remote.key);
    two.commit("Two")?;
    let (arguments_one, arguments_two) = (["main"], ["main"]);
    let (first, second) = tokio::join!(push(&one, &url, &arguments_one), push(&two, &url, &arguments_two));
    let (first, second) = (first?, second?);
    assert_ne!(first.success, second.success, "{}\n{}", first.output, second.output);
    let winner = if first.success { &one } else { &two };
    let head = winner.git(&["rev-parse", "HEAD"])?;
    assert_eq!(remote.head("refs/heads/main")?, Some(head.clone()));
    assert_eq!(remote.recorded("main").await?, Some((head, false)));
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_dies_in_the_middle_leaves_nothing() -> Result<()> {
    let remote = Remote::start().await?;
    let repository = work_tree()?;
    let head = repository.git(&["rev-parse", "HEAD"])?;
    let pack = repository.command(&["pack-objects", "--all", "--stdout", "--quiet"]).output()?.stdout;
    let line = format!("{ZERO} {head} refs/heads/main\0report-status side-band-64k");
    let mut body = format!("{:04x}{line}0000", line.len() + 4).into_bytes();
    body.extend_from_slice(&pack[..pack.len() / 2]);

    let mut stream = TcpStream::connect(remote.address).await?;
    let request = format!(
        "POST /git/acme/shop.git/git-receive-pack HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {}\r\n\
         Content-Type: application/x-git-receive-pack-request\r\nContent-Length: {}\r\n\r\n",
        remote.key,
        body.len() + pack.len()
    );
    stream.write_all(request.as_bytes()).await?;
    stream.write_all(&body).await?;
    let objects = remote.store.control.settings.repositories.join(format!("{}.git/objects", remote.project.id));
    let quarantines = || -> Result<usize> {
        let entries: Vec<_> = std::fs::read_dir(&objects)?.collect::<Result<_, _>>()?;
        Ok(entries.iter().filter(|entry| entry.file_name().to_string_lossy().starts_with("tmp_objdir")).count())
    };
    let begun = eventually(Duration::from_secs(20), async || (quarantines().ok()? > 0).then_some(())).await;
    begun.context("git has not begun")?;
    drop(stream);
    let gone = eventually(Duration::from_secs(20), async || (quarantines().ok()? == 0).then_some(())).await;
    gone.context("the quarantine stays")?;
    assert_eq!(remote.head("refs/heads/main")?, None);
    assert_eq!(remote.head(&format!("{head}^{{commit}}"))?, None);
    assert_eq!(remote.recorded("main").await?, None);
    assert!(push(&repository, &remote.url_with(&remote.key), &["main"]).await?.success);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_dies_after_its_push_is_recorded_all_the_same() -> Result<()> {
    let remote = Remote::start().await?;
    let repository = work_tree()?;
    let url = remote.url_with(&remote.key);
    // Without no-wait the client stays until the deployment ends, which nobody carries out here.
    let mut client = repository.command(&["push", &url, "main"]).stderr(std::process::Stdio::null()).spawn()?;
    let recorded = eventually(Duration::from_secs(20), async || remote.recorded("main").await.ok()?).await;
    client.kill()?;
    client.wait()?;
    recorded.context("it was not recorded")?;
    assert_eq!(remote.head("refs/heads/main")?, Some(repository.git(&["rev-parse", "HEAD"])?));
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn the_terminal_follows_the_deployment_to_its_end() -> Result<()> {
    for succeeds in [true, false] {
        let remote = Remote::start().await?;
        let repository = work_tree()?;
        let url = remote.url_with(&remote.key);
        let arguments = ["push", url.as_str(), "main"];
        let client = run_git(&repository, &arguments);
        let pool = &remote.store.control.pool;
        let work = async {
            let id = eventually(Duration::from_secs(20), async || {
                sqlx::query_scalar::<_, uuid::Uuid>("select id from deployments").fetch_optional(pool).await.ok()?
            });
            let id = id.await.context("no deployment")?;
            for statement in [
                "update deployments set status = 'running' where id = $1",
                "update deployment_steps set status = 'running', started_at = now() where deployment_id = $1 and name = 'checkout'",
                "update deployment_steps set status = 'succeeded', completed_at = started_at + interval '1234 ms' where deployment_id = $1 and name = 'checkout'",
                if succeeds {
                    "update deployments set status = 'succeeded', completed_at = now() where id = $1"
                } else {
                    "update deployments set status = 'failed', error_message = 'shop/models.py, line 3: invalid syntax',
                        error_excerpt = E'def x(:\\n     ^\\nSyntaxError', completed_at = now() where id = $1"
                },
            ] {
                sqlx::query(statement).bind(id).execute(pool).await?;
            }
            Ok::<_, anyhow::Error>(())
        };
        let (client, ()) = tokio::try_join!(client, work)?;
        let terminal = String::from_utf8_lossy(&client.stderr).into_owned();
        assert!(client.status.success(), "the push itself is well: {terminal}");
        assert!(terminal.contains("remote: ▸ checkout … 1.2 s"), "{terminal}");
        if succeeds {
            assert!(terminal.contains("remote: ✔ live at http://") && terminal.contains(".localhost:8080 in "), "{terminal}");
        } else {
            assert!(terminal.contains("remote: ✘ failed: shop/models.py, line 3: invalid syntax"), "{terminal}");
            assert!(terminal.contains("remote:   │ SyntaxError"), "{terminal}");
        }
        assert!(terminal.contains("[new branch]"), "{terminal}");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn objects_made_to_hurt_are_refused_by_git_itself() -> Result<()> {
    let remote = Remote::start().await?;
    let repository = work_tree()?;
    let blob = repository.git(&["hash-object", "-w", "shop/__manifest__.py"])?;
    // A tree with an entry that would be written over a repository's own files.
    let mut mktree = repository.command(&["hash-object", "-w", "-t", "tree", "--literally", "--stdin"]);
    let mut content = b"100644 .git\0".to_vec();
    content.extend((0..20).map(|index| u8::from_str_radix(&blob[index * 2..index * 2 + 2], 16).unwrap_or_default()));
    let mut child = mktree.stdin(std::process::Stdio::piped()).stdout(std::process::Stdio::piped()).spawn()?;
    std::io::Write::write_all(child.stdin.as_mut().context("no input")?, &content)?;
    let tree = String::from_utf8(child.wait_with_output()?.stdout)?.trim().to_owned();
    let commit = repository.git(&["commit-tree", "-m", "Hurt", &tree])?;
    let refused = push(&repository, &remote.url_with(&remote.key), &[&format!("{commit}:refs/heads/main")]).await?;
    assert!(!refused.success && refused.output.contains("hasDotgit"), "{}", refused.output);
    assert_eq!(remote.head("refs/heads/main")?, None);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_no_git_client_gets_an_answer_in_words() -> Result<()> {
    let remote = Remote::start().await?;
    let path = "/git/acme/shop.git/git-receive-pack";
    let typed = "Content-Type: application/x-git-receive-pack-request\r\n";
    assert_eq!(remote.raw(path, typed, b"0000").await?, (200, Vec::new()), "the question before a large push");
    assert_eq!(remote.raw(path, "", b"0000").await?.0, 415);
    let (status, body) = remote.raw(path, typed, b"hello, world").await?;
    assert_eq!(status, 422);
    assert!(String::from_utf8_lossy(&body).contains("this is not a push"));
    assert_eq!(remote.raw("/git/acme/shop.git/info/refs", "", b"").await?.0, 403);
    assert_eq!(remote.raw("/git/acme/shop.git/info/refs?service=git-evil-pack", "", b"").await?.0, 404);
    for project in ["shop%2F..%2Fshop.git", "..%2f", "-x", "%00"] {
        let (status, _) = remote.raw(&format!("/git/acme/{project}/info/refs?service=git-upload-pack"), "", b"").await?;
        assert!(status == 404 || status == 400, "{project}: {status}");
    }
    Ok(())
}

/// A call of the API by the owner; the status and the JSON.
async fn call(remote: &Remote, method: &str, path: &str, headers: &str, body: &str) -> Result<(u16, serde_json::Value)> {
    let mut stream = TcpStream::connect(remote.address).await?;
    let request = format!("{method} /api{path} HTTP/1.0\r\nHost: x\r\n{headers}Content-Length: {}\r\n\r\n{body}", body.len());
    stream.write_all(request.as_bytes()).await?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await?;
    let (head, body) = answer.split_once("\r\n\r\n").context("no answer")?;
    let status = head.split(' ').nth(1).context("no status")?.parse()?;
    Ok((status, serde_json::from_str(body).unwrap_or_default()))
}

#[tokio::test(flavor = "multi_thread")]
async fn an_external_repository_is_connected_with_a_token_and_followed_by_its_webhook() -> Result<()> {
    let remote = Remote::with_settings(|settings| settings.allow_local_repositories = true).await?;
    let repository = work_tree()?;
    let source = remote.url_with(&remote.key);
    assert!(push(&repository, &source, &["main", "HEAD:refs/heads/old"]).await?.success);
    let outside = new_project(&remote.store, &remote.owner, "outside", true).await?;
    let owner = format!("Authorization: Bearer {}\r\nContent-Type: application/json\r\n", remote.owner.token());
    let repository_path = format!("/projects/{}/repository", outside.id);
    let connection = |token: &str, branch: &str| {
        serde_json::json!({ "repositoryUrl": remote.url(), "branch": branch, "token": token, "provider": "gitlab" }).to_string()
    };

    let (status, access) = call(&remote, "POST", &format!("{repository_path}/validate"), &owner, &connection("wrong", "main")).await?;
    assert_eq!((status, access["accessible"].as_bool()), (200, Some(false)));
    assert!(access["message"].as_str().is_some_and(|message| message.contains("token")), "{access}");
    let (status, problem) = call(&remote, "POST", &repository_path, &owner, &connection("wrong", "main")).await?;
    assert_eq!((status, problem["code"].as_str()), (409, Some("repository_unreachable")));
    let (status, _) = call(&remote, "POST", &repository_path, &owner, &connection(&remote.key, "nothing")).await?;
    assert_eq!(status, 422);
    let (status, connected) = call(&remote, "POST", &repository_path, &owner, &connection(&remote.key, "main")).await?;
    assert_eq!(status, 200, "{connected}");
    let secret = connected["webhookSecret"].as_str().context("a secret")?.to_owned();

    let recorded = async |branch: &str| {
        let statement = "select head_sha from branches where project_id = $1 and name = $2";
        sqlx::query_scalar::<_, String>(statement)
            .bind(outside.id.as_uuid())
            .bind(branch)
            .fetch_optional(&remote.store.control.pool)
            .await
            .ok()?
    };
    let arrives = async |sha: String| {
        let wanted = async || (recorded("main").await? == sha).then_some(());
        eventually(Duration::from_secs(30), wanted).await.with_context(|| format!("{sha} does not arrive"))
    };
    arrives(repository.git(&["rev-parse", "HEAD"])?).await?;
    let environments: Vec<String> = sqlx::query_scalar("select branch from environments where project_id = $1")
        .bind(outside.id.as_uuid())
        .fetch_all(&remote.store.control.pool)
        .await?;
    assert_eq!(environments, ["main"], "a branch that was there before is no push");

    // The webhook: refused without proof, whatever the project; taken with the secret; the same delivery again does nothing more.
    let second = repository.commit("Second")?;
    assert!(push(&repository, &source, &["main"]).await?.success);
    let webhook = format!("/webhooks/{}", outside.id);
    let nowhere = format!("/webhooks/{}", uuid::Uuid::now_v7());
    for (path, headers) in [(&webhook, "X-Ocore-Token: wrong\r\n"), (&webhook, ""), (&nowhere, "X-Ocore-Token: wrong\r\n")] {
        let (status, problem) = call(&remote, "POST", path, headers, "{}").await?;
        assert_eq!((status, problem["code"].as_str()), (401, Some("webhook_refused")));
    }
    let headers = format!("X-Ocore-Token: {secret}\r\nX-Ocore-Delivery: one\r\n");
    for _ in 0..2 {
        assert_eq!(call(&remote, "POST", &webhook, &headers, "{}").await?.0, 202);
    }
    arrives(second).await?;
    let deliveries: i64 = sqlx::query_scalar("select count(*) from webhook_deliveries where delivery_id is not null")
        .fetch_one(&remote.store.control.pool)
        .await?;
    assert_eq!(deliveries, 1);

    // Another history, and by hand.
    repository.git(&["commit", "--quiet", "--amend", "--allow-empty", "--message", "Rewritten"])?;
    assert!(push(&repository, &source, &["--force", "main"]).await?.success);
    let (status, fetched) = call(&remote, "POST", &format!("{repository_path}/fetch"), &owner, "").await?;
    assert_eq!((status, fetched["branches"][0]["branch"].as_str()), (200, Some("main")), "{fetched}");
    arrives(repository.git(&["rev-parse", "HEAD"])?).await?;

    // Its built-in remote is closed, and says where to push.
    let closed = push(&repository, &source.replace("/shop.git", "/outside.git"), &["main"]).await?;
    assert!(!closed.success && closed.output.contains("remote: the project outside takes its commits from"), "{}", closed.output);
    // Nothing of the token or the secret is in the clear.
    let row: String = sqlx::query_scalar("select p::text from projects p where id = $1")
        .bind(outside.id.as_uuid())
        .fetch_one(&remote.store.control.pool)
        .await?;
    assert!(!row.contains(&remote.key) && !row.contains(&hex_of(&remote.key)) && !row.contains(&hex_of(&secret)));
    let (status, back) = call(&remote, "DELETE", &repository_path, &owner, "").await?;
    assert_eq!((status, back["kind"].as_str()), (200, Some("built_in")));
    Ok(())
}

fn hex_of(text: &str) -> String {
    text.bytes().map(|byte| format!("{byte:02x}")).collect::<Vec<_>>().concat()
}

struct Silent;

impl LogSink for Silent {
    fn line(&self, _: &str) {}
}

#[tokio::test(flavor = "multi_thread")]
async fn submodules_of_an_external_repository_are_fetched_with_its_token_from_its_own_host_only() -> Result<()> {
    let sandbox = Sandbox::new()?;
    let remote = Remote::on(Store::with_host(sandbox.host().await?).await?, |settings| settings.allow_local_repositories = true).await?;
    new_project(&remote.store, &remote.owner, "lib", false).await?;
    let outside = new_project(&remote.store, &remote.owner, "outside", false).await?;
    let lib_repository = Repository::new()?;
    lib_repository.write("lib_module/__manifest__.py", "{'name': 'Lib'}\n")?;
    let lib_head = lib_repository.commit("Begin")?;
    lib_repository.commit("Later")?;
    assert!(push(&lib_repository, &remote.url_with(&remote.key).replace("/shop.git", "/lib.git"), &["main"]).await?.success);

    let repository = work_tree()?;
    let with_submodule = |url: &str, commit: &str| -> Result<String> {
        repository.write(".gitmodules", &format!("[submodule \"lib\"]\n\tpath = lib\n\turl = {url}\n"))?;
        repository.git(&["add", "--", ".gitmodules"])?;
        repository.git(&["update-index", "--add", "--cacheinfo", &format!("160000,{commit},lib")])?;
        repository.git(&["commit", "--quiet", "--message", "Submodule"])?;
        repository.git(&["rev-parse", "HEAD"])
    };
    let whole = with_submodule("../lib.git", &lib_head)?;
    // Another name of the same machine is another host: the token does not go there.
    let elsewhere = with_submodule(&format!("http://localhost:{}/git/acme/lib.git", remote.address.port()), &lib_head)?;
    let missing = with_submodule("../lib.git", &"1".repeat(40))?;
    assert!(push(&repository, &remote.url_with(&remote.key), &["main"]).await?.success);

    let control = &remote.store.control;
    let connection =
        ConnectRepository { url: remote.url(), branch: "main".to_owned(), token: Some(Secret::new(format!("git:{}", remote.key))) };
    git::connect(control, &remote.owner.scope.grant()?, outside.id, connection).await?;
    let export = async |sha: &str| -> Result<_> {
        let progress = Progress { log: Arc::new(Silent), cancel: CancellationToken::new() };
        Ok(git::export(control, outside.id, &sha.parse()?, progress).await)
    };
    let source = export(&whole).await??;
    let modules: Vec<&str> = source.modules.iter().map(|module| module.path.as_str()).collect();
    assert_eq!(modules, ["lib/lib_module", "shop"]);
    assert_eq!(export(&whole).await??, source);

    let refused = export(&missing).await?.unwrap_err().to_string();
    assert!(refused.starts_with("the submodule lib (../lib.git) cannot be had: ") && refused.contains(&"1".repeat(40)), "{refused}");
    let refused = export(&elsewhere).await?.unwrap_err().to_string();
    assert!(refused.contains("is not public, or the access token does not open it"), "{refused}");
    Ok(())
}
