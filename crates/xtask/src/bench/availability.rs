//! How much of the work is done, over time, around a moment at which something goes wrong.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Result, anyhow};
use kvorum_testkit::binary::target_dir;
use plotters::prelude::*;

use super::plot::{COLOURS, FONT};

const STEP: Duration = Duration::from_millis(50);
const BEFORE_STEPS: usize = 20;
const STEPS: usize = 120;

/// Acknowledged writes in each step around the moment, over all rounds.
#[derive(Clone, Debug)]
pub(crate) struct Curve([usize; STEPS]);

impl Default for Curve {
    fn default() -> Curve {
        Curve([0; STEPS])
    }
}

impl Curve {
    /// Adds the writes of a round in which it went wrong at `moment`.
    pub(crate) fn add(&mut self, moment: Instant, acknowledged: &[Instant]) {
        let Some(begin) = moment.checked_sub(STEP * BEFORE_STEPS as u32) else { return };
        for at in acknowledged {
            let Some(since) = at.checked_duration_since(begin) else { continue };
            let step = (since.as_nanos() / STEP.as_nanos()) as usize;
            if let Some(count) = self.0.get_mut(step) {
                *count += 1;
            }
        }
    }

    /// Seconds from the moment, and percent of what was done before it.
    fn points(&self) -> Vec<(f64, f64)> {
        let usual = self.0[..BEFORE_STEPS].iter().sum::<usize>() as f64 / BEFORE_STEPS as f64;
        let time = |step: usize| (step as f64 - BEFORE_STEPS as f64) * STEP.as_secs_f64();
        self.0
            .iter()
            .enumerate()
            .map(|(step, &count)| (time(step), 100.0 * count as f64 / usual.max(1.0)))
            .collect()
    }
}

/// Draws a panel for each harm with a line for each system; says where.
pub(crate) fn save(panels: &[(String, Vec<(&str, &Curve)>)]) -> Result<PathBuf> {
    let mut svg = String::new();
    draw(&mut svg, panels).map_err(|error| anyhow!("drawing: {error}"))?;
    let path = target_dir().join("failover.svg");
    std::fs::write(&path, svg)?;
    Ok(path)
}

fn draw(
    svg: &mut String,
    panels: &[(String, Vec<(&str, &Curve)>)],
) -> Result<(), Box<dyn std::error::Error>> {
    let root = SVGBackend::with_string(svg, (960, 240 * panels.len().max(1) as u32)).into_drawing_area();
    root.fill(&WHITE)?;
    for (area, (harm, curves)) in root.split_evenly((panels.len().max(1), 1)).iter().zip(panels) {
        let end = (STEPS - BEFORE_STEPS) as f64 * STEP.as_secs_f64();
        let mut chart = ChartBuilder::on(area)
            .caption(format!("{harm}: acknowledged writes of the shards that the victim led"), (FONT, 15))
            .margin(8)
            .x_label_area_size(30)
            .y_label_area_size(50)
            .build_cartesian_2d(-1.0..end, 0.0..150.0)?;
        chart
            .configure_mesh()
            .max_light_lines(0)
            .x_desc("s")
            .y_desc("% of before")
            .label_style((FONT, 12))
            .draw()?;
        for (n, (name, curve)) in curves.iter().enumerate() {
            let colour = COLOURS[n % COLOURS.len()];
            let points: Vec<_> = curve.points().into_iter().map(|(x, y)| (x, y.min(150.0))).collect();
            chart
                .draw_series([PathElement::new(points, colour.stroke_width(2))])?
                .label(*name)
                .legend(move |(x, y)| PathElement::new([(x, y), (x + 16, y)], colour.stroke_width(2)));
        }
        super::plot::legend(&mut chart, plotters::chart::SeriesLabelPosition::LowerRight)?;
    }
    root.present()?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn writes_count_in_their_step_as_a_share_of_those_before() {
        let moment = Instant::now() + Duration::from_secs(10);
        let begin = moment - STEP * BEFORE_STEPS as u32;
        let mut curve = Curve::default();
        let before: Vec<Instant> = (0..BEFORE_STEPS as u32 * 2).map(|n| begin + STEP / 2 * n).collect();
        curve.add(moment, &before);
        curve.add(moment, &[moment + STEP / 2, begin - STEP, moment + STEP * STEPS as u32]);
        let points = curve.points();
        assert_eq!(points[0], (-1.0, 100.0));
        assert_eq!(points[BEFORE_STEPS], (0.0, 50.0));
        assert_eq!(points[BEFORE_STEPS + 1].1, 0.0);
        let mut svg = String::new();
        draw(&mut svg, &[("kill".to_owned(), vec![("Kvorum", &curve)])]).unwrap();
        assert!(svg.contains("Kvorum") && svg.contains("kill"));
    }
}
