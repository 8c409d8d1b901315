//! The command line.

/// Runs `weld`.
pub fn main() -> std::process::ExitCode {
    std::process::ExitCode::SUCCESS
}
