//! Assembles dense models as the experts of one mixture: opens the models, refuses what does not fit, decides the rest.

mod rows;
mod tensors;

use super::config;
use super::exact::{self, Misfit};
use super::family::Dense;
use super::pieces::Pieces;
use super::router::Invented;
use super::split::Cuts;
use super::targets::Target;
use super::{Decided, check_vocabularies, file_of_rows, finish, open, report_misfits};
use architecture::Sparse;
use checkpoint::{ModelRef, Resolver};
use numeric::FloatType;
use plan::{self, Models, Options, Plan, Problems, Results};
use recipe::{Expert, MoeRecipe, Position, Split, Upcycle};
use rows::RouterParts;
use tensors::{Assembly, Source};

/// Plans the assembly.
pub(super) fn attempt(
    recipe: &MoeRecipe,
    path: &str,
    resolver: &dyn Resolver,
    options: &Options,
    results: &Results,
    mut notes: Vec<String>,
    problems: &mut Problems,
) -> Option<Plan> {
    let file = recipe.router.file.as_ref();
    let models = open(
        &mut recipe.mentions(),
        file,
        resolver,
        options,
        results,
        problems,
    )?;
    notes.extend(models.notes());
    let index = |model: &ModelRef| models.index(model);
    let base = index(&recipe.base_model.value)?;
    let backbone = match &recipe.backbone {
        Some(backbone) => index(&backbone.value)?,
        None => base,
    };
    let dense = denses(&models, problems)?;
    let of_model = |model: usize| dense[model].as_ref();
    let of_base = of_model(base)?;
    let source = |expert| {
        let expert: &Expert = expert;
        let model = models.index(&expert.source.value)?;
        Some(Source {
            recipe: expert,
            model,
            dense: of_model(model)?,
        })
    };
    let experts: Vec<Source<'_>> = recipe.experts.iter().map(source).collect::<Option<_>>()?;
    let shared: Vec<Source<'_>> = recipe
        .shared_experts
        .iter()
        .map(source)
        .collect::<Option<_>>()?;
    let target = target(recipe, of_base, problems)?;

    let backbone_at = recipe.backbone.as_ref().map(|named| (backbone, named.at));
    let others: Vec<(usize, Position)> = experts
        .iter()
        .chain(&shared)
        .map(|expert| (expert.model, expert.recipe.source.at))
        .chain(backbone_at)
        .collect();
    let misfits = misfits(recipe, target, &models, base, &dense, &others, problems)?;
    report_misfits(misfits, options.moe.inexact, &mut notes, problems);
    check_vocabularies(&models, options.moe.inexact, &mut notes, problems);
    let shared = shared_expert(recipe, target, shared, problems);
    let has_experts = layers_with_experts(recipe, target, of_base, problems);
    if recipe.fold_norms && of_base.decoder.mlp_norm().is_none() {
        let message = format!(
            "`fold_norms` folds the norm before the MLP, and `{}` has none",
            of_base.family.name()
        );
        problems.add(
            Some(recipe.gate_mode.at),
            message,
            Some("remove it".to_owned()),
        );
    }
    if !problems.is_empty() {
        return None;
    }

    let upcycle = upcycle(recipe, of_base, problems)?;
    let parts = upcycle.granularity;
    let dtype = recipe.dtype.and_then(FloatType::of);
    let layers = (0..of_base.layers).filter(|layer| has_experts[*layer]);
    let layers: Vec<usize> = layers.collect();
    let cuts = late_cuts(upcycle, &experts, &layers);
    let assembly = Assembly {
        pieces: Pieces::new(&models, backbone, dtype),
        base: backbone,
        base_at: Some(recipe.backbone.as_ref().unwrap_or(&recipe.base_model).at),
        dense: of_base,
        target,
        names: target.names(options.moe.fused),
        shared,
        experts,
        has_experts,
        fold_norms: recipe.fold_norms,
        upcycle,
        cuts,
        seed: recipe.router.seed.unwrap_or(options.seed),
    };
    let mut tensors = assembly.tensors(problems);
    if !problems.is_empty() {
        return None;
    }
    let shared_gate = tensors
        .invented
        .iter()
        .any(|(_, what)| matches!(what, Invented::SharedGate(_)));
    let random = recipe.gate_mode.value.is_random()
        || upcycle.drop > 0.0
        || recipe
            .experts
            .iter()
            .chain(&recipe.shared_experts)
            .any(|expert| expert.noise_scale.is_some());
    let config = models.checkpoints[base].config().map(|config| {
        let dtypes = tensors
            .planned
            .iter()
            .find(|tensor| tensor.name.ends_with("embed_tokens.weight"));
        config::config(
            config,
            &config::Assembled {
                target,
                base: of_base,
                experts: assembly.experts.len() * parts,
                per_token: recipe.experts_per_token.value,
                width: of_base.width / parts,
                shared_width: tensors.shared_width,
                has_experts: &assembly.has_experts,
                dtype: dtypes.and_then(|tensor| plan::dtype_name(tensor.dtype)),
            },
        )
    });
    let described = described(recipe, &assembly, layers.len());
    let splits = match assembly.cuts.is_empty() {
        true => None,
        false => Some(rows::splits(&assembly)?),
    };
    let of_router = RouterParts {
        recipe,
        options,
        models: &models,
        backbone,
        dense: of_base,
        denses: &dense,
        names: std::mem::take(&mut tensors.routers),
        layers,
        shared_gate,
        splits,
    };
    let decided = Decided {
        file: (recipe.router.file.as_ref()).and_then(|file| file_of_rows(&models, file)),
        described,
        random,
        router: Some(rows::recipe(of_router, problems)?),
        tensors,
        config,
        recipe: (path.to_owned(), recipe.text.clone()),
    };
    finish(decided, models, base, notes, options, problems)
}

/// How the experts are cut and changed; refused if they cannot be cut into equal parts.
fn upcycle(recipe: &MoeRecipe, base: &Dense, problems: &mut Problems) -> Option<Upcycle> {
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

/// The cuts that depend on weights, one per model and layer. They are decided when the plan is run.
fn late_cuts(upcycle: Upcycle, experts: &[Source<'_>], layers: &[usize]) -> Cuts {
    let mut cuts = Cuts::new();
    if upcycle.split == Split::KMeans && upcycle.granularity > 1 {
        for expert in experts {
            for layer in layers {
                cuts.entry((expert.model, *layer)).or_default();
            }
        }
    }
    cuts
}

/// Describes the assembly in words, for plans and cards.
fn described(recipe: &MoeRecipe, assembly: &Assembly<'_>, layers: usize) -> String {
    let all = assembly.dense.layers;
    let some = match layers < all {
        true => format!(" in {layers} of {all} layers"),
        false => String::new(),
    };
    let shared = match assembly.shared {
        Some(_) => " and a shared one",
        None => "",
    };
    let experts = assembly.experts.len() * assembly.upcycle.granularity;
    format!(
        "{} of {}{shared}{some}, {} for each token, routers by {}",
        assembly.target.model_type,
        plan::count(experts, "expert"),
        recipe.experts_per_token.value,
        recipe.gate_mode.value.name()
    )
}

/// Reads what each model is. Models that only supply a tokenizer are not looked at.
fn denses(models: &Models, problems: &mut Problems) -> Option<Vec<Option<Dense>>> {
    let mut denses = Vec::with_capacity(models.checkpoints.len());
    for (index, model) in models.checkpoints.iter().enumerate() {
        if index >= models.merged {
            denses.push(None);
            continue;
        }
        match Dense::read(model) {
            Ok(dense) => denses.push(Some(dense)),
            Err(refusal) => problems.add_error(models.at[index], &refusal),
        }
    }
    problems.is_empty().then_some(denses)
}

/// The target that the recipe names, or the default for the base's family.
fn target(recipe: &MoeRecipe, base: &Dense, problems: &mut Problems) -> Option<Target> {
    let family = base.family.name();
    let known = || -> Vec<&str> { Target::all().map(|target| target.model_type).collect() };
    let Some(asked) = &recipe.architecture else {
        let target = Target::of_family(family, !recipe.shared_experts.is_empty());
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
fn misfits(
    recipe: &MoeRecipe,
    target: Target,
    models: &Models,
    base: usize,
    dense: &[Option<Dense>],
    others: &[(usize, Position)],
    problems: &mut Problems,
) -> Option<Vec<(Option<Position>, Misfit)>> {
    let of_base = dense[base].as_ref()?;
    let base_at = Some(recipe.base_model.at);
    let mut found: Vec<(Option<Position>, Misfit)> =
        exact::of_base(of_base, target, models.label(base))
            .into_iter()
            .map(|misfit| (base_at, misfit))
            .collect();
    let mut looked_at = vec![base];
    for (model, at) in others {
        if looked_at.contains(model) {
            continue;
        }
        looked_at.push(*model);
        let (other, label) = (dense[*model].as_ref()?, models.label(*model));
        for misfit in exact::of_expert(of_base, other, label) {
            problems.add_error(Some(*at), &misfit);
        }
        let surroundings = exact::of_surroundings(of_base, other, label);
        found.extend(surroundings.into_iter().map(|misfit| (Some(*at), misfit)));
    }
    if of_base.mlp_bias {
        for misfit in exact::of_expert(of_base, of_base, models.label(base)) {
            problems.add_error(base_at, &misfit);
        }
    }
    Some(found)
}

/// The shared expert, if the recipe asks for one and the target has a place for it.
fn shared_expert<'a>(
    recipe: &MoeRecipe,
    target: Target,
    mut shared: Vec<Source<'a>>,
    problems: &mut Problems,
) -> Option<Source<'a>> {
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
    let first = shared.drain(..).next()?;
    let Some(layout) = &target.mixture.shared else {
        let message = format!("`{name}` has no shared experts");
        let hint = "`architecture: qwen2_moe`, `glm4_moe`, `dots1` or `granitemoeshared` has";
        problems.add(Some(first.recipe.at), message, Some(hint.to_owned()));
        return None;
    };
    let mode = recipe.gate_mode.value;
    let prompts = !first.recipe.positive_prompts.is_empty();
    if layout.gate.is_some() && first.recipe.alpha.is_none() && mode.needs_prompts() && !prompts {
        let message = format!(
            "the shared expert of a `{name}` has a gate of its own, and no `positive_prompts` to make it from"
        );
        let hint = "give it prompts, or say `alpha`: its share of the result, whatever the token";
        problems.add(Some(first.recipe.at), message, Some(hint.to_owned()));
    }
    Some(first)
}

/// For each layer, whether it gets experts.
fn layers_with_experts(
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
