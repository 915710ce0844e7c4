//! Tensors made of numbers that follow a rule, and what of a tensor lies on one side of a diagonal or under
//! a mask.

use crate::{DType, Device, Error, Result, Tensor, ops};

impl Tensor {
    /// `start, start + step, …` up to but not including `end`, of any type (rounded as [`Tensor::to`] does).
    /// Fails when the step does not lead from start to end.
    pub fn arange(start: f64, end: f64, step: f64, dtype: DType, device: &Device) -> Result<Tensor> {
        let count = ((end - start) / step).ceil();
        if !(step != 0.0 && count >= 0.0 && count <= f64::from(u32::MAX)) {
            let why = format!("steps of {step} do not lead from {start} to {end}");
            return Err(Error::Invalid { op: "arange", shape: [].into(), why });
        }
        let numbers: Vec<f64> = (0..count as usize).map(|i| start + i as f64 * step).collect();
        Tensor::from_slice(&numbers, [numbers.len()], device)?.to(dtype)
    }

    /// `count` numbers at equal distances from `start` to `end`, both among them, exactly.
    pub fn linspace(start: f64, end: f64, count: usize, dtype: DType, device: &Device) -> Result<Tensor> {
        let step = (end - start) / count.saturating_sub(1).max(1) as f64;
        // From both ends, as torch.linspace, so that the last number is the end.
        let number = |i: usize| match i < count.div_ceil(2) {
            true => start + i as f64 * step,
            false => end - (count - 1 - i) as f64 * step,
        };
        let numbers: Vec<f64> = (0..count).map(number).collect();
        Tensor::from_slice(&numbers, [count], device)?.to(dtype)
    }

    /// A matrix with ones on its diagonal and zeros elsewhere.
    pub fn eye(rows: usize, columns: usize, dtype: DType, device: &Device) -> Result<Tensor> {
        let numbers: Vec<u8> = (0..rows * columns).map(|i| u8::from(i / columns == i % columns)).collect();
        Tensor::from_slice(&numbers, [rows, columns], device)?.to(dtype)
    }

    /// The lower triangles of matrices (the last two axes): zeros above the `diagonal`-th diagonal, where 0 is
    /// the main one and 1 the one above it (`torch.tril`).
    pub fn tril(&self, diagonal: isize) -> Result<Tensor> {
        self.triangle("tril", |above| above <= diagonal)
    }

    /// The upper triangles of matrices: zeros below the `diagonal`-th diagonal (`torch.triu`).
    pub fn triu(&self, diagonal: isize) -> Result<Tensor> {
        self.triangle("triu", |above| above >= diagonal)
    }

    /// Zeros where `keeps` does not hold for the number of the diagonal.
    fn triangle(&self, op: &'static str, keeps: impl Fn(isize) -> bool) -> Result<Tensor> {
        let shape = self.shape();
        ops::want_float(op, self)?;
        let Some(&[rows, columns]) = shape.last_chunk() else {
            return Err(Error::Invalid { op, shape, why: "it takes matrices, at least two axes".into() });
        };
        let kept = |i: usize| u8::from(keeps((i % columns) as isize - (i / columns) as isize));
        let mask: Vec<u8> = (0..rows * columns).map(kept).collect();
        let mask = Tensor::from_slice(&mask, [rows, columns], self.device())?;
        mask.select(self, &Tensor::scalar(0.0, self.dtype(), self.device())?)
    }

    /// The elements where `mask` (u8, broadcasts to this tensor) is not 0, in row-major order: `[K]`. How many
    /// they are is known from the mask's values, so that these are read on the way.
    pub fn masked_select(&self, mask: &Tensor) -> Result<Tensor> {
        const OP: &str = "masked_select";
        let shape = self.shape();
        ops::want_float(OP, self)?;
        if mask.dtype() != DType::U8 {
            return Err(Error::DTypes { op: OP, operand: 1, got: mask.dtype(), want: "u8 (a mask)".into() });
        }
        if mask.shape().broadcast(&shape) != Some(shape) {
            let hint = "the mask must broadcast to the tensor";
            return Err(Error::Shapes { op: OP, lhs: shape, rhs: mask.shape(), hint });
        }
        let mask: Vec<u8> = mask.expand(&shape)?.to_vec()?;
        let places: Vec<i64> = (0i64..).zip(&mask).filter(|(_, m)| **m != 0).map(|(i, _)| i).collect();
        let places = Tensor::from_slice(&places, [places.len()], self.device())?;
        self.reshape(&[shape.numel()])?.index_select(0, &places)
    }
}
