//! Which gradients are reduced together: a pure plan, the same on every rank.

use std::ops::Range;

/// A range of the gradient arena that is reduced as one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BucketSpec {
    /// Indices of its parameters.
    pub params: Range<usize>,
    /// Its elements in the arena.
    pub elements: Range<usize>,
}

/// Cuts parameters, given by their places in the arena in order of registration, into buckets of at
/// most `cap` elements (a larger parameter has one of its own), in the order in which a backward pass
/// fills them: last parameters first. Every element between the first and the last parameter is in
/// exactly one bucket.
pub fn plan(params: &[Range<usize>], cap: usize) -> Vec<BucketSpec> {
    let mut buckets: Vec<BucketSpec> = Vec::new();
    for (i, range) in params.iter().enumerate().rev() {
        // A bucket reaches up to the next parameter's start, so that the padding between is covered.
        match buckets.last_mut() {
            Some(b) if b.elements.end - range.start <= cap => {
                b.params.start = i;
                b.elements.start = range.start;
            }
            last => {
                let end = last.map_or(range.end, |b| b.elements.start);
                buckets.push(BucketSpec { params: i..i + 1, elements: range.start..end });
            }
        }
    }
    buckets
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn buckets_partition_the_arena_in_backward_order(sizes in prop::collection::vec(0usize..5_000, 0..40), cap in 1usize..9_000) {
            let mut at = 64;
            let params: Vec<_> = sizes.iter().map(|n| {
                let r = at..at + n;
                at = (at + n).next_multiple_of(16);
                r
            }).collect();
            let buckets = plan(&params, cap);
            // Params and elements, from the last bucket to the first, follow on each other.
            let mut next = (0, params.first().map_or(0, |p| p.start));
            for b in buckets.iter().rev() {
                prop_assert_eq!((b.params.start, b.elements.start), next);
                prop_assert!(b.params.len() == 1 || b.elements.len() <= cap);
                for i in b.params.clone() {
                    prop_assert!(params[i].start >= b.elements.start && params[i].end <= b.elements.end);
                }
                next = (b.params.end, b.elements.end);
            }
            prop_assert_eq!(next.0, params.len());
            // No two neighbours would fit into one bucket.
            for w in buckets.windows(2) {
                let last = params[w[1].params.end - 1].start;
                prop_assert!(w[0].elements.end - last > cap);
            }
        }
    }
}
