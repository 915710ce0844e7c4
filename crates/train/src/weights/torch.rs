//! Files of `torch.save`: the zip archives since PyTorch 1.6, and the pickles in a row before it
//! (`torch/serialization.py`, `_save` and `_legacy_save`).

use std::borrow::Cow;
use std::collections::HashMap;

use phalanx_host::DType;

use super::archive::{self, Archive, Found};
use super::pickle::{Id, Kind, Pickle, Tensor, Value};
use crate::task::{Array, Arrays};

/// How the files before 1.6 begin: a pickle of the number 0x1950a86a20f9469cfc6c. Between the two parts is
/// the pickle's protocol.
const LEGACY: [&[u8]; 2] =
    [&[0x80], &[0x8a, 0x0a, 0x6c, 0xfc, 0x9c, 0x46, 0xf9, 0x20, 0x6a, 0xa8, 0x50, 0x19, b'.']];

/// Where training scripts keep the weights among other things.
const NESTS: [&str; 4] = ["state_dict", "model_state_dict", "model", "net"];

/// All tensors of a file together may be so many times as large as the file: views of one storage can be
/// larger than it, and a hostile file's without bound.
const MOST_TIMES: usize = 8;

/// Whether a file that begins so is one of PyTorch's.
pub(super) fn is_torch(bytes: &[u8]) -> bool {
    bytes.starts_with(archive::MAGIC) || is_legacy(bytes)
}

fn is_legacy(bytes: &[u8]) -> bool {
    bytes.starts_with(LEGACY[0]) && bytes.get(2..).is_some_and(|rest| rest.starts_with(LEGACY[1]))
}

/// The tensors of a file's state_dict.
pub(super) fn read(bytes: &[u8]) -> Found<Arrays> {
    let (pickle, storages) = if is_legacy(bytes) { legacy(bytes)? } else { zipped(bytes)? };
    let dict = state_dict(&pickle)?;
    let mut room = bytes.len().saturating_mul(MOST_TIMES);
    let mut arrays = Arrays::new();
    for (name, id) in pickle.entries(dict) {
        let Value::Tensor(tensor) = *pickle.get(id) else { continue };
        let tensor = &pickle.tensors[tensor as usize];
        let storage = &pickle.storages[tensor.storage as usize];
        let elements = storages.get(&storage.key).copied().unwrap_or_default();
        let array = gather(tensor, storage.kind, elements, &mut room)
            .map_err(|e| format!("its tensor {name}: {e}"))?;
        arrays.insert(name.to_owned(), array);
    }
    Ok(arrays)
}

/// A pickle, and the bytes of its storages by key.
type Parts<'a> = (Pickle, HashMap<String, &'a [u8]>);

fn zipped(bytes: &[u8]) -> Found<Parts<'_>> {
    let archive = Archive::open(bytes)?;
    let is_pickle = |name: &&str| name.strip_suffix("/data.pkl").is_some_and(|folder| !folder.contains('/'));
    let Some(name) = archive.names().find(is_pickle) else {
        return Err("it is a zip archive without PyTorch's data.pkl".into());
    };
    let folder = name.trim_end_matches("data.pkl");
    if archive.names().any(|n| n.strip_prefix(folder) == Some("constants.pkl")) {
        return Err(
            "it is a TorchScript program, which is not executed: save its state_dict() instead".into()
        );
    }
    let order = format!("{folder}byteorder");
    if archive.names().any(|n| n == order) && archive.get(&order)? != b"little" {
        return Err("its numbers have their highest byte first: save it on a usual machine".into());
    }
    let pickle = Pickle::read(archive.get(name)?)?;
    let mut storages = HashMap::new();
    for storage in &pickle.storages {
        if !storages.contains_key(&storage.key) {
            storages.insert(storage.key.clone(), archive.get(&format!("{folder}data/{}", storage.key))?);
        }
    }
    Ok((pickle, storages))
}

/// The magic number, the protocol's number, facts on the machine, the value, the storages' keys; then each
/// storage: its number of elements (8 bytes) and the elements.
fn legacy(bytes: &[u8]) -> Found<Parts<'_>> {
    let mut rest = bytes;
    let mut next = || {
        let pickle = Pickle::read(rest)?;
        rest = &rest[pickle.len..];
        Ok::<_, String>(pickle)
    };
    next()?;
    let protocol = next()?;
    if !matches!(protocol.get(protocol.root), Value::Int(1001)) {
        return Err("its protocol is not 1001: save it anew with a newer PyTorch".into());
    }
    next()?;
    let (pickle, keys) = (next()?, next()?);
    let kinds: HashMap<&str, Kind> = pickle.storages.iter().map(|s| (s.key.as_str(), s.kind)).collect();
    let mut storages = HashMap::new();
    let Value::List(list) = keys.get(keys.root) else {
        return Err("its list of storages is missing".into());
    };
    for &key in list {
        let Value::Text(key) = keys.get(key) else { return Err("a storage's key is no text".into()) };
        let kind =
            kinds.get(key.as_str()).ok_or_else(|| format!("its storage {key:?} belongs to no tensor"))?;
        let cut = || format!("its storage {key:?} is cut off");
        let (count, after) = rest.split_first_chunk::<8>().ok_or_else(cut)?;
        let len = usize::try_from(u64::from_le_bytes(*count)).ok().and_then(|n| n.checked_mul(kind.size()));
        let (elements, after) = len.and_then(|len| after.split_at_checked(len)).ok_or_else(cut)?;
        storages.insert(key.clone(), elements);
        rest = after;
    }
    Ok((pickle, storages))
}

/// The dictionary that holds the weights: the whole, or what stands under a usual name in it.
fn state_dict(pickle: &Pickle) -> Found<Id> {
    let mut at = pickle.root;
    // A checkpoint in a checkpoint is usual, more is not.
    for _ in 0..NESTS.len() {
        let named = |nest: &&str| {
            let mut entries = pickle.entries(at);
            entries.find(|(key, id)| key == nest && matches!(pickle.get(*id), Value::Dict(_))).map(|e| e.1)
        };
        match NESTS.iter().find_map(named) {
            Some(inner) => at = inner,
            None => break,
        }
    }
    if pickle.entries(at).any(|(_, id)| matches!(pickle.get(id), Value::Tensor(_))) {
        return Ok(at);
    }
    let keys: Vec<&str> = pickle.entries(at).map(|e| e.0).take(8).collect();
    Err(match pickle.get(at) {
        Value::Dict(_) => format!(
            "it has no tensors by name; its keys are {keys:?}, and the weights may be under {NESTS:?}"
        ),
        _ => "it holds no dictionary of tensors: save model.state_dict()".into(),
    })
}

/// The elements of a view, row-major.
pub(super) fn gather(tensor: &Tensor, kind: Kind, storage: &[u8], room: &mut usize) -> Found<Array> {
    let (size, held) = (kind.size(), (storage.len() / kind.size()) as u64);
    let shape = tensor.sizes.iter().map(|&n| usize::try_from(n).map_err(|e| e.to_string()));
    let shape = shape.collect::<Found<Vec<usize>>>()?;
    let count = tensor.sizes.iter().try_fold(1u64, |n, &s| n.checked_mul(s));
    let len = count.and_then(|n| usize::try_from(n).ok()?.checked_mul(size)).filter(|len| len <= room);
    let len = len.ok_or_else(|| format!("its shape {shape:?} is larger than the file can hold"))?;
    *room -= len;
    if len == 0 {
        return Ok(kind.array(shape, Cow::default()));
    }
    // The place of the last element.
    let steps = tensor.sizes.iter().zip(&tensor.strides);
    let last = steps.clone().try_fold(tensor.offset, |at, (&n, &stride)| {
        at.checked_add(n.saturating_sub(1).checked_mul(stride)?)
    });
    if last.is_none_or(|last| last >= held) {
        return Err(format!("its view of shape {shape:?} goes beyond its storage of {held} elements"));
    }
    let mut contiguous = 1;
    let is_plain = steps.rev().all(|(&n, &stride)| {
        let fits = n == 1 || stride == contiguous;
        contiguous *= n;
        fits
    });
    let start = tensor.offset as usize * size;
    let bytes = match is_plain {
        true => Cow::Borrowed(&storage[start..start + len]),
        false => Cow::Owned(walk(tensor, size, storage, len)),
    };
    Ok(kind.array(shape, bytes))
}

/// The elements of a view that is known to lie inside its storage and to have some.
fn walk(tensor: &Tensor, size: usize, storage: &[u8], len: usize) -> Vec<u8> {
    let mut out = Vec::with_capacity(len);
    let mut index = vec![0u64; tensor.sizes.len()];
    let mut at = tensor.offset;
    while out.len() < len {
        let start = at as usize * size;
        out.extend_from_slice(&storage[start..start + size]);
        for (axis, i) in index.iter_mut().enumerate().rev() {
            (*i, at) = (*i + 1, at + tensor.strides[axis]);
            if *i < tensor.sizes[axis] {
                break;
            }
            at -= *i * tensor.strides[axis];
            *i = 0;
        }
    }
    out
}

impl Kind {
    /// An array of such elements. Whole numbers become i64: none of them are weights.
    fn array(self, shape: Vec<usize>, bytes: Cow<[u8]>) -> Array {
        fn whole<const N: usize>(bytes: &[u8], of: impl Fn([u8; N]) -> i64) -> Vec<u8> {
            bytes.as_chunks::<N>().0.iter().flat_map(|&b| of(b).to_le_bytes()).collect()
        }
        let (dtype, bytes) = match self {
            Kind::F64 => (DType::F64, bytes.into_owned()),
            Kind::F32 => (DType::F32, bytes.into_owned()),
            Kind::F16 => (DType::F16, bytes.into_owned()),
            Kind::BF16 => (DType::BF16, bytes.into_owned()),
            Kind::I64 => (DType::I64, bytes.into_owned()),
            Kind::I32 => (DType::I64, whole(&bytes, |b| i32::from_le_bytes(b).into())),
            Kind::I16 => (DType::I64, whole(&bytes, |b| i16::from_le_bytes(b).into())),
            Kind::I8 => (DType::I64, whole(&bytes, |[b]| (b as i8).into())),
            Kind::U8 | Kind::Bool => (DType::U8, bytes.into_owned()),
        };
        Array { dtype, shape, bytes }
    }
}
