//! How a recipe refers to a model and a dtype.

use safetensors::Dtype;

use super::keys::Place;
use super::nearest::suggestion;
use super::problem::{Located, ProblemKind, quoted};
use super::walk::Walk;
use super::yaml::{Entry, Node, Value};
use checkpoint::ModelRef;

/// The dtypes that can be read and written, in torch's spelling.
const DTYPES: &[(&str, Dtype)] = &[
    ("bfloat16", Dtype::BF16),
    ("float16", Dtype::F16),
    ("float32", Dtype::F32),
    ("float64", Dtype::F64),
    ("float8_e4m3fn", Dtype::F8_E4M3),
    ("float8_e5m2", Dtype::F8_E5M2),
];

/// Other common names for them.
const DTYPE_NICKNAMES: &[(&str, &str)] = &[
    ("bf16", "bfloat16"),
    ("fp16", "float16"),
    ("f16", "float16"),
    ("half", "float16"),
    ("fp32", "float32"),
    ("f32", "float32"),
    ("float", "float32"),
    ("fp64", "float64"),
    ("f64", "float64"),
    ("double", "float64"),
    ("fp8", "float8_e4m3fn"),
    ("float8", "float8_e4m3fn"),
];

const MODEL_FORM: Place = Place {
    name: "a model",
    keys: &["model", "lora", "override_architecture"],
};

const ADAPTER_FORM: Place = Place {
    name: "an adapter",
    keys: &["path", "revision", "weight"],
};

const PATH_FORM: Place = Place {
    name: "a model's path",
    keys: &["path", "revision"],
};

impl Walk<'_> {
    /// A model: `path`, `org/name@revision`, `path+adapter`, or mergekit's mapping of the same.
    pub(super) fn model(&mut self, node: &Node) -> Option<Located<ModelRef>> {
        let text = match &node.value {
            Value::Text(text) => text.clone(),
            Value::Map(entries) if entries.iter().any(|entry| entry.key == "path") => {
                self.path_form(node, entries)?
            }
            Value::Map(entries) => return self.model_form(node, entries),
            Value::Null => {
                self.problem(
                    ProblemKind::Missing,
                    node.at,
                    "expected a model, found nothing",
                );
                return None;
            }
            other => {
                let message = format!("expected a model, found {}", other.found());
                let hint = (!matches!(other, Value::List(_)))
                    .then_some("if this is a model's name, put it in quotes");
                self.refuse(ProblemKind::Invalid, node.at, message, hint);
                return None;
            }
        };
        self.parsed(node, &text)
    }

    fn parsed(&mut self, node: &Node, text: &str) -> Option<Located<ModelRef>> {
        match ModelRef::parse(text) {
            Ok(value) => Some(Located { value, at: node.at }),
            Err(reason) => {
                self.problem(ProblemKind::Invalid, node.at, reason);
                None
            }
        }
    }

    /// `{model: ..., lora: ..., override_architecture: ...}`, mergekit's long form.
    fn model_form(&mut self, node: &Node, entries: &[Entry]) -> Option<Located<ModelRef>> {
        let mut model = None;
        let mut lora = String::new();
        let mut architecture = None;
        let before = self.problems.len();
        for entry in entries {
            match entry.key.as_str() {
                "model" => model = Some(self.path(&entry.node, "a model")),
                "lora" | "override_architecture" if entry.node.is_null() => {}
                "lora" => lora = self.adapters(&entry.node),
                "override_architecture" => architecture = self.text(entry),
                _ => self.other_key(&MODEL_FORM, entry),
            }
        }
        if self.problems.len() != before {
            return None;
        }
        let Some(model) = model else {
            self.problem(ProblemKind::Missing, node.at, "missing `model`");
            return None;
        };
        let model = self.parsed(node, &format!("{}{lora}", model?))?;
        if let Some(architecture) = architecture {
            self.architectures.push((model.value.clone(), architecture));
        }
        Some(model)
    }

    /// One adapter or a list of several, each as a name or in the long form; as they follow a model's name.
    fn adapters(&mut self, node: &Node) -> String {
        let each = match &node.value {
            Value::List(each) => each.as_slice(),
            _ => std::slice::from_ref(node),
        };
        let mut text = String::new();
        for node in each {
            let adapter = match &node.value {
                Value::Map(entries) => self.adapter_form(node, entries),
                _ => self.path(node, "an adapter"),
            };
            if let Some(adapter) = adapter {
                text.push('+');
                text.push_str(&adapter);
            }
        }
        text
    }

    /// `{path: ..., revision: ..., weight: ...}`.
    fn adapter_form(&mut self, node: &Node, entries: &[Entry]) -> Option<String> {
        let mut weight = None;
        let before = self.problems.len();
        let mut path = None;
        let mut revision = None;
        for entry in entries {
            match entry.key.as_str() {
                "path" => path = self.text(entry),
                "revision" | "weight" if entry.node.is_null() => {}
                "revision" => revision = self.text(entry),
                "weight" => weight = self.weight(entry),
                _ => self.other_key(&ADAPTER_FORM, entry),
            }
        }
        if self.problems.len() != before {
            return None;
        }
        let Some(path) = path else {
            self.problem(ProblemKind::Missing, node.at, "missing `path`");
            return None;
        };
        // A weight behind a revision that is a number tells which is which.
        let is_number = revision
            .as_ref()
            .is_some_and(|revision| revision.parse::<f64>().is_ok());
        let weight = weight.or(is_number.then_some(1.0));
        let revision = revision.map(|revision| format!("@{revision}"));
        let weight = weight.map(|weight| format!("@{weight}"));
        Some(format!(
            "{path}{}{}",
            revision.unwrap_or_default(),
            weight.unwrap_or_default()
        ))
    }

    /// The weight of an adapter.
    fn weight(&mut self, entry: &Entry) -> Option<f64> {
        /// Smaller ones are no decimal numbers of a few digits, and change nothing.
        const LEAST: f64 = 1e-9;
        let weight = match entry.node.value {
            Value::Int(weight) => Some(weight as f64),
            Value::Float(weight) => Some(weight),
            _ => None,
        };
        let is_usual = |weight: &f64| *weight == 0.0 || (LEAST..1e9).contains(&weight.abs());
        if let Some(weight) = weight.filter(is_usual) {
            return Some(weight);
        }
        let found = entry.node.value.found();
        let message =
            format!("expected a number such as 0.7 as the weight of an adapter, found {found}");
        self.problem(ProblemKind::Invalid, entry.node.at, message);
        None
    }

    /// A path as a string or in the long form.
    fn path(&mut self, node: &Node, what: &str) -> Option<String> {
        match &node.value {
            Value::Text(text) => Some(text.clone()),
            Value::Map(entries) => self.path_form(node, entries),
            other => {
                let message = format!("expected {what}, found {}", other.found());
                self.problem(ProblemKind::Invalid, node.at, message);
                None
            }
        }
    }

    /// `{path: ..., revision: ...}`.
    fn path_form(&mut self, node: &Node, entries: &[Entry]) -> Option<String> {
        let mut path = None;
        let mut revision = None;
        let before = self.problems.len();
        for entry in entries {
            match entry.key.as_str() {
                "path" => path = self.text(entry),
                "revision" if entry.node.is_null() => {}
                "revision" => revision = self.text(entry),
                _ => self.other_key(&PATH_FORM, entry),
            }
        }
        if self.problems.len() != before {
            return None;
        }
        match (path, revision) {
            (Some(path), Some(revision)) => Some(match path.rsplit_once('#') {
                Some((path, entry)) => format!("{path}@{revision}#{entry}"),
                None => format!("{path}@{revision}"),
            }),
            (Some(path), None) => Some(path),
            (None, _) => {
                self.problem(ProblemKind::Missing, node.at, "missing `path`");
                None
            }
        }
    }

    /// A string; the problem names the key that needs one.
    pub(super) fn text(&mut self, entry: &Entry) -> Option<String> {
        if let Value::Text(text) = &entry.node.value {
            return Some(text.clone());
        }
        let key = quoted(&entry.key);
        let found = entry.node.value.found();
        let message = format!("expected text for {key}, found {found}");
        let hint = match entry.node.value {
            Value::Bool(_) | Value::Int(_) | Value::Float(_) => {
                Some("if text is meant, put it in quotes")
            }
            _ => None,
        };
        self.refuse(ProblemKind::Invalid, entry.node.at, message, hint);
        None
    }

    /// `dtype:` and `out_dtype:`.
    pub(super) fn dtype(&mut self, entry: &Entry) -> Option<Dtype> {
        if entry.node.is_null() {
            return None;
        }
        let text = self.text(entry)?;
        let name = text.strip_prefix("torch.").unwrap_or(&text);
        if let Some((_, dtype)) = DTYPES.iter().find(|(known, _)| *known == name) {
            return Some(*dtype);
        }
        let key = quoted(&entry.key);
        let message = format!("unknown dtype {} for {key}", quoted(&text));
        let nickname = DTYPE_NICKNAMES
            .iter()
            .find(|(nickname, _)| name.eq_ignore_ascii_case(nickname));
        let known: Vec<&str> = DTYPES.iter().map(|(name, _)| *name).collect();
        let hint = match nickname {
            Some((_, name)) => Some(format!("did you mean `{name}`?")),
            None => suggestion(name, "the dtypes are", &known),
        };
        self.refuse(
            ProblemKind::Unknown,
            entry.node.at,
            message,
            hint.as_deref(),
        );
        None
    }
}
