//! `extra_args` and `env` that would work against what kvwarden sets itself.

use std::collections::BTreeMap;

use kvwarden_actors::engine::{EngineKind, Owner};

use crate::config::{
    path::KeyPath,
    report::{Report, Section},
};

/// Reports every argument and variable of a table that is not the author's to set.
pub(super) fn check_owned(
    section: &mut Section<'_>,
    args: &[String],
    env: &BTreeMap<String, String>,
    engine: EngineKind,
) {
    for (index, arg) in args.iter().enumerate() {
        // vLLM takes `--max_model_len` for `--max-model-len`.
        let flag = arg.split('=').next().unwrap_or_default().replace('_', "-");
        if let Some((name, owner)) = engine.dialect().owner_of(&flag) {
            let at = section.path.key("extra_args").index(index);
            report_owned(&at, name, owner, section.report);
        }
    }
    // What a server of the author's own is told is the author's.
    let is_own = engine.dialect().takes("command");
    for name in env.keys().filter(|_| !is_own) {
        if let Some(owner) = owner_of_variable(name) {
            let at = section.path.key("env").key(name);
            report_owned(&at, name, owner, section.report);
        }
    }
}

/// A variable of another engine has no effect either, and what was meant by it has a key.
fn owner_of_variable(name: &str) -> Option<Owner> {
    let engines = EngineKind::ALL.into_iter();
    let mut owned = engines.flat_map(|engine| engine.dialect().owns_env);
    let (_, owner) = owned.find(|(variable, _)| *variable == name)?;
    Some(*owner)
}

fn report_owned(at: &KeyPath, name: &str, owner: Owner, report: &mut Report) {
    match owner {
        Owner::Kvwarden(why) => report
            .problem(at, format!("`{name}` is set by kvwarden"))
            .help(why),
        Owner::Key(key) => report
            .problem(at, format!("`{name}` is set from `{key}`"))
            .help(format!("write `{key}` instead; kvwarden plans by it")),
    }
}
