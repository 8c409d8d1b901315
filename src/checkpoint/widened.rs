//! A UNet of Stable Diffusion read as one with further input channels, as those for inpainting have: their weights are
//! zeros, so it computes what it did.

use std::ops::Range;
use std::sync::Arc;

use super::behind::Reclaim;
use super::remote::RemotePlace;
use super::shard::Shard;
use super::source::{EncodedTensor, TensorEntry, TensorSource};
use numeric::{BoxPlace, Boxes, Constant, Elements};

/// The input channels of a plain model: those of the latent image.
pub(super) const LATENT: usize = 4;

/// How many those have that were trained from a plain one, with zeros for the new weights at first: for depth,
/// for edits by instructions, and for inpainting.
const WIDER: [usize; 3] = [5, 8, 9];

/// The first convolution, by the names of diffusers, of the authors, and of a single file.
const FIRST: [&str; 3] = [
    "conv_in.weight",
    "input_blocks.0.0.weight",
    "model.diffusion_model.input_blocks.0.0.weight",
];

/// A source whose first convolution has further input channels.
#[derive(Debug)]
pub(super) struct Widened {
    base: Arc<dyn TensorSource>,
    entries: Vec<TensorEntry>,
    /// The convolution.
    at: usize,
    /// Where its own channels lie among all, and the new ones.
    own: BoxPlace,
    new: BoxPlace,
}

/// The first convolution of a UNet, and how many input channels it has: one of the numbers that are known.
pub(super) fn first_convolution(entries: &[TensorEntry]) -> Option<(usize, usize)> {
    let at = FIRST
        .iter()
        .find_map(|name| entries.iter().position(|entry| entry.name == *name))?;
    match entries[at].shape[..] {
        [_, inputs, _, _] if inputs == LATENT || WIDER.contains(&inputs) => Some((at, inputs)),
        _ => None,
    }
}

impl Widened {
    /// The source with so many input channels; `None` if it has not the plain number, or if not so many are known.
    pub(super) fn new(base: &Arc<dyn TensorSource>, inputs: usize) -> Option<Widened> {
        let (at, LATENT) = first_convolution(base.entries())? else {
            return None;
        };
        if !WIDER.contains(&inputs) {
            return None;
        }
        let mut entries = base.entries().to_vec();
        let entry = &mut entries[at];
        let &[out, before, height, width] = entry.shape.as_slice() else {
            return None;
        };
        let shape = [out, inputs, height, width];
        let own = BoxPlace::new(&shape, &[0; 4], &[out, before, height, width])?;
        let rest = [out, inputs - before, height, width];
        let new = BoxPlace::new(&shape, &[0, before, 0, 0], &rest)?;
        entry.len = entry.len / before as u64 * inputs as u64;
        entry.shape = shape.to_vec();
        Some(Widened {
            base: Arc::clone(base),
            entries,
            at,
            own,
            new,
        })
    }
}

impl TensorSource for Widened {
    fn base(&self) -> Option<&dyn TensorSource> {
        Some(self.base.as_ref())
    }

    fn entries(&self) -> &[TensorEntry] {
        &self.entries
    }

    fn elements(&self, index: usize) -> Option<Box<dyn Elements + '_>> {
        let own = self.base.elements(index)?;
        if index != self.at {
            return Some(own);
        }
        Some(Box::new(Boxes {
            format: own.format(),
            boxes: vec![(&self.own, own), (&self.new, Box::new(Constant(0.0)))],
        }))
    }

    fn bytes(&self, index: usize) -> Option<&[u8]> {
        (index != self.at).then(|| self.base.bytes(index))?
    }

    fn stored(&self, index: usize) -> Option<&[u8]> {
        (index != self.at).then(|| self.base.stored(index))?
    }

    fn encoded(&self, index: usize) -> Option<EncodedTensor<'_>> {
        let mut encoded = self.base.encoded(index)?;
        if index == self.at {
            encoded.parts.clear();
        }
        Some(encoded)
    }

    fn bytes_read(&self, index: usize) -> u64 {
        self.base.bytes_read(index)
    }

    fn place(&self, index: usize) -> Option<(&Shard, u64)> {
        self.base.place(index)
    }

    fn remote(&self, index: usize) -> Vec<RemotePlace> {
        self.base.remote(index)
    }

    fn release(&self, index: usize, bytes: Range<u64>, reclaim: Reclaim) {
        if index != self.at {
            self.base.release(index, bytes, reclaim);
        }
    }
}
