//! The `weld` binary: everything is in [`weldment::cli`].

fn main() -> std::process::ExitCode {
    weldment::cli::main()
}
