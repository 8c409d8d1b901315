//! Models from the Hugging Face Hub, and back.
//!
//! [`Hub::snapshot`] fetches what a merge reads of a repository into the cache that huggingface_hub uses too;
//! [`Hub::headers`] fetches, of weight files, only the headers, and if it is asked to, the rest piece by piece while a
//! merge runs; [`Hub::push`] uploads a folder in one commit.
//!
//! Repositories, commits and their Xet uploads go through the crate hf-hub. Files that come down do not: it neither
//! resumes a transfer nor compares what came with a digest. So [`transfer`] does.
//!
//! What a server says is not believed: names must stay within the snapshot, lengths are held to the list of files, and
//! every file to its SHA-256, or its git hash if it is small.

mod cache;
mod error;
mod headers;
mod http;
mod listing;
mod push;
mod scratch;
mod snapshot;
mod transfer;

#[cfg(test)]
mod tests;

use std::path::PathBuf;
use std::time::Duration;

pub use checkpoint::Transfer as Observer;
pub use error::HubError;
pub use push::{Push, Pushed, Upload};
pub use scratch::Later;
pub use snapshot::Snapshot;

use http::Http;

/// The address of the Hub itself.
pub const ENDPOINT: &str = "https://huggingface.co";

/// Where the Hub is, and who asks.
#[derive(Clone)]
pub struct Settings {
    /// The address: [`ENDPOINT`], or a mirror's.
    pub endpoint: String,
    /// The token of the user, if there is one.
    pub token: Option<String>,
    /// The cache folder, which holds a folder for each repository.
    pub cache: PathBuf,
    /// How long to wait after the first failure of a request; each further failure doubles it.
    pub pause: Duration,
}

/// An observer that also stops when somebody else says so.
struct Until<'a> {
    observer: &'a dyn Observer,
    stopped: &'a (dyn Fn() -> bool + Sync),
}

impl Observer for Until<'_> {
    fn begin(&self, what: &str, bytes: u64) {
        self.observer.begin(what, bytes);
    }

    fn advance(&self, bytes: u64) {
        self.observer.advance(bytes);
    }

    fn finish(&self) {
        self.observer.finish();
    }

    fn stopped(&self) -> bool {
        (self.stopped)() || self.observer.stopped()
    }
}

/// A client of the Hub. Its copies share their connections.
#[derive(Clone)]
pub struct Hub {
    settings: Settings,
    http: Http,
}

impl std::fmt::Debug for Hub {
    /// Without the token.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Hub")
            .field("endpoint", &self.settings.endpoint)
            .field("cache", &self.settings.cache)
            .finish_non_exhaustive()
    }
}

impl Hub {
    /// A client with these settings. Nothing is asked for yet.
    ///
    /// # Errors
    /// The address is none, or the system gives no secure connection.
    pub fn new(settings: Settings) -> Result<Hub, HubError> {
        Ok(Hub {
            http: Http::new(&settings)?,
            settings,
        })
    }
}
