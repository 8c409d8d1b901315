//! Opens a checkpoint: finds every problem of its files, and the valid tensors.
//!
//! There is a single way to open. `check` reports every problem; all other callers take the model, or the first
//! problem.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fs::{self, File};
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::bounded::plain;
use super::composition::Composition;
use super::config::ModelConfig;
use super::error::{CheckpointError, Stray};
use super::files::Files;
use super::folder::{FoundWeights, WeightFiles, check_link, file_names, find_weights};
use super::format::{FileFormat, WrittenAs};
use super::gguf;
use super::home::file_in;
use super::hub::{listed_names, snapshot_of};
use super::index::Index;
use super::locate::Location;
use super::part::Part;
use super::partly_here::PartlyHere;
use super::quantised::{CONFIG_KEYS, Decoder, Found, only_config_says};
use super::reader::{Checkpoint, SidecarsFrom};
use super::shard::FOLDER_NAMED_AS_A_FILE;
use super::sidecars::{Sidecar, SidecarKind, is_carried, kind_of};
use super::source::TensorSource;
use super::tokenizer::{VocabularyComparison, compare_with_folder};
use super::unread::download_hint;
use super::weight_names::{UNFINISHED, numbered, other_format};
use errors::Refusal;
use numeric::FloatType;
use safetensors::Dtype;

/// The result of opening a checkpoint file by file.
#[derive(Debug, Default)]
pub struct Survey {
    /// The tensors of the valid files, if there are any.
    pub checkpoint: Option<Checkpoint>,
    /// Every problem found: at most one per file, and any number in the index.
    pub problems: Vec<CheckpointError>,
    /// Whether some of the weights could not be read, so that a missing tensor may be among them.
    pub partial: bool,
    /// Weight files of the folder that are not part of the checkpoint.
    pub left_aside: Vec<String>,
    /// An index that is not read because a whole file lies beside it; its shards are not among `left_aside`.
    pub unread_index: Option<String>,
    /// Tensors that several shards hold, and of which the index says which is meant: the copies that are not read.
    pub superseded: Vec<CheckpointError>,
    /// What is wrong with the `total_size` of the index.
    pub total_size: Option<String>,
    /// How its weights are stored, in words, if they are quantised in a way that is read.
    pub scheme: Option<String>,
    /// The evidence that its weights are quantised in a way that is not read.
    pub quantised: Option<CheckpointError>,
    /// Whether the evidence is config.json alone, and all weights are plain numbers.
    pub quantised_by_config_only: bool,
}

impl Checkpoint {
    /// Opens a located model, which messages call `label`; no weight is read.
    ///
    /// # Errors
    /// The first problem of its files or of its adapter, or the model is quantised.
    pub fn open(label: &str, location: &Location) -> Result<Checkpoint, CheckpointError> {
        let mut survey = Survey::open(label, location)?;
        match survey.quantised.take() {
            Some(quantised) if survey.problems.is_empty() => Err(quantised),
            _ => survey.whole(location),
        }
    }

    /// Opens a located model to list its tensors. One that is quantised is no error, and has a note that says so.
    ///
    /// # Errors
    /// The first problem of its files or of its adapter.
    pub fn open_to_list(label: &str, location: &Location) -> Result<Checkpoint, CheckpointError> {
        let survey = Survey::open(label, location)?;
        let quantised = survey.quantised.as_ref().map(ToString::to_string);
        let checkpoint = survey.whole(location)?;
        let notes = checkpoint
            .notes()
            .iter()
            .cloned()
            .chain(quantised)
            .collect();
        Ok(checkpoint.with_notes(notes))
    }
}

impl Checkpoint {
    /// A model whose tensors a program holds, without files beside them; messages call it `label`.
    ///
    /// # Errors
    /// Its tensors are codes and scales that do not fit together, or in a storage that is not known.
    pub fn in_memory(
        label: &str,
        config: Option<ModelConfig>,
        source: Arc<dyn TensorSource>,
    ) -> Result<Checkpoint, CheckpointError> {
        let names = source.entries().iter().map(|entry| entry.name.clone());
        let by_name: HashMap<String, usize> = names.zip(0..).collect();
        let found = Decoder::find(label, config.as_ref(), source.as_ref(), &by_name, true);
        let (source, config, notes) = match found {
            Found::Plain => (source, config, Vec::new()),
            Found::Unknown(error) | Found::Malformed(error) => return Err(error),
            Found::Known(decoder, problems) => {
                if let Some(problem) = problems.into_iter().next() {
                    return Err(problem);
                }
                let note = format!("{label}: {}", decoder.said());
                let config = config.map(|config| config.without(&CONFIG_KEYS));
                (decoder.source(source), config, vec![note])
            }
        };
        let beside = SidecarsFrom::Files(Vec::new());
        let location = Location::local(label);
        Ok(Checkpoint::new(label, location, config, beside, source).with_notes(notes))
    }
}

impl Survey {
    /// The model with its adapter, or the first problem.
    fn whole(self, location: &Location) -> Result<Checkpoint, CheckpointError> {
        if let Some(problem) = self.problems.into_iter().next() {
            return Err(problem);
        }
        let path = location.path.clone();
        let none = || CheckpointError::NoTensors { path, beside: None };
        let checkpoint = self.checkpoint.ok_or_else(none)?;
        let adapters = location.adapters.iter();
        let mut checkpoint = checkpoint;
        for adapter in adapters {
            checkpoint = checkpoint.adapted(&adapter.location, adapter.weight)?;
        }
        Ok(checkpoint)
    }
}

impl Survey {
    /// Opens as much as possible of a located model, which messages call `label`. An adapter is ignored.
    ///
    /// # Errors
    /// If there is nothing to open: the file or folder does not exist, or the folder has no weights.
    pub fn open(label: &str, location: &Location) -> Result<Survey, CheckpointError> {
        let composition = Composition::find(location)?;
        let mut whole = match composition.is_whole {
            true => Survey::of_weights(label, location, "")?,
            false => Survey::default(),
        };
        whole.problems.extend(composition.problems);
        if composition.is_whole && composition.parts.is_empty() {
            return Ok(whole);
        }
        let main = whole.checkpoint.take().map(|model| Part {
            prefix: String::new(),
            first: 0,
            stem: model.stem().to_owned(),
            format: WrittenAs::Safetensors,
            model: Arc::new(model),
        });
        let mut parts: Vec<Part> = main.into_iter().collect();
        let mut notes = composition.notes;
        for place in composition.parts {
            let name = place.prefix.trim_end_matches('/');
            let label = format!("{label}/{name}");
            let survey = Survey::of_weights(&label, &place.location, &place.folder);
            if place.format == WrittenAs::Torch
                && let Err(why) = can_be_rewritten(&survey)
            {
                notes.push(format!(
                    "{} is carried as it is and not merged: {why}",
                    place.location.path.display()
                ));
                continue;
            }
            match survey {
                Ok(mut survey) => {
                    let model = survey.checkpoint.take();
                    parts.extend(model.map(|model| Part {
                        stem: match place.folder.as_str() {
                            "" => name.to_owned(),
                            folder => format!("{folder}{}", model.stem()),
                        },
                        prefix: place.prefix.clone(),
                        first: 0,
                        format: place.format,
                        model: Arc::new(model),
                    }));
                    whole.add(survey, &place.folder);
                }
                Err(problem) => {
                    whole.problems.push(problem);
                    whole.partial = true;
                }
            }
        }
        let joined = (!parts.is_empty())
            .then(|| Checkpoint::joined(label, location.clone(), SidecarsFrom::Folder, parts));
        if let Some(model) = &joined {
            whole.problems.extend(twice(model));
        }
        whole.checkpoint = joined.map(|model| {
            let notes = [model.notes(), &notes].concat();
            model.with_notes(notes)
        });
        Ok(whole)
    }

    /// Adds what was found in the folder of a part.
    fn add(&mut self, part: Survey, folder: &str) {
        let inside = |name: String| format!("{folder}{name}");
        self.problems.extend(part.problems);
        self.partial |= part.partial;
        self.left_aside
            .extend(part.left_aside.into_iter().map(inside));
        self.superseded.extend(part.superseded);
        self.unread_index = self.unread_index.take().or(part.unread_index.map(inside));
        self.total_size = self.total_size.take().or(part.total_size);
        self.scheme = self.scheme.take().or(part.scheme);
        if self.quantised.is_none() {
            self.quantised_by_config_only = part.quantised_by_config_only;
            self.quantised = part.quantised;
        }
    }

    /// Opens the weights of one folder, which is `folder` in that of its model, or of a single file.
    fn of_weights(
        label: &str,
        location: &Location,
        folder: &str,
    ) -> Result<Survey, CheckpointError> {
        let path = &location.path;
        let is_dir = fs::metadata(path)
            .map_err(|source| CheckpointError::io("open", path, source))?
            .is_dir();
        let FoundWeights {
            weights,
            mut problems,
            left_aside,
            unread_index,
            unread_pickle,
        } = match is_dir {
            true => find_weights(location)?,
            false => FoundWeights {
                weights: single_file(path)?,
                problems: Vec::new(),
                left_aside: Vec::new(),
                unread_index: None,
                unread_pickle: None,
            },
        };
        let WeightFiles {
            shards,
            index,
            format,
            mut notes,
        } = weights;
        let mut files = Files::default();
        for shard in &shards {
            let entry = location.entry.as_deref();
            let opened = Files::open(shard, format, entry).and_then(|(one, of_file)| {
                notes.extend(of_file);
                files.append(shard, one)
            });
            problems.extend(opened.err());
        }
        if format == FileFormat::Pickle {
            notes.extend(read_as_pickles(&shards));
        }
        let partial = !problems.is_empty();
        if is_dir {
            let (missing, of_download) = look_at_download(location);
            problems.extend(missing);
            notes.extend(of_download);
        }
        let is_gguf = format == FileFormat::Gguf;
        let beside_file = path.parent().filter(|_| is_gguf);
        // Of a bare file name the parent is an empty path, which cannot be listed.
        let beside_file = beside_file.map(|folder| match folder.as_os_str().is_empty() {
            true => Path::new("."),
            false => folder,
        });
        let folder_of_config = is_dir.then_some(path.as_path()).or(beside_file);
        let config = match folder_of_config.map(ModelConfig::read).transpose() {
            Ok(config) => config.flatten(),
            // A link to nothing has been found above.
            Err(CheckpointError::NotOfFolder {
                what: Stray::ToNothing,
                ..
            }) => None,
            Err(problem) => {
                problems.push(problem);
                None
            }
        };
        if files.tensors.is_empty() && !partial {
            problems.push(CheckpointError::NoTensors {
                path: path.clone(),
                beside: unread_pickle,
            });
        }
        let superseded = match &index {
            Some(index) => follow_index(location, index, &mut files),
            None => Vec::new(),
        };
        notes.extend(superseded_note(location, &superseded));
        if is_dir {
            problems.extend(unfinished(path)?);
        }
        let by_name = first_of_each(location, &files, &mut problems);
        let found = |index: &Index| index.problems(&files, &by_name);
        problems.extend(index.as_ref().map(found).unwrap_or_default());
        let total_size = index.as_ref().filter(|_| !partial);
        let total_size = total_size.and_then(|index| index.total_size_note(&files.tensors));
        notes.extend(total_size.clone());
        let is_here = location.remote.is_empty();
        let (mut decoder, mut quantised) = (None, None);
        let found = match is_gguf {
            true => Found::Plain,
            false => Decoder::find(label, config.as_ref(), &files, &by_name, is_here),
        };
        match found {
            Found::Plain => {}
            Found::Known(found, wrong) => {
                problems.extend(wrong);
                decoder = Some(found);
            }
            Found::Unknown(error) => quantised = Some(error),
            Found::Malformed(error) => problems.push(error),
        }
        let scheme = decoder.as_ref().map(Decoder::said);
        notes.extend(
            scheme
                .iter()
                .map(|scheme| format!("{}: {scheme}", path.display())),
        );
        let config = match &decoder {
            Some(_) => config.map(|config| config.without(&CONFIG_KEYS)),
            None => config,
        };
        let (mut config, mut gguf) = (config, None);
        if is_gguf && !partial {
            // It may speak of other files of the model, which are quantised in another way.
            let is_quantised =
                |config: &ModelConfig| CONFIG_KEYS.iter().any(|key| config.get(key).is_some());
            let beside = config.take().map(|config| match is_quantised(&config) {
                true => config.without(&CONFIG_KEYS),
                false => config,
            });
            match open_gguf(location, &files, beside) {
                Ok(model) => {
                    notes.extend(model.notes.iter().cloned());
                    config = Some(model.config.clone());
                    gguf = Some(model);
                }
                Err(problem) => problems.push(problem),
            }
        }
        let beside = match (is_dir, beside_file) {
            (true, _) => SidecarsFrom::Folder,
            (false, Some(folder)) => {
                let tokenizer = tokenizer_beside(folder)?;
                notes.push(tokenizer_note(path, &tokenizer));
                SidecarsFrom::Files(tokenizer)
            }
            (false, None) => SidecarsFrom::Nothing,
        };
        let own_tokens = gguf.as_ref().and_then(|model| model.tokens.as_ref());
        if let (Some(tokens), Some(folder)) = (own_tokens, folder_of_config) {
            problems.extend(other_tokenizer(path, folder, tokens)?);
        }
        let tokens = gguf.as_mut().and_then(|model| model.tokens.take());
        let vocabulary = beside_file.filter(|_| !is_dir).map(Path::to_owned);
        for shard in &mut files.shards {
            shard.put_in(folder);
        }
        Ok(Survey {
            partial,
            left_aside,
            unread_index,
            superseded,
            total_size,
            quantised_by_config_only: quantised.is_some()
                && only_config_says(&files.tensors, &by_name),
            quantised,
            scheme,
            problems,
            checkpoint: (!files.tensors.is_empty() && is_gguf == gguf.is_some()).then(|| {
                let source: Arc<dyn TensorSource> = match location.remote.is_empty() {
                    true => Arc::new(files),
                    false => Arc::new(PartlyHere::new(files, &location.remote)),
                };
                let source = match (decoder, gguf) {
                    (Some(decoder), _) => decoder.source(source),
                    (None, Some(gguf)) => gguf.source(source),
                    (None, None) => source,
                };
                Checkpoint::new(label, location.clone(), config, beside, source)
                    .with_notes(notes)
                    .with_vocabulary(vocabulary)
                    .with_tokens(tokens)
            }),
        })
    }
}

/// Whether a file of torch can be written anew: it is read whole, and its tensors have one float dtype.
fn can_be_rewritten(survey: &Result<Survey, CheckpointError>) -> Result<(), String> {
    let survey = survey.as_ref().map_err(ToString::to_string)?;
    if let Some(problem) = survey.problems.first() {
        return Err(problem.to_string());
    }
    let tensors = survey.checkpoint.iter().flat_map(Checkpoint::tensors);
    let mut dtypes = tensors.map(|tensor| tensor.dtype);
    let first = dtypes.next().unwrap_or(Dtype::F32);
    match dtypes.all(|dtype| dtype == first) && FloatType::from_dtype(first).is_some() {
        true => Ok(()),
        false => Err("its tensors are not of one float dtype".to_owned()),
    }
}

/// A problem if two parts have a tensor of the same name in the model.
fn twice(model: &Checkpoint) -> Option<CheckpointError> {
    let file = |at: usize| model.place(at).map(|(shard, _)| shard.file_name());
    let tensors = model.tensors().iter().enumerate();
    let mut twice = tensors.filter_map(|(at, tensor)| {
        let first = model.find(&tensor.name).filter(|&first| first != at)?;
        Some(CheckpointError::DuplicateTensor {
            path: model.location().path.clone(),
            tensor: tensor.name.clone(),
            first: file(first)?,
            second: file(at)?,
        })
    });
    twice.next()
}

/// What is missing beside the weights of a folder: problems, and a note on other files that were not downloaded.
fn look_at_download(location: &Location) -> (Vec<CheckpointError>, Option<String>) {
    const CONFIG: &str = "config.json";
    let folder = &location.path;
    if let Err(problem) = check_link(location, CONFIG) {
        return (vec![problem], None);
    }
    let has_config = |folder: &Path| folder.join(CONFIG).exists();
    let named_as_a_file = folder
        .file_name()
        .and_then(|name| FileFormat::named(name.to_str()?));
    if named_as_a_file.is_some() && !has_config(folder) && folder.parent().is_some_and(has_config) {
        let problem = CheckpointError::NotAFile {
            path: folder.clone(),
            hint: FOLDER_NAMED_AS_A_FILE,
        };
        return (vec![problem], None);
    }
    let Some(listed) = listed_names(folder) else {
        let of_hub = location.hub.is_some() || snapshot_of(folder).is_some();
        let note = (of_hub && !has_config(folder)).then(|| {
            format!(
                "{}: the cache has no config.json of this model, so the output gets none from it; if the repository has one, {}",
                folder.display(),
                download_hint(location)
            )
        });
        return (Vec::new(), note);
    };
    if listed.contains(CONFIG) && !has_config(folder) {
        let problem = CheckpointError::NotDownloaded {
            path: folder.clone(),
            file: CONFIG.into(),
            hint: download_hint(location),
        };
        return (vec![problem], None);
    }
    let mut missing = listed
        .iter()
        .filter(|name| is_carried(name) && !folder.join(name).exists());
    let note = missing.next().map(|name| {
        format!(
            "{}: {} of the model's repository was not downloaded, so the output lacks it too; {}",
            folder.display(),
            plain(name),
            download_hint(location)
        )
    });
    (Vec::new(), note)
}

/// Weights, indexes, configs and vocabularies whose download is not finished.
fn unfinished(folder: &Path) -> Result<Vec<CheckpointError>, CheckpointError> {
    let names = file_names(folder)?;
    let of = |name: &String| {
        let stem = UNFINISHED.iter().find_map(|end| name.strip_suffix(end))?;
        let weights =
            stem.ends_with(".safetensors") || FileFormat::from_name(stem) == FileFormat::Pickle;
        let known = weights || stem.ends_with(".json") || stem.ends_with(".model");
        known.then(|| CheckpointError::Unfinished {
            path: folder.join(name),
            of: stem.to_owned(),
        })
    };
    Ok(names.iter().filter_map(of).collect())
}

/// The first bytes of a zip archive and of a pickle, which torch.save writes.
const TORCH_STARTS: [&[u8]; 2] = [b"PK\x03\x04", b"\x80"];

/// The weights of a single file: its format is that of its name, or else what its first bytes look like.
fn single_file(path: &Path) -> Result<WeightFiles, CheckpointError> {
    let name = path.to_string_lossy();
    if FileFormat::Gguf
        .ends()
        .iter()
        .any(|end| name.ends_with(end))
    {
        return Ok(WeightFiles {
            shards: set_of(path)?,
            index: None,
            format: FileFormat::Gguf,
            notes: Vec::new(),
        });
    }
    let format = match FileFormat::named(&name) {
        Some(format) => format,
        None if starts_like_torch(path)? => FileFormat::Pickle,
        None => match other_format(&name) {
            Some((what, hint)) => {
                return Err(CheckpointError::NotSafetensors {
                    path: path.into(),
                    what,
                    hint,
                });
            }
            None => FileFormat::Safetensors,
        },
    };
    Ok(WeightFiles {
        shards: vec![path.into()],
        index: None,
        format,
        notes: Vec::new(),
    })
}

/// The file, or if it is one of a numbered set, all files of the set.
fn set_of(path: &Path) -> Result<Vec<PathBuf>, CheckpointError> {
    let name = path.file_name().and_then(|name| name.to_str());
    let (Some((set, _)), Some(folder)) = (name.and_then(numbered), path.parent()) else {
        return Ok(vec![path.into()]);
    };
    // Of a bare file name the parent is an empty path, which cannot be listed.
    let listed = match folder.as_os_str().is_empty() {
        true => file_names(Path::new("."))?,
        false => file_names(folder)?,
    };
    let mut files: BTreeMap<usize, PathBuf> = BTreeMap::new();
    for other in &listed {
        if let Some((of, number)) = numbered(other)
            && of == set
        {
            files.insert(number, folder.join(other));
        }
    }
    let missing = set.missing(&files.keys().copied().collect());
    match missing.is_empty() {
        true => Ok(files.into_values().collect()),
        false => Err(CheckpointError::ShardMissing {
            path: folder.into(),
            shard: missing.join(", "),
            expected_by: "the names of the others".into(),
            hint: download_hint(&Location::local(folder)),
        }),
    }
}

/// The model of open GGUF files.
fn open_gguf(
    location: &Location,
    files: &Files,
    config: Option<ModelConfig>,
) -> Result<gguf::GgufModel, CheckpointError> {
    if !location.remote.is_empty() {
        let source = Refusal::new("GGUF is read from files that are here")
            .with_hint("download the file, and name it");
        let path = location.path.clone();
        return Err(CheckpointError::Gguf { path, source });
    }
    gguf::model(&location.path, files, &files.containers, config)
}

/// The files of a tokenizer and of generation that lie beside a file of weights.
fn tokenizer_beside(folder: &Path) -> Result<Vec<Sidecar>, CheckpointError> {
    let mut files = Vec::new();
    for name in file_names(folder)? {
        let kind = kind_of(&name, false).filter(|kind| {
            matches!(
                kind,
                SidecarKind::Tokenizer | SidecarKind::ChatTemplate | SidecarKind::Generation
            )
        });
        if let Some(kind) = kind
            && let Ok(Some(path)) = file_in(folder, &name)
        {
            files.push(Sidecar { name, path, kind });
        }
    }
    Ok(files)
}

/// The share of ids that a tokenizer may give another meaning than the file: fine-tunes rename reserved tokens.
const RENAMED: f64 = 0.01;

/// The problem that the tokenizer in a folder is not that of a file in it.
fn other_tokenizer(
    path: &Path,
    folder: &Path,
    tokens: &BTreeMap<u64, String>,
) -> Result<Option<CheckpointError>, CheckpointError> {
    let Some(VocabularyComparison::Conflict {
        differing,
        examples,
    }) = compare_with_folder(tokens, folder)?
    else {
        return Ok(None);
    };
    let few = differing as f64 <= RENAMED * tokens.len() as f64;
    let example = examples.first().filter(|_| !few);
    Ok(example.map(|(id, ours, theirs)| {
        let source = Refusal::new(format!(
            "the tokenizer beside it is of another model: {differing} of {} token ids mean something else, such as \
             {id}, which is \"{ours}\" in the file and \"{theirs}\" there",
            tokens.len()
        ));
        CheckpointError::Gguf {
            path: path.into(),
            source: source.with_hint("move the file into a folder of its own, with its own tokenizer or none"),
        }
    }))
}

/// Where the tokenizer of a file of weights comes from.
fn tokenizer_note(path: &Path, files: &[Sidecar]) -> String {
    let mut tokenizer = files
        .iter()
        .filter(|file| file.kind == SidecarKind::Tokenizer);
    match tokenizer.next() {
        Some(first) => format!(
            "{}: its tokenizer is that beside it, {}",
            path.display(),
            first.path.display()
        ),
        None => format!(
            "{}: no tokenizer lies beside it, and that in the file is not read; put the model's tokenizer.json into its \
             folder if it is wanted",
            path.display()
        ),
    }
}

fn starts_like_torch(path: &Path) -> Result<bool, CheckpointError> {
    let io = |source| CheckpointError::io("open", path, source);
    // Opening a FIFO for reading would block forever; what is no file is refused when it is mapped.
    if !fs::metadata(path).map_err(io)?.is_file() {
        return Ok(false);
    }
    let mut start = Vec::new();
    let file = File::open(path).map_err(io)?;
    file.take(9).read_to_end(&mut start).map_err(io)?;
    // The header of safetensors begins with its length, whose first byte may be any.
    let is_safetensors = start.get(8) == Some(&b'{');
    Ok(!is_safetensors && TORCH_STARTS.iter().any(|torch| start.starts_with(torch)))
}

/// Notes that files were read as pickles.
fn read_as_pickles(paths: &[PathBuf]) -> Option<String> {
    let (first, others) = paths.split_first()?;
    let others = match others.len() {
        0 => String::new(),
        more => format!(" and {more} more"),
    };
    Some(format!(
        "{}{others}: read as pickles; nothing in them is executed",
        first.display()
    ))
}

/// Drops each tensor that the index says is in another shard, if it is there too; returns what was dropped.
fn follow_index(location: &Location, index: &Index, files: &mut Files) -> Vec<CheckpointError> {
    let names: HashSet<&str> = files
        .tensors
        .iter()
        .map(|tensor| tensor.name.as_str())
        .collect();
    if names.len() == files.tensors.len() {
        return Vec::new();
    }
    let meant = index.files();
    let places: Vec<(String, String)> = (0..files.tensors.len())
        .map(|at| {
            (
                files.tensors[at].name.clone(),
                files.shard_of(at).file_name(),
            )
        })
        .collect();
    let there: HashSet<(&str, &str)> = places
        .iter()
        .map(|(name, file)| (name.as_str(), file.as_str()))
        .collect();
    let read_instead: Vec<Option<&str>> = places
        .iter()
        .map(|(name, file)| {
            let meant = *meant.get(name.as_str())?;
            (meant != file && there.contains(&(name, meant))).then_some(meant)
        })
        .collect();
    let dropped = places.iter().zip(&read_instead);
    let superseded = dropped
        .filter_map(|((name, file), read)| {
            Some(CheckpointError::DuplicateTensor {
                path: location.path.clone(),
                tensor: name.clone(),
                first: (*read)?.to_owned(),
                second: file.clone(),
            })
        })
        .collect();
    files.retain(|at| read_instead[at].is_none());
    superseded
}

/// The note on tensors that are in several shards.
fn superseded_note(location: &Location, superseded: &[CheckpointError]) -> Option<String> {
    let Some(CheckpointError::DuplicateTensor {
        tensor,
        first,
        second,
        ..
    }) = superseded.first()
    else {
        return None;
    };
    let more = match superseded.len() - 1 {
        0 => String::new(),
        more => format!(" and {more} more"),
    };
    Some(format!(
        "{}: tensor `{tensor}`{more} is in several shards; the one that the index names is read ({first}, not {second})",
        location.path.display()
    ))
}

/// The tensors by name; if several files have the same name, the first one's.
fn first_of_each(
    location: &Location,
    files: &Files,
    problems: &mut Vec<CheckpointError>,
) -> HashMap<String, usize> {
    let mut by_name: HashMap<String, usize> = HashMap::with_capacity(files.tensors.len());
    for (at, tensor) in files.tensors.iter().enumerate() {
        match by_name.get(&tensor.name) {
            Some(&first) => problems.push(CheckpointError::DuplicateTensor {
                path: location.path.clone(),
                tensor: tensor.name.clone(),
                first: files.shard_of(first).file_name(),
                second: files.shard_of(at).file_name(),
            }),
            None => {
                by_name.insert(tensor.name.clone(), at);
            }
        }
    }
    by_name
}
