//! Names of tensors, listed for a message.

use std::collections::BTreeSet;

use super::stacks::number;
use crate::error::quote;

/// How many names a message lists at most.
const LISTED: usize = 8;

/// The names of the parts directly under `prefix`, each once.
pub(super) fn children<'a>(names: impl Iterator<Item = &'a str>, prefix: &str) -> Vec<String> {
    let child = |name: &'a str| {
        let rest = name.strip_prefix(prefix)?.strip_prefix('.')?;
        rest.split('.').next()
    };
    let children: BTreeSet<&str> = names.filter_map(child).collect();
    children.into_iter().map(quote).collect()
}

/// Says which of the names seem to be about attention, each layer's only once.
pub(super) fn describe_attention<'a>(names: impl Iterator<Item = &'a str>) -> String {
    let is_likely = |name: &str| {
        let name = name.to_ascii_lowercase();
        ["attn", "attention"].iter().any(|word| name.contains(word))
    };
    let mut count = 0_usize;
    let patterns: BTreeSet<String> = names
        .inspect(|_| count += 1)
        .filter(|name| is_likely(name))
        .map(|name| {
            let parts = name.split('.').map(|part| if number(part).is_some() { "{layer}" } else { part });
            parts.collect::<Vec<_>>().join(".")
        })
        .collect();
    if patterns.is_empty() {
        return format!("of its {count} tensors none has `attn` or `attention` in its name");
    }
    let listed: Vec<String> = patterns.iter().take(LISTED).map(|pattern| quote(pattern)).collect();
    let more = match patterns.len().saturating_sub(LISTED) {
        0 => String::new(),
        more => format!(" and {more} more"),
    };
    format!("its attention tensors seem to be {}{more}", listed.join(", "))
}
