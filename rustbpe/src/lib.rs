//! `nanochat_hf._rustbpe`: trains byte-pair encodings and encodes corpora. The Python side is `nanochat_hf.tokenizer`.

mod count;
mod encoder;
mod merge;
mod splitter;
mod words;

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use pyo3::exceptions::{PyRuntimeError, PyTypeError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::{PyByteArray, PyBytes, PyIterator, PyList, PyString};

use count::{Batch, Counter};
use encoder::{Encoder, Workspace};
use merge::Merger;
use splitter::Splitter;
use words::WordTable;

const BATCH_BYTES: usize = 1 << 20;
const EPOCH_BYTES: usize = 128 << 20; // between two looks at the cap on distinct words
const PATIENCE: Duration = Duration::from_millis(100); // between two looks at Ctrl-C

/// Appends a Python string to a batch; half a surrogate pair becomes U+FFFD, as in tiktoken.
fn push_text(batch: &mut Batch, item: &Bound<'_, PyAny>) -> PyResult<()> {
    let Ok(text) = item.cast::<PyString>() else {
        let kind = item.get_type().name()?;
        return Err(PyTypeError::new_err(format!("texts must be strings, but one of them is of type {kind}")));
    };
    // A copy through bytes: `to_str` would leave a second, UTF-8 copy inside every string that is not ASCII.
    match text.encode_utf8() {
        Ok(bytes) => batch.push(std::str::from_utf8(bytes.as_bytes()).expect("Python encodes UTF-8")),
        Err(_) => batch.push(&text.to_string_lossy()),
    }
    Ok(())
}

/// Calls `progress(stage, done, total)` at most ten times a second; `total` is 0 where it is not known.
struct Progress<'py> {
    py: Python<'py>,
    callback: Option<Bound<'py, PyAny>>,
    last: Instant,
}

impl Progress<'_> {
    fn due(&self) -> bool {
        self.last.elapsed() >= PATIENCE
    }

    fn report(&mut self, stage: &str, done: usize, total: usize) -> PyResult<()> {
        self.py.check_signals()?;
        if let Some(callback) = &self.callback {
            callback.call1((stage, done, total))?;
        }
        self.last = Instant::now();
        Ok(())
    }
}

/// Pulls texts from a Python iterator while the workers count; returns the distinct words and their counts.
fn count_words(
    counter: &Counter,
    texts: &Bound<'_, PyIterator>,
    max_words: usize,
    progress: &mut Progress,
) -> PyResult<(WordTable, usize, u64)> {
    let py = texts.py();
    let (mut total, mut bytes, mut forgotten, mut epoch) = (WordTable::new(), 0, 0u64, 0);
    let mut batch = Batch::default();
    let mut texts = texts.clone();
    loop {
        let item = texts.next().transpose()?;
        let ended = item.is_none();
        if let Some(item) = item {
            push_text(&mut batch, &item)?;
        }
        if batch.text.len() >= BATCH_BYTES || (ended && !batch.ends.is_empty()) {
            bytes += batch.text.len();
            while !py.detach(|| counter.offer(&mut batch, PATIENCE)).map_err(PyRuntimeError::new_err)? {
                progress.report("count", bytes, 0)?;
            }
        }
        if ended || bytes - epoch >= EPOCH_BYTES {
            epoch = bytes;
            while !py.detach(|| counter.drained(PATIENCE)).map_err(PyRuntimeError::new_err)? {
                progress.report("count", bytes, 0)?;
            }
            py.detach(|| {
                counter.collect(&mut total);
                if total.weight() > max_words {
                    forgotten = forgotten.max(total.forget_rare(max_words));
                }
            });
        }
        if progress.due() || ended {
            progress.report("count", bytes, 0)?;
        }
        if ended {
            return Ok((total, bytes, forgotten));
        }
    }
}

/// Trains on an iterator of strings.
///
/// Returns (merges as pairs of ids in order, bytes read, distinct words, highest count forgotten by the cap).
#[pyfunction]
#[pyo3(signature = (texts, num_merges, pattern=None, num_threads=1, max_words=16_000_000, progress=None))]
#[allow(clippy::type_complexity)]
fn train<'py>(
    py: Python<'py>,
    texts: &Bound<'py, PyIterator>,
    num_merges: usize,
    pattern: Option<&str>,
    num_threads: usize,
    max_words: usize,
    progress: Option<Bound<'py, PyAny>>,
) -> PyResult<(Vec<(u32, u32)>, usize, usize, u64)> {
    let splitter = Splitter::new(pattern).map_err(PyValueError::new_err)?;
    let counter = Counter::new(&splitter, num_threads.max(1));
    let mut progress = Progress { py, callback: progress, last: Instant::now() };
    let (table, bytes, forgotten) = std::thread::scope(|scope| {
        for worker in 0..num_threads.max(1) {
            let counter = &counter;
            scope.spawn(move || counter.work(worker));
        }
        let outcome = count_words(&counter, texts, max_words, &mut progress);
        counter.close(outcome.is_err());
        outcome
    })?;
    let words = table.len();
    let merges = learn_merges(table, num_merges, &mut progress)?;
    Ok((merges, bytes, words, forgotten))
}

fn learn_merges(table: WordTable, num_merges: usize, progress: &mut Progress) -> PyResult<Vec<(u32, u32)>> {
    let py = progress.py;
    let mut merger = py.detach(|| Merger::new(table, num_merges)).map_err(PyValueError::new_err)?;
    let mut merges = Vec::with_capacity(num_merges);
    let mut exhausted = false;
    while merges.len() < num_merges && !exhausted {
        progress.report("merge", merges.len(), num_merges)?;
        py.detach(|| {
            let started = Instant::now();
            while merges.len() < num_merges && started.elapsed() < PATIENCE {
                match merger.step() {
                    Some(pair) => merges.push(pair),
                    None => {
                        exhausted = true;
                        break;
                    }
                }
            }
        });
    }
    progress.report("merge", merges.len(), num_merges)?;
    Ok(merges)
}

/// Splits one text; for the tests. `regex` forces the general engine.
#[pyfunction]
#[pyo3(signature = (text, pattern=None, regex=false))]
fn split<'py>(py: Python<'py>, text: &str, pattern: Option<&str>, regex: bool) -> PyResult<Bound<'py, PyList>> {
    let splitter = if regex {
        Splitter::regex(pattern.unwrap_or(splitter::DEFAULT_PATTERN))
    } else {
        Splitter::new(pattern)
    };
    let mut pieces = Vec::new();
    let splitter = splitter.map_err(PyValueError::new_err)?;
    splitter.split(text, true, |piece| pieces.push(piece)).map_err(PyRuntimeError::new_err)?;
    PyList::new(py, pieces.into_iter().map(|piece| PyBytes::new(py, piece)))
}

/// Encodes batches of texts on several threads.
#[pyclass(frozen, name = "Encoder")]
struct PyEncoder {
    encoder: Encoder,
    first_id: Option<u32>,
    num_threads: usize,
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
        Ok(PyEncoder { encoder, first_id, num_threads: num_threads.max(1) })
    }

    /// Returns (ids as int32, offsets as int64), both as bytes in native order.
    fn encode_batch<'py>(
        &self,
        py: Python<'py>,
        texts: Vec<Bound<'py, PyAny>>,
    ) -> PyResult<(Bound<'py, PyByteArray>, Bound<'py, PyByteArray>)> {
        let mut held = Vec::with_capacity(texts.len());
        for item in &texts {
            let Ok(text) = item.cast::<PyString>() else {
                let kind = item.get_type().name()?;
                return Err(PyTypeError::new_err(format!("texts must be strings, but one of them is of type {kind}")));
            };
            held.push(text.to_string_lossy());
        }
        let texts: Vec<&str> = held.iter().map(|text| text.as_ref()).collect();
        let parts = self.encode_parts(py, &texts)?;
        let total: usize = parts.iter().map(|part| part.ids.len()).sum();
        let ids = PyByteArray::new_with(py, total * 4, |bytes| {
            let mut at = 0;
            for part in &parts {
                for id in &part.ids {
                    bytes[at..at + 4].copy_from_slice(&id.to_ne_bytes());
                    at += 4;
                }
            }
            Ok(())
        })?;
        let offsets = PyByteArray::new_with(py, (texts.len() + 1) * 8, |bytes| {
            let (mut at, mut total) = (8, 0i64);
            for length in parts.iter().flat_map(|part| &part.lengths) {
                total += *length as i64;
                bytes[at..at + 8].copy_from_slice(&total.to_ne_bytes());
                at += 8;
            }
            Ok(())
        })?;
        Ok((ids, offsets))
    }
}

/// Consecutive texts of a batch, encoded.
#[derive(Default)]
struct Part {
    ids: Vec<u32>,
    lengths: Vec<usize>,
}

impl PyEncoder {
    fn encode_parts(&self, py: Python, texts: &[&str]) -> PyResult<Vec<Part>> {
        let groups = group_texts(texts, BATCH_BYTES);
        let next = AtomicUsize::new(0);
        let cancelled = AtomicBool::new(false);
        let work = || -> Result<Vec<(usize, Part)>, String> {
            let mut space = Workspace::new();
            let mut done = Vec::new();
            loop {
                let index = next.fetch_add(1, Ordering::Relaxed);
                if index >= groups.len() || cancelled.load(Ordering::Relaxed) {
                    return Ok(done);
                }
                let mut part = Part::default();
                for text in &texts[groups[index].clone()] {
                    let before = part.ids.len();
                    part.ids.extend(self.first_id);
                    self.encoder.encode(text, &mut space, &mut part.ids)?;
                    part.lengths.push(part.ids.len() - before);
                }
                done.push((index, part));
            }
        };
        let mut parts: Vec<(usize, Part)> = py
            .detach(|| -> Result<_, String> {
                std::thread::scope(|scope| {
                    let threads = self.num_threads.min(groups.len().max(1));
                    let others: Vec<_> = (1..threads).map(|_| scope.spawn(work)).collect();
                    let mut all = work()?;
                    for other in others {
                        all.extend(other.join().expect("a worker does not panic")?);
                    }
                    Ok(all)
                })
            })
            .map_err(PyRuntimeError::new_err)?;
        parts.sort_by_key(|part| part.0);
        Ok(parts.into_iter().map(|part| part.1).collect())
    }
}

/// Ranges of consecutive texts of about `bytes` bytes each.
fn group_texts(texts: &[&str], bytes: usize) -> Vec<std::ops::Range<usize>> {
    let (mut groups, mut start, mut size) = (Vec::new(), 0, 0);
    for (index, text) in texts.iter().enumerate() {
        size += text.len() + 1;
        if size >= bytes {
            groups.push(start..index + 1);
            (start, size) = (index + 1, 0);
        }
    }
    if start < texts.len() {
        groups.push(start..texts.len());
    }
    groups
}

#[pymodule]
fn _rustbpe(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add("DEFAULT_PATTERN", splitter::DEFAULT_PATTERN)?;
    module.add_function(wrap_pyfunction!(train, module)?)?;
    module.add_function(wrap_pyfunction!(split, module)?)?;
    module.add_class::<PyEncoder>()?;
    Ok(())
}
