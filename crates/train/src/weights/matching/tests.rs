use phalanx_host::Arena;
use phalanx_host::DType;

use super::*;

fn model(name: &str, classes: usize) -> (ModelConfig, Params, Norms) {
    let config = ModelConfig::named(name);
    let mut b = Builder::new();
    phalanx_nn::build(&config, [32, 32, 3], classes, &mut b).unwrap();
    let (params, norms) = b.finish(&mut Arena::zeroed).unwrap();
    (config, params, norms)
}

/// Arrays as the model has them, with values that tell them apart.
fn arrays(params: &Params, norms: &Norms) -> Arrays {
    let mut arrays = norm_arrays(norms);
    for (id, n) in params.ids().zip(1..) {
        let shape = params.stored_shape(id).to_vec();
        arrays.insert(
            params.spec(id).name.clone(),
            Array::new(&shape, &vec![n as f32; shape.iter().product()]),
        );
    }
    for (n, array) in arrays.values_mut().filter(|a| a.dtype == DType::F32).enumerate() {
        array.bytes[3] ^= (n % 2) as u8;
    }
    arrays
}

fn values(params: &Params, norms: &Norms) -> Arrays {
    let held = params.ids().map(|id| {
        let (shape, values) = params.export(id).unwrap();
        (params.spec(id).name.clone(), Array::new(&shape, &values))
    });
    held.chain(norm_arrays(norms)).collect()
}

fn misfit(e: LoadError) -> Misfit {
    match e {
        LoadError::Misfit(m) => m,
        other => panic!("{other}"),
    }
}

#[test]
fn arrays_find_their_places_under_every_wrapper() {
    let (_, params, mut norms) = model("resnet18", 10);
    let plain = arrays(&params, &norms);
    for wrapper in ["", "module.", "model.module.", "state_dict._orig_mod."] {
        params.initialise(1).unwrap();
        let wrapped = plain.iter().map(|(n, a)| (format!("{wrapper}{n}"), a.clone())).collect();
        assert_eq!(load(&params, Some(&mut norms), &wrapped, &[]).unwrap(), Vec::<String>::new());
        assert_eq!(values(&params, &norms), plain, "{wrapper}");
    }
    // Not in front of all names: not a wrapper.
    let mut half = plain.clone();
    let fc = half.remove("fc.bias").unwrap();
    half.insert("module.fc.bias".into(), fc);
    let m = misfit(load(&params, Some(&mut norms), &half, &[]).unwrap_err());
    assert_eq!((m.missing, m.extra), (vec!["fc.bias".to_owned()], vec!["module.fc.bias".to_owned()]));
}

#[test]
fn what_does_not_fit_is_listed_together_and_changes_nothing() {
    let (_, params, mut norms) = model("resnet18", 10);
    params.initialise(1).unwrap();
    let before = values(&params, &norms);
    let mut wrong = arrays(&params, &norms);
    wrong.retain(|name, _| !name.ends_with("num_batches_tracked"));
    assert!(load(&params, Some(&mut norms), &wrong, &[]).is_ok());
    load(&params, Some(&mut norms), &before, &[]).unwrap();
    wrong.remove("conv1.weight");
    wrong.remove("layer1.0.bn1.running_mean");
    wrong.insert("fc.weight".into(), Array::new(&[7, 512], &[0f32; 7 * 512]));
    wrong.insert("bn1.bias".into(), Array::new(&[64], &[0i64; 64]));
    for i in 0..9 {
        wrong.insert(format!("odd.{i}"), Array::new(&[1], &[0f32]));
    }
    let e = load(&params, Some(&mut norms), &wrong, &[]).unwrap_err();
    assert_eq!(
        e.to_string(),
        "2 of another shape (bn1.bias is i64 there, fc.weight is [7, 512] there and [10, 512] here); \
         2 missing (conv1.weight, layer1.0.bn1.running_mean); \
         9 too many (odd.0, odd.1, odd.2, odd.3, odd.4, odd.5 and 3 more)"
    );
    assert_eq!(values(&params, &norms), before);
}

#[test]
fn other_floats_are_converted() {
    let (_, params, mut norms) = model("resnet18", 10);
    let mut given = arrays(&params, &norms);
    let plain = given.clone();
    for (i, array) in given.values_mut().filter(|a| a.dtype == DType::F32).enumerate() {
        let values = array.floats().unwrap();
        *array = match i % 3 {
            0 => Array::new(&array.shape, &values.iter().map(|&v| f64::from(v)).collect::<Vec<_>>()),
            1 => {
                Array::new(&array.shape, &values.iter().map(|&v| half::bf16::from_f32(v)).collect::<Vec<_>>())
            }
            _ => {
                Array::new(&array.shape, &values.iter().map(|&v| half::f16::from_f32(v)).collect::<Vec<_>>())
            }
        };
    }
    load(&params, Some(&mut norms), &given, &[]).unwrap();
    let rounded = |a: &Array| a.floats().unwrap_or_default();
    for (name, array) in values(&params, &norms) {
        assert_eq!(rounded(&array), rounded(&given[&name]), "{name}");
    }
    assert_eq!(values(&params, &norms).len(), plain.len());
}

#[test]
fn another_number_of_classes_is_told_from_another_model() {
    let (_, theirs, norms) = model("resnet18", 1000);
    let file = arrays(&theirs, &norms);
    let (config, params, mut norms) = model("resnet18", 10);
    let heads = heads(&config, [32, 32, 3], 10).unwrap();
    assert_eq!(heads, [("fc.weight".to_owned(), 0), ("fc.bias".to_owned(), 0)]);
    assert_eq!(classes(&heads, &file), Some(1000));
    params.initialise(5).unwrap();
    let before = values(&params, &norms);
    let m = misfit(load(&params, Some(&mut norms), &file, &[]).unwrap_err());
    let skip = m.other_classes(&heads).unwrap();
    assert_eq!(skip, ["fc."]);
    assert_eq!(load(&params, Some(&mut norms), &file, &skip).unwrap(), ["fc.bias", "fc.weight"]);
    let after = values(&params, &norms);
    for (name, array) in &after {
        let from = if name.starts_with("fc.") { &before } else { &file };
        assert_eq!(array, &from[name], "{name}");
    }
    let e = load(&params, Some(&mut norms), &file, &["head.".into()]).unwrap_err();
    assert!(e.to_string().contains("no tensor of the model begins with it"), "{e}");
    // A norm can be left, too.
    let mut less = file.clone();
    less.retain(|name, _| !name.starts_with("bn1."));
    let left = load(&params, Some(&mut norms), &less, &["fc.".into(), "bn1.".into()]).unwrap();
    assert_eq!(left.len(), 2 + 5);
}

#[test]
fn densenets_first_names_are_known() {
    let (config, params, mut norms) = model("densenet121", 10);
    let plain = arrays(&params, &norms);
    let old = |name: &str| {
        let mut parts: Vec<String> = name.split('.').map(str::to_owned).collect();
        if let Some(at) = parts.iter().position(|p| p.starts_with("denselayer")) {
            let number = parts[at + 1].pop().unwrap();
            parts.insert(at + 2, number.to_string());
        }
        parts.join(".")
    };
    let file: Arrays = plain.iter().map(|(n, a)| (old(n), a.clone())).collect();
    assert!(file.contains_key("features.denseblock1.denselayer1.norm.1.weight"));
    load(&params, Some(&mut norms), &file, &[]).unwrap();
    assert_eq!(values(&params, &norms), plain);
    let heads = heads(&config, [32, 32, 3], 10).unwrap();
    assert_eq!(heads.len(), 2);
    assert_eq!(classes(&heads, &file), Some(10));
}
