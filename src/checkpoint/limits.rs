//! How much of a hostile file is believed: every limit of the layer, and why it is what it is.

/// The largest safetensors header: the safetensors crate's own limit.
pub(super) const MAX_HEADER_BYTES: u64 = 100_000_000;

/// The largest `*.safetensors.index.json`: a tensor takes some 130 bytes of it.
pub(super) const MAX_INDEX_BYTES: u64 = 64 << 20;

/// The largest `config.json`; real ones are a few KiB.
pub(super) const MAX_CONFIG_BYTES: u64 = 16 << 20;

/// The largest `tokenizer.json` or vocabulary file; real ones reach 35 MB.
pub(super) const MAX_TOKENIZER_BYTES: u64 = 512 << 20;

/// The largest file beside the weights that is copied or compared; the largest are tokenizers.
pub const MAX_SIDECAR_BYTES: u64 = 512 << 20;

/// The largest file under `refs/` of the Hub cache: it holds one commit hash.
pub(super) const MAX_REF_BYTES: u64 = 4 << 10;

/// The most shards of one checkpoint; `model-00001-of-99999` has five digits.
pub(super) const MAX_SHARDS: usize = 100_000;

/// The most files looked at in a model's folder.
pub(super) const MAX_FOLDER_ENTRIES: usize = 200_000;

/// The most files and folders below a folder that is signed; a checkpoint has some tens.
pub(super) const MAX_TREE_ENTRIES: usize = 1 << 20;

/// The deepest subfolder of a model's folder that is looked into.
pub(super) const MAX_FOLDER_DEPTH: usize = 8;

/// The most tensors of a file, and of a checkpoint: the largest models have some 200,000. What is looked up and
/// measured of each comes to a kilobyte, two where checkpoints are compared.
pub(super) const MAX_TENSORS: usize = 1 << 18;

/// The longest tensor name, in bytes; real ones stay under 200.
pub(super) const MAX_NAME_BYTES: usize = 4096;

/// The longest file name that an index may give: what file systems take.
pub(super) const MAX_FILE_NAME_BYTES: usize = 255;

/// The longest model reference, in bytes: what the kernel takes for a path.
pub(super) const MAX_MODEL_REF_BYTES: usize = 4096;

/// The most dimensions of a tensor; torch and numpy stop at 64.
pub(super) const MAX_RANK: usize = 64;

/// How much of a message by another parser is repeated in ours.
pub(super) const MAX_DETAIL_CHARS: usize = 300;

/// The largest rank of a LoRA adapter; real ones reach a few thousand.
pub(super) const MAX_ADAPTER_RANK: usize = 1 << 20;

/// The largest token id; real vocabularies end near 300,000.
pub(super) const MAX_TOKEN_ID: u32 = (1 << 24) - 1;

/// The largest pickle within a file of torch; a tensor takes some 200 bytes of it.
pub(super) const MAX_PICKLE_BYTES: usize = 32 << 20;

/// The most values that a pickle may push; a tensor takes some 25.
pub(super) const MAX_PICKLE_VALUES: usize = 1 << 23;

/// The most objects (dicts, lists, tuples, storages, tensors) of a pickle; a tensor takes seven.
pub(super) const MAX_PICKLE_OBJECTS: usize = 1 << 20;

/// The most values on a pickle's stack at once; picklers write dicts and lists in runs of a thousand.
pub(super) const MAX_PICKLE_STACK: usize = 1 << 18;

/// The most values that a pickle keeps for later.
pub(super) const MAX_PICKLE_MEMO: usize = 1 << 22;

/// The most entries of a zip archive: a storage each, and a few more.
pub(super) const MAX_ARCHIVE_ENTRIES: usize = 1 << 20;

/// The most bytes of integers and bools in strided views that are copied at open, per file; those of real models
/// are masks and position ids of a few KiB.
pub(super) const MAX_GATHERED_BYTES: u64 = 16 << 20;

/// How far the tensors of a pickle may go beyond four times its file, which they may view more than once; masks and
/// positions are expanded by strides of zero.
pub(super) const MAX_CLAIMED_BYTES: u64 = 1 << 30;
