//! Named models for people: `phalanx model`.

use phalanx_nn::{LayerKind, LayerListing, Listing, ModelConfig, Row, Summary};

use crate::config::{apply, explain};
use crate::{Error, Result, table};

/// All named models, at the inputs that they were made for.
pub fn list() -> Result<Listing> {
    Ok(phalanx_nn::list_models()?)
}

/// All kinds of layers that a configuration can name, with their options and what these are when left out.
pub fn layers() -> LayerListing {
    let LayerListing(mut kinds) = Row::kinds();
    for kind in &mut kinds {
        let row = usual(kind);
        for option in kind.options.iter_mut().filter(|o| !o.required) {
            option.default = row.as_ref().and_then(|r| r.get(&option.name)).map(toml::Value::to_string);
        }
    }
    LayerListing(kinds)
}

/// A row of that kind with nothing given but what must be, as a table with all its values.
fn usual(kind: &LayerKind) -> Option<toml::Table> {
    let example = |values: &str| -> toml::Value {
        match values {
            v if v.starts_with("a list") => vec![1].into(),
            "a number" => 0.5.into(),
            "true or false" => true.into(),
            v if v.contains(" or ") && !v.contains("whole number") => {
                v.split([',', ' ']).next().unwrap_or(v).into()
            }
            _ => 1.into(),
        }
    };
    let needed = kind.options.iter().filter(|o| o.required).map(|o| (o.name.clone(), example(&o.values)));
    let mut table: toml::Table = needed.collect();
    table.insert("type".into(), kind.name.clone().into());
    toml::Table::try_from(table::read::<Row>(&table).ok()?).ok()
}

/// What a named model consists of, with `key=value` settings as its options; see
/// [`phalanx_nn::summarise`].
pub fn show(
    name: &str,
    settings: &[String],
    input: Option<[usize; 3]>,
    classes: Option<usize>,
    batch: u64,
) -> Result<Summary> {
    let mut table = toml::Table::new();
    settings.iter().try_for_each(|s| apply(&mut table, s))?;
    table.insert("name".into(), name.into());
    let config: ModelConfig = table::read(&table).map_err(|e| Error::config("model", explain(&e)))?;
    Ok(phalanx_nn::summarise(&config, input, classes, batch)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layers_are_listed_with_what_options_are_when_left_out() {
        let LayerListing(kinds) = layers();
        let option = |kind: &str, name: &str| {
            let kind = kinds.iter().find(|k| k.name == kind).unwrap();
            kind.options.iter().find(|o| o.name == name).unwrap().clone()
        };
        assert_eq!(option("conv", "stride").default.as_deref(), Some("1"));
        assert_eq!(option("avg-pool", "count_include_pad").default.as_deref(), Some("true"));
        assert!(option("conv", "kernel").required && option("linear", "out").default.is_none());
        // A new kind whose required options have values of another form needs an example of them.
        for kind in &kinds {
            assert!(usual(kind).is_some(), "no row of {} can be made for the list", kind.name);
        }
        assert!(LayerListing(kinds).to_string().contains("max-pool"));
    }

    #[test]
    fn options_reach_the_model_and_wrong_ones_are_named() {
        let parameters = |settings: &[&str]| {
            let settings: Vec<String> = settings.iter().map(|s| s.to_string()).collect();
            show("vgg-a", &settings, Some([32, 32, 3]), Some(10), 4).map(|s| s.parameters)
        };
        assert!(parameters(&["hidden=[64,64]"]).unwrap() < parameters(&[]).unwrap());
        let say = |settings: &[&str]| parameters(settings).unwrap_err().to_string();
        assert!(say(&["batch_norms=true"]).contains("batch_norm"), "{}", say(&["batch_norms=true"]));
        assert!(say(&["aux=true"]).contains("no option aux"), "{}", say(&["aux=true"]));
        assert_eq!(show("vgg", &[], None, None, 1).unwrap_err().exit_code(), 2);
    }
}
