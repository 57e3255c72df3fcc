//! `kvwarden models`: the models of a running kvwarden, and what an operator does to one.

use std::{
    io::{self, Write},
    process::ExitCode,
};

use clap::Args;
use comfy_table::{Cell, ColumnConstraint, ContentArrangement, Table, Width};
use kvwarden_policy::residency::Until;

use super::{
    reply::{Engine, Gpu, Model, Resident, Status},
    status::{StatusArgs, run_with},
    wish::{self, Verb},
};
use crate::terminal;

/// A note is a sentence: below this width it is not worth a column of its own.
const NARROWEST_NOTE: u16 = 24;

/// Options of `kvwarden models`.
#[derive(Args, Clone, Debug)]
pub struct ModelsArgs {
    #[command(flatten)]
    status: StatusArgs,
    #[command(subcommand)]
    verb: Option<Verb>,
}

/// Shows the models, or does something to one. Exit code 0 where all is well, 3 where a model is
/// broken, 4 where a wish came to nothing.
///
/// # Errors
/// When the server can't be asked.
pub fn run(args: &ModelsArgs) -> anyhow::Result<ExitCode> {
    match &args.verb {
        Some(verb) => wish::run(verb, &args.status),
        None => run_with(&args.status, |status, _, out| render(status, out)),
    }
}

fn render(status: &Status, out: &mut dyn Write) -> io::Result<()> {
    write!(out, "{}", terminal::lines(&table(status)))
}

fn table(status: &Status) -> Table {
    let mut table = terminal::table([
        "MODEL",
        "ENGINE",
        "STATE",
        "DEVICES",
        "MEMORY",
        "SCORE",
        "RATE",
        "SAVED KV",
        "RUNNING",
        "WAITING",
        "STARTED IN",
        "NOTE",
    ]);
    // Where it is printed to no terminal nothing limits its width.
    table.set_content_arrangement(ContentArrangement::Dynamic);
    for model in &status.models {
        for (index, engine) in model.engines.iter().enumerate() {
            table.add_row(row(model, index, engine, &status.gpu));
        }
    }
    if let Some(note) = table.column_mut(11) {
        note.set_constraint(ColumnConstraint::LowerBoundary(Width::Fixed(
            NARROWEST_NOTE,
        )));
    }
    table
}

/// What all engines of a model share stands in the line of its first one.
fn row(model: &Model, index: usize, engine: &Engine, gpu: &Gpu) -> [Cell; 12] {
    let resident = gpu.resident(&engine.engine);
    let first = |text: String| if index == 0 { text } else { String::new() };
    let running = match model.engines.len() {
        1 => format!("{}/{}", model.running, model.max_running),
        _ => engine.occupancy.running.to_string(),
    };
    let until = resident.and_then(|resident| resident.until);
    let started = engine.record.recent_starts.last().copied();
    let saved = Some(engine.record.saved.bytes).filter(|bytes| *bytes > 0);
    [
        Cell::new(format!("{}{}", engine.engine, first(aliases(model)))),
        Cell::new(&engine.kind),
        terminal::state(engine.state),
        terminal::maybe(resident.and_then(|resident| devices(resident, gpu))),
        terminal::maybe(resident.and_then(memory)),
        terminal::maybe(resident.map(score)),
        terminal::maybe(resident.map(|resident| rate(resident.rate))),
        terminal::maybe(saved.map(terminal::bytes)),
        terminal::number(running),
        terminal::number(waiting(&first(model.waiting.to_string()), until)),
        terminal::maybe(started.map(terminal::seconds)),
        Cell::new(engine.record.note.as_deref().unwrap_or_default()),
    ]
}

fn aliases(model: &Model) -> String {
    let aliases = model.aliases().collect::<Vec<_>>().join(", ");
    match aliases.as_str() {
        "" => String::new(),
        _ => format!(" ({aliases})"),
    }
}

fn devices(resident: &Resident, gpu: &Gpu) -> Option<String> {
    let devices = resident.devices.iter().map(|id| gpu.device_name(id));
    Some(devices.collect::<Vec<_>>().join(", ")).filter(|devices| !devices.is_empty())
}

fn memory(resident: &Resident) -> Option<String> {
    let each = terminal::bytes(resident.bytes);
    match (resident.bytes, resident.devices.len()) {
        (0, _) => None,
        (_, 0 | 1) => Some(each),
        (_, several) => Some(format!("{several} x {each}")),
    }
}

fn score(resident: &Resident) -> String {
    match resident.is_pinned {
        true => "pinned".to_owned(),
        false => format!("{:.2}", resident.value),
    }
}

/// Models are asked for from once a day to hundreds of times a second.
fn rate(per_second: f64) -> String {
    if per_second == 0.0 {
        "0".to_owned()
    } else if per_second >= 1.0 {
        format!("{per_second:.1}/s")
    } else if per_second * 60.0 >= 1.0 {
        format!("{:.1}/min", per_second * 60.0)
    } else {
        format!("{:.1}/h", per_second * 3600.0)
    }
}

fn waiting(requests: &str, until: Option<Until>) -> String {
    match until {
        Some(until) => format!("{requests} {}", terminal::waits_for(until))
            .trim()
            .to_owned(),
        None => requests.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::cli::reply;

    fn printed(json: Value) -> String {
        let mut out = Vec::new();
        render(&Status::read(json).unwrap(), &mut out).unwrap();
        String::from_utf8(anstream::adapter::strip_bytes(&out).into_vec()).unwrap()
    }

    #[test]
    fn each_engine_is_one_line() {
        let text = printed(reply::tests::status());
        let lines: Vec<_> = text.lines().collect();
        assert_eq!(lines.len(), 3, "{text}");
        let parts = [
            "z (z-alias)",
            "ready",
            "host",
            "5.0 GiB",
            "1.25",
            "30.0/min",
            "3.0 MiB",
            "3/8",
            "12.2 s",
        ];
        for part in parts {
            assert!(lines[1].contains(part), "{part} is not in\n{text}");
        }
        assert!(lines[2].ends_with("not enough memory"), "{text}");
    }

    #[test]
    fn second_engine_of_a_model_has_a_line_with_its_own_figures() {
        let mut json = reply::tests::status();
        let engines = &mut json["loaded_models"]["z"]["engines"];
        let mut second = engines[0].clone();
        second["engine"] = json!("z#2");
        second["state"] = json!("waiting");
        second["from"] = json!("cold");
        second["occupancy"]["running"] = json!(0);
        engines.as_array_mut().unwrap().push(second);
        let mut resident = json["gpu"]["residents"][0].clone();
        resident["engine"] = json!("z#2");
        resident["devices"] = json!([]);
        resident["bytes"] = json!(0);
        resident["is_pinned"] = json!(true);
        resident["until"] = json!("room");
        json["gpu"]["residents"]
            .as_array_mut()
            .unwrap()
            .push(resident);
        let text = printed(json);
        let line = text.lines().find(|line| line.trim().starts_with("z#2"));
        let words: Vec<_> = line.unwrap().split_whitespace().collect();
        let shown = [
            "z#2", "sim", "waiting", "for", "a", "place", "-", "-", "pinned", "30.0/min", "3.0",
            "MiB", "0", "(no", "room)", "12.2", "s",
        ];
        assert_eq!(words, shown, "{text}");
    }

    #[test]
    fn tensor_parallel_model_shows_what_it_takes_of_each_gpu() {
        let mut json = reply::tests::status();
        json["gpu"]["residents"][0]["devices"] = json!(["GPU-a", "GPU-b"]);
        let gpu = |index: u32, uuid: &str| {
            json!({ "index": index, "uuid": uuid, "name": "H100", "total": 1, "used": 0,
                "utilization": null, "temperature": null })
        };
        json["gpu"]["devices"] =
            json!({ "state": "devices", "devices": [gpu(0, "GPU-a"), gpu(1, "GPU-b")] });
        let text = printed(json);
        assert!(text.contains("GPU 0, GPU 1"), "{text}");
        assert!(text.contains("2 x 5.0 GiB"), "{text}");
    }

    #[test]
    fn narrow_terminal_wraps_instead_of_cutting() {
        let mut table = table(&Status::read(reply::tests::status()).unwrap());
        let text = table.set_width(120).to_string();
        let text = anstream::adapter::strip_str(&text).to_string();
        assert!(
            text.lines().all(|line| line.chars().count() <= 120),
            "{text}"
        );
        assert!(text.contains("not enough memory"), "{text}");
    }
}
