//! Reads small files whole, up to a limit; opens files without waiting for anybody.

use std::fs::{File, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use super::error::CheckpointError;
use super::limits::MAX_DETAIL_CHARS;
use errors::printable;

/// The bytes of a regular file of at most `limit` bytes.
///
/// # Errors
/// The file cannot be read, is none (a folder, a pipe), or is larger; then the error calls it `what`.
pub fn read_bounded(
    path: &Path,
    limit: u64,
    what: &'static str,
) -> Result<Vec<u8>, CheckpointError> {
    let io = |source| CheckpointError::io("read", path, source);
    let file = open_regular(path, OpenOptions::new().read(true))?;
    let found = file.metadata().map_err(io)?.len();
    let too_large = |found| CheckpointError::TooLarge {
        path: path.into(),
        what,
        limit,
        found,
    };
    if found > limit {
        return Err(too_large(found));
    }
    let mut bytes = Vec::new();
    file.take(limit + 1).read_to_end(&mut bytes).map_err(io)?;
    if bytes.len() as u64 > limit {
        return Err(too_large(bytes.len() as u64));
    }
    Ok(bytes)
}

/// Opens a regular file; links are followed.
///
/// # Errors
/// It cannot be opened, or is a folder, a pipe or a device: opening never waits.
pub fn open_regular(path: &Path, options: &OpenOptions) -> Result<File, CheckpointError> {
    opened(path, options, 0)
}

/// Opens a regular file that stands where it is called: a link is refused, so that nothing elsewhere is read or written.
///
/// # Errors
/// As of [`open_regular`], or it is a link.
pub fn open_no_link(path: &Path, options: &OpenOptions) -> Result<File, CheckpointError> {
    opened(path, options, libc::O_NOFOLLOW).map_err(|error| match error {
        _ if path.is_symlink() => CheckpointError::NotAFile {
            path: path.into(),
            hint: "it is a link: put the file itself there",
        },
        CheckpointError::Io { path, source, .. } => CheckpointError::io("open", &path, source),
        error => error,
    })
}

fn opened(path: &Path, options: &OpenOptions, flags: i32) -> Result<File, CheckpointError> {
    let none = || CheckpointError::NotAFile {
        path: path.into(),
        hint: "put the file itself there",
    };
    // Opening a pipe would wait for whoever is at its other end.
    let file = options
        .clone()
        .custom_flags(libc::O_NONBLOCK | flags)
        .open(path);
    let file = file.map_err(|source| match source.kind() {
        io::ErrorKind::IsADirectory => none(),
        // A pipe without a reader, or a socket.
        _ if source.raw_os_error() == Some(libc::ENXIO) => none(),
        _ => CheckpointError::io("read", path, source),
    })?;
    let metadata = file.metadata();
    let metadata = metadata.map_err(|source| CheckpointError::io("read", path, source))?;
    match metadata.is_file() {
        true => Ok(file),
        false => Err(none()),
    }
}

/// Makes another parser's message safe for a terminal: it may repeat hostile bytes, at any length.
pub(super) fn plain(message: &dyn std::fmt::Display) -> String {
    let text = message.to_string();
    match text.char_indices().nth(MAX_DETAIL_CHARS) {
        Some((end, _)) => format!("{}...", printable(&text[..end])),
        None => printable(&text).into_owned(),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::process::Command;

    use super::*;

    #[test]
    fn only_regular_files_are_opened() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        fs::write(path("file"), "text").unwrap();
        std::os::unix::fs::symlink("file", path("link")).unwrap();
        std::os::unix::fs::symlink("loop", path("loop")).unwrap();
        let made = Command::new("mkfifo").arg(path("pipe")).status().unwrap();
        assert!(made.success());
        assert_eq!(read_bounded(&path("link"), 4, "file").unwrap(), b"text");
        let (read, write) = (
            OpenOptions::new().read(true).clone(),
            OpenOptions::new().write(true).clone(),
        );
        for options in [&read, &write] {
            assert!(open_no_link(&path("file"), options).is_ok());
            for name in ["pipe", ".", "link", "loop"] {
                let error = open_no_link(&path(name), options).unwrap_err();
                assert!(
                    matches!(error, CheckpointError::NotAFile { .. }),
                    "{name}: {error}"
                );
            }
            for name in ["/dev/null", "/dev/zero"] {
                let error = open_regular(Path::new(name), options).unwrap_err();
                assert!(
                    matches!(error, CheckpointError::NotAFile { .. }),
                    "{name}: {error}"
                );
            }
        }
    }
}
