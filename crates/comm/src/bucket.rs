use phalanx_host::{ArenaMut, DType};

use crate::{Error, Result};

/// A token of arena ranges that moves into a collective and is given back by
/// [`Pending::wait`](crate::Pending::wait).
///
/// For an all-reduce over a [`Tree`](crate::Tree), part `i` is this rank's partial sum of the `i`-th
/// of its nodes ([`Tree::nodes_of`](crate::Tree::nodes_of)). All parts have the same length. Afterwards
/// part 0 holds the total; the other parts hold what they held before.
#[derive(Debug)]
pub struct Bucket {
    id: u32,
    dtype: DType,
    parts: Vec<ArenaMut>,
}

impl Bucket {
    /// A bucket with the number `id`, which ranks compare. Fails with [`Error::Bucket`] when `dtype` is
    /// not `f32` or `f64`, when there is no part, or when the parts differ in length or are not whole,
    /// aligned numbers.
    pub fn new(id: u32, dtype: DType, parts: Vec<ArenaMut>) -> Result<Self> {
        let refuse = |why: String| Err(Error::Bucket { id, why });
        if !matches!(dtype, DType::F32 | DType::F64) {
            return refuse(format!("holds {dtype}; only f32 and f64 are summed"));
        }
        let Some(first) = parts.first() else {
            return refuse("has no part; a rank has at least one node of the tree".into());
        };
        if let Some((i, odd)) = parts.iter().enumerate().find(|(_, p)| p.len() != first.len()) {
            return refuse(format!("has a part 0 of {} bytes and a part {i} of {}", first.len(), odd.len()));
        }
        let size = dtype.size();
        if let Some(part) = parts.iter().find(|p| p.range().start % size != 0 || p.len() % size != 0) {
            return refuse(format!("has a part at bytes {:?}, not on {dtype} bounds", part.range()));
        }
        Ok(Bucket { id, dtype, parts })
    }

    /// The bucket's number in the plan.
    pub fn id(&self) -> u32 {
        self.id
    }

    /// The type of its elements: `f32` or `f64`.
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// Elements in each part.
    pub fn len(&self) -> usize {
        self.parts[0].len() / self.dtype.size()
    }

    /// Whether the parts have no elements.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The parts, one for each node that the rank holds.
    pub fn parts(&self) -> &[ArenaMut] {
        &self.parts
    }

    /// The bytes of part `i`, for writing; `None` when there is no such part. The guard itself is not
    /// lent out, as a shorter one in its place would undo the checks that transports rely on.
    pub fn bytes_mut(&mut self, i: usize) -> Option<&mut [u8]> {
        self.parts.get_mut(i).map(ArenaMut::bytes_mut)
    }

    /// For transports.
    pub(crate) fn parts_mut(&mut self) -> &mut [ArenaMut] {
        &mut self.parts
    }

    /// Gives the ranges back.
    pub fn into_parts(self) -> Vec<ArenaMut> {
        self.parts
    }
}

#[cfg(test)]
mod tests {
    use phalanx_host::Arena;

    use super::*;

    #[test]
    fn a_bucket_checks_its_parts() {
        let arena = Arena::zeroed(256).unwrap();
        let part = |range| arena.write(range).unwrap();
        let why = |b: Result<Bucket>| b.unwrap_err().to_string();
        assert!(why(Bucket::new(3, DType::F32, vec![])).contains("bucket 3 has no part"));
        assert!(why(Bucket::new(3, DType::I64, vec![part(0..8)])).contains("i64"));
        let uneven = Bucket::new(3, DType::F32, vec![part(0..8), part(8..20)]);
        assert!(why(uneven).contains("part 1 of 12"));
        assert!(why(Bucket::new(3, DType::F64, vec![part(4..12)])).contains("f64 bounds"));
        assert!(why(Bucket::new(3, DType::F32, vec![part(0..6)])).contains("f32 bounds"));
        let mut good = Bucket::new(3, DType::F32, vec![part(0..8), part(8..16)]).unwrap();
        assert_eq!((good.id(), good.len(), good.parts().len()), (3, 2, 2));
        good.bytes_mut(1).unwrap().fill(9);
        assert!(good.bytes_mut(2).is_none() && good.parts()[1].bytes() == [9; 8]);
        assert!(arena.read(0..4).is_err());
        drop(good.into_parts());
        assert!(arena.read(0..4).is_ok());
    }
}
