//! Follows what is fetched from the Hub and from stores, or goes there.

use std::sync::{Mutex, PoisonError};

use super::caller::Caller;
use super::progress::Progress;
use checkpoint::Transfer as Observer;
use engine::Observer as _;

/// Says nothing of transfers while a merge runs, whose own progress is shown.
pub(super) struct Quiet(pub(super) Caller);

impl Observer for Quiet {
    fn begin(&self, _: &str, _: u64) {}

    fn advance(&self, _: u64) {}

    fn finish(&self) {}

    fn stopped(&self) -> bool {
        self.0.stopped()
    }
}

/// Shows how much of a model has come or gone.
pub(super) struct Transfer {
    caller: Caller,
    shown: Mutex<Option<Progress>>,
}

impl Transfer {
    pub(super) fn new(caller: &Caller) -> Transfer {
        Transfer {
            caller: caller.clone(),
            shown: Mutex::new(None),
        }
    }

    fn with(&self, what: impl FnOnce(&mut Option<Progress>)) {
        what(&mut self.shown.lock().unwrap_or_else(PoisonError::into_inner));
    }
}

impl Observer for Transfer {
    fn begin(&self, what: &str, bytes: u64) {
        self.with(|shown| *shown = Some(Progress::transfer(what, bytes, &self.caller)));
    }

    fn advance(&self, bytes: u64) {
        self.with(|shown| {
            if let Some(shown) = shown {
                shown.advance(bytes);
            }
        });
    }

    fn finish(&self) {
        self.with(|shown| {
            if let Some(shown) = shown.take() {
                shown.finish();
            }
        });
    }

    fn stopped(&self) -> bool {
        self.caller.stopped()
    }
}
