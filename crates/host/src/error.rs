use std::ops::Range;

/// What can go wrong with host memory, instruction sets and kernels' operands.
#[derive(Debug, Clone, thiserror::Error)]
pub enum Error {
    /// Two overlapping uses of one arena range, at least one of them for writing.
    #[error(
        "arena bytes {wanted:?} are in use ({held:?} is borrowed {how}); a bucket or a parameter is used twice"
    )]
    Borrowed {
        /// The byte range that was asked for.
        wanted: Range<usize>,
        /// The byte range that is held.
        held: Range<usize>,
        /// `"for writing"` or `"for reading"`.
        how: &'static str,
    },
    /// A range that reaches past the arena's end, or is not aligned for its element type.
    #[error("arena range {range:?} does not fit an arena of {len} bytes")]
    OutOfRange {
        /// The byte range that was asked for.
        range: Range<usize>,
        /// The arena's size in bytes.
        len: usize,
    },
    /// The system refused memory.
    #[error("out of host memory: {bytes} bytes were asked for")]
    OutOfMemory {
        /// Size of the request in bytes.
        bytes: usize,
    },
    /// An instruction set was forced that this processor does not have, or that does not exist.
    #[error("instruction set {wanted:?} is not usable here: {why} (this processor offers {offers})")]
    Isa {
        /// The name that was asked for.
        wanted: String,
        /// What stands in the way.
        why: &'static str,
        /// The sets that can be chosen, comma separated.
        offers: String,
    },
    /// The compute threads could not be started.
    #[error("cannot start {threads} compute threads: {reason}")]
    Threads {
        /// The number that was asked for.
        threads: usize,
        /// The system's answer.
        reason: String,
    },
    /// A matrix that does not fit its slice, or an output with coinciding elements.
    #[error(
        "a {rows}x{cols} matrix with strides {row_stride}, {col_stride} does not go with a slice of {len}: {why}"
    )]
    Matrix {
        /// Rows.
        rows: usize,
        /// Columns.
        cols: usize,
        /// Elements from a row to the next.
        row_stride: usize,
        /// Elements from a column to the next.
        col_stride: usize,
        /// Elements of the slice.
        len: usize,
        /// What is wrong.
        why: &'static str,
    },
    /// The sizes of a matrix product do not fit each other.
    #[error("cannot multiply {a:?} by {b:?} into {c:?} (rows, columns); C[m,n] takes A[m,k] and B[k,n]")]
    Product {
        /// Rows and columns of the left factor.
        a: (usize, usize),
        /// Rows and columns of the right factor.
        b: (usize, usize),
        /// Rows and columns of the result.
        c: (usize, usize),
    },
    /// A convolution whose sizes make no sense.
    #[error("{shape}: {why}")]
    Convolution {
        /// All sizes.
        shape: String,
        /// What is wrong.
        why: &'static str,
    },
    /// A convolution's operand of the wrong size.
    #[error("the {operand} has {found} elements, but {shape} takes {want}")]
    Operand {
        /// Which operand.
        operand: &'static str,
        /// Elements that the shape asks for.
        want: usize,
        /// Elements of the slice.
        found: usize,
        /// All sizes.
        shape: String,
    },
}

/// Result of this crate.
pub type Result<T> = std::result::Result<T, Error>;
