//! Quantised checkpoints: which of their tensors are codes and scales, and what values these make.
//!
//! [`Decoder::find`] looks at names, dtypes, shapes and the config, and gives a [`Decoder`]: the tensors that the model
//! means, each with the stored ones that it is made of. Its source computes them as they are read. A storage that is not
//! known is refused by what shows it ([`evidence`]): stored numbers are never merged as if they were weights.

mod bitsandbytes;
mod bytes;
mod dequantised;
mod eight_bits;
mod evidence;
mod find;
mod look;
mod microscaling;
mod packed;
mod settings;

#[cfg(test)]
mod tests;

pub(crate) use evidence::only_config_says;
pub use find::is_comfy_marker;
pub(crate) use find::{Decoder, Found};
pub(crate) use settings::CONFIG_KEYS;
