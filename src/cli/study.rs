//! `weld study`: searches for the values of a recipe that score best, reports what it found, writes the winner.

use std::path::{Path, PathBuf};

use clap::{Args, Subcommand, ValueEnum};

use super::arguments::{Memory, Threads, place};
use super::call::Answer;
use super::caller::Caller;
use super::environment::{scratch_roots, secrets};
use super::merge::OutputArguments;
use super::network::{Needs, Network};
use super::output::{Failure, print, print_made, say};
use super::signals::Work;
use bytesize::ByteSize;
use checkpoint::Locator;
use engine::{Budget, Settings};
use errors::{printable, printable_json, printable_lines};
use plan::Options;
use serde_json::Value;
use study::{Chosen, Commands, Event, Folder, Listener, Means, Report, StudyError, Trial};

/// What is said of a study that was stopped.
const GO_ON: &str = "stopped: run the same command again to go on";

/// Search for the values of a recipe whose merge scores best on files of tasks
///
/// Every trial is merged in memory and scored; nothing but the trials is written to DIR. A study that was stopped goes on
/// where it was, and several processes may work on one DIR. Trials are compared on the validation split alone; the chosen
/// ones are scored on the test split at the end.
#[derive(Args)]
#[command(args_conflicts_with_subcommands = true, subcommand_negates_reqs = true)]
pub(super) struct Arguments {
    #[command(subcommand)]
    action: Option<Action>,

    /// The study, a YAML file: recipe, space, tasks, strategy, budget (`trials`, `time`, or both: the first that is used up
    /// ends a search)
    #[arg(required = true)]
    study: Option<PathBuf>,

    /// The folder that keeps the trials
    #[arg(required = true, value_parser = place())]
    dir: Option<PathBuf>,

    /// Let the study run its `command`, as you on this machine. Without this, it is shown and refused
    #[arg(long)]
    run_commands: bool,

    #[command(flatten)]
    means: MeansArguments,

    /// Print only errors
    #[arg(long, short)]
    quiet: bool,
}

#[derive(Subcommand)]
enum Action {
    /// Show what a study found: leaderboard with intervals, scores by task, values
    Report(ReportArguments),
    /// Merge by the values that scored best on the validation split
    Best(Box<BestArguments>),
}

/// What trials are merged and scored with.
#[derive(Args)]
struct MeansArguments {
    #[command(flatten)]
    threads: Threads,

    #[command(flatten)]
    memory: Memory,

    #[command(flatten)]
    network: Network,
}

/// How trials are merged.
fn options(threads: usize, memory: Budget) -> Options {
    Options {
        settings: Settings {
            threads,
            memory,
            allow_non_finite: false,
            saturate: false,
        },
        seed: 0,
        shard_size: ByteSize::gb(5).as_u64(),
        tokenizer_from: None,
    }
}

impl MeansArguments {
    fn options(&self) -> Options {
        options(self.threads.count(), self.memory.budget())
    }

    fn locator(&self, folder: Option<&Path>, caller: &Caller) -> Result<Locator, Failure> {
        self.network.locator(folder, Needs::Weights, caller)
    }
}

#[derive(Args)]
struct ReportArguments {
    /// The study's folder
    #[arg(value_parser = place())]
    dir: PathBuf,

    /// What is printed
    #[arg(long, value_enum, default_value_t = Format::Text)]
    format: Format,
}

/// A format of the report.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum Format {
    /// For people
    Text,
    /// For pages and pull requests
    Markdown,
    /// All trials, one a line
    Csv,
    /// For programs
    Json,
    /// A page with plots
    Html,
}

#[derive(Args)]
struct BestArguments {
    /// The study's folder
    #[arg(value_parser = place())]
    dir: PathBuf,

    #[command(flatten)]
    output: OutputArguments,

    /// The best trial of this search [default: of all searches]
    #[arg(long, value_name = "NAME")]
    search: Option<String>,

    /// This trial in place of the best one
    #[arg(long, value_name = "N")]
    number: Option<usize>,

    #[command(flatten)]
    means: MeansArguments,
}

pub(super) fn run(arguments: &Arguments) -> Result<(), Failure> {
    match (&arguments.action, &arguments.study, &arguments.dir) {
        (Some(Action::Report(arguments)), ..) => report(arguments),
        (Some(Action::Best(arguments)), ..) => best(arguments),
        (None, Some(study), Some(dir)) => search_and_report(arguments, study, dir),
        (None, ..) => Err(nothing_named()),
    }
}

fn nothing_named() -> Failure {
    Failure::tool("expected a study and a folder")
}

/// Searches, reports or merges for a program.
pub(super) fn call(arguments: &Arguments, caller: &Caller) -> Result<Answer, Failure> {
    let report = |report: Report| Answer::Study(Box::new(report));
    match (&arguments.action, &arguments.study, &arguments.dir) {
        (Some(Action::Report(arguments)), ..) => found(&arguments.dir).map(report),
        (Some(Action::Best(arguments)), ..) => merge_best(arguments, caller).map(Answer::Written),
        (None, Some(study), Some(dir)) => {
            search(arguments, study, dir, caller)?;
            found(dir).map(report)
        }
        (None, ..) => Err(nothing_named()),
    }
}

/// What the folder of a study holds, with notes on what has changed since its trials were scored. Nothing is fetched for
/// them.
fn found(dir: &Path) -> Result<Report, Failure> {
    let folder = Folder::open(dir)?;
    let report = Report::new(&folder)?;
    let caller = Caller::unguarded(true);
    let network = Network { offline: true };
    let means = Means {
        locator: network.locator(None, Needs::Headers, &caller)?,
        options: options(0, Budget::growing(u64::MAX)),
        scratch: std::env::temp_dir(),
        commands: None,
    };
    Ok(report.with_changes(&folder, means, &Told(&caller)))
}

fn search(arguments: &Arguments, file: &Path, dir: &Path, caller: &Caller) -> Result<(), Failure> {
    let study = study::read(file)?;
    let means = Means {
        locator: arguments.means.locator(None, caller)?,
        options: arguments.means.options(),
        scratch: std::env::temp_dir(),
        commands: arguments.run_commands.then(|| Commands {
            roots: scratch_roots(None),
            secrets: secrets(),
        }),
    };
    let searched = study::run(&study, dir, means, &Told(caller));
    searched.map_err(|error| match caller.stopped() {
        true => Failure::Stopped(GO_ON.to_owned()),
        false => error.into(),
    })?;
    Ok(())
}

fn search_and_report(arguments: &Arguments, file: &Path, dir: &Path) -> Result<(), Failure> {
    let caller = Caller::terminal(Work::Reads, arguments.quiet)?;
    search(arguments, file, dir, &caller)?;
    if !arguments.quiet {
        print(&study::text(&found(dir)?))?;
    }
    if let Some(dir) = super::merge::word(dir) {
        caller.say_unbroken(&format!(
            "look at it with: weld study report {dir} --format html > study.html\n\
             merge by its values with: weld study best {dir} OUT"
        ));
    }
    Ok(())
}

fn report(arguments: &ReportArguments) -> Result<(), Failure> {
    let report = found(&arguments.dir)?;
    // A table for programs has no place for them.
    if arguments.format == Format::Csv {
        for note in &report.notes {
            say(&format!("note: {}", printable(note)));
        }
    }
    match arguments.format {
        Format::Text => print(&study::text(&report)),
        format => print_made(&format.write(&report)?),
    }
}

impl Format {
    /// Writes a report; what could steer a terminal is shown.
    pub(super) fn write(self, report: &Report) -> Result<String, Failure> {
        Ok(match self {
            Format::Text => printable_lines(&study::text(report)),
            Format::Markdown => printable_lines(&study::markdown(report)),
            Format::Csv => study::csv(report),
            Format::Json => printable_json(&format!("{:#}", study::json(report))),
            Format::Html => {
                let page = study::html(report);
                let cannot = |error| Failure::tool(format!("cannot write the page: {error}"));
                printable_lines(&page.map_err(cannot)?)
            }
        })
    }
}

fn best(arguments: &BestArguments) -> Result<(), Failure> {
    let caller = Caller::terminal(Work::Writes, arguments.output.quiet)?;
    let made = merge_best(arguments, &caller)?;
    arguments.output.print(&made)
}

/// Merges by the values of a trial; what was written is returned as JSON.
fn merge_best(arguments: &BestArguments, caller: &Caller) -> Result<Value, Failure> {
    let folder = Folder::open(&arguments.dir)?;
    let chosen = Chosen::new(&folder, arguments.search.as_deref(), arguments.number)?;
    caller.say(&format!("merging by {}", printable(&chosen.name)));
    let recipe = recipe::parse_with_registry(&chosen.name, &chosen.text)?;
    let locator = arguments.means.locator(Some(&chosen.folder), caller)?;
    let options = Options {
        seed: chosen.seed,
        ..arguments.means.options()
    };
    let plan = plan::plan(&recipe, &chosen.name, &locator, &options);
    let plan = plan.map_err(|error| caller.failure(error.into()))?;
    let threads = options.settings.threads;
    let note = chosen.check(&folder, &plan, threads, &Told(caller));
    if let Some(note) = note.map_err(|error| caller.failure(error.into()))? {
        caller.say(&format!("note: {note}"));
    }
    arguments.output.write_found(&plan, &chosen.found, caller)
}

impl From<StudyError> for Failure {
    fn from(error: StudyError) -> Self {
        if error.is_stopped() {
            return Failure::Stopped(GO_ON.to_owned());
        }
        match error {
            StudyError::Recipe(error) => (*error).into(),
            StudyError::Run(error) => error.into(),
            StudyError::File { .. } | StudyError::Absent(_) => Failure::tool(&error),
            StudyError::Checkpoint(error) => Failure::tool(&error),
            error => Failure::input(&error),
        }
    }
}

/// Says on the terminal what happens.
struct Told<'a>(&'a Caller);

impl Listener for Told<'_> {
    fn hear(&self, event: &Event<'_>) {
        match event {
            Event::Search { name, done, all } => {
                self.0.begin(name, all.unwrap_or(0));
                self.0.advance(*done);
                let before = match done {
                    0 => String::new(),
                    done => format!(", of which {done} are there already"),
                };
                let all = match all {
                    Some(all) => format!("{all} trials"),
                    None => "as many trials as there is time for".to_owned(),
                };
                self.0.say(&format!("{}: {all}{before}", printable(name)));
            }
            Event::Trial {
                trial,
                best,
                done,
                all,
            } => {
                self.0.advance(1);
                let best = best
                    .and_then(|best| Some(format!(", best {} ({})", shown(best)?, best.number)));
                let score = shown(trial).unwrap_or_else(|| "failed".to_owned());
                let of_all = all.map_or(String::new(), |all| format!("/{all}"));
                self.0.say(&format!(
                    "[{done}{of_all}] trial {}: {score}{}",
                    trial.number,
                    best.unwrap_or_default()
                ));
                if let Some(error) = &trial.error {
                    self.0.say(&format!(
                        "note: trial {} failed: {}",
                        trial.number,
                        printable(error)
                    ));
                }
            }
            Event::Reference(reference) => self
                .0
                .say(&format!("scored {}", printable(&reference.model))),
            Event::Tested(tested) => {
                self.0.say(&format!(
                    "tested trial {} of {}",
                    tested.number,
                    printable(&tested.search)
                ));
            }
            Event::Note(note) => self.0.say(&format!("note: {}", printable(note))),
        }
    }

    fn is_stopped(&self) -> bool {
        self.0.stopped()
    }
}

/// A trial's score in a line of the search.
fn shown(trial: &Trial) -> Option<String> {
    let early = if trial.is_complete() {
        ""
    } else {
        ", given up early"
    };
    Some(format!("{:.4}{early}", trial.score?))
}
