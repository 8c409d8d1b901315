//! The result of a command, in a form that every format can write.

use std::collections::{BTreeMap, HashMap};
use std::fmt;

use serde_json::Value;

use architecture::LayerStack;
use checkpoint::{Checkpoint, TensorEntry};
use errors::Refusal;

/// How bad a finding is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Severity {
    /// Worth knowing, but nothing is wrong.
    Note,
    /// Probably a mistake, but may be intended.
    Warning,
    /// Wrong: the command fails.
    Error,
}

impl Severity {
    /// The name in formats and policies.
    pub fn name(self) -> &'static str {
        match self {
            Severity::Note => "note",
            Severity::Warning => "warning",
            Severity::Error => "error",
        }
    }
}

impl fmt::Display for Severity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A kind of finding. All kinds are in the registry, from which `docs/checks.md` is made.
#[derive(Debug, PartialEq, Eq)]
pub struct CheckInfo {
    /// `group.name`, in kebab case. It never changes, because policies and dashboards refer to it.
    pub id: &'static str,
    /// The severity of its findings, unless a policy changes it.
    pub severity: Severity,
    /// The problem as a short sentence without a full stop: `A tensor holds NaN`.
    pub title: &'static str,
    /// Why it matters and how it comes about, in a sentence or two.
    pub why: &'static str,
    /// What to do about it, in the imperative.
    pub remedy: &'static str,
}

/// Defines the kinds of findings of a module: one static for each, and `CHECKS` with all of them for the registry.
macro_rules! checks {
    ($($name:ident = $id:literal, $severity:ident, $title:literal, $why:literal, $remedy:literal;)*) => {
        $(pub(crate) static $name: $crate::CheckInfo = $crate::CheckInfo {
            id: $id,
            severity: $crate::Severity::$severity,
            title: $title,
            why: $why,
            remedy: $remedy,
        };)*
        /// All kinds of findings of this module.
        pub(crate) static CHECKS: &[&$crate::CheckInfo] = &[$(&$name),*];
    };
}

impl CheckInfo {
    /// The part of the id before the dot.
    pub fn group(&self) -> &'static str {
        self.id.split_once('.').map_or(self.id, |(group, _)| group)
    }
}

/// The place of a finding. A part that does not apply is `None`.
#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Place {
    /// The file, relative to the checkpoint's folder: `model-00001-of-00002.safetensors`, `config.json`.
    pub file: Option<String>,
    /// The tensor's name.
    pub tensor: Option<String>,
    /// The field in the file, as a path with dots: `rope_scaling.factor`.
    pub field: Option<String>,
}

impl Place {
    /// A file of the checkpoint.
    pub fn file(name: impl Into<String>) -> Place {
        Place {
            file: Some(name.into()),
            ..Place::default()
        }
    }

    /// A tensor, and its file if it is known.
    pub fn tensor(name: impl Into<String>, file: Option<String>) -> Place {
        Place {
            file,
            tensor: Some(name.into()),
            field: None,
        }
    }

    /// A tensor of a checkpoint, with its file.
    pub(super) fn entry(model: &Checkpoint, tensor: &TensorEntry) -> Place {
        let place = model.find(&tensor.name).and_then(|at| model.place(at));
        Place::tensor(&tensor.name, place.map(|(shard, _)| shard.file_name()))
    }

    /// The same place, of a part of a model whose tensors' names begin with `prefix` there and whose files are in the
    /// folder of that name.
    pub(super) fn of_part(mut self, prefix: &str) -> Place {
        let within = |name: String| match name.starts_with(prefix) {
            true => name,
            false => format!("{prefix}{name}"),
        };
        self.file = self.file.map(within);
        self.tensor = self.tensor.map(|name| format!("{prefix}{name}"));
        self
    }

    /// A field of a file.
    pub fn field(file: impl Into<String>, field: impl Into<String>) -> Place {
        Place {
            file: Some(file.into()),
            tensor: None,
            field: Some(field.into()),
        }
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (&self.tensor, &self.file, &self.field) {
            (Some(tensor), ..) => f.write_str(tensor),
            (None, Some(file), Some(field)) => write!(f, "{file}: {field}"),
            (None, Some(file), None) => f.write_str(file),
            (None, None, Some(field)) => f.write_str(field),
            (None, None, None) => f.write_str("the checkpoint"),
        }
    }
}

/// One thing that was found.
#[derive(Debug, Clone, PartialEq)]
pub struct Finding {
    /// The kind of finding.
    pub check: &'static CheckInfo,
    /// The kind's severity, until a policy changes it.
    pub severity: Severity,
    /// The place of the finding.
    pub place: Place,
    /// What should be there.
    pub expected: String,
    /// What is there.
    pub found: String,
    /// A remedy that is more precise than the kind's.
    pub remedy: Option<String>,
}

impl Finding {
    /// A finding with the severity of its kind.
    pub fn new(
        check: &'static CheckInfo,
        place: Place,
        expected: impl Into<String>,
        found: impl Into<String>,
    ) -> Finding {
        Finding {
            check,
            severity: check.severity,
            place,
            expected: expected.into(),
            found: found.into(),
            remedy: None,
        }
    }

    /// The finding with another severity.
    pub(crate) fn with_severity(self, severity: Severity) -> Finding {
        Finding { severity, ..self }
    }

    /// The finding with a remedy of its own.
    pub fn with_remedy(self, remedy: impl Into<String>) -> Finding {
        Finding {
            remedy: Some(remedy.into()),
            ..self
        }
    }

    /// The remedy: its own, or the kind's.
    pub fn remedy(&self) -> &str {
        self.remedy.as_deref().unwrap_or(self.check.remedy)
    }
}

/// The command that made a report.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Command {
    /// `weld check`: one checkpoint by itself.
    Check,
    /// `weld diff`: compares two checkpoints.
    Diff,
    /// `weld verify`: compares a checkpoint with its recipe and inputs.
    Verify,
    /// `weld analyse`: looks at fine-tunes of one base side by side.
    Analyse,
    /// `weld eval`: scores a model on tasks.
    Eval,
}

impl Command {
    /// The command's name.
    pub fn name(self) -> &'static str {
        match self {
            Command::Check => "check",
            Command::Diff => "diff",
            Command::Verify => "verify",
            Command::Analyse => "analyse",
            Command::Eval => "eval",
        }
    }
}

/// The overall result of a report.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// Everything that was checked is right.
    Passed,
    /// Something is wrong.
    Failed,
    /// Nothing wrong was found, but a check that the verdict needs was skipped.
    Inconclusive,
    /// The command could not run.
    Error,
}

impl Verdict {
    /// The verdict's name.
    pub fn name(self) -> &'static str {
        match self {
            Verdict::Passed => "passed",
            Verdict::Failed => "failed",
            Verdict::Inconclusive => "inconclusive",
            Verdict::Error => "error",
        }
    }

    /// The exit code of a command with this verdict.
    pub fn exit_code(self) -> u8 {
        match self {
            Verdict::Passed => 0,
            Verdict::Failed => 1,
            Verdict::Error => 2,
            Verdict::Inconclusive => 3,
        }
    }
}

/// A check that was skipped, and why.
#[derive(Debug, Clone, PartialEq)]
pub struct Skipped {
    /// The check.
    pub check: &'static CheckInfo,
    /// The reason, as a sentence without a full stop.
    pub why: String,
    /// Whether the verdict needs the check; then the report is inconclusive.
    pub needed: bool,
}

/// The most findings of one check and severity that are kept: a hostile file can cause any number.
const MOST_FINDINGS: usize = 20_000;

/// The most tensors that a report's details list; each takes about three thousand bytes of memory.
const MOST_DETAILED: usize = 1 << 16;

/// Findings of one kind that were counted but not kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct More {
    /// Their kind.
    pub check: &'static CheckInfo,
    /// Their severity.
    pub severity: Severity,
    /// Their number.
    pub count: usize,
}

/// A policy's change to the findings of one check.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PolicyChange {
    /// Their kind.
    pub check: &'static CheckInfo,
    /// The severity before.
    pub from: Severity,
    /// The severity after; `None` if the policy drops them.
    pub to: Option<Severity>,
    /// The number of findings.
    pub count: usize,
}

impl fmt::Display for PolicyChange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let PolicyChange {
            check,
            from,
            to,
            count,
        } = self;
        let findings = if *count == 1 { "finding" } else { "findings" };
        match to {
            Some(to) => write!(
                f,
                "{}: {count} {findings}, {to} instead of {from}",
                check.id
            ),
            None => write!(f, "{}: {count} {findings} left out ({from})", check.id),
        }
    }
}

/// A table for display, with the worst or most important row first.
#[derive(Debug, Clone, PartialEq)]
pub struct Table {
    /// The table's title.
    pub title: String,
    /// The headings.
    pub columns: Vec<String>,
    /// The rows, with numbers as formatted text.
    pub rows: Vec<Vec<String>>,
}

/// A number for each layer and role, drawn as colours.
#[derive(Debug, Clone, PartialEq)]
pub struct HeatMap {
    /// The map's title.
    pub title: String,
    /// The unit of the numbers, or what they are relative to.
    pub unit: String,
    /// One row each: roles of tensors, such as `self_attn.q_proj.weight`.
    pub roles: Vec<String>,
    /// One column each: layers.
    pub layers: Vec<String>,
    /// The numbers by role, then by layer; `None` if the layer has no such tensor.
    pub values: Vec<Vec<Option<f64>>>,
}

/// The most cells in a heat map; a header may name any number of roles and layers.
const MOST_CELLS: usize = 1 << 16;

impl HeatMap {
    /// The map of a stack's tensors by their names; `None` if it would be empty or too large.
    pub(super) fn new<'n>(
        title: &str,
        unit: &str,
        stack: &LayerStack,
        tensors: impl Iterator<Item = (&'n str, Option<f64>)>,
    ) -> Option<HeatMap> {
        let mut rows: HashMap<&str, usize> = HashMap::new();
        let mut map = HeatMap {
            title: title.to_owned(),
            unit: unit.to_owned(),
            roles: Vec::new(),
            layers: (0..stack.layers).map(|layer| layer.to_string()).collect(),
            values: Vec::new(),
        };
        for (name, value) in tensors {
            let Some((layer, role)) = stack.split(name) else {
                continue;
            };
            let row = *rows.entry(role).or_insert_with(|| {
                map.roles.push(role.to_owned());
                map.values.push(vec![None; stack.layers]);
                map.roles.len() - 1
            });
            if map.roles.len() * stack.layers > MOST_CELLS {
                return None;
            }
            map.values[row][layer] = value;
        }
        (!map.roles.is_empty()).then_some(map)
    }
}

/// The number of elements in each interval.
#[derive(Debug, Clone, PartialEq)]
pub struct Histogram {
    /// The histogram's title.
    pub title: String,
    /// The unit of the bounds.
    pub unit: String,
    /// For each bar: lower bound, upper bound, number of elements.
    pub bars: Vec<(f64, f64, u64)>,
}

/// The result of a command.
#[derive(Debug, Clone, PartialEq)]
pub struct Report {
    /// The command that made it.
    pub command: Command,
    /// The checkpoint or checkpoints, as the user wrote them.
    pub subject: String,
    /// Why the command could not run; then nothing else is in the report.
    pub error: Option<Refusal>,
    /// The most important facts: names and values, in order.
    pub summary: Vec<(String, String)>,
    /// The checks that were made.
    pub checked: Vec<&'static CheckInfo>,
    /// The checks that were skipped.
    pub skipped: Vec<Skipped>,
    /// The findings; [`Report::sort`] puts the worst first.
    pub findings: Vec<Finding>,
    /// Counts of the findings that were too many to keep.
    pub more: Vec<More>,
    /// The number of kept findings by check and severity.
    kept: BTreeMap<(&'static str, Severity), usize>,
    /// The changes that a policy made.
    pub policy: Vec<PolicyChange>,
    /// Tables for display.
    pub tables: Vec<Table>,
    /// Heat maps for display.
    pub heat_maps: Vec<HeatMap>,
    /// Histograms for display.
    pub histograms: Vec<Histogram>,
    /// The command's own numbers, for programs.
    pub details: Value,
}

impl Report {
    /// An empty report.
    pub fn new(command: Command, subject: impl Into<String>) -> Report {
        Report {
            command,
            subject: subject.into(),
            error: None,
            summary: Vec::new(),
            checked: Vec::new(),
            skipped: Vec::new(),
            findings: Vec::new(),
            more: Vec::new(),
            kept: BTreeMap::new(),
            policy: Vec::new(),
            tables: Vec::new(),
            heat_maps: Vec::new(),
            histograms: Vec::new(),
            details: Value::Null,
        }
    }

    /// The report of a command that could not run.
    pub fn of_error(command: Command, subject: impl Into<String>, error: Refusal) -> Report {
        Report {
            error: Some(error),
            ..Report::new(command, subject)
        }
    }

    /// Adds a line to the summary.
    pub fn say(&mut self, name: impl Into<String>, value: impl Into<String>) {
        self.summary.push((name.into(), value.into()));
    }

    /// Adds a finding. If there are too many of its kind, it is only counted.
    pub fn add(&mut self, finding: Finding) {
        let Finding {
            check, severity, ..
        } = finding;
        let kept = self.kept.entry((check.id, severity)).or_default();
        if *kept < MOST_FINDINGS {
            *kept += 1;
            self.findings.push(finding);
            return;
        }
        let same = |more: &&mut More| more.check.id == check.id && more.severity == severity;
        match self.more.iter_mut().find(same) {
            Some(more) => more.count += 1,
            None => self.more.push(More {
                check,
                severity,
                count: 1,
            }),
        }
    }

    /// Adds findings.
    pub fn extend(&mut self, findings: impl IntoIterator<Item = Finding>) {
        findings.into_iter().for_each(|finding| self.add(finding));
    }

    /// Puts tensors into the details up to the limit, and the number of those left out.
    pub(super) fn detail(&mut self, tensors: impl ExactSizeIterator<Item = Value>) {
        let left_out = tensors.len().saturating_sub(MOST_DETAILED);
        let told: Vec<Value> = tensors.take(MOST_DETAILED).collect();
        self.details["tensors"] = told.into();
        if left_out > 0 {
            self.details["tensors_left_out"] = left_out.into();
        }
    }

    /// Sorts the findings: the worst first, then by check and place.
    pub fn sort(&mut self) {
        self.findings.sort_by(|a, b| {
            let key = |finding: &Finding| (std::cmp::Reverse(finding.severity), finding.check.id);
            key(a).cmp(&key(b)).then_with(|| a.place.cmp(&b.place))
        });
    }

    /// The number of findings with a severity.
    pub fn count(&self, severity: Severity) -> usize {
        let of = |finding: &&Finding| finding.severity == severity;
        let more = self.more.iter().filter(|more| more.severity == severity);
        self.findings.iter().filter(of).count() + more.map(|more| more.count).sum::<usize>()
    }

    /// The verdict: a finding that is an error fails the report; a skipped check that is needed makes it inconclusive.
    pub fn verdict(&self) -> Verdict {
        if self.error.is_some() {
            Verdict::Error
        } else if self.count(Severity::Error) > 0 {
            Verdict::Failed
        } else if self.skipped.iter().any(|skipped| skipped.needed) {
            Verdict::Inconclusive
        } else {
            Verdict::Passed
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::all_checks;
    use super::super::policy::Policy;
    use super::*;

    #[test]
    fn findings_beyond_a_limit_are_counted() {
        let mut checks = all_checks();
        let (one, other) = (checks.next().unwrap(), checks.next().unwrap());
        let mut report = Report::new(Command::Check, "m");
        let place = |at: usize| Place::tensor(format!("t{at}"), None);
        let many = (0..MOST_FINDINGS + 3).map(|at| Finding::new(one, place(at), "", ""));
        report.extend(many);
        report.add(Finding::new(other, place(0), "", ""));
        assert_eq!(report.findings.len(), MOST_FINDINGS + 1);
        assert_eq!(report.count(Severity::Error), MOST_FINDINGS + 4);
        assert_eq!(report.more.len(), 1);

        let text = format!("[severity]\n\"{}\" = \"note\"\n", one.id);
        let mut milder = report.clone();
        Policy::parse(&text).unwrap().apply(&mut milder);
        assert_eq!(milder.count(Severity::Note), MOST_FINDINGS + 3);
        assert_eq!(milder.policy[0].count, MOST_FINDINGS + 3);
        Policy::parse(&text.replace("note", "off"))
            .unwrap()
            .apply(&mut report);
        assert_eq!((report.findings.len(), report.more.len()), (1, 0));
    }

    #[test]
    fn details_tell_of_so_many_tensors_at_the_most() {
        let mut report = Report::new(Command::Check, "m");
        report.detail((0..MOST_DETAILED + 2).map(Value::from));
        assert_eq!(
            report.details["tensors"].as_array().unwrap().len(),
            MOST_DETAILED
        );
        assert_eq!(report.details["tensors_left_out"], 2);
    }
}
