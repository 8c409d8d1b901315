//! An open model: its tensors by name, and the config and files beside them.

use std::collections::{BTreeMap, HashMap};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::adapter::{Adapter, AdapterError, AdapterFiles, AppliedAdapter, AttachedTo, Subject};
use super::behind::Reclaim;
use super::config::ModelConfig;
use super::error::CheckpointError;
use super::format::DIFFUSERS_STEM;
use super::home::file_in;
use super::joined::Joined;
use super::layout::stem_of;
use super::left_out::LeftOut;
use super::licence::Licence;
use super::locate::Location;
use super::part::Part;
use super::relaid::Relaid;
use super::remote::{RemoteFile, RemotePlace};
use super::renamed::Renamed;
use super::shard::Shard;
use super::sidecars::{Sidecar, SidecarKind, find_sidecars, kind_of, left_out, unreadable};
use super::source::{EncodedTensor, TensorEntry, TensorSource};
use super::widened::{Widened, first_convolution};
use errors::Refusal;
use numeric::Elements;

/// A model: the tensors of one source by name, its config, and the files beside them.
///
/// All access to tensors goes through it, whatever their source; [`TensorSource`] says what an index means.
#[derive(Debug, Clone)]
pub struct Checkpoint {
    label: String,
    location: Location,
    config: Option<ModelConfig>,
    beside: SidecarsFrom,
    by_name: HashMap<String, usize>,
    source: Arc<dyn TensorSource>,
    parts: Vec<Part>,
    stem: String,
    adapters: Vec<AppliedAdapter>,
    notes: Vec<String>,
    vocabulary: Option<PathBuf>,
    /// What its token ids mean, where its file of weights says it.
    tokens: Option<Arc<BTreeMap<u64, String>>>,
}

/// A file that lies elsewhere, and what is wanted of it.
type WantedOf = (Arc<dyn RemoteFile>, Vec<Range<u64>>);

/// The files beside the tensors.
#[derive(Debug, Clone)]
pub enum SidecarsFrom {
    /// There are none.
    Nothing,
    /// Those of the model's folder that belong to it.
    Folder,
    /// The same, but for the tokenizer, which is that of another folder: an adapter's that has more tokens.
    FolderAndTokenizer(PathBuf),
    /// These.
    Files(Vec<Sidecar>),
}

impl Checkpoint {
    /// A model with the tensors of a source; messages call it `label`, and `location` is where the files beside the
    /// tensors are.
    pub fn new(
        label: &str,
        location: Location,
        config: Option<ModelConfig>,
        beside: SidecarsFrom,
        source: Arc<dyn TensorSource>,
    ) -> Checkpoint {
        let mut by_name = HashMap::with_capacity(source.entries().len());
        for (at, tensor) in source.entries().iter().enumerate() {
            // When files are checked one by one, two may have a tensor of the same name: the first is used.
            by_name.entry(tensor.name.clone()).or_insert(at);
        }
        Checkpoint {
            label: label.into(),
            location,
            by_name,
            parts: Vec::new(),
            stem: stem_of_written(config.as_ref(), source.as_ref()),
            config,
            beside,
            source,
            adapters: Vec::new(),
            notes: Vec::new(),
            vocabulary: None,
            tokens: None,
        }
    }

    /// A model of several parts, that of its folder's own weights first if it has any; [`Part::first`] is set here.
    /// Messages call the model `label`, `location` is its folder, and `beside` are the files beside all weights.
    pub fn joined(
        label: &str,
        location: Location,
        beside: SidecarsFrom,
        mut parts: Vec<Part>,
    ) -> Checkpoint {
        let mut end = 0;
        for part in &mut parts {
            part.first = end;
            end += part.model.tensors().len();
        }
        let main = parts.first().filter(|part| part.prefix.is_empty());
        let main = main.map(|part| Arc::clone(&part.model));
        let config = main.as_ref().and_then(|main| main.config.clone());
        let notes = parts.iter().flat_map(|part| part.model.notes());
        let adapters = parts.iter().flat_map(|part| {
            let own = part.model.adapters.iter();
            own.map(|applied| AppliedAdapter {
                first: part.first + applied.first,
                adapter: Arc::clone(&applied.adapter),
            })
        });
        let source = Arc::new(Joined::new(parts.clone()));
        Checkpoint {
            notes: notes.cloned().collect(),
            adapters: adapters.collect(),
            parts,
            ..Checkpoint::new(label, location, config, beside, source)
        }
    }

    /// Its parts, if it has several: the weights of the folder itself first, if it has any.
    pub fn parts(&self) -> &[Part] {
        &self.parts
    }

    /// The model without what lies apart from the weights of its folder. `None` if it has no weights of its own, as a
    /// pipeline.
    pub fn alone(&self) -> Option<&Checkpoint> {
        match self.parts.first() {
            None => Some(self),
            Some(part) => part.prefix.is_empty().then_some(part.model.as_ref()),
        }
    }

    /// Whether it is made of components alone, each a model of its own.
    pub fn is_pipeline(&self) -> bool {
        self.alone().is_none()
    }

    /// What the names of its weight files begin with where they are written: `model`, or what diffusers looks for.
    pub fn stem(&self) -> &str {
        &self.stem
    }

    /// The model with another [`stem`](Self::stem).
    pub fn with_stem(self, stem: &str) -> Checkpoint {
        Checkpoint {
            stem: stem.into(),
            ..self
        }
    }

    /// The model with another folder whose files say what its token ids mean, if one is given.
    pub(super) fn with_vocabulary(self, vocabulary: Option<PathBuf>) -> Checkpoint {
        Checkpoint { vocabulary, ..self }
    }

    /// The model with what its file of weights says that its token ids mean.
    pub(super) fn with_tokens(self, tokens: Option<BTreeMap<u64, String>>) -> Checkpoint {
        let tokens = tokens.map(Arc::new);
        Checkpoint { tokens, ..self }
    }

    /// What its token ids mean, where its file of weights says it.
    pub(super) fn tokens(&self) -> Option<&BTreeMap<u64, String>> {
        self.tokens.as_deref()
    }

    /// The model with additional notes.
    pub(super) fn with_notes(self, notes: Vec<String>) -> Checkpoint {
        Checkpoint { notes, ..self }
    }

    /// The model with a LoRA adapter applied, times a weight, whatever the source of its tensors. A folder of PEFT is for
    /// the model's own weights, a file for any of its parts.
    ///
    /// # Errors
    /// If the adapter cannot be read, or does not fit the model.
    pub fn adapted(self, adapter: &Location, weight: f64) -> Result<Checkpoint, CheckpointError> {
        let label = self.label.clone();
        let refused = |source| CheckpointError::Adapter {
            model: label.clone(),
            source,
        };
        let is_for_one = AdapterFiles::are_for_one_model(adapter);
        if is_for_one && self.is_pipeline() {
            let why = Refusal::new("an adapter is for a model, and this is a pipeline of several");
            return Err(refused(why.with_hint(
                "write the folder of the component in place of the pipeline: `pipeline/unet+adapter`",
            )));
        }
        let files = AdapterFiles::open(adapter, &self.source.shards());
        let files = files.map_err(|source| refused(Refusal::from(&source)))?;
        let mut used = files.unused();
        if self.parts.is_empty() {
            let adapted = self.adapted_part(&files, "", weight, &mut used);
            return adapted
                .and_then(|adapted| files.check_used(&used).map(|()| adapted))
                .map_err(|source| refused(Refusal::from(&source)));
        }
        let mut parts = self.parts.clone();
        let (mut vocabulary, mut beside) = (self.vocabulary.clone(), self.beside.clone());
        if let Some(main) = self.alone().filter(|_| is_for_one) {
            let main = main.clone().adapted_part(&files, "", weight, &mut used);
            let main = main.map_err(|source| refused(Refusal::from(&source)))?;
            if let other @ SidecarsFrom::FolderAndTokenizer(_) = &main.beside {
                (vocabulary, beside) = (main.vocabulary.clone(), other.clone());
            }
            parts[0].model = Arc::new(main);
        } else {
            for part in &mut parts {
                let model = part.model.as_ref().clone();
                let adapted = model.adapted_part(&files, &part.prefix, weight, &mut used);
                let adapted = adapted.map_err(|source| refused(Refusal::from(&source)))?;
                part.model = Arc::new(adapted);
            }
        }
        let checked = files.check_used(&used);
        checked.map_err(|source| refused(Refusal::from(&source)))?;
        Ok(Checkpoint {
            vocabulary,
            ..Checkpoint::joined(&self.label, self.location, beside, parts)
        })
    }

    /// One part with what the adapter has for it, which is marked in `used`.
    fn adapted_part(
        self,
        files: &AdapterFiles,
        part: &str,
        weight: f64,
        used: &mut [bool],
    ) -> Result<Checkpoint, AdapterError> {
        let mut subject = Subject::new(
            self.source.entries().to_vec(),
            self.by_name.clone(),
            self.config.clone(),
            self.notes.clone(),
        );
        let base = Arc::clone(&self.source);
        let on = AttachedTo {
            location: &self.location,
            part,
            below: &self.adapters,
        };
        let Some(adapter) = files.attach(&on, &mut subject, base, weight, used)? else {
            return Ok(self);
        };
        let adapter = Arc::new(adapter);
        let mut adapters = self.adapters;
        adapters.push(AppliedAdapter {
            first: 0,
            adapter: Arc::clone(&adapter),
        });
        let mut adapted = Checkpoint {
            by_name: subject.by_name,
            config: subject.config,
            notes: subject.notes,
            source: adapter,
            adapters,
            ..self
        };
        if let Some((before, after)) = subject.rows {
            adapted.take_tokenizer(before, after).map_err(Box::new)?;
        }
        Ok(adapted)
    }

    /// Takes the tokenizer of the adapter's folder, as its tokens have the embedding's rows.
    fn take_tokenizer(&mut self, before: usize, after: usize) -> Result<(), CheckpointError> {
        let Some(applied) = self.adapters.last() else {
            return Ok(());
        };
        let folder = applied.adapter.location().path.clone();
        let rows = format!(
            "{} gives the embedding {after} rows, where the model has {before}",
            folder.display()
        );
        let files = find_sidecars(&folder, None)?;
        let has_tokenizer = files.iter().any(|file| file.kind == SidecarKind::Tokenizer);
        let is_folder = matches!(self.beside, SidecarsFrom::Folder);
        self.notes.push(match has_tokenizer && is_folder {
            true => format!("{rows}; the tokenizer is the adapter's too"),
            false => format!(
                "{rows}; no tokenizer is beside it, and the model's does not name new tokens"
            ),
        });
        if has_tokenizer && is_folder {
            self.beside = SidecarsFrom::FolderAndTokenizer(folder.clone());
            self.vocabulary = Some(folder);
            self.tokens = None;
        }
        Ok(())
    }

    /// The same model with other names for its tensors, in their order; names must be unique. `None` if a tensor would be
    /// of another part by its new name.
    pub fn renamed(&self, names: Vec<String>) -> Option<Checkpoint> {
        if self.parts.is_empty() {
            let by_name = (0..).zip(&names).map(|(at, name)| (name.clone(), at));
            return Some(Checkpoint {
                by_name: by_name.collect(),
                source: Arc::new(Renamed::new(Arc::clone(&self.source), names)),
                ..self.clone()
            });
        }
        let mut names = names.into_iter();
        let renamed = |part: &Part| {
            let own = names.by_ref().take(part.model.tensors().len());
            let own = own.map(|name| Some(name.strip_prefix(&part.prefix)?.to_owned()));
            let own: Option<Vec<String>> = own.collect();
            Some(Part {
                model: Arc::new(part.model.renamed(own?)?),
                ..part.clone()
            })
        };
        let parts: Option<Vec<Part>> = self.parts.iter().map(renamed).collect();
        let (location, beside) = (self.location.clone(), self.beside.clone());
        Some(Checkpoint::joined(&self.label, location, beside, parts?))
    }

    /// The same mixture with its experts as `other` stores them, each by itself or all in two tensors; `None` if it has
    /// them so already, or cannot have.
    pub fn laid_as(&self, other: &Checkpoint) -> Option<Checkpoint> {
        let kind = other.config.as_ref().and_then(|config| config.model_type());
        let source = Relaid::find(&self.source, self.config.as_ref(), other.tensors(), kind)?;
        Some(self.relaid(source))
    }

    /// Whether its experts lie in two tensors for each layer; `None` if it has none that are known.
    pub fn has_fused_experts(&self) -> Option<bool> {
        let kind = self.config.as_ref().and_then(ModelConfig::model_type);
        Relaid::is_fused(self.tensors(), kind)
    }

    /// The same mixture with its experts in two tensors for each layer, or each by itself; `None` if it has them so
    /// already, or cannot have.
    pub fn with_experts(&self, fused: bool) -> Option<Checkpoint> {
        let kind = self.config.as_ref().and_then(ModelConfig::model_type);
        let source = Relaid::with_experts(&self.source, self.config.as_ref(), fused, kind)?;
        Some(self.relaid(source))
    }

    fn relaid(&self, source: Relaid) -> Checkpoint {
        let names = source.entries().iter().map(|entry| entry.name.clone());
        Checkpoint {
            by_name: names.zip(0..).collect(),
            source: Arc::new(source),
            adapters: Vec::new(),
            ..self.clone()
        }
    }

    /// How many input channels the first convolution has, if the model is a UNet of Stable Diffusion by itself or in a
    /// single file, and the number is known: 4 for plain ones, 5, 8 and 9 for depth, edits and inpainting.
    pub fn unet_inputs(&self) -> Option<usize> {
        let (_, inputs) = first_convolution(self.tensors())?;
        self.parts.is_empty().then_some(inputs)
    }

    /// The same UNet with so many input channels, the further ones with weights of zero; `None` if it is no plain one, or
    /// if so many are not known.
    pub fn with_unet_inputs(&self, inputs: usize) -> Option<Checkpoint> {
        self.unet_inputs()?;
        let source = Widened::new(&self.source, inputs)?;
        let mut config = self.config.clone();
        if let Some(config) = &mut config {
            config.set_unet_inputs(inputs);
        }
        let mut notes = self.notes.clone();
        notes.push(format!(
            "`{}` has 4 input channels, and is read as a UNet of {inputs} with zeros for the further ones, which computes the \
             same",
            self.label
        ));
        Some(Checkpoint {
            source: Arc::new(source),
            config,
            notes,
            ..self.clone()
        })
    }

    /// The model's name in the recipe.
    pub fn label(&self) -> &str {
        &self.label
    }

    /// Where the model is, or the files beside its tensors are.
    pub fn location(&self) -> &Location {
        &self.location
    }

    /// The model as one whose token ids mean what the files in the folder of `other` say, whatever its own files say.
    pub fn with_vocabulary_of(self, other: &Checkpoint) -> Checkpoint {
        Checkpoint {
            vocabulary: Some(other.vocabulary_folder().to_owned()),
            tokens: other.tokens.clone(),
            ..self
        }
    }

    /// The folder whose files say what its token ids mean.
    pub(super) fn vocabulary_folder(&self) -> &Path {
        self.vocabulary.as_deref().unwrap_or(&self.location.path)
    }

    /// Its `config.json`; none for a single file, or a folder without one.
    pub fn config(&self) -> Option<&ModelConfig> {
        self.config.as_ref()
    }

    /// Whether it is a single file, without a config or other files beside it.
    pub fn is_single_file(&self) -> bool {
        matches!(self.beside, SidecarsFrom::Nothing)
    }

    /// The files beside the tensors that belong to the model, in name order.
    ///
    /// # Errors
    /// If its folder can't be read.
    pub fn sidecars(&self) -> Result<Vec<Sidecar>, CheckpointError> {
        match &self.beside {
            SidecarsFrom::Nothing => Ok(Vec::new()),
            SidecarsFrom::Folder => {
                let mut files = find_sidecars(&self.location.path, self.config.as_ref())?;
                files.retain(|file| !self.has_file(&file.name));
                Ok(files)
            }
            SidecarsFrom::FolderAndTokenizer(folder) => {
                let of_tokenizer = |file: &Sidecar| {
                    matches!(
                        file.kind,
                        SidecarKind::Tokenizer | SidecarKind::ChatTemplate
                    )
                };
                let mut other = find_sidecars(folder, None)?;
                other.retain(of_tokenizer);
                let templates = other
                    .iter()
                    .any(|file| file.kind == SidecarKind::ChatTemplate);
                let mut files = find_sidecars(&self.location.path, self.config.as_ref())?;
                files.retain(|file| {
                    let replaced = file.kind == SidecarKind::ChatTemplate && templates
                        || file.kind == SidecarKind::Tokenizer;
                    !replaced && !self.has_file(&file.name)
                });
                files.extend(other);
                files.sort_by(|one, other| one.name.cmp(&other.name));
                Ok(files)
            }
            SidecarsFrom::Files(files) => Ok(files.clone()),
        }
    }

    /// The files beside the tensors that would belong to the model, but cannot be read as files of its folder.
    ///
    /// # Errors
    /// If its folder can't be read.
    pub fn unreadable_sidecars(
        &self,
    ) -> Result<Vec<(SidecarKind, CheckpointError)>, CheckpointError> {
        match &self.beside {
            SidecarsFrom::Folder | SidecarsFrom::FolderAndTokenizer(_) => {
                unreadable(&self.location.path, self.config.as_ref())
            }
            SidecarsFrom::Nothing | SidecarsFrom::Files(_) => Ok(Vec::new()),
        }
    }

    /// The files and folders beside the tensors that do not go along with the model, in name order, but for weights,
    /// hidden files, and what every output has of its own.
    ///
    /// # Errors
    /// If its folder can't be read.
    pub fn left_out(&self) -> Result<Vec<LeftOut>, CheckpointError> {
        match &self.beside {
            SidecarsFrom::Folder | SidecarsFrom::FolderAndTokenizer(_) => {
                let mut left = left_out(&self.location.path, self.config.as_ref())?;
                let shards = self.source.shards();
                let is_read = |name: &str| shards.iter().any(|shard| shard.file_name() == name);
                left.retain(|file| !self.has_file(&file.name) && !is_read(&file.name));
                Ok(left)
            }
            SidecarsFrom::Nothing | SidecarsFrom::Files(_) => Ok(Vec::new()),
        }
    }

    /// Whether a file beside its folder's own weights belongs to the weights of one of its parts.
    fn has_file(&self, name: &str) -> bool {
        self.parts.iter().any(|part| part.has_file(name))
    }

    /// The path of a file of its folder, whatever it is for; `None` if there is none.
    ///
    /// # Errors
    /// It is a link to nothing or out of the folder, or no regular file.
    pub fn file_beside(&self, name: &str) -> Result<Option<PathBuf>, CheckpointError> {
        let own = || file_in(&self.location.path, name);
        match (&self.beside, kind_of(name, false)) {
            (SidecarsFrom::Nothing, _) => Ok(None),
            (SidecarsFrom::Files(files), _) if !self.location.path.is_dir() => {
                let file = files.iter().find(|file| file.name == name);
                Ok(file.map(|file| file.path.clone()))
            }
            (SidecarsFrom::FolderAndTokenizer(folder), Some(SidecarKind::Tokenizer)) => {
                file_in(folder, name)
            }
            (SidecarsFrom::FolderAndTokenizer(folder), Some(SidecarKind::ChatTemplate)) => {
                match file_in(folder, name)? {
                    None => own(),
                    found => Ok(found),
                }
            }
            _ => own(),
        }
    }

    /// The licence that the files beside its tensors state; `None` if they say nothing.
    pub fn licence(&self) -> Option<Licence> {
        match self.is_single_file() {
            true => None,
            false => Licence::of_folder(&self.location.path),
        }
    }

    /// The adapters that are applied to it and to its parts, in their order.
    pub fn adapters(&self) -> &[AppliedAdapter] {
        &self.adapters
    }

    /// The adapter that is applied to its own weights, if that is the only one.
    pub fn only_adapter(&self) -> Option<&Adapter> {
        match self.adapters.as_slice() {
            [only] if only.first == 0 => Some(&only.adapter),
            _ => None,
        }
    }

    /// Whether an adapter changes a tensor.
    pub fn is_adapted(&self, index: usize) -> bool {
        self.adapters.iter().any(|applied| {
            let of_part = index.checked_sub(applied.first);
            of_part.is_some_and(|index| applied.adapter.changes(index))
        })
    }

    /// Notes on what was odd but harmless: ignored files, a wrong total in an index.
    pub fn notes(&self) -> &[String] {
        &self.notes
    }

    /// The source of its tensors.
    pub fn source(&self) -> &Arc<dyn TensorSource> {
        &self.source
    }

    /// Whether its tensors are stored in files of its own.
    pub fn is_stored(&self) -> bool {
        !self.source.shards().is_empty()
    }

    /// The index of the tensor with that name in [`Checkpoint::tensors`].
    pub fn find(&self, name: &str) -> Option<usize> {
        self.by_name.get(name).copied()
    }

    /// Its tensors; see [`TensorSource::entries`].
    pub fn tensors(&self) -> &[TensorEntry] {
        self.source.entries()
    }

    /// See [`TensorSource::elements`].
    pub fn elements(&self, index: usize) -> Option<Box<dyn Elements + '_>> {
        self.source.elements(index)
    }

    /// See [`TensorSource::bytes`].
    ///
    /// A planner that wants their values and not only where they lie asks [`peek`](Self::peek).
    pub fn bytes(&self, index: usize) -> Option<&[u8]> {
        self.source.bytes(index)
    }

    /// Some of the bytes of a tensor, if a file holds them contiguously; what is elsewhere is fetched. A plan looks at
    /// a few bytes of a tensor this way. `None` if they cannot be known now.
    pub fn peek(&self, index: usize, bytes: Range<usize>) -> Option<&[u8]> {
        let found = self.source.bytes(index)?.get(bytes.clone())?;
        self.peek_all(&[(index, bytes)]).then_some(found)
    }

    /// Fetches some bytes of many tensors at once, for those who [`peek`](Self::peek) then. Returns whether they are
    /// here.
    pub fn peek_all(&self, wanted: &[(usize, Range<usize>)]) -> bool {
        let mut files: Vec<WantedOf> = Vec::new();
        for (index, bytes) in wanted {
            for RemotePlace { file, offset } in self.source.remote(*index) {
                let range = offset + bytes.start as u64..offset + bytes.end as u64;
                match files
                    .iter_mut()
                    .find(|(known, _)| Arc::ptr_eq(known, &file))
                {
                    Some((_, ranges)) => ranges.push(range),
                    None => files.push((file, vec![range])),
                }
            }
        }
        files.iter().all(|(file, ranges)| file.peek(ranges).is_ok())
    }

    /// See [`TensorSource::remote`].
    pub fn remote(&self, index: usize) -> Vec<RemotePlace> {
        self.source.remote(index)
    }

    /// Whether the values of a tensor are stored, and all are zeros. Of one with weights, little more than a page is
    /// read.
    pub fn is_zero(&self, index: usize) -> bool {
        let size = self.tensors()[index].dtype.bitsize() / 8;
        let is_here = self.source.remote(index).is_empty();
        let stored = self.bytes(index).filter(|_| is_here);
        size > 0 && stored.is_some_and(|bytes| numeric::all_zero(bytes, size))
    }

    /// See [`TensorSource::stored`].
    pub fn stored(&self, index: usize) -> Option<&[u8]> {
        self.source.stored(index)
    }

    /// See [`TensorSource::encoded`].
    pub fn encoded(&self, index: usize) -> Option<EncodedTensor<'_>> {
        self.source.encoded(index)
    }

    /// The same model with its tensors as they are stored: codes and scales in place of the values that they make.
    pub fn as_stored(&self) -> Checkpoint {
        if self.parts.is_empty() {
            let Some(source) = self.source.as_stored() else {
                return self.clone();
            };
            let names = source.entries().iter().map(|entry| entry.name.clone());
            return Checkpoint {
                by_name: names.zip(0..).collect(),
                config: self.config.as_ref().map(ModelConfig::as_read),
                source,
                ..self.clone()
            };
        }
        let part = |part: &Part| Part {
            model: Arc::new(part.model.as_stored()),
            ..part.clone()
        };
        let parts = self.parts.iter().map(part).collect();
        let (location, beside) = (self.location.clone(), self.beside.clone());
        Checkpoint::joined(&self.label, location, beside, parts)
    }

    /// See [`TensorSource::left_out`].
    pub fn left_out_tensors(&self) -> usize {
        self.source.left_out()
    }

    /// See [`TensorSource::bytes_read`].
    pub fn bytes_read(&self, index: usize) -> u64 {
        self.source.bytes_read(index)
    }

    /// See [`TensorSource::shards`].
    pub fn shards(&self) -> Vec<&Shard> {
        self.source.shards()
    }

    /// See [`TensorSource::place`].
    pub fn place(&self, index: usize) -> Option<(&Shard, u64)> {
        self.source.place(index)
    }

    /// See [`TensorSource::read_ahead`].
    pub fn read_ahead(&self) {
        self.source.read_ahead();
    }

    /// See [`TensorSource::release`].
    pub fn release(&self, index: usize, bytes: Range<u64>, reclaim: Reclaim) {
        self.source.release(index, bytes, reclaim);
    }

    /// See [`TensorSource::reads_results`].
    pub fn reads_results(&self) -> bool {
        self.source.reads_results()
    }

    /// See [`TensorSource::prepare`].
    ///
    /// # Errors
    /// The values could not be computed; the reason is in words for the user.
    pub fn prepare(
        &self,
        threads: usize,
        cancelled: &(dyn Fn() -> bool + Sync),
    ) -> Result<(), Refusal> {
        self.source.prepare(threads, cancelled)
    }

    /// See [`TensorSource::said`].
    pub fn said(&self) -> Vec<String> {
        self.source.said()
    }

    /// See [`TensorSource::held`].
    pub fn held(&self) -> u64 {
        self.source.held()
    }

    /// See [`TensorSource::check_unchanged`].
    ///
    /// # Errors
    /// If a file has changed in length or modification time, or is gone.
    pub fn check_unchanged(&self) -> Result<(), CheckpointError> {
        self.source.check_unchanged()
    }
}

/// The stem of the output's weight files: the one by which the library of the model looks for them.
fn stem_of_written(config: Option<&ModelConfig>, source: &dyn TensorSource) -> String {
    let is_component = config.is_some_and(|config| config.get("_class_name").is_some());
    let first = source.shards().first().map(|shard| shard.file_name());
    match (config.and_then(ModelConfig::is_of_diffusers), first) {
        (Some(true), _) => DIFFUSERS_STEM.to_owned(),
        (None, Some(first)) if is_component => stem_of(&first).to_owned(),
        _ => "model".to_owned(),
    }
}

#[cfg(test)]
mod tests;
