//! Where Git may go for a tenant, with whose key, and what comes back of it: real ssh servers, and servers that are none of Git's.

use std::{
    fs,
    net::TcpListener,
    path::Path,
    process::{Child, Command, Stdio},
    sync::Arc,
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use ocore_control::{
    Control, Settings,
    git::{self, ConnectRepository},
    projects::{self, NewProject, Project},
};
use ocore_host::{HostError, LogSink, Progress, testing::Sandbox};
use ocore_model::project::ModuleSelection;
use ocore_testkit::{Repository, Store, store::Owned, wait::eventually};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio_util::sync::CancellationToken;

struct World {
    store: Store,
    owner: Owned,
    project: Project,
    _sandbox: Sandbox,
}

impl World {
    async fn new(change: impl FnOnce(&mut Settings)) -> Result<Self> {
        let sandbox = Sandbox::new()?;
        let store = Store::with_host(sandbox.host().await?).await?.with_settings(change);
        let owner = store.organization("acme").await?;
        let new = NewProject {
            name: "shop".to_owned(),
            slug: Some("shop".to_owned()),
            description: String::new(),
            odoo_version: Some("19.0".to_owned()),
            module_selection: ModuleSelection::Own,
            with_demo: false,
            create_environment_on_push: false,
            protects_production: false,
        };
        let project = projects::create(&store.control, &owner.scope.grant()?, new).await?;
        Ok(Self { store, owner, project, _sandbox: sandbox })
    }

    fn control(&self) -> &Control {
        &self.store.control
    }

    /// Connects a repository and lets the server have the project's new key.
    async fn connect(&self, server: &SshServer, url: &str) -> Result<()> {
        let connected = git::connect(self.control(), &self.owner.scope.grant()?, self.project.id, connection(url)).await?;
        server.authorize(&connected.info.deploy_key.context("a key")?)
    }

    async fn fetch(&self) -> Result<(), String> {
        let grant = self.owner.scope.grant().map_err(|error| error.to_string())?;
        git::fetch(self.control(), &grant, self.project.id).await.map(drop).map_err(|error| error.to_string())
    }

    async fn export(&self, sha: &str) -> Result<(), String> {
        let progress = Progress { log: Arc::new(Silent), cancel: CancellationToken::new() };
        let sha = sha.parse().map_err(|_| "no commit".to_owned())?;
        match git::export(self.control(), self.project.id, &sha, progress).await {
            Ok(_) => Ok(()),
            Err(HostError::Rejected { summary, excerpt }) => Err(format!("{summary}\n{excerpt}")),
            Err(error) => Err(format!("broken: {error}")),
        }
    }
}

struct Silent;

impl LogSink for Silent {
    fn line(&self, _: &str) {}
}

fn connection(url: &str) -> ConnectRepository {
    ConnectRepository { url: url.to_owned(), branch: "main".to_owned(), token: None }
}

/// OpenSSH's server with one host key; root gets in with the keys that it was told.
struct SshServer {
    directory: TempDir,
    port: u16,
    running: Option<Child>,
}

impl SshServer {
    fn new() -> Result<Self> {
        // Where it keeps its children without rights; a package's service makes it otherwise.
        fs::create_dir_all("/run/sshd")?;
        let directory = tempfile::tempdir()?;
        for (name, kind) in [("one", "ed25519"), ("other", "ed25519"), ("rsa", "rsa")] {
            let file = directory.path().join(name);
            let made = Command::new("ssh-keygen").args(["-q", "-t", kind, "-N", "", "-f"]).arg(&file).status()?;
            ensure!(made.success(), "ssh-keygen");
        }
        fs::write(directory.path().join("authorized"), "")?;
        let port = TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
        Ok(Self { directory, port, running: None })
    }

    fn path(&self, name: &str) -> String {
        self.directory.path().join(name).display().to_string()
    }

    /// Runs with this host key and no other.
    async fn run(&mut self, key: &str) -> Result<()> {
        self.stop()?;
        let configuration = format!(
            "ListenAddress 127.0.0.1:{}\nHostKey {}\nAuthorizedKeysFile {}\nPermitRootLogin yes\nStrictModes no\nUsePAM no\n\
             PasswordAuthentication no\nKbdInteractiveAuthentication no\nPidFile none\n",
            self.port,
            self.path(key),
            self.path("authorized")
        );
        let file = self.path("config");
        fs::write(&file, configuration)?;
        let child = Command::new("/usr/sbin/sshd").args(["-D", "-e", "-f", &file]).stdin(Stdio::null()).stderr(Stdio::null()).spawn();
        self.running = Some(child.context("install openssh-server")?);
        let port = self.port;
        eventually(Duration::from_secs(30), async || tokio::net::TcpStream::connect(("127.0.0.1", port)).await.ok())
            .await
            .context("sshd")
            .map(drop)
    }

    fn stop(&mut self) -> Result<()> {
        if let Some(mut child) = self.running.take() {
            child.kill()?;
            child.wait()?;
        }
        Ok(())
    }

    fn authorize(&self, key: &str) -> Result<()> {
        Ok(fs::write(self.path("authorized"), format!("{key}\n"))?)
    }

    fn fingerprint(&self, key: &str) -> Result<String> {
        let output = Command::new("ssh-keygen").arg("-lf").arg(self.path(&format!("{key}.pub"))).output()?;
        let text = String::from_utf8(output.stdout)?;
        Ok(text.split(' ').nth(1).context("a fingerprint")?.to_owned())
    }

    fn url(&self, path: &Path) -> String {
        format!("ssh://root@127.0.0.1:{}{}", self.port, path.display())
    }
}

impl Drop for SshServer {
    fn drop(&mut self) {
        let _ = self.stop();
    }
}

/// A bare repository at a path, with one module and, if wanted, a submodule.
fn publish(path: &Path, submodule: Option<(&str, &str)>) -> Result<String> {
    let repository = Repository::new()?;
    let name = path.file_stem().context("a name")?.to_string_lossy().into_owned();
    repository.write(&format!("{name}/__manifest__.py"), "{'name': 'A module'}\n")?;
    if let Some((url, commit)) = submodule {
        repository.write(".gitmodules", &format!("[submodule \"lib\"]\n\tpath = lib\n\turl = {url}\n"))?;
        repository.git(&["add", "--all"])?;
        repository.git(&["update-index", "--add", "--cacheinfo", &format!("160000,{commit},lib")])?;
        repository.git(&["commit", "--quiet", "--message", "With a submodule"])?;
    } else {
        repository.commit("Begin")?;
    }
    fs::create_dir_all(path)?;
    repository.git(&["clone", "--quiet", "--bare", ".", &path.display().to_string()])?;
    repository.git(&["rev-parse", "HEAD"])
}

#[tokio::test(flavor = "multi_thread")]
async fn the_key_of_an_ssh_host_stays_what_it_was_until_an_owner_accepts_another() -> Result<()> {
    let mut server = SshServer::new()?;
    let repositories = tempfile::tempdir()?;
    let path = repositories.path().join("acme/shop.git");
    publish(&path, None)?;
    let world = World::new(|settings| settings.allow_local_repositories = true).await?;
    let (control, url) = (world.control(), server.url(&path));
    server.run("one").await?;
    world.connect(&server, &url).await?;
    world.fetch().await.map_err(anyhow::Error::msg)?;
    let (first, other) = (server.fingerprint("one")?, server.fingerprint("other")?);

    server.run("other").await?;
    let refused = world.fetch().await.unwrap_err();
    assert!(refused.contains(&first) && refused.contains(&other) && refused.contains("accept-host-key"), "{refused}");
    // The way around: forget the repository and connect it again.
    git::disconnect(control, &world.owner.scope.grant()?, world.project.id).await?;
    world.connect(&server, &url).await?;
    assert!(world.fetch().await.unwrap_err().contains(&other));
    // Another way around: a key of a kind that is not known of that host, which ssh takes for a host that it has never seen.
    server.run("rsa").await?;
    let rsa = server.fingerprint("rsa")?;
    assert!(world.fetch().await.unwrap_err().contains(&rsa));

    server.run("other").await?;
    let grant = world.owner.scope.grant()?;
    let accept = async |fingerprint: &str| git::accept_host_key(control, &grant, world.project.id, fingerprint, None).await;
    assert!(accept("SHA256:short").await.is_err());
    let differs = accept(&first).await.unwrap_err().to_string();
    assert!(differs.contains(&other) && differs.contains("nothing was changed"), "{differs}");
    assert!(world.fetch().await.is_err());
    accept(&other).await?;
    world.fetch().await.map_err(anyhow::Error::msg)?;
    server.run("one").await?;
    assert!(world.fetch().await.unwrap_err().contains(&first), "the key before is another one now");
    let entries: i64 = sqlx::query_scalar("select count(*) from audit_entries where action = 'repository.host_key_accepted'")
        .fetch_one(&control.pool)
        .await?;
    assert_eq!(entries, 1);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn the_projects_key_opens_its_own_directory_and_what_an_owner_names_and_nothing_else() -> Result<()> {
    let mut server = SshServer::new()?;
    server.run("one").await?;
    let repositories = tempfile::tempdir()?;
    let at = |path: &str| repositories.path().join(path);
    let beside = publish(&at("acme/lib.git"), None)?;
    let secret = publish(&at("other/secret.git"), None)?;
    let own = publish(&at("acme/shop.git"), Some(("../lib.git", &beside)))?;
    let foreign = publish(&at("acme/greedy.git"), Some((&server.url(&at("other/secret.git")), &secret)))?;
    let disguised = format!("{}/acme/../other/secret.git", server.url(repositories.path()));
    let dotted = publish(&at("acme/dotted.git"), Some((&disguised, &secret)))?;
    let late = publish(&at("acme/late.git"), Some((&server.url(&at("other/secret.git")), &secret)))?;
    let world = World::new(|settings| settings.allow_local_repositories = true).await?;

    world.connect(&server, &server.url(&at("acme/shop.git"))).await?;
    world.fetch().await.map_err(anyhow::Error::msg)?;
    world.export(&own).await.map_err(anyhow::Error::msg)?;
    for (name, commit) in [("greedy", &foreign), ("dotted", &dotted)] {
        world.connect(&server, &server.url(&at(&format!("acme/{name}.git")))).await?;
        world.fetch().await.map_err(anyhow::Error::msg)?;
        let refused = world.export(commit).await.unwrap_err();
        assert!(refused.contains("lies beside its repository only"), "{name}: {refused}");
    }

    // What an owner names may be read.
    world.connect(&server, &server.url(&at("acme/greedy.git"))).await?;
    world.fetch().await.map_err(anyhow::Error::msg)?;
    let grant = world.owner.scope.grant()?;
    let set = async |sources: &[String]| git::set_submodule_sources(world.control(), &grant, world.project.id, sources.to_vec()).await;
    for wrong in ["https://github.com/other", "ssh://root@127.0.0.1:1/other", "ssh://root@127.0.0.1/x/../y", "nonsense"] {
        assert!(set(&[wrong.to_owned()]).await.is_err(), "{wrong}");
    }
    let sources = [server.url(&at("other"))];
    assert_eq!(set(&sources).await?.submodule_sources, sources);
    world.export(&foreign).await.map_err(anyhow::Error::msg)?;
    // What nobody names any more may not, though it was fetched before: it is named for one repository.
    world.connect(&server, &server.url(&at("acme/late.git"))).await?;
    world.fetch().await.map_err(anyhow::Error::msg)?;
    assert!(world.export(&late).await.unwrap_err().contains("lies beside its repository only"));
    Ok(())
}

/// Listens, and says this to everybody who comes.
async fn speaking(words: &'static str) -> Result<u16> {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
    let port = listener.local_addr()?.port();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let _ = stream.write_all(words.as_bytes()).await;
                let _ = stream.shutdown().await;
                let mut asked = [0; 4096];
                while stream.read(&mut asked).await.is_ok_and(|read| read > 0) {}
            });
        }
    });
    Ok(port)
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_reads_over_the_servers_shoulder_what_listens_somewhere() -> Result<()> {
    let banner = speaking("220 hush-hush internal mail ESMTP\r\n").await?;
    let ssh = speaking("SSH-1.5-hush-hush\r\n").await?;
    let page = "HTTP/1.1 403 Forbidden\r\nContent-Type: text/plain\r\nContent-Length: 9\r\nConnection: close\r\n\r\nhush-hush";
    let (page, missing) = (
        speaking(page).await?,
        speaking("HTTP/1.1 404 hush-hush\r\nContent-Type: text/plain\r\nContent-Length: 9\r\n\r\nhush-hush").await?,
    );
    let refs =
        "HTTP/1.1 200 OK\r\nContent-Type: application/x-git-upload-pack-advertisement\r\nConnection: close\r\n\r\n0021# ERR hush-hush";
    let refs = speaking(refs).await?;
    let closed = TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
    let world = World::new(|settings| settings.allow_local_repositories = true).await?;
    let grant = world.owner.scope.grant()?;
    for address in [
        format!("ssh://git@127.0.0.1:{banner}/acme/shop"),
        format!("ssh://git@127.0.0.1:{ssh}/acme/shop"),
        format!("https://127.0.0.1:{banner}/acme/shop"),
        format!("http://127.0.0.1:{page}/acme/shop"),
        format!("http://127.0.0.1:{missing}/acme/shop"),
        format!("http://127.0.0.1:{refs}/acme/shop"),
        format!("https://127.0.0.1:{closed}/acme/shop"),
    ] {
        let access = git::validate(world.control(), &grant, world.project.id, Some(connection(&address))).await?;
        assert!(!access.accessible && !access.message.contains("hush"), "{address}: {}", access.message);
        if address.starts_with("ssh") {
            git::connect(world.control(), &grant, world.project.id, connection(&address)).await?;
            let refused = world.fetch().await.unwrap_err();
            assert!(!refused.contains("hush"), "{address}: {refused}");
            let error = git::info(world.control(), &world.owner.scope.grant()?, world.project.id).await?.error;
            assert!(error.is_some_and(|error| !error.contains("hush")), "{address}");
        } else {
            let refused = git::connect(world.control(), &grant, world.project.id, connection(&address)).await.unwrap_err();
            assert!(!refused.to_string().contains("hush"), "{address}: {refused}");
        }
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_fetch_brings_no_more_than_it_may() -> Result<()> {
    let world = World::new(|settings| {
        settings.allow_file_repositories = true;
        settings.fetch_limit = 1 << 20;
    })
    .await?;
    let repository = Repository::new()?;
    repository.write("shop/__manifest__.py", "{'name': 'Shop'}\n")?;
    repository.commit("Begin")?;
    let url = format!("file://{}", repository.path().display());
    git::connect(world.control(), &world.owner.scope.grant()?, world.project.id, connection(&url)).await?;
    world.fetch().await.map_err(anyhow::Error::msg)?;
    // What does not shrink.
    let mut state = 1_u64;
    let noise: String = (0..4 << 20)
        .map(|_| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            char::from(b'!' + ((state >> 33) % 90) as u8)
        })
        .collect();
    repository.write("shop/noise.txt", &noise)?;
    repository.commit("Noise")?;
    let refused = world.fetch().await.unwrap_err();
    assert!(refused.contains("larger than a fetch may be"), "{refused}");
    Ok(())
}
