//! What a command measured of a model, as a report: `weld eval --command`.

use serde::Serialize;
use serde_json::json;

use crate::evaluation::{DROP, OF_BOUNDS, UNCERTAIN, no_baseline};
use crate::policy::EvalPolicy;
use crate::report::{Command, Finding, Place, Report, Table};
use errors::Refusal;
use eval::{Measured, Split, TWO_SIDED_95};

/// What a program measured of a baseline.
#[derive(Debug, Clone)]
pub struct MeasuredBaseline {
    /// The baseline, as the user names it.
    pub name: String,
    /// Its metrics.
    pub metrics: Vec<Measured>,
}

/// A metric beside that of the baseline.
#[derive(Debug, Serialize)]
struct Drop<'m> {
    metric: &'m str,
    before: f64,
    now: f64,
    /// How much worse it is, whichever direction is better.
    drop: f64,
    /// Half of the 95 % interval of the drop, from both standard errors; none if one is not known.
    half_width: Option<f64>,
}

/// Makes the report of metrics that a program measured, perhaps beside those of a baseline. Of the command only the program
/// is in it: words of it may be secret.
///
/// # Errors
/// The baseline lacks a metric.
pub fn measurements(
    model: &str,
    program: &str,
    split: Split,
    measured: &[Measured],
    baseline: Option<&MeasuredBaseline>,
    policy: &EvalPolicy,
) -> Result<Report, Refusal> {
    let mut report = Report::new(Command::Eval, model.to_owned());
    report.tables.push(table(measured));
    report.say("scored by", program.to_owned());
    if split != Split::All {
        report.say("split", split.name().to_owned());
    }
    report.details = json!({
        "program": program,
        "split": split,
        "metrics": measured,
    });
    let Some(baseline) = baseline else {
        report.skipped.extend(no_baseline(policy));
        return Ok(report);
    };
    let drops = measured.iter().map(|one| drop_of(one, baseline));
    let drops: Vec<Drop<'_>> = drops.collect::<Result<_, _>>()?;
    report.tables.push(drop_table(&drops, &baseline.name));
    report.say("baseline", baseline.name.clone());
    if !policy.is_empty() {
        report.checked.extend(OF_BOUNDS);
    }
    for one in &drops {
        report.extend(judged(one, policy));
    }
    report.details["comparison"] = json!({"baseline": baseline.name, "metrics": drops});
    Ok(report)
}

fn drop_of<'m>(now: &'m Measured, baseline: &MeasuredBaseline) -> Result<Drop<'m>, Refusal> {
    let mut metrics = baseline.metrics.iter();
    let before = metrics.find(|one| one.name == now.name).ok_or_else(|| {
        let why = format!(
            "the baseline {} has no metric `{}`",
            baseline.name, now.name
        );
        Refusal::new(why).with_hint("score both with the same command")
    })?;
    let sign = if now.larger_is_better { 1.0 } else { -1.0 };
    let errors = before.standard_error.zip(now.standard_error);
    Ok(Drop {
        metric: &now.name,
        before: before.value,
        now: now.value,
        drop: sign * (before.value - now.value),
        half_width: errors.map(|(a, b)| TWO_SIDED_95 * (a * a + b * b).sqrt()),
    })
}

/// What breaks the bound of a metric, or may.
fn judged(one: &Drop<'_>, policy: &EvalPolicy) -> Option<Finding> {
    let bound = policy.max_drop(one.metric)?;
    let check = match one.half_width {
        _ if one.drop > bound => &DROP,
        Some(half_width) if one.drop + half_width > bound => &UNCERTAIN,
        _ => return None,
    };
    Some(Finding::new(
        check,
        Place::field(one.metric.to_owned(), "value"),
        format!("a drop of at most {bound:.4}"),
        format!(
            "{:.4} to {:.4}, a drop of {:.4} (95 %: {})",
            one.before,
            one.now,
            one.drop,
            one.interval().unwrap_or_else(|| "not known".to_owned())
        ),
    ))
}

impl Drop<'_> {
    fn interval(&self) -> Option<String> {
        let half_width = self.half_width?;
        let (low, high) = (self.drop - half_width, self.drop + half_width);
        Some(format!("{low:.4} to {high:.4}"))
    }
}

fn drop_table(drops: &[Drop<'_>], baseline: &str) -> Table {
    let rows = drops.iter().map(|one| {
        vec![
            one.metric.to_owned(),
            format!("{:.4}", one.before),
            format!("{:.4}", one.now),
            format!("{:.4}", one.drop),
            one.interval().unwrap_or_else(|| "-".to_owned()),
        ]
    });
    let columns = ["metric", "baseline", "now", "drop", "95 % interval"];
    Table {
        title: format!("Beside {baseline} (not paired: which items were lost is not known)"),
        columns: columns.map(str::to_owned).to_vec(),
        rows: rows.collect(),
    }
}

fn table(measured: &[Measured]) -> Table {
    let rows = measured.iter().map(|one| {
        let half_width = one.standard_error.map(|error| TWO_SIDED_95 * error);
        let or_none = |text: Option<String>| text.unwrap_or_else(|| "-".to_owned());
        vec![
            one.name.clone(),
            or_none(one.items.map(|items| items.to_string())),
            format!("{:.4}", one.value),
            or_none(one.standard_error.map(|error| format!("{error:.4}"))),
            or_none(
                half_width
                    .map(|half| format!("{:.4} to {:.4}", one.value - half, one.value + half)),
            ),
            if one.larger_is_better {
                "higher"
            } else {
                "lower"
            }
            .to_owned(),
        ]
    });
    let columns = [
        "metric",
        "items",
        "value",
        "± error",
        "95 % interval",
        "better",
    ];
    Table {
        title: "Metrics (intervals: normal, from the standard error that the command gives)"
            .to_owned(),
        columns: columns.map(str::to_owned).to_vec(),
        rows: rows.collect(),
    }
}
