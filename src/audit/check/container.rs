//! Files, headers and the index: turns each problem that a [`Survey`] met into a finding of its own kind.

use std::path::Path;

use crate::{CheckInfo, Finding, Place, Report, Severity};
use checkpoint::{Checkpoint, CheckpointError, CheckpointError as E, Location, Stray, Survey};
use errors::Hint;

checks! {
    TRUNCATED = "container.truncated", Error,
        "A file ends before its last tensor",
        "A download or a copy stopped on its way; the tensors at its end are not there.",
        "copy or download the file again";
    TRAILING = "container.trailing-bytes", Error,
        "A file goes on after its last tensor",
        "No sound writer leaves such bytes: the header or the data was changed.",
        "copy or download the file again";
    OVERLAP = "container.overlap", Error,
        "Two tensors share bytes",
        "The safetensors format forbids it: the header was changed or written wrongly.",
        "copy or download the file again";
    HOLE = "container.hole", Error,
        "Bytes between two tensors belong to neither",
        "The safetensors format forbids it: such bytes can hide anything.",
        "copy or download the file again";
    SIZE = "container.size-mismatch", Error,
        "Dtype and shape need another number of bytes than a tensor has",
        "The header is wrong about the tensor, so its values cannot be told.",
        "copy or download the file again";
    HEADER = "container.header", Error,
        "The header of a file is malformed",
        "It is not a safetensors file, or its beginning was damaged.",
        "copy or download the file again";
    NAME = "container.name", Error,
        "A tensor's name is empty, too long or has control characters",
        "No framework writes such names; they can hide what a file holds from those who list it.",
        "find out what wrote the file";
    DUPLICATE_KEY = "container.duplicate-key", Error,
        "A header or an index has a tensor twice",
        "Readers disagree on which of the two they take.",
        "copy or download the file again";
    PICKLE = "container.pickle", Error,
        "A file of torch.save cannot be read as plain tensors",
        "It is damaged, or it holds more than tensors, which unpickling would execute.",
        "use the safetensors of the same model, or save its tensors alone";
    STAND_IN = "container.stand-in", Error,
        "A file only stands for the one that is meant",
        "The file was never fetched: it is a pointer of Git LFS, a web page, or what a server said instead.",
        "fetch the file itself";
    NOT_A_FILE = "container.not-a-file", Error,
        "A weight file is no regular file",
        "A folder, a pipe, a device or a broken link by the name of a shard cannot be read as one.",
        "copy or download the checkpoint again";
    SIDE_FILE = "container.side-file", Error,
        "A file beside the weights is a link to nothing, or no file",
        "It belongs to the checkpoint by its name, such as a part of the tokenizer; loaders fail, or go on without it.",
        "copy or download the file again";
    UNFINISHED = "container.unfinished-download", Error,
        "What is left of an unfinished download lies beside the weights",
        "Some downloaders reserve a file's room first: it has its length, and zeros where bytes are still to come.",
        "finish the download, or remove what is left of it if it is finished";
    NO_TENSORS = "container.no-tensors", Error,
        "The checkpoint has no tensors",
        "The files are sound and hold nothing.",
        "copy or download the checkpoint again";
    TOO_LARGE = "container.too-large", Error,
        "A file is larger than any real one of its kind",
        "Reading it could take all memory.",
        "find out what wrote the file";
    INCOMPLETE = "container.incomplete-set", Error,
        "Shards are missing from a numbered set",
        "The names of the others tell how many there should be; the tensors of the missing ones are not there.",
        "copy or download the missing shards";
    AMBIGUOUS = "container.ambiguous", Error,
        "Several weight files, and nothing that says how they belong together",
        "Loaders would take one of them, or none.",
        "remove what does not belong there, or write an index";
    CODES = "container.codes", Error,
        "Codes, scales and config of a quantised model do not fit together",
        "The values of the tensor can't be told, or are not those that the quantiser meant.",
        "download weights and config.json again, or name the model it was made from";
    INDEX_MALFORMED = "index.malformed", Error,
        "The index is malformed",
        "Loaders find the shards by it, so the checkpoint does not load.",
        "download the index again";
    INDEX_SHARD = "index.missing-shard", Error,
        "The index names a file that is not there",
        "The tensors of that shard are missing.",
        "copy or download the missing shard";
    INDEX_FILE_NAME = "index.file-name", Error,
        "The index names a file outside of its folder, or one that is no shard",
        "A loader that follows it reads another file than that of the checkpoint.",
        "download index and shards again";
    SHARDS_NOT_NAMED = "index.incomplete", Error,
        "The index leaves out shards of its set",
        "The names of its files count more shards than it names; loaders leave the tensors of the others at random values.",
        "download the index and all shards again";
    NOT_IN_SHARD = "index.not-in-shard", Error,
        "A tensor is not in the shard that the index names",
        "Index and shards are not of one checkpoint; loaders stop, or leave the tensor at random values.",
        "download index and shards again";
    UNINDEXED = "index.unindexed-tensor", Error,
        "A shard holds tensors that the index does not name",
        "Loaders that go by the index never see them; index and shards are not of one checkpoint.",
        "download index and shards again, or write the index anew";
    DUPLICATE = "index.duplicate-tensor", Error,
        "Two shards hold a tensor of the same name",
        "Which of them is loaded depends on the loader.",
        "fetch the checkpoint again into an empty folder";
    TOTAL_SIZE = "index.total-size", Warning,
        "`total_size` of the index is not the size of the tensors",
        "Shards were changed without their index; some tools plan memory by it.",
        "write the index anew";
    ORPHAN = "index.orphan-file", Warning,
        "A weight file is no part of the checkpoint",
        "Something left of an earlier save or of another download; tools that read every file mix it in.",
        "remove the file if nothing needs it";
    NO_INDEX = "index.missing", Error,
        "There are several shards and no index",
        "Loaders such as transformers find shards by the index alone, so the checkpoint does not load.",
        "copy or download the index, or save the checkpoint again";
    STALE = "index.stale-single-file", Error,
        "A single weight file lies beside shards with an index",
        "transformers loads the single file, others the shards; what was checked here is the single file.",
        "remove the one that is not meant";
    ADAPTER = "container.adapter", Warning,
        "An adapter lies beside the weights",
        "transformers puts it on the weights, or loads the model that it names in their place; what was checked here are \
         the weights alone.",
        "move the adapter to a folder of its own, or remove it";
}

/// The stems of shards that loaders find by an index.
const INDEXED: [&str; 3] = ["model", "pytorch_model", "diffusion_pytorch_model"];

/// Adds the problems that were met when the files were opened.
pub(super) fn check_container(survey: &Survey, location: &Location, report: &mut Report) {
    let root = &location.path;
    let finding = |problem: &CheckpointError| finding(problem, root);
    let model = survey.checkpoint.as_ref();
    let beside = model.and_then(|model| model.unreadable_sidecars().ok());
    let beside = beside.into_iter().flatten().map(|(_, problem)| problem);
    report.extend(survey.problems.iter().filter_map(finding));
    report.extend(beside.filter_map(|problem| finding(&problem)));
    let superseded = survey.superseded.iter().filter_map(finding);
    report.extend(superseded.map(|finding| finding.with_severity(Severity::Warning)));
    if let Some(index) = &survey.unread_index {
        let place = Place::file(index.clone());
        let found = "a single file beside it, which transformers reads instead";
        report.add(Finding::new(
            &STALE,
            place,
            "the shards of the index alone",
            found,
        ));
    }
    for file in &survey.left_aside {
        let place = Place::file(file.clone());
        let expected = "only the files of the checkpoint";
        report.add(match second_form(file) {
            None => Finding::new(
                &ORPHAN,
                place,
                expected,
                "a weight file that is none of them",
            ),
            Some(form) => {
                Finding::new(&ORPHAN, place, expected, form).with_severity(Severity::Note)
            }
        });
    }
    report.extend(no_index(survey));
    report.extend(adapter(survey));
    if let Some(found) = &survey.total_size {
        let found = found
            .split_once(": ")
            .map_or(found.as_str(), |(_, what)| what);
        report.add(Finding::new(
            &TOTAL_SIZE,
            Place::default(),
            "the bytes of all tensors",
            found,
        ));
    }
}

/// The findings that shards have no index by which loaders would find them.
fn no_index(survey: &Survey) -> Vec<Finding> {
    let Some(model) = &survey.checkpoint else {
        return Vec::new();
    };
    let root = &model.location().path;
    let of = |model: &Checkpoint| no_index_of(model, root, survey);
    match model.parts() {
        [] => of(model).into_iter().collect(),
        parts => parts.iter().filter_map(|part| of(&part.model)).collect(),
    }
}

/// The finding about the shards of one part; `root` is the folder of the model.
fn no_index_of(model: &Checkpoint, root: &Path, survey: &Survey) -> Option<Finding> {
    if model.is_single_file() {
        return None;
    }
    let shards = model.shards();
    let name = shards.first()?.file_name();
    // `model-00001-of-00002.safetensors` is found by `model.safetensors.index.json`.
    let (numbered, end) = name.rsplit_once('.')?;
    let (stem, _) = numbered.rsplit_once("-of-")?.0.rsplit_once('-')?;
    let index = format!("{stem}.{end}.index.json");
    let stem = stem.rsplit('/').next().unwrap_or(stem);
    let missing = survey.problems.is_empty()
        && shards.len() > 1
        && INDEXED.contains(&stem)
        && root.join(&index).symlink_metadata().is_err();
    missing.then(|| Finding::new(&NO_INDEX, Place::file(index), "the index", "none"))
}

/// The finding about an adapter beside whole weights. Some models bring theirs, and their config says so.
fn adapter(survey: &Survey) -> Option<Finding> {
    let model = survey
        .checkpoint
        .as_ref()
        .filter(|model| !model.is_single_file())?;
    let name = "adapter_config.json";
    model.location().path.join(name).symlink_metadata().ok()?;
    let finding = Finding::new(&ADAPTER, Place::file(name), "weights alone", "an adapter");
    let own = model
        .config()
        .and_then(|config| config.get("has_lora_adapter"));
    Some(match own.and_then(serde_json::Value::as_bool) {
        Some(true) => finding.with_severity(Severity::Note),
        _ => finding,
    })
}

/// The kind of a weight file that publishers put beside a checkpoint and that loaders take only by name.
fn second_form(file: &str) -> Option<&'static str> {
    let file = file.rsplit('/').next().unwrap_or(file);
    if file.starts_with("consolidated") {
        return Some(
            "a file by the name of the weights in the layout of their first authors; it was not compared with the \
             checkpoint",
        );
    }
    let (stem, _) = file.rsplit_once('.')?;
    // `model.fp16`, `model.fp16-00001-of-00002` and `model-00001-of-00002.fp16`.
    let (model, variant) = stem.split_once('.')?;
    let numbered = |name: &str| name.starts_with("model-") && name.contains("-of-");
    let named = INDEXED.contains(&model) || numbered(model);
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_".contains(c);
    let fits = named && !variant.is_empty() && variant.chars().all(plain);
    fits.then_some(
        "a file by the name of a variant of the weights, which loaders take if they are asked to; it was not compared \
         with the checkpoint",
    )
}

/// The path of a file from the folder of its model.
fn name_of(path: &Path, root: &Path) -> String {
    let within = path.strip_prefix(root).ok();
    let within = within.filter(|within| within.file_name().is_some());
    let name = within.map_or(path.file_name(), |within| Some(within.as_os_str()));
    name.map_or_else(
        || path.display().to_string(),
        |name| name.to_string_lossy().into_owned(),
    )
}

/// Whether a problem is a link out of the folder, which `safety` reports.
fn is_link_outside(problem: &CheckpointError) -> bool {
    let outside = |what: &Stray| matches!(what, Stray::Outside(_));
    matches!(problem, E::NotOfFolder { what, .. } if outside(what))
}

/// Turns a problem into a finding. A problem of config.json is reported by `config` instead, a link out of the folder by
/// `safety`.
fn finding(problem: &CheckpointError, root: &Path) -> Option<Finding> {
    if is_link_outside(problem) {
        return None;
    }
    let (expected, found) = expected_and_found(problem);
    let check = kind(problem)?;
    let finding = Finding::new(check, place(problem, root), expected, found);
    // What these kinds say in general, the problem knows better: what downloads the file, what converts it.
    let general = [
        &PICKLE,
        &STAND_IN,
        &NOT_A_FILE,
        &AMBIGUOUS,
        &INCOMPLETE,
        &INDEX_SHARD,
    ];
    let is_general = general.iter().any(|kind| kind.id == check.id);
    Some(match problem.hint().filter(|_| is_general) {
        Some(hint) => finding.with_remedy(hint),
        None => finding,
    })
}

/// Whether a problem is the system's and not the checkpoint's: something could not be read.
pub(super) fn is_of_the_system(problem: &CheckpointError) -> bool {
    let of_config = matches!(
        problem,
        E::JsonMalformed { .. }
            | E::NotDownloaded { .. }
            | E::NoComponent { .. }
            | E::NamesOutside { .. }
    );
    kind(problem).is_none() && !of_config
}

/// The kind of a problem.
fn kind(problem: &CheckpointError) -> Option<&'static CheckInfo> {
    Some(match problem {
        E::Truncated { .. } => &TRUNCATED,
        E::TrailingBytes { .. } => &TRAILING,
        E::Overlap { .. } => &OVERLAP,
        E::Hole { .. } => &HOLE,
        E::SizeMismatch { .. } | E::ReversedOffsets { .. } | E::ImpossibleShape { .. } => &SIZE,
        E::HeaderTooLarge { .. } | E::HeaderMalformed { .. } | E::Gguf { .. } => &HEADER,
        E::BadTensorName { .. } => &NAME,
        E::DuplicateKey { .. } => &DUPLICATE_KEY,
        E::PickleRefused { .. }
        | E::PickleMalformed { .. }
        | E::PickleTooLarge { .. }
        | E::ArchiveMalformed { .. }
        | E::NotSafetensors { .. }
        | E::NotStateDict { .. }
        | E::StridedView { .. }
        | E::PickledTensor { .. } => &PICKLE,
        E::Codes { .. } => &CODES,
        E::StandIn { .. } => &STAND_IN,
        E::NotAFile { .. } | E::BrokenLink { .. } => &NOT_A_FILE,
        E::NotOfFolder { .. } => &SIDE_FILE,
        E::Unfinished { .. } => &UNFINISHED,
        E::NoTensors { .. } | E::NoWeights { .. } => &NO_TENSORS,
        E::TooLarge { .. } => &TOO_LARGE,
        E::ShardMissing { expected_by, .. } if expected_by.ends_with(".json") => &INDEX_SHARD,
        E::ShardMissing { .. } => &INCOMPLETE,
        E::AmbiguousFolder { .. } => &AMBIGUOUS,
        E::IndexMalformed { .. } => &INDEX_MALFORMED,
        E::IndexFileName { .. } => &INDEX_FILE_NAME,
        E::ShardsNotNamed { .. } => &SHARDS_NOT_NAMED,
        E::NotInShard { .. } => &NOT_IN_SHARD,
        E::Unindexed { .. } => &UNINDEXED,
        E::DuplicateTensor { .. } => &DUPLICATE,
        E::JsonMalformed { .. }
        | E::NoComponent { .. }
        | E::NamesOutside { .. }
        | E::NotOneStorage { .. }
        | E::NotDownloaded { .. }
        | E::NoEntries { .. }
        | E::NotFound { .. }
        | E::StatisticsNotFound { .. }
        | E::NotFetched { .. }
        | E::Adapter { .. }
        | E::AdapterNotFound { .. }
        | E::BadRevision { .. }
        | E::Io { .. }
        | E::Quantised { .. }
        | E::Changed { .. } => return None,
    })
}

/// The place of a problem: a tensor, a file, or the checkpoint as a whole.
fn place(problem: &CheckpointError, root: &Path) -> Place {
    match problem {
        E::Overlap { path, tensor, .. }
        | E::Hole { path, tensor, .. }
        | E::SizeMismatch { path, tensor, .. }
        | E::ReversedOffsets { path, tensor, .. }
        | E::ImpossibleShape { path, tensor, .. }
        | E::BadTensorName { path, tensor, .. }
        | E::DuplicateKey { path, tensor }
        | E::Codes { path, tensor, .. }
        | E::IndexFileName { path, tensor, .. } => Place::tensor(tensor, Some(name_of(path, root))),
        E::NotInShard { tensor, shard, .. } | E::Unindexed { tensor, shard, .. } => {
            Place::tensor(tensor, Some(shard.clone()))
        }
        E::DuplicateTensor { tensor, second, .. } => Place::tensor(tensor, Some(second.clone())),
        E::Truncated { path, .. }
        | E::TrailingBytes { path, .. }
        | E::HeaderTooLarge { path, .. }
        | E::HeaderMalformed { path, .. }
        | E::Gguf { path, .. }
        | E::PickleRefused { path, .. }
        | E::PickleMalformed { path, .. }
        | E::PickleTooLarge { path, .. }
        | E::ArchiveMalformed { path, .. }
        | E::NotSafetensors { path, .. }
        | E::NotStateDict { path, .. }
        | E::StridedView { path, .. }
        | E::PickledTensor { path, .. }
        | E::StandIn { path, .. }
        | E::NotAFile { path, .. }
        | E::BrokenLink { path, .. }
        | E::ShardsNotNamed { path, .. }
        | E::NotOfFolder { path, .. }
        | E::Unfinished { path, .. }
        | E::TooLarge { path, .. }
        | E::IndexMalformed { path, .. } => Place::file(name_of(path, root)),
        E::ShardMissing { shard, .. } => Place::file(shard.clone()),
        _ => Place::default(),
    }
}

/// The expected and the found value.
fn expected_and_found(problem: &CheckpointError) -> (String, String) {
    match problem {
        E::Truncated {
            expected, found, ..
        }
        | E::TrailingBytes {
            expected, found, ..
        } => (format!("{expected} bytes"), format!("{found} bytes")),
        E::Codes {
            expected, found, ..
        } => (expected.clone(), found.clone()),
        E::Overlap {
            expected, found, ..
        }
        | E::Hole {
            expected, found, ..
        } => {
            let at = |byte: &u64| format!("beginning at byte {byte} of the data");
            (at(expected), at(found))
        }
        E::SizeMismatch {
            dtype,
            shape,
            expected,
            found,
            ..
        } => (
            format!("{expected} bytes for {dtype} {shape:?}"),
            format!("{found} bytes"),
        ),
        E::ReversedOffsets { begin, end, .. } => (
            "an end after its beginning".into(),
            format!("bytes {begin} to {end}"),
        ),
        E::ImpossibleShape { shape, why, .. } => (
            "a shape that can be".into(),
            format!("{shape}, which {why}"),
        ),
        E::HeaderTooLarge { limit, found, .. } => (
            format!("a header of at most {limit} bytes"),
            format!("{found} bytes"),
        ),
        E::HeaderMalformed { detail, .. } => ("a safetensors header".into(), detail.clone()),
        E::Gguf { source, .. } => ("a GGUF file of a model".into(), source.to_string()),
        E::BadTensorName { why, .. } => ("a plain name".into(), format!("one that {why}")),
        E::DuplicateKey { .. } => ("the name once".into(), "it twice".into()),
        E::StandIn { what, .. } => ("weights".into(), (*what).into()),
        E::NotAFile { .. } => ("a regular file".into(), "something else".into()),
        E::BrokenLink { .. } => (
            "a regular file".into(),
            "a link to a file that is not there".into(),
        ),
        E::NotOfFolder { what, .. } => ("a file of the folder".into(), what.to_string()),
        E::Unfinished { of, .. } => (
            "finished downloads".into(),
            format!("a part of that of {of}"),
        ),
        E::ShardsNotNamed {
            named, of, missing, ..
        } => (
            format!("all {of} shards of the set"),
            format!("{named}, without {}", missing.join(", ")),
        ),
        E::NoTensors { .. } | E::NoWeights { .. } => ("at least one tensor".into(), "none".into()),
        E::TooLarge {
            what, limit, found, ..
        } => (format!("{what}: at most {limit}"), found.to_string()),
        E::ShardMissing { expected_by, .. } => (
            format!("the shard, expected by {expected_by}"),
            "no such file".into(),
        ),
        E::AmbiguousFolder { files, .. } => (
            "one file, one numbered set, or an index".into(),
            format!("{} weight files", files.len()),
        ),
        E::IndexMalformed { detail, .. } => ("a `weight_map`".into(), detail.clone()),
        E::IndexFileName { file, ends, .. } => (
            format!("a plain file name that ends in {ends}"),
            format!("`{file}`"),
        ),
        E::NotInShard {
            shard, found_in, ..
        } => {
            let found = found_in.as_ref().map(|file| format!("in {file}"));
            (
                format!("in {shard}"),
                found.unwrap_or_else(|| "in no shard".into()),
            )
        }
        E::Unindexed { count, .. } => (
            "an entry of the index".into(),
            format!("none ({count} such tensors)"),
        ),
        E::DuplicateTensor { first, second, .. } => (
            "in one file".into(),
            format!("in both {first} and {second}"),
        ),
        // Pickles, whose message says everything.
        other => ("tensors by name".into(), other.to_string()),
    }
}
