//! Medians, as a table and as JSON.

use std::fmt::Write as _;

use serde_json::{Value as Json, json};

use crate::{
    bench::Reading,
    peer::Peer,
    plot::Panel,
    trial::{ROWS, Row, Trial, Value},
};

/// All readings of one run.
#[derive(Debug, Default)]
pub(crate) struct Table {
    readings: Vec<(Peer, &'static str, Reading)>,
    failures: Vec<(Peer, &'static str, String)>,
}

impl Table {
    pub(crate) fn add(&mut self, peer: Peer, trial: &Trial, outcome: anyhow::Result<Reading>) {
        match outcome {
            Ok(reading) => self.readings.push((peer, trial.key, reading)),
            Err(error) => self.failures.push((peer, trial.key, format!("{error:#}"))),
        }
    }

    /// The rows of which something was measured.
    fn rows(&self) -> impl Iterator<Item = &'static Row> {
        ROWS.iter().filter(|row| {
            let mut trials = self.readings.iter().map(|(_, trial, _)| *trial);
            trials.any(|trial| trial == row.trial)
        })
    }

    fn median(&self, peer: Peer, row: &Row) -> Option<f64> {
        let of_peer = |peer: Peer| {
            let readings = self.readings.iter();
            let of_row = readings.filter(move |(of, trial, _)| *of == peer && *trial == row.trial);
            let values = of_row.filter_map(|(_, _, reading)| value(row.value, reading));
            median(values.collect())
        };
        let own = of_peer(peer)?;
        match (row.value, peer) {
            (Value::AddedMedian, Peer::Direct) => Some(own),
            (Value::AddedMedian, _) => Some(own - of_peer(Peer::Direct)?),
            _ => Some(own),
        }
    }

    pub(crate) fn text(&self, peers: &[Peer]) -> String {
        let mut text = format!("{:<58}", "");
        for peer in peers {
            let _ = write!(text, "{:>20}", peer.name());
        }
        for row in self.rows() {
            let _ = write!(text, "\n{:<58}", row.title);
            for peer in peers {
                let value = self.median(*peer, row).map_or("-".to_owned(), short);
                let _ = write!(text, "{value:>20}");
            }
        }
        text.push('\n');
        let mut told = Vec::new();
        for failure in &self.failures {
            if !told.contains(&failure) {
                told.push(failure);
                let (peer, trial, why) = failure;
                let why: String = why.chars().take(300).collect();
                let _ = write!(text, "\n{} ({trial}): {why}", peer.name());
            }
        }
        text
    }

    /// What costs CPU time in the rows of the README's table.
    pub(crate) fn panels(&self, peers: &[Peer]) -> Vec<Panel> {
        let is_cost = |row: &&Row| {
            matches!(row.trial, "c32" | "paced")
                && matches!(row.value, Value::CpuPerAnswer | Value::CpuPerMillionEvents)
        };
        let panels = self.rows().filter(is_cost).map(|row| {
            let bars = peers.iter().filter(|peer| **peer != Peer::Direct);
            let bars = bars.filter_map(|peer| Some((*peer, self.median(*peer, row)?)));
            let mut bars: Vec<_> = bars.collect();
            bars.sort_by(|(_, one), (_, other)| other.total_cmp(one));
            Panel {
                title: row.title.to_owned(),
                bars,
            }
        });
        panels.filter(|panel| !panel.bars.is_empty()).collect()
    }

    pub(crate) fn json(&self, peers: &[Peer]) -> Json {
        let rows: Vec<Json> = self
            .rows()
            .map(|row| {
                let medians: serde_json::Map<String, Json> = peers
                    .iter()
                    .filter_map(|peer| {
                        Some((peer.name().to_owned(), self.median(*peer, row)?.into()))
                    })
                    .collect();
                json!({ "trial": row.trial, "title": row.title, "medians": medians })
            })
            .collect();
        let failures: Vec<Json> = self
            .failures
            .iter()
            .map(|(peer, trial, why)| json!({ "peer": peer.name(), "trial": trial, "why": why }))
            .collect();
        json!({ "rows": rows, "readings": self.readings(), "failures": failures })
    }

    fn readings(&self) -> Vec<Json> {
        let all = self.readings.iter();
        all.map(|(peer, trial, reading)| {
            let mut values = serde_json::Map::new();
            for row in ROWS.iter().filter(|row| row.trial == *trial) {
                values.insert(row.title.to_owned(), value(row.value, reading).into());
            }
            json!({ "peer": peer.name(), "trial": trial, "values": values })
        })
        .collect()
    }
}

pub(crate) fn value(value: Value, reading: &Reading) -> Option<f64> {
    let Reading {
        counted,
        cpu,
        memory,
    } = reading;
    let (cpu, took) = (cpu.as_secs_f64(), counted.took.as_secs_f64());
    let number = match value {
        Value::CpuPerAnswer => cpu * 1e6 / counted.answers,
        Value::AnswersPerSecond => counted.answers / took,
        Value::AddedMedian => counted.times.percentile(50)?,
        Value::CpuPerMillionEvents => cpu * 1e6 / counted.events,
        Value::EventsPerSecond => counted.events / took,
        Value::MemoryPerStream => (memory.1 - memory.0) / counted.live,
        Value::Live => counted.live,
        Value::LatePercentile99 => counted.times.percentile(99)? / 1e3,
        Value::Memory => memory.0 / 1024.0,
    };
    number.is_finite().then_some(number)
}

pub(crate) fn median(mut values: Vec<f64>) -> Option<f64> {
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    match values.len() % 2 {
        1 => values.get(middle).copied(),
        _ => Some(f64::midpoint(
            *values.get(middle.checked_sub(1)?)?,
            *values.get(middle)?,
        )),
    }
}

pub(crate) fn short(value: f64) -> String {
    match value.abs() {
        size if size >= 1000.0 => {
            let mut whole = format!("{value:.0}");
            for place in (3..whole.len())
                .step_by(3)
                .map(|from_right| from_right + from_right / 3 - 1)
            {
                whole.insert(whole.len() - place, ',');
            }
            whole
        }
        size if size >= 100.0 => format!("{value:.0}"),
        size if size >= 10.0 => format!("{value:.1}"),
        _ => format!("{value:.2}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn median_of_an_even_number_is_between_the_two_in_the_middle() {
        assert_eq!(median(vec![]), None);
        assert_eq!(median(vec![3.0, 1.0, 2.0]), Some(2.0));
        assert_eq!(median(vec![4.0, 1.0, 2.0, 3.0]), Some(2.5));
    }

    #[test]
    fn numbers_are_short() {
        assert_eq!(short(77_123.4), "77,123");
        assert_eq!(short(9_716_363.0), "9,716,363");
        assert_eq!(short(279.4), "279");
        assert_eq!(short(7.66), "7.66");
    }
}
