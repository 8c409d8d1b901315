//! Reads small files whole, up to a limit.

use std::fs::{self, File};
use std::io::Read;
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
    // Checked before opening: opening a FIFO for reading would block forever.
    if !fs::metadata(path).map_err(io)?.is_file() {
        return Err(CheckpointError::NotAFile {
            path: path.into(),
            hint: "put the file itself there",
        });
    }
    let file = File::open(path).map_err(io)?;
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

/// Makes another parser's message safe for a terminal: it may repeat hostile bytes, at any length.
pub(super) fn plain(message: &dyn std::fmt::Display) -> String {
    let text = message.to_string();
    match text.char_indices().nth(MAX_DETAIL_CHARS) {
        Some((end, _)) => format!("{}...", printable(&text[..end])),
        None => printable(&text).into_owned(),
    }
}
