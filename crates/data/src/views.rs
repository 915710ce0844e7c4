use std::sync::Arc;

use phalanx_host::rng::Key;

use crate::{Error, Record, Result, Schema, Source};

/// Separates the validation split's random stream from every other one of the same seed.
const STREAM: u64 = 0x7661_6C69_6400;

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

    fn label(&self, id: u64) -> Result<Option<i64>> {
        self.of.label(self.inner(id)?)
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
    let (mut rest, mut held) = (Vec::new(), Vec::new());
    for (class, mut ids) in classes.into_iter().enumerate() {
        // A shuffle (Fisher and Yates) of which the first part is held out.
        let mut stream = Key::new(seed).derive(STREAM, class as u64).stream();
        let take = (ids.len() as f64 * fraction).round() as usize;
        for i in 0..take {
            let j = i + stream.below((ids.len() - i) as u64) as usize;
            ids.swap(i, j);
        }
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
    let view = |part: &str, ids| {
        Subset::new(format!("{} ({part})", set.name()), set.clone(), ids)
            .map(|s| Arc::new(s) as Arc<dyn Source>)
    };
    Ok((view("without validation", rest)?, view("validation", held)?))
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
}
