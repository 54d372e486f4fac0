//! Repositories elsewhere that a project takes its commits from.

use std::{sync::Arc, time::Duration};

use anyhow::{Context, Result};
use ocore_control::{
    git::{self, ConnectRepository},
    secrets::Secret,
};
use ocore_host::{LogSink, Progress, testing::Sandbox};
use ocore_testkit::{Repository, Store, wait::eventually};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};
use tokio_util::sync::CancellationToken;

use crate::remote::{Remote, new_project, push, work_tree};

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
