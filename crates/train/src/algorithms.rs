//! `algorithms.json` of the run directory: by which of the library's algorithms a GPU's convolutions are computed.
//!
//! What is chosen by timing differs from start to start, and what heuristics choose from library to library. So a run writes
//! down what it has chosen, with its checkpoints, and goes on with that.

use std::collections::BTreeMap;
use std::path::Path;

use phalanx_comm::Communicator;
use phalanx_gpu::Context;
use serde::{Deserialize, Serialize};

use crate::rundir::RunDir;
use crate::share::from_rank_0;
use crate::{Error, Result};

const FILE: &str = "algorithms.json";

/// What is known to all ranks alike.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Algorithms {
    /// The library's version, whose numbers these are.
    cudnn: String,
    device: String,
    /// By convolution.
    algorithms: BTreeMap<String, String>,
    /// Whether ranks must agree, and go on with nothing else.
    #[serde(skip)]
    exact: bool,
}

impl Algorithms {
    /// Those of a run that begins or, with `resumed`, goes on: then the GPU takes what was chosen before, and, with `exact`
    /// and unless `anew`, nothing else. A meeting of all ranks where there are GPUs.
    pub(crate) fn open(
        dir: &RunDir,
        comm: &dyn Communicator,
        gpu: Option<&Context>,
        [exact, resumed, anew]: [bool; 3],
    ) -> Result<Self> {
        let Some(gpu) = gpu else { return Ok(Algorithms::default()) };
        let cudnn = phalanx_gpu::versions().get("cudnn").cloned().unwrap_or_default();
        let here = Algorithms { cudnn, device: gpu.info().name.clone(), exact, ..Algorithms::default() };
        let before: Option<Algorithms> = match resumed {
            true => from_rank_0(comm, comm.deadline(), || read(&dir.path().join(FILE)))?,
            false => None,
        };
        // Another library has other numbers: that one may go on at all is not decided here.
        let before = before.filter(|b| (&b.cudnn, &b.device) == (&here.cudnn, &here.device));
        let algorithms = before.map_or_else(BTreeMap::new, |b| b.algorithms);
        pin(gpu, &algorithms, exact && !anew)?;
        Ok(Algorithms { algorithms: if anew { BTreeMap::new() } else { algorithms }, ..here })
    }

    /// Tells all ranks what some of them have chosen since; rank 0 writes it down. A meeting of all ranks where there are GPUs.
    pub(crate) fn keep(
        &mut self,
        dir: &RunDir,
        comm: &dyn Communicator,
        gpu: Option<&Context>,
    ) -> Result<()> {
        let Some(gpu) = gpu else { return Ok(()) };
        let choices = gpu.dnn().map_err(phalanx_tensor::Error::from)?.choices();
        let new = choices.iter().filter_map(|line| line.split_once(" = "));
        let new: Vec<_> =
            new.filter(|(name, id)| self.algorithms.get(*name).is_none_or(|k| k != id)).collect();
        let broken = |e: serde_json::Error| Error::config(FILE, e.to_string());
        let mine = serde_json::to_vec(&new).map_err(broken)?;
        let all = comm.all_gather(&mine, comm.deadline())?;
        let mut added = BTreeMap::new();
        for (rank, theirs) in (0u32..).zip(&all) {
            let theirs: Vec<(String, String)> = serde_json::from_slice(theirs).map_err(broken)?;
            for (name, id) in theirs {
                let first = self.algorithms.get(&name).or_else(|| added.get(&name)).unwrap_or(&id);
                if *first != id && self.exact {
                    let [first, other] = [first, &id].map(|id| format!("{name} by {id}"));
                    let what = "the choice of algorithms".to_owned();
                    return Err(phalanx_comm::Error::Differs { what, rank, first, other }.into());
                }
                added.entry(name).or_insert(id);
            }
        }
        added.retain(|name, _| !self.algorithms.contains_key(name));
        if added.is_empty() {
            return Ok(());
        }
        // Who meets such a convolution later does as the others.
        pin(gpu, &added, self.exact)?;
        self.algorithms.append(&mut added);
        if comm.rank() == 0 { dir.write_json(FILE, self) } else { Ok(()) }
    }
}

fn pin(gpu: &Context, algorithms: &BTreeMap<String, String>, strictly: bool) -> Result<()> {
    if algorithms.is_empty() {
        return Ok(());
    }
    let lines: Vec<String> = algorithms.iter().map(|(name, id)| format!("{name} = {id}")).collect();
    let pin = || gpu.dnn()?.pin(&lines, strictly);
    Ok(pin().map_err(phalanx_tensor::Error::from)?)
}

/// The file; none where there is none.
fn read(path: &Path) -> Result<Option<Algorithms>> {
    match std::fs::read(path) {
        Ok(bytes) => serde_json::from_slice(&bytes).map(Some).map_err(|e| {
            let problem = format!("it cannot be read ({e}); without the file algorithms are chosen anew");
            Error::RunDir { path: path.into(), problem }
        }),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(Error::io("read", path)(e)),
    }
}
