//! Defects in files: weights, index, config.json, tokenizer, and other files of the folder.

use std::fs;
use std::sync::Arc;

use serde_json::{Value, json};

use super::draft::{CONFIG, Draft, INDEX};
use super::{Defect, Obstacle};
use crate::check::{config, container, lock, safety, tokenizer};
use checkpoint::{AddedToken, Dtype};
use run::LOCK_FILE;

type Planted = Result<String, Obstacle>;

/// A tokenizer without tokens.
const NO_TOKENS: &str = r#"{"model": {"type": "BPE", "vocab": {}, "merges": []}}"#;

/// A name that no checkpoint uses.
const UNHEARD_OF: &str = "weldment_unheard_of";

/// The digest of nothing that a checkpoint holds.
const OTHER_DIGEST: &str = "0000000000000000000000000000000000000000000000000000000000000000";

pub(super) static DEFECTS: &[Defect] = &[
    Defect::new("bytes cut off the end", &container::TRUNCATED, |draft| {
        let [_, last] = draft.shards()?;
        draft.edit_bytes(last, |bytes| bytes.truncate(bytes.len() - 1))?;
        Ok(last.to_owned())
    }),
    Defect::new("bytes after the end", &container::TRAILING, |draft| {
        let [_, last] = draft.shards()?;
        draft.edit_bytes(last, |bytes| bytes.extend([0; 8]))?;
        Ok(last.to_owned())
    }),
    Defect::new(
        "two tensors over each other",
        &container::OVERLAP,
        |draft| move_last(draft, [-1, -1]),
    ),
    Defect::new("a hole between tensors", &container::HOLE, |draft| {
        move_last(draft, [1, 1])
    }),
    Defect::new("too few bytes for a shape", &container::SIZE, |draft| {
        move_last(draft, [0, -1])
    }),
    Defect::new("a header that is no JSON", &container::HEADER, |draft| {
        let [first, _] = draft.shards()?;
        draft.edit_header(first, |header| header.replacen('{', "[", 1))?;
        Ok(first.to_owned())
    }),
    Defect::new("a control character in a name", &container::NAME, |draft| {
        let [first, _] = draft.shards()?;
        let name = first_name(draft, first)?;
        rename(draft, first, &name, "\\u0007")?;
        Ok(name)
    }),
    Defect::new(
        "a tensor twice in a header",
        &container::DUPLICATE_KEY,
        |draft| {
            let [first, last] = draft.shards()?;
            for shard in [first, last] {
                if let [one, other, ..] = &draft.tensors_of(shard)[..] {
                    rename(draft, shard, &one.name, &other.name)?;
                    return Ok(other.name.clone());
                }
            }
            Err(Obstacle::model("no shard has two tensors"))
        },
    ),
    Defect::new(
        "safetensors named as a pickle",
        &container::PICKLE,
        |draft| {
            let [first, _] = draft.shards()?;
            let bytes = fs::read(draft.path(first))?;
            draft.remove_weights()?;
            draft.put("pytorch_model.bin", bytes)?;
            Ok("pytorch_model.bin".to_owned())
        },
    )
    .with(&[&safety::UNREAD]),
    Defect::new(
        "a pointer of Git LFS in place of a shard",
        &container::STAND_IN,
        |draft| {
            let [_, last] = draft.shards()?;
            draft.put(
                last,
                "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n",
            )?;
            Ok(last.to_owned())
        },
    ),
    Defect::new(
        "a folder by the name of a shard",
        &container::NOT_A_FILE,
        |draft| {
            let [_, last] = draft.shards()?;
            draft.remove(last)?;
            fs::create_dir(draft.path(last))?;
            Ok(last.to_owned())
        },
    ),
    Defect::new("no tensors", &container::NO_TENSORS, |draft| {
        draft.remove_weights()?;
        draft.put("model.safetensors", b"\x08\0\0\0\0\0\0\0{}      ")?;
        Ok("model.safetensors".to_owned())
    }),
    Defect::new("an index of 1 TB", &container::TOO_LARGE, |draft| {
        draft.shards()?;
        fs::File::create(draft.path(INDEX))?.set_len(1 << 40)?;
        Ok(INDEX.to_owned())
    }),
    Defect::new(
        "a shard and the index lost",
        &container::INCOMPLETE,
        |draft| {
            let [_, last] = draft.shards()?;
            draft.remove(INDEX)?;
            draft.remove(last)?;
            Ok(last.to_owned())
        },
    ),
    Defect::new(
        "shards of several names without an index",
        &container::AMBIGUOUS,
        |draft| {
            let [_, last] = draft.shards()?;
            draft.remove(INDEX)?;
            fs::rename(draft.path(last), draft.path("other.safetensors"))?;
            Ok("other.safetensors".to_owned())
        },
    )
    .with(&[&container::ORPHAN]),
    Defect::new(
        "an index that is no JSON",
        &container::INDEX_MALFORMED,
        |draft| {
            draft.shards()?;
            draft.put(INDEX, "{")?;
            Ok(INDEX.to_owned())
        },
    ),
    Defect::new("a shard lost", &container::INDEX_SHARD, |draft| {
        let [_, last] = draft.shards()?;
        draft.remove(last)?;
        Ok(last.to_owned())
    }),
    Defect::new(
        "an index that leads out of the folder",
        &container::INDEX_FILE_NAME,
        |draft| {
            let [_, last] = draft.shards()?;
            let name = first_name(draft, last)?;
            edit_index(draft, |map| map[&name] = json!("../outside.safetensors"))?;
            Ok(format!("{INDEX}: {name}"))
        },
    ),
    Defect::new(
        "a shard left out of the index",
        &container::SHARDS_NOT_NAMED,
        |draft| {
            let [_, last] = draft.shards()?;
            edit_index(draft, |map| {
                if let Some(map) = map.as_object_mut() {
                    map.retain(|_, shard| shard != last);
                }
            })?;
            Ok(INDEX.to_owned())
        },
    )
    .with(&[&container::ORPHAN]),
    Defect::new(
        "a tensor indexed in another shard",
        &container::NOT_IN_SHARD,
        |draft| {
            let (name, other) = indexed(draft)?;
            edit_index(draft, |map| map[&name] = json!(other))?;
            Ok(format!("{INDEX}: {name}"))
        },
    ),
    Defect::new(
        "a tensor left out of the index",
        &container::UNINDEXED,
        |draft| {
            let (name, _) = indexed(draft)?;
            edit_index(draft, |map| {
                map.as_object_mut().and_then(|map| map.remove(&name));
            })?;
            Ok(format!("{INDEX}: {name}"))
        },
    ),
    Defect::new("a tensor in two shards", &container::DUPLICATE, |draft| {
        let [first, last] = draft.shards()?;
        let tensors = draft.tensors_of(first);
        let copied = tensors.first().copied();
        let copied = copied.ok_or_else(|| Obstacle::model("its first shard is empty"))?;
        draft.edit_header(last, |header| {
            let mut header: Value = serde_json::from_str(header).unwrap_or_default();
            let ends = header.as_object().into_iter().flatten();
            let end = ends
                .filter_map(|(_, entry)| entry["data_offsets"][1].as_u64())
                .max();
            let end = end.unwrap_or(0);
            let mut entry = json!({"dtype": copied.dtype.to_string(), "shape": copied.shape});
            entry["data_offsets"] = json!([end, end + copied.bytes.len() as u64]);
            header[&copied.name] = entry;
            header.to_string()
        })?;
        draft.edit_bytes(last, |bytes| bytes.extend_from_slice(&copied.bytes))?;
        Ok(copied.name.clone())
    }),
    Defect::new(
        "another total size in the index",
        &container::TOTAL_SIZE,
        |draft| {
            draft.shards()?;
            let mut index = index(draft)?;
            index["metadata"]["total_size"] = json!(7);
            draft.put(INDEX, index.to_string())?;
            Ok(format!("{INDEX}: metadata.total_size"))
        },
    ),
    Defect::new("a shard of another set", &container::ORPHAN, |draft| {
        let [first, _] = draft.shards()?;
        let name = "model-00003-of-00009.safetensors";
        fs::copy(draft.path(first), draft.path(name))?;
        Ok(name.to_owned())
    }),
    Defect::new(
        "a whole file beside the shards",
        &container::STALE,
        |draft| {
            draft.shards()?;
            let name = "model.safetensors";
            draft.put(name, draft.original.whole_file()?)?;
            Ok(name.to_owned())
        },
    ),
    Defect::new("the index lost", &container::NO_INDEX, |draft| {
        draft.shards()?;
        draft.remove(INDEX)?;
        Ok(INDEX.to_owned())
    }),
    Defect::new(
        "an adapter beside the weights",
        &container::ADAPTER,
        |draft| {
            let [first, _] = draft.shards()?;
            let name = "adapter_config.json";
            draft.put(name, r#"{"peft_type": "LORA"}"#)?;
            fs::copy(draft.path(first), draft.path("adapter_model.safetensors"))?;
            Ok(name.to_owned())
        },
    ),
    Defect::new(
        "a tensor that the lock has otherwise",
        &lock::TENSOR,
        |draft| {
            let name = first_tensor(draft)?;
            put_lock(draft, |outputs| {
                outputs["tensors"][&name] = json!(OTHER_DIGEST)
            })?;
            Ok(name)
        },
    ),
    Defect::new("a file that the lock has otherwise", &lock::FILE, |draft| {
        let name = "NOTICE";
        draft.put(name, "weldment")?;
        put_lock(draft, |outputs| {
            outputs["files"][name] = json!(OTHER_DIGEST)
        })?;
        Ok(name.to_owned())
    }),
    Defect::new("a tensor that the lock lacks", &lock::INCOMPLETE, |draft| {
        let name = first_tensor(draft)?;
        put_lock(draft, |outputs| {
            outputs["tensors"]
                .as_object_mut()
                .and_then(|tensors| tensors.remove(&name));
        })?;
        Ok(format!("{LOCK_FILE}: {name}"))
    }),
    Defect::new("a lock that is no JSON", &lock::MALFORMED, |draft| {
        draft.put(LOCK_FILE, "{")?;
        Ok(LOCK_FILE.to_owned())
    }),
    Defect::new("a config that is no JSON", &config::MALFORMED, |draft| {
        draft.put(CONFIG, "{")?;
        Ok(CONFIG.to_owned())
    }),
    Defect::new("no config", &config::MISSING, |draft| {
        if draft.original.config.is_null() {
            return Err(Obstacle::model("it has none"));
        }
        draft.remove(CONFIG)?;
        Ok(CONFIG.to_owned())
    }),
    Defect::new("another dtype in the config", &config::DTYPE, |draft| {
        let field = ["dtype", "torch_dtype"];
        let field = field
            .iter()
            .find(|field| draft.original.config.get(**field).is_some());
        let stored = draft
            .original
            .tensors
            .iter()
            .map(|tensor| tensor.dtype.to_string());
        let other = match stored.filter(|dtype| dtype == "F16").count() {
            0 => "float16",
            _ => "float64",
        };
        draft.set_config(field.unwrap_or(&"dtype"), json!(other))
    }),
    Defect::new(
        "the settings of a quantisation left",
        &config::QUANTISATION,
        |draft| draft.set_config("quantization_config", json!({"quant_method": "gptq"})),
    ),
    Defect::new(
        "a scale that is for no weight",
        &container::CODES,
        |draft| {
            let role = draft.original.roles.values().flatten().next();
            let &(_, at) = role.ok_or_else(|| Obstacle::model("it has no layers"))?;
            let name = format!("{}_scale_inv", draft.original.tensors[at].name);
            draft.rewrite(|tensors| {
                let elements: usize = tensors[at].shape.iter().product();
                let mut scales = tensors[at].clone();
                scales.name.clone_from(&name);
                scales.dtype = Dtype::F32;
                scales.shape = vec![3, 1, 1, 1];
                scales.bytes = Arc::new(vec![0; 12]);
                tensors[at].dtype = Dtype::F8_E4M3;
                tensors[at].bytes = Arc::new(vec![0x38; elements]);
                tensors.push(scales);
                Ok(())
            })?;
            Ok(name)
        },
    )
    .with(&[&config::QUANTISED]),
    Defect::new("packed weights", &config::QUANTISED, |draft| {
        let role = draft.original.roles.values().flatten().next();
        let &(_, at) = role.ok_or_else(|| Obstacle::model("it has no layers"))?;
        let name = format!("{}.qweight", draft.original.tensors[at].name);
        draft.rewrite(|tensors| {
            let mut packed = tensors[at].clone();
            packed.name.clone_from(&name);
            tensors.push(packed);
            Ok(())
        })?;
        Ok(name)
    }),
    Defect::new(
        "a tokenizer that is no JSON",
        &tokenizer::MALFORMED,
        |draft| {
            draft.put("tokenizer.json", "{")?;
            Ok("tokenizer.json".to_owned())
        },
    ),
    Defect::new(
        "a chat template that is no Jinja",
        &tokenizer::TEMPLATE,
        |draft| {
            draft.put("chat_template.jinja", "{% if %}")?;
            Ok("chat_template.jinja".to_owned())
        },
    ),
    Defect::new("a second chat template", &tokenizer::TEMPLATES, |draft| {
        let name = "tokenizer_config.json";
        let text = fs::read(draft.path(name)).unwrap_or_default();
        let mut settings: Value = serde_json::from_slice(&text).unwrap_or_else(|_| json!({}));
        settings["chat_template"] = json!("{{ messages }}");
        draft.put(name, settings.to_string())?;
        draft.put("chat_template.jinja", "{{ messages[0] }}")?;
        Ok(format!("{name}: chat_template"))
    }),
    Defect::new("a token without a row", &tokenizer::NO_ROW, |draft| {
        // Two more than the rows: a single one may be a padding token.
        let end = draft.original.rows()? + 2;
        let text = match draft.tokenizer()? {
            None => {
                let vocabulary = json!({"a": end - 2, "b": end - 1});
                json!({"model": {"type": "BPE", "vocab": vocabulary, "merges": []}}).to_string()
            }
            Some(mut tokenizer) => {
                while tokenizer.end() < end {
                    let text = format!("<{UNHEARD_OF}-{}>", tokenizer.end());
                    let added = tokenizer.add(AddedToken::ordinary(text));
                    added.map_err(Obstacle::Model)?;
                }
                tokenizer.to_json()
            }
        };
        draft.put("tokenizer.json", text)?;
        Ok("tokenizer.json".to_owned())
    }),
    Defect::new(
        "a special token of no vocabulary",
        &tokenizer::UNKNOWN,
        |draft| {
            let file = "special_tokens_map.json";
            if !draft.has("tokenizer.json") {
                draft.put("tokenizer.json", NO_TOKENS)?;
            }
            draft.edit_json(file, |entries| {
                entries.insert("mask_token".to_owned(), json!(format!("<{UNHEARD_OF}>")));
            })?;
            Ok(format!("{file}: mask_token"))
        },
    ),
    Defect::new(
        "a pointer of Git LFS in place of a vocabulary",
        &container::STAND_IN,
        |draft| {
            let name = "vocab-src.json";
            draft.put(
                name,
                "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n",
            )?;
            Ok(name.to_owned())
        },
    ),
    Defect::new(
        "a malformed config of a processor",
        &config::MALFORMED,
        |draft| {
            let name = "video_processor_config.json";
            draft.put(name, "{")?;
            Ok(name.to_owned())
        },
    ),
    Defect::new("a malformed vocabulary", &tokenizer::MALFORMED, |draft| {
        let name = "vocab-tgt.json";
        draft.put(name, "{")?;
        Ok(name.to_owned())
    }),
    Defect::new(
        "a folder in the place of a vocabulary",
        &container::SIDE_FILE,
        |draft| {
            let name = "vocab-src.json";
            draft.put(&format!("{name}/file"), b"")?;
            Ok(name.to_owned())
        },
    ),
    Defect::new(
        "a download that is not finished",
        &container::UNFINISHED,
        |draft| {
            let name = "model.safetensors.aria2";
            draft.put(name, b"\0")?;
            Ok(name.to_owned())
        },
    ),
    Defect::new(
        "a special token without a row",
        &tokenizer::SPECIAL,
        |draft| {
            let rows = draft.original.rows()?;
            let field = "bos_token_id";
            if draft.has("generation_config.json") {
                draft.edit_json("generation_config.json", |entries| {
                    drop(entries.remove(field))
                })?;
            }
            for file in ["tokenizer_config.json", "special_tokens_map.json"] {
                if draft.has(file) {
                    draft.edit_json(file, |entries| drop(entries.remove("bos_token")))?;
                }
            }
            draft.set_config(field, json!(rows + 1))
        },
    ),
    Defect::new(
        "an end of turn that is no stop token",
        &tokenizer::TURN_END,
        |draft| {
            if draft.original.rows()? < 3 {
                return Err(Obstacle::model("it has too few tokens"));
            }
            let token = json!({"id": 1, "content": "<|im_end|>", "special": true});
            let text = json!({"model": {"type": "BPE", "vocab": {"a": 0}, "merges": []}, "added_tokens": [token]});
            draft.put("tokenizer.json", text.to_string())?;
            draft.put("chat_template.jinja", "{{ messages[0].content }}<|im_end|>")?;
            for file in ["tokenizer_config.json", "special_tokens_map.json"] {
                if draft.has(file) {
                    draft.remove(file)?;
                }
            }
            draft.edit_json("generation_config.json", |entries| {
                entries.insert("eos_token_id".to_owned(), json!(0));
            })?;
            draft.set_config("eos_token_id", json!(0))
        },
    ),
    Defect::new("code that is not there", &config::NAMED, |draft| {
        let map = json!({"AutoTokenizer": ["tokenization_x.X", null]});
        draft.edit_json("processor_config.json", |entries| {
            entries.insert("auto_map".to_owned(), map);
        })?;
        Ok("processor_config.json: auto_map".to_owned())
    })
    .with(&[&safety::CODE]),
    Defect::new(
        "two ids of one special token",
        &tokenizer::DISAGREE,
        |draft| {
            if draft.original.rows()? < 3 {
                return Err(Obstacle::model("it has too few tokens"));
            }
            for file in ["tokenizer_config.json", "special_tokens_map.json"] {
                if draft.has(file) {
                    draft.edit_json(file, |entries| drop(entries.remove("eos_token")))?;
                }
            }
            draft.edit_json("generation_config.json", |entries| {
                entries.insert("eos_token_id".to_owned(), json!(0));
            })?;
            draft.set_config("eos_token_id", json!(1))
        },
    ),
    Defect::new(
        "a pickle that starts a program",
        &safety::DANGEROUS,
        |draft| pickle(draft, b"\x80\x02cos\nsystem\nX\x02\x00\x00\x00ls\x85R."),
    ),
    Defect::new("a harmless pickle", &safety::PICKLE, |draft| {
        pickle(draft, b"\x80\x02ccollections\nOrderedDict\n)R.")
    }),
    Defect::new("a compressed pickle", &safety::UNREAD, |draft| {
        let name = "sub/model.joblib";
        draft.put(name, b"\x78\x9c\x4b\x04\x00\x00\x62\x00\x62")?;
        Ok(name.to_owned())
    }),
    Defect::new("folders in folders", &safety::LEFT_OUT, |draft| {
        let name = "a/".repeat(9);
        fs::create_dir_all(draft.path(&name))?;
        Ok(name)
    }),
    Defect::new(
        "code that is loaded with the model",
        &safety::CODE,
        |draft| draft.set_config("auto_map", json!({"AutoModel": "org/code--modeling_x.X"})),
    ),
    Defect::new("a link out of the folder", &safety::LINK, |draft| {
        let name = "notes.json";
        link(&draft.path("../outside.json"), &draft.path(name))?;
        Ok(name.to_owned())
    }),
];

fn link(to: &std::path::Path, at: &std::path::Path) -> Result<(), Obstacle> {
    fs::write(to, "{}")?;
    Ok(std::os::unix::fs::symlink(to, at)?)
}

fn pickle(draft: &Draft<'_>, bytes: &[u8]) -> Planted {
    let name = "training_args.bin";
    draft.put(name, bytes)?;
    Ok(name.to_owned())
}

fn first_name(draft: &Draft<'_>, shard: &str) -> Result<String, Obstacle> {
    let tensors = draft.tensors_of(shard);
    let first = tensors.first().map(|tensor| tensor.name.clone());
    first.ok_or_else(|| Obstacle::model("its shard is empty"))
}

/// A tensor whose shard holds others too, and the name of another shard.
fn indexed(draft: &Draft<'_>) -> Result<(String, String), Obstacle> {
    let [first, last] = draft.shards()?;
    for (shard, other) in [(last, first), (first, last)] {
        if let [one, _, ..] = &draft.tensors_of(shard)[..] {
            return Ok((one.name.clone(), other.to_owned()));
        }
    }
    Err(Obstacle::model("no shard has two tensors"))
}

/// Renames a tensor in the header of its shard; `other` is the new name, escaped for JSON.
fn rename(draft: &Draft<'_>, shard: &str, name: &str, other: &str) -> Result<(), Obstacle> {
    draft.edit_header(shard, |header| {
        header.replacen(&format!("\"{name}\""), &format!("\"{other}\""), 1)
    })
}

/// Moves the start and the end of a shard's last tensor by this many of its elements.
fn move_last(draft: &Draft<'_>, by: [i64; 2]) -> Planted {
    let [first, _] = draft.shards()?;
    let tensors = draft.tensors_of(first);
    let [_, .., last] = &tensors[..] else {
        return Err(Obstacle::model("its first shard has one tensor"));
    };
    draft.edit_header(first, |header| {
        let mut header: Value = serde_json::from_str(header).unwrap_or_default();
        let offsets = &mut header[&last.name]["data_offsets"];
        for (at, by) in by.into_iter().enumerate() {
            let moved = offsets[at].as_i64().unwrap_or(0) + by * last.size() as i64;
            offsets[at] = json!(moved);
        }
        header.to_string()
    })?;
    Ok(last.name.clone())
}

fn index(draft: &Draft<'_>) -> Result<Value, Obstacle> {
    let bytes = fs::read(draft.path(INDEX))?;
    Ok(serde_json::from_slice(&bytes).unwrap_or_default())
}

fn edit_index(draft: &Draft<'_>, edit: impl FnOnce(&mut Value)) -> Result<(), Obstacle> {
    let mut index = index(draft)?;
    edit(&mut index["weight_map"]);
    Ok(draft.put(INDEX, index.to_string())?)
}

/// The name of the first tensor.
fn first_tensor(draft: &Draft<'_>) -> Planted {
    let first = draft.original.tensors.first();
    let first = first.ok_or_else(|| Obstacle::model("it has no tensors"))?;
    Ok(first.name.clone())
}

/// Writes the lock of the copy, with changed `outputs`.
fn put_lock(draft: &Draft<'_>, change: impl FnOnce(&mut Value)) -> Result<(), Obstacle> {
    let tensors = draft.original.tensors.iter();
    let digest = |bytes: &[u8]| blake3::hash(bytes).to_string();
    let tensors: serde_json::Map<String, Value> = tensors
        .map(|tensor| (tensor.name.clone(), digest(&tensor.bytes).into()))
        .collect();
    let mut lock = json!({
        "format": "weldment-lock/1",
        "tool": {"name": "weldment", "version": "0", "numerics": 0},
        "command": "merge",
        "recipe": "",
        "options": {
            "seed": 0, "shard_size": 1, "tokenizer_from": null, "allow_nonfinite": false, "saturate": false
        },
        "inputs": [],
        "outputs": {"files": {}, "tensors": tensors},
    });
    change(&mut lock["outputs"]);
    draft.put(LOCK_FILE, lock.to_string())?;
    Ok(())
}
