//! Tiny model files for the tests, valid and invalid.

use std::fs;
use std::path::Path;

/// Writes a file, and its folders.
pub(crate) fn write(path: &Path, bytes: &[u8]) {
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, bytes).unwrap();
}

/// A file with this header and data, whether they are valid or not.
pub(crate) fn raw(header: &str, data: &[u8]) -> Vec<u8> {
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend_from_slice(header.as_bytes());
    bytes.extend_from_slice(data);
    bytes
}

/// A valid file of tensors (name, dtype, shape) in that order; the bytes count up from zero.
pub(crate) fn safetensors(tensors: &[(&str, &str, &[usize])]) -> Vec<u8> {
    let mut header = serde_json::Map::new();
    header.insert("__metadata__".into(), serde_json::json!({"format": "pt"}));
    let mut offset = 0;
    for (name, dtype, shape) in tensors {
        let dtype: safetensors::Dtype = serde_json::from_value((*dtype).into()).unwrap();
        let len = shape.iter().product::<usize>() * dtype.bitsize() / 8;
        let info = serde_json::json!({
            "dtype": dtype, "shape": shape, "data_offsets": [offset, offset + len],
        });
        header.insert((*name).into(), info);
        offset += len;
    }
    let data: Vec<u8> = (0..offset).map(|i| i as u8).collect();
    raw(&serde_json::Value::Object(header).to_string(), &data)
}
