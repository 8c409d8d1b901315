//! Tests of the whole: the binary on small checkpoints that they make themselves.

#![expect(clippy::unwrap_used, reason = "a test may panic")]

mod check;
mod cli;
mod comparable;
mod defects;
mod destination;
mod determinism;
mod diff;
mod documents;
mod edit;
mod examples;
mod exceptions;
mod faults;
mod fixtures;
mod folders;
mod forward;
mod fuzz;
mod geometric;
mod golden;
mod identity;
mod inputs;
mod kill;
mod layers;
mod lora;
mod memory;
mod modules;
mod moe;
mod mutate;
mod numerics;
mod outputs;
mod pages;
mod recipes;
mod refusals;
mod report;
mod rounding;
mod signing;
mod sources;
mod structure;
mod tables;
mod tokenizer;
mod values;
mod verify;
mod verify_folder;
mod verify_inputs;
mod whole;
