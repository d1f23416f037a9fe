//! Encodes text to ids: splits it, looks each piece up, and merges the pieces that are no token themselves.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::OnceLock;

use crate::splitter::{Splitter, MAX_PIECES};
use crate::word_cache::{Found, WordCache, CACHED_IDS, ID_BITS};
use crate::words::{hash_bytes, hash_key, pack, pack_at, Key, MAX_SHORT};

const NONE: u32 = u32::MAX;
const LONG_CACHE_SLOTS: usize = 1 << 12; // slots in the cache of long pieces
const MAX_CACHED_BYTES: usize = 128; // the longest piece in that cache, in bytes
const NOT_SHORT: Key = [0, 0]; // key of long pieces; no short piece has it
const NO_KEY: Key = [u64::MAX; 2]; // key of long tokens and of free slots; no short piece has it
const MAX_SCAN_BYTES: usize = 48; // the longest piece that is merged by scanning, in bytes

/// A vocabulary, prepared for encoding. All threads share it.
pub struct Encoder {
    splitter: Splitter,
    byte_ids: [u32; 256],
    pairs: PairTable,
    merged_ids: Vec<u32>, // by rank of the merge: the id that it makes
    short: ShortTokens,
    long: HashMap<Box<[u8]>, u32>,
    cache: OnceLock<WordCache>, // of short pieces that are no token; made when text is first encoded
}

/// The tokens of up to `MAX_SHORT` bytes. The hash gives an id, the id gives the bytes.
///
/// Ids are in order of rank, so frequent tokens are stored next to each other. All of it fits in the processor's L2
/// cache.
struct ShortTokens {
    slots: SlotTable,
    keys: Vec<Key>, // by id; `NO_KEY` for long tokens, and as the last entry for free slots
    collisions: HashMap<Key, u32>, // tokens whose slot another token has
}

/// By hash: the id of the first token with this hash.
enum SlotTable {
    Small(Vec<u16>),
    Large(Vec<u32>),
}

#[derive(Clone, Default)]
struct CachedLong {
    piece: Vec<u8>,
    ids: Vec<u32>,
}

/// The pieces of one call from the splitter.
#[derive(Default)]
struct Pieces {
    keys: Vec<Key>,     // packed
    ids: Vec<u32>,      // ids as tokens
    misses: Vec<usize>, // indices of the pieces that are no token
}

/// What one thread owns: its output, its cache of long pieces, and buffers for merging.
pub struct Workspace {
    pub ids: Vec<u32>, // the first `count` are the output, the rest is reserved
    pub count: usize,
    pieces: Pieces,
    long_cache: Vec<CachedLong>,
    heap: BinaryHeap<Reverse<(u32, u32)>>,
    pub steps: u64, // entries taken off the heap so far
    merge_ids: Vec<u32>,
    next: Vec<u32>,
    previous: Vec<u32>,
}

impl Encoder {
    /// `tokens`: bytes and id of every token that text can become.
    /// `merges`: (left id, right id, merged id), in order of rank.
    pub fn new(
        pattern: Option<&str>,
        tokens: Vec<(Vec<u8>, u32)>,
        merges: Vec<(u32, u32, u32)>,
    ) -> Result<Self, String> {
        let ids = tokens.iter().map(|token| token.1).chain(merges.iter().flat_map(|merge| [merge.0, merge.1]));
        if ids.max().unwrap_or(0).max(merges.len() as u32) >> ID_BITS != 0 {
            return Err(format!("the vocabulary is too large: ids go up to {}", (1 << ID_BITS) - 1));
        }
        let mut byte_ids = [NONE; 256];
        let (mut short, mut long) = (Vec::new(), HashMap::new());
        for (bytes, id) in tokens {
            if let [byte] = bytes[..] {
                byte_ids[byte as usize] = id;
            }
            if bytes.len() > MAX_SHORT {
                long.insert(bytes.into_boxed_slice(), id);
            } else if !bytes.is_empty() {
                short.push((pack(&bytes), id));
            }
        }
        if let Some(byte) = byte_ids.iter().position(|&id| id == NONE) {
            return Err(format!("the vocabulary has no token for byte {byte}; only byte-level vocabularies will do"));
        }
        let merged_ids = merges.iter().map(|merge| merge.2).collect();
        let (splitter, pairs, short) = (Splitter::new(pattern)?, PairTable::new(&merges), ShortTokens::new(short));
        Ok(Encoder { splitter, byte_ids, pairs, merged_ids, short, long, cache: OnceLock::new() })
    }

    pub fn splitter(&self) -> &Splitter {
        &self.splitter
    }

    /// Appends the ids of `text` to those of `workspace`. Returns early once `stop` is set: the ids are incomplete
    /// then.
    pub fn encode(&self, text: &str, workspace: &mut Workspace, stop: &AtomicBool) -> Result<(), String> {
        self.splitter.split(text, true, |text, start, ends| {
            self.encode_pieces(text, start, ends, workspace, stop);
            !stop.load(Ordering::Relaxed)
        })
    }

    /// Looks all pieces up first, without a branch that depends on the text. So the processor loads many addresses at
    /// the same time. Then handles the pieces that are no token.
    fn encode_pieces(&self, text: &[u8], start: usize, ends: &[usize], workspace: &mut Workspace, stop: &AtomicBool) {
        let cache = self.cache.get_or_init(WordCache::new);
        let mut pieces = std::mem::take(&mut workspace.pieces);
        let num_misses = match &self.short.slots {
            SlotTable::Small(slots) => self.look_up(slots, text, start, ends, &mut pieces),
            SlotTable::Large(slots) => self.look_up(slots, text, start, ends, &mut pieces),
        };
        let Pieces { keys, ids, misses } = &pieces;
        let misses = &misses[..num_misses];
        // Loads the cache lines of all misses before the first of them is needed.
        std::hint::black_box(misses.iter().fold(0, |touched, &miss| touched | cache.touch(keys[miss])));
        let last = ends.last().map_or(start, |&end| end);
        workspace.make_room(last - start + CACHED_IDS + 1); // a token has at least one byte
        let mut done = 0;
        for &miss in misses {
            workspace.extend(&ids[done..miss]);
            let start_of_piece = if miss == 0 { start } else { ends[miss - 1] };
            self.encode_miss(cache, keys[miss], &text[start_of_piece..ends[miss]], workspace, stop);
            done = miss + 1;
        }
        workspace.extend(&ids[done..ends.len()]);
        workspace.pieces = pieces;
    }

    /// Fills `pieces`. Returns how many of them are no token.
    #[inline(always)]
    fn look_up<Id: Copy + Into<u32>>(
        &self,
        slots: &[Id],
        text: &[u8],
        start: usize,
        ends: &[usize],
        pieces: &mut Pieces,
    ) -> usize {
        pieces.keys.resize(MAX_PIECES, NOT_SHORT);
        pieces.ids.resize(MAX_PIECES, NONE);
        pieces.misses.resize(MAX_PIECES, 0);
        let (keys, ids, misses) =
            (&mut pieces.keys[..ends.len()], &mut pieces.ids[..ends.len()], &mut pieces.misses[..]);
        let (mut start_of_piece, mut num_misses) = (start, 0);
        for (index, ((&end, key), id)) in ends.iter().zip(keys).zip(ids).enumerate() {
            *key = if end - start_of_piece <= MAX_SHORT { pack_at(text, start_of_piece, end) } else { NOT_SHORT };
            *id = self.short.find_first(slots, *key);
            misses[num_misses] = index;
            num_misses += (*id == NONE) as usize;
            start_of_piece = end;
        }
        num_misses
    }

    /// Encodes a piece that `look_up` did not find.
    #[inline(always)]
    fn encode_miss(&self, cache: &WordCache, key: Key, piece: &[u8], workspace: &mut Workspace, stop: &AtomicBool) {
        if key == NOT_SHORT {
            return self.encode_long(piece, workspace, stop);
        }
        match cache.find(key) {
            Some(Found::Few(ids, count)) => {
                workspace.ids[workspace.count..workspace.count + CACHED_IDS].copy_from_slice(&ids);
                workspace.count += count;
            }
            Some(Found::Many(ids)) => {
                for (place, id) in workspace.ids[workspace.count..].iter_mut().zip(ids) {
                    *place = id.load(Ordering::Relaxed);
                }
                workspace.count += ids.len();
            }
            None => self.encode_short(cache, key, piece, workspace, stop),
        }
    }

    /// Encodes a short piece that is not in the cache, and adds it to the cache.
    #[inline(never)]
    fn encode_short(&self, cache: &WordCache, key: Key, piece: &[u8], workspace: &mut Workspace, stop: &AtomicBool) {
        let before = workspace.count;
        match self.short.collisions.get(&key) {
            Some(&id) => workspace.extend(&[id]),
            None => self.merge(piece, workspace, stop),
        }
        cache.insert(key, &workspace.ids[before..workspace.count]);
    }

    /// Encodes a piece of more than `MAX_SHORT` bytes.
    #[inline(never)]
    fn encode_long(&self, piece: &[u8], workspace: &mut Workspace, stop: &AtomicBool) {
        if piece.len() > MAX_CACHED_BYTES {
            return self.find_or_merge(piece, workspace, stop);
        }
        let slot = hash_bytes(piece) as usize & (LONG_CACHE_SLOTS - 1);
        let cached = &workspace.long_cache[slot];
        let before = workspace.count;
        if cached.piece == piece {
            workspace.count += cached.ids.len();
            workspace.ids[before..workspace.count].copy_from_slice(&cached.ids);
            return;
        }
        self.find_or_merge(piece, workspace, stop);
        if stop.load(Ordering::Relaxed) {
            return; // the ids may be incomplete
        }
        let cached = &mut workspace.long_cache[slot];
        cached.piece.clear();
        cached.piece.extend_from_slice(piece);
        cached.ids.clear();
        cached.ids.extend_from_slice(&workspace.ids[before..workspace.count]);
    }

    /// Encodes a piece that is not in the cache.
    fn find_or_merge(&self, piece: &[u8], workspace: &mut Workspace, stop: &AtomicBool) {
        match self.long.get(piece) {
            Some(&id) => workspace.extend(&[id]),
            None => self.merge(piece, workspace, stop),
        }
    }

    fn merge(&self, piece: &[u8], workspace: &mut Workspace, stop: &AtomicBool) {
        if piece.len() <= MAX_SCAN_BYTES {
            self.merge_by_scan(piece, workspace);
        } else {
            self.merge_by_heap(piece, workspace, stop);
        }
    }

    /// Scans for the lowest rank again and again: quadratic, but the fastest method for the length of a word.
    fn merge_by_scan(&self, piece: &[u8], workspace: &mut Workspace) {
        let (mut ids, mut ranks, mut length) = ([NONE; MAX_SCAN_BYTES + 1], [NONE; MAX_SCAN_BYTES + 1], piece.len());
        for (id, &byte) in ids.iter_mut().zip(piece) {
            *id = self.byte_ids[byte as usize];
        }
        for at in 1..length {
            ranks[at] = self.pairs.rank(ids[at - 1], ids[at]); // of the pair of this token and the one before it
        }
        loop {
            let (mut lowest, mut at) = (NONE, 0);
            for (index, &rank) in ranks[..length].iter().enumerate() {
                if rank < lowest {
                    (lowest, at) = (rank, index);
                }
            }
            if lowest == NONE {
                break;
            }
            ids[at - 1] = self.merged_ids[lowest as usize];
            length -= 1;
            for index in at..length {
                ids[index] = ids[index + 1];
                ranks[index] = ranks[index + 1];
            }
            if at > 1 {
                ranks[at - 1] = self.pairs.rank(ids[at - 2], ids[at - 1]);
            }
            if at < length {
                ranks[at] = self.pairs.rank(ids[at - 1], ids[at]);
            }
        }
        workspace.ids[workspace.count..workspace.count + length].copy_from_slice(&ids[..length]);
        workspace.count += length;
    }

    /// Uses a linked list of tokens and a heap of (rank, position): n log n steps for n bytes.
    fn merge_by_heap(&self, piece: &[u8], workspace: &mut Workspace, stop: &AtomicBool) {
        let Workspace { merge_ids: ids, heap, next, previous, steps, .. } = workspace;
        ids.clear();
        ids.extend(piece.iter().map(|&byte| self.byte_ids[byte as usize]));
        let length = ids.len() as u32;
        next.clear();
        next.extend(1..=length);
        previous.clear();
        previous.extend((0..length).map(|at| at.wrapping_sub(1)));
        heap.clear();
        let candidate = |left, right, at| match self.pairs.rank(left, right) {
            NONE => None,
            rank => Some(Reverse((rank, at))),
        };
        heap.extend((0..length - 1).filter_map(|at| candidate(ids[at as usize], ids[at as usize + 1], at)));
        while let Some(Reverse((rank, at))) = heap.pop() {
            if stop.load(Ordering::Relaxed) {
                return;
            }
            *steps += 1;
            let (left, right) = (at as usize, next[at as usize] as usize);
            if ids[left] == NONE || right >= length as usize || self.pairs.rank(ids[left], ids[right]) != rank {
                continue; // one of the two was merged before
            }
            let merged_id = self.merged_ids[rank as usize];
            ids[left] = merged_id;
            ids[right] = NONE;
            let after = next[right];
            next[left] = after;
            if after < length {
                previous[after as usize] = at;
                heap.extend(candidate(merged_id, ids[after as usize], at));
            }
            let before = previous[left];
            if before != NONE {
                heap.extend(candidate(ids[before as usize], merged_id, before));
            }
        }
        for &id in workspace.merge_ids.iter().filter(|&&id| id != NONE) {
            workspace.ids[workspace.count] = id;
            workspace.count += 1;
        }
    }
}

impl Workspace {
    pub fn new() -> Self {
        Workspace {
            ids: Vec::new(),
            count: 0,
            pieces: Pieces::default(),
            long_cache: vec![CachedLong::default(); LONG_CACHE_SLOTS],
            heap: BinaryHeap::new(),
            steps: 0,
            merge_ids: Vec::new(),
            next: Vec::new(),
            previous: Vec::new(),
        }
    }

    /// Appends one id.
    pub fn push(&mut self, id: u32) {
        self.make_room(1);
        self.ids[self.count] = id;
        self.count += 1;
    }

    /// Appends ids. The caller has made room for them.
    #[inline(always)]
    fn extend(&mut self, ids: &[u32]) {
        self.ids[self.count..self.count + ids.len()].copy_from_slice(ids);
        self.count += ids.len();
    }

    /// Makes room for `additional` ids.
    fn make_room(&mut self, additional: usize) {
        if self.count + additional > self.ids.len() {
            self.ids.resize((self.count + additional).next_power_of_two(), 0);
        }
    }
}

impl ShortTokens {
    fn new(mut tokens: Vec<(Key, u32)>) -> Self {
        tokens.sort_unstable_by_key(|token| token.1);
        let free = tokens.last().map_or(0, |token| token.1 + 1);
        let mut keys = vec![NO_KEY; free as usize + 1];
        let mut slots = vec![free; (tokens.len() * 4).next_power_of_two()];
        let mut collisions = HashMap::new();
        for (key, id) in tokens {
            keys[id as usize] = key;
            let slot = hash_key(key) as usize & (slots.len() - 1);
            if slots[slot] == free {
                slots[slot] = id;
            } else {
                collisions.insert(key, id);
            }
        }
        let slots = match u16::try_from(free) {
            Ok(_) => SlotTable::Small(slots.into_iter().map(|id| id as u16).collect()),
            Err(_) => SlotTable::Large(slots),
        };
        ShortTokens { slots, keys, collisions }
    }

    /// The id of the token, if it is the first with its hash; else `NONE`. Written as arithmetic, so that the compiler
    /// makes no branch.
    #[inline(always)]
    fn find_first<Id: Copy + Into<u32>>(&self, slots: &[Id], key: Key) -> u32 {
        let id: u32 = slots[hash_key(key) as usize & (slots.len() - 1)].into();
        let found = self.keys[id as usize];
        let differs = (found[0] ^ key[0]) | (found[1] ^ key[1]);
        id | ((differs | differs.wrapping_neg()) as i64 >> 63) as u32 // all bits set if they differ
    }
}

/// A hash table from pairs of ids to ranks. Left id, right id and rank share one 64-bit number, `ID_BITS` each.
struct PairTable(Vec<u64>);

const EMPTY_PAIR: u64 = u64::MAX; // a free slot

impl PairTable {
    fn new(merges: &[(u32, u32, u32)]) -> Self {
        let mut table = PairTable(vec![EMPTY_PAIR; (merges.len() * 2 + 1).next_power_of_two()]);
        for (rank, &(left, right, _)) in merges.iter().enumerate() {
            let slot = table.slot(left, right);
            if table.0[slot] == EMPTY_PAIR {
                table.0[slot] = Self::pair(left, right) << ID_BITS | rank as u64;
            }
        }
        table
    }

    #[inline(always)]
    fn pair(left: u32, right: u32) -> u64 {
        (left as u64) << ID_BITS | right as u64
    }

    /// The slot of the pair, or the free slot where it would be inserted.
    #[inline(always)]
    fn slot(&self, left: u32, right: u32) -> usize {
        let (pair, mask) = (Self::pair(left, right), self.0.len() - 1);
        let product = pair.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let mut slot = (product ^ product >> 32) as usize & mask;
        while self.0[slot] >> ID_BITS != pair && self.0[slot] != EMPTY_PAIR {
            slot = (slot + 1) & mask;
        }
        slot
    }

    /// The rank of the merge of the pair, or `NONE`.
    #[inline(always)]
    fn rank(&self, left: u32, right: u32) -> u32 {
        match self.0[self.slot(left, right)] {
            EMPTY_PAIR => NONE,
            found => found as u32 & ((1 << ID_BITS) - 1),
        }
    }
}
