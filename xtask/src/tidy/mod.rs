//! The rules of the repository that no compiler checks.
//!
//! Every rule is a function from a [`Tree`] (the files and their text) to violations. It sees no disk,
//! so its tests plant violations in a tree of a few lines.

mod arrows;
mod code;
mod documents;
mod files;
mod source;
mod table;

use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail};

/// One broken rule at one place.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Violation {
    path: String,
    /// Counted from one.
    line: usize,
    rule: &'static str,
    message: String,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}: [{}] {}", self.path, self.line, self.rule, self.message)
    }
}

impl Violation {
    fn new(path: &str, line: usize, rule: &'static str, message: impl Into<String>) -> Self {
        Violation { path: path.to_owned(), line, rule, message: message.into() }
    }
}

struct File {
    bytes: usize,
    /// `None` when the file is not UTF-8.
    text: Option<String>,
}

/// The repository's files by their path from the root, with `/` between the parts.
#[derive(Default)]
pub(crate) struct Tree {
    files: BTreeMap<String, File>,
}

impl Tree {
    /// What git tracks, and what it would track after `git add`, so that a new file is judged before
    /// it is committed.
    fn read(root: &Path) -> Result<Tree> {
        let out = Command::new("git")
            .current_dir(root)
            .args(["ls-files", "-z", "--cached", "--others", "--exclude-standard"])
            .output()
            .context("git did not start; tidy asks it which files belong to the repository")?;
        if !out.status.success() {
            bail!("git ls-files failed: {}", String::from_utf8_lossy(&out.stderr).trim());
        }
        let mut tree = Tree::default();
        for name in String::from_utf8(out.stdout)?.split_terminator('\0') {
            let path = root.join(name);
            // A link is judged where it points to; a file deleted but not yet committed is no file.
            if !path.symlink_metadata().is_ok_and(|m| m.is_file()) {
                continue;
            }
            let bytes = std::fs::read(&path).with_context(|| format!("reading {name}"))?;
            tree.insert(name, bytes);
        }
        Ok(tree)
    }

    fn insert(&mut self, name: &str, bytes: Vec<u8>) {
        let file = File { bytes: bytes.len(), text: String::from_utf8(bytes).ok() };
        self.files.insert(name.to_owned(), file);
    }

    /// The files that are text, with their paths.
    fn texts(&self) -> impl Iterator<Item = (&str, &str)> {
        self.files.iter().filter_map(|(path, f)| Some((path.as_str(), f.text.as_deref()?)))
    }

    /// Whether there is a file or a folder of that path.
    fn has(&self, path: &str) -> bool {
        self.files.contains_key(path) || {
            let folder = format!("{path}/");
            self.files.range(folder.clone()..).next().is_some_and(|(p, _)| p.starts_with(&folder))
        }
    }

    #[cfg(test)]
    fn of(files: &[(&str, &str)]) -> Tree {
        let mut tree = Tree::default();
        for (name, text) in files {
            tree.insert(name, text.as_bytes().to_vec());
        }
        tree
    }
}

/// Every violation in the tree, in order of place.
pub(crate) fn check(tree: &Tree) -> Vec<Violation> {
    let rules = [
        arrows::arrows,
        arrows::lints,
        code::lengths,
        code::rooms,
        code::unfinished,
        documents::names,
        files::machine_paths,
        files::sizes,
        table::rows,
    ];
    let mut found: Vec<Violation> = rules.iter().flat_map(|rule| rule(tree)).collect();
    found.sort();
    found
}

/// Prints every violation of the repository at `root`; whether there was none.
pub(crate) fn run(root: &Path) -> Result<bool> {
    let tree = Tree::read(root)?;
    let found = check(&tree);
    for violation in &found {
        println!("{violation}");
    }
    println!("tidy: {} files, {} violations", tree.files.len(), found.len());
    Ok(found.is_empty())
}

/// Whether `path` fits `pattern`, part by part: `**` stands for any number of parts, `*` inside a part
/// for any letters.
fn fits(pattern: &str, path: &str) -> bool {
    fn parts(pattern: &[&str], path: &[&str]) -> bool {
        match (pattern, path) {
            ([], []) => true,
            (["**", rest @ ..], _) => {
                parts(rest, path) || path.split_first().is_some_and(|(_, tail)| parts(pattern, tail))
            }
            ([p, ps @ ..], [s, ss @ ..]) => letters(p, s) && parts(ps, ss),
            _ => false,
        }
    }
    fn letters(pattern: &str, s: &str) -> bool {
        match pattern.split_once('*') {
            None => pattern == s,
            Some((head, tail)) => s.strip_prefix(head).is_some_and(|rest| {
                (0..=rest.len()).filter(|&i| rest.is_char_boundary(i)).any(|i| letters(tail, &rest[i..]))
            }),
        }
    }
    parts(&pattern.split('/').collect::<Vec<_>>(), &path.split('/').collect::<Vec<_>>())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_match_part_by_part() {
        assert!(fits("crates/gpu/**", "crates/gpu/src/a/b.rs"));
        assert!(fits("crates/comm/src/**/peer*.rs", "crates/comm/src/peer.rs"));
        assert!(fits("crates/comm/src/**/peer*.rs", "crates/comm/src/threads/peer_memory.rs"));
        assert!(fits("crates/tensor/src/ops/*/cpu.rs", "crates/tensor/src/ops/conv/cpu.rs"));
        assert!(!fits("crates/tensor/src/ops/*/cpu.rs", "crates/tensor/src/ops/cpu.rs"));
        assert!(!fits("crates/tensor/src/ops/*/cpu.rs", "crates/tensor/src/ops/a/b/cpu.rs"));
        assert!(!fits("crates/gpu/**", "crates/gpu2/src/lib.rs"));
    }

    #[test]
    fn folders_exist_through_their_files() {
        let tree = Tree::of(&[("crates/host/src/lib.rs", ""), ("crates/host-tools/x", "")]);
        assert!(tree.has("crates/host") && tree.has("crates/host/src/lib.rs"));
        assert!(!tree.has("crates/hos") && !tree.has("crates/host/s"));
    }

    #[test]
    fn violations_read_as_places() {
        let v = Violation::new("a/b.rs", 7, "todo", "finish it");
        assert_eq!(v.to_string(), "a/b.rs:7: [todo] finish it");
    }

    #[test]
    fn a_clean_tree_has_no_violation() {
        let manifest = "[package]\nname = \"phalanx-host\"\n[lints]\nworkspace = true\n";
        let tree = Tree::of(&[
            ("crates/host/Cargo.toml", manifest),
            ("crates/host/src/lib.rs", "//! Host.\n"),
            ("README.md", "See `crates/host/src/lib.rs`.\n"),
        ]);
        assert_eq!(check(&tree), []);
    }

    #[test]
    fn this_repository_can_be_read() {
        let root = crate::root().unwrap();
        if root.join(".git").exists() {
            assert!(Tree::read(&root).unwrap().has("xtask/src/tidy"));
        }
    }
}
