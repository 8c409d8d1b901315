//! Checkpoints as GGUF files, with the names, values and metadata that llama.cpp's own converter writes.
//!
//! An [`Export`] is planned from headers and configs; [`Export::write`] then reads one piece of a tensor at a time and
//! gives bytes in the order of the file. What a family is called there, and what changes beside names, is data in
//! `architecture::llama_cpp`. It must not know where the file goes.

mod container;
mod encoding;
mod export;
mod mixture;
mod parameters;
mod rope;
mod served;
mod tensors;
mod vocabulary;

pub use container::{ALIGNMENT, Metadata, TensorInfo, Value, header};
pub use encoding::Encoding;
pub use export::{Export, Options, Unfinished, check};
pub use vocabulary::pretokenizers;
