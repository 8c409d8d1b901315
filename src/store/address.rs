//! Addresses in object stores.

use object_store::ObjectStoreScheme;
use object_store::path::Path;
use url::Url;

use super::error::StoreError;
use checkpoint::without_secrets;

/// The longest address.
const MAX_BYTES: usize = 4096;

/// Where something lies in an object store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Address {
    /// As it is shown: without a slash at the end.
    text: String,
    pub(crate) url: Url,
    pub(crate) scheme: ObjectStoreScheme,
    /// Its path in the bucket or the server.
    pub(crate) path: Path,
}

impl Address {
    /// Reads an address.
    ///
    /// # Errors
    /// It has no bucket, has a password or a signature, or a part that no path has.
    pub fn parse(text: &str) -> Result<Address, StoreError> {
        let bad = |problem: &str| StoreError::BadAddress {
            address: without_secrets(text),
            problem: problem.to_owned(),
        };
        if text.len() > MAX_BYTES || text.chars().any(char::is_control) {
            return Err(bad("is too long, or has control characters"));
        }
        let url = Url::parse(text).map_err(|_| bad("is not an address"))?;
        if url.query().is_some() || url.fragment().is_some() {
            return Err(bad("has a `?` or a `#`; signed addresses are not taken"));
        }
        let is_web = matches!(url.scheme(), "http" | "https");
        let has_user = !url.username().is_empty();
        if url.password().is_some() || has_user && (is_web || url.scheme() == "s3") {
            return Err(bad("has a user's name or a password in it"));
        }
        let (scheme, path) =
            ObjectStoreScheme::parse(&url).map_err(|_| bad("names no bucket, or no path in it"))?;
        Ok(Address {
            text: text.trim_end_matches('/').to_owned(),
            url,
            scheme,
            path,
        })
    }

    /// The address as it is shown.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// The last part of its path, or the bucket.
    pub(crate) fn name(&self) -> &str {
        self.text.rsplit('/').next().unwrap_or(&self.text)
    }

    /// The path of a file below it.
    pub(crate) fn below(&self, name: &str) -> Path {
        let parts = self.path.parts();
        parts.chain(name.split('/').map(Into::into)).collect()
    }

    /// What lies beside it, under the same name with an ending.
    pub(crate) fn beside(&self, ending: &str) -> Address {
        let name = format!("{}{ending}", self.name());
        let mut parts: Vec<_> = self.path.parts().collect();
        parts.pop();
        parts.push(name.as_str().into());
        Address {
            text: format!("{}{ending}", self.text),
            path: parts.into_iter().collect(),
            ..self.clone()
        }
    }

    /// Whether it is a plain web server, which lists nothing and takes nothing.
    pub fn is_web(&self) -> bool {
        self.scheme == ObjectStoreScheme::Http
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_has_a_bucket_and_no_secrets() {
        let address = Address::parse("s3://bucket/models/a b/").unwrap();
        assert_eq!(address.text(), "s3://bucket/models/a b");
        assert_eq!(address.below("x/y.json").as_ref(), "models/a b/x/y.json");
        assert_eq!(address.name(), "a b");
        let beside = address.beside(".weld-parts");
        assert_eq!(beside.path.as_ref(), "models/a b.weld-parts");
        assert_eq!(beside.text(), "s3://bucket/models/a b.weld-parts");
        assert!(Address::parse("https://host/x").unwrap().is_web());
        assert!(!Address::parse("az://container@account/x").unwrap().is_web());
        for bad in [
            "s3://",
            "ftp://host/x",
            "https://host/x?X-Amz-Signature=secret",
            "https://me:secret@host/x",
            "https://secret@host/x",
            "s3://key:secret@bucket/x",
            "s3://secret@bucket/x",
            "s3://bucket/a\nb",
        ] {
            let error = Address::parse(bad).unwrap_err().to_string();
            assert!(!error.contains("secret"), "{error}");
        }
    }
}
