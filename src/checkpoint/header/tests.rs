//! Hostile headers, one for each thing that can be wrong with a header.

use super::super::fixtures::{raw, safetensors};
use super::*;

fn message(file: &[u8]) -> String {
    let error = read(Path::new("x.safetensors"), file).unwrap_err();
    let message = errors::in_one_line(&error);
    assert!(message.contains("x.safetensors"), "{message}");
    assert!(
        !message.ends_with('.') || message.ends_with("..."),
        "{message}"
    );
    assert!(!message.chars().any(char::is_control), "{message}");
    message
}

/// A header of entries `"name": [dtype, shape, begin, end]`.
fn entries(entries: &[(&str, &str, &str, &str)]) -> String {
    let entries: Vec<String> = entries
        .iter()
        .map(|(name, dtype, shape, offsets)| {
            format!(r#""{name}":{{"dtype":"{dtype}","shape":{shape},"data_offsets":{offsets}}}"#)
        })
        .collect();
    format!("{{{}}}", entries.join(","))
}

#[test]
fn each_malformation_is_told_by_name() {
    let sound = safetensors(&[("a", "F32", &[2]), ("b", "F32", &[2])]);
    let with_length = |length: u64| {
        let mut file = sound.clone();
        file[..8].copy_from_slice(&length.to_le_bytes());
        file
    };
    let file = |list: &[(&str, &str, &str, &str)], data| raw(&entries(list), &vec![0; data]);
    let deep = format!(r#"{{"a":{}{}}}"#, "[".repeat(10_000), "]".repeat(10_000));
    let cases: Vec<(Vec<u8>, &str)> = vec![
        (vec![], "truncated: expected 8 bytes, found 0"),
        (sound[..5].to_vec(), "truncated: expected 8 bytes, found 5"),
        (sound[..20].to_vec(), "found 20"),
        (sound[..sound.len() - 1].to_vec(), "is truncated"),
        ([sound.as_slice(), &[0]].concat(), "belong to no tensor"),
        (
            with_length(u64::MAX),
            "header of 18446744073709551615 bytes",
        ),
        (with_length(100_000_001), "expected at most 100000000"),
        (with_length(50_000_000), "truncated: expected 50000008"),
        (
            [&4u64.to_le_bytes()[..], b"\xff\xff\xff\xff"].concat(),
            "utf-8",
        ),
        (raw("not json", b""), "malformed"),
        (raw("[]", b""), "an object of tensors"),
        (raw("", b""), "malformed"),
        (raw("{} trailing", b""), "malformed"),
        (raw(&deep, b""), "malformed"),
        (
            raw(r#"{"a":{"dtype":"F32"}}"#, b""),
            "entry `a`: missing field `shape`",
        ),
        (
            raw(r#"{"__metadata__":{"a":1}}"#, b""),
            "entry `__metadata__`",
        ),
        (
            raw(r#"{"__metadata__":{},"__metadata__":{}}"#, b""),
            "`__metadata__` twice",
        ),
        (
            file(&[("a", "F7", "[1]", "[0,4]")], 4),
            "entry `a`: unknown variant `F7`",
        ),
        (file(&[("a", "F32", "[-1]", "[0,4]")], 4), "entry `a`"),
        (file(&[("a", "F32", "[1.5]", "[0,4]")], 4), "entry `a`"),
        (
            file(
                &[("a", "F32", "[2]", "[0,8]"), ("b", "F32", "[2]", "[4,12]")],
                12,
            ),
            "tensor `b` overlaps the one before it: expected to begin at byte 8 of the data, found 4",
        ),
        (
            file(
                &[("b", "F32", "[2]", "[0,8]"), ("a", "F32", "[2]", "[0,8]")],
                8,
            ),
            "overlaps",
        ),
        (
            file(
                &[("a", "F32", "[2]", "[0,8]"), ("b", "F32", "[2]", "[12,20]")],
                20,
            ),
            "a hole before tensor `b`: expected to begin at byte 8 of the data, found 12",
        ),
        (
            file(&[("a", "F32", "[2]", "[4,12]")], 12),
            "a hole before tensor `a`",
        ),
        (
            file(&[("a", "F32", "[2]", "[8,0]")], 8),
            "ends before it begins",
        ),
        (
            file(&[("a", "F32", "[3]", "[0,8]")], 8),
            "tensor `a` of dtype F32 and shape [3]: expected 12 bytes, found 8",
        ),
        (
            file(
                &[("a", "F32", "[4294967296,4294967296,4294967296]", "[0,8]")],
                8,
            ),
            "more elements than can be counted",
        ),
        (
            file(
                &[(
                    "a",
                    "U8",
                    "[18446744073709551615]",
                    "[0,18446744073709551615]",
                )],
                8,
            ),
            "more elements than can be counted",
        ),
        (
            file(&[("a", "F4", "[3]", "[0,1]")], 1),
            "ends within a byte",
        ),
        (
            file(
                &[("a", "U8", &format!("[{}1]", "1,".repeat(64)), "[0,1]")],
                1,
            ),
            "more than 64 dimensions",
        ),
        (
            file(
                &[("a", "U8", "[1]", "[0,1]"), ("a", "U8", "[1]", "[1,2]")],
                2,
            ),
            "names tensor `a` twice",
        ),
        (file(&[("", "U8", "[1]", "[0,1]")], 1), "is empty"),
        (
            file(&[("a\\u001b[31m", "U8", "[1]", "[0,1]")], 1),
            "has control characters",
        ),
        (
            file(&[(&"n".repeat(5000), "U8", "[1]", "[0,1]")], 1),
            "longer than 4096",
        ),
        (
            b"version https://git-lfs.github.com/spec/v1\n".to_vec(),
            "git lfs pull",
        ),
        (b"PK\x03\x04rest".to_vec(), "zip archive"),
    ];
    for (file, expected) in cases {
        let message = message(&file);
        assert!(
            message.contains(expected),
            "expected {expected:?} in {message:?}"
        );
    }
}

/// Eight tensors of 2^61 bytes each bring the sum of offsets near the end of u64.
#[test]
fn offsets_near_the_end_of_the_range_do_not_overflow() {
    let huge = 1u64 << 60;
    let names: Vec<String> = (0..16).map(|i| format!("t{i:02}")).collect();
    let offsets: Vec<String> = (0..16u64)
        .map(|i| format!("[{},{}]", i * huge, (i + 1).saturating_mul(huge)))
        .collect();
    let shape = format!("[{huge}]");
    let list: Vec<_> = (0..15)
        .map(|i| (names[i].as_str(), "U8", shape.as_str(), offsets[i].as_str()))
        .collect();
    assert!(message(&raw(&entries(&list), b"")).contains("truncated"));
    let last = format!("[{},{}]", 15 * huge, u64::MAX);
    let almost = format!("[{}]", huge - 1);
    let list = [list, vec![("t15", "U8", &almost, &last)]].concat();
    assert!(message(&raw(&entries(&list), b"")).contains("truncated"));
}

#[test]
fn sound_headers_are_read_in_file_order() {
    let header = entries(&[
        ("z", "F32", "[]", "[4,8]"),
        ("empty2", "F32", "[0,7]", "[4,4]"),
        ("empty1", "BF16", "[3,0]", "[4,4]"),
        ("a", "BF16", "[2]", "[0,4]"),
    ]);
    let header = format!("{header}    ");
    let read = read(Path::new("x"), &raw(&header, &[0; 8])).unwrap();
    let names: Vec<&str> = read.tensors.iter().map(|t| t.name.as_str()).collect();
    assert_eq!(names, ["a", "empty2", "empty1", "z"]);
    assert_eq!(read.len, header.len() as u64);
    assert_eq!(read.tensors[3].offset, 8 + read.len + 4);
    assert_eq!(read.tensors[3].len, 4);
    assert_eq!(
        super::read(Path::new("x"), &raw("{}", b""))
            .unwrap()
            .tensors
            .len(),
        0
    );
}
