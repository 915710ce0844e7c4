//! How a kernel's work is laid out in blocks and threads: pure arithmetic.

/// Threads of a block unless a kernel wants another number.
pub const THREADS: u32 = 256;

/// Blocks and threads of a launch. Without a block nothing is launched.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Grid {
    /// Blocks along x, y and z; y and z at most 65535.
    pub blocks: [u32; 3],
    /// Threads of a block, along x only.
    pub threads: u32,
    /// Dynamic shared memory of a block in bytes.
    pub shared: u32,
}

impl Grid {
    /// Blocks in three directions with `threads` each.
    pub const fn new(blocks: [u32; 3], threads: u32) -> Self {
        Grid { blocks, threads, shared: 0 }
    }

    /// As many blocks of [`THREADS`] as `elements` need at `per_block` elements a block (a power of two is not
    /// needed). More than a grid can have (2³¹ − 1) is cut there, so such a kernel strides over the rest.
    pub const fn linear(elements: usize, per_block: usize) -> Self {
        let per_block = if per_block == 0 { 1 } else { per_block };
        let blocks = elements.div_ceil(per_block);
        let most = i32::MAX as usize;
        Grid::new([if blocks > most { most as u32 } else { blocks as u32 }, 1, 1], THREADS)
    }

    /// The same, but at most `most` blocks: for kernels that stride over the grid.
    pub const fn strided(elements: usize, per_block: usize, most: u32) -> Self {
        let mut grid = Grid::linear(elements, per_block);
        if grid.blocks[0] > most {
            grid.blocks[0] = most;
        }
        grid
    }

    /// One block a row, with the warps that `columns` elements need (one thread for `per_thread` elements), at
    /// least one warp and at most 1024 threads.
    pub const fn rows(rows: usize, columns: usize, per_thread: usize) -> Self {
        let per_thread = if per_thread == 0 { 1 } else { per_thread };
        let warps = columns.div_ceil(per_thread).div_ceil(32);
        let warps = if warps == 0 {
            1
        } else if warps > 32 {
            32
        } else {
            warps
        };
        let mut grid = Grid::linear(rows, 1);
        grid.threads = warps as u32 * 32;
        grid
    }

    /// With `threads` a block.
    pub const fn threads(mut self, threads: u32) -> Self {
        self.threads = threads;
        self
    }

    /// With `bytes` of dynamic shared memory a block.
    pub const fn shared(mut self, bytes: u32) -> Self {
        self.shared = bytes;
        self
    }

    /// Whether there is no block to launch.
    pub const fn is_empty(&self) -> bool {
        self.blocks[0] == 0 || self.blocks[1] == 0 || self.blocks[2] == 0
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn every_element_has_a_block_and_no_block_is_without(n in 0usize..1 << 40, per in 1usize..4096) {
            let blocks = Grid::linear(n, per).blocks[0] as usize;
            if blocks < i32::MAX as usize {
                prop_assert!(blocks * per >= n);
                prop_assert!(blocks == 0 || (blocks - 1) * per < n);
            }
            let strided = Grid::strided(n, per, 528).blocks[0];
            prop_assert_eq!(strided as usize, blocks.min(528));
        }

        #[test]
        fn a_row_has_whole_warps_and_no_more_than_it_needs(columns in 0usize..100_000, per in 1usize..16) {
            let threads = Grid::rows(5, columns, per).threads as usize;
            prop_assert_eq!(threads % 32, 0);
            prop_assert!((32..=1024).contains(&threads));
            prop_assert!(threads == 1024 || threads * per >= columns);
            prop_assert!(threads == 32 || (threads - 32) * per < columns);
        }
    }
}
