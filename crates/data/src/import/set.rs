//! What training can open already: IDX files, embedded sets, sets of shards.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use super::listing::{Import, Layout, Listed, Listing, Part, Store};
use super::{Format, ImportRequest, TRAIN, VAL, names_in};
use crate::{Error, Result, Role, Source, Split, open};

pub(super) fn import(request: &ImportRequest) -> Result<Import> {
    let splits = splits_of(&request.source)?.into_iter().map(|(split, set)| {
        let listing = list(&request.source, split.unwrap_or_default(), set)?;
        Ok((split, listing))
    });
    Ok(Import { format: Format::Set, splits: splits.collect::<Result<_>>()?, meta: BTreeMap::new() })
}

/// A split's name, and its samples.
type OpenSplit = (Option<&'static str>, Arc<dyn Source>);

/// The splits of what training could open; one without a name where there are no two.
pub(crate) fn splits_of(source: &Path) -> Result<Vec<OpenSplit>> {
    let Some(spec) = source.to_str() else {
        return Err(Error::usage(source.display().to_string(), "the name is not UTF-8"));
    };
    let train = open(spec, Split::Train)?;
    if crate::shards::looks_like(source) {
        return Ok(vec![(None, train)]);
    }
    // Only where nothing looks like an evaluation split may there be none.
    let is_eval = |name: &str| matches!(name, "val" | "test" | "validation") || name.starts_with("t10k");
    match open(spec, Split::Test) {
        Ok(test) => Ok(vec![(Some(TRAIN), train), (Some(VAL), test)]),
        Err(e) if names_in(source)?.iter().any(|(name, _)| is_eval(name)) => Err(e),
        Err(_) => Ok(vec![(Some(TRAIN), train)]),
    }
}

fn list(path: &Path, split: &str, set: Arc<dyn Source>) -> Result<Listing> {
    let schema = set.schema().clone();
    let listed = |spec: &crate::FieldSpec| Listed { spec: spec.clone(), layout: Layout::Elements };
    let fields: Vec<Listed> = schema.fields.iter().filter(|f| f.role != Role::Label).map(listed).collect();
    let lengths: Vec<u64> = fields.iter().map(|f| f.spec.sample_bytes() as u64).collect();
    let mut listing = Listing::new(path, fields);
    listing.classes = schema.classes;
    let store = listing.store(Store::Set(set.clone()));
    let slash = if split.is_empty() { "" } else { "/" };
    for id in 0..set.len() {
        let part = |&length: &u64| Part { offset: id, length, store };
        let parts: Vec<Part> = lengths.iter().map(part).collect();
        listing.add(&format!("{split}{slash}{id:08}"), set.label(id)?, &parts)?;
    }
    listing.finish()
}
