//! Two-dimensional convolutions over channels-last images.

mod shape;

pub use shape::ConvShape;

use crate::simd::Real;
use crate::{Cpu, Error, Result};

/// Calls `f(output pixel, input pixel, kernel tap)` for every pair that meets.
fn each(s: &ConvShape, mut f: impl FnMut(usize, usize, usize)) -> Result<()> {
    let (oh, ow) = (s.out_h()?, s.out_w()?);
    for n in 0..s.batch {
        for (y, x) in (0..oh).flat_map(|y| (0..ow).map(move |x| (y, x))) {
            for (ky, kx) in (0..s.kernel[0]).flat_map(|a| (0..s.kernel[1]).map(move |b| (a, b))) {
                let iy = (y * s.stride[0] + ky).wrapping_sub(s.padding[0]);
                let ix = (x * s.stride[1] + kx).wrapping_sub(s.padding[1]);
                if iy < s.in_h && ix < s.in_w {
                    f((n * oh + y) * ow + x, (n * s.in_h + iy) * s.in_w + ix, ky * s.kernel[1] + kx);
                }
            }
        }
    }
    Ok(())
}

/// The convolution of `x` with `w`, plus `bias` (one number an output channel), into `y`.
///
/// Fails with [`Error::Convolution`] when the shape makes no sense and with [`Error::Operand`] when a
/// slice has another size than the shape says.
pub fn conv2d_forward<T: Real>(
    _cpu: &Cpu,
    shape: &ConvShape,
    x: &[T],
    w: &[T],
    bias: Option<&[T]>,
    y: &mut [T],
) -> Result<()> {
    shape.check(x.len(), w.len(), y.len())?;
    let (ci, co) = (shape.in_c, shape.out_c);
    if let Some(b) = bias
        && b.len() != co
    {
        let found = b.len();
        return Err(Error::Operand { operand: "bias", want: co, found, shape: format!("{shape:?}") });
    }
    if y.is_empty() {
        return Ok(());
    }
    for pixel in y.chunks_exact_mut(co) {
        match bias {
            Some(b) => pixel.copy_from_slice(b),
            None => pixel.fill(T::ZERO),
        }
    }
    let taps = shape.kernel[0] * shape.kernel[1];
    each(shape, |o, i, tap| {
        for k in 0..co {
            for c in 0..ci {
                y[o * co + k] += x[i * ci + c] * w[(k * taps + tap) * ci + c];
            }
        }
    })
}

/// The gradient of the weight from the input `x` and the output's gradient `dy`, written or added
/// (`accumulate`) to `dw`; errors as [`conv2d_forward`].
pub fn conv2d_weight_gradient<T: Real>(
    _cpu: &Cpu,
    shape: &ConvShape,
    x: &[T],
    dy: &[T],
    dw: &mut [T],
    accumulate: bool,
) -> Result<()> {
    shape.check(x.len(), dw.len(), dy.len())?;
    if !accumulate {
        dw.fill(T::ZERO);
    }
    let (ci, co) = (shape.in_c, shape.out_c);
    let taps = shape.kernel[0] * shape.kernel[1];
    each(shape, |o, i, tap| {
        for k in 0..co {
            for c in 0..ci {
                dw[(k * taps + tap) * ci + c] += dy[o * co + k] * x[i * ci + c];
            }
        }
    })
}

/// The gradient of the input from the weight and the output's gradient `dy`, written or added
/// (`accumulate`) to `dx`; errors as [`conv2d_forward`].
pub fn conv2d_input_gradient<T: Real>(
    _cpu: &Cpu,
    shape: &ConvShape,
    w: &[T],
    dy: &[T],
    dx: &mut [T],
    accumulate: bool,
) -> Result<()> {
    shape.check(dx.len(), w.len(), dy.len())?;
    if !accumulate {
        dx.fill(T::ZERO);
    }
    let (ci, co) = (shape.in_c, shape.out_c);
    let taps = shape.kernel[0] * shape.kernel[1];
    each(shape, |o, i, tap| {
        for k in 0..co {
            for c in 0..ci {
                dx[i * ci + c] += w[(k * taps + tap) * ci + c] * dy[o * co + k];
            }
        }
    })
}
