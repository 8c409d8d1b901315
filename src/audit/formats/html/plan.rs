//! A plan as a page: which layers come from which models, by which values, and what that costs.

use std::collections::BTreeMap;

use bytesize::ByteSize;
use minijinja::Error;
use minijinja::value::Serde;
use serde::Serialize;

use super::environment;
use crate::formats::clean::clean;
use architecture::{LayerStack, StackIndex, layer_stacks};
use checkpoint::Checkpoint;
use methods::ParamValue;
use plan::{
    MergeResult, Operation, Plan, PlannedTensor, left_out, listed_licences, operation_text,
    values_text,
};

/// The most rows of a merge's table; the rest is counted.
const MAX_ROWS: usize = 500;

/// The most layers of a strip that are drawn.
const MAX_DRAWN: usize = 512;

/// The most names in a cell.
const NAMED: usize = 4;

/// The colours that models are drawn in; further models begin anew.
const COLOURS: usize = 8;

/// The template's input.
#[derive(Serialize)]
struct Page {
    command: &'static str,
    recipe: String,
    version: &'static str,
    /// Names and values, the most important first.
    facts: Vec<(&'static str, String)>,
    /// The merges whose results are used, then the one that is written.
    merges: Vec<Merge>,
    notes: Vec<String>,
    files: Vec<(String, String)>,
}

/// One merge.
#[derive(Serialize)]
struct Merge {
    title: String,
    method: &'static str,
    summary: String,
    models: Vec<Model>,
    strips: Vec<Strip>,
    rows: Vec<Row>,
    more: usize,
    left_out: Vec<(String, &'static str, String)>,
}

#[derive(Serialize)]
struct Model {
    name: String,
    colour: usize,
    roles: Vec<&'static str>,
    tensors: usize,
    size: String,
}

/// The layers of a stack, one beside the other.
#[derive(Serialize)]
struct Strip {
    name: String,
    layers: Vec<Layer>,
    more: usize,
}

#[derive(Serialize)]
struct Layer {
    number: usize,
    says: String,
    /// For each model that it comes from: its colour, and its share in thousandths.
    shares: Vec<(usize, u32)>,
}

/// Tensors that are made alike.
#[derive(Serialize)]
struct Row {
    /// `0 to 31`, or nothing for tensors outside of layers.
    layers: String,
    tensors: String,
    count: usize,
    operation: String,
    /// What comes from each model; nothing where none does.
    cells: Vec<Option<String>>,
}

/// The plan as an HTML page without scripts and external resources.
///
/// # Errors
/// The template failed, which no plan should cause.
pub fn plan_page(plan: &Plan) -> Result<String, Error> {
    let mut known = Vec::new();
    results(plan, &mut known);
    let mut merges: Vec<Merge> = known
        .into_iter()
        .map(|(name, result)| merge(&result.plan, format!("First `{}`", clean(name))))
        .collect();
    let title = match merges.is_empty() {
        true => "What is made",
        false => "Then what is written",
    };
    merges.push(merge(plan, title.to_owned()));
    let page = Page {
        command: plan.command(),
        recipe: clean(&plan.recipe.0),
        version: env!("CARGO_PKG_VERSION"),
        facts: facts(plan),
        merges,
        notes: plan.notes.iter().map(|note| clean(note)).collect(),
        files: files(plan),
    };
    environment()?
        .get_template("plan.html")?
        .render(Serde(page))
}

/// The results that a plan is made from, by name, each once and after those that it is made from itself.
fn results<'p>(plan: &'p Plan, known: &mut Vec<(&'p str, &'p MergeResult)>) {
    for (model, result) in &plan.results {
        let is_same = |(_, other): &(&str, &MergeResult)| std::ptr::eq(*other, result.as_ref());
        if known.iter().any(is_same) {
            continue;
        }
        results(&result.plan, known);
        known.push((plan.models[*model].label(), result));
    }
}

fn facts(plan: &Plan) -> Vec<(&'static str, String)> {
    let dtypes = plan.dtypes().into_iter();
    let dtypes: Vec<String> = dtypes
        .map(|(dtype, count)| format!("{count} {dtype}"))
        .collect();
    let mut facts = vec![
        (
            "tensors",
            format!("{} ({})", plan.tensors.len(), dtypes.join(", ")),
        ),
        ("reads", size(plan.bytes_read)),
        ("writes", size(plan.bytes_written())),
        (
            "own memory",
            format!("up to {}", ByteSize(plan.limits.peak)),
        ),
        ("threads", plan.settings.threads.to_string()),
        ("passes", passes(plan)),
    ];
    if plan.cost.matrix > 0 {
        let matrix = ByteSize(plan.cost.matrix);
        facts.push(("for one matrix", format!("{matrix} of the memory")));
    }
    if plan.scratch_bytes() > 0 {
        let scratch = size(plan.scratch_bytes());
        facts.push(("scratch", format!("{scratch} on the disk until it is done")));
    }
    if plan.random {
        facts.push(("seed", plan.seed.to_string()));
    }
    if !plan.licences.is_empty() {
        facts.push(("licences", clean(&listed_licences(plan).join(", "))));
    }
    facts
}

/// How often the inputs of a tensor are read.
fn passes(plan: &Plan) -> String {
    let of = |tensor: &PlannedTensor| tensor.cost().measures + 1;
    let least = plan.tensors.iter().map(of).min().unwrap_or(1);
    let most = plan.tensors.iter().map(of).max().unwrap_or(1);
    match least == most {
        true => format!("{most} over each input"),
        false => format!("{least} to {most} over each input"),
    }
}

fn files(plan: &Plan) -> Vec<(String, String)> {
    let shards = plan.shards.iter();
    let shards = shards.map(|shard| {
        let tensors = plan::count(shard.tensors.len(), "tensor");
        (
            clean(&shard.file_name),
            format!("{}, {tensors}", size(shard.file_size)),
        )
    });
    let made = plan
        .made
        .iter()
        .map(|(name, _)| (clean(name), "made".to_owned()));
    let copied = plan.sidecars.iter().map(|(model, file)| {
        let from = plan.models[*model].label();
        (clean(&file.name), format!("from {}", clean(from)))
    });
    shards.chain(made).chain(copied).take(MAX_ROWS).collect()
}

fn merge(plan: &Plan, title: String) -> Merge {
    let layout = Layout::new(plan);
    let (rows, more) = layout.rows();
    let summary = match &plan.purpose {
        Some(purpose) => clean(&purpose.description),
        None => plan.method.summary.to_owned(),
    };
    Merge {
        title,
        method: plan.method.name,
        summary,
        models: models(plan),
        strips: layout.strips(),
        rows,
        more,
        left_out: left_out(plan)
            .into_iter()
            .map(|(model, why, names)| (clean(model), why, named(&names)))
            .collect(),
    }
}

fn models(plan: &Plan) -> Vec<Model> {
    let model = |(index, model): (usize, &std::sync::Arc<Checkpoint>)| {
        let roles = [
            (plan.base == Some(index), "base"),
            (plan.donor == index, "gives names, config and files"),
            (!model.adapters().is_empty(), "with its adapter"),
            (plan.results.contains_key(&index), "a result"),
        ];
        let bytes = model.tensors().iter().map(|tensor| tensor.len).sum();
        Model {
            name: clean(model.label()),
            colour: index % COLOURS,
            roles: roles
                .into_iter()
                .filter_map(|(is, role)| is.then_some(role))
                .collect(),
            tensors: model.tensors().len(),
            size: size(bytes),
        }
    };
    plan.models.iter().enumerate().map(model).collect()
}

/// The tensors of a plan by their layers.
struct Layout<'p> {
    plan: &'p Plan,
    stacks: Vec<LayerStack>,
    /// The stacks of each model.
    of_models: Vec<Vec<LayerStack>>,
}

/// How a tensor is made: what is done, and for each source its model, how far its layer is from the tensor's, and its
/// values.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Recipe {
    operation: String,
    sources: Vec<(usize, Option<isize>, String)>,
}

/// The tensors of a layer by how they are made: their names within the layer.
type Groups<'p> = BTreeMap<Recipe, Vec<&'p str>>;

impl<'p> Layout<'p> {
    fn new(plan: &'p Plan) -> Self {
        let of = |model: &std::sync::Arc<Checkpoint>| {
            layer_stacks(model.tensors().iter().map(|tensor| tensor.name.as_str()))
        };
        Self {
            plan,
            stacks: layer_stacks(plan.tensors.iter().map(|tensor| tensor.name.as_str())),
            of_models: plan.models.iter().map(of).collect(),
        }
    }

    fn recipe(
        &self,
        tensor: &PlannedTensor,
        layer: Option<usize>,
        of_models: &[StackIndex<'_>],
    ) -> Recipe {
        let source = |(index, source): (usize, &plan::SourceTensor)| {
            let name = &self.plan.models[source.model].tensors()[source.tensor].name;
            let from = of_models[source.model]
                .split(name)
                .map(|(_, layer, _)| layer);
            let shift = layer
                .zip(from)
                .map(|(to, from)| from as isize - to as isize);
            let values = values_text(tensor, index);
            (source.model, shift, values)
        };
        Recipe {
            operation: operation_text(tensor),
            sources: tensor.sources.iter().enumerate().map(source).collect(),
        }
    }

    /// The tensors of each stack by layer, and those outside of layers.
    fn groups(&self) -> (Vec<Vec<Groups<'p>>>, Groups<'p>) {
        let index = StackIndex::new(&self.stacks);
        let of_models: Vec<StackIndex<'_>> = self
            .of_models
            .iter()
            .map(|stacks| StackIndex::new(stacks))
            .collect();
        let mut layers: Vec<Vec<Groups<'p>>> = self
            .stacks
            .iter()
            .map(|stack| vec![Groups::new(); stack.layers])
            .collect();
        let mut outside = Groups::new();
        for tensor in &self.plan.tensors {
            let split = index.split(&tensor.name);
            let recipe = self.recipe(tensor, split.map(|(_, layer, _)| layer), &of_models);
            let place = split.and_then(|(stack, layer, role)| {
                let at = self
                    .stacks
                    .iter()
                    .position(|known| known.prefix == stack.prefix)?;
                Some((layers.get_mut(at)?.get_mut(layer)?, role))
            });
            let (groups, name) = place.unwrap_or((&mut outside, tensor.name.as_str()));
            groups.entry(recipe).or_default().push(name);
        }
        (layers, outside)
    }

    /// A row for tensors that are made alike, in runs of layers that are.
    fn rows(&self) -> (Vec<Row>, usize) {
        let (stacks, outside) = self.groups();
        let mut rows = self.of_groups(&outside, String::new(), None);
        for (stack, layers) in self.stacks.iter().zip(&stacks) {
            let mut first = 0;
            while first < layers.len() {
                let alike = layers[first..]
                    .iter()
                    .take_while(|other| **other == layers[first]);
                let last = first + alike.count() - 1;
                let number = match first == last {
                    true => first.to_string(),
                    false => format!("{first} to {last}"),
                };
                let number = match self.stacks.len() {
                    1 => number,
                    _ => format!("{} {number}", clean(stack.prefix.trim_end_matches('.'))),
                };
                rows.extend(self.of_groups(&layers[first], number, Some((first, last))));
                first = last + 1;
            }
        }
        let more = rows.len().saturating_sub(MAX_ROWS);
        rows.truncate(MAX_ROWS);
        (rows, more)
    }

    fn of_groups(
        &self,
        groups: &Groups<'_>,
        layers: String,
        run: Option<(usize, usize)>,
    ) -> Vec<Row> {
        let row = |(recipe, names): (&Recipe, &Vec<&str>)| {
            let mut cells = vec![None; self.plan.models.len()];
            for (model, shift, values) in &recipe.sources {
                let cell: &mut Option<String> = &mut cells[*model];
                let from = run
                    .zip(*shift)
                    .and_then(|((first, last), shift)| moved(first, last, shift));
                let parts = [from.unwrap_or_default(), values.clone()];
                let parts: Vec<String> =
                    parts.into_iter().filter(|part| !part.is_empty()).collect();
                let text = match parts.is_empty() {
                    true => "✓".to_owned(),
                    false => parts.join(", "),
                };
                *cell = Some(match cell.take() {
                    Some(before) if before != text => format!("{before}; {text}"),
                    _ => text,
                });
            }
            let count = names.len() * run.map_or(1, |(first, last)| last - first + 1);
            Row {
                layers: layers.clone(),
                tensors: named(names),
                count,
                operation: recipe.operation.clone(),
                cells,
            }
        };
        groups.iter().map(row).collect()
    }

    /// What each layer comes from, by share.
    fn strips(&self) -> Vec<Strip> {
        let index = StackIndex::new(&self.stacks);
        let mut shares: Vec<Vec<BTreeMap<usize, f64>>> = self
            .stacks
            .iter()
            .map(|stack| vec![BTreeMap::new(); stack.layers.min(MAX_DRAWN)])
            .collect();
        for tensor in &self.plan.tensors {
            let Some((stack, layer, _)) = index.split(&tensor.name) else {
                continue;
            };
            let at = self
                .stacks
                .iter()
                .position(|known| known.prefix == stack.prefix);
            let Some(shares) = at.and_then(|at| shares[at].get_mut(layer)) else {
                continue;
            };
            for (model, share) in shares_of(tensor) {
                *shares.entry(model).or_default() += share * tensor.elements() as f64;
            }
        }
        let strips = self.stacks.iter().zip(shares);
        strips
            .map(|(stack, layers)| self.strip(stack, layers))
            .collect()
    }

    fn strip(&self, stack: &LayerStack, layers: Vec<BTreeMap<usize, f64>>) -> Strip {
        let more = stack.layers - layers.len();
        let layer = |(number, shares): (usize, BTreeMap<usize, f64>)| {
            let all: f64 = shares.values().sum();
            let part = |share: f64| if all > 0.0 { share / all } else { 0.0 };
            let says: Vec<String> = shares
                .iter()
                .map(|(model, share)| {
                    let name = clean(self.plan.models[*model].label());
                    format!("{name} {:.0} %", 100.0 * part(*share))
                })
                .collect();
            Layer {
                number,
                says: says.join(", "),
                shares: shares
                    .iter()
                    .map(|(model, share)| (model % COLOURS, (1000.0 * part(*share)).round() as u32))
                    .filter(|(_, share)| *share > 0)
                    .collect(),
            }
        };
        Strip {
            name: clean(stack.prefix.trim_end_matches('.')),
            layers: layers.into_iter().enumerate().map(layer).collect(),
            more,
        }
    }
}

/// How much of a tensor comes from each model: by `t` or `weight` where the method has them, otherwise alike. What is
/// only subtracted and added again, a base beside others, has no share.
fn shares_of(tensor: &PlannedTensor) -> Vec<(usize, f64)> {
    if let (Operation::Copy, Some(source)) = (&tensor.operation, tensor.sources.first()) {
        return vec![(source.model, 1.0)];
    }
    let number = |values: &[(&'static str, ParamValue)], wanted: &str| {
        values.iter().find_map(|(name, value)| match value {
            ParamValue::Number(number) if *name == wanted => Some(*number),
            _ => None,
        })
    };
    let between = number(&tensor.params.tensor, "t").filter(|t| (0.0..=1.0).contains(t));
    let share =
        |(at, source): (usize, &plan::SourceTensor)| {
            let values = tensor
                .params
                .sources
                .get(at)
                .map(Vec::as_slice)
                .unwrap_or_default();
            let is_base = tensor.base == Some(at);
            let share =
                match (between, number(values, "weight")) {
                    (Some(t), _) if tensor.sources.len() == 2 && tensor.base.is_some() => {
                        if is_base { 1.0 - t } else { t }
                    }
                    (_, Some(weight)) => weight.abs(),
                    (_, None) if is_base && tensor.sources.len() > 1 => 0.0,
                    (_, None) => 1.0,
                };
            (source.model, share)
        };
    tensor.sources.iter().enumerate().map(share).collect()
}

/// `layers 4 to 7`, where they are others than those that are made of them.
fn moved(first: usize, last: usize, shift: isize) -> Option<String> {
    let (from, to) = (
        first.checked_add_signed(shift)?,
        last.checked_add_signed(shift)?,
    );
    match (shift, from == to) {
        (0, _) => None,
        (_, true) => Some(format!("layer {from}")),
        (_, false) => Some(format!("layers {from} to {to}")),
    }
}

/// The first of some names, and how many more there are.
fn named(names: &[&str]) -> String {
    let shown: Vec<String> = names.iter().take(NAMED).map(|name| clean(name)).collect();
    match names.len() - shown.len() {
        0 => shown.join(", "),
        more => format!("{} and {more} more", shown.join(", ")),
    }
}

fn size(bytes: u64) -> String {
    ByteSize(bytes).display().si().to_string()
}
