//! Mixtures of experts: dense models become the experts of one, by a recipe that resolves to the same plan as a
//! merge's.
//!
//! [`plan()`] reads headers, configs and tokenizers. What a target cannot compute exactly as the models do is
//! refused before anything is written. Rows of routers, which no model has, are made when the plan is run.
//!
//! This layer knows recipes and plans; it writes nothing.

mod adjust;
mod assembly;
mod config;
mod edit;
mod exact;
mod extract;
mod family;
mod identity;
mod mixture;
mod pieces;
mod router;
mod split;
mod targets;

pub use identity::{BOUND, Identity, identity};

use crate::checkpoint::{Checkpoint, Locator, ModelRef};
use crate::forward::{Decoder, Tokenizer};
use crate::methods::{Arity, BaseRule, MethodInfo};
use crate::numeric::FloatType;
use crate::plan::{self, Draft, Models, Options, Plan, Problems, Results};
use crate::recipe::{
    Change, EditRecipe, GateMode, Located, MoeRecipe, Position, PromptTokens, RecipeError, Split,
    Upcycle,
};
use assembly::{Assembly, Source};
use exact::Misfit;
use family::Dense;
use pieces::{Pieces, Tensors};
use router::Routers;
use split::{Cuts, Splits};
use targets::{Partial, TARGETS, Target};

/// What plans and cards call an assembly.
static MOE: MethodInfo = MethodInfo {
    name: "moe",
    summary: "dense models as the experts of one model",
    formula: "",
    when: "",
    departs: "",
    source: "docs/moe.md",
    models: Arity { min: 1, max: None },
    base: BaseRule::Required,
    params: &[],
    random: false,
};

/// What messages call the model whose tensors no file holds.
const INVENTED: &str = "the router";

/// Plans the assembly that a recipe asks for.
///
/// # Errors
/// All that can be found wrong without reading a weight, at once.
pub fn plan(
    recipe: &MoeRecipe,
    path: &str,
    locator: &Locator,
    options: &Options,
) -> Result<Plan, RecipeError> {
    let mut problems = Problems::default();
    let results = plan::results_of(&recipe.results, path, locator, options, &mut problems);
    let plan = results.and_then(|(results, notes)| {
        attempt(
            recipe,
            path,
            locator,
            options,
            &results,
            notes,
            &mut problems,
        )
    });
    match plan {
        Some(plan) if problems.is_empty() => Ok(plan),
        _ => Err(problems.into_error(path, &recipe.text)),
    }
}

/// Plans what a recipe makes of a mixture.
///
/// # Errors
/// All that can be found wrong without reading a weight, at once.
pub fn plan_edit(
    recipe: &EditRecipe,
    path: &str,
    locator: &Locator,
    options: &Options,
) -> Result<Plan, RecipeError> {
    let mut problems = Problems::default();
    let results = plan::results_of(&recipe.results, path, locator, options, &mut problems);
    let plan = results.and_then(|(results, notes)| {
        let around = (path, locator, options);
        match &recipe.change {
            Change::Experts(edited) => {
                edit::attempt(recipe, edited, around, &results, notes, &mut problems)
            }
            Change::Extract(experts) => {
                extract::attempt(recipe, experts, around, &results, notes, &mut problems)
            }
        }
    });
    match plan {
        Some(plan) if problems.is_empty() => Ok(plan),
        _ => Err(problems.into_error(path, &recipe.text)),
    }
}

fn attempt(
    recipe: &MoeRecipe,
    path: &str,
    locator: &Locator,
    options: &Options,
    results: &Results,
    mut notes: Vec<String>,
    problems: &mut Problems,
) -> Option<Plan> {
    let models = open(&mut recipe.mentions(), locator, options, results, problems)?;
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
        let expert: &crate::recipe::Expert = expert;
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
    if !problems.is_empty() {
        return None;
    }

    let upcycle = recipe
        .upcycle
        .as_ref()
        .map_or_else(Upcycle::default, |upcycle| upcycle.value);
    let parts = upcycle.granularity;
    if let Some(at) = recipe.upcycle.as_ref().map(|upcycle| upcycle.at)
        && of_base.width % parts != 0
    {
        let message = format!(
            "the width of the experts (`intermediate_size` {}) cannot be cut into {parts} equal parts",
            of_base.width
        );
        problems.add(
            Some(at),
            message,
            Some("choose a `granularity` that divides it".to_owned()),
        );
        return None;
    }
    let dtype = recipe.dtype.and_then(FloatType::of);
    let layers = (0..of_base.layers).filter(|layer| has_experts[*layer]);
    let layers: Vec<usize> = layers.collect();
    let cuts: Cuts = match upcycle.split {
        Split::KMeans if parts > 1 => {
            let cut = |expert: &Source<'_>| {
                let model = expert.model;
                let layers = layers.iter();
                let cuts = layers.map(move |layer| ((model, *layer), plan::LatePicks::default()));
                cuts.collect::<Vec<_>>()
            };
            experts.iter().flat_map(cut).collect()
        }
        _ => Cuts::new(),
    };
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
    if recipe.fold_norms && of_base.family.pre_norm.is_none() {
        let message = format!(
            "`fold_norms` folds the norm before the MLP, and `{}` has none",
            of_base.family.model_type
        );
        problems.add(
            Some(recipe.gate_mode.at),
            message,
            Some("remove it".to_owned()),
        );
    }
    let mut tensors = assembly.tensors(problems);
    if !problems.is_empty() {
        return None;
    }
    let shared_gate = tensors
        .invented
        .iter()
        .any(|(_, what)| matches!(what, router::Invented::SharedGate(_)));
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
        false => Some(splits(&assembly, results, problems)?),
    };
    let of_router = RouterParts {
        recipe,
        options,
        locator,
        models: &models,
        results,
        backbone,
        dense: of_base,
        denses: &dense,
        names: std::mem::take(&mut tensors.routers),
        layers,
        shared_gate,
        splits,
    };
    let decided = Decided {
        described,
        random,
        router: Some(router(of_router, problems)?),
        tensors,
        config,
        recipe: (path.to_owned(), recipe.text.clone()),
    };
    finish(decided, models, base, notes, options, problems)
}

/// What was decided of an output.
struct Decided {
    /// What it is, in words.
    described: String,
    /// Whether anything is drawn.
    random: bool,
    tensors: Tensors,
    /// How the tensors are made that no model has; none if there are no such.
    router: Option<router::Recipe>,
    config: Option<serde_json::Value>,
    /// The path of the recipe and its text.
    recipe: (String, String),
}

/// The plan of what was decided.
fn finish(
    decided: Decided,
    mut models: Models,
    base: usize,
    mut notes: Vec<String>,
    options: &Options,
    problems: &mut Problems,
) -> Option<Plan> {
    let Tensors {
        planned,
        invented,
        equal,
        mut fates,
        ..
    } = decided.tensors;
    let (entries, what): (Vec<_>, Vec<_>) = invented.into_iter().unzip();
    if let Some(router) = decided.router {
        let location = models.checkpoints[base].location().clone();
        fates.push(vec![plan::Fate::Used(1); entries.len()]);
        models.checkpoints.push(Checkpoint::made(
            INVENTED,
            &location,
            None,
            entries,
            Vec::new(),
            Box::new(Routers::new(router, what)),
        ));
        models.at.push(None);
    }
    let sidecars = models.sidecars(&mut notes, problems)?;
    Draft {
        method: &MOE,
        assembly: Some(decided.described),
        random: decided.random,
        recipe: decided.recipe,
        models,
        tensors: planned,
        equal,
        fates,
        config: decided.config,
        sidecars,
        made: Vec::new(),
        vocabulary: None,
        notes,
    }
    .finish(options, problems)
}

/// What is assembled, in words.
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

/// Opens the models of a recipe, of which the first is the base.
fn open(
    mentions: &mut dyn Iterator<Item = &Located<ModelRef>>,
    locator: &Locator,
    options: &Options,
    results: &Results,
    problems: &mut Problems,
) -> Option<Models> {
    let mut models = Models::default();
    let mut complete = true;
    let mut base = None;
    for model in mentions {
        base = base.or(Some(&model.value));
        complete &= models.add(&model.value, Some(model.at), locator, results, problems);
    }
    models.merged = models.checkpoints.len();
    if let Some(model) = &options.tokenizer_from {
        complete &= models.add(model, None, locator, &Results::new(), problems);
    }
    if !complete {
        return None;
    }
    models.donor = models.index(base?)?;
    models.base = Some(models.donor);
    let asked = options.tokenizer_from.as_ref();
    models.tokenizer_donor = asked
        .and_then(|model| models.index(model))
        .unwrap_or(models.donor);
    Some(models)
}

/// What each model is; of those that are merely asked for a tokenizer nothing is needed.
fn denses(models: &Models, problems: &mut Problems) -> Option<Vec<Option<Dense>>> {
    let mut denses = Vec::with_capacity(models.checkpoints.len());
    for (index, model) in models.checkpoints.iter().enumerate() {
        if index >= models.merged {
            denses.push(None);
            continue;
        }
        match Dense::read(model) {
            Ok(dense) => denses.push(Some(dense)),
            Err(message) => {
                problems.add_text(models.at[index], &message);
            }
        }
    }
    problems.is_empty().then_some(denses)
}

/// The layout that is written.
fn target(recipe: &MoeRecipe, base: &Dense, problems: &mut Problems) -> Option<&'static Target> {
    let family = base.family.model_type;
    let known = || -> Vec<&str> { TARGETS.iter().map(|target| target.model_type).collect() };
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
            let near = crate::recipe::nearest(&asked.value, known());
            let near = near.map_or(String::new(), |near| format!("did you mean `{near}`? "));
            let message = format!("unknown architecture `{}`", asked.value);
            let hint = format!("{near}the targets are {}", known().join(", "));
            problems.add(Some(asked.at), message, Some(hint));
            None
        }
        ref several => {
            // The one that holds the base, if the word leaves a choice.
            let holds = several
                .iter()
                .find(|target| target.families.contains(&family));
            Some(holds.unwrap_or(&several[0]))
        }
    }
}

/// What keeps the models from being assembled exactly. What keeps their matrices from fitting at all, which no word
/// of the user mends, goes to `problems`.
fn misfits(
    recipe: &MoeRecipe,
    target: &Target,
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
        for Misfit { message, hint } in exact::of_expert(of_base, other, label) {
            problems.add(Some(*at), message, hint);
        }
        let surroundings = exact::of_surroundings(of_base, other, label);
        found.extend(surroundings.into_iter().map(|misfit| (Some(*at), misfit)));
    }
    if of_base.mlp_bias {
        for Misfit { message, hint } in exact::of_expert(of_base, of_base, models.label(base)) {
            problems.add(base_at, message, hint);
        }
    }
    Some(found)
}

fn report_misfits(
    misfits: Vec<(Option<Position>, Misfit)>,
    inexact: bool,
    notes: &mut Vec<String>,
    problems: &mut Problems,
) {
    for (at, Misfit { message, hint }) in misfits {
        if inexact {
            notes.push(format!("not exact: {message}"));
            continue;
        }
        let anyway = "`--inexact` assembles it all the same";
        let hint = hint.map_or(anyway.to_owned(), |hint| format!("{hint}; {anyway}"));
        problems.add(at, message, Some(hint));
    }
}

/// Refuses experts whose token ids mean other tokens than the base's, whose embedding they will read.
fn check_vocabularies(
    models: &Models,
    inexact: bool,
    notes: &mut Vec<String>,
    problems: &mut Problems,
) {
    let mut found = Problems::default();
    plan::check_vocabularies(models, notes, &mut found);
    if inexact {
        let messages = found.into_messages();
        notes.extend(
            messages
                .into_iter()
                .map(|message| format!("not exact: {message}")),
        );
    } else {
        problems.append(found);
    }
}

/// The shared expert, if the recipe has one and the target too.
fn shared_expert<'a>(
    recipe: &MoeRecipe,
    target: &Target,
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
    let Some(layout) = &target.shared else {
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

/// Which layers get experts.
fn layers_with_experts(
    recipe: &MoeRecipe,
    target: &Target,
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
    let refusal = match target.partial {
        _ if has.iter().all(|has| *has) => None,
        Partial::MlpOnlyLayers => None,
        Partial::No => Some("has experts in every layer"),
        Partial::FirstDense => {
            (!one_run || last + 1 < has.len()).then_some("has its dense layers before all others")
        }
        Partial::StartAndEnd => (!one_run).then_some("has its layers with experts in one run"),
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

/// What the rows of routers are made from, beside the recipe.
struct RouterParts<'a> {
    recipe: &'a MoeRecipe,
    options: &'a Options,
    locator: &'a Locator,
    models: &'a Models,
    results: &'a Results,
    /// The model whose states are taken.
    backbone: usize,
    dense: &'a Dense,
    /// What each model is.
    denses: &'a [Option<Dense>],
    names: Vec<String>,
    layers: Vec<usize>,
    shared_gate: bool,
    splits: Option<Splits>,
}

/// How the rows of routers are made.
fn router(parts: RouterParts<'_>, problems: &mut Problems) -> Option<router::Recipe> {
    let RouterParts {
        recipe,
        options,
        locator,
        models,
        dense,
        shared_gate,
        ..
    } = parts;
    let mode = recipe.gate_mode.value;
    let file = match &recipe.router.file {
        None => None,
        Some(file) => Some(open_file(file, locator, problems)?),
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
    let open =
        |model: usize, problems: &mut Problems| open_again(models, parts.results, model, problems);
    let (prompts, model) = match recipe.uses_prompts() {
        true => {
            let shared = recipe.shared_experts.iter().take(usize::from(shared_gate));
            let mut texts = recipe.experts.iter().chain(shared).map(|expert| Texts {
                positive: &expert.positive_prompts,
                negative: &expert.negative_prompts,
                at: expert.at,
            });
            let prompts = prompts(&mut texts, recipe.gate_mode.at, models, problems)?;
            (prompts, Some(open(parts.backbone, problems)?))
        }
        false => (Vec::new(), None),
    };
    let changes = match mode == GateMode::TaskVector {
        true => Some(changes(&parts, &open, problems)?),
        false => None,
    };
    if mode != GateMode::CheapEmbed
        && let Some(model) = &model
        && let Some(config) = model.config()
        && let Err(error) = Decoder::new(config.value(), model)
    {
        let message = format!("the states of `{}` for the routers: {error}", model.label());
        problems.add_text(models.at[parts.backbone], &message);
        return None;
    }
    let default = match mode {
        GateMode::HiddenAvg | GateMode::GateInput | GateMode::TaskVector => PromptTokens::Mean,
        _ => PromptTokens::Last,
    };
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
        seed: recipe.router.seed.unwrap_or(options.seed),
        center: recipe.router.center,
        normalize: recipe
            .router
            .normalize
            .unwrap_or(mode.needs_prompts() || mode == GateMode::TaskVector),
        temperature: recipe.router.temperature.unwrap_or(1.0),
        file,
        layers: parts.layers,
        prompts,
        tokens: recipe.router.tokens.unwrap_or(default),
        model,
        most_tokens: most_tokens(dense, options),
        changes,
        beside: None,
        splits: parts.splits,
    })
}

/// The cuts of experts that only weights can tell.
fn splits(assembly: &Assembly<'_>, results: &Results, problems: &mut Problems) -> Option<Splits> {
    let mut models = std::collections::BTreeMap::new();
    let mut wanted = Vec::new();
    for ((model, layer), picks) in &assembly.cuts {
        let mut experts = assembly.experts.iter();
        let dense = experts.find(|expert| expert.model == *model)?.dense;
        if !models.contains_key(model) {
            let opened = open_again(assembly.pieces.models, results, *model, problems)?;
            models.insert(*model, opened);
        }
        let (gate, ..) = dense.family.input_matrix(false, dense.width);
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

/// The models whose differences from the base give rows: those of the experts, and of the shared one if it has a gate.
fn changes(
    parts: &RouterParts<'_>,
    open: &dyn Fn(usize, &mut Problems) -> Option<Checkpoint>,
    problems: &mut Problems,
) -> Option<router::Changes> {
    let RouterParts { recipe, models, .. } = parts;
    let base = models.index(&recipe.base_model.value)?;
    let mut changed = |model: usize| {
        Some(router::Changed {
            family: parts.denses[model].as_ref()?.family,
            width: parts.denses[model].as_ref()?.width,
            model: open(model, problems)?,
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

/// A handle of its own of a model that is read before the plan's are.
fn open_again(
    models: &Models,
    results: &Results,
    model: usize,
    problems: &mut Problems,
) -> Option<Checkpoint> {
    let label = models.label(model);
    let opened = match results.get(label) {
        Some(result) => Ok(result.checkpoint(label)),
        None => {
            let location = models.checkpoints[model].location();
            Checkpoint::open(label, location).map_err(|error| error.to_string())
        }
    };
    opened
        .map_err(|message| problems.add(models.at[model], message, None))
        .ok()
}

/// A file of rows.
fn open_file(
    file: &Located<String>,
    locator: &Locator,
    problems: &mut Problems,
) -> Option<Checkpoint> {
    let open = || {
        let model = ModelRef::parse(&file.value).map_err(|why| why.to_string())?;
        let location = locator.locate(&model).map_err(|error| error.to_string())?;
        Checkpoint::open(&file.value, &location).map_err(|error| error.to_string())
    };
    open()
        .map_err(|message| problems.add_text(Some(file.at), &message))
        .ok()
}

/// Tokens whose states fit half of the memory.
fn most_tokens(dense: &Dense, options: &Options) -> usize {
    // The state, what is read of it, queries, keys and values, and the inner features of an MLP.
    let per_token = size_of::<f32>() * (6 * dense.hidden + 2 * dense.width);
    (options.settings.memory / 2) as usize / per_token
}

/// The prompts of an expert.
struct Texts<'a> {
    positive: &'a [String],
    negative: &'a [String],
    at: Position,
}

/// The prompts of rows, one after the other, cut into tokens.
fn prompts<'a>(
    texts: &mut dyn Iterator<Item = Texts<'a>>,
    mode_at: Position,
    models: &Models,
    problems: &mut Problems,
) -> Option<Vec<router::Prompt>> {
    let tokenizer = match Tokenizer::open(&models.checkpoints[models.tokenizer_donor]) {
        Ok(tokenizer) => tokenizer,
        Err(error) => {
            problems.add_error(Some(mode_at), &error);
            return None;
        }
    };
    let mut cut = Vec::new();
    for (row, expert) in texts.enumerate() {
        for (texts, sign) in [(expert.positive, 1.0), (expert.negative, -1.0)] {
            for text in texts {
                let tokens = match tokenizer.encode(text, true) {
                    Ok(tokens) => tokens,
                    Err(error) => {
                        problems.add_error(Some(expert.at), &error);
                        return None;
                    }
                };
                if tokens.is_empty() {
                    let message = "an empty prompt has no tokens";
                    problems.add(Some(expert.at), message, Some("remove it".to_owned()));
                    return None;
                }
                cut.push(router::Prompt {
                    row,
                    weight: sign / texts.len() as f64,
                    begins: tokenizer.beginning().is_some(),
                    tokens,
                });
            }
        }
    }
    Some(cut)
}
