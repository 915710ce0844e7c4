//! What gradients look like between machines.
//!
//! A narrow wire halves the bytes. So that a run's bits still do not depend on where its ranks are,
//! what travels must not depend on where the tree is cut: every shard's value and every sum of the tree
//! is rounded to the wire's type, once, wherever it is computed. Sums are made in `f32` from rounded
//! operands; what is sent is then exactly representable and nothing is lost on the way.

use half::f16;
use half::slice::HalfFloatSliceExt;
use phalanx_host::Isa;
use phalanx_host::simd::{Kernel, Real, Simd};

/// The type in which `f32` sums travel. Other types travel as they are.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub enum Wire {
    /// As they are.
    #[default]
    F32,
    /// The upper half of an `f32`: its range, 8 bits of precision.
    Bf16,
    /// IEEE binary16, 11 bits of precision, after a division by `2^shift` that keeps sums over many
    /// samples in its range (up to 65504).
    F16 {
        /// The exponent of the divisor.
        shift: u8,
    },
}

/// Numbers that are converted at once, on the stack.
const BLOCK: usize = 1024;

struct RoundBf16<'a>(&'a mut [f32]);

impl Kernel<f32> for RoundBf16<'_> {
    type Out = ();
    #[inline(always)]
    fn run<V: Simd<f32>>(self) {
        self.0.iter_mut().for_each(|x| *x = f32::from_bits(upper(*x) << 16));
    }
}

/// The upper half of the nearest number with a lower half of zero; ties go to the even one. Not-a-numbers
/// stay what they are.
#[inline(always)]
fn upper(x: f32) -> u32 {
    let bits = x.to_bits();
    let rounded = bits.wrapping_add(0x7fff + (bits >> 16 & 1)) >> 16;
    let nan = bits >> 16 | 0x40;
    if bits & 0x7fff_ffff > 0x7f80_0000 { nan } else { rounded }
}

struct PackBf16<'a>(&'a [f32], &'a mut [u16]);

impl Kernel<f32> for PackBf16<'_> {
    type Out = ();
    #[inline(always)]
    fn run<V: Simd<f32>>(self) {
        self.1.iter_mut().zip(self.0).for_each(|(y, &x)| *y = upper(x) as u16);
    }
}

struct UnpackBf16<'a>(&'a [u16], &'a mut [f32]);

impl Kernel<f32> for UnpackBf16<'_> {
    type Out = ();
    #[inline(always)]
    fn run<V: Simd<f32>>(self) {
        self.1.iter_mut().zip(self.0).for_each(|(y, &x)| *y = f32::from_bits(u32::from(x) << 16));
    }
}

/// `2^exponent` for exponents of normal numbers.
fn power(exponent: i32) -> f32 {
    f32::from_bits(((127 + exponent) as u32) << 23)
}

impl Wire {
    /// Half precision for sums over up to `samples` numbers of about 1, such as gradients of samples.
    pub fn f16_for(samples: u64) -> Self {
        // The power of two below; no more than an f32 holds the inverse of.
        Wire::F16 { shift: samples.max(1).ilog2().min(60) as u8 }
    }

    /// Bytes of one number on the wire.
    pub fn size(self) -> usize {
        if self == Wire::F32 { 4 } else { 2 }
    }

    /// Rounds every value to the nearest one that the wire can carry.
    pub fn round(self, isa: Isa, values: &mut [f32]) {
        match self {
            Wire::F32 => {}
            Wire::Bf16 => f32::dispatch(isa, RoundBf16(values)),
            Wire::F16 { .. } => {
                let mut narrow = [0; BLOCK];
                for block in values.chunks_mut(BLOCK) {
                    let n = block.len();
                    self.pack(isa, block, &mut narrow[..n]);
                    self.unpack(isa, &narrow[..n], block);
                }
            }
        }
    }

    /// Writes values as they travel. Only for wires of two bytes; lengths must be equal.
    pub(crate) fn pack(self, isa: Isa, from: &[f32], to: &mut [u16]) {
        let Wire::F16 { shift } = self else { return f32::dispatch(isa, PackBf16(from, to)) };
        let scale = power(-i32::from(shift));
        let mut scaled = [0.0; BLOCK];
        for (from, to) in from.chunks(BLOCK).zip(to.chunks_mut(BLOCK)) {
            scaled.iter_mut().zip(from).for_each(|(y, x)| *y = x * scale);
            let halves: &mut [f16] = bytemuck::cast_slice_mut(to);
            halves.convert_from_f32_slice(&scaled[..from.len()]);
        }
    }

    /// The inverse of [`Wire::pack`].
    pub(crate) fn unpack(self, isa: Isa, from: &[u16], to: &mut [f32]) {
        let Wire::F16 { shift } = self else { return f32::dispatch(isa, UnpackBf16(from, to)) };
        let halves: &[f16] = bytemuck::cast_slice(from);
        halves.convert_to_f32_slice(to);
        to.iter_mut().for_each(|x| *x *= power(i32::from(shift)));
    }
}

#[cfg(test)]
mod tests {
    use half::bf16;
    use proptest::prelude::*;

    use super::*;

    fn rounded(wire: Wire, x: f32) -> f32 {
        let mut v = [x];
        wire.round(Isa::detect(), &mut v);
        v[0]
    }

    #[test]
    fn halves_are_scaled_to_the_batch() {
        assert_eq!(Wire::f16_for(1), Wire::F16 { shift: 0 });
        assert_eq!(Wire::f16_for(256), Wire::F16 { shift: 8 });
        // A sum over 256 samples that would be far out of a half's range.
        assert_eq!(rounded(Wire::F16 { shift: 8 }, 1e6), f16::from_f32(1e6 / 256.0).to_f32() * 256.0);
    }

    #[test]
    fn special_values_keep_their_nature() {
        for wire in [Wire::Bf16, Wire::F16 { shift: 3 }] {
            assert!(rounded(wire, f32::NAN).is_nan());
            assert_eq!(rounded(wire, f32::INFINITY), f32::INFINITY);
            assert_eq!(rounded(wire, -0.0).to_bits(), (-0.0f32).to_bits());
        }
        assert_eq!(rounded(Wire::Bf16, f32::MAX), f32::INFINITY);
    }

    proptest! {
        #[test]
        fn rounding_is_the_nearest_value_and_travels_without_loss(bits in any::<u32>(), n in 1usize..40) {
            let x = f32::from_bits(bits);
            prop_assume!(!x.is_nan());
            prop_assert_eq!(rounded(Wire::Bf16, x), bf16::from_f32(x).to_f32());
            prop_assert_eq!(rounded(Wire::F16 { shift: 0 }, x), f16::from_f32(x).to_f32());
            for isa in [Isa::Portable, Isa::detect()] {
                for wire in [Wire::Bf16, Wire::F16 { shift: 5 }] {
                    let mut values: Vec<f32> = (0..n).map(|i| x * (i as f32 + 0.5)).collect();
                    wire.round(isa, &mut values);
                    let mut packed = vec![0; n];
                    wire.pack(isa, &values, &mut packed);
                    let mut back = vec![0.0; n];
                    wire.unpack(isa, &packed, &mut back);
                    let bits = |v: &[f32]| v.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
                    prop_assert_eq!(bits(&values), bits(&back));
                }
            }
        }
    }
}
