//! The pictures beside the tables.

use std::time::Duration;

use anyhow::{Result, anyhow};
use kvorum_testkit::generator::histogram::Histogram;
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};

use super::figures::Spread;

/// Told apart by people who see fewer colours, too (Okabe and Ito).
pub(super) const COLOURS: [RGBColor; 6] = [
    RGBColor(0, 0, 0),
    RGBColor(0, 114, 178),
    RGBColor(86, 180, 233),
    RGBColor(230, 159, 0),
    RGBColor(0, 158, 115),
    RGBColor(204, 121, 167),
];
const SIZE: (u32, u32) = (960, 480);
/// How much higher a plot of bars is than its highest one, for the legend.
const ROOM: f64 = 1.3;
pub(super) const FONT: &str = "sans-serif";

/// Bars in groups, each with a line from the lowest to the highest.
pub(super) struct Bars<'a> {
    pub(super) title: String,
    /// What the height of a bar is, in which unit.
    pub(super) axis: &'a str,
    pub(super) series: Vec<String>,
    /// The name of each group, with a bar for each series.
    pub(super) groups: Vec<(String, Vec<Spread>)>,
    /// A height that is worth a line of its own.
    pub(super) mark: Option<f64>,
}

impl<'a> Bars<'a> {
    /// A bar for each of these names, and no groups.
    pub(super) fn alone(title: String, axis: &'a str, names: &[&str], bars: Vec<Spread>) -> Bars<'a> {
        let series = names.iter().map(|&name| name.to_owned()).collect();
        Bars { title, axis, series, groups: vec![(String::new(), bars)], mark: None }
    }

    /// As SVG.
    pub(super) fn draw(&self) -> Result<String> {
        let mut svg = String::new();
        self.draw_into(&mut svg).map_err(|error| anyhow!("drawing: {error}"))?;
        Ok(svg)
    }

    fn draw_into(&self, svg: &mut String) -> Result<(), Box<dyn std::error::Error>> {
        let highest = self.groups.iter().flat_map(|(_, bars)| bars).map(|bar| bar.high);
        let top = highest.chain(self.mark).fold(f64::MIN_POSITIVE, f64::max) * ROOM;
        let root = SVGBackend::with_string(svg, SIZE).into_drawing_area();
        root.fill(&WHITE)?;
        let mut chart = ChartBuilder::on(&root)
            .caption(&self.title, (FONT, 18))
            .margin(12)
            .x_label_area_size(36)
            .y_label_area_size(64)
            .build_cartesian_2d(0.0..self.groups.len() as f64, 0.0..top)?;
        chart
            .configure_mesh()
            .max_light_lines(0)
            .disable_x_mesh()
            .disable_x_axis()
            .y_desc(self.axis)
            .label_style((FONT, 13))
            .draw()?;
        for (series, name) in self.series.iter().enumerate() {
            let colour = COLOURS[series % COLOURS.len()];
            let width = 0.84 / self.series.len() as f64;
            let groups = || self.groups.iter().enumerate();
            let left = |group: usize| group as f64 + 0.08 + series as f64 * width;
            let bars = groups().map(|(group, (_, bars))| {
                let corners = [(left(group), 0.0), (left(group) + width * 0.9, bars[series].middle)];
                Rectangle::new(corners, colour.mix(0.7).filled())
            });
            chart.draw_series(bars)?.label(name.as_str()).legend(move |(x, y)| {
                Rectangle::new([(x, y - 5), (x + 12, y + 5)], colour.mix(0.7).filled())
            });
            chart.draw_series(groups().map(|(group, (_, bars))| {
                let (middle, Spread { low, high, .. }) = (left(group) + width * 0.45, bars[series]);
                PathElement::new([(middle, low), (middle, high)], BLACK.mix(0.6).stroke_width(3))
            }))?;
        }
        if let Some(mark) = self.mark {
            let ends = [(0.0, mark), (self.groups.len() as f64, mark)];
            chart.draw_series([PathElement::new(ends, BLACK.mix(0.5))])?;
        }
        // Under each group its name; the axis has none of its own.
        let plain = (FONT, 13).into_font().color(&BLACK).pos(Pos::new(HPos::Center, VPos::Top));
        for (group, (name, _)) in self.groups.iter().enumerate() {
            let (x, y) = chart.backend_coord(&(group as f64 + 0.5, 0.0));
            root.draw(&Text::new(name.as_str(), (x, y + 8), plain.clone()))?;
        }
        legend(&mut chart, SeriesLabelPosition::UpperLeft)?;
        root.present()?;
        drop(chart);
        drop(root);
        Ok(())
    }
}

/// How long all but the slowest of ten, a hundred, a thousand … took, for each series.
pub(super) fn percentiles(title: &str, series: &[(String, Histogram)]) -> Result<String> {
    let mut svg = String::new();
    draw_percentiles(&mut svg, title, series).map_err(|error| anyhow!("drawing: {error}"))?;
    Ok(svg)
}

fn draw_percentiles(
    svg: &mut String,
    title: &str,
    series: &[(String, Histogram)],
) -> Result<(), Box<dyn std::error::Error>> {
    // As many nines as the smallest number of requests can tell.
    let fewest = series.iter().map(|(_, times)| times.total()).min().unwrap_or(1).max(10);
    let nines = (fewest as f64).log10();
    let lines: Vec<Vec<(f64, f64)>> = series.iter().map(|(_, times)| curve(times, nines)).collect();
    let times = || lines.iter().flatten().map(|point| point.1);
    let (low, high) = (times().fold(f64::MAX, f64::min), times().fold(f64::MIN_POSITIVE, f64::max));
    let root = SVGBackend::with_string(svg, SIZE).into_drawing_area();
    root.fill(&WHITE)?;
    let mut chart = ChartBuilder::on(&root)
        .caption(title, (FONT, 18))
        .margin(12)
        .x_label_area_size(40)
        .y_label_area_size(64)
        .build_cartesian_2d(0.0..nines, (low / 1.2..high * 1.2).log_scale())?;
    chart
        .configure_mesh()
        .x_labels(8)
        .x_label_formatter(&|nines| percent(*nines))
        .y_label_formatter(&|time| super::figures::digits(*time))
        .x_desc("% of all requests")
        .y_desc("at most so many ms")
        .label_style((FONT, 13))
        .draw()?;
    for (n, ((name, _), line)) in series.iter().zip(lines).enumerate() {
        let colour = COLOURS[n % COLOURS.len()];
        chart
            .draw_series([PathElement::new(line, colour.stroke_width(2))])?
            .label(name.as_str())
            .legend(move |(x, y)| PathElement::new([(x, y), (x + 16, y)], colour.stroke_width(2)));
    }
    legend(&mut chart, SeriesLabelPosition::LowerRight)?;
    root.present()?;
    Ok(())
}

/// Points of a line: how many nines, and milliseconds.
fn curve(times: &Histogram, nines: f64) -> Vec<(f64, f64)> {
    let steps = 200;
    let point = |step: i32| {
        let nines = nines * f64::from(step) / f64::from(steps);
        let time = times.percentile(100.0 * (1.0 - 10f64.powf(-nines))).max(Duration::from_nanos(1));
        (nines, time.as_secs_f64() * 1e3)
    };
    (0..=steps).map(point).collect()
}

/// 1 is 90 %, 2 is 99 %, and so on.
fn percent(nines: f64) -> String {
    let decimals = (nines.ceil() as usize).saturating_sub(2).max(usize::from(nines.fract() != 0.0));
    format!("{:.decimals$}", 100.0 * (1.0 - 10f64.powf(-nines)))
}

pub(super) fn legend<'a, D, X, Y>(
    chart: &mut ChartContext<'a, D, Cartesian2d<X, Y>>,
    position: SeriesLabelPosition,
) -> Result<(), DrawingAreaErrorKind<D::ErrorType>>
where
    D: DrawingBackend + 'a,
    X: Ranged,
    Y: Ranged,
{
    chart
        .configure_series_labels()
        .position(position)
        .background_style(WHITE.mix(0.85))
        .border_style(BLACK.mix(0.3))
        .label_font((FONT, 13))
        .draw()?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nines_as_percent() {
        assert_eq!([0.0, 1.0, 2.0, 3.0, 4.0].map(percent), ["0", "90", "99", "99.9", "99.99"]);
        assert_eq!([0.5, 1.5].map(percent), ["68.4", "96.8"]);
    }

    #[test]
    fn a_curve_never_falls_and_ends_with_the_slowest() {
        let mut times = Histogram::default();
        (1..=1000).for_each(|n| times.record(n * 1_000_000, 1));
        let curve = curve(&times, 3.0);
        assert!(curve.windows(2).all(|two| two[0].1 <= two[1].1));
        assert!((curve[200].1 - 999.0).abs() < 10.0, "{:?}", curve[200]);
    }

    #[test]
    fn pictures_hold_every_name() {
        let spread = Spread { low: 0.5, middle: 0.75, high: 1.0 };
        let bars = Bars {
            title: "a < b".to_owned(),
            axis: "ratio",
            series: vec!["one".to_owned(), "two".to_owned()],
            groups: vec![("SET".to_owned(), vec![spread; 2]), ("GET".to_owned(), vec![spread; 2])],
            mark: Some(1.0),
        };
        let svg = bars.draw().unwrap();
        for text in ["<svg", "a &lt; b", "ratio", "one", "two", "SET", "GET", "</svg>"] {
            assert!(svg.contains(text), "{text}: {svg}");
        }
        let mut times = Histogram::default();
        (1..=1000).for_each(|n| times.record(n * 1000, 1));
        let svg = percentiles("times", &[("fsync".to_owned(), times)]).unwrap();
        for text in ["times", "fsync", "99", "</svg>"] {
            assert!(svg.contains(text), "{text}: {svg}");
        }
    }
}
