//! Trials: what was tried, and what it scored. Each is a line of `trials.jsonl`.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::error::StudyError;
use super::statistics::{Estimate, mean_of_tasks};
use errors::Refusal;
use eval::{ItemScore, Kind, Scores, TaskScores};

/// What of the scores is searched for; larger is better.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Objective {
    /// The mean over tasks of the share of items that are right.
    Accuracy,
    /// The mean over tasks of the mean log-likelihood of what is right: of an item; of texts, of a token.
    LogLikelihood,
    /// The mean of what a command measures; of a metric of which lower is better, the negative.
    Metric,
}

impl Objective {
    /// Those that a study with tasks may ask for.
    pub const ALL: [Objective; 2] = [Self::Accuracy, Self::LogLikelihood];

    /// Its name in files.
    pub fn name(self) -> &'static str {
        match self {
            Objective::Accuracy => "accuracy",
            Objective::LogLikelihood => "log_likelihood",
            Objective::Metric => "metric",
        }
    }
}

/// How a trial ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    /// Scored on all validation items.
    Complete,
    /// Scored on some items, and given up because others were better on them.
    Stopped,
    /// Its merge or its scoring failed.
    Failed,
}

/// A trial, as it stands in `trials.jsonl`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Trial {
    /// The name of its search.
    pub search: String,
    /// Its number in the search, from 0.
    pub number: usize,
    /// How it ended.
    pub status: Status,
    /// The score that is searched for, on the validation items that it was scored on; none if it failed.
    pub score: Option<f64>,
    /// The standard error of the score.
    pub standard_error: Option<f64>,
    /// The values that were tried, by their paths into the recipe.
    pub values: Map<String, Value>,
    /// The point of the unit cube that stands for them.
    pub point: Vec<f64>,
    /// The scores after each step of the halving.
    pub rungs: Vec<f64>,
    /// By task.
    pub tasks: Vec<TaskResult>,
    /// The digest of all that the scores depend on: recipe, inputs, tasks, arithmetic.
    pub key: String,
    /// The search and number of an earlier trial with the same key, whose scores these are.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub same_as: Option<(String, usize)>,
    /// Why it failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// The seconds that merging and scoring took.
    pub seconds: f64,
}

/// The scores of a trial, or of another model, on one task.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TaskResult {
    /// The task's name.
    pub task: String,
    /// How many items were scored; 0 if a command does not say.
    pub items: usize,
    /// The task's part of the score.
    pub score: f64,
    /// Its standard error.
    pub standard_error: Option<f64>,
    /// By item, in the order of the file: `1` right, `0` wrong. Empty where the score is no share of right items.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub verdicts: String,
    /// By item: its part of the score. Empty where there are verdicts.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub values: Vec<f64>,
}

/// The scores of a model that merges are compared with: a line of `references.jsonl`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Reference {
    /// The model, as the recipe names it.
    pub model: String,
    /// The score on the validation items.
    pub validation: Vec<TaskResult>,
    /// The score on the test items.
    pub test: Vec<TaskResult>,
}

/// The scores of a chosen trial on the test items: a line of `test.jsonl`. Each line is one look at the test split.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Tested {
    /// The name of its search.
    pub search: String,
    /// Its number in the search.
    pub number: usize,
    /// Its key.
    pub key: String,
    /// The score that is searched for, on the test items.
    pub score: f64,
    /// The standard error of the score.
    pub standard_error: Option<f64>,
    /// By task.
    pub tasks: Vec<TaskResult>,
}

impl Trial {
    /// Whether its scores can be compared with those of complete trials.
    pub fn is_complete(&self) -> bool {
        self.status == Status::Complete && self.score.is_some()
    }
}

impl TaskResult {
    /// By item: its part of the score.
    pub fn by_item(&self) -> Vec<f64> {
        match self.verdicts.is_empty() {
            true => self.values.clone(),
            false => self
                .verdicts
                .bytes()
                .map(|byte| f64::from(u8::from(byte == b'1')))
                .collect(),
        }
    }
}

/// The results of scores, by task.
///
/// # Errors
/// The objective is the share of right items, and a task is of texts.
pub(crate) fn results(
    objective: Objective,
    scores: &Scores,
) -> Result<Vec<TaskResult>, StudyError> {
    scores
        .tasks
        .iter()
        .map(|task| result(objective, task))
        .collect()
}

fn result(objective: Objective, task: &TaskScores) -> Result<TaskResult, StudyError> {
    let mut result = TaskResult {
        task: task.task.clone(),
        items: task.items.len(),
        score: 0.0,
        standard_error: None,
        verdicts: String::new(),
        values: Vec::new(),
    };
    match (objective, task.kind) {
        (Objective::Accuracy, Kind::Text) => {
            let why = format!(
                "task `{}`: the items are texts, and `score: accuracy` needs right and wrong ones",
                task.task
            );
            return Err(Refusal::new(why)
                .with_hint("write `score: log_likelihood` into the study")
                .into());
        }
        (Objective::Accuracy, _) => {
            let verdict = |item: &ItemScore| if item.correct == Some(true) { '1' } else { '0' };
            result.verdicts = task.items.iter().map(verdict).collect();
        }
        (Objective::LogLikelihood | Objective::Metric, Kind::Text) => {
            // Texts of many tokens count more, so that the mean is that of a token.
            let tokens: usize = task.items.iter().map(|item| item.tokens).sum();
            let mean = tokens as f64 / task.items.len().max(1) as f64;
            result.values = task
                .items
                .iter()
                .map(|item| short(item.log_likelihood / mean.max(1.0)))
                .collect();
        }
        (Objective::LogLikelihood | Objective::Metric, _) => {
            result.values = task
                .items
                .iter()
                .map(|item| short(item.log_likelihood))
                .collect();
        }
    }
    let Estimate { value, error } = Estimate::of(&result.by_item());
    (result.score, result.standard_error) = (value, error);
    Ok(result)
}

/// The largest part of a score.
pub(crate) const LARGEST: f64 = 1e9;

/// A number with six digits after the point: what is written is what is compared.
fn short(value: f64) -> f64 {
    // JSON has no infinity.
    let value = if value.is_nan() {
        -LARGEST
    } else {
        value.clamp(-LARGEST, LARGEST)
    };
    (value * 1e6).round() / 1e6
}

/// The score of results: the mean over tasks.
pub(crate) fn score(tasks: &[TaskResult]) -> Estimate {
    mean_of_tasks(tasks.iter().map(|task| Estimate {
        value: task.score,
        error: task.standard_error,
    }))
}
