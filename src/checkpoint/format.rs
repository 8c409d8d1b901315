//! The two ways in which files of weights are written, and what their names tell.

/// How the files of a checkpoint are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Format {
    Safetensors,
    /// What torch.save writes.
    Pickle,
}

impl Format {
    /// The format that a file's name tells; safetensors if it tells none.
    pub(super) fn of(name: &str) -> Format {
        match Format::Pickle.ends().iter().any(|end| name.ends_with(end)) {
            true => Format::Pickle,
            false => Format::Safetensors,
        }
    }

    /// The ends of its files' names.
    pub(super) fn ends(self) -> &'static [&'static str] {
        match self {
            Format::Safetensors => &[".safetensors"],
            Format::Pickle => &[".bin", ".pt", ".pth", ".ckpt"],
        }
    }

    /// The file of a checkpoint that is one file.
    pub(super) fn single(self) -> &'static str {
        match self {
            Format::Safetensors => "model.safetensors",
            Format::Pickle => "pytorch_model.bin",
        }
    }

    /// The index of a checkpoint, as transformers names it.
    pub(super) fn index(self) -> &'static str {
        match self {
            Format::Safetensors => "model.safetensors.index.json",
            Format::Pickle => "pytorch_model.bin.index.json",
        }
    }

    /// The end of the name of any index.
    pub(super) fn index_end(self) -> &'static str {
        match self {
            Format::Safetensors => ".safetensors.index.json",
            Format::Pickle => ".bin.index.json",
        }
    }
}
