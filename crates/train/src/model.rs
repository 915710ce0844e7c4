//! Named models for people: `phalanx model`.

use phalanx_nn::{Listing, ModelConfig, Summary};

use crate::config::{apply, explain};
use crate::{Error, Result};

/// All named models, at the inputs that they were made for.
pub fn list() -> Result<Listing> {
    Ok(phalanx_nn::list_models()?)
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
    let config: ModelConfig = table.try_into().map_err(|e| Error::config("model", explain(&e)))?;
    Ok(phalanx_nn::summarise(&config, input, classes, batch)?)
}

#[cfg(test)]
mod tests {
    use super::*;

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
