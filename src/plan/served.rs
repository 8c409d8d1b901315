//! What a plan makes of its models that runtimes would read otherwise than it is meant, where the models were read right.

use architecture::{Misreading, Outcome, Runtime, Served, Topic};
use checkpoint::{Checkpoint, ModelConfig};

use super::Plan;

/// Adds a note for each version of a runtime that reads the output otherwise, or does not load it, though it does not
/// fail so with the model that the config is from.
pub(super) fn note_runtimes(plan: &mut Plan) {
    let donor = origin(plan);
    let (Some(before), Some(config)) = (donor.config().map(ModelConfig::value), &plan.config)
    else {
        return;
    };
    let names = donor.tensors().iter();
    let donor = Served {
        config: before,
        names: names.map(|tensor| tensor.name.as_str()).collect(),
        is_zero: None,
    };
    let names = plan.tensors.iter();
    let output = Served {
        config,
        names: names.map(|tensor| tensor.name.as_str()).collect(),
        is_zero: None,
    };
    let notes: Vec<String> = Runtime::all()
        .filter_map(|runtime| note(runtime, &donor, &output))
        .collect();
    plan.notes.extend(notes);
}

/// The stored model that the config is from, through the results of other documents.
fn origin(plan: &Plan) -> &Checkpoint {
    let donor = &plan.models[plan.donor];
    match plan.results.get(&plan.donor) {
        Some(result) => origin(&result.plan),
        None => donor,
    }
}

fn note(runtime: &Runtime, donor: &Served<'_>, output: &Served<'_>) -> Option<String> {
    let before = runtime.misreadings(donor);
    if before.iter().any(|found| found.topic == Topic::Family) {
        return None;
    }
    let is_new = |found: &Misreading| {
        let same =
            |other: &Misreading| (other.topic, other.outcome) == (found.topic, found.outcome);
        !before.iter().any(same)
    };
    let made: Vec<Misreading> = runtime
        .misreadings(output)
        .into_iter()
        .filter(is_new)
        .collect();
    let any = |outcome| made.iter().any(|found| found.outcome == outcome);
    if made.is_empty() {
        return None;
    }
    let verdict = if any(Outcome::Fails) {
        "does not load the output"
    } else if any(Outcome::Silent) {
        "computes something else than the output means, without a word"
    } else {
        "does not take all of the output as it is meant"
    };
    let items: Vec<String> = made.iter().map(item).collect();
    Some(format!(
        "{} {verdict}: {}",
        runtime.version,
        items.join("; ")
    ))
}

fn item(found: &Misreading) -> String {
    match found.topic {
        Topic::Family => format!("it {}", found.does),
        _ => format!("{}, and it {}", found.means, found.does),
    }
}
