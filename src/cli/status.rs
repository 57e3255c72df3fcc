//! `kvwarden status`: what a running kvwarden does at this moment.

use std::{
    io::{self, Write},
    process::ExitCode,
};

use clap::Args;
use comfy_table::Cell;
use kvwarden_actors::device::{DeviceReading, Reading};
use serde_json::Value;

use super::{
    client::{ClientError, Target},
    reply::{Gpu, Memory, Model, Status, Tenant},
};
use crate::terminal::{self, BAD, CARE, HEAD, QUIET};

/// A model needs a hand; 1 is for a server that can't be asked.
pub(super) const BROKEN: u8 = 3;

/// Options of `kvwarden status` and `kvwarden models`.
#[derive(Args, Clone, Debug)]
#[command(
    after_help = "Exit code: 0 where all is well, 1 where the server cannot be asked, 3 where a model is broken."
)]
pub struct StatusArgs {
    #[command(flatten)]
    pub(super) target: Target,
    /// Print JSON: the server's own answer
    #[arg(long, global = true)]
    pub(super) json: bool,
}

/// Exit code 0 where all is well, 3 where a model is broken.
///
/// # Errors
/// When the server can't be asked.
pub fn run(args: &StatusArgs) -> anyhow::Result<ExitCode> {
    run_with(args, |status, base, out| render(status, base, out))
}

/// Asks, prints with `render`, judges.
pub(super) fn run_with(
    args: &StatusArgs,
    render: impl Fn(&Status, &str, &mut dyn Write) -> io::Result<()>,
) -> anyhow::Result<ExitCode> {
    let (json, status) = ask(args)?;
    let mut out = anstream::stdout().lock();
    if args.json {
        writeln!(out, "{json:#}")?;
    } else {
        render(&status, &args.target.base(), &mut out)?;
    }
    Ok(if status.has_broken() {
        ExitCode::from(BROKEN)
    } else {
        ExitCode::SUCCESS
    })
}

/// What the server says, as it says it and as far as we know what it means.
pub(super) fn ask(args: &StatusArgs) -> Result<(Value, Status), ClientError> {
    let json = args.target.get_json("/kvwarden/status")?;
    let status = Status::read(json.clone()).map_err(|error| ClientError::NotOurs {
        url: args.target.base(),
        reason: error.to_string(),
    })?;
    Ok((json, status))
}

fn render(status: &Status, base: &str, out: &mut dyn Write) -> io::Result<()> {
    render_totals(status, base, out)?;
    writeln!(out)?;
    render_models(&status.models, out)?;
    writeln!(out)?;
    render_tenants(&status.tenants, out)?;
    writeln!(out)?;
    render_devices(&status.gpu.devices, out)?;
    render_memory(&status.gpu, out)
}

fn render_totals(status: &Status, base: &str, out: &mut dyn Write) -> io::Result<()> {
    let (version, uptime) = (&status.version, terminal::seconds(status.totals.uptime_s));
    writeln!(
        out,
        "{HEAD}kvwarden {version}{HEAD:#} at {base}, up {uptime}"
    )?;
    if status.admission.is_draining {
        writeln!(out, "{CARE}stopping: nobody new is let in{CARE:#}")?;
    }
    if !status.unresponsive_actors.is_empty() {
        let actors = status.unresponsive_actors.join(", ");
        writeln!(out, "{BAD}no answer from {actors}{BAD:#}")?;
    }
    let reload = status.last_reload.as_ref();
    if reload.is_some_and(|reload| reload.error.is_some()) {
        writeln!(
            out,
            "{CARE}the configuration file was refused when it was last read; `kvwarden reload` says why{CARE:#}"
        )?;
    }
    writeln!(
        out,
        "{} running, {} waiting, at most {} in flight; {} since it started",
        status.admission.in_flight,
        status.admission.queue_depth,
        terminal::thousands(status.admission.max_in_flight as u64),
        requests(status.totals.total_requests),
    )
}

fn requests(number: u64) -> String {
    let s = if number == 1 { "" } else { "s" };
    format!("{} request{s}", terminal::thousands(number))
}

fn render_models(models: &[Model], out: &mut dyn Write) -> io::Result<()> {
    let mut table = terminal::table([
        "MODEL", "STATE", "ENGINE", "PID", "RUNNING", "WAITING", "STARTS", "FAILURES",
    ]);
    for model in models {
        table.add_row([
            Cell::new(&model.id),
            terminal::state(model.state),
            Cell::new(&model.engine),
            terminal::maybe(model.pid),
            terminal::number(format!("{}/{}", model.running, model.max_running)),
            terminal::number(model.waiting),
            terminal::number(model.record.starts),
            terminal::number(model.record.failures),
        ]);
    }
    write!(out, "{}", terminal::lines(&table))?;
    models.iter().try_for_each(|model| render_note(model, out))
}

/// Notes are sentences and log lines are long, so they stand below the table.
fn render_note(model: &Model, out: &mut dyn Write) -> io::Result<()> {
    let style = match (model.is_broken(), model.is_failing()) {
        (true, _) => BAD,
        (false, true) => CARE,
        (false, false) => QUIET,
    };
    let id = &model.id;
    if let Some(note) = &model.record.note {
        writeln!(out, " {style}{id}: {note}{style:#}")?;
    }
    if let Some(words) = model.last_words().filter(|_| model.is_failing()) {
        writeln!(out, " {style}{id}{style:#} said last: {words}")?;
    }
    Ok(())
}

fn render_tenants(tenants: &[Tenant], out: &mut dyn Write) -> io::Result<()> {
    if tenants.is_empty() {
        return writeln!(out, " no tenant yet");
    }
    let mut table = terminal::table([
        "TENANT",
        "IN FLIGHT",
        "ADMITTED",
        "REFUSED",
        "PROMPT TOKENS",
        "CACHED",
        "GENERATED",
    ]);
    for tenant in tenants {
        table.add_row([
            Cell::new(&tenant.id),
            terminal::number(tenant.in_flight),
            terminal::number(terminal::thousands(tenant.admitted)),
            terminal::number(terminal::thousands(tenant.refused)),
            terminal::number(terminal::thousands(tenant.used.prompt_tokens)),
            terminal::number(terminal::thousands(tenant.used.cached_tokens)),
            terminal::number(terminal::thousands(tenant.used.completion_tokens)),
        ]);
    }
    write!(out, "{}", terminal::lines(&table))
}

fn render_devices(reading: &Reading, out: &mut dyn Write) -> io::Result<()> {
    match reading {
        Reading::NotYet => writeln!(out, " GPUs are being looked for"),
        Reading::NoGpu { .. } => writeln!(out, " no GPU: engines run on the CPU"),
        Reading::Lost { reason } => {
            writeln!(out, " {BAD}the GPU driver does not answer{BAD:#}: {reason}")
        }
        Reading::Devices { devices } => write!(out, "{}", terminal::lines(&device_table(devices))),
    }
}

fn device_table(devices: &[DeviceReading]) -> comfy_table::Table {
    let mut table = terminal::table(["GPU", "NAME", "MEMORY IN USE", "BUSY", "TEMPERATURE"]);
    for device in devices {
        let memory = format!(
            "{} of {}",
            terminal::bytes(device.used),
            terminal::bytes(device.total)
        );
        table.add_row([
            terminal::number(device.index),
            Cell::new(&device.name),
            Cell::new(memory),
            terminal::maybe(device.utilization.map(|share| format!("{share} %"))),
            terminal::maybe(device.temperature.map(|degrees| format!("{degrees} C"))),
        ]);
    }
    table
}

/// What the planner shares out, which is less than what the driver sees.
fn render_memory(gpu: &Gpu, out: &mut dyn Write) -> io::Result<()> {
    let mut table = terminal::table(["MEMORY", "TAKEN BY MODELS", "NOW"]);
    let is_shared = |memory: &&Memory| memory.capacity != u64::MAX || memory.taken > 0;
    for memory in gpu.memory.iter().filter(is_shared) {
        table.add_row([
            Cell::new(gpu.device_name(&memory.id)),
            Cell::new(taken(memory)),
            terminal::maybe(doing(memory)),
        ]);
    }
    match table.is_empty() {
        true => Ok(()),
        false => write!(out, "\n{}", terminal::lines(&table)),
    }
}

fn taken(memory: &Memory) -> String {
    let taken = terminal::bytes(memory.taken);
    match memory.capacity {
        u64::MAX => format!("{taken}, no limit"),
        capacity => format!("{taken} of {}", terminal::bytes(capacity)),
    }
}

fn doing(memory: &Memory) -> Option<&'static str> {
    match (memory.is_quarantined, memory.is_changing) {
        (true, _) => Some("quarantined: memory is missing, nothing starts here"),
        (false, true) => Some("changing"),
        (false, false) => None,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::cli::reply;

    fn printed(json: Value) -> String {
        let mut out = Vec::new();
        render(&Status::read(json).unwrap(), "http://here", &mut out).unwrap();
        String::from_utf8(anstream::adapter::strip_bytes(&out).into_vec()).unwrap()
    }

    fn words<'a>(text: &'a str, start: &str) -> Vec<&'a str> {
        let mut lines = text.lines().map(|line| line.split_whitespace());
        let found = lines.find(|words| words.clone().next() == Some(start));
        found.unwrap_or_else(|| panic!("{text}")).collect()
    }

    #[test]
    fn every_model_tenant_and_total_is_shown() {
        let text = printed(reply::tests::status());
        assert!(text.starts_with("kvwarden 0.1.0 at http://here, up 1 h 1 min\n"));
        assert!(text.contains("3 running, 1 waiting, at most 64 in flight; 1,239 requests since"));
        assert_eq!(
            words(&text, "z"),
            ["z", "ready", "sim", "42", "3/8", "1", "2", "1"]
        );
        assert_eq!(
            words(&text, "acme"),
            ["acme", "4", "1,234", "5", "1,500,000", "10", "7"]
        );
        assert!(text.contains("no GPU: engines run on the CPU"));
    }

    #[test]
    fn broken_model_shows_its_note_and_its_last_words() {
        let text = printed(reply::tests::status());
        assert!(text.contains(" b: not enough memory\n"), "{text}");
        assert!(
            text.contains(" b said last: CUDA out of memory\n"),
            "{text}"
        );
    }

    #[test]
    fn model_that_serves_keeps_its_old_words_to_itself() {
        let mut json = reply::tests::status();
        json["loaded_models"]["z"]["record"]["log_tail"] = json!(["old"]);
        assert!(!printed(json).contains("z said last"));
    }

    #[test]
    fn shared_memory_is_shown_by_device() {
        let mut json = reply::tests::status();
        let text = printed(json.clone());
        let shown = ["host", "5.0", "GiB", "of", "8.0", "GiB", "changing"];
        assert_eq!(words(&text, "host"), shown);
        json["gpu"]["memory"][0]["is_quarantined"] = json!(true);
        assert!(printed(json.clone()).contains("quarantined"));
        json["gpu"]["memory"][0]["capacity"] = json!(u64::MAX);
        assert!(printed(json.clone()).contains("5.0 GiB, no limit"));
        json["gpu"]["memory"][0]["taken"] = json!(0);
        assert!(!printed(json).contains("no limit"));
    }

    #[test]
    fn devices_show_memory_and_leave_out_what_is_not_told() {
        let mut json = reply::tests::status();
        json["gpu"]["devices"] = json!({ "state": "devices", "devices": [{
            "index": 0, "uuid": "GPU-1", "name": "H100", "total": 80_u64 << 30, "used": 3_u64 << 29,
            "utilization": null, "temperature": 45 }] });
        let text = printed(json);
        let shown = [
            "0", "H100", "1.5", "GiB", "of", "80.0", "GiB", "-", "45", "C",
        ];
        assert_eq!(words(&text, "0"), shown);
    }
}
