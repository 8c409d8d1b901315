//! What a study found: a leaderboard with intervals and paired differences, skill by skill, in several formats.

mod findings;
mod page;
mod svg;
mod table;
#[cfg(test)]
mod tests;

pub use findings::{Interval, Report, Row, SearchSummary, Skill, json};
pub use page::html;
pub use table::{csv, markdown, text};
