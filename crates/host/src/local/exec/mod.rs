//! The one seam through which programs run.
//!
//! No shell reads its arguments: a program gets them as they are, an environment that starts empty, and its own process group, so that the
//! whole group can be ended when its time is up, when somebody cancels, or when the future that waits for it is dropped.

mod launch;
mod outcome;
mod running;

use std::{
    collections::BTreeMap,
    ffi::{OsStr, OsString},
    io,
    os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
    path::{Path, PathBuf},
    process::Stdio,
    sync::Arc,
    time::Duration,
};

use tokio::{
    net::unix::pipe,
    process::{Child, Command},
};
use tokio_util::sync::CancellationToken;

pub use self::outcome::{ExecError, Finished};
pub(super) use self::running::Running;
pub use self::running::Started;
use self::{launch::ListeningSocket, running::GroupGuard};
use super::{
    cgroups::Group,
    forked::Forked,
    odoo::nursery::{ForkRequest, NoFork, Nursery},
    private::Mount,
    process::{Identity, YIELDING},
};
use crate::{
    api::{LogSink, Progress},
    error::Result,
};

/// How much of each output stream is kept when nothing else is asked for, in bytes.
const DEFAULT_OUTPUT_LIMIT: usize = 1024 * 1024;
/// A line that is longer than this is given to the sink in pieces, in bytes.
const LINE_LIMIT: u64 = 16 * 1024;
/// How long a grandchild may keep the output open after the program itself has ended.
const OUTPUT_GRACE: Duration = Duration::from_secs(2);
/// As if it took a fifth of the memory in question more than it does: beside a database that is enough, and among equals the largest still goes first.
const GOES_FIRST: &str = "200";
const SEARCH_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// The operating system's user that a program runs as.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RunAs {
    pub uid: u32,
    pub gid: u32,
    /// Supplementary groups; none but these.
    pub groups: Vec<u32>,
}

/// A program and everything about how it is to run.
#[derive(Clone)]
pub struct Program {
    path: PathBuf,
    args: Vec<OsString>,
    env: BTreeMap<OsString, OsString>,
    cwd: PathBuf,
    run_as: Option<RunAs>,
    has_network: bool,
    network: Option<PathBuf>,
    stdin: Vec<u8>,
    stdin_from: Option<Arc<OwnedFd>>,
    stdout_to: Option<Arc<OwnedFd>>,
    time_limit: Option<Duration>,
    output_limit: usize,
    lines: Option<Arc<dyn LogSink>>,
    cancel: Vec<CancellationToken>,
    group: Group,
    goes_first: bool,
    yields: bool,
    parent: Option<Parent>,
    sockets: Vec<ListeningSocket>,
    mounts: Vec<Mount>,
}

/// Whom a program may be forked from.
#[derive(Clone)]
struct Parent {
    nursery: Arc<Nursery>,
    modules: Vec<String>,
}

impl Program {
    /// The environment that every program begins with.
    const BASE: [(&'static str, &'static str); 3] = [("PATH", SEARCH_PATH), ("LANG", "C.UTF-8"), ("HOME", "/")];

    /// A program by path, or by name from the system's directories. It starts in `/` with `PATH`, `LANG` and `HOME` alone, as the user that
    /// this process runs as.
    pub fn new(program: impl AsRef<Path>) -> Self {
        Self {
            path: program.as_ref().to_owned(),
            args: Vec::new(),
            env: Self::BASE.into_iter().map(|(name, value)| (name.into(), value.into())).collect(),
            cwd: PathBuf::from("/"),
            run_as: None,
            has_network: true,
            network: None,
            stdin: Vec::new(),
            stdin_from: None,
            stdout_to: None,
            time_limit: None,
            output_limit: DEFAULT_OUTPUT_LIMIT,
            lines: None,
            cancel: Vec::new(),
            group: Group::default(),
            goes_first: false,
            yields: false,
            parent: None,
            sockets: Vec::new(),
            mounts: Vec::new(),
        }
    }

    pub fn arg(mut self, arg: impl AsRef<OsStr>) -> Self {
        self.args.push(arg.as_ref().to_owned());
        self
    }

    pub fn args<A: AsRef<OsStr>>(mut self, args: impl IntoIterator<Item = A>) -> Self {
        self.args.extend(args.into_iter().map(|arg| arg.as_ref().to_owned()));
        self
    }

    pub fn env(mut self, name: impl AsRef<OsStr>, value: impl AsRef<OsStr>) -> Self {
        self.env.insert(name.as_ref().to_owned(), value.as_ref().to_owned());
        self
    }

    pub fn cwd(mut self, cwd: impl AsRef<Path>) -> Self {
        cwd.as_ref().clone_into(&mut self.cwd);
        self
    }

    /// Runs as another user without a way to gain privileges again. Needs root.
    pub fn run_as(mut self, user: RunAs) -> Self {
        self.run_as = Some(user);
        self
    }

    /// Runs in a network namespace of its own, in which there is nothing, not even a loopback device. Unix sockets in the file system can
    /// still be reached (network_namespaces(7)). Needs root.
    pub fn without_network(mut self) -> Self {
        self.has_network = false;
        self
    }

    pub fn stdin(mut self, bytes: impl Into<Vec<u8>>) -> Self {
        self.stdin = bytes.into();
        self
    }

    /// Runs in the network namespace that this file stands for (`/proc/<pid>/ns/net`, namespaces(7)). Needs root.
    pub fn in_network(mut self, namespace: impl AsRef<Path>) -> Self {
        self.network = Some(namespace.as_ref().to_owned());
        self
    }

    /// Reads this as its standard input, instead of [`Program::stdin`]: a file, which it may seek in, or the end of a pipe, of which we keep no
    /// copy once it runs.
    pub fn stdin_from(mut self, input: impl Into<OwnedFd>) -> Self {
        self.stdin_from = Some(Arc::new(input.into()));
        self
    }

    /// Writes its standard output there; no line of it reaches the sink, and [`Finished::stdout`] is empty.
    pub fn stdout_to(mut self, output: impl Into<OwnedFd>) -> Self {
        self.stdout_to = Some(Arc::new(output.into()));
        self
    }

    pub fn time_limit(mut self, limit: Duration) -> Self {
        self.time_limit = Some(limit);
        self
    }

    /// How many bytes of each output stream [`Finished`] keeps. All lines reach the sink, whatever the limit is.
    pub fn output_limit(mut self, bytes: usize) -> Self {
        self.output_limit = bytes;
        self
    }

    /// Gives each line of both streams to the sink while the program runs.
    pub fn lines(mut self, sink: Arc<dyn LogSink>) -> Self {
        self.lines = Some(sink);
        self
    }

    /// Ends the program when the token is cancelled. May be given several times.
    pub fn cancel(mut self, token: CancellationToken) -> Self {
        self.cancel.push(token);
        self
    }

    /// Lines to the progress' log, and its cancellation.
    pub fn progress(self, progress: &Progress) -> Self {
        self.lines(Arc::clone(&progress.log)).cancel(progress.cancel.clone())
    }

    /// The control group that it is in before it is anybody's but ours.
    pub fn group(mut self, group: Group) -> Self {
        self.group = group;
        self
    }

    /// As [`Program::group`] was told; one that holds nobody otherwise.
    pub fn control_group(&self) -> &Group {
        &self.group
    }

    /// When memory is short, the kernel ends it and what it starts before others (`oom_score_adj`, proc(5)).
    pub fn goes_first(mut self) -> Self {
        self.goes_first = true;
        self
    }

    /// It and what it starts work only where nobody else needs the processor. It leads a session of its own for that, since the kernel may weigh
    /// sessions before it weighs processes.
    pub fn yields(mut self) -> Self {
        self.yields = true;
        self
    }

    /// Has it forked from a parent that has begun already, by whatever runs it recorded or detached; when that cannot be, it is started as ever.
    /// `modules` are the project's.
    pub(super) fn forked_from(mut self, nursery: Arc<Nursery>, modules: Vec<String>) -> Self {
        self.parent = Some(Parent { nursery, modules });
        self
    }

    /// Gives it a socket that is bound to that port, to listen there. Which descriptor that is, [`SOCKETS`](launch::SOCKETS) in its environment says. At most five.
    pub(super) fn socket(mut self, port: u16, socket: OwnedFd) -> Self {
        self.sockets.push((port, Arc::new(socket)));
        self
    }

    /// In a mount namespace of its own, in which root has made these (mount_namespaces(7)); what the machine mounts and unmounts it sees. Needs root.
    pub(super) fn mounts(mut self, mounts: Vec<Mount>) -> Self {
        self.mounts = mounts;
        self
    }

    /// The program's own name, for messages.
    pub fn name(&self) -> String {
        self.path.file_name().unwrap_or(self.path.as_os_str()).to_string_lossy().into_owned()
    }

    /// Whom it runs as, when that is another user.
    pub fn user(&self) -> Option<&RunAs> {
        self.run_as.as_ref()
    }

    /// Runs it to its end. The exit code is the caller's to judge.
    pub async fn run(self) -> Result<Finished, ExecError> {
        self.start()?.finish().await
    }

    /// Starts it; [`Started::finish`] waits. Dropping what is returned ends the whole process group.
    pub fn start(mut self) -> Result<Started, ExecError> {
        let name = self.name();
        let start_error = |source| ExecError::Start { program: name.clone(), source };
        let mut command = self.command(self.yields).map_err(start_error)?;
        if !self.yields {
            command.process_group(0);
        }
        let stdin = redirect(self.stdin_from.take()).map_err(start_error)?;
        let stdout = redirect(self.stdout_to.take()).map_err(start_error)?;
        command.stdin(stdin).stdout(stdout).stderr(Stdio::piped()).kill_on_drop(true);
        let mut child = self.spawn(&mut command)?;
        let group = GroupGuard { leader: child.id().and_then(|id| Identity::of(id.cast_signed())) };
        let stdin = child.stdin.take();
        let stdout = child.stdout.take().map(|stream| Box::new(stream) as Box<_>);
        let stderr = child.stderr.take().map(|stream| Box::new(stream) as Box<_>);
        Ok(Started { program: self, child: Running::Own(Box::new(child)), stdin, stdout, stderr, group })
    }

    /// As [`Program::start`], from its parent when it has one.
    pub(super) async fn start_warm(self) -> Result<Started, ExecError> {
        if !self.stdin.is_empty() || self.stdin_from.is_some() || self.stdout_to.is_some() {
            return self.start();
        }
        match self.fork_with_pipes().await {
            Ok(Some((mut forked, stdout, stderr, ending))) => {
                forked.announces_at(ending);
                let group = GroupGuard { leader: Some(forked.identity().clone()) };
                let mut started = Started {
                    program: self,
                    child: Running::Forked(Box::new(forked)),
                    stdin: None,
                    stdout: Some(Box::new(stdout)),
                    stderr: Some(Box::new(stderr)),
                    group,
                };
                started.child.go().await.map_err(|source| ExecError::Start { program: started.program.name(), source })?;
                Ok(started)
            }
            Ok(None) => self.start(),
            Err(source) => Err(ExecError::Start { program: self.name(), source }),
        }
    }

    /// The child, its output streams, and where it says with which code it will end.
    async fn fork_with_pipes(&self) -> io::Result<Option<(Forked, pipe::Receiver, pipe::Receiver, pipe::Receiver)>> {
        if self.parent.is_none() {
            return Ok(None);
        }
        let ((stdout, stdout_end), (stderr, stderr_end), (ending, ending_end)) = (io::pipe()?, io::pipe()?, io::pipe()?);
        let Some(forked) = self.fork(&stdout_end, &stderr_end, Some(&ending_end)).await else { return Ok(None) };
        // The child has opened its own ends.
        drop((stdout_end, stderr_end, ending_end));
        let receiver = |end: io::PipeReader| pipe::Receiver::from_owned_fd(end.into());
        Ok(Some((forked, receiver(stdout)?, receiver(stderr)?, receiver(ending)?)))
    }

    /// Starts it in a session of its own with both output streams appended to `log`, so that it outlives this process.
    pub(super) async fn start_detached(&self, log: std::fs::File) -> Result<Running, ExecError> {
        let start_error = |source| ExecError::Start { program: self.name(), source };
        if let Some(forked) = self.fork(&log, &log, None).await {
            let mut running = Running::Forked(Box::new(forked));
            running.go().await.map_err(start_error)?;
            return Ok(running);
        }
        let mut command = self.command(true).map_err(start_error)?;
        command.stdin(Stdio::null()).stdout(log.try_clone().map_err(start_error)?).stderr(log).kill_on_drop(false);
        Ok(Running::Own(Box::new(self.spawn(&mut command)?)))
    }

    /// A child of its parent that waits to be let go; `None` when there is no parent, or when it has to be started bare, which is said then.
    async fn fork(&self, stdout: &impl AsRawFd, stderr: &impl AsRawFd, ending: Option<&io::PipeWriter>) -> Option<Forked> {
        let parent = self.parent.as_ref()?;
        let forked = match self.fork_request(parent, stdout, stderr, ending) {
            Some(request) => {
                let sockets: Vec<BorrowedFd<'_>> = self.sockets.iter().map(|(_, socket)| socket.as_fd()).collect();
                parent.nursery.fork(&request, &sockets).await
            }
            None => Err(NoFork::Unfit("its arguments or its environment are not UTF-8".to_owned())),
        };
        parent.nursery.note(&self.name(), forked.as_ref().map(drop));
        forked.ok()
    }

    /// The child opens our descriptors by their names in `/proc`.
    fn fork_request(
        &self,
        parent: &Parent,
        stdout: &impl AsRawFd,
        stderr: &impl AsRawFd,
        ending: Option<&io::PipeWriter>,
    ) -> Option<ForkRequest> {
        let text = |word: &OsStr| word.to_str().map(ToOwned::to_owned);
        let user = self.run_as.as_ref()?;
        let ours = |fd: i32| format!("/proc/{}/fd/{fd}", std::process::id());
        Some(ForkRequest {
            python: text(self.path.as_os_str())?,
            args: self.args.iter().map(|arg| text(arg)).collect::<Option<_>>()?,
            env: self.environment().iter().map(|(name, value)| Some((text(name)?, text(value)?))).collect::<Option<_>>()?,
            cwd: text(self.cwd.as_os_str())?,
            uid: user.uid,
            gid: user.gid,
            groups: user.groups.clone(),
            network: self.has_network,
            stdout: ours(stdout.as_raw_fd()),
            stderr: ours(stderr.as_raw_fd()),
            modules: parent.modules.clone(),
            ending: ending.map(|end| ours(end.as_raw_fd())),
            groups_to_enter: self.group.procs_files().iter().map(|file| text(file.as_os_str())).collect::<Option<_>>()?,
            goes_first: self.goes_first.then(|| GOES_FIRST.to_owned()),
            nice: self.yields.then_some(YIELDING),
            mounts: self.mounts.iter().map(Mount::texts).collect::<Option<_>>()?,
        })
    }

    fn spawn(&self, command: &mut Command) -> Result<Child, ExecError> {
        command.spawn().map_err(|source| ExecError::Start { program: self.name(), source })
    }
}

fn redirect(fd: Option<Arc<OwnedFd>>) -> io::Result<Stdio> {
    match fd {
        Some(fd) => Ok(Arc::try_unwrap(fd).or_else(|shared| shared.try_clone())?.into()),
        None => Ok(Stdio::piped()),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;
    use crate::{
        error::HostError,
        local::{
            cgroups::Cgroups,
            config::{BuildLimits, InstanceLimits},
            private::Private,
        },
    };

    #[derive(Default)]
    struct Lines(Mutex<Vec<String>>);

    impl LogSink for Lines {
        fn line(&self, text: &str) {
            self.0.lock().unwrap().push(text.to_owned());
        }
    }

    #[tokio::test]
    async fn what_yields_does_so_in_a_session_of_its_own_and_ends_as_a_whole() {
        let script = "nice; cut -d' ' -f6 /proc/$$/stat; echo $$; cat /proc/$$/autogroup 2>/dev/null || echo 'without nice 10'";
        let finished = Program::new("sh").args(["-c", script]).yields().run().await.unwrap();
        let text = finished.stdout_text();
        let [nice, session, pid, autogroup] = text.lines().collect::<Vec<_>>()[..] else { panic!("{text}") };
        let ours = rustix::process::getpriority_process(None).unwrap();
        assert_eq!((nice.parse(), session), (Ok((ours + YIELDING).min(19)), pid));
        assert!(autogroup.ends_with("nice 10"), "{autogroup}");

        let token = CancellationToken::new();
        let started =
            Program::new("sh").args(["-c", "echo ready; sleep 1000 & sleep 1000"]).yields().cancel(token.clone()).start().unwrap();
        let pid = started.identity().unwrap().pid;
        let ours = || super::super::process::scan().into_iter().filter(|entry| entry.session == pid && !entry.is_dead()).count();
        while ours() < 3 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        token.cancel();
        assert!(matches!(started.finish().await, Err(ExecError::Cancelled { .. })));
        // What was killed takes a moment to go.
        while ours() > 0 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    #[tokio::test]
    async fn a_program_gets_its_input_and_nothing_of_our_environment() {
        let finished = Program::new("env").env("ONE", "a b;$(c)").run().await.unwrap();
        assert_eq!(finished.stdout_text(), "HOME=/\nLANG=C.UTF-8\nONE=a b;$(c)\nPATH=".to_owned() + SEARCH_PATH + "\n");
        let finished = Program::new("cat").stdin("x\ny").run().await.unwrap();
        assert_eq!(finished.stdout_text(), "x\ny");
    }

    #[tokio::test]
    async fn a_failure_ends_with_the_last_line_that_the_program_wrote() {
        let error = Program::new("ls").arg("/nowhere").run().await.unwrap().expect_success("nothing was listed").unwrap_err();
        assert_eq!(error.to_string(), "nothing was listed: ls: cannot access '/nowhere': No such file or directory");
        let error = HostError::from(Program::new("no-such-program").run().await.unwrap_err());
        assert!(error.to_string().contains("install it"), "{error}");
    }

    #[tokio::test]
    async fn all_lines_reach_the_sink_and_only_the_limit_is_kept() {
        let lines = Arc::new(Lines::default());
        let finished = Program::new("seq").arg("1000").output_limit(10).lines(lines.clone()).run().await.unwrap();
        assert_eq!(finished.stdout, b"1\n2\n3\n4\n5\n");
        assert_eq!(lines.0.lock().unwrap().len(), 1000);
    }

    #[tokio::test]
    async fn cancelling_and_running_out_of_time_end_the_whole_group() {
        let token = CancellationToken::new();
        let started = Program::new("sh").args(["-c", "sleep 1000 & sleep 1000"]).cancel(token.clone()).start().unwrap();
        let group = started.identity().unwrap().pid;
        token.cancel();
        assert!(matches!(started.finish().await, Err(ExecError::Cancelled { .. })));
        // A killed member may stay for a moment until it is reaped.
        while rustix::process::test_kill_process_group(rustix::process::Pid::from_raw(group).unwrap()).is_ok() {
            if super::super::process::scan().iter().all(|entry| entry.group != group || entry.is_dead()) {
                break;
            }
            tokio::task::yield_now().await;
        }
        let error = Program::new("sleep").arg("1000").time_limit(Duration::from_millis(20)).run().await.unwrap_err();
        assert!(matches!(error, ExecError::TimedOut { .. }));
    }

    #[tokio::test]
    async fn another_user_has_only_the_groups_that_it_was_given() {
        if !rustix::process::geteuid().is_root() {
            return;
        }
        let user = RunAs { uid: 41_234, gid: 41_235, groups: vec![41_236] };
        let finished = Program::new("id").run_as(user).run().await.unwrap();
        assert_eq!(finished.stdout_text(), "uid=41234 gid=41235 groups=41235,41236\n");
    }

    #[tokio::test]
    async fn what_it_is_told_is_in_force_when_it_is_its_user_and_not_before() {
        if !rustix::process::geteuid().is_root() {
            return;
        }
        let user = || RunAs { uid: 41_234, gid: 41_234, groups: vec![] };
        let value = "it's $(id) `id` \\n \"quoted\"\nand a second line";
        let finished = Program::new("env").arg("--null").env("WORDS", value).env("PATH", "/usr/bin").run_as(user()).run().await.unwrap();
        let mut found: Vec<&str> = finished.stdout.split(|byte| *byte == 0).map(|entry| std::str::from_utf8(entry).unwrap()).collect();
        found.sort_unstable();
        assert_eq!(found, ["", "HOME=/", "LANG=C.UTF-8", "PATH=/usr/bin", &format!("WORDS={value}")]);
        assert_eq!(finished.stderr_text(), "");

        // What the loader is told it tells of each program that it loads: of none that root runs (`setpriv` is linked with it, `true` is not).
        let finished = Program::new("true").env("LD_DEBUG", "files").run_as(user()).without_network().yields().run().await.unwrap();
        let said = finished.stderr_text();
        assert!(said.contains("calling init") && !said.contains("libcap-ng"), "{said}");
        // Nor what a shell reads when it begins.
        let directory = tempfile::tempdir().unwrap();
        let (begun, script) = (directory.path().join("begun"), directory.path().join("script"));
        std::fs::write(&script, format!("id -u >>{}\n", begun.display())).unwrap();
        let program = Program::new("sh")
            .args(["-c", "true"])
            .env("ENV", &script)
            .env("BASH_ENV", &script)
            .env("PS4", "$(id)")
            .env("SHELLOPTS", "xtrace");
        program.run_as(user()).yields().run().await.unwrap();
        assert!(!begun.exists());
    }

    #[tokio::test]
    async fn what_a_program_leaves_in_temporary_directories_of_its_own_is_gone_with_it() {
        if !rustix::process::geteuid().is_root() {
            return;
        }
        let run = async || {
            let script = "touch /tmp/oc-left /var/tmp/oc-left /dev/shm/oc-left ~/oc-home; ls /tmp /var/tmp /dev/shm; echo $HOME";
            let user = RunAs { uid: 41_236, gid: 41_236, groups: vec![] };
            let program = Program::new("sh").args(["-c", script]).run_as(user).without_network().private(&Private::Fleeting);
            let finished = program.run().await.unwrap();
            assert_eq!(finished.stderr_text(), "");
            finished.stdout_text()
        };
        let seen = run().await;
        assert_eq!(seen, "/dev/shm:\noc-left\n\n/tmp:\noc-home\noc-left\n\n/var/tmp:\noc-left\n/tmp\n");
        assert_eq!(run().await, seen);
        for place in ["/tmp", "/var/tmp", "/dev/shm"] {
            assert!(!Path::new(place).join("oc-left").exists(), "{place}");
        }
        // Without them it does not begin.
        let lost = Private::Kept { temporary: "/nowhere".into(), home: "/".into() };
        let outcome = Program::new("echo").arg("begun").private(&lost).run().await.unwrap();
        assert!(!outcome.status.success() && outcome.stdout.is_empty(), "{outcome:?}");
    }

    fn no_limits() -> Cgroups {
        Cgroups::detect(Path::new("/"), InstanceLimits::default(), BuildLimits::default())
    }

    #[tokio::test]
    async fn a_process_is_in_its_control_group_before_it_is_anybodys_and_ends_with_it() {
        let cgroups = no_limits();
        let name = format!("test-{}", std::process::id());
        let group = cgroups.prepare_build(&name);
        if !group.is_whole() {
            eprintln!("this machine has no unified hierarchy of control groups");
            return;
        }
        let user = RunAs { uid: 41_235, gid: 41_235, groups: vec![] };
        let own = Program::new("grep").args(["-o", "ocore/test-[0-9]*", "/proc/self/cgroup"]).run_as(user.clone()).group(group.clone());
        assert!(own.run().await.unwrap().stdout_text().lines().any(|place| place == format!("ocore/{name}")));
        // One that cannot be put there does not begin.
        let elsewhere = no_limits().prepare_build(&format!("{name}-gone"));
        elsewhere.remove();
        let outcome = Program::new("echo").arg("begun").run_as(user.clone()).group(elsewhere).run().await.unwrap();
        assert!(!outcome.status.success() && outcome.stdout.is_empty(), "{outcome:?}");

        let chain = "import os\nos.setsid()\nprint('ready', flush=True)\nwhile True:\n    if os.fork(): os._exit(0)";
        let started = Program::new("/usr/bin/python3").args(["-c", chain]).run_as(user).group(group.clone()).start().unwrap();
        while group.processes().is_empty() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        group.end().await.unwrap();
        assert_eq!(group.processes(), Vec::<i32>::new());
        drop(started);
        cgroups.remove_build(&name);
        cgroups.remove_build(&format!("{name}-gone"));
    }

    #[tokio::test]
    async fn a_program_without_network_reaches_no_address_not_even_of_this_machine() {
        if !rustix::process::geteuid().is_root() {
            return;
        }
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let connect = format!("exec 3<>/dev/tcp/127.0.0.1/{}", listener.local_addr().unwrap().port());
        let program = |script: &str| Program::new("bash").args(["-c", script]).run_as(RunAs { uid: 41_234, gid: 41_234, groups: vec![] });
        assert!(program(&connect).run().await.unwrap().status.success());
        let finished = program(&connect).without_network().run().await.unwrap();
        assert!(finished.stderr_text().contains("Network is unreachable"), "{}", finished.stderr_text());
        let started = program("exec sleep 1000").without_network().start().unwrap();
        let pid = started.identity().unwrap().pid;
        drop(started);
        while std::fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| !stat.contains(") Z ")) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
}
