//! Opens models from their references: the only way a planner gets a model.

use std::sync::Arc;

use super::error::CheckpointError;
use super::locate::Locator;
use super::model_ref::ModelRef;
use super::reader::Checkpoint;

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
        if location.headers_only {
            let note = format!(
                "of `{}` only the headers were fetched: whether tensors of it are copies of each other shows when the \
                 plan is run",
                model.label()
            );
            let notes = [model.notes(), &[note]].concat();
            model = model.with_notes(notes);
        }
        Ok(Arc::new(model))
    }
}
