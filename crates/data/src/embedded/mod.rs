use std::sync::Arc;

use crate::{Error, Result, Source, Split};

pub(crate) const DIGITS: &str = "digits";

pub(crate) fn digits(_split: Split) -> Result<Arc<dyn Source>> {
    Err(Error::format("digits", "not yet"))
}
