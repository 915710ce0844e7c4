//! Where am I: which launcher has started this process, as which of how many.
//!
//! Launchers say so in environment variables; a table has a row for each. A process started by several
//! (Slurm's `srun` with a PMIx library) sees several rows, which must agree.

use crate::nodelist::{expand, tasks_per_node};
use crate::{Error, Result};

/// A launcher, or the interface by which one talks to its processes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Launcher {
    /// Open MPI's mpirun.
    OpenMpi,
    /// MPICH's mpiexec (Hydra).
    Mpich,
    /// A PMIx server, such as Slurm's.
    Pmix,
    /// A PMI-1 or PMI-2 server, such as Slurm's.
    Pmi2,
    /// Slurm's srun.
    Slurm,
    /// PyTorch's torchrun, or what sets its variables.
    Torchrun,
}

/// The variables of a launcher.
struct Row {
    launcher: Launcher,
    name: &'static str,
    rank: &'static str,
    world: &'static str,
    local_rank: &'static str,
    local_world: &'static str,
}

/// The innermost first: what is found in an earlier row counts.
const ROWS: [Row; 6] = [
    Row {
        launcher: Launcher::OpenMpi,
        name: "Open MPI's mpirun",
        rank: "OMPI_COMM_WORLD_RANK",
        world: "OMPI_COMM_WORLD_SIZE",
        local_rank: "OMPI_COMM_WORLD_LOCAL_RANK",
        local_world: "OMPI_COMM_WORLD_LOCAL_SIZE",
    },
    Row {
        launcher: Launcher::Mpich,
        name: "MPICH's mpiexec",
        rank: "PMI_RANK",
        world: "PMI_SIZE",
        local_rank: "MPI_LOCALRANKID",
        local_world: "MPI_LOCALNRANKS",
    },
    Row {
        launcher: Launcher::Pmix,
        name: "PMIx",
        rank: "PMIX_RANK",
        world: "",
        local_rank: "",
        local_world: "",
    },
    Row {
        launcher: Launcher::Pmi2,
        name: "PMI",
        rank: "PMI_RANK",
        world: "PMI_SIZE",
        local_rank: "",
        local_world: "",
    },
    Row {
        launcher: Launcher::Slurm,
        name: "srun",
        rank: "SLURM_PROCID",
        world: "SLURM_STEP_NUM_TASKS",
        local_rank: "SLURM_LOCALID",
        local_world: "",
    },
    Row {
        launcher: Launcher::Torchrun,
        name: "torchrun",
        rank: "RANK",
        world: "WORLD_SIZE",
        local_rank: "LOCAL_RANK",
        local_world: "LOCAL_WORLD_SIZE",
    },
];

/// The first step id that Slurm uses for itself: batch scripts, interactive shells, daemons.
const OWN_STEPS: u64 = 0xffff_fff0;

impl Launcher {
    /// The name used in messages.
    pub fn name(self) -> &'static str {
        ROWS.iter().find(|r| r.launcher == self).map_or("", |r| r.name)
    }

    /// Whether its variables are there: some are also set where it has started nothing.
    fn seen(self, get: &dyn Fn(&str) -> Option<String>) -> bool {
        let set = |name: &str| get(name).is_some();
        match self {
            Launcher::OpenMpi => set("OMPI_COMM_WORLD_RANK"),
            // Hydra's own, next to those of PMI.
            Launcher::Mpich => set("PMI_RANK") && (set("MPI_LOCALRANKID") || set("HYDI_CONTROL_FD")),
            Launcher::Pmix => set("PMIX_RANK") && !set("OMPI_COMM_WORLD_RANK"),
            Launcher::Pmi2 => set("PMI_RANK") && !Launcher::Mpich.seen(get),
            // A shell of sbatch or salloc has SLURM_PROCID and SLURM_NTASKS, but is no task of a step. mpirun in
            // an allocation starts its daemons with srun: the daemon's step is not the ranks'.
            Launcher::Slurm => {
                let step = get("SLURM_STEP_ID").and_then(|s| s.parse::<u64>().ok());
                let task = step.is_some_and(|s| s < OWN_STEPS) && set("SLURM_STEP_NUM_TASKS");
                task && !Launcher::OpenMpi.seen(get) && !Launcher::Mpich.seen(get)
            }
            Launcher::Torchrun => {
                set("RANK") && set("WORLD_SIZE") && (set("MASTER_ADDR") || set("TORCHELASTIC_RUN_ID"))
            }
        }
    }
}

/// What a process knows of its place from its environment.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Place {
    /// The launchers that were seen, the one that counts first; none in a plain shell.
    pub launchers: Vec<Launcher>,
    /// This process's rank.
    pub rank: Option<u32>,
    /// The number of processes.
    pub world: Option<u32>,
    /// This process's number on its machine.
    pub local_rank: Option<u32>,
    /// Processes on this machine.
    pub local_world: Option<u32>,
    /// The machines of the step, or of the allocation.
    pub nodes: Vec<String>,
    /// Slurm's number of the job.
    pub job: Option<String>,
}

fn number(get: &dyn Fn(&str) -> Option<String>, name: &str) -> Result<Option<u32>> {
    let Some(text) = get(name).filter(|_| !name.is_empty()) else { return Ok(None) };
    let wrong = || Error::Variable { name: name.into(), value: text.clone(), why: "it is no number".into() };
    text.trim().parse().map(Some).map_err(|_| wrong())
}

impl Place {
    /// Finds out from the variables that `get` knows.
    pub fn detect(get: &dyn Fn(&str) -> Option<String>) -> Result<Place> {
        let mut place = Place { job: get("SLURM_JOB_ID"), ..Place::default() };
        // What was found, with the variable that said it.
        let mut rank: Option<(u32, &str)> = None;
        let mut world: Option<(u32, &str)> = None;
        for row in ROWS.iter().filter(|r| r.launcher.seen(get)) {
            place.launchers.push(row.launcher);
            let agree = |found: &mut Option<(u32, &'static str)>, name: &'static str| -> Result<()> {
                let Some(value) = number(get, name)? else { return Ok(()) };
                match found {
                    Some((first, by)) if *first != value => Err(Error::Conflict {
                        left: (*by).into(),
                        left_value: *first,
                        right: name.into(),
                        right_value: value,
                    }),
                    Some(_) => Ok(()),
                    None => {
                        *found = Some((value, name));
                        Ok(())
                    }
                }
            };
            agree(&mut rank, row.rank)?;
            agree(&mut world, row.world)?;
            place.local_rank = place.local_rank.or(number(get, row.local_rank)?);
            place.local_world = place.local_world.or(number(get, row.local_world)?);
        }
        (place.rank, place.world) = (rank.map(|r| r.0), world.map(|w| w.0));
        if let (Some((r, by)), Some((w, of))) = (rank, world)
            && r >= w
        {
            let why = format!("{of} is {w}, and ranks count from 0");
            return Err(Error::Variable { name: by.into(), value: r.to_string(), why });
        }
        let slurm = place.launchers.contains(&Launcher::Slurm);
        let list = if slurm { "SLURM_STEP_NODELIST" } else { "SLURM_JOB_NODELIST" };
        if let Some(text) = get(list) {
            let wrong = |why| Error::Variable { name: list.into(), value: text.clone(), why };
            place.nodes = expand(&text).map_err(wrong)?;
        }
        if let (true, Some(node), Some(text)) =
            (slurm, number(get, "SLURM_NODEID")?, get("SLURM_STEP_TASKS_PER_NODE"))
        {
            let name = "SLURM_STEP_TASKS_PER_NODE";
            let wrong = |why| Error::Variable { name: name.into(), value: text.clone(), why };
            let tasks = tasks_per_node(&text).map_err(wrong)?;
            place.local_world = place.local_world.or(tasks.get(node as usize).copied());
        }
        Ok(place)
    }

    /// Finds out from this process's environment.
    pub fn here() -> Result<Place> {
        Place::detect(&|name| std::env::var(name).ok())
    }

    fn has(&self, launcher: Launcher) -> bool {
        self.launchers.contains(&launcher)
    }

    /// Who has started this process, for messages: a program rather than the interface that it offers.
    pub(crate) fn starter(&self) -> Option<Launcher> {
        let interface = |l: &&Launcher| matches!(l, Launcher::Pmix | Launcher::Pmi2);
        self.launchers.iter().find(|l| !interface(l)).or(self.launchers.first()).copied()
    }

    /// Whether this process was started as a rank of an MPI job. `mpirun -n 1` counts; a single task of srun
    /// without an MPI interface does not.
    pub fn wants_mpi(&self) -> bool {
        let interface = [Launcher::OpenMpi, Launcher::Mpich, Launcher::Pmix, Launcher::Pmi2];
        let several = self.has(Launcher::Slurm) && self.world.is_some_and(|w| w > 1);
        several || interface.iter().any(|l| self.has(*l))
    }

    /// Whether this process is the one to tell errors that all processes of a job find.
    pub fn speaks(&self) -> bool {
        self.rank.is_none_or(|r| r == 0)
    }

    /// Refuses, before MPI starts, what cannot become one world: many processes that would each train by
    /// themselves.
    pub fn check_before(&self, built_with_mpi: bool) -> Result<()> {
        let world = self.world.unwrap_or(1);
        let Some(first) = self.starter().filter(|_| world > 1) else { return Ok(()) };
        let starts = format!("{} has started {world} processes", first.name());
        if !self.wants_mpi() {
            let why = format!(
                "{starts}, each of which would train by itself: phalanx is started by mpirun or srun, or with \
                 --ranks {world} as threads"
            );
            return Err(Error::Singletons(why));
        }
        if !built_with_mpi {
            let why = format!(
                "{starts}, but this binary was built without MPI, and each would train by itself; build it \
                 with `cargo build --release --features mpi`"
            );
            return Err(Error::Singletons(why));
        }
        if self.launchers == [Launcher::Slurm] {
            let why = format!(
                "srun has started {world} tasks without an MPI interface, and each would train by itself; use \
                 `srun --mpi=pmix` (or pmi2 for MPICH; `srun --mpi=list` shows what there is)"
            );
            return Err(Error::Singletons(why));
        }
        Ok(())
    }

    /// Refuses a world of MPI that is not the launcher's.
    pub fn check_world(&self, mpi_world: u32) -> Result<()> {
        let (Some(world), Some(first)) = (self.world, self.starter()) else { return Ok(()) };
        if world == mpi_world {
            return Ok(());
        }
        let fix = if self.has(Launcher::Slurm) { "use `srun --mpi=pmix`" } else { "use its own mpirun" };
        let why = format!(
            "{} has started {world} processes, but MPI sees a world of {mpi_world}: the MPI library that this \
             binary was built with does not talk to that launcher; {fix}",
            first.name()
        );
        Err(Error::Singletons(why))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    type Vars = &'static [(&'static str, &'static str)];

    const SRUN_PMIX: Vars = &[
        ("SLURM_JOB_ID", "17"),
        ("SLURM_STEP_ID", "0"),
        ("SLURM_NTASKS", "3"),
        ("SLURM_STEP_NUM_TASKS", "3"),
        ("SLURM_PROCID", "2"),
        ("SLURM_LOCALID", "0"),
        ("SLURM_NODEID", "1"),
        ("SLURM_STEP_TASKS_PER_NODE", "2,1"),
        ("SLURM_STEP_NODELIST", "gpu[01-02]"),
        ("PMIX_RANK", "2"),
        ("PMIX_NAMESPACE", "slurm.pmix.17.0"),
    ];
    const SRUN_PMI2: Vars = &[
        ("SLURM_JOB_ID", "17"),
        ("SLURM_STEP_ID", "4"),
        ("SLURM_STEP_NUM_TASKS", "2"),
        ("SLURM_PROCID", "1"),
        ("PMI_RANK", "1"),
        ("PMI_SIZE", "2"),
    ];
    const SRUN_NONE: Vars = &[("SLURM_STEP_ID", "0"), ("SLURM_STEP_NUM_TASKS", "4"), ("SLURM_PROCID", "3")];
    const SBATCH: Vars = &[
        ("SLURM_JOB_ID", "17"),
        ("SLURM_NTASKS", "8"),
        ("SLURM_PROCID", "0"),
        ("SLURM_JOB_NODELIST", "n[1-4]"),
    ];
    const SALLOC: Vars = &[
        ("SLURM_JOB_ID", "17"),
        ("SLURM_STEP_ID", "4294967290"),
        ("SLURM_STEP_NUM_TASKS", "1"),
        ("SLURM_NTASKS", "8"),
        ("SLURM_PROCID", "0"),
    ];
    const MPIRUN: Vars = &[
        ("OMPI_COMM_WORLD_RANK", "1"),
        ("OMPI_COMM_WORLD_SIZE", "2"),
        ("OMPI_COMM_WORLD_LOCAL_RANK", "1"),
        ("OMPI_COMM_WORLD_LOCAL_SIZE", "2"),
        ("PMIX_RANK", "1"),
    ];
    const MPIRUN_IN_STEP: Vars = &[
        ("OMPI_COMM_WORLD_RANK", "5"),
        ("OMPI_COMM_WORLD_SIZE", "8"),
        ("SLURM_JOB_ID", "17"),
        ("SLURM_STEP_ID", "0"),
        ("SLURM_STEP_NUM_TASKS", "2"),
        ("SLURM_PROCID", "1"),
        ("SLURM_JOB_NODELIST", "n[1-2]"),
    ];
    const HYDRA: Vars =
        &[("PMI_RANK", "0"), ("PMI_SIZE", "2"), ("MPI_LOCALRANKID", "0"), ("MPI_LOCALNRANKS", "2")];
    const TORCHRUN: Vars = &[
        ("RANK", "1"),
        ("WORLD_SIZE", "2"),
        ("LOCAL_RANK", "1"),
        ("LOCAL_WORLD_SIZE", "2"),
        ("MASTER_ADDR", "localhost"),
    ];

    fn at(vars: &[(&str, &str)]) -> Result<Place> {
        Place::detect(&|name| vars.iter().find(|v| v.0 == name).map(|v| v.1.to_owned()))
    }

    #[test]
    fn every_launcher_is_known_by_its_variables() {
        use Launcher::*;
        type Row = (Vars, &'static [Launcher], Option<(u32, u32)>, Option<u32>, bool);
        let rows: [Row; 9] = [
            (SRUN_PMIX, &[Pmix, Slurm], Some((2, 3)), Some(1), true),
            (SRUN_PMI2, &[Pmi2, Slurm], Some((1, 2)), None, true),
            (SRUN_NONE, &[Slurm], Some((3, 4)), None, true),
            (SBATCH, &[], None, None, false),
            (SALLOC, &[], None, None, false),
            (MPIRUN, &[OpenMpi], Some((1, 2)), Some(2), true),
            (MPIRUN_IN_STEP, &[OpenMpi], Some((5, 8)), None, true),
            (HYDRA, &[Mpich], Some((0, 2)), Some(2), true),
            (TORCHRUN, &[Torchrun], Some((1, 2)), Some(2), false),
        ];
        for (vars, launchers, place, local_world, mpi) in rows {
            let p = at(vars).unwrap();
            assert_eq!(p.launchers, launchers, "{vars:?}");
            assert_eq!(p.rank.zip(p.world), place, "{vars:?}");
            assert_eq!((p.local_world, p.wants_mpi()), (local_world, mpi), "{vars:?}");
            assert_eq!(p.speaks(), place.is_none_or(|(r, _)| r == 0), "{vars:?}");
        }
        assert_eq!(at(&[]).unwrap(), Place::default());
        assert_eq!(at(SRUN_PMIX).unwrap().nodes, ["gpu01", "gpu02"]);
        assert_eq!(at(SBATCH).unwrap().nodes.len(), 4);
    }

    #[test]
    fn what_does_not_agree_is_told_with_both_sides() {
        let say = |vars: &[(&str, &str)]| at(vars).unwrap_err().to_string();
        let mut vars = SRUN_PMIX.to_vec();
        vars.iter_mut().find(|v| v.0 == "PMIX_RANK").unwrap().1 = "0";
        assert!(
            say(&vars).contains("PMIX_RANK is 0") && say(&vars).contains("SLURM_PROCID is 2"),
            "{}",
            say(&vars)
        );
        let both = [MPIRUN, &[("RANK", "0"), ("WORLD_SIZE", "2"), ("MASTER_ADDR", "x")]].concat();
        assert!(say(&both).contains("RANK is 0"), "{}", say(&both));
        let text = say(&[("OMPI_COMM_WORLD_RANK", "two")]);
        assert!(text.contains("OMPI_COMM_WORLD_RANK") && text.contains("no number"), "{text}");
        let text = say(&[("OMPI_COMM_WORLD_RANK", "2"), ("OMPI_COMM_WORLD_SIZE", "2")]);
        assert!(text.contains("count from 0"), "{text}");
    }

    #[test]
    fn many_worlds_of_one_are_refused_with_the_fix() {
        let before = |vars, built| at(vars).unwrap().check_before(built).map_err(|e| e.to_string());
        assert!(before(SRUN_NONE, true).unwrap_err().contains("--mpi=pmix"));
        assert!(before(SRUN_PMIX, false).unwrap_err().contains("--features mpi"));
        assert!(before(MPIRUN, false).unwrap_err().contains("started 2 processes"));
        assert!(before(TORCHRUN, true).unwrap_err().contains("mpirun or srun"));
        for vars in [SRUN_PMIX, SRUN_PMI2, MPIRUN, HYDRA, SBATCH, SALLOC] {
            assert_eq!(before(vars, true), Ok(()), "{vars:?}");
        }
        for vars in [SBATCH, SALLOC] {
            assert_eq!(before(vars, false), Ok(()), "{vars:?}");
        }
        let world = |vars, n| at(vars).unwrap().check_world(n).map_err(|e| e.to_string());
        let text = world(SRUN_PMIX, 1).unwrap_err();
        assert!(
            text.contains("srun has started 3 processes, but MPI sees a world of 1")
                && text.contains("--mpi=pmix"),
            "{text}"
        );
        assert_eq!(world(SRUN_PMIX, 3), Ok(()));
        assert_eq!(world(&[], 1), Ok(()));
    }
}
