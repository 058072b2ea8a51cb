//! Finds the module of a base checkpoint that a module of an adapter corresponds to. Which checkpoint is the base,
//! `python/alps/sources.py` decides.
//!
//! # How modules are found
//!
//! An adapter has the module names of the running model. On disk their prefixes may differ:
//! `language_model.model.layers.0` on disk is `model.language_model.layers.0` in the model. [`BaseModules::find`]
//! matches the ends of such names.
//!
//! Since version 5, transformers also renames and splits tensors when it loads a model: ViT's
//! `encoder.layer.0.attention.attention.query` becomes `layers.0.attention.q_proj`, and queries, keys and values in one
//! tensor become three modules. [`BaseModules::find_by_role`] matches such names by the number of the layer and the
//! role.

use std::cmp::Ordering;
use std::collections::BTreeSet;
use std::io;
use std::ops::Range;

use crate::attention::{Attention, Component, Orientation, Projection, Role, is_of_no_component, tower_of};
use crate::memory;

/// The most modules of a base that are compared with one of an adapter. Each layer of the largest known models has fewer
/// of one name.
const MOST_CANDIDATES: usize = 4096;

/// The modules of a base checkpoint.
#[derive(Debug)]
pub(super) struct BaseModules<'n> {
    /// Sorted by their parts, the last part first, so that names with the same ending are neighbours.
    names: Vec<&'n str>,
    /// The towers that are marked in the names.
    towers: BTreeSet<Component>,
    /// What is scanned, if that is known.
    scanned: Option<Component>,
}

impl<'n> BaseModules<'n> {
    /// The modules that hold tensors of these names. `scanned` is the component that is scanned, if that is known.
    ///
    /// # Errors
    ///
    /// [`io::ErrorKind::OutOfMemory`].
    pub(super) fn new(
        tensors: impl Iterator<Item = &'n str>,
        scanned: Option<Component>,
    ) -> io::Result<Self> {
        let modules = tensors.flat_map(|name| match name.rsplit_once('.') {
            Some((module, "weight" | "bias")) => [Some(module), None],
            // The tensor may be a parameter of the module, or a module of its own.
            Some((module, _)) => [Some(module), Some(name)],
            None => [Some(name), None],
        });
        let mut names = memory::collect(modules.flatten())?;
        names.sort_unstable_by(|a, b| compare(a, b));
        names.dedup();
        let towers = names.iter().flat_map(|name| name.split('.')).filter_map(tower_of).collect();
        Ok(Self { names, towers, scanned })
    }

    /// Whether the parts of two names mark the same tower, and both or neither mark what belongs to no component.
    ///
    /// The name on disk may lack the mark of a tower that was saved by itself.
    fn may_match<P: AsRef<str>>(&self, running: &BTreeSet<P>, on_disk: &BTreeSet<P>) -> bool {
        let of_none = |parts: &BTreeSet<P>| parts.iter().any(|part| is_of_no_component(part.as_ref()));
        let on_disk_towers = towers(on_disk.iter());
        of_none(running) == of_none(on_disk)
            && towers(running.iter()).iter().all(|tower| {
                on_disk_towers.contains(tower)
                    || !self.towers.contains(tower) && self.scanned.is_none_or(|scanned| scanned == *tower)
            })
    }

    /// The module that `module` corresponds to, `None` if there is none, or an error with all that it may be.
    ///
    /// This is the module of the same name. Without one it is the module with the most last parts in common, among them
    /// the number of the layer, whose other parts contain those of `module` or are contained in them. Of several such
    /// modules it is the one that has the most of those parts in common.
    pub(super) fn find(&self, module: &str) -> Result<Option<&str>, Vec<&str>> {
        let place = self.names.partition_point(|name| compare(name, module) == Ordering::Less);
        if self.names.get(place).is_some_and(|name| *name == module) {
            return Ok(Some(self.names[place]));
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
        let alike = |name: &&&str| common_parts(name, module) == longest;
        let candidates = before.iter().rev().take_while(alike).chain(after.iter().take_while(alike));
        let mut best: (usize, Vec<&str>) = (0, Vec::new());
        for (number, name) in candidates.enumerate() {
            if number == MOST_CANDIDATES {
                return Err(vec![name, "many others"]);
            }
            let Some(shared) = self.shared_prefix_parts(name, module, longest) else { continue };
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

    /// The number of parts that two names have in common before their last `common` ones, if they may be one module.
    fn shared_prefix_parts(&self, on_disk: &str, running: &str, common: usize) -> Option<usize> {
        let prefix = |name: &'_ str| -> Option<BTreeSet<String>> {
            let parts: BTreeSet<String> = name.rsplit('.').skip(common).map(str::to_owned).collect();
            // Another number is another layer.
            parts.iter().all(|part| !is_number(part)).then_some(parts)
        };
        let (mut on_disk, mut running) = (prefix(on_disk)?, prefix(running)?);
        if !self.may_match(&running, &on_disk) {
            return None;
        }
        let shared = on_disk.intersection(&running).count();
        let same_towers = towers(running.iter()) == towers(on_disk.iter());
        for parts in [&mut on_disk, &mut running] {
            // A tower may have one name on disk and another one in the model.
            parts.retain(|part| part != "model" && !(same_towers && tower_of(part).is_some()));
        }
        (on_disk.is_subset(&running) || running.is_subset(&on_disk)).then_some(shared)
    }

    /// The projection of the base, and its rows, that a module of the running model corresponds to, if that is certain.
    pub(super) fn find_by_role<'a>(
        &self,
        attention: &'a Attention,
        name: &str,
    ) -> Option<(&'a Projection, Range<usize>)> {
        let (prefix, number, within) = around_layer(name)?;
        let [middle @ .., last] = &within[..] else { return None };
        let role = match *last {
            "q_proj" | "query" | "query_proj" | "q" => Role::Query,
            "k_proj" | "key" | "key_proj" | "k" => Role::Key,
            "v_proj" | "value" | "value_proj" | "v" => Role::Value,
            _ => return None,
        };
        let index = attention.geometry().layers.iter().position(|layer| layer.number == number)?;
        let count = attention.geometry().layers[index].count(role);
        let slices: Vec<_> =
            (0..count).map_while(|matrix| attention.projection_rows(role, index, matrix)).collect();
        let (first, last) = (slices.first()?, slices.last()?);
        let (on_disk, same_number, _) = around_layer(&first.projection.name)?;
        let certain = same_number == number
            && self.may_match(&prefix, &on_disk)
            && !are_encoder_and_decoder(name, &first.projection.name)
            && (prefix.is_subset(&on_disk) || on_disk.is_subset(&prefix))
            && middle.iter().all(|part| SELF_ATTENTION.contains(part))
            && slices.windows(2).all(|pair| pair[0].rows.end == pair[1].rows.start)
            && first.projection.orientation == Orientation::OutIn;
        certain.then_some((first.projection, first.rows.start..last.rows.end))
    }
}

fn compare(a: &str, b: &str) -> Ordering {
    a.rsplit('.').cmp(b.rsplit('.'))
}

fn common_parts(a: &str, b: &str) -> usize {
    a.rsplit('.').zip(b.rsplit('.')).take_while(|(a, b)| a == b).count()
}

/// The towers that parts of a name mark.
fn towers(parts: impl Iterator<Item = impl AsRef<str>>) -> BTreeSet<Component> {
    parts.filter_map(|part| tower_of(part.as_ref())).collect()
}

fn is_number(part: &str) -> bool {
    !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit())
}

/// Whether a module that the base lacks may hold attention: it is in a layer, and not in its feed-forward part, whose
/// experts may be stored otherwise on disk than in the running model, and does not take the outputs of the heads.
pub(super) fn may_hold_attention(module: &str) -> bool {
    let takes_outputs = module.rsplit('.').next().is_some_and(|last| OUTPUT_PROJECTIONS.contains(&last));
    module.split('.').any(is_number) && !is_outside_attention(module) && !takes_outputs
}

/// The names that modules have which take the outputs of the heads.
const OUTPUT_PROJECTIONS: [&str; 8] =
    ["c_proj", "dense", "o_proj", "out_lin", "out_proj", "output_proj", "proj", "wo"];

/// Whether a name belongs to a layer's feed-forward part.
pub(super) fn is_outside_attention(name: &str) -> bool {
    name.split('.').any(|part| ["experts", "feed_forward", "mlp"].contains(&part))
}

/// The parts of a name between the number of a layer and a projection of its self-attention.
const SELF_ATTENTION: [&str; 6] = ["attention", "attn", "mixer", "self", "self_attention", "self_attn"];

/// The parts of a name before the number of a layer that mark no model within.
const LAYER_CONTAINERS: [&str; 7] = ["block", "blocks", "encoder", "h", "layer", "layers", "model"];

/// Whether one name is of the encoder and the other one of the decoder of a model that is made of two.
fn are_encoder_and_decoder(a: &str, b: &str) -> bool {
    let [a, b] = [a, b].map(|name| name.split('.').next().unwrap_or_default());
    a != b && [a, b].iter().all(|part| ["encoder", "decoder"].contains(part))
}

/// The number of the layer with the parts before and after it, if the name has only one number.
fn around_layer(name: &str) -> Option<(BTreeSet<&str>, usize, Vec<&str>)> {
    let parts: Vec<&str> = name.split('.').collect();
    let mut numbers = parts.iter().enumerate().filter_map(|(place, part)| Some((place, part.parse().ok()?)));
    let (place, number) = numbers.next()?;
    if numbers.next().is_some() {
        return None;
    }
    let before = parts[..place].iter().copied().filter(|part| !LAYER_CONTAINERS.contains(part)).collect();
    Some((before, number, parts[place + 1..].to_vec()))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn found<'m>(modules: &'m BaseModules<'_>, module: &str) -> Option<&'m str> {
        modules.find(module).unwrap()
    }

    fn modules(names: &[&str]) -> BaseModules<'static> {
        let tensors = names.iter().map(|name| &*format!("{name}.weight").leak());
        BaseModules::new(tensors, None).unwrap()
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
    fn a_tower_is_not_taken_for_the_decoder() {
        let base = modules(&["model.layers.0.self_attn.q_proj", "vit.layers.0.self_attn.q_proj"]);
        for (running, on_disk) in [
            ("model.language_model.layers.0.self_attn.q_proj", "model.layers.0.self_attn.q_proj"),
            ("model.vision_tower.layers.0.self_attn.q_proj", "vit.layers.0.self_attn.q_proj"),
        ] {
            assert_eq!(found(&base, running), Some(on_disk), "{running}");
        }
        let decoder = modules(&["model.layers.0.self_attn.q_proj"]);
        assert_eq!(found(&decoder, "mtp.layers.0.self_attn.q_proj"), None);
        let tensors = ["layers.0.self_attn.q_proj.weight"];
        for (scanned, expected) in
            [(Component::Decoder, None), (Component::Vision, Some("layers.0.self_attn.q_proj"))]
        {
            let alone = BaseModules::new(tensors.into_iter(), Some(scanned)).unwrap();
            assert_eq!(found(&alone, "model.vision_tower.layers.0.self_attn.q_proj"), expected);
        }
    }

    #[test]
    fn an_encoder_is_not_taken_for_the_decoder() {
        let on_disk = "decoder.bert.encoder.layer.0.attention.self.key";
        assert!(are_encoder_and_decoder("encoder.layers.0.attention.k_proj", on_disk));
        assert!(!are_encoder_and_decoder("decoder.bert.layers.0.attention.k_proj", on_disk));
        assert!(!are_encoder_and_decoder(
            "bert.layers.0.attention.k_proj",
            "encoder.layer.0.attention.self.key"
        ));
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
