//! Rules about Rust source: lengths, the rooms of `unsafe`, nothing left unfinished.

use super::source::{Line, lines};
use super::{Tree, Violation, fits};

/// The longest source file that needs no reason.
const LONGEST: usize = 600;

/// Files that may be longer, and why they are not split.
const LONG_FILES: &[(&str, &str)] = &[];

/// Where `unsafe` may stand.
const ROOMS: &[&str] = &[
    // The flat arena and the pool of buffers: memory whose borrows are checked at run time.
    "crates/host/src/arena.rs",
    "crates/host/src/pool.rs",
    // Pieces of a slice, each for one task.
    "crates/host/src/workers.rs",
    // Index files, mapped.
    "crates/data/src/shards/map.rs",
    // CPU kernels in SIMD intrinsics.
    "crates/host/src/simd/**",
    "crates/host/src/gemm/**",
    "crates/host/src/conv/**",
    "crates/tensor/src/ops/*/cpu.rs",
    // Sums over columns and elementary functions, which several families share.
    "crates/tensor/src/ops/columns.rs",
    "crates/tensor/src/ops/elementwise/math.rs",
    "crates/nn/src/optim/cpu.rs",
    // Memory of the other ranks of this process.
    "crates/comm/src/**/peer*.rs",
    // Foreign functions of MPI, and the few of the system that it needs.
    "crates/comm/src/mpi/ffi.rs",
    // Loops over pixels in SIMD intrinsics.
    "crates/data/src/picture/simd.rs",
    "crates/data/src/picture/jpeg/simd.rs",
    // Foreign functions of CUDA.
    "crates/gpu/**",
];

fn sources(tree: &Tree) -> impl Iterator<Item = (&str, &str)> {
    tree.texts().filter(|(path, _)| path.ends_with(".rs"))
}

/// No source file is longer than [`LONGEST`] lines unless it is listed with a reason.
pub(super) fn lengths(tree: &Tree) -> Vec<Violation> {
    lengths_except(tree, LONG_FILES)
}

fn lengths_except(tree: &Tree, listed: &[(&str, &str)]) -> Vec<Violation> {
    let mut found = Vec::new();
    for (path, text) in sources(tree) {
        let count = text.lines().count();
        let known = listed.iter().any(|(p, _)| *p == path);
        if count > LONGEST && !known {
            let message =
                format!("{count} lines; split it, or list it in xtask with a reason (limit {LONGEST})");
            found.push(Violation::new(path, LONGEST + 1, "length", message));
        } else if count <= LONGEST && known {
            found.push(Violation::new(
                path,
                1,
                "length",
                "is short again: take it off xtask's list of long files",
            ));
        }
    }
    for (path, _) in listed.iter().filter(|(p, _)| !tree.has(p)) {
        found.push(Violation::new(path, 1, "length", "is on xtask's list of long files but does not exist"));
    }
    found
}

/// `unsafe` stands only in its rooms, and every unsafe block and implementation says why it is sound.
pub(super) fn rooms(tree: &Tree) -> Vec<Violation> {
    let mut found = Vec::new();
    for (path, text) in sources(tree) {
        let room = ROOMS.iter().any(|r| fits(r, path));
        let lines = lines(text);
        for (i, line) in lines.iter().enumerate() {
            for after in line.words("unsafe") {
                if !room {
                    let message = "`unsafe` outside its rooms, which xtask/src/tidy/code.rs lists";
                    found.push(Violation::new(path, i + 1, "unsafe", message));
                } else if needs_reason(after, &lines[i + 1..]) && !has_reason(&lines, i) {
                    found.push(Violation::new(
                        path,
                        i + 1,
                        "safety",
                        "no `SAFETY:` comment above this `unsafe`",
                    ));
                }
            }
        }
    }
    found
}

/// Whether the word opens a block or an implementation. Functions and traits state their contract in
/// their documentation, which clippy checks.
fn needs_reason(after: &str, below: &[Line]) -> bool {
    let rest = std::iter::once(after).chain(below.iter().map(|l| l.code.as_str()));
    let next = rest.map(str::trim_start).find(|s| !s.is_empty()).unwrap_or("");
    next.starts_with('{') || next.strip_prefix("impl").is_some_and(|r| r.starts_with([' ', '<']))
}

/// Whether a comment with the reason stands on the line or above the statement that the line belongs to.
fn has_reason(lines: &[Line], at: usize) -> bool {
    if lines[at].comment.contains("SAFETY:") {
        return true;
    }
    for line in lines[..at].iter().rev() {
        if line.comment.contains("SAFETY:") {
            return true;
        }
        let code = line.code.trim();
        let ends_arm = code.contains("=>") && code.ends_with(',');
        if ends_arm || code.ends_with([';', '{', '}']) || code.ends_with("},") {
            return false;
        }
    }
    false
}

/// Nothing is left to be done later by a macro that panics.
pub(super) fn unfinished(tree: &Tree) -> Vec<Violation> {
    let mut found = Vec::new();
    for (path, text) in sources(tree) {
        for (i, line) in lines(text).iter().enumerate() {
            for name in ["todo", "unimplemented"] {
                if line.words(name).any(|after| after.starts_with('!')) {
                    found.push(Violation::new(path, i + 1, "todo", format!("`{name}!` left in the source")));
                }
            }
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    const ROOM: &str = "crates/host/src/gemm/kernel.rs";

    fn places(found: &[Violation]) -> Vec<(usize, &str)> {
        found.iter().map(|v| (v.line, v.rule)).collect()
    }

    #[test]
    fn a_long_file_is_found_unless_it_is_listed() {
        let long = "//\n".repeat(LONGEST + 1);
        let tree = Tree::of(&[
            ("crates/nn/src/zoo.rs", &long),
            ("crates/nn/src/lib.rs", "//\n"),
            ("notes.md", &long),
        ]);
        assert_eq!(places(&lengths(&tree)), [(601, "length")]);
        assert_eq!(lengths_except(&tree, &[("crates/nn/src/zoo.rs", "one table")]), []);
        assert!(
            lengths_except(&tree, &[("crates/nn/src/lib.rs", "")])
                .iter()
                .any(|v| v.message.contains("short again"))
        );
        assert!(lengths_except(&tree, &[("gone.rs", "")]).iter().any(|v| v.path == "gone.rs"));
        let edge = Tree::of(&[("a.rs", "//\n".repeat(LONGEST).as_str())]);
        assert_eq!(lengths(&edge), []);
    }

    #[test]
    fn unsafe_outside_its_rooms_is_found_even_with_a_reason() {
        let text = "fn f() {\n    // SAFETY: none needed.\n    unsafe { g() }\n}\n";
        for path in ["crates/nn/src/lib.rs", "crates/tensor/src/ops/cpu.rs", "crates/host/src/rng.rs"] {
            assert_eq!(places(&rooms(&Tree::of(&[(path, text)]))), [(3, "unsafe")], "{path}");
        }
        for path in
            [ROOM, "crates/comm/src/threads/peer.rs", "crates/gpu/src/a/b.rs", "crates/host/src/arena.rs"]
        {
            assert_eq!(rooms(&Tree::of(&[(path, text)])), [], "{path}");
        }
    }

    #[test]
    fn words_in_comments_strings_and_names_are_no_unsafe() {
        let text = "#![deny(unsafe_op_in_unsafe_fn)]\n// unsafe\nlet s = \"unsafe { }\";\n";
        assert_eq!(rooms(&Tree::of(&[("crates/nn/src/lib.rs", text)])), []);
    }

    #[test]
    fn an_unsafe_block_or_implementation_without_a_reason_is_found() {
        let cases = [
            ("fn f() {\n    unsafe { g() }\n}\n", vec![(2, "safety")]),
            ("unsafe impl Send for A {}\n", vec![(1, "safety")]),
            ("// SAFETY: one.\nunsafe impl Send for A {}\nunsafe impl Sync for A {}\n", vec![(3, "safety")]),
            ("// SAFETY: one.\nlet a = 1;\nlet b = unsafe { *p };\n", vec![(3, "safety")]),
            ("fn f() {\n    let a = unsafe\n    {\n        *p\n    };\n}\n", vec![(2, "safety")]),
            (
                "match i {\n    // SAFETY: one.\n    A => unsafe { a() },\n    B => unsafe { b() },\n}\n",
                vec![(4, "safety")],
            ),
        ];
        for (text, expected) in cases {
            assert_eq!(places(&rooms(&Tree::of(&[(ROOM, text)]))), expected, "{text}");
        }
    }

    #[test]
    fn a_reason_above_the_statement_counts() {
        for text in [
            "// SAFETY: p is valid,\n// as the caller says.\nlet a = unsafe { *p };\n",
            "// SAFETY: p is valid.\nlet a = f(\n    1,\n    unsafe { *p },\n);\n",
            "// SAFETY: two blocks, one reason.\nlet a = unsafe { *p } + unsafe { *q };\n",
            "let a = unsafe { *p }; // SAFETY: p is valid.\n",
            "/// # Safety\n/// `p` is valid.\nunsafe fn f(p: *const u8) {}\n",
            "// SAFETY: the types have no padding.\n#[cfg(unix)]\nunsafe impl Pod for A {}\n",
        ] {
            assert_eq!(rooms(&Tree::of(&[(ROOM, text)])), [], "{text}");
        }
    }

    #[test]
    fn unfinished_code_is_found() {
        let text =
            concat!("fn f() {\n    to", "do!()\n}\n// to", "do!()\nfn g() { unimplemented", "!(\"x\") }\n");
        let found = unfinished(&Tree::of(&[("crates/nn/src/lib.rs", text)]));
        assert_eq!(places(&found), [(2, "todo"), (5, "todo")]);
    }
}
