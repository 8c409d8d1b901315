//! Mutated inputs: nothing panics or hangs, and every outcome is right.
//!
//! Each target builds small good files, changes some of them as a seed says, and holds what happens to rules: a merge
//! is refused with a message and leaves nothing, or its output verifies and passes `check`; nothing that was changed after a merge
//! verifies; no changed file holds under its old signature.
//!
//! The gate tries a few hundred seeds of each target. For as long as one likes, or to repeat one that failed:
//!
//! ```sh
//! WELDMENT_FUZZ=20000 cargo test --test it fuzz::
//! WELDMENT_FUZZ_SEED=4711 cargo test --test it fuzz::headers
//! ```
//!
//! If the process dies, the file `fuzz-<target>` in `target/tmp` holds the seed.

mod mutate;
mod random;
mod targets;
mod weld;

use std::any::Any;
use std::env;
use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::time::{Duration, Instant};

use random::Random;

/// Longer than any case should take, on a machine that is busy.
const LONGEST: Duration = Duration::from_secs(60);

/// A run stops after so many failures.
const MOST_FAILURES: usize = 5;

/// A number from an environment variable.
fn number(name: &str) -> Option<u64> {
    let text = env::var(name).ok()?;
    Some(text.parse().expect(name))
}

/// Tries a target with `cases` seeds, or as many as `WELDMENT_FUZZ` says.
fn fuzz(target: &str, cases: u64, case: fn(&mut Random) -> Result<(), String>) {
    let seeds = match number("WELDMENT_FUZZ_SEED") {
        Some(seed) => seed..seed + number("WELDMENT_FUZZ").unwrap_or(1),
        None => 0..number("WELDMENT_FUZZ").unwrap_or(cases),
    };
    let note = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("fuzz-{target}"));
    let mut failures = Vec::new();
    for seed in seeds {
        fs::write(&note, seed.to_string()).expect("the seed is noted");
        let started = Instant::now();
        let done = catch_unwind(AssertUnwindSafe(|| case(&mut Random::new(seed))));
        let failure = match done {
            Ok(Ok(())) if started.elapsed() < LONGEST => continue,
            Ok(Ok(())) => format!("took {:?}", started.elapsed()),
            Ok(Err(why)) => why,
            Err(panic) => format!("panicked: {}", said(&*panic)),
        };
        failures.push(format!("WELDMENT_FUZZ_SEED={seed}: {failure}"));
        if failures.len() == MOST_FAILURES {
            break;
        }
    }
    fs::remove_file(&note).expect("the note is there");
    assert!(
        failures.is_empty(),
        "fuzz::{target}:\n{}",
        failures.join("\n")
    );
}

/// The message of a panic.
fn said(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    text.or(panic.downcast_ref::<&str>().copied())
        .unwrap_or("(no message)")
}

macro_rules! targets {
    ($($name:ident: $cases:literal,)+) => {
        $(#[test]
        fn $name() {
            fuzz(stringify!($name), $cases, targets::$name);
        })+
    };
}

targets! {
    headers: 200,
    indexes: 150,
    recipes: 400,
    configs: 200,
    tokenizers: 200,
    pickles: 200,
    gguf_files: 200,
    adapters: 200,
    locks: 150,
    outputs: 100,
    bundles: 200,
    policies: 1000,
    templates: 200,
}
