//! Sigstore bundles with a DSSE envelope: an in-toto statement and its signature by a local key. This module does not
//! know the content of the statement.
//!
//! The format is that of `sigstore_bundle.proto` v0.3 and of the DSSE protocol v1, as required by OpenSSF Model Signing
//! 1.0.

use base64ct::{Base64, Encoding};
use serde::Deserialize;
use serde::de::IgnoredAny;
use serde_json::json;

use super::keys::{PrivateKey, PublicKey};
use super::short;

/// The only format of bundles that is written and read.
const MEDIA_TYPE: &str = "application/vnd.dev.sigstore.bundle.v0.3+json";

/// The type of an envelope's payload.
const PAYLOAD_TYPE: &str = "application/vnd.in-toto+json";

/// Why a bundle is rejected.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Refused {
    /// It is not a bundle, or of a kind that cannot be checked; with the expected and the found value.
    Unreadable {
        expected: &'static str,
        found: String,
    },
    /// It names another key.
    OtherKey { expected: String, found: String },
    /// The signature does not match the key and the payload.
    Invalid,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Bundle {
    media_type: String,
    verification_material: Material,
    dsse_envelope: Envelope,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Material {
    public_key: Option<KeyHint>,
    certificate: Option<IgnoredAny>,
    x509_certificate_chain: Option<IgnoredAny>,
}

/// The name of a bundle's key: in `hint` since model-signing 1.1, and as PEM text in `rawBytes` before.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct KeyHint {
    hint: Option<String>,
    raw_bytes: Option<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Envelope {
    payload: String,
    payload_type: String,
    signatures: Vec<Signature>,
}

#[derive(Deserialize)]
struct Signature {
    sig: String,
}

/// The bytes that are signed: the payload with its type and length (DSSE's pre-authentication encoding).
fn authenticated(payload: &[u8]) -> Vec<u8> {
    let head = format!(
        "DSSEv1 {} {PAYLOAD_TYPE} {} ",
        PAYLOAD_TYPE.len(),
        payload.len()
    );
    [head.as_bytes(), payload].concat()
}

/// Whether the bytes are a bundle, whoever signed it.
pub fn is_bundle(bytes: &[u8]) -> bool {
    serde_json::from_slice::<Bundle>(bytes).is_ok_and(|bundle| bundle.media_type == MEDIA_TYPE)
}

/// Signs a statement and returns the text of the bundle; `None` if the key cannot sign.
pub(super) fn write(payload: &[u8], key: &PrivateKey) -> Option<String> {
    let signature = key.sign(&authenticated(payload))?;
    let bundle = json!({
        "mediaType": MEDIA_TYPE,
        "verificationMaterial": {
            "publicKey": {"hint": key.public().fingerprint()},
            "tlogEntries": [],
        },
        "dsseEnvelope": {
            "payload": Base64::encode_string(payload),
            "payloadType": PAYLOAD_TYPE,
            "signatures": [{"sig": Base64::encode_string(&signature), "keyid": ""}],
        },
    });
    Some(bundle.to_string() + "\n")
}

/// Returns the statement of a bundle if this key signed it.
pub(super) fn open(bytes: &[u8], key: &PublicKey) -> Result<Vec<u8>, Refused> {
    let unreadable = |expected, found: String| Refused::Unreadable { expected, found };
    let bundle: Bundle = serde_json::from_slice(bytes)
        .map_err(|error| unreadable("a Sigstore bundle in JSON", short(&error.to_string())))?;
    if bundle.media_type != MEDIA_TYPE {
        return Err(unreadable(MEDIA_TYPE, short(&bundle.media_type)));
    }
    let material = bundle.verification_material;
    let Some(named) = material.public_key else {
        let found = match (material.certificate, material.x509_certificate_chain) {
            (Some(_), _) => "the certificate of a keyless Sigstore signature",
            (None, Some(_)) => "a chain of certificates",
            (None, None) => "no verification material",
        };
        return Err(unreadable("the signature of a local key", found.to_owned()));
    };
    other_key(&named, key)?;
    let envelope = bundle.dsse_envelope;
    if envelope.payload_type != PAYLOAD_TYPE {
        return Err(unreadable(PAYLOAD_TYPE, short(&envelope.payload_type)));
    }
    let [signature] = envelope.signatures.as_slice() else {
        let found = format!("{} signatures", envelope.signatures.len());
        return Err(unreadable("one signature", found));
    };
    let decode = |text: &str, what: &str| {
        let found = |_| unreadable("base64", format!("a {what} that is not"));
        Base64::decode_vec(text).map_err(found)
    };
    let payload = decode(&envelope.payload, "payload")?;
    let signature = decode(&signature.sig, "signature")?;
    match key.verify(&authenticated(&payload), &signature) {
        true => Ok(payload),
        false => Err(Refused::Invalid),
    }
}

/// Rejects a bundle that names another key.
fn other_key(named: &KeyHint, key: &PublicKey) -> Result<(), Refused> {
    let expected = key.fingerprint();
    let found = match (&named.hint, &named.raw_bytes) {
        (Some(hint), _) if !hint.is_empty() => hint.clone(),
        (_, Some(raw)) => match Base64::decode_vec(raw) {
            Ok(pem) if pem == key.pem().as_bytes() => return Ok(()),
            Ok(pem) => base16ct::lower::encode_string(&<sha2::Sha256 as sha2::Digest>::digest(pem)),
            Err(_) => "a key that is not base64".to_owned(),
        },
        // The bundle names no key, so the signature decides.
        _ => return Ok(()),
    };
    match found == expected {
        true => Ok(()),
        false => Err(Refused::OtherKey {
            expected,
            found: short(&found),
        }),
    }
}
