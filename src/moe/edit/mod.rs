//! Changes the experts of a mixture: keeps, drops or doubles them, takes them from another mixture, replaces them by a
//! dense model's MLPs, or adds new ones with rows of their own.

mod tensors;

use std::collections::BTreeSet;
use std::sync::Arc;

use serde_json::json;

use super::MoeOptions;
use super::exact;
use super::family::Dense;
use super::mixture::Mixture;
use super::pieces::Tensors;
use super::router::{self, ExtendedMixture};
use super::targets::Target;
use super::{
    Decided, Texts, check_vocabularies, file_of_rows, finish, has_states, open, prompts,
    report_misfits,
};
use checkpoint::{ModelConfig, Resolver};
use numeric::FloatType;
use plan::{self, Models, Plan, Problems, Results};
use recipe::{EditRecipe, Edited, GateMode, Located, MAX_EXPERTS, Member, Position, Ranges, Which};
use tensors::Editing;

/// Plans the edited mixture.
pub(super) fn attempt(
    recipe: &EditRecipe,
    edited: &Edited,
    (path, resolver, options): (&str, &dyn Resolver, &MoeOptions),
    results: &Results,
    mut notes: Vec<String>,
    problems: &mut Problems,
) -> Option<Plan> {
    let mut mentions = recipe.mentions();
    let models = open(
        &mut mentions,
        edited.router.file.as_ref(),
        resolver,
        options,
        results,
        problems,
    )?;
    notes.extend(models.notes());
    let base = models.index(&recipe.base_model.value)?;
    let sources = Sources::read(&models, edited, base, recipe, problems)?;
    let mixture = sources.mixture(base)?;
    check_others(
        recipe, edited, &sources, &models, base, &mut notes, options, problems,
    );
    check_vocabularies(&models, options.inexact, &mut notes, problems);
    let taken = taken(edited, &sources, &models, base, problems)?;
    check_counts(edited, mixture, &models, base, taken.len(), problems);
    if !problems.is_empty() {
        return None;
    }
    let dtype = recipe.dtype.and_then(FloatType::from_dtype);
    let editing = Editing {
        pieces: mixture.pieces(&models, base, dtype),
        base,
        base_at: Some(recipe.base_model.at),
        mixture,
        names: mixture.target.names(options.fused),
        taken,
        seed: edited.router.seed.unwrap_or(options.plan.seed),
    };
    let tensors = editing.tensors(problems);
    if !problems.is_empty() {
        return None;
    }
    let count = editing.taken.len();
    let config = models.checkpoints[base].config().map(|config| {
        let mut config = config.value().clone();
        for key in counting(mixture.target, &config) {
            set_count(&mut config[key], count);
        }
        if let Some(per_token) = &edited.experts_per_token {
            let field = &mut config[mixture.target.mixture.counts.per_token];
            set_count(field, per_token.value);
        }
        if let Some(dtype) = dtype.and_then(|dtype| plan::dtype_name(dtype.dtype())) {
            config["dtype"] = json!(dtype);
            config["torch_dtype"] = json!(dtype);
        }
        config
    });
    let added = edited.added().count();
    let (kind, experts) = (mixture.target.model_type, plan::count(count, "expert"));
    let described = match added {
        0 => format!("{kind} of {experts}"),
        _ => format!(
            "{kind} of {experts}, {added} of them added, their routers by {}",
            edited.gate_mode.value.name()
        ),
    };
    let router = match added {
        0 => None,
        _ => Some(added_rows(edited, &editing, &tensors, options, problems)?),
    };
    let noise = edited
        .members
        .iter()
        .any(|member| member.noise_scale.is_some());
    let decided = Decided {
        file: (edited.router.file.as_ref()).and_then(|file| file_of_rows(&models, file)),
        described,
        random: noise || added > 0 && edited.gate_mode.value.is_random(),
        tensors,
        router,
        config,
        recipe: (path.to_owned(), recipe.text.resolved.clone()),
    };
    finish(decided, models, base, notes, options, problems)
}

/// What each model is, by its number.
struct Sources {
    /// The mixtures that experts are taken from.
    mixtures: Vec<Option<Mixture>>,
    /// The dense models.
    denses: Vec<Option<Dense>>,
}

impl Sources {
    fn read(
        models: &Models,
        edited: &Edited,
        base: usize,
        recipe: &EditRecipe,
        problems: &mut Problems,
    ) -> Option<Self> {
        let count = models.checkpoints.len();
        let mut sources = Sources {
            mixtures: (0..count).map(|_| None).collect(),
            denses: (0..count).map(|_| None).collect(),
        };
        let mut mixture = |model: usize, at: Position, problems: &mut Problems| match Mixture::read(
            &models.checkpoints[model],
        ) {
            Ok(mixture) => sources.mixtures[model] = Some(mixture),
            Err(refusal) => problems.add_error(Some(at), &refusal),
        };
        mixture(base, recipe.base_model.at, problems);
        for member in &edited.members {
            let Some(named) = member.which.model() else {
                continue;
            };
            let model = models.index(&named.value)?;
            match member.which {
                Which::Kept { .. } => mixture(model, named.at, problems),
                Which::Replaced { .. } | Which::Added(_) => {
                    match Dense::read(&models.checkpoints[model]) {
                        Ok(dense) => sources.denses[model] = Some(dense),
                        Err(refusal) => problems.add_error(Some(named.at), &refusal),
                    }
                }
            }
        }
        problems.is_empty().then_some(sources)
    }

    fn mixture(&self, model: usize) -> Option<&Mixture> {
        self.mixtures.get(model)?.as_ref()
    }

    fn dense(&self, model: usize) -> Option<&Dense> {
        self.denses.get(model)?.as_ref()
    }
}

/// An expert of the output.
struct Taken<'a> {
    matrices: Matrices<'a>,
    row: Row<'a>,
    member: &'a Member,
    at: Position,
}

/// The source of its matrices.
enum Matrices<'a> {
    Mixture(usize, &'a Mixture, usize),
    Dense(usize, &'a Dense),
}

/// The source of its row in the routers.
#[derive(Clone, Copy)]
enum Row<'a> {
    Of(usize, &'a Mixture, usize),
    /// A row that is made anew, by its number among those.
    Made(usize),
}

/// The experts of the output, in order.
fn taken<'a>(
    edited: &'a Edited,
    sources: &'a Sources,
    models: &Models,
    base: usize,
    problems: &mut Problems,
) -> Option<Vec<Taken<'a>>> {
    let mut taken = Vec::new();
    let mut made = 0;
    for member in &edited.members {
        let named = member.which.model();
        let model = match named {
            Some(named) => models.index(&named.value)?,
            None => base,
        };
        let at = named.map_or(member.at, |named| named.at);
        let mut numbers = |experts: &Located<Ranges>, model: usize| {
            let mixture = sources.mixture(model)?;
            let numbers = mixture.numbers(experts, models.label(model), problems)?;
            Some((mixture, numbers))
        };
        match &member.which {
            Which::Kept { experts, .. } => {
                let Some((mixture, numbers)) = numbers(experts, model) else {
                    continue;
                };
                taken.extend(numbers.into_iter().map(|expert| Taken {
                    matrices: Matrices::Mixture(model, mixture, expert),
                    row: Row::Of(model, mixture, expert),
                    member,
                    at,
                }));
            }
            Which::Replaced { expert, .. } => {
                let Some((mixture, numbers)) = numbers(expert, base) else {
                    continue;
                };
                let dense = sources.dense(model)?;
                taken.extend(numbers.into_iter().map(|expert| Taken {
                    matrices: Matrices::Dense(model, dense),
                    row: Row::Of(base, mixture, expert),
                    member,
                    at,
                }));
            }
            Which::Added(_) => {
                taken.push(Taken {
                    matrices: Matrices::Dense(model, sources.dense(model)?),
                    row: Row::Made(made),
                    member,
                    at,
                });
                made += 1;
            }
        }
    }
    if taken.len() > MAX_EXPERTS {
        let message = format!(
            "expected at most {MAX_EXPERTS} experts, found {}",
            taken.len()
        );
        let at = edited.members.first().map(|member| member.at);
        problems.add(at, message, None);
        return None;
    }
    Some(taken)
}

/// The config fields that hold the number of experts.
fn counting(target: Target, config: &serde_json::Value) -> BTreeSet<&'static str> {
    let everywhere = ["num_local_experts", "num_experts"];
    let there = everywhere
        .into_iter()
        .filter(|key| config.get(key).is_some());
    target
        .mixture
        .counts
        .experts
        .iter()
        .copied()
        .chain(there)
        .collect()
}

/// Changes a count in a config, in each entry of one that is a list.
fn set_count(field: &mut serde_json::Value, count: usize) {
    match field {
        serde_json::Value::Array(entries) => entries.fill(json!(count)),
        number => *number = json!(count),
    }
}

/// Checks that the models fit each other.
#[expect(
    clippy::too_many_arguments,
    reason = "what the whole recipe is checked by"
)]
fn check_others(
    recipe: &EditRecipe,
    edited: &Edited,
    sources: &Sources,
    models: &Models,
    base: usize,
    notes: &mut Vec<String>,
    options: &MoeOptions,
    problems: &mut Problems,
) {
    let Some(mixture) = sources.mixture(base) else {
        return;
    };
    let mut misfits = Vec::new();
    let mut looked_at = BTreeSet::from([base]);
    for member in &edited.members {
        let Some(named) = member.which.model() else {
            continue;
        };
        let Some(model) = models
            .index(&named.value)
            .filter(|model| looked_at.insert(*model))
        else {
            continue;
        };
        let label = models.label(model);
        let other = match (sources.mixture(model), sources.dense(model)) {
            (Some(other), _) => {
                let (found, expected) = (other.target.model_type, mixture.target.model_type);
                if found != expected {
                    let message = format!(
                        "`{label}` is a `{found}`, expected `{expected}` as `{}`: routers of two kinds weigh their \
                         experts differently",
                        recipe.base_model.value
                    );
                    problems.add(Some(named.at), message, None);
                } else if other.layers != mixture.layers {
                    let message = format!(
                        "`{label}` has experts in other layers than `{}`",
                        recipe.base_model.value
                    );
                    problems.add(Some(named.at), message, None);
                }
                &other.dense
            }
            (None, Some(dense)) => dense,
            (None, None) => continue,
        };
        for misfit in exact::of_expert(&mixture.dense, other, label) {
            problems.add_error(Some(named.at), &misfit);
        }
        let surroundings = exact::of_surroundings(&mixture.dense, other, label);
        misfits.extend(
            surroundings
                .into_iter()
                .map(|misfit| (Some(named.at), misfit)),
        );
    }
    report_misfits(misfits, options.inexact, notes, problems);
}

/// Checks that there are enough experts for the number per token that the output's config will state.
fn check_counts(
    edited: &Edited,
    mixture: &Mixture,
    models: &Models,
    base: usize,
    count: usize,
    problems: &mut Problems,
) {
    let config = models.checkpoints[base].config();
    let field = |key: &str| config.and_then(|config| config.get_usize(key));
    let asked = edited.experts_per_token.as_ref();
    let per_token = asked
        .map(|asked| asked.value)
        .or_else(|| config.and_then(|config| most_per_token(mixture.target, config)));
    let at = asked
        .map(|asked| asked.at)
        .or(edited.members.first().map(|member| member.at));
    if let Some(per_token) = per_token.filter(|per_token| *per_token > count) {
        let message = format!("a token goes through {per_token} experts, and there are {count}");
        let hint = "keep more experts, or lower `experts_per_token`";
        problems.add(at, message, Some(hint.to_owned()));
    }
    if let Some(groups) = field("n_group").filter(|groups| *groups > 1)
        && !count.is_multiple_of(groups)
    {
        let message = format!(
            "the config chooses among {groups} groups of experts (`n_group`), and {count} are not {groups} equal groups"
        );
        problems.add(at, message, Some("keep a multiple of it".to_owned()));
    }
}

/// The largest number of experts for each token that a config says, once or layer by layer.
fn most_per_token(target: Target, config: &ModelConfig) -> Option<usize> {
    let said = config.get(target.mixture.counts.per_token)?;
    let entries = said
        .as_array()
        .map_or(std::slice::from_ref(said), Vec::as_slice);
    let largest = entries.iter().filter_map(serde_json::Value::as_u64).max()?;
    usize::try_from(largest).ok()
}

/// How the rows of the added experts are made.
fn added_rows(
    edited: &Edited,
    editing: &Editing<'_>,
    tensors: &Tensors,
    options: &MoeOptions,
    problems: &mut Problems,
) -> Option<router::Recipe> {
    let (mode, router) = (edited.gate_mode.value, &edited.router);
    let (mixture, models) = (editing.mixture, editing.pieces.models);
    let model = Arc::clone(&models.checkpoints[editing.base]);
    let file = match &router.file {
        None => None,
        Some(file) => Some(Arc::clone(&models.checkpoints[file_of_rows(models, file)?])),
    };
    let states = mode.needs_states();
    if states && !has_states(&model, editing.base_at, problems) {
        return None;
    }
    let layers = mixture.layers.clone();
    if let Some(layer) = layers
        .iter()
        .find(|layer| states && **layer >= mixture.dense.layers)
    {
        let message = format!(
            "layer {layer} has experts and is none of the {} that states go through: no row can be made for it",
            mixture.dense.layers
        );
        let hint = "use `random`, `cheap_embed` or `file`".to_owned();
        problems.add(Some(edited.gate_mode.at), message, Some(hint));
        return None;
    }
    let prompts = match mode.needs_prompts() {
        true => {
            let texts = edited.added().map(|member| Texts {
                positive: &member.positive_prompts,
                negative: &member.negative_prompts,
                at: member.at,
            });
            prompts(&mut { texts }, edited.gate_mode.at, models, problems)?
        }
        false => Vec::new(),
    };
    let named = |name: &str| -> Vec<String> {
        let layers = layers.iter();
        let names = layers.map(|layer| format!("model.layers.{layer}.{name}"));
        names.collect()
    };
    let beside = ExtendedMixture {
        routers: named(mixture.names.router),
        corrections: mixture
            .target
            .mixture
            .correction
            .map(|bias| named(bias.name)),
    };
    Some(router::Recipe {
        mode,
        names: tensors.routers.clone(),
        hidden: mixture.dense.hidden,
        experts: editing.added(),
        parts: 1,
        shared_gate: false,
        seed: editing.seed,
        center: router.center,
        normalize: router.normalize.unwrap_or(mode != GateMode::File),
        temperature: router.temperature.unwrap_or(1.0),
        file,
        layers,
        prompts,
        tokens: router.tokens.unwrap_or(mode.tokens()),
        most_tokens: super::most_tokens(&mixture.dense, options),
        model: Some(model),
        changes: None,
        beside: Some(beside),
        splits: None,
    })
}
