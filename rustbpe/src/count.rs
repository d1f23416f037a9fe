//! Counts the pieces of a stream of texts on several threads.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Condvar, Mutex};
use std::time::Duration;

use crate::splitter::Splitter;
use crate::words::WordTable;

/// Texts one after the other in one buffer.
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
    spare: Vec<Batch>,
    in_work: usize,
    closed: bool,
    error: Option<String>,
}

/// A queue of batches with a fixed number of places, and one table of words a worker.
pub struct Counter<'a> {
    splitter: &'a Splitter,
    state: Mutex<State>,
    changed: Condvar,
    stopped: AtomicBool,
    tables: Vec<Mutex<WordTable>>,
}

impl<'a> Counter<'a> {
    pub fn new(splitter: &'a Splitter, threads: usize) -> Self {
        let tables = (0..threads).map(|_| Mutex::new(WordTable::new())).collect();
        let (state, changed, stopped) = (Mutex::default(), Condvar::new(), AtomicBool::new(false));
        Counter { splitter, state, changed, stopped, tables }
    }

    /// A worker's life: takes batches until the queue is closed and empty.
    pub fn work(&self, worker: usize) {
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
            state.in_work += 1;
            drop(state);
            self.changed.notify_all();
            let outcome = self.count(&batch, &mut self.tables[worker].lock().unwrap());
            batch.text.clear();
            batch.ends.clear();
            let mut state = self.state.lock().unwrap();
            state.in_work -= 1;
            state.spare.push(batch);
            if let Err(error) = outcome {
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
                !self.stopped.load(Ordering::Relaxed)
            })?;
        }
        Ok(())
    }

    /// Puts a batch into the queue and leaves an empty one in its place. `Ok(false)` where all places stayed taken for
    /// `patience`.
    pub fn offer(&self, batch: &mut Batch, patience: Duration) -> Result<bool, String> {
        let full = |state: &mut State| state.error.is_none() && state.waiting.len() >= self.tables.len();
        let (mut state, _) = self.changed.wait_timeout_while(self.state.lock().unwrap(), patience, full).unwrap();
        if let Some(error) = &state.error {
            return Err(error.clone());
        }
        if state.waiting.len() >= self.tables.len() {
            return Ok(false);
        }
        let empty = state.spare.pop().unwrap_or_default();
        state.waiting.push_back(std::mem::replace(batch, empty));
        drop(state);
        self.changed.notify_all();
        Ok(true)
    }

    /// Whether all batches are counted within `patience`.
    pub fn drained(&self, patience: Duration) -> Result<bool, String> {
        let busy = |state: &mut State| state.error.is_none() && (state.in_work > 0 || !state.waiting.is_empty());
        let (state, timeout) = self.changed.wait_timeout_while(self.state.lock().unwrap(), patience, busy).unwrap();
        match &state.error {
            Some(error) => Err(error.clone()),
            None => Ok(!timeout.timed_out()),
        }
    }

    /// Takes the workers' counts away from them. Call it when the queue is drained.
    pub fn take_tables(&self) -> Vec<WordTable> {
        self.tables.iter().map(|table| std::mem::replace(&mut *table.lock().unwrap(), WordTable::new())).collect()
    }

    /// Lets the workers end; `discard` throws away what still waits and what is in work.
    pub fn close(&self, discard: bool) {
        self.stopped.store(discard, Ordering::Relaxed);
        let mut state = self.state.lock().unwrap();
        state.closed = true;
        if discard {
            state.waiting.clear();
        }
        drop(state);
        self.changed.notify_all();
    }
}
