//! The merge loop of BPE training: merge the most frequent pair of neighbouring tokens, and repeat.
//!
//! All distinct words are stored in one array with one slot per byte and a boundary slot between words. A token covers
//! as many slots as it has bytes. Its id stands in its first and its last slot, so both neighbours are found with one
//! look-up each, and a merge is done in place. A pair keeps the positions where it occurs. A position is checked when
//! it is used, and never removed.
//!
//! After the step that creates a pair, its count only falls. So a heap whose counts are updated lazily still returns
//! the true maximum (ties: the smaller pair). Pairs below `min_count` are not kept, because training rarely reaches
//! them. When the heap is empty, `min_count` is lowered and the pairs are counted again from the slots.

use std::collections::{BinaryHeap, HashMap};
use std::hash::{BuildHasherDefault, Hasher};

use crate::words::WordTable;

const BOUNDARY: u32 = u32::MAX; // id of a slot between two words
const INNER: u32 = u32::MAX - 1; // id of a slot inside a token
const NONE: u32 = u32::MAX;

#[derive(Clone, Copy)]
struct Slot {
    id: u32,   // of the token that starts or ends here
    word: u32, // index into `Merger::counts`
}

#[derive(Default)]
pub struct PairHasher(u64);

impl Hasher for PairHasher {
    fn write(&mut self, _: &[u8]) {
        unreachable!("pairs are hashed as u64");
    }
    fn write_u64(&mut self, pair: u64) {
        let product = (pair ^ 0x9e37_79b9_7f4a_7c15) as u128 * 0xd6e8_feb8_6659_fd93;
        self.0 = product as u64 ^ (product >> 64) as u64;
    }
    fn finish(&self) -> u64 {
        self.0
    }
}

pub type PairMap<V> = HashMap<u64, V, BuildHasherDefault<PairHasher>>;

#[inline(always)]
pub fn pair(left: u32, right: u32) -> u64 {
    (left as u64) << 32 | right as u64
}

/// A pair that is kept: its exact count, and the range of its positions in `Merger::positions`.
struct PairRecord {
    count: u64,
    start: usize,
    length: usize,
}

/// Order in the heap: the highest count first, then the smaller pair.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct HeapEntry {
    count: u64,
    pair: std::cmp::Reverse<u64>,
    record: u32,
}

/// How one merge changes the pairs with one neighbour.
#[derive(Clone, Copy)]
struct NeighbourChange {
    neighbour: u32,
    is_left: bool,
    gained: u64,        // count of the neighbour's pair with the new token
    lost: u64,          // decrease of the count of the neighbour's old pair
    occurrences: usize, // number of positions
    start: usize,
}

/// The state of BPE training between two merges.
pub struct Merger {
    slots: Vec<Slot>,
    counts: Vec<u64>,  // by word
    lengths: Vec<u32>, // by id: bytes of the token
    records: Vec<PairRecord>,
    record_of_pair: PairMap<u32>,
    positions: Vec<u32>,
    heap: BinaryHeap<HeapEntry>,
    min_count: u64,
    changes: Vec<NeighbourChange>,
    occurrences: Vec<(u32, u32)>, // (index into changes, position)
    left_change_of: Vec<u32>,     // by id of the neighbour: index into changes, or NONE
    right_change_of: Vec<u32>,
}

impl Merger {
    /// Takes the words out of `table`. `num_merges` only sets the first `min_count`.
    pub fn new(table: WordTable, num_merges: usize) -> Result<Self, String> {
        let (mut words, mut bytes, mut total) = (0usize, 0usize, 0u64);
        table.for_each(|word, count| {
            if word.len() > 1 {
                words += 1;
                bytes += word.len();
                total += count;
            }
        });
        if words + bytes + 1 >= INNER as usize {
            return Err(format!("{bytes} bytes of distinct words are more than can be indexed; lower max_words"));
        }
        let mut slots = Vec::with_capacity(words + bytes + 1);
        let mut counts = Vec::with_capacity(words);
        slots.push(Slot { id: BOUNDARY, word: 0 });
        table.for_each(|word, count| {
            if word.len() > 1 {
                let index = counts.len() as u32;
                counts.push(count);
                slots.extend(word.iter().map(|&byte| Slot { id: byte as u32, word: index }));
                slots.push(Slot { id: BOUNDARY, word: index });
            }
        });
        drop(table);
        let mut merger = Merger {
            slots,
            counts,
            lengths: vec![1; 256],
            records: Vec::new(),
            record_of_pair: PairMap::default(),
            positions: Vec::new(),
            heap: BinaryHeap::new(),
            min_count: (total / (num_merges as u64 * 32 + 1)).max(1),
            changes: Vec::new(),
            occurrences: Vec::new(),
            left_change_of: vec![NONE; 256 + num_merges],
            right_change_of: vec![NONE; 256 + num_merges],
        };
        merger.rebuild();
        Ok(merger)
    }

    /// Does the next merge and returns its pair of ids, or `None` if no pair is left.
    pub fn step(&mut self) -> Option<(u32, u32)> {
        let (record, key) = self.most_frequent()?;
        let (left, right) = ((key >> 32) as u32, key as u32);
        self.merge(record, left, right);
        self.record_of_pair.remove(&key);
        self.records[record].count = 0;
        Some((left, right))
    }

    /// The record and the key of the most frequent pair; takes it off the heap.
    fn most_frequent(&mut self) -> Option<(usize, u64)> {
        loop {
            let Some(mut entry) = self.heap.pop() else {
                if self.min_count == 1 {
                    return None;
                }
                self.min_count = (self.min_count / 8).max(1);
                self.rebuild();
                continue;
            };
            let count = self.records[entry.record as usize].count;
            if count == entry.count {
                return Some((entry.record as usize, entry.pair.0));
            }
            if count >= self.min_count {
                entry.count = count;
                self.heap.push(entry);
            }
        }
    }

    /// Counts all pairs from the slots. Keeps those with at least `min_count`, with their positions.
    fn rebuild(&mut self) {
        self.records.clear();
        self.heap.clear();
        self.positions.clear();
        let mut counted = PairMap::<(u64, u32)>::default();
        self.for_each_pair(|slots, counts, at, next| {
            let entry = counted.entry(pair(slots[at].id, slots[next].id)).or_default();
            entry.0 += counts[slots[at].word as usize];
            entry.1 += 1;
        });
        let mut record_of_pair = PairMap::<u32>::default();
        let mut used = 0;
        for (key, (count, occurrences)) in counted {
            if count >= self.min_count {
                record_of_pair.insert(key, self.records.len() as u32);
                let record = self.records.len() as u32;
                self.records.push(PairRecord { count, start: used, length: 0 });
                self.heap.push(HeapEntry { count, pair: std::cmp::Reverse(key), record });
                used += occurrences as usize;
            }
        }
        let mut positions = std::mem::take(&mut self.positions);
        let mut records = std::mem::take(&mut self.records);
        positions.resize(used, 0);
        self.for_each_pair(|slots, _, at, next| {
            if let Some(&record) = record_of_pair.get(&pair(slots[at].id, slots[next].id)) {
                let record = &mut records[record as usize];
                positions[record.start + record.length] = at as u32;
                record.length += 1;
            }
        });
        self.positions = positions;
        self.records = records;
        self.record_of_pair = record_of_pair;
    }

    /// Calls `visit(slots, counts, at, next)` for every pair of tokens: their first slots.
    fn for_each_pair(&self, mut visit: impl FnMut(&[Slot], &[u64], usize, usize)) {
        let (slots, end) = (&self.slots[..], self.slots.len());
        let mut at = 1;
        while at < end {
            if slots[at].id == BOUNDARY {
                at += 1;
                continue;
            }
            let next = at + self.lengths[slots[at].id as usize] as usize;
            if slots[next].id != BOUNDARY {
                visit(slots, &self.counts, at, next);
            }
            at = next;
        }
    }

    /// Merges the pair at all its positions.
    fn merge(&mut self, record: usize, left: u32, right: u32) {
        let new = self.lengths.len() as u32;
        let (left_length, right_length) =
            (self.lengths[left as usize] as usize, self.lengths[right as usize] as usize);
        self.lengths.push((left_length + right_length) as u32);
        let (start, length) = (self.records[record].start, self.records[record].length);
        for index in start..start + length {
            let at = self.positions[index] as usize;
            let middle = at + left_length;
            if self.slots[at].id != left || self.slots[middle].id != right {
                continue; // one of the two was merged with another neighbour before
            }
            let count = self.counts[self.slots[at].word as usize];
            let end = middle + right_length;
            let (before, after) = (self.slots[at - 1].id, self.slots[end].id);
            self.slots[middle - 1].id = INNER;
            self.slots[middle].id = INNER;
            self.slots[at].id = new;
            self.slots[end - 1].id = new;
            if before == new {
                // The new token on the left was made just before, and counted its pair with the `left` merged here.
                let change = self.right_change_of[left as usize] as usize;
                self.changes[change].gained -= count;
                self.record_change(true, new, at - left_length - right_length, count, 0);
            } else if before != BOUNDARY {
                self.record_change(true, before, at - self.lengths[before as usize] as usize, count, count);
            }
            if after != BOUNDARY {
                self.record_change(false, after, at, count, count);
            }
        }
        self.apply_changes(new, left, right);
    }

    /// Adds one position at which the pair with `neighbour` changes.
    #[inline(always)]
    fn record_change(&mut self, is_left: bool, neighbour: u32, at: usize, gained: u64, lost: u64) {
        let index = if is_left { &mut self.left_change_of } else { &mut self.right_change_of };
        let mut change = index[neighbour as usize];
        if change == NONE {
            change = self.changes.len() as u32;
            index[neighbour as usize] = change;
            self.changes.push(NeighbourChange { neighbour, is_left, gained: 0, lost: 0, occurrences: 0, start: 0 });
        }
        let entry = &mut self.changes[change as usize];
        entry.gained += gained;
        entry.lost += lost;
        entry.occurrences += 1;
        self.occurrences.push((change, at as u32));
    }

    /// Applies the recorded changes to the table of pairs.
    fn apply_changes(&mut self, new: u32, left: u32, right: u32) {
        let mut used = self.positions.len();
        for change in &mut self.changes {
            let index = if change.is_left { &mut self.left_change_of } else { &mut self.right_change_of };
            index[change.neighbour as usize] = NONE;
            let (old, made) = if change.is_left {
                (pair(change.neighbour, left), pair(change.neighbour, new))
            } else {
                (pair(right, change.neighbour), pair(new, change.neighbour))
            };
            if change.lost > 0 {
                if let Some(&record) = self.record_of_pair.get(&old) {
                    let count = &mut self.records[record as usize].count;
                    *count = count.saturating_sub(change.lost);
                }
            }
            change.start = usize::MAX;
            if change.gained >= self.min_count {
                let record = self.records.len() as u32;
                self.record_of_pair.insert(made, record);
                self.records.push(PairRecord { count: change.gained, start: used, length: change.occurrences });
                self.heap.push(HeapEntry { count: change.gained, pair: std::cmp::Reverse(made), record });
                change.start = used;
                used += change.occurrences;
            }
        }
        self.positions.resize(used, 0);
        for &(change, at) in &self.occurrences {
            let change = &mut self.changes[change as usize];
            if change.start != usize::MAX {
                self.positions[change.start] = at;
                change.start += 1;
            }
        }
        self.changes.clear();
        self.occurrences.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_have_64_bits() {
        let mut table = WordTable::new();
        for (word, count) in [("ab", 1 << 40), ("cd", (1 << 40) + 1), ("ef", 1 << 33), ("ef", 1 << 33)] {
            table.add(word.as_bytes(), count);
        }
        let mut merger = Merger::new(table, 3).unwrap();
        let pairs: Vec<_> = std::iter::from_fn(|| merger.step()).collect();
        assert_eq!(pairs, [(99, 100), (97, 98), (101, 102)]);
        assert_eq!(merger.step(), None);
    }
}
