//! Lists every file below a folder, whatever its purpose, for signatures. Opens nothing, and enters no link.

use std::fs;
use std::path::{Path, PathBuf};

use super::error::CheckpointError;
use super::limits::MAX_TREE_ENTRIES;

/// Something below a folder, other than a folder.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TreeEntry {
    /// Its path from the folder: names joined by `/`. Bytes that are not UTF-8 are replaced.
    pub name: String,
    /// Where it is.
    pub path: PathBuf,
    /// What it is.
    pub kind: TreeKind,
}

/// What kind of entry it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TreeKind {
    /// A file, and its length.
    File(u64),
    /// A link to a file.
    Link {
        /// The file's length.
        bytes: u64,
        /// Whether the file is outside of the folder.
        outside: bool,
    },
    /// Something without bytes to sign, and why.
    Other(&'static str),
}

impl TreeKind {
    /// The length of the file, if there is one.
    pub fn bytes(&self) -> Option<u64> {
        match self {
            TreeKind::File(bytes) | TreeKind::Link { bytes, .. } => Some(*bytes),
            TreeKind::Other(_) => None,
        }
    }
}

/// Everything below a folder, sorted by name. Paths for which `skip` returns true are left out, with everything below
/// them. For a file: only itself, with the name `.`.
///
/// # Errors
/// A folder cannot be listed, or has more entries than any model.
pub fn tree(root: &Path, skip: &dyn Fn(&str) -> bool) -> Result<Vec<TreeEntry>, CheckpointError> {
    let io = |path: &Path, source| CheckpointError::io("list", path, source);
    let real = fs::canonicalize(root).map_err(|source| io(root, source))?;
    if !real.is_dir() {
        let kind = kind_of(&real, &real).map_err(|source| io(root, source))?;
        return Ok(vec![TreeEntry {
            name: ".".to_owned(),
            path: real,
            kind: kind.unwrap_or(TreeKind::Other("a folder")),
        }]);
    }
    let mut entries = Vec::new();
    let mut folders = vec![(real.clone(), String::new())];
    let mut seen = 0;
    while let Some((folder, prefix)) = folders.pop() {
        for entry in fs::read_dir(&folder).map_err(|source| io(&folder, source))? {
            let entry = entry.map_err(|source| io(&folder, source))?;
            seen += 1;
            if seen > MAX_TREE_ENTRIES {
                return Err(CheckpointError::TooLarge {
                    path: root.into(),
                    what: "number of files below the folder",
                    limit: MAX_TREE_ENTRIES as u64,
                    found: seen as u64,
                });
            }
            let own = entry.file_name();
            let name = format!("{prefix}{}", own.to_string_lossy());
            if skip(&name) {
                continue;
            }
            let path = entry.path();
            let kind = kind_of(&path, &real).map_err(|source| io(&path, source))?;
            match kind {
                None => folders.push((path, name + "/")),
                Some(_) if own.to_str().is_none() => entries.push(TreeEntry {
                    name,
                    path,
                    kind: TreeKind::Other("a file whose name is no UTF-8"),
                }),
                Some(kind) => entries.push(TreeEntry { name, path, kind }),
            }
        }
    }
    entries.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(entries)
}

/// The kind of entry at a path below `root`; none if it is a folder.
fn kind_of(path: &Path, root: &Path) -> std::io::Result<Option<TreeKind>> {
    let own = fs::symlink_metadata(path)?;
    if own.is_dir() {
        return Ok(None);
    }
    if own.is_file() {
        return Ok(Some(TreeKind::File(own.len())));
    }
    if !own.is_symlink() {
        return Ok(Some(TreeKind::Other("neither a file nor a folder")));
    }
    Ok(Some(match (fs::metadata(path), fs::canonicalize(path)) {
        (Ok(there), Ok(real)) if there.is_file() => TreeKind::Link {
            bytes: there.len(),
            outside: !real.starts_with(root),
        },
        (Ok(there), _) if there.is_dir() => TreeKind::Other("a link to a folder"),
        (Ok(_), _) => TreeKind::Other("a link to what is neither a file nor a folder"),
        (Err(_), _) => TreeKind::Other("a link to nothing"),
    }))
}

#[cfg(test)]
mod tests {
    use super::super::fixtures::write;
    use super::*;

    #[test]
    #[cfg(unix)]
    fn everything_is_listed_and_no_link_is_entered() {
        let around = tempfile::tempdir().unwrap();
        let root = around.path().join("model");
        write(&around.path().join("secret"), b"12345");
        for name in ["b", "a/z", "a.x", ".git/config", "a/.git"] {
            write(&root.join(name), name.as_bytes());
        }
        let link = |target: &str, name: &str| {
            std::os::unix::fs::symlink(target, root.join(name)).unwrap();
        };
        link("b", "inside");
        link("../secret", "outside");
        link("..", "up");
        link("gone", "nothing");
        link("/dev/null", "device");
        let entries = tree(&root, &|name| name == ".git").unwrap();
        let found: Vec<(&str, &TreeKind)> = entries
            .iter()
            .map(|entry| (entry.name.as_str(), &entry.kind))
            .collect();
        let outside = |bytes, outside| TreeKind::Link { bytes, outside };
        assert_eq!(
            found,
            [
                ("a.x", &TreeKind::File(3)),
                ("a/.git", &TreeKind::File(6)),
                ("a/z", &TreeKind::File(3)),
                ("b", &TreeKind::File(1)),
                (
                    "device",
                    &TreeKind::Other("a link to what is neither a file nor a folder")
                ),
                ("inside", &outside(1, false)),
                ("nothing", &TreeKind::Other("a link to nothing")),
                ("outside", &outside(5, true)),
                ("up", &TreeKind::Other("a link to a folder")),
            ]
        );
        let single = tree(&root.join("b"), &|_| false).unwrap();
        assert_eq!(single[0].name, ".");
        assert_eq!(single[0].kind, TreeKind::File(1));
    }
}
