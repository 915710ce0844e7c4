//! Convolutions on a GPU from their definition, where cuDNN has no algorithm: slow, and for any windows.

use phalanx_gpu::{Args, Context, Grid, Source};
use phalanx_host::ConvShape;

use super::Part;
use crate::ops::cuda::{THREADS, code, launch, source};
use crate::{Result, View, ViewMut};

pub(crate) static SOURCE: Source = source!("conv direct", "direct.cu");

/// The most blocks along a grid's first axis.
const MOST: usize = i32::MAX as usize;

/// As the `Windows` of kernels.
fn windows(s: &ConvShape, out: [usize; 3]) -> [i32; 22] {
    let lists = [s.size, s.kernel, out, s.stride, s.padding.map(|[before, _]| before), s.dilation];
    let mut all = [0; 22];
    let numbers = [s.batch, s.in_c, s.out_c, s.groups].into_iter().chain(lists.into_iter().flatten());
    all.iter_mut().zip(numbers).for_each(|(to, n)| *to = n as i32);
    all
}

/// `to (+)= ` the part of the convolution that `a` and `b` give, in the order of [`Part::from`]; they are of one type, and
/// all sizes have been checked to be counted by kernels.
pub(super) fn compute(
    gpu: &Context,
    s: &ConvShape,
    part: Part,
    [a, b]: [&View; 2],
    to: &mut ViewMut,
    add: bool,
) -> Result<()> {
    let windows = windows(s, s.out_size()?);
    let args = Args::new().ptr(a.ptr()?).ptr(b.ptr()?).i32(code(a.dtype)).ptr(to.ptr()?);
    let args = args.i32(code(to.dtype)).i32(i32::from(add)).pod(windows);
    let n = to.shape.numel();
    match part {
        Part::Output => launch(gpu, &SOURCE, "direct_output", n, args),
        Part::Input => launch(gpu, &SOURCE, "direct_input", n, args),
        Part::Weight => {
            let grid = Grid { blocks: [n.min(MOST) as u32, 1, 1], threads: THREADS, shared: 0 };
            Ok(gpu.launch(&SOURCE, "direct_weight", grid, args)?)
        }
    }
}
