//! Shows a plan: as text for people, as JSON for programs.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::ptr;

use bytesize::ByteSize;
use serde_json::{Value, json};

use super::licences;
use super::problems::count;
use super::{
    Filled, MergeResult, Operation, Plan, PlannedTensor, SourceTensor, TensorUsage,
    VocabularySummary, shown,
};
use checkpoint::{Adapter, AppliedAdapter, Checkpoint};
use errors::printable;
use methods::{ParamValue, TensorParams};
use numeric::CodeFormat;
use recipe::Rounding;

/// How much of a plan is shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Detail {
    /// Models, groups of tensors that are merged alike, files, costs.
    Summary,
    /// Every tensor too.
    All,
}

/// The plan for people.
pub fn text(plan: &Plan, detail: Detail) -> String {
    let mut out = String::new();
    // Writing to a string cannot fail.
    let _ = write_text(&mut out, plan, detail);
    out
}

/// What a plan merges, and how, for people: [`text`] without the files that are written.
pub fn merged_text(plan: &Plan, detail: Detail) -> String {
    let mut out = String::new();
    // Writing to a string cannot fail.
    let _ = write_merge(&mut out, plan, detail);
    out
}

fn write_text(out: &mut String, plan: &Plan, detail: Detail) -> std::fmt::Result {
    for (model, result) in &plan.results {
        writeln!(
            out,
            "first    `{}`, {}:",
            printable(plan.models[*model].label()),
            match result.is_made_once() {
                true => "made once for all that read it, in a file that goes when the run ends",
                false => "not written",
            }
        )?;
        let mut inner = String::new();
        write_merge(&mut inner, &result.plan, detail)?;
        for line in inner.lines() {
            writeln!(out, "{}", format!("  | {line}").trim_end())?;
        }
        writeln!(out)?;
    }
    write_merge(out, plan, detail)?;
    write_output(out, plan)
}

/// What is merged, and what happens to each input tensor.
fn write_merge(out: &mut String, plan: &Plan, detail: Detail) -> std::fmt::Result {
    writeln!(
        out,
        "method   {}{}{}{}",
        plan.method.name,
        match &plan.purpose {
            Some(purpose) => format!(": {}", printable(&purpose.description)),
            None => String::new(),
        },
        match plan.rounding {
            Rounding::Nearest => "",
            Rounding::Stochastic => ", rounding stochastic",
        },
        if plan.random {
            format!(", seed {}", plan.seed)
        } else {
            String::new()
        }
    )?;
    for (index, model) in plan.models.iter().enumerate() {
        let bytes: u64 = model.tensors().iter().map(|tensor| tensor.len).sum();
        let mut roles = Vec::new();
        if plan.base == Some(index) {
            roles.push("base");
        }
        if plan.donor == index {
            roles.push("gives names, config and files");
        }
        if plan.results.contains_key(&index) {
            roles.push("the result of another document");
        }
        let roles = if roles.is_empty() {
            String::new()
        } else {
            format!("  ({})", roles.join("; "))
        };
        writeln!(
            out,
            "{}  {}  {} tensors, {}{roles}",
            if index == 0 { "models " } else { "       " },
            printable(model.label()),
            model.tensors().len(),
            size(bytes)
        )?;
        for adapter in model.adapters() {
            writeln!(out, "           {}", adapter_text(&adapter.adapter))?;
        }
    }
    if let Some(vocabulary) = &plan.vocabulary {
        write_vocabulary(out, plan, vocabulary)?;
    }
    writeln!(out)?;
    for (alike, names) in alike(plan) {
        writeln!(out, "{:>5}  {}", names.len(), alike.operation)?;
        for source in &alike.sources {
            writeln!(out, "         {source}")?;
        }
        if detail == Detail::Summary {
            let shown: Vec<_> = names.iter().take(2).map(|name| printable(name)).collect();
            let more = if names.len() > 2 { ", ..." } else { "" };
            writeln!(out, "       {}{more}", shown.join(", "))?;
        }
    }
    if detail == Detail::All {
        writeln!(out)?;
        for tensor in &plan.tensors {
            writeln!(
                out,
                "{}  {:?} {:?}  {}",
                printable(&tensor.name),
                tensor.dtype,
                tensor.shape,
                operation_text(tensor)
            )?;
            for (index, source) in tensor.sources.iter().enumerate() {
                let model = &plan.models[source.model];
                writeln!(
                    out,
                    "    <- {}: {}{}",
                    printable(model.label()),
                    printable(&model.tensors()[source.tensor].name),
                    of_source(tensor, index)
                )?;
            }
        }
    }
    for (model, why, names) in left_out(plan) {
        let most = if detail == Detail::All { usize::MAX } else { 2 };
        let listed: Vec<_> = names
            .iter()
            .take(most)
            .map(|name| printable(name))
            .collect();
        let more = if listed.len() < names.len() {
            ", ..."
        } else {
            ""
        };
        writeln!(
            out,
            "{:>5}  of {} left out: {why}\n       {}{more}",
            names.len(),
            printable(model),
            listed.join(", ")
        )?;
    }
    Ok(())
}

/// The tensors of the inputs that go nowhere: the model, why, and their names.
pub fn left_out(plan: &Plan) -> Vec<(&str, &'static str, Vec<&str>)> {
    let reasons = [
        (
            TensorUsage::TiedCopy,
            "the tied copy of an embedding (checked to be equal)",
        ),
        (TensorUsage::OutsideSlices, "no slice or module asks for it"),
        (
            TensorUsage::DerivedBuffer,
            "computed from the config when the model is loaded",
        ),
        (TensorUsage::Excepted, "`only` or `except` says so"),
        (
            TensorUsage::NotTaken,
            "not among what the assembly takes from it",
        ),
    ];
    let mut left_out = Vec::new();
    for (model, usages) in plan.models.iter().zip(&plan.usages) {
        for (usage, why) in reasons {
            let tensors = model.tensors().iter().zip(usages);
            let names: Vec<&str> = tensors
                .filter(|(_, found)| **found == usage)
                .map(|(tensor, _)| tensor.name.as_str())
                .collect();
            if !names.is_empty() {
                left_out.push((model.label(), why, names));
            }
        }
    }
    left_out
}

/// The files that are written, and what they cost.
fn write_output(out: &mut String, plan: &Plan) -> std::fmt::Result {
    writeln!(out)?;
    let files = plan.parts.iter().filter_map(|part| {
        let file = match &plan.shards[part.shards.clone()] {
            [] => return None,
            [shard] => shard.file_name.clone(),
            shards if part.prefix.is_empty() => format!("{} shards", shards.len()),
            shards => format!("{} shards of {}", shards.len(), part.stem),
        };
        Some(printable(&file).into_owned())
    });
    let files: Vec<String> = files.collect();
    let dtypes: Vec<String> = plan
        .dtypes()
        .into_iter()
        .map(|(dtype, count)| format!("{count} {dtype}"))
        .collect();
    writeln!(
        out,
        "output   {} tensors ({}) in {}",
        plan.tensors.len(),
        dtypes.join(", "),
        files.join(", ")
    )?;
    if let Some(quantized) = &plan.quantization {
        writeln!(
            out,
            "weights  {}: {} encoded, {} keep codes and scales",
            quantized.asked.name(),
            quantized.encoded,
            quantized.kept
        )?;
    }
    if !plan.sidecars.is_empty() || !plan.made.is_empty() {
        let made = plan.made.iter().map(|(name, _)| name.as_str());
        let mut names: Vec<&str> = plan
            .sidecars
            .iter()
            .map(|(_, file)| file.name.as_str())
            .chain(made)
            .collect();
        names.sort_unstable();
        let names: Vec<_> = names.into_iter().map(printable).collect();
        writeln!(out, "files    {}", names.join(", "))?;
    }
    if !plan.licences.is_empty() {
        let listed = licences::listed_licences(plan);
        writeln!(out, "licences {}", printable(&listed.join(", ")))?;
    }
    let matrix = match plan.cost.matrix {
        0 => String::new(),
        bytes => format!(" ({} of it for a whole matrix)", ByteSize(bytes)),
    };
    writeln!(
        out,
        "cost     reads {}, writes {}, own memory up to {}{matrix}, {} threads",
        size(plan.bytes_read),
        size(plan.bytes_written()),
        ByteSize(plan.limits.peak),
        plan.settings.threads
    )?;
    let scratch = plan.scratch_bytes();
    if scratch > 0 {
        writeln!(
            out,
            "scratch  {} on the disk until it is done",
            size(scratch)
        )?;
    }
    for note in &plan.notes {
        writeln!(out, "note     {}", printable(note))?;
    }
    Ok(())
}

/// `LoRA of rank 16, 224 tensors adapted`.
fn adapter_text(adapter: &Adapter) -> String {
    let kind = match adapter.kinds().as_slice() {
        [] => "adapter".to_owned(),
        kinds => kinds.join(" and "),
    };
    let ranks = match adapter.ranks() {
        Some((least, most)) if least == most => format!(" of rank {most}"),
        Some((least, most)) => format!(" of ranks {least} to {most}"),
        None => String::new(),
    };
    let tensors = count(adapter.changed().len(), "tensor");
    let weight = match adapter.weight() {
        1.0 => String::new(),
        weight => format!(" times {weight}"),
    };
    format!("{kind}{ranks}{weight}, {tensors} adapted while read")
}

/// An adapter of a model for programs.
fn adapter_json(model: &Checkpoint, applied: &AppliedAdapter) -> Value {
    let adapter = &applied.adapter;
    let location = adapter.location();
    let names: Vec<&str> = applied
        .changed()
        .map(|tensor| model.tensors()[tensor].name.as_str())
        .collect();
    json!({
        "path": shown(&location.path),
        "commit": location.hub.as_ref().map(|hub| hub.commit.clone()),
        "dora": adapter.is_dora(),
        "kinds": adapter.kinds(),
        "least_rank": adapter.ranks().map(|(least, _)| least),
        "largest_rank": adapter.ranks().map(|(_, largest)| largest),
        "weight": adapter.weight(),
        "tensors": names,
    })
}

/// The numbers of tokens and rows, and how many rows of each model come from elsewhere.
fn write_vocabulary(
    out: &mut String,
    plan: &Plan,
    vocabulary: &VocabularySummary,
) -> std::fmt::Result {
    writeln!(
        out,
        "tokens   {}: {} tokens ({} of them added), {} rows",
        printable(&vocabulary.source),
        vocabulary.tokens,
        vocabulary.added,
        vocabulary.rows
    )?;
    for (model, filled) in &vocabulary.models {
        let from: Vec<String> = by_rule(filled)
            .into_iter()
            .filter(|(_, _, count)| *count > 0)
            .map(|(_, rule, count)| format!("{count} {rule}"))
            .collect();
        if !from.is_empty() {
            writeln!(
                out,
                "         {}: {} rows filled: {}",
                printable(plan.models[*model].label()),
                filled.total(),
                from.join(", ")
            )?;
        }
    }
    Ok(())
}

/// The rules that fill rows: a name for programs, words for people, and the number of rows.
fn by_rule(filled: &Filled) -> [(&'static str, &'static str, usize); 5] {
    [
        ("base", "from the base", filled.base),
        (
            "only",
            "from the only model that has the token",
            filled.only,
        ),
        (
            "mean",
            "the mean of the models that have the token",
            filled.mean,
        ),
        ("zero", "zeros, as no model has the token", filled.nowhere),
        ("recipe", "from where the recipe says", filled.recipe),
    ]
}

fn vocabulary_json(plan: &Plan, vocabulary: &VocabularySummary) -> Value {
    let models: Vec<Value> = vocabulary
        .models
        .iter()
        .map(|(model, filled)| {
            let rules = by_rule(filled).into_iter();
            let filled: serde_json::Map<String, Value> = rules
                .map(|(name, _, count)| (name.to_owned(), json!(count)))
                .collect();
            json!({"model": plan.models[*model].label(), "filled": filled})
        })
        .collect();
    json!({
        "source": vocabulary.source,
        "tokens": vocabulary.tokens,
        "added": vocabulary.added,
        "rows": vocabulary.rows,
        "models": models,
    })
}

/// In decimal units, as the Hub and disk vendors count.
fn size(bytes: u64) -> String {
    ByteSize(bytes).display().si().to_string()
}

/// What a group of tensors has in common: the operation and the sources.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct Alike {
    operation: String,
    sources: Vec<String>,
}

/// Groups tensors by what is done with them, the most common first.
fn alike(plan: &Plan) -> Vec<(Alike, Vec<&str>)> {
    let mut groups: BTreeMap<Alike, Vec<&str>> = BTreeMap::new();
    for tensor in &plan.tensors {
        let source = |(index, source): (usize, &SourceTensor)| {
            format!(
                "{}{}",
                printable(plan.models[source.model].label()),
                of_source(tensor, index)
            )
        };
        let alike = Alike {
            operation: operation_text(tensor),
            sources: tensor.sources.iter().enumerate().map(source).collect(),
        };
        groups.entry(alike).or_default().push(&tensor.name);
    }
    let mut groups: Vec<_> = groups.into_iter().collect();
    groups.sort_by_key(|(_, names)| std::cmp::Reverse(names.len()));
    groups
}

/// The operation and the parameters of the whole tensor.
pub fn operation_text(tensor: &PlannedTensor) -> String {
    match &tensor.operation {
        Operation::Copy if tensor.sources.len() > 1 => "copy, if equal".to_owned(),
        Operation::Copy => "copy".to_owned(),
        Operation::Scales => "scales".to_owned(),
        Operation::Constant(_) => "constant".to_owned(),
        Operation::Compute { name, .. } => {
            let values: Vec<String> = tensor
                .params
                .tensor
                .iter()
                .map(|(name, value)| format!(" {name}={}", value_text(*value)))
                .collect();
            let encoded = match tensor.encoding {
                None => String::new(),
                Some(encoding) if encoding.format == CodeFormat::Mxfp4 => {
                    ", to MXFP4 with a scale for each 32 rows of a column".to_owned()
                }
                Some(encoding) if encoding.whole => ", to FP8 with one scale".to_owned(),
                Some(encoding) if encoding.block == [1, encoding.columns] => {
                    ", to FP8 with a scale for each row".to_owned()
                }
                Some(encoding) => {
                    let [rows, columns] = encoding.block;
                    format!(", to FP8 with a scale for each {rows} x {columns} values")
                }
            };
            format!("{name}{}{encoded}", values.concat())
        }
    }
}

/// The parameters of one source of a tensor, in brackets after a space; nothing if it has none.
fn of_source(tensor: &PlannedTensor, source: usize) -> String {
    match values_text(tensor, source) {
        values if values.is_empty() => values,
        values => format!(" ({values})"),
    }
}

/// The parameters of one source of a tensor: `weight=0.5 density=0.8`, or `base`; empty if it has none.
pub fn values_text(tensor: &PlannedTensor, source: usize) -> String {
    if tensor.base == Some(source) && tensor.params.sources.get(source).is_none_or(Vec::is_empty) {
        return "base".to_owned();
    }
    let values = tensor
        .params
        .sources
        .get(source)
        .map(Vec::as_slice)
        .unwrap_or_default();
    let values: Vec<String> = values
        .iter()
        .map(|(name, value)| format!("{name}={}", value_text(*value)))
        .collect();
    values.join(" ")
}

fn value_text(value: ParamValue) -> String {
    match value {
        // Gradients produce values such as 0.30000000000000004.
        ParamValue::Number(number) => format!("{}", (number * 1e6).round() / 1e6),
        ParamValue::Bool(flag) => flag.to_string(),
        ParamValue::Word(word) => word.to_owned(),
    }
}

/// The plan for programs: every tensor.
pub fn json(plan: &Plan) -> Value {
    json_with(plan, &mut Vec::new())
}

/// The plan as JSON, without the plans of results that have been shown.
fn json_with<'p>(plan: &'p Plan, shown_results: &mut Vec<&'p MergeResult>) -> Value {
    let mut results = Vec::new();
    for (model, result) in &plan.results {
        let known = shown_results
            .iter()
            .any(|known| ptr::eq(*known, result.as_ref()));
        let inner = (!known).then(|| {
            shown_results.push(result);
            json_with(&result.plan, shown_results)
        });
        results.push(json!({
            "name": plan.models[*model].label(),
            "made_once": result.is_made_once(),
            "plan": inner,
        }));
    }
    let models: Vec<Value> = plan
        .models
        .iter()
        .enumerate()
        .map(|(index, model)| {
            let location = model.location();
            let usages: serde_json::Map<String, Value> = model
                .tensors()
                .iter()
                .zip(plan.usages.get(index).into_iter().flatten())
                .map(|(tensor, usage)| (tensor.name.clone(), usage_json(*usage)))
                .collect();
            let adapters = model.adapters().iter();
            let adapters: Vec<Value> = adapters
                .map(|adapter| adapter_json(model, adapter))
                .collect();
            json!({
                "model": model.label(),
                "path": shown(&location.path),
                "commit": location.hub.as_ref().map(|hub| hub.commit.clone()),
                "adapter": adapters.first(),
                "adapters": adapters,
                "base": plan.base == Some(index),
                "donor": plan.donor == index,
                "tensors": usages,
            })
        })
        .collect();
    let tensors: Vec<Value> = plan
        .tensors
        .iter()
        .map(|tensor| tensor_json(plan, tensor))
        .collect();
    let shards: Vec<Value> =
        plan.shards.iter().map(|shard| json!({"file": shard.file_name, "bytes": shard.file_size, "tensors": shard.tensors.len()})).collect();
    json!({
        "method": plan.method.name,
        "assembly": plan.purpose.as_ref().map(|purpose| &purpose.description),
        "results": results,
        "seed": plan.random.then_some(plan.seed),
        "rounding": match plan.rounding {
            Rounding::Nearest => "nearest",
            Rounding::Stochastic => "stochastic",
        },
        "quantization": plan.quantization.map(|quantized| json!({
            "asked": quantized.asked.name(),
            "encoded": quantized.encoded,
            "kept": quantized.kept,
        })),
        "models": models,
        "tensors": tensors,
        "shards": shards,
        "files": plan.sidecars.iter().map(|(model, file)| json!({"file": file.name, "from": plan.models[*model].label()})).collect::<Vec<_>>(),
        "made": plan.made.iter().map(|(name, _)| name).collect::<Vec<_>>(),
        "vocabulary": plan.vocabulary.as_ref().map(|vocabulary| vocabulary_json(plan, vocabulary)),
        "checked_equal": plan.equal.iter().map(|&(model, left_out, kept)| {
            let names = plan.models[model].tensors();
            json!({"model": plan.models[model].label(), "left_out": names[left_out].name, "kept": names[kept].name})
        }).collect::<Vec<_>>(),
        "licenses": licences::as_json(&plan.licences),
        "bytes_read": plan.bytes_read,
        "scratch_bytes": plan.scratch_bytes(),
        "bytes_written": plan.bytes_written(),
        "peak_memory": plan.limits.peak,
        "matrix_memory": plan.cost.matrix,
        "threads": plan.settings.threads,
        "notes": plan.notes,
    })
}

fn tensor_json(plan: &Plan, tensor: &PlannedTensor) -> Value {
    let sources: Vec<Value> = tensor
        .sources
        .iter()
        .enumerate()
        .map(|(index, source)| {
            let model = &plan.models[source.model];
            json!({
                "model": model.label(),
                "tensor": model.tensors()[source.tensor].name,
                "base": tensor.base == Some(index),
                "parameters": values_json(tensor.params.sources.get(index).map(Vec::as_slice).unwrap_or_default()),
            })
        })
        .collect();
    let TensorParams { tensor: values, .. } = &tensor.params;
    json!({
        "name": tensor.name,
        "dtype": format!("{:?}", tensor.dtype),
        "shape": tensor.shape,
        "operation": match &tensor.operation {
            Operation::Copy => "copy",
            Operation::Scales => "scales",
            Operation::Constant(_) => "constant",
            Operation::Compute { name, .. } => *name,
        },
        "parameters": values_json(values),
        "sources": sources,
    })
}

fn values_json(values: &[(&'static str, ParamValue)]) -> Value {
    let value = |value: &ParamValue| match *value {
        ParamValue::Number(number) => json!(number),
        ParamValue::Bool(flag) => json!(flag),
        // A parameter that also takes words may still be a plain yes or no.
        ParamValue::Word("true") => json!(true),
        ParamValue::Word("false") => json!(false),
        ParamValue::Word(word) => json!(word),
    };
    Value::Object(
        values
            .iter()
            .map(|(name, found)| ((*name).to_owned(), value(found)))
            .collect(),
    )
}

fn usage_json(usage: TensorUsage) -> Value {
    match usage {
        TensorUsage::Used(count) => json!({"used": count}),
        TensorUsage::TiedCopy => json!("tied copy"),
        TensorUsage::OutsideSlices => json!("outside slices"),
        TensorUsage::DerivedBuffer => json!("derived buffer"),
        TensorUsage::Excepted => json!("excepted"),
        TensorUsage::NotTaken => json!("not taken"),
    }
}
