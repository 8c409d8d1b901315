//! What scoring a model gives, item by item; saved and read back as JSON.

use serde::{Deserialize, Serialize};

use crate::split::{Digest, Split};
use crate::statistics::{Interval, Mean, bootstrap, ratio, wilson};
use crate::task::{Kind, repeated};

/// The scores of a model.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Scores {
    /// The model, as the user wrote it.
    pub model: String,
    /// The part of each task that was scored.
    pub split: Split,
    /// The seed of the split.
    pub seed: u64,
    /// The most items of each task, if there was a limit.
    pub limit: Option<usize>,
    /// Whether the model's chat template wrote the prompts.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub chat_template: bool,
    /// By task, in the order of the files.
    pub tasks: Vec<TaskScores>,
}

/// The scores of a model on a task.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TaskScores {
    /// The task's name.
    pub task: String,
    /// What its items ask for.
    pub kind: Kind,
    /// By item, in the order of the file.
    pub items: Vec<ItemScore>,
}

/// The score of an item.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ItemScore {
    /// Names the item by its content.
    pub item: Digest,
    /// The line in its file, from 1.
    pub line: usize,
    /// Whether the model is right: it writes exactly an answer and ends, or the right choice is the likeliest. None for a
    /// text.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub correct: Option<bool>,
    /// Whether the right choice is the likeliest once each log-likelihood is divided by the choice's length in characters.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub correct_normalised: Option<bool>,
    /// The natural logarithm of the probability of the right answer (of several, the likeliest), the right choice or the
    /// text.
    pub log_likelihood: f64,
    /// How many tokens that is the probability of.
    pub tokens: usize,
    /// The bytes of a text that was not given as tokens.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bytes: Option<usize>,
    /// How many tokens of the item's text stand for something that the vocabulary has no token for.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub unknown: usize,
    /// What the model wrote, if it was asked to write.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub written: Option<String>,
    /// The log-likelihood of each choice.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub choices: Vec<f64>,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "as serde calls it")]
fn is_zero(count: &usize) -> bool {
    *count == 0
}

/// What is measured of a task.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum MetricName {
    /// The share of items that are right, 0 to 1.
    Accuracy,
    /// The same by log-likelihoods that are divided by the length of each choice.
    AccuracyNormalised,
    /// The mean log-likelihood of what is right, in nats an item.
    LogLikelihood,
    /// The exponential of the mean negative log-likelihood of a token, over all texts.
    Perplexity,
    /// The negative log-likelihood of all texts in bits, over their bytes.
    BitsPerByte,
}

impl MetricName {
    /// The name in results.
    pub fn name(self) -> &'static str {
        match self {
            MetricName::Accuracy => "accuracy",
            MetricName::AccuracyNormalised => "accuracy_normalised",
            MetricName::LogLikelihood => "log_likelihood",
            MetricName::Perplexity => "perplexity",
            MetricName::BitsPerByte => "bits_per_byte",
        }
    }

    /// Whether a larger value is better.
    pub fn larger_is_better(self) -> bool {
        !matches!(self, MetricName::Perplexity | MetricName::BitsPerByte)
    }
}

/// A number that sums up a task.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Metric {
    /// What is measured.
    pub name: MetricName,
    /// Its value.
    pub value: f64,
    /// The standard error of the value over the items as a sample; none of a single item.
    pub standard_error: Option<f64>,
}

impl TaskScores {
    /// Items that stand in the file before: the line of each, and that of the first that is equal. They count each time.
    pub fn repeated(&self) -> Vec<(usize, usize)> {
        repeated(self.items.iter().map(|item| (item.item, item.line)))
    }

    /// The lines of items with text that the vocabulary has no token for.
    pub fn unknown(&self) -> Vec<usize> {
        let items = self.items.iter();
        items
            .filter(|item| item.unknown > 0)
            .map(|item| item.line)
            .collect()
    }

    /// The metrics of the task; the first is the one by which models are compared.
    pub fn metrics(&self) -> Vec<Metric> {
        let metric = |name, (value, standard_error)| Metric {
            name,
            value,
            standard_error,
        };
        let share = |of: fn(&ItemScore) -> Option<bool>| {
            let verdicts = self.items.iter().map(|item| of(item) == Some(true));
            let right = verdicts.clone().filter(|is| *is).count();
            let (_, error) = Mean::of(verdicts.map(|is| f64::from(u8::from(is)))).parts();
            (right as f64 / self.items.len() as f64, error)
        };
        let likelihood = || Mean::of(self.items.iter().map(|item| item.log_likelihood)).parts();
        let mut metrics = Vec::new();
        match self.kind {
            Kind::Answer => {
                metrics.push(metric(MetricName::Accuracy, share(|item| item.correct)));
            }
            Kind::Choices => {
                metrics.push(metric(MetricName::Accuracy, share(|item| item.correct)));
                let normalised = share(|item| item.correct_normalised);
                metrics.push(metric(MetricName::AccuracyNormalised, normalised));
            }
            Kind::Text => {
                let losses = || self.items.iter().map(|item| -item.log_likelihood);
                let tokens = self.items.iter().map(|item| item.tokens as f64);
                let (rate, error) = ratio(losses().zip(tokens));
                let perplexity = rate.exp();
                // To first order, an error of the exponent is one of the same share of the power.
                let error = error.map(|error| error * perplexity);
                metrics.push(metric(MetricName::Perplexity, (perplexity, error)));
                let bytes: Option<Vec<usize>> = self.items.iter().map(|item| item.bytes).collect();
                if let Some(bytes) = bytes {
                    let bits = losses().map(|loss| loss / std::f64::consts::LN_2);
                    let bytes = bytes.into_iter().map(|bytes| bytes as f64);
                    metrics.push(metric(MetricName::BitsPerByte, ratio(bits.zip(bytes))));
                }
            }
        }
        metrics.push(metric(MetricName::LogLikelihood, likelihood()));
        metrics
    }

    /// The interval of a metric: Wilson's of a share, else by drawing items anew.
    pub fn interval(&self, metric: MetricName) -> Interval {
        let seed = self.items.len() as u64;
        let share = |of: fn(&ItemScore) -> Option<bool>| {
            let right = self.items.iter().filter(|item| of(item) == Some(true));
            wilson(right.count(), self.items.len())
        };
        let rows = |of: fn(&ItemScore) -> [f64; 2]| -> Vec<[f64; 2]> {
            self.items.iter().map(of).collect()
        };
        match metric {
            MetricName::Accuracy => share(|item| item.correct),
            MetricName::AccuracyNormalised => share(|item| item.correct_normalised),
            MetricName::LogLikelihood => {
                bootstrap(&rows(|item| [item.log_likelihood, 1.0]), seed, |[a, b]| {
                    a / b
                })
            }
            MetricName::Perplexity => {
                let losses = rows(|item| [-item.log_likelihood, item.tokens as f64]);
                bootstrap(&losses, seed, |[a, b]| (a / b).exp())
            }
            MetricName::BitsPerByte => {
                let bits = rows(|item| {
                    let bits = -item.log_likelihood / std::f64::consts::LN_2;
                    [bits, item.bytes.unwrap_or(0) as f64]
                });
                bootstrap(&bits, seed, |[a, b]| a / b)
            }
        }
    }

    /// The metric by which models are compared: accuracy, or of texts perplexity.
    pub fn main(&self) -> Metric {
        self.metrics()[0]
    }
}

impl Scores {
    /// The mean accuracy of the tasks that have one, each counted alike, and its standard error; none if there is none.
    pub fn mean_accuracy(&self) -> Option<Metric> {
        let tasks = self.tasks.iter().filter(|task| task.kind != Kind::Text);
        let metrics: Vec<Metric> = tasks.map(TaskScores::main).collect();
        if metrics.is_empty() {
            return None;
        }
        let count = metrics.len() as f64;
        let squares = metrics
            .iter()
            .map(|metric| metric.standard_error.map(|error| error * error));
        let squares: Option<f64> = squares.sum();
        Some(Metric {
            name: MetricName::Accuracy,
            value: metrics.iter().map(|metric| metric.value).sum::<f64>() / count,
            standard_error: squares.map(|squares| squares.sqrt() / count),
        })
    }
}
