//! `weld verify`: recomputes a checkpoint from its recipe and inputs, and compares the two.
//!
//! Every tensor is accounted for: recomputed, copied, or reported. Whether it is right is decided by equality of bytes;
//! fits only name the cause of a difference.

mod adapter;
mod checks;
mod compare;
mod diagnose;
mod files;
mod folder;
mod inputs;
mod locked;
mod mergekit;
mod numerics;
mod outcome;
mod premises;
mod sample;

use std::collections::{BTreeSet, HashSet};
use std::path::Path;

use bytesize::ByteSize;
use serde_json::json;

pub use adapter::{ADAPTER_WEIGHTS, AdapterRequest, verify_adapter};
pub(crate) use checks::CHECKS;
pub use folder::FolderListing;
pub(crate) use folder::Weights;
pub use inputs::{Inputs, InputsError, no_plan};
pub use mergekit::Profile;
pub use numerics::Numerics;
pub use premises::{Arithmetic, Asked, GivenRecipe, Origin, Premises, PremisesError};
pub use sample::Coverage;

use super::{Command, Finding, Place, Report, Severity, Skipped, Verdict};
use checkpoint::{Checkpoint, CheckpointError, Dtype, TensorEntry};
use compare::{Comparison, Difference, There};
use engine::Observer;
use errors::{Refusal, in_one_line};
use numeric::FloatType;
use numerics::Fit;
use outcome::{Judged, Outcome, Outcomes};
use plan::{Operation, Plan, PlannedTensor};
use run::{self, Lock, Part, RunError, Share};

/// If a smaller share of a tensor's elements differs, the difference counts as one of single elements.
const FEW: f64 = 1e-3;

/// The inputs of a verification.
pub struct Request<'a> {
    /// The checkpoint to verify.
    pub model: &'a Checkpoint,
    /// Its folder, looked at before the checkpoint was opened.
    pub folder: &'a FolderListing,
    /// The plan of its recipe, or why there is none.
    pub plan: Result<&'a Plan, Refusal>,
    /// Where its inputs were looked for; `None` if the caller found them itself.
    pub inputs: Option<&'a Inputs>,
    /// Its lock, if it has one.
    pub lock: Option<&'a Lock>,
    /// Whether the plan is that of the lock's own recipe.
    pub recipe_of_lock: bool,
    /// How much is recomputed.
    pub coverage: Coverage,
    /// Whether values that are one ULP of their dtype off are accepted.
    pub allow_step: bool,
    /// The arithmetic to compare with.
    pub numerics: Numerics,
    /// The part of the plan to verify; `None` for all of it.
    pub part: Option<Part>,
    /// Number of worker threads.
    pub threads: usize,
    /// A folder for results that several documents of the recipe read.
    pub scratch: &'a Path,
}

impl<'a> Request<'a> {
    /// A request for a checkpoint that this plan has just written: compares every byte and accepts only equality.
    pub fn of_written(
        (folder, model): (&'a FolderListing, &'a Checkpoint),
        plan: &'a Plan,
        lock: Option<&'a Lock>,
        scratch: &'a Path,
    ) -> Self {
        Self {
            model: written(model, Some(plan), lock),
            folder,
            plan: Ok(plan),
            inputs: None,
            lock,
            recipe_of_lock: true,
            coverage: Coverage::Full,
            allow_step: false,
            numerics: Numerics::Weldment,
            part: None,
            threads: plan.settings.threads,
            scratch,
        }
    }
}

/// The checkpoint without weights that were carried along as files: files are judged as what they are. Assemblies of
/// experts carry modules and heads so.
fn written<'m>(model: &'m Checkpoint, plan: Option<&Plan>, lock: Option<&Lock>) -> &'m Checkpoint {
    let carried = |file: &String| {
        let sidecars = plan.into_iter().flat_map(|plan| &plan.sidecars);
        let mut sidecars = sidecars.map(|(_, sidecar)| &sidecar.name);
        let locked = lock.is_some_and(|lock| lock.outputs.files.contains_key(file));
        sidecars.any(|name| name == file) || locked
    };
    let parts = model.parts().iter().filter(|part| !part.prefix.is_empty());
    let mut files = parts.flat_map(|part| part.model.shards());
    match files.any(|shard| carried(&shard.file_name())) {
        true => model.alone().unwrap_or(model),
        false => model,
    }
}

/// The result of a verification.
#[derive(Debug)]
pub struct Verification {
    /// The findings, for people and programs.
    pub report: Report,
    /// What was proven, independent of any policy.
    pub proof: Proof,
}

/// Whether it is proven that a checkpoint is what its recipe makes of its inputs, byte for byte.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Proof {
    /// Proven: every element was compared, every tensor is exact or a copy, and nothing else is wrong.
    Exact,
    /// Not proven: without a lock, the intended inputs and options are unknown.
    NoLock,
    /// Not proven: something is wrong or was not compared.
    Open,
}

/// Verifies a checkpoint.
///
/// # Errors
/// The work was cancelled, or the machine failed. Anything wrong with the checkpoint or its inputs is a finding.
pub fn verify(request: &Request<'_>, observer: &dyn Observer) -> Result<Verification, RunError> {
    let mut report = Report::new(Command::Verify, request.model.label());
    let share = match (&request.plan, request.part) {
        (Ok(plan), Some(part)) => {
            report.say(
                "part",
                format!("{part}: nothing is said of the weights of other parts"),
            );
            report.details["part"] = part.to_string().into();
            Some(run::share(plan, part)?)
        }
        _ => None,
    };
    let share = share.as_ref();
    let intact = match request.lock {
        Some(lock) => Some(locked::outputs(
            request,
            lock,
            share,
            &mut report,
            observer,
        )?),
        None => None,
    };
    report.extend(no_lock(request.lock));
    let mut exact = false;
    match &request.plan {
        Ok(plan) => {
            report.checked = CHECKS.to_vec();
            let outcomes = recompute(
                request,
                plan,
                share,
                intact.as_deref(),
                &mut report,
                observer,
            )?;
            exact = outcomes.is_some_and(|outcomes| outcomes.are_exact());
        }
        Err(why) => {
            report.checked = match request.lock {
                Some(_) => checks::OF_LOCK.to_vec(),
                None => vec![&checks::NO_LOCK],
            };
            folder::judge(request, None, &BTreeSet::new(), &mut report);
            report.skipped.push(Skipped {
                check: &checks::REPLAY,
                why: in_one_line(why),
                needed: true,
            });
        }
    }
    report.extend(request.folder.changed(request.model));
    let proof = match request.lock {
        None => Proof::NoLock,
        Some(_) if exact && report.verdict() == Verdict::Passed => Proof::Exact,
        Some(_) => Proof::Open,
    };
    Ok(Verification { report, proof })
}

/// Starts the report on a checkpoint at `path` that is not recomputed, because only its signature was asked for. Also
/// returns its lock.
///
/// # Errors
/// Its lock cannot be read.
pub fn not_recomputed(label: &str, path: &Path) -> Result<(Report, Option<Lock>), CheckpointError> {
    let why = "it was not asked for; --recompute asks for it";
    let mut report = without_replay(label, why, false);
    report.checked.push(&checks::NO_LOCK);
    // A single file has no lock of its own.
    let lock = if path.is_dir() {
        Lock::read(path)?
    } else {
        None
    };
    report.findings.extend(no_lock(lock.as_ref()));
    Ok((report, lock))
}

/// The report on a checkpoint whose signature does not hold. Its bytes are untrusted and are not read further.
pub fn not_trusted(label: &str) -> Report {
    without_replay(label, "the signature does not hold", true)
}

fn without_replay(label: &str, why: &str, needed: bool) -> Report {
    let mut report = Report::new(Command::Verify, label);
    report.skipped.push(Skipped {
        check: &checks::REPLAY,
        why: why.to_owned(),
        needed,
    });
    report
}

fn no_lock(lock: Option<&Lock>) -> Option<Finding> {
    let place = Place::file(run::LOCK_FILE);
    let none = || Finding::new(&checks::NO_LOCK, place, "a lock", "none");
    lock.is_none().then(none)
}

/// Recomputes the checkpoint; returns `None` if the recipe has no result.
fn recompute<'a>(
    request: &Request<'_>,
    plan: &'a Plan,
    share: Option<&Share>,
    intact: Option<&[Option<bool>]>,
    report: &mut Report,
    observer: &dyn Observer,
) -> Result<Option<Outcomes<'a>>, RunError> {
    let model = request.model;
    if let Some(lock) = request.lock {
        let models = plan.stored_models();
        let given = run::locked_recipe(&plan.recipe.1, &models);
        let given = (!request.recipe_of_lock).then_some(given.as_str());
        report.extend(locked::inputs(lock, given, &models));
    }
    report.extend(inputs::own(&plan.stored_models(), model));
    report.extend(accounting(plan, model));
    let files = files::compare(plan, model, request.lock.is_some());
    report.extend(files.findings);
    folder::judge(request, Some(plan), &files.names, report);
    let there: Vec<There<'_>> = plan
        .tensors
        .iter()
        .map(|tensor| there(tensor, model))
        .collect();
    let comparison = Comparison::new(&there);
    let sample = match request.coverage {
        Coverage::Full => None,
        Coverage::Sample { blocks, seed } => {
            Some(move |tensor, count| sample::blocks(blocks, seed, tensor, count))
        }
    };
    let sample = sample.as_ref().map(|sample| sample as &run::Sample<'_>);
    let totals = match run::replay(plan, sample, share, request.scratch, &comparison, observer) {
        Ok(totals) => totals,
        Err(error) if error.is_users() => {
            report.add(Finding::new(
                &checks::REFUSED,
                Place::default(),
                "a result",
                error.to_string(),
            ));
            return Ok(None);
        }
        Err(error) => return Err(error),
    };
    let (survived, errors) = (comparison.survived(), comparison.errors());
    let mut differences = comparison.finish();
    let fits = numerics::fit(
        request,
        plan,
        &there,
        share,
        &mut differences,
        sample,
        observer,
    )?;
    let mut judged = Vec::with_capacity(plan.tensors.len());
    let tensors = plan.tensors.iter().zip(&there).zip(&differences);
    for (number, (((tensor, there), compared), fit)) in tensors.zip(&fits).enumerate() {
        if share.is_some_and(|share| !share.has(number)) {
            judged.push(Judged::of_another_part(tensor));
            continue;
        }
        let intact = model
            .find(&tensor.name)
            .and_then(|at| intact.and_then(|intact| intact[at]));
        let outcome = judge(request, plan, tensor, there, compared, fit, intact, report);
        let (compared, difference) = compared;
        judged.push(Judged {
            name: &tensor.name,
            outcome,
            fit: *fit,
            elements: tensor.elements(),
            compared: *compared,
            differing: difference.differing,
            steps: difference.steps,
        });
    }
    let outcomes = Outcomes { tensors: judged };
    if let Some(lock) = request.lock
        && outcomes.any(Outcome::Wrong)
    {
        let changed =
            locked::changed_tensors(lock, &plan.stored_models(), request.threads, observer)?;
        report.extend(changed);
    }
    report.extend(
        request
            .lock
            .and_then(|lock| locked::numerics(lock, &outcomes)),
    );
    if let Some(lock) = request.lock {
        match sample {
            None if share.is_none() => {
                report.extend(locked::update(lock, plan, &survived));
                report.extend(locked::quantization_error(lock, plan, &errors));
            }
            _ => report.skipped.extend(locked::update_not_told(lock)),
        }
    }
    report.skipped.extend(untold(plan, &outcomes));
    report.extend(numerics::finding(&outcomes));
    // Only a digest of every tensor tells of changes after the merge.
    let intact = intact.is_some_and(|intact| intact.iter().all(|same| *same == Some(true)));
    summarise(request, plan, &outcomes, totals.read, intact, report);
    Ok(Some(outcomes))
}

/// Records as skipped the tensors whose comparison tells nothing, if there are any.
fn untold(plan: &Plan, outcomes: &Outcomes<'_>) -> Option<Skipped> {
    let untold = outcomes.tensors.iter();
    let mut untold = untold.filter(|judged| judged.outcome == Outcome::NotTold);
    let first = untold.next()?;
    let why = match first.fit {
        Fit::Unknown(profile) => format!(
            "the arithmetic of {} in {} is not known",
            plan.method.name,
            profile.name()
        ),
        _ => "mergekit drew random masks that nothing records; no value is beyond what they can give, which proves \
              nothing"
            .to_owned(),
    };
    Some(Skipped {
        check: &checks::REPLAY,
        why: format!(
            "{} of {} tensors, `{}` first: {why}",
            1 + untold.count(),
            plan.tensors.len(),
            first.name
        ),
        needed: true,
    })
}

/// The checkpoint's tensor that corresponds to one of the plan.
fn there<'m>(tensor: &PlannedTensor, model: &'m Checkpoint) -> There<'m> {
    let size = (tensor.dtype.bitsize() / 8).max(1);
    let same = |entry: &&TensorEntry| entry.dtype == tensor.dtype && entry.shape == tensor.shape;
    let bytes = model
        .find(&tensor.name)
        .filter(|&at| model.tensors().get(at).as_ref().is_some_and(same))
        .and_then(|at| model.bytes(at));
    There {
        bytes,
        size,
        format: FloatType::from_dtype(tensor.dtype),
    }
}

/// Checks that the checkpoint has every tensor of the recipe, with the right dtype and shape, and no other.
fn accounting(plan: &Plan, model: &Checkpoint) -> Vec<Finding> {
    let mut findings = Vec::new();
    let text = |dtype: Dtype, shape: &[usize]| format!("{dtype:?} {shape:?}");
    for tensor in &plan.tensors {
        let Some(at) = model.find(&tensor.name) else {
            findings.push(Finding::new(
                &checks::MISSING,
                Place::tensor(&tensor.name, None),
                text(tensor.dtype, &tensor.shape),
                "none",
            ));
            continue;
        };
        let found = &model.tensors()[at];
        let check = if found.shape != tensor.shape {
            &checks::SHAPE
        } else if found.dtype != tensor.dtype {
            &checks::DTYPE
        } else {
            continue;
        };
        findings.push(Finding::new(
            check,
            Place::entry(model, found),
            text(tensor.dtype, &tensor.shape),
            text(found.dtype, &found.shape),
        ));
    }
    let planned: HashSet<&str> = plan
        .tensors
        .iter()
        .map(|tensor| tensor.name.as_str())
        .collect();
    for found in model.tensors() {
        if !planned.contains(found.name.as_str()) {
            findings.push(Finding::new(
                &checks::UNACCOUNTED,
                Place::entry(model, found),
                "no such tensor",
                text(found.dtype, &found.shape),
            ));
        }
    }
    findings
}

/// Judges the difference of a tensor, and returns the finding about it, if any.
#[expect(
    clippy::too_many_arguments,
    reason = "each is looked up by another key"
)]
fn judge(
    request: &Request<'_>,
    plan: &Plan,
    tensor: &PlannedTensor,
    there: &There<'_>,
    (compared, difference): &(u64, Difference),
    fit: &Fit,
    intact: Option<bool>,
    report: &mut Report,
) -> Outcome {
    let Some(at) = request
        .model
        .find(&tensor.name)
        .filter(|_| there.bytes.is_some())
    else {
        return Outcome::NotCompared;
    };
    if fit.tells_nothing(difference) {
        return Outcome::NotTold;
    }
    if difference.differing == 0 {
        return match tensor.operation {
            Operation::Copy | Operation::Constant(_) => Outcome::Copied,
            Operation::Compute { .. } | Operation::Scales => Outcome::Exact,
        };
    }
    let share = difference.differing as f64 / (*compared).max(1) as f64;
    let how_much = format!("{}{}", how_much(*compared, difference), fit.by());
    let place = Place::entry(request.model, &request.model.tensors()[at]);
    let changed_later = intact == Some(false);
    let within = difference.steps <= 1 || is_within_bound(plan, tensor, difference);
    if within && !changed_later {
        let mut finding = Finding::new(&checks::ROUNDING, place, "equal values", how_much);
        if request.allow_step {
            finding.severity = Severity::Note;
        }
        report.add(finding);
        return Outcome::WithinStep;
    }
    let finding = if share < FEW || changed_later {
        Finding::new(&checks::TAMPERED, place, "equal values", how_much)
    } else {
        let window = difference.window.as_ref();
        let cause = window
            .and_then(|(first, expected)| diagnose::cause(plan, tensor, there, *first, expected));
        match cause {
            Some(cause) => Finding::new(
                cause.check,
                place,
                cause.expected,
                format!("{} ({how_much})", cause.found),
            ),
            None => Finding::new(&checks::DIFFERS, place, "equal values", how_much),
        }
    };
    report.add(finding);
    Outcome::Wrong
}

/// How far elements of whole-matrix methods may be off, as a share of the largest: the last bits of their products depend
/// on the processor, and next to zero these are many ULPs.
const MATRIX_BOUND: f64 = 1.0 / (1 << 20) as f64;

/// Whether the tensor's last bits depend on the processor, and no more than these differ.
fn is_within_bound(plan: &Plan, tensor: &PlannedTensor, difference: &Difference) -> bool {
    // Scales are as exact as the values that they are made from.
    let cost = match tensor.operation {
        Operation::Scales => plan.cost,
        _ => tensor.cost(),
    };
    cost.matrix > 0 && difference.beyond <= MATRIX_BOUND * difference.largest
}

/// Describes how many elements differ, by how much, and where.
fn how_much(compared: u64, difference: &Difference) -> String {
    let Difference {
        differing,
        steps,
        places,
        ..
    } = difference;
    let steps = match *steps {
        u64::MAX => "(NaN, or no floats)".to_owned(),
        1 => "by one ULP".to_owned(),
        steps => format!("by up to {steps} ULPs"),
    };
    let listed: Vec<String> = places.iter().map(u64::to_string).collect();
    let more = if *differing > places.len() as u64 {
        ", ..."
    } else {
        ""
    };
    format!(
        "{differing} of {compared} elements differ {steps}, at {}{more}",
        listed.join(", ")
    )
}

fn summarise(
    request: &Request<'_>,
    plan: &Plan,
    outcomes: &Outcomes<'_>,
    read: u64,
    intact: bool,
    report: &mut Report,
) {
    report.say(
        "recipe",
        format!("{}, by {}", plan.recipe.0, plan.method.name),
    );
    report.say("tensors", outcomes.counts());
    report.say("numerics", numerics::summary(outcomes));
    let (compared, elements) = (outcomes.compared(), outcomes.elements());
    let share = 100.0 * compared as f64 / elements.max(1) as f64;
    report.say(
        "compared",
        format!(
            "{compared} of {elements} elements ({share:.1} %), {} of inputs read",
            ByteSize(read).display().si()
        ),
    );
    report.details["compared"] = compared.into();
    report.details["elements"] = elements.into();
    if let Coverage::Sample { blocks, seed } = request.coverage {
        // The tensor that the sample covers least.
        let longest = plan
            .tensors
            .iter()
            .map(|tensor| (tensor.elements() as usize).div_ceil(tensor.cost().block_len()));
        let least = longest.max().map_or(1.0, |count| {
            sample::found_for_sure(blocks.max(3).min(count), count)
        });
        report.say(
            "sample",
            format!("{blocks} blocks of each tensor, seed {seed}"),
        );
        let missed = match (compared == elements, intact) {
            (true, _) => "nothing: every element was compared".to_owned(),
            (false, intact) => format!(
                "a fault in less than {:.1} % of a tensor may be missed with a chance of over 1 %, one wrong element with \
                 {:.1} %{}",
                100.0 * least,
                100.0 - share,
                match intact {
                    true => "; but not what was changed after the merge: digests cover every byte",
                    false => "",
                }
            ),
        };
        report.say("missed", missed);
        report.details["sample"] = json!({"blocks": blocks, "seed": seed, "found_for_sure": least});
    }
    report.detail(outcomes.tensors.iter().map(Judged::details));
    if let Some(inputs) = request.inputs {
        let base = plan.base.map(|base| plan.models[base].label());
        inputs.report(&plan.stored_models(), base, report);
    }
}
