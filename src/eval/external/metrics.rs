//! Metrics in the JSON that a command gives.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

/// Where a metric is in the JSON of a command.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct MetricPlace {
    /// Its name.
    pub name: String,
    /// Its place, a JSON pointer: `/results/task/acc,none`.
    pub pointer: String,
    /// The place of its standard error.
    pub error: Option<String>,
    /// Whether a larger value is better.
    pub larger_is_better: bool,
}

/// A metric as a command measured it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Measured {
    /// Its name.
    pub name: String,
    /// Its value, finite.
    pub value: f64,
    /// Its standard error, if it is known.
    pub standard_error: Option<f64>,
    /// Whether a larger value is better.
    pub larger_is_better: bool,
    /// The items that were scored, if that is known.
    pub items: Option<usize>,
}

impl MetricPlace {
    /// Reads the metric.
    pub(super) fn read(&self, json: &Value) -> Result<Measured, String> {
        let standard_error = match &self.error {
            None => None,
            Some(place) => Some(number(
                json,
                place,
                &format!("the error of `{}`", self.name),
            )?),
        };
        Ok(Measured {
            name: self.name.clone(),
            value: number(json, &self.pointer, &format!("`{}`", self.name))?,
            standard_error,
            larger_is_better: self.larger_is_better,
            items: None,
        })
    }
}

/// The number at a place.
fn number(json: &Value, pointer: &str, what: &str) -> Result<f64, String> {
    let found = json.pointer(pointer);
    let number = found
        .and_then(Value::as_f64)
        .filter(|number| number.is_finite());
    number.ok_or_else(|| {
        let found = match found {
            None => "nothing".to_owned(),
            Some(Value::Null) => "null (or NaN)".to_owned(),
            Some(Value::String(text)) => {
                format!("the text {:?}", text.chars().take(40).collect::<String>())
            }
            Some(Value::Array(_)) => "a list".to_owned(),
            Some(Value::Object(_)) => "an object".to_owned(),
            Some(other) => other.to_string(),
        };
        format!("expected a number for {what} at {pointer}, found {found}")
    })
}

/// Where lm-eval keeps the names of a task's metrics: `acc,none` is the metric `acc` with the filter `none`.
const ERROR: &str = "_stderr";

/// The metrics of lm-eval's JSON: of each task the first that it reports; of a group, that of the group alone.
pub(super) fn of_lm_eval(json: &Value) -> Result<Vec<Measured>, String> {
    let Some(results) = json.get("results").and_then(Value::as_object) else {
        return Err("it is not lm-eval's JSON: there are no `results`".to_owned());
    };
    let parts = grouped(json, results);
    let tasks = results
        .iter()
        .filter(|(task, _)| !parts.contains(&task.as_str()));
    let measured = tasks.filter_map(|(task, found)| of_task(json, task, found.as_object()?));
    let measured: Vec<Measured> = measured.collect();
    match measured.is_empty() {
        true => Err("none of lm-eval's `results` has a number".to_owned()),
        false => Ok(measured),
    }
}

/// The tasks that are parts of a group for which there are numbers.
fn grouped<'j>(json: &'j Value, results: &Map<String, Value>) -> Vec<&'j str> {
    let groups = json.get("group_subtasks").and_then(Value::as_object);
    let groups = groups.into_iter().flatten().filter(|(group, parts)| {
        let found = results.get(*group).and_then(Value::as_object);
        let is_part_of_itself = parts
            .as_array()
            .is_some_and(|parts| parts.contains(&Value::from(group.as_str())));
        !is_part_of_itself && found.is_some_and(|found| first_metric(found).is_some())
    });
    let parts = groups.filter_map(|(_, parts)| parts.as_array()).flatten();
    parts.filter_map(Value::as_str).collect()
}

fn of_task(json: &Value, task: &str, found: &Map<String, Value>) -> Option<Measured> {
    let (name, value) = first_metric(found)?;
    let (metric, filter) = name.split_once(',').unwrap_or((name, "none"));
    let error = found.get(&format!("{metric}{ERROR},{filter}"));
    let get = |table: &str, key: &str| json.get(table)?.get(task)?.get(key);
    Some(Measured {
        name: task.to_owned(),
        value,
        standard_error: error
            .and_then(Value::as_f64)
            .filter(|error| error.is_finite()),
        larger_is_better: get("higher_is_better", metric)
            .and_then(Value::as_bool)
            .unwrap_or(true),
        items: get("n-samples", "effective")
            .and_then(Value::as_u64)
            .and_then(|items| usize::try_from(items).ok()),
    })
}

/// The first metric of a task: its name with the filter, and its value.
fn first_metric(found: &Map<String, Value>) -> Option<(&str, f64)> {
    let metrics = found
        .iter()
        .filter(|(name, _)| name.contains(',') && !name.contains(ERROR));
    metrics
        .filter_map(|(name, value)| Some((name.as_str(), value.as_f64()?)))
        .find(|(_, value)| value.is_finite())
}
