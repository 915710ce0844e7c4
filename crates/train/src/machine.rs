//! Where a rank computes: the processor's cores, and a GPU beside them where one is wanted and there.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use phalanx_comm::Communicator;
use phalanx_gpu::{Context, Math};
use phalanx_host::{Cpu, Isa};
use phalanx_tensor::Device;

use crate::config::Precision;
use crate::share::check_same_table;
use crate::sums::{DeviceSums, SumsOver};
use crate::{Error, Result, fingerprint, report};

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
    pub no_gpu: Option<NoGpu>,
    /// Where gradients are summed between GPUs, unless that goes by way of the host.
    pub sums: Option<Arc<DeviceSums>>,
    /// Why they are not summed there, where that was left open.
    pub no_nccl: Option<String>,
    /// Ranks that have the GPU's, or the machine's, memory together.
    pub(crate) sharing: u32,
    /// Bytes of the GPU's memory that were free when all ranks had opened theirs, and none had taken any.
    pub(crate) free: Option<u64>,
}

/// Why no GPU was taken.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NoGpu {
    /// With everything that was tried.
    pub why: String,
    /// In few words.
    pub brief: String,
    /// Whether there is something to mend: no driver is nothing of note.
    pub told: bool,
}

impl NoGpu {
    fn of(e: &phalanx_gpu::Error) -> Self {
        NoGpu { why: e.to_string(), brief: e.brief(), told: !e.is_no_driver() }
    }
}

/// What a rank asks for.
#[derive(Debug, Clone)]
pub(crate) struct Wanted<'a> {
    pub(crate) choice: &'a DeviceChoice,
    pub(crate) isa: Isa,
    /// Compute threads.
    pub(crate) threads: usize,
    /// Whether a GPU's results must be the same from run to run.
    pub(crate) exact: bool,
}

impl Machine {
    /// Nothing but the processor.
    pub fn cpu(cpu: Cpu) -> Self {
        Machine::without_gpu(cpu, None)
    }

    fn without_gpu(cpu: Cpu, no_gpu: Option<NoGpu>) -> Self {
        let cpu = Arc::new(cpu);
        let device = Device::Cpu(cpu.clone());
        Machine { device, cpu, no_gpu, sums: None, no_nccl: None, sharing: 1, free: None }
    }

    /// Takes the first GPU that is visible, or the processor.
    pub(crate) fn open(wanted: &Wanted) -> Result<Self> {
        Machine::numbered(wanted, 0)?.surveyed()
    }

    /// As [`Machine::open`] for a rank of `comm`'s world: the GPU of the rank's number among those of its machine. A
    /// meeting of all ranks, from which they come with the same kind of device.
    ///
    /// Where a machine has more ranks than GPUs, and they may not share one, all ranks compute on the CPU, or get the
    /// same error where that is not allowed.
    pub(crate) fn open_among(wanted: &Wanted, comm: &dyn Communicator) -> Result<Self> {
        let place = comm.locality();
        let mut machine = Machine::numbered(wanted, place.local_rank)?;
        let mut mine = place.node.to_le_bytes().to_vec();
        mine.extend(machine.gpu().map(|gpu| gpu.info().uuid).unwrap_or_default());
        let all = comm.all_gather(&mine, comm.deadline())?;
        if let Some(crowd) = crowd(&all).filter(|_| !wanted.choice.share_gpu) {
            if wanted.choice.name == "cuda" {
                let problem = format!(
                    "{crowd}: start fewer ranks on a machine, let them share by --share-gpu, or use --device cpu"
                );
                return Err(Error::config("--device cuda", problem));
            }
            let why = format!("{crowd}; --share-gpu or fewer ranks");
            let no_gpu = NoGpu { brief: why.clone(), why, told: true };
            machine = Machine::without_gpu(Cpu::new(wanted.isa, wanted.threads)?, Some(no_gpu));
        }
        machine.sharing = match machine.gpu() {
            Some(_) => all.iter().filter(|other| **other == mine).count() as u32,
            None => place.local_world,
        };
        let machine = machine.surveyed()?;
        // Also the meeting before which no rank takes memory.
        let facts = || Ok(fingerprint::table(&fingerprint::of(&machine, wanted.isa)));
        check_same_table(comm, "the fingerprint", facts)?;
        Ok(machine)
    }

    fn numbered(wanted: &Wanted, local_rank: u32) -> Result<Self> {
        let cpu = Cpu::new(wanted.isa, wanted.threads)?;
        let name = &*wanted.choice.name;
        let gpu = match name {
            "cpu" => return Ok(Machine::cpu(cpu)),
            "auto" | "cuda" => gpu(local_rank, wanted.exact),
            other => {
                let problem = format!("there is no device {other:?}; use auto, cpu or cuda");
                return Err(Error::config("--device", problem));
            }
        };
        match gpu {
            Ok(gpu) => Ok(Machine { device: Device::Cuda(gpu), ..Machine::cpu(cpu) }),
            Err(e) if name == "cuda" => Err(unavailable(&e)),
            Err(e) => Ok(Machine::without_gpu(cpu, Some(NoGpu::of(&e)))),
        }
    }

    fn surveyed(self) -> Result<Self> {
        let free = self.gpu().map(Context::free_memory).transpose().map_err(|e| unavailable(&e))?;
        Ok(Machine { free, ..self })
    }

    /// Takes note of the type of activations; fails where the device has none such.
    pub(crate) fn set_precision(&self, precision: Precision) -> Result<()> {
        if let Some(gpu) = self.gpu() {
            gpu.set_math(if precision == Precision::Tf32 { Math::Tf32 } else { Math::F32 });
        } else if precision != Precision::F32 {
            let problem = format!(
                "{} is for GPUs; on the CPU it must be f32, as --set train.precision=f32{}",
                precision.name(),
                self.in_brackets()
            );
            return Err(Error::config("train.precision", problem));
        }
        Ok(())
    }

    /// Compiles or loads all kernels, which may take long: everything that can be refused is to be refused before.
    pub(crate) fn load_kernels(&self) -> Result<()> {
        self.gpu().map_or(Ok(()), |gpu| phalanx_nn::flat::load(gpu).map_err(|e| unavailable(&e)))
    }

    /// The GPU, where there is one.
    pub fn gpu(&self) -> Option<&Context> {
        self.device.gpu()
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

    /// Why no GPU was taken, as the end of a remark.
    pub(crate) fn in_brackets(&self) -> String {
        self.no_gpu.as_ref().map_or(String::new(), |no| format!(" (no GPU was taken: {})", no.why))
    }

    /// Says on standard error that there is a GPU that is not used, for commands that have no line for it.
    pub(crate) fn tell_no_gpu(&self) {
        if let Some(no) = self.no_gpu.as_ref().filter(|no| no.told) {
            report::remark(&format!("on the CPU (no GPU is used: {})", no.brief));
        }
    }
}

/// What is to be said where ranks of one machine have the same GPU; each of `all` is a machine's number and a GPU's
/// identity.
fn crowd(all: &[Vec<u8>]) -> Option<String> {
    const NODE: usize = size_of::<u32>();
    // A device without an identity, which is none at all, is nobody's.
    let taken = |m: &&Vec<u8>| m.iter().skip(NODE).any(|b| *b != 0);
    let mut nodes: BTreeMap<&[u8], (usize, BTreeSet<&[u8]>)> = BTreeMap::new();
    for (node, gpu) in all.iter().filter(taken).filter_map(|m| m.split_at_checked(NODE)) {
        let (ranks, gpus) = nodes.entry(node).or_default();
        *ranks += 1;
        gpus.insert(gpu);
    }
    let (ranks, gpus) = nodes.into_values().find(|(ranks, gpus)| *ranks > gpus.len())?;
    let gpus = match gpus.len() {
        1 => "1 GPU".to_owned(),
        n => format!("{n} GPUs"),
    };
    Some(format!("{ranks} ranks, {gpus}: they would share"))
}

/// The GPU for a rank with everything that training needs of it.
fn gpu(local_rank: u32, exact: bool) -> phalanx_gpu::Result<Context> {
    // Without a device the error of opening the first says so.
    let count = Context::count()?.max(1);
    let gpu = Context::open(local_rank as usize % count)?;
    // What is missing is missed now and not in the middle of the first step.
    phalanx_gpu::check_compiler()?;
    gpu.blas()?;
    gpu.dnn()?;
    gpu.set_exact(exact);
    Ok(gpu)
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
        let machine = Machine::open(&Wanted { choice: &choice, isa, threads: 1, exact: true })?;
        machine.set_precision(precision)?;
        Ok(machine)
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

    #[test]
    fn ranks_of_one_machine_that_have_one_gpu_are_a_crowd() {
        let all = |of: &[(u32, u8)]| {
            let row = |&(node, gpu): &(u32, u8)| [&node.to_le_bytes()[..], &[gpu; 16]].concat();
            crowd(&of.iter().map(row).collect::<Vec<_>>())
        };
        assert_eq!(all(&[(0, 1), (0, 2), (1, 1), (1, 2)]), None);
        assert_eq!(all(&[(0, 0), (0, 0)]), None);
        let said = all(&[(0, 1), (1, 1), (1, 2), (1, 1)]).unwrap();
        assert!(said.starts_with("3 ranks, 2 GPUs: "), "{said}");
        assert!(all(&[(0, 5), (0, 5)]).unwrap().starts_with("2 ranks, 1 GPU: "));
    }
}
