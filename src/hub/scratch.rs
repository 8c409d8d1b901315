//! Weight files of the Hub that are fetched while a merge runs.

use std::fmt;
use std::fs::File;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::cache::Repository;
use super::error::HubError;
use super::listing::Entry;
use super::transfer::Partial;
use super::{Hub, Observer, Until};
use checkpoint::{Origin, ScratchFolder, ScratchUse};
use errors::Refusal;

/// What becomes of the weight files whose headers are fetched.
#[derive(Clone)]
pub enum Later {
    /// Nothing more of them comes.
    Never,
    /// They are fetched while they are used. The observer hears of it, and can stop it. The folder in which they are stays
    /// as long as one of them.
    Fetched(Arc<dyn Observer>, Arc<ScratchFolder>),
}

impl Later {
    pub(crate) fn used(&self) -> ScratchUse {
        match self {
            Later::Never => ScratchUse::HeaderOnly,
            Later::Fetched(_, folder) => ScratchUse::Fetched(Arc::clone(folder)),
        }
    }
}

/// A weight file on the Hub.
pub(crate) struct OnHub {
    pub(crate) hub: Hub,
    pub(crate) repo: String,
    pub(crate) commit: String,
    pub(crate) entry: Entry,
    pub(crate) later: Later,
}

impl fmt::Debug for OnHub {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("OnHub").field(&self.name()).finish()
    }
}

impl OnHub {
    fn observer(&self) -> Result<&dyn Observer, Refusal> {
        match &self.later {
            Later::Fetched(observer, _) => Ok(observer.as_ref()),
            Later::Never => Err(Refusal::new(format!("{} is not fetched", self.name()))),
        }
    }
}

impl Origin for OnHub {
    fn name(&self) -> String {
        format!("{} of `{}`", errors::printable(&self.entry.name), self.repo)
    }

    fn size(&self) -> u64 {
        self.entry.size
    }

    fn read(&self, range: Range<u64>) -> Result<Vec<u8>, Refusal> {
        let mut bytes = Vec::new();
        let (repo, commit, entry) = (&self.repo, &self.commit, &self.entry);
        let observer = self.observer()?;
        let read = (self.hub).read_range(repo, commit, entry, range, &mut bytes, observer);
        read.map_err(|error| Refusal::from(&error))?;
        Ok(bytes)
    }

    fn fetch(
        &self,
        file: &File,
        path: &Path,
        stopped: &(dyn Fn() -> bool + Sync),
    ) -> Result<(), Refusal> {
        let observer = Until {
            observer: self.observer()?,
            stopped,
        };
        let partial = Partial::in_place(file, &self.entry);
        let mut partial =
            partial.map_err(|source| Refusal::from(&HubError::io("write", path, source)))?;
        let (repo, commit, entry) = (&self.repo, &self.commit, &self.entry);
        let done = (self.hub).complete(repo, commit, entry, &mut partial, path, &observer);
        done.map_err(|error| Refusal::from(&error))
    }

    fn blob(&self) -> Option<PathBuf> {
        Some(Repository::new(&self.hub.settings.cache, &self.repo).blob(&self.entry))
    }
}
