//! Candidates of a convolution: the engines that cuDNN's heuristics name, each with its settings.

use super::Conv;
use super::conv::channels_last;
use super::descriptor::{Descriptor, kind, value};
use crate::ffi::Handle;
use crate::ffi::dnn::CuDnn;
use crate::{Direction, Math, Result, Type};

/// `CUDNN_NUMERICAL_NOTE_TENSOR_CORE`.
const TENSOR_CORE: i32 = 0;
/// `CUDNN_NUMERICAL_NOTE_DOWN_CONVERT_INPUTS`.
const DOWN_CONVERT_INPUTS: i32 = 1;
/// `CUDNN_NUMERICAL_NOTE_REDUCED_PRECISION_REDUCTION`.
const REDUCED_PRECISION_REDUCTION: i32 = 2;
/// `CUDNN_NUMERICAL_NOTE_NONDETERMINISTIC`.
const NONDETERMINISTIC: i32 = 4;
/// `CUDNN_HEUR_MODE_A`, then `CUDNN_HEUR_MODE_FALLBACK`.
const MODES: [i32; 2] = [3, 2];
/// Engines of one mode that are looked at.
const MOST_ENGINES: usize = 24;
/// Names of x, w, y and a bias in a variant pack, and of what a bias is added to, which is nowhere in memory.
const UIDS: [i64; 4] = [1, 2, 3, 4];
const SUM: i64 = 5;
/// `CUDNN_POINTWISE_ADD`.
const ADD: i32 = 0;

/// A convolution's graph of one operation, or of two where a bias is added, with everything that it refers to.
pub(super) struct Problem {
    table: &'static CuDnn,
    library: Handle,
    graph: Descriptor,
    _parts: Vec<Descriptor>,
}

/// An engine with its settings.
pub(super) struct Candidate {
    config: Descriptor,
    /// Engine and settings in one word: the same plan in another process of the same library.
    pub(super) id: String,
    notes: Vec<i32>,
}

/// What is executed.
pub(super) struct Plan {
    plan: Descriptor,
    /// Bytes of memory that it uses beside the operands.
    pub(super) workspace: usize,
    pub(super) id: String,
    _config: Descriptor,
}

fn data_type(of: Type) -> i32 {
    match of {
        Type::F32 => 0,
        Type::F16 => 2,
        Type::Bf16 => 9,
    }
}

fn tensor(table: &'static CuDnn, uid: i64, dimensions: &[i64], of: Type, aligned: u32) -> Result<Descriptor> {
    tensor_in(table, uid, dimensions, of, aligned, true)
}

fn tensor_in(
    table: &'static CuDnn,
    uid: i64,
    dimensions: &[i64],
    of: Type,
    aligned: u32,
    memory: bool,
) -> Result<Descriptor> {
    let t = Descriptor::new(table, kind::TENSOR)?;
    t.choice(901, value::DATA_TYPE, data_type(of))?;
    t.int64(902, dimensions)?;
    t.int64(903, &channels_last(dimensions))?;
    t.int64(906, &[uid])?;
    t.int64(900, &[1 << aligned])?;
    if !memory {
        t.boolean(907, true)?;
    }
    t.finalize()?;
    Ok(t)
}

impl Problem {
    /// `aligned` is the logarithm of what all operands' addresses are multiples of.
    pub(super) fn new(table: &'static CuDnn, library: Handle, c: &Conv, aligned: u32) -> Result<Self> {
        let [x, w, y] = c.dimensions();
        let tensors = [
            tensor(table, UIDS[0], &x, c.activations, aligned)?,
            tensor(table, UIDS[1], &w, c.weights, aligned)?,
            tensor(table, UIDS[2], &y, c.activations, aligned)?,
        ];
        let shape = Descriptor::new(table, kind::CONVOLUTION)?;
        let strides = c.axes(&c.stride, 1);
        shape.choice(100, value::DATA_TYPE, data_type(Type::F32))?;
        shape.choice(101, value::CONVOLUTION_MODE, 1)?; // cross-correlation
        shape.int64(106, &[strides.len() as i64])?;
        shape.int64(102, &c.axes(&c.dilation, 1))?;
        shape.int64(103, &strides)?;
        shape.int64(105, &c.axes(&c.pad_before, 0))?;
        shape.int64(104, &c.axes(&c.pad_after, 0))?;
        shape.finalize()?;
        // Attributes: alpha, beta, convolution, then x, w and y.
        let (of, attributes) = match c.direction {
            Direction::Forward => (kind::FORWARD, [700, 701, 702, 704, 703, 705]),
            Direction::Data => (kind::BACKWARD_DATA, [706, 707, 708, 710, 709, 711]),
            Direction::Weights => (kind::BACKWARD_FILTER, [712, 713, 714, 716, 715, 717]),
        };
        let operation = Descriptor::new(table, of)?;
        operation.float(attributes[0], 1.0)?;
        operation.float(attributes[1], if c.accumulate { 1.0 } else { 0.0 })?;
        operation.descriptor(attributes[2], &shape)?;
        // A sum that a bias is added to stays in f32 and nowhere in memory.
        let sum = c.bias.map(|_| tensor_in(table, SUM, &y, Type::F32, aligned, false)).transpose()?;
        let [at_x, at_w, at_y] = [&tensors[0], &tensors[1], sum.as_ref().unwrap_or(&tensors[2])];
        for (attribute, t) in attributes[3..].iter().zip([at_x, at_w, at_y]) {
            operation.descriptor(*attribute, t)?;
        }
        operation.finalize()?;
        let mut parts = Vec::new();
        let graph = Descriptor::new(table, kind::GRAPH)?;
        graph.handle(800, library)?;
        if let (Some(of), Some(sum)) = (c.bias, sum) {
            let mut row = vec![1; y.len()];
            row[1] = y[1];
            let bias = tensor(table, UIDS[3], &row, of, aligned)?;
            let add = Descriptor::new(table, kind::POINTWISE)?;
            add.choice(0, value::POINTWISE_MODE, ADD)?;
            add.choice(1, value::DATA_TYPE, data_type(Type::F32))?;
            add.finalize()?;
            let second = Descriptor::new(table, kind::POINTWISE_OPERATION)?;
            second.descriptor(750, &add)?;
            second.descriptor(751, &sum)?;
            second.descriptor(752, &bias)?;
            second.descriptor(753, &tensors[2])?;
            second.finalize()?;
            graph.descriptors(801, &[&operation, &second])?;
            parts.extend([sum, bias, add, second]);
        } else {
            graph.descriptor(801, &operation)?;
        }
        graph.finalize()?;
        parts.extend([shape, operation]);
        parts.extend(tensors);
        Ok(Problem { table, library, graph, _parts: parts })
    }

    /// What may compute the convolution as it is asked for, in the heuristics' order.
    pub(super) fn candidates(&self, c: &Conv) -> Vec<Candidate> {
        let of_mode = |mode| -> Result<Vec<Candidate>> {
            let heuristics = Descriptor::new(self.table, kind::HEURISTICS)?;
            heuristics.descriptor(201, &self.graph)?;
            heuristics.choice(200, value::HEURISTICS_MODE, mode)?;
            heuristics.finalize()?;
            let configs = heuristics.get_descriptors(202, kind::ENGINE_CONFIG, MOST_ENGINES)?;
            configs.into_iter().map(Candidate::new).collect()
        };
        let mut all: Vec<Candidate> = Vec::new();
        for mode in MODES {
            // A mode without an answer is no failure while the other has one.
            for candidate in of_mode(mode).unwrap_or_default() {
                if candidate.fits(c) && all.iter().all(|a| a.id != candidate.id) {
                    all.push(candidate);
                }
            }
        }
        all
    }

    /// Builds a candidate's plan. Fails where the engine cannot do this convolution.
    pub(super) fn plan(&self, candidate: Candidate) -> Result<Plan> {
        let plan = Descriptor::new(self.table, kind::PLAN)?;
        plan.handle(400, self.library)?;
        plan.descriptor(401, &candidate.config)?;
        plan.finalize()?;
        let workspace = usize::try_from(plan.get_int64(402)?).unwrap_or(0);
        Ok(Plan { plan, workspace, id: candidate.id, _config: candidate.config })
    }
}

impl Candidate {
    fn new(config: Descriptor) -> Result<Self> {
        let engine = config.get_descriptor(300, kind::ENGINE)?;
        let mut id = engine.get_int64(1301)?.to_string();
        // An engine without settings is known by its number alone.
        for knob in config.get_descriptors(302, kind::KNOB_CHOICE, 64).unwrap_or_default() {
            let which = knob.get_choices(600, value::KNOB_TYPE)?.first().copied().unwrap_or(-1);
            id.push_str(&format!(":{which}={}", knob.get_int64(601)?));
        }
        let notes = engine.get_choices(1303, value::NUMERICAL_NOTE)?;
        Ok(Candidate { config, id, notes })
    }

    /// Whether its numerics are what is asked for.
    fn fits(&self, c: &Conv) -> bool {
        let has = |note| self.notes.contains(&note);
        let f32_alone = c.activations == Type::F32 && c.math == Math::F32;
        !((c.exact && has(NONDETERMINISTIC))
            || has(REDUCED_PRECISION_REDUCTION)
            || (c.activations == Type::F32 && has(DOWN_CONVERT_INPUTS))
            || (f32_alone && has(TENSOR_CORE)))
    }
}

impl Plan {
    /// Queues it on the library's stream; `at` are the addresses of x, w, y and the bias, if there is one.
    pub(super) fn execute(
        &self,
        table: &'static CuDnn,
        library: Handle,
        at: &[u64],
        workspace: u64,
    ) -> Result<()> {
        let pack = Descriptor::new(table, kind::VARIANT_PACK)?;
        pack.int64(1000, &UIDS[..at.len().min(UIDS.len())])?;
        pack.addresses(1001, at)?;
        pack.addresses(1003, &[workspace])?;
        pack.finalize()?;
        // SAFETY: live descriptors of this library; the workspace has the size that the plan asked for. That the
        // operands reach as far as their shapes is the caller's part, as with a launch.
        let status = unsafe { (table.cudnnBackendExecute)(library, self.plan.raw, pack.raw) };
        table.check(status, "cudnnBackendExecute")
    }
}
