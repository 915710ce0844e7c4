use crate::{Error, Math, Result, Type};

/// Which of a convolution's three operands is computed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Direction {
    /// y from x and w.
    Forward,
    /// The gradient of x from w and that of y.
    Data,
    /// The gradient of w from x and that of y.
    Weights,
}

/// A convolution (cross-correlation): x is `[n, image.., c]`, w `[k, kernel.., c / groups]` and y `[n, out.., k]`,
/// dense; sums in f32. One to three spatial axes.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Conv {
    /// Samples.
    pub n: usize,
    /// Channels of x.
    pub c: usize,
    /// Channels of y.
    pub k: usize,
    /// Groups; 1 for an ordinary convolution.
    pub groups: usize,
    /// Spatial sizes of x.
    pub image: Vec<usize>,
    /// Spatial sizes of w.
    pub kernel: Vec<usize>,
    /// Spatial sizes of y.
    pub out: Vec<usize>,
    /// Steps, one an axis.
    pub stride: Vec<usize>,
    /// Zeros before the image, one number an axis.
    pub pad_before: Vec<usize>,
    /// Zeros after the image, one number an axis.
    pub pad_after: Vec<usize>,
    /// Distances of the kernel's elements, one an axis; 1 for dense.
    pub dilation: Vec<usize>,
    /// Type of x and y.
    pub activations: Type,
    /// Type of w.
    pub weights: Type,
    /// How f32 operands are multiplied.
    pub math: Math,
    /// Only algorithms that give the same bits every time, chosen without timing.
    pub exact: bool,
    /// What is computed.
    pub direction: Direction,
    /// Adds to what the result holds.
    pub accumulate: bool,
    /// Type of a bias `[k]` that is added to y, if there is one: forward only, and not with `accumulate`.
    pub bias: Option<Type>,
}

impl Conv {
    /// Fails unless every list has a number for each of the one to three spatial axes.
    pub(super) fn check(&self) -> Result<()> {
        let axes = self.image.len();
        let lists =
            [&self.kernel, &self.out, &self.stride, &self.pad_before, &self.pad_after, &self.dilation];
        let whole =
            self.groups > 0 && self.c.is_multiple_of(self.groups) && self.k.is_multiple_of(self.groups);
        let biased = self.bias.is_none() || (self.direction == Direction::Forward && !self.accumulate);
        let whole = whole && biased;
        if !(1..=3).contains(&axes) || lists.iter().any(|l| l.len() != axes) || !whole {
            return Err(Error::Invalid { what: format!("a convolution of {}", self.name(0)) });
        }
        Ok(())
    }

    /// Which of x, w and y is computed.
    pub(super) fn result(&self) -> usize {
        match self.direction {
            Direction::Data => 0,
            Direction::Weights => 1,
            Direction::Forward => 2,
        }
    }

    /// Elements of w.
    pub(super) fn weight_elements(&self) -> usize {
        self.k * self.c / self.groups.max(1) * self.kernel.iter().product::<usize>()
    }

    /// Elements of y.
    pub(super) fn output_elements(&self) -> usize {
        self.n * self.k * self.out.iter().product::<usize>()
    }

    /// Bytes of what is computed.
    pub(super) fn result_bytes(&self) -> usize {
        match self.direction {
            Direction::Data => {
                self.n * self.c * self.image.iter().product::<usize>() * self.activations.size()
            }
            Direction::Weights => self.weight_elements() * self.weights.size(),
            Direction::Forward => self.output_elements() * self.activations.size(),
        }
    }

    /// The convolution in one word, with the alignment of its operands (its logarithm).
    pub(super) fn name(&self, aligned: u32) -> String {
        let list = |l: &[usize]| l.iter().map(usize::to_string).collect::<Vec<_>>().join("x");
        let of = |t: Type| match t {
            Type::F32 => "f32",
            Type::Bf16 => "bf16",
            Type::F16 => "f16",
        };
        [
            match self.direction {
                Direction::Forward => "forward",
                Direction::Data => "data",
                Direction::Weights => "weights",
            },
            &format!("-n{}-c{}-k{}-g{}", self.n, self.c, self.k, self.groups),
            &format!("-i{}-w{}-o{}", list(&self.image), list(&self.kernel), list(&self.out)),
            &format!("-s{}-d{}", list(&self.stride), list(&self.dilation)),
            &format!("-p{}-q{}", list(&self.pad_before), list(&self.pad_after)),
            &format!("-{}-{}-a{aligned}", of(self.activations), of(self.weights)),
            if self.math == Math::Tf32 { "-tf32" } else { "" },
            if self.accumulate { "-add" } else { "" },
            &self.bias.map_or(String::new(), |b| ["-bias-", of(b)].concat()),
            if self.exact { "-exact" } else { "" },
        ]
        .concat()
    }

    /// A list of the spatial axes for cuDNN, which has no convolution of one axis: a height of 1 is put before.
    pub(super) fn axes(&self, list: &[usize], height: i64) -> Vec<i64> {
        let mut axes: Vec<i64> = list.iter().map(|v| *v as i64).collect();
        if axes.len() == 1 {
            axes.insert(0, height);
        }
        axes
    }

    /// Dimensions (samples or output channels, channels, spatial) of x, w and y for cuDNN.
    pub(super) fn dimensions(&self) -> [Vec<i64>; 3] {
        let with = |first: usize, channels: usize, spatial: &[usize]| {
            let mut all = vec![first as i64, channels as i64];
            all.extend(self.axes(spatial, 1));
            all
        };
        [
            with(self.n, self.c, &self.image),
            with(self.k, self.c / self.groups, &self.kernel),
            with(self.n, self.k, &self.out),
        ]
    }
}

/// Strides in elements of a dense tensor with its channels last, for dimensions with the channels second.
pub(super) fn channels_last(dimensions: &[i64]) -> Vec<i64> {
    let mut strides = vec![1; dimensions.len()];
    let mut step = dimensions.get(1).copied().unwrap_or(1);
    for axis in (2..dimensions.len()).rev() {
        strides[axis] = step;
        step *= dimensions[axis];
    }
    if let Some(first) = strides.first_mut() {
        *first = step;
    }
    strides
}

#[cfg(test)]
mod tests {
    use super::*;

    fn conv() -> Conv {
        let ones = vec![1];
        Conv {
            n: 2,
            c: 6,
            k: 4,
            groups: 2,
            image: vec![10],
            kernel: vec![3],
            out: vec![9],
            stride: ones.clone(),
            pad_before: ones.clone(),
            pad_after: vec![0],
            dilation: ones,
            activations: Type::Bf16,
            weights: Type::F32,
            math: Math::Tf32,
            exact: true,
            direction: Direction::Weights,
            accumulate: false,
            bias: None,
        }
    }

    #[test]
    fn one_axis_becomes_two_and_channels_come_second() {
        let c = conv();
        c.check().unwrap();
        assert_eq!(c.dimensions(), [vec![2, 6, 1, 10], vec![4, 3, 1, 3], vec![2, 4, 1, 9]]);
        assert_eq!(channels_last(&[2, 6, 5, 10]), [300, 1, 60, 6]);
        assert_eq!(c.axes(&c.pad_before, 0), [0, 1]);
    }

    #[test]
    fn names_tell_convolutions_apart() {
        let one = conv();
        assert_eq!(one.name(4), "weights-n2-c6-k4-g2-i10-w3-o9-s1-d1-p1-q0-bf16-f32-a4-tf32-exact");
        for other in [
            Conv { exact: false, ..conv() },
            Conv { accumulate: true, ..conv() },
            Conv { bias: Some(Type::F32), ..conv() },
        ] {
            assert_ne!(one.name(4), other.name(4));
        }
    }

    #[test]
    fn lists_of_other_lengths_are_refused() {
        assert!(Conv { stride: vec![1, 1], ..conv() }.check().is_err());
        assert!(Conv { groups: 4, ..conv() }.check().is_err());
        assert!(Conv { bias: Some(Type::F32), ..conv() }.check().is_err());
        assert!(Conv { groups: 0, ..conv() }.check().is_err());
    }
}
