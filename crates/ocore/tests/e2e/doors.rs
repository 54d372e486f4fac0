//! Who gets into a fresh installation and what it tells outsiders, with the real binary. No Odoo is needed.

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::Path,
    process::{Output, Stdio},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use ocore_testkit::{ApiClient, Installation, Options, wait::eventually};
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

const PASSWORD: &str = "correct horse 1";

async fn closed() -> Result<Installation> {
    let environment = vec![("OCORE__AUTH__OPEN_SIGNUP".to_owned(), "false".to_owned())];
    Installation::start(env!("CARGO_BIN_EXE_ocore"), Options { environment, ..Options::default() }).await
}

fn mode(path: &Path) -> Result<u32> {
    Ok(fs::metadata(path).with_context(|| path.display().to_string())?.permissions().mode() & 0o777)
}

async fn sign_up(installation: &Installation, email: &str, token: Option<&str>) -> Result<(StatusCode, String)> {
    let api = ApiClient::new(&installation.api_url(), None, None);
    let body = json!({ "email": email, "name": "Ada", "password": PASSWORD, "firstAccountToken": token });
    let (status, answer) = api.request(Method::POST, "/auth/signup", Some(&body)).await?;
    Ok((status, answer["code"].as_str().unwrap_or_default().to_owned()))
}

/// `ocore signup` as a person types it, with a profile of its own.
fn sign_up_by_command(installation: &Installation, email: &str, arguments: &[&str]) -> Result<Output> {
    use std::io::Write;
    let mut command = installation.command(&[&["signup", "--email", email, "--name", "Ada", "--password-stdin"], arguments].concat());
    command.env("OCORE_PROFILE", installation.home.join(format!("profile-{email}.json")));
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
    writeln!(child.stdin.take().context("no standard input")?, "{PASSWORD}")?;
    Ok(child.wait_with_output()?)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_fresh_installation_belongs_to_whoever_has_the_token_that_its_server_printed() -> Result<()> {
    let mut installation = closed().await?;
    let file = installation.home.join("first-account-token");
    let token = installation.first_account_token().context("no token")?;
    ensure!(mode(&file)? == 0o600);
    let log = installation.log_tail(200);
    ensure!(log.contains(&format!("--token {token}")), "{log}");

    let (status, code) = sign_up(&installation, "eve@example.com", None).await?;
    ensure!((status, code.as_str()) == (StatusCode::FORBIDDEN, "first_account_token_required"), "{status} {code}");
    let (status, code) = sign_up(&installation, "eve@example.com", Some("first_guess")).await?;
    ensure!((status, code.as_str()) == (StatusCode::FORBIDDEN, "first_account_token_invalid"), "{status} {code}");

    // Killed before anybody has come, and in the middle of whatever it was at: the same token, whole.
    installation.kill_server()?;
    fs::write(&file, "")?;
    installation.serve(&[]).await?;
    ensure!(installation.first_account_token().as_deref() == Some(token.as_str()));

    let tries =
        tokio::join!(sign_up(&installation, "ada@example.com", Some(&token)), sign_up(&installation, "eve@example.com", Some(&token)));
    let tries = [tries.0?, tries.1?];
    ensure!(tries.iter().filter(|(status, _)| *status == StatusCode::CREATED).count() == 1, "{tries:?}");
    ensure!(tries.iter().any(|(status, code)| (*status, code.as_str()) == (StatusCode::CONFLICT, "first_account_made")), "{tries:?}");
    ensure!(!file.exists());
    let (status, code) = sign_up(&installation, "eve2@example.com", None).await?;
    ensure!((status, code.as_str()) == (StatusCode::FORBIDDEN, "signup_closed"), "{status} {code}");

    // Killed between the account and the end of its file: the file goes at the next start, and nothing is printed again.
    installation.kill_server()?;
    fs::write(&file, &token)?;
    let printed = installation.log_tail(10_000).matches("There is no account yet").count();
    installation.serve(&[]).await?;
    ensure!(!file.exists());
    ensure!(installation.log_tail(10_000).matches("There is no account yet").count() == printed && printed == 2);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn the_first_account_is_made_at_the_command_line_and_the_second_by_invitation() -> Result<()> {
    let installation = closed().await?;
    let file = installation.home.join("first-account-token");
    let refused = sign_up_by_command(&installation, "ada@example.com", &[])?;
    ensure!(!refused.status.success() && String::from_utf8_lossy(&refused.stderr).contains("ocore serve"), "{refused:?}");
    let file = file.display().to_string();
    let made = sign_up_by_command(&installation, "ada@example.com", &["--token-file", &file, "--organization", "Analytical Engines"])?;
    ensure!(made.status.success(), "{made:?}");
    let again = sign_up_by_command(&installation, "eve@example.com", &["--token-file", &file])?;
    ensure!(!again.status.success() && String::from_utf8_lossy(&again.stderr).contains("until that account is made"), "{again:?}");

    let mut invite = installation.command(&["--json", "org", "invite", "bob@example.com", "--role", "Viewer"]);
    let invited = invite.env("OCORE_PROFILE", installation.home.join("profile-ada@example.com.json")).output()?;
    ensure!(invited.status.success(), "{invited:?}");
    let token = serde_json::from_slice::<Value>(&invited.stdout)?["token"].as_str().context("no token")?.to_owned();
    // It is for nobody else, and lets nobody in for a stranger's address.
    let stolen = sign_up_by_command(&installation, "eve@example.com", &["--invitation", &token])?;
    ensure!(
        !stolen.status.success() && String::from_utf8_lossy(&stolen.stderr).contains("invitation for your e-mail address"),
        "{stolen:?}"
    );
    let bob = sign_up_by_command(&installation, "bob@example.com", &["--invitation", &token])?;
    ensure!(bob.status.success(), "{bob:?}");
    let mut show = installation.command(&["--json", "org", "show"]);
    let show = show.env("OCORE_PROFILE", installation.home.join("profile-bob@example.com.json")).output()?;
    ensure!(serde_json::from_slice::<Value>(&show.stdout)?["name"] == "Analytical Engines", "{show:?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn outsiders_learn_nothing_of_the_inside_and_tenants_do_not_enter_its_directories() -> Result<()> {
    let mut installation = closed().await?;
    // As an earlier version left them.
    installation.terminate_server().await?;
    for name in ["repositories", "edge", "mail", "state"] {
        fs::set_permissions(installation.home.join(name), fs::Permissions::from_mode(0o755))?;
    }
    installation.serve(&[]).await?;
    for name in ["repositories", "edge", "mail", "state"] {
        ensure!(mode(&installation.home.join(name))? == 0o700, "{name}");
    }
    for name in ["secret", "metrics-token"] {
        ensure!(mode(&installation.home.join(name))? == 0o600, "{name}");
    }
    let http = reqwest::Client::new();
    let get = async |path: &str, token: Option<&str>| {
        let mut request = http.get(format!("{}{path}", installation.api_url()));
        if let Some(token) = token {
            request = request.bearer_auth(token);
        }
        let answer = request.send().await?;
        Ok::<_, anyhow::Error>((answer.status(), answer.text().await?))
    };
    let token = fs::read_to_string(installation.home.join("metrics-token"))?;
    for wrong in [None, Some(""), Some("ocore_x"), Some(&token[1..])] {
        let (status, text) = get("/metrics", wrong).await?;
        ensure!(status == StatusCode::UNAUTHORIZED && !text.contains("ocore_pool"), "{status} {text}");
        ensure!(get("/readyz", wrong).await? == (StatusCode::OK, r#"{"status":"ok"}"#.to_owned()));
    }
    ensure!(get("/metrics", Some(token.trim())).await?.1.contains("ocore_pool_bytes"));
    ensure!(get("/readyz", Some(token.trim())).await?.1.contains(r#""name":"edge""#));
    ensure!(get("/healthz", None).await?.0 == StatusCode::OK);

    // The edge dies: everybody sees that it is not ready, and the operator alone why.
    let edge: Value = serde_json::from_slice(&fs::read(installation.home.join("edge/process.json"))?)?;
    let pid = edge["identity"]["pid"].as_i64().context("no pid")?.to_string();
    ensure!(std::process::Command::new("kill").args(["-STOP", &pid]).status()?.success());
    let unready = eventually(Duration::from_secs(30), async || {
        let answer = get("/readyz", None).await.ok()?;
        (answer.0 == StatusCode::SERVICE_UNAVAILABLE).then_some(answer.1)
    })
    .await;
    let details = get("/readyz", Some(token.trim())).await;
    ensure!(std::process::Command::new("kill").args(["-CONT", &pid]).status()?.success());
    ensure!(unready.as_deref() == Some(r#"{"status":"unavailable"}"#), "{unready:?}");
    ensure!(details?.1.contains("\"message\""));
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn behind_a_proxy_each_client_counts_for_itself_and_nobody_speaks_for_another() -> Result<()> {
    let environment = vec![
        ("OCORE__AUTH__OPEN_SIGNUP".to_owned(), "true".to_owned()),
        ("OCORE__AUTH__SIGNUPS_PER_HOUR".to_owned(), "3".to_owned()),
        ("OCORE__TRUSTED_PROXIES".to_owned(), "127.0.0.1, 10.0.0.0/8".to_owned()),
    ];
    let installation = Installation::start(env!("CARGO_BIN_EXE_ocore"), Options { environment, ..Options::default() }).await?;
    installation.owner("ada@example.com", "Analytical Engines").await?;
    let http = reqwest::Client::new();
    let call = async |path: &str, forwarded_for: &str, body: Value| {
        let request = http.post(format!("{}/api{path}", installation.api_url())).header("x-forwarded-for", forwarded_for).json(&body);
        Ok::<_, anyhow::Error>(request.send().await?.status())
    };
    let guess = json!({ "email": "ada@example.com", "password": "wrong horse 1" });
    let right = json!({ "email": "ada@example.com", "password": PASSWORD });
    for number in 0..10 {
        // What the client itself claims changes each time; what the proxies add is the same client.
        let chain = format!("198.51.100.{number}, 203.0.113.9, 10.0.0.7");
        ensure!(call("/auth/login", &chain, guess.clone()).await? == StatusCode::UNAUTHORIZED);
    }
    ensure!(call("/auth/login", "198.51.100.99, 203.0.113.9", right.clone()).await? == StatusCode::TOO_MANY_REQUESTS);
    ensure!(call("/auth/login", "203.0.113.10", right.clone()).await? == StatusCode::OK);

    for number in 0..5 {
        let body = json!({ "email": format!("user{number}@example.com"), "name": "User", "password": PASSWORD });
        let status = call("/auth/signup", &format!("198.51.100.{number}, [2001:db8:1:2::{number}]:4711"), body).await?;
        let expected = if number < 3 { StatusCode::CREATED } else { StatusCode::TOO_MANY_REQUESTS };
        ensure!(status == expected, "{number}: {status}");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_configuration_that_others_can_write_or_whose_secrets_they_can_read_is_refused() -> Result<()> {
    let directory = tempfile::tempdir()?;
    let file = directory.path().join("ocore.toml");
    let path = file.display().to_string();
    let ocore = |arguments: &[&str]| {
        let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_ocore"));
        command.args(["--config", &path]).args(arguments).env_remove("DATABASE_URL").output()
    };
    let chmod = |mode: u32| fs::set_permissions(&file, fs::Permissions::from_mode(mode));
    let home = directory.path().join("home");
    let plain = format!("home = {:?}\n", home.display().to_string());
    fs::write(&file, &plain)?;
    chmod(0o644)?;
    let shown = ocore(&["config"])?;
    ensure!(shown.status.success(), "{shown:?}");

    // It says which programs root runs.
    for mode in [0o664, 0o646, 0o666] {
        chmod(mode)?;
        let refused = ocore(&["config"])?;
        let words = String::from_utf8_lossy(&refused.stderr).into_owned();
        ensure!(!refused.status.success() && words.contains(&format!("chmod 600 {path}")), "{words}");
    }
    let secrets = [
        ("auth.secret", "[auth]\nsecret = 'hunter2-hunter2-hunter2-hunter2-hunter2'"),
        ("database.url", "[database]\nurl = 'postgres://ocore:hunter2@127.0.0.1:9/ocore'"),
        ("database.url", "database.url = 'postgres:///ocore?host=/nowhere&password=hunter2'"),
        ("mail.relay_url", "[mail]\nrelay_url = 'smtp://mailer:hunter2@127.0.0.1:9'"),
        ("metrics.token", "metrics = { token = 'hunter2-hunter2-hunter2' }"),
    ];
    for (name, text) in secrets {
        fs::write(&file, format!("{plain}{text}\n"))?;
        for mode in [0o644, 0o640, 0o604] {
            chmod(mode)?;
            for command in [&["config"][..], &["serve"], &["edge"], &["mail-catcher"]] {
                let refused = ocore(command)?;
                let words = String::from_utf8_lossy(&refused.stderr).into_owned();
                ensure!(!refused.status.success() && words.contains(name) && words.contains(&format!("chmod 600 {path}")), "{words}");
                ensure!(!words.contains("hunter2"), "{words}");
            }
            let doctor = ocore(&["doctor"])?;
            let found = String::from_utf8_lossy(&doctor.stdout).into_owned();
            ensure!(!doctor.status.success() && found.contains("✘ configuration file") && found.contains("chmod 600"), "{found}");
        }
        chmod(0o600)?;
        let shown = ocore(&["config"])?;
        let words = String::from_utf8_lossy(&shown.stdout).into_owned();
        ensure!(shown.status.success() && words.contains("***") && !words.contains("hunter2"), "{words}");
    }
    // What is no TOML is told without the line, which may be the secret's.
    fs::write(&file, "[auth]\nsecret = hunter2\n")?;
    let broken = ocore(&["config"])?;
    ensure!(!broken.status.success() && !String::from_utf8_lossy(&broken.stderr).contains("hunter2"), "{broken:?}");

    // Somebody else's file, whatever its mode: they can change that.
    fs::write(&file, &plain)?;
    std::os::unix::fs::chown(&file, Some(65534), Some(65534))?;
    let refused = ocore(&["config"])?;
    let words = String::from_utf8_lossy(&refused.stderr).into_owned();
    ensure!(!refused.status.success() && words.contains("chown root:root"), "{words}");
    ensure!(!home.exists());
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_secret_that_the_server_keeps_itself_is_refused_when_others_can_read_it() -> Result<()> {
    let mut installation = closed().await?;
    installation.terminate_server().await?;
    let secret = installation.home.join("secret");
    // A backup was put back carelessly.
    fs::set_permissions(&secret, fs::Permissions::from_mode(0o644))?;
    let refused = installation.command(&["serve"]).output()?;
    let words = String::from_utf8_lossy(&refused.stderr).into_owned();
    ensure!(!refused.status.success() && words.contains(&format!("chmod 600 {}", secret.display())), "{words}");
    fs::set_permissions(&secret, fs::Permissions::from_mode(0o600))?;
    installation.serve(&[]).await
}

#[tokio::test(flavor = "multi_thread")]
async fn doctor_warns_of_open_sign_up_where_others_than_this_machine_reach_it() -> Result<()> {
    let doctor = |settings: &[(&str, &str)]| -> Result<String> {
        let directory = tempfile::tempdir()?;
        let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_ocore"));
        command.args(["--json", "doctor"]).env_remove("DATABASE_URL").env("OCORE__HOME", directory.path());
        let output = command.envs(settings.iter().copied()).output()?;
        let checks: Value = serde_json::from_slice(&output.stdout)?;
        let check = checks["checks"].as_array().and_then(|checks| checks.iter().find(|check| check["name"] == "sign-up"));
        Ok(check.context("no such check")?["state"].as_str().unwrap_or_default().to_owned())
    };
    let open = ("OCORE__AUTH__OPEN_SIGNUP", "true");
    ensure!(doctor(&[])? == "ok");
    ensure!(doctor(&[open])? == "ok");
    ensure!(doctor(&[open, ("OCORE__LISTEN", "0.0.0.0:8700"), ("OCORE__PUBLIC_URL", "http://localhost:8700")])? == "warning");
    ensure!(doctor(&[open, ("OCORE__PUBLIC_URL", "https://ocore.example.com")])? == "warning");
    ensure!(doctor(&[("OCORE__PUBLIC_URL", "https://ocore.example.com")])? == "ok");
    Ok(())
}
