//! The names that a pickle asks to be imported, listed without following its moves.

use std::collections::{BTreeSet, HashMap};

use super::zip;
use crate::checkpoint::limits::MAX_PICKLE_BYTES;

/// The most names that are listed of one file.
const MAX_GLOBALS: usize = 1000;

/// The most pickles that one file is made of; torch's old format has five.
const MAX_PICKLES: usize = 16;

/// Module and name of everything that the pickles of a file import.
pub(in crate::checkpoint) fn globals(path: &std::path::Path, file: &[u8]) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    let mut rest = file;
    if file.starts_with(zip::MAGIC) {
        let pickle = zip::Archive::read(path, file).map(|archive| archive.pickle());
        rest = pickle
            .ok()
            .and_then(|range| file.get(range))
            .unwrap_or_default();
    }
    rest = &rest[..rest.len().min(MAX_PICKLE_BYTES)];
    for _ in 0..MAX_PICKLES {
        let mut walk = Walk {
            bytes: rest,
            at: 0,
            texts: Vec::new(),
            memo: HashMap::new(),
            memoized: 0,
        };
        // What is no pickle ends the walk; what was found before it stays.
        while found.len() < MAX_GLOBALS && walk.step(&mut found) == Some(Step::On) {}
        let ended = walk.at > 0 && rest.get(walk.at - 1) == Some(&b'.');
        rest = rest.get(walk.at..).unwrap_or_default();
        if !ended || rest.is_empty() {
            break;
        }
    }
    found
}

#[derive(PartialEq)]
enum Step {
    On,
    Stop,
}

struct Walk<'a> {
    bytes: &'a [u8],
    at: usize,
    /// The last strings that were pushed, or fetched from the memo.
    texts: Vec<&'a [u8]>,
    memo: HashMap<u64, &'a [u8]>,
    /// How many values were kept by number of their turn.
    memoized: u64,
}

impl<'a> Walk<'a> {
    fn take(&mut self, len: usize) -> Option<&'a [u8]> {
        let end = self.at.checked_add(len)?;
        let taken = self.bytes.get(self.at..end)?;
        self.at = end;
        Some(taken)
    }

    fn number(&mut self, len: usize) -> Option<u64> {
        let bytes = self.take(len)?.iter().rev();
        Some(bytes.fold(0, |number, &byte| number << 8 | u64::from(byte)))
    }

    fn line(&mut self) -> Option<&'a [u8]> {
        let rest = self.bytes.get(self.at..)?;
        let len = rest.iter().position(|&byte| byte == b'\n')?;
        let line = self.take(len)?;
        self.at += 1;
        Some(line)
    }

    fn text(&mut self, len: usize) -> Option<()> {
        let len = usize::try_from(self.number(len)?).ok()?;
        let text = self.take(len)?;
        self.push(text);
        Some(())
    }

    fn push(&mut self, text: &'a [u8]) {
        if self.texts.len() == 2 {
            self.texts.remove(0);
        }
        self.texts.push(text);
    }

    fn put(&mut self, key: u64) {
        if let Some(text) = self.texts.last() {
            self.memo.insert(key, text);
        }
    }

    fn recall(&mut self, key: u64) {
        if let Some(text) = self.memo.get(&key).copied() {
            self.push(text);
        }
    }

    fn key_line(&mut self) -> Option<u64> {
        std::str::from_utf8(self.line()?).ok()?.trim().parse().ok()
    }

    fn step(&mut self, found: &mut BTreeSet<String>) -> Option<Step> {
        let [op] = *self.take(1)? else { return None };
        match op {
            b'.' => return Some(Step::Stop),
            // GLOBAL, INST
            b'c' | b'i' => {
                let (module, name) = (self.line()?, self.line()?);
                found.insert(name_of(module, name));
            }
            0x93 => {
                if let [module, name] = self.texts[..] {
                    found.insert(name_of(module, name));
                }
            }
            0x8c | b'U' | b'C' => self.text(1)?,
            b'X' | b'T' | b'B' => self.text(4)?,
            0x8d | 0x8e | 0x96 => self.text(8)?,
            b'S' | b'V' => {
                let line = self.line()?;
                let quotes: &[u8] = if op == b'S' { b"'\"" } else { b"" };
                let trim = |text: &'a [u8]| match text {
                    [first, inner @ .., last] if first == last && quotes.contains(first) => inner,
                    text => text,
                };
                self.push(trim(line));
            }
            // Numbers and names of persistent objects, as lines.
            b'I' | b'L' | b'F' | b'P' => {
                self.line()?;
            }
            // LONG1, LONG4
            0x8a | 0x8b => {
                let len = self.number(if op == 0x8a { 1 } else { 4 })?;
                self.take(usize::try_from(len).ok()?)?;
            }
            b'p' => {
                let key = self.key_line()?;
                self.put(key);
            }
            b'g' => {
                let key = self.key_line()?;
                self.recall(key);
            }
            b'q' | b'r' => {
                let key = self.number(if op == b'q' { 1 } else { 4 })?;
                self.put(key);
            }
            b'h' | b'j' => {
                let key = self.number(if op == b'h' { 1 } else { 4 })?;
                self.recall(key);
            }
            0x94 => {
                self.put(self.memoized);
                self.memoized += 1;
            }
            // PROTO, BININT1, EXT1; BININT2, EXT2; BININT, EXT4; BINFLOAT, FRAME
            0x80 | b'K' | 0x82 => drop(self.take(1)?),
            b'M' | 0x83 => drop(self.take(2)?),
            b'J' | 0x84 => drop(self.take(4)?),
            b'G' | 0x95 => drop(self.take(8)?),
            _ => {}
        }
        Some(Step::On)
    }
}

fn name_of(module: &[u8], name: &[u8]) -> String {
    let text = |bytes: &[u8]| {
        let shown = &bytes[..bytes.len().min(100)];
        String::from_utf8_lossy(shown).replace(char::is_control, "?")
    };
    format!("{}.{}", text(module), text(name))
}
