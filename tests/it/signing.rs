//! Signatures and attestations: what holds passes, every change and every hostile bundle is named.

use std::fs;
use std::path::Path;

use base64ct::{Base64, Encoding};
use p256::SecretKey;
use p256::ecdsa::{Signature, SigningKey, signature::Signer};
use p256::pkcs8::{EncodePrivateKey, EncodePublicKey, LineEnding};
use safetensors::Dtype;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::fixtures::{Bench, Outcome, read_json};

const LINEAR: &str = "merge_method: linear\nmodels:\n- {model: a, parameters: {weight: 0.6}}\n- {model: b, parameters: \
                      {weight: 0.4}}\n";

const PREDICATE: &str = "https://model_signing/signature/v1.0";

fn secret(number: u8) -> SecretKey {
    SecretKey::from_slice(&[number; 32]).unwrap()
}

/// A merge of `a` and `b` as `out`, and a pair of keys.
fn merged() -> Bench {
    let bench = Bench::new();
    bench.llama("a", 1, Dtype::BF16);
    bench.llama("b", 2, Dtype::BF16);
    bench.merge(LINEAR, &[]);
    keys(&bench, "", 7);
    bench
}

fn keys(bench: &Bench, prefix: &str, number: u8) {
    let key = secret(number);
    let pkcs8 = key.to_pkcs8_pem(LineEnding::LF).unwrap();
    bench.file(&format!("{prefix}key.pem"), pkcs8.as_bytes());
    let public = key.public_key().to_public_key_pem(LineEnding::LF).unwrap();
    bench.file(&format!("{prefix}pub.pem"), public);
}

fn signed() -> Bench {
    let bench = merged();
    let outcome = bench.weld(&["sign", "out", "--key", "key.pem", "-q"]);
    assert_eq!(outcome.code, Some(0), "{}", outcome.stderr);
    assert_eq!(outcome.stdout, "");
    bench
}

/// A verification's exit code, and its findings as `check: place`, without notes.
fn verify(bench: &Bench, model: &str, more: &[&str]) -> (Option<i32>, Vec<String>, Value) {
    let mut arguments = vec!["verify", model, "--format", "json", "-q"];
    arguments.extend(more);
    let outcome = bench.weld(&arguments);
    let report: Value = serde_json::from_str(&outcome.stdout).unwrap_or(Value::Null);
    assert!(!report.is_null(), "{}", outcome.stderr);
    let findings = report["findings"].as_array().unwrap().iter();
    let mut found: Vec<String> = findings
        .filter(|finding| finding["severity"] != "note")
        .map(|finding| {
            let text = |value: &Value| value.as_str().unwrap_or("?").to_owned();
            let file = text(&finding["file"]);
            format!("{}: {file}", text(&finding["check"]))
        })
        .collect();
    found.sort();
    (outcome.code, found, report)
}

const BY_KEY: [&str; 2] = ["--key", "pub.pem"];

/// A bundle by the key of [`merged`] of any payload.
fn bundle(payload: &str) -> Value {
    let kind = "application/vnd.in-toto+json";
    let head = format!("DSSEv1 {} {kind} {} ", kind.len(), payload.len());
    let message = [head.as_bytes(), payload.as_bytes()].concat();
    let signature: Signature = SigningKey::from(secret(7)).sign(&message);
    json!({
        "mediaType": "application/vnd.dev.sigstore.bundle.v0.3+json",
        "verificationMaterial": {"publicKey": {}},
        "dsseEnvelope": {
            "payload": Base64::encode_string(payload.as_bytes()),
            "payloadType": kind,
            "signatures": [{"sig": Base64::encode_string(signature.to_der().as_bytes())}],
        },
    })
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// A statement about these resources, with the right root digest.
fn statement(serialization: Value, resources: &[(&str, &[u8])]) -> Value {
    let mut root = Sha256::new();
    let algorithm = serialization["hash_type"].clone();
    let mut described = Vec::new();
    for (name, digest) in resources {
        root.update(digest);
        described.push(json!({"name": name, "algorithm": algorithm, "digest": hex(digest)}));
    }
    json!({
        "_type": "https://in-toto.io/Statement/v1",
        "subject": [{"name": "m", "digest": {"sha256": hex(&root.finalize())}}],
        "predicateType": PREDICATE,
        "predicate": {"serialization": serialization, "resources": described},
    })
}

fn plain() -> Value {
    json!({"method": "files", "hash_type": "sha256", "allow_symlinks": false})
}

#[test]
fn what_is_signed_verifies_and_the_same_files_and_key_give_the_same_bytes() {
    let bench = signed();
    let first = fs::read(bench.path("out/model.sig")).unwrap();
    // SEC1, with the curve's name before it as OpenSSL writes it; elsewhere, by another number of threads.
    let sec1 = secret(7).to_sec1_pem(LineEnding::LF).unwrap();
    let parameters =
        "-----BEGIN EC PARAMETERS-----\nBggqhkjOPQMBBw==\n-----END EC PARAMETERS-----\n";
    bench.file("sec1.pem", format!("{parameters}{}", sec1.as_str()));
    let outcome = bench.weld(&["sign", "out", "--key", "sec1.pem", "--threads", "1"]);
    assert_eq!(outcome.code, Some(0), "{}", outcome.stderr);
    assert!(outcome.stderr.contains("P-256"), "{}", outcome.stderr);
    assert_eq!(first, fs::read(bench.path("out/model.sig")).unwrap());

    let (code, found, report) = verify(&bench, "out", &BY_KEY);
    assert_eq!((code, found), (Some(0), vec![]));
    assert_eq!(report["details"]["signature"]["holds"], true);
    assert_eq!(report["details"]["tensors"], Value::Null, "not recomputed");
    // Moved, without inputs, and with what belongs to git.
    fs::create_dir(bench.path("far")).unwrap();
    fs::rename(bench.path("out"), bench.path("far/out")).unwrap();
    bench.file("far/out/.git/config", "x");
    bench.file("far/out/.gitattributes", "x");
    assert_eq!(verify(&bench, "far/out", &BY_KEY).0, Some(0));
    // Asked for both: by the inputs in the working folder, and without them.
    let recompute = ["--key", "pub.pem", "--recompute"];
    assert_eq!(verify(&bench, "far/out", &recompute).0, Some(0));
    fs::create_dir(bench.path("away")).unwrap();
    for model in ["a", "b"] {
        fs::rename(bench.path(model), bench.path("away").join(model)).unwrap();
    }
    let (code, found, _) = verify(&bench, "far/out", &recompute);
    assert_eq!((code, found), (Some(3), vec![]));
    let both = ["--key", "pub.pem", "--inputs", "away"];
    let (code, found, report) = verify(&bench, "far/out", &both);
    assert_eq!((code, found), (Some(0), vec![]));
    assert_eq!(report["details"]["signature"]["holds"], true);
    assert!(report["details"]["tensors"].is_array());
}

#[test]
fn a_model_of_one_file_is_signed_beside_it() {
    let bench = merged();
    let model = "out/model.safetensors";
    let outcome = bench.weld(&["sign", model, "--key", "key.pem", "-q"]);
    assert_eq!(outcome.code, Some(0), "{}", outcome.stderr);
    assert_eq!(verify(&bench, model, &BY_KEY).0, Some(0));
    // By the specification's name for it too.
    let digest = Sha256::digest(fs::read(bench.path(model)).unwrap());
    let named = statement(plain(), &[("model.safetensors", &digest)]);
    bench.file("named.sig", bundle(&named.to_string()).to_string());
    let by_name = ["--signature", "named.sig", "--key", "pub.pem"];
    assert_eq!(verify(&bench, model, &by_name).0, Some(0));
    flip(&bench.path(model));
    let (code, found, _) = verify(&bench, model, &BY_KEY);
    assert_eq!(code, Some(1));
    assert_eq!(found, ["signature.changed-file: ."]);
}

/// Changes the last bit of a file.
fn flip(path: &Path) {
    let mut bytes = fs::read(path).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    fs::write(path, bytes).unwrap();
}

#[test]
fn every_change_of_what_is_signed_is_named() {
    let check = |change: &dyn Fn(&Bench), expected: &[&str]| {
        let bench = signed();
        change(&bench);
        let (code, found, report) = verify(&bench, "out", &["--key", "pub.pem", "--recompute"]);
        assert_eq!(found, expected);
        assert_eq!(code, Some(1));
        // Bytes of a stranger are not read further.
        assert_eq!(report["details"]["tensors"], Value::Null);
        assert_eq!(report["details"]["signature"]["holds"], false);
    };
    check(
        &|bench| flip(&bench.path("out/model.safetensors")),
        &["signature.changed-file: model.safetensors"],
    );
    check(
        &|bench| fs::remove_file(bench.path("out/config.json")).unwrap(),
        &["signature.missing-file: config.json"],
    );
    check(
        &|bench| {
            bench.file("out/sub/modeling.py", "import os");
            bench.file("out/sub/.gitignore", "*");
        },
        &[
            "signature.added-file: sub/.gitignore",
            "signature.added-file: sub/modeling.py",
        ],
    );
    check(
        &|bench| {
            fs::rename(bench.path("out/config.json"), bench.path("out/Config.json")).unwrap();
        },
        &[
            "signature.added-file: Config.json",
            "signature.missing-file: config.json",
        ],
    );
    check(
        &|bench| {
            bench.file(
                "out/model.sig",
                fs::read(bench.path("b/config.json")).unwrap(),
            );
        },
        &["signature.unreadable: model.sig"],
    );
}

#[test]
#[cfg(unix)]
fn links_and_pipes_in_place_of_files_are_named_and_never_opened() {
    use std::os::unix::fs::symlink;
    let bench = signed();
    fs::rename(bench.path("out/config.json"), bench.path("config.json")).unwrap();
    symlink("../config.json", bench.path("out/config.json")).unwrap();
    symlink("/", bench.path("out/root")).unwrap();
    symlink("nowhere", bench.path("out/gone")).unwrap();
    let made = std::process::Command::new("mkfifo")
        .arg(bench.path("out/pipe"))
        .status();
    assert!(made.unwrap().success());
    let (code, found, _) = verify(&bench, "out", &BY_KEY);
    assert_eq!(code, Some(1));
    assert_eq!(
        found,
        [
            "signature.added-file: gone",
            "signature.added-file: pipe",
            "signature.added-file: root",
            "signature.link: config.json",
        ]
    );
    let outcome = bench.weld(&["sign", "out", "--key", "key.pem"]);
    assert_eq!(outcome.code, Some(1));
    assert!(
        outcome.stderr.contains("found a link"),
        "{}",
        outcome.stderr
    );
}

#[test]
fn a_hostile_bundle_is_refused_by_its_fault() {
    let bench = merged();
    let digest = [1; 32];
    let good = bundle(&statement(plain(), &[("x", &digest)]).to_string());
    let check = |what: &str, text: &str, id: &str, part: &str| {
        bench.file("hostile.sig", text);
        let more = ["--signature", "hostile.sig", "--key", "pub.pem"];
        let (code, found, report) = verify(&bench, "out", &more);
        assert_eq!(found, [format!("{id}: hostile.sig")], "{what}");
        assert_eq!(code, Some(1), "{what}");
        let finding = &report["findings"][0];
        let said = format!("{} {}", finding["expected"], finding["found"]);
        assert!(said.contains(part), "{what}: {said}");
    };
    let with = |pointer: &str, value: Value| {
        let mut changed = good.clone();
        *changed.pointer_mut(pointer).unwrap() = value;
        changed.to_string()
    };
    let unreadable = "signature.unreadable";
    check("empty", "", unreadable, "EOF");
    check("an array", "[]", unreadable, "bundle");
    check("deep", &"[".repeat(100_000), unreadable, "bundle");
    check("cut", &good.to_string()[..200], unreadable, "EOF");
    check("media", &with("/mediaType", json!("x")), unreadable, "v0.3");
    check(
        "no envelope",
        &with("/dsseEnvelope", Value::Null),
        unreadable,
        "null",
    );
    let material = "/verificationMaterial";
    check(
        "no material",
        &with(material, json!({})),
        unreadable,
        "no verification",
    );
    let chain = json!({"x509CertificateChain": {"certificates": []}});
    check(
        "chain",
        &with(material, chain),
        unreadable,
        "chain of certificates",
    );
    let hint = json!({"publicKey": {"hint": "ab".repeat(32)}});
    check("hint", &with(material, hint), "signature.other-key", "abab");
    let raw = json!({"publicKey": {"rawBytes": "eA=="}});
    check(
        "raw key",
        &with(material, raw),
        "signature.other-key",
        "key ",
    );
    let envelope = "/dsseEnvelope/payloadType";
    check(
        "type",
        &with(envelope, json!("text/plain")),
        unreadable,
        "text/plain",
    );
    let signatures = "/dsseEnvelope/signatures";
    check(
        "none",
        &with(signatures, json!([])),
        unreadable,
        "0 signatures",
    );
    let twice = json!([{"sig": ""}, {"sig": ""}]);
    check("two", &with(signatures, twice), unreadable, "2 signatures");
    let signature = "/dsseEnvelope/signatures/0/sig";
    check(
        "base64",
        &with(signature, json!("??")),
        unreadable,
        "base64",
    );
    for wrong in ["", "AAAA", &"MEUC".repeat(1000)] {
        check(
            "DER",
            &with(signature, json!(wrong)),
            "signature.invalid",
            "",
        );
    }
    let other = bundle(&statement(plain(), &[("y", &digest)]).to_string());
    let other = other["dsseEnvelope"]["payload"].clone();
    check(
        "payload",
        &with("/dsseEnvelope/payload", other),
        "signature.invalid",
        "",
    );
    keys(&bench, "other-", 8);
    let more = ["--signature", "hostile.sig", "--key", "other-pub.pem"];
    bench.file("hostile.sig", good.to_string());
    assert_eq!(
        verify(&bench, "out", &more).1,
        ["signature.invalid: hostile.sig"]
    );

    // Larger than any.
    let huge = fs::File::create(bench.path("huge.sig")).unwrap();
    huge.set_len(1 << 40).unwrap();
    let outcome = bench.weld(&[
        "verify",
        "out",
        "--signature",
        "huge.sig",
        "--key",
        "pub.pem",
    ]);
    assert_eq!(outcome.code, Some(2));
    assert!(outcome.stderr.contains("too large"), "{}", outcome.stderr);
}

#[test]
fn a_statement_that_the_key_has_signed_is_still_not_believed_blindly() {
    let bench = merged();
    let digest: [u8; 32] = [1; 32];
    let check = |what: &str, statement: Value, part: &str| {
        bench.file("odd.sig", bundle(&statement.to_string()).to_string());
        let more = ["--signature", "odd.sig", "--key", "pub.pem"];
        let (code, found, report) = verify(&bench, "out", &more);
        assert_eq!(found, ["signature.unreadable: odd.sig"], "{what}");
        assert_eq!(code, Some(1), "{what}");
        let said = report["findings"][0].to_string();
        assert!(said.contains(part), "{what}: {said}");
    };
    let file = |name| statement(plain(), &[(name, &digest)]);
    let long = "a/".repeat(5000) + "a";
    for name in [
        "../x",
        "/etc/passwd",
        "a/../../x",
        "a//b",
        "./a",
        "a/",
        "",
        "a\0b",
        &long,
    ] {
        check(name, file(name), "a path in the folder");
    }
    let with = |pointer: &str, value: Value| {
        let mut changed = file("x");
        *changed.pointer_mut(pointer).unwrap() = value;
        changed
    };
    check("type", with("/_type", json!("x")), "Statement/v1");
    check(
        "predicate",
        with("/predicateType", json!("https://x")),
        PREDICATE,
    );
    check(
        "root",
        with("/subject/0/digest/sha256", json!("00")),
        "root digest",
    );
    check("subjects", with("/subject", json!([])), "0 subjects");
    let twice = statement(plain(), &[("x", &digest), ("x", &digest)]);
    check("twice", twice, "x twice");
    check("nothing", statement(plain(), &[]), "none");
    check(
        "short",
        statement(plain(), &[("x", &digest[..31])]),
        "digest in hex",
    );
    let algorithm = "/predicate/resources/0/algorithm";
    check("algorithm", with(algorithm, json!("md5")), "md5");
    let method = |more: Value| {
        let mut serialization = plain();
        let fields = more.as_object().unwrap().clone();
        serialization.as_object_mut().unwrap().extend(fields);
        statement(serialization, &[("x:0:1", &digest)])
    };
    check("hash", method(json!({"hash_type": "blake2b"})), "blake2b");
    check("method", method(json!({"method": "tensors"})), "tensors");
    check("no size", method(json!({"method": "shards"})), "shard_size");
    check(
        "zero",
        method(json!({"method": "shards", "shard_size": 0})),
        "shard_size",
    );
    check(
        "negative",
        method(json!({"method": "shards", "shard_size": -1})),
        "shard_size",
    );
    let ranges = json!({"method": "shards", "shard_size": 1});
    check(
        "range",
        statement(
            method(ranges.clone())["predicate"]["serialization"].clone(),
            &[("x:0", &digest)],
        ),
        "a path",
    );

    // A range for every byte is not made up before it is known that the signer listed them.
    bench.file("odd.sig", bundle(&method(ranges).to_string()).to_string());
    let more = ["--signature", "odd.sig", "--key", "pub.pem"];
    let (_, found, _) = verify(&bench, "out", &more);
    assert!(
        found.contains(&"signature.missing-file: x".to_owned()),
        "{found:?}"
    );
}

#[test]
fn the_other_forms_of_the_specification_are_read() {
    let bench = Bench::new();
    keys(&bench, "", 7);
    bench.file("m/a.bin", [1; 25]);
    bench.file("m/d/e:1.bin", [2; 7]);
    bench.file("m/empty", "");
    let check = |statement: &Value, expected: (Option<i32>, &[&str])| {
        bench.file("m.sig", bundle(&statement.to_string()).to_string());
        let (code, found, _) = verify(&bench, "m", &["--signature", "m.sig", "--key", "pub.pem"]);
        assert_eq!(
            (code, found),
            (
                expected.0,
                expected.1.iter().map(|s| (*s).to_owned()).collect()
            )
        );
    };
    let sha = |bytes: &[u8]| Sha256::digest(bytes).to_vec();
    let shards = json!({"method": "shards", "hash_type": "sha256", "shard_size": 10, "allow_symlinks": false});
    let (ten, five, seven) = (sha(&[1; 10]), sha(&[1; 5]), sha(&[2; 7]));
    let in_ranges = |last: &'static str| {
        let resources: [(&str, &[u8]); 4] = [
            ("a.bin:0:10", &ten),
            ("a.bin:10:20", &ten),
            (last, &five),
            ("d/e:1.bin:0:7", &seven),
        ];
        statement(shards.clone(), &resources)
    };
    check(&in_ranges("a.bin:20:25"), (Some(0), &[]));
    // As the package writes it.
    let mut by_package = in_ranges("a.bin:20:25");
    by_package["predicate"]["serialization"]["shard_size"] = json!(10.0);
    for resource in by_package["predicate"]["resources"].as_array_mut().unwrap() {
        resource["algorithm"] = json!("sha256-sharded-10");
    }
    check(&by_package, (Some(0), &[]));
    check(
        &in_ranges("a.bin:21:26"),
        (Some(1), &["signature.changed-file: a.bin"]),
    );
    fs::write(bench.path("m/a.bin"), [1; 26]).unwrap();
    check(
        &in_ranges("a.bin:20:25"),
        (Some(1), &["signature.changed-file: a.bin"]),
    );
    fs::write(bench.path("m/a.bin"), [1; 25]).unwrap();

    let blake = |bytes: &[u8]| blake3::hash(bytes).as_bytes().to_vec();
    let files = json!({"method": "files", "hash_type": "blake3", "allow_symlinks": false});
    let (a, e, none) = (blake(&[1; 25]), blake(&[2; 7]), blake(&[]));
    let all: [(&str, &[u8]); 3] = [("a.bin", &a), ("d/e:1.bin", &e), ("empty", &none)];
    check(&statement(files.clone(), &all), (Some(0), &[]));
    let mut leaving = files.clone();
    // None of these hides a file but the last.
    leaving["ignore_paths"] = json!([".", "", "/", "../m", "a.bi", "a.bin/x", "d"]);
    let without = [all[0], all[2]];
    check(
        &statement(leaving, &without),
        (Some(0), &["signature.left-out: d"]),
    );

    #[cfg(unix)]
    {
        let mut links = files;
        links["allow_symlinks"] = json!(true);
        fs::rename(bench.path("m/a.bin"), bench.path("a.bin")).unwrap();
        std::os::unix::fs::symlink("../a.bin", bench.path("m/a.bin")).unwrap();
        check(
            &statement(links.clone(), &all),
            (Some(0), &["signature.link-outside: a.bin"]),
        );
        fs::write(bench.path("a.bin"), [3; 25]).unwrap();
        let found = [
            "signature.changed-file: a.bin",
            "signature.link-outside: a.bin",
        ];
        check(&statement(links, &all), (Some(1), &found));
    }
}

#[test]
fn the_vectors_of_the_specification_come_out_as_it_says() {
    let vectors = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/peer/oms");
    let bench = Bench::new();
    bench.file("m/signme-1", "signme-1\n");
    bench.file("m/signme-2", "signme-2");
    let key = vectors.join("pub.pem");
    let check = |name: &str, model: &str, expected: &[&str]| {
        let file = vectors.join(format!("{name}.json"));
        let more = [
            "--signature",
            file.to_str().unwrap(),
            "--key",
            key.to_str().unwrap(),
        ];
        let (code, found, _) = verify(&bench, model, &more);
        assert_eq!(found, expected, "{name}");
        assert_eq!(code, Some(i32::from(!expected.is_empty())), "{name}");
    };
    check("v0.3.1", "m/signme-1", &[]);
    check("v1.0.1", "m", &[]);
    check("v1.1.0", "m", &[]);
    check("key", "m", &[]);
    // Patched after signing: its form is right, its signature is not.
    check(
        "wrong-predicate",
        "m",
        &["signature.invalid: wrong-predicate.json"],
    );
    for name in [
        "certificate",
        "sigstore",
        "missing-envelope",
        "missing-tlog-entries",
        "missing-verification-material",
    ] {
        check(name, "m", &[&format!("signature.unreadable: {name}.json")]);
    }
}

fn refused(outcome: &Outcome, part: &str) {
    assert_eq!(outcome.code, Some(2), "{}", outcome.stderr);
    assert!(outcome.stderr.contains(part), "{}", outcome.stderr);
}

#[test]
fn other_keys_and_other_places_are_refused_with_a_hint() {
    let bench = merged();
    let block = |label: &str| format!("-----BEGIN {label}-----\nMAA=\n-----END {label}-----\n");
    for (text, part) in [
        ("", "no PEM file"),
        ("-----BEGIN ", "no PEM file"),
        (&block("ENCRYPTED PRIVATE KEY"), "openssl pkcs8"),
        (
            "-----BEGIN EC PRIVATE KEY-----\nProc-Type: 4,ENCRYPTED\nDEK-Info: AES-256-CBC,00\n\nMAA=\n-----END EC PRIVATE \
             KEY-----\n",
            "openssl ec -in key.pem -out plain.pem",
        ),
        (&block("RSA PRIVATE KEY"), "where a private key is wanted"),
        (&block("PUBLIC KEY"), "where a private key is wanted"),
        (&block("PRIVATE KEY"), "no ECDSA key"),
        (&block("EC PRIVATE KEY"), "no ECDSA key"),
    ] {
        bench.file("bad.pem", text);
        refused(&bench.weld(&["sign", "out", "--key", "bad.pem"]), part);
    }
    for (text, part) in [
        (block("CERTIFICATE"), "openssl x509"),
        (block("PUBLIC KEY"), "no ECDSA key"),
        (
            fs::read_to_string(bench.path("key.pem")).unwrap(),
            "where a public key is wanted",
        ),
    ] {
        bench.file("bad.pem", text);
        refused(&bench.weld(&["verify", "out", "--key", "bad.pem"]), part);
    }
    // Neither the key nor a file of the model is lost.
    bench.file("out/key.pem", fs::read(bench.path("key.pem")).unwrap());
    refused(
        &bench.weld(&["sign", "out", "--key", "out/key.pem"]),
        "published",
    );
    let config = fs::read(bench.path("out/config.json")).unwrap();
    let over = [
        "sign",
        "out",
        "--key",
        "key.pem",
        "--signature",
        "out/config.json",
    ];
    refused(&bench.weld(&over), "no signature");
    assert_eq!(config, fs::read(bench.path("out/config.json")).unwrap());
    let nowhere = [
        "sign",
        "out",
        "--key",
        "key.pem",
        "--signature",
        "no/where.sig",
    ];
    refused(&bench.weld(&nowhere), "no such folder");
    refused(
        &bench.weld(&["verify", "out", "--signature", "x.sig"]),
        "--key",
    );
    refused(
        &bench.weld(&["verify", "out", "--signature", "x.sig", "--key", "pub.pem"]),
        "x.sig",
    );
    let (code, found, _) = verify(&bench, "out", &BY_KEY);
    assert_eq!(
        (code, found),
        (Some(1), vec!["signature.missing: model.sig".to_owned()])
    );
    fs::create_dir(bench.path("void")).unwrap();
    let outcome = bench.weld(&["sign", "void", "--key", "key.pem"]);
    assert_eq!(outcome.code, Some(1), "{}", outcome.stderr);
}

#[test]
fn an_attestation_is_of_what_was_recomputed_and_the_same_every_time() {
    let bench = merged();
    bench.file("out/notes.txt", "mine");
    let first = bench.weld(&["attest", "out"]);
    assert_eq!(first.code, Some(0), "{}", first.stderr);
    assert!(
        first.stderr.contains("not attested: notes.txt"),
        "{}",
        first.stderr
    );
    let written = [
        "attest",
        "out",
        "-o",
        "out.intoto.json",
        "--threads",
        "1",
        "--memory",
        "64MiB",
    ];
    let second = bench.weld(&written);
    assert_eq!(second.code, Some(0), "{}", second.stderr);
    assert!(second.stdout.contains("passed"), "{}", second.stdout);
    let text = fs::read_to_string(bench.path("out.intoto.json")).unwrap();
    assert_eq!(text, first.stdout);
    assert!(!text.contains(bench.path("").to_str().unwrap()), "{text}");
    // It may be written again, and over nothing else.
    assert_eq!(bench.weld(&written).code, Some(0));
    let lock = fs::read(bench.path("out/weldment.lock.json")).unwrap();
    for (name, why) in [
        ("out/notes.txt", "is no attestation"),
        ("out/weldment.lock.json", "is no attestation"),
        ("out", "is a folder"),
        ("nowhere/a.json", "there is no such folder"),
    ] {
        let refused = bench.weld(&["attest", "out", "-o", name]);
        assert_eq!(refused.code, Some(2), "{name}: {}", refused.stderr);
        assert!(refused.stderr.contains(why), "{name}: {}", refused.stderr);
    }
    assert_eq!(fs::read(bench.path("out/notes.txt")).unwrap(), b"mine");
    assert_eq!(
        fs::read(bench.path("out/weldment.lock.json")).unwrap(),
        lock
    );

    let statement: Value = serde_json::from_str(&text).unwrap();
    assert_eq!(statement["_type"], "https://in-toto.io/Statement/v1");
    assert_eq!(statement["predicateType"], "https://slsa.dev/provenance/v1");
    let digest = |path: &str| hex(&Sha256::digest(fs::read(bench.path(path)).unwrap()));
    let files = ["config.json", "model.safetensors", "weldment.lock.json"];
    let subject: Vec<Value> = files
        .iter()
        .map(|file| json!({"name": file, "digest": {"sha256": digest(&format!("out/{file}"))}}))
        .collect();
    assert_eq!(statement["subject"], Value::from(subject));
    let definition = &statement["predicate"]["buildDefinition"];
    let lock = read_json(&bench.path("out/weldment.lock.json"));
    assert_eq!(definition["externalParameters"]["recipe"], lock["recipe"]);
    assert_eq!(definition["externalParameters"]["options"], lock["options"]);
    let resolved: Vec<Value> = [
        "a/config.json",
        "a/model.safetensors",
        "b/config.json",
        "b/model.safetensors",
    ]
    .iter()
    .map(|file| json!({"name": file, "digest": {"sha256": digest(file)}}))
    .collect();
    assert_eq!(definition["resolvedDependencies"], Value::from(resolved));
    assert!(statement["predicate"]["runDetails"]["builder"]["id"].is_string());
}

#[test]
fn nothing_is_attested_that_is_not_exact() {
    let check = |change: &dyn Fn(&Bench), more: &[&str], code: i32| {
        let bench = merged();
        change(&bench);
        let mut arguments = vec!["attest", "out", "-q"];
        arguments.extend(more);
        let outcome = bench.weld(&arguments);
        assert_eq!(outcome.code, Some(code), "{}", outcome.stderr);
        assert_eq!(outcome.stdout, "");
        let mut to_file = arguments;
        to_file.extend(["-o", "out.intoto.json"]);
        assert_eq!(bench.weld(&to_file).code, Some(code));
        assert!(!bench.path("out.intoto.json").exists());
    };
    let flipped = |bench: &Bench| flip(&bench.path("out/model.safetensors"));
    check(&flipped, &[], 1);
    // Whatever a policy makes of it.
    let forgiving = |bench: &Bench| {
        flipped(bench);
        let off = "[severity]\n\"verify.tampered\" = \"off\"\n\"verify.lock-output\" = \"off\"\n\"verify.rounding\" = \
                   \"off\"\n[verify]\nallow = \"step\"\n";
        bench.file("policy.toml", off);
    };
    check(&forgiving, &["--policy", "policy.toml"], 1);
    let no_inputs = |bench: &Bench| fs::rename(bench.path("a"), bench.path("c")).unwrap();
    check(&no_inputs, &[], 3);
    let no_lock = |bench: &Bench| {
        fs::remove_file(bench.path("out/weldment.lock.json")).unwrap();
    };
    check(&no_lock, &["--recipe", "recipe.yml"], 1);
    let config = |bench: &Bench| {
        bench.file("out/config.json", "{}");
    };
    check(&config, &[], 1);
    let other = |bench: &Bench| {
        bench.file("recipe.yml", LINEAR.replace("0.6", "0.7"));
    };
    check(&other, &["--recipe", "recipe.yml"], 1);
}

#[test]
fn policies_ask_who_vouches_and_what_went_in() {
    let bench = merged();
    bench.file(
        "rules/policy.toml",
        "[provenance]\nrequire_signature = \"pub.pem\"\nrequire_attestation = \"../pub.pem\"\nallow_inputs = [\"[ab]\"]\n",
    );
    fs::copy(bench.path("pub.pem"), bench.path("rules/pub.pem")).unwrap();
    let policy = ["--policy", "rules/policy.toml"];
    let (code, found, _) = verify(&bench, "out", &policy);
    assert_eq!(code, Some(1));
    assert_eq!(
        found,
        [
            "attestation.missing: weldment.intoto.json",
            "signature.missing: model.sig"
        ]
    );
    let attest = [
        "attest",
        "out",
        "-q",
        "--key",
        "key.pem",
        "-o",
        "out/weldment.intoto.json",
    ];
    assert_eq!(bench.weld(&attest).code, Some(0));
    assert_eq!(
        bench.weld(&["sign", "out", "-q", "--key", "key.pem"]).code,
        Some(0)
    );
    let (code, found, report) = verify(&bench, "out", &policy);
    assert_eq!((code, found), (Some(0), vec![]));
    assert!(
        report["details"]["tensors"].is_array(),
        "recomputed as always"
    );
    assert_eq!(report["details"]["attestation"]["files"], 3);

    keys(&bench, "other-", 8);
    let other = [
        "verify",
        "out",
        "--policy",
        "rules/policy.toml",
        "--key",
        "other-pub.pem",
    ];
    refused(&bench.weld(&other), "not the key that the policy requires");

    // An input that is not allowed; by the lock too, where nothing is recomputed.
    bench.file(
        "strict.toml",
        "[provenance]\nallow_inputs = [\"org/*\", \"a\"]\n",
    );
    for more in [
        &["--policy", "strict.toml"][..],
        &["--policy", "strict.toml", "--key", "pub.pem"],
    ] {
        let (code, found, report) = verify(&bench, "out", more);
        assert_eq!(
            (code, found),
            (
                Some(1),
                vec!["provenance.input: weldment.lock.json".to_owned()]
            )
        );
        assert!(report["findings"].to_string().contains("\"found\":\"b\""));
    }
    let outcome = bench.weld(&["attest", "out", "-q", "--policy", "strict.toml"]);
    assert_eq!((outcome.code, outcome.stdout.as_str()), (Some(1), ""));

    // An attestation is held against the files by itself, and by its own key.
    let attestation = [
        "--attestation",
        "out/weldment.intoto.json",
        "--key",
        "pub.pem",
    ];
    assert_eq!(verify(&bench, "out", &attestation).0, Some(0));
    bench.file("out/modeling.py", "import os");
    flip(&bench.path("out/model.safetensors"));
    let (code, found, _) = verify(&bench, "out", &attestation);
    assert_eq!(code, Some(1));
    assert_eq!(
        found,
        [
            "attestation.file: model.safetensors",
            "attestation.file: modeling.py"
        ]
    );
    for text in [
        statement(plain(), &[("x", &[1; 32])]).to_string(),
        "{}".to_owned(),
    ] {
        bench.file("odd.json", bundle(&text).to_string());
        let odd = ["--attestation", "odd.json", "--key", "pub.pem"];
        let (code, found, _) = verify(&bench, "out", &odd);
        assert_eq!(
            (code, found),
            (Some(1), vec!["attestation.unreadable: odd.json".to_owned()])
        );
    }
}

/// What tools leave beside a model is no part of it; what the user names need not be signed.
#[test]
fn what_is_no_part_of_the_model_is_not_signed_and_may_come_and_go() {
    let bench = merged();
    bench.file("out/.cache/huggingface/download/config.json.metadata", "x");
    bench.file("out/notes/log.txt", "mine");
    let sign = |more: &[&str]| {
        let arguments = [&["sign", "out", "--key", "key.pem", "-q"], more].concat();
        let outcome = bench.weld(&arguments);
        assert_eq!(outcome.code, Some(0), "{}", outcome.stderr);
    };
    sign(&["--ignore", "notes/"]);
    let left_out = vec!["signature.left-out: notes".to_owned()];
    let (code, found, _) = verify(&bench, "out", &BY_KEY);
    assert_eq!((code, &found), (Some(0), &left_out));
    let knowing = ["--key", "pub.pem", "--ignore-paths", "notes"];
    assert_eq!(verify(&bench, "out", &knowing).1, Vec::<String>::new());
    fs::remove_dir_all(bench.path("out/.cache")).unwrap();
    fs::remove_dir_all(bench.path("out/notes")).unwrap();
    assert_eq!(verify(&bench, "out", &BY_KEY).0, Some(0));
    bench.file("out/.cache/huggingface/.gitignore", "*");
    assert_eq!(verify(&bench, "out", &BY_KEY).0, Some(0));
    bench.file("out/.cache/other.py", "import os");
    bench.file("out/extra.py", "import os");
    let (code, found, _) = verify(&bench, "out", &BY_KEY);
    let added = [
        "signature.added-file: .cache/other.py",
        "signature.added-file: extra.py",
    ];
    assert_eq!((code, found), (Some(1), added.map(str::to_owned).to_vec()));
    // What was signed is looked at, whatever is to be ignored.
    fs::remove_dir_all(bench.path("out/.cache")).unwrap();
    let ignoring = [
        "--key",
        "pub.pem",
        "--ignore",
        "extra.py",
        "--ignore",
        "config.json",
    ];
    assert_eq!(verify(&bench, "out", &ignoring).0, Some(0));
    flip(&bench.path("out/config.json"));
    let (code, found, _) = verify(&bench, "out", &ignoring);
    assert_eq!(code, Some(1));
    assert_eq!(found, ["signature.changed-file: config.json"]);
    for path in ["../a", "/etc", ""] {
        let outcome = bench.weld(&["verify", "out", "--key", "pub.pem", "--ignore", path]);
        refused(&outcome, "not a path in the checkpoint's folder");
    }
}

/// Signatures of other tools may cover what weld leaves out.
#[test]
fn files_of_git_that_are_signed_are_looked_at() {
    let bench = merged();
    bench.file("m/a.bin", [1; 25]);
    bench.file("m/.gitattributes", "*.bin filter=lfs");
    bench.file("m/.github/x.yml", "x");
    bench.file("m/.cache/huggingface/CACHEDIR.TAG", "tag");
    let digest = |name: &str| Sha256::digest(fs::read(bench.path("m").join(name)).unwrap());
    let names = [
        ".cache/huggingface/CACHEDIR.TAG",
        ".gitattributes",
        ".github/x.yml",
        "a.bin",
    ];
    let digests = names.map(digest);
    let resources: Vec<(&str, &[u8])> = names
        .into_iter()
        .zip(digests.iter().map(|digest| digest.as_slice()))
        .collect();
    bench.file(
        "m.sig",
        bundle(&statement(plain(), &resources).to_string()).to_string(),
    );
    let more = ["--signature", "m.sig", "--key", "pub.pem"];
    assert_eq!(verify(&bench, "m", &more).1, Vec::<String>::new());
    // Unsigned ones beside them are of git all the same.
    bench.file("m/.github/y.yml", "y");
    assert_eq!(verify(&bench, "m", &more).0, Some(0));
    bench.file("m/.gitattributes", "other");
    fs::remove_file(bench.path("m/.github/x.yml")).unwrap();
    let (code, found, _) = verify(&bench, "m", &more);
    assert_eq!(code, Some(1));
    assert_eq!(
        found,
        [
            "signature.changed-file: .gitattributes",
            "signature.missing-file: .github/x.yml"
        ]
    );
}
