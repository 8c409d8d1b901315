//! Parts of a checkpoint are written to a small server by several runs, and joined there.

use std::collections::BTreeMap;
use std::sync::atomic::Ordering::SeqCst;

use errors::Hint;
use run::destination::{Destination, Held, Layout, MANIFEST_FILE, Parts, Staged};
use run::{Part, RunError};

use super::writing::{
    Bench, HEADER, SIZES, WAYS, Way, expected, failing, fill_weights, name, shards,
};

fn part(number: usize) -> Part {
    Part { number, count: 2 }
}

/// The file of a part, by its name in the checkpoint.
fn file(number: usize) -> String {
    name(number - 1)["out/".len()..].to_owned()
}

fn manifest(number: usize) -> String {
    format!("{{\"number\":{number}}}")
}

fn begin(bench: &Bench, number: usize, replace: bool) -> Result<Box<dyn Staged>, RunError> {
    let layout = Layout {
        shards: &shards()[number - 1..number],
        side_bytes: 0,
        reads: Vec::new(),
    };
    bench
        .output(false)
        .begin_part(part(number), replace, &layout)
}

fn fill(staged: &mut dyn Staged, number: usize) -> Result<(), RunError> {
    fill_weights(staged, number - 1..number)?;
    let mut files = vec![(MANIFEST_FILE.to_owned(), manifest(number).into_bytes())];
    if number == 1 {
        let beside = expected()
            .into_iter()
            .filter(|(name, _)| !name.ends_with("safetensors"));
        files.extend(beside.map(|(name, bytes)| (name["out/".len()..].to_owned(), bytes)));
    }
    for (name, bytes) in files {
        let mut chunks = bytes.chunks(5000).map(|chunk| Ok(chunk.to_vec()));
        staged.side_file(&name, &mut chunks)?;
    }
    Ok(())
}

/// Does a part.
fn make(bench: &Bench, number: usize, replace: bool) -> Result<(), RunError> {
    let mut staged = begin(bench, number, replace)?;
    fill(staged.as_mut(), number)?;
    staged.commit().map(drop)
}

/// Joins both parts, as a run does that knows their manifests.
fn join(bench: &Bench, force: bool) -> Result<Vec<String>, RunError> {
    let output = bench.output(force);
    let mut staged = output.begin(&Layout {
        shards: &[],
        side_bytes: 0,
        reads: Vec::new(),
    })?;
    for number in [1, 2] {
        staged.adopt(part(number), &file(number), SIZES[number - 1])?;
        let (header, _) = staged.read(&file(number), HEADER.len() as u64)?;
        assert_eq!(header, HEADER);
    }
    for (name, bytes) in expected()
        .iter()
        .filter(|(name, _)| !name.ends_with("safetensors"))
    {
        staged.adopt(part(1), &name["out/".len()..], bytes.len() as u64)?;
    }
    let mut notes = staged.commit()?;
    if let Err(error) = output.remove_parts(&[part(1), part(2)]) {
        notes.push(error.to_string());
    }
    Ok(notes)
}

fn parts_of(bench: &Bench) -> BTreeMap<String, Vec<u8>> {
    let held = bench.server.held();
    let files = held
        .files
        .iter()
        .filter(|(name, _)| name.starts_with("out.weld-parts/"));
    files
        .map(|(name, bytes)| (name.clone(), bytes.clone()))
        .collect()
}

fn assert_joined(bench: &Bench, case: &str) {
    bench.assert_whole(case);
    assert!(
        parts_of(bench).is_empty(),
        "{case}: {:?}",
        parts_of(bench).keys()
    );
}

#[test]
fn parts_are_joined_without_copying() {
    let bench = Bench::sound(BTreeMap::new());
    let output = bench.output(false);
    assert_eq!(output.look_at(part(1)).unwrap(), Held::Nothing);
    make(&bench, 2, false).unwrap();
    make(&bench, 1, false).unwrap();
    assert_eq!(Vec::from_iter(output.parts().unwrap()), [part(1), part(2)]);
    let Held::Part {
        manifest: text,
        files,
    } = output.look_at(part(2)).unwrap()
    else {
        panic!("it is a part");
    };
    assert_eq!(text, manifest(2).into_bytes());
    assert_eq!(files, BTreeMap::from([(file(2), SIZES[1])]));
    // Nobody sees a weight file, or anything else at the output.
    assert!(bench.there().is_empty());
    join(&bench, false).unwrap();
    assert_joined(&bench, "joined");
    let asked = bench.server.asked.lock().unwrap();
    let reads = asked
        .iter()
        .filter(|line| line.starts_with("GET") && line.ends_with("safetensors"));
    assert!(
        reads.clone().all(|line| line.contains("/headers/")),
        "{:?}",
        Vec::from_iter(reads)
    );
}

#[test]
fn of_two_runs_of_one_part_one_is_taken() {
    let bench = Bench::sound(BTreeMap::new());
    let mut first = begin(&bench, 1, false).unwrap();
    let mut second = begin(&bench, 1, false).unwrap();
    fill(first.as_mut(), 1).unwrap();
    fill(second.as_mut(), 1).unwrap();
    second.commit().unwrap();
    let error = first.commit().unwrap_err();
    assert!(error.to_string().contains("has done part 1/2"), "{error}");
    assert!(error.hint().unwrap().contains("joined as it is"));
    let error = begin(&bench, 1, false).err().unwrap();
    assert!(error.to_string().contains("has done part 1/2"), "{error}");
    // Once more, in its place.
    make(&bench, 1, true).unwrap();
    make(&bench, 2, false).unwrap();
    assert_eq!(bench.server.held().uploads.len(), 2);
    join(&bench, false).unwrap();
    assert_joined(&bench, "one");
}

/// What a worker that was killed has left goes when the parts are joined.
#[test]
fn killed_workers_cost_their_part() {
    let bench = Bench::sound(BTreeMap::new());
    let mut killed = begin(&bench, 1, false).unwrap();
    fill(killed.as_mut(), 1).unwrap();
    // Its files on the disk stay with it; the next run removes them.
    let kept = tempfile::tempdir().unwrap();
    let kept = Bench {
        cache: kept,
        ..Bench::sound(bench.server.held().files.clone())
    };
    kept.server.held().uploads = bench.server.held().uploads.clone();
    assert!(!kept.server.held().uploads.is_empty());
    make(&kept, 1, false).unwrap();
    make(&kept, 2, false).unwrap();
    join(&kept, false).unwrap();
    assert!(kept.there() == expected() && parts_of(&kept).is_empty());
    assert!(
        kept.server.held().uploads.is_empty(),
        "{:?}",
        kept.server.held().uploads.keys()
    );
}

#[test]
fn a_part_that_is_gone_is_missed() {
    let bench = Bench::sound(BTreeMap::new());
    make(&bench, 1, false).unwrap();
    make(&bench, 2, false).unwrap();
    // The store has dropped an old upload.
    bench.server.held().uploads.pop_last();
    let error = join(&bench, false).unwrap_err();
    assert!(
        error.to_string().contains("is not in the store (any more)"),
        "{error}"
    );
    assert!(!bench.there().contains_key("out/config.json"));
    for number in [1, 2] {
        make(&bench, number, true).unwrap();
    }
    join(&bench, true).unwrap();
    assert_joined(&bench, "made again");
}

/// Each request of a part, and of a join, fails once, in each way, by its number. Whatever fails, what is done is not
/// lost, and the next try ends well.
#[test]
fn whatever_fails_the_next_try_ends_well() {
    let before = |with_parts: bool| {
        let bench = Bench::sound(BTreeMap::new());
        if with_parts {
            make(&bench, 1, false).unwrap();
        }
        make(&bench, 2, false).unwrap();
        bench
    };
    for joins in [false, true] {
        let act = |bench: &Bench| match joins {
            true => join(bench, false),
            false => make(bench, 1, false).map(|()| Vec::new()),
        };
        let bench = before(joins);
        let state = bench.server.held().clone();
        let earlier = bench.server.requests.load(SeqCst);
        act(&bench).unwrap();
        let count = bench.server.requests.load(SeqCst) - earlier;
        assert!(count > 8, "{count}");
        let mut failed = 0;
        for way in WAYS {
            for last in 0..count {
                let case = format!("{joins} {way:?} {last}");
                let bench = failing(state.files.clone(), way, last);
                bench.server.held().take(&state);
                let done = act(&bench);
                if let Err(error) = &done {
                    failed += 1;
                    assert!(way != Way::Busy, "{case}: {error}");
                    assert!(error.hint().is_some(), "{case}: {error}");
                    assert!(!error.to_string().contains("geheim"), "{case}: {error}");
                    let there = bench.there();
                    assert!(
                        !there.contains_key("out/config.json") || there == expected(),
                        "{case}: {error}"
                    );
                }
                // From here on nothing fails.
                let again = Bench::sound(bench.server.held().files.clone());
                again.server.held().take(&bench.server.held());
                if !joins {
                    match again.output(false).look_at(part(1)).unwrap() {
                        Held::Nothing => make(&again, 1, false).unwrap(),
                        held => assert!(matches!(held, Held::Part { .. }), "{case}: {held:?}"),
                    }
                }
                if !joins || done.is_err() {
                    let joined = join(&again, true);
                    // Parts that are joined are removed: then it was joined, and only the answer was lost.
                    let is_whole = again.there() == expected();
                    assert!(joined.is_ok() || is_whole, "{case}: {joined:?}");
                }
                let mut there = again.there();
                there.remove("out/weldment.writing.json");
                assert!(there == expected(), "{case}: {:?}", there.keys());
            }
        }
        assert!(failed > 15, "{failed}");
    }
}
