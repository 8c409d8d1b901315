//! A local folder as a destination, and its files while it is being filled.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use super::disk::{Disk, DiskError, Step};
use super::stage::{Stage, check_place, sync_folder};
use super::writer::{NewFile, Writer};
use super::{
    Chunks, Destination, Held, Layout, MANIFEST_FILE, MAX_MANIFEST_BYTES, Parts, Staged,
    parts_folder,
};
use crate::error::RunError;
use crate::part_number::Part;
use checkpoint::read_bounded;
use engine::Tile;
use errors::Refusal;

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
            out: self.out.clone(),
            stage,
        }))
    }
}

impl Parts for Folder {
    fn check(&self, reads: &[PathBuf], replace: bool) -> Result<(), RunError> {
        check_place(&self.out, reads, replace)
    }

    fn parts(&self) -> Result<BTreeSet<Part>, RunError> {
        let folder = self.parts_folder();
        let look = |error| DiskError::at(Step::Look, &folder)(error);
        let entries = match fs::read_dir(&folder) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(BTreeSet::new()),
            Err(error) => return Err(look(error).into()),
        };
        let mut parts = BTreeSet::new();
        for entry in entries {
            let name = entry.map_err(look)?.file_name();
            parts.extend(name.to_str().and_then(Part::of_folder));
        }
        Ok(parts)
    }

    fn look_at(&self, part: Part) -> Result<Held, RunError> {
        let folder = &self.part_folder(part);
        let look = |error| DiskError::at(Step::Look, folder)(error);
        match fs::symlink_metadata(folder) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Held::Nothing),
            Err(error) => return Err(look(error).into()),
            Ok(meta) if !meta.is_dir() => {
                let message = format!("{} is no folder", folder.display());
                let hint = "see what it is, and remove it";
                return Err(RunError::NotJoined(Refusal::new(message).with_hint(hint)));
            }
            Ok(_) => {}
        }
        if fs::read_dir(folder).map_err(look)?.next().is_none() {
            return Ok(Held::Nothing);
        }
        let path = folder.join(MANIFEST_FILE);
        let Ok(manifest) = read_bounded(&path, MAX_MANIFEST_BYTES, "manifest of a part, in bytes")
        else {
            return Ok(Held::Other);
        };
        let mut files = BTreeMap::new();
        let mut folders = vec![folder.clone()];
        while let Some(within) = folders.pop() {
            for entry in fs::read_dir(&within).map_err(look)? {
                let path = entry.map_err(look)?.path();
                let meta = fs::symlink_metadata(&path).map_err(look)?;
                if meta.is_dir() {
                    folders.push(path);
                } else if let Some(name) = path.strip_prefix(folder).ok().and_then(Path::to_str)
                    && meta.is_file()
                {
                    files.insert(name.to_owned(), meta.len());
                }
            }
        }
        Ok(Held::Part { manifest, files })
    }

    fn begin_part(
        &self,
        part: Part,
        replace: bool,
        layout: &Layout<'_>,
    ) -> Result<Box<dyn Staged>, RunError> {
        Self::on(self.disk.clone(), &self.part_folder(part), replace).begin(layout)
    }

    fn remove_parts(&self, parts: &[Part]) -> Result<(), RunError> {
        for part in parts {
            let folder = self.part_folder(*part);
            fs::remove_dir_all(&folder).map_err(DiskError::at(Step::Remove, &folder))?;
        }
        let all = self.parts_folder();
        Ok(fs::remove_dir(&all).map_err(DiskError::at(Step::Remove, &all))?)
    }
}

/// The folder while it is filled.
struct StagedFolder {
    /// Present until all weights are written. Dropped first: it stops writing then.
    writer: Option<Writer>,
    subfolders: BTreeSet<PathBuf>,
    disk: Disk,
    /// The output, as it was named.
    out: PathBuf,
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

    fn adopt(&mut self, part: Part, name: &str, bytes: u64) -> Result<(), RunError> {
        let file = parts_folder(&self.out).join(part.folder_name()).join(name);
        let look = || fs::symlink_metadata(&file);
        let meta = self.disk.step(Step::Look, &file, look)?;
        if !meta.is_file() || meta.len() != bytes {
            let found = match meta.is_file() {
                true => format!("{} bytes", meta.len()),
                false => "no file".to_owned(),
            };
            let message = format!("{}: expected {bytes} bytes, found {found}", file.display());
            let hint = "make that part again with --force";
            return Err(RunError::NotJoined(Refusal::new(message).with_hint(hint)));
        }
        let path = self.stage.path().join(name);
        create_subfolders(&self.disk, self.stage.path(), &path, &mut self.subfolders)?;
        let link = || fs::hard_link(&file, &path);
        // Not every file system has links; what else is wrong shows when it is copied.
        if self.disk.step(Step::Link, &path, link).is_ok() {
            return Ok(());
        }
        let copy = || fs::copy(&file, &path);
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
