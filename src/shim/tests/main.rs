//! The shim, run as it is in earnest: the real binary, real processes, shell scripts as engines.
#![expect(
    clippy::unwrap_used,
    reason = "helpers of tests, too, fail by panicking"
)]

mod stop_command;

use std::{
    collections::BTreeSet,
    fs,
    future::Future,
    io::Write,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Duration,
};

use kvwarden_actors::process::{
    cgroup::Cgroup,
    child::{self, Child, LaunchError},
    shim::{ShimEvent, ShimExit, ShimSpec, StopCommand},
    tree::{ProcessId, TREE_TOKEN, Table, kill_tree},
};
use kvwarden_policy::failure::FailureClass;
use nix::{
    sys::signal::{Signal, kill},
    unistd::{Pid, getsid},
};
use tempfile::TempDir;
use tokio::time::{Instant, sleep, timeout};

const KVWARDEN: &str = env!("CARGO_BIN_EXE_kvwarden");
const DEADLINE: Duration = Duration::from_secs(60);
/// Longer than any deadline: a test that needs it to end fails.
const NEVER: Duration = Duration::from_secs(3600);

/// A directory and a spec in it; what is left of the engine goes with it.
struct Rig {
    dir: TempDir,
    token: String,
}

impl Rig {
    fn new(name: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let token = format!("test-{name}-{}", std::process::id());
        Self { dir, token }
    }

    /// A spec whose engine is `sh -c script`; the script finds the directory in `$DIR`.
    fn spec(&self, script: &str) -> ShimSpec {
        let dir = self.dir.path();
        ShimSpec {
            model: "tiny".into(),
            generation: 7,
            token: self.token.clone(),
            program: "/bin/sh".into(),
            args: vec!["-c".into(), script.into()],
            env: [
                ("PATH".into(), "/usr/local/bin:/usr/bin:/bin".into()),
                ("DIR".into(), dir.display().to_string()),
            ]
            .into(),
            socket: dir.join("run/s"),
            record: dir.join("record.json"),
            log: dir.join("logs/engine.log"),
            orphan_grace: NEVER,
            stop: None,
        }
    }

    async fn start(&self, script: &str) -> Child {
        self.start_spec(self.spec(script)).await
    }

    async fn start_spec(&self, spec: ShimSpec) -> Child {
        within(Child::start(Path::new(KVWARDEN), spec))
            .await
            .unwrap()
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn log(&self) -> String {
        fs::read_to_string(self.path("logs/engine.log")).unwrap_or_default()
    }

    async fn logged(&self, text: &str) {
        until(text, || self.log().contains(text)).await;
    }

    /// The process whose pid a script wrote to `$DIR/name`.
    async fn process(&self, name: &str) -> ProcessId {
        let path = self.path(name);
        let read = || fs::read_to_string(&path).ok()?.trim().parse().ok();
        until(name, || read().is_some()).await;
        ProcessId::of(read().unwrap()).unwrap()
    }

    fn tree(&self) -> BTreeSet<ProcessId> {
        Table::read().unwrap().bearing(&self.token).unwrap()
    }

    async fn tree_gone(&self) {
        until("the tree is gone", || self.tree().is_empty()).await;
    }
}

impl Drop for Rig {
    fn drop(&mut self) {
        for process in self.tree() {
            process.kill();
        }
    }
}

async fn within<T>(future: impl Future<Output = T>) -> T {
    timeout(DEADLINE, future).await.expect("in time")
}

async fn until(what: &str, condition: impl Fn() -> bool) {
    let begun = Instant::now();
    while !condition() {
        assert!(begun.elapsed() < DEADLINE, "not in time: {what}");
        sleep(Duration::from_millis(10)).await;
    }
}

fn alive(process: ProcessId) -> bool {
    Table::read().unwrap().has(process)
}

/// The engine's main process, from the first event.
async fn started(child: &mut Child) -> ProcessId {
    ProcessId::of(started_pid(child).await).unwrap()
}

/// The same for an engine that may have ended by now.
async fn started_pid(child: &mut Child) -> i32 {
    match within(child.next_event()).await {
        Some(ShimEvent::Started { pid }) => pid,
        other => panic!("{other:?}"),
    }
}

struct End {
    code: Option<i32>,
    signal: Option<i32>,
    class: FailureClass,
    log_tail: Vec<String>,
}

/// The engine's end, after which nothing comes.
async fn ended(child: &mut Child) -> End {
    match within(child.next_event()).await {
        Some(ShimEvent::Exited { exit, log_tail, .. }) => {
            let ShimExit {
                code,
                signal,
                class,
            } = exit;
            assert_eq!(within(child.next_event()).await, None);
            End {
                code,
                signal,
                class,
                log_tail,
            }
        }
        other => panic!("{other:?}"),
    }
}

const OBEDIENT: &str = "trap 'echo bye; exit 0' TERM; echo ready; while :; do sleep 0.02; done";
const STUBBORN: &str = "trap '' TERM; echo ready; while :; do sleep 0.02; done";

/// Two grandchildren in sessions of their own, deaf to SIGTERM, one without the token in its
/// environment. They write their pids to `$DIR/deaf` and `$DIR/bare`.
const ORPHANS: &str = r#"
    (setsid sh -c 'trap "" TERM; echo $$ >$DIR/deaf; while :; do sleep 0.02; done' &)
    (setsid env -i DIR=$DIR PATH=$PATH sh -c 'trap "" TERM; echo $$ >$DIR/bare; while :; do sleep 0.02; done' &)
    while [ ! -s $DIR/deaf ] || [ ! -s $DIR/bare ]; do sleep 0.02; done; echo grown;
"#;

#[tokio::test]
async fn engine_that_ends_is_told_with_its_last_lines() {
    let rig = Rig::new("ends");
    let mut child = rig.start("echo one; echo two >&2; exit 3").await;
    started_pid(&mut child).await;
    let end = ended(&mut child).await;
    assert_eq!((end.code, end.signal), (Some(3), None));
    assert_eq!(end.class, FailureClass::Crashed);
    assert_eq!(end.log_tail, ["one", "two"]);
    assert!(rig.log().contains("one\ntwo\n"));
    assert!(!rig.path("run/s").exists());
    let record = child::read_record(&rig.path("record.json")).unwrap();
    assert_eq!(record.exit.unwrap().code, Some(3));
}

#[tokio::test]
async fn cause_of_a_failure_is_read_from_the_log() {
    let rig = Rig::new("oom");
    let script = "echo 'torch.OutOfMemoryError: CUDA out of memory.'; seq 200; exit 1";
    let mut child = rig.start(script).await;
    started_pid(&mut child).await;
    let end = ended(&mut child).await;
    assert_eq!(end.class, FailureClass::OutOfMemory);
    assert_eq!(end.log_tail.len(), 50);
    assert!(end.log_tail[0].contains("CUDA out of memory"));
    assert_eq!(end.log_tail[49], "200");
}

#[tokio::test]
async fn program_that_is_missing_is_a_failed_start() {
    let rig = Rig::new("missing");
    let mut spec = rig.spec("");
    spec.program = "/no/such/engine".into();
    let mut child = rig.start_spec(spec).await;
    match within(child.next_event()).await {
        Some(ShimEvent::Failed { reason }) => assert!(reason.contains("/no/such/engine")),
        other => panic!("{other:?}"),
    }
    assert_eq!(within(child.next_event()).await, None);
}

#[tokio::test]
async fn engine_that_obeys_sigterm_ends_by_itself() {
    let rig = Rig::new("obeys");
    let mut child = rig.start(OBEDIENT).await;
    started(&mut child).await;
    rig.logged("ready").await;
    child.stop(NEVER);
    let end = ended(&mut child).await;
    assert_eq!((end.code, end.class), (Some(0), FailureClass::Stopped));
    assert_eq!(end.log_tail, ["ready", "bye"]);
}

#[tokio::test]
async fn engine_that_ignores_sigterm_is_killed_after_grace() {
    let rig = Rig::new("ignores");
    let mut child = rig.start(STUBBORN).await;
    let engine = started(&mut child).await;
    rig.logged("ready").await;
    let asked = Instant::now();
    child.stop(Duration::from_millis(300));
    let end = ended(&mut child).await;
    assert!(asked.elapsed() >= Duration::from_millis(300));
    assert_eq!((end.signal, end.class), (Some(9), FailureClass::Stopped));
    assert!(!alive(engine));
}

#[tokio::test]
async fn second_stop_shortens_the_first() {
    let rig = Rig::new("shorter");
    let mut child = rig.start(STUBBORN).await;
    started(&mut child).await;
    rig.logged("ready").await;
    child.stop(NEVER);
    child.stop(Duration::from_millis(10));
    assert_eq!(ended(&mut child).await.signal, Some(9));
}

#[tokio::test]
async fn orphans_in_other_sessions_are_gone_when_exited_arrives() {
    let rig = Rig::new("orphans");
    let mut child = rig.start(&format!("{ORPHANS} {STUBBORN}")).await;
    let engine = started(&mut child).await;
    let (deaf, bare) = (rig.process("deaf").await, rig.process("bare").await);
    rig.logged("ready").await;
    assert!(alive(deaf) && alive(bare));
    child.stop(Duration::from_millis(100));
    let event = within(child.next_event()).await;
    assert!(matches!(event, Some(ShimEvent::Exited { .. })), "{event:?}");
    assert!(!alive(engine) && !alive(deaf) && !alive(bare));
}

#[tokio::test]
async fn orphans_of_an_engine_that_ended_cleanly_are_swept() {
    let rig = Rig::new("clean");
    let mut child = rig.start(&format!("{ORPHANS} exit 0")).await;
    started_pid(&mut child).await;
    let event = within(child.next_event()).await;
    assert!(matches!(event, Some(ShimEvent::Exited { .. })), "{event:?}");
    let gone = |name| {
        let pid: i32 = fs::read_to_string(rig.path(name))
            .unwrap()
            .trim()
            .parse()
            .unwrap();
        ProcessId::of(pid).is_none_or(|process| !alive(process))
    };
    assert!(gone("deaf") && gone("bare"));
}

#[tokio::test]
async fn engine_nobody_comes_back_for_is_ended() {
    let rig = Rig::new("deserted");
    let mut spec = rig.spec(&format!("{ORPHANS} {OBEDIENT}"));
    spec.orphan_grace = Duration::from_millis(200);
    let mut child = rig.start_spec(spec).await;
    let engine = started(&mut child).await;
    let bare = rig.process("bare").await;
    rig.logged("ready").await;
    drop(child);
    rig.tree_gone().await;
    assert!(!alive(engine) && !alive(bare));
    until("the socket is gone", || !rig.path("run/s").exists()).await;
    let record = child::read_record(&rig.path("record.json")).unwrap();
    assert_eq!(record.exit.unwrap().class, FailureClass::Stopped);
}

#[tokio::test]
async fn engine_is_adopted_and_its_past_replayed() {
    let rig = Rig::new("adopted");
    let mut spec = rig.spec(OBEDIENT);
    spec.orphan_grace = DEADLINE;
    let mut first = rig.start_spec(spec).await;
    let engine = started(&mut first).await;
    rig.logged("ready").await;
    drop(first);

    let path = rig.path("record.json");
    let record = child::read_record(&path).unwrap();
    assert_eq!((record.generation, record.engine), (7, Some(engine)));
    let mut second = within(Child::adopt(&path, record)).await.unwrap();
    assert_eq!(started(&mut second).await, engine);
    second.stop(NEVER);
    assert_eq!(ended(&mut second).await.code, Some(0));
    rig.tree_gone().await;
}

/// Not a test of its own: the orchestrator that the next one kills.
#[tokio::test]
#[ignore = "run by killed_orchestrator_takes_the_tree_along"]
async fn orchestrator() {
    let Some(dir) = std::env::var_os("SHIM_TEST_DIR") else {
        return;
    };
    let spec = fs::read(Path::new(&dir).join("spec.json")).unwrap();
    let spec = serde_json::from_slice(&spec).unwrap();
    let mut child = Child::start(Path::new(KVWARDEN), spec).await.unwrap();
    while child.next_event().await.is_some() {}
}

#[tokio::test]
async fn killed_orchestrator_takes_the_tree_along() {
    let rig = Rig::new("orchestrator");
    let mut spec = rig.spec(&format!("{ORPHANS} {STUBBORN}"));
    spec.orphan_grace = Duration::ZERO;
    fs::write(rig.path("spec.json"), serde_json::to_vec(&spec).unwrap()).unwrap();
    let mut orchestrator = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "orchestrator", "--ignored"])
        .env("SHIM_TEST_DIR", rig.dir.path())
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    let (deaf, bare) = (rig.process("deaf").await, rig.process("bare").await);
    rig.logged("ready").await;
    orchestrator.kill().unwrap();
    orchestrator.wait().unwrap();
    rig.tree_gone().await;
    assert!(!alive(deaf) && !alive(bare));
}

#[tokio::test]
async fn killed_shim_takes_the_engine_along_and_the_rest_is_swept() {
    let rig = Rig::new("killed");
    let mut child = rig.start(&format!("{ORPHANS} {STUBBORN}")).await;
    let engine = started(&mut child).await;
    let (deaf, bare) = (rig.process("deaf").await, rig.process("bare").await);
    rig.logged("ready").await;
    let has_cgroup = Cgroup::find(&rig.token).is_some();
    child.shim().unwrap().kill();
    let event = within(child.next_event()).await;
    assert!(!alive(engine) && !alive(deaf));
    // Without shim and token nothing but a cgroup leads to this one.
    assert!(!has_cgroup || !alive(bare));
    bare.kill();
    match event {
        Some(ShimEvent::Exited { exit, .. }) => assert_eq!(exit.class, FailureClass::Killed),
        other => panic!("{other:?}"),
    }
    assert_eq!(within(child.next_event()).await, None);
    assert!(Cgroup::find(&rig.token).is_none());
}

#[tokio::test]
async fn stopped_shim_is_swept_by_its_token() {
    let rig = Rig::new("hung");
    let mut child = rig.start(STUBBORN).await;
    started(&mut child).await;
    let shim = child.shim().unwrap();
    kill(Pid::from_raw(shim.pid), Signal::SIGSTOP).unwrap();
    assert!(within(kill_tree(&rig.token)).await >= 1);
    assert!(!alive(shim));
    assert_eq!(ended(&mut child).await.class, FailureClass::Killed);
}

#[tokio::test]
async fn sigterm_to_the_shim_stops_the_engine() {
    let rig = Rig::new("sigterm");
    let mut child = rig.start(OBEDIENT).await;
    started(&mut child).await;
    rig.logged("ready").await;
    kill(Pid::from_raw(child.shim().unwrap().pid), Signal::SIGTERM).unwrap();
    let end = ended(&mut child).await;
    assert_eq!((end.code, end.class), (Some(0), FailureClass::Stopped));
}

#[tokio::test]
async fn flood_of_output_fills_neither_memory_nor_disk() {
    let rig = Rig::new("flood");
    // 100 MB in lines, then 100 MB in one.
    let script = "yes 0123456789012345678901234567890123456789 | head -c 100000000; \
                  head -c 100000000 /dev/zero | tr '\\0' x; echo; echo done; cat /proc/$PPID/status";
    let mut child = rig.start(script).await;
    started_pid(&mut child).await;
    let end = ended(&mut child).await;
    let peak = end
        .log_tail
        .iter()
        .find_map(|line| line.strip_prefix("VmHWM:"));
    let peak: u64 = peak
        .unwrap()
        .trim()
        .trim_end_matches(" kB")
        .parse()
        .unwrap();
    assert!(peak < 32 << 10, "{peak} kB");
    let logs = fs::read_dir(rig.path("logs")).unwrap();
    let bytes: u64 = logs.map(|log| log.unwrap().metadata().unwrap().len()).sum();
    assert!(bytes <= 30 << 20, "{bytes} bytes");
}

#[tokio::test]
async fn environment_is_the_given_one_and_the_marks() {
    let rig = Rig::new("environment");
    let mut spec = rig.spec("");
    spec.program = "/usr/bin/env".into();
    spec.args.clear();
    let mut expected: Vec<String> = spec.env.iter().map(|(k, v)| format!("{k}={v}")).collect();
    expected.push(format!("{TREE_TOKEN}={}", rig.token));
    expected.push("SPT_NOENV=1".into());
    expected.sort();
    let mut child = rig.start_spec(spec).await;
    started_pid(&mut child).await;
    let mut found = ended(&mut child).await.log_tail;
    found.sort();
    assert_eq!(found, expected);
}

#[tokio::test]
async fn secret_of_the_environment_is_in_no_file_and_no_argv() {
    const SECRET: &str = "canary-3f9a";
    let rig = Rig::new("secret");
    let mut spec = rig.spec(OBEDIENT);
    spec.env.insert("VLLM_API_KEY".into(), SECRET.into());
    let mut child = rig.start_spec(spec).await;
    let engine = started(&mut child).await;
    rig.logged("ready").await;
    let shim = child.shim().unwrap();
    let mut files = vec![rig.path("record.json"), rig.path("logs/engine.log")];
    for pid in [shim.pid, engine.pid] {
        files.push(format!("/proc/{pid}/cmdline").into());
    }
    files.push(format!("/proc/{}/environ", shim.pid).into());
    for file in files {
        let content = String::from_utf8_lossy(&fs::read(&file).unwrap()).into_owned();
        assert!(!content.contains(SECRET), "{}", file.display());
    }
    let mode = |path| fs::metadata(rig.path(path)).unwrap().permissions().mode() & 0o777;
    assert_eq!((mode("run"), mode("run/s")), (0o700, 0o600));
    assert_eq!(
        (mode("record.json"), mode("logs/engine.log")),
        (0o600, 0o600)
    );
    child.stop(NEVER);
    ended(&mut child).await;
}

#[tokio::test]
async fn shim_has_one_thread_and_both_have_sessions_of_their_own() {
    let rig = Rig::new("threads");
    let mut child = rig.start(OBEDIENT).await;
    let engine = started(&mut child).await;
    rig.logged("ready").await;
    let shim = child.shim().unwrap();
    let tasks = fs::read_dir(format!("/proc/{}/task", shim.pid)).unwrap();
    assert_eq!(tasks.count(), 1);
    for process in [shim, engine] {
        let pid = Pid::from_raw(process.pid);
        assert_eq!(getsid(Some(pid)), Ok(pid));
    }
    child.stop(NEVER);
    ended(&mut child).await;
}

#[tokio::test]
async fn two_engines_do_not_hurt_each_other() {
    let (one, two) = (Rig::new("one"), Rig::new("two"));
    let script = format!("{ORPHANS} {STUBBORN}");
    let (mut first, mut second) = (one.start(&script).await, two.start(&script).await);
    started(&mut first).await;
    let survivor = started(&mut second).await;
    let deaf = two.process("deaf").await;
    one.logged("ready").await;
    two.logged("ready").await;
    first.stop(Duration::ZERO);
    assert_eq!(ended(&mut first).await.signal, Some(9));
    assert!(alive(survivor) && alive(deaf));
    second.stop(Duration::ZERO);
    assert_eq!(ended(&mut second).await.signal, Some(9));
}

#[tokio::test]
async fn socket_path_that_is_too_long_is_refused_in_words() {
    let rig = Rig::new("long");
    let mut spec = rig.spec("");
    spec.socket = rig.path(&"x".repeat(120));
    match within(Child::start(Path::new(KVWARDEN), spec)).await {
        Err(LaunchError::Refused(reason)) => {
            assert!(reason.contains("ends at 107"), "{reason}");
        }
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn second_shim_at_the_same_socket_is_refused() {
    let rig = Rig::new("twice");
    let mut child = rig.start(OBEDIENT).await;
    started(&mut child).await;
    rig.logged("ready").await;
    let mut spec = rig.spec(OBEDIENT);
    spec.token.push_str("-b");
    match within(Child::start(Path::new(KVWARDEN), spec)).await {
        Err(LaunchError::Refused(reason)) => assert!(reason.contains("listens at"), "{reason}"),
        other => panic!("{other:?}"),
    }
    child.stop(NEVER);
    assert_eq!(ended(&mut child).await.code, Some(0));
}

#[tokio::test]
async fn binary_that_is_no_shim_is_an_error() {
    let rig = Rig::new("noshim");
    let error = within(Child::start(Path::new("/no/such"), rig.spec(""))).await;
    assert!(
        matches!(error, Err(LaunchError::NoShim { .. })),
        "{error:?}"
    );
    let error = within(Child::start(Path::new("/bin/true"), rig.spec(""))).await;
    assert!(matches!(error, Err(LaunchError::NoAnswer(_))), "{error:?}");
}

#[tokio::test]
async fn spec_that_is_not_valid_is_not_quoted() {
    let mut shim = Command::new(KVWARDEN)
        .arg("shim")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = shim.stdin.take().unwrap();
    stdin.write_all(b"{\"token\": hunter2}\n").unwrap();
    let output = shim.wait_with_output().unwrap();
    let said = String::from_utf8(output.stdout).unwrap();
    assert!(said.starts_with("refused: "), "{said}");
    assert!(!said.contains("hunter2"), "{said}");
}

#[tokio::test]
#[ignore = "takes 30 s"]
async fn orchestrator_that_never_connects_is_given_up() {
    let rig = Rig::new("never");
    let mut shim = Command::new(KVWARDEN)
        .arg("shim")
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    let mut line = serde_json::to_vec(&rig.spec(OBEDIENT)).unwrap();
    line.push(b'\n');
    shim.stdin.take().unwrap().write_all(&line).unwrap();
    rig.logged("ready").await;
    rig.tree_gone().await;
    assert!(shim.wait().unwrap().success());
}
