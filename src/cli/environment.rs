//! Reads the environment: where the Hub's cache is, and where relative paths start.

use std::env;
use std::ffi::OsString;
use std::hash::{BuildHasher, Hasher, RandomState};
use std::path::{Path, PathBuf};

use super::memory::available;
use super::output::Failure;
use checkpoint::Locator;
use run::ScratchRoots;

/// The places for models: the working folder, the recipe's folder, the local Hugging Face cache.
pub(super) fn locator(recipe_dir: Option<&Path>) -> Result<Locator, Failure> {
    let working_dir = env::current_dir()
        .map_err(|error| Failure::tool(format!("cannot tell the working folder: {error}")))?;
    let recipe_dir = recipe_dir.map(|dir| working_dir.join(dir));
    Ok(Locator {
        working_dir,
        recipe_dir,
        hub_cache: hub_cache(),
        ..Locator::default()
    })
}

/// The user's cache folder, as the XDG base directories have it; none if there is no home.
pub(super) fn cache() -> Option<PathBuf> {
    let set = env::var_os("XDG_CACHE_HOME").map(PathBuf::from);
    // The specification says to ignore a relative path.
    let set = set.filter(|path| path.is_absolute());
    let home = || env::home_dir().filter(|home| home.is_absolute());
    set.or_else(|| home().map(|home| home.join(".cache")))
}

/// Where a merge may be written that is scored and then goes: in memory, up to half of what is free, or in the folder for
/// temporary files.
pub(super) fn scratch_roots(chosen: Option<PathBuf>) -> ScratchRoots {
    let in_memory = Path::new("/dev/shm");
    let free = available().filter(|_| cfg!(target_os = "linux") && in_memory.is_dir());
    ScratchRoots {
        chosen,
        memory: free.map(|free| (in_memory.to_owned(), free / 2)),
        usual: env::temp_dir(),
    }
}

/// Values of variables that may be passwords, by their names; longest first, as one may be part of another.
pub(super) fn secrets() -> Vec<String> {
    /// Shorter values would hide words that mean nothing.
    const SHORTEST: usize = 8;
    const NAMES: [&str; 5] = ["TOKEN", "SECRET", "PASSWORD", "KEY", "CREDENTIAL"];
    let is_secret = |name: &str| NAMES.iter().any(|part| name.to_uppercase().contains(part));
    let named = env::vars_os().filter(|(name, _)| is_secret(&name.to_string_lossy()));
    let values = named.filter_map(|(_, value)| value.into_string().ok());
    let mut values: Vec<String> = values.filter(|value| value.len() >= SHORTEST).collect();
    values.sort_by_key(|value| std::cmp::Reverse(value.len()));
    values
}

/// A variable that is set to some text.
#[cfg(any(feature = "hub", feature = "store"))]
pub(super) fn text(name: &str) -> Option<String> {
    env::var(name).ok().filter(|value| !value.trim().is_empty())
}

/// Whether the environment says not to use the network, as huggingface_hub reads it.
#[cfg(any(feature = "hub", feature = "store"))]
pub(super) fn is_offline() -> bool {
    is_on("HF_HUB_OFFLINE") || is_on("TRANSFORMERS_OFFLINE")
}

#[cfg(any(feature = "hub", feature = "store"))]
fn is_on(name: &str) -> bool {
    let words = ["1", "ON", "YES", "TRUE"];
    text(name).is_some_and(|value| words.contains(&value.trim().to_uppercase().as_str()))
}

/// The user's token for the Hub: a variable's, or the one that `hf auth login` keeps.
#[cfg(feature = "hub")]
pub(super) fn token() -> Option<String> {
    /// The most bytes of a file with a token.
    const MAX_BYTES: u64 = 4 << 10;
    if is_on("HF_HUB_DISABLE_IMPLICIT_TOKEN") {
        return None;
    }
    let of_file = || {
        let path = path("HF_TOKEN_PATH").or_else(|| Some(hf_home()?.join("token")))?;
        String::from_utf8(checkpoint::read_bounded(&path, MAX_BYTES, "token, in bytes").ok()?).ok()
    };
    let token = text("HF_TOKEN").or_else(|| text("HUGGING_FACE_HUB_TOKEN"));
    let token = token.or_else(of_file)?.trim().to_owned();
    (!token.is_empty()).then_some(token)
}

/// What the environment and the files of the AWS command line say of object stores.
#[cfg(feature = "store")]
pub(super) fn store_settings() -> store::Settings {
    use std::time::Duration;

    /// How long to wait after the first failure of a request.
    const PAUSE: Duration = Duration::from_millis(500);
    /// The most bytes of a file of the AWS command line.
    const MAX_BYTES: u64 = 1 << 20;
    let named = env::vars_os().filter_map(|(name, value)| {
        let name = name.into_string().ok()?.to_ascii_lowercase();
        let is_meant = ["aws_", "google_", "azure_"]
            .iter()
            .any(|start| name.starts_with(start));
        is_meant.then(|| Some((name, value.into_string().ok()?)))?
    });
    let aws_file = |variable: &str, name: &str| {
        let usual = || Some(env::home_dir()?.join(".aws").join(name));
        let bytes =
            checkpoint::read_bounded(&path(variable).or_else(usual)?, MAX_BYTES, "file, in bytes");
        String::from_utf8(bytes.ok()?).ok()
    };
    store::Settings {
        options: named.collect(),
        aws: store::AwsFiles {
            credentials: aws_file("AWS_SHARED_CREDENTIALS_FILE", "credentials"),
            config: aws_file("AWS_CONFIG_FILE", "config"),
            profile: text("AWS_PROFILE"),
        },
        pause: PAUSE,
    }
}

/// An unpredictable number below 2^53, which every reader of JSON keeps exactly.
pub(super) fn random() -> u64 {
    // The standard library seeds its hash maps from the system's random numbers.
    RandomState::new().build_hasher().finish() >> 11
}

/// A path in which a leading `~` and `$NAME` or `${NAME}` stand for what they mean in a shell, as huggingface_hub has
/// it; a name that is not set stays as it is written.
fn expanded(value: OsString) -> PathBuf {
    let Some(text) = value.to_str() else {
        return value.into();
    };
    let (mut path, text) = match text.strip_prefix('~') {
        Some(rest) if rest.is_empty() || rest.starts_with('/') => match env::home_dir() {
            Some(home) => (home.into_os_string(), rest),
            None => (OsString::new(), text),
        },
        _ => (OsString::new(), text),
    };
    let mut parts = text.split('$');
    path.push(parts.next().unwrap_or_default());
    for part in parts {
        let is_name = |c: char| c.is_ascii_alphanumeric() || c == '_';
        let braced = part.strip_prefix('{').and_then(|rest| rest.split_once('}'));
        let (name, rest) = braced
            .unwrap_or_else(|| part.split_at(part.find(|c| !is_name(c)).unwrap_or(part.len())));
        match env::var_os(name).filter(|_| !name.is_empty()) {
            Some(value) => {
                path.push(value);
                path.push(rest);
            }
            None => {
                path.push("$");
                path.push(part);
            }
        }
    }
    path.into()
}

/// The path that a variable names.
fn path(name: &str) -> Option<PathBuf> {
    env::var_os(name)
        .filter(|value| !value.is_empty())
        .map(expanded)
}

/// The folder of huggingface_hub, found as it finds it.
fn hf_home() -> Option<PathBuf> {
    path("HF_HOME")
        .or_else(|| path("XDG_CACHE_HOME").map(|cache| cache.join("huggingface")))
        .or_else(|| env::home_dir().map(|home| home.join(".cache/huggingface")))
}

/// The cache folder, found as huggingface_hub finds it.
fn hub_cache() -> Option<PathBuf> {
    path("HF_HUB_CACHE")
        .or_else(|| path("HUGGINGFACE_HUB_CACHE"))
        .or_else(|| hf_home().map(|home| home.join("hub")))
}
