//! What a project requires of its checkpoints: `policy.toml`.
//!
//! Reading is strict: an unknown key, check or value is an error that names its line. A policy that is misread would be
//! worse than none.

mod read;
#[cfg(test)]
mod tests;

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use checkpoint::Glob;
use errors::Hint;

use super::report::{CheckInfo, PolicyChange, Report, Severity, Skipped};

/// A policy that has been read and validated.
#[derive(Debug, Clone, Default)]
pub struct Policy {
    /// Severities by check id; `None` turns the check off.
    severities: BTreeMap<&'static str, Option<Severity>>,
    /// The lowest severity that fails a report; by default, an error.
    fail_on: Option<Severity>,
    /// The differences that `weld diff` accepts.
    pub diff: DiffPolicy,
    /// Whether `weld verify` accepts values that are one rounding off; `None` if the policy does not say.
    pub allow_step: Option<bool>,
    /// Who must have signed or attested a checkpoint, and which inputs are allowed.
    pub provenance: ProvenancePolicy,
    /// How much worse than a baseline `weld eval` may find a model.
    pub eval: EvalPolicy,
}

/// How much worse than a baseline a model may be: accuracy lost, or of texts nats a token more.
#[derive(Debug, Clone, Default)]
pub struct EvalPolicy {
    /// The bound for all tasks.
    pub all: Option<f64>,
    /// Whether choices are compared by log-likelihoods that are divided by the length of each.
    pub normalised: Option<bool>,
    /// Bounds for tasks that match a pattern, in the order of the file.
    tasks: Vec<(Glob, f64)>,
}

impl EvalPolicy {
    /// The bound of a task. If several patterns match, the later one takes precedence.
    pub fn max_drop(&self, task: &str) -> Option<f64> {
        let mut matching = self.tasks.iter().rev();
        let own = matching.find(|(pattern, _)| pattern.is_match(task));
        own.map(|(_, bound)| *bound).or(self.all)
    }

    /// Whether there is no bound.
    pub fn is_empty(&self) -> bool {
        self.all.is_none() && self.tasks.is_empty()
    }
}

/// Who must have signed or attested a checkpoint, and which inputs are allowed.
#[derive(Debug, Clone, Default)]
pub struct ProvenancePolicy {
    /// The public key of the required signer.
    pub signed_by: Option<PathBuf>,
    /// The public key of the required attester.
    pub attested_by: Option<PathBuf>,
    /// Patterns of allowed inputs; `None` allows all.
    inputs: Option<Vec<Glob>>,
}

impl ProvenancePolicy {
    /// Whether all inputs are allowed.
    pub fn allows_all(&self) -> bool {
        self.inputs.is_none()
    }

    /// Whether an input with this name is allowed.
    pub fn allows(&self, name: &str) -> bool {
        let Some(patterns) = &self.inputs else {
            return true;
        };
        patterns.iter().any(|pattern| pattern.is_match(name))
    }
}

/// How much two checkpoints may differ.
#[derive(Debug, Clone, Default)]
pub struct DiffPolicy {
    /// Thresholds for all tensors.
    pub all: Thresholds,
    /// Thresholds for roles that match a pattern, in the order of the file.
    roles: Vec<(Glob, Thresholds)>,
}

/// How much two tensors may differ. `None` sets no limit.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Thresholds {
    /// The largest L2 norm of the difference, relative to that of the first tensor.
    pub max_relative_l2: Option<f64>,
    /// The smallest cosine of the angle between the tensors.
    pub min_cosine: Option<f64>,
    /// The largest distance between two values, in ULPs of the dtype.
    pub max_steps: Option<u64>,
}

impl Thresholds {
    /// Fills in thresholds that are not set from `other`.
    fn or(self, other: Thresholds) -> Thresholds {
        Thresholds {
            max_relative_l2: self.max_relative_l2.or(other.max_relative_l2),
            min_cosine: self.min_cosine.or(other.min_cosine),
            max_steps: self.max_steps.or(other.max_steps),
        }
    }
}

impl DiffPolicy {
    /// The thresholds for a role. If several patterns match, the later one takes precedence.
    pub fn of(&self, role: &str) -> Thresholds {
        let matching = self
            .roles
            .iter()
            .filter(|(pattern, _)| pattern.is_match(role));
        matching.fold(self.all, |before, (_, own)| own.or(before))
    }

    /// Whether no threshold is set.
    pub fn is_empty(&self) -> bool {
        self.all == Thresholds::default() && self.roles.is_empty()
    }
}

/// Why a policy cannot be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("line {line}: {message}")]
pub struct PolicyError {
    /// Line number, starting at 1.
    pub line: usize,
    /// The problem.
    pub message: String,
    /// A remedy.
    pub hint: Option<String>,
}

impl Hint for PolicyError {
    fn hint(&self) -> Option<Cow<'_, str>> {
        self.hint.as_deref().map(Cow::Borrowed)
    }
}

impl Policy {
    /// Reads a policy.
    ///
    /// # Errors
    /// The text is not TOML, or has an unknown key, check or value.
    pub fn parse(text: &str) -> Result<Policy, PolicyError> {
        read::policy(text)
    }

    /// Makes relative paths start from `folder`, where the policy is.
    pub fn in_folder(&mut self, folder: &Path) {
        let provenance = &mut self.provenance;
        let keys = [&mut provenance.signed_by, &mut provenance.attested_by];
        for key in keys.into_iter().flatten() {
            *key = folder.join(&key);
        }
    }

    /// Makes warnings fail a report too, as `--strict` does.
    pub fn strict(&mut self) {
        self.fail_on = self
            .fail_on
            .min(Some(Severity::Warning))
            .or(Some(Severity::Warning));
    }

    /// Changes the severities of a report's findings, and records the changes in the report.
    ///
    /// If a command gave a finding another severity than its check's, that one stays, unless the policy turns the check
    /// off. A skipped check that the verdict needs is still needed.
    pub fn apply(&self, report: &mut Report) {
        let mut changes: Vec<PolicyChange> = Vec::new();
        let mut kept = Vec::with_capacity(report.findings.len());
        for mut finding in std::mem::take(&mut report.findings) {
            let to = self.severity(finding.check, finding.severity);
            if to != Some(finding.severity) {
                count(&mut changes, finding.check, finding.severity, to, 1);
            }
            if let Some(to) = to {
                finding.severity = to;
                kept.push(finding);
            }
        }
        report.findings = kept;
        report.more.retain_mut(|more| {
            let to = self.severity(more.check, more.severity);
            if to != Some(more.severity) {
                count(&mut changes, more.check, more.severity, to, more.count);
            }
            more.severity = to.unwrap_or(more.severity);
            to.is_some()
        });
        report.policy = changes;
        let off = |check: &CheckInfo| self.severities.get(check.id) == Some(&None);
        for check in report.checked.iter().copied().filter(|check| off(check)) {
            report.skipped.push(Skipped {
                check,
                why: "the policy turns it off".to_owned(),
                needed: false,
            });
        }
        report.checked.retain(|check| !off(check));
    }

    fn severity(&self, check: &CheckInfo, found: Severity) -> Option<Severity> {
        let own = match self.severities.get(check.id) {
            Some(None) => return None,
            Some(Some(severity)) if found == check.severity => *severity,
            _ => found,
        };
        let fails = self.fail_on.is_some_and(|least| own >= least);
        Some(if fails { Severity::Error } else { own })
    }
}

fn count(
    changes: &mut Vec<PolicyChange>,
    check: &'static CheckInfo,
    from: Severity,
    to: Option<Severity>,
    more: usize,
) {
    let same = |change: &&mut PolicyChange| {
        change.check.id == check.id && change.from == from && change.to == to
    };
    match changes.iter_mut().find(same) {
        Some(change) => change.count += more,
        None => changes.push(PolicyChange {
            check,
            from,
            to,
            count: more,
        }),
    }
}
