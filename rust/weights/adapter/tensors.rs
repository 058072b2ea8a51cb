//! Groups the tensors of an adapter by the modules that they change.

use std::collections::{BTreeMap, BTreeSet};

use super::config::AdapterKind;
use crate::checkpoint::Checkpoint;
use crate::error::{Error, Result, quote};

/// The full names of the tensors that change one module.
#[derive(Debug, Default)]
pub(super) struct ModuleTensors {
    /// The tensors of the adapter's kind, by the ends of their names.
    own: Vec<(&'static str, String)>,
    /// The tensor that replaces the weights.
    pub(super) replacement: Option<String>,
}

impl ModuleTensors {
    /// The name of the tensor of the adapter's kind with this ending.
    pub(super) fn own(&self, ending: &str) -> Option<&str> {
        self.own.iter().find(|(of, _)| *of == ending).map(|(_, name)| &**name)
    }

    /// Whether the module has tensors of the adapter's kind.
    pub(super) fn has_own(&self) -> bool {
        !self.own.is_empty()
    }

    /// The name of some tensor of the module, for messages.
    pub(super) fn any_name(&self) -> &str {
        self.own.iter().map(|(_, name)| name).chain(&self.replacement).next().map_or("", |name| name)
    }
}

/// The most modules that an adapter changes: more than all experts of the largest known models.
const MOST_MODULES: usize = 131_072;

/// The prefix that PEFT puts before the name of a module.
const PREFIX: &str = "base_model.model.";

/// Parts of names in a running model that PEFT's `save_pretrained` removes.
const RUNNING_ONLY: [&str; 2] = ["modules_to_save", "original_module"];

/// The tensors of each module whose weights change, by its name in the running model, and the names of the modules
/// whose biases change.
pub(super) fn tensors_by_module(
    checkpoint: &Checkpoint,
    kind: &AdapterKind,
) -> Result<(BTreeMap<String, ModuleTensors>, BTreeSet<String>)> {
    let refusal =
        |name: &str, why: &str| Error::checkpoint(checkpoint.path(), format!("tensor {} {why}", quote(name)));
    let (endings, prefix) = kind.endings();
    let mut modules: BTreeMap<String, ModuleTensors> = BTreeMap::new();
    let mut biased = BTreeSet::new();
    for (name, _) in checkpoint.tensors() {
        if modules.len() > MOST_MODULES {
            let problem = format!("expected an adapter of at most {MOST_MODULES} modules, found more");
            return Err(Error::checkpoint(checkpoint.path(), problem));
        }
        let bare = name.strip_prefix(PREFIX).unwrap_or(name);
        let own =
            endings.iter().find_map(|ending| Some((bare.strip_suffix(ending)?.strip_suffix('.')?, *ending)));
        if let Some((module, ending)) = own {
            if ending.contains("bias") {
                biased.insert(module.to_owned());
            }
            modules.entry(module.to_owned()).or_default().own.push((ending, name.to_owned()));
        } else if bare.rsplit('.').take(3).any(|part| part.starts_with(prefix)) {
            return Err(refusal(
                name,
                &format!("is none that an adapter of the kind {} is known to have", kind.name()),
            ));
        } else if bare.split('.').any(|part| RUNNING_ONLY.contains(&part)) {
            return Err(refusal(
                name,
                "has the name that it has in a running model; expected an adapter saved by `save_pretrained`",
            ));
        } else if let Some((module, parameter)) = bare.rsplit_once('.') {
            // The module was saved whole, or only its bias was.
            let module = module.strip_suffix(".base_layer").unwrap_or(module);
            if parameter.contains("bias") {
                biased.insert(module.to_owned());
            }
            let module = match parameter {
                "bias" => continue,
                "weight" => module,
                _ => bare,
            };
            modules.entry(module.to_owned()).or_default().replacement = Some(name.to_owned());
        }
    }
    Ok((modules, biased))
}
