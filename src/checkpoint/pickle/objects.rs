//! What a pickle builds: values, and the objects that they refer to. Knows no opcode and no file.
//!
//! All objects lie in one flat list and refer to each other by number: a pickle may nest them to any depth, or in
//! cycles, and nothing here ever follows the references.

use safetensors::Dtype;

use super::machine::Problem;
use super::torch::{Class, Global};
use crate::limits::{MAX_PICKLE_OBJECTS, MAX_PICKLE_VALUES};

/// A value on the stack of a pickle, or inside one of its objects.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Value<'a> {
    None,
    Bool(bool),
    Int(i64),
    /// An integer beyond 64 bits; the only one is torch's magic number, whose value is not needed.
    BigInt,
    Float,
    Text(&'a str),
    Bytes,
    Global(Global),
    /// The object with that number.
    Object(usize),
}

/// Something that a pickle created.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Object<'a> {
    Tuple(Vec<Value<'a>>),
    List(Vec<Value<'a>>),
    /// In order of insertion, equal keys included.
    Dict(Vec<(Value<'a>, Value<'a>)>),
    Set,
    Device,
    Storage(Storage<'a>),
    Tensor(Tensor),
    /// Of a class that only stands for its fields.
    Instance {
        class: Class,
        /// What it was given, mostly a dict of fields.
        state: Value<'a>,
    },
}

/// An array of numbers that tensors are views of; this type does not know its place in the file.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Storage<'a> {
    pub(super) key: &'a str,
    /// `None` for bytes whose dtype comes from the tensor.
    pub(super) dtype: Option<Dtype>,
    /// Elements of that dtype; bytes if there is none.
    pub(super) numel: u64,
    /// First element and number of elements, if only a part of the storage of that key is used.
    pub(super) part: Option<(u64, u64)>,
}

impl Storage<'_> {
    /// Bytes per element; every dtype of torch's storages has whole bytes.
    pub(super) fn element_size(&self) -> u64 {
        self.dtype.map_or(1, |dtype| dtype.bitsize() as u64 / 8)
    }
}

/// A view of a storage, not yet checked against it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Tensor {
    /// The number of a storage.
    pub(super) storage: usize,
    pub(super) dtype: Dtype,
    /// In elements.
    pub(super) offset: u64,
    /// The number of a tuple of integers, so that a million tensors of the same shape store it once.
    pub(super) shape: usize,
    /// The number of a tuple of integers, with one entry per dimension.
    pub(super) strides: usize,
}

/// All objects of a pickle.
#[derive(Debug)]
pub(super) struct Objects<'a> {
    /// How many times as much as in a file of torch there may be.
    times: usize,
    all: Vec<Object<'a>>,
    /// Values added to objects so far: a dict may be built from the same list again and again.
    given: usize,
}

impl<'a> Objects<'a> {
    /// None yet, and at most so many times as many as in a file of torch.
    pub(super) fn new(times: usize) -> Self {
        Self {
            times,
            all: Vec::new(),
            given: 0,
        }
    }

    pub(super) fn add(&mut self, object: Object<'a>) -> Result<Value<'a>, Problem> {
        let most = MAX_PICKLE_OBJECTS * self.times;
        if self.all.len() == most {
            return Err(Problem::TooMany("objects", most));
        }
        self.given += match &object {
            Object::Tuple(items) | Object::List(items) => items.len(),
            Object::Dict(entries) => entries.len(),
            Object::Set
            | Object::Device
            | Object::Storage(_)
            | Object::Tensor(_)
            | Object::Instance { .. } => 0,
        };
        let most = MAX_PICKLE_VALUES * self.times;
        if self.given > most {
            return Err(Problem::TooMany("values in objects", most));
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

    /// Every storage that the pickle names.
    pub(super) fn storages(&self) -> impl Iterator<Item = &Storage<'a>> {
        self.all.iter().filter_map(|object| match object {
            Object::Storage(storage) => Some(storage),
            _ => None,
        })
    }

    /// The sizes in a tuple; empty if it is not a tuple.
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

    /// Describes a value for messages.
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
                Some(Object::Instance { class, .. }) => format!("an object `{}`", class.name()),
                None => "nothing".into(),
            },
        }
    }
}
