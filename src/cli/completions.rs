//! `weld completions`: scripts that complete arguments in a shell.

use clap::{Args, CommandFactory};
use clap_complete::{Shell, generate};

use super::output::{Failure, print};

/// Print a script that completes weld's arguments in a shell
///
/// For bash: weld completions bash > ~/.local/share/bash-completion/completions/weld
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
    print(&String::from_utf8_lossy(&script))
}
