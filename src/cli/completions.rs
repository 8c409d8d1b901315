//! `weld completions`: scripts that complete arguments in a shell.

use clap::{Args, CommandFactory};
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
    generate(
        arguments.shell,
        &mut super::Cli::command(),
        "weld",
        &mut script,
    );
    print_made(&String::from_utf8_lossy(&script))
}
