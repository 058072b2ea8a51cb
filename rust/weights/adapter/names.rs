//! Finds the module of a base checkpoint that a module of an adapter stands for.
//!
//! An adapter names modules as they were called in the running model; on disk their prefixes can be others:
//! `model.language_model.layers.0` in the one, `language_model.model.layers.0` in the other.

use std::cmp::Ordering;
use std::collections::BTreeSet;

/// The modules of a base checkpoint.
#[derive(Debug)]
pub(super) struct Modules {
    /// In the order of their parts, the last part first, so that names with the same ending are neighbours.
    names: Vec<String>,
}

impl Modules {
    /// The modules that hold tensors of these names.
    pub(super) fn new<'n>(tensors: impl Iterator<Item = &'n str>) -> Self {
        let mut modules = BTreeSet::new();
        for name in tensors {
            match name.rsplit_once('.') {
                Some((module, "weight" | "bias")) => modules.insert(module),
                // Its own module, as far as the module's other tensors do not say more.
                Some((module, _)) => modules.insert(module) | modules.insert(name),
                None => modules.insert(name),
            };
        }
        let mut names: Vec<String> = modules.into_iter().map(str::to_owned).collect();
        names.sort_unstable_by(|a, b| compare(a, b));
        Self { names }
    }

    /// The module that `module` stands for, `None` if there is none, or all that it could stand for.
    ///
    /// That is the module of the same name; else that with the most last parts in common, the number of the
    /// layer among them, whose other parts contain those of `module` or are contained in them; of several the
    /// one that shares the most of those.
    pub(super) fn find(&self, module: &str) -> Result<Option<&str>, Vec<&str>> {
        let place = self.names.partition_point(|name| compare(name, module) == Ordering::Less);
        if self.names.get(place).is_some_and(|name| name == module) {
            return Ok(Some(&self.names[place]));
        }
        let (before, after) = self.names.split_at(place);
        let longest = [before.last(), after.first()]
            .into_iter()
            .flatten()
            .map(|name| common_parts(name, module))
            .max()
            .unwrap_or(0);
        if longest == 0 {
            return Ok(None);
        }
        let alike = |name: &&String| common_parts(name, module) == longest;
        let candidates = before.iter().rev().take_while(alike).chain(after.iter().take_while(alike));
        let mut best: (usize, Vec<&str>) = (0, Vec::new());
        for name in candidates {
            let Some(shared) = shared_prefix_parts(name, module, longest) else { continue };
            match shared.cmp(&best.0) {
                Ordering::Less => continue,
                Ordering::Greater => best = (shared, Vec::new()),
                Ordering::Equal => {}
            }
            best.1.push(name);
        }
        match best.1[..] {
            [] => Ok(None),
            [only] => Ok(Some(only)),
            _ => {
                best.1.sort_unstable();
                Err(best.1)
            }
        }
    }
}

fn compare(a: &str, b: &str) -> Ordering {
    a.rsplit('.').cmp(b.rsplit('.'))
}

fn common_parts(a: &str, b: &str) -> usize {
    a.rsplit('.').zip(b.rsplit('.')).take_while(|(a, b)| a == b).count()
}

/// How many parts two names have in common before their last `common` ones, if they may be the same module.
fn shared_prefix_parts(a: &str, b: &str, common: usize) -> Option<usize> {
    let prefix = |name: &'_ str| -> Option<BTreeSet<String>> {
        let parts: BTreeSet<String> = name.rsplit('.').skip(common).map(str::to_owned).collect();
        // Another number is another layer.
        parts.iter().all(|part| !is_number(part)).then_some(parts)
    };
    let (mut a, mut b) = (prefix(a)?, prefix(b)?);
    let shared = a.intersection(&b).count();
    for parts in [&mut a, &mut b] {
        parts.remove("model");
    }
    (a.is_subset(&b) || b.is_subset(&a)).then_some(shared)
}

fn is_number(part: &str) -> bool {
    !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit())
}

/// Whether a module that is not in the base may be one with attention: in a layer, and not in its feed-forward
/// part, whose experts can be tensors of one kind on disk and of another when running.
pub(super) fn may_hold_attention(module: &str) -> bool {
    module.split('.').any(is_number) && !is_outside_attention(module)
}

/// Whether a name is one of a layer's feed-forward part.
pub(super) fn is_outside_attention(name: &str) -> bool {
    name.split('.').any(|part| ["experts", "feed_forward", "mlp"].contains(&part))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn found<'m>(modules: &'m Modules, module: &str) -> Option<&'m str> {
        modules.find(module).unwrap()
    }

    fn modules(names: &[&str]) -> Modules {
        let tensors: Vec<String> = names.iter().map(|name| format!("{name}.weight")).collect();
        Modules::new(tensors.iter().map(|name| &**name))
    }

    #[test]
    fn a_module_of_the_same_name_goes_before_all_others() {
        let base =
            modules(&["encoder.block.0.layer.0.SelfAttention.q", "decoder.block.0.layer.0.SelfAttention.q"]);
        for name in ["encoder.block.0.layer.0.SelfAttention.q", "decoder.block.0.layer.0.SelfAttention.q"] {
            assert_eq!(found(&base, name), Some(name));
        }
    }

    #[test]
    fn prefixes_may_be_missing_or_moved() {
        for (on_disk, running) in [
            ("h.0.attn.c_attn", "transformer.h.0.attn.c_attn"),
            ("bert.encoder.layer.3.attention.self.query", "encoder.layer.3.attention.self.query"),
            (
                "language_model.model.layers.0.self_attn.q_proj",
                "model.language_model.layers.0.self_attn.q_proj",
            ),
            ("model.layers.0.self_attn.q_proj", "model.language_model.layers.0.self_attn.q_proj"),
            ("decoder.layers.0.self_attn.q_proj", "model.decoder.layers.0.self_attn.q_proj"),
        ] {
            let others = ["vision_tower.vision_model.encoder.layers.0.self_attn.q_proj", "lm_head"];
            let base = modules(&[on_disk, others[0], others[1]]);
            assert_eq!(found(&base, running), Some(on_disk), "{running}");
            assert_eq!(
                found(&base, "model.vision_tower.vision_model.encoder.layers.0.self_attn.q_proj"),
                Some(others[0])
            );
        }
    }

    #[test]
    fn another_layer_or_another_model_is_not_taken() {
        let base = modules(&["bert.encoder.layer.1.attention.self.query", "model.layers.1.self_attn.q_proj"]);
        for name in [
            "bert.encoder.layer.11.attention.self.query",
            "roberta.encoder.layer.1.attention.self.query",
            "model.layers.2.self_attn.q_proj",
            "model.layers.1.self_attn.qkv_proj",
            "score",
        ] {
            assert_eq!(found(&base, name), None, "{name}");
        }
    }

    #[test]
    fn what_could_be_several_is_not_decided() {
        let base = modules(&["text.layers.0.attn.q", "vision.layers.0.attn.q", "vision.layers.1.attn.q"]);
        assert_eq!(base.find("layers.0.attn.q"), Err(vec!["text.layers.0.attn.q", "vision.layers.0.attn.q"]));
        assert_eq!(found(&base, "model.vision.layers.0.attn.q"), Some("vision.layers.0.attn.q"));
    }
}
