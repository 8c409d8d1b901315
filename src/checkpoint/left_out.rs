//! Which files beside the weights do not go along with a model, and why: rules as data. Every other file is carried.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::Read;
use std::path::Path;

use super::format::FileFormat;
use super::limits::MAX_UNKNOWN_BYTES;
use super::weight_names::{UNFINISHED, is_of_training, other_format};

/// A file or folder beside the weights that does not go along with the model.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LeftOut {
    /// Its path within the folder; that of a folder ends in `/`.
    pub name: String,
    /// Why it is left out, as part of a sentence.
    pub why: &'static str,
}

/// A rule: whether names begin or end like this, in small letters, and why they are left out.
struct Rule {
    starts: &'static [&'static str],
    ends: &'static [&'static str],
    why: &'static str,
}

const TRAINING: &str = "state or records of the training";
const OTHER_FORM: &str = "weights in another form";
const EARLIER: &str = "records and signatures of an earlier merge";
const EXECUTABLE: &str = "programs";
const CACHE: &str = "caches";

/// The rules for files.
const FILES: [Rule; 6] = [
    Rule {
        starts: &[
            "trainer_state",
            "trainer_log",
            "training_args",
            "events.out.tfevents",
            "zero_to_fp32.py",
        ],
        ends: &[".tfevents", ".distcp"],
        why: TRAINING,
    },
    Rule {
        starts: &[],
        ends: &[
            ".ot",
            ".tflite",
            ".pb",
            ".pdparams",
            ".nemo",
            ".engine",
            ".pte",
            ".mlmodel",
            ".onnx_data",
            ".onnx.data",
            ".imatrix",
            ".joblib",
            ".dill",
            ".hdf5",
            ".safetensors.index.json",
            ".bin.index.json",
            "openvino_model.xml",
        ],
        why: OTHER_FORM,
    },
    Rule {
        starts: &[
            "mergekit_config.",
            "mergekit_moe_config.",
            "weldment.lock.json",
        ],
        ends: &[".sig", ".sigstore", ".sigstore.json", ".intoto.jsonl"],
        why: EARLIER,
    },
    Rule {
        starts: &["adapter_config.json"],
        ends: &[],
        why: "settings of an adapter",
    },
    Rule {
        starts: &[],
        ends: &[
            ".exe",
            ".dll",
            ".so",
            ".dylib",
            ".pyd",
            ".msi",
            ".com",
            ".scr",
            ".bat",
            ".cmd",
            ".llamafile",
        ],
        why: EXECUTABLE,
    },
    Rule {
        starts: &["thumbs.db", "desktop.ini"],
        ends: &[".pyc", ".swp", ".tmp", ".lock", "~"],
        why: CACHE,
    },
];

/// The rules for folders.
const FOLDERS: [Rule; 3] = [
    Rule {
        starts: &[
            "checkpoint-",
            "global_step",
            "runs",
            "wandb",
            "tensorboard",
            "logs",
            "mlruns",
        ],
        ends: &[],
        why: TRAINING,
    },
    Rule {
        starts: &[
            "original",
            "onnx",
            "openvino",
            "coreml",
            "tensorrt",
            "gguf",
            "metal",
            "saved_model",
        ],
        ends: &[".mlpackage", ".mlmodelc"],
        why: OTHER_FORM,
    },
    Rule {
        starts: &["__pycache__", "node_modules", "venv"],
        ends: &[".egg-info"],
        why: CACHE,
    },
];

/// How files begin that the system runs: ELF, Windows, Mach-O.
const PROGRAMS: [&[u8]; 6] = [
    b"\x7fELF",
    b"MZ",
    b"\xfe\xed\xfa\xce",
    b"\xfe\xed\xfa\xcf",
    b"\xce\xfa\xed\xfe",
    b"\xcf\xfa\xed\xfe",
];

/// Why a file is left out by its name, the last part of its path.
pub(super) fn file_by_name(name: &str) -> Option<&'static str> {
    let lower = name.to_ascii_lowercase();
    if UNFINISHED
        .iter()
        .any(|end| lower.ends_with(&end.to_ascii_lowercase()))
    {
        return Some("unfinished downloads");
    }
    if is_weights(&lower) {
        return Some(match is_of_training(&lower) {
            true => TRAINING,
            false => "weights that no file names as part of the model",
        });
    }
    let is_gguf = FileFormat::Gguf
        .ends()
        .iter()
        .any(|end| lower.ends_with(end));
    if is_gguf || other_format(&lower).is_some() {
        return Some(OTHER_FORM);
    }
    let fits = |rule: &&Rule| {
        let starts = rule.starts.iter().any(|start| lower.starts_with(start));
        starts || rule.ends.iter().any(|end| lower.ends_with(end))
    };
    FILES.iter().find(fits).map(|rule| rule.why)
}

/// Why a file of a kind that nobody knows is left out for what it is.
pub(super) fn file_by_content(path: &Path) -> Option<&'static str> {
    let found = fs::metadata(path).ok()?;
    if found.len() > MAX_UNKNOWN_BYTES {
        return Some("too large to be settings");
    }
    let mut start = Vec::new();
    File::open(path)
        .ok()?
        .take(4)
        .read_to_end(&mut start)
        .ok()?;
    let program = PROGRAMS.iter().any(|program| start.starts_with(program));
    program.then_some(EXECUTABLE)
}

/// Why a folder is left out with everything in it: by the last part of its path, and the names in it.
pub(super) fn folder(name: &str, inside: &BTreeSet<String>) -> Option<&'static str> {
    let lower = name.to_ascii_lowercase();
    let fits = |rule: &&Rule| {
        // `runs` is such a folder, and `checkpoint-500` too.
        let start = |start: &&str| match start.ends_with(|c: char| !c.is_ascii_alphanumeric()) {
            true => lower.starts_with(start),
            false => lower.trim_end_matches(|c: char| c.is_ascii_digit()) == *start,
        };
        rule.starts.iter().any(start) || rule.ends.iter().any(|end| lower.ends_with(end))
    };
    let by_name = FOLDERS.iter().find(fits).map(|rule| rule.why);
    let own = || {
        let config = ["config.json", "adapter_config.json", "trainer_state.json"];
        let is_config = config.iter().any(|config| inside.contains(*config));
        let is_model = is_config && inside.iter().any(|name| is_weights(name));
        is_model.then_some("models of their own")
    };
    by_name.or_else(own)
}

/// Whether a file has the name of weights that torch or safetensors write.
pub(super) fn is_weights(name: &str) -> bool {
    FileFormat::named(name).is_some()
}
