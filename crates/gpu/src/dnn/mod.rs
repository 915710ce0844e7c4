//! cuDNN's convolutions, by its backend interface: a graph of one operation, engines by its heuristics.

mod conv;
mod descriptor;
mod plan;

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

pub use conv::{Conv, Direction};

use crate::context::Core;
use crate::error::call_error;
use crate::ffi::Handle;
use crate::ffi::blas_lt::BlasLt;
use crate::ffi::dnn::{CuDnn, Status};
use crate::library::{self, Wanted};
use crate::memory::Scratch;
use crate::{DevicePtr, Error, Event, Result, compile, versions};
use plan::{Plan, Problem};

/// The most memory that a convolution may use beside its operands, in bytes.
const WORKSPACE_LIMIT: usize = 1 << 30;
/// Plans that are timed; of each the fastest of so many rounds counts, after one that does not.
const TIMED: usize = 4;
const ROUNDS: usize = 3;
/// Alignment beyond which no engine asks for more: 16 bytes, as a logarithm.
const ALIGNED: u32 = 4;

/// cuDNN.
pub struct Dnn {
    table: &'static CuDnn,
    core: Arc<Core>,
    handle: Handle,
    timing: bool,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// By convolution: plans with the alignment (its logarithm) that they are for.
    plans: HashMap<Conv, Vec<(u32, Plan)>>,
    /// Choices that were given, by the convolution's name.
    pinned: HashMap<String, String>,
}

impl CuDnn {
    fn get() -> Result<&'static CuDnn> {
        static TABLE: OnceLock<Result<&'static CuDnn>> = OnceLock::new();
        TABLE.get_or_init(CuDnn::load).clone()
    }

    fn load() -> Result<&'static CuDnn> {
        // It opens both by name: they must be there already, as only this side knows where they are. Without them
        // it says itself what it lacks, or does without.
        let _ = BlasLt::get();
        let _ = compile::Compiler::get();
        let mut loaded = library::open(&Wanted {
            library: "cuDNN",
            names: &["libcudnn.so.9"],
            parts: None,
            packaged: true,
            hint: "`pip install nvidia-cudnn-cu13` (or -cu12, as the driver has it); PHALANX_CUDA_PATH may name its folder",
        })?;
        if let Ok(address) = loaded.symbol("cudnnGetVersion") {
            // SAFETY: the function of this name.
            let version: unsafe extern "C" fn() -> usize = unsafe { std::mem::transmute(address) };
            // SAFETY: no preconditions.
            loaded.version = unsafe { version() }.to_string();
            versions::note("cudnn", &loaded.version);
        }
        let table = CuDnn::bind(&loaded)?;
        std::mem::forget(loaded);
        Ok(Box::leak(Box::new(table)))
    }

    fn check(&self, status: Status, call: &'static str) -> Result<()> {
        if status == 0 { Ok(()) } else { Err(self.error(status, call)) }
    }

    #[cold]
    fn error(&self, status: Status, call: &'static str) -> Error {
        // SAFETY: gives a static text.
        let mut error = call_error(call, status, unsafe { (self.cudnnGetErrorString)(status) });
        let mut last = [0u8; 512];
        // SAFETY: writes at most 512 bytes, the last of them NUL.
        unsafe { (self.cudnnGetLastErrorString)(last.as_mut_ptr().cast(), last.len()) };
        let end = last.iter().position(|b| *b == 0).unwrap_or(0);
        if let (Error::Call { message, .. }, true) = (&mut error, end > 0) {
            message.push_str(": ");
            message.push_str(&String::from_utf8_lossy(&last[..end]));
        }
        error
    }
}

impl Dnn {
    pub(crate) fn open(core: &Arc<Core>) -> Result<Self> {
        let table = CuDnn::get()?;
        core.primary.enter()?;
        let timing = std::env::var_os("PHALANX_DNN_TIMING").is_none_or(|v| v != "0");
        let mut dnn = Dnn { table, core: core.clone(), handle: 0, timing, state: Mutex::default() };
        // SAFETY: writes one handle, destroyed on drop.
        table.check(unsafe { (table.cudnnCreate)(&mut dnn.handle) }, "cudnnCreate")?;
        // SAFETY: a live handle and a stream that lives as long as `core`.
        let status = unsafe { (table.cudnnSetStream)(dnn.handle, core.compute.raw) };
        table.check(status, "cudnnSetStream")?;
        Ok(dnn)
    }

    /// Queues a convolution on the compute stream: writes y (forward), x (data) or w (weights) from the other two.
    /// Without samples it writes zeros to w and nothing else.
    ///
    /// The first time a convolution is seen, its plan is chosen: the one that was pinned, else with `exact` and while
    /// a graph is recorded the heuristics' first, else the fastest of the first few (`PHALANX_DNN_TIMING=0` takes the
    /// first).
    pub fn convolve(&self, c: &Conv, x: DevicePtr, w: DevicePtr, y: DevicePtr) -> Result<()> {
        if c.n == 0 {
            let weights = c.k * c.c / c.groups.max(1) * c.kernel.iter().product::<usize>() * c.weights.size();
            return match c.direction {
                Direction::Weights => {
                    let zero = || self.core.fill_zero(w.0, weights);
                    self.core.queue(|| String::from("zeros"), || (w.0, weights), zero)
                }
                Direction::Forward | Direction::Data => Ok(()),
            };
        }
        let xwy = [x.0, w.0, y.0];
        let aligned = xwy.iter().fold(ALIGNED, |a, p| a.min(p.trailing_zeros()));
        self.core.primary.enter()?;
        let mut state = self.state();
        let known = state.plans.get(c).and_then(|of| of.iter().find(|(a, _)| *a == aligned));
        let name = || format!("convolution {}", c.name(aligned));
        if let Some((_, plan)) = known {
            return self.core.queue(name, || (c, xwy), || self.execute(plan, xwy));
        }
        let plan = self.choose(&state, c, aligned, xwy)?;
        self.core.queue(name, || (c, xwy), || self.execute(&plan, xwy))?;
        state.plans.entry(c.clone()).or_default().push((aligned, plan));
        Ok(())
    }

    /// What was chosen so far, as `convolution = engine and settings`, sorted. Engines' numbers are the library's.
    pub fn choices(&self) -> Vec<String> {
        let state = self.state();
        let mut all: Vec<String> = state
            .plans
            .iter()
            .flat_map(|(c, of)| of.iter().map(|(a, plan)| [&c.name(*a), " = ", &plan.id].concat()))
            .collect();
        all.sort_unstable();
        all
    }

    /// Takes these choices of [`Dnn::choices`] instead of own ones, for convolutions that are seen first after this.
    /// One that this library or device does not offer is passed over; `choices` shows what was taken instead. Fails
    /// on a line that is no choice.
    pub fn pin(&self, choices: &[String]) -> Result<()> {
        let mut state = self.state();
        for line in choices {
            let Some((name, id)) = line.split_once(" = ") else {
                return Err(Error::Invalid { what: format!("{line:?} is no choice of an algorithm") });
            };
            state.pinned.insert(String::from(name), String::from(id));
        }
        Ok(())
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn execute(&self, plan: &Plan, xwy: [u64; 3]) -> Result<()> {
        // Given back at once: whoever gets it next comes after in the stream.
        let scratch = Scratch::new(&self.core, plan.workspace)?;
        plan.execute(self.table, self.handle, xwy, scratch.address())
    }

    fn choose(&self, state: &State, c: &Conv, aligned: u32, xwy: [u64; 3]) -> Result<Plan> {
        c.check()?;
        let problem = Problem::new(self.table, self.handle, c, aligned)?;
        let mut candidates = problem.candidates(c);
        let name = c.name(aligned);
        if let Some(pinned) = state.pinned.get(&name) {
            candidates.sort_by_key(|k| k.id != *pinned);
        }
        let pinned =
            state.pinned.get(&name).is_some_and(|id| candidates.first().is_some_and(|k| k.id == *id));
        let first_only = pinned || c.exact || !self.timing || self.core.memory.is_capturing();
        let most = if first_only { 1 } else { TIMED };
        let mut plans = Vec::new();
        let mut failed = None;
        let mut large: Option<Plan> = None;
        for candidate in candidates {
            match problem.plan(candidate) {
                Ok(plan) if plan.workspace <= WORKSPACE_LIMIT => plans.push(plan),
                Ok(plan) if large.as_ref().is_none_or(|l| plan.workspace < l.workspace) => large = Some(plan),
                Ok(_) => {}
                Err(e) => failed = Some(e),
            }
            if plans.len() == most {
                break;
            }
        }
        // Much memory is better than none of the library's algorithms.
        if plans.is_empty() {
            plans.extend(large);
        }
        let mut best: Option<(f32, Plan)> = None;
        let alone = plans.len() == 1;
        for plan in plans {
            let time = if alone { Ok(0.0) } else { self.time(&plan, xwy) };
            match time {
                Ok(time) if best.as_ref().is_none_or(|(t, _)| time < *t) => best = Some((time, plan)),
                Ok(_) => {}
                Err(e) => failed = Some(e),
            }
        }
        match (best, failed) {
            (Some((_, plan)), _) => Ok(plan),
            (None, Some(e)) => Err(e),
            (None, None) => Err(Error::NoAlgorithm { library: "cuDNN", what: name }),
        }
    }

    /// Milliseconds of a plan.
    fn time(&self, plan: &Plan, xwy: [u64; 3]) -> Result<f32> {
        let [start, stop] = [Event::new(&self.core.primary, true)?, Event::new(&self.core.primary, true)?];
        self.execute(plan, xwy)?;
        let mut best = f32::INFINITY;
        for _ in 0..ROUNDS {
            start.record(&self.core.compute)?;
            self.execute(plan, xwy)?;
            stop.record(&self.core.compute)?;
            stop.synchronize()?;
            best = best.min(start.elapsed(&stop)?);
        }
        Ok(best)
    }
}

impl fmt::Debug for Dnn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Dnn")
    }
}

impl Drop for Dnn {
    fn drop(&mut self) {
        self.state.get_mut().unwrap_or_else(PoisonError::into_inner).plans.clear();
        if self.core.primary.enter().is_ok() && self.handle != 0 {
            // SAFETY: made in `open`; its plans are gone.
            unsafe { (self.table.cudnnDestroy)(self.handle) };
        }
    }
}
