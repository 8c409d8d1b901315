//! A small server of the Hub's protocol, in memory: listings, files by range, uploads; and whatever can go wrong on the
//! way.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use base64ct::{Base64, Encoding};
use serde_json::{Value, json};
use sha1::Sha1;
use sha2::{Digest, Sha256};

/// The token that opens what is private.
pub(crate) const TOKEN: &str = "hf_good";

/// A repository.
#[derive(Default, Clone)]
pub(crate) struct Repo {
    /// The files of each commit, by its id; the last is `main`.
    pub(crate) commits: Vec<(String, BTreeMap<String, Vec<u8>>)>,
    pub(crate) private: bool,
    pub(crate) gated: bool,
}

/// What goes wrong.
#[derive(Default)]
pub(crate) struct Faults {
    /// For requests whose path has the text: the status, as often as it stands here.
    pub(crate) statuses: Vec<(&'static str, u16)>,
    /// After how many bytes of a large file the connection ends, once each.
    pub(crate) cuts: Vec<usize>,
    pub(crate) ignores_ranges: bool,
    /// What the list adds to the length of each large file.
    pub(crate) lists_more: i64,
    /// Whether the last byte of large files is another.
    pub(crate) corrupts: bool,
    /// Names that the list has besides.
    pub(crate) lists_names: Vec<String>,
    /// How long every large file takes to begin.
    pub(crate) slow: Duration,
    /// Whether a list says that there is more of it, at its own address.
    pub(crate) lists_forever: bool,
}

/// A request that came.
#[derive(Debug, Clone)]
pub(crate) struct Asked {
    pub(crate) method: String,
    pub(crate) path: String,
    pub(crate) range: Option<String>,
    pub(crate) token: Option<String>,
}

#[derive(Default)]
pub(crate) struct State {
    pub(crate) repos: BTreeMap<String, Repo>,
    pub(crate) faults: Faults,
    pub(crate) log: Vec<Asked>,
    commits: u32,
}

impl State {
    /// Adds a commit to a repository, which is created if it is not there. Returns its id.
    pub(crate) fn commit(&mut self, repo: &str, files: &[(&str, &[u8])]) -> String {
        let of = |(name, bytes): &(&str, &[u8])| ((*name).to_owned(), bytes.to_vec());
        self.commit_all(repo, files.iter().map(of).collect())
    }

    fn commit_all(&mut self, repo: &str, files: BTreeMap<String, Vec<u8>>) -> String {
        self.commits += 1;
        let id = hex(&Sha1::digest(self.commits.to_string()));
        let repo = self.repos.entry(repo.to_owned()).or_default();
        repo.commits.push((id.clone(), files));
        id
    }
}

/// A running server. It goes with the process.
#[derive(Clone)]
pub(crate) struct Server {
    pub(crate) endpoint: String,
    state: Arc<Mutex<State>>,
}

impl Server {
    /// Starts one at a port of this machine; 0 for any that is free.
    pub(crate) fn start(port: u16) -> Server {
        let listener = TcpListener::bind(("127.0.0.1", port)).expect("a port");
        let address = listener.local_addr().expect("an address");
        let server = Server {
            endpoint: format!("http://{address}"),
            state: Arc::default(),
        };
        let serving = server.clone();
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let serving = serving.clone();
                // A client that goes away is no concern of ours.
                thread::spawn(move || drop(serving.answer(stream)));
            }
        });
        server
    }

    pub(crate) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn answer(&self, stream: TcpStream) -> std::io::Result<()> {
        let mut reader = BufReader::new(stream.try_clone()?);
        let mut line = String::new();
        reader.read_line(&mut line)?;
        let mut words = line.split_whitespace();
        let method = words.next().unwrap_or_default().to_owned();
        let target = words.next().unwrap_or_default().to_owned();
        let mut headers = BTreeMap::new();
        loop {
            let mut line = String::new();
            reader.read_line(&mut line)?;
            match line.trim_end().split_once(": ") {
                Some((name, value)) => headers.insert(name.to_lowercase(), value.to_owned()),
                None => break,
            };
        }
        let length = headers
            .get("content-length")
            .and_then(|length| length.parse().ok());
        let mut body = vec![0; length.unwrap_or(0)];
        reader.read_exact(&mut body)?;
        let asked = Asked {
            path: target
                .split('?')
                .next()
                .unwrap_or_default()
                .replace("%2F", "\n"),
            method,
            range: headers.get("range").cloned(),
            token: headers
                .get("authorization")
                .map(|value| value.replace("Bearer ", "")),
        };
        let mut state = self.state();
        state.log.push(asked.clone());
        let answer = state.answer(&asked, &body, &self.endpoint);
        let slow = state.faults.slow;
        drop(state);
        if asked.path.starts_with("/cdn/") && asked.range.is_none() {
            thread::sleep(slow);
        }
        answer.send(stream)
    }
}

/// An answer.
struct Answer {
    status: u16,
    headers: Vec<(&'static str, String)>,
    body: Vec<u8>,
    /// After how many bytes the connection ends.
    cut: Option<usize>,
}

impl Answer {
    fn new(status: u16, body: impl Into<Vec<u8>>) -> Answer {
        Answer {
            status,
            headers: Vec::new(),
            body: body.into(),
            cut: None,
        }
    }

    fn json(value: &Value) -> Answer {
        Answer::new(200, value.to_string())
    }

    /// A refusal, as the Hub words it.
    fn refused(status: u16, code: &str) -> Answer {
        let answer = Answer::new(status, format!(r#"{{"error": "the server says {code}"}}"#));
        answer.with("X-Error-Code", code.to_owned())
    }

    fn with(mut self, name: &'static str, value: String) -> Answer {
        self.headers.push((name, value));
        self
    }

    fn send(self, mut stream: TcpStream) -> std::io::Result<()> {
        write!(
            stream,
            "HTTP/1.1 {} X\r\nConnection: close\r\n",
            self.status
        )?;
        write!(stream, "Content-Length: {}\r\n", self.body.len())?;
        for (name, value) in &self.headers {
            write!(stream, "{name}: {value}\r\n")?;
        }
        stream.write_all(b"\r\n")?;
        stream.write_all(&self.body[..self.cut.unwrap_or(self.body.len()).min(self.body.len())])?;
        stream.flush()
    }
}

impl State {
    fn answer(&mut self, asked: &Asked, body: &[u8], endpoint: &str) -> Answer {
        let faults = &mut self.faults.statuses;
        if let Some(at) = faults
            .iter()
            .position(|(part, _)| asked.path.contains(part))
        {
            let (_, status) = faults.remove(at);
            return Answer::refused(status, "Fault").with("Retry-After", "0".into());
        }
        let parts: Vec<&str> = asked.path.trim_start_matches('/').split('/').collect();
        match (asked.method.as_str(), parts.as_slice()) {
            ("GET", ["cdn", sha256]) => self.large(sha256, asked),
            ("POST", ["api", "repos", "create"]) => self.create(asked, body, endpoint),
            ("GET", ["api", "models", org, name, what, revision]) => {
                let id = format!("{org}/{name}");
                match self.open(&id, asked) {
                    Ok(()) => self.about(&id, what, &revision.replace('\n', "/")),
                    Err(answer) => answer,
                }
            }
            ("GET", [org, name, "resolve", commit, file @ ..]) => {
                let id = format!("{org}/{name}");
                match self.open(&id, asked) {
                    Ok(()) => self.file(&id, commit, &file.join("/"), endpoint),
                    Err(answer) => answer,
                }
            }
            ("POST", ["api", "models", _, _, "preupload", _]) => preupload(body),
            ("POST", [_, _, "info", "lfs", "objects", "batch"]) => {
                Answer::json(&json!({"transfer": "basic", "objects": []}))
            }
            ("POST", ["api", "models", org, name, "commit", "main"]) => {
                let id = format!("{org}/{name}");
                match asked.token.as_deref() == Some(TOKEN) {
                    true => self.add(&id, body, endpoint),
                    false => Answer::refused(403, "Forbidden"),
                }
            }
            _ => Answer::refused(404, "EntryNotFound"),
        }
    }

    /// Whether who asks may see the repository.
    fn open(&self, id: &str, asked: &Asked) -> Result<(), Answer> {
        let known = asked.token.as_deref() == Some(TOKEN);
        match self.repos.get(id) {
            _ if asked.token.is_some() && !known => Err(Answer::refused(401, "InvalidToken")),
            Some(repo) if repo.gated && !(known && repo.private) => {
                Err(Answer::refused(403, "GatedRepo"))
            }
            Some(repo) if !repo.private || known => Ok(()),
            _ if known => Err(Answer::refused(404, "RepoNotFound")),
            _ => Err(Answer::refused(401, "RepoNotFound")),
        }
    }

    fn about(&mut self, id: &str, what: &str, revision: &str) -> Answer {
        let repo = &self.repos[id];
        let commit = match revision {
            "main" => repo.commits.last(),
            id => repo.commits.iter().find(|(commit, _)| commit == id),
        };
        let Some((commit, files)) = commit else {
            return Answer::refused(404, "RevisionNotFound");
        };
        if what == "revision" {
            return Answer::json(&json!({"id": id, "sha": commit, "private": repo.private}));
        }
        let listed = files.iter().map(|(name, bytes)| {
            let size = bytes.len() as i64;
            if !is_large(name) {
                let id = git_id(bytes);
                return json!({"type": "file", "path": name, "size": size, "oid": id});
            }
            let (size, sha256) = (size + self.faults.lists_more, hex(&Sha256::digest(bytes)));
            let pointer = git_id(sha256.as_bytes());
            let lfs = json!({"oid": sha256, "size": size, "pointerSize": 130});
            json!({"type": "file", "path": name, "size": size, "oid": pointer, "lfs": lfs})
        });
        let mut entries: Vec<Value> = listed.collect();
        entries.push(json!({"type": "directory", "path": "folder", "oid": git_id(b"")}));
        entries.extend(
            self.faults
                .lists_names
                .iter()
                .map(|name| json!({"type": "file", "path": name, "size": 0, "oid": git_id(b"")})),
        );
        let answer = Answer::json(&entries.into());
        match self.faults.lists_forever {
            true => {
                let page = self.log.len();
                answer.with("Link", format!("<?page={page}>; rel=\"next\""))
            }
            false => answer,
        }
    }

    fn file(&self, id: &str, commit: &str, name: &str, endpoint: &str) -> Answer {
        let commits = &self.repos[id].commits;
        let commit = commits.iter().find(|(id, _)| id == commit);
        let Some((commit, bytes)) = commit.and_then(|(id, files)| Some((id, files.get(name)?)))
        else {
            return Answer::refused(404, "EntryNotFound");
        };
        let answer = match is_large(name) {
            true => {
                let sha256 = hex(&Sha256::digest(bytes));
                let answer = Answer::new(302, "");
                // Another origin, as the Hub's own store is.
                let store = endpoint.replace("127.0.0.1", "localhost");
                answer
                    .with("Location", format!("{store}/cdn/{sha256}"))
                    .with("X-Linked-Etag", format!("\"{sha256}\""))
            }
            false => Answer::new(200, bytes.clone()).with("ETag", format!("\"{}\"", git_id(bytes))),
        };
        answer.with("X-Repo-Commit", commit.clone())
    }

    /// A large file, or some of it.
    fn large(&mut self, sha256: &str, asked: &Asked) -> Answer {
        let all = self.repos.values().flat_map(|repo| &repo.commits);
        let mut all = all.flat_map(|(_, files)| files.values());
        let Some(bytes) = all.find(|bytes| hex(&Sha256::digest(bytes)) == sha256) else {
            return Answer::refused(404, "EntryNotFound");
        };
        let mut bytes = bytes.clone();
        if let Some(last) = bytes.last_mut().filter(|_| self.faults.corrupts) {
            *last ^= 1;
        }
        let range = asked.range.as_ref().filter(|_| !self.faults.ignores_ranges);
        let range = range.and_then(|range| range.strip_prefix("bytes=")?.split_once('-'));
        let mut answer = match range {
            Some((from, to)) => {
                let from: usize = from.parse().unwrap_or(0);
                let to = to
                    .parse()
                    .map_or(bytes.len(), |to: usize| (to + 1).min(bytes.len()));
                let range = format!("bytes {from}-{}/{}", to - 1, bytes.len());
                Answer::new(206, &bytes[from..to]).with("Content-Range", range)
            }
            None => Answer::new(200, bytes),
        };
        if !self.faults.cuts.is_empty() {
            answer.cut = Some(self.faults.cuts.remove(0));
        }
        answer
    }

    fn create(&mut self, asked: &Asked, body: &[u8], endpoint: &str) -> Answer {
        if asked.token.as_deref() != Some(TOKEN) {
            return Answer::refused(401, "Unauthorized");
        }
        let asked: Value = serde_json::from_slice(body).unwrap_or_default();
        let text = |key: &str| asked[key].as_str().unwrap_or_default().to_owned();
        let id = format!("{}/{}", text("organization"), text("name"));
        if self.repos.contains_key(&id) {
            return Answer::refused(409, "Conflict");
        }
        let private = asked["private"].as_bool().unwrap_or_default();
        let repo = Repo {
            private,
            ..Repo::default()
        };
        self.repos.insert(id.clone(), repo);
        Answer::json(&json!({"url": format!("{endpoint}/{id}")}))
    }

    /// A commit as lines of JSON.
    fn add(&mut self, id: &str, body: &[u8], endpoint: &str) -> Answer {
        let Some(repo) = self.repos.get(id) else {
            return Answer::refused(404, "RepoNotFound");
        };
        let (head, mut files) = repo.commits.last().cloned().unwrap_or_default();
        let lines = body
            .split(|&byte| byte == b'\n')
            .filter(|line| !line.is_empty());
        for line in lines {
            let line: Value = serde_json::from_slice(line).unwrap_or_default();
            let value = &line["value"];
            let path = value["path"].as_str().unwrap_or_default().to_owned();
            match line["key"].as_str() {
                Some("header") => {
                    let parent = value["parentCommit"].as_str();
                    if parent.is_some_and(|parent| parent != head) {
                        return Answer::refused(412, "ParentMoved");
                    }
                }
                Some("file") => {
                    let content = value["content"].as_str().unwrap_or_default();
                    files.insert(path, Base64::decode_vec(content).unwrap_or_default());
                }
                Some("deletedFile") => drop(files.remove(&path)),
                _ => return Answer::refused(400, "BadLine"),
            }
        }
        let commit = self.commit_all(id, files);
        let url = format!("{endpoint}/{id}/commit/{commit}");
        Answer::json(&json!({"commitOid": commit, "commitUrl": url}))
    }
}

fn preupload(body: &[u8]) -> Answer {
    let asked: Value = serde_json::from_slice(body).unwrap_or_default();
    let files = asked["files"].as_array().cloned().unwrap_or_default();
    let mode = |file: &Value| {
        let large = file["path"].as_str().is_some_and(is_large);
        json!({"path": file["path"], "uploadMode": if large { "lfs" } else { "regular" }})
    };
    Answer::json(&json!({"files": files.iter().map(mode).collect::<Vec<_>>()}))
}

fn is_large(name: &str) -> bool {
    name.ends_with(".safetensors") || name.ends_with(".bin")
}

fn git_id(bytes: &[u8]) -> String {
    let header = format!("blob {}\0", bytes.len());
    hex(&Sha1::new()
        .chain_update(header)
        .chain_update(bytes)
        .finalize())
}

fn hex(bytes: &[u8]) -> String {
    base16ct::lower::encode_string(bytes)
}
