//! The headers of NumPy's files. Source: NumPy's documentation, "A simple file format for NumPy arrays" (NEP 1).

use phalanx_host::DType;

/// The longest header that is looked at; those of plain arrays have 128 bytes.
pub(super) const LONGEST: u64 = 4096;

/// What lies in a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Npy {
    pub(super) dtype: DType,
    pub(super) shape: Vec<usize>,
    /// Where the elements begin; they go on to the end of the file.
    pub(super) at: u64,
}

/// Reads the header of a file of `length` bytes whose first bytes are `head`. The error says what is not known of it.
pub(super) fn header(head: &[u8], length: u64) -> Result<Npy, String> {
    let bytes = |n: usize| head.get(8..8 + n).ok_or("is cut off in its header");
    let (size, begin) = match head.get(..8) {
        Some([0x93, b'N', b'U', b'M', b'P', b'Y', 1, _]) => {
            (bytes(2)?.iter().rev().fold(0, |n, &b| n << 8 | usize::from(b)), 10)
        }
        Some([0x93, b'N', b'U', b'M', b'P', b'Y', 2 | 3, _]) => {
            (bytes(4)?.iter().rev().fold(0, |n, &b| n << 8 | usize::from(b)), 12)
        }
        _ => return Err("is no NumPy file of version 1 to 3".into()),
    };
    let text = head
        .get(begin..)
        .and_then(|rest| rest.get(..size))
        .ok_or("has too long a header, or is cut off in it")?;
    let text = std::str::from_utf8(text).map_err(|_| "has a header that is no text")?;
    let value = |key: &str| {
        let from = text.find(&format!("'{key}':")).ok_or_else(|| format!("has a header without {key:?}"))?;
        Ok::<_, String>(text[from + key.len() + 3..].trim_start())
    };
    let kind =
        value("descr")?.strip_prefix('\'').and_then(|rest| rest.split_once('\'')).map(|(kind, _)| kind);
    let dtype = match kind {
        Some("|u1") => DType::U8,
        Some("<i8") => DType::I64,
        Some("<f2") => DType::F16,
        Some("<f4") => DType::F32,
        Some("<f8") => DType::F64,
        other => {
            let other = other.unwrap_or("records");
            return Err(format!(
                "holds {other}; u1, i8 (64 bits), f2, f4 and f8 are known, in little-endian order"
            ));
        }
    };
    let sides = value("shape")?.strip_prefix('(').and_then(|rest| rest.split_once(')'));
    let sides = sides.map(|(sides, _)| sides.split(',').map(str::trim).filter(|side| !side.is_empty()));
    let shape: Option<Vec<usize>> = sides.and_then(|sides| sides.map(|side| side.parse().ok()).collect());
    let shape = shape.ok_or("has a header without a shape")?;
    if shape.len() > 1 && !value("fortran_order")?.starts_with("False") {
        return Err("has its columns first; numpy.ascontiguousarray puts rows first".into());
    }
    let at = (begin + size) as u64;
    let wanted = shape.iter().try_fold(dtype.size(), |all, &side| all.checked_mul(side));
    match wanted.and_then(|wanted| at.checked_add(wanted as u64)) {
        Some(wanted) if wanted == length => Ok(Npy { dtype, shape, at }),
        _ => Err(format!("has {length} bytes, which is not what its shape {shape:?} takes")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(version: u8, text: &str, content: &[u8]) -> Vec<u8> {
        let size = (text.len() as u32).to_le_bytes();
        let size = if version == 1 { &size[..2] } else { &size[..] };
        [b"\x93NUMPY", &[version, 0][..], size, text.as_bytes(), content].concat()
    }

    #[test]
    fn headers_of_all_versions_say_type_and_shape() {
        let read = |file: &[u8]| header(file, file.len() as u64);
        let text = "{'descr': '<f4', 'fortran_order': False, 'shape': (2, 3), }\n";
        for version in 1..=3 {
            let npy = read(&file(version, text, &[0; 24])).unwrap();
            assert_eq!((npy.dtype, &npy.shape[..]), (DType::F32, &[2, 3][..]));
            assert_eq!(npy.at as usize, text.len() + if version == 1 { 10 } else { 12 });
        }
        let of = |kind: &str, order: &str, shape: &str, n: usize| {
            read(&file(
                1,
                &format!("{{'descr': {kind}, 'fortran_order': {order}, 'shape': {shape}}}"),
                &vec![0; n],
            ))
        };
        assert_eq!(of("'<i8'", "True", "(2,)", 16).unwrap().shape, [2]);
        assert_eq!(of("'|u1'", "False", "()", 1).unwrap().shape, [0; 0]);
        for (found, expected) in [
            (of("'<f4'", "True", "(2, 3)", 24), "columns first"),
            (of("'<i4'", "False", "(2,)", 8), "holds <i4; u1, i8"),
            (of("'>f4'", "False", "(2,)", 8), "holds >f4"),
            (of("[('a', '<f4')]", "False", "(2,)", 8), "holds records"),
            (of("'<f4'", "False", "(2,)", 7), "not what its shape [2] takes"),
            (of("'<f4'", "False", "(-2,)", 8), "without a shape"),
            (of("'<f4'", "False", "(18446744073709551615, 9)", 8), "not what its shape"),
            (read(b"x"), "is no NumPy file"),
            (read(&file(4, text, b"")), "is no NumPy file"),
            (read(&file(1, "{}", b"")), "without \"descr\""),
        ] {
            let found = found.unwrap_err();
            assert!(found.contains(expected), "{found:?} lacks {expected:?}");
        }
    }

    #[test]
    fn damage_is_no_panic() {
        let whole = file(1, "{'descr': '<f8', 'fortran_order': False, 'shape': (1, 2), }\n", &[0; 16]);
        for cut in 0..whole.len() {
            assert!(header(&whole[..cut], cut as u64).is_err(), "cut at {cut}");
        }
        for at in 0..whole.len() {
            for bit in 0..8 {
                let mut bent = whole.clone();
                bent[at] ^= 1 << bit;
                // Any answer will do.
                drop(header(&bent, bent.len() as u64));
            }
        }
    }
}
