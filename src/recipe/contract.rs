//! A method's requirements on the whole recipe: how many models, which base, which parameters.

use std::collections::HashSet;

use super::problem::{Located, Position, Problem, ProblemKind, quoted};
use super::schema::{Inputs, Module, Recipe, Slice, Source};
use super::setting::Parameters;
use super::walk::Walk;
use checkpoint::ModelRef;
use methods::{Arity, BaseRule, MethodInfo, NeedOf, ParamScope, Statistic};

/// The inputs of one merge: all of `models:`, or those of one slice.
struct MergeInputs<'a> {
    inputs: Vec<Input<'a>>,
    /// The settings of its slice and its module.
    levels: Vec<&'a Parameters>,
    base: Option<&'a ModelRef>,
    /// The position for problems of the whole group.
    at: Position,
}

impl MergeInputs<'_> {
    /// Whether the group has the base that the method requires or allows. Without it, the count of models is off by one
    /// anyway.
    fn has_its_base(&self, method: &MethodInfo) -> bool {
        match method.base {
            BaseRule::OneOfModels => true,
            BaseRule::Optional => self.base.is_none() || self.lists_its_base(),
            BaseRule::Required => self.lists_its_base(),
        }
    }

    fn lists_its_base(&self) -> bool {
        let is_base = |input: &Input<'_>| self.base == Some(&input.model.value);
        self.inputs.iter().any(is_base)
    }
}

struct Input<'a> {
    model: &'a Located<ModelRef>,
    /// `None` for a base that `models:` does not list.
    parameters: Option<&'a Parameters>,
    statistics: Option<&'a Located<ModelRef>>,
}

/// Checks a recipe against its method's requirements.
pub(super) fn check(walk: &mut Walk<'_>, recipe: &Recipe) {
    let method_at = recipe.method_at;
    let groups: Vec<MergeInputs<'_>> = recipe
        .modules
        .iter()
        .flat_map(|module| match &module.inputs {
            Inputs::Models(sources) => vec![models_group(recipe, module, sources)],
            Inputs::Slices(slices) => slices
                .iter()
                .map(|slice| slice_group(recipe, module, slice))
                .collect(),
        })
        .collect();
    // If an input could not be read, the group cannot be counted, and the missing one may be its base.
    if !walk.incomplete {
        check_duplicates(walk, recipe);
        check_base(walk, recipe, &groups, method_at);
        for group in groups
            .iter()
            .filter(|group| group.has_its_base(recipe.method))
        {
            check_count(walk, recipe.method, group);
        }
    }
    check_required(walk, recipe, &groups, method_at);
    check_statistics(walk, recipe, &groups, method_at);
    warn_of_base_settings(walk, recipe.method, &groups);
    warn_of_joined_bases(walk, recipe.method, &groups);
    warn_of_schedules(walk, recipe);
}

fn models_group<'a>(
    recipe: &'a Recipe,
    module: &'a Module,
    sources: &'a [Source],
) -> MergeInputs<'a> {
    let mut inputs: Vec<Input<'a>> = sources
        .iter()
        .map(|source| Input {
            model: &source.model,
            parameters: Some(&source.parameters),
            statistics: source.statistics.as_ref(),
        })
        .collect();
    if let Some(base) = &recipe.base_model
        && !sources.iter().any(|s| s.model.value == base.value)
    {
        inputs.push(Input {
            model: base,
            parameters: None,
            statistics: None,
        });
    }
    MergeInputs {
        inputs,
        levels: vec![&module.parameters],
        base: recipe.base_model.as_ref().map(|base| &base.value),
        at: module.at,
    }
}

fn slice_group<'a>(recipe: &'a Recipe, module: &'a Module, slice: &'a Slice) -> MergeInputs<'a> {
    let inputs = slice.sources.iter().map(|source| Input {
        model: &source.model,
        parameters: Some(&source.parameters),
        statistics: source.statistics.as_ref(),
    });
    MergeInputs {
        inputs: inputs.collect(),
        levels: vec![&slice.parameters, &module.parameters],
        base: recipe.base_of(slice).map(|base| &base.value),
        at: slice.at,
    }
}

/// A model listed twice is a mistake, as in mergekit; two ranges of its layers in the same slice are not.
fn check_duplicates(walk: &mut Walk<'_>, recipe: &Recipe) {
    for module in &recipe.modules {
        match &module.inputs {
            Inputs::Models(sources) => {
                let mut seen = HashSet::new();
                for source in sources {
                    if !seen.insert(&source.model.value) {
                        duplicate(walk, &source.model, "in `models`");
                    }
                }
            }
            Inputs::Slices(slices) => {
                for slice in slices {
                    let base = recipe.base_of(slice).map(|base| &base.value);
                    let mut seen = HashSet::new();
                    for source in &slice.sources {
                        let model = &source.model.value;
                        // Two entries could each be the base.
                        let range = (base != Some(model)).then_some(&source.layer_range);
                        if !seen.insert((model, range)) {
                            duplicate(walk, &source.model, "in this slice");
                        }
                    }
                }
            }
        }
    }
}

fn duplicate(walk: &mut Walk<'_>, model: &Located<ModelRef>, place: &str) {
    let message = format!("the model {} is listed twice {place}", name(&model.value));
    walk.refuse(
        ProblemKind::Invalid,
        model.at,
        message,
        Some("list it once"),
    );
}

fn check_base(
    walk: &mut Walk<'_>,
    recipe: &Recipe,
    groups: &[MergeInputs<'_>],
    method_at: Position,
) {
    let method = recipe.method;
    if method.base == BaseRule::OneOfModels {
        return;
    }
    if method.base == BaseRule::Required && groups.iter().any(|group| group.base.is_none()) {
        let message = format!("`{}` needs a `base_model`", method.name);
        let hint = "add `base_model:` and the model that the others are measured from";
        walk.refuse(ProblemKind::Missing, method_at, message, Some(hint));
    }
    for group in groups {
        let Some(base) = group.base.filter(|_| !group.has_its_base(method)) else {
            continue;
        };
        let message = format!(
            "the base {} is none of the sources of this slice",
            name(base)
        );
        let without = match method.base {
            BaseRule::Optional => ", or name no `base_model` to merge without one",
            _ => "",
        };
        let hint = format!(
            "`{}` needs its base in every slice: add it to `sources` with its `layer_range`{without}",
            method.name
        );
        walk.refuse(ProblemKind::Missing, group.at, message, Some(&hint));
    }
}

fn check_count(walk: &mut Walk<'_>, method: &MethodInfo, group: &MergeInputs<'_>) {
    let Arity { min, max } = method.models;
    // A base that the method does not require is not counted.
    let beside_base = method.base == BaseRule::Optional && group.lists_its_base();
    let found = group.inputs.len() - usize::from(beside_base);
    if min <= found && max.is_none_or(|max| found <= max) {
        return;
    }
    let noun = |count| if count == 1 { "model" } else { "models" };
    let expected = match max {
        Some(max) if max == min => format!("{min} {}", noun(min)),
        Some(max) if max < found => format!("at most {max} {}", noun(max)),
        _ => format!("at least {min} {}", noun(min)),
    };
    let joined = group.inputs.iter().any(|input| input.parameters.is_none());
    let with_base = match (method.base, joined) {
        (BaseRule::Optional, _) if beside_base => " besides the base",
        (BaseRule::Optional, _) => "",
        (_, true) => ", with the base that `models` does not list",
        (BaseRule::Required, false) => ", the base included",
        (BaseRule::OneOfModels, false) => "",
    };
    let message = format!(
        "`{}` takes {expected}, found {found}{with_base}",
        method.name
    );
    let hint = match found < min {
        true => "list more models",
        false => {
            "list fewer models, or choose a method that takes more: `weld methods` has them all"
        }
    };
    walk.refuse(ProblemKind::Invalid, group.at, message, Some(hint));
}

fn check_required(
    walk: &mut Walk<'_>,
    recipe: &Recipe,
    groups: &[MergeInputs<'_>],
    method_at: Position,
) {
    let required = recipe.method.params.iter().filter(|info| info.required);
    for info in required {
        let set = |level: Option<&Parameters>| level.is_some_and(|p| p.get(info.name).is_some());
        if walk.flawed.contains(info.name) || set(Some(&recipe.parameters)) {
            continue;
        }
        // If a required base is missing, one model too many would be asked for its value.
        let base_matters = info.scope == ParamScope::EachButBase;
        if base_matters && walk.base_unread {
            continue;
        }
        let unset: Vec<&MergeInputs<'_>> = groups
            .iter()
            .filter(|group| !group.levels.iter().any(|level| set(Some(level))))
            .collect();
        if info.scope == ParamScope::Tensor {
            let at = match unset.first() {
                None => continue,
                Some(group) if unset.len() < groups.len() => group.at,
                Some(_) => method_at,
            };
            let message = format!(
                "missing required parameter `{}` of `{}`",
                info.name, recipe.method.name
            );
            let hint = format!("add `{}` to the `parameters` of the recipe", info.name);
            walk.refuse(ProblemKind::Missing, at, message, Some(&hint));
            continue;
        }
        // A model may lack it in each of a hundred slices: reported once.
        let mut said = HashSet::new();
        let mut said_of = HashSet::new();
        for group in unset {
            if base_matters && recipe.method.base == BaseRule::Required && group.base.is_none() {
                continue;
            }
            for input in &group.inputs {
                let is_base = group.base == Some(&input.model.value);
                let needs = info.scope == ParamScope::EachModel || !is_base;
                if !needs || set(input.parameters) || !said.insert(&input.model.value) {
                    continue;
                }
                match walk.is_found(input.model.at) {
                    // Once for all models of a pattern.
                    true if !said_of.insert(input.model.at) => {}
                    true => missing_schedule(walk, info.name, input.model.at),
                    false => missing_parameter(walk, info.name, input),
                }
            }
        }
    }
}

/// Files of statistics stand where the method reads them, and nowhere else.
fn check_statistics(
    walk: &mut Walk<'_>,
    recipe: &Recipe,
    groups: &[MergeInputs<'_>],
    method_at: Position,
) {
    if walk.incomplete {
        return;
    }
    let method = recipe.method;
    let wanted = |of| method.statistics.filter(|need| need.of == of);
    let inputs = || groups.iter().flat_map(|group| &group.inputs);
    let (each, base) = (wanted(NeedOf::EachModel), wanted(NeedOf::Base));
    match (base, &recipe.statistics) {
        (Some(need), None) => {
            let message = format!("`{}` needs `statistics` of the base", method.name);
            let base = recipe.base_model.as_ref().map(|base| name(&base.value));
            let hint = made_by(need.kind, base.as_deref().unwrap_or("BASE"));
            walk.refuse(ProblemKind::Missing, method_at, message, Some(&hint));
        }
        (None, Some(file)) => {
            let message = format!("`{}` reads no statistics of the base", method.name);
            let hint = match each {
                Some(_) => "it reads those of each model: put `statistics` beside `model`",
                None => "remove `statistics`",
            };
            walk.refuse(ProblemKind::Invalid, file.at, message, Some(hint));
        }
        (Some(_), Some(file)) => {
            let of_recipe = recipe.base_model.as_ref().map(|base| &base.value);
            let other = groups
                .iter()
                .find(|group| group.base.is_some() && group.base != of_recipe);
            if let Some(group) = other {
                let message =
                    "this slice has another base than the recipe, of which `statistics` are";
                let hint = "name one `base_model` for the whole recipe, and none in slices";
                let at = if of_recipe.is_some() {
                    group.at
                } else {
                    file.at
                };
                walk.refuse(ProblemKind::Invalid, at, message, Some(hint));
            }
        }
        (None, None) => {}
    }
    let mut said = HashSet::new();
    for input in inputs() {
        match (each, input.statistics) {
            (Some(need), None) if said.insert(&input.model.value) => {
                let model = name(&input.model.value);
                let message = format!("`{}` needs `statistics` of the model {model}", method.name);
                let hint = made_by(need.kind, &model);
                walk.refuse(ProblemKind::Missing, input.model.at, message, Some(&hint));
            }
            (None, Some(file)) => {
                let message = format!("`{}` reads no statistics of its models", method.name);
                let hint = match base {
                    Some(_) => "it reads those of the base: put `statistics` beside `base_model`",
                    None => "remove `statistics`",
                };
                walk.refuse(ProblemKind::Invalid, file.at, message, Some(hint));
            }
            _ => {}
        }
    }
}

/// How statistics are made, and where the recipe names them.
fn made_by(kind: Statistic, model: &str) -> String {
    let made = match kind {
        Statistic::Fisher => "docs/statistics.md has a script that makes them".to_owned(),
        Statistic::Gram | Statistic::Magnitude => {
            let kind = match kind {
                Statistic::Gram => "gram",
                _ => "magnitude",
            };
            format!(
                "`weld stats {} --data TEXTS.jsonl --keep {kind} --out FILE` makes them",
                model.trim_matches('`')
            )
        }
    };
    format!("{made}; name the file: `statistics: FILE`")
}

fn missing_schedule(walk: &mut Walk<'_>, parameter: &str, at: Position) {
    let message = format!("missing required parameter `{parameter}` for these models");
    let hint = match parameter {
        "weight" => "say how much each counts: `schedule: mean`, or a `weight` in the `parameters` of the recipe"
            .to_owned(),
        _ => format!("add `{parameter}` to the `parameters` of the recipe"),
    };
    walk.refuse(ProblemKind::Missing, at, message, Some(&hint));
}

fn missing_parameter(walk: &mut Walk<'_>, parameter: &str, input: &Input<'_>) {
    let message = format!(
        "missing required parameter `{parameter}` for the model {}",
        name(&input.model.value)
    );
    let hint = match input.parameters {
        Some(_) => format!("add `{parameter}` to its `parameters`, or to those of the recipe"),
        None => format!(
            "`models` does not list the base, so it joins them: list it with a `{parameter}`, or add \
             `{parameter}` to the `parameters` of the recipe"
        ),
    };
    walk.refuse(ProblemKind::Missing, input.model.at, message, Some(&hint));
}

/// mergekit's own examples give the base a weight that is never used.
fn warn_of_base_settings(walk: &mut Walk<'_>, method: &MethodInfo, groups: &[MergeInputs<'_>]) {
    for group in groups {
        for input in &group.inputs {
            let is_base = group.base == Some(&input.model.value);
            let Some(parameters) = input.parameters.filter(|_| is_base) else {
                continue;
            };
            for info in method.params {
                if info.scope == ParamScope::EachButBase
                    && let Some(setting) = parameters.get(info.name)
                {
                    let message = format!(
                        "`{}` of the base {} has no effect",
                        info.name,
                        name(&input.model.value)
                    );
                    let hint = format!("`{}` takes it of every model but the base", method.name);
                    walk.warn(
                        Problem::new(ProblemKind::Invalid, setting.at(), message).with_hint(hint),
                    );
                }
            }
        }
    }
}

/// A schedule gives each model a weight of its own, which hides one for all.
fn warn_of_schedules(walk: &mut Walk<'_>, recipe: &Recipe) {
    for module in &recipe.modules {
        let Inputs::Models(sources) = &module.inputs else {
            continue;
        };
        for (name, setting) in module.parameters.iter().chain(recipe.parameters.iter()) {
            let of_source = |source: &Source| {
                let own = source.parameters.get(name)?.at();
                Some(own).filter(|own| walk.is_found(*own))
            };
            if sources.iter().any(|source| of_source(source).is_some()) {
                let message =
                    format!("`{name}` has no effect: `schedule` gives each model one of its own");
                let problem = Problem::new(ProblemKind::Invalid, setting.at(), message);
                walk.warn(problem.with_hint(format!("remove `{name}`, or `schedule`")));
            }
        }
    }
}

/// A base that is not listed is merged like the listed models; mergekit does so silently.
fn warn_of_joined_bases(walk: &mut Walk<'_>, method: &MethodInfo, groups: &[MergeInputs<'_>]) {
    if method.base != BaseRule::OneOfModels {
        return;
    }
    for input in groups.iter().flat_map(|group| &group.inputs) {
        if input.parameters.is_none() {
            let message = format!(
                "the base {}, which `models` does not list, is merged as one of the models",
                name(&input.model.value)
            );
            let hint = format!(
                "`{}` subtracts no base: list it to say so, or remove `base_model` to leave it out",
                method.name
            );
            walk.warn(Problem::new(ProblemKind::Invalid, input.model.at, message).with_hint(hint));
        }
    }
}

fn name(model: &ModelRef) -> String {
    quoted(&model.to_string())
}
