//! Reads layer numbers in the names of tensors, and lists names for messages.

use std::collections::BTreeSet;

use crate::error::quote;

/// The largest number of names that a message lists.
const LISTED: usize = 8;

/// The largest number of names that are counted for a message.
const COUNTED: usize = 1000;

/// The last part of a name whose parts are separated by dots.
pub(super) fn last_part(name: &str) -> &str {
    name.rsplit_once('.').map_or(name, |(_, last)| last)
}

/// The number that a part of a name is, if it is written without leading zeros and has at most 32 bits: sums of such numbers
/// do not overflow.
pub(super) fn number(part: &str) -> Option<usize> {
    let is_usual = part.bytes().all(|byte| byte.is_ascii_digit()) && (part == "0" || !part.starts_with('0'));
    if is_usual { usize::try_from(part.parse::<u32>().ok()?).ok() } else { None }
}

/// Quotes the items and separates them by commas.
pub(super) fn list(items: &[impl AsRef<str>]) -> String {
    let quoted: Vec<String> = items.iter().map(|item| quote(item.as_ref())).collect();
    quoted.join(", ")
}

/// Lists the parts that follow `prefix` in the names, each once.
pub(super) fn list_children<'a>(names: impl Iterator<Item = &'a str>, prefix: &str) -> String {
    let child = |name: &'a str| name.strip_prefix(prefix)?.strip_prefix('.')?.split('.').next();
    let children: BTreeSet<&str> = names.filter_map(child).collect();
    list(&children.into_iter().collect::<Vec<_>>())
}

/// Describes the names that seem to belong to attention, each layer's only once.
pub(super) fn describe_attention<'a>(names: impl Iterator<Item = &'a str>) -> String {
    let is_likely = |name: &str| {
        let name = name.to_ascii_lowercase();
        ["attn", "attention"].iter().any(|word| name.contains(word))
    };
    let mut count = 0_usize;
    let mut patterns = BTreeSet::new();
    for name in names.inspect(|_| count += 1).filter(|name| is_likely(name)) {
        let parts = name.split('.').map(|part| if number(part).is_some() { "{layer}" } else { part });
        let pattern = parts.collect::<Vec<_>>().join(".");
        if patterns.len() < COUNTED {
            patterns.insert(pattern);
        }
    }
    if patterns.is_empty() {
        return format!("of its {count} tensors none has `attn` or `attention` in its name");
    }
    let listed: Vec<&String> = patterns.iter().take(LISTED).collect();
    let more = match patterns.len().saturating_sub(LISTED) {
        0 => String::new(),
        _ if patterns.len() == COUNTED => " and many more".to_owned(),
        more => format!(" and {more} more"),
    };
    format!("its attention tensors seem to be {}{more}", list(&listed))
}
