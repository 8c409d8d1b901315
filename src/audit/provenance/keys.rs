//! Keys in PEM and their signatures: ECDSA on the curves that OpenSSF Model Signing requires. Does not know models.

use std::borrow::Cow;
use std::fmt;

use errors::Hint;
use p256::pkcs8::{DecodePrivateKey, DecodePublicKey, EncodePublicKey, LineEnding};
use sha2::{Digest, Sha256};

/// Why a key cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    /// The file has no PEM block.
    #[error("it is no PEM file: expected a block that begins with `-----BEGIN`")]
    NotPem(KeyHalf),
    /// The PEM block is not the kind of key that was expected.
    #[error("it holds `{}`, where {} is wanted", .found.escape_debug(), .wanted)]
    OtherKind {
        /// The expected half of a key.
        wanted: KeyHalf,
        /// The label of the PEM block.
        found: String,
        /// A remedy.
        hint: &'static str,
    },
    /// The key is encrypted.
    #[error("it is encrypted, and weld asks for no passphrase")]
    Encrypted {
        /// How it is decrypted.
        hint: &'static str,
    },
    /// The key is of a kind that is not used to sign models.
    #[error(
        "`{label}` holds no ECDSA key on P-256, P-384 or P-521: other curves, RSA and Ed25519 are not used for signing \
         models, or the block is damaged"
    )]
    Unusable {
        /// The expected half of a key.
        wanted: KeyHalf,
        /// The label of the PEM block.
        label: &'static str,
    },
}

impl Hint for KeyError {
    fn hint(&self) -> Option<Cow<'_, str>> {
        Some(Cow::Borrowed(match self {
            Self::NotPem(wanted) | Self::Unusable { wanted, .. } => wanted.hint(),
            Self::OtherKind { hint, .. } | Self::Encrypted { hint } => hint,
        }))
    }
}

/// Which half of a key is expected.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KeyHalf {
    /// The private key, which signs.
    Private,
    /// The public key, which verifies.
    Public,
}

impl KeyHalf {
    fn hint(self) -> &'static str {
        match self {
            KeyHalf::Private => {
                "`openssl ecparam -name prime256v1 -genkey -noout -out key.pem` makes one"
            }
            KeyHalf::Public => {
                "`openssl ec -in key.pem -pubout -out pub.pem` writes it for a private key"
            }
        }
    }
}

impl fmt::Display for KeyHalf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            KeyHalf::Private => "a private key",
            KeyHalf::Public => "a public key",
        })
    }
}

/// The first PEM block that is a key: its label and its text.
fn block(text: &str, wanted: KeyHalf) -> Result<(&str, &str), KeyError> {
    let mut rest = text;
    while let Some(begin) = rest.find("-----BEGIN ") {
        let from = &rest[begin..];
        let label = from.trim_start_matches("-----BEGIN ");
        let Some((label, body)) = label.split_once("-----") else {
            break;
        };
        // OpenSSL writes a block with the curve's name before the key.
        if label == "EC PARAMETERS" {
            rest = body;
            continue;
        }
        let end = format!("-----END {label}-----");
        let Some(at) = from.find(&end) else { break };
        return Ok((label, &from[..at + end.len()]));
    }
    Err(KeyError::NotPem(wanted))
}

/// The error for a block that is not a key of the expected half.
fn other_kind(label: &str, wanted: KeyHalf) -> KeyError {
    let hint = match (label, wanted) {
        ("ENCRYPTED PRIVATE KEY", KeyHalf::Private) => {
            return KeyError::Encrypted {
                hint: "decrypt it with `openssl pkcs8 -in key.pem -out plain.pem`",
            };
        }
        ("CERTIFICATE", KeyHalf::Public) => {
            "`openssl x509 -in cert.pem -pubkey -noout` writes its public key"
        }
        _ => wanted.hint(),
    };
    KeyError::OtherKind {
        wanted,
        found: label.chars().take(64).collect(),
        hint,
    }
}

/// Defines the enums over the three curves, each served by the crate of that curve.
macro_rules! curves {
    ($($name:ident = $krate:ident, $text:literal;)*) => {
        enum SigningCurve {
            $($name($krate::ecdsa::SigningKey),)*
        }

        #[derive(Clone)]
        enum VerifyingCurve {
            $($name($krate::ecdsa::VerifyingKey),)*
        }

        impl SigningCurve {
            fn read(label: &str, pem: &str) -> Option<SigningCurve> {
                $(
                    let key = match label {
                        "EC PRIVATE KEY" => $krate::SecretKey::from_sec1_pem(pem).ok(),
                        _ => $krate::SecretKey::from_pkcs8_pem(pem).ok(),
                    };
                    if let Some(key) = key {
                        return Some(SigningCurve::$name(key.into()));
                    }
                )*
                None
            }

            fn sign(&self, message: &[u8]) -> Option<Vec<u8>> {
                match self {
                    $(SigningCurve::$name(key) => {
                        use $krate::ecdsa::{Signature, signature::Signer};
                        let signature: Signature = key.try_sign(message).ok()?;
                        Some(signature.to_der().as_bytes().to_vec())
                    })*
                }
            }

            fn public(&self) -> VerifyingCurve {
                match self {
                    $(SigningCurve::$name(key) => VerifyingCurve::$name(*key.verifying_key()),)*
                }
            }
        }

        impl VerifyingCurve {
            fn read(pem: &str) -> Option<VerifyingCurve> {
                $(
                    if let Ok(key) = $krate::ecdsa::VerifyingKey::from_public_key_pem(pem) {
                        return Some(VerifyingCurve::$name(key));
                    }
                )*
                None
            }

            fn verify(&self, message: &[u8], signature: &[u8]) -> bool {
                match self {
                    $(VerifyingCurve::$name(key) => {
                        use $krate::ecdsa::{Signature, signature::Verifier};
                        Signature::from_der(signature)
                            .is_ok_and(|signature| key.verify(message, &signature).is_ok())
                    })*
                }
            }

            fn pem(&self) -> Option<String> {
                match self {
                    $(VerifyingCurve::$name(key) => key.to_public_key_pem(LineEnding::LF).ok(),)*
                }
            }

            fn curve(&self) -> &'static str {
                match self {
                    $(VerifyingCurve::$name(_) => $text,)*
                }
            }
        }
    };
}

curves! {
    P256 = p256, "P-256";
    P384 = p384, "P-384";
    P521 = p521, "P-521";
}

/// A private key, which signs.
pub struct PrivateKey(SigningCurve);

impl PrivateKey {
    /// Reads a key in PEM: PKCS#8 (`PRIVATE KEY`) or SEC1 (`EC PRIVATE KEY`).
    ///
    /// # Errors
    /// The text holds no private key, the key is encrypted, or it is of another algorithm.
    pub fn read(text: &str) -> Result<PrivateKey, KeyError> {
        let wanted = KeyHalf::Private;
        let (label, pem) = block(text, wanted)?;
        let label = match label {
            "PRIVATE KEY" => "PRIVATE KEY",
            // OpenSSL's older way to encrypt a key: headers within the block.
            "EC PRIVATE KEY" if pem.contains("Proc-Type: 4,ENCRYPTED") => {
                return Err(KeyError::Encrypted {
                    hint: "decrypt it with `openssl ec -in key.pem -out plain.pem`",
                });
            }
            "EC PRIVATE KEY" => "EC PRIVATE KEY",
            other => return Err(other_kind(other, wanted)),
        };
        let curve = SigningCurve::read(label, pem).ok_or(KeyError::Unusable { wanted, label })?;
        Ok(PrivateKey(curve))
    }

    /// Signs a message; returns the signature in DER, or `None` if the key cannot sign. Signatures are deterministic
    /// (RFC 6979).
    pub(super) fn sign(&self, message: &[u8]) -> Option<Vec<u8>> {
        self.0.sign(message)
    }

    /// The public key that belongs to this key.
    pub fn public(&self) -> PublicKey {
        PublicKey(self.0.public())
    }
}

/// A public key, which verifies.
#[derive(Clone)]
pub struct PublicKey(VerifyingCurve);

impl PublicKey {
    /// Reads a key in PEM (`PUBLIC KEY`).
    ///
    /// # Errors
    /// The text holds no public key, or one of another algorithm.
    pub fn read(text: &str) -> Result<PublicKey, KeyError> {
        let wanted = KeyHalf::Public;
        let (label, pem) = block(text, wanted)?;
        if label != "PUBLIC KEY" {
            return Err(other_kind(label, wanted));
        }
        let label = "PUBLIC KEY";
        let curve = VerifyingCurve::read(pem).ok_or(KeyError::Unusable { wanted, label })?;
        Ok(PublicKey(curve))
    }

    /// Whether `signature`, in DER, is this key's signature of `message`.
    pub(super) fn verify(&self, message: &[u8], signature: &[u8]) -> bool {
        self.0.verify(message, signature)
    }

    /// The SHA-256 of the key in PEM, in hex: the name of the key in a bundle.
    pub fn fingerprint(&self) -> String {
        // A key that could be read can be written.
        base16ct::lower::encode_string(&Sha256::digest(self.0.pem().unwrap_or_default()))
    }

    /// The key in PEM.
    pub(super) fn pem(&self) -> String {
        self.0.pem().unwrap_or_default()
    }

    /// The name of its curve.
    pub fn curve(&self) -> &'static str {
        self.0.curve()
    }
}

impl fmt::Debug for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.curve(), self.fingerprint())
    }
}
