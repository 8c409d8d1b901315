//! The rows of a table (an embedding, or a head) for another vocabulary.

use std::fs::File;
use std::os::unix::fs::FileExt;

use checkpoint::{Checkpoint, TensorEntry};
use engine::Observer;
use errors::Refusal;
use forward::Tokenizer;
use matrix::Matrix;
use numeric::{Elements, FloatType, NoMemory, filled};

use super::pursuit::{Sum, pursue};
use super::report::{Approximation, TableReport};
use super::tokens::{Meaning, Vocabulary};

/// Bytes of the directions that one batch of a pursuit holds at the most.
const BATCH_BYTES: usize = 64 << 20;
/// Rows that are written at a time.
const ROWS: usize = 256;

/// How rows of tokens come about that the model does not have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Method {
    /// The donor's row as a sum of this many rows of tokens that both have; the same sum of the model's rows.
    Pursuit(usize),
    /// The mean of the rows of the tokens into which the model cuts the token's text.
    Subword,
    /// The mean of all rows.
    Mean,
    /// Zeros.
    Zero,
}

/// A table of a model: a row for each token.
#[derive(Clone, Copy)]
pub(super) struct Table<'a> {
    pub(super) model: &'a Checkpoint,
    pub(super) tensor: usize,
}

impl<'a> Table<'a> {
    pub(super) fn entry(&self) -> &'a TensorEntry {
        &self.model.tensors()[self.tensor]
    }

    pub(super) fn rows(&self) -> usize {
        self.entry().shape[0]
    }

    fn columns(&self) -> usize {
        self.entry().shape[1]
    }

    fn values(&self) -> Result<Box<dyn Elements + 'a>, Refusal> {
        let values = self.model.elements(self.tensor);
        values.ok_or_else(|| {
            let name = &self.entry().name;
            Refusal::new(format!(
                "`{name}` of `{}` holds no floats",
                self.model.label()
            ))
        })
    }

    /// The rows of these numbers.
    fn matrix(&self, rows: &[u32]) -> Result<Matrix<f32>, Refusal> {
        let values = self.values()?;
        let columns = self.columns();
        let mut matrix = Matrix::zeros(rows.len(), columns).map_err(no_memory)?;
        let places = matrix.values_mut().chunks_mut(columns.max(1));
        for (row, out) in rows.iter().zip(places) {
            values
                .fill(u64::from(*row) * columns as u64, out)
                .map_err(no_memory)?;
        }
        let finite = matrix.is_finite();
        finite.then_some(matrix).ok_or_else(|| {
            let name = &self.entry().name;
            Refusal::new(format!(
                "`{name}` of `{}` holds NaN or infinity",
                self.model.label()
            ))
        })
    }
}

/// Where a row of the new table comes from.
enum Row {
    /// Rows of the model, and how much of each.
    Sum(Vec<(u32, f64)>),
    Mean,
    Zero,
}

/// Both vocabularies, and what both have.
pub(super) struct Vocabularies<'a> {
    pub(super) model: &'a Vocabulary,
    pub(super) donor: &'a Vocabulary,
    /// The model's tokenizer, where its pieces of a token are needed.
    pub(super) cutter: Option<&'a Tokenizer>,
}

impl Vocabularies<'_> {
    /// The model's row of what a token of the donor stands for.
    fn same(&self, meaning: &Meaning, rows: usize) -> Option<u32> {
        let ids = &self.model.ids;
        let otherwise = || ids.get(&meaning.otherwise()?);
        let id = ids.get(meaning).or_else(otherwise).copied();
        id.filter(|id| (*id as usize) < rows)
    }

    /// The model's tokens of the text of a token; none if it has no text, or none that the model can cut.
    fn pieces(&self, meaning: &Meaning, rows: usize) -> Vec<u32> {
        let cut = |text: &str| self.cutter?.encode(text, false).ok();
        let pieces = meaning.text().and_then(cut).unwrap_or_default();
        match pieces.iter().all(|piece| (*piece as usize) < rows) {
            true => pieces,
            false => Vec::new(),
        }
    }
}

/// Writes the new table to a file from `start` on; it has `rows` rows, in the dtype of the model's.
///
/// # Errors
/// The tables hold no numbers, or something cannot be read, computed or written.
pub(super) fn write(
    (model, donor): (Table<'_>, Table<'_>),
    vocabularies: &Vocabularies<'_>,
    method: Method,
    rows: usize,
    (file, start): (&File, u64),
    observer: &dyn Observer,
) -> Result<TableReport, Refusal> {
    let mut report = TableReport {
        tensor: model.entry().name.clone(),
        ..TableReport::default()
    };
    let mut made: Vec<Row> = Vec::new();
    made.resize_with(rows, || Row::Zero);
    let mut missing = Vec::new();
    for (id, token, meaning) in &vocabularies.donor.tokens {
        let place = &mut made[*id as usize];
        if let Some(row) = vocabularies.same(meaning, model.rows()) {
            *place = Row::Sum(vec![(row, 1.0)]);
            report.copied += 1;
            continue;
        }
        match method {
            Method::Pursuit(_) if (*id as usize) < donor.rows() => missing.push((*id, token)),
            Method::Pursuit(_) | Method::Mean => *place = Row::Mean,
            Method::Zero => {}
            Method::Subword => {
                let pieces = vocabularies.pieces(meaning, model.rows());
                let share = 1.0 / pieces.len() as f64;
                *place = match pieces.is_empty() {
                    true => Row::Mean,
                    false => Row::Sum(pieces.into_iter().map(|piece| (piece, share)).collect()),
                };
            }
        }
    }
    if let (Method::Pursuit(most), false) = (method, missing.is_empty()) {
        let ids: Vec<u32> = missing.iter().map(|(id, _)| *id).collect();
        let sums = sums((model, donor), vocabularies, &ids, most, observer)?;
        for ((id, token), (row, left_out)) in missing.into_iter().zip(sums) {
            made[id as usize] = row;
            let token = token.clone();
            report.left_out.push(Approximation { token, left_out });
        }
        report
            .left_out
            .sort_by(|a, b| b.left_out.total_cmp(&a.left_out));
    }
    for row in &made {
        match row {
            Row::Sum(_) => report.approximated += 1,
            Row::Mean => report.means += 1,
            Row::Zero => report.zeros += 1,
        }
    }
    report.approximated -= report.copied;
    put(model, &made, (file, start))?;
    Ok(report)
}

/// The donor's rows as sums of the rows of tokens that both have, as rows of the model.
fn sums(
    (model, donor): (Table<'_>, Table<'_>),
    vocabularies: &Vocabularies<'_>,
    missing: &[u32],
    most: usize,
    observer: &dyn Observer,
) -> Result<Vec<(Row, f64)>, Refusal> {
    let mut shared: Vec<(u32, u32)> = Vec::new();
    for (id, _, meaning) in &vocabularies.donor.tokens {
        let same = vocabularies.same(meaning, model.rows());
        shared.extend(
            same.filter(|_| (*id as usize) < donor.rows())
                .map(|row| (*id, row)),
        );
    }
    if shared.is_empty() {
        let why = "the two vocabularies have no token in common";
        return Err(Refusal::new(why).with_hint("choose `--method subword`"));
    }
    let of_donor: Vec<u32> = shared.iter().map(|(id, _)| *id).collect();
    let points = donor.matrix(&of_donor)?;
    let one = most
        .saturating_mul(donor.columns())
        .saturating_mul(8)
        .max(1);
    let batch = (BATCH_BYTES / one).clamp(8, 512);
    let mut rows = Vec::with_capacity(missing.len());
    for ids in missing.chunks(batch) {
        if observer.cancelled() {
            return Err(Refusal::new("stopped"));
        }
        let targets = donor.matrix(ids)?;
        let found = pursue(&targets, &points, most).map_err(no_memory)?;
        let row = |Sum { parts, left_out }: Sum| {
            let parts = parts
                .into_iter()
                .map(|(place, share)| (shared[place].1, share));
            (Row::Sum(parts.collect()), left_out)
        };
        rows.extend(found.into_iter().map(row));
        let entry = donor.entry();
        let row = entry.shape[1] as u64 * entry.dtype.bitsize() as u64 / 8;
        observer.advance(ids.len() as u64 * row);
    }
    Ok(rows)
}

/// Computes the rows in f64, and writes them rounded once.
fn put(model: Table<'_>, rows: &[Row], (file, start): (&File, u64)) -> Result<(), Refusal> {
    let values = model.values()?;
    let columns = model.columns();
    let format = FloatType::from_dtype(model.entry().dtype);
    let format = format.ok_or_else(|| Refusal::new("the table holds no floats"))?;
    let mut mean: Option<Vec<f64>> = None;
    let mut at = start;
    for rows in rows.chunks(ROWS) {
        let mut out = filled(rows.len() * columns, 0f64).map_err(no_memory)?;
        let mut row_values = filled(columns, 0f64).map_err(no_memory)?;
        for (row, out) in rows.iter().zip(out.chunks_mut(columns.max(1))) {
            match row {
                Row::Zero => {}
                Row::Mean => {
                    let known = match mean.take() {
                        Some(mean) => mean,
                        None => mean_of(model, values.as_ref())?,
                    };
                    out.copy_from_slice(&known);
                    mean = Some(known);
                }
                Row::Sum(parts) => {
                    for (row, share) in parts {
                        let first = u64::from(*row) * columns as u64;
                        values.fill(first, &mut row_values).map_err(no_memory)?;
                        let pairs = out.iter_mut().zip(&row_values);
                        match *share == 1.0 && parts.len() == 1 {
                            true => pairs.for_each(|(out, value)| *out = *value),
                            false => pairs.for_each(|(out, value)| *out += share * value),
                        }
                    }
                }
            }
        }
        let mut bytes = vec![0; out.len() * format.size()];
        format.encode(&mut out, true, &mut bytes);
        let written = file.write_all_at(&bytes, at);
        written.map_err(|error| Refusal::new(format!("cannot keep the new rows: {error}")))?;
        at += bytes.len() as u64;
    }
    Ok(())
}

fn mean_of(model: Table<'_>, values: &dyn Elements) -> Result<Vec<f64>, Refusal> {
    let columns = model.columns();
    let mut sum = filled(columns, 0f64).map_err(no_memory)?;
    let mut row = filled(columns, 0f64).map_err(no_memory)?;
    for number in 0..model.rows() {
        values
            .fill((number * columns) as u64, &mut row)
            .map_err(no_memory)?;
        sum.iter_mut()
            .zip(&row)
            .for_each(|(sum, value)| *sum += value);
    }
    let count = model.rows().max(1) as f64;
    sum.iter_mut().for_each(|sum| *sum /= count);
    Ok(sum)
}

pub(super) fn no_memory(error: NoMemory) -> Refusal {
    Refusal::new(error.to_string())
}
