//! What can go wrong between here and an object store.

use std::borrow::Cow;
use std::error::Error;
use std::io;
use std::path::{Path, PathBuf};

use bytesize::ByteSize;

use errors::{Hint, printable};

/// Why a model could not be read from a store.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The address cannot be used.
    #[error("`{}` {problem}", printable(.address))]
    BadAddress {
        /// The address, without what may be secret.
        address: String,
        /// What is wrong with it.
        problem: String,
    },
    /// The AWS files have no such profile.
    #[error("the AWS config has no profile `{}`", printable(.name))]
    NoProfile {
        /// Its name.
        name: String,
    },
    /// A profile gets its keys in a way that is not known here.
    #[error("the AWS profile `{}` gets its keys by `{way}`, which weld does not do", printable(.profile))]
    OtherCredentials {
        /// Its name.
        profile: String,
        /// The key that says so.
        way: &'static str,
    },
    /// No client can be made.
    #[error("cannot make a client for `{address}`: {reason}")]
    Client {
        /// The address.
        address: String,
        /// Why.
        reason: String,
    },
    /// The network is not to be used.
    #[error("the network is not to be used")]
    Offline,
    /// Nothing is there.
    #[error("there is nothing at `{address}`")]
    Nothing {
        /// The address.
        address: String,
    },
    /// The store does not know who asks, or does not let them.
    #[error("the store refuses {what}{}", by_code(.status, .code))]
    Denied {
        /// What was asked for.
        what: String,
        /// The status of its answer.
        status: Option<u16>,
        /// What it calls the error.
        code: Option<String>,
    },
    /// The credentials that there should be are not there.
    #[error("there are no credentials for {what}")]
    NoCredentials {
        /// What was asked for.
        what: String,
    },
    /// The store answers, but not with what was asked for.
    #[error("the store fails at {what}{}", by_code(.status, .code))]
    Failed {
        /// What was asked for.
        what: String,
        /// The status of its answer.
        status: Option<u16>,
        /// What it calls the error.
        code: Option<String>,
    },
    /// The store cannot be reached, or the connection breaks again and again.
    #[error("the store cannot be reached for {what}: {reason}")]
    Unreachable {
        /// What was asked for.
        what: String,
        /// What happened.
        reason: String,
    },
    /// An answer is not what was asked for.
    #[error("{what}: {problem}")]
    Wrong {
        /// What was asked for.
        what: String,
        /// What is wrong with the answer.
        problem: String,
    },
    /// An object is another one than it was.
    #[error("{what} has changed in the store since weld first looked at it")]
    Changed {
        /// The object.
        what: String,
    },
    /// A name that no file here may have.
    #[error("`{address}` has a file `{}`, whose name would lead out of its folder", printable(.name))]
    BadName {
        /// The address.
        address: String,
        /// The name.
        name: String,
    },
    /// More objects than any model has.
    #[error("`{address}` has more than {limit} objects")]
    TooMany {
        /// The address.
        address: String,
        /// How many are read.
        limit: usize,
    },
    /// There are no weights of a format that is read.
    #[error("`{address}` has no safetensors and no pickles of torch")]
    NoWeights {
        /// The address.
        address: String,
    },
    /// The headers of its weights cannot be fetched alone.
    #[error("{what} is a pickle, whose contents cannot be listed from afar")]
    PickledHeaders {
        /// The file.
        what: String,
    },
    /// The header of a weight file is larger than any real one, or is cut short.
    #[error("{what}: its header takes {found} bytes of {size}")]
    Header {
        /// The file.
        what: String,
        /// The length that it states.
        found: u64,
        /// The length of the file.
        size: u64,
    },
    /// The disk has too little room.
    #[error(
        "`{address}` needs {} in {}, which has {} left",
        ByteSize(*.needed).display().si(),
        .folder.display(),
        ByteSize(*.free).display().si()
    )]
    NoRoom {
        /// The address.
        address: String,
        /// Where it would be kept.
        folder: PathBuf,
        /// How many bytes are to come.
        needed: u64,
        /// How many there is room for.
        free: u64,
    },
    /// Something on this machine cannot be read or written.
    #[error("cannot {action} {}: {source}", .path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// Where.
        path: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
    /// A web server takes no files.
    #[error("`{address}` is on a web server, which takes no files")]
    OnWeb {
        /// The address.
        address: String,
    },
    /// What is where the output should go does not look like a checkpoint, so it is not replaced.
    #[error("`{address}` holds {objects} files and no checkpoint: there is no config.json")]
    NoCheckpoint {
        /// The address.
        address: String,
        /// How many files there are.
        objects: usize,
    },
    /// Another run writes there, or was killed.
    #[error("a run of weld writes to `{address}` since {since}, or was killed there")]
    Written {
        /// The address.
        address: String,
        /// When its note was last changed.
        since: String,
    },
    /// Another run has replaced the note of this one.
    #[error("another run of weld writes to `{address}` now")]
    TakenOver {
        /// The address.
        address: String,
    },
    /// The store cannot put a file under a condition, so two runs could write the same files.
    #[error(
        "the store of `{address}` cannot tell whether a file is there already when it puts one"
    )]
    NoConditions {
        /// The address.
        address: String,
    },
    /// Another run has done the same part.
    #[error("another run has done part {part} of `{address}` meanwhile")]
    DoneMeanwhile {
        /// The output.
        address: String,
        /// The part.
        part: String,
    },
    /// Files were being put in place when it failed.
    #[error("some files are in place at `{address}`, and some are not: {reason}")]
    HalfPlaced {
        /// The address.
        address: String,
        /// What failed.
        reason: String,
    },
    /// The user asked to stop.
    #[error("stopped")]
    Stopped,
}

fn by_code(status: &Option<u16>, code: &Option<String>) -> String {
    match (status, code) {
        (Some(status), Some(code)) => format!(": {status} {code}"),
        (Some(status), None) => format!(": {status}"),
        (None, Some(code)) => format!(": {code}"),
        (None, None) => String::new(),
    }
}

impl StoreError {
    pub(crate) fn io(action: &'static str, path: &Path, source: io::Error) -> Self {
        Self::Io {
            action,
            path: path.into(),
            source,
        }
    }

    /// What object_store says, without its texts: those have addresses, keys and signatures in them.
    pub(crate) fn of(error: object_store::Error, what: &str) -> Self {
        use object_store::Error as E;
        let text = error.to_string();
        let (status, code) = (status(&text), code(&text));
        let what = what.to_owned();
        let wrong = |problem: &str| Self::Wrong {
            what: what.clone(),
            problem: problem.to_owned(),
        };
        match &error {
            E::NotFound { .. } if code.as_deref() == Some("NoSuchBucket") => {
                Self::Denied { what, status, code }
            }
            E::NotFound { .. } => wrong("is not in the store (any more)"),
            E::Precondition { .. } => Self::Changed { what },
            E::PermissionDenied { .. } | E::Unauthenticated { .. } => {
                Self::Denied { what, status, code }
            }
            // Where a cloud's machines find their credentials: this is none of them.
            _ if ["169.254.", "metadata.google.internal"]
                .iter()
                .any(|host| text.contains(host)) =>
            {
                Self::NoCredentials { what }
            }
            _ if text.contains("non-partial response") => {
                wrong("the store ignores that only a part of the file was asked for")
            }
            _ if text.contains("Requested") && text.contains("got") => {
                wrong("the store sent another part of the file than was asked for")
            }
            _ if text.contains("without LOCATION") => Self::Failed {
                what,
                status: None,
                code: Some("another region".to_owned()),
            },
            _ if status.is_some() => Self::Failed { what, status, code },
            _ => Self::Unreachable {
                what,
                reason: reason(&error),
            },
        }
    }
}

/// The status code in a message of object_store.
fn status(text: &str) -> Option<u16> {
    let (_, rest) = text.split_once("status code: ")?;
    rest.get(..3)?.parse().ok()
}

/// The name of an error in the XML or JSON of an answer: a word, never a text.
fn code(text: &str) -> Option<String> {
    const LONGEST: usize = 64;
    let (_, rest) = text.split_once("<Code>")?;
    let (code, _) = rest.split_once("</Code>")?;
    let is_word = code.len() <= LONGEST && code.bytes().all(|b| b.is_ascii_alphanumeric());
    (is_word && !code.is_empty()).then(|| code.to_owned())
}

/// The first cause of an error, if it has no address in it.
pub(crate) fn reason(error: &dyn Error) -> String {
    let mut cause = error;
    while let Some(inner) = cause.source() {
        cause = inner;
    }
    let text = cause.to_string();
    match text.contains("://") {
        true => "the request failed".to_owned(),
        false => printable(&text).to_string(),
    }
}

impl Hint for StoreError {
    fn hint(&self) -> Option<Cow<'_, str>> {
        let again = "run it again; if it stays so, ask who runs the store";
        Some(match self {
            Self::BadAddress { .. } => {
                "write it as s3://BUCKET/FOLDER, gs://BUCKET/FOLDER, az://CONTAINER/FOLDER or https://HOST/FOLDER; \
                 credentials come from the environment"
                    .into()
            }
            Self::NoProfile { .. } => "correct AWS_PROFILE: `aws configure list-profiles` names them".into(),
            Self::OtherCredentials { profile, .. } => format!(
                "run `eval \"$(aws configure export-credentials --profile {profile} --format env)\"` first, and unset \
                 AWS_PROFILE"
            )
            .into(),
            Self::Client { .. } => "see in docs/stores.md which variables each kind of store needs".into(),
            Self::Offline => "leave out --offline and HF_HUB_OFFLINE, or copy the model to a folder".into(),
            Self::Nothing { .. } => "check the bucket and the path: name the folder that has config.json".into(),
            Self::Denied { code, .. } if code.as_deref() == Some("NoSuchBucket") => {
                "check the name of the bucket, and the endpoint".into()
            }
            Self::Denied { .. } => {
                "see that the credentials are of an account that may do this, that they are still valid, and that the \
                 region is right"
                    .into()
            }
            Self::NoCredentials { .. } => {
                "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE; for Google GOOGLE_APPLICATION_CREDENTIALS; \
                 for a public bucket AWS_SKIP_SIGNATURE=true or GOOGLE_SKIP_SIGNATURE=true"
                    .into()
            }
            Self::Failed { code, .. } if code.as_deref() == Some("another region") => {
                "set AWS_REGION to the region of the bucket".into()
            }
            Self::Failed { .. } => again.into(),
            Self::Unreachable { .. } => {
                "check the network, the address and the endpoint (AWS_ENDPOINT_URL), and run it again".into()
            }
            Self::Wrong { .. } => {
                "see that nothing else writes there; if it stays so, copy the model to a folder".into()
            }
            Self::Changed { .. } => "see that nothing else writes there, and run it again".into(),
            Self::BadName { .. } => "do not use this folder; nothing of it was fetched".into(),
            Self::TooMany { .. } => "name the folder of one model".into(),
            Self::NoWeights { .. } => "name the folder with its safetensors".into(),
            Self::PickledHeaders { .. } => {
                "a merge can read it, but a plan cannot: copy it to a folder, or convert it to safetensors".into()
            }
            Self::Header { .. } => "the file is no safetensors file: tell its owner".into(),
            Self::NoRoom { .. } => {
                "free some space, or set XDG_CACHE_HOME to a folder on a larger disk".into()
            }
            Self::OnWeb { .. } => "write to a folder, or to s3://, gs:// or az://".into(),
            Self::NoCheckpoint { .. } => {
                "name a folder of its own, or remove what is there with the store's own tool".into()
            }
            Self::Written { .. } => {
                "wait for it; if it does not run any more, --force removes what it has left".into()
            }
            Self::TakenOver { .. } => "let one of the two end, and write again with --force".into(),
            Self::NoConditions { .. } => {
                "if it can (If-None-Match), set AWS_CONDITIONAL_PUT=etag; else write to a folder, and copy that".into()
            }
            Self::DoneMeanwhile { .. } => {
                "it will be joined as it is; to do it once more, add --force".into()
            }
            Self::HalfPlaced { .. } => {
                "there is no config.json, so nothing takes it for a checkpoint: write it again with --force".into()
            }
            Self::Io { .. } | Self::Stopped => return None,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_an_answer_only_the_status_and_its_name_are_told() {
        let text = "Error performing GET https://b.s3.amazonaws.com/x?X-Amz-Signature=secret in 1s - Server returned \
                    non-2xx status code: 403 Forbidden: <Error><Code>SignatureDoesNotMatch</Code><AWSAccessKeyId>\
                    secret</AWSAccessKeyId></Error>";
        let error = object_store::Error::PermissionDenied {
            path: "x".to_owned(),
            source: text.into(),
        };
        let said = StoreError::of(error, "config.json of `s3://b/x`").to_string();
        assert_eq!(
            said,
            "the store refuses config.json of `s3://b/x`: 403 SignatureDoesNotMatch"
        );
        assert_eq!(code("<Code>a secret</Code>"), None);
        let generic = |text: &'static str| object_store::Error::Generic {
            store: "S3",
            source: text.into(),
        };
        let said = StoreError::of(generic("failed at https://key:secret@h"), "x").to_string();
        assert_eq!(
            said,
            "the store cannot be reached for x: the request failed"
        );
        let said = StoreError::of(generic("error at http://169.254.169.254/latest"), "x");
        assert!(matches!(said, StoreError::NoCredentials { .. }), "{said}");
    }
}
