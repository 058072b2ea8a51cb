//! Measures the query heads of one key/value group.
//!
//! The thread that claims a group reads and sums its key and value matrices, once. Any thread may then measure some of
//! its heads: it reads the query matrix of each, combines its sums with those of the group and ends the use of the
//! query's bytes. The last thread that leaves the group ends the use of the key and value bytes. In the form `product`
//! the product of keys and values takes the place of the matrices.

use std::mem::take;
use std::ops::Range;
use std::sync::atomic::Ordering;

use super::matrix_pair::{LoadedMatrix, MatrixMemory, PairedMatrix};
use super::opened_model::OpenedModel;
use super::options::{Form, Options};
use crate::attention::Role;
use crate::checkpoint::{ByteRange, RangeMapper};
use crate::error::{Error, HeadName, Result};
use crate::progress::Progress;
use crate::statistics::{
    GroupMeasurement, HeadMeasurements, HeadProduct, KeyValueProduct, NonFiniteIn, ProductError, VectorSums,
    WeightVector,
};

/// The most bytes that a thread keeps from group to group in the form `product`.
const KEPT_PER_THREAD: usize = 24 << 20;

/// What all threads share to measure heads.
pub(crate) struct HeadMeasurer<'a> {
    base: &'a OpenedModel,
    tuned: &'a OpenedModel,
    options: &'a Options,
    progress: &'a Progress,
    mapper: RangeMapper<'a>,
}

/// One key/value group, with what its query heads share.
pub(crate) struct KeyValueGroup<'a> {
    /// The position of the layer among those with attention.
    pub(crate) layer_index: usize,
    index: usize,
    /// The query heads that read the group.
    pub(crate) heads: Range<usize>,
    key: Option<LoadedMatrix<'a>>,
    /// Nothing where the keys are the values.
    value: Option<LoadedMatrix<'a>>,
    /// The product of keys and values, in the form `product`.
    product: Option<KeyValueProduct>,
}

/// The memory of one thread, kept from group to group.
pub(crate) struct ThreadMemory<'a> {
    unused: Vec<MatrixMemory<'a>>,
    unused_product: KeyValueProduct,
    product: HeadProduct,
    product_sums: VectorSums,
    scratch: Vec<u8>,
}

/// Heads, each with its measurements; or the first head that could not be measured, and why.
pub(crate) type MeasuredHeads = std::result::Result<Vec<(usize, HeadMeasurements)>, (usize, Error)>;

impl ThreadMemory<'_> {
    pub(crate) fn new(options: &Options) -> Self {
        Self {
            unused: Vec::new(),
            unused_product: KeyValueProduct::default(),
            product: HeadProduct::new(options.instructions),
            product_sums: VectorSums::new(options.temperature, options.instructions),
            scratch: Vec::new(),
        }
    }
}

impl<'a> KeyValueGroup<'a> {
    /// The matrices that follow the queries in the weight vector of every head.
    fn shared(&self) -> impl Iterator<Item = &LoadedMatrix<'a>> {
        self.key.iter().chain(self.value.as_ref().or(self.key.as_ref()))
    }
}

impl<'a> HeadMeasurer<'a> {
    pub(crate) fn new(
        base: &'a OpenedModel,
        tuned: &'a OpenedModel,
        options: &'a Options,
        threads: usize,
        progress: &'a Progress,
    ) -> Self {
        // The product form copies: its multiplications take far longer, and copies can be freed at once.
        let mapper = RangeMapper::new(threads, options.mmap && options.form == Form::Qkv);
        Self { base, tuned, options, progress, mapper }
    }

    /// Reads what the heads of a group share.
    pub(crate) fn prepare(
        &self,
        layer_index: usize,
        index: usize,
        memory: &mut ThreadMemory<'a>,
    ) -> Result<KeyValueGroup<'a>> {
        let is_product = self.options.form == Form::Product;
        let keeps_memory = !is_product || self.keeps_memory_of_products(layer_index, index);
        if !keeps_memory {
            memory.unused.clear();
            memory.product.free();
        }
        let sizes = &self.base.geometry().layers[layer_index];
        let mut load =
            |role| self.matrix(role, layer_index, index).map(|matrix| self.load(matrix, memory)).transpose();
        let key = load(Role::Key)?;
        let value = if sizes.keys_are_values { None } else { load(Role::Value)? };
        let mut group =
            KeyValueGroup { layer_index, index, heads: sizes.heads_of(index), key, value, product: None };
        if is_product {
            group.product = self.key_value_product(&group, take(&mut memory.unused_product))?;
            let mut shared = [group.key.take(), group.value.take()].into_iter().flatten();
            if keeps_memory {
                shared.try_for_each(|matrix| self.recycle(matrix, memory))?;
            }
        }
        Ok(group)
    }

    /// Whether a thread keeps the memory of a group for the next one, in the form `product`. New memory for each group takes
    /// up to a fifth of the time. Kept memory of keys and values lies idle while the heads are multiplied, so it is kept
    /// only where it is small.
    fn keeps_memory_of_products(&self, layer_index: usize, index: usize) -> bool {
        let shared = [Role::Key, Role::Value].map(|role| self.matrix(role, layer_index, index));
        shared.iter().flatten().map(PairedMatrix::bytes_in_product).sum::<usize>() <= KEPT_PER_THREAD
    }

    /// The product of keys and values, in this memory; nothing unless there are both.
    fn key_value_product(
        &self,
        group: &KeyValueGroup<'a>,
        mut product: KeyValueProduct,
    ) -> Result<Option<KeyValueProduct>> {
        let mut shared = group.shared();
        let Some((key, value)) = shared.next().zip(shared.next()) else { return Ok(None) };
        let computed = product.compute(&key.weights(), &value.weights(), self.options.instructions);
        computed.map_err(|error| self.product_refusal(error, [key, key, value]))?;
        Ok(Some(product))
    }

    /// The error of a product of these query, key and value matrices.
    fn product_refusal(&self, error: ProductError, [query, key, value]: [&LoadedMatrix; 3]) -> Error {
        match error {
            ProductError::Query(entry) => query.refusal(entry),
            ProductError::Key(entry) => key.refusal(entry),
            ProductError::Value(entry) => value.refusal(entry),
            ProductError::Memory(error) => Error::io(self.tuned.path(), error),
        }
    }

    /// Measures heads of a group.
    pub(crate) fn measure(
        &self,
        group: &KeyValueGroup<'a>,
        heads: impl Iterator<Item = usize>,
        memory: &mut ThreadMemory<'a>,
    ) -> MeasuredHeads {
        let queries = heads.filter_map(|head| self.matrix(Role::Query, group.layer_index, head));
        match &group.product {
            None => self.measure_qkv(group, queries, memory),
            Some(product) => queries
                .map(|query| {
                    let head = query.name.index;
                    let measured = self.measure_product(query, group, product, memory);
                    measured.map(|measured| (head, measured)).map_err(|error| (head, error))
                })
                .collect(),
        }
    }

    fn measure_qkv(
        &self,
        group: &KeyValueGroup<'a>,
        queries: impl Iterator<Item = PairedMatrix<'a>>,
        memory: &mut ThreadMemory<'a>,
    ) -> MeasuredHeads {
        let shared: Vec<_> = group.shared().collect();
        let mut group_measurement = self
            .group_measurement(shared.iter().map(|shared| (shared.weight_vector(), shared.sums())).collect());
        // Every entry was finite when it was summed: an entry that is not was written by another process since then.
        let refusal =
            |query: &LoadedMatrix, NonFiniteIn { vector, entry }: NonFiniteIn| match vector.checked_sub(1) {
                None => query.refusal(entry),
                Some(vector) => shared[vector].refusal(entry),
            };
        let mut added = Vec::new();
        for query in queries {
            let head = query.name.index;
            let mut add = || {
                let query = self.load(query.clone(), memory)?;
                group_measurement
                    .add(query.weight_vector(), query.sums())
                    .map_err(|entry| refusal(&query, entry))?;
                self.recycle(query, memory)
            };
            add().map_err(|error| (head, error))?;
            added.push(query);
        }
        let mut measured = group_measurement.finish();
        let in_f64 = added.iter().zip(&mut measured).filter(|(_, measured)| measured.needs_f64());
        for (query, measured) in in_f64 {
            let mut remeasure = || {
                self.progress.check_cancelled()?;
                let mut query = LoadedMatrix::new(query.clone(), self.take_memory(memory), &self.mapper)?;
                query.read(0..query.matrix.rows(), &mut memory.scratch)?;
                let again = group_measurement.remeasure_in_f64(query.weight_vector(), measured);
                *measured = again.map_err(|entry| refusal(&query, entry))?;
                self.recycle(query, memory)
            };
            remeasure().map_err(|error| (query.name.index, error))?;
        }
        Ok(added.iter().map(|query| query.name.index).zip(measured).collect())
    }

    fn measure_product(
        &self,
        query: PairedMatrix<'a>,
        group: &KeyValueGroup<'a>,
        key_value_product: &KeyValueProduct,
        memory: &mut ThreadMemory<'a>,
    ) -> Result<HeadMeasurements> {
        let loaded = self.load(query.clone(), memory)?;
        let computed = memory.product.compute(&loaded.weights(), key_value_product);
        computed.map_err(|error| self.product_refusal(error, [&loaded; 3]))?;
        self.recycle(loaded, memory)?;
        let measured = self.measure_computed(query.name, memory)?;
        if memory.product.is_precise() && !measured.needs_f64() {
            return Ok(measured);
        }
        self.measure_product_again(query, group, memory)
    }

    /// Measures a head in the form `product` in more digits. Its matrices are read again.
    fn measure_product_again(
        &self,
        query: PairedMatrix<'a>,
        group: &KeyValueGroup<'a>,
        memory: &mut ThreadMemory<'a>,
    ) -> Result<HeadMeasurements> {
        self.progress.check_cancelled()?;
        let name = query.name;
        let mut load = |matrix: PairedMatrix<'a>| {
            let mut matrix = LoadedMatrix::new(matrix, self.take_memory(memory), &self.mapper)?;
            matrix.read(0..matrix.matrix.rows(), &mut memory.scratch).map(|()| matrix)
        };
        let query = load(query)?;
        let keys_are_values = self.base.geometry().layers[group.layer_index].keys_are_values;
        let value_role = if keys_are_values { Role::Key } else { Role::Value };
        let mut shared = Vec::new();
        for role in [Role::Key, value_role] {
            shared.extend(self.matrix(role, group.layer_index, group.index).map(&mut load).transpose()?);
        }
        if let [key, value] = &shared[..] {
            let [q, k, v] = [&query, key, value].map(LoadedMatrix::weights);
            let computed = memory.product.compute_again(&q, &k, &v);
            computed.map_err(|error| self.product_refusal(error, [&query, key, value]))?;
        }
        for matrix in shared.into_iter().chain([query]) {
            self.recycle(matrix, memory)?;
        }
        self.measure_computed(name, memory)
    }

    /// Measures the product that was computed last.
    fn measure_computed(&self, name: HeadName, memory: &mut ThreadMemory<'a>) -> Result<HeadMeasurements> {
        let overflows = || {
            let problem = format!("the product form of {name} overflows: its weights are too large");
            Error::weights(self.tuned.path(), problem)
        };
        let ThreadMemory { product, product_sums, .. } = memory;
        let vector = product.weight_vector();
        product_sums.clear();
        product_sums.add_up_to(vector.entries(), &vector).map_err(|_| overflows())?;
        let mut group_measurement = self.group_measurement(Vec::new());
        group_measurement.add(vector, product_sums).map_err(|_| overflows())?;
        let measured = group_measurement.finish().remove(0);
        if measured.needs_f64() && product.is_f64() {
            return group_measurement.remeasure_in_f64(vector, &measured).map_err(|_| overflows());
        }
        Ok(measured)
    }

    fn group_measurement<'b>(&self, shared: Vec<(WeightVector<'b>, &'b VectorSums)>) -> GroupMeasurement<'b> {
        let Options { temperature, sorted, instructions, .. } = *self.options;
        GroupMeasurement::new(shared, temperature, sorted, instructions)
    }

    /// Ranges of files that contain everything that is read for a group and its heads.
    pub(crate) fn covering_ranges(
        &self,
        layer_index: usize,
        index: usize,
    ) -> impl Iterator<Item = ByteRange<'a>> {
        let sizes = &self.base.geometry().layers[layer_index];
        let queries = sizes.heads_of(index).map(|head| (Role::Query, head));
        let matrices = [(Role::Key, index), (Role::Value, index)].into_iter().chain(queries);
        let is_read = move |(role, _): &(Role, usize)| *role != Role::Value || !sizes.keys_are_values;
        let pairs = matrices.filter(is_read).filter_map(move |(role, at)| self.matrix(role, layer_index, at));
        pairs.flat_map(|pair| [pair.base.covering_ranges(), pair.tuned.covering_ranges()].concat())
    }

    /// Ends the use of a group that all threads have left. No result of its heads may be kept if this fails.
    pub(crate) fn finish(&self, group: KeyValueGroup<'a>, memory: &mut ThreadMemory<'a>) -> Result<()> {
        memory.unused_product = group.product.unwrap_or_default();
        let mut matrices = group.key.into_iter().chain(group.value);
        matrices.try_for_each(|matrix| self.recycle(matrix, memory))
    }

    /// The matrix of a query head, or of a key/value group; nothing if the layer has none of its own.
    fn matrix(&self, role: Role, layer_index: usize, index: usize) -> Option<PairedMatrix<'a>> {
        Some(PairedMatrix {
            base: self.base.matrix(role, layer_index, index)?,
            tuned: self.tuned.matrix(role, layer_index, index)?,
            name: HeadName {
                role: role.name(),
                index,
                layer: self.base.geometry().layers[layer_index].number,
            },
        })
    }

    /// Reads a matrix; in the form `qkv` sums it piece by piece, while each piece is in the core's cache.
    fn load(&self, matrix: PairedMatrix<'a>, memory: &mut ThreadMemory<'a>) -> Result<LoadedMatrix<'a>> {
        let (rows, stored) = (matrix.rows(), matrix.stored_bytes());
        let step = matrix.rows_within(self.options.piece);
        let mut loaded = LoadedMatrix::new(matrix, self.take_memory(memory), &self.mapper)?;
        let mut reported = 0;
        for start in (0..rows).step_by(step) {
            self.progress.check_cancelled()?;
            let end = rows.min(start + step);
            loaded.read(start..end, &mut memory.scratch)?;
            if self.options.form == Form::Qkv {
                loaded.sum_rows(end)?;
            }
            let so_far = stored * end as u64 / rows as u64;
            self.progress.done.fetch_add(so_far - reported, Ordering::Relaxed);
            reported = so_far;
        }
        Ok(loaded)
    }

    fn take_memory(&self, memory: &mut ThreadMemory<'a>) -> MatrixMemory<'a> {
        memory.unused.pop().unwrap_or_else(|| MatrixMemory::new(self.options))
    }

    /// Ends the use of a matrix and keeps its memory for the next one.
    fn recycle(&self, matrix: LoadedMatrix<'a>, memory: &mut ThreadMemory<'a>) -> Result<()> {
        memory.unused.push(matrix.finish(&self.mapper)?);
        Ok(())
    }
}
