//! Holds an adapter's tensors against the module that they change.

use super::Adapter;
use super::config::{Lora, Ranks};
use super::matrix::{Matrix, Stored};
use super::rows::{Change, Delta};
use super::tensors::Parameters;
use crate::attention::{Module, Orientation};
use crate::checkpoint::Tensor;
use crate::error::quote;
use crate::weights::WeightMatrix;
use crate::weights::float;
use crate::{Error, Result};

/// A module of the base with the tensors that change it.
pub(super) struct Fit<'a, 'b> {
    pub(super) adapter: &'a Adapter,
    /// Its name in the adapter.
    pub(super) module: &'a str,
    pub(super) parameters: &'a Parameters,
    pub(super) base: &'b dyn WeightMatrix,
}

impl<'a> Fit<'a, '_> {
    /// LoRA: s B A.
    pub(super) fn low_rank(&self, lora: &Lora) -> Result<Change> {
        let rank = self.rank(&lora.ranks)?;
        let delta = Delta::Plain(self.product("lora_B.weight", "lora_A.weight", rank)?);
        let magnitude = "lora_magnitude_vector";
        let magnitude = match (lora.dora, self.parameters.own.contains_key(magnitude)) {
            (false, false) => None,
            (true, _) => Some(self.vector(magnitude, self.base.out_features())?),
            (false, true) => {
                return Err(self.refuse(format!(
                    "there is a tensor {}, although `use_dora` is not set in the configuration",
                    quote(self.tensor(magnitude)?)
                )));
            }
        };
        Ok(Change::Add { delta, scale: lora.ranks.scale(self.module), magnitude })
    }

    /// LoHa: two products of low rank, multiplied entry by entry.
    pub(super) fn hadamard(&self, ranks: &Ranks) -> Result<Change> {
        let rank = self.rank(ranks)?;
        let first = self.product("hada_w1_a", "hada_w1_b", rank)?;
        let second = self.product("hada_w2_a", "hada_w2_b", rank)?;
        Ok(Change::Add {
            delta: Delta::Hadamard(first, second),
            scale: ranks.scale(self.module),
            magnitude: None,
        })
    }

    /// LoKr: the Kronecker product of two matrices, each of which may be a product of low rank.
    pub(super) fn kronecker(&self, ranks: &Ranks) -> Result<Change> {
        let rank = self.rank(ranks)?;
        let factor = |whole: &'static str, left: &'static str, right: &'static str| -> Result<Matrix> {
            if self.parameters.own.contains_key(whole) {
                let [rows, columns] = self.sizes(whole)?;
                return Ok(Matrix::Stored(self.stored(whole, rows, columns)?));
            }
            let ([rows, _], [_, columns]) = (self.sizes(left)?, self.sizes(right)?);
            Ok(Matrix::Product(self.stored(left, rows, rank)?, self.stored(right, rank, columns)?))
        };
        let first = factor("lokr_w1", "lokr_w1_a", "lokr_w1_b")?;
        let second = factor("lokr_w2", "lokr_w2_a", "lokr_w2_b")?;
        let found = [first.rows().checked_mul(second.rows()), first.columns().checked_mul(second.columns())];
        let expected = self.base.features();
        if found != expected.map(Some) {
            return Err(self.refuse(format!(
                "its weights are {expected:?} (out, in) in the base, but the product of the factors [{}, {}] and \
                 [{}, {}] is not",
                first.rows(),
                first.columns(),
                second.rows(),
                second.columns()
            )));
        }
        Ok(Change::Add {
            delta: Delta::Kronecker(first, second),
            scale: ranks.scale(self.module),
            magnitude: None,
        })
    }

    /// IA3: a number for each row, or for each column in a feed-forward module.
    pub(super) fn scaling(&self) -> Result<Change> {
        let name = "ia3_l";
        let [out, input] = self.base.features();
        match self.shape(name)? {
            &[rows, 1] if rows == out => Ok(Change::ScaleRows(self.stored(name, out, 1)?)),
            &[1, columns] if columns == input => Ok(Change::ScaleColumns(self.stored(name, 1, input)?)),
            shape => Err(self.refuse(format!(
                "tensor {} should have the shape [{out}, 1] or [1, {input}], but has the shape {shape:?}",
                quote(self.tensor(name)?)
            ))),
        }
    }

    /// The adapters of this project: rows in the place of those that a tensor of indices lists. They are stored
    /// as the module is.
    pub(super) fn rows(&self, orientation: Orientation) -> Result<Change> {
        let [out, input] = self.base.features();
        let checkpoint = &self.adapter.factors.checkpoint;
        let (name, tensor) = (self.tensor("alps_indices")?, self.find("alps_indices")?);
        let [count] = tensor.shape[..] else {
            return Err(self.refuse(format!(
                "tensor {} should be a list, but has the shape {:?}",
                quote(name),
                tensor.shape
            )));
        };
        if tensor.dtype != safetensors::Dtype::I64 {
            return Err(self.refuse(format!(
                "tensor {} should hold numbers of rows as I64, but is stored as {}",
                quote(name),
                tensor.dtype
            )));
        }
        let module = Module {
            name: self.tensor("alps_rows")?.to_owned(),
            orientation,
            out_features: count,
            in_features: input,
        };
        let (expected, found) = (module.stored_shape(), self.shape("alps_rows")?);
        if found != expected {
            return Err(self.refuse(format!(
                "tensor {} should have the shape {expected:?} ({} lists {count} rows), but has the shape {found:?}",
                quote(&module.name),
                quote(name)
            )));
        }
        let rows = float::open(checkpoint, &module)?;
        let mut bytes = vec![0; count * size_of::<i64>()];
        checkpoint.read_at(tensor, 0, &mut bytes)?;
        let mut sources = vec![None; out];
        for (source, bytes) in bytes.as_chunks().0.iter().enumerate() {
            let row = i64::from_le_bytes(*bytes);
            match usize::try_from(row).ok().and_then(|row| sources.get_mut(row)) {
                Some(place @ None) => *place = Some(source),
                Some(Some(_)) => {
                    return Err(self.refuse(format!("tensor {} lists row {row} twice", quote(name))));
                }
                None => {
                    return Err(self.refuse(format!(
                        "tensor {} lists row {row}, but the module has {out} rows",
                        quote(name)
                    )));
                }
            }
        }
        Ok(Change::Rows { rows, sources })
    }

    /// The name of the tensor with this part of the change.
    pub(super) fn tensor(&self, part: &str) -> Result<&'a str> {
        self.parameters.own.get(part).map(|name| &**name).ok_or_else(|| {
            self.refuse(format!("there is {}, but no tensor `{part}`", quote(self.parameters.any_name())))
        })
    }

    fn find(&self, part: &str) -> Result<&'a Tensor> {
        self.adapter.factors.tensor(self.tensor(part)?)
    }

    fn shape(&self, part: &str) -> Result<&'a [usize]> {
        self.find(part).map(|tensor| &*tensor.shape)
    }

    /// The sizes of a matrix.
    fn sizes(&self, part: &str) -> Result<[usize; 2]> {
        self.shape(part)?.try_into().map_err(|_| {
            let found = self.shape(part).unwrap_or_default();
            self.refuse(format!("tensor `{part}` should be a matrix, but has the shape {found:?}"))
        })
    }

    fn rank(&self, ranks: &Ranks) -> Result<usize> {
        let rank = ranks.rank(self.module);
        if rank.fract() == 0.0 && (1.0..=1e9).contains(&rank) {
            return Ok(rank as usize);
        }
        Err(self
            .refuse(format!("its rank should be a whole number from 1, but is {rank} by the configuration")))
    }

    /// What is [out, in] as the module's weights are, by way of [out, rank] and [rank, in].
    fn product(&self, left: &str, right: &str, rank: usize) -> Result<Matrix> {
        let [out, input] = self.base.features();
        Ok(Matrix::Product(self.stored(left, out, rank)?, self.stored(right, rank, input)?))
    }

    fn vector(&self, part: &str, length: usize) -> Result<Stored> {
        if self.shape(part)? == [length] { self.named(part, length, 1) } else { self.stored(part, length, 1) }
    }

    /// A tensor, which has to have this shape.
    fn stored(&self, part: &str, rows: usize, columns: usize) -> Result<Stored> {
        let found = self.shape(part)?;
        if found != [rows, columns] {
            return Err(self.refuse(format!(
                "tensor {} should have the shape [{rows}, {columns}] (the module's weights are [{}, {}] in the base), \
                 but has the shape {found:?}",
                quote(self.tensor(part)?),
                self.base.out_features(),
                self.base.in_features()
            )));
        }
        self.named(part, rows, columns)
    }

    fn named(&self, part: &str, rows: usize, columns: usize) -> Result<Stored> {
        Ok(Stored { name: self.tensor(part)?.to_owned(), rows, columns })
    }

    fn refuse(&self, problem: impl Into<String>) -> Error {
        self.adapter.refuse(format!("module {}: {}", quote(self.module), problem.into()))
    }
}
