//! Kernels and the whole block compared with slow twins in f64; configs and tensors that lie.

#[path = "../../checkpoint/fixtures.rs"]
mod fixtures;
mod hostile;
mod kernels;
mod published;
mod tokens;
mod twin;
mod whole;

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

use super::Observer;
use checkpoint::{Bytes, Checkpoint, Dtype, InMemory, Location, SidecarsFrom};

/// Weights in memory.
#[derive(Default, Clone)]
pub(super) struct Held(pub(super) BTreeMap<String, (Vec<usize>, Vec<f32>)>);

impl Held {
    /// Adds a tensor of pseudo-random numbers of magnitude `scale` around `centre`.
    pub(super) fn add(&mut self, name: &str, shape: &[usize], centre: f32, scale: f32) {
        let seed = name.bytes().fold(7u64, |seed, byte| {
            seed.wrapping_mul(31).wrapping_add(byte.into())
        });
        let values = random(shape.iter().product(), seed);
        let values = values.iter().map(|value| centre + scale * value).collect();
        self.0.insert(name.into(), (shape.into(), values));
    }

    pub(super) fn values(&self, name: &str) -> Vec<f64> {
        self.0[name].1.iter().map(|&value| value.into()).collect()
    }

    /// A model with these weights.
    pub(super) fn model(&self) -> Checkpoint {
        let tensors = self.0.iter().map(|(name, (shape, values))| {
            let bytes: Vec<u8> = values
                .iter()
                .flat_map(|value| value.to_le_bytes())
                .collect();
            (
                name.clone(),
                Dtype::F32,
                shape.clone(),
                Box::new(bytes) as Bytes,
            )
        });
        let tensors = Arc::new(InMemory::new(tensors).unwrap());
        Checkpoint::new(
            "held",
            Location::local("held"),
            None,
            SidecarsFrom::Nothing,
            tensors,
        )
    }
}

/// Numbers from -1 to 1.
pub(super) fn random(count: usize, seed: u64) -> Vec<f32> {
    let mut state = seed | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 40) as f32 / (1u64 << 23) as f32 - 1.0
    };
    (0..count).map(|_| next()).collect()
}

/// Keeps all states.
#[derive(Default)]
pub(super) struct Kept {
    pub(super) layers: Vec<Vec<f32>>,
    pub(super) gates: Vec<Vec<f32>>,
    pub(super) prompts: Vec<Range<usize>>,
}

impl Observer for Kept {
    fn layer_input(&mut self, layer: usize, states: &[f32], prompts: &[Range<usize>]) {
        assert_eq!(layer, self.layers.len());
        self.layers.push(states.to_vec());
        self.prompts = prompts.to_vec();
    }

    fn gate_input(&mut self, layer: usize, states: &[f32], _: &[Range<usize>]) {
        assert_eq!(layer, self.gates.len());
        self.gates.push(states.to_vec());
    }
}

/// Asserts that values agree with a twin's, within `bound` of the largest.
pub(super) fn assert_near(found: &[f32], twin: &[f64], bound: f64) {
    assert_eq!(found.len(), twin.len());
    let largest = twin
        .iter()
        .fold(1e-30f64, |most, value| most.max(value.abs()));
    for (place, (found, twin)) in found.iter().zip(twin).enumerate() {
        let off = (f64::from(*found) - twin).abs();
        assert!(off <= bound * largest, "{place}: {found} is not {twin}");
    }
}
