//! Launches whose threads share rows, and operands that may not be there.

use phalanx_gpu::{Args, Context, DevicePtr, Grid, Source};

use super::code;
use crate::op::Exec;
use crate::{DType, Error, Result, Shape, Tensor, View};

/// Threads that share the rows of a matrix (`Team` in the prelude). Which, the rows' length and type say, never the device:
/// the order of a row's sum follows from it.
pub(crate) struct Teams {
    k: i32,
    size: i32,
    /// Packs of 16 bytes, or elements where rows are short and odd.
    wide: bool,
    grid: Grid,
}

impl Teams {
    /// For `rows` rows of `k` elements of `dtype`.
    pub(crate) fn new(op: &'static str, shape: Shape, rows: usize, k: usize, dtype: DType) -> Result<Self> {
        /// Units of a thread, which it keeps in registers.
        const HELD: usize = 4;
        let refuse =
            || Error::Invalid { op, shape, why: format!("rows of {k} are longer than kernels can count") };
        let count = i32::try_from(k).ok().filter(|&k| k <= 1 << 30).ok_or_else(refuse)?;
        let pack = 16 / dtype.size();
        let wide = k.is_multiple_of(pack) || k > 128;
        let each = k.div_ceil(if wide { pack } else { 1 }).div_ceil(HELD).max(1);
        let (size, threads) = match each {
            ..=32 => (each.next_power_of_two(), 128),
            _ => (each.next_multiple_of(32).min(512), each.next_multiple_of(32).min(512)),
        };
        let grid = Grid::linear(rows, threads / size).threads(threads as u32);
        Ok(Teams { k: count, size: size as i32, wide, grid })
    }

    /// As [`Teams::new`] for kernels that know packs alone.
    pub(crate) fn packs(op: &'static str, shape: Shape, rows: usize, k: usize, dtype: DType) -> Result<Self> {
        let all = Teams::new(op, shape, rows, k.next_multiple_of(16 / dtype.size()), dtype)?;
        Ok(Teams { k: k as i32, ..all })
    }

    /// Launches the kernel `NAME_type_one` or `NAME_type_wide`.
    pub(crate) fn launch(
        &self,
        gpu: &Context,
        source: &'static Source,
        (name, suffix): (&str, &str),
        args: Args,
    ) -> Result<()> {
        let width = if self.wide { "wide" } else { "one" };
        Ok(gpu.launch(source, &format!("{name}_{suffix}_{width}"), self.grid, args)?)
    }

    /// Adds the rows, their length and the size of a team, which kernels take in this order.
    pub(crate) fn args(&self, args: Args, rows: usize) -> Args {
        args.i64(rows as i64).i32(self.k).i32(self.size)
    }
}

/// A null pointer, for an operand that is not there.
pub(crate) const NONE: DevicePtr = DevicePtr(0);

/// An operand that may not be there, as two arguments: its address and type.
pub(crate) fn optional(args: Args, view: Option<&View>) -> Result<Args> {
    Ok(match view {
        Some(v) => args.ptr(v.ptr()?).i32(code(v.dtype)),
        None => args.ptr(NONE).i32(0),
    })
}

/// A new tensor outside the graph, for kernels to fill, and its address.
pub(crate) fn blank(cx: &Exec, dtype: DType, shape: Shape) -> Result<(Tensor, DevicePtr)> {
    let mut at = NONE;
    let made = cx.make(dtype, shape, |out| {
        at = out.ptr()?;
        Ok(())
    })?;
    Ok((made, at))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn every_row_has_a_team_that_holds_it(rows in 1usize..1 << 24, k in 0usize..1 << 20, half: bool) {
            let dtype = if half { DType::BF16 } else { DType::F32 };
            let t = Teams::new("test", [rows, k].into(), rows, k, dtype).unwrap();
            let (size, threads) = (t.size as usize, t.grid.threads as usize);
            // Teams of a warp's part, or whole warps: what lanes exchange stays within one.
            prop_assert!(threads.is_multiple_of(32) && threads.is_multiple_of(size) && threads <= 512);
            let whole = if size <= 32 { size.is_power_of_two() } else { size == threads };
            prop_assert!(whole);
            let unit = if t.wide { 16 / dtype.size() } else { 1 };
            // Four units a thread, unless no block is large enough.
            prop_assert!(size * 4 * unit >= k || size == 512);
            prop_assert!(size == 1 || size > 32 || (size / 2) * 4 * unit < k);
            let (blocks, teams) = (t.grid.blocks[0] as usize, threads / size);
            prop_assert!(blocks * teams >= rows && (blocks - 1) * teams < rows);
            // Packs alone: a row's odd end has a pack of its own.
            let p = Teams::packs("test", [rows, k].into(), rows, k, dtype).unwrap();
            prop_assert!(p.wide && p.k as usize == k);
        }
    }

    #[test]
    fn rows_that_cannot_be_counted_are_refused() {
        assert!(Teams::new("test", [1].into(), 1, 1 << 30, DType::F32).is_ok());
        assert!(Teams::new("test", [1].into(), 1, (1 << 30) + 1, DType::F32).is_err());
    }
}
