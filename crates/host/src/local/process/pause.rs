//! Processes that stand still with all that they have open, and go on.

use std::time::Duration;

use rustix::process::Signal;
use tokio::time::Instant;

use super::{KILL_DEADLINE, ProcEntry, Process, is_ended};
use crate::error::{HostError, Result};

const PAUSE_LOOK_INTERVAL: Duration = Duration::from_millis(2);
/// Odoo's workers give their master one with each turn of their loops, which a wait that has run out while they were paused begins at once.
const SIGN_OF_LIFE: Duration = Duration::from_millis(300);

impl Process {
    /// Stops it and all that it has started where they stand (SIGSTOP), with all that they have open, until [`Process::resume`]. Paused already is
    /// done, gone too. Nothing but SIGKILL ends what is paused.
    ///
    /// A parent is stopped before its children: while it waits for a child that it has made with vfork(2) to begin its program, it cannot be stopped,
    /// and a child that is stopped would never begin it.
    pub async fn pause(&self) -> Result<()> {
        let deadline = Instant::now() + KILL_DEADLINE;
        loop {
            // One that forks meanwhile is caught at the next look.
            let running: Vec<ProcEntry> = self.all().into_iter().filter(|entry| !entry.is_paused()).collect();
            if running.is_empty() {
                return Ok(());
            }
            let pids: Vec<i32> = running.iter().map(|entry| entry.pid).collect();
            if Instant::now() > deadline {
                return Err(HostError::machine(format!("the processes {pids:?} do not stop; they probably wait for a disk: see `dmesg`")));
            }
            for entry in running.iter().filter(|entry| !pids.contains(&entry.parent)) {
                entry.identity().signal(Signal::STOP);
            }
            tokio::time::sleep(PAUSE_LOOK_INTERVAL).await;
        }
    }

    /// Lets what is paused go on: first all that it has started, then, when those have had time to give a sign of life, itself. So a master that
    /// watches its workers does not take them for hung.
    pub async fn resume(&self) -> Result<()> {
        let ours = self.all();
        let (leaders, others): (Vec<_>, Vec<_>) = ours.iter().partition(|entry| entry.pid == self.pid());
        let others: Vec<_> = others.into_iter().filter(|entry| entry.has_stopped_threads()).collect();
        for entry in &others {
            entry.identity().signal(Signal::CONT);
        }
        if !others.is_empty() {
            tokio::time::sleep(SIGN_OF_LIFE).await;
        }
        for entry in leaders {
            entry.identity().signal(Signal::CONT);
        }
        Ok(())
    }

    /// [`Process::pause`] has stopped it.
    pub fn is_paused(&self) -> bool {
        self.is_alive() && ProcEntry::read(self.pid()).is_some_and(|entry| entry.state == 'T')
    }
}

impl ProcEntry {
    /// None of its threads runs: each is stopped by a signal, or ended.
    fn is_paused(&self) -> bool {
        self.threads().iter().all(|thread| thread.state == 'T' || is_ended(thread.state))
    }

    fn has_stopped_threads(&self) -> bool {
        self.threads().iter().any(|thread| thread.state == 'T')
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::{super::tests::new, *};
    use crate::local::{exec::Program, process::scan};

    #[tokio::test]
    async fn what_is_paused_stands_still_with_its_children_goes_on_and_is_ended() {
        let directory = tempfile::tempdir().unwrap();
        let count = "while true; do echo x >>$0; sleep 0.005; done";
        let files = ["own", "child", "stranger"].map(|name| directory.path().join(name));
        let script = format!(
            "{0} & setsid sh -c '{1}' {2} & {1}",
            count.replace("$0", &format!("{}", files[1].display())),
            count,
            files[2].display()
        );
        let program = Program::new("sh").args(["-c", &script]).arg(&files[0]);
        let process = Process::start(new(directory.path(), program), &directory.path().join("log")).await.unwrap();
        let counted = || files.each_ref().map(|file| fs::metadata(file).map_or(0, |metadata| metadata.len()));
        let all_beyond = async |before: [u64; 3]| {
            while counted().iter().zip(before).any(|(now, before)| *now <= before) {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        all_beyond([0; 3]).await;
        for _ in 0..2 {
            process.pause().await.unwrap();
            process.pause().await.unwrap();
            assert!(process.is_paused() && process.is_alive());
            let standing = counted();
            tokio::time::sleep(Duration::from_millis(100)).await;
            assert_eq!(counted(), standing);
            process.resume().await.unwrap();
            all_beyond(standing).await;
            assert!(!process.is_paused());
        }
        process.pause().await.unwrap();
        let begun = Instant::now();
        assert!(!process.stop(&[(Signal::TERM, Duration::from_mins(10))]).await.unwrap());
        assert!(!process.is_alive() && begun.elapsed() < Duration::from_mins(5), "nobody waits for what cannot hear");
        let marked = |entry: &ProcEntry| !entry.is_dead() && entry.mark().is_some_and(|mark| mark == process.record.mark);
        assert!(!scan().iter().any(marked));
        process.pause().await.unwrap();
        process.resume().await.unwrap();
    }

    /// Makes children one after the other as vfork(2) does, but each takes its time before it begins its program. `clone` is called by its number.
    const VFORKS: &str = r#"
import ctypes, os, platform, signal, sys, time

number = {"x86_64": 56, "aarch64": 220}[platform.machine()]
CLONE_VFORK = 0x4000
system = ctypes.CDLL(None)
while True:
    if system.syscall(number, CLONE_VFORK | signal.SIGCHLD, 0, 0, 0, 0) == 0:
        with open(sys.argv[1], "a") as file:
            file.write("x")
        time.sleep(0.2)
        os.execv("/bin/true", ["true"])
    os.wait()
"#;

    #[tokio::test]
    async fn who_waits_for_a_child_to_begin_its_program_is_paused_when_it_has_begun() {
        let directory = tempfile::tempdir().unwrap();
        let begun = directory.path().join("begun");
        let program = Program::new("python3").args(["-c", VFORKS]).arg(&begun);
        let process = Process::start(new(directory.path(), program), &directory.path().join("log")).await.unwrap();
        let children = || fs::metadata(&begun).map_or(0, |metadata| metadata.len());
        for _ in 0..3 {
            let before = children();
            while children() == before {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            process.pause().await.unwrap();
            assert!(process.is_paused());
            process.resume().await.unwrap();
        }
        process.stop(&[]).await.unwrap();
    }
}
