//! Weighted sums over boxes on the CPU: vectors run over the channels of one result.

use phalanx_host::simd::{Kernel, Real, Simd};
use phalanx_host::{Buffer, Cpu, Element};

use super::Taps;
use crate::Result;
use crate::op::Exec;
use crate::ops::columns::{load, store};

/// [`Taps`] in the type that is computed in.
struct Axis<E> {
    size: usize,
    /// For each result its list and its divisor.
    results: Vec<(Vec<(usize, E)>, E)>,
}

impl<E: Real> Axis<E> {
    fn of(taps: &Taps) -> Self {
        let one = |(o, &divisor): (usize, &f64)| {
            let list = taps.list[taps.range(o)].iter().map(|&(i, w)| (i, E::from_f64(w)));
            (list.collect(), E::from_f64(divisor))
        };
        Axis { size: taps.size, results: taps.divisors.iter().enumerate().map(one).collect() }
    }
}

/// One row of results.
struct Row<'a, E> {
    axes: &'a [Axis<E>; 3],
    channels: usize,
    /// Its place along the two outer axes.
    at: [usize; 2],
    /// The operand's sample.
    x: &'a [E],
    y: &'a mut [E],
    accumulate: bool,
}

impl<E: Real> Kernel<E> for Row<'_, E> {
    type Out = ();
    #[inline(always)]
    fn run<V: Simd<E>>(self) {
        let Row { axes: [outer, middle, inner], channels, at, x, y, accumulate } = self;
        let ((planes, d0), (lines, d1)) = (&outer.results[at[0]], &middle.results[at[1]]);
        for ((places, d2), y) in inner.results.iter().zip(y.chunks_exact_mut(channels)) {
            let divisor = *d0 * *d1 * *d2;
            let mut from = 0;
            while from < channels {
                let width = (channels - from).min(V::LANES);
                let mut total = V::splat(E::ZERO);
                for &(plane, w0) in planes {
                    for &(line, w1) in lines {
                        let start = (plane * middle.size + line) * inner.size;
                        let mut sum = V::splat(E::ZERO);
                        for &(place, w2) in places {
                            let v: V = load(x, (start + place) * channels + from, width);
                            sum = v.mul_add(V::splat(w2), sum);
                        }
                        total = sum.mul_add(V::splat(w0 * w1), total);
                    }
                }
                if divisor != E::ONE {
                    total = total.div(V::splat(divisor));
                }
                if accumulate {
                    total = load::<E, V>(y, from, width).add(total);
                }
                store(total, y, from, width);
                from += width;
            }
        }
    }
}

/// Elements that one task computes at least.
const PIECE: usize = 16 * 1024;

impl<E: Real> Axis<E> {
    /// An axis that is not summed over.
    fn single() -> Self {
        Axis { size: 1, results: vec![(vec![(0, E::ONE)], E::ONE)] }
    }
}

/// `y (+)=` the sums over `x`; both are samples of images of so many channels.
fn boxes<E: Real>(cpu: &Cpu, axes: &[Axis<E>; 3], channels: usize, x: &[E], y: &mut [E], accumulate: bool) {
    let [outer, middle, inner] = axes.each_ref().map(|a| a.results.len());
    let sample = axes.iter().map(|a| a.size).product::<usize>() * channels;
    let row = inner * channels;
    let rows = PIECE.div_ceil(row);
    cpu.workers.chunks(y, rows * row, |i, y| {
        let run = E::select::<Row<E>>(cpu.isa);
        for (r, y) in y.chunks_exact_mut(row).enumerate() {
            let r = i * rows + r;
            let (n, at) = (r / (outer * middle), [r / middle % outer, r % middle]);
            let x = &x[n * sample..(n + 1) * sample];
            run(Row { axes, channels, at, x, y, accumulate });
        }
    });
}

/// Whether it costs less to sum along one axis after the other than over whole boxes: long filters, as of
/// cubic interpolation. It follows from the shapes alone. Divided sums (averages) are divided once.
fn separable(taps: &[Taps]) -> bool {
    let rest = |axis: usize| -> f64 {
        taps.iter().enumerate().map(|(a, t)| if a > axis { t.size } else { t.len() } as f64).product()
    };
    let each = |t: &Taps| t.list.len() as f64 / t.len().max(1) as f64;
    let whole = rest(taps.len()) * taps.iter().map(each).product::<f64>();
    // Two more for what a pass reads and writes.
    let passes: f64 = taps.iter().enumerate().map(|(axis, t)| rest(axis) * (each(t) + 2.0)).sum();
    taps.len() > 1 && passes < whole && taps.iter().all(|t| t.divisors.iter().all(|&d| d == 1.0))
}

/// As [`boxes`] for all that taps tell.
pub(super) fn sums<E: Real + Element>(
    cx: &Exec,
    taps: &[Taps],
    channels: usize,
    x: &[E],
    y: &mut [E],
    accumulate: bool,
) -> Result<()> {
    let cpu = cx.cpu()?;
    if y.is_empty() {
        return Ok(());
    }
    if !separable(taps) {
        // Axes that are not summed over stand in front.
        let mut axes = [(); 3].map(|()| Axis::single());
        let lead = axes.len() - taps.len();
        axes[lead..].iter_mut().zip(taps).for_each(|(axis, taps)| *axis = Axis::of(taps));
        boxes(cpu, &axes, channels, x, y, accumulate);
        return Ok(());
    }
    let mut buffer: Option<Buffer> = None;
    for (i, along) in taps.iter().enumerate() {
        let inner = taps[i + 1..].iter().map(|t| t.size).product::<usize>() * channels;
        let axes = [Axis::single(), Axis::of(along), Axis::single()];
        let from = buffer.as_ref().map_or(x, |b| b.as_slice());
        if i + 1 == taps.len() {
            boxes(cpu, &axes, inner, from, y, accumulate);
            break;
        }
        let elements = from.len() / along.size.max(1) * along.len();
        let mut next = cx.workspace(elements * size_of::<E>())?;
        if elements > 0 {
            boxes(cpu, &axes, inner, from, next.as_mut_slice(), false);
        }
        buffer = Some(next);
    }
    Ok(())
}

/// Results side by side that are places side by side, or none.
struct Run {
    to: usize,
    from: Option<usize>,
    len: usize,
}

/// The runs along an axis of results that are one place each, or none.
fn runs(taps: &Taps) -> Vec<Run> {
    let mut runs: Vec<Run> = Vec::new();
    for to in 0..taps.len() {
        let from = taps.place(to);
        match runs.last_mut() {
            Some(last) if last.from.map(|f| f + last.len) == from => last.len += 1,
            _ => runs.push(Run { to, from, len: 1 }),
        }
    }
    runs
}

/// `y` = the places of `x` that the results are, which have `cell` bytes; a result without one is made of
/// copies of the element `fill`.
pub(super) fn moves(cpu: &Cpu, taps: &[Taps], cell: usize, x: &[u8], y: &mut [u8], fill: &[u8]) {
    if y.is_empty() {
        return;
    }
    let Some((inner, lead)) = taps.split_last() else { return };
    let runs = runs(inner);
    let size = |axis: Option<&Taps>| axis.map_or((1, 1), |t| (t.size, t.len()));
    let (middle, outer) = (lead.last(), lead.len().checked_sub(2).map(|i| &lead[i]));
    let ((lines, middles), (planes, outers)) = (size(middle), size(outer));
    let place = |axis: Option<&Taps>, o: usize| axis.map_or(Some(0), |t| t.place(o));
    let (row, line) = (inner.len() * cell, inner.size * cell);
    let rows = (PIECE * size_of::<f32>()).div_ceil(row);
    cpu.workers.chunks(y, rows * row, |i, y| {
        let mut before = None;
        for r in 0..y.len() / row {
            let at = i * rows + r;
            let (n, o, m) = (at / (outers * middles), at / middles % outers, at % middles);
            let source = place(outer, o).zip(place(middle, m)).map(|(o, m)| (n * planes + o) * lines + m);
            let to = r * row;
            if r > 0 && before == Some(source) {
                y.copy_within(to - row..to, to);
                continue;
            }
            before = Some(source);
            for run in &runs {
                let part = &mut y[to + run.to * cell..][..run.len * cell];
                match source.zip(run.from) {
                    Some((source, from)) => {
                        part.copy_from_slice(&x[source * line + from * cell..][..part.len()]);
                    }
                    None => part.chunks_exact_mut(fill.len()).for_each(|e| e.copy_from_slice(fill)),
                }
            }
        }
    });
}
