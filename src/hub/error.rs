//! What can go wrong between here and the Hub.

use std::borrow::Cow;
use std::io;
use std::path::{Path, PathBuf};

use bytesize::ByteSize;

use errors::{Hint, printable};

/// Why a model could not be fetched or pushed.
#[derive(Debug, thiserror::Error)]
pub enum HubError {
    /// The address of the Hub cannot be used.
    #[error("`{}` is not an address of a Hub", printable(.endpoint))]
    BadEndpoint {
        /// The address.
        endpoint: String,
    },
    /// No client can be made.
    #[error("cannot open secure connections: {0}")]
    Client(String),
    /// The Hub wants to know who asks.
    #[error("the Hub does not give `{repo}` to {}", if *.known { "this account" } else { "those it does not know" })]
    Unauthorized {
        /// `org/name`.
        repo: String,
        /// Whether a token was sent.
        known: bool,
    },
    /// Its owner wants its terms to be accepted first, or the account may not do this.
    #[error("the Hub refuses `{repo}`{}", said(.message))]
    Forbidden {
        /// `org/name`.
        repo: String,
        /// Its page.
        page: String,
        /// What the Hub says.
        message: Option<String>,
        /// Whether the account would have to accept terms.
        gated: bool,
    },
    /// There is no such repository.
    #[error("the Hub has no model `{repo}`")]
    NoRepository {
        /// `org/name`.
        repo: String,
        /// Whether a token was sent: without one, private repositories look missing.
        known: bool,
    },
    /// There is no such revision.
    #[error("the Hub's `{repo}` has no revision `{}`", printable(.revision))]
    NoRevision {
        /// `org/name`.
        repo: String,
        /// The branch, tag or commit.
        revision: String,
        /// Its page.
        page: String,
    },
    /// It is to be fetched, but the network is not to be used.
    #[error("`{repo}` is not in the cache, and the network is not to be used")]
    Offline {
        /// `org/name`.
        repo: String,
        /// The revision that was asked for.
        revision: String,
    },
    /// The server answers, but not with what was asked for.
    #[error("{endpoint} answered {status} when asked for {what}{}", said(.message))]
    Status {
        /// The address.
        endpoint: String,
        /// The status code.
        status: u16,
        /// What was asked for.
        what: String,
        /// What the server says.
        message: Option<String>,
    },
    /// The server cannot be reached, or the connection breaks again and again.
    #[error("{endpoint} cannot be reached for {what}: {reason}")]
    Unreachable {
        /// The address.
        endpoint: String,
        /// What was asked for.
        what: String,
        /// What happened.
        reason: String,
    },
    /// An answer cannot be read.
    #[error("{what}: the answer of the server {problem}")]
    Malformed {
        /// What was asked for.
        what: String,
        /// What is wrong with it.
        problem: String,
    },
    /// A file of the repository has a name that no file here may have.
    #[error("`{repo}` lists a file `{}`, whose name would lead out of its folder", printable(.name))]
    BadName {
        /// `org/name`.
        repo: String,
        /// The name.
        name: String,
    },
    /// A file is not as long as the repository says.
    #[error("{} of `{repo}`: expected {expected} bytes as the Hub lists it, found {found}", printable(.file))]
    Length {
        /// `org/name`.
        repo: String,
        /// The file.
        file: String,
        /// The length that the repository lists.
        expected: u64,
        /// The length that the server sends.
        found: u64,
    },
    /// A file does not have the digest that the repository lists.
    #[error("{} of `{repo}`: expected {expected} as the Hub lists it, found {found}", printable(.file))]
    Digest {
        /// `org/name`.
        repo: String,
        /// The file.
        file: String,
        /// The listed digest.
        expected: String,
        /// The digest of what came.
        found: String,
    },
    /// The repository has no weights of a format that is read.
    #[error("`{repo}` has no safetensors and no pickles of torch{}", other(.found))]
    NoWeights {
        /// `org/name`.
        repo: String,
        /// A file of another format.
        found: Option<String>,
    },
    /// The headers of its weights cannot be fetched alone.
    #[error("{} of `{repo}` is a pickle, whose contents cannot be listed from afar", printable(.file))]
    PickledHeaders {
        /// `org/name`.
        repo: String,
        /// The file.
        file: String,
    },
    /// The header of a weight file is larger than any real one, or is cut short.
    #[error("{} of `{repo}`: its header takes {found} bytes of {size}", printable(.file))]
    Header {
        /// `org/name`.
        repo: String,
        /// The file.
        file: String,
        /// The length that it states.
        found: u64,
        /// The length of the file.
        size: u64,
    },
    /// The disk has too little room.
    #[error(
        "`{repo}` needs {} more in {}, which has {} left",
        ByteSize(*.needed).display().si(),
        .folder.display(),
        ByteSize(*.free).display().si()
    )]
    NoRoom {
        /// `org/name`.
        repo: String,
        /// The cache.
        folder: PathBuf,
        /// How many bytes are to come.
        needed: u64,
        /// How many there is room for.
        free: u64,
    },
    /// The folder that is to be pushed has something that cannot be uploaded.
    #[error("{} is {what}, which is not uploaded", .path.display())]
    NotAFile {
        /// Where it is.
        path: PathBuf,
        /// What it is.
        what: &'static str,
    },
    /// The folder that is to be pushed has no files.
    #[error("{} has no files", .folder.display())]
    Empty {
        /// The folder.
        folder: PathBuf,
    },
    /// It would be uploaded where all can see it, which was not asked for.
    #[error("`{repo}` is there already, and everyone can see it")]
    IsPublic {
        /// `org/name`.
        repo: String,
    },
    /// Something in the cache, or in the folder that is pushed, cannot be read or written.
    #[error("cannot {action} {}: {source}", .path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// Where.
        path: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
    /// The user asked to stop.
    #[error("stopped; what has come so far stays, and the next run goes on from there")]
    Stopped,
}

/// What a server says, on one line and not too long.
fn said(message: &Option<String>) -> String {
    const SHOWN: usize = 200;
    match message {
        Some(message) => {
            let line = message.split_whitespace().collect::<Vec<_>>().join(" ");
            let short: String = line.chars().take(SHOWN).collect();
            format!(": {}", printable(&short))
        }
        None => String::new(),
    }
}

fn other(found: &Option<String>) -> String {
    match found {
        Some(file) => format!(", only files such as {}", printable(file)),
        None => String::new(),
    }
}

impl HubError {
    pub(crate) fn io(action: &'static str, path: &Path, source: io::Error) -> Self {
        Self::Io {
            action,
            path: path.into(),
            source,
        }
    }
}

impl Hint for HubError {
    fn hint(&self) -> Option<Cow<'_, str>> {
        let login = "run `hf auth login`, or set HF_TOKEN";
        Some(match self {
            Self::BadEndpoint { .. } => {
                "correct HF_ENDPOINT: https://huggingface.co, or the address of a mirror".into()
            }
            Self::Unauthorized { known: true, .. } => {
                "see that the token is still valid and may read this repository: `hf auth whoami`"
                    .into()
            }
            Self::Unauthorized { .. } => format!(
                "check the name; if the repository is private or has terms to accept, {login}"
            )
            .into(),
            Self::Forbidden {
                page, gated: true, ..
            } => format!("accept its terms at {page} with your account; then {login}").into(),
            Self::Forbidden { page, .. } => {
                format!("see at {page} what your account may do, and that the token may write")
                    .into()
            }
            Self::NoRepository { known: true, .. } => "check the name".into(),
            Self::NoRepository { .. } => {
                format!("check the name; if it is private, {login}").into()
            }
            Self::NoRevision { page, .. } => format!("see {page}/commits for its commits").into(),
            Self::Offline { repo, revision } => format!(
                "leave out --offline and HF_HUB_OFFLINE, or run `hf download {repo}{}` where there is a network",
                match revision.as_str() {
                    "main" => String::new(),
                    other => format!(" --revision {}", printable(other)),
                }
            )
            .into(),
            Self::Status { status: 429, .. } => {
                format!("the server wants fewer requests: try again later, or {login}").into()
            }
            Self::Status { .. } => "try again later; what has come so far stays".into(),
            Self::Unreachable { .. } => {
                "check the network and HF_ENDPOINT, and run it again: what has come so far stays"
                    .into()
            }
            Self::Malformed { .. } => "see that HF_ENDPOINT is the address of a Hub".into(),
            Self::BadName { .. } => {
                "do not use this repository; nothing of it was fetched".into()
            }
            Self::Length { .. } | Self::Digest { .. } => {
                "the server, or something on the way to it, sends what was never uploaded: try again, or another \
                 HF_ENDPOINT"
                    .into()
            }
            Self::NoWeights {
                repo,
                found: Some(found),
            } if found.ends_with(".gguf") => format!(
                "name the repository with its safetensors, or run `hf download {repo} {found} --local-dir .` and name \
                 the file"
            )
            .into(),
            Self::NoWeights { .. } => "name the repository with its safetensors".into(),
            Self::PickledHeaders { repo, .. } => format!(
                "run `hf download {repo}` first, or `weld merge` without --scratch-limit, which fetches it all"
            )
            .into(),
            Self::Header { .. } => "the file is no safetensors file: tell its owner".into(),
            Self::NoRoom { .. } => {
                "free some space, or set HF_HUB_CACHE to a folder on a larger disk".into()
            }
            Self::NotAFile { .. } => "put a copy in its place, or remove it".into(),
            Self::Empty { .. } => "name the folder of a merge".into(),
            Self::IsPublic { .. } => "add --public if that is meant, or choose another name".into(),
            Self::Client(_) | Self::Io { .. } | Self::Stopped => return None,
        })
    }
}
