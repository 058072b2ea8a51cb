//! The attention of a model. An input is a digit for the component, a configuration, a zero byte, and an object with the
//! shape of each tensor.

use std::collections::BTreeMap;
use std::path::Path;

use alps::attention::{Attention, Component, Role, StoredShapes, TensorShapes};
use alps::checkpoint::parse_config;

use super::store::parts;

/// The most cells of a table of scores; `rust/attention/find.rs` has the same.
const MOST_CELLS: usize = 1 << 19;

/// The most matrices whose rows are looked at.
const LOOKED_AT: usize = 4096;

/// Finds the attention, and checks that every matrix has rows of its own in a tensor of the model.
pub fn run(input: &[u8]) -> bool {
    let [config, tensors] = parts(input);
    let Some((digit, config)) = config.split_first() else { return false };
    let component = Component::ALL.get(usize::from(digit.wrapping_sub(b'0'))).copied();
    let Ok(config) = str::from_utf8(config) else { return false };
    let Ok(config) = parse_config(Path::new("config.json"), config) else { return false };
    let tensors: BTreeMap<String, Vec<usize>> = serde_json::from_slice(tensors).unwrap_or_default();
    let stored = tensors.iter().map(|(name, shape)| (&**name, &**shape));
    let stored = StoredShapes::new(stored).expect("there is memory for a few names");
    let shapes = TensorShapes { stored, ..TensorShapes::default() };
    let find = || Attention::resolve(Path::new("m"), &config, &shapes, component);
    let attention = match find() {
        Ok(attention) => attention,
        Err(error) => {
            assert_eq!(find().expect_err("it was refused").to_string(), error.to_string());
            return false;
        }
    };
    let geometry = attention.geometry();
    assert!(component.is_none_or(|component| component == geometry.component));
    assert!(!geometry.layers.is_empty() && geometry.width() > 0);
    assert!(geometry.layers.len() * geometry.width() <= MOST_CELLS);
    assert!(geometry.layers.is_sorted_by(|one, next| one.number < next.number));
    let mut taken = Vec::new();
    for (layer_index, layer) in geometry.layers.iter().enumerate() {
        assert!(layer.query_heads.is_multiple_of(layer.key_value_heads));
        for role in Role::ALL {
            for index in 0..layer.count(role).min(LOOKED_AT - taken.len().min(LOOKED_AT)) {
                let (rows, size) = (attention.projection_rows(role, layer_index, index), layer.size(role));
                assert_eq!(rows.is_some(), size.is_some());
                let (Some(found), Some(size)) = (rows, size) else { continue };
                let projection = found.projection;
                assert_eq!((found.rows.len(), projection.in_features), (size.rows, size.columns));
                assert!(found.rows.end <= projection.out_features && !found.rows.is_empty());
                let (_, shape) = shapes.tensor(&projection.name).expect("a projection is a tensor");
                let weights = shape.iter().map(|size| *size as u128).product::<u128>();
                assert_eq!(weights, projection.out_features as u128 * projection.in_features as u128);
                if role != Role::Value || !layer.keys_are_values {
                    taken.push((found.index, found.rows));
                }
            }
        }
    }
    taken.sort_by_key(|(projection, rows)| (*projection, rows.start));
    for pair in taken.windows(2) {
        let [(projection, rows), (next, next_rows)] = pair else { unreachable!("windows of 2") };
        assert!(projection != next || rows.end <= next_rows.start, "two matrices share rows");
    }
    true
}
