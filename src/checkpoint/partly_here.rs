//! A model's files some of which lie elsewhere, as a source of tensors.

use std::collections::HashMap;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;

use super::behind::Reclaim;
use super::error::CheckpointError;
use super::files::Files;
use super::remote::{RemoteFile, RemoteFiles, RemotePlace};
use super::shard::Shard;
use super::source::{TensorEntry, TensorSource};
use numeric::Elements;

/// The tensors of files some of which lie elsewhere.
#[derive(Debug)]
pub(super) struct PartlyHere {
    files: Files,
    by_path: HashMap<PathBuf, Arc<dyn RemoteFile>>,
}

impl PartlyHere {
    pub(super) fn new(files: Files, remote: &RemoteFiles) -> PartlyHere {
        PartlyHere {
            files,
            by_path: remote.0.iter().cloned().collect(),
        }
    }

    fn is_remote(&self, shard: &Shard) -> bool {
        self.by_path.contains_key(&shard.path)
    }
}

impl TensorSource for PartlyHere {
    fn base(&self) -> Option<&dyn TensorSource> {
        Some(&self.files)
    }

    fn entries(&self) -> &[TensorEntry] {
        self.files.entries()
    }

    fn elements(&self, index: usize) -> Option<Box<dyn Elements + '_>> {
        self.files.elements(index)
    }

    fn bytes(&self, index: usize) -> Option<&[u8]> {
        self.files.bytes(index)
    }

    fn place(&self, index: usize) -> Option<(&Shard, u64)> {
        self.files.place(index)
    }

    fn remote(&self, index: usize) -> Vec<RemotePlace> {
        let place = self.files.place(index);
        let remote = place.and_then(|(shard, offset)| {
            let file = Arc::clone(self.by_path.get(&shard.path)?);
            Some(RemotePlace { file, offset })
        });
        remote.into_iter().collect()
    }

    fn release(&self, index: usize, bytes: Range<u64>, reclaim: Reclaim) {
        self.files.release(index, bytes, reclaim);
    }

    /// What is fetched is written by nobody else, and compared with its digest.
    fn check_unchanged(&self) -> Result<(), CheckpointError> {
        let shards = self.files.shards.iter();
        let mut here = shards.filter(|shard| !self.is_remote(shard));
        here.try_for_each(Shard::check_unchanged)
    }
}
