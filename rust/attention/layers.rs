//! Reads the geometry of a stack layer by layer, and finds the rows of every head in its tensors.
//!
//! # How rows are found
//!
//! The `out` axis of a tensor consists of equal blocks. Each block holds an equal share of the heads of every kind that
//! the layout lists, kind after kind and head after head. With `per_block` matrices of a role in a block, the first row
//! of matrix `i` is
//!
//! ```text
//! i / per_block * block_rows + offset + i % per_block * matrix_rows
//! ```
//!
//! where `offset` is the number of rows in a block before the first matrix of the role.

use std::collections::BTreeMap;

use super::layer_stacks::{LayerModules, StackName, TensorShapes};
use super::layout_file::{KeysAsValues, Layout, LayoutTensor, MatrixKind};
use super::names;
use super::sizes::{HeadSizes, LayerCount, LayerPosition, LayerTensors, SizeReader};
use super::submodels::ModelConfig;
use super::types::{Component, LayerSizes, MatrixSize, Omission, OrProblem, Orientation, Projection, Role};
use crate::error::quote;

/// The names of tensors that only layers with linear attention have beside their projections, in order of name.
const LINEAR_ATTENTION: [&str; 9] =
    ["A_log", "conv1d", "dt_bias", "k_conv1d", "output_gate", "q_conv", "q_conv1d", "slope_rate", "v_conv1d"];

/// The most layers of a stack, those without attention as well.
const MOST_NUMBERS: usize = 4096;

/// Where the matrices of a role lie in a projection.
#[derive(Debug, Clone, Copy)]
pub(super) struct RoleRows {
    /// The position of the projection among those of all layers.
    pub(super) projection: usize,
    /// The number of rows of a block.
    pub(super) block_rows: usize,
    /// The number of rows in a block before the first matrix of the role.
    pub(super) offset: usize,
    /// The number of matrices of the role in a block.
    pub(super) per_block: usize,
    /// The number of rows of a matrix.
    pub(super) matrix_rows: usize,
}

/// Where the queries, keys and values of a layer are.
pub(super) type LayerRows = [Option<RoleRows>; 3];

/// The layers of a stack by their numbers.
pub(super) type Layers<'b, 'c> = BTreeMap<Vec<usize>, &'b LayerModules<'c>>;

/// Reads the layers of one stack.
pub(super) struct StackReader<'m, 'c> {
    pub(super) shapes: &'c TensorShapes<'c>,
    pub(super) owner: &'m ModelConfig<'m>,
    pub(super) component: Component,
    pub(super) layout: &'static Layout,
    pub(super) name: &'m StackName,
    pub(super) projections: Vec<Projection>,
    pub(super) omissions: Vec<Omission>,
}

impl<'c> StackReader<'_, 'c> {
    pub(super) fn read(&mut self, stack: &Layers<'_, 'c>) -> OrProblem<(Vec<LayerSizes>, Vec<LayerRows>)> {
        let owner = self.owner;
        let reader = SizeReader::new(&self.layout.sizes, &owner.section, self.component)?;
        let is_staged = stack.keys().any(|numbers| numbers.len() > 1);
        let expected = reader.layer_count(is_staged)?;
        let count = expected.as_ref().map_or(stack.len(), |expected| expected.count);
        let stages = stack.keys().map(|numbers| numbers[0] + 1).max().unwrap_or(0);
        let is_hybrid = self.layout.is_hybrid(owner.model_type);
        let (mut layers, mut rows) = (Vec::new(), Vec::new());
        let mut found = 0;
        // A hostile configuration may give any count, so the loop ends after the layers that exist: one more is
        // enough to notice that a layer is missing.
        let last = stack.keys().next_back().map_or(0, |numbers| numbers[numbers.len() - 1] + 1);
        let limit = if is_staged { stack.len() + 1 } else { last + 1 };
        if count.min(limit) > MOST_NUMBERS {
            return Err(format!(
                "expected layers of numbers below {MOST_NUMBERS}, found number {}",
                limit - 1
            ));
        }
        for number in 0..count.min(limit) {
            // Layers in stages are counted through all stages.
            let layer = if is_staged { stack.iter().nth(number) } else { stack.get_key_value(&vec![number]) };
            let Some((numbers, modules)) = layer else {
                if is_hybrid {
                    self.omit(number, self.describe_other_layer(number));
                    continue;
                }
                return Err(self.missing(number, &self.layout.names[0][0], &expected));
            };
            found += 1;
            if let Some(mark) = self.linear_attention_mark(modules.path) {
                let why = format!("{} beside it says that this is linear attention", quote(mark));
                self.omit(number, why);
                continue;
            }
            let of_list = expected.as_ref().and_then(|expected| expected.stage_of(number));
            let (stage, stages) = of_list.filter(|_| !is_staged).unwrap_or((numbers[0], stages));
            let position = LayerPosition { layer: number, layers: count, stage, stages };
            let (sizes, places) = self.layer(&reader, position, modules, &expected)?;
            layers.push(sizes);
            rows.push(places);
        }
        if let (beyond @ 1.., Some(LayerCount { key, .. })) = (stack.len() - found, expected) {
            self.omissions.push(Omission {
                what: format!("{beyond} layers from number {count} on"),
                why: format!("the configuration says that there are {count} layers (`{key}`)"),
            });
        }
        if layers.is_empty() {
            return Err(format!("none of the {count} layers has softmax attention"));
        }
        Ok((layers, rows))
    }

    fn omit(&mut self, number: usize, why: String) {
        self.omissions.push(Omission { what: format!("layer {number}"), why });
    }

    /// Describes a layer that has something else in place of attention.
    fn describe_other_layer(&self, number: usize) -> String {
        let prefix = self.name.prefix_of(number);
        let parts = names::list_children(self.shapes.stored.names_with(&prefix), &prefix);
        format!("it has no attention; its parts are {parts}")
    }

    /// The last of [`LINEAR_ATTENTION`] that a layer has beside its projections.
    fn linear_attention_mark(&self, path: &str) -> Option<&'static str> {
        LINEAR_ATTENTION.into_iter().rev().find(|mark| {
            let name = format!("{path}.{mark}");
            let stored = &self.shapes.stored;
            stored.get(&name).or_else(|| stored.get(&format!("{name}.weight"))).is_some()
        })
    }

    /// The problem that a layer lacks the tensor of this name.
    fn missing(&self, number: usize, own: &str, expected: &Option<LayerCount>) -> String {
        let path = self.name.path_after(&self.name.prefix_of(number), self.layout);
        let layers = match expected {
            Some(LayerCount { count, key, .. }) => {
                let section = &self.owner.section.name;
                format!("{section} says that there are {count} layers (`{key}`), all of which")
            }
            None => "all layers up to the last one".to_owned(),
        };
        format!(
            "tensor {} is missing, although {layers} have attention in a model of type {}; {}",
            quote(&format!("{path}.{own}.weight")),
            quote(self.owner.model_type),
            names::describe_attention(self.shapes.stored.names())
        )
    }

    fn layer(
        &mut self,
        reader: &SizeReader<'_>,
        position: LayerPosition,
        modules: &LayerModules<'c>,
        expected: &Option<LayerCount>,
    ) -> OrProblem<(LayerSizes, LayerRows)> {
        let (layout, section) = (self.layout, &self.owner.section);
        let is_present = |name: &String| modules.modules.contains_key(&**name);
        let missing = |names: &[String]| {
            let absent = names.iter().find(|name| !is_present(name)).unwrap_or(&names[0]);
            self.missing(position.layer, absent, expected)
        };
        let Some(names) = modules.spelling(layout) else {
            let present = |names: &&Vec<String>| names.iter().filter(|name| is_present(name)).count();
            return Err(missing(layout.names.iter().max_by_key(present).unwrap_or(&layout.names[0])));
        };
        let without_keys =
            match layout.layers_without_keys.as_ref().and_then(|key| Some((key, section.value(key)?))) {
                Some((key, value)) => {
                    position.layer >= position.layers.saturating_sub(section.count(key, value)?)
                }
                None => false,
            };
        let is_used = |tensor: &LayoutTensor| !without_keys || tensor.holds.contains(&MatrixKind::Query);
        let present = layout.tensors.iter().zip(names).filter(|(tensor, _)| is_used(tensor));
        let tensors = LayerTensors {
            shapes: self.shapes,
            path: modules.path,
            present: present
                .filter_map(|(tensor, name)| Some((tensor, *modules.modules.get(&**name)?)))
                .collect(),
        };
        let has = |role: Role| tensors.of_role(role).is_some();
        let keys_are_values = !has(Role::Value)
            && has(Role::Key)
            && match &layout.keys_as_values {
                KeysAsValues::Never => false,
                KeysAsValues::Always | KeysAsValues::WhereAbsent => true,
                KeysAsValues::When(key) => section.flag(key)?,
            };
        if !(without_keys || has(Role::Key) && (has(Role::Value) || keys_are_values)) {
            return Err(missing(names));
        }
        let sizes = reader
            .at(position)
            .head_sizes(&tensors)
            .map_err(|problem| format!("{problem} (layer {}, {})", position.layer, quote(modules.path)))?;
        let mut places: LayerRows = [None; 3];
        for (tensor, module) in tensors.present {
            let [out_features, in_features] = self.check(reader, tensor, module, &sizes)?;
            let blocks = sizes.blocks(tensor);
            let mut offset = 0;
            for kind in &tensor.holds {
                let (count, matrix_rows) = sizes.matrices(*kind);
                let (projection, per_block) = (self.projections.len(), count / blocks);
                if let Some(role) = kind.role() {
                    let block_rows = out_features / blocks;
                    places[role as usize] =
                        Some(RoleRows { projection, block_rows, offset, per_block, matrix_rows });
                }
                offset += per_block * matrix_rows;
            }
            let (name, orientation) = (module.to_owned(), tensor.orientation);
            self.projections.push(Projection { name, orientation, out_features, in_features });
        }
        if keys_are_values {
            places[Role::Value as usize] = places[Role::Key as usize];
        }
        let size = |role: Role| {
            places[role as usize].map(|place| MatrixSize {
                rows: place.matrix_rows,
                columns: self.projections[place.projection].in_features,
            })
        };
        let layer = LayerSizes {
            number: position.layer,
            query_heads: sizes.query_heads,
            key_value_heads: sizes.key_value_heads,
            query: size(Role::Query).ok_or("a layer has no queries")?,
            key: size(Role::Key),
            value: size(Role::Value),
            keys_are_values,
        };
        Ok((layer, places))
    }

    /// The out and in features of a module, once they agree with the sizes of its heads.
    fn check(
        &self,
        reader: &SizeReader<'_>,
        tensor: &LayoutTensor,
        module: &str,
        sizes: &HeadSizes,
    ) -> OrProblem<[usize; 2]> {
        let reason = sizes.describe(tensor);
        let too_large = || format!("no tensor is as large as {} would have to be ({reason})", quote(module));
        let out = tensor.holds.iter().try_fold(0_usize, |sum, kind| {
            let (count, rows) = sizes.matrices(*kind);
            sum.checked_add(count.checked_mul(rows)?)
        });
        let out = out.ok_or_else(too_large)?;
        let blocks = sizes.blocks(tensor);
        if tensor.holds.iter().any(|kind| !sizes.matrices(*kind).0.is_multiple_of(blocks)) {
            return Err(format!(
                "{} should fall into {blocks} equal blocks, which {reason} cannot",
                quote(module)
            ));
        }
        let found = self.shapes.features(module, tensor.orientation);
        let hidden = match tensor.any_inputs {
            true => None,
            false => Some(sizes.hidden_size.ok_or_else(|| reader.lacks_hidden_size())?),
        };
        let columns = hidden.or(found.map(|[_, columns]| columns)).unwrap_or(0);
        out.checked_mul(columns).ok_or_else(too_large)?;
        if found == Some([out, columns]) && columns > 0 {
            return Ok([out, columns]);
        }
        let stored = self.shapes.tensor(module);
        let columns = hidden.map_or("any".to_owned(), |columns| columns.to_string());
        let expected = match tensor.orientation {
            Orientation::InOut if stored.is_some() => format!("[{columns}, {out}]"),
            _ => format!("[{out}, {columns}]"),
        };
        let (name, found) = match stored {
            Some((name, shape)) => (name, format!("{shape:?}")),
            None => (module, format!("{:?}", found.unwrap_or_default())),
        };
        Err(format!(
            "tensor {} should have the shape {expected} by {} ({reason}), but has the shape {found}",
            quote(name),
            self.owner.section.name
        ))
    }
}
