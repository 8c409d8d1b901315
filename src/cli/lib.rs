//! The command line: arguments, progress, messages, exit codes. One file per subcommand.
//!
//! Data goes to stdout, everything else to stderr. Only this layer prints and reads the environment.

mod analyse;
mod arguments;
mod attest;
mod call;
mod caller;
mod check;
mod completions;
mod diff;
mod environment;
mod eval;
mod eval_command;
mod explain;
mod export;
mod extract_lora;
mod fit;
mod held;
mod help;
mod inspect;
mod join;
mod keys;
mod keywords;
mod memory;
mod merge;
mod merge_adapter;
mod mergekit;
mod methods;
mod moe;
mod network;
mod new;
mod output;
mod part;
mod plan;
mod progress;
#[cfg(feature = "hub")]
mod push;
mod recompute;
mod recompute_adapter;
mod record;
mod report;
mod sign;
mod signals;
mod single_file;
mod spared;
mod stats;
mod stats_of_merge;
mod stores;
mod study;
#[cfg(any(feature = "hub", feature = "store"))]
mod transfers;
mod transplant;
mod verify;

use std::ffi::OsString;
use std::process::ExitCode;

use clap::{FromArgMatches, Parser, Subcommand};

pub use call::{Answer, CallError, OptionInfo, call, open, options, plan_with};
pub use caller::Listener;

use output::{Failure, fail};

/// Merge fine-tuned model checkpoints with mergekit's recipes; check, compare and verify checkpoints
#[derive(Parser)]
#[command(name = "weld", version, max_term_width = 100, propagate_version = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    New(new::Arguments),
    Merge(merge::Arguments),
    Moe(moe::Arguments),
    Join(join::Arguments),
    Plan(plan::Arguments),
    Diff(Box<diff::Arguments>),
    Analyse(Box<analyse::Arguments>),
    Eval(Box<eval::Arguments>),
    Verify(Box<verify::Arguments>),
    Sign(sign::Arguments),
    Attest(Box<attest::Arguments>),
    Export(export::Arguments),
    ExtractLora(Box<extract_lora::Arguments>),
    Transplant(Box<transplant::Arguments>),
    #[cfg(feature = "hub")]
    Push(push::Arguments),
    Stats(Box<stats::Arguments>),
    Study(Box<study::Arguments>),
    Check(check::Arguments),
    Inspect(inspect::Arguments),
    Methods(methods::Arguments),
    Explain(explain::Arguments),
    Completions(completions::Arguments),
}

/// Runs `weld` with the process's arguments.
pub fn main() -> ExitCode {
    ExitCode::from(run(std::env::args_os()))
}

/// Runs `weld` with arguments, of which the first is the program's name; returns the exit code.
pub fn run(arguments: impl IntoIterator<Item = OsString>) -> u8 {
    let parsed = help::command().try_get_matches_from(arguments);
    let cli = match parsed.and_then(|matches| Cli::from_arg_matches(&matches)) {
        Ok(cli) => cli,
        Err(error) => {
            // Help and version go to stdout and are not a failure.
            output::print_usage(&error);
            return if error.use_stderr() { 2 } else { 0 };
        }
    };
    let done: Result<(), Failure> = match cli.command {
        Command::New(arguments) => new::run(&arguments),
        Command::Merge(arguments) => merge::run(&arguments),
        Command::Moe(arguments) => moe::run(&arguments),
        Command::Join(arguments) => join::run(&arguments),
        Command::Plan(arguments) => plan::run(&arguments),
        Command::Diff(arguments) => diff::run(&arguments),
        Command::Analyse(arguments) => analyse::run(&arguments),
        Command::Eval(arguments) => eval::run(&arguments),
        Command::Verify(arguments) => verify::run(&arguments),
        Command::Sign(arguments) => sign::run(&arguments),
        Command::Attest(arguments) => attest::run(&arguments),
        Command::Export(arguments) => export::run(&arguments),
        Command::ExtractLora(arguments) => extract_lora::run(&arguments),
        Command::Transplant(arguments) => transplant::run(&arguments),
        #[cfg(feature = "hub")]
        Command::Push(arguments) => push::run(&arguments),
        Command::Stats(arguments) => stats::run(&arguments),
        Command::Study(arguments) => study::run(&arguments),
        Command::Check(arguments) => check::run(&arguments),
        Command::Inspect(arguments) => inspect::run(&arguments),
        Command::Methods(arguments) => methods::run(&arguments),
        Command::Explain(arguments) => explain::run(&arguments),
        Command::Completions(arguments) => completions::run(&arguments),
    };
    match done {
        Ok(()) => 0,
        Err(failure) => fail(&failure),
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    #[test]
    fn the_arguments_are_sound() {
        super::Cli::command().debug_assert();
    }
}
