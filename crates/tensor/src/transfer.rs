//! Between the host's memory and a device's: flat arenas that live on a device, and values read back together.

use std::borrow::Cow;
use std::sync::Arc;

use half::{bf16, f16};
use phalanx_gpu::{Context, DevicePtr, Download, Event, Pinned};
use phalanx_host::{Arena, ArenaMut, ArenaRef, Buffer, DType, Element, Foreign, Pool};

use crate::storage::{Block, Held, Memory};
use crate::{Device, Error, Result, Shape, Tensor};

/// An arena of one device met another device.
fn elsewhere() -> Error {
    Error::WrongMemory { op: "arena", device: "device" }
}

/// Page-locked memory of a GPU's driver, for a pool of the host's.
struct PageLocked(Pinned);

impl Foreign for PageLocked {
    fn bytes(&self) -> &[u8] {
        &self.0
    }
    fn bytes_mut(&mut self) -> &mut [u8] {
        &mut self.0
    }
}

/// The source of a copy.
struct Sent(Buffer);

impl AsRef<[u8]> for Sent {
    fn as_ref(&self) -> &[u8] {
        self.0.bytes()
    }
}

/// A copy to a GPU that may still be on its way.
#[derive(Debug)]
#[must_use]
pub struct Landing {
    gpu: Context,
    event: Event,
}

impl Landing {
    /// Lets all that is queued from now on wait for the copy; nobody else waits.
    pub fn wait(&self) -> Result<()> {
        Ok(self.gpu.compute().wait(&self.event)?)
    }
}

impl Tensor {
    /// As [`Tensor::from_buffer`], but a copy to a GPU goes on beside its computation: the tensor must not be used before
    /// [`Landing::wait`]. From a buffer of [`Device::host_pool`] it is copied without a detour.
    pub fn send(
        buffer: Buffer,
        dtype: DType,
        shape: Shape,
        device: &Device,
    ) -> Result<(Tensor, Option<Landing>)> {
        let Device::Cuda(gpu) = device else {
            return Ok((Tensor::from_buffer(buffer, dtype, shape, device)?, None));
        };
        let source: phalanx_gpu::InputSource = match buffer.is_foreign() {
            true => Box::new(Sent(buffer)),
            false => {
                let mut pinned = gpu.pinned(buffer.len())?;
                pinned.copy_from_slice(buffer.bytes());
                Box::new(pinned)
            }
        };
        let (block, event) = gpu.bring(source)?;
        let tensor = Tensor::from_block(Block::Cuda(block), dtype, shape, device)?;
        Ok((tensor, Some(Landing { gpu: gpu.clone(), event })))
    }
}

impl Device {
    /// A pool of memory from which data goes to this device: on a GPU page-locked memory, of the context's cache; on the CPU
    /// its pool.
    pub fn host_pool(&self) -> Pool {
        match self {
            Device::Cpu(cpu) => cpu.pool.clone(),
            Device::Cuda(gpu) => {
                let pinned = gpu.pinner();
                let lock = move |bytes| -> Option<Box<dyn Foreign>> {
                    pinned(bytes).ok().map(|pinned| Box::new(PageLocked(pinned)) as Box<dyn Foreign>)
                };
                Pool::of(Arc::new(lock))
            }
        }
    }

    /// An arena of `bytes` zero bytes in this device's memory.
    pub fn arena(&self, bytes: usize) -> Result<Arena> {
        match self {
            Device::Cpu(_) => Ok(Arena::zeroed(bytes)?),
            Device::Cuda(gpu) => {
                let block = gpu.alloc(bytes)?;
                gpu.fill_zero(block.ptr(), bytes)?;
                Ok(Arena::on_device(block.ptr().0, bytes, Box::new(block)))
            }
        }
    }

    /// The bytes of a borrowed range, as the processor can read them: those of a GPU are copied, after its work so far.
    pub fn read_arena<'a>(&self, range: &'a ArenaRef) -> Result<Cow<'a, [u8]>> {
        match (range.device_address(), self) {
            (None, _) => Ok(range.bytes().into()),
            (Some(address), Device::Cuda(gpu)) => {
                let mut bytes = vec![0; range.len()];
                gpu.download(DevicePtr(address), &mut bytes)?;
                Ok(bytes.into())
            }
            (Some(_), Device::Cpu(_)) => Err(elsewhere()),
        }
    }

    /// Writes `bytes`, which must have the range's size, to a borrowed range.
    pub fn write_arena(&self, range: &mut ArenaMut, bytes: &[u8]) -> Result<()> {
        match (range.device_address(), self) {
            _ if bytes.len() != range.len() => {
                Err(phalanx_host::Error::OutOfRange { range: range.range(), len: bytes.len() }.into())
            }
            (None, _) => {
                range.bytes_mut().copy_from_slice(bytes);
                Ok(())
            }
            (Some(address), Device::Cuda(gpu)) => {
                let block = gpu.alloc(bytes.len())?;
                gpu.upload(&block, 0, bytes)?;
                Ok(gpu.copy(DevicePtr(address), block.ptr(), bytes.len())?)
            }
            (Some(_), Device::Cpu(_)) => Err(elsewhere()),
        }
    }

    /// Copies a borrowed range of this device's memory to another one of its size.
    pub fn copy_arena(&self, from: &ArenaRef, to: &mut ArenaMut) -> Result<()> {
        match (from.device_address(), to.device_address(), self) {
            (Some(a), Some(b), Device::Cuda(gpu)) if from.len() == to.len() => {
                Ok(gpu.copy(DevicePtr(b), DevicePtr(a), from.len())?)
            }
            (None, ..) => self.write_arena(to, from.bytes()),
            (Some(_), ..) => {
                let bytes = self.read_arena(from)?.into_owned();
                self.write_arena(to, &bytes)
            }
        }
    }

    /// Sets every byte of a borrowed range to 0.
    pub fn clear_arena(&self, range: &mut ArenaMut) -> Result<()> {
        match (range.device_address(), self) {
            (None, _) => range.bytes_mut().fill(0),
            (Some(address), Device::Cuda(gpu)) => gpu.fill_zero(DevicePtr(address), range.len())?,
            (Some(_), Device::Cpu(_)) => return Err(elsewhere()),
        }
        Ok(())
    }
}

/// Elements of a float type as doubles, which hold all of their values.
fn doubles(bytes: &[u8], dtype: DType) -> Result<Vec<f64>> {
    fn of<T: Element>(bytes: &[u8], f: impl Fn(T) -> f64) -> Vec<f64> {
        bytes.chunks_exact(size_of::<T>()).map(|b| f(bytemuck::pod_read_unaligned(b))).collect()
    }
    match dtype {
        DType::F32 => Ok(of::<f32>(bytes, f64::from)),
        DType::F64 => Ok(of::<f64>(bytes, |x| x)),
        DType::F16 => Ok(of::<f16>(bytes, f16::to_f64)),
        DType::BF16 => Ok(of::<bf16>(bytes, bf16::to_f64)),
        got => Err(Error::DTypes { op: "download", operand: 0, got, want: "a float".into() }),
    }
}

/// Values on their way to the host. Meanwhile a GPU goes on, and the tensors may be dropped.
#[derive(Debug)]
pub struct Reading {
    /// Type and bytes of each tensor.
    parts: Vec<(DType, usize)>,
    way: Way,
}

#[derive(Debug)]
enum Way {
    Here(Vec<u8>),
    Device(Context, Download),
}

impl Reading {
    /// Begins to read float tensors of one device as they are now, after all that was queued before. However many there are, a
    /// GPU is waited for once.
    pub fn begin(tensors: &[&Tensor]) -> Result<Self> {
        let dense = tensors.iter().map(|t| t.detach().contiguous()).collect::<Result<Vec<_>>>()?;
        let held = dense.iter().map(Tensor::hold).collect::<Result<Vec<Held>>>()?;
        let parts: Vec<_> = dense.iter().map(|t| (t.dtype(), t.shape().numel() * t.dtype().size())).collect();
        let Some(gpu) = tensors.first().and_then(|t| t.device().gpu()) else {
            let mut all = Vec::with_capacity(parts.iter().map(|p| p.1).sum());
            for (t, held) in dense.iter().zip(&held) {
                all.extend_from_slice(part(t, held.bytes()?));
            }
            return Ok(Reading { parts, way: Way::Here(all) });
        };
        let mut places = Vec::with_capacity(dense.len());
        for ((t, held), (_, bytes)) in dense.iter().zip(&held).zip(&parts) {
            let Memory::Device(..) = held.memory() else { return Err(elsewhere()) };
            places.push((t.view(held).ptr()?, *bytes));
        }
        let gathered = crate::ops::shape::cuda::gather(gpu, &places)?;
        if let Some(block) = &gathered {
            places = vec![(block.ptr(), block.len())];
        }
        Ok(Reading { parts, way: Way::Device(gpu.clone(), gpu.begin_download(&places)?) })
    }

    /// The elements of each tensor, in double precision. What kernels have found wrong with data by then is the error.
    pub fn wait(self) -> Result<Vec<Vec<f64>>> {
        let all = match self.way {
            Way::Here(all) => all,
            Way::Device(gpu, download) => {
                let all = download.wait()?;
                crate::ops::cuda::faults::check(&gpu)?;
                all
            }
        };
        let mut rest = &all[..];
        let each = self.parts.iter().map(|&(dtype, bytes)| {
            let (mine, after) = rest.split_at_checked(bytes).ok_or_else(elsewhere)?;
            rest = after;
            doubles(mine, dtype)
        });
        each.collect()
    }
}

/// The bytes of a dense tensor's elements in those of its memory.
fn part<'a>(t: &Tensor, bytes: &'a [u8]) -> &'a [u8] {
    let size = t.dtype().size();
    let start = (t.layout().offset * size).min(bytes.len());
    &bytes[start..(start + t.shape().numel() * size).min(bytes.len())]
}

#[cfg(test)]
mod tests {
    use phalanx_host::{Cpu, Isa};

    use super::*;

    #[test]
    fn tensors_of_all_float_types_are_read_together() {
        let device = Device::cpu(Cpu::new(Isa::Portable, 1).unwrap());
        let t = |x: &[f32]| Tensor::from_slice(x, [x.len()], &device).unwrap();
        let a = t(&[1.5, -2.0, 3.0]);
        let part = a.slice(0, 1, 2).unwrap();
        let half = t(&[0.25, 8.0]).to(DType::BF16).unwrap();
        let scalar = Tensor::scalar(7.0, DType::F64, &device).unwrap();
        let read = |of: &[&Tensor]| Reading::begin(of)?.wait();
        let got = read(&[&a, &part, &half, &scalar]).unwrap();
        assert_eq!(got, [vec![1.5, -2.0, 3.0], vec![-2.0, 3.0], vec![0.25, 8.0], vec![7.0]]);
        assert!(read(&[]).unwrap().is_empty());
        assert!(read(&[&Tensor::from_slice(&[1i64], [1], &device).unwrap()]).is_err());
    }

    #[test]
    fn ranges_of_a_host_arena_are_copied_and_checked() {
        let device = Device::cpu(Cpu::new(Isa::Portable, 1).unwrap());
        let arena = device.arena(16).unwrap();
        device.write_arena(&mut arena.write(0..4).unwrap(), &[1, 2, 3, 4]).unwrap();
        device.copy_arena(&arena.read(0..4).unwrap(), &mut arena.write(8..12).unwrap()).unwrap();
        assert!(device.write_arena(&mut arena.write(0..4).unwrap(), &[1]).is_err());
        device.clear_arena(&mut arena.write(1..3).unwrap()).unwrap();
        let held = arena.read(0..16).unwrap();
        assert_eq!(&device.read_arena(&held).unwrap()[..12], [1, 0, 0, 4, 0, 0, 0, 0, 1, 2, 3, 4]);
    }
}
