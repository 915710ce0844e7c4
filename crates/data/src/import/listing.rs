//! What an importer gives: a list of samples and of the places where their bytes lie.

use std::collections::BTreeMap;
use std::fs::Metadata;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::{Error, FieldSpec, Result, Source};

/// How the bytes of a listed field become the elements of its specification.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Layout {
    /// An image file; its first bytes say which kind.
    Image,
    /// The elements as they are.
    Elements,
    /// Pixels with one plane for each channel, which are stored with the channels last.
    Planes,
    /// One byte, which becomes an i64.
    Number,
    /// Any number of elements, as they are.
    List,
}

/// A field of the listed samples.
#[derive(Debug, Clone)]
pub(crate) struct Listed {
    pub(crate) spec: FieldSpec,
    pub(crate) layout: Layout,
}

impl Listed {
    /// Image files of any size, of three channels.
    pub(crate) fn images() -> Self {
        let spec = FieldSpec { variable: true, ..FieldSpec::image([0, 0, 3], 255.0) };
        Listed { spec, layout: Layout::Image }
    }

    /// Bytes of text.
    pub(crate) fn text(name: &str) -> Self {
        let spec = FieldSpec::array(name, phalanx_host::DType::U8, &[0], true);
        Listed { spec, layout: Layout::List }
    }

    /// The numbers of any number of classes.
    pub(crate) fn labels(name: &str) -> Self {
        let spec = FieldSpec::array(name, phalanx_host::DType::I64, &[0], true);
        Listed { spec, layout: Layout::List }
    }
}

/// What parts lie in.
#[derive(Debug)]
pub(crate) enum Store {
    /// A folder: the part is a file of its own, and the sample's key is its path from there.
    Folder(PathBuf),
    /// A file of many samples.
    File(PathBuf),
    /// What an importer read already.
    Memory(Vec<u8>),
    /// An open set: the offset is a sample's id.
    Set(Arc<dyn Source>),
}

/// Where one field of one sample lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Part {
    pub(crate) offset: u64,
    pub(crate) length: u64,
    /// Which store.
    pub(crate) store: u32,
}

#[derive(Debug, Clone, Copy)]
struct Entry {
    key_at: u64,
    label: i64,
    key_len: u32,
    /// The first of its parts, in units of samples.
    parts: u32,
    /// A mark of when its own file was written; 0 where it has none.
    written: u64,
}

/// A sample that the source names and does not have.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Missing {
    pub(crate) key: String,
    pub(crate) problem: String,
}

/// The samples of one split of a source, sorted by the bytes of their keys, so that the order in which a file
/// system tells its files does not matter. About 90 bytes a sample.
#[derive(Debug)]
pub struct Listing {
    /// Where it comes from, for messages.
    pub(crate) path: PathBuf,
    pub(crate) fields: Vec<Listed>,
    /// Names of the classes; empty for samples without labels.
    pub(crate) classes: Vec<String>,
    pub(crate) stores: Vec<Store>,
    /// What was left out or looks wrong, for people.
    pub(crate) warnings: Vec<String>,
    pub(crate) missing: Vec<Missing>,
    keys: String,
    entries: Vec<Entry>,
    parts: Vec<Part>,
}

/// The label of a sample that has none.
const NO_LABEL: i64 = i64::MIN;

impl Listing {
    /// An empty listing of samples with these fields.
    pub(crate) fn new(path: &Path, fields: Vec<Listed>) -> Self {
        Listing {
            path: path.to_owned(),
            fields,
            classes: Vec::new(),
            stores: Vec::new(),
            warnings: Vec::new(),
            missing: Vec::new(),
            keys: String::new(),
            entries: Vec::new(),
            parts: Vec::new(),
        }
    }

    /// Adds a place for parts and gives its number.
    pub(crate) fn store(&mut self, store: Store) -> u32 {
        self.stores.push(store);
        (self.stores.len() - 1) as u32
    }

    /// Adds a sample; `parts` has one of each field.
    pub(crate) fn add(&mut self, key: &str, label: Option<i64>, parts: &[Part]) -> Result<()> {
        let number = u32::try_from(self.entries.len());
        let (Ok(number), true) = (number, parts.len() == self.fields.len()) else {
            let problem = format!("sample {key:?} has {} fields, or is one too many", parts.len());
            return Err(Error::format(&self.path, problem));
        };
        self.entries.push(Entry {
            key_at: self.keys.len() as u64,
            key_len: key.len() as u32,
            label: label.unwrap_or(NO_LABEL),
            parts: number,
            written: 0,
        });
        self.keys.push_str(key);
        self.parts.extend_from_slice(parts);
        Ok(())
    }

    /// Takes note of the mark ([`written_at`]) of the file of the sample that was added last.
    pub(crate) fn written(&mut self, mark: u64) {
        if let Some(entry) = self.entries.last_mut() {
            entry.written = mark;
        }
    }

    /// Marks of when the samples of each of these groups were written: another one where a file was replaced, though by one of
    /// its size.
    pub(crate) fn written_marks<G: Iterator<Item = u64>>(
        &self,
        groups: impl Iterator<Item = G>,
    ) -> Result<Vec<u64>> {
        let of_store = |store: &Store| match store {
            Store::File(path) => {
                let meta = std::fs::metadata(path).map_err(Error::io("read", path))?;
                Ok(written_at(&meta))
            }
            Store::Memory(bytes) => Ok(mark(bytes)),
            Store::Folder(_) | Store::Set(_) => Ok(0),
        };
        let stores = self.stores.iter().map(of_store).collect::<Result<Vec<u64>>>()?;
        let of_sample = |i: u64| {
            let parts = self.parts(i).iter().map(|p| stores[p.store as usize]);
            parts.fold(self.entries[i as usize].written, u64::wrapping_add)
        };
        // Numbered, so that two files that change places are seen.
        let numbered = |(n, i): (u64, u64)| of_sample(i).wrapping_mul(2 * n + 1);
        Ok(groups.map(|group| (0..).zip(group).map(numbered).fold(0, u64::wrapping_add)).collect())
    }

    /// Sorts the samples and checks keys and labels.
    pub(crate) fn finish(mut self) -> Result<Self> {
        let keys = std::mem::take(&mut self.keys);
        let key = |e: &Entry| &keys.as_bytes()[e.key_at as usize..][..e.key_len as usize];
        self.entries.sort_unstable_by(|a, b| key(a).cmp(key(b)));
        let twice = self.entries.windows(2).find(|pair| key(&pair[0]) == key(&pair[1]));
        let twice = twice.map(|pair| String::from_utf8_lossy(key(&pair[0])).into_owned());
        self.keys = keys;
        if let Some(twice) = twice {
            return Err(Error::format(&self.path, format!("there are two samples {twice:?}")));
        }
        let classes = self.classes.len();
        let wrong = |l: i64| if classes == 0 { l != NO_LABEL } else { l < 0 || l >= classes as i64 };
        if let Some(i) = self.entries.iter().position(|e| wrong(e.label)) {
            let problem = match self.entries[i].label {
                NO_LABEL => "it has no label and others have".to_owned(),
                label => format!("it has label {label}, but there are {classes} classes (0..{classes})"),
            };
            return Err(Error::format(&self.path, format!("sample {:?}: {problem}", self.key(i as u64))));
        }
        self.missing.sort_unstable_by(|a, b| a.key.cmp(&b.key));
        let fields = self.fields.len();
        for (f, listed) in self.fields.iter_mut().enumerate().filter(|(_, l)| l.layout == Layout::List) {
            let longest = self.parts.iter().skip(f).step_by(fields).map(|p| p.length).max().unwrap_or(0);
            listed.spec.shape = vec![(longest as usize / listed.spec.dtype.size()).max(1)];
        }
        Ok(self)
    }

    /// The number of samples.
    pub fn len(&self) -> u64 {
        self.entries.len() as u64
    }

    /// Whether there are no samples.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// The key of sample `i`, which must be below `len`.
    pub fn key(&self, i: u64) -> &str {
        let e = &self.entries[i as usize];
        &self.keys[e.key_at as usize..][..e.key_len as usize]
    }

    /// The label of sample `i`; None in a set without labels.
    pub fn label(&self, i: u64) -> Option<i64> {
        let label = self.entries[i as usize].label;
        (label != NO_LABEL).then_some(label)
    }

    /// Where the fields of sample `i` lie.
    pub(crate) fn parts(&self, i: u64) -> &[Part] {
        let fields = self.fields.len();
        &self.parts[self.entries[i as usize].parts as usize * fields..][..fields]
    }

    /// The bytes of all samples.
    pub fn bytes(&self) -> u64 {
        self.parts.iter().map(|p| p.length).sum()
    }

    /// Names, labels and sizes of everything as one hash: what a packing that goes on compares. It does not depend
    /// on where the source lies.
    pub(crate) fn hash_into(&self, hash: &mut blake3::Hasher) {
        let mut text = |t: &str| {
            hash.update(&(t.len() as u64).to_le_bytes());
            hash.update(t.as_bytes());
        };
        self.classes.iter().for_each(|c| text(c));
        self.fields.iter().for_each(|f| text(&format!("{:?} {:?}", f.spec, f.layout)));
        self.missing.iter().for_each(|m| text(&m.key));
        for i in 0..self.len() {
            let key = self.key(i);
            hash.update(&(key.len() as u64).to_le_bytes());
            hash.update(key.as_bytes());
            hash.update(&self.entries[i as usize].label.to_le_bytes());
            for part in self.parts(i) {
                hash.update(&part.length.to_le_bytes());
                // What an importer read itself is in no file whose time would tell of a change.
                if let Store::Memory(bytes) = &self.stores[part.store as usize] {
                    let from = part.offset as usize;
                    hash.update(bytes.get(from..from + part.length as usize).unwrap_or_default());
                }
            }
        }
    }
}

/// A mark of when a file was written.
pub(crate) fn written_at(meta: &Metadata) -> u64 {
    mark(&(i128::from(meta.mtime()) * 1_000_000_000 + i128::from(meta.mtime_nsec())).to_le_bytes())
}

fn mark(bytes: &[u8]) -> u64 {
    let mut word = [0; 8];
    blake3::Hasher::new().update(bytes).finalize_xof().fill(&mut word);
    u64::from_le_bytes(word)
}

/// A source as an importer found it.
#[derive(Debug)]
pub struct Import {
    /// What it was taken for.
    pub format: super::Format,
    /// Its splits: `train` and `val`, or one without a name.
    pub splits: Vec<(Option<&'static str>, Listing)>,
    /// What the finished sets say of where they come from.
    pub meta: BTreeMap<String, String>,
}

/// How often something was left out, by what it was.
#[derive(Debug, Default)]
pub(crate) struct LeftOut(BTreeMap<String, (u64, String)>);

impl LeftOut {
    /// Counts one more of `what`; the first is kept as the example.
    pub(crate) fn add(&mut self, what: &str, example: &str) {
        self.0.entry(what.to_owned()).or_insert_with(|| (0, example.to_owned())).0 += 1;
    }

    /// One warning for each sort.
    pub(crate) fn warnings(self) -> impl Iterator<Item = String> {
        self.0.into_iter().map(|(what, (n, example))| format!("left out {n} {what}, such as {example:?}"))
    }
}
