//! Which files belong to a model's folder: those in it, and the blobs of the Hub's cache that a snapshot links to.

use std::fs;
use std::io;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};

use super::error::{CheckpointError, Stray};
use super::limits::MAX_FOLDER_DEPTH;

/// A model's folder.
pub(super) struct Home {
    folder: PathBuf,
    /// The blobs of the cache, if the folder is or lies in a snapshot of one.
    blobs: Option<PathBuf>,
}

impl Home {
    /// The home of a folder's files.
    pub(super) fn find(folder: &Path) -> io::Result<Home> {
        let folder = fs::canonicalize(folder)?;
        let blobs = repository(&folder).map(|repository| repository.join("blobs"));
        // A link here would lead anywhere.
        let real = |blobs: &PathBuf| fs::symlink_metadata(blobs).is_ok_and(|found| found.is_dir());
        let blobs = blobs.filter(real);
        Ok(Home { folder, blobs })
    }

    /// Whether a path, without links, is of the folder or of its blobs.
    pub(super) fn holds(&self, path: &Path) -> bool {
        let in_blobs = |blobs: &PathBuf| path.starts_with(blobs);
        path.starts_with(&self.folder) || self.blobs.as_ref().is_some_and(in_blobs)
    }
}

/// The folder of a repository in the Hub's cache, of a path `repository/snapshots/COMMIT/...` in it.
fn repository(path: &Path) -> Option<&Path> {
    let named = |path: &&Path| path.file_name().is_some_and(|name| name == "snapshots");
    let mut ancestors = path.ancestors().skip(1).take(MAX_FOLDER_DEPTH);
    ancestors.find(named)?.parent()
}

/// What to do about a file that is not there: download it, if the folder is in the Hub's cache.
fn hint(folder: &Path) -> String {
    let download = || {
        let repository = repository(folder)?;
        let name = repository.file_name()?.to_str()?;
        let repo = name.strip_prefix("models--")?.replace("--", "/");
        let below = folder.strip_prefix(repository.join("snapshots")).ok()?;
        let commit = below.components().next()?.as_os_str().to_str()?;
        Some(format!(
            "the download is not complete, run `hf download {repo} --revision {commit}`"
        ))
    };
    download().unwrap_or_else(|| "remove the link, or put the file there".to_owned())
}

/// The path of a file in a model's folder, by its name: plain names joined by `/`. `None` if nothing is there.
///
/// # Errors
/// It is a link to nothing or out of the folder, or no regular file: it is not followed, and not read.
pub(super) fn file_in(folder: &Path, name: &str) -> Result<Option<PathBuf>, CheckpointError> {
    let path = folder.join(name);
    if fs::symlink_metadata(&path).is_err() {
        return Ok(None);
    }
    let error = |what: Stray, hint: String| CheckpointError::NotOfFolder {
        path: path.clone(),
        what,
        hint,
    };
    let Ok(real) = fs::canonicalize(&path) else {
        return Err(error(Stray::ToNothing, hint(folder)));
    };
    let io = |source| CheckpointError::io("open", folder, source);
    if !Home::find(folder).map_err(io)?.holds(&real) {
        let hint = "put a copy in the place of the link, if it is meant, or remove the link";
        return Err(error(Stray::Outside(real), hint.to_owned()));
    }
    let found = fs::metadata(&real).map_err(|source| CheckpointError::io("open", &path, source))?;
    if found.is_file() {
        return Ok(Some(path));
    }
    let kind = found.file_type();
    let what = match () {
        () if kind.is_dir() => "a folder",
        () if kind.is_fifo() => "a pipe",
        () if kind.is_socket() => "a socket",
        () => "a device",
    };
    let hint = "put the file in its place, or remove it";
    Err(error(Stray::NoFile(what), hint.to_owned()))
}
