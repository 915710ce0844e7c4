//! A sample as files.

use std::borrow::Cow;

use phalanx_host::DType;

use crate::source::RecordField;
use crate::{Codec, Error, FieldSpec, Picture, Record, Result, Role, Schema};

/// The files of one sample, each with its ending.
pub(super) struct Files<'a> {
    pub(super) label: Option<i64>,
    pub(super) files: Vec<(String, Cow<'a, [u8]>)>,
}

/// An image becomes `jpg` or `png`, text `txt`, an array `npy`; what has another name than is usual has it in
/// its ending, as in `coarse.npy`. The label is apart.
pub(super) fn files_of<'a>(schema: &Schema, record: &'a Record) -> Result<Files<'a>> {
    let mut out = Files { label: None, files: Vec::new() };
    for (spec, field) in schema.fields.iter().zip(&record.fields) {
        if spec.role == Role::Label {
            let bytes = field.bytes.first_chunk().copied();
            out.label = bytes.map(i64::from_le_bytes);
            continue;
        }
        let (ending, bytes) = file(spec, field)?;
        let usual =
            matches!((&*spec.name, ending), ("image", "jpg" | "png") | ("text", "txt") | ("json", "json"));
        let ending = if usual { ending.to_owned() } else { format!("{}.{ending}", safe_name(&spec.name)) };
        out.files.push((ending, bytes));
    }
    Ok(out)
}

fn file<'a>(spec: &FieldSpec, field: &'a RecordField) -> Result<(&'static str, Cow<'a, [u8]>)> {
    let bytes = Cow::Borrowed(&field.bytes[..]);
    let is_text =
        || spec.dtype == DType::U8 && field.shape.len() == 1 && std::str::from_utf8(&field.bytes).is_ok();
    Ok(match (field.codec, spec.role, &field.shape[..]) {
        (Codec::Jpeg, ..) => ("jpg", bytes),
        (Codec::Png, ..) => ("png", bytes),
        (Codec::Raw, Role::Image, &[height, width, channels @ (1 | 3)]) if spec.dtype == DType::U8 => {
            let picture = Picture { height, width, channels, pixels: spread(&field.bytes, spec.max) };
            let out = picture.to_png().map_err(|problem| Error::field(&spec.name, problem))?;
            ("png", Cow::Owned(out))
        }
        (Codec::Raw, Role::Array, _) if matches!(&*spec.name, "text" | "json") && is_text() => {
            (if &*spec.name == "text" { "txt" } else { "json" }, bytes)
        }
        _ => ("npy", Cow::Owned(npy(spec.dtype, field))),
    })
}

/// Pixels of `0..=max` as pixels of `0..=255`, which is what a PNG file means.
fn spread(pixels: &[u8], max: f32) -> Vec<u8> {
    if max == 255.0 {
        return pixels.to_vec();
    }
    pixels.iter().map(|&p| (f32::from(p) * 255.0 / max).round().clamp(0.0, 255.0) as u8).collect()
}

/// An array in NumPy's format, version 1.0: magic, the length of the description, the description padded to a
/// multiple of 64 bytes, the elements. Halves of bfloat16, which NumPy has not, are given as their 16 bits.
fn npy(dtype: DType, field: &RecordField) -> Vec<u8> {
    let kind = match dtype {
        DType::U8 => "|u1",
        DType::I64 => "<i8",
        DType::F16 => "<f2",
        DType::BF16 => "<u2",
        DType::F32 => "<f4",
        DType::F64 => "<f8",
    };
    let sides: String = field.shape.iter().map(|d| format!("{d},")).collect();
    let mut text = format!("{{'descr': '{kind}', 'fortran_order': False, 'shape': ({sides}), }}");
    let length = (10 + text.len() + 1).next_multiple_of(64) - 10;
    text.extend(std::iter::repeat_n(' ', length - text.len() - 1));
    text.push('\n');
    let mut out = b"\x93NUMPY\x01\0".to_vec();
    out.extend((length as u16).to_le_bytes());
    out.extend(text.as_bytes());
    out.extend(&field.bytes);
    out
}

/// A name that is one part of a path on every system, and starts with no dot.
pub(super) fn safe_name(name: &str) -> String {
    let safe = |c: char| if c.is_control() || "/\\:*?\"<>|".contains(c) { '_' } else { c };
    let name: String = name.chars().map(safe).collect();
    // A file's name has at most 255 bytes; some are left for what is put before it.
    let mut end = name.len().min(200);
    while !name.is_char_boundary(end) {
        end -= 1;
    }
    let name = name[..end].trim_end_matches(['.', ' ']);
    match name.strip_prefix('.') {
        Some(rest) => format!("_{rest}"),
        None if name.is_empty() => "_".to_owned(),
        None => name.to_owned(),
    }
}
