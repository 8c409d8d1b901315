//! `weld stats RECIPE`: statistics of all models of a recipe of regmean, each layer on what the merged layers before it give.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use bytesize::ByteSize;
use serde_json::{Value, json};

use super::arguments::{Format, recipe_name};
use super::caller::Caller;
use super::eval::Stops;
use super::held::Held;
use super::memory::PeakMemory;
use super::network::{Needs, open};
use super::output::Failure;
use super::stats::{Arguments, STATISTICS, check_apart, said, said_of_unreached};
use ::eval::Tasks;
use ::stats::{Keep, Merger, Request, StatsError, Walk};
use checkpoint::{Checkpoint, Locator, ModelRef};
use engine::{Budget, Observer, Settings};
use errors::Refusal;
use methods::{Need, NeedOf, Statistic};
use plan::Plan;
use recipe::{Located, Recipe, RecipeError};
use run::destination::{Disk, folder_of};

/// A model of the recipe, and its statistics.
struct Member {
    model: Arc<Checkpoint>,
    /// As the recipe has them.
    name: String,
    file: String,
    /// Where the file is written.
    place: PathBuf,
    texts: Tasks,
}

/// Where a merge would look for a file: where it is, or else where its folder is, from the working folder or the recipe's.
fn place(file: &str, recipe: &Path) -> PathBuf {
    let folder = recipe.parent().unwrap_or(Path::new(""));
    let places = [PathBuf::from(file), folder.join(file)];
    let found = places.iter().find(|place| place.exists());
    let found = found.or_else(|| places.iter().find(|place| folder_of(place).is_dir()));
    found.unwrap_or(&places[0]).clone()
}

/// Writes the files; what was written is returned as JSON.
pub(super) fn write(arguments: &Arguments, path: &Path, caller: &Caller) -> Result<Value, Failure> {
    let name = recipe_name(path);
    let recipe = recipe::parse_with_registry(&name, &recipe::read_text(path)?)?;
    let locator = arguments
        .network
        .locator(path.parent(), Needs::Weights, caller)?;
    let members = members(arguments, path, &recipe, &locator)?;
    let budget = arguments.memory.budget();
    let options = arguments.options();
    let requests = members.iter().map(|member| {
        let request = Request {
            model: &member.model,
            texts: &member.texts,
            options: &options,
            keep: Keep {
                gram: true,
                magnitude: false,
            },
            memory: budget.most(),
        };
        (request, member.place.clone())
    });
    let walk = Walk::plan(&requests.collect::<Vec<_>>(), &Stops(caller))?;
    let planner = Planner {
        recipe: &recipe,
        name: &name,
        members: &members,
        locator: &locator,
        settings: Settings {
            threads: arguments.threads.count(),
            memory: without(budget, walk.memory()),
            allow_non_finite: false,
            saturate: false,
        },
    };
    let plan = planner.plan(walk.largest()?);
    let plan = plan.map_err(|error| caller.failure(error.into()))?;
    walk.check_memory(plan.limits.peak, budget.most())?;
    let memory = walk.memory().saturating_add(plan.limits.peak);
    caller.say(&format!(
        "running {} tokens through {} models and their merge, with {} of memory; the files will have {}",
        walk.tokens(),
        members.len(),
        ByteSize(memory),
        ByteSize(walk.bytes()).display().si()
    ));
    let peak = PeakMemory::watch();
    let started = Instant::now();
    let mut merger = Layers {
        planner,
        plan,
        caller,
    };
    let written = walk.write(&Disk::default(), &mut merger, &|| !caller.stopped())?;
    let (seconds, peak) = (started.elapsed().as_secs_f64(), peak.stop());
    let files = members.iter().zip(&written);
    if arguments.format == Format::Text {
        for (member, &written) in files.clone() {
            caller.say(
                &(said(&member.place.display().to_string(), written) + &said_of_unreached(written)),
            );
        }
        let held = peak.map_or(String::new(), |peak| {
            format!(", {} of own memory", ByteSize(peak))
        });
        caller.say(&format!(
            "{seconds:.2} s{held}; merge with: weld merge {name} OUT"
        ));
    }
    let files = files.map(|(member, written)| {
        json!({
            "model": member.name,
            "out": member.place.display().to_string(),
            "tokens": written.tokens,
            "inputs": written.inputs,
            "unreached": written.unreached,
            "bytes": written.bytes,
        })
    });
    Ok(json!({
        "files": files.collect::<Vec<_>>(),
        "memory": memory,
        "seconds": seconds,
        "peak_memory": peak,
    }))
}

/// The budget without what is held otherwise.
fn without(budget: Budget, held: u64) -> Budget {
    match budget {
        Budget::Limit(bytes) => Budget::Limit(bytes.saturating_sub(held)),
        Budget::Grows { usual, free } => Budget::Grows {
            usual,
            free: free.saturating_sub(held),
        },
    }
}

/// A model as a recipe names it, and the file of its statistics.
type Named<'a> = (&'a Located<ModelRef>, &'a Located<ModelRef>);

/// The models of a recipe, opened, with their texts; that files may be written where they are to be is seen.
fn members(
    arguments: &Arguments,
    path: &Path,
    recipe: &Recipe,
    locator: &Locator,
) -> Result<Vec<Member>, Failure> {
    let need = recipe.method.statistics;
    let is_regmean =
        need.is_some_and(|Need { kind, of }| kind == Statistic::Gram && of == NeedOf::EachModel);
    if !is_regmean {
        let why = format!(
            "{}: a recipe of `{}`, not of `regmean`",
            recipe.path, recipe.method.name
        );
        let hint = "name the model itself, and the file to write with --out";
        return Err(Failure::input(Refusal::new(why).with_hint(hint)));
    }
    if recipe.is_sliced() {
        let why = format!(
            "{}: a recipe of slices, whose layers are not those of its models",
            recipe.path
        );
        return Err(Failure::input(
            Refusal::new(why).with_hint("list the models under `models`"),
        ));
    }
    let named: Vec<Named<'_>> = recipe.statistics().collect();
    let mut files = BTreeSet::new();
    if let Some((_, twice)) = named
        .iter()
        .find(|(_, file)| !files.insert(file.value.text()))
    {
        let why = format!(
            "{}: two models have the statistics `{}`",
            recipe.path, twice.value
        );
        return Err(Failure::input(
            Refusal::new(why).with_hint("give each a file of its own"),
        ));
    }
    if named.len() != arguments.data.len() {
        let why = format!(
            "{}: {} models with statistics, and {} files of texts",
            recipe.path,
            named.len(),
            arguments.data.len()
        );
        let models: Vec<&str> = named.iter().map(|(model, _)| model.value.text()).collect();
        let hint = format!(
            "give one file behind --data for each of them, in this order: {}",
            models.join(", ")
        );
        return Err(Failure::input(Refusal::new(why).with_hint(hint)));
    }
    let member = |((model, file), texts): (Named<'_>, &PathBuf)| {
        let texts = Tasks::read(std::slice::from_ref(texts))?;
        let (name, file) = (model.value.text().to_owned(), file.value.text().to_owned());
        let model = Arc::new(open(locator, &model.value)?);
        let place = place(&file, path);
        STATISTICS.check_free(&place, arguments.force, &model)?;
        check_apart(&place, &model)?;
        Ok(Member {
            model,
            name,
            file,
            place,
            texts,
        })
    };
    named.into_iter().zip(&arguments.data).map(member).collect()
}

/// Plans the merge by statistics that are not written yet.
struct Planner<'a> {
    recipe: &'a Recipe,
    name: &'a str,
    members: &'a [Member],
    locator: &'a Locator,
    settings: Settings,
}

impl Planner<'_> {
    fn plan(&self, statistics: Vec<Checkpoint>) -> Result<Plan, RecipeError> {
        let files = self.members.iter().map(|member| member.file.clone());
        let files = files.zip(statistics.into_iter().map(Arc::new));
        let models = self.members.iter();
        let models = models.map(|member| (member.name.clone(), Arc::clone(&member.model)));
        let held: BTreeMap<String, Arc<Checkpoint>> = models.chain(files).collect();
        let options = plan::Options {
            settings: self.settings,
            seed: 0,
            shard_size: u64::MAX,
            tokenizer_from: None,
        };
        let held = Held::new(held, self.locator.clone());
        plan::plan(self.recipe, self.name, &held, &options)
    }
}

/// Merges layers by their plans.
struct Layers<'a> {
    planner: Planner<'a>,
    /// The plan of what needs no statistics.
    plan: Plan,
    caller: &'a Caller,
}

impl Merger for Layers<'_> {
    fn merged(
        &mut self,
        names: &BTreeSet<&str>,
        statistics: Vec<Checkpoint>,
    ) -> Result<Checkpoint, StatsError> {
        let of_layer = match statistics.is_empty() {
            true => None,
            false => Some(self.planner.plan(statistics).map_err(|error| {
                StatsError::Refused(Refusal::new(recipe::render(&error, false)))
            })?),
        };
        let plan = of_layer.as_ref().unwrap_or(&self.plan);
        let observer = Silent(self.caller);
        let scratch = std::env::temp_dir();
        run::some_in_memory(plan, names, self.planner.name, &scratch, &observer)
            .map_err(StatsError::Run)
    }
}

/// Says nothing of single layers.
struct Silent<'a>(&'a Caller);

impl Observer for Silent<'_> {
    fn advance(&self, _bytes: u64) {}

    fn cancelled(&self) -> bool {
        self.0.stopped()
    }
}
