//! A sink in front of another: once a piece of output is written, its input bytes leave the map, or the page cache too.

use std::io;
use std::ops::Range;

use checkpoint::{Dtype, Reclaim};
use engine::{Sink, Tile};
use numeric::{EncodingError, FloatType, Oddities, Survival};
use plan::{Plan, PlannedTensor, View};

/// Passes the output on, and releases the memory of the inputs.
///
/// Output comes from the last pass over its sources, so nothing is dropped that will be measured again. A tensor that
/// goes into several outputs may be read from the disk again.
pub(super) struct DropBehind<'a> {
    pub(super) plan: &'a Plan,
    pub(super) sink: &'a dyn Sink,
    pub(super) reclaim: Reclaim,
}

impl Sink for DropBehind<'_> {
    fn start(&self, output: usize) -> u64 {
        self.sink.start(output)
    }

    fn look(&self, output: usize, offset: u64, bytes: &[u8]) {
        self.sink.look(output, offset, bytes);
    }

    fn write(&self, output: usize, offset: u64, bytes: Tile) -> io::Result<()> {
        let len = bytes.len() as u64;
        self.sink.write(output, offset, bytes)?;
        if let Some(tensor) = self.plan.tensors.get(output) {
            self.release(tensor, offset, len);
        }
        Ok(())
    }

    fn survived(&self, output: usize, survival: Survival) {
        self.sink.survived(output, survival);
    }

    fn encoded(&self, output: usize, error: EncodingError) {
        self.sink.encoded(output, error);
    }

    fn odd(&self, output: usize, source: usize, found: Oddities) {
        self.sink.odd(output, source, found);
    }
}

impl DropBehind<'_> {
    /// Releases the source elements of a part of the output, for sources that are read in their own order.
    fn release(&self, tensor: &PlannedTensor, offset: u64, len: u64) {
        for (place, source) in tensor.sources.iter().enumerate() {
            // The first of the stored tensors holds the values, and scales are few.
            let as_it_is = matches!(
                tensor.views.get(place),
                None | Some(None | Some(View::Stored(0)))
            );
            let Some(model) = self.plan.models.get(source.model).filter(|_| as_it_is) else {
                continue;
            };
            let Some(entry) = model.tensors().get(source.tensor) else {
                continue;
            };
            if let Some(bytes) = in_source(entry.stored, tensor.dtype, offset..offset + len) {
                model.release(source.tensor, bytes, self.reclaim);
            }
        }
    }
}

/// The bytes of a source that hold the elements of these bytes of the output.
fn in_source(source: Dtype, output: Dtype, bytes: Range<u64>) -> Option<Range<u64>> {
    if source == output {
        return Some(bytes);
    }
    let (from, to) = (
        FloatType::from_dtype(source)?,
        FloatType::from_dtype(output)?,
    );
    let scaled = |bytes: u64| bytes / to.size() as u64 * from.size() as u64;
    Some(scaled(bytes.start)..scaled(bytes.end))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn elements_are_found_in_sources_of_another_width() {
        let found = |source, output| in_source(source, output, 4096..8192);
        assert_eq!(found(Dtype::I32, Dtype::I32), Some(4096..8192));
        assert_eq!(found(Dtype::F32, Dtype::BF16), Some(8192..16_384));
        assert_eq!(found(Dtype::F8_E4M3, Dtype::F64), Some(512..1024));
        assert_eq!(found(Dtype::I32, Dtype::F32), None);
    }
}
