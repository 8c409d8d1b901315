//! Hostile headers, one for each thing that can be wrong with a header, and any change of a sound one.

use proptest::prelude::*;

use super::*;

/// A file as a writer puts it together, whether it is sound or not.
#[derive(Debug, Clone)]
struct File {
    version: u32,
    counts: Option<[u64; 2]>,
    keys: Vec<Vec<u8>>,
    tensors: Vec<Vec<u8>>,
    data: usize,
}

fn text(text: &[u8]) -> Vec<u8> {
    [&(text.len() as u64).to_le_bytes()[..], text].concat()
}

/// A key with a value of that type.
fn key(name: &str, kind: u32, value: &[u8]) -> Vec<u8> {
    [&text(name.as_bytes())[..], &kind.to_le_bytes(), value].concat()
}

fn list(kind: u32, count: u64, values: &[u8]) -> Vec<u8> {
    [&kind.to_le_bytes()[..], &count.to_le_bytes(), values].concat()
}

fn tensor(name: &[u8], dimensions: &[u64], kind: u32, offset: u64) -> Vec<u8> {
    let mut bytes = text(name);
    bytes.extend((dimensions.len() as u32).to_le_bytes());
    bytes.extend(dimensions.iter().flat_map(|size| size.to_le_bytes()));
    bytes.extend(kind.to_le_bytes());
    bytes.extend(offset.to_le_bytes());
    bytes
}

fn sound() -> File {
    File {
        version: 3,
        counts: None,
        keys: vec![
            key("general.architecture", 8, &text(b"llama")),
            key("llama.block_count", 4, &2u32.to_le_bytes()),
            key("llama.rope.freq_base", 6, &1e4f32.to_le_bytes()),
            key("pattern", 9, &list(7, 2, &[1, 0])),
            key(
                "words",
                9,
                &list(8, 2, &[text(b"a"), text(b"\xff")].concat()),
            ),
            key(
                TOKENS,
                9,
                &list(8, 2, &[text(b"a"), text(b"\xff")].concat()),
            ),
        ],
        // 3 rows of 4 F32, then 2 rows of a block of Q8_0.
        tensors: vec![tensor(b"a", &[4, 3], 0, 0), tensor(b"b", &[32, 2], 8, 64)],
        data: 64 + 96,
    }
}

impl File {
    fn bytes(&self) -> Vec<u8> {
        let mut bytes = MAGIC.to_vec();
        bytes.extend(self.version.to_le_bytes());
        let counts = self
            .counts
            .unwrap_or([self.tensors.len() as u64, self.keys.len() as u64]);
        bytes.extend(counts.iter().flat_map(|count| count.to_le_bytes()));
        bytes.extend(self.keys.concat());
        bytes.extend(self.tensors.concat());
        bytes.resize(bytes.len().next_multiple_of(32), 0);
        bytes.resize(bytes.len() + self.data, 7);
        bytes
    }

    fn with_key(mut self, key: Vec<u8>) -> File {
        self.keys.push(key);
        self
    }

    fn with_tensors(mut self, tensors: &[Vec<u8>], data: usize) -> File {
        self.tensors = tensors.to_vec();
        self.data = data;
        self
    }
}

#[test]
fn a_sound_header_is_read_as_it_stands() {
    for version in [2, 3] {
        let file = File { version, ..sound() };
        let bytes = file.bytes();
        let found = read(&bytes).unwrap();
        let value = |key: &str| found.metadata.get(key).unwrap();
        assert_eq!(*value("general.architecture"), Value::Text("llama".into()));
        assert_eq!(*value("llama.block_count"), Value::Whole(2));
        assert_eq!(*value("llama.rope.freq_base"), Value::Single(1e4));
        assert_eq!(
            *value("pattern"),
            Value::List(vec![Value::Bool(true), Value::Bool(false)])
        );
        assert_eq!(*value("words"), Value::Long(2));
        let tokens = ["a", "\u{fffd}"].map(str::to_owned);
        assert_eq!(*value(TOKENS), Value::Tokens(tokens.to_vec()));
        let start = bytes.len() as u64 - 160;
        let expected = [
            (
                "a",
                vec![3, 4],
                Kind::Plain(safetensors::Dtype::F32),
                start,
                48,
            ),
            (
                "b",
                vec![2, 32],
                Kind::Blocks(numeric::BlockFormat::Q8_0),
                start + 64,
                68,
            ),
        ];
        for (tensor, (name, shape, kind, offset, len)) in found.tensors.iter().zip(expected) {
            assert_eq!(tensor.name, name);
            assert_eq!((&tensor.shape, tensor.kind), (&shape, kind));
            assert_eq!((tensor.offset, tensor.len), (offset, len));
        }
    }
}

#[test]
fn each_malformation_is_told_by_name() {
    let one = |tensor: Vec<u8>, data| sound().with_tensors(&[tensor], data);
    let a = || tensor(b"a", &[4, 3], 0, 0);
    let cases: Vec<(Vec<u8>, &str)> = vec![
        (b"GGU".to_vec(), "truncated"),
        (b"GGML0000".to_vec(), "does not begin as a GGUF"),
        (
            File {
                version: 1,
                ..sound()
            }
            .bytes(),
            "found version 1",
        ),
        (
            File {
                version: 4,
                ..sound()
            }
            .bytes(),
            "found version 4",
        ),
        (
            File {
                version: 3u32.swap_bytes(),
                ..sound()
            }
            .bytes(),
            "big-endian",
        ),
        (
            File {
                counts: Some([1 << 63, 5]),
                ..sound()
            }
            .bytes(),
            "number of tensors: expected at most",
        ),
        (
            File {
                counts: Some([2, 1 << 63]),
                ..sound()
            }
            .bytes(),
            "number of keys: expected at most",
        ),
        (
            File {
                counts: Some([2, 7]),
                ..sound()
            }
            .bytes(),
            "",
        ),
        (
            File {
                counts: Some([3, 6]),
                ..sound()
            }
            .bytes(),
            "",
        ),
        (sound().bytes()[..40].to_vec(), "truncated"),
        (sound().bytes()[..300].to_vec(), "truncated"),
        ([sound().bytes(), vec![0]].concat(), "belong to no tensor"),
        (
            sound().with_key(key("x", 13, &[])).bytes(),
            "key `x`: expected a type from 0 to 12, found 13",
        ),
        (
            sound().with_key(key("x", 7, &[2])).bytes(),
            "expected a bool of 0 or 1, found 2",
        ),
        (
            sound()
                .with_key(key("x", 8, &u64::MAX.to_le_bytes()))
                .bytes(),
            "truncated",
        ),
        (
            sound().with_key(key("x", 8, &text(b"\xff\xfe"))).bytes(),
            "no UTF-8",
        ),
        (
            sound()
                .with_key(key("x", 9, &list(9, 1, &list(4, 0, &[]))))
                .bytes(),
            "a list of lists",
        ),
        (
            sound()
                .with_key(key("x", 9, &list(4, u64::MAX, &[])))
                .bytes(),
            "truncated",
        ),
        (
            sound()
                .with_key(key("x", 9, &list(8, u64::MAX, &[])))
                .bytes(),
            "",
        ),
        (
            sound()
                .with_key(key("x", 9, &list(12, 1 << 61, &[])))
                .bytes(),
            "truncated",
        ),
        (
            sound().with_key(key("pattern", 7, &[1])).bytes(),
            "key `pattern` is there twice",
        ),
        (
            sound()
                .with_key(key("general.alignment", 4, &0u32.to_le_bytes()))
                .bytes(),
            "a power of two",
        ),
        (
            sound()
                .with_key(key("general.alignment", 4, &33u32.to_le_bytes()))
                .bytes(),
            "a power of two",
        ),
        (
            sound()
                .with_key(key("general.alignment", 10, &(1u64 << 63).to_le_bytes()))
                .bytes(),
            "a power of two",
        ),
        (
            sound()
                .with_key(key("general.alignment", 8, &text(b"32")))
                .bytes(),
            "a power of two",
        ),
        (
            one(tensor(b"", &[4], 0, 0), 16).bytes(),
            "the name is empty",
        ),
        (
            one(tensor(b"a\n", &[4], 0, 0), 16).bytes(),
            "control characters",
        ),
        (one(tensor(b"\xff", &[4], 0, 0), 16).bytes(), "no UTF-8"),
        (
            one(tensor(b"a", &[1; 5], 0, 0), 32).bytes(),
            "expected at most 4 dimensions, found 5",
        ),
        (
            one(tensor(b"a", &[1 << 63], 0, 0), 32).bytes(),
            "a dimension is too large",
        ),
        (
            one(tensor(b"a", &[1 << 40, 1 << 40], 0, 0), 32).bytes(),
            "more elements than can be counted",
        ),
        (
            one(tensor(b"a", &[1 << 62], 0, 0), 32).bytes(),
            "whole blocks",
        ),
        (
            one(tensor(b"a", &[33], 8, 0), 64).bytes(),
            "no whole blocks of 32 values, as Q8_0",
        ),
        (
            one(tensor(b"a", &[16, 2], 8, 0), 64).bytes(),
            "rows of 16 values are no whole blocks",
        ),
        (
            one(tensor(b"a", &[32], 18, 0), 64).bytes(),
            "tensor `a`: its type IQ3_XXS is not read",
        ),
        (
            one(tensor(b"a", &[32], 999, 0), 64).bytes(),
            "its type 999 is not read",
        ),
        (
            one(tensor(b"a", &[32], 0, 32), 160).bytes(),
            "does not follow the one before it",
        ),
        (
            one(tensor(b"a", &[32], 0, u64::MAX), 160).bytes(),
            "does not follow",
        ),
        (
            one(tensor(b"a", &[64], 0, 0), 160).bytes(),
            "it is truncated",
        ),
        (
            sound()
                .with_tensors(&[a(), tensor(b"a", &[4], 0, 64)], 96)
                .bytes(),
            "tensor `a` is there twice",
        ),
        (
            sound()
                .with_tensors(&[a(), tensor(b"b", &[4], 0, 32)], 96)
                .bytes(),
            "overlaps the one before it",
        ),
        (
            sound()
                .with_tensors(&[a(), tensor(b"b", &[4], 0, 48)], 96)
                .bytes(),
            "overlaps the one before it",
        ),
    ];
    for (bytes, part) in cases {
        let error = read(&bytes).unwrap_err();
        let message = errors::in_one_line(&error);
        assert!(message.contains(part), "{part}: {message}");
        assert!(!message.chars().any(char::is_control), "{message}");
    }
}

proptest! {
    /// Whatever a few bytes are changed to, and wherever the file ends: it is refused, or every tensor lies in it.
    #[test]
    fn a_changed_file_is_refused_or_sound(
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
        end in prop::option::of(any::<prop::sample::Index>()),
    ) {
        let mut bytes = sound().bytes();
        for (at, byte) in changes {
            let at = at.index(bytes.len() - 160);
            bytes[at] = byte;
        }
        if let Some(end) = end {
            bytes.truncate(end.index(bytes.len()));
        }
        if let Ok(found) = read(&bytes) {
            for tensor in found.tensors {
                prop_assert!(tensor.offset + tensor.len <= bytes.len() as u64);
                let values: u64 = tensor.shape.iter().map(|&size| size as u64).product();
                prop_assert_eq!(tensor.kind.bytes_of(values), Some(tensor.len));
            }
        }
    }
}
