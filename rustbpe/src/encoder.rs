//! From text to ids: split, look the piece up, merge what is not a token itself.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap};
use std::sync::atomic::{AtomicBool, Ordering};

use crate::merge::{pair, PairMap};
use crate::splitter::Splitter;
use crate::words::{hash_key, pack, Key, SHORT};

const NONE: u32 = u32::MAX;
const CACHE_PLACES: usize = 1 << 16;
const CACHED_IDS: usize = 3;

/// A vocabulary ready for encoding; shared by all threads.
pub struct Encoder {
    splitter: Splitter,
    byte_ids: [u32; 256],
    merges: PairMap<(u32, u32)>, // pair → (rank, new id)
    whole: HashMap<Box<[u8]>, u32>,
}

/// One place of the cache of short pieces: the piece, how many ids it has, and the ids.
#[derive(Clone, Copy)]
struct Cached {
    key: Key,
    ids: [u32; CACHED_IDS],
    count: u32,
}

/// What one thread needs for itself: a cache with one place a hash, and room to merge in.
pub struct Workspace {
    cache: Vec<Cached>,
    ids: Vec<u32>,
    ranks: Vec<u32>,
    heap: BinaryHeap<Reverse<(u32, u32)>>,
    next: Vec<u32>,
    previous: Vec<u32>,
}

impl Workspace {
    pub fn new() -> Self {
        let free = Cached { key: [0, 0], ids: [0; CACHED_IDS], count: 0 };
        Workspace {
            cache: vec![free; CACHE_PLACES],
            ids: Vec::new(),
            ranks: Vec::new(),
            heap: BinaryHeap::new(),
            next: Vec::new(),
            previous: Vec::new(),
        }
    }
}

impl Encoder {
    /// `tokens`: bytes and id of every token that text can become; `merges`: pairs of ids in order of rank, with the
    /// id they make.
    pub fn new(
        pattern: Option<&str>,
        tokens: Vec<(Vec<u8>, u32)>,
        merges: Vec<(u32, u32, u32)>,
    ) -> Result<Self, String> {
        let mut byte_ids = [NONE; 256];
        let mut whole = HashMap::with_capacity(tokens.len());
        for (bytes, id) in tokens {
            if let [byte] = bytes[..] {
                byte_ids[byte as usize] = id;
            }
            whole.insert(bytes.into_boxed_slice(), id);
        }
        if let Some(byte) = byte_ids.iter().position(|&id| id == NONE) {
            return Err(format!("the vocabulary has no token for byte {byte}; only byte-level vocabularies will do"));
        }
        let mut by_pair = PairMap::default();
        for (rank, (left, right, made)) in merges.into_iter().enumerate() {
            by_pair.entry(pair(left, right)).or_insert((rank as u32, made));
        }
        Ok(Encoder { splitter: Splitter::new(pattern)?, byte_ids, merges: by_pair, whole })
    }

    pub fn splitter(&self) -> &Splitter {
        &self.splitter
    }

    /// Appends the ids of `text` to `out`. Ends early, with ids that mean nothing, once `stop` is set.
    pub fn encode(
        &self,
        text: &str,
        space: &mut Workspace,
        out: &mut Vec<u32>,
        stop: &AtomicBool,
    ) -> Result<(), String> {
        self.splitter.split(text, true, |piece| {
            self.encode_piece(piece, space, out, stop);
            !stop.load(Ordering::Relaxed)
        })
    }

    #[inline(always)]
    fn encode_piece(&self, piece: &[u8], space: &mut Workspace, out: &mut Vec<u32>, stop: &AtomicBool) {
        if piece.len() > SHORT {
            self.merge_piece(piece, space, stop);
            out.extend_from_slice(&space.ids);
            return;
        }
        let key = pack(piece);
        let place = hash_key(key) as usize & (CACHE_PLACES - 1);
        let cached = &space.cache[place];
        if cached.key == key {
            out.extend_from_slice(&cached.ids[..cached.count as usize]);
            return;
        }
        self.merge_piece(piece, space, stop);
        out.extend_from_slice(&space.ids);
        if space.ids.len() <= CACHED_IDS {
            let cached = &mut space.cache[place];
            cached.key = key;
            cached.count = space.ids.len() as u32;
            cached.ids[..space.ids.len()].copy_from_slice(&space.ids);
        }
    }

    /// Leaves the ids of one piece in `space.ids`.
    #[inline(never)]
    fn merge_piece(&self, piece: &[u8], space: &mut Workspace, stop: &AtomicBool) {
        space.ids.clear();
        if let Some(&id) = self.whole.get(piece) {
            space.ids.push(id);
            return;
        }
        space.ids.extend(piece.iter().map(|&byte| self.byte_ids[byte as usize]));
        if piece.len() <= 48 {
            self.merge_short(space);
        } else {
            self.merge_long(space, stop);
        }
    }

    fn rank(&self, left: u32, right: u32) -> u32 {
        self.merges.get(&pair(left, right)).map_or(NONE, |found| found.0)
    }

    /// Repeated search of the lowest rank: quadratic, and the fastest for the length of a word.
    fn merge_short(&self, space: &mut Workspace) {
        let (ids, ranks) = (&mut space.ids, &mut space.ranks);
        ranks.clear();
        ranks.extend(ids.windows(2).map(|two| self.rank(two[0], two[1])));
        loop {
            let Some((at, &lowest)) = ranks.iter().enumerate().min_by_key(|(_, &rank)| rank) else { return };
            if lowest == NONE {
                return;
            }
            ids[at] = self.merges[&pair(ids[at], ids[at + 1])].1;
            ids.remove(at + 1);
            ranks.remove(at);
            if at > 0 {
                ranks[at - 1] = self.rank(ids[at - 1], ids[at]);
            }
            if at + 1 < ids.len() {
                ranks[at] = self.rank(ids[at], ids[at + 1]);
            }
        }
    }

    /// A linked list of tokens and a heap of (rank, position): n log n for pieces of any length.
    fn merge_long(&self, space: &mut Workspace, stop: &AtomicBool) {
        let Workspace { ids, heap, next, previous, .. } = space;
        let length = ids.len() as u32;
        next.clear();
        next.extend(1..=length);
        previous.clear();
        previous.extend((0..length).map(|at| at.wrapping_sub(1)));
        heap.clear();
        heap.extend(ids.windows(2).enumerate().filter_map(|(at, two)| {
            self.merges.get(&pair(two[0], two[1])).map(|&(rank, _)| Reverse((rank, at as u32)))
        }));
        while let Some(Reverse((rank, at))) = heap.pop() {
            let (left, right) = (at as usize, next[at as usize] as usize);
            if stop.load(Ordering::Relaxed) {
                return;
            }
            if ids[left] == NONE || right >= length as usize {
                continue;
            }
            let Some(&(now, made)) = self.merges.get(&pair(ids[left], ids[right])) else { continue };
            if now != rank {
                continue; // one of the two has changed since
            }
            ids[left] = made;
            ids[right] = NONE;
            let after = next[right];
            next[left] = after;
            if after < length {
                previous[after as usize] = at;
                if let Some(&(rank, _)) = self.merges.get(&pair(made, ids[after as usize])) {
                    heap.push(Reverse((rank, at)));
                }
            }
            let before = previous[left];
            if before != NONE {
                if let Some(&(rank, _)) = self.merges.get(&pair(ids[before as usize], made)) {
                    heap.push(Reverse((rank, before)));
                }
            }
        }
        ids.retain(|&id| id != NONE);
    }
}
