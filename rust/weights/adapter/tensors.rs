//! Sorts the tensors of an adapter by the modules that they change.

use std::collections::BTreeMap;

use super::config::Kind;
use crate::checkpoint::Checkpoint;
use crate::error::quote;
use crate::{Error, Result};

/// The tensors of one module, by their full names.
#[derive(Debug, Default)]
pub(super) struct Parameters {
    /// What changes the weights: the tensors of this kind of adapter, by what they are called there.
    pub(super) own: BTreeMap<&'static str, String>,
    /// What stands in the place of the weights.
    pub(super) replacement: Option<String>,
}

impl Parameters {
    pub(super) fn any_name(&self) -> &str {
        self.own.values().chain(&self.replacement).next().map_or("", |name| name)
    }
}

/// What PEFT puts before the name of a module.
const WRAPPER: &str = "base_model.model.";

/// Names that PEFT's `save_pretrained` removes.
const LIVE: [&str; 2] = ["modules_to_save", "original_module"];

impl Kind {
    /// How the names of this kind's tensors end, and what all tensors of the kind have in their last parts.
    fn endings(&self) -> (&'static [&'static str], &'static str) {
        match self {
            Kind::Lora(_) => (
                &[
                    "lora_A.weight",
                    "lora_B.weight",
                    "lora_B.bias",
                    "lora_magnitude_vector",
                    "lora_embedding_A",
                    "lora_embedding_B",
                ],
                "lora_",
            ),
            Kind::Loha(_) => (&["hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b"], "hada_"),
            Kind::Lokr(_) => {
                (&["lokr_w1", "lokr_w1_a", "lokr_w1_b", "lokr_w2", "lokr_w2_a", "lokr_w2_b"], "lokr_")
            }
            Kind::Ia3 => (&["ia3_l"], "ia3_"),
            Kind::Alps => (&["alps_rows", "alps_bias_rows", "alps_indices"], "alps_"),
        }
    }
}

/// The tensors of each module, by its name in the running model.
pub(super) fn sort(checkpoint: &Checkpoint, kind: &Kind) -> Result<BTreeMap<String, Parameters>> {
    let refuse =
        |name: &str, why: &str| Error::checkpoint(checkpoint.path(), format!("tensor {} {why}", quote(name)));
    let (endings, mark) = kind.endings();
    let mut modules: BTreeMap<String, Parameters> = BTreeMap::new();
    for (name, _) in checkpoint.tensors() {
        let bare = name.strip_prefix(WRAPPER).unwrap_or(name);
        let own =
            endings.iter().find_map(|ending| Some((bare.strip_suffix(ending)?.strip_suffix('.')?, *ending)));
        if let Some((module, ending)) = own {
            modules.entry(module.to_owned()).or_default().own.insert(ending, name.to_owned());
        } else if bare.rsplit('.').take(3).any(|part| part.starts_with(mark)) {
            return Err(refuse(
                name,
                &format!("is none that an adapter of the kind {} is known to have", kind.name()),
            ));
        } else if bare.split('.').any(|part| LIVE.contains(&part)) {
            return Err(refuse(
                name,
                "has the name that it has in a running model; expected an adapter saved by `save_pretrained`",
            ));
        } else if let Some((module, parameter)) = bare.rsplit_once('.') {
            // Of a module that was trained whole, or whose bias was trained; no bias is part of a head.
            let module = module.strip_suffix(".base_layer").unwrap_or(module);
            match parameter {
                "bias" => {}
                "weight" => {
                    modules.entry(module.to_owned()).or_default().replacement = Some(name.to_owned());
                }
                _ => {
                    modules.entry(bare.to_owned()).or_default().replacement = Some(name.to_owned());
                }
            }
        }
    }
    Ok(modules)
}
