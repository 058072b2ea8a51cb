//! Reads `config.json` as Python writes it.

use std::borrow::Cow;
use std::io;
use std::path::Path;

use serde_json::{Map, Value};

use super::{Location, json};
use crate::{Error, Result};

/// Reads the configuration file at `location`; returns nothing if there is no such file.
///
/// Numbers that are not finite become strings. Python writes them as bare words that JSON does not have, such as
/// `Infinity` in the `time_step_limit` of hybrid models.
pub(super) fn read(location: &Location) -> Result<Option<Map<String, Value>>> {
    let text = match json::read_text(location, json::MAX_CONFIG) {
        Err(Error::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => return Ok(None),
        other => other?,
    };
    parse(location.path(), &text).map(Some)
}

/// Parses the text of a configuration, as `read` does. Error messages name `path`.
///
/// # Errors
///
/// [`Error::Checkpoint`] if the text is not a JSON object.
pub fn parse(path: &Path, text: &str) -> Result<Map<String, Value>> {
    let text = quote_non_finite(text);
    json::weigh(&text)
        .and_then(|()| serde_json::from_str(&text))
        .map_err(|error| json::refusal(path, "the configuration, which should be a JSON object,", &error))
}

/// Puts `NaN`, `Infinity` and `-Infinity` into quotes where they stand outside strings.
fn quote_non_finite(text: &str) -> Cow<'_, str> {
    const WORDS: [&str; 3] = ["-Infinity", "Infinity", "NaN"];
    if !WORDS.iter().any(|word| text.contains(word)) {
        return Cow::Borrowed(text);
    }
    let mut quoted = String::with_capacity(text.len() + 16);
    let mut in_string = false;
    let mut rest = text;
    while let Some(first) = rest.chars().next() {
        let word = WORDS.iter().find(|word| !in_string && rest.starts_with(**word));
        let taken = match (word, first) {
            (Some(word), _) => {
                quoted.extend(["\"", word, "\""]);
                rest = &rest[word.len()..];
                continue;
            }
            (None, '\\') if in_string => 1 + rest.chars().nth(1).map_or(0, char::len_utf8),
            (None, _) => first.len_utf8(),
        };
        in_string ^= first == '"';
        quoted.push_str(&rest[..taken]);
        rest = &rest[taken..];
    }
    Cow::Owned(quoted)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_quoted_outside_strings_only() {
        let text = r#"{"a": [0.0, Infinity, -Infinity], "NaN": "\"NaN é\\", "b": NaN}"#;
        let expected = r#"{"a": [0.0, "Infinity", "-Infinity"], "NaN": "\"NaN é\\", "b": "NaN"}"#;
        assert_eq!(quote_non_finite(text), expected);
    }

    #[test]
    fn an_unfinished_escape_is_left_to_the_parser() {
        assert_eq!(quote_non_finite("NaN \"\\"), "\"NaN\" \"\\");
    }
}
