//! `weld sign`: signs the files of a checkpoint with a local key.

use std::fs;
use std::path::{Path, PathBuf};

use clap::Args;

use super::arguments::Threads;
use super::caller::Caller;
use super::keys;
use super::network::{Needs, Network};
use super::output::Failure;
use super::progress::Progress;
use super::recompute::ignored;
use super::report::write;
use super::signals::Work;
use audit::provenance::{SignError, ToSign, is_bundle};
use checkpoint::{ModelRef, read_bounded};
use errors::{Refusal, printable};

/// The largest file that is examined before a signature replaces it.
const MAX_OLD_BYTES: u64 = 128 << 20;

/// Sign all files of a checkpoint with a local key (OpenSSF Model Signing 1.0)
///
/// The signature is a Sigstore bundle, which the model-signing package can verify too. It covers all files but
/// git's and itself. The same files and key give the same signature.
#[derive(Args)]
pub(super) struct Arguments {
    /// The checkpoint: a folder, a file, or an id on the Hub
    #[arg(value_parser = ModelRef::parse)]
    model: ModelRef,

    /// The private key in PEM: PKCS#8 or SEC1, on P-256, P-384 or P-521
    #[arg(long, value_name = "FILE")]
    key: PathBuf,

    /// Where to write the signature [default: model.sig in the folder, or FILE.sig beside a single file]
    #[arg(long, value_name = "FILE")]
    signature: Option<PathBuf>,

    /// A file or folder that is no part of the model and is not signed; its path starts in the model's folder. Can be
    /// repeated
    #[arg(long, value_name = "PATH", alias = "ignore-paths")]
    ignore: Vec<String>,

    #[command(flatten)]
    network: Network,

    #[command(flatten)]
    threads: Threads,

    /// Print only errors
    #[arg(long, short)]
    quiet: bool,
}

pub(super) fn run(arguments: &Arguments) -> Result<(), Failure> {
    let caller = Caller::terminal(Work::Reads, arguments.quiet)?;
    let locator = arguments.network.locator(None, Needs::Weights, &caller)?;
    let location = locator
        .locate(&arguments.model)
        .map_err(Failure::could_not_run)?;
    if !location.adapters.is_empty() {
        return Err(Failure::tool(
            Refusal::new("a model with an adapter is not one checkpoint")
                .with_hint("sign each by itself"),
        ));
    }
    let ignored = ignored(&arguments.ignore, &location)?;
    let root = location.path;
    let key = keys::private(&arguments.key)?;
    not_inside(&arguments.key, &root)?;
    let place = arguments.signature.clone();
    let place = place.unwrap_or_else(|| keys::signature_of(&root));
    replaceable(&place)?;
    let listed = ToSign::list(&root, &place, ignored).map_err(failure)?;
    let progress = Progress::hashing(listed.bytes(), "signing", &caller);
    let signed = listed.sign(&key, arguments.threads.count(), &progress);
    progress.finish();
    let signed = signed.map_err(failure)?;
    write(&place, &signed.bundle)?;
    caller.say(&format!(
        "signed {} files with the {} key {}: {}",
        signed.files,
        key.public().curve(),
        key.public().fingerprint(),
        printable(&place.display().to_string())
    ));
    Ok(())
}

pub(super) fn failure(error: SignError) -> Failure {
    match error {
        SignError::Checkpoint(error) => Failure::could_not_run(error),
        SignError::Run(error) => error.into(),
        SignError::NotAFile { .. }
        | SignError::Empty { .. }
        | SignError::Changed { .. }
        | SignError::OtherDigest { .. } => Failure::input(&error),
        SignError::Unreadable { .. } | SignError::BadPlace { .. } | SignError::Key => {
            Failure::tool(&error)
        }
    }
}

/// Refuses a private key inside the folder, because it would be published together with it.
pub(super) fn not_inside(key: &Path, root: &Path) -> Result<(), Failure> {
    let (Ok(key), Ok(root)) = (fs::canonicalize(key), fs::canonicalize(root)) else {
        return Ok(());
    };
    match key.starts_with(&root) {
        false => Ok(()),
        true => Err(Failure::tool(
            Refusal::new(format!(
                "the private key {} is in what is to be signed, and would be published with it",
                key.display()
            ))
            .with_hint("keep it elsewhere"),
        )),
    }
}

/// A signature may only replace a signature, so that a mistyped path never costs a file of the model.
fn replaceable(place: &Path) -> Result<(), Failure> {
    let Ok(there) = place.symlink_metadata() else {
        let folder = place
            .parent()
            .filter(|folder| !folder.as_os_str().is_empty());
        return match folder.is_none_or(Path::is_dir) {
            true => Ok(()),
            false => Err(Failure::tool(format!(
                "cannot write {}: there is no such folder",
                place.display()
            ))),
        };
    };
    let old = read_bounded(place, MAX_OLD_BYTES, "signature, in bytes");
    match there.is_file() && old.is_ok_and(|old| is_bundle(&old)) {
        true => Ok(()),
        false => Err(Failure::tool(
            Refusal::new(format!(
                "{} is there and is no signature, so it is not replaced",
                place.display()
            ))
            .with_hint("name another file with --signature"),
        )),
    }
}
