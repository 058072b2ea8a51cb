//! Writes a checkpoint with the rows of chosen heads of other checkpoints, and everything else of the first.
//!
//! # How a graft is written
//!
//! The files of the first model are copied; where the file system can, the copies share their blocks (`copy_file`). Those
//! of a store are fetched.
//! Then the rows of Q, K and V of the chosen heads, and their entries of the biases, are overwritten in the copies, one
//! matrix of one head at a time: `W = W_base + sum of scale (W_tuned - W_base)` over the tuned models that have the
//! head in their set (`rows`). Nothing else in the copies changes, so names, shards, headers and number formats are
//! those of the first.

mod copy_file;
mod rows;

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Seek, SeekFrom, Write};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;

use self::copy_file::copy_file;
use self::rows::combine;
use crate::attention::{Component, Orientation, Projection, ProjectionRows, Role};
use crate::checkpoint::{Checkpoint, Tensor};
use crate::error::{Error, Result, quote};
use crate::number_format::Dtype;
use crate::progress::Progress;
use crate::scan::{ModelPath, OpenedModel, StoredNumbers, check_pair};

/// A model whose heads are put into another.
#[derive(Clone, Debug)]
pub struct Donor {
    /// Its files.
    pub model: ModelPath,
    /// The chosen query heads: for each layer with attention, whether each head is one of them.
    pub queries: Vec<Vec<bool>>,
    /// The key/value groups that they read, likewise.
    pub groups: Vec<Vec<bool>>,
    /// What the change of the rows is multiplied by.
    pub scale: f64,
}

impl Donor {
    fn has(&self, Matrix { role, layer_index, index }: Matrix) -> bool {
        let chosen = if role == Role::Query { &self.queries } else { &self.groups };
        chosen.get(layer_index).and_then(|layer| layer.get(index)).copied().unwrap_or(false)
    }
}

/// Writes the weights of `base` with the chosen heads of the donors into `folder`, which exists and is empty: a temporary
/// one of the caller, `python/alps/graft.py`, which renames it when all is written. Returns
/// the bytes of the rows that were overwritten.
///
/// # Errors
///
/// Those of [`OpenedModel::open`]; [`Error::Pair`] if a donor is of another model or other sizes, or lacks a bias that
/// the base has; [`Error::Model`] if rows of the base cannot be overwritten, since they are quantised or those of an
/// adapter, or if a donor is quantised; [`Error::Interrupted`] if the caller cancels it.
pub fn graft(
    base: &ModelPath,
    donors: &[Donor],
    component: Option<Component>,
    folder: &Path,
    progress: &Progress,
) -> Result<u64> {
    let base = OpenedModel::open(base, component)?;
    check_stored_floats(&base)?;
    let mut opened = Vec::new();
    for donor in donors {
        let model = OpenedModel::open(&donor.model, component)?;
        check_pair(&base, &model)?;
        if let Some(scheme) = model.quantisation() {
            let problem = format!(
                "the weights are quantised ({scheme}); expected floating-point numbers, since what quantisation \
                 rounded would be part of the graft. Dequantise them first"
            );
            return Err(Error::model(model.path(), problem));
        }
        opened.push((donor, model));
    }
    let mut places = places(&base, &opened)?;
    let files: Vec<PathBuf> = base.checkpoint().files().map(Path::to_path_buf).collect();
    let total = (0..files.len()).map(|file| base.checkpoint().file_length(file)).sum();
    progress.total.store(total, Ordering::Relaxed);
    let beside = base.checkpoint().entry_file().parent().unwrap_or(Path::new(""));
    let mut bytes = 0;
    for (number, file) in files.iter().enumerate() {
        let copy = folder.join(file.strip_prefix(beside).unwrap_or(file));
        let parent = copy.parent().unwrap_or(folder);
        fs::create_dir_all(parent).map_err(|error| Error::io(parent, error))?;
        if !fetch_file(base.checkpoint(), number, &copy, progress)? {
            copy_file(file, &copy, progress)?;
        }
        let into = OpenOptions::new().write(true).open(&copy).map_err(|error| Error::io(&copy, error))?;
        for place in places.remove(&number).unwrap_or_default() {
            progress.check_cancelled()?;
            bytes += place.write(&base, &opened, &copy, &into)?;
        }
        into.sync_all().map_err(|error| Error::io(&copy, error))?;
    }
    base.check_unchanged()?;
    opened.iter().try_for_each(|(_, model)| model.check_unchanged())?;
    Ok(bytes)
}

/// Copies a file of the checkpoint that is in a store to the new file `to`. Returns whether it is in a store.
fn fetch_file(checkpoint: &Checkpoint, file: usize, to: &Path, progress: &Progress) -> Result<bool> {
    let refusal = |error| Error::io(to, error);
    let mut target: Option<File> = None;
    checkpoint.fetch_file(file, |bytes| {
        progress.check_cancelled()?;
        let target = match &mut target {
            Some(target) => target,
            None => target.insert(File::create_new(to).map_err(refusal)?),
        };
        target.write_all(bytes).map_err(refusal)?;
        progress.done.fetch_add(bytes.len() as u64, Ordering::Relaxed);
        Ok(())
    })
}

/// Refuses a model whose weights are not stored as they are used.
fn check_stored_floats(model: &OpenedModel) -> Result<()> {
    let how = match (model.adapted(), model.quantisation()) {
        (Some(_), _) => "the weights are those of a base changed by an adapter".to_owned(),
        (None, Some(scheme)) => format!("the weights are quantised ({scheme})"),
        (None, None) => return Ok(()),
    };
    let problem = format!(
        "{how}: no rows can be put among them; expected a checkpoint of floating-point numbers. Merge the adapter or \
         dequantise it first"
    );
    Err(Error::model(model.path(), problem))
}

/// Some rows of a tensor of the base, and the donors that have them in their set.
struct Place<'m> {
    matrix: Matrix,
    projection: &'m Projection,
    /// The rows of the projection.
    rows: Range<usize>,
    /// Whether the place is in the bias, which has an entry for each row, and not in the weight.
    is_bias: bool,
    name: &'m str,
    tensor: &'m Tensor,
    dtype: Dtype,
    /// The positions of the donors.
    donors: Vec<usize>,
}

/// The matrix of a query head, or the key or value matrix of a group.
#[derive(Clone, Copy)]
struct Matrix {
    role: Role,
    layer_index: usize,
    index: usize,
}

impl Matrix {
    fn rows_in(self, model: &OpenedModel) -> Option<ProjectionRows<'_>> {
        model.attention().projection_rows(self.role, self.layer_index, self.index)
    }

    fn has_bias(self, model: &OpenedModel) -> bool {
        self.rows_in(model).is_some_and(|slice| model.bias_tensor(slice.projection).is_some())
    }
}

/// Every chosen place, by the number of the base's file that has it.
fn places<'m>(
    base: &'m OpenedModel,
    donors: &[(&Donor, OpenedModel)],
) -> Result<BTreeMap<usize, Vec<Place<'m>>>> {
    let mut places: BTreeMap<usize, Vec<Place<'m>>> = BTreeMap::new();
    let mut add =
        |matrix, slice: &ProjectionRows<'m>, is_bias, (name, tensor): (&'m str, &'m Tensor), donors| {
            let dtype = Dtype::from_stored(tensor.dtype).ok_or_else(|| {
                let problem =
                    format!("tensor {} is stored as {}; expected numbers", quote(name), tensor.dtype);
                Error::model(base.path(), problem)
            })?;
            let (projection, rows) = (slice.projection, slice.rows.clone());
            let place = Place { matrix, projection, rows, is_bias, name, tensor, dtype, donors };
            places.entry(tensor.file).or_default().push(place);
            Ok(())
        };
    for (layer_index, sizes) in base.geometry().layers.iter().enumerate() {
        for role in sizes.own_roles().iter().copied() {
            for index in 0..sizes.count(role) {
                let matrix = Matrix { role, layer_index, index };
                let chosen: Vec<usize> =
                    (0..donors.len()).filter(|donor| donors[*donor].0.has(matrix)).collect();
                let Some(slice) = matrix.rows_in(base).filter(|_| !chosen.is_empty()) else { continue };
                let weight = base.weight_tensor(slice.projection)?;
                let bias = base.bias_tensor(slice.projection);
                for donor in &chosen {
                    check_bias(base, &donors[*donor].1, matrix)?;
                }
                add(matrix, &slice, false, weight, chosen.clone())?;
                if let Some(bias) = bias {
                    add(matrix, &slice, true, bias, chosen)?;
                }
            }
        }
    }
    Ok(places)
}

/// Refuses a donor that has no bias where the base has one, or the other way round.
fn check_bias(base: &OpenedModel, donor: &OpenedModel, matrix: Matrix) -> Result<()> {
    let (with, without) = match (matrix.has_bias(base), matrix.has_bias(donor)) {
        (true, false) => (base, donor),
        (false, true) => (donor, base),
        _ => return Ok(()),
    };
    let module = matrix.rows_in(without).map_or("", |slice| &slice.projection.name);
    let problem = format!(
        "{} has no bias, but that of {} has one; expected two states of one model",
        quote(module),
        with.path().display()
    );
    Err(Error::model(without.path(), problem))
}

impl Place<'_> {
    /// The numbers that a model has here.
    fn read(&self, model: &OpenedModel) -> Result<StoredNumbers> {
        let Matrix { role, layer_index, index } = self.matrix;
        let found = match self.matrix.rows_in(model) {
            Some(slice) if self.is_bias => model.bias_entries(slice.projection, &slice.rows)?,
            _ => model.matrix(role, layer_index, index).map(|matrix| matrix.stored()).transpose()?,
        };
        found.ok_or_else(|| Error::model(model.path(), format!("there is nothing for {}", quote(self.name))))
    }

    /// Overwrites the rows in the copy. Returns the bytes that were written.
    fn write(
        &self,
        base: &OpenedModel,
        donors: &[(&Donor, OpenedModel)],
        path: &Path,
        file: &File,
    ) -> Result<u64> {
        let mut changes = Vec::new();
        for (donor, model) in self.donors.iter().map(|donor| &donors[*donor]) {
            changes.push((self.read(model)?, donor.scale));
        }
        let values = combine(&self.read(base)?, &changes, self.dtype);
        let size = self.dtype.size();
        let put = |bytes: &[u8], entry: usize| {
            let start = self.tensor.offset + (entry * size) as u64;
            write_at(file, bytes, start).map_err(|error| Error::io(path, error))
        };
        let Projection { in_features, out_features, orientation, .. } = *self.projection;
        match (self.is_bias, orientation) {
            (true, _) => put(&values, self.rows.start)?,
            (false, Orientation::OutIn) => put(&values, self.rows.start * in_features)?,
            (false, Orientation::InOut) => {
                let mut piece = vec![0; self.rows.len() * size];
                for column in 0..in_features {
                    for (row, into) in piece.chunks_exact_mut(size).enumerate() {
                        let from = (row * in_features + column) * size;
                        into.copy_from_slice(&values[from..from + size]);
                    }
                    put(&piece, column * out_features + self.rows.start)?;
                }
            }
        }
        Ok(values.len() as u64)
    }
}

fn write_at(mut file: &File, bytes: &[u8], start: u64) -> io::Result<()> {
    file.seek(SeekFrom::Start(start))?;
    file.write_all(bytes)
}
