//! The files beside the weights: that they are what their names say.

use crate::{CheckInfo, Finding, Place, Report};
use checkpoint::{Checkpoint, Sidecar, SidecarKind, check_json, read_sidecar};

use super::{config, container, tokenizer};

/// Files that other checks read, and report where they are malformed.
const READ_ELSEWHERE: [&str; 5] = [
    "chat_template.json",
    "generation_config.json",
    "special_tokens_map.json",
    "tokenizer.json",
    "tokenizer_config.json",
];

/// Reports pointers of Git LFS, and settings and vocabularies that are no JSON.
pub(super) fn check_beside(model: &Checkpoint, report: &mut Report) {
    // A folder that cannot be read is a problem of its own.
    let files = model.sidecars().unwrap_or_default();
    let files = files
        .iter()
        .filter(|file| !READ_ELSEWHERE.contains(&file.name.as_str()));
    report.extend(files.filter_map(finding));
}

fn finding(file: &Sidecar) -> Option<Finding> {
    let place = Place::file(file.name.clone());
    if file.is_lfs_pointer() {
        let finding = Finding::new(
            &container::STAND_IN,
            place,
            "the file itself",
            "a Git LFS pointer",
        );
        return Some(finding.with_remedy("run `git lfs pull`"));
    }
    let kind: &CheckInfo = match file.kind {
        SidecarKind::Processor | SidecarKind::Module => &config::MALFORMED,
        SidecarKind::Tokenizer => &tokenizer::MALFORMED,
        // A pipeline's scheduler, tokenizer or feature extractor.
        SidecarKind::Other if file.name.contains('/') && file.name.ends_with("_config.json") => {
            &config::MALFORMED
        }
        _ => return None,
    };
    let bytes = file
        .name
        .ends_with(".json")
        .then(|| read_sidecar(&file.path))?;
    let malformed = match bytes {
        Ok(bytes) => check_json(&bytes).err()?,
        Err(problem) => problem.to_string(),
    };
    Some(Finding::new(kind, place, "JSON", malformed))
}
