//! The attention stacks of a model, and which of them is meant.

use std::collections::{BTreeMap, BTreeSet};

use super::component::Component;
use super::find::{LeftOut, list};
use super::layers::spelling;
use super::layout_file::{Layout, layouts};
use super::stacks::{Block, Pattern, Stack, stacks};
use super::submodels::Model;
use crate::error::quote;

type Problem<T> = Result<T, String>;

/// Layers that may be what is looked for.
pub(super) struct Candidate<'m, 'a> {
    pub(super) owner: &'m Model<'m>,
    pub(super) component: Component,
    pub(super) layout: &'static Layout,
    pub(super) pattern: Pattern,
    pub(super) stack: Stack<'a>,
}

impl Candidate<'_, '_> {
    /// How the names of its modules begin.
    pub(super) fn place(&self) -> String {
        let attention = &self.layout.attention[self.pattern.path];
        let dot = if attention.is_empty() { "" } else { "." };
        format!("{}{dot}{attention}", self.pattern.prefix)
    }

    pub(super) fn is(&self, other: &Self) -> bool {
        self.component == other.component
            && self.pattern.prefix == other.pattern.prefix
            && self.place() == other.place()
    }
}

/// All stacks that belong to a component of the model, and those that belong to none.
pub(super) fn candidates<'m, 'a>(
    layouts: &'static [Layout],
    model: &'m Model<'m>,
    modules: &BTreeSet<&'a str>,
) -> Problem<(Vec<Candidate<'m, 'a>>, Vec<LeftOut>)> {
    let (mut candidates, mut strangers) = (Vec::new(), BTreeMap::new());
    for layout in layouts {
        let has =
            |model: &&Model<'_>| model.components.iter().any(|component| model.is_in(layout, *component));
        if !model.all().iter().any(has) {
            continue;
        }
        for (pattern, stack) in stacks(layout, modules.iter().copied()) {
            let parts: Vec<&str> = pattern.prefix.split('.').collect();
            let Some((owner, components)) = model.owner(&parts)? else {
                strangers.insert(pattern.prefix, stack.len());
                continue;
            };
            let component = components.into_iter().find(|component| owner.is_in(layout, *component));
            if let Some(component) = component {
                candidates.push(Candidate { owner, component, layout, pattern, stack });
            }
        }
    }
    // A layer whose tensors one layout knows all is not that of another layout, which knows but some of them.
    let whole = |candidate: &Candidate<'_, '_>| {
        let spelled = |block: &Block<'_>| spelling(candidate.layout, block).is_some();
        candidate.stack.values().any(spelled)
    };
    let (complete, partial): (Vec<_>, Vec<_>) = candidates.into_iter().partition(whole);
    let mut candidates = complete;
    for candidate in partial {
        if !candidates.iter().any(|other| other.component == candidate.component) {
            candidates.push(candidate);
        }
    }
    let strangers = strangers.into_iter().map(|(prefix, layers)| LeftOut {
        what: format!("{prefix} ({layers} layers)"),
        why: "the configuration has no component of these names".to_owned(),
    });
    Ok((candidates, strangers.collect()))
}

/// The candidates of the component that is asked for, or of the first that there is.
pub(super) fn choose<'c, 'm, 'a>(
    model: &'m Model<'m>,
    candidates: &'c [Candidate<'m, 'a>],
    component: Option<Component>,
) -> Problem<Vec<&'c Candidate<'m, 'a>>> {
    // Of several models within that have the component, it is that of the most important one.
    let of = |component: Component| -> Vec<&Candidate<'m, 'a>> {
        let of_model = |model: &Model<'_>| -> Vec<&Candidate<'m, 'a>> {
            let own = |one: &&Candidate<'_, '_>| one.component == component && std::ptr::eq(one.owner, model);
            candidates.iter().filter(own).collect()
        };
        model.all().into_iter().map(of_model).find(|found| !found.is_empty()).unwrap_or_default()
    };
    let promised =
        |component: &Component| model.all().iter().any(|model| model.components.contains(component));
    let there: Vec<&str> = Component::ALL
        .into_iter()
        .filter(|component| !of(*component).is_empty())
        .map(Component::name)
        .collect();
    let wanted = match component {
        Some(component) => component,
        None => match Component::ALL.into_iter().find(promised) {
            Some(component) => component,
            None => {
                let inner: Vec<&str> = model.all().iter().skip(1).map(|inner| inner.model_type).collect();
                return Err(format!(
                    "a model of type {} has only the attention of the models within, and of their types none is \
                     in a known layout: {}",
                    quote(model.model_type),
                    if inner.is_empty() { "there are none".to_owned() } else { list(&inner) }
                ));
            }
        },
    };
    let chosen = of(wanted);
    if !chosen.is_empty() {
        return Ok(chosen);
    }
    let there = if there.is_empty() { "nothing else".to_owned() } else { there.join(", ") };
    let mut expected = Vec::new();
    for layout in layouts().map_err(|error| error.to_string())? {
        if model.all().iter().any(|model| model.is_in(layout, wanted)) {
            let names = layout.names[0].iter().map(|own| format!("{}.{own}", layout.attention[0]));
            expected.push(format!("{} (layout {})", list(&names.collect::<Vec<_>>()), quote(&layout.name)));
        }
    }
    if expected.is_empty() {
        return Err(format!(
            "a model of type {} has no attention stack {}; there is {there}",
            quote(model.model_type),
            quote(wanted.name())
        ));
    }
    Err(format!(
        "a model of type {} should have an attention stack {}, with tensors such as {}, but there is {there}",
        quote(model.model_type),
        quote(wanted.name()),
        expected.join(" or ")
    ))
}
