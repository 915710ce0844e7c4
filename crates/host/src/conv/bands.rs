//! How the pixels of a batch are cut into pieces of work.

use std::ops::Range;

use super::windows::Windows;

/// Pieces that a batch is cut into at least, where its rows allow: enough for any number of threads.
pub(super) const PIECES: usize = 16;

/// Neighbouring whole images, or neighbouring output rows of one image.
#[derive(Debug, Clone)]
pub(super) struct Band {
    pub images: Range<usize>,
    pub rows: Range<usize>,
}

impl Band {
    /// Every image, row and one of `tiles` pieces of the row.
    pub(super) fn pixels(&self, tiles: usize) -> impl Iterator<Item = (usize, usize, usize)> {
        let rows = self.rows.clone();
        self.images.clone().flat_map(move |image| {
            rows.clone().flat_map(move |row| (0..tiles).map(move |tile| (image, row, tile)))
        })
    }
}

/// A cut of all output rows of a batch into bands.
#[derive(Debug, Clone, Copy)]
pub(super) struct Bands {
    batch: usize,
    out_h: usize,
    /// Images in a band, or bands in an image; one of the two is 1.
    images: usize,
    pieces: usize,
}

impl Bands {
    /// Bands for tasks that share a weight: of at least `pixels` output pixels where the batch is large
    /// enough, and of few enough rows that the input of one stays in the cache.
    pub(super) fn sharing(w: &Windows, pixels: usize, cache: usize) -> Self {
        let [out_h, out_w] = w.out;
        let images = pixels.div_ceil(out_h * out_w).min(w.images.div_ceil(PIECES)).max(1);
        let pieces = PIECES.div_ceil(w.images).max(w.padded_len().div_ceil(cache));
        let pieces = if images > 1 { 1 } else { pieces.min(out_h) };
        Bands { batch: w.images, out_h, images, pieces }
    }

    /// Bands whose input and output (of `out_c` channels) together have about `cache` numbers.
    pub(super) fn caching(w: &Windows, out_c: usize, cache: usize) -> Self {
        let [out_h, out_w] = w.out;
        let per_image = w.padded_len() + out_h * out_w * out_c;
        let images = (cache / per_image.max(1)).clamp(1, w.images);
        let pieces = if images > 1 { 1 } else { per_image.div_ceil(cache).clamp(1, out_h) };
        Bands { batch: w.images, out_h, images, pieces }
    }

    pub(super) fn count(&self) -> usize {
        self.batch.div_ceil(self.images) * self.pieces
    }

    pub(super) fn get(&self, i: usize) -> Band {
        let (group, piece) = (i / self.pieces, i % self.pieces);
        let first = group * self.images;
        Band {
            images: first..(first + self.images).min(self.batch),
            rows: crate::gemm::part(self.out_h, self.pieces, piece),
        }
    }

    /// Images and output rows of the largest band.
    pub(super) fn largest(&self) -> (usize, usize) {
        (self.images, self.out_h.div_ceil(self.pieces))
    }
}
