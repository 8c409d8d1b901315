//! A decoder in f64 made of a few loops: one token at a time, no tiles, no batches.

use std::cell::RefCell;
use std::collections::BTreeMap;

use super::Held;

/// The sizes of the twin's model: a Qwen3-MoE, its even layers dense, with a window.
pub(super) struct Twin<'a> {
    pub(super) held: &'a Held,
    pub(super) hidden: usize,
    pub(super) heads: usize,
    pub(super) key_heads: usize,
    pub(super) head_dim: usize,
    pub(super) layers: usize,
    pub(super) window: usize,
    pub(super) theta: f64,
    pub(super) experts: usize,
    pub(super) per_token: usize,
    pub(super) eps: f64,
    /// What each matrix was multiplied with, by its name.
    pub(super) seen: RefCell<BTreeMap<String, Vec<Vector>>>,
}

type Vector = Vec<f64>;

impl Twin<'_> {
    fn times(&self, name: &str, x: &[f64]) -> Vector {
        let mut seen = self.seen.borrow_mut();
        seen.entry(name.to_owned()).or_default().push(x.to_vec());
        let weights = self.held.values(name);
        weights
            .chunks(x.len())
            .map(|row| row.iter().zip(x).map(|(w, x)| w * x).sum())
            .collect()
    }

    fn norm(&self, name: &str, x: &[f64]) -> Vector {
        let mean = x.iter().map(|x| x * x).sum::<f64>() / x.len() as f64;
        let scale = (mean + self.eps).sqrt().recip();
        let weights = self.held.values(name);
        x.iter().zip(weights).map(|(x, w)| x * scale * w).collect()
    }

    /// Heads after their norm, rotated by their position.
    fn turned(&self, norm: &str, x: &[f64], position: usize) -> Vec<Vector> {
        let half = self.head_dim / 2;
        let heads = x.chunks(self.head_dim).map(|head| self.norm(norm, head));
        heads
            .map(|head| {
                let mut turned = head.clone();
                for pair in 0..half {
                    let power = -2.0 * pair as f64 / self.head_dim as f64;
                    let (sin, cos) = (position as f64 * self.theta.powf(power)).sin_cos();
                    turned[pair] = head[pair] * cos - head[pair + half] * sin;
                    turned[pair + half] = head[pair] * sin + head[pair + half] * cos;
                }
                turned
            })
            .collect()
    }

    fn mlp(&self, start: &str, x: &[f64]) -> Vector {
        let gates = self.times(&format!("{start}gate_proj.weight"), x);
        let ups = self.times(&format!("{start}up_proj.weight"), x);
        let inner = gates.iter().zip(ups);
        let inner: Vector = inner
            .map(|(gate, up)| gate / (1.0 + (-gate).exp()) * up)
            .collect();
        self.times(&format!("{start}down_proj.weight"), &inner)
    }

    fn mixture(&self, start: &str, x: &[f64]) -> Vector {
        let logits = self.times(&format!("{start}gate.weight"), x);
        let powers: Vector = logits.iter().map(|logit| logit.exp()).collect();
        let mut order: Vec<usize> = (0..self.experts).collect();
        order.sort_by(|&a, &b| powers[b].total_cmp(&powers[a]));
        order.truncate(self.per_token);
        let sum: f64 = order.iter().map(|&expert| powers[expert]).sum();
        let mut out = vec![0.0; x.len()];
        for expert in order {
            let of_expert = self.mlp(&format!("{start}experts.{expert}."), x);
            for (out, value) in out.iter_mut().zip(of_expert) {
                *out += powers[expert] / sum * value;
            }
        }
        out
    }

    /// The input of each layer and the output of the last, then the input of each MLP: by layer and token.
    pub(super) fn run(&self, prompt: &[u32]) -> (Vec<Vec<Vector>>, Vec<Vec<Vector>>) {
        let embedding = self.held.values("model.embed_tokens.weight");
        let row = |token: &u32| embedding[*token as usize * self.hidden..][..self.hidden].to_vec();
        let mut states: Vec<Vector> = prompt.iter().map(row).collect();
        let (mut layers, mut gates) = (Vec::new(), Vec::new());
        for layer in 0..self.layers {
            layers.push(states.clone());
            let start = format!("model.layers.{layer}.");
            let name = |rest: &str| format!("{start}{rest}.weight");
            let mut keys: Vec<Vec<Vector>> = Vec::new();
            let mut values: Vec<Vector> = Vec::new();
            let mut inputs = Vec::new();
            for (position, state) in states.iter_mut().enumerate() {
                let x = self.norm(&name("input_layernorm"), state);
                let project = |part: &str| self.times(&name(&format!("self_attn.{part}_proj")), &x);
                keys.push(self.turned(&name("self_attn.k_norm"), &project("k"), position));
                values.push(project("v"));
                let queries = self.turned(&name("self_attn.q_norm"), &project("q"), position);
                let mut context = Vec::new();
                for (head, query) in queries.iter().enumerate() {
                    let of_keys = head / (self.heads / self.key_heads);
                    let first = (position + 1).saturating_sub(self.window);
                    let score = |other: usize| -> f64 {
                        let terms = query.iter().zip(&keys[other][of_keys]).map(|(q, k)| q * k);
                        (terms.sum::<f64>() / (self.head_dim as f64).sqrt()).exp()
                    };
                    let sum: f64 = (first..=position).map(score).sum();
                    for d in 0..self.head_dim {
                        let value = |other: usize| values[other][of_keys * self.head_dim + d];
                        let terms =
                            (first..=position).map(|other| score(other) / sum * value(other));
                        context.push(terms.sum::<f64>());
                    }
                }
                let out = self.times(&name("self_attn.o_proj"), &context);
                for (state, out) in state.iter_mut().zip(out) {
                    *state += out;
                }
                let input = self.norm(&name("post_attention_layernorm"), state);
                let block = format!("{start}mlp.");
                let out = match layer % 2 {
                    0 => self.mlp(&block, &input),
                    _ => self.mixture(&block, &input),
                };
                inputs.push(input);
                for (state, out) in state.iter_mut().zip(out) {
                    *state += out;
                }
            }
            gates.push(inputs);
        }
        layers.push(states);
        (layers, gates)
    }

    /// The logits after each token.
    pub(super) fn logits(&self, last: &[Vector]) -> Vec<Vector> {
        let normed = last
            .iter()
            .map(|state| self.norm("model.norm.weight", state));
        normed
            .map(|state| self.times("lm_head.weight", &state))
            .collect()
    }
}
