//! What keeps an axis and is computed along it: cumulative sums and products, the k largest, sorting.

use phalanx_host::simd::Real;
use phalanx_host::{Cpu, DType};

use crate::op::{CudaOp, Exec, Meta, Op, Plan, Saved};
use crate::sink::GradSink;
use crate::tape::{apply, apply_one};
use crate::{Error, Result, Shape, Spec, Tensor, View, ViewMut, ops};

/// Calls `task(line, out)` for every line along an axis of `length` of a contiguous tensor, whose elements lie
/// `inner` apart; `out` is the line's own `per` numbers of all.
fn lines<T: Copy + Into<f64> + Sync>(
    cpu: &Cpu,
    from: &[T],
    [length, inner]: [usize; 2],
    out: &mut [f64],
    per: usize,
    task: &(dyn Fn(&[f64], &mut [f64]) + Sync),
) {
    cpu.workers.chunks(out, per.max(1), |i, out| {
        let line: Vec<f64> = (0..length).map(|j| from[place(i, j, [length, inner])].into()).collect();
        task(&line, out);
    });
}

/// Where number `j` of line `i` lies in a contiguous tensor whose axis has `length` numbers.
fn place(i: usize, j: usize, [length, inner]: [usize; 2]) -> usize {
    (i / inner * length + j) * inner + i % inner
}

/// Sums or products of all elements up to each, along an axis. In doubles.
#[derive(Debug, Clone, Copy)]
pub(super) struct Cumulative {
    pub(super) axis: usize,
    pub(super) product: bool,
    /// From the last element on.
    pub(super) reverse: bool,
}

impl Cumulative {
    fn run(self, line: &[f64], out: &mut [f64]) {
        let mut total = if self.product { 1.0 } else { 0.0 };
        let mut next = |(o, x): (&mut f64, &f64)| {
            total = if self.product { total * x } else { total + x };
            *o = total;
        };
        match self.reverse {
            true => out.iter_mut().zip(line).rev().for_each(&mut next),
            false => out.iter_mut().zip(line).for_each(&mut next),
        }
    }

    /// The gradient of a cumulative product of a line: `Σ_{i ≥ k} g_i Π_{j ≤ i, j ≠ k} x_j` for each k, exact where
    /// elements are 0. Only products up to the first 0 differ from 0, but for the one that leaves that out.
    fn product_gradient(line: &[f64], g: &[f64], out: &mut [f64]) {
        out.fill(0.0);
        let zero = line.iter().position(|&x| x == 0.0).unwrap_or(line.len());
        let mut products = vec![0.0; zero];
        let mut product = 1.0;
        for (p, &x) in products.iter_mut().zip(line) {
            product *= x;
            *p = product;
        }
        if zero < line.len() {
            let mut rest = product;
            let mut sum = rest * g[zero];
            for (x, g) in line.iter().zip(g).skip(zero + 1) {
                rest *= x;
                sum += rest * g;
            }
            out[zero] = sum;
        }
        let mut sum = 0.0;
        for k in (0..zero).rev() {
            sum += products[k] * g[k];
            out[k] = sum / line[k];
        }
    }
}

impl Op for Cumulative {
    fn name(&self) -> &'static str {
        if self.product { "cumprod" } else { "cumsum" }
    }

    fn infer(&self, inputs: &[Meta]) -> Result<Plan> {
        ops::want_real(self.name(), inputs, 0)?;
        ops::want_axis(self.name(), inputs[0].shape(), self.axis)?;
        let plan = Plan::one(inputs[0].dtype, inputs[0].shape()).dense(1);
        Ok(if self.product { plan.saving_inputs(1) } else { plan })
    }

    fn forward(&self, cx: &Exec, ins: &[View], outs: &mut [ViewMut], _: &mut [ViewMut]) -> Result<()> {
        let [_, n, inner] = ops::index::around(ins[0].shape(), self.axis);
        ops::real!(self.name(), ins[0].dtype, T => {
            let (x, y) = (ins[0].slice::<T>()?, outs[0].slice::<T>()?);
            let mut made = vec![0.0; x.len()];
            lines(cx.cpu()?, x, [n, inner], &mut made, n, &|line, out| self.run(line, out));
            for (i, line) in made.chunks(n.max(1)).enumerate() {
                line.iter().enumerate().for_each(|(j, &v)| y[place(i, j, [n, inner])] = v as T);
            }
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
        if !self.product {
            return sink.pass(0, apply_one(Cumulative { reverse: !self.reverse, ..*self }, &[g])?);
        }
        cx.cpu()?;
        let shape = sink.shape(0);
        let [_, n, inner] = ops::index::around(shape, self.axis);
        let (x, g) = (saved.input(0)?.read()?, g.contiguous()?);
        let (dtype, g) = (g.dtype(), g.read()?);
        let made = cx.make(dtype, shape, |mut out| {
            ops::real!("cumprod", dtype, T => {
                let (x, g, out) = (x.slice::<T>()?, g.slice::<T>()?, out.slice::<T>()?);
                let (mut dx, mut line, mut slopes) = (vec![0.0; n], vec![0.0; n], vec![0.0; n]);
                for i in 0..x.len().checked_div(n).unwrap_or(0) {
                    for (j, (line, slope)) in line.iter_mut().zip(&mut slopes).enumerate() {
                        let at = place(i, j, [n, inner]);
                        (*line, *slope) = (x[at].to_f64(), g[at].to_f64());
                    }
                    Cumulative::product_gradient(&line, &slopes, &mut dx);
                    dx.iter().enumerate().for_each(|(j, &v)| out[place(i, j, [n, inner])] = v as T);
                }
                Ok(())
            })
        })?;
        sink.pass(0, made)
    }

    fn cuda(&self) -> Option<&dyn CudaOp> {
        Some(self)
    }

    fn backward_graph(
        &self,
        _: &[Option<Tensor>],
        _: &[Option<Tensor>],
        _: &[Meta],
        grads: &[Option<Tensor>],
    ) -> Result<Vec<Option<Tensor>>> {
        if self.product {
            return Err(Error::NoSecondOrder { op: self.name() });
        }
        let back = |g: &Tensor| apply_one(Cumulative { reverse: !self.reverse, ..*self }, &[g]);
        Ok(vec![grads[0].as_ref().map(back).transpose()?])
    }
}

/// The `k` largest or smallest along an axis. Outputs: values and places.
#[derive(Debug, Clone, Copy)]
pub(super) struct TopK {
    pub(super) name: &'static str,
    pub(super) axis: usize,
    pub(super) k: usize,
    pub(super) largest: bool,
    /// Whether they come in order of their size, or of their places.
    pub(super) sorted: bool,
}

impl TopK {
    fn run(self, line: &[f64], out: &mut [f64]) {
        // Not a number is larger than all.
        let rising = |a: f64, b: f64| a.partial_cmp(&b).unwrap_or_else(|| a.is_nan().cmp(&b.is_nan()));
        let order = |&a: &usize, &b: &usize| {
            let [x, y] = if self.largest { [line[b], line[a]] } else { [line[a], line[b]] };
            rising(x, y).then(a.cmp(&b))
        };
        let mut places: Vec<usize> = (0..line.len()).collect();
        if self.k < places.len() {
            places.select_nth_unstable_by(self.k, order);
            places.truncate(self.k);
        }
        match self.sorted {
            true => places.sort_unstable_by(order),
            false => places.sort_unstable(),
        }
        let (values, at) = out.split_at_mut(self.k);
        for ((v, a), &p) in values.iter_mut().zip(at).zip(&places) {
            (*v, *a) = (line[p], p as f64);
        }
    }
}

impl TopK {
    fn grad(self, g: &Tensor, places: &Tensor, source: Shape) -> Result<Tensor> {
        Tensor::zeros(g.dtype(), source, g.device())?.scatter_add(self.axis, places, g)
    }
}

impl Op for TopK {
    fn name(&self) -> &'static str {
        self.name
    }

    fn infer(&self, inputs: &[Meta]) -> Result<Plan> {
        ops::want_real(self.name, inputs, 0)?;
        let shape = inputs[0].shape();
        let n = ops::want_axis(self.name, shape, self.axis)?;
        if self.k > n {
            let why = format!("k is {}, but axis {} has {n} elements", self.k, self.axis);
            return Err(Error::Invalid { op: self.name, shape, why });
        }
        let shape = shape.with(self.axis, self.k);
        let mut plan = Plan::one(inputs[0].dtype, shape).dense(1).saving_outputs(0b10);
        plan.outputs.push(Spec::new(DType::I64, shape));
        Ok(plan)
    }

    fn forward(&self, cx: &Exec, ins: &[View], outs: &mut [ViewMut], _: &mut [ViewMut]) -> Result<()> {
        let [outer, n, inner] = ops::index::around(ins[0].shape(), self.axis);
        let (values, places) = outs.split_at_mut(1);
        let (k, places) = (self.k, places[0].slice::<i64>()?);
        ops::real!(self.name, ins[0].dtype, T => {
            let (x, y) = (ins[0].slice::<T>()?, values[0].slice::<T>()?);
            let mut made = vec![0.0; outer * inner * 2 * k];
            lines(cx.cpu()?, x, [n, inner], &mut made, 2 * k, &|line, out| self.run(line, out));
            for (i, found) in made.chunks(2 * k.max(1)).enumerate() {
                let (found, from) = found.split_at(k);
                for (j, (&value, &from)) in found.iter().zip(from).enumerate() {
                    let at = place(i, j, [k, inner]);
                    (y[at], places[at]) = (value as T, from as i64);
                }
            }
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
        let Some(g) = &grads[0] else { return Ok(()) };
        let grad = self.grad(g, &saved.output(1)?, sink.shape(0))?;
        sink.pass(0, grad)
    }

    fn cuda(&self) -> Option<&dyn CudaOp> {
        Some(self)
    }

    fn backward_graph(
        &self,
        _: &[Option<Tensor>],
        outputs: &[Option<Tensor>],
        metas: &[Meta],
        grads: &[Option<Tensor>],
    ) -> Result<Vec<Option<Tensor>>> {
        let (Some(places), Some(g)) = (&outputs[1], &grads[0]) else { return Ok(vec![None]) };
        Ok(vec![Some(self.grad(g, places, metas[0].shape())?)])
    }
}

impl Tensor {
    /// Sums of all elements up to each along `axis`.
    pub fn cumsum(&self, axis: usize) -> Result<Tensor> {
        apply_one(Cumulative { axis, product: false, reverse: false }, &[self])
    }

    /// Products of all elements up to each along `axis`. The gradient is exact where elements are 0; it has no
    /// gradient itself.
    pub fn cumprod(&self, axis: usize) -> Result<Tensor> {
        apply_one(Cumulative { axis, product: true, reverse: false }, &[self])
    }

    fn top(&self, op: TopK) -> Result<(Tensor, Tensor)> {
        match <[Tensor; 2]>::try_from(apply(op, &[self])?) {
            Ok([values, places]) => Ok((values, places)),
            Err(_) => Err(Error::GraphReleased { op: op.name }),
        }
    }

    /// The `k` largest (or smallest) elements along `axis` and their places (i64), in order of their size
    /// when `sorted`, else of their places. Of equals the first come first; not a number is larger than all. The
    /// gradient goes to the chosen elements. Fails when the axis has fewer than `k`.
    pub fn top_k(&self, k: usize, axis: usize, largest: bool, sorted: bool) -> Result<(Tensor, Tensor)> {
        self.top(TopK { name: "top_k", axis, k, largest, sorted })
    }

    /// The elements along `axis` in rising order (or falling) and their places (i64). Equals keep their order;
    /// not a number is larger than all.
    pub fn sort(&self, axis: usize, falling: bool) -> Result<(Tensor, Tensor)> {
        let k = ops::want_axis("sort", self.shape(), axis)?;
        self.top(TopK { name: "sort", axis, k, largest: falling, sorted: true })
    }
}
