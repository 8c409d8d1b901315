//! Writes small files as torch.save does without an archive: heads beside a model, which loaders look for as `.pt`.
//!
//! [`pickle::legacy`](super::pickle) reads the same format. All tensors are views of one storage, so they lie one after
//! the other behind the pickles, as in a safetensors file.

use safetensors::Dtype;

use super::error::CheckpointError;
use super::layout::ShardLayout;

/// Magic number and version of the format, and what torch notes of the system.
const START: &[u8] = b"\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19.\
    \x80\x02M\xe9\x03.\
    \x80\x02}(X\x10\0\0\0protocol_versionM\xe9\x03X\x0d\0\0\0little_endian\x88X\x0a\0\0\0type_sizes}(\
    X\x05\0\0\0shortK\x02X\x03\0\0\0intK\x04X\x04\0\0\0longK\x04uu.";

/// The keys of the storages: the one there is.
const KEYS: &[u8] = b"\x80\x02]X\x01\0\0\x000a.";

/// The place of every byte of a file of torch that holds these tensors, one after the other.
///
/// # Errors
/// They have several dtypes, or one that torch has no class of storages for.
pub(super) fn torch_layout(
    file_name: String,
    tensors: &[(String, Dtype, Vec<usize>)],
    lens: &[u64],
) -> Result<ShardLayout, CheckpointError> {
    let dtype = tensors.first().map_or(Dtype::F32, |(_, dtype, _)| *dtype);
    let alike = tensors.iter().all(|(_, other, _)| *other == dtype);
    let Some(class) = storage_class(dtype).filter(|_| alike) else {
        let mut dtypes: Vec<Dtype> = tensors.iter().map(|(_, dtype, _)| *dtype).collect();
        dtypes.dedup();
        return Err(CheckpointError::NotOneStorage {
            path: file_name.into(),
            dtypes: format!("{dtypes:?}"),
        });
    };
    let size = (dtype.bitsize() / 8) as u64;
    let elements = lens.iter().sum::<u64>() / size;
    let mut pickles = Pickles(START.to_vec());
    pickles.bytes(b"\x80\x02ccollections\nOrderedDict\n)R(");
    let mut offset = 0;
    for ((name, _, shape), len) in tensors.iter().zip(lens) {
        pickles.text(name);
        pickles.bytes(b"ctorch._utils\n_rebuild_tensor_v2\n((");
        pickles.text("storage");
        pickles.bytes(format!("ctorch\n{class}\n").as_bytes());
        pickles.text("0");
        pickles.text("cpu");
        pickles.number(elements);
        // No view of the storage, then its reference; behind it, where the tensor begins.
        pickles.bytes(b"NtQ");
        pickles.number(offset / size);
        pickles.tuple(shape.iter().map(|&dim| dim as u64));
        pickles.tuple(strides(shape).into_iter());
        // It needs no gradient, and has no hooks.
        pickles.bytes(b"\x89ccollections\nOrderedDict\n)RtR");
        offset += len;
    }
    pickles.bytes(b"u.");
    pickles.bytes(KEYS);
    pickles.bytes(&elements.to_le_bytes());
    let Pickles(header) = pickles;
    let mut at = header.len() as u64;
    let place = |(number, len): (usize, &u64)| {
        let begin = at;
        at += len;
        (number, begin)
    };
    let placed = lens.iter().enumerate().map(place).collect();
    Ok(ShardLayout {
        file_name,
        header,
        tensors: placed,
        file_size: at,
    })
}

/// What torch calls a storage of that dtype.
fn storage_class(dtype: Dtype) -> Option<&'static str> {
    Some(match dtype {
        Dtype::F64 => "DoubleStorage",
        Dtype::F32 => "FloatStorage",
        Dtype::F16 => "HalfStorage",
        Dtype::BF16 => "BFloat16Storage",
        _ => return None,
    })
}

/// The distances between neighbours of contiguous elements, in elements, one for each dimension.
fn strides(shape: &[usize]) -> Vec<u64> {
    let mut stride = 1;
    let mut strides: Vec<u64> = shape
        .iter()
        .rev()
        .map(|&dim| {
            let own = stride;
            stride *= (dim as u64).max(1);
            own
        })
        .collect();
    strides.reverse();
    strides
}

/// Opcodes of pickle's protocol 2.
struct Pickles(Vec<u8>);

impl Pickles {
    fn bytes(&mut self, bytes: &[u8]) {
        self.0.extend_from_slice(bytes);
    }

    fn text(&mut self, text: &str) {
        self.bytes(b"X");
        self.bytes(&(text.len() as u32).to_le_bytes());
        self.bytes(text.as_bytes());
    }

    /// A number of up to 63 bits, as a long integer where 31 do not suffice.
    fn number(&mut self, number: u64) {
        match i32::try_from(number) {
            Ok(small) => {
                self.bytes(b"J");
                self.bytes(&small.to_le_bytes());
            }
            Err(_) => {
                self.bytes(b"\x8a\x08");
                self.bytes(&number.to_le_bytes());
            }
        }
    }

    fn tuple(&mut self, numbers: impl Iterator<Item = u64>) {
        self.bytes(b"(");
        numbers.for_each(|number| self.number(number));
        self.bytes(b"t");
    }
}

#[cfg(test)]
mod tests {
    use super::super::format::WrittenAs;
    use super::super::layout::single_file_layout;
    use super::super::locate::Location;
    use super::super::reader::Checkpoint;
    use super::*;

    type Tensor = (String, Dtype, Vec<usize>);

    fn layout(tensors: &[Tensor]) -> Result<ShardLayout, CheckpointError> {
        single_file_layout(tensors, "head", WrittenAs::Torch)
    }

    #[test]
    fn what_is_written_is_read_again() {
        for dtype in [Dtype::F64, Dtype::F32, Dtype::F16, Dtype::BF16] {
            let named = |name: &str, shape: &[usize]| (name.to_owned(), dtype, shape.to_vec());
            let tensors = [
                named("weight", &[3, 2, 4]),
                named("b\u{e4}s", &[3]),
                named("scalar", &[]),
                named("none", &[0, 2]),
                named("last", &[300, 1]),
            ];
            let layout = layout(&tensors).unwrap();
            assert_eq!(layout.file_name, "head.pt");
            let mut file = layout.header.clone();
            let bytes = (0..layout.file_size - file.len() as u64).map(|at| at as u8);
            file.extend(bytes);
            let folder = tempfile::tempdir().unwrap();
            let path = folder.path().join(&layout.file_name);
            std::fs::write(&path, &file).unwrap();
            let read = Checkpoint::open("head", &Location::local(&path)).unwrap();
            assert_eq!(read.tensors().len(), tensors.len());
            for ((name, dtype, shape), (number, offset)) in tensors.iter().zip(&layout.tensors) {
                let at = read.find(name).unwrap();
                let entry = &read.tensors()[at];
                assert_eq!((&entry.dtype, &entry.shape), (dtype, shape));
                let begin = layout.tensors[*number].1 as usize;
                assert_eq!(begin as u64, *offset);
                let expected = &file[begin..begin + entry.len as usize];
                assert_eq!(read.bytes(at).unwrap(), expected, "{name}");
            }
        }
    }

    #[test]
    fn several_dtypes_are_an_error() {
        let named = |name: &str, dtype| (name.to_owned(), dtype, vec![2]);
        for tensors in [
            [named("a", Dtype::F32), named("b", Dtype::BF16)],
            [named("a", Dtype::I64), named("b", Dtype::I64)],
        ] {
            let message = errors::in_one_line(&layout(&tensors).unwrap_err());
            assert!(message.contains("tensors of one float dtype"), "{message}");
            assert!(message.contains("`dtype`"), "{message}");
        }
    }
}
