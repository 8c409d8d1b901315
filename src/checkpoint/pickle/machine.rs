//! The stack machine of a pickle: it moves values around, and leaves the meaning of torch's names to `torch`.
//!
//! A pickle is a program. This machine runs its opcodes without recursion and calls nothing: a name that the pickle
//! imports is looked up in a short list, and refused if it is not there.

use std::collections::HashMap;
use std::path::Path;

use super::objects::{Object, Objects, Value};
use super::torch::{self, Global};
use crate::bounded::plain;
use crate::error::CheckpointError;
use crate::limits::{
    DISTRIBUTED_TIMES, MAX_PICKLE_BYTES, MAX_PICKLE_MEMO, MAX_PICKLE_STACK, MAX_PICKLE_VALUES,
};

/// The newest pickle protocol.
const MAX_PROTOCOL: u8 = 5;

/// The result of a finished pickle.
#[derive(Debug)]
pub(super) struct Unpickled<'a> {
    pub(super) root: Value<'a>,
    pub(super) objects: Objects<'a>,
    /// Its length in bytes.
    pub(super) len: usize,
}

/// What can be wrong with a pickle; the machine adds file and offset.
#[derive(Debug)]
pub(super) enum Problem {
    /// No pickler writes this.
    Malformed(String),
    /// What is refused, and what to do about it.
    Refused(String, &'static str),
    /// What there is too much of, and the limit.
    TooMany(&'static str, usize),
}

fn malformed<T>(detail: impl Into<String>) -> Result<T, Problem> {
    Err(Problem::Malformed(detail.into()))
}

/// The names that a pickle may import.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Imports {
    /// Those of tensors.
    Torch,
    /// Also those of a distributed checkpoint's metadata.
    Distributed,
}

impl Imports {
    /// How many times as much as in a file of torch such a pickle may hold.
    fn times(self) -> usize {
        match self {
            Imports::Torch => 1,
            Imports::Distributed => DISTRIBUTED_TIMES,
        }
    }
}

/// Runs the pickle at the start of `bytes`, which begin at byte `base` of the file.
pub(super) fn unpickle<'a>(
    path: &Path,
    bytes: &'a [u8],
    base: u64,
    imports: Imports,
) -> Result<Unpickled<'a>, CheckpointError> {
    let times = imports.times();
    let most = MAX_PICKLE_BYTES * times;
    let mut machine = Machine {
        imports,
        bytes: &bytes[..bytes.len().min(most)],
        cut: bytes.len() > most,
        at: 0,
        pushed: 0,
        stack: Vec::new(),
        marks: Vec::new(),
        memo: HashMap::new(),
        objects: Objects::new(times),
    };
    loop {
        let start = machine.at;
        match machine.step() {
            Ok(None) => {}
            Ok(Some(root)) => {
                return Ok(Unpickled {
                    root,
                    objects: machine.objects,
                    len: machine.at,
                });
            }
            Err(problem) => {
                return Err(problem.at(path, base.saturating_add(start as u64)));
            }
        }
    }
}

impl Problem {
    fn at(self, path: &Path, offset: u64) -> CheckpointError {
        let path = path.into();
        match self {
            Self::Malformed(detail) => CheckpointError::PickleMalformed {
                path,
                offset,
                detail,
            },
            Self::Refused(what, hint) => CheckpointError::PickleRefused {
                path,
                offset,
                what,
                hint,
            },
            Self::TooMany(what, limit) => CheckpointError::PickleTooLarge {
                path,
                offset,
                what,
                limit,
            },
        }
    }
}

struct Machine<'a> {
    imports: Imports,
    bytes: &'a [u8],
    /// Whether the input was cut off at the size limit.
    cut: bool,
    at: usize,
    pushed: usize,
    stack: Vec<Value<'a>>,
    /// Lengths of the stack at each mark.
    marks: Vec<usize>,
    memo: HashMap<u64, Value<'a>>,
    objects: Objects<'a>,
}

impl<'a> Machine<'a> {
    /// Runs one opcode; returns the pickle's value if it was the last.
    fn step(&mut self) -> Result<Option<Value<'a>>, Problem> {
        let [op] = self.array()?;
        match op {
            b'.' => {
                let root = self.pop()?;
                return match self.stack.is_empty() && self.marks.is_empty() {
                    true => Ok(Some(root)),
                    false => malformed("values are left over at its end"),
                };
            }
            // PROTO, FRAME
            0x80 => {
                let [protocol] = self.array()?;
                if protocol > MAX_PROTOCOL {
                    let what = format!("protocol {protocol}, newer than {MAX_PROTOCOL}");
                    return Err(Problem::Refused(what, torch::SAVE_AGAIN));
                }
            }
            0x95 => {
                self.array::<8>()?;
            }
            b'(' => {
                if self.marks.len() == MAX_PICKLE_STACK {
                    return Err(Problem::TooMany("marks at once", MAX_PICKLE_STACK));
                }
                self.marks.push(self.stack.len());
            }
            // POP, POP_MARK, DUP
            b'0' => {
                self.pop()?;
            }
            b'1' => {
                self.pop_mark()?;
            }
            b'2' => self.push(self.top()?)?,

            b'N' => self.push(Value::None)?,
            0x88 => self.push(Value::Bool(true))?,
            0x89 => self.push(Value::Bool(false))?,
            b'J' => {
                let int = i32::from_le_bytes(self.array()?);
                self.push(Value::Int(int.into()))?;
            }
            b'K' => {
                let [int] = self.array()?;
                self.push(Value::Int(int.into()))?;
            }
            b'M' => {
                let int = u16::from_le_bytes(self.array()?);
                self.push(Value::Int(int.into()))?;
            }
            b'I' => self.int_line()?,
            b'L' => self.long_line()?,
            // LONG1, LONG4
            0x8a => {
                let len = self.len1()?;
                self.long(len)?;
            }
            0x8b => {
                let len = self.len4()?;
                self.long(len)?;
            }
            b'G' => {
                self.array::<8>()?;
                self.push(Value::Float)?;
            }

            // Strings: SHORT_BINUNICODE, BINUNICODE, BINUNICODE8; Python 2: SHORT_BINSTRING, BINSTRING
            0x8c => {
                let len = self.len1()?;
                self.text(len)?;
            }
            b'X' => {
                let len = self.len4()?;
                self.text(len)?;
            }
            0x8d => {
                let len = self.len8()?;
                self.text(len)?;
            }
            b'U' => {
                let len = self.len1()?;
                self.string(len)?;
            }
            b'T' => {
                let len = self.len4()?;
                self.string(len)?;
            }
            // SHORT_BINBYTES, BINBYTES, BINBYTES8, BYTEARRAY8
            b'C' => {
                let len = self.len1()?;
                self.byte_string(len)?;
            }
            b'B' => {
                let len = self.len4()?;
                self.byte_string(len)?;
            }
            0x8e | 0x96 => {
                let len = self.len8()?;
                self.byte_string(len)?;
            }

            b')' => self.add(Object::Tuple(Vec::new()))?,
            b't' => {
                let items = self.pop_mark()?;
                self.add(Object::Tuple(items))?;
            }
            0x85..=0x87 => {
                let items = self.pop_last(usize::from(op) - 0x84)?;
                self.add(Object::Tuple(items))?;
            }
            b']' => self.add(Object::List(Vec::new()))?,
            b'l' => {
                let items = self.pop_mark()?;
                self.add(Object::List(items))?;
            }
            b'}' => self.add(Object::Dict(Vec::new()))?,
            b'd' => {
                let entries = pairs(&self.pop_mark()?)?;
                self.add(Object::Dict(entries))?;
            }
            // EMPTY_SET, FROZENSET, ADDITEMS
            0x8f => self.add(Object::Set)?,
            0x91 => {
                self.pop_mark()?;
                self.add(Object::Set)?;
            }
            0x90 => {
                self.pop_mark()?;
                self.top()?;
            }
            b'a' => {
                let items = self.pop_last(1)?;
                self.append(items)?;
            }
            b'e' => {
                let items = self.pop_mark()?;
                self.append(items)?;
            }
            b's' => {
                let items = self.pop_last(2)?;
                self.set_items(&items)?;
            }
            b'u' => {
                let items = self.pop_mark()?;
                self.set_items(&items)?;
            }

            // PUT, BINPUT, LONG_BINPUT, MEMOIZE; GET, BINGET, LONG_BINGET
            b'p' => {
                let key = self.key_line()?;
                self.put(key)?;
            }
            b'q' => {
                let [key] = self.array()?;
                self.put(key.into())?;
            }
            b'r' => {
                let key = u32::from_le_bytes(self.array()?);
                self.put(key.into())?;
            }
            0x94 => self.put(self.memo.len() as u64)?,
            b'g' => {
                let key = self.key_line()?;
                self.recall(key)?;
            }
            b'h' => {
                let [key] = self.array()?;
                self.recall(key.into())?;
            }
            b'j' => {
                let key = u32::from_le_bytes(self.array()?);
                self.recall(key.into())?;
            }

            // GLOBAL, STACK_GLOBAL
            b'c' => {
                let (module, name) = (self.line()?, self.line()?);
                self.import(module, name)?;
            }
            0x93 => match self.pop_last(2)?[..] {
                [Value::Text(module), Value::Text(name)] => self.import(module, name)?,
                _ => return malformed("a name to import that is not a string"),
            },
            b'R' => {
                let arguments = self.pop()?;
                let Value::Global(callable) = self.pop()? else {
                    return malformed("a call of what can't be called");
                };
                let made = torch::call(&mut self.objects, callable, arguments)?;
                self.push(made)?;
            }
            // NEWOBJ
            0x81 if self.imports == Imports::Distributed => match self.pop_last(2)?[..] {
                [Value::Global(Global::Class(class)), _] => self.add(Object::Instance {
                    class,
                    state: Value::None,
                })?,
                _ => return unknown(op),
            },
            b'b' => {
                let given = self.pop()?;
                let top = self.top()?;
                match self.objects.get_mut(top) {
                    // The attributes of a dict, such as the `_metadata` of a state dict, are not entries of it.
                    Some(Object::Dict(_)) => {}
                    Some(Object::Instance { state, .. }) => *state = given,
                    _ => {
                        let what = "an object with a state of its own".into();
                        return Err(Problem::Refused(what, torch::SAVE_AGAIN));
                    }
                }
            }
            b'Q' => {
                let id = self.pop()?;
                let storage = torch::storage(&self.objects, id)?;
                self.add(Object::Storage(storage))?;
            }

            other => return unknown(other),
        }
        Ok(None)
    }

    fn push(&mut self, value: Value<'a>) -> Result<(), Problem> {
        self.pushed += 1;
        let most = MAX_PICKLE_VALUES * self.imports.times();
        if self.pushed > most {
            return Err(Problem::TooMany("values", most));
        }
        if self.stack.len() == MAX_PICKLE_STACK {
            return Err(Problem::TooMany("values at once", MAX_PICKLE_STACK));
        }
        self.stack.push(value);
        Ok(())
    }

    /// Pushes what a name stands for.
    fn import(&mut self, module: &str, name: &str) -> Result<(), Problem> {
        let class = match self.imports {
            Imports::Torch => None,
            Imports::Distributed => torch::class(module, name),
        };
        let global = match class {
            Some(class) => Global::Class(class),
            None => torch::global(module, name)?,
        };
        self.push(Value::Global(global))
    }

    fn add(&mut self, object: Object<'a>) -> Result<(), Problem> {
        let value = self.objects.add(object)?;
        self.push(value)
    }

    /// Where the values above the last mark begin.
    fn floor(&self) -> usize {
        self.marks.last().copied().unwrap_or(0)
    }

    fn top(&self) -> Result<Value<'a>, Problem> {
        match self.stack.last() {
            Some(value) if self.stack.len() > self.floor() => Ok(*value),
            _ => malformed("a value is taken where there is none"),
        }
    }

    fn pop(&mut self) -> Result<Value<'a>, Problem> {
        let value = self.top()?;
        self.stack.pop();
        Ok(value)
    }

    fn pop_last(&mut self, count: usize) -> Result<Vec<Value<'a>>, Problem> {
        match self.stack.len().checked_sub(count) {
            Some(from) if from >= self.floor() => Ok(self.stack.split_off(from)),
            _ => malformed("a value is taken where there is none"),
        }
    }

    fn pop_mark(&mut self) -> Result<Vec<Value<'a>>, Problem> {
        match self.marks.pop() {
            // No mark is ever above the stack, because nothing is popped below the last mark.
            Some(mark) => Ok(self.stack.split_off(mark.min(self.stack.len()))),
            None => malformed("a mark is taken where there is none"),
        }
    }

    fn append(&mut self, items: Vec<Value<'a>>) -> Result<(), Problem> {
        let list = self.top()?;
        match self.objects.get_mut(list) {
            Some(Object::List(list)) => list.extend(items),
            _ => return malformed("values are appended to what is not a list"),
        }
        Ok(())
    }

    fn set_items(&mut self, items: &[Value<'a>]) -> Result<(), Problem> {
        let entries = pairs(items)?;
        let dict = self.top()?;
        match self.objects.get_mut(dict) {
            Some(Object::Dict(dict)) => dict.extend(entries),
            _ => return malformed("entries are set in what is not a dict"),
        }
        Ok(())
    }

    fn put(&mut self, key: u64) -> Result<(), Problem> {
        let value = self.top()?;
        let most = MAX_PICKLE_MEMO * self.imports.times();
        if self.memo.len() == most && !self.memo.contains_key(&key) {
            return Err(Problem::TooMany("values kept for later", most));
        }
        self.memo.insert(key, value);
        Ok(())
    }

    fn recall(&mut self, key: u64) -> Result<(), Problem> {
        match self.memo.get(&key) {
            Some(&value) => self.push(value),
            None => malformed("a value is recalled that was not kept"),
        }
    }

    fn take(&mut self, len: usize) -> Result<&'a [u8], Problem> {
        let taken = self
            .at
            .checked_add(len)
            .and_then(|end| self.bytes.get(self.at..end));
        match taken {
            Some(bytes) => {
                self.at += len;
                Ok(bytes)
            }
            None if self.cut => Err(Problem::TooMany("bytes", self.bytes.len())),
            None => malformed("it ends too soon"),
        }
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], Problem> {
        match self.take(N)?.first_chunk() {
            Some(bytes) => Ok(*bytes),
            None => malformed("it ends too soon"),
        }
    }

    fn len1(&mut self) -> Result<usize, Problem> {
        let [len] = self.array()?;
        Ok(len.into())
    }

    fn len4(&mut self) -> Result<usize, Problem> {
        Ok(u32::from_le_bytes(self.array()?) as usize)
    }

    fn len8(&mut self) -> Result<usize, Problem> {
        let len = u64::from_le_bytes(self.array()?);
        Ok(usize::try_from(len).unwrap_or(usize::MAX))
    }

    /// The bytes up to the next newline, as text.
    fn line(&mut self) -> Result<&'a str, Problem> {
        let rest = self.bytes.get(self.at..).unwrap_or_default();
        let Some(len) = rest.iter().position(|&byte| byte == b'\n') else {
            return malformed("a line without an end");
        };
        let line = self.take(len)?;
        self.take(1)?;
        match std::str::from_utf8(line) {
            Ok(line) => Ok(line),
            Err(_) => malformed("a line that is not UTF-8"),
        }
    }

    fn key_line(&mut self) -> Result<u64, Problem> {
        let line = self.line()?;
        match line.parse() {
            Ok(key) => Ok(key),
            Err(_) => malformed(format!("expected a number, found `{}`", plain(&line))),
        }
    }

    /// Integers of protocol 1, where `00` and `01` are bools.
    fn int_line(&mut self) -> Result<(), Problem> {
        let value = match self.line()? {
            "00" => Value::Bool(false),
            "01" => Value::Bool(true),
            line => integer(line)?,
        };
        self.push(value)
    }

    fn long_line(&mut self) -> Result<(), Problem> {
        let line = self.line()?;
        let value = integer(line.strip_suffix('L').unwrap_or(line))?;
        self.push(value)
    }

    /// An integer in two's complement, little-endian, of any length.
    fn long(&mut self, len: usize) -> Result<(), Problem> {
        let bytes = self.take(len)?;
        let negative = bytes.last().is_some_and(|&last| last >= 0x80);
        let mut padded = [if negative { 0xff } else { 0 }; 8];
        let value = match padded.get_mut(..bytes.len()) {
            Some(low) => {
                low.copy_from_slice(bytes);
                Value::Int(i64::from_le_bytes(padded))
            }
            None => Value::BigInt,
        };
        self.push(value)
    }

    fn text(&mut self, len: usize) -> Result<(), Problem> {
        match std::str::from_utf8(self.take(len)?) {
            Ok(text) => self.push(Value::Text(text)),
            Err(_) => malformed("a string that is not UTF-8"),
        }
    }

    /// A string of Python 2, which may or may not be text.
    fn string(&mut self, len: usize) -> Result<(), Problem> {
        let bytes = self.take(len)?;
        self.push(std::str::from_utf8(bytes).map_or(Value::Bytes, Value::Text))
    }

    fn byte_string(&mut self, len: usize) -> Result<(), Problem> {
        self.take(len)?;
        self.push(Value::Bytes)
    }
}

fn pairs<'a>(items: &[Value<'a>]) -> Result<Vec<(Value<'a>, Value<'a>)>, Problem> {
    let (pairs, rest) = items.as_chunks::<2>();
    match rest {
        [] => Ok(pairs.iter().map(|&[key, value]| (key, value)).collect()),
        _ => malformed("a key without a value"),
    }
}

fn integer<'a>(digits: &str) -> Result<Value<'a>, Problem> {
    match digits.parse() {
        Ok(int) => Ok(Value::Int(int)),
        Err(_) => malformed(format!("expected an integer, found `{}`", plain(&digits))),
    }
}

/// Names opcodes that are valid in pickles but that torch does not write.
fn unknown<T>(op: u8) -> Result<T, Problem> {
    let name = match op {
        b'i' => "INST",
        b'o' => "OBJ",
        0x81 => "NEWOBJ",
        0x92 => "NEWOBJ_EX",
        0x82..=0x84 => "EXT",
        b'P' => "PERSID",
        b'F' => "FLOAT",
        b'S' => "STRING",
        b'V' => "UNICODE",
        0x97 => "NEXT_BUFFER",
        0x98 => "READONLY_BUFFER",
        _ => return malformed(format!("{op:#04x} is no opcode")),
    };
    let what = format!("the opcode {name}");
    Err(Problem::Refused(what, torch::SAVE_AGAIN))
}
