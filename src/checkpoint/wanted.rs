//! Which files of a repository, or of a folder in a store, a merge reads: one set of weights, and what lies beside it.

use std::collections::{BTreeMap, BTreeSet};

use super::weight_names::{is_head_file, is_of_training};

/// A file of a list: one that lies elsewhere.
pub trait ListedFile {
    /// Its path from the folder of the model, with slashes.
    fn name(&self) -> &str;

    /// Its length in bytes.
    fn size(&self) -> u64;
}

/// The longest path of a file, and the most folders it may lie in.
const MAX_PATH_BYTES: usize = 1024;
const MAX_DEPTH: usize = 16;

/// The longest name of a file or folder, as file systems have it.
const MAX_NAME_BYTES: usize = 255;

/// Safetensors, and the endings of pickles.
const SAFETENSORS: &str = ".safetensors";
const PICKLES: [&str; 5] = [".bin", ".pt", ".pth", ".ckpt", ".pth.tar"];

/// Endings of what is beside weights: configs, vocabularies, templates, code, texts.
const BESIDE: [&str; 15] = [
    ".json",
    ".jinja",
    ".txt",
    ".model",
    ".spm",
    ".tiktoken",
    ".py",
    ".md",
    ".yml",
    ".yaml",
    ".toml",
    ".codes",
    ".bpe",
    ".tokenizer",
    ".cff",
];

/// Starts of legal texts, which often have no ending.
const LEGAL: [&str; 4] = ["LICENSE", "LICENCE", "NOTICE", "USE_POLICY"];

/// The largest file beside weights that is fetched.
const MAX_BESIDE_BYTES: u64 = 512 << 20;

/// Folders with the same weights for other programs, or with those of an unfinished training.
const OTHER_FOLDERS: [&str; 9] = [
    "onnx", "openvino", "coreml", "tflite", "gguf", "original", "metal", "flax", "runs",
];

/// What says that subfolders hold parts of the model.
const PARTS: [&str; 2] = ["model_index.json", "modules.json"];

/// Whether a name leads to a file within a folder, on every system.
pub fn is_path_within(name: &str) -> bool {
    let is_name = |part: &str| {
        !matches!(part, "" | "." | "..")
            && part.len() <= MAX_NAME_BYTES
            && !part.contains(['\\', ':', '\0'])
            && !part.chars().any(char::is_control)
    };
    name.len() <= MAX_PATH_BYTES
        && name.split('/').count() <= MAX_DEPTH
        && name.split('/').all(is_name)
}

/// Whether a file holds weights in a format that is read.
pub fn is_weights(name: &str) -> bool {
    is_safetensors(name) || is_pickle(name)
}

/// Whether a file holds weights whose header comes first.
pub fn is_safetensors(name: &str) -> bool {
    name.ends_with(SAFETENSORS)
}

fn is_pickle(name: &str) -> bool {
    PICKLES.iter().any(|end| name.ends_with(end))
}

/// The files that a merge reads, in the order of the list.
pub fn wanted<E: ListedFile>(entries: &[E]) -> Vec<&E> {
    let has_parts = entries.iter().any(|entry| PARTS.contains(&entry.name()));
    let mut folders: BTreeMap<&str, Vec<&E>> = BTreeMap::new();
    for entry in entries {
        let (folder, _) = entry.name().rsplit_once('/').unwrap_or(("", entry.name()));
        folders.entry(folder).or_default().push(entry);
    }
    let mut chosen = BTreeSet::new();
    for (folder, files) in folders {
        let is_other = folder.split('/').any(is_other_folder);
        if is_other {
            continue;
        }
        let beside = files.iter().filter(|entry| is_beside(**entry));
        chosen.extend(beside.map(|entry| entry.name()));
        if folder.is_empty() || has_parts {
            chosen.extend(weights(&files));
        }
    }
    let is_chosen = |entry: &&E| chosen.contains(entry.name());
    entries.iter().filter(is_chosen).collect()
}

fn is_other_folder(folder: &str) -> bool {
    OTHER_FOLDERS.contains(&folder) || folder.starts_with('.') || folder.starts_with("checkpoint-")
}

fn is_beside(entry: &impl ListedFile) -> bool {
    let name = file_name(entry);
    let upper = name.to_ascii_uppercase();
    entry.size() <= MAX_BESIDE_BYTES
        && !name.starts_with('.')
        && !is_of_training(name)
        && (BESIDE.iter().any(|end| name.ends_with(end))
            || LEGAL.iter().any(|start| upper.starts_with(start)))
}

fn file_name(entry: &impl ListedFile) -> &str {
    entry.name().rsplit('/').next().unwrap_or(entry.name())
}

/// The weights of one folder: safetensors if there are any, else pickles; without what is there in another form too.
fn weights<'e, E: ListedFile>(files: &[&'e E]) -> Vec<&'e str> {
    let of = |is: &dyn Fn(&str) -> bool| -> Vec<&'e E> {
        let is_model = |entry: &&&E| {
            let name = file_name(**entry);
            is(name) && !is_of_training(name)
        };
        files.iter().filter(is_model).copied().collect()
    };
    // Heads come whatever their format.
    let heads = of(&is_head_file);
    let mut chosen = of(&|name| is_safetensors(name) && !is_head_file(name));
    if chosen.is_empty() {
        chosen = of(&|name| is_pickle(name) && !is_head_file(name));
    }
    let names: BTreeSet<&str> = chosen.iter().map(|entry| file_name(*entry)).collect();
    let is_double = |entry: &&E| {
        let name = file_name(*entry);
        let is_original = name.starts_with("consolidated.");
        (is_original
            && names
                .iter()
                .any(|other| !other.starts_with("consolidated.")))
            || is_variant(name, &names)
    };
    chosen.retain(|entry| !is_double(entry));
    chosen.extend(heads);
    chosen.iter().map(|entry| entry.name()).collect()
}

/// Whether a file is a variant of another: `model.fp16.safetensors` beside `model.safetensors`, and shards alike.
fn is_variant(name: &str, names: &BTreeSet<&str>) -> bool {
    let Some((stem, end)) = name.rsplit_once('.') else {
        return false;
    };
    let Some((plain, _)) = stem.split_once('.') else {
        return false;
    };
    let sharded = format!("{plain}-00001-of-");
    names.contains(format!("{plain}.{end}").as_str())
        || names
            .iter()
            .any(|other| other.starts_with(&sharded) && other.ends_with(end))
}

#[cfg(test)]
mod tests {
    use super::*;

    impl ListedFile for &str {
        fn name(&self) -> &str {
            self
        }

        fn size(&self) -> u64 {
            1
        }
    }

    fn chosen<'n>(names: &[&'n str]) -> Vec<&'n str> {
        wanted(names).into_iter().copied().collect()
    }

    #[test]
    fn one_set_of_weights_is_chosen_and_what_lies_beside_it() {
        let cases: [(&[&str], &[&str]); 10] = [
            (
                &[
                    "config.json",
                    "model.safetensors",
                    "pytorch_model.bin",
                    "tf_model.h5",
                    ".gitattributes",
                ],
                &["config.json", "model.safetensors"],
            ),
            (
                &[
                    "config.json",
                    "pytorch_model.bin",
                    "optimizer.pt",
                    "training_args.bin",
                ],
                &["config.json", "pytorch_model.bin"],
            ),
            (
                &[
                    "pytorch_model.bin",
                    "bf16_zero_pp_rank_0_mp_rank_00_optim_states.pt",
                    "zero_pp_rank_0_mp_rank_00_optim_states.json",
                ],
                &["pytorch_model.bin"],
            ),
            (
                &[
                    "value_head.safetensors",
                    "value_head.bin",
                    "pytorch_model.bin",
                ],
                &[
                    "value_head.safetensors",
                    "value_head.bin",
                    "pytorch_model.bin",
                ],
            ),
            (
                &[
                    "consolidated.safetensors",
                    "model-00001-of-00001.safetensors",
                    "model.safetensors.index.json",
                ],
                &[
                    "model-00001-of-00001.safetensors",
                    "model.safetensors.index.json",
                ],
            ),
            (
                &["consolidated.safetensors", "params.json"],
                &["consolidated.safetensors", "params.json"],
            ),
            (
                &[
                    "model_index.json",
                    "unet/config.json",
                    "unet/diffusion_pytorch_model.safetensors",
                    "unet/diffusion_pytorch_model.fp16.safetensors",
                    "unet/diffusion_pytorch_model.bin",
                ],
                &[
                    "model_index.json",
                    "unet/config.json",
                    "unet/diffusion_pytorch_model.safetensors",
                ],
            ),
            (
                &[
                    "adapter_config.json",
                    "adapter_model.safetensors",
                    "checkpoint-10/adapter_model.safetensors",
                ],
                &["adapter_config.json", "adapter_model.safetensors"],
            ),
            (
                &[
                    "LICENSE",
                    "original/consolidated.00.pth",
                    "onnx/model.onnx",
                    "model.safetensors",
                    "a.gguf",
                ],
                &["LICENSE", "model.safetensors"],
            ),
            (
                &[
                    "model.safetensors",
                    "colbert_linear.pt",
                    "additional_chat_templates/x.jinja",
                    "fp16/model.safetensors",
                ],
                &[
                    "model.safetensors",
                    "colbert_linear.pt",
                    "additional_chat_templates/x.jinja",
                ],
            ),
        ];
        for (names, expected) in cases {
            assert_eq!(chosen(names), expected, "{names:?}");
        }
    }

    #[test]
    fn names_stay_within_a_folder() {
        for name in ["config.json", "unet/model.safetensors", "a b.json", "…"] {
            assert!(is_path_within(name), "{name}");
        }
        let long = "x".repeat(256);
        let deep = ["x"; 17].join("/");
        for name in [
            "",
            "/etc/passwd",
            "../x",
            "a/../b",
            "a//b",
            "a/",
            "./a",
            "C:x",
            "a\\b",
            "a\nb",
            "\u{1b}[31m",
            &long,
            &deep,
        ] {
            assert!(!is_path_within(name), "{name:?}");
        }
    }
}
