//! Rules about any file: no paths of one person's machine, nothing large.

use super::{Tree, Violation};

/// The largest file that belongs in the repository.
const LARGEST: usize = 300 * 1024;

/// Folders of one person's machine, in halves: this file must not hold what it looks for.
const PERSONAL: [&str; 4] =
    [concat!("/ho", "me/"), concat!("/ro", "ot/"), concat!("/wo", "rk/"), concat!("/Us", "ers/")];

/// No file names an absolute path below a home or work folder: it would be true on one machine only.
pub(super) fn machine_paths(tree: &Tree) -> Vec<Violation> {
    let mut found = Vec::new();
    for (path, text) in tree.texts() {
        for (i, line) in text.lines().enumerate() {
            for folder in PERSONAL.iter().filter(|f| names(line, f)) {
                let message = format!("a path of one machine, below `{folder}`");
                found.push(Violation::new(path, i + 1, "machine-path", message));
            }
        }
    }
    found
}

/// Whether `folder` starts an absolute path in `line`, rather than being the middle of a longer path
/// (`src/home/x`), an address or a variable's tail (`$ROOT/work/x`, `${X}/work/x`, `~/work/x`).
fn names(line: &str, folder: &str) -> bool {
    let inside = |c: char| c.is_alphanumeric() || "_-./~})*>".contains(c);
    line.match_indices(folder).any(|(at, _)| !line[..at].ends_with(inside))
}

/// No file is larger than [`LARGEST`]: data sets are fetched, results are small.
pub(super) fn sizes(tree: &Tree) -> Vec<Violation> {
    let large = tree.files.iter().filter(|(_, f)| f.bytes > LARGEST);
    large
        .map(|(path, f)| {
            Violation::new(
                path,
                1,
                "size",
                format!("{} KB; the limit is {} KB", f.bytes / 1024, LARGEST / 1024),
            )
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_machine_path_is_found_in_any_text_file() {
        for folder in PERSONAL {
            for (before, after) in [("", "x"), ("see `", "x`"), ("PATH=", "bin"), ("a:", "b"), ("\"", "c\"")]
            {
                let text = format!("fine\n{before}{folder}{after}\n");
                let found = machine_paths(&Tree::of(&[("tests/a.sh", &text)]));
                assert_eq!((found.len(), found[0].line), (1, 2), "{text}");
            }
        }
    }

    #[test]
    fn the_middle_of_a_path_is_no_machine_path() {
        for folder in PERSONAL {
            for before in ["crates", "https://a.org", "$ROOT", "${ROOT}", "~", ".", "$(pwd)"] {
                let text = format!("{before}{folder}x\n");
                assert_eq!(machine_paths(&Tree::of(&[("a.md", &text)])), [], "{text}");
            }
        }
    }

    #[test]
    fn a_large_file_is_found_even_when_it_is_not_text() {
        let mut tree = Tree::default();
        tree.insert("data.bin", vec![0xff; LARGEST + 1]);
        tree.insert("fine.bin", vec![0xff; LARGEST]);
        let found = sizes(&tree);
        assert_eq!((found.len(), found[0].path.as_str()), (1, "data.bin"));
    }
}
