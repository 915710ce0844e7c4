mod damage;
mod repairs;
mod round_trip;

use std::path::Path;

use phalanx_host::DType;
use tempfile::TempDir;

use super::*;
use crate::{Error, Record, RecordField, Result, Source};

/// A PNG file of noise.
pub(crate) fn png(height: usize, width: usize, seed: u64) -> Vec<u8> {
    let mut out = Vec::new();
    let mut encoder = png::Encoder::new(&mut out, width as u32, height as u32);
    encoder.set_color(png::ColorType::Rgb);
    let mut writer = encoder.write_header().unwrap();
    writer.write_image_data(&noise(height * width * 3, seed)).unwrap();
    writer.finish().unwrap();
    out
}

/// Bytes that nothing but their number and the seed decides.
pub(crate) fn noise(n: usize, seed: u64) -> Vec<u8> {
    let mut out = vec![0; n];
    blake3::Hasher::new().update(&seed.to_le_bytes()).finalize_xof().fill(&mut out);
    out
}

/// Nobody wants to know how far a test is.
pub(crate) fn quiet(_: u64) {}

/// Images of varying size in three classes, with a text each.
pub(crate) fn captioned() -> SetInfo {
    let image = FieldSpec { variable: true, ..FieldSpec::image([0, 0, 3], 255.0) };
    let text = FieldSpec::array("text", DType::U8, &[0], true);
    SetInfo {
        name: "captioned".into(),
        fields: vec![image, FieldSpec::label(), text],
        classes: ["Käfer", "鳥", "crane"].map(String::from).to_vec(),
        meta: BTreeMap::from([("source".into(), "noise".into())]),
    }
}

/// Sample `id` of [`captioned_set`]: rows, columns, label, image, text.
pub(crate) fn caption(id: u64) -> (usize, usize, i64, Vec<u8>, Vec<u8>) {
    let (h, w) = (2 + id as usize % 3, 3 + id as usize % 2);
    (h, w, id as i64 % 3, png(h, w, id), noise(id as usize % 5, id + 100))
}

/// Writes a sealed set of that many records a shard.
pub(crate) fn captioned_set(dir: &Path, shards: &[u64]) -> [u8; 32] {
    let info = captioned();
    let mut summaries = Vec::new();
    let mut id = 0;
    for (number, &records) in (0..).zip(shards) {
        let mut writer = ShardWriter::create(dir, number, &info).unwrap();
        for _ in 0..records {
            let (h, w, label, image, text) = caption(id);
            let fields = [
                SampleField { codec: Codec::Png, shape: &[h, w, 3], bytes: &image },
                SampleField { codec: Codec::Raw, shape: &[text.len()], bytes: &text },
            ];
            writer.add(&Sample { key: &format!("käfer/{id}"), label: Some(label), fields: &fields }).unwrap();
            id += 1;
        }
        summaries.push(writer.finish().unwrap());
    }
    seal(dir, &info, &summaries).unwrap()
}

/// As it is read, whole.
fn record(set: &ShardSet, id: u64) -> Result<Record> {
    let mut record = Record::default();
    set.read(id, &mut record).map(|()| record)
}

/// What sample `id` of [`captioned_set`] is when it is read.
fn captioned_record(id: u64) -> Record {
    let (h, w, label, image, text) = caption(id);
    let raw = |bytes: Vec<u8>, shape: Vec<usize>| RecordField { bytes, shape, codec: Codec::Raw };
    let label = raw(label.to_le_bytes().to_vec(), vec![]);
    let shape = vec![text.len()];
    let image = RecordField { bytes: image, shape: vec![h, w, 3], codec: Codec::Png };
    Record { fields: vec![image, label, raw(text, shape)] }
}

fn scratch() -> TempDir {
    tempfile::tempdir().unwrap()
}

fn is_incomplete<T: std::fmt::Debug>(result: Result<T>) -> String {
    match result.unwrap_err() {
        e @ Error::Incomplete { .. } => e.to_string(),
        other => panic!("{other}"),
    }
}
