//! Starts the ranks of a command: builds the line for whoever starts them, runs it, and passes signals on.

use std::io::ErrorKind;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use signal_hook::consts::{SIGCHLD, SIGHUP, SIGINT, SIGTERM, SIGUSR1, SIGUSR2};
use signal_hook::iterator::Signals;

use crate::{Error, Launcher, Place, Result};

/// The exit code of what SIGUSR1 has ended.
const UNHEARD: u8 = 128 + SIGUSR1 as u8;

/// Stopped on a signal: start it again.
const AGAIN: u8 = 75;

/// How often a line that was told to stop is told again.
const TELL_AGAIN: Duration = Duration::from_secs(1);

/// How often a line that was told to stop is looked at.
const LOOK: Duration = Duration::from_millis(10);

/// Who starts the ranks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum On {
    /// Slurm in an allocation of it, else threads.
    Auto,
    /// Threads of one process on this machine.
    Local,
    /// mpirun, on this machine.
    Mpirun,
    /// srun, in an allocation or for one of its own.
    Slurm,
}

/// What is to be started.
#[derive(Debug, Clone)]
pub struct Request {
    /// Who starts the ranks.
    pub on: On,
    /// Machines; without it those of the allocation, or one.
    pub nodes: Option<u32>,
    /// Ranks on each machine; without it one for each GPU that is asked for, or one.
    pub ranks_per_node: Option<u32>,
    /// GPUs to ask for on each machine.
    pub gpus_per_node: Option<u32>,
    /// Slurm's partition.
    pub partition: Option<String>,
    /// Slurm's limit of time.
    pub time: Option<String>,
    /// Whether Slurm should queue the job again when it is stopped.
    pub requeue: bool,
    /// The command of this binary, with its arguments.
    pub command: Vec<String>,
    /// The `--ranks` that `command` has itself.
    pub own_ranks: Option<u32>,
}

/// What a line depends on besides the request.
#[derive(Debug, Clone)]
pub struct Facts {
    /// This program.
    pub binary: String,
    /// What the MPI library that it is built with calls itself; None when it cannot be a rank of an MPI job.
    pub mpi: Option<String>,
    /// Cores, without the second threads that some have: as mpirun counts places for ranks.
    pub cores: u32,
    /// Where this process is.
    pub place: Place,
}

impl Facts {
    /// Finds out about this process and its machine.
    pub fn here(mpi: Option<String>) -> Result<Facts> {
        let unknown = |why: String| Error::Launch(format!("cannot find out which program this is: {why}"));
        let binary = std::env::current_exe().map_err(|e| unknown(e.to_string()))?;
        let binary = binary
            .into_os_string()
            .into_string()
            .map_err(|path| unknown(format!("its path is not UTF-8: {}", path.to_string_lossy())))?;
        let threads = std::thread::available_parallelism().map_or(1, |n| n.get() as u32);
        let cores = match std::fs::read_to_string("/proc/cpuinfo").map_or(0, |text| cores_of(&text)) {
            0 => threads,
            cores => cores.min(threads),
        };
        Ok(Facts { binary, mpi, cores, place: Place::here()? })
    }
}

/// The cores that /proc/cpuinfo tells of; 0 where it does not tell them apart.
fn cores_of(cpuinfo: &str) -> u32 {
    let value = |cpu: &str, name: &str| {
        let line = cpu.lines().find(|l| l.starts_with(name))?;
        line.split_once(':').map(|(_, v)| v.trim().to_owned())
    };
    let core = |cpu: &str| Some((value(cpu, "physical id")?, value(cpu, "core id")?));
    cpuinfo.split("\n\n").filter_map(core).collect::<std::collections::HashSet<_>>().len() as u32
}

/// A program with its arguments.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Line {
    /// The program: a path, or a name to be found on PATH.
    pub program: String,
    /// Its arguments.
    pub args: Vec<String>,
}

impl Line {
    /// The line that does what `request` asks for, or why nothing can.
    pub fn new(request: &Request, facts: &Facts) -> Result<Line> {
        let place = &facts.place;
        if let (Some(launcher), Some(world @ 2..)) = (place.starter(), place.world) {
            return refuse(format!(
                "{} has started {world} processes of `phalanx launch`, each of which would start the ranks \
                 anew: start `phalanx launch` once, or the command itself by {}",
                launcher.name(),
                launcher.name()
            ));
        }
        if request.requeue {
            return refuse(
                "--requeue needs a batch job that Slurm can queue again, and `phalanx launch` writes none yet: \
                 start the same command again when it ends with exit code 75"
                    .into(),
            );
        }
        if let (Some(own), Some(per_node)) = (request.own_ranks, request.ranks_per_node) {
            return refuse(format!(
                "both --ranks-per-node {per_node} and --ranks {own} of the command say how many ranks there \
                 are: leave --ranks out"
            ));
        }
        match request.on {
            On::Slurm => slurm(request, facts),
            On::Auto if place.job.is_some() => slurm(request, facts),
            On::Auto | On::Local => local(request, facts),
            On::Mpirun => mpirun(request, facts),
        }
    }

    /// The line as one would type it into a shell.
    pub fn shell(&self) -> String {
        let words: Vec<String> =
            std::iter::once(&self.program).chain(&self.args).map(|w| quoted(w)).collect();
        words.join(" ")
    }

    /// How to get its program.
    fn missing(&self) -> &'static str {
        match &*self.program {
            "mpirun" => " (Open MPI has it; Debian: openmpi-bin; on a cluster: a module)",
            "srun" => " (Slurm has it; Debian: slurm-client)",
            _ => "",
        }
    }

    /// Runs the line to its end and returns its exit code, 128 + N when signal N ended it. SIGINT, SIGTERM,
    /// SIGHUP, SIGUSR1 and SIGUSR2 reach it as SIGUSR1, every time one comes: mpirun and srun pass that one on
    /// to all ranks, which stop with a checkpoint, whereas the others make them kill the ranks.
    ///
    /// While they start, mpirun and srun drop a signal for ranks that are not there yet. So it is sent again each
    /// second until they end; ranks that have heard it take no notice.
    pub fn run(&self) -> Result<u8> {
        let wait = |cause| Error::Wait { program: self.program.clone(), cause };
        // Before the child starts, so that neither a signal nor its end is missed.
        let mut signals = Signals::new([SIGCHLD, SIGINT, SIGTERM, SIGUSR1, SIGUSR2]).map_err(wait)?;
        let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
        // Under nohup the terminal's end is no reason to stop.
        if !ignores(&status, SIGHUP) {
            signals.add_signal(SIGHUP).map_err(wait)?;
        }
        let mut child = Command::new(&self.program)
            .args(&self.args)
            // The terminal sends Ctrl-C to its whole foreground group, and srun and mpirun would end at it.
            .process_group(0)
            // Reading the terminal from another group than its own would stop srun and mpirun.
            .stdin(Stdio::null())
            .spawn()
            .map_err(|cause| Error::Start {
                program: self.program.clone(),
                hint: if cause.kind() == ErrorKind::NotFound { self.missing() } else { "" },
                cause,
                line: self.shell(),
            })?;
        let mut told: Option<Instant> = None;
        loop {
            // The child is waited for in this thread alone, so that its id is still its own when it is signalled.
            if let Some(status) = child.try_wait().map_err(wait)? {
                let code = status.code().or(status.signal().map(|s| 128 + s));
                return Ok(match code.and_then(|c| u8::try_from(c).ok()) {
                    // Ranks listen to the signal before they do anything else: nothing had begun.
                    Some(UNHEARD) if told.is_some() => AGAIN,
                    code => code.unwrap_or(1),
                });
            }
            let mut came = match told {
                None => signals.wait().any(|s| s != SIGCHLD),
                Some(_) => {
                    std::thread::sleep(LOOK);
                    signals.pending().any(|s| s != SIGCHLD)
                }
            };
            came |= told.is_some_and(|t| t.elapsed() >= TELL_AGAIN);
            if came {
                told = Some(Instant::now());
                // It can fail only when the child has ended, which the next turn finds.
                let _ = kill_process(Pid::from_child(&child), Signal::USR1);
            }
        }
    }
}

/// Whether a process with this /proc/…/status ignores a signal.
fn ignores(status: &str, signal: i32) -> bool {
    let mask = status.lines().find_map(|l| l.strip_prefix("SigIgn:"));
    mask.and_then(|m| u64::from_str_radix(m.trim(), 16).ok()).is_some_and(|m| m >> (signal - 1) & 1 == 1)
}

/// A word as a shell reads it back.
fn quoted(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "_@%+=:,./-".contains(c);
    if !word.is_empty() && word.chars().all(plain) {
        return word.to_owned();
    }
    format!("'{}'", word.replace('\'', r"'\''"))
}

fn refuse<T>(why: String) -> Result<T> {
    Err(Error::Launch(why))
}

/// Ranks on each machine.
fn per_node(request: &Request) -> u32 {
    request.ranks_per_node.or(request.gpus_per_node).unwrap_or(1)
}

/// Refuses what only Slurm can do, and several machines.
fn here_only(request: &Request, who: &str) -> Result<()> {
    if let Some(nodes @ 2..) = request.nodes {
        return refuse(format!(
            "--nodes {nodes}: {who} run on this machine alone; --on slurm starts ranks on several"
        ));
    }
    let given = [
        ("--gpus-per-node", request.gpus_per_node.is_some()),
        ("--partition", request.partition.is_some()),
        ("--time", request.time.is_some()),
    ];
    match given.iter().find(|g| g.1) {
        Some((option, _)) => refuse(format!(
            "{option} is for Slurm, and {who} run without it: leave it out, or give --on slurm"
        )),
        None => Ok(()),
    }
}

fn local(request: &Request, facts: &Facts) -> Result<Line> {
    here_only(request, "ranks as threads")?;
    let mut args = request.command.clone();
    if let Some(ranks) = request.ranks_per_node {
        args.extend(["--ranks".into(), ranks.to_string()]);
    }
    Ok(Line { program: facts.binary.clone(), args })
}

/// Refuses what cannot become ranks as processes.
fn processes(request: &Request, facts: &Facts, starter: &str) -> Result<()> {
    if facts.mpi.is_none() {
        return refuse(format!(
            "{starter} starts ranks as processes, but this binary was built without MPI; build it with `cargo \
             build --release --features mpi`, or give --on local for threads"
        ));
    }
    if let Some(own) = request.own_ranks {
        return refuse(format!(
            "--ranks {own} starts threads, but {starter} starts ranks as processes: give --ranks-per-node \
             instead"
        ));
    }
    Ok(())
}

fn mpirun(request: &Request, facts: &Facts) -> Result<Line> {
    here_only(request, "ranks of mpirun")?;
    processes(request, facts, "mpirun")?;
    let ranks = per_node(request);
    let mut args = vec!["-n".into(), ranks.to_string()];
    // MPICH's mpirun has no such option and lets ranks share cores. Open MPI's counts an allocation's tasks, not its
    // cores; where there is room the option changes nothing.
    let open = facts.mpi.as_ref().is_some_and(|name| name.starts_with("Open MPI"));
    if open && (ranks > facts.cores || facts.place.job.is_some()) {
        args.push("--oversubscribe".into());
    }
    args.push(facts.binary.clone());
    args.extend(request.command.iter().cloned());
    Ok(Line { program: "mpirun".into(), args })
}

fn slurm(request: &Request, facts: &Facts) -> Result<Line> {
    processes(request, facts, "srun")?;
    let place = &facts.place;
    let allocated = place.job.as_ref().map_or(0, |_| place.nodes.len() as u32);
    let nodes = request.nodes.unwrap_or(allocated.max(1));
    if let (Some(job), 1..) = (&place.job, allocated)
        && nodes > allocated
    {
        return refuse(format!("--nodes {nodes}: job {job} of Slurm has {allocated}"));
    }
    let per_node = per_node(request);
    let mut args = vec![
        "--mpi=pmix".into(),
        "--kill-on-bad-exit=1".into(),
        format!("--nodes={nodes}"),
        // An allocation's SLURM_NTASKS would otherwise be the number, and the ranks of a node at most that many.
        format!("--ntasks={}", u64::from(nodes) * u64::from(per_node)),
        format!("--ntasks-per-node={per_node}"),
    ];
    // A shell that srun itself has started holds its node's cores, and a step within would wait for them for ever.
    args.extend(place.launchers.contains(&Launcher::Slurm).then(|| "--overlap".into()));
    args.extend(request.gpus_per_node.map(|n| format!("--gpus-per-node={n}")));
    args.extend(request.partition.as_ref().map(|p| format!("--partition={p}")));
    args.extend(request.time.as_ref().map(|t| format!("--time={t}")));
    args.push(facts.binary.clone());
    args.extend(request.command.iter().cloned());
    Ok(Line { program: "srun".into(), args })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(on: On) -> Request {
        let command = ["train", "configs/digits.toml"].map(String::from).to_vec();
        Request {
            on,
            nodes: None,
            ranks_per_node: None,
            gpus_per_node: None,
            partition: None,
            time: None,
            requeue: false,
            command,
            own_ranks: None,
        }
    }

    fn facts(with_mpi: bool, allocated: &[&str]) -> Facts {
        let place = Place {
            job: (!allocated.is_empty()).then(|| "17".into()),
            nodes: allocated.iter().map(|n| (*n).to_owned()).collect(),
            ..Place::default()
        };
        let mpi = with_mpi.then(|| "Open MPI v4.1.4".into());
        Facts { binary: "/opt/phalanx".into(), mpi, cores: 2, place }
    }

    fn shell(request: &Request, facts: &Facts) -> String {
        Line::new(request, facts).unwrap().shell()
    }

    fn refused(request: &Request, facts: &Facts) -> String {
        let e = Line::new(request, facts).unwrap_err();
        assert_eq!(e.exit_code(), 2);
        e.to_string()
    }

    #[test]
    fn threads_are_started_by_this_binary() {
        for on in [On::Local, On::Auto] {
            let mut r = request(on);
            assert_eq!(shell(&r, &facts(false, &[])), "/opt/phalanx train configs/digits.toml");
            r.ranks_per_node = Some(4);
            assert_eq!(shell(&r, &facts(false, &[])), "/opt/phalanx train configs/digits.toml --ranks 4");
        }
        // In an allocation too, when that is asked for.
        assert_eq!(
            Line::new(&request(On::Local), &facts(true, &["a", "b"])).unwrap().program,
            "/opt/phalanx"
        );
    }

    #[test]
    fn mpirun_is_told_when_ranks_share_cores() {
        let mut r = request(On::Mpirun);
        r.ranks_per_node = Some(2);
        assert_eq!(shell(&r, &facts(true, &[])), "mpirun -n 2 /opt/phalanx train configs/digits.toml");
        assert!(shell(&r, &facts(true, &["a"])).starts_with("mpirun -n 2 --oversubscribe /opt"));
        r.ranks_per_node = Some(3);
        assert!(shell(&r, &facts(true, &[])).starts_with("mpirun -n 3 --oversubscribe /opt/phalanx train"));
        let mpich = Facts { mpi: Some("MPICH Version: 4.0.2".into()), ..facts(true, &[]) };
        assert!(shell(&r, &mpich).starts_with("mpirun -n 3 /opt/phalanx train"));
    }

    #[test]
    fn srun_fills_the_allocation_or_asks_for_one() {
        let head = "srun --mpi=pmix --kill-on-bad-exit=1";
        let tail = "/opt/phalanx train configs/digits.toml";
        let inside = facts(true, &["n1", "n2", "n3"]);
        let mut r = request(On::Auto);
        assert_eq!(shell(&r, &inside), format!("{head} --nodes=3 --ntasks=3 --ntasks-per-node=1 {tail}"));
        (r.nodes, r.ranks_per_node) = (Some(2), Some(4));
        assert_eq!(shell(&r, &inside), format!("{head} --nodes=2 --ntasks=8 --ntasks-per-node=4 {tail}"));
        let mut r = Request { gpus_per_node: Some(8), ..request(On::Slurm) };
        (r.nodes, r.partition, r.time) = (Some(16), Some("big one".into()), Some("1-00:00:00".into()));
        assert_eq!(
            shell(&r, &facts(true, &[])),
            format!(
                "{head} --nodes=16 --ntasks=128 --ntasks-per-node=8 --gpus-per-node=8 '--partition=big one' \
                 --time=1-00:00:00 {tail}"
            )
        );
    }

    #[test]
    fn a_step_within_a_step_shares_its_cores() {
        let mut shell_of_srun = facts(true, &["n1"]);
        (shell_of_srun.place.launchers, shell_of_srun.place.world) = (vec![Launcher::Slurm], Some(1));
        assert!(shell(&request(On::Auto), &shell_of_srun).contains(" --overlap /opt/phalanx train"));
    }

    #[test]
    fn what_cannot_be_done_is_refused_with_the_fix() {
        let say = |on: On, change: &dyn Fn(&mut Request), facts: &Facts, texts: &[&str]| {
            let mut r = request(on);
            change(&mut r);
            let said = refused(&r, facts);
            assert!(texts.iter().all(|t| said.contains(t)), "{said}");
        };
        let (plain, mpi) = (facts(false, &[]), facts(true, &[]));
        let two = facts(true, &["a", "b"]);
        for on in [On::Mpirun, On::Slurm] {
            say(on, &|_| (), &plain, &["without MPI", "--features mpi", "--on local"]);
            say(on, &|r| r.own_ranks = Some(3), &mpi, &["--ranks 3", "--ranks-per-node"]);
        }
        for on in [On::Auto, On::Local, On::Mpirun] {
            say(on, &|r| r.nodes = Some(2), &mpi, &["--nodes 2", "--on slurm"]);
            say(on, &|r| r.partition = Some("p".into()), &mpi, &["--partition", "--on slurm"]);
            say(on, &|r| r.time = Some("1".into()), &mpi, &["--time"]);
            say(on, &|r| r.gpus_per_node = Some(1), &mpi, &["--gpus-per-node"]);
            let both = |r: &mut Request| (r.own_ranks, r.ranks_per_node) = (Some(3), Some(4));
            say(on, &both, &mpi, &["--ranks 3", "--ranks-per-node 4"]);
            say(on, &|r| r.requeue = true, &mpi, &["--requeue", "75"]);
        }
        say(On::Auto, &|r| r.nodes = Some(3), &two, &["--nodes 3", "job 17 of Slurm has 2"]);
        let mut ranked = facts(true, &[]);
        ranked.place.launchers = vec![Launcher::OpenMpi];
        ranked.place.world = Some(4);
        say(On::Local, &|_| (), &ranked, &["mpirun has started 4 processes"]);
        ranked.place.world = Some(1);
        assert!(Line::new(&request(On::Local), &ranked).is_ok());
    }

    #[test]
    fn words_survive_a_shell() {
        let words = ["", "a b", "it's", "$HOME", "a=b,c", "--x=/y.z", "*", "ä\n", "\\"];
        let line = Line { program: "printf".into(), args: words.map(String::from).to_vec() };
        let script = line.shell().replacen("printf", r"printf '%s\0'", 1);
        let out = Command::new("sh").args(["-c", &script]).output().unwrap();
        let said = String::from_utf8(out.stdout).unwrap();
        assert_eq!(said.split_terminator('\0').collect::<Vec<_>>(), words);
        assert_eq!(quoted("--x=/y.z"), "--x=/y.z");
    }

    #[test]
    fn what_the_system_tells_is_understood() {
        let cpu = |package: u32, core: u32| {
            format!("processor\t: 0\nphysical id\t: {package}\ncore id\t\t: {core}\n")
        };
        let text = [cpu(0, 0), cpu(0, 1), cpu(0, 0), cpu(1, 0)].join("\n");
        assert_eq!(cores_of(&text), 3);
        assert_eq!(cores_of("processor: 0\n\nprocessor: 1\n"), 0);
        assert!(ignores("Name:\tx\nSigIgn:\t0000000000000001\n", SIGHUP));
        assert!(!ignores("SigIgn:\t0000000000000002\n", SIGHUP) && !ignores("", SIGHUP));
        assert!(Facts::here(None).unwrap().cores >= 1);
    }
}
