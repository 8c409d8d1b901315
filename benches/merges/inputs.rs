//! The three models that recipes name, and whether the disk has room for them.

use std::io;
use std::path::{Path, PathBuf};

use bytesize::ByteSize;

use crate::models::{self, Shape};

/// Models of a shape: a base and its fine-tunes.
const MODELS: u64 = 3;

/// What stays free beside models and outputs, in bytes.
const SPARE: u64 = 256 << 20;

/// The three models of a shape.
pub(crate) struct Inputs {
    base: PathBuf,
    a: PathBuf,
    b: PathBuf,
}

impl Inputs {
    pub(crate) fn make(folder: &Path, shape: Shape) -> io::Result<Self> {
        Ok(Self {
            base: models::model(folder, shape, 0)?,
            a: models::model(folder, shape, 1)?,
            b: models::model(folder, shape, 2)?,
        })
    }

    /// The recipe with these models.
    pub(crate) fn fill(&self, recipe: &str) -> String {
        recipe
            .replace("{base}", &self.base.to_string_lossy())
            .replace("{a}", &self.a.to_string_lossy())
            .replace("{b}", &self.b.to_string_lossy())
    }

    /// The weight files that a recipe reads.
    pub(crate) fn used_by(&self, recipe: &str) -> Vec<PathBuf> {
        [("{a}", &self.a), ("{b}", &self.b), ("{base}", &self.base)]
            .into_iter()
            .filter(|(mark, _)| recipe.contains(mark))
            .map(|(_, path)| path.join("model.safetensors"))
            .collect()
    }
}

/// Refuses before anything is made, if the disk has no room for the models that are missing and one output.
pub(crate) fn check_room(folder: &Path, shapes: &[Shape]) -> io::Result<()> {
    let disk = rustix::fs::statvfs(folder)?;
    let free = disk.f_bavail * disk.f_frsize;
    let missing = shapes.iter().flat_map(|shape| {
        let models = (0..MODELS).filter(|&seed| !models::is_made(folder, *shape, seed));
        models.map(|_| shape.bytes())
    });
    let missing: u64 = missing.sum();
    let largest = shapes.iter().map(Shape::bytes).max().unwrap_or(0);
    let needed = missing + largest + SPARE;
    if needed <= free {
        return Ok(());
    }
    Err(io::Error::other(format!(
        "{} has {} free, and this takes {}: {} for models and {} for an output; give another --folder or a smaller \
         shape",
        folder.display(),
        ByteSize(free).display().si(),
        ByteSize(needed).display().si(),
        ByteSize(missing).display().si(),
        ByteSize(largest).display().si(),
    )))
}
