//! The report as text, Markdown and CSV.

use super::findings::{Interval, Report, Row};
use crate::trial::{Objective, Trial};
use errors::printable;

/// A table: the head, and rows of as many cells.
struct Table {
    head: Vec<String>,
    rows: Vec<Vec<String>>,
}

impl Table {
    fn new(head: &[&str]) -> Table {
        Table {
            head: head.iter().map(|&cell| cell.to_owned()).collect(),
            rows: Vec::new(),
        }
    }

    /// Without columns that hold nothing.
    fn without_empty(mut self) -> Table {
        let keep: Vec<bool> = (0..self.head.len())
            .map(|at| {
                self.rows
                    .iter()
                    .any(|row| row.get(at).is_some_and(|cell| !cell.is_empty()))
            })
            .collect();
        let kept = |cells: &mut Vec<String>| {
            let mut keep = keep.iter();
            cells.retain(|_| keep.next().copied().unwrap_or(true));
        };
        kept(&mut self.head);
        self.rows.iter_mut().for_each(kept);
        self
    }

    /// Columns of equal width; numbers to the right.
    fn text(&self) -> String {
        let all = || std::iter::once(&self.head).chain(&self.rows);
        let widths: Vec<usize> = (0..self.head.len())
            .map(|at| {
                all()
                    .filter_map(|row| row.get(at))
                    .map(|cell| cell.chars().count())
                    .max()
                    .unwrap_or(0)
            })
            .collect();
        let line = |row: &Vec<String>| {
            let cells = row
                .iter()
                .zip(&widths)
                .enumerate()
                .map(|(at, (cell, &width))| match at {
                    0 => format!("{cell:<width$}"),
                    _ => format!("{cell:>width$}"),
                });
            cells
                .collect::<Vec<String>>()
                .join("  ")
                .trim_end()
                .to_owned()
                + "\n"
        };
        all().map(line).collect()
    }

    /// Numbers to the right.
    fn markdown(&self) -> String {
        let line = |row: &Vec<String>| {
            let cells: Vec<String> = row.iter().map(|cell| cell.replace('|', "\\|")).collect();
            format!("| {} |\n", cells.join(" | "))
        };
        let rule: Vec<&str> = (0..self.head.len())
            .map(|at| match self.head.get(at).map(String::as_str) {
                Some("model" | "values") => "---",
                _ => "---:",
            })
            .collect();
        format!(
            "{}| {} |\n{}",
            line(&self.head),
            rule.join(" | "),
            self.rows.iter().map(line).collect::<String>()
        )
    }
}

/// The report for people.
pub fn text(report: &Report) -> String {
    let mut out = opening(report) + "\n";
    out.push_str(&format!("Leaderboard ({})\n\n", report.unit()));
    out.push_str(&leaderboard(report, &|name| name.to_owned()).text());
    out.push_str("\nBy task, on the validation items\n\n");
    out.push_str(&skills(report, &|name| name.to_owned()).text());
    if report.pareto.len() > 1 {
        out.push_str(
            "\nPareto front: no trial is better in one task and at least as good in all\n\n",
        );
        out.push_str(&pareto(report, &|name| name.to_owned()).text());
    }
    out.push('\n');
    out.push_str(&best_values(report));
    out
}

/// The report as Markdown, for a page or a pull request.
pub fn markdown(report: &Report) -> String {
    let mut out = format!("{}\n", opening(report).replace('\n', "\n\n").trim_end());
    out.push_str(&format!(
        "\n## Leaderboard\n\nScores: {}.\n\n",
        report.unit()
    ));
    out.push_str(&leaderboard(report, &code).markdown());
    out.push_str("\n## By task\n\nOn the validation items.\n\n");
    out.push_str(&skills(report, &code).markdown());
    if report.pareto.len() > 1 {
        out.push_str("\n## Pareto front\n\nThe trials than which no other is better in one task ");
        out.push_str("and at least as good in all.\n\n");
        out.push_str(&pareto(report, &code).markdown());
    }
    out.push_str("\n## The values\n\n");
    out.push_str(&values(report).markdown());
    out
}

/// All trials, one a line.
pub fn csv(report: &Report) -> String {
    let mut paths: Vec<&String> = Vec::new();
    for path in report.trials.iter().flat_map(|trial| trial.values.keys()) {
        if !paths.contains(&path) {
            paths.push(path);
        }
    }
    let fixed = [
        "search",
        "number",
        "status",
        "score",
        "standard_error",
        "items",
        "seconds",
        "same_as",
        "error",
    ];
    let heads = fixed.iter().map(|&head| head.to_owned());
    let heads = heads.chain(report.tasks.iter().map(|task| format!("task:{task}")));
    let heads = heads.chain(paths.iter().map(|path| format!("value:{path}")));
    let mut out = record(heads);
    for trial in &report.trials {
        out.push_str(&record(cells(trial, &report.tasks, &paths)));
    }
    out
}

fn cells(trial: &Trial, tasks: &[String], paths: &[&String]) -> impl Iterator<Item = String> {
    let number = |value: Option<f64>| value.map(|value| value.to_string()).unwrap_or_default();
    let mut cells = vec![
        trial.search.clone(),
        trial.number.to_string(),
        format!("{:?}", trial.status).to_lowercase(),
        number(trial.score),
        number(trial.standard_error),
        trial
            .tasks
            .iter()
            .map(|task| task.items)
            .sum::<usize>()
            .to_string(),
        trial.seconds.to_string(),
        trial
            .same_as
            .as_ref()
            .map(|(search, number)| format!("{search} {number}"))
            .unwrap_or_default(),
        trial.error.clone().unwrap_or_default(),
    ];
    for name in tasks {
        let task = trial.tasks.iter().find(|task| task.task == *name);
        cells.push(number(task.map(|task| task.score)));
    }
    for path in paths {
        cells.push(match trial.values.get(*path) {
            Some(serde_json::Value::String(text)) => text.clone(),
            Some(value) => value.to_string(),
            None => String::new(),
        });
    }
    cells.into_iter()
}

/// A line of CSV (RFC 4180). What a spreadsheet would take for a formula is made text.
fn record(cells: impl Iterator<Item = String>) -> String {
    let cell = |cell: String| {
        let cell = printable(&cell).into_owned();
        let formula = cell.starts_with(['=', '+', '@', '\t', '\r'])
            || cell.starts_with('-') && cell.parse::<f64>().is_err();
        let cell = if formula { format!("'{cell}") } else { cell };
        match cell.contains([',', '"', '\n', '\r']) {
            true => format!("\"{}\"", cell.replace('"', "\"\"")),
            false => cell,
        }
    };
    cells.map(cell).collect::<Vec<String>>().join(",") + "\r\n"
}

fn opening(report: &Report) -> String {
    let trials: usize = report
        .searches
        .iter()
        .map(|one| one.complete + one.stopped + one.failed)
        .sum();
    let seconds: f64 = report.searches.iter().map(|one| one.seconds).sum();
    let searches = match report.searches.len() {
        1 => String::new(),
        several => format!(" in {several} searches"),
    };
    let mut out = format!(
        "{trials} trials{searches} by {}, {seconds:.1} s of merging and scoring. Chosen by {}.\n",
        report.strategy,
        report.chosen_by()
    );
    out.push_str(&match report.looks_at_test {
        0 => "No merge has been scored on the test split.\n".to_owned(),
        1 => format!(
            "One merge was scored on the test split, once{}.\n",
            report.on_test_items()
        ),
        looks => format!(
            "{looks} merges were scored on the test split, each once{}.\n",
            report.on_test_items()
        ),
    });
    let stopped: usize = report.searches.iter().map(|one| one.stopped).sum();
    if stopped > 0 {
        out.push_str(&format!("{stopped} were given up early.\n"));
    }
    let failed: usize = report.searches.iter().map(|one| one.failed).sum();
    if failed > 0 {
        out.push_str(&format!("{failed} failed.\n"));
    }
    for note in &report.notes {
        out.push_str(&format!("Note: {note}.\n"));
    }
    out.push_str(match report.objective {
        Objective::Metric => {
            "± is half of a 95 % interval by the errors that the command gives; those of differences are too wide, as \
             the items are the same.\n"
        }
        _ => {
            "± is half of a 95 % interval over the items; differences are item by item, on the same items.\n"
        }
    });
    out
}

/// Text in code style.
fn code(text: &str) -> String {
    let fence = "`".repeat(text.split(|c| c != '`').map(str::len).max().unwrap_or(0) + 1);
    format!("{fence}{}{fence}", text.replace(char::is_control, " "))
}

fn name(row: &Row, code: &dyn Fn(&str) -> String) -> String {
    match row.number {
        Some(number) => format!("{} trial {number}", code(&row.name)),
        None => code(&row.name),
    }
}

/// The head and the cells of the leaderboard, without columns that hold nothing.
pub(super) fn leaderboard_cells(
    report: &Report,
    code: &dyn Fn(&str) -> String,
) -> (Vec<String>, Vec<Vec<String>>) {
    let Table { head, rows } = leaderboard(report, code);
    (head, rows)
}

fn leaderboard(report: &Report, code: &dyn Fn(&str) -> String) -> Table {
    let shown = |interval: Option<Interval>| {
        interval
            .map(|one| report.shown_with(one))
            .unwrap_or_default()
    };
    let best = report
        .references
        .first()
        .map_or("the best model", |one| one.name.as_str());
    let mut table = Table::new(&[
        "model",
        "validation",
        "to the best",
        &format!("to {best}"),
        "normalised",
        "test",
        &format!("to {best}, test"),
    ]);
    for row in report.leaderboard.iter().chain(&report.references) {
        table.rows.push(vec![
            name(row, code),
            report.shown_with(row.validation),
            shown(row.to_best.filter(|_| {
                Some(row.number) != report.leaderboard.first().map(|best| best.number)
                    || row.name != report.leaderboard[0].name
            })),
            shown(
                row.to_parent
                    .filter(|_| row.name != best || row.number.is_some()),
            ),
            row.normalised
                .map(|share| format!("{share:.3}"))
                .unwrap_or_default(),
            shown(row.test),
            shown(
                row.test_to_parent
                    .filter(|_| row.name != best || row.number.is_some()),
            ),
        ]);
    }
    table.without_empty()
}

fn skills(report: &Report, code: &dyn Fn(&str) -> String) -> Table {
    let mut head = vec!["model"];
    head.extend(report.tasks.iter().map(String::as_str));
    head.push("lost at most");
    let mut table = Table::new(&head);
    for row in report.leaderboard.iter().chain(&report.references) {
        let mut cells = vec![name(row, code)];
        cells.extend(
            row.skills
                .iter()
                .map(|skill| report.shown(skill.validation.value)),
        );
        let lost = row.skills.iter().filter_map(|skill| skill.forgotten);
        let lost = lost.fold(None, |most: Option<f64>, lost| {
            Some(most.map_or(lost, |most| most.max(lost)))
        });
        cells.push(lost.map(|lost| report.shown(lost)).unwrap_or_default());
        table.rows.push(cells);
    }
    table.without_empty()
}

fn pareto(report: &Report, code: &dyn Fn(&str) -> String) -> Table {
    let mut head = vec!["model", "mean"];
    head.extend(report.tasks.iter().map(String::as_str));
    let mut table = Table::new(&head);
    for row in &report.pareto {
        let mut cells = vec![name(row, code), report.shown(row.validation.value)];
        cells.extend(
            row.skills
                .iter()
                .map(|skill| report.shown(skill.validation.value)),
        );
        table.rows.push(cells);
    }
    table
}

fn values(report: &Report) -> Table {
    let mut table = Table::new(&["model", "values"]);
    for row in &report.leaderboard {
        table
            .rows
            .push(vec![name(row, &code), code(&in_words(row))]);
    }
    table
}

/// The values of a row, by their paths.
pub(super) fn in_words(row: &Row) -> String {
    let values = row.values.iter().map(|(path, value)| match value {
        serde_json::Value::String(text) => format!("{path}={text}"),
        other => format!("{path}={other}"),
    });
    values.collect::<Vec<String>>().join(" ")
}

fn best_values(report: &Report) -> String {
    match report.leaderboard.first() {
        Some(best) => {
            let lines: Vec<String> = in_words(best)
                .split(' ')
                .map(|line| format!("  {line}\n"))
                .collect();
            format!(
                "The values of {}:\n\n{}",
                name(best, &|name| name.to_owned()),
                lines.concat()
            )
        }
        None => "No trial is complete yet.\n".to_owned(),
    }
}
