//! `Encoder`: encodes many texts on several threads into one flat buffer of ids.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::ffi::c_int;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::sync::{Arc, Mutex};
use std::time::Instant;

use pyo3::exceptions::{PyRuntimeError, PyValueError};
use pyo3::ffi;
use pyo3::prelude::*;
use pyo3::types::PyString;

use crate::encoder::{Encoder, Workspace};
use crate::processor::advise_huge_pages;
use crate::python::{as_string, without_surrogates, BATCH_BYTES, POLL_INTERVAL};

/// An array of numbers that NumPy reads and writes without a copy.
#[pyclass(frozen)]
struct Buffer {
    start: usize, // address of the numbers
    bytes: usize,
    _owner: Box<dyn Send + Sync>, // of the memory
}

impl Buffer {
    /// A buffer of `numbers`, which `owned` turns into the owner of their memory, without moving them.
    fn new<T, O: Send + Sync + 'static>(mut numbers: Vec<T>, owned: impl FnOnce(Vec<T>) -> O) -> Self {
        if numbers.len() < numbers.capacity() / 2 {
            numbers.shrink_to_fit();
        }
        let (start, bytes) = (numbers.as_mut_ptr() as usize, std::mem::size_of_val(&numbers[..]));
        Buffer { start, bytes, _owner: Box::new(owned(numbers)) }
    }
}

/// Ids whose memory goes back to their encoder, for its next call: the first access to new memory takes as long as
/// encoding known text.
struct LentIds {
    ids: Vec<u32>,
    spare: Arc<Mutex<Vec<u32>>>,
}

impl Drop for LentIds {
    fn drop(&mut self) {
        let Ok(mut spare) = self.spare.lock() else { return };
        if self.ids.capacity() > spare.capacity() {
            *spare = std::mem::take(&mut self.ids);
        }
    }
}

#[pymethods]
impl Buffer {
    /// Safe: the vector is neither moved nor freed while this object lives, the view keeps the object alive, and Rust
    /// does not use the numbers again.
    unsafe fn __getbuffer__(slf: Bound<'_, Self>, view: *mut ffi::Py_buffer, flags: c_int) -> PyResult<()> {
        let (start, bytes) = (slf.get().start as *mut _, slf.get().bytes as isize);
        match ffi::PyBuffer_FillInfo(view, slf.as_ptr(), start, bytes, 0, flags) {
            0 => Ok(()),
            _ => Err(PyErr::fetch(slf.py())),
        }
    }
}

/// Encodes batches of texts on several threads.
#[pyclass(frozen, name = "Encoder")]
pub struct PyEncoder {
    encoder: Encoder,
    first_id: Option<u32>,
    num_threads: usize,
    workspaces: Mutex<Vec<Workspace>>, // not in use at the moment; the next call uses their caches
    spare: Arc<Mutex<Vec<u32>>>,       // memory for the ids of the next call
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
        let num_threads = num_threads.max(1);
        Ok(PyEncoder { encoder, first_id, num_threads, workspaces: Mutex::default(), spare: Arc::default() })
    }

    /// Steps of merging long pieces so far, summed over all threads.
    fn steps(&self) -> u64 {
        self.workspaces.lock().unwrap().iter().map(|workspace| workspace.steps).sum()
    }

    /// Returns (ids as int32, offsets as int64), as buffers in native byte order.
    fn encode_batch(&self, py: Python, texts: Vec<Bound<'_, PyAny>>) -> PyResult<(Buffer, Buffer)> {
        let characters =
            texts.iter().map(|item| item.cast::<PyString>().map_or(0, |text| text.len().unwrap_or(0))).sum();
        self.encode_texts(py, texts.iter().map(|item| as_utf8(as_string(item)?)), characters)
    }
}

/// The UTF-8 of a string, without a copy where possible.
fn as_utf8<'a>(text: &'a Bound<'_, PyString>) -> PyResult<Cow<'a, str>> {
    match text.to_str() {
        Ok(text) => Ok(Cow::Borrowed(text)),
        Err(_) => without_surrogates(text).map(Cow::Owned),
    }
}

/// A chunk of one text, or all of it.
struct Chunk<'t> {
    text: Cow<'t, str>,
    is_first: bool,
}

/// Consecutive chunks of about `BATCH_BYTES` in all, which one thread encodes. Jobs are numbered in order.
struct Job<'t> {
    index: usize,
    chunks: Vec<Chunk<'t>>,
}

/// The ids of all finished jobs, in order.
#[derive(Default)]
struct Output {
    ids: Vec<u32>,
    offsets: Vec<i64>,
    jobs: usize,                        // number of jobs in `ids`
    bytes: usize,                       // of their texts
    expected_bytes: usize,              // of all texts, roughly
    waiting: BTreeMap<usize, Finished>, // jobs that were finished before their turn
    recycled: Vec<Vec<u32>>,            // memory to use again
}

/// The ids of a finished job.
struct Finished {
    ids: Vec<u32>, // the first `count`
    count: usize,
    starts: Vec<usize>, // by text: index of its first id
    bytes: usize,       // of the texts
}

impl Output {
    /// Adds the ids that a job has left in `workspace`.
    fn add(&mut self, index: usize, workspace: &mut Workspace, starts: Vec<usize>, bytes: usize) {
        if index != self.jobs {
            let ids = std::mem::replace(&mut workspace.ids, self.recycled.pop().unwrap_or_default());
            self.waiting.insert(index, Finished { ids, count: workspace.count, starts, bytes });
            return;
        }
        self.append(&workspace.ids[..workspace.count], starts, bytes);
        while let Some(Finished { ids, count, starts, bytes }) = self.waiting.remove(&self.jobs) {
            self.append(&ids[..count], starts, bytes);
            self.recycled.push(ids);
        }
    }

    fn append(&mut self, ids: &[u32], starts: Vec<usize>, bytes: usize) {
        let before = self.ids.len();
        self.bytes += bytes;
        if before + ids.len() > self.ids.capacity() {
            self.grow(before + ids.len());
        }
        self.offsets.extend(starts.into_iter().map(|start| (before + start) as i64));
        self.ids.extend_from_slice(ids);
        self.jobs += 1;
    }

    /// Moves the ids to new memory. It is large enough for all texts if the rest has as many ids per byte as the texts
    /// of the first `count` ids, and an eighth more. Memory that is not needed is never touched.
    fn grow(&mut self, count: usize) {
        let expected = count as f64 * self.expected_bytes as f64 / self.bytes.max(1) as f64;
        let mut larger = Vec::new();
        if larger.try_reserve_exact((expected * 1.125) as usize + count).is_err() {
            larger.reserve_exact(count * 2);
        }
        advise_huge_pages(&larger); // before the first access; `realloc` would copy to pages of 4 KB
        larger.extend_from_slice(&self.ids);
        self.ids = larger;
    }
}

/// What the threads of one call share.
struct EncodeCall<'a, 't> {
    encoder: &'a PyEncoder,
    jobs: Mutex<Receiver<Job<'t>>>,
    output: Mutex<Output>,
    stop: AtomicBool,
}

impl EncodeCall<'_, '_> {
    /// Encodes jobs until there are no more.
    fn run_worker(&self, workspace: &mut Workspace) -> Result<(), String> {
        while !self.stop.load(Ordering::Relaxed) {
            let Ok(job) = self.jobs.lock().unwrap().recv() else { return Ok(()) };
            self.encode(job, workspace)?;
        }
        Ok(())
    }

    /// Encodes one job and adds its ids to the output.
    fn encode(&self, job: Job, workspace: &mut Workspace) -> Result<(), String> {
        let mut session = self.encoder.encoder.start(workspace, self.encoder.first_id, &self.stop);
        for chunk in &job.chunks {
            if chunk.is_first {
                session.begin_text();
            }
            session.encode(&chunk.text)?;
        }
        let starts = session.finish();
        let bytes = job.chunks.iter().map(|chunk| chunk.text.len()).sum();
        self.output.lock().unwrap().add(job.index, workspace, starts, bytes);
        Ok(())
    }
}

impl PyEncoder {
    /// Lends a workspace to `task`.
    fn with_workspace<T>(&self, task: impl FnOnce(&mut Workspace) -> T) -> T {
        let held = self.workspaces.lock().unwrap().pop();
        let mut workspace = held.unwrap_or_else(Workspace::new);
        let result = task(&mut workspace);
        self.workspaces.lock().unwrap().push(workspace);
        result
    }

    /// Submits the texts job by job. The first jobs are encoded while the last texts are still being read from Python.
    fn encode_texts<'t>(
        &self,
        py: Python,
        texts: impl Iterator<Item = PyResult<Cow<'t, str>>>,
        expected_bytes: usize,
    ) -> PyResult<(Buffer, Buffer)> {
        let (sender, jobs) = mpsc::channel();
        let mut ids = std::mem::take(&mut *self.spare.lock().unwrap());
        ids.clear();
        let call = EncodeCall {
            encoder: self,
            jobs: Mutex::new(jobs),
            output: Mutex::new(Output { ids, expected_bytes, ..Default::default() }),
            stop: AtomicBool::new(false),
        };
        std::thread::scope(|scope| {
            let (reporter, reports) = mpsc::channel();
            let mut workers = 0;
            let mut submit = |job: Job<'t>| {
                if workers < self.num_threads {
                    workers += 1;
                    let (call, reporter) = (&call, reporter.clone());
                    scope.spawn(move || reporter.send(self.with_workspace(|workspace| call.run_worker(workspace))));
                }
                sender.send(job).expect("the receiver lives as long");
            };
            let result = self.submit_all(py, texts, &mut submit).and_then(|last| {
                if last.index > 0 {
                    submit(last);
                    return Ok(());
                }
                // For one job it is not worth starting a thread.
                py.detach(|| self.with_workspace(|workspace| call.encode(last, workspace)))
                    .map_err(PyRuntimeError::new_err)
            });
            drop((sender, reporter));
            let result = result.and_then(|()| wait_for_all(py, reports));
            call.stop.store(result.is_err(), Ordering::Relaxed);
            result
        })?;
        let Output { ids, mut offsets, .. } = call.output.into_inner().unwrap();
        offsets.push(ids.len() as i64);
        let spare = self.spare.clone();
        Ok((Buffer::new(ids, |ids| LentIds { ids, spare }), Buffer::new(offsets, |offsets| offsets)))
    }

    /// Calls `submit` with all jobs except the last. Returns the last, because it may be the only one.
    fn submit_all<'t>(
        &self,
        py: Python,
        texts: impl Iterator<Item = PyResult<Cow<'t, str>>>,
        mut submit: impl FnMut(Job<'t>),
    ) -> PyResult<Job<'t>> {
        let (mut job, mut size) = (Job { index: 0, chunks: Vec::new() }, 0);
        let mut last_check = Instant::now();
        for text in texts {
            let mut is_first = true;
            for text in self.chunks_of(text?) {
                size += text.len() + 1;
                job.chunks.push(Chunk { text, is_first });
                is_first = false;
                if size >= BATCH_BYTES {
                    let next = Job { index: job.index + 1, chunks: Vec::new() };
                    submit(std::mem::replace(&mut job, next));
                    size = 0;
                }
            }
            if last_check.elapsed() >= POLL_INTERVAL {
                py.check_signals()?;
                last_check = Instant::now();
            }
        }
        Ok(job)
    }

    /// Cuts a long text into chunks.
    fn chunks_of<'t>(&self, text: Cow<'t, str>) -> Vec<Cow<'t, str>> {
        if text.len() <= BATCH_BYTES {
            return vec![text];
        }
        let splitter = self.encoder.splitter();
        match text {
            Cow::Borrowed(text) => splitter.chunks(text, BATCH_BYTES).map(Cow::Borrowed).collect(),
            Cow::Owned(text) => splitter.chunks(&text, BATCH_BYTES).map(|chunk| Cow::Owned(chunk.into())).collect(),
        }
    }
}

/// Waits until all threads have reported, and checks for Ctrl-C meanwhile.
fn wait_for_all(py: Python, reports: Receiver<Result<(), String>>) -> PyResult<()> {
    let reports = Mutex::new(reports); // `detach` needs a type that is `Sync`
    loop {
        match py.detach(|| reports.lock().unwrap().recv_timeout(POLL_INTERVAL)) {
            Ok(report) => report.map_err(PyRuntimeError::new_err)?,
            Err(RecvTimeoutError::Timeout) => py.check_signals()?,
            Err(RecvTimeoutError::Disconnected) => return Ok(()),
        }
    }
}
