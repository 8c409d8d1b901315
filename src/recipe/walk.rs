//! The walk that types the tree: its state, and the problems that it collects instead of stopping at the first.

use std::collections::BTreeSet;
use std::path::PathBuf;

use super::found::FoundModels;
use super::keys::Place;
use super::problem::{Located, Position, Problem, ProblemKind};
use super::yaml::{Entry, Node, Value};
use checkpoint::ModelRef;
use methods::MethodInfo;

/// The state of the walk: its inputs and its findings.
pub(super) struct Walk<'a> {
    pub(super) methods: &'a [&'static MethodInfo],
    pub(super) method: Option<&'static MethodInfo>,
    pub(super) problems: Vec<Problem>,
    pub(super) warnings: Vec<Problem>,
    pub(super) flawed: Flawed,
    /// Whether the result lacks an input because that input had problems.
    pub(super) incomplete: bool,
    /// The `override_architecture` of models.
    pub(super) architectures: Vec<(ModelRef, String)>,
    /// Whether a `base_model` had problems, so that it is unknown which input is the base.
    pub(super) base_unread: bool,
    /// The recipe's text.
    pub(super) text: &'a str,
    /// Whether the recipe is the record of a finished merge: parts that mergekit ignored are ignored again, with a
    /// note.
    pub(super) recorded: bool,
    /// The base for a merge inside a mixture's recipe, if its method requires one and it names none: the mixture's
    /// base.
    pub(super) outer_base: Option<Located<ModelRef>>,
    /// The folder of the recipe, where models are looked for too.
    pub(super) recipe_dir: Option<PathBuf>,
    /// The models that patterns stand for.
    pub(super) found_models: Vec<FoundModels>,
}

/// The parameters that are given, but with problems: reporting them as missing too would be wrong.
#[derive(Default)]
pub(super) struct Flawed {
    names: BTreeSet<&'static str>,
    pub(super) all: bool,
}

impl Flawed {
    pub(super) fn add(&mut self, name: &'static str) {
        self.names.insert(name);
    }

    pub(super) fn contains(&self, name: &str) -> bool {
        self.all || self.names.contains(name)
    }
}

impl<'a> Walk<'a> {
    pub(super) fn new(methods: &'a [&'static MethodInfo]) -> Walk<'a> {
        Walk {
            methods,
            method: None,
            problems: Vec::new(),
            warnings: Vec::new(),
            flawed: Flawed::default(),
            incomplete: false,
            architectures: Vec::new(),
            base_unread: false,
            text: "",
            recorded: false,
            outer_base: None,
            recipe_dir: None,
            found_models: Vec::new(),
        }
    }

    pub(super) fn problem(
        &mut self,
        kind: ProblemKind,
        at: impl Into<Option<Position>>,
        message: impl AsRef<str>,
    ) {
        self.problems.push(Problem::new(kind, at, message));
    }

    /// Records a problem, with a hint if there is one.
    pub(super) fn refuse(
        &mut self,
        kind: ProblemKind,
        at: impl Into<Option<Position>>,
        message: impl AsRef<str>,
        hint: Option<&str>,
    ) {
        let problem = Problem::new(kind, at, message);
        self.problems.push(match hint {
            Some(hint) => problem.with_hint(hint),
            None => problem,
        });
    }

    pub(super) fn warn(&mut self, warning: Problem) {
        self.warnings.push(warning);
    }

    /// The items of a list that must not be empty.
    pub(super) fn items<'n>(&mut self, entry: &'n Entry, key: &str) -> Option<&'n [Node]> {
        let node = &entry.node;
        let found = match &node.value {
            Value::List(items) if items.is_empty() => "an empty list".into(),
            Value::List(items) => return Some(items),
            other => other.found(),
        };
        let message = format!("expected a list for `{key}`, found {found}");
        self.problem(ProblemKind::Invalid, node.at, message);
        self.incomplete = true;
        None
    }

    /// The entries of an item that must be a mapping.
    pub(super) fn entries<'n>(&mut self, node: &'n Node, place: &Place) -> Option<&'n [Entry]> {
        if let Value::Map(entries) = &node.value {
            return Some(entries);
        }
        let message = format!("expected {}, found {}", place.name, node.value.found());
        let hint = match (&node.value, place.keys) {
            (Value::Text(_), ["model", ..]) => Some("write `- model:` and then the model"),
            _ => None,
        };
        self.refuse(ProblemKind::Invalid, node.at, message, hint);
        None
    }

    pub(super) fn missing(&mut self, key: &str, node: &Node, place: &Place) {
        let message = format!("missing `{key}` in {}", place.name);
        self.problem(ProblemKind::Missing, node.at, message);
    }
}
