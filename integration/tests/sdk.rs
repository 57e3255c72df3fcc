//! OpenAI's own clients, unchanged, in a scripted session each.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use kvwarden_integration::{
    Server,
    engine::{data_dir, lock},
    workspace,
};

const CONFIG: &str = r#"
[[models]]
id = "org/tiny-model"
short_name = "tiny"
engine = "sim"
preset = "tiny"

[tenants.sdk]

[tenants.limited]
rate_limit_rpm = 60
rate_limit_burst = 1
"#;

fn sdk(file: &str) -> PathBuf {
    workspace().join("integration/sdk").join(file)
}

/// A directory in which the packages that `pin` names are installed, made once.
fn installed(name: &str, pin: &Path, install: impl FnOnce(&Path)) -> PathBuf {
    let root = data_dir().join("test-sdk");
    fs::create_dir_all(&root).expect("a directory is made");
    let _lock = lock(&root.join(format!("{name}.lock")));
    let dir = root.join(name);
    let (wanted, marker) = (
        fs::read(pin).expect("the pinned versions"),
        dir.join("installed"),
    );
    if fs::read(&marker).ok().as_ref() != Some(&wanted) {
        // Not there yet, of other versions, or half made.
        let _ = fs::remove_dir_all(&dir);
        fs::create_dir_all(&dir).expect("a directory is made");
        install(&dir);
        fs::write(marker, wanted).expect("the marker is written");
    }
    dir
}

fn run(command: &mut Command) -> String {
    let output = command.output().expect("it runs");
    let said = String::from_utf8_lossy(&output.stdout);
    let problem = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?}: {said}\n{problem}");
    said.into_owned()
}

/// Runs a session and looks at it from the server's side.
fn session(command: &mut Command) {
    let server = Server::start(CONFIG);
    let base = format!("http://127.0.0.1:{}/v1", server.port);
    let said = run(command
        .env("OPENAI_BASE_URL", base)
        .env("OPENAI_API_KEY", "unused"));
    assert!(said.ends_with("the session is over\n"), "{said}");
    let metrics = server.metrics();
    let refused = metrics.sum(
        "kvwarden_tenant_requests_rejected_total",
        &["tenant=\"limited\""],
    );
    assert!(
        refused >= Some(1.0),
        "the SDK was never refused, so it never retried: {said}"
    );
    let strangers = metrics.sum("kvwarden_tenant_requests_total", &["tenant=\"default\""]);
    assert!(
        strangers.unwrap_or(0.0) < 1.0,
        "requests without their tenant: {said}"
    );
}

#[test]
fn openai_python_holds_its_session() {
    let pin = sdk("requirements.txt");
    let dir = installed("python", &pin, |dir| {
        let _ = run(Command::new("python3")
            .args(["-m", "venv"])
            .arg(dir.join("venv")));
        let pip = dir.join("venv/bin/pip");
        let quiet = ["install", "--quiet", "--disable-pip-version-check", "-r"];
        let _ = run(Command::new(pip).args(quiet).arg(&pin));
    });
    session(Command::new(dir.join("venv/bin/python")).arg(sdk("session.py")));
}

#[test]
fn openai_node_holds_its_session() {
    let pin = sdk("package.json");
    let dir = installed("node", &pin, |dir| {
        fs::copy(&pin, dir.join("package.json")).expect("package.json is copied");
        let quiet = [
            "install",
            "--silent",
            "--no-audit",
            "--no-fund",
            "--no-package-lock",
        ];
        let _ = run(Command::new("npm").args(quiet).current_dir(dir));
    });
    // Node looks for packages beside the script.
    let script = dir.join("session.mjs");
    fs::copy(sdk("session.mjs"), &script).expect("the session is copied");
    session(Command::new("node").arg(script));
}
