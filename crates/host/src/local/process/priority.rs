//! Processes that give way to others.

use std::fs;

use rustix::process::{Pid, setpriority_process};

use super::{ProcEntry, Process};

/// The nice value of what gives way: a tenth of the usual share, where somebody else wants it.
pub(in crate::local) const YIELDING: i32 = 10;

impl Process {
    /// Has it and all that it has started work only where nobody else needs the processor, until the answer is dropped.
    pub fn yield_processor(&self) -> Yielding<'_> {
        self.set_nice(YIELDING);
        Yielding(self)
    }

    /// Ends what an earlier [`Process::yield_processor`] of ours, whose end was lost, has left.
    pub fn yield_no_more(&self) {
        self.set_nice(0);
    }

    /// Of all its threads (setpriority(2)), and of its session. What is gone is left.
    fn set_nice(&self, nice: i32) {
        // Who is made by one that the first look has not met yet is met by the second one.
        for _ in 0..2 {
            for entry in self.all() {
                let Ok(threads) = fs::read_dir(format!("/proc/{}/task", entry.pid)) else { continue };
                let ids = threads.flatten().filter_map(|thread| Pid::from_raw(thread.file_name().to_str()?.parse().ok()?));
                for id in ids {
                    let _ = setpriority_process(Some(id), nice);
                }
            }
        }
        weigh_session(self.pid(), nice);
    }
}

/// Gives a session's weight to the session that the process leads, where the kernel weighs sessions (sched(7), "The autogroup feature"). Nothing for one
/// that leads none: that would be somebody else's.
fn weigh_session(pid: i32, nice: i32) {
    if ProcEntry::read(pid).is_some_and(|entry| entry.session == pid) {
        let _ = fs::write(format!("/proc/{pid}/autogroup"), nice.to_string());
    }
}

/// While it is there, a process gives way to others.
pub struct Yielding<'a>(&'a Process);

impl Drop for Yielding<'_> {
    fn drop(&mut self) {
        self.0.yield_no_more();
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::{super::tests::new, *};
    use crate::local::exec::Program;

    #[tokio::test]
    async fn what_yields_the_processor_does_so_with_its_children_for_a_while() {
        let directory = tempfile::tempdir().unwrap();
        let log = directory.path().join("log");
        let script = "sleep 1000 & echo ready; wait";
        let process = Process::start(new(directory.path(), Program::new("sh").args(["-c", script])), &log).await.unwrap();
        while !fs::read_to_string(&log).unwrap().contains("ready") {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        let nice = || -> Vec<i32> {
            let ours = process.all();
            ours.iter().map(|entry| rustix::process::getpriority_process(Pid::from_raw(entry.pid)).unwrap()).collect()
        };
        assert_eq!(nice().len(), 2);
        let yielding = process.yield_processor();
        assert_eq!(nice(), [YIELDING, YIELDING]);
        drop(yielding);
        assert_eq!(nice(), [0, 0]);
        process.stop(&[]).await.unwrap();
    }
}
