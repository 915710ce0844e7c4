//! The last rows of a pipeline that a device does while it normalises bytes: those that mirror left and right, and one that
//! cuts. What is drawn for them here is what they would draw, so the values are the same.

use phalanx_host::rng::Stream;

use super::Step;
use super::geometry::Geometry;
use super::ops::look;

/// What a row does to an image, where a device can do it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Later {
    /// Mirrors left and right.
    Mirrors,
    /// Moves the image within its size; zeros come in.
    Shifts,
    /// Takes a part of another size, with zeros around an image that is smaller.
    Crops,
}

/// The part of an image that is seen.
#[derive(Debug, Clone, Copy)]
pub(super) struct Part {
    /// The row and column of the image where it begins; outside it pixels are 0.
    pub(super) from: [i64; 2],
    /// Height and width.
    pub(super) size: [usize; 2],
    /// Whether it is mirrored left to right once it has been cut.
    pub(super) mirrored: bool,
}

impl Part {
    /// All of an image of that size.
    fn whole(size: [usize; 2]) -> Self {
        Part { from: [0; 2], size, mirrored: false }
    }

    /// Narrows it to the part of it that begins at `from` and has that size.
    pub(super) fn cut(&mut self, [y, x]: [i64; 2], size: [usize; 2]) {
        // In a mirrored part columns are counted from the other side.
        let x = if self.mirrored { self.size[1] as i64 - size[1] as i64 - x } else { x };
        self.from = [self.from[0] + y, self.from[1] + x];
        self.size = size;
    }
}

/// The rows that are left to the device, with their places in the list.
pub(super) struct Left {
    rows: Vec<(u64, Box<dyn Step>)>,
    /// Height and width of the bytes that it gets.
    pub(super) carried: [usize; 2],
}

/// How many times the pixels that are seen may cross to the device, where that saves the work of cutting here.
const MOST_CARRIED: usize = 2;

impl Left {
    /// Nothing is left to do to images of that size.
    pub(super) fn nothing(size: [usize; 2]) -> Self {
        Left { rows: Vec::new(), carried: size }
    }

    /// Takes what can be left from the end of the rows on bytes, which give images the size `output`. `stored` is the size of
    /// stored images where that is always the same.
    pub(super) fn of(
        looks: &mut Vec<(u64, Geometry)>,
        moves: &mut Vec<(u64, Box<dyn Step>)>,
        stored: Option<[usize; 2]>,
        output: [usize; 2],
    ) -> Self {
        let mut left = Left::nothing(output);
        let area = |[h, w]: [usize; 2]| h.saturating_mul(w);
        let laters = looks.iter().map(|(_, look)| look.later());
        let all: Vec<_> = laters.chain(moves.iter().map(|(_, step)| step.later())).collect();
        // Pixels that one cut drops a second one may not show again, so there is one at most.
        let mut cut = false;
        for (before, later) in all.iter().enumerate().rev() {
            match (later, stored) {
                (Some(Later::Mirrors), _) => {}
                (Some(Later::Shifts), _) if !cut => cut = true,
                // Behind rows that stay here more would be decoded, resized and carried than is seen.
                (Some(Later::Crops), Some(stored))
                    if !cut
                        && all[..before].iter().all(|l| *l == Some(Later::Mirrors))
                        && area(stored) <= MOST_CARRIED.saturating_mul(area(output)) =>
                {
                    (cut, left.carried) = (true, stored);
                }
                _ => break,
            }
            left.rows.extend(moves.pop().or_else(|| looks.pop().map(|(i, geometry)| (i, look(geometry)))));
        }
        left.rows.reverse();
        left
    }

    /// What the rows make of one image, whose random streams are these: first row, first column and whether it is mirrored.
    /// Nothing without rows.
    pub(super) fn place(&self, stream: impl Fn(&u64) -> Stream) -> Option<[i64; 3]> {
        let mut part = Part::whole(self.carried);
        for (i, step) in &self.rows {
            step.place(&mut part, &mut stream(i));
        }
        let [top, left] = part.from;
        (!self.rows.is_empty()).then_some([top, left, i64::from(part.mirrored)])
    }

    pub(super) fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }
}
