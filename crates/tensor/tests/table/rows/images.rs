//! Images: pooling, bytes to floats, mixing.

use phalanx_tensor::{Crops, DType, Normalisation};

use crate::naive as n;
use crate::row::{Array, In, Kind, Row, indices, input, row};

/// Images, a kernel, stride and padding.
type Sizes = ([usize; 4], [usize; 2], [usize; 2], [usize; 2]);

pub(super) fn all() -> Vec<Row> {
    let mut rows = Vec::new();
    let cases: [Sizes; 8] = [
        ([3, 14, 12, 6], [2, 2], [2, 2], [0, 0]),
        ([2, 7, 9, 16], [2, 2], [2, 2], [0, 0]),
        ([2, 9, 9, 64], [3, 3], [2, 2], [1, 1]),
        ([1, 6, 5, 33], [3, 3], [1, 1], [1, 1]),
        ([1, 5, 8, 1], [1, 3], [2, 1], [0, 1]),
        ([1, 20, 19, 2], [17, 16], [1, 2], [8, 0]),
        ([1, 2, 2, 3], [2, 2], [5, 5], [0, 0]),
        ([1, 4, 4, 0], [2, 2], [2, 2], [0, 0]),
    ];
    for (x, kernel, stride, padding) in cases {
        let row = row(
            "max_pool2d",
            vec![input(&x)],
            move |x| x[0].max_pool2d(kernel, stride, padding),
            move |x| n::max_pool2d(&x[0], kernel, stride, padding),
        );
        let row =
            row.refuses(&[&[4, 4, 2]]).bad(&[&[1, 2, 2, 1]], |x| x[0].max_pool2d([3, 3], [1, 1], [0, 0]));
        let row = row.bad(&[&[1, 4, 4, 1]], |x| x[0].max_pool2d([2, 2], [0, 1], [0, 0]));
        let row = row.bad(&[&[1, 4, 4, 1]], |x| x[0].max_pool2d([0, 2], [1, 1], [0, 0]));
        rows.push(row.bad(&[&[1, 4, 4, 1]], |x| x[0].max_pool2d([2, 2], [1, 1], [2, 0])).batch(&[0]));
    }
    rows.extend(bytes());
    rows.extend(mixed());
    rows
}

/// Images of bytes, whole and in parts that are mirrored and lie outside here and there.
fn bytes() -> Vec<Row> {
    let places = [0i64, 0, 0, 1, -1, 1, -2, 3, 7, i64::MIN, 0, 0];
    let mut rows = Vec::new();
    for (shape, parts, dtype) in [
        ([2usize, 5, 7, 3], None, DType::F32),
        ([4, 6, 5, 3], Some([4usize, 5]), DType::F32),
        ([3, 4, 4, 1], None, DType::F32),
        ([4, 3, 9, 1], Some([5, 3]), DType::BF16),
        ([2, 3, 5, 4], None, DType::F16),
        ([4, 4, 3, 5], Some([1, 1]), DType::F32),
        ([1, 16, 16, 3], None, DType::BF16),
        ([2, 0, 3, 3], None, DType::F32),
    ] {
        let [samples, h, w, channels] = shape;
        let how = Normalisation {
            scale: 1.0 / 255.0,
            mean: (0..channels).map(|c| 0.485 - 0.03 * c as f32).collect(),
            std: (0..channels).map(|c| 0.229 + 0.01 * c as f32).collect(),
        };
        let values: Vec<u8> = (0..shape.iter().product()).map(|i| (i * 73 % 256) as u8).collect();
        let mut inputs = vec![In { shape: shape.to_vec(), kind: Kind::Mask(values) }];
        if parts.is_some() {
            inputs.push(indices(&[samples, 3], &places[..3 * samples]));
        }
        let (given, few) = (how.clone(), Normalisation { std: vec![1.0; channels + 1], ..how.clone() });
        let many = Normalisation { mean: vec![0.0; 33], std: vec![1.0; 33], ..how.clone() };
        let row = row(
            "normalise_bytes",
            inputs,
            move |x| {
                let crops = parts.map(|size| Crops { size, places: &x[1] });
                x[0].normalise_bytes(&given, crops.as_ref(), dtype)
            },
            move |x| {
                let [rows, columns] = parts.unwrap_or([h, w]);
                n::build(&[samples, rows, columns, channels], |at| {
                    let place = |k: usize| parts.map_or(0, |_| places[3 * at[0] + k]);
                    let column = if place(2) == 0 { at[2] } else { columns - 1 - at[2] };
                    let (a, b) = (place(0) + at[1] as i64, place(1) + column as i64);
                    let inside = (0..h as i64).contains(&a) && (0..w as i64).contains(&b);
                    let from = [at[0], a as usize, b as usize, at[3]];
                    let byte = if inside { n::pick(&x[0], &from) as f32 } else { 0.0 };
                    let single = (byte * how.scale - how.mean[at[3]]) / how.std[at[3]];
                    match dtype {
                        DType::BF16 => half::bf16::from_f32(single).to_f64(),
                        DType::F16 => half::f16::from_f32(single).to_f64(),
                        _ => f64::from(single),
                    }
                })
            },
        );
        let u8s = |x: &phalanx_tensor::Tensor| x.to(DType::U8);
        let row = row.bad(&[&[1, 2, 2, 1]], move |x| x[0].normalise_bytes(&few, None, dtype));
        let row = row.bad(&[&[1, 1, 1, 33]], move |x| u8s(&x[0])?.normalise_bytes(&many, None, dtype));
        let row = row.bad(&[&[1, 2, 1]], move |x| {
            let how = Normalisation { scale: 1.0, mean: vec![0.0], std: vec![1.0] };
            u8s(&x[0])?.normalise_bytes(&how, None, DType::F32)
        });
        let row = row.bad(&[&[1, 2, 2, 1], &[1, 2]], move |x| {
            let how = Normalisation { scale: 1.0, mean: vec![0.0], std: vec![1.0] };
            let crops = Crops { size: [1, 1], places: &x[1].to(DType::I64)? };
            u8s(&x[0])?.normalise_bytes(&how, Some(&crops), DType::F32)
        });
        let batch: &[usize] = if parts.is_some() { &[0, 1] } else { &[0] };
        rows.push(row.batch(batch).no_gradient());
    }
    rows
}

/// Mixup, and pasting of boxes: whole ones, none, turned ones and such that lie outside.
fn mixed() -> Vec<Row> {
    let boxes = [0i64, 0, 0, 0, 1, 0, 3, 2, 2, 2, 1, 1, -1, 1, 99, 2];
    let mut rows = Vec::new();
    for shape in [[4usize, 3, 4, 3], [4, 5, 2, 1], [4, 4, 4, 8], [2, 1, 3, 5]] {
        let (samples, partners) = (shape[0], [1i64, 0, 3, 1]);
        let factors = In { shape: vec![samples], kind: Kind::FrozenUnit };
        let inputs = vec![
            In { shape: shape.to_vec(), kind: Kind::Frozen },
            indices(&[samples], &partners[..samples]),
            factors,
            indices(&[samples, 4], &boxes[..4 * samples]),
        ];
        let row = row(
            "mix",
            inputs,
            |x| x[0].mix(&x[1], &x[2], &x[3]),
            move |x: &[Array]| {
                n::build(&shape, |at| {
                    let [top, left, bottom, right] = [0, 1, 2, 3].map(|k| boxes[4 * at[0] + k]);
                    let other = [partners[at[0]] as usize, at[1], at[2], at[3]];
                    let (a, b, share) = (n::pick(&x[0], at), n::pick(&x[0], &other), x[2].data[at[0]]);
                    if bottom <= top || right <= left {
                        return share * a + (1.0 - share) * b;
                    }
                    let inside = (top..bottom).contains(&(at[1] as i64));
                    if inside && (left..right).contains(&(at[2] as i64)) { b } else { a }
                })
            },
        );
        let ints = |x: &phalanx_tensor::Tensor| x.to(DType::I64);
        let row = row.bad(&[&[2, 1, 1, 1], &[3], &[2], &[2, 4]], move |x| {
            x[0].mix(&ints(&x[1])?, &x[2], &ints(&x[3])?)
        });
        let row = row.bad(&[&[2, 1, 1, 1], &[2], &[2], &[2, 3]], move |x| {
            x[0].mix(&ints(&x[1])?, &x[2], &ints(&x[3])?)
        });
        let row = row.bad(&[&[2, 1, 1, 1], &[2], &[2], &[2, 4]], move |x| {
            x[0].mix(&ints(&x[1].offset(5.0)?)?, &x[2], &ints(&x[3])?)
        });
        rows.push(row.batch(&[0, 1, 2, 3]).no_gradient());
    }
    rows
}
