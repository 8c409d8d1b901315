//! `weld attest`: recomputes a checkpoint, and states where it comes from only if every byte is right.

use std::path::{Path, PathBuf};

use clap::Args;

use super::caller::Caller;
use super::keys;
use super::output::{Failure, print_made, say, say_made};
use super::progress::Progress;
use super::recompute::{Arithmetic, Recomputation, Thoroughness};
use super::report::write;
use super::sign::{failure, not_inside};
use super::signals::Work;
use audit::provenance::{PrivateKey, attest, check_inputs, is_bundle, is_statement};
use audit::verify::{Coverage, FolderListing, Proof, Verification};
use audit::{Command, Report, Verdict};
use checkpoint::{Checkpoint, read_bounded};
use errors::{Refusal, printable, printable_json};
use plan::Plan;
use run::Lock;
use run::destination::folder_of;

/// The largest file at the place of an attestation that is read to see whether it is one.
const MAX_OLD_BYTES: u64 = 128 << 20;

/// Recompute every byte of a checkpoint, and state what it was made from (in-toto, SLSA provenance v1)
///
/// Writes nothing unless every tensor is exact. The statement lists the recomputed files, the recipe, the options and
/// the digests of the inputs. It names no time and no host. Exit codes: 0 attested, 1 wrong, 2 could not run, 3
/// inconclusive.
#[derive(Args)]
pub(super) struct Arguments {
    #[command(flatten)]
    recomputation: Recomputation,

    /// Where to write the attestation [default: stdout; the report then goes to stderr]
    #[arg(long, short, value_name = "FILE")]
    output: Option<PathBuf>,

    /// Sign the attestation with this private key (PEM); the result is a Sigstore bundle, not the plain statement
    #[arg(long, value_name = "FILE")]
    key: Option<PathBuf>,
}

impl Arguments {
    /// The files that it reads, as far as they are named.
    fn read(&self) -> Vec<PathBuf> {
        let read = self.recomputation.read();
        read.into_iter().chain(self.key.clone()).collect()
    }
}

pub(super) fn run(arguments: &Arguments) -> Result<(), Failure> {
    if let Some(output) = &arguments.output {
        check_output(output)?;
    }
    let caller = Caller::terminal(Work::Reads, arguments.recomputation.quiet)?;
    let Recomputation { model, report, .. } = &arguments.recomputation;
    let make = || recompute(arguments, &caller);
    let other = match &arguments.output {
        Some(_) => print_made,
        None => |text: &str| {
            say_made(text);
            Ok(())
        },
    };
    let proven = report.finish_beside(Command::Verify, model, &arguments.read(), make, other)?;
    state(arguments, proven, &caller)
}

/// An attestation may only replace an attestation or an empty file, so that a mistyped path costs nothing else.
fn check_output(output: &Path) -> Result<(), Failure> {
    let shown = output.display();
    let refused = |why: String| {
        Err(Failure::tool(
            Refusal::new(why).with_hint("name another file"),
        ))
    };
    let Ok(found) = output.metadata() else {
        return match folder_of(output).is_dir() {
            true => Ok(()),
            false => refused(format!("--output {shown}: there is no such folder")),
        };
    };
    if found.is_dir() {
        return refused(format!("--output {shown} is a folder"));
    }
    if !found.is_file() || found.len() == 0 {
        return Ok(());
    }
    let old = read_bounded(output, MAX_OLD_BYTES, "attestation, in bytes");
    match old.is_ok_and(|old| is_bundle(&old) || is_statement(&old)) {
        true => Ok(()),
        false => refused(format!(
            "--output {shown} is there and is no attestation, so it is not replaced"
        )),
    }
}

/// What a statement is made from.
struct Proven {
    proof: Proof,
    /// None unless every tensor is exact, and of adapters.
    plan: Option<Plan>,
    lock: Option<Lock>,
    folder: FolderListing,
    model: Checkpoint,
    key: Option<PrivateKey>,
}

/// Recomputes the checkpoint.
fn recompute(arguments: &Arguments, caller: &Caller) -> Result<(Report, Proven), Failure> {
    let recomputation = &arguments.recomputation;
    let (locator, location) = recomputation.locate(caller)?;
    if !location.adapters.is_empty() {
        return Err(Failure::tool(
            Refusal::new("a model with an adapter is not one checkpoint")
                .with_hint("attest the model that was merged"),
        ));
    }
    let key = key(arguments, &location.path)?;
    let how = Thoroughness {
        coverage: Coverage::Full,
        allow_step: Some(false),
        arithmetic: Some(Arithmetic::Weldment),
        part: None,
    };
    let recomputed = recomputation.run(locator, &location, how, caller)?;
    let Verification { mut report, proof } = recomputed.verification;
    let plan = recomputed.plan.filter(|_| proof == Proof::Exact);
    let inputs = recomputed.inputs.filter(|_| proof == Proof::Exact);
    if let Some(policy) = recomputation.report.policy()? {
        check_inputs(&policy.provenance, inputs.as_deref(), &mut report);
    }
    let proven = Proven {
        proof,
        plan,
        lock: recomputed.lock,
        folder: recomputed.folder,
        model: recomputed.model,
        key,
    };
    Ok((report, proven))
}

/// Makes the statement and writes it.
fn state(arguments: &Arguments, proven: Proven, caller: &Caller) -> Result<(), Failure> {
    let recomputation = &arguments.recomputation;
    let (Some(plan), Some(lock)) = (proven.plan, proven.lock) else {
        // The report passed only because the policy or the checkpoint allows it.
        say(match proven.proof {
            Proof::NoLock => {
                "nothing is attested: there is no weldment.lock.json\n\nhint: merge with weld, which writes it"
            }
            Proof::Exact => {
                "nothing is attested: every tensor is exact, but an attestation is of a model, not of an adapter\n\nhint: \
                 sign the adapter with `weld sign`"
            }
            Proof::Open => "nothing is attested: not every tensor is exact",
        });
        return Err(Failure::Verdict(Verdict::Failed));
    };
    let threads = recomputation.threads.count();
    let quiet = recomputation.quiet;
    let progress = Progress::hashing(plan.bytes_read, "attesting", caller);
    let attestation = attest(
        &plan,
        &lock,
        (&proven.folder, &proven.model),
        threads,
        &progress,
    );
    progress.finish();
    let attestation = attestation.map_err(failure)?;
    let text = match &proven.key {
        Some(key) => attestation.signed(key).map_err(failure)?,
        None => attestation.statement,
    };
    match &arguments.output {
        None => print_made(&printable_json(&text)).map_err(|failure| match failure {
            Failure::BrokenPipe => Failure::tool(
                Refusal::new("nobody reads stdout, so the attestation is lost")
                    .with_hint("name a file with --output"),
            ),
            failure => failure,
        })?,
        Some(file) => write(file, &text)?,
    }
    if !quiet {
        say(&format!("attested {} files", attestation.subjects));
        let others = attestation.left_out.iter();
        for name in others.filter(|name| !keys::vouches(name)) {
            say(&format!(
                "not recomputed, so not attested: {}",
                printable(name)
            ));
        }
    }
    Ok(())
}

fn key(arguments: &Arguments, root: &Path) -> Result<Option<PrivateKey>, Failure> {
    let Some(path) = &arguments.key else {
        return Ok(None);
    };
    not_inside(path, root)?;
    keys::private(path).map(Some)
}
