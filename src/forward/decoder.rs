//! The decoder: one block for all families, run layer by layer for all prompts at once.

use std::ops::Range;

use architecture::Fields;
use rayon::ThreadPool;
use rayon::prelude::*;
use serde_json::Value;

use super::attention::Attention;
use super::cache::Cache;
use super::error::ForwardError;
use super::layout::{Layer, Matrix, Mlp, Tensors, Vector};
use super::norm::rms_norm;
use super::rope::{Rope, Table};
use super::settings::Settings;
use super::states::{Batch, States};
use super::taps::{self, Taps};
use super::weights::read;
use checkpoint::Checkpoint;
use numeric::{View, multiply};

/// How many tiles of the head are computed before their sums are folded.
const TILES: usize = 32;

/// Receives the states of a run.
///
/// `states` are `tokens x hidden` in row order, the prompts one after the other; `prompts` are their ranges of tokens.
pub trait Observer {
    /// The residual stream that enters layer `layer`, before its norm.
    fn layer_input(&mut self, layer: usize, states: &[f32], prompts: &[Range<usize>]);

    /// The input that a router of layer `layer` would get: after the attention, the residual, and the norm before the
    /// MLP if the family has one.
    fn gate_input(&mut self, layer: usize, states: &[f32], prompts: &[Range<usize>]);

    /// Whether [`gate_input`](Self::gate_input) is needed; if not, the attention of the last layer is not computed.
    fn wants_gate_inputs(&self) -> bool {
        true
    }
}

/// A decoder with a valid config and all of its tensors, in the right shapes.
pub struct Decoder<'w> {
    pub(super) weights: &'w Checkpoint,
    pub(super) settings: Settings,
    pub(super) embedding: Matrix,
    pub(super) layers: Vec<Layer>,
    pub(super) rope: Rope,
}

impl<'w> Decoder<'w> {
    /// Reads a `config.json` and finds the tensors of all layers; no weight is read.
    ///
    /// # Errors
    /// If the config belongs to no supported family, has an unknown field that would change the result, or calls for
    /// tensors other than those found.
    pub fn new(config: &Value, weights: &'w Checkpoint) -> Result<Decoder<'w>, ForwardError> {
        let fields = Fields::new(config)?;
        let settings = Settings::read(&fields)?;
        let tensors = Tensors::new(weights);
        let embedding = tensors.embedding(&settings)?;
        let layers = (0..settings.layers).map(|layer| tensors.layer(&settings, layer));
        let layers = layers.collect::<Result<Vec<Layer>, ForwardError>>()?;
        Ok(Decoder {
            weights,
            embedding,
            layers,
            rope: Rope::new(&fields, &settings.rope, settings.head_dim)?,
            settings,
        })
    }

    /// Number of layers.
    pub fn layers(&self) -> usize {
        self.layers.len()
    }

    /// Number of features in a state.
    pub fn hidden_size(&self) -> usize {
        self.settings.hidden
    }

    /// Runs all prompts and passes their states to the observer; each weight is read once.
    ///
    /// `until` is the last layer whose states are wanted, or none for the model's last; the run ends before the MLP of
    /// that layer. Besides one tile of a matrix per thread, a run holds in f32, for each token, its state and either
    /// its queries, keys and values or the inner features of an MLP. The states do not depend on `threads`; none means
    /// one per processor.
    ///
    /// # Errors
    /// If a prompt is empty or has a token without an embedding, a weight cannot be read, or states become NaN or
    /// infinite or do not fit into memory.
    pub fn run(
        &self,
        prompts: &[Vec<u32>],
        threads: usize,
        observer: &mut dyn Observer,
        until: Option<usize>,
    ) -> Result<(), ForwardError> {
        let last = until.unwrap_or(self.layers.len() - 1);
        if last >= self.layers.len() {
            return Err(ForwardError::Layer {
                asked: last,
                layers: self.layers.len(),
            });
        }
        let batch = Batch::new(prompts, self.settings.vocabulary)?;
        let pool = pool(threads)?;
        let table = self.rope.table(&batch)?;
        let prompts = batch.ranges();
        let mut states = self.embed(&batch)?;
        let mut by_token = Vec::new();
        for (number, layer) in self.layers.iter().enumerate().take(last + 1) {
            states.check(|| format!("that enter layer {number}"))?;
            states.by_token(&mut by_token);
            observer.layer_input(number, &by_token, &prompts);
            if number == last && !observer.wants_gate_inputs() {
                break;
            }
            pool.install(|| {
                let run = Run {
                    batch: &batch,
                    table: &table,
                    cache: None,
                    taps: &mut (),
                };
                self.attend(number, layer, &mut states, run)
            })?;
            let input = self.mlp_input(layer, &states)?;
            if observer.wants_gate_inputs() {
                input.check(|| format!("before the MLP of layer {number}"))?;
                input.by_token(&mut by_token);
                observer.gate_input(number, &by_token, &prompts);
            }
            if number < last {
                pool.install(|| self.feed(layer, &input, &mut states, &mut ()))?;
            }
        }
        Ok(())
    }

    /// The number of tokens that it knows: each token is below.
    pub fn vocabulary(&self) -> usize {
        self.settings.vocabulary
    }

    /// The logits of the token that follows each prompt, one per token of the vocabulary.
    ///
    /// # Errors
    /// As for [`run`](Self::run), and if the model has no head.
    pub fn logits(
        &self,
        prompts: &[Vec<u32>],
        threads: usize,
    ) -> Result<Vec<Vec<f32>>, ForwardError> {
        let batch = Batch::new(prompts, self.settings.vocabulary)?;
        let pool = pool(threads)?;
        let head = pool.install(|| self.head())?;
        let states = pool.install(|| self.last_states(&batch, &batch.last_tokens(), None))?;
        let states = self.normed(&head.norm, &states)?;
        let mut logits = vec![Vec::new(); prompts.len()];
        pool.install(|| {
            self.by_tiles(
                &head.matrix,
                &states,
                |_, tile| Ok(tile),
                |tile| {
                    for row in tile.chunks_exact(states.tokens) {
                        for (logits, logit) in logits.iter_mut().zip(row) {
                            logits.push(*logit);
                        }
                    }
                },
            )
        })?;
        Ok(logits)
    }

    /// The states of some of the tokens after the last layer. With a cache, keys and values go into it, and sequences see
    /// those that are there.
    pub(super) fn last_states(
        &self,
        batch: &Batch,
        wanted: &[usize],
        mut cache: Option<&mut Cache>,
    ) -> Result<States, ForwardError> {
        let table = self.rope.table(batch)?;
        let mut states = self.embed(batch)?;
        for (number, layer) in self.layers.iter().enumerate() {
            states.check(|| format!("that enter layer {number}"))?;
            let run = Run {
                batch,
                table: &table,
                cache: cache.as_deref_mut(),
                taps: &mut (),
            };
            self.attend(number, layer, &mut states, run)?;
            if number + 1 == self.layers.len() {
                states = states.select(wanted)?;
            }
            let input = self.mlp_input(layer, &states)?;
            self.feed(layer, &input, &mut states, &mut ())?;
        }
        states.check(|| "that leave the last layer".into())?;
        Ok(states)
    }

    /// The rows of the embedding, one per token.
    pub(super) fn embed(&self, batch: &Batch) -> Result<States, ForwardError> {
        let (hidden, tokens) = (self.settings.hidden, batch.tokens.len());
        let mut states = States::zeros(hidden, tokens)?;
        let mut row = vec![0.0; hidden];
        for (place, token) in batch.tokens.iter().enumerate() {
            let start = *token as usize * hidden;
            read(self.weights, &self.embedding.tensor, start, &mut row)?;
            for (feature, value) in row.iter().enumerate() {
                states.values[feature * tokens + place] = value * self.settings.embedding_scale;
            }
        }
        Ok(states)
    }

    pub(super) fn normed(&self, norm: &Vector, states: &States) -> Result<States, ForwardError> {
        let mut normed = States::zeros(states.rows, states.tokens)?;
        normed.values.copy_from_slice(&states.values);
        self.norm(norm, &mut normed)?;
        Ok(normed)
    }

    fn norm(&self, norm: &Vector, states: &mut States) -> Result<(), ForwardError> {
        let weight = norm.read(self.weights)?;
        let (offset, eps) = (self.settings.norm_offset, self.settings.eps);
        rms_norm(&mut states.values, states.tokens, &weight, offset, eps);
        Ok(())
    }

    /// Adds the output of a layer's attention to the residual stream.
    pub(super) fn attend(
        &self,
        number: usize,
        layer: &Layer,
        states: &mut States,
        run: Run<'_>,
    ) -> Result<(), ForwardError> {
        let settings = &self.settings;
        let Run { batch, table, .. } = run;
        let (mut query, mut key, value) = {
            let normed = match settings.norms_after {
                false => Some(self.normed(&layer.attention_norm, states)?),
                true => None,
            };
            let input = normed.as_ref().unwrap_or(states);
            run.taps.input(taps::ATTENTION, input);
            (
                layer.query.apply(self.weights, input)?,
                layer.key.apply(self.weights, input)?,
                layer.value.apply(self.weights, input)?,
            )
        };
        if let Some((of_query, of_key)) = &layer.query_norms {
            self.norm(of_query, &mut query)?;
            self.norm(of_key, &mut key)?;
        }
        table.rotate(&mut query.values, settings.head_dim);
        table.rotate(&mut key.values, settings.head_dim);
        let attention = Attention {
            heads: settings.heads,
            key_heads: settings.key_heads,
            head_dim: settings.head_dim,
            scale: settings.attention_scale,
            window: settings.windows.of_layer(number),
        };
        match run.cache {
            None => attention.apply(&mut query, &key, &value, &batch.sequences),
            Some(cache) => {
                let (keys, values) = cache.keep(number, &key, &value, batch);
                attention.apply(&mut query, keys, values, &batch.sequences);
            }
        }
        drop((key, value));
        run.taps.input(taps::ATTENTION_OUTPUT, &query);
        let mut out = layer.output.apply(self.weights, &query)?;
        if settings.norms_after {
            self.norm(&layer.attention_norm, &mut out)?;
        }
        states.add(&out, settings.residual_scale);
        Ok(())
    }

    /// The input of a layer's MLP.
    pub(super) fn mlp_input(&self, layer: &Layer, states: &States) -> Result<States, ForwardError> {
        match self.settings.norms_after {
            false => self.normed(&layer.mlp_norm, states),
            true => {
                let mut input = States::zeros(states.rows, states.tokens)?;
                input.values.copy_from_slice(&states.values);
                Ok(input)
            }
        }
    }

    /// Adds the output of a layer's MLP to the residual stream.
    pub(super) fn feed(
        &self,
        layer: &Layer,
        input: &States,
        states: &mut States,
        taps: &mut dyn Taps,
    ) -> Result<(), ForwardError> {
        let activation = self.settings.activation;
        taps.input(taps::MLP, input);
        let mut out = match &layer.mlp {
            Mlp::Dense(gated) => {
                let inner = gated.inner(self.weights, activation, input)?;
                taps.input(taps::DENSE_OUTPUT, &inner);
                gated.down.apply(self.weights, &inner)?
            }
            Mlp::Experts(experts) => experts.apply(self.weights, activation, input, taps)?,
        };
        if self.settings.norms_after {
            self.norm(&layer.mlp_norm, &mut out)?;
        }
        states.add(&out, self.settings.residual_scale);
        Ok(())
    }

    /// The tensors of the head; a head that is tied and also stored must equal the embedding.
    pub(super) fn head(&self) -> Result<Head, ForwardError> {
        let tensors = Tensors::new(self.weights);
        let matrix = tensors.head(&self.settings)?;
        if let Some(stored) = tensors.tied_head(&self.settings)? {
            let tiles = (0..matrix.rows).into_par_iter().step_by(matrix.tile_rows());
            tiles.try_for_each_init(Default::default, |(a, b): &mut (Vec<_>, Vec<_>), first| {
                matrix.read(self.weights, first, a)?;
                stored.read(self.weights, first, b)?;
                match a == b {
                    true => Ok(()),
                    false => Err(ForwardError::HeadsDiffer {
                        embedding: matrix.tensor.clone(),
                    }),
                }
            })?;
        }
        Ok(Head {
            norm: tensors.last_norm(&self.settings)?,
            matrix,
        })
    }

    /// Multiplies the head by states, a tile at a time. Each tile's results, with the token it starts at, are folded in
    /// order.
    pub(super) fn by_tiles<T: Send>(
        &self,
        head: &Matrix,
        states: &States,
        make: impl Fn(usize, Vec<f32>) -> Result<T, ForwardError> + Sync,
        mut fold: impl FnMut(T),
    ) -> Result<(), ForwardError> {
        let divisor = self.settings.logits_divisor as f32;
        let firsts: Vec<usize> = (0..head.rows).step_by(head.tile_rows()).collect();
        for firsts in firsts.chunks(TILES) {
            let tiles = firsts.par_iter().map_init(Vec::new, |tile, &first| {
                let rows = head.read(self.weights, first, tile)?;
                let mut logits = States::zeros(rows, states.tokens)?;
                multiply(
                    &mut logits.values,
                    View::rows(tile, rows, head.columns),
                    View::rows(&states.values, states.rows, states.tokens),
                );
                logits.values.iter_mut().for_each(|logit| *logit /= divisor);
                logits.check(|| "that the head gives, the logits,".into())?;
                make(first, logits.values)
            });
            let tiles: Result<Vec<T>, ForwardError> = tiles.collect();
            tiles?.into_iter().for_each(&mut fold);
        }
        Ok(())
    }
}

/// What the attention of a layer needs besides states.
pub(super) struct Run<'r> {
    pub(super) batch: &'r Batch,
    pub(super) table: &'r Table,
    /// Takes keys and values, and has those of earlier runs.
    pub(super) cache: Option<&'r mut Cache>,
    /// Sees what enters linear layers.
    pub(super) taps: &'r mut dyn Taps,
}

/// The tensors after the last layer.
pub(super) struct Head {
    pub(super) norm: Vector,
    pub(super) matrix: Matrix,
}

pub(super) fn pool(threads: usize) -> Result<ThreadPool, ForwardError> {
    rayon::ThreadPoolBuilder::new()
        .num_threads(threads)
        .thread_name(|index| format!("weld-{index}"))
        .build()
        .map_err(|source| ForwardError::Threads { threads, source })
}
