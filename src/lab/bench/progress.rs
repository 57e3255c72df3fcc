//! A bar per arm while a bench runs; on no terminal, a line per run.

use std::{collections::BTreeMap, io::IsTerminal as _, time::Duration};

use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::{arm::Arm, load::Live, stats::nearest_rank};

const STYLE: &str = "{prefix:>8.bold} [{bar:24}] {elapsed:>4}  {wide_msg}";

/// Shows how far the arms are.
pub struct Display {
    whole: MultiProgress,
    bars: BTreeMap<Arm, ProgressBar>,
    is_terminal: bool,
}

// === impl Display ===

impl Display {
    /// One bar per arm, each as long as all its rounds.
    #[must_use]
    pub fn new(arms: &[Arm], rounds: u32, lasting: Duration) -> Self {
        let is_terminal = std::io::stderr().is_terminal();
        let target = match is_terminal {
            true => ProgressDrawTarget::stderr(),
            false => ProgressDrawTarget::hidden(),
        };
        let whole = MultiProgress::with_draw_target(target);
        let length = u64::from(rounds) * lasting.as_secs();
        let bar = |arm: &Arm| {
            let bar = whole.add(ProgressBar::new(length.max(1)));
            if let Ok(style) = ProgressStyle::with_template(STYLE) {
                bar.set_style(style.progress_chars("=> "));
            }
            bar.set_prefix(arm.name());
            (*arm, bar)
        };
        let bars = arms.iter().map(bar).collect();
        Self {
            whole,
            bars,
            is_terminal,
        }
    }

    /// Something worth a line of its own.
    pub fn say(&self, line: &str) {
        match self.is_terminal {
            // Nobody is left to tell that stderr is closed.
            true => drop(self.whole.println(line)),
            false => anstream::eprintln!("{line}"),
        }
    }

    /// A server is being started.
    pub fn starting(&self, arm: Arm, what: &str) {
        if let Some(bar) = self.bars.get(&arm) {
            bar.reset_elapsed();
            bar.set_message(what.to_owned());
            bar.tick();
        }
    }

    /// A run goes on: `done` is over all rounds.
    pub fn update(&self, arm: Arm, done: Duration, live: &Live, is_quiet: impl Fn(usize) -> bool) {
        if let Some(bar) = self.bars.get(&arm) {
            bar.set_position(done.as_secs());
            bar.set_message(summary(live, is_quiet));
        }
    }

    /// A run ended.
    pub fn ended(&self, arm: Arm, round: u32, live: &Live, is_quiet: impl Fn(usize) -> bool) {
        let summary = summary(live, is_quiet);
        match self.bars.get(&arm) {
            Some(bar) if self.is_terminal => bar.set_message(summary),
            _ => self.say(&format!("{:>8} round {round}: {summary}", arm.name())),
        }
    }

    /// The bars stay, as they were.
    pub fn finish(&self) {
        self.bars.values().for_each(ProgressBar::abandon);
    }
}

fn summary(live: &Live, is_quiet: impl Fn(usize) -> bool) -> String {
    let ttfts = live.ttfts.borrow();
    let mut quiet: Vec<_> = ttfts
        .iter()
        .filter(|(tenant, _)| is_quiet(*tenant))
        .map(|(_, ttft)| ttft.as_secs_f64() * 1e3)
        .collect();
    quiet.sort_by(f64::total_cmp);
    let at = |percent| {
        nearest_rank(quiet.len(), percent).map_or("-".to_owned(), |at| format!("{:.0}", quiet[at]))
    };
    format!(
        "sent {} ok {} refused {} not done {}   quiet ttft p50 {} p99 {} ms",
        live.sent.get(),
        live.ok.get(),
        live.refused.get(),
        live.failed.get(),
        at(50),
        at(99)
    )
}
