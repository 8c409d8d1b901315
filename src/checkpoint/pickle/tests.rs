//! Files that torch wrote, and files that nobody should have written.

use std::fs;
use std::path::{Path, PathBuf};

use proptest::prelude::*;

use super::super::fixtures::write;
use super::super::locate::Location;
use super::super::reader::Checkpoint;
use numeric::Fill;

fn made_by_torch(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../../tests/peer/pickled")
        .join(name)
}

fn open(path: &Path) -> Result<Checkpoint, String> {
    Checkpoint::open("m", &Location::local(path)).map_err(|e| errors::in_one_line(&e))
}

fn open_bytes(bytes: &[u8]) -> Result<Checkpoint, String> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("m.pt");
    write(&path, bytes);
    open(&path)
}

fn values(checkpoint: &Checkpoint, at: usize) -> Vec<f64> {
    let elements = checkpoint.elements(at).unwrap();
    let mut out = vec![0.0; checkpoint.tensors()[at].elements() as usize];
    Fill::<f64>::fill(elements.as_ref(), 0, &mut out).unwrap();
    out
}

/// Names, dtypes, shapes and values agree with a safetensors file of the same tensors.
#[test]
fn what_torch_saves_is_read_as_it_is() {
    let expected = open(&made_by_torch("values.safetensors")).unwrap();
    for (file, count) in [
        ("zip.pt", 13),
        ("legacy.bin", 18),
        ("protocol4.pt", 8),
        ("protocol5.pt", 8),
        ("legacy4.bin", 8),
        ("trainer.ckpt", 8),
        ("beside.pt", 8),
        ("v3.pt", 2),
    ] {
        let found = open(&made_by_torch(file)).unwrap();
        assert_eq!(found.tensors().len(), count, "{file}");
        for (at, tensor) in found.tensors().iter().enumerate() {
            let name = format!("{file}: {}", tensor.name);
            let other = expected.find(&tensor.name).unwrap();
            let entry = &expected.tensors()[other];
            assert_eq!(
                (tensor.dtype, &tensor.shape, tensor.len),
                (entry.dtype, &entry.shape, entry.len),
                "{name}"
            );
            let apart = ["transposed", "column", "expanded"].contains(&tensor.name.as_str());
            assert_eq!(found.bytes(at).is_none(), apart, "{name}");
            if !apart {
                assert_eq!(found.bytes(at), expected.bytes(other), "{name}");
            }
            if numeric::FloatType::from_dtype(tensor.dtype).is_some() {
                assert_eq!(values(&found, at), values(&expected, other), "{name}");
            }
        }
        let notes = found.notes().join("\n");
        assert!(notes.contains("nothing in them is executed"), "{notes}");
        found.check_unchanged().unwrap();
    }
    let notes = open(&made_by_torch("trainer.ckpt"))
        .unwrap()
        .notes()
        .join("\n");
    assert!(
        notes.contains("`state_dict`; left aside: `epoch`, `loss`, `best`, `optimizer`"),
        "{notes}"
    );
    let notes = open(&made_by_torch("beside.pt"))
        .unwrap()
        .notes()
        .join("\n");
    assert!(
        notes.contains("`version`, `name`, `_extra_state`"),
        "{notes}"
    );
}

#[test]
fn what_is_no_state_dict_is_refused_by_name() {
    for (file, part) in [
        ("nested.pt", "found a dict of `a`: a dict of 8 keys"),
        ("list.pt", "found a list of 1 value"),
        (
            "complex.pt",
            "`torch.ComplexFloatStorage` of complex tensors",
        ),
        ("sparse.pt", "sparse"),
        ("quantised.pt", "quantised"),
        ("module.pt", "`torch.nn.modules.linear.Linear`"),
    ] {
        let message = open(&made_by_torch(file)).unwrap_err();
        assert!(
            message.contains(part),
            "{file}: expected {part:?} in {message}"
        );
        assert!(
            message.contains(file) && message.contains("hint: "),
            "{message}"
        );
    }
}

/// Folders: shards and index are checked against each other, and safetensors come first.
#[test]
fn folders_of_pickles_open() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    fs::copy(
        made_by_torch("protocol4.pt"),
        at("pytorch_model-00001-of-00002.bin"),
    )
    .unwrap();
    fs::copy(
        made_by_torch("v3.pt"),
        at("pytorch_model-00002-of-00002.bin"),
    )
    .unwrap();
    write(&at("training_args.bin"), b"x");
    write(&at("optimizer.pt"), b"x");
    let found = open(folder.path()).unwrap();
    assert_eq!((found.tensors().len(), found.shards().len()), (10, 2));
    let index = r#"{"weight_map": {"e4m3": "pytorch_model-00002-of-00002.bin", "plain": "pytorch_model-00001-of-00002.bin"}}"#;
    write(&at("pytorch_model.bin.index.json"), index.as_bytes());
    let message = open(folder.path()).unwrap_err();
    assert!(message.contains("does not name tensor"), "{message}");
    fs::remove_file(at("pytorch_model.bin.index.json")).unwrap();
    fs::remove_file(at("pytorch_model-00001-of-00002.bin")).unwrap();
    let message = open(folder.path()).unwrap_err();
    assert!(
        message.contains("pytorch_model-00001-of-00002.bin is missing"),
        "{message}"
    );
    fs::copy(made_by_torch("values.safetensors"), at("model.safetensors")).unwrap();
    assert_eq!(open(folder.path()).unwrap().tensors().len(), 20);
}

/// An archive of these stored entries, as `zip -0` would write it.
fn archive(entries: &[(&str, &[u8])]) -> Vec<u8> {
    let (mut file, mut directory) = (Vec::new(), Vec::new());
    for (name, data) in entries {
        let offset = file.len() as u32;
        let mut common = vec![20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        common.extend((data.len() as u32).to_le_bytes());
        common.extend((data.len() as u32).to_le_bytes());
        common.extend((name.len() as u16).to_le_bytes());
        common.extend([0, 0]);
        file.extend(b"PK\x03\x04");
        file.extend(&common);
        file.extend(name.as_bytes());
        file.extend(*data);
        directory.extend(b"PK\x01\x02\x14\x00");
        directory.extend(&common);
        directory.extend([0; 10]);
        directory.extend(offset.to_le_bytes());
        directory.extend(name.as_bytes());
    }
    let start = file.len() as u32;
    let count = (entries.len() as u16).to_le_bytes();
    file.extend(&directory);
    file.extend(b"PK\x05\x06\0\0\0\0");
    file.extend(count);
    file.extend(count);
    file.extend((directory.len() as u32).to_le_bytes());
    file.extend(start.to_le_bytes());
    file.extend([0, 0]);
    file
}

fn pickle(bytes: &[u8]) -> Vec<u8> {
    archive(&[("a/data.pkl", bytes), ("a/data/0", &[0; 24])])
}

/// A state dict of one float tensor `w` in storage `0` of six elements, by its last arguments.
fn tensor(offset: &[u8], shape: &[u8], strides: &[u8]) -> Vec<u8> {
    let mut out = b"\x80\x02}X\x01\0\0\0wctorch._utils\n_rebuild_tensor_v2\n((X\x07\0\0\0storagectorch\nFloatStorage\nX\x01\0\0\x000X\x03\0\0\0cpuK\x06tQ".to_vec();
    for part in [offset, b"(", shape, b"t(", strides, b"t\x89N", b"tRs."] {
        out.extend(part);
    }
    out
}

/// A pickle of a dict of these entries.
fn dict(entries: &[(&str, Vec<u8>)]) -> Vec<u8> {
    let mut out = b"}(".to_vec();
    for (key, value) in entries {
        out.extend(b"X");
        out.extend((key.len() as u32).to_le_bytes());
        out.extend(key.as_bytes());
        out.extend(value);
    }
    out.push(b'u');
    out
}

/// What torch.save writes of a dict of one F32 matrix.
///
/// The storage that [`tensor`] names has six elements.
pub(crate) fn saved(key: &str, shape: [u8; 2], values: &[f32; 6]) -> Vec<u8> {
    let whole = tensor(
        b"K\x00",
        &[b'K', shape[0], b'K', shape[1]],
        &[b'K', shape[1], b'K', 1],
    );
    let value = &whole[b"\x80\x02}X\x01\0\0\0w".len()..whole.len() - 2];
    let pickle = [
        b"\x80\x02".to_vec(),
        dict(&[(key, value.to_vec())]),
        b".".to_vec(),
    ]
    .concat();
    let bytes: Vec<u8> = values
        .iter()
        .flat_map(|value| value.to_le_bytes())
        .collect();
    archive(&[("a/data.pkl", &pickle), ("a/data/0", &bytes)])
}

/// A trainer's checkpoint: three state dicts of one tensor `w`, and what lies beside them.
fn of_trainer() -> Vec<u8> {
    let whole = tensor(b"K\x00", b"K\x02K\x03", b"K\x03K\x01");
    // Without protocol, dict, key `w` and the end.
    let value = whole[b"\x80\x02}X\x01\0\0\0w".len()..whole.len() - 2].to_vec();
    let weights = || dict(&[("w", value.clone())]);
    let root = dict(&[
        ("epoch", b"K\x03".to_vec()),
        ("params", weights()),
        ("params.ema", weights()),
        ("optimizer", dict(&[("lr", b"K\x01".to_vec())])),
        (
            "net",
            dict(&[("state_dict", weights()), ("ema", b"N".to_vec())]),
        ),
    ]);
    pickle(&[b"\x80\x02".to_vec(), root, b".".to_vec()].concat())
}

#[test]
fn an_entry_of_a_file_is_chosen_by_its_keys() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("m.pt");
    write(&path, &of_trainer());
    let open = |path: &Path, entry: &str| {
        let entry = Some(entry.to_owned());
        let location = Location {
            entry,
            ..Location::local(path)
        };
        Checkpoint::open("m", &location).map_err(|e| errors::in_one_line(&e))
    };
    for entry in ["params", "params.ema", "net.state_dict"] {
        let found = open(&path, entry).unwrap();
        assert_eq!(found.tensors()[0].name, "w", "{entry}");
        assert_eq!(found.tensors()[0].shape, [2, 3], "{entry}");
    }
    let choices = "choose its tensors by their entry: `m.pt#params` (1 tensor), `m.pt#params.ema` (1 tensor), \
                   `m.pt#net.state_dict` (1 tensor)";
    let message = self::open(&path).unwrap_err();
    assert!(
        message.contains("expected a dict of tensors by name") && message.contains(choices),
        "{message}"
    );
    for (entry, found) in [
        ("generator", "found no entry `generator`"),
        ("params.w.x", "found no entry `params.w.x`"),
        (
            "net",
            "found a dict of `state_dict`: a dict of 1 key, `ema`: None at `net`",
        ),
        ("params.w", "found a tensor at `params.w`"),
        ("epoch", "found an integer at `epoch`"),
    ] {
        let message = open(&path, entry).unwrap_err();
        assert!(
            message.contains(found) && message.contains(choices),
            "{message}"
        );
    }
    // Both state dicts of a file that torch wrote, which has no only one.
    for entry in ["a", "b"] {
        assert_eq!(
            open(&made_by_torch("nested.pt"), entry)
                .unwrap()
                .tensors()
                .len(),
            8
        );
    }
    let message = open(&made_by_torch("values.safetensors"), "a").unwrap_err();
    assert!(
        message.contains("only files of torch.save have entries"),
        "{message}"
    );
    // A folder's pickles have entries too.
    fs::rename(&path, folder.path().join("pytorch_model.bin")).unwrap();
    assert_eq!(open(folder.path(), "params").unwrap().tensors().len(), 1);
}

/// Opcodes that name one dict under many keys of many dicts do not keep the search for state dicts busy.
#[test]
fn a_search_for_state_dicts_ends() {
    let mut inner = b"}q\x01(".to_vec();
    for key in 0..20_000u32 {
        inner.extend(b"X\x04\0\0\0");
        inner.extend(format!("{key:04x}").as_bytes());
        inner.extend(b"K\x01");
    }
    inner.push(b'u');
    let many: Vec<(String, Vec<u8>)> = (0..20_000)
        .map(|key| (key.to_string(), b"h\x01".to_vec()))
        .collect();
    let mut many: Vec<(&str, Vec<u8>)> = many
        .iter()
        .map(|(key, value)| (key.as_str(), value.clone()))
        .collect();
    many[0].1 = inner;
    let bytes = [b"\x80\x02".to_vec(), dict(&many), b".".to_vec()].concat();
    let message = open_bytes(&pickle(&bytes)).unwrap_err();
    assert!(
        message.contains("expected a dict of tensors by name"),
        "{message}"
    );
}

#[test]
fn archives_that_torch_save_does_not_write_are_told_by_what_they_hold() {
    for (inside, part) in [
        ("a/constants.pkl", "a TorchScript program, not a state dict"),
        ("a/archive_format", "a program of torch.export"),
        ("a/.data/python_version", "an archive of torch.package"),
        ("w.npy", "an archive of NumPy"),
    ] {
        let code = "a/code/__torch__.py";
        let mut bytes = archive(&[("a/data.pkl", b"x"), (code, b"x"), (inside, b"x")]);
        // The code of a program is compressed: method 8 in the entry's header, and in the directory.
        let places: Vec<usize> = (0..bytes.len() - code.len())
            .filter(|&at| bytes[at..].starts_with(code.as_bytes()))
            .collect();
        bytes[places[0] - 30 + 8] = 8;
        bytes[places[1] - 46 + 10] = 8;
        let message = open_bytes(&bytes).unwrap_err();
        assert!(
            message.contains(part) && !message.contains("download"),
            "{message}"
        );
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("model.jit");
        write(&path, &bytes);
        assert!(open(&path).unwrap_err().contains(part));
    }
}

/// A file that is named itself is told by what it holds where its name says nothing.
#[test]
fn files_of_torch_are_read_under_any_name() {
    let folder = tempfile::tempdir().unwrap();
    for (name, from) in [
        ("best.pth.tar", "zip.pt"),
        ("weights.pkl", "zip.pt"),
        ("weights", "legacy.bin"),
        ("model.jit", "protocol4.pt"),
    ] {
        let path = folder.path().join(name);
        fs::copy(made_by_torch(from), &path).unwrap();
        let expected = open(&made_by_torch(from)).unwrap();
        assert_eq!(open(&path).unwrap().tensors(), expected.tensors(), "{name}");
        fs::remove_file(&path).unwrap();
    }
    fs::copy(made_by_torch("zip.pt"), folder.path().join("best.pth.tar")).unwrap();
    assert_eq!(open(folder.path()).unwrap().tensors().len(), 13);
    let safetensors = folder.path().join("x.weights");
    fs::copy(made_by_torch("values.safetensors"), &safetensors).unwrap();
    assert_eq!(open(&safetensors).unwrap().tensors().len(), 20);
    let tar = [vec![b'x'; 257], b"ustar\0".to_vec(), vec![0; 200]].concat();
    let message = open_bytes(&tar).unwrap_err();
    assert!(message.contains("a tar archive, expected"), "{message}");
}

#[test]
fn views_stay_within_their_storage() {
    let huge = b"\x8a\x08\xff\xff\xff\xff\xff\xff\xff\x7f";
    let good = open_bytes(&pickle(&tensor(b"K\x00", b"K\x02K\x03", b"K\x03K\x01"))).unwrap();
    assert_eq!(good.bytes(0).unwrap(), [0; 24]);
    for (offset, shape, strides) in [
        (&b"K\x01"[..], &b"K\x02K\x03"[..], &b"K\x03K\x01"[..]),
        (b"K\x00", b"K\x02K\x03", b"K\x04K\x01"),
        (b"K\x00", b"K\x02", huge),
        (huge, b"K\x02", b"K\x01"),
        (huge, b"K\x02", huge),
        (b"J\xff\xff\xff\xff", b"K\x02", b"K\x01"),
        (b"K\x00", b"K\x02", b"J\xff\xff\xff\xff"),
        (b"K\x00", b"K\x02K\x03", b"K\x01"),
        (
            b"K\x00",
            [huge.as_slice(), huge].concat().as_slice(),
            b"K\x00K\x00",
        ),
    ] {
        let message = open_bytes(&pickle(&tensor(offset, shape, strides))).unwrap_err();
        assert!(message.contains("hint: "), "{message}");
    }
}

#[test]
fn a_small_file_does_not_claim_large_tensors() {
    // A stride of zero: 2^30 elements in the bytes of one.
    let message =
        open_bytes(&pickle(&tensor(b"K\x00", b"J\x00\x00\x00\x40", b"K\x00"))).unwrap_err();
    assert!(message.contains("views of the same bytes"), "{message}");
    let few = open_bytes(&pickle(&tensor(b"K\x00", b"M\x00\x10", b"K\x00"))).unwrap();
    assert_eq!(values(&few, 0), [0.0; 4096]);
}

#[test]
fn a_list_is_not_copied_for_ever() {
    let mut bytes = b"\x80\x02ccollections\nOrderedDict\nq\x00]q\x01(".to_vec();
    bytes.extend(b"K\x00K\x00\x86".repeat(10_000));
    bytes.push(b'e');
    bytes.extend(b"h\x00h\x01\x85R0".repeat(1000));
    bytes.extend(b"00}.");
    let message = open_bytes(&pickle(&bytes)).unwrap_err();
    assert!(message.contains("values in objects"), "{message}");
}

#[test]
fn nothing_is_executed() {
    let marker = std::env::temp_dir().join(format!("weld-pickle-{}", std::process::id()));
    for (module, name) in [
        ("posix", "system"),
        ("os", "system"),
        ("builtins", "eval"),
        ("torch", "load"),
        ("torch._utils", "_import_dotted_name"),
    ] {
        let command = format!("touch {}", marker.display());
        let mut bytes = format!("\u{0}c{module}\n{name}\nX").into_bytes();
        bytes[0] = b'(';
        bytes.extend((command.len() as u32).to_le_bytes());
        bytes.extend(command.as_bytes());
        bytes.extend(b"\x85R.");
        let message = open_bytes(&pickle(&bytes)).unwrap_err();
        let part = format!("the global `{module}.{name}`");
        assert!(
            message.contains(&part) && message.contains("at byte "),
            "{message}"
        );
    }
    // The same by STACK_GLOBAL.
    let message = open_bytes(&pickle(b"\x80\x04\x8c\x05posix\x8c\x06system\x93.")).unwrap_err();
    assert!(message.contains("`posix.system`"), "{message}");
    assert!(!marker.exists());
}

#[test]
fn hostile_pickles_are_refused() {
    let deep = |open: &[u8], close: &[u8]| {
        let mut bytes = open.repeat(200_000);
        bytes.extend(close.repeat(199_999));
        bytes.push(b'.');
        bytes
    };
    for (bytes, part) in [
        (deep(b"]", b"a"), "a list of 1 value"),
        (deep(b")", b"\x86"), "a tuple of 2 values"),
        // A list that contains itself.
        (b"]q\x00h\x00a.".to_vec(), "a list of 1 value"),
        // A dict that contains itself.
        (
            b"}q\x00X\x01\0\0\0ah\x00s.".to_vec(),
            "a dict of `a`: a dict of 1 key",
        ),
        (b"(".repeat(300_000), "too many marks"),
        (b"N".repeat(300_000), "too many values at once"),
        (b")0".repeat(1_100_000), "too many objects"),
        (b"X\xff\xff\xff\xff".to_vec(), "ends too soon"),
        (
            b"\x8e\xff\xff\xff\xff\xff\xff\xff\xff".to_vec(),
            "ends too soon",
        ),
        (b"h\x00.".to_vec(), "not kept"),
        (b"(0.".to_vec(), "there is none"),
        (b"NR.".to_vec(), "there is none"),
        (b"NN.".to_vec(), "left over"),
        (b"N.N.".to_vec(), "goes on"),
        (b"\xff.".to_vec(), "0xff is no opcode"),
        (b"\x80\x09.".to_vec(), "protocol 9"),
        (b"N\x81.".to_vec(), "NEWOBJ"),
        (b"]Nb.".to_vec(), "state of its own"),
        (b"NQ.".to_vec(), "identity of a storage"),
        (b"}.".to_vec(), "an empty dict"),
    ] {
        let message = open_bytes(&pickle(&bytes)).unwrap_err();
        assert!(message.contains(part), "expected {part:?} in {message}");
    }
}

#[test]
fn archives_are_not_believed() {
    let sound = tensor(b"K\x00", b"K\x02K\x03", b"K\x03K\x01");
    let refused = |bytes: &[u8], part: &str| {
        let message = open_bytes(bytes).unwrap_err();
        assert!(message.contains(part), "expected {part:?} in {message}");
    };
    refused(
        &archive(&[("a/data.pkl", &sound)]),
        "storage `0`, which is not there",
    );
    refused(
        &archive(&[("a/data.pkl", &sound), ("a/data/0", &[0; 23])]),
        "which has 23 bytes",
    );
    let twice = archive(&[
        ("a/data.pkl", &sound),
        ("a/data/0", &[0; 24]),
        ("a/data/0", &[0; 24]),
    ]);
    refused(&twice, "is there twice");
    refused(&archive(&[("a/data/0", &[0; 24])]), "expected one pickle");
    let big = archive(&[
        ("a/data.pkl", &sound),
        ("a/byteorder", b"big"),
        ("a/data/0", &[0; 24]),
    ]);
    refused(&big, "not little-endian");
    let script = archive(&[
        ("a/data.pkl", &sound),
        ("a/constants.pkl", b""),
        ("a/data/0", &[0; 24]),
    ]);
    refused(&script, "TorchScript");

    // The directory's last record is that of `a/data/0`: 46 bytes and its name, before the last 22 bytes.
    let good = pickle(&sound);
    let record = good.len() - 22 - 46 - "a/data/0".len();
    for (at, value, part) in [
        (8, 1, "is encrypted"),
        (10, 8, "is compressed"),
        (24, 25, "two sizes"),
        (42, 0, "two ways"),
    ] {
        let mut bytes = good.clone();
        bytes[record + at] = value;
        refused(&bytes, part);
    }
    for value in [0, 200] {
        // Both sizes: the data would end somewhere other than the pickle says, or beyond the directory.
        let mut bytes = good.clone();
        bytes[record + 20] = value;
        bytes[record + 24] = value;
        assert!(open_bytes(&bytes).is_err());
    }
}

/// Opens a damaged file, and reads all of it if it opens.
fn survives(bytes: &[u8]) {
    if let Ok(pickled) = super::read(Path::new("m.pt"), bytes, None) {
        for tensor in pickled.tensors {
            if matches!(tensor.place, super::Place::Contiguous) {
                let start = tensor.offset as usize;
                assert!(bytes.get(start..start + tensor.len as usize).is_some());
            }
        }
    }
}

#[test]
fn files_cut_anywhere_are_refused() {
    for file in ["zip.pt", "legacy.bin", "protocol4.pt"] {
        let bytes = fs::read(made_by_torch(file)).unwrap();
        for len in 0..bytes.len() {
            assert!(
                super::read(Path::new("m.pt"), &bytes[..len], None).is_err(),
                "{file} cut at {len}"
            );
        }
    }
}

proptest! {
    #[test]
    fn changed_bytes_never_panic(changes in proptest::collection::vec((any::<usize>(), any::<u8>()), 1..4)) {
        for file in ["zip.pt", "legacy.bin", "protocol5.pt", "v3.pt", "trainer.ckpt"] {
            let mut bytes = fs::read(made_by_torch(file)).unwrap();
            for (at, value) in &changes {
                let at = at % bytes.len();
                bytes[at] = *value;
            }
            survives(&bytes);
        }
    }

    #[test]
    fn arbitrary_pickles_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
        survives(&pickle(&bytes));
        survives(&[b"\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19.", bytes.as_slice()].concat());
    }
}
