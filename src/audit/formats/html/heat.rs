//! A heat map: each number is one of nine colours.

use serde::Serialize;

use super::number;
use crate::HeatMap;
use crate::formats::clean::clean;

/// Steps of the colour scale; `page.css` has a colour for each.
const STEPS: usize = 9;

/// The most rows and columns that are drawn.
const MAX_ROWS: usize = 300;
const MAX_COLUMNS: usize = 300;

/// The scale is logarithmic if the largest number is more than this many times the smallest.
const LOGARITHMIC: f64 = 20.0;

/// The template's input.
#[derive(Serialize)]
pub(super) struct Heat {
    title: String,
    unit: String,
    /// The layers, and whether each has a label below its column.
    layers: Vec<(String, bool)>,
    roles: Vec<(String, Vec<Cell>)>,
    legend: Vec<Swatch>,
    is_logarithmic: bool,
    left_out: usize,
    has_gaps: bool,
    has_oddities: bool,
}

#[derive(Serialize)]
struct Cell {
    /// The cell's CSS class: `q0` to `q8`, `none`, or `odd` for a number that is not finite.
    class: String,
    text: String,
}

#[derive(Serialize)]
struct Swatch {
    class: String,
    from: String,
    to: String,
}

pub(super) fn heat(map: &HeatMap) -> Heat {
    let scale = Scale::new(map);
    let columns = map.layers.len().min(MAX_COLUMNS);
    let apart = columns.div_ceil(16).max(1);
    let layers = map.layers.iter().take(columns).enumerate();
    let rows = map.roles.iter().zip(&map.values).take(MAX_ROWS);
    let all = || map.values.iter().flatten();
    Heat {
        title: clean(&map.title),
        unit: clean(&map.unit),
        layers: layers
            .map(|(at, layer)| (clean(layer), at % apart == 0))
            .collect(),
        roles: rows
            .map(|(role, values)| {
                let value = |at| values.get(at).copied().flatten();
                let cells = (0..columns).map(|at| scale.cell(value(at)));
                (clean(role), cells.collect())
            })
            .collect(),
        legend: scale.legend(),
        is_logarithmic: scale.is_logarithmic,
        left_out: map.roles.len().saturating_sub(MAX_ROWS)
            + map.layers.len().saturating_sub(MAX_COLUMNS),
        has_gaps: all().any(Option::is_none),
        has_oddities: all().flatten().any(|value| !value.is_finite()),
    }
}

/// The range from the smallest number to the largest.
struct Scale {
    least: f64,
    largest: f64,
    is_logarithmic: bool,
}

impl Scale {
    fn new(map: &HeatMap) -> Scale {
        let numbers = || {
            let all = map.values.iter().flatten().copied().flatten();
            all.filter(|value| value.is_finite())
        };
        let least = numbers().fold(f64::INFINITY, f64::min);
        let largest = numbers().fold(f64::NEG_INFINITY, f64::max);
        // Zeros have no logarithm and take the first colour.
        let positive = numbers()
            .filter(|value| *value > 0.0)
            .fold(f64::INFINITY, f64::min);
        let is_logarithmic = least >= 0.0 && largest / positive > LOGARITHMIC;
        Scale {
            least: if is_logarithmic { positive } else { least },
            largest,
            is_logarithmic,
        }
    }

    fn position(&self, value: f64) -> f64 {
        let on = |value: f64| match self.is_logarithmic {
            true => value.max(f64::MIN_POSITIVE).ln(),
            false => value / 2.0, // so that no difference overflows
        };
        let (from, to) = (on(self.least), on(self.largest));
        match to > from {
            true => ((on(value) - from) / (to - from)).clamp(0.0, 1.0),
            false => 0.5,
        }
    }

    fn cell(&self, value: Option<f64>) -> Cell {
        match value {
            None => Cell {
                class: "none".to_owned(),
                text: String::new(),
            },
            Some(value) => Cell {
                class: match value.is_finite() {
                    true => {
                        let step = (self.position(value) * STEPS as f64) as usize;
                        format!("q{}", step.min(STEPS - 1))
                    }
                    false => "odd".to_owned(),
                },
                text: number(value),
            },
        }
    }

    /// One swatch per colour, with its range of numbers.
    fn legend(&self) -> Vec<Swatch> {
        if !self.least.is_finite() || !self.largest.is_finite() {
            return Vec::new();
        }
        if self.least == self.largest {
            return vec![Swatch {
                class: format!("q{}", STEPS / 2),
                from: number(self.least),
                to: number(self.largest),
            }];
        }
        let bound = |step: usize| {
            let share = step as f64 / STEPS as f64;
            number(match self.is_logarithmic {
                true => (self.least.ln() * (1.0 - share) + self.largest.ln() * share).exp(),
                false => self.least * (1.0 - share) + self.largest * share,
            })
        };
        let swatch = |step: usize| Swatch {
            class: format!("q{step}"),
            from: bound(step),
            to: bound(step + 1),
        };
        (0..STEPS).map(swatch).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map(values: Vec<Vec<Option<f64>>>) -> HeatMap {
        HeatMap {
            title: "t".into(),
            unit: "u".into(),
            roles: (0..values.len()).map(|at| at.to_string()).collect(),
            layers: (0..values[0].len()).map(|at| at.to_string()).collect(),
            values,
        }
    }

    fn classes(values: Vec<Vec<Option<f64>>>) -> Vec<String> {
        let heat = heat(&map(values));
        let cells = heat.roles.into_iter().flat_map(|(_, cells)| cells);
        cells.map(|cell| cell.class).collect()
    }

    #[test]
    fn the_least_and_the_largest_are_the_ends_of_the_scale() {
        assert_eq!(
            classes(vec![vec![
                Some(-1.0),
                Some(0.0),
                Some(1.0),
                None,
                Some(f64::NAN)
            ]]),
            ["q0", "q4", "q8", "none", "odd"]
        );
        assert_eq!(
            classes(vec![vec![Some(1e-6), Some(1e-3), Some(1.0), Some(0.0)]]),
            ["q0", "q4", "q8", "q0"],
            "by logarithms"
        );
        assert_eq!(classes(vec![vec![Some(3.0), Some(3.0)]]), ["q4", "q4"]);
        assert_eq!(
            classes(vec![vec![Some(f64::MAX), Some(f64::MIN)]]),
            ["q8", "q0"]
        );
        assert_eq!(
            classes(vec![vec![None, Some(f64::INFINITY)]]),
            ["none", "odd"]
        );
    }

    #[test]
    fn rows_that_are_too_short_are_filled() {
        let mut short = map(vec![vec![Some(1.0), Some(2.0)]]);
        short.values[0].pop();
        assert_eq!(heat(&short).roles[0].1.len(), 2);
        short.values.clear();
        assert!(heat(&short).roles.is_empty());
    }
}
