//! Kernels that wait for memory: bytes a second beside a copy's.

use phalanx_gpu::Buffer;
use phalanx_host::{Arena, Isa};
use phalanx_nn::{Builder, Init, Optimizer, OptimizerConfig, Stored};
use phalanx_tensor::{DType, Fuse, Gradients, Tensor};
use serde::Serialize;

use super::device::{Timed, tiled};
use crate::Result;
use crate::config::Precision;
use crate::machine::DeviceChoice;

/// What `bench memory` measured.
#[derive(Debug, Clone, Serialize)]
pub struct MemoryReport {
    /// What the GPU is called.
    pub device_name: String,
    /// Bytes of the largest operand.
    pub operand_bytes: usize,
    /// Bytes read and written a second by a copy of such an operand within the device, in 10⁹.
    pub copy_gb_s: f64,
    /// The kernels.
    pub kernels: Vec<KernelRate>,
}

/// How fast one op moves its bytes.
#[derive(Debug, Clone, Serialize)]
pub struct KernelRate {
    /// What it does.
    pub name: String,
    /// The bytes that it must read and write at least; two passes over an operand read it twice.
    pub bytes: usize,
    /// Median time.
    pub ms: f64,
    /// Bytes by time, in 10⁹ a second.
    pub gb_s: f64,
    /// The same as a part of the copy's.
    pub of_copy: f64,
}

/// Measured rounds of each.
const ROUNDS: usize = 10;
/// Bytes that are written between two measurements: several times the largest L2 cache. Small operands take less.
const SWEPT: usize = 256 << 20;

struct Bench {
    timed: Timed,
    /// Elements of a large operand in bf16.
    elements: usize,
    swept: Buffer,
    copy: f64,
    kernels: Vec<KernelRate>,
}

/// Measures batch and layer norms, sums, softmax, casts and optimizers on operands of so many megabytes, activations in
/// bf16. Fails without a GPU.
pub fn memory(choice: &DeviceChoice, megabytes: f64) -> Result<MemoryReport> {
    let timed = Timed::open(choice.clone(), Isa::detect(), 1, Precision::Bf16)?;
    let bytes = ((megabytes * 1e6) as usize).max(1 << 16) & !0xff;
    let swept = timed.gpu().alloc(SWEPT.min(4 * bytes))?;
    let [from, to] = [timed.gpu().alloc(bytes)?, timed.gpu().alloc(bytes)?];
    let copy = || Ok(timed.gpu().copy(to.ptr(), from.ptr(), bytes)?);
    let seconds = timed.cold(ROUNDS, &swept, || Ok(()), |()| copy())?;
    drop([from, to]);
    let copy = 2.0 * bytes as f64 / seconds / 1e9;
    let mut bench = Bench { timed, elements: bytes / 2, swept, copy, kernels: Vec::new() };
    for channels in [64, 256, 1024] {
        for (relu, residual) in [(false, false), (true, false), (true, true)] {
            bench.batch_norm(channels, relu, residual)?;
        }
    }
    bench.rows()?;
    bench.elementwise()?;
    bench.optimizers()?;
    let Bench { timed, copy: copy_gb_s, kernels, .. } = bench;
    Ok(MemoryReport { device_name: timed.name(), operand_bytes: bytes, copy_gb_s, kernels })
}

impl Bench {
    /// A large operand with so many columns.
    fn operand(&self, cols: usize) -> Result<Tensor> {
        tiled(&self.timed.device, DType::BF16, [(self.elements / cols).max(2), cols])
    }

    fn ones(&self, n: usize) -> Result<Tensor> {
        Ok(Tensor::full(1.0f32, [n], &self.timed.device)?.leaf())
    }

    /// Times `work` on what `prepare` makes; it moves `bytes`.
    fn add<T>(
        &mut self,
        name: String,
        bytes: usize,
        prepare: impl FnMut() -> Result<T>,
        work: impl FnMut(T) -> Result<()>,
    ) -> Result<()> {
        let seconds = self.timed.cold(ROUNDS, &self.swept, prepare, work)?;
        let gb_s = bytes as f64 / seconds / 1e9;
        self.kernels.push(KernelRate { name, bytes, ms: seconds * 1e3, gb_s, of_copy: gb_s / self.copy });
        Ok(())
    }

    /// An op's way there and back, which move its operand so many times; `leaf` is what has a gradient.
    fn both_ways(
        &mut self,
        name: &str,
        leaf: &Tensor,
        [there, back]: [usize; 2],
        forward: impl Fn() -> Result<Tensor>,
    ) -> Result<()> {
        let bytes = leaf.shape().numel() * leaf.dtype().size();
        self.add(format!("{name}, forward"), there * bytes, || Ok(()), |()| forward().map(drop))?;
        let seed = leaf.detach();
        self.add(format!("{name}, backward"), back * bytes, forward_of(&forward), |y| {
            let mut all = Gradients::default();
            Ok(y.backward_from(seed.clone(), &mut all)?)
        })
    }

    fn batch_norm(&mut self, channels: usize, relu: bool, residual: bool) -> Result<()> {
        let x = self.operand(channels)?.leaf();
        let (gamma, beta) = (self.ones(channels)?, self.ones(channels)?);
        let other = if residual { Some(self.operand(channels)?.leaf()) } else { None };
        let name = ["batch norm ", if residual { "+ add " } else { "" }, if relu { "+ relu " } else { "" }];
        let name = format!("{}of {channels}", name.concat());
        // Moments and sums are a pass of their own each; with ReLU and residual the latter writes what both go on with.
        let passes = if residual { [4, 7] } else { [3, 5] };
        self.both_ways(&name, &x.clone(), passes, || {
            let fuse = Fuse { residual: other.as_ref(), relu };
            Ok(x.batch_norm_train_with(&gamma, &beta, 1e-5, fuse)?.y)
        })
    }

    fn rows(&mut self) -> Result<()> {
        let x = self.operand(1024)?.leaf();
        let (gamma, beta) = (self.ones(1024)?, self.ones(1024)?);
        self.both_ways("layer norm of 1024", &x, [2, 3], || {
            Ok(x.layer_norm(1, Some(&gamma), Some(&beta), 1e-5)?)
        })?;
        self.both_ways("softmax of 1024", &x, [2, 3], || Ok(x.softmax()?))
    }

    fn elementwise(&mut self) -> Result<()> {
        let n = self.elements;
        let [x, y] = [self.operand(256)?, self.operand(256)?];
        self.add("add".into(), 6 * n, || Ok(()), |()| Ok(x.add(&y).map(drop)?))?;
        self.add("relu".into(), 4 * n, || Ok(()), |()| Ok(x.relu().map(drop)?))?;
        self.add("add, then relu".into(), 10 * n, || Ok(()), |()| Ok(x.add(&y)?.relu().map(drop)?))?;
        let wide = x.to(DType::F32)?;
        self.add("f32 to bf16".into(), 6 * n, || Ok(()), |()| Ok(wide.to(DType::BF16).map(drop)?))?;
        self.add("bf16 to f32".into(), 6 * n, || Ok(()), |()| Ok(x.to(DType::F32).map(drop)?))
    }

    fn optimizers(&mut self) -> Result<()> {
        let n = self.elements / 2;
        let mut builder = Builder::new();
        builder.param("weight", [n], Stored::Plain, true, Init::Zeros, [1, 1]);
        let (params, _) = builder.finish(&mut Arena::zeroed)?;
        let params = params.on(&self.timed.device)?;
        let gradients = params.twin()?;
        let cpu = self.timed.cpu();
        for (name, config, moves) in [
            ("sgd with momentum", OptimizerConfig::sgd(0.01, 0.9, 1e-4), 5),
            ("adam", OptimizerConfig::adam(1e-3), 7),
        ] {
            let mut optimizer = Optimizer::new(&config, &params, 0..1)?;
            self.add(
                name.into(),
                4 * moves * n,
                || Ok(()),
                |()| Ok(optimizer.step(&cpu, &params, gradients.arena(), 1.0, 0.01)?),
            )?;
        }
        Ok(())
    }
}

/// As what is made anew before each measurement.
fn forward_of(forward: &impl Fn() -> Result<Tensor>) -> impl FnMut() -> Result<Tensor> + '_ {
    move || forward()
}
