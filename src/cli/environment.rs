//! What the environment says: where the Hub's cache is, from where relative paths start.

use std::env;
use std::hash::{BuildHasher, Hasher, RandomState};
use std::path::{Path, PathBuf};

use super::output::Failure;
use checkpoint::Locator;

/// Where models are looked for: the working folder, the recipe's, the local Hugging Face cache.
pub(super) fn locator(recipe_dir: Option<&Path>) -> Result<Locator, Failure> {
    let working_dir = env::current_dir()
        .map_err(|error| Failure::tool(format!("cannot tell the working folder: {error}")))?;
    let recipe_dir = recipe_dir.map(|dir| working_dir.join(dir));
    Ok(Locator {
        working_dir,
        recipe_dir,
        hub_cache: hub_cache(),
        elsewhere: Vec::new(),
    })
}

/// A number that nobody knows beforehand.
pub(super) fn random() -> u64 {
    // The standard library keys its hash maps with the system's randomness.
    RandomState::new().build_hasher().finish()
}

/// The cache as huggingface_hub finds it.
fn hub_cache() -> Option<PathBuf> {
    let set = |name: &str| {
        env::var_os(name)
            .filter(|value| !value.is_empty())
            .map(PathBuf::from)
    };
    set("HF_HUB_CACHE")
        .or_else(|| set("HUGGINGFACE_HUB_CACHE"))
        .or_else(|| set("HF_HOME").map(|home| home.join("hub")))
        .or_else(|| set("XDG_CACHE_HOME").map(|cache| cache.join("huggingface/hub")))
        .or_else(|| env::home_dir().map(|home| home.join(".cache/huggingface/hub")))
}
