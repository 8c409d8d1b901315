//! A report written down: one file per format. None knows a command or a check by name.

mod json;
mod text;

pub use json::json;
pub use text::text;
