//! Checks that two models can be compared head by head.

use super::opened_model::OpenedModel;
use crate::attention::LayerSizes;
use crate::checkpoint::CONSOLIDATED;
use crate::error::{Difference, Error, Result};

/// Refuses models that are not two states of one: of other layouts, components, layers or sizes.
pub(crate) fn check_pair(base: &OpenedModel, tuned: &OpenedModel) -> Result<()> {
    let differences = find_differences(base, tuned);
    if differences.is_empty() {
        return Ok(());
    }
    let (base, tuned) = (base.path().to_path_buf(), tuned.path().to_path_buf());
    Err(Error::Pair { base, tuned, differences })
}

fn find_differences(base: &OpenedModel, tuned: &OpenedModel) -> Vec<Difference> {
    let types = [base, tuned].map(|model| model.attention().owner_type());
    let [base, tuned] = [base, tuned].map(OpenedModel::geometry);
    let mut differences = Vec::new();
    let compare = |quantity, layer, [base, tuned]: [String; 2]| {
        (base != tuned).then_some(Difference::Quantity { quantity, layer, base, tuned })
    };
    // One model may be stored in two layouts: its heads fused here and separate there.
    if types[0] != types[1] && base.layout != tuned.layout {
        let names = [(base, types[0]), (tuned, types[1])];
        let names = names.map(|(geometry, of)| format!("{} (model type {of})", geometry.layout));
        differences.extend(compare("the layout", None, names));
    }
    let components = [base, tuned].map(|geometry| geometry.component.to_string());
    differences.extend(compare("the component", None, components));
    let counts = [base, tuned].map(|geometry| geometry.layers.len().to_string());
    differences.extend(compare("the number of layers with attention", None, counts));
    if (types[0] == CONSOLIDATED) != (types[1] == CONSOLIDATED) {
        differences.push(Difference::RowOrder);
    }
    if !differences.is_empty() {
        return differences;
    }
    let mut layers = base.layers.iter().zip(&tuned.layers);
    if layers.clone().any(|(base, tuned)| base.number != tuned.number) {
        return vec![Difference::LayerNumbers];
    }
    type OfLayer = fn(&LayerSizes) -> usize;
    let sizes: [(&'static str, OfLayer); 9] = [
        ("the number of query heads", |layer| layer.query_heads),
        ("the number of key/value heads", |layer| layer.key_value_heads),
        ("the size of a head", |layer| layer.query.rows),
        ("the size of a key head", |layer| layer.key.map_or(0, |key| key.rows)),
        ("the size of a value head", |layer| layer.value.map_or(0, |value| value.rows)),
        ("the hidden size", |layer| layer.query.columns),
        ("the number of inputs of a key", |layer| layer.key.map_or(0, |key| key.columns)),
        ("the number of inputs of a value", |layer| layer.value.map_or(0, |value| value.columns)),
        ("whether the keys serve as values (1 if so)", |layer| usize::from(layer.keys_are_values)),
    ];
    if let Some((base, tuned)) = layers.find(|(base, tuned)| base != tuned) {
        differences.extend(sizes.iter().filter_map(|(quantity, size)| {
            compare(quantity, Some(base.number), [base, tuned].map(|layer| size(layer).to_string()))
        }));
    }
    differences
}

/// Refuses a model for whose weights Q^T (K V^T) is not defined.
pub(crate) fn check_product(model: &OpenedModel) -> Result<()> {
    let problem = |layer: &LayerSizes| match (layer.query, layer.key, layer.value) {
        (_, None, _) | (_, _, None) => Some("has no keys and values of its own".to_owned()),
        (query, Some(key), _) if query.rows != key.rows => {
            Some(format!("has queries of size {} and keys of size {}", query.rows, key.rows))
        }
        (_, Some(key), Some(value)) if key.columns != value.columns => {
            Some(format!("has keys of {} and values of {} inputs", key.columns, value.columns))
        }
        _ => None,
    };
    match model.geometry().layers.iter().find_map(|layer| Some((layer.number, problem(layer)?))) {
        None => Ok(()),
        Some((number, problem)) => Err(Error::model(
            model.path(),
            format!("the form product is not defined for layer {number}, which {problem}; use the form qkv"),
        )),
    }
}
