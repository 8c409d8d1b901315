//! The files beside the weights that belong to a checkpoint: tokenizer, templates, processors, licences.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use super::bounded::read_bounded;
use super::config::ModelConfig;
use super::error::CheckpointError;
use super::folder::file_names;
use super::format::Format;
use super::home::file_in;
use super::json::{is_lfs_pointer, parse_json};
use super::limits::{MAX_SIDECAR_BYTES, MAX_TOKENIZER_BYTES};
use super::weight_names::other_format;

/// A file that is copied to a checkpoint made from this one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sidecar {
    /// Its path within the folder: plain names joined by `/`.
    pub name: String,
    /// Where it is.
    pub path: PathBuf,
    /// What it is for.
    pub kind: SidecarKind,
}

impl Sidecar {
    /// Whether it is only a Git LFS pointer.
    pub fn is_lfs_pointer(&self) -> bool {
        let mut head = Vec::new();
        let read = File::open(&self.path).and_then(|file| file.take(64).read_to_end(&mut head));
        read.is_ok() && is_lfs_pointer(&head)
    }

    /// Whether it holds weights of a module or a head besides the model.
    pub fn is_weights(&self) -> bool {
        Format::of(&self.name) == Format::Pickle || self.name.ends_with(".safetensors")
    }
}

/// What a sidecar file is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum SidecarKind {
    /// Vocabulary, merges, special tokens.
    Tokenizer,
    /// How a conversation is written as tokens.
    ChatTemplate,
    /// Defaults of generation.
    Generation,
    /// How images, sound and video become input.
    Processor,
    /// Python that the config's `auto_map` points to.
    Code,
    /// Licences and notices.
    Licence,
    /// Any other file, such as the modules of a sentence-transformers model.
    Other,
}

/// The folder where transformers keeps templates other than the default one.
const TEMPLATES_DIR: &str = "additional_chat_templates";

/// Sidecars by their full name.
const NAMES: [(&str, SidecarKind); 34] = [
    ("bpe.codes", SidecarKind::Tokenizer),
    ("dict.txt", SidecarKind::Tokenizer),
    ("encoder.json", SidecarKind::Tokenizer),
    ("entity_vocab.json", SidecarKind::Tokenizer),
    ("vocab-src.json", SidecarKind::Tokenizer),
    ("vocab-tgt.json", SidecarKind::Tokenizer),
    ("vocab.bpe", SidecarKind::Tokenizer),
    // Heads that embedding and reward models keep beside their weights.
    ("colbert_linear.pt", SidecarKind::Other),
    ("sparse_linear.pt", SidecarKind::Other),
    ("value_head.safetensors", SidecarKind::Other),
    ("added_tokens.json", SidecarKind::Tokenizer),
    ("merges.txt", SidecarKind::Tokenizer),
    ("normalizer.json", SidecarKind::Tokenizer),
    ("special_tokens_map.json", SidecarKind::Tokenizer),
    ("tekken.json", SidecarKind::Tokenizer),
    ("tokenizer.json", SidecarKind::Tokenizer),
    ("tokenizer_config.json", SidecarKind::Tokenizer),
    ("vocab.json", SidecarKind::Tokenizer),
    ("vocab.txt", SidecarKind::Tokenizer),
    ("chat_template.jinja", SidecarKind::ChatTemplate),
    ("chat_template.json", SidecarKind::ChatTemplate),
    ("generation_config.json", SidecarKind::Generation),
    ("audio_processor_config.json", SidecarKind::Processor),
    ("feature_extractor.json", SidecarKind::Processor),
    ("feature_extractor_config.json", SidecarKind::Processor),
    ("image_processor.json", SidecarKind::Processor),
    ("image_processor_config.json", SidecarKind::Processor),
    ("preprocessor_config.json", SidecarKind::Processor),
    ("processor_config.json", SidecarKind::Processor),
    ("video_preprocessor_config.json", SidecarKind::Processor),
    ("video_processor_config.json", SidecarKind::Processor),
    ("config_sentence_transformers.json", SidecarKind::Other),
    ("modules.json", SidecarKind::Other),
    ("sentence_bert_config.json", SidecarKind::Other),
];

/// Vocabularies by the ending of their name: sentencepiece (`spiece.model`, `source.spm`) and tiktoken.
const TOKENIZER_ENDS: [&str; 3] = [".model", ".spm", ".tiktoken"];

/// Legal files by the start of their name, in capitals.
const LEGAL_STARTS: [&str; 4] = ["LICENSE", "LICENCE", "NOTICE", "USE_POLICY"];

/// The bytes of a file beside the weights.
///
/// # Errors
/// It cannot be read, or is larger than any real one.
pub fn read_sidecar(path: &Path) -> Result<Vec<u8>, CheckpointError> {
    read_bounded(path, MAX_SIDECAR_BYTES, "file, in bytes")
}

/// The sidecars of a folder, in name order. Links are followed within the folder and to the blobs of the Hub's cache,
/// as its snapshots consist of them.
pub(super) fn find_sidecars(
    folder: &Path,
    config: Option<&ModelConfig>,
) -> Result<Vec<Sidecar>, CheckpointError> {
    let named = named(folder, config)?.into_iter();
    let found = named.filter_map(|(name, kind)| {
        let path = file_in(folder, &name).ok().flatten()?;
        Some(Sidecar { name, path, kind })
    });
    Ok(found.collect())
}

/// What has the name of a sidecar and cannot be read as a file of the folder, in name order.
pub(super) fn unreadable(
    folder: &Path,
    config: Option<&ModelConfig>,
) -> Result<Vec<(SidecarKind, CheckpointError)>, CheckpointError> {
    let named = named(folder, config)?.into_iter();
    // A folder that is called LICENSES or x.model is something else.
    let other = |name: &str| !is_known(name) && folder.join(name).is_dir();
    let found = named.filter_map(|(name, kind)| {
        let error = file_in(folder, &name).err()?;
        (!other(&name)).then_some((kind, error))
    });
    Ok(found.collect())
}

/// What has the name of a sidecar, in name order, whatever it is.
fn named(
    folder: &Path,
    config: Option<&ModelConfig>,
) -> Result<Vec<(String, SidecarKind)>, CheckpointError> {
    let names = file_names(folder)?;
    let has_code = config.is_some_and(|config| config.get("auto_map").is_some())
        || names.iter().any(|name| names_code(folder, name));
    let mut found = Vec::new();
    let mut add = |name: String, kind| found.push((name, kind));
    for name in names {
        if let Some(kind) = kind_of(&name, has_code) {
            add(name, kind);
        } else if name == TEMPLATES_DIR && folder.join(&name).is_dir() {
            for template in file_names(&folder.join(&name))? {
                if template.ends_with(".jinja") {
                    add(format!("{name}/{template}"), SidecarKind::ChatTemplate);
                }
            }
        } else if is_module_dir(&name) {
            for file in file_names(&folder.join(&name))? {
                add(format!("{name}/{file}"), SidecarKind::Other);
            }
        } else if has_code && !name.starts_with('.') && folder.join(&name).is_dir() {
            // A package that the code imports.
            for file in file_names(&folder.join(&name))? {
                if file.ends_with(".py") {
                    add(format!("{name}/{file}"), SidecarKind::Code);
                }
            }
        }
    }
    found.sort_by(|(a, _), (b, _)| a.cmp(b));
    Ok(found)
}

/// Whether a sidecar is known by its full name.
fn is_known(name: &str) -> bool {
    NAMES.iter().any(|(known, _)| *known == name)
}

/// Whether a file of that name is carried to an output, whatever it holds.
pub(super) fn is_carried(name: &str) -> bool {
    kind_of(name, false).is_some_and(|kind| kind != SidecarKind::Licence)
}

fn kind_of(name: &str, has_code: bool) -> Option<SidecarKind> {
    if let Some((_, kind)) = NAMES.iter().find(|(known, _)| *known == name) {
        return Some(*kind);
    }
    let weights = Format::of(name) == Format::Pickle || name.ends_with(".safetensors");
    if weights || other_format(name).is_some() {
        return None;
    }
    let upper = name.to_ascii_uppercase();
    if LEGAL_STARTS.iter().any(|start| upper.starts_with(start)) {
        return Some(SidecarKind::Licence);
    }
    if TOKENIZER_ENDS.iter().any(|end| name.ends_with(end)) || name.starts_with("tokenizer.model") {
        return Some(SidecarKind::Tokenizer);
    }
    (has_code && name.ends_with(".py")).then_some(SidecarKind::Code)
}

/// Whether a config beside the weights, such as that of a tokenizer or a processor, points to Python files.
fn names_code(folder: &Path, name: &str) -> bool {
    let is_config = NAMES
        .iter()
        .any(|(known, _)| *known == name && name.ends_with("_config.json"));
    let read = || {
        let path = file_in(folder, name).ok().flatten()?;
        read_bounded(&path, MAX_TOKENIZER_BYTES, "settings, in bytes").ok()
    };
    let code =
        |bytes: Vec<u8>| parse_json(&bytes).is_ok_and(|config| config.get("auto_map").is_some());
    is_config && read().is_some_and(code)
}

/// `1_Pooling`: a module of a sentence-transformers model. `0_Transformer` is the model itself.
fn is_module_dir(name: &str) -> bool {
    name.split_once('_').is_some_and(|(number, rest)| {
        !number.is_empty()
            && number.bytes().all(|b| b.is_ascii_digit())
            && !rest.is_empty()
            && rest != "Transformer"
    })
}

#[cfg(test)]
mod tests {
    use super::super::fixtures::write;
    use super::*;

    fn names(files: &[&str], config: &str) -> Vec<String> {
        let folder = tempfile::tempdir().unwrap();
        for file in files {
            write(&folder.path().join(file), b"{}");
        }
        write(&folder.path().join("config.json"), config.as_bytes());
        let config = ModelConfig::read(folder.path()).unwrap();
        let sidecars = find_sidecars(folder.path(), config.as_ref()).unwrap();
        sidecars.into_iter().map(|sidecar| sidecar.name).collect()
    }

    #[test]
    fn what_belongs_to_the_checkpoint_is_carried_and_nothing_else() {
        let carried = [
            "1_Pooling/config.json",
            "2_Dense/config.json",
            "2_Dense/model.safetensors",
            "LICENSE.md",
            "NOTICE",
            "additional_chat_templates/tool.jinja",
            "bpe.codes",
            "chat_template.jinja",
            "colbert_linear.pt",
            "generation_config.json",
            "modules.json",
            "preprocessor_config.json",
            "qwen.tiktoken",
            "sentencepiece.bpe.model",
            "tokenizer.json",
            "tokenizer.model.v3",
        ];
        let left = [
            "0_Transformer/pytorch_model.bin",
            "README.md",
            "model.safetensors",
            "model.safetensors.index.json",
            "training_args.bin",
            "optimizer.pt",
            "rng_state_0.pth",
            "trainer_state.json",
            "modeling_x.py",
            "additional_chat_templates/x.py",
            "tokenizer_config.json/x",
            "LICENSE.bin",
            "original/tokenizer.model",
        ];
        let all = [carried.as_slice(), &left].concat();
        assert_eq!(names(&all, "{}"), carried);
        let code = names(
            &["modeling_x.py"],
            r#"{"auto_map": {"AutoModel": "modeling_x.X"}}"#,
        );
        assert_eq!(code, ["modeling_x.py"]);
    }

    #[test]
    fn code_that_a_tokenizers_config_names_is_carried_with_its_packages() {
        let folder = tempfile::tempdir().unwrap();
        let map = br#"{"auto_map": {"AutoTokenizer": ["tokenization_x.T", null]}}"#;
        write(&folder.path().join("tokenizer_config.json"), map);
        for file in [
            "tokenization_x.py",
            "parts/bpe.py",
            "parts/notes.txt",
            ".git/hook.py",
        ] {
            write(&folder.path().join(file), b"pass");
        }
        let sidecars = find_sidecars(folder.path(), None).unwrap();
        let names: Vec<&str> = sidecars.iter().map(|file| file.name.as_str()).collect();
        assert_eq!(
            names,
            ["parts/bpe.py", "tokenization_x.py", "tokenizer_config.json"]
        );
    }

    #[test]
    #[cfg(unix)]
    fn links_are_followed_within_the_folder_and_what_is_not_read_is_said() {
        let around = tempfile::tempdir().unwrap();
        let folder = around.path().join("model");
        let link = |target: &str, name: &str| {
            std::os::unix::fs::symlink(target, folder.join(name)).unwrap();
        };
        write(&around.path().join("secret"), b"x");
        write(&folder.join("blobs/1"), b"x");
        write(&folder.join("LICENSES/MIT"), b"x");
        link("blobs/1", "tokenizer.json");
        link("blobs/gone", "vocab.json");
        link("blobs", "merges.txt");
        link("/dev/null", "vocab.txt");
        link("../secret", "LICENSE");
        let sidecars = find_sidecars(&folder, None).unwrap();
        assert_eq!(sidecars.len(), 1);
        assert_eq!(sidecars[0].name, "tokenizer.json");
        assert_eq!(sidecars[0].kind, SidecarKind::Tokenizer);
        let problems = unreadable(&folder, None).unwrap();
        let messages: Vec<String> = problems
            .iter()
            .map(|(_, error)| error.to_string())
            .collect();
        let expected = [
            ("LICENSE", "a link out of the model's folder"),
            ("merges.txt", "a folder"),
            ("vocab.json", "a link to nothing"),
            ("vocab.txt", "a link out of the model's folder"),
        ];
        assert_eq!(messages.len(), expected.len(), "{messages:?}");
        for (message, (name, what)) in messages.iter().zip(expected) {
            assert!(
                message.contains(name) && message.contains(what),
                "{message}"
            );
        }
    }

    /// A snapshot's files are links to blobs beside the snapshots, at any depth; blobs that are a link are not trusted.
    #[test]
    #[cfg(unix)]
    fn blobs_of_the_hubs_cache_belong_to_its_snapshots() {
        let cache = tempfile::tempdir().unwrap();
        let repo = cache.path().join("models--org--name");
        let snapshot = repo.join("snapshots/0123");
        let link = |target: &str, at: &Path| {
            std::fs::create_dir_all(at.parent().unwrap()).unwrap();
            std::os::unix::fs::symlink(target, at).unwrap();
        };
        write(&repo.join("blobs/1"), b"{}");
        link("../../blobs/1", &snapshot.join("tokenizer.json"));
        link("../../blobs/gone", &snapshot.join("vocab.json"));
        link(
            "../../../blobs/1",
            &snapshot.join("text_encoder/vocab.json"),
        );
        assert_eq!(find_sidecars(&snapshot, None).unwrap().len(), 1);
        assert_eq!(
            find_sidecars(&snapshot.join("text_encoder"), None)
                .unwrap()
                .len(),
            1
        );
        let problems = unreadable(&snapshot, None).unwrap();
        let message = errors::in_one_line(&problems[0].1);
        assert!(
            message.contains("hf download org/name --revision 0123"),
            "{message}"
        );
        std::fs::rename(repo.join("blobs"), cache.path().join("elsewhere")).unwrap();
        link("../elsewhere", &repo.join("blobs"));
        assert_eq!(find_sidecars(&snapshot, None).unwrap(), []);
    }
}
