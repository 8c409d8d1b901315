//! Whether models may be fetched, and what finds them: folders, the Hub's cache, and the Hub where weld is built with it.

use std::path::Path;

use clap::Args;

use super::arguments::size;
use super::caller::Caller;
use super::environment;
use super::output::Failure;
use super::stores;
pub(super) use super::stores::Needs;
use checkpoint::{Checkpoint, Locator, ModelRef};
use errors::Refusal;

/// Whether the network may be used.
#[derive(Args, Clone, Copy)]
pub(super) struct Network {
    /// Do not use the network: models come from folders and the Hub's cache, as with HF_HUB_OFFLINE=1
    #[arg(long)]
    pub(super) offline: bool,
}

/// How much room weights from the Hub may take.
#[derive(Args, Clone, Copy)]
pub(super) struct Scratch {
    /// Weights on the Hub that are not in the cache: fetch them file by file while they are used, drop them after, and hold
    /// no more than this at once (50GB); the cache does not grow by them
    #[arg(long = "scratch-limit", value_name = "SIZE", value_parser = size)]
    pub(super) limit: Option<u64>,
}

impl Scratch {
    /// What a command reads of models under this limit, if there is one.
    pub(super) fn or(self, needs: Needs) -> Needs {
        match self.limit {
            Some(_) => Needs::Scratch,
            None => needs,
        }
    }

    /// Refuses the limit where the recipe's output needs all weights at once.
    pub(super) fn refuse(self, output: &str) -> Result<(), Failure> {
        match self.limit {
            None => Ok(()),
            Some(_) => Err(Failure::input(
                Refusal::new(format!(
                    "--scratch-limit is for merges into a model, and the output of this recipe is {output}"
                ))
                .with_hint("leave it out"),
            )),
        }
    }
}

impl Network {
    /// The places for models: the working folder, the recipe's folder, the Hub's cache, and the Hub.
    pub(super) fn locator(
        self,
        recipe_dir: Option<&Path>,
        needs: Needs,
        caller: &Caller,
    ) -> Result<Locator, Failure> {
        let locator = environment::locator(recipe_dir)?;
        let fetch = match &locator.hub_cache {
            Some(cache) => fetch::from_hub(cache, self.offline, needs, caller)?,
            None => None,
        };
        let stores = stores::stores(self.offline, needs, caller);
        Ok(Locator {
            fetch,
            stores,
            ..locator
        })
    }
}

/// Opens a model that is only read: without it there is nothing to judge, exit code 2.
pub(super) fn open(locator: &Locator, model: &ModelRef) -> Result<Checkpoint, Failure> {
    let opened = locator
        .locate(model)
        .and_then(|location| Checkpoint::open(&model.to_string(), &location));
    opened.map_err(Failure::could_not_run)
}

#[cfg(not(feature = "hub"))]
mod fetch {
    use std::path::Path;
    use std::sync::Arc;

    use super::{Caller, Failure, Needs};
    use checkpoint::Fetch;

    /// Without the crate `hub` nothing is fetched.
    #[expect(clippy::unnecessary_wraps, reason = "as with the crate `hub`")]
    pub(super) fn from_hub(
        _cache: &Path,
        _offline: bool,
        _needs: Needs,
        _caller: &Caller,
    ) -> Result<Option<Arc<dyn Fetch>>, Failure> {
        Ok(None)
    }
}

#[cfg(feature = "hub")]
pub(super) mod fetch {
    use std::collections::HashMap;
    use std::path::{Path, PathBuf};
    use std::sync::{Arc, Mutex, PoisonError};
    use std::time::Duration;

    use super::super::environment;
    use super::super::transfers::{Quiet, Transfer};
    use super::{Caller, Failure, Needs};
    use checkpoint::{Fetch, FetchError, HubFolder, ScratchFolder, is_complete};
    use errors::{Refusal, printable};
    use hub::{ENDPOINT, Hub, HubError, Later, Settings, Snapshot};
    use tempfile::TempDir;

    /// How long to wait after the first failure of a request.
    const PAUSE: Duration = Duration::from_millis(500);

    /// A client of the Hub that the environment names.
    pub(in super::super) fn client(cache: &Path) -> Result<Hub, Failure> {
        let settings = Settings {
            endpoint: environment::text("HF_ENDPOINT").unwrap_or_else(|| ENDPOINT.to_owned()),
            token: environment::token(),
            cache: cache.to_owned(),
            pause: PAUSE,
        };
        Hub::new(settings).map_err(|error| Failure::tool(&error))
    }

    /// What fetches models from the Hub.
    pub(super) fn from_hub(
        cache: &Path,
        offline: bool,
        needs: Needs,
        caller: &Caller,
    ) -> Result<Option<Arc<dyn Fetch>>, Failure> {
        let offline = offline || environment::is_offline();
        Ok(Some(Arc::new(FromHub {
            hub: if offline { None } else { Some(client(cache)?) },
            needs,
            caller: caller.clone(),
            cache: cache.to_owned(),
            headers: Mutex::default(),
            scratch: Mutex::default(),
            fetched: Mutex::default(),
        })))
    }

    /// Fetches models from the Hub, unless the network is not to be used.
    #[derive(Debug)]
    struct FromHub {
        hub: Option<Hub>,
        needs: Needs,
        caller: Caller,
        cache: PathBuf,
        /// The folder for models of which only the headers are fetched. It goes with this.
        headers: Mutex<Option<TempDir>>,
        /// The folder for models that are fetched while they are used.
        scratch: Mutex<Option<Arc<ScratchFolder>>>,
        /// Those models, by repository and revision.
        fetched: Mutex<HashMap<(String, String), HubFolder>>,
    }

    impl FromHub {
        fn fetched(&self, repo: &str, revision: &str) -> Result<HubFolder, HubError> {
            let Some(hub) = &self.hub else {
                return Err(HubError::Offline {
                    repo: repo.to_owned(),
                    revision: revision.to_owned(),
                });
            };
            let key = (repo.to_owned(), revision.to_owned());
            let mut fetched = self.fetched.lock().unwrap_or_else(PoisonError::into_inner);
            if let Some(known) = fetched.get(&key) {
                return Ok(known.clone());
            }
            let watched = Transfer::new(&self.caller);
            let later = match self.needs {
                Needs::Weights => None,
                Needs::Headers => Some(Later::Never),
                Needs::Scratch => {
                    let quiet = Arc::new(Quiet(self.caller.clone()));
                    Some(Later::Fetched(quiet, self.scratch()?))
                }
            };
            let done = match later {
                Some(later) => {
                    let folder = match &later {
                        Later::Fetched(_, scratch) => scratch.path().to_owned(),
                        Later::Never => self.folder()?,
                    };
                    hub.headers(repo, revision, &folder, &later, &watched)
                }
                None => hub.snapshot(repo, revision, &watched),
            };
            let Snapshot {
                folder,
                commit,
                remote,
            } = done?;
            let folder = HubFolder {
                path: folder,
                commit,
                remote,
            };
            Ok(fetched.entry(key).or_insert(folder).clone())
        }

        fn folder(&self) -> Result<PathBuf, HubError> {
            let mut headers = self.headers.lock().unwrap_or_else(PoisonError::into_inner);
            if let Some(folder) = headers.as_ref() {
                return Ok(folder.path().to_owned());
            }
            let made = tempfile::tempdir().map_err(|source| HubError::Io {
                action: "make a folder in",
                path: std::env::temp_dir(),
                source,
            })?;
            Ok(headers.insert(made).path().to_owned())
        }

        fn scratch(&self) -> Result<Arc<ScratchFolder>, HubError> {
            let mut scratch = self.scratch.lock().unwrap_or_else(PoisonError::into_inner);
            if let Some(folder) = scratch.as_ref() {
                return Ok(Arc::clone(folder));
            }
            let made = ScratchFolder::new(&self.cache).map_err(|source| HubError::Io {
                action: "make a folder in",
                path: self.cache.clone(),
                source,
            })?;
            let made = Arc::new(made);
            Ok(Arc::clone(scratch.insert(made)))
        }
    }

    impl Fetch for FromHub {
        fn fetch(
            &self,
            repo: &str,
            revision: &str,
            cached: Option<HubFolder>,
        ) -> Result<HubFolder, FetchError> {
            let Some(cached) = cached else {
                return self.fetched(repo, revision).map_err(|error| FetchError {
                    may_be_misspelt: matches!(
                        error,
                        HubError::NoRepository { .. }
                            | HubError::Unauthorized { known: false, .. }
                            | HubError::Offline { .. }
                            | HubError::Unreachable { .. }
                    ),
                    refusal: Refusal::from(&error),
                });
            };
            if is_complete(&cached.path) {
                return Ok(cached);
            }
            // Of the commit that is there: what a name points to does not change between two runs.
            match self.fetched(repo, &cached.commit) {
                Ok(folder) => Ok(folder),
                Err(_) if self.caller.stopped() => Ok(cached),
                Err(error) => {
                    if self.hub.is_some() {
                        self.caller.say(&format!(
                            "note: {}: what is in the cache is taken, which seems incomplete: {}",
                            printable(repo),
                            printable(&error.to_string())
                        ));
                    }
                    Ok(cached)
                }
            }
        }
    }
}
