//! `weld completions`: scripts that complete arguments in a shell.

use std::fmt::Write;

use clap::{Args, Command, CommandFactory};
use clap_complete::{Shell, generate};

use super::output::{Failure, print_made};

/// Print a script that completes weld's arguments in your shell
///
/// bash: weld completions bash > ~/.local/share/bash-completion/completions/weld
///
/// zsh: weld completions zsh > ~/.zfunc/_weld (the folder must be in fpath)
///
/// fish: weld completions fish > ~/.config/fish/completions/weld.fish
///
/// If the folder does not exist yet, make it first with mkdir -p.
#[derive(Args)]
pub(super) struct Arguments {
    /// The shell
    shell: Shell,
}

pub(super) fn run(arguments: &Arguments) -> Result<(), Failure> {
    let mut script = Vec::new();
    let mut command = super::Cli::command();
    generate(arguments.shell, &mut command, "weld", &mut script);
    let mut script = String::from_utf8_lossy(&script).into_owned();
    if arguments.shell == Shell::Fish {
        script.push_str(&fish_positionals(&command));
    }
    print_made(&script)
}

/// What clap leaves out for fish: the values of arguments that are no options.
fn fish_positionals(command: &Command) -> String {
    let mut out = String::new();
    for command in command.get_subcommands() {
        let values = command
            .get_positionals()
            .flat_map(clap::Arg::get_possible_values);
        let names: Vec<String> = values.map(|value| value.get_name().to_owned()).collect();
        if !names.is_empty() {
            let name = command.get_name();
            // Writing to a string cannot fail.
            let _ = writeln!(
                out,
                "complete -c weld -n \"__fish_weld_using_subcommand {name}\" -f -a \"{}\"",
                names.join(" ")
            );
        }
    }
    out
}
