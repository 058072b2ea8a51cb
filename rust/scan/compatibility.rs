//! Whether two checkpoints can be compared head by head.

use super::opened_model::OpenedModel;
use crate::attention::{Geometry, Layer};
use crate::checkpoint::CONSOLIDATED;
use crate::error::{Error, Result};

/// Refuses checkpoints of different models or sizes.
pub(crate) fn check_pair(base: &OpenedModel, tuned: &OpenedModel) -> Result<()> {
    let (of_base, of_tuned) = (base.geometry(), tuned.geometry());
    let differs = |what: &str, base: String, tuned: String| {
        (base != tuned).then(|| format!("{what} is {base} in the one, {tuned} in the other"))
    };
    // A model's heads may be stored fused here and apart there, in two layouts.
    let (type_of_base, type_of_tuned) = (base.attention().owner_type(), tuned.attention().owner_type());
    let layout = if type_of_base == type_of_tuned {
        None
    } else {
        let name = |geometry: &Geometry, of: &str| format!("{} (model type {of})", geometry.layout);
        (of_base.layout != of_tuned.layout)
            .then(|| differs("the layout", name(of_base, type_of_base), name(of_tuned, type_of_tuned)))
            .flatten()
    };
    let mut problems: Vec<String> = [
        layout,
        differs("the component", of_base.component.to_string(), of_tuned.component.to_string()),
        differs(
            "the number of layers with attention",
            of_base.layers.len().to_string(),
            of_tuned.layers.len().to_string(),
        ),
    ]
    .into_iter()
    .flatten()
    .collect();
    if (type_of_base == CONSOLIDATED) != (type_of_tuned == CONSOLIDATED) {
        problems.push(
            "consolidated weights have the rows within a head in another order; compare them with others of that \
             form, or convert them with transformers first"
                .into(),
        );
    }
    let numbers = |geometry: &Geometry| geometry.layers.iter().map(|layer| layer.number).collect::<Vec<_>>();
    if problems.is_empty() && numbers(of_base) != numbers(of_tuned) {
        problems.push("their layers with attention are not the same".into());
    }
    type OfLayer = fn(&Layer) -> usize;
    let sizes: [(&str, OfLayer); 8] = [
        ("the number of query heads", |layer| layer.query_heads),
        ("the number of key/value heads", |layer| layer.key_value_heads),
        ("the size of a head", |layer| layer.query.rows),
        ("the size of a key head", |layer| layer.key.map_or(0, |key| key.rows)),
        ("the size of a value head", |layer| layer.value.map_or(0, |value| value.rows)),
        ("the hidden size", |layer| layer.query.columns),
        ("the number of inputs of a key", |layer| layer.key.map_or(0, |key| key.columns)),
        ("the number of inputs of a value", |layer| layer.value.map_or(0, |value| value.columns)),
    ];
    let pairs = of_base.layers.iter().zip(&of_tuned.layers).filter(|_| problems.is_empty());
    if let Some((base, tuned)) = pairs.into_iter().find(|(base, tuned)| base != tuned) {
        let found = sizes.iter().filter_map(|(what, of)| {
            let problem = differs(what, of(base).to_string(), of(tuned).to_string())?;
            Some(format!("{problem} (layer {})", base.number))
        });
        problems.extend(found);
    }
    if problems.is_empty() {
        return Ok(());
    }
    let (base, tuned) = (base.path().to_path_buf(), tuned.path().to_path_buf());
    Err(Error::Pair { base, tuned, problem: problems.join("; ") })
}

/// Refuses a model whose weights Q^T (K V^T) is not defined for.
pub(crate) fn check_product(side: &OpenedModel) -> Result<()> {
    let problem = |layer: &Layer| match (layer.query, layer.key, layer.value) {
        (_, None, _) | (_, _, None) => Some("has no keys and values of its own".to_owned()),
        (query, Some(key), _) if query.rows != key.rows => {
            Some(format!("has queries of size {} and keys of size {}", query.rows, key.rows))
        }
        (_, Some(key), Some(value)) if key.columns != value.columns => {
            Some(format!("has keys of {} and values of {} inputs", key.columns, value.columns))
        }
        _ => None,
    };
    match side.geometry().layers.iter().find_map(|layer| Some((layer.number, problem(layer)?))) {
        None => Ok(()),
        Some((number, problem)) => Err(Error::model(
            side.path(),
            format!("the form product is not defined for layer {number}, which {problem}; use the form qkv"),
        )),
    }
}
