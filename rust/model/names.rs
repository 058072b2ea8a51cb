//! Names of tensors, matched with a family and listed for a message.

use std::collections::BTreeSet;

use super::family::Family;
use crate::error::quote;

/// How many names a message lists at most.
const LISTED: usize = 8;

/// Of the family's prefixes, those that some attention tensor in `names` has.
pub(super) fn prefixes<'a>(
    family: &'static Family,
    names: impl Iterator<Item = &'a str>,
) -> Vec<&'static str> {
    let mut found = BTreeSet::new();
    for name in names {
        found.extend(family.prefixes.iter().filter(|prefix| is_attention(family, prefix, name)));
    }
    found.into_iter().map(|prefix| &**prefix).collect()
}

fn is_attention(family: &Family, prefix: &str, name: &str) -> bool {
    let (before, after) = family.around_layer();
    let parts = || {
        let rest = name.strip_prefix(prefix)?.strip_prefix(before)?;
        let (layer, _) = rest.split_once('.')?;
        let own = rest.strip_prefix(layer)?.strip_prefix(after)?;
        Some((layer, own))
    };
    parts().is_some_and(|(layer, own)| {
        is_number(layer) && family.tensors.iter().any(|tensor| tensor.name == own)
    })
}

fn is_number(part: &str) -> bool {
    !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit())
}

/// The name of a tensor of one layer.
pub(super) fn tensor_name(family: &Family, prefix: &str, layer: usize, own: &str) -> String {
    let (before, after) = family.around_layer();
    format!("{prefix}{before}{layer}{after}{own}")
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
            let parts = name.split('.').map(|part| if is_number(part) { "{layer}" } else { part });
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
