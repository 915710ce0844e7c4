use std::fs;
use std::sync::Arc;

use proptest::prelude::*;

use super::*;
use crate::shards::tests::captioned_set;
use crate::{Record, ShardSet, Subset, shards};

const SOON: Duration = Duration::from_secs(30);

fn stage(sources: &[&dyn Source], place: &Path, limit: Option<u64>) -> Staged {
    let stage = Stage::Dir(place.to_owned());
    let mut stager = Stager::new(sources, &stage, limit).unwrap().unwrap();
    assert!(stager.advance(Instant::now() + SOON));
    stager.finish()
}

fn records(set: &dyn Source) -> Vec<Record> {
    let read = |id| {
        let mut record = Record::default();
        set.read(id, &mut record).unwrap();
        record
    };
    (0..set.len()).map(read).collect()
}

struct Scene {
    _tmp: tempfile::TempDir,
    origin: PathBuf,
    place: PathBuf,
}

fn scene() -> Scene {
    let tmp = tempfile::tempdir().unwrap();
    let [origin, place] = ["origin", "place"].map(|n| tmp.path().join(n));
    fs::create_dir(&origin).unwrap();
    fs::create_dir(&place).unwrap();
    captioned_set(&origin, &[5, 4, 6]);
    Scene { _tmp: tmp, origin, place }
}

#[test]
fn copies_are_read_and_used_again_and_the_original_where_one_is_gone() {
    let s = scene();
    let set = ShardSet::open(&s.origin).unwrap();
    let before = records(&set);
    let staged = stage(&[&set, &set], &s.place, None);
    let all: u64 = set.shards().iter().map(|s| s.bytes).sum();
    assert_eq!((staged.bytes, staged.copied, staged.left, &staged.warnings[..]), (all, all, 0, &[][..]));
    assert_eq!(staged.sets[0].shards, [0, 1, 2]);
    // Only copies are there to be read.
    let hidden = s.origin.join("shard-00001.dat.hidden");
    let original = shards::data_path(&s.origin, 1);
    fs::rename(&original, &hidden).unwrap();
    staged.apply(&set);
    assert_eq!(records(&set), before);
    fs::rename(&hidden, &original).unwrap();

    // A second run finds them; one that is cut off is made anew.
    let copy = |n| shards::data_path(&staged.sets[0].dir, n);
    fs::OpenOptions::new().write(true).open(copy(2)).unwrap().set_len(7).unwrap();
    let again = ShardSet::open(&s.origin).unwrap();
    let staged = stage(&[&again], &s.place, None);
    assert_eq!((staged.bytes, staged.copied), (all, set.shards()[2].bytes));
    // One whose bytes have changed, and one that has gone, are made up for by the original.
    let mut bytes = fs::read(copy(0)).unwrap();
    bytes.iter_mut().for_each(|b| *b ^= 1);
    fs::write(copy(0), bytes).unwrap();
    fs::remove_file(copy(1)).unwrap();
    staged.apply(&again);
    assert_eq!(records(&again), before);
    // The next run makes both anew.
    let third = ShardSet::open(&s.origin).unwrap();
    let staged = stage(&[&third], &s.place, None);
    assert_eq!(staged.copied, set.shards()[0].bytes + set.shards()[1].bytes);
}

#[test]
fn room_is_made_of_copies_that_nobody_reads() {
    let s = scene();
    let set = ShardSet::open(&s.origin).unwrap();
    let staged = stage(&[&set], &s.place, None);
    let area = Area::open(&s.place).unwrap();
    let of = |name: &str| staged.sets[0].dir.parent().unwrap().join(name);
    let [unused, other] = ["a", "b"].map(|c| c.repeat(64));
    for name in [&*unused, &other, "somebody's"] {
        fs::create_dir(of(name)).unwrap();
        fs::write(of(name).join("shard-00000.dat"), "x").unwrap();
    }
    // One that is read is left, and one that this run wants, and what is none of ours.
    staged.apply(&set);
    area.make_room(&[&other], u64::MAX).unwrap();
    let there = |name: &str| of(name).exists();
    assert!(!there(&unused) && there(&other) && there("somebody's") && there(&staged.sets[0].root));
    // With room enough all stay.
    area.make_room(&[], 0).unwrap();
    assert!(there(&other));
    drop(set);
    area.make_room(&[], u64::MAX).unwrap();
    assert!(!there(&other) && !there(&staged.sets[0].root) && there("somebody's"));
}

#[test]
fn what_is_beyond_the_limit_or_not_touched_stays_where_it_lies() {
    let s = scene();
    let set = ShardSet::open(&s.origin).unwrap();
    let sizes: Vec<u64> = set.shards().iter().map(|s| s.bytes).collect();
    let staged = stage(&[&set], &s.place, Some(sizes[0] + sizes[1]));
    assert_eq!((&staged.sets[0].shards[..], staged.left), (&[0, 1][..], sizes[2]));
    staged.apply(&set);
    assert_eq!(records(&set).len(), 15);

    let s = scene();
    let set: Arc<dyn Source> = Arc::new(ShardSet::open(&s.origin).unwrap());
    let view = Subset::new("some", set, vec![0, 10, 14]).unwrap();
    let nested = Subset::new("less", Arc::new(view), vec![2, 1]).unwrap();
    let staged = stage(&[&nested], &s.place, None);
    assert_eq!(staged.sets[0].shards, [2]);
    staged.apply(&nested);
    assert_eq!(records(&nested).len(), 2);
}

#[test]
fn it_is_done_in_pieces_and_one_at_a_time() {
    let s = scene();
    let set = ShardSet::open(&s.origin).unwrap();
    let start = |place: &Path| Stager::new(&[&set], &Stage::Dir(place.to_owned()), None).unwrap().unwrap();
    let mut first = start(&s.place);
    let mut turns = 1;
    // A turn whose time is over does one piece.
    while !first.advance(Instant::now()) {
        turns += 1;
        let mut second = start(&s.place);
        assert!(!second.advance(Instant::now() + Duration::from_millis(1)), "both copy");
    }
    assert!(turns >= 3);
    let (first, mut second) = (first.finish(), start(&s.place));
    assert!(second.advance(Instant::now() + SOON));
    assert_eq!((second.finish().copied, first.copied), (0, first.bytes));
}

#[test]
fn whatever_goes_wrong_the_originals_are_read() {
    let s = scene();
    let set = ShardSet::open(&s.origin).unwrap();
    let staged = stage(&[&set], &s.place.join("nothing"), None);
    assert!(staged.warnings[0].contains("cannot create"), "{staged:?}");
    assert_eq!((staged.bytes, staged.sets.len()), (0, 0));
    let staged = stage(&[&set], &s.place, Some(1));
    assert!(staged.warnings[0].contains("no room within the limit"), "{staged:?}");
    // A directory of that name that is none.
    let other = s.place.join("other");
    fs::create_dir(&other).unwrap();
    let me = fs::metadata("/proc/self").unwrap();
    let name = format!("phalanx-stage-{}", std::os::unix::fs::MetadataExt::uid(&me));
    std::os::unix::fs::symlink("/tmp", other.join(name)).unwrap();
    assert!(stage(&[&set], &other, None).warnings[0].contains("not a directory of this user"));
    // An original that has gone: what was copied before stays.
    fs::rename(shards::data_path(&s.origin, 1), s.origin.join("gone")).unwrap();
    let staged = stage(&[&set], &s.place, None);
    assert_eq!(staged.sets[0].shards, [0]);
    assert!(staged.warnings[0].contains("ended early"), "{staged:?}");
    assert!(!staged.sets[0].dir.join("shard-00001.dat.tmp").exists());
    staged.apply(&set);
    assert_eq!(set.read(0, &mut Record::default()).map_err(|e| e.to_string()), Ok(()));
    assert!(Stager::new(&[&set], &Stage::Off, None).unwrap().is_none());
}

#[test]
fn places_are_named() {
    for (text, stage) in
        [("off", Stage::Off), ("auto", Stage::Auto), ("/scratch/x", Stage::Dir("/scratch/x".into()))]
    {
        assert_eq!(Stage::from(text.to_owned()), stage);
        assert_eq!(String::from(stage), text);
    }
    // The scene's set and the temporary directory are on one file system as a rule; then nothing is copied.
    let s = scene();
    let set = ShardSet::open(&s.origin).unwrap();
    let mut stager = Stager::new(&[&set], &Stage::Auto, None).unwrap().unwrap();
    stager.places = vec![s.place.clone()];
    assert!(stager.advance(Instant::now() + SOON));
    assert!(stager.finish().warnings[0].contains("own file system"));
}

proptest! {
    #[test]
    fn plans_keep_to_the_limits_and_take_what_they_can(
        files in proptest::collection::vec((0u64..100, any::<bool>()), 0..40), free in 0u64..3000, limit in 0u64..3000,
    ) {
        let wanted: Vec<Wanted> = (0..).zip(&files)
            .map(|(number, &(bytes, there))| Wanted { set: 0, number, bytes, there })
            .collect();
        let plan = plan(&wanted, free, limit);
        let sum = |files: &[Wanted]| files.iter().map(|f| f.bytes).sum::<u64>();
        prop_assert_eq!(sum(&plan.keep) + sum(&plan.copy), plan.bytes);
        prop_assert_eq!(plan.bytes + plan.left, sum(&wanted));
        prop_assert!(plan.bytes <= limit && sum(&plan.copy) <= free);
        prop_assert!(plan.keep.iter().all(|f| f.there) && plan.copy.iter().all(|f| !f.there));
        // What was left out would not have fitted.
        for f in wanted.iter().filter(|f| !plan.keep.contains(f) && !plan.copy.contains(f)) {
            let room = !f.there && f.bytes > free - sum(&plan.copy);
            prop_assert!(room || f.bytes > limit - plan.bytes, "{:?} of {:?}", f, plan);
        }
    }
}
