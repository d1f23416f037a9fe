//! Distinct pieces of text and how often each occurs.

/// A piece of at most 15 bytes fits in two machine words: its bytes, and its length in the topmost byte.
pub type Key = [u64; 2];
pub const SHORT: usize = 15;
const EMPTY: Key = [0, 0];

/// Packs a short piece. Padding bytes are zero; the length makes pieces with trailing zero bytes distinct.
#[inline(always)]
pub fn pack(piece: &[u8]) -> Key {
    debug_assert!(!piece.is_empty() && piece.len() <= SHORT);
    let mut bytes = [0u8; 16];
    bytes[..piece.len()].copy_from_slice(piece);
    bytes[15] = piece.len() as u8;
    [u64::from_le_bytes(bytes[..8].try_into().unwrap()), u64::from_le_bytes(bytes[8..].try_into().unwrap())]
}

/// `pack(&text[start..end])`, mostly in two loads and a mask.
#[inline(always)]
pub fn pack_at(text: &[u8], start: usize, end: usize) -> Key {
    const KEPT: [u128; SHORT + 1] = {
        let mut masks = [0; SHORT + 1];
        let mut length = 1;
        while length <= SHORT {
            masks[length] = u128::MAX >> (128 - 8 * length);
            length += 1;
        }
        masks
    };
    let length = end - start;
    match text.get(start..start + 16) {
        Some(sixteen) => {
            let word = u128::from_le_bytes(sixteen.try_into().expect("sixteen bytes"));
            let word = word & KEPT[length] | (length as u128) << 120;
            [word as u64, (word >> 64) as u64]
        }
        None => pack(&text[start..end]),
    }
}

/// The piece that `pack` packed, in the first `len` bytes of the array.
pub fn unpack(key: Key) -> ([u8; 16], usize) {
    let mut bytes = [0u8; 16];
    bytes[..8].copy_from_slice(&key[0].to_le_bytes());
    bytes[8..].copy_from_slice(&key[1].to_le_bytes());
    (bytes, bytes[15] as usize)
}

#[inline(always)]
fn fold(a: u64, b: u64) -> u64 {
    let product = (a as u128).wrapping_mul(b as u128);
    (product as u64) ^ (product >> 64) as u64
}

#[inline(always)]
pub fn hash_key(key: Key) -> u64 {
    fold(key[0] ^ 0x9e37_79b9_7f4a_7c15, key[1] ^ 0xd6e8_feb8_6659_fd93)
}

pub fn hash_bytes(bytes: &[u8]) -> u64 {
    let mut state = bytes.len() as u64 ^ 0x9e37_79b9_7f4a_7c15;
    for chunk in bytes.chunks(8) {
        let mut word = [0u8; 8];
        word[..chunk.len()].copy_from_slice(chunk);
        state = fold(state ^ u64::from_le_bytes(word), 0xd6e8_feb8_6659_fd93);
    }
    state
}

/// A hash table from pieces to 64-bit counts: short pieces inline, long ones in one buffer of bytes.
pub struct WordTable {
    short: Vec<(Key, u64)>,
    short_len: usize,
    long: Vec<Long>,
    long_len: usize,
    bytes: Vec<u8>,
}

#[derive(Clone, Copy)]
struct Long {
    start: usize,
    length: u32,
    hash: u32,
    count: u64, // 0 marks a free place
}

const FREE: Long = Long { start: 0, length: 0, hash: 0, count: 0 };

impl WordTable {
    pub fn new() -> Self {
        WordTable { short: vec![(EMPTY, 0); 1024], short_len: 0, long: vec![FREE; 64], long_len: 0, bytes: Vec::new() }
    }

    pub fn len(&self) -> usize {
        self.short_len + self.long_len
    }

    /// Size as the cap on distinct words reckons it: one for every piece and one more for every 32 bytes of a long one.
    pub fn weight(&self) -> usize {
        self.len() + self.bytes.len() / 32
    }

    #[inline(always)]
    pub fn add(&mut self, piece: &[u8], count: u64) {
        if piece.len() <= SHORT {
            self.add_short(pack(piece), count);
        } else {
            self.add_long(piece, count);
        }
    }

    /// Adds one of `text[start..end]`.
    #[inline(always)]
    pub fn add_at(&mut self, text: &[u8], start: usize, end: usize) {
        if end - start <= SHORT {
            self.add_short(pack_at(text, start, end), 1);
        } else {
            self.add_long(&text[start..end], 1);
        }
    }

    #[inline(always)]
    fn add_short(&mut self, key: Key, count: u64) {
        let mask = self.short.len() - 1;
        let mut place = hash_key(key) as usize & mask;
        loop {
            let entry = &mut self.short[place];
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
            place = (place + 1) & mask;
        }
    }

    #[cold]
    fn grow_short(&mut self) {
        let larger = vec![(EMPTY, 0); self.short.len() * 2];
        let old = std::mem::replace(&mut self.short, larger);
        let mask = self.short.len() - 1;
        for entry in old.into_iter().filter(|entry| entry.0 != EMPTY) {
            let mut place = hash_key(entry.0) as usize & mask;
            while self.short[place].0 != EMPTY {
                place = (place + 1) & mask;
            }
            self.short[place] = entry;
        }
    }

    #[inline(never)]
    fn add_long(&mut self, piece: &[u8], count: u64) {
        let hash = hash_bytes(piece);
        let mask = self.long.len() - 1;
        let mut place = hash as usize & mask;
        let tag = (hash >> 32) as u32;
        loop {
            let entry = &mut self.long[place];
            if entry.count == 0 {
                let start = self.bytes.len();
                self.bytes.extend_from_slice(piece);
                *entry = Long { start, length: piece.len() as u32, hash: tag, count };
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
            place = (place + 1) & mask;
        }
    }

    #[cold]
    fn grow_long(&mut self) {
        let larger = vec![FREE; self.long.len() * 2];
        let old = std::mem::replace(&mut self.long, larger);
        let mask = self.long.len() - 1;
        for entry in old.into_iter().filter(|entry| entry.count > 0) {
            let hash = hash_bytes(&self.bytes[entry.start..entry.start + entry.length as usize]);
            let mut place = hash as usize & mask;
            while self.long[place].count > 0 {
                place = (place + 1) & mask;
            }
            self.long[place] = entry;
        }
    }

    pub fn for_each(&self, mut visit: impl FnMut(&[u8], u64)) {
        for (key, count) in self.short.iter().filter(|entry| entry.0 != EMPTY) {
            let (bytes, length) = unpack(*key);
            visit(&bytes[..length], *count);
        }
        for entry in self.long.iter().filter(|entry| entry.count > 0) {
            visit(&self.bytes[entry.start..entry.start + entry.length as usize], entry.count);
        }
    }

    /// Moves all counts of `other` into this table and empties it.
    pub fn absorb(&mut self, other: &mut WordTable) {
        let taken = std::mem::replace(other, WordTable::new());
        if self.len() == 0 {
            *self = taken;
        } else {
            taken.for_each(|piece, count| self.add(piece, count));
        }
    }

    /// Forgets the rarest pieces until the weight is at most half of `limit`: all that occur once, then all that occur
    /// twice, and so on. Returns the highest count that was forgotten. What goes depends on counts alone, so the
    /// outcome is the same for any number of threads.
    pub fn forget_rare(&mut self, limit: usize) -> u64 {
        let mut by_count = std::collections::BTreeMap::<u64, usize>::new();
        self.for_each(|piece, count| {
            let extra = if piece.len() > SHORT { piece.len() / 32 } else { 0 };
            *by_count.entry(count).or_default() += 1 + extra;
        });
        let mut weight: usize = by_count.values().sum();
        let mut forgotten = 0;
        for (count, share) in by_count {
            if weight <= limit / 2 {
                break;
            }
            weight -= share;
            forgotten = count;
        }
        let mut kept = WordTable::new();
        self.for_each(|piece, count| {
            if count > forgotten {
                kept.add(piece, count);
            }
        });
        *self = kept;
        forgotten
    }
}
