//! Against a small server that fails in every way that a store may.

mod in_parts;
mod reading;
mod server;
mod writing;
