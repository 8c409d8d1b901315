//! Decides how an assembly's router rows are made, and which cuts of experts depend on weights.

use std::sync::Arc;

use super::super::MoeOptions;
use super::super::family::Dense;
use super::super::router;
use super::super::split::{self, Splits};
use super::super::{Texts, file_of_rows, has_states, most_tokens, prompts};
use super::tensors::Assembly;
use plan::{Models, Problems};
use recipe::{GateMode, MoeRecipe};

/// The inputs of router rows other than the recipe.
pub(super) struct RouterParts<'a> {
    pub(super) recipe: &'a MoeRecipe,
    pub(super) options: &'a MoeOptions,
    pub(super) models: &'a Models,
    /// The model that computes hidden states, or whose embeddings are used.
    pub(super) backbone: usize,
    pub(super) dense: &'a Dense,
    /// The dense models; `None` for a model that only supplies a tokenizer.
    pub(super) denses: &'a [Option<Dense>],
    pub(super) names: Vec<String>,
    pub(super) layers: Vec<usize>,
    pub(super) shared_gate: bool,
    pub(super) splits: Option<Splits>,
}

/// How the router rows are made.
pub(super) fn recipe(parts: RouterParts<'_>, problems: &mut Problems) -> Option<router::Recipe> {
    let RouterParts {
        recipe,
        options,
        models,
        dense,
        shared_gate,
        ..
    } = parts;
    let mode = recipe.gate_mode.value;
    let file = match &recipe.router.file {
        None => None,
        Some(file) => Some(Arc::clone(&models.checkpoints[file_of_rows(models, file)?])),
    };
    let (experts, hidden) = (recipe.experts.len(), dense.hidden);
    if mode == GateMode::Orthogonal && experts + usize::from(shared_gate) > hidden {
        let message = format!("{experts} rows cannot be orthogonal in {hidden} dimensions");
        problems.add(
            Some(recipe.gate_mode.at),
            message,
            Some("use `random`".to_owned()),
        );
        return None;
    }
    let (prompts, model) = match recipe.uses_prompts() {
        true => {
            let shared = recipe.shared_experts.iter().take(usize::from(shared_gate));
            let mut texts = recipe.experts.iter().chain(shared).map(|expert| Texts {
                positive: &expert.positive_prompts,
                negative: &expert.negative_prompts,
                at: expert.at,
            });
            let prompts = prompts(&mut texts, recipe.gate_mode.at, models, problems)?;
            (
                prompts,
                Some(Arc::clone(&models.checkpoints[parts.backbone])),
            )
        }
        false => (Vec::new(), None),
    };
    let changes = match mode == GateMode::TaskVector {
        true => Some(changes(&parts, problems)?),
        false => None,
    };
    if mode != GateMode::CheapEmbed
        && let Some(model) = &model
        && !has_states(model, models.at[parts.backbone], problems)
    {
        return None;
    }
    Some(router::Recipe {
        mode,
        names: parts.names,
        hidden,
        experts,
        parts: recipe
            .upcycle
            .as_ref()
            .map_or(1, |cut| cut.value.granularity),
        shared_gate,
        seed: recipe.router.seed.unwrap_or(options.plan.seed),
        center: recipe.router.center,
        normalize: recipe
            .router
            .normalize
            .unwrap_or(mode.needs_prompts() || mode == GateMode::TaskVector),
        temperature: recipe.router.temperature.unwrap_or(1.0),
        file,
        layers: parts.layers,
        prompts,
        tokens: recipe.router.tokens.unwrap_or(mode.tokens()),
        model,
        most_tokens: most_tokens(dense, options),
        changes,
        beside: None,
        splits: parts.splits,
    })
}

/// The cuts of experts that depend on weights.
pub(super) fn splits(assembly: &Assembly<'_>) -> Option<Splits> {
    let mut models = std::collections::BTreeMap::new();
    let mut wanted = Vec::new();
    for ((model, layer), picks) in &assembly.cuts {
        let mut experts = assembly.experts.iter();
        let dense = experts.find(|expert| expert.model == *model)?.dense;
        let cut = &assembly.pieces.models.checkpoints[*model];
        models.insert(*model, Arc::clone(cut));
        let (gate, ..) = dense.decoder.input_matrix(false, dense.width);
        wanted.push(split::Split {
            model: *model,
            layer: *layer,
            gate: format!("model.layers.{layer}.mlp.{gate}"),
            shape: [dense.width, dense.hidden],
            picks: picks.clone(),
        });
    }
    Some(Splits {
        wanted,
        models,
        parts: assembly.upcycle.granularity,
        seed: assembly.seed,
    })
}

/// The models whose differences from the base become rows: the experts, and the shared expert if it has a gate.
fn changes(parts: &RouterParts<'_>, problems: &mut Problems) -> Option<router::Changes> {
    let RouterParts { recipe, models, .. } = parts;
    let base = models.index(&recipe.base_model.value)?;
    let changed = |model: usize| {
        Some(router::Changed {
            decoder: parts.denses[model].as_ref()?.decoder,
            width: parts.denses[model].as_ref()?.width,
            model: Arc::clone(&models.checkpoints[model]),
        })
    };
    let of_base = changed(base)?;
    let shared = recipe
        .shared_experts
        .iter()
        .take(usize::from(parts.shared_gate));
    let mut experts = Vec::new();
    for expert in recipe.experts.iter().chain(shared) {
        let model = models.index(&expert.source.value)?;
        if model == base {
            let message = format!(
                "the expert `{}` is the base, and `gate_mode: task_vector` makes rows from what differs from it",
                expert.source.value
            );
            let hint = "choose another `gate_mode`, or leave the expert out";
            problems.add(Some(expert.at), message, Some(hint.to_owned()));
            return None;
        }
        experts.push(changed(model)?);
    }
    Some(router::Changes {
        base: of_base,
        experts,
        fold_norms: recipe.fold_norms,
    })
}
