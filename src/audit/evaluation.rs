//! Scores as a report, and the bounds that they must keep: `weld eval`.

use serde_json::json;

use crate::CheckInfo;
use crate::policy::EvalPolicy;
use crate::report::{Command, Finding, Place, Report, Skipped, Table};
use errors::some_of;
use eval::{Comparison, Interval, Kind, Metric, Scores, TaskComparison, TaskScores};

checks! {
    DROP = "eval.drop", Error,
        "The model is worse than the baseline by more than the bound",
        "Accuracy has fallen, or texts have become less likely, by more than --max-drop or the policy allows.",
        "look at the items that were lost with --items, and change the recipe";
    UNCERTAIN = "eval.uncertain", Note,
        "The items are too few to say that the bound is kept",
        "The drop that was found is within the bound, but the 95 % interval of it is not.",
        "score more items";
    REPEATED = "eval.repeated", Note,
        "Items stand in a task more than once",
        "Each time counts, so the result leans towards them, and errors and intervals, which take items as independent, are too small.",
        "remove the lines that repeat others, unless they are meant to count so often";
    UNKNOWN = "eval.unknown", Note,
        "The tokenizer has no token for some of the text",
        "What it does not know becomes one token for everything unknown, so the model does not see what was asked.",
        "write the items in characters that the tokenizer knows, or leave them out";
}

/// The checks of every result; the others are those of a bound.
static OF_ITEMS: &[&CheckInfo] = &[&REPEATED, &UNKNOWN];
/// The checks of a bound.
pub(crate) static OF_BOUNDS: &[&CheckInfo] = &[&DROP, &UNCERTAIN];
/// The most lines that a finding names.
const MOST_LINES: usize = 5;

/// Makes the report of scores, perhaps beside a baseline's.
pub fn evaluation(scores: &Scores, compared: Option<&Comparison>, policy: &EvalPolicy) -> Report {
    let mut report = Report::new(Command::Eval, scores.model.clone());
    report.tables.push(score_table(scores));
    let items: usize = scores.tasks.iter().map(|task| task.items.len()).sum();
    report.say("items", format!("{items} of {} tasks", scores.tasks.len()));
    report.say("split", split_text(scores));
    if scores.chat_template {
        report.say("prompts", "written by the model's chat template".to_owned());
    }
    if let Some(mean) = scores.mean_accuracy().filter(|_| scores.tasks.len() > 1) {
        report.say("mean", metric_text(mean, 100.0, " %"));
    }
    report.checked.extend(OF_ITEMS);
    for task in &scores.tasks {
        report.extend(repeated(task));
        report.extend(unknown(task));
    }
    match compared {
        Some(compared) => {
            report.tables.push(comparison_table(compared));
            report.say("baseline", compared.baseline.clone());
            if !policy.is_empty() {
                report.checked.extend(OF_BOUNDS);
            }
            for task in &compared.tasks {
                report.extend(judged(task, policy));
            }
        }
        None => report.skipped.extend(no_baseline(policy)),
    }
    report.details = json!({
        "scores": scores,
        "metrics": scores.tasks.iter().map(metrics).collect::<Vec<_>>(),
        "mean_accuracy": scores.mean_accuracy(),
        "comparison": compared,
    });
    report
}

/// That a policy bounds the drop from a baseline that is not there.
pub(crate) fn no_baseline(policy: &EvalPolicy) -> Option<Skipped> {
    (!policy.is_empty()).then(|| Skipped {
        check: &DROP,
        why: "the policy has a max_drop, and there is no --baseline".to_owned(),
        needed: true,
    })
}

/// Items that stand in a task more than once.
fn repeated(task: &TaskScores) -> Option<Finding> {
    let repeated = task.repeated();
    let lines = repeated.iter();
    let lines = lines.map(|(line, first)| format!("line {line} repeats line {first}"));
    let lines: Vec<String> = lines.collect();
    (!repeated.is_empty()).then(|| {
        let (count, all) = (repeated.len(), task.items.len());
        let lines = some_of(lines, MOST_LINES);
        Finding::new(
            &REPEATED,
            Place::field(task.task.clone(), "items"),
            "every item once",
            format!("{count} of {all} repeat another: {lines}"),
        )
    })
}

/// Items with text that the tokenizer does not know.
fn unknown(task: &TaskScores) -> Option<Finding> {
    let lines = task.unknown();
    (!lines.is_empty()).then(|| {
        let (count, all) = (lines.len(), task.items.len());
        let lines = some_of(lines, MOST_LINES);
        Finding::new(
            &UNKNOWN,
            Place::field(task.task.clone(), "items"),
            "text that the tokenizer knows",
            format!("{count} of {all} hold some that it does not: lines {lines}"),
        )
    })
}

/// What breaks the bound of a task, or may.
fn judged(task: &TaskComparison, policy: &EvalPolicy) -> Option<Finding> {
    let bound = policy.max_drop(&task.task)?;
    let shown = Shown(task);
    let check = match () {
        () if task.drop > bound => &DROP,
        () if task.interval.high > bound => &UNCERTAIN,
        () => return None,
    };
    let place = Place::field(task.task.clone(), shown.what());
    let expected = format!("a drop of at most {}", shown.number(bound));
    let mut found = format!(
        "{} to {}, a drop of {} (95 %: {} to {})",
        shown.number(task.before),
        shown.number(task.now),
        shown.number(task.drop),
        shown.number(task.interval.low),
        shown.number(task.interval.high)
    );
    if let Some(p) = task.p_value {
        let (lost, won) = (task.lost, task.won);
        found += &format!("; {lost} items lost, {won} won, p {}", p_text(p));
    }
    Some(Finding::new(check, place, expected, found))
}

/// How the drop of a task is written.
struct Shown<'t>(&'t TaskComparison);

impl Shown<'_> {
    fn what(&self) -> &'static str {
        match self.0.kind {
            Kind::Text => "nats a token",
            Kind::Answer | Kind::Choices => self.0.metric.name(),
        }
    }

    fn number(&self, value: f64) -> String {
        format!("{value:.4}")
    }
}

fn p_text(p: f64) -> String {
    match p < 0.0001 {
        true => "below 0.0001".to_owned(),
        false => format!("{p:.4}"),
    }
}

fn split_text(scores: &Scores) -> String {
    let Scores {
        split, seed, limit, ..
    } = scores;
    let limit = limit.map_or(String::new(), |limit| {
        format!(", at most {limit} of a task")
    });
    match split {
        eval::Split::All => format!("all items{limit}"),
        split => format!("{}, seed {seed}{limit}", split.name()),
    }
}

fn metric_text(metric: Metric, factor: f64, unit: &str) -> String {
    let error = metric.standard_error;
    let error = error.map_or(String::new(), |error| format!(" ± {:.2}", factor * error));
    format!("{:.2}{error}{unit}", factor * metric.value)
}

fn score_table(scores: &Scores) -> Table {
    let rows = scores.tasks.iter().flat_map(|task| {
        task.metrics().into_iter().map(move |metric| {
            let Interval { low, high } = task.interval(metric.name);
            let error = metric.standard_error;
            vec![
                task.task.clone(),
                task.items.len().to_string(),
                metric.name.name().to_owned(),
                format!("{:.4}", metric.value),
                error.map_or("-".to_owned(), |error| format!("{error:.4}")),
                format!("{low:.4} to {high:.4}"),
            ]
        })
    });
    let columns = [
        "task",
        "items",
        "metric",
        "value",
        "± error",
        "95 % interval",
    ];
    Table {
        title: "Scores (intervals: Wilson's for accuracy, bootstrap for the others)".to_owned(),
        columns: columns.map(str::to_owned).to_vec(),
        rows: rows.collect(),
    }
}

fn comparison_table(compared: &Comparison) -> Table {
    let rows = compared.tasks.iter().map(|task| {
        let shown = Shown(task);
        let Interval { low, high } = task.interval;
        let counted = |count: usize| match task.p_value {
            Some(_) => count.to_string(),
            None => "-".to_owned(),
        };
        vec![
            task.task.clone(),
            shown.what().to_owned(),
            shown.number(task.before),
            shown.number(task.now),
            shown.number(task.drop),
            format!("{} to {}", shown.number(low), shown.number(high)),
            counted(task.lost),
            counted(task.won),
            task.p_value.map_or("-".to_owned(), p_text),
        ]
    });
    let columns = [
        "task",
        "measure",
        "baseline",
        "now",
        "drop",
        "95 % interval",
        "lost",
        "won",
        "p",
    ];
    Table {
        title: format!(
            "Beside {} (paired by item: bootstrap intervals, McNemar's exact p)",
            compared.baseline
        ),
        columns: columns.map(str::to_owned).to_vec(),
        rows: rows.collect(),
    }
}

/// The metrics of a task with their intervals, for programs.
fn metrics(task: &TaskScores) -> serde_json::Value {
    let metrics = task.metrics().into_iter().map(|metric| {
        let Interval { low, high } = task.interval(metric.name);
        json!({
            "name": metric.name,
            "value": metric.value,
            "standard_error": metric.standard_error,
            "low": low,
            "high": high,
        })
    });
    json!({
        "task": task.task,
        "kind": task.kind,
        "items": task.items.len(),
        "metrics": metrics.collect::<Vec<_>>(),
    })
}
