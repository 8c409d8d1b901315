//! How a method describes itself and its parameters, and the parameter values of a tensor.

/// A merge method's description, for the reference, the help and the recipe reader.
#[derive(Debug)]
pub struct MethodInfo {
    /// The name in recipes (`merge_method:`).
    pub name: &'static str,
    /// What the method does, in one line.
    pub summary: &'static str,
    /// What is computed, element by element.
    pub formula: &'static str,
    /// When to use the method.
    pub when: &'static str,
    /// Where the method departs from its paper or from mergekit, and why; empty if it does not.
    pub departs: &'static str,
    /// Where the formula comes from.
    pub source: &'static str,
    /// How many models it takes. The base counts, unless `base` is [`BaseRule::Optional`].
    pub models: Arity,
    /// What it does with `base_model`.
    pub base: BaseRule,
    /// Its parameters, in the order of the reference.
    pub params: &'static [ParamInfo],
    /// Whether the result depends on `--seed`.
    pub random: bool,
    /// The statistics from data that it needs, if any.
    pub statistics: Option<Need>,
}

/// Statistics from data that a method needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Need {
    /// What is needed.
    pub kind: Statistic,
    /// Of which models.
    pub of: NeedOf,
}

/// The models of which statistics are needed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NeedOf {
    /// Of each model that is merged: `statistics` of its entry.
    EachModel,
    /// Of the base: `statistics` of the recipe.
    Base,
}

/// A kind of statistic from data.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Statistic {
    /// The Gram matrix of the input of a linear layer, `[in, in]`: the sum of x' x over tokens.
    Gram,
    /// The mean magnitude of each feature of the input of a linear layer, `[in]`.
    Magnitude,
    /// The diagonal of the Fisher information of a weight, in its shape.
    Fisher,
}

/// How many models a method takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Arity {
    /// The least number.
    pub min: usize,
    /// The largest number; `None` for no limit.
    pub max: Option<usize>,
}

/// What a method does with `base_model`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BaseRule {
    /// The method needs a base.
    Required,
    /// The base is one of the models. A base that `models:` does not list is added to them at the end.
    OneOfModels,
    /// Without a base, the models themselves are merged. With one, their differences from it are merged, and the
    /// base does not count as a model.
    Optional,
}

/// One parameter of a method.
#[derive(Debug)]
pub struct ParamInfo {
    /// The key under `parameters:`.
    pub name: &'static str,
    /// The values it takes.
    pub kind: ParamKind,
    /// Whether each model has its own value.
    pub scope: ParamScope,
    /// The value if the recipe gives none. If this is `None` and [`required`](Self::required) is false, it stays
    /// unset.
    pub default: Option<ParamValue>,
    /// Whether the recipe must give a value.
    pub required: bool,
    /// What the parameter does, in a sentence.
    pub doc: &'static str,
}

/// The values that a parameter takes.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum ParamKind {
    /// A finite number.
    Number,
    /// A number in `[min, max]`.
    Range {
        /// Smallest allowed.
        min: f64,
        /// Largest allowed; infinity for no limit. The value itself is always finite.
        max: f64,
    },
    /// `true` or `false`.
    Bool,
    /// One of some words. A YAML `true` or `false` stands for a word if `booleans` says so.
    Word {
        /// The words.
        words: &'static [&'static str],
        /// The words that YAML's `true` and `false` stand for.
        booleans: Option<(&'static str, &'static str)>,
    },
}

/// Whether each model has its own value of a parameter.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ParamScope {
    /// One value for all models.
    Tensor,
    /// One value for each model.
    EachModel,
    /// One value for each model but the base.
    EachButBase,
}

/// A parameter's value for one tensor, with gradients and filters resolved.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum ParamValue {
    /// A number.
    Number(f64),
    /// A boolean.
    Bool(bool),
    /// A word of [`ParamKind::Word`].
    Word(&'static str),
}

/// The parameter values of one tensor: those for all models, and those of each source.
///
/// A parameter with a default in the registry always has a value here, so methods need no defaults of their own.
#[derive(Debug, Clone, Default)]
pub struct TensorParams {
    /// Values of [`ParamScope::Tensor`] parameters; an unset one is absent.
    pub tensor: Vec<(&'static str, ParamValue)>,
    /// For each source, its values, in source order; an unset one is absent.
    pub sources: Vec<Vec<(&'static str, ParamValue)>>,
}

impl TensorParams {
    /// The values of a method for this many sources: those that `set` gives, by the parameter's name and the source
    /// (`None` for what is one for all models), else its defaults.
    pub(super) fn of_method(
        info: &MethodInfo,
        sources: usize,
        set: impl Fn(&str, Option<usize>) -> Option<ParamValue>,
    ) -> Self {
        let mut params = Self {
            tensor: Vec::new(),
            sources: vec![Vec::new(); sources],
        };
        for param in info.params {
            let value = |source| {
                let value = set(param.name, source).or(param.default);
                value.map(|value| (param.name, value))
            };
            match param.scope {
                ParamScope::Tensor => params.tensor.extend(value(None)),
                ParamScope::EachModel | ParamScope::EachButBase => {
                    let all = params.sources.iter_mut().enumerate();
                    all.for_each(|(source, values)| values.extend(value(Some(source))));
                }
            }
        }
        params
    }

    /// The number `name`, one for all models; 0 if unset.
    pub fn number(&self, name: &str) -> f64 {
        number(&self.tensor, name).unwrap_or(0.0)
    }

    /// The boolean `name`; false if unset.
    pub fn flag(&self, name: &str) -> bool {
        matches!(lookup(&self.tensor, name), Some(ParamValue::Bool(true)))
    }

    /// The word `name`; empty if unset.
    pub fn word(&self, name: &str) -> &'static str {
        match lookup(&self.tensor, name) {
            Some(ParamValue::Word(word)) => word,
            _ => "",
        }
    }

    /// The number `name` of one source; 0 if unset.
    pub fn source_number(&self, source: usize, name: &str) -> f64 {
        self.optional_source_number(source, name).unwrap_or(0.0)
    }

    /// The boolean `name` of one source; false if unset.
    pub fn source_flag(&self, source: usize, name: &str) -> bool {
        let values = self.sources.get(source);
        let value = values.and_then(|values| lookup(values, name));
        matches!(value, Some(ParamValue::Bool(true)))
    }

    /// The number `name` of one source; `None` if unset.
    pub fn optional_source_number(&self, source: usize, name: &str) -> Option<f64> {
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
