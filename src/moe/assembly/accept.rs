//! Refuses what a recipe asks for and its target cannot hold.

use super::super::exact::{self, Misfit};
use super::super::family::Dense;
use super::super::targets::Target;
use super::Inputs;
use architecture::{SharedWidth, Sparse};
use plan::Problems;
use recipe::{MoeRecipe, Position, Upcycle};

/// The target that the recipe names, or the default for the base's family.
pub(super) fn target(recipe: &MoeRecipe, base: &Dense, problems: &mut Problems) -> Option<Target> {
    let family = base.family.name();
    let known = || -> Vec<&str> { Target::all().map(|target| target.model_type).collect() };
    let Some(asked) = &recipe.architecture else {
        let is_exact = |target: &Target| exact::of_base(base, *target, family).is_empty();
        let target = Target::by_default(family, !recipe.shared_experts.is_empty(), is_exact);
        if target.is_none() {
            let message = format!("no target holds a `{family}` and a shared expert");
            problems.add(
                recipe.shared_experts.first().map(|expert| expert.at),
                message,
                None,
            );
        }
        return target;
    };
    match Target::named(&asked.value)[..] {
        [target] => Some(target),
        [] if asked.value.to_lowercase().starts_with("deepseek") => {
            let message = "`DeepSeek MoE` needs code of its own to be loaded, which is not written";
            let hint = "`architecture: glm4_moe` holds a Llama with shared experts exactly, in stock transformers";
            problems.add(Some(asked.at), message, Some(hint.to_owned()));
            None
        }
        [] => {
            let near = recipe::nearest(&asked.value, known());
            let near = near.map_or(String::new(), |near| format!("did you mean `{near}`? "));
            let message = format!("unknown architecture `{}`", asked.value);
            let hint = format!("{near}the targets are {}", known().join(", "));
            problems.add(Some(asked.at), message, Some(hint));
            None
        }
        ref several => {
            // If the word fits several targets, the one that holds the base exactly is taken.
            let holds = several.iter().find(|target| target.holds(family));
            holds.or(several.first()).copied()
        }
    }
}

/// Returns the reasons why the assembly would not compute exactly what the models do. Mismatches that no option can
/// allow, such as matrices of other shapes, go to `problems`.
pub(super) fn misfits(
    inputs: &Inputs<'_>,
    problems: &mut Problems,
) -> Option<Vec<(Option<Position>, Misfit)>> {
    let (recipe, models) = (inputs.recipe, inputs.models);
    let (base, of_base) = (inputs.base, inputs.dense);
    let base_at = Some(recipe.base_model.at);
    let mut found: Vec<(Option<Position>, Misfit)> =
        exact::of_base(of_base, inputs.target, models.label(base))
            .into_iter()
            .map(|misfit| (base_at, misfit))
            .collect();
    let experts = inputs.experts.iter().chain(&inputs.shared);
    let backbone = recipe.backbone.as_ref();
    let others = experts
        .map(|expert| (expert.model, expert.recipe.source.at))
        .chain(backbone.map(|named| (inputs.backbone, named.at)));
    let mut looked_at = vec![base];
    for (model, at) in others {
        if looked_at.contains(&model) {
            continue;
        }
        looked_at.push(model);
        let (other, label) = (inputs.denses[model].as_ref()?, models.label(model));
        for misfit in exact::of_expert(of_base, other, label) {
            problems.add_error(Some(at), &misfit);
        }
        let surroundings = exact::of_surroundings(of_base, other, label);
        found.extend(surroundings.into_iter().map(|misfit| (Some(at), misfit)));
    }
    if of_base.mlp_bias {
        for misfit in exact::of_expert(of_base, of_base, models.label(base)) {
            problems.add_error(base_at, &misfit);
        }
    }
    Some(found)
}

/// Whether the recipe asks for a shared expert and the target has a place for it.
pub(super) fn has_shared_expert(inputs: &Inputs<'_>, problems: &mut Problems) -> bool {
    let (recipe, target, shared) = (inputs.recipe, inputs.target, &inputs.shared);
    let name = target.model_type;
    if let Some(second) = shared.get(1) {
        let message = format!(
            "`{name}` has one shared expert, and the recipe lists {}",
            shared.len()
        );
        problems.add(
            Some(second.recipe.at),
            message,
            Some("keep one of them".to_owned()),
        );
    }
    let Some(first) = shared.first() else {
        return false;
    };
    let Some(layout) = &target.mixture.shared else {
        let message = format!("`{name}` has no shared experts");
        let hint = "`architecture: qwen2_moe`, `glm4_moe`, `dots1` or `granitemoeshared` has";
        problems.add(Some(first.recipe.at), message, Some(hint.to_owned()));
        return false;
    };
    let parts = recipe
        .upcycle
        .as_ref()
        .map(|upcycle| upcycle.value.granularity);
    if layout.width == SharedWidth::Fixed && parts.is_some_and(|parts| parts > 1) {
        let message = format!(
            "the shared expert of a `{name}` is as wide as each of the others, and `granularity` makes these narrower"
        );
        let hint = "leave `granularity` or the shared expert out";
        problems.add(Some(first.recipe.at), message, Some(hint.to_owned()));
    }
    let mode = recipe.gate_mode.value;
    let prompts = !first.recipe.positive_prompts.is_empty();
    if layout.gate.is_some() && first.recipe.alpha.is_none() && mode.needs_prompts() && !prompts {
        let message = format!(
            "the shared expert of a `{name}` has a gate of its own, and no `positive_prompts` to make it from"
        );
        let hint = "give it prompts, or say `alpha`: its share of the result, whatever the token";
        problems.add(Some(first.recipe.at), message, Some(hint.to_owned()));
    }
    true
}

/// For each layer, whether it gets experts.
pub(super) fn layers_with_experts(
    recipe: &MoeRecipe,
    target: Target,
    base: &Dense,
    problems: &mut Problems,
) -> Vec<bool> {
    let Some(layers) = &recipe.layers else {
        return vec![true; base.layers];
    };
    let at = Some(layers.at);
    let mut ranges = layers.value.0.iter();
    if let Some((first, end)) = ranges
        .find(|(first, end)| *first >= base.layers || end.is_some_and(|end| end > base.layers))
    {
        let range = end.map_or(format!("{first}-"), |end| format!("{first}-{end}"));
        let message = format!(
            "the layers `{range}` are not all there: the base has {}",
            base.layers
        );
        let hint = "a range is half-open: `0-4` is four layers, 0 to 3".to_owned();
        problems.add(at, message, Some(hint));
        return vec![true; base.layers];
    }
    let has: Vec<bool> = (0..base.layers)
        .map(|layer| layers.value.has(layer))
        .collect();
    let name = target.model_type;
    let first = has.iter().position(|has| *has).unwrap_or(0);
    let last = has.iter().rposition(|has| *has).unwrap_or(0);
    let one_run = has.iter().take(last + 1).skip(first).all(|has| *has);
    let refusal = match target.mixture.sparse {
        _ if has.iter().all(|has| *has) => None,
        Sparse::MlpOnlyLayers => None,
        Sparse::All => Some("has experts in every layer"),
        Sparse::FirstDense(_) => {
            (!one_run || last + 1 < has.len()).then_some("has its dense layers before all others")
        }
        Sparse::StartAndEnd => (!one_run).then_some("has its layers with experts in one run"),
    };
    if let Some(refusal) = refusal {
        let message = format!("`{name}` {refusal}, and `layers` says otherwise");
        let hint =
            "`qwen2_moe` and `qwen3_moe` take any layers; `glm4_moe` and `dots1` the last ones"
                .to_owned();
        problems.add(at, message, Some(hint));
    }
    has
}

/// How the experts are cut and changed; refused if they cannot be cut into equal parts.
pub(super) fn upcycle(
    recipe: &MoeRecipe,
    base: &Dense,
    problems: &mut Problems,
) -> Option<Upcycle> {
    let Some(upcycle) = &recipe.upcycle else {
        return Some(Upcycle::default());
    };
    let (width, parts) = (base.width, upcycle.value.granularity);
    if !width.is_multiple_of(parts) {
        let message = format!(
            "the width of the experts (`intermediate_size` {width}) cannot be cut into {parts} equal parts"
        );
        let hint = "choose a `granularity` that divides it";
        problems.add(Some(upcycle.at), message, Some(hint.to_owned()));
        return None;
    }
    Some(upcycle.value)
}
