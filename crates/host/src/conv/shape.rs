use crate::{Error, Result};

/// The sizes of a convolution (a cross-correlation, as in every framework) over channels-last volumes:
/// input `[batch, depth, height, width, in_c]`, weight `[out_c, kernel d, kernel h, kernel w, in_c / groups]`,
/// output `[batch, out_d, out_h, out_w, out_c]`. Images are volumes of depth 1, sequences are images of
/// height 1.
///
/// Made with [`ConvShape::new`] and the setters, so that later fields do not break callers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub struct ConvShape {
    /// Samples.
    pub batch: usize,
    /// Depth, height and width of the input.
    pub size: [usize; 3],
    /// Channels of the input.
    pub in_c: usize,
    /// Channels of the output.
    pub out_c: usize,
    /// The kernel's places along each axis.
    pub kernel: [usize; 3],
    /// Step between outputs along each axis, in pixels of the input.
    pub stride: [usize; 3],
    /// Zeros put before and after each axis.
    pub padding: [[usize; 2]; 3],
    /// Step between the kernel's places along each axis, in pixels of the input.
    pub dilation: [usize; 3],
    /// Parts that the channels of input and output are cut into; each part of the output sees its own part
    /// of the input alone.
    pub groups: usize,
    /// Outputs along each axis where these are fewer than fit: the last ones are left out.
    pub outputs: Option<[usize; 3]>,
}

impl ConvShape {
    /// A convolution of `[batch, depth, height, width, channels]` with stride and dilation 1, one group and
    /// no padding.
    pub fn new(input: [usize; 5], out_c: usize, kernel: [usize; 3]) -> Self {
        let [batch, depth, height, width, in_c] = input;
        ConvShape {
            batch,
            size: [depth, height, width],
            in_c,
            out_c,
            kernel,
            stride: [1; 3],
            padding: [[0; 2]; 3],
            dilation: [1; 3],
            groups: 1,
            outputs: None,
        }
    }

    /// A convolution of images `[batch, height, width, channels]`, as [`ConvShape::new`].
    pub fn images([batch, height, width, in_c]: [usize; 4], out_c: usize, [kh, kw]: [usize; 2]) -> Self {
        Self::new([batch, 1, height, width, in_c], out_c, [1, kh, kw])
    }

    /// The same with another stride.
    pub fn with_stride(self, stride: [usize; 3]) -> Self {
        ConvShape { stride, ..self }
    }

    /// The same with other padding: before and after each axis.
    pub fn with_padding(self, padding: [[usize; 2]; 3]) -> Self {
        ConvShape { padding, ..self }
    }

    /// The same with another dilation.
    pub fn with_dilation(self, dilation: [usize; 3]) -> Self {
        ConvShape { dilation, ..self }
    }

    /// The same in so many groups.
    pub fn with_groups(self, groups: usize) -> Self {
        ConvShape { groups, ..self }
    }

    /// The same with so many outputs along each axis, of those that fit: what a transposed convolution is the
    /// gradient of when its output is larger than its windows reach.
    pub fn with_outputs(self, outputs: [usize; 3]) -> Self {
        ConvShape { outputs: Some(outputs), ..self }
    }

    fn refuse(&self, why: &'static str) -> Error {
        Error::Convolution { shape: format!("{self:?}"), why }
    }

    fn out(&self, axis: usize) -> Result<usize> {
        let (kernel, stride, dilation) = (self.kernel[axis], self.stride[axis], self.dilation[axis]);
        if kernel == 0 || stride == 0 || dilation == 0 {
            return Err(self.refuse("kernel, stride and dilation must be at least 1"));
        }
        let reach = (kernel - 1).checked_mul(dilation).and_then(|r| r.checked_add(1));
        let padded = self.padding[axis].iter().try_fold(self.size[axis], |n, &p| n.checked_add(p));
        let fit = padded
            .zip(reach)
            .and_then(|(padded, reach)| padded.checked_sub(reach))
            .map(|room| room / stride + 1)
            .ok_or_else(|| self.refuse("the kernel is larger than the padded input"))?;
        match self.outputs {
            Some(outputs) if !(1..=fit).contains(&outputs[axis]) => {
                Err(self.refuse("more outputs are asked for than fit, or none"))
            }
            Some(outputs) => Ok(outputs[axis]),
            None => Ok(fit),
        }
    }

    /// Depth, height and width of the output; fails with [`Error::Convolution`] when the kernel does not fit,
    /// when kernel, stride or dilation is 0, or when the groups do not divide the channels.
    pub fn out_size(&self) -> Result<[usize; 3]> {
        if self.groups == 0
            || !self.in_c.is_multiple_of(self.groups)
            || !self.out_c.is_multiple_of(self.groups)
        {
            return Err(self.refuse("groups must divide the channels of input and output"));
        }
        Ok([self.out(0)?, self.out(1)?, self.out(2)?])
    }

    /// Elements of the input; [`usize::MAX`] when there are more.
    pub fn in_len(&self) -> usize {
        saturating(&[self.batch, self.size[0], self.size[1], self.size[2], self.in_c])
    }

    /// Elements of the weight; [`usize::MAX`] when there are more.
    pub fn weight_len(&self) -> usize {
        let [d, h, w] = self.kernel;
        saturating(&[self.out_c, d, h, w, self.in_c / self.groups.max(1)])
    }

    /// Elements of the output; fails as [`ConvShape::out_size`].
    pub fn out_len(&self) -> Result<usize> {
        let [d, h, w] = self.out_size()?;
        Ok(saturating(&[self.batch, d, h, w, self.out_c]))
    }

    /// Depth, height and width of the output; fails unless the slices have the sizes of the operands.
    pub(super) fn check(&self, input: usize, weight: usize, output: usize) -> Result<[usize; 3]> {
        for (operand, want, found) in [
            ("output", self.out_len()?, output),
            ("input", self.in_len(), input),
            ("weight", self.weight_len(), weight),
        ] {
            if want != found {
                return Err(Error::Operand { operand, want, found, shape: format!("{self:?}") });
            }
        }
        // Offsets inside padded inputs are computed without further checks, and so are those inside the padded
        // gradients of outputs, at most twice as far along each axis: 2³ times the 8 bytes of a number.
        let padded = |axis: usize| self.padding[axis].iter().sum::<usize>() + self.size[axis];
        let channels = self.in_c.max(self.out_c).max(1);
        let extent = [self.batch.max(1), padded(0), padded(1), padded(2), channels, 64];
        if saturating(&extent) > isize::MAX as usize {
            return Err(self.refuse("the padded input does not fit in memory"));
        }
        self.out_size()
    }

    /// The same convolution with a stride of 1 where there is one output, and a dilation of 1 where the kernel
    /// has one place.
    pub(super) fn simplest(&self, out: [usize; 3]) -> Self {
        let steps = |a: usize| if out[a] == 1 { 1 } else { self.stride[a] };
        let apart = |a: usize| if self.kernel[a] == 1 { 1 } else { self.dilation[a] };
        self.with_stride([0, 1, 2].map(steps)).with_dilation([0, 1, 2].map(apart))
    }

    /// Whether the convolution is a matrix product over pixels as they lie.
    pub(super) fn is_product(&self, out: [usize; 3]) -> bool {
        self.kernel == [1; 3] && self.padding == [[0; 2]; 3] && self.groups == 1 && out == self.size
    }

    /// Whether each channel of the output sees one channel of the input, the same one.
    pub(super) fn is_depthwise(&self) -> bool {
        self.groups > 1 && self.in_c == self.groups && self.out_c == self.groups
    }
}

fn saturating(factors: &[usize]) -> usize {
    if factors.contains(&0) { 0 } else { factors.iter().fold(1, |p, &f| p.saturating_mul(f)) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_follow_the_usual_rule_and_misfits_are_refused() {
        let s = ConvShape::images([2, 224, 224, 3], 64, [7, 7]);
        let s = s.with_stride([1, 2, 2]).with_padding([[0, 0], [3, 3], [3, 2]]);
        assert_eq!(s.out_size().unwrap(), [1, 112, 112]);
        assert_eq!((s.weight_len(), s.out_len().unwrap()), (64 * 49 * 3, 2 * 112 * 112 * 64));
        assert_eq!(s.with_dilation([1, 2, 3]).out_size().unwrap(), [1, 109, 106]);
        assert_eq!(s.with_outputs([1, 100, 1]).out_size().unwrap(), [1, 100, 1]);
        let why = |s: ConvShape| s.out_size().unwrap_err().to_string();
        assert!(why(ConvShape::images([1, 2, 9, 1], 1, [3, 3])).contains("larger than the padded input"));
        assert!(why(s.with_stride([1, 0, 1])).contains("at least 1"));
        assert!(why(s.with_groups(2)).contains("divide the channels"));
        assert!(why(s.with_groups(0)).contains("divide the channels"));
        assert!(why(s.with_outputs([1, 113, 112])).contains("more outputs"));
        assert!(s.check(s.in_len(), s.weight_len(), 1).unwrap_err().to_string().contains("output"));
    }

    #[test]
    fn padding_beyond_memory_is_refused() {
        // What conv_transpose1d makes of two taps far apart whose padding leaves little of the output.
        let far = |out_c, apart: usize| {
            let s = ConvShape::new([1, 1, 1, 1, 1], out_c, [1, 1, 2]).with_dilation([1, 1, apart]);
            s.with_padding([[0, 0], [0, 0], [apart, apart]]).with_outputs([1; 3])
        };
        let check = |s: ConvShape| s.check(s.in_len(), s.weight_len(), s.out_len().unwrap());
        let why = |s| check(s).unwrap_err().to_string();
        assert!(why(far(1, 1 << 57)).contains("does not fit in memory"));
        assert!(why(far(1, 1 << 56)).contains("does not fit in memory"));
        // The gradient has the output's channels.
        assert!(check(far(1, 1 << 50)).is_ok());
        assert!(why(far(1 << 6, 1 << 50)).contains("does not fit in memory"));
    }
}
