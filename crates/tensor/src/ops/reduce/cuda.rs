//! Folds over axes on a GPU. How the elements of a place are shared out to parts, blocks and threads follows from the
//! shape, the strides and the type alone.

use phalanx_gpu::{Args, Context, DevicePtr, Grid, Source};

use super::extremes::Extreme;
use super::moments::{Moment, What};
use super::products::{Prod, Quantifier};
use super::{Axes, Sum};
use crate::op::{CudaOp, Exec, Op, Saved};
use crate::ops::cuda::{self, NONE, THREADS, blocks, code, divisor, launch, source, suffix};
use crate::ops::walk::Walk;
use crate::sink::GradSink;
use crate::{DType, Error, Result, Shape, Tensor, View, ViewMut};

pub(crate) static SOURCE: Source = source!("reduce");

/// What a total adds up of an element: `kernel.cu` knows them by their numbers.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Term {
    Plain,
    Size,
    Square,
    /// The square of what is left when the place's shift is taken away.
    Deviation,
    /// e to what is left.
    Exponential,
    /// |x| to this power.
    Power(f64),
    NotZero,
    Zero,
}

impl Term {
    fn number(self) -> i32 {
        match self {
            Term::Plain => 0,
            Term::Size => 1,
            Term::Square => 2,
            Term::Deviation => 3,
            Term::Exponential => 4,
            Term::Power(_) => 5,
            Term::NotZero => 6,
            Term::Zero => 7,
        }
    }
}

/// What becomes of a total.
#[derive(Debug, Clone, Copy)]
enum End {
    Times(f64),
    /// The root of so many times it.
    Root(f64),
    /// Its logarithm, and the shift is added again.
    Log,
    ToPower(f64),
    /// Whether it is (not) 0.
    Some,
    None,
}

/// A fold, as `kernel.cu` has them.
#[derive(Debug, Clone, Copy)]
enum Rule {
    Total { term: Term, end: End, shifts: DevicePtr, add: bool },
    Bound { largest: bool, size: bool, finite: bool },
    Best { largest: bool, places: DevicePtr },
    Product,
}

fn total(term: Term, end: End) -> Rule {
    Rule::Total { term, end, shifts: NONE, add: false }
}

impl Rule {
    fn kernel(self) -> &'static str {
        match self {
            Rule::Total { .. } => "total",
            Rule::Bound { .. } => "bound",
            Rule::Best { .. } => "best",
            Rule::Product => "product",
        }
    }

    /// Bytes of a state.
    fn state(self) -> usize {
        match self {
            Rule::Total { .. } | Rule::Bound { .. } => 4,
            Rule::Product => 8,
            Rule::Best { .. } => 16,
        }
    }

    /// The kernel's parameters for the rule and its results.
    fn add(self, args: Args, (out, dtype): (DevicePtr, DType)) -> Args {
        let flag = i32::from;
        match self {
            Rule::Total { term, end, shifts, add } => {
                let power = if let Term::Power(p) = term { p } else { 1.0 };
                let (number, scale) = match end {
                    End::Times(s) => (0, s),
                    End::Root(s) => (1, s),
                    End::Log => (2, 1.0),
                    End::ToPower(p) => (3, p),
                    End::Some => (4, 1.0),
                    End::None => (5, 1.0),
                };
                let args = args.i32(term.number()).i32(number).f32(power as f32).f32(scale as f32);
                args.ptr(shifts).ptr(out).i32(code(dtype)).i32(flag(add))
            }
            Rule::Bound { largest, size, finite } => {
                args.i32(flag(largest)).i32(flag(size)).i32(flag(finite)).ptr(out).i32(code(dtype))
            }
            Rule::Best { largest, places } => args.i32(flag(largest)).ptr(out).i32(code(dtype)).ptr(places),
            Rule::Product => args.ptr(out).i32(code(dtype)),
        }
    }
}

/// How many blocks are wanted at least before the elements of a place are cut no further.
const ENOUGH: usize = 512;

/// How the elements of each place are shared out.
#[derive(Debug, Clone, Copy)]
struct Cut {
    length: usize,
    count: usize,
    /// Elements of a part.
    per: usize,
    parts: usize,
    /// Threads for a place's part.
    group: usize,
}

impl Cut {
    /// Parts of at least `least` elements until there are blocks enough, of which one part of all places makes `blocks`.
    fn new([length, count]: [usize; 2], group: usize, blocks: usize, least: usize) -> Self {
        let most = (ENOUGH / blocks.max(1)).max(1);
        let parts = (length / least).clamp(1, most);
        // Whole packs of any type.
        let per = length.div_ceil(parts).next_multiple_of(8).max(8);
        Cut { length, count, per, parts: length.div_ceil(per).max(1), group }
    }

    /// For places whose elements are folded by threads side by side.
    fn rows(sizes: [usize; 2]) -> Self {
        let group = match sizes[0] {
            0..=16 => 1,
            17..=2048 => 32,
            _ => 256,
        };
        let parts = |blocks| Cut::new(sizes, group, blocks, if group == 256 { 4096 } else { usize::MAX });
        parts((sizes[1] * group).div_ceil(THREADS as usize))
    }

    fn args(self, states: DevicePtr) -> Args {
        let args = Args::new().i64(self.length as i64).i64(self.count as i64).i64(self.per as i64);
        args.i32(self.parts as i32).i32(self.group as i32).ptr(states)
    }

    /// A group of threads for each part of each place.
    fn grid(self, op: &'static str, shape: Shape) -> Result<Grid> {
        let n = blocks(op, shape, (self.count * self.parts * self.group).div_ceil(THREADS as usize))?;
        Ok(Grid { blocks: [n, 1, 1], threads: THREADS, shared: 0 })
    }
}

/// Dense elements of this shape as `[kept, reduced, kept]` places, if they can be seen so.
fn folded(shape: Shape, axes: &Axes) -> Option<[usize; 3]> {
    let mut sizes = [1; 3];
    let mut at = 0;
    for (axis, &size) in shape.iter().enumerate().filter(|&(_, &size)| size != 1) {
        at = match (at, axes.0.contains(&axis)) {
            (0, false) => 0,
            (0 | 1, true) => 1,
            (1 | 2, false) => 2,
            _ => return None,
        };
        sizes[at] *= size;
    }
    Some(sizes)
}

/// Folds `x` over axes; the result is of one of the types that the rule writes.
fn fold(
    gpu: &Context,
    op: &'static str,
    rule: Rule,
    x: &View,
    axes: &Axes,
    out: (DevicePtr, DType),
) -> Result<()> {
    let (kept, reduced) = axes.split(&x.layout);
    let (count, length) = (kept.shape.numel(), reduced.shape.numel());
    let dense = matches!(rule, Rule::Total { term, .. } if !matches!(term, Term::Power(_)));
    if count == 0 {
        return Ok(());
    }
    if dense
        && x.dtype != DType::U8
        && length > 0
        && x.layout.is_contiguous()
        && let Some(sizes) = folded(x.shape(), axes)
    {
        return fold_dense(gpu, op, rule, x, sizes, out);
    }
    if x.dtype != DType::U8 {
        suffix(op, x.dtype)?;
    }
    let (k, r) = (Walk::new([&kept]), Walk::new([&reduced]));
    // Where neighbours among the kept places are neighbours in memory, each thread folds one.
    let beside = k.steps() == [1] && r.steps() != [1] && k.inner() > 1;
    let cut = match beside {
        true => Cut::new([length, count], 1, count.div_ceil(THREADS as usize), 64),
        false => Cut::rows([length, count]),
    };
    finished(gpu, rule, cut, out, |states| {
        let args = cut.args(states).ptr(x.ptr()?).i32(code(x.dtype)).pod(k.cuda()).pod(r.cuda());
        Ok(gpu.launch(&SOURCE, rule.kernel(), cut.grid(op, x.shape())?, rule.add(args, out))?)
    })
}

/// As [`fold`] for a total over the middle axis of dense elements of three axes.
fn fold_dense(
    gpu: &Context,
    op: &'static str,
    rule: Rule,
    x: &View,
    [outer, length, inner]: [usize; 3],
    out: (DevicePtr, DType),
) -> Result<()> {
    let (from, end) = (x.ptr()?, suffix(op, x.dtype)?);
    if inner == 1 {
        let wide = cuda::wide(x.dtype, length, &[from]);
        let cut = Cut::rows([length, outer]);
        return finished(gpu, rule, cut, out, |states| {
            let args = rule.add(cut.args(states).ptr(from).i32(i32::from(wide > 1)), out);
            Ok(gpu.launch(&SOURCE, &format!("rows_{end}"), cut.grid(op, x.shape())?, args)?)
        });
    }
    let wide = cuda::wide(x.dtype, inner, &[from]);
    let packs = inner / wide;
    // Threads side by side, and below one another: a few for a short axis.
    let side = packs.next_power_of_two().min(THREADS as usize / length.next_power_of_two().min(8));
    let lines = THREADS as usize / side;
    let across = outer * packs.div_ceil(side);
    let cut = Cut::new([length, outer * inner], 1, across, 4 * lines);
    finished(gpu, rule, cut, out, |states| {
        let blocks = [blocks(op, x.shape(), across)?, cut.parts as u32, 1];
        let grid = Grid { blocks, threads: THREADS, shared: 0 };
        let args = cut.args(states).ptr(from).i64(inner as i64).i32(side as i32).i32(i32::from(wide > 1));
        Ok(gpu.launch(&SOURCE, &format!("columns_{end}"), grid, rule.add(args, out))?)
    })
}

/// Runs a fold's kernel, and merges the parts' states where there are several.
fn finished(
    gpu: &Context,
    rule: Rule,
    cut: Cut,
    out: (DevicePtr, DType),
    run: impl FnOnce(DevicePtr) -> Result<()>,
) -> Result<()> {
    if cut.parts == 1 {
        return run(NONE);
    }
    let states = gpu.alloc(cut.parts * cut.count * rule.state())?;
    run(states.ptr())?;
    let grid = Grid { blocks: [cut.count.div_ceil(32) as u32, 1, 1], threads: 1024, shared: 0 };
    let args = Args::new().i64(cut.count as i64).i32(cut.parts as i32).ptr(states.ptr());
    Ok(gpu.launch(&SOURCE, &format!("finish_{}", rule.kernel()), grid, rule.add(args, out))?)
}

fn place(out: &ViewMut) -> Result<(DevicePtr, DType)> {
    Ok((out.ptr()?, out.dtype))
}

/// `out (+)=` the sums of the columns of the dense matrix `x`, which has as many as `out` has elements.
pub(crate) fn column_sums(
    gpu: &Context,
    op: &'static str,
    x: &View,
    out: &mut ViewMut,
    add: bool,
) -> Result<()> {
    let columns = out.shape.numel();
    let rows = x.shape().numel().checked_div(columns).unwrap_or(0);
    if columns == 0 || (rows == 0 && add) {
        return Ok(());
    }
    if rows == 0 {
        return Ok(gpu.fill_zero(out.ptr()?, columns * out.dtype.size())?);
    }
    let rule = Rule::Total { term: Term::Plain, end: End::Times(1.0), shifts: NONE, add };
    fold_dense(gpu, op, rule, x, [1, rows, columns], place(out)?)
}

/// `out (+)= scale ·` the sums over the middle axis of the dense `x`, none of whose sizes is 0.
pub(crate) fn middle_sums(
    gpu: &Context,
    op: &'static str,
    x: &View,
    sizes: [usize; 3],
    scale: f64,
    out: &mut ViewMut,
    add: bool,
) -> Result<()> {
    let rule = Rule::Total { term: Term::Plain, end: End::Times(scale), shifts: NONE, add };
    fold_dense(gpu, op, rule, x, sizes, place(out)?)
}

/// How a gradient is spread over an axis that it lacks.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Spread {
    /// The result's sizes: the axis is the middle one.
    pub(crate) sizes: [usize; 3],
    pub(crate) scale: f64,
    pub(crate) add: bool,
}

/// `dx (+)= g · scale`, where `g` lacks the middle axis of `dx`. Both are dense; fewer than 2³¹ elements.
pub(crate) fn spread(gpu: &Context, g: &View, dx: &mut ViewMut, how: Spread) -> Result<()> {
    let Spread { sizes, scale, add } = how;
    let [_, length, inner] = sizes;
    let (from, to) = (g.ptr()?, dx.ptr()?);
    let same = g.dtype == dx.dtype;
    // Another type is read one by one, whose address does not matter.
    let wide = cuda::wide(dx.dtype, inner, &[if same { from } else { to }, to]);
    let total = sizes.iter().product::<usize>() / wide;
    let args = Args::new().ptr(from).i32(code(g.dtype)).i32(i32::from(same)).i32(i32::from(wide > 1));
    let args = args.f32(scale as f32).ptr(to).pod(divisor(inner / wide)).pod(divisor(length));
    let args = args.u32(total as u32).i32(i32::from(add));
    launch(gpu, &SOURCE, &format!("spread_{}", suffix("sum", dx.dtype)?), total, args)
}

impl CudaOp for Sum {
    fn forward_cuda(
        &self,
        gpu: &Context,
        ins: &[View],
        outs: &mut [ViewMut],
        _: &mut [ViewMut],
    ) -> Result<()> {
        let scale = self.factor(ins[0].shape()).unwrap_or(1.0);
        let rule = total(Term::Plain, End::Times(scale));
        fold(gpu, self.name(), rule, &ins[0], &self.axes, place(&outs[0])?)
    }

    fn backward_cuda(
        &self,
        cx: &Exec,
        saved: Saved,
        grads: &[Option<Tensor>],
        sink: &mut GradSink,
    ) -> Result<()> {
        let Some(g) = &grads[0] else { return Ok(()) };
        let shape = sink.shape(0);
        // Global pooling and the like in one go; else a view of the sum's gradient will do.
        let sizes = folded(shape, &self.axes).filter(|s| s[2] > 1 && shape.numel() < 1 << 31);
        let Some(sizes) = sizes.filter(|_| g.dtype().is_float() && g.dtype() != DType::F64) else {
            return self.backward(cx, saved, grads, sink);
        };
        let g = g.contiguous()?;
        let read = g.read()?;
        let Some(mut slot) = sink.slot(0)? else { return Ok(()) };
        let (scale, add) = (self.factor(shape).unwrap_or(1.0), slot.accumulate());
        spread(cx.gpu()?, &read.view(), &mut slot.view(), Spread { sizes, scale, add })
    }
}

impl CudaOp for Moment {
    fn forward_cuda(
        &self,
        gpu: &Context,
        ins: &[View],
        outs: &mut [ViewMut],
        _: &mut [ViewMut],
    ) -> Result<()> {
        let (x, out) = (&ins[0], place(&outs[0])?);
        let fold_to = |rule, out| fold(gpu, self.name(), rule, x, &self.axes, out);
        // A number of each place that is needed before the elements are added up.
        let first = |rule| {
            let made = gpu.alloc(outs[0].shape.numel() * size_of::<f32>())?;
            fold_to(rule, (made.ptr(), DType::F32))?;
            Ok::<_, Error>(made)
        };
        let n = self.axes.0.iter().map(|&a| x.shape()[a]).product::<usize>() as f64;
        let variance = |correction: f64, end: fn(f64) -> End| {
            let means = first(total(Term::Plain, End::Times(1.0 / n)))?;
            let end = end(1.0 / (n - correction).max(0.0));
            fold_to(Rule::Total { term: Term::Deviation, end, shifts: means.ptr(), add: false }, out)
        };
        match self.what {
            What::Variance { correction } => variance(correction, End::Times),
            What::Deviation { correction } => variance(correction, End::Root),
            What::LogSumExp => {
                let largest = first(Rule::Bound { largest: true, size: false, finite: true })?;
                let shifts = largest.ptr();
                fold_to(Rule::Total { term: Term::Exponential, end: End::Log, shifts, add: false }, out)
            }
            What::Norm { p } => {
                let rule = match p {
                    0.0 => total(Term::NotZero, End::Times(1.0)),
                    1.0 => total(Term::Size, End::Times(1.0)),
                    2.0 => total(Term::Square, End::Root(1.0)),
                    p if p.is_infinite() => Rule::Bound { largest: p > 0.0, size: true, finite: false },
                    p => total(Term::Power(p), End::ToPower(1.0 / p)),
                };
                fold_to(rule, out)
            }
        }
    }
}

impl CudaOp for Extreme {
    fn forward_cuda(
        &self,
        gpu: &Context,
        ins: &[View],
        outs: &mut [ViewMut],
        _: &mut [ViewMut],
    ) -> Result<()> {
        let rule = Rule::Best { largest: self.largest, places: outs[1].ptr()? };
        fold(gpu, self.name, rule, &ins[0], &self.axes, place(&outs[0])?)
    }
}

impl CudaOp for Quantifier {
    fn forward_cuda(
        &self,
        gpu: &Context,
        ins: &[View],
        outs: &mut [ViewMut],
        _: &mut [ViewMut],
    ) -> Result<()> {
        let rule = if self.all { total(Term::Zero, End::None) } else { total(Term::NotZero, End::Some) };
        fold(gpu, self.name(), rule, &ins[0], &self.axes, place(&outs[0])?)
    }
}

impl CudaOp for Prod {
    fn forward_cuda(
        &self,
        gpu: &Context,
        ins: &[View],
        outs: &mut [ViewMut],
        _: &mut [ViewMut],
    ) -> Result<()> {
        fold(gpu, self.name(), Rule::Product, &ins[0], &self.0, place(&outs[0])?)
    }

    fn backward_cuda(
        &self,
        cx: &Exec,
        mut saved: Saved,
        grads: &[Option<Tensor>],
        sink: &mut GradSink,
    ) -> Result<()> {
        let Some(g) = &grads[0] else { return Ok(()) };
        let (shape, gpu) = (sink.shape(0), cx.gpu()?);
        let rows = self.0.rows(&saved.input(0)?.detach())?.contiguous()?;
        let read = rows.read()?;
        let [count, length] = [0, 1].map(|i| rows.shape()[i]);
        // In single precision whatever the type, as they are multiplied yet.
        let made = cx.make(DType::F32, rows.shape(), |out| {
            let end = suffix("prod", rows.dtype())?;
            let before = gpu.alloc(count * length * size_of::<f64>())?;
            let args = Args::new().ptr(read.ptr()?).ptr(before.ptr()).ptr(out.ptr()?);
            let args = args.i64(count as i64).i64(length as i64);
            match super::along_cuda::long(count, length) {
                Some(grid) if count > 0 => {
                    Ok(gpu.launch(&SOURCE, &format!("others_long_{end}"), grid, args)?)
                }
                _ => launch(gpu, &SOURCE, &format!("others_{end}"), count, args),
            }
        })?;
        sink.pass(0, self.0.unrows(&made, shape)?.mul(g)?)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn reduced_axes_side_by_side_are_one() {
        let of = |shape: &[usize], axes: &[usize]| folded(shape.into(), &Axes(axes.to_vec()));
        assert_eq!(of(&[2, 7, 7, 5], &[1, 2]), Some([2, 49, 5]));
        assert_eq!(of(&[2, 7, 7, 5], &[0, 1, 2]), Some([1, 98, 5]));
        assert_eq!(of(&[2, 3], &[1]), Some([2, 3, 1]));
        assert_eq!(of(&[2, 1, 3], &[0, 2]), Some([1, 6, 1]));
        assert_eq!(of(&[2, 4, 3], &[0, 2]), None);
        assert_eq!(of(&[1, 1], &[0]), Some([1, 1, 1]));
    }

    #[test]
    fn parts_cover_every_element_and_are_never_empty() {
        for length in [1, 7, 8, 300, 4095, 100_000, 802_816] {
            for (blocks, least) in [(1, 128), (600, 1), (3, 4096)] {
                let cut = Cut::new([length, 64], 1, blocks, least);
                assert!((cut.parts - 1) * cut.per < length && cut.parts * cut.per >= length, "{cut:?}");
                assert!(cut.parts <= ENOUGH && cut.per.is_multiple_of(8));
            }
        }
    }

    proptest! {
        #[test]
        fn parts_hold_every_element_once(length in 0usize..1 << 26, count in 1usize..1 << 16, least in 1usize..1 << 14) {
            for group in [1, 32, 256] {
                let blocks = (count * group).div_ceil(THREADS as usize);
                let cut = Cut::new([length, count], group, blocks, least);
                prop_assert!(cut.per.is_multiple_of(8) && cut.parts >= 1);
                prop_assert!(cut.parts * cut.per >= length);
                prop_assert!(cut.parts == 1 || (cut.parts - 1) * cut.per < length);
                // No more than fill a GPU, and none that is not worth its launch.
                prop_assert!(cut.parts == 1 || cut.parts * blocks <= ENOUGH && cut.per >= least);
                let grid = cut.grid("test", [1].into()).unwrap();
                prop_assert!(grid.blocks[0] as usize * THREADS as usize >= count * cut.parts * group);
            }
            let rows = Cut::rows([length, count]);
            prop_assert!((THREADS as usize).is_multiple_of(rows.group) && rows.parts * rows.per >= length);
        }
    }
}
