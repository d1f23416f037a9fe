//! A hash table of distinct words (pieces of text) and their counts. Also the packing and hashing of short pieces.

/// A piece of at most 15 bytes in two machine words. It is padded with bytes that UTF-8 never contains.
pub type Key = [u64; 2];
pub const MAX_SHORT: usize = 15;
/// Is no piece: it has no padding.
pub const EMPTY: Key = [0, 0];
const PADDING: u8 = 0xff;

/// By length of a piece: the padding, with zeros in place of the piece.
pub static PADDINGS: [u128; MAX_SHORT + 1] = {
    let mut paddings = [u128::MAX; MAX_SHORT + 1];
    let mut length = 1;
    while length <= MAX_SHORT {
        paddings[length] <<= 8 * length;
        length += 1;
    }
    paddings
};

/// Packs a short piece.
#[inline(always)]
pub fn pack(piece: &[u8]) -> Key {
    debug_assert!(!piece.is_empty() && piece.len() <= MAX_SHORT);
    let mut bytes = [PADDING; 16];
    bytes[..piece.len()].copy_from_slice(piece);
    key(u128::from_le_bytes(bytes))
}

/// The same as `pack(&text[start..end])`, but mostly with two loads and an OR.
#[inline(always)]
pub fn pack_at(text: &[u8], start: usize, end: usize) -> Key {
    match text.get(start..start + 16) {
        Some(sixteen) => key(u128::from_le_bytes(sixteen.try_into().expect("sixteen bytes")) | PADDINGS[end - start]),
        None => pack(&text[start..end]),
    }
}

#[inline(always)]
fn key(word: u128) -> Key {
    [word as u64, (word >> 64) as u64]
}

/// The inverse of `pack`: an array and the number of its bytes that belong to the piece.
pub fn unpack(key: Key) -> ([u8; 16], usize) {
    let word = key[0] as u128 | (key[1] as u128) << 64;
    (word.to_le_bytes(), 16 - word.leading_ones() as usize / 8)
}

#[inline(always)]
fn folded_multiply(a: u64, b: u64) -> u64 {
    let product = (a as u128).wrapping_mul(b as u128);
    (product as u64) ^ (product >> 64) as u64
}

#[inline(always)]
pub fn hash_key(key: Key) -> u64 {
    folded_multiply(key[0] ^ 0x9e37_79b9_7f4a_7c15, key[1] ^ 0xd6e8_feb8_6659_fd93)
}

pub fn hash_bytes(bytes: &[u8]) -> u64 {
    let mut state = bytes.len() as u64 ^ 0x9e37_79b9_7f4a_7c15;
    for chunk in bytes.chunks(8) {
        let mut word = [0u8; 8];
        word[..chunk.len()].copy_from_slice(chunk);
        state = folded_multiply(state ^ u64::from_le_bytes(word), 0xd6e8_feb8_6659_fd93);
    }
    state
}

/// A hash table from pieces to 64-bit counts. Short pieces are stored inline, long ones in one byte buffer.
pub struct WordTable {
    short: Vec<(Key, u64)>,
    short_len: usize,
    long: Vec<LongEntry>,
    long_len: usize,
    bytes: Vec<u8>,
}

#[derive(Clone, Copy)]
struct LongEntry {
    start: usize, // in `WordTable::bytes`
    length: u32,
    hash: u32,  // the upper half of the hash
    count: u64, // 0 marks a free slot
}

const EMPTY_LONG: LongEntry = LongEntry { start: 0, length: 0, hash: 0, count: 0 };

impl WordTable {
    pub fn new() -> Self {
        WordTable {
            short: vec![(EMPTY, 0); 1024],
            short_len: 0,
            long: vec![EMPTY_LONG; 64],
            long_len: 0,
            bytes: Vec::new(),
        }
    }

    pub fn len(&self) -> usize {
        self.short_len + self.long_len
    }

    /// The size that `max_words` limits: 1 per piece, plus 1 per 32 bytes of long pieces.
    pub fn weight(&self) -> usize {
        self.len() + self.bytes.len() / 32
    }

    /// Adds `count` to the count of `piece`.
    #[inline(always)]
    pub fn add(&mut self, piece: &[u8], count: u64) {
        if piece.len() <= MAX_SHORT {
            self.add_short(pack(piece), count);
        } else {
            self.add_long(piece, count);
        }
    }

    /// Adds 1 to the count of `text[start..end]`.
    #[inline(always)]
    pub fn add_at(&mut self, text: &[u8], start: usize, end: usize) {
        if end - start <= MAX_SHORT {
            self.add_short(pack_at(text, start, end), 1);
        } else {
            self.add_long(&text[start..end], 1);
        }
    }

    #[inline(always)]
    fn add_short(&mut self, key: Key, count: u64) {
        let mask = self.short.len() - 1;
        let mut slot = hash_key(key) as usize & mask;
        loop {
            let entry = &mut self.short[slot];
            if entry.0 == key {
                entry.1 += count;
                return;
            }
            if entry.0 == EMPTY {
                *entry = (key, count);
                self.short_len += 1;
                if self.short_len * 4 > self.short.len() * 3 {
                    self.grow_short();
                }
                return;
            }
            slot = (slot + 1) & mask;
        }
    }

    #[cold]
    fn grow_short(&mut self) {
        let larger = vec![(EMPTY, 0); self.short.len() * 2];
        let old = std::mem::replace(&mut self.short, larger);
        let mask = self.short.len() - 1;
        for entry in old.into_iter().filter(|entry| entry.0 != EMPTY) {
            let mut slot = hash_key(entry.0) as usize & mask;
            while self.short[slot].0 != EMPTY {
                slot = (slot + 1) & mask;
            }
            self.short[slot] = entry;
        }
    }

    #[inline(never)]
    fn add_long(&mut self, piece: &[u8], count: u64) {
        let hash = hash_bytes(piece);
        let mask = self.long.len() - 1;
        let mut slot = hash as usize & mask;
        let tag = (hash >> 32) as u32;
        loop {
            let entry = &mut self.long[slot];
            if entry.count == 0 {
                let start = self.bytes.len();
                self.bytes.extend_from_slice(piece);
                *entry = LongEntry { start, length: piece.len() as u32, hash: tag, count };
                self.long_len += 1;
                if self.long_len * 4 > self.long.len() * 3 {
                    self.grow_long();
                }
                return;
            }
            if entry.hash == tag && &self.bytes[entry.start..entry.start + entry.length as usize] == piece {
                entry.count += count;
                return;
            }
            slot = (slot + 1) & mask;
        }
    }

    #[cold]
    fn grow_long(&mut self) {
        let larger = vec![EMPTY_LONG; self.long.len() * 2];
        let old = std::mem::replace(&mut self.long, larger);
        let mask = self.long.len() - 1;
        for entry in old.into_iter().filter(|entry| entry.count > 0) {
            let hash = hash_bytes(&self.bytes[entry.start..entry.start + entry.length as usize]);
            let mut slot = hash as usize & mask;
            while self.long[slot].count > 0 {
                slot = (slot + 1) & mask;
            }
            self.long[slot] = entry;
        }
    }

    /// Calls `visit(piece, count)` for every piece.
    pub fn for_each(&self, mut visit: impl FnMut(&[u8], u64)) {
        for (key, count) in self.short.iter().filter(|entry| entry.0 != EMPTY) {
            let (bytes, length) = unpack(*key);
            visit(&bytes[..length], *count);
        }
        for entry in self.long.iter().filter(|entry| entry.count > 0) {
            visit(&self.bytes[entry.start..entry.start + entry.length as usize], entry.count);
        }
    }

    /// Moves all counts of `other` into this table, and empties `other`.
    pub fn take_counts(&mut self, other: &mut WordTable) {
        let counts = std::mem::replace(other, WordTable::new());
        if self.len() == 0 {
            *self = counts;
        } else {
            counts.for_each(|piece, count| self.add(piece, count));
        }
    }

    /// Removes the rarest pieces until the weight is at most half of `limit`: all that occur once, then all that occur
    /// twice, and so on. Returns the highest count that was removed.
    ///
    /// Only counts decide which pieces are removed, so the result is the same for any number of threads.
    pub fn prune(&mut self, limit: usize) -> u64 {
        let mut by_count = std::collections::BTreeMap::<u64, usize>::new();
        self.for_each(|piece, count| {
            let extra = if piece.len() > MAX_SHORT { piece.len() / 32 } else { 0 };
            *by_count.entry(count).or_default() += 1 + extra;
        });
        let mut weight: usize = by_count.values().sum();
        let mut pruned = 0;
        for (count, share) in by_count {
            if weight <= limit / 2 {
                break;
            }
            weight -= share;
            pruned = count;
        }
        let mut kept = WordTable::new();
        self.for_each(|piece, count| {
            if count > pruned {
                kept.add(piece, count);
            }
        });
        *self = kept;
        pruned
    }
}
