//! `kvwarden models`: the models of a running kvwarden.

use std::{
    io::{self, Write},
    process::ExitCode,
};

use comfy_table::Cell;

use super::{
    reply::{Model, Status},
    show,
    status::{StatusArgs, run_with},
};

/// Exit code 0 where all is well, 3 where a model is broken.
///
/// # Errors
/// When the server can't be asked.
pub fn run(args: &StatusArgs) -> anyhow::Result<ExitCode> {
    run_with(args, |status, _, out| render(status, out))
}

fn render(status: &Status, out: &mut dyn Write) -> io::Result<()> {
    let mut table = show::table([
        "MODEL",
        "ALIASES",
        "ENGINE",
        "STATE",
        "START",
        "AT",
        "RUNNING",
        "WAITING",
        "STARTED IN",
        "NOTE",
    ]);
    for model in &status.models {
        let aliases = model.aliases().collect::<Vec<_>>().join(", ");
        table.add_row([
            Cell::new(&model.id),
            show::maybe(Some(aliases).filter(|aliases| !aliases.is_empty())),
            Cell::new(&model.engine),
            show::state(model.state),
            show::number(model.generation),
            show::maybe(place(model)),
            show::number(format!("{}/{}", model.running, model.max_running)),
            show::number(model.waiting),
            show::maybe(
                model
                    .record
                    .recent_starts
                    .last()
                    .copied()
                    .map(show::seconds),
            ),
            Cell::new(model.record.note.as_deref().unwrap_or_default()),
        ]);
    }
    write!(out, "{}", show::lines(&table))
}

/// Where its engine is, as far as it has got.
fn place(model: &Model) -> Option<String> {
    match (&model.url, model.pid) {
        (Some(url), Some(pid)) => Some(format!("{url} (pid {pid})")),
        (Some(url), None) => Some(url.clone()),
        (None, Some(pid)) => Some(format!("pid {pid}")),
        (None, None) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::reply;

    #[test]
    fn each_model_is_one_line() {
        let mut out = Vec::new();
        let status = Status::read(reply::tests::status()).unwrap();
        render(&status, &mut out).unwrap();
        let text = String::from_utf8(anstream::adapter::strip_bytes(&out).into_vec()).unwrap();
        let lines: Vec<_> = text.lines().collect();
        assert_eq!(lines.len(), 3, "{text}");
        for part in [
            "z-alias",
            "ready",
            "http://127.0.0.1:1 (pid 42)",
            "3/8",
            "12.2 s",
        ] {
            assert!(lines[1].contains(part), "{text}");
        }
        assert!(lines[2].ends_with("not enough memory"), "{text}");
    }
}
