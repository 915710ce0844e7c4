//! Views by parts and names of axes: all built of slices, reshapes and permutations.

use crate::{Error, MAX_AXES, Result, Tensor, ops};

fn refuse<T>(op: &'static str, x: &Tensor, why: String) -> Result<T> {
    Err(Error::Invalid { op, shape: x.shape(), why })
}

impl Tensor {
    /// Parts of `sizes` along `axis`, one after the other; no copy. The sizes must add up to the axis.
    pub fn split(&self, axis: usize, sizes: &[usize]) -> Result<Vec<Tensor>> {
        let size = ops::want_axis("split", self.shape(), axis)?;
        let total = sizes.iter().try_fold(0usize, |n, &s| n.checked_add(s));
        if total != Some(size) {
            return refuse(
                "split",
                self,
                format!("parts of {sizes:?} do not add up to axis {axis} of {size}"),
            );
        }
        let mut start = 0;
        let part = |&len: &usize| {
            start += len;
            self.slice(axis, start - len, len)
        };
        sizes.iter().map(part).collect()
    }

    /// At most `parts` parts of one size along `axis`, the last maybe smaller; no copy. As `torch.chunk`, there
    /// are fewer when a size of ⌈axis / parts⌉ needs no more.
    pub fn chunk(&self, axis: usize, parts: usize) -> Result<Vec<Tensor>> {
        let size = ops::want_axis("chunk", self.shape(), axis)?;
        if parts == 0 {
            return refuse("chunk", self, "it cannot be cut into 0 parts".into());
        }
        let each = size.div_ceil(parts).max(1);
        let sizes: Vec<usize> = (0..size.max(1)).step_by(each).map(|at| each.min(size - at)).collect();
        self.split(axis, &sizes)
    }

    /// Without the axes `axes`, which must have size 1; no copy.
    pub fn squeeze(&self, axes: &[usize]) -> Result<Tensor> {
        for &axis in axes {
            let size = ops::want_axis("squeeze", self.shape(), axis)?;
            if size != 1 {
                return refuse("squeeze", self, format!("axis {axis} has size {size}, not 1"));
            }
        }
        let shape = self.shape();
        let kept = (0..shape.len()).filter(|a| !axes.contains(a)).map(|a| shape[a]);
        self.reshape(&kept.collect::<Vec<_>>())
    }

    /// With a new axis of size 1 at place `axis`; no copy.
    pub fn unsqueeze(&self, axis: usize) -> Result<Tensor> {
        let shape = self.shape();
        if axis > shape.len() || shape.len() == MAX_AXES {
            return refuse("unsqueeze", self, format!("there is no place {axis} for a new axis"));
        }
        self.reshape(&[&shape[..axis], &[1], &shape[axis..]].concat())
    }

    /// With axis `from` at place `to`, the others in their order; no copy.
    pub fn movedim(&self, from: usize, to: usize) -> Result<Tensor> {
        for axis in [from, to] {
            ops::want_axis("movedim", self.shape(), axis)?;
        }
        let mut axes: Vec<usize> = (0..self.shape().len()).filter(|&a| a != from).collect();
        axes.insert(to, from);
        self.permute(&axes)
    }

    /// Channels to places: `[N, H, W, C·r²]` becomes `[N, H·r, W·r, C]` (Shi and others, 2016). The channels
    /// count as `torch.nn.PixelShuffle` counts them: c·r² + i·r + j goes to place (i, j) of channel c.
    pub fn pixel_shuffle(&self, factor: usize) -> Result<Tensor> {
        let [n, h, w, c] = self.image("pixel_shuffle", factor)?;
        let Some(out) = factor.checked_mul(factor).filter(|&f| c % f == 0).map(|f| c / f) else {
            return refuse("pixel_shuffle", self, format!("{c} channels are no multiple of {factor}²"));
        };
        let parts = self.reshape(&[n, h, w, out, factor, factor])?.permute(&[0, 1, 4, 2, 5, 3])?;
        parts.reshape(&[n, h * factor, w * factor, out])
    }

    /// The way back of [`Tensor::pixel_shuffle`]: `[N, H·r, W·r, C]` becomes `[N, H, W, C·r²]`.
    pub fn pixel_unshuffle(&self, factor: usize) -> Result<Tensor> {
        let [n, h, w, c] = self.image("pixel_unshuffle", factor)?;
        if h % factor != 0 || w % factor != 0 {
            return refuse("pixel_unshuffle", self, format!("{h} by {w} is no multiple of {factor}"));
        }
        let (h, w) = (h / factor, w / factor);
        let parts = self.reshape(&[n, h, factor, w, factor, c])?.permute(&[0, 1, 3, 5, 2, 4])?;
        parts.reshape(&[n, h, w, c * factor * factor])
    }

    /// The sizes of images, for a factor of at least 1.
    fn image(&self, op: &'static str, factor: usize) -> Result<[usize; 4]> {
        match <[usize; 4]>::try_from(&self.shape()[..]) {
            Ok(sizes) if factor > 0 => Ok(sizes),
            _ => refuse(
                op,
                self,
                format!("it takes images [N,H,W,C] and a factor of at least 1, not {factor}"),
            ),
        }
    }
}
