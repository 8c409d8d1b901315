//! `weld verify`: checks a checkpoint's signatures, recomputes it and compares.

use std::path::{Path, PathBuf};

use clap::{Args, ValueEnum};

use super::arguments::seed;
use super::caller::Caller;
use super::environment;
use super::keys;
use super::output::Failure;
use super::progress::Progress;
use super::recompute::{Arithmetic, Recomputation, Thoroughness};
use super::signals::Work;
use audit::policy::ProvenancePolicy;
use audit::provenance::{Attested, PublicKey, Signature, SignatureCheck, check_inputs};
use audit::verify::{Coverage, not_recomputed, not_trusted};
use audit::{Command, Report};
use checkpoint::Location;
use errors::Refusal;
use run::Part;

/// Recompute a merged checkpoint from its recipe and inputs, and compare; or check its signature
///
/// The recipe and options come from the checkpoint's weldment.lock.json, or without a lock from mergekit's
/// mergekit_config.yml; --recipe names another recipe. By default weld recomputes a sample of every tensor, and
/// compares every tensor's digest with the lock.
///
/// With --signature, --attestation or --key, only these are checked. Add --recompute (or --full, --recipe, --inputs)
/// to recompute the merge as well.
///
/// Exit codes: 0 right, 1 wrong, 2 could not run, 3 inconclusive.
#[derive(Args)]
pub(super) struct Arguments {
    #[command(flatten)]
    recomputation: Recomputation,

    /// The signature to check [default with --key alone: model.sig in the folder, or FILE.sig beside a file]
    #[arg(long, value_name = "FILE")]
    signature: Option<PathBuf>,

    /// The signed attestation to check
    #[arg(long, value_name = "FILE")]
    attestation: Option<PathBuf>,

    /// The signer's public key (PEM) [default: the policy's]
    #[arg(long, value_name = "FILE")]
    key: Option<PathBuf>,

    /// Recompute the merge too, if the signature holds
    #[arg(long)]
    recompute: bool,

    /// Recompute every byte, not a sample
    #[arg(long, conflicts_with = "samples")]
    full: bool,

    /// Verify only this part of the checkpoint, such as 3/16, cut as `weld merge --part` cuts it: one run of 16. Config,
    /// index and side files are looked at by each
    #[arg(long, value_name = "K/N")]
    part: Option<Part>,

    /// Number of blocks of 16,384 elements to recompute in each tensor
    #[arg(long, value_name = "N", default_value_t = 32, value_parser = clap::value_parser!(u32).range(1..))]
    samples: u32,

    /// Recompute the same blocks as a run with this seed, which its report shows [default: a new choice each time]
    #[arg(long, value_name = "SEED", value_parser = seed, allow_negative_numbers = true)]
    sample_seed: Option<u64>,

    /// How equal each value must be [default: what the policy says; otherwise exact if there is a lock, step for merges
    /// made by mergekit]
    #[arg(long, value_enum)]
    allow: Option<Allow>,

    /// The arithmetic to recompute in [default: weldment if there is a lock, otherwise auto]
    #[arg(long, value_enum)]
    numerics: Option<Arithmetic>,
}

/// How far a value may be from the recomputed one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Allow {
    /// Equal bytes
    Exact,
    /// At most one ULP (the next value of the dtype) off, as another order of arithmetic gives
    Step,
}

impl Arguments {
    /// The files that it reads, as far as they are named.
    fn read(&self) -> Vec<PathBuf> {
        let named = [&self.signature, &self.attestation, &self.key];
        let read = self.recomputation.read();
        read.into_iter()
            .chain(named.into_iter().flatten().cloned())
            .collect()
    }
}

pub(super) fn run(arguments: &Arguments) -> Result<(), Failure> {
    let Recomputation {
        model,
        report: outputs,
        ..
    } = &arguments.recomputation;
    outputs.finish(Command::Verify, model, &arguments.read(), || {
        let caller = Caller::terminal(Work::Reads, arguments.recomputation.quiet)?;
        report(arguments, &caller)
    })
}

/// Verifies for a program.
pub(super) fn call(arguments: &Arguments, caller: &Caller) -> Result<Report, Failure> {
    let outputs = &arguments.recomputation.report;
    outputs.made(|| report(arguments, caller))
}

fn report(arguments: &Arguments, caller: &Caller) -> Result<Report, Failure> {
    let recomputation = &arguments.recomputation;
    let (locator, location) = recomputation.locate(caller)?;
    let policy = recomputation.report.policy()?;
    let provenance = policy.map_or_else(ProvenancePolicy::default, |p| p.provenance.clone());
    let vouched = vouched(arguments, &provenance, &location, caller)?;
    let label = recomputation.model.to_string();
    let mut inputs = None;
    let mut report = if !vouched.iter().all(SignatureCheck::holds) {
        not_trusted(&label)
    } else if arguments.only_vouched() {
        let (report, lock) = not_recomputed(&label, &location.path)?;
        inputs = lock.map(|lock| lock.inputs);
        report
    } else {
        let allow = arguments.allow.map(|allow| allow == Allow::Step);
        let allow_step = allow.or(policy.and_then(|policy| policy.allow_step));
        let how = Thoroughness {
            coverage: arguments.coverage(),
            allow_step,
            arithmetic: arguments.numerics,
            part: arguments.part,
        };
        let done = recomputation.run(locator, &location, how, caller)?;
        // The inputs that were read take precedence over those that the lock names.
        inputs = done.inputs.or(done.lock.map(|lock| lock.inputs));
        done.verification.report
    };
    let trusted = vouched.iter().all(SignatureCheck::holds);
    for one in vouched {
        one.add_to(&mut report);
    }
    if trusted {
        check_inputs(&provenance, inputs.as_deref(), &mut report);
    }
    Ok(report)
}

impl Arguments {
    /// Whether only signatures were asked for.
    fn only_vouched(&self) -> bool {
        let more = &self.recomputation;
        let recompute = self.recompute
            || self.full
            || self.part.is_some()
            || more.recipe.is_some()
            || !more.inputs.is_empty();
        let vouched = self.signature.is_some() || self.attestation.is_some() || self.key.is_some();
        vouched && !recompute
    }

    fn coverage(&self) -> Coverage {
        match self.full {
            true => Coverage::Full,
            false => Coverage::Sample {
                blocks: self.samples as usize,
                seed: self.sample_seed.unwrap_or_else(environment::random),
            },
        }
    }
}

/// Checks the signature and the attestation, if the command line or a policy asks for them.
fn vouched(
    arguments: &Arguments,
    policy: &ProvenancePolicy,
    location: &Location,
    caller: &Caller,
) -> Result<Vec<SignatureCheck>, Failure> {
    let root = location.path.as_path();
    let threads = arguments.recomputation.threads.count();
    let ignored = arguments.recomputation.ignored(location)?;
    let mut vouched = Vec::new();
    let by_key_alone = arguments.key.is_some() && arguments.attestation.is_none();
    let place = keys::signature_of(root);
    let place = arguments.signature.as_ref().unwrap_or(&place);
    if arguments.signature.is_some() || policy.signed_by.is_some() || by_key_alone {
        let key = key(arguments, policy.signed_by.as_deref())?;
        if arguments.signature.is_none() && place.symlink_metadata().is_err() {
            vouched.push(SignatureCheck::no_signature(place));
        } else {
            let opened = Signature::open(root, place, &key, &ignored);
            let opened = opened.map_err(Failure::could_not_run)?;
            let what = "checking the signature";
            let progress = Progress::hashing(opened.bytes(), what, caller);
            let checked = opened.check(threads, &progress);
            progress.finish();
            vouched.push(checked?);
        }
    }
    if arguments.attestation.is_some() || policy.attested_by.is_some() {
        let key = key(arguments, policy.attested_by.as_deref())?;
        let default = keys::attestation_of(root);
        let file = arguments.attestation.as_ref().unwrap_or(&default);
        if arguments.attestation.is_none() && file.symlink_metadata().is_err() {
            vouched.push(SignatureCheck::no_attestation(file));
        } else {
            let opened = Attested::open(root, file, place, &key, &ignored);
            let opened = opened.map_err(Failure::could_not_run)?;
            let what = "checking the attestation";
            let progress = Progress::hashing(opened.bytes(), what, caller);
            let checked = opened.check(threads, &progress);
            progress.finish();
            vouched.push(checked?);
        }
    }
    match (location.adapters.is_empty(), vouched.is_empty()) {
        (false, false) => Err(Failure::tool(
            Refusal::new("a model with an adapter is not one checkpoint")
                .with_hint("verify the signature of each by itself"),
        )),
        _ => Ok(vouched),
    }
}

/// The key that must have signed: the policy's, which the command line may repeat but not replace.
fn key(arguments: &Arguments, of_policy: Option<&Path>) -> Result<PublicKey, Failure> {
    let given = arguments.key.as_deref().map(keys::public).transpose()?;
    let required = of_policy.map(keys::public).transpose()?;
    match (given, required) {
        (Some(given), Some(required)) if given.fingerprint() != required.fingerprint() => {
            Err(Failure::tool(
                Refusal::new("--key is not the key that the policy requires")
                    .with_hint("leave --key out"),
            ))
        }
        (_, Some(key)) | (Some(key), None) => Ok(key),
        (None, None) => Err(Failure::tool(
            Refusal::new("a signature proves nothing without the key of who must have made it")
                .with_hint("name the public key with --key"),
        )),
    }
}
