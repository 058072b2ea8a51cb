//! Finds the attention of a model among its tensors, and the rows of every head.

use std::path::Path;

use serde_json::{Map, Value};

use super::candidates::{choose, find_candidates};
use super::config_section::ConfigSection;
use super::layer_stacks::TensorShapes;
use super::layers::{LayerRows, Layers, RoleRows, StackReader};
use super::layout_file::{Layout, layouts};
use super::names::{describe_attention, list};
use super::submodels::{ModelConfig, submodel_table};
use super::types::{Component, Geometry, Omission, OrProblem, Projection, ProjectionRows, Role};
use crate::error::{Error, Result, quote};

/// The most layers with attention, query heads of a layer, and cells of a table of scores. `python/alps/limits.py` has the
/// same limits for saved files.
const MOST_LAYERS: usize = 4096;
const MOST_HEADS: usize = 16_384;
const MOST_CELLS: usize = 1 << 19;

/// The number of levels of models within models that are read.
const DEPTH: usize = 4;

/// A model's attention: its geometry, and the rows of every head.
///
/// All tensors of a layer are known to exist, in the shapes that the geometry requires.
#[derive(Debug)]
pub struct Attention {
    geometry: Geometry,
    owner_type: String,
    projections: Vec<Projection>,
    /// For each layer where its queries, keys and values are.
    rows: Vec<LayerRows>,
    omissions: Vec<Omission>,
}

impl Attention {
    /// Reads the geometry from `config`, the content of `config.json`, and finds the tensors that it requires.
    /// Messages name the model by `path`. Without a component the attention of the first of
    /// [`Component::ALL`] that the model has is found.
    ///
    /// # Errors
    ///
    /// [`Error::Model`] if no layout has the type of the model, if it has no such component, if the configuration
    /// lacks a key or contradicts itself or a tensor's shape, or if a tensor is missing.
    pub fn resolve(
        path: &Path,
        config: &Map<String, Value>,
        shapes: &TensorShapes<'_>,
        component: Option<Component>,
    ) -> Result<Self> {
        resolve(layouts()?, config, shapes, component).map_err(|problem| Error::model(path, problem))
    }

    /// The sizes of the heads.
    pub fn geometry(&self) -> &Geometry {
        &self.geometry
    }

    /// The type of the model that owns the attention: the model itself, or one within.
    pub fn owner_type(&self) -> &str {
        &self.owner_type
    }

    /// The projections that hold the attention weights, layer by layer.
    pub fn projections(&self) -> &[Projection] {
        &self.projections
    }

    /// The layers and stacks of the model that are not in the geometry.
    pub fn omissions(&self) -> &[Omission] {
        &self.omissions
    }

    /// The rows of query head `index`, or of the keys or values of key/value group `index`, in the layer
    /// `geometry().layers[layer_index]`; `None` if the layer has no weights of that role.
    ///
    /// # Panics
    ///
    /// If there is no such layer, head or group.
    pub fn projection_rows(
        &self,
        role: Role,
        layer_index: usize,
        index: usize,
    ) -> Option<ProjectionRows<'_>> {
        let sizes = &self.geometry.layers[layer_index];
        assert!(index < sizes.count(role), "there is no {} matrix {index}", role.name());
        let RoleRows { projection, block_rows, offset, per_block, matrix_rows } =
            self.rows[layer_index][role as usize]?;
        let first = index / per_block * block_rows + offset + index % per_block * matrix_rows;
        let rows = first..first + matrix_rows;
        Some(ProjectionRows { index: projection, projection: &self.projections[projection], rows })
    }
}

fn resolve(
    layouts: &'static [Layout],
    config: &Map<String, Value>,
    shapes: &TensorShapes<'_>,
    component: Option<Component>,
) -> OrProblem<Attention> {
    let describe = || describe_attention(shapes.stored.names());
    let model = read_model(layouts, config, describe)?;
    let (candidates, unowned) = find_candidates(layouts, &model, &shapes.modules()?)?;
    let chosen =
        choose(&model, &candidates, component).map_err(|problem| format!("{problem}; {}", describe()))?;
    let first = *chosen.first().ok_or("there is no candidate")?;
    let (owner, component, layout) = (first.owner, first.component, first.layout);
    let mut stack = Layers::new();
    for candidate in &chosen {
        if candidate.name.prefix != first.name.prefix
            || candidate.layout.name != layout.name
            || candidate.stack.keys().any(|numbers| stack.contains_key(numbers))
        {
            let paths: Vec<String> = chosen.iter().map(|candidate| candidate.path()).collect();
            return Err(format!(
                "there are {} attention stacks that could be the {component}'s: {}; {}",
                chosen.len(),
                list(&paths),
                describe()
            ));
        }
        stack.extend(candidate.stack.iter().map(|(numbers, layer)| (numbers.clone(), layer)));
    }
    let (projections, omissions) = (Vec::new(), Vec::new());
    let mut reader =
        StackReader { shapes, owner, component, layout, name: &first.name, projections, omissions };
    let (layers, rows) = reader.read(&stack)?;
    let StackReader { projections, mut omissions, .. } = reader;
    let others = candidates.iter().filter(|other| !chosen.iter().any(|one| one.is_same(other)));
    omissions.extend(others.map(|other| Omission {
        what: format!("{} ({} layers)", other.path(), other.stack.len()),
        why: format!("it is the attention of the {}", other.component),
    }));
    omissions.extend(unowned);
    let (model_type, layout) = (model.model_type.to_owned(), layout.name.clone());
    let geometry = Geometry { model_type, layout, component, layers };
    check_limits(&geometry)?;
    Ok(Attention { geometry, owner_type: owner.model_type.to_owned(), projections, rows, omissions })
}

/// Refuses a geometry whose scores would take much more memory than its files.
fn check_limits(geometry: &Geometry) -> OrProblem<()> {
    let (layers, heads) = (geometry.layers.len(), geometry.width());
    for (what, most, found) in [
        ("layers with attention", MOST_LAYERS, layers),
        ("heads in a layer", MOST_HEADS, heads),
        ("layers times the most heads of a layer", MOST_CELLS, layers.saturating_mul(heads)),
    ] {
        if found > most {
            return Err(format!("expected at most {most} {what}, found {found}"));
        }
    }
    Ok(())
}

/// Reads the configuration as models of known types.
fn read_model<'a>(
    layouts: &[Layout],
    config: &'a Map<String, Value>,
    describe: impl Fn() -> String,
) -> OrProblem<ModelConfig<'a>> {
    let section = ConfigSection::whole(config);
    let Some(model_type) = section.model_type()? else {
        return Err(format!("the configuration has no `model_type`; {}; {}", describe(), advice(layouts)));
    };
    let model = ModelConfig::read(layouts, section, model_type, DEPTH)?;
    let table = submodel_table()?;
    if !model.components.is_empty() || table.is_composite(model_type) {
        return Ok(model);
    }
    let model_type = quote(model_type);
    Err(match table.without_heads(model.model_type) {
        Some(reason) => format!("a model of type {model_type} has no heads that could be scanned: {reason}"),
        None => {
            format!("the model type {model_type} is in no known layout; {}; {}", describe(), advice(layouts))
        }
    })
}

/// Advises what to do about a model of no known layout.
fn advice(layouts: &[Layout]) -> String {
    let known: Vec<&str> = layouts.iter().map(Layout::name).collect();
    format!(
        "the known layouts are {}; `alps layouts` lists their model types, and CONTRIBUTING.md says how to add a \
         layout, or a model type to one of them",
        list(&known)
    )
}
