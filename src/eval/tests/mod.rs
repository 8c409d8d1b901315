//! Tasks that are read, split and scored.

mod families;
mod read;
mod scored;

use std::path::{Path, PathBuf};

use super::Tasks;
use checkpoint::{Checkpoint, Location};

/// A model of the small family.
pub(super) fn model(name: &str) -> Checkpoint {
    let family = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../recipes/family");
    Checkpoint::open(name, &Location::local(family.join(name))).unwrap()
}

/// Tasks of files with these names and lines.
pub(super) fn tasks(files: &[(&str, &str)]) -> Result<Tasks, String> {
    let folder = tempfile::tempdir().unwrap();
    let paths = files.iter().map(|(name, text)| {
        let path = folder.path().join(name);
        std::fs::write(&path, text).unwrap();
        path
    });
    let paths: Vec<PathBuf> = paths.collect();
    let read = Tasks::read(&paths);
    let start = format!("{}/", folder.path().display());
    read.map_err(|error| errors::in_one_line(&error).replace(&start, ""))
}
