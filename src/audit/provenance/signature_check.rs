//! The result of checking a signature or an attestation, to be added to a report.

use std::path::Path;

use serde_json::{Value, json};

use super::checks;
use super::keys::PublicKey;
use crate::{CheckInfo, Finding, Place, Report, Severity};

/// The size limit of a bundle; half a million files fit.
pub(super) const MAX_BUNDLE_BYTES: u64 = 128 << 20;

/// The result of checking a signature or an attestation.
pub struct SignatureCheck {
    what: &'static str,
    findings: Vec<Finding>,
    said: String,
    details: Value,
}

pub(super) fn file_name(path: &Path) -> String {
    let name = path.file_name().unwrap_or(path.as_os_str());
    name.to_string_lossy().into_owned()
}

impl SignatureCheck {
    /// The result for this many files and a key: it holds, unless a finding is added.
    pub(super) fn new(
        what: &'static str,
        file: String,
        key: &PublicKey,
        files: usize,
        findings: Vec<Finding>,
    ) -> SignatureCheck {
        let holds = !findings.iter().any(is_error);
        let by = format!("{} key {}", key.curve(), key.fingerprint());
        let said = match holds {
            true => format!("{file} holds for {files} files, by the {by}"),
            false => format!("{file} does not hold, by the {by}"),
        };
        let details = json!({
            "file": file,
            "holds": holds,
            "files": files,
            "curve": key.curve(),
            "key": key.fingerprint(),
        });
        SignatureCheck {
            what,
            findings,
            said,
            details,
        }
    }

    /// The result for a required signature that does not exist.
    pub fn no_signature(path: &Path) -> SignatureCheck {
        SignatureCheck::none("signature", &checks::MISSING, path)
    }

    /// The result for a required attestation that does not exist.
    pub fn no_attestation(path: &Path) -> SignatureCheck {
        SignatureCheck::none("attestation", &checks::NO_ATTESTATION, path)
    }

    fn none(what: &'static str, check: &'static CheckInfo, path: &Path) -> SignatureCheck {
        let file = file_name(path);
        let finding = Finding::new(check, Place::file(&file), format!("the {what}"), "none");
        SignatureCheck {
            what,
            findings: vec![finding],
            said: format!("none: there is no {file}"),
            details: json!({"file": file, "holds": false}),
        }
    }

    /// Whether it holds, that is, no finding is an error.
    pub fn holds(&self) -> bool {
        !self.findings.iter().any(is_error)
    }

    /// Adds the result to a report.
    pub fn add_to(self, report: &mut Report) {
        report.say(self.what, self.said);
        report.findings.extend(self.findings);
        let own = checks::CHECKS
            .iter()
            .filter(|check| check.group() == self.what);
        report.checked.extend(own.copied());
        if !report.details.is_object() {
            report.details = json!({});
        }
        report.details[self.what] = self.details;
    }
}

fn is_error(finding: &Finding) -> bool {
    finding.severity == Severity::Error
}
