//! Executes a plan: fills a destination, which shows the checkpoint only when it is complete.
//!
//! Whenever a run is stopped, the destination holds either the whole checkpoint or nothing. If a killed run leaves
//! files beside a folder, the next run removes them.
//!
//! This layer decides nothing: the plan says what is computed.

mod adapter;
mod behind;
mod card;
mod claims;
pub mod destination;
mod digests;
mod encoded;
mod error;
mod feed;
mod gguf_file;
mod holes;
mod in_memory;
mod join;
mod lock;
mod look;
mod output;
mod part;
mod part_number;
mod results;
mod scratch;
mod share;
mod ties;
mod told;
mod update;
mod work;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

pub use adapter::{AdapterFiles, AdapterOrigin, Recorded};
pub use digests::{Digest, Seen, all_digests, digests, each_piece};
pub use encoded::QuantizationError;
pub use error::RunError;
pub use feed::{Fetches, fetches};
pub use gguf_file::{ExportError, write_gguf};
pub use in_memory::{Merged, files_beside, in_memory, some_in_memory};
pub use lock::{
    LOCK_FILE, Lock, LockedFile, LockedHub, LockedInput, LockedOptions, LockedOutputs, Tool,
    input_places, locked_hub, locked_inputs, locked_recipe,
};

use behind::DropBehind;
use card::{CARD_FILE, Card};
use checkpoint::{Checkpoint, Reclaim};
use destination::{Destination, DiskError, Layout, Staged, Step};
use engine::{self, EngineError, Observer, Settings, Sink, Tile, Totals};
use errors::Refusal;
use feed::{Feed, in_steps};
use holes::Odd;
pub use join::{Joined, join, run_resumed};
use numeric::{EncodingError, Survival};
use output::{SideFiles, WrittenWeights, side_bytes};
pub use part::{PartRun, run_part};
pub use part_number::{MAX_PARTS, Part};
use plan::{MergeResult, Plan};
pub use scratch::{Scratch, ScratchRoots};
pub use share::{Share, share, shares};
pub use update::UpdateKept;
use work::Work;
pub use work::{Other, Sample};

/// Statistics of a finished run.
#[derive(Debug, Clone, PartialEq)]
pub struct Summary {
    /// Tensors written.
    pub tensors: usize,
    /// Bytes of tensors read and written.
    pub totals: Totals,
    /// How long it took.
    pub elapsed: Duration,
    /// How much of the update of the base survives the rounding, if there is a base.
    pub update: Option<UpdateKept>,
    /// How far encoded weights are from the computed ones, if any were encoded.
    pub quantization_error: Option<QuantizationError>,
    /// Notes for the user that depend on the weights.
    pub notes: Vec<String>,
    /// The digest of the lock that was written.
    pub lock: blake3::Hash,
}

/// How a run leaves its output.
#[derive(Clone, Copy, Default)]
pub struct RunOptions<'a> {
    /// Also record the digests of the inputs' tensors in the lock; this reads the inputs a second time.
    pub hash_inputs: bool,
    /// Drop inputs from the page cache as soon as they are read, because they do not fit into memory.
    pub drop_behind: bool,
    /// The most bytes that weights which lie on the Hub may take while they are used; all that there are, if not given.
    pub scratch_limit: Option<u64>,
    /// Looks at what is to be written, before anything is computed. Only folders are looked at.
    pub look: Option<&'a Look<'a>>,
    /// How the recipe was found, in Markdown, for the model card.
    pub found: Option<&'a str>,
}

/// Looks at a folder that holds everything but the values of the tensors; an error stops the run.
pub type Look<'a> = dyn Fn(&Path) -> Result<(), Refusal> + 'a;

/// Runs a plan and puts the checkpoint at its destination.
///
/// The files beside the weights are written first, so that the output can be looked at before anything is computed.
///
/// # Errors
/// Before anything is computed: the destination is taken, or has too little room, or the look found errors. Later:
/// problems that only the weights show (NaN, overflow, copies that differ), and failures of the disk. In every case the
/// destination is unchanged.
pub fn run(
    plan: &Plan,
    destination: &dyn Destination,
    options: RunOptions<'_>,
    observer: &dyn Observer,
) -> Result<Summary, RunError> {
    let started = Instant::now();
    let share = Share::whole(plan);
    let feed = Feed::new(plan, &share, options.scratch_limit)?;
    if feed.is_some() && options.hash_inputs {
        return Err(RunError::NotHashed);
    }
    let mut staged = destination.begin(&Layout {
        shards: &plan.shards,
        side_bytes: side_bytes(plan)? + plan.scratch_bytes(),
        reads: files_read(plan),
    })?;
    let mut side_files = SideFiles::new(staged.as_mut(), observer, BTreeMap::new());
    side_files.write_all(plan)?;
    let written = side_files.written;
    if options.look.is_some() && staged.folder().is_some() {
        told::write(plan, &share, staged.as_mut(), feed.is_none(), observer)?;
    }
    if let (Some(look), Some(folder)) = (options.look, staged.folder()) {
        look(folder).map_err(RunError::Unsound)?;
    }
    let computed = computed(
        plan,
        &share,
        feed.as_ref(),
        staged.as_mut(),
        options,
        observer,
    )?;
    let inputs = match options.hash_inputs {
        true => Some(input_digests(
            &plan.stored_models(),
            plan.settings.threads,
            observer,
        )?),
        false => None,
    };
    check_unchanged(plan.models.iter().map(|model| &**model))?;
    let mut side_files = SideFiles::new(staged.as_mut(), observer, written);
    let update = UpdateKept::new(plan, &computed.survived);
    let quantization_error = QuantizationError::new(plan, &computed.errors);
    let lock = Lock::new(plan, &computed.digests, &side_files.written, inputs);
    let lock = lock.with_update(update.as_ref());
    let lock = lock.with_quantization_error(quantization_error.as_ref());
    side_files.write(LOCK_FILE, lock.text().into_bytes())?;
    let card = Card::of_plan(plan, destination.path(), options.found).text(&lock);
    side_files.write(CARD_FILE, card.into_bytes())?;
    let written = side_files.written;
    look::look(plan, staged.as_ref(), &written)?;
    if observer.cancelled() {
        return Err(RunError::Cancelled);
    }
    let mut notes: Vec<String> = plan.models.iter().flat_map(|model| model.said()).collect();
    let warning = (update.as_ref()).and_then(|update| update.warning(&update::remedies(plan)));
    notes.extend(warning);
    let names = plan.tensors.iter().map(|tensor| tensor.name.as_str());
    notes.extend(holes::notes(holes::suspects(plan, &computed.odd), names));
    notes.extend(staged.commit()?);
    Ok(Summary {
        tensors: plan.tensors.len(),
        totals: computed.totals,
        elapsed: started.elapsed(),
        update,
        quantization_error,
        notes,
        lock: lock.digest(),
    })
}

/// The written weights.
struct Computed {
    totals: Totals,
    /// The digest of each tensor, by its number.
    digests: BTreeMap<usize, blake3::Hash>,
    /// What survives of each tensor's update, by its number.
    survived: BTreeMap<usize, Survival>,
    /// How far the codes of each encoded tensor are from its values, by its number.
    errors: BTreeMap<usize, EncodingError>,
    /// What looks damaged in the inputs.
    odd: Vec<Odd>,
}

/// Computes and writes the weights of a share, as their files come, if they are fetched.
fn computed(
    plan: &Plan,
    share: &Share,
    feed: Option<&Feed>,
    staged: &mut dyn Staged,
    options: RunOptions<'_>,
    observer: &dyn Observer,
) -> Result<Computed, RunError> {
    let reclaim = match options.drop_behind {
        true => Reclaim::Cache,
        false => Reclaim::Map,
    };
    match feed {
        Some(fetched) => fetched.run(observer, || {
            compute(plan, share, feed, staged, reclaim, observer)
        }),
        None => compute(plan, share, None, staged, reclaim, observer),
    }
}

/// Computes and writes the weights of a share.
fn compute(
    plan: &Plan,
    share: &Share,
    feed: Option<&Feed>,
    staged: &mut dyn Staged,
    reclaim: Reclaim,
    observer: &dyn Observer,
) -> Result<Computed, RunError> {
    let made = results::make(plan, &|| staged.scratch(), feed, observer)?;
    if share.is_first() {
        ties::check(plan, feed, observer)?;
    }
    prepare(plan, observer)?;
    let surveyed = survey(plan, feed, observer)?;
    if share.tensors.len() == plan.tensors.len() {
        read_ahead(plan);
    }
    let weights = WrittenWeights::new(plan, share, staged);
    let sink = DropBehind {
        plan,
        sink: &weights,
        reclaim,
    };
    let (mut work, mut totals) = (Work::default(), Totals::default());
    let done = in_steps(feed, share.tensors.len(), observer, |items| {
        let tensors = share.tensors[items].iter().copied();
        let jobs = work.outputs(plan, tensors, None)?;
        totals += engine::execute(&jobs, &plan.settings, &plan.limits, &sink, observer)?;
        Ok(())
    });
    if let Err(error) = done {
        drop(weights);
        if let RunError::Engine(EngineError::Write { .. }) = error {
            // The engine knows no files.
            staged.finish()?;
        }
        return Err(error);
    }
    check_complete(plan, share, totals)?;
    let survived = weights.survived();
    let errors = weights.errors();
    let odd = weights.odd();
    let digests = weights.digests()?;
    staged.finish()?;
    let totals = Totals {
        read: totals.read + made.read + surveyed,
        saturated: totals.saturated + made.saturated,
        ..totals
    };
    Ok(Computed {
        totals,
        digests,
        survived,
        errors,
        odd,
    })
}

/// The files that the output must not replace: the recipe, and everything that it reads.
fn files_read(plan: &Plan) -> Vec<PathBuf> {
    let models = plan.stored_models();
    // The folders of weights that lie apart from the model's own are known by their files.
    let weights = models.iter().flat_map(|model| model.shards());
    let weights = weights.map(|shard| shard.path.as_path());
    let models = models.iter().flat_map(|model| model.location().paths());
    let side = plan.sidecars.iter().map(|(_, file)| file.path.as_path());
    let recipe = Path::new(&plan.recipe.0);
    let stored = plan.stored_models();
    let stored = stored.iter().flat_map(|model| model.location().parts());
    let stored = stored.filter_map(|part| Some(Path::new(&part.store.as_ref()?.address)));
    let all = models
        .chain(weights)
        .chain(side)
        .chain([recipe])
        .chain(stored);
    all.map(Path::to_owned).collect()
}

/// Computes what a plan would write and passes it to a sink, which gets the number of each output tensor.
///
/// With `sample`, only some blocks of each tensor are computed: `sample` takes a tensor's number and its number of
/// blocks, and returns the wanted blocks in ascending order. With `share`, only the tensors of that share. Results that
/// several documents of the recipe read are kept in an unnamed file in `scratch`.
///
/// # Errors
/// Problems that only the weights show (NaN, overflow, copies that differ), and failures of the sink.
pub fn replay(
    plan: &Plan,
    sample: Option<&Sample<'_>>,
    share: Option<&Share>,
    scratch: &Path,
    sink: &dyn Sink,
    observer: &dyn Observer,
) -> Result<Totals, RunError> {
    let file = || {
        let file = tempfile::tempfile_in(scratch);
        Ok(file.map_err(DiskError::at(Step::Create, scratch))?)
    };
    results::make(plan, &file, None, observer)?;
    ties::check(plan, None, observer)?;
    prepare(plan, observer)?;
    survey(plan, None, observer)?;
    let jobs = match share {
        Some(share) => Work::default().outputs(plan, share.tensors.iter().copied(), sample)?,
        None => Work::default().outputs(plan, 0..plan.tensors.len(), sample)?,
    };
    if sample.is_none() && share.is_none() {
        read_ahead(plan);
    }
    let totals = engine::execute(&jobs, &plan.settings, &plan.limits, sink, observer)?;
    check_unchanged(plan.models.iter().map(|model| &**model))?;
    Ok(totals)
}

/// Computes some tensors of a plan, by number, and passes them to a sink; nothing else of the models is looked at.
fn replay_some(
    plan: &Plan,
    tensors: &[usize],
    scratch: &Path,
    sink: &dyn Sink,
    observer: &dyn Observer,
) -> Result<(), RunError> {
    let file = || {
        let file = tempfile::tempfile_in(scratch);
        Ok(file.map_err(DiskError::at(Step::Create, scratch))?)
    };
    results::make(plan, &file, None, observer)?;
    prepare(plan, observer)?;
    survey(plan, None, observer)?;
    let jobs = Work::default().outputs(plan, tensors.iter().copied(), None)?;
    engine::execute(&jobs, &plan.settings, &plan.limits, sink, observer)?;
    check_unchanged(plan.models.iter().map(|model| &**model))
}

/// Does what must be done before the values of a merge are read one by one, as those of a model: measuring passes, or,
/// where the merge takes whole matrices, the merge itself, into an unnamed file in `scratch`.
///
/// # Errors
/// Problems that only the weights show, and failures of the disk that holds the file.
pub fn prepare_result(
    result: &MergeResult,
    scratch: &Path,
    observer: &dyn Observer,
) -> Result<(), RunError> {
    let file = || {
        let file = tempfile::tempfile_in(scratch);
        Ok(file.map_err(DiskError::at(Step::Create, scratch))?)
    };
    let plan = &result.plan;
    results::make(plan, &file, None, observer)?;
    if result.is_made_once() {
        prepare(plan, observer)?;
        results::make_one(result, file()?, None, observer)?;
        return Ok(());
    }
    ties::check(plan, None, observer)?;
    prepare(plan, observer)?;
    let Work { jobs, .. } = Work::before(result)?;
    engine::execute(&jobs, &plan.settings, &plan.limits, &NoOutput, observer)?;
    Ok(())
}

/// Computes some tensors of a plan with other programs, which get the checkpoint's own tensor as an additional source.
///
/// NaN and infinity are let through, because the comparison judges them.
///
/// # Errors
/// The programs need more than the plan's memory; failures of the sink, and problems that only the weights show.
pub fn replay_others(
    plan: &Plan,
    others: &[Other<'_>],
    sample: Option<&Sample<'_>>,
    sink: &dyn Sink,
    observer: &dyn Observer,
) -> Result<Totals, RunError> {
    let of_plan = |other: &Other<'_>| plan.tensors.get(other.tensor);
    let widest = others
        .iter()
        .filter_map(of_plan)
        .map(|tensor| tensor.sources.len() + 1);
    let cost = others
        .iter()
        .fold(plan.cost, |cost, other| cost.max(other.program.cost()));
    let settings = Settings {
        allow_non_finite: true,
        saturate: true,
        ..plan.settings
    };
    let limits = settings.limits(widest.max().unwrap_or(0), cost)?;
    let Work { jobs, .. } = Work::of_others(plan, others, sample)?;
    Ok(engine::execute(&jobs, &settings, &limits, sink, observer)?)
}

/// Finds out what programs must know of the whole model before they compute its first tensor. Returns the bytes read.
fn survey(plan: &Plan, feed: Option<&Feed>, observer: &dyn Observer) -> Result<u64, RunError> {
    let mut read = 0;
    if plan.is_surveyed() {
        in_steps(feed, 1, observer, |_| {
            let Work { jobs, .. } = Work::of_results(plan)?;
            let decided =
                engine::execute(&jobs, &plan.settings, &plan.limits, &NoOutput, observer)?;
            let jobs = Work::default().outputs(plan, 0..plan.tensors.len(), None)?;
            read = decided.read + engine::survey(&jobs, &plan.settings, observer)?;
            Ok(())
        })?;
    }
    Ok(read)
}

/// Tells the system that all models will be read from start to end.
fn read_ahead(plan: &Plan) {
    plan.stored_models()
        .iter()
        .for_each(|model| model.read_ahead());
}

/// Computes the values that no file holds and that are not computed block by block: the rows of routers.
fn prepare(plan: &Plan, observer: &dyn Observer) -> Result<(), RunError> {
    let cancelled = || observer.cancelled();
    if plan.models.iter().any(|model| model.reads_results()) {
        let Work { jobs, .. } = Work::of_results(plan)?;
        engine::execute(&jobs, &plan.settings, &plan.limits, &NoOutput, observer)?;
    }
    for model in &plan.models {
        let prepared = model.prepare(plan.settings.threads, &cancelled);
        prepared.map_err(|source| match observer.cancelled() {
            true => RunError::Cancelled,
            false => RunError::NotPrepared(source),
        })?;
    }
    Ok(())
}

/// A sink that accepts no output, for work that only decides.
struct NoOutput;

impl Sink for NoOutput {
    fn write(&self, _output: usize, _offset: u64, _bytes: Tile) -> std::io::Result<()> {
        Ok(())
    }
}

/// Checks that none of these models was written to since it was opened.
///
/// # Errors
/// One was; says which.
pub fn check_unchanged<'m>(
    models: impl IntoIterator<Item = &'m Checkpoint>,
) -> Result<(), RunError> {
    for model in models {
        model
            .check_unchanged()
            .map_err(|source| RunError::InputChanged {
                model: model.label().to_owned(),
                source: Box::new(source),
            })?;
    }
    Ok(())
}

/// The digests of the stored tensors of every model, by tensor name.
fn input_digests(
    models: &[&Checkpoint],
    threads: usize,
    observer: &dyn Observer,
) -> Result<Vec<BTreeMap<String, String>>, RunError> {
    claims::check(models, threads, observer)?;
    let of = |model: &&Checkpoint| {
        let model = model.as_stored();
        let digests = all_digests(&model, threads, observer)?;
        let tensors = model.tensors().iter().zip(digests);
        let named =
            tensors.filter_map(|(tensor, digest)| Some((tensor.name.clone(), digest?.to_string())));
        Ok(named.collect())
    };
    models.iter().map(of).collect()
}

/// Checks that every byte of every tensor of a share was computed, before the folder is put in its place.
fn check_complete(plan: &Plan, share: &Share, totals: Totals) -> Result<(), RunError> {
    let files = plan.shards[share.shards.clone()].iter();
    let expected: u64 = files
        .map(|shard| shard.file_size - shard.header.len() as u64)
        .sum();
    if totals.written == expected {
        return Ok(());
    }
    Err(RunError::Incomplete {
        expected,
        found: totals.written,
    })
}
