use std::path::Path;
use std::sync::Arc;

use crate::{Error, Result, Source, Split};

pub(crate) fn open(dir: &Path, _split: Split) -> Result<Arc<dyn Source>> {
    Err(Error::format(dir, "not yet"))
}
