//! Pooling over channels-last sequences, images and volumes.

mod cpu;
pub(super) mod cuda;
mod fractional;
mod windows;

use phalanx_host::DType;

pub use fractional::FractionalPool;
pub use windows::Pool;
use windows::{Axis, Tiling};

use super::boxes::{BoxSum, Boxes, Taps, want_image};
use crate::op::{CudaOp, Exec, Meta, Op, Plan, Saved};
use crate::sink::GradSink;
use crate::tape::{apply, apply_one};
use crate::{Error, Result, Shape, Spec, Tensor, View, ViewMut, ops};

/// The most places of a window: they are counted in single precision too.
const MOST: usize = 1 << 22;

/// An op's name for 1, 2 and 3 axes.
type Names = [&'static str; 3];

fn of_rank(names: Names, rank: usize) -> &'static str {
    names[rank.clamp(1, names.len()) - 1]
}

/// The largest number of each window and, where they are wanted, the places of these numbers.
#[derive(Debug, Clone, Copy)]
struct MaxPool {
    tiling: Tiling,
    places: bool,
}

impl MaxPool {
    fn new(tiling: Tiling) -> Self {
        MaxPool { tiling, places: false }
    }

    fn windows(&self, x: Shape) -> Result<cpu::Windows> {
        let mut axes = self.tiling.axes(self.name(), x, &x[1..x.len() - 1])?.into_iter().rev();
        let [inner, middle, outer] = [(); 3].map(|()| axes.next().unwrap_or_else(Axis::single));
        let windows = cpu::Windows { axes: [outer, middle, inner], channels: x[x.len() - 1] };
        let places = windows.axes.iter().try_fold(1usize, |n, a| n.checked_mul(a.kernel));
        if places.is_none_or(|n| n > MOST) {
            let why = format!("a window has more than {MOST} places");
            return Err(Error::Invalid { op: self.name(), shape: x, why });
        }
        Ok(windows)
    }
}

/// The type of saved places in windows of so many.
fn type_of(places: usize) -> DType {
    if places <= 256 { DType::U8 } else { DType::I64 }
}

macro_rules! place {
    ($places:expr, $p:ident => $body:expr) => {
        match type_of($places) {
            DType::U8 => {
                type $p = u8;
                $body
            }
            _ => {
                type $p = i64;
                $body
            }
        }
    };
}

impl Op for MaxPool {
    fn name(&self) -> &'static str {
        let names = match self.tiling {
            Tiling::Sliding(_) => ["max_pool1d", "max_pool2d", "max_pool3d"],
            Tiling::Adaptive(_) => ["adaptive_max_pool1d", "adaptive_max_pool2d", "adaptive_max_pool3d"],
        };
        of_rank(names, self.tiling.rank())
    }

    fn infer(&self, inputs: &[Meta]) -> Result<Plan> {
        ops::want_real(self.name(), inputs, 0)?;
        want_image(self.name(), inputs, self.tiling.rank())?;
        let x = inputs[0].shape();
        let windows = self.windows(x)?;
        let lead = windows.axes.len() - self.tiling.rank();
        let axes = windows.axes[lead..].iter().enumerate();
        let shape = axes.fold(x, |s, (i, axis)| s.with(i + 1, axis.spans.len()));
        let mut plan = Plan::one(inputs[0].dtype, shape).saving(type_of(windows.places()), shape).dense(1);
        if self.places {
            plan.outputs.push(Spec::new(DType::I64, shape));
        }
        Ok(plan)
    }

    fn forward(&self, cx: &Exec, ins: &[View], outs: &mut [ViewMut], saved: &mut [ViewMut]) -> Result<()> {
        let cpu = cx.cpu()?;
        let windows = self.windows(ins[0].shape())?;
        ops::real!(self.name(), ins[0].dtype, T => place!(windows.places(), P => {
            let places = saved[0].slice()?;
            cpu::max::<T, P>(cpu, &windows, ins[0].slice()?, outs[0].slice()?, places);
            if let Some(all) = outs.get_mut(1) {
                cpu::flat(&windows, places, all.slice()?);
            }
            Ok(())
        }))
    }

    fn backward(&self, cx: &Exec, saved: Saved, grads: &[Option<Tensor>], sink: &mut GradSink) -> Result<()> {
        let Some(g) = &grads[0] else { return Ok(()) };
        let cpu = cx.cpu()?;
        let windows = self.windows(saved.metas[0].shape())?;
        let g = g.contiguous()?;
        let (places, dtype, g) = (saved.extra[0].read()?, g.dtype(), g.read()?);
        let Some(mut slot) = sink.slot(0)? else { return Ok(()) };
        let accumulate = slot.accumulate();
        ops::real!(self.name(), dtype, T => place!(windows.places(), P => {
            cpu::max_gradient::<T, P>(cpu, &windows, g.slice()?, places.slice()?, slot.slice()?, accumulate);
            Ok(())
        }))
    }

    fn cuda(&self) -> Option<&dyn CudaOp> {
        Some(self)
    }
}

/// The mean of each window.
#[derive(Debug, Clone, Copy)]
struct Average(Tiling);

impl Boxes for Average {
    fn name(&self) -> &'static str {
        let names = match self.0 {
            Tiling::Sliding(_) => ["avg_pool1d", "avg_pool2d", "avg_pool3d"],
            Tiling::Adaptive(_) => ["adaptive_avg_pool1d", "adaptive_avg_pool2d", "adaptive_avg_pool3d"],
        };
        of_rank(names, self.0.rank())
    }

    fn rank(&self) -> usize {
        self.0.rank()
    }

    fn taps(&self, x: Shape) -> Result<Vec<Taps>> {
        let refuse = |why: &str| Err(Error::Invalid { op: self.name(), shape: x, why: why.to_owned() });
        let axes = self.0.axes(self.name(), x, &x[1..x.len() - 1])?;
        let (padded, divisor) = match self.0 {
            Tiling::Sliding(pool) => (pool.count_include_pad, pool.divisor),
            Tiling::Adaptive(_) => (false, None),
        };
        if axes.iter().any(|a| a.step != 1) {
            return refuse("an average has no dilation");
        }
        if divisor == Some(0) {
            return refuse("its divisor is 0");
        }
        let taps = axes.iter().enumerate().map(|(i, axis)| {
            axis.taps(|span| match divisor {
                Some(divisor) => {
                    if i == 0 {
                        divisor
                    } else {
                        1
                    }
                }
                None if padded => span.extent,
                None => span.inside.len(),
            })
        });
        Ok(taps.collect())
    }
}

impl Tensor {
    /// The largest number of each window of `[N, …, C]`. Not a number wins; the gradient goes to the first
    /// of equal numbers. A window has at most 2²² places, one of them at least on the axes.
    pub fn max_pool(&self, pool: &Pool) -> Result<Tensor> {
        apply_one(MaxPool::new(Tiling::Sliding(*pool)), &[self])
    }

    /// As [`Tensor::max_pool`], with the place of each largest number (i64): counted row by row over the axes
    /// between samples and channels, as PyTorch's `return_indices`.
    pub fn max_pool_places(&self, pool: &Pool) -> Result<(Tensor, Tensor)> {
        let op = MaxPool { tiling: Tiling::Sliding(*pool), places: true };
        fractional::pair(op.name(), apply(op, &[self])?)
    }

    /// The largest number of each window of images `[N, H, W, C]`: [`Tensor::max_pool`] with `kernel`,
    /// `stride` and `padding` as height, width.
    pub fn max_pool2d(&self, kernel: [usize; 2], stride: [usize; 2], padding: [usize; 2]) -> Result<Tensor> {
        self.max_pool(&Pool::new(&kernel).stride(&stride).padding(&padding))
    }

    /// The mean of each window of `[N, …, C]`.
    pub fn avg_pool(&self, pool: &Pool) -> Result<Tensor> {
        apply_one(BoxSum::new(Average(Tiling::Sliding(*pool))), &[self])
    }

    /// The largest number of each of `out` windows that cover `[N, …, C]` evenly: window i of n goes from
    /// ⌊i·size/n⌋ to ⌈(i + 1)·size/n⌉ along an axis.
    pub fn adaptive_max_pool(&self, out: &[usize]) -> Result<Tensor> {
        apply_one(MaxPool::new(Tiling::Adaptive(Shape::new(out))), &[self])
    }

    /// The mean of each of `out` windows, which lie as those of [`Tensor::adaptive_max_pool`] do. One
    /// window an axis gives the mean of each channel.
    pub fn adaptive_avg_pool(&self, out: &[usize]) -> Result<Tensor> {
        apply_one(BoxSum::new(Average(Tiling::Adaptive(Shape::new(out)))), &[self])
    }
}
