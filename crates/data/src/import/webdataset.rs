//! Tars in which the files of a sample share their name up to the first dot, and lie side by side as a rule: `key.jpg`, `key.cls`
//! (the label in digits), `key.txt`, `key.json` (whose number `label` is the label where there is no `key.cls`), and arrays with
//! a name, as `key.target.npy`, which exports write. Source: Aizman, Maltby and Breuel, "High Performance I/O for Large Scale
//! Deep Learning", 2019.

use std::collections::BTreeMap;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use super::listing::{Import, Layout, LeftOut, Listed, Listing, Part, Store};
use super::npy::{self, Npy};
use super::tar::{Member, Walker, open};
use super::{Format, ImportRequest, Splits, class_names, is_litter, split_folders, visible};
use crate::{Error, FieldSpec, Result};

/// The longest label in digits.
const LONGEST_LABEL: usize = 32;
/// What labels may be without a list of the classes.
const MOST_CLASSES: i64 = 1 << 20;
/// The longest `.json` file that is looked into for a label.
const LONGEST_JSON: u64 = 1 << 20;
/// Names of fields that are no arrays of the user's.
const TAKEN: [&str; 4] = ["image", "label", "text", "json"];

pub(super) fn import(request: &ImportRequest) -> Result<Import> {
    let source = &request.source;
    let (folder, Splits { folders: parts, mut warnings }) = match source.is_dir() {
        true => (source.clone(), split_folders(source)?),
        false => {
            let folder = source.parent().unwrap_or(Path::new("."));
            (folder.to_owned(), Splits { folders: vec![(None, source.clone())], warnings: Vec::new() })
        }
    };
    let names = class_names(request, &folder, &parts)?;
    let mut splits = Vec::new();
    for (split, path) in parts {
        splits.push((split, list(&path)?));
    }
    alike(splits.iter_mut().map(|(_, found)| found).collect());
    // All splits have the same classes, however few of them one shows.
    let highest = splits.iter().map(|(_, found)| found.highest).max().unwrap_or(-1);
    let classes = names.unwrap_or_else(|| (0..=highest).map(|c| c.to_string()).collect());
    let splits = splits.into_iter().map(|(split, found)| {
        let mut listing = found.listing;
        listing.warnings.append(&mut warnings);
        listing.classes = if found.highest < 0 { Vec::new() } else { classes.clone() };
        Ok((split, listing.finish()?))
    });
    Ok(Import { format: Format::Webdataset, splits: splits.collect::<Result<_>>()?, meta: BTreeMap::new() })
}

struct Found {
    listing: Listing,
    /// The highest label; -1 where there is none.
    highest: i64,
    /// The fields after the image, which the first sample has said.
    more: Option<Vec<More>>,
}

/// What a file of a sample becomes, in the order of the fields.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Kind {
    Text,
    Json,
    /// With its name.
    Array(String),
}

impl Kind {
    fn ending(&self) -> String {
        match self {
            Kind::Text => "txt".into(),
            Kind::Json => "json".into(),
            Kind::Array(name) => format!("{name}.npy"),
        }
    }
}

/// A field after the image.
struct More {
    kind: Kind,
    /// Of an array.
    npy: Option<Npy>,
    /// Whether it is a row that is not as long in all samples.
    varies: bool,
}

impl More {
    fn listed(&self) -> Listed {
        match (&self.kind, &self.npy) {
            (Kind::Array(name), Some(npy)) if self.varies => {
                Listed { spec: FieldSpec::array(name.as_str(), npy.dtype, &[0], true), layout: Layout::List }
            }
            (Kind::Array(name), Some(npy)) => Listed {
                spec: FieldSpec::array(name.as_str(), npy.dtype, &npy.shape, false),
                layout: Layout::Elements,
            },
            (Kind::Json, _) => Listed::text("json"),
            _ => Listed::text("text"),
        }
    }

    /// Takes note of another sample's array; says what differs that must not.
    fn meet(&mut self, other: &Npy) -> std::result::Result<(), String> {
        let Some(npy) = &self.npy else { return Ok(()) };
        if npy.dtype != other.dtype {
            return Err(format!("holds {:?}, and that of the first sample {:?}", other.dtype, npy.dtype));
        }
        if npy.shape != other.shape {
            if npy.shape.len() != 1 || other.shape.len() != 1 {
                let problem = "only rows may differ in their length";
                return Err(format!(
                    "has the shape {:?}, and the first one {:?}; {problem}",
                    other.shape, npy.shape
                ));
            }
            self.varies = true;
        }
        Ok(())
    }
}

/// Rows that are not as long in one split as in the other are of any length in both.
fn alike(mut splits: Vec<&mut Found>) {
    let all: Vec<(Kind, Option<Npy>, bool)> = splits
        .iter()
        .flat_map(|s| s.more.iter().flatten())
        .map(|m| (m.kind.clone(), m.npy.clone(), m.varies))
        .collect();
    for found in &mut splits {
        let Found { listing, more, .. } = &mut **found;
        for (i, one) in more.iter_mut().flatten().enumerate() {
            for (kind, npy, varies) in &all {
                if *kind != one.kind {
                    continue;
                }
                // Splits that differ in more are no matter of this one.
                let met = npy.as_ref().map_or(Ok(()), |npy| one.meet(npy));
                one.varies |= *varies && met.is_ok();
            }
            listing.fields[i + 1] = one.listed();
        }
    }
}

/// The files of one sample.
#[derive(Default)]
struct Group {
    image: Option<Part>,
    label: Option<i64>,
    more: BTreeMap<Kind, (Part, Option<Npy>)>,
}

fn tars(path: &Path) -> Result<Vec<(String, PathBuf)>> {
    if !path.is_dir() {
        let stem = path.file_stem().and_then(|s| s.to_str()).unwrap_or("tar");
        return Ok(vec![(stem.to_owned(), path.to_owned())]);
    }
    let names = visible(path)?.into_iter().filter(|(_, is_dir)| !is_dir);
    let tars = names.filter_map(|(n, _)| n.strip_suffix(".tar").map(|stem| (stem.to_owned(), path.join(&n))));
    Ok(tars.collect())
}

fn list(path: &Path) -> Result<Found> {
    let tars = tars(path)?;
    let mut alone = None;
    let mut found = Found { listing: Listing::new(path, Vec::new()), highest: -1, more: None };
    let mut left_out = LeftOut::default();
    for (stem, path) in tars {
        let (file, length) = open(&path)?;
        let store = found.listing.store(Store::File(path.clone()));
        let mut walker = Walker::new(&file, &path, length)?;
        // Whole tars at a time: their files may have been packed in any order.
        let mut groups: BTreeMap<String, Group> = BTreeMap::new();
        while let Some(member) = walker.next()? {
            let parts = if is_litter(&member.name) { None } else { key_and_end(&member.name) };
            let Some((key, end)) = parts else {
                left_out.add("files without an ending, or hidden", &member.name);
                continue;
            };
            let group = match groups.get_mut(key) {
                Some(group) => group,
                None => groups.entry(key.to_owned()).or_default(),
            };
            let part = Part { offset: member.offset, length: member.length, store };
            let end = end.to_ascii_lowercase();
            let repeated = match end.as_str() {
                "jpg" | "jpeg" | "png" => group.image.replace(part).is_some(),
                "cls" => {
                    let text = walker.content(&member, LONGEST_LABEL)?;
                    group.label.replace(label(&path, &member, &text)?).is_some()
                }
                "txt" => group.more.insert(Kind::Text, (part, None)).is_some(),
                "json" => group.more.insert(Kind::Json, (part, None)).is_some(),
                _ => match array(&file, &path, &member, &end)? {
                    Ok((kind, npy)) => {
                        let elements =
                            Part { offset: part.offset + npy.at, length: part.length - npy.at, ..part };
                        group.more.insert(kind, (elements, Some(npy))).is_some()
                    }
                    Err(problem) => {
                        left_out.add(&format!("files that end in {end:?}{problem}"), &member.name);
                        false
                    }
                },
            };
            if repeated {
                let problem = format!("byte {}: sample {key:?} has two files of one kind", member.offset);
                return Err(Error::format(path, problem));
            }
        }
        for (key, mut group) in groups {
            if let (Some(_), None, Some((json, _))) = (group.image, group.label, group.more.get(&Kind::Json))
            {
                match json_label(&file, &path, json)? {
                    Ok(label) => group.label = label,
                    Err(()) => left_out.add("labels in .json files, which are no numbers from 0", &key),
                }
            }
            if group.image.is_none() && group.label.is_some() && alone.is_none() {
                alone = Some((path.clone(), key.clone()));
            }
            put(&mut found, &key, group, &stem, &path, &mut left_out)?;
        }
    }
    // A set whose labels are all of no image has them under other keys, and would be one without labels.
    if let Some((path, key)) = alone.filter(|_| found.highest < 0 && !found.listing.is_empty()) {
        let problem = format!(
            "sample {key:?} has a label and no image, and no image has a label: the files of a sample share their \
             name up to its first dot, with the folders before it"
        );
        return Err(Error::format(path, problem));
    }
    found.listing.warnings.extend(left_out.warnings());
    Ok(found)
}

/// A sample's key and the file's ending, split at the first dot of the last part of the path.
fn key_and_end(name: &str) -> Option<(&str, &str)> {
    let base = name.rfind('/').map_or(0, |slash| slash + 1);
    let dot = base + name[base..].find('.')?;
    (dot > base && dot + 1 < name.len()).then(|| (&name[..dot], &name[dot + 1..]))
}

fn label(path: &Path, member: &Member, text: &[u8]) -> Result<i64> {
    let number = std::str::from_utf8(text).ok().and_then(|t| t.trim().parse().ok());
    number.filter(|n| (0..MOST_CLASSES).contains(n)).ok_or_else(|| {
        let shown = String::from_utf8_lossy(text);
        let problem = format!("entry {:?}, byte {}: {shown:?} is no label", member.name, member.offset);
        Error::format(path, problem)
    })
}

/// What an array's file holds; the inner error says why it is left out.
fn array(
    file: &File,
    path: &Path,
    member: &Member,
    end: &str,
) -> Result<std::result::Result<(Kind, Npy), String>> {
    let Some(name) = end.strip_suffix(".npy").filter(|name| !name.is_empty() && !TAKEN.contains(name)) else {
        return Ok(Err(String::new()));
    };
    let mut head = vec![0; member.length.min(npy::LONGEST) as usize];
    file.read_exact_at(&mut head, member.offset).map_err(Error::io("read", path))?;
    let npy = npy::header(&head, member.length);
    Ok(npy
        .map(|npy| (Kind::Array(name.to_owned()), npy))
        .map_err(|problem| format!(" (the first one {problem})")))
}

/// The number `label` of a sample's description, if it has one; an inner error where it is no label.
fn json_label(file: &File, path: &Path, json: &Part) -> Result<std::result::Result<Option<i64>, ()>> {
    if json.length > LONGEST_JSON {
        return Ok(Ok(None));
    }
    let mut text = vec![0; json.length as usize];
    file.read_exact_at(&mut text, json.offset).map_err(Error::io("read", path))?;
    // What is no JSON is kept as it is and says nothing.
    let said = serde_json::from_slice::<serde_json::Value>(&text).ok();
    Ok(match said.as_ref().and_then(|said| said.get("label")) {
        None | Some(serde_json::Value::Null) => Ok(None),
        Some(label) => label.as_i64().filter(|n| (0..MOST_CLASSES).contains(n)).map(Some).ok_or(()),
    })
}

/// Adds a sample; the first one says which fields all have.
fn put(
    found: &mut Found,
    key: &str,
    group: Group,
    stem: &str,
    path: &Path,
    left_out: &mut LeftOut,
) -> Result<()> {
    let Some(image) = group.image else {
        left_out.add("samples without an image", key);
        return Ok(());
    };
    let more = found.more.get_or_insert_with(|| {
        let of = |(kind, (_, npy)): (&Kind, &(Part, Option<Npy>))| {
            // As many labels as a sample has, also where the first ones have the same number.
            let varies = matches!(kind, Kind::Array(name) if name == "labels")
                && npy.as_ref().is_some_and(|npy| npy.shape.len() == 1);
            More { kind: kind.clone(), npy: npy.clone(), varies }
        };
        let more: Vec<More> = group.more.iter().map(of).collect();
        found.listing.fields.push(Listed::images());
        found.listing.fields.extend(more.iter().map(More::listed));
        more
    });
    let has = |kind: &Kind| more.iter().any(|m| m.kind == *kind);
    let lacks = more.iter().map(|m| &m.kind).find(|kind| !group.more.contains_key(kind));
    if let Some(kind) = lacks.or(group.more.keys().find(|kind| !has(kind))) {
        let problem = format!("sample {key:?} and the first one differ in having a .{} file", kind.ending());
        return Err(Error::format(path, problem));
    }
    for (one, npy) in more.iter_mut().zip(group.more.values().map(|(_, npy)| npy)) {
        let met = npy.as_ref().map_or(Ok(()), |npy| one.meet(npy));
        met.map_err(|problem| {
            Error::format(path, format!("sample {key:?}: its .{} file {problem}", one.kind.ending()))
        })?;
    }
    let parts: Vec<Part> = std::iter::once(image).chain(group.more.values().map(|(part, _)| *part)).collect();
    found.highest = found.highest.max(group.label.unwrap_or(-1));
    found.listing.add(&format!("{stem}/{key}"), group.label, &parts)
}
