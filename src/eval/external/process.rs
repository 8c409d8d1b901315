//! A process and all that it starts: run until it ends, its time is over, or somebody asks to stop.

use std::io::{self, Read};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use errors::printable;
use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, kill_process_group, waitid};

/// How often it is looked whether the process has ended.
const INTERVAL: Duration = Duration::from_millis(20);
/// How long a process that is asked to end may take.
const GRACE: Duration = Duration::from_secs(3);
/// How long its output is waited for after its end: what it started may have left its group, and still hold it.
const LAST_OUTPUT: Duration = Duration::from_secs(2);
/// The bytes of the end of its output that messages show.
const SHOWN: usize = 1500;
/// The longest piece of output that is read at once.
const PIECE: usize = 16 << 10;

/// How a process ended.
#[derive(Debug, Clone, Copy)]
pub(super) enum End {
    Exited(ExitStatus),
    OutOfTime,
    Stopped,
}

/// A process that has ended.
#[derive(Debug)]
pub(super) struct Ended {
    pub(super) end: End,
    /// What it wrote to standard output: at most as much as was asked for.
    pub(super) stdout: Vec<u8>,
    /// Whether there was more.
    pub(super) is_too_long: bool,
    /// The end of what it wrote to standard error.
    stderr: Vec<u8>,
}

/// What is read of an output.
#[derive(Default)]
struct Kept {
    bytes: Vec<u8>,
    is_too_long: bool,
    is_done: bool,
}

type Output = Arc<Mutex<Kept>>;

/// Runs a command in a process group of its own. When it has ended, whatever of the group is left is killed.
///
/// # Errors
/// It cannot be started.
pub(super) fn run(
    mut command: Command,
    limit: Option<Duration>,
    most: u64,
    is_stopped: &dyn Fn() -> bool,
) -> io::Result<Ended> {
    let started = Instant::now();
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .process_group(0)
        .spawn()?;
    let most = usize::try_from(most).unwrap_or(usize::MAX);
    let watched = watch(&mut child, most, || {
        if is_stopped() {
            return Some(End::Stopped);
        }
        let is_over = limit.is_some_and(|limit| started.elapsed() >= limit);
        is_over.then_some(End::OutOfTime)
    });
    // The process is not reaped yet, so its group is still its own.
    signal(&child, Signal::KILL);
    let status = child.wait()?;
    let (end, [stdout, stderr]) = watched?;
    let waited = Instant::now();
    let (stdout, stderr) = (taken(&stdout, waited), taken(&stderr, waited));
    Ok(Ended {
        end: end.unwrap_or(End::Exited(status)),
        stdout: stdout.bytes,
        is_too_long: stdout.is_too_long,
        stderr: stderr.bytes,
    })
}

/// Reads what a process writes until it has exited, or it is to end: then it is asked to, and has a while for it.
fn watch(
    child: &mut Child,
    most: usize,
    is_to_end: impl Fn() -> Option<End>,
) -> io::Result<(Option<End>, [Output; 2])> {
    let stdout = child.stdout.take().map(|pipe| keep(pipe, most, false));
    let stderr = child.stderr.take().map(|pipe| keep(pipe, SHOWN, true));
    let outputs = [
        stdout.transpose()?.unwrap_or_default(),
        stderr.transpose()?.unwrap_or_default(),
    ];
    while !has_exited(child)? {
        if let Some(end) = is_to_end() {
            signal(child, Signal::TERM);
            let asked = Instant::now();
            while !has_exited(child)? && asked.elapsed() < GRACE {
                thread::sleep(INTERVAL);
            }
            return Ok((Some(end), outputs));
        }
        thread::sleep(INTERVAL);
    }
    Ok((None, outputs))
}

/// Whether a process has exited; it is not reaped.
fn has_exited(child: &Child) -> io::Result<bool> {
    let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
    Ok(waitid(WaitId::Pid(Pid::from_child(child)), options)?.is_some())
}

/// Sends a signal to a process and all of its group. One that has ended hears nothing.
fn signal(child: &Child, signal: Signal) {
    let _ = kill_process_group(Pid::from_child(child), signal);
}

/// Reads an output to its end, and keeps the first bytes of it, or the last.
fn keep(mut pipe: impl Read + Send + 'static, most: usize, last: bool) -> io::Result<Output> {
    let output = Output::default();
    let shared = Arc::clone(&output);
    thread::Builder::new().spawn(move || {
        let mut piece = vec![0; PIECE];
        loop {
            let read = match pipe.read(&mut piece) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Ok(read) => read,
                Err(_) => 0,
            };
            let mut kept = shared.lock().unwrap_or_else(PoisonError::into_inner);
            if read == 0 {
                kept.is_done = true;
                return;
            }
            let room = if last {
                read
            } else {
                most.saturating_sub(kept.bytes.len())
            };
            kept.is_too_long |= read > room;
            kept.bytes.extend(&piece[..read.min(room)]);
            if last && kept.bytes.len() > 2 * most {
                let surplus = kept.bytes.len() - most;
                kept.bytes.drain(..surplus);
            }
        }
    })?;
    Ok(output)
}

/// What was read of an output, once it has ended or enough time has passed.
fn taken(output: &Output, since: Instant) -> Kept {
    loop {
        let mut kept = output.lock().unwrap_or_else(PoisonError::into_inner);
        if kept.is_done || since.elapsed() >= LAST_OUTPUT {
            return std::mem::take(&mut kept);
        }
        drop(kept);
        thread::sleep(INTERVAL);
    }
}

impl Ended {
    /// The end of what it wrote to standard error, or else to standard output, in a line, without secrets.
    pub(super) fn said(&self, secrets: &[String]) -> String {
        let outputs = [&self.stderr, &self.stdout];
        let said = outputs
            .into_iter()
            .find(|output| !output.trim_ascii().is_empty());
        let said = said.map_or(&[][..], |output| output.trim_ascii());
        // Secrets go before the cut, which might leave a part of one.
        let said = &said[said.len().saturating_sub(2 * SHOWN)..];
        let mut said = String::from_utf8_lossy(said).into_owned();
        for secret in secrets {
            said = said.replace(secret, "***");
        }
        let first = said.char_indices().rev().nth(SHOWN).map_or(0, |(at, _)| at);
        printable(said[first..].trim()).into_owned()
    }
}
