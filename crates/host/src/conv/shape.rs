use crate::{Error, Result};

/// The sizes of a two-dimensional convolution (a cross-correlation, as in every framework) over
/// channels-last images: input `[batch, in_h, in_w, in_c]`, weight `[out_c, kernel h, kernel w, in_c]`,
/// output `[batch, out_h, out_w, out_c]`.
///
/// Made with [`ConvShape::new`] and the setters, so that later fields do not break callers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub struct ConvShape {
    /// Images.
    pub batch: usize,
    /// Rows of an input image.
    pub in_h: usize,
    /// Columns of an input image.
    pub in_w: usize,
    /// Channels of an input image.
    pub in_c: usize,
    /// Channels of an output image.
    pub out_c: usize,
    /// Kernel height and width.
    pub kernel: [usize; 2],
    /// Step between output rows and columns, in input pixels.
    pub stride: [usize; 2],
    /// Zeros put on either side of each row (second) and column (first).
    pub padding: [usize; 2],
}

impl ConvShape {
    /// A convolution of `[batch, height, width, channels]` images with stride 1 and no padding.
    pub fn new(input: [usize; 4], out_c: usize, kernel: [usize; 2]) -> Self {
        let [batch, in_h, in_w, in_c] = input;
        ConvShape { batch, in_h, in_w, in_c, out_c, kernel, stride: [1, 1], padding: [0, 0] }
    }

    /// The same with another stride (height, width).
    pub fn with_stride(self, stride: [usize; 2]) -> Self {
        ConvShape { stride, ..self }
    }

    /// The same with another padding (height, width).
    pub fn with_padding(self, padding: [usize; 2]) -> Self {
        ConvShape { padding, ..self }
    }

    fn refuse(&self, why: &'static str) -> Error {
        Error::Convolution { shape: format!("{self:?}"), why }
    }

    fn out(&self, axis: usize) -> Result<usize> {
        let size = [self.in_h, self.in_w][axis];
        let (kernel, stride) = (self.kernel[axis], self.stride[axis]);
        if kernel == 0 || stride == 0 {
            return Err(self.refuse("kernel and stride must be at least 1"));
        }
        self.padding[axis]
            .checked_mul(2)
            .and_then(|p| p.checked_add(size))
            .and_then(|padded| padded.checked_sub(kernel))
            .map(|room| room / stride + 1)
            .ok_or_else(|| self.refuse("the kernel is larger than the padded image"))
    }

    /// Rows of an output image; fails with [`Error::Convolution`] when the kernel does not fit, or
    /// kernel or stride is 0.
    pub fn out_h(&self) -> Result<usize> {
        self.out(0)
    }

    /// Columns of an output image; fails as [`ConvShape::out_h`].
    pub fn out_w(&self) -> Result<usize> {
        self.out(1)
    }

    /// Elements of the input; [`usize::MAX`] when there are more.
    pub fn in_len(&self) -> usize {
        saturating(&[self.batch, self.in_h, self.in_w, self.in_c])
    }

    /// Elements of the weight; [`usize::MAX`] when there are more.
    pub fn weight_len(&self) -> usize {
        saturating(&[self.out_c, self.kernel[0], self.kernel[1], self.in_c])
    }

    /// Elements of the output; fails as [`ConvShape::out_h`].
    pub fn out_len(&self) -> Result<usize> {
        Ok(saturating(&[self.batch, self.out_h()?, self.out_w()?, self.out_c]))
    }

    /// Whether the convolution is a matrix product over pixels as they lie.
    pub(super) fn is_product(&self) -> bool {
        self.kernel == [1, 1] && self.stride == [1, 1] && self.padding == [0, 0]
    }

    /// The sizes that follow; fails unless the slices have the sizes of the operands.
    pub(super) fn check(&self, input: usize, weight: usize, output: usize) -> Result<Sizes> {
        for (operand, want, found) in [
            ("input", self.in_len(), input),
            ("weight", self.weight_len(), weight),
            ("output", self.out_len()?, output),
        ] {
            if want != found {
                return Err(Error::Operand { operand, want, found, shape: format!("{self:?}") });
            }
        }
        // Offsets inside padded images are computed without further checks.
        let padded = [self.in_h + 2 * self.padding[0], self.in_w + 2 * self.padding[1]];
        if saturating(&[self.batch.max(1), padded[0], padded[1], self.in_c.max(1), 16]) > isize::MAX as usize
        {
            return Err(self.refuse("the padded input does not fit in memory"));
        }
        let run = self.kernel[1] * self.in_c;
        Ok(Sizes {
            out_h: self.out_h()?,
            out_w: self.out_w()?,
            run,
            reach: self.kernel[0] * run,
            pad_h: padded[0],
            pad_row: padded[1] * self.in_c,
            padded: self.padding != [0, 0],
        })
    }
}

/// What the kernels compute with besides the shape, in elements.
#[derive(Debug, Clone, Copy)]
pub(super) struct Sizes {
    pub out_h: usize,
    pub out_w: usize,
    /// Neighbouring numbers that an output pixel takes from one input row.
    pub run: usize,
    /// All numbers that an output pixel takes.
    pub reach: usize,
    /// Rows of a padded image.
    pub pad_h: usize,
    /// A row of a padded image.
    pub pad_row: usize,
    /// Whether there is padding at all.
    pub padded: bool,
}

fn saturating(factors: &[usize]) -> usize {
    if factors.contains(&0) { 0 } else { factors.iter().fold(1, |p, &f| p.saturating_mul(f)) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_follow_the_usual_rule_and_misfits_are_refused() {
        let s = ConvShape::new([2, 224, 224, 3], 64, [7, 7]).with_stride([2, 2]).with_padding([3, 3]);
        assert_eq!((s.out_h().unwrap(), s.out_w().unwrap()), (112, 112));
        assert_eq!((s.weight_len(), s.out_len().unwrap()), (64 * 49 * 3, 2 * 112 * 112 * 64));
        let small = ConvShape::new([1, 2, 9, 1], 1, [3, 3]);
        assert!(small.out_h().unwrap_err().to_string().contains("larger than the padded image"));
        assert_eq!(small.out_w().unwrap(), 7);
        assert!(small.with_stride([0, 1]).out_h().is_err());
        assert!(s.check(s.in_len(), s.weight_len(), 1).unwrap_err().to_string().contains("output"));
    }
}
