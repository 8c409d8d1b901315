//! Output for people and programs: data on stdout, failures on stderr with an exit code. All that weld prints goes
//! through here, where characters that could steer a terminal or a CI's log are made visible.

use std::env;
use std::io::{self, IsTerminal, Write};

use super::fit;
use audit::Verdict;
use checkpoint::CheckpointError;
use errors::{Hint, Refusal, printable, printable_json, printable_lines};
use recipe::{self, RecipeError};
use run::RunError;

/// Why a command fails.
#[derive(Debug)]
pub(super) enum Failure {
    /// The input is wrong: exit code 1.
    Input(Refusal),
    /// A recipe, or something that it asks for, is wrong or not there; and the exit code.
    Recipe(Box<RecipeError>, u8),
    /// The tool could not run: exit code 2.
    Tool(Refusal),
    /// The user stopped it: exit code 130, as in shells.
    Stopped(String),
    /// A written report that does not pass: its own exit code.
    Verdict(Verdict),
    /// The reader of stdout has closed it: nothing is reported.
    BrokenPipe,
}

impl Failure {
    /// For commands that judge checkpoints: one that cannot be opened gets no verdict.
    pub(super) fn could_not_run(error: CheckpointError) -> Self {
        Self::tool(&error)
    }

    /// What to tell in a report, if the command could not run.
    pub(super) fn refusal(&self) -> Option<Refusal> {
        match self {
            Self::Input(refusal) | Self::Tool(refusal) => Some(refusal.clone()),
            Self::Recipe(error, _) => Some(in_one(error)),
            Self::Stopped(_) | Self::Verdict(_) | Self::BrokenPipe => None,
        }
    }

    /// For commands that judge checkpoints: one whose recipe cannot be read gets no verdict.
    pub(super) fn no_recipe(error: RecipeError) -> Self {
        Self::Recipe(Box::new(error), 2)
    }

    pub(super) fn input(refusal: impl Into<Refusal>) -> Self {
        Self::Input(refusal.into())
    }

    pub(super) fn tool(refusal: impl Into<Refusal>) -> Self {
        Self::Tool(refusal.into())
    }
}

impl From<RecipeError> for Failure {
    fn from(error: RecipeError) -> Self {
        let code = if error.could_not_read() { 2 } else { 1 };
        Self::Recipe(Box::new(error), code)
    }
}

impl From<CheckpointError> for Failure {
    fn from(error: CheckpointError) -> Self {
        match error.is_absent() {
            true => Self::tool(&error),
            false => Self::input(&error),
        }
    }
}

impl From<RunError> for Failure {
    fn from(error: RunError) -> Self {
        let mut text = error.to_string();
        let mut cause = std::error::Error::source(&error);
        while let Some(inner) = cause {
            let inner_text = inner.to_string();
            if !text.contains(&inner_text) {
                text = format!("{text}: {inner_text}");
            }
            cause = inner.source();
        }
        if matches!(error, RunError::Cancelled) {
            return Self::Stopped(text);
        }
        let refusal = Refusal::new(text).about(error.about());
        let refusal = match error.hint() {
            Some(hint) => refusal.with_hint(hint),
            None => refusal,
        };
        match error.is_users() {
            true => Self::Input(refusal),
            false => Self::Tool(refusal),
        }
    }
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        if error.kind() == io::ErrorKind::BrokenPipe {
            return Self::BrokenPipe;
        }
        Self::tool(format!("cannot write to stdout: {error}"))
    }
}

/// All that is wrong with a recipe as one refusal, with its hint if there is a single one.
fn in_one(error: &RecipeError) -> Refusal {
    let text = error.to_string();
    let mut lines: Vec<&str> = text.lines().map(str::trim).collect();
    let hint = match error.problems.as_slice() {
        [problem] => problem.hint.as_deref(),
        _ => None,
    };
    if hint.is_some() {
        lines.pop();
    }
    let refusal = Refusal::new(lines.join("; ")).about(error.about());
    match hint {
        Some(hint) => refusal.with_hint(hint),
        None => refusal,
    }
}

/// Reports a failure and returns its exit code.
pub(super) fn fail(failure: &Failure) -> u8 {
    let (text, code) = match failure {
        Failure::BrokenPipe => return 0,
        Failure::Verdict(verdict) => return verdict.exit_code(),
        Failure::Recipe(error, code) => (recipe::render(error, colored()), *code),
        Failure::Input(refusal) => (in_two_lines(refusal), 1),
        Failure::Tool(refusal) => (in_two_lines(refusal), 2),
        Failure::Stopped(message) => (printable(message).into_owned(), 130),
    };
    // These texts may be coloured; all that comes from files is printable already.
    say_made(&text);
    code
}

/// The message, and the hint on a line below.
fn in_two_lines(refusal: &Refusal) -> String {
    let error = if colored() {
        "\x1b[1;31merror\x1b[0m"
    } else {
        "error"
    };
    let message = refusal.to_string();
    let message = printable(&message);
    match refusal.hint() {
        Some(hint) => format!("{error}: {message}\n\nhint: {}", printable(&hint)),
        None => format!("{error}: {message}"),
    }
}

/// Prints what clap says of the arguments: help, or what is wrong. They may hold names of files from anywhere.
pub(super) fn print_usage(error: &clap::Error) {
    let plain = error.to_string();
    let safe = printable_lines(&plain);
    if plain == safe || !error.use_stderr() {
        // With clap's colours. If it cannot be written, nobody is left to tell.
        let _ = error.print();
    } else {
        say_made(&safe);
    }
}

/// Prints a line, or several, on stderr. Unsafe characters are shown, so nothing steers the terminal or the log; what
/// might hold a line break is to be made [`printable`] before.
pub(super) fn say(text: &str) {
    say_made(&fit::to_stderr(&printable_lines(text)));
}

/// Prints on stderr what loses its meaning if long lines are broken: commands to copy, and drawings.
pub(super) fn say_unbroken(text: &str) {
    say_made(&printable_lines(text));
}

/// Prints on stderr what is safe as it is, as [`print_made`] does on stdout.
pub(super) fn say_made(text: &str) {
    // If stderr is closed, nobody is left to tell.
    let _ = writeln!(io::stderr().lock(), "{}", text.trim_end());
}

/// Prints data for people on stdout. Unsafe characters are shown, as by [`say`].
pub(super) fn print(text: &str) -> Result<(), Failure> {
    print_made(&fit::to_stdout(&printable_lines(text)))
}

/// Prints JSON on stdout.
pub(super) fn print_json(value: &serde_json::Value) -> Result<(), Failure> {
    print_made(&printable_json(&format!("{value:#}")))
}

/// Prints on stdout what is safe as it is: a report in its format, a script.
pub(super) fn print_made(text: &str) -> Result<(), Failure> {
    let mut out = io::stdout().lock();
    out.write_all(text.as_bytes())?;
    if !text.ends_with('\n') {
        out.write_all(b"\n")?;
    }
    Ok(out.flush()?)
}

/// Whether stderr supports colours.
fn colored() -> bool {
    io::stderr().is_terminal()
        && env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
        && env::var_os("TERM").is_none_or(|term| term != "dumb")
}
