//! Fetching from and pushing to a server that misbehaves in every way that was thought of.

mod server;

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::time::Duration;

use checkpoint::{Checkpoint, Dtype, Location, is_complete};
use errors::Hint;
use safetensors::tensor::{TensorView, serialize};

use super::{Hub, HubError, Later, Observer, Settings, Upload};
use checkpoint::ScratchFolder;
use server::{Server, TOKEN};

const REPO: &str = "acme/tiny";

/// Counts bytes, and stops when it is told to.
#[derive(Default)]
struct Counted {
    bytes: AtomicU64,
    stop_after: Option<u64>,
    stopped: AtomicBool,
}

impl Observer for Counted {
    fn begin(&self, _: &str, _: u64) {}

    fn advance(&self, bytes: u64) {
        let now = self.bytes.fetch_add(bytes, SeqCst) + bytes;
        if self.stop_after.is_some_and(|most| now >= most) {
            self.stopped.store(true, SeqCst);
        }
    }

    fn finish(&self) {}

    fn stopped(&self) -> bool {
        self.stopped.load(SeqCst)
    }
}

/// A server and a cache.
struct Bench {
    server: Server,
    cache: tempfile::TempDir,
}

impl Bench {
    fn new() -> Bench {
        Bench {
            server: Server::start(0),
            cache: tempfile::tempdir().unwrap(),
        }
    }

    /// A bench whose server has a model of some two megabytes, and the commit.
    fn with_model() -> (Bench, String) {
        let bench = Bench::new();
        let weights = weights(1 << 20);
        let files: [(&str, &[u8]); 5] = [
            ("config.json", br#"{"model_type": "llama"}"#),
            ("tokenizer.json", br#"{"version": "1.0"}"#),
            ("README.md", b"# tiny"),
            ("model.safetensors", &weights),
            ("pytorch_model.bin", b"not fetched"),
        ];
        let commit = bench.server.state().commit(REPO, &files);
        (bench, commit)
    }

    fn hub_of(&self, token: Option<&str>) -> Hub {
        Hub::new(Settings {
            endpoint: self.server.endpoint.clone(),
            token: token.map(str::to_owned),
            cache: self.cache.path().to_owned(),
            pause: Duration::from_millis(1),
        })
        .unwrap()
    }

    fn fetch(&self) -> Result<super::Snapshot, HubError> {
        self.hub_of(None)
            .snapshot(REPO, "main", &Counted::default())
    }

    fn repository(&self) -> std::path::PathBuf {
        self.cache.path().join("models--acme--tiny")
    }

    fn asked(&self, part: &str) -> usize {
        let state = self.server.state();
        state
            .log
            .iter()
            .filter(|asked| asked.path.contains(part))
            .count()
    }
}

/// A safetensors file of one tensor with so many 16-bit values.
fn weights(values: usize) -> Vec<u8> {
    let bytes: Vec<u8> = (0..values * 2).map(|at| (at * 31 % 251) as u8).collect();
    let view = TensorView::new(Dtype::BF16, vec![values], &bytes).unwrap();
    serialize([("model.norm.weight", view)], None).unwrap()
}

fn said(error: &HubError) -> String {
    errors::in_one_line(error)
}

#[test]
fn a_model_is_fetched_into_the_cache_as_huggingface_hub_lays_it_out() {
    let (bench, commit) = Bench::with_model();
    let snapshot = bench.fetch().unwrap();
    assert_eq!(snapshot.commit, commit);
    assert_eq!(
        snapshot.folder,
        bench.repository().join("snapshots").join(&commit)
    );
    assert!(is_complete(&snapshot.folder));
    let names: Vec<String> = fs::read_dir(&snapshot.folder)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    assert_eq!(names.len(), 4, "{names:?}");
    let link = fs::read_link(snapshot.folder.join("model.safetensors")).unwrap();
    let link = link.to_str().unwrap();
    assert!(
        link.starts_with("../../blobs/") && link.len() == 12 + 64,
        "{link}"
    );
    let main = fs::read_to_string(bench.repository().join("refs/main")).unwrap();
    assert_eq!(main, commit);
    let fetched = fs::read(snapshot.folder.join("model.safetensors")).unwrap();
    assert!(fetched == weights(1 << 20));
    assert_eq!(bench.asked("pytorch_model"), 0);
    // What is there is not asked for again.
    let before = bench.asked("resolve");
    bench.fetch().unwrap();
    assert_eq!(bench.asked("resolve"), before);
}

#[test]
fn a_transfer_that_breaks_ten_times_goes_on_where_it_was() {
    let (bench, _) = Bench::with_model();
    bench.server.state().faults.cuts = (0..10).map(|cut| 150_000 + cut * 1_000).collect();
    let observer = Counted::default();
    let hub = bench.hub_of(None);
    let snapshot = hub.snapshot(REPO, "main", &observer).unwrap();
    assert!(fs::read(snapshot.folder.join("model.safetensors")).unwrap() == weights(1 << 20));
    let state = bench.server.state();
    let ranges: Vec<u64> = (state.log.iter())
        .filter(|asked| asked.path.contains("cdn"))
        .map(|asked| {
            let range = asked.range.as_deref().unwrap_or("bytes=0-");
            range["bytes=".len()..range.len() - 1].parse().unwrap()
        })
        .collect();
    assert_eq!(ranges.len(), 11, "{ranges:?}");
    assert!(ranges.is_sorted_by(|a, b| a < b), "{ranges:?}");
    assert!(observer.bytes.load(SeqCst) < weights(1 << 20).len() as u64 + 1_000);
}

#[test]
fn what_an_earlier_run_left_is_gone_on_with() {
    let (bench, _) = Bench::with_model();
    let observer = Counted {
        stop_after: Some(300_000),
        ..Counted::default()
    };
    let stopped = bench.hub_of(None).snapshot(REPO, "main", &observer);
    assert!(matches!(stopped, Err(HubError::Stopped)), "{stopped:?}");
    assert!(fs::read_link(bench.repository().join("refs/main")).is_err());
    let snapshot = bench.fetch().unwrap();
    assert!(fs::read(snapshot.folder.join("model.safetensors")).unwrap() == weights(1 << 20));
    let state = bench.server.state();
    let resumed = state
        .log
        .iter()
        .any(|asked| asked.path.contains("cdn") && asked.range.is_some());
    assert!(resumed);
    drop(state);
    // What is of something else is no beginning.
    let (bench, _) = Bench::with_model();
    let blobs = bench.repository().join("blobs");
    fs::create_dir_all(&blobs).unwrap();
    let name =
        base16ct::lower::encode_string(&<sha2::Sha256 as sha2::Digest>::digest(weights(1 << 20)));
    fs::write(blobs.join(format!("{name}.incomplete")), [7; 1000]).unwrap();
    let snapshot = bench.fetch().unwrap();
    assert!(fs::read(snapshot.folder.join("model.safetensors")).unwrap() == weights(1 << 20));
}

#[test]
fn a_server_without_ranges_sends_all_again() {
    let (bench, _) = Bench::with_model();
    bench.server.state().faults.cuts = vec![1_000, 500_000];
    bench.server.state().faults.ignores_ranges = true;
    let snapshot = bench.fetch().unwrap();
    assert!(fs::read(snapshot.folder.join("model.safetensors")).unwrap() == weights(1 << 20));
}

#[test]
fn what_fails_for_a_moment_is_asked_for_again() {
    let (bench, _) = Bench::with_model();
    bench.server.state().faults.statuses = vec![
        ("revision", 500),
        ("tree", 429),
        ("cdn", 503),
        ("cdn", 502),
        ("config.json", 504),
    ];
    bench.fetch().unwrap();
    assert!(bench.server.state().faults.statuses.is_empty());
}

#[test]
fn what_fails_for_good_says_what_to_do() {
    for (status, part, parts) in [
        (429, "tree", ["answered 429", "fewer requests"]),
        (500, "tree", ["answered 500", "try again later"]),
        (400, "revision", ["answered 400", "the server says Fault"]),
        (
            404,
            "config.json",
            ["answered 404", "config.json of `acme/tiny`"],
        ),
    ] {
        let (bench, _) = Bench::with_model();
        bench.server.state().faults.statuses = vec![(part, status); 6];
        let message = said(&bench.fetch().unwrap_err());
        for expected in parts {
            assert!(message.contains(expected), "{status}: {message}");
        }
    }
    let (bench, _) = Bench::with_model();
    bench.server.state().faults.cuts = vec![0; 6];
    let message = said(&bench.fetch().unwrap_err());
    assert!(
        message.contains("model.safetensors of `acme/tiny`"),
        "{message}"
    );
    assert!(message.contains("run it again"), "{message}");
    let nobody = Hub::new(Settings {
        endpoint: "http://127.0.0.1:1".into(),
        token: None,
        cache: bench.cache.path().to_owned(),
        pause: Duration::from_millis(1),
    });
    let error = nobody.unwrap().snapshot(REPO, "main", &Counted::default());
    let message = said(&error.unwrap_err());
    assert!(
        message.contains("cannot be reached") && message.contains("HF_ENDPOINT"),
        "{message}"
    );
}

#[test]
fn who_may_not_is_told_how() {
    let (bench, _) = Bench::with_model();
    bench
        .server
        .state()
        .commit("acme/secret", &[("config.json", b"{}")]);
    bench
        .server
        .state()
        .repos
        .get_mut("acme/secret")
        .unwrap()
        .private = true;
    bench
        .server
        .state()
        .commit("acme/gated", &[("config.json", b"{}")]);
    bench
        .server
        .state()
        .repos
        .get_mut("acme/gated")
        .unwrap()
        .gated = true;
    bench.fetch().unwrap();
    let cases: [(Option<&str>, &str, &str, &[&str]); 6] = [
        (
            None,
            "acme/secret",
            "main",
            &["no model `acme/secret`", "hf auth login"],
        ),
        (
            Some("hf_bad"),
            "acme/secret",
            "main",
            &["this account", "hf auth whoami"],
        ),
        (
            None,
            "acme/gated",
            "main",
            &["refuses", "accept its terms at http", "/acme/gated"],
        ),
        (
            None,
            "acme/tinny",
            "main",
            &["no model `acme/tinny`", "check the name"],
        ),
        (
            Some(TOKEN),
            "other/thing",
            "main",
            &["no model `other/thing`", "check the name"],
        ),
        (
            None,
            REPO,
            "v\u{1b}[2J",
            &["has no revision `v\\u{1b}[2J`", "/acme/tiny/commits"],
        ),
    ];
    for (token, repo, revision, parts) in cases {
        let error = bench
            .hub_of(token)
            .snapshot(repo, revision, &Counted::default());
        let message = said(&error.unwrap_err());
        for part in parts {
            assert!(message.contains(part), "{repo}@{revision}: {message}");
        }
    }
    let hub = bench.hub_of(Some(TOKEN));
    hub.snapshot("acme/secret", "main", &Counted::default())
        .unwrap();
    // The token goes to the Hub, not to where it sends on.
    hub.snapshot(REPO, "main", &Counted::default()).unwrap();
    let state = bench.server.state();
    let to_store = state.log.iter().filter(|asked| asked.path.contains("cdn"));
    assert!(to_store.clone().count() > 0);
    assert!(to_store.clone().all(|asked| asked.token.is_none()));
}

#[test]
fn what_a_server_says_is_not_believed() {
    for name in [
        "../../../evil.json",
        "/etc/x.json",
        "a/../../b.json",
        "a\\..\\b.json",
        "\u{1b}[2J.json",
    ] {
        let (bench, _) = Bench::with_model();
        bench.server.state().faults.lists_names = vec![name.to_owned()];
        let message = said(&bench.fetch().unwrap_err());
        assert!(
            message.contains("would lead out of its folder"),
            "{message}"
        );
        assert!(!message.contains('\u{1b}'), "{message}");
        assert_eq!(bench.asked("resolve"), 0);
    }
    for more in [-1, 1, 1 << 40] {
        let (bench, _) = Bench::with_model();
        bench.server.state().faults.lists_more = more;
        let error = bench.fetch().unwrap_err();
        let is_length = matches!(error, HubError::Length { .. });
        // There is no disk for a length of a terabyte.
        assert!(
            is_length || matches!(error, HubError::NoRoom { .. }),
            "{more}: {error}"
        );
        assert!(!is_complete(&bench.repository()), "{more}");
    }
    let (bench, _) = Bench::with_model();
    bench.server.state().faults.corrupts = true;
    let error = bench.fetch().unwrap_err();
    assert!(matches!(error, HubError::Digest { .. }), "{error}");
    assert!(
        said(&error).contains("sends what was never uploaded"),
        "{error}"
    );
    let blobs = fs::read_dir(bench.repository().join("blobs")).unwrap();
    for blob in blobs {
        assert!(blob.unwrap().metadata().unwrap().len() < 1_000);
    }
    let (bench, _) = Bench::with_model();
    bench.server.state().faults.lists_forever = true;
    let error = bench.fetch().unwrap_err();
    assert!(matches!(error, HubError::Malformed { .. }), "{error}");
}

#[test]
fn a_plan_needs_only_headers() {
    let (bench, commit) = Bench::with_model();
    let folder = tempfile::tempdir().unwrap();
    bench.server.state().faults.cuts = vec![3];
    let hub = bench.hub_of(None);
    let headers = hub
        .headers(
            REPO,
            "main",
            folder.path(),
            &Later::Never,
            &Counted::default(),
        )
        .unwrap();
    assert_eq!(headers.commit, commit);
    let location = Location {
        remote: headers.remote.clone(),
        ..Location::local(&headers.folder)
    };
    let model = Checkpoint::open("tiny", &location).unwrap();
    assert_eq!(model.tensors()[0].shape, [1 << 20]);
    assert_eq!(model.config().unwrap().model_type(), Some("llama"));
    // Where its values lie is known, and they are not.
    assert_eq!(model.bytes(0).unwrap().len(), 2 << 20);
    assert_eq!(model.peek(0, 0..8), None);
    assert!(model.remote(0)[0].file.begin().is_err());
    let state = bench.server.state();
    let ranges = state.log.iter().filter(|asked| asked.path.contains("cdn"));
    for asked in ranges {
        let range = asked.range.as_deref().unwrap();
        let (_, to) = range.split_once('-').unwrap();
        assert!(to.parse::<u64>().unwrap() < 200_000, "{range}");
    }
    drop(state);
    assert!(
        !bench
            .cache
            .path()
            .join("models--acme--tiny/snapshots")
            .join(&commit)
            .join("model.safetensors")
            .exists()
    );
    // What comes later is only what is missing.
    let before = bench.asked("config.json");
    bench.fetch().unwrap();
    assert_eq!(bench.asked("config.json"), before);
}

#[test]
fn weights_are_fetched_into_their_place_and_dropped() {
    let (bench, _) = Bench::with_model();
    let scratch = ScratchFolder::new(bench.cache.path()).unwrap();
    let path = scratch.path().to_owned();
    let later = Later::Fetched(Arc::new(Counted::default()), Arc::new(scratch));
    let hub = bench.hub_of(None);
    let headers = hub
        .headers(REPO, "main", &path, &later, &Counted::default())
        .unwrap();
    let path = headers.folder.join("model.safetensors");
    let location = Location {
        remote: headers.remote.clone(),
        ..Location::local(&headers.folder)
    };
    let model = Checkpoint::open("tiny", &location).unwrap();
    let expected: Vec<u8> = (0..2 << 20).map(|at| (at * 31 % 251) as u8).collect();
    let is_zero = |bytes: &[u8]| bytes.iter().all(|&byte| byte == 0);
    // Some bytes come alone, from a server that heeds ranges and from one that does not.
    for (ignores, range) in [(false, 1_000_000..1_000_256), (true, 1_500_000..1_500_256)] {
        bench.server.state().faults.ignores_ranges = ignores;
        assert!(is_zero(&model.bytes(0).unwrap()[range.clone()]));
        assert_eq!(model.peek(0, range.clone()), Some(&expected[range.clone()]));
        let before = bench.asked("cdn");
        assert!(model.peek(0, range).is_some());
        assert_eq!(bench.asked("cdn"), before);
    }
    bench.server.state().faults.ignores_ranges = false;
    let file = Arc::clone(&model.remote(0)[0].file);
    let room = || fs::metadata(file_of(&path)).map(|found| found.blocks() * 512);
    assert!(room().unwrap() < 600_000);
    file.begin().unwrap();
    // Nothing is left of it but a name that leads nowhere, and tells the digest.
    assert!(!path.exists());
    let blob = fs::read_link(&path).unwrap();
    assert_eq!(blob.file_name().unwrap().len(), 64);
    for _ in 0..2 {
        bench.server.state().faults.cuts = vec![10, 700_000];
        file.fetch(&|| false).unwrap();
        assert!(model.bytes(0).unwrap() == expected);
        model.check_unchanged().unwrap();
        file.drop_content().unwrap();
        assert!(is_zero(model.bytes(0).unwrap()));
    }
    bench.server.state().faults.corrupts = true;
    let error = file.fetch(&|| false).unwrap_err();
    assert!(error.to_string().contains("as the Hub lists it"), "{error}");
    assert!(
        !bench
            .repository()
            .join("blobs")
            .join(blob.file_name().unwrap())
            .exists()
    );
    // The folder stays as long as something of it is used.
    let folder = headers.folder.clone();
    drop((later, location, headers));
    assert!(folder.exists());
    drop((model, file));
    assert!(!folder.exists());
}

/// The file that a path leads to.
fn file_of(path: &Path) -> std::path::PathBuf {
    fs::canonicalize(path).unwrap()
}

#[test]
fn folders_of_killed_processes_go_and_those_in_use_stay() {
    let cache = tempfile::tempdir().unwrap();
    let used = ScratchFolder::new(cache.path()).unwrap();
    let left = cache.path().join(".weldment-scratch-left");
    fs::create_dir(&left).unwrap();
    fs::write(left.join("lock"), "").unwrap();
    let new = cache.path().join(".weldment-scratch-new");
    fs::create_dir(&new).unwrap();
    let another = ScratchFolder::new(cache.path()).unwrap();
    assert!(used.path().exists() && another.path().exists());
    assert!(!left.exists());
    // It may be about to be locked.
    assert!(new.exists());
}

#[test]
fn headers_that_lie_and_pickles_have_none() {
    let bench = Bench::new();
    let huge = (1_u64 << 60).to_le_bytes();
    let cases: [(&str, &[u8], &str); 4] = [
        (
            "model.safetensors",
            &huge,
            "its header takes 1152921504606846976 bytes of 8",
        ),
        ("model.safetensors", b"x", "its header takes 0 bytes of 1"),
        ("model.safetensors", b"", "its header takes 0 bytes of 0"),
        ("pytorch_model.bin", b"x", "is a pickle"),
    ];
    for (name, bytes, expected) in cases {
        bench
            .server
            .state()
            .commit(REPO, &[("config.json", b"{}"), (name, bytes)]);
        let folder = tempfile::tempdir().unwrap();
        let error = bench.hub_of(None).headers(
            REPO,
            "main",
            folder.path(),
            &Later::Never,
            &Counted::default(),
        );
        let message = said(&error.unwrap_err());
        assert!(message.contains(expected), "{message}");
    }
    bench.server.state().commit(REPO, &[("model.gguf", b"x")]);
    let message = said(&bench.fetch().unwrap_err());
    assert!(
        message.contains("only files such as model.gguf"),
        "{message}"
    );
}

#[test]
fn a_folder_is_pushed_in_one_commit() {
    let bench = Bench::new();
    let folder = tempfile::tempdir().unwrap();
    let put = |name: &str, bytes: &[u8]| {
        let path = folder.path().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, bytes).unwrap();
    };
    put("config.json", b"{}");
    put("model.safetensors", &weights(64));
    put("additional_chat_templates/a.jinja", b"a");
    put(".git/config", b"not pushed");
    let push = |public, token| push(&bench, folder.path(), public, token);
    let message = said(&push(false, None).unwrap_err());
    assert!(message.contains("hf auth login"), "{message}");
    push(false, Some(TOKEN)).unwrap();
    let state = bench.server.state();
    let repo = &state.repos["acme/merged"];
    assert!(repo.private);
    assert_eq!(repo.commits.len(), 1);
    let names: Vec<&String> = repo.commits[0].1.keys().collect();
    let expected = [
        "additional_chat_templates/a.jinja",
        "config.json",
        "model.safetensors",
    ];
    assert_eq!(names, expected);
    assert_eq!(repo.commits[0].1["model.safetensors"], weights(64));
    drop(state);
    // Shards take the place of the one file.
    fs::remove_file(folder.path().join("model.safetensors")).unwrap();
    put("model-00001-of-00001.safetensors", &weights(32));
    let pushed = push(false, Some(TOKEN)).unwrap();
    let state = bench.server.state();
    let (commit, files) = state.repos["acme/merged"].commits.last().unwrap();
    assert_eq!(pushed.commit.as_ref(), Some(commit));
    assert!(files.contains_key("model-00001-of-00001.safetensors"));
    assert!(!files.contains_key("model.safetensors"));
    drop(state);
    bench
        .server
        .state()
        .repos
        .get_mut("acme/merged")
        .unwrap()
        .private = false;
    let message = said(&push(false, Some(TOKEN)).unwrap_err());
    assert!(
        message.contains("everyone can see it") && message.contains("--public"),
        "{message}"
    );
    push(true, Some(TOKEN)).unwrap();
}

#[test]
fn what_is_no_file_is_not_pushed() {
    let bench = Bench::new();
    let folder = tempfile::tempdir().unwrap();
    let message = said(&push(&bench, folder.path(), false, Some(TOKEN)).unwrap_err());
    assert!(message.contains("has no files"), "{message}");
    std::os::unix::fs::symlink("/etc/passwd", folder.path().join("config.json")).unwrap();
    let error = push(&bench, folder.path(), false, Some(TOKEN)).unwrap_err();
    assert!(said(&error).contains("a link out of the folder"), "{error}");
    assert!(error.hint().is_some());
    assert!(bench.server.state().repos.is_empty());
}

fn push(
    bench: &Bench,
    folder: &Path,
    public: bool,
    token: Option<&str>,
) -> Result<super::Pushed, HubError> {
    let hub = bench.hub_of(token);
    let observer = Arc::new(Counted::default());
    let files = Upload::of_folder(folder)?;
    let push = hub.plan_push("acme/merged", files, public, &*observer)?;
    hub.push(&push, "Upload a merge", observer)
}
