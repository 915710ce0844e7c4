use phalanx_gpu::{Error, Gemm, Math, Type};

use crate::common::{buffer, context, decode, encode, numbers, stand_ins, with_settings};

const PLAIN: Gemm = Gemm {
    m: 5,
    n: 7,
    k: 9,
    a: Type::F32,
    b: Type::F32,
    c: Type::F32,
    trans_a: false,
    trans_b: false,
    lda: 9,
    ldb: 7,
    ldc: 7,
    batch: 1,
    stride_a: 0,
    stride_b: 0,
    stride_c: 0,
    accumulate: false,
    bias: None,
    relu: false,
    math: Math::F32,
};

/// The elements of the last matrix's end.
fn extent(rows: usize, columns: usize, ld: usize, batch: usize, stride: usize) -> usize {
    (batch - 1) * stride + (rows - 1) * ld + columns
}

fn check(g: &Gemm, alpha: f32) {
    let context = context();
    let (ar, ac) = if g.trans_a { (g.k, g.m) } else { (g.m, g.k) };
    let (br, bc) = if g.trans_b { (g.n, g.k) } else { (g.k, g.n) };
    let a = numbers(extent(ar, ac, g.lda, g.batch, g.stride_a), 1);
    let b = numbers(extent(br, bc, g.ldb, g.batch, g.stride_b), 2);
    let c = numbers(extent(g.m, g.n, g.ldc, g.batch, g.stride_c), 3);
    let bias = numbers(g.n, 4);
    let [a_on, b_on, c_on] =
        [(g.a, &a), (g.b, &b), (g.c, &c)].map(|(of, v)| buffer(&context, &encode(of, v)));
    let bias_on = g.bias.map(|of| buffer(&context, &encode(of, &bias)));
    let blas = context.blas().unwrap();
    for _ in 0..2 {
        context.upload(&c_on, 0, &encode(g.c, &c)).unwrap();
        blas.gemm(g, alpha, a_on.ptr(), b_on.ptr(), c_on.ptr(), bias_on.as_ref().map(|b| b.ptr())).unwrap();
        let got = decode(g.c, &context.download_all(&[(c_on.ptr(), c_on.len())]).unwrap());
        let mut wanted = c.clone();
        for z in 0..g.batch {
            for i in 0..g.m {
                for j in 0..g.n {
                    let at = |t: bool, r: usize, c: usize, ld: usize| if t { c * ld + r } else { r * ld + c };
                    let mut sum = 0.0;
                    for p in 0..g.k {
                        sum += a[z * g.stride_a + at(g.trans_a, i, p, g.lda)]
                            * b[z * g.stride_b + at(g.trans_b, p, j, g.ldb)];
                    }
                    let to = &mut wanted[z * g.stride_c + i * g.ldc + j];
                    *to = alpha * sum + if g.accumulate { *to } else { 0.0 };
                    *to += if g.bias.is_some() { bias[j] } else { 0.0 };
                    *to = if g.relu { to.max(0.0) } else { *to };
                }
            }
        }
        assert_eq!(got, wanted, "{g:?}");
    }
}

#[test]
#[ignore = "needs a GPU, or the stand-ins"]
fn products_row_major_with_every_transpose() {
    for (trans_a, trans_b) in [(false, false), (false, true), (true, false), (true, true)] {
        let lda = if trans_a { 5 } else { 9 };
        let ldb = if trans_b { 9 } else { 7 };
        check(&Gemm { trans_a, trans_b, lda, ldb, ..PLAIN }, 1.0);
        // Rows that are further apart than they are long.
        check(&Gemm { trans_a, trans_b, lda: lda + 3, ldb: ldb + 1, ldc: 12, ..PLAIN }, -2.0);
    }
}

#[test]
#[ignore = "needs a GPU, or the stand-ins"]
fn products_of_half_types_and_tf32() {
    for of in [Type::Bf16, Type::F16] {
        for c in [of, Type::F32] {
            let g = Gemm { m: 16, n: 8, k: 24, lda: 24, ldb: 8, ldc: 8, a: of, b: of, c, ..PLAIN };
            check(&g, 1.0);
            check(&Gemm { accumulate: true, ..g }, 1.0);
        }
    }
    check(&Gemm { m: 16, n: 8, k: 24, lda: 24, ldb: 8, ldc: 8, math: Math::Tf32, ..PLAIN }, 1.0);
}

#[test]
#[ignore = "needs a GPU, or the stand-ins"]
fn products_with_bias_and_relu() {
    check(&Gemm { bias: Some(Type::F32), ..PLAIN }, 1.0);
    check(&Gemm { relu: true, ..PLAIN }, 1.0);
    check(&Gemm { bias: Some(Type::F32), relu: true, accumulate: true, ..PLAIN }, 1.0);
    let half = Gemm { a: Type::Bf16, b: Type::Bf16, c: Type::Bf16, ..PLAIN };
    check(
        &Gemm { m: 8, n: 8, k: 8, lda: 8, ldb: 8, ldc: 8, bias: Some(Type::Bf16), relu: true, ..half },
        1.0,
    );
}

/// Negative numbers are cut off and what is not a number stays, whoever does it: the library only where it does.
#[test]
#[ignore = "needs a GPU, or the stand-ins"]
fn a_relu_behind_a_product_hides_nothing() {
    const SETTING: &str = "PHALANX_STANDIN_BLASLT_RELU";
    for makes in ["number", "zero"] {
        if with_settings("product::a_relu_behind_a_product_hides_nothing", &[(SETTING, makes)]) {
            for of in [Type::F32, Type::Bf16, Type::F16] {
                relu_hides_nothing(of, stand_ins().then(|| std::env::var(SETTING).unwrap() != "zero"));
            }
            return;
        }
    }
}

fn relu_hides_nothing(of: Type, does: Option<bool>) {
    let context = context();
    let g = Gemm { m: 8, n: 16, k: 24, lda: 24, ldb: 16, ldc: 16, a: of, b: of, c: of, ..PLAIN };
    let g = Gemm { bias: Some(of), ..g };
    let mut a = numbers(g.m * g.k, 1);
    a[2 * g.k + 3] = f32::NAN;
    let [a, b, bias] =
        [&a, &numbers(g.k * g.n, 2), &numbers(g.n, 4)].map(|v| buffer(&context, &encode(of, v)));
    let c = buffer(&context, &vec![0; g.m * g.n * of.size()]);
    let read = || decode(of, &context.download_all(&[(c.ptr(), c.len())]).unwrap());
    context.blas().unwrap().gemm(&g, 1.0, a.ptr(), b.ptr(), c.ptr(), Some(bias.ptr())).unwrap();
    let alone = read();
    for _ in 0..2 {
        let fused = context.gemm_relu(&g, a.ptr(), b.ptr(), c.ptr(), Some(bias.ptr())).unwrap();
        assert!(does.is_none_or(|does| fused == does), "{of:?}: {fused}");
        assert_eq!(context.fallbacks().iter().any(|f| f.starts_with("a ReLU behind products in")), !fused);
        let cut = |&x: &f32| if fused && x < 0.0 { 0.0 } else { x };
        let same = |(got, of): (f32, &f32)| got == cut(of) || got.is_nan() && of.is_nan();
        assert!(alone.iter().any(|x| *x < 0.0) && alone.iter().filter(|x| x.is_nan()).count() == g.n);
        assert!(read().into_iter().zip(&alone).all(same), "{of:?}: {:?} of {alone:?}", read());
    }
}

#[test]
#[ignore = "needs a GPU, or the stand-ins"]
fn products_in_batches() {
    let g = Gemm { batch: 3, stride_a: 45, stride_b: 63, stride_c: 35, ..PLAIN };
    check(&g, 1.0);
    check(&Gemm { stride_b: 0, accumulate: true, ..g }, 0.5);
}

#[test]
#[ignore = "needs a GPU, or the stand-ins"]
fn products_without_elements() {
    let context = context();
    let c = buffer(&context, &[1; 140]);
    let blas = context.blas().unwrap();
    let gemm = |g: &Gemm| blas.gemm(g, 1.0, c.ptr(), c.ptr(), c.ptr(), None);
    gemm(&Gemm { m: 0, ..PLAIN }).unwrap();
    gemm(&Gemm { batch: 0, ..PLAIN }).unwrap();
    gemm(&Gemm { k: 0, accumulate: true, ..PLAIN }).unwrap();
    assert_eq!(context.download_all(&[(c.ptr(), 140)]).unwrap(), [1; 140]);
    gemm(&Gemm { k: 0, ..PLAIN }).unwrap();
    assert_eq!(context.download_all(&[(c.ptr(), 140)]).unwrap(), [0; 140]);
    let e = gemm(&Gemm { bias: Some(Type::F32), ..PLAIN }).unwrap_err();
    assert!(matches!(e, Error::Invalid { .. }), "{e}");
}
