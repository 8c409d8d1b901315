//! Checks what was written before it is put in its place: cheap checks of the files in the destination.
//!
//! Knows the plan and what was written, but not how a destination stores it. A new check is a function here.

use std::collections::BTreeMap;

use super::destination::Staged;
use super::error::RunError;
use super::output::Written;
use checkpoint::ShardLayout;
use plan::Plan;

/// Checks every file.
///
/// # Errors
/// A file does not hold what was written.
pub(super) fn look(
    plan: &Plan,
    staged: &dyn Staged,
    written: &BTreeMap<String, Written>,
) -> Result<(), RunError> {
    plan.shards
        .iter()
        .try_for_each(|shard| check_weights(shard, staged))?;
    check_side_files(staged, written)
}

/// Checks that a weight file has its length and begins with its header.
pub(super) fn check_weights(shard: &ShardLayout, staged: &dyn Staged) -> Result<(), RunError> {
    let (header, len) = staged.read(&shard.file_name, shard.header.len() as u64)?;
    check_len(&shard.file_name, shard.file_size, len)?;
    match header == shard.header {
        true => Ok(()),
        false => Err(RunError::Damaged {
            file: shard.file_name.clone(),
            expected: "the header that was planned".to_owned(),
            found: "another".to_owned(),
        }),
    }
}

/// Checks that each other file has its length.
pub(super) fn check_side_files(
    staged: &dyn Staged,
    written: &BTreeMap<String, Written>,
) -> Result<(), RunError> {
    for (name, file) in written {
        let (_, len) = staged.read(name, 0)?;
        check_len(name, file.bytes, len)?;
    }
    Ok(())
}

fn check_len(file: &str, expected: u64, found: u64) -> Result<(), RunError> {
    match expected == found {
        true => Ok(()),
        false => Err(RunError::Damaged {
            file: file.to_owned(),
            expected: format!("{expected} bytes"),
            found: format!("{found} bytes"),
        }),
    }
}
