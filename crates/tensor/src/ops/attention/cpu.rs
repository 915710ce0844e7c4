//! One query's share of a block of weights.

use phalanx_host::simd::{Kernel, Simd};

use crate::ops::columns::{load, store};
use crate::ops::elementwise::math::Math;
use crate::ops::loss::cpu::{exponentials, largest, update};

/// The next scores of a query: its weights so far, which were relative to the largest score, are rescaled.
pub(super) struct Advance<'a, E> {
    /// The scores.
    pub(super) s: &'a [E],
    /// e^(s − the largest so far).
    pub(super) p: &'a mut [E],
    /// The largest score so far, and the sum of the exponentials.
    pub(super) top: &'a mut E,
    pub(super) sum: &'a mut E,
    /// The weighted values so far.
    pub(super) y: &'a mut [E],
}

impl<E: Math> Kernel<E> for Advance<'_, E> {
    type Out = ();
    #[inline(always)]
    fn run<V: Simd<E>>(self) {
        let here = largest::<E, V>(self.s);
        let top = if here > *self.top { here } else { *self.top };
        if top == E::NEG_INFINITY && self.s.iter().all(|&s| s == E::NEG_INFINITY) {
            self.p.fill(E::ZERO);
            return;
        }
        let sum = exponentials::<E, V>(self.s, top, self.p);
        if top > *self.top {
            let mut share = [E::ZERO];
            exponentials::<E, V>(&[*self.top], top, &mut share);
            *self.sum = *self.sum * share[0];
            let share = V::splat(share[0]);
            let mut i = 0;
            while i < self.y.len() {
                let w = (self.y.len() - i).min(V::LANES);
                store(load::<E, V>(self.y, i, w).mul(share), self.y, i, w);
                i += w;
            }
        }
        *self.top = top;
        *self.sum += sum;
    }
}

/// The weights of a query whose logarithm of the sum is known: `p = e^(s − log)`.
pub(super) struct Again<'a, E> {
    pub(super) s: &'a [E],
    pub(super) log: E,
    pub(super) p: &'a mut [E],
}

impl<E: Math> Kernel<E> for Again<'_, E> {
    type Out = ();
    #[inline(always)]
    fn run<V: Simd<E>>(self) {
        exponentials::<E, V>(self.s, self.log, self.p);
    }
}

/// The gradient of a query's scores from its weights: `dp ← p · (dp − share) · scale`.
pub(super) struct Slopes<'a, E> {
    pub(super) p: &'a [E],
    pub(super) dp: &'a mut [E],
    pub(super) share: E,
    pub(super) scale: E,
}

impl<E: Math> Kernel<E> for Slopes<'_, E> {
    type Out = ();
    #[inline(always)]
    fn run<V: Simd<E>>(self) {
        let (share, scale) = (V::splat(self.share), V::splat(self.scale));
        update::<E, V>(self.p, self.dp, |p, dp| p.mul(dp.sub(share)).mul(scale));
    }
}
