//! Programs that no method needs yet, on the real engine: several outputs, whole matrices.

mod encoded;
mod outputs;
mod whole;

use std::collections::BTreeMap;
use std::io;
use std::sync::Mutex;

use super::*;
use numeric::{Elements, Fill, FloatType, NoMemory, NormalKey, Real, Stored};

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
        memory: Budget::Limit(memory),
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
    target: ResultUse<'a>,
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
    fn block(&self, block: Block<'_, R>, out: &mut [R]) -> Result<(), NoMemory> {
        for (at, out) in out.iter_mut().enumerate() {
            let sum: f64 = block.sources.iter().map(|values| values[at].to_f64()).sum();
            *out = R::from_f64(sum / block.sources.len() as f64);
        }
        Ok(())
    }
}

/// A source that the system has no memory for.
struct Refused;

impl<R: Real> Fill<R> for Refused {
    fn fill(&self, _first: u64, _out: &mut [R]) -> Result<usize, NoMemory> {
        Err(NoMemory { bytes: 4711 })
    }
}

impl Elements for Refused {
    fn format(&self) -> FloatType {
        FloatType::F32
    }
}

/// A program that the system has no memory for.
struct Greedy;

impl<R: Real> Program<R> for Greedy {
    fn next(&self, _measured: &[Measured]) -> Pass<R> {
        Pass::Apply(Box::new(Greedy))
    }
}

impl AnyProgram for Greedy {
    fn cost(&self) -> Cost {
        Cost::default()
    }
}

impl<R: Real> Apply<R> for Greedy {
    fn block(&self, _block: Block<'_, R>, _out: &mut [R]) -> Result<(), NoMemory> {
        numeric::filled(usize::MAX / 16, 0u64).map(drop)
    }
}

#[test]
fn what_a_source_or_a_program_has_no_memory_for_is_an_error() {
    let bytes = encode(FloatType::F32, &noise(1, 100));
    let stored = || -> Box<dyn Elements + '_> {
        Box::new(Stored {
            bytes: &bytes,
            format: FloatType::F32,
        })
    };
    // What a program decided is its own.
    let decided = [(); 2].map(|()| Decided::default());
    let derived = |source, program, decided| Derived {
        sources: vec![source],
        elements: 100,
        program,
        output: FloatType::F32,
        rounding: None,
        decided,
        allow_non_finite: false,
        saturate: false,
    };
    let cases: [(Box<dyn Elements + '_>, &dyn AnyProgram); 4] = [
        (Box::new(Refused), &Mean),
        (stored(), &Greedy),
        (
            Box::new(derived(Box::new(Refused), &Mean, &decided[0])),
            &Mean,
        ),
        (Box::new(derived(stored(), &Greedy, &decided[1])), &Mean),
    ];
    for (source, program) in cases {
        let job = Job {
            names: Box::new("w"),
            work: Work::Compute {
                sources: vec![source],
                elements: 100,
                program,
                target: ResultUse::values(0, FloatType::F32),
            },
            after_all: false,
            sample: None,
        };
        let settings = settings(2, 1 << 30);
        let limits = settings.limits(1, Cost::default()).unwrap();
        let sink = Memory::default();
        let error = execute(&[job], &settings, &limits, &sink, &Nobody).unwrap_err();
        assert!(matches!(error, EngineError::Memory { .. }), "{error}");
        assert!(error.hint().unwrap().contains("--memory"));
    }
}
