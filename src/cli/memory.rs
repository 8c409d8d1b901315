//! The memory available to this process, and its peak of anonymous memory for the closing summary.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::thread::{self, JoinHandle};
use std::time::Duration;

/// How often the kernel is asked.
const INTERVAL: Duration = Duration::from_millis(20);

/// The largest anonymous memory seen since the watch began.
pub(super) struct PeakMemory {
    peak: Arc<AtomicU64>,
    stop: Arc<AtomicBool>,
    watcher: Option<JoinHandle<()>>,
}

impl PeakMemory {
    /// Starts the watch.
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

    /// The peak in bytes, if the system reports it.
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

/// The memory that this process may use, page cache included: what is free on the machine, or the total that a cgroup
/// allows; Linux only.
pub(super) fn available() -> Option<u64> {
    let machine = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = machine
        .lines()
        .find_map(|line| line.strip_prefix("MemAvailable:"))?;
    let kibibytes: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    let groups = std::fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    let limits = groups.lines().flat_map(limits_of_group);
    limits.chain([kibibytes * 1024]).min()
}

/// The limits of a cgroup and its parents, from a line of `/proc/self/cgroup`: `0::/path` in version 2,
/// `4:memory:/path` in version 1. In a container the path may be the one outside; then only the root's limits are
/// found.
fn limits_of_group(line: &str) -> Vec<u64> {
    let mut fields = line.splitn(3, ':').skip(1);
    let (root, file) = match fields.next() {
        Some("") => ("/sys/fs/cgroup", "memory.max"),
        Some("memory") => ("/sys/fs/cgroup/memory", "memory.limit_in_bytes"),
        _ => return Vec::new(),
    };
    let path = fields.next().unwrap_or_default().trim_start_matches('/');
    let limit = |group: &Path| {
        let limit = std::fs::read_to_string(Path::new(root).join(group).join(file)).ok()?;
        // `max` means no limit.
        limit.trim().parse().ok()
    };
    Path::new(path).ancestors().filter_map(limit).collect()
}
