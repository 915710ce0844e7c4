//! How the windows of a convolution lie.

use phalanx_host::ConvShape;

use crate::{Error, Result, Shape};

/// How the windows of a convolution lie on the 1 to 3 axes between samples and channels. Lists have a number
/// for each of these axes, or one for all; the rules are those of `torch.nn.functional.conv2d` and
/// `conv_transpose2d`, whose padding is the same before and after.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Conv {
    stride: Shape,
    padding: Padding,
    dilation: Shape,
    output_padding: Shape,
    groups: usize,
}

/// Zeros around an axis.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Padding {
    /// Before and after.
    Each(Shape, Shape),
    /// As many as make the output as large as the input.
    Same,
}

impl Default for Conv {
    fn default() -> Self {
        Conv::new()
    }
}

impl Conv {
    /// Stride and dilation 1, no padding, one group.
    pub fn new() -> Self {
        let (one, none) = (Shape::new(&[1]), Shape::new(&[0]));
        Conv {
            stride: one,
            padding: Padding::Each(none, none),
            dilation: one,
            output_padding: none,
            groups: 1,
        }
    }

    /// Steps from window to window.
    pub fn stride(self, stride: &[usize]) -> Self {
        Conv { stride: Shape::new(stride), ..self }
    }

    /// Zeros before and after each axis, as many on either side.
    pub fn padding(self, padding: &[usize]) -> Self {
        Conv { padding: Padding::Each(Shape::new(padding), Shape::new(padding)), ..self }
    }

    /// Zeros before and after each axis.
    pub fn padding_each(self, padding: &[[usize; 2]]) -> Self {
        let side = |i: usize| Shape::new(&padding.iter().map(|p| p[i]).collect::<Vec<_>>());
        Conv { padding: Padding::Each(side(0), side(1)), ..self }
    }

    /// As many zeros as make the output as large as the input, an odd one at the end
    /// (`padding="same"`); with a stride of 1 only.
    pub fn same(self) -> Self {
        Conv { padding: Padding::Same, ..self }
    }

    /// Steps from place to place of the kernel.
    pub fn dilation(self, dilation: &[usize]) -> Self {
        Conv { dilation: Shape::new(dilation), ..self }
    }

    /// Parts that the channels are cut into; each part of the output sees its own part of the input alone.
    pub fn groups(self, groups: usize) -> Self {
        Conv { groups, ..self }
    }

    /// What a transposed convolution's output has at its end beyond what its windows reach: several sizes
    /// are convolved to one, and this tells which of them it is. Smaller than stride or dilation.
    pub fn output_padding(self, more: &[usize]) -> Self {
        Conv { output_padding: Shape::new(more), ..self }
    }

    /// The number of groups.
    pub fn group_count(&self) -> usize {
        self.groups
    }

    /// The sizes of a convolution's output, for an input of `sizes` (without samples and channels). Fails as
    /// the op does when the windows do not fit.
    pub fn output(&self, sizes: &[usize], kernel: &[usize]) -> Result<Shape> {
        check_rank("conv", sizes, kernel)?;
        let fail = |why| Error::Invalid { op: "conv", shape: sizes.into(), why };
        let s = self.sizes([1, self.groups, self.groups], sizes, kernel).map_err(fail)?;
        let out = s.out_size().map_err(|e| fail(e.to_string()))?;
        Ok(Shape::new(&out[3 - sizes.len()..]))
    }

    /// The sizes of a transposed convolution's output, as [`Conv::output`].
    pub fn transposed_output(&self, sizes: &[usize], kernel: &[usize]) -> Result<Shape> {
        check_rank("conv_transpose", sizes, kernel)?;
        let s = self.transposed_sizes([1, self.groups, self.groups], sizes, kernel);
        let s = s.map_err(|why| Error::Invalid { op: "conv_transpose", shape: sizes.into(), why })?;
        Ok(Shape::new(&s.size[3 - sizes.len()..]))
    }

    /// Each list's number on each of three axes, of which the first may be missing.
    fn along(&self, list: Shape, rank: usize, missing: usize) -> std::result::Result<[usize; 3], String> {
        let mut all = [missing; 3];
        match list.len() {
            1 => all[3 - rank..].fill(list[0]),
            n if n == rank => all[3 - rank..].copy_from_slice(&list),
            _ => return Err(format!("{list} has neither one number nor one for each of {rank} axes")),
        }
        Ok(all)
    }

    /// The windows of a kernel, without sizes yet.
    fn windows(
        &self,
        [batch, in_c, out_c]: [usize; 3],
        kernel: &[usize],
    ) -> std::result::Result<ConvShape, String> {
        let rank = kernel.len();
        let k = self.along(kernel.into(), rank, 1)?;
        let (stride, dilation) = (self.along(self.stride, rank, 1)?, self.along(self.dilation, rank, 1)?);
        if [k, stride, dilation].as_flattened().contains(&0) {
            return Err("kernel, stride and dilation must be at least 1".into());
        }
        if self.groups == 0 || !in_c.is_multiple_of(self.groups) || !out_c.is_multiple_of(self.groups) {
            let groups = self.groups;
            return Err(format!("{in_c} and {out_c} channels cannot be shared among {groups} groups"));
        }
        let padding = match self.padding {
            Padding::Each(before, after) => {
                let (before, after) = (self.along(before, rank, 0)?, self.along(after, rank, 0)?);
                [0, 1, 2].map(|a| [before[a], after[a]])
            }
            Padding::Same if stride != [1; 3] => return Err("padding \"same\" takes a stride of 1".into()),
            Padding::Same => [0, 1, 2].map(|a| {
                let all = (k[a] - 1).saturating_mul(dilation[a]);
                [all / 2, all - all / 2]
            }),
        };
        Ok(ConvShape::new([batch, 1, 1, 1, in_c], out_c, k)
            .with_stride(stride)
            .with_padding(padding)
            .with_dilation(dilation)
            .with_groups(self.groups))
    }

    /// All sizes of a convolution of `[batch, in, out]` samples and channels over `sizes`.
    pub(super) fn sizes(
        &self,
        channels: [usize; 3],
        sizes: &[usize],
        kernel: &[usize],
    ) -> std::result::Result<ConvShape, String> {
        let mut s = self.windows(channels, kernel)?;
        s.size = self.along(sizes.into(), kernel.len(), 1)?;
        for a in 0..3 {
            let (size, [before, after], kernel) = (s.size[a], s.padding[a], s.kernel[a]);
            let reach = (kernel - 1).checked_mul(s.dilation[a]).and_then(|r| r.checked_add(1));
            let room = size.checked_add(before).and_then(|n| n.checked_add(after));
            if room.zip(reach).is_none_or(|(room, reach)| reach > room) {
                let dilation = s.dilation[a];
                return Err(format!(
                    "a kernel of {kernel} places {dilation} apart is larger than {size} padded by {before} and {after}"
                ));
            }
        }
        Ok(s)
    }

    /// All sizes of the convolution whose input's gradient a transposed convolution of `sizes` is;
    /// `[batch, in, out]` are those of the convolution.
    pub(super) fn transposed_sizes(
        &self,
        channels: [usize; 3],
        sizes: &[usize],
        kernel: &[usize],
    ) -> std::result::Result<ConvShape, String> {
        let mut s = self.windows(channels, kernel)?;
        let out = self.along(sizes.into(), kernel.len(), 1)?;
        let more = self.along(self.output_padding, kernel.len(), 0)?;
        for a in 0..3 {
            let (n, more, [before, after]) = (out[a], more[a], s.padding[a]);
            if more >= s.stride[a].max(s.dilation[a]) && more > 0 {
                return Err(format!(
                    "its output padding {more} must be smaller than its stride or its dilation"
                ));
            }
            if n == 0 {
                return Err("there is nothing to be spread".into());
            }
            let reach = (n - 1).checked_mul(s.stride[a]).zip((s.kernel[a] - 1).checked_mul(s.dilation[a]));
            let reach = reach.and_then(|(r, k)| r.checked_add(k)?.checked_add(1 + more));
            let size = reach.and_then(|r| r.checked_sub(before)?.checked_sub(after));
            s.size[a] = size.filter(|&n| n > 0).ok_or_else(|| {
                format!("its padding of {before} and {after} leaves nothing of the output of {n} windows")
            })?;
        }
        Ok(s.with_outputs(out))
    }
}

/// Checks that sizes and kernel have one number for each of 1 to 3 axes.
fn check_rank(op: &'static str, sizes: &[usize], kernel: &[usize]) -> Result<()> {
    if (1..=3).contains(&kernel.len()) && sizes.len() == kernel.len() {
        return Ok(());
    }
    let why = format!("sizes {sizes:?} and kernel {kernel:?} have not one number for each of 1 to 3 axes");
    Err(Error::Invalid { op, shape: sizes.into(), why })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_those_of_pytorch() {
        let conv = Conv::new().stride(&[2]).padding(&[3, 2]).dilation(&[2, 1]);
        assert_eq!(conv.output(&[20, 9], &[4, 3]).unwrap(), [10, 6].into());
        assert_eq!(conv.groups(3).output(&[20, 9], &[4, 3]).unwrap(), [10, 6].into());
        assert_eq!(conv.transposed_output(&[10, 6], &[4, 3]).unwrap(), [19, 9].into());
        let more = conv.output_padding(&[1, 0]);
        assert_eq!(more.transposed_output(&[10, 6], &[4, 3]).unwrap(), [20, 9].into());
        assert_eq!(Conv::new().same().dilation(&[3]).output(&[5], &[4]).unwrap(), [5].into());
        let uneven = Conv::new().padding_each(&[[0, 1], [2, 0]]);
        assert_eq!(uneven.output(&[5, 5], &[2, 3]).unwrap(), [5, 5].into());
        let why = |r: Result<Shape>| r.unwrap_err().to_string();
        assert!(why(Conv::new().output(&[5], &[6])).contains("a kernel of 6"));
        assert!(why(Conv::new().same().stride(&[2]).output(&[5], &[3])).contains("stride of 1"));
        assert!(why(Conv::new().stride(&[1, 1]).output(&[5], &[3])).contains("neither one number"));
        assert!(why(Conv::new().output_padding(&[1]).transposed_output(&[5], &[3])).contains("smaller than"));
        assert!(why(Conv::new().padding(&[9]).transposed_output(&[5], &[3])).contains("leaves nothing"));
        let lists: [(&[usize], &[usize]); 4] =
            [(&[], &[]), (&[5], &[3, 3]), (&[5, 5], &[3]), (&[5; 4], &[3; 4])];
        for (sizes, kernel) in lists {
            assert!(why(Conv::new().output(sizes, kernel)).contains("1 to 3 axes"));
            assert!(why(Conv::new().transposed_output(sizes, kernel)).contains("1 to 3 axes"));
        }
    }
}
