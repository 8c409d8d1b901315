//! Compares a checkpoint with its lock, if it has one: with the digests of what was written.

use std::fs;
use std::path::Path;

use crate::{Finding, Place, Report};
use checkpoint::{Checkpoint, read_sidecar};
use run::{Digest, LOCK_FILE, Lock};

checks! {
    TENSOR = "lock.changed-tensor", Error,
        "A tensor is not what the lock says was written",
        "It was changed after the merge, or damaged by a disk or a copy.",
        "copy the checkpoint again from where it was right, or run the recipe again; if the change is meant, remove the lock";
    FILE = "lock.changed-file", Warning,
        "A file is not what the lock says was written",
        "It was edited after the merge, or damaged; `weld verify` says whether the recipe makes it.",
        "copy the file again from where it was right, or run the recipe again; if the change is meant, remove the lock";
    INCOMPLETE = "lock.incomplete", Error,
        "The lock has no digest of a tensor",
        "weld writes one for each; a tensor without could have been changed unseen.",
        "get the lock again from where the checkpoint is from, or run the recipe again";
    MALFORMED = "lock.malformed", Error,
        "The lock cannot be read",
        "Nothing says what was written, so no change can be found.",
        "get the lock again from where the checkpoint is from";
}

/// Compares tensors, by their digests, and files with the lock. Does nothing if there is no lock.
pub(super) fn check_lock(model: &Checkpoint, digests: &[Digest], report: &mut Report) {
    let folder = &model.location().path;
    if model.is_single_file() {
        return;
    }
    let lock = match Lock::read(folder) {
        Ok(None) => return,
        Ok(Some(lock)) => lock,
        Err(error) => {
            report.checked.push(&MALFORMED);
            let place = Place::file(LOCK_FILE);
            report.add(Finding::new(&MALFORMED, place, "a lock", error.to_string()));
            return;
        }
    };
    report.checked.extend(CHECKS);
    let mut lacking = Vec::new();
    let mut same = 0;
    for (tensor, digest) in model.tensors().iter().zip(digests) {
        let found = digest.map_or("bytes that lie apart".to_owned(), |digest| {
            digest.to_string()
        });
        let file = || {
            model
                .find(&tensor.name)
                .and_then(|at| Some(model.place(at)?.0.file_name()))
        };
        match lock.outputs.tensors.get(&tensor.name) {
            // A file that was carried along has a digest of its own, below.
            None if file().is_some_and(|file| lock.outputs.files.contains_key(&file)) => {}
            None => lacking.push(tensor.name.as_str()),
            Some(written) if *written == found => same += 1,
            Some(written) => {
                let expected = format!("BLAKE3 {written}");
                report.add(Finding::new(
                    &TENSOR,
                    Place::entry(model, tensor),
                    expected,
                    found,
                ));
            }
        }
    }
    if let Some(first) = lacking.first() {
        report.add(Finding::new(
            &INCOMPLETE,
            Place::field(LOCK_FILE, "outputs.tensors"),
            "a digest of every tensor",
            format!("none of {} tensors, `{first}` first", lacking.len()),
        ));
    }
    let gone = lock
        .outputs
        .tensors
        .keys()
        .filter(|name| model.find(name).is_none());
    report.extend(gone.map(|name| {
        let expected = "the tensor that was written";
        Finding::new(&TENSOR, Place::tensor(name, None), expected, "none")
    }));
    let files = lock.outputs.files.iter();
    report.extend(files.filter_map(|(name, digest)| changed(folder, name, digest)));
    let all = model.tensors().len();
    report.say(
        "lock",
        format!("{same} of {all} tensors are as they were written"),
    );
}

/// The finding about a file that is not as the lock has it. Shards may be cut another way, so the index may be another.
fn changed(folder: &Path, name: &str, digest: &str) -> Option<Finding> {
    // A lock is no reason to read what lies outside of the folder.
    let plain = |part: &str| !part.is_empty() && part != "." && part != "..";
    if name.ends_with(".index.json") || !name.split('/').all(plain) {
        return None;
    }
    let path = folder.join(name);
    let found = match fs::metadata(&path) {
        Err(_) => "none".to_owned(),
        Ok(_) => match read_sidecar(&path) {
            Ok(bytes) => blake3::hash(&bytes).to_string(),
            Err(error) => error.to_string(),
        },
    };
    let expected = format!("BLAKE3 {digest}");
    (found != digest).then(|| Finding::new(&FILE, Place::file(name), expected, found))
}
