//! Matrix products against a plain sum in double precision: every instruction set, layout and number
//! of threads.

// Helpers of tests fail as tests do.
#![allow(clippy::unwrap_used, clippy::panic)]

use phalanx_host::simd::Real;
use phalanx_host::{Cpu, Isa, Mat, MatMut, Packed, gemm, gemm_packed};
use proptest::prelude::*;

const SETS: [Isa; 3] = [Isa::Portable, Isa::Avx2, Isa::Avx512];

/// How a matrix lies in its slice.
#[derive(Debug, Clone, Copy)]
struct Layout {
    transposed: bool,
    /// Unused numbers after each row.
    gap: usize,
    /// Distance of neighbours in a row.
    step: usize,
}

fn layout() -> impl Strategy<Value = Layout> {
    (
        any::<bool>(),
        prop_oneof![3 => Just(0usize), 1 => 1..5usize],
        prop_oneof![3 => Just(1usize), 1 => 2..4usize],
    )
        .prop_map(|(transposed, gap, step)| Layout { transposed, gap, step })
}

impl Layout {
    /// Length of the slice, row stride and column stride.
    fn place(self, rows: usize, cols: usize) -> (usize, usize, usize) {
        let (outer, inner) = if self.transposed { (cols, rows) } else { (rows, cols) };
        let stride = inner * self.step + self.gap;
        let (row, col) = if self.transposed { (self.step, stride) } else { (stride, self.step) };
        (outer * stride, row, col)
    }
}

fn numbers<T: Real>(seed: u64, n: usize) -> Vec<T> {
    let mut state = seed;
    (0..n)
        .map(|_| {
            state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            T::from_f64((state >> 40) as f64 / (1u64 << 23) as f64 - 1.0)
        })
        .collect()
}

struct Case {
    m: usize,
    n: usize,
    k: usize,
    a: Layout,
    b: Layout,
    c: Layout,
    accumulate: bool,
}

impl Case {
    /// Checks one set on 1, 2 and 3 threads: near the reference, the same bits on each number of
    /// threads, every element written, no other number touched.
    fn check<T: Real>(&self, isa: Isa, tolerance: f64) -> Result<(), TestCaseError> {
        let Case { m, n, k, accumulate, .. } = *self;
        let ((al, ..), (bl, ..), (cl, ..)) = (self.a.place(m, k), self.b.place(k, n), self.c.place(m, n));
        let (a, b) = (numbers::<T>(1, al), numbers::<T>(2, bl));
        // Without `accumulate` the old contents must not matter: not-a-numbers would show.
        let start = if accumulate { numbers::<T>(3, cl) } else { vec![T::from_f64(f64::NAN); cl] };
        for packed in [false, true] {
            self.compare::<T>(isa, tolerance, packed, [&a, &b], &start)?;
        }
        Ok(())
    }

    /// As [`Case::check`], of `a` and `b`, with a C that begins as `start`.
    fn compare<T: Real>(
        &self,
        isa: Isa,
        tolerance: f64,
        packed: bool,
        [a, b]: [&[T]; 2],
        start: &[T],
    ) -> Result<(), TestCaseError> {
        let Case { m, n, k, accumulate, .. } = *self;
        let ((_, ar, ac), (_, br, bc), (cl, cr, cc)) =
            (self.a.place(m, k), self.b.place(k, n), self.c.place(m, n));
        let mut first: Option<Vec<T>> = None;
        for threads in [1, 2, 3] {
            let cpu = Cpu::new(isa, threads).unwrap();
            let mut c = start.to_vec();
            let am = Mat::new(a, m, k, ar, ac).unwrap();
            let bm = Mat::new(b, k, n, br, bc).unwrap();
            let to = MatMut::new(&mut c, m, n, cr, cc).unwrap();
            match packed {
                true => gemm_packed(&cpu, am, &Packed::new(&cpu, bm).unwrap(), to, accumulate).unwrap(),
                false => gemm(&cpu, am, bm, to, accumulate).unwrap(),
            }
            let bits = |v: &[T]| bytemuck::cast_slice::<T, u8>(v).to_vec();
            match &first {
                Some(f) => prop_assert!(bits(f) == bits(&c), "{threads} threads differ from one"),
                None => first = Some(c),
            }
        }
        let (c, mut inside) = (first.unwrap(), vec![false; cl]);
        for i in 0..m {
            for j in 0..n {
                let at = i * cr + j * cc;
                let (mut want, mut size) = if accumulate { (start[at].to_f64(), 1.0) } else { (0.0, 0.0) };
                for p in 0..k {
                    let x = a[i * ar + p * ac].to_f64() * b[p * br + j * bc].to_f64();
                    want += x;
                    size += x.abs();
                }
                let error = (c[at].to_f64() - want).abs();
                prop_assert!(error <= tolerance * (size + 1e-30), "({i}, {j}): {} is not {want}", c[at]);
                inside[at] = true;
            }
        }
        for (at, (x, s)) in c.iter().zip(start).enumerate() {
            prop_assert!(inside[at] || bytemuck::bytes_of(x) == bytemuck::bytes_of(s), "{at} was touched");
        }
        Ok(())
    }

    fn check_all(&self) -> Result<(), TestCaseError> {
        for isa in SETS.into_iter().filter(|i| i.available()) {
            self.check::<f32>(isa, 2e-6)?;
        }
        self.check::<f64>(Isa::detect(), 1e-14)
    }
}

fn size(max: usize) -> impl Strategy<Value = usize> {
    prop_oneof![1..20usize, 1..max, Just(0usize), Just(16usize), Just(32usize)]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 150, failure_persistence: None, ..Default::default() })]

    #[test]
    fn any_shape_and_layout(
        (m, n, k) in (size(130), size(130), size(200)),
        (a, b, c) in (layout(), layout(), layout()),
        accumulate: bool,
    ) {
        Case { m, n, k, a, b, c, accumulate }.check_all()?;
    }
}

/// Sizes past every block: several blocks along k and n, many tasks, all transposes.
#[test]
fn blocks_and_tasks() {
    for bits in 0..8 {
        let lay = |bit: usize| Layout { transposed: bits >> bit & 1 == 1, gap: 0, step: 1 };
        for (m, n, k) in [(150, 300, 1100), (300, 40, 2100), (3, 700, 600), (700, 3, 600)] {
            let case = Case { m, n, k, a: lay(0), b: lay(1), c: lay(2), accumulate: bits % 3 == 0 };
            case.check::<f32>(Isa::detect(), 2e-6).unwrap();
        }
    }
}

#[test]
fn a_broadcast_operand_and_misfits() {
    let cpu = Cpu::new(Isa::detect(), 1).unwrap();
    let (a, b) = ([1.0f32, 2.0, 3.0], [1.0f32; 12]);
    let mut c = [0.0; 8];
    let row = Mat::new(&a, 2, 3, 0, 1).unwrap();
    gemm(&cpu, row, Mat::row_major(&b, 3, 4).unwrap(), MatMut::row_major(&mut c, 2, 4).unwrap(), false)
        .unwrap();
    assert_eq!(c, [6.0; 8]);
    let wrong =
        gemm(&cpu, row, Mat::row_major(&b, 4, 3).unwrap(), MatMut::row_major(&mut c, 2, 3).unwrap(), false);
    assert!(wrong.unwrap_err().to_string().contains("(2, 3) by (4, 3)"));
}

#[test]
fn workspace_comes_from_the_pool() {
    let cpu = Cpu::new(Isa::detect(), 2).unwrap();
    let (a, b) = (numbers::<f32>(1, 300 * 400), numbers::<f32>(2, 400 * 500));
    let mut c = vec![0.0; 300 * 500];
    let mut run = || {
        let (a, b) = (Mat::row_major(&a, 300, 400).unwrap(), Mat::row_major(&b, 400, 500).unwrap());
        gemm(&cpu, a, b, MatMut::row_major(&mut c, 300, 500).unwrap(), false).unwrap();
        cpu.pool.stats()
    };
    let first = run();
    assert_eq!(first.live, 0);
    assert!(first.cached > 0);
    assert_eq!(run(), first);
}
