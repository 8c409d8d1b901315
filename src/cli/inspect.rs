//! `weld inspect`: lists a checkpoint.

use std::collections::BTreeMap;
use std::fmt::Write;

use bytesize::ByteSize;
use clap::Args;
use serde_json::json;

use super::arguments::Format;
use super::caller::Caller;
use super::fit;
use super::network::{Needs, Network};
use super::output::{Failure, print, print_json};
use architecture::{StackIndex, layer_stacks};
use audit::formats::columns;
use checkpoint::{Checkpoint, Location, ModelRef, TensorEntry};
use errors::printable;

/// List a checkpoint's tensors, dtypes, shapes, parameters, shards and metadata
///
/// Reads only headers. Layers with the same tensors are shown as one.
#[derive(Args)]
pub(super) struct Arguments {
    /// A folder, a weight file, or a model's id on the Hub (org/name@revision); `+ADAPTER` adds a LoRA adapter
    #[arg(value_parser = ModelRef::parse)]
    model: ModelRef,

    #[command(flatten)]
    network: Network,

    /// List every tensor of every layer
    #[arg(long)]
    all: bool,

    /// Output format
    #[arg(long, value_enum, default_value_t = Format::Text)]
    format: Format,
}

pub(super) fn run(arguments: &Arguments) -> Result<(), Failure> {
    let locator = arguments
        .network
        .locator(None, Needs::Headers, &Caller::unguarded(false))?;
    let location = locator.locate(&arguments.model)?;
    let model = Checkpoint::open_to_list(&arguments.model.to_string(), &location)?;
    match arguments.format {
        Format::Text => print(&as_text(&model, arguments.all, fit::stdout_width())),
        Format::Json => print_json(&as_json(&model)),
    }
}

fn as_text(model: &Checkpoint, all: bool, width: Option<usize>) -> String {
    let mut out = String::new();
    // Writing to a string cannot fail.
    let _ = write_text(&mut out, model, all, width);
    out
}

fn write_text(
    out: &mut String,
    model: &Checkpoint,
    all: bool,
    width: Option<usize>,
) -> std::fmt::Result {
    let tensors = model.tensors();
    let bytes: u64 = tensors.iter().map(|tensor| tensor.len).sum();
    let parameters: u64 = tensors.iter().map(TensorEntry::elements).sum();
    writeln!(out, "{}", path(model.location()))?;
    if let Some(hub) = &model.location().hub {
        writeln!(out, "{} at {}", printable(&hub.repo), hub.commit)?;
    }
    for adapter in &model.location().adapters {
        let location = &adapter.location;
        let weight = match adapter.weight {
            1.0 => String::new(),
            weight => format!(" times {weight}"),
        };
        writeln!(out, "+ {}{weight}", path(location))?;
        if let Some(hub) = &location.hub {
            writeln!(out, "+ {} at {}", printable(&hub.repo), hub.commit)?;
        }
    }
    if let Some(config) = model.config() {
        let kind = config.model_type().unwrap_or("unknown");
        let classes = config.architectures().join(", ");
        writeln!(out, "{} ({})", printable(kind), printable(&classes))?;
    }
    writeln!(
        out,
        "{} tensors, {} parameters, {}",
        tensors.len(),
        grouped(parameters),
        ByteSize(bytes).display().si()
    )?;
    let mut dtypes: BTreeMap<String, usize> = BTreeMap::new();
    for tensor in tensors {
        *dtypes.entry(format!("{:?}", tensor.dtype)).or_default() += 1;
    }
    for (dtype, count) in &dtypes {
        let tensors = match count {
            1 => "tensor",
            _ => "tensors",
        };
        writeln!(out, "  {dtype} in {count} {tensors}")?;
    }
    for shard in model.shards() {
        let metadata: Vec<String> = shard
            .metadata
            .iter()
            .map(|(key, value)| format!("{}=\"{}\"", clip(key), clip(value)))
            .collect();
        writeln!(
            out,
            "  {}  {}  {}",
            printable(&shard.file_name()),
            ByteSize(shard.file_size).display().si(),
            metadata.join(" ")
        )?;
    }
    writeln!(out)?;
    let rows = if all { each(model) } else { collapsed(model) };
    let rows: Vec<Vec<String>> = rows
        .into_iter()
        .map(|(name, signature)| vec![printable(&name).into_owned(), signature])
        .collect();
    for line in columns(&rows, false, width) {
        writeln!(out, "{line}")?;
    }
    for note in model.notes() {
        writeln!(out, "\nnote: {}", printable(note))?;
    }
    Ok(())
}

fn path(location: &Location) -> String {
    printable(&location.path.display().to_string()).into_owned()
}

/// The most characters of a key or a value of the metadata that are shown.
const MAX_METADATA_CHARS: usize = 200;

/// A key or a value of the metadata, which may be as long as the header.
fn clip(text: &str) -> String {
    match text.char_indices().nth(MAX_METADATA_CHARS) {
        Some((end, _)) => format!("{}...", printable(&text[..end])),
        None => printable(text).into_owned(),
    }
}

fn signature(model: &Checkpoint, index: usize) -> String {
    let tensor = &model.tensors()[index];
    let adapted = model.is_adapted(index);
    format!(
        "{:<5} {:?}{}",
        format!("{:?}", tensor.dtype),
        tensor.shape,
        if adapted { " (adapted)" } else { "" }
    )
}

fn each(model: &Checkpoint) -> Vec<(String, String)> {
    (model.tensors().iter().enumerate())
        .map(|(index, tensor)| (tensor.name.clone(), signature(model, index)))
        .collect()
}

/// One row for the tensors of a stack that differ only in their layer; one row for every other tensor.
fn collapsed(model: &Checkpoint) -> Vec<(String, String)> {
    let tensors = model.tensors();
    let stacks = layer_stacks(tensors.iter().map(|tensor| tensor.name.as_str()));
    let stacks = StackIndex::new(&stacks);
    let mut rows: Vec<(String, String, Vec<usize>)> = Vec::new();
    let mut places: BTreeMap<(String, String), usize> = BTreeMap::new();
    for (index, tensor) in tensors.iter().enumerate() {
        let split = stacks.split(&tensor.name);
        let signature = signature(model, index);
        let Some((stack, layer, rest)) = split else {
            rows.push((tensor.name.clone(), signature, Vec::new()));
            continue;
        };
        let key = (format!("{}\0{rest}", stack.prefix), signature.clone());
        let place = *places.entry(key).or_insert_with(|| {
            rows.push((format!("{}\0{rest}", stack.prefix), signature, Vec::new()));
            rows.len() - 1
        });
        rows[place].2.push(layer);
    }
    rows.into_iter()
        .map(|(name, signature, layers)| {
            (
                name.replace('\0', &format!("{}.", ranges(layers))),
                signature,
            )
        })
        .collect()
}

/// `{0..31}`, or `{0..2,5}` if some are missing.
fn ranges(mut layers: Vec<usize>) -> String {
    layers.sort_unstable();
    let mut runs: Vec<(usize, usize)> = Vec::new();
    for layer in layers {
        match runs.last_mut() {
            Some((_, last)) if *last + 1 == layer => *last = layer,
            _ => runs.push((layer, layer)),
        }
    }
    let runs: Vec<String> = runs
        .iter()
        .map(|(first, last)| {
            if first == last {
                first.to_string()
            } else {
                format!("{first}..{last}")
            }
        })
        .collect();
    format!("{{{}}}", runs.join(","))
}

/// Groups digits in threes.
fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut out = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

fn as_json(model: &Checkpoint) -> serde_json::Value {
    let tensors: Vec<_> = model
        .tensors()
        .iter()
        .enumerate()
        .map(|(index, tensor)| {
            let place = model.place(index);
            json!({
                "name": tensor.name,
                "dtype": format!("{:?}", tensor.dtype),
                "shape": tensor.shape,
                "bytes": tensor.len,
                "file": place.map(|(shard, _)| shard.file_name()),
                "offset": place.map(|(_, offset)| offset),
                "adapted": model.is_adapted(index),
            })
        })
        .collect();
    let shards: Vec<_> = model
        .shards()
        .iter()
        .map(|shard| json!({"file": shard.file_name(), "bytes": shard.file_size, "metadata": shard.metadata}))
        .collect();
    let adapters = &model.location().adapters;
    json!({
        "model": model.label(),
        "path": model.location().path.display().to_string(),
        "commit": model.location().hub.as_ref().map(|hub| hub.commit.clone()),
        "adapter": adapters.first().map(|adapter| adapter.location.path.display().to_string()),
        "adapters": adapters.iter().map(|adapter| json!({
            "path": adapter.location.path.display().to_string(),
            "weight": adapter.weight,
        })).collect::<Vec<_>>(),
        "model_type": model.config().and_then(|config| config.model_type()),
        "architectures": model.config().map(|config| config.architectures()).unwrap_or_default(),
        "parameters": model.tensors().iter().map(TensorEntry::elements).sum::<u64>(),
        "tensors": tensors,
        "shards": shards,
        "notes": model.notes(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_easy_to_read() {
        assert_eq!(grouped(0), "0");
        assert_eq!(grouped(1_234_567), "1,234,567");
        assert_eq!(ranges(vec![2, 0, 1]), "{0..2}");
        assert_eq!(ranges(vec![0, 1, 3]), "{0..1,3}");
        assert_eq!(ranges(vec![7]), "{7}");
    }
}
