use std::sync::Arc;

use phalanx_host::rng::{Key, Stream};
use serde::{Deserialize, Serialize};

use crate::{Error, Record, Result, Schema, ShardSet, Source};

/// Separates the validation split's random stream from every other one of the same seed.
const STREAM: u64 = 0x7661_6C69_6400;
/// Likewise that of the shots, and of the balance.
const SHOTS: u64 = 0x7368_6F74_7300;
const BALANCE: u64 = 0x6261_6C61_6E00;

/// Some samples of another set, renumbered from 0.
#[derive(Debug, Clone)]
pub struct Subset {
    name: String,
    of: Arc<dyn Source>,
    ids: Vec<u64>,
}

impl Subset {
    /// The samples `ids` of a set, in that order. Fails when one does not exist.
    pub fn new(name: impl Into<String>, of: Arc<dyn Source>, ids: Vec<u64>) -> Result<Self> {
        match ids.iter().find(|&&id| id >= of.len()) {
            Some(&sample) => Err(Error::NoSample { set: of.name().to_owned(), sample, len: of.len() }),
            None => Ok(Subset { name: name.into(), of, ids }),
        }
    }

    /// The samples whose id and class (if the set has labels) satisfy `keep`.
    pub fn filter(
        name: impl Into<String>,
        of: Arc<dyn Source>,
        mut keep: impl FnMut(u64, Option<i64>) -> bool,
    ) -> Result<Self> {
        let mut ids = Vec::new();
        for id in 0..of.len() {
            if keep(id, of.label(id)?) {
                ids.push(id);
            }
        }
        Subset::new(name, of, ids)
    }

    fn inner(&self, id: u64) -> Result<u64> {
        let found = usize::try_from(id).ok().and_then(|i| self.ids.get(i));
        found.copied().ok_or_else(|| Error::NoSample { set: self.name.clone(), sample: id, len: self.len() })
    }
}

impl Source for Subset {
    fn name(&self) -> &str {
        &self.name
    }

    fn len(&self) -> u64 {
        self.ids.len() as u64
    }

    fn schema(&self) -> &Schema {
        self.of.schema()
    }

    fn read(&self, id: u64, record: &mut Record) -> Result<()> {
        self.of.read(self.inner(id)?, record)
    }

    fn read_into(&self, id: u64, field: usize, record: &mut Record, into: &mut [u8]) -> Result<bool> {
        self.of.read_into(self.inner(id)?, field, record, into)
    }

    fn label(&self, id: u64) -> Result<Option<i64>> {
        self.of.label(self.inner(id)?)
    }

    fn shard_set(&self) -> Option<&ShardSet> {
        self.of.shard_set()
    }

    fn id_in_shards(&self, id: u64) -> u64 {
        self.inner(id).map_or(u64::MAX, |inner| self.of.id_in_shards(inner))
    }
}

/// Cuts a set into (the rest, `fraction` of it), class by class, so that both have the set's mix; a set
/// without labels counts as one class. A pure function of the set's labels, the fraction and the seed.
///
/// Fails when `fraction` is not in (0, 1), or leaves one of the two without a sample.
pub fn split_validation(
    set: &Arc<dyn Source>,
    fraction: f64,
    seed: u64,
) -> Result<(Arc<dyn Source>, Arc<dyn Source>)> {
    if !(fraction > 0.0 && fraction < 1.0) {
        return Err(Error::usage("data.validation", format!("is {fraction}, and must be in [0, 1)")));
    }
    let (mut rest, mut held) = (Vec::new(), Vec::new());
    for (class, mut ids) in by_class(set)?.into_iter().enumerate() {
        let take = (ids.len() as f64 * fraction).round() as usize;
        draw(&mut ids, take, Key::new(seed).derive(STREAM, class as u64).stream());
        rest.extend_from_slice(&ids[take..]);
        held.extend_from_slice(&ids[..take]);
    }
    if rest.is_empty() || held.is_empty() {
        let problem =
            format!("{fraction} of the {} samples of {} leaves one part empty", set.len(), set.name());
        return Err(Error::usage("data.validation", problem));
    }
    // In the set's own order again: neighbours on disk stay neighbours.
    rest.sort_unstable();
    held.sort_unstable();
    Ok((view(set, "without validation", rest)?, view(set, "validation", held)?))
}

fn view(set: &Arc<dyn Source>, part: &str, ids: Vec<u64>) -> Result<Arc<dyn Source>> {
    Ok(Arc::new(Subset::new(format!("{} ({part})", set.name()), set.clone(), ids)?))
}

/// The samples of each class, in the set's order; those of a set without labels are of one class.
fn by_class(set: &Arc<dyn Source>) -> Result<Vec<Vec<u64>>> {
    let mut classes: Vec<Vec<u64>> = vec![Vec::new(); set.schema().classes.len().max(1)];
    for id in 0..set.len() {
        let label = set.label(id)?.unwrap_or(0);
        let count = classes.len();
        match usize::try_from(label).ok().and_then(|l| classes.get_mut(l)) {
            Some(class) => class.push(id),
            None => {
                let set = set.name().to_owned();
                return Err(Error::Label { set, sample: id, label, classes: count });
            }
        }
    }
    Ok(classes)
}

/// Brings `take` of the ids to the front, at random: a shuffle (Fisher and Yates) that ends there.
fn draw(ids: &mut [u64], take: usize, mut stream: Stream) {
    for i in 0..take.min(ids.len()) {
        let j = i + stream.below((ids.len() - i) as u64) as usize;
        ids.swap(i, j);
    }
}

/// As many samples of each class, or all that it has where they are fewer. A pure function of the set's
/// labels, the number and the seed.
///
/// Fails when `shots` is 0, and on a set without labels.
pub fn few_shots(set: &Arc<dyn Source>, shots: u64, seed: u64) -> Result<Arc<dyn Source>> {
    let wrong = |problem: String| Error::usage("data.shots", problem);
    if shots == 0 {
        return Err(wrong("is 0: no sample would be left".into()));
    }
    if set.schema().classes.is_empty() {
        return Err(wrong(format!("{} has no classes", set.name())));
    }
    let mut kept = Vec::new();
    for (class, mut ids) in by_class(set)?.into_iter().enumerate() {
        let take = usize::try_from(shots).map_or(ids.len(), |shots| shots.min(ids.len()));
        draw(&mut ids, take, Key::new(seed).derive(SHOTS, class as u64).stream());
        kept.extend_from_slice(&ids[..take]);
    }
    kept.sort_unstable();
    view(set, &format!("{shots} a class"), kept)
}

/// How classes of different sizes are made equal.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Balance {
    /// Samples of small classes come several times an epoch, so often that all classes are as large as the largest.
    Oversample,
    /// Samples of large classes are left out, so that all are as large as the smallest that has any.
    Undersample,
}

/// The set with as many samples of each class that has any. A pure function of the set's labels and the seed, which
/// chooses the samples that are left out, or come once more than others.
///
/// Fails on a set without labels.
pub fn balanced(set: &Arc<dyn Source>, balance: Balance, seed: u64) -> Result<Arc<dyn Source>> {
    if set.schema().classes.is_empty() {
        return Err(Error::usage("data.balance", format!("{} has no classes", set.name())));
    }
    let mut classes = by_class(set)?;
    let sizes = || classes.iter().map(Vec::len).filter(|&n| n > 0);
    let (largest, smallest) = (sizes().max().unwrap_or(0), sizes().min().unwrap_or(0));
    let (size, name) = match balance {
        Balance::Oversample => (largest, "oversampled"),
        Balance::Undersample => (smallest, "undersampled"),
    };
    // Pass by pass over the set, each in its own order: neighbours on disk stay neighbours.
    let mut ids: Vec<u64> = Vec::new();
    for pass in 0.. {
        let before = ids.len();
        for (class, of) in classes.iter_mut().enumerate().filter(|(_, of)| !of.is_empty()) {
            let left = size.saturating_sub(pass * of.len()).min(of.len());
            if left > 0 && left < of.len() {
                draw(of, left, Key::new(seed).derive(BALANCE, class as u64).stream());
            }
            ids.extend_from_slice(&of[..left]);
        }
        if ids.len() == before {
            break;
        }
        ids[before..].sort_unstable();
    }
    view(set, name, ids)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Memory;

    /// 100 samples with the classes 0, 1, 2 in the proportion 1:2:7; pixel = id.
    fn set() -> Arc<dyn Source> {
        let labels = (0..100).map(|i| [0, 1, 1, 2, 2, 2, 2, 2, 2, 2][i % 10]).collect();
        let names = ["a", "b", "c"].map(String::from).to_vec();
        Memory::classification("s", (0..100).collect(), [1, 1, 1], 255.0, labels, names).unwrap().shared()
    }

    fn pixels(set: &Arc<dyn Source>) -> Vec<u8> {
        let mut r = Record::default();
        (0..set.len())
            .map(|id| {
                set.read(id, &mut r).unwrap();
                r.fields[0].bytes[0]
            })
            .collect()
    }

    #[test]
    fn validation_is_stratified_disjoint_and_keyed() {
        let (rest, held) = split_validation(&set(), 0.2, 3).unwrap();
        let count = |s: &Arc<dyn Source>, c| (0..s.len()).filter(|&i| s.label(i).unwrap() == Some(c)).count();
        assert_eq!([0, 1, 2].map(|c| count(&held, c)), [2, 4, 14]);
        assert_eq!([0, 1, 2].map(|c| count(&rest, c)), [8, 16, 56]);
        let mut all = [pixels(&rest), pixels(&held)].concat();
        all.sort_unstable();
        assert!(all.into_iter().eq(0..100));
        let held_with = |seed| pixels(&split_validation(&set(), 0.2, seed).unwrap().1);
        assert_eq!(held_with(3), pixels(&held));
        assert_ne!(held_with(4), pixels(&held));
    }

    #[test]
    fn fractions_that_leave_nothing_are_refused() {
        for f in [0.0, 1.0, -0.1, f64::NAN, 0.001, 0.999] {
            assert_eq!(split_validation(&set(), f, 0).unwrap_err().kind(), crate::Kind::Usage, "{f}");
        }
    }

    #[test]
    fn subsets_renumber_and_check() {
        let view: Arc<dyn Source> =
            Arc::new(Subset::filter("ones", set(), |id, label| label == Some(1) && id < 20).unwrap());
        assert_eq!(pixels(&view), [1, 2, 11, 12]);
        assert!(matches!(view.label(4), Err(Error::NoSample { len: 4, .. })));
        assert!(Subset::new("bad", set(), vec![5, 100]).is_err());
    }

    #[test]
    fn balanced_views_have_classes_of_one_size() {
        let count = |s: &Arc<dyn Source>| {
            [0, 1, 2].map(|c| (0..s.len()).filter(|&i| s.label(i).unwrap() == Some(c)).count())
        };
        let over = balanced(&set(), Balance::Oversample, 1).unwrap();
        assert_eq!(count(&over), [70; 3]);
        // Each sample comes as often as any other of its class, or once more.
        let mut times = [0usize; 100];
        pixels(&over).into_iter().for_each(|p| times[usize::from(p)] += 1);
        for (i, &n) in times.iter().enumerate() {
            assert!(
                [[7, 7], [3, 4], [1, 1]][[0, 1, 1, 2, 2, 2, 2, 2, 2, 2][i % 10]].contains(&n),
                "{i}: {n}"
            );
        }
        // The first pass is the set itself.
        assert!(pixels(&over)[..100].iter().copied().eq(0..100));
        let under = balanced(&set(), Balance::Undersample, 1).unwrap();
        assert_eq!(count(&under), [10; 3]);
        let mut seen = pixels(&under);
        assert!(seen.is_sorted());
        seen.dedup();
        assert_eq!(seen.len(), 30);
        for balance in [Balance::Oversample, Balance::Undersample] {
            let of = |seed| pixels(&balanced(&set(), balance, seed).unwrap());
            assert_eq!(of(1), of(1));
            assert_ne!(of(1), of(2));
        }
        // A class without a sample has no say.
        let two: Arc<dyn Source> =
            Arc::new(Subset::filter("two", set(), |_, label| label != Some(0)).unwrap());
        assert_eq!(count(&balanced(&two, Balance::Undersample, 0).unwrap()), [0, 20, 20]);
    }

    #[test]
    fn shots_are_few_keyed_and_no_more_than_there_are() {
        let count = |s: &Arc<dyn Source>| {
            [0, 1, 2].map(|c| (0..s.len()).filter(|&i| s.label(i).unwrap() == Some(c)).count())
        };
        let of = |shots, seed| few_shots(&set(), shots, seed).unwrap();
        assert_eq!(
            (count(&of(5, 0)), count(&of(15, 0)), count(&of(u64::MAX, 0))),
            ([5; 3], [10, 15, 15], [10, 20, 70])
        );
        assert_eq!(pixels(&of(5, 3)), pixels(&of(5, 3)));
        assert_ne!(pixels(&of(5, 3)), pixels(&of(5, 4)));
        assert_eq!(few_shots(&set(), 0, 0).unwrap_err().kind(), crate::Kind::Usage);
        assert_eq!(of(2, 0).name(), "s (2 a class)");
    }
}
