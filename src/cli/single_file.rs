//! The place of a single file that a command makes.

use std::io::ErrorKind;
use std::path::Path;

use super::output::Failure;
use checkpoint::Checkpoint;
use errors::Refusal;
use run::destination::folder_of;

/// A kind of file that a command makes.
pub(super) struct FileKind {
    /// What messages call one, after `a`.
    pub(super) name: &'static str,
    /// A name for one.
    pub(super) example: &'static str,
    /// Whether a file that is there may be replaced if `--force` says so.
    pub(super) may_be_lost: fn(&Path) -> bool,
}

impl FileKind {
    /// Refuses a path where no file can be made, that holds something, that the model is read from, or that would lose
    /// something but a file of this kind.
    pub(super) fn check_free(
        &self,
        out: &Path,
        force: bool,
        checkpoint: &Checkpoint,
    ) -> Result<(), Failure> {
        let shown = out.display();
        let Self {
            name: kind,
            example,
            may_be_lost,
        } = self;
        let refused = |message: String, hint: &str| {
            Err(Failure::input(Refusal::new(message).with_hint(hint)))
        };
        let name = out.as_os_str().as_encoded_bytes();
        if out.is_dir() || name.ends_with(b"/") || out.file_name().is_none() {
            let hint = format!("name a file, such as {example} in it");
            return refused(format!("{shown} is a folder"), &hint);
        }
        let found = match out.symlink_metadata() {
            Err(error) if error.kind() == ErrorKind::NotFound => return check_folder(out),
            Err(error) => return Err(Failure::tool(format!("{shown}: {error}"))),
            Ok(_) => out.metadata(),
        };
        let Ok(found) = found else {
            let hint = "remove the link, or name another file";
            return refused(format!("{shown} is a link to nothing"), hint);
        };
        if !found.is_file() {
            let message = format!("{shown} is no file, but a pipe, a socket or a device");
            return refused(
                message,
                &format!("name a file; a {kind} is put in its place when it is complete"),
            );
        }
        let place = out.canonicalize().ok();
        let is_read = checkpoint
            .shards()
            .iter()
            .any(|shard| shard.path.canonicalize().ok() == place);
        if place.is_some() && is_read {
            return refused(
                format!("{shown} is a file of the model itself"),
                "name another file",
            );
        }
        if !force {
            return refused(format!("{shown} is there already"), "--force replaces it");
        }
        if !may_be_lost(out) {
            let message = format!("{shown} is no {kind}, and would be lost");
            return refused(message, "name another file, or remove this one");
        }
        check_folder(out)
    }
}

/// Refuses a path in whose folder no file can be made.
fn check_folder(out: &Path) -> Result<(), Failure> {
    // Where the file is a link, it is made beside the file that the link names.
    let out = out.canonicalize().unwrap_or_else(|_| out.to_owned());
    let folder = folder_of(&out);
    if !folder.is_dir() {
        let message = format!("{}: {} is no folder", out.display(), folder.display());
        let hint = "make the folder first, or name a file in another one";
        return Err(Failure::input(Refusal::new(message).with_hint(hint)));
    }
    match tempfile::tempfile_in(folder) {
        Ok(_) => Ok(()),
        Err(error) => Err(Failure::tool(
            Refusal::new(format!(
                "no file can be made in {}: {error}",
                folder.display()
            ))
            .with_hint("name a file in another folder"),
        )),
    }
}
