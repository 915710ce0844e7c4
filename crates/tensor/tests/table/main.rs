//! One table of ops, and what must hold for every row of it.

#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests may unwrap too")]

mod cuda;
mod cuda_folds;
mod cuda_sizes;
mod golden;
mod naive;
#[path = "../products/mod.rs"]
mod products;
mod row;
mod rows;

use phalanx_host::{Arena, Isa};
use phalanx_tensor::{DType, Device, Error, LeafId, LeafMemory, LeafSink, Result, Tensor};

use row::{Array, Row, Want, close, device, doubles, gradients, objective, real, sets};

fn table() -> Vec<Row> {
    let mut all = rows::all();
    all.extend(golden::rows());
    all
}

/// A machine for the reference runs.
fn plain() -> Device {
    device(Isa::detect(), 1)
}

fn run(row: &Row, x: &[Tensor]) -> Vec<Tensor> {
    (row.run)(x).unwrap_or_else(|e| panic!("{}: {e}", row.title()))
}

#[test]
fn the_table_covers_every_op() {
    let table = table();
    let names: std::collections::BTreeSet<_> = table.iter().map(|r| r.op).collect();
    assert!(table.len() >= 300 && names.len() >= 40, "{} rows, {} ops: {names:?}", table.len(), names.len());
    println!("{} rows, {} ops", table.len(), names.len());
}

#[test]
fn values_and_gradients_are_those_of_the_reference() {
    let device = plain();
    for row in table() {
        let arrays = row.arrays();
        let x = row.tensors(&arrays, DType::F64, &device);
        let y = run(&row, &x);
        match &row.want {
            Want::Naive(naive) => {
                let want = naive(&arrays);
                assert_eq!(*y[0].shape(), want.shape[..], "{}", row.title());
                close(&row.title(), &doubles(&y[0]), &want.data, 1e-11);
            }
            Want::Golden { outputs, gradients: wanted } => {
                for (y, want) in y.iter().zip(outputs) {
                    close(&row.title(), &doubles(y), want, 1e-11);
                }
                assert_eq!(y.len(), outputs.len(), "{}", row.title());
                if !row.smooth {
                    continue;
                }
                let got = gradients(&objective(&y[0]), &x);
                for (k, (got, want)) in got.iter().zip(wanted).enumerate() {
                    let what = format!("{}: gradient {k}", row.title());
                    match (got, want) {
                        (Some(got), Some(want)) => close(&what, got, want, 1e-10),
                        (None, None) => {}
                        _ => panic!("{what} is there on one side alone"),
                    }
                }
            }
        }
    }
}

/// Slopes of `f` at `arrays[k]`, by central differences, at a sample of at most `most` elements.
fn differences(f: &dyn Fn(&[Array]) -> f64, arrays: &[Array], k: usize, most: usize) -> Vec<(usize, f64)> {
    let n = arrays[k].data.len();
    let step = n.div_ceil(most).max(1);
    let mut moved = arrays.to_vec();
    let mut at = |i: usize, x: f64| {
        let old = std::mem::replace(&mut moved[k].data[i], x);
        let y = f(&moved);
        moved[k].data[i] = old;
        y
    };
    let h = 1e-5;
    let slope = |i: usize| {
        let x = arrays[k].data[i];
        (i, (at(i, x + h) - at(i, x - h)) / (2.0 * h))
    };
    (0..n).step_by(step).map(slope).collect()
}

fn compare(what: &str, slopes: &[(usize, f64)], gradient: &[f64], tolerance: f64) {
    let want: Vec<f64> = slopes.iter().map(|s| s.1).collect();
    let got: Vec<f64> = slopes.iter().map(|s| gradient[s.0]).collect();
    close(what, &got, &want, tolerance);
}

#[test]
fn gradients_are_the_slopes_of_values() {
    let device = plain();
    for row in table().into_iter().filter(|r| r.smooth && r.slopes) {
        let arrays = row.arrays();
        let x = row.tensors(&arrays, DType::F64, &device);
        let got = gradients(&objective(&run(&row, &x)[0]), &x);
        let f = |a: &[Array]| objective(&run(&row, &row.tensors(a, DType::F64, &device))[0]).item().unwrap();
        for (k, gradient) in got.iter().enumerate() {
            let Some(gradient) = gradient else { continue };
            let slopes = differences(&f, &arrays, k, 24);
            compare(&format!("{}: gradient {k}", row.title()), &slopes, gradient, 2e-7);
        }
    }
}

#[test]
fn gradients_written_with_ops_are_the_same_and_have_gradients_where_the_row_says_so() {
    let device = plain();
    for row in table().into_iter().filter(|r| r.smooth) {
        let arrays = row.arrays();
        let penalty = |a: &[Array]| -> Result<(Vec<Tensor>, Vec<Option<Tensor>>, Tensor)> {
            let x = row.tensors(a, DType::F64, &device);
            let leaves: Vec<&Tensor> = x.iter().filter(|t| t.requires_grad()).collect();
            // Squared, so that the first gradient depends on the output.
            let f = objective(&run(&row, &x)[0].square()?);
            let g = f.gradient_graph(&leaves)?;
            let mut sum = f.scale(0.0)?;
            for g in g.iter().flatten() {
                sum = sum.add(&g.square()?.sum_all()?)?;
            }
            Ok((x, g, sum))
        };
        let (x, first, sum) = match penalty(&arrays) {
            Ok(made) => made,
            Err(Error::NoSecondOrder { op }) => {
                assert!(!row.second && op == row.op, "{} refuses second order", row.title());
                continue;
            }
            Err(e) => panic!("{}: {e}", row.title()),
        };
        assert!(row.second, "{} has a second order; the row must say so", row.title());
        let plain = gradients(&objective(&run(&row, &x)[0].square().unwrap()), &x);
        for (g, want) in first.iter().zip(plain.iter().flatten()) {
            let g = g.as_ref().map_or_else(|| vec![0.0; want.len()], doubles);
            close(&format!("{}: graph gradient", row.title()), &g, want, 1e-11);
        }
        let got = gradients(&sum, &x);
        let f = |a: &[Array]| penalty(a).unwrap().2.item().unwrap();
        for (k, gradient) in got.iter().enumerate() {
            let Some(gradient) = gradient else { continue };
            let slopes = differences(&f, &arrays, k, 6);
            compare(&format!("{}: second gradient {k}", row.title()), &slopes, gradient, 2e-6);
        }
    }
}

#[test]
fn single_precision_agrees_with_double_on_every_instruction_set() {
    let double = plain();
    for row in table() {
        let arrays = row.arrays();
        let x = row.tensors(&arrays, DType::F64, &double);
        let want = run(&row, &x);
        let slopes = row.smooth.then(|| gradients(&objective(&want[0]), &x));
        for isa in sets() {
            let device = device(isa, 1);
            let x = row.tensors(&arrays, DType::F32, &device);
            let y = run(&row, &x);
            let what = format!("{} on {isa}", row.title());
            for (y, want) in y.iter().zip(&want) {
                close(&what, &doubles(y), &doubles(want), 2e-5);
            }
            let got = slopes.as_ref().map(|_| gradients(&objective(&y[0]), &x));
            for (got, want) in got.iter().flatten().zip(slopes.iter().flatten()) {
                if let (Some(got), Some(want)) = (got, want) {
                    close(&what, got, want, 1e-4);
                }
            }
        }
    }
}

#[test]
fn halves_are_a_way_to_store_and_sums_stay_single() {
    let device = plain();
    let mut rounded = std::collections::BTreeSet::new();
    for row in table() {
        let arrays = row.arrays();
        // The distance between neighbours of 1, and what a few roundings make of it.
        for (half, ulp) in [(DType::BF16, 1.0 / 128.0), (DType::F16, 1.0 / 1024.0)] {
            let x = row.tensors(&arrays, DType::F32, &device);
            let to = |(t, i): (&Tensor, &row::In)| match i.real() {
                true if t.requires_grad() => t.detach().to(half).unwrap().leaf(),
                true => t.to(half).unwrap(),
                false => t.clone(),
            };
            let x: Vec<Tensor> = x.iter().zip(&row.inputs).map(to).collect();
            let wide = |t: &Tensor| match t.requires_grad() {
                true => t.detach().to(DType::F32).unwrap().leaf(),
                false if t.dtype() == half => t.to(DType::F32).unwrap(),
                false => t.clone(),
            };
            let single: Vec<Tensor> = x.iter().map(wide).collect();
            let (y, want) = (run(&row, &x), run(&row, &single));
            let what = format!("{} in {half}", row.title());
            if y[0].dtype() == half {
                rounded.insert(row.op);
            }
            for (k, (y, want)) in y.iter().zip(&want).enumerate() {
                let dtypes = [want.dtype(), if k == 0 { half } else { want.dtype() }];
                assert!(dtypes.contains(&y.dtype()), "{what}: output {k} is {}", y.dtype());
                close(&what, &doubles(y), &doubles(want), 2.0 * ulp);
            }
            if !row.smooth {
                continue;
            }
            // The same gradient goes in on both sides, so that the objective's own rounding is not counted.
            let seed = |y: &Tensor| real(&Array::new(&y.shape(), row::weight), DType::F32, &device);
            let back = |y: &Tensor, x: &[Tensor]| {
                let mut all = phalanx_tensor::Gradients::default();
                // An op that leaves its operand as it is gives the leaf itself.
                if y.requires_grad() && y.leaf_id().is_none() {
                    y.backward_from(seed(y), &mut all).unwrap();
                }
                x.iter().map(|t| all.get(t).map(|g| (g.dtype(), doubles(g)))).collect::<Vec<_>>()
            };
            for (got, want) in back(&y[0], &x).iter().zip(&back(&want[0], &single)) {
                let (Some((dtype, got)), Some((_, want))) = (got, want) else {
                    assert_eq!(
                        got.is_some(),
                        want.is_some(),
                        "{what}: a gradient is there on one side alone"
                    );
                    continue;
                };
                assert_eq!(*dtype, DType::F32, "{what}: gradients are single");
                close(&what, got, want, 4.0 * ulp);
            }
        }
    }
    assert!(rounded.len() >= 25, "{rounded:?}");
    // What the graph keeps is narrow: bf16 is the upper half of f32.
    let t = Tensor::from_slice(&[1.0f32, -2.5, f32::MAX], [3], &device).unwrap();
    assert_eq!(t.to(DType::BF16).unwrap().to_vec::<half::bf16>().unwrap()[2], half::bf16::INFINITY);
    let mixed = t.to(DType::BF16).unwrap().add(&t.to(DType::F16).unwrap()).unwrap_err();
    assert!(mixed.to_string().contains("f16") && mixed.to_string().contains("bf16"), "{mixed}");
}

/// The same elements with gaps or in another order in memory.
fn scattered(t: &Tensor, how: usize) -> Tensor {
    let shape = t.shape();
    let n = shape.len();
    match how {
        // Stored with the axes in reverse.
        0 => {
            let back: Vec<usize> = (0..n).rev().collect();
            t.permute(&back).unwrap().contiguous().unwrap().permute(&back).unwrap()
        }
        // Every other element of a longer last axis, from the second on.
        1 if n > 0 && shape[n - 1] > 0 => {
            let cells = t.reshape(&[&shape[..], &[1]].concat()).unwrap();
            let pairs = phalanx_tensor::concat(&[&cells, &cells], n).unwrap();
            let wide = pairs.reshape(&[&shape[..n - 1], &[2 * shape[n - 1]]].concat()).unwrap();
            wide.slice_by(n - 1, 1, shape[n - 1], 2).unwrap()
        }
        _ => t.clone(),
    }
}

/// As [`scattered`], of a type that `concat` and `permute` take, as a leaf where `t` was one.
fn scattered_input(row: &Row, t: &Tensor, k: usize, how: usize) -> Tensor {
    let moved = if row.inputs[k].real() { scattered(&t.detach(), how) } else { scattered(&t.detach(), 0) };
    if t.requires_grad() { moved.leaf() } else { moved }
}

#[test]
fn operands_and_gradients_with_gaps_give_the_same_results() {
    let device = plain();
    for row in table() {
        let x = row.tensors(&row.arrays(), DType::F64, &device);
        let y = run(&row, &x);
        for how in 0..2 {
            let what = format!("{} with operands scattered in way {how}", row.title());
            let moved: Vec<Tensor> =
                x.iter().enumerate().map(|(k, t)| scattered_input(&row, t, k, how)).collect();
            let z = run(&row, &moved);
            for (y, z) in y.iter().zip(&z) {
                assert_eq!(y.shape(), z.shape(), "{what}");
                close(&what, &doubles(z), &doubles(y), 1e-13);
            }
            if !row.smooth {
                continue;
            }
            // A gradient whose axes lie in reverse.
            let back: Vec<usize> = (0..y[0].shape().len()).rev().collect();
            let turned = |y: &Tensor| {
                let w = real(&Array::new(&y.shape(), row::weight), y.dtype(), y.device());
                let w = w.permute(&back).unwrap().contiguous().unwrap();
                y.permute(&back).unwrap().mul(&w).unwrap().sum_all().unwrap()
            };
            let (got, want) =
                (gradients(&turned(&z[0]), &moved), gradients(&objective(&run(&row, &x)[0]), &x));
            got.iter().flatten().zip(want.iter().flatten()).for_each(|(g, w)| close(&what, g, w, 1e-12));
            // A gradient that is one number, repeated.
            let sum = |y: &Tensor| y.sum_all().unwrap().scale(0.5).unwrap();
            let dense = |y: &Tensor| {
                let w = real(&Array::new(&y.shape(), |_| 0.5), y.dtype(), y.device());
                y.mul(&w).unwrap().sum_all().unwrap()
            };
            let got = gradients(&sum(&run(&row, &moved)[0]), &moved);
            let want = gradients(&dense(&run(&row, &x)[0]), &x);
            got.iter().flatten().zip(want.iter().flatten()).for_each(|(g, w)| close(&what, g, w, 1e-12));
        }
        // Operands that repeat their first entry along the first axis.
        let repeated = |t: &Tensor, k: usize| match t.shape().first() {
            Some(&n) if n > 0 && row.inputs[k].real() => {
                let shape = t.shape();
                t.detach().slice(0, 0, 1).unwrap().expand(&shape).unwrap()
            }
            _ => t.detach(),
        };
        let stretched: Vec<Tensor> = x.iter().enumerate().map(|(k, t)| repeated(t, k)).collect();
        let dense: Vec<Tensor> = stretched.iter().map(|t| t.contiguous().unwrap()).collect();
        let (got, want) = (run(&row, &stretched), run(&row, &dense));
        for (got, want) in got.iter().zip(&want) {
            close(&format!("{} expanded", row.title()), &doubles(got), &doubles(want), 1e-13);
        }
    }
}

#[test]
fn no_samples_give_empty_results_and_gradients_of_zero() {
    let device = plain();
    let mut seen = 0;
    for row in table().into_iter().filter(|r| !r.batch.is_empty()) {
        let x = row.tensors(&row.arrays(), DType::F32, &device);
        let cut = |(k, t): (usize, &Tensor)| match row.batch.contains(&k) {
            true if t.requires_grad() => t.detach().slice(0, 0, 0).unwrap().leaf(),
            true => t.slice(0, 0, 0).unwrap(),
            false => t.clone(),
        };
        let x: Vec<Tensor> = x.iter().enumerate().map(cut).collect();
        let y = run(&row, &x);
        assert!(doubles(&y[0]).iter().all(|&v| v == 0.0), "{}: {:?}", row.title(), doubles(&y[0]));
        if row.smooth {
            for g in gradients(&objective(&y[0]), &x).iter().flatten() {
                assert!(g.iter().all(|&v| v == 0.0), "{}: {g:?}", row.title());
            }
        }
        seen += 1;
    }
    assert!(seen >= 25, "{seen}");
}

#[test]
fn operands_that_do_not_fit_are_refused_by_name() {
    let device = plain();
    let mut seen = 0;
    let mut refused = |row: &Row, what: &str, result: Result<Tensor>| {
        let text = match result {
            Ok(y) => panic!("{} takes {what} and gives {y:?}", row.title()),
            Err(e) => e.to_string(),
        };
        assert!(text.starts_with(&format!("{}:", row.op)), "{} with {what} says: {text}", row.title());
        seen += 1;
    };
    for row in table() {
        for (i, bad) in row.bad.iter().enumerate() {
            refused(&row, &format!("bad operands {i}"), bad(&device));
        }
        if row.any_type {
            continue;
        }
        let x = row.tensors(&row.arrays(), DType::F32, &device);
        let reals: Vec<usize> = (0..x.len()).filter(|&k| row.inputs[k].real()).collect();
        for &k in &reals {
            for dtype in [DType::U8, DType::I64, DType::F64] {
                // A single operand may well be double.
                if dtype == DType::F64 && reals.len() == 1 {
                    continue;
                }
                let mut x = x.clone();
                x[k] = x[k].detach().to(dtype).unwrap();
                refused(&row, &format!("{dtype} as operand {k}"), (row.run)(&x).map(|mut y| y.remove(0)));
            }
        }
        for k in (0..x.len()).filter(|k| !reals.contains(k)) {
            let mut x = x.clone();
            x[k] = x[k].to(DType::F32).unwrap();
            refused(&row, &format!("f32 as operand {k}"), (row.run)(&x).map(|mut y| y.remove(0)));
        }
    }
    assert!(seen > 400, "{seen}");
}

#[test]
fn any_number_of_threads_gives_the_same_bits() {
    for isa in sets() {
        let devices = [1, 2, 3].map(|threads| device(isa, threads));
        for row in table() {
            let all = devices.each_ref().map(|device| {
                let x = row.tensors(&row.arrays(), DType::F32, device);
                let y = run(&row, &x);
                let slopes = row.smooth.then(|| gradients(&objective(&y[0]), &x));
                let bits = |v: &[f64]| v.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
                let mut all: Vec<Vec<u64>> = y.iter().map(|y| bits(&doubles(y))).collect();
                all.extend(slopes.iter().flatten().flatten().map(|g| bits(g)));
                all
            });
            assert!(all[0] == all[1] && all[0] == all[2], "{} on {isa}", row.title());
        }
    }
}

/// Lets gradients be written to an arena full of not-a-numbers, each leaf at its place.
struct Poisoned {
    arena: Arena,
    starts: Vec<std::ops::Range<usize>>,
    uses: Vec<usize>,
}

impl LeafSink for Poisoned {
    fn wants(&self, leaf: LeafId) -> bool {
        (leaf.0 as usize) < self.starts.len()
    }
    fn memory(&mut self, leaf: LeafId) -> Result<Option<LeafMemory>> {
        let i = leaf.0 as usize;
        self.uses[i] += 1;
        let range = self.arena.write(self.starts[i].clone())?;
        Ok(Some(LeafMemory { range, accumulate: self.uses[i] > 1 }))
    }
    fn ready(&mut self, _: LeafId, collected: Option<Tensor>) -> Result<()> {
        assert!(collected.is_none());
        Ok(())
    }
}

#[test]
fn gradients_overwrite_foreign_memory_and_add_up_when_a_leaf_is_used_twice() {
    for isa in sets() {
        let device = device(isa, 1);
        for row in table().into_iter().filter(|r| r.smooth) {
            let plain = row.tensors(&row.arrays(), DType::F32, &device);
            let want = gradients(&objective(&run(&row, &plain)[0]), &plain);
            let mut ends = 0;
            let mut starts = Vec::new();
            let mut named = Vec::new();
            for t in &plain {
                if t.requires_grad() {
                    named.push(t.leaf_named(LeafId(starts.len() as u64)));
                    starts.push(ends..ends + 4 * t.shape().numel());
                    ends += 4 * t.shape().numel();
                } else {
                    named.push(t.clone());
                }
            }
            for times in [1, 2] {
                let arena = Arena::zeroed(ends).unwrap();
                arena.write(0..ends).unwrap().as_mut_slice::<f32>().unwrap().fill(f32::NAN);
                let mut total = objective(&run(&row, &named)[0]);
                if times == 2 {
                    total = total.add(&objective(&run(&row, &named)[0])).unwrap();
                }
                let mut sink =
                    Poisoned { arena: arena.clone(), starts: starts.clone(), uses: vec![0; starts.len()] };
                total.backward(&mut sink).unwrap();
                for (range, want) in starts.iter().zip(want.iter().flatten()) {
                    let held = arena.read(range.clone()).unwrap();
                    let got: Vec<f64> =
                        held.as_slice::<f32>().unwrap().iter().map(|&x| f64::from(x)).collect();
                    let want: Vec<f64> = want.iter().map(|g| g * f64::from(times)).collect();
                    close(&format!("{} on {isa}, {times} times", row.title()), &got, &want, 1e-5);
                }
            }
        }
    }
}
