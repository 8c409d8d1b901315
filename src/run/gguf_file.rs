//! A checkpoint written as one GGUF file, whole or not at all.

use std::path::Path;

use super::destination::{Disk, DiskError, Step, write_with};
use errors::Refusal;
use gguf::{Export, Unfinished};

/// Why there is no file; what was in its place still is.
#[derive(Debug)]
pub enum ExportError {
    /// It was stopped.
    Stopped,
    /// The system refuses a step.
    Disk(DiskError),
    /// The values cannot be read, or not be written in this type.
    Values(Refusal),
}

impl From<DiskError> for ExportError {
    fn from(error: DiskError) -> Self {
        Self::Disk(error)
    }
}

/// Writes an export to a file. After each piece `goes_on` hears how many bytes it was and says whether more is wanted.
///
/// # Errors
/// It was stopped, the system refuses a step, or a value cannot be written.
pub fn write_gguf(
    export: &Export<'_>,
    disk: &Disk,
    path: &Path,
    goes_on: &mut dyn FnMut(u64) -> bool,
) -> Result<(), ExportError> {
    write_with(disk, path, |file| {
        let written = export.write(file, goes_on);
        written.map_err(|unfinished| match unfinished {
            Unfinished::Stopped => ExportError::Stopped,
            Unfinished::Values(refusal) => ExportError::Values(refusal),
            Unfinished::Write(error) => ExportError::Disk(DiskError::at(Step::Write, path)(error)),
        })
    })
}
