//! `weld merge` of a recipe with `output: adapter`.

use bytesize::ByteSize;
use serde_json::Value;

use super::arguments::{Format, PlanArguments};
use super::caller::Caller;
use super::memory::PeakMemory;
use super::merge::{OutputArguments, record_places, say_how_to_verify};
use super::network::Needs;
use super::output::Failure;
use super::progress::Progress;
use super::stores;
use errors::printable;
use lora::AdapterMerge;
use recipe::Recipe;

/// Plans a recipe whose result is an adapter.
pub(super) fn plan(
    arguments: &PlanArguments,
    recipe: Recipe,
    caller: &Caller,
) -> Result<AdapterMerge, Failure> {
    let (locator, options) = arguments.surroundings(Needs::Weights, caller)?;
    let merge = AdapterMerge::plan(recipe, &arguments.name(), &locator, &options);
    merge.map_err(|error| caller.failure(error.into()))
}

/// Runs it; what was written is returned as JSON.
pub(super) fn write(
    arguments: &PlanArguments,
    output: &OutputArguments,
    recipe: Recipe,
    caller: &Caller,
) -> Result<Value, Failure> {
    output.beside.refuse("an adapter")?;
    output.parts.refuse("an adapter")?;
    let merge = plan(arguments, recipe, caller)?;
    for note in merge.notes() {
        caller.say(&format!("note: {}", printable(note)));
    }
    let peak = PeakMemory::watch();
    let models = merge.models();
    let progress = Progress::reading(&models, "merging the adapters of", caller);
    let started = std::time::Instant::now();
    let done = merge.run(
        &*stores::destination(&output.out, output.force, caller)?,
        &stores::scratch_for(&output.out),
        output.hash_inputs,
        &progress,
    );
    progress.finish();
    let (made, peak) = (done?, peak.stop());
    let report = &made.report;
    record_places(made.recorded.lock, &models, caller);
    for note in &made.recorded.notes {
        caller.say(&format!("note: {}", printable(note)));
    }
    let seconds = started.elapsed().as_secs_f64();
    if output.format == Format::Text {
        let mut text = format!(
            "{}: {} modules, mostly of rank {}, {} in {seconds:.2} s",
            printable(&output.out.display().to_string()),
            report.fits.len(),
            report.rank,
            ByteSize(report.bytes).display().si(),
        );
        if let Some(peak) = peak {
            text += &format!(", {} of own memory", ByteSize(peak));
        }
        text += &format!(
            "\nrelative error of the ranks that are left out: {:.3e}",
            report.error()
        );
        caller.say(&text);
        say_how_to_verify(&output.out, caller);
    }
    let mut made = report.json();
    made["out"] = output.out.display().to_string().into();
    made["seconds"] = seconds.into();
    made["peak_memory"] = peak.into();
    Ok(made)
}
