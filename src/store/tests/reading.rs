//! Models are fetched whole or in turn from a small server, which fails in every way that a store may.

use std::collections::BTreeMap;
use std::fs;
use std::sync::atomic::Ordering::SeqCst;
use std::sync::{Arc, Mutex};

use checkpoint::{StoreFolder, Stores};
use errors::{Hint, Refusal};
use tempfile::TempDir;

use super::server::{Answer, Fault, Server, Silent, error, etag};
use crate::{Models, Use};

/// A safetensors file of one tensor of bytes.
fn weights(count: usize) -> Vec<u8> {
    let header =
        format!(r#"{{"w":{{"dtype":"U8","shape":[{count}],"data_offsets":[0,{count}]}}}}"#);
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend(header.into_bytes());
    bytes.extend((0..count).map(|at| (at * 7 + at / 251) as u8));
    bytes
}

fn model() -> BTreeMap<String, Vec<u8>> {
    let index = br#"{"weight_map":{"w":"model-00001-of-00002.safetensors","v":"model-00002-of-00002.safetensors"}}"#;
    [
        ("m/config.json", br#"{"model_type":"llama"}"#.to_vec()),
        ("m/model.safetensors.index.json", index.to_vec()),
        ("m/model-00001-of-00002.safetensors", weights(300_000)),
        ("m/model-00002-of-00002.safetensors", weights(70)),
        ("m/optimizer.pt", vec![1; 10]),
    ]
    .map(|(name, bytes)| (name.to_owned(), bytes))
    .into()
}

struct Bench {
    server: Server,
    cache: TempDir,
}

impl Bench {
    fn new(files: BTreeMap<String, Vec<u8>>, fault: Box<Fault>) -> Bench {
        Bench {
            server: Server::new(files, fault),
            cache: tempfile::tempdir().unwrap(),
        }
    }

    /// Fetches `m` from the server: as a bucket's, or as a web server's.
    fn fetch(&self, used: Use, is_web: bool) -> Result<StoreFolder, Refusal> {
        let settings = self.server.settings();
        let settings = move || settings.clone();
        let cache = self.cache.path().to_owned();
        let models = Models::new(settings, used, cache, false, Arc::new(Silent));
        match is_web {
            true => models.fetch(&format!("{}/m", self.server.endpoint())),
            false => models.fetch("s3://bucket/m"),
        }
    }

    /// Fetches the model, takes its weights in turn if they are not there, and compares with what the server has.
    fn compare(&self, used: Use, is_web: bool) -> Result<(), Refusal> {
        let folder = self.fetch(used, is_web)?;
        for file in folder.remote.iter() {
            file.peek(&[9..20, 100_000..100_100])?;
            file.fetch(&|| false)?;
        }
        let names = [
            "config.json",
            "model-00001-of-00002.safetensors",
            "model-00002-of-00002.safetensors",
        ];
        for name in names {
            let found = fs::read(folder.path.join(name)).unwrap();
            assert!(found == model()[&format!("m/{name}")], "{name}");
        }
        assert!(!folder.path.join("optimizer.pt").exists());
        for (name, object) in &folder.model.objects {
            let expected = etag(&model()[&format!("m/{name}")]);
            assert_eq!(object.etag.as_ref(), Some(&expected), "{name}");
        }
        Ok(())
    }

    /// The error of the model, and that nothing is left of it.
    fn refused(self, used: Use, is_web: bool) -> String {
        let error = self.compare(used, is_web).unwrap_err();
        assert!(error.hint().is_some(), "{error}");
        assert!(!error.to_string().contains("geheim"), "{error}");
        let left = fs::read_dir(self.cache.path()).unwrap().count();
        assert_eq!(left, 0, "{error}");
        error.to_string()
    }
}

/// Every way to read a model.
const WAYS: [(Use, bool); 4] = [
    (Use::Whole, false),
    (Use::InTurn, false),
    (Use::Whole, true),
    (Use::InTurn, true),
];

#[test]
fn models_come_whole_or_in_turn_from_buckets_and_web_servers() {
    for (used, is_web) in WAYS {
        Bench::new(model(), Box::new(|_, _, _, answer| answer))
            .compare(used, is_web)
            .unwrap();
    }
}

#[test]
fn of_headers_nothing_else_of_the_weights_comes() {
    let bench = Bench::new(model(), Box::new(|_, _, _, answer| answer));
    let folder = bench.fetch(Use::Headers, false).unwrap();
    let large = folder.path.join("model-00001-of-00002.safetensors");
    let (bytes, header) = (fs::read(&large).unwrap(), weights(300_000).len() - 300_000);
    assert!(
        bytes[..header] == weights(300_000)[..header]
            && bytes[header..].iter().all(|byte| *byte == 0)
    );
    let error = folder
        .remote
        .iter()
        .next()
        .unwrap()
        .fetch(&|| false)
        .unwrap_err();
    assert!(
        error.to_string().contains("only the header was fetched"),
        "{error}"
    );
}

/// Each request fails once, in this way, and comes again.
fn each_fails_once(spoil: impl Fn(Answer) -> Answer + Send + Sync + 'static) -> Box<Fault> {
    let failed: Mutex<Vec<String>> = Mutex::default();
    Box::new(move |_, path, range, answer| {
        let key = format!("{path} {range:?}");
        let mut failed = failed.lock().unwrap();
        match failed.contains(&key) || answer.status == 404 {
            true => answer,
            false => {
                failed.push(key);
                spoil(answer)
            }
        }
    })
}

#[test]
fn what_fails_once_is_asked_for_again() {
    for (used, is_web) in WAYS {
        for status in [500, 503] {
            let fault = each_fails_once(move |_| error(status, "SlowDown"));
            Bench::new(model(), fault).compare(used, is_web).unwrap();
        }
        // Cut in the middle, and after the headers.
        for share in [0, 2] {
            let fault = each_fails_once(move |answer| Answer {
                sent: answer.body.len() * share / 4,
                ..answer
            });
            let bench = Bench::new(model(), fault);
            let _ = bench
                .compare(used, is_web)
                .map_err(|error| panic!("{share} {used:?} {is_web}: {error}"));
            assert!(bench.server.requests.load(SeqCst) > 5);
        }
    }
}

#[test]
fn a_connection_that_is_cut_again_and_again_goes_on_where_it_was() {
    for used in [Use::Whole, Use::InTurn] {
        let fault = Box::new(|_, path: &str, _, answer: Answer| Answer {
            sent: if path.ends_with("safetensors") {
                answer.body.len().min(40_000)
            } else {
                answer.body.len()
            },
            ..answer
        });
        Bench::new(model(), fault).compare(used, false).unwrap();
    }
}

#[test]
fn what_stays_wrong_is_refused_and_nothing_is_left() {
    let large = "model-00001-of-00002.safetensors";
    let of_large = |spoil: fn(Answer) -> Answer| -> Box<Fault> {
        Box::new(move |_, path, range, answer| {
            match path.ends_with(large) && range.is_some_and(|(from, _)| from > 0) {
                true => spoil(answer),
                false => answer,
            }
        })
    };
    let always = |spoil: fn(Answer) -> Answer| -> Box<Fault> {
        Box::new(move |_, _, _, answer| spoil(answer))
    };
    let etag = |answer: Answer| Answer {
        headers: answer
            .headers
            .into_iter()
            .map(|(name, value)| match name {
                "ETag" => (name, "\"other\"".to_owned()),
                _ => (name, value),
            })
            .collect(),
        ..answer
    };
    let shifted = |answer: Answer| Answer {
        headers: answer
            .headers
            .into_iter()
            .map(|(name, value)| match name {
                "Content-Range" => (name, value.replace("bytes ", "bytes 1")),
                _ => (name, value),
            })
            .collect(),
        ..answer
    };
    let cases: Vec<(&str, Box<Fault>)> = vec![
        ("fails at", always(|_| error(500, "InternalError"))),
        ("fails at", of_large(|_| error(503, "SlowDown"))),
        ("403 AccessDenied", always(|_| error(403, "AccessDenied"))),
        ("403 AccessDenied", of_large(|_| error(403, "AccessDenied"))),
        ("has changed in the store", of_large(etag)),
        ("another part of the file", of_large(shifted)),
        ("ends", of_large(|answer| Answer { sent: 0, ..answer })),
    ];
    for (said, fault) in cases {
        let message = Bench::new(model(), fault).refused(Use::InTurn, false);
        assert!(
            message.contains(said) || said == "ends" && message.contains("cannot be reached"),
            "{said}: {message}"
        );
    }
}

#[test]
fn files_that_are_no_model_are_refused() {
    let with = |changes: &[(&str, Option<Vec<u8>>)]| {
        let mut files = model();
        for (name, bytes) in changes {
            match bytes {
                Some(bytes) => drop(files.insert((*name).to_owned(), bytes.clone())),
                None => drop(files.remove(*name)),
            }
        }
        files
    };
    let refused = |files, used, is_web| {
        Bench::new(files, Box::new(|_, _, _, answer| answer)).refused(used, is_web)
    };
    let shards = [
        "m/model-00001-of-00002.safetensors",
        "m/model-00002-of-00002.safetensors",
    ];
    // A header of 2^60 bytes, and one that is cut.
    let mut huge = weights(70);
    huge[..8].copy_from_slice(&(1u64 << 60).to_le_bytes());
    for bytes in [huge, vec![1, 2, 3]] {
        let message = refused(with(&[(shards[1], Some(bytes))]), Use::InTurn, false);
        assert!(message.contains("its header takes"), "{message}");
    }
    assert!(refused(BTreeMap::new(), Use::Whole, false).contains("there is nothing at"));
    assert!(refused(BTreeMap::new(), Use::Whole, true).contains("there is nothing at"));
    let none = with(&[
        (shards[0], None),
        (shards[1], None),
        ("m/config.json", None),
        ("m/optimizer.pt", None),
        ("m/model.safetensors.index.json", None),
        ("m/notes.md", Some(vec![65])),
    ]);
    assert!(refused(none, Use::Whole, false).contains("no safetensors"));
    let only_pickle = with(&[
        (shards[0], None),
        (shards[1], None),
        ("m/pytorch_model.bin", Some(vec![0; 9])),
        ("m/model.safetensors.index.json", None),
    ]);
    assert!(refused(only_pickle, Use::Headers, false).contains("is a pickle"));
    let index = br#"{"weight_map":{"w":"../../evil.safetensors"}}"#.to_vec();
    let evil = with(&[("m/model.safetensors.index.json", Some(index))]);
    assert!(refused(evil, Use::Whole, true).contains("lead out of its folder"));
    let index = br#"{"weight_map":{"w":3}}"#.to_vec();
    let wrong = with(&[("m/model.safetensors.index.json", Some(index))]);
    assert!(refused(wrong, Use::Whole, true).contains("names no weight files"));
}

#[test]
fn keys_are_signed_with_and_never_sent() {
    let bench = Bench::new(model(), Box::new(|_, _, _, answer| answer));
    bench.compare(Use::Whole, false).unwrap();
    let asked = bench.server.asked.lock().unwrap();
    assert!(asked.len() > 4 && asked.iter().all(|line| !line.contains("geheim")));
}
