//! Reads values of the section of a configuration that describes one model.

use serde_json::{Map, Value};

use super::types::OrProblem;
use crate::error::quote;

/// The largest number that is accepted. Products of two of these do not overflow.
const MAX: u64 = 1 << 31;

/// The section of a configuration that describes one model.
#[derive(Debug, Clone)]
pub(super) struct ConfigSection<'a> {
    values: &'a Map<String, Value>,
    /// Values of keys that the section leaves out.
    defaults: Option<&'static Map<String, Value>>,
    /// The name of the section in messages.
    pub(super) name: String,
}

impl<'a> ConfigSection<'a> {
    /// The whole configuration.
    pub(super) fn whole(values: &'a Map<String, Value>) -> Self {
        ConfigSection { values, defaults: None, name: "the configuration".to_owned() }
    }

    /// Whether both are the same section of the configuration.
    pub(super) fn is_same(&self, other: &Self) -> bool {
        std::ptr::eq(self.values, other.values)
    }

    /// The section, with defaults for the keys that it leaves out.
    pub(super) fn with_defaults(self, defaults: Option<&'static Map<String, Value>>) -> Self {
        ConfigSection { defaults, ..self }
    }

    /// The section under this key, if there is one.
    pub(super) fn inner(&self, key: &str) -> OrProblem<Option<ConfigSection<'a>>> {
        match self.values.get(key) {
            None | Some(Value::Null) => Ok(None),
            Some(Value::Object(values)) => {
                let name = match self.name.strip_prefix('`') {
                    Some(outer) => format!("`{key}` in `{outer}"),
                    None => format!("`{key}` in {}", self.name),
                };
                Ok(Some(ConfigSection { values, defaults: None, name }))
            }
            Some(other) => Err(format!("`{key}` should be an object, but is {}", show(other))),
        }
    }

    /// The type of the model that the section describes, if the section gives it.
    pub(super) fn model_type(&self) -> OrProblem<Option<&'a str>> {
        match self.values.get("model_type") {
            None | Some(Value::Null) => Ok(None),
            Some(Value::String(model_type)) => Ok(Some(model_type)),
            Some(other) if self.name == "the configuration" => {
                Err(format!("`model_type` should be a text, but is {}", show(other)))
            }
            Some(other) => Err(self.mismatch("model_type", "a text", other)),
        }
    }

    /// The value of a key; `a.b` is key `b` of the object `a`.
    pub(super) fn value(&self, key: &str) -> Option<&'a Value> {
        let find = |values: &'a Map<String, Value>| {
            let mut parts = key.split('.');
            let first = values.get(parts.next()?)?;
            parts.try_fold(first, |value, part| value.get(part)).filter(|value| !value.is_null())
        };
        find(self.values).or_else(|| self.defaults.and_then(find))
    }

    /// Whether a flag is set. An absent flag is not.
    pub(super) fn flag(&self, key: &str) -> OrProblem<bool> {
        match self.value(key) {
            None => Ok(false),
            Some(Value::Bool(flag)) => Ok(*flag),
            Some(other) => Err(self.mismatch(key, "true or false", other)),
        }
    }

    /// Reads a whole number from 1 on.
    pub(super) fn size(&self, key: &str, value: &Value) -> OrProblem<usize> {
        self.whole_number(key, value, 1)
    }

    /// Reads a whole number from 0 on.
    pub(super) fn count(&self, key: &str, value: &Value) -> OrProblem<usize> {
        self.whole_number(key, value, 0)
    }

    fn whole_number(&self, key: &str, value: &Value, least: u64) -> OrProblem<usize> {
        let number = value.as_u64().filter(|number| (least..=MAX).contains(number));
        number
            .and_then(|number| usize::try_from(number).ok())
            .ok_or_else(|| self.mismatch(key, &format!("a whole number from {least} to {MAX}"), value))
    }

    fn mismatch(&self, key: &str, expected: &str, found: &Value) -> String {
        format!("`{key}` in {} should be {expected}, but is {}", self.name, show(found))
    }
}

/// Formats a value of the configuration for a message.
pub(super) fn show(value: &Value) -> String {
    match value {
        Value::Array(_) => "a list".to_owned(),
        Value::Object(_) => "an object".to_owned(),
        scalar => quote(&scalar.to_string()),
    }
}
