//! `weld merge`: runs a recipe.

use std::path::{Path, PathBuf};

use bytesize::ByteSize;
use clap::Args;
use serde_json::{Value, json};

use super::arguments::{Format, PlanArguments, folder_or_store};
use super::caller::Caller;
use super::export::BesideArguments;
use super::memory::{PeakMemory, available};
use super::merge_adapter;
use super::network::{Needs, Scratch};
use super::output::{Failure, print_json};
use super::part::{self, PartArguments};
use super::progress::Progress;
use super::record;
use super::signals::Work;
use super::stores;
use audit::check::check_written;
use checkpoint::Checkpoint;
use errors::printable;
use plan::Plan;
use recipe::Assignment;
use run::{self, Look, RunOptions, Summary, input_places};

/// Merge models by a recipe and write a checkpoint folder
///
/// OUT appears when it is complete, or not at all. `weld plan` shows what a recipe would do.
#[derive(Args)]
pub(super) struct Arguments {
    #[command(flatten)]
    plan: PlanArguments,

    #[command(flatten)]
    output: OutputArguments,

    #[command(flatten)]
    scratch: Scratch,

    #[command(flatten)]
    layout: Layout,
}

/// The layout of experts, as the recipe's key has it.
#[derive(Args)]
struct Layout {
    /// Mixtures of experts: write all experts of a layer as two tensors, as transformers 5 holds them in memory;
    /// short for `--set expert_layout=fused`
    #[arg(long, conflicts_with = "per_expert")]
    fused: bool,

    /// Mixtures of experts: write each expert by itself, as models on the Hub have them; short for `--set
    /// expert_layout=per_expert`
    #[arg(long)]
    per_expert: bool,
}

impl Layout {
    fn asked(&self) -> Option<Assignment> {
        let value = match (self.fused, self.per_expert) {
            (true, _) => "fused",
            (_, true) => "per_expert",
            _ => return None,
        };
        Assignment::new("expert_layout", value).ok()
    }
}

pub(super) fn run(arguments: &Arguments) -> Result<(), Failure> {
    let caller = Caller::terminal(Work::Writes, arguments.output.quiet)?;
    let made = call(arguments, &caller)?;
    arguments.output.print(&made)
}

/// Merges; what was written is returned as JSON.
pub(super) fn call(arguments: &Arguments, caller: &Caller) -> Result<Value, Failure> {
    arguments.plan.say_mergekit(|note| caller.say(note));
    let recipe = arguments
        .plan
        .merge_with(arguments.layout.asked().as_slice())?;
    if recipe.output.is_some() {
        arguments.scratch.refuse("an adapter")?;
        return merge_adapter::write(&arguments.plan, &arguments.output, recipe, caller);
    }
    let needs = arguments.scratch.or(Needs::Weights);
    let out = Some(arguments.output.out.as_path());
    let mut plan = arguments.plan.plan(&recipe, needs, out, caller)?;
    let limit = arguments.scratch.limit;
    if let Some(fetches) = run::fetches(&plan, limit)? {
        plan.notes.push(fetches.to_string());
    }
    arguments.output.write(&plan, limit, caller)
}

/// Where a checkpoint is written, and what is printed about it.
#[derive(Args)]
pub(super) struct OutputArguments {
    /// The folder to write, here or in an object store (s3://BUCKET/FOLDER)
    #[arg(value_parser = folder_or_store())]
    pub(super) out: PathBuf,

    /// Replace OUT if it is not empty
    #[arg(long)]
    pub(super) force: bool,

    /// Add the digest of every input tensor to the lock; this reads the inputs once more
    #[arg(long)]
    pub(super) hash_inputs: bool,

    /// Write the output though `weld check` would find errors in its files, config, structure or tokenizer
    #[arg(long)]
    no_check: bool,

    #[command(flatten)]
    pub(super) parts: PartArguments,

    #[command(flatten)]
    pub(super) beside: BesideArguments,

    /// Print only errors
    #[arg(long, short)]
    pub(super) quiet: bool,

    /// What to print at the end: a summary on stderr, or a JSON object on stdout
    #[arg(long, value_enum, default_value_t = Format::Text)]
    pub(super) format: Format,
}

impl OutputArguments {
    /// Runs a plan; what was written is returned as JSON.
    ///
    /// Weights on the Hub that are fetched while they are used take no more than `scratch_limit` at once.
    pub(super) fn write(
        &self,
        plan: &Plan,
        scratch_limit: Option<u64>,
        caller: &Caller,
    ) -> Result<Value, Failure> {
        self.write_as(plan, scratch_limit, None, caller)
    }

    /// The same for a recipe that was searched for; the model card says how it was found.
    pub(super) fn write_found(
        &self,
        plan: &Plan,
        found: &str,
        caller: &Caller,
    ) -> Result<Value, Failure> {
        self.write_as(plan, None, Some(found), caller)
    }

    fn write_as(
        &self,
        plan: &Plan,
        scratch_limit: Option<u64>,
        found: Option<&str>,
        caller: &Caller,
    ) -> Result<Value, Failure> {
        self.beside.check(&self.out, self.force, plan)?;
        let destination = stores::destination(&self.out, self.force, caller)?;
        for note in &plan.notes {
            caller.say(&format!("note: {}", printable(note)));
        }
        let peak = PeakMemory::watch();
        let progress = match self.parts.part {
            Some(part) => Progress::start_part(plan, &run::share(plan, part)?, caller),
            None => Progress::start(plan, caller),
        };
        let look = |folder: &Path| {
            if !self.no_check {
                check_written(folder, &plan.stored_models())?;
            }
            self.beside.look(folder)
        };
        let look: &Look<'_> = &look;
        let options = RunOptions {
            hash_inputs: self.hash_inputs,
            drop_behind: available().is_some_and(|memory| input_bytes(plan) > memory),
            scratch_limit,
            look: Some(look),
            found,
        };
        if let Some(part) = self.parts.part {
            let done = run::run_part(plan, part, &*destination, self.force, options, &progress);
            progress.finish();
            let (done, peak) = (done?, peak.stop());
            if self.format == Format::Text {
                caller.say(&part::as_text(&self.out, part, &done, peak));
                part::say_how_to_join(&self.out, part, caller);
            }
            return Ok(part::as_json(&self.out, part, &done, peak));
        }
        let done = match self.parts.resume {
            true => run::run_resumed(plan, &*destination, self.force, options, &progress),
            false => run::run(plan, &*destination, options, &progress),
        };
        progress.finish();
        let (summary, peak) = (done?, peak.stop());
        for note in &summary.notes {
            caller.say(&format!("note: {}", printable(note)));
        }
        record_places(summary.lock, &plan.stored_models(), caller);
        if self.format == Format::Text {
            caller.say(&as_text(self, plan, &summary, peak));
            say_how_to_verify(&self.out, caller);
        }
        self.beside.write(&self.out, caller)?;
        Ok(as_json(self, &summary, peak))
    }

    /// Prints what was written, if it is asked for as JSON.
    pub(super) fn print(&self, made: &Value) -> Result<(), Failure> {
        match self.format {
            Format::Json => print_json(made),
            Format::Text => Ok(()),
        }
    }
}

/// Records where the inputs of what was written are, for `weld verify` on this machine.
pub(super) fn record_places(lock: blake3::Hash, models: &[&Checkpoint], caller: &Caller) {
    if let Err(error) = record::write(lock, &input_places(models)) {
        caller.say(&format!(
            "note: where the inputs are could not be recorded for `weld verify`: {error}"
        ));
    }
}

/// Says the command that verifies what was written.
pub(super) fn say_how_to_verify(out: &Path, caller: &Caller) {
    if let Some(out) = word(out) {
        caller.say_unbroken(&format!("check it with: weld verify {out}"));
    }
}

/// A path as a word of a shell's command; none if it cannot be written in one line.
pub(super) fn word(path: &Path) -> Option<String> {
    let text = path
        .to_str()
        .filter(|text| !text.chars().any(char::is_control))?;
    let text = match text.starts_with('-') {
        true => format!("./{text}"),
        false => text.to_owned(),
    };
    let plain = |c: char| c.is_alphanumeric() || "/._-+@%,:=".contains(c);
    Some(match !text.is_empty() && text.chars().all(plain) {
        true => text,
        false => format!("'{}'", text.replace('\'', r"'\''")),
    })
}

/// Bytes of the files that a plan reads.
fn input_bytes(plan: &Plan) -> u64 {
    let models = plan.stored_models();
    let shards = models.iter().flat_map(|model| model.shards());
    shards.map(|shard| shard.file_size).sum()
}

fn as_text(
    arguments: &OutputArguments,
    plan: &Plan,
    summary: &Summary,
    peak: Option<u64>,
) -> String {
    let seconds = summary.elapsed.as_secs_f64();
    let moved = summary.totals.read + summary.totals.written;
    let mut text = format!(
        "{}: {} tensors by {}, {} read, {} written in {seconds:.2} s ({}/s)",
        printable(&arguments.out.display().to_string()),
        summary.tensors,
        plan.method.name,
        ByteSize(summary.totals.read).display().si(),
        ByteSize(summary.totals.written).display().si(),
        ByteSize((moved as f64 / seconds.max(1e-9)) as u64)
            .display()
            .si(),
    );
    if let Some(peak) = peak {
        text.push_str(&format!(", {} of own memory", ByteSize(peak)));
    }
    if let Some(update) = &summary.update {
        text.push_str(&format!("\n{}", update.said()));
    }
    if let Some(error) = &summary.quantization_error {
        text.push_str(&format!("\n{}", error.said()));
    }
    if summary.totals.saturated > 0 {
        text.push_str(&format!(
            "\n{} values were too large and were clamped",
            summary.totals.saturated
        ));
    }
    text
}

fn as_json(arguments: &OutputArguments, summary: &Summary, peak: Option<u64>) -> Value {
    json!({
        "out": arguments.out.display().to_string(),
        "gguf": arguments.beside.gguf.as_ref().map(|file| file.display().to_string()),
        "tensors": summary.tensors,
        "bytes_read": summary.totals.read,
        "bytes_written": summary.totals.written,
        "saturated": summary.totals.saturated,
        "update_kept": summary.update.as_ref().map(|update| {
            json!({
                "fraction": update.fraction,
                "tensors": update.tensors,
                "below_90_percent": update.below,
                "least": {"tensor": update.least.0, "fraction": update.least.1},
            })
        }),
        "quantization_error": summary.quantization_error.as_ref().map(|error| {
            json!({
                "relative": error.relative,
                "tensors": error.tensors,
                "largest": {"tensor": error.largest.0, "relative": error.largest.1},
            })
        }),
        "notes": summary.notes,
        "seconds": summary.elapsed.as_secs_f64(),
        "peak_memory": peak,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_is_one_word_for_a_shell() {
        for (path, expected) in [
            ("merged", Some("merged")),
            ("/a/b-1.5_x", Some("/a/b-1.5_x")),
            ("my model", Some("'my model'")),
            ("it's", Some(r"'it'\''s'")),
            ("$(id);", Some("'$(id);'")),
            ("-q", Some("./-q")),
            ("", Some("''")),
            ("a\nb", None),
        ] {
            assert_eq!(word(Path::new(path)).as_deref(), expected, "{path:?}");
        }
    }
}
