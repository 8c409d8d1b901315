//! Tests of the whole: the binary on small checkpoints that they make themselves.

#![expect(clippy::unwrap_used, reason = "a test may panic")]

mod cli;
mod determinism;
mod fixtures;
mod golden;
mod identity;
mod inputs;
mod kill;
mod memory;
mod outputs;
mod recipes;
mod refusals;
