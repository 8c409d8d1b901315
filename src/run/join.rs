//! Joins the parts of a plan to the checkpoint that one run writes.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Component, Path};
use std::time::Instant;

use super::destination::{Held, Layout, MANIFEST_FILE, Parts, Staged};
use super::encoded::{MeasuredError, QuantizationError};
use super::error::RunError;
use super::holes::{self, Suspects};
use super::lock::{LOCK_FILE, Lock};
use super::output::SideFiles;
use super::part::{
    Found, Manifest, PartRun, WeightFile, found, of_another_plan, plan_digest, run_part,
    single_files,
};
use super::part_number::Part;
use super::share::Share;
use super::update::{Survivor, UpdateKept};
use super::{Look, RunOptions, Summary, files_read};
use engine::{Observer, Totals};
use errors::{Refusal, printable, some_of};
use plan::{self, Plan};

/// How many missing parts a message names.
const SHOWN: usize = 8;

/// What was joined.
#[derive(Debug, Clone, PartialEq)]
pub struct Joined {
    /// How many parts there were.
    pub parts: usize,
    /// How many tensors they hold.
    pub tensors: usize,
    /// Bytes of the weight files.
    pub bytes: u64,
    /// Values that were clamped.
    pub saturated: u64,
    /// How much of the update of the base survives the rounding, if there is a base.
    pub update: Option<UpdateKept>,
    /// How far encoded weights are from the computed ones, if any were encoded.
    pub quantization_error: Option<QuantizationError>,
    /// Notes for the user.
    pub notes: Vec<String>,
    /// The digest of the lock that was written.
    pub lock: blake3::Hash,
}

/// Joins the parts of an output, and puts the checkpoint in its place. The parts are removed then.
///
/// Nothing is computed or read again: what a part has written is known by the digests of its manifest, and its files are
/// taken as they are. `look` looks at the checkpoint before it is put in place.
///
/// # Errors
/// A part is missing, damaged, or of another plan; the destination is taken; the look found errors; failures of the
/// destination. The parts stay as they are, and so does what is there.
pub fn join(
    place: &dyn Parts,
    look: Option<&Look<'_>>,
    observer: &dyn Observer,
) -> Result<Joined, RunError> {
    let parts = complete(place)?;
    let all = Whole::of(&parts)?;
    let mut staged = place.begin(&Layout {
        shards: &[],
        side_bytes: 0,
        reads: Vec::new(),
    })?;
    for (part, manifest) in &parts {
        for (name, file) in &manifest.weights {
            adopt(staged.as_mut(), *part, name, file.bytes)?;
            check_header(staged.as_ref(), name, file)?;
        }
        for (name, bytes) in &manifest.files {
            adopt(staged.as_mut(), *part, name, *bytes)?;
        }
        if observer.cancelled() {
            return Err(RunError::Cancelled);
        }
    }
    let update = UpdateKept::of(&all.survivors);
    let quantization_error = QuantizationError::of(&all.errors);
    let lock = all.lock.with_update(update.as_ref());
    let lock = lock.with_quantization_error(quantization_error.as_ref());
    let mut side_files = SideFiles::new(staged.as_mut(), observer, BTreeMap::new());
    side_files.write(LOCK_FILE, lock.text().into_bytes())?;
    if let (Some(look), Some(folder)) = (look, staged.folder()) {
        look(folder).map_err(RunError::Unsound)?;
    }
    if observer.cancelled() {
        return Err(RunError::Cancelled);
    }
    let warning = update
        .as_ref()
        .and_then(|update| update.warning(&all.remedies));
    let mut notes: Vec<String> = warning.into_iter().collect();
    let names = lock.outputs.tensors.keys().map(String::as_str);
    notes.extend(holes::notes(all.suspects, names));
    notes.extend(staged.commit()?);
    let numbers: Vec<Part> = parts.iter().map(|(part, _)| *part).collect();
    if let Err(error) = place.remove_parts(&numbers) {
        notes.push(format!(
            "{error}; the parts that were there are joined, and nobody needs them any more"
        ));
    }
    Ok(Joined {
        parts: parts.len(),
        tensors: lock.outputs.tensors.len(),
        bytes: all.bytes,
        saturated: all.saturated,
        update,
        quantization_error,
        notes,
        lock: lock.digest(),
    })
}

/// Runs a plan file by file and joins them, so that a run that is stopped can be gone on with: each weight file is a part,
/// and those that an earlier run of the same plan has finished are not computed again.
///
/// # Errors
/// As of [`run_part`] and [`join`]. What is finished stays beside the destination.
pub fn run_resumed(
    plan: &Plan,
    place: &dyn Parts,
    force: bool,
    options: RunOptions<'_>,
    observer: &dyn Observer,
) -> Result<Summary, RunError> {
    let started = Instant::now();
    place.check(&files_read(plan), force)?;
    let (mut before, mut totals) = (0, Totals::default());
    let shares: Vec<(Part, Share)> = single_files(plan).collect();
    let other = place.parts()?;
    if let Some(other) = other.iter().find(|other| other.count != shares.len()) {
        let message = format!(
            "{} has part {other}, and this run has {} weight files",
            place.parts_folder().display(),
            shares.len()
        );
        return Err(refused(
            message,
            "join the parts that are there, or remove them",
        ));
    }
    let digest = plan_digest(plan)?;
    let mut foreign = BTreeSet::new();
    for (part, _) in &shares {
        if found(place, *part, &digest)? == Found::Foreign {
            if !force {
                return Err(of_another_plan(place, *part));
            }
            foreign.insert(*part);
        }
    }
    for (part, share) in shares {
        match run_part(
            plan,
            part,
            place,
            foreign.contains(&part),
            options,
            observer,
        )? {
            PartRun::Found => {
                before += 1;
                observer.advance(share.read.saturating_add(share.written));
            }
            PartRun::Made { totals: made, .. } => totals += made,
        }
    }
    let mut joined = join(place, options.look, observer)?;
    if before > 0 {
        let all = plan::count(joined.parts, "weight file");
        joined
            .notes
            .insert(0, format!("{before} of {all} had been finished before"));
    }
    Ok(Summary {
        tensors: joined.tensors,
        totals: Totals {
            saturated: joined.saturated,
            ..totals
        },
        elapsed: started.elapsed(),
        update: joined.update,
        quantization_error: joined.quantization_error,
        notes: joined.notes,
        lock: joined.lock,
    })
}

/// The parts of an output, in order, once all are there and of one plan.
fn complete(place: &dyn Parts) -> Result<Vec<(Part, Manifest)>, RunError> {
    let folder = place.parts_folder();
    let listed = place.parts()?;
    let counts: BTreeSet<usize> = listed.iter().map(|part| part.count).collect();
    let mut counts = counts.into_iter();
    let (Some(count), None) = (counts.next(), counts.next()) else {
        let message = match listed.is_empty() {
            true => format!("there are no parts in {}", folder.display()),
            false => format!("{} has parts of several cuts", folder.display()),
        };
        let hint = match listed.is_empty() {
            true => "make them with `weld merge RECIPE OUT --part 1/2` and so on",
            false => "remove those of the cut that is not meant",
        };
        return Err(refused(message, hint));
    };
    let missing = (1..=count).filter(|number| {
        !listed.contains(&Part {
            number: *number,
            count,
        })
    });
    let missing: Vec<String> = missing.map(|number| format!("{number}/{count}")).collect();
    if let Some(first) = missing.first() {
        let message = format!(
            "{} of {count} parts are missing in {}: {}",
            missing.len(),
            folder.display(),
            some_of(&missing, SHOWN)
        );
        let hint = format!("make them with --part {first} and so on");
        return Err(refused(message, &hint));
    }
    let mut parts: Vec<(Part, Manifest)> = Vec::new();
    for number in 1..=count {
        let part = Part { number, count };
        let folder = place.part_folder(part);
        let again = format!("make it again with --part {part} --force");
        let Held::Part { manifest, .. } = place.look_at(part)? else {
            let message = format!(
                "{} has no {MANIFEST_FILE} that can be read",
                folder.display()
            );
            return Err(refused(message, &again));
        };
        let manifest = Manifest::parse(&manifest, part, &folder.join(MANIFEST_FILE))
            .map_err(|error| refused(error.to_string(), &again))?;
        if let Some((_, first)) = parts
            .first()
            .filter(|(_, first)| !have_one_origin(first, &manifest))
        {
            let message = format!(
                "part {part} is of another plan than part 1/{count}: they differ in {}",
                difference(&first.lock, &manifest.lock)
            );
            return Err(refused(
                message,
                "make the parts again that are not meant, with --force",
            ));
        }
        parts.push((part, manifest));
    }
    Ok(parts)
}

/// Whether two parts are of one plan: the same recipe, options, inputs, version and layout.
fn have_one_origin(one: &Manifest, other: &Manifest) -> bool {
    let (first, second) = (&one.lock, &other.lock);
    one.plan == other.plan
        && (&first.tool, &first.command) == (&second.tool, &second.command)
        && (&first.recipe, &first.options) == (&second.recipe, &second.options)
        && first.inputs == second.inputs
}

/// What two locks differ in, in words.
fn difference(one: &Lock, other: &Lock) -> String {
    let differ = [
        ("the version of weld", one.tool != other.tool),
        ("the command", one.command != other.command),
        ("the recipe", one.recipe != other.recipe),
        ("the options", one.options != other.options),
        ("the inputs", one.inputs != other.inputs),
    ];
    let differ = differ.into_iter().filter(|(_, differ)| *differ);
    let differ: Vec<&str> = differ.map(|(what, _)| what).collect();
    match differ.is_empty() {
        true => {
            "the files beside the weights, the settings of an adapter, or the layout of the output"
                .to_owned()
        }
        false => differ.join(" and "),
    }
}

/// What all parts have together.
struct Whole {
    lock: Lock,
    survivors: Vec<Survivor>,
    errors: Vec<MeasuredError>,
    remedies: Vec<String>,
    suspects: Suspects,
    saturated: u64,
    bytes: u64,
}

impl Whole {
    /// Of complete parts. No file and no tensor may be in two.
    fn of(parts: &[(Part, Manifest)]) -> Result<Self, RunError> {
        let none = || refused("there are no parts".to_owned(), "make them with --part");
        let (_, first) = parts.first().ok_or_else(none)?;
        let mut all = Self {
            lock: first.lock.clone(),
            survivors: Vec::new(),
            errors: Vec::new(),
            remedies: first.remedies.clone(),
            suspects: Suspects::default(),
            saturated: 0,
            bytes: 0,
        };
        all.lock.outputs.tensors.clear();
        let mut files = BTreeSet::new();
        for (part, manifest) in parts {
            let twice = |what: &str| {
                let message = format!("part {part}: `{}` is in another part too", printable(what));
                refused(message, "make the parts again with --force")
            };
            for name in manifest.weights.keys().chain(manifest.files.keys()) {
                if !files.insert(name) {
                    return Err(twice(name));
                }
            }
            for (name, digest) in &manifest.lock.outputs.tensors {
                let tensors = &mut all.lock.outputs.tensors;
                if tensors.insert(name.clone(), digest.clone()).is_some() {
                    return Err(twice(name));
                }
            }
            all.survivors.extend(manifest.survivors.iter().cloned());
            all.errors.extend(manifest.errors.iter().cloned());
            all.suspects.extend(manifest.suspects.clone());
            all.saturated = all.saturated.saturating_add(manifest.saturated);
            for file in manifest.weights.values() {
                all.bytes = all.bytes.saturating_add(file.bytes);
            }
        }
        all.survivors.sort_by_key(|survivor| survivor.number);
        all.errors.sort_by_key(|error| error.number);
        Ok(all)
    }
}

/// Takes a file of a part.
fn adopt(staged: &mut dyn Staged, part: Part, name: &str, bytes: u64) -> Result<(), RunError> {
    let parts = Path::new(name).components();
    let mut parts = parts.map(|part| matches!(part, Component::Normal(_)));
    if name.is_empty() || !parts.all(|is_plain| is_plain) {
        let message = format!(
            "part {part}: `{}` does not lie in the part's folder",
            printable(name)
        );
        return Err(refused(message, "make that part again with --force"));
    }
    staged.adopt(part, name, bytes)
}

/// Checks that a weight file begins as it was planned.
fn check_header(staged: &dyn Staged, name: &str, file: &WeightFile) -> Result<(), RunError> {
    let (header, _) = staged.read(name, file.header_bytes.min(file.bytes))?;
    match blake3::hash(&header).to_string() == file.header {
        true => Ok(()),
        false => Err(RunError::Damaged {
            file: name.to_owned(),
            expected: "the header that was planned".to_owned(),
            found: "another".to_owned(),
        }),
    }
}

fn refused(message: String, hint: &str) -> RunError {
    RunError::NotJoined(Refusal::new(message).with_hint(hint))
}
