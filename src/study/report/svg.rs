//! Drawings: positions are computed here, colours come from the page's style sheet.

use std::collections::BTreeSet;
use std::fmt::Write;

use serde_json::Value;

use super::findings::{Interval, Report, Row};
use crate::trial::{Objective, Status, Trial};

/// Width of a drawing of the whole page, in units of its own.
const WIDTH: f64 = 1020.0;
/// Width of one of several drawings side by side.
const SMALL: f64 = 330.0;
/// Heights of a row of the leaderboard, and of a plot.
const ROW: f64 = 24.0;
const HEIGHT: f64 = 190.0;
/// Room for names to the left, and for numbers beside an axis.
const NAMES: f64 = 230.0;
const MARGIN: f64 = 46.0;
/// The most characters of a name in a drawing.
const NAME_CHARS: usize = 32;
/// The most trials that are drawn.
const MAX_DOTS: usize = 5000;

/// A range of numbers along a length.
struct Axis {
    low: f64,
    high: f64,
    start: f64,
    end: f64,
}

impl Axis {
    /// An axis over values, with some room at its ends.
    fn over(values: impl Iterator<Item = f64>, start: f64, end: f64) -> Axis {
        let (low, high) = values
            .filter(|value| value.is_finite())
            .fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), value| {
                (low.min(value), high.max(value))
            });
        let (low, high) = if low > high { (0.0, 1.0) } else { (low, high) };
        let room = if high > low {
            0.06 * (high - low)
        } else {
            0.5_f64.max(0.1 * low.abs())
        };
        Axis {
            low: low - room,
            high: high + room,
            start,
            end,
        }
    }

    fn place(&self, value: f64) -> f64 {
        self.start + (value - self.low) / (self.high - self.low) * (self.end - self.start)
    }

    /// Round numbers along the axis, about so many.
    fn ticks(&self, count: f64) -> Vec<f64> {
        let rough = (self.high - self.low) / count;
        let power = libm::pow(10.0, libm::floor(libm::log10(rough)));
        let steps = [1.0, 2.0, 5.0, 10.0].map(|step| step * power);
        let step = steps
            .into_iter()
            .find(|&step| step >= rough)
            .unwrap_or(rough);
        let first = libm::ceil(self.low / step) as i64;
        let ticks = (first..first + 100).map(|at| at as f64 * step);
        ticks.take_while(|&tick| tick <= self.high).collect()
    }
}

/// A drawing that grows.
struct Svg(String);

impl Svg {
    fn new(width: f64, height: f64, what: &str) -> Svg {
        Svg(format!(
            "<svg viewBox=\"0 0 {width} {height}\" role=\"img\" aria-label=\"{}\" style=\"max-width: {width}px\">\n",
            escaped(what)
        ))
    }

    fn line(&mut self, class: &str, (x1, y1): (f64, f64), (x2, y2): (f64, f64)) {
        let _ = writeln!(
            self.0,
            "<line class=\"{class}\" x1=\"{x1:.1}\" y1=\"{y1:.1}\" x2=\"{x2:.1}\" y2=\"{y2:.1}\"/>"
        );
    }

    fn text(&mut self, class: &str, (x, y): (f64, f64), text: &str) {
        let _ = writeln!(
            self.0,
            "<text class=\"{class}\" x=\"{x:.1}\" y=\"{y:.1}\">{}</text>",
            escaped(text)
        );
    }

    fn dot(&mut self, class: &str, (x, y): (f64, f64), title: &str) {
        let _ = writeln!(
            self.0,
            "<circle class=\"{class}\" cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"3.6\"><title>{}</title></circle>",
            escaped(title)
        );
    }

    fn diamond(&mut self, class: &str, (x, y): (f64, f64), title: &str) {
        let _ = writeln!(
            self.0,
            "<path class=\"{class}\" d=\"M{:.1} {y:.1}l5 -5l5 5l-5 5z\"><title>{}</title></path>",
            x - 5.0,
            escaped(title)
        );
    }

    fn path(&mut self, class: &str, points: &[(f64, f64)]) {
        let points: Vec<String> = points
            .iter()
            .map(|(x, y)| format!("{x:.1},{y:.1}"))
            .collect();
        let _ = writeln!(
            self.0,
            "<polyline class=\"{class}\" points=\"{}\"/>",
            points.join(" ")
        );
    }

    fn done(self) -> String {
        self.0 + "</svg>\n"
    }

    /// The scale of scores to the left of a plot.
    fn scores(&mut self, report: &Report, axis: &Axis, (left, right): (f64, f64)) {
        for tick in axis.ticks(4.0) {
            let y = axis.place(tick);
            self.line("grid", (left, y), (right, y));
            self.text(
                "tick end",
                (left - 6.0, y + 4.0),
                &tick_text(report, axis, tick),
            );
        }
    }
}

/// A score beside an axis, with as many digits as the axis needs.
fn tick_text(report: &Report, axis: &Axis, tick: f64) -> String {
    match report.objective {
        Objective::Accuracy if axis.high - axis.low > 0.04 => format!("{:.0}", 100.0 * tick),
        Objective::Accuracy => format!("{:.1}", 100.0 * tick),
        Objective::LogLikelihood | Objective::Metric => trimmed(tick),
    }
}

/// A number without noise in its last digits.
fn trimmed(value: f64) -> String {
    let text = format!("{value:.4}");
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

fn escaped(text: &str) -> String {
    let mut out = String::new();
    for c in text.chars() {
        match c {
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '&' => out.push_str("&amp;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            c if c.is_control() => out.push('\u{fffd}'),
            c => out.push(c),
        }
    }
    out
}

/// A name that fits; its end tells more than its start.
fn short(name: &str) -> String {
    let chars = name.chars().count();
    match chars > NAME_CHARS {
        true => format!(
            "…{}",
            name.chars()
                .skip(chars - NAME_CHARS + 1)
                .collect::<String>()
        ),
        false => name.to_owned(),
    }
}

fn label(row: &Row) -> String {
    match row.number {
        Some(number) => format!("{} · trial {number}", short(&row.name)),
        None => short(&row.name),
    }
}

/// The rows of the leaderboard with error bars: dots on validation, diamonds on test.
pub(super) fn leaderboard(report: &Report) -> String {
    let rows: Vec<&Row> = report
        .leaderboard
        .iter()
        .chain(&report.references)
        .collect();
    let height = ROW * rows.len() as f64 + 34.0;
    let mut svg = Svg::new(WIDTH, height, "Leaderboard with 95 % intervals");
    let ends = rows
        .iter()
        .flat_map(|row| [Some(row.validation), row.test])
        .flatten()
        .flat_map(|one| {
            let half = one.half_width.unwrap_or(0.0);
            [one.value - half, one.value + half]
        });
    let axis = Axis::over(ends, NAMES, WIDTH - 20.0);
    let bottom = height - 26.0;
    for tick in axis.ticks(6.0) {
        let x = axis.place(tick);
        svg.line("grid", (x, 4.0), (x, bottom));
        svg.text(
            "tick middle",
            (x, bottom + 16.0),
            &tick_text(report, &axis, tick),
        );
    }
    for (at, row) in rows.iter().enumerate() {
        let y = ROW * (at as f64 + 0.5) + 4.0;
        let class = if row.number.is_some() {
            "name end"
        } else {
            "name end quiet"
        };
        svg.text(class, (NAMES - 10.0, y + 4.0), &label(row));
        let of = |interval: Interval| (interval.value, interval.half_width.unwrap_or(0.0));
        let (value, half) = of(row.validation);
        svg.line(
            "bar",
            (axis.place(value - half), y - 3.0),
            (axis.place(value + half), y - 3.0),
        );
        svg.dot(
            "dot",
            (axis.place(value), y - 3.0),
            &format!("validation {}", report.shown_with(row.validation)),
        );
        if let Some(test) = row.test {
            let (value, half) = of(test);
            svg.line(
                "bar test",
                (axis.place(value - half), y + 5.0),
                (axis.place(value + half), y + 5.0),
            );
            svg.diamond(
                "diamond",
                (axis.place(value), y + 5.0),
                &format!("test {}", report.shown_with(test)),
            );
        }
    }
    svg.done()
}

/// Each row's scores by task, as colours and numbers.
pub(super) fn heat_map(report: &Report) -> String {
    let rows: Vec<&Row> = report
        .leaderboard
        .iter()
        .chain(&report.references)
        .collect();
    let columns = report.tasks.len().max(1) as f64;
    let cell = ((WIDTH - NAMES) / columns).clamp(24.0, 110.0);
    let width = NAMES + cell * columns;
    let height = ROW * rows.len() as f64 + 26.0;
    let mut svg = Svg::new(width, height, "Scores by task");
    let values = || {
        rows.iter()
            .flat_map(|row| row.skills.iter().map(|skill| skill.validation.value))
    };
    let low = values().fold(f64::INFINITY, f64::min);
    let high = values().fold(f64::NEG_INFINITY, f64::max);
    let fits = (cell / 7.5) as usize;
    for (at, task) in report.tasks.iter().enumerate() {
        let name: String = task.chars().take(fits).collect();
        svg.text(
            "tick middle",
            (NAMES + cell * (at as f64 + 0.5), 16.0),
            &name,
        );
    }
    for (at, row) in rows.iter().enumerate() {
        let y = 24.0 + ROW * at as f64;
        svg.text("name end", (NAMES - 10.0, y + 16.0), &label(row));
        for (column, skill) in row.skills.iter().enumerate() {
            let x = NAMES + cell * column as f64;
            let value = skill.validation.value;
            let share = if high > low {
                (value - low) / (high - low)
            } else {
                0.5
            };
            let class = (share * 8.0).round() as usize;
            let _ = writeln!(
                svg.0,
                "<rect class=\"q{class}\" x=\"{:.1}\" y=\"{y:.1}\" width=\"{:.1}\" height=\"{:.1}\">\
                 <title>{}</title></rect>",
                x + 1.0,
                cell - 2.0,
                ROW - 2.0,
                escaped(&format!(
                    "{}, {}: {}",
                    row.name,
                    report.tasks.get(column).map_or("", |name| name),
                    report.shown_with(skill.validation)
                ))
            );
            if cell > 40.0 {
                let ink = if class >= 4 {
                    "cell middle on-dark"
                } else {
                    "cell middle on-light"
                };
                svg.text(ink, (x + cell / 2.0, y + 16.0), &report.shown(value));
            }
        }
    }
    svg.done()
}

/// A search's scores by trial, and the best so far.
pub(super) fn course(report: &Report, search: &str) -> String {
    let trials: Vec<&Trial> = report
        .trials
        .iter()
        .filter(|trial| trial.search == search && trial.score.is_some())
        .take(MAX_DOTS)
        .collect();
    let mut svg = Svg::new(WIDTH, HEIGHT, &format!("Scores of {search} by trial"));
    let bottom = HEIGHT - 30.0;
    let x = Axis::over(
        trials.iter().map(|trial| trial.number as f64),
        MARGIN,
        WIDTH - 12.0,
    );
    let y = Axis::over(trials.iter().filter_map(|trial| trial.score), bottom, 8.0);
    svg.scores(report, &y, (MARGIN, WIDTH - 12.0));
    for tick in x
        .ticks(8.0)
        .into_iter()
        .filter(|&tick| tick >= 0.0 && tick.fract() == 0.0)
    {
        svg.text(
            "tick middle",
            (x.place(tick), bottom + 18.0),
            &format!("{tick:.0}"),
        );
    }
    let mut by_number = trials.clone();
    by_number.sort_by_key(|trial| trial.number);
    let mut line = Vec::new();
    let mut best = f64::NEG_INFINITY;
    for trial in by_number.iter().filter(|trial| trial.is_complete()) {
        let score = trial.score.unwrap_or(best);
        let place = x.place(trial.number as f64);
        if score > best {
            if best.is_finite() {
                line.push((place, y.place(best)));
            }
            best = score;
        }
        line.push((place, y.place(best)));
    }
    dots(
        &mut svg,
        report,
        &trials,
        |trial| x.place(trial.number as f64),
        &y,
    );
    svg.path("best", &line);
    svg.done()
}

fn dots(svg: &mut Svg, report: &Report, trials: &[&Trial], x: impl Fn(&Trial) -> f64, y: &Axis) {
    for trial in trials {
        let Some(score) = trial.score else { continue };
        let class = match trial.status {
            Status::Complete => "dot faint",
            Status::Stopped | Status::Failed => "dot stopped",
        };
        let title = format!("trial {}: {}", trial.number, report.shown(score));
        svg.dot(class, (x(trial), y.place(score)), &title);
    }
}

/// A search's scores against each of its values.
pub(super) fn values(report: &Report, search: &str) -> Vec<String> {
    let trials: Vec<&Trial> = report
        .trials
        .iter()
        .filter(|trial| trial.search == search && trial.is_complete())
        .take(MAX_DOTS)
        .collect();
    let mut places: Vec<(String, Option<usize>)> = Vec::new();
    if let Some(first) = trials.first() {
        for (path, value) in &first.values {
            match value {
                Value::Array(parts) => {
                    places.extend((0..parts.len()).map(|at| (path.clone(), Some(at))))
                }
                _ => places.push((path.clone(), None)),
            }
        }
    }
    places
        .into_iter()
        .map(|(path, at)| scatter(report, &trials, &path, at))
        .collect()
}

fn scatter(report: &Report, trials: &[&Trial], path: &str, at: Option<usize>) -> String {
    let value = |trial: &Trial| {
        let value = trial.values.get(path)?;
        at.map_or(Some(value), |at| value.get(at)).cloned()
    };
    let name = at.map_or(path.to_owned(), |at| format!("{path}[{at}]"));
    let mut svg = Svg::new(SMALL, HEIGHT, &format!("Scores against {name}"));
    let bottom = HEIGHT - 44.0;
    let y = Axis::over(trials.iter().filter_map(|trial| trial.score), bottom, 8.0);
    svg.scores(report, &y, (MARGIN, SMALL - 8.0));
    svg.text(
        "name middle",
        ((MARGIN + SMALL) / 2.0, HEIGHT - 6.0),
        &short(&name),
    );
    let numbers: Vec<Option<f64>> = trials.iter().map(|trial| value(trial)?.as_f64()).collect();
    if numbers.iter().all(Option::is_some) {
        let x = Axis::over(numbers.iter().copied().flatten(), MARGIN, SMALL - 8.0);
        for tick in x.ticks(5.0) {
            svg.text(
                "tick middle",
                (x.place(tick), bottom + 16.0),
                &trimmed(tick),
            );
        }
        dots(
            &mut svg,
            report,
            trials,
            |trial| {
                x.place(
                    value(trial)
                        .and_then(|value| value.as_f64())
                        .unwrap_or(x.low),
                )
            },
            &y,
        );
        return svg.done();
    }
    let word = |value: Option<Value>| match value {
        Some(Value::String(text)) => text,
        Some(other) => other.to_string(),
        None => String::new(),
    };
    let words: BTreeSet<String> = trials.iter().map(|trial| word(value(trial))).collect();
    let words: Vec<String> = words.into_iter().collect();
    let x = Axis::over(
        [-0.5, words.len() as f64 - 0.5].into_iter(),
        MARGIN,
        SMALL - 8.0,
    );
    let step = (words.len() / 6).max(1);
    for (at, word) in words.iter().enumerate().step_by(step) {
        let word: String = word.chars().take(10).collect();
        svg.text("tick middle", (x.place(at as f64), bottom + 16.0), &word);
    }
    let place = |trial: &Trial| {
        words
            .iter()
            .position(|known| *known == word(value(trial)))
            .unwrap_or(0)
    };
    dots(
        &mut svg,
        report,
        trials,
        |trial| x.place(place(trial) as f64),
        &y,
    );
    svg.done()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn axes_have_round_numbers() {
        let axis = Axis::over([0.31, 0.84].into_iter(), 0.0, 100.0);
        let ticks: Vec<String> = axis.ticks(4.0).iter().map(|tick| trimmed(*tick)).collect();
        assert_eq!(ticks, ["0.4", "0.6", "0.8"]);
        let flat = Axis::over([2.0].into_iter(), 0.0, 100.0);
        assert_eq!(flat.place(2.0), 50.0);
        assert!(Axis::over(std::iter::empty(), 0.0, 1.0).ticks(4.0).len() > 2);
    }

    #[test]
    fn names_cannot_leave_a_drawing() {
        assert_eq!(
            escaped("</svg><script>\u{1b}"),
            "&lt;/svg&gt;&lt;script&gt;\u{fffd}"
        );
        assert_eq!(short(&"x".repeat(50)).chars().count(), NAME_CHARS);
    }
}
