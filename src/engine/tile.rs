//! Memory for output: a worker fills a tile, the sink takes it, and when the sink drops it, it is used again.
//!
//! Bytes are encoded right where they are written from, so nothing is copied in between.

use std::io;
use std::ops::{Deref, DerefMut, Range};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use memmap2::MmapMut;

/// Bytes of a page: the alignment of memory, and of direct writes to a disk.
pub const PAGE: usize = 4096;

/// A pool of tiles of one size, with a limit on their number.
#[derive(Debug, Clone)]
pub struct Tiles(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    /// Bytes of memory per tile.
    size: usize,
    most: usize,
    state: Mutex<State>,
    /// Signalled when a tile becomes free.
    freed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    free: Vec<MmapMut>,
    /// How many tiles have been allocated.
    made: usize,
}

/// Bytes of output, with one owner at a time.
#[derive(Debug)]
pub struct Tile {
    /// `None` only while the tile is dropped.
    memory: Option<MmapMut>,
    used: Range<usize>,
    from: Arc<Shared>,
}

impl Tiles {
    /// A pool of at most `most` tiles of `size` bytes.
    pub fn new(size: usize, most: usize) -> Self {
        Self(Arc::new(Shared {
            size,
            most,
            state: Mutex::default(),
            freed: Condvar::new(),
        }))
    }

    /// A tile for `len` bytes that begin `phase` bytes after the start of a page of their file; they do in memory
    /// too.
    ///
    /// Waits until a tile is free. Its bytes are left over from an earlier use.
    ///
    /// # Errors
    /// If the system has no memory, or `len` bytes do not fit into a tile.
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
                // Ask for large pages, which make writes faster; without them, the tile works as it is.
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
        // The only tile, so the other thread waits for it.
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
