//! `weld join`: makes a checkpoint of the parts of a merge.

use std::path::{Path, PathBuf};

use bytesize::ByteSize;
use clap::Args;
use serde_json::{Value, json};

use super::arguments::{Format, folder_or_store};
use super::caller::Caller;
use super::merge::say_how_to_verify;
use super::output::{Failure, print_json};
use super::signals::Work;
use super::stores;
use audit::check::check_written;
use engine::Observer;
use errors::printable;
use plan::count;
use run::{Joined, join};

/// Make a checkpoint of the parts that `weld merge --part` wrote
///
/// Checks that all parts are there, and of one plan: the same recipe, options, inputs and version of weld. The
/// checkpoint is that of one run, byte for byte. Nothing is computed again, and the inputs are not needed. OUT appears
/// when it is complete, or not at all; then the parts are removed.
#[derive(Args)]
pub(super) struct Arguments {
    /// The folder to write, here or in an object store, as it was named for the parts
    #[arg(value_parser = folder_or_store())]
    out: PathBuf,

    /// Replace OUT if it is not empty
    #[arg(long)]
    force: bool,

    /// Write the output though `weld check` would find errors in its files, config, structure or tokenizer
    #[arg(long)]
    no_check: bool,

    /// Print only errors
    #[arg(long, short)]
    quiet: bool,

    /// What to print at the end: a summary on stderr, or a JSON object on stdout
    #[arg(long, value_enum, default_value_t = Format::Text)]
    format: Format,
}

pub(super) fn run(arguments: &Arguments) -> Result<(), Failure> {
    let caller = Caller::terminal(Work::Writes, arguments.quiet)?;
    let made = call(arguments, &caller)?;
    match arguments.format {
        Format::Json => print_json(&made),
        Format::Text => Ok(()),
    }
}

/// Joins; what was written is returned as JSON.
pub(super) fn call(arguments: &Arguments, caller: &Caller) -> Result<Value, Failure> {
    let look = |folder: &Path| match arguments.no_check {
        true => Ok(()),
        false => check_written(folder, &[]),
    };
    let place = stores::destination(&arguments.out, arguments.force, caller)?;
    let joined = join(&*place, Some(&look), &Watch(caller))?;
    for note in &joined.notes {
        caller.say(&format!("note: {}", printable(note)));
    }
    if arguments.format == Format::Text {
        caller.say(&as_text(arguments, &joined));
        say_how_to_verify(&arguments.out, caller);
    }
    Ok(json!({
        "out": arguments.out.display().to_string(),
        "parts": joined.parts,
        "tensors": joined.tensors,
        "bytes": joined.bytes,
        "saturated": joined.saturated,
        "quantization_error": joined.quantization_error.as_ref().map(|error| error.relative),
        "update_kept": joined.update.as_ref().map(|update| update.fraction),
        "notes": joined.notes,
    }))
}

/// Whether the user wants to stop. Files are linked, so nothing takes long.
struct Watch<'c>(&'c Caller);

impl Observer for Watch<'_> {
    fn advance(&self, _bytes: u64) {}

    fn cancelled(&self) -> bool {
        self.0.stopped()
    }
}

fn as_text(arguments: &Arguments, joined: &Joined) -> String {
    let mut text = format!(
        "{}: {} of {}, {}",
        printable(&arguments.out.display().to_string()),
        count(joined.tensors, "tensor"),
        count(joined.parts, "part"),
        ByteSize(joined.bytes).display().si(),
    );
    if let Some(update) = &joined.update {
        text.push_str(&format!("\n{}", update.said()));
    }
    if let Some(error) = &joined.quantization_error {
        text.push_str(&format!("\n{}", error.said()));
    }
    if joined.saturated > 0 {
        text.push_str(&format!(
            "\n{} values were too large and were clamped",
            joined.saturated
        ));
    }
    text
}
