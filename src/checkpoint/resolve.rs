//! From a model as written to a model that is open: the only way by which a planner gets one.

use std::sync::Arc;

use super::error::CheckpointError;
use super::locate::Locator;
use super::model_ref::ModelRef;
use super::reader::Checkpoint;

/// Gives the models that recipes name.
///
/// One that keeps what it has opened gives the same model again; a planner asks once for each model of a recipe.
pub trait Resolver {
    /// The model, which messages will call as it is written.
    ///
    /// # Errors
    /// If there is no such model, or it can't be read.
    fn resolve(&self, model: &ModelRef) -> Result<Arc<Checkpoint>, CheckpointError>;
}

impl Resolver for Locator {
    fn resolve(&self, model: &ModelRef) -> Result<Arc<Checkpoint>, CheckpointError> {
        let location = self.locate(model)?;
        Checkpoint::open(&model.to_string(), &location).map(Arc::new)
    }
}
