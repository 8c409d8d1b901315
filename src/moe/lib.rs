//! Mixtures of experts: assembles dense models as the experts of one, edits mixtures, and extracts dense models. A
//! recipe becomes a plan of the same type as a merge's.
//!
//! [`plan()`] reads headers, configs and tokenizers. It refuses, before anything is written, a target that cannot
//! compute exactly what the models do. Router rows, which no model has, are made when the plan is run.
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

pub use identity::prove_identity;

use std::sync::Arc;

use checkpoint::{Checkpoint, ModelRef, Resolver, SidecarsFrom};
use errors::Refusal;
use exact::Misfit;
use family::Dense;
use forward::{Decoder, Tokenizer};
use methods::{Arity, BaseRule, MethodInfo};
use pieces::Tensors;
use plan::{self, Draft, Models, Options, Plan, Problems, Purpose, Results};
use recipe::{
    Change, EditRecipe, Located, MoeRecipe, Position, Problem, Recipe, RecipeError, Rounding,
};
use router::Routers;

/// The method's name in plans and cards.
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
    statistics: None,
};

/// The name in messages of the source of tensors that no model has.
const INVENTED: &str = "the router";

/// What the plan of a mixture depends on besides the recipe and the checkpoints.
#[derive(Debug, Clone)]
pub struct MoeOptions {
    /// What every plan depends on.
    pub plan: Options,
    /// Whether the result may compute something different from its models.
    pub inexact: bool,
    /// Whether all experts of a layer are stored in two tensors, as transformers 5 holds them in memory.
    pub fused: bool,
}

/// Of a mixture that must be exact, its experts stored each by itself.
impl From<Options> for MoeOptions {
    fn from(plan: Options) -> Self {
        MoeOptions {
            plan,
            inexact: false,
            fused: false,
        }
    }
}

impl MoeOptions {
    /// The switches of the command line that are on.
    fn switches(&self) -> Vec<&'static str> {
        let switches = [(self.inexact, "inexact"), (self.fused, "fused")];
        let on = switches.into_iter().filter(|(on, _)| *on);
        on.map(|(_, name)| name).collect()
    }
}

/// Plans the assembly that a recipe describes.
///
/// # Errors
///
/// Every problem that can be found without reading a weight, all at once.
pub fn plan(
    recipe: &MoeRecipe,
    path: &str,
    resolver: &dyn Resolver,
    options: &MoeOptions,
) -> Result<Plan, RecipeError> {
    with_results(
        (&recipe.results, &recipe.warnings, &mut recipe.mentions()),
        (path, &recipe.text.read),
        resolver,
        options,
        |results, notes, problems| {
            assembly::attempt(recipe, path, resolver, options, results, notes, problems)
        },
    )
}

/// Plans the edit or the extraction that a recipe describes.
///
/// # Errors
///
/// Every problem that can be found without reading a weight, all at once.
pub fn plan_edit(
    recipe: &EditRecipe,
    path: &str,
    resolver: &dyn Resolver,
    options: &MoeOptions,
) -> Result<Plan, RecipeError> {
    let around = (path, resolver, options);
    with_results(
        (&recipe.results, &recipe.warnings, &mut recipe.mentions()),
        (path, &recipe.text.read),
        resolver,
        options,
        |results, notes, problems| match &recipe.change {
            Change::Experts(edited) => {
                edit::attempt(recipe, edited, around, results, notes, problems)
            }
            Change::Extract(experts) => {
                extract::attempt(recipe, experts, around, results, notes, problems)
            }
        },
    )
}

/// Plans the merges that a recipe names, then what `attempt` makes of them and of the notes on them and the recipe.
///
/// `named` holds these merges, the recipe's warnings and the models that it mentions, `recipe` its path and its text.
///
/// # Errors
///
/// Every problem that was found, all at once.
fn with_results<'r>(
    named: (
        &'r [Recipe],
        &[Problem],
        &mut dyn Iterator<Item = &'r Located<ModelRef>>,
    ),
    recipe: (&str, &str),
    resolver: &dyn Resolver,
    options: &MoeOptions,
    attempt: impl FnOnce(&Results, Vec<String>, &mut Problems) -> Option<Plan>,
) -> Result<Plan, RecipeError> {
    let mut problems = Problems::default();
    let (documents, warnings, mentions) = named;
    let results = plan::results_of(
        documents,
        mentions,
        recipe.0,
        resolver,
        &options.plan,
        &mut problems,
    );
    let plan = results.and_then(|(results, notes)| {
        let notes = [plan::warnings(warnings), notes].concat();
        attempt(&results, notes, &mut problems)
    });
    match plan {
        Some(plan) if problems.is_empty() => Ok(plan::looked_over(plan)),
        _ => Err(problems.into_error(recipe.0, recipe.1)),
    }
}

/// The decisions about an output.
struct Decided {
    /// A description in words.
    described: String,
    /// Whether any value is drawn at random.
    random: bool,
    tensors: Tensors,
    /// The number of the rows file among the models.
    file: Option<usize>,
    /// How the tensors that no model has are made; `None` if there are none.
    router: Option<router::Recipe>,
    config: Option<serde_json::Value>,
    /// The recipe's path and text.
    recipe: (String, String),
}

/// Turns the decisions into a plan.
fn finish(
    decided: Decided,
    mut models: Models,
    base: usize,
    mut notes: Vec<String>,
    options: &MoeOptions,
    problems: &mut Problems,
) -> Option<Plan> {
    let Tensors {
        planned,
        synthesized,
        equal,
        mut usages,
        ..
    } = decided.tensors;
    if let Some(file) = decided.file {
        usages[file].fill(plan::TensorUsage::Used(1));
    }
    if let Some(router) = decided.router {
        let location = models.checkpoints[base].location().clone();
        usages.push(vec![plan::TensorUsage::Used(1); synthesized.len()]);
        models.checkpoints.push(Arc::new(Checkpoint::new(
            INVENTED,
            location,
            None,
            SidecarsFrom::Nothing,
            Arc::new(Routers::new(router, synthesized)),
        )));
        models.at.push(None);
    }
    let sidecars = models.sidecars(&mut notes, problems)?;
    Draft {
        method: &MOE,
        purpose: Some(Purpose {
            command: "moe",
            description: decided.described,
            switches: options.switches(),
        }),
        random: decided.random,
        rounding: Rounding::Nearest,
        recipe: decided.recipe,
        models,
        tensors: planned,
        equal,
        usages,
        parts: Vec::new(),
        config: decided.config,
        sidecars,
        made: Vec::new(),
        vocabulary: None,
        notes,
    }
    .finish(&options.plan, problems)
}

/// Opens the models of a recipe, the base first, and the rows file after them.
fn open(
    mentions: &mut dyn Iterator<Item = &Located<ModelRef>>,
    file: Option<&Located<String>>,
    resolver: &dyn Resolver,
    options: &MoeOptions,
    results: &Results,
    problems: &mut Problems,
) -> Option<Models> {
    let mut models = Models::default();
    let mut complete = true;
    let mut base = None;
    for model in mentions {
        base = base.or(Some(&model.value));
        complete &= models.add(&model.value, Some(model.at), resolver, results, problems);
    }
    models.merged = models.checkpoints.len();
    if let Some(model) = &options.plan.tokenizer_from {
        complete &= models.add(model, None, resolver, &Results::new(), problems);
    }
    if let Some(file) = file {
        complete &= match ModelRef::parse(&file.value) {
            Ok(model) => models.add(&model, Some(file.at), resolver, &Results::new(), problems),
            Err(why) => {
                problems.add(Some(file.at), why, None);
                false
            }
        };
    }
    if !complete {
        return None;
    }
    models.leave_parts(problems);
    models.donor = models.index(base?)?;
    models.base = Some(models.donor);
    let asked = options.plan.tokenizer_from.as_ref();
    models.tokenizer_donor = asked
        .and_then(|model| models.index(model))
        .unwrap_or(models.donor);
    Some(models)
}

fn report_misfits(
    misfits: Vec<(Option<Position>, Misfit)>,
    inexact: bool,
    notes: &mut Vec<String>,
    problems: &mut Problems,
) {
    for (at, misfit) in misfits {
        let (message, hint) = misfit.into_parts();
        if inexact {
            notes.push(format!("not exact: {message}"));
            continue;
        }
        let anyway = "`--inexact` assembles it all the same";
        let hint = hint.map_or(anyway.to_owned(), |hint| format!("{hint}; {anyway}"));
        problems.add(at, message, Some(hint));
    }
}

/// Refuses experts whose token ids stand for other tokens than the base's: they will read the base's embedding.
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

/// The number of the rows file among the models.
fn file_of_rows(models: &Models, file: &Located<String>) -> Option<usize> {
    models.index(&ModelRef::parse(&file.value).ok()?)
}

/// Whether the forward pass can compute states of the model that routers are made from.
fn has_states(model: &Checkpoint, at: Option<Position>, problems: &mut Problems) -> bool {
    let Some(config) = model.config() else {
        return true;
    };
    let Err(error) = Decoder::new(config.value(), model) else {
        return true;
    };
    let what = format!("the states of `{}` for the routers", model.label());
    problems.add_error(at, &Refusal::from(&error).within(what));
    false
}

/// The number of tokens whose states fit into half of the memory.
fn most_tokens(dense: &Dense, options: &MoeOptions) -> usize {
    // Per token: the state, what is read from it, queries, keys, values, and the inner features of an MLP.
    let per_token = size_of::<f32>() * (6 * dense.hidden + 2 * dense.width);
    (options.plan.settings.memory.usual() / 2) as usize / per_token
}

/// The prompts of an expert.
struct Texts<'a> {
    positive: &'a [String],
    negative: &'a [String],
    at: Position,
}

/// Turns the prompts of each row into tokens, row after row.
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
