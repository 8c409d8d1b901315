//! What lies in a model's folder and is no file of it: links out, links to nothing, pipes, unfinished downloads.

use std::fs;
use std::os::unix::fs::symlink;

use safetensors::Dtype;

use crate::fixtures::{Bench, llama};

const LINEAR: &str =
    "merge_method: linear\nmodels: [{model: a}, {model: b}]\nparameters: {weight: 0.5}\n";

fn bench() -> Bench {
    let bench = Bench::new();
    bench.llama("a", 1, Dtype::F32);
    bench.llama("b", 2, Dtype::F32);
    bench.file("secret", r#"{"auths": {"registry": "token"}}"#);
    bench
}

fn pipe(bench: &Bench, name: &str) {
    let made = std::process::Command::new("mkfifo")
        .arg(bench.path(name))
        .status();
    assert!(made.unwrap().success());
}

#[test]
fn links_out_of_the_folder_are_not_followed() {
    for name in [
        "LICENSE",
        "vocab.txt",
        "generation_config.json",
        "tokenizer_config.json",
        "chat_template.jinja",
        "additional_chat_templates/tool.jinja",
        "1_Pooling/config.json",
    ] {
        let bench = bench();
        let link = bench.path(&format!("a/{name}"));
        fs::create_dir_all(link.parent().unwrap()).unwrap();
        symlink(bench.path("secret"), &link).unwrap();
        let message = bench.refused(LINEAR, &[]);
        assert!(
            message.contains("a link out of the model's folder"),
            "{name}: {message}"
        );
        assert!(
            message.contains(name) && message.contains("put a copy in the place of the link"),
            "{message}"
        );
        assert!(!message.contains("token\""), "{message}");
    }
    // A whole config, and a folder.
    let bench = bench();
    fs::remove_file(bench.path("a/config.json")).unwrap();
    symlink(bench.path("secret"), bench.path("a/config.json")).unwrap();
    assert!(
        bench
            .refused(LINEAR, &[])
            .contains("a link out of the model's folder")
    );
    let bench = self::bench();
    bench.file("outside/config.json", "{}");
    symlink(bench.path("outside"), bench.path("a/1_Pooling")).unwrap();
    assert!(
        bench
            .refused(LINEAR, &[])
            .contains("a link out of the model's folder")
    );
}

#[test]
fn what_cannot_be_read_is_not_left_out_in_silence() {
    for name in [
        "tokenizer.json",
        "tokenizer_config.json",
        "generation_config.json",
        "vocab.txt",
        "NOTICE",
    ] {
        for (kind, found) in [
            ("gone", "a link to nothing"),
            ("pipe", "is a pipe"),
            ("device", "a link out of"),
        ] {
            let bench = bench();
            let path = format!("a/{name}");
            match kind {
                "pipe" => pipe(&bench, &path),
                "device" => symlink("/dev/zero", bench.path(&path)).unwrap(),
                _ => symlink("nowhere", bench.path(&path)).unwrap(),
            }
            let message = bench.refused(LINEAR, &[]);
            assert!(
                message.contains(found) && message.contains(name),
                "{kind} {name}: {message}"
            );
            let report = bench.weld(&["check", "a", "-q"]).stdout;
            let id = if kind == "device" {
                "safety.link-outside"
            } else {
                "container.side-file"
            };
            assert!(report.contains(id), "{kind} {name}: {report}");
        }
    }
}

/// A snapshot of the Hub's cache consists of links to blobs; a blob that was removed is named with its download.
#[test]
fn a_snapshot_of_the_hubs_cache_is_read_through_its_links() {
    let bench = Bench::new();
    let commit = "0123456789abcdef0123456789abcdef01234567";
    bench.hub_model("org/name", "main", commit, &llama(1, 2, Dtype::F32));
    let repo = "no-hub/hub/models--org--name";
    bench.file(&format!("{repo}/blobs/licence"), "as you like");
    let snapshot = bench.path(&format!("{repo}/snapshots/{commit}"));
    symlink("../../blobs/licence", snapshot.join("LICENSE")).unwrap();
    let recipe = "merge_method: passthrough\nmodels: [{model: org/name}]\n";
    let out = bench.merge(recipe, &[]);
    assert_eq!(
        fs::read_to_string(out.join("LICENSE")).unwrap(),
        "as you like"
    );
    fs::remove_dir_all(&out).unwrap();
    fs::remove_file(bench.path(&format!("{repo}/blobs/licence"))).unwrap();
    let message = bench.refused(recipe, &[]);
    let download = format!("hf download org/name --revision {commit}");
    assert!(
        message.contains("a link to nothing") && message.contains(&download),
        "{message}"
    );
}

#[test]
fn an_unfinished_download_is_an_error() {
    for name in [
        "model.safetensors.aria2",
        "model-00002-of-00002.safetensors.part",
        "tokenizer.json.incomplete",
    ] {
        let bench = bench();
        bench.file(&format!("b/{name}"), "x");
        let message = bench.refused(LINEAR, &[]);
        assert!(
            message.contains(name) && message.contains("download that is not finished"),
            "{message}"
        );
        let report = bench.weld(&["check", "b", "-q"]);
        assert_eq!(report.code, Some(1));
        assert!(
            report.stdout.contains("container.unfinished-download"),
            "{}",
            report.stdout
        );
    }
    // What nothing reads may lie there.
    let bench = bench();
    bench.file("b/notes.part", "x");
    bench.merge(LINEAR, &[]);
}
