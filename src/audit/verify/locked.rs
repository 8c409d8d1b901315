//! Compares the lock with the checkpoint and its inputs.

use std::collections::BTreeMap;

use super::{Request, checks};
use crate::{CheckInfo, Finding, Place, Report};
use checkpoint::Checkpoint;
use engine::Observer;
use numeric::NUMERICS;
use plan::Plan;
use run::{self, Lock, LockedHub, LockedInput, RunError, files_of};

/// Compares the checkpoint's tensors with the digests in the lock of what was written. Returns for each tensor whether
/// it is unchanged, if the lock has its digest.
pub(super) fn outputs(
    request: &Request<'_>,
    lock: &Lock,
    report: &mut Report,
    observer: &dyn Observer,
) -> Result<Vec<Option<bool>>, RunError> {
    let model = request.model;
    let digests = run::all_digests(model, request.threads, observer)?;
    let mut intact = Vec::with_capacity(digests.len());
    for (tensor, digest) in model.tensors().iter().zip(digests) {
        let written = lock.outputs.tensors.get(&tensor.name);
        let same = written
            .zip(digest)
            .map(|(written, digest)| *written == digest.to_string());
        if let (Some(false), Some(written), Some(digest)) = (same, written, digest) {
            report.add(Finding::new(
                &checks::LOCK_OUTPUT,
                Place::of(model, tensor),
                format!("BLAKE3 {written}"),
                digest.to_string(),
            ));
        }
        intact.push(same);
    }
    let written = lock.outputs.tensors.len();
    let same = intact.iter().filter(|same| **same == Some(true)).count();
    report.say(
        "lock",
        format!("{same} of {written} tensors are as they were written"),
    );
    if lock.tool.numerics != NUMERICS {
        report.add(Finding::new(
            &checks::NUMERICS,
            Place::field(run::LOCK_FILE, "tool.numerics"),
            NUMERICS.to_string(),
            lock.tool.numerics.to_string(),
        ));
    }
    Ok(intact)
}

/// Compares the recipe and the inputs with those of the lock.
pub(super) fn inputs(lock: &Lock, plan: &Plan, recipe_of_lock: bool) -> Vec<Finding> {
    let mut findings = Vec::new();
    let given = run::locked_recipe(plan);
    if !recipe_of_lock && lock.recipe.trim_end() != given.trim_end() {
        findings.push(Finding::new(
            &checks::LOCK_RECIPE,
            Place::field(run::LOCK_FILE, "recipe"),
            "the recipe that was given",
            "another",
        ));
    }
    let models = plan.stored_models();
    for (model, locked) in models.iter().zip(&lock.inputs) {
        findings.extend(commits(model, locked));
        compare(model.label(), &files_of(model), locked, &mut findings);
    }
    findings
}

/// The input tensors that have changed since the lock was written, where the lock has their digests.
pub(super) fn changed_tensors(
    lock: &Lock,
    plan: &Plan,
    threads: usize,
    observer: &dyn Observer,
) -> Result<Vec<Finding>, RunError> {
    let mut findings = Vec::new();
    for (model, locked) in plan.stored_models().iter().zip(&lock.inputs) {
        let Some(tensors) = &locked.tensors else {
            continue;
        };
        let digests = run::all_digests(model, threads, observer)?;
        for (tensor, digest) in model.tensors().iter().zip(digests) {
            let before = tensors.get(&tensor.name);
            if let (Some(before), Some(now)) = (before, digest)
                && *before != now.to_string()
            {
                let mut place = Place::of(model, tensor);
                place.file = place.file.map(|file| format!("{}: {file}", model.label()));
                findings.push(Finding::new(
                    &checks::INPUT_CHANGED,
                    place,
                    format!("BLAKE3 {before}"),
                    now.to_string(),
                ));
            }
        }
    }
    Ok(findings)
}

/// Compares the commits of a model and its adapter with those of the lock, if both came from the Hub's cache.
fn commits(model: &Checkpoint, locked: &LockedInput) -> Vec<Finding> {
    let location = model.location();
    let adapter = location.adapter.as_deref();
    let pairs = [
        (run::locked_hub(location), &locked.hub),
        (adapter.and_then(run::locked_hub), &locked.adapter_hub),
    ];
    let finding = |(found, expected): (Option<LockedHub>, &Option<LockedHub>)| {
        let (found, expected) = (found?, expected.as_ref()?);
        let text = |hub: &LockedHub| format!("{}@{}", hub.repo, hub.commit);
        let place = || Place::file(model.label());
        (found != *expected)
            .then(|| Finding::new(&checks::INPUT_COMMIT, place(), text(expected), text(&found)))
    };
    pairs.into_iter().filter_map(finding).collect()
}

fn compare(
    label: &str,
    files: &BTreeMap<String, run::LockedFile>,
    locked: &LockedInput,
    findings: &mut Vec<Finding>,
) {
    for (name, expected) in &locked.files {
        let place = Place::file(format!("{label}: {name}"));
        let mut differs = |check: &'static CheckInfo, expected: String, found: String| {
            findings.push(Finding::new(check, place.clone(), expected, found));
        };
        let Some(found) = files.get(name) else {
            differs(
                &checks::INPUT_CHANGED,
                format!("{} bytes", expected.bytes),
                "no such file".to_owned(),
            );
            continue;
        };
        let digests = expected.sha256.as_ref().zip(found.sha256.as_ref());
        if let Some((expected, found)) = digests.filter(|(expected, found)| expected != found) {
            let expected = format!("SHA-256 {expected}");
            differs(&checks::INPUT_SHA256, expected, found.clone());
        } else if found.bytes != expected.bytes {
            differs(
                &checks::INPUT_CHANGED,
                format!("{} bytes", expected.bytes),
                format!("{} bytes", found.bytes),
            );
        } else if found.header != expected.header {
            differs(
                &checks::INPUT_CHANGED,
                "the header of the lock".to_owned(),
                "another header".to_owned(),
            );
        }
    }
}
