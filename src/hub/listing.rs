//! What a repository holds at a revision: its commit, and its files with their lengths and digests.

use std::collections::BTreeSet;

use reqwest::Url;
use reqwest::blocking::Response;
use reqwest::header::LINK;
use serde_json::Value;

use super::error::HubError;
use super::http::{Failed, Known, Refused};
use super::{Hub, Observer};
use checkpoint::{ListedFile, is_path_within};

/// The most files that a repository may have.
const MAX_FILES: usize = 100_000;

/// A file as the Hub lists it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Entry {
    /// Its path in the repository: plain names joined by `/`.
    pub(crate) name: String,
    /// Its length in bytes.
    pub(crate) size: u64,
    /// The git hash of what git stores, which for a large file is a pointer.
    pub(crate) blob_id: String,
    /// The SHA-256 of a large file.
    pub(crate) sha256: Option<String>,
    /// Its hash in Xet, which is only kept for others that read the cache.
    pub(crate) xet_hash: Option<String>,
}

impl ListedFile for Entry {
    fn name(&self) -> &str {
        &self.name
    }

    fn size(&self) -> u64 {
        self.size
    }
}

impl Entry {
    /// The digest of its content, by which the cache names it.
    pub(crate) fn digest(&self) -> &str {
        self.sha256.as_deref().unwrap_or(&self.blob_id)
    }
}

impl Hub {
    /// The address of a model's page.
    pub(crate) fn page(&self, repo: &str) -> String {
        self.http.url(repo.split('/')).to_string()
    }

    /// What the Hub says of a model: at a revision if one is given.
    pub(crate) fn info(
        &self,
        repo: &str,
        revision: &str,
        observer: &dyn Observer,
    ) -> Result<Value, HubError> {
        let parts = ["api", "models"].into_iter().chain(repo.split('/'));
        let url = self.http.url(parts.chain(["revision", revision]));
        let response = self.http.get(&url, None, Known::Not, observer);
        let response = response.map_err(|failed| self.failed(failed, repo, revision, None))?;
        self.json(response, repo)
    }

    /// The commit that a revision of a model points to.
    pub(crate) fn commit(
        &self,
        repo: &str,
        revision: &str,
        observer: &dyn Observer,
    ) -> Result<String, HubError> {
        let info = self.info(repo, revision, observer)?;
        let commit = info.get("sha").and_then(Value::as_str);
        let commit = commit.filter(|commit| is_hex(commit, 40));
        commit
            .map(str::to_owned)
            .ok_or_else(|| HubError::Malformed {
                what: format!("`{repo}`"),
                problem: "names no commit".into(),
            })
    }

    /// The files of a model at a commit.
    pub(crate) fn files(
        &self,
        repo: &str,
        commit: &str,
        observer: &dyn Observer,
    ) -> Result<Vec<Entry>, HubError> {
        let parts = ["api", "models"].into_iter().chain(repo.split('/'));
        let mut url = self.http.url(parts.chain(["tree", commit]));
        url.set_query(Some("recursive=true"));
        let mut entries = Vec::new();
        let mut seen = BTreeSet::new();
        let mut pages = BTreeSet::new();
        loop {
            let response = self.http.get(&url, None, Known::Answered, observer);
            let response = response.map_err(|failed| self.failed(failed, repo, commit, None))?;
            let next = next_page(&response, &url);
            let page = self.json(response, repo)?;
            for value in page.as_array().ok_or_else(|| malformed(repo))? {
                if value.get("type").and_then(Value::as_str) == Some("directory") {
                    continue;
                }
                let entry = entry(value, repo)?;
                if entries.len() == MAX_FILES || !seen.insert(entry.name.clone()) {
                    return Err(malformed(repo));
                }
                entries.push(entry);
            }
            match next {
                // A list that leads back to itself would never end.
                Some(next) if pages.insert(next.clone()) => url = next,
                _ => return Ok(entries),
            }
        }
    }

    fn json(&self, response: Response, repo: &str) -> Result<Value, HubError> {
        let what = format!("`{repo}`");
        let bytes = self.http.text(response, &what)?;
        serde_json::from_slice(&bytes).map_err(|_| HubError::Malformed {
            what,
            problem: "is no JSON".into(),
        })
    }

    /// The error of a request about a model at a revision, or for a file of it.
    pub(crate) fn failed(
        &self,
        failed: Failed,
        repo: &str,
        revision: &str,
        file: Option<&Entry>,
    ) -> HubError {
        let what = match file {
            Some(file) => format!("{} of `{repo}`", file.name),
            None => format!("`{repo}`"),
        };
        let endpoint = self.settings.endpoint.clone();
        match failed {
            Failed::Stopped => HubError::Stopped,
            Failed::Unreachable(reason) => HubError::Unreachable {
                endpoint,
                what,
                reason,
            },
            // The repository was listed, so only this file is missing.
            Failed::Refused(refused) if file.is_some() && !matches!(refused.status, 401 | 403) => {
                HubError::Status {
                    endpoint,
                    status: refused.status,
                    what,
                    message: refused.message,
                }
            }
            Failed::Refused(refused) => self.refused(refused, repo, Some(revision)),
        }
    }

    /// The error of a refusal, by its status and the Hub's own name of it.
    pub(crate) fn refused(&self, refused: Refused, repo: &str, revision: Option<&str>) -> HubError {
        let known = self.http.is_known();
        let repo = repo.to_owned();
        match (refused.status, refused.code.as_deref(), revision) {
            (404, Some("RevisionNotFound"), Some(revision)) => HubError::NoRevision {
                page: self.page(&repo),
                repo,
                revision: revision.to_owned(),
            },
            (_, Some("GatedRepo"), _) | (403, ..) => HubError::Forbidden {
                page: self.page(&repo),
                gated: refused.code.as_deref() == Some("GatedRepo"),
                message: refused.message,
                repo,
            },
            // The Hub does not tell strangers whether a repository is missing or private.
            (401, Some("RepoNotFound"), _) | (404, ..) => HubError::NoRepository { repo, known },
            (401, ..) => HubError::Unauthorized { repo, known },
            (status, ..) => HubError::Status {
                endpoint: self.settings.endpoint.clone(),
                status,
                what: format!("`{repo}`"),
                message: refused.message,
            },
        }
    }
}

fn malformed(repo: &str) -> HubError {
    HubError::Malformed {
        what: format!("the files of `{repo}`"),
        problem: "is no list of files".into(),
    }
}

/// A file of the list: its name stays within a folder, its digests are digests.
fn entry(value: &Value, repo: &str) -> Result<Entry, HubError> {
    let text = |value: &Value, key: &str| value.get(key)?.as_str().map(str::to_owned);
    let read = || {
        let lfs = value.get("lfs").filter(|lfs| !lfs.is_null());
        let sha256 = lfs.map(|lfs| text(lfs, "oid").or_else(|| text(lfs, "sha256")));
        let sha256 = match sha256 {
            // A large file without a digest could not be checked.
            Some(sha256) => Some(sha256.filter(|sha256| is_hex(sha256, 64))?),
            None => None,
        };
        Some(Entry {
            name: text(value, "path")?,
            size: value.get("size")?.as_u64()?,
            blob_id: text(value, "oid").filter(|id| is_hex(id, 40))?,
            sha256,
            xet_hash: text(value, "xetHash").filter(|hash| is_hex(hash, 64)),
        })
    };
    let entry = read().ok_or_else(|| malformed(repo))?;
    match is_path_within(&entry.name) {
        true => Ok(entry),
        false => Err(HubError::BadName {
            repo: repo.to_owned(),
            name: entry.name,
        }),
    }
}

fn is_hex(text: &str, digits: usize) -> bool {
    let hex = |b: u8| b.is_ascii_digit() || matches!(b, b'a'..=b'f');
    text.len() == digits && text.bytes().all(hex)
}

/// The address of the next page of a list, on the same server.
fn next_page(response: &Response, url: &Url) -> Option<Url> {
    let links = response.headers().get(LINK)?.to_str().ok()?;
    let next = links
        .split(',')
        .find(|link| link.contains("rel=\"next\""))?;
    let next = next.split_once('<')?.1.split_once('>')?.0;
    url.join(next)
        .ok()
        .filter(|next| next.origin() == url.origin())
}
