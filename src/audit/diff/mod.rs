//! `weld diff`: compares two checkpoints with each other, and with their common base.

mod checks;
mod files;
mod measure;
mod tables;

pub(crate) use checks::CHECKS;

use std::collections::{HashMap, HashSet};

use super::policy::{DiffPolicy, Thresholds};
use super::{Command, Finding, Place, Report, Severity};
use architecture::{StackIndex, layer_stacks};
use checkpoint::{Checkpoint, TensorEntry};
use engine::Observer;
use measure::{Measured, Triple, measure};
use numeric::TaskSums;
use run::{RunError, digests};

/// What is compared.
pub struct Request<'a> {
    /// The first checkpoint.
    pub a: &'a Checkpoint,
    /// The second.
    pub b: &'a Checkpoint,
    /// The model that both were made from.
    pub base: Option<&'a Checkpoint>,
    /// The differences that are accepted; within them, a difference is only a note.
    pub policy: Option<&'a DiffPolicy>,
    /// Whether to show every tensor and not only those that differ most.
    pub all: bool,
    /// Number of worker threads.
    pub threads: usize,
}

/// A tensor that both checkpoints have.
struct Pair<'a> {
    a: &'a TensorEntry,
    b: &'a TensorEntry,
    /// The measurements; `None` if the shapes differ.
    measured: Option<Measured>,
}

/// Compares two checkpoints.
///
/// # Errors
/// The work was stopped, or the threads could not be started.
pub fn diff(request: &Request<'_>, observer: &dyn Observer) -> Result<Report, RunError> {
    let Request { a, b, base, .. } = request;
    let mut report = Report::new(Command::Diff, format!("{} and {}", a.label(), b.label()));
    report.checked = CHECKS.to_vec();
    let common: Vec<(usize, usize)> = a
        .tensors()
        .iter()
        .enumerate()
        .filter_map(|(at, tensor)| Some((at, b.find(&tensor.name)?)))
        .collect();
    let comparable: Vec<(usize, usize)> = common
        .iter()
        .copied()
        .filter(|&(at, of_b)| a.tensors()[at].shape == b.tensors()[of_b].shape)
        .collect();
    let triples: Vec<Triple<'_>> = comparable
        .iter()
        .map(|&(at, of_b)| Triple::new(request, at, of_b))
        .collect();
    for model in [Some(request.a), Some(request.b), request.base] {
        model.into_iter().for_each(Checkpoint::read_ahead);
    }
    let mut measured = measure(&triples, request.threads, observer)?.into_iter();
    let pairs: Vec<Pair<'_>> = common
        .iter()
        .map(|&(at, of_b)| {
            let (a, b) = (&a.tensors()[at], &b.tensors()[of_b]);
            let measured = (a.shape == b.shape).then(|| measured.next()).flatten();
            Pair { a, b, measured }
        })
        .collect();
    let stacks = layer_stacks(pairs.iter().map(|pair| pair.a.name.as_str()));
    let index = StackIndex::new(&stacks);
    for pair in &pairs {
        report.extend(findings(pair, request.policy, &index));
    }
    report.extend(one_sided(request, observer)?);
    report.extend(files::compare(a, b));
    if let Some(base) = base {
        same_as_base(a, base, &triples, &pairs, |tasks| tasks.first, &mut report);
        same_as_base(b, base, &triples, &pairs, |tasks| tasks.second, &mut report);
    }
    tables::show(request, &pairs, &stacks, &mut report);
    Ok(report)
}

fn signature(tensor: &TensorEntry) -> String {
    format!("{:?} {:?}", tensor.dtype, tensor.shape)
}

fn findings(pair: &Pair<'_>, policy: Option<&DiffPolicy>, stacks: &StackIndex<'_>) -> Vec<Finding> {
    let place = || Place::tensor(&pair.a.name, None);
    let Some(measured) = &pair.measured else {
        let (a, b) = (signature(pair.a), signature(pair.b));
        return vec![Finding::new(&checks::SHAPE, place(), a, b)];
    };
    let mut findings = Vec::new();
    if pair.a.dtype != pair.b.dtype {
        let (a, b) = (signature(pair.a), signature(pair.b));
        findings.push(Finding::new(&checks::DTYPE, place(), a, b));
    }
    if measured.non_finite > 0 {
        let found = format!(
            "{} NaN or infinite values, not measured",
            measured.non_finite
        );
        findings.push(Finding::new(
            &checks::NON_FINITE,
            place(),
            "finite values",
            found,
        ));
    }
    if measured.differs {
        let thresholds = policy.filter(|policy| !policy.is_empty()).map(|policy| {
            let role = stacks.split(&pair.a.name);
            policy.of(role.map_or(&pair.a.name, |(_, _, role)| role))
        });
        let found = measured.in_words(pair.a.elements());
        let finding = |expected: &str| Finding::new(&checks::VALUES, place(), expected, found);
        findings.push(match thresholds {
            None => finding("equal values"),
            Some(thresholds) => match exceeded(measured, thresholds) {
                Some(asked) => finding(&asked),
                None => finding("values that are as close as the policy asks")
                    .with_severity(Severity::Note),
            },
        });
    }
    findings
}

/// The thresholds that a difference exceeds. A tensor that cannot be measured exceeds all that are set.
fn exceeded(measured: &Measured, asked: Thresholds) -> Option<String> {
    let distance = measured.distance.as_ref();
    let relative = distance.map_or(f64::INFINITY, |distance| distance.relative());
    let cosine = distance.map_or(-1.0, |distance| distance.cosine());
    let steps = measured.steps.map_or(u64::MAX, |steps| steps.largest);
    let mut exceeded = Vec::new();
    if let Some(most) = asked.max_relative_l2.filter(|most| relative > *most) {
        exceeded.push(format!("a relative L2 of at most {most}"));
    }
    if let Some(least) = asked.min_cosine.filter(|least| cosine < *least) {
        exceeded.push(format!("a cosine of at least {least}"));
    }
    if let Some(most) = asked.max_steps.filter(|most| steps > *most) {
        exceeded.push(format!("at most {most} steps"));
    }
    if measured.non_finite > 0 {
        exceeded.push("finite values".to_owned());
    }
    (!exceeded.is_empty()).then(|| exceeded.join(", "))
}

/// Tensors that only one checkpoint has. If the other has the same bytes under another name, that name is reported.
fn one_sided(request: &Request<'_>, observer: &dyn Observer) -> Result<Vec<Finding>, RunError> {
    let only = |one: &Checkpoint, other: &Checkpoint| -> Vec<usize> {
        let tensors = one.tensors().iter().enumerate();
        let missing = tensors.filter(|(_, tensor)| other.find(&tensor.name).is_none());
        missing.map(|(at, _)| at).collect()
    };
    let (a, b) = (request.a, request.b);
    let (only_a, only_b) = (only(a, b), only(b, a));
    let mut names = HashMap::new();
    if !only_a.is_empty() && !only_b.is_empty() {
        // Only these tensors are hashed, since only they are searched for under other names.
        let hashes = digests(b, &only_b, request.threads, observer)?;
        names = hashes
            .iter()
            .zip(&only_b)
            .filter_map(|(hash, &at)| Some(((*hash)?, at)))
            .collect();
    }
    let mut renamed = HashSet::new();
    let mut findings = Vec::new();
    let hashes = match names.is_empty() {
        true => vec![None; only_a.len()],
        false => digests(a, &only_a, request.threads, observer)?,
    };
    for (&at, hash) in only_a.iter().zip(hashes) {
        let tensor = &a.tensors()[at];
        let place = Place::tensor(&tensor.name, None);
        let same = hash.and_then(|hash| names.get(&hash).copied());
        let same = same.filter(|&other| signature(&b.tensors()[other]) == signature(tensor));
        findings.push(match same {
            Some(other) => {
                renamed.insert(other);
                let found = format!("the same as `{}`", b.tensors()[other].name);
                Finding::new(&checks::RENAMED, place, tensor.name.clone(), found)
            }
            None => Finding::new(&checks::MISSING, place, signature(tensor), "none"),
        });
    }
    for at in only_b.into_iter().filter(|at| !renamed.contains(at)) {
        let tensor = &b.tensors()[at];
        let place = Place::tensor(&tensor.name, None);
        findings.push(Finding::new(
            &checks::ADDED,
            place,
            "none",
            signature(tensor),
        ));
    }
    Ok(findings)
}

/// Reports it if every compared tensor of a checkpoint has the base's values, so that its task vectors are zero.
fn same_as_base(
    model: &Checkpoint,
    base: &Checkpoint,
    triples: &[Triple<'_>],
    pairs: &[Pair<'_>],
    energy: fn(&TaskSums) -> f64,
    report: &mut Report,
) {
    let mut compared = pairs
        .iter()
        .filter_map(|pair| pair.measured.as_ref())
        .zip(triples);
    let same = |(measured, triple): (&Measured, &Triple<'_>)| {
        triple.has_base() && energy(&measured.tasks) == 0.0
    };
    if !pairs.is_empty() && compared.all(same) {
        let found = format!("the values of `{}`", base.label());
        let place = Place::file(model.label());
        report.add(Finding::new(&checks::IS_BASE, place, "a fine-tune", found));
    }
}
