//! Runs one part of a plan: its weight files go to a folder of their own beside the output, with a manifest.
//!
//! `OUT.weld-parts/3-of-16` holds the weight files of part 3; that of the first part also holds the files beside the
//! weights. The manifest says what [`join`](super::join()) needs to know of the plan, so that nobody opens the inputs again.

use std::collections::BTreeMap;
use std::fs::File;
use std::path::Path;
use std::time::Instant;

use serde::{Deserialize, Serialize};

use super::card::{CARD_FILE, Card};
use super::destination::{DiskError, Held, Layout, MANIFEST_FILE, Parts, Step};
use super::encoded::{MeasuredError, measured};
use super::error::RunError;
use super::feed::Feed;
use super::holes::{Suspects, suspects};
use super::lock::Lock;
use super::look::{check_side_files, check_weights};
use super::output::{SideFiles, side_bytes};
use super::part_number::Part;
use super::share::{Share, most_parts, share, shares};
use super::update::{Survivor, remedies, survivors};
use super::{RunOptions, Totals, check_unchanged, computed, files_read};
use checkpoint::{CheckpointError, ShardLayout};
use engine::Observer;
use errors::Refusal;
use plan::Plan;

/// The version of the manifest's format.
const FORMAT: &str = "weldment-part/1";

/// What a part holds, and what plan it is of.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Manifest {
    format: String,
    /// The number of the part, from 1, and how many there are.
    part: [usize; 2],
    /// The digest of all that the output depends on: see [`plan_digest`].
    pub(super) plan: String,
    /// The lock of the checkpoint, with those outputs that the part has written.
    pub(super) lock: Lock,
    /// Its weight files.
    pub(super) weights: BTreeMap<String, WeightFile>,
    /// The lengths of its other files.
    pub(super) files: BTreeMap<String, u64>,
    /// What survives of the updates of its tensors.
    pub(super) survivors: Vec<Survivor>,
    /// How far the codes of its encoded tensors are from their values.
    pub(super) errors: Vec<MeasuredError>,
    /// What more of the updates would survive by.
    pub(super) remedies: Vec<String>,
    /// What looks damaged in the sources of its tensors.
    pub(super) suspects: Suspects,
    /// Values that were clamped.
    pub(super) saturated: u64,
}

/// A weight file of a part.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct WeightFile {
    /// Its length.
    pub(super) bytes: u64,
    /// The length of its header, with what comes before and after it.
    pub(super) header_bytes: u64,
    /// The BLAKE3 digest of its header.
    pub(super) header: String,
}

impl WeightFile {
    fn new(shard: &ShardLayout) -> Self {
        Self {
            bytes: shard.file_size,
            header_bytes: shard.header.len() as u64,
            header: blake3::hash(&shard.header).to_string(),
        }
    }
}

impl Manifest {
    /// Whether each of its files is among those that are there, with its length.
    fn has_its_files(&self, files: &BTreeMap<String, u64>) -> bool {
        let weights = self.weights.iter().map(|(name, file)| (name, file.bytes));
        let beside = self.files.iter().map(|(name, bytes)| (name, *bytes));
        weights
            .chain(beside)
            .all(|(name, bytes)| files.get(name) == Some(&bytes))
    }

    /// Reads the manifest of a part.
    ///
    /// # Errors
    /// It is none, of another version, or of another part.
    pub(super) fn parse(bytes: &[u8], part: Part, path: &Path) -> Result<Self, CheckpointError> {
        let malformed = |detail: String| CheckpointError::JsonMalformed {
            path: path.to_owned(),
            detail,
        };
        let manifest: Self =
            serde_json::from_slice(bytes).map_err(|error| malformed(error.to_string()))?;
        if manifest.format != FORMAT {
            return Err(malformed(format!(
                "expected the form `{FORMAT}`, found `{}`",
                manifest.format.escape_debug()
            )));
        }
        if manifest.part != [part.number, part.count] {
            let [number, count] = manifest.part;
            return Err(malformed(format!(
                "expected part {part}, found {number}/{count}"
            )));
        }
        Ok(manifest)
    }
}

/// The digest of all that an output depends on, but for the values of the inputs: versions, recipe, options, inputs by
/// size and header, settings of adapters, the layout of every weight file, and every other file.
///
/// # Errors
/// A file beside the weights cannot be read.
pub(super) fn plan_digest(plan: &Plan) -> Result<String, RunError> {
    let mut hasher = blake3::Hasher::new();
    let mut add = |bytes: &[u8]| {
        hasher.update(&(bytes.len() as u64).to_le_bytes());
        hasher.update(bytes);
    };
    add(Lock::of_plan(plan).text().as_bytes());
    for shard in &plan.shards {
        add(shard.file_name.as_bytes());
        add(&shard.header);
    }
    for (name, _, text) in plan.configs() {
        add(name.as_bytes());
        add(text.as_bytes());
    }
    for (name, bytes) in &plan.made {
        add(name.as_bytes());
        add(bytes);
    }
    let models = plan.stored_models();
    let folders = models.iter().flat_map(|model| model.location().paths());
    let adapters = folders.map(|folder| folder.join("adapter_config.json"));
    let adapters = adapters.filter(|file| file.is_file());
    let side = plan.sidecars.iter().map(|(_, file)| file.path.clone());
    for path in side.chain(adapters) {
        let unreadable = |error| DiskError::at(Step::Read, &path)(error);
        let file = File::open(&path).map_err(unreadable)?;
        let mut digest = blake3::Hasher::new();
        digest
            .update_reader(file)
            .map_err(|error| DiskError::at(Step::Read, &path)(error))?;
        add(digest.finalize().as_bytes());
    }
    Ok(hasher.finalize().to_string())
}

/// What a run of a part has done.
#[derive(Debug, Clone, PartialEq)]
pub enum PartRun {
    /// An earlier run had done the part already.
    Found,
    /// The part was done.
    Made {
        /// Tensors written.
        tensors: usize,
        /// Bytes of tensors read and written.
        totals: Totals,
        /// How long it took, in seconds.
        seconds: f64,
    },
}

/// Computes a part of a plan for an output, unless an earlier run of the same plan has. With `force`, a part that
/// is there is replaced.
///
/// # Errors
/// As of [`run`](super::run()); or there are fewer weight files than parts, or a part of another plan is there.
pub fn run_part(
    plan: &Plan,
    part: Part,
    place: &dyn Parts,
    force: bool,
    options: RunOptions<'_>,
    observer: &dyn Observer,
) -> Result<PartRun, RunError> {
    let started = Instant::now();
    if options.hash_inputs {
        return Err(RunError::NotHashed);
    }
    let share = share(plan, part)?;
    let digest = plan_digest(plan)?;
    let replace = match (found(place, part, &digest)?, force) {
        (Found::Done, false) => return Ok(PartRun::Found),
        (Found::Foreign, false) => return Err(of_another_plan(place, part)),
        (Found::Nothing, _) => false,
        (Found::Done | Found::Foreign | Found::Broken, _) => true,
    };
    let reads = files_read(plan);
    // Whether it may be replaced is asked when the parts are joined.
    place.check(&reads, true)?;
    let feed = Feed::new(plan, &share, options.scratch_limit)?;
    let side_files = match share.is_first() {
        true => side_bytes(plan)?,
        false => 0,
    };
    let shards = &plan.shards[share.shards.clone()];
    let layout = Layout {
        shards,
        side_bytes: side_files + plan.scratch_bytes(),
        reads,
    };
    let mut staged = place.begin_part(part, replace, &layout)?;
    let mut side_files = SideFiles::new(staged.as_mut(), observer, BTreeMap::new());
    if share.is_first() {
        side_files.write_all(plan)?;
    }
    let written = side_files.written;
    let computed = computed(
        plan,
        &share,
        feed.as_ref(),
        staged.as_mut(),
        options,
        observer,
    )?;
    check_unchanged(plan.models.iter().map(|model| &**model))?;
    let mut side_files = SideFiles::new(staged.as_mut(), observer, written);
    let lock = Lock::new(plan, &computed.digests, &side_files.written, None);
    if share.is_first() {
        let card = Card::of_plan(plan, place.path(), options.found).text(&lock);
        side_files.write(CARD_FILE, card.into_bytes())?;
    }
    let lengths = side_files.written.iter();
    let manifest = Manifest {
        format: FORMAT.to_owned(),
        part: [part.number, part.count],
        plan: digest,
        lock,
        weights: (shards.iter())
            .map(|shard| (shard.file_name.clone(), WeightFile::new(shard)))
            .collect(),
        files: lengths
            .map(|(name, file)| (name.clone(), file.bytes))
            .collect(),
        survivors: survivors(plan, &computed.survived),
        errors: measured(plan, &computed.errors),
        remedies: remedies(plan),
        suspects: suspects(plan, &computed.odd),
        saturated: computed.totals.saturated,
    };
    let text = serde_json::to_string_pretty(&manifest).unwrap_or_default() + "\n";
    side_files.write(MANIFEST_FILE, text.into_bytes())?;
    let written = side_files.written;
    (shards.iter()).try_for_each(|shard| check_weights(shard, staged.as_ref()))?;
    check_side_files(staged.as_ref(), &written)?;
    if observer.cancelled() {
        return Err(RunError::Cancelled);
    }
    staged.commit()?;
    Ok(PartRun::Made {
        tensors: share.tensors.len(),
        totals: computed.totals,
        seconds: started.elapsed().as_secs_f64(),
    })
}

/// What is where a part goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Found {
    /// Nothing, or an empty folder.
    Nothing,
    /// The part, with files of their lengths.
    Done,
    /// The part, of which a file is missing or has another length.
    Broken,
    /// Something else.
    Foreign,
}

/// Looks at a part of the plan with this digest.
///
/// # Errors
/// It cannot be looked at.
pub(super) fn found(place: &dyn Parts, part: Part, digest: &str) -> Result<Found, RunError> {
    let (manifest, files) = match place.look_at(part)? {
        Held::Nothing => return Ok(Found::Nothing),
        Held::Other => return Ok(Found::Foreign),
        Held::Part { manifest, files } => (manifest, files),
    };
    Ok(
        match Manifest::parse(&manifest, part, &place.part_folder(part)) {
            Ok(manifest) if manifest.plan == digest => match manifest.has_its_files(&files) {
                true => Found::Done,
                false => Found::Broken,
            },
            _ => Found::Foreign,
        },
    )
}

pub(super) fn of_another_plan(place: &dyn Parts, part: Part) -> RunError {
    let message = format!(
        "{} holds something else than this part of this plan",
        place.part_folder(part).display()
    );
    let hint =
        "it may be of another recipe, version or input: remove it, or replace it with --force";
    RunError::NotJoined(Refusal::new(message).with_hint(hint))
}

/// The smallest parts of a plan: a weight file each, where no other belongs to it.
pub(super) fn single_files(plan: &Plan) -> impl Iterator<Item = (Part, Share)> + '_ {
    let count = most_parts(plan);
    let shares = shares(plan, count).unwrap_or_default();
    (1..).map(move |number| Part { number, count }).zip(shares)
}
