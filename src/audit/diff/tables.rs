//! Presents the measurements: the worst tensors, roles and layers, totals, a heat map, a histogram.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::measure::{Measured, step_bars};
use super::{Pair, Request};
use crate::{HeatMap, Histogram, Report, Table};
use architecture::{LayerStack, StackIndex};
use numeric::TaskSums;

/// Rows per table, unless all tensors are asked for.
const SHOWN: usize = 10;

/// Adds tables, heat map, histogram, totals and details to the report.
pub(super) fn show(
    request: &Request<'_>,
    pairs: &[Pair<'_>],
    stacks: &[LayerStack],
    report: &mut Report,
) {
    let with_base = request.base.is_some();
    let mut total = Measured::default();
    let mut roles: BTreeMap<&str, TensorGroup> = BTreeMap::new();
    let mut layers: BTreeMap<(&str, usize), TensorGroup> = BTreeMap::new();
    // A tensor in no layer is a role by itself, under its own name.
    let mut alone = Vec::new();
    let mut tensors = Vec::new();
    let index = StackIndex::new(stacks);
    for pair in pairs {
        let Some(measured) = &pair.measured else {
            continue;
        };
        total.add(measured);
        let elements = pair.a.elements();
        let row = Row {
            name: &pair.a.name,
            layer: None,
            measured,
            elements,
        };
        match index.split(&pair.a.name) {
            Some((stack, layer, role)) => {
                roles.entry(role).or_default().add(measured, elements);
                let layer = layers.entry((&stack.prefix, layer)).or_default();
                layer.add(measured, elements);
            }
            None => alone.push(row),
        }
        tensors.push(row);
    }
    let energy = (total.tasks.first, total.tasks.second);
    let rows = |mut rows: Vec<Row<'_>>| {
        rows.retain(|row| request.all || row.measured.differs || with_base);
        worst(rows, request.all, with_base, energy)
    };
    alone.extend(roles.iter().map(|(role, group)| group.row(role, None)));
    // Sorted by name first; the later sort by size is stable.
    alone.sort_by_key(|row| row.name);
    let values = |rows: &[Row<'_>]| -> Vec<Value> {
        let value = |row: &Row<'_>| {
            let mut value = numbers(row.measured, row.elements, energy);
            value["name"] = row.title().into();
            value
        };
        rows.iter().take(MOST_GROUPS).map(value).collect()
    };
    let by_layer = layers.iter();
    let by_layer = by_layer.map(|((stack, layer), group)| group.row(stack, Some(*layer)));
    let by_layer: Vec<Row<'_>> = by_layer.collect();
    let groups = (values(&alone), values(&by_layer));
    for (title, of, groups) in [
        ("tensors that differ most", "tensor", tensors),
        ("by role", "role", alone),
        ("by layer", "layer", by_layer),
    ] {
        report
            .tables
            .push(table(title, of, with_base, rows(groups)));
    }
    report.tables.retain(|table| !table.rows.is_empty());
    report.heat_maps.extend(heat_map(stacks, pairs));
    let elements = |pair: &&Pair<'_>| {
        pair.measured
            .as_ref()
            .is_some_and(|found| found.steps.is_some())
    };
    let stepped: u64 = pairs
        .iter()
        .filter(elements)
        .map(|pair| pair.a.elements())
        .sum();
    if let Some(steps) = total.steps.filter(|steps| steps.at_least[0] > 0) {
        report.histograms.push(Histogram {
            title: "Elements by their distance in ULPs".to_owned(),
            unit: "ULPs of the dtype".to_owned(),
            bars: step_bars(&steps, stepped),
        });
    }
    totals(request, pairs, &total, groups, report);
}

/// The most roles and layers that the details list one by one; a header may name any number.
const MOST_GROUPS: usize = 1 << 14;

/// Tensors that are shown as one.
#[derive(Clone, Default)]
struct TensorGroup {
    measured: Measured,
    elements: u64,
}

impl TensorGroup {
    fn add(&mut self, measured: &Measured, elements: u64) {
        self.measured.add(measured);
        self.elements += elements;
    }

    fn row<'r>(&'r self, name: &'r str, layer: Option<usize>) -> Row<'r> {
        Row {
            name,
            layer,
            measured: &self.measured,
            elements: self.elements,
        }
    }
}

/// One row of a table.
#[derive(Clone, Copy)]
struct Row<'r> {
    /// The name of a tensor or a role, or the part of names before the layer's number.
    name: &'r str,
    layer: Option<usize>,
    measured: &'r Measured,
    elements: u64,
}

impl Row<'_> {
    fn relative(&self) -> f64 {
        let distance = self.measured.distance.as_ref();
        distance.map_or(0.0, numeric::Distance::relative)
    }

    fn title(&self) -> String {
        let layer = self.layer.map(|layer| layer.to_string());
        format!("{}{}", self.name, layer.unwrap_or_default())
    }
}

fn table(title: &str, of: &str, with_base: bool, rows: Vec<Vec<String>>) -> Table {
    let mut columns = vec![of, "differ", "max", "mean", "relative L2", "cosine", "ULPs"];
    if with_base {
        columns.extend(["task cosine", "sign conflicts", "energy A", "energy B"]);
    }
    Table {
        title: title.to_owned(),
        columns: columns.into_iter().map(str::to_owned).collect(),
        rows,
    }
}

/// The rows, those that differ most first.
fn worst(
    mut rows: Vec<Row<'_>>,
    all: bool,
    with_base: bool,
    energy: (f64, f64),
) -> Vec<Vec<String>> {
    rows.sort_by(|a, b| b.relative().total_cmp(&a.relative()));
    rows.truncate(if all { usize::MAX } else { SHOWN });
    let cells = rows.iter().map(|row| cells(row, with_base, energy));
    cells.collect()
}

fn cells(group: &Row<'_>, with_base: bool, energy: (f64, f64)) -> Vec<String> {
    let found = group.measured;
    let name = group.title();
    let none = || "-".to_owned();
    let share = |part: f64, whole: f64| match whole > 0.0 {
        true => format!("{:.2} %", 100.0 * part / whole),
        false => none(),
    };
    let mut row = vec![name, share(found.differing as f64, group.elements as f64)];
    match &found.distance {
        Some(distance) => row.extend([
            format!("{:.2e}", distance.largest),
            format!("{:.2e}", distance.absolute / group.elements.max(1) as f64),
            format!("{:.2e}", distance.relative()),
            format!("{:.6}", distance.cosine()),
        ]),
        None => row.extend([none(), none(), none(), none()]),
    }
    row.push(
        found
            .steps
            .map_or_else(none, |steps| steps.largest.to_string()),
    );
    if with_base {
        row.extend([
            found
                .tasks
                .cosine()
                .map_or_else(none, |cosine| format!("{cosine:.4}")),
            share(found.tasks.conflicts, found.tasks.both),
            share(found.tasks.first, energy.0),
            share(found.tasks.second, energy.1),
        ]);
    }
    row
}

/// Relative L2 by layer and role, in the deepest stack.
fn heat_map(stacks: &[LayerStack], pairs: &[Pair<'_>]) -> Option<HeatMap> {
    let relative = pairs.iter().map(|pair| {
        let distance = pair.measured.as_ref().and_then(|found| found.distance);
        let relative = distance.map(|distance| distance.relative());
        (pair.a.name.as_str(), relative)
    });
    HeatMap::new(
        "Difference by layer and role",
        "L2 of the difference / L2 of the first",
        stacks.first()?,
        relative,
    )
}

fn totals(
    request: &Request<'_>,
    pairs: &[Pair<'_>],
    total: &Measured,
    groups: (Vec<Value>, Vec<Value>),
    report: &mut Report,
) {
    let energy = (total.tasks.first, total.tasks.second);
    let measured = pairs.iter().filter(|pair| pair.measured.is_some());
    let elements: u64 = measured.map(|pair| pair.a.elements()).sum();
    let differing = |pair: &&Pair<'_>| pair.measured.as_ref().is_some_and(|found| found.differs);
    let count = pairs.iter().filter(differing).count();
    report.say(
        "tensors",
        format!("{} in both, {count} with other values", pairs.len()),
    );
    if count > 0 {
        report.say("in all", total.in_words(elements));
        if let Some(distance) = &total.distance {
            report.say("cosine", format!("{:.8}", distance.cosine()));
        }
    }
    if let Some(base) = request.base {
        let tasks = &total.tasks;
        report.say("base", base.label());
        report.say("tasks", in_words(tasks));
    }
    report.details = json!({
        "a": request.a.label(),
        "b": request.b.label(),
        "base": request.base.map(|base| base.label()),
        "total": numbers(total, elements, energy),
        "roles": groups.0,
        "layers": groups.1,
    });
    report.detail(pairs.iter().map(|pair| details(pair, energy)));
}

/// Describes in words how two task vectors relate to each other.
fn in_words(tasks: &TaskSums) -> String {
    let (first, second) = (tasks.first > 0.0, tasks.second > 0.0);
    match (first, second) {
        (false, false) => "none: both have the values of the base".to_owned(),
        (false, true) => "one: the first has the values of the base".to_owned(),
        (true, false) => "one: the second has the values of the base".to_owned(),
        (true, true) => format!(
            "cosine {}, {:.2} % of signs in conflict, the second's length is {:.4} of the first's",
            tasks
                .cosine()
                .map_or("-".to_owned(), |cosine| format!("{cosine:.4}")),
            100.0 * tasks.conflicts / tasks.both.max(1.0),
            (tasks.second / tasks.first).sqrt(),
        ),
    }
}

fn details(pair: &Pair<'_>, energy: (f64, f64)) -> Value {
    let mut value = json!({
        "name": pair.a.name,
        "dtypes": [format!("{:?}", pair.a.dtype), format!("{:?}", pair.b.dtype)],
        "shapes": [pair.a.shape, pair.b.shape],
    });
    if let (Some(found), Some(map)) = (&pair.measured, value.as_object_mut()) {
        let numbers = numbers(found, pair.a.elements(), energy);
        map.extend(numbers.as_object().cloned().unwrap_or_default());
    }
    value
}

fn numbers(found: &Measured, elements: u64, energy: (f64, f64)) -> Value {
    let distance = found.distance.as_ref();
    let tasks = &found.tasks;
    let share = |part: f64, whole: f64| (whole > 0.0).then(|| part / whole);
    json!({
        "elements": elements,
        "equal": !found.differs,
        "differing": found.differing,
        "non_finite": found.non_finite,
        "max": distance.map(|distance| distance.largest),
        "mean": distance.map(|distance| distance.absolute / elements.max(1) as f64),
        "l2": distance.map(|distance| distance.squared.sqrt()),
        "relative_l2": distance.map(|distance| distance.relative()),
        "cosine": distance.map(|distance| distance.cosine()),
        "steps": found.steps.map(|steps| steps.largest),
        "within_one_step": found.steps.map(|steps| elements - steps.at_least[1]),
        "tasks": (tasks.first + tasks.second > 0.0).then(|| json!({
            "l2": [tasks.first.sqrt(), tasks.second.sqrt()],
            "energy": [share(tasks.first, energy.0), share(tasks.second, energy.1)],
            "cosine": tasks.cosine(),
            "sign_conflicts": tasks.conflicts,
            "both": tasks.both,
        })),
    })
}
