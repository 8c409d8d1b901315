//! The names that the pickles of a file import, found by following their opcodes without creating any object.
//!
//! The stack keeps only the values that can form a name, which are strings. So the operands of STACK_GLOBAL are known,
//! whatever was pushed, popped, stored and recalled before. If a file cannot be followed to its end, the result says
//! so.

use std::collections::{BTreeSet, HashMap};
use std::path::Path;

use super::allowed::{Import, import};
use super::{legacy, zip};
use crate::bounded::plain;
use crate::limits::{MAX_PICKLE_BYTES, MAX_PICKLE_MEMO, MAX_PICKLE_STACK};

/// The most names that are listed for one file.
const MAX_GLOBALS: usize = 1000;

/// The number of pickles in a file of torch's old format; bytes of tensors follow them.
const LEGACY_PICKLES: usize = 5;

/// The names that the pickles of a file import, as `module.name`.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct PickleImports {
    /// Names that weights and trainers' files need.
    pub harmless: BTreeSet<String>,
    /// All others.
    pub others: BTreeSet<String>,
    /// Why there may be more names: the file could not be followed to its end.
    pub unread: Option<String>,
}

/// Follows the pickles of a mapped file.
pub(crate) fn globals(path: &Path, file: &[u8]) -> PickleImports {
    let mut found = PickleImports::default();
    let (mut rest, most, in_archive) = if file.starts_with(zip::MAGIC) {
        match zip::Archive::read(path, file) {
            Ok(archive) => (file.get(archive.pickle()).unwrap_or_default(), 1, true),
            Err(problem) => {
                found.unread = Some(problem.to_string());
                return found;
            }
        }
    } else {
        (file, LEGACY_PICKLES, false)
    };
    for _ in 0..most {
        let mut walk = Walk {
            bytes: &rest[..rest.len().min(MAX_PICKLE_BYTES)],
            at: 0,
            stack: Vec::new(),
            marks: Vec::new(),
            memo: HashMap::new(),
            found: &mut found,
        };
        let stopped = loop {
            let before = walk.at;
            match walk.step() {
                Ok(false) => {}
                Ok(true) => break Ok(walk.at),
                Err(why) => break Err((why, before)),
            }
        };
        let at = match stopped {
            Ok(at) => at,
            Err((why, at)) => {
                let offset = file.len() - rest.len() + at;
                found.unread = Some(match in_archive {
                    true => format!("its pickle {why} at byte {at}"),
                    false => format!("it {why} at byte {offset}"),
                });
                return found;
            }
        };
        rest = rest.get(at..).unwrap_or_default();
        if rest.is_empty() {
            return found;
        }
    }
    // Bytes that no loader takes for a pickle: those of tensors, and what follows the pickle of an archive.
    if !in_archive && !legacy::is_legacy(file) {
        let offset = file.len() - rest.len();
        found.unread = Some(format!("it goes on after five pickles, at byte {offset}"));
    }
    found
}

/// A value on the stack. It is small, because a hostile pickle pushes many.
#[derive(Debug, Clone, Copy)]
enum Value {
    /// A string, by its position in the pickle.
    Text {
        at: u32,
        len: u32,
    },
    /// The class of an enum.
    Enum,
    /// The function that looks up a member.
    Getattr,
    /// The arguments that name a member of an enum: the enum and the member's name.
    Member,
    Other,
}

/// Why a walk ended too early, as the end of a sentence.
type Broken = String;

struct Walk<'a> {
    bytes: &'a [u8],
    at: usize,
    stack: Vec<Value>,
    /// Lengths of the stack at each mark.
    marks: Vec<u32>,
    memo: HashMap<u32, Value>,
    found: &'a mut PickleImports,
}

impl<'a> Walk<'a> {
    /// Follows one opcode; returns whether it was the last.
    fn step(&mut self) -> Result<bool, Broken> {
        let start = self.at;
        let op = self.number(1)?;
        match op as u8 {
            b'.' => {
                self.pop()?;
                return Ok(true);
            }
            // MARK
            b'(' => {
                if self.marks.len() == MAX_PICKLE_STACK {
                    return Err("sets too many marks".into());
                }
                self.marks.push(self.stack.len() as u32);
            }
            // POP removes a mark if nothing is above it.
            b'0' if self.marks.last() == Some(&(self.stack.len() as u32)) => {
                self.marks.pop();
            }
            b'0' => {
                self.pop()?;
            }
            b'1' => self.pop_mark()?,
            b'2' => {
                let top = self.top()?;
                self.push(top)?;
            }

            // Strings: SHORT_BINUNICODE, SHORT_BINSTRING; BINUNICODE, BINSTRING; BINUNICODE8
            0x8c | b'U' => self.text(1)?,
            b'X' | b'T' => self.text(4)?,
            0x8d => self.text(8)?,
            // STRING, UNICODE: escapes are kept, as no harmless name has a backslash.
            b'S' => {
                let line = self.line()?;
                let quoted = |quote: &u8| line.len() >= 2 && line.ends_with(&[*quote]);
                let cut = usize::from(
                    line.first()
                        .filter(|first| b"'\"".contains(first))
                        .is_some_and(quoted),
                );
                self.push_text(start + 1 + cut, line.len() - 2 * cut)?;
            }
            b'V' => {
                let len = self.line()?.len();
                self.push_text(start + 1, len)?;
            }

            // NONE, NEWTRUE, NEWFALSE, EMPTY_TUPLE, EMPTY_LIST, EMPTY_DICT, EMPTY_SET, NEXT_BUFFER
            b'N' | 0x88 | 0x89 | b')' | b']' | b'}' | 0x8f | 0x97 => self.push(Value::Other)?,
            // BININT1; BININT2; BININT; BINFLOAT
            b'K' => self.data(1)?,
            b'M' => self.data(2)?,
            b'J' => self.data(4)?,
            b'G' => self.data(8)?,
            // LONG1, SHORT_BINBYTES; LONG4, BINBYTES; BINBYTES8, BYTEARRAY8
            0x8a | b'C' => self.counted(1)?,
            0x8b | b'B' => self.counted(4)?,
            0x8e | 0x96 => self.counted(8)?,
            // INT, LONG, FLOAT, PERSID
            b'I' | b'L' | b'F' | b'P' => {
                self.line()?;
                self.push(Value::Other)?;
            }
            // PROTO; FRAME; READONLY_BUFFER
            0x80 => {
                self.take(1)?;
            }
            0x95 => {
                self.take(8)?;
            }
            0x98 => {
                self.top()?;
            }

            // TUPLE, LIST, DICT, FROZENSET
            b't' | b'l' | b'd' | 0x91 => {
                self.pop_mark()?;
                self.push(Value::Other)?;
            }
            0x86 => self.pair()?,
            // TUPLE1, BINPERSID; NEWOBJ; TUPLE3, NEWOBJ_EX
            0x85 | b'Q' => self.make(1)?,
            0x81 => self.make(2)?,
            0x87 | 0x92 => self.make(3)?,
            // APPEND, BUILD; SETITEM; APPENDS, SETITEMS, ADDITEMS: the object that they change stays on the stack.
            b'a' | b'b' => {
                self.pop()?;
                self.top()?;
            }
            b's' => {
                self.pop()?;
                self.pop()?;
                self.top()?;
            }
            b'e' | b'u' | 0x90 => {
                self.pop_mark()?;
                self.top()?;
            }
            b'R' => {
                let arguments = self.take_top()?;
                let callable = self.take_top()?;
                match (callable, arguments) {
                    (Value::Getattr, Value::Member) => {}
                    pair => [pair.0, pair.1]
                        .into_iter()
                        .for_each(|value| self.used(value)),
                }
                self.push(Value::Other)?;
            }
            // OBJ: the class follows the mark.
            b'o' => {
                self.pop_mark()?;
                self.push(Value::Other)?;
            }

            // PUT; BINPUT; LONG_BINPUT; MEMOIZE, which numbers entries by their count
            b'p' => {
                let key = self.key_line()?;
                self.put(key)?;
            }
            b'q' => {
                let key = self.number(1)?;
                self.put(key)?;
            }
            b'r' => {
                let key = self.number(4)?;
                self.put(key)?;
            }
            0x94 => self.put(self.memo.len() as u64)?,
            // GET; BINGET; LONG_BINGET
            b'g' => {
                let key = self.key_line()?;
                self.recall(key)?;
            }
            b'h' => {
                let key = self.number(1)?;
                self.recall(key)?;
            }
            b'j' => {
                let key = self.number(4)?;
                self.recall(key)?;
            }

            // GLOBAL
            b'c' => {
                let (module, name) = (self.line()?, self.line()?);
                let value = self.import(module, name)?;
                self.push(value)?;
            }
            // INST calls what it imports.
            b'i' => {
                let (module, name) = (self.line()?, self.line()?);
                let value = self.import(module, name)?;
                self.used(value);
                self.pop_mark()?;
                self.push(Value::Other)?;
            }
            // STACK_GLOBAL
            0x93 => {
                let (name, module) = (self.take_top()?, self.take_top()?);
                let value = match (self.text_of(module), self.text_of(name)) {
                    (Some(module), Some(name)) => self.import(module, name)?,
                    _ => {
                        let what = "a name that is made while the file is unpickled";
                        self.found.others.insert(what.to_owned());
                        Value::Other
                    }
                };
                self.push(value)?;
            }
            // EXT1, EXT2, EXT4
            0x82 => self.extension(1)?,
            0x83 => self.extension(2)?,
            0x84 => self.extension(4)?,

            other => return Err(format!("is no pickle, {other:#04x} is no opcode,")),
        }
        Ok(false)
    }

    fn take(&mut self, len: usize) -> Result<&'a [u8], Broken> {
        let end = self.at.checked_add(len);
        let Some(taken) = end.and_then(|end| self.bytes.get(self.at..end)) else {
            return Err(match self.bytes.len() == MAX_PICKLE_BYTES {
                true => format!("is longer than {MAX_PICKLE_BYTES} bytes, and was left"),
                false => "breaks off".into(),
            });
        };
        self.at += len;
        Ok(taken)
    }

    /// A little-endian number of up to eight bytes.
    fn number(&mut self, len: usize) -> Result<u64, Broken> {
        let bytes = self.take(len)?.iter().rev();
        Ok(bytes.fold(0, |number, &byte| number << 8 | u64::from(byte)))
    }

    fn line(&mut self) -> Result<&'a [u8], Broken> {
        let rest = self.bytes.get(self.at..).unwrap_or_default();
        match rest.iter().position(|&byte| byte == b'\n') {
            Some(len) => {
                let line = self.take(len)?;
                self.take(1)?;
                Ok(line)
            }
            None => Err("has a line without an end".into()),
        }
    }

    fn key_line(&mut self) -> Result<u64, Broken> {
        let line = std::str::from_utf8(self.line()?).unwrap_or_default();
        let key = line.trim().parse();
        key.map_err(|_| format!("has `{}` for a number", plain(&line)))
    }

    fn data(&mut self, len: usize) -> Result<(), Broken> {
        self.take(len)?;
        self.push(Value::Other)
    }

    /// Bytes that follow their count.
    fn counted(&mut self, len: usize) -> Result<(), Broken> {
        let count = self.number(len)?;
        self.data(usize::try_from(count).unwrap_or(usize::MAX))
    }

    fn text(&mut self, len: usize) -> Result<(), Broken> {
        let count = usize::try_from(self.number(len)?).unwrap_or(usize::MAX);
        let at = self.at;
        self.take(count)?;
        self.push_text(at, count)
    }

    fn push_text(&mut self, at: usize, len: usize) -> Result<(), Broken> {
        // Both fit: only the first `MAX_PICKLE_BYTES` of a pickle are followed, fewer than `u32::MAX`.
        let (at, len) = (at as u32, len as u32);
        self.push(Value::Text { at, len })
    }

    fn text_of(&self, value: Value) -> Option<&'a [u8]> {
        match value {
            Value::Text { at, len } => self.bytes.get(at as usize..)?.get(..len as usize),
            _ => None,
        }
    }

    fn push(&mut self, value: Value) -> Result<(), Broken> {
        if self.stack.len() == MAX_PICKLE_STACK {
            return Err("has too many values at once".into());
        }
        self.stack.push(value);
        Ok(())
    }

    fn top(&self) -> Result<Value, Broken> {
        let floor = self.marks.last().copied().unwrap_or(0) as usize;
        match self.stack.last() {
            Some(value) if self.stack.len() > floor => Ok(*value),
            _ => Err("takes a value where there is none,".into()),
        }
    }

    /// Pops a value that the caller handles.
    fn take_top(&mut self) -> Result<Value, Broken> {
        let value = self.top()?;
        self.stack.pop();
        Ok(value)
    }

    fn pop(&mut self) -> Result<(), Broken> {
        let value = self.take_top()?;
        self.used(value);
        Ok(())
    }

    /// Any use of `getattr` other than for members of enums could return anything.
    fn used(&mut self, value: Value) {
        if matches!(value, Value::Getattr) {
            self.found.others.insert("builtins.getattr".into());
        }
    }

    fn pop_mark(&mut self) -> Result<(), Broken> {
        let Some(mark) = self.marks.pop() else {
            return Err("takes a mark where there is none,".into());
        };
        while self.stack.len() > mark as usize {
            self.pop()?;
        }
        Ok(())
    }

    /// Replaces the last values by a single one.
    fn make(&mut self, count: usize) -> Result<(), Broken> {
        for _ in 0..count {
            self.pop()?;
        }
        self.push(Value::Other)
    }

    /// TUPLE2: the pair may name a member of an enum.
    fn pair(&mut self) -> Result<(), Broken> {
        let (second, first) = (self.take_top()?, self.take_top()?);
        let is_member = |name: &[u8]| {
            // Members are written in capitals, methods are not.
            let capital = |byte: &u8| byte.is_ascii_uppercase() || byte.is_ascii_digit();
            name.iter().all(|byte| capital(byte) || *byte == b'_') && !name.starts_with(b"_")
        };
        if matches!(first, Value::Enum) && self.text_of(second).is_some_and(is_member) {
            return self.push(Value::Member);
        }
        self.used(first);
        self.used(second);
        self.push(Value::Other)
    }

    fn put(&mut self, key: u64) -> Result<(), Broken> {
        let value = self.top()?;
        let key = u32::try_from(key).map_err(|_| "keeps a value under a number too large,")?;
        if self.memo.len() == MAX_PICKLE_MEMO && !self.memo.contains_key(&key) {
            return Err("keeps too many values for later".into());
        }
        self.memo.insert(key, value);
        Ok(())
    }

    fn recall(&mut self, key: u64) -> Result<(), Broken> {
        let value = u32::try_from(key).ok().and_then(|key| self.memo.get(&key));
        match value {
            Some(&value) => self.push(value),
            None => Err("recalls a value that was not kept,".into()),
        }
    }

    /// Names that programs have agreed to write as numbers.
    fn extension(&mut self, len: usize) -> Result<(), Broken> {
        let code = self.number(len)?;
        self.list(format!("extension {code}"), Import::Other)?;
        self.push(Value::Other)
    }

    fn import(&mut self, module: &[u8], name: &[u8]) -> Result<Value, Broken> {
        let kind = match (std::str::from_utf8(module), std::str::from_utf8(name)) {
            (Ok(module), Ok(name)) => import(module, name),
            _ => Import::Other,
        };
        let text = |bytes: &[u8]| {
            let shown = &bytes[..bytes.len().min(100)];
            String::from_utf8_lossy(shown).replace(char::is_control, "?")
        };
        self.list(format!("{}.{}", text(module), text(name)), kind)?;
        Ok(match kind {
            Import::Enum => Value::Enum,
            Import::Getattr => Value::Getattr,
            Import::Harmless | Import::Other => Value::Other,
        })
    }

    fn list(&mut self, name: String, kind: Import) -> Result<(), Broken> {
        if self.found.harmless.len() + self.found.others.len() >= MAX_GLOBALS {
            return Err(format!("imports more than {MAX_GLOBALS} names"));
        }
        match kind {
            Import::Other => self.found.others.insert(name),
            Import::Harmless | Import::Enum | Import::Getattr => self.found.harmless.insert(name),
        };
        Ok(())
    }
}

#[cfg(test)]
mod tests;
