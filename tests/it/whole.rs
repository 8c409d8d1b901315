//! A program over whole matrices, planned and run. No method of the registry is one yet, so the test has its own.

use std::collections::BTreeMap;
use std::sync::Arc;

use ndarray::Array2;
use rayon::prelude::*;
use safetensors::Dtype;
use weldment::checkpoint::{ModelRef, Resolver};
use weldment::engine::{
    AnyProgram, Apply, Block, Budget, Cost, EngineError, Matrices, Measured, Pass, Program,
    Settings, Whole,
};
use weldment::numeric::{NoMemory, Real};
use weldment::plan::{
    self, Detail, Draft, Models, Operation, Options, Plan, PlannedTensor, Problems, Results,
    SourceTensor, TensorUsage,
};
use weldment::recipe::Rounding;
use weldment::run::{self, RunOptions, destination::Memory};

use crate::fixtures::{Spec, floats, llama};
use crate::sources::{Held, Silent, in_memory, model, values};

/// The first source plus a step of the Newton-Schulz iteration from the difference `D` of the second from it:
/// `1.5 D - 0.5 D D'D`. Every element of the result depends on all of both.
struct Newton {
    shape: [usize; 2],
}

impl<R: Real> Program<R> for Newton {
    fn next(&self, measured: &[Measured]) -> Pass<R> {
        match measured {
            [] => Pass::Whole(self.shape[1], Box::new(Step)),
            [step, ..] => Pass::Apply(Box::new(Added(Arc::clone(&step.matrix)))),
        }
    }
}

impl AnyProgram for Newton {
    fn cost(&self) -> Cost {
        let [rows, columns] = self.shape;
        Cost {
            measures: 1,
            // The result, a source or the difference, and the square matrix.
            matrix: 4 * (2 * rows * columns + columns * columns) as u64,
            ..Cost::default()
        }
    }
}

struct Step;

impl Whole for Step {
    fn compute(&self, sources: &dyn Matrices, result: &mut [f32]) -> Result<(), EngineError> {
        let (rows, columns) = (sources.rows(), sources.columns());
        let mut difference = vec![0f32; rows * columns];
        sources.read(0, 0, result)?;
        sources.read(1, 0, &mut difference)?;
        difference
            .iter_mut()
            .zip(&*result)
            .for_each(|(other, base)| *other -= base);
        let mut square = vec![0f32; columns * columns];
        let sum = |pairs: &mut dyn Iterator<Item = (f32, f32)>| -> f32 {
            pairs.map(|(a, b)| a * b).sum()
        };
        let by_row = square.par_chunks_mut(columns).enumerate();
        by_row.for_each(|(i, row)| {
            for (j, value) in row.iter_mut().enumerate() {
                let rows = difference.chunks(columns);
                *value = sum(&mut rows.map(|row| (row[i], row[j])));
            }
        });
        let by_row = result
            .par_chunks_mut(columns)
            .zip(difference.par_chunks(columns));
        by_row.for_each(|(out, row)| {
            for (j, value) in out.iter_mut().enumerate() {
                let column = square.chunks(columns).map(|of| of[j]);
                *value = 1.5 * row[j] - 0.5 * sum(&mut row.iter().copied().zip(column));
            }
        });
        Ok(())
    }
}

struct Added(Arc<Vec<f32>>);

impl<R: Real> Apply<R> for Added {
    fn block(&self, block: Block<'_, R>, out: &mut [R]) -> Result<(), NoMemory> {
        let step = &self.0[block.first as usize..];
        for ((out, base), step) in out.iter_mut().zip(block.sources[0]).zip(step) {
            *out = R::from_f64(base.to_f64() + f64::from(*step));
        }
        Ok(())
    }
}

/// The tensors of a model: those of the fixtures, and a matrix of several blocks.
fn specs(seed: u64) -> Vec<Spec> {
    let mut specs = llama(seed, 2, Dtype::F32);
    let values = (0..700 * 33).map(|at| (0.37 * at as f64 + seed as f64).sin() / 64.0);
    let name = "model.layers.0.extra.weight";
    specs.push(floats(name, Dtype::F32, &[700, 33], values));
    specs
}

/// Every matrix of the first model and a layer by the program; all else is the first model's.
fn planned(threads: usize, memory: u64) -> Result<Plan, Vec<String>> {
    let models =
        [("a", 1), ("b", 2)].map(|(name, seed)| (name, model(name, in_memory(specs(seed)))));
    let held = Held(BTreeMap::from(
        models.map(|(name, model)| (name.to_owned(), Arc::new(model))),
    ));
    let mut problems = Problems::default();
    let mut models = Models::default();
    for name in ["a", "b"] {
        let name = ModelRef::parse(name).unwrap();
        let resolver: &dyn Resolver = &held;
        assert!(models.add(&name, None, resolver, &Results::new(), &mut problems));
    }
    (models.merged, models.base) = (2, Some(0));
    let entries = models.checkpoints[0].tensors();
    let tensors = entries.iter().enumerate().map(|(tensor, entry)| {
        let (mut sources, mut operation) =
            (vec![SourceTensor { model: 0, tensor }], Operation::Copy);
        if let (&[rows, columns], true) = (&entry.shape[..], entry.name.contains("layers")) {
            let tensor = models.checkpoints[1].find(&entry.name).unwrap();
            sources.push(SourceTensor { model: 1, tensor });
            operation = Operation::Compute {
                name: "newton",
                program: Box::new(Newton {
                    shape: [rows, columns],
                }),
            };
        }
        let (name, shape) = (entry.name.clone(), entry.shape.clone());
        PlannedTensor::plain(name, entry.dtype, shape, sources, operation)
    });
    let draft = Draft {
        parts: Vec::new(),
        method: weldment::methods::find("linear").unwrap().info(),
        purpose: None,
        random: false,
        rounding: Rounding::Nearest,
        recipe: ("recipe.yml".into(), String::new()),
        tensors: tensors.collect(),
        equal: Vec::new(),
        usages: vec![vec![TensorUsage::Used(1); entries.len()]; 2],
        config: None,
        sidecars: Vec::new(),
        made: Vec::new(),
        vocabulary: None,
        notes: Vec::new(),
        models,
    };
    let options = Options {
        settings: Settings {
            threads,
            memory: Budget::Limit(memory),
            allow_non_finite: false,
            saturate: false,
        },
        seed: 0,
        shard_size: 5_000_000_000,
        tokenizer_from: None,
    };
    let plan = draft.finish(&options, &mut problems);
    plan.ok_or_else(|| problems.into_messages())
}

/// What the largest matrix needs: the difference and the result, and the square of its columns.
const NEED: u64 = 4 * (2 * 700 * 33 + 33 * 33);

#[test]
fn a_plan_states_the_memory_of_whole_matrices_and_a_run_writes_the_same_bytes_at_any_threads() {
    let mut first: Option<BTreeMap<String, Vec<u8>>> = None;
    for threads in [1, 2, 5] {
        let plan = planned(threads, 256 << 20).unwrap();
        assert_eq!(plan.cost.matrix, NEED);
        assert!(plan::text(&plan, Detail::All).contains("newton"));
        let out = Memory::new("out");
        run::run(&plan, &out, RunOptions::default(), &Silent).unwrap();
        let mut files = out.into_files();
        // The card and the lock state nothing of threads either.
        files.retain(|name, _| name.ends_with(".safetensors"));
        let first = first.get_or_insert_with(|| files.clone());
        assert!(*first == files, "{threads} threads");
    }
    let files = first.unwrap();
    let written = safetensors::SafeTensors::deserialize(&files["model.safetensors"]).unwrap();
    let mut computed = 0;
    for (a, b) in specs(1).iter().zip(&specs(2)) {
        let found = written.tensor(&a.name).unwrap();
        let &[rows, columns] = a.shape.as_slice() else {
            assert_eq!(found.data(), a.bytes);
            continue;
        };
        if !a.name.contains("layers") {
            assert_eq!(found.data(), a.bytes);
            continue;
        }
        computed += 1;
        let matrix = |spec: &Spec| Array2::from_shape_vec((rows, columns), values(spec)).unwrap();
        let (a, b) = (matrix(a), matrix(b));
        let difference = &b - &a;
        let cubed = difference.dot(&difference.t().dot(&difference));
        let expected = &a + 1.5 * difference - 0.5 * cubed;
        let found = found.data().as_chunks::<4>().0;
        for (found, expected) in found.iter().zip(&expected) {
            let found = f64::from(f32::from_le_bytes(*found));
            assert!(
                (found - expected).abs() < 1e-5 * (1.0 + expected.abs()),
                "{found} {expected}"
            );
        }
    }
    assert_eq!(computed, 7);
}

#[test]
fn a_matrix_that_does_not_fit_is_refused_by_the_plan() {
    assert!(planned(2, 256 << 20).unwrap().limits.peak > NEED);
    let messages = planned(2, NEED).err().unwrap();
    let expected = "for all of `model.layers.0.extra.weight`, whose shape is [700, 33]";
    assert!(messages[0].contains(expected), "{messages:?}");
}
