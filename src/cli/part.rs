//! `--part` and `--resume`: a merge in parts, by several runs.

use std::path::Path;

use bytesize::ByteSize;
use clap::Args;
use serde_json::{Value, json};

use super::caller::Caller;
use super::merge::word;
use super::output::Failure;
use errors::{Refusal, printable};
use plan::count;
use run::destination::parts_folder;
use run::{Part, PartRun};

/// Which part of a merge is done.
#[derive(Args)]
pub(super) struct PartArguments {
    /// Do only this part of the work, such as 3/16: its weight files go to OUT.weld-parts. When all parts are done,
    /// `weld join OUT` makes the checkpoint of them
    #[arg(long, value_name = "K/N", conflicts_with_all = ["resume", "hash_inputs", "gguf"])]
    pub(super) part: Option<Part>,

    /// Keep finished weight files in OUT.weld-parts if the run is stopped, and go on from those that an earlier run
    /// has finished
    #[arg(long, conflicts_with_all = ["hash_inputs", "gguf"])]
    pub(super) resume: bool,
}

impl PartArguments {
    /// Refuses both for an output that is written as a whole.
    pub(super) fn refuse(&self, what: &str) -> Result<(), Failure> {
        let option = match (self.part, self.resume) {
            (Some(_), _) => "--part",
            (None, true) => "--resume",
            (None, false) => return Ok(()),
        };
        let message = format!("{what} is not written in parts");
        let hint = format!("leave {option} out");
        Err(Failure::input(Refusal::new(message).with_hint(hint)))
    }
}

/// What a run of a part has done, for people.
pub(super) fn as_text(out: &Path, part: Part, done: &PartRun, peak: Option<u64>) -> String {
    let name = printable(&out.display().to_string()).to_string();
    let mut text = match done {
        PartRun::Found => format!("part {part} of {name} was done before"),
        PartRun::Made {
            tensors,
            totals,
            seconds,
        } => format!(
            "part {part} of {name}: {}, {} read, {} written in {seconds:.2} s",
            count(*tensors, "tensor"),
            ByteSize(totals.read).display().si(),
            ByteSize(totals.written).display().si(),
        ),
    };
    if let (Some(peak), PartRun::Made { .. }) = (peak, done) {
        text.push_str(&format!(", {} of own memory", ByteSize(peak)));
    }
    text
}

/// The same for programs.
pub(super) fn as_json(out: &Path, part: Part, done: &PartRun, peak: Option<u64>) -> Value {
    let mut made = json!({
        "out": out.display().to_string(),
        "part": part.to_string(),
        "parts_folder": parts_folder(out).display().to_string(),
        "done_before": matches!(done, PartRun::Found),
    });
    if let PartRun::Made {
        tensors,
        totals,
        seconds,
    } = done
    {
        made["tensors"] = json!(tensors);
        made["bytes_read"] = json!(totals.read);
        made["bytes_written"] = json!(totals.written);
        made["saturated"] = json!(totals.saturated);
        made["seconds"] = json!(seconds);
        made["peak_memory"] = json!(peak);
    }
    made
}

/// Says how the parts become a checkpoint.
pub(super) fn say_how_to_join(out: &Path, part: Part, caller: &Caller) {
    if let Some(out) = word(out) {
        caller.say_unbroken(&format!(
            "when all {} are done: weld join {out}",
            count(part.count, "part")
        ));
    }
}
