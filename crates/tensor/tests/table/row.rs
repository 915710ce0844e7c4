//! What a row of the op table is made of.

use std::sync::Arc;

use phalanx_host::{Cpu, Isa};
use phalanx_tensor::{DType, Device, Result, Tensor};

/// A reference array: row-major doubles.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Array {
    pub(crate) shape: Vec<usize>,
    pub(crate) data: Vec<f64>,
}

impl Array {
    pub(crate) fn new(shape: &[usize], f: impl FnMut(usize) -> f64) -> Self {
        Array { shape: shape.to_vec(), data: (0..shape.iter().product()).map(f).collect() }
    }
}

/// How an input's elements are made from the formulas of tests/golden/make.py.
#[derive(Debug, Clone)]
pub(crate) enum Kind {
    Value,
    Positive,
    /// As `Value` without a gradient.
    Frozen,
    FrozenPositive,
    Indices(Vec<i64>),
    Mask(Vec<u8>),
}

#[derive(Debug, Clone)]
pub(crate) struct In {
    pub(crate) shape: Vec<usize>,
    pub(crate) kind: Kind,
}

pub(crate) fn value(k: usize, i: usize) -> f64 {
    0.8 * (0.7 * i as f64 * (k + 1) as f64 + 0.3 * k as f64).sin() + 0.1
}

/// The weights that make a scalar of an output.
pub(crate) fn weight(i: usize) -> f64 {
    (0.9 * i as f64).cos() + 0.2
}

impl In {
    pub(crate) fn real(&self) -> bool {
        !matches!(self.kind, Kind::Indices(_) | Kind::Mask(_))
    }

    pub(crate) fn differentiable(&self) -> bool {
        matches!(self.kind, Kind::Value | Kind::Positive)
    }

    /// The elements of input number `k`.
    pub(crate) fn array(&self, k: usize) -> Array {
        Array::new(&self.shape, |i| match &self.kind {
            Kind::Value | Kind::Frozen => value(k, i),
            Kind::Positive | Kind::FrozenPositive => value(k, i).abs() + 0.5,
            Kind::Indices(v) => v[i] as f64,
            Kind::Mask(v) => f64::from(v[i]),
        })
    }

    /// The elements as a tensor: of `dtype` when they are real numbers.
    pub(crate) fn tensor(&self, a: &Array, dtype: DType, device: &Device) -> Tensor {
        let to = match self.kind {
            Kind::Indices(_) => DType::I64,
            Kind::Mask(_) => DType::U8,
            _ => dtype,
        };
        real(a, to, device)
    }
}

/// An array as a tensor of any type.
pub(crate) fn real(a: &Array, dtype: DType, device: &Device) -> Tensor {
    Tensor::from_slice(&a.data, &a.shape[..], device).unwrap().to(dtype).unwrap()
}

pub(crate) fn input(shape: &[usize]) -> In {
    In { shape: shape.to_vec(), kind: Kind::Value }
}

pub(crate) fn positive(shape: &[usize]) -> In {
    In { shape: shape.to_vec(), kind: Kind::Positive }
}

pub(crate) fn frozen(shape: &[usize]) -> In {
    In { shape: shape.to_vec(), kind: Kind::FrozenPositive }
}

pub(crate) fn indices(shape: &[usize], list: &[i64]) -> In {
    In { shape: shape.to_vec(), kind: Kind::Indices(list.to_vec()) }
}

pub(crate) fn mask(shape: &[usize]) -> In {
    let n: usize = shape.iter().product();
    In { shape: shape.to_vec(), kind: Kind::Mask((0..n).map(|i| u8::from(value(7, i) > 0.1)).collect()) }
}

type Run = Arc<dyn Fn(&[Tensor]) -> Result<Vec<Tensor>> + Send + Sync>;
type Naive = Arc<dyn Fn(&[Array]) -> Array + Send + Sync>;
type Bad = Arc<dyn Fn(&Device) -> Result<Tensor> + Send + Sync>;

/// What the outputs and gradients must be.
#[derive(Clone)]
pub(crate) enum Want {
    Naive(Naive),
    Golden { outputs: Vec<Vec<f64>>, gradients: Vec<Option<Vec<f64>>> },
}

/// One line of the table: an op on given operands, what it must give, and what it must refuse.
#[derive(Clone)]
pub(crate) struct Row {
    /// The name that its errors carry.
    pub(crate) op: &'static str,
    pub(crate) run: Run,
    pub(crate) inputs: Vec<In>,
    pub(crate) want: Want,
    /// Inputs whose first axis counts samples; there may be none of them.
    pub(crate) batch: Vec<usize>,
    /// Whether the gradient has a gradient.
    pub(crate) second: bool,
    /// Whether the op takes any element type.
    pub(crate) any_type: bool,
    /// Whether the output has a gradient.
    pub(crate) smooth: bool,
    /// Whether the gradient is the slope of the values: not where an op holds a part of it back.
    pub(crate) slopes: bool,
    pub(crate) bad: Vec<Bad>,
}

pub(crate) fn row(
    op: &'static str,
    inputs: Vec<In>,
    run: impl Fn(&[Tensor]) -> Result<Tensor> + Send + Sync + 'static,
    want: impl Fn(&[Array]) -> Array + Send + Sync + 'static,
) -> Row {
    Row {
        op,
        run: Arc::new(move |x| Ok(vec![run(x)?])),
        inputs,
        want: Want::Naive(Arc::new(want)),
        batch: vec![],
        second: false,
        any_type: false,
        smooth: true,
        slopes: true,
        bad: vec![],
    }
}

impl Row {
    pub(crate) fn batch(mut self, inputs: &[usize]) -> Self {
        self.batch = inputs.to_vec();
        self
    }
    pub(crate) fn second(mut self) -> Self {
        self.second = true;
        self
    }
    pub(crate) fn any_type(mut self) -> Self {
        self.any_type = true;
        self
    }
    pub(crate) fn no_gradient(mut self) -> Self {
        self.smooth = false;
        self
    }
    pub(crate) fn no_slopes(mut self) -> Self {
        self.slopes = false;
        self
    }
    /// Operands (of single precision) that must be refused.
    pub(crate) fn bad(
        mut self,
        shapes: &[&[usize]],
        run: impl Fn(&[Tensor]) -> Result<Tensor> + Send + Sync + 'static,
    ) -> Self {
        let shapes: Vec<Vec<usize>> = shapes.iter().map(|s| s.to_vec()).collect();
        self.bad.push(Arc::new(move |device| {
            let made = shapes
                .iter()
                .enumerate()
                .map(|(k, s)| input(s).tensor(&input(s).array(k), DType::F32, device));
            run(&made.collect::<Vec<_>>())
        }));
        self
    }
    /// Operand shapes that the row's own op must refuse.
    pub(crate) fn refuses(self, shapes: &[&[usize]]) -> Self {
        let (run, inputs) = (self.run.clone(), self.inputs.clone());
        let shapes: Vec<Vec<usize>> = shapes.iter().map(|s| s.to_vec()).collect();
        let mut row = self;
        row.bad.push(Arc::new(move |device| {
            let made = inputs.iter().zip(&shapes).enumerate().map(|(k, (i, s))| {
                let zeros = Array::new(s, |_| 0.0);
                if i.real() {
                    real(&input(s).array(k), DType::F32, device)
                } else {
                    i.tensor(&zeros, DType::F32, device)
                }
            });
            Ok(run(&made.collect::<Vec<_>>())?.remove(0))
        }));
        row
    }

    pub(crate) fn arrays(&self) -> Vec<Array> {
        self.inputs.iter().enumerate().map(|(k, i)| i.array(k)).collect()
    }

    /// The inputs of `dtype`; differentiable ones as leaves.
    pub(crate) fn tensors(&self, arrays: &[Array], dtype: DType, device: &Device) -> Vec<Tensor> {
        let one = |(i, a): (&In, &Array)| {
            let t = i.tensor(a, dtype, device);
            if i.differentiable() && self.smooth { t.leaf() } else { t }
        };
        self.inputs.iter().zip(arrays).map(one).collect()
    }

    pub(crate) fn title(&self) -> String {
        format!("{} on {:?}", self.op, self.inputs.iter().map(|i| &i.shape).collect::<Vec<_>>())
    }
}

pub(crate) fn device(isa: Isa, threads: usize) -> Device {
    Device::cpu(Cpu::new(isa, threads).unwrap())
}

pub(crate) fn sets() -> impl Iterator<Item = Isa> {
    [Isa::Portable, Isa::Avx2, Isa::Avx512].into_iter().filter(|i| i.available())
}

/// A tensor's elements as doubles.
pub(crate) fn doubles(t: &Tensor) -> Vec<f64> {
    t.detach().to(DType::F64).unwrap().to_vec().unwrap()
}

/// Σ weight(i) · y[i].
pub(crate) fn objective(y: &Tensor) -> Tensor {
    let w = Array::new(&y.shape(), weight);
    y.mul(&real(&w, y.dtype(), y.device())).unwrap().sum_all().unwrap()
}

/// The gradients of a scalar with respect to the differentiable inputs; zeros where it depends on none.
pub(crate) fn gradients(scalar: &Tensor, inputs: &[Tensor]) -> Vec<Option<Vec<f64>>> {
    let all = scalar.gradients().unwrap();
    let zeros = |t: &Tensor| vec![0.0; t.shape().numel()];
    inputs.iter().map(|t| t.leaf_id().map(|_| all.get(t).map_or_else(|| zeros(t), doubles))).collect()
}

/// Fails unless `got` is `want` up to `tolerance`, relative to the larger of 1 and the largest number.
pub(crate) fn close(what: &str, got: &[f64], want: &[f64], tolerance: f64) {
    assert_eq!(got.len(), want.len(), "{what}: number of elements");
    let scale = want.iter().fold(1.0f64, |m, x| m.max(x.abs()));
    for (i, (g, w)) in got.iter().zip(want).enumerate() {
        assert!(
            (g - w).abs() <= tolerance * scale || (g.is_nan() && w.is_nan()),
            "{what}: element {i} is {g}, must be {w}"
        );
    }
}
