//! Who may depend on whom, and that every crate takes the workspace's lints.

use toml::{Table, Value};

use super::{Tree, Violation};

const RULE: &str = "arrows";

/// Each crate of ours and the crates of ours that it may use. ARCHITECTURE.md tells the reasons; in
/// short: `tensor` never hears of ranks, `comm` and `data` never hear of tensors, `nn` never hears of
/// files or ranks, only `train` knows them all, and `cli` has no logic.
const ARROWS: &[(&str, &[&str])] = &[
    ("phalanx-host", &[]),
    ("phalanx-gpu", &[]),
    ("phalanx-launch", &[]),
    ("phalanx-tensor", &["phalanx-host", "phalanx-gpu"]),
    ("phalanx-comm", &["phalanx-host", "phalanx-gpu"]),
    ("phalanx-data", &["phalanx-host"]),
    ("phalanx-nn", &["phalanx-tensor", "phalanx-host", "phalanx-gpu"]),
    (
        "phalanx-train",
        &["phalanx-nn", "phalanx-data", "phalanx-comm", "phalanx-tensor", "phalanx-host", "phalanx-gpu"],
    ),
    // `data` for `phalanx data fetch` alone.
    ("phalanx", &["phalanx-train", "phalanx-launch", "phalanx-data"]),
    ("xtask", &[]),
];

/// A member's manifest: its path, its text and what it says.
type Manifest<'a> = (&'a str, &'a str, Table);

/// The manifests of the members; one that cannot be read is a violation.
fn manifests(tree: &Tree) -> (Vec<Manifest<'_>>, Vec<Violation>) {
    let (mut read, mut broken) = (Vec::new(), Vec::new());
    for (path, text) in tree.texts().filter(|(p, _)| p.ends_with("/Cargo.toml")) {
        match text.parse::<Table>() {
            Ok(table) => read.push((path, text, table)),
            Err(e) => {
                let line = e.span().map_or(1, |s| text[..s.start].lines().count().max(1));
                broken.push(Violation::new(path, line, RULE, e.message()));
            }
        }
    }
    (read, broken)
}

/// Every dependency between our crates follows an arrow, in whatever table it is declared.
pub(super) fn arrows(tree: &Tree) -> Vec<Violation> {
    let (manifests, mut found) = manifests(tree);
    for (path, text, table) in manifests {
        let Some(name) = table.get("package").and_then(|p| p.get("name")).and_then(Value::as_str) else {
            found.push(Violation::new(path, 1, RULE, "no [package] name"));
            continue;
        };
        let Some((_, allowed)) = ARROWS.iter().find(|(n, _)| *n == name) else {
            let line = line_of(text, "name");
            found.push(Violation::new(
                path,
                line,
                RULE,
                format!("`{name}` is not in xtask's table of arrows"),
            ));
            continue;
        };
        for dependency in dependencies(&table) {
            let ours = dependency == "xtask" || dependency == "phalanx" || dependency.starts_with("phalanx-");
            // A crate may name itself: that is how its own tests switch a feature on.
            if ours && dependency != name && !allowed.contains(&dependency.as_str()) {
                let may = if allowed.is_empty() { "none of ours".to_owned() } else { allowed.join(", ") };
                let message = format!("`{name}` must not depend on `{dependency}`; it may use {may}");
                found.push(Violation::new(path, line_of(text, &dependency), RULE, message));
            }
        }
    }
    found
}

/// The names of all packages that a manifest depends on, renamed ones by their true name.
fn dependencies(table: &Table) -> Vec<String> {
    let mut names = Vec::new();
    for (key, value) in table {
        let Some(inner) = value.as_table() else { continue };
        match key.as_str() {
            "dependencies" | "dev-dependencies" | "build-dependencies" => {
                names.extend(
                    inner
                        .iter()
                        .map(|(name, d)| d.get("package").and_then(Value::as_str).unwrap_or(name).to_owned()),
                );
            }
            "target" => names.extend(inner.values().filter_map(Value::as_table).flat_map(dependencies)),
            _ => {}
        }
    }
    names
}

/// The first line that declares `key` or names it.
fn line_of(text: &str, key: &str) -> usize {
    let starts =
        |l: &str| l.trim_start().strip_prefix(key).is_some_and(|rest| rest.starts_with(['.', ' ', '=']));
    let quoted = format!("\"{key}\"");
    text.lines()
        .position(starts)
        .or_else(|| text.lines().position(|l| l.contains(&quoted)))
        .map_or(1, |i| i + 1)
}

/// Every member says `[lints] workspace = true`.
pub(super) fn lints(tree: &Tree) -> Vec<Violation> {
    let takes =
        |t: &Table| t.get("lints").and_then(|l| l.get("workspace")).and_then(Value::as_bool) == Some(true);
    let (manifests, _) = manifests(tree);
    manifests
        .iter()
        .filter(|(_, _, table)| !takes(table))
        .map(|(path, ..)| Violation::new(path, 1, "lints", "add `[lints]` with `workspace = true`"))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn planted(name: &str, rest: &str) -> Vec<Violation> {
        arrows(&Tree::of(&[("crates/x/Cargo.toml", &format!("[package]\nname = \"{name}\"\n{rest}"))]))
    }

    #[test]
    fn an_arrow_against_the_table_is_found_in_every_kind_of_table() {
        for table in
            ["dependencies", "dev-dependencies", "build-dependencies", "target.'cfg(unix)'.dependencies"]
        {
            let found = planted(
                "phalanx-tensor",
                &format!("[{table}]\nhalf = \"2\"\nphalanx-comm.workspace = true\n"),
            );
            assert_eq!(found.len(), 1, "{table}");
            assert_eq!((found[0].line, found[0].rule), (5, "arrows"));
            assert!(found[0].message.contains("must not depend on `phalanx-comm`"), "{}", found[0]);
        }
    }

    #[test]
    fn a_renamed_dependency_is_seen_through() {
        let found = planted(
            "phalanx-data",
            "[dependencies]\nt = { package = \"phalanx-tensor\", path = \"../t\" }\n",
        );
        assert_eq!(found[0].line, 4);
    }

    #[test]
    fn allowed_arrows_pass() {
        assert_eq!(
            planted("phalanx-nn", "[dependencies]\nphalanx-tensor.workspace = true\nphalanx-host = {}\n"),
            []
        );
        assert_eq!(planted("phalanx", "[dependencies]\nphalanx-data.workspace = true\nclap = \"4\"\n"), []);
    }

    #[test]
    fn a_crate_without_a_row_and_a_broken_manifest_are_found() {
        assert!(planted("phalanx-extra", "")[0].message.contains("table of arrows"));
        let found = planted("phalanx-nn", "[dependencies]\nx = = 1\n");
        assert_eq!((found.len(), found[0].line), (1, 4));
    }

    #[test]
    fn every_arrow_of_the_table_points_to_a_row() {
        let rows: Vec<_> = ARROWS.iter().map(|(n, _)| *n).collect();
        assert!(ARROWS.iter().flat_map(|(_, to)| to.iter()).all(|to| rows.contains(to)));
    }

    #[test]
    fn a_crate_without_the_workspace_lints_is_found() {
        let manifest = |lints: &str| format!("[package]\nname = \"phalanx-nn\"\n{lints}");
        let check = |lints: &str| lints_of(&manifest(lints)).len();
        assert_eq!(check(""), 1);
        assert_eq!(check("[lints]\nworkspace = false\n"), 1);
        assert_eq!(check("[lints]\nworkspace = true\n"), 0);
    }

    fn lints_of(manifest: &str) -> Vec<Violation> {
        lints(&Tree::of(&[("crates/nn/Cargo.toml", manifest)]))
    }
}
