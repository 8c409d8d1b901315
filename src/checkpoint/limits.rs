//! The limits on what a hostile file may claim: every limit of the layer, with its reason.

/// The largest safetensors header: the safetensors crate's own limit.
pub const MAX_HEADER_BYTES: u64 = 100_000_000;

/// The largest `*.safetensors.index.json`: a tensor takes about 130 bytes of it.
pub(super) const MAX_INDEX_BYTES: u64 = 64 << 20;

/// The largest `config.json`; real ones are a few KiB.
pub(super) const MAX_CONFIG_BYTES: u64 = 16 << 20;

/// The largest `tokenizer.json` or vocabulary file; real ones reach 35 MB.
pub(super) const MAX_TOKENIZER_BYTES: u64 = 512 << 20;

/// The largest file beside the weights that is copied or compared; the largest are tokenizers.
pub const MAX_SIDECAR_BYTES: u64 = 512 << 20;

/// The largest file beside the weights that is copied though nothing here knows what it is for.
pub(super) const MAX_UNKNOWN_BYTES: u64 = 256 << 20;

/// The most files and folders beside the weights that are looked at to be copied; a model has a few dozen.
pub(super) const MAX_CARRIED_ENTRIES: usize = 10_000;

/// How much of a model's card is read for its front matter; evaluation results make some a few hundred KiB long.
pub(super) const MAX_CARD_BYTES: u64 = 2 << 20;

/// The most characters of a licence's id, name or link.
pub(super) const MAX_LICENCE_CHARS: usize = 200;

/// The largest file under `refs/` of the Hub cache: it holds one commit hash.
pub(super) const MAX_REF_BYTES: u64 = 4 << 10;

/// The largest list of files under `trees/` of the Hub cache: a file takes about 250 bytes of it.
pub(super) const MAX_TREE_BYTES: u64 = 64 << 20;

/// The most shards of one checkpoint; `model-00001-of-99999` has five digits.
pub(super) const MAX_SHARDS: usize = 100_000;

/// The most parts of a model with weights of their own; the largest pipelines have about ten.
pub(super) const MAX_PARTS: usize = 64;

/// The most folders that `modules.json` or `model_index.json` names; the largest pipelines have about twenty.
pub const MAX_NAMED_FOLDERS: usize = 1000;

/// The most files looked at in a model's folder.
pub(super) const MAX_FOLDER_ENTRIES: usize = 200_000;

/// The most files and folders below a folder that is signed; a checkpoint has a few dozen.
pub(super) const MAX_TREE_ENTRIES: usize = 1 << 20;

/// The deepest subfolder of a model's folder that is scanned.
pub(super) const MAX_FOLDER_DEPTH: usize = 8;

/// The most tensors of a file, and of a checkpoint: the largest models have about 200,000. The records kept for a
/// tensor take about a kilobyte, or two when checkpoints are compared.
pub(super) const MAX_TENSORS: usize = 1 << 18;

/// The longest tensor name, in bytes; real ones stay under 200.
pub(super) const MAX_NAME_BYTES: usize = 4096;

/// The longest file name in an index: the limit of file systems.
pub(super) const MAX_FILE_NAME_BYTES: usize = 255;

/// The longest model reference, in bytes: the kernel's limit for a path.
pub(super) const MAX_MODEL_REF_BYTES: usize = 4096;

/// The most dimensions of a tensor; torch and numpy stop at 64.
pub(super) const MAX_RANK: usize = 64;

/// The most characters of another parser's message that ours repeats.
pub(super) const MAX_DETAIL_CHARS: usize = 300;

/// The largest rank of a LoRA adapter; real ones reach a few thousand.
pub(super) const MAX_ADAPTER_RANK: usize = 1 << 20;

/// The largest token id; real vocabularies end near 300,000.
pub(super) const MAX_TOKEN_ID: u32 = (1 << 24) - 1;

/// The largest pickle within a file of torch; a tensor takes about 200 bytes of it.
pub(super) const MAX_PICKLE_BYTES: usize = 32 << 20;

/// The most values that a pickle may push; a tensor takes about 25.
pub(super) const MAX_PICKLE_VALUES: usize = 1 << 23;

/// The most objects (dicts, lists, tuples, storages, tensors) in a pickle; a tensor takes seven.
pub(super) const MAX_PICKLE_OBJECTS: usize = 1 << 20;

/// The most values on a pickle's stack at once; picklers write dicts and lists in runs of a thousand.
pub(super) const MAX_PICKLE_STACK: usize = 1 << 18;

/// The most values in a pickle's memo.
pub(super) const MAX_PICKLE_MEMO: usize = 1 << 22;

/// How much larger than that of a file of torch the metadata of a distributed checkpoint may be: a box takes about 200
/// bytes and 13 objects, and a model of 70 billion weights with its optimizer on 64 ranks has 140,000.
pub(super) const DISTRIBUTED_TIMES: usize = 4;

/// The most entries of a zip archive: one per storage, and a few more.
pub(super) const MAX_ARCHIVE_ENTRIES: usize = 1 << 20;

/// The most bytes of integers and bools in strided views that are copied when a file is opened; in real models these
/// are masks and position ids of a few KiB.
pub(super) const MAX_GATHERED_BYTES: u64 = 16 << 20;

/// How far the tensors of a pickle may exceed four times the size of its file: several tensors may view the same bytes,
/// and masks and positions are expanded by strides of zero.
pub(super) const MAX_CLAIMED_BYTES: u64 = 1 << 30;

/// The most keys in the metadata of a GGUF file; real ones have some forty.
pub(super) const MAX_GGUF_KEYS: u64 = 1 << 14;

/// The longest text in the metadata of a GGUF file, in bytes; the longest are chat templates of some 20 KB.
pub(super) const MAX_GGUF_TEXT_BYTES: u64 = 4 << 20;

/// The longest list of numbers in the metadata of a GGUF file that is kept: those of a model have one for each layer.
pub(super) const MAX_GGUF_LIST: u64 = 1 << 14;
