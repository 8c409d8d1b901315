//! The way from a model and texts to a file: what is kept of each input, and how much memory and room that takes.

use std::io::Write;
use std::path::Path;

use bytesize::ByteSize;
use checkpoint::{Checkpoint, Dtype, ShardLayout, Statistic, StatisticsInfo, annotated_layout};
use errors::{About, Refusal};
use eval::{EvalError, Listener, Prepared, Surroundings, Tasks};
use forward::{Decoder, ForwardError, InputObserver, LinearInput};
use run::check_unchanged;
use run::destination::{Disk, DiskError, Step, check_space, folder_of, write_with};

use super::error::StatsError;
use super::sums::Sums;

/// What is held besides states and sums, in bytes: buffers of the file and of the texts; and for each thread, tiles of two
/// matrices in f32 and what a product packs.
const ALWAYS: u64 = 32 << 20;
const OF_THREAD: u64 = 24 << 20;

/// Values that are encoded at a time.
const PIECE: usize = 1 << 16;

/// What is kept of each input.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Keep {
    /// The Gram matrix.
    pub gram: bool,
    /// The mean magnitude of each feature.
    pub magnitude: bool,
}

/// What is asked for.
#[derive(Debug)]
pub struct Request<'a> {
    /// The model.
    pub model: &'a Checkpoint,
    /// The texts.
    pub texts: &'a Tasks,
    /// Which of them are taken.
    pub options: &'a eval::Options,
    /// What is kept.
    pub keep: Keep,
    /// The most bytes of memory.
    pub memory: u64,
}

/// Statistics before they are collected.
pub struct Collection<'a> {
    model: &'a Checkpoint,
    decoder: Decoder<'a>,
    threads: usize,
    sequences: Vec<Vec<u32>>,
    inputs: Vec<LinearInput>,
    keep: Keep,
    layout: ShardLayout,
    memory: u64,
}

/// What was written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Written {
    /// Tokens that the model was run on.
    pub tokens: u64,
    /// Inputs that statistics were kept of.
    pub inputs: usize,
    /// Inputs that no token reached: those of experts that none was routed to.
    pub unreached: usize,
    /// The length of the file.
    pub bytes: u64,
}

impl<'a> Collection<'a> {
    /// Cuts the texts into tokens and finds the inputs of linear layers; no weight is read but for its fingerprint.
    ///
    /// # Errors
    /// The model cannot be run, the texts cannot be cut, the memory does not suffice, or the listener asks to stop.
    pub fn plan(request: &Request<'a>, listener: &dyn Listener) -> Result<Self, StatsError> {
        let Request { model, keep, .. } = *request;
        let about = || About::default().model(model.label());
        let refused =
            |why: String| Refusal::new(format!("model `{}`: {why}", model.label())).about(about());
        let Some(config) = model.config() else {
            let why = refused("there is no config.json".into());
            return Err(why.with_hint("name the model's folder").into());
        };
        let decoder = Decoder::new(config.value(), model);
        let decoder = decoder.map_err(|source| of_model(model, source))?;
        let surroundings = Surroundings::of_checkpoint(model)?;
        let prepared = Prepared::new(&surroundings, request.texts, request.options, listener)?;
        let sequences = prepared.sequences();
        let inputs = decoder.linear_inputs();
        let info = info(model, &sequences, &inputs);
        let (key, text) = info.metadata();
        let layout = annotated_layout(&tensors(&inputs, keep), "statistics", (key, &text))?;
        let memory = decoder
            .inputs_bytes(&sequences)
            .saturating_add(held(&inputs, keep))
            .saturating_add(ALWAYS + OF_THREAD * threads(request.options.threads));
        if memory > request.memory {
            let tokens: usize = sequences.iter().map(Vec::len).sum();
            let why = refused(format!(
                "statistics of {tokens} tokens need {} of memory, and {} may be used",
                ByteSize(memory),
                ByteSize(request.memory)
            ));
            let hint = "allow more with --memory, take fewer texts with --limit, or only what the method needs with --keep";
            return Err(why.with_hint(hint).into());
        }
        Ok(Self {
            model,
            decoder,
            threads: request.options.threads,
            sequences,
            inputs,
            keep,
            layout,
            memory,
        })
    }

    /// How many tokens the model is run on.
    pub fn tokens(&self) -> usize {
        self.sequences.iter().map(Vec::len).sum()
    }

    /// Bytes of memory that it takes at the most, about.
    pub fn memory(&self) -> u64 {
        self.memory
    }

    /// The length of the file.
    pub fn bytes(&self) -> u64 {
        self.layout.file_size
    }

    /// Runs the model and writes the file, whole or not at all. `goes_on` is asked between layers and says whether to.
    ///
    /// # Errors
    /// The model cannot be run, there is no room for the file, it cannot be written, or the work is to stop. What was in its
    /// place is still there.
    pub fn write(
        &self,
        disk: &Disk,
        path: &Path,
        goes_on: &(dyn Fn() -> bool + Sync),
    ) -> Result<Written, StatsError> {
        let place = path.canonicalize();
        check_space(folder_of(place.as_deref().unwrap_or(path)), self.bytes())?;
        let mut unreached = 0;
        write_with(disk, path, |out| {
            let mut layers = Layers {
                collection: self,
                path,
                out,
                goes_on,
                next: 0,
                sums: Vec::new(),
                unreached: 0,
            };
            let prepared = self.model.prepare(self.threads, &|| !goes_on());
            prepared.map_err(StatsError::Refused)?;
            layers.put(&self.layout.header)?;
            layers.begin()?;
            let done = self
                .decoder
                .observe_inputs(&self.sequences, self.threads, &mut layers);
            done.map_err(|error| match error {
                StatsError::Forward(source) => of_model(self.model, source),
                error => error,
            })?;
            unreached = layers.unreached;
            Ok::<(), StatsError>(check_unchanged([self.model])?)
        })?;
        Ok(Written {
            tokens: self.tokens() as u64,
            inputs: self.inputs.len(),
            unreached,
            bytes: self.bytes(),
        })
    }
}

/// An error of a model's run, with the model.
fn of_model(model: &Checkpoint, source: ForwardError) -> StatsError {
    StatsError::Texts(EvalError::Forward {
        model: model.label().to_owned(),
        source: Box::new(source),
    })
}

/// How many threads there are; 0 stands for one for each processor.
fn threads(asked: usize) -> u64 {
    let all = || std::thread::available_parallelism().map_or(1, |all| all.get());
    (if asked == 0 { all() } else { asked }) as u64
}

/// What the file says of itself.
fn info(model: &Checkpoint, sequences: &[Vec<u32>], inputs: &[LinearInput]) -> StatisticsInfo {
    let mut info = StatisticsInfo::new();
    // An absolute path says more of this machine than of the model.
    let label = model.label();
    let label = match label.starts_with('/') {
        true => label.rsplit('/').next().unwrap_or_default(),
        false => label,
    };
    info.model = Some(label.to_owned());
    info.fingerprint = model.fingerprint();
    let mut digest = blake3::Hasher::new();
    for sequence in sequences {
        digest.update(&(sequence.len() as u64).to_le_bytes());
        sequence.iter().for_each(|token| {
            digest.update(&token.to_le_bytes());
        });
    }
    info.data = Some(digest.finalize().to_string());
    info.tokens = Some(sequences.iter().map(|tokens| tokens.len() as u64).sum());
    for input in inputs {
        for weight in &input.weights {
            let names = info.inputs.entry(weight.tensor.clone()).or_default();
            let at = weight.matrix.unwrap_or(0);
            if names.len() <= at {
                names.resize(at + 1, String::new());
            }
            names[at] = name(input);
        }
    }
    info
}

/// The name of an input: that of its first weight, and the number of the matrix in it.
fn name(input: &LinearInput) -> String {
    let first = &input.weights[0];
    match first.matrix {
        Some(matrix) => format!("{}.{matrix}", first.tensor),
        None => first.tensor.clone(),
    }
}

/// The tensors of the file, in the order in which they are written.
fn tensors(inputs: &[LinearInput], keep: Keep) -> Vec<(String, Dtype, Vec<usize>)> {
    let of_input = |input: &LinearInput| {
        let (name, features) = (name(input), input.features);
        let tensor = |kind: &str, dtype, shape| (format!("{kind}/{name}"), dtype, shape);
        let gram = || tensor(Statistic::Gram.name(), Dtype::F32, vec![features, features]);
        let magnitude = || tensor(Statistic::Magnitude.name(), Dtype::F32, vec![features]);
        let kept = [keep.gram.then(gram), keep.magnitude.then(magnitude)];
        let tokens = tensor("tokens", Dtype::I32, vec![1]);
        kept.into_iter().flatten().chain([tokens])
    };
    inputs.iter().flat_map(of_input).collect()
}

/// Bytes that the sums of a layer take at the most, and adding to them.
fn held(inputs: &[LinearInput], keep: Keep) -> u64 {
    let layers = inputs.chunk_by(|a, b| a.layer == b.layer);
    let of_layer = |layer: &[LinearInput]| {
        let bytes = layer.iter().map(|input| Sums::bytes(input.features, keep));
        let (sums, adding): (Vec<u64>, Vec<u64>) = bytes.unzip();
        let sums = sums.into_iter().fold(0, u64::saturating_add);
        sums.saturating_add(adding.into_iter().max().unwrap_or(0))
    };
    layers.map(of_layer).max().unwrap_or(0)
}

/// Sums up the inputs of a layer, and writes what is kept of them.
struct Layers<'l> {
    collection: &'l Collection<'l>,
    path: &'l Path,
    out: &'l mut (dyn Write + Send),
    goes_on: &'l (dyn Fn() -> bool + Sync),
    /// The number of the first input of the layer.
    next: usize,
    /// The sums of its inputs.
    sums: Vec<Sums>,
    unreached: usize,
}

impl Layers<'_> {
    /// Begins the layer that the next input is of.
    fn begin(&mut self) -> Result<(), StatsError> {
        if !(self.goes_on)() {
            return Err(StatsError::Stopped);
        }
        let Collection { inputs, keep, .. } = self.collection;
        let rest = &inputs[self.next..];
        let layer = rest.chunk_by(|a, b| a.layer == b.layer).next();
        let sums = layer.unwrap_or_default().iter();
        let sums = sums.map(|input| Sums::new(input.features, *keep));
        self.sums = sums.collect::<Result<_, _>>()?;
        Ok(())
    }

    fn put(&mut self, bytes: &[u8]) -> Result<(), StatsError> {
        let written = self.out.write_all(bytes);
        written.map_err(|source| {
            let (step, path) = (Step::Write, self.path.to_owned());
            DiskError { step, path, source }.into()
        })
    }

    fn put_values(&mut self, values: &[f64]) -> Result<(), StatsError> {
        for piece in values.chunks(PIECE) {
            let bytes: Vec<u8> = piece
                .iter()
                .flat_map(|value| (*value as f32).to_le_bytes())
                .collect();
            self.put(&bytes)?;
        }
        Ok(())
    }
}

impl InputObserver for Layers<'_> {
    type Error = StatsError;

    fn input(&mut self, number: usize, values: Vec<f32>) -> Result<(), StatsError> {
        Ok(self.sums[number - self.next].add(values)?)
    }

    fn layer_done(&mut self, _layer: usize) -> Result<(), StatsError> {
        for sums in std::mem::take(&mut self.sums) {
            // The states of more tokens fit into no memory.
            let tokens = i32::try_from(sums.tokens).unwrap_or(i32::MAX);
            self.unreached += usize::from(tokens == 0);
            self.next += 1;
            let (gram, magnitudes) = sums.finish();
            if let Some(gram) = gram {
                self.put_values(gram.values())?;
            }
            if let Some(magnitudes) = magnitudes {
                self.put_values(&magnitudes)?;
            }
            self.put(&tokens.to_le_bytes())?;
        }
        self.begin()
    }
}
