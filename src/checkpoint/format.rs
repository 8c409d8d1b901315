//! The file formats of weights, and how file names tell them apart.

/// The file of a distributed checkpoint that says what is where.
pub(super) const DISTRIBUTED_METADATA: &str = ".metadata";

/// How the names of its other files end.
pub(super) const DISTRIBUTED_END: &str = ".distcp";

/// The format of a weight file that is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WrittenAs {
    /// Safetensors.
    Safetensors,
    /// What torch.save writes.
    Torch,
}

impl WrittenAs {
    /// The ending of its files' names.
    pub fn end(self) -> &'static str {
        match self {
            WrittenAs::Safetensors => ".safetensors",
            WrittenAs::Torch => ".pt",
        }
    }
}

/// What the names of weight files begin with where diffusers reads them.
pub(super) const DIFFUSERS_STEM: &str = "diffusion_pytorch_model";

/// The format of a checkpoint's files.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum FileFormat {
    Safetensors,
    /// What torch.save writes.
    Pickle,
    /// What torch.distributed.checkpoint writes: the weight file is the metadata, which names the others.
    Distributed,
    /// What llama.cpp reads. Nothing looks for its files by name where the others may lie.
    Gguf,
}

impl FileFormat {
    /// The format that a file's name indicates, if it indicates one.
    pub(super) fn named(name: &str) -> Option<FileFormat> {
        let formats = [FileFormat::Safetensors, FileFormat::Pickle];
        let mut formats = formats.into_iter();
        formats.find(|format| format.ends().iter().any(|end| name.ends_with(end)))
    }

    /// The format that a file's name indicates; safetensors if it indicates none.
    pub(super) fn from_name(name: &str) -> FileFormat {
        FileFormat::named(name).unwrap_or(FileFormat::Safetensors)
    }

    /// The endings of its files' names.
    pub(super) fn ends(self) -> &'static [&'static str] {
        match self {
            FileFormat::Safetensors => &[".safetensors"],
            FileFormat::Pickle => &[".bin", ".pt", ".pth", ".ckpt", ".pth.tar"],
            FileFormat::Distributed => &[DISTRIBUTED_END],
            FileFormat::Gguf => &[".gguf"],
        }
    }

    /// The name of the file if the checkpoint is a single file.
    pub(super) fn single(self) -> &'static str {
        match self {
            FileFormat::Safetensors => "model.safetensors",
            FileFormat::Pickle => "pytorch_model.bin",
            FileFormat::Distributed => DISTRIBUTED_METADATA,
            FileFormat::Gguf => "model.gguf",
        }
    }

    /// The same in the folder of a component of diffusers.
    pub(super) fn single_of_diffusers(self) -> &'static str {
        match self {
            FileFormat::Safetensors => "diffusion_pytorch_model.safetensors",
            FileFormat::Pickle => "diffusion_pytorch_model.bin",
            FileFormat::Distributed => DISTRIBUTED_METADATA,
            FileFormat::Gguf => "diffusion_pytorch_model.gguf",
        }
    }

    /// The name that transformers gives the index of a checkpoint.
    pub(super) fn index(self) -> &'static str {
        match self {
            FileFormat::Safetensors => "model.safetensors.index.json",
            FileFormat::Pickle => "pytorch_model.bin.index.json",
            FileFormat::Distributed => DISTRIBUTED_METADATA,
            FileFormat::Gguf => "model.gguf.index.json",
        }
    }

    /// The ending of the name of any index.
    pub(super) fn index_end(self) -> &'static str {
        match self {
            FileFormat::Safetensors => ".safetensors.index.json",
            FileFormat::Pickle => ".bin.index.json",
            FileFormat::Distributed => DISTRIBUTED_METADATA,
            FileFormat::Gguf => ".gguf.index.json",
        }
    }
}
