//! What a scan is asked for.

use std::thread::available_parallelism;

use crate::attention::Component;
use crate::error::{Error, Result};
use crate::simd::Instructions;

/// What the weight vector of a head is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// The query, key and value weights one after the other, as in the authors' code.
    Qkv,
    /// Q^T (K V^T), equation 5 of the paper.
    Product,
}

/// How to scan.
#[derive(Clone, Debug)]
pub struct Options {
    /// What the weight vector of a head is.
    pub form: Form,
    /// Whose heads; without one, the text decoder's, else the encoder's, else those of the only tower there is.
    pub component: Option<Component>,
    /// The temperature of the softmax.
    pub temperature: f64,
    /// Whether to compute the statistic that needs a sort.
    pub sorted: bool,
    /// How many threads; as many as there are cores, if none is given.
    pub threads: Option<usize>,
    /// Bytes read at a time. No result depends on it.
    pub buffer: usize,
    /// Whether bytes that are in memory may be looked at there, where that can be done, instead of being copied. No
    /// result depends on it.
    pub map: bool,
    /// The vector instructions. No result depends on them.
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
            buffer: 256 << 10,
            map: true,
            instructions: Instructions::best(),
        }
    }
}

impl Options {
    /// How many threads to start, once the numbers were found to be of their domains.
    pub(crate) fn checked_threads(&self) -> Result<usize> {
        let temperature = self.temperature;
        if !(1e-6..=1e6).contains(&temperature) {
            return Err(Error::Argument(format!(
                "the temperature is {temperature}; expected a number from 1e-6 to 1e6"
            )));
        }
        match self.threads {
            Some(threads @ 1..=4096) => Ok(threads),
            Some(threads) => Err(Error::Argument(format!("threads is {threads}; expected 1 to 4096"))),
            None => Ok(available_parallelism().map_or(1, usize::from)),
        }
    }
}
