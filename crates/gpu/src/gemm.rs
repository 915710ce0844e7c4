/// Element types that the libraries compute on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Type {
    /// 32-bit IEEE.
    F32,
    /// bfloat16.
    Bf16,
    /// 16-bit IEEE.
    F16,
}

impl Type {
    /// Bytes of an element.
    pub const fn size(self) -> usize {
        match self {
            Type::F32 => 4,
            Type::Bf16 | Type::F16 => 2,
        }
    }

    /// Whether an element's bytes are not a number.
    pub(crate) fn is_nan(self, bytes: &[u8]) -> bool {
        let bits = bytes.iter().rev().fold(0u32, |bits, &b| bits << 8 | u32::from(b));
        match self {
            Type::F32 => f32::from_bits(bits).is_nan(),
            Type::Bf16 => f32::from_bits(bits << 16).is_nan(),
            // Beyond infinity, whose mantissa is 0.
            Type::F16 => bits & 0x7fff > 0x7c00,
        }
    }
}

/// How f32 operands are multiplied.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Math {
    /// In f32.
    F32,
    /// Rounded to TF32 (10 bits of mantissa), on tensor cores.
    Tf32,
}

/// `C[m,n] = alpha · op(A)[m,k] · op(B)[k,n] + (accumulate ? C : 0) (+ bias[n]) (then relu)`, all row-major, sums in
/// f32. Leading dimensions (of the matrices as stored) and strides between a batch's matrices are in elements.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Gemm {
    /// Rows of C.
    pub m: usize,
    /// Columns of C.
    pub n: usize,
    /// Length of the sums.
    pub k: usize,
    /// Type of A.
    pub a: Type,
    /// Type of B.
    pub b: Type,
    /// Type of C.
    pub c: Type,
    /// A is stored as `[k, m]`.
    pub trans_a: bool,
    /// B is stored as `[n, k]`.
    pub trans_b: bool,
    /// Elements from one stored row of A to the next.
    pub lda: usize,
    /// The same of B.
    pub ldb: usize,
    /// The same of C.
    pub ldc: usize,
    /// Number of products; 1 for a single one.
    pub batch: usize,
    /// Elements from one A to the next; 0 for the same A in each.
    pub stride_a: usize,
    /// The same of B.
    pub stride_b: usize,
    /// The same of C.
    pub stride_c: usize,
    /// Adds to what C holds.
    pub accumulate: bool,
    /// Type of the bias, if there is one.
    pub bias: Option<Type>,
    /// Takes the positive part at the end.
    pub relu: bool,
    /// How f32 operands are multiplied.
    pub math: Math,
}
