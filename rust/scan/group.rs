//! How the heads of a group are measured: what is read, what they share, and whose fault it is if it cannot be done.

use std::ops::Range;
use std::sync::atomic::Ordering;

use super::matrix_pair::{Bytes, Done, Pair};
use super::opened_model::OpenedModel;
use super::options::{Form, Options};
use crate::attention::Role;
use crate::error::{Error, Result};
use crate::progress::Control;
use crate::statistics::{
    GroupMeasurement, HeadMeasurements, HeadProduct, KeyValueProduct, NonFiniteIn, NonFiniteMatrix,
    VectorSums, WeightVector,
};

/// What all threads share.
pub(crate) struct Walk<'a> {
    base: &'a OpenedModel,
    tuned: &'a OpenedModel,
    options: &'a Options,
    control: &'a Control,
    done: &'a Done<'a>,
    /// Whether what is measured was measured before, and is read this time.
    repeats: bool,
}

/// One key/value group, with all that its query heads share.
pub(crate) struct Group<'a> {
    pub(crate) layer: usize,
    index: usize,
    /// The query heads that read it.
    pub(crate) heads: Range<usize>,
    key: Option<Pair<'a>>,
    /// None of its own where the keys are the values.
    value: Option<Pair<'a>>,
    loaded: LoadedGroup<'a>,
}

/// What a thread needs, kept from group to group.
pub(crate) struct Workspace<'a> {
    query: Loaded<'a>,
    /// What a group has left behind.
    group: Option<LoadedGroup<'a>>,
    product: HeadProduct,
    product_sums: VectorSums,
    scratch: Vec<u8>,
}

/// The keys and values of a group, or their product.
struct LoadedGroup<'a> {
    key: Loaded<'a>,
    value: Loaded<'a>,
    middle: Option<KeyValueProduct>,
}

/// The bytes of one matrix from both sides, and their sums.
struct Loaded<'a> {
    bytes: Bytes<'a>,
    sums: VectorSums,
}

/// Heads of a layer, with what was measured of each; or one that could not be measured, and why.
pub(crate) type MeasuredHeads = std::result::Result<Vec<(usize, HeadMeasurements)>, (usize, Error)>;

impl Workspace<'_> {
    pub(crate) fn new(options: &Options) -> Self {
        Self {
            query: Loaded::nothing(options),
            group: None,
            product: HeadProduct::new(options.instructions),
            product_sums: VectorSums::new(options.temperature, options.instructions),
            scratch: Vec::new(),
        }
    }
}

impl LoadedGroup<'_> {
    fn nothing(options: &Options) -> Self {
        Self { key: Loaded::nothing(options), value: Loaded::nothing(options), middle: None }
    }

    fn has_gap(&self) -> bool {
        self.key.bytes.has_gap() || self.value.bytes.has_gap()
    }
}

impl Loaded<'_> {
    fn nothing(options: &Options) -> Self {
        Self { bytes: Bytes::default(), sums: VectorSums::new(options.temperature, options.instructions) }
    }
}

impl Group<'_> {
    /// The parts of a weight vector that all heads share.
    fn parts(&self) -> impl Iterator<Item = (&Pair<'_>, &Loaded<'_>)> {
        let key = self.key.as_ref().map(|key| (key, &self.loaded.key));
        let value = self.value.as_ref().map(|value| (value, &self.loaded.value));
        key.into_iter().chain(value.or(key))
    }
}

impl<'a> Walk<'a> {
    pub(crate) fn new(
        [base, tuned]: [&'a OpenedModel; 2],
        options: &'a Options,
        control: &'a Control,
        done: &'a Done<'a>,
    ) -> Self {
        Self { base, tuned, options, control, done, repeats: false }
    }

    /// Reads what the heads of a group share.
    pub(crate) fn prepare(
        &self,
        layer: usize,
        index: usize,
        workspace: &mut Workspace<'a>,
    ) -> Result<Group<'a>> {
        let sizes = &self.base.geometry().layers[layer];
        let mut group = Group {
            layer,
            index,
            heads: sizes.heads_of(index),
            key: self.pair(Role::Key, layer, index),
            value: self.pair(Role::Value, layer, index).filter(|_| !sizes.keys_are_values),
            loaded: workspace.group.take().unwrap_or_else(|| LoadedGroup::nothing(self.options)),
        };
        if self.options.form == Form::Product {
            workspace.query.bytes = Bytes::default();
            workspace.product.free();
        }
        match self.load(&mut group, workspace) {
            Err(_) if group.loaded.has_gap() => self.again().load(&mut group, workspace)?,
            loaded => loaded?,
        }
        Ok(group)
    }

    fn load(&self, group: &mut Group<'a>, workspace: &mut Workspace<'a>) -> Result<()> {
        let Group { key, value, loaded, .. } = group;
        for (pair, loaded) in [(key, &mut loaded.key), (value, &mut loaded.value)] {
            if let Some(pair) = pair {
                self.read(pair, loaded, &mut workspace.scratch)?;
            }
        }
        if self.options.form == Form::Product {
            group.loaded.middle = self.multiplied(group)?;
            // It is all that the heads need, and takes the place of the matrices.
            (group.loaded.key.bytes, group.loaded.value.bytes) = Default::default();
        }
        Ok(())
    }

    /// The product of keys and values; nothing unless there are both.
    fn multiplied(&self, group: &Group<'a>) -> Result<Option<KeyValueProduct>> {
        let mut parts = group.parts().map(|(pair, loaded)| (pair, &loaded.bytes));
        let Some(((key, keys), (value, values))) = parts.next().zip(parts.next()) else { return Ok(None) };
        let middle =
            KeyValueProduct::new(&key.matrices(keys), &value.matrices(values), self.options.instructions);
        middle.map(Some).map_err(|refused| match refused {
            NonFiniteMatrix::Key(entry) => key.refuse(keys, entry),
            NonFiniteMatrix::Value(entry) => value.refuse(values, entry),
        })
    }

    /// Measures heads of a group.
    pub(crate) fn measure(
        &self,
        group: &Group<'a>,
        mut heads: impl Iterator<Item = usize>,
        workspace: &mut Workspace<'a>,
    ) -> MeasuredHeads {
        let mut taken = Vec::new();
        let heads_taken = heads.by_ref().inspect(|head| taken.push(*head));
        let measured = self.measure_heads(group, heads_taken, workspace);
        // First its own, of which the next group must not hear.
        if !(workspace.query.bytes.take_gap() || group.loaded.has_gap()) {
            return measured;
        }
        let again = self.again();
        let prepared = again.prepare(group.layer, group.index, workspace);
        let group = prepared.map_err(|error| (group.heads.start, error))?;
        again.measure_heads(&group, taken.into_iter().chain(heads), workspace)
    }

    /// The same for a group that was looked at in a file which became shorter under the eyes of the scan. To read it says
    /// which file, and from where on.
    fn again(&self) -> Self {
        Self { repeats: true, ..*self }
    }

    fn measure_heads(
        &self,
        group: &Group<'a>,
        heads: impl Iterator<Item = usize>,
        workspace: &mut Workspace<'a>,
    ) -> MeasuredHeads {
        let queries = heads.filter_map(|head| Some((head, self.pair(Role::Query, group.layer, head)?)));
        match &group.loaded.middle {
            None => self.measure_qkv(group, queries, workspace),
            Some(middle) => queries
                .map(|(head, query)| {
                    let measured = self.measure_product(&query, middle, workspace);
                    measured.map(|measured| (head, measured)).map_err(|error| (head, error))
                })
                .collect(),
        }
    }

    fn measure_qkv(
        &self,
        group: &Group<'a>,
        queries: impl Iterator<Item = (usize, Pair<'a>)>,
        workspace: &mut Workspace<'a>,
    ) -> MeasuredHeads {
        let Workspace { query: own, scratch, .. } = workspace;
        let shared: Vec<_> = group.parts().collect();
        let parts = shared.iter().map(|(pair, loaded)| (pair.part(&loaded.bytes), &loaded.sums)).collect();
        let mut of_heads = self.heads(parts);
        // Every entry was found finite when it was summed, so somebody writes to the weights.
        let refuse = |query: &Pair, bytes: &Bytes, NonFiniteIn { vector, entry }: NonFiniteIn| match vector
            .checked_sub(1)
        {
            None => query.refuse(bytes, entry),
            Some(place) => shared[place].0.refuse(&shared[place].1.bytes, entry),
        };
        let mut done = Vec::new();
        for (head, query) in queries {
            self.read(&query, own, scratch).map_err(|error| (head, error))?;
            let Loaded { bytes, sums } = &*own;
            let added = of_heads.add(query.part(bytes), sums);
            added.map_err(|entry| (head, refuse(&query, bytes, entry)))?;
            self.done.add(bytes);
            done.push((head, query));
        }
        let mut measured = of_heads.finish();
        for ((head, query), measured) in done.iter().zip(&mut measured).filter(|(_, head)| head.needs_f64()) {
            let bytes = &mut own.bytes;
            self.reread(query, bytes, scratch).map_err(|error| (*head, error))?;
            let again = of_heads.remeasure_in_f64(query.part(bytes), measured);
            *measured = again.map_err(|entry| (*head, refuse(query, bytes, entry)))?;
            self.done.add(bytes);
        }
        Ok(done.into_iter().map(|(head, _)| head).zip(measured).collect())
    }

    fn measure_product(
        &self,
        pair: &Pair<'a>,
        middle: &KeyValueProduct,
        workspace: &mut Workspace<'a>,
    ) -> Result<HeadMeasurements> {
        let Workspace { query, product, product_sums, scratch, .. } = workspace;
        self.read(pair, query, scratch)?;
        let loaded = product.compute(&pair.matrices(&query.bytes), middle);
        loaded.map_err(|entry| pair.refuse(&query.bytes, entry))?;
        let part = product.weight_vector();
        product_sums.clear();
        let mut head = self.heads(Vec::new());
        let overflows = || {
            let problem = format!("the product form of {} overflows: its weights are too large", pair.whose);
            Error::weights(self.tuned.path(), problem)
        };
        product_sums.add_up_to(part.entries(), &part).map_err(|_| overflows())?;
        head.add(part, product_sums).map_err(|_| overflows())?;
        Ok(head.finish().remove(0))
    }

    fn heads<'b>(&self, shared: Vec<(WeightVector<'b>, &'b VectorSums)>) -> GroupMeasurement<'b> {
        let Options { temperature, sorted, instructions, .. } = *self.options;
        GroupMeasurement::new(shared, temperature, sorted, instructions)
    }

    /// Puts away a group that no thread needs any more.
    pub(crate) fn put_away(&self, group: Group<'a>, workspace: &mut Workspace<'a>) {
        for loaded in [&group.loaded.key, &group.loaded.value] {
            self.done.add(&loaded.bytes);
        }
        workspace.group = Some(group.loaded);
    }

    /// The matrices of a role; nothing if the layer has none of its own.
    fn pair(&self, role: Role, layer: usize, index: usize) -> Option<Pair<'a>> {
        let what = match role {
            Role::Query => "query head",
            Role::Key => "key head",
            Role::Value => "value head",
        };
        Some(Pair {
            base: self.base.matrix(role, layer, index)?,
            tuned: self.tuned.matrix(role, layer, index)?,
            whose: format!("{what} {index} of layer {}", self.base.geometry().layers[layer].number),
        })
    }

    /// Looks at a pair where it lies, or makes room for a copy; whether it is the former. Beside the multiplications of the
    /// form `product` copying is nothing, and a copy can be given back at once.
    fn look_at(&self, pair: &Pair<'a>, bytes: &mut Bytes<'a>) -> bool {
        let may_map = self.options.map && self.options.form == Form::Qkv && !self.repeats;
        let is_mapped = may_map && bytes.look_at(pair);
        if !is_mapped {
            bytes.make_room(pair);
        }
        is_mapped
    }

    /// Takes up one matrix from both sides, once more.
    fn reread(&self, pair: &Pair<'a>, bytes: &mut Bytes<'a>, scratch: &mut Vec<u8>) -> Result<()> {
        self.control.check()?;
        if self.look_at(pair, bytes) { Ok(()) } else { bytes.copy(pair, 0..pair.base.rows(), scratch) }
    }

    /// Takes up one matrix from both sides; in the form `qkv` sums it piece by piece, while it is in cache.
    fn read(&self, pair: &Pair<'a>, loaded: &mut Loaded<'a>, scratch: &mut Vec<u8>) -> Result<()> {
        let Pair { base, tuned, .. } = pair;
        let Loaded { bytes, sums } = loaded;
        let is_mapped = self.look_at(pair, bytes);
        sums.clear();
        let step = if base.linear.is_scattered() || tuned.linear.is_scattered() {
            base.rows()
        } else {
            (self.options.buffer / base.row_bytes().max(tuned.row_bytes())).max(1)
        };
        let mut stored = 0;
        for start in (0..base.rows()).step_by(step) {
            self.control.check()?;
            let end = base.rows().min(start + step);
            if !is_mapped {
                bytes.copy(pair, start..end, scratch)?;
            }
            if self.options.form == Form::Qkv {
                let entries = end * base.columns();
                sums.add_up_to(entries, &pair.part(bytes)).map_err(|entry| pair.refuse(bytes, entry))?;
            }
            let so_far = pair.stored_bytes() * end as u64 / base.rows() as u64;
            if !self.repeats {
                self.control.done.fetch_add(so_far - stored, Ordering::Relaxed);
            }
            stored = so_far;
        }
        Ok(())
    }
}
