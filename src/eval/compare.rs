//! Two models on the same items.

use std::collections::HashMap;

use serde::{Deserialize, Serialize};

use crate::error::EvalError;
use crate::scores::{ItemScore, MetricName, Scores, TaskScores};
use crate::split::Digest;
use crate::statistics::{Interval, bootstrap, mcnemar};
use crate::task::Kind;
use errors::Refusal;

/// How a model differs from a baseline, task by task.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Comparison {
    /// The baseline, as the user wrote it.
    pub baseline: String,
    /// By task, in the order of the model's scores.
    pub tasks: Vec<TaskComparison>,
}

/// How a model differs from a baseline on the items of a task.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TaskComparison {
    /// The task's name.
    pub task: String,
    /// What its items ask for.
    pub kind: Kind,
    /// What is compared; of texts, the mean negative log-likelihood of a token stands for their perplexity.
    pub metric: MetricName,
    /// How many items both were scored on: all of the task.
    pub items: usize,
    /// The baseline's accuracy, by that metric; of texts, its mean negative log-likelihood of a token, in nats.
    pub before: f64,
    /// The same of the model.
    pub now: f64,
    /// How much worse the model is: accuracy lost, or nats a token more. A hundredth of a nat is 1 % of perplexity.
    pub drop: f64,
    /// The interval of the drop, by drawing items anew, each with both of its results.
    pub interval: Interval,
    /// Items that the baseline has right and the model has not; none for texts.
    pub lost: usize,
    /// Items that the model has right and the baseline has not.
    pub won: usize,
    /// The probability of so unequal losses and wins if neither model were better: McNemar's exact test. None for texts.
    pub p_value: Option<f64>,
    /// By how much the mean log-likelihood of what is right has risen, in nats an item, and its interval.
    pub log_likelihood: f64,
    /// Its interval, by drawing items anew.
    pub log_likelihood_interval: Interval,
}

impl Scores {
    /// Compares with a baseline, item by item; items with choices by accuracy, or where `normalised` by log-likelihoods that
    /// are divided by the length of each choice.
    ///
    /// # Errors
    /// The baseline has no score of one of the items, or was shown them in another form.
    pub fn compare(&self, baseline: &Scores, normalised: bool) -> Result<Comparison, EvalError> {
        if self.chat_template != baseline.chat_template {
            let why = format!(
                "`{}` was scored with --chat-template, and `{}` without it",
                if self.chat_template {
                    &self.model
                } else {
                    &baseline.model
                },
                if self.chat_template {
                    &baseline.model
                } else {
                    &self.model
                },
            );
            let why = Refusal::new(why).with_hint("score both with it, or both without");
            return Err(why.into());
        }
        let tasks = self.tasks.iter().map(|task| {
            let before = baseline
                .tasks
                .iter()
                .find(|before| before.task == task.task);
            let Some(before) = before else {
                let why = format!(
                    "`{}` was not scored on task `{}`",
                    baseline.model, task.task
                );
                let why = Refusal::new(why).with_hint("score the baseline on the same files");
                return Err(why.into());
            };
            compare(task, &paired(task, before, &baseline.model)?, normalised)
        });
        Ok(Comparison {
            baseline: baseline.model.clone(),
            tasks: tasks.collect::<Result<_, EvalError>>()?,
        })
    }
}

/// The baseline's score of each item, in the order of the task; items that stand in a file twice are paired in their order.
fn paired<'b>(
    task: &TaskScores,
    before: &'b TaskScores,
    baseline: &str,
) -> Result<Vec<&'b ItemScore>, EvalError> {
    let mut known: HashMap<Digest, Vec<&ItemScore>> = HashMap::new();
    for item in before.items.iter().rev() {
        known.entry(item.item).or_default().push(item);
    }
    let pairs = task
        .items
        .iter()
        .map(|item| known.get_mut(&item.item)?.pop());
    let pairs: Vec<Option<&ItemScore>> = pairs.collect();
    let missing = pairs.iter().filter(|pair| pair.is_none()).count();
    if missing > 0 {
        let why = format!(
            "task `{}`: `{baseline}` was not scored on {missing} of {} items",
            task.task,
            task.items.len()
        );
        let hint = "score it on the same files, with the same split, seed and limit";
        return Err(Refusal::new(why).with_hint(hint).into());
    }
    Ok(pairs.into_iter().flatten().collect())
}

fn compare(
    task: &TaskScores,
    before: &[&ItemScore],
    normalised: bool,
) -> Result<TaskComparison, EvalError> {
    let metric = match task.kind {
        Kind::Text => MetricName::Perplexity,
        Kind::Choices if normalised => MetricName::AccuracyNormalised,
        Kind::Answer | Kind::Choices => MetricName::Accuracy,
    };
    let count = task.items.len() as f64;
    let seed = task.items.len() as u64;
    let pairs = || before.iter().copied().zip(&task.items);
    let gains: Vec<[f64; 1]> = pairs()
        .map(|(before, now)| [now.log_likelihood - before.log_likelihood])
        .collect();
    let mut compared = TaskComparison {
        task: task.task.clone(),
        kind: task.kind,
        metric,
        items: task.items.len(),
        before: 0.0,
        now: 0.0,
        drop: 0.0,
        interval: Interval {
            low: 0.0,
            high: 0.0,
        },
        lost: 0,
        won: 0,
        p_value: None,
        log_likelihood: gains.iter().flatten().sum::<f64>() / count,
        log_likelihood_interval: bootstrap(&gains, seed, |[sum]| sum / count),
    };
    if task.kind == Kind::Text {
        let differ = pairs().any(|(before, now)| before.tokens != now.tokens);
        if differ {
            let why = format!(
                "task `{}`: the two models cut texts into other tokens",
                task.task
            );
            let hint = "compare models of one vocabulary, or their bits a byte";
            return Err(Refusal::new(why).with_hint(hint).into());
        }
        let rows: Vec<[f64; 3]> = pairs()
            .map(|(before, now)| {
                let tokens = now.tokens as f64;
                [-before.log_likelihood, -now.log_likelihood, tokens]
            })
            .collect();
        let sum = |at: usize| rows.iter().map(|row| row[at]).sum::<f64>();
        (compared.before, compared.now) = (sum(0) / sum(2), sum(1) / sum(2));
        compared.drop = compared.now - compared.before;
        compared.interval = bootstrap(&rows, seed, |[before, now, tokens]| (now - before) / tokens);
        return Ok(compared);
    }
    let is_right = |item: &ItemScore| match metric {
        MetricName::AccuracyNormalised => item.correct_normalised == Some(true),
        _ => item.correct == Some(true),
    };
    let rows: Vec<[f64; 1]> = pairs()
        .map(|(before, now)| {
            let lost = i8::from(is_right(before)) - i8::from(is_right(now));
            [f64::from(lost)]
        })
        .collect();
    compared.lost = rows.iter().filter(|row| row[0] > 0.0).count();
    compared.won = rows.iter().filter(|row| row[0] < 0.0).count();
    let right = before.iter().filter(|item| is_right(item)).count();
    compared.before = right as f64 / count;
    compared.now = (right + compared.won - compared.lost) as f64 / count;
    compared.drop = (compared.lost as f64 - compared.won as f64) / count;
    compared.interval = bootstrap(&rows, seed, |[sum]| sum / count);
    compared.p_value = Some(mcnemar(compared.lost, compared.won));
    Ok(compared)
}

#[cfg(test)]
mod tests {
    use super::super::task::{Content, Input};
    use super::*;
    use crate::Split;

    /// Scores of a task, by item: its name, whether it is right, its log-likelihood.
    fn scores(model: &str, kind: Kind, items: &[(&str, bool, f64)]) -> Scores {
        let items = items
            .iter()
            .zip(1..)
            .map(|(&(name, correct, log_likelihood), line)| ItemScore {
                item: Digest::of_item(&Content::Text(Input::Text(name.into()))),
                line,
                correct: (kind != Kind::Text).then_some(correct),
                correct_normalised: None,
                log_likelihood,
                tokens: 2,
                bytes: None,
                unknown: 0,
                written: None,
                choices: Vec::new(),
            });
        let items = items.collect();
        Scores {
            model: model.into(),
            split: Split::All,
            seed: 0,
            limit: None,
            chat_template: false,
            tasks: vec![TaskScores {
                task: "t".into(),
                kind,
                items,
            }],
        }
    }

    /// Choices are compared by what is asked for: here each model has by one metric what it has not by the other.
    #[test]
    fn choices_are_compared_by_the_metric() {
        let scored = |model: &str, right: [bool; 2]| {
            let mut scores = scores(
                model,
                Kind::Choices,
                &[("a", right[0], -1.0), ("b", right[0], -1.0)],
            );
            for item in &mut scores.tasks[0].items {
                item.correct_normalised = Some(right[1]);
            }
            scores
        };
        let (before, now) = (
            scored("before", [true, false]),
            scored("now", [false, true]),
        );
        let drop = |normalised: bool| {
            let compared = now.compare(&before, normalised).unwrap();
            let task = &compared.tasks[0];
            (task.metric, task.drop, task.lost, task.won)
        };
        assert_eq!(drop(false), (MetricName::Accuracy, 1.0, 2, 0));
        assert_eq!(drop(true), (MetricName::AccuracyNormalised, -1.0, 0, 2));
    }

    #[test]
    fn verdicts_are_compared_item_by_item_whatever_their_order() {
        let before = [
            ("a", true, -1.0),
            ("b", true, -1.0),
            ("c", false, -4.0),
            ("d", true, -1.0),
            ("a", false, -9.0),
        ];
        let now = [
            ("a", true, -1.0),
            ("c", true, -2.0),
            ("d", false, -3.0),
            ("b", false, -2.0),
            ("a", false, -9.0),
        ];
        let (before, now) = (
            scores("x", Kind::Answer, &before),
            scores("y", Kind::Answer, &now),
        );
        let compared = now.compare(&before, false).unwrap();
        assert_eq!(compared.baseline, "x");
        let task = &compared.tasks[0];
        assert_eq!((task.lost, task.won, task.items), (2, 1, 5));
        assert_eq!((task.before, task.now), (0.6, 0.4));
        assert!((task.drop - 0.2).abs() < 1e-12);
        assert_eq!(task.p_value, Some(1.0));
        assert!((task.log_likelihood + 1.0 / 5.0).abs() < 1e-12, "{task:?}");
        assert!(task.interval.low <= task.drop && task.drop <= task.interval.high);
        // Answers have no choices: they are compared as before.
        assert_eq!(now.compare(&before, true).unwrap(), compared);
        let same = now.compare(&now, false).unwrap();
        assert_eq!(
            same.tasks[0].interval,
            Interval {
                low: 0.0,
                high: 0.0
            }
        );
    }

    #[test]
    fn texts_are_compared_by_nats_a_token() {
        let before = scores("x", Kind::Text, &[("a", false, -2.0), ("b", false, -4.0)]);
        let now = scores("y", Kind::Text, &[("a", false, -3.0), ("b", false, -5.0)]);
        let task = &now.compare(&before, false).unwrap().tasks[0];
        assert_eq!((task.before, task.now, task.drop), (1.5, 2.0, 0.5));
        assert_eq!(
            task.interval,
            Interval {
                low: 0.5,
                high: 0.5
            }
        );
        assert_eq!(task.p_value, None);
    }

    #[test]
    fn other_items_are_refused() {
        let before = scores("x", Kind::Answer, &[("a", true, -1.0)]);
        let twice = scores("y", Kind::Answer, &[("a", true, -1.0), ("a", true, -1.0)]);
        let error = errors::in_one_line(&twice.compare(&before, false).unwrap_err());
        assert!(
            error.contains("`x` was not scored on 1 of 2 items; hint: score it"),
            "{error}"
        );
        let mut other = before.clone();
        other.tasks[0].task = "u".into();
        let error = errors::in_one_line(&other.compare(&before, false).unwrap_err());
        assert!(error.contains("`x` was not scored on task `u`"), "{error}");
    }
}
