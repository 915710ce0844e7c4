//! TensorBoard's event files: records of a hand-encoded protocol buffer, framed as TFRecords (length,
//! masked CRC-32C, data, masked CRC-32C).
//!
//! Format: `tensorflow/core/util/event.proto`, `summary.proto` and `lib/io/record_writer` of TensorFlow.

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use phalanx_comm::side::host_name;

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
    /// The file of start `attempt` of the run in `dir`, which goes on after `first_step` steps. Its name
    /// begins with the time: TensorBoard reads a run's files in the order of their names.
    pub(crate) fn create(dir: &Path, attempt: u32, first_step: u64) -> Result<Self> {
        let name = format!("events.out.tfevents.{:010}.{}.{attempt:04}", now().floor(), host_name());
        let path = dir.join(name);
        let file = File::create_new(&path).map_err(Error::io("create", &path))?;
        let mut events = EventFile { path, file };
        let mut version = event(now(), 0);
        bytes_field(&mut version, 3, b"brain.Event:2");
        events.put(&version)?;
        // A killed start may have gone further than its last checkpoint. At `session_log { status: START }`
        // TensorBoard drops what earlier files have from this step on.
        let mut again = event(now(), first_step + 1);
        bytes_field(&mut again, 7, &[1 << 3, 1]);
        events.put(&again)?;
        Ok(events)
    }

    /// Nothing is buffered here, so that a killed process loses no event that it has written.
    fn put(&mut self, event: &[u8]) -> Result<()> {
        self.file.write_all(&record(event)).map_err(Error::io("write", &self.path))
    }

    /// Adds the values of a step.
    pub(crate) fn scalars(&mut self, step: u64, scalars: &[(&str, f64)]) -> Result<()> {
        self.put(&scalar_event(now(), step, scalars))
    }

    /// Waits until all events are on the disk.
    pub(crate) fn sync(&self) -> Result<()> {
        self.file.sync_all().map_err(Error::io("sync", &self.path))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// CRC-32C bit by bit, from its polynomial: the reader shares nothing with the writer.
    fn crc32c_by_bits(data: &[u8]) -> u32 {
        !data.iter().fold(!0u32, |crc, &byte| {
            (0..8).fold(crc ^ u32::from(byte), |c, _| (c >> 1) ^ if c & 1 == 1 { 0x82f6_3b78 } else { 0 })
        })
    }

    /// Takes `n` bytes off the front.
    fn take<'a>(from: &mut &'a [u8], n: usize) -> &'a [u8] {
        let (head, tail) = from.split_at(n);
        *from = tail;
        head
    }

    /// A record's data, its two checksums checked.
    fn unframe<'a>(file: &mut &'a [u8]) -> &'a [u8] {
        let checked = |file: &mut &'a [u8], n| {
            let data = take(file, n);
            let stored = u32::from_le_bytes(take(file, 4).try_into().unwrap());
            let crc = stored.wrapping_sub(0xa282_ead8).rotate_left(15);
            assert_eq!(crc, crc32c_by_bits(data));
            data
        };
        let length = u64::from_le_bytes(checked(file, 8).try_into().unwrap());
        checked(file, length as usize)
    }

    #[derive(Debug, PartialEq)]
    enum Field {
        Varint(u64),
        Fixed(Vec<u8>),
        Bytes(Vec<u8>),
    }

    /// A message's fields with their numbers.
    fn fields(mut from: &[u8]) -> Vec<(u64, Field)> {
        fn varint(from: &mut &[u8]) -> u64 {
            let mut n = 0;
            for shift in (0..64).step_by(7) {
                let byte = take(from, 1)[0];
                n |= u64::from(byte & 0x7f) << shift;
                if byte < 0x80 {
                    break;
                }
            }
            n
        }
        let mut out = Vec::new();
        while !from.is_empty() {
            let key = varint(&mut from);
            let field = match key & 7 {
                0 => Field::Varint(varint(&mut from)),
                1 => Field::Fixed(take(&mut from, 8).to_vec()),
                2 => {
                    let n = varint(&mut from) as usize;
                    Field::Bytes(take(&mut from, n).to_vec())
                }
                5 => Field::Fixed(take(&mut from, 4).to_vec()),
                other => panic!("wire type {other}"),
            };
            out.push((key >> 3, field));
        }
        out
    }

    /// A file's events without their wall times, which are checked to be of today.
    fn read(path: &Path) -> Vec<Vec<(u64, Field)>> {
        let bytes = std::fs::read(path).unwrap();
        let (mut rest, mut events) = (&bytes[..], Vec::new());
        while !rest.is_empty() {
            let mut event = fields(unframe(&mut rest));
            let (1, Field::Fixed(time)) = event.remove(0) else { panic!("no wall time first") };
            let time = f64::from_le_bytes(time.try_into().unwrap());
            assert!((now() - time).abs() < 60.0, "{time}");
            events.push(event);
        }
        events
    }

    fn value(tag: &str, value: f32) -> (u64, Field) {
        let mut one = vec![0x0a, tag.len() as u8];
        one.extend_from_slice(tag.as_bytes());
        one.push(0x15);
        one.extend_from_slice(&value.to_le_bytes());
        (1, Field::Bytes(one))
    }

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
    fn checksums_are_masked_as_tensorflow_does() {
        // The standard's check value, and RFC 3720's for 32 zeros; the mask rotates and adds a constant.
        for (data, crc) in [(&b"123456789"[..], 0xe306_9283u32), (&[0; 32], 0x8a91_36aa)] {
            assert_eq!(crc32c_by_bits(data), crc);
            assert_eq!(masked_crc(data), crc.rotate_left(17).wrapping_add(0xa282_ead8));
        }
        // The first 12 bytes of most event files: a record of 24 bytes and its length's checksum.
        assert_eq!(record(&[0; 24])[..12], [0x18, 0, 0, 0, 0, 0, 0, 0, 0xa3, 0x7f, 0x4b, 0x22]);
    }

    #[test]
    fn a_file_begins_with_its_version_and_holds_what_was_given() {
        let dir = tempfile::tempdir().unwrap();
        let mut f = EventFile::create(dir.path(), 1, 0).unwrap();
        f.scalars(7, &[("train/loss", 0.5), ("train/lr", 0.1)]).unwrap();
        f.scalars(u64::MAX, &[("eval/loss", f64::NAN)]).unwrap();
        f.sync().unwrap();
        let [version, start, step, last] = <[_; 4]>::try_from(read(&f.path)).unwrap();
        assert_eq!(version, [(2, Field::Varint(0)), (3, Field::Bytes(b"brain.Event:2".to_vec()))]);
        assert_eq!(start, [(2, Field::Varint(1)), (7, Field::Bytes(vec![8, 1]))]);
        assert_eq!(step[0], (2, Field::Varint(7)));
        let (5, Field::Bytes(summary)) = &step[1] else { panic!("{step:?}") };
        assert_eq!(fields(summary), [value("train/loss", 0.5), value("train/lr", 0.1)]);
        assert_eq!(last[0], (2, Field::Varint(u64::MAX)));
        let (5, Field::Bytes(summary)) = &last[1] else { panic!("{last:?}") };
        assert_eq!(fields(summary), [value("eval/loss", f32::NAN)]);
    }

    #[test]
    fn a_resumed_run_has_another_file_that_takes_back_what_it_repeats() {
        let dir = tempfile::tempdir().unwrap();
        let (a, b) =
            (EventFile::create(dir.path(), 1, 0).unwrap(), EventFile::create(dir.path(), 2, 40).unwrap());
        let name = |f: &EventFile| f.path.file_name().unwrap().to_str().unwrap().to_owned();
        assert!(name(&a) < name(&b) && name(&b).ends_with(&format!(".{}.0002", host_name())), "{b:?}");
        assert_eq!(read(&b.path)[1..], [[(2, Field::Varint(41)), (7, Field::Bytes(vec![8, 1]))]]);
    }
}
