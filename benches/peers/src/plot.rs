//! What a proxy costs, as bars: of a request, and of a chunk of a stream.

use std::ops::Range;

use anyhow::anyhow;
use plotters::{
    coord::Shift,
    prelude::*,
    style::{FontStyle, register_font},
};

use crate::{peer::Peer, table::short};

const SIZE: (u32, u32) = (1280, 480);
/// The font, by the only name there is.
const FONT: &str = "sans-serif";
/// Room for a bar's number at its end, as a factor: the axis is logarithmic.
const ROOM: f64 = 2.5;

/// A figure of each peer, best first.
#[derive(Debug)]
pub(crate) struct Panel {
    pub(crate) title: String,
    pub(crate) bars: Vec<(Peer, f64)>,
}

/// All panels, side by side.
pub(crate) fn svg(panels: &[Panel]) -> anyhow::Result<String> {
    let font = register_font(FONT, FontStyle::Normal, epaint_default_fonts::HACK_REGULAR);
    font.map_err(|_| anyhow!("the font is none"))?;
    let mut text = String::new();
    {
        let root = SVGBackend::with_string(&mut text, SIZE).into_drawing_area();
        let drawn = draw(&root, panels);
        drawn.map_err(|error| anyhow!("cannot draw: {error}"))?;
    }
    Ok(text)
}

type Drawn<DB> = Result<(), DrawingAreaErrorKind<<DB as DrawingBackend>::ErrorType>>;

fn draw<DB: DrawingBackend>(root: &DrawingArea<DB, Shift>, panels: &[Panel]) -> Drawn<DB> {
    root.fill(&WHITE)?;
    for (area, panel) in root.split_evenly((1, panels.len())).iter().zip(panels) {
        draw_panel(area, panel)?;
    }
    root.present()
}

fn draw_panel<DB: DrawingBackend>(area: &DrawingArea<DB, Shift>, panel: &Panel) -> Drawn<DB> {
    let values = panel.bars.iter().map(|(_, value)| *value);
    let (low, high) = values.fold((f64::INFINITY, 1.0_f64), |(low, high), value| {
        (low.min(value), high.max(value))
    });
    let range: Range<f64> = low.min(high) / ROOM..high * ROOM;
    let count = i32::try_from(panel.bars.len()).unwrap_or(i32::MAX);
    let mut chart = ChartBuilder::on(area)
        .margin(12)
        .caption(format!("{} (logarithmic)", panel.title), (FONT, 15))
        .y_label_area_size(170)
        .build_cartesian_2d(
            range.clone().log_scale(),
            (0..count.max(2) - 1).into_segmented(),
        )?;
    let name = |place: &SegmentValue<i32>| match place {
        SegmentValue::CenterOf(place) | SegmentValue::Exact(place) => usize::try_from(*place)
            .ok()
            .and_then(|place| panel.bars.get(place))
            .map_or(String::new(), |(peer, _)| peer.name().to_owned()),
        SegmentValue::Last => String::new(),
    };
    chart
        .configure_mesh()
        .disable_x_axis()
        .disable_mesh()
        .y_labels(panel.bars.len())
        .y_label_formatter(&name)
        .y_label_style((FONT, 13))
        .draw()?;
    chart.draw_series((0..count).zip(&panel.bars).map(|(place, (peer, value))| {
        let (from, to) = (SegmentValue::Exact(place), SegmentValue::Exact(place + 1));
        let mut bar = Rectangle::new([(range.start, from), (*value, to)], colour(*peer).filled());
        bar.set_margin(4, 4, 0, 0);
        bar
    }))?;
    chart.draw_series((0..count).zip(&panel.bars).map(|(place, (_, value))| {
        let at = (*value, SegmentValue::CenterOf(place));
        EmptyElement::at(at) + Text::new(short(*value), (6, -6), (FONT, 13))
    }))?;
    Ok(())
}

/// Colours that the colour-blind tell apart (Okabe and Ito).
fn colour(peer: Peer) -> RGBColor {
    match peer {
        Peer::Kvwarden | Peer::KvwardenAssembled => RGBColor(0, 114, 178),
        Peer::Direct
        | Peer::Nginx
        | Peer::Haproxy
        | Peer::VllmRouter
        | Peer::SglangRouter
        | Peer::Litellm
        | Peer::KvwardenPython
        | Peer::Portkey => RGBColor(120, 120, 120),
    }
}
