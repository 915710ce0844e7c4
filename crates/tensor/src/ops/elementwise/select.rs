//! Masks (u8, 0 or 1): comparisons, logic, and the choice between two tensors by a mask.

use phalanx_host::DType;

use super::{broadcast, cpu, stretch};
use crate::op::{CudaOp, Exec, Meta, Op, Plan, Saved};
use crate::sink::GradSink;
use crate::tape::apply_one;
use crate::{Error, Result, Tensor, View, ViewMut, ops};

/// `a` where the mask is not 0, `b` elsewhere.
#[derive(Debug)]
pub(super) struct Where;

impl Op for Where {
    fn name(&self) -> &'static str {
        "where"
    }

    fn infer(&self, inputs: &[Meta]) -> Result<Plan> {
        ops::want_mask("where", inputs, 0)?;
        ops::want_real("where", inputs, 1)?;
        let (want, got) = (inputs[1].dtype, inputs[2].dtype);
        if got != want {
            let want = format!("{want} like operand 1");
            return Err(Error::DTypes { op: "where", operand: 2, got, want });
        }
        let values = broadcast("where", inputs[1].shape(), inputs[2].shape())?;
        Ok(Plan::one(inputs[1].dtype, broadcast("where", inputs[0].shape(), values)?).saving_inputs(1))
    }

    fn forward(&self, cx: &Exec, ins: &[View], outs: &mut [ViewMut], _: &mut [ViewMut]) -> Result<()> {
        let cpu = cx.cpu()?;
        let shape = outs[0].shape;
        let [m, a, b] = [0, 1, 2].map(|i| stretch("where", &ins[i], shape));
        let (m, a, b) = (m?, a?, b?);
        ops::real!("where", a.dtype, T => cpu::select::<T>(cpu, &m, &a, &b, outs[0].slice()?))
    }

    fn cuda(&self) -> Option<&dyn CudaOp> {
        Some(self)
    }

    fn backward(
        &self,
        _: &Exec,
        mut saved: Saved,
        grads: &[Option<Tensor>],
        sink: &mut GradSink,
    ) -> Result<()> {
        let Some(g) = &grads[0] else { return Ok(()) };
        let parts = where_gradients(&saved.input(0)?, g)?;
        for (i, part) in [1, 2].into_iter().zip(parts) {
            if sink.wants(i) {
                sink.pass(i, part.sum_to(&sink.shape(i))?)?;
            }
        }
        Ok(())
    }

    fn backward_graph(
        &self,
        inputs: &[Option<Tensor>],
        _: &[Option<Tensor>],
        metas: &[Meta],
        grads: &[Option<Tensor>],
    ) -> Result<Vec<Option<Tensor>>> {
        let (Some(mask), Some(g)) = (&inputs[0], &grads[0]) else { return Ok(vec![None, None, None]) };
        let [a, b] = where_gradients(mask, g)?;
        Ok(vec![None, Some(a.sum_to(&metas[1].shape())?), Some(b.sum_to(&metas[2].shape())?)])
    }
}

fn where_gradients(mask: &Tensor, g: &Tensor) -> Result<[Tensor; 2]> {
    let zero = Tensor::scalar(0.0, g.dtype(), g.device())?;
    Ok([mask.select(g, &zero)?, mask.select(&zero, g)?])
}

/// What a comparison of two elements can find, as bits.
const LESS: u8 = 1;
const EQUAL: u8 = 2;
const GREATER: u8 = 4;
const UNORDERED: u8 = 8;

fn compared<T: PartialOrd>(a: T, b: T) -> u8 {
    match (a < b, a == b, a > b) {
        (true, ..) => LESS,
        (_, true, _) => EQUAL,
        (.., true) => GREATER,
        _ => UNORDERED,
    }
}

/// Two masks' elements as a bit: bit 0 where neither is set, bit 1 for the second, bit 2 for the first, bit 3 for
/// both.
fn both(a: u8, b: u8) -> u8 {
    1 << (2 * u8::from(a != 0) + u8::from(b != 0))
}

/// 1 where what two elements give is among the bits `wanted`, else 0; both operands broadcast.
#[derive(Debug)]
pub(super) struct Test {
    pub(super) name: &'static str,
    /// Whether the operands are masks; otherwise they are numbers of any one type.
    pub(super) logic: bool,
    pub(super) wanted: u8,
}

impl Op for Test {
    fn name(&self) -> &'static str {
        self.name
    }

    fn infer(&self, inputs: &[Meta]) -> Result<Plan> {
        if self.logic {
            ops::want_mask(self.name, inputs, 0)?;
        }
        ops::want_same(self.name, inputs, 1)?;
        Ok(Plan::one(DType::U8, broadcast(self.name, inputs[0].shape(), inputs[1].shape())?))
    }

    fn forward(&self, cx: &Exec, ins: &[View], outs: &mut [ViewMut], _: &mut [ViewMut]) -> Result<()> {
        let (cpu, shape, wanted) = (cx.cpu()?, outs[0].shape, self.wanted);
        let (a, b) = (stretch(self.name, &ins[0], shape)?, stretch(self.name, &ins[1], shape)?);
        let out = outs[0].slice::<u8>()?;
        macro_rules! zip {
            ($t:ty, $found:expr) => {
                cpu::zip_by::<$t, u8>(cpu, &a, &b, out, &|a, b, out| {
                    let found = $found;
                    let each = out.iter_mut().enumerate();
                    each.for_each(|(i, o)| *o = u8::from(found(a.at(i), b.at(i)) & wanted != 0));
                })
            };
        }
        match a.dtype {
            DType::U8 if self.logic => zip!(u8, both),
            DType::U8 => zip!(u8, compared::<u8>),
            DType::I64 => zip!(i64, compared::<i64>),
            // Here without the feature too: integers are compared with a number as doubles.
            DType::F64 => zip!(f64, compared::<f64>),
            _ => ops::real!(self.name, a.dtype, T => zip!(T, compared::<T>)),
        }
    }

    fn cuda(&self) -> Option<&dyn CudaOp> {
        Some(self)
    }

    fn backward(&self, _: &Exec, _: Saved, _: &[Option<Tensor>], _: &mut GradSink) -> Result<()> {
        Ok(())
    }
}

fn compare(name: &'static str, wanted: u8, a: &Tensor, b: &Tensor) -> Result<Tensor> {
    apply_one(Test { name, logic: false, wanted }, &[&a.detach(), &b.detach()])
}

/// Compares with a number; integers as doubles, as the number may lie between two of them.
fn compare_scalar(name: &'static str, wanted: u8, x: &Tensor, number: f64) -> Result<Tensor> {
    let x = if x.dtype().is_float() { x.clone() } else { x.to(DType::F64)? };
    // Halves are widened: so is the number, which none of them may be.
    let dtype = if x.dtype() == DType::F64 { DType::F64 } else { DType::F32 };
    compare(name, wanted, &x, &Tensor::scalar(number, dtype, x.device())?)
}

macro_rules! comparisons {
    ($($(#[$doc:meta])* $method:ident $scalar:ident $wanted:expr;)*) => {
        impl Tensor { $(
            $(#[$doc])*
            ///
            /// A mask (u8, 0 or 1) without a gradient. Both operands are of one type (floats, i64 or u8) and
            /// broadcast. Comparisons with not a number are false, save for `ne`.
            pub fn $method(&self, other: &Tensor) -> Result<Tensor> {
                compare(stringify!($method), $wanted, self, other)
            }

            $(#[$doc])*
            ///
            /// As the comparison with a tensor, with one number.
            pub fn $scalar(&self, number: f64) -> Result<Tensor> {
                compare_scalar(stringify!($method), $wanted, self, number)
            }
        )* }
    };
}

comparisons! {
    /// 1 where the elements are equal.
    eq eq_scalar EQUAL;
    /// 1 where the elements differ.
    ne ne_scalar LESS | GREATER | UNORDERED;
    /// 1 where this tensor's element is smaller.
    lt lt_scalar LESS;
    /// 1 where this tensor's element is smaller or equal.
    le le_scalar LESS | EQUAL;
    /// 1 where this tensor's element is larger.
    gt gt_scalar GREATER;
    /// 1 where this tensor's element is larger or equal.
    ge ge_scalar GREATER | EQUAL;
}

impl Tensor {
    fn logic(&self, name: &'static str, wanted: u8, other: &Tensor) -> Result<Tensor> {
        apply_one(Test { name, logic: true, wanted }, &[self, other])
    }

    /// 1 where both masks (u8) are set; they broadcast.
    pub fn logical_and(&self, other: &Tensor) -> Result<Tensor> {
        self.logic("logical_and", 0b1000, other)
    }

    /// 1 where one of the masks (u8) is set, or both; they broadcast.
    pub fn logical_or(&self, other: &Tensor) -> Result<Tensor> {
        self.logic("logical_or", 0b1110, other)
    }

    /// 1 where one of the masks (u8) is set and the other is not; they broadcast.
    pub fn logical_xor(&self, other: &Tensor) -> Result<Tensor> {
        self.logic("logical_xor", 0b0110, other)
    }

    /// 1 where the mask (u8) is not set.
    pub fn logical_not(&self) -> Result<Tensor> {
        self.logic("logical_not", 0b0001, self)
    }

    /// A mask (u8): 1 where the element is not a number.
    pub fn isnan(&self) -> Result<Tensor> {
        compare("isnan", UNORDERED, self, self)
    }

    /// A mask (u8): 1 where the element is a number and not infinite.
    pub fn isfinite(&self) -> Result<Tensor> {
        match self.dtype().is_float() {
            true => compare_scalar("isfinite", LESS, &self.detach().abs()?, f64::INFINITY),
            false => compare("isfinite", EQUAL, self, self),
        }
    }

    /// A mask (u8): 1 where the element is ∞ or −∞.
    pub fn isinf(&self) -> Result<Tensor> {
        match self.dtype().is_float() {
            true => compare_scalar("isinf", EQUAL, &self.detach().abs()?, f64::INFINITY),
            false => compare("isinf", UNORDERED, self, self),
        }
    }

    /// `a` where this mask (u8) is not 0, `b` elsewhere; all three broadcast.
    pub fn select(&self, a: &Tensor, b: &Tensor) -> Result<Tensor> {
        apply_one(Where, &[self, a, b])
    }

    /// This tensor with `number` wherever `mask` (u8) is not 0; both broadcast. No gradient flows to elements
    /// that are filled.
    pub fn masked_fill(&self, mask: &Tensor, number: f64) -> Result<Tensor> {
        mask.select(&Tensor::scalar(number, DType::F64, self.device())?.to(self.dtype())?, self)
    }
}
