//! The options of a scan.

use std::thread::available_parallelism;

use crate::attention::Component;
use crate::checkpoint::TransferLimits;
use crate::error::{Error, Result};
use crate::simd::Instructions;
use crate::statistics::{STATISTICS, Statistic};

/// What the weight vector of a head is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// The query, key and value weights one after the other, as in the authors' code.
    Qkv,
    /// Q^T (K V^T), equation 5 of the paper.
    Product,
}

/// The options of a scan.
#[derive(Clone, Debug)]
pub struct Options {
    /// What the weight vector of a head is.
    pub form: Form,
    /// The component whose heads are scored; without one, the first of [`Component::ALL`] that the model has.
    pub component: Option<Component>,
    /// The temperature of the softmax.
    pub temperature: f64,
    /// Whether to compute the statistic that needs a sort.
    pub sorted: bool,
    /// The number of threads; by default one for each available core.
    pub threads: Option<usize>,
    /// The bytes of a matrix that are read and summed at a time. No result depends on it.
    pub piece: usize,
    /// Whether files in the page cache may be mapped instead of copied, which installs a process-wide handler of SIGBUS
    /// while they are mapped. No result depends on it. In Python ALPS_MMAP sets the default (`python/alps/scan.py`).
    pub mmap: bool,
    /// The bounds of what is fetched ahead of files that are not on this machine. No result depends on them.
    pub transfers: TransferLimits,
    /// The vector instructions. No bit of a result depends on them, unless they lack fused multiply-add, which changes
    /// a score by less than 5e-7 of it.
    pub instructions: Instructions,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            form: Form::Qkv,
            component: None,
            temperature: 1.0,
            sorted: false,
            threads: None,
            piece: 256 << 10,
            mmap: true,
            transfers: TransferLimits::default(),
            instructions: Instructions::best(),
        }
    }
}

impl Options {
    /// The statistics that a scan computes.
    pub(super) fn computed_statistics(&self) -> impl Iterator<Item = &'static Statistic> {
        let (is_product, sorted) = (self.form == Form::Product, self.sorted);
        STATISTICS.iter().filter(move |statistic| {
            !(statistic.of_stored_entries && is_product) && (!statistic.on_request || sorted)
        })
    }

    /// Their names.
    pub(super) fn statistics(&self) -> impl Iterator<Item = &'static str> {
        self.computed_statistics().map(|statistic| statistic.name)
    }

    /// Fails if an option is out of its domain.
    pub(crate) fn check(&self) -> Result<()> {
        let temperature = self.temperature;
        if !(1e-6..=1e6).contains(&temperature) {
            return Err(Error::Argument(format!(
                "the temperature is {temperature}; expected a number from 1e-6 to 1e6"
            )));
        }
        match self.threads {
            None | Some(1..=4096) => Ok(()),
            Some(threads) => Err(Error::Argument(format!("threads is {threads}; expected 1 to 4096"))),
        }
    }

    /// The number of threads to start. Where none is given, the system is asked, which reads several files.
    pub(super) fn thread_count(&self) -> usize {
        self.threads.unwrap_or_else(|| available_parallelism().map_or(1, usize::from))
    }
}
