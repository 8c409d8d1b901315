//! A checkpoint that no file holds: the result of a merge, or a router, as an input of another.

use std::fmt::Debug;

use super::error::CheckpointError;
use errors::Refusal;
use numeric::Elements;

/// The values of tensors that are made while they are read.
pub trait Made: Debug + Send + Sync {
    /// The bytes of a tensor, if a file has them as they are.
    fn bytes(&self, index: usize) -> Option<&[u8]>;
    /// The values of a tensor; `None` for integers and bools.
    fn elements(&self, index: usize) -> Option<Box<dyn Elements + '_>>;
    /// Whether [`prepare`](Self::prepare) reads results of merges, which must be decided by then.
    fn reads_results(&self) -> bool {
        false
    }
    /// Makes what must be there before values are read; asked once, before the first.
    fn prepare(
        &self,
        threads: usize,
        cancelled: &(dyn Fn() -> bool + Sync),
    ) -> Result<(), Refusal> {
        let _ = (threads, cancelled);
        Ok(())
    }
    /// What there is to be said of what was prepared.
    fn said(&self) -> Vec<String> {
        Vec::new()
    }
    /// Bytes that it holds at the end of a run at the most.
    fn held(&self) -> u64 {
        0
    }
    /// Whether every file that the values are made from is as it was.
    fn check_unchanged(&self) -> Result<(), CheckpointError>;
}
