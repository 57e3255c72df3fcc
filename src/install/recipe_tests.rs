use super::{super::step::Action, *};

fn paths() -> Paths {
    Paths {
        root: "/data/engines/x".into(),
        uv: "/bin/uv".into(),
        python: "/bin/python3".into(),
        python_version: Version(3, 12),
    }
}

/// One line per step: the command, or `write PATH`.
fn script(name: &str) -> Vec<String> {
    let steps = find(name).unwrap().steps(&paths());
    steps.iter().map(|step| line(&step.action)).collect()
}

fn line(action: &Action) -> String {
    match action {
        Action::Run { program, args, .. } => {
            let args: Vec<_> = args.iter().map(|arg| arg.to_string_lossy()).collect();
            format!("{} {}", program.display(), args.join(" "))
        }
        Action::Write { path, .. } => format!("write {}", path.display()),
    }
}

fn position(script: &[String], part: &str) -> usize {
    script
        .iter()
        .position(|line| line.contains(part))
        .unwrap_or_else(|| panic!("no {part}"))
}

#[test]
fn every_recipe_makes_the_environment_first_and_checks_it_last() {
    for recipe in &RECIPES {
        let script = script(recipe.name);
        assert_eq!(
            script[0],
            "/bin/uv venv --python /bin/python3 /data/engines/x/venv"
        );
        let check = format!("version('{}')", recipe.distribution);
        assert!(script.last().unwrap().contains(&check), "{}", recipe.name);
    }
}

#[test]
fn names_are_unique_and_unknown_ones_are_not_found() {
    for recipe in &RECIPES {
        assert!(std::ptr::eq(find(recipe.name).unwrap(), recipe));
    }
    assert!(find("llama").is_none());
}

#[test]
fn every_package_goes_into_the_private_environment() {
    for recipe in &RECIPES {
        for line in script(recipe.name)
            .iter()
            .filter(|line| line.contains("pip install"))
        {
            assert!(
                line.contains("--python /data/engines/x/venv/bin/python"),
                "{line}"
            );
        }
    }
}

#[test]
fn stubs_are_compiled_after_torch_and_before_the_check() {
    for name in ["vllm-cpu", "sglang-cpu"] {
        let script = script(name);
        let stubs = position(
            &script,
            "cuda_stubs.py /data/engines/x/venv/lib/python3.12/site-packages",
        );
        let last_pip = script
            .iter()
            .rposition(|line| line.contains("pip install"))
            .unwrap();
        assert!(last_pip < stubs && stubs < script.len() - 1);
        assert!(find(name).unwrap().needs_compiler);
    }
}

#[test]
fn overrides_are_written_before_they_are_used() {
    for (name, file) in [
        ("vllm-cpu", "vllm-overrides.txt"),
        ("sglang-cpu", "sglang-overrides.txt"),
    ] {
        let script = script(name);
        let written = position(&script, &format!("write /data/engines/x/{file}"));
        assert!(written < position(&script, &format!("--override /data/engines/x/{file}")));
    }
}

#[test]
fn launchers_lie_in_the_engines_directory() {
    let at = |name: &str| find(name).unwrap().launcher_path(Path::new("/e"));
    assert_eq!(at("llamacpp"), Path::new("/e/llamacpp_server.py"));
    assert_eq!(at("vllm"), Path::new("/e/venv/bin/vllm"));
    assert_eq!(at("sglang-cpu"), Path::new("/e/sglang_launch.py"));
}
