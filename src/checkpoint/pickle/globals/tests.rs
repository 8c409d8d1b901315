//! Tricks by which pickles hide their imports, and trainers' files, which import only what they need.

use std::fs;
use std::path::Path;

use super::{PickleImports, globals};
use crate::limits::{MAX_PICKLE_MEMO, MAX_PICKLE_STACK};

fn of(bytes: &[u8]) -> PickleImports {
    globals(Path::new("m.pkl"), bytes)
}

fn text(text: &str) -> Vec<u8> {
    [&[0x8c, text.len() as u8], text.as_bytes()].concat()
}

fn stack_global(module: &str, name: &str) -> Vec<u8> {
    [&text(module)[..], &text(name), b"\x93"].concat()
}

/// Whether the whole pickle of these opcodes imports exactly these names that are not harmless.
#[track_caller]
fn finds(parts: &[&[u8]], others: &[&str]) {
    let bytes = [b"\x80\x04", &parts.concat()[..], b"."].concat();
    let found = of(&bytes);
    assert!(found.others.iter().eq(others), "{found:?}");
    assert_eq!(found.unread, None, "{found:?}");
}

#[test]
fn only_what_is_needed_is_harmless() {
    let call = b")R";
    for (module, name) in [
        ("os", "system"),
        ("timeit", "timeit"),
        ("pickle", "loads"),
        ("torch", "load"),
        ("torch.hub", "load"),
        ("torch.storage", "_load_from_bytes"),
        ("pip", "main"),
        ("functools", "partial"),
        ("operator", "attrgetter"),
        ("builtins", "eval"),
        ("builtins", "getattr"),
        ("numpy", "load"),
        ("numpy.testing._private.utils", "runstring"),
        ("transformers.trainer_utils", "os"),
        ("trl.trainer.sft_config", "os"),
        // Every part of a dotted name counts.
        ("torch", "os.system"),
        ("collections", "OrderedDict.__init__"),
        ("torch.nn", "Parameter.__subclasses__"),
        (
            "transformers.training_args",
            "TrainingArguments.__init__.__globals__",
        ),
        ("", ""),
    ] {
        let expected = format!("{module}.{name}");
        finds(&[&stack_global(module, name), call], &[&expected]);
        let line = format!("c{module}\n{name}\n");
        finds(&[line.as_bytes(), call], &[&expected]);
        let inst = format!("(i{module}\n{name}\n");
        finds(&[inst.as_bytes()], &[&expected]);
    }
    for (module, name) in [
        ("collections", "OrderedDict"),
        ("torch._utils", "_rebuild_tensor_v2"),
        ("torch", "BFloat16Storage"),
        ("torch", "float8_e4m3fn"),
        ("numpy.dtypes", "UInt32DType"),
        ("transformers.training_args", "TrainingArguments"),
        ("trl.trainer.sft_config", "SFTConfig"),
        ("trl.trainer.online_dpo_config", "OnlineDPOConfig"),
    ] {
        finds(&[&stack_global(module, name), call], &[]);
    }
}

/// STACK_GLOBAL takes its operands from the stack, not the strings written last.
#[test]
fn names_are_those_that_python_takes() {
    let (os, system) = (&text("os")[..], &text("system")[..]);
    let (torch, size) = (&text("torch")[..], &text("Size")[..]);
    let found = &["os.system"][..];
    // Dropped: by POP, by POP_MARK, by a POP of a mark, with a tuple.
    finds(&[os, system, torch, b"0", size, b"0\x93"], found);
    finds(&[os, system, b"(", torch, size, b"1\x93"], found);
    finds(&[os, b"(0", system, b"\x93(", torch, size, b"1"], found);
    finds(&[os, system, torch, size, b"\x860\x93"], found);
}

#[test]
fn names_are_kept_and_recalled_as_python_does() {
    let (os, system) = (&text("os")[..], &text("system")[..]);
    let (torch, size) = (&text("torch")[..], &text("Size")[..]);
    let found = &["os.system"][..];
    // Kept by BINPUT, LONG_BINPUT and PUT.
    finds(
        &[
            os,
            b"q\x070",
            system,
            b"r\x00\x01\x00\x000",
            torch,
            size,
            b"00h\x07j\x00\x01\x00\x00\x93",
        ],
        found,
    );
    finds(&[os, b"p7\n0", system, b"p8\n0g7\ng8\n\x93"], found);
    // MEMOIZE numbers entries by their count: 2 after 0 and 7, then 3 again, as entry 2 is stored twice.
    finds(
        &[
            torch,
            b"q\x00q\x07",
            os,
            b"\x940",
            size,
            b"q\x020",
            system,
            b"\x940h\x02h\x03\x93",
        ],
        &["Size.system"],
    );
    finds(
        &[
            torch,
            b"q\x00q\x000",
            os,
            b"\x940",
            system,
            b"\x940h\x01h\x02\x93",
        ],
        found,
    );
    // The stored value is the one on top after other opcodes: a copy, or a list.
    finds(&[os, b"2\x940", system, b"\x93"], found);
}

/// Names that are escaped, built at run time, or agreed on elsewhere are never harmless.
#[test]
fn names_that_are_not_written_out_are_found() {
    finds(&[b"S'\\x6fs'\nS'system'\n\x93"], &["\\x6fs.system"]);
    finds(&[b"V\\u006fs\nVsystem\n\x93"], &["\\u006fs.system"]);
    finds(&[b"S'os'\nS\"system\"\n\x93"], &["os.system"]);
    let made = "a name that is made while the file is unpickled";
    let encode = stack_global("_codecs", "encode");
    let call = [&encode[..], &text("os"), &text("ascii"), b"\x86R"].concat();
    finds(&[&call, &text("system"), b"\x93"], &[made]);
    finds(&[b"N", &text("system"), b"\x93"], &[made]);
    finds(&[b"\x82\x05"], &["extension 5"]);
    finds(&[b"c\xff\nx\n"], &["\u{fffd}.x"]);
}

/// Python 3.11 looks up the members of enums by `getattr`; it may look up nothing else.
#[test]
fn getattr_is_harmless_for_members_of_enums_alone() {
    let getattr = &stack_global("builtins", "getattr")[..];
    let class = &stack_global("transformers.trainer_utils", "HubStrategy")[..];
    let module = &stack_global("torch", "Tensor")[..];
    let found = &["builtins.getattr"][..];
    finds(&[getattr, class, &text("EVERY_SAVE"), b"\x86R"], &[]);
    finds(
        &[
            getattr,
            b"\x94",
            class,
            &text("END"),
            b"\x86Rh\x00",
            class,
            &text("ALL"),
            b"\x86R\x86",
        ],
        &[],
    );
    finds(&[getattr, class, &text("__init__"), b"\x86R"], found);
    finds(&[getattr, class, &text("mro"), b"\x86R"], found);
    finds(&[getattr, module, &text("ALL"), b"\x86R"], found);
    finds(&[getattr, b"(", class, &text("ALL"), b"tR"], found);
    finds(&[b"(", getattr, class, &text("ALL"), b"o"], found);
    finds(&[getattr, b")\x81"], found);
    finds(&[getattr, b"\x85"], found);
    finds(&[getattr], found);
    finds(&[b"(N", &text("x"), b"ibuiltins\ngetattr\n"], found);
}

#[test]
fn what_is_not_followed_to_its_end_is_said() {
    let unread = |bytes: &[u8], part: &str| {
        let found = of(bytes);
        let why = found.unread.as_deref().unwrap_or_default();
        assert!(why.contains(part), "expected {part:?} in {found:?}");
        found
    };
    unread(
        b"\x78\x9c\x4b\x04\x00\x00\x62\x00\x62",
        "no pickle, 0x78 is no opcode, at byte 0",
    );
    unread(b"\x1f\x8b\x08\x00", "0x1f is no opcode");
    unread(b"BZh91AY&SY", "breaks off at byte 0");
    unread(
        b"storages\0\0",
        "takes a value where there is none, at byte 0",
    );
    unread(b"\x80\x04]", "breaks off at byte 3");
    unread(b"h\x00.", "was not kept, at byte 0");
    unread(b"(0.", "none, at byte 2");
    unread(b"cos\nsystem", "line without an end");
    unread(b"N.N.N.N.N.N.", "after five pickles, at byte 10");
    unread(b"N.\x78", "0x78 is no opcode, at byte 2");
    unread(b"PK\x03\x04", "end of central directory");
    assert!(
        unread(b"cos\nsystem\n(", "breaks off")
            .others
            .contains("os.system")
    );
    // What a later pickle of the file imports counts too.
    let found = of(b"N.cos\nsystem\n.");
    assert!(
        found.others.contains("os.system") && found.unread.is_none(),
        "{found:?}"
    );
    unread(
        &b"N".repeat(MAX_PICKLE_STACK + 1),
        "too many values at once",
    );
    unread(&b"(".repeat(MAX_PICKLE_STACK + 1), "too many marks");
    let many: String = (0..1001).map(|name| format!("ca\n{name}\n0")).collect();
    assert_eq!(
        unread(many.as_bytes(), "more than 1000 names").others.len(),
        1000
    );
    let mut kept = b"N".to_vec();
    for key in 0..=MAX_PICKLE_MEMO as u32 {
        kept.extend([b'r']);
        kept.extend(key.to_le_bytes());
    }
    unread(&kept, "too many values for later");
}

/// The old format is five pickles followed by bytes, whatever those look like.
#[test]
fn bytes_of_tensors_are_no_pickle() {
    for file in [
        "zip.pt",
        "legacy.bin",
        "legacy4.bin",
        "protocol4.pt",
        "protocol5.pt",
        "v3.pt",
        "sparse.pt",
        "quantised.pt",
        "complex.pt",
        "nested.pt",
    ] {
        let path = Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("../../tests/peer/pickled")
            .join(file);
        let bytes = fs::read(&path).unwrap();
        let found = globals(&path, &bytes);
        assert!(
            found.others.is_empty() && found.unread.is_none(),
            "{file}: {found:?}"
        );
        assert!(!found.harmless.is_empty(), "{file}");
    }
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/peer/pickled/legacy.bin");
    let mut bytes = fs::read(path).unwrap();
    bytes.extend(b"cos\nsystem\n.");
    assert!(of(&bytes).others.is_empty());
}
