//! The report as files: `summary.json`, `requests.jsonl`, `fairness.svg`, `fairness.png`.

use std::{
    fs,
    io::{BufWriter, Write as _},
    path::{Path, PathBuf},
    time::SystemTime,
};

use anyhow::Context as _;
use serde_json::{Value, json};

use super::{Machine, Report};
use crate::lab::plot;

/// Writes everything into `dir`, which is made; returns the paths.
///
/// # Errors
/// When the files can't be written or the picture can't be drawn.
pub fn write_all(report: &Report, dir: &Path) -> anyhow::Result<Vec<PathBuf>> {
    fs::create_dir_all(dir).with_context(|| format!("cannot make {}", dir.display()))?;
    let summary = dir.join("summary.json");
    fs::write(&summary, format!("{:#}\n", serde_json::to_value(report)?))?;
    let requests = dir.join("requests.jsonl");
    write_requests(report, &requests)?;
    let [svg, png] = ["fairness.svg", "fairness.png"].map(|name| dir.join(name));
    fs::write(&svg, plot::svg(report)?)?;
    fs::write(&png, plot::png(report)?)?;
    Ok(vec![summary, requests, svg, png])
}

/// One line per request, in the order of arms, rounds, tenants and time; warm-up included.
fn write_requests(report: &Report, path: &Path) -> anyhow::Result<()> {
    let mut out = BufWriter::new(fs::File::create(path)?);
    for arm in &report.arms {
        for (round, samples) in arm.runs.iter().enumerate() {
            for sample in samples {
                let party = report.workload.parties.get(sample.tenant);
                let tenant = party.map_or("", |party| party.load.tenant.as_str());
                let mut row = json!({ "arm": arm.arm.name(), "round": round + 1 });
                if let Some(label) = report.label {
                    row["label"] = label.into();
                }
                if let (Some(row), Value::Object(rest)) = (row.as_object_mut(), sample.row(tenant))
                {
                    row.extend(rest);
                }
                writeln!(out, "{row}")?;
            }
        }
    }
    out.flush()?;
    Ok(())
}

/// The date as HTTP writes it, in UTC.
pub(super) fn now() -> String {
    actix_web::http::header::HttpDate::from(SystemTime::now()).to_string()
}

pub(super) fn machine() -> Machine {
    let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
    let processor = read("/proc/cpuinfo")
        .lines()
        .find_map(|line| line.strip_prefix("model name")?.split_once(": "))
        .map_or_else(|| "unknown".to_owned(), |(_, name)| name.to_owned());
    let kernel = read("/proc/sys/kernel/osrelease");
    Machine {
        processor,
        cores: std::thread::available_parallelism().map_or(0, usize::from),
        load_average: read("/proc/loadavg")
            .split(' ')
            .next()
            .unwrap_or_default()
            .to_owned(),
        system: format!(
            "{} {} {}",
            std::env::consts::OS,
            kernel.trim(),
            std::env::consts::ARCH
        ),
    }
}
