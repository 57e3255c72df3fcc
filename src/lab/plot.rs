//! One drawing, as SVG and as PNG, with a font of our own, so that it looks the same on a machine
//! without any.

use std::sync::Once;

use anyhow::anyhow;
use plotters::{
    coord::Shift,
    prelude::*,
    style::{FontStyle, register_font},
};

/// Its width and height in pixels.
pub(crate) const SIZE: (u32, u32) = (1280, 560);

/// The font, by the only name there is.
pub(crate) const FONT: &str = "sans-serif";

/// What drawing comes to.
pub(crate) type Drawn<DB> = Result<(), DrawingAreaErrorKind<<DB as DrawingBackend>::ErrorType>>;

/// Something that can be drawn on any backend.
pub(crate) trait Picture {
    /// Draws it.
    ///
    /// # Errors
    /// Those of the backend.
    fn draw<DB: DrawingBackend>(&self, root: &DrawingArea<DB, Shift>) -> Drawn<DB>;
}

/// As text.
///
/// # Errors
/// When it can't be drawn.
pub(crate) fn svg(picture: &impl Picture) -> anyhow::Result<String> {
    load_font();
    let mut text = String::new();
    {
        let root = SVGBackend::with_string(&mut text, SIZE).into_drawing_area();
        let drawn = picture.draw(&root);
        drawn.map_err(|error| anyhow!("cannot draw: {error}"))?;
    }
    Ok(text)
}

/// As pixels.
///
/// # Errors
/// When it can't be drawn.
pub(crate) fn png(picture: &impl Picture) -> anyhow::Result<Vec<u8>> {
    load_font();
    let mut pixels = vec![0; SIZE.0 as usize * SIZE.1 as usize * 3];
    {
        let root = BitMapBackend::with_buffer(&mut pixels, SIZE).into_drawing_area();
        let drawn = picture.draw(&root);
        drawn.map_err(|error| anyhow!("cannot draw: {error}"))?;
    }
    let mut file = Vec::new();
    let mut encoder = png::Encoder::new(&mut file, SIZE.0, SIZE.1);
    encoder.set_color(png::ColorType::Rgb);
    let mut writer = encoder.write_header()?;
    writer.write_image_data(&pixels)?;
    writer.finish()?;
    Ok(file)
}

/// Fonts are registered once for the process.
fn load_font() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        // Without it the text is missing, which the pictures' own tests would show.
        let _ = register_font(FONT, FontStyle::Normal, epaint_default_fonts::HACK_REGULAR);
    });
}

/// The decades that hold these values, for a logarithmic axis: its labels are powers of ten. An axis
/// without end would be drawn without end, so nothing gives a range too.
pub(crate) fn decades(values: impl Iterator<Item = f64>) -> (f64, f64) {
    let finite = values.filter(|value| value.is_finite() && *value > 0.0);
    let (low, high) = finite.fold((f64::INFINITY, 0.0_f64), |(low, high), value| {
        (value.min(low), value.max(high))
    });
    if !low.is_finite() {
        return (1.0, 1000.0);
    }
    let low = 10_f64.powf(low.log10().floor());
    (low, 10_f64.powf(high.log10().ceil()).max(low * 10.0))
}

/// A number on an axis.
pub(crate) fn short(value: f64) -> String {
    match value {
        value if value >= 10_000.0 => format!("{:.0}k", value / 1e3),
        value if value >= 10.0 => format!("{value:.0}"),
        value => format!("{value:.1}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn axis_of_nothing_has_an_end() {
        assert_eq!(decades([].into_iter()), (1.0, 1000.0));
        assert_eq!(decades([f64::INFINITY, 0.0].into_iter()), (1.0, 1000.0));
        assert_eq!(decades([20.0, 300.0].into_iter()), (10.0, 1000.0));
        assert_eq!(decades([10.0].into_iter()), (10.0, 100.0));
    }
}
