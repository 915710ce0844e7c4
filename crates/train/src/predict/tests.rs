use super::*;
use crate::checkpoint::to_safetensors;
use crate::snapshot::{norm_arrays, param_arrays};

fn pictures(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/pictures").join(name)
}

/// A file of random weights of a model.
fn weights_of(dir: &Path, config: &ModelConfig, input: [usize; 3], classes: usize, but: &str) -> PathBuf {
    let mut b = Builder::new();
    phalanx_nn::build(config, input, classes, &mut b).unwrap();
    let (params, norms) = b.finish(&mut Arena::zeroed).unwrap();
    params.initialise(3).unwrap();
    let mut arrays = param_arrays(&params).unwrap();
    arrays.extend(norm_arrays(&norms));
    arrays.retain(|name, _| but.is_empty() || !name.starts_with(but));
    let path = dir.join("w.safetensors");
    fs::write(&path, to_safetensors(&arrays).unwrap()).unwrap();
    path
}

fn request(model: Option<&str>, checkpoint: PathBuf) -> PredictRequest {
    PredictRequest {
        model: model.map(str::to_owned),
        settings: Vec::new(),
        checkpoint,
        labels: None,
        transform: Some(Preparation::Imagenet),
        input: Some([32, 32, 3]),
        top: 3,
        device: "cpu".into(),
        threads: 2,
    }
}

fn outcomes(predictor: &Predictor, images: &[PathBuf]) -> Vec<Outcome> {
    let mut all = Vec::new();
    predictor.run(images, |path, outcome| all.push((path.to_owned(), outcome))).unwrap();
    assert_eq!(all.iter().map(|a| &a.0).collect::<Vec<_>>(), images.iter().collect::<Vec<_>>());
    all.into_iter().map(|a| a.1).collect()
}

#[test]
fn images_of_every_kind_are_classified_and_others_named() {
    let dir = tempfile::tempdir().unwrap();
    let config = ModelConfig::named("resnet20");
    let file = weights_of(dir.path(), &config, [32, 32, 3], 7, "");
    let predictor = Predictor::new(&request(Some("resnet20"), file.clone())).unwrap();
    let mut images: Vec<PathBuf> = (0..3)
        .flat_map(|_| {
            ["rgb.jpg", "one.png", "cmyk.jpg", "grey16.png", "palette.png", "line.png"].map(pictures)
        })
        .collect();
    images.insert(4, pictures("pictures.json"));
    images.insert(9, pictures("none.png"));
    let all = outcomes(&predictor, &images);
    for (i, (image, outcome)) in images.iter().zip(&all).enumerate() {
        match outcome {
            Err(e) => {
                assert!(e.to_string().contains(&image.display().to_string()) && e.exit_code() == 3, "{e}");
                assert!(i == 4 || i == 9);
            }
            Ok(best) => {
                assert_eq!(best.len(), 3);
                assert!(best[0].probability >= best[1].probability && best[0].class < 7);
                assert_eq!(best[0].name, best[0].class.to_string());
                // The same alone as among others, but for rounding: products are cut by the shape of the batch.
                let alone = outcomes(&predictor, std::slice::from_ref(image));
                for (alone, best) in alone[0].as_ref().unwrap().iter().zip(best) {
                    assert_eq!(alone.class, best.class, "{}", image.display());
                    assert!((alone.probability - best.probability).abs() < 1e-5, "{}", image.display());
                }
            }
        }
    }
    // Without resizing, an image's own size: this model takes any from 1 pixel on.
    let any = Predictor::new(&PredictRequest {
        transform: Some(Preparation::None),
        ..request(Some("resnet20"), file)
    });
    let all = outcomes(&any.unwrap(), &["rgb.jpg", "one.png", "rgb.png"].map(pictures));
    assert!(all.iter().all(Result::is_ok), "{all:?}");
}

#[test]
fn what_does_not_fit_is_said() {
    let dir = tempfile::tempdir().unwrap();
    let file = weights_of(dir.path(), &ModelConfig::named("lenet5"), [28, 28, 1], 10, "");
    let with = |change: &dyn Fn(&mut PredictRequest)| {
        let mut request = request(Some("lenet5"), file.clone());
        (request.input, request.transform) = (None, None);
        change(&mut request);
        Predictor::new(&request)
    };
    let say = |change: &dyn Fn(&mut PredictRequest)| with(change).unwrap_err().to_string();
    assert!(say(&|r| r.model = None).contains("name it, as --model"));
    assert!(say(&|r| r.model = Some("alexnet".into())).contains("is of another model"));
    assert!(say(&|r| r.labels = Some(pictures("none"))).contains("--labels"));
    fs::write(dir.path().join("labels"), "a\nb\n").unwrap();
    assert!(say(&|r| r.labels = Some(dir.path().join("labels"))).contains("2 lines, but the model has 10"));
    // An image of another size than the model's, for a model that takes one size only.
    let predictor = with(&|_| ()).unwrap();
    assert_eq!(predictor.preparation, Preparation::None);
    let e = outcomes(&predictor, &[pictures("rgb.jpg")]).remove(0).unwrap_err();
    assert!(e.to_string().contains("rgb.jpg") && e.to_string().contains("another size than 32x40x1"), "{e}");
    assert_eq!(e.exit_code(), 3);
}

#[test]
fn a_training_set_that_is_gone_is_not_guessed() {
    let of = |set: &str, input: Option<[usize; 3]>, labels: Option<&str>| {
        let identity =
            toml::from_str(&format!("model = {{ name = \"lenet5\" }}\ndata = {{ train = \"{set}\" }}"));
        let progress = Progress { identity: identity.unwrap(), ..Progress::default() };
        let request =
            PredictRequest { input, labels: labels.map(PathBuf::from), ..request(None, PathBuf::new()) };
        Run::of(&progress, &request).map(|run| run.set.is_some()).map_err(|e| e.to_string())
    };
    let size = Some([28, 28, 1]);
    assert_eq!(of("digits", None, None), Ok(true));
    assert_eq!(of("gone/mnist", size, Some("labels")), Ok(false));
    for (input, labels) in [(None, None), (size, None), (None, Some("labels"))] {
        let e = of("gone/mnist", input, labels).unwrap_err();
        assert!(e.contains("gone/mnist") && e.contains("or give --input and --labels"), "{e}");
    }
}

#[test]
fn heads_for_training_may_be_missing() {
    let dir = tempfile::tempdir().unwrap();
    let config = ModelConfig::named("googlenet");
    let file = weights_of(dir.path(), &config, [64, 64, 3], 5, "aux");
    let ask = PredictRequest { input: Some([64, 64, 3]), ..request(Some("googlenet"), file) };
    let predictor = Predictor::new(&ask).unwrap();
    assert_eq!(predictor.names.len(), 5);
    assert!(outcomes(&predictor, &[pictures("rgb.jpg")])[0].is_ok());
}

#[test]
fn shares_are_a_distribution() {
    let shares = softmax(&[1000.0, 1000.0, -1000.0]);
    assert_eq!(shares, [0.5, 0.5, 0.0]);
}
