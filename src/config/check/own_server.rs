//! A server of the author's own: the command that starts it, and what kvwarden puts into it.

use kvwarden_actors::engine::{
    EngineKind, SourceKind,
    command::{Api, OwnServer, PLACEHOLDERS, placeholders},
};

use crate::config::{file::ModelTable, path::KeyPath, read::one_of, report::Section};

/// The server of a model on `command`.
pub(super) fn own_server(
    section: &mut Section<'_>,
    model: &ModelTable,
    engine: EngineKind,
) -> Option<Box<OwnServer>> {
    if engine.dialect().source != SourceKind::Command {
        return None;
    }
    check_command(section, model);
    let path = model.probe.as_ref();
    if path.is_some_and(|path| !path.starts_with('/')) {
        section
            .problem("probe", "a path begins with a slash")
            .help(r#"write the part behind the port, such as "/health""#);
    }
    let default = || vec![Api::Chat, Api::Completions];
    Some(Box::new(OwnServer {
        command: model.command.clone(),
        stop: model.stop.clone(),
        probe: model.probe.clone(),
        served_name: model.served_name.clone(),
        api: model.api.clone().unwrap_or_else(default),
        // Not the file's to say, and known once it is prepared.
        data_dir: String::new(),
    }))
}

fn check_command(section: &mut Section<'_>, model: &ModelTable) {
    if model.command.is_empty() {
        if !section.is_broken("command") {
            section
                .problem("command", "`command` needs a `command`")
                .help(r#"add what starts the server, such as `command = ["my-server", "--port", "{port}"]`"#);
        }
        return;
    }
    let mut names = Vec::new();
    for (key, words) in [("command", &model.command), ("stop", &model.stop)] {
        for (index, word) in words.iter().enumerate() {
            let at = section.path.key(key).index(index);
            names.extend(check_names(section, &at, word));
        }
    }
    for (variable, value) in &model.env {
        let at = section.path.key("env").key(variable);
        names.extend(check_names(section, &at, value));
    }
    if !names.contains(&"port") {
        section
            .problem("command", "nothing tells the server its port")
            .help("write `{port}` where its command or its `env` names the port; every start gets a free one");
    }
}

/// Reports names in braces that stand for nothing.
fn check_names<'w>(section: &mut Section<'_>, at: &KeyPath, word: &'w str) -> Vec<&'w str> {
    let names: Vec<_> = placeholders(word).collect();
    for name in &names {
        if !PLACEHOLDERS.contains(name) {
            section
                .report
                .problem(at, format!("`{{{name}}}` stands for nothing"))
                .help(one_of(name, "names in braces", &PLACEHOLDERS));
        }
    }
    names
}
