//! Fetches the headers of a model's weights by range, so that a merge can be planned before anything large has come.
//!
//! The folder that holds them looks like a snapshot. Its weight files have their full length and no content but the
//! header: the rest are holes, which take no room.

use std::fs;
use std::io::{self, Read};
use std::ops::Range;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::cache::{Repository, create};
use super::error::HubError;
use super::listing::Entry;
use super::scratch::{Later, OnHub};
use super::snapshot::{Snapshot, check_weights};
use super::transfer::range_start;
use super::{Hub, Observer};
use checkpoint::{MAX_HEADER_BYTES, RemoteFile, ScratchFile, is_safetensors, is_weights, wanted};

/// The length of the number that a safetensors file begins with: that of its header.
const LENGTH_BYTES: u64 = 8;

/// What tells an adapter.
const ADAPTER: &str = "adapter_config.json";

/// How much is asked for first: most headers are shorter.
const FIRST: u64 = 128 << 10;

impl Hub {
    /// Fetches the headers of a model's weights, and what lies beside them. The small files go to the cache as always;
    /// what a plan reads is made in `folder`, laid out as a cache. Weights that the cache has are linked there. An adapter
    /// whose weights are to be used is fetched whole: it is small.
    ///
    /// # Errors
    /// As [`Hub::snapshot`]; and of pickles there are no headers.
    pub fn headers(
        &self,
        repo: &str,
        revision: &str,
        folder: &Path,
        later: &Later,
        observer: &dyn Observer,
    ) -> Result<Snapshot, HubError> {
        let commit = self.commit(repo, revision, observer)?;
        let entries = self.files(repo, &commit, observer)?;
        let wanted = wanted(&entries);
        check_weights(repo, &entries, &wanted)?;
        let cache = Repository::new(&self.settings.cache, repo);
        let is_adapter = wanted.iter().any(|entry| entry.name == ADAPTER);
        let comes_later = |entry: &&&Entry| is_weights(&entry.name) && !cache.has(entry);
        if !wanted.iter().any(|entry| comes_later(&entry))
            || is_adapter && matches!(later, Later::Fetched(..))
        {
            self.fetch(repo, &commit, &wanted, observer)?;
            return self.keep(repo, revision, commit, &entries);
        }
        let (weights, beside): (Vec<_>, Vec<_>) = wanted
            .into_iter()
            .partition(|entry| is_weights(&entry.name));
        let (weights, here): (Vec<_>, Vec<_>) = weights.into_iter().partition(|e| comes_later(&e));
        if let Some(pickle) = weights.iter().find(|entry| !is_safetensors(&entry.name)) {
            return Err(HubError::PickledHeaders {
                repo: repo.to_owned(),
                file: pickle.name.clone(),
            });
        }
        self.fetch(repo, &commit, &beside, observer)?;
        let cached = self.keep(repo, revision, commit, &entries)?;
        let snapshot = Repository::new(folder, repo).snapshot(&cached.commit);
        for entry in beside {
            let (from, to) = (cached.folder.join(&entry.name), snapshot.join(&entry.name));
            create(to.parent().unwrap_or(&to))?;
            fs::copy(&from, &to).map_err(|source| HubError::io("copy", &to, source))?;
        }
        for entry in here {
            let path = snapshot.join(&entry.name);
            create(path.parent().unwrap_or(&path))?;
            let link = || symlink(std::path::absolute(cache.blob(entry))?, &path);
            link().map_err(|source| HubError::io("link", &path, source))?;
        }
        let mut remote: Vec<(PathBuf, Arc<dyn RemoteFile>)> = Vec::new();
        for entry in weights {
            let path = snapshot.join(&entry.name);
            let header = self.header(repo, &cached.commit, entry, observer)?;
            let origin = OnHub {
                hub: self.clone(),
                repo: repo.to_owned(),
                commit: cached.commit.clone(),
                entry: entry.clone(),
                later: later.clone(),
            };
            let made = ScratchFile::new(path.clone(), &header, Box::new(origin), later.used());
            let file = made.map_err(|source| HubError::io("write", &path, source))?;
            remote.push((path, Arc::new(file)));
        }
        Ok(Snapshot {
            folder: snapshot,
            commit: cached.commit,
            remote: remote.into_iter().collect(),
        })
    }

    /// The header of a weight file, with its length before it.
    fn header(
        &self,
        repo: &str,
        commit: &str,
        entry: &Entry,
        observer: &dyn Observer,
    ) -> Result<Vec<u8>, HubError> {
        let mut header = Vec::new();
        let first = 0..FIRST.min(entry.size);
        self.read_range(repo, commit, entry, first, &mut header, observer)?;
        let stated = header
            .first_chunk()
            .map_or(0, |length| u64::from_le_bytes(*length));
        let end = stated.saturating_add(LENGTH_BYTES);
        if entry.size < LENGTH_BYTES || stated > MAX_HEADER_BYTES || end > entry.size {
            return Err(HubError::Header {
                repo: repo.to_owned(),
                file: entry.name.clone(),
                found: stated,
                size: entry.size,
            });
        }
        self.read_range(repo, commit, entry, 0..end, &mut header, observer)?;
        header.truncate(end as usize);
        Ok(header)
    }

    /// Reads on until all bytes of a range of a file are there. What breaks is asked for again.
    pub(crate) fn read_range(
        &self,
        repo: &str,
        commit: &str,
        entry: &Entry,
        wanted: Range<u64>,
        bytes: &mut Vec<u8>,
        observer: &dyn Observer,
    ) -> Result<(), HubError> {
        let mut failures = 0;
        while (bytes.len() as u64) < wanted.end - wanted.start {
            let had = bytes.len() as u64;
            let from = wanted.start + had;
            let range = Some((from, Some(wanted.end)));
            let mut response = self.open_range(repo, commit, entry, range, observer)?;
            let mut skipped = Ok(0);
            if range_start(&response) != Some(from) {
                // All of it comes.
                bytes.clear();
                skipped = io::copy(&mut response.by_ref().take(wanted.start), &mut io::sink());
            }
            let rest = wanted.end - wanted.start - bytes.len() as u64;
            let read = skipped.and_then(|_| response.take(rest).read_to_end(bytes));
            if bytes.len() as u64 > had {
                failures = 0;
                continue;
            }
            failures += 1;
            if failures == super::http::ATTEMPTS {
                return Err(HubError::Unreachable {
                    endpoint: self.settings.endpoint.clone(),
                    what: format!("{} of `{repo}`", entry.name),
                    reason: match read {
                        Err(error) => super::http::reason(&error),
                        Ok(_) => "the connection ended early".into(),
                    },
                });
            }
            if !self.http.wait(failures, None, observer) {
                return Err(HubError::Stopped);
            }
        }
        Ok(())
    }
}
