//! Which items are for choosing a model, and which are for judging the chosen one.

use std::fmt;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use crate::task::{Content, Input};

/// A part of the items of a task. Which part an item is of depends on what the model is shown of it and on a seed, and on
/// nothing else: the same prompt is never in both parts, whatever file it stands in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Split {
    /// About half of the items, to choose by.
    Validation,
    /// The other half, to judge the chosen model by.
    Test,
    /// All items.
    All,
}

impl Split {
    /// The name on the command line and in results.
    pub fn name(self) -> &'static str {
        match self {
            Split::Validation => "validation",
            Split::Test => "test",
            Split::All => "all",
        }
    }

    /// Whether an item belongs to it, by the digest of what the model is shown.
    pub fn has(self, shown: Digest, seed: u64) -> bool {
        let is_test = shown.drawn(seed, "split") & 1 == 1;
        match self {
            Split::Validation => !is_test,
            Split::Test => is_test,
            Split::All => true,
        }
    }
}

/// The first 128 bits of a hash of content; 32 hexadecimal digits in results.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Digest([u8; 16]);

impl Digest {
    /// The digest of a whole item: what the model is shown and what is right.
    pub(crate) fn of_item(content: &Content) -> Digest {
        let mut hasher = blake3::Hasher::new();
        feed(&mut hasher, content.kind().name().as_bytes());
        match content {
            Content::Answer {
                prompt,
                answers,
                stop,
            } => {
                feed_input(&mut hasher, prompt);
                feed_all(&mut hasher, answers);
                hasher.update(&(stop.len() as u64).to_le_bytes());
                stop.iter()
                    .for_each(|stop| feed(&mut hasher, stop.as_bytes()));
            }
            Content::Choices {
                prompt,
                choices,
                right,
            } => {
                feed_input(&mut hasher, prompt);
                feed_all(&mut hasher, choices);
                hasher.update(&(*right as u64).to_le_bytes());
            }
            Content::Text(text) => feed_input(&mut hasher, text),
        }
        Digest::finish(&hasher)
    }

    /// The digest of what the model is shown of an item: its prompt, or its text.
    pub(crate) fn of_shown(content: &Content) -> Digest {
        let mut hasher = blake3::Hasher::new();
        match content {
            Content::Answer { prompt, .. } | Content::Choices { prompt, .. } => {
                feed_input(&mut hasher, prompt);
            }
            Content::Text(text) => feed_input(&mut hasher, text),
        }
        Digest::finish(&hasher)
    }

    fn finish(hasher: &blake3::Hasher) -> Digest {
        let mut first = [0; 16];
        hasher.finalize_xof().fill(&mut first);
        Digest(first)
    }

    /// A number drawn for this content, by seed and purpose.
    pub(crate) fn drawn(self, seed: u64, purpose: &str) -> u64 {
        let mut hasher = blake3::Hasher::new();
        hasher.update(&seed.to_le_bytes());
        hasher.update(&self.0);
        hasher.update(purpose.as_bytes());
        let mut number = [0; 8];
        hasher.finalize_xof().fill(&mut number);
        u64::from_le_bytes(number)
    }
}

/// Feeds bytes with their length, so that no two lists of parts give the same bytes.
fn feed(hasher: &mut blake3::Hasher, bytes: &[u8]) {
    hasher.update(&(bytes.len() as u64).to_le_bytes());
    hasher.update(bytes);
}

fn feed_input(hasher: &mut blake3::Hasher, input: &Input) {
    match input {
        Input::Text(text) => {
            hasher.update(b"t");
            feed(hasher, text.as_bytes());
        }
        Input::Tokens(tokens) => {
            hasher.update(b"i");
            let bytes: Vec<u8> = tokens.iter().flat_map(|id| id.to_le_bytes()).collect();
            feed(hasher, &bytes);
        }
    }
}

fn feed_all(hasher: &mut blake3::Hasher, inputs: &[Input]) {
    hasher.update(&(inputs.len() as u64).to_le_bytes());
    inputs.iter().for_each(|input| feed_input(hasher, input));
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl Serialize for Digest {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Digest {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        let number = u128::from_str_radix(&text, 16).ok();
        let number = number.filter(|_| text.len() == 32 && !text.starts_with('+'));
        let number = number.ok_or_else(|| de::Error::custom("expected 32 hexadecimal digits"))?;
        Ok(Digest(number.to_be_bytes()))
    }
}
