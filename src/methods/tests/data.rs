//! Methods that read statistics: cases by hand, twins in f64, identities.

use std::sync::Arc;

use nalgebra::DMatrix;

use super::super::{NeedOf, Statistic, TensorStatistics};
use super::*;
use numeric::NoMemory;

type Wide = DMatrix<f64>;

/// Statistics in memory: values for each matrix, and tokens.
#[derive(Debug)]
struct Held(Vec<Vec<f64>>, Option<u64>);

impl TensorStatistics for Held {
    fn read(&self, matrix: usize, first: u64, out: &mut [f64]) -> Result<(), NoMemory> {
        let first = first as usize;
        out.copy_from_slice(&self.0[matrix][first..first + out.len()]);
        Ok(())
    }

    fn tokens(&self, _matrix: usize) -> Option<u64> {
        self.1
    }
}

type Statistics = Vec<Option<Arc<dyn TensorStatistics>>>;

fn held(matrices: &[&[f64]], tokens: Option<u64>) -> Option<Arc<dyn TensorStatistics>> {
    let matrices = matrices.iter().map(|values| values.to_vec());
    Some(Arc::new(Held(matrices.collect(), tokens)))
}

/// Runs a method on one tensor, in values of F64.
fn run(
    case: &Case,
    shape: &[usize],
    in_out: bool,
    statistics: &[Option<Arc<dyn TensorStatistics>>],
    sources: &[Vec<f64>],
) -> Result<Vec<f64>, String> {
    let tensor = Tensor {
        name: NAME,
        shape,
        seed: SEED,
        base: case.base,
        sources: sources.len(),
        linear: Linear::new(shape, in_out),
        context: Context {
            statistics,
            ..Context::default()
        },
    };
    merged(
        case.method,
        &case.params(),
        &tensor,
        FloatType::F64,
        sources,
    )
}

fn noise(seed: usize, length: usize) -> Vec<f64> {
    let wave = |at: usize| {
        let product = ((at + 1) * (seed * 37 + 101)) as f64 * 0.7310585;
        // Not the wave itself: as a matrix it would have rank two.
        (product.sin() * 43_758.545_3).fract()
    };
    (0..length).map(wave).collect()
}

/// The Gram matrix of some inputs of that many features.
fn inputs(seed: usize, tokens: usize, features: usize) -> Wide {
    Wide::from_row_slice(tokens, features, &noise(seed, tokens * features))
}

fn rows(matrix: &Wide) -> Vec<f64> {
    matrix.transpose().as_slice().to_vec()
}

fn regmean(weights: &[f64], reduction: f64) -> Case {
    Case::new("regmean", None, weights).set("reduction", ParamValue::Number(reduction))
}

#[test]
fn what_is_needed_is_said() {
    for (name, kind, of) in [
        ("regmean", Statistic::Gram, NeedOf::EachModel),
        ("fisher", Statistic::Fisher, NeedOf::EachModel),
        ("aim", Statistic::Magnitude, NeedOf::Base),
    ] {
        let need = find(name).unwrap().info().statistics.unwrap();
        assert_eq!((need.kind, need.of), (kind, of));
    }
}

/// One output and two inputs.
#[test]
fn regmean_by_hand() {
    // The first model has seen the first input only, the second both: (1, 2) with diag(4, 0), (3, 6) with diag(4, 2). The
    // columns are (4 + 12) / 8 and 12 / 2.
    let statistics = [
        held(&[&[4.0, 0.0, 0.0, 0.0]], None),
        held(&[&[4.0, 0.0, 0.0, 2.0]], None),
    ];
    let sources = [vec![1.0, 2.0], vec![3.0, 6.0]];
    let of = |weights: &[f64], statistics: &Statistics, reduction| {
        run(
            &regmean(weights, reduction),
            &[1, 2],
            false,
            statistics,
            &sources,
        )
        .unwrap()
    };
    let statistics = statistics.to_vec();
    close(&of(&[1.0, 1.0], &statistics, 0.9), &[2.0, 6.0], 1e-6);
    // Three times the weight: (4 * 1 + 12 * 3) / 16.
    close(&of(&[1.0, 3.0], &statistics, 0.9), &[2.5, 6.0], 1e-6);
    // By token: the first has four times as many, so its squares count a quarter: (1 + 12) / 5.
    let by_token = vec![
        held(&[&[16.0, 0.0, 0.0, 0.0]], Some(16)),
        held(&[&[16.0, 0.0, 0.0, 8.0]], Some(4)),
    ];
    close(&of(&[1.0, 1.0], &by_token, 0.9), &[13.0 / 5.0, 6.0], 1e-6);
    // Inputs that always agree: G = (1, 1; 1, 1) for the first, twice the unit matrix for the second. With r = 1,
    // (x1 G1 + x2 G2) = (3 + 6, 3 + 12) and G = (3, 1; 1, 3), so that the result is ((27 - 15), (45 - 9)) / 8.
    let joined = vec![
        held(&[&[1.0, 1.0, 1.0, 1.0]], None),
        held(&[&[2.0, 0.0, 0.0, 2.0]], None),
    ];
    close(&of(&[1.0, 1.0], &joined, 1.0), &[1.5, 4.5], 1e-6);
    // With r = 0 the second elements go: (1 + 6) / 3 and (2 + 12) / 3.
    close(
        &of(&[1.0, 1.0], &joined, 0.0),
        &[7.0 / 3.0, 14.0 / 3.0],
        1e-6,
    );
    // No model had the second input: it takes the mean.
    let unseen = vec![
        held(&[&[4.0, 0.0, 0.0, 0.0]], None),
        held(&[&[4.0, 0.0, 0.0, 0.0]], None),
    ];
    close(&of(&[1.0, 3.0], &unseen, 1.0), &[2.5, 5.0], 1e-6);
    // Without statistics, or in a tensor that is no matrix of a linear layer, the mean.
    close(&of(&[1.0, 3.0], &vec![None, None], 0.9), &[2.5, 5.0], 1e-12);
    // Singular beyond the diagonal: refused with r = 1, solved below.
    let ones = || held(&[&[1.0, 1.0, 1.0, 1.0]], None);
    let singular = vec![ones(), ones()];
    let refused = run(
        &regmean(&[1.0, 1.0], 1.0),
        &[1, 2],
        false,
        &singular,
        &sources,
    );
    let refused = refused.unwrap_err();
    assert!(
        refused.contains("has no inverse") && refused.contains("`reduction` below 1"),
        "{refused}"
    );
    // Equal Gram matrices give the mean.
    close(&of(&[1.0, 1.0], &singular, 0.9), &[2.0, 4.0], 1e-6);
    let mixed = [
        held(&[&[1.0, 0.0, 0.0, 1.0]], None),
        held(&[&[1.0, 0.0, 0.0, 1.0]], Some(5)),
    ];
    let refused = run(&regmean(&[1.0, 1.0], 0.9), &[1, 2], false, &mixed, &sources);
    assert!(
        refused
            .unwrap_err()
            .contains("only some files of statistics")
    );
    let zero = run(
        &regmean(&[0.0, 0.0], 0.9),
        &[1, 2],
        false,
        &singular,
        &sources,
    );
    assert!(zero.unwrap_err().contains("are 0"));
}

/// The twin solves the normal equations, and no other weights have a smaller loss.
#[test]
fn regmean_is_the_least_squares_of_its_twin() {
    for (outs, ins, in_out) in [(5, 7, false), (12, 3, false), (6, 4, true)] {
        let weights = [1.0, 0.5, 2.0];
        let models: Vec<Wide> = (0..3)
            .map(|seed| Wide::from_row_slice(outs, ins, &noise(seed + 20, outs * ins)))
            .collect();
        let all: Vec<Wide> = (0..3).map(|seed| inputs(seed, 9 + 4 * seed, ins)).collect();
        for reduction in [1.0, 0.9, 0.3] {
            let gram = |x: &Wide, weight: f64| {
                let whole = x.transpose() * x * (weight / x.nrows() as f64);
                let diagonal = Wide::from_diagonal(&whole.diagonal());
                whole * reduction + diagonal * (1.0 - reduction)
            };
            let grams: Vec<Wide> = all
                .iter()
                .zip(weights)
                .map(|(x, weight)| gram(x, weight))
                .collect();
            let sum: Wide = grams.iter().sum();
            let right: Wide = models.iter().zip(&grams).map(|(x, gram)| x * gram).sum();
            let twin = right * sum.try_inverse().unwrap();
            let statistics: Statistics = all
                .iter()
                .map(|x| held(&[&rows(&(x.transpose() * x))], Some(x.nrows() as u64)))
                .collect();
            let stored = |matrix: &Wide| match in_out {
                true => matrix.as_slice().to_vec(),
                false => rows(matrix),
            };
            let sources: Vec<Vec<f64>> = models.iter().map(stored).collect();
            let shape = if in_out { [ins, outs] } else { [outs, ins] };
            let found = run(
                &regmean(&weights, reduction),
                &shape,
                in_out,
                &statistics,
                &sources,
            );
            let found = found.unwrap();
            close(&found, &stored(&twin), 1e-5);
            if reduction < 1.0 {
                continue;
            }
            // The loss: squares of outputs that differ from a model's, on that model's inputs.
            let loss = |merged: &Wide| -> f64 {
                let of = |((x, model), weight): ((&Wide, &Wide), f64)| {
                    weight / x.nrows() as f64 * (x * (merged - model).transpose()).norm_squared()
                };
                all.iter().zip(&models).zip(weights).map(of).sum()
            };
            let found = match in_out {
                true => Wide::from_column_slice(outs, ins, &found),
                false => Wide::from_row_slice(outs, ins, &found),
            };
            let least = loss(&found);
            for at in 0..outs * ins {
                for step in [-1e-2, 1e-2] {
                    let mut moved = found.clone();
                    moved.as_mut_slice()[at] += step;
                    assert!(loss(&moved) > least);
                }
            }
        }
    }
}

/// Each matrix of a stack has its own statistics.
#[test]
fn regmean_merges_stacked_experts_one_by_one() {
    let (one, other) = (&[4.0, 0.0, 0.0, 1.0][..], &[1.0, 0.0, 0.0, 4.0][..]);
    let statistics = vec![held(&[one, other], None), held(&[other, other], None)];
    let sources = [vec![1.0, 1.0, 1.0, 1.0], vec![6.0, 6.0, 6.0, 6.0]];
    let found = run(
        &regmean(&[1.0, 1.0], 0.9),
        &[2, 1, 2],
        false,
        &statistics,
        &sources,
    );
    // (4 + 6) / 5 and (1 + 24) / 5; and twice the mean.
    close(&found.unwrap(), &[2.0, 5.0, 3.5, 3.5], 1e-6);
}

#[test]
fn fisher_by_hand_and_by_its_twin() {
    let fisher = |weights: &[f64]| Case::new("fisher", None, weights);
    let statistics = vec![
        held(&[&[1.0, 0.0, 3.0, 0.0]], None),
        held(&[&[1.0, 2.0, 1.0, 0.0]], None),
    ];
    let sources = [vec![1.0; 4], vec![5.0; 4]];
    let of = |case: &Case| run(case, &[4], false, &statistics, &sources);
    // Alike; the second alone; three to one; where nobody cares, the mean by weights.
    close(
        &of(&fisher(&[1.0, 1.0])).unwrap(),
        &[3.0, 5.0, 2.0, 3.0],
        1e-15,
    );
    close(
        &of(&fisher(&[3.0, 1.0])).unwrap(),
        &[2.0, 5.0, 1.4, 2.0],
        1e-15,
    );
    // The first is of length root 10, the second of root 6.
    let normal = fisher(&[1.0, 1.0]).set("normalize", ParamValue::Bool(true));
    let (a, b) = (10f64.sqrt().recip(), 6f64.sqrt().recip());
    let mean = |x: f64, y: f64| (x * a + 5.0 * y * b) / (x * a + y * b);
    close(
        &of(&normal).unwrap(),
        &[mean(1.0, 1.0), 5.0, mean(3.0, 1.0), 3.0],
        1e-14,
    );
    // Values that are no means of squares.
    for wrong in [-1e-9, f64::NAN, f64::INFINITY] {
        let statistics = vec![
            held(&[&[1.0, wrong, 1.0, 1.0]], None),
            held(&[&[1.0; 4]], None),
        ];
        let refused = run(&fisher(&[1.0, 1.0]), &[4], false, &statistics, &sources);
        let refused = refused.unwrap_err();
        assert!(
            refused.contains("1 values of its Fisher information"),
            "{refused}"
        );
    }
    // Tensors without statistics take the mean; several blocks, against the formula.
    close(
        &run(&fisher(&[1.0, 3.0]), &[4], false, &[None, None], &sources).unwrap(),
        &[4.0; 4],
        1e-15,
    );
    let length = 40_000;
    let models: Vec<Vec<f64>> = (0..3).map(|seed| noise(seed, length)).collect();
    let weights = [0.2, 1.0, 0.7];
    let squares: Vec<Vec<f64>> = (0..3)
        .map(|seed| {
            noise(seed + 9, length)
                .iter()
                .map(|x| x * x * 1e-12)
                .collect()
        })
        .collect();
    let statistics: Statistics = squares.iter().map(|values| held(&[values], None)).collect();
    let found = run(&fisher(&weights), &[length], false, &statistics, &models).unwrap();
    let twin = (0..length).map(|at| {
        let terms = (0..3).map(|model| weights[model] * squares[model][at]);
        let sum: f64 = terms
            .clone()
            .zip(&models)
            .map(|(term, model)| term * model[at])
            .sum();
        sum / terms.sum::<f64>()
    });
    close(&found, &twin.collect::<Vec<f64>>(), 1e-13);
}

#[test]
fn aim_by_hand_and_by_its_twin() {
    let aim =
        |omega: f64| Case::new("aim", Some(0), &[0.0, 0.0]).set("omega", ParamValue::Number(omega));
    // Two outputs, three inputs, of which the second is the largest.
    let statistics = vec![held(&[&[1.0, 4.0, 0.0]], None), None];
    let sources = [
        vec![0.0, 0.0, 1.0, 0.0, 0.0, 1.0],
        vec![8.0, 8.0, 9.0, -8.0, -8.0, 1.0],
    ];
    let of = |case: &Case, statistics: &Statistics| {
        run(case, &[2, 3], false, statistics, &sources).unwrap()
    };
    // 1 - 1/4 * 1/2, 1 - 1/2, 1.
    close(
        &of(&aim(0.5), &statistics),
        &[7.0, 4.0, 9.0, -7.0, -4.0, 1.0],
        1e-15,
    );
    close(
        &of(&aim(0.0), &statistics),
        &[6.0, 0.0, 9.0, -6.0, 0.0, 1.0],
        1e-15,
    );
    for unchanged in [
        of(&aim(1.0), &statistics),
        of(&aim(0.2), &vec![None, None]),
        of(&aim(0.2), &vec![held(&[&[0.0; 3]], None), None]),
    ] {
        assert_eq!(unchanged, sources[1]);
    }
    // Stacks of matrices, either way round, over several blocks.
    for in_out in [false, true] {
        let (count, rows, columns) = (3, 70, 130);
        let inputs = if in_out { rows } else { columns };
        let magnitudes: Vec<Vec<f64>> = (0..count)
            .map(|seed| noise(seed + 3, inputs).iter().map(|x| x.abs()).collect())
            .collect();
        let slices: Vec<&[f64]> = magnitudes.iter().map(Vec::as_slice).collect();
        let length = count * rows * columns;
        let (base, merged) = (noise(1, length), noise(2, length));
        let twin = (0..length).map(|at| {
            let (matrix, row, column) = (at / (rows * columns), at / columns % rows, at % columns);
            let all = &magnitudes[matrix];
            let most = all.iter().fold(0f64, |most, x| most.max(*x));
            let share = all[if in_out { row } else { column }] / most;
            base[at] + (merged[at] - base[at]) * (1.0 - share * 0.7)
        });
        let twin: Vec<f64> = twin.collect();
        let statistics = vec![held(&slices, None), None];
        let found = run(
            &aim(0.3),
            &[count, rows, columns],
            in_out,
            &statistics,
            &[base, merged],
        );
        close(&found.unwrap(), &twin, 1e-14);
    }
}
