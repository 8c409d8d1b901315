//! What a run is about to write: the checks that need no values, made before the values are computed.

use std::path::Path;

use super::parts::each_part;
use super::{beside, config, container, safety, structure, tokenizer};
use crate::formats::clean::clean;
use crate::{Command, Finding, Report, Severity};
use checkpoint::{Checkpoint, CheckpointError, Location, Survey};
use errors::Refusal;

/// Checks files, pickles, index, config, structure and tokenizer of a folder that is complete but for the values of its tensors.
///
/// # Errors
/// The findings that are errors, in one message. It names the inputs of the plan that have the same.
pub fn check_written(folder: &Path, inputs: &[&Checkpoint]) -> Result<(), Refusal> {
    let errors = errors_of(&Location::local(folder)).map_err(|error| Refusal::from(&error))?;
    let Some(first) = errors.first() else {
        return Ok(());
    };
    let place = match &first.place.file {
        Some(file) if first.place.tensor.is_some() => format!("{file}: {}", first.place),
        _ => first.place.to_string(),
    };
    let mut message = format!(
        "the output would not pass `weld check`: {} ({}): expected {}, found {}",
        clean(&place),
        first.check.id,
        clean(&first.expected),
        clean(&first.found)
    );
    if errors.len() > 1 {
        message.push_str(&format!("; and {} more", errors.len() - 1));
    }
    let remedy = first.remedy();
    let same = inputs_with(first, inputs);
    if same.is_empty() {
        let hint = format!("{remedy}; --no-check writes it as it is");
        return Err(Refusal::new(message).with_hint(hint));
    }
    let names = same.join("` and `");
    let has = if same.len() > 1 { "have" } else { "has" };
    message.push_str(&format!("; `{names}` {has} the same error"));
    let hint = format!("mend `{names}` ({remedy}); --no-check writes the output as it is");
    Err(Refusal::new(message).with_hint(hint))
}

/// The errors that are found without a value.
fn errors_of(location: &Location) -> Result<Vec<Finding>, CheckpointError> {
    let mut survey = Survey::open("the output", location)?;
    let mut problems = survey.problems.iter();
    if let Some(at) = problems.position(container::is_of_the_system) {
        return Err(survey.problems.swap_remove(at));
    }
    let mut report = Report::new(Command::Check, "the output");
    container::check_container(&survey, location, &mut report);
    report.extend(config::malformed(&survey, location));
    safety::check_safety(location, &mut report)?;
    if let Some(model) = &survey.checkpoint {
        if let Some(alone) = model.alone() {
            tokenizer::check_tokenizer(alone, &mut report);
        }
        config::check_config(&survey, model, &mut report);
        beside::check_beside(model, &mut report);
        if survey.quantised.is_none() || survey.quantised_by_config_only {
            each_part(model, &mut report, |part, report| {
                structure::check_structure(&survey, part, false, report);
            });
        }
    }
    let mut findings = report.findings;
    findings.retain(|finding| finding.severity == Severity::Error);
    Ok(findings)
}

/// The inputs that have the same error as the output.
fn inputs_with<'p>(error: &Finding, inputs: &[&'p Checkpoint]) -> Vec<&'p str> {
    let same = |found: &Finding| {
        let (one, other) = (&found.place, &error.place);
        // Tensors lie in other files there.
        let file = one.file == other.file || one.tensor.is_some();
        found.check.id == error.check.id
            && file
            && (&one.tensor, &one.field) == (&other.tensor, &other.field)
    };
    let has = |model: &&Checkpoint| {
        let errors = errors_of(model.location());
        errors.is_ok_and(|errors| errors.iter().any(same))
    };
    let models = inputs.iter().copied().filter(has);
    models.map(Checkpoint::label).collect()
}
