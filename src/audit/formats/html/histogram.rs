//! A histogram: computes the position of each bar in the drawing.

use serde::Serialize;

use super::number;
use crate::Histogram;
use crate::formats::clean::clean;

/// The most bars that are drawn.
const MAX_BARS: usize = 200;

/// Size of the drawing, in its own units.
const WIDTH: f64 = 640.0;
const HEIGHT: f64 = 160.0;

/// Counts are drawn on a logarithmic scale if the largest is at least this many times the smallest.
const LOGARITHMIC: u64 = 1000;

/// The template's input.
#[derive(Serialize)]
pub(super) struct Drawing {
    title: String,
    unit: String,
    width: f64,
    height: f64,
    bars: Vec<Bar>,
    ticks: Vec<Tick>,
    most: String,
    is_logarithmic: bool,
}

#[derive(Serialize)]
struct Bar {
    x: String,
    y: String,
    width: String,
    height: String,
    says: String,
}

#[derive(Serialize)]
struct Tick {
    x: String,
    text: String,
    anchor: &'static str,
}

pub(super) fn histogram(histogram: &Histogram) -> Drawing {
    let bars = &histogram.bars[..histogram.bars.len().min(MAX_BARS)];
    let counts = || bars.iter().map(|bar| bar.2).filter(|count| *count > 0);
    let most = counts().max().unwrap_or(0);
    let least = counts().min().unwrap_or(0);
    let is_logarithmic = most / least.max(1) >= LOGARITHMIC;
    let share = |count: u64| match is_logarithmic {
        // Adding one keeps the smallest count visible.
        true => (1.0 + count as f64).ln() / (1.0 + most as f64).ln(),
        false => count as f64 / most.max(1) as f64,
    };
    let step = WIDTH / bars.len().max(1) as f64;
    let bar = |(at, (from, to, count)): (usize, &(f64, f64, u64))| {
        let height = share(*count) * HEIGHT;
        Bar {
            x: format!("{:.2}", at as f64 * step + 0.5),
            y: format!("{:.2}", HEIGHT - height),
            width: format!("{:.2}", (step - 1.0).max(0.5)),
            height: format!("{height:.2}"),
            says: format!("{} to {}: {count}", number(*from), number(*to)),
        }
    };
    Drawing {
        title: clean(&histogram.title),
        unit: clean(&histogram.unit),
        width: WIDTH,
        height: HEIGHT,
        bars: bars.iter().enumerate().map(bar).collect(),
        ticks: ticks(bars, step),
        most: thousands(most),
        is_logarithmic,
    }
}

/// Labels below the drawing: both ends and some bounds in between.
fn ticks(bars: &[(f64, f64, u64)], step: f64) -> Vec<Tick> {
    let Some(last) = bars.last() else {
        return Vec::new();
    };
    let apart = bars.len().div_ceil(8).max(1);
    let lower = bars.iter().map(|bar| bar.0).enumerate();
    let mut ticks: Vec<Tick> = lower
        // A label that would overlap the last one is left out.
        .filter(|(at, _)| at % apart == 0 && at + apart / 2 < bars.len().max(2))
        .map(|(at, bound)| Tick {
            x: format!("{:.2}", at as f64 * step),
            text: number(bound),
            anchor: if at == 0 { "start" } else { "middle" },
        })
        .collect();
    ticks.push(Tick {
        x: format!("{WIDTH:.2}"),
        text: number(last.1),
        anchor: "end",
    });
    ticks
}

/// A count with separators between the thousands.
fn thousands(count: u64) -> String {
    let digits = count.to_string();
    let mut out = String::new();
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            out.push('\u{2009}');
        }
        out.push(digit);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_bars_can_be_drawn() {
        let draw = |bars: Vec<(f64, f64, u64)>| {
            histogram(&Histogram {
                title: "t".into(),
                unit: "u".into(),
                bars,
            })
        };
        assert!(draw(Vec::new()).bars.is_empty());
        let drawn = draw(vec![
            (0.0, 1.0, 0),
            (1.0, f64::INFINITY, 4),
            (f64::NAN, 2.0, 2),
        ]);
        let heights: Vec<&str> = drawn.bars.iter().map(|bar| bar.height.as_str()).collect();
        assert_eq!(heights, ["0.00", "160.00", "80.00"]);
        assert_eq!(drawn.bars[1].says, "1 to inf: 4");
        let drawn = draw(vec![(0.0, 1.0, 1), (1.0, 2.0, u64::MAX)]);
        assert!(drawn.is_logarithmic && drawn.bars[0].height != "0.00");
        assert_eq!(draw(vec![(0.0, 1.0, 1); 100_000]).bars.len(), MAX_BARS);
    }

    #[test]
    fn thousands_stand_apart() {
        assert_eq!(thousands(1_234_567).replace('\u{2009}', " "), "1 234 567");
        assert_eq!(thousands(12), "12");
    }
}
