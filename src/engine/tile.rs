//! Memory for output on its way: a worker fills a tile, the sink takes it, and once it is done with, it is used again.
//!
//! So bytes are encoded where they are written from, and nothing is copied in between.

use std::io;
use std::ops::{Deref, DerefMut, Range};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use memmap2::MmapMut;

/// Bytes of a page: what memory begins at, and what direct writes to a disk are aligned to.
pub const PAGE: usize = 4096;

/// Tiles of one size, of which there are never more than so many.
#[derive(Debug, Clone)]
pub struct Tiles(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    /// Bytes of a tile's memory.
    size: usize,
    most: usize,
    state: Mutex<State>,
    /// Told when a tile is free again.
    freed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    free: Vec<MmapMut>,
    /// How many have memory.
    made: usize,
}

/// Bytes of output, for one owner at a time.
#[derive(Debug)]
pub struct Tile {
    /// There until it is given back.
    memory: Option<MmapMut>,
    used: Range<usize>,
    from: Arc<Shared>,
}

impl Tiles {
    /// Tiles of so many bytes, at most so many at a time.
    pub fn new(size: usize, most: usize) -> Self {
        Self(Arc::new(Shared {
            size,
            most,
            state: Mutex::default(),
            freed: Condvar::new(),
        }))
    }

    /// A tile for bytes that begin `phase` bytes after the start of a page of their file: they lie so in memory too.
    ///
    /// Waits while all are in use. What is in it is of an earlier use.
    ///
    /// # Errors
    /// The system gives no memory, or more bytes are asked for than a tile has.
    pub fn take(&self, phase: usize, len: usize) -> io::Result<Tile> {
        let used = phase % PAGE..phase % PAGE + len;
        if used.end > self.0.size {
            return Err(io::Error::other("a tile is too small for its blocks"));
        }
        Ok(Tile {
            memory: Some(self.0.memory()?),
            used,
            from: Arc::clone(&self.0),
        })
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn memory(&self) -> io::Result<MmapMut> {
        let mut state = self.lock();
        loop {
            if let Some(memory) = state.free.pop() {
                return Ok(memory);
            }
            if state.made < self.most {
                // Anonymous maps begin at a page.
                let memory = MmapMut::map_anon(self.size)?;
                // In large pages, of which the system has fewer to look up for a write; where it has none, as it is.
                #[cfg(target_os = "linux")]
                let _ = memory.advise(memmap2::Advice::HugePage);
                state.made += 1;
                return Ok(memory);
            }
            let freed = self.freed.wait(state);
            state = freed.unwrap_or_else(PoisonError::into_inner);
        }
    }
}

impl Deref for Tile {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        let memory = self.memory.as_deref().unwrap_or_default();
        &memory[self.used.clone()]
    }
}

impl DerefMut for Tile {
    fn deref_mut(&mut self) -> &mut [u8] {
        let memory = self.memory.as_deref_mut().unwrap_or_default();
        &mut memory[self.used.clone()]
    }
}

impl Drop for Tile {
    fn drop(&mut self) {
        self.from.lock().free.extend(self.memory.take());
        self.from.freed.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_used_again_and_bytes_lie_as_in_their_file() {
        let tiles = Tiles::new(3 * PAGE, 1);
        let mut tile = tiles.take(5 * PAGE + 24, 2 * PAGE).unwrap();
        assert_eq!((tile.len(), tile.as_ptr() as usize % PAGE), (2 * PAGE, 24));
        tile.fill(1);
        let place = tile.as_ptr();
        // The only one: another worker waits for it.
        std::thread::scope(|scope| {
            let next = scope.spawn(|| tiles.take(24, 1).unwrap().as_ptr() as usize);
            drop(tile);
            assert_eq!(next.join().unwrap(), place as usize);
        });
    }

    #[test]
    fn more_than_a_tile_holds_is_refused() {
        let tiles = Tiles::new(2 * PAGE, 1);
        assert!(tiles.take(0, 2 * PAGE).is_ok());
        assert!(tiles.take(1, 2 * PAGE).is_err());
    }
}
