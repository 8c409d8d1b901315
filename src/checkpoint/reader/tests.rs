//! Valid and invalid checkpoints: folders, indexes, single files, arbitrary bytes.

use proptest::prelude::*;

use super::super::fixtures::{safetensors, write};
use super::*;

const INDEX: &str = "model.safetensors.index.json";

/// Name and bytes.
type File<'a> = (&'a str, &'a [u8]);

fn folder(files: &[File]) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    for (name, bytes) in files {
        write(&folder.path().join(name), bytes);
    }
    folder
}

fn open(files: &[File]) -> Result<Checkpoint, String> {
    let folder = folder(files);
    Checkpoint::open("label", &Location::local(folder.path())).map_err(|e| errors::in_one_line(&e))
}

fn names(checkpoint: &Checkpoint) -> Vec<&str> {
    checkpoint
        .tensors()
        .iter()
        .map(|t| t.name.as_str())
        .collect()
}

fn is_send_sync<T: Send + Sync>() {}

#[test]
fn folders_and_files_open() {
    is_send_sync::<Checkpoint>();
    let a = safetensors(&[("a", "F32", &[2]), ("s", "F16", &[])]);
    let b = safetensors(&[("b", "BF16", &[0, 3]), ("c", "U8", &[3])]);
    let index = br#"{"metadata": {"total_size": 13}, "weight_map":
        {"c": "2.safetensors", "a": "1.safetensors", "b": "2.safetensors", "s": "1.safetensors"}}"#;
    let wrong_total = br#"{"metadata": {"total_size": 14}, "weight_map": {"a": "1.safetensors", "s": "1.safetensors"}}"#;
    let short = br#"{"weight_map": {"a": "1.safetensors", "s": "1.safetensors"}}"#;
    let cases: Vec<(Vec<File>, &[&str], usize)> = vec![
        (vec![("model.safetensors", &a)], &["a", "s"], 0),
        (
            vec![("other.safetensors", &a), ("config.json", b"{}")],
            &["a", "s"],
            0,
        ),
        (
            vec![("2.safetensors", &b), ("1.safetensors", &a), (INDEX, index)],
            &["a", "s", "b", "c"],
            0,
        ),
        (
            vec![("1.safetensors", &a), (INDEX, wrong_total)],
            &["a", "s"],
            1,
        ),
        (
            vec![
                ("1.safetensors", &a),
                (INDEX, short),
                ("model.safetensors", &b),
            ],
            &["b", "c"],
            1,
        ),
        (
            vec![
                ("1.safetensors", &a),
                ("unet.safetensors.index.json", short),
            ],
            &["a", "s"],
            0,
        ),
        (
            vec![("model.safetensors", &a), ("x.safetensors", &b)],
            &["a", "s"],
            1,
        ),
        (
            vec![
                ("model-00001-of-00002.safetensors", &a),
                ("model-00002-of-00002.safetensors", &b),
            ],
            &["a", "s", "b", "c"],
            0,
        ),
    ];
    for (files, expected, notes) in cases {
        let checkpoint = open(&files).unwrap();
        assert_eq!(names(&checkpoint), expected);
        assert_eq!(checkpoint.notes().len(), notes, "{:?}", checkpoint.notes());
        for (at, tensor) in checkpoint.tensors().iter().enumerate() {
            assert_eq!(checkpoint.find(&tensor.name), Some(at));
            assert_eq!(checkpoint.bytes(at).unwrap().len() as u64, tensor.len);
            let size = tensor.dtype.bitsize() as u64 / 8;
            assert_eq!(tensor.elements() * size, tensor.len);
        }
    }
}

#[test]
fn a_single_file_has_neither_config_nor_sidecars() {
    let folder = folder(&[
        ("x.safetensors", &safetensors(&[("a", "U8", &[2])])),
        ("config.json", b"{}"),
        ("tokenizer.json", b"{}"),
    ]);
    let location = Location::local(folder.path().join("x.safetensors"));
    let checkpoint = Checkpoint::open("x", &location).unwrap();
    assert!(checkpoint.is_single_file() && checkpoint.config().is_none());
    assert!(checkpoint.sidecars().unwrap().is_empty());
    assert_eq!(checkpoint.bytes(0).unwrap(), [0, 1]);
    assert_eq!(checkpoint.shards()[0].metadata["format"], "pt");
    checkpoint.check_unchanged().unwrap();

    let mut longer = std::fs::read(&location.path).unwrap();
    longer.push(0);
    std::fs::write(&location.path, longer).unwrap();
    let message = errors::in_one_line(&checkpoint.check_unchanged().unwrap_err());
    assert!(message.contains("changed while it was read"), "{message}");
}

#[test]
fn folders_that_are_no_checkpoint_say_what_they_are() {
    let a = safetensors(&[("a", "U8", &[1])]);
    let b = safetensors(&[("b", "U8", &[1])]);
    let cases: Vec<(Vec<File>, &[&str])> = vec![
        (vec![], &["found nothing", "model.safetensors"]),
        (vec![("config.json", b"{}")], &["config.json", "hint"]),
        (
            vec![("pytorch_model.bin", b"x")],
            &[
                "pytorch_model.bin is no file of torch.save",
                "copy or download",
            ],
        ),
        (
            vec![
                ("optimizer.pt", b"x"),
                ("training_args.bin", b"x"),
                ("rng_state_0.pth", b"x"),
            ],
            &["no safetensors weights", "optimizer.pt"],
        ),
        (
            vec![("m.Q4_K.gguf", b"x"), ("README.md", b"x")],
            &["m.Q4_K.gguf: it is truncated", "copy or download"],
        ),
        (vec![("adapter_model.safetensors", &a)], &["LoRA adapter"]),
        (vec![("model_index.json", b"{}")], &["pipeline"]),
        (
            vec![("a.safetensors", &a), ("b.safetensors", &b)],
            &["a.safetensors, b.safetensors", "name the file itself"],
        ),
        (
            vec![("m-00001-of-00002.safetensors", &a), ("b.safetensors", &b)],
            &["not one set"],
        ),
        (
            vec![
                ("m-00001-of-00003.safetensors", &a),
                ("m-00003-of-00003.safetensors", &b),
            ],
            &["m-00002-of-00003.safetensors is missing"],
        ),
        (
            vec![("m-00001-of-00002.safetensors", &a)],
            &["m-00002-of-00002.safetensors is missing"],
        ),
        (
            vec![("m-1-of-99999999.safetensors", &a)],
            &["number of shards"],
        ),
        (
            vec![
                ("m-00001-of-00001.safetensors", &a),
                ("m-00001-of-00002.safetensors", &a),
            ],
            &["not one set"],
        ),
        (
            vec![("model.safetensors/x", b"x")],
            &["expected a regular file"],
        ),
        (
            vec![("model.safetensors", b"")],
            &["truncated: expected 8 bytes, found 0"],
        ),
        (
            vec![("model.safetensors", b"\x02\0\0\0\0\0\0\0{}")],
            &["holds no tensors"],
        ),
        (
            vec![
                ("m-00001-of-00002.safetensors", &a),
                ("m-00002-of-00002.safetensors", &a),
            ],
            &[
                "tensor `a` is in both m-00001-of-00002.safetensors and m-00002-of-00002.safetensors",
            ],
        ),
        (
            vec![("model.safetensors", &a), ("config.json", b"[]")],
            &["config.json is malformed"],
        ),
    ];
    for (files, parts) in cases {
        let message = open(&files).unwrap_err();
        for part in parts {
            assert!(message.contains(part), "expected {part:?} in {message:?}");
        }
    }
}

#[test]
fn an_index_is_not_believed_without_its_shards() {
    let a = safetensors(&[("a", "U8", &[1]), ("s", "U8", &[1])]);
    let b = safetensors(&[("b", "U8", &[1])]);
    let cases: [(&str, &[&str]); 20] = [
        (
            r#"{"a": "../1.safetensors"}"#,
            &["`../1.safetensors`", "plain name"],
        ),
        (r#"{"a": "/etc/x.safetensors"}"#, &["`/etc/x.safetensors`"]),
        (r#"{"a": "C:\\x.safetensors"}"#, &["plain name"]),
        (r#"{"a": "sub/1.safetensors"}"#, &["plain name"]),
        (r#"{"a": ".."}"#, &["plain name"]),
        (r#"{"a": ""}"#, &["plain name"]),
        (r#"{"a": "pytorch_model.bin"}"#, &["plain name"]),
        (r#"{"a": "x\u001b[2J.safetensors"}"#, &["plain name"]),
        (r#"{"\u001b[2J": "1.safetensors"}"#, &["control characters"]),
        (
            r#"{"a": "3.safetensors"}"#,
            &["shard 3.safetensors is missing"],
        ),
        (
            r#"{"a": "2.safetensors", "b": "2.safetensors", "s": "1.safetensors"}"#,
            &["`a` expected in 2.safetensors, found in 1.safetensors"],
        ),
        (
            r#"{"a": "1.safetensors", "nope": "2.safetensors"}"#,
            &["`nope` expected in 2.safetensors, found in no shard"],
        ),
        (
            r#"{"b": "2.safetensors", "a": "1.safetensors"}"#,
            &["does not name tensor `s` of 1.safetensors (1 such in all)"],
        ),
        (
            r#"{"a": "1.safetensors", "a": "1.safetensors"}"#,
            &["names tensor `a` twice"],
        ),
        (r#"{"a": 1}"#, &["malformed index"]),
        (r#"["a"]"#, &["malformed index"]),
        ("{}", &["holds no tensors"]),
        (r#"{}, "weight_map": {}"#, &["found several"]),
        (
            r#"{"a": "1.safetensors", "s": "1.safetensors", "b": "2.safetensors"#,
            &["malformed index"],
        ),
        (
            r#"{"a": "model.safetensors"}"#,
            &["model.safetensors is missing"],
        ),
    ];
    for (map, parts) in cases {
        let index = format!(r#"{{"weight_map": {map}}}"#);
        let files: [File; 3] = [
            ("1.safetensors", &a),
            ("2.safetensors", &b),
            (INDEX, index.as_bytes()),
        ];
        let message = open(&files).unwrap_err();
        assert!(!message.chars().any(char::is_control), "{message:?}");
        for part in parts {
            assert!(message.contains(part), "expected {part:?} in {message:?}");
        }
    }
    let duplicate: [File; 3] = [
        ("1.safetensors", &b),
        ("2.safetensors", &b),
        (
            INDEX,
            br#"{"weight_map": {"c": "2.safetensors", "d": "1.safetensors"}}"#,
        ),
    ];
    let message = open(&duplicate).unwrap_err();
    assert!(
        message.contains("in both 1.safetensors and 2.safetensors"),
        "{message}"
    );
    let none = open(&[(INDEX, b"{}")]).unwrap_err();
    assert!(none.contains("expected a `weight_map`"), "{none}");
}

#[test]
fn files_of_other_formats_are_told_apart() {
    for (name, part) in [
        ("m.gguf", "it is truncated: its first bytes"),
        ("m.ggml", "GGML"),
        ("m.bin", "no file of torch.save"),
        ("m.pkl", "a file that torch.save does not name so"),
    ] {
        let folder = folder(&[(name, b"x")]);
        let location = Location::local(folder.path().join(name));
        let message = errors::in_one_line(&Checkpoint::open("m", &location).unwrap_err());
        assert!(message.contains(part), "{message}");
    }
    let missing = Checkpoint::open("m", &Location::local("/none/x.safetensors"));
    assert!(
        missing
            .unwrap_err()
            .to_string()
            .contains("/none/x.safetensors")
    );
    let device = Checkpoint::open("m", &Location::local("/dev/null"));
    assert!(device.unwrap_err().to_string().contains("regular file"));
}

fn open_bytes(bytes: &[u8]) -> bool {
    let file = tempfile::Builder::new()
        .suffix(".safetensors")
        .tempfile()
        .unwrap();
    std::fs::write(file.path(), bytes).unwrap();
    let opened = Checkpoint::open("x", &Location::local(file.path()));
    if let Ok(checkpoint) = &opened {
        for at in 0..checkpoint.tensors().len() {
            let _ = checkpoint.bytes(at);
        }
    }
    opened.is_ok()
}

proptest! {
    #[test]
    fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        open_bytes(&bytes);
    }

    #[test]
    fn arbitrary_headers_never_panic(
        header in r#"\{("[ab]":\{"dtype":"(F32|U8|F4)","shape":\[[0-9]{1,20}(,[0-9])?\],"data_offsets":\[[0-9]{1,20},[0-9]{1,20}\]\},?){0,3}\}"#,
        data in 0usize..9,
    ) {
        open_bytes(&super::super::fixtures::raw(&header, &vec![0; data]));
    }

    #[test]
    fn a_sound_file_with_a_byte_changed_never_panics(at in 0usize..160, to in any::<u8>()) {
        let mut bytes = safetensors(&[("a", "F32", &[2]), ("b", "U8", &[4])]);
        assert!(open_bytes(&bytes));
        let at = at % bytes.len();
        bytes[at] = to;
        open_bytes(&bytes);
    }

    #[test]
    fn arbitrary_indexes_never_panic(json in r#"\{"weight_map": ?\{("[ab./]{0,3}": ?"[1./\\]{0,3}(\.safetensors)?",?){0,3}\}\}"#) {
        let a = safetensors(&[("a", "U8", &[1])]);
        let _ = open(&[("1.safetensors", &a), (INDEX, json.as_bytes())]);
    }
}
