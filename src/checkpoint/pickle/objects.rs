//! What a pickle builds: values, and the objects they refer to. Knows no opcode and no file.
//!
//! All objects lie in one flat list and refer to each other by number: a pickle may nest them to any depth, or
//! in circles, and nothing here ever follows them.

use safetensors::Dtype;

use super::machine::Problem;
use super::torch::Global;
use crate::limits::{MAX_PICKLE_OBJECTS, MAX_PICKLE_VALUES};

/// A value on the stack of a pickle, or within one of its objects.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Value<'a> {
    None,
    Bool(bool),
    Int(i64),
    /// An integer beyond 64 bits; only torch's magic number is one, and that is not looked at as a value.
    BigInt,
    Float,
    Text(&'a str),
    Bytes,
    Global(Global),
    /// The object of that number.
    Object(usize),
}

/// Something that a pickle made.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Object<'a> {
    Tuple(Vec<Value<'a>>),
    List(Vec<Value<'a>>),
    /// In the order of insertion, equal keys included.
    Dict(Vec<(Value<'a>, Value<'a>)>),
    Set,
    Device,
    Storage(Storage<'a>),
    Tensor(Tensor),
}

/// A run of numbers that tensors are views of; where it is in the file is another's business.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Storage<'a> {
    pub(super) key: &'a str,
    /// `None` for bytes whose type the tensor gives.
    pub(super) dtype: Option<Dtype>,
    /// Elements of that type; bytes if there is none.
    pub(super) numel: u64,
    /// First element and number of elements, where only a part of the storage of that key is meant.
    pub(super) part: Option<(u64, u64)>,
}

impl Storage<'_> {
    /// Bytes of an element; every type of torch's storages has whole ones.
    pub(super) fn element_size(&self) -> u64 {
        self.dtype.map_or(1, |dtype| dtype.bitsize() as u64 / 8)
    }
}

/// A view of a storage, not held against it yet.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Tensor {
    /// The number of a storage.
    pub(super) storage: usize,
    pub(super) dtype: Dtype,
    /// In elements.
    pub(super) offset: u64,
    /// The number of a tuple of integers; so that a million tensors of one shape hold it once.
    pub(super) shape: usize,
    /// The number of a tuple of integers, as many as those of the shape.
    pub(super) strides: usize,
}

/// All objects of a pickle.
#[derive(Debug, Default)]
pub(super) struct Objects<'a> {
    all: Vec<Object<'a>>,
    /// Values that they were given when they were added: a dict may be made from a list again and again.
    given: usize,
}

impl<'a> Objects<'a> {
    pub(super) fn add(&mut self, object: Object<'a>) -> Result<Value<'a>, Problem> {
        if self.all.len() == MAX_PICKLE_OBJECTS {
            return Err(Problem::TooMany("objects", MAX_PICKLE_OBJECTS));
        }
        self.given += match &object {
            Object::Tuple(items) | Object::List(items) => items.len(),
            Object::Dict(entries) => entries.len(),
            Object::Set | Object::Device | Object::Storage(_) | Object::Tensor(_) => 0,
        };
        if self.given > MAX_PICKLE_VALUES {
            return Err(Problem::TooMany("values in objects", MAX_PICKLE_VALUES));
        }
        self.all.push(object);
        Ok(Value::Object(self.all.len() - 1))
    }

    pub(super) fn get(&self, value: Value<'a>) -> Option<&Object<'a>> {
        match value {
            Value::Object(number) => self.all.get(number),
            _ => None,
        }
    }

    pub(super) fn get_mut(&mut self, value: Value<'a>) -> Option<&mut Object<'a>> {
        match value {
            Value::Object(number) => self.all.get_mut(number),
            _ => None,
        }
    }

    pub(super) fn tuple(&self, value: Value<'a>) -> Option<&[Value<'a>]> {
        match self.get(value) {
            Some(Object::Tuple(items)) => Some(items),
            _ => None,
        }
    }

    pub(super) fn dict(&self, value: Value<'a>) -> Option<&[(Value<'a>, Value<'a>)]> {
        match self.get(value) {
            Some(Object::Dict(entries)) => Some(entries),
            _ => None,
        }
    }

    /// Every storage that was named.
    pub(super) fn storages(&self) -> impl Iterator<Item = &Storage<'a>> {
        self.all.iter().filter_map(|object| match object {
            Object::Storage(storage) => Some(storage),
            _ => None,
        })
    }

    /// The sizes in a tuple; empty for what is none.
    pub(super) fn sizes(&self, tuple: usize) -> Vec<u64> {
        self.tuple(Value::Object(tuple))
            .unwrap_or_default()
            .iter()
            .filter_map(|size| match size {
                Value::Int(size) => u64::try_from(*size).ok(),
                _ => None,
            })
            .collect()
    }

    /// What a value is, for messages.
    pub(super) fn describe(&self, value: Value<'a>) -> String {
        let count = |what: &str, of: &str, n: usize| {
            let plural = if n == 1 { "" } else { "s" };
            format!("{what} of {n} {of}{plural}")
        };
        match value {
            Value::None => "None".into(),
            Value::Bool(_) => "a bool".into(),
            Value::Int(_) | Value::BigInt => "an integer".into(),
            Value::Float => "a float".into(),
            Value::Text(_) => "a string".into(),
            Value::Bytes => "bytes".into(),
            Value::Global(global) => format!("`{}`", global.name()),
            Value::Object(_) => match self.get(value) {
                Some(Object::Tuple(items)) => count("a tuple", "value", items.len()),
                Some(Object::List(items)) => count("a list", "value", items.len()),
                Some(Object::Dict(entries)) => count("a dict", "key", entries.len()),
                Some(Object::Set) => "a set".into(),
                Some(Object::Device) => "a device".into(),
                Some(Object::Storage(_)) => "a storage".into(),
                Some(Object::Tensor(_)) => "a tensor".into(),
                None => "nothing".into(),
            },
        }
    }
}
