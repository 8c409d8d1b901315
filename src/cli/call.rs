//! Commands as functions, for programs: the words of a command line go in, and what the command made comes out.
//!
//! The words are parsed as `weld` parses them, so that a function takes the options of its command, by their names.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::sync::Arc;

use clap::{CommandFactory, Parser, ValueEnum};
use serde_json::Value;

use super::caller::{Caller, Listener};
use super::keywords::as_keywords;
use super::network::{Needs, Network};
use super::output::Failure;
use super::{
    Cli, Command, analyse, check, diff, eval, extract_lora, join, merge, moe, plan, stats, study,
    verify,
};
use ::plan::Detail;
use audit::Report;
use audit::formats::{self, ReportFormat, plan_page};
use checkpoint::{Checkpoint, CheckpointError, ModelRef};
use errors::{About, Hint, Refusal, printable_json, printable_lines};
use recipe::RecipeError;
use run::RunError;

/// What a command made.
pub enum Answer {
    /// What a recipe would do.
    Plan(Box<::plan::Plan>),
    /// What was written.
    Written(Value),
    /// What was found out.
    Report(Box<Report>),
    /// What a study found.
    Study(Box<::study::Report>),
}

/// Why a command made nothing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CallError {
    /// All that the command line would print, without colours.
    pub text: String,
    /// What is wrong.
    pub message: String,
    /// What to do about it.
    pub hint: Option<String>,
    /// What it is about.
    pub about: Box<About>,
    /// The exit code of the command line: 1 the input is wrong, 2 it could not run, 130 stopped.
    pub exit_code: u8,
}

/// An option or an argument of a command.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OptionInfo {
    /// Its name, without dashes.
    pub name: String,
    /// What it is for.
    pub help: String,
    /// Whether it stands for itself, without a name before it.
    pub positional: bool,
    /// Whether it takes a value.
    pub takes_value: bool,
    /// Whether it may be given several times.
    pub repeats: bool,
}

/// Runs `plan`, `merge`, `moe`, `join`, `extract-lora`, `check`, `diff`, `analyse`, `eval`, `stats`, `verify` or `study`.
/// The words are those after `weld` on the command line.
///
/// What is about printing (`--format`, `--quiet`, `--all`) changes nothing. No signal is handled: `listener` stops the
/// work. Errors name options as keywords of a function: `memory=` and not `--memory`.
///
/// # Errors
/// The words are wrong, or the command made nothing.
pub fn call(
    words: impl IntoIterator<Item = OsString>,
    listener: Arc<dyn Listener>,
) -> Result<Answer, CallError> {
    let words: Vec<OsString> = words.into_iter().collect();
    let named = words.iter().map(|word| word.to_string_lossy());
    let named: Vec<_> = named.take_while(|word| !word.starts_with('-')).collect();
    let command = named.join(" ");
    answer(words, listener).map_err(|error| error.in_keywords(&command))
}

fn answer(words: Vec<OsString>, listener: Arc<dyn Listener>) -> Result<Answer, CallError> {
    let cli = parsed(words)?;
    let caller = Caller::Program(listener);
    let written = |made: Value| Answer::Written(made);
    let report = |made: Report| Answer::Report(Box::new(made));
    Ok(match &cli.command {
        Command::Plan(arguments) => Answer::Plan(Box::new(plan::call(arguments, &caller)?)),
        Command::Merge(arguments) => merge::call(arguments, &caller).map(written)?,
        Command::Moe(arguments) => moe::call(arguments, &caller).map(written)?,
        Command::Join(arguments) => join::call(arguments, &caller).map(written)?,
        Command::ExtractLora(arguments) => extract_lora::call(arguments, &caller).map(written)?,
        Command::Check(arguments) => check::call(arguments, &caller).map(report)?,
        Command::Diff(arguments) => diff::call(arguments, &caller).map(report)?,
        Command::Analyse(arguments) => analyse::call(arguments, &caller).map(report)?,
        Command::Stats(arguments) => stats::call(arguments, &caller).map(written)?,
        Command::Eval(arguments) => eval::call(arguments, &caller).map(report)?,
        Command::Verify(arguments) => verify::call(arguments, &caller).map(report)?,
        Command::Study(arguments) => study::call(arguments, &caller)?,
        _ => return Err(Failure::tool("this command cannot be called as a function").into()),
    })
}

/// Plans a merge as [`call`] does with `plan`, for a program that holds some of the models, by their names in the recipe.
///
/// # Errors
/// As of [`call`]; or the recipe names no such model.
pub fn plan_with(
    words: impl IntoIterator<Item = OsString>,
    models: BTreeMap<String, Arc<Checkpoint>>,
) -> Result<::plan::Plan, CallError> {
    let planned = || match parsed(words)?.command {
        Command::Plan(arguments) => Ok(plan::call_with(
            &arguments,
            models,
            &Caller::unguarded(true),
        )?),
        _ => Err(Failure::tool("expected the command `plan`").into()),
    };
    planned().map_err(|error: CallError| error.in_keywords("plan"))
}

/// Opens a model as commands open it: from a folder, a file, the Hub's cache or the Hub.
///
/// # Errors
/// There is no such model, or it cannot be read.
pub fn open(model: &str) -> Result<Checkpoint, CallError> {
    let reference = ModelRef::parse(model).map_err(Failure::input)?;
    let network = Network { offline: false };
    let locator = network.locator(None, Needs::Weights, &Caller::unguarded(true))?;
    let location = locator.locate(&reference)?;
    Ok(Checkpoint::open(model, &location)?)
}

fn parsed(words: impl IntoIterator<Item = OsString>) -> Result<Cli, CallError> {
    let name = OsString::from("weld");
    let words = [name].into_iter().chain(words);
    Cli::try_parse_from(words).map_err(|error| misused(&error))
}

/// The options and arguments of a command (`merge`, `study best`), without those that are hidden or about printing; none if
/// there is no such command.
pub fn options(command: &str) -> Vec<OptionInfo> {
    let all = Cli::command();
    let mut found = &all;
    // After the command's words may come those of its arguments.
    for word in command.split(' ') {
        match found.find_subcommand(word) {
            Some(below) => found = below,
            None => break,
        }
    }
    let arguments = found.get_arguments();
    let shown = arguments.filter(|argument| {
        let name = argument.get_id().as_str();
        !argument.is_hide_set() && !["help", "version", "quiet"].contains(&name)
    });
    let info = |argument: &clap::Arg| OptionInfo {
        name: match argument.get_long() {
            Some(long) => long.to_owned(),
            None => argument.get_id().to_string(),
        },
        help: argument
            .get_help()
            .map(ToString::to_string)
            .unwrap_or_default(),
        positional: argument.is_positional(),
        takes_value: argument.get_action().takes_values(),
        repeats: matches!(argument.get_action(), clap::ArgAction::Append),
    };
    let about_printing =
        |option: &OptionInfo| ["format", "all", "list", "parts"].contains(&&*option.name);
    shown
        .map(info)
        .filter(|option| !about_printing(option))
        .collect()
}

impl Answer {
    /// What the command line prints with `--format json`.
    pub fn json(&self) -> Value {
        match self {
            Self::Plan(plan) => ::plan::json(plan),
            Self::Written(made) => made.clone(),
            Self::Report(report) => formats::json(report),
            Self::Study(report) => ::study::json(report),
        }
    }

    /// What the command line prints with `--format FORMAT`.
    ///
    /// # Errors
    /// It has no such format, or the format cannot be written: the message says which.
    pub fn written(&self, format: &str) -> Result<String, String> {
        let json = || printable_json(&self.json().to_string());
        let expected = |names: &[&str]| format!("expected one of {}", names.join(", "));
        match self {
            Self::Report(report) => {
                let mut formats = ReportFormat::ALL.into_iter();
                let wanted = formats.find(|one| one.name() == format);
                let wanted =
                    wanted.ok_or_else(|| expected(&ReportFormat::ALL.map(ReportFormat::name)))?;
                wanted.write(report).map_err(|error| error.to_string())
            }
            Self::Study(report) => match study::Format::from_str(format, false) {
                Ok(format) => format
                    .write(report)
                    .map_err(|error| CallError::from(error).text),
                Err(_) => Err(expected(&["text", "markdown", "csv", "json", "html"])),
            },
            Self::Plan(plan) => match format {
                "text" => Ok(printable_lines(&::plan::text(plan, Detail::Summary))),
                "json" => Ok(json()),
                "html" => plan_page(plan).map_err(|error| error.to_string()),
                _ => Err(expected(&["text", "json", "html"])),
            },
            Self::Written(_) => match format {
                "json" => Ok(json()),
                _ => Err("expected json".to_owned()),
            },
        }
    }
}

/// Words that the command line refuses.
fn misused(error: &clap::Error) -> CallError {
    let text = printable_lines(&error.to_string());
    // What follows is about the command line: its usage, and where its help is.
    let message = text.split("\n\n").next().unwrap_or_default();
    let message = message.strip_prefix("error: ").unwrap_or(message).trim();
    CallError {
        text: message.to_owned(),
        message: message.to_owned(),
        hint: None,
        about: Box::default(),
        exit_code: 2,
    }
}

impl CallError {
    /// The same with the options of a command as keywords of its function.
    fn in_keywords(self, command: &str) -> Self {
        let options = options(command);
        let rewritten = |text: String| as_keywords(&text, &options);
        Self {
            text: rewritten(self.text),
            message: rewritten(self.message),
            hint: self.hint.map(rewritten),
            ..self
        }
    }

    fn new(refusal: &Refusal, exit_code: u8) -> Self {
        let message = printable_lines(&refusal.to_string());
        let hint = refusal.hint().map(|hint| printable_lines(&hint));
        Self {
            text: match &hint {
                Some(hint) => format!("{message}\n\nhint: {hint}"),
                None => message.clone(),
            },
            message,
            hint,
            about: Box::new(Hint::about(refusal)),
            exit_code,
        }
    }
}

impl From<Failure> for CallError {
    fn from(failure: Failure) -> Self {
        match failure {
            Failure::Recipe(error, exit_code) => {
                let message = |problem: &recipe::Problem| problem.message.clone();
                let messages: Vec<String> = error.problems.iter().map(message).collect();
                Self {
                    text: recipe::render(&error, false),
                    message: messages.join("\n"),
                    hint: error
                        .problems
                        .iter()
                        .find_map(|problem| problem.hint.clone()),
                    about: Box::new(error.about()),
                    exit_code,
                }
            }
            Failure::Input(refusal) => Self::new(&refusal, 1),
            Failure::Tool(refusal) => Self::new(&refusal, 2),
            Failure::Stopped(message) => Self::new(&Refusal::new(message), 130),
            Failure::Verdict(verdict) => {
                let what = "what was written does not pass `weld verify`";
                let refusal = Refusal::new(what).with_hint("verify it to see why");
                Self::new(&refusal, verdict.exit_code())
            }
            Failure::BrokenPipe => Self::new(&Refusal::new("stdout is closed"), 2),
        }
    }
}

impl From<Refusal> for CallError {
    fn from(refusal: Refusal) -> Self {
        Self::new(&refusal, 1)
    }
}

impl From<RecipeError> for CallError {
    fn from(error: RecipeError) -> Self {
        Failure::from(error).into()
    }
}

impl From<CheckpointError> for CallError {
    fn from(error: CheckpointError) -> Self {
        Failure::from(error).into()
    }
}

impl From<RunError> for CallError {
    fn from(error: RunError) -> Self {
        Failure::from(error).into()
    }
}
