//! Shuffled blocks, and windows of them: neighbours on disk are read together.

use phalanx_host::rng::Key;

use super::feistel::{Domain, Feistel, mix};

/// Separates the streams of one epoch's blocks and windows.
const BLOCKS: u64 = 1;
const WINDOWS: u64 = 2;
/// The most slots whose blocks are kept: a quarter of a megabyte, whatever the set.
const FEW: u64 = 1 << 16;

/// A permutation of `0..n` in two stages. Blocks of `block` neighbouring samples, the last perhaps short, are put into
/// `slots` in a random order; `window` consecutive slots make up a window, whose samples are permuted again. All of it
/// is arithmetic: the one short block lies in the slot that the inverse permutation tells.
#[derive(Debug, Clone)]
pub(super) struct Blocked {
    n: u64,
    block: u64,
    window: u64,
    slots: Domain,
    /// The samples of the last block.
    short: u64,
    /// Its slot, and the position of the slot's first sample.
    short_slot: u64,
    short_start: u64,
    order: Feistel,
    /// The blocks in the slots, where these are few enough to be kept: a window's are neighbours here.
    few: Vec<u32>,
    windows: Feistel,
    /// What tells one window's permutation from another's.
    tweak: [u64; 2],
    /// Of a window without the short block and not the last: there are no others in most places.
    regular: Domain,
}

impl Blocked {
    pub(super) fn new(key: Key, n: u64, block: u64, window: u64) -> Self {
        let block = block.clamp(1, n.max(1));
        let slots = Domain::new(n.div_ceil(block));
        let window = window.clamp(1, slots.len().max(1));
        let order = Feistel::new(key.derive(BLOCKS, 0));
        let mut tweak = key.derive(WINDOWS, 1).stream();
        let last = slots.len().saturating_sub(1);
        let short_slot = if n == 0 { 0 } else { order.before(&slots, last) };
        let few = if slots.len() <= FEW { slots.len() } else { 0 };
        let few = (0..few).map(|slot| order.at(&slots, 0, slot) as u32).collect();
        Blocked {
            n,
            block,
            window,
            short: n - last * block,
            short_slot,
            short_start: short_slot * block,
            order,
            few,
            windows: Feistel::new(key.derive(WINDOWS, 0)),
            tweak: [tweak.u64(), tweak.u64() | 1],
            regular: Domain::new(block.saturating_mul(window)),
            slots,
        }
    }

    pub(super) fn len(&self) -> u64 {
        self.n
    }

    /// The position of the first sample of a slot; the end for the number of slots.
    #[inline(always)]
    fn start(&self, slot: u64) -> u64 {
        match slot > self.short_slot {
            true => (slot - 1) * self.block + self.short,
            false => slot * self.block,
        }
    }

    /// The slot that holds a position, and the place in it.
    #[inline(always)]
    fn place(&self, position: u64) -> (u64, u64) {
        let behind = self.short_start + self.short;
        if position < self.short_start {
            (position / self.block, position % self.block)
        } else if position < behind {
            (self.short_slot, position - self.short_start)
        } else {
            let after = position - behind;
            (self.short_slot + 1 + after / self.block, after % self.block)
        }
    }

    /// The sample at a position below `n`.
    #[inline]
    pub(super) fn at(&self, position: u64) -> u64 {
        let window = self.place(position).0 / self.window;
        let first = window * self.window;
        let (start, end) = (self.start(first), self.start(self.slots.len().min(first + self.window)));
        let domain = match end - start == self.regular.len() {
            true => self.regular,
            false => Domain::new(end - start),
        };
        let moved = self.windows.at(&domain, mix(window, self.tweak), position - start);
        let (slot, place) = self.place(start + moved);
        let block = match self.few.get(slot as usize) {
            Some(&block) => block.into(),
            None => self.order.at(&self.slots, 0, slot),
        };
        block * self.block + place
    }
}
