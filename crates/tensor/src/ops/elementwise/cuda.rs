//! Functions of one and two numbers on a GPU.

use std::collections::HashMap;
use std::sync::OnceLock;

use phalanx_gpu::{Args, Context, DevicePtr, Source};

use super::select::{Test, Where};
use super::{Binary, From, Unary, stretch};
use crate::op::{CudaOp, Exec, Saved};
use crate::ops::cuda::{self, code, launch, source, suffix};
use crate::sink::GradSink;
use crate::{DType, Error, Result, Tensor, View, ViewMut};

pub(crate) static SOURCE: Source = source!("elementwise");

/// A function as its kernels know it: the name of its row in `kernel.cu`, and its constants.
pub(crate) type Name = (&'static str, [f64; 3]);

/// The number by which kernels know a function: the place of its row in one of two tables of `kernel.cu`, and whether
/// that is the second one, of what is rare.
fn number([often, rare]: [&'static str; 2], name: &'static str) -> Result<(i32, bool)> {
    static NUMBERS: OnceLock<HashMap<(&str, &str), i32>> = OnceLock::new();
    let numbers = NUMBERS.get_or_init(|| {
        let mut found = HashMap::new();
        for table in UNARY.iter().chain(&BINARY) {
            let head = format!("#define {table}(ROW)");
            let lines = SOURCE.text.lines().skip_while(|l| !l.starts_with(&head)).skip(1);
            let rows = lines.take_while(|l| l.starts_with("    "));
            let names = rows.filter_map(|l| l.trim_start().strip_prefix("ROW(")?.split(',').next());
            found.extend(names.zip(0..).map(|(name, i)| ((*table, name), i)));
        }
        found
    });
    let of = |table, is_rare| numbers.get(&(table, name)).map(|&n| (n, is_rare));
    of(often, false).or_else(|| of(rare, true)).ok_or(Error::NoCudaKernel { op: name })
}

const UNARY: [&str; 2] = ["UNARY", "RARE"];
const BINARY: [&str; 2] = ["BINARY", "RARE_PAIR"];

/// The packs of 16 bytes that dense operands of `n` elements at these addresses are read by, and the items of work.
fn packs(dtype: DType, n: usize, all: &[DevicePtr]) -> (usize, usize) {
    let pack = cuda::wide(dtype, 0, all);
    let packs = if pack == 1 { 0 } else { n / pack };
    (packs, packs.max(n - packs * pack))
}

fn constants([a, b, c]: [f64; 3]) -> [f32; 3] {
    [a as f32, b as f32, c as f32]
}

/// `out = f(x)`, dense.
fn map(gpu: &Context, name: Name, x: &View, out: &mut ViewMut) -> Result<()> {
    map_at(gpu, name, x.dtype, x.shape().numel(), [x.ptr()?, out.ptr()?])
}

/// `values = f(values)`, dense: an item of work reads before it writes.
pub(super) fn map_in_place(gpu: &Context, name: Name, values: &mut ViewMut) -> Result<()> {
    map_at(gpu, name, values.dtype, values.shape.numel(), [values.ptr()?; 2])
}

fn map_at(gpu: &Context, (name, p): Name, dtype: DType, n: usize, [x, out]: [DevicePtr; 2]) -> Result<()> {
    let (f, rare) = number(UNARY, name)?;
    let args = Args::new().i32(f).pod(constants(p)).ptr(x).ptr(out);
    if rare {
        suffix(name, dtype)?;
        return launch(gpu, &SOURCE, "map_rare", n, args.i32(code(dtype)).i64(n as i64));
    }
    let kernel = format!("map_{}", suffix(name, dtype)?);
    let (packs, items) = packs(dtype, n, &[x, out]);
    launch(gpu, &SOURCE, &kernel, items, args.i64(n as i64).i64(packs as i64))
}

/// `dx (+)= g · f'(saved)`, all dense and of one type.
pub(super) fn map_gradient(
    gpu: &Context,
    (name, p): Name,
    saved: &View,
    g: &View,
    dx: &mut ViewMut,
    add: bool,
) -> Result<()> {
    cuda::want_type(name, g, 0, saved.dtype)?;
    let (n, (f, rare)) = (g.shape().numel(), number(UNARY, name)?);
    let all = [saved.ptr()?, g.ptr()?, dx.ptr()?];
    let args = Args::new().i32(f).pod(constants(p)).ptr(all[0]).ptr(all[1]).ptr(all[2]);
    let add = i32::from(add);
    if rare {
        suffix(name, g.dtype)?;
        let args = args.i32(code(g.dtype)).i64(n as i64).i32(add);
        return launch(gpu, &SOURCE, "map_gradient_rare", n, args);
    }
    let kernel = format!("map_gradient_{}", suffix(name, saved.dtype)?);
    let (packs, items) = packs(g.dtype, n, &all);
    launch(gpu, &SOURCE, &kernel, items, args.i64(n as i64).i64(packs as i64).i32(add))
}

impl CudaOp for Unary {
    fn forward_cuda(
        &self,
        gpu: &Context,
        ins: &[View],
        outs: &mut [ViewMut],
        _: &mut [ViewMut],
    ) -> Result<()> {
        map(gpu, self.function.cuda(), &ins[0], &mut outs[0])
    }

    fn backward_cuda(
        &self,
        cx: &Exec,
        mut saved: Saved,
        grads: &[Option<Tensor>],
        sink: &mut GradSink,
    ) -> Result<()> {
        let from = match self.function.saves() {
            From::Input => saved.input(0)?,
            From::Output => saved.output(0)?,
        };
        let Some(g) = &grads[0] else { return Ok(()) };
        let (from, g) = (from.contiguous()?, g.to(from.dtype())?.contiguous()?);
        let (read_from, read_g) = (from.read()?, g.read()?);
        let Some(mut slot) = sink.slot(0)? else { return Ok(()) };
        let add = slot.accumulate();
        let function = self.function.cuda();
        map_gradient(cx.gpu()?, function, &read_from.view(), &read_g.view(), &mut slot.view(), add)
    }
}

impl CudaOp for Binary {
    fn forward_cuda(
        &self,
        gpu: &Context,
        ins: &[View],
        outs: &mut [ViewMut],
        _: &mut [ViewMut],
    ) -> Result<()> {
        let name = self.function.cuda();
        let ((f, rare), shape, out) = (number(BINARY, name)?, outs[0].shape, &outs[0]);
        let (n, dtype) = (shape.numel(), outs[0].dtype);
        let (a, b) = (ins[0].ptr()?, ins[1].ptr()?);
        let [x, y] = [stretch(self.name, &ins[0], shape)?, stretch(self.name, &ins[1], shape)?];
        if dtype == DType::F64 && matches!(name, "Add" | "Sub" | "Mul" | "Div") {
            let args = Args::new().i32(f).ptr(a).ptr(b).ptr(out.ptr()?);
            return launch(gpu, &SOURCE, "zip_f64", n, args.pod(cuda::walk([&x.layout, &y.layout])));
        }
        let end = suffix(self.name, dtype)?;
        // 0 for one element, 1 for all of them; others take the way of any layout.
        let step = |v: &View| match v.shape().numel() {
            1 => Some(0),
            m => (m == n && v.layout.is_contiguous()).then_some(1),
        };
        let one_type = ins[0].dtype == dtype && ins[1].dtype == dtype;
        if one_type
            && !rare
            && let (Some(sa), Some(sb)) = (step(&ins[0]), step(&ins[1]))
        {
            let kernel = format!("zip_{end}");
            let out = out.ptr()?;
            let (packs, items) =
                packs(dtype, n, &[if sa == 0 { out } else { a }, if sb == 0 { out } else { b }, out]);
            let args = Args::new().i32(f).ptr(a).i32(sa).ptr(b).i32(sb).ptr(out);
            return launch(gpu, &SOURCE, &kernel, items, args.i64(n as i64).i64(packs as i64));
        }
        let walk = cuda::walk([&x.layout, &y.layout]);
        let args = Args::new().i32(f).i32(i32::from(rare)).ptr(a).i32(code(x.dtype));
        let args = args.ptr(b).i32(code(y.dtype));
        launch(gpu, &SOURCE, "zip_any", n, args.ptr(out.ptr()?).i32(code(dtype)).pod(walk))
    }
}

impl CudaOp for Where {
    fn forward_cuda(
        &self,
        gpu: &Context,
        ins: &[View],
        outs: &mut [ViewMut],
        _: &mut [ViewMut],
    ) -> Result<()> {
        let (shape, dtype) = (outs[0].shape, outs[0].dtype);
        suffix("where", dtype)?;
        let [m, a, b] = [0, 1, 2].map(|i| stretch("where", &ins[i], shape));
        let (m, a, b) = (m?, a?, b?);
        let walk = cuda::walk([&m.layout, &a.layout, &b.layout]);
        let args =
            Args::new().ptr(m.ptr()?).ptr(a.ptr()?).i32(code(a.dtype)).ptr(b.ptr()?).i32(code(b.dtype));
        let args = args.ptr(outs[0].ptr()?).i32(code(dtype)).pod(walk);
        launch(gpu, &SOURCE, "choose", shape.numel(), args)
    }
}

impl CudaOp for Test {
    fn forward_cuda(
        &self,
        gpu: &Context,
        ins: &[View],
        outs: &mut [ViewMut],
        _: &mut [ViewMut],
    ) -> Result<()> {
        let shape = outs[0].shape;
        let (a, b) = (stretch(self.name, &ins[0], shape)?, stretch(self.name, &ins[1], shape)?);
        // Floats may differ: halves are read as what they stand for.
        let float = |v: &View| matches!(v.dtype, DType::F32 | DType::F16 | DType::BF16);
        if !(float(&a) && float(&b)) {
            cuda::want_type(self.name, &b, 1, a.dtype)?;
        }
        let walk = cuda::walk([&a.layout, &b.layout]);
        let args = Args::new().ptr(a.ptr()?).i32(code(a.dtype)).ptr(b.ptr()?).i32(code(b.dtype));
        let args = args.i32(i32::from(self.logic)).u32(u32::from(self.wanted)).ptr(outs[0].ptr()?).pod(walk);
        launch(gpu, &SOURCE, "test", shape.numel(), args)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_has_the_number_of_its_place() {
        assert_eq!(number(UNARY, "Neg").unwrap(), (0, false));
        assert_eq!(number(UNARY, "Abs").unwrap(), (2, false));
        assert_eq!(number(UNARY, "pow").unwrap(), (number(UNARY, "threshold").unwrap().0 + 1, true));
        assert_eq!(number(BINARY, "pow").unwrap(), (0, true));
        assert!(matches!(number(BINARY, "Neg"), Err(Error::NoCudaKernel { op: "Neg" })));
    }
}
