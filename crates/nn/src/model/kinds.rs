//! What a configuration can say of each kind of layer, read off the documentation of [`super::Row`]
//! itself, so that the list cannot go stale.

use std::fmt;

use serde::Serialize;

/// An option of a layer kind.
#[derive(Debug, Clone, Serialize)]
pub struct LayerOption {
    /// The key.
    pub name: String,
    /// What values it takes.
    pub values: String,
    /// Whether it must be given.
    pub required: bool,
    /// What it is when left out, where that is one value.
    pub default: Option<String>,
    /// What it means.
    pub about: String,
}

/// A kind of layer that a row of `[[model.layers]]` can name.
#[derive(Debug, Clone, Serialize)]
pub struct LayerKind {
    /// The row's `type`.
    pub name: String,
    /// What the layer computes.
    pub about: String,
    /// Its options.
    pub options: Vec<LayerOption>,
}

/// All kinds of layers.
#[derive(Debug, Clone, Serialize)]
#[serde(transparent)]
pub struct LayerListing(pub Vec<LayerKind>);

/// Lines of documentation as one.
pub(super) fn text(lines: &[&str]) -> String {
    lines.iter().map(|l| l.trim()).collect::<Vec<_>>().join(" ").trim().to_owned()
}

/// A variant's name as serde's `kebab-case` writes it.
pub(super) fn kebab(name: &str) -> String {
    let mut out = String::new();
    for (i, c) in name.chars().enumerate() {
        if c.is_uppercase() && i > 0 {
            out.push('-');
        }
        out.extend(c.to_lowercase());
    }
    out
}

/// What values a field of type `of` takes.
fn values(of: &str) -> String {
    let inner = |outer: &str| of.strip_prefix(outer)?.trim().strip_prefix('<')?.trim().strip_suffix('>');
    if let Some(of) = inner("Option") {
        return values(of.trim());
    }
    if let Some(of) = inner("Vec") {
        return format!("a list, each {}", values(of.trim()));
    }
    let known = match of {
        "usize" | "u32" | "u64" => "a whole number, 0 or more",
        "isize" | "i64" => "a whole number",
        "f64" => "a number",
        "bool" => "true or false",
        "String" => "a text",
        "Pair" => "a whole number, or [height, width]",
        "RecurrentCell" => "rnn, rnn-relu, lstm or gru",
        other => return other.to_lowercase(),
    };
    known.to_owned()
}

impl LayerOption {
    /// From a field of [`super::Row`]: its name, documentation, type and what stands in its serde attribute.
    pub(super) fn of(name: &str, about: &[&str], of: &str, serde: &str) -> Self {
        let required = !(serde.contains("default") || of.starts_with("Option"));
        let (name, about) = (name.trim_start_matches("r#").to_owned(), text(about));
        LayerOption { name, values: values(of), required, default: None, about }
    }
}

/// Declares an enum whose variants are rows of a configuration, and gives it `kinds`: its variants and fields
/// with their documentation.
macro_rules! described {
    (
        $(#[doc = $about:literal])*
        #[derive($($derive:tt)*)]
        #[serde($($serde:tt)*)]
        pub enum $name:ident { $(
            $(#[doc = $doc:literal])*
            $variant:ident { $(
                $(#[doc = $field_doc:literal])*
                $(#[serde($($field_serde:tt)*)])*
                $field:ident: $type:ty
            ),* $(,)? }
        ),* $(,)? }
    ) => {
        $(#[doc = $about])*
        #[derive($($derive)*)]
        #[serde($($serde)*)]
        pub enum $name { $(
            $(#[doc = $doc])*
            $variant { $(
                $(#[doc = $field_doc])*
                $(#[serde($($field_serde)*)])*
                $field: $type
            ),* }
        ),* }

        impl $name {
            /// All kinds with their options, as documented here; no defaults.
            pub fn kinds() -> $crate::model::kinds::LayerListing {
                use $crate::model::kinds::{LayerKind, LayerListing, LayerOption, kebab, text};
                LayerListing(vec![ $( LayerKind {
                    name: kebab(stringify!($variant)),
                    about: text(&[$($doc),*]),
                    options: vec![ $( LayerOption::of(
                        stringify!($field),
                        &[$($field_doc),*],
                        stringify!($type),
                        stringify!($($($field_serde)*)*),
                    ) ),* ],
                } ),* ])
            }
        }
    };
}
pub(super) use described;

impl fmt::Display for LayerListing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for kind in &self.0 {
            writeln!(f, "{:<20}{}", kind.name, kind.about)?;
            for o in &kind.options {
                let value = match (&o.default, o.required) {
                    (Some(value), _) => format!("[{value}]"),
                    (None, true) => "(required)".to_owned(),
                    (None, false) => String::new(),
                };
                writeln!(f, "  {:<18}{} {value}", o.name, o.about)?;
                writeln!(f, "  {:<18}  {}", "", o.values)?;
            }
        }
        write!(
            f,
            "A row of a configuration is a table [[model.layers]] with the kind as its type, and options."
        )
    }
}

#[cfg(test)]
mod tests {
    use super::super::Row;
    use super::*;

    #[test]
    fn kinds_are_named_as_a_configuration_names_them_and_all_is_documented() {
        let LayerListing(kinds) = Row::kinds();
        for kind in &kinds {
            let fields: Vec<&str> = kind.options.iter().map(|o| o.name.as_str()).collect();
            assert!(!kind.about.is_empty(), "{} has no documentation", kind.name);
            assert!(kind.options.iter().all(|o| !o.about.is_empty()), "{} {fields:?}", kind.name);
            // Serde knows the name: what it complains of is a missing or a foreign key.
            let text = format!("type = \"{}\"\nforeign = 1", kind.name);
            let e = toml::from_str::<Row>(&text).unwrap_err().to_string();
            assert!(!e.contains("unknown variant"), "{e}");
        }
        let find = |name: &str| kinds.iter().find(|k| k.name == name).unwrap();
        let pool = find("max-pool");
        assert!(pool.options[0].required && pool.options[0].name == "kernel");
        assert!(!pool.options[1].required && pool.options[1].values.contains("[height, width]"));
        assert!(!find("linear").options[0].required);
    }

    #[test]
    fn types_are_told_in_words() {
        assert_eq!(values("Option < usize >"), "a whole number, 0 or more");
        assert_eq!(values("Vec<f64>"), "a list, each a number");
        assert_eq!(kebab("AdaptiveAvgPool"), "adaptive-avg-pool");
    }
}
