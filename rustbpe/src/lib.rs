use pyo3::prelude::*;

#[pymodule]
fn _rustbpe(_module: &Bound<'_, PyModule>) -> PyResult<()> {
    Ok(())
}
