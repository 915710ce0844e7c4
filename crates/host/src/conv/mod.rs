//! Convolutions over channels-last sequences, images and volumes.
//!
//! Nothing is unfolded: the register tile of the matrix product reads patches straight from the image
//! (only padding is put in by copy), since in a channels-last image a patch's row is one run of
//! neighbouring numbers. What differs between the three functions is which sides of the tile the
//! pixels, channels and taps take. A volume is convolved plane by plane of the kernel, in their order.

mod bands;
mod depthwise;
mod forward;
mod input;
mod pad;
mod shape;
mod weight;
mod windows;

pub use shape::ConvShape;

use crate::gemm::{Engine, Mat, MatMut, Shared, gemm, gemm_bias};
use crate::simd::Real;
use crate::{Cpu, Error, Result};

use forward::{Panels, Weight};
use weight::Gradient;
use windows::{Places, Windows, flat, slabs, windows};

/// The share of a vector's lanes in use, in hundredths, where `n` neighbours fill vectors.
fn filled<T: Real>(e: &Engine<T>, n: usize) -> usize {
    100 * n / n.next_multiple_of(e.lanes)
}

/// Whether rows of pixels make better vectors than the channels on the other side.
fn planar<T: Real>(e: &Engine<T>, w: &Windows, channels: usize) -> bool {
    // Pixels as vectors cost a transpose of each tile.
    w.channels == 1 && w.stride[1] == 1 && 3 * filled(e, w.out[1]) > 4 * filled(e, channels)
}

/// Fills rows of channels with `bias`, or zeros; with `accumulate`, adds it.
fn start<T: Real>(y: &mut [T], bias: Option<&[T]>, accumulate: bool) {
    match (bias, accumulate) {
        (Some(b), true) => {
            y.chunks_exact_mut(b.len()).for_each(|row| row.iter_mut().zip(b).for_each(|(y, &b)| *y += b));
        }
        (Some(b), false) => y.chunks_exact_mut(b.len()).for_each(|row| row.copy_from_slice(b)),
        (None, true) => {}
        (None, false) => y.fill(T::ZERO),
    }
}

/// The convolution of `x` with `w`, plus `bias` (one number an output channel), written or added
/// (`accumulate`) to `y`.
///
/// Fails with [`Error::Convolution`] when the shape makes no sense, with [`Error::Operand`] when a slice
/// has another size than the shape says, and with [`Error::OutOfMemory`] when there is no workspace.
pub fn conv_forward<T: Real>(
    cpu: &Cpu,
    shape: &ConvShape,
    x: &[T],
    w: &[T],
    bias: Option<&[T]>,
    y: &mut [T],
    accumulate: bool,
) -> Result<()> {
    let out = shape.check(x.len(), w.len(), y.len())?;
    let s = shape.simplest(out);
    if let Some(b) = bias
        && b.len() != s.out_c
    {
        let found = b.len();
        return Err(Error::Operand { operand: "bias", want: s.out_c, found, shape: format!("{shape:?}") });
    }
    if y.is_empty() {
        return Ok(());
    }
    if s.is_product(out) && s.in_c > 0 {
        let pixels = y.len() / s.out_c;
        let (x, w) = (Mat::row_major(x, pixels, s.in_c)?, Mat::row_major(w, s.out_c, s.in_c)?);
        return gemm_bias(cpu, x, w.t(), bias, MatMut::row_major(y, pixels, s.out_c)?, accumulate);
    }
    // Where planes add up, or nothing does, the bias comes first.
    let direct = flat(&s, out) && s.in_c > 0;
    if !direct {
        start(y, bias, accumulate);
    }
    if s.in_c == 0 {
        return Ok(());
    }
    let (e, add) = (Engine::new(cpu), accumulate || !direct);
    let bias = bias.filter(|_| direct);
    let y = Shared::new(y);
    for slab in slabs(&s, out) {
        let (windows, w) = (windows(&s, out, &slab), plane(&s, w, slab.tap));
        let x = &x[slab.input * s.size[1] * s.size[2] * s.in_c..];
        let to = Places::dense(slab.output * out[1] * out[2] * s.out_c, windows.out, s.out_c);
        if s.is_depthwise() {
            let packed = depthwise::Packed::new(cpu, &e, &w, 0..windows.numbers())?;
            depthwise::forward(cpu, &windows, x, &packed, bias, y, &to, add)?;
        } else if planar(&e, &windows, s.out_c) {
            forward::forward_planar(cpu, &e, &windows, x, &w, bias, y, &to, add)?;
        } else {
            let panels = Panels::new(cpu, &e, &w, &windows)?;
            forward::forward(cpu, &e, &windows, x, &panels, bias, y, &to, add)?;
        }
    }
    Ok(())
}

/// A weight's numbers of a plane of the kernel, from the first one on.
fn plane<'a, T>(s: &ConvShape, w: &'a [T], tap: usize) -> Weight<'a, T> {
    let [_, h, across] = s.kernel;
    let numbers = h * across * s.in_c / s.groups;
    Weight { data: &w[tap * numbers..], row: s.kernel[0] * numbers, channels: s.out_c }
}

/// The gradient of the weight from the input `x` and the output's gradient `dy`, written or added
/// (`accumulate`) to `dw`; errors as [`conv_forward`].
pub fn conv_weight_gradient<T: Real>(
    cpu: &Cpu,
    shape: &ConvShape,
    x: &[T],
    dy: &[T],
    dw: &mut [T],
    accumulate: bool,
) -> Result<()> {
    let out = shape.check(x.len(), dw.len(), dy.len())?;
    let s = shape.simplest(out);
    if dw.is_empty() {
        return Ok(());
    }
    if s.is_product(out) && !dy.is_empty() {
        // The product packs both operands: their columns lie a page apart.
        let pixels = dy.len() / s.out_c;
        let (x, dy) = (Mat::row_major(x, pixels, s.in_c)?, Mat::row_major(dy, pixels, s.out_c)?);
        return gemm(cpu, dy.t(), x, MatMut::row_major(dw, s.out_c, s.in_c)?, accumulate);
    }
    let add = accumulate || !flat(&s, out) || dy.is_empty();
    if add && !accumulate {
        dw.fill(T::ZERO);
    }
    if dy.is_empty() {
        return Ok(());
    }
    let e = Engine::new(cpu);
    let numbers = s.kernel[1] * s.kernel[2] * s.in_c / s.groups;
    let data = Shared::new(dw);
    for slab in slabs(&s, out) {
        let windows = windows(&s, out, &slab);
        let x = &x[slab.input * s.size[1] * s.size[2] * s.in_c..];
        let dy = (dy, &Places::dense(slab.output * out[1] * out[2] * s.out_c, windows.out, s.out_c));
        let at = data.from(slab.tap * numbers);
        let dw = Gradient { data: at, row: s.kernel[0] * numbers, channels: s.out_c };
        if s.is_depthwise() {
            depthwise::weight(cpu, &windows, x, dy, dw, add)?;
        } else if planar(&e, &windows, windows.run()) {
            weight::weight_planar(cpu, &e, &windows, x, dy, dw, add)?;
        } else {
            weight::weight(cpu, &e, &windows, x, dy, dw, add)?;
        }
    }
    Ok(())
}

/// The gradient of the input from the weight and the output's gradient `dy`, written or added
/// (`accumulate`) to `dx`; errors as [`conv_forward`].
pub fn conv_input_gradient<T: Real>(
    cpu: &Cpu,
    shape: &ConvShape,
    w: &[T],
    dy: &[T],
    dx: &mut [T],
    accumulate: bool,
) -> Result<()> {
    let out = shape.check(dx.len(), w.len(), dy.len())?;
    let s = shape.simplest(out);
    if dx.is_empty() {
        return Ok(());
    }
    if s.is_product(out) && !dy.is_empty() {
        let pixels = dx.len() / s.in_c;
        let (dy, w) = (Mat::row_major(dy, pixels, s.out_c)?, Mat::row_major(w, s.out_c, s.in_c)?);
        return gemm(cpu, dy, w, MatMut::row_major(dx, pixels, s.in_c)?, accumulate);
    }
    let add = accumulate || !flat(&s, out) || dy.is_empty();
    if add && !accumulate {
        dx.fill(T::ZERO);
    }
    if dy.is_empty() {
        return Ok(());
    }
    let e = Engine::new(cpu);
    let data = Shared::new(dx);
    for slab in slabs(&s, out) {
        let planes = input::Planes {
            shape: &s,
            slab: &slab,
            out: [out[1], out[2]],
            weight: &plane(&s, w, slab.tap),
            dy: &dy[slab.output * out[1] * out[2] * s.out_c..],
            dx: data.from(slab.input * s.size[1] * s.size[2] * s.in_c),
        };
        input::input(cpu, &e, &planes, add)?;
    }
    Ok(())
}
