//! The picture: for how many requests each policy made the stall longer than so many seconds.

use plotters::{coord::Shift, prelude::*};

use super::{PolicyReport, Report};
use crate::lab::plot::{Drawn, FONT, Picture, decades, short};

/// More points than pixels draw nothing more.
const MOST_POINTS: usize = 1000;

/// Colours that the colour-blind tell apart (Okabe and Ito).
const COLOURS: [RGBColor; 9] = [
    RGBColor(0, 114, 178),
    RGBColor(213, 94, 0),
    RGBColor(230, 159, 0),
    RGBColor(204, 121, 167),
    RGBColor(0, 158, 115),
    RGBColor(86, 180, 233),
    RGBColor(120, 120, 120),
    RGBColor(0, 0, 0),
    RGBColor(240, 228, 66),
];

impl Picture for Report {
    fn draw<DB: DrawingBackend>(&self, root: &DrawingArea<DB, Shift>) -> Drawn<DB> {
        root.fill(&WHITE)?;
        let all = self.policies.iter().flat_map(|policy| &policy.stalls);
        let (low, high) = decades(all.map(|stall| stall.as_secs_f64().max(0.1)));
        let mut chart = ChartBuilder::on(root)
            .margin(12)
            .caption(format!("{}: {}", self.label, self.source), (FONT, 20))
            .x_label_area_size(44)
            .y_label_area_size(60)
            .build_cartesian_2d((low..high).log_scale(), 0.0..1.0)?;
        chart
            .configure_mesh()
            .light_line_style(WHITE)
            .x_desc("seconds (log)")
            .y_desc("share of requests that stall longer")
            .x_label_formatter(&|seconds| short(*seconds))
            .label_style((FONT, 12))
            .draw()?;
        for (policy, colour) in self.policies.iter().zip(COLOURS) {
            chart
                .draw_series(LineSeries::new(tail(policy, low), colour.stroke_width(2)))?
                .label(policy.policy)
                .legend(move |(x, y)| {
                    PathElement::new([(x, y), (x + 18, y)], colour.stroke_width(3))
                });
        }
        chart
            .configure_series_labels()
            .position(SeriesLabelPosition::UpperRight)
            .background_style(WHITE.mix(0.85))
            .border_style(BLACK.mix(0.3))
            .label_font((FONT, 13))
            .draw()?;
        root.present()
    }
}

/// How many stalled longer, from `low` seconds on.
fn tail(policy: &PolicyReport, low: f64) -> Vec<(f64, f64)> {
    let all = policy.stalls.len();
    let every = all.div_ceil(MOST_POINTS).max(1);
    let point = |(rank, stall): (usize, &std::time::Duration)| {
        (
            stall.as_secs_f64().max(low),
            (all - rank - 1) as f64 / all as f64,
        )
    };
    policy
        .stalls
        .iter()
        .enumerate()
        .step_by(every)
        .map(point)
        .collect()
}
