//! Every file in `configs/` loads, without a network and without warnings.

use std::path::PathBuf;

use super::*;

/// All but the systemd unit.
fn examples() -> impl Iterator<Item = PathBuf> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("configs");
    let entries = std::fs::read_dir(dir).unwrap();
    let paths = entries.map(|entry| entry.unwrap().path());
    paths.filter(|path| path.extension() != Some("service".as_ref()))
}

#[test]
fn every_example_is_fine() {
    let mut seen = 0;
    for path in examples() {
        let loaded = Config::load(&path, &Environment::new(), &Overrides::default());
        let loaded = loaded.unwrap_or_else(|error| panic!("{}", error.render()));
        let open = !loaded.config.listen.ip().is_loopback();
        assert!(loaded.warnings.is_empty(), "{}", loaded.render_warnings());
        // Two tenants at least: sharing is what an example is about, and an open one needs keys.
        assert!(
            !open || loaded.config.tenants.iter().all(|t| !t.api_keys.is_empty()),
            "{path:?}"
        );
        seen += 1;
    }
    assert!(seen >= 5, "only {seen} examples");
}

#[test]
fn examples_start_with_what_they_are_for() {
    for path in examples() {
        let text = std::fs::read_to_string(&path).unwrap();
        let name = path.file_name().unwrap().to_str().unwrap();
        assert!(text.starts_with("# "), "{name}");
        assert!(
            text.contains(&format!("serve --config configs/{name}")),
            "{name}"
        );
    }
}
