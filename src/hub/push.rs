//! Uploads a folder to a model's repository in one commit.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};

use hf_hub::progress::{Progress, ProgressEvent, ProgressHandler, UploadEvent};
use hf_hub::repository::CommitOperation;
use hf_hub::{HFClient, HFError, RepoTypeModel, split_id};
use serde_json::Value;

use super::error::HubError;
use super::http::{Refused, reason};
use super::{Hub, Observer};
use checkpoint::{TreeKind, is_weights, tree};

/// The branch that is pushed to.
const BRANCH: &str = "main";

/// Folders that are of tools, not of the model.
const OF_TOOLS: [&str; 4] = [".git", ".cache", "__pycache__", ".ipynb_checkpoints"];

/// A file that is uploaded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Upload {
    /// Its path in the repository: plain names joined by `/`.
    pub name: String,
    /// Where it is.
    pub path: PathBuf,
    /// Its length.
    pub bytes: u64,
}

impl Upload {
    /// The files of a folder, by name; without those that git and notebooks keep for themselves.
    ///
    /// # Errors
    /// The folder cannot be listed, has no files, or has links out of it or what is no file.
    pub fn of_folder(folder: &Path) -> Result<Vec<Upload>, HubError> {
        let skip = |name: &str| name.split('/').any(|part| OF_TOOLS.contains(&part));
        let entries = tree(folder, &skip).map_err(|error| {
            let source = std::io::Error::other(error.to_string());
            HubError::io("list", folder, source)
        })?;
        let mut files = Vec::new();
        for entry in entries {
            let what = match entry.kind {
                TreeKind::File(bytes)
                | TreeKind::Link {
                    bytes,
                    outside: false,
                } => {
                    files.push(Upload {
                        name: entry.name,
                        path: entry.path,
                        bytes,
                    });
                    continue;
                }
                TreeKind::Link { .. } => "a link out of the folder",
                TreeKind::Other(what) => what,
            };
            return Err(HubError::NotAFile {
                path: entry.path,
                what,
            });
        }
        match files.is_empty() {
            true => Err(HubError::Empty {
                folder: folder.to_owned(),
            }),
            false => Ok(files),
        }
    }
}

/// What pushing files to a repository does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Push {
    /// `org/name`.
    pub repo: String,
    /// The files.
    pub files: Vec<Upload>,
    /// The commit on which it builds; none if the repository is to be created.
    pub onto: Option<String>,
    /// Weights of the repository that the new ones replace, though they have other names.
    pub removed: Vec<String>,
    /// Whether everyone may see it.
    pub public: bool,
}

/// What was pushed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pushed {
    /// The page of the repository.
    pub page: String,
    /// The new commit, if the Hub names it.
    pub commit: Option<String>,
}

impl Hub {
    /// What pushing files to a repository would do.
    ///
    /// # Errors
    /// The Hub cannot be reached or does not give the repository, or all can see it and that was not asked for.
    pub fn plan_push(
        &self,
        repo: &str,
        files: Vec<Upload>,
        public: bool,
        observer: &dyn Observer,
    ) -> Result<Push, HubError> {
        let mut push = Push {
            repo: repo.to_owned(),
            files,
            onto: None,
            removed: Vec::new(),
            public,
        };
        let info = match self.info(repo, BRANCH, observer) {
            Ok(info) => info,
            Err(HubError::NoRepository { .. }) => return Ok(push),
            Err(error) => return Err(error),
        };
        if info.get("private").and_then(Value::as_bool) == Some(false) && !public {
            return Err(HubError::IsPublic {
                repo: repo.to_owned(),
            });
        }
        let commit = self.commit(repo, BRANCH, observer)?;
        let kept: BTreeSet<&str> = push.files.iter().map(|file| file.name.as_str()).collect();
        // A shard or an index of other weights would make one model of two.
        let is_stale = |name: &str| {
            let of_weights = is_weights(name) || name.ends_with(".index.json");
            of_weights && !name.contains('/') && !kept.contains(name)
        };
        let there = self.files(repo, &commit, observer)?;
        let names = there.into_iter().map(|entry| entry.name);
        push.removed = names.filter(|name| is_stale(name)).collect();
        push.onto = Some(commit);
        Ok(push)
    }

    /// Pushes files in one commit. A repository that is not there is created.
    ///
    /// # Errors
    /// The Hub cannot be reached, or does not let this account write there.
    pub fn push(
        &self,
        push: &Push,
        message: &str,
        observer: Arc<dyn Observer>,
    ) -> Result<Pushed, HubError> {
        let error = |error| self.of_client(error, &push.repo);
        let mut builder = HFClient::builder()
            .endpoint(self.settings.endpoint.trim_end_matches('/'))
            .cache_dir(&self.settings.cache)
            .user_agent(concat!("weldment/", env!("CARGO_PKG_VERSION")))
            .retry_base_delay(self.settings.pause);
        if let Some(token) = &self.settings.token {
            builder = builder.token(token);
        }
        let client = builder.build_sync().map_err(error)?;
        if push.onto.is_none() {
            client
                .create_repository()
                .repo_id(&push.repo)
                .repo_type(RepoTypeModel)
                .private(!push.public)
                .exist_ok(true)
                .send()
                .map_err(error)?;
        }
        let add = |file: &Upload| CommitOperation::add_file(&file.name, &file.path);
        let remove = push.removed.iter().map(CommitOperation::delete);
        let operations = push.files.iter().map(add).chain(remove).collect();
        let (owner, name) = split_id(&push.repo);
        let sent = Sent {
            repo: push.repo.clone(),
            bytes: AtomicU64::new(0),
            observer: Arc::clone(&observer),
        };
        let done = client
            .model(owner, name)
            .create_commit()
            .operations(operations)
            .commit_message(message)
            .revision(BRANCH)
            .maybe_parent_commit(push.onto.clone())
            .progress(Progress::new(sent))
            .send();
        observer.finish();
        let done = done.map_err(error)?;
        Ok(Pushed {
            page: self.page(&push.repo),
            commit: done.commit_oid,
        })
    }

    /// An error of the crate hf-hub, as one of ours.
    fn of_client(&self, error: HFError, repo: &str) -> HubError {
        let context = match error {
            HFError::Http { context }
            | HFError::AuthRequired { context }
            | HFError::Forbidden { context }
            | HFError::Conflict { context }
            | HFError::RateLimited { context, .. } => context,
            HFError::RepoNotFound {
                context: Some(context),
                ..
            } => context,
            other => {
                return HubError::Unreachable {
                    endpoint: self.settings.endpoint.clone(),
                    what: format!("`{repo}`"),
                    reason: reason(&other),
                };
            }
        };
        let refused = Refused {
            status: context.status.as_u16(),
            code: context.error_code,
            message: context.server_message,
        };
        self.refused(refused, repo, None)
    }
}

/// Tells an observer how much has been sent.
struct Sent {
    repo: String,
    bytes: AtomicU64,
    observer: Arc<dyn Observer>,
}

impl ProgressHandler for Sent {
    fn on_progress(&self, event: &ProgressEvent) {
        match event {
            ProgressEvent::Upload(UploadEvent::Start { total_bytes, .. }) => {
                self.observer.begin(&self.repo, *total_bytes);
            }
            ProgressEvent::Upload(UploadEvent::Progress {
                bytes_completed, ..
            }) => {
                let before = self.bytes.fetch_max(*bytes_completed, SeqCst);
                self.observer
                    .advance(bytes_completed.saturating_sub(before));
            }
            _ => {}
        }
    }
}
