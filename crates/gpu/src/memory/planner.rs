//! Which block serves a request: pure arithmetic on addresses.
//!
//! As in PyTorch's caching allocator: requests up to 1 MB are cut from segments of 2 MB, larger ones from segments
//! of 20 MB or their own; the smallest free block that fits is taken, and what is left of it is split off. A block
//! that is given back joins its free neighbours.

use std::collections::{BTreeMap, BTreeSet};

/// Every block begins at a multiple of this and has a multiple of it, in bytes.
pub(super) const UNIT: u64 = 512;
/// The largest request that is small.
const SMALL: u64 = 1 << 20;
/// A segment for small requests.
const SMALL_SEGMENT: u64 = 2 << 20;
/// A segment for large requests below [`OWN`].
const LARGE_SEGMENT: u64 = 20 << 20;
/// Requests from here on get a segment of their own, …
const OWN: u64 = 10 << 20;
/// … of a multiple of this.
pub(super) const SEGMENT_UNIT: u64 = 2 << 20;

/// Which requests a segment serves: blocks of a captured graph are its own for as long as it lives.
pub(super) type Tag = u32;

struct Piece {
    size: u64,
    used: bool,
    segment: u64,
}

struct Segment {
    size: u64,
    tag: Tag,
    large: bool,
}

/// Free and used pieces of the segments that came from the device.
#[derive(Default)]
pub(super) struct Planner {
    /// By tag, kind, size and address: the first that is not too small is the best.
    free: BTreeSet<(Tag, bool, u64, u64)>,
    pieces: BTreeMap<u64, Piece>,
    segments: BTreeMap<u64, Segment>,
    /// Bytes in used blocks of each tag.
    used: BTreeMap<Tag, u64>,
}

/// What a request takes at least, in bytes.
pub(super) fn rounded(bytes: usize) -> u64 {
    (bytes as u64).max(1).next_multiple_of(UNIT)
}

/// Size of the segment to ask the device for when nothing is free, in bytes.
pub(super) fn segment_size(bytes: usize) -> u64 {
    match rounded(bytes) {
        size if size <= SMALL => SMALL_SEGMENT,
        size if size < OWN => LARGE_SEGMENT,
        size => size.next_multiple_of(SEGMENT_UNIT),
    }
}

impl Planner {
    /// Address and size of a block for a request, if one is free.
    pub(super) fn take(&mut self, tag: Tag, bytes: usize) -> Option<(u64, u64)> {
        let size = rounded(bytes);
        let large = size > SMALL;
        let found = self.free.range((tag, large, size, 0)..).next();
        let best = *found.filter(|f| (f.0, f.1) == (tag, large))?;
        let (_, _, has, address) = best;
        self.free.remove(&best);
        let piece = self.pieces.get_mut(&address)?;
        piece.used = true;
        // A large block keeps a rest that could serve no large request.
        let rest = has - size;
        let whole = rest == 0 || (large && rest <= SMALL);
        *self.used.entry(tag).or_default() += if whole { has } else { size };
        if whole {
            return Some((address, has));
        }
        piece.size = size;
        let segment = piece.segment;
        self.pieces.insert(address + size, Piece { size: rest, used: false, segment });
        self.free.insert((tag, large, rest, address + size));
        Some((address, size))
    }

    /// Adds a segment that the device gave for a request.
    pub(super) fn insert(&mut self, tag: Tag, address: u64, size: u64, bytes: usize) {
        let large = rounded(bytes) > SMALL;
        self.segments.insert(address, Segment { size, tag, large });
        self.pieces.insert(address, Piece { size, used: false, segment: address });
        self.free.insert((tag, large, size, address));
    }

    /// Takes a block back and gives its size; `None` if it is not in use.
    pub(super) fn give(&mut self, address: u64) -> Option<u64> {
        let piece = self.pieces.get_mut(&address).filter(|p| p.used)?;
        piece.used = false;
        let (given, segment) = (piece.size, piece.segment);
        let Segment { tag, large, .. } = *self.segments.get(&segment)?;
        if let Some(used) = self.used.get_mut(&tag) {
            *used -= given;
        }
        let (mut start, mut size) = (address, given);
        let next = address + given;
        if let Some(n) = self.pieces.get(&next).filter(|n| !n.used && n.segment == segment).map(|n| n.size) {
            self.pieces.remove(&next);
            self.free.remove(&(tag, large, n, next));
            size += n;
        }
        let before = self.pieces.range(..address).next_back();
        if let Some((b, s)) =
            before.filter(|(_, p)| !p.used && p.segment == segment).map(|(b, p)| (*b, p.size))
        {
            self.pieces.remove(&address);
            self.free.remove(&(tag, large, s, b));
            start = b;
            size += s;
        }
        if let Some(p) = self.pieces.get_mut(&start) {
            p.size = size;
        }
        self.free.insert((tag, large, size, start));
        Some(given)
    }

    /// Forgets the segments without a used block, except those of live graphs, and gives their addresses.
    pub(super) fn release(&mut self) -> Vec<u64> {
        let whole: Vec<u64> = self
            .segments
            .iter()
            .filter(|(a, s)| s.tag == 0 && self.pieces.get(a).is_some_and(|p| !p.used && p.size == s.size))
            .map(|(a, _)| *a)
            .collect();
        for address in &whole {
            if let Some(s) = self.segments.remove(address) {
                self.pieces.remove(address);
                self.free.remove(&(s.tag, s.large, s.size, *address));
            }
        }
        whole
    }

    /// Lets the segments of one tag serve requests of tag 0.
    pub(super) fn retire(&mut self, tag: Tag) {
        for s in self.segments.values_mut().filter(|s| s.tag == tag) {
            s.tag = 0;
        }
        let moved: Vec<_> = self.free.range((tag, false, 0, 0)..(tag + 1, false, 0, 0)).copied().collect();
        for f in moved {
            self.free.remove(&f);
            self.free.insert((0, f.1, f.2, f.3));
        }
        if let Some(used) = self.used.remove(&tag) {
            *self.used.entry(0).or_default() += used;
        }
    }

    /// Bytes in used blocks of one tag.
    pub(super) fn used(&self, tag: Tag) -> u64 {
        self.used.get(&tag).copied().unwrap_or(0)
    }

    /// Bytes of the segments of one tag.
    pub(super) fn held_by(&self, tag: Tag) -> u64 {
        self.segments.values().filter(|s| s.tag == tag).map(|s| s.size).sum()
    }

    /// The largest request that a free piece of one tag could serve, in bytes.
    pub(super) fn largest_free(&self, tag: Tag) -> u64 {
        let of_tag = self.free.range((tag, false, 0, 0)..(tag + 1, false, 0, 0));
        of_tag.map(|(_, large, size, _)| if *large { *size } else { (*size).min(SMALL) }).max().unwrap_or(0)
    }

    /// Bytes of free pieces of other tags than this one.
    pub(super) fn idle_of_others(&self, tag: Tag) -> u64 {
        self.free.iter().filter(|f| f.0 != tag).map(|f| f.2).sum()
    }

    /// Forgets everything and gives the addresses of all segments.
    pub(super) fn clear(&mut self) -> Vec<u64> {
        self.free.clear();
        self.pieces.clear();
        self.used.clear();
        std::mem::take(&mut self.segments).into_keys().collect()
    }

    /// Bytes of all segments.
    pub(super) fn held(&self) -> u64 {
        self.segments.values().map(|s| s.size).sum()
    }

    /// Sizes of the largest used blocks.
    pub(super) fn largest(&self, count: usize) -> Vec<u64> {
        let mut sizes: Vec<u64> = self.pieces.values().filter(|p| p.used).map(|p| p.size).collect();
        sizes.sort_unstable_by(|a, b| b.cmp(a));
        sizes.truncate(count);
        sizes
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    impl Planner {
        /// Every byte of every segment is in one piece, no two free pieces touch, and the free list is the free pieces.
        fn check(&self) {
            let mut free = BTreeSet::new();
            for (start, s) in &self.segments {
                let mut at = *start;
                let mut before_free = false;
                for (a, p) in self.pieces.range(*start..start + s.size) {
                    assert_eq!((*a, p.segment), (at, *start));
                    assert!(p.size > 0 && p.size % UNIT == 0);
                    assert!(p.used || !before_free, "two free pieces side by side");
                    if !p.used {
                        free.insert((s.tag, s.large, p.size, *a));
                    }
                    before_free = !p.used;
                    at += p.size;
                }
                assert_eq!(at, start + s.size);
            }
            assert_eq!(free, self.free);
            let bytes: u64 = self.pieces.values().map(|p| p.size).sum();
            assert_eq!(bytes, self.held());
            for tag in 0..3 {
                let of = |p: &&Piece| p.used && self.segments[&p.segment].tag == tag;
                assert_eq!(self.used(tag), self.pieces.values().filter(of).map(|p| p.size).sum::<u64>());
            }
            assert_eq!((0..3).map(|t| self.held_by(t)).sum::<u64>(), self.held());
        }
    }

    #[derive(Debug, Clone)]
    enum Step {
        Take(usize, Tag),
        Give(usize),
        Release,
        Retire(Tag),
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let bytes = prop_oneof![0usize..5000, 0usize..2 << 20, 0usize..40 << 20];
        let step = prop_oneof![
            6 => (bytes, 0u32..3).prop_map(|(b, t)| Step::Take(b, t)),
            5 => any::<usize>().prop_map(Step::Give),
            1 => Just(Step::Release),
            1 => (1u32..3).prop_map(Step::Retire),
        ];
        proptest::collection::vec(step, 1..120)
    }

    proptest! {
        #[test]
        fn blocks_never_overlap_and_nothing_is_lost(steps in steps()) {
            let mut planner = Planner::default();
            let mut device = 1u64 << 30;
            let mut live: Vec<(u64, u64)> = Vec::new();
            for step in steps {
                match step {
                    Step::Take(bytes, tag) => {
                        let (address, size) = planner.take(tag, bytes).unwrap_or_else(|| {
                            let segment = segment_size(bytes);
                            planner.insert(tag, device, segment, bytes);
                            // Some segments are neighbours: they must not be joined.
                            device += segment;
                            planner.take(tag, bytes).unwrap()
                        });
                        prop_assert!(size >= bytes as u64 && size - rounded(bytes) <= SMALL);
                        prop_assert!(size == rounded(bytes) || size > SMALL, "a small block has no waste");
                        prop_assert_eq!(address % UNIT, 0);
                        prop_assert!(live.iter().all(|(a, s)| address + size <= *a || a + s <= address));
                        live.push((address, size));
                    }
                    Step::Give(which) if !live.is_empty() => {
                        let (address, size) = live.swap_remove(which % live.len());
                        prop_assert_eq!(planner.give(address), Some(size));
                        prop_assert_eq!(planner.give(address), None);
                    }
                    Step::Give(_) => {}
                    Step::Release => {
                        let gone = planner.release();
                        for (a, _) in &live {
                            prop_assert!(!gone.contains(a) && planner.pieces.contains_key(a));
                        }
                    }
                    Step::Retire(tag) => planner.retire(tag),
                }
                planner.check();
                let mut sizes: Vec<u64> = live.iter().map(|l| l.1).collect();
                sizes.sort_unstable_by(|a, b| b.cmp(a));
                prop_assert_eq!(planner.largest(usize::MAX), sizes);
            }
            for (address, _) in live {
                planner.give(address);
            }
            for tag in 1..3 {
                planner.retire(tag);
            }
            planner.release();
            prop_assert_eq!(planner.held(), 0);
        }
    }

    #[test]
    fn the_smallest_block_that_fits_is_taken() {
        let mut p = Planner::default();
        p.insert(0, 1 << 30, 20 << 20, 5 << 20);
        p.insert(0, 2 << 30, 12 << 20, 12 << 20);
        assert_eq!(p.take(0, 11 << 20), Some((2 << 30, 12 << 20)), "a rest of 1 MB stays with it");
        assert_eq!(p.take(0, 5 << 20), Some((1 << 30, 5 << 20)));
        assert_eq!(p.take(0, 16 << 20), None);
        assert_eq!(p.take(0, 4096), None, "a small request takes no large segment");
        assert_eq!(p.take(1, 5 << 20), None, "nor one tag another's");
    }
}
