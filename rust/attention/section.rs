//! A part of the configuration that is about one model.

use serde_json::{Map, Value};

use crate::error::quote;

/// The largest number that is believed. Products of two of these do not overflow.
const MAX: u64 = 1 << 31;

/// The configuration of a model, or of a model within it.
#[derive(Debug, Clone)]
pub(super) struct Section<'a> {
    values: &'a Map<String, Value>,
    /// What the configuration leaves out.
    defaults: Option<&'static Map<String, Value>>,
    /// What to call it in a message.
    pub(super) place: String,
}

impl<'a> Section<'a> {
    /// The whole configuration.
    pub(super) fn whole(values: &'a Map<String, Value>) -> Self {
        Section { values, defaults: None, place: "the configuration".to_owned() }
    }

    /// The same with these values where it has none of its own.
    pub(super) fn with_defaults(self, defaults: Option<&'static Map<String, Value>>) -> Self {
        Section { defaults, ..self }
    }

    /// The section of this name, if there is one.
    pub(super) fn inner(&self, key: &str) -> Result<Option<Section<'a>>, String> {
        match self.values.get(key) {
            None | Some(Value::Null) => Ok(None),
            Some(Value::Object(values)) => {
                let place = match self.place.strip_prefix('`') {
                    Some(outer) => format!("`{key}` in `{outer}"),
                    None => format!("`{key}` in {}", self.place),
                };
                Ok(Some(Section { values, defaults: None, place }))
            }
            Some(other) => Err(format!("`{key}` should be an object, but is {}", show(other))),
        }
    }

    /// The type of the model that the section is about, if the section says it.
    pub(super) fn model_type(&self) -> Result<Option<&'a str>, String> {
        match self.values.get("model_type") {
            None | Some(Value::Null) => Ok(None),
            Some(Value::String(model_type)) => Ok(Some(model_type)),
            Some(other) if self.place == "the configuration" => {
                Err(format!("`model_type` should be a text, but is {}", show(other)))
            }
            Some(other) => {
                Err(format!("`model_type` in {} should be a text, but is {}", self.place, show(other)))
            }
        }
    }

    /// The value of a key, `a.b` being key `b` of the object `a`.
    pub(super) fn given(&self, key: &str) -> Option<&'a Value> {
        let find = |values: &'a Map<String, Value>| {
            let mut parts = key.split('.');
            let first = values.get(parts.next()?)?;
            parts.try_fold(first, |value, part| value.get(part)).filter(|value| !value.is_null())
        };
        find(self.values).or_else(|| self.defaults.and_then(find))
    }

    /// Whether a flag is set.
    pub(super) fn flag(&self, key: &str) -> Result<bool, String> {
        match self.given(key) {
            None => Ok(false),
            Some(Value::Bool(flag)) => Ok(*flag),
            Some(other) => {
                Err(format!("`{key}` in {} should be true or false, but is {}", self.place, show(other)))
            }
        }
    }

    /// A number of something that there is at least one of.
    pub(super) fn size(&self, key: &str, value: &Value) -> Result<usize, String> {
        match self.count(key, value) {
            Ok(size @ 1..) => Ok(size),
            _ => Err(format!(
                "`{key}` in {} should be a whole number from 1 to {MAX}, but is {}",
                self.place,
                show(value)
            )),
        }
    }

    /// A number of something that there may be none of.
    pub(super) fn count(&self, key: &str, value: &Value) -> Result<usize, String> {
        match value.as_u64().filter(|count| *count <= MAX).map(usize::try_from) {
            Some(Ok(count)) => Ok(count),
            _ => Err(format!(
                "`{key}` in {} should be a whole number from 0 to {MAX}, but is {}",
                self.place,
                show(value)
            )),
        }
    }
}

/// A value of the configuration, fit for a message.
pub(super) fn show(value: &Value) -> String {
    match value {
        Value::Array(_) => "a list".to_owned(),
        Value::Object(_) => "an object".to_owned(),
        scalar => quote(&scalar.to_string()),
    }
}
