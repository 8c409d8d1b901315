use std::fs;
use std::path::{Path, PathBuf};

use crate::locate::Location;
use crate::pickle::{Distributed, DistributedTensor, StoredBox, read_distributed};
use crate::reader::Checkpoint;
use crate::source::TensorSource;
use numeric::Fill;
use tempfile::TempDir;

/// What two processes of torch wrote.
fn made_by_torch() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/peer/sharded")
}

fn open(path: &Path) -> Result<Checkpoint, String> {
    Checkpoint::open("m", &Location::local(path)).map_err(|e| errors::in_one_line(&e))
}

/// A copy of it, to change.
fn copy() -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    for file in fs::read_dir(made_by_torch()).unwrap() {
        let file = file.unwrap();
        fs::copy(file.path(), folder.path().join(file.file_name())).unwrap();
    }
    folder
}

fn values(checkpoint: &Checkpoint, at: usize) -> Vec<f64> {
    let elements = checkpoint.elements(at).unwrap();
    let mut out = vec![0.0; checkpoint.tensors()[at].elements() as usize];
    Fill::<f64>::fill(elements.as_ref(), 0, &mut out).unwrap();
    out
}

#[test]
fn what_torch_cuts_into_boxes_is_read_whole() {
    let found = open(&made_by_torch()).unwrap();
    let expected = open(&made_by_torch().with_extension("safetensors")).unwrap();
    assert_eq!(found.tensors().len(), expected.tensors().len());
    for (at, tensor) in found.tensors().iter().enumerate() {
        let other = expected.find(&tensor.name).unwrap();
        let entry = &expected.tensors()[other];
        assert_eq!(
            (tensor.dtype, &tensor.shape, tensor.len),
            (entry.dtype, &entry.shape, entry.len),
            "{}",
            tensor.name
        );
        match tensor.name.as_str() {
            "ids" => assert_eq!(found.bytes(at), expected.bytes(other)),
            name => {
                assert_eq!(values(&found, at), values(&expected, other), "{name}");
                let is_cut = name == "rows.weight" || name == "columns.weight";
                assert_eq!(found.bytes(at).is_none(), is_cut, "{name}");
            }
        }
    }
    let notes = found.notes().join("\n");
    let part =
        "those of its entry `model`; left aside: 1 tensor of `optim`, 1 entry without values";
    assert!(notes.contains(part), "{notes}");
    assert_eq!(found.shards().len(), 3);
    found.check_unchanged().unwrap();
}

#[test]
fn an_entry_is_chosen_by_its_keys() {
    let at = |entry: &str| Location {
        entry: Some(entry.into()),
        ..Location::local(made_by_torch())
    };
    let of_optimizer = at("optim.state.rows.weight");
    let found = Checkpoint::open("m", &of_optimizer).unwrap();
    assert_eq!(found.tensors()[0].name, "exp_avg");
    let message = errors::in_one_line(&Checkpoint::open("m", &at("ema")).unwrap_err());
    let part = "choose the tensors by their entry, behind the folder's name: `#model`";
    assert!(message.contains(part), "{message}");
}

/// Writes pickles as torch does.
#[derive(Default)]
struct Pickle(Vec<u8>);

impl Pickle {
    fn class(&mut self, module: &str, name: &str) {
        self.0.extend(format!("c{module}\n{name}\n").bytes());
    }

    /// An object of the metadata, whose fields follow.
    fn object(&mut self, name: &str, fields: impl FnOnce(&mut Pickle)) {
        self.class("torch.distributed.checkpoint.metadata", name);
        self.state(fields);
    }

    fn state(&mut self, fields: impl FnOnce(&mut Pickle)) {
        self.0.extend(b")\x81}(");
        fields(self);
        self.0.extend(b"ub");
    }

    fn text(&mut self, text: &str) {
        self.0.push(b'X');
        self.0.extend((text.len() as u32).to_le_bytes());
        self.0.extend(text.bytes());
    }

    fn number(&mut self, number: usize) {
        self.0.extend(b"\x8a\x08");
        self.0.extend((number as u64).to_le_bytes());
    }

    fn size(&mut self, sizes: &[usize]) {
        self.class("torch", "Size");
        self.0.push(b'(');
        sizes.iter().for_each(|size| self.number(*size));
        self.0.extend(b"t\x85R");
    }
}

/// The `.metadata` of tensors.
fn metadata(tensors: &[DistributedTensor], transform: bool) -> Vec<u8> {
    let mut pickle = Pickle(b"\x80\x02".to_vec());
    pickle.object("Metadata", |pickle| {
        pickle.text("state_dict_metadata");
        pickle.0.extend(b"}(");
        for tensor in tensors {
            pickle.text(&tensor.keys.join("."));
            pickle.object("TensorStorageMetadata", |pickle| {
                pickle.text("properties");
                pickle.object("TensorProperties", |pickle| {
                    pickle.text("dtype");
                    pickle.class("torch", "float32");
                });
                pickle.text("size");
                pickle.size(&tensor.shape);
                pickle.text("chunks");
                pickle.0.extend(b"](");
                for (number, part) in tensor.boxes.iter().enumerate() {
                    // Picklers write runs of a thousand.
                    if number % 1000 == 999 {
                        pickle.0.extend(b"e(");
                    }
                    pickle.object("ChunkStorageMetadata", |pickle| {
                        pickle.text("offsets");
                        pickle.size(&part.offsets);
                        pickle.text("sizes");
                        pickle.size(&part.sizes);
                    });
                }
                pickle.0.push(b'e');
            });
        }
        pickle.0.push(b'u');
        pickle.text("storage_data");
        pickle.0.extend(b"}(");
        for tensor in tensors {
            for (number, part) in tensor.boxes.iter().enumerate() {
                if number % 1000 == 999 {
                    pickle.0.extend(b"u(");
                }
                pickle.object("MetadataIndex", |pickle| {
                    pickle.text("fqn");
                    pickle.text(&tensor.keys.join("."));
                    pickle.text("offset");
                    pickle.size(&part.offsets);
                });
                pickle.class("torch.distributed.checkpoint.filesystem", "_StorageInfo");
                pickle.state(|pickle| {
                    pickle.text("relative_path");
                    pickle.text(&part.file);
                    pickle.text("offset");
                    pickle.number(part.first as usize);
                    pickle.text("length");
                    pickle.number(part.len as usize);
                    if transform {
                        pickle.text("transform_descriptors");
                        pickle.0.extend(b"]");
                    }
                });
            }
        }
        pickle.0.push(b'u');
    });
    pickle.0.push(b'.');
    pickle.0
}

/// The tensor that is cut by columns, 3 x 5 into 3 x 3 and 3 x 2.
fn columns() -> DistributedTensor {
    let path = made_by_torch().join(".metadata");
    let Distributed { tensors, .. } = read_distributed(&path, &fs::read(&path).unwrap()).unwrap();
    let mut tensors = tensors.into_iter();
    let tensor = tensors.find(|tensor| tensor.keys.last().unwrap() == "columns.weight");
    DistributedTensor {
        keys: vec!["columns.weight".into()],
        ..tensor.unwrap()
    }
}

#[test]
fn boxes_that_are_not_all_of_a_tensor_are_refused() {
    let put = |change: &dyn Fn(&mut DistributedTensor), transform| {
        let mut tensor = columns();
        change(&mut tensor);
        let folder = copy();
        let bytes = metadata(&[tensor], transform);
        fs::write(folder.path().join(".metadata"), bytes).unwrap();
        open(folder.path())
    };
    assert_eq!(put(&|_| {}, false).unwrap().tensors().len(), 1);
    let huge = 1 << 60;
    type Change<'c> = &'c dyn Fn(&mut DistributedTensor);
    let cases: [(Change<'_>, &str); 14] = [
        (&|tensor| drop(tensor.boxes.pop()), "some are missing"),
        (&|tensor| tensor.boxes.clear(), "some are missing"),
        (
            &|tensor| tensor.boxes[1].offsets = vec![0, 2],
            "that overlap, at [0, 0] and [0, 2]",
        ),
        (
            &|tensor| tensor.boxes[1].offsets = vec![0, 4],
            "outside of it",
        ),
        (
            &|tensor| tensor.boxes[1].offsets = vec![huge, 3],
            "outside of it",
        ),
        (&|tensor| tensor.boxes[1].offsets = vec![3], "outside of it"),
        (&|tensor| tensor.shape = vec![3, 6], "some are missing"),
        (
            &|tensor| tensor.shape = vec![huge, huge],
            "of dtype F32 and shape",
        ),
        (
            &|tensor| {
                tensor.shape = vec![1 << 40, 1];
                tensor.boxes.truncate(1);
                tensor.boxes[0].sizes = vec![1 << 40, 1];
            },
            "which is stored as",
        ),
        (
            &|tensor| tensor.boxes[0].sizes = vec![2, 3],
            "which is stored as F32 and [3, 3]",
        ),
        (
            &|tensor| tensor.boxes[0].first = huge as u64,
            "in a file of",
        ),
        (
            &|tensor| tensor.boxes[0].len = u64::MAX >> 1,
            "in a file of",
        ),
        (
            &|tensor| tensor.boxes[0].first += 1,
            "is no archive of torch.save",
        ),
        (
            &|tensor| tensor.boxes[0].file = "__7_0.distcp".into(),
            "__7_0.distcp",
        ),
    ];
    for (change, part) in cases {
        let message = put(change, false).unwrap_err();
        assert!(message.contains(part), "expected {part:?} in: {message}");
        assert!(message.contains("hint: "), "{message}");
    }
    let outside = ["../x.distcp", "/etc/passwd", "..", "a/b", "", "a\\b", "./a"];
    for file in outside {
        let message = put(&|tensor| tensor.boxes[0].file = file.into(), false).unwrap_err();
        assert!(
            message.contains("no file of the folder"),
            "{file}: {message}"
        );
    }
    let message = put(&|_| {}, true).unwrap_err();
    assert!(message.contains("in a form that is not read"), "{message}");
    let same = |tensor: &mut DistributedTensor| {
        let again = columns().boxes;
        tensor.boxes.extend(again);
    };
    let message = put(&same, false).unwrap_err();
    assert!(message.contains("that overlap"), "{message}");
}

/// Each byte of the metadata changed, and the metadata cut at each byte: an error or a checkpoint, but never a panic.
#[test]
fn damaged_metadata_is_refused_or_harmless() {
    let folder = copy();
    let path = folder.path().join(".metadata");
    let whole = fs::read(&path).unwrap();
    let mut refused = 0;
    for at in 0..whole.len() {
        let mut bytes = whole.clone();
        bytes[at] ^= [0x01, 0x80, 0xff][at % 3];
        fs::write(&path, &bytes).unwrap();
        match super::open(&path, None) {
            Ok((files, _)) => {
                for tensor in 0..files.tensors.len() {
                    let mut out = vec![0.0; files.tensors[tensor].elements() as usize];
                    if let Some(elements) = files.elements(tensor) {
                        Fill::<f64>::fill(elements.as_ref(), 0, &mut out).unwrap();
                    }
                }
            }
            Err(_) => refused += 1,
        }
        if at % 8 == 0 {
            fs::write(&path, &whole[..at]).unwrap();
            super::open(&path, None).unwrap_err();
        }
    }
    assert!(refused > whole.len() / 4, "{refused}");
}

/// As many boxes as a large model and its optimizer have on many ranks; and more than any has.
#[test]
fn many_boxes_are_read_and_too_many_are_not() {
    let path = made_by_torch().join(".metadata");
    let with = |count: usize| {
        let tensor = columns();
        let mut boxes = Vec::with_capacity(count);
        for row in 0..count {
            boxes.push(StoredBox {
                offsets: vec![row, 0],
                sizes: vec![1, 5],
                file: String::new(),
                first: 0,
                len: 1,
            });
        }
        let shape = vec![count, 5];
        let bytes = metadata(
            &[DistributedTensor {
                shape,
                boxes,
                ..tensor
            }],
            false,
        );
        read_distributed(&path, &bytes)
    };
    let found = with(90_000).unwrap();
    assert_eq!(found.tensors[0].boxes.len(), 90_000);
    let message = errors::in_one_line(&with(340_000).unwrap_err());
    assert!(message.contains("too many objects"), "{message}");
}

/// A metadata file that calls something is refused by the name of what it calls.
#[test]
fn nothing_is_called() {
    let folder = copy();
    let path = folder.path().join(".metadata");
    for (module, name) in [
        ("os", "system"),
        ("builtins", "eval"),
        ("torch.distributed.checkpoint.metadata", "x"),
    ] {
        let mut pickle = Pickle(b"\x80\x02".to_vec());
        pickle.class(module, name);
        pickle.text("true");
        pickle.0.extend(b"\x85R.");
        fs::write(&path, &pickle.0).unwrap();
        let message = open(folder.path()).unwrap_err();
        assert!(message.contains(&format!("`{module}.{name}`")), "{message}");
    }
    let deep: Vec<u8> = [b"\x80\x02".as_slice(), &[b']'; 1 << 20], b"."].concat();
    fs::write(&path, deep).unwrap();
    open(folder.path()).unwrap_err();
}
