//! The local Hugging Face cache, in the layout of huggingface_hub: refs hold commits, snapshots hold files.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use serde_json::Value;

use super::bounded::read_bounded;
use super::limits::{MAX_REF_BYTES, MAX_TREE_BYTES};

/// The Hub repository and commit of a location.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HubSnapshot {
    /// `org/name`.
    pub repo: String,
    /// The requested revision; `main` by default.
    pub revision: String,
    /// The commit that the revision pointed to when it was downloaded.
    pub commit: String,
}

/// The revision that huggingface_hub uses by default.
pub(super) const DEFAULT_REVISION: &str = "main";

/// The longest repository id: huggingface_hub's own limit.
const MAX_REPO_ID_BYTES: usize = 96;

/// The version of the lists of files that is read.
const TREE_FORMAT: u64 = 1;

/// The most snapshots that a message names to choose from.
const SNAPSHOTS_SHOWN: usize = 3;

/// Whether the text can be `name` or `org/name` on the Hub, by huggingface_hub's own rules.
pub fn is_repo_id(text: &str) -> bool {
    let part = |part: &str| {
        !part.is_empty()
            && part
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.'))
            && !part.starts_with(['-', '.'])
            && !part.ends_with(['-', '.'])
    };
    text.len() <= MAX_REPO_ID_BYTES
        && !text.contains("--")
        && !text.contains("..")
        && match text.split_once('/') {
            Some((org, name)) => part(org) && part(name),
            None => part(text),
        }
}

/// The repository and the commit of a folder in any Hub cache: `models--org--name/snapshots/COMMIT`.
pub(super) fn snapshot_of(folder: &Path) -> Option<(String, String)> {
    let snapshots = folder.parent()?;
    let repo = snapshots.parent()?.file_name()?.to_str()?;
    let repo = repo.strip_prefix("models--")?.replace("--", "/");
    let commit = folder.file_name()?.to_str()?;
    (snapshots.file_name()? == "snapshots" && is_repo_id(&repo)).then(|| (repo, commit.into()))
}

/// A file as the Hub lists it.
struct Listed {
    /// The SHA-256 of its content and its size, if it is a large file.
    lfs: Option<(String, u64)>,
}

/// The Hub's list of the files of a commit, which huggingface_hub keeps beside the snapshots; none if there is no list
/// that can be read.
fn listed(folder: &Path) -> Option<BTreeMap<String, Listed>> {
    let (_, commit) = snapshot_of(folder)?;
    let trees = folder.parent()?.parent()?.join("trees");
    let path = trees.join(format!("{commit}.json"));
    let bytes = read_bounded(&path, MAX_TREE_BYTES, "list of files, in bytes").ok()?;
    let list: Value = serde_json::from_slice(&bytes).ok()?;
    if list.get("format_version").and_then(Value::as_u64) != Some(TREE_FORMAT) {
        return None;
    }
    let files = list.get("files")?.as_object()?.iter();
    let entry = |(name, file): (&String, &Value)| {
        let sha256 = file.get("lfs_sha256").and_then(Value::as_str);
        let size = file.get("lfs_size").and_then(Value::as_u64);
        let lfs = sha256.map(str::to_owned).zip(size);
        (name.clone(), Listed { lfs })
    };
    Some(files.map(entry).collect())
}

/// The names of the files that the Hub lists for a snapshot in its cache; none if nothing is listed.
pub(super) fn listed_names(folder: &Path) -> Option<BTreeSet<String>> {
    Some(listed(folder)?.into_keys().collect())
}

/// The SHA-256 that the Hub lists for a file of a snapshot, if the file has the listed size.
pub(super) fn listed_sha256(file: &Path, size: u64) -> Option<String> {
    let name = file.file_name()?.to_str()?;
    let (sha256, listed_size) = listed(file.parent()?)?.remove(name)?.lfs?;
    let hex = |b: u8| b.is_ascii_digit() || matches!(b, b'a'..=b'f');
    (listed_size == size && sha256.len() == 64 && sha256.bytes().all(hex)).then_some(sha256)
}

/// Whether a revision stays within `refs/`: git allows slashes, but no `..` and no absolute path.
pub(super) fn is_revision(text: &str) -> bool {
    !text.contains(['\\', ':', '\0'])
        && text
            .split('/')
            .all(|part| !matches!(part, "" | "." | "..") && !part.contains(".."))
}

/// Finds a snapshot's folder and commit, or says where it was looked for and what was missing.
pub(super) fn find(cache: &Path, repo: &str, revision: &str) -> Result<(PathBuf, String), String> {
    let repo_dir = cache.join(format!("models--{}", repo.replace('/', "--")));
    if !repo_dir.is_dir() {
        return Err(format!("{}", repo_dir.display()));
    }
    let commit = if is_commit(revision) {
        revision.to_owned()
    } else {
        read_ref(&repo_dir, revision)?
    };
    let snapshot = repo_dir.join("snapshots").join(&commit);
    if !snapshot.is_dir() {
        return Err(format!(
            "{} (no such snapshot{})",
            snapshot.display(),
            snapshots_there(&repo_dir)
        ));
    }
    Ok((snapshot, commit))
}

fn is_commit(text: &str) -> bool {
    text.len() == 40
        && text
            .bytes()
            .all(|b| b.is_ascii_digit() || matches!(b, b'a'..=b'f'))
}

fn read_ref(repo_dir: &Path, revision: &str) -> Result<String, String> {
    let path = repo_dir.join("refs").join(revision);
    if !path.is_file() {
        return Err(format!(
            "{} (no such revision{})",
            path.display(),
            snapshots_there(repo_dir)
        ));
    }
    let bytes = read_bounded(&path, MAX_REF_BYTES, "ref, in bytes").map_err(|e| e.to_string())?;
    match std::str::from_utf8(&bytes).map(str::trim) {
        Ok(commit) if is_commit(commit) => Ok(commit.to_owned()),
        _ => Err(format!("{} (holds no commit hash)", path.display())),
    }
}

fn snapshots_there(repo_dir: &Path) -> String {
    let mut commits: Vec<String> = fs::read_dir(repo_dir.join("snapshots"))
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| entry.file_name().into_string().ok())
        .filter(|name| is_commit(name))
        .collect();
    commits.sort();
    commits.truncate(SNAPSHOTS_SHOWN);
    if commits.is_empty() {
        String::new()
    } else {
        format!("; the cache holds {}", commits.join(", "))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn repo_ids_and_revisions_cannot_leave_the_cache() {
        for id in ["gpt2", "org/name", "Qwen/Qwen3-0.6B", "a/b_c.d"] {
            assert!(is_repo_id(id), "{id}");
        }
        for id in [
            "", "/", "/abs", "a/", "a/b/c", "../x", "a/..", "./a", "a--b/c", "a\\b", "a/b:c", "~",
        ] {
            assert!(!is_repo_id(id), "{id}");
        }
        for revision in ["main", "refs/pr/1", "v1.0", "feature/x"] {
            assert!(is_revision(revision), "{revision}");
        }
        for revision in [
            "",
            "/etc/passwd",
            "..",
            "../../x",
            "a/../b",
            "a//b",
            "a/",
            "C:x",
            "a\\b",
        ] {
            assert!(!is_revision(revision), "{revision}");
        }
    }
}
