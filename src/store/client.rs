//! Clients of stores: how they are made from the environment, and how requests are waited for.

use std::fmt;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use object_store::aws::AmazonS3Builder;
use object_store::azure::MicrosoftAzureBuilder;
use object_store::gcp::GoogleCloudStorageBuilder;
use object_store::http::HttpBuilder;
use object_store::multipart::MultipartStore;
use object_store::{BackoffConfig, ClientOptions, ObjectStore, ObjectStoreScheme, RetryConfig};
use tokio::runtime::{Builder, Runtime};

use super::address::Address;
use super::aws_files::{AwsFiles, aws_options};
use super::error::{StoreError, reason};

/// How long a request may take, how long a connection may be silent, and how long it may take to be made.
const TIMEOUT: Duration = Duration::from_secs(300);
const READ_TIMEOUT: Duration = Duration::from_secs(60);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// How often a request is made again, the longest wait before that, and for how long all.
const RETRIES: usize = 6;
const LONGEST_PAUSE: Duration = Duration::from_secs(20);
const RETRY_FOR: Duration = Duration::from_secs(180);

/// How often whoever waits for a request looks whether the user wants to stop.
const LOOK: Duration = Duration::from_millis(200);

/// Who asks, and how.
#[derive(Clone, Default)]
pub struct Settings {
    /// The environment: names of variables in lower case, and their values.
    pub options: Vec<(String, String)>,
    /// What the AWS command line keeps in files. The environment comes first.
    pub aws: AwsFiles,
    /// How long to wait after the first failure of a request; each further failure doubles it.
    pub pause: Duration,
}

impl fmt::Debug for Settings {
    /// Without values, which may be secret.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Settings").finish_non_exhaustive()
    }
}

impl Settings {
    /// The options whose names begin so.
    fn named<'s>(&'s self, start: &'s str) -> impl Iterator<Item = (&'s str, &'s str)> {
        let options = self
            .options
            .iter()
            .map(|(name, value)| (name.as_str(), value.as_str()));
        options.filter(move |(name, value)| name.starts_with(start) && !value.is_empty())
    }

    /// The options for S3: those of the environment, then those of the AWS files that it does not have.
    fn for_aws(&self) -> Result<Vec<(String, String)>, StoreError> {
        let mut options: Vec<(String, String)> = self
            .named("aws_")
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
            .collect();
        let is_set = |name: &str| options.iter().any(|(set, _)| set == name);
        // Keys belong together: half a pair of the environment and half of a file are of no use.
        let has_keys = [
            "aws_access_key_id",
            "aws_web_identity_token_file",
            "aws_skip_signature",
        ]
        .into_iter()
        .any(is_set);
        let has_region = is_set("aws_region") || is_set("aws_default_region");
        let of_files = match has_keys && self.aws.profile.is_none() {
            // What the files lack does not matter then.
            true => aws_options(&self.aws).unwrap_or_default(),
            false => aws_options(&self.aws)?,
        };
        let needed = of_files
            .into_iter()
            .filter(|(name, _)| match name.as_str() {
                "aws_region" => !has_region,
                "aws_endpoint_url" => !is_set("aws_endpoint_url"),
                _ => !has_keys,
            });
        let needed: Vec<(String, String)> = needed.collect();
        options.extend(needed);
        Ok(options)
    }
}

/// Makes clients of stores, which share their threads.
#[derive(Clone)]
pub(crate) struct Client {
    settings: Settings,
    runtime: Arc<Runtime>,
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Client").finish_non_exhaustive()
    }
}

impl Client {
    /// One with these settings. Nothing is asked for yet.
    ///
    /// # Errors
    /// The system gives no threads.
    pub(crate) fn new(settings: Settings) -> Result<Client, StoreError> {
        const THREADS: usize = 2;
        let mut runtime = Builder::new_multi_thread();
        let runtime = runtime.worker_threads(THREADS).enable_all().build();
        let runtime = runtime.map_err(|source| StoreError::Client {
            address: "any store".to_owned(),
            reason: source.to_string(),
        })?;
        Ok(Client {
            settings,
            runtime: Arc::new(runtime),
        })
    }

    /// A client of the store at an address. Nothing is asked for yet.
    ///
    /// # Errors
    /// Options are missing or wrong.
    pub(crate) fn open(&self, address: &Address) -> Result<Store, StoreError> {
        let settings = &self.settings;
        let url = address.url.to_string();
        let failed = |error: object_store::Error| StoreError::Client {
            address: address.text().to_owned(),
            reason: reason(&error),
        };
        let retry = RetryConfig {
            backoff: BackoffConfig {
                // object_store draws from this range, which must not be empty.
                init_backoff: settings.pause.max(Duration::from_millis(1)),
                max_backoff: LONGEST_PAUSE,
                base: 2.0,
            },
            max_retries: RETRIES,
            retry_timeout: RETRY_FOR,
        };
        let client = |is_plain: bool| {
            ClientOptions::new()
                .with_allow_http(is_plain)
                .with_timeout(TIMEOUT)
                .with_read_timeout(READ_TIMEOUT)
                .with_connect_timeout(CONNECT_TIMEOUT)
        };
        let (objects, multipart): (Arc<dyn ObjectStore>, Option<Arc<dyn MultipartStore>>) =
            match &address.scheme {
                ObjectStoreScheme::AmazonS3 => {
                    let options = settings.for_aws()?;
                    let client = client(has_plain_endpoint(&options));
                    let mut builder = AmazonS3Builder::new().with_url(url).with_retry(retry);
                    builder = builder.with_client_options(client);
                    for (name, value) in options {
                        if let Ok(key) = name.parse() {
                            builder = builder.with_config(key, value);
                        }
                    }
                    let made = Arc::new(builder.build().map_err(failed)?);
                    (Arc::clone(&made) as _, Some(made as _))
                }
                ObjectStoreScheme::GoogleCloudStorage => {
                    let options: Vec<_> = settings.named("google_").collect();
                    let mut builder = GoogleCloudStorageBuilder::new()
                        .with_url(url)
                        .with_retry(retry);
                    builder = builder.with_client_options(client(has_plain_endpoint(&options)));
                    for (name, value) in options {
                        if let Ok(key) = name.parse() {
                            builder = builder.with_config(key, value);
                        }
                    }
                    let made = Arc::new(builder.build().map_err(failed)?);
                    (Arc::clone(&made) as _, Some(made as _))
                }
                ObjectStoreScheme::MicrosoftAzure => {
                    let options: Vec<_> = settings.named("azure_").collect();
                    let mut builder = MicrosoftAzureBuilder::new().with_url(url).with_retry(retry);
                    builder = builder.with_client_options(client(has_plain_endpoint(&options)));
                    for (name, value) in options {
                        if let Ok(key) = name.parse() {
                            builder = builder.with_config(key, value);
                        }
                    }
                    let made = Arc::new(builder.build().map_err(failed)?);
                    (Arc::clone(&made) as _, Some(made as _))
                }
                _ => {
                    let server = &address.url[..url::Position::BeforePath];
                    let builder = HttpBuilder::new()
                        .with_url(server)
                        .with_retry(retry)
                        .with_client_options(client(address.url.scheme() == "http"));
                    (Arc::new(builder.build().map_err(failed)?), None)
                }
            };
        Ok(Store {
            address: address.clone(),
            objects,
            multipart,
            runtime: Arc::clone(&self.runtime),
            pause: settings.pause,
        })
    }
}

/// Whether an endpoint among the options is one without encryption, as those of test servers are.
fn has_plain_endpoint<K: AsRef<str>, V: AsRef<str>>(options: &[(K, V)]) -> bool {
    options.iter().any(|(name, value)| {
        let (name, value) = (name.as_ref(), value.as_ref());
        name.contains("endpoint") && value.starts_with("http://")
            || name.contains("emulator") && value.eq_ignore_ascii_case("true")
    })
}

/// A client of the store that holds one address. Its copies share their connections.
#[derive(Clone)]
pub(crate) struct Store {
    pub(crate) address: Address,
    pub(crate) objects: Arc<dyn ObjectStore>,
    /// Uploads in pieces; a web server takes none.
    multipart: Option<Arc<dyn MultipartStore>>,
    runtime: Arc<Runtime>,
    pause: Duration,
}

impl fmt::Debug for Store {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Store").field(&self.address.text()).finish()
    }
}

impl Store {
    /// What takes uploads in pieces.
    ///
    /// # Errors
    /// It is a web server.
    pub(crate) fn uploads(&self) -> Result<&dyn MultipartStore, StoreError> {
        self.multipart.as_deref().ok_or_else(|| StoreError::OnWeb {
            address: self.address.text().to_owned(),
        })
    }

    /// A client of what lies beside its address, under the same name with an ending.
    pub(crate) fn beside(&self, ending: &str) -> Store {
        Store {
            address: self.address.beside(ending),
            ..self.clone()
        }
    }

    /// Waits after so many failures, for longer after each.
    pub(crate) async fn pause(&self, failures: u32) {
        let pause = self.pause.saturating_mul(1 << failures);
        tokio::time::sleep(pause.min(LONGEST_PAUSE)).await;
    }

    /// What messages call a file.
    pub(crate) fn name_of(&self, name: &str) -> String {
        format!("{} of `{}`", errors::printable(name), self.address.text())
    }

    /// Waits for requests, and lets them go when the user wants to stop.
    pub(crate) fn wait<T>(
        &self,
        stopped: &(dyn Fn() -> bool + Sync),
        requests: impl Future<Output = Result<T, StoreError>>,
    ) -> Result<T, StoreError> {
        self.runtime.block_on(async {
            let mut requests = std::pin::pin!(requests);
            loop {
                match tokio::time::timeout(LOOK, &mut requests).await {
                    Ok(done) => return done,
                    Err(_) if stopped() => return Err(StoreError::Stopped),
                    Err(_) => {}
                }
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(options: &[(&str, &str)], credentials: &str, config: &str) -> Settings {
        let own = |pairs: &[(&str, &str)]| -> Vec<(String, String)> {
            pairs
                .iter()
                .map(|(a, b)| ((*a).to_owned(), (*b).to_owned()))
                .collect()
        };
        Settings {
            options: own(options),
            aws: AwsFiles {
                credentials: Some(credentials.to_owned()),
                config: Some(config.to_owned()),
                profile: None,
            },
            pause: Duration::ZERO,
        }
    }

    #[test]
    fn the_environment_comes_before_files_and_keys_stay_together() {
        let credentials =
            "[default]\naws_access_key_id=F\naws_secret_access_key=G\naws_session_token=H\n";
        let config = "[default]\nregion=file-1\nendpoint_url=http://file\n";
        let value = |settings: &Settings, wanted: &str| {
            let options = settings.for_aws().unwrap();
            let mut found = options.into_iter().filter(|(name, _)| name == wanted);
            let value = found.next().map(|(_, value)| value);
            assert_eq!(found.next(), None, "{wanted} stands there twice");
            value
        };
        let of_files = settings(&[], credentials, config);
        assert_eq!(value(&of_files, "aws_access_key_id").as_deref(), Some("F"));
        assert_eq!(
            value(&of_files, "aws_endpoint_url").as_deref(),
            Some("http://file")
        );
        let both = [
            ("aws_access_key_id", "E"),
            ("aws_secret_access_key", "S"),
            ("aws_default_region", "env-1"),
            ("google_service_account", "x"),
        ];
        let both = settings(&both, credentials, config);
        assert_eq!(value(&both, "aws_access_key_id").as_deref(), Some("E"));
        assert_eq!(value(&both, "aws_session_token"), None);
        assert_eq!(value(&both, "aws_region"), None);
        assert_eq!(value(&both, "google_service_account"), None);
        // Keys of the environment do not need a profile that can be used.
        let sso = settings(
            &[("aws_access_key_id", "E")],
            "",
            "[default]\nsso_session=x\n",
        );
        assert_eq!(value(&sso, "aws_access_key_id").as_deref(), Some("E"));
        assert!(
            settings(&[], "", "[default]\nsso_session=x\n")
                .for_aws()
                .is_err()
        );
    }

    #[test]
    fn secrets_are_not_shown() {
        let settings = settings(&[("aws_secret_access_key", "geheim")], "", "");
        assert!(!format!("{settings:?}").contains("geheim"));
    }
}
