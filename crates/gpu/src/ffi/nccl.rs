//! NCCL's interface (`nccl.h`): its table comes with the collectives that use it.
