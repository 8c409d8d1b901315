//! What can be wrong with a checkpoint: one error type, which always names the file.

use std::borrow::Cow;
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

use errors::{About, Hint, Refusal, printable, some_of};
use safetensors::Dtype;

/// Why a checkpoint can't be found, opened, trusted or laid out.
#[derive(Debug, thiserror::Error)]
pub enum CheckpointError {
    /// No folder, file or cached snapshot has that name.
    #[error("model `{model}` not found; looked in {}", Listed(.looked_in))]
    NotFound {
        /// The model as written.
        model: String,
        /// Every place that was searched, and the problem there.
        looked_in: Vec<String>,
        /// What to do about it.
        hint: String,
        /// What is there and has a similar name, as a question.
        near: Option<String>,
        /// The command that fetches it, if it can be a repository of the Hub.
        download: Option<String>,
    },
    /// No file has the name of a file of statistics.
    #[error("file of statistics `{file}` not found; looked in {}", Listed(.looked_in))]
    StatisticsNotFound {
        /// The file as written.
        file: String,
        /// Every place that was searched, and the problem there.
        looked_in: Vec<String>,
        /// What to do about it.
        hint: String,
    },
    /// A model of the Hub could not be fetched.
    #[error("model `{model}` is not here: {source}")]
    NotFetched {
        /// The model as written.
        model: String,
        /// Why not.
        source: Refusal,
    },
    /// An adapter can't be read, or does not fit its model.
    #[error("model `{model}`: {source}")]
    Adapter {
        /// The model as written.
        model: String,
        /// What is wrong.
        source: Refusal,
    },
    /// A GGUF file is malformed, or not of a model that is read.
    #[error("{path}: {source}", path = .path.display())]
    Gguf {
        /// The file, or the folder with its files.
        path: PathBuf,
        /// What is wrong.
        source: Refusal,
    },
    /// No folder or cached snapshot has the adapter's name.
    #[error("adapter of model `{model}`: {source}")]
    AdapterNotFound {
        /// The model as written, with its adapter.
        model: String,
        /// What is wrong, with the adapter as a model.
        source: Box<CheckpointError>,
    },
    /// A revision that would lead outside of the Hub cache.
    #[error("model `{model}`: `{revision}` is not a revision")]
    BadRevision {
        /// The model as written.
        model: String,
        /// The part after the `@`.
        revision: String,
    },
    /// The operating system reported an error.
    #[error("can't {action} {path}: {source}", path = .path.display())]
    Io {
        /// What was tried, as a verb.
        action: &'static str,
        /// The file or folder.
        path: PathBuf,
        /// The system's error.
        source: io::Error,
    },
    /// The path is a folder, pipe or device instead of a file.
    #[error(
        "expected a regular file, found something else at {path}",
        path = .path.display()
    )]
    NotAFile {
        /// The path.
        path: PathBuf,
        /// What to do about it.
        hint: &'static str,
    },
    /// A link whose target is gone.
    #[error("{path} is a link to a file that is not there", path = .path.display())]
    BrokenLink {
        /// The link.
        path: PathBuf,
        /// What to do about it.
        hint: String,
    },
    /// The Hub's list of a commit has a file that was not downloaded.
    #[error(
        "{path} is not complete: the Hub's list of its files has {file}, which is not there",
        path = .path.display()
    )]
    NotDownloaded {
        /// The folder.
        path: PathBuf,
        /// The missing file.
        file: String,
        /// What to do about it.
        hint: String,
    },
    /// Something in a model's folder that is no file of it: it is not followed, and not read.
    #[error("{path} is {what}: expected a file of the model", path = .path.display())]
    NotOfFolder {
        /// The path.
        path: PathBuf,
        /// What is there.
        what: Stray,
        /// What to do about it.
        hint: String,
    },
    /// The folder of a pipeline's component is not there.
    #[error(
        "{path} is not there: expected the folder of a component that model_index.json names",
        path = .path.display()
    )]
    NoComponent {
        /// The folder.
        path: PathBuf,
    },
    /// A file of torch would need tensors of several dtypes, or of one that it has no name for.
    #[error("{path}: expected tensors of one float dtype to write, found {dtypes}", path = .path.display())]
    NotOneStorage {
        /// The file that would be written.
        path: PathBuf,
        /// The dtypes.
        dtypes: String,
    },
    /// A file of a model names something that is not in the model's folder: it is not looked for.
    #[error("{path} names `{name}`: expected a folder of the model", path = .path.display())]
    NamesOutside {
        /// The file.
        path: PathBuf,
        /// What it names.
        name: String,
    },
    /// A download that is not finished lies beside the weights.
    #[error("{path} is left of a download that is not finished, of {of}", path = .path.display())]
    Unfinished {
        /// The file of the download.
        path: PathBuf,
        /// The file that is downloaded.
        of: String,
    },
    /// A file or folder is larger than any real one needs to be.
    #[error(
        "{path}: {what} is too large: expected at most {limit}, found {found}",
        path = .path.display()
    )]
    TooLarge {
        /// The file or folder.
        path: PathBuf,
        /// What is too large, with its unit.
        what: &'static str,
        /// The limit.
        limit: u64,
        /// What there is.
        found: u64,
    },
    /// A folder holds no safetensors file.
    #[error(
        "no safetensors weights in {path}; found {}",
        Listed(.found),
        path = .path.display()
    )]
    NoWeights {
        /// The folder.
        path: PathBuf,
        /// The files that the folder holds instead.
        found: Vec<String>,
        /// What to do about it.
        hint: String,
    },
    /// A weight file of another format was given.
    #[error("{path} is {what}, expected safetensors or a file of torch.save", path = .path.display())]
    NotSafetensors {
        /// The file.
        path: PathBuf,
        /// What it seems to be.
        what: &'static str,
        /// What to do about it.
        hint: &'static str,
    },
    /// What was fetched in place of the weights: a pointer, a web page, a server's message.
    #[error("{path} is {what}, expected safetensors or a file of torch.save", path = .path.display())]
    StandIn {
        /// The file.
        path: PathBuf,
        /// What it is.
        what: &'static str,
        /// What to do about it.
        hint: &'static str,
    },
    /// Several safetensors files, and nothing that says how they belong together.
    #[error(
        "{path} has no index and several weight files that are not one set: {}",
        Listed(.files),
        path = .path.display()
    )]
    AmbiguousFolder {
        /// The folder.
        path: PathBuf,
        /// The files.
        files: Vec<String>,
        /// What to do about it.
        hint: String,
    },
    /// A shard is missing: a number is absent from the set, or the index names an absent file.
    #[error("{path}: shard {shard} is missing, expected by {expected_by}", path = .path.display())]
    ShardMissing {
        /// The folder.
        path: PathBuf,
        /// The missing file.
        shard: String,
        /// What refers to it.
        expected_by: String,
        /// What to do about it.
        hint: String,
    },
    /// A checkpoint without a single tensor.
    #[error(
        "{path} holds no tensors",
        path = .path.display()
    )]
    NoTensors {
        /// The folder or file.
        path: PathBuf,
        /// Weights of another format beside it, which are not read.
        beside: Option<String>,
    },

    /// The file is shorter than its header requires.
    #[error(
        "{path} is truncated: expected {expected} bytes, found {found}",
        path = .path.display()
    )]
    Truncated {
        /// The shard.
        path: PathBuf,
        /// The least number of bytes that the file must have.
        expected: u64,
        /// Bytes that it has.
        found: u64,
    },
    /// The file has bytes after its last tensor.
    #[error(
        "{path} has bytes that belong to no tensor at its end: expected {expected} bytes, found {found}",
        path = .path.display()
    )]
    TrailingBytes {
        /// The shard.
        path: PathBuf,
        /// Bytes that the header accounts for.
        expected: u64,
        /// Bytes that the file has.
        found: u64,
    },
    /// The first eight bytes claim a header longer than any safetensors file has.
    #[error(
        "{path} is not a safetensors file: its first 8 bytes give a header of {found} bytes, expected at most {limit}",
        path = .path.display()
    )]
    HeaderTooLarge {
        /// The shard.
        path: PathBuf,
        /// The limit.
        limit: u64,
        /// The length that the file claims.
        found: u64,
    },
    /// The header is not UTF-8, not JSON, or not in the form of safetensors.
    #[error(
        "{path} has a malformed safetensors header: {detail}",
        path = .path.display()
    )]
    HeaderMalformed {
        /// The shard.
        path: PathBuf,
        /// What is wrong with it.
        detail: String,
    },
    /// A tensor name that is empty, too long, or has control characters.
    #[error(
        "{path}: tensor name `{tensor}` {why}",
        path = .path.display()
    )]
    BadTensorName {
        /// The shard or index.
        path: PathBuf,
        /// The name, escaped and shortened.
        tensor: String,
        /// What is wrong with it.
        why: &'static str,
    },
    /// A header or an index has the same name twice.
    #[error(
        "{path} names tensor `{tensor}` twice",
        path = .path.display()
    )]
    DuplicateKey {
        /// The shard or index.
        path: PathBuf,
        /// The tensor.
        tensor: String,
    },
    /// A tensor ends before it begins.
    #[error(
        "{path}: tensor `{tensor}` ends before it begins: data offsets {begin} to {end}",
        path = .path.display()
    )]
    ReversedOffsets {
        /// The shard.
        path: PathBuf,
        /// The tensor.
        tensor: String,
        /// Where it begins, from the end of the header.
        begin: u64,
        /// Where it ends.
        end: u64,
    },
    /// Two tensors share bytes.
    #[error(
        "{path}: tensor `{tensor}` overlaps the one before it: expected to begin at byte {expected} of the data, found \
         {found}",
        path = .path.display()
    )]
    Overlap {
        /// The shard.
        path: PathBuf,
        /// The later tensor.
        tensor: String,
        /// Where the tensor before it ends.
        expected: u64,
        /// Where it begins.
        found: u64,
    },
    /// Bytes between two tensors belong to neither.
    #[error(
        "{path}: a hole before tensor `{tensor}`: expected to begin at byte {expected} of the data, found {found}",
        path = .path.display()
    )]
    Hole {
        /// The shard.
        path: PathBuf,
        /// The tensor after the hole.
        tensor: String,
        /// Where the tensor before it ends.
        expected: u64,
        /// Where it begins.
        found: u64,
    },
    /// Dtype and shape need a different number of bytes than the offsets span.
    #[error(
        "{path}: tensor `{tensor}` of dtype {dtype} and shape {shape:?}: expected {expected} bytes, found {found} \
         between its offsets",
        path = .path.display()
    )]
    SizeMismatch {
        /// The shard.
        path: PathBuf,
        /// The tensor.
        tensor: String,
        /// Its dtype.
        dtype: Dtype,
        /// Its shape.
        shape: Vec<usize>,
        /// The bytes that dtype and shape need.
        expected: u64,
        /// The bytes that the offsets span.
        found: u64,
    },
    /// A shape with more elements than can be counted, with too many dimensions, or that ends within a byte.
    #[error(
        "{path}: tensor `{tensor}` has an impossible shape: {shape} of dtype {dtype} {why}",
        path = .path.display()
    )]
    ImpossibleShape {
        /// The shard, or the file to be written.
        path: PathBuf,
        /// The tensor.
        tensor: String,
        /// Its dtype.
        dtype: Dtype,
        /// Its shape, shortened.
        shape: String,
        /// What is wrong with it.
        why: &'static str,
    },

    /// A pickle holds something that is not read: a name that does not belong to tensors, an opcode that torch does not
    /// write.
    #[error(
        "{path} holds {what} at byte {offset}, which is not read: pickles are read for their tensors alone, and \
         nothing in them is executed",
        path = .path.display()
    )]
    PickleRefused {
        /// The file.
        path: PathBuf,
        /// From the start of the file.
        offset: u64,
        /// What it is.
        what: String,
        /// What to do about it.
        hint: &'static str,
    },
    /// A pickle that no pickler wrote, or that is cut short.
    #[error(
        "{path} has a malformed pickle: {detail}, at byte {offset}",
        path = .path.display()
    )]
    PickleMalformed {
        /// The file.
        path: PathBuf,
        /// From the start of the file.
        offset: u64,
        /// What is wrong with it.
        detail: String,
    },
    /// A pickle is larger than any real one needs to be.
    #[error(
        "{path} has a pickle with too many {what}: expected at most {limit}, found more at byte {offset}",
        path = .path.display()
    )]
    PickleTooLarge {
        /// The file.
        path: PathBuf,
        /// From the start of the file.
        offset: u64,
        /// What it has too much of.
        what: &'static str,
        /// The limit.
        limit: usize,
    },
    /// The container of the pickle is not as torch.save writes it.
    #[error(
        "{path} is not as torch.save writes files: {detail}",
        path = .path.display()
    )]
    ArchiveMalformed {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        detail: String,
    },
    /// A pickle holds something other than tensors by name.
    #[error("{path}: expected a dict of tensors by name, found {found}", path = .path.display())]
    NotStateDict {
        /// The file.
        path: PathBuf,
        /// What it holds.
        found: String,
        /// What to do about it.
        hint: String,
    },
    /// An entry of a file that has none was asked for.
    #[error(
        "{path}: expected a file of torch.save to take `{entry}` from, found one without entries",
        path = .path.display()
    )]
    NoEntries {
        /// The file.
        path: PathBuf,
        /// The entry.
        entry: String,
    },
    /// A pickled tensor whose elements are not contiguous, where that is not supported.
    #[error(
        "{path}: tensor `{tensor}` is a strided view, or shares its place with one, {why}",
        path = .path.display()
    )]
    StridedView {
        /// The file.
        path: PathBuf,
        /// The tensor.
        tensor: String,
        /// Why that is a problem.
        why: String,
    },
    /// A pickled tensor does not lie where it claims to.
    #[error("{path}: tensor `{tensor}` {why}", path = .path.display())]
    PickledTensor {
        /// The file.
        path: PathBuf,
        /// The tensor.
        tensor: String,
        /// What is wrong with it.
        why: String,
    },

    /// The index is not JSON, or not in the form of an index.
    #[error(
        "{path} is a malformed index: {detail}",
        path = .path.display()
    )]
    IndexMalformed {
        /// The index.
        path: PathBuf,
        /// What is wrong with it.
        detail: String,
    },
    /// The index names a file outside of its folder, or one that cannot be a shard.
    #[error(
        "{path}: tensor `{tensor}` is said to be in `{file}`, expected the plain name of a file in the same folder \
         that ends in {ends}",
        path = .path.display()
    )]
    IndexFileName {
        /// The index.
        path: PathBuf,
        /// The tensor.
        tensor: String,
        /// The file that the index names.
        file: String,
        /// The endings of shard names.
        ends: String,
    },
    /// The index names a shard for a tensor, but the shard lacks it.
    #[error(
        "{path}: tensor `{tensor}` expected in {shard}, found in {}",
        .found_in.as_deref().unwrap_or("no shard"),
        path = .path.display()
    )]
    NotInShard {
        /// The index.
        path: PathBuf,
        /// The tensor.
        tensor: String,
        /// The shard that the index names.
        shard: String,
        /// The shard that has it.
        found_in: Option<String>,
    },
    /// Shards hold tensors that the index does not name.
    #[error(
        "{path} does not name tensor `{tensor}` of {shard} ({count} such in all)",
        path = .path.display()
    )]
    Unindexed {
        /// The index.
        path: PathBuf,
        /// The first such tensor.
        tensor: String,
        /// Its shard.
        shard: String,
        /// How many there are.
        count: usize,
    },
    /// The index names fewer shards than their names count.
    #[error(
        "{path} names {named} of the {of} shards of its set, and not {}",
        Listed(.missing),
        path = .path.display()
    )]
    ShardsNotNamed {
        /// The index.
        path: PathBuf,
        /// How many shards of the set it names.
        named: usize,
        /// How many there are by the names of the files.
        of: usize,
        /// The first shards that it does not name.
        missing: Vec<String>,
    },
    /// Two shards hold a tensor of the same name.
    #[error(
        "{path}: tensor `{tensor}` is in both {first} and {second}",
        path = .path.display()
    )]
    DuplicateTensor {
        /// The folder.
        path: PathBuf,
        /// The tensor.
        tensor: String,
        /// The first file.
        first: String,
        /// The other file.
        second: String,
    },

    /// A JSON file beside the weights is malformed.
    #[error(
        "{path} is malformed: {detail}",
        path = .path.display()
    )]
    JsonMalformed {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        detail: String,
    },
    /// The weights are quantised: arithmetic on the stored numbers would be meaningless.
    #[error("model `{model}` is quantised ({seen}), in {path}", path = .path.display())]
    Quantised {
        /// The model as the recipe writes it.
        model: String,
        /// The config or shard that shows it.
        path: PathBuf,
        /// The evidence.
        seen: String,
        /// What to do about it.
        hint: &'static str,
    },
    /// Codes, scales and the config of a quantised model that do not fit together.
    #[error(
        "{path}: `{tensor}`: expected {expected}, found {found}",
        path = .path.display()
    )]
    Codes {
        /// The file.
        path: PathBuf,
        /// The tensor.
        tensor: String,
        /// What it should be.
        expected: String,
        /// What it is.
        found: String,
    },
    /// A mapped file was written to, or replaced, after it was opened.
    #[error(
        "{path} changed while it was read: expected {expected}, found {found}",
        path = .path.display()
    )]
    Changed {
        /// The shard.
        path: PathBuf,
        /// Its length and modification time when it was opened.
        expected: String,
        /// What they are now.
        found: String,
    },
}

/// What lies in a model's folder in the place of a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Stray {
    /// A link to nothing.
    ToNothing,
    /// A link out of the folder, and where it leads.
    Outside(PathBuf),
    /// Neither a file nor a link, such as a folder or a pipe.
    NoFile(&'static str),
}

impl fmt::Display for Stray {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::ToNothing => f.write_str("a link to nothing"),
            Self::Outside(to) => write!(f, "a link out of the model's folder, to {}", to.display()),
            Self::NoFile(what) => f.write_str(what),
        }
    }
}

impl Hint for CheckpointError {
    fn hint(&self) -> Option<Cow<'_, str>> {
        let hint: &str = match self {
            Self::Adapter { source, .. }
            | Self::NotFetched { source, .. }
            | Self::Gguf { source, .. } => {
                return source.hint();
            }
            Self::AdapterNotFound { source, .. } => return source.hint(),
            Self::NotFound { hint, .. }
            | Self::StatisticsNotFound { hint, .. }
            | Self::NoWeights { hint, .. }
            | Self::AmbiguousFolder { hint, .. }
            | Self::BrokenLink { hint, .. }
            | Self::NotOfFolder { hint, .. }
            | Self::NotDownloaded { hint, .. }
            | Self::NotStateDict { hint, .. }
            | Self::ShardMissing { hint, .. } => hint,
            Self::Unfinished { .. } => {
                "finish the download; if it is finished, remove what is left of it"
            }
            Self::NoComponent { .. } => {
                "copy or download it again; a component that is meant to be left out is `[null, null]` there"
            }
            Self::NotOneStorage { .. } => "let `dtype` in the recipe give all of them one",
            Self::NamesOutside { .. } => {
                "put a copy of what is meant into the model's folder, and name that"
            }
            Self::NotAFile { hint, .. }
            | Self::StandIn { hint, .. }
            | Self::NotSafetensors { hint, .. }
            | Self::PickleRefused { hint, .. }
            | Self::Quantised { hint, .. } => hint,
            Self::BadRevision { .. } => "give a branch, a tag, `refs/pr/N` or a full commit hash",
            Self::NoTensors { beside: None, .. } => "name another file or folder",
            Self::NoTensors {
                beside: Some(beside),
                ..
            } => {
                return Some(Cow::Owned(format!(
                    "{} lies beside it and is not read, as safetensors come first: remove the empty file if those are \
                     the weights",
                    printable(beside)
                )));
            }
            Self::NoEntries { .. } => {
                "only files of torch.save have entries: leave out the `#` and what follows it"
            }
            Self::Truncated { .. } => "copy or download it again",
            Self::TrailingBytes { .. }
            | Self::HeaderTooLarge { .. }
            | Self::HeaderMalformed { .. }
            | Self::BadTensorName { .. }
            | Self::DuplicateKey { .. }
            | Self::ReversedOffsets { .. }
            | Self::Overlap { .. }
            | Self::Hole { .. }
            | Self::SizeMismatch { .. }
            | Self::ImpossibleShape { .. }
            | Self::PickleMalformed { .. }
            | Self::PickleTooLarge { .. }
            | Self::ArchiveMalformed { .. }
            | Self::PickledTensor { .. } => "the file is damaged: copy or download it again",
            Self::StridedView { .. } => "save it by `.contiguous()`, or as safetensors",
            Self::IndexMalformed { .. } => "download it again",
            Self::IndexFileName { .. } | Self::NotInShard { .. } | Self::Unindexed { .. } => {
                "index and shards are not of one download, fetch both again"
            }
            Self::ShardsNotNamed { .. } => {
                "fetch the index and all shards again; if the others were left out on purpose, rename the shards so \
                 that they count only those that are there"
            }
            Self::DuplicateTensor { .. } => {
                "the files are not of one checkpoint: fetch it again into an empty folder"
            }
            Self::JsonMalformed { .. } => "correct it, or download it again",
            Self::Codes { .. } => {
                "weights and config.json are not of one quantised model that weld reads: download both again, or name the \
                 model it was made from"
            }
            Self::Changed { .. } => "run again when nothing else writes to it",
            Self::Io { source, .. } if source.kind() == io::ErrorKind::OutOfMemory => {
                "the process has no address space left: raise the limit (`ulimit -v`, or that of the container); mapped \
                 files count towards it with their whole length"
            }
            Self::Io { source, .. } if source.kind() == io::ErrorKind::PermissionDenied => {
                "give yourself the right to read it, or run as its owner"
            }
            Self::Io { source, .. } if source.kind() == io::ErrorKind::NotFound => {
                "look whether the path is right; if it was there before, run again when nothing else writes to it"
            }
            Self::Io { source, .. } if source.raw_os_error() == Some(libc::ELOOP) => {
                "the links lead in a circle: put the file itself there"
            }
            Self::Io { .. } => "look whether the disk or the network is in order, and run again",
            Self::TooLarge { .. } => {
                "no real model has so much: find out what wrote the file, or download it again"
            }
        };
        Some(Cow::Borrowed(hint))
    }

    fn about(&self) -> About {
        match self {
            Self::NotFound { model, .. } | Self::BadRevision { model, .. } => {
                About::default().model(model)
            }
            Self::StatisticsNotFound { file, .. } => About::file(Path::new(file)),
            Self::Adapter { model, source } | Self::NotFetched { model, source } => {
                Hint::about(source).model(model)
            }
            Self::AdapterNotFound { model, source } => source.about().model(model),
            Self::Quantised { model, path, .. } => About::file(path).model(model),
            Self::BadTensorName { path, tensor, .. }
            | Self::DuplicateKey { path, tensor, .. }
            | Self::ReversedOffsets { path, tensor, .. }
            | Self::Overlap { path, tensor, .. }
            | Self::Hole { path, tensor, .. }
            | Self::SizeMismatch { path, tensor, .. }
            | Self::ImpossibleShape { path, tensor, .. }
            | Self::StridedView { path, tensor, .. }
            | Self::PickledTensor { path, tensor, .. }
            | Self::Codes { path, tensor, .. }
            | Self::IndexFileName { path, tensor, .. }
            | Self::NotInShard { path, tensor, .. }
            | Self::Unindexed { path, tensor, .. }
            | Self::DuplicateTensor { path, tensor, .. } => About::file(path).tensor(tensor),
            Self::Io { path, .. }
            | Self::NotAFile { path, .. }
            | Self::BrokenLink { path, .. }
            | Self::NotDownloaded { path, .. }
            | Self::NotOfFolder { path, .. }
            | Self::NoComponent { path, .. }
            | Self::NotOneStorage { path, .. }
            | Self::NamesOutside { path, .. }
            | Self::Unfinished { path, .. }
            | Self::TooLarge { path, .. }
            | Self::NoWeights { path, .. }
            | Self::NotSafetensors { path, .. }
            | Self::StandIn { path, .. }
            | Self::AmbiguousFolder { path, .. }
            | Self::ShardMissing { path, .. }
            | Self::NoTensors { path, .. }
            | Self::Truncated { path, .. }
            | Self::TrailingBytes { path, .. }
            | Self::HeaderTooLarge { path, .. }
            | Self::HeaderMalformed { path, .. }
            | Self::PickleRefused { path, .. }
            | Self::PickleMalformed { path, .. }
            | Self::PickleTooLarge { path, .. }
            | Self::ArchiveMalformed { path, .. }
            | Self::NotStateDict { path, .. }
            | Self::NoEntries { path, .. }
            | Self::IndexMalformed { path, .. }
            | Self::ShardsNotNamed { path, .. }
            | Self::JsonMalformed { path, .. }
            | Self::Gguf { path, .. }
            | Self::Changed { path, .. } => About::file(path),
        }
    }
}

impl CheckpointError {
    /// Whether there is no such model or adapter.
    pub fn is_absent(&self) -> bool {
        matches!(
            self,
            Self::NotFound { .. }
                | Self::StatisticsNotFound { .. }
                | Self::NotFetched { .. }
                | Self::AdapterNotFound { .. }
        )
    }

    /// The same where what is missing is a file of statistics, which is made as `how` says.
    pub fn of_statistics(self, how: &str) -> Self {
        match self {
            Self::NotFound {
                model,
                looked_in,
                near,
                ..
            } => Self::StatisticsNotFound {
                file: model,
                looked_in,
                hint: match near {
                    Some(near) => format!("{near} If not: {how}"),
                    None => format!("check the path, or {how}"),
                },
            },
            error => error,
        }
    }

    /// A [`CheckpointError::Io`].
    pub fn io(action: &'static str, path: &Path, source: io::Error) -> Self {
        Self::Io {
            action,
            path: path.into(),
            source,
        }
    }
}

/// A list in a message: whole if it is short, else its beginning and a count.
struct Listed<'a>(&'a [String]);

/// The most entries of a list that a message repeats.
const LISTED: usize = 8;

impl fmt::Display for Listed<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_empty() {
            return f.write_str("nothing");
        }
        f.write_str(&some_of(self.0, LISTED))
    }
}
