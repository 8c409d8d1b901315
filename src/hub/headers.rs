//! Fetches the headers of a model's weights by range, so that a merge can be planned before anything large has come.
//!
//! The folder that holds them looks like a snapshot. Its weight files have their full length and no content but the
//! header: the rest are holes, which take no room.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::path::Path;

use super::cache::{Repository, create};
use super::error::HubError;
use super::listing::Entry;
use super::snapshot::{Snapshot, check_weights};
use super::transfer::range_start;
use super::wanted::{is_safetensors, is_weights, wanted};
use super::{Hub, Observer};
use checkpoint::MAX_HEADER_BYTES;

/// The length of the number that a safetensors file begins with: that of its header.
const LENGTH_BYTES: u64 = 8;

/// How much is asked for first: most headers are shorter.
const FIRST: u64 = 128 << 10;

impl Hub {
    /// Fetches the headers of a model's weights, and what lies beside them. The small files go to the cache as always;
    /// what a plan reads is made in `folder`, laid out as a cache.
    ///
    /// # Errors
    /// As [`Hub::snapshot`]; and of pickles there are no headers.
    pub fn headers(
        &self,
        repo: &str,
        revision: &str,
        folder: &Path,
        observer: &dyn Observer,
    ) -> Result<Snapshot, HubError> {
        let commit = self.commit(repo, revision, observer)?;
        let entries = self.files(repo, &commit, observer)?;
        let wanted = wanted(&entries);
        check_weights(repo, &entries, &wanted)?;
        let (weights, beside): (Vec<_>, Vec<_>) = wanted
            .into_iter()
            .partition(|entry| is_weights(&entry.name));
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
        for entry in weights {
            let path = snapshot.join(&entry.name);
            create(path.parent().unwrap_or(&path))?;
            let header = self.header(repo, &cached.commit, entry, observer)?;
            let write = || {
                let mut file = File::create(&path)?;
                file.write_all(&header)?;
                file.set_len(entry.size)
            };
            write().map_err(|source| HubError::io("write", &path, source))?;
        }
        Ok(Snapshot {
            folder: snapshot,
            commit: cached.commit,
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
        self.read_to(
            repo,
            commit,
            entry,
            FIRST.min(entry.size),
            &mut header,
            observer,
        )?;
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
        self.read_to(repo, commit, entry, end, &mut header, observer)?;
        header.truncate(end as usize);
        Ok(header)
    }

    /// Reads on until the first `end` bytes of a file are there. What breaks is asked for again.
    fn read_to(
        &self,
        repo: &str,
        commit: &str,
        entry: &Entry,
        end: u64,
        bytes: &mut Vec<u8>,
        observer: &dyn Observer,
    ) -> Result<(), HubError> {
        let mut failures = 0;
        while (bytes.len() as u64) < end {
            let from = bytes.len() as u64;
            let range = Some((from, Some(end)));
            let response = self.open_range(repo, commit, entry, range, observer)?;
            if range_start(&response) != Some(from) {
                // All of it comes: its beginning is what is wanted.
                bytes.clear();
            }
            let rest = end - bytes.len() as u64;
            let read = response.take(rest).read_to_end(bytes);
            if bytes.len() as u64 > from {
                failures = 0;
                continue;
            }
            failures += 1;
            if failures == super::http::ATTEMPTS {
                return Err(HubError::Unreachable {
                    endpoint: self.settings.endpoint.clone(),
                    what: format!("the header of {} of `{repo}`", entry.name),
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
