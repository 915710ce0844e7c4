//! What ranks compare before they work together, as words that can be sent.

use std::fmt;

use phalanx_host::DType;

use crate::{Bucket, Tree, Wire};

/// An all-reduce.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct SumCall {
    pub(super) id: u32,
    pub(super) dtype: DType,
    pub(super) len: usize,
    pub(super) tree: Tree,
    pub(super) wire: Wire,
}

/// A sum as ranks compare it, in words.
pub(super) type Words = [u64; 4];

impl SumCall {
    pub(super) fn new(bucket: &Bucket, tree: Tree, wire: Wire) -> Self {
        SumCall { id: bucket.id(), dtype: bucket.dtype(), len: bucket.len(), tree, wire }
    }

    /// Bytes of a part.
    pub(super) fn bytes(&self) -> usize {
        self.len * self.dtype.size()
    }

    pub(super) fn words(&self) -> Words {
        let wire = match self.wire {
            Wire::F32 => 0,
            Wire::Bf16 => 1,
            Wire::F16 { shift } => 2 | u64::from(shift) << 8,
        };
        let wide = u64::from(self.dtype == DType::F64);
        [u64::from(self.id) << 1 | wide, self.len as u64, u64::from(self.tree.shards()), wire]
    }

    /// For messages.
    pub(super) fn tell([id, len, shards, wire]: Words) -> String {
        let dtype = if id & 1 == 1 { "f64" } else { "f32" };
        let wire = match wire & 0xff {
            0 => "",
            1 => " as bf16",
            _ => " as f16",
        };
        format!("all-reduce of bucket {}: {len} {dtype} over {shards} virtual shards{wire}", id >> 1)
    }
}

impl fmt::Display for SumCall {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&SumCall::tell(self.words()))
    }
}

/// A control call: a meeting of all ranks with small messages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Talk {
    AllGather,
    Broadcast { root: u32 },
    Barrier,
    Vote,
    Split,
    Alloc,
}

impl fmt::Display for Talk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Talk::AllGather => f.write_str("all-gather"),
            Talk::Broadcast { root } => write!(f, "broadcast from rank {root}"),
            Talk::Barrier => f.write_str("barrier"),
            Talk::Vote => f.write_str("vote"),
            Talk::Split => f.write_str("split"),
            Talk::Alloc => f.write_str("allocation"),
        }
    }
}

/// Bytes that travel with a control call's head.
pub(super) const INLINE: usize = 40;

/// Bytes of a head.
pub(super) const HEAD: usize = 24 + INLINE;

/// What every rank says first in a control call.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Head {
    pub(super) number: u64,
    pub(super) talk: Talk,
    /// Bytes that the rank brings; they are in `inline` when they fit.
    pub(super) len: u64,
    pub(super) inline: [u8; INLINE],
}

impl Head {
    pub(super) fn new(number: u64, talk: Talk, bytes: &[u8]) -> Self {
        let mut inline = [0; INLINE];
        if bytes.len() <= INLINE {
            inline[..bytes.len()].copy_from_slice(bytes);
        }
        Head { number, talk, len: bytes.len() as u64, inline }
    }

    pub(super) fn to_bytes(&self) -> [u8; HEAD] {
        let (kind, root) = match self.talk {
            Talk::AllGather => (0u32, 0),
            Talk::Broadcast { root } => (1, root),
            Talk::Barrier => (2, 0),
            Talk::Vote => (3, 0),
            Talk::Split => (4, 0),
            Talk::Alloc => (5, 0),
        };
        let mut bytes = [0; HEAD];
        bytes[..8].copy_from_slice(&self.number.to_le_bytes());
        bytes[8..12].copy_from_slice(&u32::to_le_bytes(kind));
        bytes[12..16].copy_from_slice(&u32::to_le_bytes(root));
        bytes[16..24].copy_from_slice(&self.len.to_le_bytes());
        bytes[24..].copy_from_slice(&self.inline);
        bytes
    }

    /// None when that is no head.
    pub(super) fn from_bytes(bytes: &[u8; HEAD]) -> Option<Self> {
        let (number, rest) = bytes.split_first_chunk::<8>()?;
        let (kind, rest) = rest.split_first_chunk::<4>()?;
        let (root, rest) = rest.split_first_chunk::<4>()?;
        let (len, inline) = rest.split_first_chunk::<8>()?;
        let talk = match u32::from_le_bytes(*kind) {
            0 => Talk::AllGather,
            1 => Talk::Broadcast { root: u32::from_le_bytes(*root) },
            2 => Talk::Barrier,
            3 => Talk::Vote,
            4 => Talk::Split,
            5 => Talk::Alloc,
            _ => return None,
        };
        Some(Head {
            number: u64::from_le_bytes(*number),
            talk,
            len: u64::from_le_bytes(*len),
            inline: inline.try_into().ok()?,
        })
    }

    /// The rank's bytes, when they came with the head.
    pub(super) fn bytes(&self) -> Option<&[u8]> {
        usize::try_from(self.len).ok().and_then(|n| self.inline.get(..n))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn heads_travel_whole() {
        for talk in [
            Talk::AllGather,
            Talk::Broadcast { root: 7 },
            Talk::Barrier,
            Talk::Vote,
            Talk::Split,
            Talk::Alloc,
        ] {
            for n in [0, 3, INLINE, INLINE + 1] {
                let bytes: Vec<u8> = (1..=n as u8).collect();
                let head = Head::new(99, talk, &bytes);
                let sent = head.to_bytes();
                let got = Head::from_bytes(&sent).unwrap();
                assert_eq!(got, head);
                assert_eq!(got.bytes(), (n <= INLINE).then_some(&bytes[..]));
            }
        }
        let mut sent = Head::new(0, Talk::Vote, &[]).to_bytes();
        sent[8] = 9;
        assert_eq!(Head::from_bytes(&sent), None);
    }

    #[test]
    fn calls_that_differ_have_different_words() {
        let tree = Tree::new(8).unwrap();
        let call = SumCall { id: 3, dtype: DType::F32, len: 10, tree, wire: Wire::F32 };
        let others = [
            SumCall { id: 4, ..call },
            SumCall { dtype: DType::F64, ..call },
            SumCall { len: 9, ..call },
            SumCall { tree: Tree::new(7).unwrap(), ..call },
            SumCall { wire: Wire::Bf16, ..call },
            SumCall { wire: Wire::F16 { shift: 3 }, ..call },
        ];
        assert!(others.iter().all(|o| o.words() != call.words()));
        assert_eq!(call.to_string(), "all-reduce of bucket 3: 10 f32 over 8 virtual shards");
    }
}
