//! Opens models from their references: the only way a planner gets a model.

use std::sync::Arc;

use bytesize::ByteSize;

use super::error::CheckpointError;
use super::locate::Locator;
use super::model_ref::ModelRef;
use super::reader::Checkpoint;
use super::remote::RemoteFiles;

/// Opens the models that recipes name.
///
/// A resolver may keep open models and return them again; a planner asks once for each model of a recipe.
pub trait Resolver {
    /// Opens the model; messages call it by its reference as written.
    ///
    /// # Errors
    /// If there is no such model, or it cannot be read.
    fn resolve(&self, model: &ModelRef) -> Result<Arc<Checkpoint>, CheckpointError>;
}

impl Resolver for Locator {
    fn resolve(&self, model: &ModelRef) -> Result<Arc<Checkpoint>, CheckpointError> {
        let location = self.locate(model)?;
        let mut model = Checkpoint::open(&model.to_string(), &location)?;
        if let Some(note) = what_is_elsewhere(&location.remote) {
            let notes = [model.notes(), &[note]].concat();
            model = model.with_notes(notes);
        }
        Ok(Arc::new(model))
    }
}

/// What is said of weight files that are not here; nothing if all are.
fn what_is_elsewhere(files: &RemoteFiles) -> Option<String> {
    let count = files.iter().count();
    let size: u64 = files.iter().map(|file| file.size()).sum();
    let size = ByteSize(size).display().si();
    let files_of = match count {
        0 => return None,
        1 => format!("1 weight file of {size}"),
        count => format!("{count} weight files, {size} in all,"),
    };
    Some(match files.iter().any(|file| file.is_header_only()) {
        true => format!(
            "only the headers were fetched: a merge fetches {files_of} and sees whether tensors are copies of each other"
        ),
        false => format!("{files_of} will be fetched, used and dropped"),
    })
}
