//! What fetches models from object stores, where weld is built with them.

use std::sync::Arc;

use super::caller::Caller;
use checkpoint::Stores;

/// What a command reads of a model.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Needs {
    /// Headers, and what lies beside weights.
    Headers,
    /// Weights too.
    Weights,
    /// Weights too, but those elsewhere are fetched while they are used, and dropped.
    Scratch,
}

/// Without the crate `store` nothing is fetched.
#[cfg(not(feature = "store"))]
pub(super) fn stores(_offline: bool, _needs: Needs, _caller: &Caller) -> Option<Arc<dyn Stores>> {
    None
}

/// What fetches models from object stores. Nothing is asked for before the first model is.
#[cfg(feature = "store")]
pub(super) fn stores(offline: bool, needs: Needs, caller: &Caller) -> Option<Arc<dyn Stores>> {
    use super::environment;
    use super::transfers::Transfer;
    use store::{Models, Use};

    let used = match needs {
        Needs::Headers => Use::Headers,
        Needs::Weights => Use::Whole,
        Needs::Scratch => Use::InTurn,
    };
    let cache = environment::cache().unwrap_or_else(std::env::temp_dir);
    Some(Arc::new(Models::new(
        environment::store_settings,
        used,
        cache.join("weldment"),
        offline || environment::is_offline(),
        Arc::new(Transfer::new(caller)),
    )))
}
