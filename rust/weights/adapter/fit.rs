//! Checks an adapter's tensors against the module that they change, and makes the change of them.

use std::collections::BTreeMap;

use super::Adapter;
use super::adapted_matrix::{RowChange, WeightDelta};
use super::config::{AdapterKind, LoraConfig, RankAndScale};
use super::factors::{FactorMatrix, FactorTensor};
use super::tensors::ModuleTensors;
use crate::attention::{Orientation, Projection};
use crate::checkpoint::Tensor;
use crate::error::{Error, Result, quote};
use crate::memory;
use crate::weights::float_matrix;

/// A module of the base with the tensors that change it.
pub(super) struct ChangedModule<'a> {
    pub(super) adapter: &'a Adapter,
    /// The name of the module in the adapter.
    pub(super) name: &'a str,
    pub(super) tensors: &'a ModuleTensors,
    /// The out and in features of the module in the base.
    pub(super) features: [usize; 2],
    /// The ranks and scales of the changes, if they have ranks, by the names in the adapter.
    pub(super) ranks: &'a BTreeMap<String, RankAndScale>,
    /// How the base stores the module.
    pub(super) orientation: Orientation,
}

impl<'a> ChangedModule<'a> {
    /// The change of the module, once the tensors fit it.
    pub(super) fn change(&self) -> Result<RowChange> {
        match &self.adapter.config.kind {
            AdapterKind::Lora(lora) => self.lora(lora),
            AdapterKind::Loha(_) => self.loha(),
            AdapterKind::Lokr(_) => self.lokr(),
            AdapterKind::Ia3 => self.ia3(),
            AdapterKind::Alps => self.alps(),
        }
    }

    /// LoRA: s B A.
    fn lora(&self, lora: &LoraConfig) -> Result<RowChange> {
        let (rank, scale) = self.rank_and_scale()?;
        let delta = WeightDelta::Matrix(self.product("lora_B.weight", "lora_A.weight", rank)?);
        let magnitude = "lora_magnitude_vector";
        let magnitude = match (lora.dora, self.tensors.own(magnitude).is_some()) {
            (false, false) => None,
            (true, _) if self.shape(magnitude)? == [self.features[0]] => {
                Some(self.named(magnitude, self.features[0], 1)?)
            }
            (true, _) => Some(self.factor(magnitude, self.features[0], 1)?),
            (false, true) => {
                let name = quote(self.tensor(magnitude)?);
                let problem = "although `use_dora` is not set in the configuration";
                return Err(self.refusal(format!("there is a tensor {name}, {problem}")));
            }
        };
        Ok(RowChange::Add { delta, scale, magnitude })
    }

    /// LoHa: two products of low rank, multiplied entry by entry.
    fn loha(&self) -> Result<RowChange> {
        let (rank, scale) = self.rank_and_scale()?;
        let first = self.product("hada_w1_a", "hada_w1_b", rank)?;
        let second = self.product("hada_w2_a", "hada_w2_b", rank)?;
        Ok(RowChange::Add { delta: WeightDelta::Hadamard(first, second), scale, magnitude: None })
    }

    /// LoKr: the Kronecker product of two matrices, each of which may be a product of low rank.
    fn lokr(&self) -> Result<RowChange> {
        let (rank, scale) = self.rank_and_scale()?;
        let matrix = |whole: &'static str, left: &'static str, right: &'static str| -> Result<FactorMatrix> {
            if self.tensors.own(whole).is_some() {
                let [rows, columns] = self.sizes(whole)?;
                return Ok(FactorMatrix::Stored(self.factor(whole, rows, columns)?));
            }
            let ([rows, _], [_, columns]) = (self.sizes(left)?, self.sizes(right)?);
            Ok(FactorMatrix::Product(self.factor(left, rows, rank)?, self.factor(right, rank, columns)?))
        };
        let first = matrix("lokr_w1", "lokr_w1_a", "lokr_w1_b")?;
        let second = matrix("lokr_w2", "lokr_w2_a", "lokr_w2_b")?;
        let found = [first.rows().checked_mul(second.rows()), first.columns().checked_mul(second.columns())];
        let expected = self.features;
        if found != expected.map(Some) {
            return Err(self.refusal(format!(
                "its weights are {expected:?} (out, in) in the base, but the product of the factors [{}, {}] and \
                 [{}, {}] is not",
                first.rows(),
                first.columns(),
                second.rows(),
                second.columns()
            )));
        }
        Ok(RowChange::Add { delta: WeightDelta::Kronecker(first, second), scale, magnitude: None })
    }

    /// IA3: a number for each row, or for each column in a feed-forward module.
    fn ia3(&self) -> Result<RowChange> {
        let name = "ia3_l";
        let [out, input] = self.features;
        match self.shape(name)? {
            &[rows, 1] if rows == out => Ok(RowChange::ScaleRows(self.factor(name, out, 1)?)),
            &[1, columns] if columns == input => Ok(RowChange::ScaleColumns(self.factor(name, 1, input)?)),
            shape => Err(self.tensor_refusal(
                name,
                format!("should have the shape [{out}, 1] or [1, {input}], but has the shape {shape:?}"),
            )),
        }
    }

    /// The adapters of this project: rows that replace those of a list of indices. They are stored in the module's
    /// orientation.
    fn alps(&self) -> Result<RowChange> {
        let [out, input] = self.features;
        let checkpoint = &self.adapter.factors.checkpoint;
        let indices = self.find("alps_indices")?;
        let refusal = |problem: String| self.tensor_refusal("alps_indices", problem);
        let [count] = indices.shape[..] else {
            return Err(refusal(format!("should be a list, but has the shape {:?}", indices.shape)));
        };
        if indices.dtype != safetensors::Dtype::I64 {
            return Err(refusal(format!(
                "should hold numbers of rows as I64, but is stored as {}",
                indices.dtype
            )));
        }
        let module = Projection {
            name: self.tensor("alps_rows")?.to_owned(),
            orientation: self.orientation,
            out_features: count,
            in_features: input,
        };
        let (expected, found) = (module.stored_shape(), self.shape("alps_rows")?);
        if found != expected {
            let reason = format!("{} lists {count} rows", quote(self.tensor("alps_indices")?));
            let problem =
                format!("should have the shape {expected:?} ({reason}), but has the shape {found:?}");
            return Err(self.tensor_refusal("alps_rows", problem));
        }
        let rows = float_matrix::open(checkpoint, &module)?;
        let mut bytes = memory::zeros(count.saturating_mul(size_of::<i64>()))
            .map_err(|error| Error::io(self.adapter.path(), error))?;
        checkpoint.read_at(indices, 0, &mut bytes)?;
        let mut sources = vec![None; out];
        for (source, bytes) in bytes.as_chunks().0.iter().enumerate() {
            let row = i64::from_le_bytes(*bytes);
            match usize::try_from(row).ok().and_then(|row| sources.get_mut(row)) {
                Some(place @ None) => *place = Some(source),
                Some(Some(_)) => return Err(refusal(format!("lists row {row} twice"))),
                None => return Err(refusal(format!("lists row {row}, but the module has {out} rows"))),
            }
        }
        Ok(RowChange::Replace { rows, sources })
    }

    /// The name of the module's tensor with this ending.
    fn tensor(&self, ending: &str) -> Result<&'a str> {
        self.tensors.own(ending).ok_or_else(|| {
            self.refusal(format!("there is {}, but no tensor `{ending}`", quote(self.tensors.any_name())))
        })
    }

    fn find(&self, ending: &str) -> Result<&'a Tensor> {
        self.adapter.factors.tensor(self.tensor(ending)?)
    }

    fn shape(&self, ending: &str) -> Result<&'a [usize]> {
        self.find(ending).map(|tensor| &*tensor.shape)
    }

    /// The rows and columns of a matrix.
    fn sizes(&self, ending: &str) -> Result<[usize; 2]> {
        self.shape(ending)?.try_into().map_err(|_| {
            let found = self.shape(ending).unwrap_or_default();
            self.refusal(format!("tensor `{ending}` should be a matrix, but has the shape {found:?}"))
        })
    }

    fn rank_and_scale(&self) -> Result<(usize, f64)> {
        let RankAndScale { rank, scale } = self.ranks[self.name];
        if rank.fract() == 0.0 && (1.0..=1e9).contains(&rank) {
            return Ok((rank as usize, scale));
        }
        Err(self
            .refusal(format!("its rank should be a whole number from 1, but is {rank} by the configuration")))
    }

    /// A product of the size of the module's weights, of factors [out, rank] and [rank, in].
    fn product(&self, left: &str, right: &str, rank: usize) -> Result<FactorMatrix> {
        let [out, input] = self.features;
        Ok(FactorMatrix::Product(self.factor(left, out, rank)?, self.factor(right, rank, input)?))
    }

    /// A factor, which has to have this shape.
    fn factor(&self, ending: &str, rows: usize, columns: usize) -> Result<FactorTensor> {
        let found = self.shape(ending)?;
        if found != [rows, columns] {
            let reason = format!("the module's weights are {:?} in the base", self.features);
            return Err(self.tensor_refusal(
                ending,
                format!("should have the shape [{rows}, {columns}] ({reason}), but has the shape {found:?}"),
            ));
        }
        self.named(ending, rows, columns)
    }

    fn named(&self, ending: &str, rows: usize, columns: usize) -> Result<FactorTensor> {
        Ok(FactorTensor { name: self.tensor(ending)?.to_owned(), rows, columns })
    }

    fn tensor_refusal(&self, ending: &str, problem: String) -> Error {
        let name = self.tensor(ending).unwrap_or(ending);
        self.refusal(format!("tensor {} {problem}", quote(name)))
    }

    fn refusal(&self, problem: impl Into<String>) -> Error {
        self.adapter.factors.refusal(format!("module {}: {}", quote(self.name), problem.into()))
    }
}
