//! Checkpoints: headers, maps, shards, indexes, sidecar files. The only layer that opens model files.
//!
//! It finds a model on disk, refuses malformed files, decodes quantised ones, and provides named tensors as mapped bytes. It also
//! interprets names, configs and tokenizers, and lays out output shards.
//! Everything read here is treated as hostile until checked, and every limit is a named constant.
//! It must not know recipes, methods or plans; it reads no environment variables and prints nothing.

mod adapter;
mod aliases;
mod behind;
mod bounded;
mod complete;
mod composition;
mod config;
mod distributed;
mod error;
mod file_state;
mod files;
mod fingerprint;
mod folder;
mod format;
mod gguf;
mod glob;
mod header;
mod home;
mod hub;
mod in_memory;
mod index;
mod joined;
mod json;
mod known_licences;
mod layout;
mod left_out;
mod licence;
mod limits;
mod locate;
mod model_ref;
mod nearby;
mod part;
mod partly_here;
mod pickle;
mod quantised;
mod reader;
mod relaid;
mod remote;
mod renamed;
mod resolve;
mod risks;
mod scratch_file;
mod scratch_folder;
mod shard;
mod sidecars;
mod source;
mod statistics;
mod stores;
mod survey;
mod tokenizer;
mod torch_file;
mod tree;
mod unread;
mod wanted;
mod weight_names;
mod widened;

#[cfg(test)]
pub(crate) mod fixtures;

pub use adapter::{Adapter, AdapterError, AdapterProduct, AppliedAdapter};
pub use aliases::{AliasSearch, PrefixAlias, find_alias};
pub use behind::Reclaim;
pub use bounded::{open_no_link, open_regular, read_bounded};
pub use complete::is_complete;
pub use config::{ModelConfig, Quantization};
pub use error::{CheckpointError, Stray};
pub use file_state::FileState;
pub use format::WrittenAs;
pub use glob::{Glob, paths_matching};
pub use hub::{HubSnapshot, is_repo_id};
pub use in_memory::{Bytes, InMemory, InMemoryError, map_parts};
pub use json::{check_json, json_line, json_text, parse_json};
pub use layout::{
    ShardLayout, annotated_layout, folder_of, index_json, index_name, shard_layout,
    single_file_layout, stem_of,
};
pub use left_out::LeftOut;
pub use licence::{Licence, LicenceTerm};
pub use limits::{MAX_HEADER_BYTES, MAX_NAMED_FOLDERS, MAX_SIDECAR_BYTES};
pub use locate::{AdapterLocation, Fetch, FetchError, HubFolder, Location, Locator};
pub use model_ref::{AdapterRef, ModelRef};
pub use nearby::{file_like, nearest};
pub use part::Part;
pub use pickle::PickleImports;
pub use quantised::is_comfy_marker;
pub use reader::{Checkpoint, SidecarsFrom};
pub use remote::{RemoteFile, RemoteFiles, RemotePlace, Transfer};
pub use resolve::Resolver;
pub use risks::{FolderRisks, folder_risks};
pub use safetensors::Dtype;
pub use scratch_file::{Origin, ScratchFile, ScratchUse};
pub use scratch_folder::ScratchFolder;
pub use shard::Shard;
pub use sidecars::{Sidecar, SidecarKind, read_sidecar};
pub use source::{EncodedTensor, StoredPart, TensorEntry, TensorSource};
pub use statistics::{Statistic, Statistics, StatisticsInfo};
pub use stores::{
    StoreFolder, StoredModel, StoredObject, Stores, is_store_address, without_secrets,
};
pub use survey::Survey;
pub use tokenizer::{
    AddedToken, Piece, PieceKind, PieceModel, Tokenizer, TokenizerKind, VocabularyComparison,
    byte_letter, chat_template, compare_vocabularies, default_template, settings, turn_end_beside,
    unknown_turn_end, unknown_turn_tokens, vocabulary_end,
};
pub use tree::{TreeEntry, TreeKind, tree};
pub use wanted::{ListedFile, is_path_within, is_safetensors, is_weights, wanted};
pub use weight_names::{is_head_file, is_of_training};
