//! `weld push`: uploads a checkpoint to the Hub.

use std::path::PathBuf;
use std::process;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::thread;
use std::time::Duration;

use bytesize::ByteSize;
use clap::Args;

use super::arguments::Threads;
use super::caller::Caller;
use super::environment;
use super::network::Network;
use super::network::fetch::client;
use super::output::{Failure, print, say};
use super::progress::Progress;
use super::signals::Work;
use super::transfers::Transfer;
use audit::check::check;
use audit::{Verdict, formats};
use checkpoint::{Checkpoint, Location, Survey, is_repo_id};
use errors::{Refusal, printable};
use hub::{Hub, HubError, Observer, Push, Upload};
use plan::count;

/// How often the wish to stop is looked for.
const LOOK: Duration = Duration::from_millis(100);

/// Upload a checkpoint to the Hugging Face Hub, in one commit
///
/// Everything in the folder goes, its card and its lock with it, so that `weld verify org/name` can recompute it from
/// there. A repository that is not there is created, private unless --public is given. Weights that it has under other
/// names are removed in the same commit.
#[derive(Args)]
pub(super) struct Arguments {
    /// The checkpoint's folder
    folder: PathBuf,

    /// The repository: org/name
    #[arg(value_parser = repository)]
    repo: String,

    /// Create a repository that everyone can see, or push to one
    #[arg(long)]
    public: bool,

    /// Show what would be uploaded, and upload nothing
    #[arg(long)]
    dry_run: bool,

    /// Upload the folder though `weld check` finds errors in it
    #[arg(long)]
    no_check: bool,

    /// The message of the commit
    #[arg(long, value_name = "TEXT", default_value = "Upload with weldment")]
    message: String,

    #[command(flatten)]
    network: Network,

    #[command(flatten)]
    threads: Threads,

    /// Print only the address of the repository
    #[arg(long, short)]
    quiet: bool,
}

pub(super) fn run(arguments: &Arguments) -> Result<(), Failure> {
    let caller = Caller::terminal(Work::Reads, arguments.quiet)?;
    let files = Upload::of_folder(&arguments.folder).map_err(|error| failure(&error))?;
    if !arguments.no_check {
        check_folder(arguments, &caller)?;
    }
    if arguments.network.offline || environment::is_offline() {
        return match arguments.dry_run {
            true => print(&listed(&files)),
            false => Err(Failure::tool(
                Refusal::new("the network is not to be used, so nothing can be pushed")
                    .with_hint("leave out --offline and HF_HUB_OFFLINE, or add --dry-run"),
            )),
        };
    }
    let cache = environment::locator(None)?.hub_cache.unwrap_or_default();
    let hub = client(&cache)?;
    let watched = Transfer::new(&caller);
    let push = hub.plan_push(&arguments.repo, files, arguments.public, &watched);
    let push = push.map_err(|error| failure(&error))?;
    if arguments.dry_run {
        return print(&planned(&push));
    }
    caller.say(planned(&push).trim_end());
    let pushed = send(&hub, &push, &arguments.message, watched)?;
    print(&match pushed.commit {
        Some(commit) => format!("{} at {}", pushed.page, printable(&commit)),
        None => pushed.page,
    })
}

fn send(hub: &Hub, push: &Push, message: &str, watched: Transfer) -> Result<hub::Pushed, Failure> {
    let watched: Arc<dyn Observer> = Arc::new(watched);
    let done = AtomicBool::new(false);
    let pushed = thread::scope(|scope| {
        scope.spawn(|| end_when_stopped(&*watched, &done));
        let pushed = hub.push(push, message, Arc::clone(&watched));
        done.store(true, Relaxed);
        pushed
    });
    pushed.map_err(|error| failure(&error))
}

/// Ends the process when the user asks to stop: an upload cannot be called off, and nothing is to be cleaned up.
fn end_when_stopped(observer: &dyn Observer, done: &AtomicBool) {
    while !done.load(Relaxed) {
        if observer.stopped() {
            say("stopped: the repository shows whether the commit was made");
            process::exit(130);
        }
        thread::sleep(LOOK);
    }
}

/// Refuses a folder in which `weld check` finds errors.
fn check_folder(arguments: &Arguments, caller: &Caller) -> Result<(), Failure> {
    let location = Location::local(&arguments.folder);
    let label = arguments.folder.display().to_string();
    let survey = Survey::open(&label, &location).map_err(Failure::could_not_run)?;
    let models: Vec<&Checkpoint> = survey.checkpoint.iter().collect();
    let progress = Progress::reading(&models, "checking", caller);
    let report = check(
        &label,
        &location,
        survey,
        arguments.threads.count(),
        &progress,
    );
    progress.finish();
    let report = report?;
    if report.verdict() != Verdict::Failed {
        return Ok(());
    }
    caller.show(&formats::text(&report, None));
    Err(Failure::input(
        Refusal::new(format!("{label} has defects, so it was not pushed"))
            .with_hint("mend them, or push it as it is with --no-check"),
    ))
}

/// What would go, and what it does to the repository.
fn planned(push: &Push) -> String {
    let who = match push.public {
        true => "everyone can see",
        false => "is private",
    };
    let what = match &push.onto {
        None => format!("a new repository that {who}"),
        Some(commit) => format!("on top of commit {commit}"),
    };
    let mut text = format!("{}: {what}\n{}", push.repo, listed(&push.files));
    for name in &push.removed {
        text.push_str(&format!("  removes {}\n", printable(name)));
    }
    text
}

fn listed(files: &[Upload]) -> String {
    let bytes = files.iter().map(|file| file.bytes).sum();
    let mut text = format!(
        "{}, {}\n",
        count(files.len(), "file"),
        ByteSize(bytes).display().si()
    );
    for file in files {
        let size = ByteSize(file.bytes).display().si();
        text.push_str(&format!("  {}  {size}\n", printable(&file.name)));
    }
    text
}

/// Parses `org/name`.
fn repository(text: &str) -> Result<String, String> {
    match is_repo_id(text) && text.contains('/') {
        true => Ok(text.to_owned()),
        false => Err("expected a repository as `org/name`".to_owned()),
    }
}

/// Pushing fails because of what the user gave, or of what is between here and the Hub.
fn failure(error: &HubError) -> Failure {
    match error {
        HubError::NotAFile { .. } | HubError::Empty { .. } | HubError::IsPublic { .. } => {
            Failure::input(error)
        }
        HubError::Stopped => Failure::Stopped(error.to_string()),
        error => Failure::tool(error),
    }
}
