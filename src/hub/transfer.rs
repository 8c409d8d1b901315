//! Fetches one file into the cache: goes on where a transfer broke off, and keeps only what has the listed digest.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::Path;

use reqwest::blocking::Response;
use reqwest::header::CONTENT_RANGE;
use sha1::Sha1;
use sha2::{Digest, Sha256};

use super::cache::Repository;
use super::error::HubError;
use super::http::{ATTEMPTS, Known};
use super::listing::Entry;
use super::{Hub, Observer};

/// The most bytes that are read at once.
const PIECE: usize = 1 << 20;

/// The digest of a file as its bytes come: of a large one the SHA-256, of a small one git's hash.
enum Running {
    Sha256(Sha256),
    Git(Sha1),
}

impl Running {
    fn new(entry: &Entry) -> Running {
        match entry.sha256 {
            Some(_) => Running::Sha256(Sha256::new()),
            None => {
                let header = format!("blob {}\0", entry.size);
                Running::Git(Sha1::new().chain_update(header))
            }
        }
    }

    fn update(&mut self, bytes: &[u8]) {
        match self {
            Running::Sha256(hash) => hash.update(bytes),
            Running::Git(hash) => hash.update(bytes),
        }
    }

    fn finish(self) -> String {
        match self {
            Running::Sha256(hash) => base16ct::lower::encode_string(&hash.finalize()),
            Running::Git(hash) => base16ct::lower::encode_string(&hash.finalize()),
        }
    }
}

/// A file that is being fetched.
pub(crate) struct Partial {
    file: File,
    /// How much has come.
    len: u64,
    /// Whether the file has its full length from the start.
    in_place: bool,
    digest: Running,
}

impl Partial {
    /// What is there of a file, read once for its digest.
    fn open(path: &Path, entry: &Entry) -> io::Result<Partial> {
        let mut options = OpenOptions::new();
        let mut file = options
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(path)?;
        let mut partial = Partial {
            len: file.metadata()?.len(),
            digest: Running::new(entry),
            in_place: false,
            file: file.try_clone()?,
        };
        if partial.len > entry.size {
            partial.restart(entry)?;
            return Ok(partial);
        }
        let mut piece = vec![0; PIECE];
        loop {
            match file.read(&mut piece)? {
                0 => return Ok(partial),
                count => partial.digest.update(&piece[..count]),
            }
        }
    }

    /// A file that has its full length already, to be fetched from the start.
    pub(crate) fn in_place(file: &File, entry: &Entry) -> io::Result<Partial> {
        let mut partial = Partial {
            file: file.try_clone()?,
            len: 0,
            in_place: true,
            digest: Running::new(entry),
        };
        partial.restart(entry)?;
        Ok(partial)
    }

    fn restart(&mut self, entry: &Entry) -> io::Result<()> {
        if !self.in_place {
            self.file.set_len(0)?;
        }
        self.file.seek(SeekFrom::Start(0))?;
        self.digest = Running::new(entry);
        self.len = 0;
        Ok(())
    }

    fn append(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.file.write_all(bytes)?;
        self.digest.update(bytes);
        self.len += bytes.len() as u64;
        Ok(())
    }
}

/// How a connection ended.
enum Ended {
    Whole,
    Broke(String),
}

impl Hub {
    /// Fetches the content of a file unless it is there.
    pub(crate) fn fetch_file(
        &self,
        repo: &str,
        commit: &str,
        entry: &Entry,
        observer: &dyn Observer,
    ) -> Result<(), HubError> {
        let cache = Repository::new(&self.settings.cache, repo);
        let _lock = cache.lock(entry, observer)?;
        if cache.has(entry) {
            observer.advance(entry.size);
            return cache.link(commit, entry);
        }
        let blob = cache.blob(entry);
        super::cache::create(blob.parent().unwrap_or(&blob))?;
        let path = cache.incomplete(entry);
        let io = |source| HubError::io("write", &path, source);
        let mut partial = Partial::open(&path, entry).map_err(io)?;
        observer.advance(partial.len);
        let done = self.complete(repo, commit, entry, &mut partial, &path, observer);
        if let Err(HubError::Digest { .. }) = done {
            // What is wrong once is not gone on with.
            let _ = fs::remove_file(&path);
        }
        done?;
        partial.file.sync_data().map_err(io)?;
        fs::rename(&path, &blob).map_err(|source| HubError::io("write", &blob, source))?;
        cache.link(commit, entry)
    }

    /// Fetches what is missing of a file until it has the listed digest. Messages call it `path`.
    pub(crate) fn complete(
        &self,
        repo: &str,
        commit: &str,
        entry: &Entry,
        partial: &mut Partial,
        path: &Path,
        observer: &dyn Observer,
    ) -> Result<(), HubError> {
        // What an earlier run left may be of another file, or have been damaged: then once more from the start.
        let mut is_fresh = partial.len == 0;
        loop {
            self.fill(repo, commit, entry, partial, path, observer)?;
            let digest = std::mem::replace(&mut partial.digest, Running::new(entry));
            let found = digest.finish();
            if found == entry.digest() {
                return Ok(());
            }
            if is_fresh {
                return Err(HubError::Digest {
                    repo: repo.to_owned(),
                    file: entry.name.clone(),
                    expected: entry.digest().to_owned(),
                    found,
                });
            }
            let restarted = partial.restart(entry);
            restarted.map_err(|source| HubError::io("write", path, source))?;
            is_fresh = true;
        }
    }

    /// Fetches what is missing of a file. A connection that breaks is made anew as long as something comes.
    fn fill(
        &self,
        repo: &str,
        commit: &str,
        entry: &Entry,
        partial: &mut Partial,
        path: &Path,
        observer: &dyn Observer,
    ) -> Result<(), HubError> {
        let mut failures = 0;
        while partial.len < entry.size {
            let before = partial.len;
            let response = self.open(repo, commit, entry, partial.len, observer)?;
            match self.read(response, repo, entry, partial, path, observer)? {
                Ended::Whole => return Ok(()),
                Ended::Broke(_) if partial.len > before => failures = 0,
                Ended::Broke(reason) => {
                    failures += 1;
                    if failures == ATTEMPTS {
                        return Err(HubError::Unreachable {
                            endpoint: self.settings.endpoint.clone(),
                            what: format!("{} of `{repo}`", entry.name),
                            reason,
                        });
                    }
                }
            }
            if !self.http.wait(failures.max(1), None, observer) {
                return Err(HubError::Stopped);
            }
        }
        Ok(())
    }

    /// Asks for a file from a byte on.
    pub(crate) fn open(
        &self,
        repo: &str,
        commit: &str,
        entry: &Entry,
        from: u64,
        observer: &dyn Observer,
    ) -> Result<Response, HubError> {
        let range = (from > 0).then_some((from, None));
        self.open_range(repo, commit, entry, range, observer)
    }

    /// Asks for some of a file, or all of it.
    pub(crate) fn open_range(
        &self,
        repo: &str,
        commit: &str,
        entry: &Entry,
        range: Option<(u64, Option<u64>)>,
        observer: &dyn Observer,
    ) -> Result<Response, HubError> {
        let parts = repo.split('/').chain(["resolve", commit]);
        let url = self.http.url(parts.chain(entry.name.split('/')));
        let response = self.http.get(&url, range, Known::Answered, observer);
        response.map_err(|failed| self.failed(failed, repo, commit, Some(entry)))
    }

    /// Reads an answer to its end into the file, and no further than the file is long.
    fn read(
        &self,
        mut response: Response,
        repo: &str,
        entry: &Entry,
        partial: &mut Partial,
        path: &Path,
        observer: &dyn Observer,
    ) -> Result<Ended, HubError> {
        let io = |source| HubError::io("write", path, source);
        let length = |found| HubError::Length {
            repo: repo.to_owned(),
            file: entry.name.clone(),
            expected: entry.size,
            found,
        };
        if partial.len > 0 && range_start(&response) != Some(partial.len) {
            // A server that ignores the range sends all of it again.
            partial.restart(entry).map_err(io)?;
        }
        if let Some(rest) = response.content_length()
            && partial.len.saturating_add(rest) != entry.size
        {
            return Err(length(partial.len.saturating_add(rest)));
        }
        let mut piece = vec![0; PIECE];
        loop {
            if observer.stopped() {
                return Err(HubError::Stopped);
            }
            let count = match response.read(&mut piece) {
                Ok(count) => count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Ok(Ended::Broke(super::http::reason(&error))),
            };
            if count == 0 {
                return Ok(match partial.len == entry.size {
                    true => Ended::Whole,
                    false => Ended::Broke("the connection ended early".into()),
                });
            }
            if partial.len + count as u64 > entry.size {
                return Err(length(partial.len + count as u64));
            }
            partial.append(&piece[..count]).map_err(io)?;
            observer.advance(count as u64);
        }
    }
}

/// Where the part of a file begins that an answer holds; none if it is all of it.
pub(crate) fn range_start(response: &Response) -> Option<u64> {
    if response.status().as_u16() != 206 {
        return None;
    }
    let range = response.headers().get(CONTENT_RANGE)?.to_str().ok()?;
    let (start, _) = range.strip_prefix("bytes ")?.split_once('-')?;
    start.trim().parse().ok()
}
