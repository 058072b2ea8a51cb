//! Finds the attention of a model among its tensors, and every head's rows in them.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::Path;

use serde_json::{Map, Value};

use super::family::{Family, Orientation, Role, StoredTensor, families};
use super::geometry::{Geometry, Section, show};
use super::names;
use crate::error::quote;
use crate::{Error, Result};

/// One matrix of one head: `rows` x `columns` weights (out x in features), a piece of a stored tensor.
///
/// The weight in row r and column c is element `(first + r) * stride + c` of a tensor stored [`Orientation::OutIn`],
/// and element `c * stride + first + r` of one stored [`Orientation::InOut`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Slice<'a> {
    /// The full name of the tensor.
    pub tensor: &'a str,
    /// Whether the matrix is rows or columns of the tensor.
    pub orientation: Orientation,
    /// The first of these rows or columns.
    pub first: usize,
    /// How many of them there are: the size of the query, key or value.
    pub rows: usize,
    /// How long each of them is: the hidden size.
    pub columns: usize,
    /// The number of elements in one stored row of the tensor.
    pub stride: usize,
}

/// A model's attention: its geometry, and where in the tensors every head is.
///
/// All of a layer's tensors are known to be there, in the shapes that the geometry demands.
#[derive(Debug)]
pub struct Attention {
    geometry: Geometry,
    family: &'static Family,
    /// The names of the tensors, as many for each layer as the family has.
    names: Vec<String>,
}

impl Attention {
    /// Reads the geometry from `config`, the content of `config.json`, and finds all it promises in `tensors`,
    /// the names and shapes of all tensors. `path` is what messages are about.
    ///
    /// # Errors
    ///
    /// [`Error::Model`] if the type of the model is in no family, if the configuration lacks a key or
    /// contradicts itself or a tensor's shape, or if a tensor is missing.
    pub fn resolve(
        path: &Path,
        config: &Map<String, Value>,
        tensors: &BTreeMap<&str, &[usize]>,
    ) -> Result<Self> {
        let families = families()?;
        resolve(families, config, tensors).map_err(|problem| Error::model(path, problem))
    }

    /// How many heads of what size there are.
    pub fn geometry(&self) -> &Geometry {
        &self.geometry
    }

    /// The names of the tensors that hold the attention, layer by layer.
    pub fn tensors(&self) -> impl ExactSizeIterator<Item = &str> {
        self.names.iter().map(|name| &**name)
    }

    /// The weights of query head `index`, or of the keys or values of key/value group `index`, in the layer
    /// whose number is `geometry().layers[layer_index]`.
    ///
    /// # Panics
    ///
    /// If there is no such layer, head or group.
    pub fn slice(&self, role: Role, layer_index: usize, index: usize) -> Slice<'_> {
        let geometry = &self.geometry;
        assert!(layer_index < geometry.layers.len(), "there is no layer of index {layer_index}");
        assert!(index < geometry.count(role), "there is no {} matrix {index}", role.name());
        let stored = &self.family.tensors;
        let place = stored.iter().position(|tensor| tensor.holds.contains(&role)).unwrap_or_default();
        let StoredTensor { orientation, holds, .. } = &stored[place];
        let size = |role: Role| geometry.count(role) * geometry.rows(role);
        let before: usize = holds.iter().take_while(|held| **held != role).map(|held| size(*held)).sum();
        Slice {
            tensor: &self.names[layer_index * stored.len() + place],
            orientation: *orientation,
            first: before + index * geometry.rows(role),
            rows: geometry.rows(role),
            columns: geometry.hidden_size,
            stride: match orientation {
                Orientation::OutIn => geometry.hidden_size,
                Orientation::InOut => holds.iter().map(|held| size(*held)).sum(),
            },
        }
    }
}

type Problem<T> = std::result::Result<T, String>;

fn resolve(
    families: &'static [Family],
    config: &Map<String, Value>,
    tensors: &BTreeMap<&str, &[usize]>,
) -> Problem<Attention> {
    let found = || names::describe_attention(tensors.keys().copied());
    let (family, model_type) = match config.get("model_type") {
        Some(Value::String(model_type)) => match families.iter().find(|family| family.has(model_type)) {
            Some(family) => (family, model_type),
            None => {
                let problem = format!("the model type {} is in no known family", quote(model_type));
                return Err(format!("{problem}; {}; {}", found(), advice(families)));
            }
        },
        other => {
            let problem = match other {
                None | Some(Value::Null) => "the configuration has no `model_type`".to_owned(),
                Some(other) => format!("`model_type` should be a text, but is {}", show(other)),
            };
            return Err(format!("{problem}; {}; {}", found(), advice(families)));
        }
    };
    let section = Section::of(config)?;
    // A model around a text model can be made with one of any type.
    if let Some(text_type) = section.model_type()?.filter(|text_type| !family.has(text_type)) {
        return Err(format!(
            "the model type {} is in the family {}, but its text model is of the type {}, which is not; {}; {}",
            quote(model_type),
            quote(&family.name),
            quote(text_type),
            found(),
            advice(families)
        ));
    }
    let (mut geometry, layers) = section.read(family, model_type)?;
    let prefix = match *names::prefixes(family, tensors.keys().copied()) {
        [prefix] => prefix,
        [] => {
            let expected: Vec<String> = family
                .tensors
                .iter()
                .map(|tensor| quote(&format!("{}{}", family.attention, tensor.name)))
                .collect();
            return Err(format!(
                "a model of type {} should have the tensors {} after one of the prefixes {}, but has none; {}",
                quote(model_type),
                expected.join(", "),
                list(&family.prefixes),
                found()
            ));
        }
        ref several => {
            return Err(format!(
                "there are {} attention stacks that could be meant, under the prefixes {}; {}",
                several.len(),
                list(several),
                found()
            ));
        }
    };
    let shapes: Vec<Vec<usize>> =
        family.tensors.iter().map(|tensor| shape(&geometry, tensor)).collect::<Problem<_>>()?;
    let mut names = Vec::new();
    // As many turns as there are tensors at most, whatever the configuration says.
    for layer in 0..layers {
        for (tensor, expected) in family.tensors.iter().zip(&shapes) {
            let name = names::tensor_name(family, prefix, layer, &tensor.name);
            let Some(found_shape) = tensors.get(&*name) else {
                return Err(format!(
                    "tensor {} is missing, although {} says that there are {layers} layers (`{}`), all of which \
                     have attention in a model of type {}; {}",
                    quote(&name),
                    section.place,
                    family.config.layers,
                    quote(model_type),
                    found()
                ));
            };
            if found_shape != expected {
                return Err(format!(
                    "tensor {} should have the shape {expected:?} by {} ({}), but has the shape {found_shape:?}",
                    quote(&name),
                    section.place,
                    reason(&geometry, tensor)
                ));
            }
            names.push(name);
        }
    }
    geometry.layers = (0..layers).collect();
    Ok(Attention { geometry, family, names })
}

/// The shape that a tensor must have.
fn shape(geometry: &Geometry, tensor: &StoredTensor) -> Problem<Vec<usize>> {
    let out = tensor.holds.iter().try_fold(0_usize, |sum, role| {
        sum.checked_add(geometry.count(*role).checked_mul(geometry.rows(*role))?)
    });
    let whole = out.and_then(|out| out.checked_mul(geometry.hidden_size).map(|_| out));
    match (whole, tensor.orientation) {
        (Some(out), Orientation::OutIn) => Ok(vec![out, geometry.hidden_size]),
        (Some(out), Orientation::InOut) => Ok(vec![geometry.hidden_size, out]),
        (None, _) => Err(format!(
            "no tensor is as large as `{}` would have to be ({})",
            tensor.name,
            reason(geometry, tensor)
        )),
    }
}

/// Where the shape comes from, in words.
fn reason(geometry: &Geometry, tensor: &StoredTensor) -> String {
    let mut text = String::new();
    for role in &tensor.holds {
        let kind = match role {
            Role::Query => "query",
            Role::Key | Role::Value if tensor.holds.len() == 1 => "key/value",
            Role::Key => "key",
            Role::Value => "value",
        };
        let (count, rows) = (geometry.count(*role), geometry.rows(*role));
        let heads = if count == 1 { "head" } else { "heads" };
        // Writing to a text cannot fail.
        let _ = write!(text, "{count} {kind} {heads} of size {rows}, ");
    }
    let _ = write!(text, "hidden size {}", geometry.hidden_size);
    text
}

fn list(items: &[impl AsRef<str>]) -> String {
    let quoted: Vec<String> = items.iter().map(|item| quote(item.as_ref())).collect();
    quoted.join(", ")
}

/// What to do about a model that is in no family.
fn advice(families: &[Family]) -> String {
    let known: Vec<String> =
        families.iter().map(|family| format!("{} ({})", quote(&family.name), family.description)).collect();
    format!(
        "the known families are {}; CONTRIBUTING.md says how to add a family, or a model type to one of them",
        known.join(", ")
    )
}
