//! Output for people and programs: data on stdout, failures on stderr with an exit code.

use std::env;
use std::io::{self, IsTerminal, Write};
use std::process::ExitCode;

use audit::Verdict;
use checkpoint::CheckpointError;
use errors::{Hint, Refusal};
use recipe::{self, RecipeError};
use run::RunError;

/// Why a command fails.
#[derive(Debug)]
pub(super) enum Failure {
    /// The input is wrong: exit code 1.
    Input(Refusal),
    /// A recipe, or something that it asks for, is wrong: exit code 1.
    Recipe(Box<RecipeError>),
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

    pub(super) fn input(refusal: impl Into<Refusal>) -> Self {
        Self::Input(refusal.into())
    }

    pub(super) fn tool(refusal: impl Into<Refusal>) -> Self {
        Self::Tool(refusal.into())
    }
}

impl From<RecipeError> for Failure {
    fn from(error: RecipeError) -> Self {
        Self::Recipe(Box::new(error))
    }
}

impl From<CheckpointError> for Failure {
    fn from(error: CheckpointError) -> Self {
        Self::input(&error)
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
        let refusal = match error.hint() {
            Some(hint) => Refusal::new(text).with_hint(hint),
            None => Refusal::new(text),
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

/// Reports a failure and returns its exit code.
pub(super) fn fail(failure: &Failure) -> ExitCode {
    let (text, code) = match failure {
        Failure::BrokenPipe => return ExitCode::SUCCESS,
        Failure::Verdict(verdict) => return ExitCode::from(verdict.exit_code()),
        Failure::Recipe(error) => (recipe::render(error, colored()), 1),
        Failure::Input(refusal) => (in_two_lines(refusal), 1),
        Failure::Tool(refusal) => (in_two_lines(refusal), 2),
        Failure::Stopped(message) => (message.clone(), 130),
    };
    say(&text);
    ExitCode::from(code)
}

/// The message, and the hint on a line below.
fn in_two_lines(refusal: &Refusal) -> String {
    let error = if colored() {
        "\x1b[1;31merror\x1b[0m"
    } else {
        "error"
    };
    match refusal.hint() {
        Some(hint) => format!("{error}: {refusal}\n\nhint: {hint}"),
        None => format!("{error}: {refusal}"),
    }
}

/// Prints a line on stderr.
pub(super) fn say(text: &str) {
    // If stderr is closed, nobody is left to tell.
    let _ = writeln!(io::stderr().lock(), "{}", text.trim_end());
}

/// Prints data on stdout.
pub(super) fn print(text: &str) -> Result<(), Failure> {
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
