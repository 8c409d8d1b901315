//! The names that a pickle of torch may import, and what calling them creates. Nothing else can be called.
//!
//! The arguments are those of torch's own `_rebuild_*` functions (`torch/_utils.py`).

use safetensors::Dtype;

use super::machine::Problem;
use super::objects::{Object, Objects, Storage, Tensor, Value};
use crate::bounded::plain;
use crate::limits::MAX_RANK;

/// The hint for a pickle that holds more than tensors.
pub(super) const SAVE_AGAIN: &str = "load it where you trust it, and save its tensors alone: as safetensors, or by \
     `torch.save(model.state_dict(), ...)`";
const DEQUANTISE: &str = "dequantise it first, or name the model it was made from";

/// Packages whose tensors are quantised.
const QUANTISERS: [&str; 6] = [
    "auto_gptq",
    "awq",
    "bitsandbytes",
    "hqq",
    "optimum",
    "torchao",
];
const DENSE: &str = "make its tensors dense, plain and real before saving them";

/// A known name.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Global {
    OrderedDict,
    RebuildTensor,
    RebuildTensorV2,
    RebuildTensorV3,
    RebuildParameter,
    /// A class of storages; `None` for untyped ones.
    Storage(Option<Dtype>),
    Dtype(Dtype),
    Size,
    Device,
    /// A class of a distributed checkpoint's metadata.
    Class(Class),
}

/// The classes of a distributed checkpoint's metadata; objects of them are read, and hold nothing but data.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Class {
    Metadata,
    Tensor,
    Bytes,
    Box,
    Properties,
    Index,
    Stored,
    /// What nothing depends on: memory formats, layouts, paths.
    Other,
}

impl Class {
    /// Its name in torch.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Metadata => "Metadata",
            Self::Tensor => "TensorStorageMetadata",
            Self::Bytes => "BytesStorageMetadata",
            Self::Box => "ChunkStorageMetadata",
            Self::Properties => "TensorProperties",
            Self::Index => "MetadataIndex",
            Self::Stored => "_StorageInfo",
            Self::Other => "...",
        }
    }
}

/// Looks up a class of a distributed checkpoint's metadata.
pub(super) fn class(module: &str, name: &str) -> Option<Class> {
    const METADATA: &str = "torch.distributed.checkpoint.metadata";
    Some(match (module, name) {
        (METADATA, "Metadata") => Class::Metadata,
        (METADATA, "TensorStorageMetadata") => Class::Tensor,
        (METADATA, "BytesStorageMetadata") => Class::Bytes,
        (METADATA, "ChunkStorageMetadata") => Class::Box,
        (METADATA, "TensorProperties") => Class::Properties,
        (METADATA, "MetadataIndex") => Class::Index,
        ("torch.distributed.checkpoint.filesystem", "_StorageInfo") => Class::Stored,
        (METADATA, "StorageMeta" | "_MEM_FORMAT_ENCODING")
        | ("torch.serialization", "_get_layout")
        | ("pathlib" | "pathlib._local", "Path" | "PosixPath" | "PurePosixPath" | "WindowsPath") => {
            Class::Other
        }
        _ => return None,
    })
}

impl Global {
    /// Its name, for messages.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::OrderedDict => "collections.OrderedDict",
            Self::RebuildTensor => "torch._utils._rebuild_tensor",
            Self::RebuildTensorV2 => "torch._utils._rebuild_tensor_v2",
            Self::RebuildTensorV3 => "torch._utils._rebuild_tensor_v3",
            Self::RebuildParameter => "torch._utils._rebuild_parameter",
            Self::Storage(_) => "torch.Storage",
            Self::Dtype(_) => "torch.dtype",
            Self::Size => "torch.Size",
            Self::Device => "torch.device",
            Self::Class(class) => class.name(),
        }
    }
}

/// Looks up a name; refuses unknown ones.
pub(super) fn global(module: &str, name: &str) -> Result<Global, Problem> {
    let known = match (module, name) {
        ("collections", "OrderedDict") => Some(Global::OrderedDict),
        ("torch._utils", "_rebuild_tensor") => Some(Global::RebuildTensor),
        ("torch._utils", "_rebuild_tensor_v2") => Some(Global::RebuildTensorV2),
        ("torch._utils", "_rebuild_tensor_v3") => Some(Global::RebuildTensorV3),
        ("torch._utils", "_rebuild_parameter") => Some(Global::RebuildParameter),
        ("torch", "Size") => Some(Global::Size),
        ("torch", "device") => Some(Global::Device),
        ("torch.storage", "UntypedStorage") | ("torch", "UntypedStorage") => {
            Some(Global::Storage(None))
        }
        ("torch" | "torch.cuda", name) => match storage_class(name) {
            Some(dtype) => Some(Global::Storage(Some(dtype))),
            None => dtype(name).map(Global::Dtype),
        },
        _ => None,
    };
    known.ok_or_else(|| {
        let top = module.split('.').next().unwrap_or(module);
        let (kind, hint) = match name {
            _ if QUANTISERS.contains(&top) => (" of quantised tensors", DEQUANTISE),
            _ if !module.starts_with("torch") => ("", SAVE_AGAIN),
            "_rebuild_sparse_tensor" | "_rebuild_sparse_csr_tensor" => {
                (" of sparse tensors", DENSE)
            }
            "_rebuild_nested_tensor" => (" of nested tensors", DENSE),
            "_rebuild_meta_tensor_no_storage" => (" of tensors without values", SAVE_AGAIN),
            "_rebuild_qtensor" => (" of quantised tensors", DENSE),
            _ if name.starts_with("QI") || name.starts_with("QU") || name.starts_with('q') => {
                (" of quantised tensors", DENSE)
            }
            _ if name.starts_with("Complex") || name.starts_with("complex") => {
                (" of complex tensors", DENSE)
            }
            _ => ("", SAVE_AGAIN),
        };
        let what = format!(
            "the global `{}`{kind}",
            plain(&format_args!("{module}.{name}"))
        );
        Problem::Refused(what, hint)
    })
}

fn storage_class(name: &str) -> Option<Dtype> {
    Some(match name {
        "DoubleStorage" => Dtype::F64,
        "FloatStorage" => Dtype::F32,
        "HalfStorage" => Dtype::F16,
        "BFloat16Storage" => Dtype::BF16,
        "LongStorage" => Dtype::I64,
        "IntStorage" => Dtype::I32,
        "ShortStorage" => Dtype::I16,
        "CharStorage" => Dtype::I8,
        "ByteStorage" => Dtype::U8,
        "BoolStorage" => Dtype::BOOL,
        _ => return None,
    })
}

fn dtype(name: &str) -> Option<Dtype> {
    Some(match name {
        "float64" | "double" => Dtype::F64,
        "float32" | "float" => Dtype::F32,
        "float16" | "half" => Dtype::F16,
        "bfloat16" => Dtype::BF16,
        "float8_e4m3fn" => Dtype::F8_E4M3,
        "float8_e5m2" => Dtype::F8_E5M2,
        "float8_e4m3fnuz" => Dtype::F8_E4M3FNUZ,
        "float8_e5m2fnuz" => Dtype::F8_E5M2FNUZ,
        "float8_e8m0fnu" => Dtype::F8_E8M0,
        "int64" | "long" => Dtype::I64,
        "int32" | "int" => Dtype::I32,
        "int16" | "short" => Dtype::I16,
        "int8" => Dtype::I8,
        "uint64" => Dtype::U64,
        "uint32" => Dtype::U32,
        "uint16" => Dtype::U16,
        "uint8" => Dtype::U8,
        "bool" => Dtype::BOOL,
        _ => return None,
    })
}

/// Calls a known name.
pub(super) fn call<'a>(
    objects: &mut Objects<'a>,
    callable: Global,
    arguments: Value<'a>,
) -> Result<Value<'a>, Problem> {
    // A million calls may share one tuple of arguments, so only as many are looked at as any call takes.
    let wrong = || {
        Err(Problem::Malformed(format!(
            "`{}` is called with other arguments than torch gives it",
            callable.name()
        )))
    };
    let Some(given) = objects.tuple(arguments) else {
        return wrong();
    };
    match (callable, given) {
        (Global::Class(class), _) => objects.add(Object::Instance {
            class,
            state: Value::None,
        }),
        (Global::OrderedDict, []) => objects.add(Object::Dict(Vec::new())),
        // Python 2 passes the entries as a list of pairs.
        (Global::OrderedDict, &[entries]) => {
            let Some(entries) = pairs(objects, entries) else {
                return wrong();
            };
            objects.add(Object::Dict(entries))
        }
        (Global::Size, &[sizes]) if objects.tuple(sizes).is_some() => Ok(sizes),
        (Global::Device, &[Value::Text(_)] | &[Value::Text(_), Value::Int(_)]) => {
            objects.add(Object::Device)
        }
        // data, requires_grad, backward_hooks
        (Global::RebuildParameter, &[data, Value::Bool(_), _]) => match objects.get(data) {
            Some(Object::Tensor(_)) => Ok(data),
            _ => wrong(),
        },
        // storage, storage_offset, size, stride
        (Global::RebuildTensor, &[storage, offset, size, stride])
        // ..., requires_grad, backward_hooks
        | (Global::RebuildTensorV2, &[storage, offset, size, stride, _, _]) => {
            tensor(objects, None, [storage, offset, size, stride])
        }
        // ..., metadata
        (Global::RebuildTensorV2, &[storage, offset, size, stride, _, _, metadata]) => {
            plain_metadata(objects, metadata)?;
            tensor(objects, None, [storage, offset, size, stride])
        }
        // ..., requires_grad, backward_hooks, dtype
        (Global::RebuildTensorV3, &[storage, offset, size, stride, _, _, Value::Global(Global::Dtype(dtype))]) => {
            tensor(objects, Some(dtype), [storage, offset, size, stride])
        }
        (Global::RebuildTensorV3, &[storage, offset, size, stride, _, _, Value::Global(Global::Dtype(dtype)), metadata]) => {
            plain_metadata(objects, metadata)?;
            tensor(objects, Some(dtype), [storage, offset, size, stride])
        }
        _ => wrong(),
    }
}

fn pairs<'a>(objects: &Objects<'a>, list: Value<'a>) -> Option<Vec<(Value<'a>, Value<'a>)>> {
    let Some(Object::List(entries)) = objects.get(list) else {
        return None;
    };
    entries
        .iter()
        .map(|&entry| match objects.get(entry)? {
            Object::List(pair) | Object::Tuple(pair) => match pair[..] {
                [key, value] => Some((key, value)),
                _ => None,
            },
            _ => None,
        })
        .collect()
}

/// Flags such as `conj` and `neg` mean arithmetic that is still to be done.
fn plain_metadata(objects: &Objects, metadata: Value) -> Result<(), Problem> {
    match metadata {
        Value::None => return Ok(()),
        Value::Object(_) if objects.dict(metadata).is_some_and(<[_]>::is_empty) => return Ok(()),
        _ => {}
    }
    let what = "a tensor with marks of its own (conjugate or negative views)".into();
    Err(Problem::Refused(what, DENSE))
}

fn tensor<'a>(
    objects: &mut Objects<'a>,
    dtype: Option<Dtype>,
    [storage, offset, size, stride]: [Value<'a>; 4],
) -> Result<Value<'a>, Problem> {
    let (Value::Object(at), Some(Object::Storage(found))) = (storage, objects.get(storage)) else {
        return Err(Problem::Malformed("a tensor without a storage".into()));
    };
    let dtype = match (found.dtype, dtype) {
        (None, Some(dtype)) => dtype,
        (Some(dtype), None) => dtype,
        (Some(stored), Some(dtype)) if stored == dtype => dtype,
        _ => {
            let detail = "a tensor whose type is not that of its storage";
            return Err(Problem::Malformed(detail.into()));
        }
    };
    let (Value::Int(offset), Value::Object(shape), Value::Object(strides)) = (offset, size, stride)
    else {
        return Err(Problem::Malformed(
            "a tensor without an offset, a shape or strides".into(),
        ));
    };
    let rank = counts(objects, size)?;
    if counts(objects, stride)? != rank {
        let detail = "a tensor with more dimensions than strides, or fewer";
        return Err(Problem::Malformed(detail.into()));
    }
    let Ok(offset) = u64::try_from(offset) else {
        return Err(Problem::Malformed("a tensor with a negative offset".into()));
    };
    objects.add(Object::Tensor(Tensor {
        storage: at,
        dtype,
        offset,
        shape,
        strides,
    }))
}

/// The number of sizes in a tuple, after checking that none is negative.
fn counts<'a>(objects: &Objects<'a>, tuple: Value<'a>) -> Result<usize, Problem> {
    let found = objects.tuple(tuple).filter(|items| {
        items.len() <= MAX_RANK && items.iter().all(|item| matches!(item, Value::Int(0..)))
    });
    found.map(<[_]>::len).ok_or_else(|| {
        let detail = format!("expected at most {MAX_RANK} sizes or strides, none negative");
        Problem::Malformed(detail)
    })
}

/// The storage of a persistent id: (`storage`, class, key, device, elements), in old files followed by the part of it
/// that is used: (key of the part, first element, elements).
pub(super) fn storage<'a>(objects: &Objects<'a>, id: Value<'a>) -> Result<Storage<'a>, Problem> {
    let malformed = || Problem::Malformed("expected the identity of a storage".into());
    let id = objects.tuple(id).ok_or_else(malformed)?;
    let (id, part) = match id {
        [id @ .., last] if id.len() == 5 => (id, *last),
        id => (id, Value::None),
    };
    let &[
        Value::Text("storage"),
        Value::Global(Global::Storage(dtype)),
        Value::Text(key),
        Value::Text(_),
        Value::Int(numel),
    ] = id
    else {
        return Err(malformed());
    };
    let size = |int: i64| u64::try_from(int).map_err(|_| malformed());
    let part = match part {
        Value::None => None,
        part => match objects.tuple(part) {
            Some(&[Value::Text(_), Value::Int(first), Value::Int(len)]) => {
                Some((size(first)?, size(len)?))
            }
            _ => return Err(malformed()),
        },
    };
    Ok(Storage {
        key,
        dtype,
        numel: size(numel)?,
        part,
    })
}
