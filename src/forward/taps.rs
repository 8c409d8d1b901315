//! What enters the linear layers of a decoder, for statistics of activations.
//!
//! Layers that get one and the same input share it: queries, keys and values; gate and up; a router, the gate of a shared
//! expert, and its gate and up. Each expert has inputs of its own, those of the tokens that are routed to it.

use std::collections::BTreeSet;

use super::batches::batches;
use super::decoder::{Decoder, Run, pool};
use super::error::ForwardError;
use super::layout::{Layer, Linear, Mlp};
use super::states::{Batch, States};
use super::weights::shape;

/// The tokens of sequences that are run together, unless one has more. It is fixed, as the last bits of states may depend
/// on it.
const BATCH: usize = 4096;

/// The place of an input among those of its layer.
pub(super) const ATTENTION: usize = 0;
pub(super) const ATTENTION_OUTPUT: usize = 1;
pub(super) const MLP: usize = 2;
pub(super) const DENSE_OUTPUT: usize = 3;

/// The place of what enters an expert.
pub(super) fn expert_input(expert: usize) -> usize {
    MLP + 1 + 2 * expert
}

/// The place of what enters an expert's last matrix; the shared expert comes after all others.
pub(super) fn expert_output(expert: usize) -> usize {
    MLP + 2 + 2 * expert
}

/// Sees what enters the linear layers of a layer.
pub(super) trait Taps: Send {
    /// What enters at a place.
    fn input(&mut self, place: usize, states: &States);

    /// Whether it wants no more.
    fn is_done(&self) -> bool {
        false
    }
}

/// Nobody listens.
impl Taps for () {
    fn input(&mut self, _place: usize, _states: &States) {}
}

/// An input that one or several linear layers have.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LinearInput {
    /// The layer of the decoder.
    pub layer: usize,
    /// Its features.
    pub features: usize,
    /// The weights that it is multiplied with; at least one.
    pub weights: Vec<LinearWeight>,
    /// Its place among the inputs of its layer.
    place: usize,
}

/// A weight matrix: a tensor, or one of those that a tensor stacks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LinearWeight {
    /// The tensor's name.
    pub tensor: String,
    /// The number of the matrix in a tensor that has one for each expert.
    pub matrix: Option<usize>,
}

/// Receives what enters the linear layers of a layer.
pub trait InputObserver: Send {
    /// Why it may stop the run.
    type Error: From<ForwardError> + Send;

    /// Some tokens of an input, by its number in [`Decoder::linear_inputs`]: `tokens x features`, in row order. An input
    /// is received in several pieces, always the same and in the same order.
    ///
    /// # Errors
    /// The run is to stop.
    fn input(&mut self, number: usize, values: Vec<f32>) -> Result<(), Self::Error>;
}

/// Sequences of tokens on their way through the layers of a decoder: the states of all of them.
#[derive(Debug, Clone)]
pub struct Passage(Vec<(Batch, States)>);

impl Decoder<'_> {
    /// What enters the linear layers of all layers, in order; the head and the embedding are none.
    pub fn linear_inputs(&self) -> Vec<LinearInput> {
        let layers = self.layers.iter().enumerate();
        layers
            .flat_map(|(number, layer)| self.inputs_of(number, layer))
            .collect()
    }

    fn inputs_of(&self, number: usize, layer: &Layer) -> Vec<LinearInput> {
        let input = |place, linears: &[&Linear]| {
            let mut weights = Vec::new();
            for linear in linears {
                let weight = self.weight(linear);
                if !weights.contains(&weight) {
                    weights.push(weight);
                }
            }
            LinearInput {
                layer: number,
                features: linears[0].matrix.columns,
                weights,
                place,
            }
        };
        let mut inputs = vec![
            input(ATTENTION, &[&layer.query, &layer.key, &layer.value]),
            input(ATTENTION_OUTPUT, &[&layer.output]),
        ];
        match &layer.mlp {
            Mlp::Dense(gated) => {
                inputs.push(input(MLP, &[&gated.gate, &gated.up]));
                inputs.push(input(DENSE_OUTPUT, &[&gated.down]));
            }
            Mlp::Experts(experts) => {
                let shared = experts.shared.iter();
                let mut whole = vec![&experts.router];
                whole.extend(shared.flat_map(|shared| [&shared.gate, &shared.up]));
                whole.extend(&experts.shared_gate);
                inputs.push(input(MLP, &whole));
                for (expert, gated) in experts.experts.iter().enumerate() {
                    inputs.push(input(expert_input(expert), &[&gated.gate, &gated.up]));
                    inputs.push(input(expert_output(expert), &[&gated.down]));
                }
                if let Some(shared) = &experts.shared {
                    let place = expert_output(experts.experts.len());
                    inputs.push(input(place, &[&shared.down]));
                }
            }
        }
        inputs
    }

    fn weight(&self, linear: &Linear) -> LinearWeight {
        let matrix = &linear.matrix;
        let stacked = match shape(self.weights, &matrix.tensor) {
            Some(&[_, rows, columns]) => Some(matrix.start / (rows * columns).max(1)),
            _ => None,
        };
        LinearWeight {
            tensor: matrix.tensor.clone(),
            matrix: stacked,
        }
    }

    /// Bytes that a [`Passage`] of these sequences takes.
    pub fn passage_bytes(&self, sequences: &[Vec<u32>]) -> u64 {
        let tokens: u64 = sequences.iter().map(|tokens| tokens.len() as u64).sum();
        tokens * 4 * self.settings.hidden as u64
    }

    /// Bytes that running a layer holds at the most beside the passage of these sequences, about: what a run of some of
    /// them holds, and the piece that an observer is given.
    pub fn layer_bytes(&self, sequences: &[Vec<u32>]) -> u64 {
        let batches = batches(sequences, BATCH, Vec::len);
        let largest = batches
            .iter()
            .map(|batch| batch.iter().map(Vec::len).sum::<usize>());
        let largest = largest.max().unwrap_or(0) as u64;
        let features = self.linear_inputs().into_iter().map(|input| input.features);
        let piece = 4 * features.max().unwrap_or(0) as u64;
        largest * (self.bytes_per_token() + piece)
    }

    /// The name of the embedding.
    pub fn embedding_name(&self) -> &str {
        &self.embedding.tensor
    }

    /// The names of the tensors that running a layer reads.
    ///
    /// # Panics
    /// If there is no such layer: an error of the caller.
    pub fn layer_names(&self, number: usize) -> BTreeSet<&str> {
        self.layers[number].names()
    }

    /// Sequences of tokens, each by itself, before the first layer.
    ///
    /// # Errors
    /// There is no sequence, one has no tokens or a token without an embedding, or the embedding cannot be read.
    pub fn embedded(&self, sequences: &[Vec<u32>]) -> Result<Passage, ForwardError> {
        if sequences.is_empty() {
            return Err(ForwardError::NoPrompt);
        }
        let batches = batches(sequences, BATCH, Vec::len).into_iter();
        let batches = batches.map(|sequences| {
            let batch = Batch::new(sequences, self.settings.vocabulary)?;
            let states = self.embed(&batch)?;
            Ok((batch, states))
        });
        Ok(Passage(batches.collect::<Result<_, ForwardError>>()?))
    }

    /// Runs a layer on sequences that are before it.
    ///
    /// # Errors
    /// A weight cannot be read, or states are or become NaN or infinite, or do not fit into memory.
    ///
    /// # Panics
    /// If there is no such layer: an error of the caller.
    pub fn run_layer(
        &self,
        number: usize,
        passage: &mut Passage,
        threads: usize,
    ) -> Result<(), ForwardError> {
        self.pass(number, passage, threads, &mut ())
    }

    /// The same; what enters the linear layers is passed to the observer. It does not depend on `threads`; 0 means one for
    /// each processor.
    ///
    /// # Errors
    /// As for [`run_layer`](Self::run_layer), and those of the observer.
    ///
    /// # Panics
    /// If there is no such layer: an error of the caller.
    pub fn observe_layer<O: InputObserver>(
        &self,
        number: usize,
        passage: &mut Passage,
        threads: usize,
        observer: &mut O,
    ) -> Result<(), O::Error> {
        let inputs = self.inputs_of(number, &self.layers[number]);
        let before = self.layers[..number].iter().enumerate();
        let before = before.map(|(number, layer)| self.inputs_of(number, layer).len());
        let mut taps = Pieces {
            inputs: &inputs,
            first: before.sum(),
            observer,
            failed: None,
        };
        let done = self.pass(number, passage, threads, &mut taps);
        match taps.failed {
            Some(error) => Err(error),
            None => Ok(done?),
        }
    }

    fn pass(
        &self,
        number: usize,
        passage: &mut Passage,
        threads: usize,
        taps: &mut dyn Taps,
    ) -> Result<(), ForwardError> {
        let pool = pool(threads)?;
        let layer = &self.layers[number];
        for (batch, states) in &mut passage.0 {
            states.check(|| format!("that enter layer {number}"))?;
            pool.install(|| self.tapped(number, layer, batch, states, taps))?;
            if taps.is_done() {
                return Ok(());
            }
        }
        if number + 1 == self.layers.len() {
            let mut batches = passage.0.iter();
            batches
                .try_for_each(|(_, states)| states.check(|| "that leave the last layer".into()))?;
        }
        Ok(())
    }

    fn tapped(
        &self,
        number: usize,
        layer: &Layer,
        batch: &Batch,
        states: &mut States,
        taps: &mut dyn Taps,
    ) -> Result<(), ForwardError> {
        let table = self.rope.table(batch)?;
        let run = Run {
            batch,
            table: &table,
            cache: None,
            taps: &mut *taps,
        };
        self.attend(number, layer, states, run)?;
        let input = self.mlp_input(layer, states)?;
        self.feed(layer, &input, states, taps)
    }
}

/// Passes pieces of inputs to an observer, until it fails.
struct Pieces<'p, O: InputObserver> {
    inputs: &'p [LinearInput],
    /// The number of the first of them.
    first: usize,
    observer: &'p mut O,
    failed: Option<O::Error>,
}

impl<O: InputObserver> Taps for Pieces<'_, O> {
    fn input(&mut self, place: usize, states: &States) {
        let mut inputs = self.inputs.iter();
        let found = inputs.position(|input| input.place == place);
        let (Some(number), None) = (found, &self.failed) else {
            return;
        };
        let mut values = Vec::new();
        states.by_token(&mut values);
        self.failed = self.observer.input(self.first + number, values).err();
    }

    fn is_done(&self) -> bool {
        self.failed.is_some()
    }
}
