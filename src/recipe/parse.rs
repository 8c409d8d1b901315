//! The entry point: from a recipe's file or text to a recipe, or to all of its problems.

use std::fs::{File, OpenOptions};
use std::io::Read;
use std::path::{Path, PathBuf};

use super::documents::{link, link_models};
use super::edit::{EditRecipe, is_edit};
use super::found::resolved;
use super::moe::{MoeRecipe, is_moe};
use super::problem::{Located, Position, Problem, ProblemKind, RecipeError, sort};
use super::schema::{Recipe, RecipeText};
use super::walk::Walk;
use super::yaml::{self, Node, Value};
use checkpoint::{CheckpointError, ModelRef, file_like, open_regular};
use methods::{self, MethodInfo};

/// The largest recipe; one with a slice for each of a thousand layers has about 200 KB.
const MAX_RECIPE_BYTES: u64 = 1 << 20;

/// The most documents in a file.
const MAX_DOCUMENTS: usize = 256;

/// A recipe of any kind.
#[derive(Debug)]
pub enum AnyRecipe {
    /// Merges models.
    Merge(Box<Recipe>),
    /// Makes models the experts of another.
    Moe(Box<MoeRecipe>),
    /// Turns a mixture of experts into another mixture, or into a dense model.
    Edit(Box<EditRecipe>),
}

impl AnyRecipe {
    /// The text that is recorded.
    fn text(&self) -> &str {
        match self {
            Self::Merge(recipe) => &recipe.text.resolved,
            Self::Moe(recipe) => &recipe.text.resolved,
            Self::Edit(recipe) => &recipe.text.resolved,
        }
    }

    /// The models that it mentions, those of other documents too.
    fn mentions(&self) -> impl Iterator<Item = &ModelRef> {
        let (own, results): (Box<dyn Iterator<Item = &Located<ModelRef>>>, _) = match self {
            Self::Merge(recipe) => (Box::new(recipe.mentions()), &recipe.results),
            Self::Moe(recipe) => (Box::new(recipe.mentions()), &recipe.results),
            Self::Edit(recipe) => (Box::new(recipe.mentions()), &recipe.results),
        };
        own.chain(results.iter().flat_map(Recipe::mentions))
            .map(|model| &model.value)
    }
}

/// Reads the recipe of a merge from a file, with the registry's methods.
///
/// # Errors
/// As [`read_any`]; or the recipe is one of a mixture of experts.
pub fn read(path: &Path) -> Result<Recipe, RecipeError> {
    merge(read_any(path)?)
}

/// Reads a recipe from a file, with the registry's methods.
///
/// # Errors
/// The file cannot be read; else as [`parse_any`].
pub fn read_any(path: &Path) -> Result<AnyRecipe, RecipeError> {
    let name = path.display().to_string();
    parse_any(&name, &read_text(path)?)
}

/// Reads the recipe of a merge from its text, with the registry's methods. Errors call it `name`.
///
/// # Errors
/// As [`parse_any`]; or the recipe is one of a mixture of experts.
pub fn parse_with_registry(name: &str, text: &str) -> Result<Recipe, RecipeError> {
    merge(parse_any(name, text)?)
}

/// Reads a recipe from its text, with the registry's methods. Errors call it `name`.
///
/// # Errors
/// The text is too long, is not YAML, or does not say what a recipe must: an unknown key or method, a value of the
/// wrong kind or out of its range, two settings that exclude each other. The error has every such problem with its
/// line, not only the first.
pub fn parse_any(name: &str, text: &str) -> Result<AnyRecipe, RecipeError> {
    parse_documents(name, text, &registry(), false)
}

/// Reads the recipe of a merge that mergekit has done: what mergekit ignored in it is ignored again, and noted.
///
/// # Errors
/// As [`parse_any`], but for unknown keys and parameters.
pub fn read_recorded(path: &Path) -> Result<AnyRecipe, RecipeError> {
    let name = path.display().to_string();
    parse_documents(&name, &read_text(path)?, &registry(), true)
}

fn registry() -> Vec<&'static MethodInfo> {
    methods::all().iter().map(|method| method.info()).collect()
}

/// Reads the recipe of a merge from its text, with these methods. Errors call it `name`.
///
/// # Errors
/// As [`parse_any`]; or the recipe is one of a mixture of experts.
pub fn parse(
    name: &str,
    text: &str,
    methods: &[&'static MethodInfo],
) -> Result<Recipe, RecipeError> {
    merge(parse_documents(name, text, methods, false)?)
}

fn merge(recipe: AnyRecipe) -> Result<Recipe, RecipeError> {
    let problem = |at| {
        let message = "expected a recipe that merges, found one of a mixture of experts";
        let problem = Problem::new(ProblemKind::Invalid, Some(at), message);
        vec![problem.with_hint("run it with `weld moe`")]
    };
    match recipe {
        AnyRecipe::Merge(recipe) => Ok(*recipe),
        AnyRecipe::Moe(recipe) => Err(recipe.error(problem(recipe.gate_mode.at))),
        AnyRecipe::Edit(recipe) => Err(recipe.error(problem(recipe.at))),
    }
}

fn parse_documents(
    name: &str,
    text: &str,
    methods: &[&'static MethodInfo],
    recorded: bool,
) -> Result<AnyRecipe, RecipeError> {
    // Positions count characters as editors show them.
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    if MAX_RECIPE_BYTES < text.len() as u64 {
        return Err(RecipeError::new(name, "", vec![too_large()]));
    }
    let roots = match yaml::read(text) {
        Ok(roots) => roots,
        Err(problem) => return Err(RecipeError::new(name, text, vec![problem])),
    };
    if let [root] = &roots[..]
        && let Some(problem) = of_a_checkpoint(root)
    {
        return Err(RecipeError::new(name, "", vec![problem]));
    }
    let mut problems = Vec::new();
    let mut warnings = Vec::new();
    let mut documents = Vec::new();
    let mut assemblies = Vec::new();
    if roots.is_empty() {
        let hint = "a recipe has at least `merge_method:` and `models:` or `slices:`";
        problems
            .push(Problem::new(ProblemKind::Invalid, None, "the recipe is empty").with_hint(hint));
    }
    if roots.len() > MAX_DOCUMENTS {
        let message = format!(
            "expected at most {MAX_DOCUMENTS} documents, found {}",
            roots.len()
        );
        problems.push(Problem::new(ProblemKind::Invalid, None, message));
        return Err(RecipeError::new(name, text, problems));
    }
    let recipe_dir = Path::new(name).parent();
    let mut found_models = Vec::new();
    for root in &roots {
        let mut walk = Walk::new(methods);
        walk.text = text;
        walk.recorded = recorded;
        walk.recipe_dir = recipe_dir.map(Path::to_owned);
        if is_moe(root) && is_edit(root) {
            assemblies.extend(
                walk.edit(root)
                    .map(|recipe| Assembly::Edit(Box::new(recipe))),
            );
        } else if is_moe(root) {
            if let Some((recipe, backbone)) = walk.moe(root) {
                documents.extend(backbone);
                assemblies.push(Assembly::Moe(Box::new(recipe)));
            }
        } else {
            documents.extend(walk.recipe(root));
        }
        problems.append(&mut walk.problems);
        warnings.append(&mut walk.warnings);
        found_models.append(&mut walk.found_models);
    }
    sort(&mut warnings);
    let has_found = !found_models.is_empty();
    let recipe_text = RecipeText {
        read: text.to_owned(),
        resolved: resolved(text, found_models),
    };
    let recipe = match assemblies.pop() {
        // A document that could not be read does not say what the others are used for.
        None if roots.iter().any(is_moe) => None,
        None => {
            let complete = problems.is_empty() && documents.len() == roots.len();
            let recipe = match documents.len() {
                1 if complete => documents.pop(),
                _ => link(documents, complete, &mut problems),
            };
            recipe.map(|recipe| {
                AnyRecipe::Merge(Box::new(Recipe {
                    warnings,
                    path: name.into(),
                    text: recipe_text.clone(),
                    ..recipe
                }))
            })
        }
        Some(_) if !problems.is_empty() => None,
        Some(recipe) if assemblies.is_empty() => {
            let results = link_models(recipe.mentions(), documents, &mut problems);
            results.map(|results| match recipe {
                Assembly::Moe(recipe) => AnyRecipe::Moe(Box::new(MoeRecipe {
                    results,
                    warnings,
                    path: name.into(),
                    text: recipe_text.clone(),
                    ..*recipe
                })),
                Assembly::Edit(recipe) => AnyRecipe::Edit(Box::new(EditRecipe {
                    results,
                    warnings,
                    path: name.into(),
                    text: recipe_text.clone(),
                    ..*recipe
                })),
            })
        }
        Some(second) => {
            let message =
                "two documents assemble a mixture of experts, and only one result is written";
            problems.push(Problem::new(ProblemKind::Invalid, second.at(), message));
            None
        }
    };
    let is_recorded = |recipe: &AnyRecipe| {
        let again = parse_documents("", recipe.text(), methods, recorded);
        again.is_ok_and(|again| again.mentions().eq(recipe.mentions()))
    };
    if let Some(recipe) = recipe.as_ref().filter(|_| has_found && problems.is_empty())
        && !is_recorded(recipe)
    {
        let message = "the models that a `glob` found can't be put into the text of the recipe, which is recorded";
        let hint = "write `models: {glob: ...}` on a line of its own, without anchors and aliases, or take fewer models";
        problems.push(Problem::new(ProblemKind::Invalid, None, message).with_hint(hint));
    }
    match recipe {
        Some(recipe) if problems.is_empty() => Ok(recipe),
        _ => Err(RecipeError::new(name, text, problems)),
    }
}

/// A recipe that assembles or edits a mixture of experts.
enum Assembly {
    Moe(Box<MoeRecipe>),
    Edit(Box<EditRecipe>),
}

impl Assembly {
    fn mentions(&self) -> Box<dyn Iterator<Item = &Located<ModelRef>> + '_> {
        match self {
            Assembly::Moe(recipe) => Box::new(recipe.mentions()),
            Assembly::Edit(recipe) => Box::new(recipe.mentions()),
        }
    }

    fn at(&self) -> Position {
        match self {
            Assembly::Moe(recipe) => recipe.gate_mode.at,
            Assembly::Edit(recipe) => recipe.at,
        }
    }
}

/// Files of checkpoints that are taken for recipes, by keys that only they have.
const OF_CHECKPOINTS: [(&str, &str); 7] = [
    ("weight_map", "the index of a model's weights"),
    ("peft_type", "an adapter's config"),
    ("added_tokens", "a tokenizer"),
    ("tokenizer_class", "a tokenizer's config"),
    ("transformers_version", "a model's config.json"),
    ("architectures", "a model's config.json"),
    ("model_type", "a model's config.json"),
];

/// Says what a file is that belongs to a checkpoint and is no recipe.
fn of_a_checkpoint(root: &Node) -> Option<Problem> {
    let Value::Map(entries) = &root.value else {
        return None;
    };
    let has = |key: &str| entries.iter().any(|entry| entry.key == key);
    let recipes = [
        "merge_method",
        "models",
        "slices",
        "modules",
        "base_model",
        "experts",
    ];
    if recipes.into_iter().any(has) {
        return None;
    }
    if has("outputs") && has("recipe") {
        let message = "this is the lock of a merge, not a recipe";
        let problem = Problem::new(ProblemKind::Invalid, None, message);
        return Some(problem.with_hint("the recipe is the text in its key `recipe`"));
    }
    let (_, what) = OF_CHECKPOINTS.into_iter().find(|(key, _)| has(key))?;
    let problem = Problem::new(
        ProblemKind::Invalid,
        None,
        format!("this is {what}, not a recipe"),
    );
    Some(problem.with_hint("name a recipe: a YAML file with `merge_method:` and `models:`"))
}

/// The text of a recipe's file.
///
/// # Errors
/// The file cannot be read, is too large, or is not UTF-8.
pub fn read_text(path: &Path) -> Result<String, RecipeError> {
    let text = opened(path).and_then(text_of);
    text.map_err(|problem| RecipeError::new(path.display().to_string(), "", vec![problem]))
}

/// The same of a regular file alone, which may be read again: opening it never waits, as that of a pipe would.
///
/// # Errors
/// As of [`read_text`], or it is a pipe or a device.
pub fn read_regular_text(path: &Path) -> Result<String, RecipeError> {
    let regular = match open_regular(path, OpenOptions::new().read(true)) {
        Err(CheckpointError::NotAFile { .. }) if !path.is_dir() => {
            let found = "expected a recipe, found a pipe or a device";
            Err(unreadable(found.into()).with_hint("a recipe is a YAML file, such as `recipe.yml`"))
        }
        Ok(file) => text_of(file),
        Err(_) => opened(path).and_then(text_of),
    };
    regular.map_err(|problem| RecipeError::new(path.display().to_string(), "", vec![problem]))
}

/// The text of a recipe that does not come from a file of its own, such as standard input. Errors call it `name`.
///
/// # Errors
/// It cannot be read, is too large, or is not UTF-8.
pub fn text_from(name: &str, reader: impl Read) -> Result<String, RecipeError> {
    text_of(reader).map_err(|problem| RecipeError::new(name, "", vec![problem]))
}

fn unreadable(message: String) -> Problem {
    Problem::new(ProblemKind::Unreadable, None, message)
}

fn cannot(error: std::io::Error) -> Problem {
    unreadable(format!("cannot read the recipe: {error}"))
}

fn opened(path: &Path) -> Result<File, Problem> {
    let file = File::open(path).map_err(|error| match near(path, &error) {
        Some(near) => cannot(error).with_hint(format!("did you mean `{}`?", near.display())),
        None => cannot(error),
    })?;
    if file.metadata().is_ok_and(|metadata| metadata.is_dir()) {
        return Err(unreadable("expected a recipe, found a folder".into())
            .with_hint("a recipe is a YAML file, such as `recipe.yml`"));
    }
    Ok(file)
}

fn text_of(reader: impl Read) -> Result<String, Problem> {
    let mut bytes = Vec::new();
    // Not by the file's length, because it may be a pipe.
    let mut limited = reader.take(MAX_RECIPE_BYTES + 1);
    limited.read_to_end(&mut bytes).map_err(cannot)?;
    if MAX_RECIPE_BYTES < bytes.len() as u64 {
        return Err(too_large());
    }
    String::from_utf8(bytes).map_err(|error| {
        let valid = error.utf8_error().valid_up_to();
        let before = error.as_bytes().iter().take(valid);
        let line = 1 + before.filter(|byte| **byte == b'\n').count();
        unreadable(format!("the recipe is not UTF-8 text: see line {line}"))
            .with_hint("save the file as UTF-8")
    })
}

/// The recipe that is meant by a path where there is none.
fn near(path: &Path, error: &std::io::Error) -> Option<PathBuf> {
    let is_absent = error.kind() == std::io::ErrorKind::NotFound;
    is_absent.then(|| file_like(path, &[".yml", ".yaml"]))?
}

fn too_large() -> Problem {
    let message = format!("expected a recipe of at most {MAX_RECIPE_BYTES} bytes, found more");
    Problem::new(ProblemKind::Unreadable, None, message)
        .with_hint("is this the recipe, and not one of the models?")
}
