//! What a project requires of its checkpoints: `policy.toml`.
//!
//! Reading is strict: an unknown key, check or value is an error that names its line. A policy that is misread would be
//! worse than none.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::ops::Range;
use std::path::{Path, PathBuf};

use errors::Hint;
use globset::{GlobBuilder, GlobMatcher};
use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::report::{CheckInfo, PolicyChange, Report, Severity, Skipped};
use super::{all_checks, find_check};
use recipe::nearest;

/// The check that `require_lock` turns into an error.
const NO_LOCK: &str = "verify.lock";

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
}

/// Who must have signed or attested a checkpoint, and which inputs are allowed.
#[derive(Debug, Clone, Default)]
pub struct ProvenancePolicy {
    /// The public key of the required signer.
    pub signed_by: Option<PathBuf>,
    /// The public key of the required attester.
    pub attested_by: Option<PathBuf>,
    /// Patterns of allowed inputs; `None` allows all.
    inputs: Option<Vec<GlobMatcher>>,
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
    roles: Vec<(GlobMatcher, Thresholds)>,
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
        let reader = Reader { text };
        let table = DeTable::parse(text)
            .map_err(|error| reader.error(error.span().unwrap_or_default(), error.message()))?;
        reader.policy(table.get_ref())
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

/// Reads a document and keeps track of its lines.
struct Reader<'t> {
    text: &'t str,
}

type Value<'t> = Spanned<DeValue<'t>>;

impl Reader<'_> {
    fn error(&self, span: Range<usize>, message: impl Into<String>) -> PolicyError {
        let before = self.text.as_bytes().get(..span.start).unwrap_or_default();
        PolicyError {
            line: before.iter().filter(|byte| **byte == b'\n').count() + 1,
            message: message.into(),
            hint: None,
        }
    }

    /// The entries of a table; an unknown key is an error.
    fn entries<'v, 't>(
        &self,
        table: &'v DeTable<'t>,
        known: &[&str],
    ) -> Result<Vec<(&'v str, &'v Value<'t>)>, PolicyError> {
        let mut entries = Vec::new();
        for (key, value) in table {
            let name: &str = key.get_ref();
            if !known.contains(&name) {
                let message = format!("unknown key `{}`", name.escape_debug());
                return Err(PolicyError {
                    hint: did_you_mean(name, known.iter().copied()),
                    ..self.error(key.span(), message)
                });
            }
            entries.push((name, value));
        }
        Ok(entries)
    }

    fn policy(&self, table: &DeTable<'_>) -> Result<Policy, PolicyError> {
        let mut policy = Policy::default();
        for (key, value) in self.entries(
            table,
            &["severity", "fail_on", "diff", "verify", "provenance"],
        )? {
            match key {
                "severity" => policy.severities = self.severities(self.table(value)?)?,
                "fail_on" => {
                    let known = [Severity::Error, Severity::Warning, Severity::Note];
                    let named = known.map(|severity| (severity.name(), severity));
                    policy.fail_on = Some(self.one_of(value, &named)?);
                }
                "diff" => policy.diff = self.diff(self.table(value)?)?,
                "provenance" => policy.provenance = self.provenance(self.table(value)?)?,
                _ => (),
            }
        }
        // Read after the severities, which it may contradict.
        if let Some(value) = table.get("verify") {
            self.verify(self.table(value)?, &mut policy)?;
        }
        Ok(policy)
    }

    fn severities(
        &self,
        table: &DeTable<'_>,
    ) -> Result<BTreeMap<&'static str, Option<Severity>>, PolicyError> {
        let known = [
            ("off", None),
            ("note", Some(Severity::Note)),
            ("warning", Some(Severity::Warning)),
            ("error", Some(Severity::Error)),
        ];
        let mut severities = BTreeMap::new();
        for (key, value) in table {
            let id: &str = key.get_ref();
            let Some(check) = find_check(id) else {
                // Without quotes, `values.nan = "off"` is a table `values`.
                let hint = match value.get_ref() {
                    DeValue::Table(_) => Some("an id of a check is written in quotes".to_owned()),
                    _ => did_you_mean(id, all_checks().map(|check| check.id)),
                };
                let message = format!("unknown check `{}`", id.escape_debug());
                return Err(PolicyError {
                    hint,
                    ..self.error(key.span(), message)
                });
            };
            severities.insert(check.id, self.one_of(value, &known)?);
        }
        Ok(severities)
    }

    fn diff(&self, table: &DeTable<'_>) -> Result<DiffPolicy, PolicyError> {
        let known = ["max_relative_l2", "min_cosine", "max_steps", "roles"];
        let mut diff = DiffPolicy::default();
        for (key, value) in self.entries(table, &known)? {
            if key != "roles" {
                self.threshold(key, value, &mut diff.all)?;
                continue;
            }
            let DeValue::Array(roles) = value.get_ref() else {
                return Err(self.expected("tables, each under [[diff.roles]]", value));
            };
            for role in roles.iter() {
                diff.roles.push(self.role(role)?);
            }
        }
        Ok(diff)
    }

    fn role(&self, value: &Value<'_>) -> Result<(GlobMatcher, Thresholds), PolicyError> {
        let known = ["match", "max_relative_l2", "min_cosine", "max_steps"];
        let mut pattern = None;
        let mut thresholds = Thresholds::default();
        for (key, value) in self.entries(self.table(value)?, &known)? {
            if key != "match" {
                self.threshold(key, value, &mut thresholds)?;
                continue;
            }
            pattern = Some(self.pattern(value)?);
        }
        let message = "`match` is missing: the pattern of the roles";
        let pattern = pattern.ok_or_else(|| self.error(value.span(), message))?;
        Ok((pattern, thresholds))
    }

    fn pattern(&self, value: &Value<'_>) -> Result<GlobMatcher, PolicyError> {
        let text = value.get_ref().as_str();
        let text = text.ok_or_else(|| self.expected("a pattern in quotes", value))?;
        let glob = GlobBuilder::new(text).literal_separator(false).build();
        let glob = glob.map_err(|error| self.error(value.span(), error.to_string()))?;
        Ok(glob.compile_matcher())
    }

    fn provenance(&self, table: &DeTable<'_>) -> Result<ProvenancePolicy, PolicyError> {
        let known = ["require_signature", "require_attestation", "allow_inputs"];
        let mut provenance = ProvenancePolicy::default();
        for (key, value) in self.entries(table, &known)? {
            if key == "allow_inputs" {
                let DeValue::Array(patterns) = value.get_ref() else {
                    return Err(self.expected("a list of patterns", value));
                };
                let patterns = patterns.iter().map(|pattern| self.pattern(pattern));
                provenance.inputs = Some(patterns.collect::<Result<_, _>>()?);
                continue;
            }
            let path = value.get_ref().as_str().filter(|path| !path.is_empty());
            let path = path.ok_or_else(|| self.expected("the file of a public key", value))?;
            let path = Some(PathBuf::from(path));
            match key {
                "require_signature" => provenance.signed_by = path,
                _ => provenance.attested_by = path,
            }
        }
        Ok(provenance)
    }

    fn threshold(
        &self,
        key: &str,
        value: &Value<'_>,
        thresholds: &mut Thresholds,
    ) -> Result<(), PolicyError> {
        match key {
            "max_relative_l2" => {
                thresholds.max_relative_l2 = Some(self.number(value, 0.0, f64::MAX)?);
            }
            "min_cosine" => thresholds.min_cosine = Some(self.number(value, -1.0, 1.0)?),
            _ => {
                let steps = value.get_ref().as_integer();
                let steps =
                    steps.and_then(|steps| u64::from_str_radix(steps.as_str(), steps.radix()).ok());
                let steps = steps.ok_or_else(|| self.expected("a whole number", value))?;
                thresholds.max_steps = Some(steps);
            }
        }
        Ok(())
    }

    fn verify(&self, table: &DeTable<'_>, policy: &mut Policy) -> Result<(), PolicyError> {
        for (key, value) in self.entries(table, &["allow", "require_lock"])? {
            if key == "allow" {
                let known = [("exact", false), ("step", true)];
                policy.allow_step = Some(self.one_of(value, &known)?);
                continue;
            }
            let required = value.get_ref().as_bool();
            let required = required.ok_or_else(|| self.expected("true or false", value))?;
            if !required {
                continue;
            }
            let error = Some(Severity::Error);
            if policy
                .severities
                .insert(NO_LOCK, error)
                .is_some_and(|before| before != error)
            {
                let message = format!("`require_lock` contradicts the severity of `{NO_LOCK}`");
                return Err(self.error(value.span(), message));
            }
        }
        Ok(())
    }

    fn table<'v, 't>(&self, value: &'v Value<'t>) -> Result<&'v DeTable<'t>, PolicyError> {
        let table = value.get_ref().as_table();
        table.ok_or_else(|| self.expected("a table", value))
    }

    fn number(&self, value: &Value<'_>, least: f64, largest: f64) -> Result<f64, PolicyError> {
        let number = match value.get_ref() {
            DeValue::Float(float) => float.as_str().parse::<f64>().ok(),
            DeValue::Integer(integer) if integer.radix() == 10 => integer.as_str().parse().ok(),
            _ => None,
        };
        let number = number.filter(|number| (least..=largest).contains(number));
        number.ok_or_else(|| {
            let up_to = if largest < f64::MAX {
                format!(" to {largest}")
            } else {
                " or more".into()
            };
            self.expected(&format!("a number of {least}{up_to}"), value)
        })
    }

    fn one_of<T: Copy>(&self, value: &Value<'_>, known: &[(&str, T)]) -> Result<T, PolicyError> {
        let text = value.get_ref().as_str();
        let found = known.iter().find(|(name, _)| Some(*name) == text);
        found.map(|(_, what)| *what).ok_or_else(|| {
            let names: Vec<String> = known
                .iter()
                .map(|(name, _)| format!("\"{name}\""))
                .collect();
            self.expected(&names.join(", "), value)
        })
    }

    fn expected(&self, what: &str, value: &Value<'_>) -> PolicyError {
        self.error(value.span(), format!("expected {what}"))
    }
}

fn did_you_mean<'k>(name: &str, known: impl IntoIterator<Item = &'k str>) -> Option<String> {
    nearest(name, known).map(|near| format!("did you mean `{near}`?"))
}

#[cfg(test)]
mod tests {
    use super::super::{Command, Finding, Place, Verdict};
    use super::*;

    fn message(text: &str) -> String {
        errors::in_one_line(&Policy::parse(text).expect_err(text))
    }

    #[test]
    fn what_is_not_known_is_an_error_with_its_line() {
        let check = |text: &str, parts: &[&str]| {
            let message = message(text);
            for part in parts {
                assert!(message.contains(part), "{text}: {message}");
            }
        };
        check(
            "[provenance]\nrequire_signatur = \"x\"",
            &["line 2: ", "`require_signatur`", "`require_signature`"],
        );
        for wrong in ["require_signature = true", "require_attestation = \"\""] {
            check(
                &format!("[provenance]\n{wrong}"),
                &["line 2: ", "public key"],
            );
        }
        check(
            "[provenance]\nallow_inputs = \"a\"",
            &["line 2: ", "list of patterns"],
        );
        check("[provenance]\nallow_inputs = [\"[\"]", &["line 2: "]);
        check(
            "fail_om = \"error\"",
            &["line 1: ", "`fail_om`", "`fail_on`"],
        );
        check(
            "[severity]\n\n\"verify.locc\" = \"off\"",
            &["line 3: ", "`verify.locc`", "`verify.lock`"],
        );
        check(
            "[severity]\nverify.lock = \"off\"",
            &["line 2: ", "in quotes"],
        );
        check(
            "[severity]\n\"verify.lock\" = \"of\"",
            &["line 2: ", "\"off\""],
        );
        check("fail_on = 3", &["line 1: ", "\"error\", \"warning\""]);
        check("[diff]\nmax_steps = -1", &["line 2: ", "a whole number"]);
        check(
            "[diff]\nmin_cosine = 1.5",
            &["line 2: ", "a number of -1 to 1"],
        );
        check("[diff]\nmax_relative_l2 = nan", &["line 2: ", "0 or more"]);
        check("[[diff.roles]]\nmax_steps = 1", &["line 1: ", "`match`"]);
        check("[[diff.roles]]\nmatch = \"[\"", &["line 2: "]);
        check("[verify]\nallow = \"steps\"", &["line 2: ", "\"step\""]);
        check(
            "[verify]\nrequire_lock = true\n[severity]\n\"verify.lock\" = \"off\"",
            &["line 2: ", "contradicts"],
        );
        check("[", &["line 1: "]);
        check("a = 1\na = 2", &["line 2: "]);
        check(&"[".repeat(100_000), &["line 1: "]);
        check(&format!("x = {}", "[".repeat(100_000)), &["line 1: "]);
        check(
            &format!("{} = 1", "a.".repeat(100_000) + "a"),
            &["line 1: "],
        );
    }

    #[test]
    fn thresholds_of_a_later_pattern_count_more() {
        let policy = Policy::parse(
            "[diff]\nmax_relative_l2 = 1\nmin_cosine = 0.9\n[[diff.roles]]\nmatch = \"mlp.*\"\nmax_relative_l2 = 0.5\n\
             [[diff.roles]]\nmatch = \"*.up_proj.weight\"\nmax_relative_l2 = 2e-1\nmax_steps = 0x10\n",
        )
        .unwrap();
        let l2 = |role| policy.diff.of(role).max_relative_l2;
        assert_eq!(l2("self_attn.q_proj.weight"), Some(1.0));
        assert_eq!(l2("mlp.down_proj.weight"), Some(0.5));
        assert_eq!(l2("mlp.up_proj.weight"), Some(0.2));
        assert_eq!(policy.diff.of("mlp.up_proj.weight").min_cosine, Some(0.9));
        assert_eq!(policy.diff.of("mlp.up_proj.weight").max_steps, Some(16));
        assert!(!policy.diff.is_empty() && Policy::default().diff.is_empty());
    }

    fn report() -> Report {
        let mut report = Report::new(Command::Verify, "out");
        for id in [
            "verify.lock",
            "verify.numerics",
            "verify.rounding",
            "verify.rounding",
        ] {
            let check = find_check(id).expect(id);
            report
                .findings
                .push(Finding::new(check, Place::default(), "a", "b"));
            report.checked.push(check);
        }
        report
    }

    fn applied(text: &str, strict: bool) -> Report {
        let mut report = report();
        let mut policy = Policy::parse(text).unwrap();
        if strict {
            policy.strict();
        }
        policy.apply(&mut report);
        report
    }

    #[test]
    fn severities_change_and_the_report_says_so() {
        let said = |report: &Report| -> Vec<String> {
            report.policy.iter().map(ToString::to_string).collect()
        };
        let report = applied("", false);
        assert_eq!((report.findings.len(), said(&report).len()), (4, 0));
        let report = applied("[severity]\n\"verify.rounding\" = \"off\"", false);
        assert_eq!(report.verdict(), Verdict::Passed);
        assert_eq!(
            said(&report),
            ["verify.rounding: 2 findings left out (error)"]
        );
        assert_eq!(report.skipped[0].check.id, "verify.rounding");
        assert!(
            report
                .checked
                .iter()
                .all(|check| check.id != "verify.rounding")
        );
        let mild = "fail_on = \"error\"\n[severity]\n\"verify.rounding\" = \"warning\"";
        assert_eq!(applied(mild, false).verdict(), Verdict::Passed);
        let report = applied(mild, true);
        assert_eq!(report.count(Severity::Error), 2 + 1);
        assert_eq!(
            said(&report),
            ["verify.numerics: 1 finding, error instead of warning"]
        );
        let report = applied("[verify]\nrequire_lock = true", false);
        assert_eq!(
            said(&report),
            ["verify.lock: 1 finding, error instead of note"]
        );
        assert_eq!(
            applied("fail_on = \"note\"", true).count(Severity::Error),
            4
        );
    }

    #[test]
    fn what_the_command_made_milder_stays_so_and_what_is_needed_stays_needed() {
        let mut report = report();
        report.findings[2].severity = Severity::Note;
        report.skipped.push(Skipped {
            check: find_check("verify.replay").unwrap(),
            why: "no input".into(),
            needed: true,
        });
        let text = "[severity]\n\"verify.rounding\" = \"warning\"\n\"verify.replay\" = \"off\"";
        Policy::parse(text).unwrap().apply(&mut report);
        assert_eq!(report.findings[2].severity, Severity::Note);
        assert_eq!(report.findings[3].severity, Severity::Warning);
        assert_eq!(report.verdict(), Verdict::Inconclusive);
    }
}
