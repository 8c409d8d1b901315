//! Who a command works for: somebody at a terminal, or a program that calls it.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use super::output::{Failure, say, say_unbroken};
use super::signals::{self, Work};

/// What a program that calls a command hears of it, and how it stops it.
pub trait Listener: Send + Sync {
    /// A part of the work begins: what it is, and how much there is of it: bytes to read and write, items to score, trials
    /// of a study.
    fn begin(&self, what: &str, all: u64);

    /// This much more of it is done. Called from several threads.
    fn advance(&self, done: u64);

    /// Whether to stop; asked often, from several threads.
    fn stopped(&self) -> bool;
}

/// Who a command works for.
#[derive(Clone)]
pub(super) enum Caller {
    /// Somebody at a terminal, or a script that reads the output.
    Terminal {
        /// Whether nothing but the result is wanted.
        quiet: bool,
        /// Set when a signal asks to stop.
        stop: Arc<AtomicBool>,
    },
    /// A program, which gets the result itself.
    Program(Arc<dyn Listener>),
}

impl fmt::Debug for Caller {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Terminal { .. } => "Terminal",
            Self::Program(_) => "Program",
        })
    }
}

impl Caller {
    /// Somebody at a terminal. From now on signals stop the work.
    ///
    /// # Errors
    /// If the handlers of signals cannot be installed.
    pub(super) fn terminal(work: Work, quiet: bool) -> Result<Self, Failure> {
        Ok(Self::Terminal {
            quiet,
            stop: signals::install(work)?,
        })
    }

    /// Somebody who waits for a plan, or for a model to be opened: signals end the process, as nothing has to be
    /// cleaned up.
    pub(super) fn unguarded(quiet: bool) -> Self {
        Self::Terminal {
            quiet,
            stop: Arc::default(),
        }
    }

    /// A failure, or that the work was stopped, if that is why it failed.
    pub(super) fn failure(&self, failure: Failure) -> Failure {
        match self.stopped() {
            true => Failure::Stopped("stopped".to_owned()),
            false => failure,
        }
    }

    /// Says something that the result does not tell.
    pub(super) fn say(&self, text: &str) {
        if let Self::Terminal { quiet: false, .. } = self {
            say(text);
        }
    }

    /// Shows what is wrong, whether quiet or not, where the error of a command says only that something is.
    pub(super) fn show(&self, text: &str) {
        if let Self::Terminal { .. } = self {
            say_unbroken(text);
        }
    }

    /// The same as [`say`](Self::say) for what loses its meaning if long lines are broken.
    pub(super) fn say_unbroken(&self, text: &str) {
        if let Self::Terminal { quiet: false, .. } = self {
            say_unbroken(text);
        }
    }

    /// A program hears that a part of the work begins, and how much there is of it: items, or trials.
    pub(super) fn begin(&self, what: &str, all: usize) {
        if let Self::Program(listener) = self {
            listener.begin(what, all as u64);
        }
    }

    /// A program hears that this much more of it is done.
    pub(super) fn advance(&self, done: usize) {
        if let Self::Program(listener) = self {
            listener.advance(done as u64);
        }
    }

    /// Whether the work is to stop.
    pub(super) fn stopped(&self) -> bool {
        match self {
            Self::Terminal { stop, .. } => stop.load(Relaxed),
            Self::Program(listener) => listener.stopped(),
        }
    }
}
