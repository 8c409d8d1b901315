//! Requests that are repeated when they fail for a moment, and redirects that do not take the token along.

use std::io::Read;
use std::thread;
use std::time::Duration;

use reqwest::Url;
use reqwest::blocking::{Client, Response};
use reqwest::header::{AUTHORIZATION, HeaderMap, HeaderValue, LOCATION, RANGE, RETRY_AFTER};
use reqwest::redirect::Policy;

use super::error::HubError;
use super::{Observer, Settings};

/// How often a request may fail before it is given up.
pub(crate) const ATTEMPTS: u32 = 6;

/// How often a connection may fail before it is given up when nothing has come yet: no network is not a bad moment.
const FIRST_ATTEMPTS: u32 = 2;

/// The longest wait between two attempts.
const LONGEST_PAUSE: Duration = Duration::from_secs(60);

/// The most redirects that are followed.
const MAX_REDIRECTS: usize = 10;

/// How long a server may say nothing.
const TIMEOUT: Duration = Duration::from_secs(60);

/// The largest answer that is read as text.
const MAX_ANSWER_BYTES: u64 = 64 << 20;

/// The most of an error's page that is read.
const MAX_MESSAGE_BYTES: u64 = 64 << 10;

/// Sends requests to one Hub.
#[derive(Clone)]
pub(crate) struct Http {
    client: Client,
    pub(crate) endpoint: Url,
    authorization: Option<HeaderValue>,
    pause: Duration,
}

/// An answer that is no success.
pub(crate) struct Refused {
    pub(crate) status: u16,
    /// The Hub's name of the error, such as `GatedRepo`.
    pub(crate) code: Option<String>,
    pub(crate) message: Option<String>,
}

/// Why there is no answer.
pub(crate) enum Failed {
    Refused(Refused),
    /// Also what breaks in the middle.
    Unreachable(String),
    Stopped,
}

/// Whether the server has answered before.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Known {
    Not,
    Answered,
}

impl Http {
    pub(crate) fn new(settings: &Settings) -> Result<Http, HubError> {
        let bad = || HubError::BadEndpoint {
            endpoint: settings.endpoint.clone(),
        };
        let endpoint = Url::parse(settings.endpoint.trim_end_matches('/')).map_err(|_| bad())?;
        if !matches!(endpoint.scheme(), "http" | "https") || endpoint.cannot_be_a_base() {
            return Err(bad());
        }
        let client = Client::builder()
            .user_agent(concat!("weldment/", env!("CARGO_PKG_VERSION")))
            .redirect(Policy::none())
            .timeout(TIMEOUT)
            .connect_timeout(Duration::from_secs(10));
        let authorization = settings.token.as_ref().and_then(|token| {
            let mut value = HeaderValue::from_str(&format!("Bearer {token}")).ok()?;
            value.set_sensitive(true);
            Some(value)
        });
        Ok(Http {
            client: client
                .build()
                .map_err(|error| HubError::Client(reason(&error)))?,
            endpoint,
            authorization,
            pause: settings.pause,
        })
    }

    /// Whether a token is sent.
    pub(crate) fn is_known(&self) -> bool {
        self.authorization.is_some()
    }

    /// The address of a page below the Hub's; every part is a name, whatever characters it has.
    pub(crate) fn url<'a>(&self, parts: impl IntoIterator<Item = &'a str>) -> Url {
        let mut url = self.endpoint.clone();
        // Only an address that is no base has no segments, and `new` refused those.
        if let Ok(mut segments) = url.path_segments_mut() {
            segments.pop_if_empty().extend(parts);
        }
        url
    }

    /// Gets an address, from a byte on if that is not 0, until the server answers or has failed too often.
    pub(crate) fn get(
        &self,
        url: &Url,
        range: Option<(u64, Option<u64>)>,
        server: Known,
        observer: &dyn Observer,
    ) -> Result<Response, Failed> {
        let mut failures = 0;
        loop {
            if observer.stopped() {
                return Err(Failed::Stopped);
            }
            let (failed, after) = match self.once(url, range) {
                Ok(response) if response.status().is_success() => return Ok(response),
                Ok(response) => {
                    let status = response.status().as_u16();
                    let after = retry_after(response.headers());
                    let refused = Failed::Refused(refused(response));
                    if !matches!(status, 408 | 429 | 500 | 502 | 503 | 504) {
                        return Err(refused);
                    }
                    (refused, after)
                }
                Err(reason) => (Failed::Unreachable(reason), None),
            };
            failures += 1;
            let most = match (&failed, server) {
                (Failed::Unreachable(_), Known::Not) => FIRST_ATTEMPTS,
                _ => ATTEMPTS,
            };
            if failures >= most {
                return Err(failed);
            }
            if !self.wait(failures, after, observer) {
                return Err(Failed::Stopped);
            }
        }
    }

    /// One attempt, with its redirects. The token goes to the Hub's own address only.
    fn once(&self, url: &Url, range: Option<(u64, Option<u64>)>) -> Result<Response, String> {
        let mut url = url.clone();
        for _ in 0..=MAX_REDIRECTS {
            let mut request = self.client.get(url.clone());
            let is_ours = url.origin() == self.endpoint.origin();
            if let Some(token) = self.authorization.as_ref().filter(|_| is_ours) {
                request = request.header(AUTHORIZATION, token.clone());
            }
            if let Some((from, to)) = range {
                let to = to.map_or(String::new(), |to| to.saturating_sub(1).to_string());
                request = request.header(RANGE, format!("bytes={from}-{to}"));
            }
            let response = request.send().map_err(|error| reason(&error))?;
            if !response.status().is_redirection() {
                return Ok(response);
            }
            let location = response.headers().get(LOCATION);
            let location = location.and_then(|location| location.to_str().ok());
            let next = location.and_then(|location| url.join(location).ok());
            url = next.ok_or("a redirect leads nowhere")?;
            if !matches!(url.scheme(), "http" | "https") {
                return Err("a redirect leads out of the web".into());
            }
        }
        Err("too many redirects".into())
    }

    /// Waits after a failure. Returns whether to go on.
    pub(crate) fn wait(
        &self,
        failures: u32,
        after: Option<Duration>,
        observer: &dyn Observer,
    ) -> bool {
        const STEP: Duration = Duration::from_millis(100);
        let doubled = self.pause.saturating_mul(1 << (failures - 1).min(16));
        let mut left = after.unwrap_or(doubled).min(LONGEST_PAUSE);
        while !left.is_zero() && !observer.stopped() {
            let step = left.min(STEP);
            thread::sleep(step);
            left -= step;
        }
        !observer.stopped()
    }

    /// The text of an answer, whose length is bounded.
    pub(crate) fn text(&self, response: Response, what: &str) -> Result<Vec<u8>, HubError> {
        let mut bytes = Vec::new();
        let read = response.take(MAX_ANSWER_BYTES + 1).read_to_end(&mut bytes);
        read.map_err(|error| HubError::Unreachable {
            endpoint: self.endpoint.to_string(),
            what: what.to_owned(),
            reason: error.to_string(),
        })?;
        match bytes.len() as u64 {
            ..=MAX_ANSWER_BYTES => Ok(bytes),
            _ => Err(HubError::Malformed {
                what: what.to_owned(),
                problem: format!("has more than {MAX_ANSWER_BYTES} bytes"),
            }),
        }
    }
}

fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let seconds = headers.get(RETRY_AFTER)?.to_str().ok()?;
    seconds.trim().parse().ok().map(Duration::from_secs)
}

fn refused(response: Response) -> Refused {
    let header = |name: &str| {
        let value = response.headers().get(name)?.to_str().ok()?;
        Some(value.to_owned())
    };
    let status = response.status().as_u16();
    let (code, message) = (header("x-error-code"), header("x-error-message"));
    let of_body = || {
        let mut bytes = Vec::new();
        response
            .take(MAX_MESSAGE_BYTES)
            .read_to_end(&mut bytes)
            .ok()?;
        let body: serde_json::Value = serde_json::from_slice(&bytes).ok()?;
        Some(body.get("error")?.as_str()?.to_owned())
    };
    Refused {
        status,
        code,
        message: message.or_else(of_body),
    }
}

/// What happened, to its first cause: reqwest's own messages stop before it.
pub(crate) fn reason(error: &dyn std::error::Error) -> String {
    let mut cause = error;
    while let Some(inner) = cause.source() {
        cause = inner;
    }
    cause.to_string()
}
