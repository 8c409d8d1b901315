//! Files, headers and the index: what [`Survey`] met, each kind by its own name.

use std::path::Path;

use crate::{CheckInfo, Finding, Place, Report, Severity};
use checkpoint::{CheckpointError, Survey};

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
    NOT_A_FILE = "container.not-a-file", Error,
        "A weight file is no regular file",
        "A folder, a pipe or a device by the name of a shard cannot be read as one.",
        "copy or download the checkpoint again";
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
    STALE = "index.stale-single-file", Warning,
        "A single weight file lies beside shards with an index",
        "Loaders differ in which of the two they take, and they may hold different weights.",
        "remove the one that is not meant";
}

/// Adds what was met when the files were opened.
pub(super) fn check_container(survey: &Survey, report: &mut Report) {
    report.extend(survey.problems.iter().filter_map(finding));
    for file in &survey.left_aside {
        let single = ["model.safetensors", "pytorch_model.bin"].contains(&file.as_str());
        let check = if single { &STALE } else { &ORPHAN };
        let place = Place::file(file.clone());
        let expected = "only the files of the checkpoint";
        report.add(match second_form(file) {
            None => Finding::new(check, place, expected, "a weight file that is none of them"),
            Some(form) => Finding::new(check, place, expected, form).with_severity(Severity::Note),
        });
    }
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

/// What a weight file is that publishers put beside a checkpoint, and that loaders take only by name.
fn second_form(file: &str) -> Option<&'static str> {
    if file.starts_with("consolidated") {
        return Some("the same weights in the layout of their first authors");
    }
    let (stem, _) = file.rsplit_once('.')?;
    // `model.fp16`, `model.fp16-00001-of-00002` and `model-00001-of-00002.fp16`.
    let (model, variant) = stem.split_once('.')?;
    let numbered = |name: &str| name.starts_with("model-") && name.contains("-of-");
    let named = ["model", "pytorch_model"].contains(&model) || numbered(model);
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_".contains(c);
    let fits = named && !variant.is_empty() && variant.chars().all(plain);
    fits.then_some("the same weights in a variant, which loaders take if they are asked to")
}

fn name_of(path: &Path) -> String {
    let name = path
        .file_name()
        .map(|name| name.to_string_lossy().into_owned());
    name.unwrap_or_else(|| path.display().to_string())
}

/// A problem as a finding; the config's own is told by `config`.
fn finding(problem: &CheckpointError) -> Option<Finding> {
    use CheckpointError as E;
    let at = |path: &Path| Place::file(name_of(path));
    let of = |tensor: &str, path: &Path| Place::tensor(tensor, Some(name_of(path)));
    let bytes = |count: &u64| format!("{count} bytes");
    let at_byte = |count: &u64| format!("beginning at byte {count} of the data");
    let new = |check: &'static CheckInfo, place: Place, expected: String, found: String| {
        Some(Finding::new(check, place, expected, found))
    };
    match problem {
        E::JsonMalformed { .. } => None,
        E::Truncated {
            path,
            expected,
            found,
        } => new(&TRUNCATED, at(path), bytes(expected), bytes(found)),
        E::TrailingBytes {
            path,
            expected,
            found,
        } => new(&TRAILING, at(path), bytes(expected), bytes(found)),
        E::Overlap {
            path,
            tensor,
            expected,
            found,
        } => new(
            &OVERLAP,
            of(tensor, path),
            at_byte(expected),
            at_byte(found),
        ),
        E::Hole {
            path,
            tensor,
            expected,
            found,
        } => new(&HOLE, of(tensor, path), at_byte(expected), at_byte(found)),
        E::SizeMismatch {
            path,
            tensor,
            dtype,
            shape,
            expected,
            found,
        } => new(
            &SIZE,
            of(tensor, path),
            format!("{expected} bytes for {dtype} {shape:?}"),
            bytes(found),
        ),
        E::ReversedOffsets {
            path,
            tensor,
            begin,
            end,
        } => new(
            &SIZE,
            of(tensor, path),
            "an end after its beginning".into(),
            format!("bytes {begin} to {end}"),
        ),
        E::ImpossibleShape {
            path,
            tensor,
            shape,
            why,
            ..
        } => new(
            &SIZE,
            of(tensor, path),
            "a shape that can be".into(),
            format!("{shape}, which {why}"),
        ),
        E::HeaderTooLarge { path, limit, found } => new(
            &HEADER,
            at(path),
            format!("a header of at most {limit} bytes"),
            bytes(found),
        ),
        E::HeaderMalformed { path, detail } => new(
            &HEADER,
            at(path),
            "a safetensors header".into(),
            detail.clone(),
        ),
        E::BadTensorName { path, tensor, why } => new(
            &NAME,
            of(tensor, path),
            "a plain name".into(),
            format!("one that {why}"),
        ),
        E::DuplicateKey { path, tensor } => new(
            &DUPLICATE_KEY,
            of(tensor, path),
            "the name once".into(),
            "it twice".into(),
        ),
        E::PickleRefused { path, .. }
        | E::PickleMalformed { path, .. }
        | E::PickleTooLarge { path, .. }
        | E::ArchiveMalformed { path, .. }
        | E::NotSafetensors { path, .. }
        | E::NotStateDict { path, .. }
        | E::StridedView { path, .. }
        | E::PickledTensor { path, .. } => new(
            &PICKLE,
            at(path),
            "tensors by name".into(),
            problem.to_string(),
        ),
        E::NotAFile { path } => new(
            &NOT_A_FILE,
            at(path),
            "a regular file".into(),
            "something else".into(),
        ),
        E::NoTensors { .. } => new(
            &NO_TENSORS,
            Place::default(),
            "at least one tensor".into(),
            "none".into(),
        ),
        E::TooLarge {
            path,
            what,
            limit,
            found,
        } => new(
            &TOO_LARGE,
            at(path),
            format!("{what}: at most {limit}"),
            found.to_string(),
        ),
        E::ShardMissing {
            shard, expected_by, ..
        } => {
            let by_index = expected_by.ends_with(".json");
            let check = if by_index { &INDEX_SHARD } else { &INCOMPLETE };
            let expected = format!("the shard, expected by {expected_by}");
            new(
                check,
                Place::file(shard.clone()),
                expected,
                "no such file".into(),
            )
        }
        E::AmbiguousFolder { files, .. } => new(
            &AMBIGUOUS,
            Place::default(),
            "one file, one numbered set, or an index".into(),
            format!("{} weight files", files.len()),
        ),
        E::IndexMalformed { path, detail } => new(
            &INDEX_MALFORMED,
            at(path),
            "a `weight_map`".into(),
            detail.clone(),
        ),
        E::IndexFileName {
            path,
            tensor,
            file,
            ends,
        } => new(
            &INDEX_FILE_NAME,
            of(tensor, path),
            format!("a plain file name that ends in {ends}"),
            format!("`{file}`"),
        ),
        E::NotInShard {
            tensor,
            shard,
            found_in,
            ..
        } => new(
            &NOT_IN_SHARD,
            Place::tensor(tensor.clone(), Some(shard.clone())),
            format!("in {shard}"),
            found_in
                .as_ref()
                .map_or("in no shard".into(), |file| format!("in {file}")),
        ),
        E::Unindexed {
            tensor,
            shard,
            count,
            ..
        } => new(
            &UNINDEXED,
            Place::tensor(tensor.clone(), Some(shard.clone())),
            "an entry of the index".into(),
            format!("none ({count} such tensors)"),
        ),
        E::DuplicateTensor {
            tensor,
            first,
            second,
            ..
        } => new(
            &DUPLICATE,
            Place::tensor(tensor.clone(), Some(second.clone())),
            "in one file".into(),
            format!("in both {first} and {second}"),
        ),
        other => new(
            &HEADER,
            Place::default(),
            "a checkpoint that opens".into(),
            other.to_string(),
        ),
    }
}
