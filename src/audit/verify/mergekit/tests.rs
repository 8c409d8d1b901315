//! Cases worked by hand: where each rounding matters, where a choice is open, and where it is not.

use super::*;
use engine::{Block, Measured, Pass};
use methods::{Context, ParamValue};

/// The result of a replay, for sources that fit into one block and the values of a checkpoint.
fn run<R: Real>(
    next: &dyn Fn(&[Measured]) -> Pass<R>,
    most: usize,
    sources: &[&[f32]],
) -> Vec<f32> {
    let sources: Vec<Vec<R>> = sources
        .iter()
        .map(|source| source.iter().map(|&value| R::from_f32(value)).collect())
        .collect();
    let views: Vec<&[R]> = sources.iter().map(Vec::as_slice).collect();
    let block = Block {
        index: 0,
        first: 0,
        sources: &views,
        next: &[],
        carried: None,
    };
    let mut measured = Vec::new();
    loop {
        match next(&measured) {
            Pass::Measure(measure) | Pass::Sample(_, measure) => {
                let mut found = Measured {
                    sums: vec![0.0; measure.sums()],
                    counts: vec![0; measure.counts()],
                    ..Measured::default()
                };
                measure
                    .block(block, &mut found.sums, &mut found.counts)
                    .unwrap();
                measured.push(found);
                assert!(measured.len() <= most);
            }
            Pass::Apply(apply) => {
                let mut out = vec![R::ZERO; block.len()];
                apply.block(block, &mut out).unwrap();
                return out.into_iter().map(Real::to_f32).collect();
            }
            _ => panic!("no such pass"),
        }
    }
}

/// The same in both precisions.
fn both(replay: impl Fn() -> Box<dyn Replay>, sources: &[&[f32]]) -> (Vec<f32>, Evidence) {
    let (single, double) = (replay(), replay());
    let most = single.cost().measures;
    let of_single = run::<f32>(&|measured| single.next(measured), most, sources);
    let of_double = run::<f64>(&|measured| double.next(measured), most, sources);
    assert_eq!(of_single, of_double);
    assert_eq!(single.evidence(), double.evidence());
    (of_single, single.evidence())
}

struct Case {
    profile: Profile,
    method: &'static str,
    base: Option<usize>,
    weights: &'static [f64],
    more: Vec<(&'static str, ParamValue)>,
    density: f64,
    shape: Vec<usize>,
}

impl Case {
    fn new(profile: Profile, method: &'static str, weights: &'static [f64], length: usize) -> Self {
        Self {
            profile,
            method,
            base: None,
            weights,
            more: Vec::new(),
            density: 1.0,
            shape: vec![length],
        }
    }

    /// With the first source as the base.
    fn on_base(self) -> Self {
        Self {
            base: Some(0),
            ..self
        }
    }

    fn with(mut self, name: &'static str, value: ParamValue) -> Self {
        self.more.push((name, value));
        self
    }

    fn density(self, density: f64) -> Self {
        Self { density, ..self }
    }

    fn replay(&self) -> Box<dyn Replay> {
        let base = self.base.map(|_| Vec::new());
        let each = self.weights.iter().map(|&weight| {
            vec![
                ("weight", ParamValue::Number(weight)),
                ("density", ParamValue::Number(self.density)),
            ]
        });
        // Numbers that the case leaves open are the registry's.
        let mut tensor = self.more.clone();
        for info in methods::find(self.method)
            .expect("it is known")
            .info()
            .params
        {
            if let Some(number @ ParamValue::Number(_)) = info.default
                && !tensor.iter().any(|(name, _)| *name == info.name)
            {
                tensor.push((info.name, number));
            }
        }
        let params = TensorParams {
            tensor,
            sources: base.into_iter().chain(each).collect(),
        };
        let tensor = Tensor {
            name: "t",
            shape: &self.shape,
            seed: 0,
            base: self.base,
            sources: params.sources.len(),
            linear: None,
            context: Context::default(),
        };
        replay(self.profile, self.method, &params, &tensor, FloatType::F32).expect("it is known")
    }

    fn makes(&self, sources: &[&[f32]]) -> (Vec<f32>, Evidence) {
        both(|| self.replay(), sources)
    }
}

const NOTHING: &[f32] = &[0.0];
const STEP: f32 = 1.0 / 128.0;

#[test]
fn a_weight_is_rounded_before_it_is_used() {
    // 0.749 is 0.75 in bfloat16. The sum is one and a half ULPs above one and rounds to even: two ULPs above.
    let case = |profile| Case::new(profile, "task_arithmetic", &[0.749, 0.749], 1).on_base();
    let sources: [&[f32]; 4] = [&[1.0], &[1.0 + STEP], &[1.0 + STEP], NOTHING];
    let (made, _) = case(Profile::Bfloat16).makes(&sources);
    assert_eq!(made, [1.0 + 2.0 * STEP]);
    let (made, _) = case(Profile::Float32).makes(&sources);
    assert_eq!(made, [1.0 + 2.0 * 0.749f32 * STEP]);
    assert_eq!(half::bf16::from_f32(made[0]).to_f32(), 1.0 + STEP);
}

#[test]
fn a_sum_is_rounded_once_and_each_operation_after_it() {
    let task = |weights, lambda| {
        Case::new(Profile::Bfloat16, "task_arithmetic", weights, 1)
            .on_base()
            .with("lambda", ParamValue::Number(lambda))
    };
    let half: &[f32] = &[STEP / 2.0];
    // Half an ULP is lost; two halves that are added before rounding are an ULP.
    let sources = [NOTHING, &[1.0], half, NOTHING];
    assert_eq!(task(&[1.0, 1.0], 1.0).makes(&sources).0, [1.0]);
    let sources = [NOTHING, &[1.0], half, half, NOTHING];
    assert_eq!(task(&[1.0, 1.0, 1.0], 1.0).makes(&sources).0, [1.0 + STEP]);
    // lambda is applied later: a factor of two does not restore what the sum lost.
    let sources = [NOTHING, &[1.0], half, NOTHING];
    assert_eq!(task(&[1.0, 1.0], 2.0).makes(&sources).0, [2.0]);
    // The difference is computed first: 1 + ULP minus half an ULP rounds to even, to 1.
    let sources = [half, &[1.0 + STEP], NOTHING];
    assert_eq!(task(&[0.0], 1.0).makes(&sources).0, [STEP / 2.0]);
    assert_eq!(task(&[1.0], 1.0).makes(&sources).0, [1.0]);
}

#[test]
fn linear_is_a_float32_sum_of_rounded_inputs() {
    // Inputs are rounded to bfloat16, the mean is in float32, and the result is rounded to bfloat16.
    let case = Case::new(Profile::Bfloat16, "linear", &[0.749, 0.251], 1)
        .with("normalize", ParamValue::Bool(true));
    let sources: [&[f32]; 3] = [&[1.0 + 0.4 * STEP], &[1.0 + 2.0 * STEP], NOTHING];
    assert_eq!(case.makes(&sources).0, [1.0 + STEP]);
    let case = Case::new(Profile::Float32, "linear", &[2.0, 1.0], 1)
        .with("normalize", ParamValue::Bool(true));
    assert_eq!(case.makes(&[&[1.0], &[0.0], NOTHING]).0, [2.0f32 / 3.0]);
}

#[test]
fn a_scale_is_a_float32_number() {
    let params = TensorParams {
        tensor: Vec::new(),
        sources: vec![vec![("scale", ParamValue::Number(0.749))]],
    };
    let tensor = Tensor {
        name: "t",
        shape: &[1],
        seed: 0,
        base: None,
        sources: 1,
        linear: None,
        context: Context::default(),
    };
    let of = |profile| replay(profile, "passthrough", &params, &tensor, FloatType::F32).unwrap();
    let sources: [&[f32]; 2] = [&[128.0], NOTHING];
    // 95.872, not 96 as it would be with 0.75; then rounded to a multiple of one half.
    assert_eq!(both(|| of(Profile::Bfloat16), &sources).0, [96.0]);
    assert_eq!(
        both(|| of(Profile::Float32), &sources).0,
        [128.0 * 0.749f32]
    );
}

fn ties(length: usize) -> Case {
    Case::new(Profile::Float32, "ties", &[1.0], length)
        .on_base()
        .density(0.5)
        .with("normalize", ParamValue::Bool(true))
}

#[test]
fn of_equal_magnitudes_any_may_stay_but_as_many_as_they_must() {
    let case = ties(4);
    let base: &[f32] = &[0.0; 4];
    let tuned: &[f32] = &[1.0, -1.0, 1.0, 0.5];
    for found in [
        [1.0, -1.0, 0.0, 0.0],
        [1.0, 0.0, 1.0, 0.0],
        [0.0, -1.0, 1.0, 0.0],
    ] {
        let (made, evidence) = case.makes(&[base, tuned, &found]);
        assert_eq!(made, found);
        assert_eq!(evidence.tied, 3);
    }
    // One element is too few.
    let (made, _) = case.makes(&[base, tuned, &[1.0, 0.0, 0.0, 0.0]]);
    assert_eq!(made, [1.0, -1.0, 1.0, 0.0]);
    // The smaller one cannot be kept: it alone is wrong.
    let (made, _) = case.makes(&[base, tuned, &[1.0, -1.0, 0.0, 0.5]]);
    assert_eq!(made, [1.0, -1.0, 0.0, 0.0]);
    // Three of five are too many.
    let tuned_five: &[f32] = &[1.0, -1.0, 1.0, 1.0, 0.5];
    let found: &[f32] = &[1.0, -1.0, 1.0, 0.0, 0.0];
    let (made, _) = ties(5).makes(&[&[0.0; 5], tuned_five, found]);
    assert_eq!(made, [1.0, -1.0, 1.0, 1.0, 0.0], "k is two");
    // Only the value that no choice results in is wrong.
    let (made, _) = case.makes(&[base, tuned, &[7.0, -1.0, 1.0, 0.0]]);
    assert_eq!(made, [1.0, -1.0, 1.0, 0.0]);
}

#[test]
fn without_equal_magnitudes_nothing_is_taken_from_what_is_there() {
    let tuned: &[f32] = &[1.0, -2.0, 3.0, 0.5];
    let (made, evidence) = ties(4).makes(&[&[0.0; 4], tuned, &[9.0; 4]]);
    assert_eq!(made, [0.0, -2.0, 3.0, 0.0]);
    assert_eq!(evidence, Evidence::default());
    // All equal elements are kept if k asks for all of them.
    let (made, evidence) = ties(2)
        .density(0.99)
        .makes(&[&[0.0; 2], &[1.0, 0.5], &[9.0; 2]]);
    assert_eq!((made, evidence.tied), (vec![1.0, 0.0], 0));
}

#[test]
fn weights_from_an_angle_are_found_near_the_recomputed_ones_only() {
    let case = Case::new(Profile::Float32, "slerp", &[0.0], 2)
        .on_base()
        .with("t", ParamValue::Number(0.25));
    let (x, y): (&[f32], &[f32]) = (&[1.0, 0.0], &[0.0, 1.0]);
    let angle = std::f32::consts::FRAC_PI_2;
    let right = [(0.75 * angle).sin(), (0.25 * angle).sin()];
    let (made, evidence) = case.makes(&[x, y, &right]);
    assert_eq!((made, evidence.shifted), (right.to_vec(), 0.0));
    let near = [right[0].next_up(), right[1].next_down()];
    let (made, evidence) = case.makes(&[x, y, &near]);
    assert_eq!(made, near);
    assert!(
        evidence.shifted > 0.0 && evidence.shifted < 1e-6,
        "{evidence:?}"
    );
    // t = 0.251 is not near.
    let other = [(0.749 * angle).sin(), (0.251 * angle).sin()];
    let (made, _) = case.makes(&[x, y, &other]);
    assert_ne!(made, other);
}

#[test]
fn model_stock_goes_as_far_as_the_angle_says() {
    // Updates (1, 0) and (1, 1): their cosine is sqrt(1/2), and t = 2c / (1 + c).
    let case = Case::new(Profile::Float32, "model_stock", &[0.0, 0.0], 2).on_base();
    let cosine = 0.5f64.sqrt();
    let t = (2.0 * cosine / (1.0 + cosine)) as f32;
    let found = [t, t * 0.5];
    let (made, evidence) = case.makes(&[&[0.0; 2], &[1.0, 0.0], &[1.0, 1.0], &found]);
    assert_eq!(made, found);
    assert!(evidence.shifted < 1e-6);
    let (made, _) = case.makes(&[&[0.0; 2], &[1.0, 0.0], &[1.0, 1.0], &[0.8, 0.4]]);
    assert!((made[0] - t).abs() < 1e-3, "{made:?}");
}

#[test]
fn of_random_masks_only_bounds_are_known() {
    let case = Case::new(Profile::Float32, "dare_linear", &[0.5], 3)
        .on_base()
        .density(0.5)
        .with("rescale", ParamValue::Word("false"));
    let (base, tuned): (&[f32], &[f32]) = (&[1.0, 1.0, 1.0], &[2.0, 2.0, 1.0]);
    let (made, evidence) = case.makes(&[base, tuned, &[1.0, 1.5, 1.0]]);
    assert_eq!(made, [1.0, 1.5, 1.0]);
    assert!(evidence.bounds_only);
    // Out of reach of what is kept or dropped, and where nothing can change.
    let (made, _) = case.makes(&[base, tuned, &[0.9, 1.6, 1.001]]);
    assert!(
        made[0] > 0.99 && made[1] < 1.51 && made[2] == 1.0,
        "{made:?}"
    );
    // If all elements are kept, nothing is drawn.
    let (made, evidence) = case.density(1.0).makes(&[base, tuned, &[1.0, 1.5, 1.0]]);
    assert_eq!((made, evidence.bounds_only), (vec![1.5, 1.5, 1.0], false));
}
