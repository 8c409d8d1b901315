//! Tests of the whole: the binary on small checkpoints that they make themselves.

#![expect(clippy::unwrap_used, reason = "a test may panic")]

mod determinism;
mod fixtures;
mod golden;
mod identity;
mod recipes;
