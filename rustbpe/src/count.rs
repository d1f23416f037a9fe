//! Counts the pieces of a stream of texts on several threads.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Condvar, Mutex};
use std::time::Duration;

use crate::splitter::Splitter;
use crate::words::WordTable;

/// Several texts, concatenated in one buffer. `ends[i]` is the end of text i.
#[derive(Default)]
pub struct Batch {
    pub text: String,
    pub ends: Vec<usize>,
}

impl Batch {
    pub fn push(&mut self, text: &str) {
        self.text.push_str(text);
        self.ends.push(self.text.len());
    }

    fn texts(&self) -> impl Iterator<Item = &str> {
        let mut start = 0;
        self.ends.iter().map(move |&end| {
            let text = &self.text[start..end];
            start = end;
            text
        })
    }
}

#[derive(Default)]
struct State {
    waiting: VecDeque<Batch>,
    recycled: Vec<Batch>, // empty batches, whose memory is used again
    in_progress: usize,   // number of batches that workers count at the moment
    closed: bool,
    error: Option<String>,
}

/// A bounded queue of batches, and one table of words per worker.
pub struct Counter<'a> {
    splitter: &'a Splitter,
    state: Mutex<State>,
    changed: Condvar,
    discarding: AtomicBool,
    tables: Vec<Mutex<WordTable>>,
}

impl<'a> Counter<'a> {
    pub fn new(splitter: &'a Splitter, threads: usize) -> Self {
        let tables = (0..threads).map(|_| Mutex::new(WordTable::new())).collect();
        let (state, changed, discarding) = (Mutex::default(), Condvar::new(), AtomicBool::new(false));
        Counter { splitter, state, changed, discarding, tables }
    }

    /// Runs one worker: it counts batches until the queue is closed and empty.
    pub fn run_worker(&self, worker: usize) {
        loop {
            let mut state = self.state.lock().unwrap();
            let mut batch = loop {
                if let Some(batch) = state.waiting.pop_front() {
                    break batch;
                }
                if state.closed {
                    return;
                }
                state = self.changed.wait(state).unwrap();
            };
            state.in_progress += 1;
            drop(state);
            self.changed.notify_all();
            let result = self.count(&batch, &mut self.tables[worker].lock().unwrap());
            batch.text.clear();
            batch.ends.clear();
            let mut state = self.state.lock().unwrap();
            state.in_progress -= 1;
            state.recycled.push(batch);
            if let Err(error) = result {
                state.error.get_or_insert(error);
            }
            drop(state);
            self.changed.notify_all();
        }
    }

    fn count(&self, batch: &Batch, table: &mut WordTable) -> Result<(), String> {
        for text in batch.texts() {
            self.splitter.split(text, false, |text, mut start, ends| {
                for &end in ends {
                    table.add_at(text, start, end);
                    start = end;
                }
                !self.discarding.load(Ordering::Relaxed)
            })?;
        }
        Ok(())
    }

    /// Puts a batch into the queue and leaves an empty one in its place.
    /// Returns `Ok(false)` if the queue stayed full for `timeout`.
    pub fn offer(&self, batch: &mut Batch, timeout: Duration) -> Result<bool, String> {
        let full = |state: &mut State| state.error.is_none() && state.waiting.len() >= self.tables.len();
        let (mut state, _) = self.changed.wait_timeout_while(self.state.lock().unwrap(), timeout, full).unwrap();
        if let Some(error) = &state.error {
            return Err(error.clone());
        }
        if state.waiting.len() >= self.tables.len() {
            return Ok(false);
        }
        let empty = state.recycled.pop().unwrap_or_default();
        state.waiting.push_back(std::mem::replace(batch, empty));
        drop(state);
        self.changed.notify_all();
        Ok(true)
    }

    /// Waits until all batches are counted. Returns `Ok(false)` if that takes longer than `timeout`.
    pub fn wait_until_drained(&self, timeout: Duration) -> Result<bool, String> {
        let busy = |state: &mut State| state.error.is_none() && (state.in_progress > 0 || !state.waiting.is_empty());
        let (state, waited) = self.changed.wait_timeout_while(self.state.lock().unwrap(), timeout, busy).unwrap();
        match &state.error {
            Some(error) => Err(error.clone()),
            None => Ok(!waited.timed_out()),
        }
    }

    /// Takes the tables of all workers. Call it when the queue is drained.
    pub fn take_tables(&self) -> Vec<WordTable> {
        self.tables.iter().map(|table| std::mem::replace(&mut *table.lock().unwrap(), WordTable::new())).collect()
    }

    /// Ends the workers. With `discard`, they drop the batches that wait or are in progress.
    pub fn close(&self, discard: bool) {
        self.discarding.store(discard, Ordering::Relaxed);
        let mut state = self.state.lock().unwrap();
        state.closed = true;
        if discard {
            state.waiting.clear();
        }
        drop(state);
        self.changed.notify_all();
    }
}
