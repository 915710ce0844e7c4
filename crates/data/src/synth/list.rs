//! Synthetic sets as something to pack.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use super::{Synth, SynthCodec, SynthConfig, VERSION};
use crate::import::{Format, Import, Layout, Listed, Listing, Part, Store, TRAIN, VAL};
use crate::{Result, Role, Source};

/// Lists a set's images; they are computed when they are packed.
///
/// Fails with [`crate::Error::Usage`] on what is no set.
pub(crate) fn import(config: &SynthConfig) -> Result<Import> {
    let mut splits = vec![(Some(TRAIN), list(TRAIN, Synth::new(config, false)?)?)];
    if config.val > 0 {
        splits.push((Some(VAL), list(VAL, Synth::new(config, true)?)?));
    }
    let SynthConfig { seed, size: [height, width], vary, codec, .. } = config;
    let mut meta: BTreeMap<String, String> =
        [("source_format", Format::Synth.name().to_owned()), ("synth_version", VERSION.to_string())]
            .into_iter()
            .chain([
                ("seed", seed.to_string()),
                ("size", format!("{width}x{height}")),
                ("vary", vary.to_string()),
            ])
            .map(|(key, value)| (key.to_owned(), value))
            .collect();
    match codec {
        SynthCodec::Jpeg(quality) => meta.insert("quality".into(), quality.to_string()),
        SynthCodec::Raw => meta.insert("codec".into(), "raw".into()),
    };
    Ok(Import { format: Format::Synth, splits, meta })
}

fn list(split: &str, set: Synth) -> Result<Listing> {
    let [height, width] = set.config.size;
    let pixels = (height * width) as u64;
    // About what comes out, for cutting the set into shards.
    let length = match set.config.codec {
        SynthCodec::Raw => pixels * 3,
        SynthCodec::Jpeg(quality) => pixels * 3 / u64::from(100 - quality.min(97)),
    };
    let set = Arc::new(set);
    let image = set.schema.fields.iter().find(|f| f.role == Role::Image);
    let fields = image.map(|spec| Listed { spec: spec.clone(), layout: Layout::Elements });
    let mut listing = Listing::new(Path::new(set.name()), fields.into_iter().collect());
    listing.classes.clone_from(&set.schema.classes);
    let store = listing.store(Store::Set(set.clone()));
    for id in 0..set.len() {
        let place = set.place(id)?;
        let key = format!("{split}/{:04}/{:08}", place.class, place.index);
        listing.add(&key, Some(place.class as i64), &[Part { offset: id, length, store }])?;
    }
    listing.finish()
}
