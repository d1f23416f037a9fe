//! `train`: reads texts from Python, counts words on several threads, learns merges, and reports progress.

use std::sync::mpsc::{self, RecvTimeoutError};
use std::sync::Mutex;
use std::time::Instant;

use pyo3::exceptions::{PyRuntimeError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::PyIterator;

use crate::count::{Batch, Counter};
use crate::merge::Merger;
use crate::python::{as_string, without_surrogates, BATCH_BYTES, POLL_INTERVAL};
use crate::splitter::Splitter;
use crate::words::WordTable;

/// Bytes of text between two checks of the limit on distinct words.
const CHECK_BYTES: usize = 128 << 20;

/// Calls `callback(stage, done, total)` at most ten times per second. `total` is 0 if it is not known.
struct Progress<'py> {
    py: Python<'py>,
    callback: Option<Bound<'py, PyAny>>,
    last_report: Instant,
}

impl Progress<'_> {
    /// Whether it is time for the next report.
    fn due(&self) -> bool {
        self.last_report.elapsed() >= POLL_INTERVAL
    }

    /// Calls the callback and checks for Ctrl-C.
    fn report(&mut self, stage: &str, done: usize, total: usize) -> PyResult<()> {
        self.py.check_signals()?;
        if let Some(callback) = &self.callback {
            callback.call1((stage, done, total))?;
        }
        self.last_report = Instant::now();
        Ok(())
    }

    /// Runs `task` on its own thread, and checks for Ctrl-C meanwhile. After Ctrl-C the result of the task is dropped.
    fn wait_for<T: Send + 'static>(
        &mut self,
        (stage, done, total): (&str, usize, usize),
        task: impl FnOnce() -> T + Send + 'static,
    ) -> PyResult<T> {
        let (sender, receiver) = mpsc::sync_channel(1);
        let receiver = Mutex::new(receiver); // `detach` needs a type that is `Sync`
        std::thread::spawn(move || sender.send(task()));
        loop {
            match self.py.detach(|| receiver.lock().unwrap().recv_timeout(POLL_INTERVAL)) {
                Ok(result) => return Ok(result),
                Err(RecvTimeoutError::Timeout) => self.report(stage, done, total)?,
                Err(RecvTimeoutError::Disconnected) => {
                    return Err(PyRuntimeError::new_err("the trainer failed; this is a bug in nanochat_hf"))
                }
            }
        }
    }
}

/// Feeds texts to the counting threads and adds up their counts.
struct Feeder<'a, 'py> {
    counter: &'a Counter<'a>,
    progress: &'a mut Progress<'py>,
    batch: Batch,
    total: WordTable,
    max_words: usize,
    bytes: usize,
    bytes_at_last_check: usize, // `bytes` at the last check of the limit
    pruned: u64,                // highest count that was removed
}

impl Feeder<'_, '_> {
    /// Feeds all texts, and waits until they are counted.
    fn read(&mut self, splitter: &Splitter, texts: &Bound<'_, PyIterator>) -> PyResult<()> {
        let mut texts = texts.clone();
        while let Some(item) = texts.next().transpose()? {
            let text = as_string(&item)?;
            // A copy through bytes, because `to_str` would keep a UTF-8 copy inside every string that is not ASCII.
            match text.encode_utf8() {
                Ok(bytes) => self.feed(splitter, std::str::from_utf8(bytes.as_bytes()).expect("Python encodes UTF-8")),
                Err(_) => self.feed(splitter, &without_surrogates(text)?),
            }?;
        }
        self.submit()?;
        self.collect_counts()
    }

    /// Adds one text to the batch, and submits the batch when it is full.
    fn feed(&mut self, splitter: &Splitter, text: &str) -> PyResult<()> {
        for chunk in splitter.chunks(text, BATCH_BYTES) {
            self.batch.push(chunk);
            if self.batch.text.len() >= BATCH_BYTES {
                self.submit()?;
            }
        }
        if self.bytes - self.bytes_at_last_check >= CHECK_BYTES {
            self.collect_counts()?;
        }
        if self.progress.due() {
            self.progress.report("count", self.bytes, 0)?;
        }
        Ok(())
    }

    /// Puts the batch into the queue.
    fn submit(&mut self) -> PyResult<()> {
        self.bytes += self.batch.text.len();
        let py = self.progress.py;
        while !py.detach(|| self.counter.offer(&mut self.batch, POLL_INTERVAL)).map_err(PyRuntimeError::new_err)? {
            self.progress.report("count", self.bytes, 0)?;
        }
        Ok(())
    }

    /// Waits for the threads, adds up their tables, and prunes the total if it has more than `max_words`.
    fn collect_counts(&mut self) -> PyResult<()> {
        let (py, counter) = (self.progress.py, self.counter);
        self.bytes_at_last_check = self.bytes;
        while !py.detach(|| counter.wait_until_drained(POLL_INTERVAL)).map_err(PyRuntimeError::new_err)? {
            self.progress.report("count", self.bytes, 0)?;
        }
        let (tables, max_words) = (counter.take_tables(), self.max_words);
        let mut total = std::mem::replace(&mut self.total, WordTable::new());
        let (total, pruned) = self.progress.wait_for(("count", self.bytes, 0), move || {
            for mut table in tables {
                total.take_counts(&mut table);
            }
            let too_large = total.weight() > max_words;
            let pruned = if too_large { total.prune(max_words) } else { 0 };
            (total, pruned)
        })?;
        self.total = total;
        self.pruned = self.pruned.max(pruned);
        self.progress.report("count", self.bytes, 0)
    }
}

/// Learns up to `num_merges` merges from an iterator of strings.
///
/// `progress(stage, done, total)` is called with the stages "count" (bytes) and "merge" (merges).
///
/// Returns (merges as pairs of ids in order, bytes read, distinct words, highest count removed by `max_words`).
#[pyfunction]
#[pyo3(signature = (texts, num_merges, pattern=None, num_threads=1, max_words=16_000_000, progress=None))]
#[allow(clippy::type_complexity)]
pub fn train<'py>(
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
    let mut progress = Progress { py, callback: progress, last_report: Instant::now() };
    let (table, bytes, pruned) = std::thread::scope(|scope| {
        for worker in 0..num_threads.max(1) {
            let counter = &counter;
            scope.spawn(move || counter.run_worker(worker));
        }
        let mut feeder = Feeder {
            counter: &counter,
            progress: &mut progress,
            batch: Batch::default(),
            total: WordTable::new(),
            max_words,
            bytes: 0,
            bytes_at_last_check: 0,
            pruned: 0,
        };
        let result = feeder.read(&splitter, texts);
        counter.close(result.is_err());
        result.map(|()| (feeder.total, feeder.bytes, feeder.pruned))
    })?;
    let words = table.len();
    let merges = learn_merges(table, num_merges, &mut progress)?;
    Ok((merges, bytes, words, pruned))
}

/// Runs the merge loop in steps of `POLL_INTERVAL`.
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
            while merges.len() < num_merges && started.elapsed() < POLL_INTERVAL {
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
