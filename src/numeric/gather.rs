//! A matrix whose rows are taken from other matrices as it is read: the rows of one token in several vocabularies.

use std::sync::{Arc, OnceLock};

use super::elements::{Elements, Fill};
use super::format::FloatType;
use super::memory::{NoMemory, filled};
use super::real::Real;

/// Where each row of a gathered matrix comes from.
///
/// A few bytes for each row, however long the rows are.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct RowMap {
    rows: Vec<Row>,
    /// The (part, row) pairs of all means.
    means: Vec<(u32, u32)>,
}

/// Where one row comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Row {
    /// A row of a part, unchanged.
    Copy { part: u32, row: u32 },
    /// The mean of `len` pairs of `means`, from index `start` on.
    Mean { start: u32, len: u32 },
    /// Zeros.
    Zero,
    /// The mean of all rows that are not themselves `Average`.
    Average,
}

impl RowMap {
    /// A map without rows.
    pub fn new() -> Self {
        Self::default()
    }

    /// Appends the mean of the given (part, row) pairs: zeros for no pair, the row itself for one.
    pub fn push(&mut self, pairs: &[(u32, u32)]) {
        self.rows.push(match *pairs {
            [] => Row::Zero,
            [(part, row)] => Row::Copy { part, row },
            _ => {
                let start = self.means.len() as u32;
                self.means.extend_from_slice(pairs);
                Row::Mean {
                    start,
                    len: pairs.len() as u32,
                }
            }
        });
    }

    /// Appends the mean of all rows except those appended by this function.
    pub fn push_average(&mut self) {
        self.rows.push(Row::Average);
    }

    /// Whether the result is the first part, which has `rows` rows, unchanged.
    pub fn is_identity(&self, rows: usize) -> bool {
        let same = |(index, row): (usize, &Row)| matches!(row, Row::Copy { part: 0, row } if *row as usize == index);
        self.rows.len() == rows && self.rows.iter().enumerate().all(same)
    }

    /// How many rows of parts one pass over all rows reads.
    pub fn reads(&self) -> u64 {
        let read = |row: &Row| match row {
            Row::Copy { .. } => 1,
            Row::Mean { len, .. } => u64::from(*len),
            Row::Zero | Row::Average => 0,
        };
        let once: u64 = self.rows.iter().map(read).sum();
        if self.rows.contains(&Row::Average) {
            2 * once
        } else {
            once
        }
    }
}

/// The gathered matrix.
pub struct Gather<'a> {
    parts: Vec<Box<dyn Elements + 'a>>,
    map: Arc<RowMap>,
    width: usize,
    /// The row for [`Row::Average`], computed when it is first needed.
    average: OnceLock<Vec<f64>>,
}

impl<'a> Gather<'a> {
    /// Takes rows of `width` elements from parts whose rows have the same width. Every part and row that the map
    /// names must exist.
    pub fn new(parts: Vec<Box<dyn Elements + 'a>>, map: Arc<RowMap>, width: usize) -> Self {
        Self {
            parts,
            map,
            width,
            average: OnceLock::new(),
        }
    }

    /// Sets `out` to the elements of one row from column `first` on; returns the bytes read.
    fn row<R: Real>(&self, row: Row, first: usize, out: &mut [R]) -> Result<usize, NoMemory> {
        Ok(match row {
            Row::Copy { part, row } => self.copy(part, row, first, out)?,
            Row::Zero => {
                out.fill(R::ZERO);
                0
            }
            Row::Mean { start, len } => {
                let mut sum = filled(out.len(), 0.0)?;
                let mut values = filled(out.len(), 0f64)?;
                let mut read = 0;
                let pairs = &self.map.means[start as usize..(start + len) as usize];
                for &(part, row) in pairs {
                    read += self.copy(part, row, first, &mut values)?;
                    add(&mut sum, &values);
                }
                set_mean(out, &sum, u64::from(len));
                read
            }
            Row::Average => {
                let mut read = 0;
                let average = match self.average.get() {
                    Some(average) => average,
                    // Two threads may compute it; both find the same.
                    None => {
                        let (average, bytes) = self.average()?;
                        read = bytes;
                        self.average.get_or_init(|| average)
                    }
                };
                for (value, mean) in out.iter_mut().zip(&average[first..]) {
                    *value = R::from_f64(*mean);
                }
                read
            }
        })
    }

    fn copy<R: Real>(
        &self,
        part: u32,
        row: u32,
        first: usize,
        out: &mut [R],
    ) -> Result<usize, NoMemory> {
        let first = u64::from(row) * self.width as u64 + first as u64;
        R::fill(self.parts[part as usize].as_ref(), first, out)
    }

    /// The mean of all other rows, summed in order; and the bytes read for it.
    fn average(&self) -> Result<(Vec<f64>, usize), NoMemory> {
        let mut sum = filled(self.width, 0.0)?;
        let mut values = filled(self.width, 0f64)?;
        let (mut rows, mut read) = (0, 0);
        for &row in self.map.rows.iter().filter(|&&row| row != Row::Average) {
            read += self.row(row, 0, &mut values)?;
            add(&mut sum, &values);
            rows += 1;
        }
        let mut mean = filled(self.width, 0.0)?;
        set_mean(&mut mean, &sum, rows);
        Ok((mean, read))
    }
}

fn add(sum: &mut [f64], values: &[f64]) {
    for (sum, value) in sum.iter_mut().zip(values) {
        *sum += value;
    }
}

fn set_mean<R: Real>(out: &mut [R], sum: &[f64], count: u64) {
    let count = count.max(1) as f64;
    for (out, sum) in out.iter_mut().zip(sum) {
        *out = R::from_f64(sum / count);
    }
}

impl<R: Real> Fill<R> for Gather<'_> {
    fn fill(&self, first: u64, out: &mut [R]) -> Result<usize, NoMemory> {
        if self.width == 0 {
            return Ok(0);
        }
        let mut row = (first / self.width as u64) as usize;
        let mut column = (first % self.width as u64) as usize;
        let mut rest = out;
        let mut read = 0;
        while !rest.is_empty() {
            let length = rest.len().min(self.width - column);
            let (here, after) = rest.split_at_mut(length);
            read += self.row(self.map.rows[row], column, here)?;
            (row, column, rest) = (row + 1, 0, after);
        }
        Ok(read)
    }
}

impl Elements for Gather<'_> {
    fn format(&self) -> FloatType {
        let formats = self.parts.iter().map(|part| part.format());
        formats.reduce(FloatType::promote).unwrap_or(FloatType::F32)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::elements::Stored;
    use super::*;

    const PART_ROWS: u32 = 6;

    /// How a test makes one row of a map.
    #[derive(Debug, Clone)]
    enum Asked {
        Pairs(Vec<(u32, u32)>),
        Average,
    }

    fn map_of(asked: &[Asked]) -> Arc<RowMap> {
        let mut map = RowMap::new();
        for row in asked {
            match row {
                Asked::Pairs(pairs) => map.push(pairs),
                Asked::Average => map.push_average(),
            }
        }
        Arc::new(map)
    }

    fn bytes_of(values: &[f64], format: FloatType) -> Vec<u8> {
        let mut bytes = vec![0; values.len() * format.size()];
        format.encode(&mut values.to_vec(), false, &mut bytes);
        bytes
    }

    /// The slow twin: every row in full, in f64.
    fn twin(asked: &[Asked], parts: &[Vec<f64>], width: usize) -> Vec<f64> {
        let mean = |rows: &[Vec<f64>]| -> Vec<f64> {
            (0..width)
                .map(|column| {
                    let sum: f64 = rows.iter().map(|row| row[column]).sum();
                    sum / rows.len().max(1) as f64
                })
                .collect()
        };
        let rows: Vec<Option<Vec<f64>>> = asked
            .iter()
            .map(|row| match row {
                Asked::Average => None,
                Asked::Pairs(pairs) => {
                    let rows: Vec<Vec<f64>> = pairs
                        .iter()
                        .map(|&(part, row)| {
                            let start = row as usize * width;
                            parts[part as usize][start..start + width].to_vec()
                        })
                        .collect();
                    Some(mean(&rows))
                }
            })
            .collect();
        let average = mean(&rows.iter().flatten().cloned().collect::<Vec<_>>());
        rows.into_iter()
            .flat_map(|row| row.unwrap_or_else(|| average.clone()))
            .collect()
    }

    fn asked() -> impl Strategy<Value = Vec<Asked>> {
        let pair = (0u32..2, 0..PART_ROWS);
        let row = prop_oneof![
            6 => prop::collection::vec(pair, 0..4).prop_map(Asked::Pairs),
            1 => Just(Asked::Average),
        ];
        prop::collection::vec(row, 1..12)
    }

    proptest! {
        #[test]
        fn any_range_is_what_the_whole_matrix_has_there(
            asked in asked(), width in 1usize..7, seed in 0u32..1000, from in 0usize..80, length in 0usize..80,
        ) {
            let format = [FloatType::F32, FloatType::Bf16][seed as usize % 2];
            // Multiples of a quarter are exact in every format.
            let values = |part: u32| -> Vec<f64> {
                (0..PART_ROWS * width as u32)
                    .map(|i| f64::from((i * 7 + part * 31 + seed) % 61) / 4.0 - 7.0)
                    .collect()
            };
            let parts = [values(0), values(1)];
            let bytes = [bytes_of(&parts[0], format), bytes_of(&parts[1], FloatType::F32)];
            let stored = vec![
                Box::new(Stored { bytes: &bytes[0], format }) as Box<dyn Elements>,
                Box::new(Stored { bytes: &bytes[1], format: FloatType::F32 }),
            ];
            let gather = Gather::new(stored, map_of(&asked), width);
            let expected = twin(&asked, &parts, width);
            let from = from.min(expected.len());
            let to = (from + length).min(expected.len());
            let mut double = vec![f64::NAN; to - from];
            let mut single = vec![f32::NAN; to - from];
            Fill::<f64>::fill(&gather, from as u64, &mut double).unwrap();
            Fill::<f32>::fill(&gather, from as u64, &mut single).unwrap();
            prop_assert_eq!(&double, &expected[from..to]);
            let rounded: Vec<f32> = expected[from..to].iter().map(|value| *value as f32).collect();
            prop_assert_eq!(single, rounded);
        }
    }

    #[test]
    fn a_hand_worked_case() {
        let (a, b) = (
            bytes_of(&[1.0, 2.0, 3.0, 4.0], FloatType::F32),
            bytes_of(&[10.0, 20.0], FloatType::Bf16),
        );
        let mut map = RowMap::new();
        map.push(&[(0, 1)]);
        map.push(&[(0, 0), (1, 0)]);
        map.push(&[]);
        map.push_average();
        assert_eq!((map.rows.len(), map.reads()), (4, 6));
        assert!(!map.is_identity(4));
        let parts: Vec<Box<dyn Elements>> = vec![
            Box::new(Stored {
                bytes: &a,
                format: FloatType::F32,
            }),
            Box::new(Stored {
                bytes: &b,
                format: FloatType::Bf16,
            }),
        ];
        let gather = Gather::new(parts, Arc::new(map), 2);
        assert_eq!(gather.format(), FloatType::F32);
        let mut out = [0f64; 8];
        let read = Fill::<f64>::fill(&gather, 0, &mut out).unwrap();
        let (first, second) = ((3.0 + 5.5) / 3.0, (4.0 + 11.0) / 3.0);
        assert_eq!(out, [3.0, 4.0, 5.5, 11.0, 0.0, 0.0, first, second]);
        // Rows of eight and four bytes: 8, 8 + 4, none; and all of them a second time for the average.
        assert_eq!(read, 40);
        assert_eq!(Fill::<f64>::fill(&gather, 6, &mut out[..2]), Ok(0));
    }

    #[test]
    fn the_identity_is_known() {
        let mut map = RowMap::new();
        assert!(map.is_identity(0));
        map.push(&[(0, 0)]);
        map.push(&[(0, 1)]);
        assert!(map.is_identity(2) && !map.is_identity(3));
        map.push(&[(1, 2)]);
        assert!(!map.is_identity(3));
    }
}
