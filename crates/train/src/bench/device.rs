//! A GPU whose work is timed by its own clock.

use std::sync::Arc;

use phalanx_gpu::{Buffer, Context, Timer};
use phalanx_host::rng::Key;
use phalanx_host::{Cpu, Isa};
use phalanx_tensor::{DType, Device, Tensor};

use super::noise;
use crate::config::Precision;
use crate::machine::{DeviceChoice, Machine, Wanted};
use crate::report::quantile;
use crate::{Error, Result};

/// Rounds that do not count.
const WARM_UP: usize = 2;

/// An open GPU with its kernels loaded.
pub(super) struct Timed {
    pub(super) device: Device,
    machine: Machine,
    timer: Timer,
    gpu: Context,
}

impl Timed {
    /// What is asked for, or why it is not to be had.
    pub(super) fn machine(
        choice: DeviceChoice,
        isa: Isa,
        threads: usize,
        precision: Precision,
    ) -> Result<Machine> {
        let machine = Machine::open(&Wanted { choice: &choice, isa, threads, exact: false })?;
        machine.set_precision(precision)?;
        Ok(machine)
    }

    /// Opens the GPU and loads the kernels. Fails where there is none.
    pub(super) fn open(choice: DeviceChoice, isa: Isa, threads: usize, precision: Precision) -> Result<Self> {
        let machine = Timed::machine(choice, isa, threads, precision)?;
        let Some(gpu) = machine.gpu().cloned() else {
            let problem = format!("it measures a GPU; use --device cuda{}", machine.in_brackets());
            return Err(Error::config("--device", problem));
        };
        machine.load_kernels()?;
        let timer = gpu.timer()?;
        Ok(Timed { device: machine.device.clone(), machine, timer, gpu })
    }

    /// What the GPU is called.
    pub(super) fn name(&self) -> String {
        self.machine.name()
    }

    /// The GPU.
    pub(super) fn gpu(&self) -> &Context {
        &self.gpu
    }

    /// The cores beside it.
    pub(super) fn cpu(&self) -> Arc<Cpu> {
        self.machine.cpu.clone()
    }

    /// The median seconds of `work`, of which each of `rounds` rounds does `times` at once.
    pub(super) fn seconds(&self, rounds: usize, times: usize, work: impl Fn() -> Result<()>) -> Result<f64> {
        let mut all = Vec::new();
        for round in 0..WARM_UP + rounds {
            self.timer.start()?;
            (0..times).try_for_each(|_| work())?;
            let took = f64::from(self.timer.stop()?) / 1e3 / times as f64;
            if round >= WARM_UP {
                all.push(took);
            }
        }
        Ok(quantile(&mut all, 0.5))
    }

    /// The median seconds of `work` on what `prepare` makes, after `swept` was written so that no cache holds anything of it.
    pub(super) fn cold<T>(
        &self,
        rounds: usize,
        swept: &Buffer,
        mut prepare: impl FnMut() -> Result<T>,
        mut work: impl FnMut(T) -> Result<()>,
    ) -> Result<f64> {
        let mut all = Vec::new();
        for round in 0..WARM_UP + rounds {
            let made = prepare()?;
            // Also gives the host time to queue the work, so that launches do not count.
            self.gpu.fill_zero(swept.ptr(), swept.len())?;
            self.timer.start()?;
            work(made)?;
            let took = f64::from(self.timer.stop()?) / 1e3;
            if round >= WARM_UP {
                all.push(took);
            }
        }
        Ok(quantile(&mut all, 0.5))
    }
}

/// A matrix of random numbers in −½..½, a row of them again and again where it is large.
pub(super) fn tiled(device: &Device, dtype: DType, [rows, cols]: [usize; 2]) -> Result<Tensor> {
    const MOST: usize = 1 << 20;
    let some = (MOST / cols.max(1)).clamp(1, rows.max(1));
    let numbers = noise(&mut Key::new(1).stream(), some * cols);
    let tile = Tensor::from_slice(&numbers, [1, some, cols], device)?.to(dtype)?;
    let times = rows.div_ceil(some);
    let all = tile.expand(&[times, some, cols])?.contiguous()?.reshape(&[times * some, cols])?;
    Ok(all.slice(0, 0, rows)?.contiguous()?)
}
