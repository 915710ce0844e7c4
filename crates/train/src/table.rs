//! Values of our types from TOML tables.

use serde::de::{DeserializeOwned, Error as _};

/// What a table says, as one of our types. It goes by way of the table's text, so that the program has one reader for each type and
/// not two: they are large.
pub(crate) fn read<T: DeserializeOwned>(table: &toml::Table) -> Result<T, toml::de::Error> {
    let text = toml::to_string(table).map_err(toml::de::Error::custom)?;
    toml::from_str(&text)
}
