//! `weld check`: whether one checkpoint is right, by itself.
//!
//! A broken part is a finding. Everything else is still checked.

mod beside;
pub(super) mod config;
pub(super) mod container;
pub(super) mod lock;
pub mod mutate;
mod parts;
pub(super) mod runtime;
pub(super) mod safety;
pub(super) mod structure;
pub(super) mod tokenizer;
pub(super) mod uneven;
pub(super) mod values;
mod written;

use std::borrow::Cow;

use super::{CheckInfo, Command, Report, Skipped};
use checkpoint::{CheckpointError, Location, Survey, TensorEntry};
use engine::Observer;
use errors::{About, Hint};
use parts::each_part;
use run::RunError;
pub use runtime::Runtimes;
pub use written::check_written;

/// The kinds of findings about one checkpoint, in the order in which they are checked.
pub(super) static CHECKED: &[&[&CheckInfo]] = &[
    container::CHECKS,
    config::CHECKS,
    structure::CHECKS,
    values::CHECKS,
    tokenizer::CHECKS,
    safety::CHECKS,
    lock::CHECKS,
];

/// Why a checkpoint could not be checked.
#[derive(Debug, thiserror::Error)]
pub enum CheckError {
    /// The system does not let a file be read.
    #[error(transparent)]
    Unreadable(#[from] CheckpointError),
    /// The values could not be read completely.
    #[error(transparent)]
    Run(#[from] RunError),
}

impl Hint for CheckError {
    fn hint(&self) -> Option<Cow<'_, str>> {
        match self {
            Self::Unreadable(source) => source.hint(),
            Self::Run(source) => source.hint(),
        }
    }

    fn about(&self) -> About {
        match self {
            Self::Unreadable(source) => source.about(),
            Self::Run(source) => source.about(),
        }
    }
}

/// Checks a located model with the given number of threads. The report calls it `label`.
///
/// # Errors
/// The system does not let the model be read. Whatever is wrong with the checkpoint itself is a finding.
pub fn check(
    label: &str,
    location: &Location,
    survey: Survey,
    threads: usize,
    observer: &dyn Observer,
) -> Result<Report, CheckError> {
    let mut survey = survey;
    let mut problems = survey.problems.iter();
    if let Some(at) = problems.position(container::is_of_the_system) {
        return Err(survey.problems.swap_remove(at).into());
    }
    let mut report = Report::new(Command::Check, label);
    container::check_container(&survey, location, &mut report);
    report.extend(config::malformed(&survey, location));
    report.checked.extend(container::CHECKS);
    safety::check_safety(location, &mut report)?;
    report.checked.extend(safety::CHECKS);
    let Some(model) = &survey.checkpoint else {
        skip(&mut report, config::CHECKS, "no tensor could be read");
        skip(&mut report, structure::CHECKS, "no tensor could be read");
        skip(&mut report, values::CHECKS, "no tensor could be read");
        skip(&mut report, tokenizer::CHECKS, "no tensor could be read");
        return Ok(report);
    };
    let tensors = model.tensors();
    report.say("tensors", tensors.len().to_string());
    let parameters: u64 = tensors.iter().map(TensorEntry::elements).sum();
    report.say("parameters", parameters.to_string());
    if let Some(alone) = model.alone() {
        tokenizer::check_tokenizer(alone, &mut report);
        report.checked.extend(tokenizer::CHECKS);
    }
    config::check_config(&survey, model, &mut report);
    beside::check_beside(model, &mut report);
    report.checked.extend(config::CHECKS);
    let misfit = |problem: &CheckpointError| matches!(problem, CheckpointError::Codes { .. });
    let unknown = survey.quantised.is_some() && !survey.quantised_by_config_only;
    if unknown || survey.problems.iter().any(misfit) {
        let why = "the weights are quantised and cannot be decoded, so that shapes and values are not those of the architecture";
        skip(&mut report, structure::CHECKS, why);
        skip(&mut report, values::CHECKS, why);
        return Ok(report);
    }
    each_part(model, &mut report, |part, report| {
        structure::check_structure(&survey, part, true, report);
    });
    report.checked.extend(structure::CHECKS);
    let digests = values::check_values(model, threads, observer, &mut report)?;
    report.checked.extend(values::CHECKS);
    // The lock has what is stored: of quantised weights, codes and scales.
    let stored = model.as_stored();
    match stored.tensors().len() == tensors.len() {
        true => lock::check_lock(model, &digests, &mut report),
        false => {
            let digests = run::all_digests(&stored, threads, observer)?;
            lock::check_lock(&stored, &digests, &mut report);
        }
    }
    Ok(report)
}

/// Records that checks were skipped which a verdict needs.
fn skip(report: &mut Report, checks: &[&'static CheckInfo], why: &str) {
    report.skipped.extend(checks.iter().map(|check| Skipped {
        check,
        why: why.to_owned(),
        needed: true,
    }));
}
