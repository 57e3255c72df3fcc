//! Executes the steps of a recipe.
//!
//! Output goes to a log file in the directory being made, from which errors quote the end.

use std::{
    fs::{self, File, OpenOptions},
    io::Write as _,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::mpsc,
    thread,
    time::{Duration, Instant},
};

use kvwarden_actors::{
    files::{self, Durability, Readers},
    process::{
        startup,
        tree::{self, ProcessId},
    },
};
use kvwarden_policy::startup::{Sign, Startup, Verdict};

use super::{
    InstallError,
    error::{self, at},
    growth::Growth,
    lock::Lock,
    progress::{Event, Progress},
    step::{Action, Step},
};

/// How often the bar moves. A walk over 60,000 files takes some 0.2 s.
const SAMPLE_EVERY: Duration = Duration::from_secs(1);

pub(super) struct Runner<'a> {
    pub(super) log: PathBuf,
    pub(super) lock: &'a Lock,
    /// Absent where there is nothing to watch grow.
    pub(super) growth: Option<Growth>,
    pub(super) progress: &'a dyn Progress,
}

impl Runner<'_> {
    /// Does one step and returns what it printed.
    pub(super) fn step(&self, step: &Step) -> Result<String, InstallError> {
        self.progress.report(Event::Step { label: step.label });
        match &step.action {
            Action::Write { path, contents } => {
                write_file(path, contents)?;
                Ok(String::new())
            }
            Action::Run { program, args, env } => {
                let mut command = Command::new(program);
                command.args(args).envs(env.iter().copied());
                self.run(step.label, command)
            }
        }
    }

    fn run(&self, label: &'static str, mut command: Command) -> Result<String, InstallError> {
        let shown = shown(&command);
        let mut log = open_log(&self.log)?;
        writeln!(log, "$ {shown}").map_err(at(&self.log))?;
        let from = log.metadata().map_err(at(&self.log))?.len();
        command
            // The lock as standard input (it is an empty file): should this process be killed, the
            // lock is held for as long as the child lives on and writes.
            .stdin(self.lock.share()?)
            .stdout(log.try_clone().map_err(at(&self.log))?)
            .stderr(Stdio::from(log))
            // Either would let packages from elsewhere into the environment.
            .env_remove("PYTHONPATH")
            .env_remove("PYTHONHOME");

        let mut child = command.spawn().map_err(at(command.get_program()))?;
        let process = child.id().try_into().ok().and_then(ProcessId::of);
        let (status, stalled) = self.watched(process, || child.wait());
        let status = status.map_err(at(command.get_program()))?;
        let output = read_from(&self.log, from)?;
        if let Some(last) = stalled {
            return Err(InstallError::Stalled {
                label,
                reason: startup::reason(self.progress.patience(), last),
                tail: error::tail(&output),
            });
        }
        if status.success() {
            return Ok(output);
        }
        Err(error::of_step(label, shown, status.to_string(), &output))
    }

    /// Reports growth for as long as `work` takes, and ends `process`, which does it, if that stands
    /// still. What moved last then.
    fn watched<T>(
        &self,
        process: Option<ProcessId>,
        work: impl FnOnce() -> T,
    ) -> (T, Option<Option<Sign>>) {
        let (done, finished) = mpsc::channel::<()>();
        thread::scope(|scope| {
            let watch = scope.spawn(move || self.watch(process, &finished));
            let result = work();
            drop(done);
            let stalled = watch.join().unwrap_or_default();
            // A short step ends before its first sample.
            self.report_growth();
            (result, stalled)
        })
    }

    fn watch(
        &self,
        process: Option<ProcessId>,
        finished: &mpsc::Receiver<()>,
    ) -> Option<Option<Sign>> {
        let patience = self.progress.patience();
        let mut startup = Startup::new(now(), patience);
        while finished.recv_timeout(SAMPLE_EVERY.min(patience))
            == Err(mpsc::RecvTimeoutError::Timeout)
        {
            self.report_growth();
            let Some(process) = process else { continue };
            let Ok(seen) = startup::traces(process, &self.log) else {
                continue;
            };
            if let Verdict::Stalled { last } = startup.look(now(), seen) {
                tree::kill_below(process);
                return Some(last);
            }
        }
        None
    }

    fn report_growth(&self) {
        if let Some(growth) = &self.growth {
            self.progress.report(Event::OnDisk(growth.bytes()));
        }
    }
}

#[expect(clippy::disallowed_methods, reason = "installs run in real time")]
fn now() -> Instant {
    Instant::now()
}

/// Writes a file whole or not at all, making its directory.
pub(super) fn write_file(path: &Path, contents: &str) -> Result<(), InstallError> {
    files::replace(
        path,
        contents.as_bytes(),
        Readers::Umask,
        Durability::Synced,
    )
    .map_err(at(path))
}

fn shown(command: &Command) -> String {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    words
        .map(|word| word.to_string_lossy())
        .collect::<Vec<_>>()
        .join(" ")
}

fn open_log(path: &Path) -> Result<File, InstallError> {
    if let Some(dir) = path.parent() {
        fs::create_dir_all(dir).map_err(at(dir))?;
    }
    OpenOptions::new()
        .create(true)
        .append(true)
        .open(path)
        .map_err(at(path))
}

fn read_from(path: &Path, offset: u64) -> Result<String, InstallError> {
    let bytes = fs::read(path).map_err(at(path))?;
    let from = usize::try_from(offset).map_or(0, |offset| offset.min(bytes.len()));
    Ok(String::from_utf8_lossy(&bytes[from..]).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::install::step::run;

    fn with_runner(check: impl FnOnce(&Runner<'_>, &Path)) {
        let dir = tempfile::tempdir().unwrap();
        let lock = Lock::take(&dir.path().join("x.lock"), || {}).unwrap();
        let quiet = |_: Event<'_>| {};
        let log = dir.path().join("install.log");
        check(
            &Runner {
                log,
                lock: &lock,
                growth: None,
                progress: &quiet,
            },
            dir.path(),
        );
    }

    fn sh(script: &str) -> Step {
        run("testing", Path::new("/bin/sh"), &[&"-c", &script], &[])
    }

    #[test]
    fn a_step_returns_its_own_output_only() {
        with_runner(|runner, _| {
            runner.step(&sh("echo first")).unwrap();
            assert_eq!(runner.step(&sh("echo second >&2")).unwrap(), "second\n");
        });
    }

    #[test]
    fn failure_carries_command_status_and_output() {
        with_runner(|runner, _| {
            let error = runner
                .step(&sh("echo boom; exit 3"))
                .unwrap_err()
                .to_string();
            assert!(
                error.contains("exit status: 3") && error.contains("| boom"),
                "{error}"
            );
        });
    }

    #[test]
    fn program_that_is_not_there_is_named() {
        with_runner(|runner, _| {
            let step = run("testing", Path::new("/no/uv"), &[], &[]);
            assert!(
                runner
                    .step(&step)
                    .unwrap_err()
                    .to_string()
                    .contains("/no/uv")
            );
        });
    }

    #[test]
    fn files_appear_whole_and_leave_nothing_beside_them() {
        with_runner(|_, dir| {
            write_file(&dir.join("a/b.txt"), "text").unwrap();
            assert_eq!(fs::read_to_string(dir.join("a/b.txt")).unwrap(), "text");
            assert_eq!(fs::read_dir(dir.join("a")).unwrap().count(), 1);
        });
    }
}
