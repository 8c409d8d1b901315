//! Reads a policy: serde takes the document apart, and what it cannot know (checks, patterns, contradictions) is
//! looked up here, each at its line.

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::PathBuf;

use checkpoint::Glob;
use recipe::nearest;
use serde::de::Error as _;
use serde::{Deserialize, Deserializer};
use toml::de::Error;
use toml::{Spanned, Value};

use super::{DiffPolicy, EvalPolicy, Policy, PolicyError, ProvenancePolicy, Thresholds};
use crate::{Severity, all_checks, find_check};

/// The check that `require_lock` turns into an error.
const NO_LOCK: &str = "verify.lock";

/// A policy as it is written.
#[derive(Deserialize, Default)]
#[serde(default, deny_unknown_fields, expecting = "a table")]
struct Document {
    severity: BTreeMap<Spanned<String>, Spanned<Value>>,
    #[serde(deserialize_with = "fail_on")]
    fail_on: Option<Severity>,
    diff: Diff,
    verify: Verify,
    provenance: Provenance,
    eval: Eval,
}

#[derive(Deserialize, Default)]
#[serde(default, deny_unknown_fields, expecting = "a table")]
struct Eval {
    #[serde(deserialize_with = "norm")]
    max_drop: Option<f64>,
    metric: Option<ChoiceMetric>,
    tasks: Vec<Task>,
}

/// What choices are compared by.
#[derive(Deserialize, Clone, Copy, PartialEq, Eq)]
#[serde(rename_all = "snake_case")]
enum ChoiceMetric {
    Accuracy,
    AccuracyNormalised,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, expecting = "a table under [[eval.tasks]]")]
struct Task {
    r#match: Spanned<String>,
    #[serde(deserialize_with = "bound")]
    max_drop: f64,
}

#[derive(Deserialize, Default)]
#[serde(default, deny_unknown_fields, expecting = "a table")]
struct Diff {
    #[serde(deserialize_with = "norm")]
    max_relative_l2: Option<f64>,
    #[serde(deserialize_with = "cosine")]
    min_cosine: Option<f64>,
    #[serde(deserialize_with = "count")]
    max_steps: Option<u64>,
    roles: Vec<Role>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, expecting = "a table under [[diff.roles]]")]
struct Role {
    r#match: Spanned<String>,
    #[serde(default, deserialize_with = "norm")]
    max_relative_l2: Option<f64>,
    #[serde(default, deserialize_with = "cosine")]
    min_cosine: Option<f64>,
    #[serde(default, deserialize_with = "count")]
    max_steps: Option<u64>,
}

#[derive(Deserialize, Default)]
#[serde(default, deny_unknown_fields, expecting = "a table")]
struct Verify {
    #[serde(deserialize_with = "allow_step")]
    allow: Option<bool>,
    require_lock: Option<Spanned<bool>>,
}

#[derive(Deserialize, Default)]
#[serde(default, deny_unknown_fields, expecting = "a table")]
struct Provenance {
    #[serde(deserialize_with = "key_file")]
    require_signature: Option<PathBuf>,
    #[serde(deserialize_with = "key_file")]
    require_attestation: Option<PathBuf>,
    allow_inputs: Option<Vec<Spanned<String>>>,
}

/// Reads a policy.
pub(super) fn policy(text: &str) -> Result<Policy, PolicyError> {
    let lines = Lines { text };
    let document: Document = toml::from_str(text).map_err(|error| lines.explain(&error))?;
    let mut policy = Policy {
        severities: lines.severities(document.severity)?,
        fail_on: document.fail_on,
        diff: lines.diff(document.diff)?,
        allow_step: document.verify.allow,
        provenance: lines.provenance(document.provenance)?,
        eval: lines.eval(document.eval)?,
    };
    let required = document.verify.require_lock;
    if let Some(required) = required.filter(|required| *required.get_ref()) {
        let error = Some(Severity::Error);
        let before = policy.severities.insert(NO_LOCK, error);
        if before.is_some_and(|before| before != error) {
            let message = format!("`require_lock` contradicts the severity of `{NO_LOCK}`");
            return Err(lines.error(required.span(), message));
        }
    }
    Ok(policy)
}

/// The text of a policy, which knows the line of every place in it.
struct Lines<'t> {
    text: &'t str,
}

impl Lines<'_> {
    fn error(&self, span: Range<usize>, message: impl Into<String>) -> PolicyError {
        let before = self.text.as_bytes().get(..span.start).unwrap_or_default();
        PolicyError {
            line: before.iter().filter(|byte| **byte == b'\n').count() + 1,
            message: message.into(),
            hint: None,
        }
    }

    /// An error of the TOML reader or of serde. Serde names the keys that it knows, so the nearest is the hint.
    fn explain(&self, error: &Error) -> PolicyError {
        let span = error.span().unwrap_or_default();
        let unknown = error.message().strip_prefix("unknown field `");
        let Some((key, known)) = unknown.and_then(|rest| rest.rsplit_once("`, expected ")) else {
            // A list, in serde's words.
            return self.error(span, error.message().replace("a sequence", "a list"));
        };
        let message = format!("unknown key `{}`", key.escape_debug());
        PolicyError {
            hint: did_you_mean(key, known.split('`').skip(1).step_by(2)),
            ..self.error(span, message)
        }
    }

    fn severities(
        &self,
        severities: BTreeMap<Spanned<String>, Spanned<Value>>,
    ) -> Result<BTreeMap<&'static str, Option<Severity>>, PolicyError> {
        let known = [
            ("off", None),
            ("note", Some(Severity::Note)),
            ("warning", Some(Severity::Warning)),
            ("error", Some(Severity::Error)),
        ];
        let read = |(id, value): (Spanned<String>, Spanned<Value>)| {
            let check = find_check(id.get_ref())
                .ok_or_else(|| self.unknown_check(&id, value.get_ref().is_table()))?;
            let span = value.span();
            let severity = one_of(value.into_inner(), &known);
            Ok((
                check.id,
                severity.map_err(|error| self.error(span, error.message()))?,
            ))
        };
        severities.into_iter().map(read).collect()
    }

    /// Without quotes, `values.nan = "off"` is a table `values`.
    fn unknown_check(&self, id: &Spanned<String>, is_table: bool) -> PolicyError {
        let hint = if is_table {
            Some("an id of a check is written in quotes".to_owned())
        } else {
            did_you_mean(id.get_ref(), all_checks().map(|check| check.id))
        };
        let message = format!("unknown check `{}`", id.get_ref().escape_debug());
        PolicyError {
            hint,
            ..self.error(id.span(), message)
        }
    }

    fn diff(&self, diff: Diff) -> Result<DiffPolicy, PolicyError> {
        let role = |role: Role| {
            let thresholds = Thresholds {
                max_relative_l2: role.max_relative_l2,
                min_cosine: role.min_cosine,
                max_steps: role.max_steps,
            };
            Ok((self.pattern(&role.r#match)?, thresholds))
        };
        Ok(DiffPolicy {
            all: Thresholds {
                max_relative_l2: diff.max_relative_l2,
                min_cosine: diff.min_cosine,
                max_steps: diff.max_steps,
            },
            roles: diff.roles.into_iter().map(role).collect::<Result<_, _>>()?,
        })
    }

    fn provenance(&self, provenance: Provenance) -> Result<ProvenancePolicy, PolicyError> {
        let patterns = |patterns: Vec<Spanned<String>>| {
            let patterns = patterns.iter().map(|pattern| self.pattern(pattern));
            patterns.collect::<Result<_, _>>()
        };
        Ok(ProvenancePolicy {
            signed_by: provenance.require_signature,
            attested_by: provenance.require_attestation,
            inputs: provenance.allow_inputs.map(patterns).transpose()?,
        })
    }

    fn eval(&self, eval: Eval) -> Result<EvalPolicy, PolicyError> {
        let task = |task: Task| Ok((self.pattern(&task.r#match)?, task.max_drop));
        Ok(EvalPolicy {
            all: eval.max_drop,
            normalised: eval
                .metric
                .map(|metric| metric == ChoiceMetric::AccuracyNormalised),
            tasks: eval.tasks.into_iter().map(task).collect::<Result<_, _>>()?,
        })
    }

    fn pattern(&self, text: &Spanned<String>) -> Result<Glob, PolicyError> {
        let glob = Glob::parse(text.get_ref());
        glob.map_err(|why| {
            let message = format!("{:?} is no pattern: {why}", text.get_ref());
            self.error(text.span(), message)
        })
    }
}

fn fail_on<'de, D: Deserializer<'de>>(value: D) -> Result<Option<Severity>, D::Error> {
    let known = [Severity::Error, Severity::Warning, Severity::Note];
    one_of(value, &known.map(|severity| (severity.name(), severity))).map(Some)
}

fn allow_step<'de, D: Deserializer<'de>>(value: D) -> Result<Option<bool>, D::Error> {
    one_of(value, &[("exact", false), ("step", true)]).map(Some)
}

fn norm<'de, D: Deserializer<'de>>(value: D) -> Result<Option<f64>, D::Error> {
    bound(value).map(Some)
}

fn bound<'de, D: Deserializer<'de>>(value: D) -> Result<f64, D::Error> {
    let bound = |value: &Value| number(value).filter(|bound| (0.0..=f64::MAX).contains(bound));
    read(value, "a number of 0 or more", bound)
}

fn cosine<'de, D: Deserializer<'de>>(value: D) -> Result<Option<f64>, D::Error> {
    let cosine = |value: &Value| number(value).filter(|cosine| (-1.0..=1.0).contains(cosine));
    read(value, "a number of -1 to 1", cosine).map(Some)
}

fn count<'de, D: Deserializer<'de>>(value: D) -> Result<Option<u64>, D::Error> {
    let count = |value: &Value| value.as_integer()?.try_into().ok();
    read(value, "a whole number", count).map(Some)
}

fn key_file<'de, D: Deserializer<'de>>(value: D) -> Result<Option<PathBuf>, D::Error> {
    let path = |value: &Value| {
        let path = value.as_str().filter(|path| !path.is_empty());
        path.map(PathBuf::from)
    };
    read(value, "the file of a public key", path).map(Some)
}

fn number(value: &Value) -> Option<f64> {
    let integer = || value.as_integer().map(|integer| integer as f64);
    value.as_float().or_else(integer)
}

/// One of the names in `known`.
fn one_of<'de, D: Deserializer<'de>, T: Copy>(
    value: D,
    known: &[(&str, T)],
) -> Result<T, D::Error> {
    let names: Vec<String> = known.iter().map(|(name, _)| format!("{name:?}")).collect();
    let find = |value: &Value| {
        let found = known.iter().find(|(name, _)| Some(*name) == value.as_str());
        found.map(|(_, what)| *what)
    };
    read(value, &names.join(", "), find)
}

/// What `take` makes of a value; without it, an error that says what is `expected`.
fn read<'de, D: Deserializer<'de>, T>(
    value: D,
    expected: &str,
    take: impl FnOnce(&Value) -> Option<T>,
) -> Result<T, D::Error> {
    let value = Value::deserialize(value)?;
    take(&value).ok_or_else(|| D::Error::custom(format!("expected {expected}")))
}

fn did_you_mean<'k>(name: &str, known: impl IntoIterator<Item = &'k str>) -> Option<String> {
    nearest(name, known).map(|near| format!("did you mean `{near}`?"))
}
