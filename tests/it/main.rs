//! Tests of the whole: the binary on small checkpoints that they make themselves.

mod determinism;
mod fixtures;
mod golden;
mod identity;
