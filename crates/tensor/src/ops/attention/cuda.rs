//! Attention on a GPU: products by cublasLt, and kernels for the rows of weights between them. The matrix of weights is there
//! for some heads at a time only.

use phalanx_gpu::{Args, Context, DevicePtr, Gemm, Source, Type};
use phalanx_host::DType;

use super::Attend;
use crate::op::{CudaOp, Exec, Op, Saved};
use crate::ops::cuda::{
    NONE, Operand, Scratch, Teams, blank, code, dense, library_type, random, source, suffix, typed, walk,
};
use crate::ops::dropout::threshold;
use crate::sink::GradSink;
use crate::{Layout, Result, Shape, Tensor, View, ViewMut};

pub(crate) static SOURCE: Source = source!("attention");

/// Bytes of products that are there at a time, about.
const AT_A_TIME: usize = 256 << 20;

/// All heads, as many at a time as there is room for products of so many bytes each, but at least one: the first and how many.
fn at_a_time(heads: usize, bytes: usize) -> impl Iterator<Item = (usize, usize)> {
    let step = (AT_A_TIME / bytes.max(1)).max(1);
    (0..heads).step_by(step).map(move |first| (first, step.min(heads - first)))
}

/// A matrix of each head: where, of what type, rows of how many numbers, and whether it is turned.
#[derive(Clone, Copy)]
struct Side {
    ptr: DevicePtr,
    dtype: Type,
    columns: usize,
    turned: bool,
}

impl Side {
    fn of(ptr: DevicePtr, dtype: Type, columns: usize) -> Self {
        Side { ptr, dtype, columns, turned: false }
    }

    fn t(self) -> Self {
        Side { turned: true, ..self }
    }
}

/// What all kernels and products of one call know.
struct Heads<'a> {
    gpu: &'a Context,
    op: &'static str,
    shape: Shape,
    dtype: DType,
    heads: usize,
    /// Queries, keys, numbers of a key, numbers of a value.
    sizes: [usize; 4],
    q: Operand<'a>,
    k: Operand<'a>,
    v: Operand<'a>,
    mask: Option<View<'a>>,
    bias: Option<View<'a>>,
    of: Attend,
}

impl<'a> Heads<'a> {
    fn new(gpu: &'a Context, of: &Attend, ins: &[View<'a>]) -> Result<Self> {
        let views = of.heads(ins)?;
        let (op, dtype, shape) = (of.name(), views.q.dtype, views.q.shape());
        suffix(op, dtype)?;
        let ready = |x: &View<'a>| match typed(gpu, x, dtype)? {
            Operand::As(view) => dense(gpu, &view),
            copy => Ok(copy),
        };
        Ok(Heads {
            gpu,
            op,
            shape,
            dtype,
            heads: shape[..shape.len() - 2].iter().product(),
            sizes: views.sizes,
            q: ready(&views.q)?,
            k: ready(&views.k)?,
            v: ready(&views.v)?,
            mask: views.mask,
            bias: views.bias,
            of: *of,
        })
    }

    /// A head's matrix in an operand of `rows` rows, from head `first` on.
    fn side(&self, ptr: DevicePtr, first: usize, rows: usize, columns: usize) -> Result<Side> {
        let at = ptr.offset(first * rows * columns * self.dtype.size());
        Ok(Side::of(at, library_type(self.op, self.dtype)?, columns))
    }

    /// `c = a · b` for `heads` heads, `[m, n]` from `k` terms.
    fn product(&self, heads: usize, [m, n, k]: [usize; 3], [a, b, c]: [Side; 3]) -> Result<()> {
        if heads * m * n == 0 {
            return Ok(());
        }
        if k == 0 {
            let size = if c.dtype == Type::F32 { 4 } else { 2 };
            return Ok(self.gpu.fill_zero(c.ptr, heads * m * n * size)?);
        }
        let gemm = Gemm {
            m,
            n,
            k,
            a: a.dtype,
            b: b.dtype,
            c: c.dtype,
            trans_a: a.turned,
            trans_b: b.turned,
            lda: a.columns,
            ldb: b.columns,
            ldc: c.columns,
            batch: heads,
            stride_a: m * k,
            stride_b: k * n,
            stride_c: m * n,
            accumulate: false,
            bias: None,
            relu: false,
            math: self.gpu.math(),
        };
        Ok(self.gpu.blas()?.gemm(&gemm, 1.0, a.ptr, b.ptr, c.ptr, None)?)
    }

    /// The heads, some at a time: the first one and how many.
    fn groups(&self) -> impl Iterator<Item = (usize, usize)> + use<> {
        let [queries, keys, ..] = self.sizes;
        at_a_time(self.heads, queries * keys * size_of::<f32>())
    }

    /// The rows of `heads` heads.
    fn teams(&self, heads: usize) -> Result<Teams> {
        let [queries, keys, ..] = self.sizes;
        Teams::packs(self.op, self.shape, heads * queries, keys, DType::F32)
    }

    /// The arguments that kernels take for a `Look` and a `Drop`.
    fn look(&self, teams: &Teams, args: Args, first: usize, heads: usize) -> Result<Args> {
        let [queries, ..] = self.sizes;
        let n = self.shape.len() - 1;
        let lead = Shape::new(&self.shape[..n]);
        let part = |x: &Option<View>| match x {
            Some(x) => (Layout::with(lead, &x.layout.strides()[..n], 0), x.layout.strides()[n]),
            None => (Layout::with(lead, &[0; crate::MAX_AXES][..n], 0), 0),
        };
        let ((mask, mask_step), (bias, bias_step)) = (part(&self.mask), part(&self.bias));
        let ptr = |x: &Option<View>| x.as_ref().map_or(Ok(NONE), View::ptr);
        let args = teams.args(args, heads * queries).i64((first * queries) as i64).i64(queries as i64);
        let args = args.ptr(ptr(&self.mask)?).i64(mask_step as i64).ptr(ptr(&self.bias)?);
        let args = args.i32(self.bias.as_ref().map_or(0, |b| code(b.dtype))).i64(bias_step as i64);
        let args = args.i32(i32::from(self.of.causal)).f32(self.of.scale as f32);
        let args = match self.of.dropout.map(|(p, key)| (p, key, threshold(p))) {
            None => args.ptr(NONE).u64(0).u32(0).i32(0).f32(1.0),
            Some((p, key, Some(from))) => {
                random(self.gpu, args, key)?.u32(from).i32(1).f32((1.0 / (1.0 - p)) as f32)
            }
            Some((_, _, None)) => args.ptr(NONE).u64(0).u32(0).i32(2).f32(0.0),
        };
        Ok(args.pod(walk([&mask, &bias])))
    }

    /// The products of queries and keys.
    fn scores(&self, first: usize, heads: usize, to: DevicePtr) -> Result<()> {
        let [queries, keys, width, _] = self.sizes;
        let q = self.side(self.q.ptr()?, first, queries, width)?;
        let k = self.side(self.k.ptr()?, first, keys, width)?;
        self.product(heads, [queries, keys, width], [q, k.t(), Side::of(to, Type::F32, keys)])
    }

    /// Room for numbers of all pairs of queries and keys of a group.
    fn room(&self, dtype: DType) -> Result<Scratch> {
        let [queries, keys, ..] = self.sizes;
        let heads = self.groups().map(|(_, n)| n).max().unwrap_or(0);
        Scratch::new(self.gpu, dtype, [heads, queries, keys].into())
    }

    fn forward(&self, y: DevicePtr, logs: DevicePtr) -> Result<()> {
        let [queries, keys, _, size] = self.sizes;
        let (products, p) = (self.room(DType::F32)?, self.room(self.dtype)?);
        for (first, heads) in self.groups() {
            self.scores(first, heads, products.ptr())?;
            let teams = self.teams(heads)?;
            let args = Args::new().ptr(products.ptr()).ptr(p.ptr()).ptr(logs);
            let args = self.look(&teams, args, first, heads)?;
            teams.launch(self.gpu, &SOURCE, ("weights", suffix(self.op, self.dtype)?), args)?;
            let p = self.side(p.ptr(), 0, queries, keys)?;
            let v = self.side(self.v.ptr()?, first, keys, size)?;
            self.product(heads, [queries, size, keys], [p, v, self.side(y, first, queries, size)?])?;
        }
        Ok(())
    }

    fn backward(
        &self,
        y: DevicePtr,
        g: DevicePtr,
        logs: DevicePtr,
        [dq, dk, dv]: [DevicePtr; 3],
    ) -> Result<()> {
        let [queries, keys, width, size] = self.sizes;
        let (products, g_p) = (self.room(DType::F32)?, self.room(DType::F32)?);
        let (dropped, d) = (self.room(self.dtype)?, self.room(self.dtype)?);
        for (first, heads) in self.groups() {
            self.scores(first, heads, products.ptr())?;
            let up = self.side(g, first, queries, size)?;
            let v = self.side(self.v.ptr()?, first, keys, size)?;
            let to = Side::of(g_p.ptr(), Type::F32, keys);
            self.product(heads, [queries, keys, size], [up, v.t(), to])?;
            let teams = self.teams(heads)?;
            let args =
                Args::new().ptr(products.ptr()).ptr(g_p.ptr()).ptr(logs).ptr(y).ptr(g).i32(size as i32);
            let args = self.look(&teams, args.ptr(dropped.ptr()).ptr(d.ptr()), first, heads)?;
            teams.launch(self.gpu, &SOURCE, ("slopes", suffix(self.op, self.dtype)?), args)?;
            let p = self.side(dropped.ptr(), 0, queries, keys)?;
            let d = self.side(d.ptr(), 0, queries, keys)?;
            let q = self.side(self.q.ptr()?, first, queries, width)?;
            let k = self.side(self.k.ptr()?, first, keys, width)?;
            self.product(heads, [keys, size, queries], [p.t(), up, self.side(dv, first, keys, size)?])?;
            self.product(heads, [queries, width, keys], [d, k, self.side(dq, first, queries, width)?])?;
            self.product(heads, [keys, width, queries], [d.t(), q, self.side(dk, first, keys, width)?])?;
        }
        Ok(())
    }
}

impl CudaOp for Attend {
    fn forward_cuda(
        &self,
        gpu: &Context,
        ins: &[View],
        outs: &mut [ViewMut],
        saved: &mut [ViewMut],
    ) -> Result<()> {
        Heads::new(gpu, self, ins)?.forward(outs[0].ptr()?, saved[0].ptr()?)
    }

    fn backward_cuda(
        &self,
        cx: &Exec,
        mut saved: Saved,
        grads: &[Option<Tensor>],
        sink: &mut GradSink,
    ) -> Result<()> {
        let Some(g) = &grads[0] else { return Ok(()) };
        let ins = saved.inputs.iter().flatten().map(Tensor::read).collect::<Result<Vec<_>>>()?;
        let views: Vec<View> = ins.iter().map(|x| x.view()).collect();
        let heads = Heads::new(cx.gpu()?, self, &views)?;
        let (y, logs) = (saved.output(0)?.read()?, saved.extra[0].read()?);
        let g = g.to(heads.dtype)?.contiguous()?.read()?;
        let make = |i: usize| blank(cx, heads.dtype, views[i].shape());
        let [(dq, q), (dk, k), (dv, v)] = [make(0)?, make(1)?, make(2)?];
        heads.backward(y.ptr()?, g.ptr()?, logs.ptr()?, [q, k, v])?;
        for (i, grad) in [dq, dk, dv].into_iter().enumerate() {
            sink.pass(i, grad)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn every_head_has_its_turn_and_as_many_have_one_as_there_is_room_for(heads in 0usize..4096, bytes in 0usize..1 << 32) {
            let mut next = 0;
            for (first, count) in at_a_time(heads, bytes) {
                prop_assert!(first == next && count >= 1);
                prop_assert!(count == 1 || count * bytes <= AT_A_TIME);
                next += count;
                prop_assert!(next == heads || (count + 1) * bytes > AT_A_TIME);
            }
            prop_assert_eq!(next, heads);
        }
    }
}
