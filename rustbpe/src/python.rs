//! What training and encoding share at the border to Python: reading strings, and constants for calls in progress.

use std::time::Duration;

use pyo3::exceptions::PyTypeError;
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyString};

/// Bytes of text that a thread gets at once.
pub const BATCH_BYTES: usize = 1 << 20;
/// Time between two checks for Ctrl-C.
pub const POLL_INTERVAL: Duration = Duration::from_millis(100);

/// Casts an item of a list of texts. Raises a `TypeError` if it is not a string.
pub fn as_string<'a, 'py>(item: &'a Bound<'py, PyAny>) -> PyResult<&'a Bound<'py, PyString>> {
    item.cast::<PyString>().map_err(|_| {
        let kind = item.get_type().name().map_or_else(|_| "unknown".into(), |name| name.to_string());
        PyTypeError::new_err(format!("texts must be strings, but one of them is of type {kind}"))
    })
}

/// Converts a string that contains surrogates to UTF-8, as tiktoken does.
///
/// A pair of surrogates becomes its character. A surrogate without its pair becomes U+FFFD.
pub fn without_surrogates(text: &Bound<'_, PyString>) -> PyResult<String> {
    let units = text.call_method1("encode", ("utf-16-le", "surrogatepass"))?.cast_into::<PyBytes>()?;
    let units: Vec<u16> = units.as_bytes().chunks_exact(2).map(|two| u16::from_le_bytes([two[0], two[1]])).collect();
    Ok(String::from_utf16_lossy(&units))
}
