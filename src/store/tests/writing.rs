//! Checkpoints are written to a small server. Whatever fails, nobody sees half a checkpoint.

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering::SeqCst;

use checkpoint::ShardLayout;
use engine::Tiles;
use errors::Hint;
use run::RunError;
use run::destination::{Destination, Layout, Staged};
use tempfile::TempDir;

use super::server::{Fault, Gate, Server, Silent, error};
use crate::Output;
use crate::spill::PIECE;

/// How large the weight files are: one goes in two pieces.
pub(super) const SIZES: [u64; 2] = [PIECE + 1000, 300];

pub(super) const HEADER: [u8; 16] = [9; 16];

pub(super) fn byte(file: usize, at: u64) -> u8 {
    (at * 31 + at / 977 + file as u64 * 5) as u8
}

/// What is to be in the store in the end.
pub(super) fn expected() -> BTreeMap<String, Vec<u8>> {
    let mut files: BTreeMap<String, Vec<u8>> = [
        ("out/config.json", b"{}".to_vec()),
        ("out/model.safetensors.index.json", b"index".to_vec()),
        ("out/tokenizer.json", vec![65; PIECE as usize + 5]),
        ("out/deep/config.json", b"[]".to_vec()),
    ]
    .map(|(name, bytes)| (name.to_owned(), bytes))
    .into();
    for (number, size) in SIZES.into_iter().enumerate() {
        let values = (HEADER.len() as u64..size).map(|at| byte(number, at));
        files.insert(name(number), HEADER.into_iter().chain(values).collect());
    }
    files
}

pub(super) fn name(number: usize) -> String {
    format!("out/model-0000{}-of-00002.safetensors", number + 1)
}

pub(super) fn shards() -> Vec<ShardLayout> {
    let shards = SIZES
        .into_iter()
        .enumerate()
        .map(|(number, size)| ShardLayout {
            file_name: name(number)["out/".len()..].to_owned(),
            header: HEADER.to_vec(),
            tensors: Vec::new(),
            file_size: size,
        });
    shards.collect()
}

pub(super) struct Bench {
    pub(super) server: Server,
    pub(super) cache: TempDir,
}

impl Bench {
    pub(super) fn new(
        files: BTreeMap<String, Vec<u8>>,
        fault: Box<Fault>,
        gate: Box<Gate>,
    ) -> Bench {
        Bench {
            server: Server::with_gate(files, fault, gate),
            cache: tempfile::tempdir().unwrap(),
        }
    }

    /// One that does as it should.
    pub(super) fn sound(files: BTreeMap<String, Vec<u8>>) -> Bench {
        Bench::new(
            files,
            Box::new(|_, _, _, answer| answer),
            Box::new(|_, _, _| None),
        )
    }

    pub(super) fn output(&self, force: bool) -> Output {
        let (settings, cache) = (self.server.settings(), self.cache.path().to_owned());
        Output::new("s3://bucket/out", force, settings, cache, Arc::new(Silent)).unwrap()
    }

    fn begin(&self, force: bool) -> Result<Box<dyn Staged>, RunError> {
        self.output(force).begin(&Layout {
            shards: &shards(),
            side_bytes: 0,
            reads: Vec::new(),
        })
    }

    fn write(&self, force: bool) -> Result<Vec<String>, RunError> {
        let mut staged = self.begin(force)?;
        fill(staged.as_mut())?;
        staged.commit()
    }

    /// What is below the output's address.
    pub(super) fn there(&self) -> BTreeMap<String, Vec<u8>> {
        let held = self.server.held();
        let files = held
            .files
            .iter()
            .filter(|(name, _)| name.starts_with("out/"));
        files
            .map(|(name, bytes)| (name.clone(), bytes.clone()))
            .collect()
    }

    /// That the output is whole, and nothing beside it.
    pub(super) fn assert_whole(&self, case: &str) {
        assert!(
            self.there() == expected(),
            "{case}: {:?}",
            self.there().keys()
        );
        // Of an upload whose name got lost nobody knows, and nothing is in it.
        let held = self.server.held();
        let pieces = held.uploads.values().map(|(_, pieces)| pieces.len());
        assert_eq!(pieces.sum::<usize>(), 0, "{case}");
        let left = std::fs::read_dir(self.cache.path()).unwrap().count();
        assert_eq!(left, 0, "{case}");
    }
}

/// Writes everything, in an order that no file has.
fn fill(staged: &mut dyn Staged) -> Result<(), RunError> {
    for (name, bytes) in expected() {
        let name = &name["out/".len()..];
        if !name.ends_with("safetensors") {
            let mut chunks = bytes.chunks(5000).map(|chunk| Ok(chunk.to_vec()));
            staged.side_file(name, &mut chunks)?;
        }
    }
    fill_weights(staged, 0..SIZES.len())
}

/// Writes the weight files with these numbers, which are all that the layout has.
pub(super) fn fill_weights(staged: &mut dyn Staged, files: Range<usize>) -> Result<(), RunError> {
    const TILE: usize = 10_000;
    let tiles = Tiles::new(2 * TILE, 2);
    let mut places: Vec<(usize, u64, u64)> = Vec::new();
    for number in files.clone() {
        let size = SIZES[number];
        let starts = (HEADER.len() as u64..size).step_by(TILE);
        places.extend(starts.map(|start| (number, start, size.min(start + TILE as u64))));
    }
    places.reverse();
    for (number, start, end) in places {
        let mut tile = tiles.take(0, (end - start) as usize).unwrap();
        for (at, value) in (start..end).zip(tile.iter_mut()) {
            *value = byte(number, at);
        }
        if staged.write(number - files.start, start, tile).is_err() {
            staged.finish()?;
            panic!("a write failed, and nobody says why");
        }
    }
    staged.finish()
}

#[test]
fn a_checkpoint_becomes_visible_when_it_is_whole() {
    let bench = Bench::sound(BTreeMap::new());
    let mut staged = bench.begin(false).unwrap();
    fill(staged.as_mut()).unwrap();
    let there: Vec<String> = bench.there().into_keys().collect();
    assert_eq!(there, ["out/weldment.writing.json"]);
    // What is looked at before the commit has the header.
    let folder = staged.folder().unwrap().to_owned();
    let shard = std::fs::read(folder.join("model-00001-of-00002.safetensors")).unwrap();
    assert!(shard.len() as u64 == SIZES[0] && shard[..HEADER.len()] == HEADER);
    assert_eq!(staged.commit().unwrap(), [] as [String; 0]);
    bench.assert_whole("new");
}

#[test]
fn what_is_given_up_leaves_nothing() {
    let bench = Bench::sound(BTreeMap::new());
    let mut staged = bench.begin(false).unwrap();
    fill(staged.as_mut()).unwrap();
    drop(staged);
    drop(bench.begin(false).unwrap());
    assert!(bench.there().is_empty() && bench.server.held().uploads.is_empty());
}

/// A checkpoint that is replaced, with a file that the new one does not have.
fn old() -> BTreeMap<String, Vec<u8>> {
    [
        ("out/config.json", b"old".to_vec()),
        ("out/old/vocab.txt", b"old".to_vec()),
        ("out/model-00002-of-00002.safetensors", vec![1; 300]),
        ("outer/config.json", b"of another".to_vec()),
        ("out.json", b"of another".to_vec()),
    ]
    .map(|(name, bytes)| (name.to_owned(), bytes))
    .into()
}

#[test]
fn a_checkpoint_is_replaced_where_that_is_wanted_and_nothing_else() {
    let bench = Bench::sound(old());
    let error = bench.write(false).unwrap_err();
    assert!(matches!(error, RunError::OutputExists { .. }), "{error}");
    bench.write(true).unwrap();
    bench.assert_whole("replaced");
    assert_eq!(
        bench.server.held().files["outer/config.json"],
        b"of another"
    );
    assert_eq!(bench.server.held().files["out.json"], b"of another");
    // A folder that is no checkpoint may hold many.
    let mut files = old();
    files.remove("out/config.json");
    files.insert("out/model/config.json".to_owned(), Vec::new());
    let bench = Bench::sound(files.clone());
    let error = bench.write(true).unwrap_err();
    assert!(
        error
            .to_string()
            .contains("holds 3 files and no checkpoint"),
        "{error}"
    );
    assert!(bench.server.held().files == files);
}

#[test]
fn two_runs_do_not_write_to_one_place() {
    let bench = Bench::sound(BTreeMap::new());
    let mut first = bench.begin(false).unwrap();
    fill(first.as_mut()).unwrap();
    let error = bench.begin(false).err().unwrap();
    assert!(
        error.to_string().contains("a run of weld writes to"),
        "{error}"
    );
    assert!(error.hint().unwrap().contains("--force"));
    // The second is told to go on, as if the first had been killed.
    let mut second = bench.begin(true).unwrap();
    let error = first.commit().unwrap_err();
    assert!(error.to_string().contains("another run of weld"), "{error}");
    let there: Vec<String> = bench.there().into_keys().collect();
    assert_eq!(there, ["out/weldment.writing.json"]);
    fill(second.as_mut()).unwrap();
    second.commit().unwrap();
    bench.assert_whole("second");
}

#[test]
fn an_input_is_not_replaced() {
    let bench = Bench::sound(old());
    for input in ["s3://bucket/out", "s3://bucket/out/old"] {
        let layout = Layout {
            shards: &shards(),
            side_bytes: 0,
            reads: vec![PathBuf::from(input)],
        };
        let error = bench.output(true).begin(&layout).err().unwrap();
        assert!(matches!(error, RunError::OutputIsInput { .. }), "{error}");
    }
    assert!(bench.server.held().files == old());
}

#[test]
fn no_output_goes_to_a_web_server_or_a_whole_bucket() {
    let bench = Bench::sound(BTreeMap::new());
    for (address, said) in [
        ("https://host/out", "takes no files"),
        ("s3://bucket", "whole bucket"),
    ] {
        let (settings, cache) = (bench.server.settings(), bench.cache.path().to_owned());
        let made = Output::new(address, true, settings, cache, Arc::new(Silent));
        let error = made.unwrap_err();
        assert!(error.to_string().contains(said), "{error}");
        assert!(error.hint().is_some());
    }
}

/// How a request fails.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Way {
    /// Nothing is done, and it may be asked for again.
    Busy,
    /// It is done, and the answer is lost.
    AnswerLost,
    /// It is refused.
    Refused,
    /// It and all that come after are refused.
    RefusedFromHere,
    /// It and all writes that come after are refused.
    NoWrites,
}

/// All ways.
pub(super) const WAYS: [Way; 5] = [
    Way::Busy,
    Way::AnswerLost,
    Way::Refused,
    Way::RefusedFromHere,
    Way::NoWrites,
];

/// Each request of a run fails once, in each way, by its number.
#[test]
fn whatever_fails_nobody_sees_half_a_checkpoint() {
    for replaced in [false, true] {
        let before = match replaced {
            true => old(),
            false => BTreeMap::new(),
        };
        let count = {
            let bench = Bench::sound(before.clone());
            bench.write(replaced).unwrap();
            bench.server.requests.load(SeqCst)
        };
        assert!(count > 15, "{count}");
        let mut outcomes = [0; 2];
        for way in WAYS {
            for last in 0..count {
                let case = format!("{way:?} {last} {replaced}");
                let bench = failing(before.clone(), way, last);
                let done = bench.write(replaced);
                outcomes[usize::from(done.is_ok())] += 1;
                match done {
                    Ok(notes) if !notes.is_empty() => {
                        assert!(notes[0].contains("may be removed"), "{case}: {notes:?}");
                        // The note may be left.
                        let mut there = bench.there();
                        there.remove("out/weldment.writing.json");
                        assert!(there == expected(), "{case}");
                    }
                    Ok(_) => bench.assert_whole(&case),
                    Err(error) => {
                        assert!(way != Way::Busy, "{case}: {error}");
                        assert!(error.hint().is_some(), "{case}: {error}");
                        assert!(!error.to_string().contains("geheim"), "{case}: {error}");
                        let there = bench.there();
                        let old: BTreeMap<String, Vec<u8>> = (before.clone().into_iter())
                            .filter(|(name, _)| name.starts_with("out/"))
                            .collect();
                        // With a config, it is the old checkpoint or the new one, whole.
                        if there.contains_key("out/config.json") {
                            let mut seen = there.clone();
                            seen.remove("out/weldment.writing.json");
                            assert!(
                                seen == old || seen == expected(),
                                "{case}: {error}: {:?}",
                                seen.keys()
                            );
                        }
                        // Another run goes on from there.
                        let again = Bench::sound(there);
                        again.server.held().uploads =
                            std::mem::take(&mut bench.server.held().uploads);
                        again.write(true).unwrap();
                        assert!(again.there() == expected(), "{case}");
                    }
                }
            }
        }
        assert!(outcomes[0] > 20 && outcomes[1] > 20, "{outcomes:?}");
    }
}

pub(super) fn failing(files: BTreeMap<String, Vec<u8>>, way: Way, last: usize) -> Bench {
    let fault: Box<Fault> =
        Box::new(
            move |number, _, _, answer| match way == Way::AnswerLost && number == last {
                true => error(500, "InternalError"),
                false => answer,
            },
        );
    let gate: Box<Gate> = Box::new(move |number, method, _| match way {
        Way::Busy => (number == last).then(|| error(503, "SlowDown")),
        Way::AnswerLost => None,
        Way::Refused => (number == last).then(|| error(403, "AccessDenied")),
        Way::RefusedFromHere => (number >= last).then(|| error(403, "AccessDenied")),
        Way::NoWrites => {
            let is_write = method != "GET" && method != "HEAD";
            (number >= last && is_write).then(|| error(403, "AccessDenied"))
        }
    });
    Bench::new(files, fault, gate)
}
