//! The picture: how quiet times to first token are distributed in each arm, and what each arm pays
//! for that in throughput.

use plotters::{coord::Shift, prelude::*};

use super::{ArmReport, Report};
use crate::lab::{
    bench::arm::Arm,
    plot::{Drawn, FONT, Picture, SIZE, decades, short},
};

/// Shown for a quiet p99 beyond any chart: an arm in which the quiet tenant starves.
const MOST_RATIO: f64 = 1e4;

impl Picture for Report {
    fn draw<DB: DrawingBackend>(&self, root: &DrawingArea<DB, Shift>) -> Drawn<DB> {
        root.fill(&WHITE)?;
        let label = self
            .label
            .map_or(String::new(), |label| format!("{label}: "));
        let title = format!("{label}{}, flood {:.1}x capacity", self.engine, self.flood);
        let style = (FONT, 20).into_font().color(&BLACK);
        let area = root.titled(&title, style)?;
        let (left, right) = area.split_horizontally(SIZE.0 * 11 / 20);
        draw_ecdf(&left, self)?;
        draw_frontier(&right, self)?;
        root.present()
    }
}

/// Colours that the colour-blind tell apart (Okabe and Ito).
fn colour(arm: Arm) -> RGBColor {
    match arm {
        Arm::Solo => RGBColor(120, 120, 120),
        Arm::Fifo => RGBColor(213, 94, 0),
        Arm::Bucket => RGBColor(230, 159, 0),
        Arm::Drr => RGBColor(86, 180, 233),
        Arm::Fair => RGBColor(0, 114, 178),
        Arm::Server => RGBColor(0, 158, 115),
    }
}

fn draw_ecdf<DB: DrawingBackend>(area: &DrawingArea<DB, Shift>, report: &Report) -> Drawn<DB> {
    let all = report.arms.iter().flat_map(|arm| &arm.quiet_ttfts);
    let (low, high) = decades(all.map(|seen| seen.ms));
    let mut chart = ChartBuilder::on(area)
        .margin(12)
        .caption("quiet tenant: time to first token", (FONT, 15))
        .x_label_area_size(44)
        .y_label_area_size(52)
        .build_cartesian_2d((low..high).log_scale(), 0.0..1.0)?;
    chart
        .configure_mesh()
        .light_line_style(WHITE)
        .x_desc("ms from the planned moment (log)")
        .y_desc("share of requests")
        .x_label_formatter(&|ms| short(*ms))
        .label_style((FONT, 12))
        .draw()?;
    for arm in &report.arms {
        let colour = colour(arm.arm);
        chart
            .draw_series(LineSeries::new(steps(arm), colour.stroke_width(2)))?
            .label(arm.arm.name())
            .legend(move |(x, y)| PathElement::new([(x, y), (x + 18, y)], colour.stroke_width(3)));
    }
    chart
        .configure_series_labels()
        .position(SeriesLabelPosition::LowerRight)
        .background_style(WHITE.mix(0.85))
        .border_style(BLACK.mix(0.3))
        .label_font((FONT, 13))
        .draw()
}

/// The empirical distribution as a staircase. Requests that were still waiting are left out above,
/// so that the curve ends below 1 where the quiet tenant was not served.
fn steps(arm: &ArmReport) -> Vec<(f64, f64)> {
    let mut known: Vec<f64> = arm
        .quiet_ttfts
        .iter()
        .filter(|seen| !seen.is_unfinished)
        .map(|seen| seen.ms)
        .collect();
    known.sort_by(f64::total_cmp);
    let all = arm.quiet_ttfts.len() as f64;
    let corner =
        |(rank, ms): (usize, f64)| [(ms, rank as f64 / all), (ms, (rank + 1) as f64 / all)];
    known.into_iter().enumerate().flat_map(corner).collect()
}

fn draw_frontier<DB: DrawingBackend>(area: &DrawingArea<DB, Shift>, report: &Report) -> Drawn<DB> {
    let points: Vec<_> = report.arms.iter().filter_map(point).collect();
    let high = points.iter().map(|(_, at, _)| at.1).fold(3.0, f64::max);
    let mut chart = ChartBuilder::on(area)
        .margin(12)
        .caption(
            "isolation against throughput: best is bottom right",
            (FONT, 15),
        )
        .x_label_area_size(44)
        .y_label_area_size(60)
        .build_cartesian_2d(0.0..110.0, (0.5..high * 1.6).log_scale())?;
    chart
        .configure_mesh()
        .light_line_style(WHITE)
        .x_desc("throughput kept, % of fifo")
        .y_desc("quiet p99 / solo p99 (log)")
        .y_label_formatter(&|ratio| short(*ratio))
        .label_style((FONT, 12))
        .draw()?;
    chart.draw_series(points.into_iter().map(|(arm, at, text)| {
        // Points at the right edge have their text on the left.
        let to_the_left = if at.0 > 75.0 {
            -10 - 8 * i32::try_from(text.len()).unwrap_or(0)
        } else {
            10
        };
        EmptyElement::at(at)
            + Circle::new((0, 0), 7, colour(arm).filled())
            + Text::new(text, (to_the_left, -6), (FONT, 13).into_font())
    }))?;
    Ok(())
}

/// Where an arm stands, and what is written beside it.
fn point(arm: &ArmReport) -> Option<(Arm, (f64, f64), String)> {
    let (kept, ratio) = (arm.throughput_kept? * 100.0, arm.quiet_p99_over_solo?);
    let sign = if arm.quiet.ttft.p99.at_least {
        ">="
    } else {
        ""
    };
    let text = format!("{} {sign}{ratio:.1} @{kept:.0}%", arm.arm.name());
    Some((arm.arm, (kept, ratio.min(MOST_RATIO)), text))
}
