//! One piece of a lane on its way.

use std::ops::Range;

use super::{Exchange, Inner, Memory, bytes_of, bytes_of_mut, tag};
use crate::mpi::ffi::{Mpi, Request};
use crate::mpi::layout::Route;
use crate::{Operand, Result};

pub(super) struct Piece {
    pub(super) index: usize,
    range: Range<usize>,
    /// The group that adds it; all do when there is none.
    owner: Option<usize>,
    /// Whether totals are under way.
    totals: bool,
    /// The group's sums, in the arena or in `own`.
    sums: Vec<*const u8>,
    own: Memory,
    /// What is sent where the wire is narrow.
    packed: Memory,
    /// What comes: all other groups' sums, or the total.
    inbox: Memory,
    /// Its requests that are not done.
    pub(super) open: usize,
}

impl Piece {
    fn wait_for(&mut self, inner: &mut Inner, request: Request) {
        inner.requests.push(request, self.index);
        self.open += 1;
    }

    /// Memory that is free again.
    pub(super) fn memory(self) -> [Memory; 3] {
        [self.own, self.packed, self.inbox]
    }
}

impl Exchange {
    /// Copies `n` elements as they travel.
    pub(super) fn pack(&self, from: *const u8, to: *mut u8, n: usize) {
        if !self.narrow() {
            // SAFETY: `from` is a sum and `to` a message's place, both of `n` elements and apart.
            return unsafe { std::ptr::copy_nonoverlapping(from, to, n * self.call.dtype.size()) };
        }
        // SAFETY: as above; sums are f32 where the wire is narrow, and messages are aligned to 8 bytes.
        let (from, to) = unsafe {
            (
                std::slice::from_raw_parts(from.cast::<f32>(), n),
                std::slice::from_raw_parts_mut(to.cast::<u16>(), n),
            )
        };
        self.call.wire.pack(self.net.isa, from, to);
    }

    /// The inverse of [`Exchange::pack`].
    fn unpack(&self, from: *const u8, to: *mut u8, n: usize) {
        if !self.narrow() {
            // SAFETY: as in `pack`.
            return unsafe { std::ptr::copy_nonoverlapping(from, to, n * self.call.dtype.size()) };
        }
        // SAFETY: as in `pack`.
        let (from, to) = unsafe {
            (
                std::slice::from_raw_parts(from.cast::<u16>(), n),
                std::slice::from_raw_parts_mut(to.cast::<f32>(), n),
            )
        };
        self.call.wire.unpack(self.net.isa, from, to);
    }

    /// The sums of this rank's group over `range`, and the memory that those need which are no rank's part.
    pub(super) fn group_sums(&self, inner: &Inner, range: &Range<usize>) -> Result<(Vec<*const u8>, Memory)> {
        let size = self.call.dtype.size();
        let flat: Vec<*mut u8> = inner.parts.iter().flatten().copied().collect();
        // SAFETY: `range` lies inside every part.
        let at = |p: *mut u8| unsafe { p.add(range.start * size) };
        let parts: Vec<*const u8> = flat.iter().map(|p| at(*p).cast_const()).collect();
        let made = self.plan.local.iter().filter(|(f, _)| !f.steps.is_empty()).count();
        let each = (range.len() * size).next_multiple_of(64);
        let mut memory = if made > 0 { self.net.memory(made * each) } else { Vec::new() };
        let mut next = bytes_of_mut(&mut memory);
        let mut sums = Vec::with_capacity(self.plan.local.len());
        for (fold, total) in &self.plan.local {
            match total {
                Operand::Part(i) if fold.steps.is_empty() => sums.push(parts[*i]),
                _ => {
                    // SAFETY: the parts are the group's, which have all come and keep their guards until all
                    // lanes are done; this range is this lane's. The output is fresh memory, with room for
                    // `made` sums.
                    unsafe { self.rule().sum(fold, &parts, &[next], range.len()) };
                    sums.push(next.cast_const());
                    // SAFETY: stays within `made * each` bytes, or one past the last.
                    next = unsafe { next.add(each) };
                }
            }
        }
        Ok((sums, memory))
    }

    /// Adds all groups' sums, as they travelled, into part 0 of all ranks of this group.
    pub(super) fn add(&self, inner: &Inner, range: &Range<usize>, sums: &[*const u8]) {
        let (n, size) = (range.len(), self.call.dtype.size());
        let mut wide = Vec::new();
        let sums: Vec<*const u8> = if self.narrow() {
            wide = self.net.memory(sums.len() * n * size);
            let base = bytes_of_mut(&mut wide);
            let widen = |(i, sum): (usize, &*const u8)| {
                // SAFETY: there is room for all sums.
                let to = unsafe { base.add(i * n * size) };
                self.unpack(*sum, to, n);
                to.cast_const()
            };
            sums.iter().enumerate().map(widen).collect()
        } else {
            sums.to_vec()
        };
        let outs = self.outs(inner, range);
        // SAFETY: `sums` are messages that have come and this group's own sums, whose sends are done; each has
        // `n` elements. The outputs are this lane's range of the group's part 0, which nobody else touches
        // until the lane is done; a sum may lie in one of them, exactly there.
        unsafe { self.rule().sum(&self.plan.fold, &sums, &outs, n) };
        self.net.give_back(wide);
    }

    /// Part 0 of every rank of the group, at `range`.
    fn outs(&self, inner: &Inner, range: &Range<usize>) -> Vec<*mut u8> {
        let size = self.call.dtype.size();
        // SAFETY: `range` lies inside every part.
        inner.parts.iter().map(|p| unsafe { p[0].add(range.start * size) }).collect()
    }

    /// Makes a piece of this group's sums.
    pub(super) fn begin(&self, inner: &Inner, index: usize, range: Range<usize>) -> Result<Piece> {
        let groups = self.net.layout.groups.len();
        let owner = (inner.route == Route::Owned).then_some(index % groups);
        let (sums, own) = self.group_sums(inner, &range)?;
        let (n, each) = (range.len(), range.len() * self.wire_size());
        let mut piece = Piece {
            index,
            range,
            owner,
            totals: false,
            sums,
            own,
            packed: Vec::new(),
            inbox: Vec::new(),
            open: 0,
        };
        if self.narrow() {
            piece.packed = self.net.memory(piece.sums.len() * each.next_multiple_of(8));
            let base = bytes_of_mut(&mut piece.packed);
            for (i, sum) in piece.sums.iter_mut().enumerate() {
                // SAFETY: there is room for all sums, each on 8 bytes.
                let to = unsafe { base.add(i * each.next_multiple_of(8)) };
                self.pack(*sum, to, n);
                *sum = to.cast_const();
            }
        }
        Ok(piece)
    }

    /// Sends a piece on its way. The piece must be kept whatever comes of it: MPI may have its memory already.
    pub(super) fn post(&self, mpi: &Mpi, inner: &mut Inner, piece: &mut Piece) -> Result<()> {
        let (owner, each) = (piece.owner, piece.range.len() * self.wire_size());
        if owner.is_none_or(|o| o == self.net.group) {
            let coming = self.net.others().map(|g| self.plan.fold.parts[g]).sum::<usize>();
            piece.inbox = self.net.memory(coming * each.next_multiple_of(8));
            let mut at = bytes_of_mut(&mut piece.inbox);
            for group in self.net.others() {
                for part in 0..self.plan.fold.parts[group] {
                    let tag = tag(self.number, piece.index, part, false);
                    // SAFETY: a place of its own in the inbox, which is leaked if the request is given up.
                    unsafe {
                        let peer = self.net.peer(group);
                        piece.wait_for(inner, mpi.irecv(self.net.comm, at, each, peer, tag)?);
                        at = at.add(each.next_multiple_of(8));
                    }
                }
            }
        }
        for group in self.net.others().filter(|g| owner.is_none_or(|o| o == *g)) {
            for part in 0..piece.sums.len() {
                let tag = tag(self.number, piece.index, part, false);
                let (sum, peer) = (piece.sums[part], self.net.peer(group));
                // SAFETY: the sum lies in the arena or in the piece; both stay until the request is done, and
                // nothing is written there before.
                let sent = unsafe { mpi.isend(self.net.comm, sum, each, peer, tag)? };
                piece.wait_for(inner, sent);
            }
        }
        Ok(())
    }

    /// Moves a piece on whose requests are done; returns whether it is.
    pub(super) fn advance(&self, mpi: &Mpi, inner: &mut Inner, piece: &mut Piece) -> Result<bool> {
        let (n, each) = (piece.range.len(), piece.range.len() * self.wire_size());
        let outs = self.outs(inner, &piece.range);
        let tag = tag(self.number, piece.index, 0, true);
        match (piece.owner, piece.totals) {
            (owner, false) if owner.is_none_or(|o| o == self.net.group) => {
                let step = each.next_multiple_of(8);
                let mut at = bytes_of(&piece.inbox);
                let mut sums = Vec::new();
                for (group, &count) in self.plan.fold.parts.iter().enumerate() {
                    if group == self.net.group {
                        sums.extend(&piece.sums);
                        continue;
                    }
                    for _ in 0..count {
                        sums.push(at);
                        // SAFETY: within the inbox, or one past it.
                        at = unsafe { at.add(step) };
                    }
                }
                self.add(inner, &piece.range, &sums);
                if owner.is_none() {
                    return Ok(true);
                }
                piece.totals = true;
                let mut total = outs[0].cast_const();
                if self.narrow() {
                    // Its sums have been sent, and added.
                    let to = bytes_of_mut(&mut piece.packed);
                    self.pack(total, to, n);
                    total = to.cast_const();
                }
                for group in self.net.others() {
                    // SAFETY: as in `begin`.
                    let sent = unsafe { mpi.isend(self.net.comm, total, each, self.net.peer(group), tag)? };
                    piece.wait_for(inner, sent);
                }
                Ok(false)
            }
            // All have the total.
            (Some(owner), true) if owner == self.net.group => Ok(true),
            (Some(owner), false) => {
                // This group's sums are sent: the total may come in their place.
                piece.totals = true;
                let mut to = outs[self.net.local];
                if self.narrow() {
                    piece.inbox = self.net.memory(each);
                    to = bytes_of_mut(&mut piece.inbox);
                }
                // SAFETY: this lane's range of this rank's part 0, or the inbox.
                let coming = unsafe { mpi.irecv(self.net.comm, to, each, self.net.peer(owner), tag)? };
                piece.wait_for(inner, coming);
                Ok(false)
            }
            (_, _) => {
                let mine = outs[self.net.local];
                if self.narrow() {
                    self.unpack(bytes_of(&piece.inbox), mine, n);
                }
                for (_, out) in outs.iter().enumerate().filter(|(i, _)| *i != self.net.local) {
                    // SAFETY: this lane's range of two ranks' part 0, which are apart.
                    unsafe { std::ptr::copy_nonoverlapping(mine, *out, n * self.call.dtype.size()) };
                }
                Ok(true)
            }
        }
    }
}
