//! A cache of short words and their ids. All threads share it, and its size is fixed.
//!
//! A word that one thread has merged is known to all. An entry is read without a lock: the reader takes the entry's
//! state before and after its contents, and ignores the entry if the state has changed meanwhile (a seqlock).

use std::sync::atomic::Ordering::{Acquire, Relaxed, Release};
use std::sync::atomic::{fence, AtomicU32, AtomicU64, AtomicUsize};

use crate::processor::{advise_huge_pages, prefetch};
use crate::words::{hash_key, Key};

pub const ID_BITS: u32 = 21; // the bits of an id
pub const CACHED_IDS: usize = 3; // ids that an entry stores
const LINES: usize = 1 << 18; // 16 MB
const MAX_SPILLED_IDS: usize = 1 << 20; // 4 MB

// The bits of `Entry::state`. All bits are 0 in a free entry.
const COUNT: u64 = 15; // number of ids; a short word has at most 15 bytes
const SPILLED: u64 = 1 << 4; // more ids than `CACHED_IDS`: `Entry::ids` is an index into `WordCache::spilled`
const WRITING: u64 = 1 << 5;
const VERSION: u64 = 1 << 6; // added by each write; the bits from here on never repeat

#[derive(Default)]
struct Entry {
    state: AtomicU64,
    key: [AtomicU64; 2],
    ids: AtomicU64, // `CACHED_IDS` ids of `ID_BITS` bits
}

/// Two words with the same hash, in one line of the processor's cache.
///
/// The first keeps the word that came first, which is most likely a frequent one. The second keeps the latest word.
#[derive(Default)]
#[repr(align(64))]
struct Line([Entry; 2]);

pub struct WordCache {
    lines: Box<[Line]>,
    spilled: Box<[AtomicU32]>, // only ever added to
    num_spilled: AtomicUsize,
}

/// The ids of a word in the cache.
pub enum Found<'a> {
    Few([u32; CACHED_IDS], usize), // the second is their number
    Many(&'a [AtomicU32]),
}

impl WordCache {
    pub fn new() -> Self {
        Self::with_size(LINES, MAX_SPILLED_IDS)
    }

    fn with_size(lines: usize, max_spilled_ids: usize) -> Self {
        let mut empty_lines = Vec::with_capacity(lines);
        advise_huge_pages(&empty_lines);
        empty_lines.resize_with(lines, Line::default);
        WordCache {
            lines: empty_lines.into_boxed_slice(),
            spilled: (0..max_spilled_ids).map(|_| AtomicU32::new(0)).collect(),
            num_spilled: AtomicUsize::new(0),
        }
    }

    #[inline(always)]
    fn line(&self, key: Key) -> &Line {
        &self.lines[hash_key(key) as usize & (self.lines.len() - 1)]
    }

    /// Loads the line of a word in advance, so that it is there when `find` needs it.
    #[inline(always)]
    pub fn prefetch(&self, key: Key) {
        prefetch(self.line(key));
    }

    /// The ids of the word, if they are in the cache.
    #[inline(always)]
    pub fn find(&self, key: Key) -> Option<Found<'_>> {
        let [first, latest] = &self.line(key).0;
        let entry = if latest.has(key) { latest } else { first };
        let state = entry.state.load(Acquire);
        let (is_same, ids) = (entry.has(key), entry.ids.load(Relaxed));
        fence(Acquire);
        if !is_same || state & WRITING != 0 || entry.state.load(Relaxed) != state {
            return None;
        }
        let count = (state & COUNT) as usize;
        if state & SPILLED != 0 {
            return Some(Found::Many(&self.spilled[ids as usize..ids as usize + count]));
        }
        Some(Found::Few(
            std::array::from_fn(|index| (ids >> (index as u32 * ID_BITS)) as u32 & ((1 << ID_BITS) - 1)),
            count,
        ))
    }

    /// Adds a word of at least one id. Leaves it out where there is no room, or where another thread writes meanwhile.
    pub fn insert(&self, key: Key, ids: &[u32]) {
        let [first, latest] = &self.line(key).0;
        let entry = if first.state.load(Relaxed) == 0 { first } else { latest };
        let old = entry.state.load(Relaxed);
        let version = (old & !(VERSION - 1)) + VERSION;
        let (mut packed, mut state) = (0, version | ids.len() as u64);
        if ids.len() <= CACHED_IDS {
            for &id in ids.iter().rev() {
                packed = packed << ID_BITS | id as u64;
            }
        } else if let Some(index) = self.spill(ids) {
            (packed, state) = (index as u64, state | SPILLED);
        } else {
            return;
        }
        if old & WRITING != 0 || entry.state.compare_exchange(old, version | WRITING, Relaxed, Relaxed).is_err() {
            return;
        }
        fence(Release); // whoever sees a change below sees the state above too
        entry.key[0].store(key[0], Relaxed);
        entry.key[1].store(key[1], Relaxed);
        entry.ids.store(packed, Relaxed);
        entry.state.store(state, Release);
    }

    /// Stores ids for good and returns their index, or `None` if there is no room.
    fn spill(&self, ids: &[u32]) -> Option<usize> {
        let fits = |used: usize| (used + ids.len() <= self.spilled.len()).then_some(used + ids.len());
        let index = self.num_spilled.fetch_update(Relaxed, Relaxed, fits).ok()?;
        for (place, &id) in self.spilled[index..].iter().zip(ids) {
            place.store(id, Relaxed);
        }
        Some(index)
    }
}

impl Entry {
    #[inline(always)]
    fn has(&self, key: Key) -> bool {
        (self.key[0].load(Relaxed) ^ key[0]) | (self.key[1].load(Relaxed) ^ key[1]) == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::words::pack;

    /// The ids that the tests store for a number: 1 to 15, all different from those of other numbers.
    fn ids_of(number: u32) -> Vec<u32> {
        (0..number % 15 + 1).map(|index| (number * 31 + index) & ((1 << ID_BITS) - 1)).collect()
    }

    fn find(cache: &WordCache, number: u32) -> Option<Vec<u32>> {
        cache.find(pack(&number.to_le_bytes())).map(|found| match found {
            Found::Few(ids, count) => ids[..count].to_vec(),
            Found::Many(ids) => ids.iter().map(|id| id.load(Relaxed)).collect(),
        })
    }

    #[test]
    fn finds_what_was_inserted() {
        let cache = WordCache::with_size(1 << 12, 1 << 14);
        let last = [(1 << ID_BITS) - 1; CACHED_IDS];
        cache.insert(pack(b"last"), &last);
        assert!(matches!(cache.find(pack(b"last")), Some(Found::Few(ids, CACHED_IDS)) if ids == last));
        for number in 0..1000u32 {
            assert_eq!(find(&cache, number), None);
            cache.insert(pack(&number.to_le_bytes()), &ids_of(number));
            assert_eq!(find(&cache, number), Some(ids_of(number)));
        }
        let kept = (0..1000).filter(|&number| find(&cache, number).is_some()).count();
        assert!(kept > 950, "{kept} of 1000");
    }

    #[test]
    fn has_a_fixed_size() {
        assert_eq!(std::mem::size_of::<Line>(), 64);
        let cache = WordCache::with_size(4, 100);
        for number in 0..100_000u32 {
            cache.insert(pack(&number.to_le_bytes()), &ids_of(number));
            assert!(find(&cache, number).is_none_or(|ids| ids == ids_of(number)));
        }
        assert!(cache.num_spilled.load(Relaxed) <= 100);
        let kept = (0..100_000u32).filter(|&number| find(&cache, number).is_some()).count();
        assert!((1..=8).contains(&kept), "{kept}");
    }

    /// Many threads write and read the same few entries. Each that finds a number's ids finds exactly those.
    #[test]
    fn threads_never_see_half_of_an_entry() {
        let cache = WordCache::with_size(1, 1 << 10);
        let found: usize = std::thread::scope(|scope| {
            let workers: Vec<_> = (0..4)
                .map(|worker| {
                    let cache = &cache;
                    scope.spawn(move || {
                        let mut found = 0;
                        for round in 0..300_000u32 {
                            let number = (round * 7 + worker * 3) % 11 * 15 + round % 3; // 1 to 3 ids
                            match find(cache, number) {
                                Some(ids) => {
                                    assert_eq!(ids, ids_of(number));
                                    found += 1;
                                }
                                None => cache.insert(pack(&number.to_le_bytes()), &ids_of(number)),
                            }
                        }
                        found
                    })
                })
                .collect();
            workers.into_iter().map(|worker| worker.join().unwrap()).sum()
        });
        assert!(found > 0);
    }
}
