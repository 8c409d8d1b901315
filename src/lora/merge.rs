//! A recipe becomes an adapter: `output: adapter`.
//!
//! What adapters add to a weight is small matrices in a [space](super::space) that they share. These are the tensors of
//! models in memory, whose base is zeros, and the recipe is planned and run on them as on any models. With `svd` it is
//! run on the models themselves, and what comes out is decomposed as it is read.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use architecture::{WeightOrder, is_output_head, linear_weight};
use checkpoint::{
    Bytes, Checkpoint, CheckpointError, Dtype, InMemory, ModelConfig, ModelRef, Resolver,
    SidecarsFrom,
};
use engine::{EngineError, Observer, Sink, Tile};
use errors::{Hint, Refusal};
use matrix::{Matrix, MatrixError};
use numeric::FloatType;
use plan::{Detail, MergeResult, Options as PlanOptions, Plan, licence_notes, licences_of};
use recipe::{
    AdapterOutput, AdapterWay, Located, Position, Problem, ProblemKind, Recipe, RecipeError,
    Rounding,
};
use run::destination::{Destination, Layout};
use run::{AdapterFiles, AdapterOrigin};
use serde_json::{Value, json};

use super::error::ExtractError;
use super::extract::{Extraction, failed};
use super::factors::round;
use super::files::{Options, Weights};
use super::modules::prefix;
use super::patterns::{Patterns, module_of};
use super::report::{Fit, Made, Report};
use super::request::{Rank, Request};
use super::space::{Cores, Space, Update};

/// A merge whose result is an adapter, before it is computed.
pub struct AdapterMerge {
    merge: Arc<MergeResult>,
    output: AdapterOutput,
    base: Arc<Checkpoint>,
    base_name: String,
    /// The models of the recipe; with `svd` those of the plan are.
    models: Vec<Arc<Checkpoint>>,
    /// The weights that their adapters change; none with `svd`.
    weights: Vec<Weight>,
    format: FloatType,
}

/// A weight that adapters change.
struct Weight {
    name: String,
    /// Rows and columns as they are stored.
    shape: [usize; 2],
    order: WeightOrder,
    /// Its number in each model whose adapter changes it.
    at: Vec<Option<usize>>,
}

impl Weight {
    fn inputs(&self) -> usize {
        match self.order {
            WeightOrder::OutIn => self.shape[1],
            WeightOrder::InOut => self.shape[0],
        }
    }

    /// The space of the adapters, and their matrices in it.
    fn space(
        &self,
        way: AdapterWay,
        models: &[Arc<Checkpoint>],
    ) -> Result<Option<Cores>, MatrixError> {
        let update = |(model, at): (&Arc<Checkpoint>, &Option<usize>)| {
            let product = at.and_then(|at| model.only_adapter()?.product(at));
            let turned = self.order == WeightOrder::InOut;
            let read = product.map(|product| Update::read(&product, self.shape, turned));
            read.transpose()
        };
        let updates: Result<Vec<Option<Update>>, _> =
            models.iter().zip(&self.at).map(update).collect();
        Space::new(way, &updates?)
    }

    /// A matrix of the space as the weight itself would lie.
    fn laid(&self, core: Matrix<f32>) -> Result<Matrix<f32>, MatrixError> {
        match self.order {
            WeightOrder::OutIn => Ok(core),
            WeightOrder::InOut => Ok(core.transposed()?),
        }
    }
}

impl AdapterMerge {
    /// Plans a recipe with an `output`. Adapters are read for it.
    ///
    /// # Errors
    /// All that is wrong with the recipe and its models.
    pub fn plan(
        mut recipe: Recipe,
        path: &str,
        resolver: &dyn Resolver,
        options: &PlanOptions,
    ) -> Result<Self, RecipeError> {
        let Some(Located { value: output, at }) = recipe.output.take() else {
            let message = "the recipe says nothing of an adapter";
            let problem = Problem::new(ProblemKind::Missing, None, message);
            return Err(recipe.error(vec![problem.with_hint("say `output: adapter`")]));
        };
        if recipe.method.statistics.is_some() && output.way != AdapterWay::Svd {
            let message = format!(
                "`{}` reads statistics of whole layers, and merges no adapters in a space of their own",
                recipe.method.name
            );
            let problem = Problem::new(ProblemKind::Invalid, recipe.method_at, message);
            return Err(recipe.error(vec![
                problem.with_hint("say `output: {adapter: svd, rank: 32}`"),
            ]));
        }
        if let Some(quantization) = &recipe.quantization {
            let message = "an adapter is not quantised";
            let problem = Problem::new(ProblemKind::Invalid, Some(quantization.at), message);
            return Err(recipe.error(vec![problem.with_hint("leave `quantization` out")]));
        }
        let format = factor_format(&recipe, at)?;
        // The result is rounded once, when its factors are.
        recipe.dtype = Some(Dtype::F32);
        recipe.out_dtype = None;
        recipe.rounding = Rounding::Nearest;
        let base_ref = shared_base(&recipe, at)?;
        let base = open(&recipe, &base_ref, at, resolver)?;
        let base_name = base_ref.to_string();
        if output.way == AdapterWay::Svd {
            let plan = plan::plan(&recipe, path, resolver, options)?;
            return Ok(Self {
                models: Vec::new(),
                merge: Arc::new(MergeResult::new(plan, false)),
                output,
                base,
                base_name,
                weights: Vec::new(),
                format,
            });
        }
        refuse_parts(&recipe, options)?;
        let mut names: Vec<&Located<ModelRef>> = Vec::new();
        for model in recipe.mentions() {
            if !names.iter().any(|known| known.value == model.value) {
                names.push(model);
            }
        }
        let mut models = Vec::new();
        for name in &names {
            let model = open(&recipe, &name.value, name.at, resolver)?;
            if model.location().without_adapters() != base.location().without_adapters() {
                let message = format!("`{}` is no adapter of `{base_name}`", name.value);
                let hint = "each model is `BASE+ADAPTER`, of one base; `output: {adapter: svd, rank: 32}` takes any";
                let problem = Problem::new(ProblemKind::Invalid, name.at, message);
                return Err(recipe.error(vec![problem.with_hint(hint)]));
            }
            models.push(model);
        }
        let told = |(place, refusal): (Option<Position>, Refusal)| {
            refused(&recipe, ProblemKind::Invalid, place, &refusal)
        };
        let weights = adapted(&base, &models, &names).map_err(told)?;
        let cores =
            cores(output.way, &weights, &models).map_err(|refusal| told((Some(at), refusal)))?;
        let in_memory = names.iter().zip(cores).map(|(name, tensors)| {
            let text = name.value.to_string();
            let location = base.location().without_adapters();
            let (beside, source) = (SidecarsFrom::Nothing, Arc::new(tensors));
            let model = Checkpoint::new(&text, location, None, beside, source);
            (text, Arc::new(model))
        });
        let resolver = InSpace {
            models: in_memory.collect(),
            otherwise: resolver,
        };
        let mut plan = plan::plan(&recipe, path, &resolver, options)?;
        let files: Vec<&Checkpoint> = models.iter().chain([&base]).map(|model| &**model).collect();
        plan.licences = licences_of(&files);
        plan.notes.extend(licence_notes(&plan.licences));
        Ok(Self {
            merge: Arc::new(MergeResult::new(plan, false)),
            output,
            base,
            base_name,
            models,
            weights,
            format,
        })
    }

    /// The model that the adapter is for.
    pub fn base(&self) -> &Checkpoint {
        &self.base
    }

    /// The models that are read, each once: the base first.
    pub fn models(&self) -> Vec<&Checkpoint> {
        let mut models = vec![self.base()];
        let of_plan = self.merge.plan.stored_models();
        for model in of_plan
            .into_iter()
            .chain(self.models.iter().map(|model| &**model))
        {
            if !models.iter().any(|known| known.label() == model.label()) {
                models.push(model);
            }
        }
        models
    }

    /// What the adapter's lock and card say.
    pub fn origin(&self, hash_inputs: bool) -> AdapterOrigin<'_> {
        let plan = &self.merge.plan;
        let models = self.models();
        AdapterOrigin {
            command: "merge",
            recipe: plan.recipe.1.clone(),
            options: AdapterOrigin::options_of(plan, &models),
            seed: plan.random.then_some(plan.seed),
            models,
            made: format!(
                "A LoRA adapter, merged with Weldment {} by the `{}` method ({}), as `{}`.",
                env!("CARGO_PKG_VERSION"),
                plan.method.name,
                plan.method.source,
                self.output.way.name()
            ),
            hash_inputs,
            threads: self.threads(),
        }
    }

    /// The notes of the plan.
    pub fn notes(&self) -> &[String] {
        &self.merge.plan.notes
    }

    /// The plan for people.
    pub fn text(&self, detail: Detail) -> String {
        let AdapterOutput { way, rank } = self.output;
        let mut text = plan::merged_text(&self.merge.plan, detail);
        let modules = match way {
            AdapterWay::Svd => String::new(),
            _ => format!(", {} modules", self.merge.plan.tensors.len()),
        };
        let most = rank.map_or(String::new(), |rank| {
            format!(", of rank {rank} at the most")
        });
        let base = errors::printable(&self.base_name);
        text += &format!(
            "output   an adapter of `{base}` by {}{modules}{most}\n",
            way.name()
        );
        for note in self.notes() {
            text += &format!("note     {}\n", errors::printable(note));
        }
        text
    }

    /// The plan for programs.
    pub fn json(&self) -> Value {
        let mut json = plan::json(&self.merge.plan);
        json["output"] = json!({
            "adapter": self.output.way.name(),
            "rank": self.output.rank,
            "base": self.base_name,
        });
        json
    }

    /// Computes the adapter and writes it, with a lock and a card. A result that takes whole matrices lies in an unnamed
    /// file in `scratch` meanwhile. With `hash_inputs` the lock gets the digests of the models' tensors.
    ///
    /// # Errors
    /// If something cannot be read, computed or written; then the destination is unchanged.
    pub fn run(
        &self,
        destination: &dyn Destination,
        scratch: &Path,
        hash_inputs: bool,
        observer: &dyn Observer,
    ) -> Result<Made, ExtractError> {
        let origin = self.origin(hash_inputs);
        match self.output.way {
            AdapterWay::Svd => self.decompose(origin, destination, scratch, observer),
            _ => self.expand(origin, destination, scratch, observer),
        }
    }

    /// What the adapter must not replace.
    fn reads(&self) -> Vec<PathBuf> {
        let models = self.models();
        let files = models.iter().flat_map(|model| model.shards());
        let files = files.map(|shard| shard.path.clone());
        let folders = models.iter().flat_map(|model| model.location().paths());
        let recipe = PathBuf::from(&self.merge.plan.recipe.0);
        files
            .chain(folders.map(ToOwned::to_owned))
            .chain([recipe])
            .collect()
    }

    fn threads(&self) -> usize {
        self.merge.plan.settings.threads
    }

    /// Decomposes the merge of the models.
    fn decompose(
        &self,
        origin: AdapterOrigin<'_>,
        destination: &dyn Destination,
        scratch: &Path,
        observer: &dyn Observer,
    ) -> Result<Made, ExtractError> {
        run::prepare_result(&self.merge, scratch, observer)?;
        let merged = self.merge.checkpoint("the merge");
        let extraction = Extraction::plan(Request {
            base: &self.base,
            tuned: &merged,
            base_name: &self.base_name,
            rank: Rank::Fixed(self.output.rank.unwrap_or(usize::MAX)),
            only: Patterns::default(),
            except: Patterns::default(),
            save: Patterns::default(),
            format: self.format,
            threads: self.threads(),
            also_reads: self.reads(),
        })?;
        extraction.run(origin, destination, observer)
    }

    /// Merges the small matrices, and makes factors of what comes out.
    fn expand(
        &self,
        origin: AdapterOrigin<'_>,
        destination: &dyn Destination,
        scratch: &Path,
        observer: &dyn Observer,
    ) -> Result<Made, ExtractError> {
        let plan = &self.merge.plan;
        let sink = Collected::new(plan);
        run::replay(plan, None, None, scratch, &sink, observer)?;
        let merged = sink.0.into_inner().unwrap_or_else(PoisonError::into_inner);
        let threads = self.threads();
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build();
        let pool = pool.map_err(|source| EngineError::Threads { threads, source })?;
        let stored = self.models.iter().map(|model| model.shards());
        let stored = stored.flatten().map(|shard| shard.file_size).sum();
        let staged = destination.begin(&Layout {
            shards: &[],
            side_bytes: stored,
            reads: self.reads(),
        })?;
        let mut files = AdapterFiles::new(staged, observer);
        let options = Options {
            base: &self.base,
            base_name: &self.base_name,
            saved: Vec::new(),
            ties: false,
            fan_in_fan_out: self
                .weights
                .iter()
                .all(|weight| weight.order == WeightOrder::InOut),
            prefix: prefix(&self.base),
        };
        let mut weights = Weights::new(&files)?;
        let mut report = Report::default();
        for (tensor, bytes) in plan.tensors.iter().zip(&merged) {
            let Some(weight) = self
                .weights
                .iter()
                .find(|weight| weight.name == tensor.name)
            else {
                continue;
            };
            let fit = pool.install(|| self.module(weight, bytes));
            let Some((mut update, change, left_out)) = fit? else {
                continue;
            };
            let module = options.named(module_of(&weight.name));
            for factor in [&mut update.left, &mut update.right] {
                round(factor, self.format).map_err(EngineError::from)?;
            }
            let a = update.right.transposed().map_err(EngineError::from)?;
            weights.factor(&module, "lora_A", a, self.format)?;
            report.fits.push(Fit {
                tensor: weight.name.clone(),
                rank: update.left.columns(),
                base: 0.0,
                change,
                left_out,
                module: module.clone(),
            });
            weights.factor(&module, "lora_B", update.left, self.format)?;
        }
        if report.fits.is_empty() {
            let why = Refusal::new("what the recipe makes of the adapters changes nothing");
            return Err(why
                .with_hint("look at the weights: `weld plan` shows them")
                .into());
        }
        report.bytes = weights.finish(&mut files)?;
        report.rank = options.write(&mut files, &report.fits)?;
        let recorded = files.commit(origin, destination.path())?;
        Ok(Made { report, recorded })
    }

    /// The factors of a weight, the square of its change, and of what they leave out of it.
    fn module(
        &self,
        weight: &Weight,
        bytes: &[u8],
    ) -> Result<Option<(Update, f64, f64)>, ExtractError> {
        let told = |error| failed(&weight.name, error);
        let way = self.output.way;
        let Some((space, _)) = weight.space(way, &self.models).map_err(told)? else {
            return Ok(None);
        };
        let [rows, columns] = space.shape(weight.inputs());
        let (rows, columns) = match weight.order {
            WeightOrder::OutIn => (rows, columns),
            WeightOrder::InOut => (columns, rows),
        };
        let mut merged = Matrix::zeros(rows, columns).map_err(EngineError::from)?;
        FloatType::F32.decode(bytes, merged.values_mut());
        let merged = weight.laid(merged).map_err(told)?;
        if merged.squared_norm() == 0.0 {
            return Ok(None);
        }
        match space.factors(&merged, self.output.rank).map_err(told)? {
            Some((update, change, left_out)) if update.left.columns() > 0 => {
                Ok(Some((update, change, left_out)))
            }
            Some(_) => Ok(None),
            None => {
                let method = self.merge.plan.method.name;
                let why = format!(
                    "`{method}` does not add up whole adapters, as `cat` must: see `{}`",
                    weight.name
                );
                let hint = "choose `core_space` or `knots`, in which any method works, or `svd`";
                Err(Refusal::new(why).with_hint(hint).into())
            }
        }
    }
}

/// The format of the factors: the recipe's dtype, or F32.
fn factor_format(recipe: &Recipe, at: Position) -> Result<FloatType, RecipeError> {
    let dtype = recipe.out_dtype.or(recipe.dtype).unwrap_or(Dtype::F32);
    match FloatType::from_dtype(dtype) {
        Some(format @ (FloatType::F32 | FloatType::Bf16 | FloatType::F16)) => Ok(format),
        _ => {
            let message = format!("an adapter can't have the dtype {dtype}");
            let hint = "choose float32, bfloat16 or float16";
            let problem = Problem::new(ProblemKind::Invalid, at, message);
            Err(recipe.error(vec![problem.with_hint(hint)]))
        }
    }
}

/// The model that the adapter is for: the base, or the one that all adapters lie on.
fn shared_base(recipe: &Recipe, at: Position) -> Result<ModelRef, RecipeError> {
    if let Some(base) = recipe
        .base_model
        .as_ref()
        .filter(|base| base.value.adapters.is_empty())
    {
        return Ok(base.value.clone());
    }
    let base = |model: &Located<ModelRef>| match model.value.base() {
        Some(base) => base,
        None => model.value.clone(),
    };
    let mut bases = recipe.mentions().map(base);
    let first = bases.next();
    match first.filter(|first| bases.all(|base| base == *first)) {
        Some(first) => Ok(first),
        None => {
            let message = "the models have several bases, and an adapter is for one";
            let hint = "name the model that it is for as `base_model`";
            let problem = Problem::new(ProblemKind::Invalid, at, message);
            Err(recipe.error(vec![problem.with_hint(hint)]))
        }
    }
}

fn open(
    recipe: &Recipe,
    model: &ModelRef,
    at: Position,
    resolver: &dyn Resolver,
) -> Result<Arc<Checkpoint>, RecipeError> {
    let opened = resolver.resolve(model);
    opened.map_err(|error| {
        refused(
            recipe,
            ProblemKind::Absent,
            Some(at),
            &Refusal::from(&error),
        )
    })
}

fn refused(
    recipe: &Recipe,
    kind: ProblemKind,
    at: Option<Position>,
    refusal: &Refusal,
) -> RecipeError {
    let problem = Problem::new(kind, at, refusal.to_string());
    recipe.error(vec![match refusal.hint() {
        Some(hint) => problem.with_hint(hint),
        None => problem,
    }])
}

/// Refuses what has no meaning where adapters are merged by themselves.
fn refuse_parts(recipe: &Recipe, options: &PlanOptions) -> Result<(), RecipeError> {
    let has_modules = recipe.modules.iter().any(|module| module.name.is_some());
    let found = [
        (recipe.is_sliced(), "`slices`"),
        (has_modules, "`modules`"),
        (recipe.tokenizer.is_some(), "`tokenizer`"),
        (recipe.chat_template.is_some(), "`chat_template`"),
        (options.tokenizer_from.is_some(), "`--tokenizer-from`"),
        (!recipe.renames.is_empty(), "`rename`"),
        (!recipe.results.is_empty(), "several documents"),
    ];
    let problems = found.into_iter().filter(|(is_there, _)| *is_there);
    let problems: Vec<Problem> = problems
        .map(|(_, what)| {
            let message = format!("an adapter of adapters can't be made with {what}");
            let hint =
                "leave it out; `output: {adapter: svd, rank: 32}` takes any recipe of one document";
            Problem::new(ProblemKind::Invalid, None, message).with_hint(hint)
        })
        .collect();
    match problems.is_empty() {
        true => Ok(()),
        false => Err(recipe.error(problems)),
    }
}

/// The weights that the adapters of the models change, in the base's order.
fn adapted(
    base: &Checkpoint,
    models: &[Arc<Checkpoint>],
    names: &[&Located<ModelRef>],
) -> Result<Vec<Weight>, (Option<Position>, Refusal)> {
    let config = base.config().map(ModelConfig::value);
    let mut weights: BTreeMap<usize, Weight> = BTreeMap::new();
    for (number, model) in models.iter().enumerate() {
        if model.adapters().len() > 1 {
            let why = format!("`{}` has several adapters", model.label());
            let hint = "name each as a model of its own: `BASE+ADAPTER`, with its weight";
            return Err((Some(names[number].at), Refusal::new(why).with_hint(hint)));
        }
        let Some(adapter) = model.only_adapter() else {
            continue;
        };
        for at in adapter.changed() {
            let entry = &model.tensors()[at];
            let name = &entry.name;
            let of_base = base.find(name).filter(|_| name.ends_with(".weight"));
            let order = linear_weight(name, &entry.shape, config)
                .or(is_output_head(name).then_some(WeightOrder::OutIn));
            let product = adapter.product(at);
            let (Some(place), Some(order), Some(_), &[rows, columns]) =
                (of_base, order, product, entry.shape.as_slice())
            else {
                let why = format!(
                    "the adapter of `{}` does more to `{name}` than add two factors to the weight of a linear layer",
                    model.label()
                );
                let hint = "`output: {adapter: svd, rank: 32}` takes adapters of any kind";
                return Err((Some(names[number].at), Refusal::new(why).with_hint(hint)));
            };
            let weight = weights.entry(place).or_insert_with(|| Weight {
                name: name.clone(),
                shape: [rows, columns],
                order,
                at: vec![None; models.len()],
            });
            weight.at[number] = Some(at);
        }
    }
    match weights.is_empty() {
        true => {
            let why = Refusal::new("no model of the recipe has an adapter");
            Err((None, why.with_hint("name the models `BASE+ADAPTER`")))
        }
        false => Ok(weights.into_values().collect()),
    }
}

/// A tensor in memory: name, dtype, shape and bytes.
type NewTensor = (String, Dtype, Vec<usize>, Bytes);

/// The tensors of each model: what its adapter adds to each weight, in the weight's space.
fn cores(
    way: AdapterWay,
    weights: &[Weight],
    models: &[Arc<Checkpoint>],
) -> Result<Vec<InMemory>, Refusal> {
    let mut tensors: Vec<Vec<NewTensor>> = Vec::new();
    tensors.resize_with(models.len(), Vec::new);
    for weight in weights {
        let told = |error: MatrixError| {
            Refusal::new(format!(
                "the adapters of `{}` have no space: {error}",
                weight.name
            ))
        };
        let Some((space, cores)) = weight.space(way, models).map_err(told)? else {
            continue;
        };
        let [rows, columns] = space.shape(weight.inputs());
        for (core, tensors) in cores.into_iter().zip(&mut tensors) {
            let core = match core {
                Some(core) => core,
                None => Matrix::zeros(rows, columns).map_err(|error| told(error.into()))?,
            };
            let core = weight.laid(core).map_err(told)?;
            let values = core.values().iter();
            let bytes: Vec<u8> = values.flat_map(|value| value.to_le_bytes()).collect();
            let shape = vec![core.rows(), core.columns()];
            tensors.push((weight.name.clone(), Dtype::F32, shape, Box::new(bytes)));
        }
    }
    let models = tensors.into_iter().map(InMemory::new);
    let models: Result<Vec<InMemory>, _> = models.collect();
    models.map_err(|error| Refusal::new(error.to_string()))
}

/// The models of a recipe as matrices in the adapters' spaces.
struct InSpace<'a> {
    models: BTreeMap<String, Arc<Checkpoint>>,
    otherwise: &'a dyn Resolver,
}

impl Resolver for InSpace<'_> {
    fn resolve(&self, model: &ModelRef) -> Result<Arc<Checkpoint>, CheckpointError> {
        match self.models.get(model.text()) {
            Some(model) => Ok(Arc::clone(model)),
            None => self.otherwise.resolve(model),
        }
    }
}

/// The bytes of each tensor of a plan.
struct Collected(Mutex<Vec<Vec<u8>>>);

impl Collected {
    fn new(plan: &Plan) -> Self {
        let empty = |tensor: &plan::PlannedTensor| vec![0; tensor.bytes() as usize];
        Self(Mutex::new(plan.tensors.iter().map(empty).collect()))
    }
}

impl Sink for Collected {
    fn write(&self, output: usize, offset: u64, bytes: Tile) -> io::Result<()> {
        let mut tensors = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let tensor = tensors.get_mut(output);
        let place =
            tensor.and_then(|tensor| tensor.get_mut(offset as usize..)?.get_mut(..bytes.len()));
        let place = place.ok_or_else(|| io::Error::other("no place is planned for these bytes"))?;
        place.copy_from_slice(&bytes);
        Ok(())
    }
}
