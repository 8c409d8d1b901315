//! The report as one HTML page without scripts and external resources, in light and dark.

use serde::Serialize;

use super::findings::{Report, Row};
use super::{svg, table};
use audit::formats::{PageError, page_of};

/// The template's input.
#[derive(Serialize)]
struct Page {
    version: &'static str,
    facts: Vec<(&'static str, String)>,
    unit: &'static str,
    leaderboard: String,
    heat_map: String,
    heads: Vec<String>,
    rows: Vec<Vec<String>>,
    values: Vec<(String, String)>,
    searches: Vec<SearchPart>,
    pareto: Vec<(String, String, String)>,
    looks: usize,
    notes: Vec<String>,
}

/// What the page shows of a search.
#[derive(Serialize)]
struct SearchPart {
    name: String,
    is_open: bool,
    space: Vec<(String, String)>,
    counts: String,
    course: String,
    values: Vec<String>,
}

/// The report as an HTML page.
///
/// # Errors
/// The template failed, which no report should cause.
pub fn html(report: &Report) -> Result<String, PageError> {
    let trials: usize = report
        .searches
        .iter()
        .map(|one| one.complete + one.stopped + one.failed)
        .sum();
    let seconds: f64 = report.searches.iter().map(|one| one.seconds).sum();
    let (heads, rows) = table::leaderboard_cells(report, &|name| name.to_owned());
    let page = Page {
        version: env!("CARGO_PKG_VERSION"),
        facts: vec![
            ("Trials", trials.to_string()),
            ("Strategy", report.strategy.to_owned()),
            ("Merging and scoring", format!("{seconds:.1} s")),
            ("Chosen by", report.chosen_by()),
            ("Merges scored on test", report.looks_at_test.to_string()),
        ],
        unit: report.unit(),
        leaderboard: svg::leaderboard(report),
        heat_map: svg::heat_map(report),
        heads,
        rows,
        values: report
            .leaderboard
            .iter()
            .map(|row| (name(row), table::in_words(row)))
            .filter(|(_, values)| !values.is_empty())
            .collect(),
        searches: report
            .searches
            .iter()
            .enumerate()
            .map(|(at, search)| SearchPart {
                name: search.name.clone(),
                is_open: at == 0 && report.searches.len() == 1,
                space: search.space.clone(),
                counts: format!(
                    "{} complete, {} given up early, {} failed, {} repeated an earlier one",
                    search.complete, search.stopped, search.failed, search.repeated
                ),
                course: svg::course(report, &search.name),
                values: svg::values(report, &search.name),
            })
            .collect(),
        pareto: report
            .pareto
            .iter()
            .map(|row| {
                (
                    name(row),
                    report.shown(row.validation.value),
                    table::in_words(row),
                )
            })
            .collect(),
        looks: report.looks_at_test,
        notes: report.notes.clone(),
    };
    page_of(include_str!("study.html"), &page)
}

fn name(row: &Row) -> String {
    match row.number {
        Some(number) => format!("{} · trial {number}", row.name),
        None => row.name.clone(),
    }
}
