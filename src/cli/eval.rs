//! `weld eval`: scores a model on files of tasks.

use std::cell::Cell;
use std::fmt;
use std::path::{Path, PathBuf};

use clap::{Args, ValueEnum};
use serde_json::Value;

use super::arguments::{Memory, Part, SetArguments, Threads, plan_any, recipe_name, seed};
use super::caller::Caller;
use super::eval_command::{CommandArguments, Scored};
use super::network::{Needs, Network, open};
use super::output::Failure;
use super::progress::Progress;
use super::report::{ReportArguments, write};
use super::signals::Work;
use ::eval::{
    EvalError, Evaluator, Kind, Measured, Options, Prepared, Scores, Split, Surroundings,
    TaskScores, Tasks,
};
use audit::policy::EvalPolicy;
use audit::{Command, MeasuredBaseline, Report, evaluation, measurements};
use checkpoint::{Checkpoint, ModelRef, read_bounded};
use engine::{Observer, Settings};
use errors::{Refusal, printable_json};
use moe::MoeOptions;
use plan::Plan;

/// The largest result of an earlier run that is read.
const MAX_RESULT_BYTES: u64 = 1 << 30;

/// Score a model, or what a recipe would give, on files of tasks
///
/// A task is a file of JSON lines: {"prompt", "answer"}, {"prompt", "choices", "answer"} or {"text"}. A recipe is merged in
/// memory and nothing is written. Exit codes: 0 scored, and within the bounds; 1 worse than --baseline by more than
/// --max-drop; 2 could not run; 3 a policy bounds the drop, and there is no baseline.
#[derive(Args)]
pub(super) struct Arguments {
    /// A folder, a file, or an id on the Hub; `+ADAPTER` adds a LoRA adapter; or a recipe (.yml, `-` for standard input)
    #[arg(value_parser = Subject::parse)]
    model: Subject,

    /// Files of tasks, one task each. Can be repeated
    #[arg(long, value_name = "FILE", required_unless_present = "command", num_args = 1..)]
    tasks: Vec<PathBuf>,

    #[command(flatten)]
    command: CommandArguments,

    /// The items to score: half of them to choose a model by, the other half to judge the chosen one by, or all
    #[arg(long, value_enum, default_value_t = Part::All)]
    split: Part,

    /// Seed of the split, and of the items that --limit takes
    #[arg(long, default_value_t = 0, value_parser = seed, allow_negative_numbers = true)]
    seed: u64,

    /// The most items of each task, taken at random
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    limit: Option<u32>,

    /// Show each prompt as what a user says in a chat, written by the model's own template; texts and tokens stay as they are
    #[arg(long)]
    chat_template: bool,

    /// Let the model write its answers, token by token, and compare texts. Without this an answer is judged in one pass:
    /// each of its tokens, and then an end, must be the likeliest
    #[arg(long)]
    generate: bool,

    /// The most tokens that it writes
    #[arg(long, value_name = "N", default_value_t = 256, requires = "generate", value_parser = clap::value_parser!(u32).range(1..=65_536))]
    max_tokens: u32,

    /// Write the result of each item to a file, as JSON lines
    #[arg(long, value_name = "FILE")]
    items: Option<PathBuf>,

    /// Compare item by item with another model or recipe, or with the JSON report of an earlier run (.json)
    #[arg(long, value_name = "MODEL", value_parser = Subject::parse)]
    baseline: Option<Subject>,

    /// Fail if the model is worse than the baseline by more: accuracy lost (0.01 is one item of a hundred), or of texts
    /// nats a token (0.01 is 1 % of perplexity). For every task
    #[arg(long, value_name = "DROP", requires = "baseline", value_parser = bound)]
    max_drop: Option<f64>,

    /// What choices are compared with the baseline by: accuracy, or accuracy_normalised, which divides the log-likelihood
    /// of each choice by its length [default: the policy's, or accuracy]
    #[arg(long, value_enum, requires = "baseline")]
    compare_by: Option<ChoiceMetric>,

    #[command(flatten)]
    set: SetArguments,

    /// Recipes: seed of random masks (dare_*, della*), stochastic rounding, and what is random in a mixture of experts
    #[arg(long, value_name = "SEED", default_value_t = 0, value_parser = seed, allow_negative_numbers = true)]
    merge_seed: u64,

    #[command(flatten)]
    network: Network,

    #[command(flatten)]
    threads: Threads,

    #[command(flatten)]
    memory: Memory,

    /// Print only the report
    #[arg(long, short)]
    quiet: bool,

    #[command(flatten)]
    report: ReportArguments,
}

/// What choices are compared by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
#[value(rename_all = "snake_case")]
enum ChoiceMetric {
    /// By log-likelihood
    Accuracy,
    /// By log-likelihood over length
    AccuracyNormalised,
}

/// What is scored.
#[derive(Clone)]
enum Subject {
    Model(ModelRef),
    Recipe(PathBuf),
    /// The report of an earlier run; only a baseline may be one.
    Result(PathBuf),
}

impl Subject {
    fn parse(text: &str) -> Result<Subject, String> {
        let path = Path::new(text);
        let ends = |endings: &[&str]| {
            let ending = path.extension().and_then(|ending| ending.to_str());
            ending.is_some_and(|ending| endings.contains(&ending)) && !path.is_dir()
        };
        match text {
            "-" => Ok(Subject::Recipe(path.into())),
            _ if ends(&["yml", "yaml"]) => Ok(Subject::Recipe(path.into())),
            _ if ends(&["json"]) => Ok(Subject::Result(path.into())),
            _ => ModelRef::parse(text).map(Subject::Model),
        }
    }

    /// Where it is, if it is no id.
    fn path(&self) -> PathBuf {
        match self {
            Subject::Model(model) => PathBuf::from(&model.path),
            Subject::Recipe(path) | Subject::Result(path) => path.clone(),
        }
    }
}

impl fmt::Display for Subject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Subject::Model(model) => fmt::Display::fmt(model, f),
            Subject::Recipe(path) => f.write_str(&recipe_name(path)),
            Subject::Result(path) => fmt::Display::fmt(&path.display(), f),
        }
    }
}

impl Arguments {
    /// The files that it reads, as far as they are named.
    fn read(&self) -> Vec<PathBuf> {
        let subjects = std::iter::once(&self.model).chain(&self.baseline);
        let subjects = subjects.map(Subject::path);
        subjects.chain(self.tasks.iter().cloned()).collect()
    }

    /// Checks that the results of items are not written over something else.
    ///
    /// # Errors
    /// They would be.
    fn check_items(&self) -> Result<(), Failure> {
        let Some(file) = &self.items else {
            return Ok(());
        };
        let option = format!("--items {}", file.display());
        if self.report.files().any(|other| other == file) {
            let why = Refusal::new(format!("{option}: the report goes there"));
            return Err(Failure::tool(why.with_hint("name another file")));
        }
        self.report.spare(&option, file, &self.read())
    }
}

/// Parses the bound of a drop.
fn bound(text: &str) -> Result<f64, String> {
    let number = text.parse().ok();
    let number = number.filter(|bound| (0.0..=f64::MAX).contains(bound));
    number.ok_or_else(|| "expected a number of 0 or more, such as 0.01".into())
}

pub(super) fn run(arguments: &Arguments) -> Result<(), Failure> {
    arguments.check_items()?;
    let read = arguments.read();
    arguments
        .report
        .finish(Command::Eval, &arguments.model, &read, || {
            let caller = Caller::terminal(Work::Reads, arguments.quiet)?;
            report(arguments, &caller)
        })
}

/// Scores for a program.
pub(super) fn call(arguments: &Arguments, caller: &Caller) -> Result<Report, Failure> {
    arguments.check_items()?;
    arguments.report.made(|| report(arguments, caller))
}

fn report(arguments: &Arguments, caller: &Caller) -> Result<Report, Failure> {
    let split = arguments.split.split();
    if let Some(evaluator) = arguments.command.evaluator(split)? {
        return measured(arguments, &evaluator, split, caller);
    }
    let tasks = Tasks::read(&arguments.tasks)?;
    // An earlier result that cannot be read is told before the work.
    let earlier = match &arguments.baseline {
        Some(Subject::Result(path)) => Some(earlier(path)?),
        _ => None,
    };
    let scores = scored(arguments, &arguments.model, &tasks, caller)?;
    if let Some(file) = &arguments.items {
        write(file, &lines(&scores))?;
    }
    let before = match (&arguments.baseline, earlier) {
        (_, Some(earlier)) => Some(earlier),
        (Some(baseline), None) => Some(scored(arguments, baseline, &tasks, caller)?),
        (None, None) => None,
    };
    let policy = bounds(arguments)?;
    let metric = arguments.compare_by;
    let normalised = metric.map(|metric| metric == ChoiceMetric::AccuracyNormalised);
    let normalised = normalised.or(policy.normalised).unwrap_or(false);
    let has_choices = |task: &TaskScores| task.kind == Kind::Choices;
    if metric == Some(ChoiceMetric::AccuracyNormalised) && !scores.tasks.iter().any(has_choices) {
        let why = "--compare-by accuracy_normalised: no task has choices, and only these have it";
        return Err(Failure::tool(
            Refusal::new(why).with_hint("leave --compare-by out"),
        ));
    }
    let compared = before.map(|before| scores.compare(&before, normalised));
    let compared = compared.transpose()?;
    Ok(evaluation(&scores, compared.as_ref(), &policy))
}

/// How much worse than the baseline the model may be.
fn bounds(arguments: &Arguments) -> Result<EvalPolicy, Failure> {
    let mut policy = match arguments.report.policy()? {
        Some(policy) => policy.eval.clone(),
        None => EvalPolicy::default(),
    };
    policy.all = arguments.max_drop.or(policy.all);
    Ok(policy)
}

/// The scores of a model, or of what a recipe gives.
fn scored(
    arguments: &Arguments,
    subject: &Subject,
    tasks: &Tasks,
    caller: &Caller,
) -> Result<Scores, Failure> {
    let label = subject.to_string();
    let (model, surroundings) = match subject {
        Subject::Model(model) => {
            let model = opened(arguments, model, caller)?;
            let surroundings = Surroundings::of_checkpoint(&model)?;
            (model, surroundings)
        }
        Subject::Recipe(path) => merged(arguments, path, &label, caller)?,
        Subject::Result(path) => return Err(no_subject(path)),
    };
    let options = Options {
        split: arguments.split.split(),
        seed: arguments.seed,
        limit: arguments.limit.map(|limit| limit as usize),
        chat_template: arguments.chat_template,
        generate: arguments.generate.then_some(arguments.max_tokens as usize),
        threads: arguments.threads.count(),
        memory: arguments.memory.budget().usual(),
    };
    let prepared = Prepared::new(&surroundings, tasks, &options, &Stops(caller))?;
    let scoring = Scoring::new(&prepared, caller);
    let scores = prepared.score(&model, &scoring);
    scoring.progress.finish();
    scores.map_err(|error| caller.failure(error.into()))
}

fn no_subject(path: &Path) -> Failure {
    let why = format!("{}: expected a model or a recipe", path.display());
    Failure::tool(Refusal::new(why).with_hint("an earlier result goes behind --baseline"))
}

/// The report of what a command measures, perhaps beside what it measures of a baseline.
fn measured(
    arguments: &Arguments,
    evaluator: &Evaluator,
    split: Split,
    caller: &Caller,
) -> Result<Report, Failure> {
    let policy = bounds(arguments)?;
    // An earlier result that cannot be read is told before the work.
    let earlier = match &arguments.baseline {
        Some(Subject::Result(path)) => Some(earlier_metrics(path, split)?),
        _ => None,
    };
    let metrics = measure(arguments, &arguments.model, evaluator, split, caller)?;
    let before = match (&arguments.baseline, earlier) {
        (Some(_), Some(earlier)) => Some(earlier),
        (Some(baseline), None) => Some(measure(arguments, baseline, evaluator, split, caller)?),
        (None, _) => None,
    };
    let baseline = arguments.baseline.as_ref().zip(before);
    let baseline = baseline.map(|(subject, metrics)| MeasuredBaseline {
        name: subject.to_string(),
        metrics,
    });
    let report = measurements(
        &arguments.model.to_string(),
        evaluator.line.program(),
        split,
        &metrics,
        baseline.as_ref(),
        &policy,
    );
    report.map_err(Failure::tool)
}

/// What a command measures of a model, or of what a recipe gives.
fn measure(
    arguments: &Arguments,
    subject: &Subject,
    evaluator: &Evaluator,
    split: Split,
    caller: &Caller,
) -> Result<Vec<Measured>, Failure> {
    let label = subject.to_string();
    let scored = match subject {
        Subject::Model(model) => Scored::Model(Box::new(opened(arguments, model, caller)?)),
        Subject::Recipe(path) => Scored::Merge(Box::new(planned(arguments, path, &label, caller)?)),
        Subject::Result(path) => return Err(no_subject(path)),
    };
    arguments.command.measure(evaluator, &scored, split, caller)
}

fn opened(arguments: &Arguments, model: &ModelRef, caller: &Caller) -> Result<Checkpoint, Failure> {
    let locator = arguments.network.locator(None, Needs::Weights, caller)?;
    open(&locator, model).map_err(|failure| caller.failure(failure))
}

/// What a recipe gives, in memory.
fn merged(
    arguments: &Arguments,
    path: &Path,
    label: &str,
    caller: &Caller,
) -> Result<(Checkpoint, Surroundings), Failure> {
    let plan = planned(arguments, path, label, caller)?;
    let progress = Progress::start(&plan, caller);
    let merged = run::in_memory(&plan, label, &std::env::temp_dir(), &progress);
    progress.finish();
    // What cannot be merged gets no verdict.
    let merged = merged.map_err(|error| match Failure::from(error) {
        Failure::Input(refusal) => Failure::Tool(refusal),
        failure => failure,
    })?;
    let surroundings = Surroundings::of_files(label, &merged.files)?;
    Ok((merged.model, surroundings))
}

/// Plans the recipe that is scored.
fn planned(
    arguments: &Arguments,
    path: &Path,
    label: &str,
    caller: &Caller,
) -> Result<Plan, Failure> {
    let text = arguments.set.text(path).map_err(Failure::no_recipe)?;
    let recipe = recipe::parse_any(label, &text).map_err(Failure::no_recipe)?;
    let locator = arguments
        .network
        .locator(path.parent(), Needs::Weights, caller)?;
    let options = MoeOptions {
        plan: plan::Options {
            settings: Settings {
                threads: arguments.threads.count(),
                memory: arguments.memory.budget(),
                allow_non_finite: false,
                saturate: false,
            },
            seed: arguments.merge_seed,
            // Nothing is cut into files.
            shard_size: u64::MAX,
            tokenizer_from: None,
        },
        inexact: false,
        fused: false,
    };
    let plan = plan_any(&recipe, label, &locator, &options);
    plan.map_err(|error| caller.failure(Failure::no_recipe(error)))
}

/// The scores in the JSON report of an earlier run.
fn earlier(path: &Path) -> Result<Scores, Failure> {
    let report = earlier_report(path)?;
    let scores = report.pointer("/details/scores").cloned();
    let scores = scores.ok_or_else(|| no_baseline(path, &"it holds no scores"))?;
    serde_json::from_value(scores).map_err(|error| no_baseline(path, &error))
}

/// The metrics in the JSON report of an earlier run with a command, of the same split.
fn earlier_metrics(path: &Path, split: Split) -> Result<Vec<Measured>, Failure> {
    let report = earlier_report(path)?;
    let details = report.get("details").unwrap_or(&Value::Null);
    if details.get("program").is_none() {
        return Err(no_baseline(path, &"it holds no metrics of a command"));
    }
    let own = details.get("split").and_then(Value::as_str);
    if own != Some(split.name()) {
        let why = format!(
            "expected metrics of the split {}, found {}",
            split.name(),
            own.unwrap_or("none")
        );
        return Err(no_baseline(path, &why));
    }
    let metrics = details.get("metrics").cloned().unwrap_or_default();
    serde_json::from_value(metrics).map_err(|error| no_baseline(path, &error))
}

fn earlier_report(path: &Path) -> Result<Value, Failure> {
    let bytes = read_bounded(path, MAX_RESULT_BYTES, "result, in bytes");
    let bytes = bytes.map_err(|error| no_baseline(path, &error))?;
    serde_json::from_slice(&bytes).map_err(|error| no_baseline(path, &error))
}

fn no_baseline(path: &Path, why: &dyn fmt::Display) -> Failure {
    let why = format!("--baseline {}: {why}", path.display());
    Failure::tool(Refusal::new(why).with_hint("make it with: weld eval ... --format json=FILE"))
}

/// The result of each item, a line each.
fn lines(scores: &Scores) -> String {
    let mut out = String::new();
    for task in &scores.tasks {
        for item in &task.items {
            let mut line = serde_json::json!({"task": task.task});
            if let (Some(line), Ok(Value::Object(item))) =
                (line.as_object_mut(), serde_json::to_value(item))
            {
                line.extend(item);
            }
            out += &printable_json(&line.to_string());
            out.push('\n');
        }
    }
    out
}

/// Passes on that the work is to stop.
pub(super) struct Stops<'a>(pub(super) &'a Caller);

impl ::eval::Listener for Stops<'_> {
    fn scored(&self, _items: usize, _all: usize) {}

    fn is_stopped(&self) -> bool {
        self.0.stopped()
    }
}

/// Shows how many items are scored.
struct Scoring {
    progress: Progress,
    told: Cell<usize>,
}

impl Scoring {
    fn new(prepared: &Prepared, caller: &Caller) -> Self {
        let line = format!("scoring {} items", prepared.items());
        Scoring {
            progress: Progress::counting(prepared.distinct(), "scoring", line, caller),
            told: Cell::new(0),
        }
    }
}

impl ::eval::Listener for Scoring {
    fn scored(&self, items: usize, _all: usize) {
        let before = self.told.replace(items);
        self.progress.advance(items.saturating_sub(before) as u64);
    }

    fn is_stopped(&self) -> bool {
        self.progress.cancelled()
    }
}

/// Tasks or models that cannot be scored get no verdict: exit code 2.
impl From<EvalError> for Failure {
    fn from(error: EvalError) -> Failure {
        match error {
            EvalError::Stopped => Failure::Stopped("stopped".to_owned()),
            error => Failure::tool(&error),
        }
    }
}
