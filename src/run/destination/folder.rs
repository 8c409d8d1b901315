//! A local folder as a destination, and its files while it is being filled.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use super::disk::{Disk, DiskError, Step};
use super::stage::{Stage, sync_folder};
use super::writer::{NewFile, Writer};
use super::{Chunks, Destination, Layout, Staged};
use crate::error::RunError;
use engine::Tile;

/// A folder: filled beside its final path, synced, then renamed.
#[derive(Debug)]
pub struct Folder {
    out: PathBuf,
    force: bool,
    disk: Disk,
}

impl Folder {
    /// The folder at `out`; with `force` it replaces what is there.
    pub fn new(out: &Path, force: bool) -> Self {
        Self::on(Disk::default(), out, force)
    }

    /// The same, on a given file system.
    pub fn on(disk: Disk, out: &Path, force: bool) -> Self {
        Self {
            out: out.to_owned(),
            force,
            disk,
        }
    }
}

impl Destination for Folder {
    fn path(&self) -> &Path {
        &self.out
    }

    fn begin(&self, layout: &Layout<'_>) -> Result<Box<dyn Staged>, RunError> {
        let stage = Stage::open(&self.disk, &self.out, self.force, layout)?;
        let mut files = Vec::new();
        let mut subfolders = BTreeSet::new();
        for shard in layout.shards {
            let path = stage.path().join(&shard.file_name);
            create_subfolders(&self.disk, stage.path(), &path, &mut subfolders)?;
            let file = NewFile::create(&self.disk, path, shard.file_size)?;
            file.write_header(&shard.header)?;
            files.push(file);
        }
        let writer = Writer::new(files).map_err(|error| {
            let why = format!("cannot start the threads that write: {error}");
            RunError::NotPrepared(why.into())
        })?;
        Ok(Box::new(StagedFolder {
            writer: Some(writer),
            subfolders,
            disk: self.disk.clone(),
            stage,
        }))
    }
}

/// The folder while it is filled.
struct StagedFolder {
    /// Present until all weights are written. Dropped first: it stops writing then.
    writer: Option<Writer>,
    subfolders: BTreeSet<PathBuf>,
    disk: Disk,
    stage: Stage,
}

impl Staged for StagedFolder {
    fn write(&self, shard: usize, start: u64, bytes: Tile) -> io::Result<()> {
        match &self.writer {
            Some(writer) => writer.write(shard, start, bytes),
            None => Err(io::Error::other("all weights were written already")),
        }
    }

    fn finish(&mut self) -> Result<(), RunError> {
        match self.writer.take() {
            Some(writer) => Ok(writer.finish()?),
            None => Ok(()),
        }
    }

    fn side_file(&mut self, name: &str, chunks: &mut Chunks<'_>) -> Result<(), RunError> {
        let path = self.stage.path().join(name);
        create_subfolders(&self.disk, self.stage.path(), &path, &mut self.subfolders)?;
        let mut file = self
            .disk
            .step(Step::Create, &path, || File::create_new(&path))?;
        for chunk in chunks {
            let chunk = chunk?;
            let write = || file.write_all(&chunk);
            self.disk.step(Step::Write, &path, write)?;
        }
        self.disk.step(Step::Sync, &path, || file.sync_all())?;
        Ok(())
    }

    fn adopt(&mut self, name: &str, file: &Path) -> Result<(), RunError> {
        let path = self.stage.path().join(name);
        create_subfolders(&self.disk, self.stage.path(), &path, &mut self.subfolders)?;
        let link = || fs::hard_link(file, &path);
        // Not every file system has links; what else is wrong shows when it is copied.
        if self.disk.step(Step::Link, &path, link).is_ok() {
            return Ok(());
        }
        let copy = || fs::copy(file, &path);
        self.disk.step(Step::Write, &path, copy)?;
        let sync = || File::open(&path)?.sync_all();
        Ok(self.disk.step(Step::Sync, &path, sync)?)
    }

    fn read(&self, name: &str, limit: u64) -> Result<(Vec<u8>, u64), RunError> {
        let path = self.stage.path().join(name);
        let read = || {
            let file = File::open(&path)?;
            let len = file.metadata()?.len();
            let mut bytes = Vec::new();
            file.take(limit).read_to_end(&mut bytes)?;
            Ok((bytes, len))
        };
        Ok(self.disk.step(Step::Read, &path, read)?)
    }

    fn folder(&self) -> Option<&Path> {
        Some(self.stage.path())
    }

    fn scratch(&self) -> Result<File, RunError> {
        let folder = self.stage.path();
        let create = || tempfile::tempfile_in(folder);
        Ok(self.disk.step(Step::Create, folder, create)?)
    }

    fn commit(mut self: Box<Self>) -> Result<Vec<String>, RunError> {
        self.finish()?;
        for folder in &self.subfolders {
            sync_folder(&self.disk, folder)?;
        }
        self.stage.commit()
    }
}

/// Creates the folders between the staged one and a file, but those that were created before.
fn create_subfolders(
    disk: &Disk,
    staged: &Path,
    file: &Path,
    created: &mut BTreeSet<PathBuf>,
) -> Result<(), DiskError> {
    let parents = file.ancestors().skip(1);
    let inside = parents.take_while(|folder| *folder != staged);
    let new: Vec<&Path> = inside.filter(|folder| !created.contains(*folder)).collect();
    for folder in new.into_iter().rev() {
        let create = || fs::create_dir(folder);
        disk.step(Step::CreateFolder, folder, create)?;
        created.insert(folder.to_owned());
    }
    Ok(())
}
