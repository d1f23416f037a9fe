//! The tokens of up to `MAX_BYTES` bytes. Nineteen of twenty pieces of a text are among them.

use std::cmp::Reverse;
use std::collections::HashMap;

use crate::processor::prefetch;
use crate::words::{hash_key, pack, Key, PADDINGS};

const MAX_BYTES: usize = 13; // 99 of 100 pieces of English text
const ID_SHIFT: usize = 8 * (MAX_BYTES - 8); // an id begins at this bit of the second word of a slot
const FREE: Slot = [u64::MAX; 2]; // is no token: its first byte is padding
const TOO_LONG: Key = [0xfefe_fefe_fefe_fefe; 2]; // is no token: UTF-8 never contains its bytes
const TOKENS_PER_BUCKET: usize = 4;
const SLOTS_PER_TOKEN: usize = 2; // at least
const GROUP: usize = 64; // pieces whose slots are loaded at the same time

/// The bytes of a token, padded to `MAX_BYTES`, and its id in the highest three bytes.
type Slot = [u64; 2];

/// A hash table with a slot for every token.
///
/// The hash of a piece names a bucket. The shift of the bucket moves the piece to its slot. The shifts are chosen so that
/// no two tokens meet in a slot (perfect hashing). So a piece is compared with one slot only, and no branch depends on
/// the result. The processor need not guess, and it loads the slots of many pieces at the same time.
pub struct ShortTokens {
    shifts: Vec<u16>, // by bucket
    slots: Vec<Slot>,
    others: HashMap<Key, u32>, // longer tokens, and the very few for which there is no shift
}

impl ShortTokens {
    /// `tokens`: key and id of each, without those that no UTF-8 contains.
    pub fn new(tokens: Vec<(Key, u32)>) -> Self {
        let (mut short, others): (Vec<_>, Vec<_>) = tokens.into_iter().partition(|&(key, _)| is_padded(key));
        let mut others: HashMap<Key, u32> = others.into_iter().collect();
        let mut slots = vec![FREE; (short.len() * SLOTS_PER_TOKEN).next_power_of_two()];
        let mut shifts = vec![0; (short.len() / TOKENS_PER_BUCKET).next_power_of_two()];
        let mut buckets = vec![Vec::new(); shifts.len()];
        short.sort_unstable_by_key(|token| token.1); // the most frequent first
        for (key, id) in short {
            buckets[bucket_of(hash_key(key), shifts.len())].push((key, id));
        }
        let mut order: Vec<usize> = (0..buckets.len()).collect();
        order.sort_by_key(|&bucket| Reverse(buckets[bucket].len())); // the largest, while there is room
        for bucket in order {
            let slot = |key, shift| slot_of(hash_key(key), shift, slots.len());
            let mut seen = Vec::new();
            let (tokens, twins): (Vec<_>, Vec<_>) = buckets[bucket].iter().copied().partition(|&(key, _)| {
                seen.push(slot(key, 0)); // no shift separates two tokens that meet here
                !seen[..seen.len() - 1].contains(&slot(key, 0))
            });
            others.extend(twins);
            match (0..=u16::MAX).find(|&shift| tokens.iter().all(|&(key, _)| slots[slot(key, shift)] == FREE)) {
                Some(shift) => {
                    shifts[bucket] = shift;
                    for (key, id) in tokens {
                        let slot = slot_of(hash_key(key), shift, slots.len());
                        slots[slot] = [key[0], key[1] & ((1 << ID_SHIFT) - 1) | (id as u64) << ID_SHIFT];
                    }
                }
                None => others.extend(tokens),
            }
        }
        ShortTokens { shifts, slots, others }
    }

    /// Looks up pieces of `text`: the first is `text[start..ends[0]]`, and each other starts where the one before it
    /// ends. Writes their ids to `ids`, and the indices of those that are not in the table to `misses`. Returns the
    /// number of these.
    pub fn look_up(&self, text: &[u8], start: usize, ends: &[usize], ids: &mut [u32], misses: &mut [u32]) -> usize {
        #[cfg(target_arch = "x86_64")]
        if crate::processor::is_x86_64_v3() {
            // SAFETY: the processor has the instructions.
            return unsafe { self.look_up_v3(text, start, ends, ids, misses) };
        }
        self.look_up_inline(text, start, ends, ids, misses)
    }

    #[cfg(target_arch = "x86_64")]
    #[target_feature(enable = "avx2,bmi1,bmi2,lzcnt,popcnt")]
    unsafe fn look_up_v3(
        &self,
        text: &[u8],
        start: usize,
        ends: &[usize],
        ids: &mut [u32],
        misses: &mut [u32],
    ) -> usize {
        self.look_up_inline(text, start, ends, ids, misses)
    }

    #[inline(always)]
    fn look_up_inline(
        &self,
        text: &[u8],
        mut start: usize,
        ends: &[usize],
        ids: &mut [u32],
        misses: &mut [u32],
    ) -> usize {
        let (shifts, slots) = (&self.shifts[..], &self.slots[..]);
        let (ids, misses) = (&mut ids[..ends.len()], &mut misses[..ends.len()]);
        let (mut pieces, mut found) = ([Packed::new(TOO_LONG); GROUP], [&slots[0]; GROUP]);
        let (mut index, mut num_misses) = (0, 0);
        let tail = text.len().saturating_sub(15); // from here on there are less than 16 bytes
        for (ends, ids) in ends.chunks(GROUP).zip(ids.chunks_mut(GROUP)) {
            // Two loops, because the processor overlaps more pieces in a short loop than in a long one.
            for ((&end, piece), slot) in ends.iter().zip(&mut pieces).zip(&mut found) {
                let length = end - start;
                *piece = if length > MAX_BYTES {
                    Packed::new(TOO_LONG)
                } else if start < tail {
                    // SAFETY: 16 bytes are inside the text.
                    Packed::padded(unsafe { &*text.as_ptr().add(start).cast() }, &PADDINGS[length])
                } else {
                    Packed::new(pack(&text[start..end]))
                };
                start = end;
                let hash = hash_key(piece.key());
                // SAFETY: both lengths are powers of two, so `bucket_of` and `slot_of` give indices below them.
                unsafe {
                    let shift = *shifts.get_unchecked(bucket_of(hash, shifts.len()));
                    *slot = slots.get_unchecked(slot_of(hash, shift, slots.len()));
                }
                prefetch(*slot);
            }
            for ((piece, slot), id) in pieces.iter().zip(&found).zip(ids) {
                *id = (slot[1] >> ID_SHIFT) as u32;
                // SAFETY: there are at most as many misses as pieces.
                unsafe { *misses.get_unchecked_mut(num_misses) = index };
                num_misses += piece.differs(slot) as usize;
                index += 1;
            }
        }
        num_misses
    }

    /// The id of a token that is not in the table.
    pub fn other(&self, key: Key) -> Option<u32> {
        self.others.get(&key).copied()
    }
}

/// Whether the piece has at most `MAX_BYTES` bytes.
fn is_padded(key: Key) -> bool {
    key[1] >> ID_SHIFT == u64::MAX >> ID_SHIFT
}

#[inline(always)]
fn bucket_of(hash: u64, num_buckets: usize) -> usize {
    (hash >> 40) as usize & (num_buckets - 1)
}

#[inline(always)]
fn slot_of(hash: u64, shift: u16, num_slots: usize) -> usize {
    (hash as usize ^ shift as usize) & (num_slots - 1)
}

/// A piece of at most `MAX_BYTES` bytes, padded to 16, in a vector register.
#[cfg(target_arch = "x86_64")]
#[derive(Clone, Copy)]
struct Packed(std::arch::x86_64::__m128i);

// SAFETY, of all functions: SSE2 is part of every x86-64, and the loads stay inside the arrays.
#[cfg(target_arch = "x86_64")]
impl Packed {
    #[inline(always)]
    fn new(key: Key) -> Self {
        Packed(unsafe { std::arch::x86_64::_mm_loadu_si128(key.as_ptr().cast()) })
    }

    #[inline(always)]
    fn padded(bytes: &[u8; 16], padding: &u128) -> Self {
        use std::arch::x86_64::*;
        let load = |place: *const u8| unsafe { _mm_loadu_si128(place.cast()) };
        Packed(unsafe { _mm_or_si128(load(bytes.as_ptr()), load((padding as *const u128).cast())) })
    }

    #[inline(always)]
    fn key(self) -> Key {
        use std::arch::x86_64::*;
        unsafe { [_mm_cvtsi128_si64(self.0) as u64, _mm_cvtsi128_si64(_mm_unpackhi_epi64(self.0, self.0)) as u64] }
    }

    /// Whether the first `MAX_BYTES` bytes differ.
    #[inline(always)]
    fn differs(self, slot: &Slot) -> bool {
        use std::arch::x86_64::*;
        const ALL: i32 = (1 << MAX_BYTES) - 1;
        let same = unsafe { _mm_movemask_epi8(_mm_cmpeq_epi8(self.0, _mm_loadu_si128(slot.as_ptr().cast()))) };
        same & ALL < ALL
    }
}

#[cfg(not(target_arch = "x86_64"))]
use PortablePacked as Packed;

/// The same for any processor.
#[cfg(any(test, not(target_arch = "x86_64")))]
#[derive(Clone, Copy)]
struct PortablePacked(Key);

#[cfg(any(test, not(target_arch = "x86_64")))]
impl PortablePacked {
    fn new(key: Key) -> Self {
        PortablePacked(key)
    }

    #[inline(always)]
    fn padded(bytes: &[u8; 16], padding: &u128) -> Self {
        let word = u128::from_le_bytes(*bytes) | padding;
        PortablePacked([word as u64, (word >> 64) as u64])
    }

    #[inline(always)]
    fn key(self) -> Key {
        self.0
    }

    #[inline(always)]
    fn differs(self, slot: &Slot) -> bool {
        (self.0[0] ^ slot[0]) | (self.0[1] ^ slot[1]) << (64 - ID_SHIFT) != 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The ids of pieces, `None` for those that are not found. The same with the instructions of every processor.
    fn look_up(table: &ShortTokens, pieces: &[&[u8]]) -> Vec<Option<u32>> {
        let mut end = 0;
        let ends: Vec<usize> = pieces.iter().map(|piece| (end += piece.len(), end).1).collect();
        let [fast, inline] = [ShortTokens::look_up, ShortTokens::look_up_inline].map(|look_up| {
            let (mut ids, mut misses) = (vec![0; pieces.len()], vec![0; pieces.len()]);
            let num_misses = look_up(table, &pieces.concat(), 0, &ends, &mut ids, &mut misses);
            let mut found: Vec<Option<u32>> = ids.into_iter().map(Some).collect();
            misses[..num_misses].iter().for_each(|&miss| found[miss as usize] = None);
            found
        });
        assert_eq!(fast, inline);
        fast
    }

    fn table(tokens: &[&[u8]]) -> ShortTokens {
        ShortTokens::new(tokens.iter().zip(7..).map(|(token, id)| (pack(token), id)).collect())
    }

    #[test]
    fn finds_tokens_and_nothing_else() {
        for count in [1, 2, 3, 100, 5000] {
            let words: Vec<String> = (0..count).map(|number| format!("{:x}", number * 977 % 65536)).collect();
            let tokens: Vec<&[u8]> = words.iter().map(|word| word.as_bytes()).collect();
            let table = table(&tokens);
            let found = look_up(&table, &tokens);
            for (index, token) in tokens.iter().enumerate() {
                assert_eq!(found[index].or(table.other(pack(token))), Some(index as u32 + 7));
            }
            assert!(table.others.len() <= 1 + count / 1000, "{count}: {}", table.others.len());
            let others: Vec<String> = words.iter().map(|word| format!("{word}_")).collect();
            let others: Vec<&[u8]> = others.iter().map(|word| word.as_bytes()).collect();
            assert_eq!(look_up(&table, &others), vec![None; count]);
        }
    }

    /// In a table of very few slots, most pieces are compared with a token.
    #[test]
    fn pieces_of_every_length_are_told_apart() {
        for text in [b"international\0\0\0 and so on", &[0; 26], &[0x7f; 26]] {
            for length in 1..=15 {
                let table = table(&[&text[..length]]);
                for other in 1..=26 {
                    let id = look_up(&table, &[&text[..other]])[0];
                    assert_eq!(id, (other == length && length <= MAX_BYTES).then_some(7), "{length} {other}");
                }
                assert_eq!(table.other(pack(&text[..length])), (length > MAX_BYTES).then_some(7));
            }
        }
    }

    #[test]
    fn portable_packing_is_the_same() {
        let text: [u8; 16] = std::array::from_fn(|index| index as u8 * 16);
        for padding in &PADDINGS[..=MAX_BYTES] {
            let (vector, portable) = (Packed::padded(&text, padding), PortablePacked::padded(&text, padding));
            assert_eq!(vector.key(), portable.key());
            let slot = [vector.key()[0], vector.key()[1] & ((1 << ID_SHIFT) - 1) | 5 << ID_SHIFT];
            assert!(!vector.differs(&slot) && !portable.differs(&slot));
            for bit in 0..8 * MAX_BYTES {
                let mut other = slot;
                other[bit / 64] ^= 1 << (bit % 64);
                assert!(vector.differs(&other) && PortablePacked::new(portable.key()).differs(&other));
            }
        }
    }
}
