//! TensorBoard's event files: records of a hand-encoded protocol buffer, framed as TFRecords (length,
//! masked CRC-32C, data, masked CRC-32C).
//!
//! Format: `tensorflow/core/util/event.proto`, `summary.proto` and `lib/io/record_writer` of TensorFlow.

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use crate::{Error, Result};

/// A file of scalars.
#[derive(Debug)]
pub(crate) struct EventFile {
    path: PathBuf,
    file: File,
}

/// TensorFlow's masking of a CRC, so that a CRC of data that holds CRCs stays good.
fn masked_crc(data: &[u8]) -> u32 {
    crc32c::crc32c(data).rotate_right(15).wrapping_add(0xa282_ead8)
}

/// Appends a base-128 varint.
fn varint(out: &mut Vec<u8>, mut n: u64) {
    while n >= 0x80 {
        out.push(n as u8 | 0x80);
        n >>= 7;
    }
    out.push(n as u8);
}

/// Appends a length-delimited field.
fn bytes_field(out: &mut Vec<u8>, field: u8, data: &[u8]) {
    out.push(field << 3 | 2);
    varint(out, data.len() as u64);
    out.extend_from_slice(data);
}

/// An `Event`'s first fields: wall time (1, double) and step (2, varint).
fn event(wall_time: f64, step: u64) -> Vec<u8> {
    let mut out = vec![1 << 3 | 1];
    out.extend_from_slice(&wall_time.to_le_bytes());
    out.push(2 << 3);
    varint(&mut out, step);
    out
}

fn scalar_event(wall_time: f64, step: u64, scalars: &[(&str, f64)]) -> Vec<u8> {
    let mut summary = Vec::new();
    for (tag, value) in scalars {
        // Summary.Value: tag (1, string), simple_value (2, float).
        let mut one = Vec::new();
        bytes_field(&mut one, 1, tag.as_bytes());
        one.push(2 << 3 | 5);
        one.extend_from_slice(&(*value as f32).to_le_bytes());
        bytes_field(&mut summary, 1, &one);
    }
    let mut out = event(wall_time, step);
    bytes_field(&mut out, 5, &summary);
    out
}

fn record(data: &[u8]) -> Vec<u8> {
    let length = (data.len() as u64).to_le_bytes();
    let mut out = length.to_vec();
    out.extend_from_slice(&masked_crc(&length).to_le_bytes());
    out.extend_from_slice(data);
    out.extend_from_slice(&masked_crc(data).to_le_bytes());
    out
}

fn now() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |d| d.as_secs_f64())
}

impl EventFile {
    /// A new file in `dir`, named by the time and this process so that starts of a run do not meet.
    pub(crate) fn create(dir: &Path) -> Result<Self> {
        let name = format!("events.out.tfevents.{:.0}.{}", now(), std::process::id());
        let path = dir.join(name);
        let file = File::create(&path).map_err(Error::io("create", &path))?;
        let mut events = EventFile { path, file };
        let mut first = event(now(), 0);
        bytes_field(&mut first, 3, b"brain.Event:2");
        events.put(&first)?;
        Ok(events)
    }

    fn put(&mut self, event: &[u8]) -> Result<()> {
        self.file.write_all(&record(event)).map_err(Error::io("write", &self.path))
    }

    /// Adds the values of a step.
    pub(crate) fn scalars(&mut self, step: u64, scalars: &[(&str, f64)]) -> Result<()> {
        self.put(&scalar_event(now(), step, scalars))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_is_laid_out_as_tensorflow_does() {
        // Encoded by hand from the schema: wall_time 1.5, step 300, summary { value { tag "a" 0.25 } }.
        let want: &[u8] = &[
            0x09, 0, 0, 0, 0, 0, 0, 0xf8, 0x3f, // 1: double 1.5
            0x10, 0xac, 0x02, // 2: varint 300
            0x2a, 10, // 5: summary of 10 bytes
            0x0a, 8, // value of 8 bytes
            0x0a, 1, b'a', // tag
            0x15, 0, 0, 0x80, 0x3e, // simple_value 0.25
        ];
        assert_eq!(scalar_event(1.5, 300, &[("a", 0.25)]), want);
    }

    #[test]
    fn records_are_framed_with_masked_checksums() {
        // CRC-32C of "123456789" is the check value of the standard; masked by TensorFlow's rule.
        let crc = 0xe306_9283u32;
        assert_eq!(masked_crc(b"123456789"), crc.rotate_left(17).wrapping_add(0xa282_ead8));
        let r = record(b"xyz");
        assert_eq!(r.len(), 8 + 4 + 3 + 4);
        assert_eq!((&r[..8], &r[12..15]), (&[3u8, 0, 0, 0, 0, 0, 0, 0][..], &b"xyz"[..]));
    }

    #[test]
    fn a_file_begins_with_its_version_and_holds_what_was_given() {
        let dir = tempfile::tempdir().unwrap();
        let mut f = EventFile::create(dir.path()).unwrap();
        f.scalars(7, &[("train/loss", 0.5), ("train/lr", 0.1)]).unwrap();
        let bytes = std::fs::read(&f.path).unwrap();
        let mut at = 0;
        let mut events = Vec::new();
        while at < bytes.len() {
            let n = u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap()) as usize;
            let data = &bytes[at + 12..at + 12 + n];
            let crc = u32::from_le_bytes(bytes[at + 12 + n..at + 16 + n].try_into().unwrap());
            assert_eq!(crc, masked_crc(data));
            events.push(String::from_utf8_lossy(data).into_owned());
            at += 16 + n;
        }
        assert!(events.len() == 2 && events[0].contains("brain.Event:2"));
        assert!(events[1].contains("train/loss") && events[1].contains("train/lr"));
    }
}
