//! What a decoding step computes between its matrix products: one token per row, in fp32, on a CPU.
//!
//! In torch this is some 25 small operations per layer, and each costs about a microsecond before it computes anything.
//! Tensors come as addresses with strides, in elements. `nanochat_hf.generation.cpu_kernels` is the only caller, and
//! keeps the tensors alive meanwhile.

use std::ops::Range;

use pyo3::prelude::*;

/// Work (multiplications) from which several threads are started. Starting one takes some 30 µs.
const WORK_PER_THREAD: usize = 1 << 19;

/// A matrix of fp32 numbers anywhere in memory.
#[derive(Clone, Copy)]
struct Matrix {
    start: usize, // address
    strides: (usize, usize),
}

impl Matrix {
    /// Copies a part of one row to `to`.
    ///
    /// # Safety
    /// The row has at least `from + to.len()` numbers.
    #[inline(always)]
    unsafe fn read(self, row: usize, from: usize, to: &mut [f32]) {
        let start = (self.start as *const f32).add(row * self.strides.0 + from * self.strides.1);
        if self.strides.1 == 1 {
            to.copy_from_slice(std::slice::from_raw_parts(start, to.len()));
        } else {
            for (index, number) in to.iter_mut().enumerate() {
                *number = *start.add(index * self.strides.1);
            }
        }
    }
}

/// `length` numbers from an address and an offset on.
///
/// # Safety
/// They exist, and nothing writes them while the slice lives.
#[inline(always)]
unsafe fn numbers<'a, T>(start: usize, offset: usize, length: usize) -> &'a [T] {
    std::slice::from_raw_parts((start as *const T).add(offset), length)
}

/// # Safety
/// As for `numbers`; nothing else reads them either.
#[inline(always)]
unsafe fn numbers_mut<'a>(start: usize, offset: usize, length: usize) -> &'a mut [f32] {
    std::slice::from_raw_parts_mut((start as *mut f32).add(offset), length)
}

#[inline(always)]
fn dot(left: &[f32], right: &[f32]) -> f32 {
    const LANES: usize = 16; // independent sums, which the compiler keeps in wide registers
    let (mut sums, whole) = ([0.0f32; LANES], left.len() / LANES * LANES);
    for (left, right) in left.chunks_exact(LANES).zip(right.chunks_exact(LANES)) {
        for lane in 0..LANES {
            sums[lane] += left[lane] * right[lane];
        }
    }
    let rest: f32 = left[whole..].iter().zip(&right[whole..]).map(|(left, right)| left * right).sum();
    let mut lanes = LANES;
    while lanes > 1 {
        lanes /= 2;
        for lane in 0..lanes {
            sums[lane] += sums[lane + lanes];
        }
    }
    sums[0] + rest
}

#[inline(always)]
fn normalise(numbers: &mut [f32], eps: f32) {
    let factor = 1.0 / (dot(numbers, numbers) / numbers.len() as f32 + eps).sqrt();
    numbers.iter_mut().for_each(|number| *number *= factor);
}

/// e to the power of each number minus `highest`, which is the highest number; returns the sum. Each power is exact to
/// two units in the last place. The compiler makes wide instructions of it, unlike of `f32::exp`.
#[inline(always)]
fn exponentials(numbers: &mut [f32], highest: f32) -> f32 {
    const ROUND: f32 = 12_582_912.0; // 1.5 * 2^23: adding it rounds to a whole number
    for number in numbers.iter_mut() {
        let exponent = (*number - highest).max(-87.0);
        let shifted = exponent * std::f32::consts::LOG2_E + ROUND;
        let whole = shifted - ROUND;
        let rest = (exponent - whole * 0.693_359_4) + whole * 2.121_944_4e-4; // ln 2 in two parts
        let series = 1.0 / 720.0;
        let series = series * rest + 1.0 / 120.0;
        let series = series * rest + 1.0 / 24.0;
        let series = series * rest + 1.0 / 6.0;
        let series = series * rest + 0.5;
        let series = series * rest * rest + rest + 1.0;
        *number = series * f32::from_bits(((shifted.to_bits() << 23) as i32 + 0x3f80_0000) as u32);
    }
    numbers.iter().sum()
}

/// Runs `task` with wide instructions where the processor has them.
fn with_wide_instructions(task: impl Fn()) {
    #[cfg(target_arch = "x86_64")]
    {
        #[target_feature(enable = "avx2")]
        unsafe fn wide(task: impl Fn()) {
            task();
        }
        if std::arch::is_x86_feature_detected!("avx2") {
            return unsafe { wide(task) };
        }
    }
    task();
}

/// Root mean square norm of each row.
///
/// Args: the input as (address, (stride of rows, stride of columns)); the address of the output, which is contiguous;
/// rows and columns; epsilon.
#[pyfunction]
pub fn rms_norm(input: (usize, (usize, usize)), output: usize, shape: (usize, usize), eps: f32) {
    let (input, (rows, width)) = (Matrix { start: input.0, strides: input.1 }, shape);
    with_wide_instructions(
        #[inline(always)]
        || {
            for row in 0..rows {
                unsafe {
                    let output = numbers_mut(output, row * width, width);
                    input.read(row, 0, output);
                    normalise(output, eps);
                }
            }
        },
    );
}

/// Attention of one token per row and layer, with all that surrounds it.
#[derive(Clone, Copy)]
struct Attention {
    product: Matrix,              // [R, (H + 2 K) D], and K gates where there are embedded values
    heads: (usize, usize, usize), // H, K, D
    rotation: (usize, usize),     // cosines and sines [positions, D], as FastDecoder has them
    places: usize,                // i64 [3, R]: position, first visible column, column of the token
    buffers: (usize, usize, usize, usize, usize), // keys, values; strides of rows and heads; slots
    prefix: Option<(usize, usize, usize, usize)>, // keys and values that all rows share; stride of heads; tokens
    embedded: Option<(usize, usize)>, // table [V, K D] and i64 tokens [R]
    numbers: (f32, f32),          // scale of the scores, epsilon
    output: usize,                // [R, H D]
}

impl Attention {
    /// # Safety
    /// All addresses and shapes are right, and no two calls have a row in common.
    #[inline(always)]
    unsafe fn run(&self, rows: Range<usize>, num_rows: usize, scratch: &mut Vec<f32>) {
        let ((heads, kv_heads, width), (scale, eps)) = (self.heads, self.numbers);
        let (keys, values, row_stride, head_stride, slots) = self.buffers;
        let places: &[i64] = numbers(self.places, 0, 3 * num_rows);
        let (mut states, mut rotated) = (vec![0.0; (heads + 2 * kv_heads) * width + kv_heads], vec![0.0; width]);
        for row in rows {
            let place = |kind: usize| places[kind * num_rows + row] as usize;
            let (position, first, last) = (place(0), place(1), place(2));
            let (states, gates) = states.split_at_mut((heads + 2 * kv_heads) * width);
            self.product.read(row, 0, states);
            let (queries_keys, own_values) = states.split_at_mut((heads + kv_heads) * width);
            if let Some((table, tokens)) = self.embedded {
                self.product.read(row, (heads + 2 * kv_heads) * width, gates);
                let token = numbers::<i64>(tokens, row, 1)[0] as usize;
                let embedded: &[f32] = numbers(table, token * kv_heads * width, kv_heads * width);
                for (head, gate) in gates.iter().enumerate() {
                    let factor = 3.0 / (1.0 + (-gate).exp());
                    let range = head * width..(head + 1) * width;
                    for (value, embedded) in own_values[range.clone()].iter_mut().zip(&embedded[range]) {
                        *value += factor * embedded;
                    }
                }
            }
            let cos: &[f32] = numbers(self.rotation.0, position * width, width);
            let sin: &[f32] = numbers(self.rotation.1, position * width, width);
            for state in queries_keys.chunks_exact_mut(width) {
                let (low, high) = state.split_at(width / 2);
                for index in 0..width / 2 {
                    rotated[index] = low[index] * cos[index] + high[index] * sin[index];
                    rotated[width / 2 + index] =
                        high[index] * cos[width / 2 + index] + low[index] * sin[width / 2 + index];
                }
                normalise(&mut rotated, eps);
                state.copy_from_slice(&rotated);
            }
            for head in 0..kv_heads {
                let (offset, range) = (row * row_stride + head * head_stride, head * width..(head + 1) * width);
                let at = offset + last % slots * width;
                numbers_mut(keys, at, width).copy_from_slice(&queries_keys[heads * width..][range.clone()]);
                numbers_mut(values, at, width).copy_from_slice(&own_values[range]);
            }
            for head in 0..heads {
                let kv_head = head / (heads / kv_heads);
                let offset = row * row_stride + kv_head * head_stride;
                // The visible tokens in up to three pieces: the prefix, and the ring's two parts.
                let (begin, end, count) = (first % slots, last % slots + 1, last + 1 - first);
                let own = if begin < end { [begin..end, 0..0] } else { [begin..slots, 0..count - (slots - begin)] };
                let shared = self.prefix.map(|(keys, values, stride, tokens)| {
                    (keys, values, kv_head * stride, 0..tokens) //
                });
                let pieces = shared.into_iter().chain(own.map(|slots| (keys, values, offset, slots)));
                let query = &queries_keys[head * width..(head + 1) * width];
                scratch.clear();
                for (keys, _, offset, tokens) in pieces.clone() {
                    let keys: &[f32] = numbers(keys, offset + tokens.start * width, tokens.len() * width);
                    scratch.extend(keys.chunks_exact(width).map(|key| scale * dot(query, key)));
                }
                let highest = scratch.iter().copied().fold(f32::NEG_INFINITY, f32::max);
                let total = exponentials(scratch, highest);
                let output = numbers_mut(self.output, (row * heads + head) * width, width);
                output.fill(0.0);
                let mut weights = scratch.iter();
                for (_, values, offset, tokens) in pieces {
                    let values: &[f32] = numbers(values, offset + tokens.start * width, tokens.len() * width);
                    for (value, &weight) in values.chunks_exact(width).zip(&mut weights) {
                        for (sum, number) in output.iter_mut().zip(value) {
                            *sum += weight * number;
                        }
                    }
                }
                output.iter_mut().for_each(|sum| *sum /= total);
            }
        }
    }
}

/// Attention of one token per row: gated embedded values, rotation, norms of queries and keys, writing to the buffers,
/// and attention over them. The arguments are the fields of `Attention`; `columns` is about how many a row sees.
#[pyfunction]
#[allow(clippy::too_many_arguments)]
pub fn attend(
    py: Python,
    product: (usize, (usize, usize)),
    num_rows: usize,
    heads: (usize, usize, usize),
    rotation: (usize, usize),
    places: usize,
    columns: usize,
    buffers: (usize, usize, usize, usize, usize),
    prefix: Option<(usize, usize, usize, usize)>,
    embedded: Option<(usize, usize)>,
    numbers: (f32, f32),
    output: usize,
    num_threads: usize,
) {
    let product = Matrix { start: product.0, strides: product.1 };
    let attention = Attention { product, heads, rotation, places, buffers, prefix, embedded, numbers, output };
    let work = num_rows * columns * heads.0 * heads.2;
    let threads = (work / WORK_PER_THREAD + 1).min(num_threads).min(num_rows);
    let part = |index: usize| {
        let rows = num_rows * index / threads..num_rows * (index + 1) / threads;
        let scratch = std::cell::RefCell::new(Vec::with_capacity(columns + 1));
        with_wide_instructions(
            #[inline(always)]
            || unsafe { attention.run(rows.clone(), num_rows, &mut scratch.borrow_mut()) },
        );
    };
    if work < WORK_PER_THREAD {
        return part(0); // shorter than it takes other Python threads to notice that they could run
    }
    py.detach(|| {
        std::thread::scope(|scope| {
            for index in 1..threads {
                scope.spawn(move || part(index));
            }
            part(0);
        });
    });
}
