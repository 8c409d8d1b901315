//! What a method says of itself and of its parameters, and the values a tensor gets.

/// What the reference, the help and the recipe reader say of a merge method.
#[derive(Debug)]
pub struct MethodInfo {
    /// The name in recipes (`merge_method:`).
    pub name: &'static str,
    /// One line: what it does.
    pub summary: &'static str,
    /// What is computed, element by element.
    pub formula: &'static str,
    /// When to use it.
    pub when: &'static str,
    /// Where it departs from its paper or from mergekit, and why; empty if it does not.
    pub departs: &'static str,
    /// Where the formula comes from.
    pub source: &'static str,
    /// How many models it takes; the base included, unless it is [`BaseRule::Optional`].
    pub models: Arity,
    /// What it does with `base_model`.
    pub base: BaseRule,
    /// Its parameters, in the order of the reference.
    pub params: &'static [ParamInfo],
    /// Whether the result depends on `--seed`.
    pub random: bool,
}

/// How many models a method takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Arity {
    /// At least so many.
    pub min: usize,
    /// At most so many; `None` is no limit.
    pub max: Option<usize>,
}

/// What a method does with `base_model`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BaseRule {
    /// It cannot work without one.
    Required,
    /// The base is one of the models like the others; a base that `models:` does not list joins them last.
    OneOfModels,
    /// Without one the models themselves are merged; with one their differences from it are, and it does not
    /// count as one of them.
    Optional,
}

/// One parameter of a method.
#[derive(Debug)]
pub struct ParamInfo {
    /// The key under `parameters:`.
    pub name: &'static str,
    /// Which values it takes.
    pub kind: ParamKind,
    /// Whether each model has its own value.
    pub scope: ParamScope,
    /// The value when the recipe gives none; `None` and [`required`](Self::required) false is "unset".
    pub default: Option<ParamValue>,
    /// Whether the recipe must give a value.
    pub required: bool,
    /// What it does, in a sentence.
    pub doc: &'static str,
}

/// Which values a parameter takes.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum ParamKind {
    /// A finite number.
    Number,
    /// A number in `[min, max]`.
    Range {
        /// Smallest allowed.
        min: f64,
        /// Largest allowed; infinity where there is no limit, though the number is always finite.
        max: f64,
    },
    /// `true` or `false`.
    Bool,
    /// One of these words; a YAML `true` or `false` is looked up among `aliases`.
    Word {
        /// The words.
        words: &'static [&'static str],
        /// What a YAML boolean means: (`true`, `false`).
        booleans: Option<(&'static str, &'static str)>,
    },
}

/// Whether each model has its own value of a parameter.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ParamScope {
    /// One value for a tensor.
    Tensor,
    /// One value for each model.
    EachModel,
    /// One value for each model but the base.
    EachButBase,
}

/// A value of a parameter for one tensor, gradients and filters resolved.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum ParamValue {
    /// A number.
    Number(f64),
    /// A truth value.
    Bool(bool),
    /// One of the words of [`ParamKind::Word`].
    Word(&'static str),
}

/// The parameter values of one tensor: those of the tensor, and those of each source model.
#[derive(Debug, Clone, Default)]
pub struct TensorParams {
    /// Values of [`ParamScope::Tensor`] parameters; an unset one is absent.
    pub tensor: Vec<(&'static str, ParamValue)>,
    /// For each source, in source order, its values; an unset one is absent.
    pub sources: Vec<Vec<(&'static str, ParamValue)>>,
}

impl ParamKind {
    /// Whether a value is of this kind and within its bounds.
    pub fn accepts(self, value: ParamValue) -> bool {
        match (self, value) {
            (Self::Number, ParamValue::Number(number)) => number.is_finite(),
            (Self::Range { min, max }, ParamValue::Number(number)) => {
                number.is_finite() && (min..=max).contains(&number)
            }
            (Self::Bool, ParamValue::Bool(_)) => true,
            (Self::Word { words, .. }, ParamValue::Word(word)) => words.contains(&word),
            _ => false,
        }
    }
}

impl TensorParams {
    /// The number under `name` for the whole tensor; `None` if unset.
    pub fn number(&self, name: &str) -> Option<f64> {
        number(&self.tensor, name)
    }

    /// The truth value under `name`; false if unset.
    pub fn flag(&self, name: &str) -> bool {
        matches!(lookup(&self.tensor, name), Some(ParamValue::Bool(true)))
    }

    /// The word under `name`; empty if unset.
    pub fn word(&self, name: &str) -> &'static str {
        match lookup(&self.tensor, name) {
            Some(ParamValue::Word(word)) => word,
            _ => "",
        }
    }

    /// The number under `name` of one source; `None` if unset.
    pub fn source_number(&self, source: usize, name: &str) -> Option<f64> {
        self.sources
            .get(source)
            .and_then(|values| number(values, name))
    }
}

fn lookup(values: &[(&'static str, ParamValue)], name: &str) -> Option<ParamValue> {
    values
        .iter()
        .find(|(key, _)| *key == name)
        .map(|(_, value)| *value)
}

fn number(values: &[(&'static str, ParamValue)], name: &str) -> Option<f64> {
    match lookup(values, name) {
        Some(ParamValue::Number(number)) => Some(number),
        _ => None,
    }
}
