//! The updates on a GPU: one launch a rule over the pieces of all parameters that are asked for.

use std::ops::Range;

use phalanx_gpu::{Args, Buffer, Context, DevicePtr, Grid, Source, Stream};
use phalanx_host::{Arena, ArenaMut, ArenaRef};

use super::Update;
use super::cpu::Step;
use super::rules::Moments;
use crate::params::{ParamId, Params, bytes};
use crate::{Error, Result};

static SOURCE: Source = Source { name: "optim", text: include_str!("kernel.cu") };

/// The most elements that one block updates.
const PIECE: usize = 4096;
/// Threads of a block.
const THREADS: u32 = 256;
/// Elements that a block takes where nothing is cut in pieces.
const FLAT: usize = 2048;
/// The most blocks of such a launch; threads stride over the rest.
const MOST_BLOCKS: usize = 1 << 16;

/// Blocks of [`THREADS`].
fn blocks(count: usize) -> Grid {
    Grid { blocks: [count as u32, 1, 1], threads: THREADS, shared: 0 }
}

/// Launches a kernel over `n` elements that are not cut in pieces.
fn flat(gpu: &Context, kernel: &str, n: usize, args: Args) -> Result<()> {
    match n {
        0 => Ok(()),
        _ => Ok(gpu.launch(&SOURCE, kernel, blocks(n.div_ceil(FLAT).min(MOST_BLOCKS)), args)?),
    }
}

/// A piece as the kernels see it.
fn piece(start: usize, len: usize, param: usize, decays: bool) -> [u32; 4] {
    let start = start as u64;
    [start as u32, (start >> 32) as u32, len as u32, (param as u32) << 1 | u32::from(decays)]
}

/// The numbers that an update is made with, as the kernels' `Constants`: one small struct, so that it can be kept in
/// the device's memory.
#[derive(Clone, Copy, Debug, Default)]
struct Constants {
    floats: [f32; 12],
    flags: u32,
    doubles: [f64; 4],
}

/// Places in [`Constants::floats`].
const SCALE: usize = 0;
const BOUND: usize = 1;
const DECAY: usize = 2;
const LR: usize = 3;
const MOMENTUM: usize = 4;
const BETA1: usize = 5;
const BETA2: usize = 6;
const REST1: usize = 7;
const REST2: usize = 8;
const ROOT: usize = 9;
const EPS: usize = 10;
const UNBIAS: usize = 11;
/// Bits of [`Constants::flags`].
const NESTEROV: u32 = 1;
const AMSGRAD: u32 = 2;
const CENTERED: u32 = 4;
const WITH_MOMENTUM: u32 = 8;
/// Which of [`Constants::words`] says that nothing is to be done.
const SKIP: usize = 13;

/// What [`phalanx_gpu::Varying::what`] says of an update's numbers ([`Update::varying`]).
pub const UPDATE: &str = "update";
/// The same of the share of the weights in their average ([`super::Ema::varying`]).
pub const AVERAGE: &str = "average";

impl Constants {
    /// Those of an update.
    fn of(update: &Update) -> Self {
        let mut all = Constants::default();
        let Constants { floats: f, flags, doubles } = &mut all;
        (f[SCALE], f[BOUND], f[DECAY]) = (update.scaling.scale, update.scaling.bound, update.decay);
        doubles[3] = update.exact;
        let moments = |f: &mut [f32; 12], m: &Moments| {
            [f[BETA1], f[BETA2]] = m.beta;
            [f[REST1], f[REST2]] = m.rest;
            (f[ROOT], f[EPS], f[UNBIAS]) = (m.root, m.eps, (1.0 / m.bias) as f32);
        };
        match &update.step {
            Step::Plain(rule) => f[LR] = rule.lr,
            Step::Momentum(rule) => {
                (f[LR], f[MOMENTUM]) = (rule.lr, rule.momentum);
                *flags = if rule.nesterov { NESTEROV } else { 0 };
            }
            Step::Adam(rule) => {
                moments(f, &rule.moments);
                f[LR] = rule.step;
                *flags = if rule.amsgrad { AMSGRAD } else { 0 };
            }
            Step::AdamW(rule) => {
                moments(f, &rule.moments);
                f[LR] = rule.step;
                *flags = if rule.amsgrad { AMSGRAD } else { 0 };
            }
            Step::RmsProp(rule) => {
                (f[LR], f[MOMENTUM], f[EPS]) = (rule.lr, rule.momentum, rule.eps);
                (f[BETA2], f[REST2]) = (rule.alpha, rule.rest);
                *flags = if rule.centered { CENTERED } else { 0 }
                    | if rule.momentum > 0.0 { WITH_MOMENTUM } else { 0 };
            }
            Step::Adagrad(rule) => (f[LR], f[EPS]) = (rule.lr, rule.eps),
            Step::Lars(rule) => {
                f[MOMENTUM] = rule.momentum;
                [doubles[0], doubles[1], doubles[2]] = [rule.lr, rule.trust, rule.weight_decay];
            }
            Step::Lamb(_, rule) => {
                moments(f, &rule.moments);
                doubles[0] = rule.lr;
            }
        }
        all
    }

    /// As they lie in the kernels' struct.
    fn words(&self) -> [u32; 22] {
        let mut words = [0; 22];
        words[..12].copy_from_slice(&self.floats.map(f32::to_bits));
        words[12] = self.flags;
        for (two, double) in words[14..].chunks_exact_mut(2).zip(self.doubles) {
            let bits = double.to_bits();
            two.copy_from_slice(&[bits as u32, (bits >> 32) as u32]);
        }
        words
    }
}

/// What an optimizer keeps on a GPU.
#[derive(Debug)]
pub(super) struct Kept {
    gpu: Context,
    /// The state, by kind, laid out like the parameters.
    states: [Option<Buffer>; 3],
    /// The parameters' place in the arena.
    elements: Range<usize>,
    /// All pieces, in order, and where each begins.
    pieces: Buffer,
    starts: Vec<usize>,
    /// The pieces of each parameter, first and end.
    spans: Buffer,
    firsts: Vec<usize>,
    /// The learning rate of each parameter, of rules that need norms.
    rates: Option<Buffer>,
    /// Two sums for each piece, and what they add up to.
    sums: Buffer,
    norm: Buffer,
}

/// A buffer with these contents.
fn uploaded(gpu: &Context, bytes: &[u8]) -> Result<Buffer> {
    let buffer = gpu.alloc(bytes.len())?;
    gpu.upload(&buffer, 0, bytes)?;
    Ok(buffer)
}

/// The address of the arena's first element, of which a range is borrowed.
fn base(address: Option<u64>, start: usize) -> Result<DevicePtr> {
    let address = address.ok_or(phalanx_tensor::Error::WrongMemory { op: "optimizer", device: "GPU" })?;
    Ok(DevicePtr(address - (start * size_of::<f32>()) as u64))
}

impl Kept {
    /// Cuts the parameters `ids`, which lie at `elements`, in pieces; `decays` says to which of them weight decay and
    /// trust ratios apply. The kinds of state in `kinds` begin with `first`.
    pub(super) fn new(
        gpu: &Context,
        params: &Params,
        ids: Range<u32>,
        elements: Range<usize>,
        decays: impl Fn(ParamId) -> bool,
        kinds: [bool; 3],
        first: f32,
        trusts: bool,
    ) -> Result<Self> {
        let (mut pieces, mut spans, mut starts, mut firsts) = (vec![], vec![], vec![], vec![]);
        for (at, id) in ids.map(ParamId).enumerate() {
            let range = params.range(id);
            spans.push(starts.len() as u32);
            firsts.push(range.start);
            for start in range.clone().step_by(PIECE) {
                pieces.extend(piece(start, (range.end - start).min(PIECE), at, decays(id)));
                starts.push(start);
            }
            spans.push(starts.len() as u32);
        }
        let mut states = [None, None, None];
        for (state, _) in states.iter_mut().zip(kinds).filter(|(_, there)| *there) {
            *state = Some(match first {
                0.0 => {
                    let zeros = gpu.alloc(elements.len() * size_of::<f32>())?;
                    gpu.fill_zero(zeros.ptr(), zeros.len())?;
                    zeros
                }
                _ => uploaded(gpu, bytemuck::cast_slice(&vec![first; elements.len()]))?,
            });
        }
        let rates = if trusts { Some(gpu.alloc(firsts.len() * size_of::<f32>())?) } else { None };
        Ok(Kept {
            gpu: gpu.clone(),
            states,
            elements,
            pieces: uploaded(gpu, bytemuck::cast_slice(&pieces))?,
            sums: gpu.alloc(starts.len() * 2 * size_of::<f64>())?,
            starts,
            spans: uploaded(gpu, bytemuck::cast_slice(&spans))?,
            firsts,
            rates,
            norm: gpu.alloc(size_of::<f64>())?,
        })
    }

    /// Everything of one kind of state, laid out like the parameters.
    pub(super) fn state(&self, kind: usize) -> Result<Vec<f32>> {
        let Some(state) = &self.states[kind] else { return Ok(Vec::new()) };
        let mut values = vec![0.0f32; state.len() / size_of::<f32>()];
        self.gpu.download(state.ptr(), bytemuck::cast_slice_mut(&mut values))?;
        Ok(values)
    }

    /// Sets everything of one kind of state.
    pub(super) fn set_state(&mut self, kind: usize, values: &[f32]) -> Result<()> {
        match &self.states[kind] {
            Some(state) => Ok(self.gpu.upload(state, 0, bytemuck::cast_slice(values))?),
            None => Ok(()),
        }
    }

    /// The Euclidean norm of all parameters' gradients, which it waits for.
    pub(super) fn norm(&self, gradients: &Arena) -> Result<f64> {
        if self.starts.is_empty() {
            return Ok(0.0);
        }
        let mut sum = 0.0f64;
        self.gpu.download(self.squares(gradients)?, bytemuck::bytes_of_mut(&mut sum))?;
        Ok(sum.sqrt())
    }

    /// The sum of the squares of all parameters' gradients, a double.
    fn squares(&self, gradients: &Arena) -> Result<DevicePtr> {
        let count = self.starts.len();
        let held = gradients.read(bytes(&self.elements))?;
        let gradients = base(held.device_address(), self.elements.start)?;
        let args = Args::new().ptr(gradients).ptr(self.pieces.ptr()).ptr(self.sums.ptr());
        self.gpu.launch(&SOURCE, "gradient_squares", blocks(count), args)?;
        let args = Args::new().ptr(self.sums.ptr()).i64(count as i64).ptr(self.norm.ptr());
        self.gpu.launch(&SOURCE, "total", blocks(1), args)?;
        Ok(self.norm.ptr())
    }

    /// Records an update of all parameters that looks itself whether it is to be made.
    pub(super) fn record(
        &self,
        params: &Params,
        gradients: &Arena,
        update: &Update,
        guard: &Guard,
    ) -> Result<Judged> {
        let squares = if guard.norm { Some(self.squares(gradients)?) } else { None };
        let none =
            || phalanx_gpu::Error::Invalid { what: "an update is judged in recordings alone".to_owned() };
        let constants = self.gpu.varying(UPDATE, &update.varying())?.ok_or_else(none)?;
        let args = Args::new()
            .ptr(constants)
            .ptr(guard.losses)
            .i64(guard.count as i64)
            .ptr(squares.unwrap_or_default())
            .f64(guard.most.unwrap_or(0.0))
            .i32(i32::from(guard.scaled))
            .ptr(guard.halted);
        self.gpu.launch(&SOURCE, "judge", Grid { blocks: [1, 1, 1], threads: 32, shared: 0 }, args)?;
        self.update(params, gradients, update, self.elements.clone())?;
        Ok(Judged { squares, skipped: constants.offset(SKIP * size_of::<u32>()) })
    }

    /// Updates the parameters at `elements`, none of which is cut by its bounds.
    pub(super) fn update(
        &self,
        params: &Params,
        gradients: &Arena,
        update: &Update,
        elements: Range<usize>,
    ) -> Result<()> {
        let within = |starts: &[usize]| {
            starts.partition_point(|s| *s < elements.start)..starts.partition_point(|s| *s < elements.end)
        };
        let (pieces, parameters) = (within(&self.starts), within(&self.firsts));
        if pieces.is_empty() {
            return Ok(());
        }
        let weights = params.arena().write(bytes(&elements))?;
        let gradients = gradients.read(bytes(&elements))?;
        let run = Run {
            kept: self,
            constants: update.varying(),
            weights: base(weights.device_address(), elements.start)?,
            gradients: base(gradients.device_address(), elements.start)?,
            pieces,
            parameters,
        };
        match &update.step {
            Step::Plain(_) => run.rule("plain"),
            Step::Momentum(_) => run.rule("momentum"),
            Step::Adam(_) => run.rule("adam"),
            Step::AdamW(_) => run.rule("adamw"),
            Step::RmsProp(_) => run.rule("rmsprop"),
            Step::Adagrad(_) => run.rule("adagrad"),
            Step::Lars(_) => {
                let first = Args::new().ptr(run.weights).ptr(run.gradients);
                run.set_rates("measure_lars", first, "rates_lars")?;
                run.rule("lars")
            }
            Step::Lamb(..) => {
                run.rule("lamb_moments")?;
                let first = Args::new().ptr(run.weights).ptr(run.state(0)).ptr(run.state(1));
                run.set_rates("measure_lamb", first.i64(self.elements.start as i64), "rates_lamb")?;
                run.rule("lamb")
            }
        }
    }
}

impl Update {
    /// What kernels read of it.
    pub fn varying(&self) -> Vec<u8> {
        bytemuck::cast_slice(&Constants::of(self).words()).to_vec()
    }
}

/// What a recorded update looks at.
#[derive(Debug, Clone, Copy)]
pub struct Guard {
    /// Losses, in single precision: where one is not finite, parameters stay as they are, from then on.
    pub losses: DevicePtr,
    /// How many.
    pub count: usize,
    /// Whether the norm of the averaged gradients must be finite, too.
    pub norm: bool,
    /// What the norm is clipped to.
    pub most: Option<f64>,
    /// Whether a norm that is not finite stops no more than the one update.
    pub scaled: bool,
    /// A word, at first 0: not when updates have been stopped for good.
    pub halted: DevicePtr,
}

/// What a recorded update tells.
#[derive(Debug, Clone, Copy)]
pub struct Judged {
    /// The sum of the gradients' squares, a double, where the norm was asked for.
    pub squares: Option<DevicePtr>,
    /// A word that is not 0 when the update was not made.
    pub skipped: DevicePtr,
}

/// One update of some parameters.
struct Run<'a> {
    kept: &'a Kept,
    constants: Vec<u8>,
    weights: DevicePtr,
    gradients: DevicePtr,
    pieces: Range<usize>,
    parameters: Range<usize>,
}

impl Run<'_> {
    fn state(&self, kind: usize) -> DevicePtr {
        self.kept.states[kind].as_ref().map_or(DevicePtr(0), Buffer::ptr)
    }

    fn first_piece(&self) -> DevicePtr {
        self.kept.pieces.ptr().offset(self.pieces.start * size_of::<[u32; 4]>())
    }

    fn rule(&self, kernel: &str) -> Result<()> {
        let Kept { gpu, rates, elements, .. } = self.kept;
        let args = Args::new()
            .ptr(self.weights)
            .ptr(self.gradients)
            .ptr(self.state(0))
            .ptr(self.state(1))
            .ptr(self.state(2))
            .i64(elements.start as i64)
            .ptr(self.first_piece())
            .ptr(rates.as_ref().map_or(DevicePtr(0), Buffer::ptr))
            .varying(gpu, UPDATE, &self.constants)?;
        Ok(gpu.launch(&SOURCE, kernel, blocks(self.pieces.len()), args)?)
    }

    /// Measures all pieces and sets each parameter's learning rate.
    fn set_rates(&self, measure: &str, first: Args, rates: &str) -> Result<()> {
        let Kept { gpu, spans, sums, .. } = self.kept;
        let args = first.ptr(self.first_piece()).ptr(sums.ptr()).varying(gpu, UPDATE, &self.constants)?;
        gpu.launch(&SOURCE, measure, blocks(self.pieces.len()), args)?;
        let spans = spans.ptr().offset(self.parameters.start * size_of::<[u32; 2]>());
        let to = self.kept.rates.as_ref().map_or(DevicePtr(0), Buffer::ptr);
        let args = Args::new()
            .ptr(self.first_piece())
            .ptr(spans)
            .u32(self.pieces.start as u32)
            .u32(self.parameters.len() as u32)
            .ptr(sums.ptr())
            .ptr(to)
            .varying(gpu, UPDATE, &self.constants)?;
        let warps = (THREADS / 32) as usize;
        Ok(gpu.launch(&SOURCE, rates, blocks(self.parameters.len().div_ceil(warps)), args)?)
    }
}

/// `average += (weights − average) by`, element by element, unless `by` is below 0 or there is something at `skipped`.
pub(super) fn approach(
    gpu: &Context,
    average: &mut ArenaMut,
    weights: &ArenaRef,
    by: f32,
    skipped: Option<DevicePtr>,
) -> Result<()> {
    let n = average.len() / size_of::<f32>();
    let args = Args::new().ptr(base(average.device_address(), 0)?).ptr(base(weights.device_address(), 0)?);
    let args = args.varying(gpu, AVERAGE, &by.to_ne_bytes())?;
    flat(gpu, "approach", n, args.ptr(skipped.unwrap_or_default()).i64(n as i64))
}

/// `to += from`, element by element, of single-precision ranges of a GPU's arenas that begin at 16 bytes' alignment.
pub fn add(gpu: &Context, to: &mut ArenaMut, from: &ArenaRef) -> Result<()> {
    if to.len() != from.len() {
        let error = phalanx_host::Error::OutOfRange { range: from.range(), len: to.len() };
        return Err(Error::Host(error));
    }
    let n = to.len() / size_of::<f32>();
    let (a, b) = (base(to.device_address(), 0)?, base(from.device_address(), 0)?);
    flat(gpu, "add", n, Args::new().ptr(a).ptr(b).i64(n as i64))
}

/// Rounds every number of a range to the upper half of one.
pub fn round_bf16(gpu: &Context, values: &mut ArenaMut) -> Result<()> {
    let n = values.len() / size_of::<f32>();
    flat(gpu, "round_bf16", n, Args::new().ptr(base(values.device_address(), 0)?).i64(n as i64))
}

/// Rounds every number of a range to a half times `up`; `down` is one over it.
pub fn round_f16(gpu: &Context, values: &mut ArenaMut, down: f32, up: f32) -> Result<()> {
    let n = values.len() / size_of::<f32>();
    let args = Args::new().ptr(base(values.device_address(), 0)?).f32(down).f32(up);
    flat(gpu, "round_f16", n, args.i64(n as i64))
}

/// What is done on another stream than compute's.
fn flat_on(gpu: &Context, stream: &Stream, kernel: &str, n: usize, args: Args) -> Result<()> {
    match n {
        0 => Ok(()),
        _ => {
            let grid = blocks(n.div_ceil(FLAT).min(MOST_BLOCKS));
            Ok(gpu.launch_on(stream, &SOURCE, kernel, grid, args)?)
        }
    }
}

/// `to = a + b` of `n` single-precision numbers at 16 bytes' alignment, on `stream`; `to` may be one of the others.
pub fn sum_on(gpu: &Context, stream: &Stream, to: DevicePtr, [a, b]: [DevicePtr; 2], n: usize) -> Result<()> {
    flat_on(gpu, stream, "sum", n, Args::new().ptr(to).ptr(a).ptr(b).i64(n as i64))
}

/// [`round_bf16`] of `n` numbers on `stream`.
pub fn round_bf16_on(gpu: &Context, stream: &Stream, at: DevicePtr, n: usize) -> Result<()> {
    flat_on(gpu, stream, "round_bf16", n, Args::new().ptr(at).i64(n as i64))
}

/// [`round_f16`] of `n` numbers on `stream`.
pub fn round_f16_on(
    gpu: &Context,
    stream: &Stream,
    at: DevicePtr,
    n: usize,
    down: f32,
    up: f32,
) -> Result<()> {
    flat_on(gpu, stream, "round_f16", n, Args::new().ptr(at).f32(down).f32(up).i64(n as i64))
}

/// The sources of all kernels: those of the op table, of the optimizers, of hashes and of graphs.
pub fn kernel_sources() -> Vec<&'static Source> {
    let mut all = phalanx_tensor::kernel_sources().to_vec();
    all.extend([&SOURCE, &crate::digest::SOURCE, &phalanx_gpu::GRAPH_KERNELS]);
    all
}

/// Compiles or loads all kernels, so that what is missing is missed before the first step.
pub fn load(gpu: &Context) -> phalanx_gpu::Result<()> {
    gpu.load_all(&kernel_sources())
}
