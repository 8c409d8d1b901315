//! Folders as people have them: left-overs of other saves, parts of a training run, downloads that stopped.

use std::fs;
use std::path::Path;

use super::super::fixtures::{safetensors, write};
use super::super::locate::Location;
use super::super::reader::Checkpoint;
use super::super::survey::Survey;

/// A file of a folder, and what it holds.
type File<'a> = (&'a str, &'a [u8]);

const INDEX: &str = "model.safetensors.index.json";
const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

fn folder(files: &[File]) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    for (name, bytes) in files {
        write(&folder.path().join(name), bytes);
    }
    folder
}

fn open(folder: &Path) -> Result<Checkpoint, String> {
    Checkpoint::open("m", &Location::local(folder)).map_err(|e| errors::in_one_line(&e))
}

#[track_caller]
fn refused(files: &[File], parts: &[&str]) {
    let folder = folder(files);
    let message = open(folder.path()).unwrap_err();
    for part in parts {
        let part = part.replace("FOLDER", &folder.path().display().to_string());
        assert!(message.contains(&part), "expected {part:?} in {message:?}");
    }
}

fn names(checkpoint: &Checkpoint) -> Vec<&str> {
    let tensors = checkpoint.tensors().iter();
    tensors.map(|tensor| tensor.name.as_str()).collect()
}

fn index(map: &[(&str, &str)]) -> Vec<u8> {
    let map: serde_json::Map<String, serde_json::Value> = map
        .iter()
        .map(|(tensor, file)| ((*tensor).to_owned(), (*file).into()))
        .collect();
    serde_json::json!({"weight_map": map}).to_string().into()
}

#[test]
fn a_single_file_is_read_before_an_index_as_transformers_does() {
    let (single, shard) = (
        safetensors(&[("new", "U8", &[1])]),
        safetensors(&[("old", "U8", &[1])]),
    );
    let name = "model-00001-of-00001.safetensors";
    // Whether the shards of the index are there or not, and whether it can be read.
    for (index, shards) in [
        (index(&[("old", name)]), 1),
        (index(&[("old", name)]), 0),
        (b"{".to_vec(), 0),
    ] {
        let shard: &[File] = &[(name, &shard)];
        let files = [
            &[("model.safetensors", &single[..]), (INDEX, &index)],
            &shard[..shards],
        ];
        let folder = folder(&files.concat());
        let found = open(folder.path()).unwrap();
        assert_eq!(names(&found), ["new"]);
        let note = "were not read: model.safetensors beside it is what transformers reads";
        assert!(found.notes()[0].contains(note), "{:?}", found.notes());
        let survey = Survey::open("m", &Location::local(folder.path())).unwrap();
        assert_eq!(survey.unread_index.as_deref(), Some(INDEX));
        assert!(survey.left_aside.is_empty());
    }
    // The same for pickles is `pytorch_model.bin`; an index that names the single file agrees with it.
    let files: [File; 2] = [
        ("model.safetensors", &single),
        (INDEX, &index(&[("new", "model.safetensors")])),
    ];
    assert!(open(folder(&files).path()).unwrap().notes().is_empty());
    // diffusers looks for the index first.
    let files: [File; 3] = [
        ("diffusion_pytorch_model.safetensors", &single),
        ("diffusion_pytorch_model-00001-of-00001.safetensors", &shard),
        (
            "diffusion_pytorch_model.safetensors.index.json",
            &index(&[("old", "diffusion_pytorch_model-00001-of-00001.safetensors")]),
        ),
    ];
    assert_eq!(names(&open(folder(&files).path()).unwrap()), ["old"]);
}

#[test]
fn a_stale_index_is_said_beside_weights_that_are_whole() {
    let a = safetensors(&[("a", "U8", &[1])]);
    let b = safetensors(&[("b", "U8", &[1])]);
    let stale = index(&[
        ("a", "model-00001-of-00003.safetensors"),
        ("b", "model-00003-of-00003.safetensors"),
    ]);
    let set: [File; 3] = [
        (INDEX, &stale),
        ("model-00001-of-00002.safetensors", &a),
        ("model-00002-of-00002.safetensors", &b),
    ];
    refused(
        &set,
        &[
            "shard model-00001-of-00003.safetensors is missing",
            "if the 2 shards from model-00001-of-00002.safetensors on are the model, remove model.safetensors.index.json;",
        ],
    );
    let left: [File; 1] = [("model-00001-of-00003.safetensors", &a)];
    refused(
        &[&set[..], &left].concat(),
        &[
            "remove model.safetensors.index.json and the shards that it names; otherwise copy or download it again",
        ],
    );
    refused(
        &[(INDEX, &stale), ("pytorch_model.bin", b"x")],
        &["if pytorch_model.bin is the model, remove model.safetensors.index.json"],
    );
    refused(
        &[(INDEX, &stale), ("ema.safetensors", &a)],
        &["if ema.safetensors is the model, remove"],
    );
    // Nothing is whole.
    refused(
        &[(INDEX, &stale), set[1]],
        &["hint: copy or download it again"],
    );
}

#[test]
fn an_index_that_leaves_out_shards_is_refused() {
    let a = safetensors(&[("a", "U8", &[1])]);
    let one = "model-00001-of-00005.safetensors";
    let five = index(&[("a", one)]);
    for more in [&[][..], &[("model-00002-of-00005.safetensors", &a[..])]] {
        refused(
            &[&[(INDEX, &five[..]), (one, &a)], more].concat(),
            &[
                "names 1 of the 5 shards of its set, and not model-00002-of-00005.safetensors, ",
                "fetch the index and all shards again",
            ],
        );
    }
    // Sets that count from zero, and sets beside a file of its own name, are whole.
    for (map, files) in [
        (
            [
                ("a", "model-00000-of-00002.safetensors"),
                ("b", "model-00001-of-00002.safetensors"),
            ],
            [
                "model-00000-of-00002.safetensors",
                "model-00001-of-00002.safetensors",
            ],
        ),
        (
            [
                ("a", "model-00001-of-00001.safetensors"),
                ("b", "mtp.safetensors"),
            ],
            ["model-00001-of-00001.safetensors", "mtp.safetensors"],
        ),
    ] {
        let b = safetensors(&[("b", "U8", &[1])]);
        let index = index(&map);
        let folder = folder(&[(INDEX, &index), (files[0], &a), (files[1], &b)]);
        assert_eq!(names(&open(folder.path()).unwrap()), ["a", "b"]);
    }
}

#[test]
fn of_copies_in_several_shards_the_index_says_which_is_meant() {
    let stale = safetensors(&[("a", "U8", &[1]), ("x", "U8", &[4])]);
    let overlay = safetensors(&[("x", "U8", &[2])]);
    let map = index(&[("a", "1.safetensors"), ("x", "overlay.safetensors")]);
    let folder = folder(&[
        ("1.safetensors", &stale),
        ("overlay.safetensors", &overlay),
        (INDEX, &map),
    ]);
    let found = open(folder.path()).unwrap();
    assert_eq!(names(&found), ["a", "x"]);
    let at = found.find("x").unwrap();
    assert_eq!(found.tensors()[at].shape, [2]);
    assert_eq!(found.bytes(at).unwrap(), [0, 1]);
    let note = "tensor `x` is in several shards; the one that the index names is read (overlay.safetensors, not 1.safetensors)";
    assert!(found.notes()[0].ends_with(note), "{:?}", found.notes());
    // Where the index names a third file, nothing says which is meant.
    let elsewhere = index(&[("a", "1.safetensors"), ("x", "3.safetensors")]);
    write(&folder.path().join(INDEX), &elsewhere);
    write(
        &folder.path().join("3.safetensors"),
        &safetensors(&[("y", "U8", &[1])]),
    );
    assert!(open(folder.path()).is_err());
}

#[test]
fn files_that_are_no_set_get_a_remedy_that_can_be_followed() {
    let a = safetensors(&[("a", "U8", &[1])]);
    let same = |names: [&'static str; 2]| names.map(|name| (name, &a[..]));
    for (files, part) in [
        (["a.safetensors", "b.safetensors"], "name the file itself"),
        (
            ["hf_model_0001_0.pt", "hf_model_0002_0.pt"],
            "if they are the parts of one, rename them to `model-00001-of-00002.pt` and so on",
        ),
        (
            ["consolidated.00.pth", "consolidated.01.pth"],
            "each of these files holds a slice of every tensor",
        ),
        (
            ["mp_rank_00_model_states.pt", "mp_rank_01_model_states.pt"],
            "python -m deepspeed.utils.zero_to_fp32",
        ),
        (
            [
                "m-00001-of-00001.safetensors",
                "n-00001-of-00001.safetensors",
            ],
            "leave only the model's own files in the folder",
        ),
    ] {
        refused(&same(files), &["not one set", part]);
    }
    // What the hint says works.
    let renamed = folder(&[
        ("model-00001-of-00002.safetensors", &a),
        (
            "model-00002-of-00002.safetensors",
            &safetensors(&[("b", "U8", &[1])]),
        ),
    ]);
    assert_eq!(names(&open(renamed.path()).unwrap()), ["a", "b"]);
}

#[test]
fn folders_of_training_runs_say_what_makes_weights_of_them() {
    let a = safetensors(&[("a", "U8", &[1])]);
    let cases: [(&[File], &str); 13] = [
        (
            &[("__0_0.distcp", b"x")],
            "lacks `.metadata` of a distributed checkpoint",
        ),
        (
            &[
                ("optimizer_0/__0_0.distcp", b"x"),
                ("pytorch_model_fsdp_0/__0_0.distcp", b"x"),
                ("optimizer.bin", b"x"),
                ("random_states_0.pkl", b"x"),
            ],
            "its folder `pytorch_model_fsdp_0` holds a distributed checkpoint",
        ),
        (
            &[
                (
                    "global_step500/zero_pp_rank_0_mp_rank_00_optim_states.pt",
                    b"x",
                ),
                ("latest", b"global_step500"),
            ],
            "python -m deepspeed.utils.zero_to_fp32 FOLDER OUT",
        ),
        (
            &[("zero_to_fp32.py", b"x"), ("scheduler.pt", b"x")],
            "python -m deepspeed.utils.zero_to_fp32 FOLDER OUT",
        ),
        (
            &[("bf16_zero_pp_rank_0_mp_rank_00_optim_states.pt", b"x")],
            "zero_to_fp32",
        ),
        (
            &[
                ("checkpoint-500/model.safetensors", &a),
                ("checkpoint-1000/model.safetensors", &a),
                ("runs/x", b"x"),
            ],
            "its folder `checkpoint-1000` holds weights: name that one",
        ),
        (
            &[
                ("epoch_2/hf_model_0001_2.pt", b"x"),
                ("epoch_10/hf_model_0001_10.pt", b"x"),
            ],
            "`epoch_10` holds weights",
        ),
        (
            &[("final/model-00001-of-00002.safetensors", &a)],
            "`final` holds weights",
        ),
        (
            &[
                ("latest_checkpointed_iteration.txt", b"1000"),
                ("iter_0001000/mp_rank_00/x", b"x"),
            ],
            "Megatron",
        ),
        (
            &[
                ("model_index.json", b"{}"),
                ("unet/diffusion_pytorch_model.safetensors", &a),
            ],
            "none of the components that model_index.json names",
        ),
        (
            &[("refs/main", b"x"), ("snapshots/x/model.safetensors", &a)],
            "name one of its `snapshots`",
        ),
        (
            &[
                ("checkpoint-9/adapter_model.safetensors", &a),
                ("checkpoint-10/adapter_model.safetensors", &a),
            ],
            "its folder `checkpoint-10` holds a LoRA adapter: write `model+FOLDER/checkpoint-10`",
        ),
        (
            &[("model.pkl", b"x")],
            "if torch.save wrote it, name the file itself",
        ),
    ];
    for (files, part) in cases {
        refused(files, &["no safetensors weights in FOLDER", part]);
    }
}

#[test]
fn a_folder_that_is_named_as_a_file_is_not_taken_for_one() {
    let a = safetensors(&[("a", "U8", &[1])]);
    let files: [File; 2] = [
        ("config.json", b"{}"),
        ("pytorch_model.bin/model.safetensors", &a),
    ];
    let part = "move the files in it up, beside config.json";
    refused(
        &files,
        &["expected a regular file", "pytorch_model.bin", part],
    );
    let folder = folder(&files);
    let inside = folder.path().join("pytorch_model.bin");
    assert!(open(&inside).unwrap_err().contains(part));
    // With a config of its own it is a model like any other.
    write(&inside.join("config.json"), b"{}");
    assert_eq!(names(&open(&inside).unwrap()), ["a"]);
}

/// A snapshot in a Hub cache, by its path.
fn snapshot(files: &[File]) -> (tempfile::TempDir, std::path::PathBuf) {
    let cache = tempfile::tempdir().unwrap();
    let snapshot = cache
        .path()
        .join("models--org--name/snapshots")
        .join(COMMIT);
    fs::create_dir_all(&snapshot).unwrap();
    for (name, bytes) in files {
        write(&snapshot.join(name), bytes);
    }
    (cache, snapshot)
}

#[test]
#[cfg(unix)]
fn links_whose_target_is_gone_get_the_download_command() {
    let a = safetensors(&[("a", "U8", &[1])]);
    let command = format!("run `hf download org/name --revision {COMMIT}`");
    for (there, gone) in [
        (&[][..], "model.safetensors"),
        (&[("model.safetensors", &a[..])], "config.json"),
        (
            &[("model-00001-of-00002.safetensors", &a[..])],
            "model-00002-of-00002.safetensors",
        ),
    ] {
        let (_cache, snapshot) = snapshot(there);
        std::os::unix::fs::symlink("../../blobs/gone", snapshot.join(gone)).unwrap();
        let message = open(&snapshot).unwrap_err();
        assert!(
            message.contains(&format!("{gone} is a link to a file that is not there")),
            "{message}"
        );
        assert!(message.contains(&command), "{message}");
    }
    let folder = folder(&[("model.safetensors", &a)]);
    std::os::unix::fs::symlink("nowhere", folder.path().join("config.json")).unwrap();
    assert!(
        open(folder.path())
            .unwrap_err()
            .contains("hint: copy or download it again")
    );
}

#[test]
fn a_download_that_stopped_is_told_by_the_hubs_list() {
    let a = safetensors(&[("a", "U8", &[1])]);
    let list = serde_json::json!({"format_version": 1, "files": {
        "config.json": {"size": 2, "blob_id": "x"},
        "tokenizer.json": {"size": 2, "blob_id": "x"},
        "README.md": {"size": 2, "blob_id": "x"},
        "model.safetensors": {"size": 9, "blob_id": "x", "lfs_sha256": "b".repeat(64), "lfs_size": a.len()},
    }});
    let (cache, snapshot) = snapshot(&[("model.safetensors", &a)]);
    let found = open(&snapshot).unwrap();
    assert_eq!(found.shards()[0].hub_sha256(), None);
    assert!(
        found.notes()[0].contains("the cache has no config.json of this model"),
        "{:?}",
        found.notes()
    );
    let tree = cache
        .path()
        .join(format!("models--org--name/trees/{COMMIT}.json"));
    write(&tree, list.to_string().as_bytes());
    let message = open(&snapshot).unwrap_err();
    assert!(
        message.contains("the Hub's list of its files has config.json, which is not there"),
        "{message}"
    );
    assert!(message.contains("hf download org/name"), "{message}");
    write(&snapshot.join("config.json"), b"{}");
    let found = open(&snapshot).unwrap();
    assert_eq!(found.notes().len(), 1);
    assert!(
        found.notes()[0].contains("tokenizer.json of the model's repository was not downloaded")
    );
    // A cache of copies in place of links has its hashes in the list.
    assert_eq!(found.shards()[0].hub_sha256(), Some("b".repeat(64)));
    write(&snapshot.join("tokenizer.json"), b"{}");
    assert!(open(&snapshot).unwrap().notes().is_empty());
    // What cannot be read, or is of another version, says nothing.
    for other in [
        "{",
        "[]",
        "{\"format_version\": 2, \"files\": {\"vocab.txt\": {}}}",
        "{\"format_version\": 1}",
    ] {
        write(&tree, other.as_bytes());
        let found = open(&snapshot).unwrap();
        assert!(found.notes().is_empty());
        assert_eq!(found.shards()[0].hub_sha256(), None);
    }
}
