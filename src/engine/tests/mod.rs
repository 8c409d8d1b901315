//! Programs that no method needs yet, on the real engine: several outputs, whole matrices.

mod outputs;
mod whole;

use std::collections::BTreeMap;
use std::io;
use std::sync::Mutex;

use super::*;
use numeric::{FloatType, NormalKey, Stored};

/// Keeps outputs by number, and checks that each byte is shown and written once.
#[derive(Default)]
struct Memory(Mutex<BTreeMap<usize, Kept>>);

#[derive(Default)]
struct Kept {
    bytes: Vec<u8>,
    shown: u64,
    written: u64,
}

impl Sink for Memory {
    fn start(&self, output: usize) -> u64 {
        // Not at a page, so that tiles begin in the middle of one.
        100 * output as u64
    }

    fn look(&self, output: usize, _offset: u64, bytes: &[u8]) {
        self.0.lock().unwrap().entry(output).or_default().shown += bytes.len() as u64;
    }

    fn write(&self, output: usize, offset: u64, bytes: Tile) -> io::Result<()> {
        let mut outputs = self.0.lock().unwrap();
        let kept = outputs.entry(output).or_default();
        let end = offset as usize + bytes.len();
        kept.bytes.resize(kept.bytes.len().max(end), 0xff);
        kept.bytes[offset as usize..end].copy_from_slice(&bytes);
        kept.written += bytes.len() as u64;
        Ok(())
    }
}

impl Memory {
    fn outputs(self) -> Vec<Vec<u8>> {
        let outputs = self.0.into_inner().unwrap().into_values();
        let bytes = outputs.map(|kept| {
            let len = kept.bytes.len() as u64;
            assert_eq!((kept.shown, kept.written), (len, len));
            kept.bytes
        });
        bytes.collect()
    }
}

/// An observer that never stops the work.
struct Nobody;

impl Observer for Nobody {
    fn advance(&self, _bytes: u64) {}
    fn cancelled(&self) -> bool {
        false
    }
}

fn settings(threads: usize, memory: u64) -> Settings {
    Settings {
        threads,
        memory,
        allow_non_finite: false,
        saturate: false,
    }
}

/// The least memory that this many sources and this cost need.
fn least(threads: usize, sources: usize, cost: Cost) -> u64 {
    let error = settings(threads, 0).limits(sources, cost).unwrap_err();
    error.needed
}

fn noise(seed: u64, count: usize) -> Vec<f64> {
    let key = NormalKey::new(seed, "engine", 0);
    (0..count as u64).map(|place| key.draw(place)).collect()
}

fn encode(format: FloatType, values: &[f64]) -> Vec<u8> {
    let mut bytes = vec![0; values.len() * format.size()];
    format.encode(&mut values.to_vec(), false, &mut bytes);
    bytes
}

fn decode(format: FloatType, bytes: &[u8]) -> Vec<f64> {
    let mut values = vec![0.0; bytes.len() / format.size()];
    format.decode(bytes, &mut values);
    values
}

/// A job that reads stored values.
fn job<'a>(
    format: FloatType,
    sources: &'a [Vec<u8>],
    program: &'a dyn AnyProgram,
    target: Target<'a>,
) -> Job<'a> {
    let elements = (sources[0].len() / format.size()) as u64;
    let stored = sources
        .iter()
        .map(|bytes| Box::new(Stored { bytes, format }) as _);
    Job {
        names: Box::new("w"),
        work: Work::Compute {
            sources: stored.collect(),
            elements,
            program,
            target,
        },
        after_all: false,
        sample: None,
    }
}

/// The mean of all sources, block by block: a job to run between those that are tested.
struct Mean;

impl<R: numeric::Real> Program<R> for Mean {
    fn next(&self, _measured: &[Measured]) -> Pass<R> {
        Pass::Apply(Box::new(Mean))
    }
}

impl AnyProgram for Mean {
    fn cost(&self) -> Cost {
        Cost::default()
    }
}

impl<R: numeric::Real> Apply<R> for Mean {
    fn block(&self, block: Block<'_, R>, out: &mut [R]) {
        for (at, out) in out.iter_mut().enumerate() {
            let sum: f64 = block.sources.iter().map(|values| values[at].to_f64()).sum();
            *out = R::from_f64(sum / block.sources.len() as f64);
        }
    }
}
