//! Where a rank computes: the processor's cores, and a GPU beside them where one is wanted and there.

use std::sync::Arc;

use phalanx_comm::Communicator;
use phalanx_gpu::{Context, Math};
use phalanx_host::{Cpu, Isa};
use phalanx_tensor::Device;

use crate::config::Precision;
use crate::sums::{DeviceSums, SumsOver};
use crate::{Error, Result};

/// Which device is wanted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeviceChoice {
    /// `auto`, `cpu` or `cuda`.
    pub name: String,
    /// Whether ranks of one machine may share a GPU.
    pub share_gpu: bool,
    /// Which way sums go between GPUs.
    pub sums: SumsOver,
}

impl From<&str> for DeviceChoice {
    fn from(name: &str) -> Self {
        DeviceChoice { name: name.to_owned(), share_gpu: false, sums: SumsOver::default() }
    }
}

/// What a rank computes with.
#[derive(Debug, Clone)]
pub struct Machine {
    /// Where tensors are.
    pub device: Device,
    /// The cores for what a GPU does not do: loading, sums over ranks, files.
    pub cpu: Arc<Cpu>,
    /// Why no GPU was taken, where that was left open.
    pub no_gpu: Option<String>,
    /// Where gradients are summed between GPUs, unless that goes by way of the host.
    pub sums: Option<Arc<DeviceSums>>,
    /// Why they are not summed there, where that was left open.
    pub no_nccl: Option<String>,
}

/// What a rank asks for.
#[derive(Debug, Clone)]
pub(crate) struct Wanted<'a> {
    pub(crate) choice: &'a DeviceChoice,
    pub(crate) isa: Isa,
    /// Compute threads.
    pub(crate) threads: usize,
    /// The rank's number among those of its machine.
    pub(crate) local_rank: u32,
    pub(crate) precision: Precision,
    /// Whether a GPU's results must be the same from run to run.
    pub(crate) exact: bool,
}

impl Machine {
    /// Nothing but the processor.
    pub fn cpu(cpu: Cpu) -> Self {
        let cpu = Arc::new(cpu);
        Machine { device: Device::Cpu(cpu.clone()), cpu, no_gpu: None, sums: None, no_nccl: None }
    }

    /// Takes the GPU of the rank's number among those that are visible, or the processor.
    pub(crate) fn open(wanted: &Wanted) -> Result<Self> {
        let cpu = Arc::new(Cpu::new(wanted.isa, wanted.threads)?);
        let on = |device, no_gpu| Machine { device, cpu: cpu.clone(), no_gpu, sums: None, no_nccl: None };
        let on_cpu = |no_gpu| on(Device::Cpu(cpu.clone()), no_gpu);
        let machine = match (&*wanted.choice.name, gpu_for(wanted)) {
            ("cpu", _) => on_cpu(None),
            ("auto" | "cuda", Some(Ok(gpu))) => on(Device::Cuda(gpu), None),
            ("auto", Some(Err(e))) => on_cpu(Some(e.to_string())),
            ("cuda", Some(Err(e))) => return Err(unavailable(&e)),
            (other, _) => {
                let problem = format!("there is no device {other:?}; use auto, cpu or cuda");
                return Err(Error::config("--device", problem));
            }
        };
        if let (Device::Cpu(_), false) = (&machine.device, wanted.precision == Precision::F32) {
            let why = machine.no_gpu.as_ref().map_or(String::new(), |e| format!(" (no GPU was taken: {e})"));
            let problem = format!(
                "{} is for GPUs; on the CPU it must be f32, as --set train.precision=f32{why}",
                wanted.precision.name()
            );
            return Err(Error::config("train.precision", problem));
        }
        Ok(machine)
    }

    /// The GPU, where there is one.
    pub fn gpu(&self) -> Option<&Context> {
        match &self.device {
            Device::Cuda(gpu) => Some(gpu),
            Device::Cpu(_) => None,
        }
    }

    /// Joins the ranks' GPUs for sums of gradients, where that is wanted and possible. A meeting of all ranks.
    pub(crate) fn join(&mut self, comm: &Arc<dyn Communicator>, over: SumsOver, exact: bool) -> Result<()> {
        match DeviceSums::join(comm, self, over, exact)? {
            Ok(sums) => self.sums = Some(sums),
            Err(why) => self.no_nccl = why,
        }
        Ok(())
    }

    /// What the device is called.
    pub fn name(&self) -> String {
        self.gpu().map_or_else(|| "cpu".to_owned(), |gpu| gpu.info().name.clone())
    }

    /// Checks that no two ranks of one machine have the same GPU, unless they may. A meeting of all ranks, which all get
    /// the same error.
    pub(crate) fn check_apart(&self, comm: &dyn Communicator, share: bool) -> Result<()> {
        if comm.world() == 1 {
            return Ok(());
        }
        let mut mine = comm.locality().node.to_le_bytes().to_vec();
        mine.extend(self.gpu().map(|gpu| gpu.info().uuid).unwrap_or_default());
        // A device without an identity, which is none at all, is nobody's.
        let taken = |m: &[u8]| m.iter().skip(size_of::<u32>()).any(|b| *b != 0);
        let all = comm.all_gather(&mine, comm.deadline())?;
        let first = |m: &[u8]| all.iter().position(|other| other == m);
        let both =
            (0..all.len()).find_map(|i| Some([first(&all[i]).filter(|f| *f < i && taken(&all[i]))?, i]));
        match both {
            Some([a, b]) if !share => {
                let problem = format!(
                    "ranks {a} and {b} would share one GPU: start one rank for each GPU of a machine, or allow it by \
                     --share-gpu"
                );
                Err(Error::config("--device cuda", problem))
            }
            _ => Ok(()),
        }
    }
}

/// The rank's GPU with everything that training needs of it; None where none is wanted.
fn gpu_for(wanted: &Wanted) -> Option<phalanx_gpu::Result<Context>> {
    matches!(&*wanted.choice.name, "auto" | "cuda").then(|| {
        // Without a device the error of opening the first says so.
        let count = Context::count()?.max(1);
        let gpu = Context::open(wanted.local_rank as usize % count)?;
        // What is missing is missed now and not in the middle of the first step.
        phalanx_nn::flat::load(&gpu)?;
        gpu.blas()?;
        gpu.dnn()?;
        gpu.set_math(if wanted.precision == Precision::Tf32 { Math::Tf32 } else { Math::F32 });
        gpu.set_exact(wanted.exact);
        Ok(gpu)
    })
}

fn unavailable(e: &phalanx_gpu::Error) -> Error {
    phalanx_tensor::Error::DeviceUnavailable { device: "cuda".into(), reason: e.to_string() }.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn open(name: &str, precision: Precision) -> Result<Machine> {
        let choice = DeviceChoice::from(name);
        let isa = Isa::choose("auto").unwrap();
        Machine::open(&Wanted { choice: &choice, isa, threads: 1, local_rank: 0, precision, exact: true })
    }

    #[test]
    fn devices_are_chosen_by_name_and_narrow_types_want_a_gpu() {
        assert_eq!(open("cpu", Precision::F32).unwrap().name(), "cpu");
        let e = open("tpu", Precision::F32).unwrap_err();
        assert!(e.to_string().contains("use auto, cpu or cuda") && e.exit_code() == 2, "{e}");
        for (precision, name) in
            [(Precision::Bf16, "bf16"), (Precision::Fp16, "fp16"), (Precision::Tf32, "tf32")]
        {
            let e = open("cpu", precision).unwrap_err();
            assert!(e.to_string().contains(&format!("{name} is for GPUs")) && e.exit_code() == 2, "{e}");
        }
        match open("cuda", Precision::F32) {
            Ok(machine) => assert!(machine.gpu().is_some()),
            Err(e) => {
                assert!(e.exit_code() == 2 && e.to_string().contains("cuda is unavailable"), "{e}");
                assert!(open("auto", Precision::F32).unwrap().no_gpu.is_some());
            }
        }
    }
}
