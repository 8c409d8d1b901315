//! Models in object stores: `s3://`, `gs://`, `az://` and plain web servers, and checkpoints written to stores.
//!
//! [`Models`] fetches them: of weight files the headers, and the rest while a merge runs, or all at once where a command
//! asks for that.
//! [`Output`] is a folder in a store as the destination of a run.
//!
//! The requests themselves, credentials and retries are those of the crate object_store. What a server says is not
//! believed: names must stay within the model's folder, every answer is held to the range that was asked for, and to the
//! length and state of the file as it was first seen.

mod address;
mod aws_files;
mod client;
mod error;
mod list;
mod marker;
mod model;
mod output;
mod parts;
mod read;
mod spill;
mod uploads;

#[cfg(test)]
mod tests;

pub use address::Address;
pub use aws_files::{AwsFiles, aws_options};
pub use client::Settings;
pub use error::StoreError;
pub use model::{Models, Use};
pub use output::Output;
pub use uploads::HELD;
