//! Each kernel compared with loops in f64.

use super::super::activation::Activation;
use super::super::attention::Attention;
use super::super::experts::route;
use super::super::layout::{Gated, Linear, Matrix, Vector};
use super::super::norm::rms_norm;
use super::super::rope::{Rope, RopeSettings};
use super::super::settings::Routing;
use super::super::states::{Batch, States};
use super::{Held, assert_near, random};
use architecture::{Family, Fields};
use numeric::{View, multiply};

fn wide(values: &[f32]) -> Vec<f64> {
    values.iter().map(|&value| value.into()).collect()
}

/// `left right`, both in row order.
fn product(left: &[f64], right: &[f64], inner: usize, columns: usize) -> Vec<f64> {
    let rows = left.chunks(inner);
    rows.flat_map(|row| {
        (0..columns).map(move |column| {
            let terms = row.iter().enumerate();
            terms
                .map(|(k, value)| value * right[k * columns + column])
                .sum()
        })
    })
    .collect()
}

#[test]
fn products_agree_with_loops() {
    for (rows, inner, columns) in [(1, 1, 1), (3, 5, 1), (17, 33, 9), (64, 200, 70), (5, 1, 64)] {
        let (a, b) = (random(rows * inner, 3), random(inner * columns, 4));
        let mut out = vec![f32::NAN; rows * columns];
        multiply(
            &mut out,
            View::rows(&a, rows, inner),
            View::rows(&b, inner, columns),
        );
        assert_near(&out, &product(&wide(&a), &wide(&b), inner, columns), 1e-5);
    }
}

fn linear(held: &Held, tensor: &str, start: usize, rows: usize, bias: Option<&str>) -> Linear {
    Linear {
        matrix: Matrix {
            tensor: tensor.into(),
            start,
            rows,
            columns: held.0[tensor].0[1],
        },
        bias: bias.map(|bias| Vector {
            tensor: bias.into(),
            start: 0,
            length: rows,
        }),
    }
}

/// Enough rows for several tiles and a partial one, in a tensor that starts with other elements.
#[test]
fn matrices_are_multiplied_tile_by_tile() {
    let (columns, before, rows, tokens) = (3000, 5, 1501, 3);
    let mut held = Held::default();
    held.add("w", &[before + rows, columns], 0.0, 1.0);
    held.add("b", &[rows], 0.0, 9.0);
    held.add("down", &[7, rows], 0.0, 1.0);
    let w = linear(&held, "w", before * columns, rows, Some("b"));
    assert!(rows > 2 * w.matrix.tile_rows() && !rows.is_multiple_of(w.matrix.tile_rows()));
    let mut x = States::zeros(columns, tokens).unwrap();
    x.values = random(columns * tokens, 5);

    let values = held.values("w");
    let mut twin = product(
        &values[before * columns..],
        &wide(&x.values),
        columns,
        tokens,
    );
    for (row, bias) in twin.chunks_mut(tokens).zip(held.values("b")) {
        row.iter_mut().for_each(|value| *value += bias);
    }
    assert_near(&w.apply(&held.model(), &x).unwrap().values, &twin, 1e-5);

    // The same matrix as gate and, without bias and from the start, as the other.
    let gated = Gated {
        gate: w,
        up: linear(&held, "w", 0, rows, None),
        down: linear(&held, "down", 0, 7, None),
    };
    let ups = product(&values[..rows * columns], &wide(&x.values), columns, tokens);
    let inner = twin.iter().zip(&ups);
    let inner: Vec<f64> = inner.map(|(x, up)| x / (1.0 + (-x).exp()) * up).collect();
    let twin = product(&held.values("down"), &inner, rows, tokens);
    let found = gated.inner(&held.model(), Activation::Silu, &x).unwrap();
    let out = gated.down.apply(&held.model(), &found).unwrap();
    assert_near(&out.values, &twin, 1e-5);
}

#[test]
fn norms_agree_with_loops() {
    let (tokens, features) = (5, 24);
    for length in [features, features / 3] {
        let (values, weight) = (random(features * tokens, 6), random(length, 7));
        let mut found = values.clone();
        rms_norm(&mut found, tokens, &weight, 1.0, 1e-3);
        let twin: Vec<f64> = (0..features * tokens)
            .map(|place| {
                let (feature, token) = (place / tokens, place % tokens);
                let head = feature / length * length..(feature / length + 1) * length;
                let squares =
                    head.map(|feature| f64::from(values[feature * tokens + token]).powi(2));
                let mean = squares.sum::<f64>() / length as f64;
                let weight = f64::from(weight[feature % length]) + 1.0;
                f64::from(values[place]) / (mean + 1e-3).sqrt() * weight
            })
            .collect();
        assert_near(&found, &twin, 1e-6);
    }
}

#[test]
fn activations_are_what_they_are_called() {
    // From scipy: x * expit(x), x * norm.cdf(x), and the approximation by tanh.
    let expected = [
        (Activation::Silu, [-0.268_941_42, 0.0, 1.761_594_2]),
        (Activation::Gelu, [-0.158_655_25, 0.0, 1.954_499_7]),
        (Activation::GeluTanh, [-0.158_808_02, 0.0, 1.954_597_7]),
    ];
    for (activation, expected) in expected {
        let mut gates = [-1.0, 0.0, 2.0];
        activation.gate(&mut gates, &[1.0, 1.0, 1.0]);
        assert_near(&gates, &expected, 1e-6);
        let mut gates = [2.0];
        activation.gate(&mut gates, &[-3.0]);
        assert_near(&gates, &[-3.0 * expected[2]], 1e-6);
        // Far from zero nothing overflows into a NaN.
        let mut gates = [-1e30, 1e9];
        activation.gate(&mut gates, &[1.0, 1.0]);
        assert_near(&gates, &[0.0, 1e9], 1e-6);
    }
}

/// Prompts longer than a block of queries, and of one token, with windows below and above both lengths.
#[test]
fn attention_agrees_with_loops() {
    let lengths = [1usize, 150, 3];
    let prompts: Vec<Vec<u32>> = lengths.iter().map(|&length| vec![0; length]).collect();
    let batch = Batch::new(&prompts, 1).unwrap();
    let tokens = batch.tokens.len();
    let (heads, key_heads, head_dim, scale) = (4, 2, 6, 0.7);
    let filled = |rows: usize, seed| {
        let mut states = States::zeros(rows, tokens).unwrap();
        states.values = random(rows * tokens, seed);
        states.values.iter_mut().for_each(|value| *value *= 3.0);
        states
    };
    let (query, key) = (filled(heads * head_dim, 8), filled(key_heads * head_dim, 9));
    let value = filled(key_heads * head_dim, 10);
    let at = |states: &States, head: usize, feature: usize, token: usize| -> f64 {
        states.values[(head * head_dim + feature) * tokens + token].into()
    };
    for window in [
        None,
        Some(1),
        Some(7),
        Some(64),
        Some(65),
        Some(149),
        Some(1000),
    ] {
        let mut twin = vec![0f64; query.values.len()];
        for head in 0..heads {
            let of_keys = head / (heads / key_heads);
            for prompt in &batch.ranges() {
                for token in prompt.clone() {
                    let first = window.map_or(0, |window| (token + 1).saturating_sub(window));
                    let seen = first.max(prompt.start)..token + 1;
                    let score = |other: usize| -> f64 {
                        let terms = (0..head_dim)
                            .map(|d| at(&query, head, d, token) * at(&key, of_keys, d, other));
                        (scale * terms.sum::<f64>()).exp()
                    };
                    let sum: f64 = seen.clone().map(score).sum();
                    for d in 0..head_dim {
                        let terms = seen
                            .clone()
                            .map(|other| score(other) * at(&value, of_keys, d, other));
                        twin[(head * head_dim + d) * tokens + token] = terms.sum::<f64>() / sum;
                    }
                }
            }
        }
        let attention = Attention {
            heads,
            key_heads,
            head_dim,
            scale,
            window,
        };
        let mut found = query.clone();
        attention.apply(&mut found, &key, &value, &batch.sequences);
        assert_near(&found.values, &twin, 1e-5);
    }
}

#[test]
fn rotation_is_that_of_complex_numbers() {
    let config = serde_json::json!({"rope_theta": 100.0, "partial_rotary_factor": 0.5});
    let fields = Fields::new(&config).unwrap();
    // Of a family that may turn a part of each head.
    let decoder = Family::named("glm4_moe").unwrap().decoder.as_ref().unwrap();
    let settings = RopeSettings::read(&fields, decoder).unwrap();
    let rope = Rope::new(&fields, &settings, 8).unwrap();
    let batch = Batch::new(&[vec![0; 2], vec![0; 5]], 1).unwrap();
    let (tokens, heads) = (7, 2);
    let values = random(heads * 8 * tokens, 11);
    let mut found = values.clone();
    rope.table(&batch).unwrap().rotate(&mut found, 8);
    let positions = [0, 1, 0, 1, 2, 3, 4];
    let mut twin = wide(&values);
    for head in 0..heads {
        // Four of eight features rotate: pairs (0, 2) and (1, 3), by 1 and by 100^(-1/2) per position.
        for (pair, frequency) in [(0, 1.0), (1, 0.1)] {
            for (token, position) in positions.iter().enumerate() {
                let (sin, cos) = (f64::from(*position) * frequency).sin_cos();
                let (first, second) = (
                    (head * 8 + pair) * tokens + token,
                    (head * 8 + pair + 2) * tokens + token,
                );
                let (a, b) = (f64::from(values[first]), f64::from(values[second]));
                twin[first] = a * cos - b * sin;
                twin[second] = a * sin + b * cos;
            }
        }
    }
    assert_near(&found, &twin, 1e-6);
}

fn rounded(routed: Vec<(usize, f64)>) -> Vec<(usize, f64)> {
    let each = routed.into_iter();
    each.map(|(expert, weight)| (expert, (weight * 1e6).round() / 1e6))
        .collect()
}

#[test]
fn routing_worked_by_hand() {
    // Powers 1, 2, 4, 1: probabilities 1/8, 1/4, 1/2, 1/8.
    let logits = [0.0, 2f64.ln(), 4f64.ln(), 0.0];
    let all = |routing, count| rounded(route(&logits, &[], routing, count));
    let plain = Routing::Softmax { renormalise: false };
    assert_eq!(all(plain, 2), [(2, 0.5), (1, 0.25)]);
    // Of two equal ones, the first.
    assert_eq!(all(plain, 3), [(2, 0.5), (1, 0.25), (0, 0.125)]);
    let renormalised = Routing::Softmax { renormalise: true };
    assert_eq!(all(renormalised, 2), [(2, 0.666_667), (1, 0.333_333)]);
    assert_eq!(
        all(Routing::TopSoftmax, 2),
        [(2, 0.666_667), (1, 0.333_333)]
    );

    // Sigmoids 0.5, 0.75, 0.8, 0.5 once logits are 0, ln 3, ln 4, 0.
    let logits = [0.0, 3f64.ln(), 4f64.ln(), 0.0];
    let sigmoid = |correction: &[f32], groups, chosen_groups, renormalise, factor| {
        let routing = Routing::Sigmoid {
            groups,
            chosen_groups,
            renormalise,
            factor,
        };
        rounded(route(&logits, correction, routing, 2))
    };
    let none = [0.0; 4];
    assert_eq!(sigmoid(&none, 1, 1, false, 2.0), [(2, 1.6), (1, 1.5)]);
    assert_eq!(sigmoid(&none, 1, 1, true, 1.55), [(2, 0.8), (1, 0.75)]);
    // Groups (0, 1) and (2, 3) score 1.25 and 1.3.
    assert_eq!(sigmoid(&none, 2, 1, false, 1.0), [(2, 0.8), (3, 0.5)]);
    // The correction affects the choice, but not the weights.
    assert_eq!(
        sigmoid(&[0.2, 0.0, 0.0, 0.0], 2, 1, false, 1.0),
        [(1, 0.75), (0, 0.5)]
    );
    // Experts of rejected groups are never chosen, even if all scores are below zero.
    let below = [-9.0, -9.0, -8.0, -8.0];
    assert_eq!(sigmoid(&below, 2, 1, false, 1.0), [(2, 0.8), (3, 0.5)]);
}
