//! Whether a record can be believed: whatever of it can be computed again is, and compared.

use serde_json::Map;

use super::file::MAX_TRIALS;
use super::folder::{Record, SearchSettings, Settings, TaskSettings};
use super::statistics::Estimate;
use super::trial::{LARGEST, Objective, Reference, Status, TaskResult, Tested, Trial, score};
use super::values::json;

/// How far a number may be off what it is computed to, in proportion.
const SLACK: f64 = 1e-9;

/// Checks a trial against itself, the study, and the trials before it.
///
/// # Errors
/// What contradicts what.
pub(crate) fn trial(settings: &Settings, record: &Record, trial: &Trial) -> Result<(), String> {
    let search = search_of(settings, &trial.search)?;
    if trial.number >= MAX_TRIALS {
        let number = trial.number;
        return Err(format!(
            "expected a trial below {MAX_TRIALS}, found {number}"
        ));
    }
    if record.trial(&trial.search, trial.number).is_some() {
        let Trial { search, number, .. } = trial;
        return Err(format!(
            "trial {number} of `{search}` stands on an earlier line already"
        ));
    }
    point(search, trial)?;
    if !(trial.seconds >= 0.0 && trial.seconds.is_finite()) {
        return Err(format!("a trial cannot take {} seconds", trial.seconds));
    }
    let is_failed = trial.status == Status::Failed;
    if trial.error.is_some() != is_failed || trial.score.is_some() == is_failed {
        return Err("a failed trial has an error and no score; any other has a score alone".into());
    }
    if is_failed {
        return match trial.tasks.is_empty() && trial.rungs.is_empty() {
            true => Ok(()),
            false => Err("a failed trial has no scores".into()),
        };
    }
    check_key(&trial.key)?;
    let items = rungs(settings, trial)?;
    results(settings, &trial.tasks, |task| items.min(task.validation))?;
    let all = score(&trial.tasks);
    same("score", trial.score, Some(all.value))?;
    same("standard_error", trial.standard_error, all.error)?;
    let Some((search, number)) = &trial.same_as else {
        return Ok(());
    };
    let repeats = |earlier: &Trial| {
        (&earlier.key, earlier.status, &earlier.tasks, &earlier.rungs)
            == (&trial.key, trial.status, &trial.tasks, &trial.rungs)
    };
    match record.trial(search, *number).is_some_and(repeats) {
        true => Ok(()),
        false => Err(format!(
            "expected the scores of trial {number} of `{search}`, as `same_as` says, found others"
        )),
    }
}

/// Checks the scores of a model that trials are compared with.
///
/// # Errors
/// As of [`trial`].
pub(crate) fn reference(
    settings: &Settings,
    record: &Record,
    reference: &Reference,
) -> Result<(), String> {
    let model = &reference.model;
    if !settings.models.iter().any(|input| input.model == *model) {
        return Err(format!("no recipe of the study names the model `{model}`"));
    }
    if record.reference(model).is_some() {
        return Err(format!("`{model}` stands on an earlier line already"));
    }
    results(settings, &reference.validation, |task| task.validation)?;
    results(settings, &reference.test, |task| task.test)
}

/// Checks a look at the test split.
///
/// # Errors
/// As of [`trial`].
pub(crate) fn tested(settings: &Settings, record: &Record, tested: &Tested) -> Result<(), String> {
    let Tested { search, number, .. } = tested;
    search_of(settings, search)?;
    let trial = record.trial(search, *number);
    if !trial.is_some_and(|trial| trial.is_complete() && trial.key == tested.key) {
        return Err(format!(
            "trials.jsonl has no complete trial {number} of `{search}` with this key"
        ));
    }
    if record.tested.iter().any(|one| one.key == tested.key) {
        return Err(format!(
            "trial {number} of `{search}` stands on an earlier line already"
        ));
    }
    results(settings, &tested.tasks, |task| task.test)?;
    let all = score(&tested.tasks);
    same("score", Some(tested.score), Some(all.value))?;
    same("standard_error", tested.standard_error, all.error)
}

fn search_of<'s>(settings: &'s Settings, name: &str) -> Result<&'s SearchSettings, String> {
    let found = settings.searches.iter().find(|search| search.name == name);
    found.ok_or_else(|| format!("the study has no search `{name}`"))
}

/// A point lies in the unit cube, and the values are those that it stands for.
fn point(search: &SearchSettings, trial: &Trial) -> Result<(), String> {
    let wanted = search.space.dimensions().len();
    let fits = trial.point.iter().all(|unit| (0.0..=1.0).contains(unit));
    if trial.point.len() != wanted || !fits {
        return Err(format!(
            "expected a `point` of {wanted} numbers from 0 to 1"
        ));
    }
    let values = search.space.values(&trial.point).into_iter();
    let values: Map<_, _> = values
        .map(|(path, value)| {
            let read = recipe::read_yaml(&value).unwrap_or_default();
            (
                path,
                read.first()
                    .map_or(serde_json::Value::Null, |node| json(&node.value)),
            )
        })
        .collect();
    match values == trial.values {
        true => Ok(()),
        false => Err("the `values` are not those that the `point` stands for".into()),
    }
}

fn check_key(key: &str) -> Result<(), String> {
    match blake3::Hash::from_hex(key) {
        Ok(_) => Ok(()),
        Err(_) => Err("expected a digest as `key`".into()),
    }
}

/// Checks the steps of the halving, and gives how many items of a task a trial was scored on at most.
fn rungs(settings: &Settings, trial: &Trial) -> Result<usize, String> {
    let largest = settings.tasks.iter().map(|task| task.validation).max();
    let largest = largest.unwrap_or(0);
    let mut limits = Vec::new();
    if let Some((first, factor)) = settings.halving {
        let mut limit = first.max(1);
        while limit < largest {
            limits.push(limit);
            limit = limit.saturating_mul(factor.max(2));
        }
    }
    let found = trial.rungs.len();
    if trial.rungs.iter().any(|score| !score.is_finite()) {
        return Err("expected finite numbers as `rungs`".into());
    }
    match trial.status {
        Status::Stopped => {
            let items = found.checked_sub(1).and_then(|last| limits.get(last));
            let last = trial.rungs.last().copied();
            let items = items.ok_or_else(|| {
                format!(
                    "a trial that was given up has 1 to {} `rungs`, found {found}",
                    limits.len()
                )
            })?;
            same("the last of `rungs`", last, trial.score)?;
            Ok(*items)
        }
        _ if found == limits.len() => Ok(usize::MAX),
        _ => Err(format!("expected {} `rungs`, found {found}", limits.len())),
    }
}

/// Checks results against themselves and the tasks of the study, of which so many items were scored.
fn results(
    settings: &Settings,
    results: &[TaskResult],
    items: impl Fn(&TaskSettings) -> usize,
) -> Result<(), String> {
    if settings.command.is_some() {
        return measured(results);
    }
    let names = settings.tasks.iter().map(|task| task.name.as_str());
    if !names.eq(results.iter().map(|result| result.task.as_str())) {
        let names: Vec<&str> = settings
            .tasks
            .iter()
            .map(|task| task.name.as_str())
            .collect();
        return Err(format!(
            "expected results of the tasks {}",
            names.join(", ")
        ));
    }
    for (task, result) in settings.tasks.iter().zip(results) {
        let of_task = |why: String| format!("task `{}`: {why}", task.name);
        of_items(settings.score, result, items(task)).map_err(of_task)?;
        let all = Estimate::of(&result.by_item());
        same("score", Some(result.score), Some(all.value)).map_err(of_task)?;
        same("standard_error", result.standard_error, all.error).map_err(of_task)?;
    }
    Ok(())
}

/// Checks what a command measured.
fn measured(results: &[TaskResult]) -> Result<(), String> {
    for result in results {
        let error = result.standard_error.unwrap_or(0.0);
        let has_items = !result.verdicts.is_empty() || !result.values.is_empty();
        if !result.score.is_finite() || !(0.0..f64::INFINITY).contains(&error) || has_items {
            return Err(format!(
                "metric `{}`: expected a number and its error",
                result.task
            ));
        }
    }
    Ok(())
}

fn of_items(objective: Objective, result: &TaskResult, items: usize) -> Result<(), String> {
    let TaskResult {
        verdicts, values, ..
    } = result;
    if result.items != items || items == 0 {
        return Err(format!("expected {items} items, found {}", result.items));
    }
    let fits = match objective {
        Objective::Accuracy => {
            let right = |byte| matches!(byte, b'0' | b'1');
            verdicts.len() == items && values.is_empty() && verdicts.bytes().all(right)
        }
        Objective::LogLikelihood | Objective::Metric => {
            values.len() == items
                && verdicts.is_empty()
                && values.iter().all(|value| value.abs() <= LARGEST)
        }
    };
    let what = match objective {
        Objective::Accuracy => "`verdicts`, each 0 or 1",
        Objective::LogLikelihood | Objective::Metric => "`values`",
    };
    match fits {
        true => Ok(()),
        false => Err(format!("expected {items} {what}")),
    }
}

fn same(what: &str, found: Option<f64>, expected: Option<f64>) -> Result<(), String> {
    let is_same = match (found, expected) {
        (Some(found), Some(expected)) => (found - expected).abs() <= SLACK * (1.0 + expected.abs()),
        (None, None) => true,
        _ => false,
    };
    let shown = |number: Option<f64>| number.map_or("none".to_owned(), |number| number.to_string());
    match is_same {
        true => Ok(()),
        false => Err(format!(
            "expected {what} {}, as its parts say, found {}",
            shown(expected),
            shown(found)
        )),
    }
}
