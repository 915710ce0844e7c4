//! [`Transform`] in configuration files.

use std::collections::BTreeMap;
use std::fmt;

use serde::de::{self, Deserialize, Deserializer};
use serde::ser::{Serialize, SerializeMap, Serializer};

use super::{Transform, Value};

/// What may stand in a row.
struct Given(Result<Value, String>);

struct GivenVisitor;

impl<'de> de::Visitor<'de> for GivenVisitor {
    type Value = Given;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a number, a list of numbers, true or false, or a name")
    }

    fn visit_str<E: de::Error>(self, v: &str) -> Result<Given, E> {
        Ok(Given(Err(v.to_owned())))
    }

    fn visit_f64<E: de::Error>(self, v: f64) -> Result<Given, E> {
        Ok(Given(Ok(Value::Number(v))))
    }

    fn visit_bool<E: de::Error>(self, v: bool) -> Result<Given, E> {
        self.visit_f64(f64::from(u8::from(v)))
    }

    fn visit_i64<E: de::Error>(self, v: i64) -> Result<Given, E> {
        self.visit_f64(v as f64)
    }

    fn visit_u64<E: de::Error>(self, v: u64) -> Result<Given, E> {
        self.visit_f64(v as f64)
    }

    fn visit_seq<A: de::SeqAccess<'de>>(self, mut seq: A) -> Result<Given, A::Error> {
        let mut list = Vec::new();
        while let Some(x) = seq.next_element()? {
            list.push(x);
        }
        Ok(Given(Ok(Value::List(list))))
    }
}

impl<'de> Deserialize<'de> for Given {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        d.deserialize_any(GivenVisitor)
    }
}

impl<'de> Deserialize<'de> for Transform {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        let mut given = BTreeMap::<String, Given>::deserialize(d)?;
        let name = match given.remove("name") {
            Some(Given(Err(name))) => name,
            _ => return Err(de::Error::custom("a transform needs a name: { name = \"flip\", p = 0.5 }")),
        };
        let field = match given.remove("field") {
            None => None,
            Some(Given(Err(field))) => Some(field),
            Some(_) => {
                return Err(de::Error::custom(format!("transform {name}, field: must be a field's name")));
            }
        };
        let mut params = Vec::with_capacity(given.len());
        for (key, Given(value)) in &given {
            let value = value.clone().map_err(|text| {
                de::Error::custom(format!("transform {name}, {key}: is {text:?}, and must be a number"))
            });
            params.push((&key[..], value?));
        }
        let transform = Transform::new(&name, &params).map_err(de::Error::custom)?;
        Ok(match field {
            Some(field) => transform.on(field),
            None => transform,
        })
    }
}

impl Serialize for Transform {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        let mut map = s.serialize_map(None)?;
        map.serialize_entry("name", self.row.name)?;
        if let Some(field) = &self.field {
            map.serialize_entry("field", &**field)?;
        }
        for (param, value) in self.row.params.iter().zip(&self.values) {
            match value {
                Value::Auto => {}
                Value::Number(x) => map.serialize_entry(param.name, x)?,
                Value::List(list) => map.serialize_entry(param.name, list)?,
            }
        }
        map.end()
    }
}
