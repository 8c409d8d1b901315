//! A tile of output while it is filled, block by block.

use super::Sink;
use super::tile::Tile;

/// How many new bytes are shown to the sink at a time; until then they stay in the second-level cache.
const LOOK: usize = 256 << 10;

/// A tile of output while it is filled.
pub(super) struct Filling<'a> {
    sink: &'a dyn Sink,
    /// The sink's number for the output.
    pub(super) number: usize,
    /// Where the tile begins in the output.
    pub(super) offset: u64,
    tile: Tile,
    filled: usize,
    /// How many bytes the sink has been shown.
    shown: usize,
}

impl<'a> Filling<'a> {
    /// A tile that begins `offset` bytes into an output.
    pub(super) fn new(sink: &'a dyn Sink, number: usize, offset: u64, tile: Tile) -> Self {
        Self {
            sink,
            number,
            offset,
            tile,
            filled: 0,
            shown: 0,
        }
    }

    /// Calls `set` with the next `len` bytes.
    pub(super) fn set<T>(&mut self, len: usize, set: impl FnOnce(&mut [u8]) -> T) -> T {
        let start = self.filled;
        self.filled += len;
        let done = set(&mut self.tile[start..start + len]);
        self.show(LOOK);
        done
    }

    /// The tile, after the sink has been shown every byte.
    pub(super) fn finish(mut self) -> Tile {
        self.show(1);
        self.tile
    }

    /// Shows the sink the bytes that it has not seen, if there are at least `least`.
    fn show(&mut self, least: usize) {
        if self.filled - self.shown >= least {
            let offset = self.offset + self.shown as u64;
            let bytes = &self.tile[self.shown..self.filled];
            self.sink.look(self.number, offset, bytes);
            self.shown = self.filled;
        }
    }
}
