use crate::{Isa, Pool, Result, Workers};

/// What a kernel runs on: the instruction set, the compute threads and the memory of one CPU rank.
///
/// Results depend on [`Cpu::isa`] and never on the number of threads.
#[derive(Debug)]
pub struct Cpu {
    /// The instruction set that kernels are entered with.
    pub isa: Isa,
    /// The compute threads.
    pub workers: Workers,
    /// Where workspace (packed operands, padded images) comes from.
    pub pool: Pool,
}

impl Cpu {
    /// A CPU with `threads` compute threads (0 is taken as 1) and a pool of its own.
    pub fn new(isa: Isa, threads: usize) -> Result<Self> {
        Ok(Cpu { isa, workers: Workers::new(threads)?, pool: Pool::new() })
    }
}
