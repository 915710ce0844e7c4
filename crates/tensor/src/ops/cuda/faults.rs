//! Indices outside their axis, which kernels find when the op's call has long returned.

use phalanx_gpu::{Args, Context, Fault};

use crate::{Error, Result};

/// The ops whose kernels report, in the order of their numbers from 1 on.
const OPS: [&str; 13] = [
    "cross_entropy",
    "nll",
    "multi_margin",
    "index_select",
    "gather",
    "embedding",
    "index_add",
    "scatter_add",
    "one_hot",
    "max_unpool1d",
    "max_unpool2d",
    "max_unpool3d",
    "mix",
];

/// A kernel's last two arguments: where it reports, and the number of its op.
pub(crate) fn args(gpu: &Context, args: Args, op: &str) -> Result<Args> {
    let number = OPS.iter().position(|o| *o == op).map_or(OPS.len(), |i| i) as i32 + 1;
    Ok(args.ptr(gpu.faults()?.ptr()).i32(number))
}

/// Fails when a kernel that has been waited for has reported something.
pub(crate) fn check(gpu: &Context) -> Result<()> {
    gpu.faults()?.take().map_or(Ok(()), |f| Err(error(f)))
}

fn error(Fault { op, limit, position, index }: Fault) -> Error {
    let op = usize::try_from(op - 1).ok().and_then(|i| OPS.get(i)).copied().unwrap_or("kernel");
    Error::Index { op, index, position: position.max(0) as usize, limit: limit.max(0) as usize }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_is_the_error_of_its_op() {
        let of = |op| error(Fault { op, limit: 10, position: 3, index: -1 });
        let Error::Index { op: "gather", index: -1, position: 3, limit: 10 } = of(5) else {
            panic!("{:?}", of(5))
        };
        assert!(matches!(of(14), Error::Index { op: "kernel", .. }));
    }
}
