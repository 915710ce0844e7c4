//! Values of our types from TOML tables.

use serde::de::{DeserializeOwned, Error as _};

/// What a table says, as one of our types. It goes by way of the table's text, so that the program has one reader for each type and
/// not two: they are large. A value that does not fit is told with its key, since nobody has seen that text.
pub(crate) fn read<T: DeserializeOwned>(table: &toml::Table) -> Result<T, toml::de::Error> {
    let text = toml::to_string(table).map_err(toml::de::Error::custom)?;
    toml::from_str(&text).map_err(|e| match key_of(&text, &e) {
        Some(key) => toml::de::Error::custom(format!("{key}: {}", e.message().trim())),
        None => e,
    })
}

/// The dotted key of the value that an error is about.
fn key_of(text: &str, e: &toml::de::Error) -> Option<String> {
    let at = e.span().filter(|_| e.message().starts_with("invalid"))?.start;
    let line_start = text.get(..at)?.rfind('\n').map_or(0, |n| n + 1);
    let (key, _) = text.get(line_start..)?.lines().next()?.split_once('=')?;
    let table = text.get(..line_start)?.lines().rev().find_map(|l| l.strip_prefix('['));
    let table = table.map(|t| t.trim_matches(['[', ']']));
    Some(table.map_or(key.trim().to_owned(), |t| format!("{t}.{}", key.trim())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, serde::Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Outer {
        #[allow(dead_code)]
        seed: u64,
        #[allow(dead_code)]
        inner: Option<Inner>,
    }

    #[derive(Debug, serde::Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Inner {
        #[allow(dead_code)]
        rate: f64,
    }

    #[test]
    fn a_value_that_does_not_fit_is_told_with_its_key() {
        let says =
            |text: &str| read::<Outer>(&toml::from_str(text).unwrap()).unwrap_err().message().to_owned();
        assert!(says("seed = \"x\"").starts_with("seed: invalid type"), "{}", says("seed = \"x\""));
        let inner = says("seed = 1\n[inner]\nrate = \"fast\"");
        assert!(inner.starts_with("inner.rate: invalid type"), "{inner}");
        assert!(says("seed = 1\nsed = 2").starts_with("unknown field"));
    }
}
