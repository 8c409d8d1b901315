//! Which files of a checkpoint's folder loaders read, by their names: those of transformers, vLLM, diffusers and
//! sentence-transformers, and the converter of llama.cpp.
//!
//! Names are taken broadly, because a verification must not overlook a file that changes what is loaded. What no name
//! here covers is listed in the report by name.

/// What loaders take from a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Role {
    /// Weights, in any format.
    Weights,
    /// Code, which they may run.
    Code,
    /// Settings: configs, indexes, vocabularies, templates.
    Settings,
}

impl Role {
    /// Its name in reports.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Role::Weights => "weights",
            Role::Code => "code",
            Role::Settings => "settings, a vocabulary or a template",
        }
    }
}

/// What tools leave at the top of a folder, and no loader reads: of git, of the Hub's client, of ModelScope's, of macOS.
const APART: [&str; 9] = [
    ".git",
    ".gitattributes",
    ".github",
    ".gitignore",
    ".cache/huggingface",
    ".DS_Store",
    ".mdl",
    ".msc",
    ".mv",
];

const WEIGHTS: [&str; 27] = [
    "safetensors",
    "bin",
    "pt",
    "pth",
    "ckpt",
    "pkl",
    "pickle",
    "joblib",
    "dill",
    "gguf",
    "ggml",
    "h5",
    "hdf5",
    "msgpack",
    "onnx",
    "onnx_data",
    "npy",
    "npz",
    "tflite",
    "pb",
    "pdparams",
    "distcp",
    "engine",
    "pte",
    "nemo",
    "faiss",
    "arrow",
];

const CODE: [&str; 7] = ["py", "pyc", "pyd", "so", "dll", "dylib", "jit"];

const SETTINGS: [&str; 10] = [
    "jinja",
    "jinja2",
    "model",
    "spm",
    "tiktoken",
    "bpe",
    "codes",
    "vocab",
    "vec",
    "tokenizer",
];

/// Endings of text that is settings only by the words of its name.
const TEXT: [&str; 3] = ["json", "jsonl", "txt"];

/// How a word of such a name begins.
const WORDS: [&str; 36] = [
    "adapter",
    "added",
    "alphabet",
    "artists",
    "attrs",
    "chat",
    "config",
    "dict",
    "embedding",
    "emoji",
    "encoder",
    "entity",
    "extractor",
    "feature",
    "generation",
    "genres",
    "index",
    "kv",
    "lyrics",
    "mapping",
    "merges",
    "module",
    "normalizer",
    "param",
    "preprocessor",
    "processor",
    "quant",
    "scale",
    "scheduler",
    "special",
    "tekken",
    "template",
    "token",
    "unigram",
    "vocab",
    "word",
];

/// What loaders take from a file, by its path in the folder; `None` if they do not read it.
pub(crate) fn role_of(path: &str) -> Option<Role> {
    let name = path.rsplit('/').next().unwrap_or(path).to_ascii_lowercase();
    let (_, end) = name.rsplit_once('.').unwrap_or((&name, ""));
    let words = || name.split(|c: char| !c.is_ascii_alphanumeric());
    let starts = |word: &str| WORDS.iter().any(|start| word.starts_with(start));
    if WEIGHTS.contains(&end) {
        Some(Role::Weights)
    } else if CODE.contains(&end) {
        Some(Role::Code)
    } else if SETTINGS.contains(&end)
        // `tokenizer.model.v3` and the like.
        || name.starts_with("tokenizer.")
        || TEXT.contains(&end) && words().any(starts)
    {
        Some(Role::Settings)
    } else {
        None
    }
}

/// Whether a file of this name belongs to a checkpoint, where one is: loaders read it, or it says what the model is, what it
/// was made from, or by whom.
pub fn is_of_checkpoint(name: &str) -> bool {
    let upper = name.to_ascii_uppercase();
    let is_text = ["README", "LICENSE", "LICENCE", "NOTICE", "USE_POLICY"];
    let ends = [".SIG", ".INTOTO.JSON", ".LOCK.JSON", ".YML", ".YAML"];
    role_of(name).is_some()
        || is_text.iter().any(|start| upper.starts_with(start))
        || ends.iter().any(|end| upper.ends_with(end))
}

/// Whether tools left what is at a path, and no loader reads it.
pub(crate) fn is_apart(path: &str) -> bool {
    APART.iter().any(|apart| is_below(path, apart))
}

/// Whether a path equals another or is inside it.
pub(crate) fn is_below(path: &str, other: &str) -> bool {
    let rest = path.strip_prefix(other);
    rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_loaders_read_is_known_by_name() {
        let cases = [
            (
                Some(Role::Weights),
                &[
                    "model.safetensors",
                    "adapter_model.safetensors",
                    "adapter_model.bin",
                    "pytorch_model.bin",
                    "pytorch_model-00001-of-00002.bin",
                    "consolidated.00.pth",
                    "consolidated.safetensors",
                    "m.Q4_K.GGUF",
                    "tf_model.h5",
                    "flax_model.msgpack",
                    "unet/diffusion_pytorch_model.safetensors",
                    "onnx/model.onnx",
                    "original/consolidated.00.pth",
                    "training_args.bin",
                    "2_Dense/pytorch_model.bin",
                ][..],
            ),
            (
                Some(Role::Code),
                &[
                    "modeling_x.py",
                    "custom_generate/generate.py",
                    "lib/kernel.so",
                ],
            ),
            (
                Some(Role::Settings),
                &[
                    "config.json",
                    "generation_config.json",
                    "tokenizer.json",
                    "tokenizer_config.json",
                    "special_tokens_map.json",
                    "added_tokens.json",
                    "vocab.json",
                    "vocab.txt",
                    "merges.txt",
                    "dict.txt",
                    "chat_template.jinja",
                    "chat_template.json",
                    "additional_chat_templates/tools.jinja",
                    "tokenizer.model",
                    "tokenizer.model.v3",
                    "spiece.model",
                    "source.spm",
                    "qwen.tiktoken",
                    "tekken.json",
                    "params.json",
                    "adapter_config.json",
                    "hf_quant_config.json",
                    "quantize_config.json",
                    "preprocessor_config.json",
                    "model_index.json",
                    "modules.json",
                    "1_Pooling/config.json",
                    "scheduler/scheduler_config.json",
                    "model.safetensors.index.json",
                    "kv_cache_scales.json",
                    "sentence_bert_config.json",
                    "language_model/attrs.json",
                    "emoji.json",
                    "word_shape.json",
                    "prophetnet.tokenizer",
                    "normalizer.json",
                    "bpe.codes",
                    "CONFIG.JSON",
                ],
            ),
            (
                None,
                &[
                    "README.md",
                    "LICENSE",
                    "notes.txt",
                    "eval_predictions.json",
                    "all_results.json",
                    "model.sig",
                    "weldment.intoto.json",
                    "images/loss.png",
                    "mergekit_config.yml",
                    "trainer_state.json",
                    "requirements.txt",
                    "report.html",
                ],
            ),
        ];
        for (role, names) in cases {
            for name in names {
                assert_eq!(role_of(name), role, "{name}");
            }
        }
        for (path, apart) in [
            (".git", true),
            (".git/objects/pack.bin", true),
            (".cache/huggingface/download/config.json.metadata", true),
            (".cache/other.py", false),
            ("sub/.git/x.py", false),
            (".gitx.py", false),
        ] {
            assert_eq!(is_apart(path), apart, "{path}");
        }
    }
}
