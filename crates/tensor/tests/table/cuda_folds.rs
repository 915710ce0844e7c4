//! What the table's rows are too small for: the kernels that a GPU runs for whole packs of channels, for sums that are cut into
//! parts, for long lines. As the tests beside, against the CPU.

use phalanx_host::Isa;
use phalanx_tensor::{DType, Device, Gradients, Interpolation, PadMode, Pool, Resample, Result, Tensor};

use super::row::{Array, device, real};

type Run = fn(&Tensor) -> Result<Tensor>;

/// The outputs and the gradient of the operand.
fn given(x: &[f64], shape: &[usize], dtype: DType, device: &Device, run: Run) -> Result<[Vec<f64>; 2]> {
    let doubles = |t: &Tensor| t.detach().to(DType::F32)?.to(DType::F64)?.to_vec();
    // Both sides begin with the same numbers.
    let x = Tensor::from_slice(x, shape, device)?.to(DType::F32)?.to(dtype)?.leaf();
    let y = run(&x)?;
    if !y.requires_grad() {
        return Ok([doubles(&y)?, vec![]]);
    }
    let half = matches!(y.dtype(), DType::BF16 | DType::F16);
    let seed = if half && device.name() == "cpu" { DType::F32 } else { y.dtype() };
    let seed =
        real(&Array::new(&y.shape(), |i| (i % 29) as f64 / 16.0 - 0.75), DType::F32, device).to(seed)?;
    let mut all = Gradients::default();
    y.backward_from(seed, &mut all)?;
    let slope = all.get(&x).map(doubles).transpose()?;
    Ok([doubles(&y)?, slope.unwrap_or_default()])
}

fn check(name: &str, shape: &[usize], run: Run) {
    let gpu = Device::cuda(0).unwrap_or_else(|e| panic!("{e}"));
    let cpu = device(Isa::detect(), 1);
    let n = shape.iter().product();
    // Few values, so that there are equals, and some far apart.
    let x: Vec<f64> = (0..n).map(|i: usize| ((i * 7919 + i / 13) % 1013) as f64 / 64.0 - 7.0).collect();
    for (dtype, tolerance) in [(DType::F32, 2e-6), (DType::BF16, 1.0 / 64.0)] {
        let want = given(&x, shape, dtype, &cpu, run).unwrap();
        let got = given(&x, shape, dtype, &gpu, run).unwrap_or_else(|e| panic!("{name} on {shape:?}: {e}"));
        for (what, (got, want)) in ["outputs", "gradients"].into_iter().zip(got.iter().zip(&want)) {
            assert_eq!(got.len(), want.len(), "{name} on {shape:?} {dtype}: {what}");
            let scale = want.iter().filter(|x| x.is_finite()).fold(1.0f64, |m, x| m.max(x.abs()));
            for (i, (g, w)) in got.iter().zip(want).enumerate() {
                let near = (g - w).abs() <= tolerance * scale || g == w || (g.is_nan() && w.is_nan());
                assert!(near, "{name} on {shape:?} {dtype}: number {i} of the {what} is {g}, must be {w}");
            }
        }
    }
}

fn pool3(stride: usize, padding: usize) -> Pool {
    Pool::new(&[3, 3]).stride(&[stride; 2]).padding(&[padding; 2])
}

#[test]
#[ignore = "needs a GPU or its stand-in"]
fn pooling_of_whole_packs() {
    for shape in [[2, 13, 14, 32], [1, 12, 9, 16], [3, 7, 7, 8]] {
        check("max 3/2/1", &shape, |x| x.max_pool(&pool3(2, 1)));
        check("max 3/2/0", &shape, |x| x.max_pool(&pool3(2, 0)));
        check("max 3/2 ceil", &shape, |x| x.max_pool(&pool3(2, 0).ceil(true)));
        check("max 3/1/1", &shape, |x| x.max_pool(&pool3(1, 1)));
        check("max 2/2", &shape, |x| x.max_pool(&Pool::new(&[2, 2])));
        check("max 2/2/1 ceil", &shape, |x| x.max_pool(&Pool::new(&[2, 2]).padding(&[1, 1]).ceil(true)));
        check("max 2/1", &shape, |x| x.max_pool(&Pool::new(&[2, 2]).stride(&[1, 1])));
        check("max 3x2/3x2", &shape, |x| x.max_pool(&Pool::new(&[3, 2])));
        check("max dilated", &shape, |x| x.max_pool(&pool3(2, 1).dilation(&[2, 2])));
        check("max adaptive", &shape, |x| x.adaptive_max_pool(&[3, 2]));
        // Into a sum that is there.
        check("max twice", &shape, |x| x.max_pool(&pool3(2, 1))?.add(&x.max_pool(&pool3(2, 1))?));
        check("max and more", &shape, |x| x.max_pool(&pool3(1, 1))?.add(x));
        check("mean 2/2", &shape, |x| x.avg_pool(&Pool::new(&[2, 2])));
        check("mean 3/1/1", &shape, |x| x.avg_pool(&pool3(1, 1)));
        check("mean and more", &shape, |x| x.avg_pool(&pool3(1, 1).count_include_pad(false))?.add(x));
        check("mean adaptive", &shape, |x| x.adaptive_avg_pool(&[3, 2]));
        check("mean of all", &shape, |x| x.adaptive_avg_pool(&[1, 1]));
        check("mean of axes", &shape, |x| x.mean(&[1, 2], false));
        check("mean of all twice", &shape, |x| {
            x.mul(&x.adaptive_avg_pool(&[1, 1])?)?.add(&x.mean(&[1, 2], true)?)
        });
    }
    check("max of infinite", &[1, 4, 4, 8], |x| x.detach().log()?.max_pool(&pool3(2, 1)));
}

#[test]
#[ignore = "needs a GPU or its stand-in"]
fn moves_and_resizing_of_whole_packs() {
    for shape in [[2, 9, 10, 16], [1, 5, 6, 4], [2, 3, 4, 2]] {
        check("pad", &shape, |x| x.pad(1, &[[2, 1], [0, 3]], PadMode::Constant(1.5)));
        check("pad reflect", &shape, |x| x.pad(1, &[[2, 1], [-1, 2]], PadMode::Reflect));
        check("flip", &shape, |x| x.flip(&[1, 2]));
        check("bilinear", &shape, |x| x.interpolate(&Resample::to_size(Interpolation::Linear, &[14, 7])));
        check("cubic", &shape, |x| {
            x.interpolate(&Resample::to_size(Interpolation::Cubic, &[4, 13]).antialias(true))
        });
        check("nearest", &shape, |x| x.interpolate(&Resample::to_size(Interpolation::Nearest, &[6, 25])));
    }
}

#[test]
#[ignore = "needs a GPU or its stand-in"]
fn sums_in_parts() {
    for shape in [&[5000, 64][..], &[3001, 24], &[70_000, 3], &[9, 4096], &[300, 264], &[2, 5000]] {
        check("sum of rows", shape, |x| x.sum(&[0], false));
        check("mean of columns", shape, |x| x.mean(&[1], false));
        check("sum of all", shape, |x| x.mean_all());
        check("variance of rows", shape, |x| x.var(&[0], 1.0, false));
        check("log of a sum", shape, |x| x.logsumexp(&[1], false));
        check("norm", shape, |x| x.norm(3.0, &[0], false));
        check("place of the largest", shape, |x| x.argmax(0)?.to(DType::F32));
        check("place of the smallest", shape, |x| x.argmin(1)?.to(DType::F32));
    }
    check("sum of the middle", &[3, 5000, 8], |x| x.sum(&[1], false));
    check("sum of both sides", &[70, 5, 80], |x| x.sum(&[0, 2], false));
    check("sum of a transposed", &[300, 70], |x| x.permute(&[1, 0])?.sum(&[1], false));
}

#[test]
#[ignore = "needs a GPU or its stand-in"]
fn long_lines() {
    for shape in [&[3, 5000][..], &[5000, 3], &[1, 2048], &[2, 2049, 2], &[7000, 2]] {
        check("cumsum 0", shape, |x| x.scale(0.01)?.cumsum(0));
        check("cumsum 1", shape, |x| x.scale(0.01)?.cumsum(1));
        for axis in 0..2 {
            let at: [Run; 3] = match axis {
                0 => [
                    |x| x.detach().sort(0, false)?.1.to(DType::F32),
                    |x| x.detach().top_k(1, 0, true, true)?.1.to(DType::F32),
                    |x| Ok(x.detach().sort(0, true)?.0),
                ],
                _ => [
                    |x| x.detach().sort(1, true)?.1.to(DType::F32),
                    |x| x.detach().top_k(2, 1, false, false)?.1.to(DType::F32),
                    |x| Ok(x.detach().sort(1, false)?.0),
                ],
            };
            at.into_iter().for_each(|run| check("sort", shape, run));
        }
    }
    check("unsorted", &[4500, 2], |x| x.detach().top_k(3000, 0, true, false)?.1.to(DType::F32));
}
