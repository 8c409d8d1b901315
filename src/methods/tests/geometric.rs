//! The methods that use angles, and those that treat each element by itself.

use ndarray::{Array2, Axis};

use super::*;

fn number(value: f64) -> ParamValue {
    ParamValue::Number(value)
}

fn flag(value: bool) -> ParamValue {
    ParamValue::Bool(value)
}

#[track_caller]
fn shaped(case: Case, shape: &[usize], sources: &[&[f64]], expected: &[f64]) {
    let sources: Vec<Vec<f64>> = sources.iter().map(|values| values.to_vec()).collect();
    let found = case.run_shaped(FloatType::F64, shape, &sources).unwrap();
    close(&found, expected, 1e-12);
}

#[test]
fn nuslerp_by_hand() {
    let nuslerp = |base, weights: &[f64]| Case::new("nuslerp", base, weights);
    let half = 0.5f64.sqrt();
    let (sin30, sin60) = (0.5, 0.75f64.sqrt());
    // Two thirds of a right angle.
    by_hand(
        nuslerp(None, &[1.0, 2.0]),
        &[&[1.0, 0.0], &[0.0, 1.0]],
        &[sin30, sin60],
    );
    let from_base: [&[f64]; 3] = [&[1.0, 1.0], &[2.0, 1.0], &[1.0, 2.0]];
    by_hand(
        nuslerp(Some(0), &[0.0, 1.0, 2.0]),
        &from_base,
        &[1.0 + sin30, 1.0 + sin60],
    );
    let last: [&[f64]; 3] = [&[2.0, 1.0], &[1.0, 2.0], &[1.0, 1.0]];
    by_hand(
        nuslerp(Some(2), &[1.0, 2.0, 0.0]),
        &last,
        &[1.0 + sin30, 1.0 + sin60],
    );
    // Opposite vectors: a line. A zero vector and another: a right angle.
    by_hand(
        nuslerp(None, &[1.0, 1.0]),
        &[&[1.0, 2.0], &[-2.0, -4.0]],
        &[-0.5, -1.0],
    );
    by_hand(
        nuslerp(None, &[1.0, 1.0]),
        &[&[0.0, 0.0], &[0.0, 2.0]],
        &[0.0, 2.0 * half],
    );
    // Weights that are all zero count as equal.
    by_hand(
        nuslerp(None, &[0.0, 0.0]),
        &[&[1.0, 0.0], &[0.0, 1.0]],
        &[half, half],
    );
    let rows = nuslerp(None, &[1.0, 1.0]).set("nuslerp_flatten", flag(false));
    shaped(
        rows.clone(),
        &[2, 2],
        &[&[1.0, 0.0, 2.0, 0.0], &[0.0, 1.0, 3.0, 0.0]],
        &[half, half, 2.5, 0.0],
    );
    let columns = rows.set("nuslerp_row_wise", flag(true));
    shaped(
        columns.clone(),
        &[2, 2],
        &[&[1.0, 2.0, 0.0, 0.0], &[0.0, 3.0, 1.0, 0.0]],
        &[half, 2.5, half, 0.0],
    );
    // A tensor with one dimension is one vector.
    shaped(columns, &[2], &[&[1.0, 0.0], &[0.0, 1.0]], &[half, half]);
    // mergekit's rule where the weights sum to zero: the middle.
    let middle: [&[f64]; 2] = [&[1.0, 0.0], &[0.0, 1.0]];
    by_hand(nuslerp(None, &[-0.5, 0.5]), &middle, &[half, half]);
    by_hand(nuslerp(None, &[3.0, -3.0]), &middle, &[half, half]);
}

#[test]
fn multislerp_by_hand() {
    let multislerp =
        |base, weights: &[f64]| Case::new("multislerp", base, weights).set("eps", number(0.0));
    let root = 2f64.sqrt();
    // Half-way in direction, with length (3 + 1) / 2.
    by_hand(
        multislerp(None, &[0.5, 0.5]),
        &[&[3.0, 0.0], &[0.0, 1.0]],
        &[root, root],
    );
    by_hand(
        multislerp(Some(0), &[0.0, 2.0, 2.0]),
        &[&[1.0, 1.0], &[4.0, 1.0], &[1.0, 2.0]],
        &[1.0 + root, 1.0 + root],
    );
    // eps is added to lengths: |x| + 1 = 4 and 2, so the directions are 3/4 and 1/2.
    let length = (0.75f64 * 0.75 + 0.25).sqrt();
    by_hand(
        Case::new("multislerp", None, &[0.5, 0.5]).set("eps", number(1.0)),
        &[&[3.0, 0.0], &[0.0, 1.0]],
        // The mean direction, half of (0.75, 0.5), is shorter than eps: the two are simply added.
        &[1.5, 0.5],
    );
    by_hand(
        Case::new("multislerp", None, &[5.0, 5.0])
            .set("eps", number(1.0))
            .set("normalize_weights", flag(false)),
        &[&[3.0, 0.0], &[0.0, 1.0]],
        &[20.0 * 0.75 / length, 20.0 * 0.5 / length],
    );
    // A single model is treated like several.
    by_hand(multislerp(None, &[0.5]), &[&[3.0, 1.0]], &[3.0, 1.0]);
    by_hand(
        multislerp(None, &[0.5]).set("normalize_weights", flag(false)),
        &[&[3.0, 1.0]],
        &[1.5, 0.5],
    );
    // Two models that cancel are added, three are refused; three that equal the base merge to the base.
    by_hand(
        multislerp(None, &[0.5, 0.5]),
        &[&[3.0, 0.0], &[-1.0, 0.0]],
        &[1.0, 0.0],
    );
    let third = 0.75f64.sqrt();
    let star = [vec![1.0, 0.0], vec![-0.5, third], vec![-0.5, -third]];
    let error = multislerp(None, &[1.0; 3]).run(FloatType::F64, &star);
    assert!(error.unwrap_err().contains("cancel"));
    let same: [&[f64]; 4] = [&[1.0, 2.0]; 4];
    by_hand(multislerp(Some(0), &[1.0; 4]), &same, &[1.0, 2.0]);
    let error = multislerp(None, &[1.0, -1.0]).run(FloatType::F64, &vec![vec![1.0]; 2]);
    assert!(error.unwrap_err().contains("sum to zero"));
}

#[test]
fn karcher_by_hand() {
    let karcher = |count| Case::new("karcher", None, &vec![0.0; count]);
    let root = 2f64.sqrt();
    by_hand(karcher(2), &[&[3.0, 0.0], &[0.0, 1.0]], &[root, root]);
    // On a circle, the mean of the angles 0, 0, 0 and 90 degrees is 22.5 degrees.
    let angle = std::f64::consts::PI / 8.0;
    let (right, up): (&[f64], &[f64]) = (&[2.0, 0.0], &[0.0, 2.0]);
    by_hand(
        karcher(4).set("tol", number(1e-9)),
        &[right, right, right, up],
        &[2.0 * angle.cos(), 2.0 * angle.sin()],
    );
    // Without any step, the result is the mean direction.
    let start = Array1::from(vec![1.5, 0.5]) / (1.5f64 * 1.5 + 0.25).sqrt() * 2.0;
    by_hand(
        karcher(4).set("max_iter", number(0.0)),
        &[right, right, right, up],
        start.as_slice().unwrap(),
    );
    // A zero vector has no direction, but counts in the mean length; opposite vectors leave the first.
    by_hand(karcher(2), &[&[3.0, 0.0], &[0.0, 0.0]], &[1.5, 0.0]);
    by_hand(karcher(2), &[&[3.0, 0.0], &[-1.0, 0.0]], &[2.0, 0.0]);
    by_hand(karcher(2), &[&[0.0, 0.0], &[0.0, 0.0]], &[0.0, 0.0]);
    let error = karcher(2)
        .set("max_iter", number(2.5))
        .run(FloatType::F64, &vec![vec![1.0]; 2]);
    assert!(error.unwrap_err().contains("whole number"));
}

#[test]
fn small_tensors_keep_their_angles() {
    // mergekit writes zeros or the base, or uses a right angle.
    let tiny = |values: [f64; 2]| values.map(|value| value * 1e-7).to_vec();
    let sources = [
        tiny([0.0, 0.0]),
        tiny([1.0, 0.0]),
        tiny([0.5, 0.75f64.sqrt()]),
    ];
    let found = Case::new("model_stock", Some(0), &[0.0; 3])
        .run(FloatType::F64, &sources)
        .unwrap();
    close(&found, &tiny([0.5, 0.75f64.sqrt() / 3.0]), 1e-19);
    let middle = tiny([0.75f64.sqrt(), 0.5]);
    for case in [
        Case::new("karcher", None, &[0.0; 2]),
        Case::new("nuslerp", None, &[1.0; 2]),
    ] {
        let found = case.run(FloatType::F64, &sources[1..]).unwrap();
        close(&found, &middle, 1e-19);
    }
}

#[test]
fn model_stock_by_hand() {
    let stock = |count| Case::new("model_stock", Some(0), &vec![0.0; count]);
    let up = 0.75f64.sqrt();
    // Parallel: the mean. Orthogonal or opposite: the base. At 60 degrees: c = 1/2, t = 2/3.
    by_hand(
        stock(3),
        &[&[1.0, 0.0], &[3.0, 0.0], &[5.0, 0.0]],
        &[4.0, 0.0],
    );
    by_hand(
        stock(3),
        &[&[1.0, 1.0], &[3.0, 1.0], &[1.0, 2.0]],
        &[1.0, 1.0],
    );
    by_hand(
        stock(3),
        &[&[1.0, 1.0], &[3.0, 1.0], &[0.0, 1.0]],
        &[1.0, 1.0],
    );
    by_hand(
        stock(3),
        &[&[0.0, 0.0], &[1.0, 0.0], &[0.5, up]],
        &[0.5, up / 3.0],
    );
    // Three vectors along the axes and their sum: three cosines of 1/sqrt(3), three of 0.
    let c = 3.0 / 3f64.sqrt() / 6.0;
    let t = 4.0 * c / (1.0 + 3.0 * c);
    by_hand(
        stock(5),
        &[
            &[0.0; 3],
            &[1.0, 0.0, 0.0],
            &[0.0, 1.0, 0.0],
            &[0.0, 0.0, 1.0],
            &[1.0; 3],
        ],
        &[t * 0.5; 3],
    );
    shaped(
        stock(3).set("filter_wise", flag(true)),
        &[2, 2],
        &[&[0.0; 4], &[1.0, 0.0, 1.0, 0.0], &[0.5, up, 3.0, 0.0]],
        &[0.5, up / 3.0, 2.0, 0.0],
    );
}

#[test]
fn nearswap_by_hand() {
    let nearswap = |t| Case::new("nearswap", Some(0), &[0.0, 0.0]).set("t", number(t));
    let sources: [&[f64]; 2] = [&[0.0, 1.0, 0.0, 0.5], &[0.5, -3.0, 0.125, 0.5]];
    by_hand(nearswap(0.25), &sources, &[0.25, 0.75, 0.125, 0.5]);
    by_hand(nearswap(0.0), &sources, sources[0]);
    by_hand(nearswap(1e9), &sources, sources[1]);
    let second = Case::new("nearswap", Some(1), &[0.0, 0.0]).set("t", number(0.25));
    by_hand(second, &sources, &[0.25, -2.75, 0.0, 0.5]);
}

#[test]
fn ram_by_hand() {
    let sources: [&[f64]; 3] = [
        &[0.0, 0.0, 0.0, 0.0, 1.0],
        &[1.0, 2.0, 0.0, 5e-6, 1.0],
        &[0.0, 4.0, 0.0, 0.0, 7.0],
    ];
    let case = |method| Case::new(method, Some(0), &[0.0; 3]);
    by_hand(case("ram"), &sources, &[1.0, 3.0, 0.0, 0.0, 7.0]);
    by_hand(
        case("ram").set("epsilon", number(0.0)),
        &sources,
        &[1.0, 3.0, 0.0, 5e-6, 7.0],
    );
    // One shared and one unique change: a ratio of 1, of which 0.2 counts, so the factor is 1 + 0.1 * 0.2.
    by_hand(case("ramplus_tl"), &sources, &[1.02, 3.0, 0.0, 0.0, 7.12]);
    by_hand(
        case("ramplus_tl")
            .set("r", number(0.5))
            .set("alpha", number(3.0)),
        &sources,
        &[1.5, 3.0, 0.0, 0.0, 10.0],
    );
}

/// Two vectors on the great circle.
fn arc_twin(t: f64, a: &Array1<f64>, b: &Array1<f64>) -> Array1<f64> {
    let cosine = (a / a.dot(a).sqrt()).dot(&(b / b.dot(b).sqrt()));
    let angle = cosine.clamp(-1.0, 1.0).acos();
    if angle.sin() < 1e-7 {
        return a * (1.0 - t) + b * t;
    }
    a * (((1.0 - t) * angle).sin() / angle.sin()) + b * ((t * angle).sin() / angle.sin())
}

/// mergekit's steps: mean, tangents, exponential map.
fn multislerp_twin(weights: &[f64], eps: f64, vectors: &[Array1<f64>]) -> Array1<f64> {
    let norm = |v: &Array1<f64>| v.dot(v).sqrt();
    let zeros = Array1::<f64>::zeros(vectors[0].len());
    let units: Vec<Array1<f64>> = vectors.iter().map(|v| v / (norm(v) + eps)).collect();
    let sum = |terms: &[Array1<f64>]| {
        let weighted = terms
            .iter()
            .zip(weights)
            .map(|(term, weight)| term * *weight);
        weighted.fold(zeros.clone(), |sum, term| sum + term)
    };
    let mean = sum(&units);
    let mean = &mean / norm(&mean);
    let tangents: Vec<Array1<f64>> = units.iter().map(|u| u - &mean * u.dot(&mean)).collect();
    let tangent = sum(&tangents);
    let length = norm(&tangent) + eps;
    let point = &mean * length.cos() + tangent * (length.sin() / length);
    let lengths: f64 = vectors
        .iter()
        .zip(weights)
        .map(|(v, weight)| norm(v) * weight)
        .sum();
    point * lengths
}

/// The iteration on whole vectors.
fn karcher_twin(steps: usize, tolerance: f64, vectors: &[Array1<f64>]) -> Array1<f64> {
    let norm = |v: &Array1<f64>| v.dot(v).sqrt();
    let count = vectors.len() as f64;
    let units: Vec<Array1<f64>> = vectors.iter().map(|v| v / norm(v)).collect();
    let zeros = Array1::<f64>::zeros(vectors[0].len());
    let mut mean = units.iter().fold(zeros.clone(), |sum, unit| sum + unit);
    mean = &mean / norm(&mean);
    for _ in 0..steps {
        let mut tangent = zeros.clone();
        for unit in &units {
            let dot = mean.dot(unit).clamp(-1.0, 1.0);
            let angle = dot.acos();
            if angle >= tolerance {
                tangent = tangent + (unit - &mean * dot) * (angle / angle.sin() / count);
            }
        }
        let step = norm(&tangent);
        if step < tolerance {
            break;
        }
        mean = &mean * step.cos() + tangent * (step.sin() / step);
        mean = &mean / norm(&mean);
    }
    mean * (vectors.iter().map(norm).sum::<f64>() / count)
}

fn model_stock_twin(base: &Array1<f64>, others: &[Array1<f64>]) -> Array1<f64> {
    let updates: Vec<Array1<f64>> = others.iter().map(|x| x - base).collect();
    let mut cosines = Vec::new();
    for (i, a) in updates.iter().enumerate() {
        for b in &updates[i + 1..] {
            let norms = a.dot(a).sqrt() * b.dot(b).sqrt();
            cosines.push(if norms > 0.0 { a.dot(b) / norms } else { 0.0 });
        }
    }
    let c = (cosines.iter().sum::<f64>() / cosines.len() as f64).max(0.0);
    let n = others.len() as f64;
    let t = n * c / (1.0 + (n - 1.0) * c);
    let zeros = Array1::<f64>::zeros(base.len());
    let mean = others.iter().fold(zeros, |sum, x| sum + x) / n;
    mean * t + base * (1.0 - t)
}

fn nearswap_twin(t: f64, base: f64, other: f64) -> f64 {
    let weight = (t / (other - base).abs().max(1e-6)).clamp(0.0, 1.0);
    weight * other + (1.0 - weight) * base
}

/// Uses masks as mergekit's vectors do.
fn ram_twin(case: &Case, base: &Array1<f64>, others: &[Array1<f64>]) -> Array1<f64> {
    let params = case.params();
    let value = |name| params.number(name);
    let updates =
        Array2::from_shape_fn((others.len(), base.len()), |(i, j)| others[i][j] - base[j]);
    let active = updates.mapv(|update| f64::from(update.abs() > value("epsilon")));
    let counts = active.sum_axis(Axis(0));
    let mut out = base.clone();
    for (i, active) in active.axis_iter(Axis(0)).enumerate() {
        let count = |wanted: fn(f64) -> bool| {
            (0..base.len())
                .filter(|&j| active[j] == 1.0 && wanted(counts[j]))
                .count() as f64
        };
        let (shared, unique) = (count(|n| n > 1.0), count(|n| n == 1.0));
        let ratio = (shared / unique.max(1e-5)).clamp(0.0, value("alpha"));
        let factor = 1.0 + value("r") * ratio;
        for j in 0..base.len() {
            if active[j] == 1.0 {
                out[j] += updates[[i, j]]
                    * if counts[j] == 1.0 {
                        factor
                    } else {
                        1.0 / counts[j]
                    };
            }
        }
    }
    out
}

/// The result of a method's twin for whole tensors of this shape.
fn twin(case: &Case, shape: [usize; 2], sources: &[Array1<f64>]) -> Array1<f64> {
    let params = case.params();
    let number = |name| params.number(name);
    let base = case.base.map(|base| sources[base].clone());
    let of_members = |values: &[f64]| -> Vec<f64> {
        let kept = values
            .iter()
            .enumerate()
            .filter(|&(i, _)| case.base != Some(i));
        kept.map(|(_, &value)| value).collect()
    };
    let others: Vec<Array1<f64>> = sources
        .iter()
        .enumerate()
        .filter(|&(i, _)| case.base != Some(i))
        .map(|(_, source)| source.clone())
        .collect();
    // By rows, by columns or as one vector, as mergekit reshapes them.
    let by = |axis: Option<Axis>, f: &dyn Fn(&[Array1<f64>]) -> Array1<f64>| {
        let Some(axis) = axis else { return f(sources) };
        let matrices: Vec<Array2<f64>> = sources
            .iter()
            .map(|source| source.clone().into_shape_with_order(shape).unwrap())
            .collect();
        let mut out = Array2::<f64>::zeros(shape);
        for (index, mut lane) in out.axis_iter_mut(axis).enumerate() {
            let lanes: Vec<Array1<f64>> = matrices
                .iter()
                .map(|matrix| matrix.index_axis(axis, index).to_owned())
                .collect();
            lane.assign(&f(&lanes));
        }
        out.into_iter().collect()
    };
    let split = |sources: &[Array1<f64>]| {
        let zeros = Array1::<f64>::zeros(sources[0].len());
        let base = case.base.map_or(zeros, |base| sources[base].clone());
        let others: Vec<Array1<f64>> = (0..sources.len())
            .filter(|&i| case.base != Some(i))
            .map(|i| &sources[i] - &base)
            .collect();
        (base, others)
    };
    match case.method {
        "nuslerp" => {
            let weights = of_members(&case.weights);
            let t = weights[1] / (weights[0] + weights[1]);
            let axis = match (
                params.flag("nuslerp_flatten"),
                params.flag("nuslerp_row_wise"),
            ) {
                (true, _) => None,
                (false, true) => Some(Axis(1)),
                (false, false) => Some(Axis(0)),
            };
            by(axis, &|sources| {
                let (base, vectors) = split(sources);
                base + arc_twin(t, &vectors[0], &vectors[1])
            })
        }
        "multislerp" => {
            let mut weights = of_members(&case.weights);
            if params.flag("normalize_weights") {
                let sum: f64 = weights.iter().sum();
                weights.iter_mut().for_each(|weight| *weight /= sum);
            }
            let (base, vectors) = split(sources);
            base + multislerp_twin(&weights, number("eps"), &vectors)
        }
        "karcher" => karcher_twin(number("max_iter") as usize, number("tol"), sources),
        "model_stock" => {
            let axis = params.flag("filter_wise").then_some(Axis(0));
            by(axis, &|sources| {
                let (base, vectors) = split(sources);
                let others: Vec<Array1<f64>> = vectors.iter().map(|v| v + &base).collect();
                model_stock_twin(&base, &others)
            })
        }
        "nearswap" => {
            let base = base.unwrap();
            let pairs = base.iter().zip(&others[0]);
            pairs
                .map(|(&a, &b)| nearswap_twin(number("t"), a, b))
                .collect()
        }
        _ => ram_twin(case, &base.unwrap(), &others),
    }
}

/// Random cases: values on a grid that every format holds, biased to one sign, so that no two vectors are opposite.
fn geometric_cases() -> impl Strategy<Value = (Case, [usize; 2], Vec<Vec<f64>>)> {
    let methods = prop::sample::select(vec![
        "nuslerp",
        "multislerp",
        "karcher",
        "model_stock",
        "nearswap",
        "ram",
        "ramplus_tl",
    ]);
    let shape = prop::sample::select(vec![[1, 7], [3, 5], [6, 1], [2, 700], [4, 3]]);
    (
        methods,
        shape,
        2usize..5,
        any::<bool>(),
        any::<[bool; 2]>(),
        1u8..12,
    )
        .prop_flat_map(|(method, shape, others, with_base, flags, small)| {
            let others = match method {
                "nuslerp" => 2,
                "nearswap" => 1,
                _ => others,
            };
            let with_base = match method {
                "karcher" => false,
                "nuslerp" | "multislerp" => with_base,
                _ => true,
            };
            let count = others + usize::from(with_base);
            let weights =
                prop::collection::vec((1i32..20).prop_map(|n| f64::from(n) / 10.0), count);
            let length = shape[0] * shape[1];
            let values =
                prop::collection::vec((-20i32..60).prop_map(|n| f64::from(n) / 64.0), length);
            (weights, prop::collection::vec(values, count)).prop_map(
                move |(weights, mut sources)| {
                    let base = with_base.then(|| count - 1);
                    let small = f64::from(small) / 16.0;
                    if with_base && !matches!(method, "nearswap" | "ram" | "ramplus_tl") {
                        // Every update has a direction, and none is zero.
                        sources[count - 1]
                            .iter_mut()
                            .for_each(|value| *value = (*value - 1.0) / 4.0);
                        sources[..others]
                            .iter_mut()
                            .flatten()
                            .for_each(|value| *value += 0.5 + 1.0 / 128.0);
                    } else {
                        sources.iter_mut().flatten().for_each(|value| *value += 0.5);
                    }
                    let case = Case::new(method, base, &weights);
                    let case = match method {
                        "nuslerp" => case
                            .set("nuslerp_flatten", flag(flags[0]))
                            .set("nuslerp_row_wise", flag(flags[1])),
                        "multislerp" => case.set("normalize_weights", flag(flags[0])),
                        "karcher" => case.set("tol", number(if flags[0] { 1e-5 } else { 1e-9 })),
                        "model_stock" => case.set("filter_wise", flag(flags[0])),
                        "nearswap" => case.set("t", number(small)),
                        "ram" => case.set("epsilon", number(small + 1.0 / 1024.0)),
                        _ => case
                            .set("epsilon", number(small + 1.0 / 1024.0))
                            .set("alpha", number(small * 4.0)),
                    };
                    (case, shape, sources)
                },
            )
        })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]
    #[test]
    fn every_one_agrees_with_its_twin((case, shape, sources) in geometric_cases()) {
        for (format, tolerance) in [(FloatType::F64, 1e-11), (FloatType::F32, 1e-11), (FloatType::Bf16, 4e-6)] {
            // The twin reads the values as they are stored.
            let stored: Vec<Vec<f64>> = sources
                .iter()
                .map(|values| decode(format, &encode(format, values)))
                .collect();
            let arrays: Vec<Array1<f64>> = stored.iter().cloned().map(Array1::from).collect();
            let expected = twin(&case, shape, &arrays);
            let scale = expected.iter().fold(1.0, |most: f64, value| most.max(value.abs()));
            let merged = case.run_shaped(format, &shape, &stored).unwrap();
            // Steps shorter than `tol` are not taken, and rounding decides about the last one.
            let tolerance = if case.method == "karcher" { 1e-5f64.max(tolerance) } else { tolerance };
            close(&merged, expected.as_slice().unwrap(), tolerance * scale);
        }
    }

    #[test]
    fn nuslerp_is_slerp_below_its_threshold(
        (a, b) in (1usize..50).prop_flat_map(|n| {
            let values = || prop::collection::vec(-1.0f64..1.0, n + 1);
            (values(), values())
        }),
        t in 0.0f64..1.0,
    ) {
        let (x, y) = (Array1::from(a.clone()), Array1::from(b.clone()));
        let cosine = x.dot(&y) / (x.dot(&x).sqrt() * y.dot(&y).sqrt());
        prop_assume!(cosine.abs() < 0.9995);
        let sources = [a, b];
        let slerp = Case::new("slerp", Some(0), &[0.0, 0.0]).set("t", number(t));
        let nuslerp = Case::new("nuslerp", None, &[1.0 - t, t]);
        let [slerp, nuslerp] = [slerp, nuslerp].map(|case| case.run(FloatType::F64, &sources).unwrap());
        close(&nuslerp, &slerp, 1e-13 * 50.0 / (1.0 - cosine.abs()).sqrt());
    }

    #[test]
    fn karcher_of_two_of_one_length_is_half_way(
        (a, b) in (1usize..50).prop_flat_map(|n| {
            let values = || prop::collection::vec(-1.0f64..1.0, n + 1);
            (values(), values())
        }),
    ) {
        let unit = |values: Vec<f64>| {
            let values = Array1::from(values);
            let norm = values.dot(&values).sqrt();
            (values / norm).to_vec()
        };
        let sources = [unit(a), unit(b)];
        let cosine = Array1::from(sources[0].clone()).dot(&Array1::from(sources[1].clone()));
        prop_assume!(cosine.abs() < 0.99);
        let slerp = Case::new("slerp", Some(0), &[0.0, 0.0]).set("t", number(0.5));
        let karcher = Case::new("karcher", None, &[0.0, 0.0]);
        let [slerp, karcher] = [slerp, karcher].map(|case| case.run(FloatType::F64, &sources).unwrap());
        close(&karcher, &slerp, 1e-12);
    }

    #[test]
    fn ram_adds_what_does_not_overlap(base in prop::collection::vec(-4i32..4, 1..60), salt in 0usize..7) {
        let base: Vec<f64> = base.into_iter().map(f64::from).collect();
        let mut sources = vec![base.clone(); 4];
        let mut sum = base;
        for place in 0..sum.len() {
            let update = ((place * 7 + salt) % 5) as f64 - 2.0;
            sources[1 + (place + salt) % 3][place] += update;
            sum[place] += update;
        }
        let merged = Case::new("ram", Some(0), &[0.0; 4]).run(FloatType::F32, &sources).unwrap();
        prop_assert_eq!(merged, sum);
    }
}
