//! `kvwarden shim`: the parent of one engine, as containerd's shim is of a container.
//!
//! It exists so that the orchestrator may die: the engine's parent, the reader of its output and
//! the one who knows how to end it live on in a process that does nothing else. It keeps four
//! promises.
//!
//! 1. No engine without a parent: killed itself, it takes the engine along (PDEATHSIG); without
//!    an orchestrator for `orphan_grace`, it ends the engine.
//! 2. `Exited` means that the whole tree is gone, grandchildren in sessions of their own included.
//! 3. The engine never waits for its log, and the log never fills memory or disk.
//! 4. What the engine was given in secret is in no argv, no log and no file that it writes.
//!
//! It runs on one thread, always: PDEATHSIG fires when the *thread* that forked ends (prctl(2)),
//! and on one thread `umask` is no race. So nothing of tokio that needs its blocking pool.
//!
//! | module | does |
//! |---|---|
//! | `supervise` | what happens when: the loop and the stop ladder |
//! | `engine` | starts, signals and reaps processes |
//! | `socket` | listens, speaks the protocol |
//! | `log`, `tail` | keep the engine's output |
//! | `record` | the state file |

mod engine;
mod log;
mod record;
mod socket;
mod supervise;
mod tail;

use std::{
    io::{self, BufRead, Read, Write},
    process::ExitCode,
};

use kvwarden_actors::process::shim::{LISTENING, REFUSED, ShimSpec};
use nix::{sys::prctl, unistd};

use self::{record::RecordFile, supervise::Shim};

/// The spec is one line; an environment is at most a few hundred KiB.
const SPEC_BYTES: u64 = 4 << 20;

/// Runs one engine from its start to its end. Call it before any other thread exists.
#[must_use]
pub fn run() -> ExitCode {
    match prepare() {
        Ok(()) => ExitCode::SUCCESS,
        Err(reason) => {
            say(&format!("{REFUSED}{reason}"));
            ExitCode::FAILURE
        }
    }
}

fn prepare() -> Result<(), String> {
    let spec = read_spec()?;
    check_token(&spec.token)?;
    // A session of our own: Ctrl-C in the orchestrator's terminal is for the orchestrator. It
    // fails only where we lead one already, as when started from an interactive shell.
    let _ = unistd::setsid();
    // It may have been executed as /proc/self/exe, and `ps` should not say `exe`.
    let _ = prctl::set_name(c"kvwarden-shim");
    // Orphans of the engine come to us instead of init (prctl(2)).
    let subreaper = prctl::set_child_subreaper(true);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| format!("can't start: {error}"))?;
    runtime.block_on(async {
        let listener = socket::bind(&spec.socket)?;
        let record = RecordFile::create(&spec)?;
        let mut shim = Shim::new(spec, record).map_err(|error| format!("can't start: {error}"))?;
        if let Err(error) = subreaper {
            shim.note(&format!("can't adopt orphans of the engine: {error}"));
        }
        say(LISTENING);
        shim.run(listener).await;
        Ok(())
    })
}

fn read_spec() -> Result<ShimSpec, String> {
    let mut line = String::new();
    io::BufReader::new(io::stdin().lock().take(SPEC_BYTES))
        .read_line(&mut line)
        .map_err(|error| format!("can't read the spec: {error}"))?;
    // serde's messages quote what they choke on, and this input holds keys.
    serde_json::from_str(&line).map_err(|error| {
        format!(
            "the spec on standard input is not valid ({:?} at column {}); \
             `kvwarden shim` is started by `kvwarden serve`, not by hand",
            error.classify(),
            error.column()
        )
    })
}

fn check_token(token: &str) -> Result<(), String> {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
    if token.is_empty() || token.len() > 64 || !token.bytes().all(plain) {
        return Err(format!(
            "the token {token:?} is not of [A-Za-z0-9._-]{{1,64}}"
        ));
    }
    Ok(())
}

/// The one line the orchestrator waits for. If it is gone, its connection will not come either.
fn say(line: &str) {
    let mut stdout = io::stdout().lock();
    let _ = writeln!(stdout, "{line}").and_then(|()| stdout.flush());
}
