//! The merge loop: which pair of neighbouring tokens is the most frequent, again and again.
//!
//! All distinct words lie in one array of slots, one slot a byte, a wall between words. A token covers as many slots as
//! it has bytes and writes its id into its first and its last slot, so both neighbours are one look away and a merge
//! is done in place. A pair keeps the positions where it was seen; a position is checked when it is used, never removed.
//!
//! Counts of a pair only fall after the step that made it, so a heap with lazily refreshed counts gives the true
//! maximum (ties: the smaller pair), and pairs below a floor that training will not reach need not be kept at all:
//! where the heap runs dry, the floor sinks and the table is rebuilt from the slots.

use std::collections::{BinaryHeap, HashMap};
use std::hash::{BuildHasherDefault, Hasher};

use crate::words::WordTable;

const WALL: u32 = u32::MAX;
const HOLE: u32 = u32::MAX - 1;
const NONE: u32 = u32::MAX;

#[derive(Clone, Copy)]
struct Slot {
    id: u32,
    word: u32,
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

/// A pair worth keeping: its exact count and where its positions lie in `Merger::positions`.
struct Record {
    count: u64,
    start: usize,
    length: usize,
}

/// In the heap: highest count first, then the smaller pair.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct Candidate {
    count: u64,
    pair: std::cmp::Reverse<u64>,
    record: u32,
}

/// What one merge does to the pairs with one neighbour.
#[derive(Clone, Copy)]
struct Change {
    neighbour: u32,
    is_left: bool,
    gained: u64, // count of the pair with the new token
    lost: u64,   // fall of the pair that was there before
    seen: usize, // positions
    start: usize,
}

pub struct Merger {
    slots: Vec<Slot>,
    counts: Vec<u64>,
    lengths: Vec<u32>,
    records: Vec<Record>,
    by_pair: PairMap<u32>,
    positions: Vec<u32>,
    heap: BinaryHeap<Candidate>,
    floor: u64,
    changes: Vec<Change>,
    sightings: Vec<(u32, u32)>, // (index into changes, position)
    left_change: Vec<u32>,      // by neighbour id, NONE where there is none
    right_change: Vec<u32>,
}

impl Merger {
    /// Takes the words out of `table`. `num_merges` only sets the first guess of the floor.
    pub fn new(table: WordTable, num_merges: usize) -> Result<Self, String> {
        let (mut words, mut bytes, mut total) = (0usize, 0usize, 0u64);
        table.for_each(|word, count| {
            if word.len() > 1 {
                words += 1;
                bytes += word.len();
                total += count;
            }
        });
        if words + bytes + 1 >= HOLE as usize {
            return Err(format!("{bytes} bytes of distinct words are more than can be indexed; lower max_words"));
        }
        let mut slots = Vec::with_capacity(words + bytes + 1);
        let mut counts = Vec::with_capacity(words);
        slots.push(Slot { id: WALL, word: 0 });
        table.for_each(|word, count| {
            if word.len() > 1 {
                let index = counts.len() as u32;
                counts.push(count);
                slots.extend(word.iter().map(|&byte| Slot { id: byte as u32, word: index }));
                slots.push(Slot { id: WALL, word: index });
            }
        });
        drop(table);
        let mut merger = Merger {
            slots,
            counts,
            lengths: vec![1; 256],
            records: Vec::new(),
            by_pair: PairMap::default(),
            positions: Vec::new(),
            heap: BinaryHeap::new(),
            floor: (total / (num_merges as u64 * 32 + 1)).max(1),
            changes: Vec::new(),
            sightings: Vec::new(),
            left_change: vec![NONE; 256 + num_merges],
            right_change: vec![NONE; 256 + num_merges],
        };
        merger.rebuild();
        Ok(merger)
    }

    /// The next merge, carried out, or `None` where no pair is left.
    pub fn step(&mut self) -> Option<(u32, u32)> {
        let (record, key) = self.most_frequent()?;
        let (left, right) = ((key >> 32) as u32, key as u32);
        self.merge(record, left, right);
        self.by_pair.remove(&key);
        self.records[record].count = 0;
        Some((left, right))
    }

    fn most_frequent(&mut self) -> Option<(usize, u64)> {
        loop {
            let Some(mut top) = self.heap.pop() else {
                if self.floor == 1 {
                    return None;
                }
                self.floor = (self.floor / 8).max(1);
                self.rebuild();
                continue;
            };
            let count = self.records[top.record as usize].count;
            if count == top.count {
                return Some((top.record as usize, top.pair.0));
            }
            if count >= self.floor {
                top.count = count;
                self.heap.push(top);
            }
        }
    }

    /// Counts all pairs from the slots and keeps those that reach the floor, with their positions.
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
        let mut by_pair = PairMap::<u32>::default();
        let mut used = 0;
        for (key, (count, seen)) in counted {
            if count >= self.floor {
                by_pair.insert(key, self.records.len() as u32);
                let record = self.records.len() as u32;
                self.records.push(Record { count, start: used, length: 0 });
                self.heap.push(Candidate { count, pair: std::cmp::Reverse(key), record });
                used += seen as usize;
            }
        }
        let mut positions = std::mem::take(&mut self.positions);
        let mut records = std::mem::take(&mut self.records);
        positions.resize(used, 0);
        self.for_each_pair(|slots, _, at, next| {
            if let Some(&record) = by_pair.get(&pair(slots[at].id, slots[next].id)) {
                let record = &mut records[record as usize];
                positions[record.start + record.length] = at as u32;
                record.length += 1;
            }
        });
        self.positions = positions;
        self.records = records;
        self.by_pair = by_pair;
    }

    fn for_each_pair(&self, mut visit: impl FnMut(&[Slot], &[u64], usize, usize)) {
        let (slots, end) = (&self.slots[..], self.slots.len());
        let mut at = 1;
        while at < end {
            if slots[at].id == WALL {
                at += 1;
                continue;
            }
            let next = at + self.lengths[slots[at].id as usize] as usize;
            if slots[next].id != WALL {
                visit(slots, &self.counts, at, next);
            }
            at = next;
        }
    }

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
                continue; // merged with another neighbour since
            }
            let count = self.counts[self.slots[at].word as usize];
            let end = middle + right_length;
            let (before, after) = (self.slots[at - 1].id, self.slots[end].id);
            self.slots[middle - 1].id = HOLE;
            self.slots[middle].id = HOLE;
            self.slots[at].id = new;
            self.slots[end - 1].id = new;
            if before == new {
                // The new token just made on the left had counted its pair with the `left` that is now gone.
                let change = self.right_change[left as usize] as usize;
                self.changes[change].gained -= count;
                self.note(true, new, at - left_length - right_length, count, 0);
            } else if before != WALL {
                self.note(true, before, at - self.lengths[before as usize] as usize, count, count);
            }
            if after != WALL {
                self.note(false, after, at, count, count);
            }
        }
        self.settle(new, left, right);
    }

    #[inline(always)]
    fn note(&mut self, is_left: bool, neighbour: u32, at: usize, gained: u64, lost: u64) {
        let index = if is_left { &mut self.left_change } else { &mut self.right_change };
        let mut change = index[neighbour as usize];
        if change == NONE {
            change = self.changes.len() as u32;
            index[neighbour as usize] = change;
            self.changes.push(Change { neighbour, is_left, gained: 0, lost: 0, seen: 0, start: 0 });
        }
        let entry = &mut self.changes[change as usize];
        entry.gained += gained;
        entry.lost += lost;
        entry.seen += 1;
        self.sightings.push((change, at as u32));
    }

    /// Brings the noted changes into the table of pairs.
    fn settle(&mut self, new: u32, left: u32, right: u32) {
        let mut used = self.positions.len();
        for change in &mut self.changes {
            let index = if change.is_left { &mut self.left_change } else { &mut self.right_change };
            index[change.neighbour as usize] = NONE;
            let (old, made) = if change.is_left {
                (pair(change.neighbour, left), pair(change.neighbour, new))
            } else {
                (pair(right, change.neighbour), pair(new, change.neighbour))
            };
            if change.lost > 0 {
                if let Some(&record) = self.by_pair.get(&old) {
                    let count = &mut self.records[record as usize].count;
                    *count = count.saturating_sub(change.lost);
                }
            }
            change.start = usize::MAX;
            if change.gained >= self.floor {
                let record = self.records.len() as u32;
                self.by_pair.insert(made, record);
                self.records.push(Record { count: change.gained, start: used, length: change.seen });
                self.heap.push(Candidate { count: change.gained, pair: std::cmp::Reverse(made), record });
                change.start = used;
                used += change.seen;
            }
        }
        self.positions.resize(used, 0);
        for &(change, at) in &self.sightings {
            let change = &mut self.changes[change as usize];
            if change.start != usize::MAX {
                self.positions[change.start] = at;
                change.start += 1;
            }
        }
        self.changes.clear();
        self.sightings.clear();
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
