//! Whether an answer is right, before it is timed.

use std::fs;
use std::path::Path;
use std::process::Command;

use crate::inputs::Inputs;

/// Whether the bytes are the same at one thread and little memory, and no input's (but for a copy).
pub(crate) fn answer(
    weld: &Path,
    folder: &Path,
    inputs: &Inputs,
    recipe: &str,
) -> Result<(), String> {
    let path = folder.join("recipe.yml");
    fs::write(&path, inputs.fill(recipe)).map_err(|error| error.to_string())?;
    let mut outputs = Vec::new();
    for (threads, memory) in [("1", "64MiB"), ("3", "256MiB")] {
        let out = folder.join("out");
        let output = Command::new(weld)
            .arg("merge")
            .args([&path, &out])
            .args(["--force", "-q", "--threads", threads, "--memory", memory])
            .output()
            .map_err(|error| error.to_string())?;
        if !output.status.success() {
            return Err(String::from_utf8_lossy(&output.stderr).into_owned());
        }
        let weights = fs::read(out.join("model.safetensors")).map_err(|error| error.to_string())?;
        outputs.push(weights);
    }
    if outputs[0] != outputs[1] {
        return Err("the bytes depend on threads or memory".into());
    }
    let copies = recipe.contains("passthrough");
    for model in inputs.used_by(recipe) {
        let input = fs::read(model).map_err(|error| error.to_string())?;
        let same = payload(&input) == payload(&outputs[0]);
        if same != copies {
            return Err(format!(
                "the output is {}an input",
                if same { "" } else { "not " }
            ));
        }
    }
    Ok(())
}

/// A safetensors file without its header.
fn payload(file: &[u8]) -> &[u8] {
    let header = file
        .first_chunk::<8>()
        .map_or(0, |length| u64::from_le_bytes(*length));
    file.get(8 + header as usize..).unwrap_or_default()
}
