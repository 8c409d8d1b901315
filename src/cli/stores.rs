//! What fetches models from object stores, and puts checkpoints there, where weld is built with them.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::caller::Caller;
use super::output::Failure;
use checkpoint::{Stores, is_store_address};
use run::destination::{Folder, Parts, folder_of};

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

/// Whether what is to be written goes to a store.
pub(super) fn is_in_store(path: &Path) -> bool {
    path.to_str().is_some_and(is_store_address)
}

/// Where a checkpoint is written.
///
/// # Errors
/// It is an address, and cannot be written to, or the network is not to be used.
pub(super) fn destination(
    out: &Path,
    force: bool,
    caller: &Caller,
) -> Result<Box<dyn Parts>, Failure> {
    match is_in_store(out) {
        true => in_store(out, force, caller),
        false => Ok(Box::new(Folder::new(out, force))),
    }
}

/// A folder on this machine for what is needed only while something is written.
pub(super) fn scratch_for(out: &Path) -> PathBuf {
    match is_in_store(out) {
        true => std::env::temp_dir(),
        false => folder_of(out).to_owned(),
    }
}

/// The memory that an output in a store takes, in bytes.
pub(super) fn held() -> u64 {
    #[cfg(feature = "store")]
    return store::HELD;
    #[cfg(not(feature = "store"))]
    0
}

#[cfg(not(feature = "store"))]
fn in_store(_out: &Path, _force: bool, _caller: &Caller) -> Result<Box<dyn Parts>, Failure> {
    Err(Failure::input("this weld is built without object stores"))
}

#[cfg(feature = "store")]
fn in_store(out: &Path, force: bool, caller: &Caller) -> Result<Box<dyn Parts>, Failure> {
    use super::environment;
    use super::transfers::Quiet;
    use store::{Output, StoreError};

    if environment::is_offline() {
        return Err(Failure::input(&StoreError::Offline));
    }
    let cache = environment::cache().unwrap_or_else(std::env::temp_dir);
    let output = Output::new(
        &out.to_string_lossy(),
        force,
        environment::store_settings(),
        cache.join("weldment"),
        Arc::new(Quiet(caller.clone())),
    );
    Ok(Box::new(output.map_err(|error| Failure::input(&error))?))
}
