//! ImageNet (ILSVRC 2012) as distributed: the training tar, which holds a tar for each class, and the validation
//! tar, whose labels are in a list of their own. Nothing is unpacked: the inner tars are walked where they lie.
//!
//! A class's label is its place among the sorted WordNet ids, which is what everybody's pretrained networks use; the
//! list in the development kit counts otherwise, and its own table is needed to understand it.

use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use super::listing::{Import, LeftOut, Listed, Listing, Part, Store};
use super::tar::{Walker, open};
use super::{Format, ImportRequest, TRAIN, VAL, is_image, is_litter, lines_of, mat, visible};
use crate::{Error, Result};

/// The validation labels, as the kit has them (numbers of its own) and as others have written them.
const TRUTHS: [&str; 4] = [
    "imagenet_2012_validation_synset_labels.txt",
    "LOC_val_solution.csv",
    "val.txt",
    "ILSVRC2012_validation_ground_truth.txt",
];
const WORDS: [&str; 2] = ["synset_words.txt", "LOC_synset_mapping.txt"];
const CLSLOC: &str = "map_clsloc.txt";
const META: &str = "meta.mat";
const KIT: &str = "ILSVRC2012_devkit_t12";
/// The kit unpacked is 30 MB.
const MOST_KIT: u64 = 1 << 28;

pub(super) fn is_train_tar(name: &str) -> bool {
    name.ends_with(".tar") && name.contains("img_train")
}

pub(super) fn is_val_tar(name: &str) -> bool {
    name.ends_with(".tar") && name.contains("img_val")
}

/// WordNet's id and words of a line such as `n01440764 tench, Tinca tinca`.
pub(super) fn synset_line(line: &str) -> Option<(&str, &str)> {
    let (wnid, words) = line.split_once(' ').unwrap_or((line, ""));
    let is_wnid = wnid.len() == 9 && wnid.starts_with('n') && wnid[1..].bytes().all(|b| b.is_ascii_digit());
    is_wnid.then_some((wnid, words.trim()))
}

/// What lies beside the tars: small files by name, also those of the kit, packed or not.
struct Beside {
    dir: PathBuf,
    files: HashMap<String, Vec<u8>>,
}

impl Beside {
    fn new(dir: &Path) -> Result<Self> {
        let mut files = HashMap::new();
        let wanted: Vec<&str> = TRUTHS.into_iter().chain(WORDS).chain([CLSLOC, META]).collect();
        let kit = dir.join(format!("{KIT}.tar.gz"));
        if kit.is_file() {
            let unpacked =
                flate2::read::MultiGzDecoder::new(File::open(&kit).map_err(Error::io("read", &kit))?);
            let damaged = |e: std::io::Error| Error::format(&kit, format!("cannot be unpacked: {e}"));
            let mut archive = ::tar::Archive::new(unpacked.take(MOST_KIT));
            for entry in archive.entries().map_err(damaged)? {
                let mut entry = entry.map_err(damaged)?;
                let name =
                    entry.path().map_err(damaged)?.file_name().map(|n| n.to_string_lossy().into_owned());
                if let Some(name) = name.filter(|n| wanted.contains(&n.as_str())) {
                    let mut bytes = Vec::new();
                    entry.read_to_end(&mut bytes).map_err(damaged)?;
                    files.insert(name, bytes);
                }
            }
        }
        for folder in [dir.join(KIT).join("data"), dir.join("data"), dir.to_owned()] {
            for name in &wanted {
                let path = folder.join(name);
                if path.is_file() {
                    files.insert((*name).to_owned(), std::fs::read(&path).map_err(Error::io("read", path))?);
                }
            }
        }
        Ok(Beside { dir: dir.to_owned(), files })
    }

    fn lines(&self, name: &str) -> Result<Option<Vec<String>>> {
        let Some(bytes) = self.files.get(name) else { return Ok(None) };
        let text = std::str::from_utf8(bytes)
            .map_err(|_| Error::format(self.dir.join(name), "is not UTF-8 text"))?;
        Ok(Some(text.lines().map(|l| l.trim().to_owned()).filter(|l| !l.is_empty()).collect()))
    }

    fn meta(&self) -> Result<Vec<mat::Synset>> {
        let Some(bytes) = self.files.get(META) else { return Ok(Vec::new()) };
        mat::synsets(bytes).map_err(|problem| Error::format(self.dir.join(META), problem))
    }

    /// WordNet's id of each number of the kit.
    fn numbers(&self) -> Result<HashMap<u64, String>> {
        let mut numbers: HashMap<u64, String> = self.meta()?.into_iter().map(|s| (s.id, s.wnid)).collect();
        for line in self.lines(CLSLOC)?.unwrap_or_default() {
            let mut words = line.split_whitespace();
            if let (Some(wnid), Some(Ok(id))) = (words.next(), words.next().map(str::parse)) {
                numbers.insert(id, wnid.to_owned());
            }
        }
        Ok(numbers)
    }

    /// The words of each id, from the given file, one beside the tars, or the kit.
    fn words(&self, given: Option<&Path>) -> Result<HashMap<String, String>> {
        let mut found = None;
        if let Some(path) = given {
            let lines = lines_of(path)?.ok_or_else(|| Error::format(path, "is not there"))?;
            found = Some((path.to_owned(), lines));
        } else {
            for name in WORDS {
                if found.is_none() {
                    found = self.lines(name)?.map(|lines| (self.dir.join(name), lines));
                }
            }
        }
        let Some((path, lines)) = found else {
            return Ok(self.meta()?.into_iter().map(|s| (s.wnid, s.words)).collect());
        };
        let mut words = HashMap::new();
        for (i, line) in lines.iter().enumerate() {
            let Some((wnid, text)) = synset_line(line) else {
                let problem = format!(
                    "line {} is {line:?}, which does not begin with a WordNet id such as n01440764",
                    i + 1
                );
                return Err(Error::format(path, problem));
            };
            if words.insert(wnid.to_owned(), text.to_owned()).is_some() {
                return Err(Error::format(path, format!("line {}: {wnid} is there twice", i + 1)));
            }
        }
        Ok(words)
    }

    /// The list of validation labels: where it comes from, and its lines.
    fn truth(&self, given: Option<&Path>) -> Result<Option<(PathBuf, Vec<String>)>> {
        if let Some(path) = given {
            let lines = lines_of(path)?.ok_or_else(|| Error::format(path, "is not there"))?;
            return Ok(Some((path.to_owned(), lines)));
        }
        for name in TRUTHS {
            if let Some(lines) = self.lines(name)? {
                return Ok(Some((self.dir.join(name), lines)));
            }
        }
        Ok(None)
    }
}

pub(super) fn import(request: &ImportRequest) -> Result<Import> {
    let dir = &request.source;
    let names = visible(dir)?;
    let one = |test: fn(&str) -> bool| {
        names.iter().find(|(n, is_dir)| !is_dir && test(n)).map(|(n, _)| dir.join(n))
    };
    let (train, val) = (one(is_train_tar), one(is_val_tar));
    if train.is_none() && val.is_none() {
        let problem = "holds neither ILSVRC2012_img_train.tar nor ILSVRC2012_img_val.tar";
        return Err(Error::format(dir, problem));
    }
    let beside = Beside::new(dir)?;
    let words = beside.words(request.class_names.as_deref())?;
    let mut splits = Vec::new();
    let mut wnids: Vec<String> = Vec::new();
    if let Some(path) = &train {
        let (listing, found) = train_listing(path)?;
        wnids = found;
        splits.push((Some(TRAIN), listing));
    }
    if let Some(path) = &val {
        let Some((truth_path, truth)) = beside.truth(request.ground_truth.as_deref())? else {
            let problem = format!(
                "its labels are not there: put the kit {KIT}.tar.gz, or one of {}, beside it or name a list with \
                 --ground-truth",
                TRUTHS.join(", ")
            );
            return Err(Error::format(path, problem));
        };
        let labels = Truth::read(&truth_path, &truth, &beside)?;
        if wnids.is_empty() {
            wnids = labels.wnids(&words);
        }
        splits.push((Some(VAL), val_listing(path, &labels, &wnids, train.is_some())?));
    }
    let classes = display_names(&wnids, &words);
    for (_, listing) in &mut splits {
        listing.classes.clone_from(&classes);
    }
    let splits = splits.into_iter().map(|(split, listing)| Ok((split, listing.finish()?)));
    let meta = BTreeMap::from([("class_ids".to_owned(), wnids.join(" "))]);
    Ok(Import { format: Format::Imagenet, splits: splits.collect::<Result<_>>()?, meta })
}

/// The words of each class; where two classes have the same ones, the id says which is which.
fn display_names(wnids: &[String], words: &HashMap<String, String>) -> Vec<String> {
    let of = |wnid: &String| words.get(wnid).filter(|w| !w.is_empty()).unwrap_or(wnid).clone();
    let mut count: HashMap<String, usize> = HashMap::new();
    wnids.iter().for_each(|w| *count.entry(of(w)).or_default() += 1);
    let distinct = |wnid: &String| match of(wnid) {
        name if count[&name] > 1 => format!("{name} ({wnid})"),
        name => name,
    };
    wnids.iter().map(distinct).collect()
}

/// The training split, and the ids of its classes in the order of their labels.
fn train_listing(path: &Path) -> Result<(Listing, Vec<String>)> {
    let (file, length) = open(path)?;
    let mut outer = Walker::new(&file, path, length)?;
    let mut tars = Vec::new();
    let mut left_out = LeftOut::default();
    while let Some(member) = outer.next()? {
        let base = member.name.rsplit('/').next().unwrap_or_default();
        match base.strip_suffix(".tar").filter(|class| !is_litter(class)) {
            Some(class) => tars.push((class.to_owned(), member)),
            None => left_out.add("files beside the class tars", &member.name),
        }
    }
    tars.sort_unstable_by(|a, b| a.0.cmp(&b.0));
    if tars.is_empty() {
        return Err(Error::format(path, "holds no class tars such as n01440764.tar"));
    }
    let mut listing = Listing::new(path, vec![Listed::images()]);
    let store = listing.store(Store::File(path.to_owned()));
    let mut empty = Vec::new();
    for (label, (class, tar)) in tars.iter().enumerate() {
        let mut inner = outer.inner(tar)?;
        let before = listing.len();
        while let Some(member) = inner.next()? {
            if !is_image(&member.name) {
                left_out.add("files in class tars that are no images", &member.name);
                continue;
            }
            let part = Part { offset: member.offset, length: member.length, store };
            listing.add(&format!("{class}/{}", member.name), Some(label as i64), &[part])?;
        }
        if listing.len() == before {
            empty.push(class.as_str());
        }
    }
    if !empty.is_empty() {
        listing.warnings.push(format!("{} class tars have no image: {}", empty.len(), empty.join(", ")));
    }
    listing.warnings.extend(left_out.warnings());
    Ok((listing, tars.into_iter().map(|(class, _)| class).collect()))
}

/// The validation labels.
struct Truth {
    path: PathBuf,
    /// Of the images in the order of their names, or of each named image.
    labels: Labels,
}

enum Labels {
    InOrder(Vec<Class>),
    Named(HashMap<String, Class>),
}

/// A class as a list writes it.
#[derive(Debug, Clone)]
enum Class {
    Wnid(String),
    /// The place among the sorted ids.
    Label(u64),
}

impl Truth {
    /// Lines of: an id; a number of the kit; a file's name and an id (perhaps with more behind it, as in
    /// `LOC_val_solution.csv`); a file's name and a label, counted from 0.
    fn read(path: &Path, lines: &[String], beside: &Beside) -> Result<Self> {
        let (mut in_order, mut named) = (Vec::new(), HashMap::new());
        let mut numbers = None;
        for (i, line) in lines.iter().enumerate() {
            let bad = |problem: String| Error::format(path, format!("line {}: {problem}", i + 1));
            let mut words = line.split([' ', ',', '\t']).filter(|w| !w.is_empty());
            let (Some(first), second) = (words.next(), words.next()) else { continue };
            if first == "ImageId" {
                continue;
            }
            if let Some(second) = second {
                let class = match (synset_line(second), second.parse()) {
                    (Some(_), _) => Class::Wnid(second.to_owned()),
                    (None, Ok(label)) => Class::Label(label),
                    _ => return Err(bad(format!("{second:?} is neither a WordNet id nor a label"))),
                };
                named.insert(stem(first).to_owned(), class);
                continue;
            }
            if synset_line(first).is_some() {
                in_order.push(Class::Wnid(first.to_owned()));
                continue;
            }
            let Ok(number) = first.parse::<u64>() else {
                return Err(bad(format!("{first:?} is neither a WordNet id nor a number")));
            };
            if numbers.is_none() {
                numbers = Some(beside.numbers()?);
            }
            let wnid = numbers.as_ref().and_then(|n| n.get(&number)).ok_or_else(|| {
                bad(format!(
                    "what class number {number} is, {META} or {CLSLOC} of the kit says; put {KIT}.tar.gz beside the \
                     tars"
                ))
            })?;
            in_order.push(Class::Wnid(wnid.clone()));
        }
        let labels = match (in_order.is_empty(), named.is_empty()) {
            (false, false) => {
                return Err(Error::format(path, "some lines name their file and some do not"));
            }
            (false, true) => Labels::InOrder(in_order),
            _ => Labels::Named(named),
        };
        Ok(Truth { path: path.to_owned(), labels })
    }

    /// The ids of the classes when there is no training tar to tell them: those with words, or those in the list.
    fn wnids(&self, words: &HashMap<String, String>) -> Vec<String> {
        let all: Vec<&Class> = match &self.labels {
            Labels::InOrder(list) => list.iter().collect(),
            Labels::Named(map) => map.values().collect(),
        };
        let named = all.iter().filter_map(|c| match c {
            Class::Wnid(wnid) => Some(wnid.clone()),
            Class::Label(_) => None,
        });
        let mut wnids: Vec<String> = named.collect();
        // A kit names more ids than the thousand that are classes, so its words alone do not say them.
        if wnids.is_empty() {
            wnids = words.keys().cloned().collect();
        }
        wnids.sort_unstable();
        wnids.dedup();
        wnids
    }
}

/// A file's name without folders and ending.
fn stem(name: &str) -> &str {
    let base = name.rsplit('/').next().unwrap_or(name);
    base.split('.').next().unwrap_or(base)
}

fn val_listing(path: &Path, truth: &Truth, wnids: &[String], of_train: bool) -> Result<Listing> {
    let (file, length) = open(path)?;
    let mut walker = Walker::new(&file, path, length)?;
    let mut members = Vec::new();
    let mut left_out = LeftOut::default();
    while let Some(member) = walker.next()? {
        match is_image(&member.name) {
            true => members.push(member),
            false => left_out.add("files that are no images", &member.name),
        }
    }
    members.sort_unstable_by(|a, b| a.name.cmp(&b.name));
    if let Labels::InOrder(labels) = &truth.labels
        && labels.len() != members.len()
    {
        let problem =
            format!("holds {} labels, but {} holds {} images", labels.len(), path.display(), members.len());
        return Err(Error::format(&truth.path, problem));
    }
    let mut listing = Listing::new(path, vec![Listed::images()]);
    let store = listing.store(Store::File(path.to_owned()));
    for (i, member) in members.iter().enumerate() {
        let class = match &truth.labels {
            Labels::InOrder(labels) => labels.get(i),
            Labels::Named(labels) => labels.get(stem(&member.name)),
        };
        let label = match class {
            Some(Class::Wnid(wnid)) => wnids.binary_search(wnid).ok().map(|l| l as i64),
            Some(Class::Label(label)) => i64::try_from(*label).ok(),
            None => None,
        };
        let Some(label) = label else {
            let problem = match class {
                Some(Class::Wnid(wnid)) => format!(
                    "{} has the class {wnid}, which is none of the {} classes{}",
                    member.name,
                    wnids.len(),
                    if of_train { " of the training tar" } else { "" }
                ),
                Some(Class::Label(label)) => format!("{} has the label {label}, which is none", member.name),
                None => format!("has no label for {}", member.name),
            };
            return Err(Error::format(&truth.path, problem));
        };
        let part = Part { offset: member.offset, length: member.length, store };
        listing.add(&member.name, Some(label), &[part])?;
    }
    listing.warnings.extend(left_out.warnings());
    Ok(listing)
}
