//! The built-in remote, with the real git client over a real connection.

use std::time::Duration;

use anyhow::{Context, Result};
use ocore_control::projects::{self, ProjectPatch};
use ocore_testkit::{Repository, wait::eventually};
use tokio::{io::AsyncWriteExt as _, net::TcpStream};

use crate::remote::{Remote, new_key, push, run_git, work_tree};

const ZERO: &str = "0000000000000000000000000000000000000000";

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
    // Who works on environments does not end a production either.
    let refused = push(&repository, &remote.url_with(&remote.key), &[":main"]).await?;
    assert!(!refused.success && refused.output.contains("manage:production"), "{}", refused.output);
    let all = ["view:projects", "manage:deployments", "manage:environments", "manage:production"];
    let manager = new_key(&remote.store, &remote.owner, &all).await?;
    assert!(push(&repository, &remote.url_with(&manager), &[":main"]).await?.success);
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
