//! The rules that choose heads from their scores.
//!
//! A score matrix is row-major, `layers` rows of `query_heads` numbers; a selection is one `bool` per
//! head in the same order. Higher scores go first, ties go to the lower (layer, head), and NaN ranks
//! below every number.

use std::cmp::Ordering;

use rand_chacha::ChaCha20Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};

use crate::error::{Error, Result};

/// How a ratio that lands on an integer but for binary rounding is told from one that does not.
const INTEGER_TOLERANCE: f64 = 1e-9;

/// The sizes of a model's attention: what a selection is counted in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shape {
    /// Layers that have attention.
    pub layers: usize,
    /// Query heads of a layer.
    pub query_heads: usize,
    /// Key/value groups of a layer; divides `query_heads`.
    pub key_value_heads: usize,
    /// Rows of a query head, and of a group's keys.
    pub head_size: usize,
    /// Rows of a group's values.
    pub value_size: usize,
    /// Entries of a row.
    pub hidden_size: usize,
}

impl Shape {
    /// Heads in all layers.
    pub fn heads(&self) -> usize {
        self.layers * self.query_heads
    }

    /// Key/value groups in all layers.
    pub fn groups(&self) -> usize {
        self.layers * self.key_value_heads
    }

    /// The group, counted through all layers, that `head`, counted likewise, reads.
    ///
    /// Within a layer, head h reads group floor(h * G / H).
    pub fn group_of(&self, head: usize) -> usize {
        head / self.heads_per_group()
    }

    /// Query heads that share a group.
    pub fn heads_per_group(&self) -> usize {
        self.query_heads / self.key_value_heads
    }

    fn head_parameters(&self) -> u64 {
        self.head_size as u64 * self.hidden_size as u64
    }

    fn group_parameters(&self) -> u64 {
        (self.head_size as u64 + self.value_size as u64) * self.hidden_size as u64
    }

    /// Once this has passed, no count and no number of parameters overflows.
    fn check(&self) -> Result<()> {
        let sizes =
            [self.query_heads, self.key_value_heads, self.head_size, self.value_size, self.hidden_size];
        if sizes.contains(&0) {
            return Err(Error::Argument(format!("a size of the model is 0: {self:?}")));
        }
        if !self.query_heads.is_multiple_of(self.key_value_heads) {
            return Err(Error::Argument(format!(
                "{} query heads cannot share {} key/value heads evenly",
                self.query_heads, self.key_value_heads
            )));
        }
        self.checked_parameters().map(drop).ok_or_else(|| {
            Error::Argument(format!("the model has more parameters than 64 bits count: {self:?}"))
        })
    }

    fn checked_parameters(&self) -> Option<u64> {
        let hidden = self.hidden_size as u64;
        let query = (self.query_heads as u64).checked_mul(self.head_size as u64)?;
        let sizes = (self.head_size as u64).checked_add(self.value_size as u64)?;
        let key_value = (self.key_value_heads as u64).checked_mul(sizes)?;
        query.checked_add(key_value)?.checked_mul(hidden)?.checked_mul(self.layers as u64)
    }

    fn check_length(&self, what: &str, length: usize) -> Result<()> {
        self.check()?;
        if length != self.heads() {
            return Err(Error::Argument(format!(
                "expected {} {what}, one for each of {} heads in {} layers; found {length}",
                self.heads(),
                self.query_heads,
                self.layers
            )));
        }
        Ok(())
    }
}

/// What a selection amounts to. Parameters are entries of the Q, K and V weights, biases left out.
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

/// ceil(ratio * total), immune to binary rounding: a product within 1e-9 (relative) of a whole number
/// other than 0 counts as that number, so that 10 % of 30 heads are 3 heads, not 4.
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
    let mut order: Vec<usize> = (0..scores.len()).collect();
    // A stable sort, so ties stay in order of index.
    order.sort_by(|&left, &right| descending(scores[left], scores[right]));
    order
}

fn descending(left: f64, right: f64) -> Ordering {
    // Two numbers always compare; otherwise the one that is not NaN goes first.
    right.partial_cmp(&left).unwrap_or_else(|| left.is_nan().cmp(&right.is_nan()))
}

/// The best ceil(ratio * heads) heads of the whole model.
pub fn global(scores: &[f64], shape: &Shape, ratio: f64) -> Result<Vec<bool>> {
    shape.check_length("scores", scores.len())?;
    let count = count(ratio, scores.len())?;
    Ok(mark(scores.len(), ranking(scores).into_iter().take(count)))
}

/// The best ceil(ratio * heads of a layer) heads of every layer.
pub fn per_layer(scores: &[f64], shape: &Shape, ratio: f64) -> Result<Vec<bool>> {
    shape.check_length("scores", scores.len())?;
    let count = count(ratio, shape.query_heads)?;
    let of_layer = |layer: &[f64]| mark(layer.len(), ranking(layer).into_iter().take(count));
    Ok(scores.chunks(shape.query_heads).flat_map(of_layer).collect())
}

/// The best ceil(ratio * groups) key/value groups of the whole model, each with all its heads.
///
/// A group scores the mean of its heads, so a group with a NaN ranks last.
pub fn key_value_groups(scores: &[f64], shape: &Shape, ratio: f64) -> Result<Vec<bool>> {
    shape.check_length("scores", scores.len())?;
    let size = shape.heads_per_group();
    let means: Vec<f64> =
        scores.chunks(size).map(|group| group.iter().map(|score| score / size as f64).sum()).collect();
    let count = count(ratio, means.len())?;
    let heads = ranking(&means).into_iter().take(count).flat_map(|group| group * size..(group + 1) * size);
    Ok(mark(scores.len(), heads))
}

/// The longest prefix of the ranking of all heads whose trainable Q/K/V parameters stay within
/// `budget`; a key/value group is paid for once, by the first of its heads.
pub fn within_budget(scores: &[f64], shape: &Shape, budget: u64) -> Result<Vec<bool>> {
    shape.check_length("scores", scores.len())?;
    let mut touched = vec![false; shape.groups()];
    let mut left = budget;
    let affordable = |head: &usize| {
        let group = shape.group_of(*head);
        let first = !std::mem::replace(&mut touched[group], true);
        let cost = shape.head_parameters() + if first { shape.group_parameters() } else { 0 };
        let paid = left.checked_sub(cost);
        left = paid.unwrap_or(0);
        paid.is_some()
    };
    Ok(mark(scores.len(), ranking(scores).into_iter().take_while(affordable)))
}

/// ceil(ratio * heads) heads of the whole model, drawn uniformly without replacement.
///
/// A seed means the same heads on every platform and in every version, and a smaller ratio draws a
/// subset of what a larger one draws.
pub fn random(shape: &Shape, ratio: f64, seed: u64) -> Result<Vec<bool>> {
    shape.check()?;
    let total = shape.heads();
    Ok(mark(total, draw(total, count(ratio, total)?, seed, 0)))
}

/// ceil(ratio * heads of a layer) heads of every layer, drawn as [`random`] draws them.
pub fn layer_consistent(shape: &Shape, ratio: f64, seed: u64) -> Result<Vec<bool>> {
    shape.check()?;
    let count = count(ratio, shape.query_heads)?;
    let of_layer = |layer| mark(shape.query_heads, draw(shape.query_heads, count, seed, layer as u64));
    Ok((0..shape.layers).flat_map(of_layer).collect())
}

/// What `selection` amounts to.
pub fn report(selection: &[bool], shape: &Shape) -> Result<Report> {
    shape.check_length("flags", selection.len())?;
    let count = |flags: &[bool]| flags.iter().filter(|&&flag| flag).count();
    let heads = count(selection);
    let touched: Vec<bool> =
        selection.chunks(shape.heads_per_group()).map(|group| group.contains(&true)).collect();
    let groups = count(&touched);
    let parameters =
        |heads, groups| heads as u64 * shape.head_parameters() + groups as u64 * shape.group_parameters();
    Ok(Report {
        heads,
        total_heads: shape.heads(),
        key_value_groups: groups,
        total_key_value_groups: shape.groups(),
        trainable_parameters: parameters(heads, groups),
        total_parameters: parameters(shape.heads(), shape.groups()),
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
/// The generator, the bounded draw and the order of the swaps are spelled out here, so that no
/// release of a crate changes what a seed means.
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

/// A uniform number in `0..bound`: draws beyond the last whole multiple of `bound` are thrown away.
fn below(bound: u64, generator: &mut ChaCha20Rng) -> u64 {
    let limit = u64::MAX - u64::MAX % bound;
    loop {
        let number = generator.next_u64();
        if number < limit {
            return number % bound;
        }
    }
}
