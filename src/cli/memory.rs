//! Watches how much anonymous memory the process holds, for the closing summary.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::thread::{self, JoinHandle};
use std::time::Duration;

/// How often the kernel is asked.
const INTERVAL: Duration = Duration::from_millis(20);

/// The largest anonymous memory seen while it watched.
pub(super) struct PeakMemory {
    peak: Arc<AtomicU64>,
    stop: Arc<AtomicBool>,
    watcher: Option<JoinHandle<()>>,
}

impl PeakMemory {
    /// Starts to watch.
    pub(super) fn watch() -> Self {
        let peak = Arc::new(AtomicU64::new(0));
        let stop = Arc::new(AtomicBool::new(false));
        let (seen, stopped) = (Arc::clone(&peak), Arc::clone(&stop));
        let watcher = thread::Builder::new()
            .name("weld-memory".into())
            .spawn(move || {
                while !stopped.load(Relaxed) {
                    seen.fetch_max(anonymous().unwrap_or(0), Relaxed);
                    thread::sleep(INTERVAL);
                }
                seen.fetch_max(anonymous().unwrap_or(0), Relaxed);
            });
        Self {
            peak,
            stop,
            watcher: watcher.ok(),
        }
    }

    /// The peak in bytes, if the system tells.
    pub(super) fn stop(mut self) -> Option<u64> {
        self.stop.store(true, Relaxed);
        self.watcher.take()?.join().ok()?;
        Some(self.peak.load(Relaxed)).filter(|&peak| peak > 0)
    }
}

/// The process's anonymous memory now; Linux only.
fn anonymous() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("RssAnon:"))?;
    let kibibytes: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kibibytes * 1024)
}
