//! Encodes text to ids: splits it, looks each piece up, and merges the pieces that are no token themselves.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::OnceLock;

use crate::short_tokens::ShortTokens;
use crate::splitter::{Splitter, MAX_PIECES};
use crate::word_cache::{Found, WordCache, CACHED_IDS, ID_BITS};
use crate::words::{hash_bytes, pack, pack_at, Key, EMPTY, MAX_SHORT};

const NONE: u32 = u32::MAX;
const LONG_CACHE_SETS: usize = 1 << 12; // in the cache of long pieces
const MAX_CACHED_BYTES: usize = 128; // the longest piece in that cache, in bytes
const COPIED: usize = 48; // ids that are copied at once
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

#[derive(Clone, Default)]
struct CachedLong {
    piece: Vec<u8>,
    ids: Vec<u32>,
}

/// Pieces of a text that were looked up among the short tokens, and whose ids are not in the output yet.
#[derive(Clone, Copy, Default)]
struct Block<'t> {
    text: &'t [u8],
    num_bytes: usize, // of all pieces
    num_pieces: usize,
    num_misses: usize, // pieces that were not found
}

/// What was found out about the pieces of a block.
struct Pieces {
    ids: [u32; MAX_PIECES + COPIED],      // ids as tokens, and room for `Workspace::extend`
    misses: [u32; MAX_PIECES],            // indices of the pieces that were not found
    bounds: [(usize, usize); MAX_PIECES], // start and end of each of these in the text
}

/// Encodes texts one after the other, into the output of a workspace.
///
/// A block of pieces is looked up before the ids of the block before it are written. Meanwhile the processor loads what
/// the cache has about the pieces that are no token.
pub struct Session<'a, 't> {
    encoder: &'a Encoder,
    cache: &'a WordCache,
    workspace: &'a mut Workspace,
    stop: &'a AtomicBool,
    first_id: Option<u32>, // begins every text
    block: Block<'t>,
    pieces: Box<Pieces>, // of this block
    next: Box<Pieces>,   // of the block after it
    new_texts: usize,    // texts that begin after this block
    starts: Vec<usize>,  // by text: index of its first id in the output
}

/// What one thread owns: its output, its cache of long pieces, and buffers for merging.
pub struct Workspace {
    pub ids: Vec<u32>, // the first `count` are the output, the rest is reserved
    pub count: usize,
    pieces: Option<(Box<Pieces>, Box<Pieces>)>, // unless a session has them
    long_cache: Vec<[CachedLong; 2]>,           // by hash: the piece that came first, and the latest
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
            } else if !bytes.is_empty() && bytes.iter().all(|&byte| byte < 0xfe) {
                short.push((pack(&bytes), id)); // without 0xfe and 0xff: no text has them, and they pad keys
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

    /// Starts to encode texts into `workspace`. Each begins with `first_id`. The ids are incomplete once `stop` is set.
    pub fn start<'a, 't>(
        &'a self,
        workspace: &'a mut Workspace,
        first_id: Option<u32>,
        stop: &'a AtomicBool,
    ) -> Session<'a, 't> {
        workspace.count = 0;
        let (pieces, next) = workspace.pieces.take().unwrap_or_default();
        let cache = self.cache.get_or_init(WordCache::new);
        let (block, new_texts, starts) = (Block::default(), 0, Vec::new());
        Session { encoder: self, cache, workspace, stop, first_id, block, pieces, next, new_texts, starts }
    }

    /// Encodes a piece that is not in the table of short tokens.
    #[inline(always)]
    fn encode_miss(&self, cache: &WordCache, key: Key, piece: &[u8], workspace: &mut Workspace, stop: &AtomicBool) {
        if key == EMPTY {
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
        match self.short.other(key) {
            Some(id) => workspace.put(id),
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
        let set = hash_bytes(piece) as usize & (LONG_CACHE_SETS - 1);
        let before = workspace.count;
        if let Some(cached) = workspace.long_cache[set].iter().find(|cached| cached.piece == piece) {
            workspace.count += cached.ids.len();
            workspace.ids[before..workspace.count].copy_from_slice(&cached.ids);
            return;
        }
        self.find_or_merge(piece, workspace, stop);
        if stop.load(Ordering::Relaxed) {
            return; // the ids may be incomplete
        }
        let [first, latest] = &mut workspace.long_cache[set];
        let cached = if first.piece.is_empty() { first } else { latest };
        cached.piece.clear();
        cached.piece.extend_from_slice(piece);
        cached.ids.clear();
        cached.ids.extend_from_slice(&workspace.ids[before..workspace.count]);
    }

    /// Encodes a piece that is not in the cache.
    fn find_or_merge(&self, piece: &[u8], workspace: &mut Workspace, stop: &AtomicBool) {
        match self.long.get(piece) {
            Some(&id) => workspace.put(id),
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

impl<'t> Session<'_, 't> {
    /// Begins a text. `encode` gets its parts.
    pub fn begin_text(&mut self) {
        self.new_texts += 1;
    }

    /// Encodes the next part of the text. Returns early once `stop` is set.
    pub fn encode(&mut self, text: &'t str) -> Result<(), String> {
        let encoder = self.encoder;
        encoder.splitter.split(text, true, |text, start, ends| {
            self.look_up(text, start, ends);
            !self.stop.load(Ordering::Relaxed)
        })
    }

    /// Ends the session. Returns by text the index of its first id in the output.
    pub fn finish(mut self) -> Vec<usize> {
        self.write_block();
        self.workspace.pieces = Some((self.pieces, self.next));
        self.starts
    }

    /// Looks up the next block of pieces, then writes the block before it.
    fn look_up(&mut self, text: &'t [u8], start: usize, ends: &[usize]) {
        let next = &mut *self.next;
        let num_misses = self.encoder.short.look_up(text, start, ends, &mut next.ids, &mut next.misses);
        for (&miss, bounds) in next.misses[..num_misses].iter().zip(&mut next.bounds) {
            let miss = miss as usize;
            *bounds = (if miss == 0 { start } else { ends[miss - 1] }, ends[miss]);
            self.cache.prefetch(key_of(text, *bounds));
        }
        self.write_block();
        std::mem::swap(&mut self.pieces, &mut self.next);
        let num_bytes = ends.last().map_or(0, |&end| end - start);
        self.block = Block { text, num_bytes, num_pieces: ends.len(), num_misses };
    }

    /// Writes the ids of the block, and begins the texts after it.
    fn write_block(&mut self) {
        let Block { text, num_bytes, num_pieces, num_misses } = std::mem::take(&mut self.block);
        let Pieces { ids, misses, bounds } = &*self.pieces;
        self.workspace.make_room(num_bytes + CACHED_IDS + COPIED); // a token has at least one byte
        let mut done = 0;
        for (&miss, &(start, end)) in misses[..num_misses].iter().zip(bounds) {
            self.workspace.extend(ids, done, miss as usize);
            let (key, piece) = (key_of(text, (start, end)), &text[start..end]);
            self.encoder.encode_miss(self.cache, key, piece, self.workspace, self.stop);
            done = miss as usize + 1;
        }
        self.workspace.extend(ids, done, num_pieces);
        for _ in 0..std::mem::take(&mut self.new_texts) {
            self.starts.push(self.workspace.count);
            if let Some(id) = self.first_id {
                self.workspace.push(id);
            }
        }
    }
}

/// The key of a piece. `EMPTY` if it is not short.
#[inline(always)]
fn key_of(text: &[u8], (start, end): (usize, usize)) -> Key {
    if end - start > MAX_SHORT {
        EMPTY
    } else {
        pack_at(text, start, end)
    }
}

impl Default for Pieces {
    fn default() -> Self {
        Pieces { ids: [NONE; MAX_PIECES + COPIED], misses: [0; MAX_PIECES], bounds: [(0, 0); MAX_PIECES] }
    }
}

impl Workspace {
    pub fn new() -> Self {
        Workspace {
            ids: Vec::new(),
            count: 0,
            pieces: None,
            long_cache: vec![Default::default(); LONG_CACHE_SETS],
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
        self.put(id);
    }

    /// Appends one id. The caller has made room for it.
    #[inline(always)]
    fn put(&mut self, id: u32) {
        self.ids[self.count] = id;
        self.count += 1;
    }

    /// Appends `ids[start..end]`. The caller has made room for `COPIED` more, and so many more are in `ids`: always as
    /// many are copied at once, because the processor could not predict the exact number.
    #[inline(always)]
    fn extend(&mut self, ids: &[u32], start: usize, end: usize) {
        let mut done = start;
        while done < end {
            let from: &[u32; COPIED] = ids[done..done + COPIED].try_into().expect("the length is fixed");
            self.ids[self.count + done - start..][..COPIED].copy_from_slice(from);
            done += COPIED;
        }
        self.count += end - start;
    }

    /// Makes room for `additional` ids.
    fn make_room(&mut self, additional: usize) {
        if self.count + additional > self.ids.len() {
            self.ids.resize((self.count + additional).next_power_of_two(), 0);
        }
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
