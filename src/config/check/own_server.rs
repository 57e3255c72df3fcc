//! A server of the author's own: the command that starts it, and what kvwarden puts into it.

use std::{collections::BTreeMap, path::Path};

use kvwarden_actors::engine::{
    EngineKind, SourceKind,
    command::{Api, OwnServer, PLACEHOLDERS, placeholders},
};

use super::source::{Context, executable};
use crate::config::{file::ModelTable, path::KeyPath, read::one_of, report::Section};

/// The server of a model on `command`. `env` is what it is told, by its engine's table as well.
pub(super) fn own_server(
    section: &mut Section<'_>,
    model: &ModelTable,
    engine: EngineKind,
    env: &BTreeMap<String, String>,
    context: &Context<'_>,
) -> Option<Box<OwnServer>> {
    if engine.dialect().source != SourceKind::Command {
        return None;
    }
    check_command(section, model, env);
    if model.api.as_ref().is_some_and(Vec::is_empty) {
        section
            .problem("api", "a server that answers nothing is of no use")
            .help("leave it out for one that chats and completes");
    }
    let path = model.probe.as_ref();
    if path.is_some_and(|path| !path.starts_with('/')) {
        section
            .problem("probe", "a path begins with a slash")
            .help(r#"write the part behind the port, such as "/health""#);
    }
    if model.memory.is_none() && context.has_several_models {
        let at = section.path.key("memory");
        let message = "nothing is known of the memory that this server takes, so none is counted";
        section.report.warning(&at, message).help(
            r#"add `memory`, such as "6GiB": what it takes at most, of each GPU that it uses"#,
        );
    }
    let default = || vec![Api::Chat, Api::Completions];
    Some(Box::new(OwnServer {
        command: model.command.clone(),
        stop: stop(section, model, context),
        probe: model.probe.clone(),
        served_name: model.served_name.clone(),
        api: model.api.clone().unwrap_or_else(default),
        // Not the file's to say, and known once it is prepared.
        data_dir: String::new(),
    }))
}

/// The words that end it, of which the first is found as that of `command` is, unless a start decides it.
fn stop(section: &mut Section<'_>, model: &ModelTable, context: &Context<'_>) -> Vec<String> {
    let mut words = model.stop.clone();
    if let Some(program) = words.first_mut()
        && placeholders(program).next().is_none()
    {
        let found = executable(section, "stop", Path::new(program), context);
        *program = found.to_string_lossy().into_owned();
    }
    words
}

fn check_command(section: &mut Section<'_>, model: &ModelTable, env: &BTreeMap<String, String>) {
    if model.command.is_empty() {
        if !section.is_broken("command") {
            section
                .problem("command", "`command` needs a `command`")
                .help(r#"add what starts the server, such as `command = ["my-server", "--port", "{port}"]`"#);
        }
        return;
    }
    for (key, words) in [("command", &model.command), ("stop", &model.stop)] {
        for (index, word) in words.iter().enumerate() {
            let at = section.path.key(key).index(index);
            check_names(section, &at, word);
        }
    }
    check_env(section, &model.env);
    let mut told = model.command.iter().chain(env.values());
    if !told.any(|text| placeholders(text).any(|name| name == "port")) {
        section
            .problem("command", "nothing tells the server its port")
            .help("write `{port}` where its command or its `env` names the port; every start gets a free one");
    }
}

/// Reports names in braces that stand for nothing in the `env` of a table.
pub(super) fn check_env(section: &mut Section<'_>, env: &BTreeMap<String, String>) {
    for (variable, value) in env {
        let at = section.path.key("env").key(variable);
        check_names(section, &at, value);
    }
}

/// Reports names in braces that stand for nothing.
fn check_names(section: &mut Section<'_>, at: &KeyPath, word: &str) {
    for name in placeholders(word) {
        if !PLACEHOLDERS.contains(&name) {
            section
                .report
                .problem(at, format!("`{{{name}}}` stands for nothing"))
                .help(one_of(name, "names in braces", &PLACEHOLDERS));
        }
    }
}
