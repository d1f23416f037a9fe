//! `nanochat_hf._rustbpe`: trains byte-pair encodings and encodes corpora. The Python side is `nanochat_hf.tokenizer`.
//!
//! - `train` counts words (`count`, `words`) and learns merges (`merge`).
//! - `Encoder` (`batch_encoder`) runs `encoder` on several threads. They share a table of `short_tokens` and a
//!   `word_cache`.
//! - Both split text with `splitter`, which uses `blocks` and `rules`.
//! - `python` holds what both need at the border to Python, `processor` what depends on the processor.

mod batch_encoder;
mod blocks;
mod count;
mod encoder;
mod merge;
mod processor;
mod python;
mod rules;
mod short_tokens;
mod splitter;
mod train;
mod word_cache;
mod words;

use pyo3::exceptions::{PyRuntimeError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyList, PyTuple};

use rules::{DEFAULT_PATTERN, KNOWN_PATTERNS};
use splitter::Splitter;

/// Splits one text into pieces. Only the tests call it. `regex` forces the regex engine.
#[pyfunction]
#[pyo3(signature = (text, pattern=None, regex=false))]
fn split<'py>(py: Python<'py>, text: &str, pattern: Option<&str>, regex: bool) -> PyResult<Bound<'py, PyList>> {
    let splitter = if regex { Splitter::regex(pattern.unwrap_or(DEFAULT_PATTERN)) } else { Splitter::new(pattern) };
    let mut pieces = Vec::new();
    let splitter = splitter.map_err(PyValueError::new_err)?;
    splitter
        .split(text, true, |text, mut start, ends| {
            for &end in ends {
                pieces.push(&text[start..end]);
                start = end;
            }
            true
        })
        .map_err(PyRuntimeError::new_err)?;
    PyList::new(py, pieces.into_iter().map(|piece| PyBytes::new(py, piece)))
}

#[pymodule]
fn _rustbpe(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add("DEFAULT_PATTERN", DEFAULT_PATTERN)?;
    module.add("KNOWN_PATTERNS", PyTuple::new(module.py(), KNOWN_PATTERNS.map(|known| known.0))?)?;
    module.add_function(wrap_pyfunction!(train::train, module)?)?;
    module.add_function(wrap_pyfunction!(split, module)?)?;
    module.add_class::<batch_encoder::PyEncoder>()?;
    Ok(())
}
