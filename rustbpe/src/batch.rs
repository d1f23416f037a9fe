//! Encodes many texts on several threads into one flat buffer of ids.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::ffi::c_int;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::sync::Mutex;
use std::time::Instant;

use pyo3::buffer::PyBuffer;
use pyo3::exceptions::{PyRuntimeError, PyValueError};
use pyo3::ffi;
use pyo3::prelude::*;
use pyo3::types::PyString;

use crate::encoder::{Encoder, Workspace};
use crate::{as_string, without_surrogates, BATCH_BYTES, PATIENCE};

/// Numbers that NumPy reads and writes where they lie.
#[pyclass(frozen)]
struct Buffer {
    start: usize, // address of the numbers
    bytes: usize,
    _numbers: Box<dyn Send + Sync>, // whose memory it is
}

impl Buffer {
    fn new<T: Send + Sync + 'static>(mut numbers: Vec<T>) -> Self {
        numbers.shrink_to_fit();
        let (start, bytes) = (numbers.as_mut_ptr() as usize, std::mem::size_of_val(&numbers[..]));
        Buffer { start, bytes, _numbers: Box::new(numbers) }
    }
}

#[pymethods]
impl Buffer {
    /// Safe because the vector neither moves nor goes while this object lives, the view keeps the object alive, and
    /// Rust never looks at the numbers again.
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

    /// Steps of merging long pieces so far, of all threads.
    fn steps(&self) -> u64 {
        self.spaces.lock().unwrap().iter().map(|space| space.steps).sum()
    }

    /// Returns (ids as int32, offsets as int64), both as buffers in native order.
    fn encode_batch(&self, py: Python, texts: Vec<Bound<'_, PyAny>>) -> PyResult<(Buffer, Buffer)> {
        self.encode_texts(py, texts.iter().map(|item| as_utf8(as_string(item)?)))
    }

    /// The same for a column of text as Arrow holds it: text i is `data[offsets[i]..offsets[i + 1]]`. What is not
    /// UTF-8 becomes U+FFFD.
    fn encode_column(&self, py: Python, data: PyBuffer<u8>, offsets: PyBuffer<i64>) -> PyResult<(Buffer, Buffer)> {
        if !data.is_c_contiguous() {
            return Err(PyValueError::new_err("the bytes of a column of text must be contiguous"));
        }
        let offsets = offsets.to_vec(py)?;
        // Safe as long as nobody writes into the column meanwhile: Arrow's buffers are immutable.
        let data = unsafe { std::slice::from_raw_parts(data.buf_ptr() as *const u8, data.item_count()) };
        let texts = offsets.windows(2).map(|ends| match data.get(ends[0] as usize..ends[1] as usize) {
            Some(text) => Ok(String::from_utf8_lossy(text)),
            None => Err(PyValueError::new_err("the offsets of a column of text point outside of its bytes")),
        });
        self.encode_texts(py, texts)
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
    text: Cow<'t, str>,
    is_first: bool,
}

/// Consecutive stretches, about `BATCH_BYTES`, and which group of all it is.
struct Group<'t> {
    index: usize,
    stretches: Vec<Stretch<'t>>,
}

/// The ids of all groups so far, in order. What is ready before its turn waits, and its memory serves again.
#[derive(Default)]
struct Output {
    ids: Vec<u32>,
    offsets: Vec<i64>,
    groups: usize,
    waiting: BTreeMap<usize, (Vec<u32>, usize, Vec<usize>)>,
    spare: Vec<Vec<u32>>,
}

impl Output {
    /// Takes the ids of a group out of `space`. `begins`: where each text begins among them.
    fn take(&mut self, index: usize, space: &mut Workspace, begins: Vec<usize>) {
        if index != self.groups {
            let ids = std::mem::replace(&mut space.ids, self.spare.pop().unwrap_or_default());
            self.waiting.insert(index, (ids, space.count, begins));
            return;
        }
        self.append(&space.ids[..space.count], begins);
        while let Some((ids, count, begins)) = self.waiting.remove(&self.groups) {
            self.append(&ids[..count], begins);
            self.spare.push(ids);
        }
    }

    fn append(&mut self, ids: &[u32], begins: Vec<usize>) {
        let before = self.ids.len();
        if before + ids.len() > self.ids.capacity() {
            self.ids.reserve(before.max(ids.len())); // twice as much
            in_large_pages(&self.ids);
        }
        self.offsets.extend(begins.into_iter().map(|begin| (before + begin) as i64));
        self.ids.extend_from_slice(ids);
        self.groups += 1;
    }
}

/// Asks for memory in pages of 2 MB where the kernel gives them: in those of 4 KB, being given new memory takes a tenth
/// of the time of encoding.
fn in_large_pages(ids: &Vec<u32>) {
    #[cfg(target_os = "linux")]
    {
        extern "C" {
            fn madvise(start: usize, bytes: usize, advice: c_int) -> c_int;
        }
        const PAGE: usize = 1 << 21;
        let (start, bytes) = (ids.as_ptr() as usize, ids.capacity() * 4);
        let (first, end) = (start.next_multiple_of(PAGE), (start + bytes) & !(PAGE - 1));
        if first < end {
            // Only advice (14, MADV_HUGEPAGE) about whole pages of our own; that the kernel may not take it is no harm.
            unsafe { madvise(first, end - first, 14) };
        }
    }
    #[cfg(not(target_os = "linux"))]
    let _ = ids;
}

/// One call: what its threads share.
struct Work<'a, 't> {
    all: &'a PyEncoder,
    groups: Mutex<Receiver<Group<'t>>>,
    output: Mutex<Output>,
    stop: AtomicBool,
}

impl Work<'_, '_> {
    fn run(&self, space: &mut Workspace) -> Result<(), String> {
        while !self.stop.load(Ordering::Relaxed) {
            let Ok(group) = self.groups.lock().unwrap().recv() else { return Ok(()) };
            self.encode(group, space)?;
        }
        Ok(())
    }

    fn encode(&self, group: Group, space: &mut Workspace) -> Result<(), String> {
        let mut begins = Vec::with_capacity(group.stretches.len());
        space.count = 0;
        for stretch in group.stretches {
            if stretch.is_first {
                begins.push(space.count);
                if let Some(id) = self.all.first_id {
                    space.push(id);
                }
            }
            self.all.encoder.encode(&stretch.text, space, &self.stop)?;
        }
        self.output.lock().unwrap().take(group.index, space, begins);
        Ok(())
    }
}

impl PyEncoder {
    fn with_space<T>(&self, work: impl FnOnce(&mut Workspace) -> T) -> T {
        let held = self.spaces.lock().unwrap().pop();
        let mut space = held.unwrap_or_else(Workspace::new);
        let outcome = work(&mut space);
        self.spaces.lock().unwrap().push(space);
        outcome
    }

    /// Hands the texts out group by group: the first are encoded while Python still looks for the UTF-8 of the last.
    fn encode_texts<'t>(
        &self,
        py: Python,
        texts: impl Iterator<Item = PyResult<Cow<'t, str>>>,
    ) -> PyResult<(Buffer, Buffer)> {
        let (sender, groups) = mpsc::channel();
        let work =
            Work { all: self, groups: Mutex::new(groups), output: Mutex::default(), stop: AtomicBool::new(false) };
        std::thread::scope(|scope| {
            let (reporter, reports) = mpsc::channel();
            let mut workers = 0;
            let mut hand_out = |group: Group<'t>| {
                if workers < self.num_threads {
                    workers += 1;
                    let (work, reporter) = (&work, reporter.clone());
                    scope.spawn(move || reporter.send(self.with_space(|space| work.run(space))));
                }
                sender.send(group).expect("the other end lives as long");
            };
            let outcome = self.hand_out_all(py, texts, &mut hand_out).and_then(|last| {
                if last.index > 0 {
                    hand_out(last);
                    return Ok(());
                }
                // No thread is worth its start for one group.
                py.detach(|| self.with_space(|space| work.encode(last, space))).map_err(PyRuntimeError::new_err)
            });
            drop((sender, reporter));
            let outcome = outcome.and_then(|()| wait_for_all(py, reports));
            work.stop.store(outcome.is_err(), Ordering::Relaxed);
            outcome
        })?;
        let Output { ids, mut offsets, .. } = work.output.into_inner().unwrap();
        offsets.push(ids.len() as i64);
        Ok((Buffer::new(ids), Buffer::new(offsets)))
    }

    /// Calls `hand_out` with all groups but the last, which is returned: it may be the only one.
    fn hand_out_all<'t>(
        &self,
        py: Python,
        texts: impl Iterator<Item = PyResult<Cow<'t, str>>>,
        mut hand_out: impl FnMut(Group<'t>),
    ) -> PyResult<Group<'t>> {
        let (mut group, mut size) = (Group { index: 0, stretches: Vec::new() }, 0);
        let mut last_look = Instant::now();
        for text in texts {
            let mut is_first = true;
            for text in self.parts(text?) {
                size += text.len() + 1;
                group.stretches.push(Stretch { text, is_first });
                is_first = false;
                if size >= BATCH_BYTES {
                    let next = Group { index: group.index + 1, stretches: Vec::new() };
                    hand_out(std::mem::replace(&mut group, next));
                    size = 0;
                }
            }
            if last_look.elapsed() >= PATIENCE {
                py.check_signals()?;
                last_look = Instant::now();
            }
        }
        Ok(group)
    }

    fn parts<'t>(&self, text: Cow<'t, str>) -> Vec<Cow<'t, str>> {
        if text.len() <= BATCH_BYTES {
            return vec![text];
        }
        let splitter = self.encoder.splitter();
        match text {
            Cow::Borrowed(text) => splitter.parts(text, BATCH_BYTES).map(Cow::Borrowed).collect(),
            Cow::Owned(text) => splitter.parts(&text, BATCH_BYTES).map(|part| Cow::Owned(part.into())).collect(),
        }
    }
}

/// Waits until all threads have reported, and looks at Ctrl-C meanwhile.
fn wait_for_all(py: Python, reports: Receiver<Result<(), String>>) -> PyResult<()> {
    let reports = Mutex::new(reports); // for `detach`, which wants what is shared to be `Sync`
    loop {
        match py.detach(|| reports.lock().unwrap().recv_timeout(PATIENCE)) {
            Ok(report) => report.map_err(PyRuntimeError::new_err)?,
            Err(RecvTimeoutError::Timeout) => py.check_signals()?,
            Err(RecvTimeoutError::Disconnected) => return Ok(()),
        }
    }
}
