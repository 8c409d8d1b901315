//! A checkpoint that no file holds: the result of a merge, as an input of another.

use std::fmt::Debug;

use super::error::CheckpointError;
use crate::numeric::Elements;

/// The values of tensors that are made while they are read.
pub trait Made: Debug + Send + Sync {
    /// The bytes of a tensor, if a file has them as they are.
    fn bytes(&self, index: usize) -> Option<&[u8]>;
    /// The values of a tensor; `None` for integers and bools.
    fn elements(&self, index: usize) -> Option<Box<dyn Elements + '_>>;
    /// Whether every file that the values are made from is as it was.
    fn check_unchanged(&self) -> Result<(), CheckpointError>;
}
