//! A program with two outputs: values in eight bits, and a scale for each 128 x 128 of them.

use super::*;
use numeric::{NoMemory, Real};

/// Rows and columns that share one scale.
const SIDE: usize = 128;
/// The largest value of the format.
const LARGEST: f64 = 448.0;

#[derive(Clone, Copy)]
struct Scaled {
    rows: usize,
    columns: usize,
}

impl Scaled {
    fn scales_in_row(self) -> usize {
        self.columns.div_ceil(SIDE)
    }

    fn target(self) -> ResultUse<'static> {
        let rows = self.cost().block_len() / (SIDE * self.columns);
        let values = Output::new(1, FloatType::F8E4m3);
        let scales = Output {
            length: Some(Length {
                elements: (self.rows.div_ceil(SIDE) * self.scales_in_row()) as u64,
                block: rows * self.scales_in_row(),
            }),
            ..Output::new(2, FloatType::F32)
        };
        ResultUse::Outputs(vec![values, scales])
    }
}

impl<R: Real> Program<R> for Scaled {
    fn next(&self, _measured: &[Measured]) -> Pass<R> {
        Pass::Apply(Box::new(*self))
    }
}

impl AnyProgram for Scaled {
    fn cost(&self) -> Cost {
        Cost {
            row: SIDE * self.columns,
            more_outputs: 1,
            ..Cost::default()
        }
    }
}

impl<R: Real> Apply<R> for Scaled {
    fn block(&self, block: Block<'_, R>, out: &mut [R]) -> Result<(), NoMemory> {
        out.copy_from_slice(block.sources[0]);
        Ok(())
    }

    fn outputs(&self, block: Block<'_, R>, outputs: &mut [Vec<R>]) -> Result<(), NoMemory> {
        let [values, scales] = outputs else {
            panic!("two outputs");
        };
        self.block(block, values)?;
        let in_row = self.scales_in_row();
        for (rows, scales) in values
            .chunks_mut(SIDE * self.columns)
            .zip(scales.chunks_mut(in_row))
        {
            for (part, scale) in scales.iter_mut().enumerate() {
                let places = part * SIDE..self.columns.min((part + 1) * SIDE);
                let of_part = rows
                    .chunks(self.columns)
                    .flat_map(|row| &row[places.clone()]);
                let largest = of_part.fold(0f64, |most, value| most.max(value.to_f64().abs()));
                *scale = R::from_f64(largest / LARGEST);
                for row in rows.chunks_mut(self.columns) {
                    for value in &mut row[places.clone()] {
                        *value = R::from_f64(value.to_f64() / scale.to_f64());
                    }
                }
            }
        }
        Ok(())
    }
}

/// The largest magnitude of each square of 128 x 128 values.
fn largest(values: &[f64], rows: usize, columns: usize) -> Vec<f64> {
    let in_row = columns.div_ceil(SIDE);
    let mut largest = vec![0f64; rows.div_ceil(SIDE) * in_row];
    for (at, value) in values.iter().enumerate() {
        let of = at / columns / SIDE * in_row + at % columns / SIDE;
        largest[of] = largest[of].max(value.abs());
    }
    largest
}

#[test]
fn values_and_their_scales_come_of_one_pass() {
    // One scale for each block of the engine, several for each, and ragged ends.
    for (rows, columns) in [(700, 300), (1000, 20), (3, 500)] {
        let program = Scaled { rows, columns };
        let values = decode(
            FloatType::Bf16,
            &encode(FloatType::Bf16, &noise(1, rows * columns)),
        );
        let sources = [encode(FloatType::Bf16, &values)];
        let mut first = None;
        for threads in [1, 2, 5] {
            for memory in [least(threads, 1, program.cost()), 256 << 20] {
                let settings = settings(threads, memory);
                let limits = settings.limits(1, program.cost()).unwrap();
                let mean = || ResultUse::values(0, FloatType::F32);
                let jobs = [
                    job(FloatType::Bf16, &sources, &Mean, mean()),
                    job(FloatType::Bf16, &sources, &program, program.target()),
                ];
                let memory = Memory::default();
                let totals = execute(&jobs, &settings, &limits, &memory, &Nobody).unwrap();
                let found = memory.outputs();
                let bytes: usize = found.iter().map(Vec::len).sum();
                assert_eq!(totals.written, bytes as u64);
                assert_eq!(*first.get_or_insert_with(|| found.clone()), found);
            }
        }
        let found = first.unwrap();
        let scales = decode(FloatType::F32, &found[2]);
        let narrow = decode(FloatType::F8E4m3, &found[1]);
        let largest = largest(&values, rows, columns);
        assert_eq!((scales.len(), narrow.len()), (largest.len(), values.len()));
        for (scale, largest) in scales.iter().zip(&largest) {
            assert_eq!(*scale, f64::from((largest / LARGEST) as f32));
        }
        let in_row = columns.div_ceil(SIDE);
        for (at, (value, narrow)) in values.iter().zip(&narrow).enumerate() {
            let scale = scales[at / columns / SIDE * in_row + at % columns / SIDE];
            // Four bits of precision, and the smallest ULP where there are fewer.
            let bound = value.abs() / 16.0 + scale * 2f64.powi(-10);
            assert!((narrow * scale - value).abs() <= bound * 1.001, "{at}");
        }
    }
}

/// Values that do not fit one output are reported for that output.
#[test]
fn an_overflow_names_the_format_of_its_output() {
    let program = Scaled {
        rows: 2,
        columns: 3,
    };
    let sources = [encode(FloatType::F64, &[1e300; 6])];
    let settings = settings(2, 256 << 20);
    let limits = settings.limits(1, program.cost()).unwrap();
    let jobs = [job(FloatType::F64, &sources, &program, program.target())];
    let error = execute(&jobs, &settings, &limits, &Memory::default(), &Nobody).unwrap_err();
    let EngineError::Overflow { count, format, .. } = error else {
        panic!("{error}");
    };
    assert_eq!((count, format.as_str()), (1, "F32"));
}
