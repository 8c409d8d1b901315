//! The JSON that a command wrote.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::Value;

/// How deep a folder of results is searched.
const MAX_DEPTH: usize = 4;
/// The most entries of such a folder that are looked at.
const MAX_ENTRIES: usize = 10_000;

/// The file of JSON at a place: the file itself, or the one in a folder. Of several in a folder it is the last by name
/// that begins with `results`, as lm-eval calls them with the date.
pub(super) fn file(out: &Path) -> Result<PathBuf, String> {
    match fs::metadata(out) {
        Ok(found) if found.is_file() => return Ok(out.to_owned()),
        Ok(found) if found.is_dir() => {}
        _ => return Err("it wrote nothing at {out}".to_owned()),
    }
    let (mut found, mut left) = (Vec::new(), MAX_ENTRIES);
    collect(out, MAX_DEPTH, &mut left, &mut found);
    let begins = |path: &PathBuf| {
        let name = path.file_name().unwrap_or_default();
        name.as_encoded_bytes().starts_with(b"results")
    };
    let results = found.iter().filter(|path| begins(path));
    match (
        results.max_by_key(|path| path.file_name().map(ToOwned::to_owned)),
        &found[..],
    ) {
        (Some(file), _) | (None, [file]) => Ok(file.clone()),
        (None, []) => Err("it wrote no file of JSON (.json) into {out}".to_owned()),
        (None, several) => Err(format!(
            "it wrote {} files of JSON into {{out}}: expected one, or one called results*.json",
            several.len()
        )),
    }
}

fn collect(folder: &Path, depth: usize, left: &mut usize, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        if *left == 0 {
            return;
        }
        *left -= 1;
        let path = entry.path();
        match entry.file_type() {
            Ok(kind) if kind.is_dir() && depth > 1 => collect(&path, depth - 1, left, found),
            Ok(kind)
                if kind.is_file() && path.extension().is_some_and(|ending| ending == "json") =>
            {
                found.push(path)
            }
            _ => {}
        }
    }
}

/// Reads JSON. What Python's writes beyond the standard, `NaN` and `Infinity`, is read as null.
pub(super) fn parsed(bytes: &[u8]) -> Result<Value, String> {
    let failed = |error: serde_json::Error| format!("its output is no JSON: {error}");
    serde_json::from_slice(bytes).or_else(|error| match without_nan(bytes) {
        Some(standard) => serde_json::from_slice(&standard).map_err(failed),
        None => Err(failed(error)),
    })
}

/// The same JSON with `null` in place of `NaN`, `Infinity` and `-Infinity`; none if there is none of them.
fn without_nan(bytes: &[u8]) -> Option<Vec<u8>> {
    let (mut standard, mut rest) = (Vec::with_capacity(bytes.len()), bytes);
    let (mut is_text, mut replaced) = (false, false);
    while let Some((&byte, after)) = rest.split_first() {
        let words: [&[u8]; 3] = [b"NaN", b"-Infinity", b"Infinity"];
        let word = words
            .into_iter()
            .find(|word| !is_text && rest.starts_with(word));
        if let Some(word) = word {
            standard.extend(b"null");
            (rest, replaced) = (&rest[word.len()..], true);
            continue;
        }
        standard.push(byte);
        rest = after;
        match (byte, after.split_first()) {
            (b'\\', Some((&escaped, after))) if is_text => {
                standard.push(escaped);
                rest = after;
            }
            (b'"', _) => is_text = !is_text,
            _ => {}
        }
    }
    replaced.then_some(standard)
}
