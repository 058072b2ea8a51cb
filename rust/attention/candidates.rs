//! Assigns stacks to the components of a model, and chooses those of the requested component.

use std::collections::BTreeMap;

use super::layer_stacks::{Stack, StackName, find_stacks};
use super::layout_file::{Layout, layouts};
use super::names::list;
use super::submodels::ModelConfig;
use super::types::{Component, Omission, OrProblem};
use crate::error::quote;

/// A stack that may be a component of a model.
pub(super) struct Candidate<'m, 'a> {
    pub(super) owner: &'m ModelConfig<'m>,
    pub(super) component: Component,
    pub(super) layout: &'static Layout,
    pub(super) name: StackName,
    pub(super) stack: Stack<'a>,
}

impl Candidate<'_, '_> {
    /// The path of the attention, with `#` for the numbers before it.
    pub(super) fn path(&self) -> String {
        self.name.path_after(&self.name.prefix, self.layout)
    }

    pub(super) fn is_same(&self, other: &Self) -> bool {
        self.component == other.component
            && self.name.prefix == other.name.prefix
            && self.path() == other.path()
    }
}

/// Finds the stacks of every component of the model, and those of none.
pub(super) fn find_candidates<'m, 'a>(
    layouts: &'static [Layout],
    model: &'m ModelConfig<'m>,
    modules: &[&'a str],
) -> OrProblem<(Vec<Candidate<'m, 'a>>, Vec<Omission>)> {
    let (mut candidates, mut unowned) = (Vec::new(), BTreeMap::new());
    for layout in layouts {
        let has = |model: &&ModelConfig<'_>| {
            model.components.iter().any(|component| model.has_layout(layout, *component))
        };
        if !model.all().iter().any(has) {
            continue;
        }
        for (name, stack) in find_stacks(layout, modules.iter().copied())? {
            let parts: Vec<&str> = name.prefix.split('.').collect();
            let Some((owner, components)) = model.owner(&parts)? else {
                unowned.insert(name.prefix, stack.len());
                continue;
            };
            let component = components.into_iter().find(|component| owner.has_layout(layout, *component));
            if let Some(component) = component {
                candidates.push(Candidate { owner, component, layout, name, stack });
            }
        }
    }
    // A stack that has every tensor of one layout is not taken for that of a layout which knows only some of them.
    let is_complete = |candidate: &Candidate<'_, '_>| {
        candidate.stack.values().any(|layer| layer.spelling(candidate.layout).is_some())
    };
    let (mut candidates, partial): (Vec<_>, Vec<_>) = candidates.into_iter().partition(is_complete);
    for candidate in partial {
        if !candidates.iter().any(|other| other.component == candidate.component) {
            candidates.push(candidate);
        }
    }
    let unowned = unowned.into_iter().map(|(prefix, layers)| Omission {
        what: format!("{prefix} ({layers} layers)"),
        why: "the configuration has no component of these names".to_owned(),
    });
    Ok((candidates, unowned.collect()))
}

/// Chooses the candidates of the requested component, or without a request of the first that the model has.
pub(super) fn choose<'c, 'm, 'a>(
    model: &'m ModelConfig<'m>,
    candidates: &'c [Candidate<'m, 'a>],
    component: Option<Component>,
) -> OrProblem<Vec<&'c Candidate<'m, 'a>>> {
    // If several models within have the component, the first of them counts.
    let of = |component: Component| -> Vec<&Candidate<'m, 'a>> {
        let of_model = |model: &ModelConfig<'_>| -> Vec<&Candidate<'m, 'a>> {
            let own = |one: &&Candidate<'_, '_>| one.component == component && std::ptr::eq(one.owner, model);
            candidates.iter().filter(own).collect()
        };
        model.all().into_iter().map(of_model).find(|found| !found.is_empty()).unwrap_or_default()
    };
    let is_expected =
        |component: &Component| model.all().iter().any(|model| model.components.contains(component));
    let Some(wanted) = component.or_else(|| Component::ALL.into_iter().find(is_expected)) else {
        let inner: Vec<&str> = model.all().iter().skip(1).map(|inner| inner.model_type).collect();
        return Err(format!(
            "a model of type {} has only the attention of the models within, and of their types none is in a known \
             layout: {}",
            quote(model.model_type),
            if inner.is_empty() { "there are none".to_owned() } else { list(&inner) }
        ));
    };
    let chosen = of(wanted);
    if !chosen.is_empty() {
        return Ok(chosen);
    }
    let found = Component::ALL.into_iter().filter(|component| !of(*component).is_empty());
    let found: Vec<&str> = found.map(Component::name).collect();
    let found = if found.is_empty() { "nothing else".to_owned() } else { found.join(", ") };
    let mut expected = Vec::new();
    for layout in layouts().map_err(|error| error.to_string())? {
        if model.all().iter().any(|model| model.has_layout(layout, wanted)) {
            let names = layout.names[0].iter().map(|own| format!("{}.{own}", layout.attention[0]));
            expected.push(format!("{} (layout {})", list(&names.collect::<Vec<_>>()), quote(&layout.name)));
        }
    }
    let (model_type, wanted) = (quote(model.model_type), quote(wanted.name()));
    if expected.is_empty() {
        return Err(format!(
            "a model of type {model_type} has no attention stack {wanted}; there is {found}"
        ));
    }
    Err(format!(
        "a model of type {model_type} should have an attention stack {wanted}, with tensors such as {}, but there is \
         {found}",
        expected.join(" or ")
    ))
}
