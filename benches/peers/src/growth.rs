//! Whether kvwarden's cost stays what it is when there is more of something: tenants, requests that
//! wait, models, streams, workers.

use std::{
    fmt::Write as _,
    path::{Path, PathBuf},
    rc::Rc,
    time::Duration,
};

use anyhow::Context as _;
use serde_json::{Value as Json, json};

use crate::{
    answer::Plan,
    backend::{Backend, Pace},
    bench::{END, LOAD_CORE, PROXY_CORE, Reading, until_ready},
    engine,
    load::{Call, Load, float},
    peer::{MAX_CONCURRENT, Peer, Setting, free_port, tenant},
    process::{Process, move_to},
    table::{median, short, value},
    trial::{Question, Value},
};

/// Clients that ask in a closed loop.
const CLIENTS: u32 = 32;

/// How much there is of everything.
#[derive(Debug, Clone, Copy)]
struct Size {
    tenants: u32,
    queued: u32,
    models: u32,
    streams: u32,
    workers: usize,
}

const SMALL: Size = Size {
    tenants: 1,
    queued: 0,
    models: 1,
    streams: 0,
    workers: 1,
};

/// What grows, and how.
type Row = (&'static str, fn(u32) -> Size, &'static [u32]);

const ROWS: [Row; 5] = [
    (
        "tenants",
        |tenants| Size { tenants, ..SMALL },
        &[1, 1000, 10_000],
    ),
    // Each of them is a connection, and a process may have 20,000 descriptors on many a machine.
    (
        "queued",
        |queued| Size { queued, ..SMALL },
        &[0, 1000, 10_000],
    ),
    ("models", |models| Size { models, ..SMALL }, &[1, 16, 64]),
    (
        "streams",
        |streams| Size { streams, ..SMALL },
        &[1, 100, 9500],
    ),
    (
        "workers",
        |workers| Size {
            workers: workers as usize,
            ..SMALL
        },
        &[1, 2],
    ),
];

/// Every row, in so many rounds.
pub(crate) async fn run(
    kvwarden: &Path,
    rounds: u32,
    window: Duration,
) -> anyhow::Result<(String, Json)> {
    let growth = Growth::new(kvwarden, window).await?;
    let mut cells: Vec<Cell> = Vec::new();
    for round in 0..rounds {
        let steps = ROWS
            .iter()
            .flat_map(|(row, size, steps)| steps.iter().map(|step| (*row, *size, *step)));
        for (place, (row, size, step)) in steps.enumerate() {
            anstream::eprintln!("round {}: {step} {row}", round + 1);
            if round == 0 {
                cells.push(Cell {
                    row,
                    step,
                    readings: Vec::new(),
                    why: None,
                });
            }
            match growth.measure(size(step)).await {
                Ok(reading) => cells[place].readings.push(reading),
                Err(error) => cells[place].why = Some(format!("{error:#}")),
            }
        }
    }
    Ok((
        text(&cells),
        json!(cells.iter().map(Cell::json).collect::<Vec<_>>()),
    ))
}

/// What one size of one thing gave.
struct Cell {
    row: &'static str,
    step: u32,
    readings: Vec<Reading>,
    why: Option<String>,
}

impl Cell {
    fn median(&self, of: Value) -> Option<f64> {
        median(
            self.readings
                .iter()
                .filter_map(|reading| value(of, reading))
                .collect(),
        )
    }

    /// CPU time in microseconds, of a request or, for streams, of a chunk.
    fn cpu(&self) -> Option<f64> {
        self.median(match self.row {
            "streams" => Value::CpuPerMillionEvents,
            _ => Value::CpuPerAnswer,
        })
    }

    fn json(&self) -> Json {
        json!({
            "of": self.row, "size": self.step, "cpu_us": self.cpu(),
            "p99_ms": self.median(Value::LatePercentile99), "why": self.why,
        })
    }
}

fn text(cells: &[Cell]) -> String {
    let mut text = format!(
        "{:<10}{:>10}{:>22}{:>12}\n",
        "of", "size", "CPU us/request|chunk", "p99, ms"
    );
    for cell in cells {
        let number = |value: Option<f64>| value.map_or("-".to_owned(), short);
        let (cpu, late) = (
            number(cell.cpu()),
            number(cell.median(Value::LatePercentile99)),
        );
        let _ = write!(text, "{:<10}{:>10}{cpu:>22}{late:>12}", cell.row, cell.step);
        let _ = writeln!(text, "  {}", cell.why.as_deref().unwrap_or_default());
    }
    text
}

struct Growth {
    backend: Rc<Backend>,
    port: u16,
    engines: u16,
    kvwarden: PathBuf,
    window: Duration,
    dir: tempfile::TempDir,
}

impl Growth {
    async fn new(kvwarden: &Path, window: Duration) -> anyhow::Result<Self> {
        move_to(&[LOAD_CORE]).context("two cores are needed")?;
        let (backend, port) = Backend::start().await?;
        Ok(Self {
            engines: engine::await_engines(Rc::clone(&backend)).await?,
            backend,
            port,
            kvwarden: kvwarden.to_owned(),
            window,
            dir: tempfile::tempdir()?,
        })
    }

    async fn measure(&self, size: Size) -> anyhow::Result<Reading> {
        let dir = tempfile::Builder::new().tempdir_in(self.dir.path())?.keep();
        let port = free_port()?;
        let tenants = (0..size.tenants).map(|n| format!("[tenants.{}]\n", tenant(n)));
        let setting = Setting {
            dir: &dir,
            port,
            backend: self.port,
            engines: self.engines,
            models: size.models,
            // All others wait.
            max_concurrent: if size.queued > 0 {
                CLIENTS
            } else {
                MAX_CONCURRENT
            },
            tenants: &tenants.collect::<String>(),
            kvwarden: &self.kvwarden,
        };
        let mut command = Peer::Kvwarden
            .command(&setting)?
            .context("nothing to start")?;
        let cores = &[PROXY_CORE, LOAD_CORE][..size.workers];
        let mut process = Process::start(&mut command, cores, LOAD_CORE)?;
        self.backend.pace.set(Pace::AtOnce);
        self.backend.plan.set(plan(64));
        let question = Question::Chat {
            is_streamed: size.streams > 0,
            prompt: 700,
        };
        let call = Call::of_many(port, question, size.models, size.tenants);
        until_ready(&call, &mut process, &dir).await?;
        let reading = self.read(&process, size, &call).await;
        process.end(END).await;
        reading
    }

    async fn read(&self, process: &Process, size: Size, call: &Call) -> anyhow::Result<Reading> {
        let load = match size.streams {
            0 => Load::closed(call, CLIENTS + size.queued).await,
            streams => {
                // About as many chunks a second, whatever there are.
                let pace = Duration::from_millis(u64::from(streams / 25).clamp(2, 400));
                self.backend.pace.set(Pace::Each(pace));
                self.backend.plan.set(plan(u32::MAX));
                Load::streams(call, streams, self.backend.began, pace).await
            }
        };
        let before = process.cpu();
        let counted = load.count(self.window).await;
        let reading = counted.map(|counted| Reading {
            counted,
            cpu: process.cpu() - before,
            memory: (0.0, float(process.memory())),
        });
        load.end().await;
        reading
    }
}

const fn plan(tokens: u32) -> Plan {
    Plan {
        tokens,
        calls_tools: false,
    }
}
