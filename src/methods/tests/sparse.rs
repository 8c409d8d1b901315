//! The methods that choose elements by order or by rank: cases worked by hand, f64 twins, identities.

use ndarray::Array1;
use proptest::prelude::*;

use super::super::ParamScope;
use super::*;

/// A merge of one tensor by any method.
#[derive(Debug, Clone)]
struct Merge {
    method: &'static str,
    tensor: Vec<(&'static str, ParamValue)>,
    /// One for each source but the base, which is the first.
    each: Vec<(&'static str, Vec<f64>)>,
    shape: Vec<usize>,
    name: &'static str,
    seed: u64,
}

impl Merge {
    fn new(method: &'static str) -> Self {
        Self {
            method,
            tensor: Vec::new(),
            each: Vec::new(),
            shape: Vec::new(),
            name: NAME,
            seed: SEED,
        }
    }

    fn number(mut self, name: &'static str, value: f64) -> Self {
        self.tensor.push((name, ParamValue::Number(value)));
        self
    }

    fn flag(mut self, name: &'static str, value: bool) -> Self {
        self.tensor.push((name, ParamValue::Bool(value)));
        self
    }

    fn word(mut self, name: &'static str, value: &'static str) -> Self {
        self.tensor.push((name, ParamValue::Word(value)));
        self
    }

    fn each(mut self, name: &'static str, values: &[f64]) -> Self {
        self.each.push((name, values.to_vec()));
        self
    }

    fn shape(mut self, shape: &[usize]) -> Self {
        self.shape = shape.to_vec();
        self
    }

    /// The value of a parameter for the whole tensor.
    fn value(&self, name: &str) -> Option<ParamValue> {
        self.params(1)
            .tensor
            .into_iter()
            .find(|(key, _)| *key == name)
            .map(|(_, value)| value)
    }

    /// The value of a parameter for the `slot`-th model besides the base.
    fn of(&self, name: &str, slot: usize) -> f64 {
        self.params(slot + 2)
            .optional_source_number(slot + 1, name)
            .expect("a number")
    }

    fn params(&self, sources: usize) -> TensorParams {
        let mut params = TensorParams {
            tensor: self.tensor.clone(),
            sources: vec![Vec::new(); sources],
        };
        for param in find(self.method).unwrap().info().params {
            let Some(default) = param.default else {
                continue;
            };
            match param.scope {
                ParamScope::Tensor => {
                    if !self.tensor.iter().any(|(name, _)| *name == param.name) {
                        params.tensor.push((param.name, default));
                    }
                }
                _ => params.sources[1..]
                    .iter_mut()
                    .for_each(|values| values.push((param.name, default))),
            }
        }
        for (name, values) in &self.each {
            for (source, &value) in params.sources[1..].iter_mut().zip(values) {
                source.retain(|(other, _)| other != name);
                source.push((name, ParamValue::Number(value)));
            }
        }
        params
    }

    fn run(&self, format: FloatType, sources: &[Vec<f64>]) -> Result<Vec<f64>, String> {
        let elements = sources[0].len();
        let shape = match self.shape.is_empty() {
            true => vec![elements],
            false => self.shape.clone(),
        };
        assert_eq!(shape.iter().product::<usize>(), elements);
        let tensor = Tensor {
            name: self.name,
            shape: &shape,
            seed: self.seed,
            base: Some(0),
            sources: sources.len(),
            linear: None,
            context: Context::default(),
        };
        let params = self.params(sources.len());
        merged(self.method, &params, &tensor, format, sources)
    }

    #[track_caller]
    fn gives(&self, sources: &[&[f64]], expected: &[f64]) {
        let sources: Vec<Vec<f64>> = sources.iter().map(|values| values.to_vec()).collect();
        close(
            &self.run(FloatType::F64, &sources).unwrap(),
            expected,
            1e-12,
        );
    }
}

/// Values about as large as weights, no two of equal magnitude.
fn noise(seed: u64, count: usize) -> Vec<f64> {
    let key = MaskKey::new(seed, "noise", 0);
    (0..count as u64)
        .map(|place| (f64::from(key.draw(place)) / 2f64.powi(32) - 0.5) / 8.0)
        .map(|value| f64::from(value as f32))
        .collect()
}

#[test]
fn breadcrumbs_by_hand() {
    let base: &[f64] = &[0.0; 10];
    let tuned: &[f64] = &[1.0, -2.0, 3.0, -4.0, 5.0, -6.0, 7.0, -8.0, 9.0, -10.0];
    let merge = |density, gamma| {
        Merge::new("breadcrumbs")
            .each("weight", &[1.0])
            .each("density", &[density])
            .each("gamma", &[gamma])
    };
    // Of ten elements, the two largest are dropped, the next five are kept, and the three smallest are dropped.
    let kept: &[f64] = &[0.0, 0.0, 0.0, -4.0, 5.0, -6.0, 7.0, -8.0, 0.0, 0.0];
    merge(0.5, 0.2).gives(&[base, tuned], kept);
    // With this density there is no room for outliers: the one element left over is dropped.
    let most: &[f64] = &[1.0, -2.0, 3.0, -4.0, 5.0, -6.0, 7.0, -8.0, 9.0, 0.0];
    merge(0.9, 0.5).gives(&[base, tuned], most);
    // Without outliers, the largest are kept, as in ties.
    let largest: &[f64] = &[0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 7.0, -8.0, 9.0, -10.0];
    merge(0.4, 0.0).gives(&[base, tuned], largest);
    merge(0.4, 0.05).gives(&[base, tuned], largest);
    // All elements, or none.
    merge(1.0, 0.2).gives(&[base, tuned], tuned);
    merge(0.0, 0.2).gives(&[base, tuned], base);
    merge(0.05, 0.2).gives(&[base, tuned], base);
    // Of equal magnitudes the lowest index is kept: at each threshold, and where the two coincide.
    let tied: &[f64] = &[3.0, 3.0, 1.0, 1.0, 1.0, -3.0, 1.0, 2.0, 3.0, 2.0];
    let lowest: &[f64] = &[3.0, 3.0, 1.0, 0.0, 0.0, 0.0, 0.0, 2.0, 0.0, 2.0];
    merge(0.5, 0.2).gives(&[base, tied], lowest);
    let alike: &[f64] = &[1.0; 10];
    let first: &[f64] = &[1.0, 1.0, 1.0, 1.0, 1.0, 0.0, 0.0, 0.0, 0.0, 0.0];
    merge(0.5, 0.2).gives(&[base, alike], first);
    // With a vote: plus wins where both are kept, minus where it is alone.
    let merge = Merge::new("breadcrumbs_ties")
        .each("weight", &[1.0, 1.0])
        .each("density", &[0.5, 0.5])
        .each("gamma", &[0.25, 0.25]);
    let (one, two): (&[f64], &[f64]) = (&[9.0, 4.0, -3.0, 1.0], &[1.0, -2.0, 9.0, 4.0]);
    merge.gives(&[&[0.0; 4], one, two], &[0.0, 4.0, -3.0, 4.0]);
    // Rescaled to the norm before: from 7 to 17.
    let merge = Merge::new("breadcrumbs")
        .each("weight", &[1.0])
        .each("density", &[0.5])
        .each("gamma", &[0.25])
        .word("rescale", "l1");
    merge.gives(
        &[&[0.0; 4], one],
        &[0.0, 4.0 * 17.0 / 7.0, -3.0 * 17.0 / 7.0, 0.0],
    );
}

#[test]
fn consensus_by_hand() {
    let (base, one, two): (&[f64], &[f64], &[f64]) =
        (&[0.0; 4], &[1.0, 4.0, 1.0, 0.0], &[1.0, -1.0, -1.0, 0.0]);
    let merge = |k, lambda: &[f64]| {
        Merge::new("consensus_ta")
            .each("weight", &[1.0, 1.0])
            .each("k", &[k, k])
            .each("lambda", lambda)
    };
    // The sums are 2, 3, 0, 0. The rest of each sum excludes the task vector itself.
    merge(0.0, &[1.0, 1.0]).gives(&[base, one, two], &[2.0, 3.0, 0.0, 0.0]);
    merge(1.0, &[1.0, 1.0]).gives(&[base, one, two], &[0.0, 3.0, 0.0, 0.0]);
    merge(1.0, &[0.5, 0.5]).gives(&[base, one, two], &[2.0, 3.0, 0.0, 0.0]);
    merge(2.0, &[0.5, 0.5]).gives(&[base, one, two], &[2.0, 0.0, 0.0, 0.0]);
    merge(2.0, &[0.5, 0.2]).gives(&[base, one, two], &[2.0, 3.0, 0.0, 0.0]);
    // Normalised, a sum of equal parts equals each part, and each outweighs a rest of zero.
    let merge = Merge::new("consensus_ta")
        .each("weight", &[1.0, 1.0])
        .each("k", &[2.0, 2.0])
        .flag("normalize", true);
    merge.gives(&[&[1.0], &[3.0], &[3.0]], &[3.0]);
    // In consensus_ties: trimmed to one element, the sums are 0, 4, 0. Agreement is measured with the whole task
    // vectors.
    let merge = |k| {
        Merge::new("consensus_ties")
            .each("weight", &[1.0, 1.0])
            .each("density", &[0.34, 0.34])
            .each("k", &[k, k])
    };
    let (one, two): (&[f64], &[f64]) = (&[1.0, 4.0, 0.0], &[-1.0, -3.0, 2.0]);
    merge(1.0).gives(&[&[0.0; 3], one, two], &[0.0, 4.0, 0.0]);
    merge(2.0).gives(&[&[0.0; 3], one, two], &[0.0, 0.0, 0.0]);

    let values = vec![vec![0.0], vec![1.0], vec![2.0]];
    for (k, part) in [
        ([3.0, 3.0], "number of task vectors, which is 2"),
        ([1.5, 1.5], "whole number"),
        ([-1.0, -1.0], "whole number"),
        ([1.0, 2.0], "all models share one `k`"),
    ] {
        let merge = Merge::new("consensus_ties")
            .each("weight", &[1.0, 1.0])
            .each("k", &k);
        let error = merge.run(FloatType::F64, &values).unwrap_err();
        assert!(error.contains(part) && error.contains("hint"), "{error}");
    }
}

#[test]
fn sce_by_hand() {
    let (base, one, two): (&[f64], &[f64], &[f64]) =
        (&[1.0; 3], &[3.0, 1.0, 2.0], &[0.0, 1.0, 3.0]);
    // Task vectors 2, 0, 1 and -1, 0, 2: energies of 5 and 5, so weights of one half. The signs are plus, -, plus.
    Merge::new("sce").gives(&[base, one, two], &[3.0, 1.0, 2.5]);
    // Variances of 9/4, 0, 1/4: two are not zero, and half of them is the first. Energies of 4 and 1.
    let merge = Merge::new("sce").number("select_topk", 0.5);
    merge.gives(&[base, one, two], &[3.0, 1.0, 1.0]);
    // Energies of 1 and 4: the mean of 1 and 2 with weights of 0.2 and 0.8.
    Merge::new("sce").gives(&[&[0.0], &[1.0], &[2.0]], &[1.8]);
    // However small the energies are; mergekit would weigh the models equally.
    Merge::new("sce").gives(&[&[0.0], &[1e-9], &[2e-9]], &[1.8e-9]);
    // Of equal variances, the lowest index is kept.
    let merge = Merge::new("sce").number("select_topk", 0.5);
    merge.gives(&[&[0.0; 4], &[2.0; 4], &[1.0; 4]], &[1.8, 1.8, 0.0, 0.0]);
    let merge = Merge::new("sce").number("select_topk", 0.0);
    merge.gives(&[base, one, two], base);
    let merge = Merge::new("sce").number("select_topk", 0.2);
    merge.gives(&[base, one, two], base);
    let error = merge
        .run(FloatType::F64, &[vec![0.0], vec![1.0]])
        .unwrap_err();
    assert!(error.contains("`select_topk`") && error.contains("hint"));
}

#[test]
fn arcee_fusion_by_hand() {
    // One row of importances proportional to 0, 1, 2, 3, 16: quartiles 1, 2, 3, so the threshold is 2 + 1.5 * 2.
    let base: &[f64] = &[0.0; 5];
    let tuned: &[f64] = &[0.0, 0.1, -0.2, 0.3, 1.6];
    Merge::new("arcee_fusion").gives(&[base, tuned], &[0.0, 0.0, 0.0, 0.0, 1.6]);
    // 5 reaches the threshold exactly; 4.9 does not.
    let merge = Merge::new("arcee_fusion");
    merge.gives(
        &[base, &[0.0, 0.25, 0.5, 0.75, 1.25]],
        &[0.0, 0.0, 0.0, 0.0, 1.25],
    );
    merge.gives(&[base, &[0.0, 0.25, 0.5, 0.75, 1.2]], base);
    // A row that is shifted as a whole has no divergence, so no importance. The quartiles of all eight are 0, 0 and
    // the importance of 0.1, so the threshold is 1.5 times that.
    let base: &[f64] = &[0.0; 8];
    let merge = Merge::new("arcee_fusion").shape(&[2, 4]);
    merge.gives(
        &[base, &[1.0, 1.0, 1.0, 1.0, 0.0, 0.1, 0.2, 0.9]],
        &[0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.2, 0.9],
    );
    // If no element is important, the threshold is zero, and all elements are taken.
    let moved: &[f64] = &[1.0, 1.0, 1.0, 1.0, 2.0, 2.0, 2.0, 2.0];
    merge.gives(&[base, moved], moved);
}

#[test]
fn della_keeps_by_rank() {
    let (rows, row) = (2_000, 25);
    let count = rows * row;
    // Magnitudes that rise along every row.
    let tuned: Vec<f64> = (0..count)
        .map(|place| (place % row + 1) as f64 * if place % 2 == 0 { 1.0 } else { -1.0 })
        .collect();
    let sources = vec![vec![0.0; count], tuned.clone()];
    let merge = |method| {
        Merge::new(method)
            .each("weight", &[1.0])
            .each("density", &[0.5])
            .each("epsilon", &[0.3])
            .shape(&[rows, row])
    };
    for method in ["della", "della_linear"] {
        let merged = merge(method)
            .word("rescale", "false")
            .run(FloatType::F32, &sources)
            .unwrap();
        assert!(
            merged
                .iter()
                .zip(&tuned)
                .all(|(out, x)| out == x || *out == 0.0)
        );
        for rank in 0..row {
            let kept = (0..rows)
                .filter(|line| merged[line * row + rank] != 0.0)
                .count() as f64;
            let chance = 0.2 + 0.6 * rank as f64 / (row - 1) as f64;
            // Five standard deviations of the binomial.
            let allowed = 5.0 * (rows as f64 * chance * (1.0 - chance)).sqrt();
            assert!(
                (kept - rows as f64 * chance).abs() < allowed,
                "{rank}: {kept}"
            );
        }
        let l1 = |values: &[f64]| values.iter().map(|value| value.abs()).sum::<f64>();
        let merged = merge(method).run(FloatType::F32, &sources).unwrap();
        assert!((l1(&merged) / l1(&tuned) - 1.0).abs() < 1e-6);
        // With `expectation`, each element is divided by its own probability.
        let merged = merge(method)
            .word("rescale", "expectation")
            .run(FloatType::F64, &sources)
            .unwrap();
        for (place, (out, x)) in merged.iter().zip(&tuned).enumerate() {
            let chance = 0.2 + 0.6 * (place % row) as f64 / (row - 1) as f64;
            assert!(*out == 0.0 || (out - x / chance).abs() < 1e-12 * x.abs());
        }
        // Five standard deviations of the mean.
        let bias = (l1(&merged) - l1(&tuned)) / l1(&tuned);
        assert!(bias.abs() < 0.03, "{bias}");
    }
}

#[test]
fn della_has_an_answer_for_every_shape_and_says_what_does_not_fit() {
    let merge = |density, epsilon, shape: &[usize]| {
        Merge::new("della_linear")
            .each("weight", &[1.0])
            .each("density", &[density])
            .each("epsilon", &[epsilon])
            .word("rescale", "false")
            .shape(shape)
    };
    let count = 4_000;
    let sources = vec![vec![0.0; count], vec![1.0; count]];
    // Rows of one element: the density. A single row of all elements: ties are ranked by index.
    let column = merge(0.5, 0.3, &[count, 1]).run(FloatType::F32, &sources);
    let kept = column
        .unwrap()
        .iter()
        .filter(|value| **value == 1.0)
        .count();
    assert!((1_850..2_150).contains(&kept), "{kept}");
    let line = merge(0.5, 0.3, &[count])
        .run(FloatType::F32, &sources)
        .unwrap();
    let first: f64 = line[..count / 2].iter().sum();
    let second: f64 = line[count / 2..].iter().sum();
    assert!((600.0..800.0).contains(&first), "{first}");
    assert!((1_200.0..1_400.0).contains(&second), "{second}");
    // A stack of matrices is thinned like the matrix of all its rows.
    let flat = merge(0.5, 0.3, &[80, 50]).run(FloatType::F32, &sources);
    let stack = merge(0.5, 0.3, &[4, 20, 50]).run(FloatType::F32, &sources);
    assert_eq!(flat.unwrap(), stack.unwrap());
    // A row longer than a block.
    let long = vec![vec![0.0; 40_000], noise(1, 40_000)];
    let merged = merge(0.5, 0.3, &[2, 20_000])
        .run(FloatType::F32, &long)
        .unwrap();
    let large = |values: &[f64]| values.iter().filter(|value| value.abs() > 0.045).count();
    let kept = large(&merged) as f64 / large(&long[1]) as f64;
    assert!((0.65..0.8).contains(&kept), "{kept}");
    for (density, epsilon) in [(0.9, 0.15), (0.1, 0.15), (0.5, 0.5)] {
        let error = merge(density, epsilon, &[count])
            .run(FloatType::F32, &sources)
            .unwrap_err();
        for part in ["`density`", "`epsilon`", "hint"] {
            assert!(error.contains(part), "{error}");
        }
    }
    // Keeping all elements or none takes no probabilities.
    assert_eq!(
        merge(1.0, 0.15, &[count])
            .run(FloatType::F32, &sources)
            .unwrap(),
        sources[1]
    );
    assert_eq!(
        merge(0.0, 0.15, &[count])
            .run(FloatType::F32, &sources)
            .unwrap(),
        sources[0]
    );
}

#[test]
fn della_depends_on_seed_name_and_place() {
    let count = 5_000;
    let sources = vec![vec![0.0; count], noise(1, count), noise(1, count)];
    let merge = Merge::new("della_linear")
        .each("weight", &[1.0, 10.0])
        .each("density", &[0.5, 0.5])
        .word("rescale", "false")
        .shape(&[50, 100]);
    let merged = merge.run(FloatType::F32, &sources).unwrap();
    assert_eq!(merge.run(FloatType::F32, &sources).unwrap(), merged);
    let seeded = Merge {
        seed: SEED + 1,
        ..merge.clone()
    };
    assert_ne!(seeded.run(FloatType::F32, &sources).unwrap(), merged);
    let renamed = Merge {
        name: "another.weight",
        ..merge
    };
    assert_ne!(renamed.run(FloatType::F32, &sources).unwrap(), merged);
    // The two masks differ: some elements are kept of one model only.
    let ratios = merged.iter().zip(&sources[1]).map(|(out, x)| out / x);
    assert!(ratios.clone().any(|ratio| (ratio - 1.0).abs() < 1e-3));
    assert!(ratios.clone().any(|ratio| (ratio - 10.0).abs() < 1e-2));
}

/// The methods of this file that take a weight.
const WEIGHTED: [&str; 6] = [
    "della",
    "della_linear",
    "breadcrumbs",
    "breadcrumbs_ties",
    "consensus_ta",
    "consensus_ties",
];

#[test]
fn three_copies_of_one_fine_tune() {
    // How many times the task vector is added, with weights of one; a wrong divisor shows at once.
    let count = 300;
    let tuned = noise(2, count);
    let sources = vec![
        vec![0.0; count],
        tuned.clone(),
        tuned.clone(),
        tuned.clone(),
    ];
    for (method, times) in [
        ("della", 1.0),
        ("della_linear", 3.0),
        ("breadcrumbs", 3.0),
        ("breadcrumbs_ties", 3.0),
        // The rest outweighs each of the three.
        ("consensus_ta", 0.0),
        ("consensus_ties", 1.0),
        ("sce", 1.0),
    ] {
        let merge = Merge::new(method).each("weight", &[1.0; 3]);
        let merged = merge.run(FloatType::F32, &sources).unwrap();
        let expected: Vec<f64> = tuned.iter().map(|value| value * times).collect();
        close(&merged, &expected, 1e-15);
    }
}

#[test]
fn copies_give_the_model_to_the_bit() {
    for format in [FloatType::F64, FloatType::F32, FloatType::Bf16] {
        let count = 2_000;
        let stored = |values: &[f64]| decode(format, &encode(format, values));
        let mut tuned = noise(3, count);
        tuned[..4].copy_from_slice(&[-0.0, 0.0, 1e-30, -1e-30]);
        let tuned = stored(&tuned);
        let base = stored(&noise(4, count).iter().map(|x| x * 20.0).collect::<Vec<_>>());
        let bits = |values: &[f64]| values.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
        let sources = vec![base.clone(), tuned.clone(), tuned.clone(), tuned.clone()];
        for method in WEIGHTED {
            let merge = Merge::new(method).each("weight", &[0.1, 0.2, 0.7]);
            let merged = merge.run(format, &sources).unwrap();
            assert_eq!(bits(&merged), bits(&tuned), "{method} in {format:?}");
            // All models are copies of the base, so whatever is dropped is zero.
            let merge = Merge::new(method)
                .each("weight", &[0.1, 0.2, 0.9])
                .each("density", &[0.4, 0.5, 0.6]);
            let merged = merge.run(format, &vec![base.clone(); 4]).unwrap();
            assert_eq!(bits(&merged), bits(&base), "{method} in {format:?}");
        }
        let merged = Merge::new("sce").run(format, &sources).unwrap();
        assert_eq!(bits(&merged), bits(&tuned), "sce in {format:?}");
        // If all models agree, there is no variance to select by.
        let merge = Merge::new("sce").number("select_topk", 0.9);
        assert_eq!(bits(&merge.run(format, &sources).unwrap()), bits(&base));
        let same = vec![tuned.clone(), tuned.clone()];
        let merged = Merge::new("arcee_fusion").run(format, &same).unwrap();
        assert_eq!(bits(&merged), bits(&tuned), "arcee_fusion in {format:?}");
    }
}

#[test]
fn exactly_k_stay_over_many_blocks() {
    // Magnitudes on a coarse grid, so that many tie at both thresholds.
    let count = 100_000;
    let tuned: Vec<f64> = noise(5, count)
        .into_iter()
        .map(|value| (value * 50.0).round() / 8.0)
        .map(|value| if value == 0.0 { 0.25 } else { value })
        .collect();
    for (density, gamma) in [
        (0.5, 0.1),
        (0.123, 0.3),
        (0.9, 0.01),
        (0.7, 0.0),
        (0.3, 0.7),
    ] {
        let merge = Merge::new("breadcrumbs")
            .each("weight", &[1.0])
            .each("density", &[density])
            .each("gamma", &[gamma]);
        let sources = [vec![0.0; count], tuned.clone()];
        let merged = merge.run(FloatType::F32, &sources).unwrap();
        let kept = merged.iter().filter(|value| **value != 0.0).count();
        assert_eq!(kept, (density * count as f64) as usize, "{density} {gamma}");
        let dropped = merged.iter().zip(&tuned).filter(|(out, _)| **out == 0.0);
        let most = merged
            .iter()
            .fold(0f64, |most, value| most.max(value.abs()));
        let least = merged
            .iter()
            .filter(|value| **value != 0.0)
            .fold(f64::INFINITY, |least, value| least.min(value.abs()));
        let above = dropped.clone().filter(|(_, x)| x.abs() > most).count();
        let top = (gamma * count as f64) as usize;
        assert!(above <= top);
        assert!(
            dropped
                .clone()
                .all(|(_, x)| x.abs() <= least || x.abs() >= most)
        );
        // The L1 norm is preserved if `rescale` asks for it.
        let merged = merge
            .word("rescale", "l1")
            .run(FloatType::F32, &sources)
            .unwrap();
        let norm = |values: &[f64]| values.iter().map(|value| value.abs()).sum::<f64>();
        assert!((norm(&merged) / norm(&tuned) - 1.0).abs() < 1e-9);
    }
}

#[test]
fn breadcrumbs_without_outliers_is_ties() {
    let count = 40_000;
    let sources: Vec<Vec<f64>> = (0..3)
        .map(|seed| {
            noise(seed, count)
                .iter()
                .map(|x| (x * 99.0).round() / 16.0)
                .collect()
        })
        .collect();
    let with = |method| {
        Merge::new(method)
            .each("weight", &[0.7, 0.4])
            .each("density", &[0.31, 0.77])
            .each("gamma", &[0.0, 0.0])
            .flag("normalize", false)
            .run(FloatType::F32, &sources)
            .unwrap()
    };
    assert_eq!(with("breadcrumbs_ties"), with("ties"));
}

#[test]
fn sce_does_not_depend_on_the_scale() {
    let count = 3_000;
    let sources: Vec<Vec<f64>> = (0..4).map(|seed| noise(seed, count)).collect();
    for share in [1.0, 0.4] {
        let merge = Merge::new("sce").number("select_topk", share);
        let merged = merge.run(FloatType::F32, &sources).unwrap();
        for scale in [2f64.powi(-60), 2f64.powi(40)] {
            let scaled: Vec<Vec<f64>> = sources
                .iter()
                .map(|values| values.iter().map(|x| x * scale).collect())
                .collect();
            let again = merge.run(FloatType::F32, &scaled).unwrap();
            let back: Vec<f64> = again.iter().map(|x| x / scale).collect();
            close(&back, &merged, 1e-15);
        }
    }
}

/// The elements that an interval of magnitudes keeps, by sorting.
fn band_twin(magnitudes: &[f32], skip: usize, count: usize) -> Vec<bool> {
    let mut sorted = magnitudes.to_vec();
    sorted.sort_by(|a, b| b.total_cmp(a));
    let mut keep = vec![false; magnitudes.len()];
    // Of each magnitude, as many as the sorted interval has, by lowest index.
    for &wanted in &sorted[skip..skip + count] {
        let place = (0..keep.len()).find(|&i| !keep[i] && magnitudes[i] == wanted);
        keep[place.expect("it is there")] = true;
    }
    keep
}

/// The task vector of the `slot`-th model, masked, and the factor that rescales it.
///
/// Multiplied in the order of the method, so that votes that cancel there also cancel here.
fn masked_twin(
    merge: &Merge,
    base: &Array1<f64>,
    source: &Array1<f64>,
    slot: usize,
) -> (Array1<f64>, f64) {
    let delta = source - base;
    let count = delta.len();
    let has = |name: &str| {
        let params = find(merge.method).unwrap().info().params;
        params.iter().any(|param| param.name == name)
    };
    let density = merge.of("density", slot);
    if density >= 1.0 || merge.method == "consensus_ta" {
        return (delta, 1.0);
    }
    let magnitudes: Vec<f32> = delta.iter().map(|x| x.abs() as f32).collect();
    let kept = (density * count as f64) as usize;
    let mut chances = vec![1.0; count];
    let keep: Vec<bool> = if has("epsilon") {
        let epsilon = merge.of("epsilon", slot);
        let row = *merge.shape.last().unwrap();
        let key = MaskKey::new(SEED, NAME, slot);
        for (place, chance) in chances.iter_mut().enumerate() {
            let start = place - place % row;
            let rank = (start..start + row)
                .filter(|&other| (magnitudes[other], other) < (magnitudes[place], place))
                .count();
            *chance = match row {
                1 => density,
                _ => density - epsilon + 2.0 * epsilon * rank as f64 / (row - 1) as f64,
            };
        }
        let draw = |place| f64::from(key.draw(place as u64)) / 2f64.powi(32);
        (0..count)
            .map(|place| density > 0.0 && draw(place) < chances[place])
            .collect()
    } else if has("gamma") {
        let top = (merge.of("gamma", slot) * count as f64) as usize;
        let bottom = count.saturating_sub(kept).saturating_sub(top);
        band_twin(&magnitudes, count - kept - bottom, kept)
    } else {
        band_twin(&magnitudes, 0, if density > 0.0 { kept.max(1) } else { 0 })
    };
    let norm = |values: &Array1<f64>| values.mapv(f64::abs).sum();
    let mut masked = Array1::from_shape_fn(count, |i| if keep[i] { delta[i] } else { 0.0 });
    let mut factor = 1.0;
    match merge.value("rescale") {
        Some(ParamValue::Word("l1")) if norm(&delta) >= 1e-7 && norm(&masked) >= 1e-7 => {
            factor = norm(&delta) / norm(&masked);
        }
        Some(ParamValue::Word("expectation")) => {
            masked /= &Array1::from(chances);
        }
        _ => {}
    }
    (masked, factor)
}

fn weighted_twin(merge: &Merge, sources: &[Array1<f64>]) -> Array1<f64> {
    let base = &sources[0];
    let number = |name| match merge.value(name) {
        Some(ParamValue::Number(number)) => number,
        _ => 1.0,
    };
    let votes: Vec<(f64, Array1<f64>)> = sources[1..]
        .iter()
        .enumerate()
        .map(|(slot, source)| {
            let weight = merge.of("weight", slot);
            let (masked, factor) = masked_twin(merge, base, source, slot);
            (weight, masked * (weight * factor))
        })
        .collect();
    let elected = matches!(
        merge.method,
        "della" | "breadcrumbs_ties" | "consensus_ties"
    );
    let agreeing = merge.method.starts_with("consensus");
    // Votes divided by their chances may cancel but for rounding, which then elects; NaN stands for that.
    let inexact = matches!(
        merge.value("rescale"),
        Some(ParamValue::Word("expectation"))
    );
    let mut out = base.clone();
    for place in 0..base.len() {
        let ballot: f64 = votes.iter().map(|(_, vote)| vote[place]).sum();
        let cast: f64 = votes.iter().map(|(_, vote)| vote[place].abs()).sum();
        if inexact && elected && cast > 0.0 && ballot.abs() <= 1e-12 * cast {
            out[place] = f64::NAN;
            continue;
        }
        let agrees = |vote: f64| !elected || (vote != 0.0 && (vote > 0.0) == (ballot >= 0.0));
        let added = votes.iter().filter(|(_, vote)| agrees(vote[place]));
        let total: f64 = added.clone().map(|(_, vote)| vote[place]).sum();
        let divisor: f64 = added.map(|(weight, _)| weight).sum();
        let mixed = match merge.value("normalize") {
            Some(ParamValue::Bool(true)) if divisor != 0.0 => total / divisor,
            _ => total,
        };
        let bar = |slot: usize| {
            let delta = sources[slot + 1][place] - base[place];
            delta.abs() > merge.of("lambda", slot) * (mixed - delta).abs()
        };
        if !agreeing {
            out[place] += number("lambda") * mixed;
        } else if (0..votes.len()).filter(|&slot| bar(slot)).count() as f64 >= merge.of("k", 0) {
            out[place] += mixed;
        }
    }
    out
}

fn sce_twin(merge: &Merge, sources: &[Array1<f64>]) -> Array1<f64> {
    let base = &sources[0];
    let Some(ParamValue::Number(share)) = merge.value("select_topk") else {
        panic!("sce has a share")
    };
    let mut deltas: Vec<Array1<f64>> = sources[1..].iter().map(|source| source - base).collect();
    let count = deltas.len() as f64;
    if share < 1.0 {
        let spread: Vec<f32> = (0..base.len())
            .map(|i| {
                let mean = deltas.iter().map(|delta| delta[i]).sum::<f64>() / count;
                let squares = deltas.iter().map(|delta| (delta[i] - mean).powi(2));
                (squares.sum::<f64>() / count).sqrt() as f32
            })
            // The values are on a grid: anything this small is the rounding error of a mean.
            .map(|spread| if spread < 1e-6 { 0.0 } else { spread })
            .collect();
        let varied = spread.iter().filter(|spread| **spread > 0.0).count();
        let keep = band_twin(&spread, 0, (share * varied as f64) as usize);
        for delta in &mut deltas {
            for (value, keep) in delta.iter_mut().zip(&keep) {
                *value = if *keep { *value } else { 0.0 };
            }
        }
    }
    let energies: Vec<f64> = deltas.iter().map(|delta| delta.dot(delta)).collect();
    let mut out = base.clone();
    for place in 0..base.len() {
        let ballot: f64 = deltas.iter().map(|delta| delta[place]).sum();
        let (mut total, mut divisor) = (0.0, 0.0);
        for (delta, energy) in deltas.iter().zip(&energies) {
            let delta = delta[place];
            if delta != 0.0 && (delta > 0.0) == (ballot >= 0.0) {
                total += energy * delta;
                divisor += energy;
            }
        }
        out[place] += if divisor > 0.0 { total / divisor } else { 0.0 };
    }
    out
}

fn arcee_twin(merge: &Merge, sources: &[Array1<f64>]) -> Array1<f64> {
    let (base, tuned) = (&sources[0], &sources[1]);
    let row = *merge.shape.last().unwrap();
    let softmax = |values: &Array1<f64>, start: usize| {
        let row = values.slice(ndarray::s![start..start + row]);
        let most = row.fold(f64::NEG_INFINITY, |a, &b| a.max(b));
        let exp = row.mapv(|x| (x - most).exp());
        let sum = exp.sum();
        exp / sum + 1e-8
    };
    let mut importance = Vec::new();
    for start in (0..base.len()).step_by(row) {
        let (p, q) = (softmax(tuned, start), softmax(base, start));
        let divergence: f64 = p.iter().zip(&q).map(|(p, q)| p * (p.ln() - q.ln())).sum();
        for place in start..start + row {
            importance.push(((tuned[place] - base[place]).abs() * divergence.max(0.0)) as f32);
        }
    }
    let mut sorted = importance.clone();
    sorted.sort_by(f32::total_cmp);
    let last = sorted.len() - 1;
    let quantile = |numerator: usize| f64::from(sorted[numerator * last / 4]);
    let threshold = quantile(2) + 1.5 * (quantile(3) - quantile(1));
    Array1::from_shape_fn(base.len(), |place| {
        // At the threshold itself, rounding decides; NaN stands for that.
        let importance = f64::from(importance[place]);
        if (importance - threshold).abs() <= 1e-5 * threshold + 1e-13 {
            f64::NAN
        } else if importance > threshold {
            tuned[place]
        } else {
            base[place]
        }
    })
}

/// A merge and sources on a coarse grid, so that magnitudes and signs often tie.
fn merges() -> impl Strategy<Value = (Merge, Vec<Vec<f64>>)> {
    let methods: Vec<&str> = WEIGHTED
        .into_iter()
        .chain(["sce", "arcee_fusion"])
        .collect();
    let pick =
        |values: &'static [f64], count| prop::collection::vec(prop::sample::select(values), count);
    (
        prop::sample::select(methods),
        2usize..5,
        1usize..9,
        1usize..9,
    )
        .prop_flat_map(move |(method, count, rows, row)| {
            let count = if method == "arcee_fusion" { 2 } else { count };
            let values = prop::collection::vec(
                prop::collection::vec((-16i32..16).prop_map(|n| f64::from(n) / 8.0), rows * row),
                count,
            );
            let others = count - 1;
            let numbers = (
                pick(&[0.1, 0.3, 0.5, 1.0, 1.7], others),
                pick(&[0.3, 0.37, 0.5, 0.7, 1.0], others),
                pick(&[0.0, 0.05, 0.2, 0.29], others),
                pick(&[0.0, 0.4, 0.77, 1.0], others),
                0..count,
            );
            let words = (any::<bool>(), 0usize..3, 1i32..20);
            (numbers, words, values).prop_map(move |(numbers, words, values)| {
                let (weights, densities, spreads, bars, k) = numbers;
                let (normalize, word, scale) = words;
                let merge = Merge::new(method).shape(&[rows, row]);
                let has = |name| {
                    let params = find(method).unwrap().info().params;
                    params.iter().any(|param| param.name == name)
                };
                if method == "arcee_fusion" {
                    return (merge, values);
                }
                if method == "sce" {
                    let share = if others == 1 { 1.0 } else { bars[0] };
                    return (merge.number("select_topk", share), values);
                }
                let rescale = if method.starts_with("della") {
                    ["l1", "expectation", "false"][word]
                } else {
                    ["l1", "false", "false"][word]
                };
                let mut merge = merge
                    .each("weight", &weights)
                    .each("density", &densities)
                    .flag("normalize", normalize)
                    .word("rescale", rescale);
                if has("epsilon") {
                    merge = merge.each("epsilon", &spreads);
                }
                if has("gamma") {
                    merge = merge.each("gamma", &spreads);
                }
                merge = if has("k") {
                    let k = vec![k as f64; others];
                    merge.each("k", &k).each("lambda", &bars)
                } else {
                    merge.number("lambda", f64::from(scale) / 10.0)
                };
                (merge, values)
            })
        })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(600))]
    #[test]
    fn every_sparse_method_agrees_with_its_twin((merge, sources) in merges()) {
        let arrays: Vec<Array1<f64>> = sources.iter().cloned().map(Array1::from).collect();
        let twin = match merge.method {
            "sce" => sce_twin(&merge, &arrays),
            "arcee_fusion" => arcee_twin(&merge, &arrays),
            _ => weighted_twin(&merge, &arrays),
        };
        let scale = twin.iter().fold(1.0, |most: f64, value| most.max(value.abs()));
        for (format, tolerance) in [(FloatType::F64, 1e-12), (FloatType::F32, 1e-12), (FloatType::Bf16, 4e-6)] {
            // Where votes nearly cancel or a threshold is nearly reached, rounding decides, and in f32 not as in
            // f64.
            let decides = matches!(merge.method, "della" | "breadcrumbs_ties" | "consensus_ta" | "consensus_ties");
            if format == FloatType::Bf16 && decides {
                continue;
            }
            let merged = merge.run(format, &sources).unwrap();
            for (place, (found, expected)) in merged.iter().zip(&twin).enumerate() {
                prop_assert!(
                    expected.is_nan() || (found - expected).abs() <= tolerance * scale,
                    "{format:?} [{place}]: found {found}, expected {expected}"
                );
            }
        }
    }
}
