//! A server of files in memory: as S3, with uploads in pieces and conditions, and as a plain web server.

use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread;
use std::time::Duration;

use checkpoint::Transfer;

use crate::{AwsFiles, Settings};

/// An answer's status, its headers, its body, and how much of it is sent before the connection is cut.
pub(super) struct Answer {
    pub(super) status: u16,
    pub(super) headers: Vec<(&'static str, String)>,
    pub(super) body: Vec<u8>,
    pub(super) sent: usize,
}

/// What the server does instead of what it should: it gets the number of the request, its path, its range, and the right
/// answer.
pub(super) type Fault = dyn Fn(usize, &str, Option<(u64, u64)>, Answer) -> Answer + Send + Sync;

/// What a request gets before anything is done for it: its number, its method, and its path with the query.
pub(super) type Gate = dyn Fn(usize, &str, &str) -> Option<Answer> + Send + Sync;

/// What the server holds.
#[derive(Clone, Default)]
pub(super) struct Held {
    pub(super) files: BTreeMap<String, Vec<u8>>,
    /// Uploads by id: their file, and their pieces by number.
    pub(super) uploads: BTreeMap<String, (String, BTreeMap<usize, Vec<u8>>)>,
    ids: usize,
}

/// A server of files.
pub(super) struct Server {
    port: u16,
    pub(super) requests: Arc<AtomicUsize>,
    pub(super) asked: Arc<Mutex<Vec<String>>>,
    held: Arc<Mutex<Held>>,
}

impl Server {
    /// One that answers as `fault` has it.
    pub(super) fn new(files: BTreeMap<String, Vec<u8>>, fault: Box<Fault>) -> Server {
        Server::with_gate(files, fault, Box::new(|_, _, _| None))
    }

    /// The same; `gate` sees each request before anything is done for it.
    pub(super) fn with_gate(
        files: BTreeMap<String, Vec<u8>>,
        fault: Box<Fault>,
        gate: Box<Gate>,
    ) -> Server {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let server = Server {
            port: listener.local_addr().unwrap().port(),
            requests: Arc::default(),
            asked: Arc::default(),
            held: Arc::new(Mutex::new(Held {
                files,
                ..Held::default()
            })),
        };
        let handler = Arc::new(Handler {
            requests: Arc::clone(&server.requests),
            asked: Arc::clone(&server.asked),
            held: Arc::clone(&server.held),
            fault,
            gate,
        });
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let handler = Arc::clone(&handler);
                thread::spawn(move || handler.serve(&stream));
            }
        });
        server
    }

    /// Where it is.
    pub(super) fn endpoint(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// What it holds now.
    pub(super) fn held(&self) -> MutexGuard<'_, Held> {
        self.held.lock().unwrap()
    }

    /// Settings with which it is asked, without pauses.
    pub(super) fn settings(&self) -> Settings {
        let endpoint = self.endpoint();
        let options = [
            ("aws_access_key_id", "someone"),
            ("aws_secret_access_key", "geheim"),
            ("aws_region", "us-east-1"),
            ("aws_endpoint_url", &endpoint),
        ];
        let options = options.map(|(name, value)| (name.to_owned(), value.to_owned()));
        Settings {
            options: options.to_vec(),
            aws: AwsFiles::default(),
            pause: Duration::ZERO,
        }
    }
}

struct Handler {
    requests: Arc<AtomicUsize>,
    asked: Arc<Mutex<Vec<String>>>,
    held: Arc<Mutex<Held>>,
    fault: Box<Fault>,
    gate: Box<Gate>,
}

/// A request, as far as it matters here.
struct Request {
    method: String,
    path: String,
    query: String,
    range: Option<(u64, u64)>,
    if_match: Option<String>,
    is_new: bool,
    body: Vec<u8>,
}

impl Request {
    fn read(stream: &TcpStream) -> Option<Request> {
        let mut reader = BufReader::new(stream);
        let line = |reader: &mut BufReader<&TcpStream>| {
            let mut text = String::new();
            reader.read_line(&mut text).ok()?;
            Some(text.trim_end().to_owned())
        };
        let first = line(&mut reader)?;
        let mut words = first.split(' ');
        let (method, target) = (words.next()?.to_owned(), words.next()?);
        let (path, query) = target.split_once('?').unwrap_or((target, ""));
        let mut request = Request {
            method,
            path: path.to_owned(),
            query: query.to_owned(),
            range: None,
            if_match: None,
            is_new: false,
            body: Vec::new(),
        };
        let mut length = 0;
        loop {
            let header = line(&mut reader)?;
            if header.is_empty() {
                break;
            }
            let (name, value) = header.split_once(": ")?;
            match name.to_ascii_lowercase().as_str() {
                "range" => {
                    let (from, to) = value.strip_prefix("bytes=")?.split_once('-')?;
                    request.range = Some((from.parse().ok()?, to.parse::<u64>().ok()? + 1));
                }
                "if-match" => request.if_match = Some(value.to_owned()),
                "if-none-match" => request.is_new = true,
                "content-length" => length = value.parse().ok()?,
                _ => {}
            }
        }
        request.body = vec![0; length];
        reader.read_exact(&mut request.body).ok()?;
        Some(request)
    }

    /// The value of a key of the query.
    fn asks(&self, key: &str) -> Option<&str> {
        let mut parts = self.query.split('&');
        parts.find_map(|part| part.strip_prefix(key)?.strip_prefix('='))
    }

    fn name(&self) -> String {
        let name = self.path.trim_start_matches("/bucket/");
        name.trim_start_matches('/').to_owned()
    }
}

impl Handler {
    fn serve(&self, mut stream: &TcpStream) -> Option<()> {
        let request = Request::read(stream)?;
        let number = self.requests.fetch_add(1, SeqCst);
        let target = format!("{}?{}", request.path, request.query);
        let target = target.trim_end_matches('?');
        let asked = format!("{} {target}", request.method);
        self.asked.lock().unwrap().push(asked);
        let answer = match (self.gate)(number, &request.method, target) {
            Some(answer) => answer,
            None => {
                let answer = self.held.lock().unwrap().answer(&request);
                let answer = (self.fault)(number, &request.path, request.range, answer);
                let etag = answer.headers.iter().find(|(name, _)| *name == "ETag");
                let wanted = (request.if_match.as_ref()).filter(|_| request.method == "GET");
                let changed =
                    wanted.is_some_and(|wanted| etag.is_none_or(|(_, etag)| etag != wanted));
                match changed && answer.status < 300 {
                    true => error(412, "PreconditionFailed"),
                    false => answer,
                }
            }
        };
        let mut text = format!("HTTP/1.1 {} X\r\nConnection: close\r\n", answer.status);
        let has_length = |(name, _): &(&str, String)| *name == "Content-Length";
        if !answer.headers.iter().any(has_length) {
            text.push_str(&format!("Content-Length: {}\r\n", answer.body.len()));
        }
        for (name, value) in &answer.headers {
            text.push_str(&format!("{name}: {value}\r\n"));
        }
        stream.write_all(format!("{text}\r\n").as_bytes()).ok()?;
        if request.method != "HEAD" {
            let sent = answer.sent.min(answer.body.len());
            stream.write_all(&answer.body[..sent]).ok()?;
        }
        Some(())
    }
}

impl Held {
    /// Takes the uploads of another.
    pub(super) fn take(&mut self, other: &Held) {
        self.uploads = other.uploads.clone();
        self.ids = other.ids;
    }

    fn answer(&mut self, request: &Request) -> Answer {
        let name = request.name();
        let upload = request.asks("uploadId").map(str::to_owned);
        match (request.method.as_str(), upload) {
            ("GET", _) if request.asks("list-type").is_some() => list(&self.files, request),
            ("GET" | "HEAD", _) => file(&self.files, &name, request.range),
            ("PUT", None) => self.put(name, request),
            ("POST", None) if request.query.starts_with("delete") => self.delete(request),
            ("POST", None) => {
                self.ids += 1;
                let id = format!("u{}", self.ids);
                self.uploads.insert(id.clone(), (name, BTreeMap::new()));
                xml(format!(
                    "<InitiateMultipartUploadResult><UploadId>{id}</UploadId></InitiateMultipartUploadResult>"
                ))
            }
            ("PUT", Some(id)) => match (self.uploads.get_mut(&id), request.asks("partNumber")) {
                (Some((_, pieces)), Some(number)) => {
                    let tag = etag(&request.body);
                    pieces.insert(number.parse().unwrap(), request.body.clone());
                    tagged(tag)
                }
                _ => error(404, "NoSuchUpload"),
            },
            ("POST", Some(id)) => self.complete(&id, request),
            ("DELETE", Some(id)) => match self.uploads.remove(&id) {
                Some(_) => empty(204),
                None => error(404, "NoSuchUpload"),
            },
            _ => error(405, "MethodNotAllowed"),
        }
    }

    fn put(&mut self, name: String, request: &Request) -> Answer {
        let found = self.files.get(&name).map(|bytes| etag(bytes));
        let differs = |wanted: &String| found.as_ref() != Some(wanted);
        if request.is_new && found.is_some() || request.if_match.as_ref().is_some_and(differs) {
            return error(412, "PreconditionFailed");
        }
        let tag = etag(&request.body);
        self.files.insert(name, request.body.clone());
        tagged(tag)
    }

    fn delete(&mut self, request: &Request) -> Answer {
        let text = String::from_utf8_lossy(&request.body).into_owned();
        let keys = text.split("<Key>").skip(1);
        let mut deleted = String::new();
        for key in keys.filter_map(|key| key.split("</Key>").next()) {
            self.files.remove(key);
            deleted += &format!("<Deleted><Key>{key}</Key></Deleted>");
        }
        xml(format!("<DeleteResult>{deleted}</DeleteResult>"))
    }

    fn complete(&mut self, id: &str, request: &Request) -> Answer {
        let text = String::from_utf8_lossy(&request.body);
        let wanted: Vec<&str> = text.split("<ETag>").skip(1).collect();
        let Some((name, pieces)) = self.uploads.get(id) else {
            return error(404, "NoSuchUpload");
        };
        let is_as_sent = pieces.len() == wanted.len()
            && pieces
                .values()
                .zip(&wanted)
                .all(|(piece, wanted)| wanted.contains(etag(piece).trim_matches('"')));
        if !is_as_sent {
            return error(400, "InvalidPart");
        }
        let bytes: Vec<u8> = pieces.values().flatten().copied().collect();
        let tag = etag(&bytes);
        self.files.insert(name.clone(), bytes);
        self.uploads.remove(id);
        xml(format!(
            "<CompleteMultipartUploadResult><ETag>{tag}</ETag></CompleteMultipartUploadResult>"
        ))
    }
}

/// What the server calls a content.
pub(super) fn etag(bytes: &[u8]) -> String {
    let mut hasher = DefaultHasher::new();
    bytes.hash(&mut hasher);
    format!("\"{:016x}\"", hasher.finish())
}

fn empty(status: u16) -> Answer {
    Answer {
        status,
        headers: Vec::new(),
        body: Vec::new(),
        sent: 0,
    }
}

fn tagged(tag: String) -> Answer {
    Answer {
        headers: vec![("ETag", tag)],
        ..empty(200)
    }
}

fn xml(body: String) -> Answer {
    Answer {
        sent: body.len(),
        body: body.into_bytes(),
        ..empty(200)
    }
}

/// The answer of a request that fails.
pub(super) fn error(status: u16, code: &str) -> Answer {
    let body = format!("<Error><Code>{code}</Code><Message>geheim</Message></Error>");
    Answer {
        status,
        ..xml(body)
    }
}

const DATE: &str = "Tue, 01 Dec 2026 00:00:00 GMT";

fn file(files: &BTreeMap<String, Vec<u8>>, name: &str, range: Option<(u64, u64)>) -> Answer {
    let Some(bytes) = files.get(name) else {
        return error(404, "NoSuchKey");
    };
    let size = bytes.len() as u64;
    let mut headers = vec![("ETag", etag(bytes)), ("Last-Modified", DATE.to_owned())];
    let (status, body) = match range {
        None => (200, bytes.clone()),
        Some((from, to)) => {
            let to = to.min(size);
            headers.push(("Content-Range", format!("bytes {from}-{}/{size}", to - 1)));
            (206, bytes[from as usize..to as usize].to_vec())
        }
    };
    Answer {
        status,
        headers,
        sent: body.len(),
        body,
    }
}

fn list(files: &BTreeMap<String, Vec<u8>>, request: &Request) -> Answer {
    let prefix = request.asks("prefix").unwrap_or("").replace("%2F", "/");
    let listed = files.iter().filter(|(name, _)| name.starts_with(&prefix));
    let listed = listed.map(|(name, bytes)| {
        let (size, tag) = (bytes.len(), etag(bytes));
        format!(
            "<Contents><Key>{name}</Key><LastModified>2026-12-01T00:00:00.000Z</LastModified><ETag>{tag}</ETag>\
             <Size>{size}</Size></Contents>"
        )
    });
    xml(format!(
        "<ListBucketResult><IsTruncated>false</IsTruncated>{}</ListBucketResult>",
        listed.collect::<String>()
    ))
}

/// Follows nothing, and never stops.
pub(super) struct Silent;

impl Transfer for Silent {
    fn begin(&self, _: &str, _: u64) {}
    fn advance(&self, _: u64) {}
    fn finish(&self) {}
    fn stopped(&self) -> bool {
        false
    }
}
