//! Hashes of parameters, made where they are.

use phalanx_gpu::{Args, Context, DevicePtr, Grid, Source};
use phalanx_host::Workers;

use crate::params::{Params, bytes};
use crate::{Error, Result};

pub(crate) static SOURCE: Source = Source { name: "digest", text: include_str!("digest.cu") };

/// Bytes that are hashed by themselves: by one thread of the host, or one block of a GPU.
const PIECE: usize = 1 << 20;
const ELEMENTS: usize = PIECE / size_of::<f32>();

impl Params {
    /// The BLAKE3 hash of each mebibyte of the arena, and of what is left behind the last: the same wherever the parameters
    /// are. Of those on a GPU little more than the hashes is copied to the host.
    pub fn piece_hashes(&self, workers: &Workers) -> Result<Vec<[u8; 32]>> {
        let whole = match self.home().and_then(|device| device.gpu()) {
            Some(gpu) => self.hashes_on(gpu)?,
            None => Vec::new(),
        };
        let rest = self.read(whole.len() * ELEMENTS..self.elements(), |values| {
            let bytes: &[u8] = bytemuck::cast_slice(values);
            let mut hashes = vec![[0; 32]; bytes.len().div_ceil(PIECE)];
            workers.chunks(&mut hashes, 1, |i, hash| {
                hash.fill(*blake3::hash(&bytes[i * PIECE..bytes.len().min((i + 1) * PIECE)]).as_bytes());
            });
            hashes
        })?;
        Ok([whole, rest].concat())
    }

    /// Those of the whole pieces, by the GPU.
    fn hashes_on(&self, gpu: &Context) -> Result<Vec<[u8; 32]>> {
        let pieces = self.elements() / ELEMENTS;
        if pieces == 0 {
            return Ok(Vec::new());
        }
        let held = self.arena().read(bytes(&(0..pieces * ELEMENTS)))?;
        let nowhere = || phalanx_gpu::Error::Invalid { what: "parameters that are on no device".to_owned() };
        let from = DevicePtr(held.device_address().ok_or_else(nowhere)?);
        let out = gpu.alloc(pieces * 32)?;
        let grid = Grid::new([u32::try_from(pieces).map_err(|_| Error::from(nowhere()))?, 1, 1], 256);
        gpu.launch(&SOURCE, "piece_hashes", grid, Args::new().ptr(out.ptr()).ptr(from))?;
        let words = gpu.download_all(&[(out.ptr(), pieces * 32)])?;
        Ok(words.as_chunks().0.to_vec())
    }
}
