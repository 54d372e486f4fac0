//! The one seam through which programs run.
//!
//! No shell reads its arguments: a program gets them as they are, an environment that starts empty, and its own process group, so that the
//! whole group can be ended when its time is up, when somebody cancels, or when the future that waits for it is dropped.

mod outcome;
mod running;

use std::{
    collections::BTreeMap,
    ffi::{OsStr, OsString},
    io,
    os::fd::{AsRawFd, OwnedFd},
    path::{Path, PathBuf},
    process::Stdio,
    sync::Arc,
    time::Duration,
};

use rustix::process::{Pid, setpriority_process};
use tokio::{
    net::unix::pipe,
    process::{Child, Command},
};
use tokio_util::sync::CancellationToken;

pub use self::outcome::{ExecError, Finished};
use self::running::GroupGuard;
pub(super) use self::running::Running;
pub use self::running::Started;
use super::{
    forked::Forked,
    odoo::nursery::{ForkRequest, NoFork, Nursery},
    process::{YIELDING, weigh_session},
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
/// In a session of its own, before it becomes another user.
const YIELD: &str = "echo NICE 2>/dev/null >/proc/self/autogroup; exec nice -n NICE \"$@\"";
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
    stdin: Vec<u8>,
    stdin_from: Option<Arc<OwnedFd>>,
    stdout_to: Option<Arc<OwnedFd>>,
    time_limit: Option<Duration>,
    output_limit: usize,
    lines: Option<Arc<dyn LogSink>>,
    cancel: Vec<CancellationToken>,
    cgroups: Vec<PathBuf>,
    goes_first: bool,
    yields: bool,
    parent: Option<Parent>,
}

/// Whom a program may be forked from.
#[derive(Clone)]
struct Parent {
    nursery: Arc<Nursery>,
    modules: Vec<String>,
}

impl Program {
    /// A program by path, or by name from the system's directories. It starts in `/` with `PATH`, `LANG` and `HOME` alone, as the user that
    /// this process runs as.
    pub fn new(program: impl AsRef<Path>) -> Self {
        let env = [("PATH", SEARCH_PATH), ("LANG", "C.UTF-8"), ("HOME", "/")];
        Self {
            path: program.as_ref().to_owned(),
            args: Vec::new(),
            env: env.into_iter().map(|(name, value)| (name.into(), value.into())).collect(),
            cwd: PathBuf::from("/"),
            run_as: None,
            has_network: true,
            stdin: Vec::new(),
            stdin_from: None,
            stdout_to: None,
            time_limit: None,
            output_limit: DEFAULT_OUTPUT_LIMIT,
            lines: None,
            cancel: Vec::new(),
            cgroups: Vec::new(),
            goes_first: false,
            yields: false,
            parent: None,
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

    /// `cgroup.procs` files that the process is written to when it has started.
    pub fn cgroups(mut self, procs_files: Vec<PathBuf>) -> Self {
        self.cgroups = procs_files;
        self
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
        let mut command = self.command(self.yields);
        if !self.yields {
            command.process_group(0);
        }
        let stdin = redirect(self.stdin_from.take()).map_err(|source| ExecError::Start { program: self.name(), source })?;
        let stdout = redirect(self.stdout_to.take()).map_err(|source| ExecError::Start { program: self.name(), source })?;
        command.stdin(stdin).stdout(stdout).stderr(Stdio::piped()).kill_on_drop(true);
        let mut child = self.spawn(&mut command)?;
        let group = GroupGuard { group: child.id().and_then(|id| Pid::from_raw(id.cast_signed())), leader: None };
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
            Ok(Some((forked, stdout, stderr))) => {
                let group = GroupGuard { group: Pid::from_raw(forked.identity().pid), leader: Some(forked.identity().clone()) };
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

    async fn fork_with_pipes(&self) -> io::Result<Option<(Forked, pipe::Receiver, pipe::Receiver)>> {
        if self.parent.is_none() {
            return Ok(None);
        }
        let ((stdout, stdout_end), (stderr, stderr_end)) = (io::pipe()?, io::pipe()?);
        let Some(forked) = self.fork(&stdout_end, &stderr_end, true).await else { return Ok(None) };
        // The child has opened its own ends.
        drop((stdout_end, stderr_end));
        let receiver = |end: io::PipeReader| pipe::Receiver::from_owned_fd(end.into());
        Ok(Some((forked, receiver(stdout)?, receiver(stderr)?)))
    }

    /// Starts it in a session of its own with both output streams appended to `log`, so that it outlives this process.
    pub(super) async fn start_detached(&self, log: std::fs::File) -> Result<Running, ExecError> {
        let start_error = |source| ExecError::Start { program: self.name(), source };
        if let Some(forked) = self.fork(&log, &log, false).await {
            let mut running = Running::Forked(Box::new(forked));
            running.go().await.map_err(start_error)?;
            return Ok(running);
        }
        let mut command = self.command(true);
        command.stdin(Stdio::null()).stdout(log.try_clone().map_err(start_error)?).stderr(log).kill_on_drop(false);
        Ok(Running::Own(Box::new(self.spawn(&mut command)?)))
    }

    /// A child of its parent that waits to be let go; `None` when there is no parent, or when it has to be started bare, which is said then.
    async fn fork(&self, stdout: &impl AsRawFd, stderr: &impl AsRawFd, wait: bool) -> Option<Forked> {
        let parent = self.parent.as_ref()?;
        let forked = match self.fork_request(parent, stdout, stderr, wait) {
            Some(request) => parent.nursery.fork(&request).await,
            None => Err(NoFork::Unfit("its arguments or its environment are not UTF-8".to_owned())),
        };
        parent.nursery.note(&self.name(), forked.as_ref().map(drop));
        let forked = forked.ok()?;
        let pid = forked.identity().pid;
        self.settle(pid);
        if self.yields {
            let _ = setpriority_process(Pid::from_raw(pid), YIELDING);
            weigh_session(pid, YIELDING);
        }
        Some(forked)
    }

    /// The child opens our descriptors by their names in `/proc`.
    fn fork_request(&self, parent: &Parent, stdout: &impl AsRawFd, stderr: &impl AsRawFd, wait: bool) -> Option<ForkRequest> {
        let text = |word: &OsStr| word.to_str().map(ToOwned::to_owned);
        let user = self.run_as.as_ref()?;
        let ours = |fd: i32| format!("/proc/{}/fd/{fd}", std::process::id());
        Some(ForkRequest {
            python: text(self.path.as_os_str())?,
            args: self.args.iter().map(|arg| text(arg)).collect::<Option<_>>()?,
            env: self.env.iter().map(|(name, value)| Some((text(name)?, text(value)?))).collect::<Option<_>>()?,
            cwd: text(self.cwd.as_os_str())?,
            uid: user.uid,
            gid: user.gid,
            groups: user.groups.clone(),
            network: self.has_network,
            stdout: ours(stdout.as_raw_fd()),
            stderr: ours(stderr.as_raw_fd()),
            modules: parent.modules.clone(),
            wait,
        })
    }

    fn spawn(&self, command: &mut Command) -> Result<Child, ExecError> {
        let child = command.spawn().map_err(|source| ExecError::Start { program: self.name(), source })?;
        if let Some(pid) = child.id() {
            self.settle(pid.cast_signed());
        }
        Ok(child)
    }

    /// What a process that has just been started is told of by its pid.
    fn settle(&self, pid: i32) {
        if self.goes_first
            && let Err(error) = std::fs::write(format!("/proc/{pid}/oom_score_adj"), GOES_FIRST)
        {
            tracing::debug!(%error, pid, "a process could not be marked as the first to go when memory is short");
        }
        for procs_file in &self.cgroups {
            if let Err(error) = std::fs::write(procs_file, pid.to_string()) {
                tracing::warn!(%error, path = %procs_file.display(), "a process could not be put into its cgroup");
            }
        }
    }

    /// `setsid`, `unshare` and `setpriv` replace themselves by the program, so the child's pid is the program's.
    fn command(&self, own_session: bool) -> Command {
        let mut words: Vec<OsString> = Vec::new();
        if own_session {
            words.push("setsid".into());
        }
        if self.yields {
            words.extend(["sh".into(), "-c".into(), YIELD.replace("NICE", &YIELDING.to_string()).into(), "sh".into()]);
        }
        if !self.has_network {
            words.extend(["unshare".into(), "--net".into(), "--".into()]);
        }
        if let Some(user) = &self.run_as {
            words.extend(["setpriv".into(), format!("--reuid={}", user.uid).into(), format!("--regid={}", user.gid).into()]);
            words.push(if user.groups.is_empty() {
                "--clear-groups".into()
            } else {
                let groups: Vec<String> = user.groups.iter().map(u32::to_string).collect();
                format!("--groups={}", groups.join(",")).into()
            });
            words.extend(["--no-new-privs".into(), "--".into()]);
        }
        words.push(self.path.clone().into_os_string());
        let mut words = words.into_iter();
        let mut command = Command::new(words.next().unwrap_or_default());
        command.args(words).args(&self.args).env_clear().envs(&self.env).current_dir(&self.cwd);
        command
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
    use crate::error::HostError;

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
        while rustix::process::test_kill_process_group(Pid::from_raw(group).unwrap()).is_ok() {
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
