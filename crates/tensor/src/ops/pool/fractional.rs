//! Fractional max pooling, and unpooling: windows whose largest places are told.

use super::cpu::Best;
use super::{Names, of_rank};
use crate::op::{CudaOp, Exec, Meta, Op, Plan, Saved};
use crate::ops::boxes::want_image;
use crate::sink::GradSink;
use crate::tape::{apply, apply_one};
use crate::{DType, Error, Result, Shape, Tensor, View, ViewMut, ops};
use phalanx_host::Cpu;
use phalanx_host::simd::Real;

/// An image's axes between samples and channels as three, those that are missing in front.
pub(super) fn three(sizes: &[usize]) -> [usize; 3] {
    let mut all = [1; 3];
    all[3 - sizes.len()..].copy_from_slice(sizes);
    all
}

/// Windows of `kernel` places along the 1 to 3 axes between samples and channels, so many of them, which begin at
/// steps that are whole and vary (Graham, Fractional Max-Pooling, 2014).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FractionalPool {
    pub(super) kernel: Shape,
    pub(super) out: Shape,
}

/// Where `out` windows of `kernel` begin on an axis of `size`, for a number in 0..1 (Graham, 2014, as PyTorch
/// cuts it: the last window ends with the axis).
fn starts(sample: f64, size: usize, out: usize, kernel: usize) -> impl Iterator<Item = usize> {
    let room = size - kernel;
    let step = room as f64 / out.saturating_sub(1).max(1) as f64;
    let first = (sample * step) as usize;
    (0..out).map(move |i| if i + 1 == out { room } else { ((i as f64 + sample) * step) as usize - first })
}

impl FractionalPool {
    /// `out` windows of `kernel` places along each axis.
    pub fn new(kernel: &[usize], out: &[usize]) -> Self {
        FractionalPool { kernel: Shape::new(kernel), out: Shape::new(out) }
    }

    /// The numbers of windows, for axes of `sizes` (without samples and channels). Fails as the op does when they
    /// do not fit: the windows may overlap, but each begins after the one before.
    pub fn output(&self, sizes: &[usize]) -> Result<Shape> {
        self.fit(self.name(), sizes.into(), sizes)?;
        Ok(self.out)
    }

    fn fit(&self, op: &'static str, x: Shape, sizes: &[usize]) -> Result<()> {
        let refuse = |why: String| Err(Error::Invalid { op, shape: x, why });
        let rank = self.out.len();
        if self.kernel.len() != rank || sizes.len() != rank {
            let why =
                format!("{} axes cannot be cut into {} windows of {}", sizes.len(), self.out, self.kernel);
            return refuse(why);
        }
        for ((&size, &k), &out) in sizes.iter().zip(&*self.kernel).zip(&*self.out) {
            if k == 0 || out == 0 || (out - 1).checked_add(k).is_none_or(|least| least > size) {
                return refuse(format!("{size} places cannot be cut into {out} windows of {k}"));
            }
        }
        Ok(())
    }

    /// `y` = the largest of each window of `x`, `places` where it lies in its sample without channels.
    fn largest<E: Real>(self, cpu: &Cpu, x: (&[E], Shape), samples: &[E], y: &mut [E], places: &mut [i64]) {
        let (x, shape) = x;
        let rank = self.out.len();
        let channels = shape[rank + 1];
        let (size, out, kernel) = (three(&shape[1..=rank]), three(&self.out), three(&self.kernel));
        let line: usize = out[2] * channels;
        if line == 0 || y.is_empty() {
            return;
        }
        // The windows' beginnings along each axis, by plane: a sample's channel.
        let begins: [Vec<usize>; 3] = std::array::from_fn(|axis| {
            let number = |numbers: &[E]| match (axis + rank).checked_sub(3) {
                // PyTorch's order: an image's first number is that of its width, a volume's that of its depth.
                Some(i) => numbers[if rank == 2 { 1 - i } else { i }].to_f64(),
                None => 0.0,
            };
            let of_plane = |numbers| starts(number(numbers), size[axis], out[axis], kernel[axis]);
            samples.chunks_exact(rank).flat_map(of_plane).collect()
        });
        let sample = size.iter().product::<usize>() * channels;
        let mut pieces: Vec<(&mut [E], &mut [i64])> =
            y.chunks_exact_mut(line).zip(places.chunks_exact_mut(line)).collect();
        cpu.workers.chunks(&mut pieces, 1, |piece, lines| {
            let (n, at) = (piece / (out[0] * out[1]), [piece / out[1] % out[0], piece % out[1]]);
            let x = &x[n * sample..(n + 1) * sample];
            for (y, places) in lines {
                for (i, (y, place)) in y.iter_mut().zip(places.iter_mut()).enumerate() {
                    let (o, c) = (i / channels, i % channels);
                    let plane = n * channels + c;
                    let begin = |axis: usize, o: usize| begins[axis][plane * out[axis] + o];
                    let [a, b, e] = [begin(0, at[0]), begin(1, at[1]), begin(2, o)];
                    let mut best = Best::none();
                    for p in a..a + kernel[0] {
                        for q in b..b + kernel[1] {
                            let row = (p * size[1] + q) * size[2];
                            for r in row + e..row + e + kernel[2] {
                                best.see(x[r * channels + c], r);
                            }
                        }
                    }
                    best.put(y, place);
                }
            }
        });
    }
}

/// What is done with the number of a place.
#[derive(Clone, Copy)]
enum At {
    Add,
    Put,
}

/// Adds or puts each number of `g` at its place among the cells of its sample in `x`.
fn scatter<E: Real>(cpu: &Cpu, how: At, g: &[E], places: &[i64], [n, channels]: [usize; 2], x: &mut [E]) {
    if n * channels == 0 || x.is_empty() {
        return;
    }
    let (per, sample) = (g.len() / n, x.len() / n);
    cpu.workers.chunks(x, sample, |i, x| {
        let part = i * per..(i + 1) * per;
        for (k, (&g, &place)) in g[part.clone()].iter().zip(&places[part]).enumerate() {
            let x = &mut x[place as usize * channels + k % channels];
            match how {
                At::Add => *x += g,
                At::Put => *x = g,
            }
        }
    });
}

impl Op for FractionalPool {
    fn name(&self) -> &'static str {
        let names: Names = ["fractional_max_pool1d", "fractional_max_pool2d", "fractional_max_pool3d"];
        of_rank(names, self.out.len())
    }

    fn infer(&self, inputs: &[Meta]) -> Result<Plan> {
        let op = self.name();
        ops::want_real(op, inputs, 0)?;
        ops::want_same(op, inputs, 1)?;
        want_image(op, inputs, self.out.len())?;
        let (x, rank) = (inputs[0].shape(), self.out.len());
        self.fit(op, x, &x[1..=rank])?;
        let planes = Shape::new(&[x[0], x[rank + 1], rank]);
        ops::want_shape(op, inputs, 1, planes, "the samples must be [N,C,axes], numbers in 0..1")?;
        let shape = (0..rank).fold(x, |s, axis| s.with(axis + 1, self.out[axis]));
        let mut plan = Plan::one(inputs[0].dtype, shape).dense(0b11).saving_outputs(0b10);
        plan.outputs.push(crate::Spec::new(DType::I64, shape));
        Ok(plan)
    }

    fn forward(&self, cx: &Exec, ins: &[View], outs: &mut [ViewMut], _: &mut [ViewMut]) -> Result<()> {
        let (cpu, shape) = (cx.cpu()?, ins[0].shape());
        let [y, places] = outs else { return Err(Error::GraphReleased { op: self.name() }) };
        ops::real!(self.name(), ins[0].dtype, T => {
            let samples = ins[1].slice::<T>()?;
            if let Some(s) = samples.iter().find(|s| !(0.0..1.0).contains(*s)) {
                let why = format!("a sample is {s}; they lie in 0..1");
                return Err(Error::Invalid { op: self.name(), shape, why });
            }
            self.largest::<T>(cpu, (ins[0].slice()?, shape), samples, y.slice()?, places.slice()?);
            Ok(())
        })
    }

    fn backward(
        &self,
        cx: &Exec,
        mut saved: Saved,
        grads: &[Option<Tensor>],
        sink: &mut GradSink,
    ) -> Result<()> {
        let Some(g) = &grads[0] else { return Ok(()) };
        let (cpu, x) = (cx.cpu()?, sink.shape(0));
        let g = g.contiguous()?;
        let (places, dtype, g) = (saved.output(1)?.read()?, g.dtype(), g.read()?);
        let Some(mut slot) = sink.slot(0)? else { return Ok(()) };
        let accumulate = slot.accumulate();
        ops::real!(self.name(), dtype, T => {
            let dx = slot.slice::<T>()?;
            if !accumulate {
                dx.fill(0.0);
            }
            scatter(cpu, At::Add, g.slice()?, places.slice()?, [x[0], x[x.len() - 1]], dx);
            Ok(())
        })
    }

    fn cuda(&self) -> Option<&dyn CudaOp> {
        Some(self)
    }
}

/// Numbers at their places among zeros. Inputs: the numbers and the places.
#[derive(Debug, Clone, Copy)]
pub(super) struct Unpool {
    pub(super) sizes: Shape,
}

impl Unpool {
    /// The gradient: the numbers at the places.
    fn take(g: &Tensor, places: &Tensor) -> Result<Tensor> {
        let cells = |t: &Tensor| {
            let shape = t.shape();
            let c = shape[shape.len() - 1];
            t.reshape(&[shape[0], shape[1..shape.len() - 1].iter().product(), c])
        };
        cells(g)?.gather(1, &cells(places)?)?.reshape(&places.shape())
    }
}

impl Op for Unpool {
    fn name(&self) -> &'static str {
        of_rank(["max_unpool1d", "max_unpool2d", "max_unpool3d"], self.sizes.len())
    }

    fn infer(&self, inputs: &[Meta]) -> Result<Plan> {
        ops::want_real(self.name(), inputs, 0)?;
        ops::want_indices(self.name(), inputs, 1)?;
        want_image(self.name(), inputs, self.sizes.len())?;
        let x = inputs[0].shape();
        ops::want_shape(self.name(), inputs, 1, x, "there must be one place for each number")?;
        let shape = (0..self.sizes.len()).fold(x, |s, axis| s.with(axis + 1, self.sizes[axis]));
        Ok(Plan::one(inputs[0].dtype, shape).dense(0b11).saving_inputs(0b10))
    }

    fn forward(&self, cx: &Exec, ins: &[View], outs: &mut [ViewMut], _: &mut [ViewMut]) -> Result<()> {
        let (cpu, shape, places) = (cx.cpu()?, ins[0].shape(), ins[1].slice::<i64>()?);
        let limit = self.sizes.numel();
        if let Some(position) = places.iter().position(|&p| !usize::try_from(p).is_ok_and(|p| p < limit)) {
            return Err(Error::Index { op: self.name(), index: places[position], position, limit });
        }
        ops::real!(self.name(), ins[0].dtype, T => {
            let y = outs[0].slice::<T>()?;
            y.fill(0.0);
            scatter(cpu, At::Put, ins[0].slice()?, places, [shape[0], shape[shape.len() - 1]], y);
            Ok(())
        })
    }

    fn backward(
        &self,
        _: &Exec,
        mut saved: Saved,
        grads: &[Option<Tensor>],
        sink: &mut GradSink,
    ) -> Result<()> {
        let (Some(g), places) = (&grads[0], saved.input(1)?) else { return Ok(()) };
        sink.pass(0, Unpool::take(g, &places)?)
    }

    fn cuda(&self) -> Option<&dyn CudaOp> {
        Some(self)
    }

    fn backward_graph(
        &self,
        inputs: &[Option<Tensor>],
        _: &[Option<Tensor>],
        _: &[Meta],
        grads: &[Option<Tensor>],
    ) -> Result<Vec<Option<Tensor>>> {
        let (Some(places), Some(g)) = (&inputs[1], &grads[0]) else { return Ok(vec![None, None]) };
        Ok(vec![Some(Unpool::take(g, places)?), None])
    }
}

impl Tensor {
    /// The largest number of each window of `[N, …, C]`, and its place in the image counted row by row (i64), as
    /// `torch.nn.FractionalMaxPool2d` with its samples given. `samples` [N, C, axes] are numbers in 0..1, in
    /// PyTorch's order: width and height of an image; depth, height and width of a volume.
    pub fn fractional_max_pool(&self, pool: &FractionalPool, samples: &Tensor) -> Result<(Tensor, Tensor)> {
        pair(pool.name(), apply(*pool, &[self, &samples.detach()])?)
    }

    /// Each number of `[N, …, C]` at its place (i64, counted row by row) in images of `sizes`, zeros elsewhere: the
    /// way back of a max pooling that told its places (`torch.nn.MaxUnpool2d`). Of several numbers for one
    /// place the last stays; each gets that place's gradient. Fails with [`Error::Index`] for a place outside.
    pub fn max_unpool(&self, places: &Tensor, sizes: &[usize]) -> Result<Tensor> {
        apply_one(Unpool { sizes: Shape::new(sizes) }, &[self, places])
    }
}

/// An op's result and the places that it tells.
pub(super) fn pair(op: &'static str, outputs: Vec<Tensor>) -> Result<(Tensor, Tensor)> {
    let [y, places] = <[Tensor; 2]>::try_from(outputs)
        .map_err(|_| Error::Backward { why: format!("{op} has not two outputs") })?;
    Ok((y, places))
}
