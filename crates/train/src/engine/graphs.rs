//! Which steps become CUDA graphs, and why others do not.

use std::collections::HashMap;
use std::sync::Arc;

use phalanx_comm::Communicator;
use phalanx_gpu::{Buffer, Context, GraphMemory, InUse};
use phalanx_tensor::{DType, Device, Shape};
use serde::{Deserialize, Serialize};

use super::EngineOptions;
use super::recorded::Recorded;
use crate::task::{Batch, Task};
use crate::{Error, Result};

/// `train.cuda_graph`: whether a step on a GPU is recorded as a CUDA graph, and launched as a whole from then on.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum CudaGraph {
    /// Where it can be, and nothing speaks against it.
    #[default]
    Auto,
    /// An error says why not, where it cannot be.
    On,
    /// Never.
    Off,
}

impl CudaGraph {
    /// Whether it is what a configuration without the key has.
    pub fn is_auto(&self) -> bool {
        *self == CudaGraph::Auto
    }
}

/// Whether steps were launched as CUDA graphs: `true`, or why not.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum GraphUse {
    /// They were, or will be when two are alike.
    Recorded(bool),
    /// Why not.
    Not(String),
}

/// Recorded steps of one rank, which share memory as no two of them ever run at once.
#[derive(Debug)]
pub(super) struct Graphs {
    wanted: CudaGraph,
    gpu: Option<Context>,
    /// Why no step is recorded.
    refusal: Option<String>,
    told: bool,
    /// What forms of steps were met.
    forms: HashMap<Form, Known>,
    pub(super) recorded: Vec<Recorded>,
    memory: Option<GraphMemory>,
    /// A word that says that updates were stopped for good.
    halted: Option<Buffer>,
    /// Whether any step was recorded, also one that was given up since.
    used: bool,
}

/// What a shard's batch looks like: the name, type and shape of each tensor.
pub(super) type ShardForm = Vec<(Arc<str>, DType, Shape)>;
/// What the batches of a step look like, by shard.
pub(super) type Form = Vec<ShardForm>;

/// What a batch looks like.
pub(super) fn form_of(batch: &Batch) -> ShardForm {
    batch.tensors().map(|(name, t)| (name.clone(), t.dtype(), t.shape())).collect()
}

/// Graphs that are kept: a data set's last batch is another one than the rest, and few sets have more.
const MOST_GRAPHS: usize = 4;
/// Forms that are remembered.
const MOST_FORMS: usize = 256;

/// What is known of a form of steps.
#[derive(Debug, Clone, Copy)]
enum Known {
    /// One was done piece by piece.
    Seen,
    /// They are that graph.
    Graph(usize),
    /// They cannot be one.
    Never,
}

/// What is to be done with a step.
pub(super) enum Course {
    /// Nothing of its form is known, or is to be known.
    Plain,
    /// It is the second of its form.
    Record(Form),
    /// It is that graph.
    Launch(usize),
}

impl Graphs {
    /// Looks for what speaks against it from the start.
    pub(super) fn new(
        comm: &dyn Communicator,
        device: &Device,
        task: &dyn Task,
        options: &EngineOptions,
    ) -> Result<Self> {
        let phases = task.phases().len();
        let refusal = match device.gpu() {
            None => Some("there is no GPU".to_owned()),
            Some(_) if options.cuda_graph == CudaGraph::Off => Some("train.cuda_graph is off".to_owned()),
            Some(_) if comm.world() > 1 => {
                Some(format!("gradients are summed over {} ranks, which wait for each other", comm.world()))
            }
            Some(_) if phases != 1 => Some(format!("the task has {phases} phases")),
            Some(_) if !task.is_static() => {
                Some(format!("the task {:?} may do something else at each step", task.name()))
            }
            Some(_) => None,
        };
        let mut graphs = Graphs {
            wanted: options.cuda_graph,
            gpu: device.gpu().cloned(),
            refusal: None,
            told: false,
            forms: HashMap::new(),
            recorded: Vec::new(),
            memory: None,
            halted: None,
            used: false,
        };
        if let Some(why) = refusal {
            graphs.refuse(why)?;
        }
        Ok(graphs)
    }

    /// From now on no step is recorded. Fails where it is demanded. No launched step may be on its way: its report would go
    /// with the graph.
    pub(super) fn refuse(&mut self, why: String) -> Result<()> {
        self.make_room();
        if self.wanted == CudaGraph::On {
            let problem = format!("it is \"on\", but the step cannot be a CUDA graph: {why}");
            return Err(Error::config("train.cuda_graph", problem));
        }
        self.refusal.get_or_insert(why);
        Ok(())
    }

    /// Gives up what was recorded; it may be recorded again.
    pub(super) fn forget(&mut self) {
        self.recorded.clear();
        self.forms.clear();
        self.halted = None;
    }

    /// The same, and their memory serves everybody until steps are recorded again.
    pub(super) fn make_room(&mut self) {
        self.forget();
        self.memory = None;
    }

    pub(super) fn in_use(&self) -> Option<GraphUse> {
        self.gpu.as_ref()?;
        Some(match &self.refusal {
            Some(why) => GraphUse::Not(why.clone()),
            None => GraphUse::Recorded(true),
        })
    }

    /// Whether a step was launched as a graph.
    pub(super) fn used(&self) -> bool {
        self.used
    }

    pub(super) fn work(&self) -> Vec<String> {
        self.recorded.iter().flat_map(|r| r.work().map(str::to_owned)).collect()
    }

    pub(super) fn take_notice(&mut self) -> Option<String> {
        let expected = self.gpu.is_some() && self.wanted != CudaGraph::Off;
        let why = self.refusal.as_ref().filter(|_| expected && !self.told)?;
        self.told = true;
        Some(format!("steps are not launched as CUDA graphs: {why}"))
    }

    /// A recorded form that cannot be one after all. Where there are other graphs, only its steps are done piece by piece.
    pub(super) fn give_up(&mut self, form: Form, why: String) -> Result<()> {
        if self.recorded.is_empty() || self.wanted == CudaGraph::On {
            return self.refuse(why);
        }
        self.forms.insert(form, Known::Never);
        Ok(())
    }

    /// What these batches have that no step may have, if any are to be recorded.
    pub(super) fn objection(&self, batches: &[Batch]) -> Option<String> {
        let of = |has: &dyn Fn(&Batch) -> bool| self.refusal.is_none() && batches.iter().any(has);
        match () {
            () if of(&|b| b.weights.is_some()) => {
                Some("samples have weights of their own, which the host sums".to_owned())
            }
            () if of(&Batch::is_mixed) => Some("samples are mixed as the host says".to_owned()),
            () => None,
        }
    }

    /// What is to be done with a step of these batches, against which there is no [`Graphs::objection`].
    pub(super) fn course(&mut self, batches: &[Batch]) -> Course {
        // Batches that lack samples have a form of their own, which is hardly met again.
        if self.refusal.is_some() || batches.iter().any(|b| b.bad > 0) {
            return Course::Plain;
        }
        // It would have no marks.
        if self.gpu.as_ref().is_some_and(Context::is_profiling) {
            return Course::Plain;
        }
        let form: Form = batches.iter().map(form_of).collect();
        match self.forms.get(&form) {
            Some(Known::Graph(graph)) => Course::Launch(*graph),
            Some(Known::Seen) if self.recorded.len() < MOST_GRAPHS => Course::Record(form),
            Some(Known::Seen | Known::Never) => Course::Plain,
            None => {
                if self.forms.len() < MOST_FORMS {
                    self.forms.insert(form, Known::Seen);
                }
                Course::Plain
            }
        }
    }

    /// Keeps a recorded step, and gives its number.
    pub(super) fn keep(&mut self, form: Form, recorded: Recorded) -> usize {
        let at = self.recorded.len();
        self.recorded.push(recorded);
        self.forms.insert(form, Known::Graph(at));
        self.used = true;
        at
    }

    /// Memory for the work of steps, if they are recorded.
    pub(super) fn memory(&mut self) -> Result<Option<&GraphMemory>> {
        if let (None, None, Some(gpu)) = (&self.refusal, &self.memory, &self.gpu) {
            self.memory = Some(gpu.graph_memory()?);
        }
        Ok(self.memory.as_ref())
    }

    /// A step that is not recorded, and an evaluation, works in the graphs' memory, too, as long as the result is held: there
    /// need not be room for both.
    pub(super) fn enter(&mut self) -> Result<Option<InUse>> {
        Ok(self.memory()?.map(GraphMemory::enter))
    }

    /// Checks that a step or an evaluation has left nothing in the graphs' memory: the next launch would write over it.
    pub(super) fn left_behind(&mut self) -> Result<()> {
        match self.memory.as_ref().map_or(0, GraphMemory::used) {
            0 => Ok(()),
            bytes => self.refuse(format!("{bytes} bytes of device memory are left behind")),
        }
    }

    /// The word that says that updates were stopped for good.
    pub(super) fn halted(&mut self, gpu: &Context) -> Result<Buffer> {
        if let Some(halted) = &self.halted {
            return Ok(halted.clone());
        }
        let word = gpu.alloc_lasting(size_of::<u32>())?;
        gpu.fill_zero(word.ptr(), word.len())?;
        Ok(self.halted.insert(word).clone())
    }
}
