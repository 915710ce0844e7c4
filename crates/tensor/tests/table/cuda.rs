//! Every row of the table on a GPU, against the CPU. Needs one, or the stand-in libraries that `tests/cuda/build` makes
//! (`PHALANX_CUDA_PATH`), so these tests are ignored unless asked for: `tests/run` asks.
//! `PHALANX_TABLE_OPS=relu,conv` takes only the rows of these ops, `PHALANX_TABLE_MOST=N` those with at most N numbers of
//! operands, and each op's smallest one.

use std::collections::{BTreeMap, BTreeSet};
use std::process::Command;

use phalanx_host::Isa;
use phalanx_tensor::{DType, Device, Error, Gradients, Result, Tensor};

use super::row::{Array, In, Row, device, real, weight};
use super::{scattered_input, table};

/// A device whose libraries are told to give the same bits in every run.
fn gpu() -> Device {
    let device = Device::cuda(0).unwrap_or_else(|e| panic!("{e}"));
    if let Device::Cuda(gpu) = &device {
        gpu.set_exact(true);
    }
    device
}

/// The rows that were asked for.
fn rows() -> Vec<Row> {
    let only = std::env::var("PHALANX_TABLE_OPS").unwrap_or_default();
    let names: Vec<&str> = only.split(',').filter(|n| !n.is_empty()).collect();
    let mut rows = table();
    rows.retain(|r| names.is_empty() || names.contains(&r.op));
    if let Ok(most) = std::env::var("PHALANX_TABLE_MOST") {
        let most: usize = most.parse().unwrap();
        let size = |r: &Row| r.arrays().iter().map(|a| a.data.len()).sum::<usize>();
        let mut least = BTreeMap::new();
        for row in &rows {
            let of = least.entry(row.op).or_insert(usize::MAX);
            *of = size(row).min(*of);
        }
        rows.retain(|r| size(r) <= most.max(least[r.op]));
    }
    rows
}

/// What a row gives: outputs, and the gradients of a weighted sum of the first one.
type Given = (Vec<Vec<f64>>, Vec<Option<Vec<f64>>>);

fn doubles(t: &Tensor) -> Result<Vec<f64>> {
    let single = match t.dtype() {
        DType::F16 | DType::BF16 => t.detach().to(DType::F32)?,
        _ => t.detach(),
    };
    single.to(DType::F64)?.to_vec()
}

fn given(row: &Row, x: &[Tensor]) -> Result<Given> {
    given_in(row, x, None)
}

/// The same, with weights that are rounded to a half.
fn given_in(row: &Row, x: &[Tensor], half: Option<DType>) -> Result<Given> {
    let y = (row.run)(x)?;
    let outputs = y.iter().map(doubles).collect::<Result<_>>()?;
    let mut all = Gradients::default();
    let smooth = row.smooth && y[0].leaf_id().is_none();
    if smooth && y[0].requires_grad() {
        let seed = real(&Array::new(&y[0].shape(), weight), DType::F64, y[0].device());
        let seed = half.map_or(Ok(seed.clone()), |half| seed.to(half))?.to(match y[0].dtype() {
            // On the CPU the gradient of a half is single.
            DType::F16 | DType::BF16 if y[0].device().name() == "cpu" => DType::F32,
            dtype => dtype,
        })?;
        y[0].backward_from(seed, &mut all)?;
    }
    let of = |t: &Tensor| -> Result<Option<Vec<f64>>> {
        match (t.leaf_id(), all.get(t)) {
            (Some(_), Some(g)) => Ok(Some(doubles(g)?)),
            (Some(_), None) if smooth => Ok(Some(vec![0.0; t.shape().numel()])),
            _ => Ok(None),
        }
    };
    Ok((outputs, x.iter().map(of).collect::<Result<_>>()?))
}

/// Where two lists of numbers differ by more than `tolerance` of the larger of 1 and the largest number.
fn differ(got: &[f64], want: &[f64], tolerance: f64) -> Option<String> {
    if got.len() != want.len() {
        return Some(format!("{} elements, not {}", got.len(), want.len()));
    }
    let finite = want.iter().filter(|x| x.is_finite());
    let scale = finite.fold(1.0f64, |m, x| m.max(x.abs()));
    let bad =
        |(g, w): (&f64, &f64)| !((g - w).abs() <= tolerance * scale || (g.is_nan() && w.is_nan()) || g == w);
    let at = got.iter().zip(want).position(bad)?;
    Some(format!("element {at} is {}, must be {}", got[at], want[at]))
}

fn compare(got: &Given, want: &Given, values: f64, slopes: f64) -> Vec<String> {
    let mut found = Vec::new();
    for (k, (g, w)) in got.0.iter().zip(&want.0).enumerate() {
        found.extend(differ(g, w, values).map(|d| format!("output {k}: {d}")));
    }
    // A conversion to the type that an operand has already gives the operand itself, on that side.
    let none = |slopes: &[Option<Vec<f64>>]| slopes.iter().all(Option::is_none);
    if none(&got.1) || none(&want.1) {
        return found;
    }
    for (k, (g, w)) in got.1.iter().zip(&want.1).enumerate() {
        match (g, w) {
            (Some(g), Some(w)) => found.extend(differ(g, w, slopes).map(|d| format!("gradient {k}: {d}"))),
            (None, None) => {}
            _ => found.push(format!("gradient {k} is there on one side alone")),
        }
    }
    found
}

/// Runs `check` on every row and fails with all that is wrong at once.
fn every_row(check: impl Fn(&Row) -> Result<Vec<String>>) {
    let (mut wrong, mut rows_seen) = (Vec::new(), 0);
    for row in rows() {
        rows_seen += 1;
        match check(&row) {
            Ok(found) => wrong.extend(found.into_iter().take(2).map(|f| format!("{}: {f}", row.title()))),
            Err(e) => wrong.push(format!("{}: {e}", row.title())),
        }
    }
    assert!(rows_seen > 0, "no rows of these names");
    assert!(wrong.is_empty(), "{} of {rows_seen} rows:\n{}", wrong.len(), wrong.join("\n"));
    println!("{rows_seen} rows");
}

#[test]
#[ignore = "needs a GPU or its stand-in"]
fn a_gpu_gives_what_the_cpu_gives() {
    let (gpu, cpu) = (gpu(), device(Isa::detect(), 1));
    every_row(|row| {
        let arrays = row.arrays();
        let want = given(row, &row.tensors(&arrays, DType::F64, &cpu))?;
        let got = given(row, &row.tensors(&arrays, DType::F32, &gpu))?;
        let again = given(row, &row.tensors(&arrays, DType::F32, &gpu))?;
        let mut found = compare(&got, &want, 4e-5, 2e-4);
        if found.is_empty() && format!("{got:?}") != format!("{again:?}") {
            found.push("a second run gives other bits".into());
        }
        Ok(found)
    });
}

#[test]
#[ignore = "needs a GPU or its stand-in"]
fn halves_on_a_gpu_are_what_single_precision_rounds_to() {
    let (gpu, cpu) = (gpu(), device(Isa::detect(), 1));
    every_row(|row| {
        let mut found = Vec::new();
        // All operands halves, or the first alone, as activations meet weights.
        let cases = [DType::BF16, DType::F16].map(|half| [(half, row.inputs.len()), (half, 1)]);
        for &(half, halves) in cases.as_flattened() {
            let ulp = if half == DType::BF16 { 1.0 / 128.0 } else { 1.0 / 1024.0 };
            // Both sides begin with the rounded numbers.
            let rounded = |device: &Device, dtype: DType| -> Result<Vec<Tensor>> {
                let x = row.tensors(&row.arrays(), DType::F32, device);
                let to = |(k, (t, i)): (usize, (&Tensor, &In))| {
                    let dtype = if k < halves { dtype } else { DType::F32 };
                    match i.real() {
                        true if t.requires_grad() => Ok(t.detach().to(half)?.to(dtype)?.leaf()),
                        true => t.to(half)?.to(dtype),
                        false => Ok(t.clone()),
                    }
                };
                x.iter().zip(&row.inputs).enumerate().map(to).collect()
            };
            let mut want = given_in(row, &rounded(&cpu, DType::F32)?, Some(half))?;
            let mut got = given_in(row, &rounded(&gpu, half)?, Some(half))?;
            if row.op == "rnn" {
                // A state that is rounded at each step ends on the other side of ReLU's corner here and there.
                (want.1, got.1) = (Vec::new(), Vec::new());
            }
            found.extend(
                compare(&got, &want, 3.0 * ulp, 8.0 * ulp)
                    .into_iter()
                    .map(|f| format!("{half} x {halves}: {f}")),
            );
        }
        Ok(found)
    });
}

/// Each op's kernels, there and back, over its smallest row, with threads and blocks in two orders: a missing barrier shows. A
/// process for each op, as all memory of a process is compared after each kernel.
#[test]
#[ignore = "needs the stand-ins"]
fn no_kernel_depends_on_the_order_of_its_threads() {
    if std::env::var_os("PHALANX_CUDA_PATH").is_none() {
        return;
    }
    let ops: BTreeSet<_> = table().iter().map(|r| r.op).collect();
    for op in ops {
        let mut run = Command::new(std::env::current_exe().unwrap());
        run.args(["cuda::a_gpu_gives_what_the_cpu_gives", "--exact", "--ignored", "--nocapture"]);
        run.env("PHALANX_STANDIN_RACES", "1").env("PHALANX_TABLE_MOST", "0").env("PHALANX_TABLE_OPS", op);
        let out = run.output().unwrap();
        let said = String::from_utf8_lossy(&[out.stdout, out.stderr].concat()).into_owned();
        assert!(out.status.success() && said.contains("1 passed"), "{op}: {said}");
    }
}

/// Each op's kernels over its smallest row, each tensor in an allocation of its own: a byte beside an operand is found.
#[test]
#[ignore = "needs the stand-ins"]
fn no_kernel_touches_what_lies_beside_its_operands() {
    if std::env::var_os("PHALANX_CUDA_PATH").is_none() {
        return;
    }
    let mut run = Command::new(std::env::current_exe().unwrap());
    run.args(["cuda::a_gpu_gives_what_the_cpu_gives", "--exact", "--ignored", "--nocapture"]);
    let out = run.env("PHALANX_CUDA_APART", "1").env("PHALANX_TABLE_MOST", "2000").output().unwrap();
    let said = String::from_utf8_lossy(&[out.stdout, out.stderr].concat()).into_owned();
    assert!(out.status.success() && said.contains("1 passed"), "{said}");
}

#[test]
#[ignore = "needs a GPU or its stand-in"]
fn operands_with_gaps_and_no_samples_on_a_gpu() {
    let gpu = gpu();
    every_row(|row| {
        let x = row.tensors(&row.arrays(), DType::F32, &gpu);
        let want = given(row, &x)?;
        let mut found = Vec::new();
        for how in 0..2 {
            let moved: Vec<Tensor> =
                x.iter().enumerate().map(|(k, t)| scattered_input(row, t, k, how)).collect();
            let got = given(row, &moved)?;
            found.extend(
                compare(&got, &want, 1e-5, 5e-5).into_iter().map(|f| format!("scattered {how}: {f}")),
            );
        }
        if !row.batch.is_empty() {
            let cut = |(k, t): (usize, &Tensor)| match row.batch.contains(&k) {
                true if t.requires_grad() => Ok(t.detach().slice(0, 0, 0)?.leaf()),
                true => t.slice(0, 0, 0),
                false => Ok(t.clone()),
            };
            let x = x.iter().enumerate().map(cut).collect::<Result<Vec<_>>>()?;
            let (y, slopes) = given(row, &x)?;
            let zero = |v: &[f64]| v.iter().all(|&x| x == 0.0);
            if !zero(&y[0]) || !slopes.iter().flatten().all(|g| zero(g)) {
                found.push(format!("no samples give {y:?} and {slopes:?}"));
            }
        }
        Ok(found)
    });
}

#[test]
#[ignore = "needs a GPU or its stand-in"]
fn tensors_of_two_devices_do_not_meet() {
    let (gpu, cpu) = (gpu(), device(Isa::detect(), 1));
    let [a, b] = [&gpu, &cpu].map(|d| Tensor::from_slice(&[1.0f32, 2.0], [2], d).unwrap());
    assert!(matches!(a.add(&b), Err(Error::Devices { .. })));
    assert_eq!(a.add(&a).unwrap().to_vec::<f32>().unwrap(), [2.0, 4.0]);
}

#[test]
#[ignore = "needs a GPU or its stand-in"]
fn images_get_the_same_bits_on_both_devices() {
    let (gpu, cpu) = (gpu(), device(Isa::detect(), 1));
    let mut seen = 0;
    for row in table().into_iter().filter(|r| ["normalise_bytes", "mix"].contains(&r.op)) {
        for dtype in [DType::F32, DType::BF16, DType::F16] {
            let bits = |device: &Device| {
                let x = row.tensors(&row.arrays(), dtype, device);
                let y = (row.run)(&x).unwrap_or_else(|e| panic!("{}: {e}", row.title())).remove(0);
                doubles(&y).unwrap().into_iter().map(f64::to_bits).collect::<Vec<_>>()
            };
            assert!(bits(&gpu) == bits(&cpu), "{} in {dtype}", row.title());
            seen += 1;
        }
    }
    assert!(seen >= 36);
    // A partner that is none is told when something is read.
    let x = Tensor::zeros(DType::F32, [2, 3, 3, 2], &gpu).unwrap();
    let to = |list: &[i64], shape: &[usize]| Tensor::from_slice(list, shape, &gpu).unwrap();
    let factors = Tensor::from_slice(&[0.5f32, 0.5], [2], &gpu).unwrap();
    let mixed = x.mix(&to(&[1, 2], &[2]), &factors, &to(&[0; 8], &[2, 4])).unwrap();
    let said = mixed.to_vec::<f32>().unwrap_err();
    assert!(matches!(said, Error::Index { op: "mix", index: 2, position: 1, limit: 2 }), "{said}");
}
