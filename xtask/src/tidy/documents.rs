//! Documents name only files that exist.

use super::{Tree, Violation};

/// Endings by which a name in a document is known to mean a file.
const ENDINGS: &[&str] =
    &["rs", "toml", "md", "sh", "py", "json", "cu", "yml", "yaml", "lock", "txt", "jsonl", "safetensors"];

/// What a run, a data set or a build writes: documents speak of it, the repository does not hold it.
const WRITTEN: &[&str] = &[
    "config.toml",
    "env.json",
    "summary.json",
    "metrics.jsonl",
    "algorithms.json",
    "quarantine.json",
    "quarantine.jsonl",
    "state.json",
    "dataset.json",
    "model.safetensors",
    "ema.safetensors",
    "failure.txt",
    "task.safetensors",
    "optimizer.safetensors",
];

/// Folders that a run or a build makes.
const WRITTEN_BELOW: &[&str] = &["target", "runs", "data", "checkpoints", "ledger"];

/// Every file that a document names in back ticks, as the target of a link, or in a shell block exists.
///
/// A name that says it is an example (`<family>`, `NAME`, `*`, `…`) is left alone, and so is what a run
/// writes. A path may be given from the root, from the document's folder, or by its tail
/// (`ops/conv/cpu.rs`).
pub(super) fn names(tree: &Tree) -> Vec<Violation> {
    let mut found = Vec::new();
    for (path, text) in tree.texts().filter(|(p, _)| p.ends_with(".md")) {
        let folder = path.rsplit_once('/').map_or("", |(folder, _)| folder);
        let mut fence: Option<bool> = None;
        for (i, line) in text.lines().enumerate() {
            if let Some(info) = line.trim_start().strip_prefix("```") {
                let shell = ["sh", "bash", "console"].contains(&info.trim());
                fence = if fence.is_some() { None } else { Some(shell) };
                continue;
            }
            let named: Vec<&str> = match fence {
                None => spans(line).into_iter().filter(|s| is_file(tree, s)).chain(links(line)).collect(),
                // Commands mix paths with names of every kind: only what starts in one of our folders counts.
                Some(true) => line.split_whitespace().filter(|w| is_ours(tree, w)).collect(),
                Some(false) => Vec::new(),
            };
            for name in named.into_iter().filter(|n| !exists(tree, folder, n)) {
                let message = format!("`{name}` does not exist");
                found.push(Violation::new(path, i + 1, "documents", message));
            }
        }
    }
    found
}

/// What a line holds between single back ticks.
fn spans(line: &str) -> Vec<&str> {
    line.split('`').skip(1).step_by(2).collect()
}

/// The targets of a line's links that are no addresses.
fn links(line: &str) -> impl Iterator<Item = &str> {
    line.match_indices("](").filter_map(move |(at, open)| {
        let target = line[at + open.len()..].split(')').next()?.split('#').next()?;
        (!target.is_empty() && !target.contains(':')).then_some(target)
    })
}

/// The name without what may surround a path: `./`, a closing slash, a line number.
fn bare(name: &str) -> &str {
    let name = name.strip_prefix("./").unwrap_or(name).trim_end_matches('/');
    match name.rsplit_once(':') {
        Some((head, line)) if line.parse::<usize>().is_ok() => head,
        _ => name,
    }
}

/// Whether a back-ticked text means a file of the repository.
fn is_file(tree: &Tree, text: &str) -> bool {
    let name = bare(text);
    let ending = name.rsplit_once('.').map(|(head, e)| !head.is_empty() && ENDINGS.contains(&e));
    (name.contains('/') && is_ours(tree, text))
        || (is_plain(name) && ending == Some(true) && !is_written(name))
}

/// Whether a text is a path that starts in a folder of the repository's root.
fn is_ours(tree: &Tree, text: &str) -> bool {
    let name = bare(text);
    let Some((first, _)) = name.split_once('/') else { return false };
    is_plain(name) && tree.has(first) && !is_written(name)
}

/// Whether a text could be a path at all, and is no placeholder, pattern or command.
fn is_plain(name: &str) -> bool {
    let part = |p: &str| {
        let shouts =
            p.len() > 1 && p.chars().all(|c| c.is_ascii_uppercase() || c == '_' || c.is_ascii_digit());
        !p.is_empty() && !shouts
    };
    name.chars().all(|c| c.is_ascii_alphanumeric() || "._-/".contains(c))
        && !name.starts_with(['/', '-'])
        && !name.contains("...")
        && !name.contains("NNN")
        && name.split('/').all(part)
}

fn is_written(name: &str) -> bool {
    let first = name.split('/').next().unwrap_or(name);
    let last = name.rsplit('/').next().unwrap_or(name);
    WRITTEN_BELOW.contains(&first) || WRITTEN.contains(&last)
}

fn exists(tree: &Tree, folder: &str, name: &str) -> bool {
    let name = bare(name);
    let tail = format!("/{name}");
    tree.has(name) || tree.has(&join(folder, name)) || tree.files.keys().any(|p| p.ends_with(&tail))
}

/// `name` as seen from `folder`, with `..` taken away.
fn join(folder: &str, name: &str) -> String {
    let mut parts: Vec<&str> = folder.split('/').filter(|p| !p.is_empty()).collect();
    for part in name.split('/') {
        if part == ".." {
            parts.pop();
        } else {
            parts.push(part);
        }
    }
    parts.join("/")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(document: &str) -> Vec<(usize, String)> {
        let tree = Tree::of(&[
            ("README.md", document),
            ("LICENSE-MIT", ""),
            ("crates/tensor/src/ops/conv/cpu.rs", ""),
            ("crates/tensor/src/lib.rs", ""),
            ("configs/digits.toml", ""),
            ("tests/run", ""),
        ]);
        names(&tree).into_iter().map(|v| (v.line, v.message)).collect()
    }

    #[test]
    fn a_name_of_no_file_is_found_in_ticks_links_and_shell_blocks() {
        for text in [
            "see `crates/tensor/src/gone.rs`",
            "see `crates/gone`",
            "see `crates/gone/`",
            "the `gone.toml` file",
            "see `ops/conv/gpu.rs` there",
            "run `tests/walk`",
            "see `crates/tensor/src/gone.rs:12`",
            "a [link](crates/gone.md) and one [out](https://a.org/x.md)",
            "a [part](GONE.md#part)",
        ] {
            assert_eq!(check(&format!("# Title\n\n{text}\n")).len(), 1, "{text}");
            assert_eq!(check(&format!("# Title\n\n{text}\n"))[0].0, 3, "{text}");
        }
        let block = "```sh\nphalanx train configs/gone.toml --out runs/x\n```\n";
        assert_eq!(check(block), [(2, "`configs/gone.toml` does not exist".to_owned())]);
    }

    #[test]
    fn existing_files_pass_in_every_way_of_writing_them() {
        for text in [
            "`crates/tensor/src/lib.rs`, `crates/tensor/`, `./tests/run`, `configs/digits.toml`",
            "`ops/conv/cpu.rs`, `digits.toml`, `tensor/src/lib.rs:10`",
            "[licence](LICENSE-MIT), [top](#top), [code](crates/tensor)",
            "```sh\ncargo run --release -- train configs/digits.toml\ntests/run\n```",
        ] {
            assert_eq!(check(text), [], "{text}");
        }
    }

    #[test]
    fn commands_patterns_placeholders_and_written_files_are_left_alone() {
        for text in [
            "`cargo run -p xtask -- tidy`, `--set optimizer.lr=0.1`, `train.epochs`, `and/or`, `f32`",
            "`crates/*/Cargo.toml`, `ops/<family>/cpu.rs`, `crates/tensor/src/ops/FAMILY/cpu.rs`, `shard-NNNNN.dat`",
            "`summary.json`, `runs/digits/config.toml`, `checkpoints/step-00000120/state.json`, `/usr/share/x.txt`",
            "`target/release/phalanx`, `https://a.org/b.md`, `MIT/Apache-2.0`, `0.1.0`, `.rs`",
            "```rust\nlet x = include_str!(\"crates/gone.rs\");\n```",
            "```text\ncrates/gone.rs\n```",
        ] {
            assert_eq!(check(text), [], "{text}");
        }
    }

    #[test]
    fn names_count_from_the_documents_own_folder_too() {
        let tree = Tree::of(&[
            ("bench/NOTES.md", "`run.py` `../tests/run` [up](../README.md) `peers/no.py`"),
            ("bench/run.py", ""),
            ("README.md", ""),
            ("tests/run", ""),
        ]);
        let found = names(&tree);
        assert_eq!((found.len(), found[0].message.as_str()), (1, "`peers/no.py` does not exist"));
    }
}
