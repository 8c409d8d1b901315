//! Assembles dense models as the experts of one mixture: opens the models, refuses what does not fit, decides the rest.

mod accept;
mod rows;
mod tensors;

use super::config;
use super::family::Dense;
use super::pieces::{Pieces, Tensors};
use super::router::{self, Synthesized};
use super::split::Cuts;
use super::targets::Target;
use super::{Decided, MoeOptions, check_vocabularies, file_of_rows, finish, open, report_misfits};
use accept::{has_shared_expert, layers_with_experts, misfits, target, upcycle};
use checkpoint::Resolver;
use numeric::FloatType;
use plan::{self, Models, Plan, Problems, Results};
use recipe::{Expert, MoeRecipe, Split, Upcycle};
use rows::RouterParts;
use tensors::{Assembly, Source};

/// Plans the assembly.
pub(super) fn attempt(
    recipe: &MoeRecipe,
    path: &str,
    resolver: &dyn Resolver,
    options: &MoeOptions,
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
    let denses = denses(&models, problems)?;
    let inputs = Inputs::find(recipe, &models, &denses, problems)?;
    let accepted = inputs.accept(options, &mut notes, problems)?;
    let assembly = inputs.assembly(accepted, options);
    let tensors = assembly.tensors(problems);
    if !problems.is_empty() {
        return None;
    }
    let decided = Decided {
        file: file.and_then(|file| file_of_rows(&models, file)),
        described: described(recipe, &assembly),
        random: inputs.is_random(),
        router: Some(inputs.router(&assembly, &tensors, options, problems)?),
        config: inputs.config(&assembly, &tensors),
        tensors,
        recipe: (path.to_owned(), recipe.text.resolved.clone()),
    };
    let base = inputs.base;
    finish(decided, models, base, notes, options, problems)
}

/// What a recipe names, found among the models.
struct Inputs<'a> {
    recipe: &'a MoeRecipe,
    models: &'a Models,
    /// What each model is; `None` for a model that only supplies a tokenizer.
    denses: &'a [Option<Dense>],
    base: usize,
    /// The model that supplies everything except the experts.
    backbone: usize,
    dense: &'a Dense,
    target: Target,
    experts: Vec<Source<'a>>,
    shared: Vec<Source<'a>>,
}

/// What a recipe asks for, after all that could be refused.
struct Accepted {
    /// Whether there is a shared expert.
    shared: bool,
    /// For each layer, whether it has experts.
    has_experts: Vec<bool>,
    upcycle: Upcycle,
}

impl<'a> Inputs<'a> {
    fn find(
        recipe: &'a MoeRecipe,
        models: &'a Models,
        denses: &'a [Option<Dense>],
        problems: &mut Problems,
    ) -> Option<Inputs<'a>> {
        let base = models.index(&recipe.base_model.value)?;
        let backbone = match &recipe.backbone {
            Some(backbone) => models.index(&backbone.value)?,
            None => base,
        };
        let source = |expert: &'a Expert| {
            let model = models.index(&expert.source.value)?;
            Some(Source {
                recipe: expert,
                model,
                dense: denses[model].as_ref()?,
            })
        };
        let experts = recipe.experts.iter().map(source);
        let shared = recipe.shared_experts.iter().map(source);
        let dense = denses[base].as_ref()?;
        Some(Inputs {
            recipe,
            models,
            denses,
            base,
            backbone,
            dense,
            experts: experts.collect::<Option<_>>()?,
            shared: shared.collect::<Option<_>>()?,
            target: target(recipe, dense, problems)?,
        })
    }

    /// Everything that can be refused before a tensor is looked at; `None` if anything is.
    fn accept(
        &self,
        options: &MoeOptions,
        notes: &mut Vec<String>,
        problems: &mut Problems,
    ) -> Option<Accepted> {
        let recipe = self.recipe;
        let misfits = misfits(self, problems)?;
        report_misfits(misfits, options.inexact, notes, problems);
        check_vocabularies(self.models, options.inexact, notes, problems);
        let shared = has_shared_expert(self, problems);
        let has_experts = layers_with_experts(recipe, self.target, self.dense, problems);
        if recipe.fold_norms && self.dense.decoder.mlp_norm().is_none() {
            let message = format!(
                "`fold_norms` folds the norm before the MLP, and `{}` has none",
                self.dense.family.name()
            );
            let hint = Some("remove it".to_owned());
            problems.add(Some(recipe.gate_mode.at), message, hint);
        }
        if !problems.is_empty() {
            return None;
        }
        Some(Accepted {
            shared,
            has_experts,
            upcycle: upcycle(recipe, self.dense, problems)?,
        })
    }

    fn assembly(&self, accepted: Accepted, options: &MoeOptions) -> Assembly<'a> {
        let (recipe, backbone) = (self.recipe, self.backbone);
        let dtype = recipe.dtype.and_then(FloatType::from_dtype);
        let shared = self.shared.first().filter(|_| accepted.shared);
        Assembly {
            pieces: Pieces::new(self.models, backbone, dtype),
            base: backbone,
            base_at: Some(recipe.backbone.as_ref().unwrap_or(&recipe.base_model).at),
            dense: self.dense,
            target: self.target,
            names: self.target.names(options.fused),
            shared: shared.copied(),
            experts: self.experts.clone(),
            cuts: late_cuts(&accepted, &self.experts),
            has_experts: accepted.has_experts,
            fold_norms: recipe.fold_norms,
            upcycle: accepted.upcycle,
            seed: recipe.router.seed.unwrap_or(options.plan.seed),
        }
    }

    fn is_random(&self) -> bool {
        let recipe = self.recipe;
        let mut experts = recipe.experts.iter().chain(&recipe.shared_experts);
        recipe.gate_mode.value.is_random()
            || recipe
                .upcycle
                .as_ref()
                .is_some_and(|how| how.value.drop > 0.0)
            || experts.any(|expert| expert.noise_scale.is_some())
    }

    /// The `config.json` of the mixture; `None` if the base has none.
    fn config(&self, assembly: &Assembly<'_>, tensors: &Tensors) -> Option<serde_json::Value> {
        let config = self.models.checkpoints[self.base].config()?;
        let mut planned = tensors.planned.iter();
        let embedding = planned.find(|tensor| tensor.name.ends_with("embed_tokens.weight"));
        let parts = assembly.upcycle.granularity;
        Some(config::config(
            config,
            &config::Assembled {
                target: self.target,
                base: self.dense,
                experts: assembly.experts.len() * parts,
                per_token: self.recipe.experts_per_token.value,
                width: self.dense.width / parts,
                shared_width: tensors.shared_width,
                has_experts: &assembly.has_experts,
                dtype: embedding.and_then(|tensor| plan::dtype_name(tensor.dtype)),
            },
        ))
    }

    /// How the tensors that no model has are made.
    fn router(
        &self,
        assembly: &Assembly<'_>,
        tensors: &Tensors,
        options: &MoeOptions,
        problems: &mut Problems,
    ) -> Option<router::Recipe> {
        let splits = match assembly.cuts.is_empty() {
            true => None,
            false => Some(rows::splits(assembly)?),
        };
        let is_gate = |what: &Synthesized| matches!(what, Synthesized::SharedGate(_));
        let parts = RouterParts {
            recipe: self.recipe,
            options,
            models: self.models,
            backbone: self.backbone,
            dense: self.dense,
            denses: self.denses,
            names: tensors.routers.clone(),
            layers: layers_of(&assembly.has_experts),
            shared_gate: tensors.synthesized.iter().any(|(_, what)| is_gate(what)),
            splits,
        };
        rows::recipe(parts, problems)
    }
}

/// The layers that have experts, by number.
fn layers_of(has_experts: &[bool]) -> Vec<usize> {
    (0..has_experts.len())
        .filter(|layer| has_experts[*layer])
        .collect()
}

/// The cuts that depend on weights, one per model and layer. They are decided when the plan is run.
fn late_cuts(accepted: &Accepted, experts: &[Source<'_>]) -> Cuts {
    let mut cuts = Cuts::new();
    if accepted.upcycle.split == Split::KMeans && accepted.upcycle.granularity > 1 {
        for expert in experts {
            for layer in layers_of(&accepted.has_experts) {
                cuts.entry((expert.model, layer)).or_default();
            }
        }
    }
    cuts
}

/// Describes the assembly in words, for plans and cards.
fn described(recipe: &MoeRecipe, assembly: &Assembly<'_>) -> String {
    let layers = layers_of(&assembly.has_experts).len();
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
