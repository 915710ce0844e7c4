//! Settings and faults of a configuration in words.

use std::fmt::Write as _;

use crate::{Error, Result};

/// Applies one `table.key=value` setting. The value is read as TOML, or taken as a string where it is
/// none.
pub(crate) fn apply(table: &mut toml::Table, setting: &str) -> Result<()> {
    let wrong = |problem: String| Error::config(format!("--set {setting}"), problem);
    let (path, value) =
        setting.split_once('=').ok_or_else(|| wrong("must have the form table.key=value".into()))?;
    let value = value.trim();
    let parsed = toml::from_str::<toml::Table>(&format!("v = {value}")).ok().and_then(|mut t| t.remove("v"));
    let value = parsed.unwrap_or_else(|| toml::Value::String(value.to_owned()));
    let keys: Vec<&str> = path.trim().split('.').collect();
    let Some((last, parents)) =
        keys.split_last().filter(|(l, p)| !l.is_empty() && p.iter().all(|k| !k.is_empty()))
    else {
        return Err(wrong("has an empty key".into()));
    };
    let mut at = table;
    for key in parents {
        let next = at.entry(*key).or_insert_with(|| toml::Value::Table(toml::Table::new()));
        at = next.as_table_mut().ok_or_else(|| wrong(format!("{key} is a value, not a table")))?;
    }
    at.insert((*last).to_owned(), value);
    Ok(())
}

/// The number of the line, from 1, that holds byte `at`.
pub(super) fn line_of(text: &str, at: usize) -> usize {
    1 + text.as_bytes().iter().take(at).filter(|&&b| b == b'\n').count()
}

/// The parser's message on one line, in a user's words, with the key that it is about and the nearest
/// known word where an unknown one was given.
pub(crate) fn explain(e: &toml::de::Error) -> String {
    let message = e.message().trim().lines().collect::<Vec<_>>().join("; ");
    // Only a table without a text knows the key; the crate tells it on a line of its own.
    let shown = e.to_string();
    let key = shown.lines().find_map(|l| l.strip_prefix("in `")?.strip_suffix('`'));
    let mut text = message.clone();
    for (theirs, ours) in [
        ("unknown field", "unknown key"),
        ("unknown variant", "unknown value"),
        ("missing field", "missing key"),
        ("invalid type:", "wrong type:"),
    ] {
        text = text.replace(theirs, ours);
    }
    for integer in ["u64", "usize", "u32"] {
        text = text.replace(&format!("expected {integer}"), "expected a whole number, 0 or more");
    }
    for (theirs, ours) in [("f64", "a number"), ("f32", "a number"), ("a sequence", "an array")] {
        text = text.replace(&format!("expected {theirs}"), &format!("expected {ours}"));
    }
    // serde's derive says: unknown field `x`, expected one of `a`, `b`.
    if let Some(rest) = ["unknown field `", "unknown variant `"].iter().find_map(|u| message.split(u).nth(1))
    {
        let mut quoted = rest.split('`');
        let wrong = quoted.next().unwrap_or_default();
        let known: Vec<&str> = quoted.skip(1).step_by(2).collect();
        if let Some(near) = nearest(wrong, &known) {
            // The list of all of them is then of no use.
            text.truncate(text.find(", expected").unwrap_or(text.len()));
            let _ = write!(text, "; did you mean `{near}`?");
        }
    }
    match key {
        Some(key) if !text.starts_with(key) => format!("{key}: {text}"),
        _ => text,
    }
}

/// The known word that is most like `wrong`, if any is like it at all.
fn nearest<'a>(wrong: &str, known: &[&'a str]) -> Option<&'a str> {
    known
        .iter()
        .map(|k| (strsim::jaro_winkler(wrong, k), *k))
        .filter(|(score, _)| *score > 0.7)
        .max_by(|a, b| a.0.total_cmp(&b.0))
        .map(|(_, k)| k)
}
