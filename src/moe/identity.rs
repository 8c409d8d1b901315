//! Proves that an assembly computes what its base does: with the base as every expert, both return the same logits.

use std::sync::Arc;

use super::MoeOptions;
use super::plan;
use checkpoint::{Checkpoint, Dtype, Resolver};
use errors::Refusal;
use forward::Decoder;
use plan::MergeResult;
use recipe::{Expert, GateMode, Located, MoeRecipe, RouterRecipe, Upcycle};

/// The largest relative difference of logits that float32 rounding explains.
const BOUND: f64 = 1e-5;

/// Lengths of the texts, in tokens, on which the two models are compared.
const TEXTS: [usize; 3] = [12, 5, 1];

/// Proves that an assembly computes what its base does. The base takes the place of every expert, in float32 and
/// without writing files, and the logits are compared with the base's own. Returns the largest difference between
/// logits, divided by the largest logit.
///
/// The recipe's target, layers, shared shares and experts per token are kept. Its changes to experts (noise, scales,
/// dropped neurons, other sources, a backbone) are left out. The base's weights are read about once per expert.
///
/// # Errors
///
/// The logits differ, the models cannot be assembled, or the forward pass does not support the family.
pub fn prove_identity(
    recipe: &MoeRecipe,
    resolver: &dyn Resolver,
    options: &MoeOptions,
) -> Result<f64, Refusal> {
    let base = &recipe.base_model;
    if recipe.results.iter().any(|result| {
        let name = result.name.as_ref();
        name.is_some_and(|name| name.value == base.value.path)
    }) {
        return Err(Refusal::new(format!(
            "`{}` is the result of a merge, and is not there to be compared with",
            base.value
        ))
        .with_hint("merge it first"));
    }
    let variant = identical(recipe);
    let planned = plan(&variant, &recipe.path, resolver, options);
    let planned = planned.map_err(|error| error.to_string())?;
    let (threads, donor) = (options.plan.settings.threads, planned.donor);
    for model in &planned.models {
        model.prepare(threads, &|| false)?;
    }
    let result = Arc::new(MergeResult::new(planned, false));
    let mixture = result.checkpoint("identical experts");
    let dense = &result.plan.models[donor];
    let vocabulary = dense.config().and_then(|config| config.vocab_size());
    let vocabulary = vocabulary
        .ok_or("the base's config has no `vocab_size`")?
        .max(1);
    // The tokens are spread over the whole vocabulary.
    let text = |(seed, length): (usize, &usize)| -> Vec<u32> {
        let token = |place: usize| ((seed * 31 + place + 1) * 7919 % vocabulary) as u32;
        (0..*length).map(token).collect()
    };
    let texts: Vec<Vec<u32>> = TEXTS.iter().enumerate().map(text).collect();
    let logits = |model: &Checkpoint| -> Result<Vec<Vec<f32>>, Refusal> {
        let config = model.config().ok_or("a model has no config.json")?;
        let told = |error: forward::ForwardError| {
            Refusal::from(&error).within(format_args!("`{}`", model.label()))
        };
        let decoder = Decoder::new(config.value(), model).map_err(told)?;
        decoder.logits(&texts, threads).map_err(told)
    };
    let (expected, found) = (logits(dense)?.concat(), logits(&mixture)?.concat());
    let largest = expected
        .iter()
        .fold(0.0, |most, logit| f64::from(logit.abs()).max(most));
    let pairs = expected.iter().zip(&found);
    let off = pairs.fold(0.0, |most, (a, b)| f64::from((a - b).abs()).max(most));
    if largest == 0.0 || !off.is_finite() || expected.len() != found.len() {
        return Err("the logits of the base are all zero, so they prove nothing".into());
    }
    let error = off / largest;
    if error > BOUND {
        let base = &base.value;
        return Err(Refusal::new(format!(
            "with `{base}` as every expert, logits differ by {error:.1e} of the largest, expected {BOUND:.0e} at most; \
             nothing was written"
        ))
        .with_hint(format!("the target does not compute what `{base}` does")));
    }
    Ok(error)
}

/// The same cuts, without dropped neurons.
fn undropped(upcycle: &Located<Upcycle>) -> Located<Upcycle> {
    let kept = Upcycle {
        drop: 0.0,
        ..upcycle.value
    };
    Located {
        value: kept,
        at: upcycle.at,
    }
}

/// The recipe with the base in place of every expert.
fn identical(recipe: &MoeRecipe) -> MoeRecipe {
    let base = &recipe.base_model;
    let expert = |expert: &Expert| Expert {
        source: Located {
            value: base.value.clone(),
            at: expert.source.at,
        },
        positive_prompts: Vec::new(),
        negative_prompts: Vec::new(),
        noise_scale: None,
        residual_scale: None,
        alpha: expert.alpha,
        at: expert.at,
    };
    // A shared expert that is added to the others has no dense counterpart.
    let shared = recipe
        .shared_experts
        .iter()
        .filter(|expert| expert.alpha.is_some());
    MoeRecipe {
        base_model: base.clone(),
        backbone: None,
        architecture: recipe.architecture.clone(),
        gate_mode: Located {
            value: GateMode::Random,
            at: recipe.gate_mode.at,
        },
        router: RouterRecipe::default(),
        dtype: Some(Dtype::F32),
        experts_per_token: recipe.experts_per_token.clone(),
        experts: recipe.experts.iter().map(expert).collect(),
        shared_experts: shared.map(expert).collect(),
        fold_norms: recipe.fold_norms,
        upcycle: recipe.upcycle.as_ref().map(undropped),
        layers: recipe.layers.clone(),
        results: Vec::new(),
        warnings: Vec::new(),
        path: recipe.path.clone(),
        text: recipe.text.clone(),
    }
}
