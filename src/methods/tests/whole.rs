//! Methods on whole matrices: cases by hand, twins in f64 on nalgebra's singular vectors, identities.

use nalgebra::DMatrix;

use super::*;

type Wide = DMatrix<f64>;

/// A twin: the update by the task vectors, with the parameter that the method has of its own.
type Twin = fn(&[Wide], f64) -> Wide;

/// A parameter of a method's own, and a value of it.
type Own = Option<(&'static str, f64)>;

/// Every method, its own parameter, and its twin.
const METHODS: [(&str, Own, Twin); 10] = [
    ("tsvm", None, tsvm),
    ("iso_c", None, iso_c),
    ("iso_cts", Some(("common_space_fraction", 0.6)), iso_cts),
    ("cart", Some(("rank_ratio", 0.2)), cart),
    ("star", Some(("eta", 0.5)), star),
    ("subspace_boosting", Some(("beta", 0.2)), boosting),
    ("wudi", Some(("time", 3.0)), flow),
    ("swudi_a", None, participation),
    ("actmat", None, actmat),
    ("resmerge", Some(("rank", 2.0)), resmerge),
];

/// The first `count` singular triplets.
fn triplets(matrix: &Wide, count: usize) -> (Wide, Vec<f64>, Wide) {
    let svd = matrix.clone().svd(true, true);
    let (u, v) = (svd.u.unwrap(), svd.v_t.unwrap().transpose());
    let values: Vec<f64> = svd.singular_values.iter().take(count).copied().collect();
    assert!(svd.singular_values.as_slice().is_sorted_by(|a, b| a >= b));
    (
        u.columns(0, values.len()).into(),
        values.clone(),
        v.columns(0, values.len()).into(),
    )
}

fn polar(matrix: &Wide) -> Wide {
    let (u, _, v) = triplets(matrix, usize::MAX);
    u * v.transpose()
}

fn joined(parts: &[Wide]) -> Wide {
    let columns: Vec<_> = parts.iter().flat_map(|part| part.column_iter()).collect();
    Wide::from_columns(&columns)
}

fn diagonal(values: &[f64]) -> Wide {
    Wide::from_diagonal(&values.to_vec().into())
}

fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len() as f64
}

fn tsvm(tasks: &[Wide], _: f64) -> Wide {
    let least = tasks[0].nrows().min(tasks[0].ncols());
    let parts = tasks.iter().map(|task| triplets(task, least / tasks.len()));
    let (mut u, mut s, mut v) = (vec![], vec![], vec![]);
    for part in parts {
        u.push(part.0);
        s.extend(part.1);
        v.push(part.2);
    }
    polar(&joined(&u)) * diagonal(&s) * polar(&joined(&v)).transpose()
}

fn iso_c(tasks: &[Wide], _: f64) -> Wide {
    let sum: Wide = tasks.iter().sum();
    mean(&triplets(&sum, usize::MAX).1) * polar(&sum)
}

fn iso_cts(tasks: &[Wide], common: f64) -> Wide {
    let least = tasks[0].nrows().min(tasks[0].ncols());
    let rest = least - (least as f64 * common).floor() as usize;
    // Python rounds half to even.
    let each = (rest as f64 / tasks.len() as f64).round_ties_even() as usize;
    let sum: Wide = tasks.iter().sum();
    let (uc, sc, vc) = triplets(&sum, least - each * tasks.len());
    let (mut u, mut s, mut v) = (vec![], vec![], vec![]);
    for task in tasks {
        let part = triplets(&(task - &uc * uc.transpose() * task), each);
        u.push(part.0);
        s.extend(part.1);
        v.push(part.2);
    }
    u.push(uc);
    s.extend(sc);
    v.push(vc);
    mean(&s) * polar(&joined(&u)) * polar(&joined(&v)).transpose()
}

fn cart(tasks: &[Wide], ratio: f64) -> Wide {
    let least = tasks[0].nrows().min(tasks[0].ncols());
    let center = tasks.iter().sum::<Wide>() / tasks.len() as f64;
    let parts = tasks.iter().map(|task| {
        let (u, s, v) = triplets(&(task - &center), (ratio * least as f64).ceil() as usize);
        u * diagonal(&s) * v.transpose()
    });
    &center + parts.sum::<Wide>()
}

fn star(tasks: &[Wide], eta: f64) -> Wide {
    let parts = tasks.iter().map(|task| {
        let all = triplets(task, usize::MAX).1;
        let total: f64 = all.iter().sum();
        let rank = (1..)
            .find(|&rank| all[..rank].iter().sum::<f64>() >= eta * total)
            .unwrap();
        let (u, s, v) = triplets(task, rank);
        u * diagonal(&s) * v.transpose() * (total / s.iter().sum::<f64>())
    });
    parts.sum::<Wide>() / tasks.len() as f64
}

fn boosting(tasks: &[Wide], beta: f64) -> Wide {
    let (u, s, v) = triplets(&tasks.iter().sum(), usize::MAX);
    let total: f64 = s.iter().sum();
    let first = (1..)
        .find(|&count| s[..count].iter().sum::<f64>() >= beta * total)
        .unwrap();
    let raised: Vec<f64> = s.iter().map(|value| value.max(s[first - 1])).collect();
    u * diagonal(&raised) * v.transpose()
}

/// The sums of the loss of wudi: C, R and the sum of the task vectors.
fn loss_sums(tasks: &[Wide], is_normalised: bool) -> [Wide; 3] {
    let factor = |task: &Wide| {
        if is_normalised {
            1.0 / task.norm_squared()
        } else {
            1.0
        }
    };
    let square = tasks
        .iter()
        .map(|task| factor(task) * task.transpose() * task)
        .sum();
    let right = tasks
        .iter()
        .map(|task| factor(task) * task * task.transpose() * task)
        .sum();
    [square, right, tasks.iter().sum()]
}

/// The sum, moved along each of the first `keep` eigenvectors by the share that `share` makes of its eigenvalue.
fn moved(tasks: &[Wide], keep: usize, share: impl Fn(f64) -> f64) -> Wide {
    let [square, right, mut update] = loss_sums(tasks, true);
    let eigen = square.symmetric_eigen();
    let mut order: Vec<usize> = (0..eigen.eigenvalues.len()).collect();
    order.sort_by(|a, b| eigen.eigenvalues[*b].total_cmp(&eigen.eigenvalues[*a]));
    for at in order.into_iter().take(keep) {
        let (value, vector) = (eigen.eigenvalues[at], eigen.eigenvectors.column(at));
        let wanted = (&right * vector / value - &update * vector) * share(value);
        update += wanted * vector.transpose();
    }
    update
}

fn flow(tasks: &[Wide], time: f64) -> Wide {
    let keep = (0.85 * tasks[0].ncols() as f64).ceil() as usize;
    moved(tasks, keep, |value| 1.0 - (-time * value).exp())
}

fn participation(tasks: &[Wide], _: f64) -> Wide {
    let [square, ..] = loss_sums(tasks, true);
    let values: Vec<f64> = square
        .symmetric_eigenvalues()
        .iter()
        .map(|value| value.max(1e-8))
        .collect();
    let roots: f64 = values.iter().map(|value| value.sqrt()).sum();
    let keep = (roots * roots / values.iter().sum::<f64>()).ceil() as usize;
    let rank = values.iter().filter(|value| **value > 1e-7).count();
    moved(tasks, keep.min(rank), |_| 1.0)
}

fn actmat(tasks: &[Wide], _: f64) -> Wide {
    let [square, right, _] = loss_sums(tasks, false);
    let least = 1e-10 * square.amax();
    right * square.pseudo_inverse(least).unwrap()
}

/// The mean over pairs of what `of` makes of two.
fn over_pairs(parts: &[Wide], of: impl Fn(f64) -> f64) -> f64 {
    let mut values = Vec::new();
    for (at, a) in parts.iter().enumerate() {
        let cosine = |b: &Wide| of(a.dot(b) / a.norm() / b.norm());
        values.extend(parts[at + 1..].iter().map(cosine));
    }
    if values.is_empty() {
        1.0
    } else {
        mean(&values)
    }
}

fn resmerge(tasks: &[Wide], rank: f64) -> Wide {
    let head = |task: &Wide| {
        let (u, s, v) = triplets(task, rank as usize);
        u * diagonal(&s) * v.transpose()
    };
    let heads: Vec<Wide> = tasks.iter().map(head).collect();
    let rests: Vec<Wide> = tasks
        .iter()
        .zip(&heads)
        .map(|(task, head)| task - head)
        .collect();
    let count = tasks.len() as f64;
    let directions: Wide = rests.iter().map(|rest| rest / rest.norm()).sum();
    let coherence = directions.norm() / count;
    let backbone = match coherence <= 1.0 / count.sqrt() && tasks.len() > 1 {
        true => rests.iter().sum::<Wide>() / count,
        false => {
            let similarity = over_pairs(&rests, |cosine| cosine);
            let score = ((similarity + 1.0) / 2.0 + (coherence + 1.0) / 2.0) / 2.0;
            let norms: Vec<f64> = rests.iter().map(Wide::norm).collect();
            directions.normalize() * coherence.powf(1.0 - 0.3 * score) * mean(&norms)
        }
    };
    let head = heads.iter().sum::<Wide>().normalize();
    let agreement = over_pairs(&heads, |cosine| cosine.max(0.0));
    let budget = 0.2 * agreement * backbone.norm();
    backbone + head * budget
}

/// Values between -1 and 1 that look random.
fn noise(seed: usize, length: usize) -> Vec<f64> {
    let mut state = seed as u64 * 7919 + 1;
    let mut next = || {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (state >> 40) as f64 / f64::from(1u32 << 23) - 1.0
    };
    (0..length).map(|_| next()).collect()
}

/// A base and models that differ from it by updates of these sizes, in values that F32 holds.
fn sources(sizes: &[f64], length: usize) -> Vec<Vec<f64>> {
    let base: Vec<f64> = noise(99, length)
        .iter()
        .map(|value| f64::from(*value as f32))
        .collect();
    let model = |(seed, size): (usize, &f64)| {
        let values = base.iter().zip(noise(seed, length));
        values
            .map(|(base, update)| f64::from((base + size * update) as f32))
            .collect()
    };
    let models: Vec<Vec<f64>> = sizes.iter().enumerate().map(model).collect();
    [vec![base], models].concat()
}

fn case(method: &'static str, own: Own, weights: &[f64]) -> Case {
    let weights = [&[0.0], weights].concat();
    let case = Case::new(method, Some(0), &weights);
    match own {
        Some((name, value)) => case.set(name, ParamValue::Number(value)),
        None => case,
    }
}

fn run(case: &Case, shape: &[usize], sources: &[Vec<f64>]) -> Vec<f64> {
    case.run_shaped(FloatType::F32, shape, sources).unwrap()
}

/// A case of matrices of two by two on the diagonal, on a base that is not zero.
fn by_hand(case: &Case, tasks: &[[f64; 2]], expected: [f64; 2]) {
    let base = [1.0, 2.0, -3.0, 0.5];
    let on = |diagonal: [f64; 2]| {
        vec![
            base[0] + diagonal[0],
            base[1],
            base[2],
            base[3] + diagonal[1],
        ]
    };
    let sources: Vec<Vec<f64>> = [[0.0; 2]]
        .iter()
        .chain(tasks)
        .map(|task| on(*task))
        .collect();
    close(&run(case, &[2, 2], &sources), &on(expected), 2e-6);
}

#[test]
fn cases_by_hand() {
    // The strongest direction of the one is the first axis, that of the other the second.
    by_hand(
        &case("tsvm", None, &[1.0, 1.0]),
        &[[2.0, 1.0], [1.0, 3.0]],
        [2.0, 3.0],
    );
    // A weight multiplies the task vector; lambda the update.
    let halved = case("tsvm", None, &[0.5, 2.0]).set("lambda", ParamValue::Number(0.5));
    by_hand(&halved, &[[2.0, 1.0], [1.0, 3.0]], [0.5, 3.0]);
    // The sum is 3 and 4, their mean 3.5.
    by_hand(
        &case("iso_c", None, &[1.0, 1.0]),
        &[[2.0, 1.0], [1.0, 3.0]],
        [3.5, 3.5],
    );
    // A sum of rank one keeps its rank and its value.
    by_hand(
        &case("iso_c", None, &[1.0, 1.0]),
        &[[2.0, 0.0], [1.0, 0.0]],
        [3.0, 0.0],
    );
    // With all directions in common it is iso_c.
    let common = case("iso_cts", Some(("common_space_fraction", 1.0)), &[1.0, 1.0]);
    by_hand(&common, &[[2.0, 1.0], [1.0, 3.0]], [3.5, 3.5]);
    // With none, each task has its strongest direction, and the mean is of 2 and 3.
    let own = case("iso_cts", Some(("common_space_fraction", 0.0)), &[1.0, 1.0]);
    by_hand(&own, &[[2.0, 1.0], [1.0, 3.0]], [2.5, 2.5]);
    // The mean is 2 and 3; the strongest differences are 4 and -2 on the first axis, 3 on the second.
    let cart = case("cart", None, &[1.0; 3]).set("lambda", ParamValue::Number(0.5));
    by_hand(&cart, &[[6.0, 0.0], [0.0, 3.0], [0.0, 6.0]], [3.0, 4.5]);
    // 3 of 4 and 4 of 5 are more than 0.4; scaled to 4 and 5, and halved.
    by_hand(
        &case("star", None, &[1.0, 1.0]),
        &[[3.0, 1.0], [1.0, 4.0]],
        [2.0, 2.5],
    );
    // Both have 4 on the first axis and 1 on the second: that stays whole, and a fifth of its norm of the first.
    by_hand(
        &case("resmerge", None, &[1.0, 1.0]),
        &[[4.0, 1.0], [4.0, 1.0]],
        [0.2, 1.0],
    );
    // Weak parts that cancel leave nothing, of which strong parts get their share.
    by_hand(
        &case("resmerge", None, &[1.0, 1.0]),
        &[[4.0, 1.0], [4.0, -1.0]],
        [0.0, 0.0],
    );
    let boosted = |beta| case("subspace_boosting", Some(("beta", beta)), &[1.0, 1.0]);
    by_hand(&boosted(0.01), &[[3.0, 1.0], [1.0, 0.0]], [4.0, 4.0]);
    by_hand(&boosted(1.0), &[[3.0, 1.0], [1.0, 0.0]], [4.0, 1.0]);
}

#[test]
fn every_method_agrees_with_its_twin_whatever_the_shape() {
    for (method, own, twin) in METHODS {
        // The last is wider than all task vectors are high.
        for shape in [[24, 17], [17, 24], [12, 12], [5, 40]] {
            for weights in [&[1.0, 1.0, 1.0][..], &[0.7, -1.2], &[1.5, 0.4, 1.0, 0.9]] {
                let length = shape[0] * shape[1];
                let sizes: Vec<f64> = (1..=weights.len()).map(|at| 0.02 * at as f64).collect();
                let sources = sources(&sizes, length);
                let found = run(&case(method, own, weights), &shape, &sources);
                let matrix = |values: &[f64]| Wide::from_row_slice(shape[0], shape[1], values);
                let tasks = sources[1..].iter().zip(weights);
                let tasks: Vec<Wide> = tasks
                    .map(|(model, weight)| *weight * (matrix(model) - matrix(&sources[0])))
                    .collect();
                let update = twin(&tasks, own.map_or(0.0, |own| own.1));
                let bound = 2e-5 * update.amax();
                let expected = matrix(&sources[0]) + update;
                let expected: Vec<f64> = expected.transpose().iter().copied().collect();
                let pairs = found.iter().zip(&expected);
                let worst = pairs.map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
                assert!(
                    worst <= bound,
                    "{method} {shape:?} {weights:?}: {worst:e} > {bound:e}"
                );
            }
        }
    }
}

#[test]
fn models_that_are_the_base_give_the_base() {
    for (method, own, _) in METHODS {
        for shape in [[6, 4], [4, 6], [1, 24], [24, 1]] {
            let base = noise(1, 24);
            let sources = vec![
                base.iter()
                    .map(|value| f64::from(*value as f32))
                    .collect::<Vec<_>>();
                3
            ];
            assert_eq!(
                run(&case(method, own, &[1.0, 1.0]), &shape, &sources),
                sources[0],
                "{method}"
            );
        }
    }
}

#[test]
fn a_model_of_weight_zero_takes_no_part() {
    let sources = sources(&[0.1, 0.2, 0.3], 60);
    for (method, own, _) in METHODS {
        let with = run(&case(method, own, &[0.8, 0.0, 1.1]), &[10, 6], &sources);
        let without = [sources[0].clone(), sources[1].clone(), sources[3].clone()];
        assert!(
            with == run(&case(method, own, &[0.8, 1.1]), &[10, 6], &without),
            "{method}"
        );
        let none = run(&case(method, own, &[0.0; 3]), &[10, 6], &sources);
        assert_eq!(none, sources[0], "{method}");
    }
}

#[test]
fn one_model_comes_out_of_methods_that_keep_it() {
    let sources = sources(&[0.1], 60);
    for method in ["tsvm", "cart", "wudi", "swudi_a", "actmat"] {
        assert_eq!(
            run(&case(method, None, &[1.0]), &[10, 6], &sources),
            sources[1],
            "{method}"
        );
    }
    // Of iso_c the nuclear norm stays, of star with all and of boosting with nothing raised the model.
    for (method, own) in [("star", ("eta", 1.0)), ("subspace_boosting", ("beta", 1.0))] {
        close(
            &run(&case(method, Some(own), &[1.0]), &[10, 6], &sources),
            &sources[1],
            1e-6,
        );
    }
}

#[test]
fn a_matrix_turned_round_gives_the_result_turned_round() {
    let sources = sources(&[0.1, 0.2], 60);
    let turned: Vec<Vec<f64>> = sources
        .iter()
        .map(|values| {
            Wide::from_row_slice(10, 6, values)
                .iter()
                .copied()
                .collect()
        })
        .collect();
    for method in [
        "tsvm",
        "iso_c",
        "cart",
        "star",
        "subspace_boosting",
        "resmerge",
    ] {
        let case = case(method, None, &[1.0, 0.5]);
        let back = Wide::from_row_slice(6, 10, &run(&case, &[6, 10], &turned));
        let back: Vec<f64> = back.iter().copied().collect();
        close(&back, &run(&case, &[10, 6], &sources), 1e-7);
    }
}

#[test]
fn a_weight_that_lies_the_other_way_round_is_turned_where_it_matters() {
    let sources = sources(&[0.1, 0.2], 60);
    let turned: Vec<Vec<f64>> = sources
        .iter()
        .map(|values| {
            Wide::from_row_slice(10, 6, values)
                .iter()
                .copied()
                .collect()
        })
        .collect();
    let case = case("iso_cts", Some(("common_space_fraction", 0.5)), &[1.0, 0.5]);
    let expected = run(&case, &[10, 6], &sources);
    let tensor = Tensor {
        name: NAME,
        shape: &[6, 10],
        seed: SEED,
        base: Some(0),
        sources: 3,
        linear: Linear::new(&[6, 10], true),
        context: Context::default(),
    };
    let found = merged("iso_cts", &case.params(), &tensor, FloatType::F32, &turned).unwrap();
    let found: Vec<f64> = Wide::from_row_slice(6, 10, &found)
        .iter()
        .copied()
        .collect();
    close(&found, &expected, 1e-7);
}

#[test]
fn each_matrix_of_a_stack_is_merged_by_itself() {
    let stacked = sources(&[0.1, 0.2], 2 * 60);
    for (method, own, _) in METHODS {
        let case = case(method, own, &[1.0, 0.5]);
        let found = run(&case, &[2, 10, 6], &stacked);
        for half in 0..2 {
            let part = |values: &Vec<f64>| values[half * 60..][..60].to_vec();
            let sources: Vec<Vec<f64>> = stacked.iter().map(part).collect();
            assert!(run(&case, &[10, 6], &sources) == part(&found), "{method}");
        }
    }
}

#[test]
fn tasks_in_directions_of_their_own_add_up_by_tsvm_in_any_order() {
    // Each has one direction, orthogonal to the others'.
    let mut tasks = vec![vec![0.0; 48]; 3];
    tasks[0][0] = 2.0;
    tasks[1][9] = -3.0;
    tasks[2][18] = 0.5;
    let sum: Vec<f64> = (0..48)
        .map(|at| tasks.iter().map(|task| task[at]).sum())
        .collect();
    let case = case("tsvm", None, &[1.0; 3]);
    for order in [[0, 1, 2], [2, 0, 1]] {
        let sources = [vec![0.0; 48]]
            .into_iter()
            .chain(order.map(|task| tasks[task].clone()));
        close(
            &run(&case, &[6, 8], &sources.collect::<Vec<_>>()),
            &sum,
            1e-6,
        );
    }
}

#[test]
fn what_is_no_matrix_takes_the_mean_or_what_others_says() {
    let sources = sources(&[0.1, 0.2], 8);
    let update = |weights: [f64; 2], lambda: f64| -> Vec<f64> {
        (0..8)
            .map(|at| {
                let difference = |model: usize| sources[model][at] - sources[0][at];
                sources[0][at] + lambda * (weights[0] * difference(1) + weights[1] * difference(2))
            })
            .collect()
    };
    for (method, own, _) in METHODS {
        let lambda = 0.5;
        let case = case(method, own, &[0.8, 0.6]).set("lambda", ParamValue::Number(lambda));
        let factor = if method == "cart" { 1.0 } else { lambda };
        let with = |word| case.clone().set("others", ParamValue::Word(word));
        let run = |case: &Case| case.run_shaped(FloatType::F32, &[8], &sources).unwrap();
        close(&run(&case), &update([0.4, 0.3], factor), 1e-7);
        close(
            &run(&with("task_arithmetic")),
            &update([0.8, 0.6], factor),
            1e-7,
        );
        assert_eq!(run(&with("base")), sources[0]);
        let ties =
            Case::new("ties", Some(0), &[0.0, 0.8, 0.6]).set("lambda", ParamValue::Number(factor));
        assert!(run(&with("ties")) == ties.run_shaped(FloatType::F32, &[8], &sources).unwrap());
    }
    // Three models have no direction each in a matrix of two.
    let small = case("tsvm", None, &[1.0; 3]);
    let sources = super::whole::sources(&[0.1, 0.2, 0.3], 8);
    let mean: Vec<f64> = (0..8)
        .map(|at| (1..4).map(|model| sources[model][at]).sum::<f64>() / 3.0)
        .collect();
    close(&run(&small, &[2, 4], &sources), &mean, 1e-7);
}

#[test]
fn memory_grows_with_the_matrix_and_is_stated_for_any_size() {
    for (method, own, _) in METHODS {
        let cost = |shape: [usize; 2]| {
            let tensor = Tensor {
                name: NAME,
                shape: &shape,
                seed: SEED,
                base: Some(0),
                sources: 4,
                linear: Linear::new(&shape, false),
                context: Context::default(),
            };
            let params = case(method, own, &[1.0; 3]).params();
            match find(method).unwrap().action(&params, &tensor).unwrap() {
                Action::Compute(program) => program.cost().matrix,
                Action::Copy(_) => panic!("{method} copies"),
            }
        };
        let matrix = 4 * 1024 * 1024;
        assert!(cost([1024, 1024]) > 6 * matrix, "{method}");
        assert!(cost([1024, 2048]) > cost([1024, 1024]));
        assert_eq!(cost([usize::MAX / 8, usize::MAX / 8]), u64::MAX);
    }
}

#[test]
fn the_closed_form_of_wudi_is_where_gradient_flow_comes_to() {
    let sources = sources(&[0.1, 0.2, 0.15], 40);
    let matrix = |values: &[f64]| Wide::from_row_slice(8, 5, values);
    let tasks: Vec<Wide> = sources[1..]
        .iter()
        .map(|model| matrix(model) - matrix(&sources[0]))
        .collect();
    let [square, right, mut update] = loss_sums(&tasks, true);
    let steps = 4000;
    for _ in 0..steps {
        update -= (&update * &square - &right) * (2.0 / f64::from(steps));
    }
    let case = case("wudi", Some(("time", 2.0)), &[1.0; 3]).set("keep", ParamValue::Number(1.0));
    let found = matrix(&run(&case, &[8, 5], &sources)) - matrix(&sources[0]);
    assert!((found - &update).amax() < 1e-3 * update.amax());
}

#[test]
fn wudi_by_adam_takes_the_steps_of_the_paper() {
    let sources = sources(&[0.02, 0.03], 40);
    let matrix = |values: &[f64]| Wide::from_row_slice(8, 5, values);
    let tasks: Vec<Wide> = sources[1..]
        .iter()
        .map(|model| matrix(model) - matrix(&sources[0]))
        .collect();
    let [square, right, mut update] = loss_sums(&tasks, true);
    let (mut first, mut second) = (Wide::zeros(8, 5), Wide::zeros(8, 5));
    for step in 1..=300 {
        let gradient = 2.0 * (&update * &square - &right);
        first = 0.9 * first + 0.1 * &gradient;
        second = 0.999 * second + 0.001 * gradient.component_mul(&gradient);
        let (a, b) = (1.0 - 0.9f64.powi(step), 1.0 - 0.999f64.powi(step));
        let size = second.map(|value| (value / b).sqrt() + 1e-8);
        update -= 1e-5 * (&first / a).component_div(&size);
    }
    let case = case("wudi", None, &[1.0; 2]).set("form", ParamValue::Word("adam"));
    let found = matrix(&run(&case, &[8, 5], &sources)) - matrix(&sources[0]);
    assert!(
        (&found - &update).amax() < 1e-5,
        "{}",
        (&found - &update).amax()
    );
    let sum: Wide = tasks.iter().sum();
    assert!((found - sum).amax() > 1e-3);
}

#[test]
fn copies_of_a_task_give_that_task_by_the_filters_that_go_all_the_way() {
    let one = sources(&[0.1], 60);
    let sources = [
        one[0].clone(),
        one[1].clone(),
        one[1].clone(),
        one[1].clone(),
    ];
    for (method, own) in [("actmat", None), ("wudi", Some(("time", 1e9)))] {
        let mut case = case(method, own, &[1.0; 3]);
        if method == "wudi" {
            case = case.set("keep", ParamValue::Number(1.0));
        }
        close(&run(&case, &[10, 6], &sources), &one[1], 1e-6);
    }
}

/// A case of svc: the base, the merged model, the fine-tunes.
fn calibrated(alpha: f64, shape: &[usize], sources: &[Vec<f64>]) -> Vec<f64> {
    let flags = (0..sources.len()).map(|at| vec![("merged", ParamValue::Bool(at == 1))]);
    let params = TensorParams {
        tensor: vec![("alpha", ParamValue::Number(alpha))],
        sources: flags.collect(),
    };
    let tensor = Tensor {
        name: NAME,
        shape,
        seed: SEED,
        base: Some(0),
        sources: sources.len(),
        linear: Linear::new(shape, false),
        context: Context::default(),
    };
    merged("svc", &params, &tensor, FloatType::F32, sources).unwrap()
}

#[test]
fn svc_weakens_what_fine_tunes_share_and_raises_what_they_do_not() {
    let diagonal = |a: f64, b: f64| vec![a, 0.0, 0.0, b];
    // The sum of two tasks that share the first axis is twice either; each counts 4/2 there. On the second one counts
    // 3/3 and the other, which has nothing there, alpha.
    let sources = [
        diagonal(0.0, 0.0),
        diagonal(4.0, 3.0),
        diagonal(2.0, 3.0),
        diagonal(2.0, 0.0),
    ];
    close(
        &calibrated(1.0, &[2, 2], &sources),
        &diagonal(2.0, 3.0),
        1e-6,
    );
    close(
        &calibrated(0.5, &[2, 2], &sources),
        &diagonal(2.0, 4.0),
        1e-6,
    );
    // What is no matrix is the merged model's.
    assert_eq!(calibrated(1.0, &[4], &sources), sources[1]);
}

#[test]
fn svc_agrees_with_its_twin_and_leaves_a_lone_fine_tune() {
    for shape in [[9, 6], [6, 9]] {
        let sources = sources(&[0.05, 0.02, 0.03, 0.04], 54);
        let matrix = |values: &[f64]| Wide::from_row_slice(shape[0], shape[1], values);
        let differences: Vec<Wide> = sources[1..]
            .iter()
            .map(|model| matrix(model) - matrix(&sources[0]))
            .collect();
        let (u, mut s, v) = triplets(&differences[0], usize::MAX);
        for (r, value) in s.iter_mut().enumerate() {
            let along = u.column(r).transpose() * &differences[0];
            let shares = differences[1..].iter().map(|difference| {
                let own = u.column(r).transpose() * difference;
                (along.dot(&own) / own.norm_squared()).max(0.3)
            });
            *value *= 3.0 / shares.sum::<f64>();
        }
        let update = u * diagonal(&s) * v.transpose();
        let found = matrix(&calibrated(0.3, &shape, &sources)) - matrix(&sources[0]);
        assert!((found - &update).amax() < 2e-5 * update.amax());
        let lone = [sources[0].clone(), sources[1].clone(), sources[1].clone()];
        close(&calibrated(1.0, &shape, &lone), &sources[1], 1e-6);
    }
}

#[test]
fn svc_wants_one_merged_model() {
    for flags in [[false, false], [true, true]] {
        let sources = std::iter::once(vec![])
            .chain(flags.map(|flag| vec![("merged", ParamValue::Bool(flag))]));
        let params = TensorParams {
            tensor: vec![("alpha", ParamValue::Number(1.0))],
            sources: sources.collect(),
        };
        let tensor = Tensor {
            name: NAME,
            shape: &[2, 2],
            seed: SEED,
            base: Some(0),
            sources: 3,
            linear: None,
            context: Context::default(),
        };
        let error = merged(
            "svc",
            &params,
            &tensor,
            FloatType::F32,
            &vec![vec![0.0; 4]; 3],
        )
        .unwrap_err();
        assert!(
            error.contains("expected one model with `merged: true`, found"),
            "{error}"
        );
    }
}

#[test]
fn localize_stitch_keeps_the_largest_changes_and_takes_the_mean_where_they_meet() {
    let sources = [
        vec![1.0, 1.0, 1.0, 1.0, 1.0],
        vec![5.0, 0.0, 3.0, 1.0, 1.0],
        vec![3.0, 1.0, 1.0, -1.0, 2.0],
    ];
    let kept = |weights: &[f64], sparsity| {
        let case = Case::new("localize_stitch", Some(0), weights);
        let case = case.set("sparsity", ParamValue::Number(sparsity));
        case.run(FloatType::F32, &sources).unwrap()
    };
    // Two of five each: changes of 4 and 2, and of 2 and -2. The first elements meet: the mean of 4 and 2.
    assert_eq!(kept(&[0.0, 1.0, 1.0], 0.4), [4.0, 1.0, 3.0, -1.0, 1.0]);
    // One each; of those as large as the second model's threshold, both stay.
    assert_eq!(kept(&[0.0, 1.0, 1.0], 0.2), [4.0, 1.0, 1.0, -1.0, 1.0]);
    // All; what is unchanged does not count where another has changed.
    assert_eq!(kept(&[0.0, 1.0, 1.0], 1.0), [4.0, 0.0, 3.0, -1.0, 2.0]);
    assert_eq!(kept(&[0.0, 0.5, 1.0], 0.4), [3.0, 1.0, 2.0, -1.0, 1.0]);
    // A model without weight does not count.
    assert_eq!(kept(&[0.0, 0.0, 1.0], 0.4), [3.0, 1.0, 1.0, -1.0, 1.0]);
    // At least one element is kept.
    assert_eq!(kept(&[0.0, 1.0, 0.0], 0.0), [5.0, 1.0, 1.0, 1.0, 1.0]);
}

#[test]
fn lines_by_hand() {
    let params = TensorParams {
        tensor: [("alpha", 0.25), ("beta", 0.5)]
            .map(|(name, value)| (name, ParamValue::Number(value)))
            .to_vec(),
        sources: vec![Vec::new(); 2],
    };
    let sources = [vec![1.0, 2.0], vec![5.0, -2.0]];
    for (depth, expected) in [(0.0, [2.0, 1.0]), (0.5, [3.0, 0.0]), (1.0, [4.0, -1.0])] {
        let tensor = Tensor {
            name: NAME,
            shape: &[2],
            seed: SEED,
            base: Some(0),
            sources: 2,
            linear: None,
            context: Context {
                depth,
                ..Context::default()
            },
        };
        let found = merged("lines", &params, &tensor, FloatType::F32, &sources);
        assert_eq!(found.unwrap(), expected);
    }
}

#[test]
fn magmax_takes_the_largest_change_and_the_last_of_equal_ones() {
    let sources = [
        vec![1.0; 4],
        vec![3.0, 1.5, 1.0, -1.0],
        vec![0.0, 0.0, 1.0, 3.0],
    ];
    let case = Case::new("magmax", Some(0), &[0.0, 1.0, 1.0]);
    assert_eq!(
        case.run(FloatType::F32, &sources).unwrap(),
        [3.0, 0.0, 1.0, 3.0]
    );
    let half =
        Case::new("magmax", Some(0), &[0.0, 1.0, 3.0]).set("lambda", ParamValue::Number(0.5));
    assert_eq!(
        half.run(FloatType::F32, &sources).unwrap(),
        [-0.5, -0.5, 1.0, 4.0]
    );
    // Copies come out to the bit, whatever the base.
    let copies = self::sources(&[0.3], 100);
    let copies = [copies[0].clone(), copies[1].clone(), copies[1].clone()];
    assert_eq!(case.run(FloatType::F64, &copies).unwrap(), copies[1]);
}

#[test]
fn the_geometric_median_is_the_middle_point_of_a_line_and_the_centre_of_a_triangle() {
    let median = |base, weights: &[f64]| Case::new("geometric_median", base, weights);
    let line = [vec![0.0, 0.0], vec![1.0, 2.0], vec![10.0, 20.0]];
    let found = median(None, &[1.0; 3]).run(FloatType::F32, &line).unwrap();
    assert_eq!(found, line[1]);
    // With more than half of the weight a model is the median.
    assert_eq!(
        median(None, &[1.0, 0.5, 1.6])
            .run(FloatType::F32, &line)
            .unwrap(),
        line[2]
    );
    let height = 3f64.sqrt();
    let triangle = [vec![-1.0, 0.0], vec![1.0, 0.0], vec![0.0, height]];
    let centre = median(None, &[1.0; 3])
        .run(FloatType::F64, &triangle)
        .unwrap();
    close(&centre, &[0.0, height / 3.0], 1e-8);
    // Models twice count twice; a base changes nothing.
    let twice = [
        line[0].clone(),
        line[0].clone(),
        line[1].clone(),
        line[2].clone(),
        line[0].clone(),
    ];
    assert_eq!(
        median(None, &[1.0; 5]).run(FloatType::F32, &twice).unwrap(),
        line[0]
    );
    let based = [
        vec![0.3, 0.1],
        triangle[0].clone(),
        triangle[1].clone(),
        triangle[2].clone(),
    ];
    close(
        &median(Some(0), &[0.0, 1.0, 1.0, 1.0])
            .run(FloatType::F64, &based)
            .unwrap(),
        &centre,
        1e-8,
    );
    let none = median(None, &[0.0; 3])
        .run(FloatType::F32, &line)
        .unwrap_err();
    assert!(none.contains("weights of all models are 0"), "{none}");
}

#[test]
fn no_point_near_the_geometric_median_is_nearer_to_the_models() {
    let models = sources(&[0.3, 1.0, 0.1, 2.0], 30);
    let weights = [1.0, 0.7, 1.3, 0.9, 0.4];
    let found = Case::new("geometric_median", None, &weights)
        .run(FloatType::F64, &models)
        .unwrap();
    let sum = |point: &[f64]| -> f64 {
        let distance = |model: &Vec<f64>| {
            let pairs = model.iter().zip(point);
            pairs.map(|(a, b)| (a - b) * (a - b)).sum::<f64>().sqrt()
        };
        models
            .iter()
            .zip(weights)
            .map(|(model, weight)| weight * distance(model))
            .sum()
    };
    let least = sum(&found);
    for seed in 0..20 {
        let near: Vec<f64> = found
            .iter()
            .zip(noise(seed, 30))
            .map(|(a, b)| a + 1e-3 * b)
            .collect();
        assert!(sum(&near) >= least - 1e-12);
    }
}
