//! Compares the SHA-256 that the Hub's cache claims for a file, by the name of its blob, with the file's bytes.

use std::fs::File;
use std::io::Read;

use sha2::{Digest, Sha256};

use super::destination::{DiskError, Step};
use super::error::RunError;
use checkpoint::{Checkpoint, Shard};
use engine::{Observer, scan};

/// Bytes that a worker reads at a time.
const BUFFER: usize = 1 << 20;

/// Checks every claim about the files of models.
///
/// # Errors
/// A file has another SHA-256 or cannot be read, or the observer cancelled.
pub(super) fn check(
    models: &[&Checkpoint],
    threads: usize,
    observer: &dyn Observer,
) -> Result<(), RunError> {
    let claims = models.iter().flat_map(|model| {
        let shards = model.shards().into_iter();
        shards.filter_map(|shard| Some((model.label(), shard, shard.hub_sha256()?)))
    });
    let claims: Vec<(&str, &Shard, String)> = claims.collect();
    let stopped = || observer.cancelled();
    let look = |_: &mut (), (model, shard, claimed): &(&str, &Shard, String)| {
        let found = sha256(shard, observer)?;
        match found == *claimed {
            true => Ok(()),
            false => Err(RunError::OtherDigest {
                model: (*model).to_owned(),
                file: shard.file_name(),
                expected: claimed.clone(),
                found,
            }),
        }
    };
    scan(&claims, threads, &stopped, look).map(drop)
}

/// The SHA-256 of a file, in hex.
fn sha256(shard: &Shard, observer: &dyn Observer) -> Result<String, RunError> {
    let unreadable = |error| DiskError::at(Step::Read, &shard.path)(error);
    let mut file = File::open(&shard.path).map_err(unreadable)?;
    let mut hasher = Sha256::new();
    let mut buffer = vec![0; BUFFER];
    loop {
        if observer.cancelled() {
            return Err(RunError::Cancelled);
        }
        match file.read(&mut buffer).map_err(unreadable)? {
            0 => return Ok(base16ct::lower::encode_string(&hasher.finalize())),
            read => hasher.update(&buffer[..read]),
        }
    }
}
