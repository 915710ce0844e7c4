//! The shipped configurations.

// Helpers of tests may panic as tests do.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::path::PathBuf;

use phalanx_nn::{Builder, list_models};
use phalanx_train::config::Config;
use phalanx_train::setup;

fn shipped() -> Vec<(String, Config)> {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../configs");
    let mut files: Vec<PathBuf> = std::fs::read_dir(folder).unwrap().map(|f| f.unwrap().path()).collect();
    files.sort();
    let toml = files.into_iter().filter(|f| f.extension().is_some_and(|e| e == "toml"));
    toml.map(|f| (f.file_stem().unwrap().to_str().unwrap().to_owned(), Config::load(&f, &[]).unwrap()))
        .collect()
}

#[test]
fn every_shipped_configuration_passes_its_check() {
    for (file, config) in shipped() {
        setup::check(&config).unwrap_or_else(|e| panic!("{file}: {e}"));
        let again = Config::parse(&config.to_toml().unwrap(), &file, &[]).unwrap();
        assert_eq!(again, config, "{file}");
    }
}

/// Every network that was made for ImageNet has a recipe, whose schedule falls and whose shards share the batch evenly.
#[test]
fn every_imagenet_network_has_a_recipe() {
    let recipes: Vec<_> = shipped().into_iter().filter(|(f, _)| f.starts_with("imagenet-")).collect();
    let names: Vec<&str> = recipes.iter().filter_map(|(_, c)| c.model.name.as_deref()).collect();
    let listed = serde_json::to_value(list_models().unwrap()).unwrap();
    for row in listed.as_array().unwrap().iter().filter(|r| r["input"][0] == 224) {
        let aliases = row["aliases"].as_array().unwrap().iter().chain([&row["name"]]);
        let all: Vec<&str> = aliases.filter_map(|n| n.as_str()).collect();
        assert!(all.iter().any(|n| names.contains(n)), "no recipe for {}", row["name"]);
    }
    for (file, config) in &recipes {
        phalanx_nn::build(&config.model, [224, 224, 3], 1000, &mut Builder::new())
            .unwrap_or_else(|e| panic!("{file}: {e}"));
        let epochs = config.train.epochs as f64;
        let (full, last) = (config.schedule.warmup_epochs, epochs - 1.0);
        assert_eq!(config.schedule.factor(full, epochs), 1.0, "{file}");
        let plateau = config.schedule.plateau(None).unwrap().is_some();
        assert!(plateau || config.schedule.factor(last, epochs) < 0.13, "{file}");
        let shards = u64::from(config.distributed.virtual_shards.unwrap());
        assert_eq!(config.train.global_batch % shards, 0, "{file}");
        // There is no such set here: what is missing is told.
        let e = config.data.open(1).err().unwrap().to_string();
        assert!(e.contains("data/imagenet") && e.contains("nothing is there"), "{file}: {e}");
    }
}
