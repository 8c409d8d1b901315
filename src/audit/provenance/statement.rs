//! In-toto statements, v1: a `predicate` about files (`subject`).

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::value::RawValue;
use serde_json::{Value, json};

use super::short;

/// The statement's type.
const TYPE: &str = "https://in-toto.io/Statement/v1";

/// Whether the bytes are a statement, whatever it says.
pub fn is_statement(bytes: &[u8]) -> bool {
    Statement::read(bytes).is_ok()
}

/// A parsed statement; its predicate is still raw JSON.
#[derive(Debug)]
pub(super) struct Statement {
    /// The names of the files, and their digests by algorithm.
    pub(super) subject: Vec<(String, BTreeMap<String, String>)>,
    pub(super) predicate_type: String,
    pub(super) predicate: Box<RawValue>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Written {
    #[serde(rename = "_type")]
    kind: String,
    subject: Vec<Subject>,
    predicate_type: String,
    predicate: Box<RawValue>,
}

#[derive(Deserialize)]
struct Subject {
    #[serde(default)]
    name: String,
    digest: BTreeMap<String, String>,
}

impl Statement {
    /// Parses a statement.
    ///
    /// # Errors
    /// The text is no such statement; returns what was expected and what was found.
    pub(super) fn read(payload: &[u8]) -> Result<Statement, (String, String)> {
        let written: Written = serde_json::from_slice(payload)
            .map_err(|error| ("an in-toto statement".to_owned(), short(&error.to_string())))?;
        if written.kind != TYPE {
            return Err((TYPE.to_owned(), short(&written.kind)));
        }
        let subject = written.subject.into_iter();
        Ok(Statement {
            subject: subject.map(|one| (one.name, one.digest)).collect(),
            predicate_type: written.predicate_type,
            predicate: written.predicate,
        })
    }

    /// A statement as JSON.
    pub(super) fn write(subject: Value, predicate_type: &str, predicate: Value) -> Value {
        json!({
            "_type": TYPE,
            "subject": subject,
            "predicateType": predicate_type,
            "predicate": predicate,
        })
    }
}
