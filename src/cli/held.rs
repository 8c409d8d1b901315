//! Models that a program holds, by their names in a recipe; others are found as always.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError};

use super::output::Failure;
use checkpoint::{Checkpoint, CheckpointError, Locator, ModelRef, Resolver};
use errors::{Refusal, some_of};

/// How many names a message lists.
const NAMES_SHOWN: usize = 6;

/// A resolver that knows the models of a program.
pub(super) struct Held {
    models: BTreeMap<String, Arc<Checkpoint>>,
    locator: Locator,
    used: Mutex<BTreeSet<String>>,
}

impl Held {
    /// These models, and those that the locator finds.
    pub(super) fn new(models: BTreeMap<String, Arc<Checkpoint>>, locator: Locator) -> Self {
        Self {
            models,
            locator,
            used: Mutex::default(),
        }
    }

    /// The model of that name, if the program holds it.
    fn find(&self, name: &ModelRef) -> Option<Arc<Checkpoint>> {
        let model = self.models.get(name.text())?;
        let mut used = self.used.lock().unwrap_or_else(PoisonError::into_inner);
        used.insert(name.text().to_owned());
        Some(Arc::clone(model))
    }

    /// Checks that the recipe has asked for every model that the program holds.
    ///
    /// # Errors
    /// It has not asked for one: its name is another in the recipe.
    pub(super) fn check_used(&self) -> Result<(), Failure> {
        let used = self.used.lock().unwrap_or_else(PoisonError::into_inner);
        let idle: Vec<&String> = self
            .models
            .keys()
            .filter(|name| !used.contains(*name))
            .collect();
        if idle.is_empty() {
            return Ok(());
        }
        let idle = idle.into_iter().map(|name| format!("`{name}`"));
        let idle = some_of(idle.collect::<Vec<_>>(), NAMES_SHOWN);
        Err(Failure::input(
            Refusal::new(format!("the recipe names no model {idle}, which was given"))
                .with_hint("give each model by the name that the recipe has for it"),
        ))
    }
}

impl Resolver for Held {
    fn resolve(&self, model: &ModelRef) -> Result<Arc<Checkpoint>, CheckpointError> {
        if let Some(held) = self.find(model) {
            return Ok(held);
        }
        let Some(held) = model.base().and_then(|base| self.find(&base)) else {
            return self.locator.resolve(model);
        };
        let mut adapted = held.as_ref().clone();
        for adapter in &model.adapters {
            let location = self.locator.locate(&adapter.reference())?;
            adapted = adapted.adapted(&location, adapter.weight())?;
        }
        Ok(Arc::new(adapted))
    }
}
