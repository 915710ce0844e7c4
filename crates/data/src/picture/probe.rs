//! What an image file is, from its header alone.

use super::{CUT_OFF, check_size, is_whole, kind};
use crate::Codec;

/// Whether `bytes` are a JPEG or PNG file, and its height, width and channels (1 or 3) as its header says them; that
/// the file has its end, too. Nothing is decoded.
pub(crate) fn probe(bytes: &[u8]) -> Result<(Codec, [usize; 3]), String> {
    let codec = kind(bytes)?;
    let size = if codec == Codec::Jpeg { jpeg(bytes)? } else { png(bytes)? };
    Ok((codec, size))
}

fn word(bytes: &[u8], at: usize) -> Option<usize> {
    bytes.get(at..at + 2).map(|b| usize::from(u16::from_be_bytes([b[0], b[1]])))
}

/// Segment by segment up to the frame's header.
fn jpeg(bytes: &[u8]) -> Result<[usize; 3], String> {
    let mut at = 2;
    loop {
        let Some(&[first, kind]) = bytes.get(at..at + 2) else {
            return Err("it is a JPEG image that is cut off in its header".into());
        };
        match (first, kind) {
            (0xff, 0xff) => at += 1,
            (0xff, 0x01 | 0xd0..=0xd8) => at += 2,
            // A frame's header; C4, C8 and CC are tables.
            (0xff, 0xc0..=0xc3 | 0xc5..=0xc7 | 0xc9..=0xcb | 0xcd..=0xcf) => break,
            (0xff, 0xd9 | 0xda) => return Err("it is a damaged JPEG image: it has no frame".into()),
            (0xff, _) => at += 2 + word(bytes, at + 2).unwrap_or(usize::MAX / 2),
            _ => return Err(format!("it is a damaged JPEG image: byte {at} is no marker")),
        }
    }
    let frame = (word(bytes, at + 5), word(bytes, at + 7), bytes.get(at + 9));
    let (Some(height), Some(width), Some(&components)) = frame else {
        return Err("it is a JPEG image that is cut off in its header".into());
    };
    check_size(height, width)?;
    // Nearly every file ends with the marker; only another has to be looked through.
    if !bytes.ends_with(&[0xff, 0xd9]) && !is_whole(bytes) {
        return Err(CUT_OFF.into());
    }
    Ok([height, width, if components == 1 { 1 } else { 3 }])
}

/// Chunk by chunk: the first is the header, and the last has no content.
fn png(bytes: &[u8]) -> Result<[usize; 3], String> {
    let long =
        |at: usize| bytes.get(at..at + 4).map(|b| u32::from_be_bytes([b[0], b[1], b[2], b[3]]) as usize);
    let (Some(width), Some(height), Some(colour)) = (long(16), long(20), bytes.get(25)) else {
        return Err("it is a PNG image that is cut off in its header".into());
    };
    check_size(height, width)?;
    let mut at = 8;
    while let (Some(length), Some(kind)) = (long(at), bytes.get(at + 4..at + 8)) {
        let end = length.saturating_add(at + 12);
        if kind == b"IEND" && end <= bytes.len() {
            return Ok([height, width, if matches!(colour, 0 | 4) { 1 } else { 3 }]);
        }
        at = end;
        if at > bytes.len() {
            break;
        }
    }
    Err("it is a PNG image that is cut off".into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Picture;

    #[test]
    fn a_header_says_what_decoding_gives_and_no_cut_file_passes() {
        let dir = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/pictures");
        let mut seen = 0;
        for entry in std::fs::read_dir(dir).unwrap() {
            let bytes = std::fs::read(entry.unwrap().path()).unwrap();
            let Ok(picture) = Picture::decode(&bytes) else { continue };
            let (codec, shape) = probe(&bytes).unwrap();
            assert_eq!(shape, [picture.height, picture.width, picture.channels]);
            assert_eq!(codec == Codec::Png, bytes[0] == 0x89);
            for cut in [0, 1, 7, 20, 30, bytes.len() / 2, bytes.len() - 1] {
                assert!(probe(&bytes[..cut]).is_err(), "cut at {cut}");
            }
            seen += 1;
        }
        assert!(seen >= 4, "{seen}");
        assert!(probe(b"").unwrap_err().contains("empty"));
        assert!(probe(b"GIF89a").unwrap_err().contains("GIF"));
    }
}
