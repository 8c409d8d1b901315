//! A mixture of experts: routes tokens to experts and sums the results.

use super::activation::Activation;
use super::error::ForwardError;
use super::layout::Experts;
use super::settings::Routing;
use super::states::States;
use super::taps::{Taps, expert_input, expert_output};
use checkpoint::Checkpoint;

impl Experts {
    /// The weighted sum of each token's experts, and of the shared expert.
    pub(super) fn apply(
        &self,
        weights: &Checkpoint,
        activation: Activation,
        x: &States,
        taps: &mut dyn Taps,
    ) -> Result<States, ForwardError> {
        let logits = self.router.apply(weights, x)?;
        let correction = match &self.correction {
            Some(correction) => correction.read(weights)?,
            None => Vec::new(),
        };
        // The tokens of each expert, and their weights.
        let mut assigned: Vec<(Vec<usize>, Vec<f32>)> = vec![Default::default(); logits.rows];
        for token in 0..x.tokens {
            let of_token = logits.values.iter().skip(token).step_by(x.tokens);
            let of_token: Vec<f64> = of_token.map(|&logit| f64::from(logit)).collect();
            for (expert, weight) in route(&of_token, &correction, self.routing, self.per_token) {
                assigned[expert].0.push(token);
                assigned[expert].1.push(weight as f32);
            }
        }
        let mut sum = States::zeros(x.rows, x.tokens)?;
        let experts = self.experts.iter().zip(&assigned).enumerate();
        for (number, (expert, (tokens, factors))) in experts {
            if tokens.is_empty() {
                continue;
            }
            let selected = x.select(tokens)?;
            taps.input(expert_input(number), &selected);
            let inner = expert.inner(weights, activation, &selected)?;
            taps.input(expert_output(number), &inner);
            let out = expert.down.apply(weights, &inner)?;
            let rows = out.values.chunks_exact(tokens.len());
            for (sum, row) in sum.values.chunks_exact_mut(x.tokens).zip(rows) {
                for ((value, &token), factor) in row.iter().zip(tokens).zip(factors) {
                    sum[token] += factor * value;
                }
            }
        }
        if let Some(shared) = &self.shared {
            let inner = shared.inner(weights, activation, x)?;
            taps.input(expert_output(self.experts.len()), &inner);
            let mut out = shared.down.apply(weights, &inner)?;
            if let Some(gate) = &self.shared_gate {
                let gates = gate.apply(weights, x)?;
                for row in out.values.chunks_exact_mut(x.tokens) {
                    for (value, gate) in row.iter_mut().zip(&gates.values) {
                        *value *= sigmoid(f64::from(*gate)) as f32;
                    }
                }
            }
            sum.add(&out, 1.0);
        }
        Ok(sum)
    }
}

fn sigmoid(logit: f64) -> f64 {
    1.0 / (1.0 + (-logit).exp())
}

/// The experts of a token by its logits, best first, with their weights; of equal logits, the lower number wins.
pub(super) fn route(
    logits: &[f64],
    correction: &[f32],
    routing: Routing,
    count: usize,
) -> Vec<(usize, f64)> {
    let weighed = |scores: &[f64], chosen: Vec<usize>| -> Vec<(usize, f64)> {
        let each = chosen.into_iter();
        each.map(|expert| (expert, scores[expert])).collect()
    };
    match routing {
        Routing::Softmax { renormalise } => {
            let scores = softmax(logits);
            let chosen = largest(&scores, 0..scores.len(), count);
            let mut chosen = weighed(&scores, chosen);
            if renormalise {
                scale(&mut chosen, 0.0, 1.0);
            }
            chosen
        }
        Routing::TopSoftmax => {
            let chosen = largest(logits, 0..logits.len(), count);
            let kept: Vec<f64> = chosen.iter().map(|&expert| logits[expert]).collect();
            chosen.into_iter().zip(softmax(&kept)).collect()
        }
        Routing::Sigmoid {
            groups,
            chosen_groups,
            renormalise,
            factor,
        } => {
            let scores: Vec<f64> = logits.iter().map(|&logit| sigmoid(logit)).collect();
            let corrected = scores.iter().zip(correction);
            let choosing: Vec<f64> = corrected
                .map(|(score, by)| score + f64::from(*by))
                .collect();
            let size = logits.len() / groups;
            let members = |group: usize| group * size..(group + 1) * size;
            let of_group = |group| -> f64 {
                let best = largest(&choosing, members(group), 2);
                best.into_iter().map(|expert| choosing[expert]).sum()
            };
            let of_groups: Vec<f64> = (0..groups).map(of_group).collect();
            let mut candidates = largest(&of_groups, 0..groups, chosen_groups);
            candidates.sort_unstable();
            let candidates = candidates.into_iter().flat_map(members);
            let mut chosen = weighed(&scores, largest(&choosing, candidates, count));
            if renormalise {
                scale(&mut chosen, 1e-20, factor);
            } else {
                chosen.iter_mut().for_each(|(_, weight)| *weight *= factor);
            }
            chosen
        }
    }
}

/// Scales weights so that they sum to `factor`; `least` is added to their sum to keep it above zero.
fn scale(chosen: &mut [(usize, f64)], least: f64, factor: f64) {
    let sum: f64 = chosen.iter().map(|(_, weight)| weight).sum();
    for (_, weight) in chosen {
        *weight *= factor / (sum + least);
    }
}

/// The indices of the largest scores among candidates in ascending order; of equal scores, the first wins.
fn largest(scores: &[f64], candidates: impl Iterator<Item = usize>, count: usize) -> Vec<usize> {
    let mut places: Vec<usize> = candidates.collect();
    places.sort_by(|&a, &b| scores[b].total_cmp(&scores[a]));
    places.truncate(count);
    places
}

fn softmax(logits: &[f64]) -> Vec<f64> {
    let largest = logits.iter().fold(f64::NEG_INFINITY, |a, &b| a.max(b));
    let powers: Vec<f64> = logits.iter().map(|logit| (logit - largest).exp()).collect();
    let sum: f64 = powers.iter().sum();
    powers.into_iter().map(|power| power / sum).collect()
}
