//! Two-dimensional convolutions over channels-last images.
//!
//! Nothing is unfolded: the register tile of the matrix product reads patches straight from the image
//! (only padding is put in by copy), since in a channels-last image a patch's row is one run of
//! neighbouring numbers. What differs between the three functions is which sides of the tile the
//! pixels, channels and taps take.

mod backward;
mod bands;
mod forward;
mod pad;
mod shape;

pub use shape::ConvShape;

use crate::gemm::{Engine, Mat, MatMut, gemm, gemm_bias};
use crate::simd::Real;
use crate::{Cpu, Error, Result};

use forward::Panels;

/// The share of a vector's lanes in use, in hundredths, where `n` neighbours fill vectors.
fn filled<T: Real>(e: &Engine<T>, n: usize) -> usize {
    100 * n / n.next_multiple_of(e.lanes)
}

/// Whether rows of pixels make better vectors than the channels on the other side.
fn planar<T: Real>(e: &Engine<T>, shape: &ConvShape, out_w: usize, channels: usize) -> bool {
    let [_, across] = shape.stride;
    // Pixels as vectors cost a transpose of each tile.
    shape.in_c == 1 && across == 1 && 3 * filled(e, out_w) > 4 * filled(e, channels)
}

/// The convolution of `x` with `w`, plus `bias` (one number an output channel), into `y`.
///
/// Fails with [`Error::Convolution`] when the shape makes no sense, with [`Error::Operand`] when a slice
/// has another size than the shape says, and with [`Error::OutOfMemory`] when there is no workspace.
pub fn conv2d_forward<T: Real>(
    cpu: &Cpu,
    shape: &ConvShape,
    x: &[T],
    w: &[T],
    bias: Option<&[T]>,
    y: &mut [T],
) -> Result<()> {
    let z = shape.check(x.len(), w.len(), y.len())?;
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
    let pixels = y.len() / co;
    if shape.is_product() || z.reach == 0 {
        let (x, w) = (Mat::row_major(x, pixels, ci)?, Mat::row_major(w, co, ci)?);
        return gemm_bias(cpu, x, w.t(), bias, MatMut::row_major(y, pixels, co)?, false);
    }
    let e = Engine::new(cpu);
    if planar(&e, shape, z.out_w, co) {
        return forward::forward_planar(cpu, &e, shape, &z, x, w, bias, y);
    }
    let panels = Panels::new(cpu, &e, w, co, z.reach)?;
    forward::forward(cpu, &e, shape, &z, x, &panels, bias, y, false)
}

/// The gradient of the weight from the input `x` and the output's gradient `dy`, written or added
/// (`accumulate`) to `dw`; errors as [`conv2d_forward`].
pub fn conv2d_weight_gradient<T: Real>(
    cpu: &Cpu,
    shape: &ConvShape,
    x: &[T],
    dy: &[T],
    dw: &mut [T],
    accumulate: bool,
) -> Result<()> {
    let z = shape.check(x.len(), dw.len(), dy.len())?;
    if dw.is_empty() {
        return Ok(());
    }
    if dy.is_empty() {
        if !accumulate {
            dw.fill(T::ZERO);
        }
        return Ok(());
    }
    let e = Engine::new(cpu);
    if planar(&e, shape, z.out_w, z.run) {
        backward::weight_planar(cpu, &e, shape, &z, x, dy, dw, accumulate)
    } else {
        backward::weight(cpu, &e, shape, &z, x, dy, dw, accumulate)
    }
}

/// The gradient of the input from the weight and the output's gradient `dy`, written or added
/// (`accumulate`) to `dx`; errors as [`conv2d_forward`].
pub fn conv2d_input_gradient<T: Real>(
    cpu: &Cpu,
    shape: &ConvShape,
    w: &[T],
    dy: &[T],
    dx: &mut [T],
    accumulate: bool,
) -> Result<()> {
    let z = shape.check(dx.len(), w.len(), dy.len())?;
    if dx.is_empty() {
        return Ok(());
    }
    if dy.is_empty() {
        if !accumulate {
            dx.fill(T::ZERO);
        }
        return Ok(());
    }
    let (ci, co, [kernel_h, kernel_w]) = (shape.in_c, shape.out_c, shape.kernel);
    if shape.is_product() {
        let pixels = dx.len() / ci;
        let (dy, w) = (Mat::row_major(dy, pixels, co)?, Mat::row_major(w, co, ci)?);
        return gemm(cpu, dy, w, MatMut::row_major(dx, pixels, ci)?, accumulate);
    }
    let e = Engine::new(cpu);
    // With stride 1 the gradient is a convolution of dy with the reversed weight, which keeps its sums
    // in registers; adding up products in memory instead fills the vectors better when channels are few.
    let fits = shape.padding[0] < kernel_h && shape.padding[1] < kernel_w;
    let adding = filled(&e, z.run) * co / (co + 6);
    if shape.stride == [1, 1] && fits && filled(&e, ci) > adding {
        let back = ConvShape {
            in_h: z.out_h,
            in_w: z.out_w,
            in_c: co,
            out_c: ci,
            padding: [kernel_h - 1 - shape.padding[0], kernel_w - 1 - shape.padding[1]],
            ..*shape
        };
        let z = back.check(dy.len(), w.len(), dx.len())?;
        let panels = Panels::reversed(cpu, &e, w, shape)?;
        return forward::forward(cpu, &e, &back, &z, dy, &panels, None, dx, accumulate);
    }
    backward::input(cpu, &e, shape, &z, w, dy, dx, accumulate)
}
