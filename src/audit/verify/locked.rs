//! Compares the lock with the checkpoint and its inputs.

use std::collections::{BTreeMap, HashSet};

use super::adapter::AdapterRequest;
use super::outcome::{Outcome, Outcomes};
use super::{Request, checks};
use crate::{CheckInfo, Finding, Place, Report, Skipped};
use checkpoint::Checkpoint;
use engine::Observer;
use numeric::{EncodingError, NUMERICS, Survival, product_instructions};
use plan::Plan;
use run::{self, Lock, LockedHub, LockedInput, QuantizationError, RunError, Share, UpdateKept};

/// Compares the checkpoint's tensors with the digests in the lock of what was written. Returns for each tensor whether
/// it is unchanged; `None` if the lock does not name it.
pub(super) fn outputs(
    request: &Request<'_>,
    lock: &Lock,
    share: Option<&Share>,
    report: &mut Report,
    observer: &dyn Observer,
) -> Result<Vec<Option<bool>>, RunError> {
    let model = request.model;
    let planned: Option<HashSet<&str>> = request.plan.as_ref().ok().map(|plan| {
        let tensors = plan.tensors.iter();
        tensors.map(|tensor| tensor.name.as_str()).collect()
    });
    // A tensor that the recipe does not make is found as such.
    let is_planned = |name: &str| {
        planned
            .as_ref()
            .is_none_or(|planned| planned.contains(name))
    };
    // Of a part, its tensors, and those that no part makes.
    let others: HashSet<&str> = match (share, &request.plan) {
        (Some(share), Ok(plan)) => {
            let tensors = plan.tensors.iter().enumerate();
            let others = tensors.filter(|(number, _)| !share.has(*number));
            others.map(|(_, tensor)| tensor.name.as_str()).collect()
        }
        _ => HashSet::new(),
    };
    let is_asked = |at: &usize| !others.contains(model.tensors()[*at].name.as_str());
    let asked: Vec<usize> = (0..model.tensors().len()).filter(is_asked).collect();
    let digests = run::digests(model, &asked, request.threads, observer)?;
    let mut intact = vec![None; model.tensors().len()];
    let mut lacking = Vec::new();
    for (&at, digest) in asked.iter().zip(digests) {
        let tensor = &model.tensors()[at];
        let Some(written) = lock.outputs.tensors.get(&tensor.name) else {
            if is_planned(&tensor.name) {
                lacking.push(tensor.name.as_str());
            }
            continue;
        };
        let found = digest.map_or("bytes that lie apart".to_owned(), |digest| {
            digest.to_string()
        });
        let same = *written == found;
        if !same {
            let expected = format!("BLAKE3 {written}");
            let place = Place::entry(model, tensor);
            report.add(Finding::new(&checks::LOCK_OUTPUT, place, expected, found));
        }
        intact[at] = Some(same);
    }
    if let Some(first) = lacking.first() {
        report.add(Finding::new(
            &checks::LOCK_INCOMPLETE,
            Place::field(run::LOCK_FILE, "outputs.tensors"),
            "a digest of every tensor",
            format!("none of {} tensors, `{first}` first", lacking.len()),
        ));
    }
    // What the recipe makes and is not there is found too, if there is a plan.
    let gone = lock.outputs.tensors.keys().filter(|name| {
        let known = planned
            .as_ref()
            .is_some_and(|planned| planned.contains(name.as_str()));
        !known && model.find(name).is_none()
    });
    report.extend(gone.map(|name| {
        let place = Place::tensor(name, None);
        Finding::new(
            &checks::LOCK_OUTPUT,
            place,
            "the tensor that was written",
            "none",
        )
    }));
    let same = intact.iter().filter(|same| **same == Some(true)).count();
    report.say(
        "lock",
        format!("{same} of {} tensors are as they were written", asked.len()),
    );
    Ok(intact)
}

/// Compares an adapter's tensors, and what it was made from, with the lock. Returns whether every tensor is as it was
/// written.
pub(super) fn adapter(
    request: &AdapterRequest<'_>,
    lock: &Lock,
    report: &mut Report,
    observer: &dyn Observer,
) -> Result<bool, RunError> {
    let weights = request.weights;
    let digests = run::all_digests(weights, request.threads, observer)?;
    let mut same = 0;
    for (tensor, digest) in weights.tensors().iter().zip(digests) {
        let found = digest.map_or_else(String::new, |digest| digest.to_string());
        let place = Place::entry(weights, tensor);
        match lock.outputs.tensors.get(&tensor.name) {
            Some(written) if *written == found => same += 1,
            Some(written) => {
                let expected = format!("BLAKE3 {written}");
                report.add(Finding::new(&checks::LOCK_OUTPUT, place, expected, found));
            }
            None => report.add(Finding::new(
                &checks::LOCK_INCOMPLETE,
                Place::field(run::LOCK_FILE, "outputs.tensors"),
                "a digest of every tensor",
                format!("none of `{}`", tensor.name),
            )),
        }
    }
    let written = lock.outputs.tensors.keys();
    let gone = written.filter(|name| weights.find(name).is_none());
    report.extend(gone.map(|name| {
        let place = Place::tensor(name, None);
        let expected = "the tensor that was written";
        Finding::new(&checks::LOCK_OUTPUT, place, expected, "none")
    }));
    let count = weights.tensors().len();
    report.say(
        "lock",
        format!("{same} of {count} tensors are as they were written"),
    );
    report.extend(inputs(lock, request.recipe.as_deref(), request.models));
    Ok(same == count && same == lock.outputs.tensors.len())
}

/// The finding that another version of the arithmetic made the checkpoint, if that can explain why it is not equal.
pub(super) fn numerics(lock: &Lock, outcomes: &Outcomes<'_>) -> Option<Finding> {
    let differs = outcomes.any(Outcome::Wrong) || outcomes.any(Outcome::WithinStep);
    match differs {
        true => other_arithmetic(lock),
        false => None,
    }
}

/// The finding that the lock names another version of the arithmetic, or other instructions, than are here.
pub(super) fn other_arithmetic(lock: &Lock) -> Option<Finding> {
    let finding = |field, expected: String, found: String| {
        let place = Place::field(run::LOCK_FILE, field);
        Some(Finding::new(&checks::NUMERICS, place, expected, found))
    };
    let here = product_instructions();
    match &lock.tool.instructions {
        _ if lock.tool.numerics != NUMERICS => {
            let (expected, found) = (NUMERICS.to_string(), lock.tool.numerics.to_string());
            finding("tool.numerics", expected, found)
        }
        Some(there) if there != here => finding("tool.instructions", here.into(), there.clone()),
        _ => None,
    }
}

/// Compares how much of the update survives the rounding with what the lock says, after all of it was computed.
///
/// Another version of the arithmetic may round otherwise, and is not held to the number.
pub(super) fn update(
    lock: &Lock,
    plan: &Plan,
    survived: &BTreeMap<usize, Survival>,
) -> Option<Finding> {
    let stated = lock.outputs.update_kept_percent?;
    let measured = UpdateKept::new(plan, survived).map(|update| update.percent());
    let same = measured == Some(stated) || lock.tool.numerics != NUMERICS;
    (!same).then(|| {
        let place = Place::field(run::LOCK_FILE, UPDATE);
        let expected = measured.map_or("no update".to_owned(), |kept| format!("{kept} %"));
        Finding::new(&checks::UPDATE_KEPT, place, expected, format!("{stated} %"))
    })
}

/// Compares how far encoded weights are from the computed ones with what the lock says, after all of them were computed.
pub(super) fn quantization_error(
    lock: &Lock,
    plan: &Plan,
    errors: &BTreeMap<usize, EncodingError>,
) -> Option<Finding> {
    let stated = lock.outputs.quantization_error_percent?;
    let measured = QuantizationError::new(plan, errors).map(|error| error.percent());
    let same = measured == Some(stated) || lock.tool.numerics != NUMERICS;
    (!same).then(|| {
        let place = Place::field(run::LOCK_FILE, "outputs.quantization_error_percent");
        let expected =
            measured.map_or("no encoded weight".to_owned(), |error| format!("{error} %"));
        Finding::new(
            &checks::QUANTIZATION_ERROR,
            place,
            expected,
            format!("{stated} %"),
        )
    })
}

/// Says that a sample does not tell how much of the update survives, where the lock states it.
pub(super) fn update_not_told(lock: &Lock) -> Option<Skipped> {
    lock.outputs.update_kept_percent?;
    Some(Skipped {
        check: &checks::UPDATE_KEPT,
        why: format!("`{UPDATE}` of the lock is measured again with --full only, of the whole"),
        needed: false,
    })
}

/// The field of the lock that says how much of the update survives.
const UPDATE: &str = "outputs.update_kept_percent";

/// Compares the recipe and the inputs with those of the lock. `recipe` is the text that was given, if it is not the
/// lock's own.
pub(super) fn inputs(lock: &Lock, recipe: Option<&str>, models: &[&Checkpoint]) -> Vec<Finding> {
    let mut findings = Vec::new();
    if recipe.is_some_and(|given| lock.recipe.trim_end() != given.trim_end()) {
        findings.push(Finding::new(
            &checks::LOCK_RECIPE,
            Place::field(run::LOCK_FILE, "recipe"),
            "the recipe that was given",
            "another",
        ));
    }
    for (model, now) in models.iter().zip(run::locked_inputs(models)) {
        let Some(locked) = lock.inputs.iter().find(|locked| locked.model == now.model) else {
            // Another recipe may name other models.
            findings.extend(recipe.is_none().then(|| {
                let place = Place::field(run::LOCK_FILE, "inputs");
                let expected = format!("an entry for {}", now.model);
                Finding::new(&checks::LOCK_INCOMPLETE, place, expected, "none")
            }));
            continue;
        };
        findings.extend(commits(model, locked));
        compare(model.label(), &now.files, locked, &mut findings);
    }
    findings
}

/// The input tensors that have changed since the lock was written, where the lock has their digests.
pub(super) fn changed_tensors(
    lock: &Lock,
    models: &[&Checkpoint],
    threads: usize,
    observer: &dyn Observer,
) -> Result<Vec<Finding>, RunError> {
    let mut findings = Vec::new();
    for (model, now) in models.iter().zip(run::locked_inputs(models)) {
        let locked = lock.inputs.iter().find(|locked| locked.model == now.model);
        let Some(tensors) = locked.and_then(|locked| locked.tensors.as_ref()) else {
            continue;
        };
        let model = model.as_stored();
        let digests = run::all_digests(&model, threads, observer)?;
        for (tensor, digest) in model.tensors().iter().zip(digests) {
            let before = tensors.get(&tensor.name);
            if let (Some(before), Some(now)) = (before, digest)
                && *before != now.to_string()
            {
                let mut place = Place::entry(&model, tensor);
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

/// Compares the commits of a model and its adapters with those of the lock, if both came from the Hub's cache.
fn commits(model: &Checkpoint, locked: &LockedInput) -> Vec<Finding> {
    let found = model.location().parts().map(run::locked_hub);
    let further = locked.further_adapter_hubs.iter();
    let expected = [&locked.hub, &locked.adapter_hub]
        .into_iter()
        .chain(further);
    let finding = |(found, expected): (Option<LockedHub>, &Option<LockedHub>)| {
        let (found, expected) = (found?, expected.as_ref()?);
        let text = |hub: &LockedHub| format!("{}@{}", hub.repo, hub.commit);
        let place = || Place::file(model.label());
        (found != *expected)
            .then(|| Finding::new(&checks::INPUT_COMMIT, place(), text(expected), text(&found)))
    };
    found.zip(expected).filter_map(finding).collect()
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
        let digests = (expected.claimed_sha256.as_ref()).zip(found.claimed_sha256.as_ref());
        if let Some((expected, found)) = digests.filter(|(expected, found)| expected != found) {
            let expected = format!("SHA-256 {expected}");
            differs(&checks::INPUT_SHA256, expected, found.clone());
        } else if found.bytes != expected.bytes {
            differs(
                &checks::INPUT_CHANGED,
                format!("{} bytes", expected.bytes),
                format!("{} bytes", found.bytes),
            );
        } else if expected.header.is_none() && found.header.is_some() {
            let expected = "the digest of its header".to_owned();
            differs(&checks::LOCK_INCOMPLETE, expected, "none".to_owned());
        } else if found.header != expected.header {
            differs(
                &checks::INPUT_CHANGED,
                "the header of the lock".to_owned(),
                "another header".to_owned(),
            );
        } else if let (Some(expected), Some(found)) = (&expected.etag, &found.etag)
            && expected != found
        {
            differs(
                &checks::INPUT_ETAG,
                format!("ETag {expected}"),
                found.clone(),
            );
        }
    }
    for (name, found) in files
        .iter()
        .filter(|(name, _)| !locked.files.contains_key(*name))
    {
        findings.push(Finding::new(
            &checks::INPUT_CHANGED,
            Place::file(format!("{label}: {name}")),
            "no such file",
            format!("{} bytes", found.bytes),
        ));
    }
}
