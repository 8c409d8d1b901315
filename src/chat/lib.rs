//! Chat templates: whether one parses, and the prompts that it writes.
//!
//! A template comes with a model and may be anybody's. It is parsed in bounded time and stack, and run with bounds on its
//! steps, the bytes that it computes with, its depth and what it writes; it reaches no file, no variable of the environment
//! and no clock.

mod limits;
mod parse;
mod render;

pub use parse::parses;
pub use render::ChatTemplate;
