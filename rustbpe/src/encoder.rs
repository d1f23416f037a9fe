//! From text to ids: split, look the piece up, merge what is not a token itself.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap};
use std::sync::atomic::{AtomicBool, Ordering};

use crate::splitter::{Splitter, MOST_PIECES};
use crate::words::{hash_bytes, hash_key, pack, pack_at, Key, SHORT};

const NONE: u32 = u32::MAX;
const LINES: usize = 1 << 18; // of the cache of short pieces: 16 MB a thread
const CACHED_IDS: usize = 3;
const MANY: u32 = 1 << 31; // set in the count of a piece whose ids lie elsewhere
const MORE: usize = 1 << 20; // ids that lie elsewhere, at most
const LONG_PLACES: usize = 1 << 12; // of the cache of longer pieces
const LONGEST: usize = 128; // and the longest piece it keeps
const FREE: Key = [0, 0]; // no piece is packed like this,
const NO_KEY: Key = [u64::MAX; 2]; // nor like this

/// A vocabulary ready for encoding; shared by all threads.
pub struct Encoder {
    splitter: Splitter,
    byte_ids: [u32; 256],
    pairs: PairTable,
    made: Vec<u32>, // by rank of the merge: the id it makes
    short: ShortTokens,
    long: HashMap<Box<[u8]>, u32>,
}

/// The tokens of up to `SHORT` bytes: a hash leads to an id, the id to the bytes. Ids go by rank, so the frequent tokens
/// lie side by side, and all of it fits in the processor's second-level cache.
struct ShortTokens {
    places: Places,
    keys: Vec<Key>, // by id; `NO_KEY` for longer tokens and, last of all, for free places
    others: HashMap<Key, u32>,
}

/// By hash: the id of the first token with it (the others are found by a map).
enum Places {
    Small(Vec<u16>),
    Large(Vec<u32>),
}

/// A short piece and its ids. The count lies behind the ids, so that all four words can be copied at once.
#[derive(Clone, Copy)]
struct Cached {
    key: Key,
    ids: [u32; CACHED_IDS], // of a piece with more ids: where they begin in `Workspace::more`
    count: u32,             // and then their number with the top bit set
}

/// Two places for the pieces of one hash, in one line of the processor's cache. The first stays with whoever comes first,
/// most likely a frequent word; the second is for the latest.
#[derive(Clone, Copy)]
#[repr(align(64))]
struct Line([Cached; 2]);

const FREE_LINE: Line = Line([Cached { key: FREE, ids: [0; CACHED_IDS], count: 0 }; 2]);

#[derive(Clone, Default)]
struct CachedLong {
    piece: Vec<u8>,
    ids: Vec<u32>,
}

/// Pieces of text on their way: packed, their ids as tokens, and which are none.
#[derive(Default)]
struct Pieces {
    keys: Vec<Key>,
    ids: Vec<u32>,
    others: Vec<usize>,
}

/// What one thread needs for itself: the ids it has made, what it has seen before, and room to merge in.
pub struct Workspace {
    pub ids: Vec<u32>, // the first `count` are ids, the others room
    pub count: usize,
    pieces: Pieces,
    lines: Vec<Line>,
    more: Vec<u32>,
    long: Vec<CachedLong>,
    heap: BinaryHeap<Reverse<(u32, u32)>>,
    pub steps: u64, // that the heap has given out
    merged: Vec<u32>,
    next: Vec<u32>,
    previous: Vec<u32>,
}

impl Encoder {
    /// `tokens`: bytes and id of every token that text can become; `merges`: pairs of ids in order of rank, with the
    /// id they make.
    pub fn new(
        pattern: Option<&str>,
        tokens: Vec<(Vec<u8>, u32)>,
        merges: Vec<(u32, u32, u32)>,
    ) -> Result<Self, String> {
        let ids = tokens.iter().map(|token| token.1).chain(merges.iter().flat_map(|merge| [merge.0, merge.1]));
        if ids.max().unwrap_or(0).max(merges.len() as u32) >> BITS != 0 {
            return Err(format!("the vocabulary is too large: ids go up to {}", (1 << BITS) - 1));
        }
        let mut byte_ids = [NONE; 256];
        let (mut short, mut long) = (Vec::new(), HashMap::new());
        for (bytes, id) in tokens {
            if let [byte] = bytes[..] {
                byte_ids[byte as usize] = id;
            }
            if bytes.len() > SHORT {
                long.insert(bytes.into_boxed_slice(), id);
            } else if !bytes.is_empty() {
                short.push((pack(&bytes), id));
            }
        }
        if let Some(byte) = byte_ids.iter().position(|&id| id == NONE) {
            return Err(format!("the vocabulary has no token for byte {byte}; only byte-level vocabularies will do"));
        }
        let made = merges.iter().map(|merge| merge.2).collect();
        let (splitter, pairs, short) = (Splitter::new(pattern)?, PairTable::new(&merges), ShortTokens::new(short));
        Ok(Encoder { splitter, byte_ids, pairs, made, short, long })
    }

    pub fn splitter(&self) -> &Splitter {
        &self.splitter
    }

    /// Appends the ids of `text` to those of `space`. Ends early, with ids that mean nothing, once `stop` is set.
    pub fn encode(&self, text: &str, space: &mut Workspace, stop: &AtomicBool) -> Result<(), String> {
        self.splitter.split(text, true, |text, start, ends| {
            self.encode_pieces(text, start, ends, space, stop);
            !stop.load(Ordering::Relaxed)
        })
    }

    /// Looks all pieces up among the tokens first, without a branch that depends on the text: so the processor waits
    /// for many places of memory at once. Then goes from one that is no token to the next.
    fn encode_pieces(&self, text: &[u8], start: usize, ends: &[usize], space: &mut Workspace, stop: &AtomicBool) {
        let mut pieces = std::mem::take(&mut space.pieces);
        let misses = match &self.short.places {
            Places::Small(places) => self.look_up(places, text, start, ends, &mut pieces),
            Places::Large(places) => self.look_up(places, text, start, ends, &mut pieces),
        };
        let Pieces { keys, ids, others } = &pieces;
        let others = &others[..misses];
        let touched = others.iter().fold(0, |touched, &other| touched | space.lines[place_of(keys[other])].0[0].count);
        std::hint::black_box(touched);
        let last = ends.last().map_or(start, |&end| end);
        space.make_room(last - start + CACHED_IDS + 1); // a token has a byte at least
        let mut done = 0;
        for &other in others {
            space.extend(&ids[done..other]);
            let begin = if other == 0 { start } else { ends[other - 1] };
            self.encode_other(keys[other], &text[begin..ends[other]], space, stop);
            done = other + 1;
        }
        space.extend(&ids[done..ends.len()]);
        space.pieces = pieces;
    }

    /// Fills `pieces`; returns how many are no token.
    #[inline(always)]
    fn look_up<Id: Copy + Into<u32>>(
        &self,
        places: &[Id],
        text: &[u8],
        start: usize,
        ends: &[usize],
        pieces: &mut Pieces,
    ) -> usize {
        pieces.keys.resize(MOST_PIECES, FREE);
        pieces.ids.resize(MOST_PIECES, NONE);
        pieces.others.resize(MOST_PIECES, 0);
        let (keys, ids, others) =
            (&mut pieces.keys[..ends.len()], &mut pieces.ids[..ends.len()], &mut pieces.others[..]);
        let (mut begin, mut misses) = (start, 0);
        for (index, ((&end, key), id)) in ends.iter().zip(keys).zip(ids).enumerate() {
            *key = if end - begin <= SHORT { pack_at(text, begin, end) } else { FREE };
            *id = self.short.find_first(places, *key);
            others[misses] = index;
            misses += (*id == NONE) as usize;
            begin = end;
        }
        misses
    }

    #[inline(always)]
    fn encode_other(&self, key: Key, piece: &[u8], space: &mut Workspace, stop: &AtomicBool) {
        if key == FREE {
            return self.encode_long(piece, space, stop);
        }
        let [one, other] = &space.lines[place_of(key)].0;
        let cached = if other.key == key { other } else { one };
        if cached.key != key {
            return self.encode_short(key, piece, space, stop);
        }
        let (ids, count) = (cached.ids, cached.count);
        if count & MANY != 0 {
            return space.extend_from_more(ids[0] as usize, (count & !MANY) as usize);
        }
        space.ids[space.count..space.count + CACHED_IDS].copy_from_slice(&ids);
        space.count += count as usize;
    }

    /// A short piece that the cache does not know, but will.
    #[inline(never)]
    fn encode_short(&self, key: Key, piece: &[u8], space: &mut Workspace, stop: &AtomicBool) {
        let before = space.count;
        match self.short.others.get(&key) {
            Some(&id) => space.extend(&[id]),
            None => self.merge(piece, space, stop),
        }
        space.remember(key, before);
    }

    #[inline(never)]
    fn encode_long(&self, piece: &[u8], space: &mut Workspace, stop: &AtomicBool) {
        if piece.len() > LONGEST {
            return self.find_or_merge(piece, space, stop);
        }
        let place = hash_bytes(piece) as usize & (LONG_PLACES - 1);
        let cached = &space.long[place];
        let before = space.count;
        if cached.piece == piece {
            space.count += cached.ids.len();
            space.ids[before..space.count].copy_from_slice(&cached.ids);
            return;
        }
        self.find_or_merge(piece, space, stop);
        if stop.load(Ordering::Relaxed) {
            return; // these may not be all
        }
        let cached = &mut space.long[place];
        cached.piece.clear();
        cached.piece.extend_from_slice(piece);
        cached.ids.clear();
        cached.ids.extend_from_slice(&space.ids[before..space.count]);
    }

    fn find_or_merge(&self, piece: &[u8], space: &mut Workspace, stop: &AtomicBool) {
        match self.long.get(piece) {
            Some(&id) => space.extend(&[id]),
            None => self.merge(piece, space, stop),
        }
    }

    fn merge(&self, piece: &[u8], space: &mut Workspace, stop: &AtomicBool) {
        if piece.len() <= SEARCHED {
            self.merge_by_search(piece, space);
        } else {
            self.merge_by_heap(piece, space, stop);
        }
    }

    /// Repeated search of the lowest rank: quadratic, and the fastest for the length of a word.
    fn merge_by_search(&self, piece: &[u8], space: &mut Workspace) {
        let (mut ids, mut ranks, mut length) = ([NONE; SEARCHED + 1], [NONE; SEARCHED + 1], piece.len());
        for (id, &byte) in ids.iter_mut().zip(piece) {
            *id = self.byte_ids[byte as usize];
        }
        for at in 1..length {
            ranks[at] = self.pairs.rank(ids[at - 1], ids[at]); // of the token with the one before it
        }
        loop {
            let (mut lowest, mut at) = (NONE, 0);
            for (place, &rank) in ranks[..length].iter().enumerate() {
                if rank < lowest {
                    (lowest, at) = (rank, place);
                }
            }
            if lowest == NONE {
                break;
            }
            ids[at - 1] = self.made[lowest as usize];
            length -= 1;
            for place in at..length {
                ids[place] = ids[place + 1];
                ranks[place] = ranks[place + 1];
            }
            if at > 1 {
                ranks[at - 1] = self.pairs.rank(ids[at - 2], ids[at - 1]);
            }
            if at < length {
                ranks[at] = self.pairs.rank(ids[at - 1], ids[at]);
            }
        }
        space.ids[space.count..space.count + length].copy_from_slice(&ids[..length]);
        space.count += length;
    }

    /// A linked list of tokens and a heap of (rank, position): n log n for pieces of any length.
    fn merge_by_heap(&self, piece: &[u8], space: &mut Workspace, stop: &AtomicBool) {
        let Workspace { merged: ids, heap, next, previous, steps, .. } = space;
        ids.clear();
        ids.extend(piece.iter().map(|&byte| self.byte_ids[byte as usize]));
        let length = ids.len() as u32;
        next.clear();
        next.extend(1..=length);
        previous.clear();
        previous.extend((0..length).map(|at| at.wrapping_sub(1)));
        heap.clear();
        let known = |left, right, at| match self.pairs.rank(left, right) {
            NONE => None,
            rank => Some(Reverse((rank, at))),
        };
        heap.extend((0..length - 1).filter_map(|at| known(ids[at as usize], ids[at as usize + 1], at)));
        while let Some(Reverse((rank, at))) = heap.pop() {
            if stop.load(Ordering::Relaxed) {
                return;
            }
            *steps += 1;
            let (left, right) = (at as usize, next[at as usize] as usize);
            if ids[left] == NONE || right >= length as usize || self.pairs.rank(ids[left], ids[right]) != rank {
                continue; // one of the two has changed since
            }
            let made = self.made[rank as usize];
            ids[left] = made;
            ids[right] = NONE;
            let after = next[right];
            next[left] = after;
            if after < length {
                previous[after as usize] = at;
                heap.extend(known(made, ids[after as usize], at));
            }
            let before = previous[left];
            if before != NONE {
                heap.extend(known(ids[before as usize], made, before));
            }
        }
        for &id in space.merged.iter().filter(|&&id| id != NONE) {
            space.ids[space.count] = id;
            space.count += 1;
        }
    }
}

const SEARCHED: usize = 48; // the longest piece merged by search

impl Workspace {
    pub fn new() -> Self {
        Workspace {
            ids: Vec::new(),
            count: 0,
            pieces: Pieces::default(),
            lines: vec![FREE_LINE; LINES],
            more: Vec::new(),
            long: vec![CachedLong::default(); LONG_PLACES],
            heap: BinaryHeap::new(),
            steps: 0,
            merged: Vec::new(),
            next: Vec::new(),
            previous: Vec::new(),
        }
    }

    pub fn push(&mut self, id: u32) {
        self.make_room(1);
        self.ids[self.count] = id;
        self.count += 1;
    }

    /// Keeps the ids from `before` on as those of `key`.
    fn remember(&mut self, key: Key, before: usize) {
        let ids = &self.ids[before..self.count];
        let mut new = Cached { key, ids: [0; CACHED_IDS], count: ids.len() as u32 };
        if ids.len() <= CACHED_IDS {
            new.ids[..ids.len()].copy_from_slice(ids);
        } else if self.more.len() + ids.len() <= MORE {
            new.ids[0] = self.more.len() as u32;
            new.count |= MANY;
            self.more.extend_from_slice(ids);
        } else {
            return;
        }
        let [one, other] = &mut self.lines[place_of(key)].0;
        *(if one.key == FREE { one } else { other }) = new;
    }

    /// There must be room.
    #[inline(always)]
    fn extend(&mut self, ids: &[u32]) {
        self.ids[self.count..self.count + ids.len()].copy_from_slice(ids);
        self.count += ids.len();
    }

    fn extend_from_more(&mut self, from: usize, count: usize) {
        self.ids[self.count..self.count + count].copy_from_slice(&self.more[from..from + count]);
        self.count += count;
    }

    fn make_room(&mut self, more: usize) {
        if self.count + more > self.ids.len() {
            self.ids.resize((self.count + more).next_power_of_two(), 0);
        }
    }
}

#[inline(always)]
fn place_of(key: Key) -> usize {
    hash_key(key) as usize & (LINES - 1)
}

impl ShortTokens {
    fn new(mut tokens: Vec<(Key, u32)>) -> Self {
        tokens.sort_unstable_by_key(|token| token.1);
        let free = tokens.last().map_or(0, |token| token.1 + 1);
        let mut keys = vec![NO_KEY; free as usize + 1];
        let mut places = vec![free; (tokens.len() * 4).next_power_of_two()];
        let mut others = HashMap::new();
        for (key, id) in tokens {
            keys[id as usize] = key;
            let place = hash_key(key) as usize & (places.len() - 1);
            if places[place] == free {
                places[place] = id;
            } else {
                others.insert(key, id);
            }
        }
        let places = match u16::try_from(free) {
            Ok(_) => Places::Small(places.into_iter().map(|id| id as u16).collect()),
            Err(_) => Places::Large(places),
        };
        ShortTokens { places, keys, others }
    }

    /// The id of a token that is the first with its hash; else `NONE`. In arithmetic, of which no compiler makes a
    /// branch.
    #[inline(always)]
    fn find_first<Id: Copy + Into<u32>>(&self, places: &[Id], key: Key) -> u32 {
        let id: u32 = places[hash_key(key) as usize & (places.len() - 1)].into();
        let found = self.keys[id as usize];
        let differs = (found[0] ^ key[0]) | (found[1] ^ key[1]);
        id | ((differs | differs.wrapping_neg()) as i64 >> 63) as u32 // all bits set where one differs
    }
}

/// Pairs of ids and their ranks: left, right and rank share one machine word, in open addressing.
struct PairTable(Vec<u64>);

const BITS: u32 = 21;
const NOTHING: u64 = u64::MAX;

impl PairTable {
    fn new(merges: &[(u32, u32, u32)]) -> Self {
        let mut table = PairTable(vec![NOTHING; (merges.len() * 2 + 1).next_power_of_two()]);
        for (rank, &(left, right, _)) in merges.iter().enumerate() {
            let place = table.place(left, right);
            if table.0[place] == NOTHING {
                table.0[place] = Self::pair(left, right) << BITS | rank as u64;
            }
        }
        table
    }

    #[inline(always)]
    fn pair(left: u32, right: u32) -> u64 {
        (left as u64) << BITS | right as u64
    }

    /// Where the pair is, or the free place where it would go.
    #[inline(always)]
    fn place(&self, left: u32, right: u32) -> usize {
        let (pair, mask) = (Self::pair(left, right), self.0.len() - 1);
        let product = pair.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let mut place = (product ^ product >> 32) as usize & mask;
        while self.0[place] >> BITS != pair && self.0[place] != NOTHING {
            place = (place + 1) & mask;
        }
        place
    }

    #[inline(always)]
    fn rank(&self, left: u32, right: u32) -> u32 {
        match self.0[self.place(left, right)] {
            NOTHING => NONE,
            found => found as u32 & ((1 << BITS) - 1),
        }
    }
}
