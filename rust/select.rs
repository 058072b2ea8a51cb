//! Ranks heads by their scores and selects them.
//!
//! Scores are a row-major matrix with one row per layer, as long as the layer with most heads needs; cells beyond the
//! heads of a layer are never selected. A selection is one `bool` per cell. Higher scores rank first, ties go to the
//! lower (layer, head), and NaN ranks below every number.

use std::cmp::Ordering;
use std::collections::BTreeSet;
use std::ops::Range;

use rand_chacha::ChaCha20Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};

use crate::error::{Error, Result};

/// The relative distance within which a product counts as a whole number.
const INTEGER_TOLERANCE: f64 = 1e-9;

/// The sizes of a model's attention that selections depend on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Shape {
    /// The sizes of each layer that has attention.
    pub layers: Vec<LayerShape>,
}

/// The sizes of one layer's attention.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LayerShape {
    /// Query heads.
    pub query_heads: usize,
    /// Key/value groups; divides `query_heads`.
    pub key_value_heads: usize,
    /// Parameters of a query head's matrix.
    pub head_parameters: u64,
    /// Parameters of a group's key and value matrices.
    pub group_parameters: u64,
}

impl Shape {
    /// Heads of the layer that has most: the length of a row of scores.
    pub fn width(&self) -> usize {
        self.layers.iter().map(|layer| layer.query_heads).max().unwrap_or(0)
    }

    /// Heads in all layers.
    pub fn heads(&self) -> usize {
        self.layers.iter().map(|layer| layer.query_heads).sum()
    }

    /// The cells of each layer in the score matrix that belong to a head.
    fn rows(&self) -> impl Iterator<Item = (&LayerShape, Range<usize>)> {
        let starts = (0..).step_by(self.width().max(1));
        self.layers.iter().zip(starts).map(|(layer, start)| (layer, start..start + layer.query_heads))
    }

    /// The cells of the score matrix that belong to a head, in order.
    fn cells(&self) -> Vec<usize> {
        self.rows().flat_map(|(_, heads)| heads).collect()
    }

    /// The key/value groups, each with its parameters and the cells of its heads.
    fn groups(&self) -> Vec<(u64, Range<usize>)> {
        let of_layer = |(layer, heads): (&LayerShape, Range<usize>)| {
            let (parameters, size) = (layer.group_parameters, layer.query_heads / layer.key_value_heads);
            heads.step_by(size).map(move |first| (parameters, first..first + size))
        };
        self.rows().flat_map(of_layer).collect()
    }

    fn layer_of(&self, cell: usize) -> &LayerShape {
        &self.layers[cell / self.width()]
    }

    /// Checks the sizes. No count and no number of parameters overflows afterwards.
    fn check(&self) -> Result<()> {
        let mut total = Some(0_u64);
        for layer in &self.layers {
            let LayerShape { query_heads, key_value_heads, head_parameters, group_parameters } = *layer;
            if query_heads == 0 || key_value_heads == 0 || head_parameters == 0 {
                return Err(Error::Argument(format!("a size of the model is 0: {layer:?}")));
            }
            if !query_heads.is_multiple_of(key_value_heads) {
                return Err(Error::Argument(format!(
                    "{query_heads} query heads cannot share {key_value_heads} key/value heads evenly"
                )));
            }
            let parameters = || {
                let queries = head_parameters.checked_mul(query_heads as u64)?;
                queries.checked_add(group_parameters.checked_mul(key_value_heads as u64)?)
            };
            total = total.and_then(|total| total.checked_add(parameters()?));
        }
        match total.and_then(|_| self.layers.len().checked_mul(self.width())) {
            Some(_) => Ok(()),
            None => Err(Error::Argument("the model has more parameters than 64 bits count".to_owned())),
        }
    }

    fn check_length(&self, what: &str, length: usize) -> Result<()> {
        self.check()?;
        let expected = self.layers.len() * self.width();
        if length != expected {
            return Err(Error::Argument(format!(
                "expected {expected} {what}, {} for each of {} layers; found {length}",
                self.width(),
                self.layers.len()
            )));
        }
        Ok(())
    }
}

/// The size of a selection. Parameters are entries of the Q, K and V weights, without biases.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Report {
    /// Selected heads.
    pub heads: usize,
    /// Heads of the model.
    pub total_heads: usize,
    /// Key/value groups that a selected head reads.
    pub key_value_groups: usize,
    /// Key/value groups of the model.
    pub total_key_value_groups: usize,
    /// Query entries of the selected heads, key and value entries of their groups, each group once.
    pub trainable_parameters: u64,
    /// Entries of all Q, K and V weights.
    pub total_parameters: u64,
}

/// ceil(ratio * total), where a product within 1e-9 (relative) of a whole number other than 0 counts as that number:
/// 10 % of 30 heads are 3 heads, not 4, whatever the binary rounding.
pub fn count(ratio: f64, total: usize) -> Result<usize> {
    if !(0.0..=1.0).contains(&ratio) {
        return Err(Error::Argument(format!("ratio must be between 0 and 1, found {ratio}")));
    }
    let exact = ratio * total as f64;
    let whole = exact.round();
    let is_whole = (exact - whole).abs() <= INTEGER_TOLERANCE * whole;
    Ok(if is_whole { whole as usize } else { exact.ceil() as usize })
}

/// The indices of `scores`, best first.
pub fn ranking(scores: &[f64]) -> Vec<usize> {
    ranked(scores, 0..scores.len())
}

/// Some cells of `scores`, best first.
fn ranked(scores: &[f64], cells: impl IntoIterator<Item = usize>) -> Vec<usize> {
    let mut cells: Vec<usize> = cells.into_iter().collect();
    // A stable sort keeps ties in order of cell.
    cells.sort_by(|&left, &right| descending(scores[left], scores[right]));
    cells
}

fn descending(left: f64, right: f64) -> Ordering {
    // Two numbers always compare; otherwise the one that is not NaN goes first.
    right.partial_cmp(&left).unwrap_or_else(|| left.is_nan().cmp(&right.is_nan()))
}

/// Selects the best ceil(ratio * heads) heads of the whole model.
pub fn global(scores: &[f64], shape: &Shape, ratio: f64) -> Result<Vec<bool>> {
    shape.check_length("scores", scores.len())?;
    let count = count(ratio, shape.heads())?;
    Ok(mark(scores.len(), ranked(scores, shape.cells()).into_iter().take(count)))
}

/// Selects the best ceil(ratio * heads of the layer) heads of every layer.
pub fn per_layer(scores: &[f64], shape: &Shape, ratio: f64) -> Result<Vec<bool>> {
    shape.check_length("scores", scores.len())?;
    let mut chosen = Vec::new();
    for (_, heads) in shape.rows() {
        let count = count(ratio, heads.len())?;
        chosen.extend(ranked(scores, heads).into_iter().take(count));
    }
    Ok(mark(scores.len(), chosen))
}

/// Selects the best ceil(ratio * groups) key/value groups of the whole model, each with all its heads.
///
/// The score of a group is the mean of its heads, so a group with a NaN ranks last.
pub fn key_value_groups(scores: &[f64], shape: &Shape, ratio: f64) -> Result<Vec<bool>> {
    shape.check_length("scores", scores.len())?;
    let groups = shape.groups();
    let mean =
        |heads: &Range<usize>| scores[heads.clone()].iter().map(|score| score / heads.len() as f64).sum();
    let means: Vec<f64> = groups.iter().map(|(_, heads)| mean(heads)).collect();
    let count = count(ratio, means.len())?;
    let heads = ranking(&means).into_iter().take(count).flat_map(|group| groups[group].1.clone());
    Ok(mark(scores.len(), heads))
}

/// Selects the longest prefix of the ranking of all heads whose trainable Q/K/V parameters stay within `budget`. The
/// parameters of a key/value group count once, with the first of its heads.
pub fn within_budget(scores: &[f64], shape: &Shape, budget: u64) -> Result<Vec<bool>> {
    shape.check_length("scores", scores.len())?;
    let mut group_of = vec![0; scores.len()];
    for (group, (_, heads)) in shape.groups().into_iter().enumerate() {
        group_of[heads].fill(group);
    }
    let mut touched = BTreeSet::new();
    let mut left = budget;
    let affordable = |cell: &usize| {
        let LayerShape { head_parameters, group_parameters, .. } = *shape.layer_of(*cell);
        let first = touched.insert(group_of[*cell]);
        let cost = head_parameters + if first { group_parameters } else { 0 };
        let paid = left.checked_sub(cost);
        left = paid.unwrap_or(0);
        paid.is_some()
    };
    Ok(mark(scores.len(), ranked(scores, shape.cells()).into_iter().take_while(affordable)))
}

/// Draws ceil(ratio * heads) heads of the whole model, uniformly without replacement.
///
/// A seed gives the same heads on every platform and in every version. A smaller ratio draws a subset of the heads of a
/// larger one.
pub fn random(shape: &Shape, ratio: f64, seed: u64) -> Result<Vec<bool>> {
    shape.check()?;
    let cells = shape.cells();
    let drawn = draw(cells.len(), count(ratio, cells.len())?, seed, 0);
    Ok(mark(shape.layers.len() * shape.width(), drawn.into_iter().map(|head| cells[head])))
}

/// Draws ceil(ratio * heads of the layer) heads of every layer, as [`random`] does.
pub fn layer_consistent(shape: &Shape, ratio: f64, seed: u64) -> Result<Vec<bool>> {
    shape.check()?;
    let mut chosen = Vec::new();
    for (stream, (_, heads)) in shape.rows().enumerate() {
        let drawn = draw(heads.len(), count(ratio, heads.len())?, seed, stream as u64);
        chosen.extend(drawn.into_iter().map(|head| heads.start + head));
    }
    Ok(mark(shape.layers.len() * shape.width(), chosen))
}

/// Counts the heads, groups and parameters of `selection`.
pub fn report(selection: &[bool], shape: &Shape) -> Result<Report> {
    shape.check_length("flags", selection.len())?;
    let cells = shape.cells();
    let groups = shape.groups();
    let selected_heads = || cells.iter().filter(|cell| selection[**cell]);
    let selected_groups = || groups.iter().filter(|(_, heads)| selection[heads.clone()].contains(&true));
    let of_head = |cell: &usize| shape.layer_of(*cell).head_parameters;
    let of_group = |(parameters, _): &(u64, Range<usize>)| *parameters;
    Ok(Report {
        heads: selected_heads().count(),
        total_heads: cells.len(),
        key_value_groups: selected_groups().count(),
        total_key_value_groups: groups.len(),
        trainable_parameters: selected_heads().map(of_head).sum::<u64>()
            + selected_groups().map(of_group).sum::<u64>(),
        total_parameters: cells.iter().map(of_head).sum::<u64>() + groups.iter().map(of_group).sum::<u64>(),
    })
}

fn mark(length: usize, chosen: impl IntoIterator<Item = usize>) -> Vec<bool> {
    let mut selection = vec![false; length];
    for index in chosen {
        selection[index] = true;
    }
    selection
}

/// The first `count` indices of a Fisher-Yates shuffle of `0..total`.
///
/// The bounded draw and the order of the swaps are written out, so that no release of a crate changes the heads of a
/// seed.
fn draw(total: usize, count: usize, seed: u64, stream: u64) -> Vec<usize> {
    let mut key = [0; 32];
    key[..8].copy_from_slice(&seed.to_le_bytes());
    let mut generator = ChaCha20Rng::from_seed(key);
    generator.set_stream(stream);
    let mut indices: Vec<usize> = (0..total).collect();
    for position in 0..count {
        let offset = below((total - position) as u64, &mut generator);
        indices.swap(position, position + offset as usize);
    }
    indices.truncate(count);
    indices
}

/// A uniform number in `0..bound`. Draws beyond the last whole multiple of `bound` are rejected.
fn below(bound: u64, generator: &mut ChaCha20Rng) -> u64 {
    let limit = u64::MAX - u64::MAX % bound;
    loop {
        let number = generator.next_u64();
        if number < limit {
            return number % bound;
        }
    }
}
