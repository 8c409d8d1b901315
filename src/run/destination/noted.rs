//! The staging folders of this process, so that a signal handler can remove them before the process ends.

use std::ffi::CString;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::{Mutex, PoisonError};

/// The folders that are being filled.
static STAGED: Mutex<Vec<CString>> = Mutex::new(Vec::new());

/// Registers a folder as being filled, until dropped.
pub(super) struct Noted(CString);

impl Noted {
    pub(super) fn new(folder: &Path) -> Self {
        // No path contains a zero byte.
        let folder = CString::new(folder.as_os_str().as_bytes()).unwrap_or_default();
        let mut staged = STAGED.lock().unwrap_or_else(PoisonError::into_inner);
        staged.push(folder.clone());
        Self(folder)
    }
}

impl Drop for Noted {
    fn drop(&mut self) {
        let mut staged = STAGED.lock().unwrap_or_else(PoisonError::into_inner);
        staged.retain(|folder| *folder != self.0);
    }
}

/// Removes the staging folders of this process; the next run removes what this call cannot.
///
/// Signal handlers may call it: it allocates nothing and waits for nothing.
pub fn remove_staged() {
    if let Ok(staged) = STAGED.try_lock() {
        staged.iter().for_each(|folder| remove(folder));
    }
}

#[cfg(target_os = "linux")]
fn remove(folder: &std::ffi::CStr) {
    use std::mem::MaybeUninit;

    use rustix::fs::{AtFlags, CWD, Mode, OFlags, RawDir, SeekFrom, openat, seek, unlinkat};

    /// How often the folder is scanned: a file system may skip entries while others are removed.
    const PASSES: usize = 8;

    let flags = OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let Ok(opened) = openat(CWD, folder, flags, Mode::empty()) else {
        return;
    };
    // Handlers have a small stack; a directory entry takes at most 280 bytes.
    let mut buffer = [MaybeUninit::uninit(); 1024];
    for _ in 0..PASSES {
        let _ = seek(&opened, SeekFrom::Start(0));
        let mut entries = RawDir::new(&opened, &mut buffer);
        while let Some(Ok(entry)) = entries.next() {
            // Fails for folders, `.` and `..` among them.
            let _ = unlinkat(&opened, entry.file_name(), AtFlags::empty());
        }
        if unlinkat(CWD, folder, AtFlags::REMOVEDIR).is_ok() {
            return;
        }
    }
}

#[cfg(not(target_os = "linux"))]
fn remove(_: &std::ffi::CStr) {}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn only_what_is_noted_is_removed() {
        let folder = tempfile::tempdir().unwrap();
        let [staged, done] = ["staged", "done"].map(|name| folder.path().join(name));
        for path in [&staged, &done] {
            fs::create_dir(path).unwrap();
            for number in 0..200 {
                fs::write(path.join(format!("model-{number:0100}")), "x").unwrap();
            }
        }
        let noted = Noted::new(&staged);
        drop(Noted::new(&done));
        remove_staged();
        assert!(!staged.exists());
        assert_eq!(fs::read_dir(&done).unwrap().count(), 200);
        drop(noted);
    }
}
