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

/// The oldest version that will do, as `cudnnGetVersion` gives it: the first of the major version whose library is looked for.
const OLDEST: usize = 90_000;
/// The most memory that a convolution may use beside its operands, in bytes.
const WORKSPACE_LIMIT: usize = 1 << 30;
/// Plans that are timed; of each the fastest of so many rounds counts, after a first one that does not.
const TIMED: usize = 4;
const ROUNDS: usize = 3;
/// A plan whose first round takes so many times as long as the best one's first is not timed further: some take seconds.
const HOPELESS: f32 = 3.0;
/// Unless it takes fewer milliseconds than loading its code may.
const LONG: f32 = 100.0;
/// Alignment beyond which no engine asks for more: 16 bytes, as a logarithm.
const ALIGNED: u32 = 4;
/// The choice not to add a bias in one go.
const APART: &str = "apart";

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
    /// By convolution: plans with the alignment (its logarithm) that they are for; none where a bias is better added by
    /// itself.
    plans: HashMap<Conv, Vec<(u32, Option<Plan>)>>,
    /// Convolutions without a plan, and why: the search is long, and they come again every step.
    hopeless: HashMap<(Conv, u32), Error>,
    /// Choices that were given, by the convolution's name, and whether there must be no other.
    pinned: HashMap<String, (String, bool)>,
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
            let version = unsafe { version() };
            loaded.version = version.to_string();
            versions::note("cudnn", &loaded.version);
            loaded.at_least(version, OLDEST, "90000 (9.0)")?;
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

    /// Queues a convolution on the compute stream: writes y (forward), x (data) or w (weights) from the other two, or adds to
    /// it. Without samples it writes zeros to w and nothing else.
    ///
    /// The first time a convolution is seen, its plan is chosen: the one that was pinned, else with `exact` and while
    /// a graph is recorded the heuristics' first, else the fastest of the first few (`PHALANX_DNN_TIMING=0` takes the
    /// first).
    ///
    /// Says whether it was done. Nothing is, where a bias, or what is there, cannot be added in one go, or not faster than by
    /// a pass of its own.
    pub fn convolve(&self, c: &Conv, [x, w, y]: [DevicePtr; 3], bias: Option<DevicePtr>) -> Result<bool> {
        match (bias, c.bias) {
            (None, None) => self.run(c, &[x.0, w.0, y.0]),
            (Some(bias), Some(_)) => self.run(c, &[x.0, w.0, y.0, bias.0]),
            _ => Err(Error::Invalid {
                what: String::from("a convolution whose bias has no type or no address"),
            }),
        }
    }

    fn run(&self, c: &Conv, at: &[u64]) -> Result<bool> {
        if c.n == 0 {
            if c.direction == Direction::Weights && !c.accumulate {
                let zero = || self.core.fill_zero(at[1], c.result_bytes());
                self.core.queue(|| String::from("zeros"), || (at[1], c.result_bytes()), zero)?;
            }
            return Ok(true);
        }
        let aligned = at.iter().fold(ALIGNED, |a, p| a.min(p.trailing_zeros()));
        self.core.primary.enter()?;
        let mut state = self.state();
        let known = state.plans.get(c).and_then(|of| of.iter().find(|(a, _)| *a == aligned));
        let name = || format!("convolution {}", c.name(aligned));
        let execute = |plan: &Option<Plan>| match plan {
            Some(plan) => self.core.queue(name, || (c, at), || self.execute(plan, at)).map(|()| true),
            None => Ok(false),
        };
        if let Some((_, plan)) = known {
            return execute(plan);
        }
        if let Some(why) = state.hopeless.get(&(c.clone(), aligned)) {
            return Err(why.clone());
        }
        let chosen = match c.bias.is_some() || c.accumulate {
            true => self.choose_more(&state, c, aligned, at),
            false => self.choose(&state, c, aligned, at, false).map(|(_, plan)| Some(plan)),
        };
        let plan = match chosen {
            Err(e) if e.is_unsupported() => {
                state.hopeless.insert((c.clone(), aligned), e.clone());
                return Err(e);
            }
            plan => plan?,
        };
        let done = execute(&plan)?;
        state.plans.entry(c.clone()).or_default().push((aligned, plan));
        Ok(done)
    }

    /// What was chosen so far, as `convolution = engine and settings`, sorted. Engines' numbers are the library's.
    pub fn choices(&self) -> Vec<String> {
        let state = self.state();
        let mut all: Vec<String> = state
            .plans
            .iter()
            .flat_map(|(c, of)| {
                let id = |plan: &Option<Plan>| plan.as_ref().map_or(APART, |p| &p.id).to_owned();
                of.iter().map(move |(a, plan)| [&c.name(*a), " = ", &id(plan)].concat())
            })
            .collect();
        all.sort_unstable();
        all
    }

    /// Takes these choices of [`Dnn::choices`] instead of own ones, for convolutions that are seen first after this.
    /// One that this library or device does not offer is passed over, and `choices` shows what was taken instead; or, where
    /// they are taken `strictly`, the convolution fails. Fails on a line that is no choice.
    pub fn pin(&self, choices: &[String], strictly: bool) -> Result<()> {
        let mut state = self.state();
        for line in choices {
            let Some((name, id)) = line.split_once(" = ") else {
                return Err(Error::Invalid { what: format!("{line:?} is no choice of an algorithm") });
            };
            state.pinned.insert(String::from(name), (String::from(id), strictly));
        }
        Ok(())
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn execute(&self, plan: &Plan, at: &[u64]) -> Result<()> {
        // Given back at once: whoever gets it next comes after in the stream.
        let scratch = Scratch::new(&self.core, plan.workspace)?;
        plan.execute(self.table, self.handle, at, scratch.address())
    }

    /// The plan for a convolution to which something is added; none where that is better done apart.
    fn choose_more(&self, state: &State, c: &Conv, aligned: u32, at: &[u64]) -> Result<Option<Plan>> {
        if state.pinned.get(&c.name(aligned)).is_some_and(|(id, _)| id == APART) {
            return Ok(None);
        }
        let timed = !(c.exact || !self.timing || self.core.memory.is_capturing());
        let (time, plan) = match self.choose(state, c, aligned, at, timed) {
            Ok(chosen) => chosen,
            Err(e @ Error::Unpinned { .. }) => return Err(e),
            // Whatever speaks against it, the convolution alone is another matter.
            Err(_) => return Ok(None),
        };
        if !timed || state.pinned.contains_key(&c.name(aligned)) {
            return Ok(Some(plan));
        }
        let plain = Conv { bias: None, accumulate: false, ..c.clone() };
        let scratch = Scratch::new(&self.core, c.result_bytes())?;
        let (mut elsewhere, result) = (at[..3].to_vec(), c.result());
        elsewhere[result] = scratch.address();
        let apart = self.choose(state, &plain, aligned, &elsewhere, true);
        // To add something reads and writes the result, as a copy does.
        let pass = self.fastest(|| self.core.copy(scratch.address(), at[result], c.result_bytes()))?;
        Ok(Some(plan).filter(|_| apart.map_or(true, |(apart, _)| time <= apart + pass)))
    }

    /// A plan, with its time in milliseconds where it was measured: with `timed`, or where there was more than one.
    fn choose(&self, state: &State, c: &Conv, aligned: u32, at: &[u64], timed: bool) -> Result<(f32, Plan)> {
        c.check()?;
        let problem = Problem::new(self.table, self.handle, c, aligned)?;
        let mut candidates = problem.candidates(c);
        let name = c.name(aligned);
        let wanted = state.pinned.get(&name);
        if let Some((pinned, _)) = wanted {
            candidates.sort_by_key(|k| k.id != *pinned);
        }
        let pinned = wanted.is_some_and(|(id, _)| candidates.first().is_some_and(|k| k.id == *id));
        if let Some((algorithm, true)) = wanted {
            // By this one or not at all.
            let gone =
                |why: String| Error::Unpinned { what: name.clone(), algorithm: algorithm.clone(), why };
            let found = candidates.into_iter().next().filter(|_| pinned);
            let found =
                found.ok_or_else(|| gone(String::from("it is not among those that the library names")))?;
            return problem.plan(found).map(|plan| (0.0, plan)).map_err(|e| gone(e.to_string()));
        }
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
        let alone = plans.len() == 1 && !timed;
        // What is added to must not be added to by attempts.
        let other = match c.accumulate && !alone {
            true => Some(Scratch::new(&self.core, c.result_bytes())?),
            false => None,
        };
        let mut at = at.to_vec();
        if let Some(other) = &other {
            at[c.result()] = other.address();
        }
        // Every plan once, which loads its code, before any is timed: the first one may be the hopeless one.
        let mut begun = Vec::new();
        for plan in plans {
            match if alone { Ok(0.0) } else { self.time(|| self.execute(&plan, &at)) } {
                Ok(time) => begun.push((time, plan)),
                Err(e) => failed = Some(e),
            }
        }
        let least = begun.iter().fold(f32::INFINITY, |least, (time, _)| least.min(*time));
        for (first, plan) in begun {
            let time = match () {
                () if alone => Ok(first),
                () if first > LONG && first > HOPELESS * least => continue,
                () => self.fastest(|| self.execute(&plan, &at)),
            };
            match time {
                Ok(time) if best.as_ref().is_none_or(|(t, _)| time < *t) => best = Some((time, plan)),
                Ok(_) => {}
                Err(e) => failed = Some(e),
            }
        }
        match (best, failed) {
            (Some(best), _) => Ok(best),
            (None, Some(e)) => Err(e),
            (None, None) => Err(Error::NoAlgorithm { library: "cuDNN", what: name }),
        }
    }

    /// Milliseconds of what `work` queues, the fastest of some rounds.
    fn fastest(&self, work: impl Fn() -> Result<()>) -> Result<f32> {
        (0..ROUNDS).try_fold(f32::INFINITY, |best, _| Ok(best.min(self.time(&work)?)))
    }

    /// Milliseconds of what `work` queues.
    fn time(&self, work: impl Fn() -> Result<()>) -> Result<f32> {
        let [start, stop] = [Event::new(&self.core.primary, true)?, Event::new(&self.core.primary, true)?];
        start.record(&self.core.compute)?;
        work()?;
        stop.record(&self.core.compute)?;
        stop.synchronize()?;
        start.elapsed(&stop)
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
