//! Encodes many texts on several threads into one flat buffer of ids.

use std::borrow::Cow;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::sync::Mutex;
use std::time::Instant;

use pyo3::buffer::PyBuffer;
use pyo3::exceptions::{PyRuntimeError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::{PyByteArray, PyString};

use crate::encoder::{Encoder, Workspace};
use crate::{as_string, without_surrogates, BATCH_BYTES, PATIENCE};

type Buffers<'py> = (Bound<'py, PyByteArray>, Bound<'py, PyByteArray>);

/// Encodes batches of texts on several threads.
#[pyclass(frozen, name = "Encoder")]
pub struct PyEncoder {
    encoder: Encoder,
    first_id: Option<u32>,
    num_threads: usize,
    spaces: Mutex<Vec<Workspace>>, // of no thread at the moment; what they have cached serves the next batch
}

#[pymethods]
impl PyEncoder {
    #[new]
    #[pyo3(signature = (tokens, merges, pattern=None, first_id=None, num_threads=1))]
    fn new(
        tokens: Vec<(Vec<u8>, u32)>,
        merges: Vec<(u32, u32, u32)>,
        pattern: Option<&str>,
        first_id: Option<u32>,
        num_threads: usize,
    ) -> PyResult<Self> {
        let encoder = Encoder::new(pattern, tokens, merges).map_err(PyValueError::new_err)?;
        Ok(PyEncoder { encoder, first_id, num_threads: num_threads.max(1), spaces: Mutex::default() })
    }

    /// Returns (ids as int32, offsets as int64), both as bytes in native order.
    fn encode_batch<'py>(&self, py: Python<'py>, texts: Vec<Bound<'py, PyAny>>) -> PyResult<Buffers<'py>> {
        let held = texts.iter().map(|item| as_utf8(as_string(item)?)).collect::<PyResult<Vec<_>>>()?;
        let texts: Vec<&str> = held.iter().map(|text| text.as_ref()).collect();
        self.encode_texts(py, &texts)
    }

    /// The same for a column of text as Arrow holds it: text i is `data[offsets[i]..offsets[i + 1]]`. What is not
    /// UTF-8 becomes U+FFFD.
    fn encode_column<'py>(
        &self,
        py: Python<'py>,
        data: PyBuffer<u8>,
        offsets: PyBuffer<i64>,
    ) -> PyResult<Buffers<'py>> {
        if !data.is_c_contiguous() {
            return Err(PyValueError::new_err("the bytes of a column of text must be contiguous"));
        }
        let offsets = offsets.to_vec(py)?;
        // Safe as long as nobody writes into the column meanwhile: Arrow's buffers are immutable.
        let data = unsafe { std::slice::from_raw_parts(data.buf_ptr() as *const u8, data.item_count()) };
        let mut held = Vec::with_capacity(offsets.len().saturating_sub(1));
        for ends in offsets.windows(2) {
            let Some(text) = data.get(ends[0] as usize..ends[1] as usize) else {
                return Err(PyValueError::new_err("the offsets of a column of text point outside of its bytes"));
            };
            held.push(String::from_utf8_lossy(text));
        }
        let texts: Vec<&str> = held.iter().map(|text| text.as_ref()).collect();
        self.encode_texts(py, &texts)
    }
}

fn as_utf8<'a>(text: &'a Bound<'_, PyString>) -> PyResult<Cow<'a, str>> {
    match text.to_str() {
        Ok(text) => Ok(Cow::Borrowed(text)),
        Err(_) => without_surrogates(text).map(Cow::Owned),
    }
}

/// A stretch of one text, or all of it.
struct Stretch<'t> {
    text: &'t str,
    is_first: bool,
}

/// Consecutive stretches, encoded: their ids, and the length that each text gains by them.
struct Part {
    ids: Vec<u32>,
    lengths: Vec<(bool, usize)>, // of each stretch: whether a text begins with it
}

impl PyEncoder {
    fn encode_texts<'py>(&self, py: Python<'py>, texts: &[&str]) -> PyResult<Buffers<'py>> {
        let parts = self.encode_parts(py, texts)?;
        let total: usize = parts.iter().map(|part| part.ids.len()).sum();
        let ids = PyByteArray::new_with(py, total * 4, |bytes| {
            let ids = parts.iter().flat_map(|part| &part.ids);
            for (place, id) in bytes.chunks_exact_mut(4).zip(ids) {
                place.copy_from_slice(&id.to_ne_bytes());
            }
            Ok(())
        })?;
        let offsets = PyByteArray::new_with(py, (texts.len() + 1) * 8, |bytes| {
            let mut total = 0i64;
            let mut places = bytes.chunks_exact_mut(8);
            for &(begins, length) in parts.iter().flat_map(|part| &part.lengths) {
                if begins {
                    places.next().expect("a place a text").copy_from_slice(&total.to_ne_bytes());
                }
                total += length as i64;
            }
            places.next().expect("and one for the end").copy_from_slice(&total.to_ne_bytes());
            Ok(())
        })?;
        Ok((ids, offsets))
    }

    fn encode_parts(&self, py: Python, texts: &[&str]) -> PyResult<Vec<Part>> {
        let groups = self.groups(texts);
        let (next, stop) = (AtomicUsize::new(0), AtomicBool::new(false));
        if groups.len() == 1 && groups[0].iter().all(|stretch| stretch.text.len() <= 2 * BATCH_BYTES) {
            let only = py.detach(|| self.with_space(|space| self.encode_group(&groups[0], space, &stop)));
            return Ok(vec![only.map_err(PyRuntimeError::new_err)?]);
        }
        let mut parts: Vec<Option<Part>> = groups.iter().map(|_| None).collect();
        let work = |space: &mut Workspace, sender: mpsc::Sender<Result<(usize, Part), String>>| {
            while !stop.load(Ordering::Relaxed) {
                let index = next.fetch_add(1, Ordering::Relaxed);
                let Some(group) = groups.get(index) else { return };
                let outcome = self.encode_group(group, space, &stop).map(|part| (index, part));
                if sender.send(outcome).is_err() {
                    return;
                }
            }
        };
        py.detach(|| {
            std::thread::scope(|scope| {
                let (sender, receiver) = mpsc::channel();
                for _ in 0..self.num_threads.min(groups.len()) {
                    let (work, sender) = (&work, sender.clone());
                    scope.spawn(move || self.with_space(|space| work(space, sender)));
                }
                drop(sender);
                let mut last_look = Instant::now();
                loop {
                    let mut looked = Ok(());
                    match receiver.recv_timeout(PATIENCE) {
                        Ok(Ok((index, part))) => parts[index] = Some(part),
                        Ok(Err(message)) => looked = Err(PyRuntimeError::new_err(message)),
                        Err(RecvTimeoutError::Timeout) => {}
                        Err(RecvTimeoutError::Disconnected) => return Ok(()),
                    }
                    if looked.is_ok() && last_look.elapsed() >= PATIENCE {
                        looked = Python::attach(|py| py.check_signals());
                        last_look = Instant::now();
                    }
                    if looked.is_err() {
                        stop.store(true, Ordering::Relaxed);
                        return looked;
                    }
                }
            })
        })?;
        Ok(parts.into_iter().map(|part| part.expect("every group is encoded")).collect())
    }

    fn with_space<T>(&self, work: impl FnOnce(&mut Workspace) -> T) -> T {
        let mut space = self.spaces.lock().unwrap().pop().unwrap_or_else(Workspace::new);
        let outcome = work(&mut space);
        self.spaces.lock().unwrap().push(space);
        outcome
    }

    /// Stretches of consecutive texts, about `BATCH_BYTES` a group.
    fn groups<'t>(&self, texts: &[&'t str]) -> Vec<Vec<Stretch<'t>>> {
        let (mut groups, mut group, mut size) = (Vec::new(), Vec::new(), 0);
        for &text in texts {
            let parts = self.encoder.splitter().parts(text, BATCH_BYTES);
            let parts = parts.chain(text.is_empty().then_some(text)); // an empty text has its first token all the same
            for (number, text) in parts.enumerate() {
                group.push(Stretch { text, is_first: number == 0 });
                size += text.len() + 1;
                if size >= BATCH_BYTES {
                    groups.push(std::mem::take(&mut group));
                    size = 0;
                }
            }
        }
        groups.push(group);
        groups
    }

    fn encode_group(&self, group: &[Stretch], space: &mut Workspace, stop: &AtomicBool) -> Result<Part, String> {
        let bytes: usize = group.iter().map(|stretch| stretch.text.len() + 4).sum();
        let mut part = Part { ids: Vec::with_capacity(bytes / 4), lengths: Vec::with_capacity(group.len()) };
        for stretch in group {
            let before = part.ids.len();
            if stretch.is_first {
                part.ids.extend(self.first_id);
            }
            self.encoder.encode(stretch.text, space, &mut part.ids, stop)?;
            part.lengths.push((stretch.is_first, part.ids.len() - before));
        }
        Ok(part)
    }
}
