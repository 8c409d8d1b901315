//! Checks that the inputs of a merge are among those that a project allows.

use super::checks;
use super::short;
use crate::policy::ProvenancePolicy;
use crate::{Finding, Place, Report, Skipped};
use run::{LOCK_FILE, LockedHub, LockedInput};

/// Checks inputs against a policy, if it restricts them. `None` means that the inputs are unknown.
///
/// The name of an input from the Hub's cache is its repository and commit; of any other, its name in the recipe. An
/// adapter counts as an input.
pub fn check_inputs(
    policy: &ProvenancePolicy,
    inputs: Option<&[LockedInput]>,
    report: &mut Report,
) {
    if policy.allows_all() {
        return;
    }
    let Some(inputs) = inputs else {
        report.skipped.push(Skipped {
            check: &checks::INPUT,
            why: "there is no lock, and nothing was recomputed, so the inputs are not known"
                .to_owned(),
            needed: true,
        });
        return;
    };
    report.checked.push(&checks::INPUT);
    for input in inputs {
        let parts = input.parts().into_iter();
        let mut parts: Vec<_> = parts.map(|(part, hub)| (part.to_string(), hub)).collect();
        if parts.is_empty() {
            parts.push((input.model.clone(), input.hub.as_ref()));
        }
        for (name, hub) in &parts {
            let names = names(name, *hub);
            if !names.iter().any(|name| policy.allows(name)) {
                report.findings.push(Finding::new(
                    &checks::INPUT,
                    Place::field(LOCK_FILE, "inputs"),
                    "an input that the policy allows",
                    short(names.last().map_or(name, String::as_str)),
                ));
            }
        }
    }
}

/// The names of an input that a policy may use.
fn names(name: &str, hub: Option<&LockedHub>) -> Vec<String> {
    match hub {
        Some(hub) => vec![hub.repo.clone(), format!("{}@{}", hub.repo, hub.commit)],
        None => vec![name.to_owned()],
    }
}
