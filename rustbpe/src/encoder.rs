//! From text to ids: split, look the piece up, merge what is not a token itself.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap};
use std::sync::atomic::{AtomicBool, Ordering};

use crate::merge::{pair, PairMap};
use crate::splitter::Splitter;
use crate::words::{hash_key, pack, pack_at, Key, SHORT};

const NONE: u32 = u32::MAX;
const CACHE_PLACES: usize = 1 << 18;
const CACHED_IDS: usize = 3;
const FREE: Key = [0, 0]; // no piece is packed like this

/// A vocabulary ready for encoding; shared by all threads.
pub struct Encoder {
    splitter: Splitter,
    byte_ids: [u32; 256],
    merges: PairMap<(u32, u32)>,   // pair → (rank, new id)
    short: Vec<(Key, u32)>,        // the tokens of up to `SHORT` bytes: open addressing, at most half full
    long: HashMap<Box<[u8]>, u32>, // and the longer ones
    longest: usize,
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
        let free = Cached { key: FREE, ids: [0; CACHED_IDS], count: 0 };
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

/// The place of `key`, or the free place where it would go.
#[inline(always)]
fn find(table: &[(Key, u32)], key: Key) -> usize {
    let mask = table.len() - 1;
    let mut place = hash_key(key) as usize & mask;
    while table[place].0 != key && table[place].0 != FREE {
        place = (place + 1) & mask;
    }
    place
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
        let mut short = vec![(FREE, NONE); (tokens.len() * 2).next_power_of_two()];
        let mut long = HashMap::new();
        let longest = tokens.iter().map(|token| token.0.len()).max().unwrap_or(0);
        for (bytes, id) in tokens {
            if let [byte] = bytes[..] {
                byte_ids[byte as usize] = id;
            }
            if bytes.len() > SHORT {
                long.insert(bytes.into_boxed_slice(), id);
            } else if !bytes.is_empty() {
                let key = pack(&bytes);
                let place = find(&short, key);
                short[place] = (key, id);
            }
        }
        if let Some(byte) = byte_ids.iter().position(|&id| id == NONE) {
            return Err(format!("the vocabulary has no token for byte {byte}; only byte-level vocabularies will do"));
        }
        let mut by_pair = PairMap::default();
        for (rank, (left, right, made)) in merges.into_iter().enumerate() {
            by_pair.entry(pair(left, right)).or_insert((rank as u32, made));
        }
        Ok(Encoder { splitter: Splitter::new(pattern)?, byte_ids, merges: by_pair, short, long, longest })
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
        self.splitter.split(text, true, |text, start, end| {
            self.encode_piece(text, start, end, space, out, stop);
            !stop.load(Ordering::Relaxed)
        })
    }

    #[inline(always)]
    fn encode_piece(
        &self,
        text: &[u8],
        start: usize,
        end: usize,
        space: &mut Workspace,
        out: &mut Vec<u32>,
        stop: &AtomicBool,
    ) {
        if end - start > SHORT {
            self.encode_long(&text[start..end], space, stop);
            out.extend_from_slice(&space.ids);
            return;
        }
        let key = pack_at(text, start, end);
        let place = hash_key(key) as usize & (CACHE_PLACES - 1);
        let cached = &space.cache[place];
        if cached.key != key {
            self.encode_short(key, place, &text[start..end], space, stop);
            out.extend_from_slice(&space.ids);
        } else if cached.count == 1 {
            out.push(cached.ids[0]);
        } else {
            out.extend_from_slice(&cached.ids[..cached.count as usize]);
        }
    }

    /// A piece that the cache does not know: leaves its ids in `space.ids`, and in the cache.
    #[inline(never)]
    fn encode_short(&self, key: Key, place: usize, piece: &[u8], space: &mut Workspace, stop: &AtomicBool) {
        let (found, id) = self.short[find(&self.short, key)];
        space.ids.clear();
        if found == key {
            space.ids.push(id);
        } else {
            self.merge_piece(piece, space, stop);
        }
        if space.ids.len() <= CACHED_IDS {
            let cached = &mut space.cache[place];
            cached.key = key;
            cached.count = space.ids.len() as u32;
            cached.ids[..space.ids.len()].copy_from_slice(&space.ids);
        }
    }

    #[inline(never)]
    fn encode_long(&self, piece: &[u8], space: &mut Workspace, stop: &AtomicBool) {
        space.ids.clear();
        let whole = if piece.len() <= self.longest { self.long.get(piece) } else { None };
        match whole {
            Some(&id) => space.ids.push(id),
            None => self.merge_piece(piece, space, stop),
        }
    }

    /// Leaves the ids of a piece that is no token itself in `space.ids`.
    fn merge_piece(&self, piece: &[u8], space: &mut Workspace, stop: &AtomicBool) {
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
