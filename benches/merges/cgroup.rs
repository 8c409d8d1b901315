//! A memory limit set from outside: a cgroup, version 1 or 2, in which one process runs.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;

/// What the two versions call the same things.
struct Files {
    limit: &'static str,
    peak: &'static str,
}

const VERSIONS: [Files; 2] = [
    Files {
        limit: "memory.limit_in_bytes",
        peak: "memory.max_usage_in_bytes",
    },
    Files {
        limit: "memory.max",
        peak: "memory.peak",
    },
];

/// A cgroup that is removed with this value.
pub(crate) struct Cgroup {
    folder: PathBuf,
    peak: &'static str,
}

impl Cgroup {
    /// One whose processes may hold so much memory together, page cache included.
    pub(crate) fn new(limit: u64) -> io::Result<Self> {
        let mut tried = Vec::new();
        for parent in parents()? {
            let folder = parent.join(format!("weldment-bench-{}", std::process::id()));
            match Self::make(&folder, limit) {
                Ok(cgroup) => return Ok(cgroup),
                Err(error) => {
                    let _ = fs::remove_dir(&folder);
                    tried.push(format!("{}: {error}", parent.display()));
                }
            }
        }
        let tried = match tried.as_slice() {
            [] => "no hierarchy of cgroups is mounted".to_owned(),
            tried => tried.join("; "),
        };
        Err(io::Error::other(format!(
            "--limit needs a cgroup with a memory limit, and none can be made here ({tried}); run it as root, \
             where a hierarchy of cgroups controls memory"
        )))
    }

    fn make(folder: &Path, limit: u64) -> io::Result<Self> {
        fs::create_dir(folder)?;
        let files = VERSIONS
            .iter()
            .find(|files| folder.join(files.limit).exists());
        let Some(files) = files else {
            return Err(io::Error::other("it controls no memory"));
        };
        fs::write(folder.join(files.limit), limit.to_string())?;
        Ok(Self {
            folder: folder.to_owned(),
            peak: files.peak,
        })
    }

    /// A command that will run in it.
    pub(crate) fn command(&self, program: &Path) -> Command {
        let mut command = Command::new("sh");
        command
            .args(["-c", "echo $$ > \"$0\" && exec \"$@\""])
            .arg(self.folder.join("cgroup.procs"))
            .arg(program);
        command
    }

    /// The most that it held so far.
    pub(crate) fn peak(&self) -> io::Result<u64> {
        let peak = fs::read_to_string(self.folder.join(self.peak))?;
        peak.trim().parse().map_err(io::Error::other)
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        let _ = fs::remove_dir(&self.folder);
    }
}

/// Where a cgroup may be made: below that of this process, else nearer to the root.
fn parents() -> io::Result<Vec<PathBuf>> {
    let own = fs::read_to_string("/proc/self/cgroup")?;
    let mounts = fs::read_to_string("/proc/self/mounts")?;
    let mut found = Vec::new();
    for line in mounts.lines() {
        let fields: Vec<&str> = line.split(' ').collect();
        let [_, mount, kind, options, ..] = fields[..] else {
            continue;
        };
        let memory = |list: &str| list.split(',').any(|name| name == "memory");
        let controls = match kind {
            "cgroup" if memory(options) => true,
            "cgroup2" => false,
            _ => continue,
        };
        // `4:memory:/path` in version 1, `0::/path` in version 2.
        let path = own.lines().find_map(|line| {
            let (_, rest) = line.split_once(':')?;
            let (controllers, path) = rest.split_once(':')?;
            let its = if controls {
                memory(controllers)
            } else {
                controllers.is_empty()
            };
            its.then_some(path.trim_start_matches('/'))
        });
        let full = Path::new(mount).join(path.unwrap_or_default());
        let upwards = full.ancestors().take_while(|path| path.starts_with(mount));
        found.extend(upwards.map(Path::to_owned));
    }
    Ok(found)
}
