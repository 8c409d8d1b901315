//! A source whose matrices are stored as values with a scale per block: 8-bit weights.
//!
//! This file does not know which models use such storage, or how they name their scales.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;

use safetensors::Dtype;

use super::behind::Reclaim;
use super::remote::RemotePlace;
use super::shard::Shard;
use super::source::{TensorEntry, TensorSource};
use numeric::{Elements, FloatType};

/// How scales are stored beside their values.
#[derive(Debug, Clone, Copy)]
pub struct Scales<'s> {
    /// The suffix that turns the name of a tensor into the name of its scales.
    pub suffix: &'s str,
    /// Rows and columns of a block; blocks at the edges may be smaller.
    pub block: [usize; 2],
    /// The float type of the products.
    pub dtype: Dtype,
}

/// The tensors of a source, multiplied by their scales.
#[derive(Debug)]
pub struct Scaled {
    base: Arc<dyn TensorSource>,
    block: [usize; 2],
    format: FloatType,
    entries: Vec<TensorEntry>,
    /// For each tensor, its index in the base, and that of its scales if it has any.
    parts: Vec<(usize, Option<usize>)>,
}

/// Why the scales cannot be applied to a source's tensors.
#[derive(Debug, thiserror::Error)]
pub enum ScaledError {
    /// Blocks without rows or columns, or products that are not of a float type.
    #[error(
        "expected blocks of one row and column at least and a float type, found {block:?} and {dtype}"
    )]
    FileFormat {
        /// Rows and columns of a block.
        block: [usize; 2],
        /// The type of the products.
        dtype: Dtype,
    },
    /// Scales without a tensor to scale.
    #[error("`{scales}` are the scales of `{tensor}`, which is not there")]
    NoValues {
        /// The scales.
        scales: String,
        /// The tensor that they would scale.
        tensor: String,
    },
    /// Values or scales that are not a matrix of floats.
    #[error("`{tensor}`: expected a matrix of floats, found {dtype} of shape {shape:?}")]
    NoMatrix {
        /// The tensor.
        tensor: String,
        /// Its dtype.
        dtype: Dtype,
        /// Its shape.
        shape: Vec<usize>,
    },
    /// The number of scales differs from the number of blocks.
    #[error(
        "`{scales}`: expected shape {expected:?}, a scale for each block of `{tensor}`, found {found:?}"
    )]
    Shape {
        /// The scales.
        scales: String,
        /// The tensor that they scale.
        tensor: String,
        /// The shape with one scale per block.
        expected: [usize; 2],
        /// Their shape.
        found: Vec<usize>,
    },
}

impl Scaled {
    /// Multiplies each tensor of `base` by its scales, if it has any; the scales are then hidden.
    ///
    /// # Errors
    /// If scales belong to something that is not a matrix, or their number is not that of its blocks.
    pub fn new(base: Arc<dyn TensorSource>, scales: Scales<'_>) -> Result<Scaled, ScaledError> {
        let Scales {
            suffix,
            block,
            dtype,
        } = scales;
        let format = FloatType::from_dtype(dtype).filter(|_| block[0] > 0 && block[1] > 0);
        let format = format.ok_or(ScaledError::FileFormat { block, dtype })?;
        let all = base.entries();
        let by_name: HashMap<&str, usize> = (0..)
            .zip(all)
            .map(|(at, entry)| (entry.name.as_str(), at))
            .collect();
        let (mut entries, mut parts) = (Vec::new(), Vec::new());
        for (at, entry) in all.iter().enumerate() {
            if let Some(of) = entry.name.strip_suffix(suffix) {
                if !by_name.contains_key(of) {
                    return Err(ScaledError::NoValues {
                        scales: entry.name.clone(),
                        tensor: of.into(),
                    });
                }
                continue;
            }
            let scales = by_name.get(format!("{}{suffix}", entry.name).as_str());
            entries.push(match scales {
                None => entry.clone(),
                Some(&scales) => {
                    check(entry, &all[scales], block)?;
                    TensorEntry {
                        dtype,
                        len: entry.elements() * format.size() as u64,
                        ..entry.clone()
                    }
                }
            });
            parts.push((at, scales.copied()));
        }
        Ok(Scaled {
            block,
            format,
            entries,
            parts,
            base,
        })
    }
}

/// Checks that there is one scale per block of a matrix.
fn check(values: &TensorEntry, scales: &TensorEntry, block: [usize; 2]) -> Result<(), ScaledError> {
    let matrix = |entry: &TensorEntry| -> Result<[usize; 2], ScaledError> {
        match (entry.shape.as_slice(), FloatType::from_dtype(entry.dtype)) {
            (&[rows, columns], Some(_)) => Ok([rows, columns]),
            _ => Err(ScaledError::NoMatrix {
                tensor: entry.name.clone(),
                dtype: entry.dtype,
                shape: entry.shape.clone(),
            }),
        }
    };
    let [rows, columns] = matrix(values)?;
    let expected = [rows.div_ceil(block[0]), columns.div_ceil(block[1])];
    if matrix(scales)? == expected {
        return Ok(());
    }
    Err(ScaledError::Shape {
        scales: scales.name.clone(),
        tensor: values.name.clone(),
        expected,
        found: scales.shape.clone(),
    })
}

impl TensorSource for Scaled {
    fn base(&self) -> Option<&dyn TensorSource> {
        Some(self.base.as_ref())
    }

    fn entries(&self) -> &[TensorEntry] {
        &self.entries
    }

    fn elements(&self, index: usize) -> Option<Box<dyn Elements + '_>> {
        let (values, scales) = self.parts[index];
        let elements = self.base.elements(values)?;
        let Some(scales) = scales else {
            return Some(elements);
        };
        Some(Box::new(numeric::Scaled {
            values: elements,
            scales: self.base.elements(scales)?,
            columns: self.entries[index]
                .shape
                .last()
                .copied()
                .unwrap_or(1)
                .max(1),
            block: self.block,
            format: self.format,
        }))
    }

    fn bytes(&self, index: usize) -> Option<&[u8]> {
        match self.parts[index] {
            (values, None) => self.base.bytes(values),
            (_, Some(_)) => None,
        }
    }

    fn stored(&self, index: usize) -> Option<&[u8]> {
        match self.parts[index] {
            (values, None) => self.base.stored(values),
            (_, Some(_)) => None,
        }
    }

    fn bytes_read(&self, index: usize) -> u64 {
        let (values, scales) = self.parts[index];
        let scales = scales.map_or(0, |scales| self.base.bytes_read(scales));
        self.base.bytes_read(values) + scales
    }

    fn place(&self, index: usize) -> Option<(&Shard, u64)> {
        self.base.place(self.parts[index].0)
    }

    fn remote(&self, index: usize) -> Vec<RemotePlace> {
        let (values, scales) = self.parts[index];
        let mut places = self.base.remote(values);
        places.extend(
            scales
                .into_iter()
                .flat_map(|scales| self.base.remote(scales)),
        );
        places
    }

    /// For values with scales, `bytes` is a range of the codes.
    fn release(&self, index: usize, bytes: Range<u64>, reclaim: Reclaim) {
        self.base.release(self.parts[index].0, bytes, reclaim);
    }
}

#[cfg(test)]
mod tests {
    use super::super::fixtures::{raw, write};
    use super::super::in_memory::{Bytes, InMemory};
    use super::super::locate::Location;
    use super::super::reader::{Checkpoint, SidecarsFrom};
    use super::*;
    use serde_json::json;

    const WEIGHT: &str = "model.layers.0.up.weight";
    const SCALES: Scales<'static> = Scales {
        suffix: "_scale_inv",
        block: [2, 3],
        dtype: Dtype::BF16,
    };

    fn tensor(
        name: &str,
        dtype: Dtype,
        shape: &[usize],
        bytes: Vec<u8>,
    ) -> (String, Dtype, Vec<usize>, Bytes) {
        (name.into(), dtype, shape.into(), Box::new(bytes))
    }

    fn f32s(values: &[f32]) -> Vec<u8> {
        values
            .iter()
            .flat_map(|value| value.to_le_bytes())
            .collect()
    }

    /// E4M3: 1.0, 1.125, 1.25, ... up to 1.875, then doubled.
    fn weights() -> Vec<u8> {
        (0..35).map(|at| 0x38 + at % 16).collect()
    }

    fn weight(at: usize) -> f64 {
        let (exponent, mantissa) = (at % 16 / 8, at % 8);
        (1.0 + mantissa as f64 / 8.0) * f64::from(1u8 << exponent)
    }

    /// A matrix of 5 x 7 in blocks of 2 x 3, so that the last of both are ragged, and a norm without scales.
    fn source(scale_shape: &[usize]) -> Result<Scaled, ScaledError> {
        let scales: Vec<f32> = (0..scale_shape.iter().product::<usize>())
            .map(|at| 0.3 + at as f32)
            .collect();
        let memory = InMemory::new([
            tensor(WEIGHT, Dtype::F8_E4M3, &[5, 7], weights()),
            tensor(
                &format!("{WEIGHT}_scale_inv"),
                Dtype::F32,
                scale_shape,
                f32s(&scales),
            ),
            tensor("norm", Dtype::BF16, &[2], vec![0x80, 0x3f, 0, 0x40]),
        ]);
        Scaled::new(Arc::new(memory.unwrap()), SCALES)
    }

    fn values(source: &dyn TensorSource, index: usize) -> Vec<f64> {
        let mut out = vec![0f64; source.entries()[index].elements() as usize];
        numeric::Fill::fill(&*source.elements(index).unwrap(), 0, &mut out).unwrap();
        out
    }

    #[test]
    fn matrices_are_scaled_and_scales_are_no_tensors() {
        let scaled = source(&[3, 3]).unwrap();
        let entries = scaled.entries();
        let names: Vec<&str> = entries.iter().map(|entry| entry.name.as_str()).collect();
        assert_eq!(names, [WEIGHT, "norm"]);
        assert_eq!((entries[0].dtype, entries[0].len), (Dtype::BF16, 70));
        assert_eq!((scaled.bytes(0), scaled.stored(0)), (None, None));
        assert_eq!(scaled.bytes(1), Some([0x80, 0x3f, 0, 0x40].as_slice()));
        assert_eq!((scaled.bytes_read(0), scaled.bytes_read(1)), (35 + 36, 4));
        for (at, found) in values(&scaled, 0).into_iter().enumerate() {
            let block = at / 7 / 2 * 3 + at % 7 / 3;
            assert_eq!(found, weight(at) * f64::from(0.3 + block as f32), "{at}");
        }
        assert_eq!(values(&scaled, 1), [1.0, 2.0]);
    }

    #[test]
    fn scales_that_do_not_fit_are_refused() {
        let message = |result: Result<Scaled, ScaledError>| result.unwrap_err().to_string();
        let few = message(source(&[2, 3]));
        assert!(
            few.contains("expected shape [3, 3]") && few.contains("found [2, 3]"),
            "{few}"
        );
        let flat = message(source(&[9]));
        assert!(flat.contains("expected a matrix of floats"), "{flat}");
        let alone = tensor("w_scale_inv", Dtype::F32, &[1, 1], f32s(&[1.0]));
        let alone = Arc::new(InMemory::new([alone]).unwrap());
        let message_of = |scales| message(Scaled::new(Arc::clone(&alone) as _, scales));
        assert!(message_of(SCALES).contains("`w`, which is not there"));
        let empty = Scales {
            block: [0, 3],
            ..SCALES
        };
        assert!(message_of(empty).contains("[0, 3]"));
        let whole = Scales {
            dtype: Dtype::I64,
            ..SCALES
        };
        assert!(message_of(whole).contains("I64"));
    }

    #[test]
    fn an_adapter_lies_on_scaled_values_as_on_any() {
        let folder = tempfile::tempdir().unwrap();
        let module = "base_model.model.model.layers.0.up";
        let header = json!({
            format!("{module}.lora_A.weight"): {"dtype": "F32", "shape": [2, 7], "data_offsets": [0, 56]},
            format!("{module}.lora_B.weight"): {"dtype": "F32", "shape": [5, 2], "data_offsets": [56, 96]},
        });
        let a: Vec<f32> = (0..14).map(|at| 0.1 * at as f32 - 0.5).collect();
        let b: Vec<f32> = (0..10).map(|at| 0.7 - 0.2 * at as f32).collect();
        let data = f32s(&[a.clone(), b.clone()].concat());
        write(
            &folder.path().join("adapter_model.safetensors"),
            &raw(&header.to_string(), &data),
        );
        let config = json!({"peft_type": "LORA", "r": 2, "lora_alpha": 3});
        write(
            &folder.path().join("adapter_config.json"),
            config.to_string().as_bytes(),
        );

        let scaled = Arc::new(source(&[3, 3]).unwrap());
        let plain = values(&*scaled, 0);
        let model = Checkpoint::new(
            "m",
            Location::local("m"),
            None,
            SidecarsFrom::Nothing,
            scaled,
        );
        let model = model.adapted(&Location::local(folder.path())).unwrap();
        assert_eq!(model.bytes(0), None);
        let entry = &model.tensors()[0];
        assert_eq!((entry.dtype, entry.stored), (Dtype::BF16, Dtype::F8_E4M3));
        assert_eq!(model.bytes_read(0), 35 + 36);
        let found = values(&**model.source(), 0);
        for (at, (found, plain)) in found.into_iter().zip(plain).enumerate() {
            let (row, column) = (at / 7, at % 7);
            let product: f64 = (0..2)
                .map(|rank| f64::from(b[row * 2 + rank]) * f64::from(a[rank * 7 + column]))
                .sum();
            let twin = plain + 1.5 * product;
            assert!((found - twin).abs() < 1e-12, "{at}: {found} is not {twin}");
        }
        // Tensors that the adapter does not change are unchanged.
        assert_eq!(model.bytes(1), Some([0x80, 0x3f, 0, 0x40].as_slice()));
    }
}
