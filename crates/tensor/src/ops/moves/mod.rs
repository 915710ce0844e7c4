//! Ops whose results are places of the operand, along each axis by itself: padding and cropping, flips,
//! rolls, repetition, windows taken out (im2col) and put back. They move elements of any type; their
//! gradients add up, for each place, what it went into.

mod windows;

pub use windows::fold;

use super::boxes::{BoxSum, Boxes, Taps};
use crate::tape::apply_one;
use crate::{Error, Result, Shape, Tensor, ops};

/// What padding holds, as `torch.nn.functional.pad` names it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum PadMode {
    /// One number.
    Constant(f64),
    /// The places mirrored at the border place, which is not repeated: `c b | a b c | b a`.
    Reflect,
    /// The border place: `a a | a b c | c c`.
    Replicate,
    /// The places from the other end: `b c | a b c | a b`.
    Circular,
}

/// Which place each result along an axis is.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Along {
    /// The same place.
    Keep,
    Pad(PadMode, isize, isize),
    Flip,
    /// Everything moves up by so much, what leaves at the end comes in at the front.
    Roll(isize),
    Repeat(usize),
    Windows(windows::Window),
}

/// The most results along an axis, as when resizing.
const MOST: usize = u32::MAX as usize;

/// The name in errors.
type Name = &'static str;

/// Rules for the 1 to 3 axes between the outermost and the innermost.
#[derive(Debug, Clone)]
struct Moves {
    op: Name,
    axes: Vec<Along>,
}

impl PadMode {
    /// The sizes that axes of `sizes` get when they are padded by `amounts`. Fails as [`Tensor::pad`] does.
    pub fn output(self, sizes: &[usize], amounts: &[[isize; 2]]) -> Result<Shape> {
        let refuse = |why: String| Error::Invalid { op: "pad", shape: sizes.into(), why };
        if sizes.len() != amounts.len() {
            return Err(refuse(format!("{amounts:?} has not two numbers for each axis")));
        }
        let one = |(&size, &[before, after]): (&usize, &[isize; 2])| {
            Along::Pad(self, before, after).length(size).map_err(refuse)
        };
        Ok(Shape::new(&sizes.iter().zip(amounts).map(one).collect::<Result<Vec<_>>>()?))
    }

    /// The place `at` places from the first one of an axis of `size`, which is not 0 unless the mode is
    /// `Constant`. `from` and `to` bound what a wrapped axis repeats.
    fn place(self, at: isize, size: isize, [from, to]: [isize; 2]) -> Option<usize> {
        let inside = (0..size).contains(&at);
        let place = match self {
            _ if inside => at,
            PadMode::Constant(_) => return None,
            PadMode::Reflect if at < 0 => -at,
            PadMode::Reflect => 2 * (size - 1) - at,
            PadMode::Replicate => at.clamp(0, size - 1),
            PadMode::Circular => from + (at - from).rem_euclid(to - from),
        };
        Some(place as usize)
    }
}

/// What is left of an axis of `size` after cropping by negative amounts: a wrapped axis repeats this.
fn kept(size: isize, before: isize, after: isize) -> [isize; 2] {
    [(-before).max(0), (size + after).min(size)]
}

impl Along {
    /// The number of results, or the rule that is broken.
    fn length(self, size: usize) -> std::result::Result<usize, String> {
        let n = size as isize;
        let len = match self {
            Along::Keep | Along::Flip | Along::Roll(_) => return Ok(size),
            Along::Repeat(times) => times.checked_mul(size),
            Along::Windows(window) => window.length(size)?,
            Along::Pad(mode, before, after) => {
                let end = n.checked_add(after).zip(n.checked_add(before).and_then(|l| l.checked_add(after)));
                let Some((_, len)) = end.filter(|&(_, len)| len >= 0) else {
                    return Err(format!(
                        "padding by {before} and {after} leaves less than nothing of {size}"
                    ));
                };
                let [from, to] = kept(n, before, after);
                let room = match mode {
                    PadMode::Constant(_) => isize::MAX,
                    PadMode::Reflect => n - 1,
                    PadMode::Replicate if n > 0 => isize::MAX,
                    PadMode::Replicate => 0,
                    PadMode::Circular => (to - from).max(0),
                };
                if before.max(after).max(0) > room {
                    return Err(format!(
                        "{mode:?} padding of {before} and {after} on an axis of {size} reaches further than it can \
                         ({room})"
                    ));
                }
                Some(len as usize)
            }
        };
        // A list of places has to fit in memory, whatever a configuration asks for.
        len.filter(|&len| len <= MOST).ok_or_else(|| format!("{size} places would become more than {MOST}"))
    }

    /// The place that each result is, or the rule that is broken.
    fn places(self, size: usize) -> std::result::Result<Vec<Option<usize>>, String> {
        self.length(size)?;
        let n = size as isize;
        Ok(match self {
            Along::Keep => (0..size).map(Some).collect(),
            Along::Flip => (0..size).rev().map(Some).collect(),
            Along::Roll(by) => (0..n).map(|i| Some((i - by % n.max(1)).rem_euclid(n) as usize)).collect(),
            Along::Repeat(times) => (0..times).flat_map(|_| (0..size).map(Some)).collect(),
            Along::Windows(window) => window.places(size)?,
            Along::Pad(mode, before, after) => {
                let kept = kept(n, before, after);
                (-before..n + after).map(|at| mode.place(at, n, kept)).collect()
            }
        })
    }
}

impl Boxes for Moves {
    fn name(&self) -> &'static str {
        self.op
    }

    fn rank(&self) -> usize {
        self.axes.len()
    }

    fn taps(&self, x: Shape) -> Result<Vec<Taps>> {
        let one = |(along, &size): (&Along, &usize)| {
            let places = along.places(size).map_err(|why| Error::Invalid { op: self.op, shape: x, why })?;
            let mut taps = Taps::new(size);
            places.into_iter().for_each(|p| taps.push(p.map(|p| (p, 1.0)).into_iter(), 1.0));
            Ok(taps)
        };
        self.axes.iter().zip(&x[1..]).map(one).collect()
    }

    fn moves(&self) -> bool {
        true
    }
}

/// Applies a rule an axis, `axes[i]` to axis i of `x`, and leaves the axes beyond as they are.
fn along(op: Name, x: &Tensor, axes: &[Along], fill: f64) -> Result<Tensor> {
    let refuse = |why: String| Err(Error::Invalid { op, shape: x.shape(), why });
    if axes.len() > x.shape().len() {
        return refuse(format!("it has {} axes, not {}", x.shape().len(), axes.len()));
    }
    let mut made = x.clone();
    let mut first = 0;
    // Up to three neighbouring axes at once, as the kernel takes them.
    while let Some(a) = (first..axes.len()).find(|&a| axes[a] != Along::Keep) {
        let end = (a + 1..(a + 4).min(axes.len() + 1)).rev().find(|&e| axes[e - 1] != Along::Keep);
        let end = end.unwrap_or(a + 1);
        let shape = made.shape();
        let sides = [&shape[..a], &shape[end..]].map(|s| s.iter().product::<usize>());
        let boxed = [&[sides[0]], &shape[a..end], &[sides[1]]].concat();
        let rule = Moves { op, axes: axes[a..end].to_vec() };
        // Refused here, so that the message shows the operand's own shape.
        for (along, &size) in rule.axes.iter().zip(&shape[a..end]) {
            along.length(size).or_else(|why| refuse(why).map(|_| 0))?;
        }
        let y = apply_one(BoxSum::filled(rule, fill), &[&made.reshape(&boxed)?])?;
        let sizes = y.shape();
        made = y.reshape(&[&shape[..a], &sizes[1..sizes.len() - 1], &shape[end..]].concat())?;
        first = end;
    }
    Ok(made)
}

/// `Keep` for all axes of `x` but those listed.
fn at_axes(op: Name, x: &Tensor, list: &[(usize, Along)]) -> Result<Vec<Along>> {
    let mut axes = vec![Along::Keep; x.shape().len()];
    for &(axis, along) in list {
        ops::want_axis(op, x.shape(), axis)?;
        axes[axis] = along;
    }
    Ok(axes)
}

impl Tensor {
    /// Padded along the axes `axis, axis + 1, …` by `amounts` (before, after); negative amounts crop.
    /// `torch.nn.functional.pad`'s semantics, with the axes in order instead of the last one first.
    ///
    /// Fails when an axis would be left with less than nothing; when a mirrored axis would be padded by its
    /// size or more, or a wrapped one by more than its size.
    pub fn pad(&self, axis: usize, amounts: &[[isize; 2]], mode: PadMode) -> Result<Tensor> {
        let list = amounts.iter().enumerate().map(|(i, &[b, a])| match [b, a] {
            [0, 0] => (axis + i, Along::Keep),
            _ => (axis + i, Along::Pad(mode, b, a)),
        });
        let axes = at_axes("pad", self, &list.collect::<Vec<_>>())?;
        let fill = if let PadMode::Constant(value) = mode { value } else { 0.0 };
        along("pad", self, &axes, fill)
    }

    /// The elements in reverse along each of `axes`.
    pub fn flip(&self, axes: &[usize]) -> Result<Tensor> {
        let list: Vec<_> = axes.iter().map(|&a| (a, Along::Flip)).collect();
        along("flip", self, &at_axes("flip", self, &list)?, 0.0)
    }

    /// Moved by `shift` places along `axis`; what leaves at one end comes in at the other.
    pub fn roll(&self, axis: usize, shift: isize) -> Result<Tensor> {
        along("roll", self, &at_axes("roll", self, &[(axis, Along::Roll(shift))])?, 0.0)
    }

    /// `times[i]` copies one after the other along axis i, as `torch.tile`; one number for each axis.
    pub fn repeat(&self, times: &[usize]) -> Result<Tensor> {
        if times.len() != self.shape().len() {
            let why = format!("{times:?} has not one number for each axis");
            return Err(Error::Invalid { op: "repeat", shape: self.shape(), why });
        }
        let list = times.iter().map(|&n| if n == 1 { Along::Keep } else { Along::Repeat(n) });
        along("repeat", self, &list.collect::<Vec<_>>(), 0.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_mode_names_the_places_that_its_picture_shows() {
        let places = |mode, before, after, size| Along::Pad(mode, before, after).places(size);
        let of = |mode, before, after| {
            places(mode, before, after, 4)
                .unwrap()
                .iter()
                .map(|p| p.map_or(-1, |p| p as i32))
                .collect::<Vec<_>>()
        };
        assert_eq!(of(PadMode::Constant(0.0), 1, 2), [-1, 0, 1, 2, 3, -1, -1]);
        assert_eq!(of(PadMode::Constant(0.0), -1, -2), [1]);
        assert_eq!(of(PadMode::Constant(0.0), -3, 2), [3, -1, -1]);
        assert_eq!(of(PadMode::Reflect, 3, 2), [3, 2, 1, 0, 1, 2, 3, 2, 1]);
        assert_eq!(of(PadMode::Replicate, 2, 1), [0, 0, 0, 1, 2, 3, 3]);
        assert_eq!(of(PadMode::Circular, 4, 1), [0, 1, 2, 3, 0, 1, 2, 3, 0]);
        // Cropped first, then what is left goes around.
        assert_eq!(of(PadMode::Circular, -1, 2), [1, 2, 3, 1, 2]);
        for (mode, before, after, size) in [
            (PadMode::Constant(0.0), -3, -2, 4),
            (PadMode::Reflect, 4, 0, 4),
            (PadMode::Circular, 0, 5, 4),
            (PadMode::Circular, -2, 3, 4),
            (PadMode::Replicate, 1, 0, 0),
            (PadMode::Reflect, 1, 0, 0),
            (PadMode::Constant(0.0), isize::MAX, 1, 4),
        ] {
            assert!(places(mode, before, after, size).is_err(), "{mode:?} {before} {after} {size}");
        }
    }

    #[test]
    fn sizes_are_known_without_places_and_absurd_ones_are_refused() {
        const FAR: usize = 1_000_000_000_000;
        for mode in [PadMode::Constant(0.0), PadMode::Replicate] {
            assert_eq!(mode.output(&[4, 5], &[[1, -2], [0, 3]]).unwrap(), [3, 8].into());
            assert_eq!(mode.output(&[4], &[[1 << 31, 0]]).unwrap(), [(1 << 31) + 4].into());
            for amounts in [[FAR as isize, 0], [0, FAR as isize], [isize::MAX, isize::MIN]] {
                assert!(mode.output(&[4], &[amounts]).is_err(), "{mode:?} {amounts:?}");
            }
        }
        // An axis as large as this leaves room for it.
        for mode in [PadMode::Reflect, PadMode::Circular] {
            assert!(mode.output(&[2 * FAR], &[[FAR as isize, 0]]).is_err(), "{mode:?}");
        }
        for times in [FAR, usize::MAX] {
            assert!(Along::Repeat(times).places(4).is_err(), "{times}");
        }
    }
}
