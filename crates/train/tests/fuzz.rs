//! Configurations damaged at random: an error of a few lines, or a configuration that is written and read again as it was.
#![allow(clippy::unwrap_used, clippy::expect_used)]

#[path = "../../data/tests/fuzzing/mod.rs"]
mod fuzzing;

use std::path::Path;

use fuzzing::{below, mutate, pick, run};
use phalanx_train::config::Config;

/// What a careless or a malicious hand writes.
const WORDS: &[&str] = &[
    "-1",
    "0",
    "1e400",
    "nan",
    "-inf",
    "9223372036854775807",
    "-9223372036854775808",
    "1_0",
    "0x_",
    "\"\"",
    "\"\"\"",
    "'''",
    "[",
    "]",
    "[[",
    "]]",
    "{",
    "}",
    "=",
    ".",
    ",",
    "#",
    "\n",
    "\r",
    "\u{0}",
    "\u{feff}",
    "é",
    "true",
    "1979-05-27",
    "[model]",
    "[[model.layers]]",
    "[loader]",
    "transforms = [{ name = \"flip\" }]",
    "name = \"sgd\"",
    "threads = -5",
];

#[test]
fn damaged_configurations_are_errors() {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../configs");
    let mut paths: Vec<_> = std::fs::read_dir(dir).unwrap().map(|e| e.unwrap().path()).collect();
    paths.sort();
    let corpus: Vec<String> = paths.iter().map(|p| std::fs::read_to_string(p).unwrap()).collect();
    let settings =
        ["train.epochs=3", "optimizer.lr=0.1", "model.layers=3", "=", "a.b.c=[", "loader.transforms=[]"];
    let mut read = 0;
    run("config", 8, 300, |r| {
        let mut text = pick(r, &corpus).clone();
        for _ in 0..=below(r, 3) {
            let lines: Vec<&str> = text.lines().collect();
            let at = below(r, lines.len().max(1));
            let words: Vec<&str> = lines.get(at).map(|l| l.split(' ').collect()).unwrap_or_default();
            let new = match below(r, 4) {
                // A word, a line of another file, a line twice.
                0 | 1 if !words.is_empty() => {
                    let place = below(r, words.len());
                    let mut words = words;
                    words[place] = *pick(r, WORDS);
                    words.join(" ")
                }
                2 => {
                    let other: Vec<&str> = pick(r, &corpus).lines().collect();
                    format!("{}\n{}", lines.get(at).unwrap_or(&""), pick(r, &other))
                }
                _ => {
                    let mut bytes = lines.get(at).unwrap_or(&"").as_bytes().to_vec();
                    mutate(r, &mut bytes, 0);
                    String::from_utf8_lossy(&bytes).into_owned()
                }
            };
            let new = lines.iter().enumerate().map(|(i, line)| if i == at { &new[..] } else { line });
            text = new.collect::<Vec<_>>().join("\n");
        }
        let settings: Vec<String> = (0..below(r, 3)).map(|_| (*pick(r, &settings)).to_owned()).collect();
        match Config::parse(&text, "fuzz.toml", &settings) {
            Ok(config) => {
                read += 1;
                let (_, again) = (config.identity().unwrap(), config.to_toml().unwrap());
                let again = Config::parse(&again, "again.toml", &[]).unwrap();
                assert_eq!(format!("{again:?}"), format!("{config:?}"));
            }
            Err(e) => assert_eq!(e.exit_code(), 2, "{e}"),
        }
    });
    assert!(
        read > 0 || std::env::var_os("PHALANX_FUZZ_CASE").is_some(),
        "no mutant was a configuration any more"
    );
}
