//! Mutation fuzzing with a fixed seed: what a target is fed in case k is a function of the target's name and k alone. A
//! target runs for some seconds, with PHALANX_SLOW=1 for two minutes. A failure tells its case;
//! PHALANX_FUZZ_CASE=k runs that one by itself.
#![allow(dead_code)] // Each target uses a part of this.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use phalanx_host::rng::{Key, Stream};

/// Longer than any case may take, by far.
const HANGS: Duration = Duration::from_secs(30);

/// Tells which case it was when it panics.
struct Case<'a>(&'a str, u64);

impl Drop for Case<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("{}: case {} failed; PHALANX_FUZZ_CASE={} runs it alone", self.0, self.1, self.1);
        }
    }
}

/// Runs one case after the other: none may panic, hang, or make the process's memory grow by more than `megabytes`.
pub(crate) fn run(name: &str, seconds: u64, megabytes: u64, mut case: impl FnMut(&mut Stream)) {
    let root = Key::new(name.bytes().fold(7, |hash, byte| hash * 31 + u64::from(byte)));
    let alone = std::env::var("PHALANX_FUZZ_CASE").ok().map(|k| k.parse::<u64>().expect("a number"));
    let slow = std::env::var("PHALANX_SLOW").is_ok_and(|v| v == "1");
    let end = Instant::now() + Duration::from_secs(if slow { 120 } else { seconds });
    let (now, over) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicBool::new(false)));
    let watch = watch(name.to_owned(), now.clone(), over.clone());
    let start = peak_memory();
    let mut k = alone.unwrap_or(0);
    loop {
        now.store(k, Ordering::Relaxed);
        let named = Case(name, k);
        case(&mut root.derive(k, 0).stream());
        let grown = peak_memory().saturating_sub(start);
        assert!(grown <= megabytes * 1024, "memory grew by {} MB, above {megabytes}", grown / 1024);
        drop(named);
        k += 1;
        if alone.is_some() || Instant::now() > end {
            break;
        }
    }
    over.store(true, Ordering::Relaxed);
    watch.thread().unpark();
    watch.join().unwrap();
    println!("{name}: {k} cases");
    assert!(alone.is_some() || k >= 20, "only {k} cases in the time");
}

/// Ends the process when a case takes too long: nothing else ends a thread that hangs.
fn watch(name: String, now: Arc<AtomicU64>, over: Arc<AtomicBool>) -> std::thread::JoinHandle<()> {
    std::thread::spawn(move || {
        let mut last = (u64::MAX, Instant::now());
        while !over.load(Ordering::Relaxed) {
            let k = now.load(Ordering::Relaxed);
            if k != last.0 {
                last = (k, Instant::now());
            } else if last.1.elapsed() > HANGS {
                eprintln!("{name}: case {k} hangs");
                std::process::abort();
            }
            std::thread::park_timeout(Duration::from_millis(500));
        }
    })
}

/// The most memory that the process had mapped so far, in KiB; 0 where the system does not tell.
fn peak_memory() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmPeak:"));
    line.and_then(|line| line.split_whitespace().next()?.parse().ok()).unwrap_or(0)
}

/// A folder in memory where there is one: cases write many files.
pub(crate) fn scratch() -> tempfile::TempDir {
    let shm = Path::new("/dev/shm");
    let dir = if shm.is_dir() { tempfile::tempdir_in(shm) } else { tempfile::tempdir() };
    dir.unwrap()
}

/// Below `n`, which is not 0.
pub(crate) fn below(r: &mut Stream, n: usize) -> usize {
    r.below(n as u64) as usize
}

pub(crate) fn pick<'a, T>(r: &mut Stream, from: &'a [T]) -> &'a T {
    &from[below(r, from.len())]
}

/// Numbers that programs stumble over.
fn odd_number(r: &mut Stream, len: usize) -> u64 {
    let len = len as u64;
    let known =
        [0, 1, 2, 63, 64, 127, 128, 255, 256, 0x7fff, 0x8000, 0xffff, 0x7fff_ffff, 0x8000_0000, 0xffff_ffff];
    let sizes =
        [len, len + 1, len.wrapping_sub(1), len / 2, len * 2, u64::MAX, u64::MAX / 2, u64::MAX - 63, 1 << 62];
    match below(r, 3) {
        0 => *pick(r, &known),
        1 => *pick(r, &sizes),
        _ => r.u64() >> below(r, 64),
    }
}

/// Changes `bytes` from `from` on in one to six places: bits, bytes, numbers of 1 to 8 bytes in either order, and
/// stretches that are removed, repeated, moved, filled or cut off.
pub(crate) fn mutate(r: &mut Stream, bytes: &mut Vec<u8>, from: usize) {
    for _ in 0..=below(r, 6) {
        let len = bytes.len();
        if len <= from {
            bytes.push(r.u32() as u8);
            continue;
        }
        let at = from + below(r, len - from);
        let most = (len - at).min(1 + below(r, 64));
        match below(r, 12) {
            0 | 1 => bytes[at] ^= 1 << below(r, 8),
            2 => bytes[at] = *pick(r, &[0, 1, 0x7f, 0x80, 0xfe, 0xff]),
            3 => bytes[at] = bytes[at].wrapping_add(*pick(r, &[1, 2, 255, 254, 16])),
            4..=7 => {
                let width = *pick(r, &[1, 2, 4, 8]);
                let number = odd_number(r, len);
                let little = number.to_le_bytes();
                let big = number.to_be_bytes();
                let new = if r.u32() & 1 == 0 { &little[..width] } else { &big[8 - width..] };
                for (byte, new) in bytes[at..].iter_mut().zip(new) {
                    *byte = *new;
                }
            }
            8 => drop(bytes.drain(at..at + most)),
            9 => {
                let copy = bytes[at..at + most].to_vec();
                let to = from + below(r, len - from + 1);
                bytes.splice(to..to, copy);
            }
            10 => bytes[at..at + most].fill(*pick(r, &[0, 0xff, b' '])),
            _ if below(r, 4) == 0 => bytes.truncate(at),
            _ => bytes.insert(at, r.u32() as u8),
        }
    }
}
