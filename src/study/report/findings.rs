//! What a study found: rows with intervals and paired differences, skill by skill.

use serde::Serialize;
use serde_json::{Map, Value};

use crate::bench::Means;
use crate::changes::changes;
use crate::error::StudyError;
use crate::folder::{Folder, Record, Settings, TaskSettings};
use crate::search::Listener;
use crate::statistics::{Estimate, difference};
use crate::trial::{Objective, Reference, Status, TaskResult, Tested, Trial, score};

/// How many trials of a single search the leaderboard shows.
const SHOWN: usize = 10;
/// The most trials that are compared for the Pareto front.
const MAX_COMPARED: usize = 5000;

/// What a study found.
#[derive(Debug, Clone, Serialize)]
pub struct Report {
    /// What is searched for.
    pub objective: Objective,
    /// Whether prompts were shown as the model's chat template writes them.
    pub chat_template: bool,
    /// The strategy.
    pub strategy: &'static str,
    /// Names of the tasks.
    pub tasks: Vec<String>,
    /// Validation items in all tasks.
    pub validation_items: usize,
    /// Test items in all tasks.
    pub test_items: usize,
    /// How often a merge was scored on the test split.
    pub looks_at_test: usize,
    /// The searches, in the order of the study.
    pub searches: Vec<SearchSummary>,
    /// The leaderboard, best first: of several searches the best trial of each, of a single one its best trials.
    pub leaderboard: Vec<Row>,
    /// The models that merges are compared with.
    pub references: Vec<Row>,
    /// The trials than which no other is better in one task and at least as good in all: search and number.
    pub pareto: Vec<Row>,
    /// What a reader should know: of the tasks, and what has changed since the trials were scored.
    pub notes: Vec<String>,
    #[serde(skip)]
    pub(crate) trials: Vec<Trial>,
}

/// How far a search has come.
#[derive(Debug, Clone, Serialize)]
pub struct SearchSummary {
    /// Its name.
    pub name: String,
    /// What is searched: the paths of each value, and the domain in words.
    pub space: Vec<(String, String)>,
    /// Trials that were scored on all validation items.
    pub complete: usize,
    /// Trials that were given up early.
    pub stopped: usize,
    /// Trials that failed.
    pub failed: usize,
    /// Of all, those that repeat an earlier one.
    pub repeated: usize,
    /// Seconds that merging and scoring took.
    pub seconds: f64,
}

/// A model in the report.
#[derive(Debug, Clone, Serialize)]
pub struct Row {
    /// The search, or the model's name.
    pub name: String,
    /// The trial's number; none for a model that was not merged here.
    pub number: Option<usize>,
    /// The values that were tried.
    pub values: Map<String, Value>,
    /// The score on the validation items.
    pub validation: Interval,
    /// The difference to the best trial of the leaderboard, on the same validation items.
    pub to_best: Option<Interval>,
    /// The difference to the best single model, on the same validation items.
    pub to_parent: Option<Interval>,
    /// The score on the test items, if it was chosen.
    pub test: Option<Interval>,
    /// The difference to the best single model of the validation, on the same test items.
    pub test_to_parent: Option<Interval>,
    /// By task.
    pub skills: Vec<Skill>,
    /// The mean over tasks of the score over that of the task's best single model; for shares of right items.
    pub normalised: Option<f64>,
    #[serde(skip)]
    results: Vec<TaskResult>,
    #[serde(skip)]
    test_results: Vec<TaskResult>,
}

/// A number, and half the width of its 95 % interval.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Interval {
    /// The number.
    pub value: f64,
    /// Half the width of the interval, by the normal distribution; none of a single item.
    pub half_width: Option<f64>,
}

impl From<Estimate> for Interval {
    fn from(estimate: Estimate) -> Self {
        Interval {
            value: estimate.value,
            half_width: estimate.half_width(),
        }
    }
}

/// A score on one task.
#[derive(Debug, Clone, Serialize)]
pub struct Skill {
    /// The score on the validation items.
    pub validation: Interval,
    /// The score on the test items, if it was chosen.
    pub test: Option<Interval>,
    /// The validation score over that of the task's best single model; for shares of right items.
    pub normalised: Option<f64>,
    /// What is lost against the task's best single model, on the validation items.
    pub forgotten: Option<f64>,
}

impl Report {
    /// The report of a study's folder.
    ///
    /// # Errors
    /// The folder cannot be read.
    pub fn new(folder: &Folder) -> Result<Report, StudyError> {
        Ok(Self::of(folder.settings(), &folder.record()?))
    }

    /// The same report, which notes what has changed since the trials were scored.
    pub fn with_changes(
        mut self,
        folder: &Folder,
        means: Means,
        listener: &dyn Listener,
    ) -> Report {
        self.notes.extend(changes(folder, means, listener));
        self
    }

    pub(crate) fn of(settings: &Settings, record: &Record) -> Report {
        let names: Vec<&str> = settings
            .searches
            .iter()
            .map(|search| search.name.as_str())
            .collect();
        let best_of = |count: usize| names.iter().flat_map(move |name| record.best(name, count));
        let tested = |trial: &Trial| record.tested.iter().find(|one| one.key == trial.key);
        let row = |trial: &Trial| row_of(trial, tested(trial));
        let mut leaderboard: Vec<Row> = match names.len() {
            1 => best_of(SHOWN).map(row).collect(),
            _ => best_of(1).map(row).collect(),
        };
        sort(&mut leaderboard);
        let mut references: Vec<Row> = record.references.iter().map(row_of_reference).collect();
        sort(&mut references);
        let mut pareto: Vec<Row> = front(record).into_iter().map(row).collect();
        sort(&mut pareto);
        let best = leaderboard.first().cloned();
        let parents = Parents::new(settings.score, &references);
        for row in leaderboard
            .iter_mut()
            .chain(&mut references)
            .chain(&mut pareto)
        {
            row.to_best = best
                .as_ref()
                .and_then(|best| difference(&row.results, &best.results))
                .map(Interval::from);
            parents.compare(row);
        }
        let items = |tasks: &[TaskResult]| tasks.iter().map(|task| task.items).sum();
        Report {
            objective: settings.score,
            chat_template: settings.chat_template,
            strategy: settings.strategy.name(),
            tasks: match settings.command {
                Some(_) => names_of(leaderboard.iter().chain(&references)),
                None => settings
                    .tasks
                    .iter()
                    .map(|task| task.name.clone())
                    .collect(),
            },
            validation_items: best.as_ref().map_or(0, |best| items(&best.results)),
            test_items: record.tested.first().map_or(0, |one| items(&one.tasks)),
            looks_at_test: record.tested.len(),
            searches: settings
                .searches
                .iter()
                .map(|search| summary(&search.name, search.space.in_words(), record))
                .collect(),
            leaderboard,
            references,
            pareto,
            notes: settings
                .tasks
                .iter()
                .filter_map(TaskSettings::note)
                .collect(),
            trials: record.trials.clone(),
        }
    }

    /// A score as it is shown: shares as percent.
    pub(crate) fn shown(&self, value: f64) -> String {
        match self.objective {
            Objective::Accuracy => format!("{:.1}", 100.0 * value),
            Objective::LogLikelihood | Objective::Metric => format!("{value:.4}"),
        }
    }

    /// An interval as it is shown.
    pub(crate) fn shown_with(&self, interval: Interval) -> String {
        match interval.half_width {
            Some(half_width) => format!(
                "{} ± {}",
                self.shown(interval.value),
                self.shown(half_width)
            ),
            None => self.shown(interval.value),
        }
    }

    /// What trials were chosen by, in words.
    pub(crate) fn chosen_by(&self) -> String {
        match (self.objective, self.validation_items) {
            (Objective::Metric, 0) => "the metrics of a command".to_owned(),
            (_, items) if self.chat_template => {
                format!("{items} validation items, prompts by the model's chat template")
            }
            (_, items) => format!("{items} validation items"),
        }
    }

    /// On how many test items merges were judged, if that is known.
    pub(crate) fn on_test_items(&self) -> String {
        match (self.objective, self.test_items) {
            (Objective::Metric, 0) => String::new(),
            (_, items) => format!(", on {items} items"),
        }
    }

    /// What the scores are, in words.
    pub(crate) fn unit(&self) -> &'static str {
        match self.objective {
            Objective::Accuracy => "percent of items that are right, mean over tasks",
            Objective::LogLikelihood => "log-likelihood of what is right, mean over tasks",
            Objective::Metric => {
                "what the command measures, mean over metrics; the negative where lower is better"
            }
        }
    }
}

/// The names of the metrics of the first model that has some.
fn names_of<'r>(mut rows: impl Iterator<Item = &'r Row>) -> Vec<String> {
    let first = rows.find(|row| !row.results.is_empty());
    let results = first.into_iter().flat_map(|row| &row.results);
    results.map(|result| result.task.clone()).collect()
}

fn sort(rows: &mut [Row]) {
    rows.sort_by(|a, b| b.validation.value.total_cmp(&a.validation.value));
}

fn summary(name: &str, space: Vec<(String, String)>, record: &Record) -> SearchSummary {
    let count = |status: Status| {
        record
            .of_search(name)
            .filter(|trial| trial.status == status)
            .count()
    };
    SearchSummary {
        name: name.to_owned(),
        space,
        complete: count(Status::Complete),
        stopped: count(Status::Stopped),
        failed: count(Status::Failed),
        repeated: record
            .of_search(name)
            .filter(|trial| trial.same_as.is_some())
            .count(),
        seconds: record.of_search(name).map(|trial| trial.seconds).sum(),
    }
}

fn row_of(trial: &Trial, tested: Option<&Tested>) -> Row {
    let test = tested
        .map(|tested| tested.tasks.as_slice())
        .unwrap_or_default();
    Row {
        number: Some(trial.number),
        values: trial.values.clone(),
        ..row(trial.search.clone(), &trial.tasks, test)
    }
}

fn row_of_reference(reference: &Reference) -> Row {
    row(
        reference.model.clone(),
        &reference.validation,
        &reference.test,
    )
}

fn row(name: String, validation: &[TaskResult], test: &[TaskResult]) -> Row {
    let interval = |task: &TaskResult| {
        Interval::from(Estimate {
            value: task.score,
            error: task.standard_error,
        })
    };
    let skills = validation.iter().map(|task| Skill {
        validation: interval(task),
        test: test
            .iter()
            .find(|other| other.task == task.task)
            .map(interval),
        normalised: None,
        forgotten: None,
    });
    Row {
        name,
        number: None,
        values: Map::new(),
        validation: score(validation).into(),
        to_best: None,
        to_parent: None,
        test: (!test.is_empty()).then(|| score(test).into()),
        test_to_parent: None,
        skills: skills.collect(),
        normalised: None,
        results: validation.to_vec(),
        test_results: test.to_vec(),
    }
}

/// The single models, to which merges are compared.
struct Parents {
    objective: Objective,
    best: Option<Row>,
    /// The best score of any of them, by task.
    by_task: Vec<f64>,
}

impl Parents {
    fn new(objective: Objective, references: &[Row]) -> Parents {
        let tasks = references.first().map_or(0, |one| one.results.len());
        let best_of = |task: usize| {
            let scores = references
                .iter()
                .filter_map(|one| Some(one.results.get(task)?.score));
            scores.fold(f64::NEG_INFINITY, f64::max)
        };
        Parents {
            objective,
            best: references.first().cloned(),
            by_task: (0..tasks).map(best_of).collect(),
        }
    }

    fn compare(&self, row: &mut Row) {
        let Some(best) = &self.best else { return };
        row.to_parent = difference(&row.results, &best.results).map(Interval::from);
        row.test_to_parent = difference(&row.test_results, &best.test_results).map(Interval::from);
        for (skill, parent) in row.skills.iter_mut().zip(&self.by_task) {
            skill.forgotten = Some(parent - skill.validation.value);
            let is_share = self.objective == Objective::Accuracy && *parent > 0.0;
            skill.normalised = is_share.then(|| skill.validation.value / parent);
        }
        let normalised: Option<Vec<f64>> =
            row.skills.iter().map(|skill| skill.normalised).collect();
        row.normalised = normalised
            .filter(|all| !all.is_empty())
            .map(|all| all.iter().sum::<f64>() / all.len() as f64);
    }
}

/// The trials than which no other is better in one task and at least as good in all.
fn front(record: &Record) -> Vec<&Trial> {
    let mut keys = std::collections::HashSet::new();
    let mut complete: Vec<&Trial> = record
        .trials
        .iter()
        .filter(|trial| trial.is_complete() && keys.insert(&trial.key))
        .collect();
    let score = |trial: &Trial| trial.score.unwrap_or(f64::NEG_INFINITY);
    complete.sort_by(|a, b| score(b).total_cmp(&score(a)));
    complete.truncate(MAX_COMPARED);
    let scores =
        |trial: &Trial| -> Vec<f64> { trial.tasks.iter().map(|task| task.score).collect() };
    let all: Vec<Vec<f64>> = complete.iter().map(|trial| scores(trial)).collect();
    let beaten = |own: &Vec<f64>| {
        all.iter().any(|other| {
            other.iter().zip(own).all(|(other, own)| other >= own)
                && other.iter().zip(own).any(|(other, own)| other > own)
        })
    };
    complete
        .iter()
        .zip(&all)
        .filter(|(_, own)| !beaten(own))
        .map(|(trial, _)| *trial)
        .collect()
}

/// The report as JSON.
pub fn json(report: &Report) -> Value {
    serde_json::to_value(report).unwrap_or_default()
}
