//! Every public op has a row in the op table.

use super::source::{Line, lines};
use super::{Tree, Violation};

/// Where ops are defined, and where their table is.
const OPS: &str = "crates/tensor/src/ops/";
const TABLE: &str = "crates/tensor/tests/table/";

/// Ops without a row, and why.
const WITHOUT_ROW: &[(&str, &str)] = &[
    ("arange", "takes no operand; crates/tensor/tests/special.rs has its values"),
    ("eye", "takes no operand; crates/tensor/tests/special.rs has its values"),
    ("gather_to", "moves words for the host to read, and is no op; crates/train/tests/graphs.rs reads them"),
    ("linspace", "takes no operand; crates/tensor/tests/special.rs has its values"),
    ("normal", "takes no operand; the rows of gaussian_noise have its values"),
    ("output", "tells sizes, and is no op"),
    ("recurrent_step", "a recurrence of one step; crates/train/tests/spikes/lstm.rs trains with it"),
    ("transposed_output", "tells sizes, and is no op"),
    ("top_k_errors", "gives no tensor; crates/tensor/tests/special.rs has its values"),
];

/// The public functions of a source file whose results may fail, with the numbers of their lines.
fn ops(text: &str) -> Vec<(usize, String)> {
    let lines = lines(text);
    let mut found = Vec::new();
    for (i, line) in lines.iter().enumerate() {
        if line.code.trim() == "mod tests {" {
            break;
        }
        found.extend(of_macro(&line.code).map(|name| (i + 1, name)));
        let Some(rest) = line.code.trim().strip_prefix("pub fn ") else { continue };
        let name: String = rest.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect();
        // The signature goes on to the line that opens the body.
        let end = lines[i..].iter().position(|l| l.code.trim_end().ends_with('{')).unwrap_or(0);
        let signature = lines[i..=i + end].iter().map(|l| l.code.as_str()).collect::<String>();
        let fails = signature.rsplit_once("->").is_some_and(|(_, result)| result.contains("Result<"));
        if fails && !name.is_empty() {
            found.push((i + 1, name));
        }
    }
    found
}

/// The method that a line of an elementwise macro makes: `name(other) Rule saves …` or `… => name saves …`.
fn of_macro(code: &str) -> Option<String> {
    let (before, _) = code.trim().split_once(" saves ")?;
    let name = match before.rsplit_once("=> ") {
        Some((_, name)) => name.trim(),
        None => before.split_once('(')?.0,
    };
    let plain = !name.is_empty() && name.chars().all(|c| c.is_alphanumeric() || c == '_');
    plain.then(|| name.to_owned())
}

/// Every public function of the op families that can fail is named in a row of the op table, or is listed
/// with the reason why there is none.
pub(super) fn rows(tree: &Tree) -> Vec<Violation> {
    rows_except(tree, WITHOUT_ROW)
}

fn rows_except(tree: &Tree, listed: &[(&str, &str)]) -> Vec<Violation> {
    let of = |folder: &'static str| {
        tree.texts().filter(move |(path, _)| path.starts_with(folder) && path.ends_with(".rs"))
    };
    let table: Vec<Line> = of(TABLE).flat_map(|(_, text)| lines(text)).collect();
    let mut found = Vec::new();
    let mut seen = Vec::new();
    for (path, text) in of(OPS) {
        for (line, name) in ops(text) {
            let known = listed.iter().any(|(n, _)| *n == name);
            if !known && !table.iter().any(|l| l.words(&name).next().is_some()) {
                let message = format!(
                    "no row of {TABLE} names `{name}`; add one, or list it in xtask/src/tidy/table.rs with the reason"
                );
                found.push(Violation::new(path, line, "table", message));
            }
            seen.push(name);
        }
    }
    for (name, _) in listed.iter().filter(|(n, _)| !seen.is_empty() && !seen.iter().any(|s| s == n)) {
        let message = format!("`{name}` is listed in xtask/src/tidy/table.rs but is no op");
        found.push(Violation::new(OPS, 1, "table", message));
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_op_without_a_row_is_found_unless_it_is_listed() {
        let source = "impl Tensor {\n    pub fn sin(&self) -> Result<Tensor> {\n    }\n    pub fn tan(\n        &self,\n    \
                      ) -> Result<(Tensor, Tensor)> {\n    }\n    pub fn name(&self) -> &str {\n    }\n    fn own(&self) -> \
                      Result<Tensor> {\n    }\n}\n";
        assert_eq!(of_macro("    add(other) Add saves 0 {"), Some("add".into()));
        assert_eq!(of_macro("    Relu {} => relu saves Output"), Some("relu".into()));
        assert_eq!(of_macro("    ($($method:ident)* saves $s:literal"), None);
        let table = "// x[0].tan() in a comment is no row\nrow(\"sin\", |x| x[0].sin());\nlet arctan = atan(\"tan(\");\n";
        let tree = Tree::of(&[
            ("crates/tensor/src/ops/trigonometry/mod.rs", source),
            ("crates/tensor/tests/table/rows/trigonometry.rs", table),
        ]);
        let found = rows_except(&tree, &[]);
        assert_eq!(found.len(), 1, "{found:?}");
        assert!(found[0].message.contains("`tan`") && found[0].line == 4, "{found:?}");
        assert_eq!(rows_except(&tree, &[("tan", "for the test")]), []);
        assert!(rows_except(&tree, &[("tan", ""), ("cos", "")])[0].message.contains("is no op"));
    }
}
