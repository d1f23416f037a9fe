//! `nanochat_hf._rustbpe`: trains byte-pair encodings and encodes corpora. The Python side is `nanochat_hf.tokenizer`.

mod batch;
mod blocks;
mod count;
mod encoder;
mod merge;
mod splitter;
mod words;

use std::sync::mpsc::{self, RecvTimeoutError};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use pyo3::exceptions::{PyRuntimeError, PyTypeError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyIterator, PyList, PyString, PyTuple};

use count::{Batch, Counter};
use merge::Merger;
use splitter::Splitter;
use words::WordTable;

const BATCH_BYTES: usize = 1 << 20;
const EPOCH_BYTES: usize = 128 << 20; // between two looks at the cap on distinct words
const PATIENCE: Duration = Duration::from_millis(100); // between two looks at Ctrl-C

fn as_string<'a, 'py>(item: &'a Bound<'py, PyAny>) -> PyResult<&'a Bound<'py, PyString>> {
    item.cast::<PyString>().map_err(|_| {
        let kind = item.get_type().name().map_or_else(|_| "unknown".into(), |name| name.to_string());
        PyTypeError::new_err(format!("texts must be strings, but one of them is of type {kind}"))
    })
}

/// A string with half a surrogate pair in it, as UTF-8: whole pairs become their character, halves U+FFFD, one each.
/// What tiktoken does.
fn without_surrogates(text: &Bound<'_, PyString>) -> PyResult<String> {
    let units = text.call_method1("encode", ("utf-16-le", "surrogatepass"))?.cast_into::<PyBytes>()?;
    let units: Vec<u16> = units.as_bytes().chunks_exact(2).map(|two| u16::from_le_bytes([two[0], two[1]])).collect();
    Ok(String::from_utf16_lossy(&units))
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

    /// Runs `work` on a thread of its own and looks at Ctrl-C meanwhile. Work that is given up ends unseen.
    fn wait_for<T: Send + 'static>(
        &mut self,
        (stage, done, total): (&str, usize, usize),
        work: impl FnOnce() -> T + Send + 'static,
    ) -> PyResult<T> {
        let (sender, receiver) = mpsc::sync_channel(1);
        let receiver = Mutex::new(receiver); // for `detach`, which wants what is shared to be `Sync`
        std::thread::spawn(move || sender.send(work()));
        loop {
            match self.py.detach(|| receiver.lock().unwrap().recv_timeout(PATIENCE)) {
                Ok(outcome) => return Ok(outcome),
                Err(RecvTimeoutError::Timeout) => self.report(stage, done, total)?,
                Err(RecvTimeoutError::Disconnected) => {
                    return Err(PyRuntimeError::new_err("the trainer failed; this is a fault of nanochat_hf"))
                }
            }
        }
    }
}

/// Feeds texts to the counting threads and adds up what they count.
struct Reading<'a, 'py> {
    counter: &'a Counter<'a>,
    progress: &'a mut Progress<'py>,
    batch: Batch,
    total: WordTable,
    max_words: usize,
    bytes: usize,
    epoch: usize, // bytes at the last look at the cap
    forgotten: u64,
}

impl Reading<'_, '_> {
    fn read(&mut self, splitter: &Splitter, texts: &Bound<'_, PyIterator>) -> PyResult<()> {
        let mut texts = texts.clone();
        while let Some(item) = texts.next().transpose()? {
            let text = as_string(&item)?;
            // A copy through bytes: `to_str` would leave a second, UTF-8 copy inside every string that is not ASCII.
            match text.encode_utf8() {
                Ok(bytes) => self.take(splitter, std::str::from_utf8(bytes.as_bytes()).expect("Python encodes UTF-8")),
                Err(_) => self.take(splitter, &without_surrogates(text)?),
            }?;
        }
        self.hand_over()?;
        self.add_up()
    }

    fn take(&mut self, splitter: &Splitter, text: &str) -> PyResult<()> {
        for part in splitter.parts(text, BATCH_BYTES) {
            self.batch.push(part);
            if self.batch.text.len() >= BATCH_BYTES {
                self.hand_over()?;
            }
        }
        if self.bytes - self.epoch >= EPOCH_BYTES {
            self.add_up()?;
        }
        if self.progress.due() {
            self.progress.report("count", self.bytes, 0)?;
        }
        Ok(())
    }

    fn hand_over(&mut self) -> PyResult<()> {
        self.bytes += self.batch.text.len();
        let py = self.progress.py;
        while !py.detach(|| self.counter.offer(&mut self.batch, PATIENCE)).map_err(PyRuntimeError::new_err)? {
            self.progress.report("count", self.bytes, 0)?;
        }
        Ok(())
    }

    /// Waits for the threads, adds up their tables and holds to the cap.
    fn add_up(&mut self) -> PyResult<()> {
        let (py, counter) = (self.progress.py, self.counter);
        self.epoch = self.bytes;
        while !py.detach(|| counter.drained(PATIENCE)).map_err(PyRuntimeError::new_err)? {
            self.progress.report("count", self.bytes, 0)?;
        }
        let (tables, max_words) = (counter.take_tables(), self.max_words);
        let mut total = std::mem::replace(&mut self.total, WordTable::new());
        let (total, forgotten) = self.progress.wait_for(("count", self.bytes, 0), move || {
            for mut table in tables {
                total.absorb(&mut table);
            }
            let over = total.weight() > max_words;
            let forgotten = if over { total.forget_rare(max_words) } else { 0 };
            (total, forgotten)
        })?;
        self.total = total;
        self.forgotten = self.forgotten.max(forgotten);
        self.progress.report("count", self.bytes, 0)
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
        let mut reading = Reading {
            counter: &counter,
            progress: &mut progress,
            batch: Batch::default(),
            total: WordTable::new(),
            max_words,
            bytes: 0,
            epoch: 0,
            forgotten: 0,
        };
        let outcome = reading.read(&splitter, texts);
        counter.close(outcome.is_err());
        outcome.map(|()| (reading.total, reading.bytes, reading.forgotten))
    })?;
    let words = table.len();
    let merges = learn_merges(table, num_merges, &mut progress)?;
    Ok((merges, bytes, words, forgotten))
}

fn learn_merges(table: WordTable, num_merges: usize, progress: &mut Progress) -> PyResult<Vec<(u32, u32)>> {
    let stage = |done| ("merge", done, num_merges);
    progress.report("merge", 0, num_merges)?;
    let merger = progress.wait_for(stage(0), move || Merger::new(table, num_merges))?;
    let mut merger = merger.map_err(PyValueError::new_err)?;
    let mut merges = Vec::with_capacity(num_merges);
    let mut exhausted = false;
    while merges.len() < num_merges && !exhausted {
        (merger, merges, exhausted) = progress.wait_for(stage(merges.len()), move || {
            let started = Instant::now();
            while merges.len() < num_merges && started.elapsed() < PATIENCE {
                match merger.step() {
                    Some(pair) => merges.push(pair),
                    None => return (merger, merges, true),
                }
            }
            (merger, merges, false)
        })?;
        progress.report("merge", merges.len(), num_merges)?;
    }
    Ok(merges)
}

/// Splits one text; for the tests. `regex` forces the general engine.
#[pyfunction]
#[pyo3(signature = (text, pattern=None, regex=false))]
fn split<'py>(py: Python<'py>, text: &str, pattern: Option<&str>, regex: bool) -> PyResult<Bound<'py, PyList>> {
    let splitter =
        if regex { Splitter::regex(pattern.unwrap_or(splitter::DEFAULT_PATTERN)) } else { Splitter::new(pattern) };
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
    module.add("DEFAULT_PATTERN", splitter::DEFAULT_PATTERN)?;
    module.add("KNOWN_PATTERNS", PyTuple::new(module.py(), splitter::KNOWN_PATTERNS.map(|known| known.0))?)?;
    module.add_function(wrap_pyfunction!(train, module)?)?;
    module.add_function(wrap_pyfunction!(split, module)?)?;
    module.add_class::<batch::PyEncoder>()?;
    Ok(())
}
