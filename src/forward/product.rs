//! Matrix products: a tile of a stored matrix is read, multiplied and dropped at a time.

use rayon::prelude::*;

use super::activation::Activation;
use super::error::ForwardError;
use super::layout::{Gated, Linear, Matrix};
use super::states::States;
use super::weights::read;
use checkpoint::Checkpoint;
use numeric::{View, multiply};

/// Elements of a stored matrix that a thread holds at a time, unless a single row is longer.
const TILE: usize = 1 << 20;
/// The rows of a tile are a multiple of this if possible, because kernels process this many at once.
const ROWS: usize = 16;

impl Matrix {
    /// Rows per tile. They depend on the shape alone, so that sums do not depend on the number of threads.
    pub(super) fn tile_rows(&self) -> usize {
        let rows = TILE / self.columns.max(1);
        (rows / ROWS * ROWS).clamp(ROWS, 1024)
    }

    /// Reads the tile that starts at a row into `tile`; returns its number of rows.
    pub(super) fn read(
        &self,
        weights: &Checkpoint,
        first: usize,
        tile: &mut Vec<f32>,
    ) -> Result<usize, ForwardError> {
        let rows = self.tile_rows().min(self.rows - first);
        tile.resize(rows * self.columns, 0.0);
        read(
            weights,
            &self.tensor,
            self.start + first * self.columns,
            tile,
        )?;
        Ok(rows)
    }
}

impl Linear {
    /// `W x + b` for each token.
    pub(super) fn apply(&self, weights: &Checkpoint, x: &States) -> Result<States, ForwardError> {
        let mut out = States::zeros(self.matrix.rows, x.tokens)?;
        let rows = self.matrix.tile_rows();
        let chunks = out.values.par_chunks_mut(rows * x.tokens).enumerate();
        chunks.try_for_each_init(Vec::new, |tile, (number, out)| {
            self.tile(weights, x, number * rows, tile, out)
        })?;
        Ok(out)
    }

    /// The rows of `W x + b` that one tile computes, from `first` on.
    fn tile(
        &self,
        weights: &Checkpoint,
        x: &States,
        first: usize,
        tile: &mut Vec<f32>,
        out: &mut [f32],
    ) -> Result<(), ForwardError> {
        let rows = self.matrix.read(weights, first, tile)?;
        let columns = self.matrix.columns;
        multiply(
            out,
            View::rows(tile, rows, columns),
            View::rows(&x.values, columns, x.tokens),
        );
        if let Some(bias) = &self.bias {
            let mut values = vec![0.0; rows];
            read(weights, &bias.tensor, bias.start + first, &mut values)?;
            for (out, bias) in out.chunks_exact_mut(x.tokens).zip(values) {
                out.iter_mut().for_each(|out| *out += bias);
            }
        }
        Ok(())
    }
}

impl Gated {
    /// `activation(W_gate x) * W_up x` for each token: what enters `W_down`.
    pub(super) fn inner(
        &self,
        weights: &Checkpoint,
        activation: Activation,
        x: &States,
    ) -> Result<States, ForwardError> {
        let mut inner = States::zeros(self.gate.matrix.rows, x.tokens)?;
        let rows = self.gate.matrix.tile_rows();
        let chunks = inner.values.par_chunks_mut(rows * x.tokens).enumerate();
        let scratch = || (Vec::new(), Vec::new());
        chunks.try_for_each_init(scratch, |(tile, ups), (number, gates)| {
            let first = number * rows;
            self.gate.tile(weights, x, first, tile, gates)?;
            ups.resize(gates.len(), 0.0);
            self.up.tile(weights, x, first, tile, ups)?;
            activation.gate(gates, ups);
            Ok::<(), ForwardError>(())
        })?;
        Ok(inner)
    }
}
