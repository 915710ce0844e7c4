//! Reading listed samples.

use std::collections::HashMap;
use std::fs::File;
use std::io::Read;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use super::listing::{Layout, Listed, Listing, Part, Store};
use crate::source::RecordField;
use crate::{Codec, Error, Record, Result, picture};

/// Archives that are kept open; a system allows a process about a thousand files.
const MOST_OPEN: usize = 128;

/// Reads the samples of a listing, from any thread and in any order.
#[derive(Debug)]
pub(crate) struct Reader<'a> {
    listing: &'a Listing,
    open: Mutex<HashMap<u32, Arc<File>>>,
}

/// A sample that is there and is not what it should be.
pub(crate) type Bad = String;

impl<'a> Reader<'a> {
    pub(crate) fn new(listing: &'a Listing) -> Self {
        Reader { listing, open: Mutex::new(HashMap::new()) }
    }

    /// Reads sample `i` into `record`, one field after the other as the listing has them. The inner error is an
    /// image that cannot be one; the outer says that the source is not as it was listed, or cannot be read.
    pub(crate) fn read(&self, i: u64, record: &mut Record) -> Result<std::result::Result<(), Bad>> {
        let parts = self.listing.parts(i);
        record.reset(parts.len());
        if let Some(Store::Set(set)) = parts.first().map(|p| &self.listing.stores[p.store as usize]) {
            set.read(parts[0].offset, record)?;
            self.drop_label(set.schema(), record);
            return Ok(Ok(()));
        }
        for ((part, listed), field) in parts.iter().zip(&self.listing.fields).zip(&mut record.fields) {
            self.bytes(i, part, &mut field.bytes)?;
            if let Err(problem) = finish(listed, field) {
                return Ok(Err(problem));
            }
        }
        Ok(Ok(()))
    }

    /// A set's label is a field of its records, and a listing keeps labels by themselves.
    fn drop_label(&self, schema: &crate::Schema, record: &mut Record) {
        let label = schema.fields.iter().position(|f| f.role == crate::Role::Label);
        if let Some(label) = label.filter(|&l| l < record.fields.len()) {
            record.fields.remove(label);
        }
    }

    fn bytes(&self, i: u64, part: &Part, into: &mut Vec<u8>) -> Result<()> {
        let length = part.length as usize;
        match &self.listing.stores[part.store as usize] {
            Store::Folder(root) => whole(&root.join(self.listing.key(i)), length, into),
            Store::File(path) => {
                into.resize(length, 0);
                let file = self.file(part.store, path)?;
                file.read_exact_at(into, part.offset).map_err(Error::io("read", path))
            }
            Store::Memory(bytes) => {
                // The importer that made the part wrote these bytes.
                let from = part.offset as usize;
                into.extend_from_slice(bytes.get(from..from + length).unwrap_or_default());
                Ok(())
            }
            Store::Set(_) => Ok(()),
        }
    }

    fn file(&self, store: u32, path: &Path) -> Result<Arc<File>> {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(file) = open.get(&store) {
            return Ok(file.clone());
        }
        if open.len() >= MOST_OPEN {
            open.clear();
        }
        let file = Arc::new(File::open(path).map_err(Error::io("read", path))?);
        open.insert(store, file.clone());
        Ok(file)
    }
}

/// A file that must be as long as it was.
fn whole(path: &Path, length: usize, into: &mut Vec<u8>) -> Result<()> {
    let file = File::open(path).map_err(Error::io("read", path))?;
    into.reserve(length + 1);
    let found = file.take(length as u64 + 1).read_to_end(into).map_err(Error::io("read", path))?;
    if found != length {
        return Err(Error::format(
            path,
            format!("had {length} bytes when it was listed and has changed since"),
        ));
    }
    Ok(())
}

/// Bytes into a field's elements and shape.
fn finish(listed: &Listed, field: &mut RecordField) -> std::result::Result<(), Bad> {
    let shape = &listed.spec.shape;
    match listed.layout {
        Layout::Image => {
            let (codec, size) = picture::probe(&field.bytes)?;
            field.codec = codec;
            field.shape.extend(size);
        }
        Layout::Elements => field.shape.extend(shape),
        Layout::List => field.shape.push(field.bytes.len() / listed.spec.dtype.size()),
        Layout::Planes => {
            field.shape.extend(shape);
            let channels = shape.last().copied().unwrap_or(1).max(1);
            let plane = field.bytes.len() / channels;
            let planes = std::mem::take(&mut field.bytes);
            field.bytes.extend((0..plane * channels).map(|i| planes[i % channels * plane + i / channels]));
        }
        Layout::Number => {
            let number = i64::from(field.bytes.first().copied().unwrap_or(0));
            field.bytes.clear();
            field.bytes.extend(number.to_le_bytes());
        }
    }
    if listed.layout != Layout::Image {
        field.codec = Codec::Raw;
    }
    Ok(())
}
