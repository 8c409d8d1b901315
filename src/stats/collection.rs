//! The way from a model and texts to a file: what is kept of each input, and how much memory and room that takes.

use std::io::Write;
use std::path::Path;

use bytesize::ByteSize;
use checkpoint::{Checkpoint, Dtype, ShardLayout, Statistic, StatisticsInfo, annotated_layout};
use errors::{About, Refusal};
use eval::{EvalError, Listener, Prepared, Surroundings, Tasks};
use forward::{Decoder, ForwardError, InputObserver, LinearInput, Passage};
use run::check_unchanged;
use run::destination::{Disk, DiskError, Step, check_space, folder_of, write_with};

use super::error::StatsError;
use super::sums::Sums;

/// What is held besides states and sums, in bytes: buffers of the file and of the texts; and for each thread, tiles of two
/// matrices in f32 and what a product packs.
pub(super) const ALWAYS: u64 = 32 << 20;
pub(super) const OF_THREAD: u64 = 24 << 20;

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
    pub(super) model: &'a Checkpoint,
    pub(super) decoder: Decoder<'a>,
    pub(super) threads: usize,
    pub(super) sequences: Vec<Vec<u32>>,
    pub(super) inputs: Vec<LinearInput>,
    keep: Keep,
    pub(super) info: StatisticsInfo,
    pub(super) layout: ShardLayout,
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
        let layout = layout(&info, &inputs, keep)?;
        let memory = decoder
            .passage_bytes(&sequences)
            .saturating_add(decoder.layer_bytes(&sequences))
            .saturating_add(held(&inputs, keep))
            .saturating_add(ALWAYS + OF_THREAD * threads(request.options.threads));
        check_memory(memory, request.memory, &sequences).map_err(|why| {
            let hint = "allow more with --memory, take fewer texts with --limit, or only what the method needs with --keep";
            why.within(format!("model `{}`", model.label())).about(about()).with_hint(hint)
        })?;
        Ok(Self {
            model,
            decoder,
            threads: request.options.threads,
            sequences,
            inputs,
            keep,
            info,
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
        self.check_space(path)?;
        let mut unreached = 0;
        write_with(disk, path, |out| {
            self.prepare(goes_on)?;
            let mut put = into(out, path);
            put(&self.layout.header)?;
            let passage = self.decoder.embedded(&self.sequences);
            let mut passage = passage.map_err(|source| of_model(self.model, source))?;
            for layer in 0..self.decoder.layers() {
                check_running(goes_on)?;
                for sums in self.sums(layer, &mut passage)? {
                    unreached += usize::from(sums.tokens == 0);
                    sums.write(&mut put)?;
                }
            }
            Ok::<(), StatsError>(check_unchanged([self.model])?)
        })?;
        Ok(self.written(unreached))
    }

    /// Checks that there is room for the file.
    pub(super) fn check_space(&self, path: &Path) -> Result<(), StatsError> {
        let place = path.canonicalize();
        let folder = folder_of(place.as_deref().unwrap_or(path));
        Ok(check_space(folder, self.bytes())?)
    }

    /// What was written when all is done.
    pub(super) fn written(&self, unreached: usize) -> Written {
        Written {
            tokens: self.tokens() as u64,
            inputs: self.inputs.len(),
            unreached,
            bytes: self.bytes(),
        }
    }

    /// Prepares the model to be read.
    pub(super) fn prepare(&self, goes_on: &(dyn Fn() -> bool + Sync)) -> Result<(), StatsError> {
        let prepared = self.model.prepare(self.threads, &|| !goes_on());
        prepared.map_err(StatsError::Refused)
    }

    /// The inputs of a layer.
    pub(super) fn inputs_of(&self, layer: usize) -> &[LinearInput] {
        let first = self.inputs.partition_point(|input| input.layer < layer);
        let end = self.inputs.partition_point(|input| input.layer <= layer);
        &self.inputs[first..end]
    }

    /// Runs a layer on what is before it, and sums up its inputs.
    pub(super) fn sums(
        &self,
        layer: usize,
        passage: &mut Passage,
    ) -> Result<Vec<Sums>, StatsError> {
        let sums = self.inputs_of(layer).iter();
        let sums = sums.map(|input| Sums::new(input.features, self.keep));
        let mut sums = LayerSums {
            first: self.inputs.partition_point(|input| input.layer < layer),
            sums: sums.collect::<Result<_, _>>()?,
        };
        let done = self
            .decoder
            .observe_layer(layer, passage, self.threads, &mut sums);
        done.map_err(|error| match error {
            StatsError::Forward(source) => of_model(self.model, source),
            error => error,
        })?;
        Ok(sums.sums)
    }
}

/// Refuses work that needs more memory than may be used.
pub(super) fn check_memory(
    needed: u64,
    allowed: u64,
    sequences: &[Vec<u32>],
) -> Result<(), Refusal> {
    if needed <= allowed {
        return Ok(());
    }
    let tokens: usize = sequences.iter().map(Vec::len).sum();
    Err(Refusal::new(format!(
        "statistics of {tokens} tokens need {} of memory, and {} may be used",
        ByteSize(needed),
        ByteSize(allowed)
    )))
}

/// Stops if it is to.
pub(super) fn check_running(goes_on: &(dyn Fn() -> bool + Sync)) -> Result<(), StatsError> {
    match goes_on() {
        true => Ok(()),
        false => Err(StatsError::Stopped),
    }
}

/// Writes bytes to a file.
pub(super) fn into<'o>(
    out: &'o mut (dyn Write + Send),
    path: &'o Path,
) -> impl FnMut(&[u8]) -> Result<(), StatsError> + 'o {
    move |bytes| {
        let written = out.write_all(bytes);
        written.map_err(|source| {
            let (step, path) = (Step::Write, path.to_owned());
            DiskError { step, path, source }.into()
        })
    }
}

/// An error of a model's run, with the model.
pub(super) fn of_model(model: &Checkpoint, source: ForwardError) -> StatsError {
    StatsError::Texts(EvalError::Forward {
        model: model.label().to_owned(),
        source: Box::new(source),
    })
}

/// How many threads there are; 0 stands for one for each processor.
pub(super) fn threads(asked: usize) -> u64 {
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

/// The file with that said of itself.
pub(super) fn layout(
    info: &StatisticsInfo,
    inputs: &[LinearInput],
    keep: Keep,
) -> Result<ShardLayout, StatsError> {
    let (key, text) = info.metadata();
    let tensors: Vec<Entry> = inputs
        .iter()
        .flat_map(|input| tensors(input, keep))
        .collect();
    Ok(annotated_layout(&tensors, "statistics", (key, &text))?)
}

/// A tensor of the file: its name, dtype and shape.
pub(super) type Entry = (String, Dtype, Vec<usize>);

/// The name of an input: that of its first weight, and the number of the matrix in it.
fn name(input: &LinearInput) -> String {
    let first = &input.weights[0];
    match first.matrix {
        Some(matrix) => format!("{}.{matrix}", first.tensor),
        None => first.tensor.clone(),
    }
}

/// The tensors of an input, in the order in which they are written.
pub(super) fn tensors(input: &LinearInput, keep: Keep) -> Vec<Entry> {
    let (name, features) = (name(input), input.features);
    let tensor = |kind: &str, dtype, shape| (format!("{kind}/{name}"), dtype, shape);
    let gram = || tensor(Statistic::Gram.name(), Dtype::F32, vec![features, features]);
    let magnitude = || tensor(Statistic::Magnitude.name(), Dtype::F32, vec![features]);
    let kept = [keep.gram.then(gram), keep.magnitude.then(magnitude)];
    let tokens = tensor("tokens", Dtype::I32, vec![1]);
    kept.into_iter().flatten().chain([tokens]).collect()
}

/// Bytes that the sums of a layer take at the most, and adding to them.
pub(super) fn held(inputs: &[LinearInput], keep: Keep) -> u64 {
    let layers = inputs.chunk_by(|a, b| a.layer == b.layer);
    let of_layer = |layer: &[LinearInput]| {
        let bytes = layer.iter().map(|input| Sums::bytes(input.features, keep));
        let (sums, adding): (Vec<u64>, Vec<u64>) = bytes.unzip();
        let sums = sums.into_iter().fold(0, u64::saturating_add);
        sums.saturating_add(adding.into_iter().max().unwrap_or(0))
    };
    layers.map(of_layer).max().unwrap_or(0)
}

/// Sums up the inputs of a layer.
struct LayerSums {
    /// The number of the first of them.
    first: usize,
    sums: Vec<Sums>,
}

impl InputObserver for LayerSums {
    type Error = StatsError;

    fn input(&mut self, number: usize, values: Vec<f32>) -> Result<(), StatsError> {
        Ok(self.sums[number - self.first].add(values)?)
    }
}
